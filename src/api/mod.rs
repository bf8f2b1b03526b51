//! The control service: gRPC on a Unix socket, and its client.

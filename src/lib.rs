//! Lattice: a peer-to-peer mesh of replicated stores, mounted as a directory tree.
//!
//! See ARCHITECTURE.md for the parts and who may import whom.

pub mod api;
pub mod blobs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod fs;
pub mod ids;
pub mod mesh;
pub mod net;
pub mod peers;
pub mod replication;
pub mod stores;

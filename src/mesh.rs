//! The mesh: its members, invites and stores.

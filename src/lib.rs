//! Lattice: a peer-to-peer mesh of replicated stores, mounted as a directory tree.
//!
//! See ARCHITECTURE.md for the parts and who may import whom.

pub mod clock;
pub mod ids;
pub mod replication;

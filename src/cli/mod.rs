//! The `lattice` command: one file a noun.

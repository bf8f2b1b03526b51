//! What a store means.

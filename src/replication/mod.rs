//! What an entry is, when it counts, and who has it. Knows nothing of what a payload means.

pub mod database;
pub mod driver;
pub mod entry;
pub mod ingest;
pub mod limits;
pub mod log;
pub mod machine;
pub mod membership;
pub mod message;
pub mod reconcile;
pub mod replica;
pub mod shelf;
pub mod verify;

//! The key-value machine: keys are paths, and a key's value is whatever writes to it no other write supersedes.
//!
//! Each write lists the heads that it supersedes, so the heads of a key are
//! `{ w : w is an included write to the key, and no included write to the key cites w }`: a function of the set of
//! entries, whatever the order of their arrival. A citation that names a write which is not here yet is kept until it comes.
//!
//! Tables (`row` is the path with `/` as the byte 0, so that a subtree is one run of rows and rows sort by component):
//!
//! | table     | key                          | value |
//! |-----------|------------------------------|-------|
//! | keys      | row                          | heads, of keys whose last write is no deletion |
//! | tombs     | row                          | heads, of keys whose last write is a deletion |
//! | conflicts | row                          | nothing; keys that need a person |
//! | history   | row 0 0 hlc entry op         | the write, and what it supersedes |
//! | dangling  | row 0 0 hlc entry op         | nothing; cited and not here |
//! | counts    | `keys`, `conflicts`          | how many, if not none |

#[cfg(test)]
mod convergence;
mod describe;
mod handle;
mod local;
mod machine;
mod model;
#[cfg(test)]
mod moments;
mod parts;
mod past;
mod path;
mod restore;
mod rows;
#[cfg(test)]
mod tests;
mod tx;
mod wire;

pub use describe::describe;
pub use handle::{Kv, KvError, Opened, PATIENCE};
pub use local::stays;
pub use machine::Machine;
pub use model::{Content, Head, HeadId, Heads, Kind, Node, Op, Value, Version};
pub use parts::Partly;
pub use past::{Lens, Moment};
pub use path::{BadPath, check as check_path};
pub use restore::{Restored, Undone};
pub use tx::{COMMIT, Committed, Look, Put, Steady, Tx, TxError, Txs};

//! The root store: who belongs to the mesh and which stores it has.
//!
//! The state is a fold over all included entries in the order of (stamp, hash), which extends causality. What an author
//! may do is judged on the entry's own causal past: a role that was given concurrently does not count yet. When an
//! entry arrives that is not the last in that order, the fold is done anew; so the state is a function of the set of entries.
//!
//! Tables:
//!
//! | table    | key       | value (postcard) |
//! |----------|-----------|------------------|
//! | past     | hash      | author, seq, the highest seq of each author in its causal past |
//! | folded   | hlc, hash | the entry's bytes |
//! | members  | node      | name, what was granted, whether it left |
//! | invites  | id        | role, expiry, uses, who used it |
//! | declared | store id  | name, kind, by whom, when, whether deleted |
//! | removals | node      | by whom and how it was removed, or given a lesser role |
//! | facts    | name      | `mesh`: name and salt; `set`: the exclusive or of the hashes of all entries folded |

#[cfg(test)]
mod convergence;
mod describe;
mod handle;
mod machine;
pub mod names;
mod redeem;
mod removal;
#[cfg(test)]
mod removals;
mod replay;
mod state;
mod succession;

mod wire;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use handle::salted;
pub use handle::{Declared, GenesisError, Invitation, MemberInfo, Root, RootError, genesis, nobody};
pub use machine::Machine;
pub use redeem::{Redeem, Refusal, invite_id, invite_key, redeem};
pub use replay::Unsound;
pub use succession::{Succession, succession};
pub use wire::Op;
#[cfg(test)]
pub(crate) use wire::encode as payload;

//! The mount: the mesh as a directory tree.
//!
//! `adapter` turns the kernel's calls into those of `tree`; one file for each kind of node says what it shows and what
//! writing to it does; `draft` holds what is written and not yet a version; `soon` and `removals` make and remove what becomes
//! an entry a moment later; `tx` shows what is staged in transactions, and `staged` holds it on the disk; `announce` tells the kernel what changed elsewhere, and `replay` its watchers; `session` mounts
//! and unmounts. Knows nothing of entries, signatures and the network.

mod adapter;
mod allocate;
mod announce;
mod aside;
mod attributes;
mod changes;
mod chat;
mod draft;
mod entries;
mod errno;
mod handles;
mod heads;
mod history;
mod inodes;
mod keeper;
mod keys;
mod listing;
mod members;
mod missed;
mod missing;
mod mounts;
mod names;
mod past;
mod payloads;
mod place;
mod pool;
mod readme;
mod recover;
mod removals;
mod rename;
mod replay;
mod replayer;
mod rooms;
mod session;
mod setattr;
mod shelf;
mod signals;
mod soon;
mod staged;
mod status;
#[cfg(test)]
mod testing;
mod tree;
mod tx;
mod waiting;
mod watches;
mod why;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

pub use aside::{Recovered, recovered};
pub use keys::{SPARE, scarce};
pub use session::{MountError, Mounted, Options, mount, same_place};

use crate::peers::Peers;
use crate::stores::Registry;

/// What a mount shows, and where it keeps what is not published yet.
#[derive(Clone)]
pub struct Sources {
    /// The stores; `None` until this node is in a mesh. It may change while mounted.
    pub registry: Arc<ArcSwapOption<Registry>>,
    /// Who tells of the members.
    pub peers: Arc<dyn Peers>,
    /// A directory of this mount's own, made if missing: what is being written, files that stay on this machine,
    /// and under `recovered/` what was put aside for a person.
    pub drafts: PathBuf,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("drafts", &self.drafts).finish_non_exhaustive()
    }
}

//! Files that a program removed a moment ago. Many programs replace a file by removing it and making it anew (`install`, `tar x`, `mv`
//! from another disk): that is to be one version, and the file is not to be gone for others meanwhile.
//!
//! So the entry that deletes a file waits until its remover does something else with names, or ends, and for some tens of
//! milliseconds at most.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::inodes::Whiteout;
use super::names::{Target, ids};
use super::replay::Name;
use super::tree::{Tree, locked};
use super::waiting::{Due, RENAME};
use crate::clock;

/// How often it is looked whether the remover has ended.
const LOOK: Duration = Duration::from_millis(3);

/// What each thread removed last, by directory and name.
#[derive(Debug, Default)]
pub(crate) struct Removals(Mutex<HashMap<u32, Name>>);

/// A removal that is no entry yet.
#[derive(Debug)]
pub(crate) struct Removal {
    parent: u64,
    name: Box<[u8]>,
    /// The thread that removed it.
    by: u32,
    until: Instant,
}

impl Tree {
    /// Takes a key away, to be deleted soon. No name may change meanwhile.
    pub(crate) fn remove_soon(&self, by: u32, parent: u64, name: &[u8], target: &Target) {
        let heads = ids(target.heads.as_ref());
        self.table().white_out(parent, name, Whiteout { heads });
        locked(&self.removals.0).insert(by, (parent, name.into()));
        let until = clock::monotonic() + RENAME;
        self.waiting.add(LOOK, Due::Removal(Removal { parent, name: name.into(), by, until }));
    }

    /// A thread does something with a name: if it is another than the one that it removed last, that one is not replaced.
    pub(crate) fn does(&self, by: u32, parent: u64, name: &[u8]) {
        let removed = locked(&self.removals.0).remove(&by);
        if let Some((at, removed)) = removed.filter(|(at, removed)| (*at, &**removed) != (parent, name)) {
            // What fails is noted there.
            self.settle_whiteout(at, &removed).ok();
        }
    }

    pub(crate) fn due_removal(&self, removal: Removal) {
        // If not, it is deleted already, or another file has taken its place.
        let waits = self.table().whiteout(removal.parent, &removal.name).is_some();
        let ended = removal.by != 0 && !Path::new(&format!("/proc/{}", removal.by)).exists();
        if waits && !ended && clock::monotonic() < removal.until && !self.waiting.stops() {
            return self.waiting.add(LOOK, Due::Removal(removal));
        }
        {
            let mut removals = locked(&self.removals.0);
            if removals.get(&removal.by).is_some_and(|(at, name)| (*at, name) == (removal.parent, &removal.name)) {
                removals.remove(&removal.by);
            }
        }
        // What fails is noted there.
        self.settle_whiteout(removal.parent, &removal.name).ok();
    }
}

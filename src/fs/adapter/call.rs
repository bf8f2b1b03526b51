//! A call of the kernel: it is run, and its failure noted for people.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use fuser::{Errno, Generation, INodeNo, ReplyEntry, Request};

use super::Adapter;
use crate::fs::errno::Answer;
use crate::fs::place::Type;
use crate::fs::tree::{NONE, Tree};

/// The name of the calls of the thread that replays: what it may not do is nobody's failure.
pub(super) const REPLAY: &str = "replay";

/// A call of the kernel: on what, for when it fails.
pub(super) struct Call {
    pub(super) tree: Arc<Tree>,
    pub(super) name: &'static str,
    pub(super) ino: u64,
    /// The name in the directory `ino`, if it is about that.
    pub(super) entry: Option<Box<[u8]>>,
}

impl Call {
    pub(super) fn named(mut self, entry: &OsStr) -> Self {
        self.entry = Some(entry.as_bytes().into());
        self
    }

    /// Runs it. A failure is noted once, here; one that should never be costs the caller an EIO and nobody else.
    pub(super) fn run<T>(self, work: impl FnOnce() -> Answer<T>) -> Result<T, Errno> {
        let (call, ino) = (self.name, self.ino);
        match std::panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(why)) => {
                if why.grave() {
                    tracing::warn!(target: "fs", call, ino, %why, "failed");
                } else {
                    tracing::trace!(target: "fs", call, ino, %why, "refused");
                }
                self.note(why.number(), &why);
                Err(Errno::from_i32(why.number()))
            }
            Err(_) => {
                tracing::error!(target: "fs", call, ino, "failed in a way it never should");
                self.note(libc::EIO, &"a fault of this program: its log tells more");
                Err(Errno::EIO)
            }
        }
    }

    fn note(&self, number: i32, why: &dyn std::fmt::Display) {
        if self.name != REPLAY {
            self.tree.note(self.name, self.ino, self.entry.as_deref(), number, why);
        }
    }
}

impl Adapter {
    /// Whether it is a replay, which changes nothing.
    pub(super) fn replays(&self, request: &Request) -> bool {
        self.tree.replay.is_by(request.pid())
    }

    /// Answers the replay of a name's making.
    pub(super) fn replayed(&self, parent: INodeNo, name: &OsStr, kind: Type, reply: ReplyEntry) {
        // What the kernel then has may be old already, and it has no way to notice: it asks again.
        match self.call(REPLAY, parent.0).run(|| self.tree.replayed_making(parent.0, name.as_bytes(), kind)) {
            Ok(attr) => reply.entry(&NONE, &self.file_attr(&attr), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    pub(super) fn call(&self, name: &'static str, ino: u64) -> Call {
        Call { tree: Arc::clone(&self.tree), name, ino, entry: None }
    }
}

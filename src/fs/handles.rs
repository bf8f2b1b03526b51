//! Calls on open files, by the number that the kernel has for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::announce::Notice;
use super::errno::{self, Answer};
use super::place::Place;
use super::tree::{Handle, LONG, NONE, Tree, locked};
use super::write::{Writer, tame};

/// Inodes of which the kernel waits for a page: telling it to drop that page would wait as well.
#[derive(Debug, Default, Clone)]
pub(crate) struct Busy(Arc<Mutex<BTreeMap<u64, u32>>>);

/// One such wait.
#[derive(Debug)]
pub(crate) struct BusyWith {
    busy: Busy,
    ino: u64,
}

impl Drop for BusyWith {
    fn drop(&mut self) {
        let mut all = locked(&self.busy.0);
        if let Some(count) = all.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.ino);
            }
        }
    }
}

impl Busy {
    pub(crate) fn is(&self, ino: u64) -> bool {
        locked(&self.0).contains_key(&ino)
    }
}

impl Tree {
    /// Marks an inode as waited for, until what is returned is dropped.
    pub(crate) fn busy(&self, ino: u64) -> BusyWith {
        *locked(&self.busy.0).entry(ino).or_default() += 1;
        BusyWith { busy: self.busy.clone(), ino }
    }

    /// How long an inode's attributes may be believed.
    pub(crate) fn ttl(&self, ino: u64) -> Duration {
        match self.table().place(ino) {
            Some(
                Place::Root
                | Place::Stores
                | Place::Store(_)
                | Place::Link(_)
                | Place::Keys(_)
                | Place::Key(_)
                | Place::Heads
                | Place::Txs(_)
                | Place::Peers
                | Place::Chat
                | Place::Json,
            ) => LONG,
            Some(
                Place::Readme
                | Place::Why
                | Place::HeadsOf(_)
                | Place::HeadsPath(_)
                | Place::Head(_)
                | Place::Moments(_)
                | Place::Authors(_)
                | Place::Then(..)
                | Place::Past(..)
                | Place::History(_)
                | Place::HistoryPath(_)
                | Place::Version(_)
                | Place::Status(_)
                | Place::Entries(_)
                | Place::Changes(_)
                | Place::Staged(_)
                | Place::TxWhy(_)
                | Place::Peer
                | Place::PeerFile
                | Place::Room
                | Place::JsonRoom
                | Place::Blobs
                | Place::Blob,
            )
            | None => NONE,
        }
    }

    pub(crate) fn write_handle(&self, by: Writer, handle: u64, offset: u64, data: &[u8], append: bool) -> Answer<()> {
        match &*self.handle(handle)? {
            Handle::File(file) => {
                self.write(file, offset, data, append)?;
                if let Some(draft) = &file.draft {
                    let mut shape = draft.shape();
                    shape.writer = by.thread;
                    let tamed = tame(shape.mode);
                    if by.tame && tamed != shape.mode {
                        shape.mode = tamed;
                        // The bytes may have been published before this.
                        shape.touched();
                        drop(shape);
                        self.notify(Notice::Content(file.ino));
                    }
                }
                Ok(())
            }
            Handle::Room(room) => super::chat::write(self, room, data),
            Handle::Staged(open) => self.write_staged(by, open, offset, data, append),
            Handle::Directory(_)
            | Handle::Text(_)
            | Handle::Blob(_)
            | Handle::Entries(_)
            | Handle::Changes(_)
            | Handle::Why(_)
            | Handle::Version(_)
            | Handle::Replay => Err(errno::GENERATED),
        }
    }

    /// The reader of what changes that an opening is.
    pub(crate) fn follows(&self, handle: u64) -> Option<u64> {
        match self.handle(handle).as_deref() {
            Ok(Handle::Changes(reader)) => Some(*reader),
            Ok(_) | Err(_) => None,
        }
    }

    /// `fallocate`. `by`: the thread that asks.
    pub(crate) fn allocate_handle(&self, by: u32, handle: u64, offset: u64, length: u64, mode: i32) -> Answer<()> {
        let handle = self.handle(handle)?;
        let file = match &*handle {
            Handle::File(file) => file,
            Handle::Staged(open) => return self.allocate_staged(open, offset, length, mode),
            _ => return Err(errno::UNSUPPORTED),
        };
        let draft = file.draft.as_ref().ok_or(errno::INVALID)?;
        self.allocate(file, draft, offset, length, mode)?;
        draft.shape().writer = by;
        Ok(())
    }

    /// `by`: the thread that closes. A descriptor that a child process inherited and closes, having written nothing,
    /// says nothing of whether the writer is done: the version is made at the latest when the last one goes.
    pub(crate) fn flush_handle(&self, by: u32, handle: u64) -> Answer<()> {
        match &*self.handle(handle)? {
            Handle::File(file) => {
                let writer = file.draft.as_ref().map_or(by, |draft| draft.shape().writer);
                if same_process(by, writer) { self.flush(file) } else { Ok(()) }
            }
            Handle::Room(room) => super::chat::flush(self, room),
            Handle::Directory(_)
            | Handle::Text(_)
            | Handle::Blob(_)
            | Handle::Entries(_)
            | Handle::Changes(_)
            | Handle::Why(_)
            | Handle::Version(_)
            | Handle::Staged(_)
            | Handle::Replay => Ok(()),
        }
    }

    /// The kernel lets go of an opening.
    pub(crate) fn close(&self, handle: u64) -> Answer<()> {
        match self.let_go(handle).as_deref() {
            Some(Handle::File(file)) => self.release(file),
            Some(Handle::Room(room)) => super::chat::flush(self, room),
            Some(Handle::Staged(open)) => {
                self.close_staged(open);
                Ok(())
            }
            Some(Handle::Changes(reader)) => {
                self.changes.close(*reader);
                Ok(())
            }
            Some(
                Handle::Directory(_)
                | Handle::Text(_)
                | Handle::Entries(_)
                | Handle::Why(_)
                | Handle::Blob(_)
                | Handle::Version(_)
                | Handle::Replay,
            )
            | None => Ok(()),
        }
    }

    pub(crate) fn sync_handle(&self, handle: u64) -> Answer<()> {
        match &*self.handle(handle)? {
            Handle::File(file) => self.sync(file),
            Handle::Room(room) => super::chat::sync(self, room),
            Handle::Staged(open) => open.sync(),
            Handle::Directory(_)
            | Handle::Text(_)
            | Handle::Blob(_)
            | Handle::Entries(_)
            | Handle::Changes(_)
            | Handle::Why(_)
            | Handle::Version(_)
            | Handle::Replay => Ok(()),
        }
    }

    /// Whether what makes or changes a name there has to wait for the disk: as when that of its store does not keep up.
    pub(crate) fn crowded(&self, ino: u64) -> bool {
        let place = self.table().place(ino);
        match place {
            Some(Place::Keys(store) | Place::Key(store) | Place::HeadsPath(store)) => {
                self.kv(&store).is_ok_and(|kv| kv.log().database().crowded())
            }
            // What begins and ends there waits for the disk.
            Some(Place::Txs(_)) => true,
            _ => false,
        }
    }

    pub(crate) fn writing_takes_long(&self, handle: u64) -> bool {
        match self.handle(handle).as_deref() {
            Ok(Handle::File(file)) => file.draft.as_ref().is_some_and(|draft| Self::write_takes_long(draft, file)),
            _ => false,
        }
    }

    pub(crate) fn flushing_takes_long(&self, handle: u64) -> bool {
        match self.handle(handle).as_deref() {
            Ok(Handle::File(file)) => file.draft.as_ref().is_some_and(|draft| Self::publishing_takes_long(draft)),
            _ => false,
        }
    }

    /// Whether a directory holds a large file that a renaming would publish.
    pub(crate) fn renaming_takes_long(&self, directory: u64) -> bool {
        let table = self.table();
        let mut locals = table.locals(directory).into_iter();
        locals.any(|(_, ino)| table.draft(ino).is_some_and(|draft| Self::publishing_takes_long(&draft)))
    }
}

/// Whether two threads are of one process; so it is if that can't be told.
fn same_process(one: u32, other: u32) -> bool {
    let process = |thread: u32| {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Tgid:")).map(|id| id.trim().to_owned())
    };
    one == other || one == 0 || other == 0 || process(one).zip(process(other)).is_none_or(|(one, other)| one == other)
}

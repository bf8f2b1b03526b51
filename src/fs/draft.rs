//! What was written and is not published yet: small in memory, large in a file of the drafts' directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::Sight;
use super::place::Type;
use super::shelf::{Kept, Spill};
use crate::clock;
use crate::ids::NodeId;
use crate::replication::log::Tip;
use crate::stores::kv::{Head, HeadId};

/// The largest draft that is kept in memory, in bytes.
pub(crate) const IN_MEMORY: u64 = 256 * 1024;

/// The bytes of a draft.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Those of the head that was there when the file was opened; `None`: no bytes.
    Base(Option<Box<Head>>),
    /// In memory.
    Memory(Vec<u8>),
    /// In a file.
    Spilled(Arc<Spill>),
}

/// What a draft is at a moment.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) kind: Type,
    pub(crate) content: Content,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    /// Counts changes; equal to `published` when the store has all of them.
    pub(crate) changes: u64,
    pub(crate) published: u64,
    /// How many of the changes there were when a writer closed a descriptor last.
    pub(crate) closed: u64,
    /// Made or cut to nothing, and no data since: no version yet.
    pub(crate) bare: bool,
    /// The store has never had it.
    pub(crate) new: bool,
    /// Made with `O_EXCL`: a rename probably follows.
    pub(crate) exclusive: bool,
    /// It stays on this machine.
    pub(crate) local: bool,
    /// The thread that wrote last.
    pub(crate) writer: u32,
    /// Descriptors that may write.
    pub(crate) writers: u32,
    /// How often it is due to be published, by and by.
    pub(crate) waits: u32,
    /// How often that was put off.
    pub(crate) put_off: u32,
    /// The heads that the next version supersedes.
    pub(crate) base: Vec<HeadId>,
    /// The last version that was published from here.
    pub(crate) own: Option<HeadId>,
    /// How far each author's chain had come when it was made, if it may take another key's place.
    pub(crate) tips: Option<BTreeMap<NodeId, Tip>>,
    /// What makes its file survive a crash of the daemon. Its content then is in that file.
    pub(crate) kept: Option<Arc<Kept>>,
}

impl Shape {
    pub(crate) fn new(kind: Type, mode: u32) -> Self {
        Self {
            kind,
            content: Content::Base(None),
            size: 0,
            mode,
            mtime: clock::nanos(),
            changes: 0,
            published: 0,
            closed: 0,
            bare: false,
            new: false,
            exclusive: false,
            local: false,
            writer: 0,
            writers: 0,
            waits: 0,
            put_off: 0,
            base: Vec::new(),
            own: None,
            tips: None,
            kept: None,
        }
    }

    /// Whether it holds what the store does not.
    pub(crate) fn dirty(&self) -> bool {
        self.changes != self.published
    }

    /// Whether it, and not the store, is what is shown.
    pub(crate) fn shown(&self) -> bool {
        self.dirty() || self.new || self.local
    }

    /// Whether what an opener writes goes on from what is held here, and not from what the opener saw in the store: that was
    /// published from here since, or is what was.
    pub(crate) fn goes_on(&self, sight: &Sight) -> bool {
        if self.dirty() || self.new {
            return true;
        }
        let held = self.own.is_some() && !matches!(self.content, Content::Base(_));
        held && (self.own != sight.own || sight.winner.map(|head| head.id) == self.own)
    }

    /// Whether a head was there when it was made.
    pub(crate) fn had_seen(&self, head: &Head) -> bool {
        let reached = |tips: &BTreeMap<NodeId, Tip>| tips.get(&head.author).is_some_and(|tip| head.seq <= tip.seq);
        self.tips.as_ref().is_none_or(reached)
    }

    pub(crate) fn touched(&mut self) {
        self.changes += 1;
    }

    /// Writes `data` at `offset`. The content must be loaded.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], directory: &Path) -> std::io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        if end > IN_MEMORY {
            self.spill(directory)?;
        }
        match &mut self.content {
            Content::Spilled(spill) => spill.file.write_all_at(data, offset)?,
            Content::Memory(bytes) => put(bytes, offset, data),
            Content::Base(_) => {
                let mut bytes = Vec::new();
                put(&mut bytes, offset, data);
                self.content = Content::Memory(bytes);
            }
        }
        self.size = self.size.max(end);
        self.bare = false;
        self.mtime = clock::nanos();
        self.touched();
        Ok(())
    }

    /// Cuts or extends it to `size`. The content must be loaded, unless `size` is 0.
    pub(crate) fn resize(&mut self, size: u64, directory: &Path) -> std::io::Result<()> {
        if size > IN_MEMORY {
            self.spill(directory)?;
        }
        if size == 0 && self.kept.is_none() {
            self.content = Content::Memory(Vec::new());
        }
        match &mut self.content {
            Content::Spilled(spill) => spill.file.set_len(size)?,
            Content::Memory(bytes) => bytes.resize(usize::try_from(size).unwrap_or(usize::MAX), 0),
            Content::Base(_) => self.content = Content::Memory(vec![0; usize::try_from(size).unwrap_or(0)]),
        }
        self.bare = size == 0;
        self.size = size;
        self.mtime = clock::nanos();
        self.touched();
        Ok(())
    }

    /// Moves the content to a file, which it is then written through to. It must be loaded.
    pub(crate) fn spill(&mut self, directory: &Path) -> std::io::Result<Arc<Spill>> {
        let bytes = match &self.content {
            Content::Spilled(spill) => return Ok(Arc::clone(spill)),
            Content::Memory(bytes) => bytes.as_slice(),
            Content::Base(_) => &[],
        };
        let spill = Spill::new(directory)?;
        spill.file.write_all_at(bytes, 0)?;
        let spill = Arc::new(spill);
        self.content = Content::Spilled(Arc::clone(&spill));
        Ok(spill)
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = start.saturating_add(data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

/// Reads from a file at `offset` up to `size` bytes, fewer only at its end.
pub(crate) fn read_at(file: &File, offset: u64, size: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The part of `bytes` from `offset` on, at most `size`.
pub(crate) fn part(bytes: &[u8], offset: u64, size: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes[start..start.saturating_add(size).min(bytes.len())].to_vec()
}

/// A file that is being written. Its lock is held for work in memory and on the page cache only.
#[derive(Debug)]
pub(crate) struct Draft {
    shape: Mutex<Shape>,
    /// One publication at a time. Taken before `shape`, never while it is held.
    pub(crate) publishing: Mutex<()>,
}

impl Draft {
    pub(crate) fn new(shape: Shape) -> Arc<Self> {
        Arc::new(Self { shape: Mutex::new(shape), publishing: Mutex::default() })
    }

    pub(crate) fn shape(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &Shape) -> Vec<u8> {
        match &shape.content {
            Content::Base(_) => Vec::new(),
            Content::Memory(bytes) => bytes.clone(),
            Content::Spilled(spill) => read_at(&spill.file, 0, usize::try_from(shape.size).unwrap()).unwrap(),
        }
    }

    #[test]
    fn a_draft_that_grows_moves_to_a_file_and_keeps_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let mut shape = Shape::new(Type::File, 0o644);
        shape.write(0, b"start", directory.path()).unwrap();
        shape.write(IN_MEMORY + 3, b"end", directory.path()).unwrap();
        assert!(matches!(shape.content, Content::Spilled(_)));
        let all = bytes(&shape);
        assert_eq!(all.len() as u64, IN_MEMORY + 6);
        assert_eq!((&all[..6], &all[all.len() - 4..]), (&b"start\0"[..], &b"\0end"[..]));
        drop(shape);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn cutting_and_extending_fill_with_zeros() {
        let directory = tempfile::tempdir().unwrap();
        let mut shape = Shape::new(Type::File, 0o644);
        shape.write(0, b"abcdef", directory.path()).unwrap();
        shape.resize(3, directory.path()).unwrap();
        shape.resize(5, directory.path()).unwrap();
        assert_eq!(bytes(&shape), b"abc\0\0");
    }

    #[test]
    fn a_file_cut_to_nothing_is_bare_until_data_comes() {
        let directory = tempfile::tempdir().unwrap();
        let mut shape = Shape::new(Type::File, 0o644);
        shape.resize(0, directory.path()).unwrap();
        assert!(shape.bare && shape.dirty());
        shape.write(0, b"x", directory.path()).unwrap();
        assert!(!shape.bare);
    }
}

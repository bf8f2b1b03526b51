//! The drafts' directory: copies of drafts that survive a crash, and what is made of them at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::draft::{Content, Shape, Spill};
use super::inodes::Type;
use crate::clock;
use crate::ids::{Hash, StoreId};
use crate::stores::kv::HeadId;

const NOTE: &str = "note";
const DRAFT: &str = "draft";
const RECOVERED: &str = "recovered";

/// What is known of a draft besides its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) store: StoreId,
    /// The key, as bytes.
    pub(crate) path: Vec<u8>,
    pub(crate) symlink: bool,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    /// It stays on this machine.
    pub(crate) local: bool,
    /// Its writer was done with it.
    pub(crate) closed: bool,
    /// The heads that it supersedes.
    pub(crate) base: Vec<(Hash, u16)>,
}

impl Note {
    pub(crate) fn of(shape: &Shape, store: StoreId, path: &[u8]) -> Self {
        Self {
            store,
            path: path.to_vec(),
            symlink: shape.kind == Type::Symlink,
            mode: shape.mode,
            mtime: shape.mtime,
            local: shape.local,
            closed: shape.writers == 0,
            base: shape.base.iter().map(|id| (id.entry, id.op)).collect(),
        }
    }

    pub(crate) fn supersedes(&self) -> Vec<HeadId> {
        self.base.iter().map(|(entry, op)| HeadId { entry: *entry, op: *op }).collect()
    }
}

/// A draft's copy on disk. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Kept {
    note: PathBuf,
    /// Its own file, or the draft's, which must not go before the note.
    data: Arc<Spill>,
    /// The note now belongs to a newer copy, or stays for the next start.
    left: AtomicBool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Relaxed)
            && let Err(error) = fs::remove_file(&self.note)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(target: "fs", path = %self.note.display(), %error, "a draft's note stays behind");
        }
    }
}

impl Kept {
    /// Writes the note anew, as when the draft was closed; it is not waited for.
    pub(crate) fn update(&self, note: &Note) -> Result<()> {
        let fresh = self.note.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(note)?)?;
        fs::rename(fresh, &self.note)
    }

    /// Lets the copy stay for the next start.
    pub(crate) fn leave(self: Arc<Self>) {
        self.left.store(true, Ordering::Relaxed);
        // Counted once too often, its file is never removed.
        std::mem::forget(Arc::clone(&self.data));
    }

    /// A newer copy takes its place.
    pub(crate) fn replaced_by(&self, newer: &Self) {
        self.left.store(self.note == newer.note, Ordering::Relaxed);
    }

    /// Moves it to where a person finds it.
    pub(crate) fn aside(self, directory: &Path, note: &Note) -> Result<()> {
        self.left.store(true, Ordering::Relaxed);
        put_aside(directory, &self.data.path, Some(note))
    }
}

/// Keeps a copy of a draft's content in `directory`. With `sync` it survives a crash of the machine when this
/// returns, without it one of the daemon.
pub(crate) fn keep(directory: &Path, content: &Content, note: &Note, sync: bool) -> Result<Kept> {
    let data = match content {
        Content::Spilled(spill) => Arc::clone(spill),
        Content::Memory(bytes) => filled(directory, bytes)?,
        Content::Base(_) => filled(directory, &[])?,
    };
    if sync {
        data.file.sync_data()?;
    }
    let path = data.path.with_extension(NOTE);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    file.write_all(&serde_json::to_vec(note)?)?;
    if sync {
        file.sync_data()?;
        File::open(directory)?.sync_all()?;
    }
    Ok(Kept { note: path, data, left: AtomicBool::new(false) })
}

fn filled(directory: &Path, bytes: &[u8]) -> Result<Arc<Spill>> {
    let spill = Spill::new(directory)?;
    (&spill.file).write_all(bytes)?;
    Ok(Arc::new(spill))
}

/// A draft that an earlier run left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) note: Note,
    pub(crate) data: PathBuf,
}

/// Takes what an earlier run left out of `directory`; what can't be read as a draft is put aside as recovered.
pub(crate) fn left(directory: &Path) -> Result<Vec<Left>> {
    let mut found = Vec::new();
    let mut names: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    for data in names.iter().filter(|path| path.extension().is_some_and(|extension| extension == DRAFT)) {
        let note = fs::read(data.with_extension(NOTE)).ok();
        match note.and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok()) {
            Some(note) => found.push(Left { note, data: data.clone() }),
            None => put_aside(directory, data, None)?,
        }
    }
    Ok(found)
}

/// Moves a draft that couldn't be published to where a person finds it.
pub(crate) fn put_aside(directory: &Path, data: &Path, note: Option<&Note>) -> Result<()> {
    if note.is_none() && fs::metadata(data)?.len() == 0 {
        return fs::remove_file(data);
    }
    let aside = directory.join(RECOVERED);
    fs::create_dir_all(&aside)?;
    let path = note.map_or_else(String::new, |note| String::from_utf8_lossy(&note.path).replace('/', "\u{2215}"));
    let path: String = path.chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
    let name = format!("{}-{}", clock::nanos(), if path.is_empty() { "unnamed" } else { &path });
    fs::rename(data, aside.join(name))?;
    match fs::remove_file(data.with_extension(NOTE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what is left of a draft that was dealt with.
pub(crate) fn remove(left: &Left) -> Result<()> {
    fs::remove_file(left.data.with_extension(NOTE))?;
    fs::remove_file(&left.data)
}

/// Files that were being written when the machine or the daemon died, or that could not be published, in the drafts'
/// directory `drafts`: for `lattice status`. A person copies them to where they belong, or deletes them.
#[must_use]
pub fn recovered(drafts: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(drafts.join(RECOVERED)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(bytes: &[u8]) -> Shape {
        let mut shape = Shape::new(Type::File, 0o600);
        shape.content = Content::Memory(bytes.to_vec());
        shape.touched();
        shape
    }

    #[test]
    fn a_kept_draft_reads_back_at_the_next_start_and_a_dropped_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let shape = shape(b"precious");
        let note = Note::of(&shape, StoreId([1; 32]), b"a/b");
        drop(keep(directory.path(), &shape.content, &note, true).unwrap());
        assert!(left(directory.path()).unwrap().is_empty());
        Arc::new(keep(directory.path(), &shape.content, &note, true).unwrap()).leave();
        let found = left(directory.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].note.path, b"a/b");
        assert_eq!(fs::read(&found[0].data).unwrap(), b"precious");
        remove(&found[0]).unwrap();
        assert!(left(directory.path()).unwrap().is_empty());
    }

    #[test]
    fn a_draft_without_a_note_is_put_aside_for_a_person() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("1-2-3.draft"), b"half").unwrap();
        assert!(left(directory.path()).unwrap().is_empty());
        let found = recovered(directory.path());
        assert_eq!(fs::read(&found[0]).unwrap(), b"half");
    }
}

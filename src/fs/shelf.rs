//! The drafts' directory: files that hold what is not published yet, with a note each that says what it is, so that
//! what a crash leaves can be taken up.
//!
//! A file without a note was promised to nobody: one that was removed while it was open, or whose content the store has.

use std::fs::{self, File, OpenOptions};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::aside;
use super::draft::Shape;
use super::place::Type;
use super::tree::locked;
use crate::clock;
use crate::ids::{Hash, StoreId};
use crate::stores::kv::HeadId;

const NOTE: &str = "note";
const DRAFT: &str = "draft";
const FRESH: &str = "new";

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A draft's file on disk. Dropping it removes the file, unless it stays for the next start.
#[derive(Debug)]
pub(crate) struct Spill {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// How many notes it has had; held while its note is written or removed.
    notes: Mutex<u64>,
    stays: AtomicBool,
}

impl Spill {
    /// A new, empty file in `directory`.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}.{DRAFT}", clock::nanos(), std::process::id());
        let path = directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::of(file, path))
    }

    fn of(file: File, path: PathBuf) -> Self {
        Self { file, path, notes: Mutex::default(), stays: AtomicBool::new(false) }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !self.stays.load(Ordering::Relaxed) {
            removed(&self.path);
        }
    }
}

fn removed(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(target: "fs", path = %path.display(), %error, "a draft's file stays behind");
    }
}

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

/// A draft's file with its note: it survives a crash of the daemon. Dropping it removes the note, unless the file
/// has a newer one.
#[derive(Debug)]
pub(crate) struct Kept {
    data: Arc<Spill>,
    number: u64,
    /// Whether the note is on the disk.
    synced: AtomicBool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let notes = locked(&self.data.notes);
        if *notes == self.number && !self.data.stays.load(Ordering::Relaxed) {
            removed(&self.note());
        }
    }
}

impl Kept {
    /// Gives a draft's file a note. It is not waited for.
    pub(crate) fn new(data: &Arc<Spill>, note: &Note) -> Result<Self> {
        let mut notes = locked(&data.notes);
        write(&data.path.with_extension(NOTE), note)?;
        *notes += 1;
        Ok(Self { data: Arc::clone(data), number: *notes, synced: AtomicBool::new(false) })
    }

    fn note(&self) -> PathBuf {
        self.data.path.with_extension(NOTE)
    }

    /// Writes the note anew, as when the draft was closed; it is not waited for.
    pub(crate) fn update(&self, note: &Note) -> Result<()> {
        let notes = locked(&self.data.notes);
        if *notes == self.number {
            self.synced.store(false, Ordering::Relaxed);
            write(&self.note(), note)?;
        }
        Ok(())
    }

    /// Waits until bytes and note survive a crash of the machine.
    pub(crate) fn sync(&self) -> Result<()> {
        self.data.file.sync_data()?;
        if !self.synced.swap(true, Ordering::Relaxed) {
            let note = self.note();
            let synced = File::open(&note)
                .and_then(|file| file.sync_all())
                .and_then(|()| note.parent().map_or(Ok(()), |above| File::open(above)?.sync_all()));
            if synced.is_err() {
                self.synced.store(false, Ordering::Relaxed);
            }
            return synced;
        }
        Ok(())
    }

    /// Gives the file of a draft the draft's mtime, in nanoseconds since the Unix epoch.
    pub(crate) fn set_mtime(&self, mtime: i64) -> Result<()> {
        self.data.file.set_modified(clock::system(mtime))
    }

    /// Lets file and note stay for the next start.
    pub(crate) fn leave(&self) {
        self.data.stays.store(true, Ordering::Relaxed);
    }

    /// Moves the file to where a person finds it.
    pub(crate) fn aside(&self, directory: &Path, note: &Note) -> Result<()> {
        self.leave();
        aside::put(directory, &self.data.path, Some(note))
    }
}

fn write(path: &Path, note: &Note) -> Result<()> {
    let fresh = path.with_extension(FRESH);
    fs::write(&fresh, serde_json::to_vec(note)?)?;
    fs::rename(fresh, path)
}

/// A draft that an earlier run left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) note: Note,
    pub(crate) data: PathBuf,
}

impl Left {
    /// Goes on with it: the file and its note as they are, and the file's mtime, which its last write or whoever set it
    /// gave it.
    pub(crate) fn resume(&self) -> Result<(Arc<Spill>, Kept, i64)> {
        let file = OpenOptions::new().read(true).write(true).open(&self.data)?;
        let mtime = file.metadata()?.modified().map_or(self.note.mtime, clock::nanos_of);
        let spill = Arc::new(Spill::of(file, self.data.clone()));
        let kept = Kept::new(&spill, &self.note)?;
        Ok((spill, kept, mtime))
    }
}

/// What an earlier run left in `directory`. What has no note is removed, and what has one that can't be read is put aside.
pub(crate) fn left(directory: &Path) -> Result<Vec<Left>> {
    let mut found = Vec::new();
    let mut names: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    let of = |extension: &'static str| {
        names.iter().filter(move |path| path.extension().is_some_and(|found| found == extension))
    };
    of(FRESH).for_each(|path| removed(path));
    for data in of(DRAFT) {
        match fs::read(data.with_extension(NOTE)) {
            Ok(bytes) => match serde_json::from_slice::<Note>(&bytes) {
                Ok(note) => found.push(Left { note, data: data.clone() }),
                Err(error) => {
                    tracing::error!(target: "fs", path = %data.display(), %error, "a draft's note can't be read");
                    aside::put(directory, data, None)?;
                    removed(&data.with_extension(NOTE));
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => removed(data),
            Err(error) => return Err(error),
        }
    }
    of(NOTE).filter(|note| !note.with_extension(DRAFT).exists()).for_each(|note| removed(note));
    Ok(found)
}

/// Removes what is left of a draft that was dealt with.
pub(crate) fn remove(left: &Left) -> Result<()> {
    fs::remove_file(left.data.with_extension(NOTE))?;
    fs::remove_file(&left.data)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn note() -> Note {
        let mut shape = Shape::new(Type::File, 0o600);
        shape.touched();
        Note::of(&shape, StoreId([1; 32]), b"a/b")
    }

    fn spill(directory: &Path) -> Arc<Spill> {
        let spill = Spill::new(directory).unwrap();
        spill.file.write_all_at(b"precious", 0).unwrap();
        Arc::new(spill)
    }

    #[test]
    fn a_kept_draft_reads_back_at_the_next_start_and_a_dropped_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        drop(Kept::new(&spill(directory.path()), &note()).unwrap());
        assert!(left(directory.path()).unwrap().is_empty());
        Kept::new(&spill(directory.path()), &note()).unwrap().leave();
        let found = left(directory.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].note.path, b"a/b");
        assert_eq!(fs::read(&found[0].data).unwrap(), b"precious");
        remove(&found[0]).unwrap();
        assert!(left(directory.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_old_note_that_goes_leaves_the_newer_one_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let spill = spill(directory.path());
        let old = Kept::new(&spill, &note()).unwrap();
        let newer = Kept::new(&spill, &note()).unwrap();
        drop(old);
        assert_eq!(left(directory.path()).unwrap().len(), 1);
        drop(newer);
        assert!(!spill.path.with_extension(NOTE).exists());
    }

    #[test]
    fn a_file_without_a_note_was_promised_to_nobody_and_one_with_a_bad_note_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let named = directory.path().join("1-2-3.draft");
        fs::write(&named, b"half").unwrap();
        fs::write(directory.path().join("1-2-4.draft"), b"removed").unwrap();
        fs::write(named.with_extension(NOTE), b"").unwrap();
        assert!(left(directory.path()).unwrap().is_empty());
        let found = aside::recovered(directory.path());
        assert_eq!(found.len(), 1);
        assert_eq!(fs::read(&found[0].file).unwrap(), b"half");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

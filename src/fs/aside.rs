//! Files put aside for a person: those that were being written when the daemon ended, and those that could not be published.

use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

use super::shelf::Note;
use crate::clock;
use crate::ids::StoreId;

const ASIDE: &str = "recovered";
const NOTE: &str = ".note";

/// A file that was put aside. A person copies it to where it belongs, or deletes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Where its content is.
    pub file: PathBuf,
    /// The store and the key that it was written to; `None` if that is not known.
    pub key: Option<(StoreId, Vec<u8>)>,
    /// Its size, in bytes.
    pub size: u64,
    /// When it was written last, in nanoseconds since the Unix epoch.
    pub mtime: i64,
}

/// Moves a draft to where a person finds it, in the drafts' directory `directory`.
pub(crate) fn put(directory: &Path, data: &Path, note: Option<&Note>) -> Result<()> {
    let aside = directory.join(ASIDE);
    fs::create_dir_all(&aside)?;
    let path = note.map_or_else(String::new, |note| String::from_utf8_lossy(&note.path).into_owned());
    let plain = |c: char| if c == '/' || c.is_control() { '_' } else { c };
    let end: Vec<char> = path.chars().rev().take(40).map(plain).collect();
    let name: String = if end.is_empty() { "unnamed".into() } else { end.into_iter().rev().collect() };
    let to = aside.join(format!("{}-{name}", clock::nanos()));
    if let Some(note) = note {
        fs::write(note_of(&to), serde_json::to_vec(note)?)?;
    }
    fs::rename(data, &to)?;
    match fs::remove_file(data.with_extension("note")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn note_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(NOTE);
    name.into()
}

/// What was put aside in the drafts' directory `drafts`, oldest first: for `lattice status`.
#[must_use]
pub fn recovered(drafts: &Path) -> Vec<Recovered> {
    let names = fs::read_dir(drafts.join(ASIDE)).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = names.collect();
    files.sort();
    let is_note = |file: &Path| {
        let whole = file.to_str().and_then(|name| name.strip_suffix(NOTE));
        whole.is_some_and(|whole| files.iter().any(|other| other.as_os_str() == whole))
    };
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !is_note(file)) {
        let Ok(meta) = fs::metadata(file) else { continue };
        let note = fs::read(note_of(file)).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        found.push(Recovered {
            file: file.clone(),
            key: note.map(|note| (note.store, note.path)),
            size: meta.len(),
            mtime: meta.modified().map_or(0, clock::nanos_of),
        });
    }
    found
}

//! What an entry of a kv store does, in words.

use super::wire::{self, Action, Source, Write};
use crate::replication::entry::Entry;

/// A line an operation; none of a payload that this build can't read.
#[must_use]
pub fn describe(entry: &Entry) -> Vec<String> {
    let Ok(payload) = wire::decode(entry) else { return Vec::new() };
    payload.operations.into_iter().filter_map(|operation| operation.action).map(|action| line(&action)).collect()
}

fn line(action: &Action) -> String {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    match action {
        Action::Put(write) => format!("put {} ({})", shown(&write.path), content(write)),
        Action::SetAttr(write) => format!("set attributes of {} ({:04o})", shown(&write.path), write.mode),
        Action::Delete(delete) => format!("delete {}", shown(&delete.path)),
    }
}

fn content(write: &Write) -> String {
    let kind = match write.kind {
        1 => "",
        2 => return "directory".into(),
        3 => "symlink, ",
        _ => "?, ",
    };
    let size = match &write.content {
        None => 0,
        Some(Source::Bytes(bytes)) => bytes.len() as u64,
        Some(Source::Same(elsewhere)) => u64::from(elsewhere.size),
        Some(Source::Blob(blob)) => blob.size,
    };
    let unit = if size == 1 { "byte" } else { "bytes" };
    format!("{kind}{size} {unit}")
}

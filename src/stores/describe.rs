//! What an entry does, in words.

use super::{chat, kv};
use crate::replication::entry::Entry;

/// A line for each operation of an entry in a store of this kind, which is not the root store; none of what this build can't read. For
/// people: names and texts in it are as others wrote them, to be escaped before they are shown.
#[must_use]
pub fn describe(kind: &str, entry: &Entry) -> Vec<String> {
    match kind {
        "kv" => kv::describe(entry),
        "chat" => chat::describe(entry),
        _ => Vec::new(),
    }
}

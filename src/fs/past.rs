//! `stores/<name>/.at/<moment>/` and `.by/<author>/`: the store as it was, and what one author made of it. Only to be read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::errno::{self, Answer};
use super::inodes::{Seen, join};
use super::keys::{kind, read_opened};
use super::missed::Missed;
use super::place::{Attr, Place, Type};
use super::tree::{Tree, locked};
use crate::clock::{self, Millis};
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::membership::Membership;
use crate::stores::kv::{Head, KvError, Lens, Moment, Node, Opened};

/// A moment that hangs on when it is asked for, such as `2h-ago`, stays the same until nobody has named it for this long.
const KEPT: Duration = Duration::from_secs(30);

/// Pasts of entries that are remembered.
const ENTRIES: usize = 64;

/// What a directory of `.at` or `.by` looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Glass {
    /// All that was stamped up to then.
    Time(Millis),
    /// All that the author of this entry had seen, and the entry.
    Entry(Hash),
    /// What this author wrote last.
    By(NodeId),
}

/// Moments that were named lately.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    spoken: Mutex<BTreeMap<Vec<u8>, (Millis, Instant)>>,
    entries: Mutex<BTreeMap<Hash, Moment>>,
}

impl Moments {
    /// The time that a text names.
    fn time(&self, text: &[u8], now: Millis) -> Option<Millis> {
        let mut spoken = locked(&self.spoken);
        let asked = clock::monotonic();
        spoken.retain(|_, (_, last)| asked - *last < KEPT);
        if let Some((time, last)) = spoken.get_mut(text) {
            *last = asked;
            return Some(*time);
        }
        let time = clock::moment(std::str::from_utf8(text).ok()?, now)?;
        spoken.insert(text.to_vec(), (time, asked));
        Some(time)
    }
}

/// A version of a key, open.
#[derive(Debug)]
pub(crate) struct VersionHandle {
    store: StoreId,
    head: Head,
    opened: Mutex<Option<Arc<Opened>>>,
    missed: Missed,
}

impl VersionHandle {
    pub(crate) fn new(store: StoreId, head: Head) -> Self {
        Self { store, head, opened: Mutex::default(), missed: Missed::default() }
    }

    /// Reads; a large value that is not here is waited for, for `patience`.
    pub(crate) fn read(&self, tree: &Tree, offset: u64, size: usize, patience: Duration) -> Answer<Vec<u8>> {
        let mut opened = locked(&self.opened).clone();
        if opened.is_none() {
            let kv = tree.kv(&self.store)?;
            opened = Some(Arc::new(self.missed.read(&kv, &self.head, patience)?));
            locked(&self.opened).clone_from(&opened);
        }
        read_opened(opened.as_deref().ok_or(errno::STALE)?, offset, size)
    }
}

fn members(tree: &Tree) -> Option<Arc<Membership>> {
    tree.registry().map(|registry| registry.root().log().membership().load_full())
}

/// The name of an author in file names.
pub(crate) fn author(tree: &Tree, node: &NodeId) -> String {
    members(tree).map_or_else(|| node.short(), |members| members.name(node))
}

/// The authors of a store, by name.
fn authors(tree: &Tree, store: StoreId) -> Answer<BTreeMap<String, NodeId>> {
    let kv = tree.kv(&store)?;
    let tips = kv.log().database().view().and_then(|view| kv.log().tips(&view)).map_err(KvError::from)?;
    Ok(tips.into_keys().map(|node| (author(tree, &node), node)).collect())
}

/// The directory of `.at` or `.by` that has this name.
pub(crate) fn look_top(tree: &Tree, directory: &Seen, store: StoreId, name: &[u8]) -> Answer<Option<(Place, Type)>> {
    let glass = match directory.place {
        Place::Authors(_) => author_of(tree, store, name)?.map(Glass::By),
        _ => moment(tree, store, name)?,
    };
    Ok(glass.map(|glass| (Place::Then(store, glass), Type::Directory)))
}

fn author_of(tree: &Tree, store: StoreId, name: &[u8]) -> Answer<Option<NodeId>> {
    let all = authors(tree, store)?;
    let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
    if let Some(node) = all.get(name) {
        return Ok(Some(*node));
    }
    // A member who wrote nothing here, or an author's whole id.
    let members = members(tree);
    let members = members.iter().flat_map(|members| members.members.iter());
    let member = members.filter(|(node, member)| member.name == name || node.to_string() == name);
    Ok(member.map(|(node, _)| *node).next())
}

fn moment(tree: &Tree, store: StoreId, name: &[u8]) -> Answer<Option<Glass>> {
    let kv = tree.kv(&store)?;
    if let Some(time) = tree.moments.time(name, kv.log().now()) {
        return Ok(Some(Glass::Time(time)));
    }
    let Ok(digits) = std::str::from_utf8(name) else { return Ok(None) };
    if digits.len() < 4 {
        return Ok(None);
    }
    let view = kv.log().database().view().map_err(KvError::from)?;
    let found = kv.log().begin_with(&view, digits, 2).map_err(KvError::from)?;
    Ok(if let [entry] = found.as_slice() { Some(Glass::Entry(entry.hash())) } else { None })
}

fn lens(tree: &Tree, store: StoreId, glass: Glass) -> Answer<Lens> {
    let hash = match glass {
        Glass::Time(time) => return Ok(Lens::At(Moment::at(time))),
        Glass::By(author) => return Ok(Lens::By(author)),
        Glass::Entry(hash) => hash,
    };
    let known = locked(&tree.moments.entries).get(&hash).cloned();
    if let Some(moment) = known {
        return Ok(Lens::At(moment));
    }
    let moment = tree.kv(&store)?.moment_of(&hash)?.ok_or(errno::MISSING)?;
    let mut entries = locked(&tree.moments.entries);
    if entries.len() >= ENTRIES {
        entries.clear();
    }
    entries.insert(hash, moment.clone());
    Ok(Lens::At(moment))
}

/// What a name below such a directory leads to.
pub(crate) fn look(
    tree: &Tree,
    directory: &Seen,
    (store, glass): (StoreId, Glass),
    name: &[u8],
) -> Answer<Option<(Place, Type)>> {
    let node = tree.kv(&store)?.node_through(&lens(tree, store, glass)?, &join(&directory.path, name))?;
    Ok(node.map(|node| (Place::Past(store, glass), kind(&node))))
}

/// A page of the names in such a directory.
pub(crate) fn page(
    tree: &Tree,
    directory: &Seen,
    (store, glass): (StoreId, Glass),
    after: Option<&[u8]>,
    limit: usize,
) -> Answer<Vec<(Vec<u8>, Attr)>> {
    let lens = lens(tree, store, glass)?;
    let page = tree.kv(&store)?.children_through(&lens, &directory.path, after, limit)?;
    Ok(page.into_iter().map(|(name, node)| (name, tree.node_attr(0, &node, None))).collect())
}

/// The names in `.by`. Those in `.at` are without end, and not listed.
pub(crate) fn names(tree: &Tree, store: StoreId) -> Answer<Vec<(Vec<u8>, Place, Type)>> {
    let named =
        |(name, node): (String, NodeId)| (name.into_bytes(), Place::Then(store, Glass::By(node)), Type::Directory);
    Ok(authors(tree, store)?.into_iter().map(named).collect())
}

fn node(tree: &Tree, seen: &Seen, store: StoreId, glass: Glass) -> Answer<Node> {
    tree.kv(&store)?.node_through(&lens(tree, store, glass)?, &seen.path)?.ok_or(errno::MISSING)
}

/// The attributes of what was there.
pub(crate) fn attr(tree: &Tree, seen: &Seen, store: StoreId, glass: Glass) -> Answer<Attr> {
    let node = node(tree, seen, store, glass)?;
    if kind(&node) == seen.kind { Ok(tree.node_attr(seen.ino, &node, None)) } else { Err(errno::STALE) }
}

/// The version that a file was.
pub(crate) fn version(tree: &Tree, seen: &Seen, store: StoreId, glass: Glass) -> Answer<Head> {
    match node(tree, seen, store, glass)? {
        Node::File(head) | Node::Symlink(head) => Ok(head),
        Node::Directory(_) => Err(errno::IS_DIRECTORY),
    }
}

/// Where a version that is a symbolic link points.
pub(crate) fn target(tree: &Tree, store: StoreId, head: &Head) -> Answer<Vec<u8>> {
    match tree.kv(&store)?.read_within(head, Duration::ZERO)? {
        Opened::Bytes(bytes) => Ok(bytes),
        Opened::File(..) => Err(errno::INVALID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_hangs_on_when_it_is_named_stays_while_it_is_used() {
        let moments = Moments::default();
        let now = Millis(1_795_357_805_123);
        let first = moments.time(b"1h-ago", now).unwrap();
        assert_eq!(first, Millis(now.0 - 3_600_000));
        assert_eq!(moments.time(b"1h-ago", Millis(now.0 + 5_000)), Some(first));
        assert_eq!(moments.time(b"yesterday", now), None);
        assert_eq!(moments.time(b"\xff", now), None);
    }
}

//! What the kernel knows: numbers for (parent, name) pairs, so that renaming a directory changes one of them.
//!
//! A number is derived from the parent's number and the name, so it is the same after a remount. An inode stays
//! while the kernel remembers it, something pins it (an open file, a draft), or an inode below it stays.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use super::draft::Draft;
use super::errno::{Answer, STALE};
use super::place::{Attr, Place, Stamps, Type};
use super::shelf::Kept;
use crate::clock;
use crate::ids::StoreId;
use crate::replication::log::Receipt;
use crate::stores::kv::{HeadId, Tx};

/// The number of the mount's root.
pub(crate) const ROOT: u64 = 1;

/// A key that a program on this machine took away a moment ago, very likely to put another in its place.
#[derive(Debug, Clone)]
pub(crate) struct Whiteout {
    /// The heads that it had.
    pub(crate) heads: Vec<HeadId>,
}

#[derive(Debug)]
struct Inode {
    parent: u64,
    name: Box<[u8]>,
    place: Place,
    kind: Type,
    /// Whether (parent, name) still leads here.
    attached: bool,
    /// How often the kernel was given it.
    lookups: u64,
    pins: u32,
    children: u32,
    /// A directory's mtime since a child was made or removed here.
    bump: Option<i64>,
    stamps: Stamps,
    draft: Option<Arc<Draft>>,
    /// Which transaction it is, if it is one.
    tx: Option<Weak<Tx>>,
    /// What it was when it lost its name.
    last: Option<Attr>,
}

/// An inode at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) ino: u64,
    pub(crate) parent: u64,
    pub(crate) name: Box<[u8]>,
    pub(crate) place: Place,
    pub(crate) kind: Type,
    pub(crate) attached: bool,
    pub(crate) bump: Option<i64>,
    pub(crate) draft: Option<Arc<Draft>>,
    pub(crate) last: Option<Attr>,
    /// Whether something has it open.
    pub(crate) open: bool,
    /// The names from the top of the store (`keys`, its `.tx`, or its `/.heads`) to here, joined by `/`.
    pub(crate) path: Vec<u8>,
}

/// The table. Guarded by one lock, which is held for work in memory only.
#[derive(Debug)]
pub(crate) struct Inodes {
    nodes: HashMap<u64, Inode>,
    names: HashMap<(u64, Box<[u8]>), u64>,
    /// Children that the store does not have (yet), by directory.
    locals: HashMap<u64, BTreeMap<Box<[u8]>, u64>>,
    whiteouts: HashMap<u64, BTreeMap<Box<[u8]>, Whiteout>>,
    /// The last entry made through this mount, for `fsync` of a directory.
    pub(crate) latest: HashMap<StoreId, Receipt>,
}

/// The number that a name gets, unless another file has it.
pub(crate) fn number(parent: u64, name: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&parent.to_be_bytes()).update(name);
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    // Positive, for programs that keep it in a signed integer, and never 0 or the root's.
    (u64::from_be_bytes(bytes) >> 1).max(ROOT + 1)
}

/// `directory` and `name`, joined.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

impl Inodes {
    pub(crate) fn new() -> Self {
        let root = Inode {
            parent: ROOT,
            name: Box::default(),
            place: Place::Root,
            kind: Type::Directory,
            attached: true,
            lookups: 1,
            pins: 1,
            children: 0,
            bump: None,
            stamps: Stamps::default(),
            draft: None,
            tx: None,
            last: None,
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            names: HashMap::new(),
            locals: HashMap::new(),
            whiteouts: HashMap::new(),
            latest: HashMap::new(),
        }
    }

    /// The inode as it is now.
    pub(crate) fn see(&self, ino: u64) -> Answer<Seen> {
        let inode = self.nodes.get(&ino).ok_or(STALE)?;
        Ok(Seen {
            ino,
            parent: inode.parent,
            name: inode.name.clone(),
            place: inode.place,
            kind: inode.kind,
            attached: inode.attached,
            bump: inode.bump,
            draft: inode.draft.clone(),
            last: inode.last,
            open: inode.pins > 0,
            path: self.path(ino),
        })
    }

    pub(crate) fn see_bump(&self, ino: u64) -> Option<i64> {
        self.nodes.get(&ino).and_then(|inode| inode.bump)
    }

    pub(crate) fn draft(&self, ino: u64) -> Option<Arc<Draft>> {
        self.nodes.get(&ino).and_then(|inode| inode.draft.clone())
    }

    /// The directory above the inode of a key, or of what is staged, and the inode's own draft. `None` at the top of a store.
    pub(crate) fn above(&self, ino: u64) -> Option<(u64, Option<Arc<Draft>>)> {
        let inode = self.nodes.get(&ino).filter(|inode| matches!(inode.place, Place::Key(_) | Place::Staged(_)))?;
        Some((inode.parent, inode.draft.clone()))
    }

    /// Whether a directory above it has lost its name.
    pub(crate) fn is_adrift(&self, ino: u64) -> bool {
        let mut at = ino;
        while let Some((parent, _)) = self.above(at) {
            if self.nodes.get(&parent).is_some_and(|above| !above.attached) {
                return true;
            }
            at = parent;
        }
        false
    }

    /// Whether an inode is `tx`, or is in it. What it is once, it stays: another transaction of the same name is not it, and the inode that has
    /// the name then loses it.
    pub(crate) fn is_of(&mut self, ino: u64, tx: &Arc<Tx>) -> bool {
        let mut top = ino;
        while let Some((above, _)) = self.above(top).filter(|(above, _)| self.above(*above).is_some()) {
            top = above;
        }
        let Some(inode) = self.nodes.get_mut(&top) else { return false };
        let same = inode.tx.get_or_insert_with(|| Arc::downgrade(tx)).as_ptr() == Arc::as_ptr(tx);
        if !same {
            self.detach(top, None);
        }
        same
    }

    pub(crate) fn place(&self, ino: u64) -> Option<Place> {
        self.nodes.get(&ino).map(|inode| inode.place)
    }

    fn path(&self, ino: u64) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        while let Some(inode) = self.nodes.get(&at) {
            match inode.place {
                Place::Key(_)
                | Place::HeadsPath(_)
                | Place::Head(_)
                | Place::Past(..)
                | Place::HistoryPath(_)
                | Place::Version(_)
                | Place::Staged(_)
                | Place::TxWhy(_) => names.push(&inode.name),
                Place::Root
                | Place::Readme
                | Place::Why
                | Place::Stores
                | Place::Store(_)
                | Place::Link(_)
                | Place::Keys(_)
                | Place::Heads
                | Place::HeadsOf(_)
                | Place::Moments(_)
                | Place::Authors(_)
                | Place::Then(..)
                | Place::History(_)
                | Place::Status(_)
                | Place::Entries(_)
                | Place::Changes(_)
                | Place::Txs(_)
                | Place::Peers
                | Place::Peer
                | Place::PeerFile
                | Place::Chat
                | Place::Room
                | Place::Json
                | Place::JsonRoom
                | Place::Blobs
                | Place::Blob => break,
            }
            at = inode.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The names from the root to an inode, or to where it was, joined by `/`.
    pub(crate) fn trail(&self, ino: u64) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        while let Some(inode) = self.nodes.get(&at).filter(|_| at != ROOT) {
            names.push(&inode.name);
            at = inode.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Whether the kernel has it. Only then can someone watch it.
    pub(crate) fn is_given(&self, ino: u64) -> bool {
        ino == ROOT || self.nodes.get(&ino).is_some_and(|inode| inode.lookups > 0)
    }

    /// Whether the kernel has it, or is to get it.
    pub(crate) fn is_held(&self, ino: u64) -> bool {
        self.is_given(ino) || self.nodes.get(&ino).is_some_and(|inode| inode.pins > 0)
    }

    /// The directories of keys that the kernel has.
    pub(crate) fn given_directories(&self) -> Vec<u64> {
        let keys = |inode: &Inode| matches!(inode.place, Place::Keys(_) | Place::Key(_)) && inode.lookups > 0;
        let nodes = self.nodes.iter().filter(|(_, inode)| inode.kind == Type::Directory && keys(inode));
        nodes.map(|(ino, _)| *ino).collect()
    }

    pub(crate) fn child(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.names.get(&(parent, Box::from(name))).copied()
    }

    /// The inode of a name, made if there is none of that type and place.
    pub(crate) fn enter(&mut self, parent: u64, name: &[u8], place: Place, kind: Type) -> u64 {
        if let Some(ino) = self.child(parent, name) {
            if self.nodes.get(&ino).is_some_and(|inode| inode.kind == kind && inode.place == place) {
                return ino;
            }
            self.detach(ino, None);
        }
        let mut ino = number(parent, name);
        while self.nodes.contains_key(&ino) {
            ino = ino.wrapping_add(1).max(ROOT + 1);
        }
        let inode = Inode {
            parent,
            name: Box::from(name),
            place,
            kind,
            attached: true,
            lookups: 0,
            pins: 0,
            children: 0,
            bump: None,
            stamps: Stamps::default(),
            draft: None,
            tx: None,
            last: None,
        };
        self.nodes.insert(ino, inode);
        self.names.insert((parent, Box::from(name)), ino);
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.children += 1;
        }
        ino
    }

    /// Notes what is shown of an inode: it goes on being so should the file be removed.
    pub(crate) fn remember(&mut self, ino: u64, attr: Attr) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.last = Some(attr);
        }
    }

    /// Takes the name away from an inode, which stays for those that have it open and then shows `last`.
    pub(crate) fn detach(&mut self, ino: u64, last: Option<Attr>) {
        let Some(inode) = self.nodes.get_mut(&ino) else { return };
        if !inode.attached {
            return;
        }
        inode.attached = false;
        inode.stamps.gone = true;
        inode.stamps.ctime = Some(clock::nanos());
        inode.last = last.or(inode.last);
        let key = (inode.parent, inode.name.clone());
        self.names.remove(&key);
        self.forget_local(key.0, &key.1);
        self.reap(ino);
    }

    /// Gives an inode another name; what had that name loses it.
    pub(crate) fn rename(&mut self, ino: u64, parent: u64, name: &[u8], place: Place, replaced: Option<Attr>) {
        if let Some(other) = self.child(parent, name)
            && other != ino
        {
            self.detach(other, replaced);
        }
        let Some(inode) = self.nodes.get_mut(&ino) else { return };
        let old = (inode.parent, inode.name.clone());
        inode.parent = parent;
        inode.name = Box::from(name);
        inode.place = place;
        inode.stamps.ctime = Some(clock::nanos());
        self.names.remove(&old);
        self.names.insert((parent, Box::from(name)), ino);
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.children += 1;
        }
        if self.forget_local(old.0, &old.1) {
            self.locals.entry(parent).or_default().insert(Box::from(name), ino);
        }
        self.orphaned(old.0);
    }

    /// Swaps the names of two inodes.
    pub(crate) fn exchange(&mut self, one: u64, other: u64) {
        let (Some(a), Some(b)) = (self.nodes.get(&one), self.nodes.get(&other)) else { return };
        let (first, second) = ((a.parent, a.name.clone()), (b.parent, b.name.clone()));
        for (ino, (parent, name)) in [(one, second), (other, first)] {
            if let Some(inode) = self.nodes.get_mut(&ino) {
                inode.parent = parent;
                inode.name = name.clone();
                inode.stamps.ctime = Some(clock::nanos());
            }
            self.names.insert((parent, name), ino);
        }
    }

    /// The times of an inode that no store keeps.
    pub(crate) fn stamps(&self, ino: u64) -> Stamps {
        self.nodes.get(&ino).map(|inode| inode.stamps).unwrap_or_default()
    }

    /// Notes that an inode's attributes are changed now, and what its atime is from now on, if that is known.
    pub(crate) fn stamp(&mut self, ino: u64, atime: Option<i64>) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.stamps.ctime = Some(clock::nanos());
            inode.stamps.atime = atime.or(inode.stamps.atime);
        }
    }

    /// Notes that the kernel was given the inode once more.
    pub(crate) fn given(&mut self, ino: u64) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.lookups += 1;
        }
    }

    /// Notes that the kernel forgot what it was given `times`.
    pub(crate) fn forget(&mut self, ino: u64, times: u64) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(times);
            self.reap(ino);
        }
    }

    pub(crate) fn pin(&mut self, ino: u64) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.pins += 1;
        }
    }

    pub(crate) fn unpin(&mut self, ino: u64) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.pins = inode.pins.saturating_sub(1);
            self.reap(ino);
        }
    }

    fn reap(&mut self, ino: u64) {
        let Some(inode) = self.nodes.get(&ino) else { return };
        let free = inode.lookups == 0 && inode.pins == 0 && inode.children == 0 && inode.draft.is_none();
        if !free || ino == ROOT {
            return;
        }
        let Some(inode) = self.nodes.remove(&ino) else { return };
        if inode.attached {
            self.names.remove(&(inode.parent, inode.name));
        }
        self.locals.remove(&ino);
        self.orphaned(inode.parent);
    }

    /// One child fewer.
    fn orphaned(&mut self, parent: u64) {
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.children = above.children.saturating_sub(1);
            self.reap(parent);
        }
    }

    /// Gives an inode a draft; `local` if the store does not have the file.
    pub(crate) fn set_draft(&mut self, ino: u64, draft: Arc<Draft>, local: bool) {
        let Some(inode) = self.nodes.get_mut(&ino) else { return };
        inode.draft = Some(draft);
        if local && inode.attached {
            let key = (inode.parent, inode.name.clone());
            self.locals.entry(key.0).or_default().insert(key.1, ino);
        }
    }

    /// Takes an inode's draft away.
    pub(crate) fn clear_draft(&mut self, ino: u64) {
        let Some(inode) = self.nodes.get_mut(&ino) else { return };
        inode.draft = None;
        let key = (inode.parent, inode.name.clone());
        if inode.attached {
            self.forget_local(key.0, &key.1);
        }
        self.reap(ino);
    }

    /// Takes away the draft of an inode that lost its name: it is nobody's but of those that have it open. Gives what is kept of
    /// it on the disk.
    #[must_use = "what is kept is removed when it is dropped"]
    pub(crate) fn take_draft(&mut self, ino: u64) -> Option<Arc<Kept>> {
        let draft = self.draft(ino)?;
        let (kept, open) = {
            let mut shape = draft.shape();
            (shape.kept.take(), shape.writers > 0)
        };
        if !open {
            self.clear_draft(ino);
        }
        kept
    }

    /// Notes that the store has the file now.
    pub(crate) fn published(&mut self, ino: u64) {
        let Some(inode) = self.nodes.get(&ino) else { return };
        let key = (inode.parent, inode.name.clone());
        if inode.attached {
            self.forget_local(key.0, &key.1);
        }
    }

    fn forget_local(&mut self, parent: u64, name: &[u8]) -> bool {
        let Some(names) = self.locals.get_mut(&parent) else { return false };
        let was = names.remove(name).is_some();
        if names.is_empty() {
            self.locals.remove(&parent);
        }
        was
    }

    /// The children of a directory that the store does not have, in order.
    pub(crate) fn locals(&self, parent: u64) -> Vec<(Box<[u8]>, u64)> {
        let names = self.locals.get(&parent).into_iter().flatten();
        names.map(|(name, ino)| (name.clone(), *ino)).collect()
    }

    /// Every draft.
    pub(crate) fn drafts(&self) -> Vec<(u64, Arc<Draft>)> {
        let nodes = self.nodes.iter();
        nodes.filter_map(|(ino, inode)| inode.draft.clone().map(|draft| (*ino, draft))).collect()
    }

    /// Every inode, for telling the kernel that all may have changed.
    pub(crate) fn all(&self) -> Vec<(u64, u64, Box<[u8]>)> {
        let nodes = self.nodes.iter().filter(|(ino, inode)| **ino != ROOT && inode.attached);
        nodes.map(|(ino, inode)| (*ino, inode.parent, inode.name.clone())).collect()
    }

    /// Sets a directory's mtime of its own, or takes it away.
    pub(crate) fn bump(&mut self, ino: u64, mtime: Option<i64>) {
        if let Some(inode) = self.nodes.get_mut(&ino) {
            inode.bump = mtime;
        }
    }

    pub(crate) fn white_out(&mut self, parent: u64, name: &[u8], whiteout: Whiteout) {
        self.pin(parent);
        self.whiteouts.entry(parent).or_default().insert(Box::from(name), whiteout);
    }

    pub(crate) fn whiteout(&self, parent: u64, name: &[u8]) -> Option<Whiteout> {
        self.whiteouts.get(&parent)?.get(name).cloned()
    }

    pub(crate) fn whiteouts(&self, parent: u64) -> Vec<Box<[u8]>> {
        self.whiteouts.get(&parent).into_iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    /// All of them, by directory.
    pub(crate) fn all_whiteouts(&self) -> Vec<(u64, Box<[u8]>)> {
        let all = self.whiteouts.iter();
        all.flat_map(|(parent, names)| names.keys().map(|name| (*parent, name.clone()))).collect()
    }

    pub(crate) fn take_whiteout(&mut self, parent: u64, name: &[u8]) -> Option<Whiteout> {
        let names = self.whiteouts.get_mut(&parent)?;
        let whiteout = names.remove(name)?;
        if names.is_empty() {
            self.whiteouts.remove(&parent);
        }
        self.unpin(parent);
        Some(whiteout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: Place = Place::Key(StoreId([1; 32]));

    fn table() -> (Inodes, u64) {
        let mut inodes = Inodes::new();
        let keys = inodes.enter(ROOT, b"keys", Place::Keys(StoreId([1; 32])), Type::Directory);
        inodes.given(keys);
        (inodes, keys)
    }

    #[test]
    fn renaming_a_directory_renames_everything_below_it() {
        let (mut inodes, keys) = table();
        let a = inodes.enter(keys, b"a", STORE, Type::Directory);
        let f = inodes.enter(a, b"f", STORE, Type::File);
        inodes.given(a);
        inodes.given(f);
        assert_eq!(inodes.see(f).unwrap().path, b"a/f");
        inodes.rename(a, keys, b"b", STORE, None);
        assert_eq!(inodes.see(f).unwrap().path, b"b/f");
        assert_eq!(inodes.child(keys, b"b"), Some(a));
        assert_eq!(inodes.child(keys, b"a"), None);
    }

    #[test]
    fn a_number_is_the_same_after_it_was_forgotten() {
        let (mut inodes, keys) = table();
        let a = inodes.enter(keys, b"a", STORE, Type::File);
        inodes.given(a);
        inodes.forget(a, 1);
        assert!(inodes.see(a).is_err());
        assert_eq!(inodes.enter(keys, b"a", STORE, Type::File), a);
    }

    #[test]
    fn a_directory_stays_while_something_below_it_does() {
        let (mut inodes, keys) = table();
        let a = inodes.enter(keys, b"a", STORE, Type::Directory);
        let f = inodes.enter(a, b"f", STORE, Type::File);
        inodes.given(a);
        inodes.given(f);
        inodes.forget(a, 1);
        assert_eq!(inodes.see(f).unwrap().path, b"a/f");
        inodes.forget(f, 1);
        assert!(inodes.see(a).is_err());
    }

    #[test]
    fn a_file_made_in_place_of_a_removed_one_that_is_still_open_is_another() {
        let (mut inodes, keys) = table();
        let old = inodes.enter(keys, b"a", STORE, Type::File);
        inodes.pin(old);
        inodes.detach(old, None);
        let new = inodes.enter(keys, b"a", STORE, Type::File);
        assert_ne!(old, new);
        inodes.unpin(old);
        assert!(inodes.see(old).is_err());
        assert_eq!(inodes.child(keys, b"a"), Some(new));
    }
}

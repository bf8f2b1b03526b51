//! What changed elsewhere, told to the kernel: the only place that does so.
//!
//! Telling the kernel from a thread that answers it, or under a lock that such a thread takes, deadlocks. So one thread
//! does nothing else; it is fed by a queue and holds no lock while it tells.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use n0_future::future;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};

use super::changes::Changes;
use super::inodes::join;
use super::keys::kind;
use super::place::{Place, Type};
use super::replay::{Act, Ghost};
use super::tree::Tree;
use crate::ids::StoreId;
use crate::replication::log::{Event, Origin};
use crate::replication::machine::{Change, What};
use crate::stores::Registry;
use crate::stores::kv::Node;

/// How often the set of stores is looked at, and what had to be put off is tried again.
const TICK: Duration = Duration::from_millis(200);

/// How long a change from elsewhere may wait while a program writes here.
const PAUSE: Duration = Duration::from_millis(1);

/// Something to tell the kernel.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A file's content and attributes changed.
    Content(u64),
    /// A name in a directory leads elsewhere.
    Name(u64, Vec<u8>),
    /// An entry was included.
    Event(Arc<Event>),
    /// An entry of this mount's own of which the kernel does not know, and who waits until it does.
    Own(Arc<Event>, Sender<()>),
    /// Some were missed; if an entry of this mount's own is among them, who waits until the kernel knows.
    Lagged(Option<Sender<()>>),
    /// Stores came or went.
    Stores,
    /// The kernel has as many names as it may that lead to nothing.
    Missing,
    /// The mount goes away.
    Stop,
}

/// Tells the kernel what it is given, until told to stop. `stores`: those that were there before it could look.
pub(crate) fn run(
    tree: &Tree,
    notifier: &Notifier,
    (queue, notices): (&Receiver<Notice>, &Sender<Notice>),
    stores: BTreeSet<(String, StoreId)>,
) {
    let mut herald = Herald { tree, notifier, put_off: BTreeSet::new(), followed: None, stores };
    herald.follow(notices);
    loop {
        let notice = match queue.recv_timeout(TICK) {
            Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(notice) => Some(notice),
            Err(RecvTimeoutError::Timeout) => None,
        };
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| match notice {
            Some(notice) => herald.tell(notice),
            None => herald.tick(notices),
        }));
        if told.is_err() {
            tracing::error!(target: "fs", "telling the kernel failed in a way it never should");
        }
    }
}

/// Tells those who watch a store of an entry. What keeps the stores open is not held on to.
fn watched(event: &Event, registry: &Weak<Registry>, changes: &Changes) {
    let Some(log) = registry.upgrade().and_then(|registry| registry.log(&event.store)) else { return };
    let number = || log.number_of(&log.database().view().ok()?, &event.entry.hash()).ok()?;
    changes.take(event, &log.membership().load(), number());
}

/// Passes on what is included, but for what came through this mount, `ours`: the kernel knows that already.
/// Those who watch a store for its changes are told of all.
fn listen(
    (mut events, mut stores): (broadcast::Receiver<Arc<Event>>, watch::Receiver<u64>),
    (ours, registry): (Origin, &Weak<Registry>),
    changes: &Changes,
    notices: &Sender<Notice>,
) {
    loop {
        let woken = future::block_on(async {
            tokio::select! {
                event = events.recv() => Some(event),
                _ = stores.changed() => None,
            }
        });
        let Some(next) = woken else {
            // If that is because the registry is gone, there are no events either.
            if notices.send(Notice::Stores).is_err() || stores.has_changed().is_err() {
                return;
            }
            continue;
        };
        let mut next = match next {
            Ok(event) => Ok(event),
            Err(RecvError::Lagged(_)) => Err(TryRecvError::Lagged(0)),
            Err(RecvError::Closed) => return,
        };
        let mut mine = true;
        loop {
            match &next {
                Ok(event) if changes.any() => watched(event, registry, changes),
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => changes.lagged(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => {}
            }
            let notice = match next {
                Ok(event) if event.origin == ours => None,
                Ok(event) => Some(Notice::Event(event)),
                Err(TryRecvError::Lagged(_)) => Some(Notice::Lagged(None)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            };
            mine &= notice.is_none();
            if notice.is_some_and(|notice| notices.send(notice).is_err()) {
                return;
            }
            next = events.try_recv();
        }
        if mine {
            // A program is writing here: to be woken for each of its files would slow it down.
            std::thread::park_timeout(PAUSE);
        }
    }
}

fn sorted<'a, K: Ord>(mut changes: Vec<&'a Change>, by: impl Fn(&&'a Change) -> K) -> Vec<&'a Change> {
    changes.sort_by_key(|change| by(change));
    changes
}

struct Herald<'a> {
    tree: &'a Tree,
    notifier: &'a Notifier,
    /// Inodes that could not be told about without waiting.
    put_off: BTreeSet<u64>,
    followed: Option<Arc<Registry>>,
    stores: BTreeSet<(String, StoreId)>,
}

impl Herald<'_> {
    /// Hears of what the present mesh's stores include, from now on.
    fn follow(&mut self, notices: &Sender<Notice>) {
        let now = self.tree.registry();
        if now.as_ref().map(Arc::as_ptr) == self.followed.as_ref().map(Arc::as_ptr) {
            return;
        }
        if let Some(registry) = &now {
            let heard = (registry.events(), registry.changed());
            let (ours, notices) = (self.tree.origin(), notices.clone());
            let (weak, changes) = (Arc::downgrade(registry), Arc::clone(&self.tree.changes));
            let listener = std::thread::Builder::new()
                .name("fs-events".into())
                .spawn(move || listen(heard, (ours, &weak), &changes, &notices));
            if let Err(error) = listener {
                tracing::error!(target: "fs", %error, "changes from elsewhere will be seen late");
                return;
            }
        }
        self.followed = now;
        self.everything();
    }

    fn tick(&mut self, notices: &Sender<Notice>) {
        self.follow(notices);
        self.stores();
        for ino in std::mem::take(&mut self.put_off) {
            self.content(ino);
        }
    }

    fn tell(&mut self, notice: Notice) {
        match notice {
            Notice::Content(ino) => self.content(ino),
            Notice::Name(parent, name) => self.name(parent, &name),
            Notice::Event(event) if event.origin == self.tree.origin() => {}
            Notice::Event(event) => self.event(&event),
            Notice::Own(event, told) => {
                self.event(&event);
                // Nobody waits any more if it took too long.
                told.send(()).ok();
            }
            Notice::Lagged(told) => {
                self.everything();
                if let Some(told) = told {
                    // Nobody waits any more if it took too long.
                    told.send(()).ok();
                }
                for directory in self.tree.table().given_directories() {
                    self.tree.replay.add_directory(directory);
                }
            }
            Notice::Stores => self.stores(),
            Notice::Missing => self.missing(),
            Notice::Stop => {}
        }
    }

    /// Has the kernel look again for all that it knows as missing.
    fn missing(&self) {
        for (parent, name) in self.tree.missing.take() {
            let now = self.tree.table().child(parent, &name);
            if !now.is_some_and(|ino| self.is_directory_still(ino)) {
                self.name(parent, &name);
            }
        }
    }

    fn event(&mut self, event: &Event) {
        if self.tree.kv(&event.store).is_ok() {
            let (gone, other): (Vec<_>, Vec<_>) =
                event.effects.changes.iter().partition(|change| change.what == What::Deleted);
            // As programs do it: what is in a directory goes before it, and comes after it.
            let depth = |change: &&Change| change.key.iter().filter(|byte| **byte == b'/').count();
            for change in sorted(gone, |change| Reverse(depth(change))).into_iter().chain(sorted(other, depth)) {
                self.change(event.store, change);
            }
        } else {
            self.stores();
            self.rooms(event);
        }
    }

    /// Rooms that changed. The kernel keeps nothing of them; their watchers are told.
    fn rooms(&self, event: &Event) {
        let chat = self.tree.registry().and_then(|registry| registry.chat());
        let directory = self.tree.table().child(super::inodes::ROOT, b"chat");
        let (Some(chat), Some(directory)) = (chat, directory) else { return };
        if chat.log().store() != event.store || !self.tree.table().is_given(directory) {
            return;
        }
        for change in &event.effects.changes {
            let act = if change.what == What::Created { Act::Appear } else { Act::Change };
            self.tree.replay.add(directory, &change.key, act);
        }
    }

    /// A key changed.
    fn change(&mut self, store: StoreId, change: &Change) {
        let Some(mut at) = self.keys_of(store) else { return };
        let mut path = Vec::new();
        for name in change.key.split(|byte| *byte == b'/') {
            path = join(&path, name);
            let known = self.tree.table().child(at, name);
            let Some(ino) = known else {
                // It may be known as missing.
                self.name(at, name);
                if path == change.key {
                    self.unknown(store, &path, at, name, change.what);
                }
                return;
            };
            if path == change.key {
                self.known(store, &path, at, name, ino, change.what);
            }
            at = ino;
        }
    }

    /// A key changed of which the kernel has only the directory.
    fn unknown(&self, store: StoreId, path: &[u8], parent: u64, name: &[u8], what: What) {
        let mut table = self.tree.table();
        // Nobody watches a directory that the kernel does not have, unless it is about to get it.
        if !self.tree.replay.is_on() || !table.is_held(parent) {
            return;
        }
        let act = match what {
            What::Created => Act::Appear,
            What::Modified => Act::Change,
            What::Attributes => Act::Attributes,
            What::Deleted => Act::Vanish(Ghost { ino: None, kind: Type::File }),
            What::Heads => return,
        };
        if act == Act::Appear {
            drop(table);
            let Ok(Some(Node::Directory(_))) = self.tree.kv(&store).and_then(|kv| Ok(kv.node(path)?)) else {
                return self.tree.replay.add(parent, name, act);
            };
            // What comes in it is to be replayed as well.
            table = self.tree.table();
            let ino = table.enter(parent, name, Place::Key(store), Type::Directory);
            table.pin(ino);
            if !self.tree.replay.pins(ino) {
                table.unpin(ino);
            }
        }
        drop(table);
        self.tree.replay.add(parent, name, act);
    }

    fn known(&mut self, store: StoreId, path: &[u8], parent: u64, name: &[u8], ino: u64, what: What) {
        let Ok(node) = self.tree.kv(&store).and_then(|kv| Ok(kv.node(path)?)) else { return };
        let seen = self.tree.table().see(ino);
        let Ok(seen) = seen else { return };
        let same = node.as_ref().is_some_and(|node| kind(node) == seen.kind);
        let ghost = Ghost { ino: Some(ino), kind: seen.kind };
        let mut act = None;
        if Tree::shown_draft(seen.draft.as_ref()).is_none() {
            if !same {
                // Before it can't be found any more.
                let act = if node.is_some() { Act::Replace(ghost) } else { Act::Vanish(ghost) };
                self.tree.replay.add(parent, name, act);
                let last = self.tree.attr(ino).ok();
                self.tree.table().detach(ino, last);
                self.name(parent, name);
                return;
            }
            if what != What::Heads {
                self.tree.table().bump(ino, None);
            }
            act = match what {
                // A link can't be written: programs make another.
                What::Modified if seen.kind == Type::Symlink => Some(Act::Replace(ghost)),
                What::Modified => Some(Act::Change),
                What::Attributes => Some(Act::Attributes),
                What::Created => Some(Act::Appear),
                What::Deleted | What::Heads => None,
            };
        }
        if matches!(what, What::Created | What::Deleted) {
            self.name(parent, name);
        }
        self.content(ino);
        // Who is told looks at once, and must not find what the kernel had before.
        if let Some(act) = act {
            self.tree.replay.add(parent, name, act);
        }
    }

    fn keys_of(&self, store: StoreId) -> Option<u64> {
        let name = self.tree.stores().into_iter().find(|(_, id)| *id == store)?.0;
        let table = self.tree.table();
        let stores = table.child(super::inodes::ROOT, b"stores")?;
        table.child(table.child(stores, name.as_bytes())?, b"keys")
    }

    /// The stores that came or went.
    fn stores(&mut self) {
        let now: BTreeSet<_> = self.tree.stores().into_iter().collect();
        let changed: Vec<_> = now.symmetric_difference(&self.stores).map(|(name, _)| name.clone()).collect();
        for directory in self.tree.store_directories() {
            for name in &changed {
                let mut table = self.tree.table();
                if let Some(child) = table.child(directory, name.as_bytes())
                    && !now.iter().any(|(known, id)| known == name && table.place(child).is_some_and(|p| p.is_of(id)))
                {
                    table.detach(child, None);
                }
                drop(table);
                self.name(directory, name.as_bytes());
            }
        }
        self.tree.changes.keep(&now.iter().map(|(_, id)| *id).collect());
        self.stores = now;
    }

    /// Whatever the kernel has may be old.
    fn everything(&mut self) {
        self.stores();
        self.missing();
        let all = self.tree.table().all();
        for (ino, parent, name) in all {
            self.content(ino);
            // To forget the name of a directory would take it away from those who sit in it.
            if !self.is_directory_still(ino) {
                self.name(parent, &name);
            }
        }
    }

    /// Whether an inode is a directory that its name still leads to.
    fn is_directory_still(&self, ino: u64) -> bool {
        let Ok(seen) = self.tree.table().see(ino) else { return false };
        let Place::Key(store) = seen.place else { return seen.kind == Type::Directory };
        let node = || self.tree.kv(&store).and_then(|kv| Ok(kv.node(&seen.path)?));
        let waits = Tree::shown_draft(seen.draft.as_ref()).is_some();
        seen.kind == Type::Directory && (waits || matches!(node(), Ok(Some(Node::Directory(_)))))
    }

    fn content(&mut self, ino: u64) {
        let busy = self.tree.busy.is(ino);
        if busy {
            self.put_off.insert(ino);
        }
        let (from, length) = if busy { (-1, 0) } else { (0, 0) };
        self.told(self.notifier.inval_inode(INodeNo(ino), from, length));
    }

    fn name(&self, parent: u64, name: &[u8]) {
        self.told(self.notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(name)));
    }

    fn told(&self, result: std::io::Result<()>) {
        if let Err(error) = result
            && !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENOTCONN | libc::ENODEV))
        {
            tracing::debug!(target: "fs", %error, "the kernel did not take a notice");
        }
    }
}

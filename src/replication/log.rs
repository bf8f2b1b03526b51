//! A store's log: its entries, their indexes and the state derived from them, in one database.
//!
//! One lock admits one writer at a time, in turn; it is held for work in memory only (the state machine, and the
//! signature if there is much to commit already), never for the disk, and for a part of what comes in at once. Tables of the log (the state machine adds its own):
//!
//! | table    | key                | value |
//! |----------|--------------------|-------|
//! | entries  | local number (u64) | the entry's bytes |
//! | hashes   | first 16 of hash   | local number, hlc |
//! | chains   | author, seq        | local number |
//! | order    | hlc, hash          | local number |
//! | ranges   | level, hlc, hash   | how many entries there are from there to the level's next row, and the sum of their hashes |
//! | tips     | author             | seq, hlc, hash |
//! | frontier | hash               | hlc |
//! | meta     | name               | counters |
//! | noops    | hash               | why the entry did nothing |
//! | seen     | author, seq        | the past of that entry: author, seq, in the authors' order |
//! | wanted   | blob's hash        | its size: named by an entry, not here yet |
//! | aside    | author, seq, hash  | an entry that does not count, kept for inspection and for those that name it |
//! | asides   | hash               | hlc, author, seq of an entry in `aside` |
//! | forks    | author, seq        | an entry that has this place besides the included one: proof against its author |
//!
//! The local number counts inclusions on this node; it never leaves it. Integers are big-endian.
//! Sixteen bytes of a hash are enough to find an entry (a chance match is told by the entry itself) and
//! cost a third less to index than all 32.

mod aside;
mod head;
mod inclusion;
mod indexes;
mod notes;
mod numbered;
mod outgoing;
mod past;
mod ranges;
mod rebuild;
mod regain;
mod soundness;
mod verdict;

use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ed25519_dalek::SigningKey;
use tokio::sync::broadcast;

use super::database::{Database, DatabaseError, Flow, Read, Result, Table, Txn};
use super::entry::Entry;
use super::machine::{Effects, StateMachine};
use super::membership::SharedMembership;
use crate::clock::{Clock, Millis};
use crate::ids::{NodeId, StoreId};
pub use head::Fingerprint;
use head::Head;
pub use inclusion::{Receipt, SubmitError};
pub use indexes::Tip;
use indexes::number;
use outgoing::Outgoing;
pub use outgoing::{Durable, Outbox};
pub use past::Past;
pub use ranges::Buckets;
pub use soundness::Verified;
pub use verdict::{Rejected, Verdict};

const ENTRIES: Table = "entries";
const HASHES: Table = "hashes";
const CHAINS: Table = "chains";
const ORDER: Table = "order";
const RANGES: Table = "ranges";
const TIPS: Table = "tips";
const FRONTIER: Table = "frontier";
const META: Table = "meta";
/// Why entries did nothing, by hash. Only the root store's machine, whose judgement of an entry may change, writes it itself.
pub(crate) const NOOPS: Table = "noops";
const SEEN: Table = "seen";
const WANTED: Table = "wanted";
const ASIDE: Table = "aside";
const ASIDES: Table = "asides";
const FORKS: Table = "forks";

/// Events kept for a slow subscriber before it is told that it lagged.
const EVENTS: usize = 16_384;

/// Who brought an entry here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A program on this machine, through the mount of this number: what the kernel keeps for that mount knows of it already.
    Mount(u64),
    /// This node, by another way: a command, the daemon itself.
    Local,
    /// Another node, pushed by gossip: its neighbours have it too.
    Pushed,
    /// Another node, by reconciliation.
    Pulled,
}

/// An included entry and what it did.
#[derive(Debug, Clone)]
pub struct Event {
    /// The store.
    pub store: StoreId,
    /// The entry.
    pub entry: Entry,
    /// Who brought it.
    pub origin: Origin,
    /// What changed.
    pub effects: Effects,
    /// Whether the entry ceased to count, or never did since it forks its author's chain.
    pub excluded: bool,
}

/// A store's log. See the module.
pub struct Log {
    store: StoreId,
    key: Arc<SigningKey>,
    me: NodeId,
    clock: Arc<dyn Clock>,
    machine: Arc<dyn StateMachine>,
    membership: SharedMembership,
    /// Held while waiting for `head`: a mutex lets who has just let go of it take it again, before those that wait.
    turn: Mutex<()>,
    /// `None` after work that failed half-way: then it is read anew.
    head: Mutex<Option<Head>>,
    events: broadcast::Sender<Arc<Event>>,
    outgoing: Arc<Mutex<Outgoing>>,
    own: regain::Regaining,
    database: Database,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What a log is opened with.
pub struct Parts {
    /// The store's id.
    pub store: StoreId,
    /// This node's key.
    pub key: Arc<SigningKey>,
    /// The clock that stamps entries.
    pub clock: Arc<dyn Clock>,
    /// What the entries mean.
    pub machine: Arc<dyn StateMachine>,
    /// Who may write.
    pub membership: SharedMembership,
    /// Where inclusions are told: one channel may serve all the stores of a mesh.
    pub events: broadcast::Sender<Arc<Event>>,
}

/// A channel for [`Parts::events`].
#[must_use]
pub fn events() -> broadcast::Sender<Arc<Event>> {
    broadcast::channel(EVENTS).0
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("store", &self.store).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Opens the log in the file at `path`, with `cache` bytes of page cache.
    ///
    /// # Errors
    /// If the file can't be opened, is in use or is damaged.
    pub fn open(path: &Path, cache: usize, parts: Parts) -> Result<Self> {
        Self::with(Database::open(path, cache)?, parts)
    }

    /// Opens the log in a database.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn with(database: Database, parts: Parts) -> Result<Self> {
        let log = Self {
            store: parts.store,
            me: NodeId(parts.key.verifying_key().to_bytes()),
            key: parts.key,
            clock: parts.clock,
            machine: parts.machine,
            membership: parts.membership,
            turn: Mutex::default(),
            head: Mutex::new(None),
            events: parts.events,
            outgoing: Arc::default(),
            own: regain::Regaining::noted(&database.view()?)?,
            database,
        };
        log.check()?;
        log.collect();
        if !log.ranges_add_up()? {
            log.with_head(|head| log.count_ranges().map(|ranges| head.ranges = ranges))?;
        }
        if log.database.view()?.get(META, rebuild::REBUILDING)?.is_some() {
            log.rebuild()?;
        }
        Ok(log)
    }

    /// Checks what is cheap to check: that the file is this store's, that its ends are where its counters say, and
    /// that this node's own chain can be continued without a fork.
    fn check(&self) -> Result<()> {
        let view = self.database.view()?;
        let count = Self::head(&view)?.next;
        let gaps = view.get(META, aside::EXCLUDED)?.is_some();
        let mut last = None;
        view.scan(ENTRIES, (Bound::Unbounded, Bound::Unbounded), true, &mut |key, _| {
            last = number(key);
            Flow::Break(())
        })?;
        let end = last.map_or(0, |last| last + 1);
        if end > count || (end < count && !gaps) {
            return Err(self.damaged(&format!("the next entry has the number {count}, the last {last:?}")));
        }
        if count > 0 && !gaps {
            let first = self.entry_in(&view, &0u64.to_be_bytes())?;
            if first.header().store != self.store && first.hash().0 != self.store.0 {
                return Err(self.damaged(&format!("it is the file of another store, {}", first.header().store)));
            }
            self.entry_in(&view, &(count - 1).to_be_bytes())?;
        }
        self.tip_in(&view, &self.me)?.map_or(Ok(()), |tip| match self.at_in(&view, &self.me, tip.seq)? {
            Some(entry) if entry.hash() == tip.hash => Ok(()),
            Some(_) | None => Err(self.damaged("this node's last entry is not there")),
        })
    }

    fn damaged(&self, what: &str) -> DatabaseError {
        DatabaseError::Corrupt { path: self.database.path().to_owned(), what: what.to_owned() }
    }

    /// The store's id.
    #[must_use]
    pub const fn store(&self) -> StoreId {
        self.store
    }

    /// This node.
    #[must_use]
    pub const fn me(&self) -> NodeId {
        self.me
    }

    /// The type of the store.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.machine.kind()
    }

    /// The members, as far as known.
    #[must_use]
    pub const fn membership(&self) -> &SharedMembership {
        &self.membership
    }

    /// The time by this store's clock.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// The file below: views for reading state, waiting for durability.
    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// What is included from now on, in this store and those that share its channel. A receiver that lags is told so and must read the state anew.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Waits until what was staged with this number is durable.
    ///
    /// # Errors
    /// If its commit failed.
    pub fn wait(&self, staged: u64) -> Result<()> {
        self.database.wait(staged)
    }

    /// Takes no writes any more: another file takes the place of this one.
    pub fn retire(&self, why: &str) {
        // Whoever holds the head still writes; nobody after that.
        let _head = locked(&self.head);
        self.database.retire(why);
    }

    /// Stages what `work` writes, when there is room in memory.
    fn stage(&self, work: impl FnOnce(&mut Txn<'_>) -> Result<()>) -> Result<()> {
        self.database.ready()?;
        let view = self.database.view()?;
        let mut txn = Txn::new(&view);
        work(&mut txn)?;
        self.database.stage(txn.finish()).map(drop)
    }
}

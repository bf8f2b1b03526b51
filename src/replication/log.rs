//! A store's log: its entries, their indexes and the state derived from them, in one database.
//!
//! One lock admits one writer at a time; it is held for work in memory only (the signature, the state
//! machine), never for the disk. Tables of the log (the state machine adds its own):
//!
//! | table    | key                | value |
//! |----------|--------------------|-------|
//! | entries  | local number (u64) | the entry's bytes |
//! | hashes   | first 16 of hash   | local number, hlc |
//! | chains   | author, seq        | local number |
//! | order    | hlc, hash          | local number |
//! | tips     | author             | seq, hlc, hash |
//! | frontier | hash               | hlc |
//! | meta     | name               | counters |
//! | noops    | hash               | why the entry did nothing |
//! | wanted   | blob's hash        | its size: named by an entry, not here yet |
//! | forks    | author, seq        | an entry that has this place besides the included one: proof against its author |
//!
//! The local number counts inclusions on this node; it never leaves it. Integers are big-endian.
//! Sixteen bytes of a hash are enough to find an entry (a chance match is told by the entry itself) and
//! cost a third less to index than all 32.

mod regain;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::database::{Database, DatabaseError, Flow, Read, Result, Table, Txn, View, prefix};
use super::entry::{Entry, Header, Malformed};
use super::limits;
use super::machine::{Effects, StateMachine};
use super::membership::SharedMembership;
use crate::clock::{Clock, Hlc, Millis};
use crate::ids::{Hash, NodeId, StoreId};

const ENTRIES: Table = "entries";
const HASHES: Table = "hashes";
const CHAINS: Table = "chains";
const ORDER: Table = "order";
const TIPS: Table = "tips";
const FRONTIER: Table = "frontier";
const META: Table = "meta";
/// Why entries did nothing, by hash. Only the root store's machine, whose judgement of an entry may change, writes it itself.
pub(crate) const NOOPS: Table = "noops";
const WANTED: Table = "wanted";
const FORKS: Table = "forks";

const COUNT: &[u8] = b"count";
const SUM: &[u8] = b"sum";
const REBUILDING: &[u8] = b"rebuilding";

/// Events kept for a slow subscriber before it is told that it lagged.
const EVENTS: usize = 16_384;
/// Entries applied per staged set during a rebuild.
const REBUILD_BATCH: usize = 4_096;

/// Who brought an entry here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A program on this machine, through the mount: the kernel's caches know of it already.
    Mount,
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
}

/// A local write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The entry's hash.
    pub hash: Hash,
    /// Its stamp.
    pub hlc: Hlc,
    /// Its number in this node's chain.
    pub seq: u64,
    /// For [`Log::wait`].
    pub staged: u64,
}

/// Why this node did not sign an entry.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// This node's role does not allow it.
    #[error("this node's role does not allow writing here; an admin can change that")]
    NotAllowed,
    /// The store's file was lost, and no member has told yet what this node wrote before.
    #[error("the store's file was lost here; nothing is written before a member has brought back what was in it")]
    Regaining,
    /// The operation is too large.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The disk.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Why an entry of another node does not count. A peer's fault: dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The bytes are no entry.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The signature is not the author's.
    #[error("the signature of entry {0} is not its author's")]
    Signature(Hash),
    /// It belongs to another store.
    #[error("entry {0} belongs to another store")]
    Store(Hash),
    /// The author's role does not allow writing.
    #[error("the author of entry {0} may not write")]
    NotAllowed(Hash),
    /// Another entry has its author and number, or its prev.
    #[error("entry {entry} forks its author's chain: {other} has the same place")]
    Fork {
        /// The later one to come.
        entry: Hash,
        /// The one that is included.
        other: Hash,
    },
    /// Its stamp does not exceed that of something before it.
    #[error("the stamp of entry {0} does not exceed its parents'")]
    Hlc(Hash),
    /// Its prev is not the author's entry before it.
    #[error("entry {0} does not follow its author's chain")]
    Chain(Hash),
}

/// What became of an entry that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts now.
    Included,
    /// It was here.
    Duplicate,
    /// It waits for these entries.
    Missing(Vec<Hash>),
    /// It waits until its author becomes known.
    UnknownAuthor,
    /// It is stamped too far ahead and waits until then.
    Early(Millis),
    /// It never counts.
    Rejected(Rejected),
}

/// How many entries a store holds and the sum of their hashes: equal on two nodes iff (but for a chance of
/// 2^-128) they hold the same entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The number of entries.
    pub count: u64,
    /// The sum of their hashes as little-endian integers, modulo 2^256.
    pub sum: [u8; 32],
}

impl Fingerprint {
    fn add(&mut self, hash: &Hash) {
        self.count += 1;
        let mut carry = 0u16;
        for (sum, byte) in self.sum.iter_mut().zip(hash.0) {
            let total = u16::from(*sum) + u16::from(byte) + carry;
            *sum = total.to_le_bytes()[0];
            carry = total >> 8;
        }
    }
}

/// The last entry of an author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Its number.
    pub seq: u64,
    /// Its stamp.
    pub hlc: Hlc,
    /// Its hash.
    pub hash: Hash,
}

impl Tip {
    fn encode(&self) -> Vec<u8> {
        [&self.seq.to_be_bytes()[..], &self.hlc.0.to_be_bytes(), &self.hash.0].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (seq, rest) = bytes.split_first_chunk()?;
        let (hlc, rest) = rest.split_first_chunk()?;
        Some(Self { seq: u64::from_be_bytes(*seq), hlc: Hlc(u64::from_be_bytes(*hlc)), hash: Hash::from_slice(rest)? })
    }
}

/// Entries that became durable: they may leave the node now.
#[derive(Debug, Clone)]
pub struct Durable {
    /// Their store.
    pub store: StoreId,
    /// The entries, in the order of their inclusion, with who brought them.
    pub entries: Vec<(Entry, Origin)>,
}

/// Called with each group of entries that became durable, on the store's own thread: it must not block.
pub type Outbox = Box<dyn Fn(Durable) + Send + Sync>;

/// What waits to become durable, with the number of its staged set, and who is told of it then.
#[derive(Default)]
struct Outgoing {
    waiting: VecDeque<(u64, Entry, Origin)>,
    outbox: Option<Arc<Outbox>>,
}

struct Head {
    next: u64,
    fingerprint: Fingerprint,
    frontier: BTreeMap<Hash, Hlc>,
    /// What of the frontier came and went since the last staged set.
    came: BTreeSet<Hash>,
    went: BTreeSet<Hash>,
}

impl Head {
    fn add(&mut self, hash: Hash, header: &Header) {
        for parent in header.parents() {
            if self.frontier.remove(&parent).is_some() && !self.came.remove(&parent) {
                self.went.insert(parent);
            }
        }
        self.frontier.insert(hash, header.hlc);
        self.came.insert(hash);
        self.next += 1;
        self.fingerprint.add(&hash);
    }

    /// Writes what changed since the last staged set.
    fn write(&mut self, txn: &mut Txn<'_>) {
        for hash in std::mem::take(&mut self.went) {
            txn.remove(FRONTIER, hash.0);
        }
        for hash in std::mem::take(&mut self.came) {
            if let Some(hlc) = self.frontier.get(&hash) {
                txn.put(FRONTIER, hash.0, hlc.0.to_be_bytes());
            }
        }
        txn.put(META, COUNT, self.fingerprint.count.to_be_bytes());
        txn.put(META, SUM, self.fingerprint.sum);
    }
}

/// A store's log. See the module.
pub struct Log {
    store: StoreId,
    key: Arc<SigningKey>,
    me: NodeId,
    clock: Arc<dyn Clock>,
    machine: Arc<dyn StateMachine>,
    membership: SharedMembership,
    /// `None` after work that failed half-way: then it is read anew.
    head: Mutex<Option<Head>>,
    events: broadcast::Sender<Arc<Event>>,
    outgoing: Arc<Mutex<Outgoing>>,
    regaining: AtomicBool,
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

fn chain_key(author: &NodeId, seq: u64) -> Vec<u8> {
    [&author.0[..], &seq.to_be_bytes()].concat()
}

fn order_key(hlc: Hlc, hash: &Hash) -> Vec<u8> {
    [&hlc.0.to_be_bytes()[..], &hash.0].concat()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
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
            head: Mutex::new(None),
            events: parts.events,
            outgoing: Arc::default(),
            regaining: AtomicBool::new(regain::noted(&database.view()?)?),
            database,
        };
        log.check()?;
        log.collect();
        if log.database.view()?.get(META, REBUILDING)?.is_some() {
            log.rebuild()?;
        }
        Ok(log)
    }

    /// Checks what is cheap to check: that the file is this store's, that its ends are where its counters say, and
    /// that this node's own chain can be continued without a fork.
    fn check(&self) -> Result<()> {
        let view = self.database.view()?;
        let count = Self::head(&view)?.next;
        let mut last = None;
        view.scan(ENTRIES, (Bound::Unbounded, Bound::Unbounded), true, &mut |key, _| {
            last = number(key);
            Flow::Break(())
        })?;
        if last.map_or(0, |last| last + 1) != count {
            return Err(self.damaged(&format!("{count} entries are counted, the last has the number {last:?}")));
        }
        if count > 0 {
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

    fn head(view: &View<'_>) -> Result<Head> {
        let fingerprint = Self::counters(view)?;
        let mut frontier = BTreeMap::new();
        let mut broken = false;
        view.scan(FRONTIER, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            match (Hash::from_slice(key), number(value)) {
                (Some(hash), Some(hlc)) => drop(frontier.insert(hash, Hlc(hlc))),
                _ => broken = true,
            }
            Flow::Continue(())
        })?;
        if broken || frontier.is_empty() != (fingerprint.count == 0) {
            return Err(view.damaged("its frontier does not read back"));
        }
        Ok(Head { next: fingerprint.count, fingerprint, frontier, came: BTreeSet::new(), went: BTreeSet::new() })
    }

    /// Does `work` with the head. If that fails half-way, the head may be ahead of what was staged: it is dropped, and
    /// read anew by the next one.
    fn with_head<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Head) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let mut place = locked(&self.head);
        let mut head = match place.take() {
            Some(head) => head,
            None => Self::head(&self.database.view()?)?,
        };
        let done = work(&mut head)?;
        *place = Some(head);
        Ok(done)
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

    /// Gives to `outbox`, in place of the one before, every entry that becomes durable from now on. What is durable
    /// already, [`Database::durable`] shows.
    pub fn outbox(&self, outbox: Outbox) {
        locked(&self.outgoing).outbox = Some(Arc::new(outbox));
    }

    /// Follows what becomes durable, also when nobody is told of it: it must not pile up.
    fn collect(&self) {
        let outgoing = Arc::clone(&self.outgoing);
        let store = self.store;
        self.database.on_durable(move |durable| {
            let mut outgoing = locked(&outgoing);
            let ready = outgoing.waiting.partition_point(|(number, ..)| *number <= durable);
            let entries: Vec<_> = outgoing.waiting.drain(..ready).map(|(_, entry, origin)| (entry, origin)).collect();
            let outbox = outgoing.outbox.clone();
            drop(outgoing);
            if !entries.is_empty()
                && let Some(outbox) = outbox
            {
                outbox(Durable { store, entries });
            }
        });
    }

    /// Signs `payload` as this node's next entry and applies it: visible when this returns, durable after
    /// [`Log::wait`] on the receipt's `staged`.
    ///
    /// # Errors
    /// If this node may not write here, the payload is too large, or the store takes no writes.
    pub fn submit(&self, payload: &[u8], origin: Origin) -> std::result::Result<Receipt, SubmitError> {
        if !self.may_submit() {
            return Err(SubmitError::NotAllowed);
        }
        if self.is_regaining() {
            return Err(SubmitError::Regaining);
        }
        self.database.ready()?;
        self.with_head(|head| self.submit_locked(head, payload, origin))
    }

    fn submit_locked(
        &self,
        head: &mut Head,
        payload: &[u8],
        origin: Origin,
    ) -> std::result::Result<Receipt, SubmitError> {
        let view = self.database.view()?;
        let tip = self.tip_in(&view, &self.me)?;
        let prev = tip.map(|tip| tip.hash);
        let mut deps: Vec<(Hlc, Hash)> =
            head.frontier.iter().filter(|(hash, _)| Some(**hash) != prev).map(|(hash, hlc)| (*hlc, *hash)).collect();
        let latest = deps.iter().map(|(hlc, _)| *hlc).chain(tip.map(|tip| tip.hlc)).max().unwrap_or_default();
        // More concurrent tips than an entry may name: it names the latest, a later entry the rest.
        deps.sort_unstable_by(|a, b| b.cmp(a));
        deps.truncate(limits::DEPS);
        let mut deps: Vec<Hash> = deps.into_iter().map(|(_, hash)| hash).collect();
        deps.sort_unstable();
        let header = Header {
            store: self.store,
            author: self.me,
            seq: tip.map_or(0, |tip| tip.seq + 1),
            prev,
            deps,
            hlc: latest.next(self.clock.now()),
            payload_len: 0,
            payload_hash: Hash([0; 32]),
        };
        if view.get(CHAINS, &chain_key(&self.me, header.seq))?.is_some() {
            return Err(self.damaged("this node's chain goes on behind its tip").into());
        }
        let entry = Entry::sign(&self.key, header, payload)?;
        let mut txn = Txn::new(&view);
        let effects = self.append(&mut txn, head, &entry)?;
        head.write(&mut txn);
        let writes = txn.finish();
        drop(view);
        let staged = self.finish(writes, vec![(entry.clone(), effects)], origin)?;
        Ok(Receipt { hash: entry.hash(), hlc: entry.header().hlc, seq: entry.header().seq, staged })
    }

    fn may_submit(&self) -> bool {
        let membership = self.membership.load();
        // The root store's own machine judges each operation; members of any role have one they may do.
        if self.machine.kind() == "root" { membership.admits(&self.me) } else { membership.may_write(&self.me) }
    }

    /// Takes an entry that founds this store: genesis, whose hash is the store's id.
    ///
    /// # Errors
    /// If it does not found this store, or the store takes no writes.
    pub fn found(&self, genesis: &Entry) -> std::result::Result<(), SubmitError> {
        let verdict = self.include(std::slice::from_ref(genesis), Origin::Local)?;
        match verdict.first() {
            Some(Verdict::Included | Verdict::Duplicate) => Ok(()),
            _ => Err(SubmitError::NotAllowed),
        }
    }

    /// Includes those of `entries` that count, in the order given. Their signatures and payload hashes must have
    /// been checked; all else is checked here. One staged set holds them all.
    ///
    /// # Errors
    /// If the store can't be read or takes no writes.
    pub fn include(&self, entries: &[Entry], origin: Origin) -> Result<Vec<Verdict>> {
        self.database.ready()?;
        self.with_head(|head| self.include_locked(head, entries, origin))
    }

    fn include_locked(&self, head: &mut Head, entries: &[Entry], origin: Origin) -> Result<Vec<Verdict>> {
        let view = self.database.view()?;
        let mut txn = Txn::new(&view);
        let mut verdicts = Vec::with_capacity(entries.len());
        let mut included = Vec::new();
        let mut proofs = false;
        for entry in entries {
            let verdict = self.judge(&txn, head, entry)?;
            if verdict == Verdict::Included {
                let effects = self.append(&mut txn, head, entry)?;
                included.push((entry.clone(), effects));
            }
            if let Verdict::Rejected(Rejected::Fork { .. }) = verdict {
                txn.put(FORKS, chain_key(&entry.header().author, entry.header().seq), &entry.bytes()[..]);
                proofs = true;
            }
            verdicts.push(verdict);
        }
        head.write(&mut txn);
        let writes = txn.finish();
        drop(view);
        if proofs || !included.is_empty() {
            self.finish(writes, included, origin)?;
        }
        Ok(verdicts)
    }

    fn judge(&self, txn: &Txn<'_>, head: &Head, entry: &Entry) -> Result<Verdict> {
        let header = entry.header();
        let hash = entry.hash();
        let genesis = self.store.0 == hash.0 && header.store == StoreId::UNBORN;
        if header.store != self.store && !genesis {
            return Ok(Verdict::Rejected(Rejected::Store(hash)));
        }
        if !genesis {
            let membership = self.membership.load();
            if !membership.knows(&header.author) {
                return Ok(Verdict::UnknownAuthor);
            }
            if self.machine.kind() != "root" && !membership.may_write(&header.author) {
                return Ok(Verdict::Rejected(Rejected::NotAllowed(hash)));
            }
        }
        let tip = self.tip_in(txn, &header.author)?;
        let next = tip.map_or(0, |tip| tip.seq + 1);
        if header.seq < next {
            let other = self.at_in(txn, &header.author, header.seq)?;
            let other = other.ok_or_else(|| self.damaged("a chain has a gap"))?.hash();
            return Ok(match other == hash {
                true => Verdict::Duplicate,
                false => Verdict::Rejected(Rejected::Fork { entry: hash, other }),
            });
        }
        // The hash that the store is named by vouches for genesis, so its stamp need not be trusted.
        if !genesis && header.hlc.millis() > self.clock.now().after(limits::CLOCK_AHEAD) {
            let due = header.hlc.millis().0.saturating_sub(u64::try_from(limits::CLOCK_AHEAD.as_millis()).unwrap_or(0));
            return Ok(Verdict::Early(Millis(due)));
        }
        let mut missing = Vec::new();
        for parent in header.parents() {
            match head
                .frontier
                .get(&parent)
                .copied()
                .map_or_else(|| self.stamp_in(txn, &parent), |hlc| Ok(Some(hlc)))?
            {
                None => missing.push(parent),
                Some(hlc) if hlc >= header.hlc => return Ok(Verdict::Rejected(Rejected::Hlc(hash))),
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            return Ok(Verdict::Missing(missing));
        }
        if header.seq != next || header.prev != tip.map(|tip| tip.hash) {
            return Ok(Verdict::Rejected(Rejected::Chain(hash)));
        }
        Ok(Verdict::Included)
    }

    fn append(&self, txn: &mut Txn<'_>, head: &mut Head, entry: &Entry) -> Result<Effects> {
        let header = entry.header();
        let hash = entry.hash();
        let local = head.next.to_be_bytes();
        txn.put(ENTRIES, local, &entry.bytes()[..]);
        txn.put(HASHES, &hash.0[..16], [local, header.hlc.0.to_be_bytes()].concat());
        txn.put(CHAINS, chain_key(&header.author, header.seq), local);
        txn.put(ORDER, order_key(header.hlc, &hash), local);
        txn.put(TIPS, header.author.0, Tip { seq: header.seq, hlc: header.hlc, hash }.encode());
        head.add(hash, header);
        self.apply(txn, entry)
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        let effects = self.machine.apply(txn, entry)?;
        if let Some(reason) = &effects.noop {
            txn.put(NOOPS, entry.hash().0, reason.as_bytes());
        }
        for (blob, size) in &effects.blobs {
            txn.put(WANTED, blob.0, size.to_be_bytes());
        }
        Ok(effects)
    }

    fn finish(&self, writes: super::database::Layer, included: Vec<(Entry, Effects)>, origin: Origin) -> Result<u64> {
        // The lock is held around staging, so that the commit can't overtake the queue.
        let mut outgoing = locked(&self.outgoing);
        let staged = self.database.stage(writes)?;
        outgoing.waiting.extend(included.iter().map(|(entry, _)| (staged, entry.clone(), origin)));
        drop(outgoing);
        for (entry, effects) in included {
            // Nobody listening is no failure.
            drop(self.events.send(Arc::new(Event { store: self.store, entry, origin, effects })));
        }
        Ok(staged)
    }

    /// Waits until what was staged with this number is durable.
    ///
    /// # Errors
    /// If its commit failed.
    pub fn wait(&self, staged: u64) -> Result<()> {
        self.database.wait(staged)
    }

    fn tip_in(&self, read: &impl Read, author: &NodeId) -> Result<Option<Tip>> {
        let row = read.get(TIPS, &author.0)?;
        row.map(|row| Tip::decode(&row).ok_or_else(|| self.damaged("a tip does not read back"))).transpose()
    }

    fn stamp_in(&self, read: &impl Read, hash: &Hash) -> Result<Option<Hlc>> {
        let row = read.get(HASHES, &hash.0[..16])?;
        Ok(row.and_then(|row| row.last_chunk().map(|hlc| Hlc(u64::from_be_bytes(*hlc)))))
    }

    fn entry_in(&self, read: &impl Read, local: &[u8]) -> Result<Entry> {
        let bytes = read.get(ENTRIES, local)?.ok_or_else(|| self.damaged("an entry is not there"))?;
        Entry::decode(bytes.into()).map_err(|error| self.damaged(&format!("an entry does not read back: {error}")))
    }

    fn at_in(&self, read: &impl Read, author: &NodeId, seq: u64) -> Result<Option<Entry>> {
        read.get(CHAINS, &chain_key(author, seq))?.map(|local| self.entry_in(read, &local)).transpose()
    }

    /// The entry of this author and number, durable or not.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn at(&self, view: &View<'_>, author: &NodeId, seq: u64) -> Result<Option<Entry>> {
        self.at_in(view, author, seq)
    }

    /// The entry of this hash.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn get(&self, view: &View<'_>, hash: &Hash) -> Result<Option<Entry>> {
        let Some(row) = view.get(HASHES, &hash.0[..16])? else { return Ok(None) };
        let entry = self.entry_in(view, &row[..8.min(row.len())])?;
        Ok((entry.hash() == *hash).then_some(entry))
    }

    /// The last entry of each author's chain.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn tips(&self, view: &View<'_>) -> Result<BTreeMap<NodeId, Tip>> {
        let mut tips = BTreeMap::new();
        view.scan(TIPS, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            if let (Some(author), Some(tip)) = (NodeId::from_slice(key), Tip::decode(value)) {
                tips.insert(author, tip);
            }
            Flow::Continue(())
        })?;
        Ok(tips)
    }

    /// How many entries the view holds, and the sum of their hashes.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn fingerprint(&self, view: &View<'_>) -> Result<Fingerprint> {
        Self::counters(view)
    }

    fn counters(view: &View<'_>) -> Result<Fingerprint> {
        match (view.get(META, COUNT)?, view.get(META, SUM)?) {
            (None, None) => Ok(Fingerprint::default()),
            (Some(count), Some(sum)) => number(&count)
                .zip(sum.try_into().ok())
                .map(|(count, sum)| Fingerprint { count, sum })
                .ok_or_else(|| view.damaged("its counters do not read back")),
            (Some(_), None) | (None, Some(_)) => Err(view.damaged("one of its counters is not there")),
        }
    }

    /// The entries that no other entry names yet.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn frontier(&self) -> Result<Vec<Hash>> {
        self.with_head(|head| Ok(head.frontier.keys().copied().collect()))
    }

    /// Calls `visit` with (hlc, hash) of all entries from `from` on, in that order: a linear extension of causality.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn order(
        &self,
        view: &View<'_>,
        from: (Hlc, Hash),
        reverse: bool,
        visit: &mut dyn FnMut(Hlc, Hash) -> Flow,
    ) -> Result<()> {
        let start = order_key(from.0, &from.1);
        view.scan(ORDER, (Bound::Included(&start), Bound::Unbounded), reverse, &mut |key, _| match (
            number(key),
            key.get(8..).and_then(Hash::from_slice),
        ) {
            (Some(hlc), Some(hash)) => visit(Hlc(hlc), hash),
            _ => Flow::Continue(()),
        })
    }

    /// The places in authors' chains that were seen to be forked: authors and numbers.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn forks(&self) -> Result<Vec<(NodeId, u64)>> {
        let mut forks = Vec::new();
        self.database.view()?.scan(FORKS, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, _| {
            if let (Some(author), Some(seq)) =
                (key.get(..32).and_then(NodeId::from_slice), key.get(32..).and_then(number))
            {
                forks.push((author, seq));
            }
            Flow::Continue(())
        })?;
        Ok(forks)
    }

    /// Why the entry did nothing, if so.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn noop(&self, view: &View<'_>, hash: &Hash) -> Result<Option<String>> {
        Ok(view.get(NOOPS, &hash.0)?.map(|reason| String::from_utf8_lossy(&reason).into_owned()))
    }

    /// The blobs that entries name and that were not yet reported here by [`Log::arrived`].
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn wanted(&self) -> Result<Vec<(Hash, u64)>> {
        let mut wanted = Vec::new();
        self.database.view()?.scan(WANTED, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            if let (Some(hash), Some(size)) = (Hash::from_slice(key), number(value)) {
                wanted.push((hash, size));
            }
            Flow::Continue(())
        })?;
        Ok(wanted)
    }

    /// Notes that a blob is here and durable.
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn arrived(&self, blob: &Hash) -> Result<()> {
        self.with_head(|_| {
            let view = self.database.view()?;
            let mut txn = Txn::new(&view);
            txn.remove(WANTED, blob.0);
            self.database.stage(txn.finish()).map(drop)
        })
    }

    /// Drops the state and derives it again from the entries. A crash on the way starts it anew at the next opening.
    ///
    /// # Errors
    /// If the store can't be read or takes no writes.
    pub fn rebuild(&self) -> Result<()> {
        self.with_head(|_| {
            self.stage(|txn| {
                txn.put(META, REBUILDING, [1]);
                Ok(())
            })?;
            for table in self.machine.tables().iter().copied().chain([NOOPS]) {
                self.clear(table)?;
            }
            let mut from = 0;
            while let Some(next) = self.replay(from)? {
                from = next;
            }
            Ok(())
        })
    }

    /// Stages what `work` writes, when there is room in memory.
    fn stage(&self, work: impl FnOnce(&mut Txn<'_>) -> Result<()>) -> Result<()> {
        self.database.ready()?;
        let view = self.database.view()?;
        let mut txn = Txn::new(&view);
        work(&mut txn)?;
        self.database.stage(txn.finish()).map(drop)
    }

    fn clear(&self, table: Table) -> Result<()> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let start = keys.last().map_or(Bound::Unbounded, |last| Bound::Excluded(last.as_slice()));
            let mut next = Vec::new();
            self.database.view()?.scan(table, (start, Bound::Unbounded), false, &mut |key, _| {
                next.push(key.to_vec());
                if next.len() < REBUILD_BATCH { Flow::Continue(()) } else { Flow::Break(()) }
            })?;
            if next.is_empty() {
                return Ok(());
            }
            keys = next;
            self.stage(|txn| {
                keys.iter().for_each(|key| txn.remove(table, key.as_slice()));
                Ok(())
            })?;
        }
    }

    /// Applies a batch of entries from the local number `from` on; gives the number of the next, if there is one.
    fn replay(&self, from: u64) -> Result<Option<u64>> {
        let mut rows = Vec::new();
        let start = from.to_be_bytes();
        self.database.view()?.scan(ENTRIES, (Bound::Included(&start), Bound::Unbounded), false, &mut |_, value| {
            rows.push(value.to_vec());
            if rows.len() < REBUILD_BATCH { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        let next = from + rows.len() as u64;
        let done = rows.len() < REBUILD_BATCH;
        self.stage(|txn| {
            for row in rows {
                let entry = Entry::decode(row.into())
                    .map_err(|error| self.damaged(&format!("an entry does not read back: {error}")))?;
                self.apply(txn, &entry)?;
            }
            if done {
                txn.remove(META, REBUILDING);
            }
            Ok(())
        })?;
        Ok((!done).then_some(next))
    }

    /// A digest over every row of the state: equal on two nodes iff their states are, byte for byte.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn state_digest(&self) -> Result<Hash> {
        let view = self.database.view()?;
        let mut hasher = blake3::Hasher::new();
        for table in self.machine.tables().iter().copied().chain([NOOPS]) {
            hasher.update(&(table.len() as u64).to_be_bytes()).update(table.as_bytes());
            view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
                hasher.update(&(key.len() as u64).to_be_bytes()).update(key);
                hasher.update(&(value.len() as u64).to_be_bytes()).update(value);
                Flow::Continue(())
            })?;
        }
        Ok(hasher.finalize().into())
    }

    /// The entries of an author's chain from number `from` on, at most `limit` of them.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn chain(&self, view: &View<'_>, author: &NodeId, from: u64, limit: usize) -> Result<Vec<Entry>> {
        let mut locals = Vec::new();
        let mut end = Vec::new();
        let start = chain_key(author, from);
        let (_, end) = prefix(&author.0, &mut end);
        view.scan(CHAINS, (Bound::Included(&start), end), false, &mut |_, local| {
            if locals.len() < limit {
                locals.push(local.to_vec());
            }
            if locals.len() < limit { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        let mut entries = Vec::with_capacity(locals.len());
        for local in locals {
            entries.push(self.entry_in(view, &local)?);
        }
        Ok(entries)
    }
}

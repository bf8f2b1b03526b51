//! From bytes that a peer sent to entries that count: decode, drop what is here, verify, include, and keep for
//! a while what can't be included yet.
//!
//! One `Ingest` a store, used by one thread at a time. Cheapest first: entries that are here already cost no
//! signature check; what remains of a batch is verified at once and included as one staged set.
//!
//! Invariants: every waiting entry has a valid signature; each is named by exactly one of `children`, `strangers`
//! and `early`; `bytes` and `by_peer` count what `waiting` holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::database::DatabaseError;
use super::entry::Entry;
use super::limits;
use super::log::{Log, Origin, Rejected, Verdict};
use super::membership::Membership;
use super::verify::verify;
use crate::clock::Millis;
use crate::ids::{Hash, NodeId, StoreId};

/// Entries as a peer sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Their store.
    pub store: StoreId,
    /// Who sent them, or handed them over in gossip.
    pub peer: NodeId,
    /// The pull that they answer; `None` for gossip.
    pub pull: Option<u64>,
    /// The entries' bytes.
    pub entries: Vec<Bytes>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The store.
    pub store: StoreId,
    /// Who sent the batch; `None` for a retry of what waited.
    pub peer: Option<NodeId>,
    /// The pull that it answered.
    pub pull: Option<u64>,
    /// Its bytes, to be granted anew.
    pub bytes: usize,
    /// Entries that count now, those released by them too.
    pub included: usize,
    /// Entries that were here.
    pub duplicates: usize,
    /// Entries that no honest peer sends.
    pub faults: u32,
    /// Entries of the batch that wait for one that is missing.
    pub orphaned: usize,
    /// All entries of the store that wait for a missing one.
    pub waiting: usize,
    /// Some of the entries that they wait for.
    pub missing: Vec<Hash>,
    /// When the first of those that are stamped too far ahead is due.
    pub early: Option<Millis>,
    /// Whether the store takes no writes. It was logged.
    pub failed: bool,
}

impl Report {
    /// Of a batch that was not taken at all.
    #[must_use]
    pub fn failed(store: StoreId, peer: Option<NodeId>, pull: Option<u64>) -> Self {
        Self { failed: true, ..Self::empty(store, peer, pull) }
    }

    fn empty(store: StoreId, peer: Option<NodeId>, pull: Option<u64>) -> Self {
        Self {
            store,
            peer,
            pull,
            bytes: 0,
            included: 0,
            duplicates: 0,
            faults: 0,
            orphaned: 0,
            waiting: 0,
            missing: Vec::new(),
            early: None,
            failed: false,
        }
    }
}

struct Waiting {
    entry: Entry,
    peer: NodeId,
    origin: Origin,
    since: Millis,
}

/// The way in of one store. See the module.
#[derive(Default)]
pub struct Ingest {
    /// At least this many entries of each author are included.
    included: BTreeMap<NodeId, u64>,
    waiting: BTreeMap<Hash, Waiting>,
    by_age: BTreeSet<(Millis, Hash)>,
    by_peer: BTreeMap<NodeId, usize>,
    bytes: usize,
    /// Missing entry to those that wait for it.
    children: BTreeMap<Hash, BTreeSet<Hash>>,
    /// Entries of authors that are not known.
    strangers: BTreeSet<Hash>,
    early: BTreeSet<(Millis, Hash)>,
    membership: Option<Arc<Membership>>,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

struct Candidate {
    entry: Entry,
    peer: NodeId,
    origin: Origin,
    since: Millis,
}

impl Ingest {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a batch into `log`. What is stamped or written by strangers too early is kept and retried when due.
    pub fn take(&mut self, log: &Log, batch: Batch) -> Report {
        let origin = if batch.pull.is_some() { Origin::Pulled } else { Origin::Pushed };
        let mut report = Report::empty(log.store(), Some(batch.peer), batch.pull);
        report.bytes = batch.entries.iter().map(Bytes::len).sum();
        let now = log.now();
        let mut candidates = self.due(log, now);
        match self.fresh(log, batch.entries, &mut report) {
            Ok(entries) => {
                candidates.extend(entries.into_iter().map(|entry| Candidate {
                    entry,
                    peer: batch.peer,
                    origin,
                    since: now,
                }));
                self.settle(log, candidates, &mut report);
            }
            Err(error) => Self::failed(&error, &mut report),
        }
        self.finish(report)
    }

    /// Tries again what waits for a time or for an author to become known.
    pub fn retry(&mut self, log: &Log) -> Report {
        let mut report = Report::empty(log.store(), None, None);
        let candidates = self.due(log, log.now());
        self.settle(log, candidates, &mut report);
        self.finish(report)
    }

    fn finish(&self, mut report: Report) -> Report {
        report.waiting = self.waiting.len() - self.strangers.len() - self.early.len();
        let missing = self.children.keys().filter(|hash| !self.waiting.contains_key(*hash));
        report.missing = missing.take(limits::PULL_ITEMS).copied().collect();
        report.early = self.early.first().map(|(due, _)| *due);
        report
    }

    fn failed(error: &DatabaseError, report: &mut Report) {
        tracing::error!(target: "ingest", store = %report.store, %error, "entries of a peer can't be taken");
        report.failed = true;
    }

    /// The entries of `batch` that read, are not here and are signed by their authors.
    fn fresh(&self, log: &Log, batch: Vec<Bytes>, report: &mut Report) -> Result<Vec<Entry>, DatabaseError> {
        let mut entries = Vec::with_capacity(batch.len());
        for bytes in batch {
            match Entry::decode(bytes) {
                Ok(entry) => entries.push(entry),
                Err(error) => self.fault(&error.into(), report),
            }
        }
        let before = entries.len();
        let seen = |entry: &Entry| self.included.get(&entry.header().author).is_some_and(|n| entry.header().seq < *n);
        entries.retain(|entry| !self.waiting.contains_key(&entry.hash()));
        if entries.iter().any(seen) {
            // Only included entries may be left out unverified; another one with a number that is taken is a fork.
            let view = log.database().view()?;
            let mut kept = Vec::with_capacity(entries.len());
            for entry in entries {
                if !seen(&entry) || log.get(&view, &entry.hash())?.is_none() {
                    kept.push(entry);
                }
            }
            entries = kept;
        }
        report.duplicates += before - entries.len();
        let verdicts = verify(&entries);
        let mut valid = Vec::with_capacity(entries.len());
        for (entry, good) in entries.into_iter().zip(verdicts) {
            if good {
                valid.push(entry);
            } else {
                self.fault(&Rejected::Signature(entry.hash()), report);
            }
        }
        Ok(valid)
    }

    #[allow(clippy::unused_self, reason = "what is rejected will be kept as evidence here")]
    fn fault(&self, rejected: &Rejected, report: &mut Report) {
        match rejected {
            // A node that knows the root store better or worse may send these in good faith.
            Rejected::Fork { .. } => {
                tracing::warn!(target: "ingest", store = %report.store.short(), %rejected, "an entry does not count");
            }
            Rejected::Malformed(_)
            | Rejected::Signature(_)
            | Rejected::Store(_)
            | Rejected::Hlc(_)
            | Rejected::Chain(_) => {
                tracing::debug!(target: "ingest", store = %report.store.short(), %rejected, "an entry was refused");
                report.faults += 1;
            }
        }
    }

    /// What waited for a time that has come, or for a membership that has changed.
    fn due(&mut self, log: &Log, now: Millis) -> Vec<Candidate> {
        let mut hashes = Vec::new();
        while let Some((_, hash)) = self.early.first().filter(|(due, _)| *due <= now) {
            hashes.push(*hash);
            self.early.pop_first();
        }
        let membership = log.membership().load_full();
        if self.membership.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &membership)) {
            self.membership = Some(membership);
            if let Err(error) = log.align() {
                tracing::error!(target: "ingest", store = %log.store(), %error, "the entries that count can't be told anew");
            }
            hashes.extend(std::mem::take(&mut self.strangers));
        }
        while let Some((since, hash)) = self.by_age.first().copied() {
            if now.since(since) < limits::ORPHAN_AGE {
                break;
            }
            drop(self.release(&hash));
            self.early.retain(|(_, waiting)| *waiting != hash);
            self.strangers.remove(&hash);
            self.children.retain(|_, children| {
                children.remove(&hash);
                !children.is_empty()
            });
        }
        let mut due: Vec<_> = hashes.iter().filter_map(|hash| self.release(hash)).collect();
        due.sort_by_key(|candidate| (candidate.entry.header().hlc, candidate.entry.hash()));
        due
    }

    fn release(&mut self, hash: &Hash) -> Option<Candidate> {
        let Waiting { entry, peer, origin, since } = self.waiting.remove(hash)?;
        self.by_age.remove(&(since, *hash));
        self.bytes -= entry.bytes().len();
        if let Some(count) = self.by_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.by_peer.remove(&peer);
            }
        }
        Some(Candidate { entry, peer, origin, since })
    }

    /// Keeps a copy, so that a small entry doesn't hold the whole frame in which it came. False if there is no room.
    fn keep(&mut self, candidate: &Candidate) -> bool {
        let size = candidate.entry.bytes().len();
        let from_peer = self.by_peer.get(&candidate.peer).copied().unwrap_or(0);
        if self.waiting.len() >= limits::ORPHANS
            || from_peer >= limits::ORPHANS_PER_PEER
            || self.bytes + size > limits::ORPHAN_BYTES
        {
            return false;
        }
        let Ok(entry) = Entry::decode_trusted(Bytes::copy_from_slice(candidate.entry.bytes())) else { return false };
        let (hash, since) = (entry.hash(), candidate.since);
        if self.waiting.contains_key(&hash) {
            return false;
        }
        self.bytes += size;
        *self.by_peer.entry(candidate.peer).or_default() += 1;
        self.by_age.insert((since, hash));
        self.waiting.insert(hash, Waiting { entry, peer: candidate.peer, origin: candidate.origin, since });
        true
    }

    /// Includes candidates, then what waited for them, until nothing is released any more.
    fn settle(&mut self, log: &Log, mut candidates: Vec<Candidate>, report: &mut Report) {
        let mut first = true;
        while !candidates.is_empty() {
            let entries: Vec<_> = candidates.iter().map(|candidate| candidate.entry.clone()).collect();
            // What any of them needs is done for all: pulled entries are announced, pushed ones need not be.
            let pulled = candidates.iter().any(|candidate| candidate.origin == Origin::Pulled);
            let verdicts = match log.include(&entries, if pulled { Origin::Pulled } else { Origin::Pushed }) {
                Ok(verdicts) => verdicts,
                Err(error) => return Self::failed(&error, report),
            };
            let mut released = BTreeSet::new();
            for (candidate, verdict) in candidates.into_iter().zip(verdicts) {
                self.judged(&candidate, verdict, first, &mut released, report);
            }
            candidates = released.iter().filter_map(|hash| self.release(hash)).collect();
            candidates.sort_by_key(|candidate| (candidate.entry.header().hlc, candidate.entry.hash()));
            first = false;
        }
    }

    fn judged(
        &mut self,
        candidate: &Candidate,
        verdict: Verdict,
        first: bool,
        released: &mut BTreeSet<Hash>,
        report: &mut Report,
    ) {
        let (header, hash) = (candidate.entry.header(), candidate.entry.hash());
        match verdict {
            Verdict::Included | Verdict::Duplicate | Verdict::Excluded => {
                if verdict == Verdict::Included {
                    report.included += 1;
                } else {
                    report.duplicates += 1;
                }
                if verdict != Verdict::Excluded {
                    let included = self.included.entry(header.author).or_default();
                    *included = (*included).max(header.seq + 1);
                }
                released.extend(self.children.remove(&hash).unwrap_or_default());
            }
            Verdict::Missing(missing) => {
                if let Some(parent) = missing.first()
                    && self.keep(candidate)
                {
                    self.children.entry(*parent).or_default().insert(hash);
                }
                report.orphaned += usize::from(first);
            }
            Verdict::UnknownAuthor => {
                if self.keep(candidate) {
                    self.strangers.insert(hash);
                }
            }
            Verdict::Early(due) => {
                if self.keep(candidate) {
                    self.early.insert((due, hash));
                }
            }
            Verdict::Rejected(rejected) => {
                if let Rejected::Fork { .. } = rejected {
                    // It is aside: what names it need not wait.
                    released.extend(self.children.remove(&hash).unwrap_or_default());
                }
                self.fault(&rejected, report);
            }
        }
    }
}

#[cfg(test)]
mod tests;

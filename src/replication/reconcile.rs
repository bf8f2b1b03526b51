//! The parts of reconciliation that look at a whole store: handing out what a peer asked for, parents first and no
//! faster than it takes it; and the comparison of ranges, for what the authors' tips can't settle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use bytes::Bytes;
use negentropy::{Id, Negentropy, NegentropyStorageVector, Storage};

use super::entry::Entry;
use super::limits;
use super::log::{Fingerprint, Tip};
use super::message::{Message, Packed, Range, Wanted};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId, StoreId};

/// Entries read from a chain at a time.
const CHUNK: usize = 128;
/// The bytes of a comparison's round, at most: a small limit multiplies the round trips.
const ROUND: u64 = 1024 * 1024;

/// How far each author's chain goes.
pub type Tips = BTreeMap<NodeId, Tip>;

/// What a replica reads of the logs. All but [`Shelf::included`] answer from what is durable: it may leave the node.
/// A store that can't be read answers as one that is not there; who implements this logs why.
pub trait Shelf {
    /// The stores, the root store first.
    fn stores(&self) -> Vec<StoreId>;
    /// How much of a store is here.
    fn fingerprint(&self, store: &StoreId) -> Option<Fingerprint>;
    /// The same with the authors' tips, of one consistent state.
    fn tips(&self, store: &StoreId) -> Option<(Fingerprint, Tips)>;
    /// The tips of what is included, durable or not: what need not be asked for.
    fn included(&self, store: &StoreId) -> Option<Tips>;
    /// An author's entries from number `from` on, at most `limit`.
    fn chain(&self, store: &StoreId, author: &NodeId, from: u64, limit: usize) -> Vec<Entry>;
    /// An entry.
    fn entry(&self, store: &StoreId, hash: &Hash) -> Option<Entry>;
    /// Stamp and hash of all entries, in that order.
    fn items(&self, store: &StoreId) -> Vec<(Hlc, Hash)>;
}

struct Cursor {
    range: Range,
    ready: VecDeque<Entry>,
}

impl Cursor {
    fn fill(&mut self, shelf: &dyn Shelf, store: &StoreId) {
        if self.ready.is_empty() && self.range.from <= self.range.to {
            let left = usize::try_from(self.range.to - self.range.from).unwrap_or(usize::MAX).saturating_add(1);
            self.ready = shelf.chain(store, &self.range.author, self.range.from, left.min(CHUNK)).into();
            match self.ready.back() {
                Some(last) => self.range.from = last.header().seq + 1,
                None => self.range.to = 0,
            }
        }
    }
}

/// What a peer asked for and has not got yet: chains merged by stamp, which puts parents first, since an entry's
/// stamp exceeds its parents'.
pub struct Serving {
    store: StoreId,
    id: u64,
    cursors: Vec<Cursor>,
    heap: BinaryHeap<Reverse<(Hlc, usize)>>,
    single: VecDeque<Hash>,
    credit: u64,
    done: bool,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("id", &self.id).field("credit", &self.credit).finish_non_exhaustive()
    }
}

impl Serving {
    /// Begins to serve a pull.
    #[must_use]
    pub fn new(store: StoreId, id: u64, wanted: Wanted, credit: u32, shelf: &dyn Shelf) -> Self {
        let mut serving = Self {
            store,
            id,
            cursors: Vec::new(),
            heap: BinaryHeap::new(),
            single: VecDeque::new(),
            credit: u64::from(credit),
            done: false,
        };
        match wanted {
            Wanted::Ranges(ranges) => {
                for range in ranges.into_iter().take(limits::PULL_ITEMS) {
                    serving.cursors.push(Cursor { range, ready: VecDeque::new() });
                    serving.advance(serving.cursors.len() - 1, shelf);
                }
            }
            Wanted::Hashes(hashes) => {
                let found = hashes.iter().take(limits::PULL_ITEMS).filter_map(|hash| shelf.entry(&store, hash));
                let mut items: Vec<_> = found.map(|entry| (entry.header().hlc, entry.hash())).collect();
                items.sort_unstable();
                serving.single = items.into_iter().map(|(_, hash)| hash).collect();
            }
        }
        serving
    }

    /// The pull's id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether all was sent.
    #[must_use]
    pub const fn done(&self) -> bool {
        self.done
    }

    /// Allows so many bytes more.
    pub fn grant(&mut self, bytes: u32) {
        self.credit = (self.credit + u64::from(bytes)).min(limits::CREDIT as u64);
    }

    fn advance(&mut self, at: usize, shelf: &dyn Shelf) {
        let cursor = &mut self.cursors[at];
        cursor.fill(shelf, &self.store);
        if let Some(entry) = cursor.ready.front() {
            self.heap.push(Reverse((entry.header().hlc, at)));
        }
    }

    fn next(&mut self, shelf: &dyn Shelf) -> Option<Entry> {
        while let Some(hash) = self.single.pop_front() {
            if let Some(entry) = shelf.entry(&self.store, &hash) {
                return Some(entry);
            }
        }
        let Reverse((_, at)) = self.heap.pop()?;
        let entry = self.cursors[at].ready.pop_front();
        self.advance(at, shelf);
        entry
    }

    fn exhausted(&self) -> bool {
        self.single.is_empty() && self.heap.is_empty()
    }

    /// The next frame, if credit allows one. The last one says so; after it there are none.
    pub fn frame(&mut self, shelf: &dyn Shelf) -> Option<Message> {
        if self.done || self.credit == 0 {
            return None;
        }
        let mut entries: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        while bytes < limits::FRAME_BYTES && entries.len() < limits::FRAME_ENTRIES {
            let Some(entry) = self.next(shelf) else { break };
            bytes += entry.bytes().len();
            entries.push(entry.bytes().clone());
        }
        self.credit = self.credit.saturating_sub(bytes as u64);
        self.done = self.exhausted();
        Some(Message::Entries { store: self.store, id: self.id, last: self.done, packed: Packed::new(entries) })
    }
}

/// A comparison of ranges under way, at either end.
pub struct Comparison {
    items: NegentropyStorageVector,
    /// What the other end lacks, as far as known: only the end that began learns it.
    pub theirs: Vec<Hash>,
    /// What this end lacks.
    pub ours: Vec<Hash>,
}

impl std::fmt::Debug for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Comparison").field("ours", &self.ours.len()).finish_non_exhaustive()
    }
}

impl Comparison {
    /// Of all that is in the store.
    #[must_use]
    pub fn new(items: &[(Hlc, Hash)]) -> Option<Self> {
        let mut storage = NegentropyStorageVector::with_capacity(items.len());
        for (hlc, hash) in items {
            storage.insert(hlc.0, Id::from_byte_array(hash.0)).ok()?;
        }
        storage.seal().ok()?;
        Some(Self { items: storage, theirs: Vec::new(), ours: Vec::new() })
    }

    /// The first round.
    #[must_use]
    pub fn begin(&self) -> Option<Vec<u8>> {
        Negentropy::new(Storage::Borrowed(&self.items), ROUND).ok()?.initiate().ok()
    }

    /// The answer of the end that did not begin; `None` if the peer's bytes make no sense.
    #[must_use]
    pub fn answer(&self, round: &[u8]) -> Option<Vec<u8>> {
        Negentropy::new(Storage::Borrowed(&self.items), ROUND).ok()?.reconcile(round).ok()
    }

    /// Takes an answer: `Some(Some(round))` if there is another round, `Some(None)` at the end,
    /// `None` if the peer's bytes make no sense.
    #[must_use]
    pub fn go_on(&mut self, answer: &[u8]) -> Option<Option<Vec<u8>>> {
        let mut negentropy = Negentropy::new(Storage::Borrowed(&self.items), ROUND).ok()?;
        negentropy.set_initiator();
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let next = negentropy.reconcile_with_ids(answer, &mut have, &mut need).ok()?;
        self.theirs.extend(have.into_iter().map(|id| Hash(id.to_bytes())));
        self.ours.extend(need.into_iter().map(|id| Hash(id.to_bytes())));
        if next.is_none() {
            self.theirs.sort_unstable();
            self.ours.sort_unstable();
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(range: std::ops::Range<u64>) -> Vec<(Hlc, Hash)> {
        range.map(|n| (Hlc(n / 3), Hash(blake3::hash(&n.to_be_bytes()).into()))).collect()
    }

    fn hashes(range: std::ops::Range<u64>) -> Vec<Hash> {
        let mut hashes: Vec<_> = items(range).into_iter().map(|(_, hash)| hash).collect();
        hashes.sort_unstable();
        hashes
    }

    #[test]
    fn a_comparison_finds_exactly_what_each_end_lacks() {
        let mut one = Comparison::new(&items(0..900)).unwrap();
        let other = Comparison::new(&items(40..1_000)).unwrap();
        let mut round = one.begin().unwrap();
        while let Some(next) = one.go_on(&other.answer(&round).unwrap()).unwrap() {
            round = next;
        }
        assert_eq!(one.theirs, hashes(0..40));
        assert_eq!(one.ours, hashes(900..1_000));
    }

    #[test]
    fn bytes_that_are_no_round_end_a_comparison() {
        let mut one = Comparison::new(&items(0..900)).unwrap();
        assert!(one.answer(b"").is_none());
        assert!(one.answer(&[0x61, 0, 0, 7]).is_none());
        assert!(one.go_on(&[0x60]).is_none());
    }
}

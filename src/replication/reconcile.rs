//! The parts of reconciliation that look at a whole store: handing out what a peer asked for, parents first and no
//! faster than it takes it; and the comparison of ranges, for what the authors' tips can't settle.

mod ranges;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use bytes::Bytes;

use super::database::Result;
use super::entry::Entry;
use super::limits;
use super::log::{Fingerprint, Tip};
use super::message::{Message, Packed, Range, Wanted};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId, StoreId};

pub use ranges::Ordered;
#[cfg(test)]
pub(crate) use ranges::testing;

/// Entries read from a chain at a time.
const CHUNK: usize = 128;
/// The bytes of a comparison's round, at most: a small limit multiplies the round trips.
const ROUND: usize = 1024 * 1024;

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
    /// Calls `work` with the entries of a store in the order of stamp and hash, of one consistent state. `None` if there is no
    /// such store, or something could not be read.
    fn ordered(&self, store: &StoreId, work: &mut dyn FnMut(&dyn Ordered) -> Result<()>) -> Option<()>;
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

/// What became of a peer's round.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The next round, to be sent.
    Round(Vec<u8>),
    /// The comparison is at its end.
    Done,
    /// The peer's bytes make no sense.
    Senseless,
    /// The store can't be read.
    Unreadable,
}

fn ordered(shelf: &dyn Shelf, store: &StoreId, mut work: impl FnMut(&dyn Ordered) -> Result<Next>) -> Next {
    let mut next = Next::Unreadable;
    let read = shelf.ordered(store, &mut |entries| {
        next = work(entries)?;
        Ok(())
    });
    if read.is_some() { next } else { Next::Unreadable }
}

/// The answer of the end that did not begin.
#[must_use]
pub fn answer(shelf: &dyn Shelf, store: &StoreId, round: &[u8]) -> Next {
    ordered(
        shelf,
        store,
        |entries| Ok(ranges::go_on(entries, round, ROUND, None)?.map_or(Next::Senseless, Next::Round)),
    )
}

/// A comparison of ranges under way, at the end that began it.
#[derive(Debug, Default)]
pub struct Comparison {
    found: ranges::Found,
    rounds: u32,
}

/// Each hash once, in the order of the stamps, and of those with one stamp in the order in which they came.
fn in_order(mut found: Vec<(Hlc, Hash)>) -> Vec<Hash> {
    found.sort_by_key(|(hlc, _)| *hlc);
    let mut known = BTreeSet::new();
    found.into_iter().map(|(_, hash)| hash).filter(|hash| known.insert(*hash)).collect()
}

impl Comparison {
    /// The first round.
    #[must_use]
    pub fn begin(shelf: &dyn Shelf, store: &StoreId) -> Next {
        ordered(shelf, store, |entries| Ok(Next::Round(ranges::begin(entries, ROUND)?)))
    }

    /// Takes an answer. One that goes on for too long, or finds very much, ends with what it has found: that is fetched, and
    /// the next comparison finds the rest.
    #[must_use]
    pub fn go_on(&mut self, shelf: &dyn Shelf, store: &StoreId, answer: &[u8]) -> Next {
        self.rounds += 1;
        let mut found = ranges::Found::default();
        let next = ordered(shelf, store, |entries| {
            found = ranges::Found::default();
            let next = ranges::go_on(entries, answer, ROUND, Some(&mut found))?;
            // Nothing but the version: no range is open.
            Ok(next.map_or(Next::Senseless, |round| if round.len() > 1 { Next::Round(round) } else { Next::Done }))
        });
        let all = &mut self.found;
        all.theirs.append(&mut found.theirs);
        all.ours.append(&mut found.ours);
        let enough = self.rounds >= limits::ROUNDS || all.theirs.len() + all.ours.len() >= limits::FOUND;
        if enough && matches!(next, Next::Round(_)) { Next::Done } else { next }
    }

    /// What the other end lacks, and what this end lacks, as far as known; parents first.
    #[must_use]
    pub fn found(self) -> [Vec<Hash>; 2] {
        [self.found.theirs, self.found.ours].map(in_order)
    }
}

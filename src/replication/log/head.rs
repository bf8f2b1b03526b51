//! The head of a log, in memory: where it goes on, and what it holds in one number.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::indexes::number;
use super::ranges::Ranges;
use super::{FRONTIER, Log, META, locked};
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::database::{DatabaseError, Flow, Read, Result, Txn, View};
use crate::replication::entry::Header;

const COUNT: &[u8] = b"count";
const SUM: &[u8] = b"sum";
pub(super) const NEXT: &[u8] = b"next";

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
    /// Of one entry.
    #[must_use]
    pub const fn one(hash: &Hash) -> Self {
        Self { count: 1, sum: hash.0 }
    }

    /// Of these entries and the others.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.count = self.count.wrapping_add(other.count);
        let mut carry = 0u16;
        for (sum, byte) in self.sum.iter_mut().zip(other.sum) {
            let total = u16::from(*sum) + u16::from(byte) + carry;
            *sum = total.to_le_bytes()[0];
            carry = total >> 8;
        }
        self
    }

    /// Of these entries without the others, which are among them.
    #[must_use]
    pub fn minus(mut self, other: &Self) -> Self {
        self.count = self.count.wrapping_sub(other.count);
        let mut borrow = 0i16;
        for (sum, byte) in self.sum.iter_mut().zip(other.sum) {
            let rest = i16::from(*sum) - i16::from(byte) - borrow;
            *sum = rest.to_le_bytes()[0];
            borrow = i16::from(rest < 0);
        }
        self
    }
}

pub(super) struct Head {
    /// The local number of the next entry: never given twice, though entries may be excluded.
    pub(super) next: u64,
    fingerprint: Fingerprint,
    pub(super) frontier: BTreeMap<Hash, Hlc>,
    /// Whether an entry that is aside would count but for a parent that is missing, or may.
    pub(super) held: bool,
    /// What of the frontier came and went since the last staged set.
    came: BTreeSet<Hash>,
    went: BTreeSet<Hash>,
    pub(super) ranges: Ranges,
}

impl Head {
    pub(super) fn add(&mut self, hash: Hash, header: &Header) {
        for parent in header.parents() {
            if self.frontier.remove(&parent).is_some() && !self.came.remove(&parent) {
                self.went.insert(parent);
            }
        }
        self.frontier.insert(hash, header.hlc);
        self.came.insert(hash);
        self.next += 1;
        self.fingerprint = self.fingerprint.plus(&Fingerprint::one(&hash));
    }

    /// Takes back an entry. What it had hidden of the frontier is to be put back with [`Head::uncover`].
    pub(super) fn remove(&mut self, hash: &Hash) {
        self.fingerprint = self.fingerprint.minus(&Fingerprint::one(hash));
        if self.frontier.remove(hash).is_some() && !self.came.remove(hash) {
            self.went.insert(*hash);
        }
    }

    /// Puts an entry into the frontier.
    pub(super) fn uncover(&mut self, hash: Hash, hlc: Hlc) {
        if self.frontier.insert(hash, hlc).is_none() && !self.went.remove(&hash) {
            self.came.insert(hash);
        }
    }

    /// Writes what changed since the last staged set.
    pub(super) fn write(&mut self, txn: &mut Txn<'_>) {
        for hash in std::mem::take(&mut self.went) {
            txn.remove(FRONTIER, hash.0);
        }
        for hash in std::mem::take(&mut self.came) {
            if let Some(hlc) = self.frontier.get(&hash) {
                txn.put(FRONTIER, hash.0, hlc.0.to_be_bytes());
            }
        }
        self.ranges.write(txn);
        txn.put(META, COUNT, self.fingerprint.count.to_be_bytes());
        txn.put(META, SUM, self.fingerprint.sum);
        txn.put(META, NEXT, self.next.to_be_bytes());
    }
}

impl Log {
    pub(super) fn head(view: &View<'_>) -> Result<Head> {
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
        let next = view
            .get(META, NEXT)?
            .as_deref()
            .map_or(Some(0), number)
            .ok_or_else(|| view.damaged("its counters do not read back"))?;
        Ok(Head {
            next,
            held: true,
            fingerprint,
            frontier,
            came: BTreeSet::new(),
            went: BTreeSet::new(),
            ranges: Ranges::read(view)?,
        })
    }

    /// Does `work` with the head. If that fails half-way, the head may be ahead of what was staged: it is dropped, and
    /// read anew by the next one.
    pub(super) fn with_head<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Head) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let turn = locked(&self.turn);
        let mut place = locked(&self.head);
        drop(turn);
        let mut head = match place.take() {
            Some(head) => head,
            None => Self::head(&self.database.view()?)?,
        };
        let done = work(&mut head)?;
        *place = Some(head);
        Ok(done)
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
}

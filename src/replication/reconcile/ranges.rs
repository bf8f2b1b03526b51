//! The comparison of ranges: version 1 of the negentropy protocol, over a store's entries in the order of (hlc, hash).
//!
//! A round is a version byte and ranges side by side. Each says where it ends (the next begins there), and what its sender
//! holds in it: nothing new (skip), a fingerprint, or all the ids. Where fingerprints differ, a range is answered by its
//! parts, or by its ids if they are few. Each round reads the store as it is then, and neither end keeps anything between
//! rounds but what it has found: what came meanwhile is at worst asked for or offered once more.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::database::Result;
use crate::replication::limits;
use crate::replication::log::Fingerprint;

const VERSION: u8 = 0x61;
const SKIP: u64 = 0;
const FINGERPRINT: u64 = 1;
const IDS: u64 = 2;
/// Into how many parts a range is cut. One of less than two entries a part is told as ids.
const PARTS: u64 = 16;
/// What a round keeps free for its last range.
const SPARE: usize = 200;
/// The entries of a range that are compared with a peer's ids at a time.
const AT_ONCE: u64 = 4_096;

/// A store's entries in the order of (hlc, hash), and what ranges of them hold. Places count from 0.
pub trait Ordered {
    /// How many entries there are.
    fn count(&self) -> u64;
    /// What the entries from `begin` up to `end` hold.
    ///
    /// # Errors
    /// If it can't be read.
    fn holds(&self, begin: u64, end: u64) -> Result<Fingerprint>;
    /// The place of the first entry that is not before (hlc, hash).
    ///
    /// # Errors
    /// If it can't be read.
    fn place(&self, hlc: Hlc, hash: &Hash) -> Result<u64>;
    /// The entries from `begin` up to `end`.
    ///
    /// # Errors
    /// If they can't be read.
    fn items(&self, begin: u64, end: u64) -> Result<Vec<(Hlc, Hash)>>;
}

/// Where a range ends: before the first entry that is not before this stamp and beginning of a hash.
#[derive(Debug, Clone, Copy)]
struct Bound {
    hlc: u64,
    hash: [u8; 32],
    length: usize,
}

const BEGIN: Bound = Bound { hlc: 0, hash: [0; 32], length: 0 };
const END: Bound = Bound { hlc: u64::MAX, ..BEGIN };

impl Bound {
    fn at((hlc, hash): (Hlc, Hash)) -> Self {
        Self { hlc: hlc.0, hash: hash.0, length: 32 }
    }

    /// The shortest one between two neighbours.
    fn between(before: (Hlc, Hash), after: (Hlc, Hash)) -> Self {
        if before.0 != after.0 {
            return Self { hlc: after.0.0, ..BEGIN };
        }
        let same = before.1.0.iter().zip(after.1.0).take_while(|(one, other)| **one == *other).count();
        let length = (same + 1).min(32);
        let mut hash = [0; 32];
        hash[..length].copy_from_slice(&after.1.0[..length]);
        Self { hlc: after.0.0, hash, length }
    }
}

/// The fingerprint of a range on the wire.
fn digest(holds: &Fingerprint) -> [u8; 16] {
    let mut count = Vec::new();
    number(&mut count, holds.count);
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::new().chain_update(holds.sum).chain_update(&count).finalize()[..16]);
    short
}

/// Groups of seven bits, the highest first; all but the last have the highest bit set.
fn number(out: &mut Vec<u8>, value: u64) {
    let groups = (64 - value.leading_zeros()).div_ceil(7).max(1);
    for group in (0..groups).rev() {
        let bits = (value >> (7 * group)).to_le_bytes()[0] & 0x7f;
        out.push(if group > 0 { bits | 0x80 } else { bits });
    }
}

/// A round as it is read. `None` where the bytes make no sense.
struct Reader<'a> {
    rest: &'a [u8],
    last: u64,
    ranges: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        loop {
            let byte = self.bytes(1)?[0];
            value = value.checked_mul(128)? + u64::from(byte & 0x7f);
            if byte < 0x80 {
                return Some(value);
            }
        }
    }

    /// The end of the next range, and its mode.
    fn range(&mut self) -> Option<(Bound, u64)> {
        self.ranges += 1;
        if self.ranges > limits::ROUND_RANGES {
            return None;
        }
        let delta = self.number()?;
        self.last = delta.checked_sub(1).map_or(u64::MAX, |delta| self.last.saturating_add(delta));
        let length = usize::try_from(self.number()?).ok().filter(|length| *length <= 32)?;
        let mut hash = [0; 32];
        hash[..length].copy_from_slice(self.bytes(length)?);
        let mode = self.number()?;
        Some((Bound { hlc: self.last, hash, length }, mode))
    }

    fn ids(&mut self) -> Option<Vec<Hash>> {
        let length = usize::try_from(self.number()?).ok()?.checked_mul(32)?;
        self.bytes(length)?.chunks(32).map(Hash::from_slice).collect()
    }
}

/// A round as it is written.
#[derive(Clone)]
struct Writer {
    out: Vec<u8>,
    last: u64,
    ranges: usize,
    limit: usize,
}

impl Writer {
    fn new(limit: usize) -> Self {
        Self { out: vec![VERSION], last: 0, ranges: 0, limit }
    }

    fn full(&self, more: usize) -> bool {
        self.out.len() + more > self.limit - SPARE || self.ranges + 2 > limits::ROUND_RANGES
    }

    fn range(&mut self, bound: &Bound, mode: u64) {
        self.ranges += 1;
        let delta = if bound.hlc == u64::MAX { 0 } else { bound.hlc.saturating_sub(self.last).saturating_add(1) };
        self.last = bound.hlc;
        number(&mut self.out, delta);
        number(&mut self.out, bound.length as u64);
        self.out.extend_from_slice(&bound.hash[..bound.length]);
        number(&mut self.out, mode);
    }

    fn fingerprint(&mut self, bound: &Bound, holds: &Fingerprint) {
        self.range(bound, FINGERPRINT);
        self.out.extend_from_slice(&digest(holds));
    }

    fn ids(&mut self, bound: &Bound, items: &[(Hlc, Hash)]) {
        self.range(bound, IDS);
        number(&mut self.out, items.len() as u64);
        items.iter().for_each(|(_, hash)| self.out.extend_from_slice(&hash.0));
    }

    /// A range by its parts, or by its ids.
    fn split(&mut self, store: &dyn Ordered, lower: u64, upper: u64, bound: &Bound) -> Result<()> {
        let count = upper - lower;
        if count < 2 * PARTS {
            self.ids(bound, &store.items(lower, upper)?);
            return Ok(());
        }
        let mut from = lower;
        for part in 0..PARTS {
            let to = from + count / PARTS + u64::from(part < count % PARTS);
            let holds = store.holds(from, to)?;
            let end = match store.items(to - 1, to + 1)?[..] {
                [before, after] if to < upper => Bound::between(before, after),
                _ => *bound,
            };
            self.fingerprint(&end, &holds);
            from = to;
        }
        Ok(())
    }
}

/// What an answer showed, to the end that began.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// What the other end lacks.
    pub(super) theirs: Vec<(Hlc, Hash)>,
    /// What this end lacks. Its stamps are not known: each has that where its range begins, and those of a range stand in order.
    pub(super) ours: Vec<(Hlc, Hash)>,
}

/// The first round.
pub(super) fn begin(store: &dyn Ordered, limit: usize) -> Result<Vec<u8>> {
    let mut writer = Writer::new(limit);
    writer.split(store, 0, store.count(), &END)?;
    Ok(writer.out)
}

/// Reads a round and writes the next. The end that began gives `found`. `None` if the bytes make no sense.
pub(super) fn go_on(
    store: &dyn Ordered,
    round: &[u8],
    limit: usize,
    mut found: Option<&mut Found>,
) -> Result<Option<Vec<u8>>> {
    let Some((version, rest)) = round.split_first() else { return Ok(None) };
    let mut writer = Writer::new(limit);
    if *version != VERSION {
        // The other end learns which version is spoken here.
        return Ok((found.is_none() && (0x60..0x70).contains(version)).then_some(writer.out));
    }
    let mut reader = Reader { rest, last: 0, ranges: 0 };
    let (mut before, mut lower, mut skipped) = (BEGIN, 0, false);
    // Where the last range that was written ends: the other end takes the next to begin there.
    let mut told = 0;
    while !reader.rest.is_empty() {
        let Some((bound, mode)) = reader.range() else { return Ok(None) };
        let mut upper = store.place(Hlc(bound.hlc), &Hash(bound.hash))?.clamp(lower, store.count());
        let mut next = writer.clone_end();
        match mode {
            SKIP => skipped = true,
            FINGERPRINT => {
                let Some(theirs) = reader.bytes(16) else { return Ok(None) };
                if digest(&store.holds(lower, upper)?) == theirs {
                    skipped = true;
                } else {
                    next.skip(&before, &mut skipped);
                    next.split(store, lower, upper, &bound)?;
                }
            }
            IDS => {
                let Some(theirs) = reader.ids() else { return Ok(None) };
                if let Some(found) = &mut found {
                    found.note(store, lower, upper, Hlc(before.hlc), theirs)?;
                    skipped = true;
                } else {
                    next.skip(&before, &mut skipped);
                    // However much the range holds: no more than may fit, and where the rest begins.
                    let items = store.items(lower, upper.min(lower + limit as u64 / 32 + 2))?;
                    let fit = (0..items.len()).take_while(|n| !writer.full(n * 32)).count();
                    let end = items.get(fit).map_or(bound, |item| Bound::at(*item));
                    upper = lower + fit as u64;
                    next.ids(&end, &items[..fit]);
                    writer.append(next);
                    told = upper;
                    next = writer.clone_end();
                }
            }
            _ => return Ok(None),
        }
        if writer.full(next.out.len()) || next.ranges > limits::ROUND_RANGES - 1 {
            writer.fingerprint(&END, &store.holds(told, store.count())?);
            break;
        }
        if !next.out.is_empty() {
            told = upper;
        }
        writer.append(next);
        (before, lower) = (bound, upper);
    }
    Ok(Some(writer.out))
}

impl Writer {
    /// Nothing yet, to be written after this.
    fn clone_end(&self) -> Self {
        Self { out: Vec::new(), ..*self }
    }

    fn append(&mut self, next: Self) {
        self.out.extend_from_slice(&next.out);
        (self.last, self.ranges) = (next.last, next.ranges);
    }

    fn skip(&mut self, before: &Bound, skipped: &mut bool) {
        if std::mem::take(skipped) {
            self.range(before, SKIP);
        }
    }
}

impl Found {
    /// Compares a range, which begins at `since`, with the peer's ids of it. Of what the peer lacks, no more is noted than a
    /// comparison gathers.
    fn note(&mut self, store: &dyn Ordered, lower: u64, upper: u64, since: Hlc, theirs: Vec<Hash>) -> Result<()> {
        let mut lacking: BTreeSet<Hash> = theirs.iter().copied().collect();
        let mut from = lower;
        while from < upper && !(lacking.is_empty() && self.theirs.len() >= limits::FOUND) {
            let to = upper.min(from + AT_ONCE);
            let mut lacks = store.items(from, to)?;
            lacks.retain(|(_, hash)| !lacking.remove(hash));
            lacks.truncate(limits::FOUND.saturating_sub(self.theirs.len()));
            self.theirs.append(&mut lacks);
            from = to;
        }
        self.ours.extend(theirs.into_iter().filter(|hash| lacking.remove(hash)).map(|hash| (since, hash)));
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Entries in a sorted list.
    pub(crate) struct List(pub(crate) Vec<(Hlc, Hash)>);

    impl Ordered for List {
        fn count(&self) -> u64 {
            self.0.len() as u64
        }
        fn holds(&self, begin: u64, end: u64) -> Result<Fingerprint> {
            let items = &self.0[index(begin)..index(end)];
            Ok(items.iter().fold(Fingerprint::default(), |holds, (_, hash)| holds.plus(&Fingerprint::one(hash))))
        }
        fn place(&self, hlc: Hlc, hash: &Hash) -> Result<u64> {
            Ok(self.0.partition_point(|item| *item < (hlc, *hash)) as u64)
        }
        fn items(&self, begin: u64, end: u64) -> Result<Vec<(Hlc, Hash)>> {
            Ok(self.0[index(begin)..index(end).min(self.0.len())].to_vec())
        }
    }

    pub(crate) fn item(n: u64) -> (Hlc, Hash) {
        (Hlc(n / 3), blake3::hash(&n.to_be_bytes()).into())
    }

    pub(crate) fn list(numbers: impl IntoIterator<Item = u64>) -> List {
        let mut items: Vec<_> = numbers.into_iter().map(item).collect();
        items.sort_unstable();
        List(items)
    }

    fn index(place: u64) -> usize {
        usize::try_from(place).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use negentropy::{Id, Negentropy, NegentropyStorageVector, Storage};
    use proptest::prelude::*;

    use super::testing::{List, list};
    use super::*;

    fn vector(list: &List) -> NegentropyStorageVector {
        let mut vector = NegentropyStorageVector::new();
        for (hlc, hash) in &list.0 {
            vector.insert(hlc.0, Id::from_byte_array(hash.0)).unwrap();
        }
        vector.seal().unwrap();
        vector
    }

    /// Compares both ways, and holds each message against what the reference makes of the same set.
    fn as_the_reference(one: &List, other: &List, limit: usize) {
        let (vector_one, vector_other) = (vector(one), vector(other));
        let reference = |vector| Negentropy::new(Storage::Borrowed(vector), limit as u64).unwrap();
        let mut round = begin(one, limit).unwrap();
        assert_eq!(round, reference(&vector_one).initiate().unwrap());
        let (mut found, mut have, mut need) = (Found::default(), Vec::new(), Vec::new());
        loop {
            let answer = go_on(other, &round, limit, None).unwrap().unwrap();
            assert!(answer.len() <= limit);
            assert_eq!(answer, reference(&vector_other).reconcile(&round).unwrap());
            let mut theirs = reference(&vector_one);
            theirs.set_initiator();
            let next = theirs.reconcile_with_ids(&answer, &mut have, &mut need).unwrap();
            round = go_on(one, &answer, limit, Some(&mut found)).unwrap().unwrap();
            match next {
                Some(next) => assert_eq!(round, next),
                None => break assert_eq!(round.len(), 1),
            }
        }
        let lacks = |one: &List, other: &List| -> Vec<Hash> {
            let other: BTreeSet<_> = other.0.iter().collect();
            one.0.iter().filter(|item| !other.contains(item)).map(|(_, hash)| *hash).collect()
        };
        let [theirs, ours] = [found.theirs, found.ours].map(super::super::in_order);
        assert_eq!((&theirs, &ours), (&lacks(one, other), &lacks(other, one)), "all, parents first");
        let hashes = |ids: Vec<Id>| -> BTreeSet<Hash> { ids.into_iter().map(|id| Hash(id.to_bytes())).collect() };
        assert_eq!((hashes(have), hashes(need)), (theirs.into_iter().collect(), ours.into_iter().collect()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_message_is_byte_for_byte_that_of_the_reference(
            count in 0u64..3_000,
            one in prop::collection::btree_set(0u64..3_000, 0..120),
            other in prop::collection::btree_set(0u64..3_000, 0..120),
            small in any::<bool>(),
        ) {
            let without = |lacking: &BTreeSet<u64>| list((0..count).filter(|n| !lacking.contains(n)));
            let limit = if small { 4_096 } else { 1 << 20 };
            as_the_reference(&without(&one), &without(&other), limit);
        }

        #[test]
        fn no_bytes_break_a_comparison(bytes in prop::collection::vec(any::<u8>(), 0..200), began in any::<bool>()) {
            let one = list(0..500);
            let round = [&[VERSION][..], &bytes].concat();
            let mut found = Found::default();
            go_on(&one, &round, 4_096, began.then_some(&mut found)).unwrap();
        }
    }

    /// Counts the entries that are read.
    struct Counted(List, std::cell::Cell<u64>);

    impl Ordered for Counted {
        fn count(&self) -> u64 {
            self.0.count()
        }
        fn holds(&self, begin: u64, end: u64) -> Result<Fingerprint> {
            self.0.holds(begin, end)
        }
        fn place(&self, hlc: Hlc, hash: &Hash) -> Result<u64> {
            self.0.place(hlc, hash)
        }
        fn items(&self, begin: u64, end: u64) -> Result<Vec<(Hlc, Hash)>> {
            self.1.set(self.1.get() + end - begin);
            self.0.items(begin, end)
        }
    }

    /// A few bytes must not make a node read all that it has.
    #[test]
    fn who_has_nothing_of_a_large_range_is_told_of_as_much_as_fits_and_no_more_is_read() {
        let store = Counted(list(0..20_000), std::cell::Cell::default());
        // All ids that it has of everything: none.
        let round = [VERSION, 0, 0, 2, 0];
        let answer = go_on(&store, &round, 4_096, None).unwrap().unwrap();
        assert!(answer.len() > 4_096 - SPARE - 64 && answer.len() <= 4_096, "{}", answer.len());
        assert!(store.1.get() < 200, "{}", store.1.get());
    }

    #[test]
    fn a_round_of_too_many_ranges_makes_no_sense() {
        let one = list(0..500);
        let skips = |count: usize| [&[VERSION][..], &[1, 0, 0].repeat(count)].concat();
        assert!(go_on(&one, &skips(limits::ROUND_RANGES), 4_096, None).unwrap().is_some());
        assert!(go_on(&one, &skips(limits::ROUND_RANGES + 1), 4_096, None).unwrap().is_none());
    }
}

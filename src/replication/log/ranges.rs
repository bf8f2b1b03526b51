//! How many entries a range of (hlc, hash) holds, and the sum of their hashes, from few rows: what the comparison of
//! ranges asks.
//!
//! The order of the entries is cut into buckets, and these into larger ones. A row of the table `ranges` is a bucket: its
//! level and the (hlc, hash) that it begins at, to its count and sum. It ends where the next of its level begins. An entry
//! that is later than all others costs no read: the last bucket of each level is kept in memory and written once a staged
//! set.
//!
//! Invariants: a level's buckets hold every entry once; the first begins at zero; where one begins, one of each lower level
//! does. Sizes are no invariant: a bucket that grows to twice its size is cut in two, and an emptied one stays.

use std::cell::RefCell;
use std::ops::Bound;
use std::rc::Rc;

use super::head::Fingerprint;
use super::{Log, ORDER, RANGES};
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::database::{Flow, Read, Result, Txn, View};
use crate::replication::reconcile::Ordered;

/// The entries of a bucket when those after it begin the next, by level.
const SIZES: [u64; 2] = [64, 8_192];
/// Entries counted into one staged set when the buckets are made anew.
const BATCH: usize = 65_536;

/// Stamp and hash, as the table `order` has them.
type Key = [u8; 40];

const ZERO: Key = [0; 40];

fn key(hlc: Hlc, hash: &Hash) -> Key {
    let mut key = ZERO;
    key[..8].copy_from_slice(&hlc.0.to_be_bytes());
    key[8..].copy_from_slice(&hash.0);
    key
}

fn item(key: &Key) -> (Hlc, Hash) {
    let (mut hlc, mut hash) = ([0; 8], [0; 32]);
    hlc.copy_from_slice(&key[..8]);
    hash.copy_from_slice(&key[8..]);
    (Hlc(u64::from_be_bytes(hlc)), Hash(hash))
}

fn one(key: &Key) -> Fingerprint {
    Fingerprint::one(&item(key).1)
}

fn row_key(level: usize, start: &Key) -> Vec<u8> {
    [&[u8::try_from(level).unwrap_or(u8::MAX)][..], start].concat()
}

fn decode(key: &[u8], value: &[u8]) -> Option<(Key, Fingerprint)> {
    let start = key.get(1..)?.try_into().ok()?;
    let (count, sum) = value.split_first_chunk()?;
    Some((start, Fingerprint { count: u64::from_be_bytes(*count), sum: sum.try_into().ok()? }))
}

/// The buckets of a level from the one that holds `from` on, up to `until`.
fn buckets(
    read: &impl Read,
    level: usize,
    from: &Key,
    until: Option<&Key>,
    visit: &mut dyn FnMut(Key, Fingerprint) -> Flow,
) -> Result<()> {
    let start = row_key(level, from);
    let end = until.map_or_else(|| row_key(level + 1, &ZERO), |until| row_key(level, until));
    read.scan(RANGES, (Bound::Included(&start), Bound::Excluded(&end)), false, &mut |key, value| {
        decode(key, value).map_or(Flow::Continue(()), |(start, holds)| visit(start, holds))
    })
}

/// The entries from `from` on, up to `until`.
fn entries(read: &impl Read, from: &Key, until: Option<&Key>, visit: &mut dyn FnMut(Key) -> Flow) -> Result<()> {
    let end = until.map_or(Bound::Unbounded, |until| Bound::Excluded(&until[..]));
    read.scan(ORDER, (Bound::Included(&from[..]), end), false, &mut |key, _| {
        key.try_into().map_or(Flow::Continue(()), &mut *visit)
    })
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    start: Key,
    holds: Fingerprint,
    dirty: bool,
}

impl Bucket {
    const fn new(start: Key, holds: Fingerprint) -> Self {
        Self { start, holds, dirty: true }
    }

    fn write(&mut self, level: usize, txn: &mut Txn<'_>) {
        if std::mem::take(&mut self.dirty) {
            let value = [&self.holds.count.to_be_bytes()[..], &self.holds.sum].concat();
            txn.put(RANGES, row_key(level, &self.start), value);
        }
    }
}

/// The last bucket of each level, and where the order ends.
#[derive(Debug)]
pub(super) struct Ranges {
    last: [Bucket; SIZES.len()],
    end: Key,
}

impl Ranges {
    const fn empty() -> Self {
        Self { last: [Bucket::new(ZERO, Fingerprint { count: 0, sum: [0; 32] }); SIZES.len()], end: ZERO }
    }

    /// As the table has them.
    pub(super) fn read(view: &View<'_>) -> Result<Self> {
        let mut ranges = Self::empty();
        for level in 0..SIZES.len() {
            if let Some(found) = holder(view, level, &[0xff; 40])? {
                ranges.last[level] = Bucket { dirty: false, ..found };
            }
        }
        view.scan(ORDER, (Bound::Unbounded, Bound::Unbounded), true, &mut |key, _| {
            ranges.end = key.try_into().unwrap_or(ZERO);
            Flow::Break(())
        })?;
        Ok(ranges)
    }

    /// Counts an entry, whose row in the table `order` is written.
    pub(super) fn add(&mut self, txn: &mut Txn<'_>, hlc: Hlc, hash: &Hash) -> Result<()> {
        let key = key(hlc, hash);
        let appended = key > self.end;
        if appended {
            self.end = key;
        }
        // Where a bucket begins, one of each lower level does: so from the top down.
        let mut begins = false;
        for level in (0..SIZES.len()).rev() {
            begins |= appended && self.last[level].holds.count >= SIZES[level];
            if begins {
                self.last[level].write(level, txn);
                self.last[level] = Bucket::new(key, Fingerprint::default());
            }
        }
        for level in 0..SIZES.len() {
            self.change(txn, level, &key, |holds| holds.plus(&one(&key)))?;
        }
        Ok(())
    }

    /// Counts an entry no more. Its row in the table `order` is gone.
    pub(super) fn remove(&mut self, txn: &mut Txn<'_>, hlc: Hlc, hash: &Hash) -> Result<()> {
        let key = key(hlc, hash);
        for level in 0..SIZES.len() {
            self.change(txn, level, &key, |holds| holds.minus(&one(&key)))?;
        }
        Ok(())
    }

    fn change(
        &mut self,
        txn: &mut Txn<'_>,
        level: usize,
        key: &Key,
        edit: impl FnOnce(Fingerprint) -> Fingerprint,
    ) -> Result<()> {
        let last = *key >= self.last[level].start;
        let mut bucket = if last {
            self.last[level]
        } else {
            holder(txn, level, key)?.unwrap_or_else(|| Bucket::new(ZERO, Fingerprint::default()))
        };
        bucket.holds = edit(bucket.holds);
        bucket.dirty = true;
        if bucket.holds.count > 2 * SIZES[level] {
            self.write(txn);
            let upper = Self::cut(txn, level, &mut bucket, last)?;
            if let Some(mut upper) = upper {
                bucket.write(level, txn);
                upper.write(level, txn);
                if last {
                    self.last[level] = upper;
                }
                return Ok(());
            }
        }
        if last {
            self.last[level] = bucket;
        } else {
            bucket.write(level, txn);
        }
        Ok(())
    }

    /// Takes the upper half out of a bucket.
    fn cut(txn: &Txn<'_>, level: usize, bucket: &mut Bucket, last: bool) -> Result<Option<Bucket>> {
        let mut until = None;
        if !last {
            buckets(txn, level, &bucket.start, None, &mut |start, _| {
                until = (start > bucket.start).then_some(start);
                if until.is_some() { Flow::Break(()) } else { Flow::Continue(()) }
            })?;
        }
        let (mut lower, mut begin) = (Fingerprint::default(), None);
        let mut visit = |start: Key, holds: Fingerprint| {
            if lower.count >= SIZES[level] && start > bucket.start {
                begin = Some(start);
                return Flow::Break(());
            }
            lower = lower.plus(&holds);
            Flow::Continue(())
        };
        match level.checked_sub(1) {
            Some(below) => buckets(txn, below, &bucket.start, until.as_ref(), &mut visit)?,
            None => entries(txn, &bucket.start, until.as_ref(), &mut |key| visit(key, one(&key)))?,
        }
        Ok(begin.map(|begin| {
            let upper = Bucket::new(begin, bucket.holds.minus(&lower));
            bucket.holds = lower;
            upper
        }))
    }

    /// Writes what changed in the last buckets.
    pub(super) fn write(&mut self, txn: &mut Txn<'_>) {
        for (level, bucket) in self.last.iter_mut().enumerate() {
            bucket.write(level, txn);
        }
    }
}

/// The bucket that holds a key.
fn holder(read: &impl Read, level: usize, key: &Key) -> Result<Option<Bucket>> {
    let (start, end) = (row_key(level, &ZERO), row_key(level, key));
    let mut found = None;
    read.scan(RANGES, (Bound::Included(&start), Bound::Included(&end)), true, &mut |key, value| {
        found = decode(key, value).map(|(start, holds)| Bucket::new(start, holds));
        Flow::Break(())
    })?;
    Ok(found)
}

/// Whether each bucket holds what its row says.
pub(super) fn sound(view: &View<'_>) -> Result<bool> {
    let mut sound = true;
    for level in 0..SIZES.len() {
        let mut rows = Vec::new();
        buckets(view, level, &ZERO, None, &mut |start, holds| {
            rows.push((start, holds));
            Flow::Continue(())
        })?;
        sound &= rows.first().is_none_or(|(start, _)| *start == ZERO);
        let (mut row, mut held) = (0, Fingerprint::default());
        let mut part = |start: Key, holds: Fingerprint| {
            while rows.get(row + 1).is_some_and(|(next, _)| *next <= start) {
                sound &= rows[row].1 == std::mem::take(&mut held);
                row += 1;
            }
            held = held.plus(&holds);
            Flow::Continue(())
        };
        match level.checked_sub(1) {
            Some(below) => buckets(view, below, &ZERO, None, &mut part)?,
            None => entries(view, &ZERO, None, &mut |key| part(key, one(&key)))?,
        }
        // Those that are left hold nothing.
        for (_, holds) in rows.get(row..).unwrap_or_default() {
            sound &= *holds == std::mem::take(&mut held);
        }
        sound &= held.count == 0;
    }
    Ok(sound)
}

impl Log {
    /// The entries of a view in the order of (hlc, hash), with what ranges of them hold.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn ordered<'a>(&self, view: &'a View<'a>) -> Result<Buckets<'a>> {
        Buckets::new(view)
    }

    /// Whether the buckets hold as much as the log does.
    pub(super) fn ranges_add_up(&self) -> Result<bool> {
        let view = self.database.view()?;
        Ok(Buckets::new(&view)?.top.until == self.fingerprint(&view)?)
    }

    /// Makes the buckets anew.
    pub(super) fn count_ranges(&self) -> Result<Ranges> {
        self.clear(RANGES)?;
        let mut ranges = Ranges::empty();
        let mut from = ZERO;
        loop {
            let mut keys: Vec<Key> = Vec::new();
            entries(&self.database.view()?, &from, None, &mut |key| {
                keys.push(key);
                if keys.len() < BATCH { Flow::Continue(()) } else { Flow::Break(()) }
            })?;
            // The last one is the first of the next batch.
            let next = if keys.len() < BATCH { None } else { keys.pop() };
            self.stage(|txn| {
                for key in &keys {
                    let (hlc, hash) = item(key);
                    ranges.add(txn, hlc, &hash)?;
                }
                ranges.write(txn);
                Ok(())
            })?;
            match next {
                Some(next) => from = next,
                None => return Ok(ranges),
            }
        }
    }
}

/// The buckets of a larger one, or the entries of a smallest one, in order: where each begins, and what is before it.
struct Page {
    rows: Vec<(Key, Fingerprint)>,
    until: Fingerprint,
    /// Where the next page begins.
    end: Option<Key>,
}

impl Page {
    const fn new(before: Fingerprint, end: Option<Key>) -> Self {
        Self { rows: Vec::new(), until: before, end }
    }

    fn push(&mut self, start: Key, holds: &Fingerprint) -> Flow {
        self.rows.push((start, self.until));
        self.until = self.until.plus(holds);
        Flow::Continue(())
    }

    /// What is before the row of this number.
    fn before(&self, row: usize) -> Fingerprint {
        self.rows.get(row).map_or(self.until, |(_, before)| *before)
    }
}

/// The entries of a view in the order of (hlc, hash). In memory are the rows of the largest buckets (one for some thousands of
/// entries), and those of the one of each level that was looked at last: ranges lie side by side.
pub struct Buckets<'a> {
    view: &'a View<'a>,
    top: Rc<Page>,
    recent: RefCell<Recent>,
}

/// By level, where a bucket begins and what it is made of.
type Recent = [Option<(Key, Rc<Page>)>; SIZES.len()];

impl std::fmt::Debug for Buckets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buckets").field("all", &self.top.until).finish_non_exhaustive()
    }
}

impl<'a> Buckets<'a> {
    fn new(view: &'a View<'a>) -> Result<Self> {
        let mut top = Page::new(Fingerprint::default(), None);
        buckets(view, SIZES.len() - 1, &ZERO, None, &mut |start, holds| top.push(start, &holds))?;
        Ok(Self { view, top: Rc::new(top), recent: RefCell::default() })
    }

    /// What a bucket is made of.
    fn open(&self, level: usize, start: Key, before: Fingerprint, end: Option<Key>) -> Result<Rc<Page>> {
        if let Some((known, page)) = &self.recent.borrow()[level]
            && *known == start
        {
            return Ok(Rc::clone(page));
        }
        let mut page = Page::new(before, end);
        match level.checked_sub(1) {
            Some(below) => {
                buckets(self.view, below, &start, end.as_ref(), &mut |start, holds| page.push(start, &holds))?
            }
            None => entries(self.view, &start, end.as_ref(), &mut |key| page.push(key, &one(&key)))?,
        }
        let page = Rc::new(page);
        self.recent.borrow_mut()[level] = Some((start, Rc::clone(&page)));
        Ok(page)
    }

    /// The entries of the smallest bucket that is the last to begin while `goes_on` says so of where it begins and what is
    /// before it.
    fn leaf(&self, goes_on: impl Fn(&Key, &Fingerprint) -> bool) -> Result<Rc<Page>> {
        let mut page = Rc::clone(&self.top);
        for level in (0..SIZES.len()).rev() {
            let row = page.rows.partition_point(|(start, before)| goes_on(start, before)).saturating_sub(1);
            let Some((start, before)) = page.rows.get(row).copied() else { break };
            let end = page.rows.get(row + 1).map_or(page.end, |(next, _)| Some(*next));
            page = self.open(level, start, before, end)?;
        }
        Ok(page)
    }

    /// What the first `place` entries hold.
    fn prefix(&self, place: u64) -> Result<Fingerprint> {
        if place >= self.top.until.count {
            return Ok(self.top.until);
        }
        let page = self.leaf(|_, before| before.count <= place)?;
        Ok(page.before(page.rows.partition_point(|(_, before)| before.count < place)))
    }
}

impl Ordered for Buckets<'_> {
    fn count(&self) -> u64 {
        self.top.until.count
    }

    fn holds(&self, begin: u64, end: u64) -> Result<Fingerprint> {
        let before = self.prefix(begin)?;
        Ok(self.prefix(end)?.minus(&before))
    }

    fn place(&self, hlc: Hlc, hash: &Hash) -> Result<u64> {
        let key = key(hlc, hash);
        let page = self.leaf(|start, _| *start <= key)?;
        Ok(page.before(page.rows.partition_point(|(entry, _)| *entry < key)).count)
    }

    fn items(&self, begin: u64, end: u64) -> Result<Vec<(Hlc, Hash)>> {
        let (mut items, mut place) = (Vec::new(), begin);
        let end = end.min(self.count());
        while place < end {
            let page = self.leaf(|_, before| before.count <= place)?;
            let these = page.rows.iter().filter(|(_, before)| (place..end).contains(&before.count));
            items.extend(these.map(|(key, _)| item(key)));
            // A bucket that holds less than its row says must not be read for ever.
            place = page.until.count.max(place + 1);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::database::Database;
    use crate::replication::log::indexes::order_key;
    use crate::replication::reconcile::testing::{List, item as numbered, list};

    /// As the log does it: the row in `order`, and the buckets.
    fn stage(database: &Database, ranges: &mut Ranges, items: &[(Hlc, Hash)], add: bool) {
        let view = database.view().unwrap();
        let mut txn = Txn::new(&view);
        for (hlc, hash) in items {
            if add {
                txn.put(ORDER, order_key(*hlc, hash), [0]);
                ranges.add(&mut txn, *hlc, hash).unwrap();
            } else {
                txn.remove(ORDER, order_key(*hlc, hash));
                ranges.remove(&mut txn, *hlc, hash).unwrap();
            }
        }
        ranges.write(&mut txn);
        let writes = txn.finish();
        drop(view);
        database.stage(writes).unwrap();
    }

    /// The numbers below `count`, each once, in the order of their hashes.
    fn scattered(count: u64) -> Vec<(Hlc, Hash)> {
        let mut items: Vec<_> = (0..count).map(numbered).collect();
        items.sort_by_key(|(_, hash)| *hash);
        items
    }

    fn same_answers(database: &Database, held: &[(Hlc, Hash)]) {
        let mut list = List(held.to_vec());
        list.0.sort_unstable();
        let view = database.view().unwrap();
        let buckets = Buckets::new(&view).unwrap();
        let size = list.count();
        assert_eq!(buckets.count(), size);
        let step = usize::try_from(size / 40).unwrap().max(1);
        for begin in (0..=size).step_by(step) {
            for end in [begin, begin + 1, begin + 63, begin + 1_000, size].into_iter().filter(|end| *end <= size) {
                assert_eq!(buckets.holds(begin, end).unwrap(), list.holds(begin, end).unwrap(), "{begin}..{end}");
                assert!(buckets.items(begin, end).unwrap() == list.items(begin, end).unwrap(), "{begin}..{end}");
            }
            let (hlc, hash) =
                list.items(begin, begin + 1).unwrap().first().copied().unwrap_or((Hlc(u64::MAX), Hash([0; 32])));
            for hash in [hash, Hash([0; 32]), Hash([0xff; 32])] {
                assert_eq!(buckets.place(hlc, &hash).unwrap(), list.place(hlc, &hash).unwrap());
            }
        }
    }

    fn memory() -> (Database, Ranges) {
        let database = Database::in_memory(redb::backends::InMemoryBackend::new()).unwrap();
        let ranges = Ranges::read(&database.view().unwrap()).unwrap();
        (database, ranges)
    }

    #[test]
    fn in_order_scattered_and_removed_again_they_answer_as_a_list_of_all_entries_does() {
        for in_order in [true, false] {
            let (database, mut ranges) = memory();
            let mut held = if in_order { list(0..24_000).0 } else { scattered(24_000) };
            same_answers(&database, &[]);
            for part in held.chunks(1_100) {
                stage(&database, &mut ranges, part, true);
            }
            same_answers(&database, &held);
            let gone = held.split_off(6_000);
            stage(&database, &mut ranges, &gone, false);
            same_answers(&database, &held);
            // What was in memory is in the file.
            ranges = Ranges::read(&database.view().unwrap()).unwrap();
            stage(&database, &mut ranges, &gone, true);
            held.extend(gone);
            same_answers(&database, &held);
        }
    }

    fn rows(items: &[(Hlc, Hash)]) -> (Vec<Vec<Fingerprint>>, blake3::Hash) {
        let (database, mut ranges) = memory();
        stage(&database, &mut ranges, items, true);
        let view = database.view().unwrap();
        let mut levels = vec![Vec::new(); SIZES.len()];
        for (level, rows) in levels.iter_mut().enumerate() {
            buckets(&view, level, &ZERO, None, &mut |_, holds| {
                rows.push(holds);
                Flow::Continue(())
            })
            .unwrap();
        }
        let mut bytes = blake3::Hasher::new();
        view.scan(RANGES, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            bytes.update(key).update(value);
            Flow::Continue(())
        })
        .unwrap();
        (levels, bytes.finalize())
    }

    #[test]
    fn an_entry_costs_few_rows_and_a_range_reads_few() {
        let (in_order, _) = rows(&list(0..20_000).0);
        assert_eq!(in_order.iter().map(Vec::len).collect::<Vec<_>>(), [313, 3]);
        let (any, _) = rows(&scattered(20_000));
        for (rows, size) in any.iter().zip(SIZES) {
            assert!(rows.iter().all(|holds| holds.count <= 2 * size));
            assert!(rows.len() as u64 <= 2 * 20_000_u64.div_ceil(size), "{} buckets of about {size}", rows.len());
        }
    }

    #[test]
    fn the_bytes_of_their_rows_are_frozen() {
        let (_, bytes) = rows(&list(0..20_000).0);
        let frozen = include_str!("../../../tests/frozen/ranges-v1.blake3");
        assert_eq!(
            bytes.to_string(),
            frozen.trim(),
            "the form of the rows changed: docs/format.md and the file's version must follow"
        );
    }
}

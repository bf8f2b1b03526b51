//! Runs: rows in the order of their keys, in one piece of memory, never changed. What a commit writes is one.
//!
//! Form: per row the lengths of key and value (all ones for a row that is removed), key and value; before the first row
//! of a table, all ones, the length of its name and its name. Integers are big-endian and of 32 bits.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Table;
use super::rows::{Range, Row, Rows, Sorted, each};

/// In the place of a key's length: the name of the table of the rows that follow, after its length.
const NAME: u32 = u32::MAX;
/// The length of the value of a row that is removed.
const GONE: u32 = u32::MAX;
/// Bytes of the largest run that is made of others: it takes some ten milliseconds, and the next commit waits for it.
const FOLDED: usize = 4 * 1024 * 1024;
/// Bits of the filter for each key and beginning that it knows.
const BITS: usize = 12;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Run {
    bytes: Vec<u8>,
    /// Where the rows begin, per table.
    tables: Vec<(Table, Vec<u32>)>,
    /// Tells of most keys that they are not here: two bits are set for each that is, and for what keys begin with, up to
    /// each byte 0 in them.
    filter: Vec<u64>,
}

impl Run {
    /// The rows of all `sources`, what the first says in place of what later ones do.
    pub(super) fn of(sources: &[&dyn Sorted]) -> Self {
        let mut run = Self::default();
        let done = each(sources, None, |table, key, value| {
            if run.tables.last().is_none_or(|(last, _)| *last != table) {
                run.bytes.extend(NAME.to_be_bytes());
                run.bytes.extend(number(table.len()));
                run.bytes.extend(table.as_bytes());
                run.tables.push((table, Vec::new()));
            }
            let place = run.bytes.len();
            run.bytes.extend(number(key.len()));
            run.bytes.extend(value.map_or(GONE.to_be_bytes(), |value| number(value.len())));
            run.bytes.extend(key);
            run.bytes.extend(value.unwrap_or_default());
            if let Some((_, places)) = run.tables.last_mut() {
                places.push(u32::from_be_bytes(number(place)));
            }
            Ok::<_, std::convert::Infallible>(ControlFlow::Continue(()))
        });
        match done {
            Ok(()) => run.filtered(),
        }
    }

    /// A run from its bytes; `None` if they are none.
    pub(super) fn parse(bytes: Vec<u8>) -> Option<Self> {
        let mut tables: Vec<(Table, Vec<u32>)> = Vec::new();
        let mut rest = bytes.as_slice();
        let mut last: Option<&[u8]> = None;
        while !rest.is_empty() {
            let place = u32::try_from(bytes.len() - rest.len()).ok()?;
            let len = take(&mut rest)?;
            if len == NAME {
                let len = take(&mut rest)?;
                let table = interned(std::str::from_utf8(split(&mut rest, len)?).ok()?);
                last = None;
                tables.push((table, Vec::new()));
                continue;
            }
            let value = take(&mut rest)?;
            let key = split(&mut rest, len)?;
            if value != GONE {
                split(&mut rest, value)?;
            }
            if last.is_some_and(|last| last >= key) {
                return None;
            }
            last = Some(key);
            tables.last_mut()?.1.push(place);
        }
        Some(Self { bytes, tables, filter: Vec::new() }.filtered())
    }

    fn filtered(mut self) -> Self {
        let rows = self.tables.iter().map(|(_, places)| places.len()).sum();
        let mut known = Vec::with_capacity(rows);
        for (table, places) in &self.tables {
            let mut last: &[u8] = &[];
            for place in places {
                let (key, _) = self.row(*place);
                known.push(Digest::of(table, key));
                // What it begins with as the last key does is known.
                let shared = last.iter().zip(key).take_while(|(a, b)| a == b).count();
                let ends = key.iter().enumerate().skip(shared).filter(|(_, byte)| **byte == 0);
                known.extend(ends.map(|(end, _)| Digest::of(table, &key[..=end])));
                last = key;
            }
        }
        let mut filter = vec![0; (known.len() * BITS).div_ceil(64).next_power_of_two()];
        let words = filter.len();
        for (word, bit) in known.into_iter().flat_map(|digest| bits(digest, words)) {
            filter[word] |= bit;
        }
        self.filter = filter;
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn row(&self, place: u32) -> Row<'_> {
        let row = &self.bytes[place as usize..];
        let (Some(key), Some(value)) = (length(row), length(&row[4..])) else { return (&[], None) };
        let (key, rest) = row[8..].split_at(key as usize);
        (key, (value != GONE).then(|| &rest[..value as usize]))
    }

    fn places(&self, table: Table) -> Option<&[u32]> {
        self.tables.iter().find(|(known, _)| *known == table).map(|(_, places)| places.as_slice())
    }

    /// Whether this run may know the key, or have one that begins so.
    pub(super) fn may_hold(&self, digest: Digest) -> bool {
        !self.filter.is_empty()
            && bits(digest, self.filter.len()).iter().all(|(word, bit)| self.filter[*word] & bit != 0)
    }

    /// What this run says of a key, if anything.
    pub(super) fn get(&self, table: Table, key: &[u8], digest: Digest) -> Option<Option<&[u8]>> {
        if !self.may_hold(digest) {
            return None;
        }
        let places = self.places(table)?;
        let place = places.binary_search_by(|place| self.row(*place).0.cmp(key)).ok()?;
        Some(self.row(places[place]).1)
    }
}

impl Sorted for Run {
    fn tables(&self) -> Vec<Table> {
        self.tables.iter().map(|(table, _)| *table).collect()
    }

    fn rows(&self, table: Table, (start, end): Range<'_>) -> Option<Rows<'_>> {
        let places = self.places(table)?;
        let first = match start {
            Bound::Unbounded => 0,
            Bound::Included(start) => places.partition_point(|place| self.row(*place).0 < start),
            Bound::Excluded(start) => places.partition_point(|place| self.row(*place).0 <= start),
        };
        let behind = match end {
            Bound::Unbounded => places.len(),
            Bound::Included(end) => first + places[first..].partition_point(|place| self.row(*place).0 <= end),
            Bound::Excluded(end) => first + places[first..].partition_point(|place| self.row(*place).0 < end),
        };
        Some(Rows::Run(self, places[first..behind].iter()))
    }
}

/// A table and a key, as the filters of runs know them.
#[derive(Clone, Copy)]
pub(super) struct Digest(u64);

impl Digest {
    pub(super) fn of(table: Table, key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, xxh3_64(table.as_bytes())))
    }
}

/// Two bits of a filter of that many words, a power of two.
fn bits(digest: Digest, words: usize) -> [(usize, u64); 2] {
    let spread = digest.0.wrapping_mul(0xd6e8_feb8_6659_fd93);
    [spread, spread.rotate_left(32)].map(|part| {
        #[allow(clippy::cast_possible_truncation, reason = "only the low bits count")]
        let word = (part >> 6) as usize & (words - 1);
        (word, 1 << (part & 63))
    })
}

fn number(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

fn length(row: &[u8]) -> Option<u32> {
    row.first_chunk().map(|len| u32::from_be_bytes(*len))
}

fn take(rest: &mut &[u8]) -> Option<u32> {
    let number = length(rest)?;
    *rest = &rest[4..];
    Some(number)
}

fn split<'a>(rest: &mut &'a [u8], len: u32) -> Option<&'a [u8]> {
    let (part, behind) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = behind;
    Some(part)
}

/// Names of tables that were read from files. There are few, the same in all files, and they are never freed.
fn interned(name: &str) -> Table {
    static NAMES: Mutex<BTreeSet<Table>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: Table = Box::leak(name.to_owned().into_boxed_str());
    names.insert(name);
    name
}

/// Runs, the oldest first. A clone is a picture of this moment.
#[derive(Debug, Default, Clone)]
pub(super) struct Runs(Vec<Arc<Run>>);

impl Runs {
    /// Puts `run` on top.
    pub(super) fn push(&mut self, run: Run) {
        self.0.push(Arc::new(run));
    }

    /// Makes few of many: of those that together are no more than `FOLDED`, each is then more than twice the size of the next.
    pub(super) fn fold(&mut self) {
        let Some(mut top) = self.0.pop() else { return };
        while let Some(below) = self.0.pop_if(|below| {
            let (below, top) = (below.bytes.len(), top.bytes.len());
            below <= top.saturating_mul(2) && below + top <= FOLDED
        }) {
            top = Arc::new(Run::of(&[&*top, &*below]));
        }
        self.0.push(top);
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Run> {
        self.0.iter().rev().map(|run| &**run)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|run| run.bytes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer::Layer;
    use super::*;

    fn layer(rows: &[(Table, &str, Option<&str>)]) -> Layer {
        let mut layer = Layer::default();
        for (table, key, value) in rows {
            layer.put(table, key.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec()));
        }
        layer
    }

    fn get<'a>(run: &'a Run, table: Table, key: &str) -> Option<Option<&'a [u8]>> {
        run.get(table, key.as_bytes(), Digest::of(table, key.as_bytes()))
    }

    #[test]
    fn a_run_says_what_the_newest_layer_says_and_reads_back_from_its_bytes() {
        let old = layer(&[("a", "k", Some("old")), ("b", "gone", Some("v")), ("b", "kept", Some(""))]);
        let new = layer(&[("a", "k", Some("new")), ("b", "gone", None)]);
        let run = Run::of(&[&new, &old]);
        let again = Run::parse(run.bytes().to_vec()).unwrap();
        for run in [&run, &again] {
            assert_eq!(get(run, "a", "k"), Some(Some(&b"new"[..])));
            assert_eq!(get(run, "b", "gone"), Some(None));
            assert_eq!(get(run, "b", "kept"), Some(Some(&b""[..])));
            assert_eq!(get(run, "b", "k"), None);
            assert_eq!(get(run, "c", "k"), None);
        }
    }

    #[test]
    fn the_bytes_of_version_1_are_frozen() {
        let newest = layer(&[("a", "", Some("v")), ("a", "gone", None), ("bb", "k", Some(""))]);
        let run = Run::of(&[&newest, &layer(&[("a", "gone", Some("old"))])]);
        let frozen = include_str!("../../../tests/frozen/run-v1.hex").trim();
        assert_eq!(
            data_encoding::HEXLOWER.encode(run.bytes()),
            frozen,
            "files that are not wholly merged would not open"
        );
    }

    #[test]
    fn bytes_that_are_cut_or_out_of_order_are_no_run() {
        let bytes = Run::of(&[&layer(&[("a", "1", Some("x")), ("a", "2", None)])]).bytes().to_vec();
        for cut in [1, 8, 10, bytes.len() - 1] {
            assert!(Run::parse(bytes[..cut].to_vec()).is_none(), "cut to {cut}");
        }
        let mut swapped = bytes.clone();
        let last = swapped.len() - 1;
        swapped[last] = b'0';
        assert!(Run::parse(swapped).is_none());
        assert!(Run::parse(vec![0; 64]).is_none());
    }

    #[test]
    fn a_range_of_a_run_is_that_of_a_tree() {
        let names: Vec<String> = (0..50).map(|n| format!("{:02}", n * 2)).collect();
        let rows: Vec<_> = names.iter().map(|name| ("t", name.as_str(), Some("v"))).collect();
        let tree = layer(&rows);
        let run = Run::of(&[&tree]);
        let bounds = [Bound::Unbounded, Bound::Included(&b"10"[..]), Bound::Excluded(b"10"), Bound::Included(b"11")];
        let ends = [Bound::Unbounded, Bound::Included(&b"20"[..]), Bound::Excluded(b"20"), Bound::Excluded(b"999")];
        for range in bounds.iter().flat_map(|start| ends.iter().map(|end| (*start, *end))) {
            let expected: Vec<_> = tree.rows("t", range).unwrap().collect();
            assert_eq!(run.rows("t", range).unwrap().collect::<Vec<_>>(), expected);
            let backwards: Vec<_> = run.rows("t", range).unwrap().rev().collect();
            assert_eq!(backwards, expected.into_iter().rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_run_is_folded_into_one_that_takes_long() {
        let mut runs = Runs::default();
        let value = "v".repeat(FOLDED / 3);
        for n in 0..8 {
            runs.push(Run::of(&[&layer(&[("t", &n.to_string(), Some(&value))])]));
            runs.fold();
        }
        assert!(runs.0.iter().all(|run| run.bytes.len() <= FOLDED));
        assert_eq!(runs.0.len(), 4);
        assert!((0..8).all(|n| runs.newest_first().any(|run| get(run, "t", &n.to_string()).is_some())));
    }

    #[test]
    fn runs_stay_few_and_the_newest_counts() {
        let mut runs = Runs::default();
        for n in 0..3_000 {
            let (key, value) = ((n % 1_000).to_string(), n.to_string());
            runs.push(Run::of(&[&layer(&[("t", &key, Some(&value))])]));
            runs.fold();
            assert!(runs.0.len() < 20);
        }
        let newest = runs.newest_first().find_map(|run| get(run, "t", "7")).unwrap();
        assert_eq!(newest, Some(&b"2007"[..]));
    }
}

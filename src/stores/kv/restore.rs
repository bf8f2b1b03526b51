//! Going back: the operations that make keys what they were, and those that take back what entries did.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::handle::{Kv, KvError};
use super::machine::HISTORY;
use super::model::{Head, HeadId, Op, Version};
use super::past::{Lens, Moment};
use super::{path, rows, wire};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Flow, Read, prefix};
use crate::replication::entry::Entry;
use crate::stores::merge::Merge;

/// Keys read at once.
const PAGE: usize = 1_000;

/// What follows a key's prefix in the history: a stamp, an entry and an operation.
const SUFFIX: usize = 8 + 32 + 2;

type Answer<T> = Result<T, KvError>;

/// What going back to a moment takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// To be submitted together: they may not fit one entry.
    pub ops: Vec<Op>,
    /// The keys that get a former value.
    pub restored: Vec<Vec<u8>>,
    /// The keys that were not there then.
    pub deleted: Vec<Vec<u8>>,
}

impl Restored {
    fn push(&mut self, op: Op) {
        let keys = if matches!(op, Op::Delete { .. }) { &mut self.deleted } else { &mut self.restored };
        keys.push(op.path().to_vec());
        self.ops.push(op);
    }
}

/// What taking entries back takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// What becomes of the keys that they wrote.
    pub change: Restored,
    /// The keys whose writes by them are superseded by others: they are left as they are.
    pub kept: Vec<Vec<u8>>,
}

impl Kv {
    /// The entries that wrote to `path` or below it, in the order of their stamps; of the empty path, all that wrote.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn entries_at(&self, path: &[u8]) -> Answer<BTreeSet<(Hlc, Hash)>> {
        let mut found = BTreeSet::new();
        if !path.is_empty() && path::check(path).is_err() {
            return Ok(found);
        }
        // The key's own rows begin with it, too: what is below comes right behind the key.
        let start = path::below(&path::row(path));
        let mut end = Vec::new();
        self.view()?.scan(HISTORY, prefix(&start, &mut end), false, &mut |key, _| {
            let suffix = key.len().checked_sub(SUFFIX).map(|at| &key[at..]);
            if let Some((hlc, Some(hash))) = suffix
                .and_then(|suffix| suffix.split_first_chunk())
                .map(|(hlc, rest)| (Hlc(u64::from_be_bytes(*hlc)), Hash::from_slice(&rest[..32])))
            {
                found.insert((hlc, hash));
            }
            Flow::Continue(())
        })?;
        Ok(found)
    }

    /// What an entry wrote; nothing if this build can't read it, or if it did nothing.
    #[must_use]
    pub fn writes(entry: &Entry) -> Vec<(Vec<u8>, Version)> {
        let header = entry.header();
        let payload = wire::decode(entry);
        let parsed = payload.and_then(|payload| wire::parse(payload, header.author, header.seq, header.hlc));
        let versions =
            parsed.unwrap_or_default().into_iter().zip(0..).map(|(write, op)| {
                (write.path.to_vec(), Version { head: write.head(entry, op), supersedes: write.cites })
            });
        versions.collect()
    }

    /// The content of the write at this place in an entry, if the entry itself holds it.
    #[must_use]
    pub fn bytes_in(entry: &Entry, op: u16) -> Option<Bytes> {
        let payload = wire::decode(entry).ok()?;
        payload.operations.get(usize::from(op))?.bytes().cloned()
    }

    /// One write to a key; `None` if it is not here, or counts no more.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn version(&self, path: &[u8], hlc: Hlc, id: &HeadId) -> Answer<Option<Version>> {
        if path::check(path).is_err() {
            return Ok(None);
        }
        let row = path::row(path);
        let key = rows::history_key(&row, hlc, id);
        let value = self.view()?.get(HISTORY, &key)?;
        let start = rows::history_prefix(&row).len();
        Ok(value.map(|value| rows::decode_version(&key[start..], &value)).transpose()?)
    }

    /// What a lens shows at and below `path`.
    fn all_through(&self, lens: &Lens, path: &[u8]) -> Answer<BTreeMap<Vec<u8>, Head>> {
        let mut found = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.scan_through(lens, path, after.as_deref(), PAGE)?;
            let last = page.len() < PAGE;
            after = page.last().map(|(path, _)| path.clone());
            found.extend(page);
            if last {
                return Ok(found);
            }
        }
    }

    fn ids(&self, path: &[u8]) -> Answer<Vec<HeadId>> {
        Ok(self.heads(path)?.iter().flat_map(Merge::all).map(|head| head.id).collect())
    }

    /// The operations that make what stands at and below `path` what it was at a moment. They supersede all heads that those
    /// keys have.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn restored(&self, path: &[u8], moment: &Moment) -> Answer<Restored> {
        let then = self.all_through(&Lens::At(moment.clone()), path)?;
        let now = self.all_through(&Lens::At(Moment::now()), path)?;
        let mut change = Restored::default();
        for path in now.keys().filter(|path| !then.contains_key(*path)) {
            change.push(Op::Delete { path: path.clone(), supersedes: self.ids(path)? });
        }
        for (path, head) in then {
            let is = |now: &Head| now.id == head.id || (now.same_value(&head) && now.mtime == head.mtime);
            if !now.get(&path).is_some_and(is) {
                let supersedes = self.ids(&path)?;
                change.push(head.again(path, supersedes));
            }
        }
        Ok(change)
    }

    /// The operations that take back what entries wrote to the keys that `matches` names: each key gets the value that it would
    /// show without those writes. Where others have superseded them, the key is left as it is.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn undone(&self, entries: &[Entry], matches: &dyn Fn(&[u8]) -> bool) -> Answer<Undone> {
        let hashes: BTreeSet<Hash> = entries.iter().map(Entry::hash).collect();
        let paths = entries.iter().flat_map(Self::writes).map(|(path, _)| path).filter(|path| matches(path));
        let mut undone = Undone::default();
        for path in paths.collect::<BTreeSet<_>>() {
            let Some(heads) = self.heads(&path)? else { continue };
            let (theirs, others): (Vec<&Head>, Vec<&Head>) =
                heads.all().iter().partition(|head| hashes.contains(&head.id.entry));
            if theirs.is_empty() {
                undone.kept.push(path);
                continue;
            }
            let mut supersedes: Vec<HeadId> = theirs.iter().map(|head| head.id).collect();
            let before = match others.first() {
                Some(other) => {
                    supersedes.push(other.id);
                    Some(**other)
                }
                None => self.before(&path, &theirs, &hashes)?,
            };
            let op = match before {
                Some(head) => head.again(path, supersedes),
                None => Op::Delete { path, supersedes },
            };
            undone.change.push(op);
        }
        Ok(undone)
    }

    /// The last of the writes that these heads stand on, those of some entries left out.
    fn before(&self, path: &[u8], heads: &[&Head], without: &BTreeSet<Hash>) -> Answer<Option<Head>> {
        let mut left: Vec<(Hlc, HeadId)> = heads.iter().map(|head| (head.hlc, head.id)).collect();
        let mut seen = BTreeSet::new();
        let mut last: Option<Head> = None;
        while let Some((hlc, id)) = left.pop() {
            if !seen.insert(id) {
                continue;
            }
            let Some(Version { head, supersedes }) = self.version(path, hlc, &id)? else { continue };
            if without.contains(&id.entry) {
                left.extend(supersedes);
            } else if last.is_none_or(|last| head.order(&last).is_gt()) {
                last = Some(head);
            }
        }
        Ok(last.filter(Head::is_live))
    }

    /// The entries of an author that are stamped from `since` on, the last first.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn written_since(&self, author: &NodeId, since: Hlc) -> Answer<Vec<Entry>> {
        let view = self.view()?;
        let mut found = Vec::new();
        let mut next = self.log().tip(&view, author)?.map(|tip| tip.seq);
        while let Some(seq) = next
            && let Some(entry) = self.log().at(&view, author, seq)?
            && entry.header().hlc >= since
        {
            found.push(entry);
            next = seq.checked_sub(1);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, Manual, Millis};
    use crate::replication::log::Origin;
    use crate::stores::kv::{Kind, Machine, Value};
    use crate::stores::testing::{START, Shelf, clock, log};

    fn kv(n: u8, clock: &Arc<Manual>) -> Kv {
        Kv::new(log(n, Machine, Arc::clone(clock) as Arc<dyn Clock>), Arc::new(Shelf::default()))
    }

    fn put(kv: &Kv, path: &str, text: &str) -> Hash {
        let (supersedes, value) = (kv.ids(path.as_bytes()).unwrap(), Value::Bytes(text.into()));
        let op = Op::Put { path: path.into(), supersedes, kind: Kind::File, mode: 0o644, mtime: 0, value };
        kv.submit(vec![op], Origin::Local).unwrap().hash
    }

    fn delete(kv: &Kv, path: &str) -> Hash {
        let op = Op::Delete { path: path.into(), supersedes: kv.ids(path.as_bytes()).unwrap() };
        kv.submit(vec![op], Origin::Local).unwrap().hash
    }

    fn shown(kv: &Kv) -> Vec<(String, String)> {
        let text = |head: &Head| match kv.read(head).unwrap() {
            super::super::Opened::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
            super::super::Opened::File(..) => unreachable!("the values are small"),
        };
        let keys = kv.scan(b"", None, 99).unwrap();
        keys.iter().map(|(path, heads)| (String::from_utf8_lossy(path).into_owned(), text(heads.lww()))).collect()
    }

    fn keys(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    fn entry(kv: &Kv, hash: Hash) -> Entry {
        kv.log().get(&kv.view().unwrap(), &hash).unwrap().unwrap()
    }

    fn give(from: &Kv, to: &Kv) {
        let entries = super::super::convergence::entries(from);
        to.log().include(&entries, Origin::Pulled).unwrap();
    }

    #[test]
    fn what_is_restored_is_what_was_there_and_nothing_else() {
        let clock = clock();
        let kv = kv(0, &clock);
        for (path, text) in [("d/a", "1"), ("d/b", "2"), ("d/e/c", "3"), ("outside", "4")] {
            put(&kv, path, text);
        }
        clock.set(Millis(START.0 + 1_000));
        put(&kv, "d/a", "changed");
        delete(&kv, "d/e/c");
        put(&kv, "d/new", "5");
        put(&kv, "outside", "changed");
        let change = kv.restored(b"d", &Moment::at(Millis(START.0 + 500))).unwrap();
        assert_eq!(change.restored, [b"d/a".to_vec(), b"d/e/c".to_vec()]);
        assert_eq!(change.deleted, [b"d/new".to_vec()]);
        kv.submit(change.ops, Origin::Local).unwrap();
        assert_eq!(shown(&kv), keys(&[("d/a", "1"), ("d/b", "2"), ("d/e/c", "3"), ("outside", "changed")]));
        assert_eq!(kv.restored(b"d", &Moment::at(Millis(START.0 + 500))).unwrap(), Restored::default());
    }

    #[test]
    fn what_is_undone_shows_what_was_before_and_undoing_that_brings_it_back() {
        let clock = clock();
        let kv = kv(0, &clock);
        put(&kv, "a", "first");
        put(&kv, "gone", "was here");
        let changed = put(&kv, "a", "second");
        let (new, gone) = (put(&kv, "new", "3"), delete(&kv, "gone"));
        let after = shown(&kv);
        let entries = [changed, new, gone].map(|hash| entry(&kv, hash));
        let undone = kv.undone(&entries, &|_| true).unwrap();
        assert!(undone.kept.is_empty());
        let hash = kv.submit(undone.change.ops, Origin::Local).unwrap().hash;
        assert_eq!(shown(&kv), keys(&[("a", "first"), ("gone", "was here")]));
        let undone = kv.undone(&[entry(&kv, hash)], &|_| true).unwrap();
        kv.submit(undone.change.ops, Origin::Local).unwrap();
        assert_eq!(shown(&kv), after);
    }

    #[test]
    fn what_others_wrote_since_is_not_undone_and_what_they_wrote_beside_it_stays() {
        let clock = clock();
        let (a, b) = (kv(0, &clock), kv(1, &clock));
        for path in ["since", "beside", "only"] {
            put(&a, path, "a first");
        }
        give(&a, &b);
        clock.set(Millis(START.0 + 1_000));
        for path in ["since", "beside", "only"] {
            put(&a, path, "a second");
        }
        put(&b, "beside", "b");
        give(&a, &b);
        put(&b, "since", "b");
        give(&b, &a);
        let theirs = b.written_since(&a.log().me(), Hlc::at(Millis(START.0 + 1_000))).unwrap();
        assert_eq!(theirs.len(), 3);
        let undone = b.undone(&theirs, &|path| path != b"only").unwrap();
        assert_eq!(undone.kept, [b"since".to_vec()]);
        assert_eq!(undone.change.restored, [b"beside".to_vec()]);
        b.submit(undone.change.ops, Origin::Local).unwrap();
        assert_eq!(shown(&b), keys(&[("beside", "b"), ("only", "a second"), ("since", "b")]));
        assert_eq!(b.conflict_count().unwrap(), 0);
        let undone = b.undone(&theirs, &|path| path == b"only").unwrap();
        b.submit(undone.change.ops, Origin::Local).unwrap();
        assert_eq!(shown(&b)[1], ("only".to_owned(), "a first".to_owned()));
    }

    #[test]
    fn the_entries_of_a_path_are_those_that_wrote_to_it_or_below_it() {
        let kv = kv(0, &clock());
        let hashes = ["a", "a/b", "a!", "ab", "a/b/c", "b"].map(|path| put(&kv, path, path));
        let at = |path: &str| -> Vec<Hash> {
            kv.entries_at(path.as_bytes()).unwrap().into_iter().map(|(_, hash)| hash).collect()
        };
        assert_eq!(at("a"), [hashes[0], hashes[1], hashes[4]]);
        assert_eq!(at("a/b"), [hashes[1], hashes[4]]);
        assert_eq!(at("a!"), [hashes[2]]);
        assert_eq!(at(""), hashes);
        assert!(at("none").is_empty());
    }
}

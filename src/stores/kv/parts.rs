//! A change of many keys, as few entries as it takes.
//!
//! Others may see it half-way. So what comes goes before what goes: directories before what is in them, then the deletions, the
//! deepest first. At no moment less is shown than is there before it or after it.

use prost::Message;

use super::handle::{Kv, KvError};
use super::model::Op;
use super::wire;
use crate::replication::limits;
use crate::replication::log::{Origin, Receipt};

/// What a payload takes besides its operations: its version.
const VERSION: usize = 2;

/// A change of which some entries were made, and not all.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Partly {
    /// Those that were made.
    pub made: Vec<Receipt>,
    /// How many it takes.
    pub all: usize,
    /// Why the next one was not.
    pub source: KvError,
}

impl Kv {
    /// Signs and applies the operations by as few entries as they fit: by one if they do, and none of none. Each entry counts as a
    /// whole. Visible when this returns, durable after [`Kv::wait`] on the last receipt's `staged`.
    ///
    /// # Errors
    /// As [`Kv::submit`], with the entries that were made before.
    pub fn submit_all(&self, ops: Vec<Op>, origin: Origin) -> Result<Vec<Receipt>, Partly> {
        let parts = self.parts(ops).map_err(|source| Partly { made: Vec::new(), all: 0, source })?;
        each(parts, |part| self.submit(part, origin))
    }

    /// The operations in the order in which they are to be seen, as many together as fit an entry.
    fn parts(&self, mut ops: Vec<Op>) -> Result<Vec<Vec<Op>>, KvError> {
        // A path comes before what is below it.
        ops.sort_by(|one, other| match (deletes(one), deletes(other)) {
            (false, false) => one.path().cmp(other.path()),
            (true, true) => other.path().cmp(one.path()),
            (one, other) => one.cmp(&other),
        });
        let mut sized = Vec::with_capacity(ops.len());
        for op in ops {
            let size = self.size(op.clone())?;
            sized.push((op, size));
        }
        Ok(split(sized, limits::PAYLOAD - VERSION))
    }

    /// What an operation takes of a payload.
    fn size(&self, op: Op) -> Result<usize, KvError> {
        let operations = self.payload(vec![op])?.operations;
        Ok(wire::Payload { version: 0, operations }.encoded_len())
    }
}

const fn deletes(op: &Op) -> bool {
    matches!(op, Op::Delete { .. })
}

/// Puts together what fits into `limit`, in the order given. What alone does not fit is alone.
fn split<T>(sized: Vec<(T, usize)>, limit: usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut taken = 0;
    for (one, size) in sized {
        match parts.last_mut().filter(|_| taken + size <= limit) {
            Some(part) => part.push(one),
            None => {
                parts.push(vec![one]);
                taken = 0;
            }
        }
        taken += size;
    }
    parts
}

/// Does each part in turn, up to the first that fails.
fn each(
    parts: Vec<Vec<Op>>,
    mut submit: impl FnMut(Vec<Op>) -> Result<Receipt, KvError>,
) -> Result<Vec<Receipt>, Partly> {
    let all = parts.len();
    let mut made = Vec::with_capacity(all);
    for part in parts {
        match submit(part) {
            Ok(receipt) => made.push(receipt),
            Err(source) => return Err(Partly { made, all, source }),
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::clock::Hlc;
    use crate::ids::Hash;
    use crate::stores::Merge;
    use crate::stores::kv::{Kind, Machine, Value};
    use crate::stores::testing::{Shelf, clock, log};

    fn kv() -> Kv {
        Kv::new(log(0, Machine, clock()), Arc::new(Shelf::default()))
    }

    fn put(path: &str, kind: Kind) -> Op {
        let (path, mode) = (path.into(), 0o644);
        Op::Put { path, supersedes: Vec::new(), kind, mode, mtime: 1, value: Value::Empty }
    }

    fn paths(parts: &[Vec<Op>]) -> Vec<String> {
        parts.iter().flatten().map(|op| String::from_utf8_lossy(op.path()).into_owned()).collect()
    }

    #[test]
    fn parts_are_filled_in_order_and_none_is_too_large() {
        let of = |sizes: &[usize]| split(sizes.iter().map(|size| (*size, *size)).collect(), 10);
        assert_eq!(of(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(of(&[10]), [[10]]);
        assert_eq!(of(&[4, 6, 1, 9, 2]), [vec![4, 6], vec![1, 9], vec![2]]);
        assert_eq!(of(&[5, 6, 5, 5]), [vec![5], vec![6], vec![5, 5]]);
        assert_eq!(of(&[11, 1]), [vec![11], vec![1]]);
    }

    #[test]
    fn what_fits_an_entry_is_one_and_what_is_a_byte_too_large_is_two() {
        let kv = kv();
        let small = |n| put(&format!("{n:020}"), Kind::File);
        let encoded = |ops: Vec<Op>| kv.payload(ops).unwrap().encode_to_vec().len();
        // So many that a last one with a longer path just fits.
        let many = (limits::PAYLOAD - 150) / (encoded(vec![small(1)]) - VERSION);
        let ops =
            |last: usize| -> Vec<Op> { (0..many).map(small).chain([put(&"z".repeat(last), Kind::File)]).collect() };
        let fits = (1..255).rev().find(|last| encoded(ops(*last)) <= limits::PAYLOAD).unwrap();
        assert_eq!(encoded(ops(fits)), limits::PAYLOAD);
        assert_eq!(kv.parts(ops(fits)).unwrap().len(), 1);
        let two = kv.parts(ops(fits + 1)).unwrap();
        assert_eq!(two.iter().map(Vec::len).collect::<Vec<_>>(), [many, 1]);
        assert_eq!(kv.submit_all(ops(fits), Origin::Local).unwrap().len(), 1);
        assert!(matches!(kv.submit(ops(fits + 1), Origin::Local), Err(KvError::TooLarge { .. })));
        assert_eq!(kv.submit_all(ops(fits + 1), Origin::Local).unwrap().len(), 2);
        assert!(kv.submit_all(Vec::new(), Origin::Local).unwrap().is_empty());
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_go_after_it_and_all_comes_before_any_goes() {
        let delete = |path: &str| Op::Delete { path: path.into(), supersedes: Vec::new() };
        let ops = vec![
            delete("old"),
            put("new/d/f", Kind::File),
            delete("old/d/f"),
            put("new", Kind::Directory),
            delete("old/d"),
            put("new/d", Kind::Directory),
        ];
        let parts = kv().parts(ops).unwrap();
        assert_eq!(paths(&parts), ["new", "new/d", "new/d/f", "old/d/f", "old/d", "old"]);
    }

    #[test]
    fn a_change_that_fails_half_way_says_what_was_made() {
        let receipt = |n| Receipt { hash: Hash([n; 32]), hlc: Hlc(0), seq: 0, staged: 0 };
        let parts = ["a", "b", "c"].map(|path| vec![put(path, Kind::File)]).to_vec();
        let mut calls = 0;
        let partly = each(parts, |_| {
            calls += 1;
            if calls == 2 { Err(KvError::Invalid("no".into())) } else { Ok(receipt(calls)) }
        });
        let partly = partly.unwrap_err();
        assert_eq!((partly.made, partly.all, calls), (vec![receipt(1)], 3, 2));
        assert!(matches!(partly.source, KvError::Invalid(_)));
    }

    #[test]
    fn a_change_of_many_keys_is_undone_and_done_again_as_a_whole() {
        let kv = kv();
        let files: Vec<String> = (0..3_000).map(|n| format!("d{}/file{n}", n % 7)).collect();
        let shown = || -> BTreeSet<Vec<u8>> {
            let all = kv.scan(b"", None, 10_000).unwrap();
            all.into_iter().filter(|(_, heads)| heads.lww().is_live()).map(|(path, _)| path).collect()
        };
        let made = kv.submit_all(files.iter().map(|path| put(path, Kind::File)).collect(), Origin::Local).unwrap();
        assert!(made.len() > 1);
        let all = shown();
        assert_eq!(all.len(), 3_000);
        let back = |made: &[Receipt]| {
            let entry = |receipt: &Receipt| kv.log().get(&kv.view().unwrap(), &receipt.hash).unwrap().unwrap();
            let entries: Vec<_> = made.iter().map(entry).collect();
            let undone = kv.undone(&entries, &|_| true).unwrap();
            assert!(undone.kept.is_empty());
            kv.submit_all(undone.change.ops, Origin::Local).unwrap()
        };
        let gone = back(&made);
        assert!(gone.len() > 1 && shown().is_empty());
        assert!(back(&gone).len() > 1);
        assert_eq!(shown(), all);
    }
}

//! What a transaction does to the store: an operation for each key that it touches, and what must still be so for it to do that.

use std::collections::{BTreeMap, BTreeSet};

use super::TxError;
use super::staged::{Item, Source, What};
use crate::replication::database::{DatabaseError, Flow, Read, prefix};
use crate::replication::limits;
use crate::stores::kv::handle::{Kv, KvError};
use crate::stores::kv::machine::{self, KEYS};
use crate::stores::kv::model::{HeadId, Heads, Kind, Node, Op, Value};
use crate::stores::kv::past::{Lens, Moment};
use crate::stores::kv::{path, rows};
use crate::stores::merge::Merge;

/// Keys read at once.
const PAGE: usize = 1_000;

/// A key that is touched.
#[derive(Debug)]
struct Step {
    /// What it becomes; `None`: it is deleted.
    put: Option<Source>,
    /// The heads that it had in the base.
    base: Vec<HeadId>,
}

/// All that a transaction does, each key once.
#[derive(Debug, Default)]
pub(super) struct Plan {
    steps: BTreeMap<Vec<u8>, Step>,
    /// Where no other keys may be than those that are touched: what is deleted with all that is below it, and what becomes a file.
    trees: Vec<Vec<u8>>,
    /// What is there already: directories that were staged only since something is in them.
    directories: BTreeSet<Vec<u8>>,
    /// The bytes of the touched keys' paths.
    paths: usize,
}

fn ids(heads: Option<&Heads>) -> Vec<HeadId> {
    let mut ids: Vec<_> = heads.into_iter().flat_map(Merge::all).map(|head| head.id).collect();
    ids.sort_unstable();
    ids
}

impl Plan {
    /// What the staged `items` do, built upon `base`.
    pub(super) fn new(kv: &Kv, base: &Moment, items: Vec<Item>) -> Result<Self, TxError> {
        let mut plan = Self::default();
        let lens = Lens::At(base.clone());
        let (deletions, puts): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.what == What::Delete);
        let staged: BTreeSet<&[u8]> = puts.iter().map(|item| item.path.as_slice()).collect();
        for Item { path, .. } in deletions {
            plan.delete(kv, base, &lens, path, &staged)?;
        }
        for Item { path, what } in puts.iter().cloned() {
            if let What::Put(source) = what {
                plan.put(kv, base, &lens, path, source)?;
            }
        }
        Ok(plan)
    }

    fn touch(&mut self, kv: &Kv, base: &Moment, path: Vec<u8>, put: Option<Source>) -> Result<(), TxError> {
        self.paths += path.len();
        if self.paths > limits::PAYLOAD {
            // Long before a large tree is read to its end.
            return Err(KvError::TooLarge { size: self.paths, limit: limits::PAYLOAD }.into());
        }
        let base = ids(kv.heads_at(base, &path)?.as_ref());
        self.steps.insert(path, Step { put, base });
        Ok(())
    }

    fn delete(
        &mut self,
        kv: &Kv,
        base: &Moment,
        lens: &Lens,
        path: Vec<u8>,
        staged: &BTreeSet<&[u8]>,
    ) -> Result<(), TxError> {
        if kv.node_through(lens, &path)?.is_none() {
            let path = super::shown(&path);
            return Err(TxError::Staged(format!(
                "there was no '{path}' to delete when the transaction began; remove the staged '{path}.delete'"
            )));
        }
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = kv.scan_through(lens, &path, after.as_deref(), PAGE)?;
            let last = page.len() < PAGE;
            after = page.last().map(|(path, _)| path.clone());
            for (key, _) in page {
                if !staged.contains(key.as_slice()) && !self.steps.contains_key(&key) {
                    self.touch(kv, base, key, None)?;
                }
            }
            if last {
                break;
            }
        }
        self.trees.push(path);
        Ok(())
    }

    fn put(&mut self, kv: &Kv, base: &Moment, lens: &Lens, path: Vec<u8>, source: Source) -> Result<(), TxError> {
        if source.kind == Kind::Directory {
            // One that only keys below it imply goes with them.
            let goes = |tree: &Vec<u8>| path.starts_with(tree) && matches!(path.get(tree.len()), None | Some(b'/'));
            let there = match kv.node(&path)? {
                Some(Node::Directory(head)) => head.is_some() || !self.trees.iter().any(goes),
                Some(Node::File(_) | Node::Symlink(_)) | None => false,
            };
            if there {
                self.directories.insert(path);
                return Ok(());
            }
            return self.touch(kv, base, path, Some(source));
        }
        if matches!(kv.node_through(lens, &path)?, Some(Node::Directory(_))) && !self.clears(kv, lens, &path)? {
            let path = super::shown(&path);
            return Err(TxError::Staged(format!(
                "'{path}' is a directory in the store; to put a file in its place, delete it as well, by an empty file \
                 '{path}.delete'"
            )));
        }
        self.trees.push(path.clone());
        self.touch(kv, base, path, Some(source))
    }

    /// Whether all that was below a directory is deleted.
    fn clears(&self, kv: &Kv, lens: &Lens, path: &[u8]) -> Result<bool, TxError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = kv.scan_through(lens, path, after.as_deref(), PAGE)?;
            let deleted = |key: &Vec<u8>| self.steps.get(key).is_some_and(|step| step.put.is_none());
            if page.iter().any(|(key, _)| key != path && !deleted(key)) {
                return Ok(false);
            }
            if page.len() < PAGE {
                return Ok(true);
            }
            after = page.last().map(|(path, _)| path.clone());
        }
    }

    /// The keys that are not what they were in the base any more, in the order of their paths: others have changed them.
    pub(super) fn moved(&self, read: &impl Read) -> Result<BTreeSet<Vec<u8>>, DatabaseError> {
        let mut moved = BTreeSet::new();
        for (path, step) in &self.steps {
            if ids(machine::heads(read, &path::row(path))?.as_ref()) != step.base {
                moved.insert(path.clone());
            }
        }
        for tree in &self.trees {
            let row = path::row(tree);
            let mut end = Vec::new();
            read.scan(KEYS, prefix(&path::below(&row), &mut end), false, &mut |row, _| {
                let path = path::of_row(row);
                if !self.steps.contains_key(&path) && !self.directories.contains(&path) {
                    moved.insert(path);
                }
                if moved.len() < PAGE { Flow::Continue(()) } else { Flow::Break(()) }
            })?;
        }
        for directory in &self.directories {
            let row = path::row(directory);
            let there = match read.get(KEYS, &row)? {
                Some(value) => matches!(rows::node(&value)?, Some(Node::Directory(_))),
                None => machine::has_below(read, &row)?,
            };
            if !there {
                moved.insert(directory.clone());
            }
        }
        Ok(moved)
    }

    /// The operations. `value` gives a staged file's content.
    pub(super) fn ops(&self, mut value: impl FnMut(&Source) -> Result<Value, TxError>) -> Result<Vec<Op>, TxError> {
        let op = |(path, step): (&Vec<u8>, &Step)| {
            let (path, supersedes) = (path.clone(), step.base.clone());
            Ok(match &step.put {
                None => Op::Delete { path, supersedes },
                Some(source) => {
                    let Source { kind, mode, mtime, .. } = *source;
                    Op::Put { path, supersedes, kind, mode, mtime, value: value(source)? }
                }
            })
        };
        self.steps.iter().map(op).collect()
    }

    /// The keys that are put, and what they become.
    pub(super) fn puts(&self) -> impl Iterator<Item = (&[u8], &Source)> {
        self.steps.iter().filter_map(|(path, step)| Some((path.as_slice(), step.put.as_ref()?)))
    }

    /// The keys that are deleted.
    pub(super) fn deletes(&self) -> impl Iterator<Item = &[u8]> {
        self.steps.iter().filter(|(_, step)| step.put.is_none()).map(|(path, _)| path.as_slice())
    }
}

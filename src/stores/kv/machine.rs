//! The state machine: places each write among the heads of its key, and keeps the indexes that follow from them.

use super::model::{Head, HeadId, Heads, Kind, Node};
use super::wire::{self, Parsed};
use super::{path, rows};
use crate::ids::Hash;
use crate::replication::database::{Flow, Read, Result, Table, Txn, prefix};
use crate::replication::entry::Entry;
use crate::replication::machine::{Change, Effects, StateMachine, What};
use crate::stores::merge::Merge;

pub(super) const KEYS: Table = "keys";
pub(super) const TOMBS: Table = "tombs";
pub(super) const CONFLICTS: Table = "conflicts";
pub(super) const HISTORY: Table = "history";
pub(super) const DANGLING: Table = "dangling";
pub(super) const COUNTS: Table = "counts";

pub(super) const COUNT_KEYS: &[u8] = b"keys";
pub(super) const COUNT_CONFLICTS: &[u8] = b"conflicts";

/// The kv state machine.
///
/// [`Effects::changes`] names every path whose node on a mount changed: also directories that come and go only because
/// of keys below them, and a file that a directory begins or ceases to hide.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl StateMachine for Machine {
    fn kind(&self) -> &'static str {
        "kv"
    }

    fn tables(&self) -> &'static [Table] {
        &[KEYS, TOMBS, CONFLICTS, HISTORY, DANGLING, COUNTS]
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        let header = entry.header();
        let parsed =
            wire::decode(entry).and_then(|payload| wire::parse(payload, header.author, header.seq, header.hlc));
        let writes = match parsed {
            Ok(writes) => writes,
            Err(reason) => return Ok(Effects { noop: Some(reason), ..Effects::default() }),
        };
        let mut applied = Applied { txn, effects: Effects::default(), keys: 0, conflicts: 0 };
        for (place, write) in writes.into_iter().enumerate() {
            #[allow(clippy::cast_possible_truncation, reason = "parsing bounds the number of operations")]
            applied.place(entry, place as u16, write)?;
        }
        applied.finish()
    }

    fn exclude(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Option<Effects>> {
        let header = entry.header();
        let parsed =
            wire::decode(entry).and_then(|payload| wire::parse(payload, header.author, header.seq, header.hlc));
        let Ok(writes) = parsed else { return Ok(Some(Effects::default())) };
        let mut applied = Applied { txn, effects: Effects::default(), keys: 0, conflicts: 0 };
        let mut touched = std::collections::BTreeSet::new();
        for (place, write) in writes.iter().enumerate() {
            #[allow(clippy::cast_possible_truncation, reason = "parsing bounds the number of operations")]
            let id = HeadId { entry: entry.hash(), op: place as u16 };
            let row = path::row(&write.path);
            applied.txn.remove(HISTORY, rows::history_key(&row, header.hlc, &id));
            touched.insert(row);
        }
        for row in touched {
            applied.recompute(&row)?;
        }
        applied.finish().map(Some)
    }
}

/// The heads of the key with this row, deleted or not.
pub(super) fn heads(read: &impl Read, row: &[u8]) -> Result<Option<Heads>> {
    let found = match read.get(KEYS, row)? {
        None => read.get(TOMBS, row)?,
        found => found,
    };
    found.map(|value| rows::decode(&value)).transpose()
}

/// Whether there are visible keys below the directory with this row.
pub(super) fn has_below(read: &impl Read, row: &[u8]) -> Result<bool> {
    read.begins(KEYS, &path::below(row))
}

/// How many of what `name` counts.
pub(super) fn count(read: &impl Read, name: &[u8]) -> Result<u64> {
    match read.get(COUNTS, name)? {
        None => Ok(0),
        Some(value) => value.try_into().map(u64::from_be_bytes).map_err(|_short| rows::corrupt()),
    }
}

/// What a mount shows at a path, as far as changes are told apart.
#[derive(Clone, Copy, PartialEq)]
enum Shown {
    Absent,
    Implied,
    Head(Head),
}

impl Shown {
    fn of(heads: Option<&Heads>, below: bool) -> Self {
        match heads.and_then(Heads::node) {
            Some(Node::File(head) | Node::Symlink(head) | Node::Directory(Some(head))) => Self::Head(head),
            Some(Node::Directory(None)) => Self::Implied,
            None if below => Self::Implied,
            None => Self::Absent,
        }
    }

    fn change(self, after: Self) -> What {
        match (self, after) {
            (Self::Absent, Self::Absent) | (Self::Implied, Self::Implied) => What::Heads,
            (Self::Absent, Self::Implied | Self::Head(_)) => What::Created,
            (Self::Implied | Self::Head(_), Self::Absent) => What::Deleted,
            (Self::Head(before), Self::Head(after)) => {
                if before.kind != after.kind || !before.content.same(&after.content) {
                    What::Modified
                } else if (before.mode, before.mtime) != (after.mode, after.mtime) {
                    What::Attributes
                } else {
                    What::Heads
                }
            }
            (Self::Implied, Self::Head(head)) | (Self::Head(head), Self::Implied) => {
                if head.kind == Kind::Directory {
                    What::Attributes
                } else {
                    What::Modified
                }
            }
        }
    }
}

/// One entry on its way into the state.
struct Applied<'t, 'v> {
    txn: &'t mut Txn<'v>,
    effects: Effects,
    keys: i64,
    conflicts: i64,
}

impl Applied<'_, '_> {
    fn place(&mut self, entry: &Entry, op: u16, write: Parsed) -> Result<()> {
        let row = path::row(&write.path);
        let before = heads(self.txn, &row)?;
        let mut now = before.as_ref().map(|heads| heads.all().to_vec()).unwrap_or_default();
        for (hlc, id) in write.cites.iter().copied() {
            if let Some(place) = now.iter().position(|head| (head.hlc, head.id) == (hlc, id)) {
                now.swap_remove(place);
                continue;
            }
            let cited = rows::history_key(&row, hlc, &id);
            if self.txn.get(HISTORY, &cited)?.is_none() {
                self.txn.put(DANGLING, cited, []);
            }
        }
        let head = write.head(entry, op);
        let own = rows::history_key(&row, head.hlc, &head.id);
        if self.txn.get(DANGLING, &own)?.is_some() {
            self.txn.remove(DANGLING, own.as_slice());
        } else {
            now.push(head);
        }
        self.txn.put(HISTORY, own, rows::encode_version(&head, &write.cites));
        if let super::Content::Blob { hash, size } = head.content {
            self.want(hash, size);
        }
        self.settle(&row, before.as_ref(), now)
    }

    /// Derives a key's heads from its history.
    fn recompute(&mut self, row: &[u8]) -> Result<()> {
        let start = rows::history_prefix(row);
        let mut end = Vec::new();
        let mut versions = Vec::new();
        self.txn.scan(HISTORY, prefix(&start, &mut end), false, &mut |key, value| {
            versions.push((key.to_vec(), value.to_vec()));
            Flow::Continue(())
        })?;
        let mut dangling = Vec::new();
        self.txn.scan(DANGLING, prefix(&start, &mut end), false, &mut |key, _| {
            dangling.push(key.to_vec());
            Flow::Continue(())
        })?;
        dangling.iter().for_each(|key| self.txn.remove(DANGLING, key.as_slice()));
        let mut heads_by_key = std::collections::BTreeMap::new();
        let mut cited = std::collections::BTreeSet::new();
        for (key, value) in versions {
            let version = rows::decode_version(&key[start.len()..], &value)?;
            cited.extend(version.supersedes.iter().map(|(hlc, id)| rows::history_key(row, *hlc, id)));
            heads_by_key.insert(key, version.head);
        }
        for key in cited {
            if heads_by_key.remove(&key).is_none() {
                self.txn.put(DANGLING, key, []);
            }
        }
        let before = heads(self.txn, row)?;
        self.settle(row, before.as_ref(), heads_by_key.into_values().collect())
    }

    fn want(&mut self, hash: Hash, size: u64) {
        if !self.effects.blobs.contains(&(hash, size)) {
            self.effects.blobs.push((hash, size));
        }
    }

    /// Makes `now` the heads of the key, and everything follow that depends on it. Without any, the key has never been.
    fn settle(&mut self, row: &[u8], before: Option<&Heads>, now: Vec<Head>) -> Result<()> {
        let live_before = before.is_some_and(|heads| heads.visible().is_some());
        let winner = now.iter().max_by(|a, b| a.order(b)).map(|winner| winner.kind);
        let live = winner.is_some_and(|kind| kind != Kind::Deleted);
        // Of a file that stays one, the row knows whether keys lie below it.
        let below = match before.and_then(Heads::visible) {
            Some(head) if live && head.kind != Kind::Directory => before.is_some_and(Heads::is_shadowed),
            Some(head) if live && head.kind == Kind::Directory && winner == Some(Kind::Directory) => false,
            Some(_) | None => has_below(self.txn, row)?,
        };
        let shadowed = live && winner != Some(Kind::Directory) && below;
        let after = Heads::new(now, shadowed);
        if live && !live_before && !below {
            self.above_created(row)?;
        }
        self.write(row, before, after.as_ref());
        if live_before && !live && !below {
            self.above_deleted(row)?;
        }
        let what = Shown::of(before, below).change(Shown::of(after.as_ref(), below));
        self.effects.changes.push(Change { key: path::of_row(row), what });
        Ok(())
    }

    fn write(&mut self, row: &[u8], before: Option<&Heads>, after: Option<&Heads>) {
        let is_live = |heads: &Heads| heads.visible().is_some();
        let table = |heads: &Heads| if is_live(heads) { KEYS } else { TOMBS };
        if let Some(before) = before {
            if after.map(table) != Some(table(before)) {
                self.txn.remove(table(before), row);
            }
            self.keys -= i64::from(is_live(before));
        }
        if let Some(after) = after {
            self.keys += i64::from(is_live(after));
            self.txn.put(table(after), row, rows::encode(after));
        }
        match (before.is_some_and(Heads::is_conflict), after.is_some_and(Heads::is_conflict)) {
            (false, true) => {
                self.txn.put(CONFLICTS, row, []);
                self.conflicts += 1;
            }
            (true, false) => {
                self.txn.remove(CONFLICTS, row);
                self.conflicts -= 1;
            }
            (true, true) | (false, false) => {}
        }
    }

    /// The first key below its ancestors is about to be there: up to the first that holds something already,
    /// directories appear, and a file in their place is hidden.
    fn above_created(&mut self, row: &[u8]) -> Result<()> {
        let mut row = row;
        while let Some(above) = path::parent(row) {
            if let Some(value) = self.txn.get(KEYS, above)? {
                let before = rows::decode(&value)?;
                return self.shadow(above, &before, true);
            }
            if has_below(self.txn, above)? {
                return Ok(());
            }
            self.effects.changes.push(Change { key: path::of_row(above), what: What::Created });
            row = above;
        }
        Ok(())
    }

    /// A key is gone: directories that only it implied go too, and a file that they hid shows again.
    fn above_deleted(&mut self, row: &[u8]) -> Result<()> {
        let mut row = row;
        while let Some(above) = path::parent(row) {
            if let Some(value) = self.txn.get(KEYS, above)? {
                let before = rows::decode(&value)?;
                let below = before.is_shadowed() && has_below(self.txn, above)?;
                return self.shadow(above, &before, below);
            }
            if has_below(self.txn, above)? {
                return Ok(());
            }
            self.effects.changes.push(Change { key: path::of_row(above), what: What::Deleted });
            row = above;
        }
        Ok(())
    }

    fn shadow(&mut self, row: &[u8], before: &Heads, below: bool) -> Result<()> {
        let shadowed = below && before.lww().kind != Kind::Directory;
        if shadowed == before.is_shadowed() {
            return Ok(());
        }
        let after = Heads::new(before.all().to_vec(), shadowed).ok_or_else(rows::corrupt)?;
        self.write(row, Some(before), Some(&after));
        let what = Shown::of(Some(before), true).change(Shown::of(Some(&after), true));
        self.effects.changes.push(Change { key: path::of_row(row), what });
        Ok(())
    }

    fn finish(self) -> Result<Effects> {
        for (name, delta) in [(COUNT_KEYS, self.keys), (COUNT_CONFLICTS, self.conflicts)] {
            if delta == 0 {
                continue;
            }
            match count(self.txn, name)?.saturating_add_signed(delta) {
                0 => self.txn.remove(COUNTS, name),
                count => self.txn.put(COUNTS, name, count.to_be_bytes()),
            }
        }
        Ok(self.effects)
    }
}

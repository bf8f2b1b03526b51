//! Deriving the state anew from the entries.

use std::ops::Bound;

use super::indexes::number;
use super::{ENTRIES, Log, META, NOOPS};
use crate::ids::Hash;
use crate::replication::database::{Flow, Read, Result, Table};
use crate::replication::entry::Entry;

pub(super) const REBUILDING: &[u8] = b"rebuilding";

/// Entries applied per staged set during a rebuild.
const REBUILD_BATCH: usize = 4_096;

impl Log {
    /// Drops the state and derives it again from the entries. A crash on the way starts it anew at the next opening.
    ///
    /// # Errors
    /// If the store can't be read or takes no writes.
    pub fn rebuild(&self) -> Result<()> {
        self.with_head(|_| self.rebuild_locked())
    }

    pub(super) fn rebuild_locked(&self) -> Result<()> {
        self.stage(|txn| {
            txn.put(META, REBUILDING, [1]);
            Ok(())
        })?;
        for table in self.machine.tables().iter().copied().chain([NOOPS]) {
            self.clear(table)?;
        }
        let mut from = 0;
        while let Some(next) = self.replay(from)? {
            from = next;
        }
        Ok(())
    }

    pub(super) fn clear(&self, table: Table) -> Result<()> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let start = keys.last().map_or(Bound::Unbounded, |last| Bound::Excluded(last.as_slice()));
            let mut next = Vec::new();
            self.database.view()?.scan(table, (start, Bound::Unbounded), false, &mut |key, _| {
                next.push(key.to_vec());
                if next.len() < REBUILD_BATCH { Flow::Continue(()) } else { Flow::Break(()) }
            })?;
            if next.is_empty() {
                return Ok(());
            }
            keys = next;
            self.stage(|txn| {
                keys.iter().for_each(|key| txn.remove(table, key.as_slice()));
                Ok(())
            })?;
        }
    }

    /// Applies a batch of entries from the local number `from` on; gives the number of the next, if there is one.
    fn replay(&self, from: u64) -> Result<Option<u64>> {
        let mut rows = Vec::new();
        let mut next = from;
        let start = from.to_be_bytes();
        self.database.view()?.scan(
            ENTRIES,
            (Bound::Included(&start), Bound::Unbounded),
            false,
            &mut |key, value| {
                next = number(key).map_or(next, |last| last + 1);
                rows.push(value.to_vec());
                if rows.len() < REBUILD_BATCH { Flow::Continue(()) } else { Flow::Break(()) }
            },
        )?;
        let done = rows.len() < REBUILD_BATCH;
        self.stage(|txn| {
            for row in rows {
                let entry = Entry::decode(row.into())
                    .map_err(|error| self.damaged(&format!("an entry does not read back: {error}")))?;
                self.apply(txn, &entry)?;
            }
            if done {
                txn.remove(META, REBUILDING);
            }
            Ok(())
        })?;
        Ok((!done).then_some(next))
    }

    /// A digest over every row of the state: equal on two nodes iff their states are, byte for byte.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn state_digest(&self) -> Result<Hash> {
        self.digest(&self.database.view()?)
    }

    pub(super) fn digest(&self, view: &impl Read) -> Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        for table in self.machine.tables().iter().copied().chain([NOOPS]) {
            hasher.update(&(table.len() as u64).to_be_bytes()).update(table.as_bytes());
            view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
                hasher.update(&(key.len() as u64).to_be_bytes()).update(key);
                hasher.update(&(value.len() as u64).to_be_bytes()).update(value);
                Flow::Continue(())
            })?;
        }
        Ok(hasher.finalize().into())
    }
}

//! Finding entries: by hash, by place in a chain, in the order of their stamps.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::{CHAINS, ENTRIES, HASHES, Log, ORDER, TIPS};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Flow, Read, Result, View, prefix};
use crate::replication::entry::Entry;

/// The last entry of an author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Its number.
    pub seq: u64,
    /// Its stamp.
    pub hlc: Hlc,
    /// Its hash.
    pub hash: Hash,
}

impl Tip {
    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.seq.to_be_bytes()[..], &self.hlc.0.to_be_bytes(), &self.hash.0].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (seq, rest) = bytes.split_first_chunk()?;
        let (hlc, rest) = rest.split_first_chunk()?;
        Some(Self { seq: u64::from_be_bytes(*seq), hlc: Hlc(u64::from_be_bytes(*hlc)), hash: Hash::from_slice(rest)? })
    }
}

pub(super) fn chain_key(author: &NodeId, seq: u64) -> Vec<u8> {
    [&author.0[..], &seq.to_be_bytes()].concat()
}

pub(super) fn order_key(hlc: Hlc, hash: &Hash) -> Vec<u8> {
    [&hlc.0.to_be_bytes()[..], &hash.0].concat()
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

impl Log {
    pub(super) fn tip_in(&self, read: &impl Read, author: &NodeId) -> Result<Option<Tip>> {
        let row = read.get(TIPS, &author.0)?;
        row.map(|row| Tip::decode(&row).ok_or_else(|| self.damaged("a tip does not read back"))).transpose()
    }

    pub(super) fn stamp_in(&self, read: &impl Read, hash: &Hash) -> Result<Option<Hlc>> {
        let row = read.get(HASHES, &hash.0[..16])?;
        Ok(row.and_then(|row| row.last_chunk().map(|hlc| Hlc(u64::from_be_bytes(*hlc)))))
    }

    pub(super) fn entry_in(&self, read: &impl Read, local: &[u8]) -> Result<Entry> {
        let bytes = read.get(ENTRIES, local)?.ok_or_else(|| self.damaged("an entry is not there"))?;
        Entry::decode(bytes.into()).map_err(|error| self.damaged(&format!("an entry does not read back: {error}")))
    }

    pub(super) fn at_in(&self, read: &impl Read, author: &NodeId, seq: u64) -> Result<Option<Entry>> {
        read.get(CHAINS, &chain_key(author, seq))?.map(|local| self.entry_in(read, &local)).transpose()
    }

    /// The entry of this author and number, durable or not.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn at(&self, view: &View<'_>, author: &NodeId, seq: u64) -> Result<Option<Entry>> {
        self.at_in(view, author, seq)
    }

    /// The entry of this hash.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn get(&self, view: &View<'_>, hash: &Hash) -> Result<Option<Entry>> {
        self.get_in(view, hash)
    }

    pub(super) fn get_in(&self, read: &impl Read, hash: &Hash) -> Result<Option<Entry>> {
        let Some(row) = read.get(HASHES, &hash.0[..16])? else { return Ok(None) };
        let entry = self.entry_in(read, &row[..8.min(row.len())])?;
        Ok((entry.hash() == *hash).then_some(entry))
    }

    /// The last entry of an author's chain.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn tip(&self, view: &View<'_>, author: &NodeId) -> Result<Option<Tip>> {
        self.tip_in(view, author)
    }

    /// The entries whose hashes begin with these hexadecimal digits, at most `limit` of them; none if it is no such text.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn begin_with(&self, view: &View<'_>, digits: &str, limit: usize) -> Result<Vec<Entry>> {
        if !digits.is_ascii() {
            return Ok(Vec::new());
        }
        let whole = digits.get(..digits.len().min(32) & !1).unwrap_or_default();
        let Ok(start) = data_encoding::HEXLOWER_PERMISSIVE.decode(whole.as_bytes()) else { return Ok(Vec::new()) };
        let digits = digits.to_ascii_lowercase();
        let mut end = Vec::new();
        let mut found = Vec::new();
        let mut failed = Ok(());
        view.scan(HASHES, prefix(&start, &mut end), false, &mut |_, row| {
            match self.entry_in(view, &row[..8.min(row.len())]) {
                Ok(entry) if entry.hash().to_string().starts_with(&digits) => found.push(entry),
                Ok(_) => {}
                Err(error) => failed = Err(error),
            }
            if failed.is_ok() && found.len() < limit { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        failed.map(|()| found)
    }

    /// The last entry of each author's chain.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn tips(&self, view: &View<'_>) -> Result<BTreeMap<NodeId, Tip>> {
        self.tips_in(view)
    }

    pub(super) fn tips_in(&self, read: &impl Read) -> Result<BTreeMap<NodeId, Tip>> {
        let mut tips = BTreeMap::new();
        read.scan(TIPS, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            if let (Some(author), Some(tip)) = (NodeId::from_slice(key), Tip::decode(value)) {
                tips.insert(author, tip);
            }
            Flow::Continue(())
        })?;
        Ok(tips)
    }

    /// The entries of an author's chain from number `from` on, at most `limit` of them.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn chain(&self, view: &View<'_>, author: &NodeId, from: u64, limit: usize) -> Result<Vec<Entry>> {
        let mut locals = Vec::new();
        let mut end = Vec::new();
        let start = chain_key(author, from);
        let (_, end) = prefix(&author.0, &mut end);
        view.scan(CHAINS, (Bound::Included(&start), end), false, &mut |_, local| {
            if locals.len() < limit {
                locals.push(local.to_vec());
            }
            if locals.len() < limit { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        let mut entries = Vec::with_capacity(locals.len());
        for local in locals {
            entries.push(self.entry_in(view, &local)?);
        }
        Ok(entries)
    }

    /// Calls `visit` with (hlc, hash) of all entries from `from` on, in that order: a linear extension of causality.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn order(
        &self,
        view: &View<'_>,
        from: (Hlc, Hash),
        reverse: bool,
        visit: &mut dyn FnMut(Hlc, Hash) -> Flow,
    ) -> Result<()> {
        let start = order_key(from.0, &from.1);
        view.scan(ORDER, (Bound::Included(&start), Bound::Unbounded), reverse, &mut |key, _| match (
            number(key),
            key.get(8..).and_then(Hash::from_slice),
        ) {
            (Some(hlc), Some(hash)) => visit(Hlc(hlc), hash),
            _ => Flow::Continue(()),
        })
    }
}

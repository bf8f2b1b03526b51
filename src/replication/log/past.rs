//! The causal past of an entry, found without walking it: of each author, how far its chain had come.
//!
//! Chains are lines, so one number an author says it all. Each author's every [`EVERY`]th entry has its past written down; that of
//! another entry is gathered from the entries since, at most [`EVERY`] an author. An author in a past takes 40 bytes, so with `n`
//! authors the table costs `40 n / EVERY` bytes an entry.

use std::collections::{BTreeMap, BTreeSet};

use super::head::Head;
use super::indexes::chain_key;
use super::{HASHES, Log, SEEN};
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Read, Result, Txn, View};
use crate::replication::entry::{Entry, Header};

/// The past of every so manyth entry of a chain is written down.
const EVERY: u64 = 64;

/// A set of entries that holds the past of each: of each author, those up to a number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past(BTreeMap<NodeId, u64>);

impl Past {
    /// Whether the entry of this author and number is in it.
    #[must_use]
    pub fn has(&self, author: &NodeId, seq: u64) -> bool {
        self.0.get(author).is_some_and(|last| seq <= *last)
    }

    /// The authors, and the number of the last entry of each.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        self.0.iter().map(|(author, seq)| (author, *seq))
    }

    /// The same without the entry of this author and number and what the author wrote after it.
    #[must_use]
    pub fn before(mut self, author: &NodeId, seq: u64) -> Self {
        if seq == 0 {
            self.0.remove(author);
        } else if let Some(last) = self.0.get_mut(author) {
            *last = (seq - 1).min(*last);
        }
        self
    }

    fn raise(&mut self, author: NodeId, seq: u64) {
        let last = self.0.entry(author).or_insert(seq);
        *last = seq.max(*last);
    }

    fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(author, seq)| chain_key(author, *seq)).collect()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (places, []) = row.as_chunks::<40>() else { return None };
        let place = |place: &[u8; 40]| {
            Some((NodeId::from_slice(&place[..32])?, u64::from_be_bytes(place[32..].try_into().ok()?)))
        };
        places.iter().map(place).collect::<Option<_>>().map(Self)
    }
}

const fn is_written(seq: u64) -> bool {
    seq % EVERY == EVERY - 1
}

impl FromIterator<(NodeId, u64)> for Past {
    fn from_iter<I: IntoIterator<Item = (NodeId, u64)>>(places: I) -> Self {
        Self(places.into_iter().collect())
    }
}

impl Log {
    /// All that is here: the causal past of an entry that is signed now, but for itself.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn present(&self, view: &View<'_>) -> Result<Past> {
        Ok(self.tips_in(view)?.into_iter().map(|(author, tip)| (author, tip.seq)).collect())
    }

    /// The causal past of an entry, itself included; `None` if it is not here.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn past(&self, view: &View<'_>, hash: &Hash) -> Result<Option<Past>> {
        let Some(entry) = self.get(view, hash)? else { return Ok(None) };
        let header = entry.header();
        if is_written(header.seq)
            && let Some(past) = self.written(view, &header.author, header.seq)?
        {
            return Ok(Some(past));
        }
        self.gather(view, header).map(Some)
    }

    /// Writes down the past of an entry that is about to join `head`, if it is one of those.
    pub(super) fn note_past(&self, txn: &mut Txn<'_>, head: &Head, entry: &Entry) -> Result<()> {
        let header = entry.header();
        if !is_written(header.seq) {
            return Ok(());
        }
        // Who names the whole frontier has seen all: so it is of nearly every entry where it is signed.
        let parents: Vec<Hash> = header.parents().collect();
        let past = if head.frontier.keys().all(|tip| parents.contains(tip)) {
            let mut past = Past::default();
            for (author, tip) in self.tips_in(txn)? {
                past.raise(author, tip.seq);
            }
            past.raise(header.author, header.seq);
            past
        } else {
            self.gather(txn, header)?
        };
        txn.put(SEEN, chain_key(&header.author, header.seq), past.encode());
        Ok(())
    }

    fn written(&self, read: &impl Read, author: &NodeId, seq: u64) -> Result<Option<Past>> {
        let row = read.get(SEEN, &chain_key(author, seq))?;
        row.map(|row| Past::decode(&row).ok_or_else(|| self.damaged("an entry's past does not read back"))).transpose()
    }

    /// Walks back along each chain to where its past is written down.
    fn gather(&self, read: &impl Read, header: &Header) -> Result<Past> {
        let mut past = Past::default();
        past.raise(header.author, header.seq);
        // Up to where each chain's own past is in `past`, or waits in `parents`.
        let mut closed: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut parents: Vec<Hash> = header.parents().collect();
        // Excluded ones are in no past, and what they name is.
        let mut excluded = BTreeSet::new();
        while let Some(parent) = parents.pop() {
            let Some(local) = read.get(HASHES, &parent.0[..16])? else {
                if excluded.insert(parent)
                    && let Some(entry) = self.aside(read, &parent)?
                {
                    parents.extend(entry.header().parents());
                }
                continue;
            };
            let mut entry = self.entry_in(read, &local[..8.min(local.len())])?;
            let (author, seq) = (entry.header().author, entry.header().seq);
            past.raise(author, seq);
            let floor = closed.get(&author).copied();
            if floor.is_some_and(|floor| seq <= floor) {
                continue;
            }
            closed.insert(author, seq);
            loop {
                let at = entry.header().seq;
                if is_written(at)
                    && let Some(known) = self.written(read, &author, at)?
                {
                    for (author, seq) in known.iter() {
                        past.raise(*author, seq);
                        let last = closed.entry(*author).or_insert(seq);
                        *last = seq.max(*last);
                    }
                    break;
                }
                parents.extend(&entry.header().deps);
                if at == 0 || floor.is_some_and(|floor| at <= floor + 1) {
                    break;
                }
                match self.at_in(read, &author, at - 1)? {
                    Some(before) => entry = before,
                    None => break,
                }
            }
        }
        Ok(past)
    }
}

//! Whether an entry counts.

use super::Log;
use super::head::Head;
use crate::clock::Millis;
use crate::ids::{Hash, StoreId};
use crate::replication::database::{Result, Txn};
use crate::replication::entry::{Entry, Malformed};
use crate::replication::limits;

/// Why an entry of another node does not count. A peer's fault: dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The bytes are no entry.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The signature is not the author's.
    #[error("the signature of entry {0} is not its author's")]
    Signature(Hash),
    /// It belongs to another store.
    #[error("entry {0} belongs to another store")]
    Store(Hash),
    /// Another entry has its author and number, or its prev.
    #[error("entry {entry} forks its author's chain: {other} has the same place")]
    Fork {
        /// The later one to come.
        entry: Hash,
        /// The one that is included.
        other: Hash,
    },
    /// Its stamp does not exceed that of something before it.
    #[error("the stamp of entry {0} does not exceed its parents'")]
    Hlc(Hash),
    /// Its prev is not the author's entry before it.
    #[error("entry {0} does not follow its author's chain")]
    Chain(Hash),
}

/// What became of an entry that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts now.
    Included,
    /// It was here.
    Duplicate,
    /// It waits for these entries.
    Missing(Vec<Hash>),
    /// It waits until its author becomes known.
    UnknownAuthor,
    /// It is stamped too far ahead and waits until then.
    Early(Millis),
    /// Its author may not write it, as things stand: it is kept aside.
    Excluded,
    /// It never counts.
    Rejected(Rejected),
}

impl Log {
    pub(super) fn judge(&self, txn: &Txn<'_>, head: &Head, entry: &Entry) -> Result<Verdict> {
        let header = entry.header();
        let hash = entry.hash();
        let genesis = self.store.0 == hash.0 && header.store == StoreId::UNBORN;
        if header.store != self.store && !genesis {
            return Ok(Verdict::Rejected(Rejected::Store(hash)));
        }
        // Of an author with a cut: whether this may be in its ancestry.
        let mut cut = None;
        if !genesis {
            let membership = self.membership.load();
            if !membership.knows(&header.author) {
                return Ok(Verdict::UnknownAuthor);
            }
            if self.machine.kind() != "root" {
                cut = membership
                    .members
                    .get(&header.author)
                    .filter(|member| member.cut.is_some())
                    .map(|member| member.counts(&self.store, header.seq, &hash));
            }
            if cut == Some(false) {
                return self.judge_excluded(txn, entry);
            }
        }
        let tip = self.tip_in(txn, &header.author)?;
        let next = tip.map_or(0, |tip| tip.seq + 1);
        if header.seq < next {
            let other = self.at_in(txn, &header.author, header.seq)?;
            let other = other.ok_or_else(|| self.damaged("a chain has a gap"))?.hash();
            return Ok(match other == hash {
                true => Verdict::Duplicate,
                false if self.aside_stamp(txn, &hash)?.is_some() => Verdict::Duplicate,
                false => Verdict::Rejected(Rejected::Fork { entry: hash, other }),
            });
        }
        // The hash that the store is named by vouches for genesis, so its stamp need not be trusted.
        if !genesis && header.hlc.millis() > self.clock.now().after(limits::CLOCK_AHEAD) {
            let due = header.hlc.millis().0.saturating_sub(u64::try_from(limits::CLOCK_AHEAD.as_millis()).unwrap_or(0));
            return Ok(Verdict::Early(Millis(due)));
        }
        let mut missing = Vec::new();
        for parent in header.parents() {
            match head
                .frontier
                .get(&parent)
                .copied()
                .map_or_else(|| self.present_stamp(txn, &parent), |hlc| Ok(Some(hlc)))?
            {
                None => missing.push(parent),
                Some(hlc) if hlc >= header.hlc => return Ok(Verdict::Rejected(Rejected::Hlc(hash))),
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            return Ok(Verdict::Missing(missing));
        }
        if header.seq != next || header.prev != tip.map(|tip| tip.hash) {
            let prev_aside = match header.prev {
                Some(prev) => self.aside_stamp(txn, &prev)?.is_some(),
                None => false,
            };
            if cut.is_some() || prev_aside {
                // It goes on from what is aside: from a branch of which the cut's entry will tell whether it counts, or from one
                // that counts again and waits for a parent.
                return Ok(Verdict::Excluded);
            }
            return Ok(Verdict::Rejected(Rejected::Chain(hash)));
        }
        Ok(Verdict::Included)
    }

    /// An excluded entry is kept if it follows its chain, so that who asks for one gets all below it in turn.
    fn judge_excluded(&self, txn: &Txn<'_>, entry: &Entry) -> Result<Verdict> {
        if self.aside_stamp(txn, &entry.hash())?.is_some() {
            return Ok(Verdict::Duplicate);
        }
        match entry.header().prev {
            Some(prev) if self.present_stamp(txn, &prev)?.is_none() => Ok(Verdict::Missing(vec![prev])),
            Some(_) | None => Ok(Verdict::Excluded),
        }
    }

    /// The stamp of an entry that is here, counted or not.
    fn present_stamp(&self, txn: &Txn<'_>, hash: &Hash) -> Result<Option<crate::clock::Hlc>> {
        match self.stamp_in(txn, hash)? {
            None => self.aside_stamp(txn, hash),
            found => Ok(found),
        }
    }
}

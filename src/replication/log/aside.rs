//! Entries that do not count: those of an author beyond the cut that ended its right to write, and those of the branch of a
//! fork that lost. They are no part of the state, of fingerprints or of what is told to peers. They are kept since entries
//! of others may name them: for these an excluded entry is present, and whoever lacks it can ask for it by its hash.
//!
//! Which entries count is a function of the membership alone: of an author without a cut all, in the order of its chain; of
//! one with a cut the ancestry of the cut's entry. [`Log::align`] brings the log in line after the membership has changed.

use std::ops::Bound;

use super::head::Head;
use super::indexes::{Tip, chain_key, number, order_key};
use super::{ASIDE, ASIDES, CHAINS, ENTRIES, HASHES, Log, META, NOOPS, ORDER, Origin, SEEN, TIPS, Verdict, rebuild};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Flow, Read, Result, Txn, View, prefix};
use crate::replication::entry::{Entry, Header};
use crate::replication::limits;
use crate::replication::machine::Effects;

/// Says that entries were taken out, so that local numbers may have gaps.
pub(super) const EXCLUDED: &[u8] = b"excluded";

const BYTES: &[u8] = b"aside/";

/// What became of an alignment, to be told when it is staged.
#[derive(Default)]
struct Aligned {
    told: Vec<(Entry, Effects, bool)>,
    rebuild: bool,
}

pub(super) fn aside_key(author: &NodeId, seq: u64, hash: &Hash) -> Vec<u8> {
    [&author.0[..], &seq.to_be_bytes(), &hash.0].concat()
}

/// The row of the index.
pub(super) fn aside_row(header: &Header) -> Vec<u8> {
    [&header.hlc.0.to_be_bytes()[..], &header.author.0, &header.seq.to_be_bytes()].concat()
}

impl Log {
    /// Keeps an entry aside. False if there is no room for more of its author.
    pub(super) fn put_aside(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<bool> {
        let (header, hash) = (entry.header(), entry.hash());
        if self.aside_stamp(txn, &hash)?.is_some() {
            return Ok(true);
        }
        // What was ever put aside: that some of it may be taken out again is not counted off.
        let name = [BYTES, &header.author.0[..]].concat();
        let before = txn.get(META, &name)?.as_deref().and_then(number).unwrap_or(0);
        let bytes = before + entry.bytes().len() as u64;
        if bytes > limits::ASIDE_BYTES {
            return Ok(false);
        }
        txn.put(META, name, bytes.to_be_bytes());
        self.move_aside(txn, entry, hash);
        Ok(true)
    }

    fn move_aside(&self, txn: &mut Txn<'_>, entry: &Entry, hash: Hash) {
        let header = entry.header();
        txn.put(ASIDE, aside_key(&header.author, header.seq, &hash), &entry.bytes()[..]);
        txn.put(ASIDES, hash.0, aside_row(header));
    }

    /// Takes an entry from aside, if it is there.
    pub(super) fn take_from_aside(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<()> {
        let (header, hash) = (entry.header(), entry.hash());
        if self.aside_stamp(txn, &hash)?.is_some() {
            txn.remove(ASIDE, aside_key(&header.author, header.seq, &hash));
            txn.remove(ASIDES, hash.0);
        }
        Ok(())
    }

    /// The stamp of an entry that is aside.
    pub(super) fn aside_stamp(&self, read: &impl Read, hash: &Hash) -> Result<Option<Hlc>> {
        Ok(read.get(ASIDES, &hash.0)?.as_deref().and_then(number).map(Hlc))
    }

    pub(super) fn aside(&self, read: &impl Read, hash: &Hash) -> Result<Option<Entry>> {
        let Some(row) = read.get(ASIDES, &hash.0)? else { return Ok(None) };
        let key = [row.get(8..).unwrap_or_default(), &hash.0].concat();
        let bytes = read.get(ASIDE, &key)?.ok_or_else(|| self.damaged("an excluded entry is not there"))?;
        let entry = Entry::decode(bytes.into());
        entry.map(Some).map_err(|error| self.damaged(&format!("an excluded entry does not read back: {error}")))
    }

    /// The entries of an author that are aside, with this number.
    pub(super) fn asides(&self, read: &impl Read, author: &NodeId, seq: u64) -> Result<Vec<Entry>> {
        let mut rows = Vec::new();
        let mut end = Vec::new();
        read.scan(ASIDE, prefix(&chain_key(author, seq), &mut end), false, &mut |_, bytes| {
            rows.push(bytes.to_vec());
            Flow::Continue(())
        })?;
        let entry = |bytes: Vec<u8>| Entry::decode(bytes.into());
        let entries: std::result::Result<Vec<_>, _> = rows.into_iter().map(entry).collect();
        entries.map_err(|error| self.damaged(&format!("an excluded entry does not read back: {error}")))
    }

    /// The entry of this hash, whether it counts or is kept aside.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn kept(&self, view: &View<'_>, hash: &Hash) -> Result<Option<Entry>> {
        match self.get(view, hash)? {
            None => self.aside(view, hash),
            found => Ok(found),
        }
    }

    /// An entry of this author and number that is kept aside: what a later entry, which counts, may refer to.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn aside_at(&self, view: &View<'_>, author: &NodeId, seq: u64) -> Result<Option<Entry>> {
        Ok(self.asides(view, author, seq)?.into_iter().next())
    }

    /// How many entries are kept aside.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn excluded(&self, view: &View<'_>) -> Result<u64> {
        let mut count = 0;
        view.scan(ASIDES, (Bound::Unbounded, Bound::Unbounded), false, &mut |_, _| {
            count += 1;
            Flow::Continue(())
        })?;
        Ok(count)
    }

    /// Brings the log in line with the membership: what does not count any more is excluded, what counts again is taken from
    /// aside. To be called when the membership has changed. Says whether anything changed.
    ///
    /// # Errors
    /// If the store can't be read or takes no writes.
    pub fn align(&self) -> Result<bool> {
        if self.machine.kind() == "root" {
            return Ok(false);
        }
        self.database.ready()?;
        self.with_head(|head| self.align_locked(head))
    }

    pub(super) fn align_locked(&self, head: &mut Head) -> Result<bool> {
        let view = self.database.view()?;
        let mut txn = Txn::new(&view);
        let mut aligned = Aligned::default();
        head.held = false;
        for author in self.membership.load().members.keys() {
            self.align_author(&mut txn, head, author, &mut aligned)?;
        }
        if aligned.told.is_empty() {
            return Ok(false);
        }
        if aligned.rebuild {
            txn.put(META, rebuild::REBUILDING, [1]);
        }
        head.write(&mut txn);
        let writes = txn.finish();
        drop(view);
        let rebuild = aligned.rebuild;
        self.finish_aligned(writes, aligned.told)?;
        if rebuild {
            self.rebuild_locked()?;
        }
        Ok(true)
    }

    fn align_author(&self, txn: &mut Txn<'_>, head: &mut Head, author: &NodeId, aligned: &mut Aligned) -> Result<()> {
        let cut = self.membership.load().cut(author, &self.store);
        let tip = self.tip_in(txn, author)?;
        // The way from the cut's entry down to what is included, as far as it is aside.
        let mut way = Vec::new();
        let mut keep = match (cut, tip) {
            (Some(None), _) => Some(0),
            (Some(Some((seq, hash))), Some(tip)) if tip.seq >= seq || self.aside_stamp(txn, &hash)?.is_some() => {
                match self.at_in(txn, author, seq)? {
                    Some(here) if here.hash() == hash => Some(seq + 1),
                    Some(_) | None => {
                        let fork = self.way(txn, author, hash, &mut way)?;
                        fork.or((tip.seq >= seq).then_some(seq))
                    }
                }
            }
            _ => None,
        };
        if let (Some(from), Some(tip)) = (keep.take(), tip) {
            for seq in (from..=tip.seq).rev() {
                self.exclude(txn, head, author, seq, aligned)?;
            }
        }
        self.promote(txn, head, author, &way, aligned)
    }

    /// Goes from an entry that is aside back along its chain. Gives the number from which the included chain parts from it,
    /// if all between is here; `way` has the entries' hashes, the last first.
    fn way(&self, txn: &Txn<'_>, author: &NodeId, from: Hash, way: &mut Vec<Hash>) -> Result<Option<u64>> {
        let mut next = from;
        while let Some(entry) = self.aside(txn, &next)?.filter(|entry| entry.header().author == *author) {
            way.push(next);
            let header = entry.header();
            let Some(prev) = header.prev else { return Ok(Some(0)) };
            if self.at_in(txn, author, header.seq - 1)?.is_some_and(|here| here.hash() == prev) {
                return Ok(Some(header.seq));
            }
            next = prev;
        }
        way.clear();
        Ok(None)
    }

    /// Takes the last entry of a chain out.
    fn exclude(
        &self,
        txn: &mut Txn<'_>,
        head: &mut Head,
        author: &NodeId,
        seq: u64,
        aligned: &mut Aligned,
    ) -> Result<()> {
        let key = chain_key(author, seq);
        let local = txn.get(CHAINS, &key)?.ok_or_else(|| self.damaged("a chain has a gap"))?;
        let entry = self.entry_in(txn, &local)?;
        let (header, hash) = (entry.header(), entry.hash());
        match self.machine.exclude(txn, &entry)? {
            Some(effects) => aligned.told.push((entry.clone(), effects, true)),
            None => {
                aligned.rebuild = true;
                aligned.told.push((entry.clone(), Effects::default(), true));
            }
        }
        self.move_aside(txn, &entry, hash);
        txn.remove(ENTRIES, local);
        txn.remove(HASHES, &hash.0[..16]);
        txn.remove(CHAINS, key.as_slice());
        txn.remove(SEEN, key);
        txn.remove(ORDER, order_key(header.hlc, &hash));
        head.ranges.remove(txn, header.hlc, &hash)?;
        txn.remove(NOOPS, hash.0);
        txn.put(META, EXCLUDED, [1]);
        match seq.checked_sub(1) {
            Some(before) => {
                let before = self.at_in(txn, author, before)?.ok_or_else(|| self.damaged("a chain has a gap"))?;
                let tip = Tip { seq: seq - 1, hlc: before.header().hlc, hash: before.hash() };
                txn.put(TIPS, author.0, tip.encode());
            }
            None => txn.remove(TIPS, author.0),
        }
        head.remove(&hash);
        // What only this entry named is to be named again. Only the end of a chain can be unnamed; naming one too many does no harm.
        for parent in header.parents() {
            let Some(hlc) = self.stamp_in(txn, &parent)? else { continue };
            let parent_author = self.get_in(txn, &parent)?.map(|parent| parent.header().author);
            if let Some(author) = parent_author
                && self.tip_in(txn, &author)?.is_some_and(|tip| tip.hash == parent)
            {
                head.uncover(parent, hlc);
            }
        }
        Ok(())
    }

    /// Takes from aside what counts now.
    fn promote(
        &self,
        txn: &mut Txn<'_>,
        head: &mut Head,
        author: &NodeId,
        way: &[Hash],
        aligned: &mut Aligned,
    ) -> Result<()> {
        loop {
            let tip = self.tip_in(txn, author)?;
            let candidates = self.asides(txn, author, tip.map_or(0, |tip| tip.seq + 1))?;
            let fits = |entry: &&Entry| {
                entry.header().prev == tip.map(|tip| tip.hash) && (way.is_empty() || way.contains(&entry.hash()))
            };
            let Some(entry) = candidates.iter().find(fits) else { return Ok(()) };
            if self.judge(txn, head, entry)? != Verdict::Included {
                head.held = true;
                return Ok(());
            }
            let effects = self.append(txn, head, entry)?;
            aligned.told.push((entry.clone(), effects, false));
        }
    }

    fn finish_aligned(
        &self,
        writes: crate::replication::database::Layer,
        told: Vec<(Entry, Effects, bool)>,
    ) -> Result<()> {
        let (excluded, included): (Vec<_>, Vec<_>) = told.into_iter().partition(|(.., excluded)| *excluded);
        let plain = |(entry, effects, _)| (entry, effects);
        self.finish(writes, included.into_iter().map(plain).collect(), Origin::Pulled)?;
        for (entry, effects) in excluded.into_iter().map(plain) {
            self.tell(entry, Origin::Pulled, effects, true);
        }
        Ok(())
    }
}

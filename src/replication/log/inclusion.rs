//! Taking in entries: those that this node signs, and those of others.

use std::sync::Arc;

use super::head::Head;
use super::indexes::{Tip, chain_key, order_key};
use super::verdict::{Rejected, Verdict};
use super::{CHAINS, ENTRIES, FORKS, HASHES, Log, NOOPS, ORDER, Origin, TIPS, WANTED};
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::database::{DatabaseError, Read, Result, Txn, View};
use crate::replication::entry::{Entry, Header, Malformed};
use crate::replication::limits;
use crate::replication::machine::Effects;

/// While more bytes than this are staged, whoever writes signs: some hundred signatures take ten milliseconds, which the
/// commit would take longer.
const SIGNED_AT_ONCE: usize = 384 * 1024;

/// Entries that are included without letting go of the head: some milliseconds' work, for which a local write waits.
const INCLUDED_AT_ONCE: usize = 256;

/// A local write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The entry's hash.
    pub hash: Hash,
    /// Its stamp.
    pub hlc: Hlc,
    /// Its number in this node's chain.
    pub seq: u64,
    /// For [`Log::wait`].
    pub staged: u64,
}

/// Why this node did not sign an entry.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// This node's role does not allow it.
    #[error("this node's role does not allow writing here; an admin can change that")]
    NotAllowed,
    /// The store's file was lost or is an older copy, and what this node wrote before has not come back from a member yet.
    #[error(
        "the store's file was lost here, or is an older copy; nothing is written before a member has brought back what was in it"
    )]
    Regaining,
    /// The operation is too large.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The disk.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Log {
    /// Signs `payload` as this node's next entry and applies it: visible when this returns, durable after
    /// [`Log::wait`] on the receipt's `staged`.
    ///
    /// # Errors
    /// If this node may not write here, the payload is too large, or the store takes no writes.
    pub fn submit(&self, payload: &[u8], origin: Origin) -> std::result::Result<Receipt, SubmitError> {
        self.ready_to_submit()?;
        self.with_head(|head| self.submit_locked(head, payload, origin))
    }

    /// The same, if `holds` of what is here; `None` if it does not. Nothing comes in between its look and the entry, so it must be
    /// quick and wait for nothing.
    ///
    /// # Errors
    /// As [`Log::submit`], or if `holds` can't read the store.
    pub fn submit_if(
        &self,
        payload: &[u8],
        origin: Origin,
        holds: impl FnOnce(&View<'_>) -> Result<bool>,
    ) -> std::result::Result<Option<Receipt>, SubmitError> {
        self.ready_to_submit()?;
        self.with_head(|head| {
            let view = self.database.view()?;
            let so = holds(&view)?;
            drop(view);
            if so { self.submit_locked(head, payload, origin).map(Some) } else { Ok(None) }
        })
    }

    fn ready_to_submit(&self) -> std::result::Result<(), SubmitError> {
        if !self.may_submit() {
            return Err(SubmitError::NotAllowed);
        }
        self.check_own()?;
        Ok(self.database.ready()?)
    }

    fn submit_locked(
        &self,
        head: &mut Head,
        payload: &[u8],
        origin: Origin,
    ) -> std::result::Result<Receipt, SubmitError> {
        let view = self.database.view()?;
        let tip = self.tip_in(&view, &self.me)?;
        let prev = tip.map(|tip| tip.hash);
        let mut deps: Vec<(Hlc, Hash)> =
            head.frontier.iter().filter(|(hash, _)| Some(**hash) != prev).map(|(hash, hlc)| (*hlc, *hash)).collect();
        let latest = deps.iter().map(|(hlc, _)| *hlc).chain(tip.map(|tip| tip.hlc)).max().unwrap_or_default();
        // More concurrent tips than an entry may name: it names the latest, a later entry the rest.
        deps.sort_unstable_by(|a, b| b.cmp(a));
        deps.truncate(limits::DEPS);
        let mut deps: Vec<Hash> = deps.into_iter().map(|(_, hash)| hash).collect();
        deps.sort_unstable();
        let header = Header {
            store: self.store,
            author: self.me,
            seq: tip.map_or(0, |tip| tip.seq + 1),
            prev,
            deps,
            hlc: latest.next(self.clock.now()),
            payload_len: 0,
            payload_hash: Hash([0; 32]),
        };
        if view.get(CHAINS, &chain_key(&self.me, header.seq))?.is_some() {
            return Err(self.damaged("this node's chain goes on behind its tip").into());
        }
        // The store's thread signs what it commits, off the way of the one who writes, unless it has enough to do.
        let entry = match self.database.waiting() > SIGNED_AT_ONCE {
            true => Entry::sign(&self.key, header, payload)?,
            false => Entry::sign_late(&self.key, header, payload)?,
        };
        let mut txn = Txn::new(&view);
        let effects = self.append(&mut txn, head, &entry)?;
        head.write(&mut txn);
        let writes = txn.finish();
        drop(view);
        let staged = self.finish(writes, vec![(entry.clone(), effects)], origin)?;
        Ok(Receipt { hash: entry.hash(), hlc: entry.header().hlc, seq: entry.header().seq, staged })
    }

    fn may_submit(&self) -> bool {
        let membership = self.membership.load();
        // The root store's own machine judges each operation; members of any role have one they may do.
        if self.machine.kind() == "root" { membership.admits(&self.me) } else { membership.may_write(&self.me) }
    }

    /// Takes an entry that founds this store: genesis, whose hash is the store's id.
    ///
    /// # Errors
    /// If it does not found this store, or the store takes no writes.
    pub fn found(&self, genesis: &Entry) -> std::result::Result<(), SubmitError> {
        let verdict = self.include(std::slice::from_ref(genesis), Origin::Local)?;
        match verdict.first() {
            Some(Verdict::Included | Verdict::Duplicate) => Ok(()),
            _ => Err(SubmitError::NotAllowed),
        }
    }

    /// Includes those of `entries` that count, in the order given. Their signatures and payload hashes must have
    /// been checked; all else is checked here. They are staged in few sets; those before one that fails stay.
    ///
    /// # Errors
    /// If the store can't be read or takes no writes.
    pub fn include(&self, entries: &[Entry], origin: Origin) -> Result<Vec<Verdict>> {
        let mut verdicts = Vec::with_capacity(entries.len());
        for part in entries.chunks(INCLUDED_AT_ONCE) {
            self.database.ready_for_many()?;
            verdicts.extend(self.with_head(|head| self.include_locked(head, part, origin))?);
        }
        Ok(verdicts)
    }

    fn include_locked(&self, head: &mut Head, entries: &[Entry], origin: Origin) -> Result<Vec<Verdict>> {
        let view = self.database.view()?;
        let mut txn = Txn::new(&view);
        let mut verdicts = Vec::with_capacity(entries.len());
        let mut included = Vec::new();
        let mut proofs = false;
        let mut forked = Vec::new();
        for entry in entries {
            let verdict = self.judge(&txn, head, entry)?;
            if verdict == Verdict::Included {
                let effects = self.append(&mut txn, head, entry)?;
                included.push((entry.clone(), effects));
            }
            if let Verdict::Rejected(Rejected::Fork { .. }) = verdict {
                txn.put(FORKS, chain_key(&entry.header().author, entry.header().seq), &entry.bytes()[..]);
                self.put_aside(&mut txn, entry)?;
                proofs = true;
                forked.push(entry.clone());
            }
            if verdict == Verdict::Excluded {
                self.put_aside(&mut txn, entry)?;
                proofs = true;
            }
            verdicts.push(verdict);
        }
        head.write(&mut txn);
        let writes = txn.finish();
        drop(view);
        let any = !included.is_empty();
        if proofs || any {
            self.finish(writes, included, origin)?;
        }
        for entry in forked {
            self.tell(entry, origin, Effects::default(), true);
        }
        // The other branch of a fork, the rest of the one that counts, or a parent of one that is aside may be here now.
        if proofs || (any && head.held) {
            self.align_locked(head)?;
        }
        Ok(verdicts)
    }

    pub(super) fn append(&self, txn: &mut Txn<'_>, head: &mut Head, entry: &Entry) -> Result<Effects> {
        let header = entry.header();
        let hash = entry.hash();
        let local = head.next.to_be_bytes();
        self.take_from_aside(txn, entry)?;
        txn.put_late(ENTRIES, local, Arc::new(entry.clone()));
        txn.put(HASHES, &hash.0[..16], [local, header.hlc.0.to_be_bytes()].concat());
        txn.put(CHAINS, chain_key(&header.author, header.seq), local);
        txn.put(ORDER, order_key(header.hlc, &hash), local);
        head.ranges.add(txn, header.hlc, &hash)?;
        txn.put(TIPS, header.author.0, Tip { seq: header.seq, hlc: header.hlc, hash }.encode());
        self.note_past(txn, head, entry)?;
        head.add(hash, header);
        self.apply(txn, entry)
    }

    pub(super) fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        let effects = self.machine.apply(txn, entry)?;
        if let Some(reason) = &effects.noop {
            txn.put(NOOPS, entry.hash().0, reason.as_bytes());
        }
        for (blob, size) in &effects.blobs {
            txn.put(WANTED, blob.0, size.to_be_bytes());
        }
        Ok(effects)
    }
}

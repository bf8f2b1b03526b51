//! What is noted of entries beside the entries: forks, operations that did nothing, blobs that are wanted.

use std::ops::Bound;

use super::indexes::number;
use super::{FORKS, Log, NOOPS, WANTED};
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Flow, Read, Result, Txn, View};
use crate::replication::entry::{Entry, Fork};

impl Log {
    /// The places in authors' chains that were seen to be forked: authors and numbers.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn forks(&self) -> Result<Vec<(NodeId, u64)>> {
        let mut forks = Vec::new();
        self.database.view()?.scan(FORKS, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, _| {
            if let (Some(author), Some(seq)) =
                (key.get(..32).and_then(NodeId::from_slice), key.get(32..).and_then(number))
            {
                forks.push((author, seq));
            }
            Flow::Continue(())
        })?;
        Ok(forks)
    }

    /// The proofs of those forks: the authors, each with two signed headers for one place.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn proofs(&self) -> Result<Vec<(NodeId, Fork)>> {
        let view = self.database.view()?;
        let mut rows = Vec::new();
        view.scan(FORKS, (Bound::Unbounded, Bound::Unbounded), false, &mut |_, bytes| {
            rows.push(bytes.to_vec());
            Flow::Continue(())
        })?;
        let mut proofs = Vec::new();
        for bytes in rows {
            let entry = Entry::decode(bytes.into())
                .map_err(|error| self.damaged(&format!("the proof of a fork does not read back: {error}")))?;
            let (author, seq) = (entry.header().author, entry.header().seq);
            let asides = self.asides(&view, &author, seq)?;
            let mut others = self.at_in(&view, &author, seq)?.into_iter().chain(asides);
            let other = others.find(|other| other.hash() != entry.hash());
            proofs.extend(other.map(|other| (author, Fork::of(&entry, &other))));
        }
        Ok(proofs)
    }

    /// Why the entry did nothing, if so.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn noop(&self, view: &View<'_>, hash: &Hash) -> Result<Option<String>> {
        Ok(view.get(NOOPS, &hash.0)?.map(|reason| String::from_utf8_lossy(&reason).into_owned()))
    }

    /// The blobs that entries name and that were not yet reported here by [`Log::arrived`].
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn wanted(&self) -> Result<Vec<(Hash, u64)>> {
        let mut wanted = Vec::new();
        self.database.view()?.scan(WANTED, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            if let (Some(hash), Some(size)) = (Hash::from_slice(key), number(value)) {
                wanted.push((hash, size));
            }
            Flow::Continue(())
        })?;
        Ok(wanted)
    }

    /// Notes that a blob is here and durable.
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn arrived(&self, blob: &Hash) -> Result<()> {
        self.with_head(|_| {
            let view = self.database.view()?;
            let mut txn = Txn::new(&view);
            txn.remove(WANTED, blob.0);
            self.database.stage(txn.finish()).map(drop)
        })
    }
}

//! What is noted of entries beside the entries: forks, operations that did nothing, blobs that are wanted.

use std::ops::Bound;

use super::indexes::number;
use super::{FORKS, Log, NOOPS, WANTED};
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Flow, Read, Result, Txn, View};

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

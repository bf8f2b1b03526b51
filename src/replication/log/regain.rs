//! A store whose file was lost: what this node signed in it is with the others, and this node signs nothing new before it
//! has that again. It would give two entries one place in its chain otherwise: a fork.

use std::sync::atomic::Ordering;

use super::{Log, META};
use crate::replication::database::{Read, Result, View};

const REGAINING: &[u8] = b"regaining";

/// Whether the file says that it was begun anew in place of a lost one.
pub(super) fn noted(view: &View<'_>) -> Result<bool> {
    Ok(view.get(META, REGAINING)?.is_some())
}

impl Log {
    /// From now on, also after a restart, nothing of this node's own is signed until [`Log::regained`].
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn regain(&self) -> Result<()> {
        self.regaining.store(true, Ordering::SeqCst);
        self.with_head(|_| {
            self.stage(|txn| {
                txn.put(META, REGAINING, [1]);
                Ok(())
            })
        })
    }

    /// Whether what this node signed before is still to come from the others.
    #[must_use]
    pub fn is_regaining(&self) -> bool {
        self.regaining.load(Ordering::SeqCst)
    }

    /// All that the others have of this node is here: it may sign again.
    ///
    /// # Errors
    /// If the store takes no writes.
    pub fn regained(&self) -> Result<()> {
        self.with_head(|_| {
            self.stage(|txn| {
                txn.remove(META, REGAINING);
                Ok(())
            })
        })?;
        self.regaining.store(false, Ordering::SeqCst);
        Ok(())
    }
}

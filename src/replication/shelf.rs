//! What a replica reads, out of real logs.

use std::sync::Arc;

use super::database::{Result, View};
use super::entry::Entry;
use super::log::{Fingerprint, Log};
use super::reconcile::{Ordered, Shelf, Tips};
use crate::ids::{Hash, NodeId, StoreId};

/// Who has the open logs of a mesh.
pub trait Logs: Send + Sync + 'static {
    /// All of them, the root store's first.
    fn logs(&self) -> Vec<Arc<Log>>;

    /// One of them.
    fn log(&self, store: &StoreId) -> Option<Arc<Log>>;
}

/// A [`Shelf`] over logs. What can't be read is logged and answered as not there.
pub struct LogShelf<'a>(pub &'a dyn Logs);

impl std::fmt::Debug for LogShelf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogShelf").finish_non_exhaustive()
    }
}

impl LogShelf<'_> {
    fn durable<T>(&self, store: &StoreId, read: impl FnOnce(&Log, &View<'_>) -> Result<T>) -> Option<T> {
        let log = self.0.log(store)?;
        or_absent(store, log.database().durable().and_then(|view| read(&log, &view)))
    }
}

fn or_absent<T>(store: &StoreId, read: Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(target: "sync", store = %store.short(), %error, "a store can't be read"))
        .ok()
}

impl Shelf for LogShelf<'_> {
    fn stores(&self) -> Vec<StoreId> {
        self.0.logs().iter().map(|log| log.store()).collect()
    }

    fn fingerprint(&self, store: &StoreId) -> Option<Fingerprint> {
        self.durable(store, |log, view| log.fingerprint(view))
    }

    fn tips(&self, store: &StoreId) -> Option<(Fingerprint, Tips)> {
        self.durable(store, |log, view| Ok((log.fingerprint(view)?, log.tips(view)?)))
    }

    fn included(&self, store: &StoreId) -> Option<Tips> {
        let log = self.0.log(store)?;
        or_absent(store, log.database().view().and_then(|view| log.tips(&view)))
    }

    fn chain(&self, store: &StoreId, author: &NodeId, from: u64, limit: usize) -> Vec<Entry> {
        self.durable(store, |log, view| log.chain(view, author, from, limit)).unwrap_or_default()
    }

    fn entry(&self, store: &StoreId, hash: &Hash) -> Option<Entry> {
        self.durable(store, |log, view| log.kept(view, hash)).flatten()
    }

    fn ordered(&self, store: &StoreId, work: &mut dyn FnMut(&dyn Ordered) -> Result<()>) -> Option<()> {
        self.durable(store, |log, view| work(&log.ordered(view)?))
    }
}

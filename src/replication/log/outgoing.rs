//! What may leave the node: entries, once they are durable.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Event, Log, Origin, locked};
use crate::ids::StoreId;
use crate::replication::database::{Layer, Result};
use crate::replication::entry::Entry;
use crate::replication::machine::Effects;

/// Entries that became durable: they may leave the node now.
#[derive(Debug, Clone)]
pub struct Durable {
    /// Their store.
    pub store: StoreId,
    /// The entries, in the order of their inclusion, with who brought them.
    pub entries: Vec<(Entry, Origin)>,
}

/// Called with each group of entries that became durable, on the store's own thread: it must not block.
pub type Outbox = Box<dyn Fn(Durable) + Send + Sync>;

/// What waits to become durable, with the number of its staged set, and who is told of it then.
#[derive(Default)]
pub(super) struct Outgoing {
    waiting: VecDeque<(u64, Entry, Origin)>,
    outbox: Option<Arc<Outbox>>,
}

impl Log {
    /// Gives to `outbox`, in place of the one before, every entry that becomes durable from now on. What is durable
    /// already, [`Log::database`] shows.
    pub fn outbox(&self, outbox: Outbox) {
        locked(&self.outgoing).outbox = Some(Arc::new(outbox));
    }

    /// Follows what becomes durable, also when nobody is told of it: it must not pile up.
    pub(super) fn collect(&self) {
        let outgoing = Arc::clone(&self.outgoing);
        let store = self.store;
        self.database.on_durable(move |durable| {
            let mut outgoing = locked(&outgoing);
            let ready = outgoing.waiting.partition_point(|(number, ..)| *number <= durable);
            let entries: Vec<_> = outgoing.waiting.drain(..ready).map(|(_, entry, origin)| (entry, origin)).collect();
            let outbox = outgoing.outbox.clone();
            drop(outgoing);
            if !entries.is_empty()
                && let Some(outbox) = outbox
            {
                outbox(Durable { store, entries });
            }
        });
    }

    pub(super) fn finish(&self, writes: Layer, included: Vec<(Entry, Effects)>, origin: Origin) -> Result<u64> {
        // The lock is held around staging, so that the commit can't overtake the queue.
        let mut outgoing = locked(&self.outgoing);
        let staged = self.database.stage(writes)?;
        outgoing.waiting.extend(included.iter().map(|(entry, _)| (staged, entry.clone(), origin)));
        drop(outgoing);
        for (entry, effects) in included {
            self.tell(entry, origin, effects, false);
        }
        Ok(staged)
    }

    pub(super) fn tell(&self, entry: Entry, origin: Origin, effects: Effects, excluded: bool) {
        // Nobody listening is no failure.
        drop(self.events.send(Arc::new(Event { store: self.store, entry, origin, effects, excluded })));
    }
}

//! Whether a log is what it should be: each entry signed, whole and in its place; each index, counter and the state what the
//! entries make of them.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::aside::{aside_key, aside_row};
use super::head::Fingerprint;
use super::indexes::{Tip, chain_key, number, order_key};
use super::{ASIDE, ASIDES, CHAINS, ENTRIES, HASHES, Log, NOOPS, ORDER, ranges, rebuild};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::database::{Database, DatabaseError, Flow, Read, Result, Table, Txn, View};
use crate::replication::entry::Entry;
use crate::replication::machine::StateMachine;
use crate::replication::verify::verify;

/// Entries that are looked at together.
const BATCH: usize = 1_024;
/// More is not told.
const FAULTS: usize = 100;

/// What was found in a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The entries that count and read back.
    pub entries: u64,
    /// Those that are kept aside.
    pub excluded: u64,
    /// What is wrong, a sentence each; a hundred at most.
    pub faults: Vec<String>,
}

/// What the entries seen so far make.
struct Walk<'a> {
    log: &'a Log,
    view: &'a View<'a>,
    found: Verified,
    tips: BTreeMap<NodeId, Tip>,
    frontier: BTreeMap<Hash, Hlc>,
    fingerprint: Fingerprint,
}

/// Rows of a table from `from` on, `BATCH` at most.
fn rows(view: &View<'_>, table: Table, from: Bound<&[u8]>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut rows = Vec::new();
    view.scan(table, (from, Bound::Unbounded), false, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() < BATCH { Flow::Continue(()) } else { Flow::Break(()) }
    })?;
    Ok(rows)
}

fn count(view: &View<'_>, table: Table) -> Result<u64> {
    let mut count = 0;
    view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |_, _| {
        count += 1;
        Flow::Continue(())
    })?;
    Ok(count)
}

/// Applies entries to the state in `scratch`.
fn replay(scratch: &Database, machine: &dyn StateMachine, entries: &[Entry]) -> Result<()> {
    scratch.ready()?;
    let view = scratch.view()?;
    let mut txn = Txn::new(&view);
    for entry in entries {
        if let Some(reason) = machine.apply(&mut txn, entry)?.noop {
            txn.put(NOOPS, entry.hash().0, reason.as_bytes());
        }
    }
    scratch.stage(txn.finish()).map(drop)
}

impl Log {
    /// Looks at everything in the log. `machine` is one of the log's kind that has seen nothing, `scratch` an empty file, in which it
    /// derives the state anew. Reads what was there when it began; writes go on meanwhile.
    ///
    /// # Errors
    /// If the disk fails. That the file is damaged is no error, but what is looked for.
    pub fn verify(&self, machine: &dyn StateMachine, scratch: &Database) -> Result<Verified> {
        let view = self.database.view()?;
        let mut walk = Walk {
            log: self,
            view: &view,
            found: Verified::default(),
            tips: BTreeMap::new(),
            frontier: BTreeMap::new(),
            fingerprint: Fingerprint::default(),
        };
        match walk.all(machine, scratch) {
            Err(DatabaseError::Corrupt { what, .. }) => walk.fault(what),
            done => done?,
        }
        Ok(walk.found)
    }

    /// All entries that read back and are signed, those that are kept aside too, parents first, in batches: what can be saved of a
    /// damaged log. It goes on behind what does not read.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn salvage<E>(
        &self,
        take: &mut dyn FnMut(Vec<Entry>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Ok(view) = self.database.view() else { return Ok(()) };
        for table in [ENTRIES, ASIDE] {
            let mut last: Option<Vec<u8>> = None;
            // A page that does not read ends what can be had of its table.
            while let Ok(rows) = rows(&view, table, last.as_deref().map_or(Bound::Unbounded, Bound::Excluded)) {
                let Some((key, _)) = rows.last() else { break };
                last = Some(key.clone());
                let read: Vec<Entry> = rows.into_iter().filter_map(|(_, row)| Entry::decode(row.into()).ok()).collect();
                let signed = verify(&read).into_iter();
                take(read.into_iter().zip(signed).filter(|(_, signed)| *signed).map(|(entry, _)| entry).collect())?;
            }
        }
        Ok(())
    }
}

impl Walk<'_> {
    fn fault(&mut self, what: impl Into<String>) {
        if self.found.faults.len() < FAULTS {
            self.found.faults.push(what.into());
        }
    }

    fn all(&mut self, machine: &dyn StateMachine, scratch: &Database) -> Result<()> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let rows = rows(self.view, ENTRIES, last.as_deref().map_or(Bound::Unbounded, Bound::Excluded))?;
            let Some((key, _)) = rows.last() else { break };
            last = Some(key.clone());
            let entries = self.read(rows);
            for (local, entry) in &entries {
                self.place(local, entry)?;
            }
            if self.found.faults.is_empty() {
                let entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
                replay(scratch, machine, &entries)?;
            }
        }
        self.ends()?;
        self.asides()?;
        let rebuilding = self.view.get(super::META, rebuild::REBUILDING)?.is_some();
        if self.found.faults.is_empty() && !rebuilding {
            let made = self.log.digest(&scratch.view()?)?;
            if made != self.log.digest(self.view)? {
                self.fault("the state is not what the entries make");
            }
        }
        Ok(())
    }

    fn read(&mut self, rows: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Entry)> {
        let (mut locals, mut entries) = (Vec::new(), Vec::new());
        for (local, row) in rows {
            match Entry::decode(row.into()) {
                Ok(entry) => {
                    locals.push(local);
                    entries.push(entry);
                }
                Err(error) => {
                    self.fault(format!("the entry in row {:?} does not read back: {error}", number(&local)));
                }
            }
        }
        for (entry, signed) in entries.iter().zip(verify(&entries)) {
            if !signed {
                self.fault(format!("the signature of entry {} is not its author's", entry.hash()));
            }
        }
        locals.into_iter().zip(entries).collect()
    }

    /// Checks that an entry is where it should be, and follows what it should.
    fn place(&mut self, local: &[u8], entry: &Entry) -> Result<()> {
        let (header, hash) = (entry.header(), entry.hash());
        self.found.entries += 1;
        if header.store != self.log.store && !(header.store == StoreId::UNBORN && hash.0 == self.log.store.0) {
            self.fault(format!("entry {hash} belongs to another store"));
        }
        let found = self.view.get(HASHES, &hash.0[..16])?;
        let indexed = found == Some([local, &header.hlc.0.to_be_bytes()].concat())
            && self.view.get(CHAINS, &chain_key(&header.author, header.seq))?.as_deref() == Some(local)
            && self.view.get(ORDER, &order_key(header.hlc, &hash))?.as_deref() == Some(local);
        if !indexed {
            self.fault(format!("an index does not lead to entry {hash}"));
        }
        let tip = Tip { seq: header.seq, hlc: header.hlc, hash };
        let before = self.tips.insert(header.author, tip);
        if before.map_or(0, |tip| tip.seq + 1) != header.seq || before.map(|tip| tip.hash) != header.prev {
            self.fault(format!("entry {hash} does not follow its author's chain"));
        }
        for parent in header.parents() {
            self.frontier.remove(&parent);
            let stamp = match self.log.stamp_in(self.view, &parent)? {
                None => self.log.aside_stamp(self.view, &parent)?,
                found => found,
            };
            if stamp.is_none_or(|stamp| stamp >= header.hlc) {
                self.fault(format!("entry {hash} names {parent}, which is not here or not older"));
            }
        }
        self.frontier.insert(hash, header.hlc);
        self.fingerprint = self.fingerprint.plus(&Fingerprint::one(&hash));
        Ok(())
    }

    /// Checks what sums the entries up.
    fn ends(&mut self) -> Result<()> {
        let head = Log::head(self.view)?;
        if self.log.fingerprint(self.view)? != self.fingerprint {
            self.fault("its counters are not those of its entries");
        }
        if self.log.tips_in(self.view)? != self.tips {
            self.fault("the ends of its authors' chains are not those of its entries");
        }
        if head.frontier != self.frontier {
            self.fault("its frontier is not that of its entries");
        }
        for table in [HASHES, CHAINS, ORDER] {
            let count = count(self.view, table)?;
            if count != self.found.entries {
                self.fault(format!("the index '{table}' has {count} rows for {} entries", self.found.entries));
            }
        }
        if !ranges::sound(self.view)? {
            self.fault("the index of ranges does not hold what its entries make");
        }
        Ok(())
    }

    fn asides(&mut self) -> Result<()> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let rows = rows(self.view, ASIDE, last.as_deref().map_or(Bound::Unbounded, Bound::Excluded))?;
            let Some((key, _)) = rows.last() else { break };
            last = Some(key.clone());
            for (key, entry) in self.read(rows) {
                let (header, hash) = (entry.header(), entry.hash());
                let row = self.view.get(ASIDES, &hash.0)?;
                let right = aside_key(&header.author, header.seq, &hash) == key && row == Some(aside_row(header));
                if !right {
                    self.fault(format!("the index does not lead to entry {hash}, which is kept aside"));
                }
                self.found.excluded += 1;
            }
        }
        if count(self.view, ASIDES)? != self.found.excluded {
            self.fault("the index of what is kept aside is not that of its entries");
        }
        Ok(())
    }
}

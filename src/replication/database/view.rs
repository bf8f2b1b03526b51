//! Reading: of one moment of the database, and of a transaction's own writes on top of it.

use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use redb::{ReadableDatabase, TableDefinition};

use super::failure::guarded;
use super::layer::{Late, Layer, Stack, Value};
use super::rows::{Row, Rows, Sorted};
use super::run::{Digest, Runs};
use super::{Result, Table};

/// What a scan's callback answers: go on, or stop.
pub type Flow = ControlFlow<()>;

/// Reading of rows, with what is written on top of them.
pub trait Read {
    /// The value at `key`.
    ///
    /// # Errors
    /// If the file can't be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` for the rows of `table` whose keys lie in `range`, in the keys' order, or against it if `reverse`.
    ///
    /// # Errors
    /// If the file can't be read.
    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()>;

    /// Whether there is a row in `table` whose key begins with `start`. Where that ends in a byte 0, this takes no longer than
    /// looking for one key.
    ///
    /// # Errors
    /// If the file can't be read.
    fn begins(&self, table: Table, start: &[u8]) -> Result<bool>;
}

/// The range of all keys that begin with `prefix`; `end` is scratch space that outlives it.
#[must_use]
pub fn prefix<'a>(prefix: &'a [u8], end: &'a mut Vec<u8>) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    *end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    match end.last_mut() {
        None => (Bound::Included(prefix), Bound::Unbounded),
        Some(last) => {
            *last += 1;
            (Bound::Included(prefix), Bound::Excluded(end))
        }
    }
}

type OpenTable = Arc<redb::ReadOnlyTable<&'static [u8], &'static [u8]>>;

/// What redb held after a commit. Shared by all who look at that moment: beginning to read and opening a table each
/// cost as much as reading a row.
pub(super) struct Snapshot {
    txn: redb::ReadTransaction,
    tables: RwLock<Vec<(Table, Option<OpenTable>)>>,
}

impl Snapshot {
    pub(super) fn of(redb: &redb::Database) -> std::result::Result<Self, redb::Error> {
        Ok(Self { txn: redb.begin_read()?, tables: RwLock::default() })
    }

    fn table(&self, name: Table, path: &Path) -> Result<Option<OpenTable>> {
        let known = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = known.iter().find(|(known, _)| *known == name) {
            return Ok(table.clone());
        }
        drop(known);
        let table = guarded(path, || match self.txn.open_table(TableDefinition::new(name)) {
            Ok(table) => Ok(Some(Arc::new(table))),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        self.tables.write().unwrap_or_else(PoisonError::into_inner).push((name, table.clone()));
        Ok(table)
    }
}

/// A consistent reading of the database. It holds nobody up, but pages that are replaced while it lives are not freed.
pub struct View<'a> {
    staged: Stack,
    runs: Runs,
    snapshot: Arc<Snapshot>,
    path: &'a Path,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<'a> View<'a> {
    pub(super) const fn new(staged: Stack, runs: Runs, snapshot: Arc<Snapshot>, path: &'a Path) -> Self {
        Self { staged, runs, snapshot, path }
    }

    /// What is to be said of rows that do not make sense.
    pub(in crate::replication) fn damaged(&self, what: &str) -> super::DatabaseError {
        super::DatabaseError::Corrupt { path: self.path.to_owned(), what: what.to_owned() }
    }

    fn table(&self, name: Table) -> Result<Option<OpenTable>> {
        self.snapshot.table(name, self.path)
    }

    fn begins_with(&self, top: Option<&Layer>, table: Table, start: &[u8]) -> Result<bool> {
        // The filters of runs know what keys begin with, up to each byte 0 in them.
        let known = (start.last() == Some(&0)).then(|| Digest::of(table, start));
        let from = (Bound::Included(start), Bound::Unbounded);
        let layers = top.into_iter().chain(self.staged.newest_first()).filter_map(|layer| layer.rows(table, from));
        let runs = self.runs.newest_first().filter(|run| known.is_none_or(|digest| run.may_hold(digest)));
        let mut sources = layers.chain(runs.filter_map(|run| run.rows(table, from)));
        // In the newest place that says anything of such keys, nothing removes what is there.
        let newest = sources.find_map(|mut rows| rows.next().filter(|(key, _)| key.starts_with(start)));
        if let Some((_, Some(_))) = newest {
            return Ok(true);
        }
        let mut end = Vec::new();
        let mut found = false;
        self.scan_with(top, table, prefix(start, &mut end), (false, known), &mut |_, _| {
            found = true;
            Flow::Break(())
        })?;
        Ok(found)
    }

    /// Reads a range, `reverse` or not; with a digest, only those runs that may hold it.
    fn scan_with(
        &self,
        top: Option<&Layer>,
        name: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        (reverse, known): (bool, Option<Digest>),
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        if is_empty(range) {
            return Ok(());
        }
        let layers = top.into_iter().chain(self.staged.newest_first()).filter_map(|layer| layer.rows(name, range));
        let runs = self.runs.newest_first().filter(|run| known.is_none_or(|digest| run.may_hold(digest)));
        let runs = runs.filter_map(|run| run.rows(name, range));
        let mut sources: Vec<_> = layers.chain(runs).map(|rows| Source::new(rows, reverse)).collect();
        let table = self.table(name)?;
        let mut base = match &table {
            Some(table) => Some(guarded(self.path, || Ok(table.range::<&[u8]>(range)?))?),
            None => None,
        };
        let mut step = || match &mut base {
            None => Ok(None),
            Some(range) => guarded(self.path, || {
                let row = if reverse { range.next_back() } else { range.next() }.transpose()?;
                // Touched here, since a damaged page may make redb panic.
                Ok(row.inspect(|(key, value)| {
                    std::hint::black_box((key.value(), value.value()));
                }))
            }),
        };
        let mut below = step()?;
        loop {
            // The nearest key of any source; among equals the newest layer's value counts.
            let mut nearest: Option<&[u8]> = below.as_ref().map(|(key, _)| key.value());
            let in_base = nearest;
            for source in &sources {
                if let Some((key, _)) = source.head
                    && nearest.is_none_or(|best| if reverse { key > best } else { key < best })
                {
                    nearest = Some(key);
                }
            }
            let Some(nearest) = nearest else { return Ok(()) };
            let mut newest = None;
            for source in &mut sources {
                if let Some((key, value)) = source.head
                    && key == nearest
                {
                    newest.get_or_insert(value);
                    source.advance();
                }
            }
            let flow = match (newest, &below) {
                (Some(Some(value)), _) => visit(nearest, value),
                (None, Some((_, value))) => visit(nearest, value.value()),
                (Some(None), _) | (None, None) => Flow::Continue(()),
            };
            if flow.is_break() {
                return Ok(());
            }
            if in_base == Some(nearest) {
                below = step()?;
            }
        }
    }
}

fn is_empty((start, end): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (start, end) {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end))
        | (Bound::Excluded(start), Bound::Included(end)) => start >= end,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

struct Source<'a> {
    rows: Rows<'a>,
    head: Option<Row<'a>>,
    reverse: bool,
}

impl<'a> Source<'a> {
    fn new(rows: Rows<'a>, reverse: bool) -> Self {
        let mut source = Self { rows, head: None, reverse };
        source.advance();
        source
    }

    fn advance(&mut self) {
        self.head = if self.reverse { self.rows.next_back() } else { self.rows.next() };
    }
}

impl Read for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        for layer in self.staged.newest_first() {
            if let Some(value) = layer.get(table, key) {
                return Ok(value.map(<[u8]>::to_vec));
            }
        }
        if !self.runs.is_empty() {
            let digest = Digest::of(table, key);
            if let Some(value) = self.runs.newest_first().find_map(|run| run.get(table, key, digest)) {
                return Ok(value.map(<[u8]>::to_vec));
            }
        }
        let Some(table) = self.table(table)? else { return Ok(None) };
        guarded(self.path, || Ok(table.get(key)?.map(|value| value.value().to_vec())))
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        self.scan_with(None, table, range, (reverse, None), visit)
    }

    fn begins(&self, table: Table, start: &[u8]) -> Result<bool> {
        self.begins_with(None, table, start)
    }
}

/// Reading with writes of one's own on top: what a state machine applies an entry in.
#[derive(Debug)]
pub struct Txn<'a> {
    view: &'a View<'a>,
    writes: Layer,
}

impl<'a> Txn<'a> {
    /// A transaction over `view`.
    #[must_use]
    pub fn new(view: &'a View<'a>) -> Self {
        Self { view, writes: Layer::default() }
    }

    /// Sets a row.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.writes.put(table, key.into(), Some(value.into()));
    }

    /// Sets a row whose value is made when it is first read, or committed.
    pub fn put_late(&mut self, table: Table, key: impl Into<Vec<u8>>, value: Arc<dyn Late>) {
        self.writes.put(table, key.into(), Some(Value::Late(value)));
    }

    /// Removes a row.
    pub fn remove(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.writes.put(table, key.into(), None::<Vec<u8>>);
    }

    /// The writes, for [`super::Database::stage`].
    #[must_use]
    pub fn finish(self) -> Layer {
        self.writes
    }
}

impl Read for Txn<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.writes.get(table, key) {
            Some(value) => Ok(value.map(<[u8]>::to_vec)),
            None => self.view.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<()> {
        self.view.scan_with(Some(&self.writes), table, range, (reverse, None), visit)
    }

    fn begins(&self, table: Table, start: &[u8]) -> Result<bool> {
        self.view.begins_with(Some(&self.writes), table, start)
    }
}

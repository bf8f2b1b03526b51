//! Rows in order, wherever in memory they are, and several such sources read as one.

use std::collections::{BTreeSet, btree_map};
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};

use super::Table;
use super::layer::Value;
use super::run::Run;

pub(super) type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A key, and its value; `None` if the key is removed.
pub(super) type Row<'a> = (&'a [u8], Option<&'a [u8]>);

/// What holds rows in order, table by table.
pub(super) trait Sorted {
    fn tables(&self) -> Vec<Table>;

    /// The rows of `table` whose keys lie in `range`, which is not empty by its form.
    fn rows(&self, table: Table, range: Range<'_>) -> Option<Rows<'_>>;
}

/// Rows of one table of one source.
pub(super) enum Rows<'a> {
    Tree(btree_map::Range<'a, Vec<u8>, Option<Value>>),
    Run(&'a Run, std::slice::Iter<'a, u32>),
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        match self {
            Self::Tree(rows) => rows.next().map(|(key, value)| (key.as_slice(), value.as_ref().map(Value::bytes))),
            Self::Run(run, places) => places.next().map(|place| run.row(*place)),
        }
    }
}

impl DoubleEndedIterator for Rows<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Tree(rows) => rows.next_back().map(|(key, value)| (key.as_slice(), value.as_ref().map(Value::bytes))),
            Self::Run(run, places) => places.next_back().map(|place| run.row(*place)),
        }
    }
}

/// Calls `visit` for each row behind `after` (a table and a key in it), table by table in the keys' order, with what
/// the first of `sources` that knows the key says of it, until it has enough.
pub(super) fn each<E>(
    sources: &[&dyn Sorted],
    after: Option<&(Table, Vec<u8>)>,
    mut visit: impl FnMut(Table, &[u8], Option<&[u8]>) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let tables: BTreeSet<Table> = sources.iter().flat_map(|source| source.tables()).collect();
    for table in tables.range(after.map_or("", |(table, _)| *table)..) {
        let start = match after {
            Some((first, key)) if first == table => Bound::Excluded(key.as_slice()),
            Some(_) | None => Bound::Unbounded,
        };
        let rows = sources.iter().filter_map(|source| source.rows(table, (start, Bound::Unbounded)));
        let mut rows: Vec<Peekable<Rows<'_>>> = rows.map(Iterator::peekable).collect();
        if let [only] = rows.as_mut_slice() {
            for (key, value) in only {
                if visit(table, key, value)?.is_break() {
                    return Ok(());
                }
            }
            continue;
        }
        while let Some(key) = rows.iter_mut().filter_map(|rows| rows.peek().map(|(key, _)| *key)).min() {
            let mut newest = None;
            for rows in &mut rows {
                if let Some((_, value)) = rows.next_if(|(other, _)| *other == key) {
                    newest.get_or_insert(value);
                }
            }
            if visit(table, key, newest.flatten())?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

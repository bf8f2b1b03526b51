//! Listing directories, page by page.

use std::collections::VecDeque;

use super::errno::{self, Answer};
use super::inodes::{Seen, join, number};
use super::place::{Attr, Place, Type};
use super::tree::{Handle, LONG, NONE, Tree, locked};
use super::{history, keys, past};
use crate::ids::StoreId;

/// Names read from a store at a time.
const PAGE: usize = 1_024;

/// One name.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: Vec<u8>,
    place: Place,
    kind: Type,
    /// Its attributes but for the inode's number, if they are at hand.
    attr: Option<Attr>,
}

impl Row {
    fn with(name: Vec<u8>, place: Place, attr: Attr) -> Self {
        Self { name, place, kind: attr.kind, attr: Some(attr) }
    }
}

/// An open directory: how far it was read.
#[derive(Debug)]
pub(crate) struct Listing {
    ino: u64,
    /// The offset of the first of `rows`.
    offset: u64,
    rows: VecDeque<Row>,
    after: Option<Vec<u8>>,
    done: bool,
}

/// A name as the kernel is given it.
#[derive(Debug)]
pub(crate) struct Item<'a> {
    pub(crate) ino: u64,
    /// The offset of the name after it.
    pub(crate) next: u64,
    pub(crate) name: &'a [u8],
    pub(crate) kind: Type,
    /// With `plus`: its attributes and how long they may be believed.
    pub(crate) attr: Option<(Attr, std::time::Duration)>,
}

impl Tree {
    /// Opens a directory.
    pub(crate) fn open_directory(&self, ino: u64) -> Answer<u64> {
        let seen = self.table().see(ino)?;
        if seen.kind != Type::Directory {
            return Err(errno::NOT_DIRECTORY);
        }
        self.table().pin(ino);
        let listing = Listing { ino, offset: 0, rows: VecDeque::new(), after: None, done: false };
        Ok(self.hold(Handle::Directory(listing.into())))
    }

    /// Closes it.
    pub(crate) fn close_directory(&self, handle: u64) {
        if let Some(handle) = self.let_go(handle)
            && let Handle::Directory(listing) = &*handle
        {
            let ino = locked(listing).ino;
            self.table().unpin(ino);
        }
    }

    /// Gives the names from `offset` on to `emit`, until it says that it is full. With `plus` each but `.` and `..`
    /// counts as given to the kernel.
    pub(crate) fn list(
        &self,
        handle: &Handle,
        offset: u64,
        plus: bool,
        emit: &mut dyn FnMut(Item<'_>) -> bool,
    ) -> Answer<()> {
        let Handle::Directory(listing) = handle else { return Err(errno::NOT_DIRECTORY) };
        let mut listing = locked(listing);
        let seen = self.table().see(listing.ino)?;
        if offset < listing.offset || offset == 0 {
            listing.offset = 0;
            listing.rows.clear();
            listing.after = None;
            listing.done = false;
        }
        loop {
            if listing.rows.is_empty() && !self.more(&mut listing, &seen)? {
                return Ok(());
            }
            if listing.offset < offset {
                listing.rows.pop_front();
                listing.offset += 1;
                continue;
            }
            let next = listing.offset + 1;
            let Some(row) = listing.rows.front() else { return Ok(()) };
            if self.emit(&seen, row, next, plus, emit) {
                return Ok(());
            }
            listing.rows.pop_front();
            listing.offset = next;
        }
    }

    fn emit(&self, seen: &Seen, row: &Row, next: u64, plus: bool, emit: &mut dyn FnMut(Item<'_>) -> bool) -> bool {
        let dots = matches!(row.name.as_slice(), b"." | b"..");
        let (name, kind) = (row.name.as_slice(), row.kind);
        if dots {
            let ino = if row.name.len() == 1 { seen.ino } else { seen.parent };
            let attr = Attr { ino, kind: Type::Directory, mode: 0o755, size: 0, mtime: self.since };
            return emit(Item { ino, next, name, kind, attr: plus.then_some((attr, NONE)) });
        }
        if !plus {
            let known = self.table().child(seen.ino, name);
            return emit(Item { ino: known.unwrap_or_else(|| number(seen.ino, name)), next, name, kind, attr: None });
        }
        let (ino, bump) = {
            let mut table = self.table();
            let ino = table.enter(seen.ino, name, row.place, kind);
            table.given(ino);
            (ino, table.see_bump(ino))
        };
        let attr = match row.attr {
            Some(attr) => Ok(Attr { ino, mtime: bump.unwrap_or(attr.mtime), ..attr }),
            None => self.attr(ino),
        };
        let ttl = if matches!(row.place, Place::Key(_)) { LONG } else { NONE };
        // What went meanwhile is not shown.
        let full = attr.as_ref().is_ok_and(|attr| emit(Item { ino, next, name, kind, attr: Some((*attr, ttl)) }));
        if full || attr.is_err() {
            self.table().forget(ino, 1);
        }
        full
    }

    /// The next rows; `false` after the last.
    fn more(&self, listing: &mut Listing, seen: &Seen) -> Answer<bool> {
        if listing.done {
            return Ok(false);
        }
        let first = listing.after.is_none() && listing.offset == 0;
        if first {
            let dot = |name: &str| Row { name: name.into(), place: seen.place, kind: Type::Directory, attr: None };
            listing.rows.extend([dot("."), dot("..")]);
        }
        match seen.place {
            Place::Keys(store) | Place::Key(store) => self.more_keys(listing, seen, store)?,
            Place::Then(store, glass) | Place::Past(store, glass) => {
                let page = past::page(self, seen, (store, glass), listing.after.as_deref(), PAGE)?;
                listing.done = page.len() < PAGE;
                listing.after = page.last().map(|(name, _)| name.clone());
                let place = Place::Past(store, glass);
                listing.rows.extend(page.into_iter().map(|(name, attr)| Row::with(name, place, attr)));
            }
            Place::History(store) | Place::HistoryPath(store) => self.more_history(listing, seen, store)?,
            _ => {
                let rows = self.fixed_children(seen)?.into_iter();
                listing.rows.extend(rows.map(|(name, place, kind)| Row { name, place, kind, attr: None }));
                listing.done = true;
            }
        }
        Ok(!listing.rows.is_empty() || self.more(listing, seen)?)
    }

    fn more_history(&self, listing: &mut Listing, seen: &Seen, store: StoreId) -> Answer<()> {
        let mut versions = Vec::new();
        if listing.after.is_none() {
            versions = history::versions(self, seen, store)?;
        }
        let names = self.kv(&store)?.names_ever(&seen.path, listing.after.as_deref(), PAGE)?;
        listing.done = names.len() < PAGE;
        listing.after = names.last().cloned();
        let other = |name: &Vec<u8>| !versions.iter().any(|(version, _)| version == name);
        let names: Vec<_> = names.into_iter().filter(other).collect();
        let version = Place::Version(store);
        listing.rows.extend(versions.into_iter().map(|(name, attr)| Row::with(name, version, attr)));
        let (place, kind) = (Place::HistoryPath(store), Type::Directory);
        listing.rows.extend(names.into_iter().map(|name| Row { name, place, kind, attr: None }));
        Ok(())
    }

    fn more_keys(&self, listing: &mut Listing, seen: &Seen, store: StoreId) -> Answer<()> {
        if !seen.attached {
            listing.done = true;
            return Ok(());
        }
        let kv = self.kv(&store)?;
        let before: Vec<Box<[u8]>> = {
            let table = self.table();
            let locals = table.locals(seen.ino).into_iter().map(|(name, _)| name);
            locals.chain(table.whiteouts(seen.ino)).collect()
        };
        let page = kv.children(&seen.path, listing.after.as_deref(), PAGE)?;
        let last = page.last().map(|(name, _)| name.clone());
        listing.done = page.len() < PAGE;
        let place = Place::Key(store);
        let table = self.table();
        let from = listing.after.clone();
        let within = |name: &[u8]| {
            from.as_deref().is_none_or(|from| name > from)
                && (listing.done || last.as_deref().is_some_and(|last| name <= last))
        };
        let drafts: Vec<Row> = table
            .locals(seen.ino)
            .into_iter()
            .filter(|(name, _)| within(name))
            .filter_map(|(name, ino)| {
                let draft = table.draft(ino)?;
                let attr = Self::draft_attr(ino, &draft.shape());
                Some(Row { name: name.into_vec(), place, kind: attr.kind, attr: Some(attr) })
            })
            .collect();
        let stored = page.into_iter().filter_map(|(name, node)| {
            if table.whiteout(seen.ino, &name).is_some() || drafts.binary_search_by(|row| row.name.cmp(&name)).is_ok() {
                return None;
            }
            let shown = table.child(seen.ino, &name).and_then(|ino| Self::shown_draft(table.draft(ino).as_ref()));
            let attr = match shown {
                Some(draft) => Self::draft_attr(0, &draft.shape()),
                None => self.node_attr(0, &node, None),
            };
            Some(Row { name, place, kind: keys::kind(&node), attr: Some(attr) })
        });
        let mut rows: Vec<Row> = stored.collect();
        // Of what became an entry since the page was read, the page and the table together know nothing, or too much.
        let waits = |name: &[u8]| {
            table.whiteout(seen.ino, name).is_some() || drafts.binary_search_by(|row| (*row.name).cmp(name)).is_ok()
        };
        let settled: Vec<_> = before.into_iter().filter(|name| within(name) && !waits(name)).collect();
        drop(table);
        for name in settled {
            rows.retain(|row| *row.name != *name);
            if let Some(node) = kv.node(&join(&seen.path, &name))? {
                let attr = self.node_attr(0, &node, None);
                rows.push(Row { name: name.into_vec(), place, kind: attr.kind, attr: Some(attr) });
            }
        }
        rows.extend(drafts);
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        listing.after = last.or(from);
        listing.rows.extend(rows);
        Ok(())
    }
}

//! The store as it was, and what one author made of it: read from the heads and the history, without a replay.
//!
//! A moment is a set of entries that holds the past of each. Since no write supersedes a later one, a key's last write
//! in it is the one that was shown: one look at the end of the key's history, or none where that is its last write still.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::handle::{Kv, KvError, behind};
use super::machine::{HISTORY, KEYS, TOMBS};
use super::model::{Head, HeadId, Heads, Kind, Node, Version};
use super::path::{self, SEPARATOR};
use super::rows;
use crate::clock::{Hlc, Millis};
use crate::ids::{Hash, NodeId};
use crate::replication::database::{Flow, Read, Result, Table, View, prefix};
use crate::replication::log::Past;
use crate::stores::merge::Merge;

/// Rows read at once, at first and at most. Few in tests of this crate, so that they read more than once.
const FIRST: usize = if cfg!(test) { 2 } else { 16 };
const MOST: usize = 1_024;

/// A moment in the life of a store.
#[derive(Debug, Clone)]
pub struct Moment {
    until: Hlc,
    past: Option<Arc<Past>>,
}

impl Moment {
    /// All that was stamped up to a time, as far as this node has it: entries that are still on their way belong to it.
    #[must_use]
    pub const fn at(time: Millis) -> Self {
        Self { until: Hlc((time.0 << 16) | 0xffff), past: None }
    }

    /// All that this node has.
    #[must_use]
    pub const fn now() -> Self {
        Self { until: Hlc(u64::MAX), past: None }
    }

    /// What a set of entries made of the store.
    #[must_use]
    pub const fn of(past: Arc<Past>) -> Self {
        Self { until: Hlc(u64::MAX), past: Some(past) }
    }

    fn has(&self, head: &Head) -> bool {
        head.hlc <= self.until && self.past.as_ref().is_none_or(|past| past.has(&head.author, head.seq))
    }

    /// Where a key's history ends at this moment, as a bound of rows.
    fn end<'a>(&self, start: &'a [u8], end: &'a mut Vec<u8>) -> Bound<&'a [u8]> {
        let Some(behind) = self.until.0.checked_add(1) else { return prefix(start, end).1 };
        end.extend(start);
        end.extend(behind.to_be_bytes());
        Bound::Excluded(end)
    }
}

/// A way to look at a store.
#[derive(Debug, Clone)]
pub enum Lens {
    /// As it was.
    At(Moment),
    /// Only the keys whose value this author wrote.
    By(NodeId),
}

impl Lens {
    /// The keys that it may show.
    const fn tables(&self) -> &'static [Table] {
        match self {
            Self::At(_) => &[KEYS, TOMBS],
            Self::By(_) => &[KEYS],
        }
    }

    /// What it shows of a key whose heads are these now.
    fn head(&self, view: &View<'_>, row: &[u8], heads: &[u8]) -> Result<Option<Head>> {
        let last = *rows::decode(heads)?.lww();
        let head = match self {
            Self::By(author) => Some(last).filter(|head| head.author == *author),
            Self::At(moment) if moment.has(&last) => Some(last),
            Self::At(moment) => last_at(view, moment, row)?,
        };
        Ok(head.filter(Head::is_live))
    }
}

/// The last write to a key at a moment.
fn last_at(view: &View<'_>, moment: &Moment, row: &[u8]) -> Result<Option<Head>> {
    let start = rows::history_prefix(row);
    let mut end = Vec::new();
    let end = moment.end(&start, &mut end);
    let mut last: Option<Head> = None;
    let mut failed = None;
    view.scan(HISTORY, (Bound::Included(&start), end), true, &mut |key, value| {
        match rows::decode_version(&key[start.len()..], value) {
            Err(error) => failed = Some(error),
            Ok(Version { head, .. }) => {
                // Writes of one stamp are told apart by their authors.
                if last.is_some_and(|last| head.hlc < last.hlc) {
                    return Flow::Break(());
                }
                if moment.has(&head) && last.is_none_or(|last| head.order(&last).is_gt()) {
                    last = Some(head);
                }
            }
        }
        if failed.is_none() { Flow::Continue(()) } else { Flow::Break(()) }
    })?;
    failed.map_or(Ok(last), Err)
}

/// Rows of one table in order, read in pages.
struct Pages {
    table: Table,
    rows: VecDeque<(Vec<u8>, Vec<u8>)>,
    /// Where to go on reading; `None` at the end.
    from: Option<Vec<u8>>,
    size: usize,
}

impl Pages {
    fn fill(&mut self, view: &View<'_>, end: Bound<&[u8]>) -> Result<()> {
        if !self.rows.is_empty() {
            return Ok(());
        }
        let Some(from) = self.from.take() else { return Ok(()) };
        let size = self.size;
        self.size = MOST.min(size * 4);
        view.scan(self.table, (Bound::Included(&from), end), false, &mut |row, value| {
            self.rows.push_back((row.to_vec(), value.to_vec()));
            if self.rows.len() < size { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        if self.rows.len() == size {
            self.from = self.rows.back().map(|(row, _)| [row.as_slice(), &[0]].concat());
        }
        Ok(())
    }

    /// Goes on from `row`.
    fn seek(&mut self, row: &[u8]) {
        while self.rows.front().is_some_and(|(first, _)| first.as_slice() < row) {
            self.rows.pop_front();
        }
        if self.rows.is_empty() && self.from.as_deref().is_some_and(|from| from < row) {
            self.from = Some(row.to_vec());
        }
    }
}

/// The keys that a lens shows, in the order of their rows.
struct Walk<'v> {
    view: &'v View<'v>,
    lens: &'v Lens,
    pages: Vec<Pages>,
    end: Vec<u8>,
    endless: bool,
}

impl<'v> Walk<'v> {
    /// The rows that begin with `base`, from `from` on.
    fn new(view: &'v View<'v>, lens: &'v Lens, base: &[u8], from: &[u8]) -> Self {
        let mut end = Vec::new();
        let endless = matches!(prefix(base, &mut end).1, Bound::Unbounded);
        let page = |table: &Table| Pages { table, rows: VecDeque::new(), from: Some(from.to_vec()), size: FIRST };
        Self { view, lens, pages: lens.tables().iter().map(page).collect(), end, endless }
    }

    /// The row that comes next, shown or not.
    fn peek(&mut self) -> Result<Option<usize>> {
        let end = if self.endless { Bound::Unbounded } else { Bound::Excluded(self.end.as_slice()) };
        for pages in &mut self.pages {
            pages.fill(self.view, end)?;
        }
        let first = |(place, pages): (usize, &Pages)| pages.rows.front().map(|(row, _)| (row.clone(), place));
        Ok(self.pages.iter().enumerate().filter_map(first).min().map(|(_, place)| place))
    }

    /// The next key that is shown, if its row begins with `within`.
    fn next(&mut self, within: &[u8]) -> Result<Option<(Vec<u8>, Head)>> {
        while let Some(place) = self.peek()? {
            let rows = &mut self.pages[place].rows;
            if !rows.front().is_some_and(|(row, _)| row.starts_with(within)) {
                break;
            }
            if let Some((row, heads)) = rows.pop_front()
                && let Some(head) = self.lens.head(self.view, &row, &heads)?
            {
                return Ok(Some((row, head)));
            }
        }
        Ok(None)
    }

    fn seek(&mut self, row: &[u8]) {
        self.pages.iter_mut().for_each(|pages| pages.seek(row));
    }
}

/// What a mount shows of a write, keys below it considered.
fn node(head: Head, below: bool) -> Node {
    match head.kind {
        Kind::Directory => Node::Directory(Some(head)),
        Kind::File | Kind::Symlink if below => Node::Directory(None),
        Kind::Symlink => Node::Symlink(head),
        Kind::File | Kind::Deleted => Node::File(head),
    }
}

type Answer<T> = std::result::Result<T, KvError>;

impl Kv {
    /// The moment at which an entry was made: all that its author had seen, and itself. `None` if it is not here.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn moment_of(&self, entry: &Hash) -> Answer<Option<Moment>> {
        let view = self.view()?;
        let Some(past) = self.log().past(&view, entry)? else { return Ok(None) };
        let until = self.log().get(&view, entry)?.map_or(Hlc(u64::MAX), |entry| entry.header().hlc);
        Ok(Some(Moment { until, past: Some(Arc::new(past)) }))
    }

    /// The moment before an entry was made: all that its author had seen. `None` if it is not here.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn moment_before(&self, entry: &Hash) -> Answer<Option<Moment>> {
        let view = self.view()?;
        let Some(entry) = self.log().get(&view, entry)? else { return Ok(None) };
        let Some(past) = self.log().past(&view, &entry.hash())? else { return Ok(None) };
        let header = entry.header();
        Ok(Some(Moment { until: header.hlc, past: Some(Arc::new(past.before(&header.author, header.seq))) }))
    }

    /// What a mount shows at `path` through a lens; the empty path is the root directory.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn node_through(&self, lens: &Lens, path: &[u8]) -> Answer<Option<Node>> {
        if path.is_empty() {
            return Ok(Some(Node::Directory(None)));
        }
        if path::check(path).is_err() {
            return Ok(None);
        }
        let view = self.view()?;
        let row = path::row(path);
        let mut head = None;
        for table in lens.tables() {
            if let Some(heads) = view.get(table, &row)? {
                head = lens.head(&view, &row, &heads)?;
            }
        }
        if head.is_some_and(|head| head.kind == Kind::Directory) {
            return Ok(head.map(|head| Node::Directory(Some(head))));
        }
        let base = path::below(&row);
        let below = Walk::new(&view, lens, &base, &base).next(&base)?.is_some();
        Ok(match head {
            Some(head) => Some(node(head, below)),
            None => below.then_some(Node::Directory(None)),
        })
    }

    /// What a directory shows through a lens, paged like [`Kv::children`].
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn children_through(
        &self,
        lens: &Lens,
        dir: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Answer<Vec<(Vec<u8>, Node)>> {
        let mut found = Vec::new();
        if !dir.is_empty() && path::check(dir).is_err() {
            return Ok(found);
        }
        let view = self.view()?;
        let base = path::below(&path::row(dir));
        let from = after.map_or_else(|| base.clone(), |name| behind(&base, name));
        let mut walk = Walk::new(&view, lens, &base, &from);
        while found.len() < limit
            && let Some((row, head)) = walk.next(&base)?
        {
            let rest = &row[base.len()..];
            let name = rest.split(|byte| *byte == SEPARATOR).next().unwrap_or(rest).to_vec();
            let shown = if name.len() < rest.len() {
                Node::Directory(None)
            } else {
                let below = head.kind != Kind::Directory && walk.next(&path::below(&row))?.is_some();
                node(head, below)
            };
            walk.seek(&behind(&base, &name));
            found.push((name, shown));
        }
        Ok(found)
    }

    /// The keys that a lens shows at and below `path`, and what was written to them, in path order, those after `after`, at
    /// most `limit`.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn scan_through(
        &self,
        lens: &Lens,
        path: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Answer<Vec<(Vec<u8>, Head)>> {
        let mut found = Vec::new();
        if !path.is_empty() && path::check(path).is_err() {
            return Ok(found);
        }
        let view = self.view()?;
        let row = path::row(path);
        let base = path::below(&row);
        let from = after.map(|after| [path::row(after).as_slice(), &[0]].concat());
        if from.is_none() && !row.is_empty() {
            for table in lens.tables() {
                if let Some(heads) = view.get(table, &row)? {
                    found.extend(lens.head(&view, &row, &heads)?.map(|head| (path.to_vec(), head)));
                }
            }
        }
        let from = from.filter(|from| *from > base).unwrap_or_else(|| base.clone());
        let mut walk = Walk::new(&view, lens, &base, &from);
        while found.len() < limit
            && let Some((row, head)) = walk.next(&base)?
        {
            found.push((path::of_row(&row), head));
        }
        Ok(found)
    }

    /// The heads that a key had at a moment, also of a deleted one; `None` if it had not been written.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn heads_at(&self, moment: &Moment, path: &[u8]) -> Answer<Option<Heads>> {
        let versions = self.history(path)?.into_iter().filter(|version| moment.has(&version.head));
        let versions: Vec<_> = versions.collect();
        let cited: BTreeSet<(Hlc, HeadId)> = versions.iter().flat_map(|version| version.supersedes.clone()).collect();
        let heads = versions.iter().map(|version| version.head);
        let heads: Vec<_> = heads.filter(|head| !cited.contains(&(head.hlc, head.id))).collect();
        let shown = heads.iter().max_by(|one, other| one.order(other)).filter(|head| head.is_live());
        let below = match shown {
            Some(head) if head.kind != Kind::Directory => {
                let base = path::below(&path::row(path));
                let (view, lens) = (self.view()?, Lens::At(moment.clone()));
                Walk::new(&view, &lens, &base, &base).next(&base)?.is_some()
            }
            Some(_) | None => false,
        };
        Ok(Heads::new(heads, below))
    }

    /// Whether there ever was a key at `path` or below it.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn was_ever(&self, path: &[u8]) -> Answer<bool> {
        if path::check(path).is_err() {
            return Ok(false);
        }
        Ok(self.heads(path)?.is_some() || !self.names_ever(path, None, 1)?.is_empty())
    }

    /// The names in a directory that were ever there, whether as keys or on the way to some, in their order, those after `after`,
    /// at most `limit`.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn names_ever(&self, dir: &[u8], after: Option<&[u8]>, limit: usize) -> Answer<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        if !dir.is_empty() && path::check(dir).is_err() {
            return Ok(found);
        }
        let view = self.view()?;
        let base = path::below(&path::row(dir));
        let from = after.map_or_else(|| base.clone(), |name| behind(&base, name));
        // All rows of both tables, whatever they hold.
        let all = Lens::At(Moment::now());
        let mut walk = Walk::new(&view, &all, &base, &from);
        while found.len() < limit
            && let Some(place) = walk.peek()?
            && let Some((row, _)) = walk.pages[place].rows.front()
        {
            let rest = &row[base.len()..];
            let name = rest.split(|byte| *byte == SEPARATOR).next().unwrap_or(rest).to_vec();
            walk.seek(&behind(&base, &name));
            found.push(name);
        }
        Ok(found)
    }
}

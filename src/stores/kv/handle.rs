//! The handle that everyone uses: reading, submitting, contents.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::machine::{self, CONFLICTS, COUNT_CONFLICTS, COUNT_KEYS, HISTORY, KEYS};
use super::model::{Content, Head, HeadId, Heads, Node, Op, Value, Version};
use super::path::{self, BadPath, SEPARATOR};
use super::{rows, wire};
use crate::blobs::{BlobError, Payloads};
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::database::{DatabaseError, Flow, Read, View, prefix};
use crate::replication::limits;
use crate::replication::log::{Log, Origin, Receipt, SubmitError};
use crate::stores::merge::Merge;

/// How long [`Kv::read`] waits for a blob that is not on this machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Rows of a subtree that are passed one by one before a listing seeks its end: a seek costs about as much as these.
const SKIP: usize = 16;

/// What can go wrong with a kv store.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// No key can have this path.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// The operations don't fit one entry.
    #[error("the change takes {size} bytes, an entry holds {limit}; make it in smaller parts")]
    TooLarge {
        /// What it takes.
        size: usize,
        /// What an entry holds.
        limit: usize,
    },
    /// A head that was to be superseded is not known here.
    #[error("there is no head {} of this key", .0.short())]
    UnknownHead(Hash),
    /// The operations are not well formed.
    #[error("{0}")]
    Invalid(String),
    /// The content is a blob that is not on this machine and didn't come in time.
    #[error(transparent)]
    Absent(BlobError),
    /// The blob store failed.
    #[error(transparent)]
    Blob(BlobError),
    /// The content is not where its author said, or not what was promised.
    #[error("the content of this version can't be read: {0}")]
    Broken(String),
    /// A file that was to become a value can't be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The entry was not signed.
    #[error(transparent)]
    Submit(SubmitError),
    /// The store's file.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

type Result<T> = std::result::Result<T, KvError>;

/// A content, ready to be read.
#[derive(Debug)]
pub enum Opened {
    /// All of it.
    Bytes(Vec<u8>),
    /// A file that holds it, and its size in bytes.
    File(File, u64),
}

/// A kv store. Each read sees one moment; paths have `/` between parts and none at the ends.
pub struct Kv {
    log: Arc<Log>,
    payloads: Arc<dyn Payloads>,
}

impl std::fmt::Debug for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Kv {
    /// A kv store on its log and the blobs of this node.
    #[must_use]
    pub fn new(log: Arc<Log>, payloads: Arc<dyn Payloads>) -> Self {
        Self { log, payloads }
    }

    /// The log below.
    #[must_use]
    pub const fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn view(&self) -> Result<View<'_>> {
        Ok(self.log.database().view()?)
    }

    /// The heads of a key, also of a deleted one; `None` if it was never written.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn heads(&self, path: &[u8]) -> Result<Option<Heads>> {
        if path::check(path).is_err() {
            return Ok(None);
        }
        Ok(machine::heads(&self.view()?, &path::row(path))?)
    }

    /// What a mount shows at `path`; the empty path is the root directory.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn node(&self, path: &[u8]) -> Result<Option<Node>> {
        if path.is_empty() {
            return Ok(Some(Node::Directory(None)));
        }
        if path::check(path).is_err() {
            return Ok(None);
        }
        let row = path::row(path);
        let view = self.view()?;
        if let Some(value) = view.get(KEYS, &row)? {
            return Ok(rows::node(&value)?);
        }
        Ok(machine::has_below(&view, &row)?.then_some(Node::Directory(None)))
    }

    /// Whether a directory shows anything.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn has_children(&self, dir: &[u8]) -> Result<bool> {
        if !dir.is_empty() && path::check(dir).is_err() {
            return Ok(false);
        }
        Ok(machine::has_below(&self.view()?, &path::row(dir))?)
    }

    /// What a directory shows: names and nodes in the order of the names' bytes, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn children(&self, dir: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Node)>> {
        if limit == 0 || (!dir.is_empty() && path::check(dir).is_err()) {
            return Ok(Vec::new());
        }
        let view = self.view()?;
        let base = path::below(&path::row(dir));
        let mut end = Vec::new();
        let (_, end) = prefix(&base, &mut end);
        let mut listing = Listing { base: base.len(), limit, found: Vec::new(), passed: 0, failed: None };
        let mut start = after.map_or_else(|| base.clone(), |name| behind(&base, name));
        loop {
            listing.passed = 0;
            view.scan(KEYS, (std::ops::Bound::Included(&start), end), false, &mut |row, value| {
                listing.visit(row, value)
            })?;
            if let Some(error) = listing.failed {
                return Err(error.into());
            }
            match listing.found.last() {
                Some((name, _)) if listing.passed > SKIP && listing.found.len() < limit => start = behind(&base, name),
                Some(_) | None => return Ok(listing.found),
            }
        }
    }

    /// The visible keys whose paths begin with `prefix`, and their heads, in path order (part by part), those after
    /// `after`, at most `limit`.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Heads)>> {
        let rows = page(&self.view()?, KEYS, prefix, after, limit)?;
        rows.into_iter().map(|(row, value)| Ok((path::of_row(&row), rows::decode(&value)?))).collect()
    }

    /// The keys that need a person, paged like [`Kv::scan`]: with heads that are not one value, or with keys below a
    /// path that is a file.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn conflicts(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Heads)>> {
        let view = self.view()?;
        let rows = page(&view, CONFLICTS, prefix, after, limit)?;
        rows.into_iter()
            .map(|(row, _)| {
                let heads = machine::heads(&view, &row)?.ok_or_else(rows::corrupt)?;
                Ok((path::of_row(&row), heads))
            })
            .collect()
    }

    /// All writes to a key, oldest first.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn history(&self, path: &[u8]) -> Result<Vec<Version>> {
        self.history_between(path, Hlc(0), Hlc(u64::MAX))
    }

    /// The writes to a key that are stamped from `from` to `until`, oldest first.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn history_between(&self, path: &[u8], from: Hlc, until: Hlc) -> Result<Vec<Version>> {
        if path::check(path).is_err() {
            return Ok(Vec::new());
        }
        let start = rows::history_prefix(&path::row(path));
        let first = [start.as_slice(), &from.0.to_be_bytes()].concat();
        let mut end = Vec::new();
        let (_, end) = prefix(&start, &mut end);
        let mut found = Vec::new();
        self.view()?.scan(HISTORY, (std::ops::Bound::Included(&first), end), false, &mut |key, value| {
            let version = rows::decode_version(&key[start.len()..], value);
            if version.as_ref().is_ok_and(|version| version.head.hlc > until) {
                return Flow::Break(());
            }
            found.push(version);
            Flow::Continue(())
        })?;
        Ok(found.into_iter().collect::<std::result::Result<_, _>>()?)
    }

    /// How many keys are visible.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn count(&self) -> Result<u64> {
        Ok(machine::count(&self.view()?, COUNT_KEYS)?)
    }

    /// How many keys need a person.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn conflict_count(&self) -> Result<u64> {
        Ok(machine::count(&self.view()?, COUNT_CONFLICTS)?)
    }

    /// The content of a write; a blob that is not here is waited for, for [`PATIENCE`].
    ///
    /// # Errors
    /// [`KvError::Absent`] if it did not come, [`KvError::Broken`] if the author promised what is not there.
    pub fn read(&self, head: &Head) -> Result<Opened> {
        self.read_within(head, PATIENCE)
    }

    /// As [`Kv::read`], waiting for a blob for at most `patience`.
    ///
    /// # Errors
    /// As [`Kv::read`].
    pub fn read_within(&self, head: &Head, patience: Duration) -> Result<Opened> {
        match head.content {
            Content::Empty => Ok(Opened::Bytes(Vec::new())),
            Content::Inline { author, seq, op, size, hash } => {
                let view = self.view()?;
                let entry = match self.log.at(&view, &author, seq)? {
                    // A later entry took it over from one that counts no more.
                    None => self.log.aside_at(&view, &author, seq)?,
                    found => found,
                };
                let entry = entry.ok_or_else(|| KvError::Broken(format!("no entry {seq} of {author}")))?;
                let payload = wire::decode(&entry).map_err(KvError::Broken)?;
                let bytes = payload.operations.get(usize::from(op)).and_then(wire::Operation::bytes);
                let bytes = bytes.filter(|bytes| bytes.len() as u64 == size && Hash::from(blake3::hash(bytes)) == hash);
                let bytes = bytes.ok_or_else(|| KvError::Broken(format!("not in operation {op} of {entry:?}")))?;
                Ok(Opened::Bytes(bytes.to_vec()))
            }
            Content::Blob { hash, size } => {
                let file = match self.payloads.open(&hash).map_err(KvError::Blob)? {
                    Some(file) => file,
                    None => self.payloads.fetch(&hash, size, patience).map_err(|error| match error {
                        BlobError::Absent { .. } => KvError::Absent(error),
                        BlobError::Io { .. }
                        | BlobError::Index { .. }
                        | BlobError::Damaged { .. }
                        | BlobError::Full
                        | BlobError::Store(_) => KvError::Blob(error),
                    })?,
                };
                Ok(Opened::File(file, size))
            }
        }
    }

    /// `bytes` as a value: inside the entry if small enough, else a blob, durable when this returns.
    ///
    /// # Errors
    /// If the blob can't be kept.
    pub fn value(&self, bytes: &[u8]) -> Result<Value> {
        match bytes.len() {
            0 => Ok(Value::Empty),
            size if size <= limits::INLINE_VALUE => Ok(Value::Bytes(bytes.to_vec())),
            _ => {
                let (hash, size) = self.payloads.add_bytes(bytes).map_err(KvError::Blob)?;
                Ok(Value::Blob { hash, size })
            }
        }
    }

    /// The content of the file at `path` as a value, like [`Kv::value`].
    ///
    /// # Errors
    /// If the file can't be read or the blob can't be kept.
    pub fn value_of_file(&self, path: &Path) -> Result<Value> {
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(limits::INLINE_VALUE as u64 + 1).read_to_end(&mut start))
            .map_err(|source| KvError::Io { path: path.to_owned(), source })?;
        if start.len() <= limits::INLINE_VALUE {
            return self.value(&start);
        }
        let (hash, size) = self.payloads.add_file(path).map_err(KvError::Blob)?;
        Ok(Value::Blob { hash, size })
    }

    /// Signs and applies the operations as one entry: all of them count or none. Visible when this returns, durable after
    /// [`Kv::wait`] on the receipt's `staged`.
    ///
    /// # Errors
    /// If an operation is not well formed or names heads that are not here, if they don't fit one entry, or if the
    /// store takes no writes.
    pub fn submit(&self, ops: Vec<Op>, origin: Origin) -> Result<Receipt> {
        let blobs: Vec<Hash> = ops.iter().filter_map(blob).collect();
        let receipt = self.log.submit(&self.encoded(ops)?, origin).map_err(refused)?;
        self.arrived(&blobs);
        Ok(receipt)
    }

    /// The same for an encoded payload that names `blobs`, if `holds` of the store as it is right before the entry; `None` if it
    /// does not.
    pub(super) fn submit_if(
        &self,
        payload: &[u8],
        blobs: &[Hash],
        origin: Origin,
        holds: impl FnOnce(&View<'_>) -> std::result::Result<bool, DatabaseError>,
    ) -> Result<Option<Receipt>> {
        let receipt = self.log.submit_if(payload, origin, holds).map_err(refused)?;
        if receipt.is_some() {
            self.arrived(blobs);
        }
        Ok(receipt)
    }

    /// The payload of the entry that makes these operations, if they are well formed and fit one.
    pub(super) fn encoded(&self, ops: Vec<Op>) -> Result<Vec<u8>> {
        let payload = self.payload(ops)?;
        let bytes = payload.encode_to_vec();
        if bytes.len() > limits::PAYLOAD {
            return Err(KvError::TooLarge { size: bytes.len(), limit: limits::PAYLOAD });
        }
        wire::parse(payload, self.log.me(), 0, Hlc(u64::MAX)).map_err(KvError::Invalid)?;
        Ok(bytes)
    }

    /// Notes of blobs that were named which are here. The entry is made, so this can't fail it.
    fn arrived(&self, blobs: &[Hash]) {
        let note = |hash| match self.payloads.open(hash).map_err(KvError::Blob)? {
            Some(_) => Ok(self.log.arrived(hash)?),
            None => Ok(()),
        };
        for hash in blobs {
            if let Err::<(), KvError>(error) = note(hash) {
                tracing::error!(target: "store", blob = %hash.short(), %error, "it is not noted that a large value is here");
            }
        }
    }

    /// Waits until what was submitted is durable.
    ///
    /// # Errors
    /// If its commit failed.
    pub fn wait(&self, staged: u64) -> Result<()> {
        Ok(self.log.wait(staged)?)
    }

    pub(super) fn payload(&self, ops: Vec<Op>) -> Result<wire::Payload> {
        let view = self.view()?;
        let mut operations = Vec::with_capacity(ops.len());
        for op in ops {
            path::check(op.path())?;
            let cites = self.cites(&view, &op)?;
            operations.push(wire::operation(op, cites, self.log.me()).map_err(KvError::Invalid)?);
        }
        Ok(wire::Payload { version: wire::VERSION, operations })
    }

    /// Each cited head with its stamp.
    fn cites(&self, view: &View<'_>, op: &Op) -> Result<Vec<(Hlc, HeadId)>> {
        if op.supersedes().is_empty() {
            return Ok(Vec::new());
        }
        let heads = machine::heads(view, &path::row(op.path()))?;
        let heads = heads.as_ref().map_or(&[][..], |heads| heads.all());
        let find = |id: &HeadId| {
            if let Some(head) = heads.iter().find(|head| head.id == *id) {
                return Ok((head.hlc, *id));
            }
            let entry = self.log.get(view, &id.entry)?.ok_or(KvError::UnknownHead(id.entry))?;
            Ok((entry.header().hlc, *id))
        };
        op.supersedes().iter().map(find).collect()
    }
}

fn refused(error: SubmitError) -> KvError {
    match error {
        SubmitError::Database(error) => KvError::Database(error),
        SubmitError::NotAllowed | SubmitError::Regaining | SubmitError::Malformed(_) => KvError::Submit(error),
    }
}

/// The blob that an operation names.
pub(super) fn blob(op: &Op) -> Option<Hash> {
    match op {
        Op::Put { value: Value::Blob { hash, .. } | Value::Same(Content::Blob { hash, .. }), .. }
        | Op::SetAttr { value: Value::Blob { hash, .. } | Value::Same(Content::Blob { hash, .. }), .. } => Some(*hash),
        Op::Put { value: Value::Empty | Value::Bytes(_) | Value::Same(_), .. }
        | Op::SetAttr { value: Value::Empty | Value::Bytes(_) | Value::Same(_), .. }
        | Op::Delete { .. } => None,
    }
}

/// The first row behind the subtree of this name.
pub(super) fn behind(base: &[u8], name: &[u8]) -> Vec<u8> {
    [base, name, &[SEPARATOR + 1]].concat()
}

struct Listing {
    base: usize,
    limit: usize,
    found: Vec<(Vec<u8>, Node)>,
    /// Rows passed since the last name that was found.
    passed: usize,
    failed: Option<DatabaseError>,
}

impl Listing {
    fn visit(&mut self, row: &[u8], value: &[u8]) -> Flow {
        let rest = &row[self.base..];
        let name = rest.split(|byte| *byte == SEPARATOR).next().unwrap_or(rest);
        if self.found.last().is_some_and(|(last, _)| last == name) {
            self.passed += 1;
            return if self.passed > SKIP { Flow::Break(()) } else { Flow::Continue(()) };
        }
        if self.found.len() == self.limit {
            return Flow::Break(());
        }
        self.passed = 0;
        let node = if rest.len() == name.len() {
            match rows::node(value) {
                Ok(Some(node)) => node,
                Ok(None) => return Flow::Continue(()),
                Err(error) => {
                    self.failed = Some(error);
                    return Flow::Break(());
                }
            }
        } else {
            Node::Directory(None)
        };
        self.found.push((name.to_vec(), node));
        if self.found.len() == self.limit { Flow::Break(()) } else { Flow::Continue(()) }
    }
}

type Row = (Vec<u8>, Vec<u8>);

fn page(view: &View<'_>, table: &'static str, start: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
    if limit == 0 || start.contains(&0) {
        return Ok(Vec::new());
    }
    let start = path::row(start);
    let after = after.map(path::row);
    let mut end = Vec::new();
    let (from, end) = prefix(&start, &mut end);
    let from = match &after {
        Some(after) if *after >= start => std::ops::Bound::Excluded(after.as_slice()),
        Some(_) | None => from,
    };
    let mut found = Vec::new();
    view.scan(table, (from, end), false, &mut |row, value| {
        found.push((row.to_vec(), value.to_vec()));
        if found.len() < limit { Flow::Continue(()) } else { Flow::Break(()) }
    })?;
    Ok(found)
}

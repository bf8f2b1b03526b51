//! Stores of the kind `kv`: reading, writing, listing and watching keys.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::failure::{Failure, Kind};
use super::host::Host;
use super::stores::{Answers, WAITING, blocking, not_open, registry};
use super::wire::{
    self, BatchPart, BatchReply, ChangedKey, ConflictsRequest, DeleteReply, DeleteRequest, GetPart, GetRequest,
    HeadName, Key, ListRequest, PickReply, PickRequest, Picked, PutPart, PutReply, WatchRequest, kv_server::Kv,
};
use crate::clock::{self, Hlc};
use crate::ids::Hash;
use crate::replication::limits;
use crate::replication::log::{Event, Log, Origin};
use crate::stores::kv::{self, Head, HeadId, Heads, KvError, Node, Op, Opened, Value};
use crate::stores::{Kv as Keys, Merge};

/// Keys read from a store at once.
const PAGE: usize = 1_000;
/// How much of a value is sent at once, in bytes.
const PART: usize = 256 * 1024;
/// Changes in a batch at most: more never fit an entry.
const MOST: usize = limits::PAYLOAD / 4;
/// The permission bits of a key that had none.
const MODE: u32 = 0o644;

#[derive(Clone)]
pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
    pub(super) stop: CancellationToken,
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Self {
        let hint = match &error {
            KvError::TooLarge { .. } | KvError::Path(_) | KvError::UnknownHead(_) | KvError::Invalid(_) => {
                return Self::refused(error);
            }
            KvError::Submit(error) => return error.into(),
            KvError::Database(error) => return error.into(),
            KvError::Absent(blob) => return Self::new(Kind::Unavailable, &error).hint(blob.hint()),
            KvError::Blob(blob) => return Self::failed(&error).hint(blob.hint()),
            KvError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => "free some space first",
            KvError::Broken(_) | KvError::Io { .. } => "the node's log tells more",
        };
        Self::failed(error).hint(hint)
    }
}

pub(super) fn described(log: &Log, head: &Head) -> wire::Head {
    let kind = match head.kind {
        kv::Kind::File => "file",
        kv::Kind::Directory => "directory",
        kv::Kind::Symlink => "symlink",
        kv::Kind::Deleted => "deleted",
    };
    wire::Head {
        hash: head.id.entry.0.to_vec(),
        op: u32::from(head.id.op),
        author: head.author.0.to_vec(),
        author_name: log.membership().load().name(&head.author),
        seq: head.seq,
        hlc: head.hlc.0,
        kind: kind.into(),
        mode: head.mode,
        mtime: head.mtime,
        size: head.content.size(),
        content: head.content.hash().0.to_vec(),
    }
}

fn key(keys: &Keys, path: Vec<u8>, heads: &Heads) -> Key {
    Key {
        path,
        heads: heads.all().iter().map(|head| described(keys.log(), head)).collect(),
        shadowed: heads.is_shadowed(),
    }
}

pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn absent(path: &[u8]) -> Failure {
    Failure::not_found(format!("there is no key '{}'", shown(path))).hint("`lattice kv list` names them")
}

/// Refuses a path at and below which nothing ever was: there is nothing to tell of its past. The empty path is the whole store.
pub(super) fn ever(keys: &Keys, path: &[u8]) -> Result<(), Failure> {
    if path.is_empty() || keys.was_ever(path)? {
        return Ok(());
    }
    Err(Failure::not_found(format!("nothing was ever at or below '{}'", shown(path)))
        .hint("`lattice kv list` names the keys that there are, `lattice log` those that there were"))
}

/// The heads of a key that has a value; a directory that only keys below it imply has none.
fn found(keys: &Keys, path: &[u8]) -> Result<Heads, Failure> {
    kv::check_path(path).map_err(KvError::from)?;
    let heads = keys.heads(path)?.filter(|heads| heads.visible().is_some() || heads.all().len() > 1);
    match heads {
        Some(heads) => Ok(heads),
        None if keys.has_children(path)? => Err(directory(path)),
        None => Err(absent(path)),
    }
}

pub(super) fn directory(path: &[u8]) -> Failure {
    Failure::refused(format!("'{}' is a directory", shown(path)))
        .hint("name a key below it: `lattice kv list` names them")
}

fn chosen(heads: &Heads, start: &str, path: &[u8]) -> Result<Head, Failure> {
    if start.is_empty() {
        return heads
            .visible()
            .copied()
            .ok_or_else(|| absent(path).hint("its last write is a deletion; `lattice conflicts` lists the others"));
    }
    let mut matching = heads.all().iter().filter(|head| head.id.entry.to_string().starts_with(start));
    match (matching.next(), matching.next()) {
        (Some(head), None) => Ok(*head),
        (Some(_), Some(_)) => {
            Err(Failure::refused(format!("several heads begin with '{start}'")).hint("give more of the hash"))
        }
        (None, _) => Err(Failure::not_found(format!("'{}' has no head that begins with '{start}'", shown(path)))
            .hint("`lattice conflicts` lists them")),
    }
}

pub(super) type Parts = mpsc::Sender<Result<GetPart, Status>>;

fn send_value(keys: &Keys, request: &GetRequest, parts: &Parts) -> Result<(), Failure> {
    let heads = found(keys, &request.path)?;
    let head = chosen(&heads, &request.head, &request.path)?;
    if head.kind == kv::Kind::Directory || (request.head.is_empty() && heads.is_shadowed()) {
        return Err(directory(&request.path));
    }
    let opened = keys.read(&head)?;
    let all = heads.all().iter().filter(|other| other.id != head.id);
    let shown = std::iter::once(&head).chain(all).map(|head| described(keys.log(), head)).collect();
    let key = Key { path: request.path.clone(), heads: shown, shadowed: heads.is_shadowed() };
    let first = GetPart { key: Some(key), data: Vec::new() };
    if parts.blocking_send(Ok(first)).is_err() {
        return Ok(());
    }
    send(opened, parts)
}

/// Sends a content, part by part.
pub(super) fn send(opened: Opened, parts: &Parts) -> Result<(), Failure> {
    let mut source: Box<dyn Read> = match opened {
        Opened::Bytes(bytes) => Box::new(std::io::Cursor::new(bytes)),
        Opened::File(file, size) => Box::new(file.take(size)),
    };
    loop {
        let mut data = Vec::new();
        source.by_ref().take(PART as u64).read_to_end(&mut data).map_err(Failure::failed)?;
        if data.is_empty() || parts.blocking_send(Ok(GetPart { key: None, data })).is_err() {
            return Ok(());
        }
    }
}

/// Content on its way in: in memory while small, then in a file without a name.
struct Incoming {
    drafts: PathBuf,
    bytes: Vec<u8>,
    file: Option<std::fs::File>,
    size: u64,
}

impl Incoming {
    fn add(&mut self, data: &[u8]) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            let failure = Failure::failed(format!("{}: {error}", self.drafts.display()));
            if error.kind() == std::io::ErrorKind::StorageFull {
                failure.hint("free some space first")
            } else {
                failure
            }
        };
        self.size += data.len() as u64;
        if self.file.is_none() && self.bytes.len() + data.len() <= limits::INLINE_VALUE {
            self.bytes.extend_from_slice(data);
            return Ok(());
        }
        if self.file.is_none() {
            let mut file = tempfile::tempfile_in(&self.drafts).map_err(failed)?;
            file.write_all(&std::mem::take(&mut self.bytes)).map_err(failed)?;
            self.file = Some(file);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(data)).map_err(failed)
    }

    fn value(self, keys: &Keys) -> Result<Value, Failure> {
        match self.file {
            None => Ok(keys.value(&self.bytes)?),
            // The name leads to the open file itself: it has no other.
            Some(file) => Ok(keys.value_of_file(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref())?),
        }
    }
}

/// Refuses a path that files could not stand at beside the ones that are there.
fn fits(keys: &Keys, path: &[u8]) -> Result<(), Failure> {
    kv::check_path(path).map_err(KvError::from)?;
    if let Some(Node::Directory(_)) = keys.node(path)? {
        return Err(directory(path));
    }
    for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        if let Some(Node::File(_) | Node::Symlink(_)) = keys.node(&path[..end])? {
            let above = shown(&path[..end]);
            return Err(Failure::refused(format!("'{above}' is a key, so nothing can stand below it"))
                .hint("choose another path"));
        }
    }
    Ok(())
}

/// The names of heads as they came, or `None` if one is none.
fn names(names: &[HeadName]) -> Option<Vec<HeadId>> {
    let name = |name: &HeadName| Some(HeadId { entry: Hash::from_slice(&name.hash)?, op: name.op.try_into().ok()? });
    names.iter().map(name).collect()
}

fn no_head(path: &[u8]) -> Failure {
    Failure::not_found(format!("'{}' has no such version", shown(path)))
}

fn put(keys: &Keys, path: Vec<u8>, mode: u32, seen: &[HeadName], incoming: Incoming) -> Result<PutReply, Failure> {
    let size = incoming.size;
    let value = incoming.value(keys)?;
    let heads = keys.heads(&path)?;
    let seen = names(seen).ok_or_else(|| no_head(&path))?;
    let is_seen = |head: &&Head| seen.is_empty() || seen.contains(&head.id);
    let old: Vec<Head> = heads.iter().flat_map(|heads| heads.all()).filter(is_seen).copied().collect();
    let supersedes = old.iter().map(|head| head.id).collect();
    let present = heads.as_ref().and_then(Heads::visible).filter(|head| head.kind == kv::Kind::File);
    let mode = if mode == 0 { present.map_or(MODE, |head| head.mode) } else { mode & 0o7777 };
    let op = Op::Put { path, supersedes, kind: kv::Kind::File, mode, mtime: clock::nanos(), value };
    let receipt = keys.submit(vec![op], Origin::Local)?;
    keys.wait(receipt.staged)?;
    let superseded = old.iter().map(|head| described(keys.log(), head)).collect();
    Ok(PutReply { hash: receipt.hash.0.to_vec(), size, superseded })
}

/// One change of a batch.
enum Change {
    Put { path: Vec<u8>, mode: u32, value: Vec<u8> },
    Delete { path: Vec<u8> },
}

impl Change {
    fn of(part: BatchPart) -> Self {
        let BatchPart { path, delete, mode, data, .. } = part;
        if delete { Self::Delete { path } } else { Self::Put { path, mode, value: data } }
    }

    fn path(&self) -> &[u8] {
        match self {
            Self::Put { path, .. } | Self::Delete { path } => path,
        }
    }
}

/// Refuses a batch that names a key twice, or after which files could not stand where they are to.
fn fit(keys: &Keys, changes: &[Change]) -> Result<(), Failure> {
    let mut puts = BTreeMap::new();
    for change in changes {
        kv::check_path(change.path()).map_err(KvError::from)?;
        if puts.insert(change.path(), matches!(change, Change::Put { .. })).is_some() {
            return Err(Failure::refused(format!("'{}' is named twice", shown(change.path()))));
        }
    }
    for path in puts.iter().filter(|(_, put)| **put).map(|(path, _)| *path) {
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = &path[..end];
            let is_key = match puts.get(above) {
                Some(put) => *put,
                None => matches!(keys.node(above)?, Some(Node::File(_) | Node::Symlink(_))),
            };
            if is_key {
                return Err(Failure::refused(format!(
                    "'{}' is a key, so '{}' can't stand below it",
                    shown(above),
                    shown(path)
                )));
            }
        }
        if let Some(Node::Directory(_)) = keys.node(path)? {
            return Err(directory(path));
        }
    }
    Ok(())
}

fn batch(keys: &Keys, changes: Vec<Change>) -> Result<BatchReply, Failure> {
    fit(keys, &changes)?;
    let mut reply = BatchReply::default();
    let mut ops = Vec::with_capacity(changes.len());
    for change in changes {
        match change {
            Change::Put { path, mode, value } => {
                let heads = keys.heads(&path)?;
                let supersedes = heads.iter().flat_map(|heads| heads.all()).map(|head| head.id).collect();
                let present = heads.as_ref().and_then(Heads::visible).filter(|head| head.kind == kv::Kind::File);
                let mode = if mode == 0 { present.map_or(MODE, |head| head.mode) } else { mode & 0o7777 };
                let (kind, mtime, value) = (kv::Kind::File, clock::nanos(), keys.value(&value)?);
                ops.push(Op::Put { path, supersedes, kind, mode, mtime, value });
                reply.written += 1;
            }
            Change::Delete { path } => {
                let supersedes = found(keys, &path)?.all().iter().map(|head| head.id).collect();
                ops.push(Op::Delete { path, supersedes });
                reply.deleted += 1;
            }
        }
    }
    if !ops.is_empty() {
        let receipt = keys.submit(ops, Origin::Local)?;
        keys.wait(receipt.staged)?;
        reply.hash = receipt.hash.0.to_vec();
    }
    Ok(reply)
}

fn pick(keys: &Keys, picked: Vec<Picked>) -> Result<PickReply, Failure> {
    let mut ops = Vec::with_capacity(picked.len());
    for Picked { path, head, heads } in picked {
        let head = head.and_then(|head| Some((Hlc(head.hlc), names(&[HeadName { hash: head.hash, op: head.op }])?)));
        let version = head.map(|(hlc, id)| keys.version(&path, hlc, &id[0])).transpose()?.flatten();
        let (version, supersedes) = version.zip(names(&heads)).ok_or_else(|| no_head(&path))?;
        ops.push(version.head.again(path, supersedes));
    }
    let mut reply = PickReply::default();
    let mut last = None;
    // Halves of what does not fit an entry: each key is settled for itself.
    let mut left = vec![ops];
    while let Some(mut ops) = left.pop().filter(|ops| !ops.is_empty()) {
        match keys.submit(ops.clone(), Origin::Local) {
            Ok(receipt) => {
                reply.hashes.push(receipt.hash.0.to_vec());
                last = Some(receipt.staged);
            }
            Err(KvError::TooLarge { .. }) if ops.len() > 1 => {
                let rest = ops.split_off(ops.len() / 2);
                left.extend([rest, ops]);
            }
            Err(error) => return Err(error.into()),
        }
    }
    last.map_or(Ok(()), |staged| keys.wait(staged))?;
    Ok(reply)
}

fn delete(keys: &Keys, path: Vec<u8>) -> Result<DeleteReply, Failure> {
    let heads = found(keys, &path)?;
    if heads.visible().is_some_and(|head| head.kind == kv::Kind::Directory) && keys.has_children(&path)? {
        return Err(Failure::refused(format!("the directory '{}' is not empty", shown(&path)))
            .hint("delete the keys below it first"));
    }
    let supersedes = heads.all().iter().map(|head| head.id).collect();
    let receipt = keys.submit(vec![Op::Delete { path, supersedes }], Origin::Local)?;
    keys.wait(receipt.staged)?;
    let superseded = heads.all().iter().map(|head| described(keys.log(), head)).collect();
    Ok(DeleteReply { hash: receipt.hash.0.to_vec(), superseded })
}

type Page = fn(&Keys, &[u8], Option<&[u8]>, usize) -> Result<Vec<(Vec<u8>, Heads)>, KvError>;

fn pages(keys: &Keys, prefix: &[u8], page: Page, answers: &mpsc::Sender<Result<Key, Status>>) -> Result<(), Failure> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let found = page(keys, prefix, after.as_deref(), PAGE)?;
        let last = found.len() < PAGE;
        after = found.last().map(|(path, _)| path.clone());
        for (path, heads) in found {
            if answers.blocking_send(Ok(key(keys, path, &heads))).is_err() {
                return Ok(());
            }
        }
        if last {
            return Ok(());
        }
    }
}

fn changes(event: &Event, log: &Log, prefix: &[u8]) -> Vec<ChangedKey> {
    let header = event.entry.header();
    let changed = event.effects.changes.iter().filter(|change| change.key.starts_with(prefix));
    changed
        .map(|change| ChangedKey {
            what: change.what.name().into(),
            path: change.key.clone(),
            author: header.author.0.to_vec(),
            author_name: log.membership().load().name(&header.author),
            hlc: header.hlc.0,
            hash: event.entry.hash().0.to_vec(),
        })
        .collect()
}

/// The store of this name, if it is one of keys; with all in it that this node's mounts show.
pub(super) async fn keys_of(host: &dyn Host, store: &str) -> Result<Arc<Keys>, Failure> {
    let keys = {
        let registry = registry(host)?;
        registry.kv(store).ok_or_else(|| not_open(&registry, store, "kv"))?
    };
    host.settle(keys.log().store()).await?;
    Ok(keys)
}

/// Answers a stream from work that waits for the disk.
pub(super) fn answer<T: Send + 'static>(
    work: impl FnOnce(&mpsc::Sender<Result<T, Status>>) -> Result<(), Failure> + Send + 'static,
) -> Response<Answers<T>> {
    let (answers, stream) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        if let Err(failure) = work(&answers) {
            // To a reader that is gone nothing can be told.
            answers.blocking_send(Err(failure.into())).ok();
        }
    });
    Response::new(ReceiverStream::new(stream))
}

impl Service {
    async fn keys(&self, store: &str) -> Result<Arc<Keys>, Failure> {
        keys_of(self.host.as_ref(), store).await
    }
}

#[tonic::async_trait]
impl Kv for Service {
    type GetStream = Answers<GetPart>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let request = request.into_inner();
        let keys = self.keys(&request.store).await?;
        Ok(answer(move |parts| send_value(&keys, &request, parts)))
    }

    async fn put(&self, request: Request<Streaming<PutPart>>) -> Result<Response<PutReply>, Status> {
        let mut parts = request.into_inner();
        let Some(first) = parts.message().await? else {
            return Err(Failure::new(Kind::Usage, "the call ended before it named a key").into());
        };
        let PutPart { store, path, mode, data, seen } = first;
        let keys = self.keys(&store).await?;
        let (checked, at) = (keys.clone(), path.clone());
        blocking(move || fits(&checked, &at)).await?;
        let drafts = self.host.about().data.join("drafts");
        let mut incoming = Incoming { drafts, bytes: Vec::new(), file: None, size: 0 };
        let mut next = Some(data);
        while let Some(data) = next {
            incoming = blocking(move || incoming.add(&data).map(|()| incoming)).await?;
            next = parts.message().await?.map(|part| part.data);
        }
        Ok(Response::new(blocking(move || put(&keys, path, mode, &seen, incoming)).await?))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        let DeleteRequest { store, path } = request.into_inner();
        let keys = self.keys(&store).await?;
        Ok(Response::new(blocking(move || delete(&keys, path)).await?))
    }

    type ListStream = Answers<Key>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let ListRequest { store, prefix } = request.into_inner();
        let keys = self.keys(&store).await?;
        Ok(answer(move |answers| pages(&keys, &prefix, Keys::scan, answers)))
    }

    type WatchStream = Answers<ChangedKey>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { store, prefix } = request.into_inner();
        let log = self.keys(&store).await?.log().clone();
        let mut events = log.subscribe();
        let (answers, stream) = mpsc::channel(WAITING);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let mut told = vec![ChangedKey::default()];
            loop {
                for change in told.drain(..) {
                    if answers.send(Ok(change)).await.is_err() {
                        return;
                    }
                }
                let event = tokio::select! {
                    event = events.recv() => event,
                    () = stop.cancelled() => return,
                    () = answers.closed() => return,
                };
                match event {
                    Ok(event) if event.store == log.store() => told = changes(&event, &log, &prefix),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => {
                        told.push(ChangedKey { what: "lagged".into(), ..ChangedKey::default() })
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn batch(&self, request: Request<Streaming<BatchPart>>) -> Result<Response<BatchReply>, Status> {
        let mut parts = request.into_inner();
        let Some(first) = parts.message().await? else {
            return Err(Failure::new(Kind::Usage, "the call ended before it named a store").into());
        };
        let keys = self.keys(&first.store).await?;
        let mut changes = Vec::new();
        let mut next = Some(first);
        while let Some(part) = next {
            // The first may name the store only.
            if !part.path.is_empty() {
                changes.push(Change::of(part));
            }
            if changes.len() > MOST {
                return Err(Failure::refused(format!("a batch holds at most {MOST} changes")).into());
            }
            next = parts.message().await?;
        }
        Ok(Response::new(blocking(move || batch(&keys, changes)).await?))
    }

    async fn pick(&self, request: Request<PickRequest>) -> Result<Response<PickReply>, Status> {
        let PickRequest { store, keys: picked } = request.into_inner();
        let keys = self.keys(&store).await?;
        Ok(Response::new(blocking(move || pick(&keys, picked)).await?))
    }

    type ConflictsStream = Answers<Key>;

    async fn conflicts(&self, request: Request<ConflictsRequest>) -> Result<Response<Self::ConflictsStream>, Status> {
        let ConflictsRequest { store, prefix } = request.into_inner();
        let keys = self.keys(&store).await?;
        Ok(answer(move |answers| pages(&keys, &prefix, Keys::conflicts, answers)))
    }
}

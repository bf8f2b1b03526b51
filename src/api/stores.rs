//! The stores of the mesh: declaring, listing, and reading their logs.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::failure::{Failure, Kind};
use super::host::{Host, Leftover};
use super::kv::ever;
use super::mesh::no_mesh;
use super::wire::{
    self, CreateReply, CreateRequest, DeleteStoreReply, DeleteStoreRequest, LogEntry, LogRequest, PurgeReply,
    PurgeRequest, RepairReply, RepairRequest, Store, StoresReply, StoresRequest, VerifyReply, VerifyRequest,
    stores_server::Stores,
};
use crate::clock::Hlc;
use crate::ids::{Hash, StoreId};
use crate::replication::database::{DatabaseError, Flow};
use crate::replication::entry::Entry;
use crate::replication::log::{Log, Verified};
use crate::replication::replica::Snapshot;
use crate::stores::registry::StoreInfo;
use crate::stores::root::names::ROOT;
use crate::stores::{Kv as Keys, Registry, RegistryError, describe};

/// Entries read from a log at once.
const PAGE: usize = 1_000;
/// Answers of a stream that wait for a slow reader.
pub(super) const WAITING: usize = 256;

pub(super) type Answers<T> = ReceiverStream<Result<T, Status>>;

pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
    pub(super) stop: CancellationToken,
}

/// The stores, or what to say when there are none.
pub(super) fn registry(host: &dyn Host) -> Result<Arc<Registry>, Failure> {
    host.registry().ok_or_else(no_mesh)
}

/// What to say of a store of this name that is not open as the kind that was asked for.
pub(super) fn not_open(registry: &Registry, name: &str, kind: &str) -> Failure {
    match registry.stores().into_iter().find(|store| store.name == name) {
        None => Failure::not_found(format!("there is no store '{name}'"))
            .hint("`lattice store list` names them, `lattice store create` declares one"),
        Some(StoreInfo { damaged: Some(why), .. }) => {
            Failure::failed(format!("the store '{name}' can't be used: {why}")).hint("`lattice status` tells more")
        }
        Some(store) if store.kind != kind => {
            Failure::refused(format!("the store '{name}' is of the kind '{}', not '{kind}'", store.kind))
        }
        Some(_) => Failure::new(Kind::Unavailable, format!("the store '{name}' is just being opened")),
    }
}

/// Runs work that waits for the disk apart from the network's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?
}

/// All stores and their counts.
pub(super) async fn list(host: &Arc<dyn Host>) -> Result<Vec<Store>, Failure> {
    let Some(registry) = host.registry() else { return Ok(Vec::new()) };
    let files = host.about().data.join("meshes").join(registry.mesh().to_string()).join("stores");
    let replication = host.replication().unwrap_or_default();
    blocking(move || {
        let stores = registry.stores().into_iter();
        stores.map(|info| counted(&registry, info, &files, &replication)).collect()
    })
    .await
}

fn counted(registry: &Registry, info: StoreInfo, files: &Path, replication: &Snapshot) -> Result<Store, Failure> {
    let far = replication.stores.get(&info.id).cloned().unwrap_or_default();
    let file = std::fs::metadata(files.join(format!("{}.redb", info.id)));
    let mut store = Store {
        id: info.id.0.to_vec(),
        name: info.name,
        kind: info.kind,
        damaged: info.damaged,
        bytes: file.map_or(0, |file| file.len()),
        missing_entries: far.missing,
        settled: far.settled,
        ..Store::default()
    };
    if let Some(log) = registry.log(&info.id) {
        let view = log.database().view()?;
        store.entries = log.fingerprint(&view)?.count;
        drop(view);
        store.missing_blobs = log.wanted()?.len() as u64;
    }
    if let Some(kv) = registry.kv_by_id(&info.id) {
        store.keys = kv.count()?;
        store.conflicts = kv.conflict_count()?;
    }
    Ok(store)
}

fn verified(registry: &Registry, info: StoreInfo) -> Result<wire::Verified, Failure> {
    let found = match registry.verify(&info.id).map_err(Failure::failed)? {
        Some(found) => found,
        None => {
            Verified { faults: vec![info.damaged.unwrap_or_else(|| "it is not open".into())], ..Verified::default() }
        }
    };
    let Verified { entries, excluded, faults } = found;
    Ok(wire::Verified { name: info.name, entries, excluded, faults })
}

/// Whether nothing is wrong with a store that would take a new file: it is open, takes writes, and all in it is as it should be.
fn is_sound(registry: &Registry, id: &StoreId) -> Result<bool, Failure> {
    let takes_writes = registry.log(id).is_some_and(|log| log.database().trouble().is_none());
    match registry.verify(id) {
        Ok(found) => Ok(takes_writes && found.is_some_and(|found| found.faults.is_empty())),
        Err(RegistryError::Database(DatabaseError::Corrupt { .. })) => Ok(false),
        Err(error) => Err(Failure::failed(format!("whether the store is damaged can't be told: {error}"))
            .hint("`lattice store repair NAME --force` makes its file anew without looking")),
    }
}

pub(super) fn one(registry: &Registry, name: &str) -> Result<Arc<Log>, Failure> {
    let id = if name == ROOT {
        registry.mesh().root()
    } else {
        let stores = registry.stores();
        let found = stores.iter().find(|store| store.name == name && store.damaged.is_none());
        found.map(|store| store.id).ok_or_else(|| not_open(registry, name, "any"))?
    };
    registry.log(&id).ok_or_else(|| not_open(registry, name, "any"))
}

pub(super) fn told(registry: &Registry, log: &Log, entry: &Entry, noop: Option<String>) -> LogEntry {
    let header = entry.header();
    let root = registry.root();
    let does = if log.store() == root.log().store() { root.describe(entry) } else { describe(log.kind(), entry) };
    LogEntry {
        hash: entry.hash().0.to_vec(),
        author: header.author.0.to_vec(),
        author_name: log.membership().load().name(&header.author),
        seq: header.seq,
        hlc: header.hlc.0,
        parents: header.parents().map(|parent| parent.0.to_vec()).collect(),
        size: header.payload_len,
        does,
        noop,
    }
}

type Sender = mpsc::Sender<Result<LogEntry, Status>>;

/// The reader is gone: nothing is to be told to anyone.
struct Gone;

/// Sends the entries that are there, the last `last` of them if not 0, and gives their hashes.
fn present(
    registry: &Registry,
    log: &Log,
    last: u64,
    answers: &Sender,
) -> Result<Result<HashSet<Hash>, Gone>, Failure> {
    let mut sent = HashSet::new();
    let mut from = (Hlc(0), Hash([0; 32]));
    if last > 0 {
        let mut left = last;
        let view = log.database().view()?;
        log.order(&view, from, true, &mut |hlc, hash| {
            from = (hlc, hash);
            left -= 1;
            if left == 0 { Flow::Break(()) } else { Flow::Continue(()) }
        })?;
    }
    // A view a page: a reader that takes its time must not keep old rows in the file.
    loop {
        let view = log.database().view()?;
        let mut page = Vec::with_capacity(PAGE);
        log.order(&view, from, false, &mut |hlc, hash| {
            page.push((hlc, hash));
            if page.len() < PAGE { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        let mut entries = Vec::with_capacity(page.len());
        for (_, hash) in &page {
            if let Some(entry) = log.get(&view, hash)?.filter(|_| sent.insert(*hash)) {
                let noop = log.noop(&view, hash)?;
                entries.push(told(registry, log, &entry, noop));
            }
        }
        drop(view);
        for entry in entries {
            if answers.blocking_send(Ok(entry)).is_err() {
                return Ok(Err(Gone));
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => from = *last,
            Some(_) | None => return Ok(Ok(sent)),
        }
    }
}

/// The same of those that wrote to a path or below it.
fn present_at(
    registry: &Registry,
    keys: &Keys,
    request: &LogRequest,
    answers: &Sender,
) -> Result<Result<HashSet<Hash>, Gone>, Failure> {
    let LogRequest { path, last, follow, .. } = request;
    let (last, follow) = (*last, *follow);
    let found = keys.entries_at(path)?;
    // Who follows may wait for the first.
    if found.is_empty() && !follow {
        ever(keys, path)?;
    }
    let before = found.len().saturating_sub(usize::try_from(last).unwrap_or(usize::MAX));
    let skipped = if last == 0 { 0 } else { before };
    for (_, hash) in found.iter().skip(skipped) {
        let view = keys.log().database().view()?;
        let Some(entry) = keys.log().get(&view, hash)? else { continue };
        let entry = told(registry, keys.log(), &entry, None);
        drop(view);
        if answers.blocking_send(Ok(entry)).is_err() {
            return Ok(Err(Gone));
        }
    }
    Ok(Ok(found.into_iter().map(|(_, hash)| hash).collect()))
}

fn is_within(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

async fn follow(
    registry: Arc<Registry>,
    log: Arc<Log>,
    keys: Option<Arc<Keys>>,
    request: LogRequest,
    answers: &Sender,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let mut events = log.subscribe();
    let (names, scanned, told_to, asked) = (registry.clone(), log.clone(), answers.clone(), request.clone());
    let sent = blocking(move || match keys {
        Some(keys) => present_at(&names, &keys, &asked, &told_to),
        None => present(&names, &scanned, asked.last, &told_to),
    });
    let Ok(sent) = sent.await? else { return Ok(()) };
    if !request.follow {
        return Ok(());
    }
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return Ok(()),
            () = answers.closed() => return Ok(()),
        };
        match event {
            Ok(event) if event.store == log.store() && !event.excluded && !sent.contains(&event.entry.hash()) => {
                let writes = || Keys::writes(&event.entry);
                if !request.path.is_empty() && !writes().iter().any(|(path, _)| is_within(path, &request.path)) {
                    continue;
                }
                let entry = told(&registry, &log, &event.entry, event.effects.noop.clone());
                if answers.send(Ok(entry)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(RecvError::Closed) => return Ok(()),
            Err(RecvError::Lagged(_)) => {
                return Err(Failure::new(Kind::Unavailable, "entries came faster than they were read")
                    .hint("begin again; what was missed is in the log"));
            }
        }
    }
}

#[tonic::async_trait]
impl Stores for Service {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateReply>, Status> {
        let CreateRequest { name, kind } = request.into_inner();
        self.host.create_store(name.clone(), kind).await?;
        let store = list(&self.host).await?.into_iter().find(|store| store.name == name);
        Ok(Response::new(CreateReply { store }))
    }

    async fn delete(&self, request: Request<DeleteStoreRequest>) -> Result<Response<DeleteStoreReply>, Status> {
        self.host.delete_store(request.into_inner().name).await?;
        Ok(Response::new(DeleteStoreReply {}))
    }

    async fn purge(&self, request: Request<PurgeRequest>) -> Result<Response<PurgeReply>, Status> {
        let found = self.host.leftovers(request.into_inner().remove).await?.into_iter();
        let told = |Leftover { path, of, bytes }| wire::Leftover { path: path.display().to_string(), of, bytes };
        Ok(Response::new(PurgeReply { found: found.map(told).collect() }))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyReply>, Status> {
        let name = request.into_inner().store;
        let registry = registry(self.host.as_ref())?;
        let stores = blocking(move || {
            let mut infos = registry.stores();
            let kind = registry.root().log().kind().to_owned();
            infos.push(StoreInfo { id: registry.mesh().root(), name: ROOT.to_owned(), kind, damaged: None });
            infos.retain(|info| name.is_empty() || info.name == name);
            if infos.is_empty() {
                return Err(not_open(&registry, &name, "any"));
            }
            infos.into_iter().map(|info| verified(&registry, info)).collect()
        });
        Ok(Response::new(VerifyReply { stores: stores.await? }))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<RepairReply>, Status> {
        let RepairRequest { store: name, force } = request.into_inner();
        let registry = registry(self.host.as_ref())?;
        if name == ROOT {
            let why = "the root store's file can't be replaced while the node runs";
            let hint = "`lattice down`, move that file away, `lattice up`, and join the mesh again with a new token: the other stores are kept";
            return Err(Failure::refused(why).hint(hint).into());
        }
        let found = registry.stores().into_iter().find(|store| store.name == name);
        let id = found.ok_or_else(|| not_open(&registry, &name, "any"))?.id;
        if !force {
            let checked = registry.clone();
            if blocking(move || is_sound(&checked, &id)).await? {
                return Ok(Response::new(RepairReply { sound: true, ..RepairReply::default() }));
            }
        }
        let host = Arc::clone(&self.host);
        // A caller that goes away does not leave it half done.
        let repairing = tokio::spawn(async move { host.repair_store(id).await });
        let repaired = repairing.await.map_err(Failure::failed)??.ok_or_else(|| not_open(&registry, &name, "any"))?;
        let aside = repaired.aside.display().to_string();
        Ok(Response::new(RepairReply { kept: repaired.kept, aside, sound: false }))
    }

    async fn list(&self, _: Request<StoresRequest>) -> Result<Response<StoresReply>, Status> {
        registry(self.host.as_ref())?;
        Ok(Response::new(StoresReply { stores: list(&self.host).await? }))
    }

    type LogStream = Answers<LogEntry>;

    async fn log(&self, request: Request<LogRequest>) -> Result<Response<Self::LogStream>, Status> {
        let request = request.into_inner();
        let registry = registry(self.host.as_ref())?;
        let log = one(&registry, &request.store)?;
        // What this node's mounts show is in it.
        self.host.settle(log.store()).await?;
        let keys = registry.kv_by_id(&log.store()).filter(|_| !request.path.is_empty());
        if keys.is_none() && !request.path.is_empty() {
            let kind = log.kind();
            let none = format!("the store '{}' is of the kind '{kind}', which has no paths", request.store);
            return Err(Failure::refused(none).into());
        }
        let (answers, stream) = mpsc::channel(WAITING);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            if let Err(failure) = follow(registry, log, keys, request, &answers, stop).await {
                // To a reader that is gone nothing can be told.
                answers.send(Err(failure.into())).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

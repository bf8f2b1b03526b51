//! Transactions of stores of keys.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::failure::{Failure, Kind};
use super::host::Host;
use super::kv::keys_of;
use super::stores::{blocking, not_open, registry};
use super::wire::{
    BeginTxReply, BeginTxRequest, CommitTxReply, CommitTxRequest, DropTxReply, DropTxRequest, OpenTx, ShowTxReply,
    ShowTxRequest, TxPut, TxsReply, TxsRequest, tx_server::Tx,
};
use crate::replication::log::Origin;
use crate::stores::kv::{self, Put, TxError};
use crate::stores::{Kv as Keys, Registry};

#[derive(Clone)]
pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
}

/// A failure in the store of this name.
fn failure(store: &str, error: TxError) -> Failure {
    let hint = error.hint(store);
    let failure = match error {
        TxError::Missing(_) | TxError::Over => Failure::not_found(error),
        TxError::Exists(_) | TxError::Name(..) | TxError::Moved { .. } | TxError::Staged(_) => Failure::refused(error),
        TxError::Busy => Failure::new(Kind::Unavailable, error),
        TxError::Kv(error) => error.into(),
        TxError::Io { .. } => Failure::failed(error),
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn told(keys: &Keys, store: &str, tx: &kv::Tx) -> OpenTx {
    let look = tx.look(keys);
    let put = |put: Put| {
        let kind = match put.kind {
            kv::Kind::File | kv::Kind::Deleted => "file",
            kv::Kind::Directory => "directory",
            kv::Kind::Symlink => "symlink",
        };
        TxPut { path: put.path, kind: kind.into(), size: put.size }
    };
    OpenTx {
        name: tx.name().to_vec(),
        store: store.into(),
        begun: tx.begun().0,
        puts: look.puts.into_iter().map(put).collect(),
        deletes: look.deletes,
        moved: look.moved,
        why: look.why.as_ref().map(ToString::to_string),
        hint: look.why.as_ref().and_then(|why| why.hint(store)),
    }
}

fn list(registry: &Registry, only: &str) -> Result<TxsReply, Failure> {
    let mut txs = Vec::new();
    if !only.is_empty() && registry.kv(only).is_none() {
        return Err(not_open(registry, only, "kv"));
    }
    for store in registry.stores().into_iter().filter(|store| only.is_empty() || store.name == only) {
        if let Some(keys) = registry.kv_by_id(&store.id) {
            txs.extend(registry.txs().list(&store.id).iter().map(|tx| told(&keys, &store.name, tx)));
        }
    }
    Ok(TxsReply { txs })
}

impl Service {
    async fn open(&self, store: &str) -> Result<(Arc<Registry>, Arc<Keys>), Failure> {
        let registry = registry(self.host.as_ref())?;
        Ok((registry, keys_of(self.host.as_ref(), store).await?))
    }
}

#[tonic::async_trait]
impl Tx for Service {
    async fn begin(&self, request: Request<BeginTxRequest>) -> Result<Response<BeginTxReply>, Status> {
        let BeginTxRequest { store, name } = request.into_inner();
        let (registry, keys) = self.open(&store).await?;
        let mounts = self.host.about().mounts.into_iter();
        let paths = mounts.map(|mount| mount.join("stores").join(&store).join(".tx").join(OsStr::from_bytes(&name)));
        let paths = paths.map(|path| path.display().to_string()).collect();
        let begin = move || registry.txs().begin(&keys, &name).map(drop).map_err(|error| failure(&store, error));
        blocking(begin).await?;
        Ok(Response::new(BeginTxReply { paths }))
    }

    async fn list(&self, request: Request<TxsRequest>) -> Result<Response<TxsReply>, Status> {
        let registry = registry(self.host.as_ref())?;
        Ok(Response::new(blocking(move || list(&registry, &request.into_inner().store)).await?))
    }

    async fn show(&self, request: Request<ShowTxRequest>) -> Result<Response<ShowTxReply>, Status> {
        let ShowTxRequest { store, name } = request.into_inner();
        let (registry, keys) = self.open(&store).await?;
        let show = move || {
            let tx = registry.txs().get(&keys.log().store(), &name).map_err(|error| failure(&store, error))?;
            Ok(told(&keys, &store, &tx))
        };
        Ok(Response::new(ShowTxReply { tx: Some(blocking(show).await?) }))
    }

    async fn commit(&self, request: Request<CommitTxRequest>) -> Result<Response<CommitTxReply>, Status> {
        let CommitTxRequest { store, name, force } = request.into_inner();
        let (registry, keys) = self.open(&store).await?;
        let commit = move || {
            let committed = registry.txs().commit(&keys, &name, force, Origin::Local);
            committed.map_err(|error| failure(&store, error))
        };
        let committed = blocking(commit).await?;
        let hash = committed.receipt.map(|receipt| receipt.hash.0.to_vec()).unwrap_or_default();
        let (written, deleted) = (committed.put as u64, committed.deleted as u64);
        Ok(Response::new(CommitTxReply { hash, written, deleted }))
    }

    async fn drop(&self, request: Request<DropTxRequest>) -> Result<Response<DropTxReply>, Status> {
        let DropTxRequest { store, name } = request.into_inner();
        let (registry, keys) = self.open(&store).await?;
        let drop = move || {
            let dropped = registry.txs().drop(&keys.log().store(), &name, false);
            dropped.map_err(|error| failure(&store, error))
        };
        blocking(drop).await?;
        Ok(Response::new(DropTxReply {}))
    }
}

//! The node itself: its state, its mounts, its end.

use std::path::Path;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::failure::Failure;
use super::host::{Host, Rekeyed};
use super::wire::{
    MountReply, MountRequest, RekeyReply, RekeyRequest, ShutdownReply, ShutdownRequest, StatusReply, StatusRequest,
    UnmountReply, UnmountRequest, node_server::Node,
};

pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
}

#[tonic::async_trait]
impl Node for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let about = self.host.about();
        let mesh = super::mesh::info(self.host.as_ref());
        let stores = super::stores::list(&self.host).await?;
        Ok(Response::new(StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: about.node.0.to_vec(),
            name: about.name,
            data: about.data.display().to_string(),
            pid: std::process::id(),
            started: about.started.0,
            listening: about.listening,
            mounts: about.mounts.iter().map(|mount| mount.display().to_string()).collect(),
            mesh,
            stores,
            warnings: about.warnings,
            forks: about.forks,
            forkers: about.forkers,
            listen: about.listen.to_string(),
            proposes: about.proposes,
        }))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountReply>, Status> {
        self.host.mount(Path::new(&request.into_inner().path)).await?;
        Ok(Response::new(MountReply {}))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Result<Response<UnmountReply>, Status> {
        self.host.unmount(Path::new(&request.into_inner().path)).await?;
        Ok(Response::new(UnmountReply {}))
    }

    async fn rekey(&self, request: Request<RekeyRequest>) -> Result<Response<RekeyReply>, Status> {
        let (host, rejoin) = (Arc::clone(&self.host), request.into_inner().rejoin);
        // A caller that goes away does not leave it half done.
        let rekeying = tokio::spawn(async move { host.rekey(rejoin).await });
        let Rekeyed { node, rejoin, kept } = rekeying.await.map_err(Failure::failed)??;
        self.host.shutdown();
        let (node, kept) = (node.0.to_vec(), kept.display().to_string());
        Ok(Response::new(RekeyReply { node, rejoin, kept, pid: std::process::id() }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownReply>, Status> {
        self.host.shutdown();
        Ok(Response::new(ShutdownReply { pid: std::process::id() }))
    }
}

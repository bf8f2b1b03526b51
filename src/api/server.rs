//! The socket, who is served on it, and which service answers which call.

use std::convert::Infallible;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, StdError, http};
use tonic::server::NamedService;
use tower::Service;

use super::failure::Failure;
use super::host::Host;
use super::wire::{
    chat_server::ChatServer, kv_server::KvServer, mesh_server::MeshServer, node_server::NodeServer,
    past_server::PastServer, stores_server::StoresServer, tx_server::TxServer,
};
use super::{chat, kv, mesh, node, past, stores, tx};

/// How long calls may go on after the daemon began to stop.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long no connection is taken after one could not be, as when no descriptor is free.
const RESPITE: Duration = Duration::from_millis(100);

/// Binds the control socket of the node in `data`, whose lock the caller holds. Needs a tokio runtime.
///
/// # Errors
/// If the socket can't be made.
pub fn bind(data: &Path) -> Result<UnixListener, Failure> {
    let socket = crate::config::socket(data);
    let bound = || -> io::Result<UnixListener> {
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A socket's path holds 107 bytes at most. Through the directory's descriptor it is always short.
        let directory = File::open(data)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/control.sock", directory.as_raw_fd()))?;
        std::fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bound().map_err(|error| {
        Failure::failed(format!("{}: {error}", socket.display())).hint("the data directory must be writable")
    })
}

/// Serves until `stop` is cancelled: this user and root only. Calls that are under way then get a second to end.
pub async fn serve(host: Arc<dyn Host>, listener: UnixListener, stop: CancellationToken) {
    let calls = Calls {
        node: NodeServer::new(node::Service { host: host.clone() }),
        mesh: MeshServer::new(mesh::Service { host: host.clone() }),
        stores: StoresServer::new(stores::Service { host: host.clone(), stop: stop.clone() }),
        kv: KvServer::new(kv::Service { host: host.clone(), stop: stop.clone() }),
        past: PastServer::new(past::Service { host: host.clone() }),
        tx: TxServer::new(tx::Service { host: host.clone() }),
        chat: ChatServer::new(chat::Service { host, stop: stop.clone() }),
    };
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) if admitted(&stream) => {
                connections.spawn(connection(stream, calls.clone(), stop.clone()));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(target: "lattice::api", %error, "a control connection could not be taken");
                tokio::time::sleep(RESPITE).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(FAREWELL, connections.wait()).await.is_err() {
        tracing::debug!(target: "lattice::api", open = connections.len(), "calls are cut off");
    }
}

fn admitted(stream: &UnixStream) -> bool {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let ours = nix::unistd::geteuid().as_raw();
    let admitted = peer.as_ref().is_ok_and(|uid| *uid == ours || *uid == 0);
    if !admitted {
        tracing::warn!(target: "lattice::api", ?peer, "a process of another user was refused");
    }
    admitted
}

async fn connection(stream: UnixStream, calls: Calls, stop: CancellationToken) {
    let server = auto::Builder::new(TokioExecutor::new()).http2_only();
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(calls)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(target: "lattice::api", %error, "a control connection broke");
    }
}

/// The services, each under the name that begins its calls' paths.
#[derive(Clone)]
struct Calls {
    node: NodeServer<node::Service>,
    mesh: MeshServer<mesh::Service>,
    stores: StoresServer<stores::Service>,
    kv: KvServer<kv::Service>,
    past: PastServer<past::Service>,
    tx: TxServer<tx::Service>,
    chat: ChatServer<chat::Service>,
}

impl<B> Service<http::Request<B>> for Calls
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match request.uri().path().split('/').nth(1).unwrap_or_default() {
            NodeServer::<node::Service>::NAME => self.node.call(request),
            MeshServer::<mesh::Service>::NAME => self.mesh.call(request),
            StoresServer::<stores::Service>::NAME => self.stores.call(request),
            KvServer::<kv::Service>::NAME => self.kv.call(request),
            PastServer::<past::Service>::NAME => self.past.call(request),
            TxServer::<tx::Service>::NAME => self.tx.call(request),
            ChatServer::<chat::Service>::NAME => self.chat.call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

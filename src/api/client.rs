//! How a command reaches the node that lives in a data directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::failure::{Failure, Kind};
use super::wire::{
    chat_client::ChatClient, kv_client::KvClient, mesh_client::MeshClient, node_client::NodeClient,
    past_client::PastClient, stores_client::StoresClient, tx_client::TxClient,
};

/// The largest answer that is taken, in bytes: one that names each key of a store that was restored.
const LARGEST: usize = 512 * 1024 * 1024;

/// A connection to a running node.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the node in `data`.
    ///
    /// # Errors
    /// [`Kind::NotRunning`] if none runs there; otherwise what the system said.
    pub async fn connect(data: &Path) -> Result<Self, Failure> {
        let stream = open(data).await.and_then(ours).map_err(|error| unreachable(data, &error))?;
        // One call may follow another on this connection; it is never made anew, since the node may be another then.
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::other("the node stopped"));
            async move { stream }
        });
        let channel = Endpoint::from_static("http://lattice").connect_with_connector(connector).await;
        channel.map(|channel| Self { channel }).map_err(|error| {
            // It was there a moment ago.
            let socket = crate::config::socket(data);
            Failure::new(
                Kind::Unavailable,
                format!("{}: the node stopped before it answered: {error}", socket.display()),
            )
        })
    }

    /// The node itself.
    #[must_use]
    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// The mesh that it is in.
    #[must_use]
    pub fn mesh(&self) -> MeshClient<Channel> {
        MeshClient::new(self.channel.clone())
    }

    /// The stores.
    #[must_use]
    pub fn stores(&self) -> StoresClient<Channel> {
        StoresClient::new(self.channel.clone())
    }

    /// Stores of keys.
    #[must_use]
    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// What was in them.
    #[must_use]
    pub fn past(&self) -> PastClient<Channel> {
        PastClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    /// Transactions.
    #[must_use]
    pub fn tx(&self) -> TxClient<Channel> {
        TxClient::new(self.channel.clone())
    }

    /// Rooms.
    #[must_use]
    pub fn chat(&self) -> ChatClient<Channel> {
        ChatClient::new(self.channel.clone())
    }
}

async fn open(data: &Path) -> io::Result<UnixStream> {
    let directory = File::open(data)?;
    UnixStream::connect(format!("/proc/self/fd/{}/control.sock", directory.as_raw_fd())).await
}

/// Refuses a service of another user: it would refuse this one, or might not be what it seems.
fn ours(stream: UnixStream) -> io::Result<UnixStream> {
    let me = nix::unistd::geteuid();
    let owner = stream.peer_cred()?.uid();
    if me.is_root() || owner == me.as_raw() || owner == 0 {
        Ok(stream)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn unreachable(data: &Path, error: &io::Error) -> Failure {
    let shown = data.display();
    #[allow(clippy::wildcard_enum_match_arm, reason = "the kinds of another crate: these are the ones with a remedy")]
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
            Failure::new(Kind::NotRunning, format!("no node runs in {shown}"))
                .hint(format!("start it with `{}`", crate::config::typed(data, "up")))
        }
        io::ErrorKind::PermissionDenied => Failure::refused(format!("the node in {shown} belongs to another user"))
            .hint("run the command as that user, or choose another --data"),
        _ => Failure::failed(format!("{}: {error}", crate::config::socket(data).display())),
    }
}

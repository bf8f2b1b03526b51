//! The mesh that this node is in: founding, inviting, joining, leaving, its members.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::failure::{Failure, Kind};
use super::host::{Host, Progress};
use super::wire::{
    InitReply, InitRequest, InviteReply, InviteRequest, JoinProgress, JoinRequest, LeaveReply, LeaveRequest, MeshInfo,
    Peer, PeersReply, PeersRequest, RevokeReply, RevokeRequest, SetRoleReply, SetRoleRequest, mesh_server::Mesh,
};
use crate::peers;

pub(super) struct Service {
    pub(super) host: Arc<dyn Host>,
}

/// The longest that an invite can be used.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

pub(super) fn info(host: &dyn Host) -> Option<MeshInfo> {
    let mesh = host.in_mesh()?;
    let peers = host.peers();
    let count = |which: &dyn Fn(&&peers::Peer) -> bool| u32::try_from(peers.iter().filter(which).count());
    Some(MeshInfo {
        id: mesh.id.0.to_vec(),
        name: mesh.name,
        role: mesh.role.to_string(),
        ended: mesh.ended,
        members: count(&|peer| !peer.left).unwrap_or(u32::MAX),
        online: count(&|peer| peer.online && !peer.me).unwrap_or(u32::MAX),
    })
}

/// What a command on a mesh's stores or members answers when there is no mesh.
pub(super) fn no_mesh() -> Failure {
    Failure::refused("this node is in no mesh")
        .hint("found one with `lattice mesh init`, or join one with `lattice mesh join TOKEN`")
}

fn described(peer: peers::Peer) -> Peer {
    Peer {
        id: peer.id.0.to_vec(),
        name: peer.name,
        role: peer.role.to_string(),
        me: peer.me,
        left: peer.left,
        online: peer.online,
        address: peer.address,
        rtt: peer.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        last_seen: peer.last_seen.map(|seen| seen.0),
        lag: peer.lag,
        version: peer.version,
        removed: peer.removed,
        forked: peer.forked,
    }
}

impl Service {
    /// The one member of this name, or whose id begins so.
    pub(super) fn member(&self, text: &str) -> Result<peers::Peer, Failure> {
        if self.host.in_mesh().is_none() {
            return Err(no_mesh());
        }
        let all = self.host.peers();
        if let Some(named) = all.iter().find(|peer| peer.name == text) {
            return Ok(named.clone());
        }
        let mut found = all.into_iter().filter(|peer| text.len() >= 4 && peer.id.to_string().starts_with(text));
        match (found.next(), found.next()) {
            (Some(peer), None) => Ok(peer),
            (Some(_), Some(_)) => {
                Err(Failure::refused(format!("several members' ids begin with '{text}'")).hint("give more of the id"))
            }
            (None, _) => {
                Err(Failure::not_found(format!("there is no member '{text}'")).hint("`lattice peers` lists them"))
            }
        }
    }
}

fn step(progress: Progress) -> JoinProgress {
    JoinProgress { doing: progress.doing, done: progress.done, total: progress.total, mesh: None }
}

#[tonic::async_trait]
impl Mesh for Service {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitReply>, Status> {
        self.host.init_mesh(request.into_inner().name).await?;
        Ok(Response::new(InitReply { mesh: info(self.host.as_ref()) }))
    }

    async fn invite(&self, request: Request<InviteRequest>) -> Result<Response<InviteReply>, Status> {
        let InviteRequest { role, expires, uses } = request.into_inner();
        let role = role.parse().map_err(|error: String| Failure::new(Kind::Usage, error))?;
        let expires = Duration::from_secs(expires);
        if expires.is_zero() || expires > LONGEST {
            return Err(Failure::new(Kind::Usage, "an invite can be used for a second to a year").into());
        }
        if uses == 0 {
            return Err(Failure::new(Kind::Usage, "an invite has one use at least").into());
        }
        let token = self.host.invite(role, expires, uses).await?;
        Ok(Response::new(InviteReply { token }))
    }

    type JoinStream = ReceiverStream<Result<JoinProgress, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Self::JoinStream>, Status> {
        let token = request.into_inner().token;
        let (replies, stream) = mpsc::channel(16);
        let host = self.host.clone();
        tokio::spawn(async move {
            let (steps, mut progress) = mpsc::channel(16);
            let told = replies.clone();
            let tell = async move {
                while let Some(next) = progress.recv().await {
                    // A command that was interrupted does not take the join back: what remains is to finish it.
                    told.send(Ok(step(next))).await.ok();
                }
            };
            let (joined, ()) = tokio::join!(host.join_mesh(token, steps), tell);
            let last = match joined {
                Ok(()) => Ok(JoinProgress { mesh: info(host.as_ref()), ..step(Progress::default()) }),
                Err(failure) => Err(Status::from(failure)),
            };
            replies.send(last).await.ok();
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let node = self.member(&request.into_inner().node)?;
        self.host.revoke(node.id).await?;
        Ok(Response::new(RevokeReply { name: node.name }))
    }

    async fn set_role(&self, request: Request<SetRoleRequest>) -> Result<Response<SetRoleReply>, Status> {
        let SetRoleRequest { node, role } = request.into_inner();
        let role = role.parse().map_err(|error: String| Failure::new(Kind::Usage, error))?;
        let node = self.member(&node)?;
        self.host.set_role(node.id, role).await?;
        Ok(Response::new(SetRoleReply { name: node.name }))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let kept = self.host.leave_mesh().await?;
        Ok(Response::new(LeaveReply { kept: kept.display().to_string() }))
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersReply>, Status> {
        if self.host.in_mesh().is_none() {
            return Err(no_mesh().into());
        }
        Ok(Response::new(PeersReply { peers: self.host.peers().into_iter().map(described).collect() }))
    }
}

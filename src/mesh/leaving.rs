//! How a node leaves its mesh, or goes on in it under another key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;

use super::{LEFT, Mesh, MeshError, blocking, locked};
use crate::ids::NodeId;
use crate::net::iroh::Refused;
use crate::stores::Registry;
use crate::stores::root::{self, Op};

/// How long a node that goes on under another key waits for another member to hear of it.
const HANDOVER: Duration = Duration::from_secs(15);
/// How long leaving waits for another member to hear of it.
const FAREWELL: Duration = Duration::from_secs(3);

impl Mesh {
    /// The members that take this node for a stranger: they have heard that its membership ended, or never of its beginning.
    fn refusing(&self) -> BTreeSet<NodeId> {
        self.strangers(&self.node.refusing().borrow())
    }

    /// Who of these takes this node for a stranger. That it was removed for a fork says nothing of what was heard of it.
    fn strangers(&self, refusing: &BTreeMap<NodeId, Refused>) -> BTreeSet<NodeId> {
        let membership = self.membership();
        let strangers = refusing.iter().filter(|(node, why)| **why == Refused::NotAMember && membership.admits(node));
        strangers.map(|(node, _)| *node).collect()
    }

    /// Whether a member has all of the root store that is here, after waiting for `patience` at most. Who has heard that this
    /// node's key is no member's any more ends the link, so that counts as well, save of the `deaf`, who did so before.
    async fn is_told(self: &Arc<Self>, patience: Duration, deaf: &BTreeSet<NodeId>) -> Result<bool, MeshError> {
        let root = self.id.root();
        // An entry more than when a peer was last found to have the same: an older agreement says nothing of this one.
        let log = self.registry.root().log().clone();
        let count = blocking(move || {
            let view = log.database().durable()?;
            log.fingerprint(&view).map(|fingerprint| fingerprint.count)
        });
        let count = count.await??;
        let (mut snapshot, mut refusing) = (self.watch(), self.node.refusing());
        let agreed = snapshot.wait_for(|now| {
            let mut online = now.peers.values().filter(|peer| peer.online);
            online.any(|peer| peer.agreed.get(&root).is_some_and(|agreed| *agreed >= count))
        });
        let refused = refusing.wait_for(|now| !self.strangers(now).is_subset(deaf));
        if let Some(driver) = &*locked(&self.driver) {
            driver.reconcile();
        }
        let told = async {
            tokio::select! {
                _ = agreed => {}
                _ = refused => {}
            }
        };
        Ok(tokio::time::timeout(patience, told).await.is_ok())
    }

    /// Whether this node is a member, so that its key can vouch for another, or has done so for this one.
    #[must_use]
    pub fn can_hand_over(&self, to: &NodeId) -> bool {
        let membership = self.membership();
        membership.admits(&self.node.id()) || membership.admits(to)
    }

    /// Gives this node's place in the mesh to another key. Returns when another member has heard of it, if there is one; it may be
    /// called again.
    ///
    /// # Errors
    /// [`MeshError::Unheard`], or if the disk fails.
    pub async fn hand_over(self: &Arc<Self>, key: &SigningKey) -> Result<(), MeshError> {
        let me = self.node.id();
        let next = NodeId(key.verifying_key().to_bytes());
        let alone = self.membership().members.iter().all(|(id, member)| [me, next].contains(id) || member.left);
        // Who refuses this key when it has handed over already has heard of it. Who refuses it before that does so for another reason.
        let again = self.membership().admits(&next);
        let refusing = self.refusing();
        let deaf = if again { BTreeSet::new() } else { refusing.clone() };
        let heard = again && !refusing.is_empty();
        let online = self.snapshot().peers.values().any(|peer| peer.online);
        if !alone && !online && !heard {
            return Err(MeshError::Unheard);
        }
        if !again {
            self.submit("hand over", Op::Succeed(root::succession(key, &self.id, &me))).await?;
        }
        if alone || heard || self.is_told(HANDOVER, &deaf).await? { Ok(()) } else { Err(MeshError::Unheard) }
    }

    /// Closes the mesh and puts its root store's file aside, so that it can be joined again with the other stores kept.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn forget(&self) -> Result<(), MeshError> {
        self.close().await;
        let file = Registry::root_file(&self.dir, self.id);
        let mut names = (1..).map(|number: u32| file.with_extension(format!("old-{number}")));
        let aside = names.find(|name| !name.exists()).unwrap_or_else(|| file.with_extension("old"));
        std::fs::rename(&file, &aside).map_err(|source| MeshError::Io { path: file.clone(), source })
    }

    /// Leaves the mesh: says so, gives a connected member a moment to hear it, and closes. The directory stays, renamed; its path
    /// is returned.
    ///
    /// # Errors
    /// If that can't be recorded.
    pub async fn leave(self: &Arc<Self>) -> Result<PathBuf, MeshError> {
        let deaf = self.refusing();
        self.submit("leave", Op::Leave).await?;
        let online = self.snapshot().peers.values().any(|peer| peer.online);
        if !online || !self.is_told(FAREWELL, &deaf).await? {
            tracing::info!(target: "mesh", "left without another member having heard of it yet");
        }
        self.close().await;
        // What was kept when it left this mesh before stays.
        let names = (1..).map(|time| match time {
            1 => format!("{LEFT}{}", self.id.root().short()),
            _ => format!("{LEFT}{}-{time}", self.id.root().short()),
        });
        let mut free = names.map(|name| self.dir.with_file_name(name)).filter(|path| !path.exists());
        let left = free.next().unwrap_or_else(|| self.dir.with_file_name(LEFT));
        let (from, to) = (self.dir.clone(), left.clone());
        blocking(move || std::fs::rename(&from, &to))
            .await?
            .map_err(|source| MeshError::Io { path: left.clone(), source })?;
        Ok(left)
    }
}

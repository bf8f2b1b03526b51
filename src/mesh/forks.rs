//! Forked chains: what proves them, and the end of their authors' membership.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Mesh, MeshError, blocking};
use crate::ids::NodeId;
use crate::replication::database::DatabaseError;
use crate::replication::entry::Fork;
use crate::replication::log::Log;
use crate::stores::root::Op;

impl Mesh {
    /// How many places in authors' chains were seen to be forked, in all stores.
    #[must_use]
    pub fn forks(&self) -> u64 {
        let count = |log: &Arc<Log>| match log.forks() {
            Ok(forks) => forks.len() as u64,
            Err(error) => {
                tracing::error!(target: "mesh", %error, "the proofs of forks can't be read");
                0
            }
        };
        self.registry.logs().iter().map(count).sum()
    }

    /// The names of the members, present and past, who are proven to have forked their chain.
    #[must_use]
    pub fn forkers(&self) -> Vec<String> {
        self.membership().members.values().filter(|member| member.forked).map(|member| member.name.clone()).collect()
    }

    /// What a node is told that was removed for a fork, by whose word, and whether that has come here as an entry.
    pub(super) fn told_of_fork(&self, by: &str, heard: bool) -> String {
        let by = if by.is_empty() { String::new() } else { format!(", by the word of {by}") };
        let first = if heard {
            "What it wrote since then and the others don't have is set aside: kept in the stores' files, and not shown any more"
        } else {
            "What it wrote since then may be here alone, and is not shown any more once it has joined again: copy it out of the mount first"
        };
        format!(
            "this node signed two entries for one place in its chain{by}: as a rule its data directory was put back from a backup, or copied \
             to another machine. It was removed from the mesh for good, and nothing comes from the others or goes there. {first}. \
             `lattice node rekey --rejoin` gives it a new key, under which it joins again as a new member, with a token of '{}'",
            self.name()
        )
    }

    /// The proofs that are here against others and that nobody has recorded yet.
    fn charges(&self) -> Result<BTreeMap<NodeId, Fork>, DatabaseError> {
        let membership = self.membership();
        let me = self.node.id();
        let free = |node: &NodeId| *node != me && membership.members.get(node).is_some_and(|member| !member.forked);
        let mut charges = BTreeMap::new();
        for log in self.registry.logs() {
            charges.extend(log.proofs()?.into_iter().filter(|(node, _)| free(node)));
        }
        Ok(charges)
    }

    /// Records the proofs against those who signed two entries for one place: with that their membership ends.
    pub(super) async fn charge(self: &Arc<Self>) -> Result<(), MeshError> {
        if !self.membership().admits(&self.node.id()) {
            return Ok(());
        }
        let mesh = self.clone();
        for (node, fork) in blocking(move || mesh.charges()).await?? {
            tracing::warn!(target: "mesh", node = %node.short(), "signed two entries for one place: it is removed for good");
            let cut = self.cut(&node)?;
            self.submit("remove members", Op::Ban { fork, cut, salt: rand::random() }).await?;
        }
        Ok(())
    }
}

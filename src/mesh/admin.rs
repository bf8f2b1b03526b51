//! What is decided on a mesh: who is in it, and which stores it has.

use std::sync::Arc;
use std::time::Duration;

use super::{Mesh, MeshError, blocking};
use crate::ids::NodeId;
use crate::net::ticket::{Contact, Secret, Ticket};
use crate::replication::database::DatabaseError;
use crate::replication::log::Origin;
use crate::replication::membership::{Cut, Role};
use crate::stores::root::{self, Op};

impl Mesh {
    /// Submits an operation on the mesh; returns when it is durable.
    pub(super) async fn submit(self: &Arc<Self>, what: &'static str, op: Op) -> Result<(), MeshError> {
        if self.role() != Some(Role::Admin) && !matches!(op, Op::Leave | Op::Ban { .. } | Op::Succeed(_)) {
            let role = self.role().map_or("stranger", Role::name);
            return Err(MeshError::NotAllowed { what, role });
        }
        let mesh = self.clone();
        blocking(move || {
            let root = mesh.registry.root();
            let receipt = root.submit(&[op], Origin::Local)?;
            mesh.registry.refresh();
            Ok(root.log().wait(receipt.staged)?)
        })
        .await?
    }

    /// Makes an invite for `uses` nodes, valid for `expires`, and gives its token: one line of text.
    ///
    /// # Errors
    /// If this node is no admin, or the disk fails.
    pub async fn invite(self: &Arc<Self>, role: Role, expires: Duration, uses: u32) -> Result<String, MeshError> {
        let secret = Secret::generate();
        let expires = self.clock.now().after(expires);
        let id = root::invite_id(&secret.invite());
        self.submit("invite", Op::Invite { id, role, expires, uses }).await?;
        let hosts = self.contacts();
        Ok(Ticket { mesh: self.id, secret, hosts, relays: self.node.relays() }.to_string())
    }

    /// How far this node has another's entries, in each store.
    pub(super) fn cut(&self, node: &NodeId) -> Result<Cut, DatabaseError> {
        let mut cut = Cut::new();
        for log in self.registry.logs() {
            let view = log.database().view()?;
            cut.extend(log.tip(&view, node)?.map(|tip| (log.store(), (tip.seq, tip.hash))));
        }
        Ok(cut)
    }

    /// Refuses to take the role from the last admin that is known here. Two of them who lose it on two nodes at the same time are
    /// seen by neither.
    fn keep_an_admin(&self, node: &NodeId) -> Result<(), MeshError> {
        let membership = self.membership();
        let mut admins = membership.members.iter().filter(|(_, member)| !member.left && member.role == Role::Admin);
        match (admins.next(), admins.next()) {
            (Some((only, member)), None) if only == node && self.role() == Some(Role::Admin) => {
                Err(MeshError::LastAdmin(member.name.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Ends a node's membership: what this node has of its entries stays, and nothing else of it counts. Returns when that is
    /// durable here.
    ///
    /// # Errors
    /// If this node is no admin, there is no such member, it is the only admin, or the disk fails.
    pub async fn revoke(self: &Arc<Self>, node: NodeId) -> Result<(), MeshError> {
        self.keep_an_admin(&node)?;
        let cut = self.cut(&node)?;
        self.submit("remove members", Op::Revoke { node, cut, salt: rand::random() }).await
    }

    /// Gives a member another role, or lets one in again that was removed. Returns when that is durable here.
    ///
    /// # Errors
    /// If this node is no admin, there is no such member, it is the only admin and is to be less, it left by itself, or the disk fails.
    pub async fn set_role(self: &Arc<Self>, node: NodeId, role: Role) -> Result<(), MeshError> {
        if role != Role::Admin {
            self.keep_an_admin(&node)?;
        }
        let op = match self.membership().members.get(&node) {
            Some(member) if member.left && !member.removed => return Err(MeshError::Gone(member.name.clone())),
            Some(member) if member.left => Op::AddMember { node, name: member.name.clone(), role },
            Some(_) | None => Op::SetRole { node, role, cut: self.cut(&node)? },
        };
        self.submit("give roles", op).await
    }

    /// This node, and the members whose addresses are known.
    pub(super) fn contacts(&self) -> Vec<Contact> {
        let me = Contact { node: self.node.id(), addresses: self.node.addresses() };
        let others = self.node.known_addresses().into_iter().map(|(node, addresses)| Contact { node, addresses });
        std::iter::once(me).chain(others).collect()
    }

    /// Declares a store; returns when it is durable and open here.
    ///
    /// # Errors
    /// If this node is no admin, the name is taken, the root store's or no name, or the disk fails.
    pub async fn create_store(self: &Arc<Self>, name: String, kind: String) -> Result<(), MeshError> {
        if name == root::names::ROOT {
            return Err(MeshError::Reserved);
        }
        let stores = self.registry.stores();
        if stores.iter().any(|store| store.name == name) {
            return Err(MeshError::StoreExists(name));
        }
        match kind.as_str() {
            "kv" => {}
            "chat" => {
                if let Some(chat) = stores.iter().find(|store| store.kind == "chat") {
                    return Err(MeshError::ChatExists(chat.name.clone()));
                }
            }
            _ => return Err(MeshError::Kind(kind)),
        }
        self.submit("create a store", Op::CreateStore { name, kind }).await
    }

    /// Deletes a store on all nodes; returns when that is durable here.
    ///
    /// # Errors
    /// If this node is no admin, there is no such store, or the disk fails.
    pub async fn delete_store(self: &Arc<Self>, name: &str) -> Result<(), MeshError> {
        let stores = self.registry.stores();
        let store = stores.iter().find(|store| store.name == name);
        let id = store.ok_or_else(|| MeshError::NoStore(name.to_owned()))?.id;
        self.submit("delete a store", Op::DeleteStore { id }).await
    }
}

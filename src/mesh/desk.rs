//! The desk of the mesh: who holds an invite's secret becomes a member.

use super::Mesh;
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::net::join::{JoinDesk, Refusal, Request, Welcome};
use crate::replication::database::Flow;
use crate::replication::log::{Log, Origin};
use crate::stores::root::{self, Op, Redeem};

impl JoinDesk for Mesh {
    fn redeem(&self, request: Request) -> Result<Welcome, Refusal> {
        if request.mesh != self.id {
            return Err(Refusal::OtherMesh);
        }
        if !request.is_proven() {
            return Err(Refusal::Wrong);
        }
        let root = self.registry.root();
        match root.membership().load().members.get(&request.joiner) {
            Some(member) if member.forked => return Err(Refusal::Forked),
            Some(member) if member.removed => return Err(Refusal::Removed { name: member.name.clone() }),
            Some(member) if member.left => return Err(Refusal::Gone),
            Some(_) => return self.welcome(&request),
            None => {}
        }
        let redeem = Redeem {
            invite: request.invite,
            signature: request.proof,
            node: request.joiner,
            name: root::names::tidy(&request.name, "node"),
        };
        root.check_redeem(&redeem).map_err(|refusal| refused(&refusal, &request.name))?;
        let receipt = root.submit(&[Op::Redeem(redeem)], Origin::Local).map_err(|error| failed(&error))?;
        root.log().wait(receipt.staged).map_err(|error| failed(&error))?;
        // Another node may have used the last of it in the meantime: what counts is what became of the entry.
        if !root.membership().load().admits(&request.joiner) {
            return Err(Refusal::UsedUp);
        }
        self.welcome(&request)
    }
}

impl Mesh {
    fn welcome(&self, request: &Request) -> Result<Welcome, Refusal> {
        let entries = history(self.registry.root().log()).map_err(|error| failed(&error))?;
        let contacts = self.contacts();
        self.node.suggest_addresses(request.joiner, &request.addresses);
        Ok(Welcome { mesh: self.id, entries, contacts })
    }
}

/// All entries of a log, parents first.
fn history(log: &Log) -> Result<Vec<Vec<u8>>, crate::replication::database::DatabaseError> {
    let view = log.database().durable()?;
    let mut hashes: Vec<Hash> = Vec::new();
    log.order(&view, (Hlc::default(), Hash([0; 32])), false, &mut |_, hash| {
        hashes.push(hash);
        Flow::Continue(())
    })?;
    let mut entries = Vec::with_capacity(hashes.len());
    for hash in hashes {
        entries.extend(log.get(&view, &hash)?.map(|entry| entry.bytes().to_vec()));
    }
    Ok(entries)
}

fn refused(refusal: &root::Refusal, name: &str) -> Refusal {
    match refusal {
        root::Refusal::Unknown => Refusal::Wrong,
        root::Refusal::Expired { .. } => Refusal::Expired,
        root::Refusal::UsedUp { .. } => Refusal::UsedUp,
        root::Refusal::Key(_) => Refusal::Malformed,
        root::Refusal::Name(why) => Refusal::Name { name: name.to_owned(), why: why.to_string() },
    }
}

fn failed(error: &impl std::fmt::Display) -> Refusal {
    tracing::error!(target: "mesh", %error, "a join could not be recorded");
    Refusal::Failed(error.to_string())
}

//! How a mesh's directory comes to be: by founding the mesh or by joining it. It is made aside and moved into place when
//! all of it is durable, so that a crash leaves a whole mesh or none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Context, MeshError, blocking};
use crate::ids::MeshId;
use crate::net::join::{self, Welcome};
use crate::net::ticket::Ticket;
use crate::replication::entry::Entry;
use crate::replication::log::{Origin, Verdict};
use crate::replication::verify::verify;
use crate::stores::{Registry, root};

/// A mesh whose directory is in place: to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founded(pub MeshId);

/// Founds a mesh, with this node as its admin, a kv store `home` and a chat store `chat`.
///
/// # Errors
/// If the name is no name or the disk fails.
pub async fn new(context: &Context, name: &str) -> Result<Founded, MeshError> {
    let (id, genesis) = root::genesis(&context.key, context.clock.as_ref(), name, &context.name)?;
    make(context, id, vec![genesis]).await
}

/// Joins the mesh that a token names. What is sent is checked against the mesh id in the token.
///
/// # Errors
/// If the token does not read, no member can be reached, the invite is refused, or the disk fails.
pub async fn join(context: &Context, token: &str) -> Result<Founded, MeshError> {
    let ticket: Ticket = token.parse()?;
    let Welcome { mesh, entries, contacts } = join::join(&context.node, &ticket, &context.name).await?;
    let entries: Vec<Entry> = entries
        .into_iter()
        .map(|bytes| Entry::decode(bytes.into()))
        .collect::<Result<_, _>>()
        .map_err(|error| MeshError::Welcome(error.to_string()))?;
    if !verify(&entries).into_iter().all(|valid| valid) {
        return Err(MeshError::Welcome("an entry's signature is not its author's".to_owned()));
    }
    let founded = make(context, mesh, entries).await?;
    for contact in contacts {
        context.node.suggest_addresses(contact.node, &contact.addresses);
    }
    Ok(founded)
}

async fn make(context: &Context, id: MeshId, entries: Vec<Entry>) -> Result<Founded, MeshError> {
    let context = context.clone();
    blocking(move || {
        let aside = context.meshes.join(format!("new-{}", id.root().short()));
        let path = |path: &Path| path.to_owned();
        let io = |at: PathBuf| move |source| MeshError::Io { path: at, source };
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(io(path(&aside)))?;
        }
        std::fs::create_dir(&aside).map_err(io(path(&aside)))?;
        let genesis = entries.first().ok_or_else(|| MeshError::Welcome("it is empty".to_owned()))?;
        let registry = Registry::open(&aside, id, Some(genesis), context.key, context.clock, context.blobs)?;
        let log = registry.root().log();
        let verdicts = log.include(&entries, Origin::Pulled)?;
        if let Some(bad) = verdicts.iter().find(|verdict| !matches!(verdict, Verdict::Included | Verdict::Duplicate)) {
            return Err(MeshError::Welcome(format!("an entry does not count: {bad:?}")));
        }
        if !registry.root().membership().load().admits(&log.me()) {
            return Err(MeshError::Welcome("it does not make this node a member".to_owned()));
        }
        log.database().flush()?;
        registry.close()?;
        drop::<Arc<Registry>>(registry);
        let place = context.meshes.join(id.to_string());
        if place.exists() {
            // The mesh was here before and its root store was lost: the other stores are kept.
            let root = Registry::root_file(&place, id);
            std::fs::rename(Registry::root_file(&aside, id), &root).map_err(io(path(&root)))?;
            let stores = std::fs::File::open(place.join("stores")).map_err(io(path(&place)))?;
            stores.sync_all().map_err(io(path(&place)))?;
            std::fs::remove_dir_all(&aside).map_err(io(path(&aside)))?;
        } else {
            std::fs::rename(&aside, &place).map_err(io(path(&place)))?;
        }
        let meshes = std::fs::File::open(&context.meshes).map_err(io(path(&context.meshes)))?;
        meshes.sync_all().map_err(io(context.meshes.clone()))?;
        Ok(Founded(id))
    })
    .await?
}

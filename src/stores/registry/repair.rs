//! Looking after the stores' files: what is left of deleted stores, whether a file is sound, and putting a new one in the place of
//! one that is not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{CACHE, Open, Registry, RegistryError, file};
use crate::ids::StoreId;
use crate::replication::database::{Database, DatabaseError};
use crate::replication::log::{Log, Origin, Verdict, Verified};
use crate::replication::machine::StateMachine;
use crate::stores::root::{self, Declared, nobody};
use crate::stores::{chat, kv};

/// What became of a store's damaged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// How many entries were taken over from it.
    pub kept: u64,
    /// Where it is now.
    pub aside: PathBuf,
}

/// A store that is taken out of use.
#[derive(Debug)]
pub struct Withdrawn {
    declared: Declared,
    log: Option<Arc<Log>>,
}

impl Registry {
    /// The files of stores that were deleted, with the stores' names; `remove`: they are no more when this returns. A
    /// store that is only not declared here yet is none of them.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn leftovers(&self, remove: bool) -> Result<Vec<(PathBuf, String)>, RegistryError> {
        // Nothing is opened or closed meanwhile.
        let _opening = self.lock();
        let open = self.open.load();
        let mut found = Vec::new();
        for deleted in self.root.deleted().into_iter().filter(|deleted| !open.contains_key(&deleted.id)) {
            let path = file(&self.dir, &deleted.id);
            if path.exists() {
                if remove {
                    std::fs::remove_file(&path).map_err(|source| RegistryError::Io { path: path.clone(), source })?;
                }
                found.push((path, deleted.name.clone()));
            }
            let staged = self.txs.of_store(&deleted.id);
            if staged.exists() {
                if remove {
                    self.txs.purge(&deleted.id).map_err(|source| RegistryError::Io { path: staged.clone(), source })?;
                }
                found.push((staged, deleted.name));
            }
        }
        Ok(found)
    }

    /// Looks at everything in an open store; `None` if it is not open. The state is derived anew in a file beside it.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn verify(&self, id: &StoreId) -> Result<Option<Verified>, RegistryError> {
        let Some(log) = self.log(id) else { return Ok(None) };
        let machine: Arc<dyn StateMachine> = match log.kind() {
            "kv" => Arc::new(kv::Machine),
            "chat" => Arc::new(chat::Machine),
            _ => Arc::new(root::Machine::new(nobody())),
        };
        let dir =
            tempfile::tempdir_in(&self.dir).map_err(|source| RegistryError::Io { path: self.dir.clone(), source })?;
        let scratch = Database::open(&dir.path().join("state.redb"), CACHE)?;
        Ok(Some(log.verify(&*machine, &scratch)?))
    }

    /// Takes a store out of use, to be repaired: nothing more is written to its file. `None` if there is no such store; the root
    /// store's can't be taken out. Who works with the open stores is told by [`Registry::changed`].
    #[must_use]
    pub fn withdraw(&self, id: &StoreId) -> Option<Withdrawn> {
        let mut opening = self.lock();
        let mut after = BTreeMap::clone(&self.open.load());
        let open = after.get_mut(id)?;
        let old = std::mem::replace(&mut open.handle, Err("it is being repaired".to_owned()));
        let declared = open.declared.clone();
        opening.withdrawn.insert(*id);
        self.open.store(Arc::new(after));
        self.changed.send_modify(|count| *count += 1);
        let log = old.ok().map(|handle| Arc::clone(handle.log()));
        if let Some(log) = &log {
            log.retire("it is being repaired");
        }
        Some(Withdrawn { declared, log })
    }

    /// Puts a new file in the place of a store's: it gets every entry of the old one that reads back and is signed, and the rest must
    /// come from the others. The old file is kept, renamed.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn repair(&self, withdrawn: Withdrawn) -> Result<Repaired, RegistryError> {
        let mut opening = self.lock();
        let Withdrawn { declared, log: old } = withdrawn;
        let path = file(&self.dir, &declared.id);
        let mut names = (1..).map(|number: u32| path.with_extension(format!("damaged-{number}")));
        let aside = names.find(|name| !name.exists()).unwrap_or_else(|| path.with_extension("damaged"));
        std::fs::rename(&path, &aside).map_err(|source| RegistryError::Io { path: path.clone(), source })?;
        let handle = self.open_store(&declared, opening.outbox.as_ref());
        let mut kept = 0;
        if let Ok(new) = &handle {
            // On the disk before anything else: a file that does not say so would be signed in from its beginning, a fork.
            new.log().regain()?;
            new.log().database().flush()?;
            if let Some(old) = old {
                old.salvage(&mut |entries| {
                    let verdicts = new.log().include(&entries, Origin::Pulled)?;
                    kept += verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Included)).count() as u64;
                    Ok::<_, DatabaseError>(())
                })?;
            }
        }
        // Only now: what failed half-way stays out of use until the node starts anew.
        opening.withdrawn.remove(&declared.id);
        let mut after = BTreeMap::clone(&self.open.load());
        if let Some(open) = after.get_mut(&declared.id) {
            *open = Open { declared, handle };
        }
        self.open.store(Arc::new(after));
        self.changed.send_modify(|count| *count += 1);
        Ok(Repaired { kept, aside })
    }
}

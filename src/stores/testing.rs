//! Stores in memory, for tests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;

use crate::blobs::{BlobError, Payloads};
use crate::clock::{Clock, Manual, Millis};
use crate::ids::{Hash, NodeId, StoreId};
use crate::replication::database::Database;
use crate::replication::log::{Log, Parts, events};
use crate::replication::machine::StateMachine;
use crate::replication::membership::{Member, Membership, Role, SharedMembership};

pub(crate) const START: Millis = Millis(1_700_000_000_000);

#[derive(Default)]
pub(crate) struct Shelf(Mutex<BTreeMap<Hash, Vec<u8>>>);

impl Payloads for Shelf {
    fn add_bytes(&self, bytes: &[u8]) -> Result<(Hash, u64), BlobError> {
        let hash = Hash::from(blake3::hash(bytes));
        self.0.lock().unwrap().insert(hash, bytes.to_vec());
        Ok((hash, bytes.len() as u64))
    }

    fn add_file(&self, path: &Path) -> Result<(Hash, u64), BlobError> {
        self.add_bytes(&std::fs::read(path).unwrap())
    }

    fn open(&self, hash: &Hash) -> Result<Option<File>, BlobError> {
        let bytes = self.0.lock().unwrap().get(hash).cloned();
        Ok(bytes.map(|bytes| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            file.rewind().unwrap();
            file
        }))
    }

    fn list(&self) -> Result<Vec<Hash>, BlobError> {
        Ok(self.0.lock().unwrap().keys().copied().collect())
    }

    fn fetch(&self, hash: &Hash, _size: u64, waited: Duration) -> Result<File, BlobError> {
        self.open(hash)?.ok_or(BlobError::Absent { hash: *hash, waited })
    }
}

pub(crate) fn key(n: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_bytes(&[n + 1; 32]))
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId(key(n).verifying_key().to_bytes())
}

/// Nodes 0 to 7 are writers.
pub(crate) fn writers() -> SharedMembership {
    let member = |n| (node(n), Member::new(format!("node{n}"), Role::Writer));
    Arc::new(ArcSwap::from_pointee(Membership { members: (0..8).map(member).collect() }))
}

pub(crate) fn memory() -> Database {
    Database::in_memory(redb::backends::InMemoryBackend::new()).unwrap()
}

pub(crate) fn clock() -> Arc<Manual> {
    Arc::new(Manual::new(START))
}

/// Node `n`'s log of a store that all test logs share.
pub(crate) fn log(n: u8, machine: impl StateMachine, clock: Arc<dyn Clock>) -> Arc<Log> {
    log_in(memory(), n, machine, clock)
}

/// The same in this database.
pub(crate) fn log_in(database: Database, n: u8, machine: impl StateMachine, clock: Arc<dyn Clock>) -> Arc<Log> {
    let parts = Parts {
        store: StoreId([9; 32]),
        key: key(n),
        clock,
        machine: Arc::new(machine),
        membership: writers(),
        events: events(),
    };
    Arc::new(Log::with(database, parts).unwrap())
}

//! A node of the simulation: a disk that outlives it, and what runs while it is up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use ed25519_dalek::SigningKey;
use lattice::blobs::{BlobError, Payloads};
use lattice::clock::{Manual, Millis};
use lattice::ids::{Hash, MeshId, NodeId, StoreId};
use lattice::replication::database::{Database, Flow, Read, Result, Table, Txn};
use lattice::replication::entry::Entry;
use lattice::replication::ingest::Ingest;
use lattice::replication::log::{Durable, Log, Origin, Parts, events};
use lattice::replication::machine::{Effects, StateMachine};
use lattice::replication::membership::{Member, Membership, Role, SharedMembership};
use lattice::replication::replica::{Identity, Replica};
use lattice::replication::shelf::Logs;
use lattice::stores::Kv;
use lattice::stores::kv::Machine;

use crate::swarm::Swarm;

pub(crate) const MESH: MeshId = MeshId([1; 32]);
pub(crate) const HOME: StoreId = StoreId([2; 32]);
const ROSTER: Table = "roster";

/// A disk that keeps what was synced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Sectors>>);

#[derive(Debug, Default)]
struct Sectors {
    now: Vec<u8>,
    /// What was overwritten since the last sync, oldest first, and the length then.
    undo: Vec<(usize, Vec<u8>)>,
    synced: usize,
}

impl Disk {
    /// Another disk with what is synced on this one.
    fn copy(&self) -> Self {
        let disk = self.0.lock().unwrap();
        let copy = Sectors { now: disk.now.clone(), undo: disk.undo.clone(), synced: disk.synced };
        let copy = Self(Arc::new(Mutex::new(copy)));
        copy.crash();
        copy
    }

    /// Takes back what was not synced.
    fn crash(&self) {
        let mut disk = self.0.lock().unwrap();
        let Sectors { now, undo, synced } = &mut *disk;
        now.resize(now.len().max(*synced), 0);
        for (start, bytes) in undo.drain(..).rev() {
            now[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        now.truncate(*synced);
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.lock().unwrap().now[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let len = usize::try_from(len).unwrap();
        let mut disk = self.0.lock().unwrap();
        if len < disk.now.len() {
            let cut = disk.now[len..].to_vec();
            disk.undo.push((len, cut));
        }
        disk.now.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.undo.clear();
        disk.synced = disk.now.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let mut disk = self.0.lock().unwrap();
        let before = disk.now[start..start + data.len()].to_vec();
        disk.undo.push((start, before));
        disk.now[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// The simulation's root store: each entry names one more member.
struct Roster(SharedMembership);

pub(crate) fn member(node: &NodeId) -> Member {
    Member::new(node.short(), Role::Writer)
}

impl StateMachine for Roster {
    fn kind(&self) -> &'static str {
        "root"
    }

    fn tables(&self) -> &'static [Table] {
        &[ROSTER]
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        txn.put(ROSTER, entry.payload(), []);
        let mut members = Membership::clone(&self.0.load());
        let node = NodeId::from_slice(entry.payload()).unwrap();
        members.members.insert(node, member(&node));
        self.0.store(Arc::new(members));
        Ok(Effects::default())
    }
}

/// Values of the simulation are small.
struct NoBlobs;

impl Payloads for NoBlobs {
    fn add_bytes(&self, _: &[u8]) -> std::result::Result<(Hash, u64), BlobError> {
        Err(BlobError::Store("the simulation has no blobs".into()))
    }

    fn add_file(&self, _: &Path) -> std::result::Result<(Hash, u64), BlobError> {
        Err(BlobError::Store("the simulation has no blobs".into()))
    }

    fn open(&self, _: &Hash) -> std::result::Result<Option<File>, BlobError> {
        Ok(None)
    }

    fn list(&self) -> std::result::Result<Vec<Hash>, BlobError> {
        Ok(Vec::new())
    }

    fn fetch(&self, hash: &Hash, _: u64, waited: Duration) -> std::result::Result<File, BlobError> {
        Err(BlobError::Absent { hash: *hash, waited })
    }
}

/// The open logs of a node.
pub(crate) struct Open {
    root: Arc<Log>,
    home: Arc<Log>,
}

impl Logs for Open {
    fn logs(&self) -> Vec<Arc<Log>> {
        vec![Arc::clone(&self.root), Arc::clone(&self.home)]
    }

    fn log(&self, store: &StoreId) -> Option<Arc<Log>> {
        self.logs().into_iter().find(|log| log.store() == *store)
    }
}

/// What a node is while it is up.
pub(crate) struct Up {
    pub(crate) open: Arc<Open>,
    pub(crate) kv: Kv,
    pub(crate) replica: Replica,
    pub(crate) ingests: BTreeMap<StoreId, Ingest>,
    pub(crate) durable: Arc<Mutex<Vec<Durable>>>,
    /// Its link with each peer, as far as it knows.
    pub(crate) sessions: BTreeMap<usize, u64>,
    /// Until when each store's ingest is at work.
    pub(crate) busy: BTreeMap<StoreId, Millis>,
    /// When a tick is scheduled.
    pub(crate) wakes: Millis,
    /// Stores for which a peer has told how far this node's own chain goes.
    pub(crate) told: BTreeSet<StoreId>,
    /// Its part in each store's gossip.
    pub(crate) swarms: BTreeMap<StoreId, Swarm>,
}

/// The key of one of them.
pub(crate) fn key(n: u64) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_bytes(blake3::hash(&n.to_le_bytes()).as_bytes()))
}

/// A kv store of nobody, which makes payloads.
pub(crate) fn stencil() -> Kv {
    let key = key(u64::MAX);
    let me = NodeId(key.verifying_key().to_bytes());
    let members = BTreeMap::from([(me, member(&me))]);
    let parts = Parts {
        store: HOME,
        key,
        clock: Arc::new(Manual::new(Millis(1))),
        machine: Arc::new(Machine),
        membership: Arc::new(ArcSwap::from_pointee(Membership { members })),
        events: events(),
    };
    let log = Log::with(Database::in_memory(Disk::default()).unwrap(), parts).unwrap();
    Kv::new(Arc::new(log), Arc::new(NoBlobs))
}

pub(crate) struct Node {
    pub(crate) key: Arc<SigningKey>,
    pub(crate) id: NodeId,
    pub(crate) clock: Arc<Manual>,
    /// Milliseconds that its clock is ahead.
    pub(crate) ahead: i64,
    disks: [Disk; 2],
    /// Counts its starts.
    pub(crate) life: u64,
    pub(crate) up: Option<Up>,
}

impl Node {
    pub(crate) fn new(n: usize, ahead: i64) -> Self {
        let key = key(n as u64);
        let id = NodeId(key.verifying_key().to_bytes());
        let clock = Arc::new(Manual::new(Millis(0)));
        Self { key, id, clock, ahead, disks: [Disk::default(), Disk::default()], life: 0, up: None }
    }

    pub(crate) fn set_clock(&self, now: Millis) {
        self.clock.set(Millis(now.0.checked_add_signed(self.ahead).unwrap()));
    }

    /// Starts it. Who is in `members` is known to all from the beginning.
    pub(crate) fn start(&mut self, members: &Arc<Membership>, seed: u64) {
        self.life += 1;
        let membership: SharedMembership = Arc::new(ArcSwap::new(Arc::clone(members)));
        let durable: Arc<Mutex<Vec<Durable>>> = Arc::default();
        let open = |disk: &Disk, store, machine: Arc<dyn StateMachine>| {
            let parts = Parts {
                store,
                key: Arc::clone(&self.key),
                clock: Arc::clone(&self.clock) as _,
                machine,
                membership: Arc::clone(&membership),
                events: events(),
            };
            let log = Log::with(Database::in_memory(disk.clone()).unwrap(), parts).unwrap();
            let outbox = Arc::clone(&durable);
            log.outbox(Box::new(move |durable| outbox.lock().unwrap().push(durable)));
            Arc::new(log)
        };
        let root = open(&self.disks[0], MESH.root(), Arc::new(Roster(Arc::clone(&membership))));
        let home = open(&self.disks[1], HOME, Arc::new(Machine));
        known(&root, &membership);
        let identity = Identity { me: self.id, mesh: MESH, build: "simulation".into(), seed };
        self.up = Some(Up {
            kv: Kv::new(Arc::clone(&home), Arc::new(NoBlobs)),
            open: Arc::new(Open { root, home }),
            replica: Replica::new(identity),
            ingests: BTreeMap::new(),
            durable,
            sessions: BTreeMap::new(),
            busy: BTreeMap::new(),
            wakes: Millis(u64::MAX),
            told: BTreeSet::new(),
            swarms: BTreeMap::new(),
        });
    }

    /// Ends it at once: what is not on the disk is gone.
    pub(crate) fn crash(&mut self) {
        self.up = None;
        self.disks.iter().for_each(Disk::crash);
    }

    /// Copies what is on its disks, as a backup does.
    pub(crate) fn backup(&self) -> [Disk; 2] {
        self.disks.each_ref().map(Disk::copy)
    }

    /// Puts a backup in place of its disks. It must be down.
    pub(crate) fn restore(&mut self, backup: [Disk; 2]) {
        assert!(self.up.is_none());
        self.disks = backup;
    }

    /// Makes another node a member.
    pub(crate) fn admit(&self, node: &NodeId) {
        let up = self.up.as_ref().unwrap();
        up.open.root.submit(&node.0, Origin::Local).unwrap();
    }
}

fn known(root: &Log, membership: &SharedMembership) {
    let mut members = BTreeMap::new();
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    root.database()
        .view()
        .unwrap()
        .scan(ROSTER, all, false, &mut |key, _| {
            let node = NodeId::from_slice(key).unwrap();
            members.insert(node, member(&node));
            Flow::Continue(())
        })
        .unwrap();
    if !members.is_empty() {
        let mut all = Membership::clone(&membership.load());
        all.members.append(&mut members);
        membership.store(Arc::new(all));
    }
}

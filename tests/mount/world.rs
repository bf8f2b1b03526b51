//! A machine with a mount, and another one of the same mesh that has none.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ed25519_dalek::SigningKey;
use lattice::blobs::{BlobError, Payloads};
use lattice::clock::{self, System};
use lattice::fs::{Mounted, Options, Sources, mount};
use lattice::ids::{Hash, NodeId, StoreId};
use lattice::peers::{Peer, Peers, Proof, Standing};
use lattice::replication::log::Origin;
use lattice::replication::membership::Role;
use lattice::stores::kv::{HeadId, Heads, Kind, Kv, Op, Opened, Value};
use lattice::stores::root::{Op as RootOp, genesis};
use lattice::stores::{Merge, Registry};

static NEXT: AtomicU8 = AtomicU8::new(1);

/// Large values as files of a directory.
pub(crate) struct Shelf {
    pub(crate) at: PathBuf,
    /// How many times one that is not here was waited for.
    pub(crate) waits: Arc<AtomicU32>,
}

impl Shelf {
    fn path(&self, hash: &Hash) -> PathBuf {
        self.at.join(hash.to_string())
    }
}

impl Payloads for Shelf {
    fn add_bytes(&self, bytes: &[u8]) -> Result<(Hash, u64), BlobError> {
        let hash = Hash::from(blake3::hash(bytes));
        std::fs::write(self.path(&hash), bytes).unwrap();
        Ok((hash, bytes.len() as u64))
    }

    fn add_file(&self, path: &Path) -> Result<(Hash, u64), BlobError> {
        self.add_bytes(&std::fs::read(path).unwrap())
    }

    fn open(&self, hash: &Hash) -> Result<Option<File>, BlobError> {
        Ok(File::open(self.path(hash)).ok())
    }

    fn list(&self) -> Result<Vec<Hash>, BlobError> {
        let names = std::fs::read_dir(&self.at).unwrap().map(|entry| entry.unwrap().file_name());
        Ok(names.map(|name| name.to_str().unwrap().parse().unwrap()).collect())
    }

    fn fetch(&self, hash: &Hash, _size: u64, patience: Duration) -> Result<File, BlobError> {
        let start = clock::monotonic();
        if !patience.is_zero() {
            self.waits.fetch_add(1, Ordering::SeqCst);
        }
        loop {
            if let Some(file) = self.open(hash)? {
                return Ok(file);
            }
            let waited = clock::monotonic() - start;
            if waited >= patience.min(Duration::from_secs(3)) {
                return Err(BlobError::Absent { hash: *hash, waited });
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// The members as a test says.
pub(crate) struct Fixed(pub(crate) Vec<Peer>, pub(crate) Arc<Standings>);

/// How far the others are with any store.
pub(crate) type Standings = Mutex<BTreeMap<NodeId, Standing>>;

impl Peers for Fixed {
    fn peers(&self) -> Vec<Peer> {
        self.0.clone()
    }

    fn standings(&self, _: &StoreId) -> BTreeMap<NodeId, Standing> {
        self.1.lock().unwrap().clone()
    }

    fn proof(&self, _: &NodeId) -> Option<Proof> {
        None
    }
}

/// A machine's stores.
pub(crate) struct Node {
    pub(crate) key: Arc<SigningKey>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) blobs: PathBuf,
    /// How many times a large value that is not here was waited for.
    pub(crate) waits: Arc<AtomicU32>,
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    pub(crate) fn home(&self) -> Arc<Kv> {
        self.registry.kv("home").expect("the store home")
    }

    /// Takes what the other has.
    pub(crate) fn pull(&self, other: &Self) {
        loop {
            let mut progress = false;
            for theirs in other.registry.logs() {
                let Some(mine) = self.registry.log(&theirs.store()) else { continue };
                let entries: Vec<_> = {
                    let view = theirs.database().view().unwrap();
                    let my = mine.database().view().unwrap();
                    let tips = mine.tips(&my).unwrap();
                    let authors = theirs.tips(&view).unwrap();
                    let from = |author| tips.get(author).map_or(0, |tip| tip.seq + 1);
                    authors
                        .keys()
                        .flat_map(|author| theirs.chain(&view, author, from(author), 100_000).unwrap())
                        .collect()
                };
                let mut entries = entries;
                entries.sort_by_key(|entry| entry.header().hlc);
                progress |= !entries.is_empty();
                mine.include(&entries, Origin::Pulled).unwrap();
            }
            self.registry.refresh();
            if !progress {
                break;
            }
        }
        for blob in std::fs::read_dir(&other.blobs).unwrap().flatten() {
            std::fs::copy(blob.path(), self.blobs.join(blob.file_name())).unwrap();
        }
    }

    /// What a key shows; `None` if nothing.
    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        let kv = self.home();
        let heads = kv.heads(path.as_bytes()).unwrap()?;
        let head = *heads.visible()?;
        Some(match kv.read(&head).unwrap() {
            Opened::Bytes(bytes) => bytes,
            Opened::File(file, size) => {
                use std::os::unix::fs::FileExt;
                let mut bytes = vec![0; usize::try_from(size).unwrap()];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
        })
    }

    pub(crate) fn heads(&self, path: &str) -> Option<Heads> {
        self.home().heads(path.as_bytes()).unwrap()
    }

    fn ids(&self, path: &str) -> Vec<HeadId> {
        self.heads(path).iter().flat_map(|heads| heads.all()).map(|head| head.id).collect()
    }

    /// Writes a key as another program than the mount does.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let kv = self.home();
        let value = kv.value(bytes).unwrap();
        let (path, supersedes) = (path.as_bytes().to_vec(), self.ids(path));
        let op = Op::Put { path, supersedes, kind: Kind::File, mode: 0o644, mtime: clock::nanos(), value };
        kv.submit(vec![op], Origin::Local).unwrap();
    }

    pub(crate) fn make_directory(&self, path: &str, mode: u32) {
        let (path, supersedes, kind) = (path.as_bytes().to_vec(), self.ids(path), Kind::Directory);
        let op = Op::Put { path, supersedes, kind, mode, mtime: clock::nanos(), value: Value::Empty };
        self.home().submit(vec![op], Origin::Local).unwrap();
    }

    pub(crate) fn delete(&self, path: &str) {
        let op = Op::Delete { path: path.as_bytes().to_vec(), supersedes: self.ids(path) };
        self.home().submit(vec![op], Origin::Local).unwrap();
    }

    /// The number of entries in the store.
    pub(crate) fn entries(&self) -> u64 {
        let kv = self.home();
        let view = kv.log().database().view().unwrap();
        kv.log().fingerprint(&view).unwrap().count
    }
}

/// Two machines; the first has a mount.
pub(crate) struct World {
    pub(crate) mounted: Option<Mounted>,
    pub(crate) at: PathBuf,
    pub(crate) here: Node,
    pub(crate) there: Node,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) standings: Arc<Standings>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Role::Writer)
    }

    /// The machine without a mount has this role.
    pub(crate) fn with(role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let number = || SigningKey::from_bytes(&[NEXT.fetch_add(1, Ordering::SeqCst); 32]);
        let (mine, other) = (Arc::new(number()), Arc::new(number()));
        let (mesh, first) = genesis(&mine, &System, "test", "here").unwrap();
        let open = |name: &str, key: &Arc<SigningKey>| {
            let blobs = dir.path().join(name).join("blobs");
            std::fs::create_dir_all(&blobs).unwrap();
            let waits = Arc::default();
            let payloads = Arc::new(Shelf { at: blobs.clone(), waits: Arc::clone(&waits) });
            let at = dir.path().join(name);
            let registry =
                Registry::open(&at, mesh, Some(&first), Arc::clone(key), Arc::new(System), payloads).unwrap();
            Node { key: Arc::clone(key), registry, blobs, waits }
        };
        let here = open("here", &mine);
        let there = open("there", &other);
        let join = RootOp::AddMember { node: there.id(), name: "there".into(), role };
        here.registry.root().submit(&[join], Origin::Local).unwrap();
        there.pull(&here);
        let at = dir.path().join("mesh");
        std::fs::create_dir(&at).unwrap();
        let mut world = Self { mounted: None, at, here, there, dir, standings: Arc::default() };
        world.mount();
        world
    }

    pub(crate) fn sources(&self) -> Sources {
        let peer = |id, name: &str, me| Peer {
            id,
            name: name.into(),
            role: Role::Writer,
            me,
            left: false,
            removed: false,
            forked: false,
            online: !me,
            address: None,
            rtt: (!me).then_some(Duration::from_micros(1500)),
            last_seen: None,
            lag: Some(0),
            version: Some("0.1.0".into()),
        };
        let peers = vec![peer(self.here.id(), "here", true), peer(self.there.id(), "there", false)];
        Sources {
            registry: Arc::new(ArcSwapOption::from(Some(Arc::clone(&self.here.registry)))),
            peers: Arc::new(Fixed(peers, Arc::clone(&self.standings))),
            drafts: self.dir.path().join("drafts"),
        }
    }

    pub(crate) fn mount(&mut self) {
        self.mount_with(Options::default());
    }

    pub(crate) fn mount_with(&mut self, options: Options) {
        self.mounted = Some(mount(&self.at, self.sources(), options).expect("to mount (as root, with /dev/fuse)"));
    }

    pub(crate) fn unmount(&mut self) {
        self.mounted.take().expect("a mount").unmount().unwrap();
    }

    /// A path in the store `home`.
    pub(crate) fn key(&self, path: &str) -> PathBuf {
        let keys = self.at.join("stores/home/keys");
        if path.is_empty() { keys } else { keys.join(path) }
    }

    /// Runs a shell in the store `home`; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{script}: {}{}", said(&output.stdout), said(&output.stderr));
        said(&output.stdout)
    }

    pub(crate) fn try_sh(&self, script: &str) -> Output {
        let mut command = Command::new("bash");
        command.args(["-ec", script]).current_dir(self.key("")).env("MESH", &self.at).env("LC_ALL", "C");
        command.env("SPARE", self.dir.path()).output().unwrap()
    }

    /// How many entries a shell script makes, once they are all made.
    pub(crate) fn entries_of(&self, script: &str) -> u64 {
        let before = self.here.entries();
        self.sh(script);
        self.settled();
        self.here.entries() - before
    }

    /// Waits until nothing is unpublished any more: longer than any file waits for a rename.
    pub(crate) fn settled(&self) {
        let mut entries = self.here.entries();
        let mut since = clock::monotonic();
        eventually("the store to stand still", || {
            let now = self.here.entries();
            if now != entries {
                (entries, since) = (now, clock::monotonic());
            }
            clock::monotonic() - since > Duration::from_millis(450)
        });
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = clock::monotonic();
    while !so() {
        assert!(clock::monotonic() - start < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

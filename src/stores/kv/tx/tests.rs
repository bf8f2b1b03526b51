use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};

use super::*;
use crate::blobs::{BlobError, Payloads};
use crate::clock::{Clock, Manual};
use crate::replication::database::Database;
use crate::replication::log::Verdict;
use crate::stores::kv::{HeadId, Heads, Machine, Node, Op, Opened};
use crate::stores::merge::Merge;
use crate::stores::testing::{Shelf, clock, log, log_in};

fn kv(n: u8, clock: &Arc<Manual>) -> Kv {
    Kv::new(log(n, Machine, Arc::clone(clock) as Arc<dyn Clock>), Arc::new(Shelf::default()))
}

/// The disk of a store, shared by its clones, which can be full.
#[derive(Debug, Clone, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
        }
        change(&mut self.bytes.lock().unwrap());
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes.lock().unwrap()[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.change(|bytes| bytes.resize(usize::try_from(len).unwrap(), 0))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.change(|_| {})
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.change(|bytes| bytes[start..start + data.len()].copy_from_slice(data))
    }
}

/// Keeps blobs and gives none back.
#[derive(Default)]
struct Broken(Shelf);

impl Payloads for Broken {
    fn add_bytes(&self, bytes: &[u8]) -> std::result::Result<(Hash, u64), BlobError> {
        self.0.add_bytes(bytes)
    }

    fn add_file(&self, path: &Path) -> std::result::Result<(Hash, u64), BlobError> {
        self.0.add_file(path)
    }

    fn open(&self, _hash: &Hash) -> std::result::Result<Option<File>, BlobError> {
        Err(BlobError::Full)
    }

    fn list(&self) -> std::result::Result<Vec<Hash>, BlobError> {
        self.0.list()
    }

    fn fetch(&self, _hash: &Hash, _size: u64, _waited: Duration) -> std::result::Result<File, BlobError> {
        Err(BlobError::Full)
    }
}

/// A store, its transactions, and where they are.
struct World {
    kv: Kv,
    txs: Txs,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::of(kv(0, &clock()))
    }

    fn of(kv: Kv) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { kv, txs: Txs::open(dir.path().join("tx")), dir }
    }

    fn begin(&self, name: &str) -> PathBuf {
        self.txs.begin(&self.kv, name.as_bytes()).unwrap().files()
    }

    fn commit(&self, name: &str) -> Result<Committed> {
        self.txs.commit(&self.kv, name.as_bytes(), false, Origin::Local)
    }

    fn force(&self, name: &str) -> Committed {
        self.txs.commit(&self.kv, name.as_bytes(), true, Origin::Local).unwrap()
    }

    fn moved(&self, name: &str) -> Vec<String> {
        match self.commit(name) {
            Err(TxError::Moved { keys, .. }) => keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn heads(&self, path: &str) -> Option<Heads> {
        self.kv.heads(path.as_bytes()).unwrap()
    }

    fn ids(&self, path: &str) -> Vec<HeadId> {
        self.heads(path).iter().flat_map(Merge::all).map(|head| head.id).collect()
    }

    fn put(&self, path: &str, text: &str) {
        let (supersedes, value) = (self.ids(path), self.kv.value(text.as_bytes()).unwrap());
        let op = Op::Put { path: path.into(), supersedes, kind: Kind::File, mode: 0o644, mtime: 5, value };
        self.kv.submit(vec![op], Origin::Local).unwrap();
    }

    fn make_directory(&self, path: &str) {
        let (supersedes, value) = (self.ids(path), Value::Empty);
        let op = Op::Put { path: path.into(), supersedes, kind: Kind::Directory, mode: 0o700, mtime: 5, value };
        self.kv.submit(vec![op], Origin::Local).unwrap();
    }

    fn delete(&self, path: &str) {
        let op = Op::Delete { path: path.into(), supersedes: self.ids(path) };
        self.kv.submit(vec![op], Origin::Local).unwrap();
    }

    fn get(&self, path: &str) -> Option<String> {
        let head = *self.heads(path)?.visible()?;
        Some(match self.kv.read(&head).unwrap() {
            Opened::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
            Opened::File(mut file, _) => std::io::read_to_string(&mut file).unwrap(),
        })
    }

    fn open(&self) -> Vec<String> {
        let open = self.txs.list(&self.kv.log().store());
        open.iter().map(|tx| String::from_utf8(tx.name().to_vec()).unwrap()).collect()
    }

    /// What there is of transactions on the disk.
    fn kept(&self) -> usize {
        fs::read_dir(self.txs.of_store(&self.kv.log().store())).unwrap().count()
    }

    fn entries(&self) -> u64 {
        self.kv.log().fingerprint(&self.kv.view().unwrap()).unwrap().count
    }

    /// The transactions, as a new start finds them.
    fn restarted(self) -> Self {
        let Self { kv, txs, dir } = self;
        drop(txs);
        let txs = Txs::open(dir.path().join("tx"));
        txs.recover(&kv);
        Self { kv, txs, dir }
    }
}

fn write(at: &Path, text: &str) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, text).unwrap();
}

#[test]
fn what_a_transaction_builds_upon_is_on_the_disk_before_it_begins() {
    let world = World::new();
    world.put("a", "old");
    let log = world.kv.log();
    let on_disk = || log.present(&log.database().durable().unwrap()).unwrap();
    assert!(on_disk().iter().next().is_none());
    world.begin("t");
    assert_eq!(*world.txs.get(&log.store(), b"t").unwrap().base.past, on_disk());
    assert_eq!(on_disk().iter().next(), Some((&log.me(), 0)));
}

#[test]
fn what_is_staged_becomes_one_entry_that_supersedes_what_was_there() {
    let world = World::new();
    world.put("a", "old");
    world.put("gone", "old");
    let files = world.begin("t");
    write(&files.join("a"), "new");
    write(&files.join("d/e/f"), "deep");
    write(&files.join("large"), &"x".repeat(100_000));
    write(&files.join("gone.delete"), "");
    symlink("a", files.join("l")).unwrap();
    fs::set_permissions(files.join("a"), fs::Permissions::from_mode(0o4751)).unwrap();
    let before = world.entries();
    let committed = world.commit("t").unwrap();
    assert_eq!(world.entries(), before + 1);
    assert_eq!((committed.put, committed.deleted), (6, 1));
    assert_eq!(world.get("a").unwrap(), "new");
    assert_eq!(world.heads("a").unwrap().all().len(), 1);
    assert_eq!(world.heads("a").unwrap().lww().mode, 0o4751);
    assert_eq!(world.get("d/e/f").unwrap(), "deep");
    assert_eq!(world.get("large").unwrap().len(), 100_000);
    assert_eq!(world.get("gone"), None);
    assert!(matches!(world.kv.node(b"l").unwrap(), Some(Node::Symlink(_))));
    assert!(matches!(world.kv.node(b"d/e").unwrap(), Some(Node::Directory(Some(_)))));
    let store = world.kv.log().store();
    assert!(world.txs.list(&store).is_empty());
    assert_eq!(fs::read_dir(world.txs.of_store(&store)).unwrap().count(), 0, "it leaves nothing on the disk");
    assert!(matches!(world.commit("t"), Err(TxError::Missing(_))));
}

#[test]
fn a_key_that_moved_keeps_it_from_being_committed_and_forced_it_is_a_head_beside_it() {
    let world = World::new();
    world.put("a", "old");
    let files = world.begin("t");
    write(&files.join("a"), "mine");
    write(&files.join("b"), "mine");
    world.put("other", "of no concern");
    world.put("a", "theirs");
    world.put("b", "theirs");
    let before = world.entries();
    assert_eq!(world.moved("t"), ["a", "b"]);
    assert_eq!(world.entries(), before);
    assert_eq!(world.get("a").unwrap(), "theirs");
    let tx = world.txs.get(&world.kv.log().store(), b"t").unwrap();
    let look = tx.look(&world.kv);
    assert_eq!(look.moved, [b"a", b"b"]);
    let hint = |store| look.why.as_ref().unwrap().hint(store).unwrap();
    assert!(hint("home").contains("`lattice tx commit t --force`"));
    assert!(hint("site").contains("`lattice tx commit t --force --store site`"));
    assert!(
        look.why.as_ref().unwrap().to_string().contains("2 keys changed after the transaction 't' began: 'a', 'b'")
    );
    assert_eq!(fs::read_to_string(files.join("a")).unwrap(), "mine");
    world.force("t");
    for key in ["a", "b"] {
        let heads = world.heads(key).unwrap();
        assert_eq!(heads.all().len(), 2);
        assert!(heads.is_conflict());
    }
}

#[test]
fn a_change_that_comes_from_another_node_moves_its_key_too_and_one_that_was_there_before_does_not() {
    let clock = clock();
    let (world, other) = (World { kv: kv(0, &clock), ..World::new() }, kv(1, &clock));
    let give = |from: &Kv, to: &Kv, receipt: Receipt| {
        let entry = from.log().get(&from.view().unwrap(), &receipt.hash).unwrap().unwrap();
        let verdicts = to.log().include(&[entry], Origin::Pulled).unwrap();
        assert!(matches!(verdicts[0], Verdict::Included), "{verdicts:?}");
    };
    let put = |text: &str, supersedes| {
        let value = Value::Bytes(text.into());
        let op = Op::Put { path: b"k".to_vec(), supersedes, kind: Kind::File, mode: 0o644, mtime: 5, value };
        other.submit(vec![op], Origin::Local).unwrap()
    };
    let first = put("one", vec![]);
    give(&other, &world.kv, first);
    write(&world.begin("t").join("k"), "mine");
    write(&world.begin("u").join("k"), "mine too");
    world.commit("t").unwrap();
    assert_eq!(world.moved("u"), ["k"], "the other transaction moved it");
    let second = put("two", vec![HeadId { entry: first.hash, op: 0 }]);
    write(&world.begin("v").join("k"), "later");
    give(&other, &world.kv, second);
    assert_eq!(world.moved("v"), ["k"]);
}

#[test]
fn a_tree_that_is_deleted_is_the_one_of_the_base_and_what_came_below_it_since_is_in_the_way() {
    let world = World::new();
    world.make_directory("d");
    world.put("d/a", "1");
    world.put("d/e/b", "2");
    world.put("d!", "stays");
    write(&world.begin("t").join("d.delete"), "");
    world.put("d/new", "3");
    assert_eq!(world.moved("t"), ["d/new"]);
    assert_eq!(world.get("d/a").unwrap(), "1");
    let committed = world.force("t");
    assert_eq!((committed.put, committed.deleted), (0, 3));
    assert_eq!((world.get("d/a"), world.get("d/e/b")), (None, None));
    assert_eq!(world.get("d/new").unwrap(), "3");
    assert_eq!(world.get("d!").unwrap(), "stays");
    write(&world.begin("u").join("d.delete"), "");
    world.commit("u").unwrap();
    assert_eq!(world.kv.node(b"d").unwrap(), None);
    write(&world.begin("v").join("d.delete"), "");
    let refused = world.commit("v").unwrap_err().to_string();
    assert!(refused.contains("no 'd' to delete"), "{refused}");
}

#[test]
fn a_tree_is_replaced_by_deleting_it_and_staging_another() {
    let world = World::new();
    world.put("d/keep", "1");
    world.put("d/old", "1");
    world.put("d/x/y", "1");
    let files = world.begin("t");
    write(&files.join("d.delete"), "");
    write(&files.join("d/keep"), "2");
    fs::create_dir(files.join("d/x")).unwrap();
    let before = world.entries();
    world.commit("t").unwrap();
    assert_eq!(world.entries(), before + 1);
    let names: Vec<_> = world.kv.children(b"d", None, 9).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"keep".to_vec(), b"x".to_vec()]);
    assert_eq!(world.get("d/keep").unwrap(), "2");
}

#[test]
fn a_directory_that_is_there_is_left_as_it_is_and_one_that_went_is_in_the_way() {
    let world = World::new();
    world.make_directory("d");
    let (t, u) = (world.begin("t"), world.begin("u"));
    write(&t.join("d/a"), "1");
    write(&u.join("d/b"), "1");
    world.commit("t").unwrap();
    assert_eq!(world.heads("d").unwrap().lww().mode, 0o700, "its attributes are not what was staged");
    world.delete("d/a");
    world.delete("d");
    assert_eq!(world.moved("u"), ["d"]);
}

#[test]
fn two_that_make_other_keys_in_one_new_directory_are_both_committed() {
    let world = World::new();
    let (t, u) = (world.begin("t"), world.begin("u"));
    write(&t.join("new/a"), "1");
    write(&u.join("new/b"), "2");
    world.commit("u").unwrap();
    world.commit("t").unwrap();
    assert_eq!((world.get("new/a").unwrap(), world.get("new/b").unwrap()), ("1".into(), "2".into()));
    assert_eq!(world.kv.conflict_count().unwrap(), 0);
}

#[test]
fn a_file_takes_the_place_of_a_directory_only_if_that_is_deleted_as_well() {
    let world = World::new();
    world.put("d/a", "1");
    let files = world.begin("t");
    write(&files.join("d"), "file");
    let refused = world.commit("t").unwrap_err().to_string();
    assert!(refused.contains("'d' is a directory") && refused.contains("'d.delete'"), "{refused}");
    write(&files.join("d.delete"), "");
    world.put("d/late", "1");
    assert_eq!(world.moved("t"), ["d/late"]);
    world.delete("d/late");
    world.commit("t").unwrap();
    assert_eq!(world.get("d").unwrap(), "file");
    assert_eq!(world.kv.conflict_count().unwrap(), 0);
    let files = world.begin("u");
    write(&files.join("d/b"), "below a file");
    world.commit("u").unwrap();
    assert_eq!(world.get("d/b").unwrap(), "below a file");
    assert_eq!(world.kv.conflict_count().unwrap(), 0);
}

#[test]
fn a_restart_keeps_what_is_staged_and_what_it_builds_upon() {
    let world = World::new();
    world.put("a", "old");
    write(&world.begin("t").join("a"), "mine");
    write(&world.begin("u").join("b"), "mine");
    world.put("a", "theirs");
    let world = world.restarted();
    let names: Vec<_> = world.txs.list(&world.kv.log().store()).iter().map(|tx| tx.name().to_vec()).collect();
    assert_eq!(names, [b"t", b"u"]);
    assert_eq!(world.moved("t"), ["a"]);
    world.commit("u").unwrap();
    assert_eq!(world.get("b").unwrap(), "mine");
    let store = world.kv.log().store();
    world.txs.drop(&store, b"t", false).unwrap();
    fs::remove_dir(world.begin("half-forgotten")).unwrap();
    assert!(world.restarted().txs.list(&store).is_empty());
}

#[test]
fn one_whose_entry_was_made_right_before_a_crash_is_over_and_one_that_was_not_goes_on() {
    let world = World::new();
    for name in ["done", "not"] {
        write(&world.begin(name).join(name), "x");
    }
    let store = world.kv.log().store();
    let dir = world.txs.of_store(&store);
    for name in ["done", "not"] {
        let tx = world.txs.get(&store, name.as_bytes()).unwrap();
        let ops = tx.plan(&world.kv).unwrap().ops(|source| value(&world.kv, source)).unwrap();
        let payload = world.kv.encoded(ops).unwrap();
        tx.note(&payload).unwrap();
        if name == "done" {
            world.kv.submit_if(&payload, &[], Origin::Local, |_| Ok(true)).unwrap().unwrap();
        }
    }
    let world = world.restarted();
    let names: Vec<_> = world.txs.list(&store).iter().map(|tx| tx.name().to_vec()).collect();
    assert_eq!(names, [b"not"]);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
    world.commit("not").unwrap();
}

#[test]
fn what_does_not_fit_an_entry_is_refused_and_a_large_value_takes_little() {
    let world = World::new();
    let files = world.begin("t");
    for n in 0..5 {
        write(&files.join(format!("k{n}")), &"x".repeat(16_000));
    }
    let before = world.entries();
    let refused = world.commit("t").unwrap_err();
    assert!(matches!(refused, TxError::Kv(KvError::TooLarge { .. })), "{refused}");
    assert!(refused.hint("home").unwrap().contains("in parts"));
    assert_eq!((world.entries(), world.get("k0")), (before, None));
    assert!(files.join("k4").exists());
    for n in 0..5 {
        write(&files.join(format!("k{n}")), &"x".repeat(17_000));
    }
    world.commit("t").unwrap();
    assert_eq!(world.get("k4").unwrap().len(), 17_000);
    for n in 0..300 {
        world.put(&format!("tree/{}/{n}", "long".repeat(60)), "1");
    }
    write(&world.begin("u").join("tree.delete"), "");
    assert!(matches!(world.commit("u"), Err(TxError::Kv(KvError::TooLarge { .. }))));
}

#[test]
fn an_entry_that_is_only_to_be_made_if_something_holds_is_not_made_if_it_does_not() {
    let world = World::new();
    let op = Op::Put {
        path: b"k".to_vec(),
        supersedes: vec![],
        kind: Kind::File,
        mode: 0o644,
        mtime: 0,
        value: Value::Empty,
    };
    let payload = world.kv.encoded(vec![op]).unwrap();
    let submit = |so| world.kv.submit_if(&payload, &[], Origin::Local, |_| Ok(so)).unwrap();
    assert!(submit(false).is_none());
    assert_eq!(world.entries(), 0);
    assert!(submit(true).is_some());
    assert_eq!(world.entries(), 1);
}

#[test]
fn a_transaction_has_a_name_of_its_own_and_ends_once() {
    let world = World::new();
    let store = world.kv.log().store();
    let begin = |name: &str| world.txs.begin(&world.kv, name.as_bytes());
    let tx = begin("t").unwrap();
    assert!(matches!(begin("t"), Err(TxError::Exists(_))));
    for name in ["commit", ".t", "", "a/b", &"x".repeat(256)] {
        assert!(matches!(begin(name), Err(TxError::Name(..))), "{name}");
    }
    write(&tx.files().join("a"), "x");
    assert!(world.txs.drop(&store, b"t", true).is_err(), "something is staged");
    drop(tx.steady().unwrap());
    let ending = tx.ending().unwrap();
    assert!(matches!(tx.steady(), Err(TxError::Busy)));
    drop(ending);
    world.txs.drop(&store, b"t", false).unwrap();
    assert!(matches!(tx.steady(), Err(TxError::Over)));
    begin("t").unwrap();
    assert_eq!(world.commit("t").unwrap().receipt, None, "nothing is staged");
    assert_eq!(world.entries(), 0);
}

#[test]
fn a_commit_whose_entry_is_made_while_the_disk_is_full_is_over_and_a_start_that_finds_the_entry_removes_it() {
    let disk = Disk::default();
    let again = disk.clone();
    let log = log_in(Database::over(move || again.clone()).unwrap(), 0, Machine, clock());
    let world = World::of(Kv::new(log, Arc::new(Shelf::default())));
    let files = world.begin("t");
    write(&files.join("a"), "mine");
    disk.full.store(true, Ordering::SeqCst);
    let error = world.commit("t").unwrap_err().to_string();
    assert!(error.contains("the entry is made") && error.contains("not yet on the disk"), "{error}");
    assert!(error.contains("no space left"), "{error}");
    assert!(world.open().is_empty(), "nothing can be staged in it any more");
    assert!(matches!(world.commit("t"), Err(TxError::Missing(_))));
    assert!(files.join("a").exists(), "if the entry is lost, it is open again at the next start");
    disk.full.store(false, Ordering::SeqCst);
    let database = world.kv.log().database();
    // What failed is opened anew by the first try.
    database.close().or_else(|_full| database.close()).unwrap();
    assert_eq!(world.get("a").unwrap(), "mine");
    let world = world.restarted();
    assert_eq!((world.open().len(), world.kept(), world.entries()), (0, 0, 1));
}

#[test]
fn a_commit_counts_also_if_its_large_values_cannot_be_opened_afterwards() {
    let world = World::of(Kv::new(log(0, Machine, clock()), Arc::new(Broken::default())));
    write(&world.begin("t").join("large"), &"x".repeat(100_000));
    assert!(world.commit("t").unwrap().receipt.is_some());
    assert_eq!((world.open().len(), world.kept(), world.entries()), (0, 0, 1));
}

#[test]
fn a_look_makes_no_blob_of_a_file_that_grows_meanwhile() {
    let shelf = Arc::new(Shelf::default());
    let world = World::of(Kv::new(log(0, Machine, clock()), Arc::clone(&shelf) as Arc<dyn Payloads>));
    let file = world.begin("t").join("log");
    write(&file, "small");
    let plan = world.txs.get(&world.kv.log().store(), b"t").unwrap().plan(&world.kv).unwrap();
    write(&file, &"x".repeat(100_000));
    fits(&world.kv, &plan).unwrap();
    assert!(shelf.list().unwrap().is_empty());
}

#[test]
fn what_is_staged_is_not_looked_at_while_the_transaction_ends() {
    let world = World::new();
    write(&world.begin("t").join("a"), "x");
    let tx = world.txs.get(&world.kv.log().store(), b"t").unwrap();
    let ending = tx.ending().unwrap();
    assert!(matches!(tx.look(&world.kv).why, Some(TxError::Busy)));
    drop(ending);
    assert!(tx.look(&world.kv).why.is_none());
}

#[test]
fn two_who_look_at_once_leave_the_permissions_as_they_are() {
    let looked = std::thread::spawn(|| {
        // Root reads a directory whatever its permissions: this thread is not root, nor are its own.
        setfsuid(Uid::from_raw(65_534));
        let world = World::new();
        let closed = world.begin("t").join("closed");
        write(&closed.join("a"), "x");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o300)).unwrap();
        let tx = world.txs.get(&world.kv.log().store(), b"t").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    setfsuid(Uid::from_raw(65_534));
                    for _ in 0..100 {
                        let look = tx.look(&world.kv);
                        assert!(look.why.is_none(), "{:?}", look.why);
                        assert_eq!(look.puts[0].path, b"closed");
                    }
                });
            }
        });
        let left = fs::metadata(&closed).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        left
    });
    assert_eq!(looked.join().unwrap(), 0o300);
}

#[test]
fn what_cannot_be_read_at_a_start_is_left_as_it_is() {
    let world = World::new();
    let kept = world.begin("t").parent().unwrap().to_owned();
    fs::remove_dir(kept.join(FILES)).unwrap();
    symlink(FILES, kept.join(FILES)).unwrap();
    write(&world.begin("u").join("a"), "x");
    let noted = world.txs.get(&world.kv.log().store(), b"u").unwrap();
    fs::create_dir(noted.committing()).unwrap();
    assert!(matches!(noted.was_committed(&world.kv), Err(TxError::Io { .. })), "an unreadable note is not none");
    let world = world.restarted();
    assert_eq!(world.open(), ["u"]);
    assert!(kept.join(BASE).exists());
}

#[test]
fn one_that_cannot_be_removed_stays_open_and_the_caller_hears_of_it() {
    let world = World::new();
    let store = world.kv.log().store();
    let files = world.begin("t");
    let (dir, elsewhere) = (files.parent().unwrap(), world.dir.path().join("elsewhere"));
    fs::rename(dir, &elsewhere).unwrap();
    assert!(matches!(world.txs.drop(&store, b"t", false), Err(TxError::Io { .. })));
    assert_eq!(world.open(), ["t"]);
    fs::rename(&elsewhere, dir).unwrap();
    world.txs.drop(&store, b"t", true).unwrap();
    assert_eq!((world.open().len(), world.kept()), (0, 0));
}

//! Random calls on the mount and on a local disk: equal results, equal errors, equal trees, and the store holds what the
//! tree shows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lattice::stores::Merge;
use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, OFlag, RenameFlags};
use nix::sys::stat::{self, FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{self, UnlinkatFlags};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::world::World;

/// Names that calls use: few, so that they meet; deep ones, one that stays on this machine, ones that are no text.
const PATHS: [&[u8]; 12] =
    [b"a", b"b", b"c", b"a/a", b"a/b", b"b/a", b"b/c/a", b"c/\xff\n", b"b~", b".hidden \xc3\xa4", b"a/%2F", b"b/c"];
const TARGETS: [&str; 6] = ["a", "b", "a/a", "none", "c", "b/c/a"];
const SLOTS: usize = 4;

/// A case has failed: smaller ones that fail, too, are not waited for as long.
static SHRINKING: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Clone)]
enum Call {
    Open { slot: usize, path: usize, access: i32, flags: i32 },
    Close(usize),
    Write { slot: usize, at: u64, length: usize, byte: u8 },
    Next { slot: usize, length: usize, byte: u8 },
    Read { slot: usize, at: u64, length: usize },
    Cut { slot: usize, size: u32 },
    Sync(usize),
    Stat(usize),
    Mode { slot: usize, mode: u32 },
    Allocate { slot: usize, at: u32, length: u32, mode: usize },
    Truncate { path: usize, size: u32 },
    Unlink(usize),
    MakeDirectory { path: usize, mode: u32 },
    RemoveDirectory(usize),
    Rename { from: usize, to: usize, how: usize },
    Symlink { target: usize, path: usize },
    ReadLink(usize),
    Chmod { path: usize, mode: u32 },
    Times { path: usize, atime: Option<u32>, mtime: Option<u32>, follow: bool },
    Look { path: usize, follow: bool },
    List(usize),
    ReadAll(usize),
}

fn call() -> impl Strategy<Value = Call> {
    use Call::*;
    let path = || 0..PATHS.len();
    let slot = || 0..SLOTS;
    let flag = |flag: i32| prop_oneof![2 => Just(0), 1 => Just(flag)];
    let mode = || prop_oneof![Just(0o644u32), Just(0o600), Just(0o755), Just(0o4711), Just(0o1777), Just(0o444)];
    let size = || prop_oneof![3 => 0..64u32, 2 => 0..5_000u32, 1 => 0..400_000u32];
    let length = || prop_oneof![3 => 0..32usize, 2 => 0..5_000usize, 1 => 0..300_000usize];
    let open =
        (slot(), path(), 0..3i32, flag(libc::O_CREAT), flag(libc::O_EXCL), flag(libc::O_TRUNC), flag(libc::O_APPEND))
            .prop_map(|(slot, path, access, create, exclusive, cut, append)| {
                // O_EXCL without O_CREAT is undefined.
                let exclusive = if create == 0 { 0 } else { exclusive };
                Open { slot, path, access, flags: create | exclusive | cut | append }
            });
    let make = (slot(), path(), 1..3i32, flag(libc::O_EXCL)).prop_map(|(slot, path, access, exclusive)| Open {
        slot,
        path,
        access,
        flags: libc::O_CREAT | exclusive,
    });
    prop_oneof![
        4 => open,
        4 => make,
        5 => slot().prop_map(Close),
        5 => (slot(), size(), length(), any::<u8>())
            .prop_map(|(slot, at, length, byte)| Write { slot, at: at.into(), length, byte }),
        3 => (slot(), length(), any::<u8>()).prop_map(|(slot, length, byte)| Next { slot, length, byte }),
        4 => (slot(), size(), length()).prop_map(|(slot, at, length)| Read { slot, at: at.into(), length }),
        2 => (slot(), size()).prop_map(|(slot, size)| Cut { slot, size }),
        1 => slot().prop_map(Sync),
        2 => slot().prop_map(Stat),
        1 => (slot(), mode()).prop_map(|(slot, mode)| Mode { slot, mode }),
        1 => (slot(), size(), size(), 0..4usize)
            .prop_map(|(slot, at, length, mode)| Allocate { slot, at, length, mode }),
        2 => (path(), size()).prop_map(|(path, size)| Truncate { path, size }),
        4 => path().prop_map(Unlink),
        4 => (path(), mode()).prop_map(|(path, mode)| MakeDirectory { path, mode }),
        2 => path().prop_map(RemoveDirectory),
        6 => (path(), path(), 0..4usize).prop_map(|(from, to, how)| Rename { from, to, how }),
        2 => (0..TARGETS.len(), path()).prop_map(|(target, path)| Symlink { target, path }),
        1 => path().prop_map(ReadLink),
        2 => (path(), mode()).prop_map(|(path, mode)| Chmod { path, mode }),
        2 => (path(), any::<Option<u32>>(), any::<Option<u32>>(), any::<bool>())
            .prop_map(|(path, atime, mtime, follow)| Times { path, atime, mtime, follow }),
        2 => (path(), any::<bool>()).prop_map(|(path, follow)| Look { path, follow }),
        2 => path().prop_map(List),
        3 => path().prop_map(ReadAll),
    ]
}

/// One of the two sides: a folder, and what is open.
struct Side {
    at: PathBuf,
    open: [Option<File>; SLOTS],
}

type Outcome = Result<String, Errno>;

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_else(|| panic!("{error}")))
}

/// What both must agree on. Of the mtime, whether it was set, and to what: that it moves is compared by its being recent.
fn shown(meta: &fs::Metadata) -> String {
    let time = if meta.mtime() < 1_500_000_000 { format!("{}", meta.mtime()) } else { "now".into() };
    // A directory's size and links are each file system's own affair.
    let (links, size) = if meta.is_dir() { (0, 0) } else { (meta.nlink(), meta.len()) };
    format!("{:o} {links} {size} {time}", meta.mode())
}

fn digest(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), blake3::hash(bytes).to_hex())
}

impl Side {
    fn new(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        Self { at, open: [const { None }; SLOTS] }
    }

    fn path(&self, path: usize) -> PathBuf {
        self.at.join(OsStr::from_bytes(PATHS[path]))
    }

    fn file(&self, slot: usize) -> Result<&File, Errno> {
        self.open[slot].as_ref().ok_or(Errno::EBADF)
    }

    #[allow(clippy::too_many_lines, reason = "a line or two for each call")]
    fn apply(&mut self, call: &Call) -> Outcome {
        let done = |()| String::new();
        match *call {
            Call::Open { slot, path, access, flags } => {
                let flags = OFlag::from_bits_retain(access | flags | libc::O_CLOEXEC);
                let file = fcntl::open(&self.path(path), flags, Mode::from_bits_truncate(0o666))?;
                self.open[slot] = Some(file.into());
                Ok(String::new())
            }
            Call::Close(slot) => match self.open[slot].take() {
                Some(file) => unistd::close(std::os::fd::OwnedFd::from(file)).map(done),
                None => Err(Errno::EBADF),
            },
            Call::Write { slot, at, length, byte } => {
                self.file(slot)?.write_at(&vec![byte; length], at).map(|n| n.to_string()).map_err(|e| errno(&e))
            }
            Call::Next { slot, length, byte } => {
                unistd::write(self.file(slot)?, &vec![byte; length]).map(|n| n.to_string())
            }
            Call::Read { slot, at, length } => {
                let mut bytes = vec![0; length];
                let n = self.file(slot)?.read_at(&mut bytes, at).map_err(|error| errno(&error))?;
                Ok(digest(&bytes[..n]))
            }
            Call::Cut { slot, size } => unistd::ftruncate(self.file(slot)?, size.into()).map(done),
            Call::Sync(slot) => unistd::fsync(self.file(slot)?).map(done),
            Call::Stat(slot) => Ok(shown(&self.file(slot)?.metadata().unwrap())),
            Call::Mode { slot, mode } => stat::fchmod(self.file(slot)?, Mode::from_bits_truncate(mode)).map(done),
            Call::Allocate { slot, at, length, mode } => {
                use fcntl::FallocateFlags as How;
                let hole = How::FALLOC_FL_PUNCH_HOLE | How::FALLOC_FL_KEEP_SIZE;
                let how = [How::empty(), How::FALLOC_FL_KEEP_SIZE, hole, How::FALLOC_FL_ZERO_RANGE][mode];
                fcntl::fallocate(self.file(slot)?, how, at.into(), length.into()).map(done)
            }
            Call::Truncate { path, size } => unistd::truncate(&self.path(path), size.into()).map(done),
            Call::Unlink(path) => unistd::unlink(&self.path(path)).map(done),
            Call::MakeDirectory { path, mode } => {
                unistd::mkdir(&self.path(path), Mode::from_bits_truncate(mode)).map(done)
            }
            Call::RemoveDirectory(path) => {
                unistd::unlinkat(AT_FDCWD, &self.path(path), UnlinkatFlags::RemoveDir).map(done)
            }
            Call::Rename { from, to, how } => {
                let none = RenameFlags::empty();
                let how = [none, none, RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE][how];
                fcntl::renameat2(AT_FDCWD, &self.path(from), AT_FDCWD, &self.path(to), how).map(done)
            }
            Call::Symlink { target, path } => unistd::symlinkat(TARGETS[target], AT_FDCWD, &self.path(path)).map(done),
            Call::ReadLink(path) => fcntl::readlink(&self.path(path)).map(|target| format!("{target:?}")),
            Call::Chmod { path, mode } => {
                let mode = Mode::from_bits_truncate(mode);
                stat::fchmodat(AT_FDCWD, &self.path(path), mode, FchmodatFlags::FollowSymlink).map(done)
            }
            Call::Times { path, atime, mtime, follow } => {
                let time = |wanted: Option<u32>| match wanted {
                    Some(wanted) => TimeSpec::new((wanted % 1_400_000_000).into(), (wanted % 1_000_000_000).into()),
                    None => TimeSpec::UTIME_OMIT,
                };
                let flag = if follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
                let path = self.path(path);
                stat::utimensat(AT_FDCWD, &path, &time(atime), &time(mtime), flag)?;
                if atime.is_none() && mtime.is_none() {
                    return Ok(String::new());
                }
                let meta = if follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) }.unwrap();
                let set = |wanted: Option<u32>, s: i64, n: i64| wanted.map(|_| (s, n));
                let times = (set(atime, meta.atime(), meta.atime_nsec()), set(mtime, meta.mtime(), meta.mtime_nsec()));
                Ok(format!("{times:?}"))
            }
            Call::Look { path, follow } => {
                let path = self.path(path);
                let meta = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
                meta.map(|meta| shown(&meta)).map_err(|error| errno(&error))
            }
            Call::List(path) => {
                let entries = fs::read_dir(self.path(path)).map_err(|error| errno(&error))?;
                let name = |entry: std::io::Result<fs::DirEntry>| {
                    let entry = entry.unwrap();
                    (entry.file_name(), entry.file_type().unwrap())
                };
                let names: BTreeMap<_, _> = entries.map(name).collect();
                Ok(format!("{names:?}"))
            }
            Call::ReadAll(path) => fs::read(self.path(path)).map(|bytes| digest(&bytes)).map_err(|error| errno(&error)),
        }
    }

    /// All that is in the folder: what it is, and for a file or a link what is in it.
    fn tree(&self) -> BTreeMap<PathBuf, (String, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.at.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let bytes = if meta.is_symlink() {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                } else if meta.is_dir() {
                    left.push(path.clone());
                    Vec::new()
                } else {
                    fs::read(&path).unwrap()
                };
                found.insert(path.strip_prefix(&self.at).unwrap().to_owned(), (shown(&meta), bytes));
            }
        }
        found
    }
}

fn published(path: &Path) -> bool {
    !path.as_os_str().as_bytes().ends_with(b"~")
}

/// Waits until the store shows the same files and links as the folder, and no more.
fn stored(world: &World, below: &str, tree: &BTreeMap<PathBuf, (String, Vec<u8>)>) {
    let kv = world.here.home();
    let files = |(path, (shown, bytes)): (&PathBuf, &(String, Vec<u8>))| {
        let file = !shown.starts_with('4') && published(path);
        file.then(|| (path.as_os_str().as_bytes().to_vec(), bytes.clone()))
    };
    let wanted: BTreeMap<Vec<u8>, Vec<u8>> = tree.iter().filter_map(files).collect();
    let prefix = format!("{below}/");
    let start = lattice::clock::monotonic();
    let patience = Duration::from_millis(if SHRINKING.load(Ordering::SeqCst) { 250 } else { 20_000 });
    let holds = || {
        let all = kv.scan(prefix.as_bytes(), None, 1_000).unwrap();
        let live = all.iter().filter_map(|(path, heads)| {
            let head = heads.visible().filter(|head| head.kind != lattice::stores::kv::Kind::Directory)?;
            if !published(Path::new(OsStr::from_bytes(path))) {
                // Exchanged with a directory of such a name, which is a key: so is the file then.
                return None;
            }
            assert_eq!(heads.all().len(), 1, "a conflict with oneself: {}", String::from_utf8_lossy(path));
            let bytes = match kv.read(head).unwrap() {
                lattice::stores::kv::Opened::Bytes(bytes) => bytes,
                lattice::stores::kv::Opened::File(file, size) => {
                    let mut bytes = vec![0; usize::try_from(size).unwrap()];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    bytes
                }
            };
            Some((path[prefix.len()..].to_vec(), bytes))
        });
        live.collect::<BTreeMap<_, _>>() == wanted
    };
    while !holds() {
        if lattice::clock::monotonic() - start > patience {
            SHRINKING.store(true, Ordering::SeqCst);
            panic!("the store does not hold what is shown, {:?}", wanted.keys());
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn compare(world: &World, disk: &Path, number: u32, calls: &[Call]) {
    let name = format!("case{number}");
    let mut here = Side::new(world.key(&name));
    let mut there = Side::new(disk.join(&name));
    for (step, call) in calls.iter().enumerate() {
        let (ours, theirs) = (here.apply(call), there.apply(call));
        assert_eq!(ours, theirs, "at step {step}, {call:?}: the mount, and a disk");
    }
    let tree = there.tree();
    assert_eq!(here.tree(), tree, "the trees while files are open");
    for slot in 0..SLOTS {
        let (ours, theirs) = (here.apply(&Call::Close(slot)), there.apply(&Call::Close(slot)));
        assert_eq!(ours, theirs);
    }
    stored(world, &name, &tree);
    assert_eq!(here.tree(), tree, "the trees once all is published");
}

#[test]
fn any_calls_in_any_order_do_what_they_do_on_a_disk() {
    let mut world = World::new();
    let disk = tempfile::tempdir().unwrap();
    let seed = std::env::var("LATTICE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let cases = std::env::var("LATTICE_CASES").map_or(80, |cases| cases.parse().unwrap());
    println!("LATTICE_SEED={seed} LATTICE_CASES={cases}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::to_be_bytes(seed));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let numbers = AtomicU32::new(0);
    let result = runner.run(&prop::collection::vec(call(), 1..120), |calls| {
        compare(&world, disk.path(), numbers.fetch_add(1, Ordering::SeqCst), &calls);
        Ok(())
    });
    assert!(result.is_ok(), "seed {seed}: {}", result.unwrap_err());
    // A mount made anew shows the same, but for when a directory's names changed last: only the mount knows that.
    let all = || {
        let mut tree = Side { at: world.key(""), open: [const { None }; SLOTS] }.tree();
        tree.retain(|_, (shown, _)| !shown.starts_with('4'));
        tree
    };
    let before = all();
    world.unmount();
    world.mount();
    let mut after = Side { at: world.key(""), open: [const { None }; SLOTS] }.tree();
    after.retain(|_, (shown, _)| !shown.starts_with('4'));
    let different = before.iter().find(|(path, was)| after.get(*path) != Some(was));
    assert!(different.is_none(), "a mount shows something else than the one before it: {different:?}");
    assert_eq!(before.len(), after.len(), "a mount shows more than the one before it");
}

//! What is measured on one machine: the mount beside a tree in memory on the same FUSE library, and beside the local disk.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::harness::{Node, eventually, run};
use super::{FILES, KEYS, create, median, rate, row};

const ROUNDS: usize = 3;
const REFERENCES: [&str; 2] = ["in-memory FUSE tree", "local disk"];
/// Bytes of a large file.
const LARGE: u64 = 1 << 30;
const CHUNK: usize = 1 << 20;
/// Keys in each directory of a large store.
const PER_DIRECTORY: u32 = 1_000;

struct MemoryTree {
    child: Child,
    dir: tempfile::TempDir,
}

impl MemoryTree {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child =
            Command::new(std::env::current_exe().unwrap()).arg("--memory-tree").arg(dir.path()).spawn().unwrap();
        let mounted = || fs::read_to_string("/proc/mounts").unwrap().contains(dir.path().to_str().unwrap());
        eventually("the memory tree is mounted", mounted);
        Self { child, dir }
    }
}

impl Drop for MemoryTree {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.dir.path()).status());
        drop(self.child.wait());
    }
}

/// The three trees, each with an empty directory.
struct Trees {
    node: Node<'static>,
    memory: MemoryTree,
    disk: tempfile::TempDir,
}

impl Trees {
    fn new() -> Self {
        let trees = Self { node: Node::here(), memory: MemoryTree::start(), disk: tempfile::tempdir().unwrap() };
        trees.node.up();
        trees.node.lattice(&["mesh", "init"]);
        trees.all()[1..].iter().for_each(|tree| fs::create_dir_all(tree).unwrap());
        trees
    }

    /// All as deep as a store's keys are: a path's length is part of what looking a file up costs.
    fn all(&self) -> [PathBuf; 3] {
        [self.node.keys(), self.memory.dir.path().join("a/b/c"), self.disk.path().join("a/b/c")]
    }

    /// What `work` says of each tree, as medians of several rounds in turn; it is given a directory and the round's number.
    fn measure<const N: usize>(&self, work: impl Fn(&Path, usize) -> [f64; N]) -> [[f64; N]; 3] {
        let trees = self.all();
        let mut figures: [[Vec<f64>; N]; 3] = std::array::from_fn(|_| std::array::from_fn(|_| Vec::new()));
        for round in 0..ROUNDS {
            for (tree, figures) in trees.iter().zip(&mut figures) {
                for (figures, figure) in figures.iter_mut().zip(work(tree, round)) {
                    figures.push(figure);
                }
            }
        }
        figures.map(|tree| tree.map(median))
    }
}

fn rows<const N: usize>(figures: &[[f64; N]; 3], whats: [&str; N], unit: &str) {
    for (n, what) in whats.iter().enumerate() {
        for (reference, theirs) in REFERENCES.iter().zip(&figures[1..]) {
            row(what, figures[0][n], unit, reference, theirs[n]);
        }
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Makes the kernel forget names and attributes; with `pages`, contents too.
fn forget(pages: bool) {
    run("sync", &[]);
    fs::write("/proc/sys/vm/drop_caches", if pages { "3" } else { "2" }).unwrap();
}

fn stat(dir: &Path, count: u32) {
    for n in 0..count {
        fs::metadata(dir.join(format!("f{n:06}"))).unwrap();
    }
}

fn read(dir: &Path, count: u32) {
    for n in 0..count {
        assert_eq!(fs::read(dir.join(format!("f{n:06}"))).unwrap().len(), 64);
    }
}

/// Creates, stats and reads small files.
pub(crate) fn small_files() {
    let figures = Trees::new().measure(|tree, round| {
        let dir = tree.join(format!("round{round}"));
        fs::create_dir(&dir).unwrap();
        let create = rate(FILES, || create(&dir, FILES)) / 1e3;
        stat(&dir, FILES);
        let stat = rate(FILES, || stat(&dir, FILES)) / 1e3;
        read(&dir, FILES);
        let read = rate(FILES, || read(&dir, FILES)) / 1e3;
        [create, stat, read]
    });
    rows(&figures, ["create+write+close, 64 B", "warm stat", "warm open+read+close, 64 B"], "k/s");
}

/// `ls -l` of one large directory.
pub(crate) fn listing() {
    let trees = Trees::new();
    for tree in trees.all() {
        fs::create_dir(tree.join("many")).unwrap();
        create(&tree.join("many"), KEYS);
    }
    let list = |tree: &Path| seconds(|| discard("ls", &["-l", tree.join("many").to_str().unwrap()]));
    let figures = trees.measure(|tree, _| {
        forget(false);
        [list(tree), list(tree)]
    });
    rows(&figures, ["ls -l of 100,000, cold", "ls -l of 100,000, warm"], "s");
}

/// Runs a program; what it prints is not looked at.
fn discard(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).stdout(Stdio::null()).status().unwrap();
    // 1 is what grep says if it finds nothing.
    assert!(matches!(status.code(), Some(0 | 1)), "{program} {args:?}: {status}");
}

/// Walks and searches a tree of documents.
pub(crate) fn tools() {
    let trees = Trees::new();
    for tree in trees.all() {
        // The tree in memory has no symbolic links.
        run("cp", &["-rL", "/usr/share/doc", tree.join("doc").to_str().unwrap()]);
    }
    let figures = trees.measure(|tree, _| {
        let doc = tree.join("doc");
        let doc = doc.to_str().unwrap();
        let find = || seconds(|| discard("find", &[doc, "-newer", "/etc/hostname", "-size", "+1M"]));
        let grep = || seconds(|| discard("grep", &["-rl", "no such words are here", doc]));
        forget(true);
        let cold = find();
        let warm = find();
        [cold, warm, grep(), grep()]
    });
    rows(&figures, ["find, cold", "find, warm", "grep -r, cold", "grep -r, warm"], "s");
}

fn chunk() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(CHUNK / 8).flatten().collect()
}

/// Writes, reads and edits a large file.
pub(crate) fn large_files() {
    let trees = Trees::new();
    let mut chunk = chunk();
    let [ours, _, disk] = trees.all();
    let megabytes = LARGE as f64 / 1e6;
    let mut figures: [[Vec<f64>; 4]; 2] = Default::default();
    for round in 0..ROUNDS {
        for (tree, figures) in [&ours, &disk].into_iter().zip(&mut figures) {
            let path = tree.join(format!("large{round}"));
            let write = seconds(|| {
                let mut file = fs::File::create(&path).unwrap();
                for n in 0..LARGE / CHUNK as u64 {
                    // No two chunks, files or rounds are alike.
                    chunk[..8].copy_from_slice(&n.to_le_bytes());
                    chunk[8..16].copy_from_slice(&(round as u64).to_le_bytes());
                    file.write_all(&chunk).unwrap();
                }
                file.sync_all().unwrap();
            });
            let mut read = || {
                seconds(|| {
                    let mut file = fs::File::open(&path).unwrap();
                    while file.read(&mut chunk).unwrap() > 0 {}
                })
            };
            forget(true);
            let (cold, warm) = (read(), read());
            let edit = seconds(|| {
                let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.seek(SeekFrom::Start(LARGE / 2)).unwrap();
                file.write_all(b"edited").unwrap();
                file.sync_all().unwrap();
            });
            figures[0].push(megabytes / write);
            figures[1].push(megabytes / cold);
            figures[2].push(megabytes / warm);
            figures[3].push(edit);
            fs::remove_file(&path).unwrap();
        }
    }
    let [ours, disk] = figures.map(|tree| tree.map(median));
    let whats = ["1 GiB written, until fsync", "1 GiB read, cold", "1 GiB read, warm", "an edit in 1 GiB, until fsync"];
    for (n, what) in whats.iter().enumerate() {
        row(what, ours[n], if n == 3 { "s" } else { "MB/s" }, REFERENCES[1], disk[n]);
    }
}

/// What one operation costs as the store grows, beside what it cost in the smallest.
pub(crate) fn curve() {
    let node = Node::here();
    node.up();
    node.lattice(&["mesh", "init"]);
    let directory = |n: u32| node.key(&format!("part{n:04}"));
    let mut made = 0;
    let mut first = None;
    for keys in [1_000, 10_000, 100_000, 1_000_000] {
        while made < keys {
            let dir = directory(made / PER_DIRECTORY);
            fs::create_dir(&dir).unwrap();
            create(&dir, PER_DIRECTORY);
            made += PER_DIRECTORY;
        }
        let figures = operations(&node, keys);
        let first = *first.get_or_insert(figures);
        let whats = ["create+write+close", "stat, cold", "open+read+close, cold", "list 1,000 with attributes, cold"];
        for (n, what) in whats.iter().enumerate() {
            row(&format!("{what}, {keys} keys"), figures[n], "µs", "1,000 keys", first[n]);
        }
    }
}

/// Microseconds of each operation in a store of so many keys.
fn operations(node: &Node<'_>, keys: u32) -> [f64; 4] {
    const COUNT: u32 = 1_000;
    let any = |n: u32| {
        let key = n.wrapping_mul(2_654_435_761) % keys;
        node.key(&format!("part{:04}/f{:06}", key / PER_DIRECTORY, key % PER_DIRECTORY))
    };
    let each = |work: &dyn Fn(u32)| seconds(|| (0..COUNT).for_each(work)) * 1e6 / f64::from(COUNT);
    let fresh = node.key("fresh");
    fs::create_dir(&fresh).unwrap();
    let create = seconds(|| create(&fresh, COUNT)) * 1e6 / f64::from(COUNT);
    fs::remove_dir_all(&fresh).unwrap();
    forget(true);
    let stat = each(&|n| assert!(fs::metadata(any(n)).unwrap().is_file()));
    forget(true);
    let read = each(&|n| assert_eq!(fs::read(any(n)).unwrap().len(), 64));
    forget(true);
    let list = seconds(|| {
        let dir = node.key("part0000");
        assert_eq!(
            fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().metadata().is_ok()).count(),
            1_000
        );
    });
    [create, stat, read, list * 1e6]
}

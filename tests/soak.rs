//! Two machines under mixed load for a while, one of which is killed now and then: nothing hangs, nothing is wrong or lost, nothing grows.
//!
//! `LATTICE_SOAK` says for how many seconds, `LATTICE_SEED` with which choices.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]
#![allow(missing_docs, reason = "a program, not a library")]

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{Net, Node, PATIENCE, eventually, mesh, reached, run, within};

/// A call that takes longer hangs.
const CALL: Duration = Duration::from_secs(5);
/// The same of a program that makes many.
const PROGRAM: Duration = Duration::from_secs(60);
/// Files that a worker saves, and trees that it has, at most.
const FILES: u64 = 12;
/// How often a file is looked at that changes just now.
const LOOKS: u32 = 20;
/// The caches of a node grow up to their bounds.
const CACHES: u64 = 160 << 20;

/// Choices that a seed decides.
struct Dice(u64);

impl Dice {
    fn next(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % sides
    }
}

/// What a file of this name holds after its `round`th save: anyone can tell whether it is so.
fn content(name: &str, round: u64, size: usize) -> Vec<u8> {
    let mut bytes = format!("{name} {round} {size}\n").into_bytes();
    let start = bytes.len();
    bytes.resize(start + size, 0);
    blake3::Hasher::new().update(name.as_bytes()).update(&round.to_be_bytes()).finalize_xof().fill(&mut bytes[start..]);
    bytes
}

/// The round whose content this is, whole.
fn round(bytes: &[u8]) -> Option<u64> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let mut words = std::str::from_utf8(&bytes[..end]).ok()?.split(' ');
    let (name, round, size) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (content(name, round, size) == bytes).then_some(round)
}

/// A machine under load.
struct Side<'a> {
    node: &'a Node<'a>,
    keys: PathBuf,
    /// Counts the times that its daemon was killed; odd while it is not there.
    deaths: AtomicU64,
    /// What was promised to be on the disk: the round of each file.
    promised: Mutex<BTreeMap<PathBuf, u64>>,
}

struct Load {
    over: AtomicBool,
    wrong: Mutex<Vec<String>>,
    /// What is under way, since when, and how long it may be.
    busy: Mutex<BTreeMap<u64, (String, Instant, Duration)>>,
    next: AtomicU64,
    calls: AtomicU64,
}

/// Ends the load when it is dropped.
struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

impl Load {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || !self.wrong.lock().unwrap().is_empty()
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// Does something that must not hang.
    fn timed<T>(&self, what: impl Into<String>, most: Duration, work: impl FnOnce() -> T) -> T {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let what = what.into();
        let start = Instant::now();
        self.busy.lock().unwrap().insert(number, (what.clone(), start, most));
        let done = work();
        self.busy.lock().unwrap().remove(&number);
        self.calls.fetch_add(1, Ordering::Relaxed);
        if start.elapsed() > most {
            self.wrong(format!("{what} took {:?}", start.elapsed()));
        }
        done
    }

    /// Watches that nothing hangs, for what never returns would not say so.
    fn watch(&self) {
        while !self.is_over() {
            let hangs = |(what, since, most): &(String, Instant, Duration)| {
                (since.elapsed() > *most).then(|| format!("{what} hangs since {:?}", since.elapsed()))
            };
            let hung: Vec<_> = self.busy.lock().unwrap().values().filter_map(hangs).collect();
            hung.into_iter().for_each(|what| self.wrong(what));
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }
}

impl Side<'_> {
    /// Makes a call. A failure counts unless the daemon was not there all the time, or `may` allows it.
    fn call<T>(
        &self,
        load: &Load,
        what: &str,
        path: &Path,
        may: impl Fn(&io::Error) -> bool,
        work: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        let before = self.deaths.load(Ordering::SeqCst);
        let result = load.timed(format!("{what} {}", path.display()), CALL, work);
        let there = before.is_multiple_of(2) && self.deaths.load(Ordering::SeqCst) == before;
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if there && !may(&error) {
                    load.wrong(format!("{what} {}: {error}", path.display()));
                }
                if !there {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                None
            }
        }
    }

    fn program(&self, load: &Load, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir("/").env("KEYS", &self.keys);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // What it reads may go while it does; that it ends is what counts.
        drop(load.timed(script, PROGRAM, || command.status()));
    }

    /// Saves as editors do, and has some of it promised.
    fn save(&self, load: &Load, directory: &Path, number: u64, turn: u64, dice: &mut Dice) {
        let never = |_: &io::Error| false;
        let name = format!("f{number}");
        let (path, part) = (directory.join(&name), directory.join(format!(".{name}.new")));
        let bytes = content(&name, turn, usize::try_from(dice.next(12_000)).unwrap());
        let sync = dice.next(4) == 0;
        // One that was left by a crash.
        self.call(load, "unlink", &part, |error| error.kind() == io::ErrorKind::NotFound, || fs::remove_file(&part));
        let Some(mut file) = self.call(load, "create", &part, never, || File::create_new(&part)) else { return };
        if self.call(load, "write", &part, never, || file.write_all(&bytes)).is_none() {
            return;
        }
        if sync && self.call(load, "fsync", &part, never, || file.sync_all()).is_none() {
            return;
        }
        drop(file);
        if self.call(load, "rename", &path, never, || fs::rename(&part, &path)).is_none() {
            return;
        }
        let promise = || File::open(directory).and_then(|directory| directory.sync_all());
        if sync && self.call(load, "fsync", directory, never, promise).is_some() {
            self.promised.lock().unwrap().insert(path, turn);
        }
    }

    fn append(&self, load: &Load, directory: &Path, turn: u64) {
        let path = directory.join("log");
        let line = format!("{turn} {}\n", blake3::hash(&turn.to_be_bytes()).to_hex());
        let write = || OpenOptions::new().append(true).create(true).open(&path)?.write_all(line.as_bytes());
        self.call(load, "append", &path, |_| false, write);
    }

    /// Makes a tree, moves it, looks into it and removes it.
    fn tree(&self, load: &Load, directory: &Path, turn: u64) {
        let never = |_: &io::Error| false;
        let (from, to) = (directory.join(format!("t{turn}/a")), directory.join(format!("m{turn}")));
        let top = directory.join(format!("t{turn}"));
        let bytes = content("leaf", turn, 500);
        let make = || {
            // Not with all that is above: while the mount is not there, that would be made in its place.
            fs::create_dir(&top)?;
            fs::create_dir(&from)?;
            (0..4).try_for_each(|leaf| fs::write(from.join(format!("{leaf}")), &bytes))
        };
        if self.call(load, "make", &from, never, make).is_none() {
            return;
        }
        if self.call(load, "rename", &to, never, || fs::rename(&top, &to)).is_none() {
            return;
        }
        let leaf = to.join("a/3");
        if let Some(found) = self.call(load, "read", &leaf, never, || fs::read(&leaf))
            && found != bytes
        {
            load.wrong(format!("{} holds something else than was moved there", leaf.display()));
        }
        self.call(load, "remove", &to, never, || fs::remove_dir_all(&to));
    }

    /// A worker that writes what is its own.
    fn write(&self, load: &Load, name: &str, mut dice: Dice) {
        let directory = self.keys.join(name);
        let big = self.keys.join("big");
        let mut turn = 0;
        while !load.is_over() {
            turn += 1;
            let there = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
            if turn % 64 == 1 {
                self.call(load, "mkdir", &directory, there, || fs::create_dir(&directory));
                self.call(load, "mkdir", &big, there, || fs::create_dir(&big));
            }
            match dice.next(10) {
                0..=4 => {
                    let number = dice.next(FILES);
                    self.save(load, &directory, number, turn, &mut dice);
                }
                5..=6 => self.append(load, &directory, turn),
                7 => self.tree(load, &directory, turn),
                8 => {
                    let (path, bytes) = (big.join(name), content(name, turn, 70_000));
                    self.call(load, "write", &path, |_| false, || fs::write(&path, &bytes));
                }
                _ => self.program(
                    load,
                    &format!("cd $KEYS/{name} && sed -i 's/x/x/' log && cp log log2 && mv log2 log3 && rm log3"),
                ),
            }
            std::thread::park_timeout(Duration::from_millis(dice.next(20)));
        }
    }

    /// A worker that looks at everything and checks it.
    fn look(&self, load: &Load, mut dice: Dice) {
        // What another machine does to a file meanwhile.
        let moves =
            |error: &io::Error| error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESTALE);
        while !load.is_over() {
            match dice.next(12) {
                0 => self.program(load, "ls -lR $KEYS"),
                1 => self.program(load, "cd $KEYS && grep -rl --exclude-dir=big leaf ."),
                2 => self.program(load, "cat $KEYS/../.status; tail -n 3 $KEYS/../.log; getfattr -d -m - $KEYS/*/log"),
                _ => {
                    let worker = ["a0", "a1", "b0", "b1"][usize::try_from(dice.next(4)).unwrap()];
                    let path = self.keys.join(worker).join(format!("f{}", dice.next(FILES)));
                    self.check(load, &path, moves);
                }
            }
            std::thread::park_timeout(Duration::from_millis(dice.next(30)));
        }
    }

    /// Reads a file that another saves. Who reads just when a change arrives may get it cut at the size that the file had before; who looks
    /// again does not.
    fn check(&self, load: &Load, path: &Path, may: impl Fn(&io::Error) -> bool + Copy) {
        let mut bytes = Vec::new();
        for _ in 0..LOOKS {
            bytes.clear();
            let read = || File::open(path)?.read_to_end(&mut bytes);
            if self.call(load, "read", path, may, read).is_none() || round(&bytes).is_some() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).escape_debug().to_string();
        load.wrong(format!("{} holds {} bytes that are no save of it: {start}", path.display(), bytes.len()));
    }

    /// Kills the daemon, starts it, and looks whether all is there that was promised before.
    fn die(&self, load: &Load) {
        let promised = self.promised.lock().unwrap().clone();
        self.deaths.fetch_add(1, Ordering::SeqCst);
        self.node.kill();
        self.node.up();
        self.deaths.fetch_add(1, Ordering::SeqCst);
        for (path, turn) in promised {
            let Some(bytes) = self.call(load, "read", &path, |_| false, || fs::read(&path)) else { continue };
            if round(&bytes).is_none_or(|found| found < turn) {
                load.wrong(format!("{}: save {turn} was promised, and there is {:?}", path.display(), round(&bytes)));
            }
        }
    }
}

/// The memory of a process in bytes, and how many descriptors it has.
fn size(pid: i32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    (kib << 10, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// How many entries each store of a node has.
fn counts(node: &Node<'_>) -> Vec<serde_json::Value> {
    let stores: serde_json::Value = serde_json::from_str(&node.lattice(&["store", "list", "--json"])).unwrap();
    stores.as_array().unwrap().iter().map(|store| store["entries"].clone()).collect()
}

/// What differs between two trees but for when the names in a directory changed last, which each mount has of its own.
fn difference(left: &Path, right: &Path) -> String {
    let with_slash = |path: &Path| format!("{}/", path.display());
    run("rsync", &["-rlptO", "-ni", "--checksum", "--delete", &with_slash(left), &with_slash(right)])
}

#[test]
fn under_mixed_load_on_two_machines_nothing_hangs_nothing_is_wrong_and_nothing_grows() {
    let seconds: u64 = std::env::var("LATTICE_SOAK").map_or(60, |seconds| seconds.parse().unwrap());
    let seed: u64 = std::env::var("LATTICE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("LATTICE_SOAK={seconds} LATTICE_SEED={seed}");
    let net = Net::new(2);
    let nodes = mesh(&net, 2);
    within(Duration::from_secs(60), "the second machine's store", || nodes[1].keys().is_dir());
    let side = |node| Side { node, keys: node.keys(), deaths: AtomicU64::new(0), promised: Mutex::default() };
    let (a, b) = (side(&nodes[0]), side(&nodes[1]));
    let load = Load {
        over: AtomicBool::new(false),
        wrong: Mutex::default(),
        busy: Mutex::default(),
        next: AtomicU64::new(0),
        calls: AtomicU64::new(0),
    };
    let pid = nodes[0].pid();
    let (mut warm, mut deaths) = ((0, 0), 0);
    std::thread::scope(|scope| {
        // Also when this fails: the workers are waited for.
        let _over = Over(&load);
        let mut dice = Dice(seed);
        scope.spawn(|| load.watch());
        for (side, names) in [(&a, ["a0", "a1"]), (&b, ["b0", "b1"])] {
            for name in names {
                let (load, dice) = (&load, Dice(dice.next(u64::MAX)));
                scope.spawn(move || side.write(load, name, dice));
            }
            let (load, dice) = (&load, Dice(dice.next(u64::MAX)));
            scope.spawn(move || side.look(load, dice));
        }
        let start = Instant::now();
        let length = Duration::from_secs(seconds);
        let mut death = length / 4;
        while start.elapsed() < length && !load.is_over() {
            std::thread::park_timeout(Duration::from_millis(100));
            if start.elapsed() >= death {
                if warm == (0, 0) {
                    warm = size(pid);
                }
                b.die(&load);
                deaths += 1;
                death = start.elapsed() + Duration::from_secs(10 + dice.next(10));
            }
        }
    });
    let wrong = load.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "seed {seed}: {}", wrong.join("\n"));
    let end = size(pid);
    let calls = load.calls.load(Ordering::Relaxed);
    println!(
        "{calls} calls, {deaths} deaths; memory {} MiB, then {} MiB; descriptors {}, then {}",
        warm.0 >> 20,
        end.0 >> 20,
        warm.1,
        end.1
    );
    let mut differs = String::new();
    let same = reached(PATIENCE, || {
        differs = difference(&a.keys, &b.keys);
        differs.is_empty()
    });
    assert!(same, "seed {seed}: the machines differ in\n{differs}");
    assert!(end.0 < warm.0 + CACHES, "memory grew from {} to {} bytes", warm.0, end.0);
    assert!(end.1 < warm.1 + 32, "descriptors grew from {} to {}", warm.1, end.1);
    eventually("both to have the same entries", || counts(&nodes[0]) == counts(&nodes[1]));
    for node in &nodes {
        assert_eq!(node.lattice(&["conflicts"]).trim(), "", "no file here has two authors");
    }
}

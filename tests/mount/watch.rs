//! Programs that watch files hear of what comes from elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use lattice::clock;
use lattice::fs::{Options, mount};
use lattice::replication::log::Origin;
use lattice::stores::Merge;
use lattice::stores::kv::{Kind, Op, Value};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::world::{World, eventually};

/// What is told of a file: where, what, and whose name.
type Told = (PathBuf, AddWatchFlags, String);

struct Watcher {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, PathBuf>,
    told: Vec<Told>,
}

impl Watcher {
    fn new(paths: &[&Path]) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let mut watcher = Self { inotify, watched: HashMap::new(), told: Vec::new() };
        for path in paths {
            watcher.add(path);
        }
        watcher
    }

    fn add(&mut self, path: &Path) {
        // Reading is not of interest, and the test itself reads.
        let mask = AddWatchFlags::IN_ALL_EVENTS & !AddWatchFlags::IN_ACCESS & !AddWatchFlags::IN_CLOSE_NOWRITE;
        self.watched.insert(self.inotify.add_watch(path, mask).unwrap(), path.to_owned());
    }

    fn read(&mut self) {
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        let name = event.name.map(|name| name.to_str().unwrap().to_owned()).unwrap_or_default();
                        self.told.push((self.watched[&event.wd].clone(), event.mask, name));
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What is told up to this, and with it.
    fn until(&mut self, what: AddWatchFlags, name: &str) -> Vec<Told> {
        let is = |told: &Told| told.1.contains(what) && told.2 == name;
        let start = clock::monotonic();
        loop {
            self.read();
            if let Some(at) = self.told.iter().position(is) {
                return self.told.drain(..=at).collect();
            }
            assert!(clock::monotonic() - start < Duration::from_secs(20), "{what:?} of {name}; told: {:?}", self.told);
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn of(told: &[Told], name: &str) -> Vec<AddWatchFlags> {
        told.iter().filter(|told| told.2 == name).map(|told| told.1).collect()
    }
}

const CREATE: AddWatchFlags = AddWatchFlags::IN_CREATE;
const MODIFY: AddWatchFlags = AddWatchFlags::IN_MODIFY;
const CLOSED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE;
const ATTRIB: AddWatchFlags = AddWatchFlags::IN_ATTRIB;
const DELETE: AddWatchFlags = AddWatchFlags::IN_DELETE;
const ISDIR: AddWatchFlags = AddWatchFlags::IN_ISDIR;

/// Makes a key as the other machine.
fn put(world: &World, path: &str, kind: Kind, mode: u32, value: &[u8]) {
    let kv = world.there.home();
    let heads = world.there.heads(path);
    let supersedes = heads.iter().flat_map(lattice::stores::Merge::all).map(|head| head.id).collect();
    let value = if value.is_empty() { Value::Empty } else { kv.value(value).unwrap() };
    let op = Op::Put { path: path.as_bytes().to_vec(), supersedes, kind, mode, mtime: clock::nanos(), value };
    kv.submit(vec![op], Origin::Local).unwrap();
}

#[test]
fn a_file_made_elsewhere_fires_what_one_made_here_does() {
    let world = World::new();
    let mut watcher = Watcher::new(&[&world.key("")]);
    fs::write(world.key("mine"), b"content").unwrap();
    let mine = watcher.until(CLOSED, "mine");
    world.there.put("theirs", b"content");
    world.here.pull(&world.there);
    let theirs = watcher.until(CLOSED, "theirs");
    assert_eq!(Watcher::of(&theirs, "theirs"), Watcher::of(&mine, "mine"));
    assert_eq!(fs::read(world.key("theirs")).unwrap(), b"content");
}

#[test]
fn a_file_changed_elsewhere_fires_for_those_who_watch_it_and_those_who_watch_its_directory() {
    let world = World::new();
    fs::write(world.key("f"), b"old").unwrap();
    world.there.pull(&world.here);
    let mut watcher = Watcher::new(&[&world.key(""), &world.key("f")]);
    world.there.put("f", b"newer and longer");
    world.here.pull(&world.there);
    let told = watcher.until(CLOSED, "");
    for name in ["f", ""] {
        let of = Watcher::of(&told, name);
        assert!(of.contains(&MODIFY) && of.contains(&CLOSED), "{name}: {told:?}");
        assert!(!of.contains(&CREATE), "{told:?}");
    }
    assert_eq!(fs::read(world.key("f")).unwrap(), b"newer and longer");
    assert_eq!(world.here.get("f").unwrap(), b"newer and longer");
}

#[test]
fn a_file_removed_elsewhere_fires_the_same_as_one_removed_here() {
    let world = World::new();
    for name in ["mine", "theirs"] {
        fs::write(world.key(name), b"x").unwrap();
    }
    world.there.pull(&world.here);
    for name in ["mine", "theirs"] {
        let mut watcher = Watcher::new(&[&world.key(""), &world.key(name)]);
        if name == "mine" {
            fs::remove_file(world.key(name)).unwrap();
        } else {
            world.there.delete(name);
            world.here.pull(&world.there);
        }
        watcher.until(AddWatchFlags::IN_DELETE_SELF, "");
        watcher.until(DELETE, name);
        assert!(fs::metadata(world.key(name)).is_err());
    }
    // What comes again is another file.
    let mut watcher = Watcher::new(&[&world.key("")]);
    world.there.put("theirs", b"again");
    world.here.pull(&world.there);
    watcher.until(CREATE, "theirs");
    assert_eq!(fs::read(world.key("theirs")).unwrap(), b"again");
}

#[test]
fn attributes_set_elsewhere_fire_attrib_and_nothing_of_content() {
    let world = World::new();
    fs::write(world.key("f"), b"x").unwrap();
    world.there.pull(&world.here);
    let mut watcher = Watcher::new(&[&world.key("")]);
    put(&world, "f", Kind::File, 0o755, b"x");
    world.here.pull(&world.there);
    let told = watcher.until(ATTRIB, "f");
    assert!(!Watcher::of(&told, "f").contains(&MODIFY), "{told:?}");
    assert_eq!(fs::metadata(world.key("f")).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_tree_made_elsewhere_fires_for_what_is_watched_of_it() {
    let world = World::new();
    let mut watcher = Watcher::new(&[&world.key("")]);
    world.there.put("d/e/f", b"x");
    put(&world, "link", Kind::Symlink, 0o777, b"d/e/f");
    world.here.pull(&world.there);
    watcher.until(CREATE | ISDIR, "d");
    watcher.until(CREATE, "link");
    assert_eq!(fs::read(world.key("link")).unwrap(), b"x");
    let mut watcher = Watcher::new(&[&world.key(""), &world.key("d"), &world.key("d/e")]);
    put(&world, "link", Kind::Symlink, 0o777, b"d/e/g");
    world.there.put("d/e/g", b"y");
    world.here.pull(&world.there);
    watcher.until(DELETE, "link");
    watcher.until(CREATE, "link");
    watcher.until(CREATE, "g");
    assert_eq!(fs::read(world.key("link")).unwrap(), b"y");
}

#[test]
fn of_a_tree_that_is_removed_elsewhere_at_once_each_removal_is_told_the_deepest_first() {
    let world = World::new();
    for round in 0..20 {
        for path in ["d/e/f", "d/e/g"] {
            world.there.put(path, b"x");
        }
        world.here.pull(&world.there);
        eventually("the tree", || fs::metadata(world.key("d/e/g")).is_ok());
        // What watchers of it are told of its making comes first.
        let mut watcher = Watcher::new(&[&world.key("")]);
        world.there.put(&format!("after{round}"), b"x");
        world.here.pull(&world.there);
        watcher.until(CLOSED, &format!("after{round}"));
        let mut watcher = Watcher::new(&[&world.key(""), &world.key("d"), &world.key("d/e")]);
        if round % 2 == 0 {
            for path in ["d/e/f", "d/e/g"] {
                world.there.delete(path);
            }
        } else {
            let ops = ["d/e/f", "d/e/g"].map(|path| Op::Delete {
                path: path.into(),
                supersedes: world.there.heads(path).iter().flat_map(Merge::all).map(|head| head.id).collect(),
            });
            world.there.home().submit(ops.to_vec(), Origin::Local).unwrap();
        }
        world.here.pull(&world.there);
        let told = watcher.until(DELETE | ISDIR, "d");
        let gone = |told: &&Told| told.1.contains(DELETE);
        let names: Vec<_> = told.iter().filter(gone).map(|told| told.2.as_str()).collect();
        assert_eq!(names, ["f", "g", "e", "d"], "round {round}: {told:?}");
        assert!(fs::metadata(world.key("d")).is_err());
    }
}

#[test]
fn what_watchers_are_told_makes_no_entry_and_is_told_of_other_mounts_of_the_node_too() {
    let world = World::new();
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mut sources = world.sources();
    sources.drafts = world.dir.path().join("others drafts");
    let mounted = mount(&other, sources, Options::default()).unwrap();
    let mut here = Watcher::new(&[&world.key("")]);
    let mut there = Watcher::new(&[&other.join("stores/home/keys")]);
    world.there.put("f", b"x");
    world.here.pull(&world.there);
    let entries = world.here.entries();
    here.until(CLOSED, "f");
    there.until(CLOSED, "f");
    world.settled();
    assert_eq!(world.here.entries(), entries);
    fs::write(world.key("g"), b"y").unwrap();
    there.until(CLOSED, "g");
    assert_eq!(Watcher::of(&here.until(CLOSED, "g"), "g").iter().filter(|what| **what == CREATE).count(), 1);
    mounted.unmount().unwrap();
}

#[test]
fn of_a_burst_each_file_is_told() {
    let world = World::new();
    let mut watcher = Watcher::new(&[&world.key("")]);
    let names: BTreeSet<String> = (0..600).map(|number| format!("f{number}")).collect();
    for name in &names {
        world.there.put(name, b"x");
    }
    world.here.pull(&world.there);
    let mut told = BTreeSet::new();
    eventually("all of them", || {
        watcher.read();
        told.extend(watcher.told.drain(..).filter(|told| told.1 == CREATE).map(|told| told.2));
        told.len() == names.len()
    });
    assert_eq!(told, names);
}

#[test]
fn files_made_here_and_elsewhere_at_once_are_both_kept() {
    let world = World::new();
    let _watcher = Watcher::new(&[&world.key("")]);
    for round in 0..20 {
        let name = format!("f{round}");
        world.there.put(&name, b"theirs");
        let path = world.key(&name);
        let writer = std::thread::spawn(move || fs::write(path, b"mine").unwrap());
        world.here.pull(&world.there);
        writer.join().unwrap();
        // Written over what had come before, or beside it.
        eventually("what was written here", || {
            let heads = world.here.heads(&name).unwrap();
            lattice::stores::Merge::all(&heads).iter().any(|head| head.author == world.here.id())
        });
        eventually("the same in the file as in the store", || {
            Some(fs::read(world.key(&name)).unwrap()) == world.here.get(&name)
        });
    }
}

#[test]
fn with_inotify_off_nobody_is_told() {
    let world = World::new();
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mut sources = world.sources();
    sources.drafts = world.dir.path().join("others drafts");
    let mounted = mount(&other, sources, Options { inotify: false, ..Options::default() }).unwrap();
    let mut on = Watcher::new(&[&world.key("")]);
    let mut off = Watcher::new(&[&other.join("stores/home/keys")]);
    world.there.put("f", b"x");
    world.here.pull(&world.there);
    on.until(CLOSED, "f");
    fs::write(other.join("stores/home/keys/last"), b"x").unwrap();
    let told = off.until(CLOSED, "last");
    assert_eq!(Watcher::of(&told, "f"), [], "{told:?}");
    mounted.unmount().unwrap();
}

#[test]
fn unmounting_does_not_wait_for_what_is_still_to_be_told() {
    let mut world = World::new();
    let _watcher = Watcher::new(&[&world.key("")]);
    for number in 0..300 {
        world.there.put(&format!("f{number}"), b"x");
    }
    world.here.pull(&world.there);
    world.unmount();
    assert_eq!(fs::read_dir(&world.at).unwrap().count(), 0);
}

#[test]
fn while_there_is_nothing_to_tell_the_mount_is_not_in_use() {
    let world = World::new();
    {
        let mut watcher = Watcher::new(&[&world.key("")]);
        world.there.put("f", b"x");
        world.here.pull(&world.there);
        watcher.until(CLOSED, "f");
    }
    eventually("an unmount that is not lazy", || {
        Command::new("umount").arg(&world.at).stderr(Stdio::null()).status().unwrap().success()
    });
}

/// A program that prints lines.
struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn until(&self, what: &str, is: impl Fn(&str) -> bool) {
        let start = clock::monotonic();
        while clock::monotonic() - start < Duration::from_secs(20) {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if is(&line) => return,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        panic!("waited in vain for {what}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits until a process watches so many files.
fn watching(process: u32, number: usize) {
    eventually("the watches", || {
        let infos = fs::read_dir(format!("/proc/{process}/fdinfo")).into_iter().flatten().flatten();
        let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
        texts.map(|text| text.lines().filter(|line| line.starts_with("inotify wd:")).count()).sum::<usize>() >= number
    });
}

#[test]
fn inotifywait_says_what_happens_elsewhere_in_a_whole_tree() {
    let world = World::new();
    world.sh("mkdir -p a/b; echo x > a/b/f");
    world.there.pull(&world.here);
    let mut command = Command::new("inotifywait");
    command.args(["-m", "-r", "--format", "%e %f", "."]).current_dir(world.key(""));
    let program = Program::start(command);
    watching(program.child.id(), 3);
    world.there.put("a/b/f", b"other");
    world.there.put("a/b/g", b"new");
    world.here.pull(&world.there);
    program.until("the change", |line| line == "CLOSE_WRITE,CLOSE f");
    program.until("the new file", |line| line == "CREATE g");
    world.there.delete("a/b/f");
    world.here.pull(&world.there);
    program.until("the removal", |line| line == "DELETE f");
}

#[test]
fn entr_runs_its_command_on_a_change_from_elsewhere() {
    let world = World::new();
    world.sh("echo one > f");
    world.there.pull(&world.here);
    let mut command = Command::new("entr");
    command.args(["-n", "-p", "cat", "f"]).current_dir(world.key(""));
    let mut program = Program::start(command);
    program.child.stdin.take().unwrap().write_all(b"f\n").unwrap();
    watching(program.child.id(), 1);
    // It takes no notice of what happens in its first moments.
    let mut round = 0;
    eventually("its command", || {
        round += 1;
        world.there.put("f", format!("after {round}\n").as_bytes());
        world.here.pull(&world.there);
        program.lines.recv_timeout(Duration::from_secs(1)).is_ok_and(|line| line.starts_with("after "))
    });
}

#[test]
fn tail_follows_what_is_appended_elsewhere() {
    let world = World::new();
    world.sh("echo one > log");
    world.there.pull(&world.here);
    for follow in ["-f", "-F"] {
        let mut command = Command::new("tail");
        command.args(["-n", "+1", follow, "log"]).current_dir(world.key(""));
        let program = Program::start(command);
        program.until("what is there", |line| line == "one");
        let mut now = world.there.get("log").unwrap();
        now.extend_from_slice(format!("after {follow}\n").as_bytes());
        world.there.put("log", &now);
        world.here.pull(&world.there);
        program.until("what is appended", |line| line == format!("after {follow}"));
    }
}

#[test]
fn a_message_from_elsewhere_fires_for_who_watches_the_room() {
    let world = World::new();
    world.sh("echo hello > /dev/null; echo hello >> $MESH/chat/general");
    world.there.pull(&world.here);
    let mut watcher = Watcher::new(&[&world.at.join("chat"), &world.at.join("chat/general")]);
    let chat = world.there.registry.chat().unwrap();
    let post = lattice::stores::chat::Op::Post { room: "general".into(), text: "hi there".into() };
    chat.submit(&[post], Origin::Local).unwrap();
    world.here.pull(&world.there);
    watcher.until(CLOSED, "general");
    assert!(fs::read_to_string(world.at.join("chat/general")).unwrap().contains("hi there"));
}

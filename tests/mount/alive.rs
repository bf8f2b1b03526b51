//! What a store tells of itself: how it is, what came, what changes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lattice::clock;
use lattice::peers::Standing;
use lattice::replication::log::Origin;
use lattice::stores::root::Op as RootOp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, eventually};

fn inside(world: &World, name: &str) -> PathBuf {
    world.at.join("stores/home").join(name)
}

/// The lines of something that is read until its end.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn next(lines: &Receiver<String>) -> String {
    lines.recv_timeout(Duration::from_secs(20)).expect("a line")
}

/// A program that reads a file of the mount; ended when dropped.
struct Program(Child, Receiver<String>);

impl Program {
    fn start(name: &str, args: &[&str], file: &PathBuf) -> Self {
        let mut command = Command::new(name);
        let mut child = command.args(args).arg(file).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self(child, lines)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// Waits until it waits for what it reads from the mount.
    fn waits(&self) {
        let path = format!("/proc/{}/stack", self.0.id());
        eventually("a program that waits", || {
            fs::read_to_string(&path)
                .is_ok_and(|stack| ["request_wait_answer", "vfs_read"].iter().all(|at| stack.contains(at)))
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_a_store_tells_of_itself_is_reached_by_name_and_not_listed() {
    let world = World::new();
    assert_eq!(world.sh("ls -A $MESH/stores/home"), "keys\n");
    assert_eq!(world.sh("cd $MESH/stores/home; readlink .heads; stat -c %F .status .log .watch"), {
        let empty = "regular empty file\n";
        format!("../../.heads/home\nregular file\n{empty}{empty}")
    });
    assert!(!world.try_sh("echo x > $MESH/stores/home/.log").status.success());
    assert_eq!(world.sh("grep -r x $MESH/stores/home || echo nothing"), "nothing\n");
}

#[test]
fn the_status_counts_what_is_there_and_says_how_far_each_member_is() {
    let world = World::new();
    world.sh("echo x > a; mkdir d; echo y > d/b; rm a");
    world.settled();
    let status = || fs::read_to_string(inside(&world, ".status")).unwrap();
    let number = |name: &str| -> u64 {
        let status = status();
        let line = status.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name}: {status}")).split(' ').nth(1).unwrap().parse().unwrap()
    };
    assert_eq!((number("entries"), number("keys"), number("conflicts")), (3, 2, 0));
    assert!(number("bytes") > 0);
    assert!(status().contains("peer there not compared since the start\n"), "{}", status());
    let there = world.there.id();
    let stand = |standing| world.standings.lock().unwrap().insert(there, standing);
    stand(Standing { in_step: false, agreed: Some(1), ahead: 2 });
    assert!(status().contains("peer there may lack 2 entries, has 2 entries more\n"), "{}", status());
    assert_eq!((number("peers_behind"), number("peers_in_step"), number("missing_entries")), (1, 0, 2));
    stand(Standing { in_step: true, agreed: Some(3), ahead: 0 });
    assert!(status().contains("peer there in step\n"), "{}", status());
    assert_eq!((number("peers_behind"), number("peers_in_step")), (0, 1));
    world.there.pull(&world.here);
    world.there.put("d/b", b"theirs");
    fs::write(world.key("d/b"), "mine").unwrap();
    world.here.pull(&world.there);
    assert_eq!(number("conflicts"), 1);
    assert_eq!(fs::metadata(inside(&world, ".status")).unwrap().len(), status().len() as u64);
}

#[test]
fn the_log_has_a_line_for_each_entry_and_any_part_of_it_can_be_read() {
    let world = World::new();
    for number in 0..300 {
        world.here.put(&format!("f{number}"), b"x");
    }
    world.sh("mkdir d; echo y > d/g; mv d e; rm f0");
    let path = inside(&world, ".log");
    let whole = fs::read(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), whole.len() as u64);
    let text = String::from_utf8(whole.clone()).unwrap();
    assert_eq!(text.lines().count() as u64, world.here.entries());
    assert!(text.lines().all(|line| line.contains(" here ")), "{text}");
    assert!(text.lines().next().unwrap().contains("put f0 (1 byte)"), "{text}");
    assert!(text.lines().last().unwrap().contains("delete f0"), "{text}");
    let hash = text.lines().last().unwrap().split_whitespace().nth(2).unwrap();
    assert!(fs::read_dir(inside(&world, &format!(".at/{hash}"))).unwrap().count() > 0, "the hash names the entry");
    let file = File::open(&path).unwrap();
    for (at, size) in [(0, 1), (1, 127), (127, 2), (128, 128), (1_000, 3_333), (whole.len() - 5, 100), (whole.len(), 9)]
    {
        let mut bytes = vec![0; size];
        let got = file.read_at(&mut bytes, at as u64).unwrap();
        assert!(bytes[..got] == whole[at..(at + size).min(whole.len())], "{size} bytes from {at}");
    }
    assert_eq!(world.sh("tail -n 1 $MESH/stores/home/.log"), text.lines().last().unwrap().to_owned() + "\n");
    // What comes late stands last: who follows the end misses nothing.
    world.there.pull(&world.here);
    world.there.put("a\u{1b}[2J", b"theirs");
    let mut later = File::open(&path).unwrap();
    later.read_to_end(&mut Vec::new()).unwrap();
    world.here.put("mine", b"x");
    world.here.pull(&world.there);
    let mut news = String::new();
    later.read_to_string(&mut news).unwrap();
    let told: Vec<_> = news.lines().map(|line| line.contains(" there ")).collect();
    assert_eq!(told, [false, true], "{news}");
    assert!(!news.contains('\u{1b}'), "{news:?}");
}

#[test]
fn tail_follows_a_log_across_entries_from_here_and_from_elsewhere() {
    let world = World::new();
    world.sh("echo x > first");
    world.there.pull(&world.here);
    let tail = Program::start("tail", &["-n", "+1", "-f"], &inside(&world, ".log"));
    assert!(next(&tail.1).contains("put first "));
    world.sh("echo x > second");
    assert!(next(&tail.1).contains("put second "));
    world.there.put("third", b"x");
    world.here.pull(&world.there);
    assert!(next(&tail.1).contains("put third "));
}

#[test]
fn a_watch_yields_a_line_for_each_change_whoever_made_it_to_each_of_its_readers() {
    let world = World::new();
    world.sh("echo x > before");
    let watched: Vec<_> = (0..3).map(|_| lines(File::open(inside(&world, ".watch")).unwrap())).collect();
    world.sh("mkdir d; echo x > d/f; chmod 600 d/f");
    world.there.pull(&world.here);
    world.there.put("d/f", b"other");
    world.there.delete("before");
    world.here.pull(&world.there);
    let (mine, theirs) = ("here", "there");
    for reader in &watched {
        for (what, path, author) in [
            ("created", "d", mine),
            ("created", "d/f", mine),
            ("attributes", "d/f", mine),
            ("modified", "d/f", theirs),
            ("deleted", "before", theirs),
        ] {
            let line = next(reader);
            let change: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!((change["what"].as_str(), change["path"].as_str()), (Some(what), Some(path)), "{line}");
            assert_eq!(change["author_name"], author, "{line}");
            assert_eq!(change["hash"].as_str().unwrap().len(), 64, "{line}");
        }
    }
}

#[test]
fn readers_of_a_watch_hold_up_nobody_and_end_by_a_signal() {
    let world = World::new();
    let path = inside(&world, ".watch");
    // More of them than threads answer the kernel.
    let cats: Vec<_> = (0..12).map(|_| Program::start("cat", &[], &path)).collect();
    cats.iter().for_each(Program::waits);
    world.sh("echo x > f; cat f; ls -lR $MESH/stores/home/keys; rm f");
    for (mut cat, signal) in
        cats.into_iter().zip([Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL].into_iter().cycle())
    {
        for path in ["created", "deleted"] {
            assert!(next(&cat.1).contains(path));
        }
        cat.waits();
        cat.signal(signal);
        let mut ended = None;
        eventually("its end", || {
            ended = cat.0.try_wait().unwrap();
            ended.is_some()
        });
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(ended.unwrap().signal(), Some(signal as i32));
    }
}

#[test]
fn a_watch_can_be_polled_and_read_without_waiting() {
    let world = World::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(inside(&world, ".watch")).unwrap();
    let ready = |patience: u16| {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(patience)).unwrap() == 1
    };
    let mut bytes = [0; 4096];
    assert!(!ready(0));
    assert_eq!((&file).read(&mut bytes).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    let writes = std::thread::spawn({
        let path = world.key("f");
        move || {
            std::thread::park_timeout(Duration::from_millis(50));
            fs::write(path, b"x").unwrap();
        }
    });
    assert!(ready(20_000), "woken by the change");
    writes.join().unwrap();
    let got = (&file).read(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..got]).contains("\"path\":\"f\""));
    assert!(!ready(0));
    // Other files are always ready.
    let other = File::open(world.key("f")).unwrap();
    let mut fds = [PollFd::new(other.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 1);
}

#[test]
fn a_watch_ends_when_its_store_is_deleted_and_when_the_mount_goes() {
    let mut world = World::new();
    let create = RootOp::CreateStore { name: "work".into(), kind: "kv".into() };
    world.here.registry.root().submit(&[create], Origin::Local).unwrap();
    world.here.registry.refresh();
    let path = world.at.join("stores/work/.watch");
    eventually("the new store", || path.exists());
    let mut work = Program::start("cat", &[], &path);
    let mut home = Program::start("cat", &[], &inside(&world, ".watch"));
    work.waits();
    home.waits();
    let id = world.here.registry.kv("work").unwrap().log().store();
    world.here.registry.root().submit(&[RootOp::DeleteStore { id }], Origin::Local).unwrap();
    world.here.registry.refresh();
    eventually("the end of the deleted store's", || work.0.try_wait().unwrap().is_some_and(|ended| ended.success()));
    assert!(home.0.try_wait().unwrap().is_none());
    let start = clock::monotonic();
    world.unmount();
    assert!(clock::monotonic() - start < Duration::from_secs(10));
    eventually("the end of the other", || home.0.try_wait().unwrap().is_some_and(|ended| ended.success()));
}

#[test]
fn the_inode_of_a_log_is_told_to_be_as_large_as_its_entries_are_many() {
    let world = World::new();
    let path = inside(&world, ".log");
    for count in 1..4 {
        world.here.put(&format!("f{count}"), b"x");
        assert_eq!(fs::metadata(&path).unwrap().size(), count * 128);
    }
}

#[test]
fn why_tells_what_failed_on_the_mount_and_not_what_fails_all_the_time() {
    let world = World::new();
    let path = world.at.join(".why");
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    world.sh("echo x > f; mkdir d; touch d/g; echo hello >> $MESH/chat/room");
    let tail = Program::start("tail", &["-n", "+1", "-f"], &path);
    for script in ["cat none", "mkdir d", "rmdir d", "mkfifo pipe", "echo x > $MESH/stores/home/.at/now/f"] {
        assert!(!world.try_sh(script).status.success(), "{script}");
    }
    assert!(!world.try_sh("echo again > $MESH/chat/room; echo x > $MESH/README").status.success());
    for script in ["mkdir $MESH/stores/new", "ln f linked"] {
        assert!(!world.try_sh(script).status.success(), "{script}");
    }
    // The second is one that programs try by habit.
    for name in ["user.mine", "security.label"] {
        assert!(xattr::set(world.key("f"), name, b"x").is_err(), "{name}");
    }
    for script in
        ["rm $MESH/chat/room", "echo '/reply ffff hi' >> $MESH/chat/room", "echo '/nick bob' >> $MESH/chat/room"]
    {
        assert!(!world.try_sh(script).status.success(), "{script}");
    }
    let told = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = told.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    let expected = [
        "mknod stores/home/keys/pipe EPERM: devices, pipes and sockets can't be kept",
        "open stores/home/.at/now/f EROFS: what was can only be read",
        "open chat/room EPERM: a room can only be appended to (>>)",
        "mkdir stores/new EPERM: only below stores/<name>/keys can names be made and removed; `lattice store` makes and deletes stores",
        "link stores/home/keys/linked EPERM: there are no hard links here: copy the file, or make a symbolic link",
        "setxattr stores/home/keys/f EOPNOTSUPP: no attributes are kept but the store's own",
        "unlink chat/room EPERM: the first line appended opens a room, and nothing removes or renames it: what was said stays. /redact ID takes back a message",
        "write chat/room ENOENT: there is no message 'ffff' here",
        "write chat/room EINVAL: there is no such command: /reply ID text, /react ID emoji, /edit ID text, /redact ID; to post a line that begins so, double its slash",
    ];
    assert_eq!(lines, expected);
    assert_eq!(fs::metadata(&path).unwrap().len(), told.len() as u64);
    for line in expected {
        assert!(next(&tail.1).ends_with(line), "{line}");
    }
    // Whatever was written by other programs is shown, not obeyed.
    assert!(!world.try_sh("mkfifo $'p\\e[2J'").status.success());
    assert!(next(&tail.1).contains("p\\u{1b}[2J EPERM"));
}

#[test]
fn large_values_that_are_here_are_files_named_by_their_hashes() {
    let world = World::new();
    let value = vec![7; 100_000];
    fs::write(world.key("large"), &value).unwrap();
    world.sh("echo small > small");
    let hash = blake3::hash(&value).to_string();
    assert_eq!(world.sh("ls $MESH/blobs"), format!("{hash}\n"));
    let path = world.at.join("blobs").join(&hash);
    assert!(fs::read(&path).unwrap() == value);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (100_000, 0o444));
    assert!(
        !world
            .try_sh(&format!("echo x > $MESH/blobs/{hash} || rm $MESH/blobs/{hash} || echo x > $MESH/blobs/x"))
            .status
            .success()
    );
    // What is only elsewhere is not listed, and looking does not fetch it.
    world.there.pull(&world.here);
    world.there.put("theirs", &[8; 50_000]);
    let before = fs::read_dir(&world.here.blobs).unwrap().count();
    let other = blake3::hash(&[8; 50_000]).to_string();
    assert_eq!(fs::metadata(world.at.join("blobs").join(&other)).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert!(fs::metadata(world.at.join("blobs").join(hash.to_uppercase())).is_err());
    assert_eq!(fs::read_dir(&world.here.blobs).unwrap().count(), before);
    world.here.pull(&world.there);
    assert_eq!(world.sh("ls $MESH/blobs | wc -l"), "2\n");
}

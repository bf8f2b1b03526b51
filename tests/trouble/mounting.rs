//! Starting, mounting, stopping.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Node, Room, eventually, run};
use crate::{NOT_FOUND, NOT_RUNNING, REFUSED, founder, is_mounted, joined, json, no_start, refused, warnings};

fn mounts(node: &Node<'_>) -> Vec<String> {
    let status = json(node, &["status"]);
    status["mounts"].as_array().unwrap().iter().map(|mount| mount.as_str().unwrap().to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_can_not_be_mounted_on_is_named_with_what_to_do_and_the_running_node_goes_on() {
    let node = founder();
    let other = founder();
    let beside = |name: &str| node.mount().with_file_name(name);
    fs::write(beside("file"), "").unwrap();
    fs::create_dir(beside("full")).unwrap();
    fs::write(beside("full").join("inside"), "inside").unwrap();
    let cases = [
        (beside("missing"), "does not exist", "mkdir -p"),
        (beside("file"), "is not a directory", "choose an empty directory"),
        (beside("file").join("below"), "is not a directory", "choose an empty directory"),
        (beside("full"), "is not empty", "choose an empty directory"),
        (other.mount(), "another node is mounted on", "choose another directory"),
    ];
    for (at, sentence, advice) in cases {
        let said = refused(&node, &["up", text(&at)], REFUSED);
        assert!(said.error.contains(text(&at)) && said.error.contains(sentence), "{}", said.error);
        assert!(said.all().contains(advice), "{}", said.all());
        assert_eq!(mounts(&node), [text(&node.mount())]);
    }
    assert_eq!(fs::read_to_string(beside("full").join("inside")).unwrap(), "inside");
    assert!(other.key("").exists());
}

#[test]
fn without_the_device_the_sentence_names_it_and_the_node_does_not_stay() {
    let room = Room::new(&Room::devices(None));
    let node = Node::within(&room);
    let said = no_start(&node, REFUSED);
    assert!(said.error.contains("/dev/fuse is missing") && said.all().contains("modprobe fuse"), "{}", said.all());
    refused(&node, &["status"], NOT_RUNNING);
    let doctor = node.attempt(&["doctor"]);
    let says = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{says}");
    assert!(says.contains("BAD   /dev/fuse") && says.contains("modprobe fuse"), "{says}");
    node.lattice(&["up", "--no-mount", "--listen", "127.0.0.1:0"]);
    node.lattice(&["mesh", "init"]);
    node.lattice(&["kv", "put", "key", "value"]);
    assert_eq!(node.lattice(&["kv", "get", "key"]), "value");
}

#[test]
fn a_kept_port_that_is_taken_is_named_and_still_kept() {
    let node = founder();
    node.lattice(&["down"]);
    // Below the ports that the system gives out by itself: no other test takes it meanwhile.
    let port = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    fs::write(node.data().join("port"), format!("{port}\n")).unwrap();
    let taker = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let said = no_start(&node, REFUSED);
    assert!(said.error.contains(&port.to_string()) && said.error.contains("in use"), "{}", said.error);
    assert!(said.all().contains("--listen"), "{}", said.all());
    let doctor = node.command(&["doctor"]).env("LATTICE_LISTEN", "127.0.0.1:0").output().unwrap();
    let says = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(says.contains(&format!("BAD   port            127.0.0.1:{port} (UDP) can't be had")), "{says}");
    refused(&node, &["status"], NOT_RUNNING);
    drop(taker);
    node.up();
    assert_eq!(json(&node, &["status"])["listening"][0], format!("127.0.0.1:{port}"));
}

#[test]
fn up_and_down_may_be_said_twice_and_up_elsewhere_adds_a_mount() {
    let node = founder();
    let pid = node.pid();
    node.up();
    assert_eq!(mounts(&node), [text(&node.mount())]);
    let second = node.mount().with_file_name("second");
    let link = node.mount().with_file_name("link");
    fs::create_dir(&second).unwrap();
    node.lattice(&["up", text(&second)]);
    assert_eq!(mounts(&node), [text(&node.mount()), text(&second)]);
    assert_eq!(node.pid(), pid);
    fs::write(node.key("key"), "value").unwrap();
    eventually("both mounts show the same", || {
        fs::read_to_string(second.join("stores/home/keys/key")).is_ok_and(|value| value == "value")
    });

    symlink(&second, &link).unwrap();
    node.lattice(&["up", text(&link)]);
    assert_eq!(mounts(&node).len(), 2, "a mount has been made twice");
    node.lattice(&["down", text(&link)]);
    assert!(!is_mounted(&second));
    let said = refused(&node, &["down", text(&second)], NOT_FOUND);
    assert!(said.error.contains("is not mounted by this node") && said.hint.contains(" status`"), "{}", said.all());
    assert_eq!(mounts(&node), [text(&node.mount())]);

    assert_eq!(json(&node, &["down"])["stopped"], true);
    assert_eq!(json(&node, &["down"])["stopped"], false);
    assert!(!is_mounted(&node.mount()));
    refused(&node, &["down", text(&second)], NOT_RUNNING);
}

#[test]
fn what_is_done_through_one_mount_of_a_node_is_seen_through_another_whatever_the_kernel_keeps() {
    let node = founder();
    let second = node.mount().with_file_name("second");
    fs::create_dir(&second).unwrap();
    node.lattice(&["up", text(&second)]);
    let (here, there) = (node.keys(), second.join("stores/home/keys"));
    for (here, there) in [(&here, &there), (&there, &here)] {
        assert!(!there.join("key").exists(), "asked for, so that the kernel keeps that it is missing");
        fs::write(here.join("key"), "first").unwrap();
        eventually("a new file", || fs::read_to_string(there.join("key")).is_ok_and(|value| value == "first"));
        assert_eq!(fs::metadata(there.join("key")).unwrap().len(), 5);
        fs::write(here.join("key"), "the second value").unwrap();
        eventually("a new value", || {
            fs::read_to_string(there.join("key")).is_ok_and(|value| value == "the second value")
        });
        eventually("its size", || fs::metadata(there.join("key")).unwrap().len() == 16);
        fs::rename(here.join("key"), here.join("other")).unwrap();
        eventually("another name", || there.join("other").exists() && !there.join("key").exists());
        fs::remove_file(here.join("other")).unwrap();
        eventually("that it is gone", || {
            fs::read_dir(there).unwrap().next().is_none() && !there.join("other").exists()
        });
    }
    node.lattice(&["down", text(&second)]);
}

#[test]
fn several_that_say_up_at_once_all_get_the_one_node() {
    let node = Node::here();
    let mount = node.mount();
    let args = ["up", text(&mount), "--listen", "127.0.0.1:0", "--json"];
    for _ in 0..3 {
        let spawn = |_| node.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let ups: Vec<_> = (0..4).map(spawn).collect();
        let mut pids = std::collections::BTreeSet::new();
        for up in ups {
            let output = up.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            pids.insert(said["pid"].as_i64().unwrap());
        }
        assert_eq!(pids.len(), 1);
        node.lattice(&["down"]);
    }
}

#[test]
fn what_someone_else_unmounted_is_not_called_mounted_and_up_mounts_it_again() {
    let node = founder();
    fs::write(node.key("key"), "value").unwrap();
    run("umount", &[text(&node.mount())]);
    eventually("the node knows", || mounts(&node).is_empty());
    node.up();
    assert_eq!(fs::read_to_string(node.key("key")).unwrap(), "value");
    assert_eq!(mounts(&node), [text(&node.mount())]);
}

#[test]
fn a_node_stops_while_someone_sits_in_its_mount() {
    let node = founder();
    let mut sitter = Command::new("sh");
    sitter.args(["-c", "echo in; exec cat"]).current_dir(node.keys());
    let mut sitter = sitter.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(sitter.stdout.as_mut().unwrap()), &mut line).unwrap();
    node.lattice(&["down"]);
    assert!(!is_mounted(&node.mount()));
    node.up();
    fs::write(node.key("key"), "value").unwrap();
    drop(sitter.stdin.take());
    sitter.wait().unwrap();
    assert!(warnings(&node).is_empty());
}

#[test]
fn after_a_kill_up_clears_the_dead_mount_and_shows_all_that_was_synced() {
    let node = founder();
    let file = fs::File::create(node.key("synced")).unwrap();
    std::io::Write::write_all(&mut &file, b"value").unwrap();
    file.sync_all().unwrap();
    drop(file);
    node.kill();
    assert!(is_mounted(&node.mount()));
    eventually("nothing of it answers", || node.attempt(&["status"]).status.code() == Some(NOT_RUNNING));
    node.up();
    assert_eq!(fs::read_to_string(node.key("synced")).unwrap(), "value");

    node.kill();
    let other = Node::here();
    other.lattice(&["up", text(&node.mount()), "--listen", "127.0.0.1:0"]);
    assert!(node.mount().join("README").exists(), "another node clears it as well");
    other.lattice(&["down"]);
    assert!(!is_mounted(&node.mount()));
}

#[test]
fn a_signal_unmounts_publishes_what_was_written_and_exits_with_0() {
    let node = founder();
    node.lattice(&["down"]);
    let mount = node.mount();
    let args = ["up", text(&mount), "--listen", "127.0.0.1:0", "--foreground"];
    let mut daemon = node.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("it is mounted", || node.keys().exists());
    for n in 0..50 {
        fs::write(node.key(&format!("file{n}")), "value").unwrap();
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(!is_mounted(&node.mount()));
    node.up();
    for n in 0..50 {
        assert_eq!(fs::read_to_string(node.key(&format!("file{n}"))).unwrap(), "value");
    }
}

#[test]
fn ordinary_work_leaves_no_warning_in_the_daemons_log() {
    let first = founder();
    first.lattice(&["store", "create", "photos"]);
    let second = joined(&first);
    fs::write(second.key("ready"), "").unwrap();
    eventually("they are linked", || first.key("ready").exists());
    let file = first.mount().with_file_name("file");
    fs::write(&file, vec![7; 100_000]).unwrap();
    for n in 0..50 {
        let copy = first.key(&format!("copy{n}"));
        run("cp", &["-a", text(&file), text(&copy)]);
        if n % 2 == 0 {
            fs::remove_file(&copy).unwrap();
        }
    }
    for how in ["--reflink=auto", "--sparse=always"] {
        run("cp", &[how, text(&first.key("copy1")), text(&first.key("again"))]);
    }
    let error = fs::hard_link(first.key("copy1"), first.key("linked")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM));
    eventually("the second has all of it", || second.key("again").exists());
    for node in [&first, &second] {
        let log = fs::read_to_string(node.data().join("latticed.log")).unwrap();
        let bad: Vec<_> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
        assert!(bad.is_empty(), "{bad:#?}");
    }
}

//! The command, as people and scripts meet it: what it prints, its exit codes, and what it says when something is wrong.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

#[path = "cli/batch.rs"]
mod batch;
#[path = "cli/conflicts.rs"]
mod conflicts;
mod harness;
#[path = "cli/past.rs"]
mod past;
#[path = "cli/proof.rs"]
mod proof;
#[path = "cli/tx.rs"]
mod tx;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use harness::{Node, eventually};
use serde_json::Value;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_RUNNING: i32 = 3;
const NOT_FOUND: i32 = 4;
const REFUSED: i32 = 5;

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that must fail so; gives what it said.
fn refused(node: &Node<'_>, args: &[&str], code: i32) -> String {
    let output = node.attempt(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "lattice {args:?}: {}{said}", out(&output));
    assert!(out(&output).is_empty(), "lattice {args:?} printed a result: {}", out(&output));
    said
}

fn json(node: &Node<'_>, args: &[&str]) -> Value {
    let text = node.lattice(&[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("lattice {args:?} --json: {error}: {text}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn with_mesh() -> Node<'static> {
    let node = Node::here();
    node.up();
    node.lattice(&["mesh", "init", "ours"]);
    node
}

#[test]
fn without_a_node_every_command_says_so_and_how_to_start_one() {
    let node = Node::here();
    let commands: [&[&str]; 23] = [
        &["status"],
        &["peers"],
        &["mesh", "init"],
        &["mesh", "invite"],
        &["mesh", "join", "token"],
        &["mesh", "leave"],
        &["mesh", "status"],
        &["store", "list"],
        &["store", "create", "photos"],
        &["kv", "get", "key"],
        &["kv", "list"],
        &["conflicts"],
        &["conflicts", "show", "key"],
        &["conflicts", "pick", "mine"],
        &["conflicts", "merge"],
        &["log"],
        &["show", "3fa9"],
        &["diff", "key"],
        &["blame", "key"],
        &["restore", "key", "--at", "1h-ago"],
        &["undo", "3fa9"],
        &["prove", "key"],
        &["chat", "ls"],
    ];
    for command in commands {
        let said = refused(&node, command, NOT_RUNNING);
        assert!(said.starts_with("error: no node runs in "), "{command:?}: {said}");
        assert!(said.contains("hint: start it with `lattice "), "{command:?}: {said}");
        let said = refused(&node, &[command, &["--json"]].concat(), NOT_RUNNING);
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["kind"], "not-running", "{command:?}");
    }
    assert!(node.lattice(&["down"]).starts_with("no node runs in "), "stopping what does not run is no failure");
    assert!(!node.data().exists(), "asking makes no data directory");
}

#[test]
fn what_is_not_understood_exits_with_2_and_help_with_0() {
    let node = Node::here();
    refused(&node, &["frobnicate"], USAGE);
    refused(&node, &["mesh", "invite", "--expires", "soon"], USAGE);
    assert!(node.lattice(&["--help"]).contains("Exit codes:"));
    assert!(node.lattice(&["kv", "put", "--help"]).contains("Examples:"));
    // The data directory comes from the environment: it is not asked for.
    let said = refused(&node, &["kv", "get"], USAGE);
    assert!(said.contains("Usage: lattice kv get") && !said.contains("--data"), "{said}");
}

#[test]
fn a_setting_that_can_not_be_read_is_named_with_file_line_and_fix_and_nothing_starts() {
    let node = Node::here();
    std::fs::create_dir(node.data()).unwrap();
    std::fs::write(node.data().join("config.toml"), "name = \"a\"\nlisten = \"nowhere\"\n").unwrap();
    for command in [vec!["up", "--no-mount"], vec!["config"]] {
        let said = refused(&node, &command, USAGE);
        assert!(said.contains("config.toml:2: listen = 'nowhere': an address and a port are meant"), "{said}");
        assert!(said.contains("hint: correct line 2 of "), "{said}");
    }
    std::fs::write(node.data().join("config.toml"), [b'n', 0xff, 0xfe]).unwrap();
    let said = refused(&node, &["up", "--no-mount"], USAGE);
    assert!(said.contains("config.toml"), "{said}");
    refused(&node, &["status"], NOT_RUNNING);
}

#[test]
fn a_mount_that_can_not_be_is_refused_and_the_node_does_not_stay() {
    let node = Node::here();
    let missing = node.mount().join("missing");
    let said = refused(&node, &["up", missing.to_str().unwrap(), "--listen", "127.0.0.1:0"], REFUSED);
    assert!(said.contains("does not exist") && said.contains("mkdir -p"), "{said}");
    assert!(!node.data().exists(), "it was refused and leaves a data directory behind");
    refused(&node, &["status"], NOT_RUNNING);
    std::fs::write(node.mount().join("file"), "in the way").unwrap();
    let said = refused(&node, &["up", node.mount().to_str().unwrap(), "--listen", "127.0.0.1:0"], REFUSED);
    assert!(said.contains("is not empty"), "{said}");
    assert_eq!(std::fs::read_to_string(node.mount().join("file")).unwrap(), "in the way");
}

#[test]
fn a_port_that_another_program_has_is_named() {
    let node = Node::here();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = node.attempt(&["up", "--no-mount", "--listen", &address]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(FAILED | REFUSED)), "{said}");
    assert!(said.contains(&taken.local_addr().unwrap().port().to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn a_setting_that_keeps_the_node_off_the_network_is_named_where_it_was_set() {
    let node = Node::here();
    std::fs::create_dir(node.data()).unwrap();
    std::fs::write(node.data().join("config.toml"), "name = \"a\"\nlisten = \"198.51.100.1:0\"\n").unwrap();
    let said = refused(&node, &["up", "--no-mount"], REFUSED);
    assert!(said.contains("no address 198.51.100.1") && said.contains("hint: correct line 2 of "), "{said}");
    assert!(!said.contains("--listen"), "{said}");
    let said = refused(&node, &["up", "--no-mount", "--listen", "198.51.100.2:0"], REFUSED);
    assert!(said.contains("hint: give another --listen"), "{said}");
    let output = node.command(&["up", "--no-mount"]).env("LATTICE_LISTEN", "198.51.100.3:0").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hint: correct or unset LATTICE_LISTEN"), "{said}");
}

#[test]
fn one_directory_holds_one_node_and_a_second_up_finds_it() {
    let node = Node::here();
    node.up();
    let pid = node.pid();
    node.up();
    assert_eq!(node.pid(), pid, "the second up started another daemon");
    let daemon = Path::new(env!("CARGO_BIN_EXE_lattice")).with_file_name("latticed");
    let second = std::process::Command::new(daemon).arg("--data").arg(node.data()).output().unwrap();
    assert_eq!(second.status.code(), Some(REFUSED));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(&format!("is in use by process {pid}")), "{said}");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.data()), 0o700);
    assert_eq!(mode(&node.data().join("control.sock")), 0o600);
    assert_eq!(mode(&node.data().join("identity.key")), 0o600);
}

#[test]
fn a_port_is_chosen_once_and_kept_and_so_is_the_identity() {
    let node = Node::here();
    node.up();
    let before = json(&node, &["status"]);
    node.lattice(&["down"]);
    node.up();
    let after = json(&node, &["status"]);
    assert_eq!(before["listening"], after["listening"]);
    assert_eq!(before["node"], after["node"]);
}

#[test]
fn what_up_is_told_is_kept_and_a_plain_up_uses_it_again() {
    let node = Node::here();
    let mount = node.mount();
    node.lattice(&["up", mount.to_str().unwrap(), "--listen", "127.0.0.1:0", "--name", "nina"]);
    let before = json(&node, &["status"]);
    node.lattice(&["down"]);
    assert_eq!(json(&node, &["up"])["mount"], mount.to_str().unwrap());
    let after = json(&node, &["status"]);
    assert_eq!((&before["listening"], &before["name"]), (&after["listening"], &"nina".into()));
    assert_eq!(before["listening"], after["listening"]);
    assert_eq!((&after["name"], after["mounts"][0].as_str()), (&"nina".into(), mount.to_str()));
    let config = std::fs::read_to_string(node.data().join("config.toml")).unwrap();
    assert_eq!(config, format!("listen = \"127.0.0.1:0\"\nname = \"nina\"\nmount = \"{}\"\n", mount.display()));

    node.lattice(&["down"]);
    node.lattice(&["up", "--no-mount", "--listen", "127.0.0.2:0", "--name", "ida"]);
    node.lattice(&["down"]);
    node.lattice(&["up", "--no-mount"]);
    let changed = json(&node, &["status"]);
    assert!(changed["listening"][0].as_str().unwrap().starts_with("127.0.0.2:"), "{changed}");
    assert_eq!(changed["name"], "ida");
}

#[test]
fn an_address_or_a_name_that_a_running_node_has_not_is_refused_with_what_to_do_and_one_that_it_has_is_not() {
    let node = Node::here();
    let mount = node.mount();
    node.lattice(&["up", "--no-mount", "--listen", "127.0.0.1:0", "--name", "nina"]);
    let listening = json(&node, &["status"])["listening"][0].as_str().unwrap().to_owned();
    node.lattice(&["up", "--no-mount", "--listen", &listening, "--name", "nina"]);
    let said = refused(&node, &["up", mount.to_str().unwrap(), "--listen", "127.0.0.1:1"], REFUSED);
    assert!(said.contains(&format!("listens on {listening}, not on 127.0.0.1:1")), "{said}");
    assert!(said.contains("stop it first: `lattice ") && said.contains(" down`"), "{said}");
    assert!(json(&node, &["status"])["mounts"].as_array().unwrap().is_empty(), "it was mounted all the same");
    let said = refused(&node, &["up", "--no-mount", "--name", "ida"], REFUSED);
    assert!(said.contains("is called 'nina', not 'ida'") && said.contains(" down`"), "{said}");
    let config = std::fs::read_to_string(node.data().join("config.toml")).unwrap();
    assert!(!config.contains("ida") && !config.contains("127.0.0.1:1\""), "{config}");
    node.lattice(&["mesh", "init"]);
    let said = refused(&node, &["up", "--no-mount", "--name", "ida"], REFUSED);
    assert!(said.contains("is called 'nina' in the mesh 'mesh'"), "{said}");
    node.lattice(&["down"]);
    let output = node.attempt(&["up", "--no-mount", "--name", "ida"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("note: this node is called 'nina' in the mesh 'mesh'"), "{said}");
}

#[test]
fn an_address_that_can_not_be_had_is_not_kept() {
    let node = Node::here();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(!node.attempt(&["up", "--no-mount", "--listen", &address]).status.success());
    assert!(!node.data().join("config.toml").exists());
}

/// The commands that a text tells to type.
fn hinted(said: &str) -> Vec<String> {
    said.split('`').skip(1).step_by(2).filter(|part| part.starts_with("lattice ")).map(str::to_owned).collect()
}

#[test]
fn a_hinted_command_works_when_it_is_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("it's a node");
    let programs = Path::new(env!("CARGO_BIN_EXE_lattice")).parent().unwrap();
    let sh = |script: &str| {
        std::process::Command::new("sh")
            .args(["-c", script])
            .env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()))
            .env("HOME", dir.path())
            .env_remove("LATTICE_DATA")
            .env_remove("XDG_DATA_HOME")
            .env("LATTICE_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let lattice = format!("lattice --data \"{}\"", data.display());
    let pasted = |command: &str| {
        let said = String::from_utf8_lossy(&sh(&format!("{lattice} {command}")).stderr).into_owned();
        let hints = hinted(&said);
        assert!(!hints.is_empty(), "{command}: {said}");
        for hint in hints.iter().filter(|hint| !hint.contains("TOKEN")) {
            let output = sh(hint);
            assert!(output.status.success(), "{command}: {hint}: {}", String::from_utf8_lossy(&output.stderr));
        }
    };
    pasted("status");
    pasted("peers");
    pasted("kv get none");
    pasted("store status none");
    pasted("chat post lobby hi --reply ffff");
    drop(sh(&format!("{lattice} chat post lobby hi")));
    pasted("chat post lobby hi --reply ffff");
    drop(sh(&format!("{lattice} down")));
    pasted("status");
    drop(sh(&format!("{lattice} down")));
}

#[test]
fn a_value_goes_in_by_argument_file_and_stdin_and_comes_out_as_it_was() {
    let node = with_mesh();
    node.lattice(&["kv", "put", "by/argument", "no newline"]);
    assert_eq!(node.lattice(&["kv", "get", "by/argument"]), "no newline");
    let file = node.mount().with_file_name("large");
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    std::fs::write(&file, &large).unwrap();
    node.lattice(&["kv", "put", "by/file", "--file", file.to_str().unwrap()]);
    assert!(node.attempt(&["kv", "get", "by/file"]).stdout == large, "the content differs");
    assert!(std::fs::read(node.key("by/file")).unwrap() == large, "the mount shows another content");
    let mut put = node.command(&["kv", "put", "by/stdin"]).stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(b"piped\n\xff\n").unwrap();
    assert!(put.wait().unwrap().success());
    assert_eq!(node.attempt(&["kv", "get", "by/stdin"]).stdout, b"piped\n\xff\n");
    assert_eq!(json(&node, &["kv", "get", "by/argument"])["value"], "no newline");
    assert_eq!(json(&node, &["kv", "get", "by/stdin"])["value_base64"], "cGlwZWQK/wo=");
    node.lattice(&["kv", "put", "empty", ""]);
    assert_eq!(node.lattice(&["kv", "get", "empty"]), "");

    assert_eq!(node.lattice(&["kv", "list"]), "by/argument\nby/file\nby/stdin\nempty\n");
    assert_eq!(node.lattice(&["kv", "list", "by/f"]), "by/file\n");
    let listed = lines(&node.lattice(&["kv", "list", "by/file", "--json"]));
    assert_eq!((&listed[0]["path"], &listed[0]["heads"][0]["size"]), (&"by/file".into(), &3_000_000.into()));

    std::fs::set_permissions(node.key("by/argument"), PermissionsExt::from_mode(0o755)).unwrap();
    node.lattice(&["kv", "put", "by/argument", "again"]);
    let listed = lines(&node.lattice(&["kv", "list", "by/argument", "--json"]));
    assert_eq!(listed[0]["heads"][0]["mode"], "0755", "a new value keeps the mode");

    node.lattice(&["kv", "delete", "by/file"]);
    assert!(refused(&node, &["kv", "get", "by/file"], NOT_FOUND).contains("there is no key 'by/file'"));
    refused(&node, &["kv", "delete", "by/file"], NOT_FOUND);
    assert!(refused(&node, &["kv", "get", "by"], REFUSED).contains("is a directory"));
    assert!(refused(&node, &["kv", "put", "empty/below", "x"], REFUSED).contains("nothing can stand below it"));
    refused(&node, &["kv", "put", "a//b", "x"], REFUSED);
    assert!(refused(&node, &["kv", "get", "x", "--store", "none"], NOT_FOUND).contains("there is no store 'none'"));
    refused(&node, &["kv", "get", "x", "--store", "chat"], REFUSED);
}

#[test]
fn a_key_may_be_named_by_its_file_on_the_mount_which_names_the_store_too() {
    let node = with_mesh();
    node.lattice(&["store", "create", "photos"]);
    let photo = node.mount().join("stores/photos/keys/2026/cat");
    let photo = photo.to_str().unwrap();
    node.lattice(&["kv", "put", photo, "purr\n"]);
    assert_eq!(std::fs::read_to_string(photo).unwrap(), "purr\n");
    assert_eq!(node.lattice(&["kv", "get", "2026/cat", "--store", "photos"]), "purr\n");
    assert_eq!(node.lattice(&["kv", "get", photo]), "purr\n");
    let then = json(&node, &["kv", "list", photo])["heads"][0]["hash"].as_str().unwrap().to_owned();
    node.lattice(&["kv", "put", photo, "hiss\n"]);
    let above = format!("{}/", node.mount().join("stores/photos/keys/2026").display());
    assert_eq!(node.lattice(&["kv", "list", &above]), "2026/cat\n");
    for path in [photo, &above] {
        assert_eq!(lines(&node.lattice(&["log", path, "--json"])).len(), 2, "{path}");
        assert!(node.lattice(&["diff", path]).contains("-purr\n+hiss\n"), "{path}");
    }
    assert!(node.lattice(&["blame", photo]).contains("hiss"));
    node.lattice(&["restore", photo, "--at", &then, "--store", "photos"]);
    assert_eq!(std::fs::read_to_string(photo).unwrap(), "purr\n");
    node.lattice(&["kv", "delete", photo]);
    assert!(!Path::new(photo).exists());
    for command in ["show", "list"] {
        refused(&node, &["conflicts", command, photo], NOT_FOUND);
    }

    let outside = refused(&node, &["kv", "get", "/etc/passwd"], USAGE);
    assert!(outside.contains("lies in no mount of this node"), "{outside}");
    let room = node.mount().join("chat/lobby");
    assert!(refused(&node, &["blame", room.to_str().unwrap()], USAGE).contains("is no key's file"));
    let other = refused(&node, &["kv", "get", node.key("a").to_str().unwrap(), "--store", "photos"], USAGE);
    assert!(other.contains("is in the store 'home', not in 'photos'"), "{other}");
}

/// Two members that have both written the key while neither could hear of the other's write; the first node runs.
fn conflicted(key: &str) -> [Node<'static>; 2] {
    let nodes = [with_mesh(), Node::here()];
    nodes[1].up();
    let token = nodes[0].lattice(&["mesh", "invite"]);
    nodes[1].lattice(&["mesh", "join", token.trim(), "--wait"]);
    nodes[0].lattice(&["down"]);
    nodes[1].lattice(&["kv", "put", key, "theirs"]);
    nodes[1].lattice(&["down"]);
    nodes[0].up();
    nodes[0].lattice(&["kv", "put", key, "ours"]);
    nodes[1].up();
    eventually("both know of both", || {
        nodes.iter().all(|node| json(node, &["store", "status", "home"])["conflicts"] == 1)
    });
    nodes
}

#[test]
fn a_key_that_needs_a_person_says_so_when_it_is_read_and_when_it_is_settled() {
    let [node, other] = conflicted("notes/a b");
    let status = node.lattice(&["status"]);
    let line = status.lines().find(|line| line.starts_with("conflicts ")).unwrap_or_else(|| panic!("{status}"));
    assert!(line.contains("1 key was changed in two places at once") && line.ends_with(" conflicts`"), "{line}");
    let get = node.attempt(&["kv", "get", "notes/a b"]);
    assert!(get.status.success());
    assert_eq!(out(&get), "ours");
    let said = String::from_utf8_lossy(&get.stderr).into_owned();
    assert!(said.contains("note: notes/a b has 2 heads"), "{said}");
    assert!(hinted(&said)[0].ends_with("conflicts --store home 'notes/a b'"), "{said}");
    let get = node.attempt(&["kv", "get", "notes/a b", "--json"]);
    assert!(get.stderr.is_empty());
    let heads: Value = serde_json::from_slice(&get.stdout).unwrap();
    assert_eq!(heads["heads"].as_array().unwrap().len(), 2);
    let theirs = heads["heads"][1]["hash"].as_str().unwrap();
    let get = node.attempt(&["kv", "get", "notes/a b", "--head", &theirs[..8]]);
    assert_eq!((out(&get).as_str(), get.stderr.len()), ("theirs", 0));

    let put = node.attempt(&["kv", "put", "notes/a b", "both"]);
    let said = String::from_utf8_lossy(&put.stderr).into_owned();
    assert!(said.contains("had 2 heads; all of them are superseded now:") && said.contains(&theirs[..8]), "{said}");
    eventually("it is settled there, too", || json(&other, &["store", "status", "home"])["conflicts"] == 0);
    assert!(!node.lattice(&["status"]).contains("\nconflicts "), "nothing needs a person");
    let deleted = node.attempt(&["kv", "delete", "notes/a b"]);
    assert!(deleted.status.success() && deleted.stderr.is_empty(), "one head is nothing to speak of");
    assert_eq!(json(&node, &["kv", "put", "c", "1"])["superseded"].as_array().unwrap().len(), 0);
    assert_eq!(json(&node, &["kv", "delete", "c"])["superseded"][0]["author"], heads["heads"][0]["author"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let node = with_mesh();
    for n in 0..2_000 {
        std::fs::write(node.key(&format!("a-rather-long-name-for-a-key-{n:06}")), "x").unwrap();
    }
    let mut list = node.command(&["kv", "list"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(list.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "a-rather-long-name-for-a-key-000000\n");
    assert!(list.wait().unwrap().success());
}

#[test]
fn a_watch_prints_changes_as_they_come_and_ends_with_the_node() {
    let node = with_mesh();
    let mut watch =
        node.command(&["kv", "watch", "w/", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let stdout = BufReader::new(watch.stdout.take().unwrap());
    let (heard, changes) = std::sync::mpsc::channel::<Value>();
    let reader = std::thread::spawn(move || {
        for line in stdout.lines() {
            drop(heard.send(serde_json::from_str(&line.unwrap()).unwrap()));
        }
    });
    let mut n = 0;
    let mut first = Value::Null;
    eventually("a change is seen", || {
        n += 1;
        std::fs::write(node.key("not-in-w"), n.to_string()).unwrap();
        std::fs::create_dir_all(node.key("w")).unwrap();
        std::fs::write(node.key(&format!("w/{n}")), "x").unwrap();
        first = changes.recv_timeout(std::time::Duration::from_millis(200)).unwrap_or_default();
        !first.is_null()
    });
    assert!(first["path"].as_str().unwrap().starts_with('w'), "{first}");
    node.lattice(&["kv", "delete", &format!("w/{n}")]);
    eventually("the deletion is seen", || {
        changes.recv().is_ok_and(|change| change["what"] == "deleted" && change["path"] == format!("w/{n}"))
    });
    node.lattice(&["down"]);
    assert_eq!(watch.wait().unwrap().code(), Some(6), "a stream that broke off is told by its exit code");
    reader.join().unwrap();
}

#[test]
fn the_log_says_what_each_entry_does() {
    let node = with_mesh();
    node.lattice(&["kv", "put", "a", "1"]);
    node.lattice(&["kv", "put", "b", "22"]);
    node.lattice(&["kv", "delete", "a"]);
    let all = lines(&node.lattice(&["log", "--json"]));
    let does: Vec<_> = all.iter().map(|entry| entry["does"][0].as_str().unwrap()).collect();
    assert_eq!(does, ["put a (1 byte)", "put b (2 bytes)", "delete a"]);
    assert_eq!(all.iter().map(|entry| entry["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(all[1]["parents"], serde_json::json!([all[0]["hash"]]));
    let last = lines(&node.lattice(&["log", "home", "-n", "2", "--json"]));
    assert_eq!(last, all[1..]);
    assert!(node.lattice(&["log", "root"]).contains("found the mesh ours"));

    let mut follow =
        node.command(&["log", "-n", "1", "-f", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut followed = BufReader::new(follow.stdout.take().unwrap()).lines();
    let next = |lines: &mut dyn Iterator<Item = std::io::Result<String>>| -> Value {
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    };
    assert_eq!(next(&mut followed), all[2]);
    node.lattice(&["kv", "put", "c", "333"]);
    assert_eq!(next(&mut followed)["does"][0], "put c (3 bytes)");
    node.lattice(&["down"]);
    assert!(follow.wait().is_ok());
}

#[test]
fn stores_come_and_go_by_name() {
    let node = with_mesh();
    let names = || {
        let stores = json(&node, &["store", "list"]);
        let mut names: Vec<_> =
            stores.as_array().unwrap().iter().map(|store| store["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["chat", "home"]);
    node.lattice(&["store", "create", "photos"]);
    assert_eq!(names(), ["chat", "home", "photos"]);
    node.lattice(&["kv", "put", "cat.jpg", "x", "--store", "photos"]);
    assert_eq!(json(&node, &["store", "status", "photos"])["keys"], 1);
    refused(&node, &["store", "create", "photos"], REFUSED);
    refused(&node, &["store", "create", "a/b"], REFUSED);
    refused(&node, &["store", "status", "none"], NOT_FOUND);
    assert!(
        refused(&node, &["store", "delete", "photos"], REFUSED).contains("--yes"),
        "without a terminal it is asked for"
    );
    node.lattice(&["store", "delete", "photos", "--yes"]);
    eventually("the store is gone", || names() == ["chat", "home"]);
    refused(&node, &["store", "delete", "photos", "--yes"], NOT_FOUND);
    let does: Vec<_> =
        lines(&node.lattice(&["log", "root", "--json"])).iter().map(|entry| entry["does"].clone()).collect();
    assert_eq!(does[1][0], "create the store photos (kv)");
    assert!(does[2][0].as_str().unwrap().starts_with("delete the store photos ("), "{does:?}");
    let said = refused(&node, &["store", "create", "root"], REFUSED);
    assert!(said.contains("'root' is the mesh's own store"), "{said}");
    assert_eq!(names(), ["chat", "home"]);
}

#[test]
fn a_message_is_answered_and_reacted_to_by_its_short_id() {
    let node = with_mesh();
    refused(&node, &["chat", "ls", "lobby"], NOT_FOUND);
    node.lattice(&["chat", "post", "lobby", "good morning"]);
    let messages = lines(&node.lattice(&["chat", "ls", "lobby", "--json"]));
    let id = &messages[0]["id"].as_str().unwrap()[..6];
    node.lattice(&["chat", "post", "lobby", "and to you", "--reply", id]);
    node.lattice(&["chat", "post", "lobby", "👍", "--react", id]);
    let room = node.lattice(&["chat", "ls", "lobby"]);
    let shown: Vec<_> = room.lines().collect();
    assert!(shown[0].contains("good morning") && shown[0].contains('👍'), "{room}");
    assert!(shown[1].trim_start().starts_with('↳') && shown[1].contains("and to you"), "{room}");
    let messages = lines(&node.lattice(&["chat", "ls", "lobby", "-n", "1", "--json"]));
    assert_eq!((messages.len(), &messages[0]["text"]), (1, &"and to you".into()));
    assert_eq!(node.lattice(&["chat", "ls"]), "lobby\n");
    refused(&node, &["chat", "post", "lobby", "to whom?", "--reply", "ffffffff"], NOT_FOUND);
}

#[test]
fn a_message_is_edited_and_redacted_and_may_begin_with_a_dash() {
    let node = with_mesh();
    node.lattice(&["chat", "post", "lobby", "-hi"]);
    node.lattice(&["chat", "post", "lobby", "secret"]);
    let messages = lines(&node.lattice(&["chat", "ls", "lobby", "--json"]));
    let id = |at: usize| messages[at]["id"].as_str().unwrap()[..8].to_owned();
    assert_eq!(messages[0]["text"], "-hi");
    node.lattice(&["chat", "edit", "lobby", &id(0), "--hello"]);
    node.lattice(&["chat", "redact", "lobby", &id(1)]);
    let room = node.lattice(&["chat", "ls", "lobby"]);
    assert!(room.contains(": --hello (edited)\n") && room.ends_with(": (redacted)\n"), "{room}");
    let messages = lines(&node.lattice(&["chat", "ls", "lobby", "--json"]));
    assert!(messages[0]["edited"].is_string() && messages[1]["redacted"].is_string(), "{messages:?}");
    assert_eq!(messages[1]["text"], "");
    assert!(refused(&node, &["chat", "redact", "lobby", &id(1)], REFUSED).contains("was redacted"));
    refused(&node, &["chat", "edit", "lobby", "ffffffff", "x"], NOT_FOUND);
    refused(&node, &["chat", "edit", "lobby", &id(0), " "], REFUSED);
}

/// Runs `lattice` on a terminal, where a person answers; gives what they saw and the exit code.
fn on_a_terminal(node: &Node<'_>, command: &str, answer: &str) -> (String, Option<i32>) {
    let line = format!("{} {command}", env!("CARGO_BIN_EXE_lattice"));
    let mut script = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("LATTICE_DATA", node.data())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    let output = script.wait_with_output().unwrap();
    (out(&output), output.status.code())
}

#[test]
fn leaving_and_deleting_ask_first_and_without_a_terminal_do_nothing_unless_told() {
    let node = with_mesh();
    let said = refused(&node, &["mesh", "leave"], REFUSED);
    assert!(said.contains("This node leaves the mesh 'ours' for good") && said.contains("only member"), "{said}");
    assert!(said.contains("no terminal") && said.contains("--yes"), "{said}");
    let (said, code) = on_a_terminal(&node, "mesh leave", "n\n");
    assert!(said.contains("Leave the mesh? [y/N]") && said.contains("nothing was done"), "{said}");
    assert_eq!(code, Some(REFUSED));
    assert_eq!(json(&node, &["mesh", "status"])["name"], "ours");
    let (said, code) = on_a_terminal(&node, "store delete home", "\n");
    assert!(said.contains("Every node closes the store 'home'"), "{said}");
    assert_eq!(code, Some(REFUSED));
    assert_eq!(json(&node, &["store", "status", "home"])["name"], "home");
    let (said, code) = on_a_terminal(&node, "mesh leave", "y\n");
    assert!(said.contains("left the mesh"), "{said}");
    assert_eq!(code, Some(0));
    node.lattice(&["mesh", "init", "again"]);
    node.lattice(&["mesh", "leave", "--yes"]);
    refused(&node, &["mesh", "status"], REFUSED);
}

#[test]
fn a_purge_removes_what_is_left_of_deleted_stores_and_left_meshes_and_nothing_else() {
    let node = with_mesh();
    let files = |at: &Path| {
        let mut files: Vec<_> = std::fs::read_dir(at).unwrap().map(|found| found.unwrap().path()).collect();
        files.sort();
        files
    };
    let meshes = node.data().join("meshes");
    let stores = files(&meshes)[0].join("stores");
    node.lattice(&["kv", "put", "key", "value"]);
    let before = files(&stores);
    assert!(node.lattice(&["store", "purge"]).starts_with("nothing is left"));
    node.lattice(&["store", "create", "photos"]);
    node.lattice(&["kv", "put", "cat.jpg", "x", "--store", "photos"]);
    node.lattice(&["store", "delete", "photos", "--yes"]);
    assert_eq!(files(&stores).len(), before.len() + 1);
    let said = refused(&node, &["store", "purge"], REFUSED);
    assert!(said.contains("the deleted store 'photos'") && said.contains("--yes"), "{said}");
    assert_eq!(files(&stores).len(), before.len() + 1);
    let (said, code) = on_a_terminal(&node, "store purge", "y\n");
    assert!(said.contains("Remove it? [y/N]") && said.contains("removed ") && code == Some(0), "{said}");
    assert_eq!(files(&stores), before);
    assert_eq!(node.lattice(&["kv", "get", "key"]), "value");

    node.lattice(&["mesh", "leave", "--yes"]);
    node.lattice(&["mesh", "init", "again"]);
    node.lattice(&["kv", "put", "key", "again"]);
    assert_eq!(files(&meshes).len(), 2);
    let removed = json(&node, &["store", "purge", "--yes"]);
    assert_eq!(removed["removed"][0]["of"], "a mesh that this node left");
    assert_eq!(files(&meshes).len(), 1);
    node.lattice(&["down"]);
    node.up();
    assert_eq!(node.lattice(&["kv", "get", "key"]), "again");
}

#[test]
fn completions_are_scripts_that_their_shells_read() {
    let node = Node::here();
    for shell in ["bash", "zsh", "fish"] {
        let script = node.lattice(&["completions", shell]);
        for word in ["invite", "conflicts", "--no-mount"] {
            assert!(script.contains(word.trim_start_matches('-')), "{shell} knows nothing of {word}");
        }
    }
    let file = node.mount().with_file_name("completions");
    std::fs::write(&file, node.lattice(&["completions", "bash"])).unwrap();
    let complete = format!(
        "source {}; COMP_WORDS=(lattice mesh le); COMP_CWORD=2; _lattice lattice le mesh; echo ${{COMPREPLY[@]}}",
        file.display()
    );
    assert_eq!(harness::run("bash", &["-c", &complete]), "leave\n");
    refused(&node, &["completions", "cmd"], USAGE);
}

#[test]
fn a_token_that_does_not_fit_is_refused_with_a_sentence_of_its_own() {
    let inviter = with_mesh();
    let joiner = Node::here();
    joiner.up();
    let token = inviter.lattice(&["mesh", "invite"]);
    let token = token.trim();
    let mut sentences = Vec::new();
    sentences.push(refused(&joiner, &["mesh", "join", "not-a-token"], REFUSED));
    let (start, last) = token.split_at(token.len() - 1);
    let mistyped = format!("{start}{}", if last == "a" { "b" } else { "a" });
    sentences.push(refused(&joiner, &["mesh", "join", &mistyped], REFUSED));
    let short = inviter.lattice(&["mesh", "invite", "--expires", "1s"]);
    let end = std::time::Instant::now() + std::time::Duration::from_millis(1_500);
    eventually("a second is over", || std::time::Instant::now() > end);
    sentences.push(refused(&joiner, &["mesh", "join", short.trim()], REFUSED));
    joiner.lattice(&["mesh", "join", token]);
    assert_eq!(json(&joiner, &["mesh", "status"])["name"], "ours");
    let late = Node::here();
    late.up();
    sentences.push(refused(&late, &["mesh", "join", token], REFUSED));
    sentences.push(refused(&joiner, &["mesh", "join", token], REFUSED));
    let mut different = sentences.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), sentences.len(), "{sentences:#?}");
    for (sentence, word) in sentences.iter().zip(["not a join token", "mistyped", "expired", "used up", "already"]) {
        assert!(sentence.contains(word), "{sentence}");
    }
    refused(&joiner, &["mesh", "invite"], REFUSED);
}

#[test]
fn a_join_that_waits_returns_when_all_has_come() {
    let inviter = with_mesh();
    let large = vec![7u8; 200_000];
    for n in 0..500 {
        std::fs::write(inviter.key(&format!("file{n}")), n.to_string()).unwrap();
    }
    std::fs::write(inviter.key("large"), &large).unwrap();
    let token = inviter.lattice(&["mesh", "invite"]);
    let joiner = Node::here();
    joiner.up();
    let said = joiner.lattice(&["mesh", "join", token.trim(), "--wait"]);
    assert!(said.starts_with("joined ours (") && said.ends_with("2 members\n"), "{said}");
    assert_eq!(std::fs::read_to_string(joiner.key("file499")).unwrap(), "499");
    assert!(std::fs::read(joiner.key("large")).unwrap() == large, "the content differs");
    let home = json(&joiner, &["store", "status", "home"]);
    assert_eq!((&home["keys"], &home["missing_entries"], &home["missing_blobs"]), (&501.into(), &0.into(), &0.into()));
}

#[test]
fn in_the_foreground_a_node_tells_its_manager_and_stops_in_order() {
    let node = Node::here();
    let socket = node.mount().with_file_name("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mount = node.mount();
    let args = ["up", mount.to_str().unwrap(), "--listen", "127.0.0.1:0", "--foreground"];
    let mut daemon =
        node.command(&args).env("NOTIFY_SOCKET", &socket).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut told = [0; 32];
    notified.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    let length = notified.recv(&mut told).unwrap();
    assert_eq!(&told[..length], b"READY=1");
    assert!(node.mount().join("README").exists(), "it told before the mount answered");
    assert_eq!(node.pid(), i32::try_from(daemon.id()).unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(node.pid()), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(!node.mount().join("README").exists(), "the mount outlived the node");
}

/// Runs a script as an ordinary user, who has the programs in `bin/` and may use FUSE, in a mount namespace of its own.
fn as_user(dir: &Path, fuse_mode: &str, script: &str) -> Output {
    const USER: &str = "65534";
    let programs = Path::new(env!("CARGO_BIN_EXE_lattice")).parent().unwrap();
    let setup = format!(
        "set -e; cd {dir}; mkdir -p bin; mount --bind {programs} bin; rm -f fuse; mknod -m {fuse_mode} fuse c 10 229; \
         mount --bind fuse /dev/fuse; chown {USER}:{USER} .; \
         exec setpriv --reuid={USER} --regid={USER} --clear-groups sh -eu -c '{script}'",
        dir = dir.display(),
        programs = programs.display(),
    );
    std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &setup])
        .env("HOME", dir)
        .env("PATH", format!("{}/bin:{}", dir.display(), std::env::var("PATH").unwrap()))
        .env_remove("LATTICE_DATA")
        .env_remove("XDG_DATA_HOME")
        .env("LATTICE_LISTEN", "127.0.0.1:0")
        .env("LATTICE_MDNS", "false")
        .output()
        .unwrap()
}

#[test]
fn an_ordinary_user_mounts_writes_and_comes_back_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let output = as_user(
        dir.path(),
        "666",
        "lattice up >&2; lattice mesh init >&2; echo hello > ~/mesh/stores/home/keys/greeting; sync ~/mesh/stores/home/keys/greeting
         kill -9 $(cat .local/share/lattice/lock)
         lattice up >&2; cat ~/mesh/stores/home/keys/greeting; lattice down >&2; ls ~/mesh",
    );
    assert_eq!(out(&output), "hello\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

#[test]
fn a_fuse_device_that_is_closed_to_the_user_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = as_user(dir.path(), "600", "lattice up");
    assert_eq!(output.status.code(), Some(REFUSED));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("chmod 666 /dev/fuse"), "{said}");
}

#[test]
fn a_reader_only_reads_only_admins_decide_and_a_removal_says_what_still_counts() {
    let (first, second) = (with_mesh(), Node::here());
    second.up();
    let token = first.lattice(&["mesh", "invite", "--role", "reader"]);
    second.lattice(&["mesh", "join", token.trim()]);
    let id = json(&second, &["status"])["node"].as_str().unwrap().to_owned();
    let said = refused(&second, &["kv", "put", "key", "value"], REFUSED);
    assert!(said.contains("role") && said.contains("an admin can change that"), "{said}");
    let error = std::fs::write(second.key("key"), "value").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
    let only: [&[&str]; 4] = [
        &["mesh", "invite"],
        &["store", "create", "photos"],
        &["mesh", "role", &id, "admin"],
        &["mesh", "revoke", &id, "--yes"],
    ];
    for role in ["reader", "writer"] {
        for command in only {
            let said = refused(&second, command, REFUSED);
            assert!(said.contains("only an admin may") && said.contains(role), "{command:?}: {said}");
        }
        drop(first.attempt(&["mesh", "role", &id, "writer"]));
        eventually("it is a writer", || json(&second, &["mesh", "status"])["role"] == "writer");
    }
    std::fs::write(second.key("key"), "value").unwrap();
    eventually("what it writes is here", || first.key("key").exists());

    let said = refused(&first, &["mesh", "revoke", &id], REFUSED);
    assert!(said.contains("writer) is removed") && said.contains("counts everywhere"), "{said}");
    assert!(said.contains("no terminal") && said.contains("--yes"), "{said}");
    assert_eq!(json(&first, &["mesh", "status"])["members"], 2);
    let nobody = refused(&first, &["mesh", "revoke", "nobody"], NOT_FOUND);
    assert!(nobody.contains("there is no member 'nobody'") && !nobody.contains("is removed"), "{nobody}");
    first.lattice(&["mesh", "revoke", &id, "--yes"]);
    let again = refused(&first, &["mesh", "revoke", &id], REFUSED);
    assert!(again.contains("a member no more") && !again.contains("--yes"), "{again}");
    assert_eq!(json(&first, &["mesh", "status"])["members"], 1);
    eventually("its link is closed", || json(&first, &["mesh", "status"])["online"] == 0);
    assert!(first.key("key").exists(), "what it wrote stays");
}

#[test]
fn the_only_admin_keeps_its_role_until_there_is_another() {
    let (first, second) = (with_mesh(), Node::here());
    second.up();
    let token = first.lattice(&["mesh", "invite"]);
    second.lattice(&["mesh", "join", token.trim()]);
    let id = |node: &Node<'_>| json(node, &["status"])["node"].as_str().unwrap().to_owned();
    let (anna, bert) = (id(&first), id(&second));
    let less: [&[&str]; 3] =
        [&["mesh", "role", &anna, "reader"], &["mesh", "role", &anna, "writer"], &["mesh", "revoke", &anna, "--yes"]];
    for command in less {
        let said = refused(&first, command, REFUSED);
        assert!(said.contains("is the only admin") && said.contains("mesh role NAME admin`"), "{command:?}: {said}");
    }
    let said = refused(&second, &["mesh", "revoke", &anna, "--yes"], REFUSED);
    assert!(said.contains("only an admin may"), "{said}");
    assert_eq!(json(&first, &["mesh", "status"])["role"], "admin");
    first.lattice(&["mesh", "role", &bert, "admin"]);
    first.lattice(&["mesh", "role", &anna, "reader"]);
    assert_eq!(json(&first, &["mesh", "status"])["role"], "reader");
    eventually("the other has heard of it", || {
        let peers = json(&second, &["peers"]);
        peers.as_array().unwrap().iter().any(|peer| peer["id"] == *anna && peer["role"] == "reader")
    });
    refused(&second, &["mesh", "role", &bert, "writer"], REFUSED);
}

#[test]
fn who_left_is_not_let_in_again_by_a_role_and_who_was_removed_is_shown_as_what_it_was() {
    let (first, second) = (with_mesh(), Node::here());
    second.up();
    let token = first.lattice(&["mesh", "invite", "--role", "admin", "--uses", "2"]);
    second.lattice(&["mesh", "join", token.trim()]);
    let said = refused(&second, &["mesh", "join", token.trim()], REFUSED);
    assert!(said.contains("for good: no token lets this node's key in there again"), "{said}");
    let id = |node: &Node<'_>| json(node, &["status"])["node"].as_str().unwrap().to_owned();
    let gone = id(&second);
    let peer = |id: &str| {
        let peers = json(&first, &["peers"]);
        peers.as_array().unwrap().iter().find(|peer| peer["id"] == *id).cloned().unwrap_or_default()
    };
    second.lattice(&["mesh", "leave", "--yes"]);
    eventually("the first has heard that it left", || peer(&gone)["left"] == true);
    let said = refused(&first, &["mesh", "role", &gone, "writer"], REFUSED);
    assert!(said.contains("left the mesh") && said.contains("mesh invite`"), "{said}");
    assert_eq!(peer(&gone)["left"], true);

    let third = Node::here();
    third.up();
    third.lattice(&["mesh", "join", token.trim()]);
    let third = id(&third);
    first.lattice(&["mesh", "role", &third, "reader"]);
    first.lattice(&["mesh", "revoke", &third, "--yes"]);
    let shown = peer(&third);
    assert_eq!((&shown["removed"], &shown["role"]), (&true.into(), &"reader".into()));
    first.lattice(&["mesh", "role", &third, "writer"]);
    assert_eq!((&peer(&third)["left"], &peer(&third)["role"]), (&false.into(), &"writer".into()));
}

//! The main job, on machines of their own: what one writes, all have; what was cut off comes together again.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

mod harness;

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Net, Node, PATIENCE, difference, eventually, mesh, reached, run};

fn same_everywhere(nodes: &[Node<'_>]) {
    for node in &nodes[1..] {
        let agree = || difference(&nodes[0].keys(), &node.keys()).is_empty();
        if !reached(PATIENCE, agree) {
            panic!(
                "{} differs from {}:\n{}",
                node.keys().display(),
                nodes[0].keys().display(),
                difference(&nodes[0].keys(), &node.keys())
            );
        }
    }
}

fn conflicts(node: &Node<'_>) -> Vec<String> {
    let mut found = String::new();
    // A conflict that is settled while find looks at it is gone before find is done with it.
    eventually("find sees all of /.heads", || {
        let output = Command::new("find").arg(node.mount().join(".heads")).args(["-type", "f"]).output().unwrap();
        found = String::from_utf8(output.stdout).unwrap();
        output.status.success()
    });
    let mut found: Vec<_> =
        found.lines().map(|line| line.split("/.heads/").nth(1).unwrap_or_default().to_owned()).collect();
    found.sort();
    found
}

#[test]
fn a_real_tree_copied_in_on_one_machine_is_identical_on_all() {
    let net = Net::new(3);
    let nodes = mesh(&net, 3);
    let target = nodes[0].key("etc");
    run("cp", &["-a", "/etc", target.to_str().unwrap()]);
    same_everywhere(&nodes);
    assert_eq!(difference(Path::new("/etc"), &nodes[2].key("etc")), "");
}

#[test]
fn after_a_cut_heals_all_agree_and_two_edits_of_one_file_are_both_kept_until_someone_settles_them() {
    let net = Net::new(3);
    let nodes = mesh(&net, 3);
    for n in 0..40 {
        fs::write(nodes[0].key(&format!("file{n}")), "before\n").unwrap();
    }
    same_everywhere(&nodes);

    net.cut(1);
    // Files 18 and 19 are changed on both sides.
    for n in 0..20 {
        fs::write(nodes[0].key(&format!("file{n}")), format!("left {n}\n")).unwrap();
    }
    for n in 18..38 {
        fs::write(nodes[1].key(&format!("file{n}")), format!("right {n}\n")).unwrap();
    }
    net.heal(1);

    same_everywhere(&nodes);
    for node in &nodes {
        eventually("each node shows both heads of both files", || conflicts(node).len() == 4);
        assert_eq!(conflicts(node), conflicts(&nodes[0]));
        let heads = node.mount().join(".heads/home/file18");
        let mut contents: Vec<_> =
            fs::read_dir(&heads).unwrap().map(|head| fs::read_to_string(head.unwrap().path()).unwrap()).collect();
        contents.sort();
        assert_eq!(contents, ["left 18\n", "right 18\n"]);
    }

    for file in ["file18", "file19"] {
        let heads = nodes[2].mount().join(".heads/home").join(file);
        let loser = fs::read_dir(&heads)
            .unwrap()
            .map(|head| head.unwrap().path())
            .find(|head| fs::read_to_string(head).unwrap().starts_with("left"))
            .unwrap();
        run("cp", &[loser.to_str().unwrap(), nodes[2].key(file).to_str().unwrap()]);
    }
    for node in &nodes {
        eventually("the settled conflicts are gone", || conflicts(node).is_empty());
        eventually("the chosen content is everywhere", || {
            fs::read_to_string(node.key("file18")).unwrap() == "left 18\n"
                && fs::read_to_string(node.key("file19")).unwrap() == "left 19\n"
        });
    }
    same_everywhere(&nodes);
}

#[test]
fn a_node_killed_during_a_copy_comes_back_without_a_fork_and_with_what_was_synced() {
    let net = Net::new(3);
    let nodes = mesh(&net, 3);
    let synced = nodes[0].key("synced");
    fs::write(&synced, "on the disk").unwrap();
    fs::File::open(&synced).unwrap().sync_all().unwrap();

    let mut copy = std::process::Command::new("cp")
        .args(["-a", "/etc", nodes[0].key("etc").to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("some of the copy has reached another node", || nodes[1].key("etc").exists());
    nodes[0].kill();
    copy.wait().unwrap();

    nodes[0].up();
    assert_eq!(fs::read_to_string(&synced).unwrap(), "on the disk");
    fs::write(nodes[0].key("after"), "after").unwrap();
    for node in &nodes {
        eventually("what the killed node writes afterwards reaches all", || node.key("after").exists());
    }
    same_everywhere(&nodes);
    for node in &nodes {
        let status: serde_json::Value = serde_json::from_str(&node.lattice(&["status", "--json"])).unwrap();
        assert_eq!(status["forks"], 0, "a fork is known to {}", node.data().display());
    }
}

#[test]
fn two_nodes_that_never_meet_agree_through_a_third() {
    let net = Net::new(3);
    let nodes = mesh(&net, 3);
    net.cut(2);
    fs::write(nodes[0].key("from-first"), "1").unwrap();
    eventually("the second has it", || nodes[1].key("from-first").exists());
    net.cut(0);
    net.heal(2);
    eventually("the third has it from the second", || nodes[2].key("from-first").exists());
}

#[test]
fn a_large_file_arrives_whole_and_verified() {
    let net = Net::new(2);
    let nodes = mesh(&net, 2);
    let content: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(nodes[0].key("large"), &content).unwrap();
    eventually("the name is there", || nodes[1].key("large").exists());
    assert!(fs::read(nodes[1].key("large")).unwrap() == content, "the content differs");
}

#[test]
fn a_line_appended_in_a_room_is_read_by_the_others_as_it_was_meant() {
    let net = Net::new(2);
    let nodes = mesh(&net, 2);
    let say = |node: &Node<'_>, line: &str| {
        let room = node.mount().join("chat/lobby");
        run("sh", &["-c", &format!("echo '{line}' >> '{}'", room.display())]);
    };
    say(&nodes[0], "good morning");
    eventually("the room is there", || {
        fs::read_to_string(nodes[1].mount().join("chat/lobby")).is_ok_and(|room| room.contains("good morning"))
    });
    say(&nodes[1], "and to you");
    eventually("the answer comes back", || {
        fs::read_to_string(nodes[0].mount().join("chat/lobby")).unwrap().contains("and to you")
    });
    assert_eq!(
        nodes[0].lattice(&["chat", "ls"]).lines().filter(|line| line.contains("lobby")).count(),
        1,
        "the room is listed once"
    );
}

#[test]
fn a_revoked_node_is_cut_off_and_gets_nothing_new_also_when_it_comes_back() {
    let net = Net::new(3);
    let nodes = mesh(&net, 3);
    let peer = |of: &Node<'_>, name: &str| -> serde_json::Value {
        let peers: Vec<serde_json::Value> = serde_json::from_str(&of.lattice(&["peers", "--json"])).unwrap();
        peers.into_iter().find(|peer| peer["name"] == name).unwrap()
    };
    let own: Vec<serde_json::Value> = serde_json::from_str(&nodes[2].lattice(&["peers", "--json"])).unwrap();
    let gone = own.into_iter().find(|peer| peer["me"] == true).unwrap()["name"].as_str().unwrap().to_owned();
    fs::write(nodes[2].key("kept"), "kept").unwrap();
    for node in &nodes {
        eventually("what it wrote before is everywhere", || node.key("kept").exists());
    }

    nodes[0].lattice(&["mesh", "revoke", &gone, "--yes"]);
    for node in &nodes[..2] {
        eventually("the others know", || peer(node, &gone)["removed"] == true);
        eventually("its connections are closed", || peer(node, &gone)["online"] == false);
    }
    fs::write(nodes[0].key("secret"), "secret").unwrap();
    eventually("the members have it", || nodes[1].key("secret").exists());
    // It may not know yet, and write on: nothing of it counts.
    drop(fs::write(nodes[2].key("late"), "late"));
    nodes[2].lattice(&["down"]);
    nodes[2].up();
    drop(fs::write(nodes[2].key("later"), "later"));
    // A round between the members shows that time has passed.
    fs::write(nodes[1].key("again"), "again").unwrap();
    eventually("the members go on", || nodes[0].key("again").exists());
    for node in &nodes[..2] {
        assert!(node.key("kept").exists(), "what it wrote before stays");
        assert!(!node.key("late").exists() && !node.key("later").exists(), "what it wrote afterwards counts");
        assert_eq!(peer(node, &gone)["online"], false);
    }
    assert!(!nodes[2].key("secret").exists() && !nodes[2].key("again").exists(), "it got something new");

    nodes[0].lattice(&["mesh", "role", &gone, "writer"]);
    eventually("it is in again", || nodes[2].key("secret").exists());
    for node in &nodes[..2] {
        eventually("what it wrote counts again", || node.key("late").exists() || !nodes[2].key("late").exists());
    }
    same_everywhere(&nodes);
}

/// The forker, the third of these, is told what happened, by whom, and what to do; and that does what was said.
fn goes_on_as_it_is_told(nodes: &[Node<'_>]) {
    let json = |of: &Node<'_>, args: &[&str]| -> serde_json::Value { serde_json::from_str(&of.lattice(args)).unwrap() };
    let names = || json(&nodes[0], &["peers", "--json"]);
    let founder = names().as_array().unwrap().iter().find(|peer| peer["me"] == true).unwrap()["name"].clone();
    let told = |args: &[&str]| nodes[2].lattice(args);
    for command in [&["status"][..], &["mesh", "status"]] {
        eventually("it says why it is refused, and by whom", || {
            let said = told(command);
            said.contains("signed two entries for one place") && said.contains(founder.as_str().unwrap())
        });
        assert!(told(command).contains("node rekey --rejoin` gives it a new key"), "{}", told(command));
        assert!(!told(command).contains("mesh role"), "no role lets it in again: {}", told(command));
    }
    let heard = !told(&["status"]).contains("copy it out of the mount first");
    assert_eq!(heard, told(&["status"]).contains("is set aside"));
    assert_eq!(nodes[2].key("other").exists(), !heard, "what it wrote is still to be copied out, if it says so");
    assert_eq!(json(&nodes[2], &["node", "rekey", "--rejoin", "--yes", "--json"])["rejoin"], true);
    nodes[2].up();
    let token = nodes[0].lattice(&["mesh", "invite"]);
    nodes[2].lattice(&["mesh", "join", token.trim(), "--wait"]);
    same_everywhere(nodes);
    assert!(nodes[2].key("first").exists() && nodes[2].key("one").exists() && nodes[2].key("after").exists());
    assert!(!nodes[2].key("other").exists(), "what only it had is shown still");
    let verified = json(&nodes[2], &["store", "verify", "home", "--json"]);
    assert_eq!(verified[0]["excluded"], 1, "what only it had is set aside: {verified}");
    fs::write(nodes[2].key("again"), "again").unwrap();
    for node in &nodes[..2] {
        eventually("it writes under its new key", || node.key("again").exists());
    }
    assert!(!told(&["status"]).contains("warning"), "{}", told(&["status"]));
}

#[test]
fn who_signs_two_entries_for_one_place_is_removed_by_its_own_proof_and_the_others_agree() {
    let net = Net::new(3);
    let nodes = mesh(&net, 3);
    let json = |of: &Node<'_>, args: &[&str]| -> serde_json::Value { serde_json::from_str(&of.lattice(args)).unwrap() };
    let forker = json(&nodes[2], &["status", "--json"])["name"].as_str().unwrap().to_owned();
    fs::write(nodes[2].key("first"), "before").unwrap();
    for node in &nodes {
        eventually("what it wrote before is everywhere", || node.key("first").exists());
    }

    // An older copy of its files goes on where none can tell it that its place is taken.
    nodes[2].lattice(&["down"]);
    let copy = nodes[2].data().with_extension("copy");
    run("cp", &["-a", nodes[2].data().to_str().unwrap(), copy.to_str().unwrap()]);
    nodes[2].up();
    fs::write(nodes[2].key("one"), "one").unwrap();
    for node in &nodes[..2] {
        eventually("the one entry is here", || node.key("one").exists());
    }
    nodes[2].lattice(&["down"]);
    net.cut(2);
    fs::remove_dir_all(nodes[2].data()).unwrap();
    fs::rename(&copy, nodes[2].data()).unwrap();
    nodes[2].up();
    fs::write(nodes[2].key("other"), "other").unwrap();
    net.heal(2);

    for node in &nodes[..2] {
        let proof = node.mount().join("peers").join(&forker).join("fork-proof");
        eventually("the proof is shown", || proof.exists());
        let proof = fs::read_to_string(proof).unwrap();
        let value = |name: &str| proof.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        assert_ne!(value("one "), value("other "));
        let header = |name: &str| {
            let bytes = data_encoding::HEXLOWER.decode(value(name).as_bytes()).unwrap();
            lattice::replication::entry::Header::decode_signed(&bytes).unwrap()
        };
        let (one, other) = (header("one "), header("other "));
        assert_eq!((one.author, one.store, one.seq), (other.author, other.store, other.seq));
        assert!(node.lattice(&["status"]).contains(&format!("by {forker}: removed for good")));
        assert_eq!(json(node, &["status", "--json"])["forkers"], serde_json::json!([forker]));
        let peers = json(node, &["peers", "--json"]);
        let peer = peers.as_array().unwrap().iter().find(|peer| peer["name"] == *forker).unwrap().clone();
        assert_eq!((&peer["forked"], &peer["removed"]), (&true.into(), &true.into()));
        eventually("it is not connected any more", || {
            let peers = json(node, &["peers", "--json"]);
            peers.as_array().unwrap().iter().any(|peer| peer["name"] == *forker && peer["online"] == false)
        });
    }
    let refused = nodes[0].attempt(&["mesh", "role", &forker, "writer"]);
    assert!(!refused.status.success(), "it is for good");
    fs::write(nodes[1].key("after"), "after").unwrap();
    eventually("the others go on", || nodes[0].key("after").exists());
    same_everywhere(&nodes[..2]);
    assert!(nodes[0].key("first").exists(), "what it wrote before stays");
    assert!(!nodes[2].key("after").exists(), "it gets nothing new");
    goes_on_as_it_is_told(&nodes);
}

#[test]
fn a_proof_that_one_machine_makes_of_what_another_wrote_is_checked_where_there_is_nothing_but_the_file() {
    let net = Net::new(2);
    let nodes = mesh(&net, 2);
    let json = |of: &Node<'_>, args: &[&str]| -> serde_json::Value { serde_json::from_str(&of.lattice(args)).unwrap() };
    fs::write(nodes[0].key("agreed"), "we meet at noon\n").unwrap();
    eventually("the other has it", || nodes[1].key("agreed").exists());
    let (id, mesh) = (json(&nodes[0], &["status", "--json"]), json(&nodes[0], &["mesh", "status", "--json"]));
    net.cut(0);
    let proof = nodes[1].attempt(&["prove", "agreed"]);
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));
    for node in &nodes {
        node.lattice(&["down"]);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p"), proof.stdout).unwrap();
    fs::write(dir.path().join("content"), "we meet at noon\n").unwrap();
    let args = ["verify", "p", "--json", "--content", "content", "--mesh", mesh["id"].as_str().unwrap()];
    let mut verify = Command::new(env!("CARGO_BIN_EXE_lattice"));
    let shown = verify.args(args).env_clear().current_dir(dir.path()).output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["author"], &shown["author_name"], &shown["role"]), (&id["node"], &id["name"], &"admin".into()));
    assert_eq!((&shown["writes"][0]["path"], &shown["content_compared"]), (&"agreed".into(), &true.into()));
}

//! The files of a node: settings, identity, stores.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::harness::{Node, Room, eventually, run};
use crate::{
    FAILED, NOT_RUNNING, REFUSED, UNAVAILABLE, USAGE, founder, joined, json, no_start, refused, store_file, warnings,
};

#[test]
fn settings_that_can_not_be_read_are_named_and_nothing_starts_or_is_lost() {
    let node = founder();
    fs::write(node.key("kept"), "kept").unwrap();
    node.lattice(&["down"]);
    let config = node.data().join("config.toml");
    let cases: [(&[u8], &str, &str); 4] = [
        (b"name = \"a\"\nlisten 7\n", "config.toml:2: ", "correct line 2 of "),
        (b"name = \"a\"\n\nmdns = \"perhaps\"\n", "config.toml:3: mdns = 'perhaps': ", "correct line 3 of "),
        (b"\nlisen = \"0.0.0.0:1\"\n", "config.toml:2: there is no setting 'lisen'", "write 'listen' instead"),
        (b"name = \"a\"\nmount = \"\xff\"\n", "config.toml:2: this is no text", "correct line 2 of "),
    ];
    for (text, sentence, hint) in cases {
        fs::write(&config, text).unwrap();
        let said = no_start(&node, USAGE);
        assert!(said.error.contains(sentence), "{}", said.error);
        assert!(said.hint.starts_with(hint), "{}", said.hint);
        refused(&node, &["status"], NOT_RUNNING);
    }
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    assert!(no_start(&node, USAGE).all().contains("config.toml"));
    fs::remove_dir(&config).unwrap();
    node.up();
    assert_eq!(fs::read_to_string(node.key("kept")).unwrap(), "kept");
}

#[test]
fn an_identity_that_can_not_be_used_is_told_and_never_replaced() {
    let node = founder();
    node.lattice(&["down"]);
    let file = node.data().join("identity.key");
    let good = fs::read(&file).unwrap();
    let bad: [(&str, &dyn Fn(), &str); 4] = [
        ("does not read", &|| fs::write(&file, "scribble").unwrap(), "from a backup"),
        ("other users can read", &|| fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap(), "chmod 600"),
        ("is missing", &|| fs::remove_file(&file).unwrap(), "from a backup"),
        ("Is a directory", &|| fs::remove_file(&file).and_then(|()| fs::create_dir(&file)).unwrap(), ""),
    ];
    for (sentence, spoil, hint) in bad {
        spoil();
        let said = no_start(&node, FAILED);
        assert!(said.error.contains("identity.key") && said.error.contains(sentence), "{}", said.error);
        assert!(said.hint.contains(hint), "{}", said.hint);
        if file.is_dir() {
            fs::remove_dir(&file).unwrap();
        }
        fs::write(&file, &good).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }
    node.up();
    assert_eq!(json(&node, &["mesh", "status"])["name"], "ours");
}

#[test]
fn a_data_directory_that_can_not_be_one_is_named() {
    let node = Node::here();
    fs::write(node.data(), "a file").unwrap();
    let said = no_start(&node, FAILED);
    assert!(said.error.contains(node.data().to_str().unwrap()), "{}", said.error);
    assert!(said.hint.contains("--data"), "{}", said.hint);
    refused(&node, &["status"], NOT_RUNNING);
    assert_eq!(fs::read_to_string(node.data()).unwrap(), "a file");
    fs::remove_file(node.data()).unwrap();

    fs::create_dir(node.data()).unwrap();
    fs::write(node.data().join("format"), "9\n").unwrap();
    assert!(no_start(&node, FAILED).error.contains("layout 9 is newer"));
    fs::write(node.data().join("format"), "").unwrap();
    assert!(no_start(&node, FAILED).hint.contains("echo 1 > "));
    fs::remove_dir_all(node.data()).unwrap();
}

#[test]
fn a_disk_that_can_not_be_written_is_told() {
    let room = Room::new("");
    let node = Node::within(&room);
    fs::create_dir(node.data()).unwrap();
    room.sh(&format!("mount -t tmpfs -o ro none {}", node.data().display()));
    let said = no_start(&node, FAILED);
    assert!(said.error.contains("Read-only file system"), "{}", said.error);
    assert!(said.hint.contains("--data"), "{}", said.hint);
}

/// What a file looks like after something has gone over it.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 4] = [
    ("cut short", |file| {
        let length = fs::metadata(file).unwrap().len();
        File::options().write(true).open(file).unwrap().set_len(length / 2).unwrap();
    }),
    ("zeroed in the middle", |file| {
        let length = fs::metadata(file).unwrap().len();
        let zeros = vec![0; usize::try_from(length / 2).unwrap()];
        File::options().write(true).open(file).unwrap().write_all_at(&zeros, length / 4).unwrap();
    }),
    ("of another program", |file| fs::write(file, "SQLite format 3\0".repeat(4_096)).unwrap()),
    ("empty", |file| fs::write(file, "").unwrap()),
];

#[test]
fn a_damaged_store_is_named_with_what_to_do_and_the_rest_of_the_mesh_works() {
    let node = founder();
    fs::write(node.key("kept"), "kept").unwrap();
    let file = store_file(&node, "home");
    node.lattice(&["down"]);
    let good = fs::read(&file).unwrap();
    for (what, spoil) in DAMAGES {
        spoil(&file);
        let spoilt = fs::read(&file).unwrap();
        node.up();
        let warnings = warnings(&node);
        let warning = warnings.first().unwrap_or_else(|| panic!("{what}: nobody is warned"));
        assert!(warning.starts_with("the store 'home' can't be used: "), "{what}: {warning}");
        assert!(
            warning.contains(file.to_str().unwrap()) && warning.contains("`lattice store repair NAME`"),
            "{what}: {warning}"
        );
        assert!(json(&node, &["store", "status", "home"])["damaged"].is_string(), "{what}");
        assert!(node.lattice(&["status"]).contains("damaged"), "{what}");
        let said = refused(&node, &["kv", "get", "kept"], FAILED);
        assert!(said.error.starts_with("the store 'home' can't be used: "), "{what}: {}", said.error);
        let error = fs::write(node.key("new"), "new").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{what}");
        node.lattice(&["chat", "post", "lobby", what]);
        let room = fs::read_to_string(node.mount().join("chat/lobby")).unwrap();
        assert!(room.contains(what), "the other stores don't work: {room}");
        node.lattice(&["store", "create", &format!("other{}", what.len())]);
        node.lattice(&["down"]);
        assert_eq!(fs::read(&file).unwrap(), spoilt, "{what}: a damaged file is not touched");
    }
    fs::write(&file, &good).unwrap();
    node.up();
    assert_eq!(fs::read_to_string(node.key("kept")).unwrap(), "kept");
    assert!(warnings(&node).is_empty());

    // The advice does what it says.
    node.lattice(&["down"]);
    DAMAGES[0].1(&file);
    node.up();
    node.lattice(&["store", "repair", "home"]);
    fs::write(node.key("new"), "new").unwrap();
    assert!(warnings(&node).is_empty(), "{:?}", warnings(&node));
    node.lattice(&["store", "verify"]);
}

fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn a_damaged_root_store_is_told_and_nothing_else_is_touched() {
    let node = founder();
    fs::write(node.key("kept"), "kept").unwrap();
    let file = store_file(&node, "root");
    node.lattice(&["down"]);
    let good = fs::read(&file).unwrap();
    for (what, spoil) in DAMAGES {
        spoil(&file);
        let before = contents(file.parent().unwrap());
        let said = no_start(&node, FAILED);
        assert!(said.error.starts_with("the mesh's root store can't be used: "), "{what}: {}", said.error);
        assert!(said.error.contains(file.to_str().unwrap()), "{what}: {}", said.error);
        assert!(said.hint.contains("join the mesh again"), "{what}: {}", said.hint);
        refused(&node, &["status"], NOT_RUNNING);
        assert_eq!(contents(file.parent().unwrap()), before, "{what}");
    }
    fs::write(&file, &good).unwrap();
    node.up();
    assert_eq!(fs::read_to_string(node.key("kept")).unwrap(), "kept");
}

#[test]
fn a_lost_root_store_comes_back_by_joining_again_and_only_so() {
    let first = founder();
    let second = joined(&first);
    fs::write(second.key("kept"), "kept").unwrap();
    let file = store_file(&second, "root");
    second.lattice(&["down"]);
    fs::remove_file(&file).unwrap();

    second.up();
    assert!(warnings(&second)[0].contains(file.to_str().unwrap()), "{:?}", warnings(&second));
    let said = refused(&second, &["mesh", "init"], REFUSED);
    assert!(said.error.contains("root store") && said.hint.contains("join that mesh again"), "{}", said.all());
    let stranger = founder();
    let other = stranger.lattice(&["mesh", "invite"]);
    assert!(refused(&second, &["mesh", "join", other.trim()], REFUSED).error.contains("root store"));

    let token = first.lattice(&["mesh", "invite"]);
    second.lattice(&["mesh", "join", token.trim()]);
    assert_eq!(fs::read_to_string(second.key("kept")).unwrap(), "kept");
    fs::write(second.key("after"), "after").unwrap();
    eventually("the first has what the second wrote before and after", || {
        first.key("kept").exists() && first.key("after").exists()
    });
    assert!(warnings(&second).is_empty());
    for node in [&first, &second] {
        assert_eq!(json(node, &["status"])["forks"], 0);
        assert_eq!(json(node, &["mesh", "status"])["members"], 2);
    }
}

#[test]
fn a_lost_store_comes_back_from_a_member_before_anything_new_is_written_so_that_nothing_forks() {
    let first = founder();
    let second = joined(&first);
    for n in 0..20 {
        fs::write(second.key(&format!("file{n}")), format!("before {n}")).unwrap();
    }
    eventually("the first has all of it", || first.key("file19").exists());
    let file = store_file(&second, "home");
    second.lattice(&["down"]);
    first.lattice(&["down"]);
    fs::remove_file(&file).unwrap();

    second.up();
    assert!(warnings(&second)[0].contains("the store 'home' was lost"), "{:?}", warnings(&second));
    let error = fs::write(second.key("early"), "early").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
    second.lattice(&["down"]);
    second.up();
    let said = refused(&second, &["kv", "put", "early", "early"], UNAVAILABLE);
    assert!(said.error.contains("was lost here") && said.hint.contains(" peers`"), "{}", said.all());

    first.up();
    eventually("the second may write again", || fs::write(second.key("after"), "after").is_ok());
    for n in 0..20 {
        assert_eq!(fs::read_to_string(second.key(&format!("file{n}"))).unwrap(), format!("before {n}"));
    }
    eventually("the first has what was written afterwards", || first.key("after").exists());
    for node in [&first, &second] {
        assert_eq!(json(node, &["status"])["forks"], 0);
        assert!(warnings(node).is_empty());
    }
}

#[test]
fn a_damaged_store_is_made_anew_from_what_is_sound_in_it_and_from_a_member_and_a_sound_one_is_left_alone() {
    let first = founder();
    let second = joined(&first);
    for n in 0..20 {
        fs::write(second.key(&format!("file{n}")), format!("before {n}")).unwrap();
    }
    eventually("the first has all of it", || first.key("file19").exists());
    for found in json(&second, &["store", "verify"]).as_array().unwrap() {
        assert_eq!(found["faults"], serde_json::json!([]), "{found}");
    }
    let file = store_file(&second, "home");

    // What is sound is left alone: with nobody online it could only be read from then on.
    first.lattice(&["down"]);
    assert!(second.lattice(&["store", "repair", "home"]).contains("'home' is sound: nothing was done"));
    assert_eq!(json(&second, &["store", "repair", "home"])["sound"], true);
    fs::write(second.key("alone"), "alone").unwrap();
    assert!(warnings(&second).is_empty(), "{:?}", warnings(&second));
    first.up();

    // It may be repaired at any time all the same: what is sound stays, and is readable at once.
    let repaired = json(&second, &["store", "repair", "home", "--force"]);
    assert!(repaired["kept"].as_u64().unwrap() >= 20, "{repaired}");
    assert_eq!(fs::read_to_string(second.key("file7")).unwrap(), "before 7");
    eventually("it may write again", || fs::write(second.key("between"), "between").is_ok());
    eventually("the first has that", || first.key("between").exists());

    second.lattice(&["down"]);
    fs::write(&file, vec![7; 8192]).unwrap();
    second.up();
    assert!(warnings(&second)[0].contains("the store 'home' can't be used"), "{:?}", warnings(&second));
    let output = second.attempt(&["store", "verify"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(FAILED) && said.contains("damaged: home"), "{said}");
    assert!(said.contains("store repair home`"), "{said}");
    refused(&second, &["store", "repair", "root"], REFUSED);
    second.lattice(&["store", "repair", "home"]);
    for n in 0..20 {
        let key = second.key(&format!("file{n}"));
        eventually("it comes back", || fs::read_to_string(&key).is_ok_and(|text| text == format!("before {n}")));
    }
    eventually("it may write again", || fs::write(second.key("after"), "after").is_ok());
    eventually("the first has that", || first.key("after").exists());
    for node in [&first, &second] {
        assert_eq!(json(node, &["status"])["forks"], 0);
        assert!(warnings(node).is_empty(), "{:?}", warnings(node));
        node.lattice(&["store", "verify"]);
    }
}

#[test]
fn a_node_goes_on_under_a_new_key_that_the_old_one_vouches_for_and_joins_again_if_that_was_removed() {
    let first = founder();
    let second = joined(&first);
    let me = |node: &Node<'_>| {
        let status = json(node, &["status"]);
        (status["node"].as_str().unwrap().to_owned(), status["name"].as_str().unwrap().to_owned())
    };
    let peer = |id: &str| {
        let peers = json(&first, &["peers"]);
        peers.as_array().unwrap().iter().find(|peer| peer["id"] == *id).cloned().unwrap_or_default()
    };
    fs::write(second.key("before"), "before").unwrap();
    eventually("the first has it", || first.key("before").exists());
    let (old, name) = me(&second);

    first.lattice(&["down"]);
    eventually("the first is missed", || json(&second, &["mesh", "status"])["online"] == 0);
    let said = refused(&second, &["node", "rekey", "--yes"], UNAVAILABLE);
    assert!(said.error.contains("must hear of the new key"), "{}", said.all());
    first.up();
    eventually("they are linked", || json(&second, &["mesh", "status"])["online"] == 1);
    assert!(refused(&second, &["node", "rekey"], REFUSED).all().contains("--yes"));
    // The first hears of the new key, and then the disk does not take it: so would a crash leave things.
    let obstacle = second.data().join("identity.key.old-1");
    std::os::unix::fs::symlink("nowhere", &obstacle).unwrap();
    assert!(refused(&second, &["node", "rekey", "--yes"], FAILED).error.contains("identity.key.old-1"));
    eventually("the old key's links are closed", || json(&second, &["mesh", "status"])["online"] == 0);
    fs::remove_file(obstacle).unwrap();
    let said = json(&second, &["node", "rekey", "--yes"]);
    assert_eq!(said["rejoin"], false);
    second.up();
    let (new, named) = me(&second);
    assert_eq!((new.as_str(), &named), (said["node"].as_str().unwrap(), &name));
    assert_ne!(new, old);
    fs::write(second.key("after"), "after").unwrap();
    eventually("the first has what the new key wrote", || first.key("after").exists());
    assert!(first.key("before").exists() && second.key("before").exists());
    assert_eq!((&peer(&old)["left"], &peer(&new)["role"]), (&true.into(), &"writer".into()));
    assert_eq!(peer(&new)["name"], *name);

    first.lattice(&["mesh", "revoke", &new, "--yes"]);
    eventually("the link is closed", || json(&second, &["mesh", "status"])["online"] == 0);
    // It has not heard of its removal, since nobody speaks to it any more; but that it hears.
    let warned = || json(&second, &["status"])["warnings"].to_string();
    eventually("it says who refuses it", || warned().contains("this node is no member"));
    let advice = format!("'lattice mesh role {name} writer'");
    assert!(warned().contains(&advice) && !node_is_told_to_invite(&second), "{}", warned());
    let said = refused(&second, &["node", "rekey", "--yes"], UNAVAILABLE);
    assert!(said.hint.contains("--rejoin"), "{}", said.all());
    let token = first.lattice(&["mesh", "invite"]);
    assert_eq!(json(&second, &["node", "rekey", "--rejoin", "--yes"])["rejoin"], true);
    second.up();
    second.lattice(&["mesh", "join", token.trim()]);
    assert_eq!(fs::read_to_string(second.key("before")).unwrap(), "before");
    fs::write(second.key("again"), "again").unwrap();
    eventually("the first has what the third key wrote", || first.key("again").exists());
    assert!(first.key("after").exists(), "what the second key wrote stays");
    assert_eq!(json(&first, &["status"])["forks"], 0);
}

/// Whether a node that is removed is told to do what only an admin can.
fn node_is_told_to_invite(node: &Node<'_>) -> bool {
    node.lattice(&["status"]).contains("mesh invite")
}

fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
}

#[test]
fn a_backup_that_is_put_back_is_brought_up_to_date_before_anything_is_written_so_that_nothing_forks() {
    let first = founder();
    let second = joined(&first);
    fs::write(second.key("early"), "early").unwrap();
    eventually("the first has it", || first.key("early").exists());
    second.lattice(&["down"]);
    let backup = second.data().with_extension("backup");
    copy(&second.data(), &backup);
    second.up();
    for n in 0..20 {
        fs::write(second.key(&format!("file{n}")), format!("after {n}")).unwrap();
    }
    eventually("the first has all of it", || first.key("file19").exists());
    second.lattice(&["down"]);
    fs::remove_dir_all(second.data()).unwrap();
    fs::rename(&backup, second.data()).unwrap();

    second.up();
    fs::write(second.key("new"), "new").unwrap();
    for n in 0..20 {
        assert_eq!(fs::read_to_string(second.key(&format!("file{n}"))).unwrap(), format!("after {n}"));
    }
    eventually("the first has what was written afterwards", || first.key("new").exists());
    for node in [&first, &second] {
        assert_eq!(json(node, &["status"])["forks"], 0);
        assert!(warnings(node).is_empty());
    }
}

#[test]
fn a_node_that_reaches_nobody_writes_after_a_moment_and_says_that_nobody_confirmed_it() {
    let first = founder();
    let second = joined(&first);
    first.lattice(&["down"]);
    second.lattice(&["down"]);
    second.up();
    fs::write(second.key("alone"), "alone").unwrap();
    assert!(warnings(&second).iter().any(|warning| warning.contains("no member has told")), "{:?}", warnings(&second));
    first.up();
    eventually("the first has it", || first.key("alone").exists());
    eventually("a member has told", || warnings(&second).is_empty());
    assert_eq!(json(&first, &["status"])["forks"], 0);
}

fn large(n: u32) -> Vec<u8> {
    (0..50_000u32).flat_map(|at| (at ^ n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect()
}

#[test]
fn a_damaged_index_of_large_values_is_named_and_moving_it_away_brings_them_back() {
    let node = founder();
    for n in 0..3 {
        fs::write(node.key(&format!("large{n}")), large(n)).unwrap();
    }
    node.lattice(&["down"]);
    let index = node.data().join("blobs/blobs.db");
    for (what, spoil) in &DAMAGES[..3] {
        spoil(&index);
        let said = no_start(&node, FAILED);
        assert!(said.error.contains(index.to_str().unwrap()), "{what}: {}", said.error);
        assert!(said.hint.contains("taken in again"), "{what}: {}", said.hint);
        fs::rename(&index, index.with_extension("damaged")).unwrap();
        node.up();
        for n in 0..3 {
            assert!(fs::read(node.key(&format!("large{n}"))).unwrap() == large(n), "{what}: number {n} is lost");
        }
        node.lattice(&["down"]);
    }
    assert!(!node.data().join("blobs/lost").exists());
}

#[test]
fn a_large_value_whose_file_is_damaged_is_never_read_short_and_comes_again_from_a_member() {
    let first = founder();
    let second = joined(&first);
    fs::write(first.key("large"), large(7)).unwrap();
    eventually("the second has all of it", || fs::read(second.key("large")).is_ok_and(|read| read == large(7)));
    second.lattice(&["down"]);
    let blobs = second.data().join("blobs");
    let file = contents(&blobs.join("data"))
        .into_iter()
        .map(|(path, _)| path)
        .find(|path| path.extension().unwrap() == "data");
    let file = file.unwrap();
    let cut = File::options().write(true).open(&file).unwrap();
    cut.set_len(100_000).unwrap();
    second.up();
    let error = fs::read(second.key("large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    let said = refused(&second, &["kv", "get", "large"], FAILED);
    assert!(said.error.contains(file.to_str().unwrap()) && said.hint.contains("blobs.db"), "{}", said.all());
    second.lattice(&["down"]);
    fs::remove_file(blobs.join("blobs.db")).unwrap();
    second.up();
    eventually("it has come again", || fs::read(second.key("large")).is_ok_and(|read| read == large(7)));
    assert_eq!(fs::metadata(blobs.join("lost").join(file.file_name().unwrap())).unwrap().len(), 100_000);
}

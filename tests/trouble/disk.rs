//! A full disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::harness::{Node, Room, eventually};
use crate::{FAILED, founder, json, refused, warnings};

/// Writes until the disk takes no more.
fn fill(file: &Path) {
    let mut file = File::options().create(true).append(true).open(file).unwrap();
    for size in [1 << 16, 1 << 12] {
        let zeros = vec![0; size];
        while file.write_all(&zeros).is_ok() {}
    }
}

/// 100,000 bytes that no other file has.
fn content(n: u32) -> Vec<u8> {
    (0..25_000u32).flat_map(|at| (at ^ n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect()
}

#[test]
fn on_a_full_disk_writing_stops_with_that_reason_loses_nothing_and_goes_on_when_there_is_room() {
    let room = Room::new("");
    let node = Node::within(&room);
    fs::create_dir(node.data()).unwrap();
    room.sh(&format!("mount -t tmpfs -o size=28m none {}", node.data().display()));
    node.up();
    node.lattice(&["mesh", "init"]);
    let data = room.path(&node.data());
    let keys = room.path(&node.keys());

    let mut kept = Vec::new();
    let refusal = (0..1_000).find_map(|n| {
        let name = format!("file{n}");
        // As a program that asks whether it was written: an error may come at any of the calls.
        let written = File::create(keys.join(&name))
            .and_then(|mut file| file.write_all(&content(n)).and_then(|()| file.sync_all()));
        match written {
            Ok(()) => kept.push(name),
            Err(error) => return Some(error),
        }
        None
    });
    assert_eq!(refusal.unwrap().raw_os_error(), Some(nix::libc::ENOSPC));
    assert!(!kept.is_empty(), "not a single file was taken");

    // Not before: what a refused write had taken is free again.
    fill(&data.join("filler"));
    assert!(warnings(&node)[0].contains("MiB left"), "{:?}", warnings(&node));
    let mut puts = Vec::new();
    let said = (0..1_000).find_map(|n| {
        let (name, value) = (format!("put{n}"), "y".repeat(15_000));
        let output = node.attempt(&["kv", "put", &name, &value]);
        if output.status.success() {
            puts.push(name);
            return None;
        }
        Some(refused(&node, &["kv", "put", &name, &value], FAILED))
    });
    let said = said.expect("the disk is full");
    assert!(said.error.contains("no space left on the disk"), "{}", said.error);
    assert!(said.hint.contains("free some space"), "{}", said.hint);
    for command in [&["mesh", "invite"][..], &["store", "create", "more"], &["chat", "post", "lobby", "hello"]] {
        let said = refused(&node, command, FAILED);
        assert!(said.all().contains("no space left"), "{command:?}: {}", said.all());
        assert!(said.hint.contains("free some space"), "{command:?}: {}", said.all());
    }
    assert!(warnings(&node).iter().any(|warning| warning.contains("the store 'home' takes no writes")));
    for name in &kept {
        assert_eq!(
            fs::metadata(keys.join(name)).unwrap().len(),
            100_000,
            "{name} can't be read while the disk is full"
        );
    }

    fs::remove_file(data.join("filler")).unwrap();
    eventually("with room there is writing again", || node.attempt(&["kv", "put", "after", "after"]).status.success());
    eventually("and nothing to be warned of but the little room", || {
        warnings(&node).iter().all(|warning| warning.contains("MiB left"))
    });
    node.kill();
    node.up();
    let keys = room.path(&node.keys());
    for (n, name) in (0..).zip(&kept) {
        assert!(fs::read(keys.join(name)).unwrap() == content(n), "{name} was acknowledged");
    }
    for name in &puts {
        assert_eq!(fs::read(keys.join(name)).unwrap().len(), 15_000, "{name} was acknowledged");
    }
    assert_eq!(json(&node, &["kv", "get", "after"])["value"], "after");
}

#[test]
fn a_node_starts_on_a_full_disk_and_shows_what_it_has() {
    let room = Room::new("");
    let node = Node::within(&room);
    fs::create_dir(node.data()).unwrap();
    room.sh(&format!("mount -t tmpfs -o size=28m none {}", node.data().display()));
    node.up();
    node.lattice(&["mesh", "init"]);
    node.lattice(&["kv", "put", "kept", "kept"]);
    fill(&room.path(&node.data().join("filler")));
    node.lattice(&["down"]);
    node.up();
    assert_eq!(json(&node, &["kv", "get", "kept"])["value"], "kept");
    assert_eq!(fs::read_to_string(room.path(&node.key("kept"))).unwrap(), "kept");
    let error = fs::write(room.path(&node.key("new")), "new").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
}

#[test]
fn what_comes_from_others_while_the_disk_is_full_comes_again_when_there_is_room() {
    let first = founder();
    let room = Room::new("");
    let second = Node::within(&room);
    fs::create_dir(second.data()).unwrap();
    room.sh(&format!("mount -t tmpfs -o size=28m none {}", second.data().display()));
    second.up();
    let token = first.lattice(&["mesh", "invite"]);
    second.lattice(&["mesh", "join", token.trim()]);
    fill(&room.path(&second.data().join("filler")));
    for n in 0..150 {
        fs::write(first.key(&format!("file{n}")), content(n).split_at(3_000).0).unwrap();
    }
    fs::write(first.key("large"), content(1_000)).unwrap();
    let full = |warning: &String| warning.contains("the store 'home' takes no writes");
    eventually("the second can take no more", || warnings(&second).iter().any(full));

    fs::remove_file(room.path(&second.data().join("filler"))).unwrap();
    let keys = room.path(&second.keys());
    eventually("the second has all of it", || fs::read_dir(&keys).is_ok_and(|names| names.count() == 151));
    for n in 0..150 {
        assert!(fs::read(keys.join(format!("file{n}"))).unwrap() == content(n).split_at(3_000).0);
    }
    eventually("the large one too", || fs::read(keys.join("large")).is_ok_and(|read| read == content(1_000)));
    eventually("nobody is warned any more", || warnings(&second).is_empty());
}

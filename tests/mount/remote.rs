//! What comes from elsewhere.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use lattice::stores::Merge;

use crate::world::{World, eventually};

#[test]
fn a_change_from_elsewhere_is_seen_at_once_although_the_kernel_had_the_old_one() {
    let world = World::new();
    fs::write(world.key("f"), b"old").unwrap();
    assert_eq!(fs::read(world.key("f")).unwrap(), b"old");
    world.there.pull(&world.here);
    world.there.put("f", b"newer and longer");
    world.here.pull(&world.there);
    eventually("the new content", || fs::read(world.key("f")).unwrap() == b"newer and longer");
    assert_eq!(fs::metadata(world.key("f")).unwrap().len(), 16);
}

#[test]
fn a_name_that_was_missing_is_there_once_another_machine_made_it_and_gone_once_it_removed_it() {
    let world = World::new();
    assert!(fs::metadata(world.key("d/f")).is_err());
    assert!(fs::metadata(world.key("d")).is_err());
    world.there.put("d/f", b"x");
    world.here.pull(&world.there);
    eventually("the file", || fs::read(world.key("d/f")).is_ok_and(|bytes| bytes == b"x"));
    world.there.delete("d/f");
    world.here.pull(&world.there);
    eventually("its end", || fs::metadata(world.key("d/f")).is_err());
    eventually("the end of its directory", || fs::metadata(world.key("d")).is_err());
}

#[test]
fn a_file_that_becomes_a_directory_elsewhere_does_so_here() {
    let world = World::new();
    fs::write(world.key("a"), b"file").unwrap();
    world.there.pull(&world.here);
    world.there.delete("a");
    world.there.put("a/b", b"below");
    world.here.pull(&world.there);
    eventually("the directory", || fs::read(world.key("a/b")).is_ok_and(|bytes| bytes == b"below"));
    assert_eq!(world.sh("ls a"), "b\n");
}

#[test]
fn a_write_supersedes_what_was_there_at_open_and_not_what_came_since() {
    let world = World::new();
    fs::write(world.key("f"), b"base").unwrap();
    world.there.pull(&world.here);
    let mut file = OpenOptions::new().write(true).truncate(true).open(world.key("f")).unwrap();
    world.there.put("f", b"theirs");
    world.here.pull(&world.there);
    file.write_all(b"mine").unwrap();
    drop(file);
    eventually("both versions", || world.here.heads("f").unwrap().all().len() == 2);
    assert_eq!(fs::read(world.key("f")).unwrap(), b"mine");
}

#[test]
fn a_write_that_saw_a_conflict_settles_it() {
    let world = World::new();
    fs::write(world.key("f"), b"base").unwrap();
    world.there.pull(&world.here);
    world.there.put("f", b"theirs");
    fs::write(world.key("f"), b"mine").unwrap();
    world.here.pull(&world.there);
    eventually("the conflict", || world.here.heads("f").unwrap().is_conflict());
    world.sh("echo settled > f");
    assert_eq!(world.here.heads("f").unwrap().all().len(), 1);
}

#[test]
fn an_atomic_save_does_not_supersede_what_came_while_it_was_written() {
    let world = World::new();
    fs::write(world.key("f"), b"base").unwrap();
    world.there.pull(&world.here);
    let mut temporary = OpenOptions::new().write(true).create_new(true).open(world.key("f.new")).unwrap();
    temporary.write_all(b"mine").unwrap();
    world.there.put("f", b"theirs");
    world.here.pull(&world.there);
    eventually("their version", || fs::read(world.key("f")).unwrap() == b"theirs");
    drop(temporary);
    fs::rename(world.key("f.new"), world.key("f")).unwrap();
    assert_eq!(world.here.heads("f").unwrap().all().len(), 2);
    assert_eq!(fs::read(world.key("f")).unwrap(), b"mine");
}

#[test]
fn appending_after_a_remote_change_keeps_the_remote_change() {
    let world = World::new();
    world.sh("echo one > log; cat log");
    world.there.pull(&world.here);
    world.there.put("log", b"one\ntwo\n");
    world.here.pull(&world.there);
    eventually("the change", || world.sh("cat log") == "one\ntwo\n");
    world.sh("echo three >> log");
    assert_eq!(world.here.get("log").unwrap(), b"one\ntwo\nthree\n");
}

/// A program that keeps a file open does not keep others from what came since.
#[test]
fn appending_to_a_file_that_another_program_has_open_keeps_what_came_from_elsewhere() {
    let world = World::new();
    let mut open = OpenOptions::new().append(true).create(true).open(world.key("log")).unwrap();
    open.write_all(b"one\n").unwrap();
    open.sync_all().unwrap();
    world.there.pull(&world.here);
    world.there.put("log", b"one\ntwo\n");
    world.here.pull(&world.there);
    eventually("the change", || world.sh("cat log") == "one\ntwo\n");
    world.sh("echo three >> log");
    assert_eq!(world.here.get("log").unwrap(), b"one\ntwo\nthree\n");
    // What the first one writes goes on from what is there now.
    open.write_all(b"four\n").unwrap();
    drop(open);
    eventually("the last", || world.here.get("log").unwrap() == b"one\ntwo\nthree\nfour\n");
    assert_eq!(world.here.heads("log").unwrap().all().len(), 1);
}

#[test]
fn attributes_set_while_a_file_is_open_are_kept_by_what_is_written_to_it_then() {
    let world = World::new();
    fs::write(world.key("f"), b"one").unwrap();
    let mut open = OpenOptions::new().append(true).open(world.key("f")).unwrap();
    world.sh("chmod 600 f");
    open.write_all(b" two").unwrap();
    open.sync_all().unwrap();
    world.sh("chmod 640 f");
    world.there.pull(&world.here);
    world.there.put("f", b"theirs");
    world.here.pull(&world.there);
    eventually("their version", || world.sh("cat f") == "theirs");
    world.sh("chmod 604 f");
    open.write_all(b" three").unwrap();
    drop(open);
    eventually("mine", || world.here.heads("f").unwrap().all().len() == 2);
    let heads = world.here.heads("f").unwrap();
    let mut found: Vec<_> = heads.all().iter().map(|head| (head.mode, head.content.size())).collect();
    found.sort();
    assert_eq!(found, [(0o604, 6), (0o640, 13)]);
}

#[test]
fn a_file_removed_elsewhere_reads_on_for_whoever_has_it_open() {
    let world = World::new();
    fs::write(world.key("f"), b"bytes").unwrap();
    world.there.pull(&world.here);
    let file = File::open(world.key("f")).unwrap();
    world.there.delete("f");
    world.here.pull(&world.there);
    eventually("its end", || fs::metadata(world.key("f")).is_err());
    assert_eq!(std::io::read_to_string(&file).unwrap(), "bytes");
}

#[test]
fn a_large_value_that_is_not_here_yet_is_waited_for_and_nothing_else_waits() {
    let world = World::new();
    let bytes = vec![7u8; 100_000];
    world.there.put("large", &bytes);
    let held = world.dir.path().join("held");
    fs::create_dir(&held).unwrap();
    for blob in fs::read_dir(&world.there.blobs).unwrap().flatten() {
        fs::rename(blob.path(), held.join(blob.file_name())).unwrap();
    }
    world.here.pull(&world.there);
    eventually("the name", || fs::metadata(world.key("large")).is_ok_and(|meta| meta.len() == 100_000));
    let path = world.key("large");
    let reader = std::thread::spawn(move || fs::read(path));
    world.sh("echo meanwhile > f; cat f");
    for blob in fs::read_dir(&held).unwrap().flatten() {
        fs::rename(blob.path(), world.here.blobs.join(blob.file_name())).unwrap();
    }
    assert_eq!(reader.join().unwrap().unwrap(), bytes);
}

/// The kernel asks twice where reading ahead fails.
#[test]
fn a_large_value_that_nobody_has_is_waited_for_once_and_is_an_error_then() {
    let world = World::new();
    let bytes = vec![7u8; 20_000];
    world.there.put("large", &bytes);
    let kept = world.dir.path().join("kept");
    fs::rename(&world.there.blobs, &kept).unwrap();
    fs::create_dir(&world.there.blobs).unwrap();
    world.here.pull(&world.there);
    eventually("the name", || fs::metadata(world.key("large")).is_ok());
    for (round, name) in [".history/large", "keys/large"].into_iter().enumerate() {
        let mut path = world.at.join("stores/home").join(name);
        if round == 0 {
            path = fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
        }
        let mut file = File::open(&path).unwrap();
        let error = file.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(world.here.waits.load(Ordering::SeqCst), u32::try_from(round).unwrap() + 1, "{name}");
    }
    // What is known to be absent is found when it has come.
    let mut file = File::open(world.key("large")).unwrap();
    file.read(&mut [0; 10]).unwrap_err();
    for blob in fs::read_dir(&kept).unwrap().flatten() {
        fs::rename(blob.path(), world.here.blobs.join(blob.file_name())).unwrap();
    }
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read, bytes);
}

#[test]
fn a_store_that_is_declared_appears_and_one_that_is_ended_goes() {
    let world = World::new();
    assert!(fs::metadata(world.at.join("stores/more")).is_err());
    let create = lattice::stores::root::Op::CreateStore { name: "more".into(), kind: "kv".into() };
    world.here.registry.root().submit(&[create], lattice::replication::log::Origin::Local).unwrap();
    world.here.registry.refresh();
    eventually("the store", || fs::metadata(world.at.join("stores/more/keys")).is_ok());
    let id = world.here.registry.stores().into_iter().find(|store| store.name == "more").unwrap().id;
    let delete = lattice::stores::root::Op::DeleteStore { id };
    world.here.registry.root().submit(&[delete], lattice::replication::log::Origin::Local).unwrap();
    world.here.registry.refresh();
    eventually("its end", || fs::metadata(world.at.join("stores/more/keys")).is_err());
}

#[test]
fn a_store_that_takes_the_name_of_another_is_found_by_it_at_once() {
    use lattice::replication::log::Origin;
    use lattice::stores::root::Op;
    let world = World::new();
    let root = world.here.registry.root();
    let create = Op::CreateStore { name: "more".into(), kind: "kv".into() };
    let id = || world.here.registry.stores().into_iter().find(|store| store.name == "more").unwrap().id;
    root.submit(std::slice::from_ref(&create), Origin::Local).unwrap();
    world.here.registry.refresh();
    eventually("the store", || fs::metadata(world.at.join("stores/more/keys")).is_ok());
    for number in 0..5 {
        let file = world.at.join("stores/more/keys/f");
        assert!(!file.exists(), "{number}");
        fs::write(&file, b"x").unwrap();
        root.submit(&[Op::DeleteStore { id: id() }, create.clone()], Origin::Local).unwrap();
        world.here.registry.refresh();
    }
}

/// What is being written is shown in place of what came meanwhile: nobody has seen that.
#[test]
fn removing_or_replacing_a_file_that_is_being_written_keeps_what_came_from_elsewhere() {
    for (does, shows) in [("rm f", "theirs"), ("mv g f", "other"), ("cp g h.new; mv h.new f", "other")] {
        let world = World::new();
        world.sh("echo -n base > f; echo -n other > g");
        world.settled();
        world.there.pull(&world.here);
        let mut file = OpenOptions::new().write(true).open(world.key("f")).unwrap();
        file.write_all(b"mine").unwrap();
        world.there.put("f", b"theirs");
        world.here.pull(&world.there);
        world.sh(does);
        eventually(does, || fs::read(world.key("f")).is_ok_and(|bytes| bytes == shows.as_bytes()));
        let heads = world.here.heads("f").unwrap();
        let theirs = world.there.heads("f").unwrap().visible().unwrap().id;
        assert!(heads.all().iter().any(|head| head.id == theirs), "{does}");
        assert_eq!(heads.all().len(), if does == "rm f" { 1 } else { 2 }, "{does}");
    }
}

#[test]
fn a_new_file_that_is_renamed_leaves_what_came_from_elsewhere_under_its_first_name() {
    let world = World::new();
    let mut file = OpenOptions::new().write(true).create_new(true).open(world.key("new")).unwrap();
    file.write_all(b"mine").unwrap();
    world.there.put("new", b"theirs");
    world.here.pull(&world.there);
    fs::rename(world.key("new"), world.key("f")).unwrap();
    eventually("theirs", || fs::read(world.key("new")).is_ok_and(|bytes| bytes == b"theirs"));
    assert_eq!(fs::read(world.key("f")).unwrap(), b"mine");
    assert_eq!(world.here.get("new").unwrap(), b"theirs");
}

#[test]
fn what_takes_the_place_of_a_file_that_was_removed_a_moment_ago_keeps_what_came_from_elsewhere_meanwhile() {
    let world = World::new();
    for round in 0..50 {
        let (name, aside) = (format!("f{round}"), format!("f{round}~"));
        fs::write(world.key(&name), b"base").unwrap();
        world.there.pull(&world.here);
        world.there.put(&name, b"theirs");
        fs::rename(world.key(&name), world.key(&aside)).unwrap();
        world.here.pull(&world.there);
        // Theirs shows if this machine was too slow: then it is tried again.
        let Ok(mut file) = OpenOptions::new().write(true).create_new(true).open(world.key(&name)) else { continue };
        file.write_all(b"mine").unwrap();
        drop(file);
        eventually("both versions", || world.here.heads(&name).unwrap().all().len() == 2);
        return;
    }
    panic!("never in time");
}

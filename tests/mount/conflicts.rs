//! `/.heads`.

use std::fs;

use lattice::stores::Merge;

use crate::world::{World, eventually};

/// Both machines write `d/f`, neither having seen the other.
fn conflict() -> World {
    let world = World::new();
    world.sh("mkdir d; echo base > d/f");
    world.there.pull(&world.here);
    world.there.put("d/f", b"theirs\n");
    world.sh("echo mine > d/f");
    world.here.pull(&world.there);
    eventually("the conflict", || world.here.heads("d/f").unwrap().all().len() == 2);
    world
}

fn files(world: &World) -> Vec<String> {
    world.sh("find $MESH/.heads -type f | sort").lines().map(str::to_owned).collect()
}

/// The file of the head with this content.
fn head(world: &World, content: &str) -> String {
    files(world).into_iter().find(|file| fs::read_to_string(file).unwrap() == content).unwrap()
}

#[test]
fn without_a_conflict_there_is_no_file() {
    let world = World::new();
    world.sh("echo x > f");
    assert!(files(&world).is_empty());
    assert_eq!(world.sh("ls $MESH/stores/home/.heads/"), "");
}

#[test]
fn a_conflict_shows_each_head_as_a_file_the_shown_one_first() {
    let world = conflict();
    let found = files(&world);
    assert_eq!(found.len(), 2);
    let name = |n: usize| found[n].rsplit('/').next().unwrap().to_owned();
    let shown = fs::read_to_string(world.key("d/f")).unwrap();
    assert_eq!(fs::read_to_string(&found[0]).unwrap(), shown);
    assert!(name(0).starts_with("0-") && name(1).starts_with("1-"));
    assert!(found.iter().any(|file| file.contains("-here-")) && found.iter().any(|file| file.contains("-there-")));
    assert_eq!(world.sh("ls $MESH/stores/home/.heads/d"), "f\n");
}

#[test]
fn copying_a_head_onto_the_key_settles() {
    let world = conflict();
    let theirs = head(&world, "theirs\n");
    world.sh(&format!("cp {theirs} d/f"));
    assert!(files(&world).is_empty());
    assert_eq!(fs::read_to_string(world.key("d/f")).unwrap(), "theirs\n");
    world.there.pull(&world.here);
    assert_eq!(world.there.heads("d/f").unwrap().all().len(), 1);
}

#[test]
fn moving_a_head_onto_the_key_settles_in_one_entry() {
    let world = conflict();
    let theirs = head(&world, "theirs\n");
    assert_eq!(world.entries_of(&format!("mv -f {theirs} d/f")), 1);
    assert!(files(&world).is_empty());
    assert_eq!(fs::read_to_string(world.key("d/f")).unwrap(), "theirs\n");
    assert_eq!(world.here.get("d/f").unwrap(), b"theirs\n");
}

#[test]
fn removing_the_head_that_loses_settles_in_one_entry() {
    for (goes, stays) in [("theirs\n", "mine\n"), ("mine\n", "theirs\n")] {
        let world = conflict();
        let loser = head(&world, goes);
        assert_eq!(world.entries_of(&format!("rm -f {loser}")), 1);
        assert!(files(&world).is_empty());
        eventually("the other to show", || fs::read_to_string(world.key("d/f")).unwrap() == stays);
    }
}

#[test]
fn a_deletion_is_a_head_of_no_length_named_so() {
    let world = World::new();
    world.sh("echo base > f");
    world.there.pull(&world.here);
    world.there.delete("f");
    world.sh("echo mine > f");
    world.here.pull(&world.there);
    eventually("the conflict", || world.here.heads("f").unwrap().all().len() == 2);
    let deleted = files(&world).into_iter().find(|file| file.ends_with(".deleted")).unwrap();
    assert_eq!(fs::metadata(&deleted).unwrap().len(), 0);
    world.sh(&format!("rm -f {deleted}"));
    assert!(files(&world).is_empty());
    assert_eq!(world.here.get("f").unwrap(), b"mine\n");
}

#[test]
fn a_file_that_keys_lie_below_is_a_conflict_and_the_directory_shows() {
    let world = World::new();
    world.sh("echo file > a");
    world.there.put("a/b", b"below");
    world.here.pull(&world.there);
    eventually("the directory", || fs::read(world.key("a/b")).is_ok());
    let found = files(&world);
    assert_eq!(found.len(), 1);
    assert_eq!(fs::read_to_string(&found[0]).unwrap(), "file\n");
    world.sh(&format!("rm -f {}", found[0]));
    assert!(files(&world).is_empty());
}

#[test]
fn renaming_takes_a_conflict_along() {
    let world = conflict();
    assert_eq!(world.entries_of("mv d e"), 1);
    assert_eq!(world.here.heads("e/f").unwrap().all().len(), 2);
    assert_eq!(files(&world).len(), 2);
    assert!(files(&world)[0].contains("/e/f/"));
}

#[test]
fn a_directory_that_is_a_head_is_a_directory_and_two_of_them_are_no_conflict() {
    let world = World::new();
    world.there.pull(&world.here);
    world.there.put("a", b"a file\n");
    world.sh("mkdir a");
    world.there.make_directory("b", 0o700);
    world.sh("mkdir -m 755 b");
    world.settled();
    world.here.pull(&world.there);
    eventually("the conflict", || world.here.heads("a").unwrap().all().len() == 2);
    assert_eq!(world.here.heads("b").unwrap().all().len(), 2);
    assert_eq!(files(&world).len(), 1, "the file's head alone is a file");
    let directory = world.sh("find $MESH/.heads/home/a -mindepth 1 -type d").trim().to_owned();
    assert_eq!(world.sh(&format!("ls -A {directory}")), "");
    assert_eq!(world.entries_of(&format!("rmdir {directory}")), 1);
    assert!(files(&world).is_empty());
    eventually("the file", || fs::read_to_string(world.key("a")).is_ok_and(|text| text == "a file\n"));
}

//! When a version is made, and by whose close; and that nothing is lost where two things happen at once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use lattice::stores::Merge;

use crate::world::{World, eventually};

fn writing(world: &World, path: &str) -> File {
    OpenOptions::new().write(true).open(world.key(path)).unwrap()
}

#[test]
fn of_two_that_have_a_file_open_each_close_is_a_version_with_what_both_wrote_so_far() {
    let world = World::new();
    fs::write(world.key("f"), b"------").unwrap();
    let before = world.here.entries();
    let (one, other) = (writing(&world, "f"), writing(&world, "f"));
    one.write_all_at(b"aa", 0).unwrap();
    other.write_all_at(b"bb", 2).unwrap();
    drop(one);
    eventually("the first version", || world.here.get("f").unwrap() == b"aabb--");
    other.write_all_at(b"cc", 4).unwrap();
    assert_eq!(world.sh("cat f"), "aabbcc");
    assert_eq!(world.here.get("f").unwrap(), b"aabb--");
    drop(other);
    eventually("the second version", || world.here.get("f").unwrap() == b"aabbcc");
    world.settled();
    assert_eq!(world.here.entries(), before + 2);
    assert_eq!(world.here.heads("f").unwrap().all().len(), 1);
}

#[test]
fn a_file_cut_to_nothing_is_a_version_when_its_last_descriptor_goes_and_not_before() {
    let world = World::new();
    fs::write(world.key("f"), b"content").unwrap();
    let before = world.here.entries();
    let cut = OpenOptions::new().write(true).truncate(true).open(world.key("f")).unwrap();
    let again = cut.try_clone().unwrap();
    drop(cut);
    world.settled();
    assert_eq!((world.here.entries(), world.here.get("f").unwrap()), (before, b"content".to_vec()));
    assert_eq!(fs::metadata(world.key("f")).unwrap().len(), 0);
    drop(again);
    eventually("the empty version", || world.here.get("f").unwrap().is_empty());
    assert_eq!(world.here.entries(), before + 1);
}

#[test]
fn a_file_that_is_opened_to_be_filled_anew_is_no_version_while_it_is_empty_however_soon_after_another_close() {
    let world = World::new();
    let keys = world.key("");
    let fill = &|path: &str| {
        let file = keys.join(path);
        for _ in 0..150 {
            // The kernel tells of the last descriptor's end later than of the close.
            fs::write(&file, b"content").unwrap();
            let mut cut = OpenOptions::new().write(true).truncate(true).open(&file).unwrap();
            cut.write_all(b"anew").unwrap();
        }
    };
    let paths = ["a", "b", "c", "d", "e", "f", "g", "h"];
    std::thread::scope(|scope| paths.iter().for_each(|path| drop(scope.spawn(move || fill(path)))));
    world.settled();
    let versions = |path: &&str| world.here.home().history(path.as_bytes()).unwrap();
    let versions: Vec<_> = paths.iter().flat_map(versions).collect();
    let empty = versions.iter().filter(|version| version.head.content.size() == 0).count();
    assert_eq!((versions.len(), empty), (2_400, 0));
}

#[test]
fn a_descriptor_that_a_child_inherits_makes_no_version_unless_the_child_writes() {
    let world = World::new();
    fs::write(world.key("f"), b"old").unwrap();
    let versions = |world: &World| world.here.home().history(b"f").unwrap().len();
    assert_eq!(versions(&world), 1);
    let script = "
import os
def child(work):
    pid = os.fork()
    if pid == 0: work(); os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
f = os.open('f', os.O_WRONLY | os.O_TRUNC)
child(lambda: os.close(f)); os.write(f, b'par'); child(lambda: os.close(f))
os.set_inheritable(f, True); child(lambda: os.execvp('true', ['true'])); os.write(f, b'ent')
os.close(f)";
    world.sh(&format!("python3 -c \"{script}\""));
    eventually("the version", || world.here.get("f").unwrap() == b"parent");
    world.settled();
    assert_eq!(versions(&world), 2);
    // What a child writes is one when the child is done with it, or its parent.
    world.sh("exec 5>> f; sh -c 'printf \" child\" >&5'; exec 5>&-");
    eventually("the child's version", || world.here.get("f").unwrap() == b"parent child");
}

#[test]
fn a_file_open_while_it_changes_elsewhere_makes_two_heads_both_of_which_are_read() {
    let world = World::new();
    fs::write(world.key("f"), b"base\n").unwrap();
    world.there.pull(&world.here);
    let mut file = OpenOptions::new().append(true).open(world.key("f")).unwrap();
    world.there.put("f", b"theirs\n");
    world.here.pull(&world.there);
    file.write_all(b"mine\n").unwrap();
    drop(file);
    eventually("both", || world.here.heads("f").unwrap().all().len() == 2);
    assert_eq!(world.sh("cat f; cat $MESH/.heads/home/f/* | sort"), "base\nmine\nbase\nmine\ntheirs\n");
}

#[test]
fn what_is_written_in_a_directory_that_is_removed_elsewhere_meanwhile_is_kept_under_its_name() {
    let world = World::new();
    world.sh("mkdir -p d/e; echo old > d/e/f; sync d d/e");
    world.there.pull(&world.here);
    let mut old = OpenOptions::new().append(true).open(world.key("d/e/f")).unwrap();
    let mut new = File::create(world.key("d/e/new")).unwrap();
    let mut temporary = OpenOptions::new().write(true).create_new(true).open(world.key("d/e/tmp")).unwrap();
    old.write_all(b"more\n").unwrap();
    new.write_all(b"begun, ").unwrap();
    temporary.write_all(b"saved\n").unwrap();
    for gone in ["d/e/f", "d/e", "d"] {
        world.there.delete(gone);
    }
    world.here.pull(&world.there);
    world.settled();
    new.write_all(b"done\n").unwrap();
    drop((old, new, temporary));
    eventually("what was written", || {
        let is = |path: &str, content: &[u8]| world.here.get(path).is_some_and(|bytes| bytes == content);
        is("d/e/f", b"old\nmore\n") && is("d/e/new", b"begun, done\n") && is("d/e/tmp", b"saved\n")
    });
    eventually("its directory", || world.try_sh("test \"$(cat d/e/f d/e/new d/e/tmp | wc -l)\" = 4").status.success());
    assert_eq!(world.sh("ls d/e; mv d/e/tmp d/e/kept; cat d/e/kept; rm -r d; ls"), "f\nnew\ntmp\nsaved\n");
}

/// As above, for what is renamed and removed on a path that is no more.
#[test]
fn an_atomic_save_in_a_directory_that_is_removed_elsewhere_meanwhile_is_kept() {
    let world = World::new();
    world.sh("mkdir d; echo old > d/f; sync d");
    world.there.pull(&world.here);
    let mut temporary = OpenOptions::new().write(true).create_new(true).open(world.key("d/f.tmp")).unwrap();
    temporary.write_all(b"saved\n").unwrap();
    world.there.delete("d/f");
    world.there.delete("d");
    world.here.pull(&world.there);
    world.settled();
    drop(temporary);
    // The name that it was given is found, or the error says that it is not; either way what was written is there.
    let renamed = fs::rename(world.key("d/f.tmp"), world.key("d/f")).is_ok();
    let name = if renamed { "d/f" } else { "d/f.tmp" };
    eventually("the save", || world.here.get(name).is_some_and(|bytes| bytes == b"saved\n"));
    eventually("its name", || world.try_sh(&format!("grep -q saved {name}")).status.success());
}

#[test]
fn a_directory_that_is_made_and_the_first_file_in_it_are_one_entry_for_others() {
    let world = World::new();
    // A machine that is busy may take longer between two calls than the directories wait.
    eventually("one entry", || {
        let before = world.here.entries();
        fs::create_dir_all(world.key("d/e")).unwrap();
        fs::write(world.key("d/e/f"), b"x").unwrap();
        let one = world.here.entries() == before + 1;
        assert!(world.here.heads("d").is_some() && world.here.heads("d/e").is_some());
        if !one {
            fs::remove_dir_all(world.key("d")).unwrap();
        }
        one
    });
    // What waits is not waited for by those who ask that it be safe.
    world.sh("mkdir g; ln -s x l; rm d/e/f; sync . d/e");
    assert!(world.here.heads("g").unwrap().visible().is_some());
    assert!(world.here.get("l").is_some());
    assert!(world.here.get("d/e/f").is_none());
    assert_eq!(world.entries_of("chmod 750 g; touch -d 2001-01-01 g; sync g; chmod 700 g; rmdir g"), 2);
    assert_eq!(world.sh("ls"), "d\nl\n");
}

#[test]
fn a_file_that_is_removed_is_gone_at_once_here_and_for_others_once_its_remover_is_done() {
    let world = World::new();
    world.sh("echo x > f; echo y > g; mkdir d; echo z > d/h");
    world.settled();
    // A program that goes on for long.
    let gone = |path: &str| world.here.get(path).is_none();
    fs::remove_file(world.key("f")).unwrap();
    assert!(!world.key("f").exists() && !world.sh("ls").contains('f'));
    fs::remove_file(world.key("g")).unwrap();
    assert!(gone("f"), "it did something else since");
    eventually("the other", || gone("g"));
    fs::remove_file(world.key("d/h")).unwrap();
    fs::remove_dir(world.key("d")).unwrap();
    assert!(gone("d/h") && world.here.heads("d").unwrap().visible().is_none());
    // What came from elsewhere meanwhile shows again.
    world.sh("echo mine > k");
    world.there.pull(&world.here);
    world.there.put("k", b"theirs\n");
    fs::remove_file(world.key("k")).unwrap();
    world.here.pull(&world.there);
    eventually("what came", || world.sh("cat k 2>/dev/null || true") == "theirs\n");
}

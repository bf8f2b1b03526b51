//! What people's programs do.

use std::fs;

use crate::world::World;

/// A tree with a bit of everything that is kept.
const TREE: &str = "
    mkdir -p $SPARE/tree/sub/empty
    printf one > $SPARE/tree/one; chmod 640 $SPARE/tree/one
    head -c 50000 /dev/zero > $SPARE/tree/sub/large
    printf x > $SPARE/tree/sub/exec; chmod 755 $SPARE/tree/sub/exec
    : > $SPARE/tree/sub/nothing
    ln -s ../one $SPARE/tree/sub/link
    touch -d '2020-01-02 03:04:05.5 UTC' $SPARE/tree/one $SPARE/tree/sub/large
    touch -h -d '2019-01-02 03:04:05 UTC' $SPARE/tree/sub/link
    touch -d '2018-01-02 03:04:05 UTC' $SPARE/tree/sub/empty $SPARE/tree/sub $SPARE/tree
";

const COMPARE: &str = "rsync -ani --delete --checksum --no-owner --no-group";

#[test]
fn cp_a_copies_a_tree_so_that_nothing_differs_here_or_elsewhere() {
    let world = World::new();
    world.sh(TREE);
    world.sh("cp -a $SPARE/tree tree");
    assert_eq!(world.sh(&format!("{COMPARE} $SPARE/tree/ tree/")), "");
    world.settled();
    assert_eq!(world.sh(&format!("{COMPARE} $SPARE/tree/ tree/")), "");
    world.there.pull(&world.here);
    let theirs = world.there.home();
    for path in
        ["tree", "tree/one", "tree/sub", "tree/sub/empty", "tree/sub/large", "tree/sub/link", "tree/sub/nothing"]
    {
        let mine = *world.here.heads(path).unwrap().visible().unwrap();
        let their = *theirs.heads(path.as_bytes()).unwrap().unwrap().visible().unwrap();
        assert_eq!(mine, their, "{path}");
        let meta = fs::symlink_metadata(world.dir.path().join(path)).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(their.mtime, meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), "{path}");
    }
}

#[test]
fn each_file_of_cp_a_is_one_entry() {
    let world = World::new();
    world.sh(TREE);
    assert_eq!(world.entries_of("cp -a $SPARE/tree/one one"), 1);
}

#[test]
fn rsync_a_copies_a_tree_and_then_finds_nothing_to_do() {
    let world = World::new();
    world.sh(TREE);
    world.sh("rsync -a $SPARE/tree/ tree/");
    world.settled();
    assert_eq!(world.sh(&format!("{COMPARE} $SPARE/tree/ tree/")), "");
    assert_eq!(world.entries_of("printf changed > $SPARE/tree/one; rsync -a $SPARE/tree/one tree/"), 1);
    assert_eq!(world.here.get("tree/one").unwrap(), b"changed");
}

#[test]
fn moving_a_tree_is_one_entry_and_all_of_it_arrives() {
    let world = World::new();
    world.sh(TREE);
    world.sh("cp -a $SPARE/tree tree");
    world.settled();
    assert_eq!(world.entries_of("mv tree other"), 1);
    assert_eq!(world.sh(&format!("{COMPARE} $SPARE/tree/sub/ other/sub/")), "");
    assert_eq!(world.sh("ls -A"), "other\n");
    assert!(world.here.heads("tree/one").unwrap().visible().is_none());
    assert_eq!(world.entries_of("mkdir in; mv other/one in/two"), 2);
    assert_eq!(world.sh("cat in/two"), "one");
}

#[test]
fn moving_a_tree_that_no_entry_holds_copies_it() {
    let world = World::new();
    world.sh("mkdir big; for n in $(seq 900); do : > big/a-rather-long-name-for-a-file-$n; done");
    world.settled();
    world.sh("mv big other");
    assert_eq!(world.sh("ls other | wc -l; ls"), "900\nother\n");
}

#[test]
fn a_tree_moved_while_its_files_wait_to_be_published_arrives_whole() {
    let world = World::new();
    world.sh(TREE);
    world.sh("cp -a $SPARE/tree tree; mv tree other");
    world.settled();
    assert_eq!(world.sh(&format!("{COMPARE} $SPARE/tree/sub/ other/sub/")), "");
    assert!(world.here.get("other/sub/exec").is_some());
    assert!(world.here.get("tree/sub/exec").is_none());
}

#[test]
fn sed_i_is_one_entry() {
    let world = World::new();
    world.sh("echo one > f");
    assert_eq!(world.entries_of("sed -i s/one/two/ f"), 1);
    assert_eq!(world.here.get("f").unwrap(), b"two\n");
    assert_eq!(world.sh("ls -A"), "f\n");
}

#[test]
fn a_save_in_place_with_fsync_and_chmod_is_one_entry() {
    let world = World::new();
    world.sh("echo one > f");
    let script = "
import os
f = os.open('f', os.O_WRONLY | os.O_TRUNC)
os.write(f, b'two\\n')
os.fsync(f)
os.fchmod(f, 0o644)
os.close(f)";
    assert_eq!(world.entries_of(&format!("python3 -c \"{script}\"")), 1);
    assert_eq!(world.here.get("f").unwrap(), b"two\n");
}

#[test]
fn a_save_that_moves_the_old_file_to_a_backup_first_is_one_entry() {
    let world = World::new();
    world.sh("echo one > f");
    let save = "echo -n > 4913; rm 4913; mv f f~; echo two > f; rm f~";
    assert_eq!(world.entries_of(save), 1);
    assert_eq!(world.here.get("f").unwrap(), b"two\n");
    assert!(!world.here.heads("f").unwrap().is_conflict());
    assert_eq!(world.sh("ls -A"), "f\n");
    let history = world.here.home().history(b"f").unwrap();
    assert!(history.iter().all(|version| version.head.is_live()), "the file was gone for others meanwhile");
}

#[test]
fn a_backup_that_is_kept_reads_as_the_file_was() {
    let world = World::new();
    world.sh("echo one > f");
    assert_eq!(world.entries_of("mv f f~; echo two > f"), 1);
    assert_eq!(world.sh("cat f~ f"), "one\ntwo\n");
    assert_eq!(world.entries_of("mv f~ g"), 1);
    assert_eq!(world.here.get("g").unwrap(), b"one\n");
}

#[test]
fn a_file_moved_to_a_backup_and_not_replaced_is_deleted_elsewhere() {
    let world = World::new();
    world.sh("echo one > f");
    assert_eq!(world.entries_of("mv f f~"), 1);
    assert_eq!(world.here.get("f"), None);
    assert_eq!(world.sh("cat f~; ls"), "one\nf~\n");
}

#[test]
fn a_backup_that_is_moved_back_is_no_entry() {
    let world = World::new();
    world.sh("echo one > f");
    assert_eq!(world.entries_of("mv f f~; mv f~ f"), 0);
    assert_eq!(world.sh("cat f"), "one\n");
    assert_eq!(world.here.get("f").unwrap(), b"one\n");
}

#[test]
fn what_editors_leave_beside_a_file_makes_no_entry() {
    let world = World::new();
    assert_eq!(world.entries_of("echo x > .f.swp; echo y > '#f#'; ln -s me@host .#f; mv '#f#' g~"), 0);
    assert_eq!(world.sh("ls -A; readlink .#f; cat g~"), ".#f\n.f.swp\ng~\nme@host\ny\n");
}

#[test]
fn names_can_be_exchanged_in_one_entry() {
    let world = World::new();
    world.sh("echo a > a; mkdir b; echo c > b/c");
    let script = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.renameat2(-100, b'a', -100, b'b', 2) == 0, ctypes.get_errno()";
    assert_eq!(world.entries_of(&format!("python3 -c \"{script}\"")), 1);
    assert_eq!(world.sh("cat b a/c"), "a\nc\n");
    assert_eq!(world.here.get("b").unwrap(), b"a\n");
}

#[test]
fn install_tar_and_git_work() {
    let world = World::new();
    world.sh(TREE);
    world.sh("install -m 600 $SPARE/tree/one installed; tar -C $SPARE -cf - tree | tar xf -");
    assert_eq!(world.sh("stat -c %a installed"), "600\n");
    world.settled();
    assert_eq!(world.sh(&format!("{COMPARE} $SPARE/tree/ tree/")), "");
    if world.try_sh("command -v git").status.success() {
        world.sh("git init -q repo; cd repo; git config user.email a@b; git config user.name n
             echo x > f; git add f; git commit -qm one; echo y >> f; git commit -qam two; git fsck");
        assert_eq!(world.sh("cd repo; git status --porcelain; git log --oneline | wc -l"), "2\n");
    }
}

#[test]
fn a_directory_shows_when_its_names_changed_and_the_time_that_was_set_for_it() {
    let world = World::new();
    world.sh("mkdir d; touch -d '2001-01-01 UTC' d");
    assert_eq!(world.sh("stat -c %Y d"), "978307200\n");
    world.sh("touch d/f");
    assert_ne!(world.sh("stat -c %Y d"), "978307200\n");
    world.settled();
    world.sh("touch -d '2001-01-01 UTC' d");
    assert_eq!(world.sh("stat -c %Y d"), "978307200\n");
}

#[test]
fn find_grep_and_rm_r_walk_a_tree() {
    let world = World::new();
    world.sh("mkdir -p a/b/c; for n in 1 2 3; do echo needle$n > a/b/f$n; done");
    assert_eq!(world.sh("grep -rl needle2 ."), "./a/b/f2\n");
    assert_eq!(world.sh("find . -type f | wc -l"), "3\n");
    world.sh("rm -r a");
    assert_eq!(world.sh("find ."), ".\n");
    assert_eq!(world.here.home().count().unwrap(), 0);
}

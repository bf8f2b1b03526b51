//! `.tx`: what is staged in a directory becomes one entry, or none.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use lattice::clock;
use lattice::replication::log::Origin;
use lattice::replication::membership::Role;
use lattice::stores::Merge;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use crate::world::{World, eventually};

/// A path in the `.tx` of the store `home`.
fn tx(world: &World, path: &str) -> PathBuf {
    world.at.join("stores/home/.tx").join(path)
}

/// The number with which a call failed.
fn number<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn commit(world: &World, name: &str) -> std::io::Result<()> {
    fs::rename(tx(world, name), tx(world, "commit"))
}

const TREE: &str = "mkdir -p $SPARE/tree/a/b $SPARE/tree/empty; cd $SPARE/tree; echo one > one; echo deep > a/b/deep
    head -c 100000 /dev/urandom > large; ln -s a/b link; chmod 640 one; chmod 750 a; touch -d '2001-02-03 04:05:06' a/b/deep a
    cd -";

#[test]
fn a_tree_that_is_copied_into_a_transaction_is_one_entry_when_it_is_committed_and_none_before() {
    let world = World::new();
    world.sh(TREE);
    let before = world.here.entries();
    world.sh("mkdir ../.tx/deploy; cp -a $SPARE/tree ../.tx/deploy/; diff -r $SPARE/tree ../.tx/deploy/tree");
    assert_eq!(world.sh("ls; ls ../.tx"), "deploy\n", "nothing is in the store yet");
    world.settled();
    assert_eq!(world.here.entries(), before);
    assert_eq!(world.sh("mv ../.tx/deploy ../.tx/commit; ls"), "tree\n");
    assert_eq!(world.here.entries(), before + 1);
    let facts =
        "find . -type d -exec stat -c '%n %f %Y' {} + | sort; find . ! -type d -exec stat -c '%n %f %Y %s' {} + | sort
        find . -type f -exec md5sum {} + | sort; readlink link";
    assert_eq!(world.sh(&format!("cd tree; {facts}")), world.sh(&format!("cd $SPARE/tree; {facts}")));
    assert_eq!(world.sh("ls ../.tx"), "", "it is over");
    assert_eq!(number(fs::metadata(tx(&world, "commit"))), libc::ENOENT);
    assert_eq!(world.sh("ls ../.history/tree/a/b/deep | wc -l"), "1\n");
    let last = world.sh("tail -n 1 ../.log");
    assert!(last.contains("tree"), "{last}");
    world.there.pull(&world.here);
    assert_eq!(world.there.get("tree/a/b/deep").unwrap(), b"deep\n");
}

#[test]
fn any_program_works_on_what_is_staged_as_on_a_disk() {
    let world = World::new();
    world.sh(
        "mkdir ../.tx/t; cd ../.tx/t; mkdir -p d/e; echo one > d/f; echo two >> d/f; sed -i s/one/1/ d/f; cp d/f d/g; mv d/g g
         ln -s d/f l; ln -sf g l; chmod 600 g; rm d/f; rmdir d/e; mkdir x; mv x d/y; truncate -s 3 g; dd if=/dev/zero of=z bs=4096 \
         count=3 status=none; install -m 755 g d/script; find . | sort > /dev/null; tar c . | tar t > /dev/null; touch -d @981173106 g
         test \"$(readlink l)\" = g; test \"$(cat l)\" = 1$'\\n't; test \"$(stat -c %a:%s:%Y g)\" = 600:3:981173106
         test \"$(find . -not -name . | sort | tr '\\n' ' ')\" = './d ./d/script ./d/y ./g ./l ./z '",
    );
    let at = tx(&world, "t/open");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&at).unwrap();
    file.write_all(b"written, ").unwrap();
    fs::remove_file(&at).unwrap();
    file.write_all(b"and on").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "written, and on", "a removed file goes on for who has it open");
    assert_eq!(file.metadata().unwrap().len(), 15);
    drop(file);
    fs::write(tx(&world, "t/r"), "r").unwrap();
    nix::fcntl::renameat2(
        nix::fcntl::AT_FDCWD,
        &tx(&world, "t/r"),
        nix::fcntl::AT_FDCWD,
        &tx(&world, "t/g"),
        nix::fcntl::RenameFlags::RENAME_EXCHANGE,
    )
    .unwrap();
    assert_eq!(world.sh("cat ../.tx/t/g ../.tx/t/r"), "r1\nt");
    File::open(tx(&world, "t/g")).unwrap().sync_all().unwrap();
    File::open(tx(&world, "t/d")).unwrap().sync_all().unwrap();
    assert_eq!(number(nix::unistd::mkfifo(&tx(&world, "t/p"), nix::sys::stat::Mode::S_IRWXU).map_err(Into::into)), 1);
    assert_eq!(number(fs::hard_link(tx(&world, "t/g"), tx(&world, "t/h"))), libc::EPERM);
    world.sh("vim -es -u NONE -N -c 'set backup | %s/r/R/ | wq' ../.tx/t/g; rm -f ../.tx/t/g~");
    assert_eq!(world.entries_of("mv ../.tx/t ../.tx/commit"), 1);
    assert_eq!(world.sh("cat g; stat -c %a d/script r; readlink l"), "R\n755\n600\ng\n");
}

#[test]
fn an_empty_file_that_ends_in_delete_deletes_a_key_or_a_tree() {
    let world = World::new();
    world.sh("mkdir -p tree/sub; echo 1 > tree/sub/x; echo 2 > tree/y; echo 3 > key; echo 4 > stays");
    world.settled();
    let made = world.entries_of(
        "mkdir ../.tx/t; touch ../.tx/t/tree.delete ../.tx/t/key.delete; echo new > ../.tx/t/new; mv ../.tx/t ../.tx/commit",
    );
    assert_eq!(made, 1);
    assert_eq!(world.sh("ls"), "new\nstays\n");
    world.sh("mkdir ../.tx/t; echo bye > ../.tx/t/stays.delete");
    assert_eq!(number(commit(&world, "t")), libc::EINVAL);
    let why = fs::read_to_string(tx(&world, "t/.why")).unwrap();
    assert!(why.contains("'stays.delete' is not an empty file") && why.contains("'stays.delete.put'"), "{why}");
    let noted = fs::read_to_string(world.at.join(".why")).unwrap();
    assert!(noted.contains("rename stores/home/.tx/t EINVAL"), "{noted}");
    world.sh("mv ../.tx/t/stays.delete ../.tx/t/stays.delete.put; mv ../.tx/t ../.tx/commit");
    assert_eq!(world.sh("cat stays stays.delete"), "4\nbye\n");
    world.sh("mkdir ../.tx/t; touch ../.tx/t/never.delete");
    assert_eq!(number(commit(&world, "t")), libc::EINVAL);
}

#[test]
fn a_key_that_moved_is_eagain_and_named_nothing_is_changed_and_what_is_staged_stays() {
    let world = World::new();
    fs::write(world.key("config"), "old").unwrap();
    world.there.pull(&world.here);
    world.sh("mkdir ../.tx/t; echo mine > ../.tx/t/config; echo mine > ../.tx/t/other");
    assert_eq!(fs::read_to_string(tx(&world, "t/.why")).unwrap(), "", "it would be committed");
    world.there.put("config", b"theirs");
    world.here.pull(&world.there);
    let before = world.here.entries();
    assert_eq!(number(commit(&world, "t")), libc::EAGAIN);
    let output = world.try_sh("mv ../.tx/t ../.tx/commit");
    assert!(!output.status.success());
    assert_eq!(world.here.entries(), before);
    eventually("what came", || fs::read_to_string(world.key("config")).unwrap() == "theirs");
    assert!(!world.key("other").exists());
    assert_eq!(world.sh("cat ../.tx/t/config; ls ../.tx/t"), "mine\nconfig\nother\n");
    let why = fs::read_to_string(tx(&world, "t/.why")).unwrap();
    assert!(why.lines().any(|line| line == "config") && why.contains("--force"), "{why}");
    assert!(!why.contains("other"), "{why}");
    let noted = fs::read_to_string(world.at.join(".why")).unwrap();
    assert!(noted.contains("EAGAIN: a key changed after the transaction 't' began: 'config'"), "{noted}");
    let home = world.here.home();
    world.here.registry.txs().commit(&home, b"t", true, Origin::Local).unwrap();
    eventually("both are heads", || world.sh("ls ../.heads/config").lines().count() == 2);
    assert_eq!(world.here.heads("config").unwrap().all().len(), 2);
    assert_eq!(world.sh("cat other; ls ../.tx"), "mine\n");
}

#[test]
fn what_was_done_before_belongs_to_the_base_although_it_was_no_version_yet() {
    let world = World::new();
    world.sh("echo old > $SPARE/f; echo x > gone");
    world.settled();
    // `cp` makes files exclusively: they wait for a rename. What is removed waits as well.
    world.sh(
        "cp $SPARE/f f; mkdir d; ln -s f l; mkdir ../.tx/t; cd ../.tx/t; echo new > f; mkdir d; echo new > d/x; ln -s x l; cd -
         mv ../.tx/t ../.tx/commit; cat f d/x; readlink l",
    );
    world.sh("rm gone; mkdir ../.tx/u; echo again > ../.tx/u/gone; mv ../.tx/u ../.tx/commit; cat gone");
    world.settled();
    assert_eq!(world.sh("cat f gone; ls ../.heads"), "new\nagain\n");
}

#[test]
fn rm_r_forgets_it_and_rmdir_does_so_only_if_nothing_is_staged() {
    let world = World::new();
    let before = world.here.entries();
    world.sh("mkdir ../.tx/t; mkdir -p ../.tx/t/a/b; echo x > ../.tx/t/a/b/c");
    assert_eq!(number(fs::remove_dir(tx(&world, "t"))), libc::ENOTEMPTY);
    let left = world.dir.path().join("here/tx");
    assert_eq!(fs::read_dir(&left).unwrap().count(), 1);
    world.sh("rm -r ../.tx/t");
    assert_eq!(world.sh("ls ../.tx"), "");
    let store = fs::read_dir(&left).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_dir(store).unwrap().count(), 0, "it leaves nothing on the disk");
    world.sh("mkdir ../.tx/t; rmdir ../.tx/t");
    assert_eq!(number(commit(&world, "t")), libc::ENOENT);
    world.settled();
    assert_eq!(world.here.entries(), before);
}

#[test]
fn what_does_not_fit_one_entry_is_efbig_and_why_says_what_to_do() {
    let world = World::new();
    world.sh("mkdir ../.tx/t; for n in 1 2 3 4 5; do head -c 16000 /dev/urandom > ../.tx/t/$n; done");
    assert_eq!(number(commit(&world, "t")), libc::EFBIG);
    let why = fs::read_to_string(tx(&world, "t/.why")).unwrap();
    assert!(why.contains("an entry holds 65536") && why.contains("in parts"), "{why}");
    assert_eq!(world.sh("ls; ls ../.tx/t | wc -l"), "5\n");
    world.sh("mkdir ../.tx/u; mv ../.tx/t/1 ../.tx/t/2 ../.tx/u/");
    assert_eq!(world.entries_of("mv ../.tx/t ../.tx/commit; mv ../.tx/u ../.tx/commit; test $(ls | wc -l) = 5"), 2);
}

#[test]
fn two_that_touch_other_keys_are_both_committed() {
    let world = World::new();
    let made = world.entries_of(
        "mkdir ../.tx/t ../.tx/u; mkdir ../.tx/t/app ../.tx/u/app; echo 1 > ../.tx/t/app/a; echo 2 > ../.tx/u/app/b
         mv ../.tx/u ../.tx/commit; mv ../.tx/t ../.tx/commit; cat app/a app/b",
    );
    assert_eq!(made, 2);
    assert_eq!(world.sh("find ../../../.heads -type f"), "");
}

#[test]
fn what_is_committed_is_there_at_once_although_the_kernel_had_what_was() {
    let world = World::new();
    world.sh("mkdir d; echo old > d/f; echo gone > d/gone; ln -s old d/l");
    world.settled();
    let known = || {
        let read = |name: &str| fs::read_to_string(world.key(name)).ok();
        let names = fs::read_dir(world.key("d")).unwrap().count();
        (read("d/f"), read("d/gone"), read("d/new"), fs::read_link(world.key("d/l")).unwrap(), names)
    };
    assert_eq!(known(), (Some("old\n".into()), Some("gone\n".into()), None, "old".into(), 3));
    let open = File::open(world.key("d")).unwrap();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let mask = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE;
    inotify.add_watch(&world.key("d"), mask).unwrap();
    world.sh("mkdir -p ../.tx/t/d; cd ../.tx/t/d; echo newer > f; touch gone.delete; echo new > new; ln -s new l");
    commit(&world, "t").unwrap();
    // From here on nothing is waited for.
    assert_eq!(known(), (Some("newer\n".into()), None, Some("new\n".into()), "new".into(), 3));
    let held = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)));
    assert_eq!(fs::read_to_string(held.join("new")).unwrap(), "new\n");
    let mut told = std::collections::BTreeSet::new();
    eventually("those who watch are told", || {
        told.extend(inotify.read_events().into_iter().flatten().filter_map(|event| event.name));
        ["f", "gone", "new", "l"].iter().all(|name| told.contains(std::ffi::OsStr::new(name)))
    });
    world.settled();
    assert_eq!(world.here.get("d/f").unwrap(), b"newer\n", "telling them wrote nothing");
}

#[test]
fn watch_gives_a_line_a_key_all_of_one_entry() {
    let world = World::new();
    let mut watch = File::open(world.key("../.watch")).unwrap();
    world.sh("mkdir ../.tx/t; for n in $(seq 20); do echo $n > ../.tx/t/$n; done; mv ../.tx/t ../.tx/commit");
    let mut text = String::new();
    while text.lines().count() < 20 {
        let mut part = vec![0; 65_536];
        let size = watch.read(&mut part).unwrap();
        text.push_str(std::str::from_utf8(&part[..size]).unwrap());
    }
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 20);
    assert!(lines.iter().all(|line| line["hash"] == lines[0]["hash"] && line["what"] == "created"), "{text}");
}

#[test]
fn only_whole_transactions_are_in_tx_and_each_keeps_its_name() {
    let world = World::new();
    world.sh("mkdir ../.tx/t ../.tx/t/sub; echo x > key; mkdir dir; echo x > ../.tx/t/f");
    let at = |path: &str| tx(&world, path);
    assert_eq!(number(fs::create_dir(at("t"))), libc::EEXIST);
    assert_eq!(number(fs::create_dir(at("commit"))), libc::EPERM);
    assert_eq!(number(fs::create_dir(at(".hidden"))), libc::EPERM);
    assert_eq!(number(File::create(at("file"))), libc::EPERM);
    assert_eq!(number(fs::rename(at("t"), at("u"))), libc::EPERM);
    assert_eq!(number(fs::rename(at("t/sub"), at("commit"))), libc::EPERM);
    assert_eq!(number(fs::rename(world.key("dir"), at("commit"))), libc::EPERM);
    assert_eq!(number(fs::rename(world.key("dir"), at("u"))), libc::EPERM);
    assert_eq!(number(fs::rename(at("t"), world.key("u"))), libc::EXDEV);
    assert_eq!(number(fs::rename(at("t/f"), world.key("f"))), libc::EXDEV);
    assert_eq!(number(fs::remove_file(at("t"))), libc::EISDIR);
    assert_eq!(number(fs::write(at("t/.why"), "x")), libc::EACCES);
    assert_eq!(world.sh("mv key ../.tx/t/; ls -A ../.tx/t"), "f\nkey\nsub\n", "mv copies, and removes");
    assert_eq!(world.sh("ls -A ..; ls -A ../.tx"), "keys\nt\n");
    let noted = fs::read_to_string(world.at.join(".why")).unwrap();
    for said in ["a transaction keeps its name", "'commit': renaming one to that commits it", "mkdir begins one"] {
        assert!(noted.contains(said), "{said}: {noted}");
    }
}

#[test]
fn files_that_stay_on_this_machine_are_not_committed() {
    let world = World::new();
    world.sh("mkdir ../.tx/t; echo x > ../.tx/t/f; echo x > ../.tx/t/f~; echo x > ../.tx/t/.f.swp");
    assert_eq!(world.entries_of("mv ../.tx/t ../.tx/commit"), 1);
    assert_eq!(world.sh("ls -A"), "f\n");
}

#[test]
fn who_still_has_a_staged_file_open_when_it_is_committed_is_refused_and_the_entry_stays_what_it_is() {
    let world = World::new();
    world.sh("mkdir ../.tx/t");
    let mut file = File::create(tx(&world, "t/f")).unwrap();
    file.write_all(b"so far").unwrap();
    commit(&world, "t").unwrap();
    assert_eq!(number(file.write_all(b", and more")), libc::ESTALE);
    assert_eq!(world.sh("cat f"), "so far");
    world.sh("mkdir ../.tx/t; echo another > ../.tx/t/f");
    assert_eq!(number(file.write_all(b", and more")), libc::ESTALE, "another of the same name is another");
    assert_eq!(world.sh("cat ../.tx/t/f"), "another\n");
}

#[test]
fn a_node_that_may_only_read_begins_no_transaction() {
    let world = World::with(Role::Reader);
    let at = world.dir.path().join("reader");
    fs::create_dir(&at).unwrap();
    let mut sources = world.sources();
    sources.registry = Arc::new(ArcSwapOption::from(Some(Arc::clone(&world.there.registry))));
    sources.drafts = world.dir.path().join("drafts-of-the-reader");
    let mounted = lattice::fs::mount(&at, sources, lattice::fs::Options::default()).unwrap();
    assert_eq!(number(fs::create_dir(at.join("stores/home/.tx/t"))), libc::EROFS);
    mounted.unmount().unwrap();
}

#[test]
fn a_link_that_took_the_place_of_what_a_program_has_open_leads_nowhere() {
    let world = World::new();
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mut sources = world.sources();
    sources.drafts = world.dir.path().join("drafts-of-the-other");
    let mounted = lattice::fs::mount(&other, sources, lattice::fs::Options::default()).unwrap();
    let there = other.join("stores/home/.tx/t");
    let outside = world.dir.path().join("outside");
    let inner = outside.join("in");
    fs::create_dir_all(&inner).unwrap();
    fs::write(inner.join("x"), "mine").unwrap();
    fs::set_permissions(inner.join("x"), fs::Permissions::from_mode(0o600)).unwrap();
    world.sh("mkdir -p ../.tx/t/d/in; echo staged > ../.tx/t/f; echo staged > ../.tx/t/d/in/g");
    let directory = File::open(tx(&world, "t/d/in")).unwrap();
    let file = OpenOptions::new().write(true).open(tx(&world, "t/f")).unwrap();
    fs::rename(there.join("d"), there.join("e")).unwrap();
    fs::remove_file(there.join("f")).unwrap();
    std::os::unix::fs::symlink(&outside, there.join("d")).unwrap();
    std::os::unix::fs::symlink(inner.join("x"), there.join("f")).unwrap();
    let mode = Mode::from_bits_truncate(0o777);
    let made = nix::fcntl::openat(&directory, "made", OFlag::O_CREAT | OFlag::O_WRONLY, mode);
    assert_eq!(made.unwrap_err(), Errno::ESTALE);
    assert!(nix::fcntl::openat(&directory, "x", OFlag::O_RDWR, mode).is_err());
    assert!(nix::sys::stat::mkdirat(&directory, "directory", mode).is_err());
    assert!(nix::unistd::symlinkat("to", &directory, "link").is_err());
    assert!(nix::unistd::unlinkat(&directory, "x", UnlinkatFlags::NoRemoveDir).is_err());
    let none = nix::fcntl::RenameFlags::empty();
    assert!(nix::fcntl::renameat2(&directory, "x", &directory, "y", none).is_err());
    file.set_permissions(fs::Permissions::from_mode(0o644)).ok();
    file.set_len(0).ok();
    file.set_modified(std::time::UNIX_EPOCH).ok();
    let meta = fs::metadata(inner.join("x")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600, "the link is not followed");
    assert_ne!(meta.mtime(), 0);
    assert_eq!(fs::read_to_string(inner.join("x")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 1, "nothing is made nor removed where the link leads");
    assert_eq!(
        world.sh("cat ../.tx/t/e/in/g; readlink ../.tx/t/d; rm ../.tx/t/d ../.tx/t/f; ls ../.tx/t"),
        format!("staged\n{}\ne\n", outside.display())
    );
    mounted.unmount().unwrap();
}

#[test]
fn what_a_program_has_open_of_a_transaction_that_ended_leads_not_into_another_of_its_name() {
    let world = World::new();
    world.sh("mkdir -p ../.tx/t/d; echo first > ../.tx/t/d/f");
    let (top, directory) = (File::open(tx(&world, "t")).unwrap(), File::open(tx(&world, "t/d")).unwrap());
    let home = world.here.home();
    // As a command does it.
    world.here.registry.txs().commit(&home, b"t", false, Origin::Local).unwrap();
    let another = world.here.registry.txs().begin(&home, b"t").unwrap();
    fs::create_dir(another.files().join("d")).unwrap();
    fs::write(another.files().join("d/g"), "second").unwrap();
    let mode = Mode::from_bits_truncate(0o777);
    for directory in [&directory, &top] {
        let made = nix::fcntl::openat(directory, "late", OFlag::O_CREAT | OFlag::O_WRONLY, mode);
        assert_eq!(made.unwrap_err(), Errno::ESTALE);
        assert_eq!(nix::sys::stat::mkdirat(directory, "later", mode).unwrap_err(), Errno::ESTALE);
    }
    assert!(nix::unistd::unlinkat(&directory, "g", UnlinkatFlags::NoRemoveDir).is_err());
    assert_eq!(
        world.sh("cd ../.tx/t; find . | sort; cat d/g"),
        ".\n./d\n./d/g\nsecond",
        "the name leads to the new one"
    );
    world.sh("echo new > ../.tx/t/d/h; mv ../.tx/t ../.tx/commit");
    assert_eq!(world.sh("ls d"), "f\ng\nh\n");
}

#[test]
fn room_for_a_staged_file_that_is_not_there_is_refused_before_the_disk_is_asked() {
    let world = World::new();
    world.sh("mkdir ../.tx/t");
    let file = File::create(tx(&world, "t/f")).unwrap();
    let room = |length| nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length);
    // More than any file may hold: the disk itself says so.
    assert_eq!(room(1 << 60).unwrap_err(), Errno::ENOSPC);
    room(5000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5000);
}

#[test]
fn a_transaction_is_seen_by_another_mount_of_the_node_and_ends_there_too() {
    let world = World::new();
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mut sources = world.sources();
    sources.drafts = world.dir.path().join("drafts-of-the-other");
    let mounted = lattice::fs::mount(&other, sources, lattice::fs::Options::default()).unwrap();
    let there = other.join("stores/home/.tx/t");
    world.sh("mkdir ../.tx/t; echo one > ../.tx/t/f");
    assert_eq!(fs::read_to_string(there.join("f")).unwrap(), "one\n");
    fs::write(there.join("f"), "two").unwrap();
    assert_eq!(fs::read_to_string(tx(&world, "t/f")).unwrap(), "two");
    let mtime = fs::metadata(tx(&world, "t/f")).unwrap().mtime();
    assert!((mtime - clock::nanos() / 1_000_000_000).abs() < 1_000);
    fs::set_permissions(there.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(tx(&world, "t/f")).unwrap().mode() & 0o777, 0o600);
    commit(&world, "t").unwrap();
    assert!(!there.exists());
    eventually("the key on the other mount", || {
        fs::read_to_string(other.join("stores/home/keys/f")).is_ok_and(|text| text == "two")
    });
    mounted.unmount().unwrap();
}

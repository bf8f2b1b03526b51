//! What system calls do.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};

use crate::world::{World, eventually};

#[test]
fn what_is_written_is_read_back_and_is_one_entry() {
    let world = World::new();
    let before = world.here.entries();
    fs::write(world.key("a"), b"hello").unwrap();
    assert_eq!(world.here.get("a").unwrap(), b"hello");
    assert_eq!(world.here.entries(), before + 1);
    assert_eq!(fs::read(world.key("a")).unwrap(), b"hello");
    assert_eq!(fs::metadata(world.key("a")).unwrap().len(), 5);
}

#[test]
fn a_write_is_seen_by_every_process_before_it_is_closed_and_is_no_version_yet() {
    let world = World::new();
    let mut file = File::create(world.key("a")).unwrap();
    file.write_all(b"soon").unwrap();
    assert_eq!(world.sh("cat a"), "soon");
    assert_eq!(world.sh("ls"), "a\n");
    assert_eq!(world.here.get("a"), None);
    drop(file);
    eventually("the version", || world.here.get("a").is_some());
}

#[test]
fn an_empty_file_is_published_when_its_last_descriptor_goes() {
    let world = World::new();
    assert_eq!(world.entries_of("touch empty"), 1);
    assert_eq!(world.here.get("empty").unwrap(), b"");
}

#[test]
fn the_shells_truncate_and_write_is_one_version_and_never_an_empty_one() {
    let world = World::new();
    world.sh("echo one > f");
    assert_eq!(world.entries_of("echo two > f"), 1);
    let history = world.here.home().history(b"f").unwrap();
    assert!(history.iter().all(|version| version.head.content.size() == 4), "an empty version was published");
}

#[test]
fn appending_goes_to_the_end_and_is_one_entry() {
    let world = World::new();
    world.sh("echo one > f");
    assert_eq!(world.entries_of("echo two >> f"), 1);
    assert_eq!(world.sh("cat f"), "one\ntwo\n");
}

#[test]
fn a_truncation_by_path_is_one_entry() {
    let world = World::new();
    world.sh("echo -n 123456 > f");
    assert_eq!(world.entries_of("truncate -s 3 f"), 1);
    assert_eq!(world.here.get("f").unwrap(), b"123");
    assert_eq!(world.entries_of("truncate -s 5 f"), 1);
    assert_eq!(fs::read(world.key("f")).unwrap(), b"123\0\0");
}

#[test]
fn writing_in_the_middle_keeps_the_rest() {
    let world = World::new();
    fs::write(world.key("f"), b"0123456789").unwrap();
    let file = OpenOptions::new().write(true).open(world.key("f")).unwrap();
    file.write_all_at(b"XY", 4).unwrap();
    drop(file);
    eventually("the version", || world.here.get("f").unwrap() == b"0123XY6789");
    assert_eq!(fs::read(world.key("f")).unwrap(), b"0123XY6789");
}

#[test]
fn a_large_file_is_kept_and_can_be_changed_in_the_middle() {
    let world = World::new();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    fs::write(world.key("large"), &bytes).unwrap();
    assert_eq!(world.here.get("large").unwrap(), bytes);
    let mut file = OpenOptions::new().read(true).write(true).open(world.key("large")).unwrap();
    file.seek(SeekFrom::Start(1_500_000)).unwrap();
    file.write_all(b"changed").unwrap();
    drop(file);
    let mut changed = bytes;
    changed[1_500_000..1_500_007].copy_from_slice(b"changed");
    eventually("the version", || world.here.get("large").unwrap() == changed);
    assert_eq!(fs::read(world.key("large")).unwrap(), changed);
    let drafts = world.dir.path().join("drafts");
    eventually("the drafts' files to go", || fs::read_dir(&drafts).unwrap().count() == 0);
}

#[test]
fn a_file_that_was_removed_reads_on_for_whoever_has_it_open() {
    let world = World::new();
    fs::write(world.key("f"), b"still here").unwrap();
    let mut file = File::open(world.key("f")).unwrap();
    fs::remove_file(world.key("f")).unwrap();
    assert!(!world.key("f").exists());
    eventually("its end for others", || world.here.get("f").is_none());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    fs::write(world.key("f"), b"another").unwrap();
    assert_eq!(fs::read(world.key("f")).unwrap(), b"another");
}

#[test]
fn a_file_written_after_its_removal_makes_no_entry() {
    let world = World::new();
    let mut file = File::create(world.key("f")).unwrap();
    fs::remove_file(world.key("f")).unwrap();
    file.write_all(b"nobody sees this").unwrap();
    drop(file);
    world.settled();
    assert_eq!(world.here.get("f"), None);
    assert_eq!(world.sh("ls"), "");
}

#[test]
fn permissions_and_times_are_kept_each_change_one_entry() {
    let world = World::new();
    world.sh("echo x > f");
    assert_eq!(world.entries_of("chmod 640 f"), 1);
    assert_eq!(world.entries_of("chmod 640 f"), 0);
    assert_eq!(world.entries_of("touch -d '2001-02-03 04:05:06.789 UTC' f"), 1);
    let meta = fs::metadata(world.key("f")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (981_173_106, 789_000_000));
    let head = *world.here.heads("f").unwrap().visible().unwrap();
    assert_eq!((head.mode, head.mtime), (0o640, 981_173_106_789_000_000));
}

#[test]
fn a_file_belongs_to_whoever_mounted_also_after_roots_chown() {
    let world = World::new();
    world.sh("echo x > f");
    assert_eq!(world.entries_of("chown 0:0 f; chown 1234:42 f"), 0);
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let meta = fs::metadata(world.key("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (uid, gid));
}

#[test]
fn symbolic_links_and_empty_directories_are_kept() {
    let world = World::new();
    fs::create_dir(world.key("d")).unwrap();
    symlink("../elsewhere", world.key("d/l")).unwrap();
    assert_eq!(fs::read_link(world.key("d/l")).unwrap().to_str(), Some("../elsewhere"));
    eventually("the version", || world.here.get("d/l").is_some_and(|target| target == b"../elsewhere"));
    fs::remove_file(world.key("d/l")).unwrap();
    assert!(fs::metadata(world.key("d")).unwrap().is_dir());
    fs::remove_dir(world.key("d")).unwrap();
    assert_eq!(world.sh("ls -A"), "");
}

#[test]
fn a_directory_that_only_its_keys_imply_stays_when_the_last_of_them_goes() {
    let world = World::new();
    world.here.put("a/b/c", b"x");
    assert_eq!(world.sh("find . -type f"), "./a/b/c\n");
    world.sh("rm a/b/c");
    assert_eq!(world.sh("find ."), ".\n./a\n./a/b\n");
    world.sh("rm -r a");
    assert_eq!(world.sh("find ."), ".\n");
}

#[test]
fn the_right_errors_come() {
    let world = World::new();
    world.sh("mkdir d; echo x > d/f; echo x > f");
    let number = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    assert_eq!(number(fs::remove_dir(world.key("d"))), libc::ENOTEMPTY);
    assert_eq!(number(fs::remove_dir(world.key("f"))), libc::ENOTDIR);
    assert_eq!(number(fs::write(world.key("d"), b"")), libc::EISDIR);
    assert_eq!(number(fs::write(world.key("f/g"), b"")), libc::ENOTDIR);
    assert_eq!(number(fs::write(world.key(&"n".repeat(256)), b"")), libc::ENAMETOOLONG);
    assert_eq!(number(fs::write(world.key("none/f"), b"")), libc::ENOENT);
    assert_eq!(number(fs::rename(world.key("f"), world.key("d"))), libc::EISDIR);
    assert_eq!(number(fs::hard_link(world.key("f"), world.key("g"))), libc::EPERM);
    assert_eq!(number(fs::write(world.at.join("stores/new"), b"")), libc::EPERM);
    assert_eq!(number(fs::write(world.at.join("README"), b"")), libc::EACCES);
    let exclusive = OpenOptions::new().write(true).create_new(true).open(world.key("f"));
    assert_eq!(exclusive.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_hundred_thousand_keys_are_listed_each_once() {
    let world = World::new();
    let kv = world.here.home();
    for batch in 0..500 {
        let ops = (0..200).map(|n| lattice::stores::kv::Op::Put {
            path: format!("many/{:06}", batch * 200 + n).into_bytes(),
            supersedes: vec![],
            kind: lattice::stores::kv::Kind::File,
            mode: 0o644,
            mtime: 0,
            value: lattice::stores::kv::Value::Empty,
        });
        kv.submit(ops.collect(), lattice::replication::log::Origin::Local).unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(world.key("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 100_000);
    assert_eq!((names[0].as_str(), names[99_999].as_str()), ("000000", "099999"));
    assert_eq!(world.sh("ls -l many | wc -l"), "100001\n");
}

#[test]
fn space_is_that_of_the_disk_below() {
    let world = World::new();
    let here = nix::sys::statvfs::statvfs(&world.key("")).unwrap();
    let disk = nix::sys::statvfs::statvfs(world.dir.path()).unwrap();
    assert_eq!((here.blocks(), here.fragment_size()), (disk.blocks(), disk.fragment_size()));
    assert_eq!(here.name_max(), 255);
}

#[test]
fn a_file_made_exclusively_waits_for_its_rename_and_then_is_one_entry() {
    let world = World::new();
    let before = world.here.entries();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(world.key("tmp.1")).unwrap();
    file.write_all(b"new").unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::rename(world.key("tmp.1"), world.key("f")).unwrap();
    assert_eq!(world.here.get("f").unwrap(), b"new");
    world.settled();
    assert_eq!(world.here.entries(), before + 1);
    assert!(world.here.heads("tmp.1").is_none());
}

#[test]
fn a_file_made_exclusively_and_not_renamed_is_published_soon() {
    let world = World::new();
    let mut file = OpenOptions::new().write(true).create_new(true).open(world.key("f")).unwrap();
    file.write_all(b"new").unwrap();
    drop(file);
    eventually("the version", || world.here.get("f").is_some_and(|bytes| bytes == b"new"));
}

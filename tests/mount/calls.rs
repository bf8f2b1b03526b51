//! System calls that several processes make, or that few programs do.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, Flock, FlockArg, RenameFlags, fallocate, renameat2};
use nix::unistd::{Whence, lseek};

use crate::world::{World, eventually};

/// Python with what its scripts here need.
const PYTHON: &str = "import ctypes, fcntl, mmap, os, struct, sys
def child(work):
    pid = os.fork()
    if pid == 0:
        try: work(); os._exit(0)
        except BaseException as error: print(repr(error), file=sys.stderr); os._exit(1)
    return pid
def joined(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
";

fn python(world: &World, script: &str) -> String {
    fs::write(world.dir.path().join("script.py"), format!("{PYTHON}{script}")).unwrap();
    world.sh("python3 $SPARE/script.py")
}

#[test]
fn mapped_files_are_shared_between_processes_and_published() {
    let world = World::new();
    python(
        &world,
        "
f = os.open('f', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 3 * 4096)
m = mmap.mmap(f, 3 * 4096); os.close(f)
def write():
    f = os.open('f', os.O_RDWR); n = mmap.mmap(f, 3 * 4096); n[4096:4100] = b'them'; n.flush(); os.close(f)
m[0:4] = b'mine'; joined(child(write)); assert m[4096:4100] == b'them' and m[0:4] == b'mine'
m[8192:8196] = b'last'; m.flush()
r = os.open('f', os.O_RDONLY); p = mmap.mmap(r, 0, prot=mmap.PROT_READ); assert p[8192:8196] == b'last'
w = os.open('f', os.O_RDWR); os.pwrite(w, b'by call', 100); assert m[100:107] == b'by call' and p[100:107] == b'by call'
assert os.pread(w, 4, 4096) == b'them'; os.close(w); m.close()",
    );
    eventually("what was mapped is a version", || {
        world.here.get("f").is_some_and(|bytes| {
            bytes.len() == 3 * 4096
                && &bytes[..4] == b"mine"
                && &bytes[100..107] == b"by call"
                && &bytes[4096..4100] == b"them"
                && &bytes[8192..8196] == b"last"
        })
    });
}

#[test]
fn locks_hold_between_processes_and_go_with_their_owner() {
    let world = World::new();
    world.sh("echo x > f");
    let open = || OpenOptions::new().read(true).write(true).open(world.key("f")).unwrap();
    let shared = Flock::lock(open(), FlockArg::LockSharedNonblock).unwrap();
    assert_eq!(world.sh("flock -sn f echo shared; flock -n f echo never || echo refused"), "shared\nrefused\n");
    shared.relock(FlockArg::LockExclusiveNonblock).unwrap();
    assert_eq!(world.sh("flock -sn f echo never || echo refused"), "refused\n");
    drop(shared);
    assert_eq!(world.sh("flock -n f echo free"), "free\n");
    python(
        &world,
        "
f = os.open('f', os.O_RDWR)
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
def other():
    g = os.open('f', os.O_RDWR)
    try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5); sys.exit(2)
    except BlockingIOError: pass
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)
joined(child(other))
# What a dead process held is free.
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)
r, w = os.pipe()
def waits():
    g = os.open('f', os.O_RDWR); os.write(w, b'x'); fcntl.lockf(g, fcntl.LOCK_EX, 10, 0)
pid = child(waits); os.read(r, 1); fcntl.lockf(f, fcntl.LOCK_UN); joined(pid)
OFD_SETLK = 37
lock = struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0, 10, 0); g = os.open('f', os.O_RDWR)
fcntl.fcntl(f, OFD_SETLK, lock)
try: fcntl.fcntl(g, OFD_SETLK, lock); sys.exit(3)
except BlockingIOError: pass",
    );
}

#[test]
fn room_is_made_cut_and_cleared_as_on_a_disk() {
    let world = World::new();
    fs::write(world.key("f"), b"0123456789").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(world.key("f")).unwrap();
    let content = || fs::read(world.key("f")).unwrap();
    fallocate(&file, FallocateFlags::empty(), 8, 8).unwrap();
    assert_eq!(content(), b"0123456789\0\0\0\0\0\0");
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(content().len(), 16);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 2, 3).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 7, 12).unwrap();
    assert_eq!(content(), b"01\0\0\x0056\0\0\0\0\0\0\0\0\0\0\0\0");
    for never in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_INSERT_RANGE] {
        assert_eq!(fallocate(&file, never, 0, 4096), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!((lseek(&file, 0, Whence::SeekData).unwrap(), lseek(&file, 0, Whence::SeekHole).unwrap()), (0, 19));
    assert_eq!(lseek(&file, 19, Whence::SeekData), Err(Errno::ENXIO));
    file.set_len(4).unwrap();
    file.set_len(6).unwrap();
    drop(file);
    eventually("the version", || world.here.get("f").unwrap() == b"01\0\0\0\0");
    world.sh("fallocate -l 100000 g; fallocate -p -o 10 -l 10 g; truncate -s +5 g; truncate -s %7 g; test $(stat -c %s g) = 100009");
    world.sh("printf abc | dd of=g conv=notrunc bs=1 seek=50000 status=none; cp --sparse=always g h; cmp g h; test $(stat -c %s h) = 100009");
}

#[test]
fn of_many_that_make_one_name_exclusively_one_does_and_appended_lines_stay_whole() {
    let world = World::new();
    let made = python(
        &world,
        "
won = []
for round in range(30):
    r, w = os.pipe()
    def make():
        try: f = os.open('lock%d' % round, os.O_CREAT | os.O_EXCL | os.O_WRONLY); os.write(f, b'%d' % os.getpid()); os.write(w, b'x')
        except FileExistsError: pass
    for pid in [child(make) for _ in range(4)]: joined(pid)
    os.close(w); won.append(len(os.read(r, 100)))
print(set(won))
def append(who):
    for n in range(100):
        f = os.open('log', os.O_APPEND | os.O_CREAT | os.O_WRONLY); os.write(f, b'%s %d\\n' % (who * 50, n)); os.close(f)
def keep_open(who):
    f = os.open('log', os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    for n in range(100): os.write(f, b'%s %d\\n' % (who * 50, n))
for pid in [child(lambda: append(b'a')), child(lambda: append(b'b')), child(lambda: keep_open(b'c')), child(lambda: keep_open(b'd'))]: joined(pid)",
    );
    assert_eq!(made, "{1}\n");
    assert_eq!(
        world.sh("sort log | uniq | wc -l; grep -cEvx '(a{50}|b{50}|c{50}|d{50}) [0-9]+' log || true"),
        "400\n0\n"
    );
    world.settled();
    assert_eq!(world.sh("wc -l < log").trim(), "400");
    assert_eq!(world.here.get("log").unwrap().iter().filter(|byte| **byte == b'\n').count(), 400);
    assert!(!world.here.heads("log").unwrap().is_conflict());
}

#[test]
fn a_file_goes_on_for_whoever_has_it_open_whatever_becomes_of_its_name() {
    let world = World::new();
    world.sh("echo one > f; echo other > g; mkdir d");
    let mut old = OpenOptions::new().read(true).append(true).open(world.key("f")).unwrap();
    fs::rename(world.key("g"), world.key("f")).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\n");
    old.write_all(b"nobody's").unwrap();
    assert_eq!(old.metadata().unwrap().len(), 12);
    assert_eq!(fs::read(world.key("f")).unwrap(), b"other\n");
    drop(old);
    // Renamed, into another directory that is itself renamed, and written on.
    let mut file = OpenOptions::new().append(true).open(world.key("f")).unwrap();
    file.write_all(b"two\n").unwrap();
    fs::rename(world.key("f"), world.key("d/moved")).unwrap();
    file.write_all(b"three\n").unwrap();
    fs::rename(world.key("d"), world.key("e")).unwrap();
    file.write_all(b"four\n").unwrap();
    drop(file);
    eventually("the version", || world.here.get("e/moved").is_some_and(|bytes| bytes == b"other\ntwo\nthree\nfour\n"));
    world.settled();
    assert_eq!(world.sh("find . -type f"), "./e/moved\n");
    assert!(!world.here.heads("e/moved").unwrap().is_conflict());
    // Removed while it is open, made again under its name.
    let gone = OpenOptions::new().read(true).write(true).create_new(true).open(world.key("t")).unwrap();
    fs::remove_file(world.key("t")).unwrap();
    gone.write_all_at(b"mine", 0).unwrap();
    fs::write(world.key("t"), b"another").unwrap();
    let mut back = [0; 4];
    gone.read_exact_at(&mut back, 0).unwrap();
    assert_eq!((&back, gone.metadata().unwrap().nlink()), (b"mine", 0));
    drop(gone);
    world.settled();
    assert_eq!(world.here.get("t").unwrap(), b"another");
}

#[test]
fn renaming_without_replacing_and_exchanging_are_one_entry_each_or_none() {
    let world = World::new();
    world.sh("echo a > a; echo b > b; mkdir d; echo c > d/c");
    let entries = world.here.entries();
    let rename = |from: &str, to: &str, flags| renameat2(AT_FDCWD, &world.key(from), AT_FDCWD, &world.key(to), flags);
    assert_eq!(rename("a", "b", RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename("a", "d", RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename("a", "none", RenameFlags::RENAME_EXCHANGE), Err(Errno::ENOENT));
    assert_eq!(rename("a", "c", RenameFlags::RENAME_WHITEOUT), Err(Errno::EINVAL));
    world.settled();
    assert_eq!(world.here.entries(), entries);
    rename("a", "c", RenameFlags::RENAME_NOREPLACE).unwrap();
    rename("c", "b", RenameFlags::RENAME_EXCHANGE).unwrap();
    rename("b", "d", RenameFlags::RENAME_EXCHANGE).unwrap();
    world.settled();
    assert_eq!(world.here.entries(), entries + 3);
    assert_eq!(world.sh("cat c b/c d; mv -n c d; cat c"), "b\nc\na\nb\n");
}

#[test]
fn names_may_be_any_bytes() {
    let world = World::new();
    let long = vec![b'n'; 255];
    let wide = "ä".repeat(127);
    let names: Vec<&[u8]> = vec![
        b"new\nline",
        b"\xff\xfe not utf-8 \xc3",
        b"-rf",
        b"--help",
        b"trailing.",
        b"trailing ",
        b" leading",
        b"100%",
        b"%2F%00",
        b"back\\slash",
        b"quote'\"`$(x)",
        b"*?[a]",
        b"\x01\x1b[31m\x7f",
        b"...",
        b"..hidden",
        b"CON",
        b"a:b|c<d>",
        "combining e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
        "\u{202e}rtl".as_bytes(),
        &long,
        wide.as_bytes(),
    ];
    for directory in ["", "sub"] {
        let at = |name: &[u8]| world.key(directory).join(OsStr::from_bytes(name));
        fs::create_dir_all(world.key(directory)).unwrap();
        for name in &names {
            fs::write(at(name), name).unwrap();
        }
        fs::create_dir(at(b"\xff/".strip_suffix(b"/").unwrap())).unwrap();
        fs::write(at(b"\xff/\n"), b"deep").unwrap();
        let listed = || {
            let entries = fs::read_dir(world.key(directory)).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
            names.retain(|name| name != b"\xff" && name != b"sub");
            names.sort();
            names
        };
        let mut all: Vec<_> = names.iter().map(|name| name.to_vec()).collect();
        all.sort();
        assert_eq!(listed(), all);
        for name in &names {
            assert_eq!(fs::read(at(name)).unwrap(), *name);
            let path = if directory.is_empty() { name.to_vec() } else { [b"sub/", *name].concat() };
            let heads = world.here.home().heads(&path).unwrap().unwrap();
            assert!(heads.visible().is_some_and(|head| head.content.size() == name.len() as u64));
            fs::rename(at(name), at(b"between")).unwrap();
            fs::rename(at(b"between"), at(name)).unwrap();
        }
        assert_eq!(listed(), all);
    }
    let too_long = fs::write(world.key(&"n".repeat(256)), b"").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
    world.sh("find . -print0 | xargs -0 ls -d > /dev/null; cp -a . $SPARE/copy; diff -r . $SPARE/copy; rm -rf -- * ..?* .[!.]*; test -z \"$(ls -A)\"");
    assert!(File::open(world.key("sub")).is_err());
}

/// A path up to the longest: every part of it can be as long as a name may be.
#[test]
fn deep_paths_work_up_to_the_longest_and_are_refused_beyond() {
    let world = World::new();
    let refused = world.sh(
        "for n in $(seq 40); do mkdir $(printf 'n%.0s' $(seq 200)) 2>$SPARE/why || break; cd -P n*; echo $n > f; done; cat $SPARE/why",
    );
    assert!(refused.contains("File name too long"), "{refused}");
    assert_eq!(world.sh("find . -name f | wc -l; find . -depth -delete; ls -A"), "20\n");
}

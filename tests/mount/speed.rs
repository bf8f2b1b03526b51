//! Rates, beside a tree in memory on the same library: `cargo test --test mount -- --ignored --nocapture speed`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyWrite, Request, Session, WriteFlags,
};
use lattice::clock;

use crate::world::World;

const FILES: usize = 10_000;
const TTL: Duration = Duration::from_secs(3600);

/// The files' numbers by name, and their contents.
type Files = (HashMap<Vec<u8>, u64>, Vec<Vec<u8>>);

#[derive(Default)]
struct Memory(Mutex<Files>);

fn attr(ino: u64, size: u64) -> FileAttr {
    let (kind, perm) = if ino == 1 { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o644) };
    let time = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Memory {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.lock().unwrap().0.get(name.as_encoded_bytes()) {
            Some(ino) => reply.entry(&TTL, &attr(*ino, 64), Generation(0)),
            None => reply.entry_with_ttls(&TTL, &TTL, &attr(0, 0), Generation(0)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino.0, 64));
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut tree = self.0.lock().unwrap();
        tree.1.push(Vec::new());
        let ino = tree.1.len() as u64 + 1;
        tree.0.insert(name.as_encoded_bytes().to_vec(), ino);
        reply.created(&TTL, &attr(ino, 0), Generation(0), FileHandle(ino), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.lock().unwrap().1[usize::try_from(ino.0).unwrap() - 2] = data.to_vec();
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

fn rate(files: usize, mut work: impl FnMut(usize)) -> f64 {
    let start = clock::monotonic();
    (0..files).for_each(&mut work);
    let count = u32::try_from(files).unwrap();
    f64::from(count) / (clock::monotonic() - start).as_secs_f64()
}

fn creates(at: &Path) -> f64 {
    rate(FILES, |n| fs::write(at.join(format!("f{n}")), [b'x'; 64]).unwrap())
}

fn stats(at: &Path) -> f64 {
    let paths: Vec<_> = (0..FILES).map(|n| at.join(format!("f{n}"))).collect();
    assert!(paths.iter().all(|path| fs::metadata(path).is_ok()));
    rate(FILES * 10, |n| assert!(fs::metadata(&paths[n % FILES]).is_ok()))
}

fn reads(at: &Path) -> f64 {
    let paths: Vec<_> = (0..FILES).map(|n| at.join(format!("f{n}"))).collect();
    paths.iter().for_each(|path| drop(fs::read(path).unwrap()));
    rate(FILES * 2, |n| drop(fs::read(&paths[n % FILES]).unwrap()))
}

#[test]
#[ignore = "measures; run it alone"]
fn speed() {
    let world = World::new();
    let memory = world.dir.path().join("memory");
    let disk = world.dir.path().join("disk");
    fs::create_dir(&memory).unwrap();
    fs::create_dir(&disk).unwrap();
    let mut config = Config::default();
    config.n_threads = Some(2);
    let session = Session::new(Memory::default(), &memory, &config).unwrap().spawn().unwrap();
    let reference = creates(&memory);
    let ours = creates(&world.key(""));
    let ext4 = creates(&disk);
    println!("creates/s: mount {ours:.0}, in memory {reference:.0}, disk {ext4:.0}, ratio {:.2}", ours / reference);
    let (ours, ext4) = (stats(&world.key("")), stats(&disk));
    println!("warm stat/s: mount {ours:.0}, disk {ext4:.0}, ratio {:.2}", ours / ext4);
    let (ours, ext4) = (reads(&world.key("")), reads(&disk));
    println!("warm read/s: mount {ours:.0}, disk {ext4:.0}, ratio {:.2}", ours / ext4);
    session.umount_and_join().unwrap();
}

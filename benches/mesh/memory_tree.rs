//! The reference for the mount: a file system on the same FUSE library that keeps a tree in memory and does nothing else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::from_secs(3600);

struct Inode {
    mode: u32,
    mtime: SystemTime,
    what: What,
}

enum What {
    File(Vec<u8>),
    Directory(Children),
}

/// The files in a directory, in the order in which they were made: the offset of a listing is a place in it.
#[derive(Default)]
struct Children {
    inodes: HashMap<Vec<u8>, (usize, u64)>,
    order: Vec<Option<(Vec<u8>, u64)>>,
}

impl Children {
    fn get(&self, name: &[u8]) -> Option<u64> {
        self.inodes.get(name).map(|(_, ino)| *ino)
    }

    fn insert(&mut self, name: &[u8], ino: u64) {
        self.remove(name);
        self.inodes.insert(name.to_vec(), (self.order.len(), ino));
        self.order.push(Some((name.to_vec(), ino)));
    }

    fn remove(&mut self, name: &[u8]) -> Option<u64> {
        let (place, ino) = self.inodes.remove(name)?;
        self.order[place] = None;
        Some(ino)
    }
}

#[derive(Default)]
struct Tree {
    inodes: HashMap<u64, Inode>,
    last: u64,
}

struct MemoryTree(Mutex<Tree>);

impl Tree {
    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let inode = self.inodes.get(&ino)?;
        let (kind, size) = match &inode.what {
            What::File(content) => (FileType::RegularFile, content.len() as u64),
            What::Directory(_) => (FileType::Directory, 0),
        };
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: inode.mtime,
            crtime: inode.mtime,
            kind,
            perm: u16::try_from(inode.mode & 0o7777).unwrap_or(0o644),
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        match &self.inodes.get(&parent)?.what {
            What::Directory(children) => children.get(name.as_bytes()),
            What::File(_) => None,
        }
    }

    fn add(&mut self, parent: u64, name: &OsStr, mode: u32, what: What) -> u64 {
        self.last += 1;
        let ino = self.last;
        self.inodes.insert(ino, Inode { mode, mtime: SystemTime::now(), what });
        if let Some(Inode { what: What::Directory(children), .. }) = self.inodes.get_mut(&parent) {
            children.insert(name.as_bytes(), ino);
        }
        ino
    }

    /// What is in a directory from `offset` on: the offset behind each, its inode and its name.
    fn list(&self, ino: u64, offset: u64) -> impl Iterator<Item = (u64, u64, &Vec<u8>)> {
        let order = match self.inodes.get(&ino).map(|inode| &inode.what) {
            Some(What::Directory(children)) => children.order.as_slice(),
            Some(What::File(_)) | None => &[],
        };
        let rest = usize::try_from(offset).ok().and_then(|offset| order.get(offset..)).unwrap_or_default();
        let rest = rest.iter().zip(offset + 1..);
        rest.filter_map(|(child, behind)| child.as_ref().map(|(name, ino)| (behind, *ino, name)))
    }
}

impl MemoryTree {
    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut tree = self.lock();
        if let Some(Inode { what: What::Directory(children), .. }) = tree.inodes.get_mut(&parent.0)
            && let Some(ino) = children.remove(name.as_bytes())
        {
            tree.inodes.remove(&ino);
            return reply.ok();
        }
        reply.error(Errno::ENOENT);
    }
}

impl Filesystem for MemoryTree {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let want = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO | InitFlags::FUSE_PARALLEL_DIROPS;
        config.add_capabilities(want).map_err(|missing| std::io::Error::other(format!("{missing:?}")))?;
        config.set_max_write(1 << 20).map(drop).map_err(|most| std::io::Error::other(most.to_string()))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.lock();
        match tree.child(parent.0, name).and_then(|ino| tree.attr(ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.lock().attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.lock();
        if let Some(inode) = tree.inodes.get_mut(&ino.0) {
            inode.mode = mode.unwrap_or(inode.mode);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => inode.mtime = time,
                Some(TimeOrNow::Now) => inode.mtime = SystemTime::now(),
                None => {}
            }
            if let (Some(size), What::File(content)) = (size, &mut inode.what) {
                content.resize(usize::try_from(size).unwrap_or(0), 0);
            }
        }
        match tree.attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let mut tree = self.lock();
        let ino = tree.add(parent.0, name, mode, What::Directory(Children::default()));
        match tree.attr(ino) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::EIO),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut tree = self.lock();
        let ino = tree.add(parent.0, name, mode, What::File(Vec::new()));
        match tree.attr(ino) {
            Some(attr) => {
                reply.created(&TTL, &attr, Generation(0), FileHandle(ino), FopenFlags::FOPEN_KEEP_CACHE);
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let reading = flags.0 & libc::O_ACCMODE == libc::O_RDONLY;
        let noflush = if reading { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() };
        reply.opened(FileHandle(ino.0), FopenFlags::FOPEN_KEEP_CACHE | noflush);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.lock().inodes.get(&ino.0).map(|inode| &inode.what) {
            Some(What::File(content)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let end = start.saturating_add(size as usize).min(content.len());
                reply.data(&content[start..end]);
            }
            Some(What::Directory(_)) | None => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.lock().inodes.get_mut(&ino.0).map(|inode| &mut inode.what) {
            Some(What::File(content)) => {
                let start = usize::try_from(offset).unwrap_or(0);
                if content.len() < start + data.len() {
                    content.resize(start + data.len(), 0);
                }
                content[start..start + data.len()].copy_from_slice(data);
                reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
            }
            Some(What::Directory(_)) | None => reply.error(Errno::EISDIR),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tree = self.lock();
        for (behind, child, name) in tree.list(ino.0, offset) {
            let kind = tree.attr(child).map_or(FileType::RegularFile, |attr| attr.kind);
            if reply.add(INodeNo(child), behind, kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let tree = self.lock();
        for (behind, child, name) in tree.list(ino.0, offset) {
            let Some(attr) = tree.attr(child) else { continue };
            let full = reply.add(INodeNo(child), behind, OsStr::from_bytes(name), &TTL, &attr, Generation(0));
            if full {
                break;
            }
        }
        reply.ok();
    }
}

/// Mounts an empty tree at `at` and serves it until it is unmounted.
pub(crate) fn serve(at: &Path) -> std::io::Result<()> {
    let mut tree = Tree { last: 1, ..Tree::default() };
    let root = Inode { mode: 0o755, mtime: UNIX_EPOCH, what: What::Directory(Children::default()) };
    tree.inodes.insert(1, root);
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("memory".into()), fuser::MountOption::DefaultPermissions];
    config.n_threads = Some(2);
    fuser::mount(MemoryTree(Mutex::new(tree)), at, &config)
}

//! The kernel's calls, turned into the tree's. Thin: all meaning is below.

mod call;
mod reply;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use self::call::REPLAY;
use self::reply::{attribute, done, file_type};
use super::errno::{self, Answer, Failure};
use super::place::{Attr, Type};
use super::pool::Pool;
use super::rename::End;
use super::setattr::Wanted;
use super::tree::{Found, Handle, NONE, Tree};
use super::write::Writer;
use crate::clock;
use crate::stores::kv::{KvError, PATIENCE};

/// Bytes that the kernel hands over at once at most.
const MAX_WRITE: u32 = 1 << 20;

/// The file system as fuser wants it.
pub(crate) struct Adapter {
    tree: Arc<Tree>,
    /// For what waits for the disk or copies much.
    disk: Arc<Pool>,
    /// For what waits for the network.
    network: Arc<Pool>,
}

impl Adapter {
    pub(crate) fn new(tree: Arc<Tree>) -> std::io::Result<Self> {
        let disk = Arc::new(Pool::new("fs-disk", 8)?);
        Ok(Self { tree, disk, network: Arc::new(Pool::new("fs-network", 8)?) })
    }
}

fn nanos(time: TimeOrNow) -> i64 {
    match time {
        TimeOrNow::Now => clock::nanos(),
        TimeOrNow::SpecificTime(time) => clock::nanos_of(time),
    }
}

fn absent(error: &Failure) -> bool {
    matches!(error, Failure::Kv(KvError::Absent(_)))
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> std::io::Result<()> {
        // Not FUSE_ATOMIC_O_TRUNC: with it the kernel drops the pages of a program that runs before it refuses the opening.
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            // Or each write would ask for the attribute `security.capability` first. Instead each file is asked for it once, and it is
            // for us to take away what lets a program run as another user.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        if let Err(unknown) = kernel.add_capabilities(wanted) {
            let known = kernel.add_capabilities(wanted & !unknown);
            tracing::info!(target: "fs", ?unknown, ?known, "the kernel can't do all that was asked");
        }
        if let Err(most) = kernel.set_max_write(MAX_WRITE) {
            tracing::info!(target: "fs", most, "the kernel writes less at once");
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let look = || {
            if self.replays(request) {
                return self.tree.replayed_lookup(parent.0, name.as_bytes());
            }
            if parent == INodeNo::ROOT {
                self.tree.replay.greeted(name.as_bytes(), request.pid());
            }
            self.tree.lookup(parent.0, name.as_bytes())
        };
        match self.call("lookup", parent.0).named(name).run(look) {
            Ok(Found::This(attr, ttl)) => {
                let attr = if self.replays(request) { self.linked(&attr) } else { self.file_attr(&attr) };
                reply.entry_with_ttls(&ttl, &ttl, &attr, Generation(0));
            }
            Ok(Found::Nothing(NONE)) => reply.error(Errno::ENOENT),
            Ok(Found::Nothing(ttl)) => {
                let nothing = Attr { ino: 0, kind: Type::File, mode: 0, size: 0, mtime: 0 };
                reply.entry_with_ttls(&ttl, &ttl, &self.file_attr(&nothing), Generation(0));
            }
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.tree.table().forget(ino.0, times);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if self.replays(request) {
            return match self.call(REPLAY, ino.0).run(|| self.tree.replayed_attr(ino.0)) {
                Ok(attr) => reply.attr(&NONE, &self.linked(&attr)),
                Err(error) => reply.error(error),
            };
        }
        match self.call("getattr", ino.0).run(|| Ok((self.tree.attr(ino.0)?, self.tree.ttl(ino.0)))) {
            Ok((attr, ttl)) => reply.attr(&ttl, &self.file_attr(&attr)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if self.replays(request) {
            return match self.call(REPLAY, ino.0).run(|| self.tree.attr(ino.0)) {
                Ok(attr) => reply.attr(&NONE, &self.linked(&attr)),
                Err(error) => reply.error(error),
            };
        }
        let tree = Arc::clone(&self.tree);
        let wanted = Wanted {
            mode: mode.map(|mode| mode & 0o7777),
            atime: atime.map(nanos),
            mtime: mtime.map(nanos),
            size,
            tame: uid.is_some() || gid.is_some() || (size.is_some() && request.uid() != 0),
        };
        // Root may give files away; that is not kept here, and refusing it would fail each `cp -a` and `tar x` of root's.
        let refused = request.uid() != 0 && uid.is_some_and(|uid| uid != self.tree.owner.0);
        let work = move || {
            if refused {
                return Err(errno::OWNER);
            }
            let handle = fh.map(|fh| tree.handle(fh.0)).transpose()?;
            let file = match handle.as_deref() {
                Some(Handle::File(file)) => Some(file),
                _ => None,
            };
            tree.set(ino.0, wanted, file)
        };
        if size.is_some_and(|size| size > 0) || self.tree.crowded(ino.0) {
            // It may have to bring in a large value first, or to wait for the disk.
            let (attr, call, ttl) = (self.shaper(), self.call("setattr", ino.0), self.tree.ttl(ino.0));
            self.on(&self.network, reply, ReplyAttr::error, move |reply| match call.run(work) {
                Ok(found) => reply.attr(&ttl, &attr(&found)),
                Err(error) => reply.error(error),
            });
            return;
        }
        match self.call("setattr", ino.0).run(work) {
            Ok(attr) => reply.attr(&self.tree.ttl(ino.0), &self.file_attr(&attr)),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.call("readlink", ino.0).run(|| self.tree.read_link(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        let result = self.call("mknod", parent.0).named(name).run(|| {
            if mode & libc::S_IFMT != libc::S_IFREG {
                return Err(Failure::Refused(libc::EPERM, "devices, pipes and sockets can't be kept"));
            }
            let (attr, open) = self.tree.create(parent.0, name.as_bytes(), mode, libc::O_EXCL | libc::O_RDONLY)?;
            self.tree.close(open.handle)?;
            Ok(attr)
        });
        self.entry(reply, result);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        if self.replays(request) {
            return self.replayed(parent, name, Type::Directory, reply);
        }
        let call = self.call("mkdir", parent.0).named(name);
        let (tree, name) = (Arc::clone(&self.tree), name.as_bytes().to_vec());
        let by = request.pid();
        let work = move || {
            tree.does(by, parent.0, &name);
            tree.make_directory(parent.0, &name, mode)
        };
        self.change_entry(call, reply, work);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.replays(request) {
            return done(
                reply,
                self.call(REPLAY, parent.0).run(|| self.tree.replayed_removing(parent.0, name.as_bytes())),
            );
        }
        let call = self.call("unlink", parent.0).named(name);
        let (tree, name) = (Arc::clone(&self.tree), name.as_bytes().to_vec());
        let by = request.pid();
        self.change(call, false, reply, move || {
            tree.does(by, parent.0, &name);
            tree.remove(by, parent.0, &name)
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.replays(request) {
            return done(
                reply,
                self.call(REPLAY, parent.0).run(|| self.tree.replayed_removing(parent.0, name.as_bytes())),
            );
        }
        let call = self.call("rmdir", parent.0).named(name);
        let (tree, name) = (Arc::clone(&self.tree), name.as_bytes().to_vec());
        let by = request.pid();
        self.change(call, false, reply, move || {
            tree.does(by, parent.0, &name);
            tree.remove_directory(parent.0, &name)
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        if self.replays(request) {
            return self.replayed(parent, name, Type::Symlink, reply);
        }
        let call = self.call("symlink", parent.0).named(name);
        let (tree, name) = (Arc::clone(&self.tree), name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        let by = request.pid();
        self.change_entry(call, reply, move || {
            tree.does(by, parent.0, &name);
            tree.make_link(parent.0, &name, &target)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = self.call("rename", parent.0).named(name);
        let (tree, name, newname) = (Arc::clone(&self.tree), name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let by = request.pid();
        let work = move || {
            tree.does(by, newparent.0, &newname);
            let from = End { parent: parent.0, name: &name };
            tree.rename(from, End { parent: newparent.0, name: &newname }, flags.bits())
        };
        self.change(call, self.tree.renaming_takes_long(parent.0), reply, work);
    }

    fn link(&self, _: &Request, _: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, self.call("link", parent.0).named(name).run(|| Err(errno::NO_LINKS)));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let replayed = self.replays(request);
        let open = || if replayed { Ok(self.tree.replayed_opening()) } else { self.tree.open(ino.0, flags.0) };
        match self.call(if replayed { REPLAY } else { "open" }, ino.0).run(open) {
            Ok(open) => reply.opened(FileHandle(open.handle), Self::fopen(open.caching)),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let replayed = self.replays(request);
        let create = || {
            if replayed {
                let attr = self.tree.replayed_making(parent.0, name.as_bytes(), Type::File)?;
                return Ok((attr, self.tree.replayed_opening()));
            }
            self.tree.does(request.pid(), parent.0, name.as_bytes());
            self.tree.create(parent.0, name.as_bytes(), mode, flags)
        };
        match self.call(if replayed { REPLAY } else { "create" }, parent.0).named(name).run(create) {
            Ok((attr, open)) => {
                let flags = Self::fopen(open.caching);
                let ttl = if replayed { NONE } else { self.tree.ttl(attr.ino) };
                reply.created(&ttl, &self.file_attr(&attr), Generation(0), FileHandle(open.handle), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        if let Some(reader) = self.tree.follows(fh.0) {
            let waits = flags.0 & libc::O_NONBLOCK == 0;
            let call = self.call("read", ino.0);
            let answer = move |answer: Answer<Vec<u8>>| match call.run(|| answer) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error),
            };
            return self.tree.changes.read(reader, size, request.pid(), waits, Box::new(answer));
        }
        let tree = Arc::clone(&self.tree);
        let read = move |patience| tree.handle(fh.0).and_then(|handle| tree.read(&handle, offset, size, patience));
        let mut missing = false;
        let here = self.call("read", ino.0).run(|| {
            let result = read(Duration::ZERO);
            missing = result.as_ref().is_err_and(absent);
            if missing { Ok(Vec::new()) } else { result }
        });
        match here {
            Ok(_) if missing => {
                let (busy, call) = (self.tree.busy(ino.0), self.call("read", ino.0));
                self.on(&self.network, reply, ReplyData::error, move |reply| {
                    let result = call.run(|| read(PATIENCE));
                    drop(busy);
                    match result {
                        Ok(bytes) => reply.data(&bytes),
                        Err(error) => reply.error(error),
                    }
                });
            }
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let by = Writer { thread: request.pid(), tame: write.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) };
        let append = flags.0 & libc::O_APPEND != 0 && !write.contains(WriteFlags::FUSE_WRITE_CACHE);
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let answer = move |reply: ReplyWrite, result: Result<(), Errno>| match result {
            Ok(()) => reply.written(size),
            Err(error) => reply.error(error),
        };
        if self.tree.writing_takes_long(fh.0) {
            let (tree, data) = (Arc::clone(&self.tree), data.to_vec());
            let (busy, call) = (self.tree.busy(ino.0), self.call("write", ino.0));
            self.on(&self.network, reply, ReplyWrite::error, move |reply| {
                let result = call.run(|| tree.write_handle(by, fh.0, offset, &data, append));
                drop(busy);
                answer(reply, result);
            });
            return;
        }
        answer(reply, self.call("write", ino.0).run(|| self.tree.write_handle(by, fh.0, offset, data, append)));
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let tree = Arc::clone(&self.tree);
        let by = request.pid();
        let work = move || tree.flush_handle(by, fh.0);
        self.change(self.call("flush", ino.0), self.tree.flushing_takes_long(fh.0), reply, work);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let tree = Arc::clone(&self.tree);
        let work = move || tree.close(fh.0);
        self.change(self.call("release", ino.0), self.tree.flushing_takes_long(fh.0), reply, work);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (tree, by) = (Arc::clone(&self.tree), request.pid());
        let (busy, call) = (self.tree.busy(ino.0), self.call("fallocate", ino.0));
        // It may have to bring in a large value first.
        self.on(&self.network, reply, ReplyEmpty::error, move |reply| {
            let result = call.run(|| tree.allocate_handle(by, fh.0, offset, length, mode));
            drop(busy);
            done(reply, result);
        });
    }

    /// Never asked again: the kernel copies by reading and writing.
    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// Never asked again: the kernel takes a file for one piece, without holes.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let tree = Arc::clone(&self.tree);
        let work = move || tree.sync_handle(fh.0);
        let call = self.call("fsync", ino.0);
        self.on(&self.disk, reply, ReplyEmpty::error, move |reply| done(reply, call.run(work)));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let tree = Arc::clone(&self.tree);
        let work = move || tree.sync_directory(ino.0);
        let call = self.call("fsyncdir", ino.0);
        self.on(&self.disk, reply, ReplyEmpty::error, move |reply| done(reply, call.run(work)));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.call("opendir", ino.0).run(|| self.tree.open_directory(ino.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.call("readdir", ino.0).run(|| {
            let handle = self.tree.handle(fh.0)?;
            self.tree.list(&handle, offset, false, &mut |item| {
                reply.add(INodeNo(item.ino), item.next, file_type(item.kind), OsStr::from_bytes(item.name))
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let result = self.call("readdirplus", ino.0).run(|| {
            let handle = self.tree.handle(fh.0)?;
            self.tree.list(&handle, offset, true, &mut |item| {
                let Some((attr, ttl)) = item.attr else { return false };
                let attr = self.file_attr(&attr);
                let name = OsStr::from_bytes(item.name);
                reply.add(INodeNo(item.ino), item.next, name, &ttl, &attr, Generation(0))
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        done(
            reply,
            self.call("releasedir", ino.0).run(|| {
                self.tree.close_directory(fh.0);
                Ok(())
            }),
        );
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.call("statfs", ino.0).run(|| Ok(self.tree.space.ask()?)) {
            Ok(disk) => {
                let size = u32::try_from(disk.fragment_size()).unwrap_or(4096);
                let (files, free) = (disk.files(), disk.files_free());
                let (total, left, available) = (disk.blocks(), disk.blocks_free(), disk.blocks_available());
                reply.statfs(total, left, available, files, free, size, 255, size);
            }
            Err(error) => reply.error(error),
        }
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        if !name.as_bytes().starts_with(b"user.") {
            // Lists of access rights and labels: programs that copy try these by habit.
            return reply.error(Errno::EOPNOTSUPP);
        }
        done(reply, self.call("setxattr", ino.0).run(|| Tree::set_attribute(name.as_bytes())));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        attribute(reply, size, self.call("getxattr", ino.0).run(|| self.tree.attribute(ino.0, name.as_bytes())));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        attribute(reply, size, self.call("listxattr", ino.0).run(|| self.tree.attribute_names(ino.0)));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.call("removexattr", ino.0).run(|| Tree::set_attribute(name.as_bytes())));
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        let Some(reader) = self.tree.follows(fh.0) else {
            let all = PollEvents::POLLIN | PollEvents::POLLOUT | PollEvents::POLLRDNORM | PollEvents::POLLWRNORM;
            return reply.poll(all);
        };
        let wake = move || {
            if let Err(error) = notifier.notify() {
                tracing::debug!(target: "fs", %error, "the kernel did not take a notice");
            }
        };
        let ready = self.tree.changes.poll(reader, Box::new(wake));
        reply.poll(if ready { PollEvents::POLLIN | PollEvents::POLLRDNORM } else { PollEvents::empty() });
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

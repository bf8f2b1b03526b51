//! Answers to the kernel: what they say, and from where they are given.

use std::sync::Arc;

use fuser::{Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::Adapter;
use super::call::Call;
use crate::clock;
use crate::fs::errno::Answer;
use crate::fs::place::{Attr, Type};
use crate::fs::pool::Pool;
use crate::fs::tree::{Caching, locked};

impl Adapter {
    pub(super) fn file_attr(&self, attr: &Attr) -> FileAttr {
        let stamps = self.tree.table().stamps(attr.ino);
        // What was written since then changed it as well; a time in the future that was set is no such write.
        let ctime = stamps.ctime.filter(|ctime| *ctime >= attr.mtime || attr.mtime > clock::nanos());
        #[allow(clippy::cast_possible_truncation, reason = "permission bits")]
        let perm = (attr.mode & 0o7777) as u16;
        FileAttr {
            ino: INodeNo(attr.ino),
            size: attr.size,
            blocks: attr.size.div_ceil(512),
            atime: clock::system(stamps.atime.unwrap_or(attr.mtime)),
            mtime: clock::system(attr.mtime),
            ctime: clock::system(ctime.unwrap_or(attr.mtime)),
            crtime: clock::system(attr.mtime),
            kind: file_type(attr.kind),
            perm,
            nlink: u32::from(!stamps.gone),
            uid: self.tree.owner.0,
            gid: self.tree.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The attributes for the thread that replays. What it removes is linked until it has done so: of what is not the kernel tells watchers
    /// that it is gone, and forgets them.
    pub(super) fn linked(&self, attr: &Attr) -> FileAttr {
        FileAttr { nlink: 1, ..self.file_attr(attr) }
    }

    pub(super) fn entry(&self, reply: ReplyEntry, result: Result<Attr, Errno>) {
        match result {
            Ok(attr) => reply.entry(&self.tree.ttl(attr.ino), &self.file_attr(&attr), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    pub(super) fn fopen(caching: Caching) -> FopenFlags {
        match caching {
            Caching::Keep => FopenFlags::FOPEN_KEEP_CACHE,
            Caching::KeepUnflushed => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            Caching::Default => FopenFlags::FOPEN_NOFLUSH,
            Caching::Direct => FopenFlags::FOPEN_DIRECT_IO,
            Caching::Stream => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM,
        }
    }

    /// Makes a change, and answers: here, unless it takes long or the disk does not keep up.
    pub(super) fn change(
        &self,
        call: Call,
        long: bool,
        reply: ReplyEmpty,
        work: impl FnOnce() -> Answer<()> + Send + 'static,
    ) {
        if long || self.tree.crowded(call.ino) {
            self.on(&self.disk, reply, ReplyEmpty::error, move |reply| done(reply, call.run(work)));
        } else {
            done(reply, call.run(work));
        }
    }

    /// The same, for what makes a name.
    pub(super) fn change_entry(
        &self,
        call: Call,
        reply: ReplyEntry,
        work: impl FnOnce() -> Answer<Attr> + Send + 'static,
    ) {
        if !self.tree.crowded(call.ino) {
            return self.entry(reply, call.run(work));
        }
        let (attr, tree) = (self.shaper(), Arc::clone(&self.tree));
        self.on(&self.disk, reply, ReplyEntry::error, move |reply| match call.run(work) {
            Ok(made) => reply.entry(&tree.ttl(made.ino), &attr(&made), Generation(0)),
            Err(error) => reply.error(error),
        });
    }

    /// Answers from a pool; if that is full, at once with EBUSY.
    pub(super) fn on<R: Send + 'static>(
        &self,
        pool: &Pool,
        reply: R,
        refuse: fn(R, Errno),
        work: impl FnOnce(R) + Send + 'static,
    ) {
        // The reply goes with the job only once there is room for it.
        let slot = Arc::new(std::sync::Mutex::new(Some(reply)));
        let taken = Arc::clone(&slot);
        let call = self.tree.calls.begin();
        let queued = pool.run(move || {
            if let Some(reply) = locked(&taken).take() {
                work(reply);
            }
            drop(call);
        });
        if !queued && let Some(reply) = locked(&slot).take() {
            refuse(reply, Errno::EBUSY);
        }
    }

    /// Turns attributes into the kernel's, elsewhere.
    pub(super) fn shaper(&self) -> impl Fn(&Attr) -> FileAttr + Send + 'static {
        let other =
            Self { tree: Arc::clone(&self.tree), disk: Arc::clone(&self.disk), network: Arc::clone(&self.network) };
        move |attr| other.file_attr(attr)
    }
}

pub(super) const fn file_type(kind: Type) -> FileType {
    match kind {
        Type::File => FileType::RegularFile,
        Type::Directory => FileType::Directory,
        Type::Symlink => FileType::Symlink,
    }
}

pub(super) fn done(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// Answers who asks for an attribute, or with no `size` for its size.
pub(super) fn attribute(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}

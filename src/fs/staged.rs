//! What is staged, on this node's disk: the directory that it is in, held open, and its name there.
//!
//! Nothing here follows a symbolic link, neither at the end of a path nor on the way: what is staged may be anything, and another mount may
//! put a link in the place of a directory at any time. So no call leads out of the transaction.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, open, openat, openat2, readlinkat, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::errno::{self, Answer};
use crate::stores::kv::Tx;

/// A name in a transaction, whether there is something or not.
pub(crate) struct Staged {
    pub(crate) tx: Arc<Tx>,
    directory: OwnedFd,
    name: OsString,
}

/// The path of what is held open, whatever its name is by now.
pub(crate) fn link(held: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

/// Sets the times of what is held open, were it a symbolic link.
pub(crate) fn set_times(held: &File, atime: &TimeSpec, mtime: &TimeSpec) -> io::Result<()> {
    // Only the kernel's link to it is followed.
    Ok(utimensat(nix::fcntl::AT_FDCWD, &link(held), atime, mtime, UtimensatFlags::FollowSymlink)?)
}

impl Staged {
    /// The path `rest` in a transaction; without one the transaction's own directory.
    ///
    /// # Errors
    /// ESTALE if what leads there is no directory any more, ENOENT if it is gone.
    pub(crate) fn find(tx: Arc<Tx>, rest: Option<&[u8]>) -> Answer<Self> {
        let files = tx.files();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let hold = |at: &std::path::Path| open(at, flags, Mode::empty()).map_err(io::Error::from);
        let Some(rest) = rest else {
            let (Some(above), Some(name)) = (files.parent(), files.file_name()) else { return Err(errno::MISSING) };
            return Ok(Self { directory: hold(above)?, name: name.to_owned(), tx });
        };
        let top = hold(&files)?;
        let (directory, name) = match rest.iter().rposition(|byte| *byte == b'/') {
            Some(end) => {
                let inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
                let how = OpenHow::new().flags(flags).resolve(inside);
                let directory = openat2(&top, OsStr::from_bytes(&rest[..end]), how).map_err(|error| match error {
                    Errno::ELOOP | Errno::ENOTDIR => errno::STALE,
                    error => io::Error::from(error).into(),
                })?;
                (directory, &rest[end + 1..])
            }
            None => (top, rest),
        };
        Ok(Self { tx, directory, name: OsStr::from_bytes(name).to_owned() })
    }

    /// Opens what is there with these flags.
    pub(crate) fn open(&self, flags: i32) -> io::Result<File> {
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, self.name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
    }

    /// Holds what is there, were it a symbolic link, without opening it for anything.
    pub(crate) fn hold(&self) -> io::Result<File> {
        self.open(libc::O_PATH)
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.hold()?.metadata()
    }

    /// Where the symbolic link there points.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.directory, self.name.as_os_str())?.as_bytes().to_vec())
    }

    pub(crate) fn make_directory(&self) -> io::Result<()> {
        Ok(mkdirat(&self.directory, self.name.as_os_str(), Mode::S_IRWXU)?)
    }

    pub(crate) fn make_link(&self, to: &[u8]) -> io::Result<()> {
        Ok(symlinkat(OsStr::from_bytes(to), &self.directory, self.name.as_os_str())?)
    }

    /// Sets the permissions of a file or a directory.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(link(&self.hold()?), Permissions::from_mode(mode))
    }

    pub(crate) fn remove(&self, directory: bool) -> io::Result<()> {
        let how = if directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        Ok(unlinkat(&self.directory, self.name.as_os_str(), how)?)
    }

    pub(crate) fn rename(&self, to: &Self, how: RenameFlags) -> io::Result<()> {
        Ok(renameat2(&self.directory, self.name.as_os_str(), &to.directory, to.name.as_os_str(), how)?)
    }
}

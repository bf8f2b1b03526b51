//! The system's mounts: which there are, making and ending ours.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use nix::unistd::AccessFlags;

use super::session::MountError;

const CLOSED_DEVICE: &str = "/dev/fuse can't be opened; an administrator opens it to all with: chmod 666 /dev/fuse";

/// The type under which `mount` lists ours.
pub(crate) const TYPE: &str = "fuse.lattice";

/// A mount of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The minor number of its device: also the number of its FUSE connection.
    pub(crate) minor: u64,
    pub(crate) at: PathBuf,
    pub(crate) kind: String,
}

/// All mounts that this process sees, the uppermost of a path last.
pub(crate) fn all() -> std::io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

fn parse(text: &[u8]) -> Vec<Entry> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let device = std::str::from_utf8(fields.get(2)?).ok()?;
        let dash = fields.iter().position(|field| *field == b"-")?;
        Some(Entry {
            minor: device.split_once(':')?.1.parse().ok()?,
            at: PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(fields.get(4)?))),
            kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        if *first == b'\\'
            && let Some((digits, after)) = more.split_first_chunk::<3>()
            && let Some(byte) = std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 8).ok())
        {
            out.push(byte);
            rest = after;
        } else {
            out.push(*first);
            rest = more;
        }
    }
    out
}

/// The uppermost mount at exactly this path.
pub(crate) fn uppermost(at: &Path) -> std::io::Result<Option<Entry>> {
    Ok(all()?.into_iter().rfind(|entry| entry.at == at))
}

/// Takes a mount away from the tree, at once, even if someone sits in it; only if it is the uppermost at its path.
pub(crate) fn detach(at: &Path, minor: u64) -> std::io::Result<()> {
    if uppermost(at)?.is_none_or(|entry| entry.minor != minor) {
        return Ok(());
    }
    match nix::mount::umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EPERM) => {
            let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(at).output()?;
            if output.status.success() {
                return Ok(());
            }
            Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Ends a FUSE connection: whoever waits for an answer gets an error.
pub(crate) fn abort(minor: u64) -> std::io::Result<()> {
    std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), b"1")
}

/// Mounts at `at`, and returns what is to be answered on.
pub(crate) fn make(at: &Path, everyone: bool) -> Result<OwnedFd, MountError> {
    if nix::unistd::geteuid().is_root() { as_root(at, everyone) } else { as_user(at, everyone) }
}

fn as_root(at: &Path, everyone: bool) -> Result<OwnedFd, MountError> {
    let mode = std::fs::metadata(at).map_err(|error| MountError::io(at, error))?.permissions().mode();
    let device = File::options().read(true).write(true).open("/dev/fuse").map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => MountError::NotAllowed(CLOSED_DEVICE.into()),
        _ => MountError::NoDevice,
    })?;
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let everyone = if everyone { ",allow_other" } else { "" };
    let fd = device.as_raw_fd();
    let options = format!("fd={fd},rootmode={mode:o},user_id={uid},group_id={gid},default_permissions{everyone}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("lattice"), at, Some(TYPE), flags, Some(options.as_str())).map_err(|error| match error {
        Errno::ENODEV => MountError::NoDevice,
        Errno::EPERM => MountError::NotAllowed("mount(2) was refused: it takes CAP_SYS_ADMIN".into()),
        error => MountError::io(at, error.into()),
    })?;
    Ok(device.into())
}

/// Lets the system's helper mount, as any user may.
fn as_user(at: &Path, everyone: bool) -> Result<OwnedFd, MountError> {
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoDevice);
    }
    // The helper opens it as this user, too, and its words would not say what to do.
    if nix::unistd::access("/dev/fuse", AccessFlags::R_OK | AccessFlags::W_OK).is_err() {
        return Err(MountError::NotAllowed(CLOSED_DEVICE.into()));
    }
    if nix::unistd::access(at, AccessFlags::W_OK).is_err() {
        return Err(MountError::NotYours(at.to_owned()));
    }
    let io = |error: Errno| MountError::io(at, error.into());
    let kind = SockType::Stream;
    // The helper's end must outlive exec; ours must not reach it.
    let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).map_err(io)?;
    let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(&ours, close).map_err(io)?;
    let everyone = if everyone { ",allow_other" } else { "" };
    let options = format!("nosuid,nodev,fsname=lattice,subtype=lattice,default_permissions{everyone}");
    let child = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(at)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    drop(theirs);
    let child = child.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => MountError::NoHelper,
        _ => MountError::io(at, error),
    })?;
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(|error| MountError::io(at, error))?;
    match device {
        Some(device) if output.status.success() => Ok(device),
        _ => Err(MountError::NotAllowed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The descriptor that the helper sends.
fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(std::os::fd::RawFd);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            other => break other.ok()?,
        }
    };
    let fd = message.cmsgs().ok()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    })?;
    #[allow(unsafe_code, reason = "nix hands over a received descriptor as a bare number")]
    // SAFETY: the kernel made this descriptor for us with the message, and nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_is_read_as_it_is() {
        let text = b"36 35 0:52 / /mnt/a\\040b rw,nosuid shared:1 - fuse.lattice lattice rw\nrubbish\n";
        let entry = Entry { minor: 52, at: PathBuf::from("/mnt/a b"), kind: TYPE.to_owned() };
        assert_eq!(parse(text), [entry]);
    }
}

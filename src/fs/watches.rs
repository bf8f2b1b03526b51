//! Which inodes of a mount someone watches, as far as the system says.
//!
//! The kernel does not tell a file system of its watchers, but shows each process's own under `/proc`. Looking through all of them takes
//! milliseconds: worth it for many changes, not for one.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The inodes of a mount that are watched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// It can't be told, or a whole mount is watched.
    Any,
    These(HashSet<u64>),
}

impl Watched {
    pub(crate) fn has(&self, ino: u64) -> bool {
        match self {
            Self::Any => true,
            Self::These(inodes) => inodes.contains(&ino),
        }
    }
}

/// What processes that this one may look into watch, of the file system with the anonymous device `minor`.
pub(crate) fn of(minor: u64) -> Watched {
    let mut inodes = HashSet::new();
    let Ok(processes) = fs::read_dir("/proc") else { return Watched::Any };
    let number = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let mut seen = false;
    for process in processes.flatten().filter(|entry| number(&entry.file_name())) {
        // Gone, or another user's: such a one does not get into this mount either.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        seen = true;
        for descriptor in descriptors.flatten() {
            if !watches(&descriptor.path()) {
                continue;
            }
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            let Ok(text) = fs::read_to_string(info) else { continue };
            if !text.lines().all(|line| take(line, minor, &mut inodes)) {
                return Watched::Any;
            }
        }
    }
    if seen { Watched::These(inodes) } else { Watched::Any }
}

fn watches(descriptor: &Path) -> bool {
    let target = fs::read_link(descriptor).unwrap_or_default();
    matches!(target.to_str(), Some("anon_inode:inotify" | "inotify" | "anon_inode:[fanotify]"))
}

/// Takes a line of a descriptor's information; `false` if it watches more than single inodes.
fn take(line: &str, minor: u64, inodes: &mut HashSet<u64>) -> bool {
    let mut words = line.split_whitespace();
    let kind = words.next();
    if !matches!(kind, Some("inotify" | "fanotify")) {
        return true;
    }
    let (mut ino, mut device, mut mount) = (None, None, false);
    for word in words {
        let Some((name, value)) = word.split_once(':') else { continue };
        match name {
            "ino" => ino = u64::from_str_radix(value, 16).ok(),
            "sdev" => device = u64::from_str_radix(value, 16).ok(),
            "mnt_id" => mount = true,
            _ => {}
        }
    }
    // An anonymous device has the major number 0, and the kernel shows its own form of it.
    let ours = device == Some(minor);
    match ino {
        Some(ino) => {
            if ours {
                inodes.insert(ino);
            }
            true
        }
        None => !(ours || mount),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_of_this_mount_are_found_and_of_others_not() {
        let mut inodes = HashSet::new();
        for line in [
            "pos:\t0",
            "flags:\t02004000",
            "inotify wd:2 ino:9e7e sdev:3a mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d",
            "inotify wd:1 ino:a111 sdev:800013 mask:800afce ignored_mask:0",
            "fanotify flags:10 event-flags:0",
            "fanotify ino:4f969 sdev:3a mflags:0 mask:3b ignored_mask:40000000",
        ] {
            assert!(take(line, 0x3a, &mut inodes), "{line}");
        }
        assert_eq!(inodes, HashSet::from([0x9e7e, 0x4f969]));
        assert!(!take("fanotify mnt_id:12 mflags:40 mask:38 ignored_mask:40000000", 0x3a, &mut inodes));
        assert!(!take("fanotify sdev:3a mflags:0 mask:3b ignored_mask:0", 0x3a, &mut inodes));
        assert!(take("fanotify sdev:3b mflags:0 mask:3b ignored_mask:0", 0x3a, &mut inodes));
    }

    #[test]
    fn what_this_process_watches_is_found() {
        use std::os::linux::fs::MetadataExt;
        // A file system whose inodes have one number, whoever asks.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let inotify = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).unwrap();
        inotify.add_watch(directory.path(), nix::sys::inotify::AddWatchFlags::IN_CREATE).unwrap();
        let meta = fs::metadata(directory.path()).unwrap();
        let device = nix::sys::stat::major(meta.st_dev()) << 20 | nix::sys::stat::minor(meta.st_dev());
        let found = of(device);
        assert!(found.has(meta.st_ino()));
        assert!(found == Watched::Any || !found.has(meta.st_ino() + 1));
    }
}

//! The directory that a node lives in: who may use it, its identity, and where everything in it is.
//!
//! ```text
//! format            the number of this layout
//! lock              held by the daemon that runs; its content is that daemon's process id
//! identity.key      0600: "lattice-identity-1 " and the Ed25519 seed in hexadecimal
//! config.toml       the settings, if any
//! port              the port that was chosen at the first start
//! control.sock      0600: the control service
//! latticed.log      what the daemon said, when `lattice up` started it
//! meshes/ID/        the mesh's stores
//! blobs/            large values
//! drafts/           content that is written and not yet published
//! ```

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

const FORMAT: u32 = 1;
/// The key that is to take the place of the node's.
const NEXT: &str = "identity.key.next";
const IDENTITY: &str = "lattice-identity-1 ";

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another daemon has it.
    #[error("the data directory {} is in use by process {pid}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// That daemon's process, or `?`.
        pid: String,
    },
    /// It was made by a newer build.
    #[error("{}: layout {found} is newer than this build knows ({FORMAT})", path.display())]
    Newer {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// What says which layout it has does not.
    #[error("{}: no number of a layout is in it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The identity can't be used.
    #[error("{}: {what}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What to do.
        fix: String,
    },
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirectoryError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::InUse { path, .. } => {
                let down = typed(path, "down");
                format!("one node lives in one directory: stop it with `{down}`, or choose another --data")
            }
            Self::Newer { .. } => "install the newer lattice again: this one would not read it right".into(),
            Self::Format { path } => {
                format!(
                    "if this directory was made by lattice {}: echo {FORMAT} > {}",
                    env!("CARGO_PKG_VERSION"),
                    quoted(path)
                )
            }
            Self::Identity { fix, .. } => fix.clone(),
            Self::Io { path, source } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    format!("make {} yours, or choose another --data", path.display())
                }
                io::ErrorKind::StorageFull => "free some space on that disk, then start again".into(),
                io::ErrorKind::ReadOnlyFilesystem => "choose a --data on a disk that can be written".into(),
                _ => "see to what the system said, or choose another --data".into(),
            },
        }
    }
}

type Result<T> = std::result::Result<T, DirectoryError>;

/// The directory that the environment names for a node to live in, if it names one.
#[must_use]
pub fn named_data() -> Option<PathBuf> {
    std::env::var_os("LATTICE_DATA").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The directory that a node lives in when none is named.
#[must_use]
pub fn default_data() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| "/var/lib".into())
        .join("lattice")
}

/// A path as a shell has to be given it.
#[must_use]
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A `lattice` command as it has to be typed for the node in `data`, whichever is the default elsewhere.
#[must_use]
pub fn typed(data: &Path, command: &str) -> String {
    if data == default_data() {
        format!("lattice {command}")
    } else {
        format!("lattice --data {} {command}", quoted(data))
    }
}

/// The control service's socket in the directory `data`.
#[must_use]
pub fn socket(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// Where a daemon writes that `lattice up` started in the directory `data`.
#[must_use]
pub fn log_file(data: &Path) -> PathBuf {
    data.join("latticed.log")
}

/// Whether a daemon has the directory `data`, and its process if it said so.
#[must_use]
pub fn in_use(data: &Path) -> Option<Option<u32>> {
    let mut lock = File::open(data.join("lock")).ok()?;
    match lock.try_lock_shared() {
        Ok(()) | Err(TryLockError::Error(_)) => None,
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = lock.read_to_string(&mut pid).is_ok();
            Some(if read { pid.trim().parse().ok() } else { None })
        }
    }
}

/// A node's directory, held: no other daemon can open it until this is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Opens the directory, makes it if it is not there, and takes its lock.
    ///
    /// # Errors
    /// If it is in use, newer than this build, or the disk fails.
    pub fn open(path: &Path) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
        let path = path.canonicalize().map_err(at(path))?;
        let lock = take_lock(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(at(&path))?;
        let format = path.join("format");
        match std::fs::read_to_string(&format) {
            Ok(found) => match found.trim().parse::<u32>() {
                Ok(found) if found <= FORMAT => {}
                Ok(_) => return Err(DirectoryError::Newer { path: format, found: found.trim().into() }),
                Err(_no_number) => return Err(DirectoryError::Format { path: format }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_whole(&format, format!("{FORMAT}\n").as_bytes())?;
            }
            Err(source) => return Err(DirectoryError::Io { path: format, source }),
        }
        for folder in ["meshes", "blobs", "drafts"] {
            let folder = path.join(folder);
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the meshes' stores are: a directory a mesh.
    #[must_use]
    pub fn meshes(&self) -> PathBuf {
        self.path.join("meshes")
    }

    /// Where large values are.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// Where unpublished content is.
    #[must_use]
    pub fn drafts(&self) -> PathBuf {
        self.path.join("drafts")
    }

    /// The control service's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(&self.path)
    }

    /// The node's key; made at the first call ever.
    ///
    /// # Errors
    /// If the file is damaged, open to others, or missing where a mesh already is: an identity is never replaced.
    pub fn identity(&self) -> Result<SigningKey> {
        let path = self.path.join("identity.key");
        match key_in(&path)? {
            Some(key) => Ok(key),
            None => self.new_identity(path),
        }
    }

    /// The key that is to succeed the node's: made at the first call, and kept until [`Directory::succeed`].
    ///
    /// # Errors
    /// If the disk fails or the file is damaged.
    pub fn successor(&self) -> Result<SigningKey> {
        let path = self.path.join(NEXT);
        match key_in(&path)? {
            Some(key) => Ok(key),
            None => new_key(&path),
        }
    }

    /// Puts the successor in the place of the node's key, for the next start. The old one is kept; gives where.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn succeed(&self) -> Result<PathBuf> {
        let (now, next) = (self.path.join("identity.key"), self.path.join(NEXT));
        let mut names = (1..).map(|number: u32| self.path.join(format!("identity.key.old-{number}")));
        let old = names.find(|name| !name.exists()).unwrap_or_else(|| self.path.join("identity.key.old"));
        // The old one never lacks a name, so that a crash leaves one of them in place.
        std::fs::hard_link(&now, &old).map_err(at(&old))?;
        std::fs::rename(&next, &now).map_err(at(&now))?;
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(at(&self.path))?;
        Ok(old)
    }

    fn new_identity(&self, path: PathBuf) -> Result<SigningKey> {
        let meshes = self.meshes();
        if std::fs::read_dir(&meshes).map_err(at(&meshes))?.next().is_some() {
            let fix = format!("put it back from a backup, or move {} away to begin as a new node", self.path.display());
            return Err(DirectoryError::Identity { path, what: "the node's secret key is missing", fix });
        }
        new_key(&path)
    }

    /// The port that was kept; `None` if none was or it does not read.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        std::fs::read_to_string(self.path.join("port")).ok()?.trim().parse().ok()
    }

    /// Keeps the port for the next start.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn keep_port(&self, port: u16) -> Result<()> {
        write_whole(&self.path.join("port"), format!("{port}\n").as_bytes())
    }
}

/// The key in a file; `None` if there is no such file.
fn key_in(path: &Path) -> Result<Option<SigningKey>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DirectoryError::Io { path: path.into(), source }),
    };
    let damaged = |what, fix| DirectoryError::Identity { path: path.into(), what, fix };
    let mode = std::fs::metadata(path).map_err(at(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        let fix = format!("if nobody else has read it: chmod 600 {}", path.display());
        return Err(damaged("other users can read this node's secret key", fix));
    }
    let seed = text.trim_end().strip_prefix(IDENTITY);
    let seed = seed.and_then(|seed| data_encoding::HEXLOWER.decode(seed.as_bytes()).ok());
    let key = seed.and_then(|seed| <[u8; 32]>::try_from(seed).ok()).map(|seed| SigningKey::from_bytes(&seed));
    let fix = || "put it back from a backup; without it this directory's node can't go on".into();
    key.map(Some).ok_or_else(|| damaged("the node's secret key does not read", fix()))
}

fn new_key(path: &Path) -> Result<SigningKey> {
    let seed: [u8; 32] = rand::random();
    write_whole(path, format!("{IDENTITY}{}\n", data_encoding::HEXLOWER.encode(&seed)).as_bytes())?;
    Ok(SigningKey::from_bytes(&seed))
}

fn at(path: &Path) -> impl Fn(io::Error) -> DirectoryError {
    move |source| DirectoryError::Io { path: path.into(), source }
}

fn take_lock(path: &Path) -> Result<File> {
    let file = path.join("lock");
    let mut options = OpenOptions::new();
    let mut lock =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&file).map_err(at(&file))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let pid = lock.read_to_string(&mut pid).ok().map(|_| pid.trim().to_owned()).filter(|pid| !pid.is_empty());
            return Err(DirectoryError::InUse { path: path.into(), pid: pid.unwrap_or_else(|| "?".into()) });
        }
        Err(TryLockError::Error(source)) => return Err(DirectoryError::Io { path: file, source }),
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(at(&file))?;
    Ok(lock)
}

/// Writes a file so that after a crash it has all of `bytes` or is not there, for this user only.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(at(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&temporary))?;
    std::fs::rename(&temporary, path).map_err(at(path))?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(at(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_has_a_directory_and_others_are_told_which() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        assert_eq!(in_use(dir.path()), Some(Some(std::process::id())));
        let error = Directory::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with(&format!("is in use by process {}", std::process::id())), "{error}");
        drop(held);
        assert_eq!(in_use(dir.path()), None);
        Directory::open(dir.path()).unwrap();
    }

    #[test]
    fn an_identity_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        let first = held.identity().unwrap();
        assert_eq!(held.identity().unwrap().to_bytes(), first.to_bytes());
        let file = dir.path().join("identity.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert!(held.identity().unwrap_err().hint().contains("chmod 600"));
    }

    #[test]
    fn a_damaged_or_lost_identity_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        held.identity().unwrap();
        let file = dir.path().join("identity.key");
        std::fs::write(&file, "lattice-identity-1 abcd\n").unwrap();
        assert!(held.identity().unwrap_err().to_string().ends_with("does not read"));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(held.meshes().join("ab")).unwrap();
        assert!(held.identity().unwrap_err().to_string().ends_with("is missing"));
        assert!(!file.exists());
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), "2\n").unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(DirectoryError::Newer { .. })));
    }

    #[test]
    fn a_path_is_quoted_so_that_a_shell_reads_it_back() {
        for path in ["/srv/mesh", "/tmp/x y", "it's", "", "$HOME/`x`", "-a\nb"] {
            let script = format!("printf %s {}", quoted(Path::new(path)));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        }
        assert_eq!(quoted(Path::new("/srv/mesh")), "/srv/mesh");
    }

    #[test]
    fn a_kept_port_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        assert_eq!(held.port(), None);
        held.keep_port(4711).unwrap();
        assert_eq!(held.port(), Some(4711));
    }
}

//! What the files of a transaction say: each is a key that is put, or the name of one that is deleted.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::TxError;
use crate::stores::kv::local::stays;
use crate::stores::kv::model::Kind;
use crate::stores::kv::path::{self};

/// An empty file whose name ends so deletes the key, or the tree, that is called as the rest.
const DELETE: &[u8] = b".delete";
/// Behind a name that ends in [`DELETE`]: it is meant as it is.
const PUT: &[u8] = b".put";

/// What is to become of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Put(Source),
    /// With all that is below it.
    Delete,
}

/// A staged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) file: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    /// Nanoseconds since the Unix epoch.
    pub(super) mtime: i64,
    /// The bytes of its content.
    pub(super) size: u64,
}

enum Name<'a> {
    Key(&'a [u8]),
    Delete(&'a [u8]),
}

/// What a staged name means.
fn meaning(name: &[u8]) -> Name<'_> {
    if let Some(stem) = name.strip_suffix(DELETE) {
        return Name::Delete(stem);
    }
    let mut bare = name;
    while let Some(shorter) = bare.strip_suffix(PUT) {
        bare = shorter;
    }
    match name.strip_suffix(PUT) {
        Some(meant) if bare.ends_with(DELETE) => Name::Key(meant),
        Some(_) | None => Name::Key(name),
    }
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    if above.is_empty() { name.to_vec() } else { [above, b"/", name].concat() }
}

/// Everything that is staged in the directory `top`, what is in a directory after it.
pub(super) fn read(top: &Path) -> Result<Vec<Item>, TxError> {
    let mut found = Vec::new();
    directory(top, &[], &mut found)?;
    Ok(found)
}

fn directory(at: &Path, above: &[u8], found: &mut Vec<Item>) -> Result<(), TxError> {
    let listed = readable(at, |at| fs::read_dir(at)?.map(|entry| Ok(entry?.file_name())).collect());
    let mut names: Vec<OsString> = listed.map_err(|error| TxError::io(at, error))?;
    names.sort();
    for name in names {
        let file = at.join(&name);
        let meta = fs::symlink_metadata(&file).map_err(|error| TxError::io(&file, error))?;
        item(file, name.as_bytes(), &meta, above, found)?;
    }
    Ok(())
}

fn item(file: PathBuf, name: &[u8], meta: &Metadata, above: &[u8], found: &mut Vec<Item>) -> Result<(), TxError> {
    if stays(name) && !meta.is_dir() {
        return Ok(());
    }
    let name = match meaning(name) {
        Name::Key(name) => name,
        Name::Delete(stem) => {
            let path = join(above, stem);
            if stem.is_empty() || !meta.is_file() || meta.len() > 0 {
                return Err(not_a_deletion(&join(above, name), &path));
            }
            path::check(&path).map_err(|bad| TxError::Kv(bad.into()))?;
            found.push(Item { path, what: What::Delete });
            return Ok(());
        }
    };
    let path = join(above, name);
    path::check(&path).map_err(|bad| TxError::Kv(bad.into()))?;
    let (kind, size) = match meta.file_type() {
        kind if kind.is_dir() => (Kind::Directory, 0),
        kind if kind.is_symlink() => (Kind::Symlink, meta.len()),
        kind if kind.is_file() => (Kind::File, meta.len()),
        // Opening a pipe waits for another who opens it.
        _ => {
            let path = super::shown(&path);
            return Err(TxError::Staged(format!(
                "'{path}' is no file, directory or link: no key can be that; remove it"
            )));
        }
    };
    let mode = if kind == Kind::Symlink { 0o777 } else { meta.mode() & 0o7777 };
    let mtime = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    found.push(Item { path: path.clone(), what: What::Put(Source { file: file.clone(), kind, mode, mtime, size }) });
    if kind == Kind::Directory {
        directory(&file, &path, found)?;
    }
    Ok(())
}

fn not_a_deletion(name: &[u8], meant: &[u8]) -> TxError {
    let (name, meant) = (super::shown(name), super::shown(meant));
    TxError::Staged(format!(
        "'{name}' is not an empty file: an empty file of that name deletes '{meant}'; to write a key of that name, call it \
         '{name}.put'"
    ))
}

/// Does something with a file or directory that its own permissions may keep its owner from reading.
pub(super) fn readable<T>(at: &Path, work: impl Fn(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    match work(at) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let before = fs::metadata(at)?.permissions();
            fs::set_permissions(at, Permissions::from_mode(0o700))?;
            let done = work(at);
            fs::set_permissions(at, before)?;
            done
        }
        done => done,
    }
}

/// Removes a directory with all that is in it, whatever the permissions of what is in it.
pub(super) fn clear(at: &Path) -> std::io::Result<()> {
    fs::set_permissions(at, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { clear(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(at)
}

/// A name as a path.
pub(super) fn os(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(top: &Path) -> Vec<String> {
        let line = |item: Item| {
            let path = String::from_utf8(item.path).unwrap();
            match item.what {
                What::Delete => format!("delete {path}"),
                What::Put(source) => format!("{:?} {path} {:o}", source.kind, source.mode),
            }
        };
        read(top).unwrap().into_iter().map(line).collect()
    }

    #[test]
    fn each_file_is_a_key_that_is_put_and_an_empty_one_that_ends_in_delete_deletes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("d/e")).unwrap();
        fs::write(at("d/f"), "text").unwrap();
        fs::set_permissions(at("d/f"), Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(at("d/e"), Permissions::from_mode(0o500)).unwrap();
        fs::write(at("d/old.delete"), "").unwrap();
        fs::write(at("tree.delete"), "").unwrap();
        fs::write(at("x.delete.delete"), "").unwrap();
        fs::write(at("backup~"), "stays here").unwrap();
        std::os::unix::fs::symlink("f", at("l")).unwrap();
        fs::set_permissions(at("d"), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            told(dir.path()),
            [
                "Directory d 755",
                "Directory d/e 500",
                "File d/f 640",
                "delete d/old",
                "Symlink l 777",
                "delete tree",
                "delete x.delete"
            ]
        );
    }

    #[test]
    fn a_key_whose_own_name_ends_in_delete_is_put_by_saying_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.delete.put"), "").unwrap();
        fs::write(dir.path().join("y.delete.put.put"), "").unwrap();
        fs::write(dir.path().join("z.put"), "").unwrap();
        fs::set_permissions(dir.path().join("z.put"), Permissions::from_mode(0o644)).unwrap();
        let names: Vec<_> =
            told(dir.path()).into_iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
        assert_eq!(names, ["x.delete", "y.delete.put", "z.put"]);
    }

    #[test]
    fn what_could_be_meant_as_a_deletion_or_as_a_key_is_refused() {
        for make in [
            (|at| fs::write(at, "text").unwrap()) as fn(PathBuf),
            |at| fs::create_dir(at).unwrap(),
            |at| std::os::unix::fs::symlink("f", at).unwrap(),
        ] {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path().join("x.delete"));
            let refused = read(dir.path()).unwrap_err().to_string();
            assert!(refused.contains("deletes 'x'") && refused.contains("'x.delete.put'"), "{refused}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".delete"), "").unwrap();
        assert!(matches!(read(dir.path()), Err(TxError::Staged(_))));
    }
    #[test]
    fn what_is_no_file_nor_directory_nor_link_is_refused_and_not_opened() {
        for make in [(|at: &Path| nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRWXU).unwrap()) as fn(&Path), |at| {
            drop(std::os::unix::net::UnixListener::bind(at).unwrap())
        }] {
            let dir = tempfile::tempdir().unwrap();
            make(&dir.path().join("x"));
            match read(dir.path()) {
                Err(TxError::Staged(why)) => assert!(why.contains("'x'") && why.contains("remove it"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

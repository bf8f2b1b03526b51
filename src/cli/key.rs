//! A key, as a person names it: by its path in a store, or by the path of its file on this node's mount.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::output::escaped;
use crate::api::wire::StatusRequest;
use crate::api::{Client, Failure, Kind};

/// The store that commands mean when none is named.
pub(super) const HOME: &str = "home";

/// The store and the path in it that are meant by a path. One that is absolute is of a file on a mount of this node, and names its
/// store itself; every other is a key's in `store`.
///
/// # Errors
/// If an absolute path is of no key's file, or of one in another store than the one that was named.
pub(super) async fn named(client: &Client, store: String, path: OsString) -> Result<(String, Vec<u8>), Failure> {
    if !Path::new(&path).is_absolute() {
        return Ok((store, path.into_vec()));
    }
    let mounts = client.node().status(StatusRequest {}).await?.into_inner().mounts;
    let path = PathBuf::from(path);
    let inside = mounts.iter().find_map(|mount| inside(Path::new(mount), &path));
    let shown = escaped(path.as_os_str().as_bytes());
    let Some(inside) = inside else {
        return Err(Failure::new(Kind::Usage, format!("'{shown}' lies in no mount of this node"))
            .hint("a key's path begins with no slash: notes/today. `lattice status` shows the mounts"));
    };
    let Some((of, key)) = key_in(&inside) else {
        return Err(Failure::new(Kind::Usage, format!("'{shown}' is no key's file"))
            .hint("keys are at MOUNT/stores/STORE/keys/PATH"));
    };
    if store != HOME && store != of {
        let other =
            format!("'{shown}' is in the store '{}', not in '{}'", escaped(of.as_bytes()), escaped(store.as_bytes()));
        return Err(Failure::new(Kind::Usage, other).hint("leave --store away: the path names it"));
    }
    Ok((of, key))
}

/// The same for a path that may be a directory's: a slash at its end says nothing more.
pub(super) async fn below(client: &Client, store: String, path: OsString) -> Result<(String, Vec<u8>), Failure> {
    let (store, mut path) = named(client, store, path).await?;
    if path.ends_with(b"/") {
        path.pop();
    }
    Ok((store, path))
}

/// Whether one of these names its store itself.
pub(super) fn names_store(paths: &[OsString]) -> bool {
    paths.iter().any(|path| Path::new(path).is_absolute())
}

/// The same for several, which must be of one store.
pub(super) async fn all_named(
    client: &Client,
    store: String,
    paths: Vec<OsString>,
) -> Result<(String, Vec<OsString>), Failure> {
    let mut of: Option<String> = None;
    let mut keys = Vec::with_capacity(paths.len());
    for path in paths {
        let (found, key) = named(client, store.clone(), path).await?;
        if of.as_ref().is_some_and(|of| *of != found) {
            return Err(
                Failure::new(Kind::Usage, "the keys are in several stores").hint("name those of one store at a time")
            );
        }
        of = Some(found);
        keys.push(OsString::from_vec(key));
    }
    Ok((of.unwrap_or(store), keys))
}

/// The part of a path below a mount, if it lies there, also if it leads there by a symbolic link. A slash at its end stays.
fn inside(mount: &Path, path: &Path) -> Option<Vec<u8>> {
    let top = path.ancestors().find(|above| *above == mount).or_else(|| {
        // What is on the mount itself is not looked at more than need be: the first that is the mount ends it.
        let mut above: Vec<_> = path.ancestors().collect();
        above.reverse();
        above.into_iter().find(|above| above.canonicalize().is_ok_and(|real| real == mount))
    })?;
    let rest = path.as_os_str().as_bytes().get(top.as_os_str().len()..)?;
    Some(rest.to_vec())
}

/// The store and the key that a path below a mount names.
fn key_in(inside: &[u8]) -> Option<(String, Vec<u8>)> {
    let slash = inside.ends_with(b"/");
    let mut names = inside.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let is = |name: Option<&[u8]>, expected: &[u8]| name == Some(expected);
    let store = is(names.next(), b"stores").then(|| names.next()).flatten()?;
    let rest = is(names.next(), b"keys").then(|| names.collect::<Vec<_>>())?;
    let mut key = rest.join(&b'/');
    if slash && !key.is_empty() {
        key.push(b'/');
    }
    Some((String::from_utf8(store.to_vec()).ok()?, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_on_the_mount_names_its_store_and_its_key() {
        let key = |path: &str| key_in(&inside(Path::new("/srv/mesh"), Path::new(path))?);
        let found = |store: &str, path: &str| Some((store.to_owned(), path.as_bytes().to_vec()));
        assert_eq!(key("/srv/mesh/stores/home/keys/a/b"), found("home", "a/b"));
        assert_eq!(key("/srv/mesh/stores/photos/keys//a/./b/"), found("photos", "a/b/"));
        assert_eq!(key("/srv/mesh/stores/home/keys"), found("home", ""));
        assert_eq!(key("/srv/mesh/stores/home/keys/"), found("home", ""));
        for none in
            ["/srv/mesh", "/srv/mesh/stores/home", "/srv/mesh/stores/home/.history/a", "/srv/mesh2/stores/home/keys/a"]
        {
            assert_eq!(key(none), None, "{none}");
        }
    }

    #[test]
    fn a_mount_is_known_by_a_symbolic_link_too() {
        let dir = tempfile::tempdir().unwrap();
        let (mount, link) = (dir.path().canonicalize().unwrap().join("mount"), dir.path().join("link"));
        std::fs::create_dir(&mount).unwrap();
        std::os::unix::fs::symlink(&mount, &link).unwrap();
        assert_eq!(inside(&mount, &link.join("stores/home/keys/a")), Some(b"/stores/home/keys/a".to_vec()));
    }
}

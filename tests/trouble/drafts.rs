//! What was written and is no version yet, when the daemon is killed or goes down.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::harness::{Node, eventually};
use crate::{founder, json, warnings};

/// The files in the node's drafts' directory that end like this.
fn drafts(node: &Node<'_>, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.data().join("drafts/0")).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
}

/// Waits until the drafts on the disk are those of these keys.
fn kept(node: &Node<'_>, keys: &[&str]) {
    eventually("what is being written is on the disk", || {
        let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        let notes: Vec<serde_json::Value> = drafts(node, ".note").into_iter().filter_map(read).collect();
        let key = |note: &serde_json::Value| serde_json::from_value::<Vec<u8>>(note["path"].clone()).unwrap();
        let mut found: Vec<_> = notes.iter().map(|note| String::from_utf8(key(note)).unwrap()).collect();
        found.sort();
        found == keys
    });
}

/// What was put aside, by the warnings of `lattice status`: what they say, and the bytes.
fn aside(node: &Node<'_>) -> Vec<(String, Vec<u8>)> {
    let all = warnings(node).into_iter().map(|warning| {
        let file = warning.split(" is in ").nth(1).and_then(|rest| rest.split(';').next());
        let bytes = fs::read(file.unwrap_or_else(|| panic!("{warning}"))).unwrap();
        (warning, bytes)
    });
    all.collect()
}

fn entries(node: &Node<'_>) -> u64 {
    json(node, &["store", "status", "home"])["entries"].as_u64().unwrap()
}

fn again(node: &Node<'_>) {
    node.kill();
    node.up();
}

fn exclusive(path: &Path) -> File {
    OpenOptions::new().write(true).create_new(true).open(path).unwrap()
}

#[test]
fn files_that_stay_here_survive_the_daemons_being_killed_and_its_going_down() {
    let node = founder();
    fs::create_dir(node.key("d")).unwrap();
    fs::write(node.key("f"), "one").unwrap();
    fs::write(node.key("d/old~"), "backup").unwrap();
    fs::write(node.key("movie.part"), vec![7; 400_000]).unwrap();
    fs::set_permissions(node.key("movie.part"), PermissionsExt::from_mode(0o640)).unwrap();
    let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(981_173_106);
    File::options().write(true).open(node.key("movie.part")).unwrap().set_modified(past).unwrap();
    symlink("me@host", node.key(".#f")).unwrap();
    let mut swap = exclusive(&node.key(".f.swp"));
    swap.write_all(b"unsaved").unwrap();
    swap.sync_all().unwrap();
    fs::rename(node.key("d"), node.key("e")).unwrap();
    fs::rename(node.key("f"), node.key("f~")).unwrap();
    fs::write(node.key("f"), "two").unwrap();
    fs::write(node.key("gone~"), "gone").unwrap();
    fs::remove_file(node.key("gone~")).unwrap();
    kept(&node, &[".#f", ".f.swp", "e/old~", "f~", "movie.part"]);
    let before = entries(&node);
    for restart in [again, |node: &Node<'_>| {
        node.lattice(&["down"]);
        node.up();
    }] {
        restart(&node);
        let names = |at: &str| {
            let mut names: Vec<_> =
                fs::read_dir(node.key(at)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(""), [".#f", ".f.swp", "e", "f", "f~", "movie.part"]);
        assert_eq!(names("e"), ["old~"]);
        assert_eq!(fs::read(node.key("e/old~")).unwrap(), b"backup");
        assert_eq!(fs::read(node.key("movie.part")).unwrap(), vec![7; 400_000]);
        let meta = fs::metadata(node.key("movie.part")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 981_173_106));
        assert_eq!(fs::read_link(node.key(".#f")).unwrap(), Path::new("me@host"));
        assert_eq!(fs::read(node.key(".f.swp")).unwrap(), b"unsaved");
        assert_eq!(fs::read(node.key("f~")).unwrap(), b"one");
        assert_eq!(fs::read(node.key("f")).unwrap(), b"two");
        assert_eq!(entries(&node), before, "a file that stays here was signed");
        assert!(warnings(&node).is_empty());
    }
    fs::rename(node.key("movie.part"), node.key("movie")).unwrap();
    for name in [".#f", ".f.swp", "f~", "e/old~"] {
        fs::remove_file(node.key(name)).unwrap();
    }
    again(&node);
    assert_eq!(fs::read(node.key("movie")).unwrap(), vec![7; 400_000]);
    assert_eq!(fs::read_dir(node.key("")).unwrap().count(), 3, "what was removed is shown again");
    assert!(drafts(&node, "").is_empty());
}

#[test]
fn what_was_written_to_an_open_file_is_put_aside_when_the_daemon_is_killed_and_status_names_it() {
    let node = founder();
    fs::write(node.key("f"), "as it was").unwrap();
    let mut small = File::options().write(true).open(node.key("f")).unwrap();
    small.write_all(b"IS").unwrap();
    let mut new = File::create(node.key("new")).unwrap();
    new.write_all(b"begun").unwrap();
    let mut gone = File::create(node.key("gone")).unwrap();
    gone.write_all(b"nobody's").unwrap();
    kept(&node, &["f", "gone", "new"]);
    fs::remove_file(node.key("gone")).unwrap();
    // From now on nothing is waited for: what `write` took is there.
    new.write_all(b", and gone on").unwrap();
    gone.write_all(b" still").unwrap();
    again(&node);
    assert_eq!(fs::read(node.key("f")).unwrap(), b"as it was");
    assert_eq!(fs::read_dir(node.key("")).unwrap().count(), 1);
    let mut aside = aside(&node);
    aside.sort();
    let bytes: Vec<_> = aside.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    assert_eq!(bytes, [&b"IS it was"[..], b"begun, and gone on"]);
    assert!(aside[0].0.starts_with("'f' of the store 'home' was being written"), "{}", aside[0].0);
    assert!(aside[1].0.starts_with("'new' of the store 'home' was being written"), "{}", aside[1].0);
    assert!(drafts(&node, ".draft").is_empty());
}

#[test]
fn a_file_that_is_open_when_the_daemon_goes_down_is_no_version_and_is_put_aside() {
    let node = founder();
    fs::write(node.key("f"), "whole").unwrap();
    let before = entries(&node);
    let mut file = File::options().write(true).truncate(true).open(node.key("f")).unwrap();
    file.write_all(b"hal").unwrap();
    let touched = File::create(node.key("empty")).unwrap();
    node.lattice(&["down"]);
    drop((file, touched));
    node.up();
    assert_eq!(fs::read(node.key("f")).unwrap(), b"whole");
    assert_eq!(entries(&node), before);
    let aside = aside(&node);
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(aside[0].1, b"hal");
    assert!(aside[0].0.starts_with("'f' of the store 'home'"), "{}", aside[0].0);
}

#[test]
fn what_was_fsynced_and_not_closed_survives_a_kill_once_and_by_its_name() {
    let node = founder();
    let mut temporary = exclusive(&node.key("tmp.x"));
    for text in ["one ", "two ", "three"] {
        temporary.write_all(text.as_bytes()).unwrap();
        temporary.sync_all().unwrap();
    }
    let large = File::create(node.key("large")).unwrap();
    for part in 0..3 {
        large.write_all_at(&[b'x'; 200_000], part * 200_000).unwrap();
        large.sync_all().unwrap();
    }
    again(&node);
    let aside = aside(&node);
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(aside[0].0.starts_with("'tmp.x' of"), "{}", aside[0].0);
    assert_eq!(aside[0].1, b"one two three");
    assert_eq!(fs::read(node.key("large")).unwrap(), [b'x'; 600_000], "fsync made it a version");
}

#[test]
fn a_file_made_exclusively_closed_and_fsynced_is_published_after_a_kill() {
    let node = founder();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(node.key("f")).unwrap();
    file.write_all(b"saved").unwrap();
    file.sync_all().unwrap();
    drop(file);
    // The kernel tells of a close a moment later.
    eventually("the close is noted", || {
        let closed = |path: PathBuf| fs::read_to_string(path).is_ok_and(|note| note.contains("\"closed\":true"));
        drafts(&node, ".note").into_iter().all(closed)
    });
    again(&node);
    assert_eq!(fs::read(node.key("f")).unwrap(), b"saved");
    assert!(warnings(&node).is_empty());
    eventually("nothing is left of the draft", || drafts(&node, "").iter().all(|path| path.is_dir()));
}

#[test]
fn what_can_not_be_published_is_an_error_of_close_and_fsync_and_is_kept_and_named() {
    let first = founder();
    let second = crate::joined(&first);
    eventually("the store", || fs::write(second.key("f"), "as it was").is_ok());
    fs::write(second.key("other"), "").unwrap();
    eventually("it is known to the first", || fs::read_to_string(first.key("f")).is_ok_and(|text| text == "as it was"));
    let (mut closed, mut synced) =
        (File::options().append(true).open(second.key("f")).unwrap(), { File::create(second.key("new")).unwrap() });
    closed.write_all(b", and more").unwrap();
    synced.write_all(b"begun").unwrap();
    let id = json(&second, &["status"])["node"].as_str().unwrap().to_owned();
    first.lattice(&["mesh", "role", &id, "reader"]);
    // Of another file: to close this one would publish what is written to it.
    eventually("it may only read", || {
        File::options().append(true).open(second.key("other")).is_err_and(|error| error.raw_os_error() == Some(30))
    });
    assert_eq!(synced.sync_all().unwrap_err().raw_os_error(), Some(30));
    let result = nix::unistd::close(closed);
    assert_eq!(result, Err(nix::errno::Errno::EROFS));
    drop(synced);
    eventually("both are kept", || aside(&second).len() == 2);
    let mut aside = aside(&second);
    aside.sort();
    assert_eq!(aside[0].1, b"as it was, and more");
    assert_eq!(aside[1].1, b"begun");
    assert!(aside[0].0.starts_with("'f' of the store 'home'"), "{}", aside[0].0);
    assert!(aside[1].0.starts_with("'new' of the store 'home'"), "{}", aside[1].0);
    assert_eq!(fs::read(second.key("f")).unwrap(), b"as it was");
    assert!(!second.key("new").exists());
}

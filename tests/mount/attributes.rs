//! Extended attributes: what the store says of a key, and what programs that copy them along make of it.

use std::collections::BTreeMap;
use std::path::Path;

use lattice::peers::Standing;

use crate::world::{World, eventually};

fn all(path: impl AsRef<Path>) -> BTreeMap<String, String> {
    let path = path.as_ref();
    let names = xattr::list(path).unwrap();
    let value = |name: &std::ffi::OsStr| String::from_utf8(xattr::get(path, name).unwrap().unwrap()).unwrap();
    names.map(|name| (name.to_str().unwrap().to_owned(), value(&name))).collect()
}

fn get(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let value = xattr::get(path, format!("user.lattice.{name}")).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

#[test]
fn the_attributes_of_a_key_tell_who_wrote_it_which_version_it_is_and_how_far_it_came() {
    let world = World::new();
    world.sh("echo one > f; echo two > f; mkdir d; sync -f f");
    eventually("the directory to be an entry", || get(world.key("d"), "author_name").is_some());
    let found = all(world.key("f"));
    let names: Vec<_> = found.keys().map(|name| name.strip_prefix("user.lattice.").unwrap()).collect();
    assert_eq!(names, ["author", "author_name", "hash", "heads", "hlc", "seq", "state"]);
    let head = *world.here.heads("f").unwrap().visible().unwrap();
    let is = |name: &str| found[&format!("user.lattice.{name}")].clone();
    assert_eq!((is("author"), is("author_name")), (world.here.id().to_string(), "here".into()));
    assert_eq!((is("hash"), is("hlc")), (head.id.entry.to_string(), head.hlc.0.to_string()));
    assert_eq!((is("seq"), is("heads")), (head.seq.to_string(), "1".into()));
    assert_eq!(get(world.key("d"), "author_name").unwrap(), "here");
    let shown = world.sh("getfattr -d -m - f");
    assert!(shown.contains("user.lattice.author_name=\"here\""), "{shown}");
    eventually("it to be durable", || get(world.key("f"), "state").unwrap() == "durable");
    let stand = |agreed| {
        let standing = Standing { in_step: false, agreed: Some(agreed), ahead: 0 };
        world.standings.lock().unwrap().insert(world.there.id(), standing);
    };
    stand(1);
    assert_eq!(get(world.key("f"), "state").unwrap(), "durable");
    stand(2);
    assert_eq!(get(world.key("f"), "state").unwrap(), "sent:1 of 1 peers");
    world.there.pull(&world.here);
    world.there.put("f", b"theirs");
    std::fs::write(world.key("f"), b"mine").unwrap();
    world.here.pull(&world.there);
    assert_eq!(get(world.key("f"), "heads").unwrap(), "2");
    world.sh("echo still > open.part");
    assert_eq!(all(world.key("open.part")), BTreeMap::from([("user.lattice.state".into(), "unpublished".into())]));
    // Versions have those that don't change.
    let past = world.sh("ls $MESH/stores/home/.history/f | head -n 1");
    let version = world.at.join("stores/home/.history/f").join(past.trim());
    assert_eq!(all(&version).len(), 5);
    assert_eq!(get(&version, "seq").unwrap(), "0");
    assert!(all(world.at.join("README")).is_empty());
}

#[test]
fn other_attributes_are_refused_and_ours_are_taken_and_stay_what_they_are() {
    let world = World::new();
    world.sh("echo x > f");
    let path = world.key("f");
    let before = all(&path);
    let entries = world.here.entries();
    let error = xattr::set(&path, "user.mine", b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTSUP));
    assert_eq!(xattr::get(&path, "user.mine").unwrap(), None);
    let error = xattr::get(&path, "security.capability").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTSUP));
    xattr::set(&path, "user.lattice.author", b"me").unwrap();
    xattr::remove(&path, "user.lattice.hash").unwrap();
    let mut after = all(&path);
    // It may have come to the disk meanwhile.
    after.insert("user.lattice.state".into(), before["user.lattice.state"].clone());
    assert_eq!(after, before);
    assert_eq!(world.here.entries(), entries);
}

#[test]
fn what_copies_attributes_along_goes_out_and_comes_back_without_a_word() {
    let world = World::new();
    world.sh("mkdir -p t/d; echo one > t/a; echo two > t/d/b; ln -s a t/l; chmod 640 t/a; mkdir $SPARE/out");
    for script in [
        "cp -a t $SPARE/out/cp; cp -a $SPARE/out/cp back-cp",
        "rsync -aX t/ $SPARE/out/rsync/; rsync -aX $SPARE/out/rsync/ back-rsync/",
        "rsync -aX t/ $SPARE/out/rsync/; rsync -aX $SPARE/out/rsync/ back-rsync/",
        "tar --xattrs --xattrs-include='*' -cf $SPARE/out/t.tar t; mkdir back-tar
         tar --xattrs --xattrs-include='*' -xf $SPARE/out/t.tar -C back-tar --strip-components 1",
        "cp -a t again; mv again $SPARE/out/mv; mv $SPARE/out/mv back-mv",
        "cp -a t back-inside; cp --preserve=xattr t/a t/c; rm t/c",
        "install -m 640 t/a back-install",
        "cp -a $MESH/stores/home/.at/now/t $SPARE/out/then; cp -a $SPARE/out/then back-then",
    ] {
        let output = world.try_sh(script);
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{script}: {said}");
    }
    for copy in ["cp", "rsync", "tar", "mv", "inside", "then"] {
        assert_eq!(world.sh(&format!("diff -r t back-{copy} && stat -c %a back-{copy}/a")), "640\n", "{copy}");
    }
    assert!(xattr::get(world.dir.path().join("out/cp/a"), "user.lattice.hash").unwrap().is_some());
    // A file that has others as well loses those, as on any disk that can't keep them.
    world.sh("echo x > $SPARE/out/x; setfattr -n user.mine -v y $SPARE/out/x; cp -a $SPARE/out/x x; mv $SPARE/out/x y");
}

#[test]
fn a_moment_tells_whether_what_it_shows_may_still_change() {
    let world = World::new();
    world.sh("echo x > f");
    world.there.pull(&world.here);
    let moment = |name: &str| world.at.join("stores/home/.at").join(name);
    let hash = world.here.heads("f").unwrap().visible().unwrap().id.entry.to_string();
    assert_eq!(get(moment(&hash), "final").unwrap(), "yes");
    assert_eq!(get(moment("1h-ago"), "final").unwrap(), "no: there may have written before");
    world.there.put("g", b"y");
    world.here.pull(&world.there);
    assert_eq!(get(moment("1h-ago"), "final").unwrap(), "yes");
    assert!(get(moment("2100-01-01"), "final").unwrap().starts_with("no: "));
}

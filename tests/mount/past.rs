//! `.at`, `.by` and `.history`.

use std::fs;

use lattice::clock;
use lattice::ids::Hash;

use crate::world::{World, eventually};

/// The stamp of the last entry here, as `.at` takes it; what is written later has a later one.
fn moment(world: &World) -> String {
    let (_, millis) = last(world);
    eventually("the clock to go on", || clock::nanos() / 1_000_000 > i64::try_from(millis).unwrap() + 1);
    clock::name(clock::Hlc::at(clock::Millis(millis)))
}

/// The last entry here, and its time.
fn last(world: &World) -> (Hash, u64) {
    let kv = world.here.home();
    let view = kv.log().database().view().unwrap();
    let tips = kv.log().tips(&view).unwrap();
    let tip = tips.values().max_by_key(|tip| tip.hlc).unwrap();
    (tip.hash, tip.hlc.millis().0)
}

#[test]
fn every_version_is_a_file_of_the_history_the_oldest_first() {
    let world = World::new();
    world.sh("mkdir d; echo one > d/f; echo two > d/f; rm d/f");
    world.settled();
    world.sh("ln -s target d/f; echo x > d/g");
    world.settled();
    let names: Vec<_> = world.sh("ls ../.history/d/f").lines().map(str::to_owned).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.iter().all(|name| name.contains("Z-here-") || name.contains("-here-")), "{names:?}");
    let read = |name: &str| world.sh(&format!("cat ../.history/d/f/{name}"));
    assert_eq!((read(&names[0]).as_str(), read(&names[1]).as_str()), ("one\n", "two\n"));
    assert!(names[2].ends_with(".deleted"));
    assert_eq!(read(&names[2]), "");
    assert_eq!(world.sh(&format!("readlink ../.history/d/f/{}", names[3])), "target\n");
    let own = world.sh("ls ../.history/d");
    assert!(own.lines().eq(own.lines().filter(|name| name.contains("-here-")).chain(["f", "g"])), "{own}");
    assert_eq!(world.sh("ls ../.history/"), "d\n");
    assert!(!world.try_sh("ls ../.history/none").status.success());
}

#[test]
fn a_store_as_it_was_reads_with_any_tool() {
    let world = World::new();
    world.sh(
        "mkdir -p a/b empty; echo one > a/b/f; echo same > same; ln -s same link; echo gone > gone; chmod 600 a/b/f",
    );
    world.settled();
    let then = moment(&world);
    world.sh("echo two > a/b/f; rm gone; mkdir new; echo x > new/y; rmdir empty");
    world.settled();
    world.sh(&format!("diff -r ../.at/{then} ../.at/{then}; cp -a ../.at/{then} $SPARE/copy"));
    assert_eq!(fs::read_to_string(world.dir.path().join("copy/a/b/f")).unwrap(), "one\n");
    let listed = world.sh(&format!("cd ../.at/{then}; find . -printf '%P %y %m\\n' | sort"));
    assert_eq!(listed, " d 555\na d 755\na/b d 755\na/b/f f 600\nempty d 755\ngone f 644\nlink l 777\nsame f 644\n");
    let differs = world.sh(&format!("diff -r ../.at/{then} . || true"));
    let expected = [
        format!("diff -r ../.at/{then}/a/b/f ./a/b/f\n1c1\n< one\n---\n> two\n"),
        format!("Only in ../.at/{then}: empty\nOnly in ../.at/{then}: gone\nOnly in .: new\n"),
    ];
    assert_eq!(differs, expected.concat());
    assert_eq!(world.sh("diff -r ../.at/now . && echo the same"), "the same\n");
    assert_eq!(world.sh("ls ../.at/1h-ago"), "");
    world.sh(&format!("cp -p ../.at/{then}/gone gone; grep -r gone ."));
    for wrong in ["yesterday", "abcd", "25:00"] {
        assert!(!world.try_sh(&format!("ls ../.at/{wrong}")).status.success(), "{wrong}");
    }
}

#[test]
fn all_that_was_there_is_listed_however_much_it_is() {
    let world = World::new();
    world.sh(
        "mkdir d; for n in $(seq 50); do echo $n > $n; echo $n > d/$n; echo $n > gone$n; done; mkdir e; echo x > e/f",
    );
    world.settled();
    let then = moment(&world);
    world.sh("rm gone*");
    world.settled();
    assert_eq!(world.sh(&format!("cd ../.at/{then}; find . -type f | wc -l")), "151\n");
    assert_eq!(world.sh(&format!("cp -a ../.at/{then} $SPARE/all; find $SPARE/all -type f | wc -l")), "151\n");
    assert_eq!(world.sh("diff -r ../.at/now . && diff -r ../.by/here . && echo the same"), "the same\n");
    assert_eq!(world.sh("ls ../.history | wc -l"), "102\n");
}

#[test]
fn an_entry_shows_what_its_author_had_seen_and_no_more() {
    let world = World::new();
    world.sh("echo base > f");
    world.there.pull(&world.here);
    world.there.put("theirs", b"theirs");
    world.there.put("f", b"theirs");
    world.sh("echo mine > f");
    let (mine, _) = last(&world);
    world.here.pull(&world.there);
    eventually("theirs", || world.key("theirs").exists());
    for name in [mine.to_string(), mine.to_string()[..12].to_owned()] {
        assert_eq!(world.sh(&format!("ls ../.at/{name}; cat ../.at/{name}/f")), "f\nmine\n");
    }
}

#[test]
fn what_was_can_not_be_changed() {
    let world = World::new();
    world.sh("mkdir d; echo one > d/f");
    let then = moment(&world);
    let version = world.sh("ls -d ../.history/d/f/*").trim().to_owned();
    for script in [
        format!("echo x > ../.at/{then}/d/f"),
        format!("echo x > ../.at/{then}/d/new"),
        format!("rm ../.at/{then}/d/f"),
        format!("rmdir ../.at/{then}/d"),
        format!("mkdir ../.at/{then}/e"),
        format!("mv ../.at/{then}/d/f ../.at/{then}/d/g"),
        format!("mv ../.at/{then}/d/f d/g"),
        format!("mv d/f ../.at/{then}/d/g"),
        format!("chmod 600 ../.at/{then}/d/f"),
        format!("touch ../.at/{then}/d/f"),
        format!("ln -s x ../.at/{then}/d/l"),
        "touch ../.by/here/d/f".to_owned(),
        format!("echo x >> {version}"),
        format!("rm {version}"),
    ] {
        let output = world.try_sh(&script);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("Read-only file system"), "{script}: {error}");
    }
    assert_eq!(world.sh("cat d/f"), "one\n");
}

#[test]
fn what_a_machine_wrote_last_is_below_its_name() {
    let world = World::new();
    world.sh("mkdir d; echo mine > d/mine; echo mine > d/both");
    world.there.pull(&world.here);
    world.there.put("d/both", b"theirs\n");
    world.there.put("theirs", b"theirs\n");
    world.here.pull(&world.there);
    eventually("theirs", || world.key("theirs").exists());
    assert_eq!(world.sh("ls ../.by/"), "here\nthere\n");
    assert_eq!(
        world.sh("find ../.by/there -type f | sort; cat ../.by/there/d/both"),
        "../.by/there/d/both\n../.by/there/theirs\ntheirs\n"
    );
    assert_eq!(world.sh("find ../.by/here -type f"), "../.by/here/d/mine\n");
    assert!(!world.try_sh("ls ../.by/nobody").status.success());
}

#[test]
fn the_past_is_reached_by_name_and_not_listed() {
    let world = World::new();
    world.sh("echo x > f");
    assert_eq!(world.sh("ls -A .."), "keys\n");
    assert_eq!(world.sh("ls -A ../.at"), "");
    for name in [".at", ".by", ".history"] {
        assert!(world.sh(&format!("stat -c %A ../{name}")).starts_with("dr-x"));
    }
}

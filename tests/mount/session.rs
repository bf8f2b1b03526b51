//! Mounting, unmounting, and what survives.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use lattice::fs::{MountError, Options, mount, recovered};
use lattice::replication::membership::Role;

use crate::world::{World, eventually};

#[test]
fn what_can_not_be_mounted_on_is_refused_with_what_to_do() {
    let world = World::new();
    let refused = |at: &std::path::Path| mount(at, world.sources(), Options::default()).unwrap_err();
    assert!(matches!(refused(&world.dir.path().join("none")), MountError::Missing(_)));
    let file = world.dir.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(refused(&file), MountError::NotDirectory(_)));
    assert!(matches!(refused(world.dir.path()), MountError::NotEmpty(_)));
    assert!(matches!(refused(&world.at), MountError::AlreadyMounted(_)));
    assert!(refused(&world.at).to_string().contains("lattice down"));
}

#[test]
fn unmounting_publishes_what_waited_and_leaves_an_empty_directory() {
    let mut world = World::new();
    let mut file = OpenOptions::new().write(true).create_new(true).open(world.key("f")).unwrap();
    file.write_all(b"just in time").unwrap();
    drop(file);
    world.unmount();
    assert_eq!(world.here.get("f").unwrap(), b"just in time");
    assert_eq!(fs::read_dir(&world.at).unwrap().count(), 0);
}

#[test]
fn unmounting_works_while_someone_sits_in_it() {
    let mut world = World::new();
    world.sh("mkdir d");
    let mut sitter = Command::new("sleep").arg("60").current_dir(world.key("d")).stdin(Stdio::null()).spawn().unwrap();
    let open = File::create(world.key("open")).unwrap();
    world.unmount();
    assert_eq!(fs::read_dir(&world.at).unwrap().count(), 0);
    drop(open);
    sitter.kill().unwrap();
    sitter.wait().unwrap();
    world.mount();
    assert_eq!(world.sh("ls -d d"), "d\n");
}

/// Not a test: the daemon that the next one kills. It mounts the directory that it is told of, with no mesh.
#[test]
#[ignore = "started by another test"]
fn a_daemon_that_will_be_killed() {
    let Some(at) = std::env::var_os("LATTICE_TEST_MOUNT") else { return };
    let nobody = std::sync::Arc::new(crate::world::Fixed(Vec::new(), std::sync::Arc::default()));
    let drafts = std::path::Path::new(&at).with_extension("drafts");
    let sources = lattice::fs::Sources { registry: std::sync::Arc::default(), peers: nobody, drafts };
    let _mounted = mount(std::path::Path::new(&at), sources, Options::default()).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_dead_mount_of_ours_is_cleared() {
    let mut world = World::new();
    world.sh("echo x > f");
    world.unmount();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "session::a_daemon_that_will_be_killed", "--ignored"])
        .env("LATTICE_TEST_MOUNT", &world.at)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("its mount", || world.at.join("README").exists());
    let held = File::open(&world.at).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    eventually("the mount to be dead", || nix::sys::statvfs::statvfs(&world.at) == Err(nix::errno::Errno::ENOTCONN));
    world.mount();
    assert_eq!(world.sh("cat f"), "x\n");
    drop(held);
    assert_eq!(world.sh("cat f"), "x\n");
}

#[test]
fn a_file_that_stays_here_is_there_after_a_remount_and_never_in_the_store() {
    let mut world = World::new();
    world.sh("mkdir d; echo swap > d/.f.swp; echo x > d/f");
    let entries = world.here.entries();
    world.unmount();
    world.mount();
    assert_eq!(world.sh("ls -A d; cat d/.f.swp"), ".f.swp\nf\nswap\n");
    assert_eq!(world.here.entries(), entries);
    assert!(world.here.heads("d/.f.swp").is_none());
    world.sh("rm d/.f.swp");
    world.unmount();
    world.mount();
    assert_eq!(world.sh("ls -A d"), "f\n");
}

#[test]
fn what_was_synced_and_not_closed_is_recovered_for_a_person() {
    let world = World::new();
    let mut file = OpenOptions::new().write(true).create_new(true).open(world.key("f")).unwrap();
    file.write_all(b"precious").unwrap();
    file.sync_all().unwrap();
    // Another mount of the same drafts stands for the start after a crash.
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let again = mount(&other, world.sources(), Options::default()).unwrap();
    let found = recovered(&world.dir.path().join("drafts"));
    assert_eq!(found.len(), 1);
    assert_eq!(fs::read(&found[0].file).unwrap(), b"precious");
    assert_eq!(found[0].key.as_ref().unwrap().1, b"f");
    again.unmount().unwrap();
}

#[test]
fn what_was_synced_and_closed_and_not_published_yet_is_published_after_a_crash() {
    let world = World::new();
    let drafts = world.dir.path().join("drafts");
    let mut file = OpenOptions::new().write(true).create_new(true).open(world.key("f")).unwrap();
    file.write_all(b"precious").unwrap();
    file.sync_all().unwrap();
    let kept = world.dir.path().join("kept");
    assert!(Command::new("cp").arg("-a").args([&drafts, &kept]).status().unwrap().success());
    drop(file);
    eventually("the version", || world.here.get("f").is_some());
    fs::remove_file(world.key("f")).unwrap();
    // The copy of before, said to be closed, as if the daemon had died in the moment between.
    for note in
        fs::read_dir(&kept).unwrap().flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "note"))
    {
        let text = fs::read_to_string(note.path()).unwrap().replace("\"closed\":false", "\"closed\":true");
        fs::write(note.path(), text).unwrap();
    }
    let mut sources = world.sources();
    sources.drafts = kept;
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let again = mount(&other, sources, Options::default()).unwrap();
    assert!(world.here.heads("f").unwrap().is_conflict() || world.here.get("f").is_some());
    again.unmount().unwrap();
}

#[test]
fn a_reader_is_refused_at_open() {
    let world = World::with(Role::Reader);
    world.here.put("f", b"x");
    world.there.pull(&world.here);
    let mut sources = world.sources();
    sources.registry = Arc::new(Some(Arc::clone(&world.there.registry)).into());
    sources.drafts = world.dir.path().join("others drafts");
    let other = world.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let mounted = mount(&other, sources, Options::default()).unwrap();
    let key = |name: &str| other.join("stores/home/keys").join(name);
    let error = OpenOptions::new().append(true).open(key("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(File::create(key("g")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::remove_file(key("f")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read(key("f")).unwrap(), b"x");
    mounted.unmount().unwrap();
}

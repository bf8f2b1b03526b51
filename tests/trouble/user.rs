//! A node of an ordinary user, mounted through the system's helper.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Room, eventually};
use crate::{FAILED, REFUSED, Said, USAGE, failure};

const ANNA: u32 = 54_321;
const BERT: u32 = 54_322;

/// A machine's view with two users, who may mount if the device lets them; the programs are where they can run them.
struct Machine {
    room: Room,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(fuse: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, user) in [("anna", ANNA), ("bert", BERT)] {
            fs::create_dir_all(at.join(name).join("mesh")).unwrap();
            chown(at.join(name), Some(user), Some(user)).unwrap();
            chown(at.join(name).join("mesh"), Some(user), Some(user)).unwrap();
        }
        fs::create_dir(at.join("bin")).unwrap();
        let users = format!("lattice-anna:x:{ANNA}:{ANNA}::/:/bin/sh\nlattice-bert:x:{BERT}:{BERT}::/:/bin/sh\n");
        fs::write(at.join("passwd"), fs::read_to_string("/etc/passwd").unwrap() + &users).unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_lattice")).parent().unwrap();
        let (bin, passwd) = (at.join("bin"), at.join("passwd"));
        let setup = format!(
            "{}\nmount --bind {} {}\nmount --bind {} /etc/passwd",
            Room::devices(Some(fuse)),
            programs.display(),
            bin.display(),
            passwd.display()
        );
        Self { room: Room::new(&setup), dir }
    }

    fn home(&self, user: u32) -> PathBuf {
        self.dir.path().join(if user == ANNA { "anna" } else { "bert" })
    }

    fn data(&self) -> PathBuf {
        self.home(ANNA).join("data")
    }

    fn mount(&self) -> PathBuf {
        self.home(ANNA).join("mesh")
    }

    /// A command of a user.
    fn as_user(&self, user: u32, program: &str) -> Command {
        let mut command = self.room.command("setpriv");
        let id = user.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", program]).env("HOME", self.home(user));
        command
    }

    /// `lattice` of a user, on Anna's node.
    fn attempt(&self, user: u32, args: &[&str]) -> Output {
        let program = self.dir.path().join("bin/lattice");
        let mut command = self.as_user(user, program.to_str().unwrap());
        command.args(args).env("LATTICE_DATA", self.data()).output().unwrap()
    }

    fn lattice(&self, args: &[&str]) -> String {
        let output = self.attempt(ANNA, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "lattice {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn refused(&self, user: u32, args: &[&str], code: i32) -> Said {
        let args = [args, &["--json"]].concat();
        failure(&self.attempt(user, &args), code, &format!("lattice {args:?}"))
    }

    fn up(&self) -> [String; 4] {
        ["up".into(), self.mount().display().to_string(), "--listen".into(), "127.0.0.1:0".into()]
    }

    /// Runs a line of shell as a user: whether it succeeded, and what it printed.
    fn sh(&self, user: u32, line: &str) -> (bool, String) {
        let output = self.as_user(user, "sh").args(["-c", line]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn is_mounted(&self) -> bool {
        self.room.sh("cat /proc/self/mountinfo").contains(&format!(" {} ", self.mount().display()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.data().exists() {
            if std::thread::panicking() {
                eprintln!("{}", fs::read_to_string(self.data().join("latticed.log")).unwrap_or_default());
            }
            drop(self.attempt(ANNA, &["down"]));
        }
    }
}

fn words(args: &[String; 4]) -> [&str; 4] {
    args.each_ref().map(String::as_str)
}

#[test]
fn an_ordinary_user_mounts_writes_reads_and_stops_and_nobody_else_gets_anything() {
    let machine = Machine::new("666");
    let up = machine.up();
    machine.lattice(&words(&up));
    machine.lattice(&["mesh", "init"]);
    let key = machine.mount().join("stores/home/keys/key");
    let key = key.display();
    assert!(machine.sh(ANNA, &format!("echo value > {key} && sync {key}")).0);
    assert_eq!(machine.sh(ANNA, &format!("cat {key}")).1, "value\n");
    assert_eq!(machine.lattice(&["kv", "get", "key"]), "value\n");

    let mode = |name: &str| fs::metadata(machine.data().join(name)).unwrap();
    assert_eq!((mode("").mode() & 0o7777, mode("").uid()), (0o700, ANNA));
    let socket = mode("control.sock");
    assert_eq!((socket.mode() & 0o7777, socket.uid()), (0o600, ANNA));
    assert!(socket.file_type().is_socket());
    assert_eq!(mode("identity.key").mode() & 0o7777, 0o600);

    for what in
        [format!("cat {key}"), format!("ls {}", machine.mount().display()), format!("ls {}", machine.data().display())]
    {
        let (succeeded, printed) = machine.sh(BERT, &what);
        assert!(!succeeded && printed.is_empty(), "{what}: {printed}");
    }
    for args in [&["status"][..], &["kv", "get", "key"], &["mesh", "invite"], &["down"]] {
        let said = machine.refused(BERT, args, REFUSED);
        assert!(said.error.contains("belongs to another user"), "{args:?}: {}", said.error);
    }
    let said = machine.refused(BERT, &words(&up), USAGE);
    assert!(said.hint.contains("another user's"), "{}", said.all());
    // Not even with the doors left open: the node looks at who knocks.
    for (path, open) in [("", 0o755), ("control.sock", 0o666)] {
        fs::set_permissions(machine.data().join(path), fs::Permissions::from_mode(open)).unwrap();
    }
    for args in [&["status"][..], &["kv", "get", "key"], &["down"]] {
        let said = machine.refused(BERT, args, REFUSED);
        assert!(said.error.contains("belongs to another user"), "{args:?}: {}", said.error);
    }
    assert_eq!(machine.lattice(&["kv", "get", "key"]), "value\n");

    machine.lattice(&["down"]);
    assert!(!machine.is_mounted());
    machine.lattice(&words(&up));
    assert_eq!(machine.sh(ANNA, &format!("cat {key}")).1, "value\n");
    assert_eq!(fs::metadata(machine.data()).unwrap().mode() & 0o777, 0o700, "a start closes what was left open");
}

#[test]
fn a_dead_mount_of_an_ordinary_user_is_cleared() {
    let machine = Machine::new("666");
    let up = machine.up();
    machine.lattice(&words(&up));
    machine.lattice(&["mesh", "init"]);
    machine.lattice(&["kv", "put", "key", "value"]);
    let status: serde_json::Value = serde_json::from_str(&machine.lattice(&["status", "--json"])).unwrap();
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is gone", || {
        !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    });
    assert!(machine.is_mounted());
    machine.lattice(&words(&up));
    let key = machine.mount().join("stores/home/keys/key");
    assert_eq!(machine.sh(ANNA, &format!("cat {}", key.display())).1, "value");
}

#[test]
fn the_doctor_names_what_a_user_lacks_and_is_content_with_a_node_that_works() {
    let machine = Machine::new("600");
    let checks = |code: i32| {
        let output = machine.attempt(ANNA, &["doctor", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}{}", String::from_utf8_lossy(&output.stdout));
        let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        checks
    };
    let found = |checks: &[serde_json::Value], what: &str| {
        let check = checks.iter().find(|check| check["check"] == what).unwrap();
        (check["state"].as_str().unwrap().to_owned(), format!("{}; {}", check["says"], check["do"]))
    };
    let closed = checks(FAILED);
    let (state, says) = found(&closed, "/dev/fuse");
    assert!(state == "bad" && says.contains("chmod 666 /dev/fuse"), "{says}");
    assert_eq!(found(&closed, "fusermount3").0, "ok");
    assert_eq!(found(&closed, "node").0, "note");
    assert!(!machine.data().exists(), "looking makes nothing");

    machine.room.sh("chmod 666 /dev/fuse");
    let up = machine.up();
    machine.lattice(&words(&up));
    machine.lattice(&["mesh", "init"]);
    let open = checks(0);
    assert!(open.iter().all(|check| check["state"] != "bad"), "{open:?}");
    assert!(found(&open, "port").1.contains("only nodes on this machine"), "{open:?}");

    let pid = machine.lattice(&["status", "--json"]);
    let pid: serde_json::Value = serde_json::from_str(&pid).unwrap();
    let pid = i32::try_from(pid["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it is gone", || {
        !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    });
    let dead = checks(FAILED);
    let (state, says) = found(&dead, "mounts");
    let mount = machine.mount().display().to_string();
    assert!(state == "bad" && says.contains(&mount) && says.contains(" up "), "{says}");
    // A node that mounts elsewhere is not kept from it.
    let lattice = machine.dir.path().join("bin/lattice");
    let elsewhere = format!("LATTICE_DATA={mount}.data LATTICE_MOUNT={mount}.other {} doctor", lattice.display());
    let (content, says) = machine.sh(ANNA, &elsewhere);
    assert!(content && says.contains(&format!("note  mounts          {mount} is what a killed node left")), "{says}");
    machine.lattice(&words(&up));
    checks(0);
}

#[test]
fn what_a_user_may_not_do_is_told_with_who_can_help() {
    let machine = Machine::new("600");
    let up = machine.up();
    let said = machine.refused(ANNA, &words(&up), REFUSED);
    assert!(said.error.contains("/dev/fuse can't be opened") && said.all().contains("chmod 666"), "{}", said.all());
    machine.room.sh("chmod 666 /dev/fuse");

    let others = machine.home(BERT).join("mesh");
    let said = machine.refused(ANNA, &["up", others.to_str().unwrap(), "--listen", "127.0.0.1:0"], REFUSED);
    assert!(said.error.contains("is not yours to mount on"), "{}", said.error);

    let config = machine.data().join("config.toml");
    fs::write(&config, "").unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o000)).unwrap();
    let said = machine.refused(ANNA, &words(&up), USAGE);
    assert!(said.error.contains("config.toml: Permission denied") && said.hint.contains("readable"), "{}", said.all());
    fs::remove_file(&config).unwrap();

    let key = machine.data().join("identity.key");
    chown(&key, Some(0), Some(0)).unwrap();
    let said = machine.refused(ANNA, &words(&up), FAILED);
    assert!(said.error.contains("identity.key: Permission denied"), "{}", said.error);
    assert!(said.hint.contains("yours"), "{}", said.hint);
    chown(&key, Some(ANNA), Some(ANNA)).unwrap();

    chown(machine.data(), Some(0), Some(0)).unwrap();
    assert!(machine.refused(ANNA, &words(&up), USAGE).hint.contains("another user's"));
    fs::set_permissions(machine.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let said = machine.refused(ANNA, &words(&up), FAILED);
    assert!(said.error.contains("data") && said.hint.contains("--data"), "{}", said.all());
    chown(machine.data(), Some(ANNA), Some(ANNA)).unwrap();
    machine.lattice(&words(&up));
    assert!(machine.is_mounted());
}

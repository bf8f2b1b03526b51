//! Machines for tests: network namespaces joined by a bridge, each with a node of its own, driven as its user would.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a condition is waited for before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics naming `what` if it does not in time.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// Waits for at most `patience` until `condition` holds; panics naming `what` if it does not.
pub(crate) fn within(patience: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(reached(patience, condition), "not within {patience:?}: {what}");
}

/// Whether `condition` holds within `patience`.
pub(crate) fn reached(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    true
}

/// Runs a program and gives what it printed; panics with its words if it fails.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Several hosts on one switch, as network namespaces. Gone when dropped.
pub(crate) struct Net {
    tag: String,
    hosts: u32,
}

static NETS: AtomicU32 = AtomicU32::new(0);

impl Net {
    /// A switch and `hosts` hosts, at 10.77.0.1 and on, without a way to anywhere else.
    pub(crate) fn new(hosts: u32) -> Self {
        let tag = format!("lt{}x{}", std::process::id(), NETS.fetch_add(1, Ordering::SeqCst));
        let net = Self { tag, hosts };
        let hub = net.hub();
        run("ip", &["netns", "add", &hub]);
        run("ip", &["-n", &hub, "link", "add", "br0", "type", "bridge", "forward_delay", "0"]);
        run("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        for host in 0..hosts {
            let name = net.host(host);
            let port = format!("p{host}");
            run("ip", &["netns", "add", &name]);
            run("ip", &["-n", &name, "link", "set", "lo", "up"]);
            run("ip", &["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            run("ip", &["-n", &hub, "link", "set", &port, "master", "br0"]);
            run("ip", &["-n", &hub, "link", "set", &port, "up"]);
            let address = format!("{}/24", net.address(host));
            run("ip", &["-n", &name, "addr", "add", &address, "dev", "eth0"]);
            run("ip", &["-n", &name, "link", "set", "eth0", "up"]);
        }
        net
    }

    fn hub(&self) -> String {
        format!("{}hub", self.tag)
    }

    /// The name of a host's namespace.
    pub(crate) fn host(&self, host: u32) -> String {
        format!("{}h{host}", self.tag)
    }

    /// The address of a host.
    pub(crate) fn address(&self, host: u32) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// A command to be run on a host: in its network, on the same files as here.
    pub(crate) fn on(&self, host: u32, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.host(host))).arg(program.as_ref());
        command
    }

    /// Pulls a host's cable.
    pub(crate) fn cut(&self, host: u32) {
        run("ip", &["-n", &self.hub(), "link", "set", &format!("p{host}"), "down"]);
    }

    /// Puts a host's cable back.
    pub(crate) fn heal(&self, host: u32) {
        run("ip", &["-n", &self.hub(), "link", "set", &format!("p{host}"), "up"]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in (0..self.hosts).map(|host| self.host(host)).chain([self.hub()]) {
            drop(Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status());
        }
    }
}

/// A view of the file system of its own: what is mounted in it is seen nowhere else. Gone when dropped.
pub(crate) struct Room {
    keeper: Child,
}

impl Room {
    /// A room that begins as what is here, changed by `setup`: commands of a shell.
    pub(crate) fn new(setup: &str) -> Self {
        let script = format!("set -e\n{setup}\necho ready\nexec cat > /dev/null");
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the room could not be made: {setup}");
        Self { keeper }
    }

    /// A device directory with what a program needs, and /dev/fuse with this mode, or without it.
    pub(crate) fn devices(fuse: Option<&str>) -> String {
        let fuse = fuse.map(|mode| format!("mknod -m {mode} $dev/fuse c 10 229")).unwrap_or_default();
        format!(
            "dev=$(mktemp -d); mount -t tmpfs -o mode=755 none $dev
            cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty $dev; {fuse}
            mount --move $dev /dev; rmdir $dev"
        )
    }

    /// A command to be run in the room.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id())).arg("--").arg(program.as_ref());
        command
    }

    /// Runs a line of shell in the room; gives what it printed.
    pub(crate) fn sh(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The way from here to a path in the room.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.keeper.id())).join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Its end of input is the keeper's end.
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Here,
    Host(&'a Net, u32),
    Room(&'a Room),
}

/// A node on a host of a [`Net`], in a [`Room`] or on this machine, with its data and its mount. Stopped when dropped.
pub(crate) struct Node<'a> {
    place: Place<'a>,
    dir: tempfile::TempDir,
}

impl<'a> Node<'a> {
    /// A node on a host, not yet started.
    pub(crate) fn on(net: &'a Net, host: u32) -> Self {
        Self::with(Place::Host(net, host))
    }

    /// A node on this machine, on loopback, not yet started.
    pub(crate) fn here() -> Self {
        Self::with(Place::Here)
    }

    /// A node in a room, on loopback, not yet started.
    pub(crate) fn within(room: &'a Room) -> Self {
        Self::with(Place::Room(room))
    }

    fn with(place: Place<'a>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { place, dir }
    }

    /// The node's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where the node mounts.
    pub(crate) fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// A path among the keys of the store `home`.
    pub(crate) fn key(&self, path: &str) -> PathBuf {
        self.keys().join(path)
    }

    /// The keys of the store `home`.
    pub(crate) fn keys(&self) -> PathBuf {
        self.mount().join("stores/home/keys")
    }

    /// The `lattice` command on this node, as a command to be completed.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_lattice");
        let mut command = match self.place {
            Place::Host(net, host) => net.on(host, program),
            Place::Room(room) => room.command(program),
            Place::Here => Command::new(program),
        };
        command.args(args).env("LATTICE_DATA", self.data()).stdin(Stdio::null());
        command
    }

    /// Runs `lattice` on this node, whatever comes of it.
    pub(crate) fn attempt(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs `lattice` on this node; panics with its words if it fails.
    pub(crate) fn lattice(&self, args: &[&str]) -> String {
        let output = self.attempt(args);
        assert!(
            output.status.success(),
            "lattice {args:?}: {}\n{}{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.journal()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn journal(&self) -> String {
        let log = self.data().join("latticed.log");
        let log = if let Place::Room(room) = self.place { room.path(&log) } else { log };
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// Starts the daemon and mounts.
    pub(crate) fn up(&self) {
        let mount = self.mount();
        let mount = mount.to_str().unwrap();
        match self.place {
            Place::Host(..) => self.lattice(&["up", mount, "--listen", "0.0.0.0:7000"]),
            Place::Room(_) | Place::Here => self.lattice(&["up", mount, "--listen", "127.0.0.1:0"]),
        };
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> i32 {
        let status: serde_json::Value = serde_json::from_str(&self.lattice(&["status", "--json"])).unwrap();
        i32::try_from(status["pid"].as_i64().expect("status gives the pid")).unwrap()
    }

    /// Kills the daemon without a warning.
    pub(crate) fn kill(&self) {
        let pid = self.pid();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("the killed daemon is gone", || !Path::new(&format!("/proc/{pid}/stat")).exists() || zombie(pid));
    }
}

fn zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if self.data().exists() {
            if std::thread::panicking() {
                eprintln!("--- the log of {}\n{}", self.data().display(), self.journal());
            }
            drop(self.attempt(&["down"]));
        }
        drop(Command::new("umount").arg("-l").arg(self.mount()).stderr(Stdio::null()).status());
    }
}

/// Starts nodes on hosts 0.. of `net` and joins them into one mesh, which the first makes.
pub(crate) fn mesh(net: &Net, size: u32) -> Vec<Node<'_>> {
    let nodes: Vec<_> = (0..size).map(|host| Node::on(net, host)).collect();
    for node in &nodes {
        node.up();
    }
    nodes[0].lattice(&["mesh", "init"]);
    for node in &nodes[1..] {
        let token = nodes[0].lattice(&["mesh", "invite"]);
        node.lattice(&["mesh", "join", token.trim()]);
    }
    nodes
}

/// What differs between two trees, by rsync's word: contents, kinds, modes, mtimes, symlinks. Empty if nothing does.
/// The top directories themselves are not compared: the top of a store is no key.
pub(crate) fn difference(left: &Path, right: &Path) -> String {
    let with_slash = |path: &Path| format!("{}/", path.display());
    let args = ["-rlpt", "-ni", "--checksum", "--delete", &with_slash(left), &with_slash(right)];
    run("rsync", &args).lines().filter(|line| !line.ends_with(" ./")).map(|line| format!("{line}\n")).collect()
}

//! `lattice doctor`: what this machine lacks for a node, and what to do.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use serde_json::json;

use super::output::{escaped, size};
use super::{Context, Ended};
use crate::api::wire::{StatusReply, StatusRequest};
use crate::api::{Client, Failure, Kind};
use crate::clock::{Clock, System};
use crate::config::{Flags, Settings, log_file, quoted};

const EXAMPLES: &str = "\
Examples:
  lattice doctor
  lattice doctor --json | jq -r '.[] | select(.state == \"bad\") | .do'

Looks at this machine, and at the node if it runs; changes nothing. Exits with 1 if something is bad.";

/// Look for what keeps a node from working here, and say what to do
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Doctor {}

/// Free space below which something is said, in bytes: below 16 MiB the mount takes no more.
const ROOM: u64 = 64 << 20;
/// How far ahead a stamp may be before other nodes hold it back.
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// No clock that is right shows an earlier year.
const YEAR_2025: Duration = Duration::from_secs(1_735_689_600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    /// Works, and may surprise.
    Note,
    Bad,
}

/// What was looked at, and what was found.
#[derive(Debug)]
struct Check {
    what: &'static str,
    state: State,
    says: String,
    remedy: Option<String>,
}

impl Check {
    fn new(what: &'static str, state: State, says: impl Into<String>) -> Self {
        Self { what, state, says: says.into(), remedy: None }
    }

    fn ok(what: &'static str, says: impl Into<String>) -> Self {
        Self::new(what, State::Ok, says)
    }

    fn bad(what: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(what, State::Bad, says) }
    }

    fn note(what: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::new(what, State::Note, says) }
    }

    fn shown(&self, context: &Context) -> String {
        let state = match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Bad => "BAD",
        };
        let mut text = format!("{state:<4}  {:<14}  {}", self.what, escaped(self.says.as_bytes()));
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("\n{:22}do: {}", "", context.output.pasted(&escaped(remedy.as_bytes()))));
        }
        text
    }
}

impl Doctor {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let Self {} = self;
        let status = running(context).await;
        let mut checks = vec![device()];
        checks.extend(helper());
        let settings = Settings::load(&context.data, &Flags::new());
        checks.extend(dead_mounts(settings.as_ref().ok().map(|settings| settings.mount.as_path())));
        checks.extend([directory(&context.data), space(&context.data), clock(&context.data)]);
        checks.push(match &settings {
            Ok(_) => Check::ok("settings", "read"),
            Err(error) => Check::bad("settings", error.to_string(), error.hint()),
        });
        match status {
            Ok(Some(status)) => checks.extend(node(&status)),
            Ok(None) => {
                let start = format!("`{}` starts it", context.typed("up"));
                checks.push(Check::note("node", "does not run", start));
                checks.extend(settings.ok().map(|settings| port(&context.data, settings.listen)));
            }
            Err(failure) => checks.push(Check::bad(
                "node",
                failure.message,
                failure.hint.unwrap_or_else(|| format!("see {}", log_file(&context.data).display())),
            )),
        }
        said(&checks, context)
    }
}

fn said(checks: &[Check], context: &Context) -> Ended {
    if context.output.is_json() {
        let checks = checks.iter().map(|check| {
            let state = match check.state {
                State::Ok => "ok",
                State::Note => "note",
                State::Bad => "bad",
            };
            let remedy = check.remedy.as_ref().map(|remedy| context.output.pasted(remedy));
            json!({"check": check.what, "state": state, "says": check.says, "do": remedy})
        });
        context.output.value(&checks.collect())?;
    } else {
        checks.iter().try_for_each(|check| context.output.line(check.shown(context)))?;
    }
    match checks.iter().filter(|check| check.state == State::Bad).count() {
        0 => Ok(()),
        bad => Err(Failure::failed(format!("{bad} of {} checks found something bad", checks.len())).into()),
    }
}

async fn running(context: &Context) -> Result<Option<StatusReply>, Failure> {
    let client = match context.client().await {
        Ok(client) => client,
        Err(failure) if failure.kind == Kind::NotRunning => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let ask = async |client: Client| client.node().status(StatusRequest {}).await;
    Ok(Some(ask(client).await?.into_inner()))
}

fn device() -> Check {
    const WHAT: &str = "/dev/fuse";
    let device = Path::new(WHAT);
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => {
            let mode = std::fs::metadata(device).map_or(0, |found| found.mode());
            if mode & 0o006 == 0o006 {
                Check::ok(WHAT, "opens, for every user")
            } else {
                Check::note(WHAT, "opens for you, not for every user", "to let others mount: chmod 666 /dev/fuse")
            }
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Check::bad(
            WHAT,
            "is closed to you, so you can't mount",
            "an administrator opens it to all with: chmod 666 /dev/fuse",
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => Check::bad(
            WHAT,
            "is missing, so nothing can be mounted",
            "load the module: modprobe fuse (in a container: --device /dev/fuse). Without a mount: `lattice up --no-mount`",
        ),
        Err(error) => Check::bad(
            WHAT,
            format!("can't be opened: {error}"),
            "load the module: modprobe fuse. Without a mount: `lattice up --no-mount`",
        ),
    }
}

/// What an ordinary user needs to mount.
fn helper() -> Vec<Check> {
    const WHAT: &str = "fusermount3";
    if nix::unistd::geteuid().is_root() {
        return vec![Check::ok(WHAT, "not needed: root mounts by itself")];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(WHAT)).find(|program| program.is_file());
    let install = "install the package fuse3";
    let helper = match &found {
        None => Check::bad(WHAT, "is not installed, and only root mounts without it", install),
        Some(program) => {
            let suid = std::fs::metadata(program)
                .is_ok_and(|found| found.permissions().mode() & 0o4000 != 0 && found.uid() == 0);
            let shown = program.display();
            if suid {
                Check::ok(WHAT, shown.to_string())
            } else {
                Check::bad(WHAT, format!("{shown} does not run as root, so it can't mount"), format!("{install} again"))
            }
        }
    };
    let allowed = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let others = if allowed.lines().any(|line| line.trim() == "user_allow_other") {
        "user_allow_other is set; Lattice's mounts are for their user alone all the same"
    } else {
        "user_allow_other is not set, and not needed: a mount is for its user alone"
    };
    vec![helper, Check::ok("/etc/fuse.conf", others)]
}

/// Mounts that nobody answers. Only the one at `place`, where this node mounts unless told otherwise, is surely this node's: another
/// node on this machine, whose matter the others may be, does not keep this one from working.
fn dead_mounts(place: Option<&Path>) -> Vec<Check> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = mounts.lines().filter(|line| line.contains(" - fuse.lattice "));
    let dead = ours.filter_map(|line| line.split(' ').nth(4)).map(unescaped).filter(|at| {
        let gone = std::fs::read_dir(at).err().and_then(|error| error.raw_os_error());
        gone == Some(Errno::ENOTCONN as i32)
    });
    let told = |at: PathBuf| {
        let clear = quoted(&at);
        let says = format!("{} is what a killed node left", at.display());
        let remedy =
            format!("`lattice up {clear}` clears it and mounts again; or end it with: fusermount3 -uz {clear}");
        if place == Some(at.as_path()) {
            Check::bad("mounts", says, remedy)
        } else {
            Check::note("mounts", says, remedy)
        }
    };
    let dead: Vec<_> = dead.map(told).collect();
    if dead.is_empty() { vec![Check::ok("mounts", "none is dead")] } else { dead }
}

/// A path as the table of mounts writes it: spaces and the like as a backslash and three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let octal = more.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &more[3..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    std::ffi::OsStr::from_bytes(&bytes).into()
}

/// The nearest directory above that is there.
fn standing(data: &Path) -> &Path {
    data.ancestors().find(|above| above.exists()).unwrap_or(data)
}

fn directory(data: &Path) -> Check {
    const WHAT: &str = "data directory";
    let at = standing(data);
    let shown = data.display();
    let access = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    if !at.is_dir() {
        return Check::bad(WHAT, format!("{} is no directory", at.display()), "choose another --data");
    }
    match nix::unistd::access(at, access) {
        Ok(()) if at == data => Check::ok(WHAT, shown.to_string()),
        Ok(()) => Check::ok(WHAT, format!("{shown} is made by the first `lattice up`")),
        Err(error) => Check::bad(
            WHAT,
            format!("{} can't be written: {}", at.display(), error.desc()),
            format!("make {} yours, or choose another --data", at.display()),
        ),
    }
}

fn space(data: &Path) -> Check {
    const WHAT: &str = "free space";
    let at = standing(data);
    match statvfs(at) {
        Ok(disk) => {
            let free = disk.fragment_size().saturating_mul(disk.blocks_available());
            let says = format!("{} on the disk of {}", size(free), at.display());
            if free < ROOM {
                Check::bad(WHAT, says, "free some: below 16 MiB the mount takes no more")
            } else {
                Check::ok(WHAT, says)
            }
        }
        Err(error) => Check::bad(WHAT, format!("{}: {}", at.display(), error.desc()), "see to that disk"),
    }
}

/// A clock can only be compared with what it said before: the times of the node's own files.
fn clock(data: &Path) -> Check {
    const WHAT: &str = "clock";
    let now = Duration::from_millis(System.now().0);
    let remedy = "set it, by NTP best: entries stamped more than five minutes ahead wait on every other node";
    let files = ["lock", "latticed.log", "identity.key", "port"].map(|name| data.join(name));
    let stamps = files.iter().filter_map(|file| std::fs::metadata(file).ok()?.modified().ok());
    let latest = stamps.filter_map(|time| time.duration_since(UNIX_EPOCH).ok()).max();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(0);
    let shown = time::OffsetDateTime::from_unix_timestamp(seconds).map(|time| time.date().to_string());
    let shown = shown.unwrap_or_default();
    if now < YEAR_2025 {
        return Check::bad(WHAT, format!("says that it is {shown}"), remedy);
    }
    match latest {
        Some(latest) if latest > now + AHEAD => {
            let ahead = (latest - now).as_secs() / 60;
            Check::bad(WHAT, format!("was set back: files of this node are {ahead} minutes in the future"), remedy)
        }
        _ => Check::ok(WHAT, format!("says that it is {shown}; whether that is right, no machine knows by itself")),
    }
}

/// Whether a node that does not run could listen.
fn port(data: &Path, mut listen: SocketAddr) -> Check {
    const WHAT: &str = "port";
    if listen.port() == 0 {
        let kept = std::fs::read_to_string(data.join("port")).ok().and_then(|port| port.trim().parse().ok());
        listen.set_port(kept.unwrap_or(0));
    }
    match UdpSocket::bind(listen) {
        Ok(_) if listen.port() == 0 => Check::ok(WHAT, "is chosen at the first start, and kept"),
        Ok(_) => Check::ok(WHAT, format!("{listen} (UDP) is free")),
        Err(error) => Check::bad(
            WHAT,
            format!("{listen} (UDP) can't be had: {error}"),
            "end the program that has it, or choose another: `lattice up --listen ADDR:PORT`",
        ),
    }
}

/// What a node that runs says of itself.
fn node(status: &StatusReply) -> Vec<Check> {
    let mut checks = vec![Check::ok("node", format!("runs, process {}", status.pid))];
    let mine = env!("CARGO_PKG_VERSION");
    if status.version != mine {
        let says = format!("the node that runs is lattice {}, this command is {mine}", status.version);
        checks.push(Check::note("version", says, "`lattice down`, then `lattice up`"));
    }
    let listen: Option<SocketAddr> = status.listen.parse().ok();
    checks.push(match listen {
        Some(listen) if listen.ip().is_loopback() => Check::note(
            "port",
            format!("{listen} (UDP): only nodes on this machine can reach it"),
            "`lattice down`, then `lattice up --listen 0.0.0.0:0`",
        ),
        _ => Check::ok("port", format!("{} (UDP); a firewall must let it through", status.listening.join(", "))),
    });
    checks.push(match &status.mesh {
        None => Check::note("mesh", "in none", "`lattice mesh init` or `lattice mesh join TOKEN`"),
        Some(mesh) if mesh.members > 1 && mesh.online == 0 => Check::note(
            "mesh",
            format!("none of {} other members is online", mesh.members - 1),
            "`lattice peers` shows where each was last reached: one side must be reachable by UDP",
        ),
        Some(mesh) => Check::ok("mesh", format!("{} of {} other members online", mesh.online, mesh.members - 1)),
    });
    let warned = status.warnings.iter();
    checks.extend(warned.map(|warning| Check::bad("node", warning.clone(), "`lattice status` shows it in its place")));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_table_of_mounts_is_read_as_it_is() {
        assert_eq!(unescaped("/a\\040b\\134c\\"), Path::new("/a b\\c\\"));
    }

    #[test]
    fn a_clock_that_was_set_back_is_seen_by_the_files_it_stamped() {
        let dir = tempfile::tempdir().unwrap();
        let port = dir.path().join("port");
        std::fs::write(&port, "1\n").unwrap();
        assert_eq!(clock(dir.path()).state, State::Ok);
        let ahead = filetime::FileTime::from_unix_time(i64::try_from(System.now().0 / 1000 + 3_600).unwrap(), 0);
        filetime::set_file_mtime(&port, ahead).unwrap();
        let check = clock(dir.path());
        assert_eq!(check.state, State::Bad);
        assert!(check.says.contains("set back"), "{}", check.says);
    }
}

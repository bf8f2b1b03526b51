//! `lattice up`: a running node and a mount that answers.

use std::fs::{DirBuilder, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::node::wait_until_free;
use super::output::{absolute, escaped};
use super::progress::Progress;
use super::{Context, Ended};
use crate::api::wire::{MountRequest, ShutdownRequest, StatusReply, StatusRequest};
use crate::api::{Client, Failure, Kind};
use crate::clock::monotonic;
use crate::config::{Flags, Settings, in_use, keep, log_file, quoted};

const EXAMPLES: &str = "\
Examples:
  lattice up                                 mount at ~/mesh
  lattice up /srv/mesh --listen 0.0.0.0:7000
  lattice --data /srv/node2 up /srv/mesh2    a second node on this machine
  lattice up /srv/mesh --foreground          for a service manager
  lattice up --no-mount                      a node without a mount

The first start makes the data directory and this node's identity in it. --listen, --name and DIR are kept in the data \
directory's config.toml when they start a node: a plain `lattice up` uses them again. A node that runs keeps its address and name \
until it is stopped.";

/// Start this node if it does not run, and mount the mesh
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Up {
    /// Where to mount: an empty directory [default: the setting `mount`, or ~/mesh, which is made if need be]
    #[arg(value_name = "DIR", conflicts_with = "no_mount")]
    dir: Option<PathBuf>,
    /// Start without a mount
    #[arg(long)]
    no_mount: bool,
    /// Stay in the foreground until SIGTERM or ctrl-c; log to stderr
    #[arg(long)]
    foreground: bool,
    /// The address for other nodes, kept for later starts [default: 0.0.0.0 and a port that is chosen once and kept]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What this node proposes to be called in a mesh, kept for later starts [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// How long a daemon may take from its start to its first answer.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// How much of the end of the daemon's log is looked at for why it ended.
const LOG_TAIL: usize = 2_000;

impl Up {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let flags: Flags = [("listen", &self.listen), ("name", &self.name)]
            .into_iter()
            .filter_map(|(name, value)| value.clone().map(|value| (name, value)))
            .collect();
        let settings = Settings::load(&context.data, &flags)?;
        let mount = self.mount_point(&settings)?;
        if self.foreground {
            return Err(foreground(context, &flags, mount.as_deref()).into());
        }
        let (client, started) = running(context, &flags).await?;
        let status = client.node().status(StatusRequest {}).await?.into_inner();
        if !started {
            as_it_runs(&status, &settings, &flags, context)?;
        }
        if let Some(mount) = &mount
            && let Err(failure) = mounted(&client, mount, context).await
        {
            if started {
                stop(client, context).await?;
            }
            return Err(failure.into());
        }
        if let (true, Some(_), Some(mount)) = (started, &self.dir, &mount) {
            keep(&context.data, &Flags::from([("mount", mount.display().to_string())]))?;
        }
        if let (Some(name), Some(mesh)) = (&self.name, &status.mesh)
            && *name != status.name
        {
            let (called, mesh) = (escaped(status.name.as_bytes()), escaped(mesh.name.as_bytes()));
            context.output.remark(format!(
                "note: this node is called '{called}' in the mesh '{mesh}': --name counts when it founds or joins one"
            ));
        }
        report(client, mount.as_deref(), started, context).await
    }

    fn mount_point(&self, settings: &Settings) -> Result<Option<PathBuf>, Failure> {
        match &self.dir {
            _ if self.no_mount => Ok(None),
            // Here already, before anything is made that would be left behind. The rest is looked at by the node, which clears a dead mount.
            Some(dir) => match std::fs::metadata(dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let dir = absolute(dir)?;
                    let make = format!("make it with: mkdir -p {}", quoted(&dir));
                    Err(Failure::refused(format!("{} does not exist", dir.display())).hint(make))
                }
                _ => absolute(dir).map(Some),
            },
            None => {
                let mount = absolute(&settings.mount)?;
                // A dead mount is there and can't be made; the node clears it.
                match std::fs::create_dir(&mount) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Err(Failure::failed(format!("{}: {error}", mount.display()))
                            .hint(format!("make it, or name another: mkdir -p {}", quoted(&mount))))
                    }
                    _ => Ok(Some(mount)),
                }
            }
        }
    }
}

/// Refuses flags that a node which runs already can't meet.
fn as_it_runs(status: &StatusReply, settings: &Settings, flags: &Flags, context: &Context) -> Result<(), Failure> {
    let stop = || format!("stop it first: `{}`, then this command again", context.typed("down"));
    if flags.contains_key("listen") {
        let asked = settings.listen;
        let meets = |at: SocketAddr| at.ip() == asked.ip() && (asked.port() == 0 || at.port() == asked.port());
        if !status.listen.parse().is_ok_and(meets) {
            let message = format!("the node runs already and listens on {}, not on {asked}", status.listen);
            return Err(Failure::refused(message).hint(stop()));
        }
    }
    match (flags.get("name"), &status.mesh) {
        (Some(name), None) if *name != status.proposes => {
            let called = escaped(status.proposes.as_bytes());
            Err(Failure::refused(format!("the node runs already and is called '{called}', not '{name}'")).hint(stop()))
        }
        (Some(name), Some(mesh)) if *name != status.name => {
            let (called, mesh) = (escaped(status.name.as_bytes()), escaped(mesh.name.as_bytes()));
            Err(Failure::refused(format!("this node is called '{called}' in the mesh '{mesh}', not '{name}'"))
                .hint("leave --name away: it counts when a node founds or joins a mesh"))
        }
        _ => Ok(()),
    }
}

async fn report(client: Client, mount: Option<&Path>, started: bool, context: &Context) -> Ended {
    let status = client.node().status(StatusRequest {}).await?.into_inner();
    let said = match (mount, started) {
        (Some(mount), _) => format!("mounted at {}", mount.display()),
        (None, true) => "started".into(),
        (None, false) => "running already".into(),
    };
    context.output.either(
        &json!({"mount": mount.map(|mount| mount.display().to_string()), "started": started, "pid": status.pid,
            "data": status.data, "listening": status.listening, "mesh": status.mesh.is_some()}),
        said,
    )?;
    if status.mesh.is_none() {
        let (init, join) = (context.typed("mesh init"), context.typed("mesh join TOKEN"));
        context.output.note(format!("this node is in no mesh yet: `{init}` or `{join}`"));
    }
    Ok(())
}

async fn mounted(client: &Client, mount: &Path, context: &Context) -> Result<(), Failure> {
    let Some(path) = mount.to_str() else {
        return Err(Failure::new(Kind::Usage, "the mount point's path is no UTF-8").hint("choose another"));
    };
    let mut progress = Progress::new(&context.output);
    progress.say("mounting", "");
    client.node().mount(MountRequest { path: path.into() }).await?;
    Ok(())
}

/// Ends the daemon that this command started for a mount that did not come to be.
async fn stop(client: Client, context: &Context) -> Result<(), Failure> {
    let pid = client.node().shutdown(ShutdownRequest {}).await?.into_inner().pid;
    drop(client);
    wait_until_free(context, pid).await
}

/// The daemon's program: beside this one, or else on the PATH.
fn latticed() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name("latticed"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "latticed".into())
}

fn arguments(context: &Context, flags: &Flags) -> Vec<std::ffi::OsString> {
    let mut arguments = vec!["--data".into(), context.data.clone().into()];
    for (name, value) in flags {
        arguments.extend([format!("--{name}").into(), value.into()]);
    }
    arguments
}

fn cannot_run(program: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", program.display()))
        .hint("`latticed` is installed beside `lattice`, or somewhere on the PATH")
}

/// Becomes the daemon. Returns only if that fails.
fn foreground(context: &Context, flags: &Flags, mount: Option<&Path>) -> Failure {
    let program = latticed();
    let mut command = std::process::Command::new(&program);
    command.args(arguments(context, flags));
    if let Some(mount) = mount {
        command.arg("--mount").arg(mount);
    }
    cannot_run(&program, &command.exec())
}

/// A client of the running node, and whether it was started for this.
async fn running(context: &Context, flags: &Flags) -> Result<(Client, bool), Failure> {
    let began = monotonic();
    let mut progress = Progress::new(&context.output);
    loop {
        match answering(context).await {
            Ok(client) => return Ok((client, false)),
            Err(failure) if !matches!(failure.kind, Kind::NotRunning | Kind::Unavailable) => return Err(failure),
            Err(_) if in_use(&context.data).is_none() => {
                match start(context, flags).await {
                    Ok(()) => return Ok((context.client().await?, true)),
                    // Another command starts it at the same time.
                    Err(failure) if failure.kind == Kind::Refused && in_use(&context.data).is_some() => {}
                    Err(failure) => return Err(failure),
                }
            }
            // It starts or stops just now.
            Err(failure) if monotonic().duration_since(began) > PATIENCE => return Err(failure),
            Err(_) => {
                progress.say("waiting for the node that has the data directory", "");
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

/// A client of a node that answers: one that was just killed still has a socket for a moment.
async fn answering(context: &Context) -> Result<Client, Failure> {
    let client = context.client().await?;
    client.node().status(StatusRequest {}).await?;
    Ok(client)
}

async fn start(context: &Context, flags: &Flags) -> Result<(), Failure> {
    let program = latticed();
    let log = log_to(&context.data)?;
    let mut command = tokio::process::Command::new(&program);
    command.args(arguments(context, flags)).arg("--report");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|error| cannot_run(&program, &error))?;
    let mut progress = Progress::new(&context.output);
    let mut lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
    let report = async {
        match &mut lines {
            Some(lines) => lines.next_line().await.ok().flatten(),
            None => None,
        }
    };
    let mut report = std::pin::pin!(tokio::time::timeout(PATIENCE, report));
    let report = loop {
        tokio::select! {
            report = report.as_mut() => break report,
            () = tokio::time::sleep(Duration::from_millis(100)) => progress.say("starting the node", ""),
        }
    };
    drop(progress);
    let see = format!("see {}", log_file(&context.data).display());
    let Ok(report) = report else {
        return Err(Failure::failed(format!("the node did not start within {PATIENCE:?}")).hint(see));
    };
    let report: Value = report.as_deref().and_then(|report| serde_json::from_str(report).ok()).unwrap_or_default();
    if report["ready"] == true {
        return Ok(());
    }
    if let Some(message) = report["error"].as_str() {
        let failure = Failure::new(Kind::named(report["kind"].as_str().unwrap_or_default()), message);
        return Err(Failure { hint: report["hint"].as_str().map(str::to_owned), ..failure });
    }
    let ended = child.wait().await.map(|status| status.to_string()).unwrap_or_default();
    let last = last_words(&context.data);
    Err(Failure::failed(format!("the node ended while it started ({ended}){last}")).hint(see))
}

fn log_to(data: &Path) -> Result<std::fs::File, Failure> {
    let path = log_file(data);
    let open = || {
        DirBuilder::new().recursive(true).mode(0o700).create(data)?;
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path)
    };
    open().map_err(|error| {
        Failure::failed(format!("{}: {error}", path.display()))
            .hint("name a data directory that you may write: --data DIR")
    })
}

fn last_words(data: &Path) -> String {
    let log = std::fs::read(log_file(data)).unwrap_or_default();
    let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]).into_owned();
    tail.lines().last().map(|line| format!(": {line}")).unwrap_or_default()
}

//! The daemon of one node. `lattice up` starts it; so can a service manager.

use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use lattice::api::{self, Failure, Host, Kind};
use lattice::config::{self, Directory, DirectoryError, Flags, Settings, default_data, named_data};
use lattice::daemon::Daemon;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  latticed --data /var/lib/lattice --mount /srv/mesh

--listen and --name are kept in config.toml. Stops in order at SIGTERM and SIGINT. Logs to stderr. Tells a service manager that sets NOTIFY_SOCKET when it is \
ready. `lattice up` does all of this for a person.";

/// The daemon of one node of a lattice mesh.
#[derive(Debug, Parser)]
#[command(name = "latticed", version, after_help = EXAMPLES, max_term_width = 110)]
struct Arguments {
    /// The node's data directory [env: LATTICE_DATA] [default: ~/.local/share/lattice]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Mount the mesh here
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// The address for other nodes
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What this node proposes to be called in a mesh
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What to log: a level, or target=level, by commas
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Leave the terminal, and say in a line of JSON on stdout how the start went
    #[arg(long, hide = true)]
    report: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = arguments.report;
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let said = if report {
                let said = json!({"error": failure.message, "kind": failure.kind.name(), "hint": failure.hint});
                writeln!(io::stdout().lock(), "{said}")
            } else {
                let hint = failure.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                writeln!(io::stderr().lock(), "error: {}{hint}", failure.message)
            };
            // The exit code says it too.
            said.ok();
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let data = absolute(arguments.data.or_else(named_data).unwrap_or_else(default_data))?;
    let mount = arguments.mount.map(absolute).transpose()?;
    let flags: Flags = [("listen", arguments.listen), ("name", arguments.name), ("log", arguments.log)]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect();
    let settings = Settings::load(&data, &flags)?;
    let filter = EnvFilter::try_new(&settings.log).map_err(|error| {
        Failure::new(Kind::Usage, format!("log = '{}': {error}", settings.log))
            .hint("such as: info, or warn,lattice=debug")
    })?;
    // A line that can't be written, as on a full disk, is no reason for the thread that says it to end.
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    logger.log_internal_errors(false).init();
    let directory = Directory::open(&data).map_err(|error| {
        let kind = if matches!(error, DirectoryError::InUse { .. }) { Kind::Refused } else { Kind::Failed };
        Failure::new(kind, &error).hint(error.hint())
    })?;
    if arguments.report {
        nix::unistd::setsid().map_err(|error| Failure::failed(format!("leaving the terminal: {error}")))?;
    }
    // No directory that someone may want to unmount is held.
    std::env::set_current_dir("/").map_err(Failure::failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let kept = flags.into_iter().filter(|(name, _)| *name != "log").collect();
    let ended = runtime.block_on(serve(directory, &settings, &kept, mount, arguments.report));
    runtime.shutdown_background();
    ended
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|error| Failure::new(Kind::Usage, format!("{}: {error}", path.display())))
}

/// Serves until it is told to stop. `kept`: flags that the next start is to have as well.
async fn serve(
    directory: Directory,
    settings: &Settings,
    kept: &Flags,
    mount: Option<PathBuf>,
    report: bool,
) -> Result<(), Failure> {
    // Before anything is begun that a signal would have to end.
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let data = directory.path().to_owned();
    let daemon = Daemon::start(directory, settings).await?;
    // Not before the node listens there: an address that can't be had is not kept.
    let control = match config::keep(&data, kept).map_err(Failure::from).and_then(|()| api::bind(&data)) {
        Ok(control) => control,
        Err(failure) => {
            daemon.shutdown();
            return Err(failure);
        }
    };
    let stop = daemon.stop().clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(target: "lattice::daemon", "stopping at {name}");
        stop.cancel();
    });
    let mounted = match &mount {
        Some(mount) => daemon.mount(mount).await,
        None => Ok(()),
    };
    match mounted {
        Ok(()) => ready(&daemon, report)?,
        Err(_) => daemon.shutdown(),
    }
    daemon.run(control).await;
    mounted
}

/// Tells whoever started this that the node answers.
fn ready(daemon: &Arc<Daemon>, report: bool) -> Result<(), Failure> {
    let about = daemon.about();
    tracing::info!(target: "lattice::daemon", data = %about.data.display(), listening = ?about.listening, "ready");
    if report {
        let told = writeln!(io::stdout().lock(), "{}", json!({"ready": true, "pid": std::process::id()}));
        // Whoever started this may have been interrupted; the node is wanted all the same.
        told.ok();
        // What reads this process's output must not wait for its end.
        let nowhere = std::fs::File::options().write(true).open("/dev/null").map_err(Failure::failed)?;
        nix::unistd::dup2_stdout(nowhere).map_err(Failure::failed)?;
    }
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        let told = notified(&socket);
        if let Err(error) = told {
            tracing::warn!(target: "lattice::daemon", %error, "the service manager could not be told");
        }
    }
    Ok(())
}

/// Says to the service manager that listens at `socket` that this is ready. An address that begins with @ has no file.
fn notified(socket: &std::ffi::OsStr) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

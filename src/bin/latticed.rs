//! The daemon of Lattice. `lattice up` starts it; a service manager runs it as `lattice up --foreground`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lattice::api::{Failure, Host, Kind};
use lattice::config::{ConfigError, Directory, DirectoryError, Flags, Settings, default_data};
use lattice::daemon::Daemon;
use tokio::signal::unix::{SignalKind, signal};

/// Keeps the stores of a mesh in step with other machines and mounts them
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
struct Arguments {
    /// The node's data directory
    #[arg(long, value_name = "DIR", env = "LATTICE_DATA")]
    data: Option<PathBuf>,
    /// Where to mount
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// The address for other nodes
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What this node proposes to be called in a mesh
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Run in a session of its own, and say on stdout in one line of JSON whether the start succeeded
    #[arg(long, hide = true)]
    report: bool,
}

fn disk(error: &DirectoryError) -> Failure {
    let kind = if matches!(error, DirectoryError::InUse { .. }) { Kind::Refused } else { Kind::Failed };
    Failure::new(kind, error).hint(error.hint())
}

fn settings(error: &ConfigError) -> Failure {
    Failure::refused(error).hint(error.hint())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = arguments.report;
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(report, &failed(&failure));
            tracing::error!(target: "daemon", hint = failure.hint.as_deref(), "{failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn failed(failure: &Failure) -> serde_json::Value {
    serde_json::json!({"error": failure.message, "kind": failure.kind.name(), "hint": failure.hint})
}

/// Whoever started this may be gone: the daemon runs on.
fn tell(report: bool, what: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    if report && writeln!(out, "{what}").and_then(|()| out.flush()).is_err() {
        tracing::debug!(target: "daemon", "nobody waits for the report");
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    if arguments.report
        && let Err(error) = nix::unistd::setsid()
    {
        tracing::debug!(target: "daemon", %error, "leads a session already");
    }
    let data = arguments.data.unwrap_or_else(default_data);
    let flags: Flags = [("listen", arguments.listen), ("name", arguments.name)]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect::<BTreeMap<_, _>>();
    let settings = Settings::load(&data, &flags).map_err(|error| self::settings(&error))?;
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .map_err(|error| Failure::refused(format!("the setting `log` can't be '{}': {error}", settings.log)))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let directory = Directory::open(&data).map_err(|error| disk(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(serve(directory, settings, arguments.mount, arguments.report))
}

async fn serve(directory: Directory, settings: Settings, mount: Option<PathBuf>, report: bool) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let control = lattice::api::bind(directory.path())?;
    let daemon = Daemon::start(directory, &settings).await?;
    if let Some(mount) = &mount
        && let Err(failure) = daemon.mount(mount).await
    {
        daemon.shutdown();
        daemon.run(control).await;
        return Err(failure);
    }
    tell(report, &serde_json::json!({"ready": true}));
    let stop = daemon.stop().clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    daemon.run(control).await;
    Ok(())
}

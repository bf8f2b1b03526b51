//! The `lattice` command: one file a noun. Speaks to a running node through the control service alone; what needs no node, the
//! checking of a proof, it does itself.

mod ask;
mod batch;
mod blame;
mod chat;
mod completions;
mod config;
mod conflicts;
mod diff;
mod doctor;
mod graph;
mod json;
mod key;
mod kv;
mod log;
mod mesh;
mod node;
mod output;
mod past;
mod peers;
mod progress;
mod prove;
mod restore;
mod show;
mod store;
mod tx;
mod undo;
mod up;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::api::{Client, Failure};
use output::Output;

const EXAMPLES: &str = "\
Examples:
  lattice up                         start this machine's node and mount the mesh at ~/mesh
  lattice mesh init                  found a mesh
  lattice mesh invite                print a token; on another machine:
  lattice mesh join TOKEN            join the mesh that made it
  echo hello > ~/mesh/stores/home/keys/greeting
  lattice status

Exit codes:
  0  done
  1  something broke: the disk, a bug; or `doctor` or `store verify` found something wrong
  2  the command or a setting was not understood
  3  no node runs in the data directory
  4  what was named is not there
  5  refused: not allowed, it does not fit the present state, or a proof does not hold
  6  another machine did not answer; trying again may help";

/// A peer-to-peer mesh of replicated stores, mounted as a directory.
#[derive(Debug, Parser)]
#[command(name = "lattice", version, arg_required_else_help = true, after_help = EXAMPLES, max_term_width = 110)]
struct Lattice {
    // Not `env`: the parser would show it as required in the usage of what lacks something else.
    /// The node's data directory: one directory, one node [env: LATTICE_DATA] [default: ~/.local/share/lattice]
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Print JSON: lists as one array, streams as one object a line; errors too, on stderr
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Down(node::Down),
    Status(node::Status),
    #[command(subcommand)]
    Node(node::Node),
    #[command(subcommand)]
    Mesh(mesh::Mesh),
    Peers(peers::Peers),
    #[command(subcommand)]
    Store(store::Store),
    #[command(subcommand)]
    Kv(kv::Kv),
    Conflicts(conflicts::Conflicts),
    Log(log::Log),
    Show(show::Show),
    Diff(diff::Diff),
    Blame(blame::Blame),
    Restore(restore::Restore),
    Undo(undo::Undo),
    Tx(tx::Tx),
    Prove(prove::Prove),
    Verify(verify::Verify),
    #[command(subcommand)]
    Chat(chat::Chat),
    Config(config::Config),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
}

/// What every command is given.
struct Context {
    /// The node's data directory, absolute.
    data: PathBuf,
    output: Output,
}

impl Context {
    async fn client(&self) -> Result<Client, Failure> {
        Client::connect(&self.data).await
    }

    /// A `lattice` command as the user would have to type it for this node.
    fn typed(&self, command: &str) -> String {
        crate::config::typed(&self.data, command)
    }
}

/// Why a command ends.
enum End {
    /// It failed.
    Failed(Failure),
    /// Nobody reads what it prints any more.
    Unread,
}

impl<F: Into<Failure>> From<F> for End {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

type Ended = Result<(), End>;

/// Runs the command that the process's arguments give.
#[must_use]
pub fn main() -> ExitCode {
    // Before any thread: the offset is not told to a process of several.
    let output = Output::new();
    let lattice = match Lattice::try_parse() {
        Ok(lattice) => lattice,
        Err(error) => {
            if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
                output.json(true).failure(&misunderstood(&error));
            } else {
                // A help text that nobody reads is no failure.
                error.print().ok();
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let data = lattice.data.clone().or_else(crate::config::named_data).unwrap_or_else(crate::config::default_data);
    let data = std::path::absolute(&data)
        .map_err(|error| Failure::new(crate::api::Kind::Usage, format!("{}: {error}", data.display())));
    let output = output.json(lattice.json).node(data.clone().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let context = data.map(|data| Context { data, output: output.clone() });
            let ended = match context {
                Ok(context) => runtime.block_on(run(lattice.command, context)),
                Err(failure) => Err(failure.into()),
            };
            // A read of stdin that is still under way must not hold the end up.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(Failure::failed(error).into()),
    };
    match ended {
        Ok(()) | Err(End::Unread) => ExitCode::SUCCESS,
        Err(End::Failed(failure)) => {
            output.failure(&failure);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

/// What the command line's reader says, as a failure: its first paragraph, and the rest as what to do.
fn misunderstood(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let (what, rest) = text.split_once("\n\n").unwrap_or((&text, "For more information, try '--help'."));
    Failure::new(crate::api::Kind::Usage, what.trim_start_matches("error: ").trim_end()).hint(rest.trim())
}

async fn run(command: Command, context: Context) -> Ended {
    match command {
        Command::Up(up) => up.run(&context).await,
        Command::Down(down) => down.run(&context).await,
        Command::Status(status) => status.run(&context).await,
        Command::Node(node) => node.run(&context).await,
        Command::Mesh(mesh) => mesh.run(&context).await,
        Command::Peers(peers) => peers.run(&context).await,
        Command::Store(store) => store.run(&context).await,
        Command::Kv(kv) => kv.run(&context).await,
        Command::Conflicts(conflicts) => conflicts.run(&context).await,
        Command::Log(log) => log.run(&context).await,
        Command::Show(show) => show.run(&context).await,
        Command::Diff(diff) => diff.run(&context).await,
        Command::Blame(blame) => blame.run(&context).await,
        Command::Restore(restore) => restore.run(&context).await,
        Command::Undo(undo) => undo.run(&context).await,
        Command::Tx(tx) => tx.run(&context).await,
        Command::Prove(prove) => prove.run(&context).await,
        Command::Verify(verify) => verify.run(&context),
        Command::Chat(chat) => chat.run(&context).await,
        Command::Config(config) => config.run(&context),
        Command::Doctor(doctor) => doctor.run(&context).await,
        Command::Completions(completions) => completions.run(&context),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed_and_each_says_what_it_does() {
        fn each(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} says nothing of itself", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} says nothing", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(each);
        }
        let command = Lattice::command();
        command.clone().debug_assert();
        each(&command);
    }

    #[test]
    fn a_paragraph_of_the_help_is_one_line_so_that_only_the_terminals_width_wraps_it() {
        fn each(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let text = |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
            for pair in help.lines().collect::<Vec<_>>().windows(2) {
                assert!(!(text(pair[0]) && text(pair[1])), "{}: {pair:?}", command.get_name());
            }
            command.get_subcommands().for_each(each);
        }
        each(&Lattice::command());
    }

    fn example_lines(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found
            .extend(help.lines().filter(|line| line.starts_with("  ") && line.contains("lattice ")).map(str::to_owned));
        command.get_subcommands().for_each(|below| example_lines(below, found));
    }

    /// The words of the `lattice` command in a line of shell: up to a comment, a pipe or the end of a substitution.
    fn words(line: &str) -> Vec<String> {
        let start = line.find("lattice ").unwrap();
        let mut words = vec![String::new()];
        let mut quoted = false;
        let mut letters = line[start..].trim_end().chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\'' => quoted = !quoted,
                '|' | '>' | ')' if !quoted => break,
                ' ' if !quoted && letters.peek() == Some(&' ') => break,
                ' ' if !quoted => words.push(String::new()),
                letter => words.last_mut().unwrap().push(letter),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_example_in_the_help_is_a_command_that_is_understood() {
        let mut lines = Vec::new();
        example_lines(&Lattice::command(), &mut lines);
        assert!(lines.len() > 30);
        for line in lines {
            let parsed = Lattice::try_parse_from(words(&line));
            assert!(parsed.is_ok(), "{line}\n{:?}\n{}", words(&line), parsed.unwrap_err());
        }
    }

    #[test]
    fn each_command_that_does_one_thing_shows_an_example() {
        fn each(command: &clap::Command, path: &str) {
            let path = format!("{path}{}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().for_each(|below| each(below, &format!("{path} ")));
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(&format!("\n  {path}")), "`{path}` shows no example of itself");
            }
        }
        each(&Lattice::command(), "");
    }
}

//! `lattice completions`: what a shell needs to complete the commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Context, Ended, Lattice};

const EXAMPLES: &str = "\
Examples:
  lattice completions bash > ~/.local/share/bash-completion/completions/lattice
  lattice completions zsh > ~/.zfunc/_lattice        (a directory in your fpath)
  lattice completions fish > ~/.config/fish/completions/lattice.fish";

/// Print the completions of the commands for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, context: &Context) -> Ended {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Lattice::command(), "lattice", &mut script);
        context.output.raw(&script)
    }
}

//! The command.

use std::process::ExitCode;

fn main() -> ExitCode {
    lattice::cli::main()
}

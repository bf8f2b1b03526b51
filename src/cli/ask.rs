//! Asking before something is done that can't be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use super::Context;
use crate::api::Failure;

/// Asks a person on the terminal whether to go on, saying first what will happen; `yes`: they said so already.
///
/// # Errors
/// If they don't want to, or nobody can be asked.
pub(super) fn confirmed(context: &Context, yes: bool, what: &str, question: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let repeat = "give --yes to do it without being asked";
    if context.output.is_json() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(
            Failure::refused(format!("{what} There is no terminal to ask on, so nothing was done")).hint(repeat)
        );
    }
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{what}\n{question} [y/N] ");
    asked.and_then(|()| io::stdin().lock().read_line(&mut answer)).map_err(Failure::failed)?;
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        Ok(())
    } else {
        Err(Failure::refused("nothing was done").hint(format!("say y, or {repeat}")))
    }
}

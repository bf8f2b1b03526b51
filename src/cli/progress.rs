//! Progress on stderr, for what takes more than a second.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::output::Output;
use crate::clock::monotonic;

const QUIET: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_millis(100);

/// A line that says how far something is. A terminal's is rewritten; elsewhere each new kind of work gets a line.
pub(super) struct Progress {
    began: Instant,
    written: Option<Instant>,
    doing: String,
    terminal: bool,
    silent: bool,
}

impl Progress {
    pub(super) fn new(output: &Output) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { began: monotonic(), written: None, doing: String::new(), terminal, silent: output.is_json() }
    }

    /// Says what is being done and how far it is; nothing in the first second.
    pub(super) fn say(&mut self, doing: &str, how_far: &str) {
        let now = monotonic();
        let again = self.written.is_some_and(|written| now.duration_since(written) < OFTEN) && self.doing == doing;
        let told = !self.terminal && self.doing == doing;
        if self.silent || again || told || now.duration_since(self.began) < QUIET {
            return;
        }
        doing.clone_into(&mut self.doing);
        self.written = Some(now);
        let text = if how_far.is_empty() { doing.to_owned() } else { format!("{doing}: {how_far}") };
        let mut stderr = io::stderr().lock();
        // Progress that can't be shown holds nothing up.
        if self.terminal {
            write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush()).ok();
        } else {
            writeln!(stderr, "{text}").ok();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.written.is_some() {
            let mut stderr = io::stderr().lock();
            write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush()).ok();
        }
    }
}

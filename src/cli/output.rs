//! What a command prints: lines, tables and JSON on stdout, failures on stderr.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::{End, Ended};
use crate::api::Failure;

const TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
const UTC: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Where a command's words go, and in which form.
#[derive(Debug, Clone)]
pub(super) struct Output {
    json: bool,
    terminal: bool,
    offset: UtcOffset,
    /// The data directory of the node that commands are for.
    node: Option<PathBuf>,
}

impl Output {
    pub(super) fn new() -> Self {
        Self {
            json: false,
            terminal: io::stdout().is_terminal(),
            offset: UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC),
            node: None,
        }
    }

    pub(super) const fn json(mut self, json: bool) -> Self {
        self.json = json;
        self
    }

    pub(super) fn node(mut self, data: Option<PathBuf>) -> Self {
        self.node = data;
        self
    }

    /// A text whose commands, in backquotes, can be typed as they stand: for this node, whichever is the default.
    pub(super) fn pasted(&self, text: &str) -> String {
        self.node.as_ref().map_or_else(|| text.to_owned(), |data| pasted(text, data))
    }

    /// What the node warns of, as a paragraph.
    pub(super) fn warning(&self, text: &str) -> String {
        format!("\nwarning: {}", self.pasted(&escaped(text.as_bytes())))
    }

    pub(super) const fn is_json(&self) -> bool {
        self.json
    }

    /// Prints bytes as they are.
    pub(super) fn raw(&self, bytes: &[u8]) -> Ended {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                End::Unread
            } else {
                Failure::failed(format!("stdout: {error}")).into()
            }
        })
    }

    /// Prints a line.
    pub(super) fn line(&self, line: impl AsRef<str>) -> Ended {
        self.raw(format!("{}\n", line.as_ref()).as_bytes())
    }

    /// Prints a JSON value on a line.
    pub(super) fn value(&self, value: &Value) -> Ended {
        self.line(value.to_string())
    }

    /// Prints the value with `--json`, otherwise the line, if there is one.
    pub(super) fn either(&self, value: &Value, line: impl AsRef<str>) -> Ended {
        if self.json {
            self.value(value)
        } else if line.as_ref().is_empty() {
            Ok(())
        } else {
            self.line(line)
        }
    }

    /// Prints rows under their headings, aligned.
    pub(super) fn table<const N: usize>(&self, headings: [&str; N], rows: &[[String; N]]) -> Ended {
        let mut widths = headings.map(width);
        for row in rows {
            for (most, cell) in widths.iter_mut().zip(row) {
                *most = (*most).max(width(cell));
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&headings.map(str::to_owned)).chain(rows) {
            let mut line = String::new();
            for (cell, most) in row.iter().zip(widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', most - width(cell) + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        self.raw(text.as_bytes())
    }

    /// Says something that is no result: on stderr, and only to a person.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        let mut stderr = io::stderr().lock();
        if !self.json && stderr.is_terminal() {
            // Nothing can be said about a stderr that takes nothing.
            writeln!(stderr, "{}", text.as_ref()).ok();
        }
    }

    /// Says something that is no result and that a script's author wants to see as well: on stderr. With `--json` the
    /// result holds it.
    pub(super) fn remark(&self, text: impl AsRef<str>) {
        if !self.json {
            // As above.
            writeln!(io::stderr().lock(), "{}", text.as_ref()).ok();
        }
    }

    /// Says what went wrong and what to do.
    pub(super) fn failure(&self, failure: &Failure) {
        let failure = Failure {
            message: self.pasted(&failure.message),
            hint: failure.hint.as_ref().map(|hint| self.pasted(hint)),
            kind: failure.kind,
        };
        let text = if self.json {
            json!({"error": failure.message, "kind": failure.kind.name(), "hint": failure.hint}).to_string()
        } else {
            let mut text = format!("error: {}", failure.message);
            if let Some(hint) = &failure.hint {
                text.push_str("\nhint: ");
                text.push_str(hint);
            }
            text
        };
        writeln!(io::stderr().lock(), "{text}").ok();
    }

    /// A moment for people, in their time; `millis` since the Unix epoch.
    pub(super) fn time(&self, millis: u64) -> String {
        moment(millis).and_then(|at| at.to_offset(self.offset).format(TIME).ok()).unwrap_or_else(|| "?".into())
    }

    /// What others wrote, for this terminal: its escapes are shown, not obeyed. As it is when no terminal reads it.
    pub(super) fn shown(&self, bytes: &[u8]) -> Vec<u8> {
        if self.terminal { escaped(bytes).into_bytes() } else { bytes.to_vec() }
    }
}

const COMMAND: &str = "`lattice ";

fn pasted(text: &str, data: &Path) -> String {
    let mut out = String::new();
    for (place, piece) in text.split(COMMAND).enumerate() {
        match place {
            0 => out.push_str(piece),
            _ if piece.starts_with("--data ") => out.extend([COMMAND, piece]),
            _ => out.extend(["`", &crate::config::typed(data, piece)]),
        }
    }
    out
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A path as the running node has to be told it: it has another working directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

fn moment(millis: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// A moment for programs: RFC 3339, in UTC.
pub(super) fn utc(millis: u64) -> String {
    moment(millis).and_then(|at| at.format(UTC).ok()).unwrap_or_default()
}

/// Bytes as text: control characters and what is no UTF-8 as `\xNN`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Besides the controls: what turns the reading direction and so can show a name as another.
            let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || turns {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            write!(text, "\\x{byte:02x}").ok();
        }
    }
    text
}

/// A size in bytes for people.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let tenths = u128::from(bytes) * 10 / (1u128 << (10 * power));
    format!("{}.{} {}", tenths / 10, tenths % 10, units[power as usize - 1])
}

/// How long ago `then` was at `now`, both milliseconds since the Unix epoch, for people.
pub(super) fn ago(now: u64, then: u64) -> String {
    let seconds = now.saturating_sub(then) / 1000;
    match seconds {
        0..=1 => "now".into(),
        2..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// An id as text: all of it.
pub(super) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// The start of an id, for people.
pub(super) fn short(bytes: &[u8]) -> String {
    hex(bytes.get(..4).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_can_not_command_the_terminal() {
        assert_eq!(escaped(b"a\x1b[2Jb\xffc\n"), "a\\u{1b}[2Jb\\xffc\\n");
        assert_eq!(escaped("Grüße 👍".as_bytes()), "Grüße 👍");
        assert_eq!(escaped("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn a_hinted_command_is_for_the_node_that_was_asked() {
        let node = Path::new("/srv/it's");
        assert_eq!(
            pasted("`lattice peers` shows them, `lattice --data DIR up` …; lattice is up", node),
            "`lattice --data '/srv/it'\\''s' peers` shows them, `lattice --data DIR up` …; lattice is up"
        );
        assert_eq!(pasted("`lattice peers`", &crate::config::default_data()), "`lattice peers`");
    }

    #[test]
    fn sizes_and_ages_read_well() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "15.9 EiB");
        assert_eq!(ago(10_000, 9_000), "now");
        assert_eq!(ago(10_000_000, 0), "2 h ago");
        assert_eq!(utc(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}

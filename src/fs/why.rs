//! `/.why`: what failed on this mount last, and why in a sentence.
//!
//! The last [`LINES`] failures are kept. Who follows the file (`tail -f`) has a place in all that ever failed: it stands where it is
//! when older lines go.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tree::locked;
use crate::clock::{self, Hlc, Millis};
use crate::stores::root::names::is_deceptive;

/// Failures that are kept.
const LINES: usize = 256;
/// The same failure is noted again after this long.
const AGAIN: Duration = Duration::from_secs(1);
/// What stands in the place of lines that are not kept any more.
const GONE: &[u8] = b"(what failed here is not kept any more)\n";

/// Whether a failure is one that programs cause and expect all the time: nobody asks why.
fn is_ordinary(call: &str, number: i32) -> bool {
    match number {
        // What a line in a room is to do something to is not there.
        libc::ENOENT => !matches!(call, "write" | "flush"),
        libc::EOPNOTSUPP => call != "setxattr",
        number => is_ordinary_everywhere(number),
    }
}

fn is_ordinary_everywhere(number: i32) -> bool {
    matches!(
        number,
        libc::EEXIST
            | libc::ENOTEMPTY
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::ENODATA
            | libc::ERANGE
            | libc::EINTR
            | libc::EAGAIN
            | libc::ESTALE
    )
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<Vec<u8>>,
    /// Where the first of them begins, and where the last ends, in bytes from the first that ever was.
    begin: u64,
    end: u64,
    /// What was noted last, and when.
    last: Option<(String, Instant)>,
    /// In nanoseconds since the Unix epoch.
    changed: Option<i64>,
    /// Where the present openings begin.
    openings: BTreeMap<u64, u64>,
    next: u64,
}

impl Lines {
    fn push(&mut self, line: Vec<u8>) {
        self.end += line.len() as u64;
        self.kept.push_back(line);
        while self.kept.len() > LINES {
            self.begin += self.kept.pop_front().map_or(0, |line| line.len() as u64);
        }
    }

    fn read(&self, from: u64, size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = from;
        while at < self.begin && out.len() < size {
            // Counted from the end, so that the last line is whole.
            let left = usize::try_from(self.begin - at).unwrap_or(usize::MAX);
            out.push(if left > GONE.len() { b' ' } else { GONE[GONE.len() - left] });
            at += 1;
        }
        let mut start = self.begin;
        for line in &self.kept {
            let end = start + line.len() as u64;
            if end > at && out.len() < size {
                let skip = usize::try_from(at - start).unwrap_or(0);
                out.extend(line[skip..].iter().take(size - out.len()));
                at = end;
            }
            start = end;
        }
        out
    }
}

/// The failures of a mount.
#[derive(Default, Clone)]
pub(crate) struct Why(Arc<Mutex<Lines>>);

impl std::fmt::Debug for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Why").finish_non_exhaustive()
    }
}

/// An opening of the file.
#[derive(Debug)]
pub(crate) struct Reader {
    why: Why,
    number: u64,
    start: u64,
}

impl Why {
    /// Notes that `call` on `path` failed with this number for this reason, unless that is ordinary.
    pub(crate) fn note(&self, call: &str, path: &[u8], number: i32, reason: &dyn std::fmt::Display) {
        if !is_ordinary(call, number) {
            self.note_also(call, path, number, reason);
        }
    }

    /// The same, ordinary or not.
    pub(crate) fn note_also(&self, call: &str, path: &[u8], number: i32, reason: &dyn std::fmt::Display) {
        let mut what = format!("{call} ");
        for character in String::from_utf8_lossy(path).chars() {
            if is_deceptive(character) {
                what.extend(character.escape_default());
            } else {
                what.push(character);
            }
        }
        // A fault of the disk may say more in several lines.
        let reason = reason.to_string().replace(char::is_control, " ");
        write!(what, " {:?}: {reason}", nix::errno::Errno::from_raw(number)).ok();
        let (now, nanos) = (clock::monotonic(), clock::nanos());
        let mut lines = locked(&self.0);
        if lines.last.as_ref().is_some_and(|(last, at)| *last == what && now - *at < AGAIN) {
            return;
        }
        let at = Millis(u64::try_from(nanos).unwrap_or(0) / 1_000_000);
        lines.push(format!("{} {what}\n", clock::name(Hlc::at(at))).into_bytes());
        lines.last = Some((what, now));
        lines.changed = Some(nanos);
    }

    /// The size of the file, never less than any opening has to read, and when it changed, in nanoseconds since the Unix epoch.
    pub(crate) fn size(&self) -> (usize, Option<i64>) {
        let lines = locked(&self.0);
        let first = lines.openings.values().min().copied().unwrap_or(lines.begin);
        (usize::try_from(lines.end - first.min(lines.begin)).unwrap_or(usize::MAX), lines.changed)
    }

    pub(crate) fn open(&self) -> Reader {
        let mut lines = locked(&self.0);
        let (number, start) = (lines.next, lines.begin);
        lines.next += 1;
        lines.openings.insert(number, start);
        drop(lines);
        Reader { why: self.clone(), number, start }
    }
}

impl Reader {
    pub(crate) fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        locked(&self.why.0).read(self.start.saturating_add(offset), size)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        locked(&self.why.0).openings.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reader: &Reader, offset: u64) -> String {
        String::from_utf8(reader.read(offset, 1 << 20)).unwrap()
    }

    #[test]
    fn failures_are_told_in_order_and_the_ordinary_and_the_repeated_ones_are_not() {
        let why = Why::default();
        why.note("open", b"stores/home/keys/a\nb", libc::EROFS, &"it is so");
        why.note("open", b"stores/home/keys/a\nb", libc::EROFS, &"it is so");
        why.note("lookup", b"stores/x", libc::ENOENT, &"no such file");
        why.note("fallocate", b"f", libc::EOPNOTSUPP, &"not here");
        why.note("write", b"f", libc::ENOSPC, &"full");
        let reader = why.open();
        let text = text(&reader, 0);
        let told: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(told, ["open stores/home/keys/a\\nb EROFS: it is so", "write f ENOSPC: full"]);
        assert_eq!(why.size().0, text.len());
        assert_eq!(reader.read(text.len() as u64 - 5, 3), b"ful");
    }

    #[test]
    fn who_follows_stands_where_it_is_when_older_lines_go() {
        let why = Why::default();
        let fail = |number: usize| why.note("open", number.to_string().as_bytes(), libc::EIO, &"broken");
        (0..3).for_each(fail);
        let early = why.open();
        let read = text(&early, 0);
        (3..LINES + 2).for_each(fail);
        // Two that it has read are gone.
        let rest = text(&early, read.len() as u64);
        assert!(rest.lines().next().unwrap().contains("open 3 "), "{rest}");
        assert_eq!(rest.lines().count(), LINES - 1);
        assert!(why.size().0 == read.len() + rest.len());
        // All that it has not read are gone as well, but for those that are kept.
        (LINES + 2..3 * LINES).for_each(fail);
        let late = text(&early, (read.len() + rest.len()) as u64);
        assert!(late.trim_start().starts_with("(what failed here is not kept any more)\n"), "{late}");
        assert_eq!(late.lines().count(), 1 + LINES);
        drop(early);
        assert_eq!(why.size().0, text(&why.open(), 0).len());
    }
}

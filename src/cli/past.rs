//! What the commands over the past share: naming a moment, reading a version, and showing how two differ.

use similar::TextDiff;

use super::output::{escaped, hex, size};
use super::{Context, End};
use crate::api::wire::{self, Head, ReadVersionRequest, ThenRequest, moment::What};
use crate::api::{Client, Failure};
use crate::clock::{self, Clock, System};

/// The largest version that is compared line by line, in bytes.
const TEXT: u64 = 4 * 1024 * 1024;

/// How moments are named, for the help of commands.
pub(super) const MOMENTS: &str = "\
A moment is 2026-11-22T14:00 (or with seconds, or the day alone), 14:00 (the last time it was that late), 2h-ago (s, m, h, d, w), \
now, or the start of an entry's hash: what its author had seen, with the entry; with a ^ behind it, without the entry.";

/// The moment that a text names.
pub(super) fn moment(text: &str) -> wire::Moment {
    let what = match clock::moment(text, System.now()) {
        _ if text == "now" => None,
        Some(time) => Some(What::Time(time.0)),
        None => Some(What::Entry(text.to_owned())),
    };
    wire::Moment { what }
}

/// A time that has passed, as a text names it.
pub(super) fn time(text: &str) -> Result<u64, String> {
    let time = clock::moment(text, System.now());
    time.map(|time| time.0).ok_or_else(|| "a time is meant, such as 2h-ago, 14:00 or 2026-11-22T14:00".into())
}

/// The content of a version.
pub(super) async fn content(client: &Client, store: &str, path: &[u8], head: &Head) -> Result<Vec<u8>, Failure> {
    let request = ReadVersionRequest {
        store: store.to_owned(),
        path: path.to_vec(),
        hash: head.hash.clone(),
        op: head.op,
        hlc: head.hlc,
    };
    let mut parts = client.past().read(request).await?.into_inner();
    let mut content = Vec::new();
    while let Some(part) = parts.message().await? {
        content.extend(part.data);
    }
    Ok(content)
}

/// The content of a version as text; `None` if it is none, or too large to be compared.
pub(super) async fn text(
    client: &Client,
    store: &str,
    path: &[u8],
    head: Option<&Head>,
) -> Result<Option<Vec<u8>>, Failure> {
    let Some(head) = head.filter(|head| head.kind == "file" || head.kind == "symlink") else {
        return Ok(Some(Vec::new()));
    };
    if head.size > TEXT {
        return Ok(None);
    }
    let content = content(client, store, path, head).await?;
    Ok(Some(content).filter(|content| !content.contains(&0)))
}

/// What stood at and below a path at a moment.
pub(super) async fn then(
    client: &Client,
    store: &str,
    path: &[u8],
    moment: wire::Moment,
) -> Result<std::collections::BTreeMap<Vec<u8>, Head>, Failure> {
    let request = ThenRequest { store: store.to_owned(), path: path.to_vec(), moment: Some(moment) };
    let mut keys = client.past().then(request).await?.into_inner();
    let mut found = std::collections::BTreeMap::new();
    while let Some(key) = keys.message().await? {
        found.extend(key.head.map(|head| (key.path, head)));
    }
    Ok(found)
}

/// How a key changed: from nothing or to nothing, too.
pub(super) struct Change<'a> {
    pub(super) store: &'a str,
    pub(super) path: &'a [u8],
    pub(super) before: Option<&'a Head>,
    pub(super) after: Option<&'a Head>,
}

impl Change<'_> {
    /// The lines that differ, with some around them; empty if the contents are the same, `None` if they are no texts.
    pub(super) async fn lines(&self, client: &Client) -> Result<Option<Vec<u8>>, Failure> {
        if self.before.map(|head| &head.content) == self.after.map(|head| &head.content) {
            return Ok(Some(Vec::new()));
        }
        let before = text(client, self.store, self.path, self.before).await?;
        let after = text(client, self.store, self.path, self.after).await?;
        Ok(before.zip(after).map(|(before, after)| unified(&before, &after)))
    }

    /// What changed besides the lines: that it came, went, or is something else now. Empty if nothing did.
    pub(super) fn words(&self) -> String {
        let mode = |head: &Head| format!("{:04o}", head.mode);
        match (self.before, self.after) {
            (None, None) => String::new(),
            (None, Some(after)) => format!("new {}, mode {}", after.kind, mode(after)),
            (Some(before), None) => format!("{} deleted", before.kind),
            (Some(before), Some(after)) if before.kind != after.kind => {
                format!("{} became {}", before.kind, after.kind)
            }
            (Some(before), Some(after)) if before.mode != after.mode => {
                format!("mode {} became {}", mode(before), mode(after))
            }
            (Some(_), Some(_)) => String::new(),
        }
    }

    /// Whether kind, mode and content are the same.
    pub(super) fn is_none(&self) -> bool {
        let value = |head: &Head| (head.kind.clone(), head.mode, head.content.clone());
        self.before.map(value) == self.after.map(value)
    }

    /// Prints it as `diff -u` would, with what else changed above.
    pub(super) async fn print(&self, client: &Client, context: &Context) -> Result<(), End> {
        let lines = self.lines(client).await?;
        let name = |side: &str, head: Option<&Head>| match head {
            Some(head) => format!(
                "{side}/{}  {}  {}  {}",
                escaped(self.path),
                super::output::short(&head.hash),
                escaped(head.author_name.as_bytes()),
                context.output.time(clock::Hlc(head.hlc).millis().0),
            ),
            None => "/dev/null".into(),
        };
        let mut out = Vec::new();
        let words = self.words();
        if !words.is_empty() {
            out.extend(format!("{}: {words}\n", escaped(self.path)).into_bytes());
        }
        match lines {
            Some(lines) if lines.is_empty() => {}
            Some(lines) => {
                let names = [name("a", self.before), name("b", self.after)];
                out.extend(format!("--- {}\n+++ {}\n", names[0], names[1]).into_bytes());
                for line in lines.split_inclusive(|byte| *byte == b'\n') {
                    out.extend(context.output.shown(line.strip_suffix(b"\n").unwrap_or(line)));
                    out.push(b'\n');
                }
            }
            None => {
                let sizes = [self.before, self.after].map(|head| size(head.map_or(0, |head| head.size)));
                let [before, after] = sizes;
                out.extend(format!("{}: no text, {before} became {after}\n", escaped(self.path)).into_bytes());
            }
        }
        context.output.raw(&out)
    }

    /// The same for programs.
    pub(super) async fn json(&self, client: &Client) -> Result<serde_json::Value, Failure> {
        let lines = self.lines(client).await?;
        let diff = lines.map(|lines| String::from_utf8_lossy(&lines).into_owned());
        Ok(super::json::change_of(self.path, self.before, self.after, diff))
    }
}

/// The hunks of a unified diff; what is no UTF-8 goes through as it is.
fn unified(before: &[u8], after: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let diff = TextDiff::from_lines(before, after);
    // Hunk by hunk: as a whole it would be made text. Writing to memory does not fail.
    diff.unified_diff().context_radius(3).iter_hunks().try_for_each(|hunk| hunk.to_writer(&mut out)).ok();
    out
}

/// Says which keys were changed, and by which entries.
pub(super) fn told(
    context: &Context,
    store: &str,
    hashes: &[Vec<u8>],
    dry: bool,
    restored: &[Vec<u8>],
    deleted: &[Vec<u8>],
) -> String {
    let mut text = String::new();
    for (what, paths) in [("restored", restored), ("deleted", deleted)] {
        for path in paths {
            text.push_str(&format!("{what}  {}\n", escaped(path)));
        }
    }
    for hash in hashes {
        text.push_str(&format!("entry {}\n", hex(hash)));
    }
    match (dry, hashes.len()) {
        (true, _) => text.push_str("nothing was done yet: this is what would be"),
        (false, 0) => text.push_str("nothing was to be done"),
        (false, 1) => text.truncate(text.trim_end().len()),
        (false, many) => {
            let starts: Vec<_> = hashes.iter().map(|hash| super::output::short(hash)).collect();
            let back = context.typed(&format!("undo {} --store {}", starts.join(" "), escaped(store.as_bytes())));
            text.push_str(&format!("{many} entries, since one does not hold it; to take all of it back:\n{back}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_an_entry() {
        assert_eq!(moment("now").what, None);
        assert!(matches!(moment("2h-ago").what, Some(What::Time(_))));
        assert_eq!(moment("3fa9^").what, Some(What::Entry("3fa9^".into())));
        assert!(time("3fa9").is_err());
    }

    #[test]
    fn lines_are_compared_whatever_their_bytes() {
        assert_eq!(unified(b"a\nb\n", b"a\n\xff\n"), b"@@ -1,2 +1,2 @@\n a\n-b\n+\xff\n");
        assert_eq!(unified(b"same\n", b"same\n"), b"");
    }
}

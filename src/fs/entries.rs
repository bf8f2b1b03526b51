//! `stores/<name>/.log`: a line for each entry, in the order in which they came here.
//!
//! Every line has the same length, so that the size is known and any part is read at the cost of that part, however many
//! entries there are. In this order nothing ever comes before what is there: whoever follows the end misses nothing.

use super::errno::Answer;
use super::inodes::Seen;
use super::place::{Attr, Type};
use super::tree::Tree;
use crate::clock::{self, Hlc};
use crate::ids::StoreId;
use crate::replication::database::View;
use crate::replication::entry::Entry;
use crate::replication::log::Log;
use crate::stores::describe;
use crate::stores::kv::KvError;
use crate::stores::root::names::is_deceptive;

/// The length of a line in bytes, its end included.
pub(crate) const LINE: usize = 128;
/// Entries that are in memory at a time: each is up to five hundred times as long as its line.
const AT_ONCE: usize = 64;
/// The bytes of a line that an author's name takes.
const AUTHOR: usize = 12;
/// The digits of a hash that are shown: enough to name the entry.
const DIGITS: usize = 12;

/// Adds `text` in just `width` bytes: cut, or filled up with blanks. What a terminal would obey is shown, not kept.
fn fit(line: &mut String, text: &str, width: usize) {
    const CUT: char = '…';
    let end = line.len() + width;
    for character in text.chars() {
        let shown: String =
            if is_deceptive(character) { character.escape_default().collect() } else { character.to_string() };
        if line.len() + shown.len() > end {
            while line.len() + CUT.len_utf8() > end {
                line.pop();
            }
            line.push(CUT);
            break;
        }
        line.push_str(&shown);
    }
    while line.len() < end {
        line.push(' ');
    }
}

fn line(log: &Log, view: &View<'_>, entry: Option<&Entry>) -> Answer<String> {
    let mut line = String::with_capacity(LINE);
    let rest = LINE - 1;
    if let Some(entry) = entry {
        let header = entry.header();
        line.push_str(&clock::name(Hlc::at(header.hlc.millis())));
        line.push(' ');
        fit(&mut line, &log.membership().load().name(&header.author), AUTHOR);
        line.push(' ');
        line.push_str(&entry.hash().to_string()[..DIGITS]);
        line.push(' ');
        let done = describe(log.kind(), entry);
        let mut does = match done.as_slice() {
            [] => "(not to be read by this version)".to_owned(),
            [one] => one.clone(),
            many => format!("{} changes: {}", many.len(), many.join("; ")),
        };
        if let Some(why) = log.noop(view, &entry.hash()).map_err(KvError::from)? {
            does = format!("no effect, {why}: {does}");
        }
        let left = rest.saturating_sub(line.len());
        fit(&mut line, &does, left);
    } else {
        fit(&mut line, "(an entry that counts no more: its author was removed)", rest);
    }
    line.push('\n');
    Ok(line)
}

/// How many entries came here so far.
pub(crate) fn count(tree: &Tree, store: &StoreId) -> Answer<u64> {
    let kv = tree.kv(store)?;
    let view = kv.log().database().view().map_err(KvError::from)?;
    Ok(kv.log().numbers(&view).map_err(KvError::from)?)
}

/// The attributes of the file.
pub(crate) fn attr(tree: &Tree, file: &Seen, store: StoreId) -> Answer<Attr> {
    let kv = tree.kv(&store)?;
    let log = kv.log();
    let view = log.database().view().map_err(KvError::from)?;
    let count = log.numbers(&view).map_err(KvError::from)?;
    let last = log.numbered(&view, count.saturating_sub(1), count).map_err(KvError::from)?;
    let millis = last.values().next().map(|entry| entry.header().hlc.millis().0);
    let mtime = millis.map_or(tree.since, |at| i64::try_from(at).unwrap_or(0).saturating_mul(1_000_000));
    Ok(Attr { ino: file.ino, kind: Type::File, mode: 0o444, size: count * LINE as u64, mtime })
}

/// At most `size` bytes from `offset` on, as the log is now.
pub(crate) fn read(tree: &Tree, store: StoreId, offset: u64, size: usize) -> Answer<Vec<u8>> {
    let kv = tree.kv(&store)?;
    let log = kv.log();
    let view = log.database().view().map_err(KvError::from)?;
    let count = log.numbers(&view).map_err(KvError::from)?;
    let first = offset / LINE as u64;
    let until = (offset + size as u64).div_ceil(LINE as u64).min(count);
    if first >= until {
        return Ok(Vec::new());
    }
    let mut text = String::with_capacity(usize::try_from(until - first).unwrap_or(0) * LINE);
    for from in (first..until).step_by(AT_ONCE) {
        let to = until.min(from + AT_ONCE as u64);
        let entries = log.numbered(&view, from, to).map_err(KvError::from)?;
        for number in from..to {
            text.push_str(&line(log, &view, entries.get(&number))?);
        }
    }
    let skip = usize::try_from(offset % LINE as u64).unwrap_or(0);
    let mut bytes = text.into_bytes();
    bytes.drain(..skip);
    bytes.truncate(size);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn a_field_takes_its_width_whatever_is_in_it() {
        for text in
            ["", "anna", "just twelve!", "a name that is too long", "äöüäöüäöüäöü", "a\u{1b}[2Jb", "日本語日本語"]
        {
            let mut line = String::from("x");
            fit(&mut line, text, 12);
            assert_eq!(line.len(), 13, "{text}: {line}");
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
        let mut line = String::new();
        fit(&mut line, "a name that is too long", 12);
        assert_eq!(line, "a name th…");
    }
}

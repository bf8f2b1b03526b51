//! `/chat/<room>`: read the room as text, append lines to post.

use std::sync::{Arc, Mutex};

use super::errno::{self, Answer, Failure};
use super::inodes::Seen;
use super::place::{Attr, Type};
use super::rooms::Reader;
use super::tree::{Tree, locked};
use crate::replication::log::Receipt;
use crate::stores::Chat;
use crate::stores::chat::{Form, Op};

/// The longest line that is waited for, in bytes.
const LINE: usize = crate::replication::limits::PAYLOAD;

const NO_CHAT: Failure = Failure::Refused(libc::ENOENT, "this mesh has no chat store");
const WRITE_ONLY: Failure = Failure::Refused(libc::EBADF, "the room was opened for appending only");
const NO_COMMAND: Failure = Failure::Refused(
    libc::EINVAL,
    "there is no such command: /reply ID text, /react ID emoji, /edit ID text, /redact ID; to post a line that begins so, double its slash",
);
const TOO_LONG: Failure = Failure::Refused(libc::EMSGSIZE, "the line is too long for a message");

/// A room, open.
#[derive(Debug)]
pub(crate) struct RoomHandle {
    room: String,
    form: Form,
    /// The start of a line whose end was not written yet.
    partial: Mutex<Vec<u8>>,
    last: Mutex<Option<Receipt>>,
    /// Unless it was opened for appending alone.
    reader: Option<Reader>,
}

fn chat(tree: &Tree) -> Answer<Arc<Chat>> {
    tree.registry().and_then(|registry| registry.chat()).ok_or(NO_CHAT)
}

fn room(name: &[u8]) -> Answer<&str> {
    std::str::from_utf8(name).map_err(|_not_text| Failure::Refused(libc::EILSEQ, "a room's name is UTF-8 text"))
}

/// Whether there is such a room.
pub(crate) fn is(tree: &Tree, name: &[u8]) -> bool {
    let (Ok(chat), Ok(name)) = (chat(tree), room(name)) else { return false };
    matches!(chat.room(name), Ok(Some(_)))
}

/// The rooms that a file can be named after.
pub(crate) fn names(tree: &Tree) -> Vec<String> {
    let rooms = chat(tree).and_then(|chat| Ok(chat.rooms()?)).unwrap_or_default();
    let can = |name: &String| may_be(name) && name.len() <= crate::replication::limits::KEY_COMPONENT;
    rooms.into_iter().map(|room| room.name).filter(can).collect()
}

fn may_be(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/') && !name.chars().any(char::is_control)
}

/// Refuses a room that could not be posted to.
pub(crate) fn may_be_made(tree: &Tree, name: &[u8]) -> Answer<()> {
    chat(tree)?;
    if may_be(room(name)?) { Ok(()) } else { Err(errno::INVALID) }
}

/// A room's attributes. One that was just opened and not posted to is empty.
pub(crate) fn attr(tree: &Tree, seen: &Seen, form: Form) -> Answer<Attr> {
    let name = room(&seen.name)?;
    let chat = chat(tree)?;
    let last = chat.room(name)?.map(|room| room.touched.millis().0);
    let mtime = last.map_or(tree.since, |millis| i64::try_from(millis).unwrap_or(0).saturating_mul(1_000_000));
    let size = tree.rooms.size(&chat, (name, form))?;
    let mode = if form == Form::Text { 0o644 } else { 0o444 };
    Ok(Attr { ino: seen.ino, kind: Type::File, mode, size, mtime })
}

/// Opens a room: to read, or to append.
pub(crate) fn open(tree: &Tree, seen: &Seen, flags: i32, form: Form) -> Answer<RoomHandle> {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    if flags & libc::O_TRUNC != 0 || (writes && flags & libc::O_APPEND == 0) {
        return Err(errno::APPEND_ONLY);
    }
    let chat = chat(tree)?;
    if writes && !chat.log().may_sign() {
        return Err(errno::REGAINING);
    }
    if writes && !chat.log().membership().load().may_write(&chat.log().me()) {
        return Err(errno::READER);
    }
    let name = room(&seen.name)?;
    let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
    let reader = if reads { Some(tree.rooms.open(&chat, (name, form))?) } else { None };
    Ok(RoomHandle { room: name.to_owned(), form, partial: Mutex::default(), last: Mutex::default(), reader })
}

/// The room as it was when it was opened, and after that what is new.
pub(crate) fn read(tree: &Tree, handle: &RoomHandle, offset: u64, size: usize) -> Answer<Vec<u8>> {
    handle.reader.as_ref().ok_or(WRITE_ONLY)?.read(&*chat(tree)?, (&handle.room, handle.form), offset, size)
}

/// Posts the lines that are complete.
pub(crate) fn write(tree: &Tree, handle: &RoomHandle, data: &[u8]) -> Answer<()> {
    let mut partial = locked(&handle.partial);
    if partial.len() + data.len() > 2 * LINE {
        return Err(TOO_LONG);
    }
    let before = partial.len();
    partial.extend_from_slice(data);
    let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
    let result = post(tree, handle, &partial[..end]);
    if result.is_ok() {
        partial.drain(..=end);
    } else {
        // The writer is told, and may write it again.
        partial.truncate(before);
    }
    result
}

/// Posts the last line, if it had no end.
pub(crate) fn flush(tree: &Tree, handle: &RoomHandle) -> Answer<()> {
    let rest = std::mem::take(&mut *locked(&handle.partial));
    post(tree, handle, &rest)
}

/// Waits until what was posted is durable.
pub(crate) fn sync(tree: &Tree, handle: &RoomHandle) -> Answer<()> {
    flush(tree, handle)?;
    let last = *locked(&handle.last);
    if let Some(receipt) = last {
        chat(tree)?.log().wait(receipt.staged).map_err(crate::stores::chat::ChatError::from)?;
    }
    Ok(())
}

fn post(tree: &Tree, handle: &RoomHandle, lines: &[u8]) -> Answer<()> {
    let lines = String::from_utf8_lossy(lines);
    let chat = chat(tree)?;
    let ops = lines.lines().filter(|line| !line.trim().is_empty()).map(|line| operation(&chat, &handle.room, line));
    let ops = ops.collect::<Answer<Vec<Op>>>()?;
    if ops.is_empty() {
        return Ok(());
    }
    let receipt = chat.submit(&ops, tree.origin())?;
    *locked(&handle.last) = Some(receipt);
    Ok(())
}

/// What a line says, or does.
fn operation(chat: &Chat, room: &str, line: &str) -> Answer<Op> {
    let room = room.to_owned();
    let mut words = line.splitn(3, ' ');
    let (command, id, rest) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
    Ok(match command {
        "/reply" => Op::Reply { to: chat.find(&room, id)?, text: rest.to_owned(), room },
        "/react" => Op::React { to: chat.find(&room, id)?, emoji: rest.trim().to_owned(), room },
        "/edit" => Op::Edit { to: chat.find(&room, id)?, text: rest.to_owned(), room },
        "/redact" => Op::Redact { to: chat.find(&room, id)?, room },
        _ if is_command(command) => return Err(NO_COMMAND),
        _ => Op::Post {
            room,
            text: line.strip_prefix('/').filter(|rest| rest.starts_with('/')).unwrap_or(line).to_owned(),
        },
    })
}

/// Whether a line's first word is meant to do something: a slash and a word. A path goes on with another slash.
fn is_command(word: &str) -> bool {
    word.strip_prefix('/').is_some_and(|name| !name.is_empty() && name.chars().all(char::is_alphabetic))
}

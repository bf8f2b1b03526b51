//! The handle on a chat store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::machine::{
    self, EDITS, EditRow, MESSAGES, MessageRow, PLACES, REACTIONS, REDACTED, ROOMS, RoomRow, TOUCHED, corrupt, decode,
    room_prefix,
};
use super::wire::{self, Op};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::database::{DatabaseError, Flow, Read, View, prefix};
use crate::replication::limits;
use crate::replication::log::{Log, Origin, Receipt, SubmitError};

/// What can go wrong with a chat.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The message can't be posted as it is.
    #[error("{0}")]
    Invalid(String),
    /// The messages don't fit one entry.
    #[error("these messages take {size} bytes, an entry holds {limit}; post them one by one", limit = limits::PAYLOAD)]
    TooLarge {
        /// What they take.
        size: usize,
    },
    /// There is no message of this id.
    #[error("there is no message '{}' here", .0.escape_debug())]
    NoMessage(String),
    /// Several messages' ids begin so.
    #[error("several messages are named '{0}…': give more of the id")]
    Ambiguous(String),
    /// The message is someone else's.
    #[error("the message {0} is {1}'s: only its author can change it")]
    NotYours(String, String),
    /// The message was taken back.
    #[error("the message {0} was redacted")]
    Redacted(String),
    /// The entry was not signed.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The store's file.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

type Result<T> = std::result::Result<T, ChatError>;

/// A room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Its name.
    pub name: String,
    /// How many messages it holds.
    pub messages: u64,
    /// The stamp of the first.
    pub first: Hlc,
    /// The stamp of the last.
    pub last: Hlc,
    /// The stamp of the last thing done in it: a message, or something done to one.
    pub touched: Hlc,
}

/// Where a message stands in its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Its stamp.
    pub hlc: Hlc,
    /// Its author.
    pub author: NodeId,
    /// Its id.
    pub id: Hash,
}

/// An emoji, and who marked a message with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaction {
    /// The emoji.
    pub emoji: String,
    /// Who, by id, and when.
    pub by: Vec<(NodeId, Hlc)>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its room.
    pub room: String,
    /// Its place in the room; holds id, author and stamp.
    pub position: Position,
    /// The message that it answers; it may be missing here.
    pub reply_to: Option<Hash>,
    /// The text as it was written, or as it was edited last: to be escaped before it is shown. Empty if it was redacted.
    pub text: String,
    /// When it was edited last.
    pub edited: Option<Hlc>,
    /// When it was redacted.
    pub redacted: Option<Hlc>,
    /// Reactions, by emoji; none to what was redacted.
    pub reactions: Vec<Reaction>,
}

/// A chat store.
#[derive(Debug)]
pub struct Chat {
    log: Arc<Log>,
}

impl Chat {
    /// A chat store on its log.
    #[must_use]
    pub const fn new(log: Arc<Log>) -> Self {
        Self { log }
    }

    /// The log below.
    #[must_use]
    pub const fn log(&self) -> &Arc<Log> {
        &self.log
    }

    fn view(&self) -> Result<View<'_>> {
        Ok(self.log.database().view()?)
    }

    /// All rooms, by name.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn rooms(&self) -> Result<Vec<Room>> {
        let mut found = Vec::new();
        let view = self.view()?;
        view.scan(ROOMS, (Bound::Unbounded, Bound::Unbounded), false, &mut |name, row| {
            found.push((name.to_vec(), row.to_vec()));
            Flow::Continue(())
        })?;
        found.into_iter().map(|(name, row)| room(&view, name, &row)).collect()
    }

    /// A room; `None` if nothing was posted to it.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn room(&self, name: &str) -> Result<Option<Room>> {
        let view = self.view()?;
        view.get(ROOMS, name.as_bytes())?.map(|row| room(&view, name.into(), &row)).transpose()
    }

    /// The messages of a room in order, those after `after`, at most `limit`. One that arrives late may stand before `after`.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn messages(&self, room: &str, after: Option<&Position>, limit: usize) -> Result<Vec<Message>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let view = self.view()?;
        let start = room_prefix(room);
        let mut end = Vec::new();
        let (from, end) = prefix(&start, &mut end);
        let after = after.map(|at| [&start[..], &at.hlc.0.to_be_bytes(), &at.author.0, &at.id.0].concat());
        let from = after.as_ref().map_or(from, |after| Bound::Excluded(after.as_slice()));
        let mut rows = Vec::new();
        view.scan(MESSAGES, (from, end), false, &mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
            if rows.len() < limit { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        rows.into_iter().map(|(key, row)| message(&view, &key, &row)).collect()
    }

    /// The message of this id.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn message(&self, id: &Hash) -> Result<Option<Message>> {
        let view = self.view()?;
        let Some(key) = view.get(PLACES, &id.0)? else { return Ok(None) };
        let row = view.get(MESSAGES, &key)?.ok_or_else(corrupt)?;
        message(&view, &key, &row).map(Some)
    }

    /// The message of a room whose id begins with these hexadecimal digits.
    ///
    /// # Errors
    /// [`ChatError::NoMessage`], [`ChatError::Ambiguous`], or if the store can't be read.
    pub fn find(&self, room: &str, short: &str) -> Result<Hash> {
        let missing = || ChatError::NoMessage(short.to_owned());
        let digits = short.trim_start_matches('#').to_ascii_lowercase();
        let whole = &digits[..digits.len() & !1];
        let start = data_encoding::HEXLOWER.decode(whole.as_bytes()).map_err(|_no_id| missing())?;
        if digits.is_empty() || start.len() > 32 {
            return Err(missing());
        }
        let room = room_prefix(room);
        let mut found = Vec::new();
        let mut end = Vec::new();
        self.view()?.scan(PLACES, prefix(&start, &mut end), false, &mut |id, key| {
            if key.starts_with(&room) && data_encoding::HEXLOWER.encode(id).starts_with(&digits) {
                found.extend(Hash::from_slice(id));
            }
            if found.len() < 2 { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        match found[..] {
            [id] => Ok(id),
            [] => Err(missing()),
            _ => Err(ChatError::Ambiguous(digits)),
        }
    }

    /// Posts a message. Visible when this returns, durable after [`Log::wait`].
    ///
    /// # Errors
    /// If it can't be posted as it is, or the store takes no writes.
    pub fn post(&self, room: &str, text: &str, origin: Origin) -> Result<Receipt> {
        self.submit(&[Op::Post { room: room.to_owned(), text: text.to_owned() }], origin)
    }

    /// Answers a message, in its room.
    ///
    /// # Errors
    /// As [`Chat::post`], or if the message is not here.
    pub fn reply(&self, to: &Hash, text: &str, origin: Origin) -> Result<Receipt> {
        let room = self.room_of(to)?;
        self.submit(&[Op::Reply { room, to: *to, text: text.to_owned() }], origin)
    }

    /// Marks a message with an emoji.
    ///
    /// # Errors
    /// As [`Chat::post`], or if the message is not here.
    pub fn react(&self, to: &Hash, emoji: &str, origin: Origin) -> Result<Receipt> {
        let room = self.room_of(to)?;
        self.submit(&[Op::React { room, to: *to, emoji: emoji.to_owned() }], origin)
    }

    /// Gives a message of one's own another text.
    ///
    /// # Errors
    /// As [`Chat::post`], or if the message is not here, another's, or redacted.
    pub fn edit(&self, to: &Hash, text: &str, origin: Origin) -> Result<Receipt> {
        let room = self.room_of(to)?;
        self.submit(&[Op::Edit { room, to: *to, text: text.to_owned() }], origin)
    }

    /// Takes a message of one's own back.
    ///
    /// # Errors
    /// As [`Chat::edit`].
    pub fn redact(&self, to: &Hash, origin: Origin) -> Result<Receipt> {
        let room = self.room_of(to)?;
        self.submit(&[Op::Redact { room, to: *to }], origin)
    }

    /// Signs and applies the operations as one entry.
    ///
    /// # Errors
    /// As [`Chat::post`].
    pub fn submit(&self, ops: &[Op], origin: Origin) -> Result<Receipt> {
        for op in ops {
            wire::check(op).map_err(ChatError::Invalid)?;
            if let Op::Edit { to, .. } | Op::Redact { to, .. } = op {
                self.may_change(to)?;
            }
        }
        let payload = wire::encode(ops);
        if payload.len() > limits::PAYLOAD {
            return Err(ChatError::TooLarge { size: payload.len() });
        }
        Ok(self.log.submit(&payload, origin)?)
    }

    /// The id of the message that operation `op` of an entry posted.
    #[must_use]
    pub fn message_id(entry: &Hash, op: usize) -> Hash {
        machine::message_id(entry, op)
    }

    fn may_change(&self, id: &Hash) -> Result<()> {
        let message = self.message(id)?.ok_or_else(|| ChatError::NoMessage(id.short()))?;
        if message.position.author != self.log.me() {
            return Err(ChatError::NotYours(id.short(), self.log.membership().load().name(&message.position.author)));
        }
        if message.redacted.is_some() { Err(ChatError::Redacted(id.short())) } else { Ok(()) }
    }

    fn room_of(&self, id: &Hash) -> Result<String> {
        Ok(self.message(id)?.ok_or_else(|| ChatError::NoMessage(id.short()))?.room)
    }
}

fn room(view: &View<'_>, name: Vec<u8>, row: &[u8]) -> Result<Room> {
    let RoomRow { messages, first, last } = decode(row)?;
    let touched = view.get(TOUCHED, &name)?.map(|row| decode(&row)).transpose()?.unwrap_or(last);
    let name = String::from_utf8(name).map_err(|_damaged| corrupt())?;
    Ok(Room { name, messages, first, last, touched })
}

fn place(key: &[u8]) -> Option<(String, Position)> {
    let end = key.len().checked_sub(1 + 8 + 32 + 32)?;
    let room = String::from_utf8(key[..end].to_vec()).ok()?;
    let (hlc, rest) = key[end + 1..].split_first_chunk()?;
    let (author, id) = rest.split_first_chunk()?;
    let hlc = Hlc(u64::from_be_bytes(*hlc));
    Some((room, Position { hlc, author: NodeId(*author), id: Hash::from_slice(id)? }))
}

fn message(view: &View<'_>, key: &[u8], row: &[u8]) -> Result<Message> {
    let (room, position) = place(key).ok_or_else(corrupt)?;
    let MessageRow { to, text } = decode(row)?;
    let message = Message { room, position, reply_to: to, text, edited: None, redacted: None, reactions: Vec::new() };
    let by_author = [position.id.0, position.author.0].concat();
    if let Some(row) = view.get(REDACTED, &by_author)? {
        return Ok(Message { text: String::new(), redacted: Some(decode(&row)?), ..message });
    }
    let reactions = reactions(view, &position.id)?;
    let edit: Option<EditRow> = view.get(EDITS, &by_author)?.map(|row| decode(&row)).transpose()?;
    Ok(match edit {
        Some(EditRow { at, text, .. }) => Message { text, edited: Some(at), reactions, ..message },
        None => Message { reactions, ..message },
    })
}

fn reactions(view: &View<'_>, id: &Hash) -> Result<Vec<Reaction>> {
    let mut marks: BTreeMap<String, Vec<(NodeId, Vec<u8>)>> = BTreeMap::new();
    let mut end = Vec::new();
    view.scan(REACTIONS, prefix(&id.0, &mut end), false, &mut |key, row| {
        if let Some((author, emoji)) = key[32..].split_first_chunk()
            && let Ok(emoji) = std::str::from_utf8(emoji)
        {
            marks.entry(emoji.to_owned()).or_default().push((NodeId(*author), row.to_vec()));
        }
        Flow::Continue(())
    })?;
    let dated = |(emoji, by): (String, Vec<(NodeId, Vec<u8>)>)| {
        let by = by.into_iter().map(|(author, row)| Ok((author, decode(&row)?))).collect::<Result<_>>()?;
        Ok(Reaction { emoji, by })
    };
    marks.into_iter().map(dated).collect()
}

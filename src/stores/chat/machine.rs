//! The state machine: files messages, and what was done to them, where they are found.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::wire::{self, Op};
use crate::clock::Hlc;
use crate::ids::Hash;
use crate::replication::database::{DatabaseError, Read, Result, Table, Txn};
use crate::replication::entry::Entry;
use crate::replication::machine::{Change, Effects, StateMachine, What};

pub(super) const ROOMS: Table = "rooms";
pub(super) const MESSAGES: Table = "messages";
pub(super) const PLACES: Table = "places";
pub(super) const REACTIONS: Table = "reactions";
pub(super) const EDITS: Table = "edits";
pub(super) const REDACTED: Table = "redacted";
pub(super) const TOUCHED: Table = "touched";

/// What the state keeps of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RoomRow {
    pub(super) messages: u64,
    pub(super) first: Hlc,
    pub(super) last: Hlc,
}

/// What the state keeps of a message, beside its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MessageRow {
    pub(super) to: Option<Hash>,
    pub(super) text: String,
}

/// What the state keeps of an author's edits of a message: the last of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EditRow {
    pub(super) at: Hlc,
    /// The operation's place in its entry: one entry may hold several.
    pub(super) place: u64,
    pub(super) text: String,
}

/// The chat state machine. Its changes name rooms.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

pub(super) fn corrupt() -> DatabaseError {
    DatabaseError::Corrupt { path: "chat state".into(), what: "a row of the state does not read back".into() }
}

pub(super) fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T> {
    postcard::from_bytes(row).map_err(|_damaged| corrupt())
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|_unlikely| corrupt())
}

/// The id of the message that operation `op` of entry `entry` posts.
pub(super) fn message_id(entry: &Hash, op: usize) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"lattice/message/1\0").update(&entry.0).update(&(op as u64).to_be_bytes());
    hasher.finalize().into()
}

/// Where the messages of a room begin.
pub(super) fn room_prefix(room: &str) -> Vec<u8> {
    [room.as_bytes(), &[0]].concat()
}

impl StateMachine for Machine {
    fn kind(&self) -> &'static str {
        "chat"
    }

    fn tables(&self) -> &'static [Table] {
        &[ROOMS, MESSAGES, PLACES, REACTIONS, EDITS, REDACTED, TOUCHED]
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        let ops = match wire::decode(entry.payload()) {
            Ok(ops) => ops,
            Err(reason) => return Ok(Effects { noop: Some(reason), ..Effects::default() }),
        };
        let mut effects = Effects::default();
        let header = entry.header();
        for (place, op) in ops.into_iter().enumerate() {
            touch(txn, op.room(), header.hlc)?;
            let done_to = |to: &Hash| [to.0, header.author.0].concat();
            let change = match op {
                Op::Post { room, text } => post(txn, entry, place, room, MessageRow { to: None, text })?,
                Op::Reply { room, to, text } => post(txn, entry, place, room, MessageRow { to: Some(to), text })?,
                Op::React { room, to, emoji } => {
                    first(txn, REACTIONS, [&done_to(&to), emoji.as_bytes()].concat(), header.hlc)?;
                    modified(room)
                }
                Op::Edit { room, to, text } => {
                    edit(txn, done_to(&to), EditRow { at: header.hlc, place: place as u64, text })?;
                    modified(room)
                }
                Op::Redact { room, to } => {
                    first(txn, REDACTED, done_to(&to), header.hlc)?;
                    modified(room)
                }
            };
            if !effects.changes.contains(&change) {
                effects.changes.push(change);
            }
        }
        Ok(effects)
    }
}

fn modified(room: String) -> Change {
    Change { key: room.into(), what: What::Modified }
}

/// Keeps the latest stamp of a room.
fn touch(txn: &mut Txn<'_>, room: &str, hlc: Hlc) -> Result<()> {
    let known: Option<Hlc> = txn.get(TOUCHED, room.as_bytes())?.map(|row| decode(&row)).transpose()?;
    if known.is_none_or(|known| known < hlc) {
        txn.put(TOUCHED, room.as_bytes(), encode(&hlc)?);
    }
    Ok(())
}

/// Keeps the first stamp of something that is done once.
fn first(txn: &mut Txn<'_>, table: Table, key: Vec<u8>, hlc: Hlc) -> Result<()> {
    let known: Option<Hlc> = txn.get(table, &key)?.map(|row| decode(&row)).transpose()?;
    let first = known.map_or(hlc, |known| known.min(hlc));
    txn.put(table, key, encode(&first)?);
    Ok(())
}

/// Keeps an author's last edit of a message.
fn edit(txn: &mut Txn<'_>, key: Vec<u8>, edit: EditRow) -> Result<()> {
    let known: Option<EditRow> = txn.get(EDITS, &key)?.map(|row| decode(&row)).transpose()?;
    if known.is_none_or(|known| (known.at, known.place) < (edit.at, edit.place)) {
        txn.put(EDITS, key, encode(&edit)?);
    }
    Ok(())
}

fn post(txn: &mut Txn<'_>, entry: &Entry, place: usize, room: String, message: MessageRow) -> Result<Change> {
    let header = entry.header();
    let id = message_id(&entry.hash(), place);
    let mut key = room_prefix(&room);
    key.extend(header.hlc.0.to_be_bytes());
    key.extend(header.author.0);
    key.extend(id.0);
    txn.put(MESSAGES, key.as_slice(), encode(&message)?);
    txn.put(PLACES, id.0, key);
    let before: Option<RoomRow> = txn.get(ROOMS, room.as_bytes())?.map(|row| decode(&row)).transpose()?;
    let after = match before {
        None => RoomRow { messages: 1, first: header.hlc, last: header.hlc },
        Some(row) => {
            RoomRow { messages: row.messages + 1, first: row.first.min(header.hlc), last: row.last.max(header.hlc) }
        }
    };
    txn.put(ROOMS, room.as_bytes(), encode(&after)?);
    let what = if before.is_none() { What::Created } else { What::Modified };
    Ok(Change { key: room.into(), what })
}

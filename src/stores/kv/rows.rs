//! The form of the state's rows. Fixed widths, big-endian; part of the state's digest, so as frozen as the wire.
//!
//! ```text
//! heads   flags (u8: 1 = shadowed) · (entry (32) · op (u16) · hlc (u64) · version)*, the last write first
//! history version · (hlc (u64) · entry (32) · op (u16))*                         the writes that it supersedes
//! version author (32) · seq (u64) · kind (u8) · mode (u16) · mtime (i64) · content
//! content 0 | 1 · size (u32) · hash (32)                                         in the write's own operation
//!           | 2 · author (32) · seq (u64) · op (u16) · size (u32) · hash (32)    in another
//!           | 3 · hash (32) · size (u64)                                         in a blob
//! ```

use super::model::{Content, Head, HeadId, Heads, Kind, Node, Version};
use super::path::SEPARATOR;
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::database::DatabaseError;
use crate::stores::merge::Merge;

const SHADOWED: u8 = 1;

/// The length of a citation in a row of the history.
const CITE: usize = 8 + 32 + 2;

const EMPTY: u8 = 0;
const OWN: u8 = 1;
const OTHER: u8 = 2;
const BLOB: u8 = 3;

/// The number that stands for a kind, in rows and on the wire.
pub(super) const fn kind_number(kind: Kind) -> u8 {
    match kind {
        Kind::Deleted => 0,
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::Symlink => 3,
    }
}

/// The kind of a number.
pub(super) const fn kind_of(number: u32) -> Option<Kind> {
    match number {
        0 => Some(Kind::Deleted),
        1 => Some(Kind::File),
        2 => Some(Kind::Directory),
        3 => Some(Kind::Symlink),
        _ => None,
    }
}

/// A row that does not read back: our file's fault.
pub(super) fn corrupt() -> DatabaseError {
    DatabaseError::Corrupt { path: "kv state".into(), what: "a row of the state does not read back".into() }
}

fn write_version(out: &mut Vec<u8>, head: &Head) {
    out.extend(head.author.0);
    out.extend(head.seq.to_be_bytes());
    out.push(kind_number(head.kind));
    #[allow(clippy::cast_possible_truncation, reason = "at most 0o7777, checked when the operation was read")]
    out.extend((head.mode as u16).to_be_bytes());
    out.extend(head.mtime.to_be_bytes());
    #[allow(clippy::cast_possible_truncation, reason = "a value inside an entry is at most 64 KiB")]
    match &head.content {
        Content::Empty => out.push(EMPTY),
        Content::Inline { author, seq, op, size, hash } => {
            if (*author, *seq, *op) == (head.author, head.seq, head.id.op) {
                out.push(OWN);
            } else {
                out.push(OTHER);
                out.extend(author.0);
                out.extend(seq.to_be_bytes());
                out.extend(op.to_be_bytes());
            }
            out.extend((*size as u32).to_be_bytes());
            out.extend(hash.0);
        }
        Content::Blob { hash, size } => {
            out.push(BLOB);
            out.extend(hash.0);
            out.extend(size.to_be_bytes());
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn version(&mut self, id: HeadId, hlc: Hlc) -> Option<Head> {
        let author = NodeId(self.take()?);
        let seq = self.u64()?;
        let kind = kind_of(self.u8()?.into())?;
        let mode = self.u16()?.into();
        let mtime = i64::from_be_bytes(self.take()?);
        let content = match self.u8()? {
            EMPTY => Content::Empty,
            OWN => Content::Inline { author, seq, op: id.op, size: self.u32()?.into(), hash: Hash(self.take()?) },
            OTHER => Content::Inline {
                author: NodeId(self.take()?),
                seq: self.u64()?,
                op: self.u16()?,
                size: self.u32()?.into(),
                hash: Hash(self.take()?),
            },
            BLOB => Content::Blob { hash: Hash(self.take()?), size: self.u64()? },
            _ => return None,
        };
        Some(Head { id, author, seq, hlc, kind, mode, mtime, content })
    }

    fn head(&mut self) -> Option<Head> {
        let id = HeadId { entry: Hash(self.take()?), op: self.u16()? };
        let hlc = Hlc(self.u64()?);
        self.version(id, hlc)
    }
}

/// The row of a key's heads.
pub(super) fn encode(heads: &Heads) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + heads.all().len() * 140);
    out.push(if heads.is_shadowed() { SHADOWED } else { 0 });
    for head in heads.all() {
        out.extend(head.id.entry.0);
        out.extend(head.id.op.to_be_bytes());
        out.extend(head.hlc.0.to_be_bytes());
        write_version(&mut out, head);
    }
    out
}

/// A key's heads from their row.
pub(super) fn decode(row: &[u8]) -> Result<Heads, DatabaseError> {
    let mut reader = Reader(row);
    let flags = reader.u8().ok_or_else(corrupt)?;
    let mut heads = Vec::with_capacity(1);
    while !reader.0.is_empty() {
        heads.push(reader.head().ok_or_else(corrupt)?);
    }
    Heads::new(heads, flags & SHADOWED != 0).ok_or_else(corrupt)
}

/// What a mount shows of a key, from its row. Only the last write is read, unless others matter.
pub(super) fn node(row: &[u8]) -> Result<Option<Node>, DatabaseError> {
    let mut reader = Reader(row);
    if reader.u8().ok_or_else(corrupt)? & SHADOWED != 0 {
        return Ok(decode(row)?.node());
    }
    let head = reader.head().ok_or_else(corrupt)?;
    Ok(match head.kind {
        Kind::File => Some(Node::File(head)),
        Kind::Symlink => Some(Node::Symlink(head)),
        Kind::Directory => Some(Node::Directory(Some(head))),
        Kind::Deleted => None,
    })
}

/// Where all versions of the key with this row begin in the history.
pub(super) fn history_prefix(row: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(row.len() + 44);
    key.extend(row);
    key.extend([SEPARATOR, SEPARATOR]);
    key
}

/// The key of a write in the history.
pub(super) fn history_key(row: &[u8], hlc: Hlc, id: &HeadId) -> Vec<u8> {
    let mut key = history_prefix(row);
    key.extend(hlc.0.to_be_bytes());
    key.extend(id.entry.0);
    key.extend(id.op.to_be_bytes());
    key
}

/// The row of a write in the history.
pub(super) fn encode_version(head: &Head, cites: &[(Hlc, HeadId)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(100 + cites.len() * CITE);
    write_version(&mut out, head);
    for (hlc, id) in cites {
        out.extend(hlc.0.to_be_bytes());
        out.extend(id.entry.0);
        out.extend(id.op.to_be_bytes());
    }
    out
}

/// A write from its row in the history; `suffix` is what follows the prefix in its key.
pub(super) fn decode_version(suffix: &[u8], value: &[u8]) -> Result<Version, DatabaseError> {
    let read = |mut key: Reader<'_>| {
        let hlc = Hlc(key.u64()?);
        let id = HeadId { entry: Hash(key.take()?), op: key.u16()? };
        let mut rest = Reader(value);
        let head = rest.version(id, hlc)?;
        let mut supersedes = Vec::with_capacity(rest.0.len() / CITE);
        while !rest.0.is_empty() {
            let hlc = Hlc(rest.u64()?);
            supersedes.push((hlc, HeadId { entry: Hash(rest.take()?), op: rest.u16()? }));
        }
        Some(Version { head, supersedes })
    };
    read(Reader(suffix)).ok_or_else(corrupt)
}

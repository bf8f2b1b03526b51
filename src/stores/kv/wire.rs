//! The payload of a kv entry: protobuf, version 1.
//!
//! ```text
//! message Payload { uint32 version = 1; repeated Operation operations = 2; }
//! message Operation { oneof action { Write put = 1; Delete delete = 2; Write set_attr = 3; } }
//! message Write  { bytes path = 1; repeated Cite supersedes = 2; uint32 kind = 3; uint32 mode = 4; sfixed64 mtime = 5;
//!                  oneof content { bytes bytes = 6; Elsewhere same = 7; Blob blob = 8; } }
//! message Delete { bytes path = 1; repeated Cite supersedes = 2; }
//! message Cite   { bytes entry = 1; uint32 op = 2; fixed64 hlc = 3; }
//! message Elsewhere { bytes author = 1; uint64 seq = 2; uint32 op = 3; uint32 size = 4; bytes hash = 5; }
//! message Blob   { bytes hash = 1; uint64 size = 2; }
//! ```
//!
//! A citation carries the stamp of what it cites, so that it is found by one look-up. In `Elsewhere`, no author
//! means the entry's own. `kind` is 1 file, 2 directory, 3 symbolic link.

use bytes::Bytes;
use prost::Message;

use super::model::{Content, Head, HeadId, Kind, Op, Value};
use super::{path, rows};
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId};
use crate::replication::entry::Entry;
use crate::replication::limits;

/// The version of the payload that this build writes, and the only one that it reads.
pub(super) const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Payload {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) operations: Vec<Operation>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Operation {
    #[prost(oneof = "Action", tags = "1, 2, 3")]
    pub(super) action: Option<Action>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Action {
    #[prost(message, tag = "1")]
    Put(Write),
    #[prost(message, tag = "2")]
    Delete(Delete),
    #[prost(message, tag = "3")]
    SetAttr(Write),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Write {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) path: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub(super) supersedes: Vec<Cite>,
    #[prost(uint32, tag = "3")]
    pub(super) kind: u32,
    #[prost(uint32, tag = "4")]
    pub(super) mode: u32,
    #[prost(sfixed64, tag = "5")]
    pub(super) mtime: i64,
    #[prost(oneof = "Source", tags = "6, 7, 8")]
    pub(super) content: Option<Source>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Source {
    #[prost(bytes = "bytes", tag = "6")]
    Bytes(Bytes),
    #[prost(message, tag = "7")]
    Same(Elsewhere),
    #[prost(message, tag = "8")]
    Blob(Blob),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Delete {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) path: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub(super) supersedes: Vec<Cite>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Cite {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) entry: Bytes,
    #[prost(uint32, tag = "2")]
    pub(super) op: u32,
    #[prost(fixed64, tag = "3")]
    pub(super) hlc: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Elsewhere {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) author: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    #[prost(uint32, tag = "3")]
    pub(super) op: u32,
    #[prost(uint32, tag = "4")]
    pub(super) size: u32,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) hash: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Blob {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) hash: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) size: u64,
}

/// A write as the state takes it: every field checked, its content located.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) path: Bytes,
    pub(super) cites: Vec<(Hlc, HeadId)>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) mtime: i64,
    pub(super) content: Content,
}

impl Parsed {
    /// The head that it makes as the operation `op` of an entry.
    pub(super) fn head(&self, entry: &Entry, op: u16) -> Head {
        let header = entry.header();
        Head {
            id: HeadId { entry: entry.hash(), op },
            author: header.author,
            seq: header.seq,
            hlc: header.hlc,
            kind: self.kind,
            mode: self.mode,
            mtime: self.mtime,
            content: self.content,
        }
    }
}

/// The payload of an entry, sharing its bytes.
pub(super) fn decode(entry: &Entry) -> Result<Payload, String> {
    let payload = Payload::decode(entry.shared_payload()).map_err(|error| format!("malformed: {error}"))?;
    if payload.version != VERSION {
        let found = payload.version;
        return Err(format!("held: payload version {found} is not known to this build, which knows {VERSION}"));
    }
    Ok(payload)
}

/// The writes of a payload that `author` put into entry `seq` and stamped `hlc`, or why none of them counts.
///
/// What a write supersedes has an earlier stamp: so of any set of entries that holds the past of each, a key's last write
/// is one of its heads, and is found without looking at the others.
pub(super) fn parse(payload: Payload, author: NodeId, seq: u64, hlc: Hlc) -> Result<Vec<Parsed>, String> {
    if payload.operations.is_empty() {
        return Err("malformed: no operations".into());
    }
    let mut writes = Vec::with_capacity(payload.operations.len());
    for (place, operation) in payload.operations.into_iter().enumerate() {
        let place = u16::try_from(place).map_err(|_too_many| "malformed: too many operations".to_owned())?;
        let write = match operation.action {
            None => Err("no action that this build knows".into()),
            Some(Action::Put(write)) => put(write, author, seq, place),
            Some(Action::SetAttr(write)) => set_attr(write, author, seq, place),
            Some(Action::Delete(delete)) => cites(delete.supersedes).map(|cites| Parsed {
                path: delete.path,
                cites,
                kind: Kind::Deleted,
                mode: 0,
                mtime: 0,
                content: Content::Empty,
            }),
        };
        let write = write.and_then(|write| match path::check(&write.path) {
            Ok(()) if write.cites.iter().all(|(cited, _)| *cited < hlc) => Ok(write),
            Ok(()) => Err("it supersedes what is not before it".into()),
            Err(error) => Err(error.to_string()),
        });
        writes.push(write.map_err(|reason| format!("malformed: operation {place}: {reason}"))?);
    }
    Ok(writes)
}

fn cites(cites: Vec<Cite>) -> Result<Vec<(Hlc, HeadId)>, String> {
    let read = |cite: Cite| {
        let entry = Hash::from_slice(&cite.entry)?;
        let op = u16::try_from(cite.op).ok()?;
        Some((Hlc(cite.hlc), HeadId { entry, op }))
    };
    cites.into_iter().map(|cite| read(cite).ok_or_else(|| "a citation is no head's name".into())).collect()
}

fn set_attr(write: Write, author: NodeId, seq: u64, op: u16) -> Result<Parsed, String> {
    if write.supersedes.is_empty() {
        return Err("new attributes for no head".into());
    }
    if matches!(write.content, Some(Source::Bytes(_))) {
        return Err("new attributes with new content".into());
    }
    put(write, author, seq, op)
}

fn put(write: Write, author: NodeId, seq: u64, op: u16) -> Result<Parsed, String> {
    let kind = rows::kind_of(write.kind).filter(|kind| *kind != Kind::Deleted).ok_or("an unknown kind")?;
    if write.mode > 0o7777 {
        return Err(format!("mode {:o} has more than permission bits", write.mode));
    }
    let content = match write.content {
        None => Content::Empty,
        Some(Source::Bytes(bytes)) => own(&bytes, author, seq, op)?,
        Some(Source::Same(same)) => elsewhere(&same, author)?,
        Some(Source::Blob(blob)) => {
            let hash = Hash::from_slice(&blob.hash).ok_or("a blob's hash is not 32 bytes")?;
            Content::Blob { hash, size: blob.size }
        }
    };
    match kind {
        Kind::Directory if content != Content::Empty => return Err("a directory with content".into()),
        Kind::Symlink if !(1..limits::KEY_PATH as u64).contains(&content.size()) => {
            return Err(format!("a symbolic link's target of {} bytes", content.size()));
        }
        Kind::File | Kind::Directory | Kind::Symlink | Kind::Deleted => {}
    }
    let cites = cites(write.supersedes)?;
    Ok(Parsed { path: write.path, cites, kind, mode: write.mode, mtime: write.mtime, content })
}

fn own(bytes: &[u8], author: NodeId, seq: u64, op: u16) -> Result<Content, String> {
    if bytes.len() > limits::INLINE_VALUE {
        return Err(format!("a value of {} bytes inside the entry", bytes.len()));
    }
    if bytes.is_empty() {
        return Ok(Content::Empty);
    }
    Ok(Content::Inline { author, seq, op, size: bytes.len() as u64, hash: blake3::hash(bytes).into() })
}

fn elsewhere(same: &Elsewhere, author: NodeId) -> Result<Content, String> {
    let author =
        if same.author.is_empty() { author } else { NodeId::from_slice(&same.author).ok_or("no author's id")? };
    let hash = Hash::from_slice(&same.hash).ok_or("a content's hash is not 32 bytes")?;
    let op = u16::try_from(same.op).map_err(|_large| "no operation's place".to_owned())?;
    if same.size == 0 || same.size as usize > limits::INLINE_VALUE {
        return Err(format!("a value of {} bytes inside another entry", same.size));
    }
    Ok(Content::Inline { author, seq: same.seq, op, size: same.size.into(), hash })
}

impl Operation {
    /// The bytes of the value that the operation holds itself.
    pub(super) fn bytes(&self) -> Option<&Bytes> {
        match &self.action {
            Some(Action::Put(Write { content: Some(Source::Bytes(bytes)), .. })) => Some(bytes),
            Some(Action::Put(_) | Action::SetAttr(_) | Action::Delete(_)) | None => None,
        }
    }
}

/// The operation in wire form; `me` is who will sign it.
pub(super) fn operation(op: Op, cites: Vec<(Hlc, HeadId)>, me: NodeId) -> Result<Operation, String> {
    let supersedes = cites.into_iter().map(|(hlc, id)| Cite {
        entry: Bytes::copy_from_slice(&id.entry.0),
        op: id.op.into(),
        hlc: hlc.0,
    });
    let supersedes: Vec<_> = supersedes.collect();
    let action = match op {
        Op::Delete { path, .. } => Action::Delete(Delete { path: path.into(), supersedes }),
        Op::Put { path, kind, mode, mtime, value, .. } => {
            Action::Put(write(path, supersedes, kind, (mode, mtime), value, me)?)
        }
        Op::SetAttr { path, kind, mode, mtime, value, .. } => {
            Action::SetAttr(write(path, supersedes, kind, (mode, mtime), value, me)?)
        }
    };
    Ok(Operation { action: Some(action) })
}

fn write(
    path: Vec<u8>,
    supersedes: Vec<Cite>,
    kind: Kind,
    (mode, mtime): (u32, i64),
    value: Value,
    me: NodeId,
) -> Result<Write, String> {
    let content = match value {
        Value::Empty | Value::Same(Content::Empty) => None,
        Value::Bytes(bytes) => Some(Source::Bytes(bytes.into())),
        Value::Blob { hash, size } | Value::Same(Content::Blob { hash, size }) => {
            Some(Source::Blob(Blob { hash: Bytes::copy_from_slice(&hash.0), size }))
        }
        Value::Same(Content::Inline { author, seq, op, size, hash }) => Some(Source::Same(Elsewhere {
            author: if author == me { Bytes::new() } else { Bytes::copy_from_slice(&author.0) },
            seq,
            op: op.into(),
            size: u32::try_from(size).map_err(|_large| "a value inside an entry is never that large".to_owned())?,
            hash: Bytes::copy_from_slice(&hash.0),
        })),
    };
    Ok(Write { path: path.into(), supersedes, kind: rows::kind_number(kind).into(), mode, mtime, content })
}

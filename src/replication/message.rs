//! What nodes say to each other about entries: frames on a sync connection, and messages to gossip.
//!
//! A frame is a [`Message`] in postcard's form; one that carries entries ends in their bytes, one after the
//! other, as they were signed. A gossip message is a [`Push`], made the same way. A new form of either means
//! a new protocol name, so neither carries a version but for [`Message::Hello`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::limits;
use super::log::{Fingerprint, Tip};
use crate::ids::{Hash, MeshId, NodeId, StoreId};

/// The version of these messages that this build speaks.
pub const PROTOCOL: u16 = 1;

/// A peer's bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    /// They do not read as one.
    #[error("the message does not read: {0}")]
    Form(#[from] postcard::Error),
    /// The entries after it do not add up to what it says.
    #[error("the message's entries do not have the lengths that it names")]
    Lengths,
    /// More of something than is allowed.
    #[error("the message holds too many {0}")]
    TooMany(&'static str),
}

/// A part of an author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The author.
    pub author: NodeId,
    /// The first entry's number.
    pub from: u64,
    /// The last entry's number.
    pub to: u64,
}

/// Which entries are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// Parts of chains.
    Ranges(Vec<Range>),
    /// Single entries.
    Hashes(Vec<Hash>),
}

/// Entries as they travel: whole, in their signed form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    sizes: Vec<u32>,
    #[serde(skip)]
    entries: Vec<Bytes>,
}

impl Packed {
    /// Packs entries.
    #[must_use]
    pub fn new(entries: Vec<Bytes>) -> Self {
        let sizes = entries.iter().map(|entry| u32::try_from(entry.len()).unwrap_or(u32::MAX)).collect();
        Self { sizes, entries }
    }

    /// The entries' bytes.
    #[must_use]
    pub fn into_entries(self) -> Vec<Bytes> {
        self.entries
    }

    /// The entries' bytes.
    #[must_use]
    pub fn entries(&self) -> &[Bytes] {
        &self.entries
    }

    fn unpack(&mut self, mut rest: Bytes) -> Result<(), Garbled> {
        if self.sizes.len() > limits::FRAME_ENTRIES {
            return Err(Garbled::TooMany("entries"));
        }
        let total: u64 = self.sizes.iter().map(|size| u64::from(*size)).sum();
        if total != rest.len() as u64 {
            return Err(Garbled::Lengths);
        }
        self.entries = self.sizes.iter().map(|size| rest.split_to(*size as usize)).collect();
        Ok(())
    }
}

/// What travels on a sync connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first on every connection, from both ends.
    Hello {
        /// [`PROTOCOL`] of the sender.
        protocol: u16,
        /// The mesh that is spoken of.
        mesh: MeshId,
        /// The sender's build, for people.
        build: String,
    },
    /// How much the sender has of each store that it has.
    Status {
        /// Whether the same is asked back.
        answer: bool,
        /// Per store, of what is durable.
        stores: Vec<(StoreId, Fingerprint)>,
    },
    /// How far each author's chain goes at the sender: a claim, from one consistent and durable state.
    Tips {
        /// The store.
        store: StoreId,
        /// Whether the same is asked back.
        answer: bool,
        /// Of that state.
        fingerprint: Fingerprint,
        /// The last entry of each author.
        tips: Vec<(NodeId, Tip)>,
    },
    /// Asks for entries. A new one for a store takes the place of the one before.
    Pull {
        /// The store.
        store: StoreId,
        /// Names this pull in what follows; chosen by who pulls.
        id: u64,
        /// What is asked for.
        wanted: Wanted,
        /// The bytes of entries that may be sent before more is granted.
        credit: u32,
    },
    /// Some of what was asked for, parents first.
    Entries {
        /// The store.
        store: StoreId,
        /// The pull.
        id: u64,
        /// Whether nothing more follows.
        last: bool,
        /// The entries.
        packed: Packed,
    },
    /// So much more may be sent.
    Credit {
        /// The store.
        store: StoreId,
        /// The pull.
        id: u64,
        /// Bytes of entries.
        bytes: u32,
    },
    /// A round of range-based reconciliation (negentropy), from the end that began it.
    Compare {
        /// The store.
        store: StoreId,
        /// The round's bytes.
        round: Vec<u8>,
    },
    /// The answer to [`Message::Compare`].
    Compared {
        /// The store.
        store: StoreId,
        /// The round's bytes.
        round: Vec<u8>,
    },
    /// Entries that the sender has and the receiver, as a comparison showed, has not.
    Have {
        /// The store.
        store: StoreId,
        /// Their hashes.
        hashes: Vec<Hash>,
    },
    /// Is the other end alive?
    Ping(u64),
    /// It is.
    Pong(u64),
}

/// What is given to gossip: a hint that may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Push {
    /// Whole entries.
    Entries(Packed),
    /// What can be pulled. The announcer's id says from whom, and keeps the same claims by two nodes apart.
    Tips {
        /// Who has them.
        by: NodeId,
        /// Author, and number of its last entry there.
        tips: Vec<(NodeId, u64, Hash)>,
    },
}

fn encode(value: &impl Serialize, packed: Option<&Packed>) -> Bytes {
    let entries = packed.map_or(&[][..], |packed| &packed.entries);
    let total: usize = entries.iter().map(Bytes::len).sum();
    // Writing to memory can't fail.
    let mut bytes = postcard::to_extend(value, Vec::with_capacity(total + 4 * entries.len() + 128)).unwrap_or_default();
    for entry in entries {
        bytes.extend_from_slice(entry);
    }
    bytes.into()
}

impl Message {
    /// The frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let packed = if let Self::Entries { packed, .. } = self { Some(packed) } else { None };
        encode(self, packed)
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(frame: &Bytes) -> Result<Self, Garbled> {
        let (mut message, rest) = postcard::take_from_bytes::<Self>(frame)?;
        let rest = frame.slice_ref(rest);
        if let Self::Entries { packed, .. } = &mut message {
            packed.unpack(rest)?;
        } else if !rest.is_empty() {
            return Err(Garbled::Lengths);
        }
        Ok(message)
    }
}

impl Push {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let packed = if let Self::Entries(packed) = self { Some(packed) } else { None };
        encode(self, packed)
    }

    /// Reads a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(message: &Bytes) -> Result<Self, Garbled> {
        let (mut push, rest) = postcard::take_from_bytes::<Self>(message)?;
        let rest = message.slice_ref(rest);
        if let Self::Entries(packed) = &mut push {
            packed.unpack(rest)?;
        } else if !rest.is_empty() {
            return Err(Garbled::Lengths);
        }
        Ok(push)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Hlc;

    fn tip(n: u8) -> Tip {
        Tip { seq: u64::from(n), hlc: Hlc(1_000 + u64::from(n)), hash: Hash([n; 32]) }
    }

    fn each() -> Vec<Message> {
        let store = StoreId([1; 32]);
        let fingerprint = Fingerprint { count: 300, sum: [2; 32] };
        let range = Range { author: NodeId([3; 32]), from: 1, to: 300 };
        vec![
            Message::Hello { protocol: PROTOCOL, mesh: MeshId([9; 32]), build: "0.1.0".into() },
            Message::Status { answer: true, stores: vec![(store, fingerprint)] },
            Message::Tips { store, answer: false, fingerprint, tips: vec![(NodeId([3; 32]), tip(4))] },
            Message::Pull { store, id: 5, wanted: Wanted::Ranges(vec![range]), credit: 1 << 20 },
            Message::Pull { store, id: 6, wanted: Wanted::Hashes(vec![Hash([7; 32])]), credit: 1 << 20 },
            Message::Entries {
                store,
                id: 6,
                last: true,
                packed: Packed::new(vec![Bytes::from_static(b"one"), Bytes::from_static(b"three")]),
            },
            Message::Credit { store, id: 6, bytes: 8 },
            Message::Compare { store, round: vec![0x61, 0] },
            Message::Compared { store, round: vec![0x61] },
            Message::Have { store, hashes: vec![Hash([8; 32])] },
            Message::Ping(1),
            Message::Pong(1),
        ]
    }

    #[test]
    fn every_message_reads_back() {
        for message in each() {
            assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn the_bytes_of_version_1_are_frozen() {
        let mut pushes = vec![Push::Entries(Packed::new(vec![Bytes::from_static(b"one")]))];
        pushes.push(Push::Tips { by: NodeId([3; 32]), tips: vec![(NodeId([4; 32]), 5, Hash([6; 32]))] });
        let lines: Vec<_> = each()
            .iter()
            .map(Message::encode)
            .chain(pushes.iter().map(Push::encode))
            .map(|bytes| data_encoding::HEXLOWER.encode(&bytes))
            .collect();
        let frozen = include_str!("../../tests/frozen/sync-messages-v1.hex");
        assert_eq!(lines.join("\n"), frozen.trim(), "the wire form changed: that needs a new protocol name");
    }

    #[test]
    fn bytes_that_do_not_add_up_are_no_message() {
        let packed = Packed::new(vec![Bytes::from_static(b"one")]);
        let frame = Message::Entries { store: StoreId([1; 32]), id: 1, last: true, packed: packed.clone() }.encode();
        assert_eq!(Message::decode(&frame.slice(..frame.len() - 1)), Err(Garbled::Lengths));
        let longer = Bytes::from([&frame[..], b"x"].concat());
        assert_eq!(Message::decode(&longer), Err(Garbled::Lengths));
        let many = Packed::new(vec![Bytes::new(); limits::FRAME_ENTRIES + 1]);
        assert_eq!(Push::decode(&Push::Entries(many).encode()), Err(Garbled::TooMany("entries")));
        for end in 0..frame.len() {
            assert!(Message::decode(&frame.slice(..end)).is_err());
        }
    }
}

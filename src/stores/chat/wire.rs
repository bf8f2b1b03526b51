//! The payload of a chat entry: protobuf, version 1.
//!
//! ```text
//! message Payload { uint32 version = 1; repeated Operation operations = 2; }
//! message Operation { oneof action { Post post = 1; Reply reply = 2; React react = 3; Edit edit = 4; Redact redact = 5; } }
//! message Post  { string room = 1; string text = 2; }
//! message Reply { string room = 1; bytes to = 2; string text = 3; }
//! message React { string room = 1; bytes to = 2; string emoji = 3; }
//! message Edit { string room = 1; bytes to = 2; string text = 3; }
//! message Redact { string room = 1; bytes to = 2; }
//! ```

use prost::Message;

use crate::ids::Hash;
use crate::replication::limits;
use crate::stores::root::names;

const VERSION: u32 = 1;

/// The longest reaction, in bytes: an emoji of several joined parts fits.
const EMOJI: usize = 64;

/// An operation on a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Posts a message.
    Post {
        /// The room; the first message opens it.
        room: String,
        /// The message.
        text: String,
    },
    /// Answers a message.
    Reply {
        /// The room that the message is in.
        room: String,
        /// The message.
        to: Hash,
        /// The answer.
        text: String,
    },
    /// Marks a message with an emoji.
    React {
        /// The room that the message is in.
        room: String,
        /// The message.
        to: Hash,
        /// The emoji.
        emoji: String,
    },
    /// Gives a message of one's own another text. By anyone else it does nothing.
    Edit {
        /// The room that the message is in.
        room: String,
        /// The message.
        to: Hash,
        /// What it says from now on.
        text: String,
    },
    /// Takes a message of one's own back. By anyone else it does nothing.
    Redact {
        /// The room that the message is in.
        room: String,
        /// The message.
        to: Hash,
    },
}

impl Op {
    /// The room that it is done in.
    #[must_use]
    pub fn room(&self) -> &str {
        let (Self::Post { room, .. }
        | Self::Reply { room, .. }
        | Self::React { room, .. }
        | Self::Edit { room, .. }
        | Self::Redact { room, .. }) = self;
        room
    }
}

mod message {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Payload {
        #[prost(uint32, tag = "1")]
        pub(super) version: u32,
        #[prost(message, repeated, tag = "2")]
        pub(super) operations: Vec<Operation>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Operation {
        #[prost(oneof = "Action", tags = "1, 2, 3, 4, 5")]
        pub(super) action: Option<Action>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Action {
        #[prost(message, tag = "1")]
        Post(Post),
        #[prost(message, tag = "2")]
        Reply(Reply),
        #[prost(message, tag = "3")]
        React(React),
        #[prost(message, tag = "4")]
        Edit(Edit),
        #[prost(message, tag = "5")]
        Redact(Redact),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Post {
        #[prost(string, tag = "1")]
        pub(super) room: String,
        #[prost(string, tag = "2")]
        pub(super) text: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Reply {
        #[prost(string, tag = "1")]
        pub(super) room: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) to: Vec<u8>,
        #[prost(string, tag = "3")]
        pub(super) text: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct React {
        #[prost(string, tag = "1")]
        pub(super) room: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) to: Vec<u8>,
        #[prost(string, tag = "3")]
        pub(super) emoji: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Edit {
        #[prost(string, tag = "1")]
        pub(super) room: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) to: Vec<u8>,
        #[prost(string, tag = "3")]
        pub(super) text: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Redact {
        #[prost(string, tag = "1")]
        pub(super) room: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) to: Vec<u8>,
    }
}

/// The payload that holds `ops`.
pub(super) fn encode(ops: &[Op]) -> Vec<u8> {
    use message::Action;
    let action = |op: &Op| match op.clone() {
        Op::Post { room, text } => Action::Post(message::Post { room, text }),
        Op::Reply { room, to, text } => Action::Reply(message::Reply { room, to: to.0.to_vec(), text }),
        Op::React { room, to, emoji } => Action::React(message::React { room, to: to.0.to_vec(), emoji }),
        Op::Edit { room, to, text } => Action::Edit(message::Edit { room, to: to.0.to_vec(), text }),
        Op::Redact { room, to } => Action::Redact(message::Redact { room, to: to.0.to_vec() }),
    };
    let operations = ops.iter().map(|op| message::Operation { action: Some(action(op)) }).collect();
    message::Payload { version: VERSION, operations }.encode_to_vec()
}

/// The operations of a payload, each well formed, or why none of them counts.
pub(super) fn decode(payload: &[u8]) -> Result<Vec<Op>, String> {
    let payload = message::Payload::decode(payload).map_err(|error| format!("malformed: {error}"))?;
    if payload.version != VERSION {
        let found = payload.version;
        return Err(format!("held: payload version {found} is not known to this build, which knows {VERSION}"));
    }
    let read = |(place, operation): (usize, message::Operation)| {
        let op = operation.action.and_then(op).ok_or_else(|| "no action that this build knows".to_owned());
        op.and_then(|op| check(&op).map(|()| op)).map_err(|reason| format!("malformed: operation {place}: {reason}"))
    };
    payload.operations.into_iter().enumerate().map(read).collect()
}

fn op(action: message::Action) -> Option<Op> {
    use message::Action;
    Some(match action {
        Action::Post(post) => Op::Post { room: post.room, text: post.text },
        Action::Reply(reply) => Op::Reply { room: reply.room, to: Hash::from_slice(&reply.to)?, text: reply.text },
        Action::React(react) => Op::React { room: react.room, to: Hash::from_slice(&react.to)?, emoji: react.emoji },
        Action::Edit(edit) => Op::Edit { room: edit.room, to: Hash::from_slice(&edit.to)?, text: edit.text },
        Action::Redact(redact) => Op::Redact { room: redact.room, to: Hash::from_slice(&redact.to)? },
    })
}

/// Whether an operation is well formed.
pub(super) fn check(op: &Op) -> Result<(), String> {
    names::check(op.room()).map_err(|error| error.to_string())?;
    match op {
        Op::Redact { .. } => {}
        Op::Post { text, .. } | Op::Reply { text, .. } | Op::Edit { text, .. } => {
            if text.trim().is_empty() {
                return Err("a message without text".into());
            }
            if text.len() > limits::INLINE_VALUE {
                return Err(format!("a message of {} bytes, the limit is {}", text.len(), limits::INLINE_VALUE));
            }
        }
        Op::React { emoji, .. } => {
            let odd = |c: char| c.is_control() || c.is_whitespace();
            if emoji.is_empty() || emoji.len() > EMOJI || emoji.contains(odd) {
                return Err(format!("'{}' is no reaction", emoji.escape_debug()));
            }
        }
    }
    Ok(())
}

//! The chat machine: rooms of messages, replies, reactions, edits and redactions.
//!
//! Messages are ordered by stamp, then author, then id. A stamp exceeds that of everything its author had seen, so this
//! order extends causality. A message's id is BLAKE3 of its entry's hash and its place in the entry. What a reply, a reaction, an edit
//! or a redaction names need not be here: each is kept as it is, and put together when read.
//!
//! An edit or a redaction counts if its author is the message's. Of several edits the one with the latest stamp shows; a redaction
//! goes before all of them, whenever it was made.
//!
//! Tables:
//!
//! | table     | key                      | value (postcard) |
//! |-----------|--------------------------|------------------|
//! | rooms     | name                     | how many messages, first and last stamp |
//! | messages  | room 0 hlc author id     | text, what it answers |
//! | places    | id                       | the key in `messages` |
//! | reactions | id author emoji          | the first stamp |
//! | edits     | id author                | the latest stamp, the place in its entry, the text |
//! | redacted  | id author                | the first stamp |
//! | touched   | room                     | the latest stamp of anything done in it |

mod describe;
mod handle;
mod json;
mod machine;
mod news;
mod render;
mod wire;

#[cfg(test)]
mod tests;

pub use describe::describe;
pub use handle::{Chat, ChatError, Message, Position, Reaction, Room};
pub use machine::Machine;
pub use news::{Form, News, Reading};
pub use wire::Op;

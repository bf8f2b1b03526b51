//! The chat machine: rooms of messages, replies and reactions.
//!
//! Messages are ordered by stamp, then author, then id. A stamp exceeds that of everything its author had seen, so this
//! order extends causality. A message's id is BLAKE3 of its entry's hash and its place in the entry. What a reply or a reaction
//! names need not be here: each is kept as it is, and put together when read.
//!
//! Tables:
//!
//! | table     | key                      | value (postcard) |
//! |-----------|--------------------------|------------------|
//! | rooms     | name                     | how many messages, first and last stamp |
//! | messages  | room 0 hlc author id     | text, what it answers |
//! | places    | id                       | the key in `messages` |
//! | reactions | id author emoji          | the first stamp |

mod describe;
mod handle;
mod machine;
mod render;
mod wire;

#[cfg(test)]
mod tests;

pub use describe::describe;
pub use handle::{Chat, ChatError, Message, Position, Reaction, Room};
pub use machine::Machine;
pub use wire::Op;

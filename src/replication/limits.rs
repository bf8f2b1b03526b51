//! Bounds on what is made here and on what is taken from others. Each is enforced at both ends.

use std::time::Duration;

/// The largest payload of an entry, in bytes.
pub const PAYLOAD: usize = 64 * 1024;
/// The most entries that one entry may name in `deps`.
pub const DEPS: usize = 1_024;
/// The longest path of a key, in bytes.
pub const KEY_PATH: usize = 4_096;
/// The longest component of a key's path, in bytes.
pub const KEY_COMPONENT: usize = 255;
/// The largest value that travels inside its entry, in bytes. A larger one is a blob.
pub const INLINE_VALUE: usize = 16 * 1024;
/// How far ahead of the local clock an entry's hlc may be and still be applied at once.
pub const CLOCK_AHEAD: Duration = Duration::from_secs(5 * 60);
/// The largest message given to gossip, in bytes: above about 4,050 it is lost without an error.
pub const GOSSIP_MESSAGE: usize = 4_000;
/// The largest frame on a sync stream, in bytes.
pub const FRAME: usize = 2 * 1024 * 1024;
/// The bytes of entries that a sender may have in flight to one peer for one store.
pub const CREDIT: usize = 1024 * 1024;
/// The entries put into one frame at most.
pub const FRAME_ENTRIES: usize = 2_048;
/// Entries that wait for a missing one, at most, per peer that sent them.
pub const ORPHANS_PER_PEER: usize = 4_096;
/// Entries that wait for a missing one, at most, in all.
pub const ORPHANS: usize = 16_384;
/// How long an entry waits for a missing one.
pub const ORPHAN_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes that may be staged and not yet durable before writers wait.
pub const STAGED_BYTES: usize = 16 * 1024 * 1024;

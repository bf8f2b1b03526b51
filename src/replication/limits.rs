//! Bounds on what is made here and on what is taken from others. Each is enforced at both ends.

use std::time::Duration;

/// The largest payload of an entry, in bytes.
pub const PAYLOAD: usize = 64 * 1024;
/// The most entries that one entry may name in `deps`: so few that two headers, which prove a fork, fit the payload of one
/// entry, with a cut.
pub const DEPS: usize = 896;
const _: () = assert!(2 * (32 * DEPS + 512) + 4_096 <= PAYLOAD, "the proof of a fork must fit an entry");
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
pub const STAGED_BYTES: usize = 2 * 1024 * 1024;
/// The bytes of entries put into one frame, about: so that several frames share the credit and none waits for another.
pub const FRAME_BYTES: usize = CREDIT / 4;
/// The chains, or the single entries, that one pull may ask for.
pub const PULL_ITEMS: usize = 1_024;
/// The authors that a message names at most. A store with more is reconciled by ranges.
pub const TIPS: usize = 8_192;
/// Bytes of entries that wait for a missing one, at most, per store.
pub const ORPHAN_BYTES: usize = 32 * 1024 * 1024;
/// How many gossip messages one group of durable entries is spread over, at most. More is announced and pulled.
pub const PUSH_MESSAGES: usize = 8;
/// How many nodes announce the same entries that they pulled, about. So many are enough for who can't reach the author, and each
/// announcement goes to every node.
pub const ANNOUNCERS: u32 = 3;
/// How far apart the announcements of different nodes are, about: one that comes first is heard by the others before their turn.
pub const ANNOUNCE_APART: Duration = Duration::from_millis(20);
/// Gossip messages that wait to be included, at most, per store. What comes above is dropped, and reconciled later.
pub const PUSHED_WAITING: usize = 256;
/// Entries and messages that fail validation before a peer is disconnected.
pub const FAULTS: u32 = 64;
/// How long a peer that was disconnected for its faults stays so.
pub const FAULTS_AGE: Duration = Duration::from_secs(10 * 60);
/// How often a connection is probed.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a probed peer may stay silent, at least: four round trips if that is more.
pub const SILENCE: Duration = Duration::from_secs(2);
/// The same while its round-trip time is not known, or much is on its way to it, which the probe waits behind.
pub const SILENCE_BUSY: Duration = Duration::from_secs(15);
/// How often each peer is asked what it has, about.
pub const RECONCILE: Duration = Duration::from_secs(30);
/// How soon a peer is asked after there was something new to agree on.
pub const RECONCILE_SOON: Duration = Duration::from_secs(2);
/// How long a pull may stand still before another peer is asked.
pub const PULL_STALLED: Duration = Duration::from_secs(5);
/// Bytes of entries of one author that don't count and are kept aside, at most, per store.
pub const ASIDE_BYTES: u64 = 32 * 1024 * 1024;
/// How long the first writers after a start wait, at most, for a member to tell how far this node's own chain goes.
pub const OWN_TOLD: Duration = Duration::from_secs(2);
/// How long a writer waits, at most, for entries of this node itself that a member has and is sending.
pub const OWN_COMING: Duration = Duration::from_secs(5);
/// How long after an entry was found missing its finders ask again.
pub const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The ranges in one round of a comparison, at most: each costs its receiver a look into the store.
pub const ROUND_RANGES: usize = 65_536;
/// The rounds of a comparison, at most. It ends with what it has found by then.
pub const ROUNDS: u32 = 128;
/// The differences that a comparison gathers, about, before it ends; and the entries that one peer may name for this node to fetch
/// from it, at most, per store.
pub const FOUND: usize = 65_536;

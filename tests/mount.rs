//! The mount, through the kernel: what programs do to files, and what becomes of it in the store.
//!
//! Needs /dev/fuse and the right to mount. Each test has a mount, a store and a second machine of its own.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]
#![allow(missing_docs, reason = "a program, not a library")]

#[path = "mount/alive.rs"]
mod alive;
#[path = "mount/attributes.rs"]
mod attributes;
#[path = "mount/calls.rs"]
mod calls;
#[path = "mount/chat.rs"]
mod chat;
#[path = "mount/conflicts.rs"]
mod conflicts;
#[path = "mount/edges.rs"]
mod edges;
#[path = "mount/files.rs"]
mod files;
#[path = "mount/past.rs"]
mod past;
#[path = "mount/programs.rs"]
mod programs;
#[path = "mount/remote.rs"]
mod remote;
#[path = "mount/saves.rs"]
mod saves;
#[path = "mount/session.rs"]
mod session;
#[path = "mount/stories.rs"]
mod stories;
#[path = "mount/tools.rs"]
mod tools;
#[path = "mount/tx.rs"]
mod tx;
#[path = "mount/watch.rs"]
mod watch;
#[path = "mount/world.rs"]
mod world;

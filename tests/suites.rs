//! The mount under test suites made for file systems, and beside a local disk: random calls on both, equal answers.
//!
//! Needs /dev/fuse and root. The suites are installed from the registry into the target directory, once.
#![allow(clippy::disallowed_methods, reason = "tests wait on the real clock")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]
#![allow(missing_docs, reason = "a program, not a library")]

#[path = "suites/differential.rs"]
mod differential;
#[path = "suites/fsx.rs"]
mod fsx;
#[path = "suites/posix.rs"]
mod posix;
#[path = "suites/tool.rs"]
mod tool;
#[path = "mount/world.rs"]
#[allow(dead_code, reason = "these tests use a part of it")]
mod world;

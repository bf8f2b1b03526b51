//! The control service: gRPC on a Unix socket, and its client.
//!
//! [`serve`] answers for a [`Host`], which the daemon is. `lattice` speaks to it through [`Client`] alone.

mod chat;
mod client;
pub mod failure;
pub mod host;
mod kv;
mod mesh;
mod node;
mod past;
mod prove;
mod server;
mod stores;
mod tx;

pub use client::Client;
pub use failure::{Failure, Kind};
pub use host::{About, Host, InMesh, Leftover, Progress, Rekeyed};
pub use server::{bind, serve};

/// The messages, clients and servers made from `proto/lattice.proto`, which says what they mean.
#[allow(
    missing_docs,
    unreachable_pub,
    let_underscore_drop,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated; the documentation is in the proto file"
)]
#[rustfmt::skip]
pub mod wire {
    tonic::include_proto!("lattice.v1");
}

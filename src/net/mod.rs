//! Links between nodes: frames and gossip with the members, and the way in for those who have an invite.
//!
//! [`link`] is what the rest of the house speaks to; [`iroh`] is the real network behind it.

pub mod iroh;
pub mod join;
pub mod link;
pub mod ticket;

//! The token that lets a node join: one line of text that a person can copy.
//!
//! Form, version 1: `lattice` followed by lower-case base32 (RFC 4648, no padding) of
//!
//! ```text
//! version (u8) · mesh (32) · secret (32) · hosts (u8 count) · relays (u8 count) · checksum (4)
//! host     node (32) · addresses (u8 count), each 4 · IPv4 (4) · port (u16)  or  6 · IPv6 (16) · port (u16)
//! relay    length (u8) · URL
//! ```
//!
//! The checksum is the start of BLAKE3 over `"lattice/ticket/1\0"` and all bytes before it: it tells a typing
//! mistake from an invite that is expired or used up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use bytes::BufMut;
use data_encoding::BASE32_NOPAD;
use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};

use crate::ids::{MeshId, NodeId};

const PREFIX: &str = "lattice";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"lattice/ticket/1\0";
const JOIN_CONTEXT: &[u8] = b"lattice/join/1\0";
const CHECKSUM: usize = 4;

/// The most hosts that a token names.
pub const HOSTS: usize = 4;
/// The most addresses that a token holds for one host.
pub const ADDRESSES: usize = 8;
/// The most relays that a token names.
pub const RELAYS: usize = 3;

/// Text that is no usable token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It doesn't look like a token at all.
    #[error("this is not a join token: a token is one line that begins with '{PREFIX}'")]
    NotATicket,
    /// It looks like one and is damaged.
    #[error("the token is mistyped or cut short: its checksum does not match")]
    Typo,
    /// It was made by a newer build.
    #[error("the token has form {0}, which this build does not know")]
    Version(u8),
}

/// What an invite gives to the one who is invited: an Ed25519 seed. It never travels; what travels is a proof that one has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new secret, random.
    #[must_use]
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// The secret of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key that stands for the invite.
    #[must_use]
    pub fn invite(&self) -> [u8; 32] {
        SigningKey::from_bytes(&self.0).verifying_key().to_bytes()
    }

    /// A proof for `joiner`, of no use to anyone else or in another mesh, that its maker holds the secret.
    #[must_use]
    pub fn prove(&self, mesh: &MeshId, joiner: &NodeId) -> [u8; 64] {
        SigningKey::from_bytes(&self.0).sign(&proof_message(mesh, joiner)).to_bytes()
    }
}

/// What is signed with an invite's secret to join: `"lattice/join/1\0" ‖ mesh id ‖ joiner's id`.
#[must_use]
pub fn proof_message(mesh: &MeshId, joiner: &NodeId) -> Vec<u8> {
    [JOIN_CONTEXT, mesh.as_bytes(), joiner.as_bytes()].concat()
}

/// A node that can be asked, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The node.
    pub node: NodeId,
    /// Where it can be reached, most likely first.
    pub addresses: Vec<SocketAddr>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The mesh, and with it the hash of the first entry of its history.
    pub mesh: MeshId,
    /// The invite's secret.
    pub secret: Secret,
    /// Who can let the joiner in: the inviter first, then other members. Beyond [`HOSTS`] and [`ADDRESSES`] the rest is left out of the text.
    pub hosts: Vec<Contact>,
    /// URLs of relays through which the hosts can be reached. Beyond [`RELAYS`] the rest is left out of the text.
    pub relays: Vec<String>,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.encode();
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        let text = text.to_ascii_lowercase();
        let body = text.strip_prefix(PREFIX).ok_or(TicketError::NotATicket)?;
        let bytes =
            BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_no_base32| TicketError::Typo)?;
        let split = bytes.len().checked_sub(CHECKSUM).ok_or(TicketError::Typo)?;
        let (content, sum) = bytes.split_at(split);
        if checksum(content) != sum {
            return Err(TicketError::Typo);
        }
        Self::decode(content)
    }
}

impl Ticket {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_slice(self.mesh.as_bytes());
        out.put_slice(&self.secret.0);
        let hosts = &self.hosts[..self.hosts.len().min(HOSTS)];
        out.put_u8(count(hosts.len()));
        for host in hosts {
            out.put_slice(host.node.as_bytes());
            let addresses = &host.addresses[..host.addresses.len().min(ADDRESSES)];
            out.put_u8(count(addresses.len()));
            for address in addresses {
                match address.ip() {
                    IpAddr::V4(ip) => {
                        out.put_u8(4);
                        out.put_slice(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        out.put_u8(6);
                        out.put_slice(&ip.octets());
                    }
                }
                out.put_u16(address.port());
            }
        }
        let relays: Vec<_> = self.relays.iter().filter(|relay| relay.len() <= 255).take(RELAYS).collect();
        out.put_u8(count(relays.len()));
        for relay in relays {
            out.put_u8(count(relay.len()));
            out.put_slice(relay.as_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let (&version, mut rest) = bytes.split_first().ok_or(TicketError::Typo)?;
        if version != VERSION {
            return Err(TicketError::Version(version));
        }
        let ticket = Self::decode_fields(&mut rest).filter(|_| rest.is_empty());
        ticket.ok_or(TicketError::Typo)
    }

    fn decode_fields(rest: &mut &[u8]) -> Option<Self> {
        let mesh = MeshId(take(rest)?);
        let secret = Secret(take(rest)?);
        let mut hosts = Vec::new();
        for _ in 0..byte(rest)? {
            let node = NodeId(take(rest)?);
            let mut addresses = Vec::new();
            for _ in 0..byte(rest)? {
                let ip = match byte(rest)? {
                    4 => IpAddr::V4(Ipv4Addr::from(take::<4>(rest)?)),
                    6 => IpAddr::V6(Ipv6Addr::from(take::<16>(rest)?)),
                    _ => return None,
                };
                addresses.push(SocketAddr::new(ip, u16::from_be_bytes(take(rest)?)));
            }
            hosts.push(Contact { node, addresses });
        }
        let mut relays = Vec::new();
        for _ in 0..byte(rest)? {
            let length = usize::from(byte(rest)?);
            let (relay, tail) = rest.split_at_checked(length)?;
            *rest = tail;
            relays.push(std::str::from_utf8(relay).ok()?.to_owned());
        }
        Some(Self { mesh, secret, hosts, relays })
    }
}

fn count(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CONTEXT).update(content);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    sum
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    take::<1>(rest).map(|[byte]| byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Ticket {
        Ticket {
            mesh: MeshId([1; 32]),
            secret: Secret::from_bytes([2; 32]),
            hosts: vec![
                Contact {
                    node: NodeId([3; 32]),
                    addresses: vec!["10.0.0.1:7001".parse().unwrap(), "[fe80::1]:7002".parse().unwrap()],
                },
                Contact { node: NodeId([4; 32]), addresses: vec![] },
            ],
            relays: vec!["https://relay.example/".to_owned()],
        }
    }

    #[test]
    fn a_token_reads_back_from_its_text_also_when_it_was_wrapped_or_shouted() {
        let text = sample().to_string();
        assert!(!text.contains(char::is_whitespace));
        assert_eq!(text.parse::<Ticket>().unwrap(), sample());
        let (left, right) = text.split_at(70);
        assert_eq!(format!("  {left}\n{}\n", right.to_uppercase()).parse::<Ticket>().unwrap(), sample());
    }

    #[test]
    fn the_text_of_version_1_is_frozen() {
        assert_eq!(
            blake3::hash(sample().to_string().as_bytes()).to_hex().as_str(),
            include_str!("../../tests/frozen/ticket-v1.blake3").trim(),
            "tokens that are about would no longer be read: that needs a new version"
        );
    }

    #[test]
    fn every_single_wrong_or_missing_letter_is_told_as_a_typing_mistake() {
        let text = sample().to_string();
        for at in PREFIX.len()..text.len() {
            let wrong = if &text[at..=at] == "a" { "b" } else { "a" };
            let mistyped = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
            assert_eq!(mistyped.parse::<Ticket>(), Err(TicketError::Typo), "letter {at}");
            assert_eq!(text[..at].parse::<Ticket>(), Err(TicketError::Typo), "cut at {at}");
        }
    }

    #[test]
    fn other_text_and_newer_forms_are_told_apart_from_typing_mistakes() {
        assert_eq!("hello".parse::<Ticket>(), Err(TicketError::NotATicket));
        let mut bytes = sample().encode();
        bytes[0] = 9;
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let newer = format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase());
        assert_eq!(newer.parse::<Ticket>(), Err(TicketError::Version(9)));
    }

    #[test]
    fn a_proof_is_good_for_one_joiner_in_one_mesh_only() {
        let secret = Secret::from_bytes([5; 32]);
        let proof = ed25519_dalek::Signature::from_bytes(&secret.prove(&MeshId([1; 32]), &NodeId([2; 32])));
        let key = ed25519_dalek::VerifyingKey::from_bytes(&secret.invite()).unwrap();
        let good = |mesh, node| key.verify_strict(&proof_message(&MeshId(mesh), &NodeId(node)), &proof).is_ok();
        assert!(good([1; 32], [2; 32]));
        assert!(!good([1; 32], [3; 32]));
        assert!(!good([9; 32], [2; 32]));
    }
}

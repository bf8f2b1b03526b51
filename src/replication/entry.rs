//! The entry: one signed, hash-chained record. The only thing that is replicated.
//!
//! Wire and disk form, version 1, all integers big-endian:
//!
//! ```text
//! entry    header length (u16) · header · signature (64) · payload
//! header   version (u8) · store (32) · author (32) · seq (u64) · prev (32, zero iff seq = 0)
//!          · hlc (u64) · payload length (u32) · payload hash (32) · deps count (u16) · deps (32 each)
//! ```
//!
//! The hash of an entry is BLAKE3 of its header bytes. The signature is Ed25519 over
//! `"lattice/entry/1\0" ‖ hash`: the prefix keeps it apart from everything else this key signs.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};

use super::database::Late;
use super::limits;
use crate::clock::Hlc;
use crate::ids::{Hash, NodeId, StoreId};

/// The version of the entry's form that this build writes.
pub const VERSION: u8 = 1;

const CONTEXT: &[u8; 16] = b"lattice/entry/1\0";
const SIGNATURE: usize = 64;
const FIXED: usize = 1 + 32 + 32 + 8 + 32 + 8 + 4 + 32 + 2;

/// Bytes that are no entry. A peer's fault: the entry is dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end too early or go on too long.
    #[error("an entry of {got} bytes where its header says {want}")]
    Length {
        /// What the header says.
        want: usize,
        /// What came.
        got: usize,
    },
    /// A version that this build does not know.
    #[error("entry version {0} is not known to this build")]
    Version(u8),
    /// A payload or a list of deps beyond its limit.
    #[error("the entry's {what} is {size}, the limit is {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A part that has only one right form has another.
    #[error("the entry's {0} is not in its one right form")]
    NotCanonical(&'static str),
    /// The payload is not the one that was signed.
    #[error("the entry's payload does not match its signed hash")]
    PayloadHash,
}

/// What an author signs about an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The store that the entry belongs to.
    pub store: StoreId,
    /// Who signed it.
    pub author: NodeId,
    /// Its number among the author's entries in this store, from 0.
    pub seq: u64,
    /// The author's entry before it; `None` iff `seq` is 0.
    pub prev: Option<Hash>,
    /// The store's frontier as the author had it, without `prev`; ascending, no doubles.
    pub deps: Vec<Hash>,
    /// The stamp: greater than that of `prev` and of every dep.
    pub hlc: Hlc,
    /// The payload's length in bytes.
    pub payload_len: u32,
    /// BLAKE3 of the payload.
    pub payload_hash: Hash,
}

impl Header {
    fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(FIXED + self.deps.len() * 32);
        out.put_u8(VERSION);
        out.put_slice(&self.store.0);
        out.put_slice(&self.author.0);
        out.put_u64(self.seq);
        out.put_slice(&self.prev.map_or([0; 32], |hash| hash.0));
        out.put_u64(self.hlc.0);
        out.put_u32(self.payload_len);
        out.put_slice(&self.payload_hash.0);
        #[allow(clippy::cast_possible_truncation, reason = "at most limits::DEPS, checked by the callers")]
        out.put_u16(self.deps.len() as u16);
        for dep in &self.deps {
            out.put_slice(&dep.0);
        }
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let short = Malformed::Length { want: FIXED, got: bytes.len() };
        let mut rest = bytes;
        let version = u8::from_be_bytes(take(&mut rest).ok_or_else(|| short.clone())?);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let store = StoreId(take(&mut rest).ok_or_else(|| short.clone())?);
        let author = NodeId(take(&mut rest).ok_or_else(|| short.clone())?);
        let seq = u64::from_be_bytes(take(&mut rest).ok_or_else(|| short.clone())?);
        let prev = Hash(take(&mut rest).ok_or_else(|| short.clone())?);
        let hlc = Hlc(u64::from_be_bytes(take(&mut rest).ok_or_else(|| short.clone())?));
        let payload_len = u32::from_be_bytes(take(&mut rest).ok_or_else(|| short.clone())?);
        let payload_hash = Hash(take(&mut rest).ok_or_else(|| short.clone())?);
        let count = usize::from(u16::from_be_bytes(take(&mut rest).ok_or(short)?));
        within("payload", payload_len as usize, limits::PAYLOAD)?;
        within("deps", count, limits::DEPS)?;
        if rest.len() != count * 32 {
            return Err(Malformed::Length { want: FIXED + count * 32, got: bytes.len() });
        }
        let mut deps = Vec::with_capacity(count);
        while let Some(dep) = take(&mut rest) {
            deps.push(Hash(dep));
        }
        let prev = (prev.0 != [0; 32]).then_some(prev);
        if prev.is_some() != (seq > 0) {
            return Err(Malformed::NotCanonical("prev"));
        }
        if deps.windows(2).any(|pair| pair[0] >= pair[1]) || prev.is_some_and(|prev| deps.contains(&prev)) {
            return Err(Malformed::NotCanonical("deps"));
        }
        Ok(Self { store, author, seq, prev, deps, hlc, payload_len, payload_hash })
    }

    /// Reads a header that its signature follows: what a proof of a fork is made of. The signature is not checked.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode_signed(part: &[u8]) -> Result<Self, Malformed> {
        let length = part.len().checked_sub(SIGNATURE).ok_or(Malformed::Length { want: SIGNATURE, got: part.len() })?;
        Self::decode(&part[..length])
    }

    /// `prev` and `deps`: everything that must be included before this entry.
    pub fn parents(&self) -> impl Iterator<Item = Hash> + '_ {
        self.prev.into_iter().chain(self.deps.iter().copied())
    }
}

fn within(what: &'static str, size: usize, limit: usize) -> Result<(), Malformed> {
    if size > limit { Err(Malformed::TooLarge { what, size, limit }) } else { Ok(()) }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// Two signed headers of one author: each its bytes and, after them, its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// One.
    pub one: Bytes,
    /// The other.
    pub other: Bytes,
}

impl Fork {
    /// Of two entries.
    #[must_use]
    pub fn of(one: &Entry, other: &Entry) -> Self {
        Self { one: one.signed_header(), other: other.signed_header() }
    }

    /// Whether both are signed by the authors that they name.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        super::verify::verify_headers(&[&self.one, &self.other])
    }
}

/// An entry: the bytes that were signed, kept as they are, and what they say. Cheap to clone.
///
/// One that this node makes may be signed when its bytes are first asked for, since its hash does not cover the signature:
/// nobody gets bytes without it.
#[derive(Clone)]
pub struct Entry {
    form: Form,
    header_len: usize,
    header: Arc<Header>,
    hash: Hash,
}

#[derive(Clone)]
enum Form {
    Signed(Bytes),
    Unsigned(Arc<Unsigned>),
}

/// An entry's bytes with zeros in place of the signature, which never leave here, and those with it once somebody asked.
struct Unsigned {
    bytes: Bytes,
    key: Arc<SigningKey>,
    signed: OnceLock<Bytes>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes() == other.bytes()
    }
}

impl Eq for Entry {}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} by {} seq {})", self.hash.short(), self.header.author.short(), self.header.seq)
    }
}

impl Entry {
    /// Signs `payload` under `header`, whose `author`, `payload_len` and `payload_hash` are filled in here.
    ///
    /// # Errors
    /// If the payload or the deps exceed their limits, or `prev` and `deps` are not in their one right form.
    pub fn sign(key: &SigningKey, header: Header, payload: &[u8]) -> Result<Self, Malformed> {
        let entry = Self::sign_late(&Arc::new(key.clone()), header, payload)?;
        Ok(Self { form: Form::Signed(entry.bytes().clone()), ..entry })
    }

    /// Like [`Entry::sign`], but the signature is made when the entry's bytes are first asked for, by whoever asks.
    ///
    /// # Errors
    /// As [`Entry::sign`].
    pub fn sign_late(key: &Arc<SigningKey>, mut header: Header, payload: &[u8]) -> Result<Self, Malformed> {
        within("payload", payload.len(), limits::PAYLOAD)?;
        within("deps", header.deps.len(), limits::DEPS)?;
        header.author = NodeId(key.verifying_key().to_bytes());
        header.payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        header.payload_hash = blake3::hash(payload).into();
        let encoded = header.encode();
        Header::decode(&encoded)?;
        let hash = Hash::from(blake3::hash(&encoded));
        let mut bytes = BytesMut::with_capacity(2 + encoded.len() + SIGNATURE + payload.len());
        #[allow(clippy::cast_possible_truncation, reason = "the deps limit keeps a header below 33 KiB")]
        bytes.put_u16(encoded.len() as u16);
        bytes.put_slice(&encoded);
        bytes.put_slice(&[0; SIGNATURE]);
        bytes.put_slice(payload);
        let unsigned = Unsigned { bytes: bytes.freeze(), key: Arc::clone(key), signed: OnceLock::new() };
        let form = Form::Unsigned(Arc::new(unsigned));
        Ok(Self { header_len: encoded.len(), form, header: header.into(), hash })
    }

    /// Reads an entry and checks all of it but the signature.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let entry = Self::decode_trusted(bytes)?;
        if Hash::from(blake3::hash(entry.payload())) != entry.header.payload_hash {
            return Err(Malformed::PayloadHash);
        }
        Ok(entry)
    }

    /// Reads an entry that was checked before: the payload's hash is taken as right.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode_trusted(bytes: Bytes) -> Result<Self, Malformed> {
        let got = bytes.len();
        let Some(prefix) = bytes.first_chunk::<2>() else {
            return Err(Malformed::Length { want: 2 + FIXED + SIGNATURE, got });
        };
        let header_len = usize::from(u16::from_be_bytes(*prefix));
        let Some(encoded) = bytes.get(2..2 + header_len) else {
            return Err(Malformed::Length { want: 2 + header_len + SIGNATURE, got });
        };
        let header = Header::decode(encoded)?;
        let hash = blake3::hash(encoded).into();
        let want = 2 + header_len + SIGNATURE + header.payload_len as usize;
        if got != want {
            return Err(Malformed::Length { want, got });
        }
        Ok(Self { header_len, header: header.into(), hash, form: Form::Signed(bytes) })
    }

    /// The entry's hash: its name.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// What was signed.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header's bytes as they were signed.
    #[must_use]
    pub fn header_bytes(&self) -> &[u8] {
        &self.parts()[2..2 + self.header_len]
    }

    /// The header's bytes and, after them, the signature: they prove themselves without the payload.
    #[must_use]
    pub fn signed_header(&self) -> Bytes {
        self.bytes().slice(2..2 + self.header_len + SIGNATURE)
    }

    /// The author's signature.
    #[must_use]
    pub fn signature(&self) -> [u8; SIGNATURE] {
        let mut signature = [0; SIGNATURE];
        signature.copy_from_slice(&self.bytes()[2 + self.header_len..2 + self.header_len + SIGNATURE]);
        signature
    }

    /// The payload, for the store's state machine.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.parts()[2 + self.header_len + SIGNATURE..]
    }

    /// The payload, sharing the entry's bytes.
    #[must_use]
    pub fn shared_payload(&self) -> Bytes {
        self.parts().slice(2 + self.header_len + SIGNATURE..)
    }

    /// The bytes of all but the signature, which may be zeros: not to be given away.
    fn parts(&self) -> &Bytes {
        match &self.form {
            Form::Signed(bytes) => bytes,
            Form::Unsigned(unsigned) => &unsigned.bytes,
        }
    }

    /// The whole entry as it travels and is kept. Signs it if that was not done yet.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match &self.form {
            Form::Signed(bytes) => bytes,
            Form::Unsigned(unsigned) => unsigned.signed.get_or_init(|| {
                let mut bytes = BytesMut::from(&unsigned.bytes[..]);
                let signature = unsigned.key.sign(&signed_message(&self.hash)).to_bytes();
                bytes[2 + self.header_len..2 + self.header_len + SIGNATURE].copy_from_slice(&signature);
                bytes.freeze()
            }),
        }
    }
}

impl Late for Entry {
    fn bytes(&self) -> &[u8] {
        self.bytes()
    }

    fn size(&self) -> usize {
        self.parts().len()
    }
}

/// The bytes that an author signs for an entry of this hash.
#[must_use]
pub fn signed_message(hash: &Hash) -> [u8; 48] {
    let mut message = [0; 48];
    message[..16].copy_from_slice(CONTEXT);
    message[16..].copy_from_slice(&hash.0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn header(seq: u64, prev: Option<Hash>, deps: Vec<Hash>) -> Header {
        Header {
            store: StoreId([1; 32]),
            author: NodeId([0; 32]),
            seq,
            prev,
            deps,
            hlc: Hlc::at(crate::clock::Millis(1_700_000_000_000)),
            payload_len: 0,
            payload_hash: Hash([0; 32]),
        }
    }

    fn sample() -> Entry {
        Entry::sign(&key(), header(1, Some(Hash([2; 32])), vec![Hash([3; 32]), Hash([4; 32])]), b"payload").unwrap()
    }

    #[test]
    fn an_entry_reads_back_as_it_was_signed() {
        let entry = sample();
        assert_eq!(Entry::decode(entry.bytes().clone()).unwrap(), entry);
        assert_eq!(entry.payload(), b"payload");
    }

    #[test]
    fn an_entry_signed_late_never_shows_bytes_without_its_signature() {
        let late = || {
            let header = header(1, Some(Hash([2; 32])), vec![Hash([3; 32]), Hash([4; 32])]);
            Entry::sign_late(&Arc::new(key()), header, b"payload").unwrap()
        };
        assert_eq!((late().hash(), late().payload()), (sample().hash(), sample().payload()));
        assert_eq!(late().shared_payload(), sample().payload());
        assert_eq!(late().bytes(), sample().bytes());
        assert_eq!(Late::bytes(&late()), &sample().bytes()[..]);
        assert_eq!(late().signature(), sample().signature());
        assert_eq!(late().signed_header(), sample().signed_header());
        assert_eq!(late(), sample());
    }

    #[test]
    fn the_bytes_of_version_1_are_frozen() {
        let entry = sample();
        assert_eq!(
            blake3::hash(entry.bytes()).to_hex().as_str(),
            include_str!("../../tests/frozen/entry-v1.blake3").trim(),
            "the wire form changed: that needs a new version"
        );
        let text = data_encoding::HEXLOWER.encode(entry.header_bytes());
        assert_eq!(text, include_str!("../../tests/frozen/entry-header-v1.hex").trim());
    }

    #[test]
    fn a_changed_bit_anywhere_is_another_entry_or_none() {
        let entry = sample();
        for position in 0..entry.bytes().len() {
            let mut bytes = entry.bytes().to_vec();
            bytes[position] ^= 1;
            if let Ok(changed) = Entry::decode(bytes.into()) {
                assert!(
                    changed.hash() != entry.hash() || changed.signature() != entry.signature(),
                    "byte {position} is neither hashed nor signed"
                );
            }
        }
    }

    #[test]
    fn limits_and_canonical_form_hold_before_signing() {
        let large = vec![0; limits::PAYLOAD + 1];
        assert!(matches!(
            Entry::sign(&key(), header(0, None, vec![]), &large),
            Err(Malformed::TooLarge { what: "payload", .. })
        ));
        let many = (0..=limits::DEPS).map(|n| Hash(blake3::hash(&n.to_be_bytes()).into())).collect();
        assert!(matches!(
            Entry::sign(&key(), header(0, None, many), b""),
            Err(Malformed::TooLarge { what: "deps", .. })
        ));
        let unsorted = header(0, None, vec![Hash([4; 32]), Hash([3; 32])]);
        assert_eq!(Entry::sign(&key(), unsorted, b""), Err(Malformed::NotCanonical("deps")));
        assert_eq!(Entry::sign(&key(), header(1, None, vec![]), b""), Err(Malformed::NotCanonical("prev")));
    }
}

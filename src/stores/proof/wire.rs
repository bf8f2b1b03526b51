//! The form of a proof, version 1. Integers are big-endian.
//!
//! ```text
//! proof  "lattice proof\n" · version (u8) = 1 · write (u16, all ones: the whole entry) · entry length (u32) · entry
//!        · headers count (u32) · (length (u16) · header)* · root entries count (u32) · (length (u32) · entry)*
//!        · BLAKE3 of all before (32)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{LARGEST, Proof, Refused};
use crate::replication::entry::{Entry, Header};

const MAGIC: &[u8; 14] = b"lattice proof\n";
const VERSION: u8 = 1;
const WHOLE: u16 = u16::MAX;
const CHECKSUM: usize = 32;

impl Proof {
    /// The file.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "an entry and a header have limits; what has more of them is too large"
    )]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_u16(self.write.unwrap_or(WHOLE));
        let put = |out: &mut BytesMut, entry: &Entry| {
            out.put_u32(entry.bytes().len() as u32);
            out.put_slice(entry.bytes());
        };
        put(&mut out, &self.entry);
        out.put_u32(self.headers.len() as u32);
        for header in &self.headers {
            out.put_u16(header.len() as u16);
            out.put_slice(header);
        }
        out.put_u32(self.root.len() as u32);
        for entry in &self.root {
            put(&mut out, entry);
        }
        let checksum = blake3::hash(&out);
        out.put_slice(checksum.as_bytes());
        out.freeze()
    }

    /// Reads a file, and checks its form; not yet what it says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(file: Bytes) -> Result<Self, Refused> {
        if file.len() > LARGEST {
            return Err(Refused::TooLarge);
        }
        let mut rest = file.clone();
        if take(&mut rest, MAGIC.len()).is_none_or(|magic| magic[..] != MAGIC[..]) {
            return Err(Refused::Other);
        }
        let version = rest.try_get_u8().map_err(|_short| Refused::Damaged)?;
        if version != VERSION {
            return Err(Refused::Version(version));
        }
        let end = rest.len().checked_sub(CHECKSUM).ok_or(Refused::Damaged)?;
        let checksum = rest.split_off(end);
        if blake3::hash(&file[..file.len() - CHECKSUM]) != checksum[..] {
            return Err(Refused::Damaged);
        }
        let write = rest.try_get_u16().map_err(|_short| Refused::Form("number of a write"))?;
        let entry = entry(&mut rest, "entry")?;
        // A count says nothing of what is there: room is made as it comes.
        let mut headers = Vec::new();
        for _ in 0..count(&mut rest, "list of headers")? {
            let length = rest.try_get_u16().map_err(|_short| Refused::Form("list of headers"))?;
            let header = take(&mut rest, length.into()).ok_or(Refused::Form("list of headers"))?;
            Header::decode(&header).map_err(|error| Refused::Malformed("list of headers", error))?;
            headers.push(header);
        }
        let mut root = Vec::new();
        for _ in 0..count(&mut rest, "root store")? {
            root.push(self::entry(&mut rest, "root store")?);
        }
        if !rest.is_empty() {
            return Err(Refused::Form("end"));
        }
        Ok(Self { write: Some(write).filter(|write| *write != WHOLE), entry, headers, root })
    }
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (rest.len() >= length).then(|| rest.split_to(length))
}

fn count(rest: &mut Bytes, what: &'static str) -> Result<u32, Refused> {
    rest.try_get_u32().map_err(|_short| Refused::Form(what))
}

fn entry(rest: &mut Bytes, what: &'static str) -> Result<Entry, Refused> {
    let length = count(rest, what)?;
    let length = usize::try_from(length).map_err(|_large| Refused::Form(what))?;
    let bytes = take(rest, length).ok_or(Refused::Form(what))?;
    Entry::decode(bytes).map_err(|error| Refused::Malformed(what, error))
}

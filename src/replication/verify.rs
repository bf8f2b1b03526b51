//! Signatures, by the ZIP-215 rules: the only ones under which a signature checked alone and one checked in a
//! batch always get the same answer, on every node. Under other rules a hostile author could split the mesh.

use ed25519_zebra::{Signature, VerificationKeyBytes, batch};

use super::entry::{Entry, signed_message};

const BATCH: usize = 256;
const PARALLEL: usize = 128;

fn item(entry: &Entry) -> batch::Item {
    let key = VerificationKeyBytes::from(entry.header().author.0);
    batch::Item::from((key, Signature::from_bytes(&entry.signature()), &signed_message(&entry.hash())))
}

fn verify_chunk(entries: &[Entry]) -> Vec<bool> {
    let mut verdicts = Vec::with_capacity(entries.len());
    for chunk in entries.chunks(BATCH) {
        let mut verifier = batch::Verifier::new();
        for entry in chunk {
            verifier.queue(item(entry));
        }
        if verifier.verify(rand::rng()).is_ok() {
            verdicts.extend(chunk.iter().map(|_| true));
        } else {
            verdicts.extend(chunk.iter().map(|entry| item(entry).verify_single().is_ok()));
        }
    }
    verdicts
}

/// Whether each entry's signature is its author's. Large batches use two threads.
#[must_use]
pub fn verify(entries: &[Entry]) -> Vec<bool> {
    if entries.len() < PARALLEL {
        return verify_chunk(entries);
    }
    let (left, right) = entries.split_at(entries.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| verify_chunk(right));
        let mut verdicts = verify_chunk(left);
        match other.join() {
            Ok(more) => verdicts.extend(more),
            // A thread that died has verified nothing: its half is refused.
            Err(_) => verdicts.extend(right.iter().map(|_| false)),
        }
        verdicts
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Hlc;
    use crate::ids::{Hash, NodeId, StoreId};
    use crate::replication::entry::Header;

    fn entry(n: u64) -> Entry {
        let header = Header {
            store: StoreId([1; 32]),
            author: NodeId([0; 32]),
            seq: 0,
            prev: None,
            deps: vec![],
            hlc: Hlc(n),
            payload_len: 0,
            payload_hash: Hash([0; 32]),
        };
        Entry::sign(&ed25519_dalek::SigningKey::from_bytes(&[3; 32]), header, b"x").unwrap()
    }

    fn forged(entry: &Entry) -> Entry {
        let mut bytes = entry.bytes().to_vec();
        let signature = 2 + entry.header_bytes().len();
        bytes[signature] ^= 1;
        Entry::decode(bytes.into()).unwrap()
    }

    #[test]
    fn one_forged_signature_is_found_among_many_good_ones() {
        let mut entries: Vec<_> = (0..300).map(entry).collect();
        entries[217] = forged(&entries[217]);
        let verdicts = verify(&entries);
        let bad: Vec<_> = (0..300).filter(|n| !verdicts[*n]).collect();
        assert_eq!(bad, [217]);
    }
}

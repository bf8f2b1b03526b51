//! Signatures, by the ZIP-215 rules: the only ones under which a signature checked alone and one checked in a
//! batch always get the same answer, on every node. Under other rules a hostile author could split the mesh.

use ed25519_zebra::{Signature, VerificationKeyBytes, batch};

use super::entry::{Entry, Header, signed_message};

const BATCH: usize = 256;
const PARALLEL: usize = 128;

fn item(entry: &Entry) -> batch::Item {
    let key = VerificationKeyBytes::from(entry.header().author.0);
    batch::Item::from((key, Signature::from_bytes(&entry.signature()), &signed_message(&entry.hash())))
}

/// Whether each of these headers, which its signature follows, is signed by the author that it names.
#[must_use]
pub fn verify_headers(parts: &[&[u8]]) -> bool {
    parts.iter().all(|part| {
        let (Ok(header), Some((bytes, signature))) = (Header::decode_signed(part), part.split_last_chunk::<64>())
        else {
            return false;
        };
        let message = signed_message(&blake3::hash(bytes).into());
        let key = VerificationKeyBytes::from(header.author.0);
        batch::Item::from((key, Signature::from_bytes(signature), &message)).verify_single().is_ok()
    })
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

    /// Points of order 1, 2, 4 and 8, as keys and as nonces, some in both of their encodings.
    const SMALL_ORDER: [&str; 8] = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    ];

    fn crafted(author: &[u8], nonce: &[u8], scalar: u8) -> Entry {
        let good = entry(1);
        let mut bytes = good.bytes().to_vec();
        bytes[2 + 33..2 + 65].copy_from_slice(author);
        let signature = 2 + good.header_bytes().len();
        bytes[signature..signature + 32].copy_from_slice(nonce);
        bytes[signature + 32..signature + 64].fill(0);
        bytes[signature + 32] = scalar;
        Entry::decode(bytes.into()).unwrap()
    }

    #[test]
    fn alone_and_in_any_batch_a_crafted_signature_gets_the_same_answer() {
        let mut entries = Vec::new();
        for author in SMALL_ORDER {
            for nonce in SMALL_ORDER {
                for scalar in [0, 1] {
                    let decode = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
                    entries.push(crafted(&decode(author), &decode(nonce), scalar));
                }
            }
        }
        let alone: Vec<bool> = entries.iter().map(|entry| verify(std::slice::from_ref(entry))[0]).collect();
        // With a zero scalar both sides of the cofactored equation are the identity; with one they are not.
        assert!(alone.chunks(2).all(|pair| pair[0] && !pair[1]), "{alone:?}");
        let valid: Vec<_> = entries.iter().step_by(2).cloned().collect();
        for size in [2, 7, 64] {
            for batch in valid.chunks(size) {
                assert!(verify(batch).iter().all(|valid| *valid), "a batch of {size}");
            }
            for (batch, alone) in entries.chunks(size).zip(alone.chunks(size)) {
                assert_eq!(verify(batch), alone, "a batch of {size}");
            }
        }
    }
}

//! Names of things: 32-byte identities, each with a type of its own so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that is no identity: not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id: 64 hexadecimal digits are needed")]
pub struct NotAnId(pub String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 32]);

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl $name {
            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight hexadecimal digits, for people. Not unique.
            #[must_use]
            pub fn short(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0[..4])
            }

            /// From a slice; `None` unless it holds 32 bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                data_encoding::HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| Self::from_slice(&bytes))
                    .ok_or_else(|| NotAnId(text.to_owned()))
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }
        }
    };
}

id! {
    /// The BLAKE3 hash of an entry's header (or, where so named, of other bytes).
    Hash
}
id! {
    /// A node: its Ed25519 public key, which is also its network identity and the author of its entries.
    NodeId
}
id! {
    /// A store. The root store's id is the mesh's id; another's comes from its declaration.
    StoreId
}

impl StoreId {
    /// What genesis carries as its store, since the root store's id is genesis's own hash.
    pub const UNBORN: Self = Self([0; 32]);
}

id! {
    /// A mesh: the hash of the first entry (genesis) of its root store.
    MeshId
}

impl MeshId {
    /// The id of the mesh's root store.
    #[must_use]
    pub const fn root(&self) -> StoreId {
        StoreId(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = NodeId([0xab; 32]);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!(id.short(), "abababab");
    }

    #[test]
    fn a_short_or_foreign_text_is_no_id() {
        assert!("abab".parse::<Hash>().is_err());
        assert!("z".repeat(64).parse::<Hash>().is_err());
    }
}

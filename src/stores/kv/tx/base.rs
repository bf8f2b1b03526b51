//! What a transaction builds upon: the store as it was when the transaction began.
//!
//! On the disk it is a JSON object: `version` (1), `begun` (milliseconds since the Unix epoch), and `past`, of each author the number
//! of its last entry that had been seen.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::ids::NodeId;
use crate::replication::log::Past;
use crate::stores::kv::past::Moment;

const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Form {
    version: u32,
    begun: u64,
    past: BTreeMap<String, u64>,
}

/// The base of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) begun: Millis,
    pub(super) past: Arc<Past>,
}

impl Base {
    /// The store as it was.
    pub(super) fn moment(&self) -> Moment {
        Moment::of(Arc::clone(&self.past))
    }

    fn encode(&self) -> Vec<u8> {
        let past = self.past.iter().map(|(author, seq)| (author.to_string(), seq)).collect();
        let form = Form { version: VERSION, begun: self.begun.0, past };
        // Numbers and strings always have a form.
        serde_json::to_vec(&form).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> std::io::Result<Self> {
        let form: Form = serde_json::from_slice(bytes)?;
        if form.version != VERSION {
            return Err(std::io::Error::other(format!("it has the form {}: use a newer lattice", form.version)));
        }
        let place = |(author, seq): (String, u64)| author.parse::<NodeId>().map(|author| (author, seq));
        let past = form.past.into_iter().map(place).collect::<Result<Past, _>>().map_err(std::io::Error::other)?;
        Ok(Self { begun: Millis(form.begun), past: Arc::new(past) })
    }

    /// Writes it down, durably.
    pub(super) fn write(&self, to: &Path) -> std::io::Result<()> {
        let mut file = File::create(to)?;
        file.write_all(&self.encode())?;
        file.sync_all()
    }

    pub(super) fn read(from: &Path) -> std::io::Result<Self> {
        Self::decode(&std::fs::read(from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_version_1_is_frozen() {
        let past = [(NodeId([0xab; 32]), 7), (NodeId([1; 32]), 0)].into_iter().collect();
        let base = Base { begun: Millis(1_700_000_000_123), past: Arc::new(past) };
        let frozen = include_str!("../../../../tests/frozen/tx-base-v1.json").trim();
        assert_eq!(String::from_utf8(base.encode()).unwrap(), frozen);
        assert_eq!(Base::decode(frozen.as_bytes()).unwrap(), base);
        let newer = frozen.replace("\"version\":1", "\"version\":2");
        assert!(Base::decode(newer.as_bytes()).unwrap_err().to_string().contains("newer"));
    }
}

//! Entries in the order in which they came here: by their local numbers.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::head::NEXT;
use super::indexes::number;
use super::{ENTRIES, HASHES, Log, META};
use crate::ids::Hash;
use crate::replication::database::{Flow, Read, Result, View};
use crate::replication::entry::Entry;

impl Log {
    /// How many numbers were given to entries so far. An entry that counts no more leaves a gap.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn numbers(&self, view: &View<'_>) -> Result<u64> {
        let row = view.get(META, NEXT)?;
        row.map_or(Ok(0), |row| number(&row).ok_or_else(|| view.damaged("its counters do not read back")))
    }

    /// The entries whose numbers lie from `from` up to and without `until`, by number.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn numbered(&self, view: &View<'_>, from: u64, until: u64) -> Result<BTreeMap<u64, Entry>> {
        let (start, end) = (from.to_be_bytes(), until.to_be_bytes());
        let mut rows = Vec::new();
        view.scan(ENTRIES, (Bound::Included(&start), Bound::Excluded(&end)), false, &mut |key, bytes| {
            rows.extend(number(key).map(|number| (number, bytes.to_vec())));
            Flow::Continue(())
        })?;
        let decoded = |(number, bytes): (u64, Vec<u8>)| {
            let entry = Entry::decode(bytes.into());
            entry
                .map(|entry| (number, entry))
                .map_err(|error| self.damaged(&format!("an entry does not read back: {error}")))
        };
        rows.into_iter().map(decoded).collect()
    }

    /// The number of an entry.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn number_of(&self, view: &View<'_>, hash: &Hash) -> Result<Option<u64>> {
        Ok(view.get(HASHES, &hash.0[..16])?.and_then(|row| number(&row)))
    }
}

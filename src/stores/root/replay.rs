//! A root store in memory, made of its entries alone: what a proof carries.

use std::collections::BTreeSet;
use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::handle::{Root, nobody};
use super::machine::Machine;
use super::wire::{self, Op};
use crate::clock::{Manual, Millis};
use crate::ids::{Hash, MeshId, NodeId, StoreId};
use crate::replication::database::{Database, DatabaseError};
use crate::replication::entry::Entry;
use crate::replication::log::{Log, Origin, Parts, Verdict, events};
use crate::replication::verify::verify;

/// What replaying entries may take to remember, at most: of each entry how far it had seen each author, and of each role
/// that was given the removals that it answers.
const REMEMBERED: usize = 1 << 18;

/// Entries replayed before what they made is put together.
const AT_ONCE: usize = 256;

/// Why entries make no root store.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// The first does not found a mesh.
    #[error("its root store does not begin with an entry that founds a mesh")]
    Genesis,
    /// Replaying them would take too much.
    #[error(
        "its root store has so many authors, roles and removals that replaying it would take too much memory: {0} notes, at most {REMEMBERED}"
    )]
    TooMuch(usize),
    /// One is not signed by its author.
    #[error("the signature of root entry {0} is not its author's")]
    Signature(Hash),
    /// One names an entry that is not there before it.
    #[error("root entry {entry} stands on entry {parent}, which is not before it")]
    Missing {
        /// Which one.
        entry: Hash,
        /// What it names.
        parent: Hash,
    },
    /// The author of one was nobody when it was written.
    #[error("root entry {entry} is by {author}, who is no member of this mesh")]
    Stranger {
        /// Which one.
        entry: Hash,
        /// Who wrote it.
        author: NodeId,
    },
    /// One has no place in the store, for this reason.
    #[error("root entry {0} has no place in this mesh: {1}")]
    Misplaced(Hash, String),
    /// The memory that they are replayed in.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Root {
    /// The entries that count and are durable, in the order in which they came here: each after all that it stands on.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn record(&self) -> Result<Vec<Entry>, DatabaseError> {
        let view = self.log().database().durable()?;
        Ok(self.log().numbered(&view, 0, self.log().numbers(&view)?)?.into_values().collect())
    }

    /// A root store in memory of these entries, each after all that it stands on: their signatures, chains and authors are
    /// checked as a node checks what comes from elsewhere, and what they do is judged by the same machine. Only that some
    /// are stamped in the future is let pass: whoever asks need not have the right time.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn replay(entries: &[Entry]) -> Result<Self, Unsound> {
        let genesis =
            entries.first().filter(|first| first.header().store == StoreId::UNBORN).ok_or(Unsound::Genesis)?;
        let store = MeshId(genesis.hash().0).root();
        let takes = remembered(entries);
        if takes > REMEMBERED {
            return Err(Unsound::TooMuch(takes));
        }
        let signed = verify(entries);
        if let Some((entry, _)) = entries.iter().zip(signed).find(|(_, signed)| !signed) {
            return Err(Unsound::Signature(entry.hash()));
        }
        let membership = nobody();
        let machine = Arc::new(Machine::new(Arc::clone(&membership)));
        let parts = Parts {
            store,
            // It signs nothing.
            key: Arc::new(SigningKey::from_bytes(&[0; 32])),
            clock: Arc::new(Manual::new(Millis(u64::MAX))),
            machine: Arc::clone(&machine) as _,
            membership,
            events: events(),
        };
        let log = Log::with(Database::passing()?, parts)?;
        for part in entries.chunks(AT_ONCE) {
            for (entry, verdict) in part.iter().zip(log.include(part, Origin::Local)?) {
                counted(entry, verdict)?;
            }
            // What was staged before is not kept beside what takes its place.
            log.database().flush()?;
        }
        let root = Self::with(Arc::new(log), machine)?;
        if root.is_founded() { Ok(root) } else { Err(Unsound::Genesis) }
    }
}

fn counted(entry: &Entry, verdict: Verdict) -> Result<(), Unsound> {
    let hash = entry.hash();
    let why = match verdict {
        Verdict::Included => return Ok(()),
        Verdict::Missing(missing) => match missing.first() {
            Some(parent) => return Err(Unsound::Missing { entry: hash, parent: *parent }),
            None => "it stands on nothing".to_owned(),
        },
        Verdict::UnknownAuthor => return Err(Unsound::Stranger { entry: hash, author: entry.header().author }),
        Verdict::Duplicate => "it is there twice".to_owned(),
        Verdict::Early(_) => "it is stamped too far ahead".to_owned(),
        Verdict::Excluded => "it does not count".to_owned(),
        Verdict::Rejected(rejected) => rejected.to_string(),
    };
    Err(Unsound::Misplaced(hash, why))
}

/// How many notes replaying takes, at most: what each entry had seen takes one an author, and each role that is given one
/// a removal.
fn remembered(entries: &[Entry]) -> usize {
    let mut authors = BTreeSet::new();
    let (mut pasts, mut given, mut removals) = (0, 0, 0);
    for entry in entries {
        authors.insert(entry.header().author);
        pasts += authors.len();
        for op in wire::decode(entry.payload()).unwrap_or_default() {
            given += usize::from(matches!(op, Op::AddMember { .. } | Op::Redeem(_) | Op::SetRole { .. }));
            removals += usize::from(matches!(op, Op::Revoke { .. } | Op::SetRole { .. } | Op::Ban { .. }));
        }
    }
    pasts.saturating_add(given.saturating_mul(removals))
}

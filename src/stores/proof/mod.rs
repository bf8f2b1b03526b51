//! A proof: a file that shows, to whoever has nothing but it and trusts a mesh's id, that an entry counts in that mesh.
//!
//! It carries the entry; the root store, whose first entry's hash is the mesh's id, as whoever made the proof has it; and, where the
//! author may no longer write, the headers from the entry to the last of the author's that counts, which name each other by
//! hash. Checking replays the root store with the machine that nodes have, and judges the entry by what comes of that.
//!
//! What it can't show is what its maker did not know, or left out: a newer version, one that was written beside it, a later removal, another
//! entry of the author for the same place.

#[cfg(test)]
mod tests;
mod wire;

use bytes::Bytes;

use super::kv::Kv;
pub use super::kv::{Content, Head, Kind};
use super::root::{Declared, MemberInfo, Root, Unsound};
use super::{describe, kv};
use crate::clock::Hlc;
use crate::ids::{Hash, MeshId, NodeId, StoreId};
use crate::replication::database::DatabaseError;
use crate::replication::entry::{Entry, Header, Malformed};
use crate::replication::log::Log;
use crate::replication::membership::Member;
use crate::replication::verify::verify;

/// The largest proof, in bytes.
pub const LARGEST: usize = 16 * 1024 * 1024;

/// Headers read at once.
const PAGE: usize = 256;

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The bytes are something else.
    #[error("it is no proof: it does not begin like one")]
    Other,
    /// A version that this build does not know.
    #[error("it is a proof of version {0}, which this build does not know")]
    Version(u8),
    /// There are too many bytes.
    #[error("it is larger than a proof may be: {LARGEST} bytes")]
    TooLarge,
    /// The bytes are not those that were written, or not all of them.
    #[error("the file is damaged or cut short: its checksum is not that of its content")]
    Damaged,
    /// A part is not in its one right form.
    #[error("its {0} is not in its one right form")]
    Form(&'static str),
    /// A part holds an entry or a header that is none.
    #[error("its {0} does not read: {1}")]
    Malformed(&'static str, Malformed),
    /// It is of another mesh.
    #[error("it is of the mesh {found}, not of {wanted}")]
    Mesh {
        /// Whose it is.
        found: MeshId,
        /// Whose it should be.
        wanted: MeshId,
    },
    /// The root store that it carries is none.
    #[error(transparent)]
    Root(#[from] Unsound),
    /// The entry is not signed by its author.
    #[error("the signature of entry {0} is not its author's")]
    Signature(Hash),
    /// The entry is of no store that the mesh declared.
    #[error("entry {entry} belongs to the store {store}, which this mesh does not have")]
    Store {
        /// The entry.
        entry: Hash,
        /// Its store.
        store: StoreId,
    },
    /// The author is no member.
    #[error("entry {entry} is by {author}, who is no member of this mesh")]
    Stranger {
        /// The entry.
        entry: Hash,
        /// Its author.
        author: NodeId,
    },
    /// The entry does not count: its author might not write it, or not any more.
    #[error("entry {entry} does not count: its author {name} {why}")]
    Excluded {
        /// The entry.
        entry: Hash,
        /// Its author's name.
        name: String,
        /// What the author is, and how far its entries count.
        why: String,
    },
    /// The headers do not lead from the entry to where they have to.
    #[error("its headers do not lead from entry {entry} to {last}, the last of its author's that counts")]
    Chain {
        /// The entry.
        entry: Hash,
        /// The end of what counts.
        last: Hash,
    },
    /// The entry does nothing, as far as this build can read it.
    #[error("entry {0} does nothing that this build can read")]
    Nothing(Hash),
    /// The entry holds no such write.
    #[error("entry {entry} has no write {write}")]
    Write {
        /// The entry.
        entry: Hash,
        /// The place in it.
        write: u16,
    },
}

/// Why no proof was made.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// It would be refused.
    #[error("the proof would not hold: {0}")]
    Refused(#[from] Refused),
    /// The store's file.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// A proof. See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The write in the entry that is meant; without one, all that it does.
    write: Option<u16>,
    entry: Entry,
    /// The headers after the entry's, up to the last of its author's that counts; none if all do.
    headers: Vec<Bytes>,
    /// The root store, each entry after all that it stands on.
    root: Vec<Entry>,
}

/// What a proof shows.
#[derive(Debug)]
pub struct Proven {
    /// The mesh. Whether it is the one that is trusted is for the reader to say.
    pub mesh: MeshId,
    /// The mesh's name.
    pub mesh_name: String,
    /// The store, as it was declared.
    pub store: Declared,
    /// Whether the mesh has deleted the store.
    pub deleted: bool,
    /// The entry's author, as the root store has it.
    pub author: MemberInfo,
    /// The entry.
    pub entry: Entry,
    /// What it wrote, or the one write that is meant; nothing in a store that has no keys.
    pub writes: Vec<Written>,
    /// What it does, in words that hold names as others wrote them; of all of it.
    pub does: Vec<String>,
    /// How many entries of the root store that rests on.
    pub root_entries: usize,
    /// The stamp of the last of them: what the mesh decided later is not known.
    pub root_until: Hlc,
}

/// A write to a key that a proof shows.
#[derive(Debug)]
pub struct Written {
    /// The key.
    pub path: Vec<u8>,
    /// What became of it.
    pub head: Head,
    /// Its content, if that is in the entry itself.
    pub bytes: Option<Bytes>,
}

impl Proof {
    /// A proof of an entry that counts in `log`, and of the write at this place in it, if one is named. What it carries is
    /// durable, and it holds: it was checked.
    ///
    /// # Errors
    /// If the stores can't be read, or what it takes is too large.
    pub fn of(root: &Root, log: &Log, entry: Entry, write: Option<u16>) -> Result<Self, Unproven> {
        root.log().database().flush()?;
        log.database().flush()?;
        let mut proof = Self { write, entry, headers: Vec::new(), root: root.record()? };
        let (replayed, _) = proof.replay(Some(root.mesh()))?;
        let header = proof.entry.header();
        if let Some(Some((last, _))) = replayed.membership().load().cut(&header.author, &header.store) {
            proof.headers = headers(log, header, last)?;
        }
        proof.judge(&replayed)?;
        if proof.encode().len() > LARGEST {
            return Err(Refused::TooLarge.into());
        }
        Ok(proof)
    }

    /// Checks it, and says what it shows. If `mesh` is given, it must be of that.
    ///
    /// # Errors
    /// What of it does not hold.
    pub fn check(&self, mesh: Option<MeshId>) -> Result<Proven, Refused> {
        let (root, until) = self.replay(mesh)?;
        let author = self.judge(&root)?;
        let store = self.entry.header().store;
        let of = |stores: Vec<Declared>| stores.into_iter().find(|declared| declared.id == store);
        let (store, deleted) = match (of(root.stores()), of(root.deleted())) {
            (Some(store), _) => (store, false),
            (None, Some(store)) => (store, true),
            (None, None) => return Err(Refused::Store { entry: self.entry.hash(), store }),
        };
        let does = describe(&store.kind, &self.entry);
        if does.is_empty() {
            return Err(Refused::Nothing(self.entry.hash()));
        }
        let writes = if store.kind == "kv" { self.writes()? } else { self.no_write()? };
        Ok(Proven {
            mesh: root.mesh(),
            mesh_name: root.name(),
            store,
            deleted,
            author,
            entry: self.entry.clone(),
            writes,
            does,
            root_entries: self.root.len(),
            root_until: until,
        })
    }

    /// The root store that it carries, and the stamp of its last entry.
    fn replay(&self, mesh: Option<MeshId>) -> Result<(Root, Hlc), Refused> {
        let found = self.root.first().map(|first| MeshId(first.hash().0));
        if let (Some(wanted), Some(found)) = (mesh, found)
            && wanted != found
        {
            return Err(Refused::Mesh { found, wanted });
        }
        let until = self.root.iter().map(|entry| entry.header().hlc).max().unwrap_or_default();
        Ok((Root::replay(&self.root)?, until))
    }

    /// The entry's author, if the entry counts as the root store has it.
    fn judge(&self, root: &Root) -> Result<MemberInfo, Refused> {
        let (entry, header) = (self.entry.hash(), self.entry.header());
        if !verify(std::slice::from_ref(&self.entry)).iter().all(|signed| *signed) {
            return Err(Refused::Signature(entry));
        }
        let mut declared = root.stores().into_iter().chain(root.deleted());
        if declared.all(|store| store.id != header.store) {
            return Err(Refused::Store { entry, store: header.store });
        }
        let stranger = || Refused::Stranger { entry, author: header.author };
        let author = root.members().into_iter().find(|member| member.id == header.author).ok_or_else(stranger)?;
        let membership = root.membership().load();
        let member = membership.members.get(&header.author).ok_or_else(stranger)?;
        let excluded = |counts: &str| Refused::Excluded {
            entry,
            name: member.name.clone(),
            why: format!("{}, and {counts}", standing(member)),
        };
        match membership.cut(&header.author, &header.store) {
            None if self.headers.is_empty() => Ok(author),
            None => Err(Refused::Form("list of headers")),
            Some(None) => Err(excluded("nothing that it wrote to this store counts")),
            Some(Some((last, _))) if header.seq > last => Err(excluded(&format!(
                "of what it wrote to this store only entries 0 to {last} count; this is {}",
                header.seq
            ))),
            Some(Some((last, tip))) if self.leads_to(last, &tip)? => Ok(author),
            Some(Some((_, last))) => Err(Refused::Chain { entry, last }),
        }
    }

    /// Whether the headers lead from the entry to that of this number and hash: each names the one before it.
    fn leads_to(&self, last: u64, tip: &Hash) -> Result<bool, Refused> {
        let first = self.entry.header();
        let (mut hash, mut seq) = (self.entry.hash(), first.seq);
        for bytes in &self.headers {
            let header = Header::decode(bytes).map_err(|error| Refused::Malformed("list of headers", error))?;
            let follows = header.prev == Some(hash) && Some(header.seq) == seq.checked_add(1);
            if !follows || (header.author, header.store) != (first.author, first.store) {
                return Ok(false);
            }
            (hash, seq) = (blake3::hash(bytes).into(), header.seq);
        }
        Ok((seq, hash) == (last, *tip))
    }

    fn writes(&self) -> Result<Vec<Written>, Refused> {
        let written = |(op, (path, version)): (u16, (Vec<u8>, kv::Version))| Written {
            path,
            head: version.head,
            bytes: Kv::bytes_in(&self.entry, op),
        };
        let all: Vec<Written> = (0..).zip(Kv::writes(&self.entry)).map(written).collect();
        if all.is_empty() {
            return Err(Refused::Nothing(self.entry.hash()));
        }
        match self.write {
            None => Ok(all),
            Some(write) => {
                let one = all.into_iter().nth(usize::from(write));
                one.map(|one| vec![one]).ok_or(Refused::Write { entry: self.entry.hash(), write })
            }
        }
    }

    fn no_write(&self) -> Result<Vec<Written>, Refused> {
        match self.write {
            None => Ok(Vec::new()),
            Some(write) => Err(Refused::Write { entry: self.entry.hash(), write }),
        }
    }
}

fn standing(member: &Member) -> String {
    match (member.forked, member.removed, member.left) {
        (true, ..) => "was removed for two entries that it signed for one place".into(),
        (_, true, _) => "was removed from the mesh".into(),
        (.., true) => format!("left the mesh, where it was a {}", member.role),
        (.., false) => format!("is a {}", member.role),
    }
}

/// The headers of an author's chain after this one, up to number `last`.
fn headers(log: &Log, first: &Header, last: u64) -> Result<Vec<Bytes>, Unproven> {
    let view = log.database().durable()?;
    let (mut found, mut size, mut next) = (Vec::new(), 0, first.seq.saturating_add(1));
    while next <= last {
        let page = log.chain(&view, &first.author, next, PAGE)?;
        if page.is_empty() {
            break;
        }
        for entry in page.into_iter().take_while(|entry| entry.header().seq <= last) {
            next = entry.header().seq + 1;
            size += entry.header_bytes().len();
            found.push(Bytes::copy_from_slice(entry.header_bytes()));
        }
        if size > LARGEST {
            return Err(Refused::TooLarge.into());
        }
    }
    Ok(found)
}

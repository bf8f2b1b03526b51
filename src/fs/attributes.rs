//! Extended attributes: who wrote what a key shows, and how far it has come. They can be read and not set.
//!
//! Programs that copy attributes along (`cp -a`, `rsync -X`, `tar --xattrs`) take ours elsewhere and bring them back. What is
//! brought back is taken and dropped, or each such copy would end with an error; any other attribute is refused.

use super::errno::{self, Answer};
use super::inodes::Seen;
use super::past::Glass;
use super::place::{Place, Type};
use super::tree::Tree;
use super::{heads, history, past};
use crate::clock::Millis;
use crate::ids::StoreId;
use crate::stores::Merge;
use crate::stores::kv::{Head, Kv, KvError, Node};

const OURS: &[u8] = b"user.lattice.";

/// Of a version: who made it, and which it is.
const VERSION: [&str; 5] = ["author", "author_name", "hash", "hlc", "seq"];
/// Of a key on top of that: how many heads it has, and how far what it shows has come.
const KEY: [&str; 2] = ["heads", "state"];
/// What is shown is not in the store.
const UNPUBLISHED: &[&str] = &["state"];
/// Of a moment: whether what it shows may still change.
const MOMENT: &[&str] = &["final"];

/// What a file is, as far as attributes go.
enum Subject {
    /// A key; the heads that it has.
    Key(Head, usize),
    Version(Head),
    Unpublished,
    Moment(Glass),
    Nothing,
}

impl Subject {
    fn names(&self) -> Vec<&'static str> {
        match self {
            Self::Key(..) => VERSION.into_iter().chain(KEY).collect(),
            Self::Version(_) => VERSION.to_vec(),
            Self::Unpublished => UNPUBLISHED.to_vec(),
            Self::Moment(_) => MOMENT.to_vec(),
            Self::Nothing => Vec::new(),
        }
    }
}

impl Tree {
    fn subject(&self, seen: &Seen) -> Answer<Subject> {
        // The kernel lets nobody read those of a link.
        if seen.kind == Type::Symlink {
            return Ok(Subject::Nothing);
        }
        let version = |head| Ok(Subject::Version(head));
        match seen.place {
            Place::Key(store) => self.key_subject(seen, store),
            Place::Then(_, glass @ (Glass::Time(_) | Glass::Entry(_))) => Ok(Subject::Moment(glass)),
            Place::Head(store) => version(heads::version(self, seen, store)?),
            Place::Version(store) => version(history::version(self, seen, store)?),
            Place::Past(store, glass) if seen.kind == Type::File => version(past::version(self, seen, store, glass)?),
            _ => Ok(Subject::Nothing),
        }
    }

    fn key_subject(&self, seen: &Seen, store: StoreId) -> Answer<Subject> {
        if !seen.attached || Self::shown_draft(seen.draft.as_ref()).is_some() {
            return Ok(Subject::Unpublished);
        }
        let kv = self.kv(&store)?;
        let heads = kv.heads(&seen.path)?;
        let count = heads.as_ref().map_or(0, |heads| heads.all().len());
        Ok(match heads.and_then(|heads| heads.node()) {
            Some(Node::File(head) | Node::Symlink(head) | Node::Directory(Some(head))) => Subject::Key(head, count),
            Some(Node::Directory(None)) | None => Subject::Nothing,
        })
    }

    /// The names of a file's attributes, each with a NUL behind it.
    pub(crate) fn attribute_names(&self, ino: u64) -> Answer<Vec<u8>> {
        let seen = self.table().see(ino)?;
        let mut names = Vec::new();
        for name in self.subject(&seen)?.names() {
            names.extend_from_slice(OURS);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }

    /// The value of a file's attribute.
    pub(crate) fn attribute(&self, ino: u64, name: &[u8]) -> Answer<Vec<u8>> {
        let Some(name) = name.strip_prefix(OURS) else {
            return Err(if name.starts_with(b"user.") { errno::NO_ATTRIBUTE } else { errno::NO_ATTRIBUTES });
        };
        let seen = self.table().see(ino)?;
        let subject = self.subject(&seen)?;
        let name = subject.names().into_iter().find(|known| known.as_bytes() == name).ok_or(errno::NO_ATTRIBUTE)?;
        let value = match (subject, seen.place) {
            (Subject::Key(head, _), Place::Key(store)) if name == "state" => self.state(&store, &head)?,
            (Subject::Key(_, count), _) if name == "heads" => count.to_string(),
            (Subject::Key(head, _) | Subject::Version(head), _) => self.fact(&head, name),
            (Subject::Unpublished, _) => "unpublished".into(),
            (Subject::Moment(glass), Place::Then(store, _)) => self.finality(&store, glass)?,
            (Subject::Moment(_) | Subject::Nothing, _) => return Err(errno::NO_ATTRIBUTE),
        };
        Ok(value.into_bytes())
    }

    /// Takes ours, and leaves them as they are.
    pub(crate) fn set_attribute(name: &[u8]) -> Answer<()> {
        if name.starts_with(OURS) { Ok(()) } else { Err(errno::NO_ATTRIBUTES) }
    }

    fn fact(&self, head: &Head, name: &str) -> String {
        match name {
            "author" => head.author.to_string(),
            "author_name" => past::author(self, &head.author),
            "hash" => head.id.entry.to_string(),
            "hlc" => head.hlc.0.to_string(),
            _ => head.seq.to_string(),
        }
    }

    /// How far a version has come: it is here and not on the disk yet, on this disk, or on those of others.
    fn state(&self, store: &StoreId, head: &Head) -> Answer<String> {
        let kv: std::sync::Arc<Kv> = self.kv(store)?;
        let log = kv.log();
        let durable = log.database().durable().map_err(KvError::from)?;
        let Some(number) = log.number_of(&durable, &head.id.entry).map_err(KvError::from)? else {
            return Ok("local".into());
        };
        let standings = self.sources.peers.standings(store);
        let peers = self.sources.peers.peers().into_iter().filter(|peer| !peer.me && !peer.left && !peer.removed);
        let (mut sent, mut all) = (0, 0);
        for peer in peers {
            all += 1;
            let agreed = standings.get(&peer.id).and_then(|standing| standing.agreed);
            sent += u32::from(peer.id == head.author || agreed.is_some_and(|agreed| number < agreed));
        }
        Ok(if sent == 0 { "durable".into() } else { format!("sent:{sent} of {all} peers") })
    }

    /// Whether an entry that is not here yet may still change what a moment shows: from whom nothing later has come, something
    /// earlier may.
    fn finality(&self, store: &StoreId, glass: Glass) -> Answer<String> {
        let Glass::Time(time) = glass else { return Ok("yes".into()) };
        let kv = self.kv(store)?;
        let log = kv.log();
        let view = log.database().view().map_err(KvError::from)?;
        let tips = log.tips(&view).map_err(KvError::from)?;
        let later = |stamp: Millis| stamp > time;
        let members = log.membership().load();
        let me = log.me();
        let mut open: Vec<&str> = Vec::new();
        for (node, member) in &members.members {
            let told = tips.get(node).is_some_and(|tip| later(tip.hlc.millis())) || (*node == me && later(log.now()));
            if !told && members.may_write(node) {
                open.push(&member.name);
            }
        }
        Ok(if open.is_empty() { "yes".into() } else { format!("no: {} may have written before", open.join(", ")) })
    }
}

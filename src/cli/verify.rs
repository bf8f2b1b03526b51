//! `lattice verify`: checking a proof, with nothing but the file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::output::{escaped, hex, size};
use super::{Context, End, Ended, json};
use crate::api::{Failure, Kind};
use crate::ids::{Hash, MeshId};
use crate::stores::proof::{Content, Kind as Of, LARGEST, Proof, Proven, Written};

const EXAMPLES: &str = "\
Examples:
  lattice verify today.proof --mesh 97c3a8f04bb1dd1cd0b52ab2a0d4c1ba47f03b4ee8d9ef0f3a45c7d1f0b6a2e9
  lattice verify today.proof --content today.txt     and that the file has the content that is proven
  lattice verify today.proof --extract               print the value, if the entry holds it

Needs no node, no network and nothing of the mesh. Without --mesh, compare the id that it prints with the one that you trust:
`lattice mesh status --json` prints it on any member. Exits with 5 if the proof does not hold.";

/// Check a proof that `lattice prove` made, and print what it shows and what it does not
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The proof; - for stdin
    proof: PathBuf,
    /// The id of the mesh that it must be of
    #[arg(long, value_name = "ID")]
    mesh: Option<MeshId>,
    /// A file that must have the content that is proven
    #[arg(long, value_name = "FILE")]
    content: Option<PathBuf>,
    /// Print the value alone
    #[arg(long)]
    extract: bool,
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Failed };
    Failure::new(kind, format!("{}: {error}", path.display()))
}

fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    Ok(Box::new(File::open(path).map_err(|error| unreadable(path, &error))?))
}

impl Verify {
    pub(super) fn run(self, context: &Context) -> Ended {
        let mut file = Vec::new();
        // One byte more tells that there are too many.
        let read = open(&self.proof)?.take(LARGEST as u64 + 1).read_to_end(&mut file);
        read.map_err(|error| unreadable(&self.proof, &error))?;
        let proven = Proof::decode(file.into()).and_then(|proof| proof.check(self.mesh));
        let shown = self.proof.display();
        let proven = proven.map_err(|refused| Failure::refused(format!("{shown} proves nothing: {refused}")))?;
        if let Some(content) = &self.content {
            compare(&proven, content)?;
        }
        if self.extract {
            return extract(&proven, context);
        }
        if context.output.is_json() {
            return context.output.value(&document(&proven, self.mesh.is_some(), self.content.is_some()));
        }
        context.output.raw(said(&proven, &self, context).as_bytes())
    }
}

/// The one write that is proven, which must have content.
fn one(proven: &Proven) -> Result<&Written, Failure> {
    let [written] = &proven.writes[..] else {
        return Err(Failure::refused("the proof is of an entry and not of one key, so it is of no one content")
            .hint("`lattice prove PATH --entry HASH` proves one key of it"));
    };
    match written.head.kind {
        Of::File | Of::Symlink => Ok(written),
        Of::Directory => Err(Failure::refused("what is proven is a directory, which has no content")),
        Of::Deleted => Err(Failure::refused("what is proven is a deletion, which has no content")),
    }
}

fn compare(proven: &Proven, path: &Path) -> Result<(), Failure> {
    let content = one(proven)?.head.content;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(open(path)?).map_err(|error| unreadable(path, &error))?;
    let found = Hash::from(hasher.finalize());
    if found == content.hash() && hasher.count() == content.size() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{} is not what is proven: it has {} and the hash {found}, and {} and the hash {} are proven",
        path.display(),
        size(hasher.count()),
        size(content.size()),
        content.hash(),
    )))
}

fn extract(proven: &Proven, context: &Context) -> Result<(), End> {
    let written = one(proven)?;
    let bytes = match (&written.bytes, written.head.content) {
        (Some(bytes), _) => &bytes[..],
        (None, Content::Empty) => b"",
        (None, Content::Inline { .. } | Content::Blob { .. }) => {
            return Err(Failure::refused("the content is not in the proof: its hash is")
                .hint("--content FILE compares a file with it")
                .into());
        }
    };
    context.output.raw(&context.output.shown(bytes))
}

const fn kind(kind: Of) -> &'static str {
    match kind {
        Of::File => "file",
        Of::Directory => "directory",
        Of::Symlink => "symlink",
        Of::Deleted => "deleted",
    }
}

/// What a proof leaves open, a sentence each.
fn open_questions(proven: &Proven, compared: bool) -> Vec<String> {
    let mut open = Vec::new();
    if !compared {
        open.push(
            "that this mesh is the one you mean: compare its id with the one that you trust, or give that with --mesh"
                .to_owned(),
        );
    }
    open.extend(
        [
            "that this is the newest version: later ones, and deletions, leave no trace in it",
            "that nobody else wrote to the same key at the same time",
            "that the author, or who let it in, was not removed since by what the mesh decided later",
            "that the time is right: it is what the author's clock said",
            "that the author did not sign another entry for the same place",
        ]
        .map(str::to_owned),
    );
    if proven.writes.is_empty() {
        open.push("that what the entry does was allowed: that depends on other entries of the store".to_owned());
    }
    open
}

fn author(proven: &Proven) -> String {
    let author = &proven.author;
    let standing = match (author.removed, author.left) {
        (true, _) => "was removed; this entry is of what counts of it",
        (false, true) => "has left the mesh",
        (false, false) => "a member",
    };
    format!("{}  ({}), {}, {standing}", escaped(author.name.as_bytes()), author.id, author.role)
}

fn said(proven: &Proven, verify: &Verify, context: &Context) -> String {
    let header = proven.entry.header();
    let store = &proven.store;
    let deleted = if proven.deleted { ", deleted since" } else { "" };
    let compared = if verify.mesh.is_some() { ", as asked for" } else { "" };
    let mut lines = vec![
        format!("mesh     {}  ({}){compared}", proven.mesh, escaped(proven.mesh_name.as_bytes())),
        format!(
            "store    {}  ({}, {}){deleted}",
            escaped(store.name.as_bytes()),
            escaped(store.kind.as_bytes()),
            store.id
        ),
    ];
    for Written { path, head, .. } in &proven.writes {
        lines.push(format!("path     {}", escaped(path)));
        if head.is_live() {
            lines.push(format!("kind     {}, mode {:04o}", kind(head.kind), head.mode));
        } else {
            lines.push("kind     deleted: from this entry on the key has no value".into());
        }
        if matches!(head.kind, Of::File | Of::Symlink) {
            lines.push(format!("content  {}, {} bytes", head.content.hash(), head.content.size()));
        }
    }
    if proven.writes.is_empty() {
        lines.extend(proven.does.iter().map(|does| format!("does     {}", escaped(does.as_bytes()))));
    }
    lines.push(format!("author   {}", author(proven)));
    lines.push(format!("time     {}, by the author's clock", context.output.time(header.hlc.millis().0)));
    lines.push(format!("entry    {}, number {} of its author in this store", proven.entry.hash(), header.seq));
    let until = context.output.time(proven.root_until.millis().0);
    lines.push(format!("members  by {} entries of the root store, the last of {until}", proven.root_entries));
    if let Some(content) = &verify.content {
        lines.push(format!("The file {} has the proven content.", content.display()));
    }
    lines.push("The proof holds. It does not show".into());
    lines.extend(open_questions(proven, verify.mesh.is_some()).into_iter().map(|open| format!("- {open}")));
    lines.join("\n") + "\n"
}

fn document(proven: &Proven, compared: bool, content: bool) -> Value {
    let header = proven.entry.header();
    let (store, author) = (&proven.store, &proven.author);
    let written = |Written { path, head, bytes }: &Written| {
        let (bytes, mode) = (bytes.is_some(), format!("{:04o}", head.mode));
        let rest = json!({
            "kind": kind(head.kind), "mode": mode, "mtime_ns": head.mtime, "size": head.content.size(),
            "content": head.content.hash().to_string(), "inside": bytes || head.content == Content::Empty,
        });
        json::with_path(path, rest)
    };
    json!({
        "mesh": proven.mesh.to_string(), "mesh_name": proven.mesh_name, "mesh_compared": compared,
        "store": store.name, "store_id": store.id.to_string(), "store_kind": store.kind, "store_deleted": proven.deleted,
        "writes": proven.writes.iter().map(written).collect::<Vec<_>>(), "does": proven.does, "content_compared": content,
        "author": hex(&author.id.0), "author_name": author.name, "role": author.role.name(), "left": author.left,
        "removed": author.removed, "hlc": header.hlc.0, "time": json::time(header.hlc.0),
        "hash": proven.entry.hash().to_string(), "seq": header.seq, "root_entries": proven.root_entries,
        "root_until": json::time(proven.root_until.0), "not_proven": open_questions(proven, compared),
    })
}

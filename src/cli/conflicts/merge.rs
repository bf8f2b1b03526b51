//! `lattice conflicts merge`: settling texts by what each head changed.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use similar::TextMerge;

use super::ancestor::ancestor;
use super::pick::names;
use super::{left, named};
use crate::api::wire::{Head, Key, PutPart};
use crate::api::{Client, Failure};
use crate::cli::key::HOME;
use crate::cli::output::{escaped, hex, short};
use crate::cli::past::text;
use crate::cli::{Context, End, Ended};

const EXAMPLES: &str = "\
Examples:
  lattice conflicts merge                               all keys that can be merged without a person
  lattice conflicts merge notes/today --markers /tmp/today
  MERGE_TOOL=vimdiff lattice conflicts merge notes/today
  MERGE_TOOL='kdiff3 $BASE $LOCAL $REMOTE -o $MERGED' lattice conflicts merge

Three ways, line by line: what only one head changed since the last version that all come from is taken. Where two changed the same lines, \
$MERGE_TOOL is run, if it is set, on the files $BASE, $LOCAL, $REMOTE and $MERGED, which get appended if it names none; it is believed if it \
ends with 0 and leaves no markers. With --markers the text goes to a file, with both sides marked, for you to edit and to write with \
`lattice kv put`; the key stays as it is. Nothing is ever marked in a key.";

/// Settle texts by what each head changed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Merge {
    /// The keys: paths, directories, globs, or whole paths of files on the mount [default: all that need a person]
    keys: Vec<OsString>,
    /// Of the one key that can't be merged, write the text with markers to this new file
    #[arg(long, value_name = "FILE")]
    markers: Option<PathBuf>,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

/// The line that begins a conflict in a marked text.
const MARKER: &[u8] = b"<<<<<<< ";

/// Three texts on the way to one.
struct Sides {
    base: Vec<u8>,
    ours: Vec<u8>,
    theirs: Vec<u8>,
    labels: [String; 3],
}

/// One text, or one with markers.
enum Merged {
    Clean(Vec<u8>),
    Marked(Vec<u8>),
}

impl Sides {
    fn merge(&self) -> Merged {
        let mut merge = TextMerge::from_lines(self.base.as_slice(), self.ours.as_slice(), self.theirs.as_slice());
        let [base, ours, theirs] = &self.labels;
        merge.labels(base, ours, theirs);
        let mut out = Vec::new();
        // Writing to memory does not fail.
        merge.to_writer(&mut out).ok();
        if merge.is_conflicted() { Merged::Marked(out) } else { Merged::Clean(out) }
    }
}

/// The value that is not `base`, if one side changed it; `None` if both did, differently.
fn changed<T: PartialEq + Copy>(base: Option<T>, ours: T, theirs: T) -> Option<T> {
    match base {
        _ if ours == theirs => Some(ours),
        Some(base) if base == ours => Some(theirs),
        Some(base) if base == theirs => Some(ours),
        Some(_) | None => None,
    }
}

/// The modes of heads as one.
fn mode(base: Option<&Head>, heads: &[Head]) -> Option<u32> {
    let base = base.map(|head| head.mode);
    let (first, rest) = heads.split_first()?;
    rest.iter().try_fold(first.mode, |mode, head| changed(base, mode, head.mode))
}

fn label(head: &Head) -> String {
    format!("{} {}", short(&head.hash), escaped(head.author_name.as_bytes()))
}

/// What became of a key.
enum Outcome {
    Settled(&'static str, Vec<u8>),
    Left(String),
}

impl Merge {
    pub(super) async fn run(mut self, context: &Context) -> Ended {
        let client = context.client().await?;
        let keys = named(&client, &mut self.store, std::mem::take(&mut self.keys)).await?;
        let mut not = Vec::new();
        let mut markers = self.markers.clone();
        for key in keys {
            match self.settle(&client, &key, &mut markers).await? {
                Outcome::Settled(how, hash) => {
                    let value = json!({
                        "path": escaped(&key.path), "store": self.store, "settled": how, "entry": hex(&hash),
                    });
                    context.output.either(&value, format!("settled  {}  {how}", escaped(&key.path)))?;
                }
                Outcome::Left(why) => not.push((key.path, why)),
            }
        }
        left(&not, context)
    }

    async fn settle(&self, client: &Client, key: &Key, markers: &mut Option<PathBuf>) -> Result<Outcome, End> {
        let Key { path, heads, shadowed } = key;
        let is = |kind: &str| heads.iter().all(|head| head.kind == kind);
        if *shadowed {
            return Ok(Outcome::Left("keys lie below it: delete them, or it".into()));
        }
        if !is("file") {
            return Ok(Outcome::Left(
                "not all of its heads are files: choose one with `lattice conflicts pick`".into(),
            ));
        }
        let base = ancestor(client, &self.store, path, heads).await?;
        let base = base.filter(|head| head.kind == "file");
        let Some(mode) = mode(base.as_ref(), heads) else {
            return Ok(Outcome::Left(
                "its heads differ in their modes: choose one with `lattice conflicts pick`".into(),
            ));
        };
        let mut texts = Vec::new();
        for head in base.iter().chain(heads) {
            match text(client, &self.store, path, Some(head)).await? {
                Some(text) => texts.push(text),
                None => {
                    return Ok(Outcome::Left("it is no text: choose one with `lattice conflicts pick`".into()));
                }
            }
        }
        let base_text = if base.is_some() { texts.remove(0) } else { Vec::new() };
        let mut how = "merged";
        let mut texts = texts.into_iter();
        let mut merged = texts.next().unwrap_or_default();
        for (theirs, head) in texts.zip(&heads[1..]) {
            let labels = [base.as_ref().map_or_else(|| "nothing".to_owned(), label), label(&heads[0]), label(head)];
            let sides = Sides { base: base_text.clone(), ours: merged, theirs, labels };
            merged = match sides.merge() {
                Merged::Clean(text) => text,
                Merged::Marked(text) => match by_hand(&sides, &text, markers, path)? {
                    Ok(text) => {
                        how = "by the merge tool";
                        text
                    }
                    Err(why) => return Ok(Outcome::Left(why)),
                },
            };
        }
        let hash = put(client, &self.store, key, mode, merged).await?;
        Ok(Outcome::Settled(how, hash))
    }
}

/// Has a person merge what could not be merged, or says how they can.
fn by_hand(
    sides: &Sides,
    marked: &[u8],
    markers: &mut Option<PathBuf>,
    path: &[u8],
) -> Result<Result<Vec<u8>, String>, Failure> {
    if let Some(file) = markers.take() {
        let written = OpenOptions::new().write(true).create_new(true).open(&file);
        let written = written.and_then(|mut file| file.write_all(marked));
        written.map_err(|error| Failure::refused(format!("{}: {error}", file.display())).hint("name a new file"))?;
        let (file, path) = (file.display(), escaped(path));
        let put = format!("the text with markers is in {file}: edit it, then `lattice kv put '{path}' --file {file}`");
        return Ok(Err(put));
    }
    match std::env::var("MERGE_TOOL") {
        Ok(tool) if !tool.is_empty() => by_tool(sides, marked, &tool),
        Ok(_) | Err(_) => {
            Ok(Err("the same lines were changed: set MERGE_TOOL, or give --markers FILE for one key".into()))
        }
    }
}

fn by_tool(sides: &Sides, marked: &[u8], tool: &str) -> Result<Result<Vec<u8>, String>, Failure> {
    let dir = tempfile::tempdir().map_err(Failure::failed)?;
    let file = |name: &str, text: &[u8]| -> Result<PathBuf, Failure> {
        let path = dir.path().join(name);
        std::fs::write(&path, text).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        Ok(path)
    };
    let names = ["BASE", "LOCAL", "REMOTE", "MERGED"];
    let texts = [sides.base.as_slice(), &sides.ours, &sides.theirs, marked];
    let script =
        if names.iter().any(|name| tool.contains(&format!("${name}")) || tool.contains(&format!("${{{name}}}"))) {
            tool.to_owned()
        } else {
            format!("{tool} \"$BASE\" \"$LOCAL\" \"$REMOTE\" \"$MERGED\"")
        };
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(script);
    for (name, text) in names.iter().zip(texts) {
        command.env(name, file(name, text)?);
    }
    let status = command.status().map_err(|error| Failure::failed(format!("sh: {error}")))?;
    let text = std::fs::read(Path::new(dir.path()).join("MERGED")).map_err(Failure::failed)?;
    if !status.success() {
        return Ok(Err(format!("the merge tool ended with {status}")));
    }
    if text.split(|byte| *byte == b'\n').any(|line| line.starts_with(MARKER)) {
        return Ok(Err("the merge tool left markers in the text".into()));
    }
    Ok(Ok(text))
}

/// Writes the merged text over the heads that it was made of.
async fn put(client: &Client, store: &str, key: &Key, mode: u32, text: Vec<u8>) -> Result<Vec<u8>, Failure> {
    const PART: usize = 256 * 1024;
    let mut parts = vec![PutPart {
        store: store.to_owned(),
        path: key.path.clone(),
        mode,
        seen: names(&key.heads),
        data: Vec::new(),
    }];
    parts.extend(text.chunks(PART).map(|part| PutPart { data: part.to_vec(), ..PutPart::default() }));
    let reply = client.kv().put(tokio_stream::iter(parts)).await?;
    Ok(reply.into_inner().hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(base: &str, ours: &str, theirs: &str) -> Sides {
        let labels = ["base", "ours", "theirs"].map(str::to_owned);
        Sides { base: base.into(), ours: ours.into(), theirs: theirs.into(), labels }
    }

    #[test]
    fn what_only_one_side_changed_is_taken_and_what_both_changed_is_marked() {
        let Merged::Clean(text) = sides("a\nb\nc\nd\n", "A\nb\nc\nd\n", "a\nb\nc\nD\n").merge() else {
            unreachable!("no line was changed by both")
        };
        assert_eq!(text, b"A\nb\nc\nD\n");
        let Merged::Marked(text) = sides("a\n", "b\n", "c\n").merge() else { unreachable!("both changed it") };
        assert!(text.starts_with(MARKER), "{}", String::from_utf8_lossy(&text));
        assert!(matches!(sides("", "same\n", "same\n").merge(), Merged::Clean(_)));
    }

    #[test]
    fn a_mode_that_one_side_changed_is_taken() {
        let head = |mode| Head { mode, ..Head::default() };
        assert_eq!(mode(Some(&head(0o644)), &[head(0o644), head(0o755)]), Some(0o755));
        assert_eq!(mode(Some(&head(0o644)), &[head(0o600), head(0o755)]), None);
        assert_eq!(mode(None, &[head(0o600), head(0o755)]), None);
        assert_eq!(mode(None, &[head(0o600), head(0o600)]), Some(0o600));
    }
}

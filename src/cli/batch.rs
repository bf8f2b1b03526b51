//! `lattice kv batch`: several keys by one entry.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::key::HOME;
use super::output::{escaped, hex};
use super::{Context, Ended};
use crate::api::wire::BatchPart;
use crate::api::{Failure, Kind};

const EXAMPLES: &str = "\
Examples:
  lattice kv batch changes.jsonl
  echo '{\"path\": \"a\", \"value\": \"1\"} {\"path\": \"b\", \"delete\": true}' | tr ' ' '\\n' | lattice kv batch

A line is an object: `path` (or `path_hex`), and one of `value`, `value_base64` and `\"delete\": true`; with a value also `mode`, such as \
\"0755\". Either all lines count, also on every other machine, or none. They must fit one entry: 64 KiB, in which a value above 16 KiB takes \
little. Superseded are the versions that the keys have when the batch is written.";

/// Write and delete several keys by one entry, from lines of JSON
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Batch {
    /// The file that holds the lines [default: what stdin gives]
    file: Option<PathBuf>,
    /// The store
    #[arg(long, short, default_value = HOME, value_name = "NAME")]
    store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line {
    path: Option<String>,
    path_hex: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    delete: bool,
    mode: Option<String>,
}

/// The largest value that a batch takes, in bytes: a message's limit, with room for the rest of it.
const VALUE: usize = 3 * 1024 * 1024;

fn read(line: &str) -> Result<BatchPart, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let path = match (line.path, line.path_hex) {
        (Some(path), None) => path.into_bytes(),
        (None, Some(hex)) => {
            data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map_err(|error| format!("path_hex: {error}"))?
        }
        (Some(_), Some(_)) | (None, None) => return Err("one of path and path_hex is meant".into()),
    };
    if path.is_empty() {
        return Err("the path is empty".into());
    }
    let data = match (line.value, line.value_base64, line.delete) {
        (Some(value), None, false) => value.into_bytes(),
        (None, Some(value), false) => {
            data_encoding::BASE64.decode(value.as_bytes()).map_err(|error| format!("value_base64: {error}"))?
        }
        (None, None, true) => Vec::new(),
        _ => return Err("one of value, value_base64 and \"delete\": true is meant".into()),
    };
    if data.len() > VALUE {
        return Err(format!("a value of {} bytes; a batch takes {VALUE} at most", data.len()));
    }
    let mode = match line.mode {
        None => 0,
        Some(_) if line.delete => return Err("a deletion has no mode".into()),
        Some(mode) => {
            let bits = u32::from_str_radix(&mode, 8).ok().filter(|bits| (1..=0o7777).contains(bits));
            bits.ok_or_else(|| format!("'{mode}' is no mode, such as 0644"))?
        }
    };
    Ok(BatchPart { store: String::new(), path, delete: line.delete, mode, data })
}

impl Batch {
    pub(super) async fn run(self, context: &Context) -> Ended {
        let name = self.file.as_ref().map_or_else(|| "stdin".to_owned(), |file| file.display().to_string());
        let lines: Box<dyn BufRead> = match &self.file {
            Some(file) => {
                let opened = std::fs::File::open(file);
                Box::new(BufReader::new(opened.map_err(|error| Failure::failed(format!("{name}: {error}")))?))
            }
            None => Box::new(BufReader::new(std::io::stdin())),
        };
        let mut parts = vec![BatchPart { store: self.store, ..BatchPart::default() }];
        for (number, line) in lines.lines().enumerate() {
            let line = line.map_err(|error| Failure::failed(format!("{name}: {error}")))?;
            if !line.trim().is_empty() {
                let wrong = |why| Failure::new(Kind::Usage, format!("{name}:{}: {why}", number + 1));
                parts.push(read(&line).map_err(|why| wrong(escaped(why.as_bytes())))?);
            }
        }
        let reply = context.client().await?.kv().batch(tokio_stream::iter(parts)).await?.into_inner();
        let hash = Some(&reply.hash).filter(|hash| !hash.is_empty()).map(|hash| hex(hash));
        context.output.either(&json!({"hash": hash, "written": reply.written, "deleted": reply.deleted}), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_becomes_of_a_key() {
        let part = read(r#"{"path": "a/b", "value": "x", "mode": "0755"}"#).unwrap();
        assert_eq!((part.path.as_slice(), part.data.as_slice(), part.mode), (&b"a/b"[..], &b"x"[..], 0o755));
        assert_eq!(read(r#"{"path_hex": "61ff", "value_base64": "AP8="}"#).unwrap().path, b"a\xff");
        assert!(read(r#"{"path": "a", "delete": true}"#).unwrap().delete);
        for wrong in [
            r#"{"path": "a"}"#,
            r#"{"value": "a"}"#,
            r#"{"path": "", "value": "a"}"#,
            r#"{"path": "a", "value": "x", "delete": true}"#,
            r#"{"path": "a", "vlaue": "x"}"#,
            r#"{"path": "a", "value": "x", "mode": "rw"}"#,
            r#"{"path": "a", "delete": true, "mode": "0644"}"#,
            "a",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

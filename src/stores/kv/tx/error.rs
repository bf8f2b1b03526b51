//! Why nothing became of a call on a transaction, and what to do about it.

use std::path::{Path, PathBuf};

use crate::stores::kv::handle::KvError;

/// Why nothing became of a call on a transaction.
#[derive(Debug, thiserror::Error)]
pub enum TxError {
    /// There is one of this name.
    #[error("there is a transaction '{0}' already")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no transaction '{0}'")]
    Missing(String),
    /// None can have this name.
    #[error("no transaction can be called '{0}': {1}")]
    Name(String, &'static str),
    /// It is being committed or dropped right now.
    #[error("the transaction is being committed")]
    Busy,
    /// It is not there any more.
    #[error("the transaction was committed or dropped")]
    Over,
    /// Keys that it touches were changed after it began.
    #[error("{} changed after the transaction '{tx}' began: {}", keys_are(.keys.len()), listed(.keys))]
    Moved {
        /// Its name.
        tx: String,
        /// The keys.
        keys: Vec<Vec<u8>>,
    },
    /// What is staged makes no sense.
    #[error("{0}")]
    Staged(String),
    /// The store.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The disk: what is staged can't be read or written, or the entry that was made of it is not durable yet.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl TxError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// What to do about it in the store of this name, for a person.
    #[must_use]
    pub fn hint(&self, store: &str) -> Option<String> {
        let store = if store == "home" { String::new() } else { format!(" --store {store}") };
        match self {
            Self::Moved { tx, .. } => Some(format!(
                "`lattice tx commit {tx} --force{store}` commits it all the same, and these keys then have both versions as \
                 heads; or take over by hand what changed, into a new transaction"
            )),
            Self::Kv(KvError::TooLarge { .. }) => Some(
                "commit it in parts: begin another transaction and move some of the files there. The paths and the values up to \
                 16 KiB count; a larger value takes little"
                    .into(),
            ),
            Self::Exists(_) => Some("choose another name; `lattice tx` lists them".into()),
            Self::Missing(_) | Self::Over => {
                Some(format!("`lattice tx` lists them, `lattice tx begin NAME{store}` begins one"))
            }
            Self::Busy => Some("try again in a moment".into()),
            Self::Name(..) | Self::Staged(_) | Self::Kv(_) | Self::Io { .. } => None,
        }
    }
}

/// How many paths a message names.
const NAMED: usize = 8;

fn keys_are(count: usize) -> String {
    if count == 1 { "a key".into() } else { format!("{count} keys") }
}

fn listed(keys: &[Vec<u8>]) -> String {
    let mut text: Vec<_> = keys.iter().take(NAMED).map(|key| format!("'{}'", shown(key))).collect();
    if keys.len() > NAMED {
        text.push(format!("and {} more", keys.len() - NAMED));
    }
    text.join(", ")
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    String::from_utf8_lossy(path).chars().map(escaped).collect()
}

pub(super) type Result<T> = std::result::Result<T, TxError>;

//! Where members were last reached, kept over restarts: without an internet or a multicast route it is the only way back.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::ids::NodeId;

/// Members and their last known addresses, likeliest first.
pub(super) type Known = BTreeMap<NodeId, Vec<SocketAddr>>;

/// The file that keeps them: one line a member, its id and its addresses.
#[derive(Debug)]
pub(super) struct Addresses {
    path: PathBuf,
    kept: Known,
}

impl Addresses {
    /// Reads the file in `dir`. What does not read is left out: it is a hint only.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join("addresses");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(target: "mesh", path = %path.display(), %error, "the last addresses of members can't be read");
                }
                String::new()
            }
        };
        let kept = text.lines().filter_map(parse).collect();
        Self { path, kept }
    }

    pub(super) fn known(&self) -> &Known {
        &self.kept
    }

    /// Keeps what is new; the file is replaced whole.
    pub(super) fn keep(&mut self, known: Known) -> std::io::Result<()> {
        if known.iter().all(|(node, addresses)| self.kept.get(node) == Some(addresses)) {
            return Ok(());
        }
        self.kept.extend(known);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        for (node, addresses) in &self.kept {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            writeln!(file, "{node} {}", addresses.join(" "))?;
        }
        file.persist(&self.path)?;
        Ok(())
    }
}

fn parse(line: &str) -> Option<(NodeId, Vec<SocketAddr>)> {
    let mut words = line.split_whitespace();
    let node = words.next()?.parse().ok()?;
    Some((node, words.filter_map(|word| word.parse().ok()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_there_again_and_a_damaged_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let known: Known = [
            (NodeId([1; 32]), vec!["10.0.0.1:7000".parse().unwrap(), "[::1]:7000".parse().unwrap()]),
            (NodeId([2; 32]), vec!["10.0.0.2:7000".parse().unwrap()]),
        ]
        .into();
        Addresses::open(dir.path()).keep(known.clone()).unwrap();
        assert_eq!(Addresses::open(dir.path()).known(), &known);
        let path = dir.path().join("addresses");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("garbage\n{text}")).unwrap();
        assert_eq!(Addresses::open(dir.path()).known(), &known);
    }
}

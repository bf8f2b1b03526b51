//! Paths of keys, and their form in the tables.

use crate::replication::limits;

/// The byte that stands for `/` in a row: lower than any other, so that a key's subtree follows it directly.
pub(super) const SEPARATOR: u8 = 0;

/// Bytes that are no path of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// No bytes at all.
    #[error("a key needs a path")]
    Empty,
    /// Longer than a path may be.
    #[error("the path is {0} bytes long, the limit is {limit}", limit = limits::KEY_PATH)]
    Long(usize),
    /// A component longer than a file's name may be.
    #[error("a part of the path is {0} bytes long, the limit is {limit}", limit = limits::KEY_COMPONENT)]
    LongComponent(usize),
    /// Nothing between two slashes, or a slash at the start or the end.
    #[error("the path has an empty part: one '/' between parts, none at the start or the end")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("the path has a part '.' or '..'")]
    Dots,
    /// A zero byte.
    #[error("the path has a zero byte")]
    Nul,
}

/// Whether `path` can name a key.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &[u8]) -> Result<(), BadPath> {
    if path.is_empty() {
        return Err(BadPath::Empty);
    }
    if path.len() > limits::KEY_PATH {
        return Err(BadPath::Long(path.len()));
    }
    if path.contains(&0) {
        return Err(BadPath::Nul);
    }
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" => return Err(BadPath::EmptyComponent),
            b"." | b".." => return Err(BadPath::Dots),
            part if part.len() > limits::KEY_COMPONENT => return Err(BadPath::LongComponent(part.len())),
            _ => {}
        }
    }
    Ok(())
}

fn swap(bytes: &[u8], from: u8, to: u8) -> Vec<u8> {
    bytes.iter().map(|byte| if *byte == from { to } else { *byte }).collect()
}

/// A path, or the start of one, as it stands in the tables.
pub(super) fn row(path: &[u8]) -> Vec<u8> {
    swap(path, b'/', SEPARATOR)
}

/// The path of a row.
pub(super) fn of_row(row: &[u8]) -> Vec<u8> {
    swap(row, SEPARATOR, b'/')
}

/// The start of all rows below the directory with this row; of all rows for the root directory.
pub(super) fn below(row: &[u8]) -> Vec<u8> {
    let mut below = row.to_vec();
    if !row.is_empty() {
        below.push(SEPARATOR);
    }
    below
}

/// The row of the directory that holds this row; `None` at the top.
pub(super) fn parent(row: &[u8]) -> Option<&[u8]> {
    row.iter().rposition(|byte| *byte == SEPARATOR).map(|end| &row[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_made_of_names_between_single_slashes() {
        assert_eq!(check(b"a/b c/\xff"), Ok(()));
        assert_eq!(check(b".hidden/..."), Ok(()));
        assert_eq!(check(b""), Err(BadPath::Empty));
        for bad in [b"/a".as_slice(), b"a/", b"a//b", b"/"] {
            assert_eq!(check(bad), Err(BadPath::EmptyComponent));
        }
        assert_eq!(check(b"a/../b"), Err(BadPath::Dots));
        assert_eq!(check(b"."), Err(BadPath::Dots));
        assert_eq!(check(b"a\0b"), Err(BadPath::Nul));
        assert_eq!(check(&[b'a'; 256]), Err(BadPath::LongComponent(256)));
        assert_eq!(check(&b"ab/".repeat(1_400)), Err(BadPath::Long(4_200)));
    }

    #[test]
    fn rows_sort_a_subtree_right_behind_its_top() {
        let mut rows = [row(b"a!b"), row(b"a/b"), row(b"a"), row(b"ab")];
        rows.sort();
        let paths: Vec<_> = rows.iter().map(|row| of_row(row)).collect();
        assert_eq!(paths, [b"a".to_vec(), b"a/b".to_vec(), b"a!b".to_vec(), b"ab".to_vec()]);
        assert_eq!(parent(&row(b"a/b/c")), Some(row(b"a/b").as_slice()));
        assert_eq!(parent(b"a"), None);
    }
}

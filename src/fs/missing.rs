//! The names in stores that the kernel knows to lead to nothing.
//!
//! It is told of each that comes to lead to something. Where changes were missed nobody knows which these are, and a directory can't
//! be forgotten as a whole: who sits in it would lose it. So these names are kept, and then it is told of all.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::replay::Name;
use super::tree::locked;

/// Names that are kept at most.
const MOST: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Missing(Mutex<BTreeSet<Name>>);

impl Missing {
    /// Notes a name that the kernel is about to be told of; `false` if there are too many. To be called before it is looked whether
    /// the name leads to nothing: the kernel takes what it is told of the name only after that answer.
    pub(crate) fn add(&self, directory: u64, name: &[u8]) -> bool {
        let mut names = locked(&self.0);
        names.len() < MOST && {
            names.insert((directory, name.into()));
            true
        }
    }

    /// All of them; they are kept no longer.
    pub(crate) fn take(&self) -> BTreeSet<Name> {
        std::mem::take(&mut *locked(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_names_are_kept_than_the_kernel_is_told_of_at_once() {
        let missing = Missing::default();
        for number in 0..=MOST {
            assert_eq!(missing.add(1, number.to_string().as_bytes()), number < MOST);
        }
        assert_eq!(missing.take().len(), MOST);
        assert!(missing.add(1, b"a"));
    }
}

//! `fallocate`: room for what will be written, and stretches of zeros.

use std::sync::Arc;

use super::draft::{Draft, IN_MEMORY};
use super::errno::{self, Answer};
use super::keys::FileHandle;
use super::tree::Tree;

impl Tree {
    /// Does to a file what `mode` says, from `offset` on for `length` bytes. Room is not set aside: asking for it
    /// fails if there is none now.
    pub(crate) fn allocate(
        &self,
        file: &FileHandle,
        draft: &Arc<Draft>,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Answer<()> {
        let end = offset.checked_add(length).ok_or(errno::INVALID)?;
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let size = draft.shape().size;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.space.check(if keeps_size { length } else { 0 })?,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                self.clear(file, draft, offset, end.min(size))?
            }
            _ => return Err(errno::UNSUPPORTED),
        }
        if keeps_size || end <= size { Ok(()) } else { self.resize(file, draft, end) }
    }

    /// Zeros from `at` to `end`.
    fn clear(&self, file: &FileHandle, draft: &Arc<Draft>, mut at: u64, end: u64) -> Answer<()> {
        let zeros = vec![0; usize::try_from(IN_MEMORY).unwrap_or(usize::MAX)];
        self.begin(draft, file);
        while at < end {
            let some = (end - at).min(IN_MEMORY);
            let piece = zeros.get(..usize::try_from(some).unwrap_or(usize::MAX)).unwrap_or_default();
            self.loaded(draft, file)?.write(at, piece, self.drafts())?;
            at += some;
        }
        Ok(())
    }
}

//! Room in memory: who may write now, and who waits until the disk has come on.

use std::sync::PoisonError;
use std::time::Duration;

use super::commit::{Progress, Shared};
use super::{Result, locked};
use crate::clock;
use crate::replication::limits;

/// Bytes that local writers may go on with where what comes in from others waits: they are few and small.
const RESERVE: usize = 1024 * 1024;
/// How long what comes in waits, at most, until it takes its turn with the local writers.
const PATIENCE: Duration = Duration::from_millis(300);

impl Progress {
    /// Whether it is time to commit, before writers have to wait.
    pub(super) const fn is_crowded(&self) -> bool {
        self.waiting > limits::STAGED_BYTES / 2
    }

    /// Whether local writers have to wait, or soon may.
    pub(super) fn is_close(&self) -> bool {
        self.is_crowded() || !self.queue.is_empty() || self.more_than(self.allowed.saturating_add(RESERVE / 2))
    }

    fn more_than(&self, allowed: usize) -> bool {
        self.waiting + self.unmerged > allowed
    }

    fn has_room(&self) -> bool {
        self.waiting <= limits::STAGED_BYTES && !self.more_than(self.allowed.saturating_add(RESERVE))
    }

    fn has_room_for_many(&self) -> bool {
        !self.is_crowded() && self.queue.is_empty() && !self.more_than(self.allowed)
    }

    const fn is_open(&self) -> bool {
        !self.stop && self.failed.is_none()
    }
}

impl Shared {
    /// Waits for room, in turn with all who do; with `many` for more of it, so that who writes little finds some.
    pub(super) fn admit(&self, many: bool) -> Result<()> {
        let mut progress = locked(&self.progress);
        if many && !progress.has_room_for_many() {
            let began = clock::monotonic();
            while progress.is_open()
                && !progress.has_room_for_many()
                && let Some(rest) = PATIENCE.checked_sub(began.elapsed())
            {
                progress = self.changed.wait_timeout(progress, rest).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if progress.is_open() && (!progress.queue.is_empty() || !progress.has_room()) {
            let number = progress.number;
            progress.number += 1;
            progress.queue.push_back(number);
            self.hurry.notify_all();
            while progress.is_open() && (progress.queue.front() != Some(&number) || !progress.has_room()) {
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
            progress.queue.retain(|other| *other != number);
            if !progress.queue.is_empty() {
                self.changed.notify_all();
            }
        }
        self.check(&progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(waiting: usize, unmerged: usize, allowed: usize) -> Progress {
        Progress { waiting, unmerged, allowed, ..Progress::default() }
    }

    #[test]
    fn many_writes_leave_room_for_few() {
        let room = |progress: &Progress| (progress.has_room(), progress.has_room_for_many(), progress.is_close());
        let staged = limits::STAGED_BYTES;
        assert_eq!(room(&progress(staged / 2, 1 << 30, usize::MAX)), (true, true, false));
        assert_eq!(room(&progress(staged / 2 + 1, 0, usize::MAX)), (true, false, true));
        assert_eq!(room(&progress(staged + 1, 0, usize::MAX)), (false, false, true));
        assert_eq!(room(&progress(100, 1_000, 1_100)), (true, true, false));
        assert_eq!(room(&progress(101, 1_000, 1_100)), (true, false, false));
        assert_eq!(room(&progress(100, 1_000 + RESERVE, 1_100)), (true, false, true));
        assert_eq!(room(&progress(101, 1_000 + RESERVE, 1_100)), (false, false, true));
        let queued = Progress { queue: [7].into(), ..Progress::default() };
        assert_eq!(room(&queued), (true, false, true), "nobody goes before those who wait");
    }
}

//! Contents that did not come when they were waited for.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::tree::locked;
use crate::blobs::BlobError;
use crate::clock;
use crate::stores::kv::{Head, HeadId, Kv, KvError, Opened};

/// How long a content that did not come is not waited for again. The kernel reads ahead, and where that fails it asks at once
/// for the one page that a program wants: whoever waited once need not wait twice, which no signal would end.
const MEMORY: Duration = Duration::from_secs(2);

/// The content that did not come last time, of one open file: of which head, when that was known, and how long it was waited for.
#[derive(Debug, Default)]
pub(crate) struct Missed(Mutex<Option<(HeadId, Instant, Duration)>>);

impl Missed {
    /// As [`Kv::read_within`], but for a content that did not come a moment ago it does not wait.
    pub(crate) fn read(&self, kv: &Kv, head: &Head, patience: Duration) -> Result<Opened, KvError> {
        let before = self.lately(head.id, clock::monotonic());
        match kv.read_within(head, if before.is_some() { Duration::ZERO } else { patience }) {
            Err(KvError::Absent(BlobError::Absent { hash, waited })) if !patience.is_zero() => {
                let waited = before.unwrap_or(waited);
                if before.is_none() {
                    self.note(head.id, clock::monotonic(), waited);
                }
                Err(KvError::Absent(BlobError::Absent { hash, waited }))
            }
            read => read,
        }
    }

    /// How long this content was waited for in vain a moment ago.
    fn lately(&self, id: HeadId, now: Instant) -> Option<Duration> {
        let missed = locked(&self.0).filter(|(missed, at, _)| *missed == id && now.duration_since(*at) < MEMORY);
        missed.map(|(.., waited)| waited)
    }

    fn note(&self, id: HeadId, now: Instant, waited: Duration) {
        *locked(&self.0) = Some((id, now, waited));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Hash;

    #[test]
    fn what_did_not_come_a_moment_ago_is_remembered_and_a_moment_later_not() {
        let (missed, now, waited) = (Missed::default(), clock::monotonic(), Duration::from_secs(30));
        let id = |op| HeadId { entry: Hash([1; 32]), op };
        assert_eq!(missed.lately(id(0), now), None);
        missed.note(id(0), now, waited);
        assert_eq!(missed.lately(id(0), now), Some(waited));
        assert_eq!(missed.lately(id(1), now), None, "it is another content");
        assert_eq!(missed.lately(id(0), now + MEMORY), None);
    }
}

//! Time: the only place that reads a clock, and the hybrid logical clock that stamps entries.

mod text;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
pub use text::{moment, name};

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// This moment plus `duration`, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A source of wall-clock time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch, now.
    fn now(&self) -> Millis;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Clock for System {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn now(&self) -> Millis {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Nanoseconds since the Unix epoch on the machine's clock: what a file's mtime is set to.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn nanos() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since the Unix epoch of a file's time; as near as can be told.
#[must_use]
pub fn nanos_of(time: SystemTime) -> i64 {
    let clamp = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => clamp(after),
        Err(before) => -clamp(before.duration()),
    }
}

/// The time that is `nanos` nanoseconds after the Unix epoch.
#[must_use]
pub fn system(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    let moment = if nanos < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

/// A moment on the machine's monotonic clock, for measuring durations and deadlines.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the monotonic clock")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// A clock that stands where it is put: for tests and simulation.
#[derive(Debug, Default)]
pub struct Manual(AtomicU64);

impl Manual {
    /// A clock that stands at `now`.
    #[must_use]
    pub const fn new(now: Millis) -> Self {
        Self(AtomicU64::new(now.0))
    }

    /// Moves the clock to `now`, forward or back.
    pub fn set(&self, now: Millis) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for Manual {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }
}

/// A hybrid logical clock value: 48 bits of Unix milliseconds and a 16-bit counter, ordered as one integer.
///
/// After "Logical Physical Clocks" (Kulkarni et al., 2014), with both parts packed so that the
/// counter overflows into the milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The first value of a millisecond.
    #[must_use]
    pub const fn at(now: Millis) -> Self {
        Self(now.0 << 16)
    }

    /// The physical part.
    #[must_use]
    pub const fn millis(self) -> Millis {
        Millis(self.0 >> 16)
    }

    /// The counter within the millisecond.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.0 & 0xffff
    }

    /// The stamp of an event at `now` that comes after everything up to `self`.
    #[must_use]
    pub fn next(self, now: Millis) -> Self {
        Self::at(now).max(Self(self.0.saturating_add(1)))
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hlc({}.{})", self.millis().0, self.counter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_exceeds_what_came_before_even_when_the_clock_stands_or_goes_back() {
        let first = Hlc::default().next(Millis(1_000));
        assert_eq!(first, Hlc::at(Millis(1_000)));
        let second = first.next(Millis(1_000));
        assert!(second > first);
        assert!(second.next(Millis(10)) > second);
        assert_eq!(second.next(Millis(2_000)), Hlc::at(Millis(2_000)));
    }

    #[test]
    fn a_full_counter_overflows_into_the_milliseconds() {
        let full = Hlc((7 << 16) | 0xffff);
        assert_eq!(full.next(Millis(7)), Hlc::at(Millis(8)));
    }
}

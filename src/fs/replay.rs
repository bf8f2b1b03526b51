//! What is to be shown to inotify's watchers: changes from elsewhere, which the mount replays through itself.
//!
//! The kernel tells watchers of calls that go through it, and of nothing else. So a thread of the mount makes the call that would
//! have made the change (see `replayer`), and the mount answers it from what is there already. This holds what waits for that
//! thread and what it is about to do: the only calls of that thread that are answered so. Others never wait for it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::place::Type;
use super::tree::locked;

/// Names that wait at most: as many events as the kernel keeps for one watcher. Of what comes on top, watchers of the directory
/// hear that something in it changed.
const MOST: usize = 16_384;

/// A directory's inode and a name in it.
pub(crate) type Name = (u64, Box<[u8]>);

/// What was removed: its inode, if the kernel had it, and its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ghost {
    pub(crate) ino: Option<u64>,
    pub(crate) kind: Type,
}

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// It leads to something now.
    Appear,
    /// It leads to nothing any more.
    Vanish(Ghost),
    /// It leads to something else.
    Replace(Ghost),
    /// The content changed.
    Change,
    /// The attributes changed.
    Attributes,
}

impl Act {
    /// Both, the other after this, as one.
    const fn and(self, then: Self) -> Self {
        match (self, then) {
            (Self::Vanish(ghost) | Self::Replace(ghost), Self::Appear | Self::Replace(_)) => Self::Replace(ghost),
            (_, Self::Vanish(_) | Self::Replace(_)) => then,
            (Self::Attributes | Self::Vanish(_), _) | (Self::Change, Self::Appear) => then,
            (Self::Appear | Self::Replace(_) | Self::Change, _) => self,
        }
    }
}

/// The call that the thread is about to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One that makes a name.
    Making(Type),
    /// One that removes it.
    Removing(Ghost),
    /// One that removes what was there; something else is already.
    Replacing(Ghost),
    /// One that changes nothing.
    Touching,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<Name>,
    acts: HashMap<Name, Act>,
    /// Directories in which more changed than waits by name: no more than [`MOST`].
    directories: BTreeSet<u64>,
    /// Inodes that are kept for what waits: no more than [`MOST`].
    pinned: Vec<u64>,
    current: Option<(Name, Expected)>,
    stop: bool,
}

impl Queue {
    fn crowd(&mut self, directory: u64) {
        if self.directories.len() < MOST {
            self.directories.insert(directory);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    on: AtomicBool,
    /// The thread, as the kernel names it in its calls. 0: none.
    thread: AtomicU32,
    /// The name that the thread looks up first, which nobody else knows.
    greeting: OnceLock<Box<[u8]>>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Replay {
    /// Begins to take what [`Replay::add`] brings.
    pub(crate) fn start(&self, greeting: &[u8]) {
        drop(self.greeting.set(greeting.into()));
        self.on.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Whether this thread's calls are replays.
    pub(crate) fn is_by(&self, thread: u32) -> bool {
        thread != 0 && thread == self.thread.load(Ordering::Relaxed)
    }

    /// A thread looks up a name: the one that knows the greeting is the one that replays.
    pub(crate) fn greeted(&self, name: &[u8], thread: u32) {
        if self.thread.load(Ordering::Relaxed) == 0 && self.greeting.get().is_some_and(|known| **known == *name) {
            self.thread.store(thread, Ordering::SeqCst);
        }
    }

    /// Whether the thread was recognized.
    pub(crate) fn is_ready(&self) -> bool {
        self.thread.load(Ordering::SeqCst) != 0
    }

    /// No call is a replay any more, and nothing is taken.
    pub(crate) fn end(&self) {
        self.on.store(false, Ordering::SeqCst);
        self.thread.store(0, Ordering::SeqCst);
        let mut queue = locked(&self.queue);
        let pinned = std::mem::take(&mut queue.pinned);
        *queue = Queue { stop: true, pinned, ..Queue::default() };
    }

    /// Makes the thread end after the call that it is in.
    pub(crate) fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
        locked(&self.queue).stop = true;
        self.changed.notify_all();
    }

    /// Has a change replayed, soon.
    pub(crate) fn add(&self, parent: u64, name: &[u8], act: Act) {
        if !self.is_on() {
            return;
        }
        let mut queue = locked(&self.queue);
        let key = (parent, Box::from(name));
        if let Some(known) = queue.acts.get_mut(&key) {
            *known = known.and(act);
        } else if queue.order.len() < MOST {
            queue.acts.insert(key.clone(), act);
            queue.order.push_back(key);
        } else {
            queue.crowd(parent);
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Has watchers of a directory told that something in it changed.
    pub(crate) fn add_directory(&self, directory: u64) {
        if self.is_on() {
            locked(&self.queue).crowd(directory);
            self.changed.notify_one();
        }
    }

    /// Notes an inode that is to be pinned for what waits; `false` if there are too many. What comes in it is then not told.
    pub(crate) fn pins(&self, ino: u64) -> bool {
        let mut queue = locked(&self.queue);
        let room = queue.pinned.len() < MOST;
        if room {
            queue.pinned.push(ino);
        }
        room
    }

    /// Waits until there is something, and then for as long as `gather` says for what comes with it. How many names wait; `None` if
    /// it is over.
    pub(crate) fn wait(&self, gather: impl FnOnce() -> Duration) -> Option<usize> {
        let mut queue = locked(&self.queue);
        while !queue.stop && queue.order.is_empty() && queue.directories.is_empty() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let gather = gather();
        if !gather.is_zero() {
            let more = |queue: &mut Queue| !queue.stop && queue.order.len() < MOST;
            let waited = self.changed.wait_timeout_while(queue, gather, more);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (!queue.stop).then_some(queue.order.len())
    }

    /// The next name; what is done with it is to be said by [`Replay::expect`]. `None` if there is none, or it is over.
    pub(crate) fn next(&self) -> Option<(Name, Act)> {
        let mut queue = locked(&self.queue);
        queue.current = None;
        if queue.stop {
            return None;
        }
        let name = queue.order.pop_front()?;
        let act = queue.acts.remove(&name)?;
        Some((name, act))
    }

    /// The call that the thread is about to make.
    pub(crate) fn expect(&self, name: &Name, expected: Expected) {
        locked(&self.queue).current = Some((name.clone(), expected));
    }

    /// The directories that wait, and what was pinned; nothing is expected any more.
    pub(crate) fn rest(&self) -> (BTreeSet<u64>, Vec<u64>) {
        let mut queue = locked(&self.queue);
        queue.current = None;
        let pinned = if queue.order.is_empty() { std::mem::take(&mut queue.pinned) } else { Vec::new() };
        (std::mem::take(&mut queue.directories), pinned)
    }

    /// What is expected of a name.
    pub(crate) fn expected(&self, parent: u64, name: &[u8]) -> Option<Expected> {
        let queue = locked(&self.queue);
        let is = |(at, known): &Name| *at == parent && **known == *name;
        queue.current.as_ref().filter(|(at, _)| is(at)).map(|(_, expected)| *expected)
    }

    /// The removal of a name, if it waits to be replayed: what lies below it, and waits as well, is found through it.
    pub(crate) fn removed(&self, parent: u64, name: &[u8]) -> Option<Expected> {
        match locked(&self.queue).acts.get(&(parent, Box::from(name))) {
            Some(Act::Vanish(ghost)) => Some(Expected::Removing(*ghost)),
            Some(Act::Replace(ghost)) => Some(Expected::Replacing(*ghost)),
            Some(Act::Appear | Act::Change | Act::Attributes) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHOST: Ghost = Ghost { ino: Some(7), kind: Type::File };

    fn replay() -> Replay {
        let replay = Replay::default();
        replay.start(b"hello");
        replay
    }

    #[test]
    fn changes_of_one_name_that_wait_are_one() {
        let replay = replay();
        for (acts, one) in [
            (&[Act::Appear, Act::Change, Act::Attributes][..], Act::Appear),
            (&[Act::Attributes, Act::Change, Act::Attributes], Act::Change),
            (&[Act::Vanish(GHOST), Act::Appear, Act::Change], Act::Replace(GHOST)),
            (&[Act::Appear, Act::Vanish(GHOST)], Act::Vanish(GHOST)),
            (&[Act::Replace(GHOST), Act::Vanish(GHOST)], Act::Vanish(GHOST)),
            (&[Act::Change, Act::Replace(GHOST)], Act::Replace(GHOST)),
        ] {
            for act in acts {
                replay.add(1, b"a", *act);
            }
            assert_eq!(replay.next(), Some(((1, Box::from(&b"a"[..])), one)), "{acts:?}");
            assert_eq!(replay.next(), None);
        }
    }

    #[test]
    fn what_is_more_than_can_wait_is_told_by_directory() {
        let replay = replay();
        for number in 0..=MOST {
            replay.add(1 + (number / MOST) as u64, number.to_string().as_bytes(), Act::Change);
        }
        assert_eq!(replay.wait(|| Duration::ZERO), Some(MOST));
        while replay.next().is_some() {}
        assert_eq!(replay.rest().0, BTreeSet::from([2]));
    }

    #[test]
    fn no_more_is_kept_for_what_waits_than_can_wait() {
        let replay = replay();
        let most = MOST as u64;
        for ino in 0..=most {
            assert_eq!(replay.pins(ino), ino < most);
            replay.add_directory(ino);
        }
        let (directories, pinned) = replay.rest();
        assert_eq!((directories.len(), pinned.len()), (MOST, MOST));
        assert!(replay.pins(0));
    }

    #[test]
    fn only_the_thread_that_knows_the_greeting_replays_and_only_until_the_end() {
        let replay = replay();
        assert!(!replay.is_by(0));
        replay.greeted(b"good day", 5);
        assert!(!replay.is_by(5));
        replay.greeted(b"hello", 6);
        replay.greeted(b"hello", 5);
        assert!(replay.is_by(6) && !replay.is_by(5));
        replay.end();
        assert!(!replay.is_by(6));
    }

    #[test]
    fn what_was_removed_is_found_until_its_removal_is_replayed() {
        let replay = replay();
        replay.add(1, b"d", Act::Vanish(GHOST));
        assert_eq!(replay.removed(1, b"d"), Some(Expected::Removing(GHOST)));
        let (name, _) = replay.next().unwrap();
        replay.expect(&name, Expected::Removing(GHOST));
        assert_eq!(replay.removed(1, b"d"), None);
        assert_eq!(replay.expected(1, b"d"), Some(Expected::Removing(GHOST)));
        assert_eq!(replay.next(), None);
        assert_eq!(replay.expected(1, b"d"), None);
    }

    #[test]
    fn once_stopped_nothing_waits_and_nothing_is_taken() {
        let replay = replay();
        replay.add(1, b"a", Act::Change);
        replay.stop();
        assert_eq!(replay.wait(|| Duration::ZERO), None);
        assert_eq!(replay.next(), None);
        replay.add(1, b"b", Act::Change);
        assert_eq!(replay.next(), None);
    }
}

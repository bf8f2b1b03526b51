//! `stores/<name>/.watch`: a line of JSON for each change from when it was opened on. Reading waits for the next one.
//!
//! No thread that answers the kernel waits: a reading that has to is put down here, and answered by whoever brings the change. A
//! store's lines are kept once for all its readers, and no more than [`KEPT`] bytes of them: a reader that is slower is told how
//! many it missed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::errno::{self, Answer};
use super::signals::interrupted;
use super::tree::locked;
use crate::clock::{self, Hlc};
use crate::ids::StoreId;
use crate::replication::log::Event;
use crate::replication::membership::Membership;

/// Bytes of lines kept for the readers of a store.
const KEPT: usize = 1 << 20;
/// How often it is looked whether a signal waits for who reads.
const LOOK: Duration = Duration::from_millis(100);
/// Who can't be looked at is sent back after this long: it may read again.
const UNSEEN: Duration = Duration::from_secs(1);

/// Takes the answer to a reading.
pub(crate) type Answered = Box<dyn FnOnce(Answer<Vec<u8>>) + Send>;
/// Wakes who polls.
pub(crate) type Wake = Box<dyn FnOnce() + Send>;

/// The lines of a store that are kept.
#[derive(Default)]
struct Lines {
    lines: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// The number of the first of them, of all that there were.
    first: u64,
}

impl Lines {
    fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    fn push(&mut self, line: Arc<[u8]>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > KEPT {
            let Some(gone) = self.lines.pop_front() else { return };
            self.bytes -= gone.len();
            self.first += 1;
        }
    }

    fn get(&self, number: u64) -> Option<&Arc<[u8]>> {
        self.lines.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

struct Waits {
    thread: u32,
    since: Instant,
    size: usize,
    answer: Answered,
}

struct Reader {
    store: StoreId,
    /// The number of its next line.
    at: u64,
    /// How many entries the store had when this began: what is told of them comes late, and is not for this reader.
    from: u64,
    /// What is left of a line that was longer than what was asked for.
    rest: Vec<u8>,
    /// Whether changes were missed whose number is not known.
    lagged: bool,
    waiting: VecDeque<Waits>,
    polling: Option<Wake>,
    over: bool,
}

impl Reader {
    fn is_ready(&self, lines: &Lines) -> bool {
        self.over || self.lagged || !self.rest.is_empty() || self.at < lines.end()
    }

    /// The next bytes, at most `size`: whole lines, unless one alone is longer. To be called when it is ready.
    fn take(&mut self, lines: &Lines, size: usize) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.rest);
        if std::mem::take(&mut self.lagged) {
            out.extend_from_slice(b"{\"what\":\"lagged\",\"changes\":null}\n");
            self.at = lines.end();
        }
        if self.at < lines.first {
            out.extend_from_slice(
                format!("{}\n", json!({"what": "lagged", "changes": lines.first - self.at})).as_bytes(),
            );
            self.at = lines.first;
        }
        while let Some(line) = lines.get(self.at).filter(|line| out.is_empty() || out.len() + line.len() <= size) {
            out.extend_from_slice(line);
            self.at += 1;
        }
        if out.len() > size {
            self.rest = out.split_off(size);
        }
        out
    }
}

#[derive(Default)]
struct State {
    stores: BTreeMap<StoreId, Lines>,
    readers: BTreeMap<u64, Reader>,
    next: u64,
    over: bool,
}

type Ready = Vec<Box<dyn FnOnce() + Send>>;

impl State {
    /// What is to be called, under no lock, for those who can go on.
    fn ready(&mut self) -> Ready {
        let mut ready: Ready = Vec::new();
        for reader in self.readers.values_mut() {
            let Some(lines) = self.stores.get(&reader.store) else { continue };
            while reader.is_ready(lines)
                && let Some(Waits { size, answer, .. }) = reader.waiting.pop_front()
            {
                let bytes = reader.take(lines, size);
                ready.push(Box::new(move || answer(Ok(bytes))));
            }
            if reader.is_ready(lines) {
                ready.extend(reader.polling.take());
            }
        }
        ready
    }

    fn push(&mut self, store: &StoreId, lines: &[Arc<[u8]>], number: Option<u64>) {
        let Some(kept) = self.stores.get_mut(store) else { return };
        let before = kept.end();
        lines.iter().for_each(|line| kept.push(Arc::clone(line)));
        let readers = self.readers.values_mut().filter(|reader| reader.store == *store && reader.at == before);
        for reader in readers.filter(|reader| number.is_some_and(|number| number < reader.from)) {
            reader.at = kept.end();
        }
    }

    fn waiting(&self) -> bool {
        self.readers.values().any(|reader| !reader.waiting.is_empty())
    }

    /// Those who are not to wait any longer.
    fn give_up(&mut self) -> Ready {
        let now = clock::monotonic();
        let mut ready: Ready = Vec::new();
        for reader in self.readers.values_mut() {
            for waits in std::mem::take(&mut reader.waiting) {
                if interrupted(waits.thread).unwrap_or(now - waits.since > UNSEEN) {
                    ready.push(Box::new(move || (waits.answer)(Err(errno::INTERRUPTED))));
                } else {
                    reader.waiting.push_back(waits);
                }
            }
        }
        ready
    }
}

/// Who watches which store.
#[derive(Default)]
pub(crate) struct Changes {
    state: Mutex<State>,
    changed: Condvar,
    /// How many watch: to ask costs those nothing who bring changes that nobody watches.
    readers: AtomicUsize,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}

fn go(ready: Ready) {
    ready.into_iter().for_each(|go| go());
}

fn lines(event: &Event, members: &Membership) -> Vec<Arc<[u8]>> {
    let header = event.entry.header();
    let line = |change: &crate::replication::machine::Change| {
        let mut value = json!({
            "what": change.what.name(), "path": String::from_utf8_lossy(&change.key),
            "author": header.author.to_string(), "author_name": members.name(&header.author),
            "seq": header.seq, "hlc": header.hlc.0, "time": clock::name(Hlc::at(header.hlc.millis())),
            "hash": event.entry.hash().to_string(),
        });
        if std::str::from_utf8(&change.key).is_err() {
            value["path_hex"] = data_encoding::HEXLOWER.encode(&change.key).into();
        }
        Arc::from(format!("{value}\n").into_bytes())
    };
    event.effects.changes.iter().map(line).collect()
}

impl Changes {
    /// Begins to watch a store that gave `from` numbers to entries so far; what is returned names the reader.
    pub(crate) fn open(&self, store: StoreId, from: u64) -> u64 {
        let mut state = locked(&self.state);
        let at = state.stores.entry(store).or_default().end();
        let number = state.next;
        state.next += 1;
        let over = state.over;
        let (rest, waiting) = (Vec::new(), VecDeque::new());
        state.readers.insert(number, Reader { store, at, from, rest, lagged: false, waiting, polling: None, over });
        self.readers.store(state.readers.len(), Ordering::SeqCst);
        number
    }

    /// Watches no more.
    pub(crate) fn close(&self, reader: u64) {
        let mut state = locked(&self.state);
        let Some(gone) = state.readers.remove(&reader) else { return };
        self.readers.store(state.readers.len(), Ordering::SeqCst);
        if !state.readers.values().any(|other| other.store == gone.store) {
            state.stores.remove(&gone.store);
        }
        drop(state);
        go(gone.waiting.into_iter().map(|waits| Box::new(move || (waits.answer)(Ok(Vec::new()))) as Wake).collect());
    }

    /// Reads at most `size` bytes: `answer` gets them at once, or when there are some; nothing when the store is gone. The thread that
    /// reads is told of a signal that waits for it; one that will not wait, that there is nothing yet.
    pub(crate) fn read(&self, reader: u64, size: usize, thread: u32, waits: bool, answer: Answered) {
        let mut state = locked(&self.state);
        let state = &mut *state;
        let found = state.readers.get_mut(&reader).map(|reader| (state.stores.get(&reader.store), reader));
        let Some((Some(lines), reader)) = found else { return answer(Err(errno::INVALID)) };
        if reader.is_ready(lines) && reader.waiting.is_empty() {
            let bytes = reader.take(lines, size);
            return answer(Ok(bytes));
        }
        if !waits {
            return answer(Err(errno::NOTHING_YET));
        }
        reader.waiting.push_back(Waits { thread, since: clock::monotonic(), size, answer });
        self.changed.notify_one();
    }

    /// Whether there is something to read; if not, `wake` is called when there is.
    pub(crate) fn poll(&self, reader: u64, wake: Wake) -> bool {
        let mut state = locked(&self.state);
        let state = &mut *state;
        let found = state.readers.get_mut(&reader).map(|reader| (state.stores.get(&reader.store), reader));
        let Some((Some(lines), reader)) = found else { return true };
        let ready = reader.is_ready(lines);
        if !ready {
            reader.polling = Some(wake);
        }
        ready
    }

    /// Whether someone watches.
    pub(crate) fn any(&self) -> bool {
        self.readers.load(Ordering::SeqCst) > 0
    }

    /// Takes an entry that was included, and its number.
    pub(crate) fn take(&self, event: &Event, members: &Membership, number: Option<u64>) {
        let mut state = locked(&self.state);
        state.push(&event.store, &lines(event, members), number);
        let ready = state.ready();
        drop(state);
        go(ready);
    }

    /// Entries were missed.
    pub(crate) fn lagged(&self) {
        let mut state = locked(&self.state);
        state.readers.values_mut().for_each(|reader| reader.lagged = true);
        let ready = state.ready();
        drop(state);
        go(ready);
    }

    /// Ends the watching of stores that are not among `stores`.
    pub(crate) fn keep(&self, stores: &BTreeSet<StoreId>) {
        if !self.any() {
            return;
        }
        let mut state = locked(&self.state);
        state.readers.values_mut().for_each(|reader| reader.over |= !stores.contains(&reader.store));
        let ready = state.ready();
        drop(state);
        go(ready);
    }

    /// Ends all watching, now and later.
    pub(crate) fn end(&self) {
        let mut state = locked(&self.state);
        state.over = true;
        state.readers.values_mut().for_each(|reader| reader.over = true);
        let ready = state.ready();
        drop(state);
        self.changed.notify_all();
        go(ready);
    }

    /// Looks after those who wait, until the end.
    pub(crate) fn run(&self) {
        let mut state = locked(&self.state);
        while !state.over {
            if state.waiting() {
                state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
                let ready = state.give_up();
                drop(state);
                go(ready);
                state = locked(&self.state);
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const STORE: StoreId = StoreId([1; 32]);

    fn bring(changes: &Changes, text: &str) {
        let mut state = locked(&changes.state);
        state.push(&STORE, &[Arc::from(format!("{text}\n").into_bytes())], Some(text.len() as u64));
        let ready = state.ready();
        drop(state);
        go(ready);
    }

    fn read(changes: &Changes, reader: u64, size: usize, thread: u32) -> Receiver<Answer<Vec<u8>>> {
        let (send, answers) = channel();
        changes.read(reader, size, thread, true, Box::new(move |answer| send.send(answer).unwrap()));
        answers
    }

    fn text(answers: &Receiver<Answer<Vec<u8>>>) -> String {
        String::from_utf8(answers.try_recv().expect("an answer").unwrap()).unwrap()
    }

    #[test]
    fn each_reader_gets_each_line_once_from_when_it_began() {
        let changes = Changes::default();
        let one = changes.open(STORE, 0);
        bring(&changes, "a");
        let two = changes.open(STORE, 0);
        let waits = read(&changes, two, 100, 1);
        assert!(waits.try_recv().is_err());
        bring(&changes, "b");
        bring(&changes, "c");
        assert_eq!(text(&waits), "b\n");
        assert_eq!(text(&read(&changes, two, 100, 1)), "c\n");
        assert_eq!(text(&read(&changes, one, 4, 1)), "a\nb\n");
        // A line that is longer than what is asked for comes in parts.
        assert_eq!(text(&read(&changes, one, 1, 1)), "c");
        assert_eq!(text(&read(&changes, one, 1, 1)), "\n");
        let refused = channel();
        changes.read(one, 9, 1, false, Box::new(move |answer| refused.0.send(answer).unwrap()));
        assert_eq!(refused.1.recv().unwrap().unwrap_err().number(), libc::EAGAIN);
    }

    #[test]
    fn what_was_there_when_a_reader_began_is_not_told_to_it_however_late_it_is_told() {
        let changes = Changes::default();
        let (early, late) = (changes.open(STORE, 0), changes.open(STORE, 5));
        let waits = read(&changes, late, 100, 1);
        bring(&changes, "four");
        assert!(waits.try_recv().is_err());
        bring(&changes, "five5");
        assert_eq!(text(&waits), "five5\n");
        assert_eq!(text(&read(&changes, early, 100, 1)), "four\nfive5\n");
    }

    #[test]
    fn a_slow_reader_is_told_how_many_lines_it_missed_and_no_more_are_kept() {
        let changes = Changes::default();
        let slow = changes.open(STORE, 0);
        let line = "x".repeat(1_023);
        for _ in 0..1_024 + 10 {
            bring(&changes, &line);
        }
        let got = text(&read(&changes, slow, 2_000, 1));
        assert_eq!(got.lines().next(), Some("{\"changes\":10,\"what\":\"lagged\"}"));
        assert!(locked(&changes.state).stores[&STORE].bytes <= KEPT);
        changes.lagged();
        assert_eq!(text(&read(&changes, slow, 2_000, 1)), "{\"what\":\"lagged\",\"changes\":null}\n");
        changes.close(slow);
        assert!(locked(&changes.state).stores.is_empty());
    }

    #[test]
    fn watching_ends_with_the_store_and_with_the_mount() {
        let changes = Changes::default();
        let one = changes.open(STORE, 0);
        let waits = read(&changes, one, 100, 1);
        changes.keep(&BTreeSet::from([STORE]));
        assert!(waits.try_recv().is_err());
        changes.keep(&BTreeSet::new());
        assert_eq!(text(&waits), "");
        let other = changes.open(STORE, 0);
        let (woken, wakes) = channel();
        assert!(!changes.poll(other, Box::new(move || woken.send(()).unwrap())));
        let waits = read(&changes, other, 100, 1);
        changes.end();
        assert_eq!(text(&waits), "");
        wakes.try_recv().unwrap();
        assert_eq!(text(&read(&changes, changes.open(STORE, 0), 100, 1)), "");
        changes.run();
    }

    #[test]
    fn who_is_gone_or_can_not_be_looked_at_does_not_wait_for_ever() {
        let changes = Arc::new(Changes::default());
        let runs = std::thread::spawn({
            let changes = Arc::clone(&changes);
            move || changes.run()
        });
        let reader = changes.open(STORE, 0);
        for nobody in [u32::MAX / 2, 0] {
            let answer = read(&changes, reader, 100, nobody).recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(answer.unwrap_err().number(), libc::EINTR);
        }
        changes.end();
        runs.join().unwrap();
    }
}

#![allow(dead_code, reason = "some of it serves only some tests")]
//! A disk that stops, fills up or fails where a test wants it, and shows what a crash would leave.

use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex};

enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What goes wrong, counted from the moment it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The machine stops when this many syncs are done: nothing works from then on.
    Stop {
        syncs: u64,
    },
    /// After this many changes of the file each further one fails with this error of the system.
    Refuse {
        changes: u64,
        error: i32,
    },
    /// After this many changes there is no room for more blocks of 4 KiB: only those in use can be written.
    Full {
        changes: u64,
    },
    /// After this many changes one fails.
    Once {
        changes: u64,
        error: i32,
    },
}

#[derive(Default)]
struct State {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    used: BTreeSet<usize>,
    fault: Option<Fault>,
    syncs: u64,
    changes: u64,
    failed: u64,
}

impl State {
    fn alive(&self) -> Result<()> {
        match self.fault {
            Some(Fault::Stop { syncs }) if self.syncs >= syncs => Err(Error::other("the machine has stopped")),
            _ => Ok(()),
        }
    }

    fn has_room(&self, change: &Change) -> bool {
        blocks(change).all(|block| self.used.contains(&block))
    }

    fn change(&mut self, change: Change) -> Result<()> {
        self.alive()?;
        self.changes += 1;
        match self.fault {
            Some(Fault::Refuse { changes, error }) if self.changes > changes => {
                self.failed += 1;
                return Err(Error::from_raw_os_error(error));
            }
            Some(Fault::Full { changes }) if self.changes > changes && !self.has_room(&change) => {
                self.failed += 1;
                return Err(Error::from_raw_os_error(libc::ENOSPC));
            }
            Some(Fault::Once { changes, error }) if self.changes == changes + 1 => {
                self.failed += 1;
                return Err(Error::from_raw_os_error(error));
            }
            _ => {}
        }
        self.used.extend(blocks(&change));
        apply(&mut self.now, &change);
        self.unsynced.push(change);
        Ok(())
    }
}

fn blocks(change: &Change) -> impl Iterator<Item = usize> + use<> {
    match change {
        Change::Write(start, data) => start / 4_096..(start + data.len()).div_ceil(4_096),
        Change::Length(_) => 0..0,
    }
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(start, data) => {
            if file.len() < start + data.len() {
                file.resize(start + data.len(), 0);
            }
            file[*start..start + data.len()].copy_from_slice(data);
        }
        Change::Length(len) => file.resize(*len, 0),
    }
}

/// Shared by its clones.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    fn holding(file: Vec<u8>) -> Self {
        let used = (0..file.len().div_ceil(4_096)).collect();
        Self(Arc::new(Mutex::new(State { now: file.clone(), synced: file, used, ..State::default() })))
    }

    /// What goes wrong from now on.
    pub(crate) fn set(&self, fault: Fault) {
        let mut state = self.0.lock().unwrap();
        (state.syncs, state.changes, state.failed) = (0, 0, 0);
        state.fault = Some(fault);
    }

    /// How many changes were refused since the fault was set.
    pub(crate) fn failed(&self) -> u64 {
        self.0.lock().unwrap().failed
    }

    /// What a power failure leaves at least: what was synced.
    pub(crate) fn crash(&self) -> Self {
        Self::holding(self.0.lock().unwrap().synced.clone())
    }

    /// What the end of the process leaves: all that was written.
    pub(crate) fn killed(&self) -> Self {
        Self::holding(self.0.lock().unwrap().now.clone())
    }

    /// What a power failure may leave: of what was not synced some, by `seed`, in parts of 512 bytes.
    pub(crate) fn torn(&self, seed: u64) -> Self {
        let state = self.0.lock().unwrap();
        let mut file = state.synced.clone();
        let mut random = seed;
        let mut toss = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random >> 63 == 1
        };
        for change in &state.unsynced {
            match change {
                Change::Write(start, data) => {
                    for (n, part) in data.chunks(512).enumerate() {
                        if toss() {
                            apply(&mut file, &Change::Write(start + n * 512, part.to_vec()));
                        }
                    }
                }
                Change::Length(_) => {
                    if toss() {
                        apply(&mut file, change);
                    }
                }
            }
        }
        Self::holding(file)
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> Result<u64> {
        let state = self.0.lock().unwrap();
        state.alive()?;
        Ok(state.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let state = self.0.lock().unwrap();
        state.alive()?;
        let start = usize::try_from(offset).unwrap();
        match state.now.get(start..start + out.len()) {
            Some(data) => out.copy_from_slice(data),
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.0.lock().unwrap().change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        state.alive()?;
        state.syncs += 1;
        state.alive()?;
        let State { synced, unsynced, .. } = &mut *state;
        for change in unsynced.drain(..) {
            apply(synced, &change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.lock().unwrap().change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}

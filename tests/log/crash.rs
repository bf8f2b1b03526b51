//! Crashes at every sync, full and failing disks at every write, damaged files.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use lattice::clock::monotonic;
use lattice::replication::database::DatabaseError;
use lattice::replication::verify::verify;

use super::disk::Fault;
use super::*;

/// What a node did and was told before its disk stopped.
struct Run {
    log: Option<Log>,
    sent: Sent,
    /// Own entries whose durability was confirmed.
    confirmed: Vec<Hash>,
}

/// The other node's chain, that is included here.
fn theirs() -> Vec<Entry> {
    let mut chain: Vec<Entry> = Vec::new();
    let mut stamp = Hlc::at(NOW);
    for seq in 0..40 {
        stamp = stamp.next(NOW);
        chain.push(crafted(2, seq, chain.last().map(Entry::hash), vec![], stamp));
    }
    chain
}

/// Writes and includes until that is done or the disk fails.
fn work(log: Log) -> Run {
    let sent = sent(&log);
    let mut run = Run { log: None, sent, confirmed: Vec::new() };
    let mut steps = || -> std::result::Result<(), SubmitError> {
        for (n, batch) in theirs().chunks(10).enumerate() {
            let mut own = Vec::new();
            for k in 0..=n {
                own.push(log.submit(&[u8::try_from(k).unwrap(); 3_000], Origin::Local)?);
            }
            log.include(batch, Origin::Pulled)?;
            log.database().flush()?;
            log.database().flush()?;
            run.confirmed.extend(own.iter().map(|receipt| receipt.hash));
        }
        Ok(())
    };
    drop(steps());
    run.log = Some(log);
    run
}

/// Merges runs all the time, in small parts.
fn busy(database: Database) -> Log {
    Log::with(database.merging(15_000, Duration::ZERO), parts(1)).unwrap()
}

fn fresh() -> Disk {
    let disk = Disk::default();
    let log = open(&disk, 1);
    log.database().flush().unwrap();
    drop(log);
    disk
}

/// After `run`, `disk` must hold all that was confirmed or sent, and go on without a fork.
fn check(run: &Run, disk: &Disk, what: &str) {
    let log = Log::with(Database::in_memory(disk.clone()).unwrap_or_else(|error| panic!("{what}: {error}")), parts(1))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let view = log.database().durable().unwrap();
    for hash in &run.confirmed {
        assert!(log.get(&view, hash).unwrap().is_some(), "{what}: a confirmed entry is gone");
    }
    let sent = run.sent.lock().unwrap();
    for entry in sent.iter() {
        assert!(log.get(&view, &entry.hash()).unwrap().is_some(), "{what}: an entry that left the node is gone");
    }
    drop(view);
    let state = log.state_digest().unwrap();
    log.rebuild().unwrap();
    assert_eq!(log.state_digest().unwrap(), state, "{what}: the state is not that of the entries");
    log.submit(b"after", Origin::Local).unwrap();
    let other = open(&Disk::default(), 2);
    let all = |log: &Log| {
        let view = log.database().view().unwrap();
        let mut all = Vec::new();
        log.order(&view, (Hlc(0), Hash([0; 32])), false, &mut |_, hash| {
            all.push(log.get(&view, &hash).unwrap().unwrap());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        all
    };
    let outside: Vec<Entry> = sent.iter().cloned().chain(all(&log)).collect();
    assert!(
        verify(&outside).iter().all(|valid| *valid),
        "{what}: an entry is in the file or left without its signature"
    );
    for entry in sent.iter().chain(&theirs()).chain(&all(&log)) {
        let verdict = include(&other, entry);
        assert!(!matches!(verdict, Verdict::Rejected(_)), "{what}: {verdict:?}");
    }
    assert_eq!(entries(&other, 1), entries(&log, 1), "{what}");
}

#[test]
fn whenever_the_machine_stops_what_was_confirmed_or_sent_is_there_and_the_chain_goes_on() {
    let mut whole = false;
    for syncs in 0.. {
        let disk = fresh();
        let log = busy(Database::in_memory(disk.clone()).unwrap());
        disk.set(Fault::Stop { syncs });
        let run = work(log);
        check(&run, &disk.crash(), &format!("power failure at sync {syncs}"));
        check(&run, &disk.killed(), &format!("killed at sync {syncs}"));
        for seed in 0..4 {
            check(&run, &disk.torn(seed * 977 + syncs), &format!("torn at sync {syncs}, seed {seed}"));
        }
        if whole {
            assert!(syncs > 6, "the work takes several commits");
            break;
        }
        whole = run.confirmed.len() == 10;
    }
}

#[test]
fn a_disk_that_fails_at_any_write_loses_nothing_confirmed() {
    for error in [libc::EIO, libc::ENOSPC] {
        for changes in 0.. {
            let disk = fresh();
            let log = busy(Database::in_memory(disk.clone()).unwrap());
            disk.set(Fault::Refuse { changes, error });
            let run = work(log);
            let failed = disk.failed() > 0;
            if failed && error == libc::ENOSPC {
                let flush = run.log.as_ref().unwrap().database().flush();
                assert!(flush.is_err());
            }
            check(&run, &disk.crash(), &format!("error {error} at write {changes}, then power failure"));
            check(&run, &disk.killed(), &format!("error {error} at write {changes}, then killed"));
            check(&run, &disk.torn(changes), &format!("error {error} at write {changes}, torn"));
            if !failed {
                break;
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_with_that_reason_and_takes_them_again_when_there_is_room() {
    for changes in (0..60).step_by(3) {
        let disk = fresh();
        let storage = disk.clone();
        let log = busy(Database::over(move || storage.clone()).unwrap());
        let left = sent(&log);
        disk.set(Fault::Full { changes });
        let mut visible = Vec::new();
        let refused = loop {
            match log.submit(&[1; 3_000], Origin::Local) {
                Ok(receipt) => {
                    visible.push(receipt.hash);
                    if let Err(error) = log.wait(receipt.staged) {
                        break error;
                    }
                }
                Err(SubmitError::Database(error)) => break error,
                Err(error) => panic!("{error}"),
            }
        };
        assert!(matches!(refused, DatabaseError::Full { .. }), "write {changes}: {refused}");
        assert!(matches!(
            log.submit(b"while full", Origin::Local),
            Err(SubmitError::Database(DatabaseError::Full { .. }))
        ));
        let seen: Vec<_> = entries(&log, 1).iter().map(Entry::hash).collect();
        assert_eq!(seen, visible, "what was visible stays so, also while the disk is full");

        disk.set(Fault::None);
        let deadline = monotonic() + Duration::from_secs(20);
        let receipt = loop {
            match log.submit(b"again", Origin::Local) {
                Ok(receipt) => break receipt,
                Err(error) => assert!(monotonic() < deadline, "write {changes}: {error}"),
            }
            std::thread::yield_now();
        };
        log.wait(receipt.staged).unwrap();
        visible.push(receipt.hash);
        log.database().close().unwrap();
        let sent: Vec<_> = left.lock().unwrap().iter().map(Entry::hash).collect();
        assert_eq!(sent, visible, "each entry leaves once, in order");
        drop(log);
        let found: Vec<_> = entries(&open(&disk.crash(), 1), 1).iter().map(Entry::hash).collect();
        assert_eq!(found, visible);
    }
}

fn filled(dir: &std::path::Path, limit: usize) -> std::path::PathBuf {
    let path = dir.join("store.redb");
    let database = Database::open(&path, 1 << 20).unwrap().merging(limit, Duration::from_millis(2));
    let log = Log::with(database, parts(1)).unwrap();
    for n in 0..600u32 {
        let receipt = log.submit(&[&n.to_be_bytes()[..], &[7; 2_000]].concat(), Origin::Local).unwrap();
        if n % 10 == 0 {
            log.wait(receipt.staged).unwrap();
        }
    }
    log.database().flush().unwrap();
    drop(log);
    path
}

/// Opens the file and reads and writes all it can.
fn exercise(path: &std::path::Path) -> std::result::Result<usize, DatabaseError> {
    let log = Log::open(path, 1 << 20, parts(1))?;
    let found = {
        let view = log.database().view()?;
        log.tips(&view)?;
        log.chain(&view, &node(1), 0, usize::MAX)?.len()
    };
    log.state_digest()?;
    match log.submit(b"after", Origin::Local) {
        Ok(receipt) => log.wait(receipt.staged)?,
        Err(SubmitError::Database(error)) => return Err(error),
        Err(error) => panic!("{error}"),
    }
    log.database().close()?;
    Ok(found)
}

#[test]
fn a_damaged_file_gives_a_clear_error_or_all_of_its_entries_and_never_a_panic() {
    for limit in [100_000, usize::MAX] {
        damage(limit);
    }
}

fn damage(limit: usize) {
    let dir = tempfile::tempdir().unwrap();
    let good = filled(dir.path(), limit);
    let bad = dir.path().join("bad.redb");
    let size = std::fs::metadata(&good).unwrap().len();
    let mut refused = 0;
    let mut try_it = |what: String, spoil: &dyn Fn(&std::fs::File)| {
        std::fs::copy(&good, &bad).unwrap();
        spoil(&std::fs::File::options().read(true).write(true).open(&bad).unwrap());
        match exercise(&bad) {
            Ok(found) => assert_eq!(found, 600, "{what}"),
            Err(error @ DatabaseError::Corrupt { .. }) => {
                assert!(error.to_string().contains("bad.redb"), "{what}: {error}");
                refused += 1;
            }
            Err(DatabaseError::Stopped { cause, .. }) if cause.contains("bad.redb") => refused += 1,
            Err(error) => panic!("{what}: {error:?}"),
        }
    };
    for part in 0..32 {
        let at = size * part / 32;
        try_it(format!("cut to {at}"), &|file| file.set_len(at).unwrap());
        try_it(format!("8 KiB of zeros at {at}"), &|file| file.write_all_at(&[0; 8192], at).unwrap());
        try_it(format!("8 KiB of noise at {at}"), &|file| file.write_all_at(&[0xa5; 8192], at).unwrap());
        try_it(format!("a third of zeros from {at}"), &|file| {
            file.write_all_at(&vec![0; usize::try_from(size / 3).unwrap()], at).unwrap();
        });
    }
    assert!(refused > 20, "only {refused} were noticed");
}

#[test]
fn a_foreign_file_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for foreign in [&b"a letter"[..], &[0; 100_000], &[0xff; 100_000], b""] {
        std::fs::write(&path, foreign).unwrap();
        let refused = exercise(&path);
        assert!(matches!(refused, Err(DatabaseError::Corrupt { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&path).unwrap(), foreign);
    }
    std::fs::remove_file(&path).unwrap();
    let other = redb::Database::create(&path).unwrap();
    let txn = other.begin_write().unwrap();
    drop(txn.open_table(redb::TableDefinition::<u64, u64>::new("theirs")).unwrap());
    txn.commit().unwrap();
    drop(other);
    assert!(matches!(exercise(&path), Err(DatabaseError::Corrupt { .. })));
}

#[test]
fn a_file_whose_making_was_broken_off_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.part"), [7; 5_000]).unwrap();
    assert_eq!(exercise(&dir.path().join("store.redb")).unwrap(), 0);
    assert!(!dir.path().join("store.part").exists());
}

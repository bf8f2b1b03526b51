//! Work that fails half-way, threads that meet, files that are not what they should be.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use lattice::replication::database::{DatabaseError, Layer};

use super::disk::Fault;
use super::*;

/// Fails in the way that a payload names.
struct Fragile;

impl StateMachine for Fragile {
    fn kind(&self) -> &'static str {
        "fragile"
    }

    fn tables(&self) -> &'static [Table] {
        &["counts"]
    }

    fn apply(&self, txn: &mut Txn<'_>, entry: &Entry) -> Result<Effects> {
        assert!(entry.payload() != b"panic", "as it was told");
        if entry.payload() == b"error" {
            return Err(DatabaseError::Corrupt { path: "here".into(), what: "as it was told".into() });
        }
        Counting.apply(txn, entry)
    }
}

fn fragile(disk: &Disk) -> Log {
    let parts = Parts { machine: Arc::new(Fragile), ..parts(1) };
    Log::with(Database::in_memory(disk.clone()).unwrap(), parts).unwrap()
}

fn writes(log: &Log, write: impl FnOnce(&mut Txn<'_>)) -> Layer {
    let view = log.database().view().unwrap();
    let mut txn = Txn::new(&view);
    write(&mut txn);
    txn.finish()
}

/// Does `work` on a thread of its own, and fails if it hangs.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    finished.recv_timeout(Duration::from_secs(20)).expect("this hangs")
}

#[test]
fn an_entry_that_fails_half_way_leaves_no_trace_and_the_next_takes_its_place() {
    let log = fragile(&Disk::default());
    let first = log.submit(b"a", Origin::Local).unwrap();
    assert!(log.submit(b"error", Origin::Local).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(log.submit(b"panic", Origin::Local)))).is_err());
    assert_eq!(log.frontier().unwrap(), [first.hash]);
    let next = log.submit(b"b", Origin::Local).unwrap();
    assert_eq!(next.seq, 1);
    assert_eq!(log.fingerprint(&log.database().view().unwrap()).unwrap().count, 2);
    assert_eq!(log.frontier().unwrap(), [next.hash]);
    assert_eq!(entries(&log, 1).len(), 2);
}

#[test]
fn a_commit_that_failed_is_never_called_durable_later() {
    let disk = Disk::default();
    let log = open(&disk, 1);
    let left = sent(&log);
    let receipt = log.submit(b"a", Origin::Local).unwrap();
    disk.set(Fault::Once { changes: 0, error: libc::EIO });
    assert!(matches!(log.wait(receipt.staged), Err(DatabaseError::Io { .. })));
    assert!(matches!(log.wait(receipt.staged), Err(DatabaseError::Stopped { .. })));
    assert!(matches!(log.database().flush(), Err(DatabaseError::Stopped { .. })));
    assert!(matches!(log.submit(b"b", Origin::Local), Err(SubmitError::Database(DatabaseError::Stopped { .. }))));
    assert!(left.lock().unwrap().is_empty());
}

#[test]
fn nobody_waits_for_a_reader_and_what_it_sees_stays() {
    let disk = Disk::default();
    let log = Arc::new(Log::with(Database::over(move || disk.clone()).unwrap(), parts(1)).unwrap());
    log.submit(b"a", Origin::Local).unwrap();
    let view = log.database().view().unwrap();
    let writer = Arc::clone(&log);
    in_time(move || {
        for _ in 0..100 {
            let receipt = writer.submit(b"b", Origin::Local).unwrap();
            writer.wait(receipt.staged).unwrap();
        }
    });
    assert_eq!(log.chain(&view, &node(1), 0, usize::MAX).unwrap().len(), 1);
    assert_eq!(log.fingerprint(&view).unwrap().count, 1);
    assert_eq!(entries(&log, 1).len(), 101);
}

#[test]
fn an_outbox_gets_what_becomes_durable_from_then_on_each_entry_once_and_in_order() {
    let log = open(&Disk::default(), 1);
    log.submit(b"before", Origin::Local).unwrap();
    log.database().flush().unwrap();
    log.submit(b"a", Origin::Local).unwrap();
    let left = sent(&log);
    log.submit(b"b", Origin::Local).unwrap();
    log.database().flush().unwrap();
    let payloads: Vec<_> = left.lock().unwrap().iter().map(|entry| entry.payload().to_vec()).collect();
    assert_eq!(payloads, [b"a", b"b"]);
}

#[test]
fn a_fault_in_the_outbox_stops_neither_commits_nor_those_who_wait() {
    let disk = Disk::default();
    let log = Arc::new(Log::with(Database::over(move || disk.clone()).unwrap(), parts(1)).unwrap());
    log.outbox(Box::new(|_| panic!("as it was told")));
    let writer = Arc::clone(&log);
    in_time(move || {
        for _ in 0..3 {
            let receipt = writer.submit(b"a", Origin::Local).unwrap();
            writer.wait(receipt.staged).unwrap();
        }
    });
}

#[test]
fn threads_that_write_wait_and_close_at_once_lose_nothing_and_keep_the_order() {
    for round in 0..20 {
        let disk = Disk::default();
        let storage = disk.clone();
        let log = Arc::new(Log::with(Database::over(move || storage.clone()).unwrap(), parts(1)).unwrap());
        let left = sent(&log);
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let log = Arc::clone(&log);
                std::thread::spawn(move || {
                    for _ in 0..40 {
                        let receipt = log.submit(b"a", Origin::Local).unwrap();
                        log.wait(receipt.staged).unwrap();
                        let durable = log.database().durable().unwrap();
                        assert!(log.at(&durable, &node(1), receipt.seq).unwrap().is_some(), "acknowledged");
                    }
                })
            })
            .collect();
        let closer = Arc::clone(&log);
        let closed = std::thread::spawn(move || {
            for _ in 0..round {
                std::thread::yield_now();
            }
            closer.database().close().unwrap();
        });
        in_time(move || {
            closed.join().unwrap();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
        });
        let seqs: Vec<_> = left.lock().unwrap().iter().map(|entry| entry.header().seq).collect();
        assert_eq!(seqs, (0..120).collect::<Vec<_>>());
        drop(log);
        assert_eq!(entries(&open(&disk.crash(), 1), 1).len(), 120);
    }
}

#[test]
fn what_is_staged_after_closing_is_committed_by_dropping() {
    let disk = Disk::default();
    let storage = disk.clone();
    let log = Log::with(Database::over(move || storage.clone()).unwrap(), parts(1)).unwrap();
    log.database().close().unwrap();
    log.submit(b"late", Origin::Local).unwrap();
    drop(log);
    assert_eq!(entries(&open(&disk.crash(), 1), 1).len(), 1);
}

#[test]
fn genesis_is_taken_whatever_this_machines_clock_says() {
    let header = Header {
        store: StoreId::UNBORN,
        author: node(2),
        seq: 0,
        prev: None,
        deps: vec![],
        hlc: Hlc::at(Millis(NOW.0 * 2)),
        payload_len: 0,
        payload_hash: Hash([0; 32]),
    };
    let genesis = Entry::sign(&key(2), header, b"genesis").unwrap();
    let parts = Parts { store: StoreId(genesis.hash().0), ..parts(1) };
    let log = Log::with(Database::in_memory(Disk::default()).unwrap(), parts).unwrap();
    log.found(&genesis).unwrap();
    assert_eq!(log.frontier().unwrap(), [genesis.hash()]);
}

#[test]
fn rows_that_do_not_make_sense_stop_the_node_from_signing() {
    type Spoil = fn(&mut Txn<'_>);
    let cases: [(&str, Spoil); 6] = [
        ("a tip that does not read back", |txn| txn.put("tips", node(1).0, [1])),
        ("a tip that is gone", |txn| txn.remove("tips", node(1).0)),
        ("a counter that is gone", |txn| txn.remove("meta", *b"count")),
        ("a counter that does not read back", |txn| txn.put("meta", *b"count", [1])),
        ("an entry that is gone", |txn| txn.remove("entries", 1u64.to_be_bytes())),
        ("a frontier that is gone", |txn| {
            let view = txn.get("tips", &node(1).0).unwrap().unwrap();
            txn.remove("frontier", &view[16..]);
        }),
    ];
    for (what, spoil) in cases {
        let disk = Disk::default();
        let log = open(&disk, 1);
        log.submit(b"a", Origin::Local).unwrap();
        log.submit(b"b", Origin::Local).unwrap();
        let writes = writes(&log, spoil);
        log.database().stage(writes).unwrap();
        log.database().flush().unwrap();
        drop(log);
        let reopened = Log::with(Database::in_memory(disk.crash()).unwrap(), parts(1));
        let refused = match reopened {
            Err(DatabaseError::Corrupt { .. }) => true,
            Err(error) => panic!("{what}: {error}"),
            Ok(log) => {
                matches!(log.submit(b"c", Origin::Local), Err(SubmitError::Database(DatabaseError::Corrupt { .. })))
            }
        };
        assert!(refused, "{what}");
    }
}

#[test]
fn the_file_of_another_store_is_refused() {
    let disk = Disk::default();
    let log = open(&disk, 1);
    log.submit(b"a", Origin::Local).unwrap();
    log.database().flush().unwrap();
    let other = Parts { store: StoreId([8; 32]), ..parts(1) };
    let refused = Log::with(Database::in_memory(disk.crash()).unwrap(), other);
    assert!(matches!(refused, Err(DatabaseError::Corrupt { .. })));
}

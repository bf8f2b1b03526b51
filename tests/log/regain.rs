//! What a node does about its own entries that others have and it has not.

use std::sync::Arc;
use std::time::Duration;

use lattice::replication::log::{Origin, SubmitError};

use crate::disk::Disk;
use crate::open;

const LONG: Duration = Duration::from_secs(3_600);

#[test]
fn a_held_log_signs_after_a_members_word_or_when_none_comes_in_time() {
    let told = Arc::new(open(&Disk::default(), 1));
    told.hold(LONG);
    let writer = Arc::clone(&told);
    let write = std::thread::spawn(move || writer.submit(b"x", Origin::Local).map(|receipt| receipt.seq));
    told.abreast().unwrap();
    assert_eq!(write.join().unwrap().unwrap(), 0);
    assert!(!told.is_unconfirmed());

    let alone = open(&Disk::default(), 1);
    alone.hold(Duration::from_millis(1));
    assert_eq!(alone.submit(b"x", Origin::Local).unwrap().seq, 0);
    assert!(alone.is_unconfirmed());
}

#[test]
fn what_a_member_has_of_this_node_comes_before_anything_new_also_after_a_restart() {
    let disk = Disk::default();
    let log = open(&disk, 1);
    log.behind().unwrap();
    assert!(matches!(log.submit(b"x", Origin::Local), Err(SubmitError::Regaining)));
    log.database().flush().unwrap();
    drop(log);

    let log = Arc::new(open(&disk, 1));
    assert!(matches!(log.submit(b"x", Origin::Local), Err(SubmitError::Regaining)));
    log.hold(LONG);
    log.behind().unwrap();
    let writer = Arc::clone(&log);
    let write = std::thread::spawn(move || writer.submit(b"x", Origin::Local).map(|receipt| receipt.seq));
    log.abreast().unwrap();
    assert_eq!(write.join().unwrap().unwrap(), 0);
}

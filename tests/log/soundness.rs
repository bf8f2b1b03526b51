//! Looking at everything: a sound log has no fault, each kind of damage is one.

use lattice::replication::database::Flow;
use lattice::replication::log::Verified;
use std::ops::Bound;

use super::*;

fn verify(log: &Log) -> Verified {
    log.verify(&Counting, &Database::in_memory(Disk::default()).unwrap()).unwrap()
}

/// Entries of two nodes that name each other, and one that is kept aside.
fn filled() -> Log {
    let (one, two) = (open(&Disk::default(), 1), open(&Disk::default(), 2));
    for n in 0u8..100 {
        let (writer, reader) = if n % 3 == 0 { (&one, &two) } else { (&two, &one) };
        writer.submit(&[n % 7], Origin::Local).unwrap();
        if n % 5 == 0 {
            for entry in entries(writer, if n % 3 == 0 { 1 } else { 2 }) {
                include(reader, &entry);
            }
        }
    }
    for entry in entries(&two, 2) {
        include(&one, &entry);
    }
    let fork = crafted(2, 0, None, vec![], Hlc::at(NOW));
    assert!(matches!(include(&one, &fork), Verdict::Rejected(Rejected::Fork { .. })));
    one
}

fn rows(log: &Log, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let view = log.database().view().unwrap();
    view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        Flow::Continue(())
    })
    .unwrap();
    rows
}

fn write(log: &Log, table: Table, key: &[u8], value: Option<Vec<u8>>) {
    let view = log.database().view().unwrap();
    let mut txn = Txn::new(&view);
    match value {
        Some(value) => txn.put(table, key, value),
        None => txn.remove(table, key),
    }
    log.database().stage(txn.finish()).unwrap();
}

#[test]
fn each_kind_of_damage_is_found_and_a_sound_log_has_none() {
    let log = filled();
    let sound = verify(&log);
    assert_eq!((sound.faults.clone(), sound.excluded), (vec![], 1), "{sound:?}");
    assert_eq!(sound.entries, log.fingerprint(&log.database().view().unwrap()).unwrap().count);
    for table in
        ["entries", "hashes", "chains", "order", "ranges", "tips", "frontier", "meta", "aside", "asides", "counts"]
    {
        let before = rows(&log, table);
        assert!(!before.is_empty(), "{table}");
        for (key, value) in [before[0].clone(), before[before.len() / 2].clone(), before[before.len() - 1].clone()] {
            // The bytes set aside for an author are a bound, and the local number may be ahead.
            if key.starts_with(b"aside/") || key == b"excluded" || key == b"next" {
                continue;
            }
            let mut changed = value.clone();
            if let Some(byte) = changed.last_mut() {
                *byte ^= 1;
            }
            for damage in [Some(changed), None] {
                write(&log, table, &key, damage.clone());
                assert!(!verify(&log).faults.is_empty(), "{table} {key:?} {damage:?}");
                write(&log, table, &key, Some(value.clone()));
            }
        }
        assert_eq!(verify(&log).faults, Vec::<String>::new(), "{table} is as it was");
    }
}

#[test]
fn what_is_sound_in_a_damaged_log_can_be_taken_over() {
    let log = filled();
    let all = rows(&log, "entries");
    let (key, mut value) = all[all.len() - 1].clone();
    *value.last_mut().unwrap() ^= 1;
    write(&log, "entries", &key, Some(value));
    log.retire("it is tried");
    assert!(matches!(log.submit(b"late", Origin::Local), Err(SubmitError::Database(_))));
    let new = open(&Disk::default(), 1);
    log.salvage(&mut |entries| new.include(&entries, Origin::Pulled).map(drop)).unwrap();
    let count = new.fingerprint(&new.database().view().unwrap()).unwrap().count;
    assert_eq!(count, all.len() as u64 - 1);
    assert_eq!((verify(&new).faults, verify(&new).excluded), (vec![], 1));
}

#[test]
fn an_index_of_ranges_that_does_not_add_up_is_made_anew_at_the_next_start() {
    for damaged in [false, true] {
        let disk = Disk::default();
        let log = open(&disk, 1);
        for n in 0..200u8 {
            log.submit(&[n % 7], Origin::Local).unwrap();
        }
        let before = rows(&log, "ranges");
        let faults = |log: &Log| verify(log).faults.len();
        assert_eq!(faults(&log), 0);
        for (key, mut value) in before.iter().cloned() {
            value[7] ^= 1;
            write(&log, "ranges", &key, damaged.then_some(value));
        }
        assert_ne!(faults(&log), 0);
        log.database().flush().unwrap();
        drop(log);
        let log = open(&disk.crash(), 1);
        assert_eq!(faults(&log), 0);
        assert_eq!(rows(&log, "ranges"), before);
    }
}

//! What the wal does while it runs: sequence, group commit, failures, memory, reuse of files, closing.

use super::*;

#[test]
fn an_empty_directory_becomes_an_empty_log() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    assert_eq!(wal.state(), WalState::default());
    assert_eq!((wal.first_index(), wal.durable_index(), all(&wal)), (0, None, vec![]));
    assert_eq!(wal.log_id_at(0).unwrap(), None);
}

#[test]
fn everything_comes_back_after_a_reopen() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    append(&wal, entries(1, 0..10)).unwrap();
    save_vote(&wal, vote(2)).unwrap();
    truncate(&wal, Some(id(1, 6))).unwrap();
    append(&wal, entries(2, 7..9)).unwrap();
    wal.set_committed(id(2, 7));
    wal.purge(id(1, 2));
    let (state, log) = (wal.state(), all(&wal));
    assert_eq!(state.last, Some(id(2, 8)));
    assert_eq!(log, [entries(1, 3..7), entries(2, 7..9)].concat());
    wal.close().unwrap();
    for _ in 0..3 {
        let wal = open(&disk);
        assert_eq!((wal.state(), all(&wal)), (state, log.clone()));
        assert_eq!((wal.first_index(), wal.durable_index()), (3, Some(8)));
        assert_eq!(wal.log_id_at(2).unwrap(), Some(id(1, 2)), "the purged id is still known");
        assert_eq!(wal.log_id_at(1).unwrap(), None);
        assert_eq!(wal.log_id_at(6).unwrap(), Some(id(1, 6)));
        assert_eq!(wal.log_id_at(7).unwrap(), Some(id(2, 7)));
        assert_eq!(wal.log_id_at(9).unwrap(), None);
    }
}

#[test]
fn entries_are_readable_at_once_and_durable_after_the_sync() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    disk.hold_syncs();
    let (done, result) = done();
    wal.append(entries(1, 0..3), done);
    assert_eq!(all(&wal), entries(1, 0..3));
    assert_eq!(wal.durable_index(), None);
    assert!(result.try_recv().is_err());
    disk.release_syncs();
    result.recv().unwrap().unwrap();
    assert_eq!(wal.durable_index(), Some(2));
}

#[test]
fn everything_that_waits_shares_one_sync() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    disk.hold_syncs();
    let (first, first_result) = done();
    wal.append(entries(1, 0..1), first);
    disk.wait_for_held_sync();
    let results: Vec<_> = (1..=500)
        .map(|index| {
            let (done, result) = done();
            wal.append(entries(1, index..index + 1), done);
            result
        })
        .collect();
    disk.release_syncs();
    first_result.recv().unwrap().unwrap();
    for result in results {
        result.recv().unwrap().unwrap();
    }
    let stats = wal.stats();
    assert_eq!((stats.syncs, stats.batches, stats.entries_appended), (2, 2, 501));
}

#[test]
fn done_is_called_in_the_order_of_the_calls() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let (sender, receiver) = channel();
    for index in 0..100 {
        let sender = sender.clone();
        wal.append(entries(1, index..index + 1), Box::new(move |result| sender.send(result.map(|()| index)).unwrap()));
    }
    drop(sender);
    assert_eq!(receiver.iter().map(Result::unwrap).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
}

fn assert_stopped(wal: &Wal) {
    assert!(wal.failure().is_some());
    let next = wal.lock().view.next();
    assert!(append(wal, entries(1, next..next + 1)).is_err());
    assert!(save_vote(wal, vote(9)).is_err() && truncate(wal, None).is_err());
    assert!(wal.entries(0, 1, 1).is_err() && wal.log_id_at(0).is_err() && wal.close().is_err());
}

#[test]
fn a_hole_or_a_falling_term_stops_the_wal() {
    for wrong in [entries(2, 4..5), entries(2, 2..3), entries(1, 3..4), vec![entry(2, 3, 1), entry(2, 5, 1)]] {
        let disk = SimDisk::new();
        let wal = open(&disk);
        append(&wal, entries(2, 0..3)).unwrap();
        assert!(matches!(append(&wal, wrong), Err(WalError::Misuse(_))));
        assert_stopped(&wal);
        assert_eq!(all(&open(&disk)), entries(2, 0..3));
    }
}

#[test]
fn a_truncation_below_committed_or_purged_or_to_a_stranger_stops_the_wal() {
    for wrong in [None, Some(id(1, 2)), Some(id(1, 4)), Some(id(3, 6)), Some(id(2, 11))] {
        let disk = SimDisk::new();
        let wal = open(&disk);
        append(&wal, entries(2, 0..10)).unwrap();
        wal.purge(id(2, 3));
        wal.set_committed(id(2, 5));
        assert!(matches!(truncate(&wal, wrong), Err(WalError::Misuse(_))), "{wrong:?}");
        assert_stopped(&wal);
        assert_eq!(open(&disk).state().last, Some(id(2, 9)));
    }
    let wal = open(&SimDisk::new());
    append(&wal, entries(2, 0..10)).unwrap();
    wal.set_committed(id(2, 5));
    truncate(&wal, Some(id(2, 5))).unwrap();
    assert_eq!(wal.state().last, Some(id(2, 5)));
}

#[test]
fn a_purge_to_a_stranger_stops_the_wal() {
    let wal = open(&SimDisk::new());
    append(&wal, entries(2, 0..3)).unwrap();
    wal.purge(id(1, 1));
    assert!(matches!(wal.failure(), Some(WalError::Misuse(_))));
    assert_stopped(&wal);
}

#[test]
fn after_a_failed_sync_everything_fails_and_nothing_is_tried_again() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    append(&wal, entries(1, 0..2)).unwrap();
    disk.hold_syncs();
    disk.fail_sync(1);
    let (first, first_result) = done();
    wal.append(entries(1, 2..3), first);
    disk.wait_for_held_sync();
    let (second, second_result) = done();
    wal.append(entries(1, 3..4), second);
    let operations = disk.operations();
    disk.release_syncs();
    assert!(matches!(first_result.recv().unwrap(), Err(WalError::Io { action: "sync", .. })));
    assert!(matches!(second_result.recv().unwrap(), Err(WalError::Io { action: "sync", .. })));
    assert_stopped(&wal);
    assert_eq!(disk.operations(), operations + 1, "nothing but the sync that failed");
    let next = disk.process_kill();
    let kept = all(&open(&next));
    assert_eq!(kept, entries(1, 0..3), "the cache shows the entry whose sync failed");
    assert_eq!(all(&open(&next.power_cut_keep_nothing())), kept, "what a restart has reported is durable");
}

#[test]
fn a_full_disk_stops_the_wal() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    append(&wal, entries(1, 0..2)).unwrap();
    disk.limit_writes(Some(50));
    let Err(WalError::Io { source, .. }) = append(&wal, entries(1, 2..9)) else { panic!("no error") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert_stopped(&wal);
    disk.limit_writes(None);
    assert_eq!(all(&open(&disk)), entries(1, 0..2));
}

#[test]
fn memory_is_bounded_and_files_give_the_same_entries() {
    let disk = SimDisk::new();
    let mut config = config();
    config.memory_bytes = 2000;
    config.segment_bytes = 300 << 10;
    let mut log = Vec::new();
    {
        let wal = open_with(&disk, config.clone()).unwrap();
        for index in 0..2000 {
            let new = entry(1 + index / 300, index, (index % 700) as usize);
            log.push(new.clone());
            append(&wal, vec![new]).unwrap();
            assert!(wal.stats().memory_bytes <= 2000);
            if index % 50 == 49 {
                save_vote(&wal, vote(index)).unwrap();
            }
        }
        assert!(wal.stats().segments > 2);
        check_reads(&wal, &log);
        wal.close().unwrap();
    }
    let wal = open_with(&disk, config).unwrap();
    assert!(wal.stats().memory_bytes <= 2000);
    check_reads(&wal, &log);
}

#[test]
fn what_is_in_memory_is_given_without_a_file_and_the_rest_is_not() {
    let disk = SimDisk::new();
    let mut config = config();
    config.memory_bytes = 2000;
    let wal = open_with(&disk, config).unwrap();
    let log: Vec<Entry> = (0..100).map(|index| entry(1, index, 100)).collect();
    for entry in &log {
        append(&wal, vec![entry.clone()]).unwrap();
    }
    wal.purge(id(1, 9));
    let all_bytes = usize::MAX;
    assert!(matches!(wal.entries_in_memory(9, 100, all_bytes), Err(WalError::Purged { first: 10 })));
    assert_eq!(wal.entries_in_memory(10, 100, all_bytes).unwrap(), None);
    assert_eq!(wal.entries_in_memory(95, 100, all_bytes).unwrap().unwrap(), log[95..]);
    assert_eq!(wal.entries_in_memory(95, 97, all_bytes).unwrap().unwrap(), log[95..97]);
    assert_eq!(wal.entries_in_memory(95, 100, 0).unwrap().unwrap(), log[95..96], "at least one");
    assert_eq!(wal.entries_in_memory(100, 101, all_bytes).unwrap().unwrap(), []);
}

fn check_reads(wal: &Wal, log: &[Entry]) {
    assert_eq!(all(wal), log);
    for from in (0..log.len()).step_by(37) {
        for count in [1, 5, 100] {
            let to = (from + count).min(log.len());
            assert_eq!(wal.entries(from as u64, (from + count) as u64, usize::MAX).unwrap(), &log[from..to]);
        }
        assert_eq!(wal.entries(from as u64, u64::MAX, 0).unwrap(), &log[from..from + 1], "at least one");
        let some = wal.entries(from as u64, u64::MAX, 3000).unwrap();
        assert_eq!(some, &log[from..from + some.len()]);
        let bytes: usize = some.iter().map(record::encoded_entry_bytes).sum();
        assert!(bytes <= 3000 && (some.len() + from == log.len() || bytes > 2000), "{bytes}");
        assert_eq!(wal.log_id_at(from as u64).unwrap(), Some(log[from].log_id));
    }
}

#[test]
fn reads_after_truncations_never_see_what_was_cut() {
    let disk = SimDisk::new();
    let mut config = config();
    config.memory_bytes = 0;
    let wal = open_with(&disk, config.clone()).unwrap();
    let mut log: Vec<Entry> = Vec::new();
    for term in 1..60 {
        let keep = log.len() * 2 / 3;
        log.truncate(keep);
        truncate(&wal, log.last().map(|e| e.log_id)).unwrap();
        let new = entries(term, keep as u64..keep as u64 + 10);
        log.extend(new.clone());
        append(&wal, new).unwrap();
        assert_eq!(all(&wal), log);
        assert_eq!(wal.stats().memory_bytes, 0);
    }
    wal.close().unwrap();
    assert_eq!(all(&open_with(&disk, config).unwrap()), log);
}

#[test]
fn a_batch_longer_than_a_segment_gets_its_own() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let log = vec![entry(1, 0, 10), entry(1, 1, 20_000), entry(1, 2, 10)];
    for entry in &log {
        append(&wal, vec![entry.clone()]).unwrap();
    }
    assert_eq!(wal.stats().segments, 3);
    wal.close().unwrap();
    assert_eq!(all(&open(&disk)), log);
}

#[test]
fn purged_segments_are_recycled_and_the_rest_removed() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    for index in 0..60 {
        append(&wal, vec![entry(1, index, 500)]).unwrap();
    }
    let before = wal.stats();
    assert!(before.segments >= 8);
    wal.purge(id(1, 55));
    assert!(matches!(wal.entries(55, 56, 1), Err(WalError::Purged { first: 56 })));
    save_vote(&wal, vote(1)).unwrap();
    append(&wal, vec![entry(1, 60, 1)]).unwrap();
    assert!(wal.stats().segments <= 2 && wal.stats().bytes < before.bytes / 4);
    let spares = |disk: &SimDisk| {
        let names = crate::files::Disk::list(disk, dir()).unwrap();
        names.iter().filter(|name| name.ends_with(".spare")).count()
    };
    assert_eq!(spares(&disk), 2);
    for index in 61..70 {
        append(&wal, vec![entry(1, index, 500)]).unwrap();
    }
    assert!(spares(&disk) < 2, "a new segment takes a spare");
    let log = all(&wal);
    assert_eq!(log.first().unwrap().log_id.index, 56);
    wal.close().unwrap();
    let wal = open(&disk);
    assert_eq!((wal.first_index(), all(&wal)), (56, log));
}

#[test]
fn a_reader_keeps_its_file_while_the_segment_is_purged() {
    let disk = SimDisk::new();
    let mut config = config();
    config.memory_bytes = 0;
    let wal = open_with(&disk, config).unwrap();
    for index in 0..20 {
        append(&wal, vec![entry(1, index, 500)]).unwrap();
    }
    let mut cursor = {
        let inner = wal.lock();
        let (segment, mark, _) = inner.view.find(0).unwrap();
        Cursor::new(segment_files(&disk)[0].clone(), segment.file.clone(), segment.epoch, segment.id, &mark)
    };
    wal.purge(id(1, 19));
    for index in 20..40 {
        append(&wal, vec![entry(1, index, 500)]).unwrap();
    }
    assert_eq!(cursor.next_entry().unwrap(), entry(1, 0, 500), "the file was removed and not written again");
}

#[test]
fn a_purge_beyond_the_end_leaves_an_empty_log_that_goes_on_after_it() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    append(&wal, entries(1, 0..5)).unwrap();
    wal.purge(id(3, 100));
    assert_eq!(wal.state().last, Some(id(3, 100)));
    assert_eq!(wal.state().committed, Some(id(3, 100)));
    append(&wal, entries(3, 101..103)).unwrap();
    assert_eq!((wal.durable_index(), all(&wal)), (Some(102), entries(3, 101..103)));
    let state = wal.state();
    wal.close().unwrap();
    let wal = open(&disk);
    assert_eq!((wal.state(), all(&wal)), (state, entries(3, 101..103)));
}

#[test]
fn another_member_or_cluster_is_told_so() {
    let disk = SimDisk::new();
    drop(open(&disk));
    let mut member = config();
    member.member = 8;
    let mut cluster = config();
    cluster.cluster = crate::model::new_random_id();
    for other in [member, cluster] {
        assert!(matches!(open_with(&disk, other), Err(WalError::WrongIdentity { found_member: 7, .. })));
    }
}

#[test]
fn closing_writes_what_waits_and_refuses_what_comes() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let results: Vec<_> = (0..50)
        .map(|index| {
            let (done, result) = done();
            wal.append(entries(1, index..index + 1), done);
            result
        })
        .collect();
    wal.close().unwrap();
    assert!(results.into_iter().all(|result| result.recv().unwrap().is_ok()));
    assert!(matches!(append(&wal, entries(1, 50..51)), Err(WalError::Closed)));
    assert_eq!(all(&open(&disk)), entries(1, 0..50));
}

#[test]
fn a_clean_stop_keeps_the_committed_id_and_a_committed_id_is_never_beyond_the_log() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    append(&wal, entries(1, 0..10)).unwrap();
    wal.set_committed(id(1, 20));
    wal.set_committed(id(2, 5));
    assert_eq!(wal.state().committed, None, "ids that are not in the log are passed over");
    wal.set_committed(id(1, 7));
    wal.set_committed(id(1, 3));
    wal.close().unwrap();
    assert_eq!(open(&disk).state().committed, Some(id(1, 7)));
}

#[test]
fn restarts_without_writes_do_not_pile_up_files() {
    let disk = SimDisk::new();
    append(&open(&disk), entries(1, 0..1)).unwrap();
    for _ in 0..10 {
        assert_eq!(all(&open(&disk)), entries(1, 0..1));
    }
    assert_eq!(segment_files(&disk).len(), 2);
}

#[test]
fn a_writer_that_waits_for_room_goes_on_when_there_is_some() {
    let disk = SimDisk::new();
    let mut config = config();
    config.memory_bytes = 0;
    let wal = open_with(&disk, config).unwrap();
    disk.hold_syncs();
    let payload = Bytes::from(vec![1; QUEUE_BYTES / 4]);
    let big = |index| vec![Entry { log_id: id(1, index), kind: EntryKind::Command, payload: payload.clone() }];
    let (first, _ignored) = done();
    wal.append(big(0), first);
    disk.wait_for_held_sync();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..9 {
                let sender = sender.clone();
                wal.append(big(index), Box::new(move |r| drop(sender.send(r.map(|()| index)))));
                assert!(wal.stats().queue_bytes <= QUEUE_BYTES);
            }
        });
        disk.release_syncs();
        let finished: Vec<u64> = receiver.iter().take(8).map(Result::unwrap).collect();
        assert_eq!(finished, (1..9).collect::<Vec<_>>());
    });
}

#[test]
fn it_works_on_real_files_too() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a/wal");
    let mut config = config();
    (config.memory_bytes, config.segment_bytes) = (1000, 64 << 10);
    let open = || Wal::open(Arc::new(crate::files::RealDisk), &dir, config.clone()).unwrap();
    let mut next = 0;
    for round in 1..4 {
        let wal = open();
        for _ in 0..40 {
            append(&wal, (next..next + 10).map(|index| entry(round, index, 200)).collect()).unwrap();
            next += 10;
        }
        wal.purge(wal.log_id_at(next - 300).unwrap().unwrap());
        save_vote(&wal, vote(round)).unwrap();
        wal.close().unwrap();
    }
    let wal = open();
    assert_eq!((wal.first_index(), wal.durable_index()), (next - 299, Some(next - 1)));
    assert_eq!(wal.state().vote, Some(vote(3)));
    assert_eq!(all(&wal), (next - 299..next).map(|index| entry(3, index, 200)).collect::<Vec<_>>());
}

//! Power cuts: at every operation of a random workload, into many states each, and again during the recovery.

use super::model::Oracle;
use super::*;

fn small_config(rng: &mut StdRng) -> WalConfig {
    let mut config = config();
    config.segment_bytes = [1500, 4096][rng.random_range(0..2)];
    config.memory_bytes = [0, 1000, 1 << 20][rng.random_range(0..3)];
    config.spare_segments = rng.random_range(0..3);
    config
}

/// Runs a workload until the power goes after `operations`. `None` when the workload ends before.
fn crash(seed: u64, operations: u64) -> Option<(SimDisk, Oracle, WalConfig)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let config = small_config(&mut rng);
    let disk = SimDisk::new();
    let mut oracle = Oracle::new();
    disk.create_dir_all(dir()).unwrap();
    disk.crash_after(operations);
    for _ in 0..3 {
        let Ok(wal) = open_with(&disk, config.clone()) else { break };
        for _ in 0..10 {
            oracle.step(&wal, &mut rng);
        }
        oracle.wait();
        if wal.close().is_err() {
            break;
        }
    }
    disk.has_crashed().then_some((disk, oracle, config))
}

use crate::files::Disk;

/// Opens what a crash has left, checks it, and checks that nothing it reported is lost in the worst power cut.
fn check_survivor(disk: &SimDisk, oracle: &mut Oracle, config: &WalConfig, rng: &mut StdRng) {
    let wal = open_with(disk, config.clone()).unwrap();
    oracle.check_after_crash(&wal);
    let found = model::Content::of(&wal);
    let worst = disk.power_cut_keep_nothing();
    assert_eq!(
        model::Content::of(&open_with(&worst, config.clone()).unwrap()),
        found,
        "a restart reported what it lost"
    );
    let mut next = Oracle::new();
    next.restart(&wal);
    for _ in 0..3 {
        next.step(&wal, rng);
    }
    next.wait();
    assert!(!next.failed, "{:?}", wal.failure());
    let killed = disk.power_cut(rng.random());
    next.check_after_crash(&open_with(&killed, config.clone()).unwrap());
}

#[test]
fn nothing_confirmed_is_lost_wherever_the_power_goes() {
    let first = seed(1);
    for seed in first..first + 6 {
        for operations in 0.. {
            let Some((disk, mut oracle, config)) = crash(seed, operations) else { break };
            for cut in 0..8 {
                let _note = OnPanic(format!("LIFEBOAT_TEST_SEED={seed}, operation {operations}, cut {cut}"));
                let mut rng = StdRng::seed_from_u64(seed ^ (operations << 20) ^ cut);
                let survivor = match cut {
                    0 => disk.power_cut_keep_nothing(),
                    1 => disk.power_cut_keep_all(),
                    2 => disk.process_kill(),
                    _ => disk.power_cut(rng.random()),
                };
                check_survivor(&survivor, &mut oracle, &config, &mut rng);
            }
        }
    }
}

#[test]
fn a_crash_during_the_recovery_loses_nothing_either() {
    let first = seed(50);
    for seed in first..first + 4 {
        for operations in (0..).step_by(3) {
            let Some((disk, mut oracle, config)) = crash(seed, operations) else { break };
            let mut rng = StdRng::seed_from_u64(seed ^ (operations << 20));
            for again in 0.. {
                let _note = OnPanic(format!("LIFEBOAT_TEST_SEED={seed}, operation {operations}, again at {again}"));
                let survivor = if rng.random_bool(0.3) { disk.process_kill() } else { disk.power_cut(rng.random()) };
                survivor.crash_after(again);
                let opened = open_with(&survivor, config.clone()).is_ok();
                let next =
                    if rng.random_bool(0.3) { survivor.process_kill() } else { survivor.power_cut(rng.random()) };
                check_survivor(&next, &mut oracle, &config, &mut rng);
                if opened {
                    break;
                }
            }
        }
    }
}

/// A batch is torn and cut, the log goes on with other entries, and then the lost sectors turn up after all.
#[test]
fn what_was_cut_never_comes_back_not_even_whole() {
    for keep in 0..300 {
        let disk = SimDisk::new();
        let wal = open(&disk);
        append(&wal, entries(1, 0..3)).unwrap();
        let before = wal.stats().bytes;
        append(&wal, entries(1, 3..8)).unwrap();
        let file = &segment_files(&disk)[0];
        let whole = disk.content(file).unwrap();
        let torn_disk = disk.process_kill();
        let mut torn = whole.clone();
        torn[before as usize + keep..].fill(0);
        torn_disk.set_content(file, &torn).unwrap();

        let wal = open(&torn_disk);
        let kept = all(&wal);
        let next = kept.len() as u64;
        assert!((3..=8).contains(&next) && kept == entries(1, 0..next), "{kept:?}");
        append(&wal, entries(2, next..next + 2)).unwrap();
        drop(wal);
        torn_disk.set_content(file, &whole).unwrap();
        let expect = [kept, entries(2, next..next + 2)].concat();
        assert_eq!(all(&open(&torn_disk)), expect, "{keep} bytes of the batch were kept");
    }
}

/// The content of an earlier use of a file is never read: every batch of it fits the segment but for the epoch.
#[test]
fn a_recycled_file_shows_nothing_of_its_past() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    append(&wal, entries(1, 0..10)).unwrap();
    let old = disk.content(&segment_files(&disk)[0]).unwrap();
    drop(wal);
    // A new log begins, with the same ids and numbers of batches, in a file that is full of the old one.
    let next = SimDisk::new();
    next.create_dir_all(dir()).unwrap();
    next.set_content(&dir().join(segment::spare_name(9)), &old).unwrap();
    let wal = open(&next);
    let killed = next.process_kill();
    assert_eq!(all(&open(&killed)), vec![]);
    append(&wal, vec![entry(2, 0, 5)]).unwrap();
    let file = &segment_files(&next)[0];
    assert!(next.content(file).unwrap().len() >= old.len(), "the old file is in use");
    assert_eq!(all(&open(&next.process_kill())), vec![entry(2, 0, 5)]);
}

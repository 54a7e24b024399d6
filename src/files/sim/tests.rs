use std::collections::BTreeSet;
use std::thread;

use super::*;
use crate::files::{link_or_copy, read_file, replace_file};

fn disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    disk
}

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    read_file(disk, &path(name)).unwrap()
}

/// What a file may look like after a power cut, over many seeds.
fn outcomes(disk: &SimDisk, name: &str) -> BTreeSet<Option<Vec<u8>>> {
    (0..2000).map(|seed| content(&disk.power_cut(seed), name)).collect()
}

fn durable_file(disk: &SimDisk, name: &str, content: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.create(&path(name)).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file
}

#[test]
fn what_is_synced_with_its_name_survives_every_cut() {
    let disk = disk();
    durable_file(&disk, "a", b"whole");
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(b"whole".to_vec())]));
    assert_eq!(content(&disk.power_cut_keep_nothing(), "a"), Some(b"whole".to_vec()));
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_gone() {
    let disk = disk();
    let file = disk.create(&path("a")).unwrap();
    file.write_all_at(b"whole", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([None, Some(b"whole".to_vec())]));
    assert_eq!(content(&disk.power_cut_keep_nothing(), "a"), None);
    assert_eq!(content(&disk.power_cut_keep_all(), "a"), Some(b"whole".to_vec()));
}

#[test]
fn a_synced_name_does_not_save_content() {
    let disk = disk();
    let file = disk.create(&path("a")).unwrap();
    file.write_all_at(b"whole", 0).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(content(&disk.power_cut_keep_nothing(), "a"), Some(vec![]));
    let seen = outcomes(&disk, "a");
    assert!(seen.contains(&Some(vec![])) && seen.contains(&Some(b"whole".to_vec())));
    assert!(seen.contains(&Some(vec![0; 5])), "the length may arrive without the bytes");
    assert!(seen.len() > 5, "garbage and tears turn up: {seen:?}");
}

#[test]
fn an_unsynced_write_is_kept_lost_or_torn_by_sectors_and_later_writes_may_come_alone() {
    let disk = disk();
    let file = durable_file(&disk, "a", &[b'.'; 2048]);
    file.write_all_at(&[b'x'; 1024], 256).unwrap();
    file.write_all_at(b"y", 2000).unwrap();
    let seen: BTreeSet<_> = outcomes(&disk, "a").into_iter().flatten().collect();
    let find = |what: &str, f: &dyn Fn(&[u8]) -> bool| assert!(seen.iter().any(|c| f(c)), "never seen: {what}");
    find("nothing", &|c| c.iter().all(|b| *b == b'.'));
    find("both", &|c| c[256..1280].iter().all(|b| *b == b'x') && c[2000] == b'y');
    find("the later alone", &|c| !c.contains(&b'x') && c[2000] == b'y');
    find("the middle sector alone", &|c| c[511] == b'.' && c[512] == b'x' && c[1023] == b'x' && c[1024] == b'.');
    find("a tear inside a sector", &|c| c[512..1024].contains(&b'x') && c[512..1024].contains(&b'.'));
    for c in &seen {
        assert_eq!(c.len(), 2048);
        assert!(c[..256].iter().chain(&c[1280..2000]).chain(&c[2001..]).all(|b| *b == b'.'), "untouched bytes changed");
    }
}

#[test]
fn a_shortened_file_may_come_back_at_either_length() {
    let disk = disk();
    let file = durable_file(&disk, "a", b"0123456789");
    file.set_len(4).unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(b"0123".to_vec()), Some(b"0123456789".to_vec())]));
}

#[test]
fn names_are_lost_one_by_one() {
    let disk = disk();
    durable_file(&disk, "old", b"old");
    durable_file(&disk, "gone", b"gone");
    durable_file(&disk, "target", b"target");
    disk.rename(&path("old"), &path("target")).unwrap();
    disk.remove(&path("gone")).unwrap();
    let seen: BTreeSet<_> = (0..500).map(|seed| disk.power_cut(seed).list(Path::new("/d")).unwrap()).collect();
    let expect = [vec!["gone", "old", "target"], vec!["gone", "target"], vec!["old", "target"], vec!["target"]];
    assert_eq!(seen, expect.map(|names| names.into_iter().map(String::from).collect()).into());
    let both = BTreeSet::from([Some(b"old".to_vec()), Some(b"target".to_vec())]);
    assert_eq!(outcomes(&disk, "target"), both, "a replaced name is the old file or the new one");
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(disk.power_cut_keep_nothing().list(Path::new("/d")).unwrap(), ["target"]);
}

#[test]
fn a_replaced_file_is_old_or_new_wherever_the_power_goes() {
    for operations in 0.. {
        let disk = disk();
        replace_file(&disk, Path::new("/d"), "a", b"old").unwrap();
        disk.crash_after(operations);
        let done = replace_file(&disk, Path::new("/d"), "a", b"new content");
        for seed in 0..100 {
            let found = content(&disk.power_cut(seed), "a").unwrap();
            assert!(found == b"new content" || (found == b"old" && done.is_err()), "{operations} {seed} {found:?}");
        }
        if done.is_ok() {
            assert!(operations >= 4);
            return;
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_until_the_power_goes_too() {
    let disk = disk();
    let file = disk.create(&path("a")).unwrap();
    file.write_all_at(b"whole", 0).unwrap();
    let next = disk.process_kill();
    assert_eq!(content(&next, "a"), Some(b"whole".to_vec()));
    assert_eq!(content(&next.power_cut_keep_nothing(), "a"), None);
    next.open(&path("a")).unwrap().sync().unwrap();
    next.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(content(&next.power_cut_keep_nothing(), "a"), Some(b"whole".to_vec()));
    assert_eq!(content(&disk.power_cut_keep_nothing(), "a"), None, "the disk before the kill is another one");
}

#[test]
fn after_a_crash_every_call_fails_and_the_operation_in_flight_may_show() {
    let disk = disk();
    let file = durable_file(&disk, "a", b"old");
    disk.crash_after(0);
    assert!(!disk.has_crashed());
    assert!(file.write_all_at(b"new", 0).is_err());
    assert!(disk.has_crashed());
    assert!(file.sync().is_err() && file.len().is_err() && file.read_at(&mut [0], 0).is_err());
    assert!(disk.open(&path("a")).is_err() && disk.list(Path::new("/d")).is_err());
    let seen = outcomes(&disk, "a");
    assert!(seen.contains(&Some(b"old".to_vec())) && seen.contains(&Some(b"new".to_vec())));
}

#[test]
fn a_failed_sync_is_not_mended_by_one_that_succeeds() {
    let disk = disk();
    let file = durable_file(&disk, "a", b"....");
    disk.fail_sync(2);
    file.write_all_at(b"1", 0).unwrap();
    file.sync().unwrap();
    file.write_all_at(b"2", 1).unwrap();
    file.sync().unwrap_err();
    assert!(outcomes(&disk, "a").contains(&Some(b"12..".to_vec())), "it may have reached the disk");
    file.write_all_at(b"3", 2).unwrap();
    file.sync().unwrap();
    assert_eq!(content(&disk, "a"), Some(b"123.".to_vec()));
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(b"1.3.".to_vec())]));
}

#[test]
fn a_full_disk_takes_what_fits() {
    let disk = disk();
    let file = durable_file(&disk, "a", b"");
    disk.limit_writes(Some(3));
    assert_eq!(file.write_all_at(b"12345", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.write_all_at(b"6", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(content(&disk, "a"), Some(b"123".to_vec()));
    disk.limit_writes(None);
    file.write_all_at(b"12345", 0).unwrap();
}

#[test]
fn bytes_can_be_flipped_and_content_planted() {
    let disk = disk();
    disk.set_content(&path("a"), b"abc").unwrap();
    disk.flip_byte(&path("a"), 1, 0x20).unwrap();
    assert_eq!(content(&disk.power_cut_keep_nothing(), "a"), Some(b"aBc".to_vec()));
}

#[test]
fn held_syncs_wait_until_they_are_released() {
    let disk = disk();
    let file = durable_file(&disk, "a", b"");
    disk.hold_syncs();
    let before = disk.syncs();
    thread::scope(|scope| {
        let syncing = scope.spawn(|| file.sync());
        disk.wait_for_held_sync();
        assert_eq!(disk.syncs(), before);
        disk.release_syncs();
        syncing.join().unwrap().unwrap();
    });
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn one_seed_gives_one_state() {
    let disk = disk();
    let file = disk.create(&path("a")).unwrap();
    file.write_all_at(&[7; 5000], 0).unwrap();
    for seed in 0..50 {
        assert_eq!(content(&disk.power_cut(seed), "a"), content(&disk.power_cut(seed), "a"));
    }
}

#[test]
fn a_second_name_is_a_name_like_any_other_and_outlives_the_first() {
    let disk = disk();
    durable_file(&disk, "a", b"whole");
    assert!(!link_or_copy(&disk, &path("a"), &path("b")).unwrap());
    assert_eq!(outcomes(&disk, "b"), BTreeSet::from([None, Some(b"whole".to_vec())]));
    assert_eq!(disk.link(&path("a"), &path("b")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(disk.link(&path("none"), &path("c")).unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.remove(&path("a")).unwrap();
    assert_eq!(outcomes(&disk, "b"), BTreeSet::from([Some(b"whole".to_vec())]));
    disk.refuse_links();
    assert!(link_or_copy(&disk, &path("b"), &path("c")).unwrap());
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(content(&disk.power_cut_keep_nothing(), "c"), Some(b"whole".to_vec()));
}

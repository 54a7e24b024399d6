//! Damage at every byte, truncation at every length, and missing files: a named error, or exactly what is whole.

use super::model::Content;
use super::*;
use crate::files::Disk;

/// A small log over several segments, and what it amounted to after each record of the last batch.
struct Sample {
    disk: SimDisk,
    /// From before the last batch to after it, record by record.
    states: Vec<Content>,
    last_batch_at: usize,
    end: usize,
}

/// `clean`: closed in order, so that an empty batch stands at the end.
fn sample(clean: bool) -> Sample {
    let disk = SimDisk::new();
    let mut config = config();
    config.segment_bytes = 1500;
    let wal = open_with(&disk, config).unwrap();
    for index in 0..12 {
        append(&wal, vec![entry(1, index, 200)]).unwrap();
    }
    save_vote(&wal, vote(2)).unwrap();
    wal.purge(id(1, 1));
    truncate(&wal, Some(id(1, 9))).unwrap();
    append(&wal, entries(2, 10..13)).unwrap();
    let end_of = |wal: &Wal| wal.lock().view.segments.back().unwrap().end as usize;
    let mut states = vec![Content::of(&wal)];
    let mut last_batch_at = end_of(&wal);
    append(&wal, entries(2, 13..16)).unwrap();
    let mut end = end_of(&wal);
    if clean {
        states = vec![Content::of(&wal)];
        wal.close().unwrap();
        (last_batch_at, end) = (end, end + segment::BATCH_HEADER_BYTES);
    } else {
        for count in 1..=3 {
            let mut state = states[0].clone();
            state.extend(entries(2, 13..13 + count));
            states.push(state);
        }
        assert_eq!(states.last(), Some(&Content::of(&wal)));
    }
    let sample = Sample { disk: disk.process_kill(), states, last_batch_at, end };
    assert!(segment_files(&sample.disk).len() >= 3);
    sample
}

fn open_content(disk: &SimDisk) -> Result<Content, WalError> {
    open_with(disk, config()).map(|wal| Content::of(&wal))
}

fn assert_corrupt(result: &Result<Content, WalError>, expect: &Path, what: &str) {
    match result {
        Err(WalError::Corrupt { file, .. }) => assert_eq!(file, expect, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

/// Where a segment's batches end, from its successor's header.
fn ends(sample: &Sample) -> Vec<(PathBuf, usize)> {
    let files = segment_files(&sample.disk);
    let header = |file: &PathBuf| segment::SegmentHeader::decode(&sample.disk.content(file).unwrap()).unwrap();
    let mut ends: Vec<_> = files.iter().skip(1).map(|file| header(file).previous_end as usize).collect();
    ends.push(sample.end);
    files.into_iter().zip(ends).collect()
}

#[test]
fn a_flipped_byte_is_named_or_lies_in_the_last_batch_or_matters_not() {
    for clean in [false, true] {
        let sample = sample(clean);
        let files = ends(&sample);
        let whole = sample.states.last().unwrap();
        for (at_file, (file, end)) in files.iter().enumerate() {
            let last = at_file == files.len() - 1;
            let length = sample.disk.content(file).unwrap().len();
            for offset in 0..length.min(end + 100) {
                for mask in [0x01, 0x80] {
                    let what = format!("{} at {offset}, clean {clean}", file.display());
                    let disk = sample.disk.process_kill();
                    disk.flip_byte(file, offset as u64, mask).unwrap();
                    let found = open_content(&disk);
                    if offset >= *end {
                        assert_eq!(&found.unwrap(), whole, "{what}");
                    } else if last && offset >= sample.last_batch_at {
                        assert!(sample.states.contains(&found.unwrap()), "{what}");
                    } else {
                        assert_corrupt(&found, file, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_file_cut_short_is_damage_except_at_the_end_of_the_log() {
    for clean in [false, true] {
        let sample = sample(clean);
        let files = ends(&sample);
        let mut seen = Vec::new();
        for (at_file, (file, end)) in files.iter().enumerate() {
            let last = at_file == files.len() - 1;
            let content = sample.disk.content(file).unwrap();
            for length in 0..content.len().min(end + 3) {
                let what = format!("{} cut to {length}, clean {clean}", file.display());
                let disk = sample.disk.process_kill();
                disk.set_content(file, &content[..length]).unwrap();
                let found = open_content(&disk);
                if length < segment::SEGMENT_HEADER_BYTES || (!last && length < *end) {
                    assert_corrupt(&found, file, &what);
                } else if length >= *end {
                    let found = found.unwrap();
                    assert_eq!(&found, sample.states.last().unwrap(), "{what}");
                    seen.push(found);
                } else {
                    let found = found.unwrap();
                    let full = sample.states.last().unwrap();
                    assert!(sample.states.contains(&found) || found.precedes(full), "{what}: {found:?}");
                    if length >= sample.last_batch_at {
                        assert!(sample.states.contains(&found), "{what}: {found:?}");
                        seen.push(found);
                    }
                }
            }
        }
        assert!(sample.states.iter().all(|state| seen.contains(state)), "every prefix of the last batch turns up");
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let sample = sample(false);
    let files = segment_files(&sample.disk);
    for file in &files[..files.len() - 1] {
        let disk = sample.disk.process_kill();
        disk.remove(file).unwrap();
        assert!(matches!(open_content(&disk), Err(WalError::Corrupt { .. })), "{}", file.display());
    }
}

#[test]
fn segments_in_the_wrong_place_are_damage() {
    let sample = sample(false);
    let files = segment_files(&sample.disk);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        let disk = sample.disk.process_kill();
        disk.set_content(&files[a], &sample.disk.content(&files[b]).unwrap()).unwrap();
        assert_corrupt(&open_content(&disk), &files[a], "another segment's content");
    }
}

#[test]
fn damage_met_while_reading_stops_the_wal() {
    let disk = SimDisk::new();
    let mut config = config();
    config.memory_bytes = 0;
    let wal = open_with(&disk, config).unwrap();
    append(&wal, entries(1, 0..5)).unwrap();
    let file = &segment_files(&disk)[0];
    disk.flip_byte(file, 700, 1).unwrap();
    assert!(matches!(wal.entries(0, 5, usize::MAX), Err(WalError::Corrupt { .. })));
    assert!(matches!(wal.failure(), Some(WalError::Corrupt { .. })));
    assert!(append(&wal, entries(1, 5..6)).is_err());
}

#[test]
fn files_of_others_are_left_alone() {
    let disk = SimDisk::new();
    drop(open(&disk));
    disk.set_content(&dir().join("notes.txt"), b"mine").unwrap();
    drop(open(&disk));
    assert_eq!(disk.content(&dir().join("notes.txt")).unwrap(), b"mine");
}

//! Files of older formats open, and hold what they held.
//!
//! `tests/fixtures/history-format-1` was written by the first program, which knew neither compaction nor floors: five
//! segments and a MANIFEST of the entries below. It is never written again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::compaction::compact_all;
use super::generate::Generator;
use super::model::Pair;
use super::oracle::Oracle;
use super::{DIR, open};
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::history::Frame;
use crate::history::frame::PREFIX_BYTES;
use crate::model::{
    ChainHash, ClusterId, Command, Condition, Entry, EntryKind, Guard, KeySpace, LogId, TimelineId, WriteCommand,
    WriteOp,
};
use crate::store::{Floors, Store};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/history-format-1")
}

/// What the fixture holds: all kinds of entries, and keys that are overwritten, deleted and created again.
fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |kind, payload: Bytes| {
        let index = entries.len() as u64;
        entries.push(Entry { log_id: LogId { term: 1 + index / 50, leader: 3, index }, kind, payload });
    };
    add(EntryKind::Blank, Bytes::new());
    add(EntryKind::Membership, Bytes::from_static(b"{\"members\":[3]}"));
    let (mut cluster, mut timeline) = (ClusterId::default(), TimelineId::default());
    (cluster.0, timeline.0) = ([7; 16], [9; 16]);
    add(EntryKind::Command, Command::Found { time_ms: 1_000, cluster, timeline }.encode());
    for n in 0..150u64 {
        let key = |n: u64| Bytes::from(format!("key/{:02}", n % 20));
        let space = KeySpace::User;
        let put =
            |n: u64| WriteOp::Put { space, key: key(n), value: format!("value {n}").repeat(3).into(), lease: n % 3 };
        let ops = match n % 10 {
            3 => vec![WriteOp::Delete { space, key: key(n * 7) }],
            6 => vec![put(n), put(n + 5), WriteOp::Delete { space, key: key(n) }],
            9 => vec![WriteOp::DeleteRange { space, start: key(n), end: Some(key(n + 2)) }, put(n)],
            _ => vec![put(n * 3)],
        };
        let condition = Condition::Exists;
        let guards = if n % 7 == 5 { vec![Guard { key: key(n), condition }] } else { vec![] };
        add(EntryKind::Command, Command::Write(WriteCommand { time_ms: 1_000 + n * 100, guards, ops }).encode());
    }
    add(EntryKind::Membership, Bytes::from_static(b"{\"members\":[3,4]}"));
    entries
}

/// A disk with the files of the fixture.
fn disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    for file in std::fs::read_dir(fixture()).unwrap() {
        let file = file.unwrap();
        disk.set_content(&Path::new(DIR).join(file.file_name()), &std::fs::read(file.path()).unwrap()).unwrap();
    }
    disk
}

#[test]
fn a_history_of_the_first_format_opens_and_goes_on() {
    let mut oracle = Oracle::default();
    entries().into_iter().for_each(|entry| oracle.apply(entry));
    let mut rng = StdRng::seed_from_u64(1);
    let (disk, index) = (disk(), Arc::default());
    let check = |store: Store, oracle: &Oracle, rng: &mut StdRng| {
        Pair { store, oracle: oracle.clone(), generator: Generator::new() }.check_all(rng);
    };
    let store = open(&disk, &index).unwrap();
    assert_eq!(store.chain().unwrap().1.to_string(), "6cebce5297edb81a8ce174eabbc90a49");
    check(store.clone(), &oracle, &mut rng);
    let seconds = (store.at_time(5_000).unwrap().unwrap(), store.at_time(999).unwrap().unwrap());
    assert_eq!((seconds.0.position, seconds.1.position), (43, 1), "command n stands at 1 s + n * 100 ms");
    // New segments beside the old ones, and then one new one in the place of all.
    let op = store.floors_op(Floors { read: store.revision() - 10, delta: 100 }).unwrap().unwrap();
    let write = Command::Write(WriteCommand { time_ms: 20_000, guards: vec![], ops: vec![op] });
    let log_id = LogId { term: 9, leader: 3, index: oracle.entries.len() as u64 };
    let entry = Entry { log_id, kind: EntryKind::Command, payload: write.encode() };
    oracle.apply(entry.clone());
    store.apply(&[entry]).unwrap();
    store.close(log_id.index).unwrap();
    check(open(&disk.process_kill(), &Arc::default()).unwrap(), &oracle, &mut rng);
    assert!(compact_all(&store) > 0);
    check(store, &oracle, &mut rng);
    check(open(&disk, &Arc::default()).unwrap(), &oracle, &mut rng);
}

/// A member of the first release is sent what it knows, byte for byte as that program made it, or nothing.
#[test]
fn a_copy_for_the_first_release_is_in_its_form_or_not_made() {
    let (disk, index) = (disk(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut reader = store.snapshot_for_first_release().unwrap().unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    let number = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    assert_eq!((&bytes[..4], number(4)), (b"LBSN".as_slice(), 1));
    let mut at = 16 + number(8) as usize;
    assert_eq!(number(12), crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..at]));
    let head: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[16..at]).unwrap();
    let names: Vec<&str> = head.keys().map(String::as_str).collect();
    let mut known =
        ["applied", "chain", "revision", "clock_ms", "membership", "cluster", "timelines", "read_floor", "delta_floor"];
    known.sort_unstable();
    assert_eq!(names, known);
    // Whole frames from the first position on, and nothing between them.
    let (mut frames, mut chain) = (0u64, ChainHash::default());
    while number(at) != 0 {
        let frame = Frame::parse(&Bytes::copy_from_slice(&bytes[at..at + number(at) as usize + PREFIX_BYTES])).unwrap();
        assert_eq!((frame.position(), frame.chain_after(chain)), (frames, frame.chain()));
        (frames, chain, at) = (frames + 1, frame.chain(), at + frame.bytes().len());
    }
    assert_eq!(frames, store.applied().unwrap().index + 1);
    let mut footer = [0u32.to_le_bytes().as_slice(), &frames.to_le_bytes(), &chain.0].concat();
    footer.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
    assert_eq!(bytes[at..], footer);

    let op = store.floors_op(Floors { read: store.revision() - 10, delta: 100 }).unwrap().unwrap();
    let write = Command::Write(WriteCommand { time_ms: 20_000, guards: vec![], ops: vec![op] });
    let log_id = LogId { term: 9, leader: 3, index: frames };
    store.apply(&[Entry { log_id, kind: EntryKind::Command, payload: write.encode() }]).unwrap();
    assert!(store.snapshot_for_first_release().unwrap().is_none(), "versions may be gone, which it cannot say");
}

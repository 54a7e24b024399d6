//! Tests of the wal over [`SimDisk`], by theme.

mod behaviour;
mod damage;
mod model;
mod power;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::files::sim::SimDisk;
use crate::model::EntryKind;

const DIR: &str = "/data/wal";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn config() -> WalConfig {
    let mut config = WalConfig::new(ClusterId::default(), 7);
    config.segment_bytes = 4096;
    config
}

fn open_with(disk: &SimDisk, config: WalConfig) -> Result<Wal, WalError> {
    Wal::open(Arc::new(disk.clone()), dir(), config)
}

fn open(disk: &SimDisk) -> Wal {
    open_with(disk, config()).unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, leader: term * 10, index }
}

fn entry(term: u64, index: u64, payload_bytes: usize) -> Entry {
    // The payload differs from entry to entry, so that a stale one cannot pass for another.
    let payload: Vec<u8> = (0..payload_bytes).map(|i| (index as usize * 7 + term as usize * 3 + i) as u8).collect();
    Entry { log_id: id(term, index), kind: EntryKind::Command, payload: payload.into() }
}

fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<Entry> {
    indexes.map(|index| entry(term, index, 20)).collect()
}

/// A `done`, and where its result can be waited for.
fn done() -> (Done, Receiver<Result<(), WalError>>) {
    let (sender, receiver) = channel();
    // The test may have stopped listening.
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

fn append(wal: &Wal, entries: Vec<Entry>) -> Result<(), WalError> {
    let (done, result) = done();
    wal.append(entries, done);
    result.recv().unwrap()
}

fn save_vote(wal: &Wal, vote: Vote) -> Result<(), WalError> {
    let (done, result) = done();
    wal.save_vote(vote, done);
    result.recv().unwrap()
}

fn truncate(wal: &Wal, last: Option<LogId>) -> Result<(), WalError> {
    let (done, result) = done();
    wal.truncate_after(last, done);
    result.recv().unwrap()
}

fn vote(term: u64) -> Vote {
    Vote { term, member: 7, committed: false }
}

fn all(wal: &Wal) -> Vec<Entry> {
    wal.entries(wal.first_index(), u64::MAX, usize::MAX).unwrap()
}

fn segment_files(disk: &SimDisk) -> Vec<PathBuf> {
    let names = crate::files::Disk::list(disk, dir()).unwrap();
    names.iter().filter(|name| name.ends_with(".wal")).map(|name| dir().join(name)).collect()
}

/// The seed of a random test: from the environment, or `default`, so that a failure can be repeated.
fn seed(default: u64) -> u64 {
    match std::env::var("LIFEBOAT_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => default,
    }
}

/// Says on the way out of a failing test what it ran with.
struct OnPanic(String);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0);
        }
    }
}

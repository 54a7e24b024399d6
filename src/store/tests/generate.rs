//! Generates entries for the tests: few keys, so that they meet often; all kinds of entries and operations.

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::chance;
use crate::model::{
    Command, Condition, Entry, EntryKind, Guard, KeySpace, LogId, Revision, WriteCommand, WriteOp, new_random_id,
};

/// Draws entries that follow each other.
pub struct Generator {
    last: Option<LogId>,
    term: u64,
    time_ms: u64,
}

impl Generator {
    pub fn new() -> Generator {
        Generator { last: None, term: 1, time_ms: 1_000_000 }
    }

    /// What another leader, of a later term, proposes after this entry.
    pub fn after(last: LogId) -> Generator {
        Generator { last: Some(last), term: last.term + 100, ..Generator::new() }
    }

    /// A membership.
    pub fn membership(&mut self) -> Entry {
        let following = self.following(WriteOp::Delete { space: KeySpace::User, key: Bytes::new() });
        Entry { kind: EntryKind::Membership, payload: Bytes::from_static(b"{}"), ..following }
    }

    /// The next entry; `revision` is about where the store stands, for guards that hold at times.
    pub fn entry(&mut self, rng: &mut StdRng, revision: Revision) -> Entry {
        if chance(rng, 3) {
            self.term += rng.random_range(1..4);
        }
        // The leader's clock may run backwards; the store's must not.
        self.time_ms = self.time_ms + rng.random_range(0..1000) - 300;
        let index = self.last.map_or(0, |last| last.index + 1);
        let log_id = LogId { term: self.term, leader: self.term % 3, index };
        self.last = Some(log_id);
        let (kind, payload) = match rng.random_range(0..100) {
            _ if index == 1 => (EntryKind::Command, self.found().encode()),
            0..3 => (EntryKind::Blank, Bytes::new()),
            3..6 => (EntryKind::Membership, format!("{{\"members\":{}}}", rng.random_range(0..9)).into()),
            6 => (EntryKind::Command, self.found().encode()),
            _ => (EntryKind::Command, self.write(rng, revision).encode()),
        };
        Entry { log_id, kind, payload }
    }

    /// The entry that follows with this operation alone.
    pub fn following(&mut self, op: WriteOp) -> Entry {
        let index = self.last.map_or(0, |last| last.index + 1);
        let log_id = LogId { term: self.term, leader: self.term % 3, index };
        self.last = Some(log_id);
        let command = Command::Write(WriteCommand { time_ms: self.time_ms, guards: vec![], ops: vec![op] });
        Entry { log_id, kind: EntryKind::Command, payload: command.encode() }
    }

    fn found(&self) -> Command {
        Command::Found { time_ms: self.time_ms, cluster: new_random_id(), timeline: new_random_id() }
    }

    fn write(&self, rng: &mut StdRng, revision: Revision) -> Command {
        let guards = if chance(rng, 25) { rng.random_range(1..3) } else { 0 };
        let guards = (0..guards).map(|_| guard(rng, revision)).collect();
        let ops = match rng.random_range(0..20) {
            0 => 0,
            1..4 => rng.random_range(2..6),
            4 => rng.random_range(10..40),
            _ => 1,
        };
        let ops = (0..ops).map(|_| op(rng)).collect();
        Command::Write(WriteCommand { time_ms: self.time_ms, guards, ops })
    }
}

pub fn key(rng: &mut StdRng) -> Bytes {
    let len = if chance(rng, 2) { 300 } else { rng.random_range(0..4) };
    (0..len).map(|_| *[b'a', b'b', b'c', 0, 0xff].get(rng.random_range(0..5)).unwrap()).collect()
}

pub fn space(rng: &mut StdRng) -> KeySpace {
    if chance(rng, 10) { KeySpace::System } else { KeySpace::User }
}

fn guard(rng: &mut StdRng, revision: Revision) -> Guard {
    let revisions =
        |rng: &mut StdRng| (0..rng.random_range(0..20)).map(|_| rng.random_range(0..revision + 2)).collect();
    let condition = match rng.random_range(0..4) {
        0 => Condition::Absent,
        1 => Condition::Exists,
        2 => Condition::ModRevisionIn(revisions(rng)),
        _ => Condition::ModRevisionNotIn(revisions(rng)),
    };
    Guard { key: key(rng), condition }
}

fn op(rng: &mut StdRng) -> WriteOp {
    let (space, key) = (space(rng), key(rng));
    match rng.random_range(0..100) {
        0..65 => {
            let len = match rng.random_range(0..50) {
                0 => rng.random_range(3000..9000),
                1 => 0,
                _ => rng.random_range(1..80),
            };
            let byte: u8 = rng.random();
            let value = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
            WriteOp::Put { space, key, value, lease: 0 }
        }
        65..95 => WriteOp::Delete { space, key },
        _ => {
            let end = (!chance(rng, 5)).then(|| self::key(rng));
            WriteOp::DeleteRange { space, start: key, end }
        }
    }
}

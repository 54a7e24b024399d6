//! What came with feature level 2, by hand: sequences and their jumps, canaries, records that are changed under a
//! condition, and what is counted of events and of the planned pause.

use std::sync::Arc;

use bytes::Bytes;

use super::open;
use crate::files::sim::SimDisk;
use crate::index::MemoryIndex;
use crate::model::sequence::{DEFAULT_SEQUENCE_STEP, MAX_SEQUENCE_COUNT, MAX_SEQUENCE_NUMBER, MAX_SEQUENCE_STEP};
use crate::model::{
    BeginTimeline, Command, Entry, EntryKind, IdempotencyKey, KeySpace, LogId, Outcome, RandomId, Request,
    RequestCommand, SequenceNumbers, SequenceRefusal, Timeline, WriteCommand, WriteOp,
};
use crate::store::{MAINTENANCE_KEY, SWITCHOVER_KEY, Store, TIMELINES_KEY, event_op, forget_event_op};

struct Bench {
    disk: SimDisk,
    index: Arc<MemoryIndex>,
    store: Store,
}

fn timeline(number: u64) -> Timeline {
    let id = |number: u64| RandomId([number as u8; 16]);
    let parent = (number > 1).then(|| id(number - 1));
    Timeline { number, parent, ..Timeline::first(id(number)) }
}

impl Bench {
    /// A store on timeline 1.
    fn new() -> Bench {
        let (disk, index) = (SimDisk::new(), Arc::default());
        let store = open(&disk, &index).unwrap();
        let bench = Bench { disk, index, store };
        bench.apply(Command::Found { time_ms: 1, cluster: RandomId([9; 16]), timeline: timeline(1).id });
        bench
    }

    fn apply(&self, command: Command) -> Outcome {
        let index = self.store.applied().map_or(0, |log_id| log_id.index + 1);
        let log_id = LogId { term: 1, leader: 1, index };
        let entry = Entry { log_id, kind: EntryKind::Command, payload: command.encode() };
        self.store.apply(&[entry]).unwrap().remove(0)
    }

    fn ask_at(&self, time_ms: u64, idempotency: Option<&'static str>, request: Request) -> Outcome {
        let idempotency =
            idempotency.map(|key| IdempotencyKey { key: Bytes::from_static(key.as_bytes()), fingerprint: [0; 16] });
        self.apply(Command::Request(RequestCommand { time_ms, idempotency, request }))
    }

    fn ask(&self, request: Request) -> Outcome {
        self.ask_at(5, None, request)
    }

    fn write(&self, ops: Vec<WriteOp>) {
        let outcome = self.apply(Command::Write(WriteCommand { ops, ..WriteCommand::default() }));
        assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
    }

    /// The next timeline begins.
    fn branch(&self, number: u64) {
        let (id, parent) = (timeline(number).id, timeline(number - 1).id);
        self.apply(Command::Begin(BeginTimeline { time_ms: 5, id, parent, offset: 0, record: Bytes::new() }));
        assert_eq!(self.store.timelines().last().map(|timeline| timeline.number), Some(number));
    }

    fn take(&self, name: &'static str, count: u64, step: u64) -> Result<SequenceNumbers, SequenceRefusal> {
        match self.ask(sequence(name, count, step)) {
            Outcome::Sequence { revision, numbers } => {
                assert_eq!(revision, self.store.revision());
                Ok(numbers)
            }
            Outcome::SequenceRefused { why, .. } => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// Seals everything and opens it again.
    fn restart(self) -> Bench {
        let Bench { disk, index, store } = self;
        store.close(store.applied().unwrap().index).unwrap();
        drop(store);
        let store = open(&disk, &index).unwrap();
        Bench { disk, index, store }
    }
}

fn sequence(name: &'static str, count: u64, step: u64) -> Request {
    Request::Sequence { name: Bytes::from_static(name.as_bytes()), count, step }
}

fn numbers(first: u64, last: u64, step: u64, unique: bool) -> Result<SequenceNumbers, SequenceRefusal> {
    Ok(SequenceNumbers { first, last, step, unique })
}

#[test]
fn numbers_follow_each_other_across_a_restart() {
    let bench = Bench::new();
    assert_eq!(bench.store.sequence(b"orders").unwrap(), None);
    assert_eq!(bench.take("orders", 1, 0), numbers(1, 1, DEFAULT_SEQUENCE_STEP, true));
    assert_eq!(bench.take("orders", 10, 0), numbers(2, 11, DEFAULT_SEQUENCE_STEP, true));
    assert_eq!(bench.take("other", 1, 50), numbers(1, 1, 50, true));
    let bench = bench.restart();
    assert_eq!(bench.take("orders", 1, 0), numbers(12, 12, DEFAULT_SEQUENCE_STEP, true));
    let (record, meta) = bench.store.sequence(b"orders").unwrap().unwrap();
    assert_eq!((record.last, record.jump_count, record.is_unique()), (12, 0, true));
    assert_eq!(meta.mod_revision, bench.store.revision());
}

#[test]
fn a_repeated_request_gets_the_same_numbers() {
    let bench = Bench::new();
    let first = bench.ask_at(5, Some("once"), sequence("orders", 3, 0));
    let again = bench.ask_at(6, Some("once"), sequence("orders", 3, 0));
    assert_eq!(again, Outcome::Replayed(Box::new(first)));
    assert_eq!(bench.take("orders", 1, 0), numbers(4, 4, DEFAULT_SEQUENCE_STEP, true));
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let bench = Bench::new();
    bench.take("orders", 1, 50).unwrap();
    let before = bench.store.revision();
    assert_eq!(bench.take("orders", 1, 51), Err(SequenceRefusal::OtherStep { step: 50 }));
    for (count, step) in [(0, 0), (MAX_SEQUENCE_COUNT + 1, 0), (1, MAX_SEQUENCE_STEP + 1)] {
        assert_eq!(bench.take("new", count, step), Err(SequenceRefusal::BadCount));
    }
    assert_eq!(bench.store.revision(), before);
    assert_eq!(bench.store.sequence(b"new").unwrap(), None);
    assert_eq!(bench.take("orders", 1, 50), numbers(2, 2, 50, true));
}

#[test]
fn another_timeline_makes_a_sequence_jump_once_and_that_stays_visible() {
    let bench = Bench::new();
    bench.take("orders", 100, 1000).unwrap();
    bench.take("missed", 1, 10).unwrap();
    bench.branch(2);
    assert_eq!(bench.take("orders", 2, 0), numbers(1101, 1102, 1000, false));
    assert_eq!(bench.take("orders", 1, 0), numbers(1103, 1103, 1000, false), "it jumps once");
    let bench = bench.restart();
    let (record, _) = bench.store.sequence(b"orders").unwrap().unwrap();
    assert_eq!((record.last, record.jump_count, record.is_unique()), (1103, 1, false));
    let [jump] = record.jumps[..] else { panic!("{record:?}") };
    assert_eq!((jump.from, jump.to, jump.timeline, jump.timeline_id), (100, 1100, 2, timeline(2).id));
    assert!(jump.revision > 0 && jump.revision < bench.store.revision());
    // A sequence that slept through two timelines passes what each lost site may have given out.
    bench.branch(3);
    assert_eq!(bench.take("missed", 1, 0), numbers(22, 22, 10, false));
    // One that is new here may have been created on the lost site.
    assert_eq!(bench.take("late", 1, 7), numbers(15, 15, 7, false));
}

#[test]
fn the_newest_jumps_are_kept() {
    let bench = Bench::new();
    bench.take("orders", 1, 1).unwrap();
    for number in 2..=20 {
        bench.branch(number);
        bench.take("orders", 1, 0).unwrap();
    }
    let (record, _) = bench.store.sequence(b"orders").unwrap().unwrap();
    assert_eq!((record.jump_count, record.jumps.len()), (19, 16));
    assert_eq!(record.jumps.first().unwrap().timeline, 5);
    assert_eq!(record.jumps.last().unwrap().timeline, 20);
}

#[test]
fn a_sequence_ends_before_json_loses_numbers() {
    let bench = Bench::new();
    let step = MAX_SEQUENCE_STEP;
    bench.take("orders", 1, step).unwrap();
    // 2^53 / 2^40 jumps are too many.
    let mut last = 1;
    let mut number = 1;
    while last + step < MAX_SEQUENCE_NUMBER {
        // Eight thousand timelines would be slow to write one by one.
        number += 200;
        let all: Vec<Timeline> = (0..number)
            .map(|n| Timeline { id: if n == 0 { timeline(1).id } else { spread(n) }, ..timeline(n + 1) })
            .collect();
        let value = serde_json::to_vec(&all).unwrap().into();
        let key = Bytes::from_static(TIMELINES_KEY);
        bench.write(vec![WriteOp::Put { space: KeySpace::System, key, value, lease: 0 }]);
        match bench.take("orders", 1, 0) {
            Ok(taken) => last = taken.last,
            Err(why) => {
                assert_eq!(why, SequenceRefusal::Exhausted { last });
                break;
            }
        }
    }
    assert!(last > MAX_SEQUENCE_NUMBER - 201 * step, "{last}");
    let (record, _) = bench.store.sequence(b"orders").unwrap().unwrap();
    assert_eq!(record.last, last, "a refusal changes nothing");
}

fn spread(number: u64) -> RandomId {
    let mut id = RandomId([1; 16]);
    id.0[..8].copy_from_slice(&(number << 8).to_le_bytes());
    id
}

#[test]
fn a_canary_is_a_frame_without_a_revision_that_carries_the_time() {
    let bench = Bench::new();
    assert_eq!(bench.store.canary_ms(), None);
    let before = (bench.store.revision(), bench.store.chain().unwrap());
    assert_eq!(bench.ask_at(7000, None, Request::Canary), Outcome::None);
    assert_eq!((bench.store.canary_ms(), bench.store.clock_ms()), (Some(7000), 7000));
    assert_eq!(bench.store.revision(), before.0);
    let after = bench.store.chain().unwrap();
    assert_eq!(after.0, before.1.0 + 1, "it has a position");
    assert_ne!(after.1, before.1.1);
    // Time never runs backwards, whatever a new leader's clock says.
    bench.ask_at(6000, None, Request::Canary);
    assert_eq!(bench.store.canary_ms(), Some(7000));
    let bench = bench.restart();
    assert_eq!((bench.store.canary_ms(), bench.store.clock_ms()), (None, 7000));
}

#[test]
fn a_record_is_changed_only_as_it_was_seen() {
    let bench = Bench::new();
    let key = || Bytes::from_static(MAINTENANCE_KEY);
    let record = |written, value: Option<&'static str>| {
        let value = value.map(|value| Bytes::from_static(value.as_bytes()));
        bench.ask(Request::Record { key: key(), written, value })
    };
    assert!(matches!(record(3, None), Outcome::Refused { current: None, .. }));
    let Outcome::Written { revision, .. } = record(0, Some("a")) else { panic!("not written") };
    assert!(matches!(record(0, Some("b")), Outcome::Refused { current: Some(_), .. }));
    assert_eq!(bench.store.records().maintenance, revision);
    assert_eq!(bench.store.maintenance().unwrap().unwrap().value, "a");
    let Outcome::Written { revision: second, .. } = record(revision, Some("b")) else { panic!("not written") };
    assert!(matches!(record(revision, None), Outcome::Refused { .. }), "somebody replaced it");
    assert!(matches!(record(second, None), Outcome::Written { .. }));
    assert_eq!((bench.store.records().maintenance, bench.store.maintenance().unwrap()), (0, None));
}

#[test]
fn events_the_pause_and_the_switchover_are_found_again_after_a_restart() {
    let bench = Bench::new();
    assert_eq!(bench.store.records().last_event, 0);
    bench.write((1..=5).map(|number| event_op(number, number.to_string().into())).collect());
    bench.write(vec![event_op(6, "6".into()), forget_event_op(2)]);
    let pause = Request::Record { key: Bytes::from_static(MAINTENANCE_KEY), written: 0, value: Some("p".into()) };
    bench.ask(pause);
    let paused = bench.store.revision();
    let moves = Request::Record { key: Bytes::from_static(SWITCHOVER_KEY), written: 0, value: Some("s".into()) };
    bench.ask(moves);
    let seen = bench.store.records();
    assert_eq!((seen.last_event, seen.maintenance, seen.switchover), (6, paused, bench.store.revision()));
    let bench = bench.restart();
    assert_eq!(bench.store.records(), seen);
    assert_eq!(bench.store.switchover().unwrap().unwrap().value, "s");
    let kept: Vec<u64> = bench.store.events(0, 100).unwrap().iter().map(|event| event.number).collect();
    assert_eq!(kept, [3, 4, 5, 6]);
    let page: Vec<Bytes> = bench.store.events(4, 1).unwrap().into_iter().map(|event| event.value).collect();
    assert_eq!(page, ["5"]);
}

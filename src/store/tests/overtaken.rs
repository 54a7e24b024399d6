//! Copies that are overtaken: while they are read and received, sender and receiver go on, floors move, keys are created
//! again, tails are sealed. What is installed must be what a member has that applied everything itself.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::compaction::{close, compact_all, delete, eager, entry, floors_entry, put, read};
use super::copies::install;
use super::delta::request;
use super::open;
use super::power::{assert_no_leftovers, states};
use crate::files::sim::SimDisk;
use crate::index::MemoryIndex;
use crate::model::{Entry, KeySpace, WriteOp};
use crate::store::{CompactLimits, Floors, PreparedInstall, RangeQuery, SnapshotReader, Store, StoreError};

const ALL: Floors = Floors { read: u64::MAX, delta: u64::MAX };

fn new_store() -> Store {
    open(&SimDisk::new(), &Arc::default()).unwrap()
}

/// A member that sends copies, and what it has applied.
struct Leader {
    store: Store,
    entries: Vec<Entry>,
}

impl Leader {
    fn new() -> Leader {
        Leader { store: new_store(), entries: Vec::new() }
    }

    fn take(&mut self, entry: Entry) {
        self.store.apply(std::slice::from_ref(&entry)).unwrap();
        self.entries.push(entry);
        if !self.store.has_room() {
            close(&self.store);
        }
    }

    fn write(&mut self, ops: Vec<WriteOp>) {
        self.take(entry(&self.store, ops));
    }

    fn move_floors(&mut self, wanted: Floors) {
        let entry = floors_entry(&self.store, wanted).expect("a floor moves");
        self.take(entry);
    }

    /// The last position, to which a member that follows now gets.
    fn last(&self) -> u64 {
        self.entries.len() as u64 - 1
    }

    /// Lets a member apply what it lacks, up to and without a position.
    fn bring(&self, member: &Store, upto: usize) {
        let from = member.applied().map_or(0, |log_id| log_id.index as usize + 1);
        for entry in &self.entries[from..upto] {
            member.apply(std::slice::from_ref(entry)).unwrap();
            if !member.has_room() {
                close(member);
            }
        }
    }

    /// Checks that a member holds what this one holds, and goes on like it.
    fn check(&mut self, member: &Store) {
        self.bring(member, self.entries.len());
        self.write(vec![put("last", "words"), delete("k"), put("j", "again")]);
        self.bring(member, self.entries.len());
        assert_eq!(member.chain(), self.store.chain(), "the members have come apart");
        assert_eq!(member.head(), self.store.head());
        let all = |store: &Store| store.range(&RangeQuery::all(KeySpace::User)).unwrap().items;
        assert_eq!(all(member), all(&self.store));
        assert_eq!(member.stats().live_keys, self.store.stats().live_keys);
    }
}

fn rest(mut reader: SnapshotReader) -> Vec<Bytes> {
    std::iter::from_fn(|| reader.next_chunk().unwrap()).collect()
}

/// A member that has a key, and a leader that has deleted it since, below its read floor.
fn deleted_since() -> (Leader, Store) {
    let (mut leader, member) = (Leader::new(), new_store());
    leader.write(vec![put("k", "old")]);
    leader.write(vec![put("other", "1")]);
    leader.bring(&member, 2);
    close(&member);
    let last = leader.last();
    leader.write(vec![delete("k"), put("other", "2")]);
    leader.write(vec![put("j", "new")]);
    leader.move_floors(Floors { read: u64::MAX, delta: last });
    close(&leader.store);
    (leader, member)
}

#[test]
fn a_deletion_is_sent_although_its_key_was_created_again_above_floors_that_passed_it() {
    let (mut leader, member) = deleted_since();
    let mut reader = leader.store.copy_for(&request(&member)).unwrap();
    assert_eq!(reader.from().next_position, 2, "a delta");
    let mut bytes = reader.next_chunk().unwrap().unwrap().to_vec();
    leader.move_floors(ALL);
    leader.write(vec![put("k", "new")]);
    close(&leader.store);
    bytes.extend(rest(reader).concat());
    install(&member, &bytes, 1000).unwrap();
    assert_eq!(read(&member, "k", None), None);
    leader.check(&member);
}

#[test]
fn a_value_is_sent_although_its_key_was_deleted_and_forgotten_meanwhile() {
    for again in [false, true] {
        let (mut leader, member) = deleted_since();
        let mut reader = leader.store.copy_for(&request(&member)).unwrap();
        let mut bytes = reader.next_chunk().unwrap().unwrap().to_vec();
        leader.write(vec![delete("j")]);
        leader.move_floors(ALL);
        if again {
            leader.write(vec![put("j", "newer")]);
        }
        close(&leader.store);
        if !again {
            assert!(compact_all(&leader.store) > 0);
        }
        bytes.extend(rest(reader).concat());
        install(&member, &bytes, 1000).unwrap();
        assert_eq!(read(&member, "j", None).unwrap(), "new");
        leader.check(&member);
    }
}

/// What is garbage in a delta is left out as before while the floors stay where they do not matter to the receiver.
#[test]
fn floors_that_move_up_to_the_start_of_a_delta_change_nothing_in_it() {
    let sizes = [false, true].map(|moves| {
        let (mut leader, member) = (Leader::new(), new_store());
        for n in 0..20 {
            leader.write(vec![put(&format!("k{n}"), "first")]);
        }
        leader.bring(&member, 20);
        close(&member);
        for n in 0..200 {
            leader.write(vec![put("often", &n.to_string().repeat(20))]);
        }
        leader.move_floors(Floors { read: u64::MAX, delta: 5 });
        close(&leader.store);
        let mut reader = leader.store.copy_for(&request(&member)).unwrap();
        let mut bytes = reader.next_chunk().unwrap().unwrap().to_vec();
        if moves {
            leader.move_floors(Floors { read: u64::MAX, delta: 19 });
            close(&leader.store);
        }
        bytes.extend(rest(reader).concat());
        install(&member, &bytes, 1000).unwrap();
        leader.check(&member);
        bytes.len()
    });
    assert_eq!(sizes[0], sizes[1]);
}

/// A key that is overwritten without end must not make a chunk take for ever, and is read once, not for every chunk.
#[test]
fn a_chunk_of_a_delta_takes_bounded_work_however_often_a_key_was_overwritten() {
    const OFTEN: u64 = 1500;
    let (mut leader, member) = (Leader::new(), new_store());
    leader.write(vec![put("k", "first")]);
    leader.bring(&member, 1);
    close(&member);
    for n in 0..300 {
        leader.write(vec![put("hot", &n.to_string().repeat(30))]);
    }
    leader.move_floors(Floors { read: u64::MAX, delta: 0 });
    for n in 0..OFTEN {
        leader.write(vec![put("hot", &n.to_string())]);
    }
    close(&leader.store);
    let look_ups = |store: &Store| store.stats().table_cache_hits + store.stats().table_cache_misses;
    let mut reader = leader.store.copy_for(&request(&member)).unwrap();
    let (begin, mut most, mut chunks) = (look_ups(&leader.store), 0, Vec::new());
    loop {
        let before = look_ups(&leader.store);
        let Some(chunk) = reader.next_chunk().unwrap() else { break };
        most = most.max(look_ups(&leader.store) - before);
        chunks.push(chunk);
    }
    let all = look_ups(&leader.store) - begin;
    assert!(chunks.len() > 20 && most < 400, "{most} look-ups for one of {} chunks", chunks.len());
    assert!((OFTEN..OFTEN * 2).contains(&all), "{all} look-ups for all; {OFTEN} versions are read once each");
    install(&member, &chunks.concat(), 1000).unwrap();
    leader.check(&member);
}

/// How far a member is that is to get a delta, and how far it comes by itself until the delta is there.
const BEGIN: usize = 150;
const MEANWHILE: usize = 420;

/// A leader with a history that it has thinned, of which a member has the first part.
fn far_ahead(disk: &SimDisk, index: &Arc<MemoryIndex>) -> (Leader, Store) {
    let (mut leader, member) = (Leader::new(), open(disk, index).unwrap());
    for n in 0..800 {
        let key = format!("k{}", n % 60);
        leader.write(if n % 7 == 0 { vec![delete(&key)] } else { vec![put(&key, &n.to_string().repeat(20))] });
        if n % 10 == 0 {
            leader.write(vec![put(&format!("only/{n}"), "once")]);
        }
    }
    leader.move_floors(Floors { read: 500, delta: BEGIN as u64 - 1 });
    close(&leader.store);
    compact_all(&leader.store);
    leader.bring(&member, BEGIN);
    close(&member);
    (leader, member)
}

/// Receives a copy, and calls `between` before every chunk and at the end.
fn receive(store: &Store, reader: SnapshotReader, mut between: impl FnMut(usize)) -> PreparedInstall {
    let mut installer = store.begin_install().unwrap();
    let chunks = rest(reader);
    let count = chunks.len();
    for (at, chunk) in chunks.into_iter().enumerate() {
        between(at);
        installer.push(&chunk).unwrap();
    }
    let prepared = installer.finish().unwrap();
    between(count);
    prepared
}

/// What a member's own log still held is applied and sealed while a delta arrives. Raft has taken the delta for the state
/// by the time it is installed, so it must go in.
#[test]
fn a_delta_goes_in_although_the_receiver_has_sealed_more_since_it_began() {
    for (early, last, compacts) in [(true, MEANWHILE, false), (false, MEANWHILE, true), (true, usize::MAX, true)] {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        let (mut leader, member) = far_ahead(&disk, &index);
        let (reader, last) = (leader.store.copy_for(&request(&member)).unwrap(), last.min(leader.entries.len()));
        assert_eq!(reader.from().next_position, BEGIN as u64, "a delta");
        let (mut chunks, mut staged) = (0, false);
        let prepared = receive(&member, reader, |at| {
            chunks = at;
            staged |= member.stats().staging_bytes > 0;
            let upto = if early { BEGIN + at * 60 } else { last };
            if at > 0 && (early || staged) {
                leader.bring(&member, upto.min(last));
                close(&member);
            }
            if compacts {
                member.compact(eager(), &|_| ControlFlow::Continue(())).unwrap();
            }
        });
        leader.bring(&member, last);
        close(&member);
        if compacts {
            compact_all(&member);
        }
        assert!(chunks > 5 && staged, "{chunks} chunks");
        let sealed = member.sealed().unwrap().index as usize + 1;
        assert!(sealed == last && sealed > BEGIN, "{sealed} are sealed");
        member.install(prepared).unwrap();
        assert_eq!((member.chain(), member.sealed()), (leader.store.chain(), leader.store.applied()));
        assert_eq!(member.stats().staging_bytes, 0);
        assert_no_leftovers(&disk);
        for index in [Arc::new(index.copy()), Arc::default()] {
            let again = open(&disk.process_kill(), &index).unwrap();
            assert_eq!(again.head(), member.head());
        }
        leader.check(&member);
        close(&member);
        compact_all(&member);
        let all =
            |store: &Store| store.range(&RangeQuery { at: Some(500), ..RangeQuery::all(KeySpace::User) }).unwrap();
        assert_eq!(all(&member), all(&leader.store), "also what can be read of the past");
    }
}

#[test]
fn a_cut_while_such_a_delta_goes_in_leaves_the_old_or_the_new() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let (leader, member) = far_ahead(&disk, &index);
    drop(member);
    let (mut olds, mut news) = (0, 0);
    for operations in 0.. {
        let (disk, index) = (disk.process_kill(), Arc::new(index.copy()));
        let member = open(&disk, &index).unwrap();
        let prepared = receive(&member, leader.store.copy_for(&request(&member)).unwrap(), |_| {});
        leader.bring(&member, MEANWHILE);
        close(&member);
        disk.crash_after(operations);
        let result = member.install(prepared);
        drop(member);
        for (nth, state) in states(&disk, operations).into_iter().enumerate() {
            let index = if nth % 2 == 0 { Arc::default() } else { Arc::new(index.copy()) };
            let member = open(&state, &index).unwrap_or_else(|e| panic!("operation {operations}, state {nth}: {e}"));
            assert_no_leftovers(&state);
            if member.chain() == leader.store.chain() {
                news += 1;
            } else {
                assert!(result.is_err(), "operation {operations}, state {nth}: it was confirmed, and is lost");
                assert_eq!(member.applied().unwrap().index as usize, MEANWHILE - 1);
                olds += 1;
                install(&member, &rest(leader.store.copy_for(&request(&member)).unwrap()).concat(), 5000).unwrap();
            }
            let all = |store: &Store| store.range(&RangeQuery::all(KeySpace::User)).unwrap().items;
            assert_eq!(all(&member), all(&leader.store));
        }
        if !disk.has_crashed() {
            result.unwrap();
            break;
        }
    }
    assert!(olds > 3 && news > 3, "{olds} old, {news} new");
}

/// Where a delta begins a segment must end until it is in.
#[test]
fn nothing_is_merged_over_the_beginning_of_a_delta_that_is_received() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let (leader, member) = far_ahead(&disk, &index);
    let ends = || {
        let sealed = member.inner.body().state.read().sealed.clone();
        sealed.segments().iter().filter(|segment| segment.info().end().next_position == BEGIN as u64).count()
    };
    let prepared = receive(&member, leader.store.copy_for(&request(&member)).unwrap(), |_| {});
    for upto in [200, 250, 300, 350] {
        leader.bring(&member, upto);
        close(&member);
    }
    let merge_all = || {
        let limits = CompactLimits { step_bytes: 1 << 20, merge_segments: 2, ..CompactLimits::default() };
        while member.compact(limits, &|_| ControlFlow::Continue(())).unwrap().segments > 0 {}
    };
    merge_all();
    assert_eq!((ends(), member.stats().segments), (1, 2));
    drop(prepared);
    merge_all();
    assert_eq!(ends(), 0, "it was given up, and they are merged");
    assert!(member.inner.held_bases.lock().is_empty());
}

#[test]
fn a_delta_of_another_history_than_what_was_sealed_meanwhile_is_named() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let (leader, member) = far_ahead(&disk, &index);
    let prepared = receive(&member, leader.store.copy_for(&request(&member)).unwrap(), |_| {});
    member.apply(&[entry(&member, vec![put("k1", "of another history")])]).unwrap();
    close(&member);
    let head = member.head();
    let refused = member.install(prepared).unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { .. }) && refused.to_string().contains("chain"), "{refused}");
    assert_eq!(member.head(), head);
}

/// What came from a sender whose floors were higher lacks what another sender's lower floors promise.
#[test]
fn a_copy_is_not_continued_by_a_sender_with_lower_floors() {
    let (one, other, member) = (&mut Leader::new(), new_store(), new_store());
    for n in 0..600 {
        one.write(vec![put(&format!("k{}", n % 200), &n.to_string().repeat(20))]);
    }
    one.bring(&other, 550);
    close(&other);
    one.move_floors(Floors { read: 500, delta: 10 });
    close(&one.store);
    compact_all(&one.store);
    let mut installer = member.begin_install().unwrap();
    for chunk in rest(one.store.snapshot().unwrap()) {
        installer.push(&chunk).unwrap();
        if member.stats().staging_bytes > 0 {
            break;
        }
    }
    drop(installer);
    let staged = request(&member).staged.expect("some of it is kept");
    assert!((100..550).contains(&staged.next_position), "{staged:?}");
    let reader = other.copy_for(&request(&member)).unwrap();
    assert_eq!(reader.from(), staged, "it would go on");
    let refused = install(&member, &rest(reader).concat(), 1000).unwrap_err();
    assert!(refused.to_string().contains("floors"), "{refused}");
    assert_eq!(request(&member).staged, Some(staged), "it is kept for a sender that can go on");
    // The other sender comes to the same floors by itself, as they are in the log.
    one.bring(&other, one.entries.len());
    let reader = other.copy_for(&request(&member)).unwrap();
    assert_eq!(reader.from(), staged);
    install(&member, &rest(reader).concat(), 1000).unwrap();
    one.check(&member);
}

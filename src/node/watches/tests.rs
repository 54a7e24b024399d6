//! The hub over a store and nothing else: what watchers are told is what was applied.

mod floors;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::ring::Found;
use super::*;
use crate::api::{Change, ChangeEvent, KeyItem, WatchEvent};
use crate::files::sim::SimDisk;
use crate::index::{IndexKind, MemoryIndex};
use crate::model::{Command, Entry, EntryKind, KeySpace, LogId, Revision, WriteCommand, WriteOp};
use crate::store::StoreConfig;

/// Nothing here should take so long.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Printed when a test fails; the environment may set it.
struct Seeded(u64, StdRng);

impl Seeded {
    fn new() -> Seeded {
        let set = std::env::var("LIFEBOAT_TEST_SEED").ok();
        let seed = set.map_or_else(rand::random, |text| text.parse().expect("LIFEBOAT_TEST_SEED is a number"));
        Seeded(seed, StdRng::seed_from_u64(seed))
    }
}

impl Drop for Seeded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with LIFEBOAT_TEST_SEED={}", self.0);
        }
    }
}

/// A store that is written by hand, and its hub.
struct Member {
    disk: SimDisk,
    index: Arc<MemoryIndex>,
    store: Store,
    applied: watch::Sender<Option<LogId>>,
    hub: WatchHub,
    limits: WatchLimits,
}

fn limits() -> WatchLimits {
    WatchLimits { max_watchers: 100, buffer_bytes: 4 << 10, slow_timeout: HOUR }
}

impl Member {
    fn new(limits: WatchLimits) -> Member {
        Member::open(SimDisk::new(), Arc::default(), limits)
    }

    fn open(disk: SimDisk, index: Arc<MemoryIndex>, limits: WatchLimits) -> Member {
        let config = StoreConfig { tail_bytes: 6 << 10, overlay_bytes: 24 << 10, ..StoreConfig::default() };
        let kind = IndexKind::Memory(index.clone());
        let store = Store::open(Arc::new(disk.clone()), Path::new("/history"), kind, config).unwrap();
        let (applied, receiver) = watch::channel(store.applied());
        let hub = WatchHub::start(store.clone(), receiver, limits.clone()).unwrap();
        Member { disk, index, store, applied, hub, limits }
    }

    /// Stops and starts again: what is not sealed is gone, as after a crash, and is applied again by `catch_up`.
    fn restart(self) -> Member {
        let Member { disk, index, store, applied, hub, limits } = self;
        drop((store, applied, hub));
        Member::open(disk, index, limits)
    }

    fn apply(&self, entries: &[Entry]) {
        for entries in entries.chunks(7) {
            if !self.store.has_room() {
                self.seal();
            }
            self.store.apply(entries).unwrap();
            self.applied.send_replace(self.store.applied());
        }
    }

    fn seal(&self) {
        self.store.seal_all(u64::MAX).unwrap();
        self.store.flush_index().unwrap();
    }

    /// Replaces all content by that of another member.
    fn install(&self, from: &Member) {
        let mut snapshot = from.store.snapshot().unwrap();
        let mut installer = self.store.begin_install().unwrap();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            installer.push(&chunk).unwrap();
        }
        self.store.install(installer.finish().unwrap()).unwrap();
        self.applied.send_replace(self.store.applied());
    }

    /// A write of its own.
    fn put(&self, key: &'static str, value: &str) -> Revision {
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.write(vec![WriteOp::Put {
            space: KeySpace::User,
            key: Bytes::from_static(key.as_bytes()),
            value,
            lease: 0,
        }])
    }

    fn write(&self, ops: Vec<WriteOp>) -> Revision {
        let index = self.store.applied().map_or(0, |applied| applied.index + 1);
        self.apply(&[entry(index, ops)]);
        self.store.revision()
    }

    fn watch(&self, scope: Scope, since: Option<Revision>) -> Reader {
        Reader::new(self.hub.watch(view(scope), since, HOUR).unwrap())
    }
}

fn view(scope: Scope) -> View {
    View { scope, kinds: Kinds::All, previous: false, keys_only: false, framing: Framing::Lines }
}

fn entry(index: u64, ops: Vec<WriteOp>) -> Entry {
    let payload = Command::Write(WriteCommand { time_ms: 1000 + index, guards: Vec::new(), ops }).encode();
    Entry { log_id: LogId { term: 1, leader: 1, index }, kind: EntryKind::Command, payload }
}

/// Reads a watch event by event.
struct Reader {
    watcher: Watcher,
    pace: Pace,
    events: std::collections::VecDeque<WatchEvent>,
}

impl Reader {
    fn new(watcher: Watcher) -> Reader {
        Reader { pace: watcher.pace(), watcher, events: Default::default() }
    }

    /// The next event; none when the stream ended.
    async fn next(&mut self) -> Option<WatchEvent> {
        while self.events.is_empty() {
            self.pace.waits();
            let piece = tokio::time::timeout(PATIENCE, self.watcher.next()).await.expect("an event comes in time");
            let piece = piece?.unwrap();
            self.pace.took();
            let lines = piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            self.events.extend(lines.map(|line| serde_json::from_slice::<WatchEvent>(line).unwrap()));
        }
        self.events.pop_front()
    }

    async fn change(&mut self) -> ChangeEvent {
        match self.next().await {
            Some(WatchEvent::Change(change)) => change,
            other => panic!("no change but {other:?}"),
        }
    }

    async fn end(&mut self) -> crate::api::EndEvent {
        loop {
            match self.next().await {
                Some(WatchEvent::End(end)) => return end,
                Some(_) => {}
                None => panic!("the stream ended without an end"),
            }
        }
    }
}

/// What is true of the keys at each revision, found by applying the operations to a plain map.
#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    now: BTreeMap<Bytes, KeyItem>,
    events: Vec<ChangeEvent>,
    revision: Revision,
    /// Every read floor that there was.
    floors: Vec<Revision>,
}

impl Model {
    fn step(&mut self, rng: &mut StdRng) {
        let index = self.entries.len() as u64;
        let ops: Vec<WriteOp> = (0..rng.random_range(1..4)).map(|_| op(rng)).collect();
        let revision = self.revision + 1;
        let (mut changes, mut moved) = (Vec::new(), false);
        for op in &ops {
            match op {
                WriteOp::Put { space: KeySpace::User, key, value, lease } => {
                    let previous = self.now.get(key).cloned();
                    let meta = crate::model::KeyMeta {
                        create_revision: previous.as_ref().map_or(revision, |item| item.meta.create_revision),
                        mod_revision: revision,
                        version: previous.as_ref().map_or(1, |item| item.meta.version + 1),
                        lease: *lease,
                    };
                    let item = KeyItem { key: key.clone(), value: Some(value.clone()), meta };
                    self.now.insert(key.clone(), item.clone());
                    changes.push(Change::Put(crate::api::PutChange { item, previous }));
                }
                WriteOp::Delete { key, .. } => {
                    if let Some(previous) = self.now.remove(key) {
                        let previous = Some(previous);
                        changes.push(Change::Delete(crate::api::DeleteChange { key: key.clone(), previous }));
                    }
                }
                _ => moved = true,
            }
        }
        if moved || !changes.is_empty() {
            self.revision = revision;
        }
        if !changes.is_empty() {
            self.events.push(ChangeEvent { revision, time_ms: 1000 + index, changes });
        }
        self.entries.push(entry(index, ops));
    }

    /// The record with which a leader moves the floors: to some revision near the end.
    fn step_floors(&mut self, rng: &mut StdRng) {
        let index = self.entries.len() as u64;
        let last = self.floors.last().copied().unwrap_or(0);
        let read = self.revision.saturating_sub(rng.random_range(0..80)).max(last);
        let record = serde_json::json!({"read_floor": read, "delta_floor": index.saturating_sub(100)});
        let (space, key) = (KeySpace::System, crate::store::FLOORS_KEY.into());
        let value = record.to_string().into_bytes().into();
        self.entries.push(entry(index, vec![WriteOp::Put { space, key, value, lease: 0 }]));
        self.revision += 1;
        self.floors.push(read);
    }

    /// What a watcher after a revision must be told.
    fn seen_by(&self, view: &View, since: Revision) -> Vec<ChangeEvent> {
        let item = |item: &KeyItem| KeyItem { value: item.value.clone().filter(|_| !view.keys_only), ..item.clone() };
        let previous = |previous: &Option<KeyItem>| previous.as_ref().filter(|_| view.previous).map(item);
        let mut seen = Vec::new();
        for event in self.events.iter().filter(|event| event.revision > since) {
            let wanted = event.changes.iter().filter(|change| {
                view.scope.contains(change.key()) && view.kinds.contain(matches!(change, Change::Put(_)))
            });
            let changes: Vec<Change> = wanted
                .map(|change| match change {
                    Change::Put(put) => {
                        Change::Put(crate::api::PutChange { item: item(&put.item), previous: previous(&put.previous) })
                    }
                    Change::Delete(gone) => Change::Delete(crate::api::DeleteChange {
                        key: gone.key.clone(),
                        previous: previous(&gone.previous),
                    }),
                })
                .collect();
            if !changes.is_empty() {
                seen.push(ChangeEvent { changes, ..event.clone() });
            }
        }
        seen
    }
}

fn key(rng: &mut StdRng) -> Bytes {
    (0..rng.random_range(1..4)).map(|_| *[b'a', b'b', b'\xff'].get(rng.random_range(0..3)).unwrap()).collect()
}

fn op(rng: &mut StdRng) -> WriteOp {
    let key = key(rng);
    match rng.random_range(0..20) {
        0..12 => {
            let value = (0..rng.random_range(0..60)).map(|_| rng.random::<u8>()).collect();
            WriteOp::Put { space: KeySpace::User, key, value, lease: rng.random_range(0..2) }
        }
        12..19 => WriteOp::Delete { space: KeySpace::User, key },
        // Moves the revision and is no change.
        _ => WriteOp::Put { space: KeySpace::System, key, value: Bytes::new(), lease: 0 },
    }
}

fn random_view(rng: &mut StdRng) -> View {
    let scope = match rng.random_range(0..4) {
        0 => Scope::all(),
        1 => Scope::Prefix(key(rng)),
        2 => Scope::Key(key(rng)),
        _ => Scope::Range { start: key(rng), end: rng.random::<bool>().then(|| key(rng)) },
    };
    let kinds = *[Kinds::All, Kinds::All, Kinds::Puts, Kinds::Deletes].get(rng.random_range(0..4)).unwrap();
    View { scope, kinds, previous: rng.random(), keys_only: rng.random(), framing: Framing::Lines }
}

/// Watches until everything up to `goal` was seen: with pauses, and beginning anew from the last revision now and then, as
/// a client does whose connection breaks. `hub` names the hub of the moment.
async fn reader(
    mut rng: StdRng,
    view: View,
    since: Revision,
    hub: watch::Receiver<WatchHub>,
    goal: Revision,
) -> Vec<ChangeEvent> {
    let (mut at, mut seen) = (since, Vec::new());
    loop {
        let begun = hub.borrow().watch(view.clone(), Some(at), Duration::from_millis(20));
        let mut reader = match begun {
            Ok(watcher) => Reader::new(watcher),
            // A restarted member has not got so far again, or the old hub is gone.
            Err(WatchError::Read(ReadError::Future { .. }) | WatchError::Stopping) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        loop {
            match reader.next().await {
                Some(WatchEvent::Change(change)) => {
                    assert!(change.revision > at, "revision {} after {at}", change.revision);
                    at = change.revision;
                    seen.push(change);
                }
                Some(WatchEvent::Heartbeat { revision }) => {
                    assert!(revision >= at);
                    at = revision;
                }
                Some(WatchEvent::Open { revision }) => assert_eq!(revision, at),
                Some(WatchEvent::End(end)) => {
                    assert_eq!((end.reason, end.floor), (EndReason::Stopping, None));
                    assert!(end.revision >= at);
                    at = end.revision;
                    break;
                }
                other => panic!("{other:?}"),
            }
            if at >= goal {
                return seen;
            }
            match rng.random_range(0..40) {
                0 => break,
                1 => tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await,
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_told_exactly_what_was_done_through_restarts_and_installs() {
    let mut seeded = Seeded::new();
    let mut model = Model::default();
    for _ in 0..3000 {
        model.step(&mut seeded.1);
    }
    // The last write makes a revision that all wait for.
    let index = model.entries.len() as u64;
    let last = WriteOp::Put { space: KeySpace::System, key: Bytes::from_static(b"end"), value: Bytes::new(), lease: 0 };
    model.entries.push(entry(index, vec![last]));
    let goal = model.revision + 1;

    let mut member = Member::new(limits());
    let (hubs, hub) = watch::channel(member.hub.clone());
    let mut readers = Vec::new();
    let mut begin = |rng: &mut StdRng, upto: Revision, count| {
        for _ in 0..count {
            let view = random_view(rng);
            let since = if rng.random::<bool>() { 0 } else { rng.random_range(0..upto + 1) };
            let task = reader(StdRng::seed_from_u64(rng.random()), view.clone(), since, hub.clone(), goal);
            readers.push((view, since, tokio::spawn(task)));
        }
    };
    begin(&mut seeded.1, 0, 20);
    let mut done = 0;
    while done < model.entries.len() {
        let count = seeded.1.random_range(1..60).min(model.entries.len() - done);
        match seeded.1.random_range(0..30) {
            0 => {
                member = member.restart();
                let sealed = member.store.sealed().map_or(0, |log_id| log_id.index as usize + 1);
                member.apply(&model.entries[sealed..done]);
                hubs.send_replace(member.hub.clone());
            }
            1 => {
                // Another member that is further; this one is given its content and not the entries.
                let other = Member::new(limits());
                other.apply(&model.entries[..done + count]);
                member.install(&other);
            }
            2 => {
                let revision = member.store.revision();
                begin(&mut seeded.1, revision, 2);
                continue;
            }
            3 => {
                member.seal();
                continue;
            }
            _ => member.apply(&model.entries[done..done + count]),
        }
        done += count;
        if done < model.entries.len() && member.store.applied().map(|log_id| log_id.index) != Some(done as u64 - 1) {
            let from = member.store.applied().map_or(0, |log_id| log_id.index as usize + 1);
            member.apply(&model.entries[from..done]);
        }
        if seeded.1.random_range(0..3) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let from = member.store.applied().map_or(0, |log_id| log_id.index as usize + 1);
    member.apply(&model.entries[from..]);
    assert_eq!(member.store.revision(), goal);
    for (view, since, task) in readers {
        let seen = tokio::time::timeout(PATIENCE, task).await.expect("every reader reaches the end").unwrap();
        assert_eq!(seen, model.seen_by(&view, since), "after {since} with {view:?}");
    }
    assert_eq!(member.hub.stats().watchers, 0, "who is gone is not counted");
    assert!(member.hub.stats().buffer_bytes <= limits().buffer_bytes as u64);
}

#[tokio::test]
async fn a_watch_without_a_start_begins_at_the_newest_revision_and_tells_it() {
    let member = Member::new(limits());
    let before = member.put("a", "1");
    let mut reader = member.watch(Scope::all(), None);
    let after = member.put("a", "2");
    assert_eq!(reader.next().await, Some(WatchEvent::Open { revision: before }));
    assert_eq!(reader.change().await.revision, after);
    let refused = member.hub.watch(view(Scope::all()), Some(after + 1), HOUR).err();
    assert!(matches!(refused, Some(WatchError::Read(ReadError::Future { current })) if current == after));
}

#[tokio::test]
async fn heartbeats_tell_how_far_everything_was_sent() {
    let member = Member::new(limits());
    let mut quiet =
        Reader::new(member.hub.watch(view(Scope::Key("quiet".into())), None, Duration::from_millis(5)).unwrap());
    assert_eq!(quiet.next().await, Some(WatchEvent::Open { revision: 0 }));
    let noise = member.put("noise", "1");
    // Nothing that it watches has changed, and yet it need not read this again.
    while quiet.next().await != Some(WatchEvent::Heartbeat { revision: noise }) {}
}

#[tokio::test]
async fn what_does_not_concern_a_watcher_is_not_read_for_it() {
    let member = Member::new(limits());
    let mut quiet = member.watch(Scope::Key("quiet".into()), None);
    let mut noisy = member.watch(Scope::Key("noise".into()), None);
    quiet.next().await;
    noisy.next().await;
    let mut at = 0;
    for _ in 0..500 {
        let last = member.put("noise", "a value that fills the ring and leaves nothing of it");
        while at < last {
            at = noisy.change().await.revision;
        }
    }
    assert!(matches!(member.hub.shared.ring.read().after(400, 1), Found::Gone), "the ring has moved on");
    let reads = member.hub.stats().history_reads;
    let sound = member.put("quiet", "1");
    assert_eq!(quiet.change().await.revision, sound);
    assert_eq!(member.hub.stats().history_reads, reads);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended_and_can_go_on_later() {
    let member = Member::new(WatchLimits { slow_timeout: Duration::from_millis(40), ..limits() });
    let mut slow = member.watch(Scope::all(), None);
    let mut other = member.watch(Scope::all(), None);
    slow.next().await;
    slow.pace.took();
    other.next().await;
    // The other one always waits for more; only the first is stalled.
    other.pace.waits();
    let first = member.put("a", "1");
    let deadline = std::time::Instant::now() + PATIENCE;
    while member.hub.stats().watchers == 2 {
        assert!(std::time::Instant::now() < deadline, "nobody was ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let end = slow.end().await;
    assert_eq!((end.reason, end.revision), (EndReason::Slow, first - 1));
    assert_eq!(slow.next().await, None, "nothing follows the end");
    assert_eq!(other.change().await.revision, first);
    let mut again = member.watch(Scope::all(), Some(end.revision));
    again.next().await;
    assert_eq!(again.change().await.revision, first);
    assert!(member.hub.stats().ended.contains(&("slow", 1)));
}

#[tokio::test]
async fn the_floor_ends_who_is_below_it_and_nobody_else() {
    let member = Member::new(limits());
    let mut behind = member.watch(Scope::all(), Some(0));
    assert_eq!(behind.next().await, Some(WatchEvent::Open { revision: 0 }));
    for _ in 0..500 {
        member.put("a", "some text, so that the ring holds only the newest of these changes");
    }
    let current = member.store.revision();
    let floor = current - 1;
    member.store.set_read_floor(floor);
    let end = behind.end().await;
    assert_eq!((end.reason, end.floor), (EndReason::Compacted, Some(floor)));
    let refused = member.hub.watch(view(Scope::all()), Some(floor - 1), HOUR).err();
    assert!(matches!(refused, Some(WatchError::Read(ReadError::Compacted { floor: told })) if told == floor));
    let mut at = member.watch(Scope::all(), Some(floor));
    at.next().await;
    assert_eq!(at.change().await.revision, current);
}

#[tokio::test]
async fn an_install_above_a_watchers_revision_ends_it_as_compacted() {
    let (member, other) = (Member::new(limits()), Member::new(limits()));
    member.put("a", "1");
    let mut reader = member.watch(Scope::all(), None);
    reader.next().await;
    for _ in 0..20 {
        other.put("a", "2");
    }
    other.store.set_read_floor(10);
    member.install(&other);
    let end = reader.end().await;
    assert_eq!((end.reason, end.floor, end.revision), (EndReason::Compacted, Some(10), 1));
    // Who comes now is served.
    let mut later = member.watch(Scope::all(), Some(15));
    later.next().await;
    assert_eq!(later.change().await.revision, 16);
}

#[tokio::test]
async fn more_watchers_than_may_are_refused_until_one_goes() {
    let member = Member::new(WatchLimits { max_watchers: 2, ..limits() });
    let first = member.watch(Scope::all(), None);
    let wait = member.hub.wait_for_key("a".into()).unwrap();
    let refused = member.hub.watch(view(Scope::all()), None, HOUR).err();
    assert!(matches!(refused, Some(WatchError::TooMany { max_watchers: 2 })));
    assert!(matches!(member.hub.wait_for_key("b".into()), Err(WatchError::TooMany { .. })));
    assert_eq!((member.hub.stats().watchers, member.hub.stats().refused), (2, 2));
    drop(first);
    member.watch(Scope::all(), None);
    drop(wait);
    assert_eq!(member.hub.stats().watchers, 0);
}

#[tokio::test]
async fn a_stop_ends_everybody_and_refuses_newcomers() {
    let member = Member::new(limits());
    let mut reader = member.watch(Scope::all(), None);
    let wait = member.hub.wait_for_key("a".into()).unwrap();
    member.hub.stop();
    assert_eq!(reader.end().await.reason, EndReason::Stopping);
    assert_eq!(wait.changed().await, Err(Ending::Stopping));
    assert!(matches!(member.hub.watch(view(Scope::all()), None, HOUR), Err(WatchError::Stopping)));
}

#[tokio::test]
async fn who_waits_for_a_key_hears_of_that_key_only() {
    let member = Member::new(limits());
    let wait = member.hub.wait_for_key("a".into()).unwrap();
    let witness = member.hub.wait_for_key("b".into()).unwrap();
    member.put("b", "1");
    tokio::time::timeout(PATIENCE, witness.changed()).await.unwrap().unwrap();
    // The feed has looked at the change of b, and did not take it for one of a.
    assert!(tokio::time::timeout(Duration::from_millis(20), wait.changed()).await.is_err());
    member.write(vec![WriteOp::Put { space: KeySpace::System, key: "a".into(), value: Bytes::new(), lease: 0 }]);
    assert!(tokio::time::timeout(Duration::from_millis(20), wait.changed()).await.is_err());
    member.put("a", "1");
    tokio::time::timeout(PATIENCE, wait.changed()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_writes_waits_for_no_reader() {
    let member = Member::new(limits());
    // None of these ever takes anything.
    let _stalled: Vec<_> = (0..100).map(|_| member.watch(Scope::all(), Some(0))).collect();
    for revision in 1..=2000 {
        assert_eq!(member.put("a", "1"), revision);
    }
    assert!(member.hub.stats().buffer_bytes <= limits().buffer_bytes as u64);
}

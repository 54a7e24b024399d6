//! Compaction: when the floors move, and how fast files follow.
//!
//! The leader moves the floors, with a record in the log. The read floor follows the clock of the log at a distance
//! (`history_keep`, and at least `history_keep_revisions` back), so that any revision younger than that can be read. The
//! delta floor follows the member that is furthest behind, so that every member can come back by a delta; a member that
//! stays away for longer than `delta_keep` does not hold it back any more and needs a full copy. While a member is invited
//! it stays where it is, for no longer than that either: whoever comes may begin with a seed ([`super::seed`]) that was made
//! since, and needs a delta behind it. The floors move when
//! they have something to free, so a cluster in which nothing is written writes nothing.
//!
//! Every member lets its files follow on a thread of its own, step by step, and sleeps in between so that reading,
//! writing and syncing takes no more than a share of the time (`compaction_percent`): readers, writers and seals come
//! first. While the member is short of room that share is [`SHORT_PERCENT`].
//!
//! A step takes room before it makes any. So it is bounded by what the disk has left besides what seals and the wal need
//! ([`limits`]), and a disk that is full ends the step and not the member: it is tried again later.
//!
//! Proven by `tests/mirrors/compaction.rs` (processes) and `store/tests/compaction.rs` (what a step does).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::room::Limits;
use super::{Inner, NodeError, priority};
use crate::files::room;
use crate::model::{Command, WriteCommand};
use crate::store::{CompactLimits, CompactReport, Floors, Store, StoreError};

/// Between two looks whether there is something to compact.
const IDLE: Duration = Duration::from_secs(1);
/// Between two attempts when there was no room for a step.
const NO_ROOM: Duration = Duration::from_secs(10);
/// How much of the time compaction takes while there is too little room.
pub const SHORT_PERCENT: u32 = 50;
/// One pause is not longer, however long the work before it took.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Between two moves of the floors.
const MOVE_EVERY: Duration = Duration::from_secs(2);

/// How far back the history is kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Revisions younger than this can be read.
    pub history: Duration,
    /// And so many of the newest ones.
    pub revisions: u64,
    /// A member that was away for less long comes back by a delta.
    pub delta: Duration,
}

/// The thread that compacts. It ends when this is dropped.
pub struct Compactor {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Compactor {
    /// Starts to compact for so many percent of the time, within what `limits` says before each step; a failure is handed to `failed`, what each look came to, also to nothing, to `done`.
    pub fn start(
        store: Store,
        percent: impl Fn() -> u32 + Send + 'static,
        limits: impl Fn() -> CompactLimits + Send + 'static,
        done: impl Fn(CompactReport) + Send + 'static,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<Compactor> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("compactor".into()).spawn(move || {
            priority::lower();
            if let Err(error) = compact(&store, &percent, &limits, &done, &stopped) {
                failed(format!("compaction failed: {error}"));
            }
        })?;
        Ok(Compactor { stop, thread: Some(thread) })
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that compacts has panicked");
            }
        }
    }
}

/// Compacts until it is told to stop.
fn compact(
    store: &Store,
    percent: &impl Fn() -> u32,
    limits: &impl Fn() -> CompactLimits,
    done: &impl Fn(CompactReport),
    stop: &AtomicBool,
) -> Result<(), StoreError> {
    let stopped = || stop.load(Ordering::Relaxed);
    let mut lacked_room = false;
    while !stopped() {
        let worked_since = std::cell::Cell::new(Instant::now());
        let pace = |_bytes: u64| {
            std::thread::park_timeout(pause_after(worked_since.get().elapsed(), percent()));
            worked_since.set(Instant::now());
            if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match store.compact(limits(), &pace) {
            Ok(report) => {
                done(report);
                if report.lacks_room && !lacked_room {
                    tracing::warn!("compaction waits: the disk has no room for its next step");
                }
                lacked_room = report.lacks_room;
                if report.segments == 0 {
                    std::thread::park_timeout(if lacked_room { NO_ROOM } else { IDLE });
                }
            }
            Err(error) if error.is_not_written() && !store.has_stopped() => {
                tracing::warn!(%error, "a step of compaction could not be written and is tried again later");
                std::thread::park_timeout(NO_ROOM);
            }
            // Whoever made the store stop has said why.
            Err(StoreError::Stopped(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a step may take now. `needed_bytes` of the disk are left to what must not wait: seals and the wal. When there is
/// hardly more than that, a step may still take half of what there is, because without any step there would never be more.
///
/// A merge frees nothing, and what it merges is there twice while it is under way. So a member that is short does not merge,
/// and one with a quota merges no more than half of what that leaves: it would become short by it, refuse writes, and have
/// room again when the merge is done.
pub fn limits(dir: &Path, room: Limits, needed_bytes: u64, short: bool) -> CompactLimits {
    let room_bytes = match room::free_bytes(dir) {
        Ok(free) => room_for_step(free, needed_bytes),
        Err(error) => {
            tracing::warn!(%error, "how much room the disk has for compaction cannot be told");
            u64::MAX
        }
    };
    let all = CompactLimits::default();
    let merge_segments = if short { usize::MAX } else { all.merge_segments };
    let quota_left = room.quota_left(dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "how much room the quota leaves for compaction cannot be told");
        u64::MAX
    });
    CompactLimits { room_bytes, merge_segments, step_bytes: all.step_bytes.min(quota_left / 2), ..all }
}

fn room_for_step(free_bytes: u64, needed_bytes: u64) -> u64 {
    free_bytes.saturating_sub(needed_bytes).max(free_bytes / 2)
}

/// How long to rest after some work that shall take so many percent of the time.
fn pause_after(work: Duration, percent: u32) -> Duration {
    (work * (100 - percent) / percent).min(MAX_PAUSE)
}

/// The leader's chore: moves the floors when that frees something.
pub(super) async fn move_floors(inner: &Inner) {
    {
        let mut moved = inner.floors_moved.lock();
        if moved.is_some_and(|at| at.elapsed() < MOVE_EVERY) {
            return;
        }
        *moved = Some(Instant::now());
    }
    // An older program would not know what the floors take away.
    if inner.store.feature_level() < super::features::REQUESTS {
        return;
    }
    let command = match inner.floors_command() {
        Ok(Some(command)) => command,
        Ok(None) => return,
        Err(error) => return tracing::warn!(%error, "the floors cannot be chosen"),
    };
    match inner.propose_own(command).await {
        Ok(_) => {}
        Err(NodeError::QueueFull) => tracing::debug!("the floors are moved later"),
        Err(error) => tracing::debug!(%error, "the floors are not moved yet"),
    }
}

/// Seals floors that lie in a tail which does not become full, because compaction follows what is sealed: at once when
/// this member is short of room, else after the time that the history is kept for, so that a store in which little is
/// written gives back what it had to keep.
pub(super) async fn seal_floors(inner: &Inner) {
    let due = {
        let mut since = inner.floors_unsealed.lock();
        if inner.store.floors() == inner.store.sealed_floors() {
            *since = None;
            return;
        }
        let waited = since.get_or_insert_with(Instant::now).elapsed();
        inner.http.identity().is_short() || waited >= inner.keep.history.max(MOVE_EVERY)
    };
    let (true, Some(durable)) = (due, inner.wal.durable_index()) else { return };
    let store = inner.store.clone();
    match tokio::task::spawn_blocking(move || store.seal_all(durable)).await {
        Ok(Ok(())) => inner.room.send_modify(|n| *n += 1),
        Ok(Err(error)) => inner.fail(format!("sealing failed: {error}")),
        Err(_) => {}
    }
}

impl Inner {
    /// The command that moves the floors; none when that would free nothing.
    fn floors_command(&self) -> Result<Option<Command>, StoreError> {
        let (now_ms, revision) = (self.clock.now_ms(), self.store.revision());
        let back = |span: Duration| now_ms.saturating_sub(span.as_millis() as u64);
        let place = self.store.at_time(back(self.keep.history))?;
        // Short of room, only deletes make revisions, and soon nothing does: what they free must not wait for more.
        let short = self.short_of_room().is_some();
        let revisions = if short { 0 } else { self.keep.revisions };
        let read = place.map_or(0, |place| place.revision).min(revision.saturating_sub(revisions));
        let away = self.store.at_time(back(self.keep.delta))?.map_or(0, |place| place.position);
        let delta =
            if self.is_anybody_invited()? && !short { away } else { self.slowest_position().unwrap_or(0).max(away) };
        let now = self.store.floors();
        // The record itself is a revision: without this, floors that follow would move for ever.
        let gained = read.saturating_sub(now.read).max(delta.saturating_sub(now.delta));
        let wanted = if short { 1 } else { MIN_GAIN.min(self.keep.revisions.max(2)) };
        if gained < wanted {
            return Ok(None);
        }
        let Some(op) = self.store.floors_op(Floors { read, delta })? else { return Ok(None) };
        Ok(Some(Command::Write(WriteCommand { ops: vec![op], ..WriteCommand::default() })))
    }

    /// The last position that every member has sealed, so that it can go on from there even after a crash; none while
    /// that is not known of one of them. (What its log holds is more, but a crash may leave open how far that is
    /// committed.)
    fn slowest_position(&self) -> Option<u64> {
        let identity = self.http.identity();
        let sealed = self.members_by_id().into_keys().map(|id| identity.sealed_of(id));
        sealed.min()??.checked_sub(1)
    }
}

/// A floor moves by at least so many revisions or positions.
const MIN_GAIN: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sim::SimDisk;
    use crate::index::IndexKind;
    use crate::model::{Entry, EntryKind, KeySpace, LogId, WriteOp};
    use crate::store::StoreConfig;

    #[test]
    fn a_step_leaves_room_for_what_must_not_wait() {
        assert_eq!(room_for_step(1000, 96), 904);
        assert_eq!(room_for_step(100, 96), 50, "half of what there is: without a step there would never be more");
        assert_eq!(room_for_step(50, 96), 25);
        assert_eq!(room_for_step(0, 96), 0);
    }

    #[test]
    fn a_quota_bounds_what_is_merged_and_not_what_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data"), vec![0; 1 << 20]).unwrap();
        let limits = |quota_bytes| limits(dir.path(), Limits { reserve_bytes: 1 << 16, quota_bytes }, 0, false);
        for (quota_mib, step_bytes) in [(0, CompactLimits::default().step_bytes), (5, 2 << 20), (1, 0)] {
            let found = limits(quota_mib << 20);
            assert_eq!(found.step_bytes, step_bytes, "a quota of {quota_mib} MiB");
            // Of the file system this test runs on.
            assert!(found.room_bytes > 1 << 20, "{found:?}");
        }
    }

    fn apply(store: &Store, op: WriteOp) {
        let index = store.applied().map_or(0, |log_id| log_id.index + 1);
        let payload = Command::Write(WriteCommand { ops: vec![op], ..WriteCommand::default() }).encode();
        let log_id = LogId { term: 1, leader: 1, index };
        store.apply(&[Entry { log_id, kind: EntryKind::Command, payload }]).unwrap();
    }

    /// A store half of which can go.
    fn with_garbage(disk: &SimDisk) -> Store {
        let kind = IndexKind::Memory(Arc::default());
        let store = Store::open(Arc::new(disk.clone()), Path::new("/h"), kind, StoreConfig::default()).unwrap();
        for n in 0..200 {
            let (space, key) = (KeySpace::User, format!("k{}", n % 100).into());
            apply(&store, WriteOp::Put { space, key, value: vec![n as u8; 1000].into(), lease: 0 });
        }
        let op = store.floors_op(Floors { read: u64::MAX, delta: u64::MAX }).unwrap().unwrap();
        apply(&store, op);
        store.close(200).unwrap();
        store
    }

    fn start(store: &Store) -> (Compactor, std::sync::mpsc::Receiver<Result<CompactReport, String>>) {
        let (tell, told) = std::sync::mpsc::channel();
        let failed = tell.clone();
        let done = move |report| drop(tell.send(Ok(report)));
        let failed = move |why| drop(failed.send(Err(why)));
        let compactor = Compactor::start(store.clone(), || 100, CompactLimits::default, done, failed).unwrap();
        (compactor, told)
    }

    #[test]
    fn a_full_disk_is_waited_for_and_a_failed_sync_is_not() {
        let disk = SimDisk::new();
        let store = with_garbage(&disk);
        let before = disk.operations();
        disk.limit_writes(Some(0));
        let (compactor, told) = start(&store);
        // The file was made, could not be written, and is removed.
        while disk.operations() < before + 3 {
            std::thread::yield_now();
        }
        disk.limit_writes(None);
        let mut told = std::iter::from_fn(|| {
            compactor.thread.as_ref().unwrap().thread().unpark();
            Some(told.recv_timeout(Duration::from_secs(60)).expect("the thread goes on"))
        });
        let report = told.next().unwrap().expect("a full disk ends no member");
        assert!(report.segments > 0, "{report:?}");
        drop(compactor);

        let disk = SimDisk::new();
        let store = with_garbage(&disk);
        disk.fail_sync(1);
        let (_compactor, told) = start(&store);
        let why = told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_err();
        assert!(why.contains("syncing") && store.has_stopped(), "{why}");
    }

    #[test]
    fn work_takes_its_share_of_the_time() {
        for percent in [1, 5, 10, 33, SHORT_PERCENT, 99] {
            for work_us in [1_000u64, 7_777, 40_000] {
                let work = Duration::from_micros(work_us);
                let all = work + pause_after(work, percent);
                let share = 100.0 * work.as_secs_f64() / all.as_secs_f64();
                assert!((share - f64::from(percent)).abs() < 0.1, "{share} instead of {percent} percent of {all:?}");
            }
        }
        assert_eq!(pause_after(Duration::from_millis(10), 100), Duration::ZERO, "nothing is left to others");
        assert_eq!(pause_after(Duration::from_secs(10), 1), MAX_PAUSE, "a stop is not waited for longer");
    }
}

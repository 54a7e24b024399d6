//! What goes on beside the requests: sealing, purging, watching Raft, measuring the lag, and the leader's chores.
//!
//! Sealing and flushing the index wait for disks, so they have a thread of their own; apply waits for them only when both
//! tails are full. Everything else is a task on Raft's runtime.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{oneshot, watch};

use super::events::NewEvent;
use super::reads::ReadIndexAnswer;
use super::view::View;
use super::{Inner, NodeError, Waiting, peer_path, priority};
use crate::model::{Command, MemberRole};
use crate::store::{Store, StoreError};
use crate::wal::Wal;

/// The sealing thread looks at least so often whether what it waits for has become durable.
const SEAL_POLL: Duration = Duration::from_millis(10);
/// How often the leader looks for voters that have caught up, and the log for entries to purge.
const CHORES: Duration = Duration::from_millis(200);
/// Entries are kept for a member that lags and is connected until the log is so many times its budget.
const GIVE_UP_BUDGETS: u64 = 2;
/// A learner that lacks no more entries than this is made a voter.
pub(super) const PROMOTE_BEHIND_ENTRIES: u64 = 100;

/// The sealing thread. It ends when this is dropped.
pub struct Sealer {
    signal: Arc<SealSignal>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sealer {
    /// Starts to seal. `room` changes whenever something was sealed or flushed; a failure is handed to `failed`.
    pub fn start(
        store: Store,
        wal: Wal,
        room: watch::Sender<u64>,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<Sealer> {
        let signal = Arc::new(SealSignal::default());
        let (waker, seen) = (signal.clone(), signal.clone());
        store.set_waker(Box::new(move || waker.wake()));
        let thread = std::thread::Builder::new().name("sealer".into()).spawn(move || {
            priority::lower();
            // A panic is a failure like any other: without this thread apply would wait for room for ever.
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| seal_loop(&store, &wal, &seen, &room)));
            if let Err(why) = ended.unwrap_or_else(|_| Err("the sealing thread has panicked".into())) {
                failed(why);
            }
        })?;
        Ok(Sealer { signal, thread: Some(thread) })
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.signal.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the sealing thread has panicked");
        }
    }
}

/// Wakes the sealing thread and tells it to end.
#[derive(Default)]
struct SealSignal {
    state: parking_lot::Mutex<(bool, bool)>,
    changed: parking_lot::Condvar,
}

impl SealSignal {
    /// There may be something to seal.
    fn wake(&self) {
        self.state.lock().0 = true;
        self.changed.notify_one();
    }

    /// The thread shall end.
    fn stop(&self) {
        self.state.lock().1 = true;
        self.changed.notify_one();
    }

    /// Waits for a call or the timeout; false when the thread shall end.
    fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.0 && !state.1 {
            self.changed.wait_for(&mut state, timeout);
        }
        state.0 = false;
        !state.1
    }
}

/// Seals full tails once their entries are durable, and moves sealed changes to the index. Ends with an error when the
/// storage fails; also when the wal has, which nobody else notices while nothing is written.
fn seal_loop(store: &Store, wal: &Wal, signal: &SealSignal, room: &watch::Sender<u64>) -> Result<(), String> {
    let failed = |e: StoreError| format!("sealing failed: {e}");
    loop {
        if let Some(why) = wal.failure() {
            return Err(format!("the wal has stopped: {why}"));
        }
        let mut sealed = false;
        if let Some(durable) = wal.durable_index() {
            sealed = store.seal(durable).map_err(failed)?;
        }
        if sealed || store.needs_work() {
            store.flush_index().map_err(failed)?;
            room.send_modify(|n| *n += 1);
        }
        let pause = if store.needs_work() { SEAL_POLL } else { Duration::from_secs(1) };
        if !signal.wait(pause) {
            return Ok(());
        }
    }
}

/// Keeps the view of the cluster current until Raft stops.
pub async fn watch_cluster(inner: Arc<Inner>) {
    // Who led last, as far as this member can know: the log tells it after a restart.
    let mut led = inner.store.applied().map(|last| last.leader).filter(|id| *id != 0);
    let mut metrics = inner.raft.server_metrics();
    loop {
        let view = {
            let metrics = metrics.borrow_watched();
            inner.addresses.set(metrics.membership_config.nodes());
            let mut view = View::from_metrics(&metrics, inner.id, inner.info.role);
            if let Some(leader) = &mut view.leader
                && let Some(url) = inner.addresses.get(leader.id)
            {
                leader.peer_url = url;
            }
            view
        };
        note_lead(&inner, view.leads);
        let before = inner.set_view(view);
        let now = inner.view();
        inner.leaderless.note(now.leader.is_some());
        let name = |view: &View| view.leader.as_ref().map(|leader| leader.name.clone());
        if name(&before) != name(&now) {
            tracing::info!(leader = name(&now), term = now.term, "leader changed");
            let detail = match name(&now) {
                Some(leader) => format!("{leader} leads in term {}", now.term),
                None => format!("no leader is known in term {}", now.term),
            };
            inner.events.record_event(NewEvent {
                from: name(&before),
                to: name(&now),
                ..NewEvent::new("leader-changed", detail)
            });
        }
        if let Some(leader) = &now.leader {
            let before = led.replace(leader.id);
            if now.leads && before.is_some_and(|before| before != inner.id) {
                let before = before.and_then(|id| now.members.iter().find(|member| member.id == id));
                let detail = format!("{} leads in term {}", leader.name, now.term);
                let event = NewEvent::new("leader-elected", detail).about(&leader.name);
                inner.record_cluster_event(event.change(before.map(|member| member.name.clone()), &leader.name));
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn note_lead(inner: &Inner, leads: bool) {
    let mut since = inner.leads_since.lock();
    match (leads, *since) {
        (true, None) => *since = Some(Instant::now()),
        (false, Some(_)) => *since = None,
        _ => {}
    }
}

/// Reports when Raft stops by itself: its storage failed, or it panicked, which only shows in that it says nothing more.
pub async fn watch_failure(inner: Arc<Inner>) {
    let mut metrics = inner.raft.metrics();
    let why = loop {
        if let Err(fatal) = metrics.borrow_watched().running_state.clone() {
            break fatal.to_string();
        }
        if metrics.changed().await.is_err() {
            break "it ended without a word".to_string();
        }
    };
    if !inner.is_stopping() {
        inner.fail(format!("raft stopped: {why}"));
    }
}

/// Asks for a ReadIndex now and then, so that the lag is known without readers. A member that gets no answer to it asks
/// the others in turn: not for what they know, but so that it notices when they refuse it. (A mirror sends nothing by
/// itself, and would never learn that its peers belong to another cluster; and a member that was removed is sent nothing
/// any more, see [`super::removal`].)
pub async fn probe_lag(inner: Arc<Inner>) {
    let mut turn = 0;
    let pause = inner.probe_interval();
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if inner.lag.get().is_some_and(|lag| lag < pause) {
            continue;
        }
        let answer = match inner.read_index(false).await {
            Err(NodeError::Removed { detail }) => Err(NodeError::Removed { detail }),
            Err(_) => {
                turn += 1;
                ask_another(&inner, turn).await
            }
            Ok(index) => Ok(index),
        };
        if let Err(NodeError::Removed { detail }) = answer {
            tracing::warn!(detail, "the leader says that this member does not belong any more");
            return inner.end_as_removed();
        }
    }
}

/// Asks one of the others whether it speaks to this member.
async fn ask_another(inner: &Inner, turn: usize) -> Result<u64, NodeError> {
    let others: Vec<_> = inner.members_by_id().into_iter().filter(|(id, _)| *id != inner.id).collect();
    let Some((id, info)) = others.get(turn % others.len().max(1)) else { return Err(inner.no_leader()) };
    let url = inner.addresses.get(*id).unwrap_or_else(|| info.peer_url.as_str().into());
    let (question, limit) = (serde_json::json!({}), inner.election_max);
    let asked = inner.http.post_json::<ReadIndexAnswer>(*id, &url, peer_path::READ_INDEX, &question, limit).await;
    tracing::trace!(peer = info.name, heard = asked.is_ok(), "asked a member whether it speaks to this one");
    match asked {
        Ok(answer) => answer.result,
        Err(e) => Err(NodeError::LeaderUnreachable { url: url.to_string(), detail: e.to_string() }),
    }
}

/// What a leader does when nobody asks: found the cluster, promote voters that have caught up. And what every member
/// does: purge what the wal need not keep.
pub async fn chores(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(CHORES);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        inner.http.identity().set_sealed(inner.store.sealed().map_or(0, |sealed| sealed.index + 1));
        if inner.view().leads {
            found(&inner).await;
            promote(&inner).await;
            super::features::raise(&inner).await;
            super::features::sweep(&inner).await;
            super::compaction::move_floors(&inner).await;
        }
        inner.keep_peers_file().await;
        super::compaction::seal_floors(&inner).await;
        purge(&inner).await;
    }
}

/// The founder's first command names the cluster and its timeline.
async fn found(inner: &Inner) {
    if inner.store.cluster().is_some() || !inner.founder {
        return;
    }
    let identity = inner.http.identity();
    let command = Command::Found { time_ms: 0, cluster: identity.cluster, timeline: identity.timeline() };
    let (answer, rx) = oneshot::channel();
    if inner.proposals.try_send(Waiting::new(command.encode(), false, answer)).is_ok() {
        match rx.await {
            Ok(Ok(_)) => tracing::info!(cluster = %identity.cluster, "cluster founded"),
            // It is proposed again at the next turn, unless it took effect after all.
            other => tracing::debug!(?other, "the cluster is not founded yet"),
        }
    }
}

/// Makes a voter of a member that is meant to be one, has caught up and answers. A change that a leader began and did
/// not finish is finished first: until then both sets of voters are needed for everything.
async fn promote(inner: &Inner) {
    let metrics = inner.raft.metrics().borrow_watched().clone();
    let membership = &metrics.membership_config;
    if membership.membership().get_joint_config().len() > 1 {
        let _one_at_a_time = inner.membership_change.lock().await;
        return match inner.finish_what_was_left(Instant::now() + inner.limits.request_timeout).await {
            Ok(()) => {}
            Err(error) => tracing::info!(%error, "an unfinished change of the voters cannot be finished yet"),
        };
    }
    if inner.may_be_switching() {
        // It makes the voters, and nobody else does meanwhile.
        return;
    }
    let Some(replication) = metrics.replication else { return };
    let last = metrics.last_log_index.unwrap_or(0);
    let voters: Vec<u64> = membership.voter_ids().collect();
    let ready = membership.nodes().find(|(id, info)| {
        let matched = replication.get(id).cloned().flatten().map(|at| at.index);
        info.role == MemberRole::Voter
            && !voters.contains(id)
            && matched.is_some_and(|matched| matched + PROMOTE_BEHIND_ENTRIES >= last)
            && inner.unfit(**id).is_none()
    });
    let Some((id, info)) = ready else { return };
    match add_voter(inner, *id).await {
        Ok(true) => {
            tracing::info!(name = info.name, "member has caught up and votes now");
            inner.record_vote(info);
        }
        Ok(false) => {}
        Err(error) => tracing::info!(name = info.name, %error, "member cannot be made a voter yet"),
    }
}

/// Makes a learner a voter, if it still shall be one and still answers.
async fn add_voter(inner: &Inner, id: u64) -> Result<bool, NodeError> {
    let _one_at_a_time = inner.membership_change.lock().await;
    // A change that the lock was waited for may have removed it or made it a mirror; and to promote a member that has
    // just vanished could cost the quorum.
    let wanted = inner.members_by_id().get(&id).is_some_and(|info| info.role == MemberRole::Voter);
    if !wanted || inner.unfit(id).is_some() {
        return Ok(false);
    }
    inner.change(ChangeMembers::AddVoterIds([id].into()), true).await.map(|()| true)
}

/// Keeps the wal within its budget: seals what is applied, tells openraft that a snapshot covers it, and purges all but
/// the newest half of the budget.
async fn purge(inner: &Inner) {
    let stats = inner.wal.stats();
    if stats.bytes <= inner.wal_keep_bytes {
        return;
    }
    let Some(upto) = inner.wal.purgeable_index(inner.wal_keep_bytes / 2) else { return };
    let Some(durable) = inner.wal.durable_index() else { return };
    if inner.store.sealed().is_none_or(|sealed| sealed.index < upto) {
        let store = inner.store.clone();
        match tokio::task::spawn_blocking(move || store.seal_all(durable)).await {
            Ok(Ok(())) => inner.room.send_modify(|n| *n += 1),
            Ok(Err(e)) => return inner.fail(format!("sealing failed: {e}")),
            Err(e) => return inner.fail(format!("sealing failed: {e}")),
        }
    }
    let Some(sealed) = inner.store.sealed() else { return };
    let upto = upto.min(sealed.index);
    // openraft purges only what a snapshot covers; ours is a cursor, so making one costs nothing.
    let covered = inner.raft.metrics().borrow_watched().snapshot.map_or(0, |at| at.index);
    if covered < upto
        && let Err(e) = inner.raft.trigger().snapshot().await
    {
        tracing::warn!(error = %e, "raft did not take note of a snapshot");
    }
    // What the new one covers is purged at the next turn. By then more has been written: to wait for one that covers all
    // would be to purge nothing for as long as the log grows by its budget in a turn.
    let upto = upto.min(covered);
    if upto < stats.first_index {
        return;
    }
    if stats.bytes > GIVE_UP_BUDGETS * inner.wal_keep_bytes {
        inner.kept_from.raise(upto + 1);
    }
    if let Err(e) = inner.raft.trigger().purge_log(upto).await {
        tracing::warn!(error = %e, "raft did not purge its log");
    }
}

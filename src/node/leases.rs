//! The time of leases, which the leader counts in its memory.
//!
//! That a lease exists, and which keys hang on it, is in the history. When it ends is not: the leader keeps a deadline
//! for each, moves it when a client says that it lives, and proposes the end of those whose time has passed. A new leader
//! gives every lease its full span again. So a lease may live longer than its span, and never shorter than what a client
//! was told last. What keeps it so:
//!
//! - A keep-alive moves the deadline first and is answered only after a quorum has confirmed that this member still leads
//!   in the same term. Whoever leads next began to count after that.
//! - A lease whose end is proposed is not kept alive any more until it is known that the proposal came to nothing. While
//!   that is not known a keep-alive waits: it is told neither that the lease lives nor that it is gone.
//! - The end that one term's leader counted is void in every other term: it names its term, apply looks at it, and it is
//!   never forwarded.
//!
//! Proven by `tests/api/leases.rs` (kill -9, transfers, leaders that stand still) and the tests of the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::{Inner, Node, NodeError, RequestContext, peer_path};
use crate::model::{Command, OpResult, Outcome, Request, RequestCommand};
use crate::raft::peer_http::PeerError;
use crate::store::{LeaseRecord, ReadError, StoreError};

/// Between two looks at the deadlines.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks at which leases there are.
const REFRESH: Duration = Duration::from_secs(1);
/// Leases read in one step.
const PAGE: usize = 1024;
/// Keys of a lease deleted by one entry.
const REVOKE_KEYS: u64 = 10_000;
/// Leases whose end is proposed at the same time.
const MAX_ENDING: usize = 64;
/// Before a question that could not be answered yet is looked at again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Asks the leader about a lease.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseQuestion {
    /// Which.
    pub id: u64,
    /// Whether it is to live its full span again.
    pub keep_alive: bool,
}

/// The leader's answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// The lease, or why not.
    pub result: Result<LeaseTime, NodeError>,
}

/// A lease and how long it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTime {
    /// Its span, in milliseconds.
    pub ttl_ms: u64,
    /// What is left of it.
    pub remaining_ms: u64,
}

/// The leader's clocks.
#[derive(Default)]
pub struct Leases {
    table: Mutex<Option<Table>>,
}

/// The clocks of one term in which this member leads.
struct Table {
    term: u64,
    clocks: BTreeMap<u64, LeaseClock>,
    /// [`crate::store::RecordStats::lease_changes`] when the leases were read last, and when that was.
    changes: u64,
    read_at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct LeaseClock {
    ttl: Duration,
    deadline: Instant,
    /// The revision at which it was granted: a lease that is granted anew under an old id is another lease.
    granted: u64,
    /// Its end is proposed.
    ending: bool,
}

/// A lease whose time has passed.
struct DueLease {
    id: u64,
    granted: u64,
}

impl LeaseClock {
    fn full(lease: &LeaseRecord) -> LeaseClock {
        let ttl = Duration::from_millis(lease.ttl_ms);
        LeaseClock { ttl, deadline: Instant::now() + ttl, granted: lease.granted, ending: false }
    }

    fn time(&self) -> LeaseTime {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        LeaseTime { ttl_ms: self.ttl.as_millis() as u64, remaining_ms: remaining.as_millis() as u64 }
    }
}

impl Node {
    /// Ends a lease and deletes its keys. Returns the revision afterwards and how many keys were deleted.
    pub async fn revoke_lease(&self, ctx: &RequestContext, id: u64) -> Result<(u64, u64), NodeError> {
        let (mut deleted, mut begun) = (0, None);
        loop {
            let request = Request::Revoke { id, granted: 0, term: 0, max_keys: REVOKE_KEYS };
            let command = RequestCommand { time_ms: 0, idempotency: None, request };
            let revoked = self.write(ctx, command).await.and_then(|outcome| revoked(id, outcome));
            match (revoked, begun) {
                (Ok(revoked), _) => {
                    deleted += revoked.keys;
                    if revoked.gone {
                        return Ok((revoked.revision, deleted));
                    }
                    begun = Some(revoked.revision);
                }
                // Its time ran out, or somebody else ended it, between two parts.
                (Err(NodeError::UnknownLease { .. }), Some(revision)) => return Ok((revision, deleted)),
                (Err(error), None) => return Err(error),
                // Whatever became of this part, others before it took effect.
                (Err(error), Some(_)) => {
                    return Err(NodeError::Unknown { detail: format!("{deleted} keys are deleted so far: {error}") });
                }
            }
        }
    }

    /// How long a lease lives, as the leader counts; from now on its full span if `keep_alive`.
    pub async fn lease_time(&self, ctx: &RequestContext, id: u64, keep_alive: bool) -> Result<LeaseTime, NodeError> {
        let (inner, ctx) = (self.0.clone(), ctx.clone());
        let task = self.0.background.handle.spawn(async move { inner.lease_clock(&ctx, id, keep_alive, false).await });
        task.await.map_err(|_| NodeError::Stopping)?
    }
}

/// What a revocation did.
struct Revoked {
    revision: u64,
    /// So many keys were deleted.
    keys: u64,
    /// The lease is gone, and not only some of its keys.
    gone: bool,
}

fn revoked(id: u64, outcome: Outcome) -> Result<Revoked, NodeError> {
    match outcome {
        Outcome::Written { revision, results } => match results.as_slice() {
            [OpResult::Deleted { count, previous }] => Ok(Revoked { revision, keys: *count, gone: previous.is_some() }),
            other => Err(NodeError::Unknown { detail: format!("a revocation has the results {other:?}") }),
        },
        Outcome::NoLease { .. } => Err(NodeError::UnknownLease { id }),
        other => Err(NodeError::Unknown { detail: format!("a revocation has the outcome {other:?}") }),
    }
}

impl Inner {
    /// Asks the leader, or answers when this member leads.
    pub(super) async fn lease_clock(
        &self,
        ctx: &RequestContext,
        id: u64,
        keep_alive: bool,
        forwarded: bool,
    ) -> Result<LeaseTime, NodeError> {
        let view = self.view();
        match &view.leader {
            None => Err(self.no_leader()),
            Some(leader) if leader.id == self.id => self.own_lease_clock(ctx, id, keep_alive).await,
            Some(_) if forwarded => Err(self.no_leader()),
            Some(leader) => {
                let question = LeaseQuestion { id, keep_alive };
                let url = leader.peer_url.clone();
                let asked =
                    self.http.post_json::<LeaseAnswer>(leader.id, &url, peer_path::LEASE, &question, ctx.remaining());
                // Asking again does no harm, so nothing here is unknown.
                asked
                    .await
                    .map_err(|e: PeerError| NodeError::LeaderUnreachable {
                        url: url.to_string(),
                        detail: e.to_string(),
                    })?
                    .result
            }
        }
    }

    async fn own_lease_clock(&self, ctx: &RequestContext, id: u64, keep_alive: bool) -> Result<LeaseTime, NodeError> {
        let answered = async {
            loop {
                if let Some(time) = self.confirmed_lease_clock(id, keep_alive).await? {
                    return Ok(time);
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        let late = |_| NodeError::NoQuorum { detail: "no answer before the deadline".into() };
        tokio::time::timeout_at(ctx.deadline.into(), answered).await.map_err(late)?
    }

    /// One attempt to answer. None when that can be told a little later: the end of the lease is proposed, or this leader
    /// has only begun.
    async fn confirmed_lease_clock(&self, id: u64, keep_alive: bool) -> Result<Option<LeaseTime>, NodeError> {
        let (term, asked_at) = (self.view().term, Instant::now());
        if keep_alive
            && let Some(table) = self.leases.table.lock().as_mut().filter(|table| table.term == term)
            && let Some(clock) = table.clocks.get_mut(&id).filter(|clock| !clock.ending)
        {
            clock.deadline = asked_at + clock.ttl;
        }
        // Only after this is it sure that the deadline above is the one that counts, and that the lease exists.
        let index = self.read_index(false).await?;
        if !self.wait_applied(index).await {
            return Err(NodeError::Stopping);
        }
        // Deposed since, perhaps before the deadline was moved, as then the new leader has confirmed: it counts for itself.
        let view = self.view();
        if !view.leads || view.term != term {
            return Err(self.no_leader());
        }
        let record = self.store.lease(id).map_err(storage_failed)?;
        let Some(lease) = record else { return Err(NodeError::UnknownLease { id }) };
        let mut table = self.leases.table.lock();
        let Some(table) = table.as_mut().filter(|table| table.term == term) else { return Ok(None) };
        let clock = table.clocks.entry(id).or_insert_with(|| LeaseClock::full(&lease));
        if clock.granted != lease.granted {
            *clock = LeaseClock::full(&lease);
        }
        let too_late = keep_alive && (clock.deadline < asked_at + clock.ttl || asked_at.elapsed() >= clock.ttl);
        Ok(if clock.ending || too_late { None } else { Some(clock.time()) })
    }

    /// Brings the clocks up to date with the history; gives the leases whose time has passed, and the term that says so.
    async fn due_leases(&self) -> Result<(u64, Vec<DueLease>), ReadError> {
        let view = self.view();
        if !view.leads || !self.is_founded() {
            *self.leases.table.lock() = None;
            return Ok((view.term, Vec::new()));
        }
        let changes = self.store.records().lease_changes;
        let known = match &*self.leases.table.lock() {
            Some(table) if table.term == view.term => Some((table.changes, table.read_at)),
            _ => None,
        };
        let current = known.is_some_and(|(seen, at)| seen == changes || at.elapsed() < REFRESH);
        let found = if current { None } else { Some(self.all_leases().await?) };
        let mut slot = self.leases.table.lock();
        if known.is_none() {
            *slot = Some(Table { term: view.term, clocks: BTreeMap::new(), changes, read_at: Instant::now() });
        }
        let Some(table) = &mut *slot else { return Ok((view.term, Vec::new())) };
        if let Some(found) = found {
            table.clocks.retain(|id, clock| found.get(id).is_some_and(|lease| lease.granted == clock.granted));
            for (id, lease) in found {
                table.clocks.entry(id).or_insert_with(|| LeaseClock::full(&lease));
            }
            (table.changes, table.read_at) = (changes, Instant::now());
        }
        let now = Instant::now();
        let ending = table.clocks.values().filter(|clock| clock.ending).count();
        let due = table.clocks.iter_mut().filter(|(_, clock)| !clock.ending && clock.deadline <= now);
        let due = due.take(MAX_ENDING.saturating_sub(ending)).map(|(id, clock)| {
            clock.ending = true;
            DueLease { id: *id, granted: clock.granted }
        });
        Ok((view.term, due.collect()))
    }

    /// All leases there are. Read off Raft's thread, because they may be many.
    async fn all_leases(&self) -> Result<BTreeMap<u64, LeaseRecord>, ReadError> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (mut all, mut after) = (BTreeMap::new(), 0);
            loop {
                let (page, more) = store.leases(after, PAGE)?;
                after = page.last().map_or(after, |lease| lease.id);
                all.extend(page.into_iter().map(|lease| (lease.id, lease)));
                if !more {
                    return Ok(all);
                }
            }
        });
        read.await.unwrap_or_else(|ended| Err(StoreError::Stopped(ended.to_string()).into()))
    }

    /// Proposes the end of a lease until it is gone, or until it is sure that no proposal of this term can end it.
    async fn end_lease(&self, term: u64, due: DueLease) {
        let DueLease { id, granted } = due;
        let mut unknown = false;
        let ended = loop {
            let request = Request::Revoke { id, granted, term, max_keys: REVOKE_KEYS };
            let command = Command::Request(RequestCommand { time_ms: 0, idempotency: None, request });
            match self.propose_own(command).await.and_then(|outcome| revoked(id, outcome)) {
                Ok(Revoked { gone: false, .. }) => {}
                Ok(Revoked { revision, keys, .. }) => {
                    tracing::debug!(id, revision, keys, "a lease has ended");
                    self.metrics.leases_expired.inc();
                    break true;
                }
                // Gone already, or the term is over and its clocks with it.
                Err(NodeError::UnknownLease { .. }) => break true,
                Err(error) => {
                    tracing::debug!(id, %error, "a lease is not ended yet");
                    unknown |= matches!(error, NodeError::Unknown { .. });
                    let view = self.view();
                    if !unknown || !view.leads || view.term != term || self.is_stopping() {
                        break false;
                    }
                    // An earlier proposal may still take effect: until this is known the lease is not kept alive.
                    tokio::time::sleep(TICK).await;
                }
            }
        };
        // Clocks of another term are not this one's to touch.
        if let Some(table) = self.leases.table.lock().as_mut().filter(|table| table.term == term) {
            match table.clocks.get_mut(&id) {
                Some(clock) if clock.granted != granted => {}
                Some(_) if ended => drop(table.clocks.remove(&id)),
                Some(clock) => clock.ending = unknown,
                None => {}
            }
        }
    }
}

fn storage_failed(error: ReadError) -> NodeError {
    NodeError::StorageFailed { detail: error.to_string() }
}

/// Counts the time of leases while this member leads.
pub async fn run(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        match inner.due_leases().await {
            Ok((term, due)) => {
                for lease in due {
                    let inner = inner.clone();
                    tokio::spawn(async move { inner.end_lease(term, lease).await });
                }
            }
            Err(ReadError::Store(StoreError::Stopped(_))) => return,
            Err(error) => return inner.fail(format!("leases cannot be read: {error}")),
        }
    }
}

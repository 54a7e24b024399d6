//! One running member: opened, serving, stopped.
//!
//! [`Node`] is what the edge holds. A write goes through [`proposals`] into the log (or to the leader), a linearizable
//! read waits for a round of [`reads`], a stale one goes to the [`Store`] at once. Raft, the peers' requests and the
//! hand-over to the wal run on one thread of their own with a single-threaded runtime ("raft"); the edge runs elsewhere
//! and speaks to it through queues. That is deliberate: batching then comes by itself, and a put costs half the CPU of
//! the same on a pool of threads.
//!
//! What survives a crash: nothing of this module but `member.json` ([`identity`]); all else is in the wal and the
//! history. Invariants: an error says "not applied" only when the command provably never reached a log; a member whose
//! storage failed stops serving and the process ends.

mod background;
mod clock;
mod context;
mod error;
mod health;
mod identity;
mod join;
mod open;
mod peer;
mod proposals;
mod reads;
mod report;
mod start_error;
mod transfer;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};

use crate::api;
use crate::metrics::Metrics;
use crate::model::{ClusterId, Command, LogId, MemberId, Outcome, TimelineId, WriteCommand};
use crate::raft::network::{AddressBook, KeptFrom};
use crate::raft::peer_http::PeerHttp;
use crate::raft::service::PeerService;
use crate::raft::types::{MemberInfo, Raft};
use crate::store::Store;
use crate::wal::Wal;

pub use context::{Principal, RequestContext};
pub use error::NodeError;
pub use health::HealthCheck;
pub use open::Addresses;
pub use peer::{PeerReply, PeerRequest, peer_path};
pub use start_error::StartError;

use clock::Clock;
use proposals::Waiting;
use reads::{Lag, WaitingRead};
use view::View;

/// The bounds of what a client may ask.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest value in bytes.
    pub max_value_bytes: usize,
    /// Largest key in bytes.
    pub max_key_bytes: usize,
    /// After this a request is answered, whatever became of it.
    pub request_timeout: Duration,
}

/// Largest key in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// A running member. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

pub(crate) struct Inner {
    id: MemberId,
    info: MemberInfo,
    /// Whether this member founds the cluster.
    founder: bool,
    store: Store,
    wal: Wal,
    raft: Raft,
    service: PeerService,
    http: PeerHttp,
    addresses: AddressBook,
    kept_from: KeptFrom,
    limits: Limits,
    metrics: Arc<Metrics>,
    clock: Clock,
    lag: Lag,
    started: Instant,
    election_max: Duration,
    wal_keep_bytes: u64,
    view: RwLock<Arc<View>>,
    applied: watch::Receiver<Option<LogId>>,
    room: watch::Sender<u64>,
    proposals: mpsc::Sender<Waiting>,
    reads: mpsc::Sender<WaitingRead>,
    membership_change: tokio::sync::Mutex<()>,
    /// Remembers that the founding entry is applied.
    founded: AtomicBool,
    /// Refuses new writes.
    stopping: AtomicBool,
    /// Why the member failed, once it has.
    failure: watch::Sender<Option<String>>,
    background: open::Background,
}

impl Node {
    /// What this member has applied; reads at any revision.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The bounds of what a client may ask.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The numbers that this member reports.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// This member's name.
    pub fn name(&self) -> &str {
        &self.0.info.name
    }

    /// Writes: by this member when it leads, else by the leader, to which it is forwarded. The deadline of `ctx` bounds
    /// the wait; a write that is not answered by then has an unknown outcome.
    pub async fn write(&self, ctx: &RequestContext, command: WriteCommand) -> Result<Outcome, NodeError> {
        let command = Command::Write(command).encode();
        let (answer, rx) = oneshot::channel();
        if self.0.is_stopping() {
            return Err(NodeError::Stopping);
        }
        if !self.0.is_founded() {
            return Err(NodeError::NotJoined);
        }
        match self.0.proposals.try_send(Waiting { command, forwarded: false, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(NodeError::QueueFull),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(NodeError::Stopping),
        }
        match tokio::time::timeout_at(ctx.deadline.into(), rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NodeError::Unknown { detail: "the member stopped".into() }),
            Err(_) => Err(NodeError::Unknown { detail: "no answer before the deadline".into() }),
        }
    }

    /// Returns once this member has applied everything that was acknowledged before the call: a read of the store is
    /// linearizable afterwards.
    pub async fn read_barrier(&self, ctx: &RequestContext) -> Result<(), NodeError> {
        let inner = &self.0;
        let late = |_| NodeError::NoQuorum { detail: "no answer before the deadline".into() };
        let deadline = tokio::time::Instant::from(ctx.deadline);
        let index = tokio::time::timeout_at(deadline, inner.read_index(false)).await.map_err(late)??;
        if inner.is_applied(index) {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, inner.wait_applied(index)).await.map_err(late)? {
            true => Ok(()),
            false => Err(NodeError::Stopping),
        }
    }

    /// An upper bound of how old a stale read here may be; `None` when it is not known.
    pub fn lag(&self) -> Option<Duration> {
        self.0.lag.get()
    }

    /// Hands leadership to the member named `to`, or to the best follower.
    pub async fn transfer_leader(
        &self,
        ctx: &RequestContext,
        to: Option<String>,
    ) -> Result<api::LeaderReply, NodeError> {
        // Raft's own tasks run on its runtime; the caller may live on another.
        let (inner, ctx) = (self.0.clone(), ctx.clone());
        let task = self.0.background.handle.spawn(async move { inner.transfer_leader(&ctx, to, false).await });
        task.await.map_err(|_| NodeError::Stopping)?
    }

    /// This member and the cluster as it sees it.
    pub fn status(&self) -> api::Status {
        self.0.status()
    }

    /// All members.
    pub fn members(&self) -> Vec<api::Member> {
        self.0.view().members.clone()
    }

    /// What this member does.
    pub fn role(&self) -> api::Role {
        self.0.view().role()
    }

    /// Whether the member passes a check; if not, why.
    pub fn health(&self, check: HealthCheck) -> Result<(), String> {
        self.0.health(check)
    }

    /// The timeline this member is on, once it knows its cluster's history.
    pub fn timeline(&self) -> Option<TimelineId> {
        Some(self.0.http.identity().timeline())
    }

    /// The leader's address for clients, when known.
    pub fn leader_hint(&self) -> Option<Arc<str>> {
        self.0.view().leader.as_ref().map(|leader| leader.client_url.clone())
    }

    /// The leader's name, when known.
    pub fn leader_name(&self) -> Option<String> {
        self.0.view().leader.as_ref().map(|leader| leader.name.clone())
    }

    /// Serves a request of another member.
    pub async fn serve_peer(&self, request: PeerRequest) -> PeerReply {
        self.0.serve_peer(request).await
    }

    /// The runtime on which Raft runs: peers are served there.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.0.background.handle
    }

    /// Resolves with the reason when the member has failed.
    pub async fn failed(&self) -> String {
        let mut failure = self.0.failure.subscribe();
        loop {
            if let Some(why) = failure.borrow_and_update().clone() {
                return why;
            }
            if failure.changed().await.is_err() {
                return "the member is gone".to_string();
            }
        }
    }
}

impl Inner {
    fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Puts a new view in place; gives the one before.
    fn set_view(&self, view: View) -> Arc<View> {
        std::mem::replace(&mut *self.view.write(), Arc::new(view))
    }

    /// Whether new writes are refused: the member was told to stop, or has failed.
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || self.failure.borrow().is_some()
    }

    fn no_leader(&self) -> NodeError {
        NodeError::NoLeader { name: self.info.name.clone(), term: self.view().term }
    }

    /// Records that the member failed; the first reason stays.
    fn fail(&self, why: String) {
        fail(&self.failure, why);
    }

    fn is_applied(&self, index: u64) -> bool {
        self.applied.borrow().is_some_and(|applied| applied.index >= index)
    }

    /// Waits until the entry at `index` is applied; false when the member stops first.
    async fn wait_applied(&self, index: u64) -> bool {
        let mut applied = self.applied.clone();
        applied.wait_for(|applied| applied.is_some_and(|applied| applied.index >= index)).await.is_ok()
    }

    /// Joins the next ReadIndex round.
    async fn read_index(&self, forwarded: bool) -> Result<u64, NodeError> {
        let (answer, rx) = oneshot::channel();
        match self.reads.try_send(WaitingRead { forwarded, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(NodeError::QueueFull),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(NodeError::Stopping),
        }
        rx.await.unwrap_or(Err(NodeError::Stopping))
    }

    /// Whether the founding entry is applied here. Nothing is written before it: it is the first of the history.
    fn is_founded(&self) -> bool {
        if !self.founded.load(Ordering::Relaxed) && self.store.cluster().is_some() {
            self.founded.store(true, Ordering::Relaxed);
        }
        self.founded.load(Ordering::Relaxed)
    }

    /// The cluster and its timeline, once the founding entry is applied here.
    fn founded(&self) -> Option<(ClusterId, TimelineId)> {
        let timeline = self.store.timelines().last().map(|timeline| timeline.id)?;
        Some((self.store.cluster()?, timeline))
    }

    /// The newest membership that Raft knows.
    fn members_by_id(&self) -> BTreeMap<MemberId, MemberInfo> {
        let metrics = self.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.nodes().map(|(id, info)| (*id, info.clone())).collect()
    }

    /// Between two questions by which the lag is measured.
    fn probe_interval(&self) -> Duration {
        self.election_max / 3
    }
}

/// Records that a member failed; the first reason stays.
fn fail(failure: &watch::Sender<Option<String>>, why: String) {
    tracing::error!(why, "this member has failed and stops serving");
    failure.send_if_modified(|failure| {
        let first = failure.is_none();
        failure.get_or_insert(why);
        first
    });
}

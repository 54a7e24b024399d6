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
mod canary;
mod clock;
mod compaction;
mod contacts;
mod context;
mod dr;
mod error;
mod events;
mod features;
mod founding;
mod health;
mod identity;
mod invited;
mod join;
mod keyed;
mod leases;
mod maintenance;
mod members;
mod mirrors;
mod open;
mod patience;
mod peer;
mod peers_file;
mod pod_label;
pub(crate) mod priority;
mod proposals;
mod quarantine;
mod reads;
mod removal;
mod repair;
mod report;
mod room;
pub mod seed;
mod start_error;
#[cfg(test)]
mod tests;
mod transfer;
mod verify;
mod view;
mod watches;
mod webhooks;
mod whereabouts;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api;
use crate::metrics::Metrics;
use crate::model::{ClusterId, Command, LogId, MemberId, Outcome, TimelineId};
use crate::raft::link::Links;
use crate::raft::network::{AddressBook, KeptFrom};
use crate::raft::peer_http::PeerHttp;
use crate::raft::service::PeerService;
use crate::raft::types::{MemberInfo, Raft};
use crate::store::Store;
use crate::wal::Wal;

pub use canary::SentCanary;
pub use context::{Principal, RequestContext};
pub use dr::Fenced;
pub use dr::drill;
pub use dr::salvage_files::{read_header as read_salvage_header, salvage_files};
pub use error::NodeError;
pub use founding::lobby::Lobby;
pub use health::HealthCheck;
pub use maintenance::Maintenance;
pub use open::{Addresses, CloseError, LeftOpen};
pub use peer::{PeerReply, PeerRequest, peer_path};
pub use quarantine::{Damage, Quarantine};
pub use start_error::StartError;
pub use verify::{VerifyLines, VerifyRefused};
pub use watches::{
    Ending, Framing, KeyWait, Kinds, Pace, Scope, View as WatchView, WatchCut, WatchError, WatchHub, WatchLimits,
    Watcher,
};

use clock::Clock;
use contacts::Contacts;
use identity::Home;
use members::{MembersAnswer, MembersRequest};
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

/// A change of members is waited for so much longer than other requests, so that it is the leader who says what became of
/// it.
const MEMBERS_GRACE: Duration = Duration::from_millis(500);

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
    /// What goes to the other members, by id.
    links: Links,
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
    watches: WatchHub,
    proposals: mpsc::Sender<Waiting>,
    /// How much is proposed at the same time.
    proposing: proposals::Proposing,
    /// Since when nobody leads.
    leaderless: patience::Leaderless,
    reads: mpsc::Sender<WaitingRead>,
    /// How far back the history is kept, and when the floors were moved last.
    keep: compaction::Keep,
    floors_moved: parking_lot::Mutex<Option<Instant>>,
    /// Since when there are floors that are not sealed.
    floors_unsealed: parking_lot::Mutex<Option<Instant>>,
    leases: leases::Leases,
    events: events::Events,
    /// The newest switchover, as it was read last.
    switchover: dr::switchover::State,
    /// The planned pause, as it was read last.
    maintenance: maintenance::KnownMaintenance,
    /// The canary that this member sent last.
    canary: canary::LastCanary,
    data_dir: std::path::PathBuf,
    room_limits: room::Limits,
    /// So many outcomes of keyed requests are kept at most.
    max_outcomes: u64,
    /// The keys of the requests that this leader has proposed and not answered.
    under_way: keyed::UnderWay,
    membership_change: tokio::sync::Mutex<()>,
    /// Who answers this member while it leads.
    contacts: Contacts,
    /// How the members follow this one while it leads.
    mirrors: mirrors::Mirrors,
    /// What is aimed at.
    objectives: api::Objectives,
    /// So long a write waits for a mirror at most, when it shall.
    mirror_wait: Duration,
    /// Since when this member leads.
    leads_since: Mutex<Option<Instant>>,
    /// `member.json`.
    home: Mutex<Home>,
    /// This member was removed from its cluster.
    removed: AtomicBool,
    /// Remembers that the founding entry is applied.
    founded: AtomicBool,
    /// It is in quarantine; why says `home`.
    in_quarantine: AtomicBool,
    /// History went on without it; how says `home`.
    is_fenced: AtomicBool,
    /// Others that are told to begin a timeline, as this one is.
    rivalry: Mutex<dr::Rivalry>,
    /// The branch that was forced from the same parent as this one's.
    split: Mutex<Option<dr::kin::Split>>,
    /// How members stand that have not come home to this timeline.
    kin_heard: Mutex<dr::kin::LastHeard>,
    /// Becomes true when the member wants to be opened anew.
    reopen: watch::Sender<bool>,
    /// The last damage that a member without others was told about.
    damage_told: Mutex<Option<Damage>>,
    /// Held while this member, as leader, verifies all.
    verifying: Arc<tokio::sync::Mutex<()>>,
    /// Not faster than this; 0 for as fast as it goes.
    verify_bytes_per_second: u64,
    /// What `peers.json` says.
    peers_written: Mutex<Option<peers_file::PeersFile>>,
    /// Refuses new writes.
    stopping: AtomicBool,
    /// Why the member failed, once it has.
    failure: watch::Sender<Option<String>>,
    /// Rehearsals of a failover.
    drills: dr::drill::Drills,
    background: open::Background,
}

impl Node {
    /// What this member has applied; reads at any revision.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Those who are told what changes.
    pub fn watches(&self) -> &WatchHub {
        &self.0.watches
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
    pub async fn write(&self, ctx: &RequestContext, command: impl Into<Command>) -> Result<Outcome, NodeError> {
        let command = command.into();
        self.0.check_serves()?;
        self.0.admit_command()?;
        self.0.admit_write(&command)?;
        if let Command::Request(request) = &command {
            self.0.admit_request(ctx, &request.request).await?;
        }
        self.propose(ctx, command).await
    }

    /// Proposes what was admitted, and waits for what becomes of it.
    async fn propose(&self, ctx: &RequestContext, command: Command) -> Result<Outcome, NodeError> {
        let command = command.encode();
        let (answer, rx) = oneshot::channel();
        let waiting = Waiting::new(command, false, answer);
        let place = waiting.place.clone();
        match self.0.proposals.try_send(waiting) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(NodeError::QueueFull),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(NodeError::Stopping),
        }
        match tokio::time::timeout_at(ctx.deadline.into(), rx).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NodeError::Unknown { detail: "the member stopped".into() }),
            Err(_) if place.take() => Err(NodeError::NotProposed),
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

    /// Expects a member, which is started with this name later on.
    pub async fn invite_member(
        &self,
        ctx: &RequestContext,
        invite: api::InviteRequest,
    ) -> Result<api::MemberReply, NodeError> {
        self.about_member(ctx, MembersRequest::Invite(invite)).await
    }

    /// A member and how far it is, as the leader knows it; without the latter when the leader cannot be asked and the
    /// member is known here.
    pub async fn member(&self, ctx: &RequestContext, name: &str) -> Result<api::MemberReply, NodeError> {
        let asked = self.about_member(ctx, MembersRequest::Show { name: name.to_string() }).await;
        match asked {
            Err(NodeError::NoLeader { .. } | NodeError::LeaderUnreachable { .. }) => {
                let members = self.members();
                let known = members.into_iter().find(|member| member.name == name);
                known.map(|member| self.0.known_member(member)).ok_or_else(|| asked.expect_err("it is an error"))
            }
            asked => asked,
        }
    }

    /// Makes a voter of a mirror, or a mirror of a voter.
    pub async fn change_role(
        &self,
        ctx: &RequestContext,
        name: &str,
        change: api::RoleChange,
    ) -> Result<api::MemberReply, NodeError> {
        self.about_member(ctx, MembersRequest::Change { name: name.to_string(), change }).await
    }

    /// Takes a member out of the cluster.
    pub async fn remove_member(
        &self,
        ctx: &RequestContext,
        name: &str,
        force: bool,
    ) -> Result<api::RemovedReply, NodeError> {
        match self.ask_members(ctx, MembersRequest::Remove { name: name.to_string(), force }).await? {
            MembersAnswer::Removed(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a mirror nothing any more, or everything again.
    pub async fn suspend_member(
        &self,
        ctx: &RequestContext,
        name: &str,
        suspended: bool,
    ) -> Result<api::SuspendReply, NodeError> {
        match self.ask_members(ctx, MembersRequest::Suspend { name: name.to_string(), suspended }).await? {
            MembersAnswer::Suspended(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// How every member follows, as the leader knows it; when no leader can be asked, what this member knows of itself.
    pub async fn replication(&self, ctx: &RequestContext) -> Result<api::ReplicationReply, NodeError> {
        match self.ask_members(ctx, MembersRequest::Replication).await {
            Ok(MembersAnswer::Replication(reply)) => Ok(*reply),
            Ok(other) => Err(unexpected(&other)),
            Err(NodeError::NoLeader { .. } | NodeError::LeaderUnreachable { .. }) => Ok(self.0.own_replication()),
            Err(error) => Err(error),
        }
    }

    /// How the cluster stands against the loss of its site.
    pub async fn dr(&self, ctx: &RequestContext) -> Result<api::DrReply, NodeError> {
        if let Some(fenced) = self.0.fenced() {
            return Ok(fenced.dr(&self.0.info, self.0.objectives));
        }
        match self.ask_members(ctx, MembersRequest::Dr).await {
            Ok(MembersAnswer::Dr(reply)) => Ok(*reply),
            Ok(other) => Err(unexpected(&other)),
            Err(NodeError::NoLeader { .. } | NodeError::LeaderUnreachable { .. }) => {
                let inner = self.0.clone();
                let task = self.0.background.handle.spawn(async move { inner.survey().await });
                let surveyed = task.await.map_err(|_| NodeError::Stopping)?;
                Ok(self.0.dr_without_leader(&surveyed))
            }
            Err(error) => Err(error),
        }
    }

    async fn about_member(&self, ctx: &RequestContext, request: MembersRequest) -> Result<api::MemberReply, NodeError> {
        match self.ask_members(ctx, request).await? {
            MembersAnswer::Member(reply) => Ok(*reply),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask_members(&self, ctx: &RequestContext, request: MembersRequest) -> Result<MembersAnswer, NodeError> {
        // Raft's own tasks run on its runtime; and what has begun is finished, also when the caller goes away.
        let (inner, ctx) = (self.0.clone(), ctx.clone());
        let deadline = ctx.deadline + MEMBERS_GRACE;
        let task = self.0.background.handle.spawn(async move { inner.ask_members(&ctx, request, false).await });
        match tokio::time::timeout_at(deadline.into(), task).await {
            Ok(Ok(done)) => done,
            // It may have begun.
            Ok(Err(_)) => Err(NodeError::Unknown { detail: "the member stopped".into() }),
            Err(_) => Err(NodeError::Unknown { detail: "no answer before the deadline".into() }),
        }
    }

    /// What is unwise about the members, as far as this member knows.
    pub fn member_warnings(&self) -> Vec<String> {
        self.0.member_warnings()
    }

    /// Whether this member ended because it was removed from its cluster.
    pub fn was_removed(&self) -> bool {
        self.0.removed.load(Ordering::Relaxed)
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
        if self.0.is_fenced() { api::Role::Fenced } else { self.0.view().role() }
    }

    /// What happened lately, behind the event `since`: up to `limit`, waited for until `deadline` if there is none yet.
    pub async fn events(&self, since: u64, limit: usize, deadline: Instant) -> api::EventsReply {
        self.0.events.read(since, limit, deadline).await
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
                // What was damaged also stops whoever works with it. The member is opened anew, which repairs it.
                if self.0.check_serves().is_err() {
                    std::future::pending::<()>().await;
                }
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

    /// Refuses what must not be proposed here now.
    fn admit_command(&self) -> Result<(), NodeError> {
        if self.is_stopping() {
            return Err(NodeError::Stopping);
        }
        if !self.is_founded() {
            return Err(NodeError::NotJoined);
        }
        Ok(())
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

    /// The same for as long as a request may take, for those who hold something that others wait for.
    async fn wait_applied_in_time(&self, index: u64) -> Result<(), NodeError> {
        match tokio::time::timeout(self.limits.request_timeout, self.wait_applied(index)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NodeError::Stopping),
            Err(_) => Err(NodeError::NotNow { detail: format!("the entry at {index} is not applied yet") }),
        }
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

    /// For how long this member has led; nothing when it does not.
    fn led_for(&self) -> Duration {
        self.leads_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Between two questions by which the lag is measured.
    fn probe_interval(&self) -> Duration {
        self.election_max / 3
    }
}

/// A leader has answered something else than it was asked.
fn unexpected(answer: &MembersAnswer) -> NodeError {
    tracing::warn!(?answer, "the leader's answer is another");
    NodeError::Unknown { detail: "the leader's answer is another".into() }
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

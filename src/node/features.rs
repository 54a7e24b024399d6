//! What the cluster's members all know: the feature level, and the outcomes that are remembered under it.
//!
//! A member of an older program stops when it meets a command that it does not know. So a kind of command is proposed
//! only once every member has said that it knows it: each message between members names the newest level of its sender,
//! and the leader raises the replicated level when all members, learners too, have named it. The level never falls.

use tokio::sync::mpsc::error::SendTimeoutError;

use super::events::NewEvent;
use super::proposals::Waiting;
use super::{Inner, NodeError, RequestContext};
use crate::model::{Command, Request, RequestCommand, WriteCommand};
use crate::store::set_feature_level;

/// The level that [`Request`]s and the floors need.
pub(super) const REQUESTS: u64 = 1;
/// The level that canaries need.
pub(super) const CANARIES: u64 = 2;
/// The level that a planned pause needs, so that every member refuses by it.
pub(super) const PAUSES: u64 = 2;
/// The level that events of the cluster need, so that every member shows them.
pub(super) const CLUSTER_EVENTS: u64 = 2;
/// The level that a switchover needs, so that whoever leads carries it on.
pub(super) const SWITCHOVERS: u64 = 3;
/// Outcomes forgotten by one entry.
const SWEEP: u64 = 256;

impl Inner {
    /// Whether a request may be proposed. Right after the start of a cluster or an upgrade the level is about to rise:
    /// that is waited for.
    pub(super) async fn admit_request(&self, ctx: &RequestContext, request: &Request) -> Result<(), NodeError> {
        self.admit_level(ctx, request.feature_level()).await
    }

    /// Waits until a level is in force.
    pub(super) async fn admit_level(&self, ctx: &RequestContext, needed: u64) -> Result<(), NodeError> {
        if self.store.feature_level() < needed {
            let mut applied = self.applied.clone();
            let raised = applied.wait_for(|_| self.store.feature_level() >= needed);
            if tokio::time::timeout_at(ctx.deadline.into(), raised).await.is_err() {
                let level = self.store.feature_level();
                return Err(NodeError::FeatureNotActive { needed, level });
            }
        }
        Ok(())
    }

    /// Proposes a command of the leader's own, if this member leads, and waits for what becomes of it. Where many clients
    /// write it waits for its place like the next of them would, and is not turned away.
    pub(super) async fn propose_own(&self, command: Command) -> Result<crate::model::Outcome, NodeError> {
        let (answer, rx) = tokio::sync::oneshot::channel();
        let waiting = Waiting::new(command.encode(), true, answer);
        self.proposals.send_timeout(waiting, self.election_max).await.map_err(|refused| match refused {
            SendTimeoutError::Timeout(_) => NodeError::QueueFull,
            SendTimeoutError::Closed(_) => NodeError::Stopping,
        })?;
        rx.await.unwrap_or(Err(NodeError::Stopping))
    }
}

/// Raises the level when all members know a newer one.
pub(super) async fn raise(inner: &Inner) {
    let level = inner.store.feature_level();
    let identity = inner.http.identity();
    if identity.feature_of(inner.id) <= Some(level) || !inner.is_founded() {
        return;
    }
    let known = inner.members_by_id().into_keys().map(|id| identity.feature_of(id));
    let Some(Some(known)) = known.min() else { return };
    if known <= level {
        return;
    }
    let ops = vec![set_feature_level(known)];
    match inner.propose_own(Command::Write(WriteCommand { ops, ..WriteCommand::default() })).await {
        Ok(_) => {
            tracing::info!(level = known, "all members know this feature level: it is in force");
            let detail = format!("feature level {known} is in force");
            // A level that has been in force is news to the cluster; a new cluster's first one is not.
            let event = NewEvent::new("feature-level", detail).change(Some(level.to_string()), known.to_string());
            if level == 0 || known < CLUSTER_EVENTS {
                inner.events.record_event(event);
            } else {
                inner.record_cluster_event(event);
            }
        }
        Err(error) => tracing::debug!(%error, "the feature level is not raised yet"),
    }
}

/// Forgets outcomes whose time has passed.
pub(super) async fn sweep(inner: &Inner) {
    loop {
        let due = inner.store.records().outcomes > 0
            && match inner.store.has_expired_outcomes(inner.clock.now_ms()) {
                Ok(due) => due,
                Err(error) => return inner.fail(format!("outcomes cannot be read: {error}")),
            };
        if !due {
            return;
        }
        let request = Request::Sweep { max: SWEEP };
        let command = RequestCommand { time_ms: 0, idempotency: None, request };
        if let Err(error) = inner.propose_own(Command::Request(command)).await {
            tracing::debug!(%error, "old outcomes are not forgotten yet");
            return;
        }
    }
}

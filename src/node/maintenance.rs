//! The planned pause: a record that all members follow, while which clients are refused and the cluster goes on.
//!
//! The record is written through the log like any value. Every member refuses from what it has applied: writes, and
//! reads too when the record says so. The leader, which has applied it first, also refuses what others forward. What the
//! leader proposes by itself (leases that end, floors, members, events) goes on, and so do keep-alives, the status and
//! everything that is about the cluster.
//!
//! It ends by itself: each member compares `until` with its own clock, so a member whose clock is wrong by a second ends
//! it a second early or late for reads; for writes the leader decides as well. The leader then removes the record, on the
//! condition that it is still the one that has ended, because somebody may have written another in the meantime.
//!
//! What survives a crash: the record. Proven by `tests/api/maintenance.rs`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use super::events::NewEvent;
use super::features::PAUSES;
use super::{Inner, Node, NodeError, RequestContext};
use crate::api::time::utc_text;
use crate::model::{Command, KeySpace, OpResult, Outcome, Request, RequestCommand, Revision, WriteCommand, WriteOp};
use crate::store::{MAINTENANCE_KEY, ReadError};

/// Between two looks at the record.
const TICK: Duration = Duration::from_millis(200);

/// A planned pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// What clients are told.
    pub message: String,
    /// When it ends by itself, in milliseconds since 1970.
    pub until_ms: u64,
    /// Whether reads are refused too.
    #[serde(default)]
    pub reads: bool,
    /// The revision at which it was written.
    #[serde(skip)]
    pub written: Revision,
}

impl Maintenance {
    /// How long it lasts from now on; none when it is over.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.until_ms.saturating_sub(wall_ms());
        (left > 0).then(|| Duration::from_millis(left))
    }

    fn refusal(&self) -> Option<NodeError> {
        let remaining_ms = self.remaining()?.as_millis() as u64;
        Some(NodeError::Maintenance { message: self.message.clone(), until_ms: self.until_ms, remaining_ms })
    }

    fn describe(&self) -> String {
        let what = if self.reads { "reads and writes" } else { "writes" };
        format!("{what} are refused until {}: {}", utc_text(self.until_ms), self.message)
    }
}

/// The time of day: what people mean by `until`. (The leader's clock never runs backwards, and would end it early.)
fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The record as it was read last, so that a request need not read it.
#[derive(Default)]
pub struct KnownMaintenance(Mutex<Option<Arc<Maintenance>>>);

impl Node {
    /// Begins a planned pause, or replaces the one that there is; returns once this member refuses by it.
    pub async fn begin_maintenance(&self, ctx: &RequestContext, pause: &Maintenance) -> Result<Revision, NodeError> {
        let value = serde_json::to_vec(pause).map_err(|e| NodeError::Refused { detail: e.to_string() })?;
        let key = Bytes::from_static(MAINTENANCE_KEY);
        let op = WriteOp::Put { space: KeySpace::System, key, value: value.into(), lease: 0 };
        self.write_maintenance(ctx, op).await.map(|(revision, _)| revision)
    }

    /// Ends the planned pause; says whether there was one, and the revision afterwards.
    pub async fn end_maintenance(&self, ctx: &RequestContext) -> Result<(Revision, bool), NodeError> {
        let op = WriteOp::Delete { space: KeySpace::System, key: Bytes::from_static(MAINTENANCE_KEY) };
        self.write_maintenance(ctx, op).await
    }

    async fn write_maintenance(&self, ctx: &RequestContext, op: WriteOp) -> Result<(Revision, bool), NodeError> {
        self.0.admit_command()?;
        // A member of an older program would not refuse anything.
        self.0.admit_level(ctx, PAUSES).await?;
        let command = Command::Write(WriteCommand { ops: vec![op], ..WriteCommand::default() });
        let outcome = self.propose(ctx, command).await?;
        let Outcome::Written { revision, results } = outcome else {
            return Err(NodeError::Unknown { detail: format!("a planned pause has the outcome {outcome:?}") });
        };
        let mut applied = self.0.applied.clone();
        let here = applied.wait_for(|_| self.0.store.revision() >= revision);
        // It is in force in the cluster; that this member is slow to see it is no failure.
        let _ = tokio::time::timeout_at(ctx.deadline.into(), here).await;
        let existed = matches!(results.as_slice(), [OpResult::Deleted { count, .. }] if *count > 0);
        Ok((revision, existed))
    }

    /// The planned pause, if one is in force as far as this member has applied.
    pub fn maintenance(&self) -> Result<Option<Arc<Maintenance>>, NodeError> {
        Ok(self.0.known_maintenance()?.filter(|pause| pause.remaining().is_some()))
    }

    /// Refuses a read while a planned pause says so.
    pub fn admit_read(&self) -> Result<(), NodeError> {
        match self.0.known_maintenance()? {
            Some(pause) if pause.reads => pause.refusal().map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }
}

/// Whether a command is about the cluster and not a client's: the record itself is written and removed during a pause.
pub(super) fn is_of_the_system(command: &Command) -> bool {
    match command {
        Command::Write(write) => {
            let system = |op: &WriteOp| match op {
                WriteOp::Put { space, .. } | WriteOp::Delete { space, .. } | WriteOp::DeleteRange { space, .. } => {
                    *space == KeySpace::System
                }
            };
            !write.ops.is_empty() && write.ops.iter().all(system)
        }
        Command::Found { .. } | Command::Begin(_) => true,
        Command::Request(_) => false,
    }
}

impl Inner {
    /// Refuses a client's write during a planned pause.
    pub(super) fn admit_write(&self, command: &Command) -> Result<(), NodeError> {
        match self.known_maintenance()? {
            Some(pause) if !is_of_the_system(command) => pause.refusal().map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// The record as this member has applied it, also when its time is over.
    fn known_maintenance(&self) -> Result<Option<Arc<Maintenance>>, NodeError> {
        let written = self.store.records().maintenance;
        if written == 0 {
            return Ok(None);
        }
        if let Some(known) = self.maintenance.0.lock().as_ref().filter(|known| known.written == written) {
            return Ok(Some(known.clone()));
        }
        let failed = |detail: String| NodeError::StorageFailed { detail };
        let found = self.store.maintenance().map_err(|error: ReadError| failed(error.to_string()))?;
        let Some(found) = found else { return Ok(None) };
        let read: Maintenance = serde_json::from_slice(&found.value)
            .map_err(|error| failed(format!("the record of the planned pause: {error}")))?;
        let read = Arc::new(Maintenance { written: found.written, ..read });
        *self.maintenance.0.lock() = Some(read.clone());
        Ok(Some(read))
    }

    /// Removes the record of a pause that is over.
    async fn remove_maintenance(&self, written: Revision) {
        let request = Request::Record { key: Bytes::from_static(MAINTENANCE_KEY), written, value: None };
        let command = RequestCommand { time_ms: 0, idempotency: None, request };
        match self.propose_own(Command::Request(command)).await {
            Ok(Outcome::Written { .. }) => tracing::info!("the planned pause is over"),
            // Somebody replaced or ended it.
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the record of the planned pause is not removed yet"),
        }
    }
}

/// Follows the record: ends watches when reads are refused, removes it when its time is over, and records what happened.
pub async fn run(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was there when the process began is no news.
    let mut seen = inner.known_maintenance().ok().flatten();
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        let now = match inner.known_maintenance() {
            Ok(now) => now,
            Err(error) => return inner.fail(error.to_string()),
        };
        let leads = inner.view().leads;
        if now.as_ref().map(|pause| pause.written) != seen.as_ref().map(|pause| pause.written) {
            if leads {
                tell(&inner, seen.as_deref(), now.as_deref());
            }
            seen = now.clone();
        }
        let Some(pause) = now else { continue };
        if pause.remaining().is_none() {
            if leads {
                inner.remove_maintenance(pause.written).await;
            }
        } else if pause.reads {
            // Each time, because one may have begun just before the record was applied.
            inner.watches.pause();
        }
    }
}

/// Records that a pause began or ended.
fn tell(inner: &Inner, before: Option<&Maintenance>, now: Option<&Maintenance>) {
    let event = match (before, now) {
        (_, Some(pause)) => NewEvent::new("maintenance-started", pause.describe()),
        (Some(pause), None) if pause.remaining().is_none() => {
            NewEvent::new("maintenance-ended", format!("its time was over at {}", utc_text(pause.until_ms)))
        }
        (_, None) => NewEvent::new("maintenance-ended", "it was ended by hand".to_owned()),
    };
    inner.record_cluster_event(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_refuses_until_its_time_is_over() {
        let pause = |until_ms| Maintenance { message: "m".into(), until_ms, reads: true, written: 1 };
        assert_eq!(pause(wall_ms().saturating_sub(1)).refusal(), None);
        let Some(NodeError::Maintenance { remaining_ms, .. }) = pause(wall_ms() + 60_000).refusal() else {
            panic!("it is not refused");
        };
        assert!((1..=60_000).contains(&remaining_ms), "{remaining_ms}");
        let text = serde_json::to_vec(&pause(7)).unwrap();
        assert_eq!(serde_json::from_slice::<Maintenance>(&text).unwrap(), Maintenance { written: 0, ..pause(7) });
    }

    #[test]
    fn only_records_of_the_system_pass() {
        let put = |space| WriteOp::Put { space, key: Bytes::from_static(b"k"), value: Bytes::new(), lease: 0 };
        let write = |ops| Command::Write(WriteCommand { ops, ..WriteCommand::default() });
        assert!(is_of_the_system(&write(vec![put(KeySpace::System)])));
        for ops in [vec![], vec![put(KeySpace::User)], vec![put(KeySpace::System), put(KeySpace::User)]] {
            assert!(!is_of_the_system(&write(ops)));
        }
        let request = Request::Sequence { name: Bytes::new(), count: 1, step: 0 };
        assert!(!is_of_the_system(&Command::Request(RequestCommand { time_ms: 0, idempotency: None, request })));
    }
}

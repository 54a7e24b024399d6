//! The planned move of the primary site to another one, without loss.
//!
//! ```text
//!   POST ──> checks ──> record in the log ──> whoever leads: look, next step, do it ──> record: done or went-back
//! ```
//!
//! 1. The mirrors of the new site are brought to the tip.
//! 2. The best of them becomes a voter; the old site keeps its majority.
//! 3. It takes the lead, with nothing under way ([`super::super::transfer`]).
//! 4. The new leader begins one joint change: the mirrors of its site become the voters, and the voters of the old site
//!    mirrors, in their roles too. The joint change ends.
//!
//! The plan is a record of the cluster. [`steps`] says what comes next, from the record and from what the leader sees;
//! [`carry`] does it, on whichever member leads; [`checks`] says what is missing before anything is begun.
//!
//! Invariants: one switchover at a time; while one runs nobody else changes the members ([`Inner::refuse_amid_switchover`]);
//! the record changes only if it is still as its writer saw it. What survives a crash: the record and the membership, which
//! is all. Proven by the tests of `steps` and `checks`, and by `tests/dr/switchover.rs`.

mod carry;
mod checks;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use carry::run;

use crate::api::time::utc_text;
use crate::api::{MemberRole, SwitchoverReply, SwitchoverRequest, SwitchoverState, SwitchoverStep};
use crate::crash_points::reach;
use crate::model::{Command, LogId, MemberId, Outcome, Request, RequestCommand, Revision, new_random_id};
use crate::node::events::NewEvent;
use crate::node::members::{MembersAnswer, MembersRequest};
use crate::node::{Inner, Node, NodeError, RequestContext, unexpected};
use crate::store::SWITCHOVER_KEY;

/// What is asked of the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// To begin one, or to join the one that runs.
    Begin(SwitchoverRequest),
    /// How it stands.
    Show,
    /// To go back while that can be.
    Abort {
        /// Who asks.
        by: Option<String>,
    },
    /// For how long no write was taken, as the old leader measured it.
    Paused {
        /// Of which switchover.
        id: String,
        /// In milliseconds.
        pause_ms: f64,
    },
}

/// A member as the plan names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Its id, which counts.
    pub id: MemberId,
    /// Its name, for people.
    pub name: String,
}

/// The plan, as it lies in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Its name.
    pub id: String,
    /// Where the voters stood.
    pub from_site: String,
    /// Where they shall stand.
    pub to_site: String,
    /// Who takes the lead.
    pub target: Planned,
    /// Who becomes a voter.
    pub voters: Vec<Planned>,
    /// Who becomes a mirror.
    pub mirrors: Vec<Planned>,
    /// How far it is.
    pub step: SwitchoverStep,
    /// When it began, by the clock of the member that led then, in milliseconds since 1970.
    pub began_ms: u64,
    /// When the step began, by the clock of the member that led then.
    pub step_ms: u64,
    /// Who asked for it.
    #[serde(default)]
    pub by: Option<String>,
    /// And why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Why it goes, or went, back.
    #[serde(default)]
    pub back: Option<String>,
    /// For how long no write was taken.
    #[serde(default)]
    pub pause_ms: Option<f64>,
    /// When it ended.
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// The revision at which it was written.
    #[serde(skip)]
    pub written: Revision,
}

/// What this member knows of the newest switchover.
#[derive(Default)]
pub struct State {
    /// The record as it was read last.
    known: Mutex<Option<Arc<Plan>>>,
    /// What it waits for, while this member leads.
    waits: Mutex<Option<String>>,
    /// The one that was seen under way and whose end was not told yet.
    open: Mutex<Option<String>>,
    /// The newest record that cannot be read: it is logged once.
    unreadable: Mutex<Revision>,
    /// There is something to do at once.
    woken: Notify,
}

/// The time of day, in milliseconds since 1970: for people.
fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn names(members: &[Planned]) -> Vec<String> {
    members.iter().map(|member| member.name.clone()).collect()
}

impl Plan {
    /// Whether it can be called off: the lead has not moved yet.
    fn can_abort(&self) -> bool {
        matches!(self.step, SwitchoverStep::CatchingUp | SwitchoverStep::AddingVoter | SwitchoverStep::HandingOver)
    }

    fn next_command(&self) -> String {
        match self.step {
            SwitchoverStep::Done => format!("lifeboat dr switchover --to {}", self.from_site),
            SwitchoverStep::WentBack => format!("lifeboat dr switchover --to {} --check", self.to_site),
            _ => "lifeboat dr switchover --status".to_owned(),
        }
    }

    /// What is told of it.
    fn reply(&self, waits_for: Option<String>) -> SwitchoverReply {
        let state = match self.step {
            SwitchoverStep::Done => SwitchoverState::Done,
            SwitchoverStep::WentBack => SwitchoverState::WentBack,
            SwitchoverStep::GoingBack => SwitchoverState::GoingBack,
            _ => SwitchoverState::Running,
        };
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1000.0;
        let now = self.ended_ms.unwrap_or_else(wall_ms);
        SwitchoverReply {
            id: Some(self.id.clone()),
            from_site: Some(self.from_site.clone()),
            to_site: Some(self.to_site.clone()),
            step: Some(self.step),
            step_seconds: (!self.step.is_over()).then(|| seconds(self.step_ms, now)),
            waits_for: waits_for.filter(|_| !self.step.is_over()),
            target: Some(self.target.name.clone()),
            voters: names(&self.voters),
            mirrors: names(&self.mirrors),
            began: Some(utc_text(self.began_ms)),
            seconds: Some(seconds(self.began_ms, now)),
            pause_ms: self.pause_ms,
            back: self.back.clone(),
            by: self.by.clone(),
            reason: self.reason.clone(),
            ..SwitchoverReply::new(state, self.next_command())
        }
    }
}

impl Node {
    /// Moves the primary site, or joins the switchover that is on its way there.
    pub async fn begin_switchover(
        &self,
        ctx: &RequestContext,
        asked: SwitchoverRequest,
    ) -> Result<SwitchoverReply, NodeError> {
        self.about_switchover(ctx, Ask::Begin(asked)).await
    }

    /// The newest switchover, as the leader knows it, or as this member does when no leader can be asked.
    pub async fn switchover(&self, ctx: &RequestContext) -> Result<SwitchoverReply, NodeError> {
        match self.about_switchover(ctx, Ask::Show).await {
            Err(NodeError::NoLeader { .. } | NodeError::LeaderUnreachable { .. }) => {
                Ok(self.0.show_switchover()?.unwrap_or_else(none_yet))
            }
            asked => asked,
        }
    }

    /// Calls the switchover off, as long as the lead has not moved.
    pub async fn abort_switchover(
        &self,
        ctx: &RequestContext,
        by: Option<String>,
    ) -> Result<SwitchoverReply, NodeError> {
        self.about_switchover(ctx, Ask::Abort { by }).await
    }

    async fn about_switchover(&self, ctx: &RequestContext, ask: Ask) -> Result<SwitchoverReply, NodeError> {
        match self.ask_members(ctx, MembersRequest::Switchover(ask)).await? {
            MembersAnswer::Switchover(reply) => Ok(*reply),
            other => Err(unexpected(&other)),
        }
    }
}

fn none_yet() -> SwitchoverReply {
    SwitchoverReply::new(SwitchoverState::None, "lifeboat dr plan")
}

impl Inner {
    /// The record as this member has applied it. One that cannot be read is refused for now: it may be a later program's.
    fn known_switchover(&self) -> Result<Option<Arc<Plan>>, NodeError> {
        let written = self.store.records().switchover;
        if written == 0 {
            return Ok(None);
        }
        if let Some(known) = self.switchover.known.lock().as_ref().filter(|known| known.written == written) {
            return Ok(Some(known.clone()));
        }
        let failed = |detail: String| NodeError::StorageFailed { detail };
        let found = self.store.switchover().map_err(|error| failed(error.to_string()))?;
        let Some(found) = found else { return Ok(None) };
        let read: Plan = serde_json::from_slice(&found.value).map_err(|error| {
            let detail = format!("the record of the switchover cannot be read by this program: {error}");
            if std::mem::replace(&mut *self.switchover.unreadable.lock(), written) != written {
                tracing::error!(detail, "a later program may have written it: upgrade this member");
            }
            NodeError::NotNow { detail: format!("{detail}. Upgrade the members, and see: lifeboat members") }
        })?;
        let read = Arc::new(Plan { written: found.written, ..read });
        *self.switchover.known.lock() = Some(read.clone());
        Ok(Some(read))
    }

    /// The switchover that is under way, as far as this member has applied; an unreadable record counts as none.
    pub(in crate::node) fn running_switchover(&self) -> Option<Arc<Plan>> {
        self.known_switchover().ok().flatten().filter(|plan| !plan.step.is_over())
    }

    /// Whether what earlier leaders have committed is applied here, when this member leads: an entry of its own lead is, and
    /// so are all before it.
    pub(in crate::node) fn has_applied_its_lead(&self) -> bool {
        let applied = *self.applied.borrow();
        self.is_of_its_lead(applied)
    }

    fn is_of_its_lead(&self, applied: Option<LogId>) -> bool {
        let term = self.view().term;
        applied.is_some_and(|applied| (applied.term, applied.leader) == (term, self.id))
    }

    /// Whether one is under way, or may be, as far as a leader can know.
    pub(in crate::node) fn may_be_switching(&self) -> bool {
        !self.has_applied_its_lead()
            || self.known_switchover().map_or(true, |plan| plan.is_some_and(|plan| !plan.step.is_over()))
    }

    /// Refuses other changes of the members while the primary site moves. A leader that has only begun to lead first has to
    /// apply what others have written.
    pub(in crate::node) async fn refuse_amid_switchover(&self) -> Result<(), NodeError> {
        let mut applied = self.applied.clone();
        let caught_up = applied.wait_for(|applied| self.is_of_its_lead(*applied));
        if tokio::time::timeout(self.election_max * 2, caught_up).await.is_err() {
            let detail = "what earlier leaders have committed is not applied here yet".to_owned();
            return Err(if self.view().leads { NodeError::NotNow { detail } } else { self.no_leader() });
        }
        match self.known_switchover()?.filter(|plan| !plan.step.is_over()) {
            None => Ok(()),
            Some(plan) => Err(NodeError::NotNow {
                detail: format!(
                    "the primary site is moving from {} to {}; see it: lifeboat dr switchover --status",
                    plan.from_site, plan.to_site
                ),
            }),
        }
    }

    /// The newest switchover, as far as this member knows.
    pub(in crate::node) fn show_switchover(&self) -> Result<Option<SwitchoverReply>, NodeError> {
        let waits = self.switchover.waits.lock().clone();
        Ok(self.known_switchover()?.map(|plan| plan.reply(waits)))
    }

    /// What is asked of the leader, which this member is.
    pub(in crate::node) async fn lead_switchover(&self, ask: Ask) -> Result<SwitchoverReply, NodeError> {
        match ask {
            Ask::Show => Ok(self.show_switchover()?.unwrap_or_else(none_yet)),
            Ask::Begin(asked) => self.begin_switchover(asked).await,
            Ask::Abort { by } => self.abort_switchover(by).await,
            Ask::Paused { id, pause_ms } => self.note_pause(&id, pause_ms).await,
        }
    }

    async fn begin_switchover(&self, asked: SwitchoverRequest) -> Result<SwitchoverReply, NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        // A record that an earlier leader wrote must be seen.
        let index = self.read_index(true).await?;
        self.wait_applied_in_time(index).await?;
        let last = self.known_switchover()?;
        if let Some(running) = last.as_ref().filter(|plan| !plan.step.is_over()) {
            // Who only wants to know whether it could begin must not be told that it did.
            if running.to_site == asked.to_site && !asked.dry_run {
                return Ok(self.show_switchover()?.unwrap_or_else(none_yet));
            }
            return Err(NodeError::SwitchoverRefused {
                detail: format!(
                    "a switchover from {} to {} is under way, at {}. See it: lifeboat dr switchover --status",
                    running.from_site, running.to_site, running.step
                ),
            });
        }
        let Some(checks::Checked { draft, warnings }) = self.check_switchover(&asked.to_site).await? else {
            let done = SwitchoverReply::new(SwitchoverState::NothingToDo, "lifeboat dr plan");
            return Ok(SwitchoverReply { to_site: Some(asked.to_site), ..done });
        };
        let checks::Draft { from_site, target, voters, mirrors } = draft;
        let now = wall_ms();
        let plan = Plan {
            id: new_random_id().to_string()[..16].to_owned(),
            from_site,
            to_site: asked.to_site,
            target,
            voters,
            mirrors,
            step: SwitchoverStep::CatchingUp,
            began_ms: now,
            step_ms: now,
            by: asked.by,
            reason: asked.reason,
            back: None,
            pause_ms: None,
            ended_ms: None,
            written: last.map_or(0, |plan| plan.written),
        };
        if asked.dry_run {
            let next = format!("lifeboat dr switchover --to {}", plan.to_site);
            let SwitchoverReply { from_site, to_site, target, voters, mirrors, by, reason, .. } = plan.reply(None);
            let checked = SwitchoverReply::new(SwitchoverState::Checked, next);
            return Ok(SwitchoverReply {
                from_site,
                to_site,
                target,
                voters,
                mirrors,
                by,
                reason,
                warnings,
                ..checked
            });
        }
        if !self.write_plan(&plan).await? {
            return Err(NodeError::NotNow {
                detail: "another switchover began at the same moment: lifeboat dr switchover --status".into(),
            });
        }
        let Plan { from_site, to_site, .. } = &plan;
        tracing::info!(id = plan.id, from_site, to_site, target = plan.target.name, "a switchover begins");
        let detail = format!(
            "the primary site moves from {from_site} to {to_site}, {} will lead{}",
            plan.target.name,
            plan.who()
        );
        let event = NewEvent::new("switchover-began", detail).about(to_site);
        self.record_cluster_event(event.change(Some(from_site.clone()), to_site));
        self.switchover.woken.notify_one();
        Ok(SwitchoverReply { warnings, ..plan.reply(None) })
    }

    async fn abort_switchover(&self, by: Option<String>) -> Result<SwitchoverReply, NodeError> {
        let refused = |detail: String| NodeError::SwitchoverRefused { detail };
        let index = self.read_index(true).await?;
        self.wait_applied_in_time(index).await?;
        let Some(plan) = self.known_switchover()?.filter(|plan| !plan.step.is_over()) else {
            return Err(refused(
                "no switchover is under way. See the last one: lifeboat dr switchover --status".into(),
            ));
        };
        if plan.step == SwitchoverStep::GoingBack {
            return Ok(plan.reply(None));
        }
        if !plan.can_abort() || plan.voters.iter().any(|member| member.id == self.id) {
            let Plan { from_site, to_site, .. } = &*plan;
            return Err(refused(format!(
                "the lead is in {to_site} already: it is carried on to its end. Go home afterwards: lifeboat dr switchover \
                 --to {from_site}"
            )));
        }
        let who = by.map(|by| format!(" by {by}")).unwrap_or_default();
        let gone = self.go_back(&plan, format!("it was aborted{who}")).await?;
        let Some(gone) = gone else {
            return Err(NodeError::NotNow {
                detail: "the switchover has just gone a step further: lifeboat dr switchover --status".into(),
            });
        };
        self.switchover.woken.notify_one();
        Ok(gone.reply(None))
    }

    /// Keeps how long the pause was that the old leader has measured.
    async fn note_pause(&self, id: &str, pause_ms: f64) -> Result<SwitchoverReply, NodeError> {
        loop {
            let Some(plan) = self.known_switchover()?.filter(|plan| plan.id == id) else {
                return Ok(none_yet());
            };
            if plan.pause_ms.is_some() || self.write_plan(&Plan { pause_ms: Some(pause_ms), ..(*plan).clone() }).await?
            {
                return Ok(plan.reply(None));
            }
        }
    }

    /// Writes down that it goes back; none when it has gone on meanwhile.
    async fn go_back(&self, plan: &Plan, why: String) -> Result<Option<Plan>, NodeError> {
        tracing::warn!(id = plan.id, why, "the switchover goes back");
        let back = Plan { step: SwitchoverStep::GoingBack, step_ms: wall_ms(), back: Some(why), ..plan.clone() };
        if !self.write_plan(&back).await? {
            return Ok(None);
        }
        reach("switchover-going-back").await;
        Ok(Some(back))
    }

    /// Writes the record if it is still the one of `plan.written`; returns once it is applied here. False when it is not.
    async fn write_plan(&self, plan: &Plan) -> Result<bool, NodeError> {
        let value = serde_json::to_vec(plan).map_err(|e| NodeError::Refused { detail: e.to_string() })?;
        let key = Bytes::from_static(SWITCHOVER_KEY);
        let request = Request::Record { key, written: plan.written, value: Some(value.into()) };
        let command = RequestCommand { time_ms: 0, idempotency: None, request };
        match self.propose_own(Command::Request(command)).await? {
            Outcome::Written { .. } => Ok(true),
            _ => Ok(false),
        }
    }

    /// Whether this member stands in the site that has the lead, while the primary site moves; none while it does not, or
    /// when this member has no part in that.
    pub(in crate::node) fn stands_with_leader(&self) -> Option<bool> {
        let plan = self.running_switchover()?;
        if !plan.concerns(self.id) {
            return None;
        }
        let view = self.view();
        let leader = view.leader.as_ref()?;
        let of = |id: MemberId| view.members.iter().find(|member| member.id == id).map(|member| &member.site);
        Some(of(leader.id) == of(self.id) && of(self.id).is_some())
    }
}

impl Plan {
    /// Who asked for it and why, as the end of a sentence.
    fn who(&self) -> String {
        let by = self.by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{by}{reason}")
    }

    /// Whether a member's role changes by it.
    fn concerns(&self, id: MemberId) -> bool {
        self.voters.iter().chain(&self.mirrors).any(|member| member.id == id)
    }

    /// What a member of the plan is to be when it is done.
    fn role_of(&self, id: MemberId) -> MemberRole {
        match self.voters.iter().any(|member| member.id == id) {
            true => MemberRole::Voter,
            false => MemberRole::Mirror,
        }
    }
}

/// The time that a step may take is measured by the leader that sees it: clocks of other members do not matter.
fn age(since: std::time::Instant) -> Duration {
    since.elapsed()
}

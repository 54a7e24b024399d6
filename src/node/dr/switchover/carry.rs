//! What carries a switchover on: a task on every member, which does something while its member leads and a plan is there.
//!
//! It looks, asks [`super::steps::next`], does that, and looks again. Nothing is remembered between two looks but since when this
//! member has seen the step, and how often it tried in vain to move the lead in it; so whoever leads next goes on where this one stopped, and what fails is simply tried again
//! until the step's time is over. Every step reaches named places ([`crate::crash_points`]) at which the tests let members
//! die or wait.
//!
//! Bounds: one action at a time, each within the time of a request. Proven by `tests/dr/switchover.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;

use super::steps::{Attempts, Next, Seen, next};
use super::{Ask, Plan, age, wall_ms};
use crate::api::{MemberReplication, MemberRole, MirrorState, Queue, SwitchoverStep as Step};
use crate::crash_points::reach;
use crate::model::MemberId;
use crate::node::background::PROMOTE_BEHIND_ENTRIES;
use crate::node::events::NewEvent;
use crate::node::members::MembersRequest;
use crate::node::{Inner, NodeError, RequestContext};
use crate::raft::types::MemberInfo;

/// Between two looks at a plan that is there.
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks whether there is one.
const IDLE: Duration = Duration::from_millis(200);
/// A target that has not answered for so long, and for four election timeouts, is lost.
const LOST: Duration = Duration::from_secs(1);
/// A member is at the tip when the oldest entry that it lacks is not older than this and the way there and back.
const AT_TIP: Duration = Duration::from_millis(100);
/// So long the events of this leader may take to be written before it hands over.
const EVENTS_WAIT: Duration = Duration::from_secs(1);
/// The measured pause is told within this, or never.
const TELL: Duration = Duration::from_secs(10);

type Change = ChangeMembers<MemberId, MemberInfo>;

/// The step as this leader has seen it.
struct Watched {
    id: String,
    step: Step,
    since: Instant,
    attempts: Attempts,
}

impl Watched {
    fn new(plan: &Plan) -> Watched {
        Watched { id: plan.id.clone(), step: plan.step, since: Instant::now(), attempts: Attempts::default() }
    }
}

/// Carries plans on for as long as this member runs.
pub async fn run(inner: Arc<Inner>) {
    let mut watched: Option<Watched> = None;
    loop {
        let plan = match inner.known_switchover() {
            Ok(plan) => plan,
            Err(error @ NodeError::StorageFailed { .. }) => return inner.fail(error.to_string()),
            // A later program may have written it: whoever can read it carries it on.
            Err(_) => None,
        };
        inner.watch_end(plan.as_deref());
        let plan = plan.filter(|plan| !plan.step.is_over());
        let pause = if plan.is_some() { LOOK } else { IDLE };
        let view = inner.view();
        // In the moment in which it is elected a member leads that knows no leader yet.
        let leads = view.leads && view.leader.as_ref().is_some_and(|leader| leader.id == inner.id);
        match plan.filter(|_| leads) {
            None => {
                watched = None;
                *inner.switchover.waits.lock() = None;
            }
            Some(plan) => {
                let same = watched.take().filter(|seen| seen.id == plan.id && seen.step == plan.step);
                let watched = watched.insert(same.unwrap_or_else(|| Watched::new(&plan)));
                if let Err(error) = inner.carry_on(&plan, watched).await {
                    tracing::info!(step = %plan.step, %error, "the switchover does not get on");
                    *inner.switchover.waits.lock() = Some(error.to_string());
                }
            }
        }
        // Woken early or late: the next look shows what there is.
        let _ = tokio::time::timeout(pause, inner.switchover.woken.notified()).await;
        if inner.is_stopping() {
            return;
        }
    }
}

impl Inner {
    async fn carry_on(self: &Arc<Self>, plan: &Plan, watched: &mut Watched) -> Result<(), NodeError> {
        if let Err(why) = self.leads_with_quorum() {
            // Another may lead by now; and what is begun without a quorum nobody can end.
            *self.switchover.waits.lock() = Some(format!("a quorum to confirm the leader: {why}"));
            return Ok(());
        }
        if !self.has_applied_its_lead() {
            // The record may be older than the one in the log.
            *self.switchover.waits.lock() = Some("what earlier leaders have committed to be applied".to_owned());
            return Ok(());
        }
        let seen = self.see(plan, watched.since);
        let doing = next(plan, &seen);
        let target = &plan.target;
        let waits = match &doing {
            Next::Wait(what) => what.clone(),
            Next::AddVoter => format!("{} to become a voter", target.name),
            Next::HandOver => format!("{} to take the lead", target.name),
            Next::MoveVoters => format!("the voters of {} to be made", plan.to_site),
            Next::FinishJoint => {
                "a quorum of the old voters and one of the new: until both answer nothing can be written".to_owned()
            }
            Next::HandOn => format!("a voter of {} to take the lead", plan.to_site),
            Next::HandBack => format!("a voter of {} to take the lead", plan.from_site),
            Next::RemoveVoter => format!("{} to become a mirror again", target.name),
            Next::Begin(step) => format!("the step {step} to begin"),
            Next::GoBack(why) => why.clone(),
        };
        let moves_lead = matches!(doing, Next::HandOver | Next::HandOn | Next::HandBack);
        if let Some(pause) = watched.attempts.pause(Instant::now()).filter(|_| moves_lead) {
            let waits = format!("{waits}; the last attempt came to nothing, the next is due in {pause:.1?}");
            *self.switchover.waits.lock() = Some(waits);
            return Ok(());
        }
        *self.switchover.waits.lock() = Some(waits);
        let done = self.take_step(plan, doing, watched.attempts.are_many()).await;
        if moves_lead && done.is_err() {
            watched.attempts.failed(Instant::now());
        }
        done
    }

    async fn take_step(self: &Arc<Self>, plan: &Plan, doing: Next, tried_often: bool) -> Result<(), NodeError> {
        let target = &plan.target;
        match doing {
            Next::Wait(_) => Ok(()),
            Next::Begin(Step::Done) => self.end(plan, Step::Done).await,
            Next::Begin(Step::WentBack) => self.end(plan, Step::WentBack).await,
            Next::Begin(step) => self.begin_step(plan, step).await,
            Next::GoBack(why) => self.go_back(plan, why).await.map(drop),
            Next::AddVoter => {
                let voter = self.with_roles([(target.id, MemberRole::Voter)]);
                let add = vec![voter, ChangeMembers::AddVoterIds([target.id].into())];
                self.change_for(plan, ChangeMembers::Batch(add)).await?;
                reach("switchover-added").await;
                Ok(())
            }
            Next::RemoveVoter => {
                let mirror = self.with_roles([(target.id, MemberRole::Mirror)]);
                let remove = vec![mirror, ChangeMembers::RemoveVoters([target.id].into())];
                self.change_for(plan, ChangeMembers::Batch(remove)).await?;
                reach("switchover-removed").await;
                Ok(())
            }
            Next::HandOver => self.hand_over_for(plan).await,
            Next::HandOn => {
                // Raft would do the same by itself, after a while.
                let ctx = self.move_context();
                self.transfer_leader(&ctx, None, true).await.map(drop)
            }
            Next::HandBack => self.hand_back(plan, tried_often).await,
            Next::MoveVoters => self.begin_moving(plan).await,
            Next::FinishJoint => self.finish_moving(plan).await,
        }
    }

    /// What this member, which leads, sees of the plan.
    fn see(&self, plan: &Plan, since: Instant) -> Seen {
        let members = self.members_by_id();
        let figures = self.replication().members;
        let figure = |name: &str| figures.iter().find(|figure| figure.name == name);
        let target = &plan.target;
        let lost = LOST.max(self.election_max * 4);
        let silent = self.silent_for(target.id).unwrap_or_else(|| self.led_for());
        let target_lost = match (members.get(&target.id), figure(&target.name).map(|figure| figure.state)) {
            _ if target.id == self.id => None,
            (None, _) => Some("it is no member any more".to_owned()),
            (_, Some(state @ (MirrorState::Quarantined | MirrorState::Suspended))) => Some(format!("it is {state}")),
            _ if silent > lost => Some(format!("it has not answered for {:.1} s", silent.as_secs_f64())),
            _ => None,
        };
        let voters: Vec<MemberId> =
            plan.voters.iter().map(|member| member.id).filter(|id| members.contains_key(id)).collect();
        let quorum = plan.voters.len() / 2 + 1;
        let lacks = |id: &MemberId| (*id != self.id).then(|| self.lacks(*id)).flatten();
        let at_tip = voters.iter().filter(|id| lacks(id).is_none()).count();
        let there = voters.iter().filter(|id| **id == self.id || self.unfit(**id).is_none()).count();
        let some_lack = || voters.iter().find_map(lacks).unwrap_or_else(|| "some are away".to_owned());
        Seen {
            leader: self.id,
            voters: self.voter_sets(),
            target_is_voter: members.get(&target.id).is_some_and(|info| info.role == MemberRole::Voter),
            target_lost,
            lacks: lacks(&target.id).or_else(|| (at_tip < quorum).then(some_lack)),
            no_quorum: (there < quorum).then(|| format!("{there} of {} answer and have caught up", plan.voters.len())),
            step_age: age(since),
        }
    }

    /// What a member lacks to be at the tip; none when nothing that matters.
    fn lacks(&self, id: MemberId) -> Option<String> {
        let info = self.members_by_id().remove(&id)?;
        let name = &info.name;
        if !self.answers(id) {
            return Some(format!("{name} does not answer"));
        }
        let figures = self.replication().members;
        let figure = figures.iter().find(|figure| figure.name == *name)?;
        not_at_tip(figure, self.hold_limit())
    }

    async fn begin_step(&self, plan: &Plan, step: Step) -> Result<(), NodeError> {
        reach(match step {
            Step::AddingVoter => "switchover-caught-up",
            Step::HandingOver => "switchover-voter-seen",
            _ => "switchover-leading",
        })
        .await;
        tracing::info!(id = plan.id, step = %step, "the switchover gets on");
        let begun = Plan { step, step_ms: wall_ms(), ..plan.clone() };
        if self.write_plan(&begun).await? {
            let detail = format!("the switchover from {} to {} is at {step}", plan.from_site, plan.to_site);
            let event = NewEvent::new("switchover-step", detail).about(&plan.to_site);
            self.record_cluster_event(event.change(Some(plan.step.to_string()), step.as_str()));
            reach(match step {
                Step::AddingVoter => "switchover-adding-voter",
                Step::HandingOver => "switchover-handing-over",
                _ => "switchover-moving-voters",
            })
            .await;
            self.switchover.woken.notify_one();
        }
        Ok(())
    }

    /// These members with other roles.
    fn with_roles(&self, roles: impl IntoIterator<Item = (MemberId, MemberRole)>) -> Change {
        let members = self.members_by_id();
        let changed =
            roles.into_iter().filter_map(|(id, role)| Some((id, MemberInfo { role, ..members.get(&id)?.clone() })));
        ChangeMembers::SetNodes(changed.collect::<BTreeMap<_, _>>())
    }

    /// Changes the members if the plan is still as it was when the change was decided.
    async fn change_for(&self, plan: &Plan, change: Change) -> Result<(), NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        if self.store.records().switchover != plan.written {
            return Ok(());
        }
        let done = self.change(change, true).await;
        self.switchover.woken.notify_one();
        done
    }

    /// The time that one attempt to move the lead may take.
    fn move_context(&self) -> RequestContext {
        RequestContext::anonymous(0, self.election_max * 6)
    }

    /// Whether the record is another by now, for one who holds writes: an abort came before them, and none can come while
    /// they are held, because its record would wait with them.
    fn is_rewritten(&self, plan: &Plan) -> bool {
        let rewritten = self.store.records().switchover != plan.written;
        if rewritten {
            tracing::info!(id = plan.id, "the switchover was changed before the lead moved: it stays");
            self.switchover.woken.notify_one();
        }
        rewritten
    }

    /// Hands the lead to the target, and tells the new leader how long no write was taken.
    pub(super) async fn hand_over_for(self: &Arc<Self>, plan: &Plan) -> Result<(), NodeError> {
        let target = &plan.target;
        self.events.wait_written(EVENTS_WAIT).await;
        let ctx = self.move_context();
        let (held, since) = self.hold_writes(&ctx, target.id, &target.name).await?;
        if self.is_rewritten(plan) {
            return Ok(());
        }
        reach("switchover-held").await;
        let term = self.view().term;
        let moved = self.pass_lead(&ctx, target.id, target.name.clone(), held).await;
        if moved.is_ok() {
            let (inner, id) = (self.clone(), plan.id.clone());
            tokio::spawn(async move { inner.tell_pause(id, term, since).await });
        }
        moved.map(drop)
    }

    /// By one clock: from when the last write was answered here until the first entry of the new leader is known here to be
    /// committed.
    async fn tell_pause(&self, id: String, term: u64, since: Instant) {
        let mut applied = self.applied.clone();
        let first = applied.wait_for(|applied| applied.is_some_and(|applied| applied.term > term));
        if !matches!(tokio::time::timeout(TELL, first).await, Ok(Ok(_))) {
            return;
        }
        let pause_ms = (since.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        tracing::info!(id, pause_ms, "the lead has moved");
        let ctx = RequestContext::anonymous(0, TELL);
        let paused = MembersRequest::Switchover(Ask::Paused { id, pause_ms });
        if let Err(error) = self.ask_members(&ctx, paused, false).await {
            tracing::info!(%error, "the measured pause could not be told");
        }
    }

    /// Hands the lead to the best voter that is not of the new site; if `anyway`, also when it is not close to the tip.
    pub(super) async fn hand_back(&self, plan: &Plan, anyway: bool) -> Result<(), NodeError> {
        let new: BTreeSet<MemberId> = plan.voters.iter().map(|member| member.id).collect();
        let fit = |id: MemberId| self.unfit(id).is_none() && (anyway || self.lacks(id).is_none());
        let voters = self.target_voters().into_iter().filter(|id| !new.contains(id) && fit(*id));
        let best = voters.max_by_key(|id| self.matched_index(*id));
        let info = best.and_then(|id| Some((id, self.members_by_id().remove(&id)?)));
        let Some((id, info)) = info else {
            return Err(NodeError::NotAtTip {
                name: format!("no voter of {}", plan.from_site),
                detail: "none answers and is close to the tip".into(),
            });
        };
        let ctx = self.move_context();
        let (held, _) = self.hold_writes(&ctx, id, &info.name).await?;
        if self.is_rewritten(plan) {
            return Ok(());
        }
        self.pass_lead(&ctx, id, info.name, held).await.map(drop)
    }

    /// Begins the joint change: from its entry on the roles are those of afterwards, and any leader can end it.
    async fn begin_moving(&self, plan: &Plan) -> Result<(), NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        if self.store.records().switchover != plan.written {
            return Ok(());
        }
        let members = self.members_by_id();
        let voters: BTreeSet<MemberId> =
            plan.voters.iter().map(|member| member.id).filter(|id| members.contains_key(id)).collect();
        // From the first entry on nothing is written without a quorum of them, and there is no way back: that they answered
        // a moment ago is not enough.
        let there = self.who_answers(&voters).await.len();
        if there <= plan.voters.len() / 2 {
            let detail = format!("{there} of the {} members of {} answer now", plan.voters.len(), plan.to_site);
            return Err(NodeError::NotNow { detail });
        }
        reach("switchover-voters-answer").await;
        let concerned = self.target_voters().into_iter().chain(voters.iter().copied());
        let roles = self.with_roles(concerned.map(|id| (id, plan.role_of(id))));
        let moved = ChangeMembers::Batch(vec![roles, ChangeMembers::ReplaceAllVoters(voters)]);
        let mut metrics = self.raft.server_metrics();
        let joint = async {
            while metrics.borrow_watched().membership_config.membership().get_joint_config().len() < 2 {
                if metrics.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let deadline = Instant::now() + self.limits.request_timeout;
        tokio::select! {
            biased;
            // Its first entry is in the log: the rest is the next look's, as it would be another leader's.
            () = joint => {}
            done = self.change_once(moved, true, deadline) => done?,
        }
        self.switchover.woken.notify_one();
        Ok(())
    }

    /// Ends a joint change as soon as it is committed.
    async fn finish_moving(&self, plan: &Plan) -> Result<(), NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        let deadline = Instant::now() + self.limits.request_timeout;
        self.wait_membership_committed(deadline).await?;
        let moves = plan.step == Step::MovingVoters;
        if moves {
            reach("switchover-joint").await;
        }
        self.finish_joint(deadline).await?;
        if moves {
            reach("switchover-moved").await;
        }
        self.switchover.woken.notify_one();
        Ok(())
    }

    /// Writes down how it ended.
    async fn end(&self, plan: &Plan, step: Step) -> Result<(), NodeError> {
        let now = wall_ms();
        // It may have been on its way back when the change of the voters turned out to be done.
        let back = plan.back.clone().filter(|_| step == Step::WentBack);
        let ended = Plan { step, step_ms: now, ended_ms: Some(now), back, ..plan.clone() };
        if !self.write_plan(&ended).await? {
            return Ok(());
        }
        self.tell_end(&ended);
        reach("switchover-ended").await;
        Ok(())
    }

    /// Looks at the record as it is now: one that was seen under way and is over is told as an event by whoever leads. So
    /// the event is there also when the answer to the writing of the record was lost, or its writer.
    pub(super) fn watch_end(&self, plan: Option<&Plan>) {
        let Some(plan) = plan else { return };
        if !plan.step.is_over() {
            *self.switchover.open.lock() = Some(plan.id.clone());
        } else if self.switchover.open.lock().as_ref() == Some(&plan.id) {
            if self.events.has(&plan.id) {
                *self.switchover.open.lock() = None;
            } else if self.view().leads && self.has_applied_its_lead() {
                self.tell_end(plan);
            }
        }
    }

    /// Records how it ended, unless this member has done that. The event has the id of the plan, so nobody takes it for two if two leaders tell it.
    fn tell_end(&self, plan: &Plan) {
        {
            let mut open = self.switchover.open.lock();
            if open.as_ref() != Some(&plan.id) {
                return;
            }
            *open = None;
        }
        let Plan { from_site, to_site, .. } = plan;
        let seconds = plan.ended_ms.unwrap_or(plan.step_ms).saturating_sub(plan.began_ms) as f64 / 1000.0;
        let event = if plan.step == Step::Done {
            tracing::info!(id = plan.id, to_site, "the primary site has moved");
            let pause = plan.pause_ms.map_or("an unknown time".to_owned(), |ms| format!("{ms:.0} ms"));
            let detail =
                format!("{to_site} is the primary site after {seconds:.1} s, writes paused for {pause}{}", plan.who());
            NewEvent::new("switchover-done", detail).change(Some(from_site.clone()), to_site)
        } else {
            tracing::warn!(id = plan.id, from_site, "the primary site stays where it was");
            let why = plan.back.as_deref().unwrap_or("it could not be done");
            let detail = format!("{from_site} stays the primary site, after {seconds:.1} s: {why}");
            NewEvent::new("switchover-went-back", detail).change(Some(to_site.clone()), from_site)
        };
        self.record_cluster_event(event.about(to_site).with_id(&plan.id));
    }
}

/// What a member lacks to be at the tip, for one that may get the lead: the queue to it and the one inside it must be short,
/// and what is on its way must be there within half of the time for which writes may be held.
fn not_at_tip(figure: &MemberReplication, hold: Duration) -> Option<String> {
    let (send, redo) = (figure.send_queue, figure.redo_queue.unwrap_or(Queue::EMPTY));
    let way = 2.0 * figure.round_trip_seconds.unwrap_or(0.0);
    let (name, entries) = (&figure.name, send.entries + redo.entries);
    let Some((oldest, waits)) = send.oldest_seconds.zip(redo.oldest_seconds) else {
        return Some(format!("{name} lacks {entries} entries, of which nobody knows how old they are"));
    };
    let behind = oldest.max(waits) - way;
    if entries > PROMOTE_BEHIND_ENTRIES && behind > AT_TIP.as_secs_f64() {
        return Some(format!("{name} lacks {entries} entries"));
    }
    // What is older than the way has waited for its turn, and so will what comes last.
    let rate = figure.received_per_second;
    let by_rate = (send.entries > PROMOTE_BEHIND_ENTRIES && rate > 0.0).then(|| send.entries as f64 / rate);
    let drains = behind.max(by_rate.unwrap_or(0.0));
    (drains > hold.as_secs_f64() / 2.0).then(|| format!("{name} needs {drains:.1} s for what is on its way to it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(send: Queue, redo: Queue, received_per_second: f64) -> MemberReplication {
        let text = concat!(
            r#"{"name":"n4","site":"west","role":"mirror","leader":false,"state":"SYNCHRONIZED","state_seconds":2.5,"#,
            r#""send_queue":{"entries":0,"bytes":0,"oldest_seconds":0.0},"redo_queue":null,"lag_seconds":null,"#,
            r#""round_trip_seconds":0.05,"last_contact_seconds":null,"hash_agreed_revision":null,"applied_index":null,"#,
            r#""received_index":null,"received_per_second":0.0,"catch_up_seconds":null,"catch_up_by":"log","#,
            r#""canary_seconds":null}"#,
        );
        let figure: MemberReplication = serde_json::from_str(text).unwrap();
        MemberReplication { send_queue: send, redo_queue: Some(redo), received_per_second, ..figure }
    }

    #[test]
    fn what_cannot_be_there_in_time_is_seen_before_writes_are_held() {
        let hold = Duration::from_secs(2);
        let queue =
            |entries, oldest_seconds| Queue { entries, bytes: entries * 10, oldest_seconds: Some(oldest_seconds) };
        let none = Queue::EMPTY;
        let unknown = Queue { entries: 4, oldest_seconds: None, ..none };
        for (send, redo, rate, says) in [
            (none, none, 0.0, None),
            // On its way, as always under load; and a few that wait.
            (queue(5000, 0.15), none, 20_000.0, None),
            (queue(100, 0.9), none, 0.0, None),
            // What waits inside it counts like what waits before it.
            (queue(101, 0.3), none, 1e6, Some("lacks 101 entries")),
            (none, queue(101, 0.3), 1e6, Some("lacks 101 entries")),
            (queue(60, 0.0), queue(60, 0.3), 1e6, Some("lacks 120 entries")),
            // Few, but large on a slow link; and many that have only just come.
            (queue(3, 1.2), none, 0.0, Some("needs 1.1 s")),
            (queue(5000, 0.01), none, 1000.0, Some("needs 5.0 s")),
            (unknown, none, 1e6, Some("lacks 4 entries, of which nobody knows how old they are")),
            (none, unknown, 1e6, Some("lacks 4 entries, of which nobody knows how old they are")),
        ] {
            let found = not_at_tip(&figure(send, redo, rate), hold);
            match (says, &found) {
                (None, None) => {}
                (Some(says), Some(why)) if why.contains(says) => {}
                _ => panic!("{send:?} {redo:?} {rate}: {found:?}, not {says:?}"),
            }
        }
    }
}

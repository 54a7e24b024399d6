//! What comes next in a switchover: the plan and what a leader sees make the next thing to do. Nothing here asks anybody.
//!
//! ```text
//!   catching-up ──> adding-voter ──> handing-over ──> moving-voters ──> done
//!        │               │                │  └ the lead has moved ┘
//!        └───────────────┴───────┬────────┘        (only while no joint change has begun and it cannot)
//!                            going-back <─────────────────┘
//!                                └──> went-back
//! ```
//!
//! The record says what is meant, the membership says how far it is: every step looks at the membership first, so a leader
//! that finds the record a step behind does nothing twice. Whoever leads asks this again and again; all that it answers may
//! be done again after a crash.
//!
//! Invariants, which the tests below go through by simulating every order of deaths that is worth telling apart:
//! - It ends with the voters in one site and the lead in that site.
//! - A joint change that has begun is always finished first.
//! - It goes back only while the old voters are the majority of what decides.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Plan;
use crate::api::SwitchoverStep as Step;
use crate::model::MemberId;

/// The mirrors may take so long to catch up.
pub const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
/// So long to make one of them a voter, to hand the lead over, or to wait for a quorum of them.
pub const STEP_LIMIT: Duration = Duration::from_secs(20);
/// So long a leader of the old site waits for the others of the new one when the target is lost. Shorter, because as long as
/// the target has a vote a write needs one old voter more.
pub const MATES_LIMIT: Duration = Duration::from_secs(10);
/// So long the measured pause is waited for at the end.
pub const PAUSE_WAIT: Duration = Duration::from_secs(1);

/// After a first attempt to move the lead that came to nothing, nothing is tried for so long; each time twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// But never longer than this.
const PAUSE_LAST: Duration = Duration::from_secs(5);
/// After so many attempts a member of the old site gets the lead back although it lags: writes are held as long as may be.
const PATIENT_ATTEMPTS: u32 = 6;

/// The attempts to move the lead that came to nothing in this step. Writes are held during each, so they must be rare.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    failed: u32,
    last: Option<Instant>,
}

impl Attempts {
    /// One came to nothing.
    pub fn failed(&mut self, now: Instant) {
        self.failed = self.failed.saturating_add(1);
        self.last = Some(now);
    }

    /// How long the next has to wait; none when it need not.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        let doubled = 1u32.checked_shl(self.failed.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = PAUSE_FIRST.saturating_mul(doubled).min(PAUSE_LAST);
        (self.last? + pause).checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Whether enough was tried with care.
    pub fn are_many(&self) -> bool {
        self.failed >= PATIENT_ATTEMPTS
    }
}

/// What the member that leads sees.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Who it is.
    pub leader: MemberId,
    /// The sets of voters: two while a joint change goes on.
    pub voters: Vec<BTreeSet<MemberId>>,
    /// The target's role in the membership is that of a voter.
    pub target_is_voter: bool,
    /// Why the target cannot take over any more; none while it can.
    pub target_lost: Option<String>,
    /// What the target and a quorum of the new voters lack to be at the tip; none when nothing.
    pub lacks: Option<String>,
    /// Why no quorum of the new voters is there; none when there is one.
    pub no_quorum: Option<String>,
    /// For how long this leader has seen this step.
    pub step_age: Duration,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing but to look again: it waits for this.
    Wait(String),
    /// Write down that this step begins.
    Begin(Step),
    /// Make the target a voter.
    AddVoter,
    /// Hand the lead to the target.
    HandOver,
    /// Begin the joint change to the new voters.
    MoveVoters,
    /// End the joint change.
    FinishJoint,
    /// Write down that it goes back, and why.
    GoBack(String),
    /// Hand the lead to any voter: this member has no vote any more.
    HandOn,
    /// Hand the lead to a voter of the old site.
    HandBack,
    /// Make the target a mirror again.
    RemoveVoter,
}

/// The next thing to do for the member that leads.
pub fn next(plan: &Plan, seen: &Seen) -> Next {
    if plan.step.is_over() {
        return Next::Wait("nothing".to_owned());
    }
    let [voters] = &seen.voters[..] else {
        // Whatever it was for: until it ends both sets are needed for everything.
        return Next::FinishJoint;
    };
    let new: BTreeSet<MemberId> = plan.voters.iter().map(|member| member.id).collect();
    let old = voters.iter().any(|id| !new.contains(id));
    let leads_new = new.contains(&seen.leader);
    if !old {
        return match (leads_new, plan.pause_ms) {
            (false, _) => Next::HandOn,
            (true, None) if seen.step_age < PAUSE_WAIT && plan.step == Step::MovingVoters => {
                Next::Wait("the pause to be told".to_owned())
            }
            (true, _) => Next::Begin(Step::Done),
        };
    }
    if plan.step == Step::GoingBack {
        return match (leads_new, voters.contains(&plan.target.id) || seen.target_is_voter) {
            (true, _) => Next::HandBack,
            (false, true) => Next::RemoveVoter,
            (false, false) => Next::Begin(Step::WentBack),
        };
    }
    forward(plan, seen, voters, leads_new)
}

/// The next thing while the voters are still those of the old site, with or without the target.
fn forward(plan: &Plan, seen: &Seen, voters: &BTreeSet<MemberId>, leads_new: bool) -> Next {
    let target = &plan.target.name;
    let late = |limit: Duration, what: &str| {
        (seen.step_age >= limit).then(|| Next::GoBack(format!("{what} within {} s", limit.as_secs())))
    };
    if leads_new {
        return match (plan.step, &seen.no_quorum) {
            (Step::CatchingUp | Step::AddingVoter | Step::HandingOver, _) => Next::Begin(Step::MovingVoters),
            (_, None) => Next::MoveVoters,
            (_, Some(why)) => late(STEP_LIMIT, &format!("no quorum of {} ({why})", plan.to_site))
                .unwrap_or_else(|| Next::Wait(format!("a quorum of {}: {why}", plan.to_site))),
        };
    }
    if let Some(why) = &seen.target_lost {
        return match (plan.step, &seen.no_quorum) {
            // The lead was there already, and came back by an election: the others of that site can do without it.
            (Step::MovingVoters, None) => Next::MoveVoters,
            // They may only be slow to be heard of again.
            (Step::MovingVoters, Some(others)) => {
                late(MATES_LIMIT, &format!("{target} was lost ({why}), and no quorum came ({others})")).unwrap_or_else(
                    || Next::Wait(format!("a quorum of {}: {others}; {target} is lost: {why}", plan.to_site)),
                )
            }
            _ => Next::GoBack(format!("{target} was lost: {why}")),
        };
    }
    match plan.step {
        Step::CatchingUp => match &seen.lacks {
            None => Next::Begin(Step::AddingVoter),
            Some(lacks) => late(CATCH_UP_LIMIT, &format!("{} did not catch up", plan.to_site))
                .unwrap_or_else(|| Next::Wait(format!("{} to catch up: {lacks}", plan.to_site))),
        },
        Step::AddingVoter if voters.contains(&plan.target.id) => Next::Begin(Step::HandingOver),
        Step::AddingVoter => late(STEP_LIMIT, &format!("{target} did not become a voter")).unwrap_or(Next::AddVoter),
        _ if !voters.contains(&plan.target.id) => Next::AddVoter,
        _ => late(STEP_LIMIT, &format!("the lead did not move to {target}")).unwrap_or_else(|| match &seen.lacks {
            None => Next::HandOver,
            Some(lacks) => Next::Wait(format!("{target} to be at the tip: {lacks}")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Planned;
    use super::*;

    /// Three voters in the old site (1 to 3), mirrors in the new one (4 to 6), of which 4 is the target.
    fn plan(step: Step) -> Plan {
        let member = |id: MemberId| Planned { id, name: format!("n{id}") };
        Plan {
            id: "x".into(),
            from_site: "east".into(),
            to_site: "west".into(),
            target: member(4),
            voters: vec![member(4), member(5), member(6)],
            mirrors: vec![member(1), member(2), member(3)],
            step,
            began_ms: 0,
            step_ms: 0,
            by: None,
            reason: None,
            back: None,
            pause_ms: None,
            ended_ms: None,
            written: 1,
        }
    }

    fn seen(leader: MemberId, voters: &[&[MemberId]]) -> Seen {
        let voters: Vec<BTreeSet<MemberId>> = voters.iter().map(|set| set.iter().copied().collect()).collect();
        let target_is_voter = voters.iter().any(|set| set.contains(&4));
        Seen {
            leader,
            voters,
            target_is_voter,
            target_lost: None,
            lacks: None,
            no_quorum: None,
            step_age: Duration::ZERO,
        }
    }

    const OLD: &[MemberId] = &[1, 2, 3];
    const WITH: &[MemberId] = &[1, 2, 3, 4];
    const NEW: &[MemberId] = &[4, 5, 6];

    fn is_back(next: Next) -> bool {
        matches!(next, Next::GoBack(_))
    }

    #[test]
    fn the_way_when_nothing_goes_wrong() {
        for (step, leader, voters, then) in [
            (Step::CatchingUp, 1, OLD, Next::Begin(Step::AddingVoter)),
            (Step::AddingVoter, 1, OLD, Next::AddVoter),
            (Step::AddingVoter, 1, WITH, Next::Begin(Step::HandingOver)),
            (Step::HandingOver, 1, WITH, Next::HandOver),
            (Step::HandingOver, 4, WITH, Next::Begin(Step::MovingVoters)),
            (Step::MovingVoters, 4, WITH, Next::MoveVoters),
        ] {
            assert_eq!(next(&plan(step), &seen(leader, &[voters])), then, "{step} {leader}");
        }
        assert_eq!(next(&plan(Step::MovingVoters), &seen(4, &[WITH, NEW])), Next::FinishJoint);
        let told = Plan { pause_ms: Some(20.0), ..plan(Step::MovingVoters) };
        assert_eq!(next(&told, &seen(4, &[NEW])), Next::Begin(Step::Done));
        assert!(matches!(next(&plan(Step::MovingVoters), &seen(4, &[NEW])), Next::Wait(_)), "the pause is on its way");
        let late = Seen { step_age: PAUSE_WAIT, ..seen(4, &[NEW]) };
        assert_eq!(next(&plan(Step::MovingVoters), &late), Next::Begin(Step::Done), "whoever measured it was lost");
        for step in [Step::Done, Step::WentBack] {
            assert!(matches!(next(&plan(step), &seen(1, &[OLD])), Next::Wait(_)));
        }
    }

    #[test]
    fn a_joint_change_is_finished_whatever_it_was_for() {
        for step in Step::ALL.into_iter().filter(|step| !step.is_over()) {
            for joint in [[OLD, WITH], [WITH, OLD], [WITH, NEW]] {
                for leader in [1, 4] {
                    let lost = Some("dead".to_owned());
                    let seen = Seen { target_lost: lost, step_age: CATCH_UP_LIMIT, ..seen(leader, &joint) };
                    assert_eq!(next(&plan(step), &seen), Next::FinishJoint, "{step} {leader}");
                }
            }
        }
    }

    #[test]
    fn without_the_target_it_goes_back_until_the_lead_was_there() {
        let lost = |leader, voters| Seen { target_lost: Some("dead".into()), ..seen(leader, &[voters]) };
        for step in [Step::CatchingUp, Step::AddingVoter, Step::HandingOver] {
            for voters in [OLD, WITH] {
                assert!(is_back(next(&plan(step), &lost(2, voters))), "{step}");
            }
        }
        // The lead was there and an election brought it back: the site's others are enough.
        assert_eq!(next(&plan(Step::MovingVoters), &lost(2, WITH)), Next::MoveVoters);
        let nobody = Seen { no_quorum: Some("n5 is away".into()), ..lost(2, WITH) };
        assert!(matches!(next(&plan(Step::MovingVoters), &nobody), Next::Wait(_)), "they may be heard of again");
        let late = Seen { step_age: MATES_LIMIT, ..nobody };
        assert!(is_back(next(&plan(Step::MovingVoters), &late)));
    }

    #[test]
    fn the_way_back() {
        let back = plan(Step::GoingBack);
        assert_eq!(next(&back, &seen(4, &[WITH])), Next::HandBack);
        assert_eq!(next(&back, &seen(1, &[WITH])), Next::RemoveVoter);
        assert_eq!(next(&back, &seen(1, &[OLD])), Next::Begin(Step::WentBack));
        // What was decided by the joint change before is not taken back.
        assert_eq!(next(&back, &seen(4, &[NEW])), Next::Begin(Step::Done));
    }

    #[test]
    fn attempts_that_come_to_nothing_are_made_less_and_less_often() {
        let now = Instant::now();
        let mut attempts = Attempts::default();
        assert_eq!(attempts.pause(now), None);
        for ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert_eq!(attempts.are_many(), ms >= 5000);
            attempts.failed(now);
            let last = Duration::from_millis(ms);
            assert_eq!(attempts.pause(now), Some(last));
            assert_eq!((attempts.pause(now + last / 2), attempts.pause(now + last)), (Some(last / 2), None));
        }
        (0..100).for_each(|_| attempts.failed(now));
        assert_eq!(attempts.pause(now), Some(PAUSE_LAST));
    }

    #[test]
    fn each_step_has_its_time() {
        let at = |step, limit: Duration, seen: Seen| {
            let before = Seen { step_age: limit - Duration::from_millis(1), ..seen.clone() };
            assert!(!is_back(next(&plan(step), &before)), "{step} before its time");
            assert!(is_back(next(&plan(step), &Seen { step_age: limit, ..seen })), "{step} at its time");
        };
        let behind = |voters| Seen { lacks: Some("n4 lacks 5000 entries".into()), ..seen(1, &[voters]) };
        at(Step::CatchingUp, CATCH_UP_LIMIT, behind(OLD));
        at(Step::AddingVoter, STEP_LIMIT, seen(1, &[OLD]));
        at(Step::HandingOver, STEP_LIMIT, seen(1, &[WITH]));
        at(Step::HandingOver, STEP_LIMIT, behind(WITH));
        at(Step::MovingVoters, STEP_LIMIT, Seen { no_quorum: Some("n5 is away".into()), ..seen(4, &[WITH]) });
        at(Step::MovingVoters, STEP_LIMIT, seen(1, &[WITH]));
    }

    #[test]
    fn a_leader_that_finds_the_record_a_step_behind_does_nothing_twice() {
        // The target was elected before anybody had written down that it shall be.
        for step in [Step::CatchingUp, Step::AddingVoter] {
            assert_eq!(next(&plan(step), &seen(4, &[WITH])), Next::Begin(Step::MovingVoters));
        }
        // The voters have moved, and the leader that did it died before it could say so; an old voter, which has no vote any
        // more, may lead for a moment.
        assert_eq!(next(&plan(Step::MovingVoters), &seen(1, &[NEW])), Next::HandOn);
        let late = |step| next(&plan(step), &Seen { step_age: PAUSE_WAIT, ..seen(5, &[NEW]) });
        assert_eq!(late(Step::MovingVoters), Next::Begin(Step::Done));
        assert_eq!(late(Step::HandingOver), Next::Begin(Step::Done));
        // The added voter was lost to the record.
        assert_eq!(next(&plan(Step::HandingOver), &seen(1, &[OLD])), Next::AddVoter);
    }

    /// Every order of what may happen: at each look the lead is with any of the voters, the target may be lost for good,
    /// and the new site may have no quorum for a while. It always ends, with the voters and the lead in one site.
    #[test]
    fn it_ends_in_one_site_whatever_happens() {
        for script in 0..4096u32 {
            let mut plan = plan(Step::CatchingUp);
            let mut voters = vec![OLD.to_vec()];
            let mut leader = 1;
            let (mut lost, mut age) = (false, Duration::ZERO);
            let mut bits = script;
            let mut rounds = 0;
            while !plan.step.is_over() {
                rounds += 1;
                assert!(rounds < 100, "script {script} does not end: {plan:?} {voters:?} {leader}");
                let event = bits & 7;
                bits >>= 3;
                let decides: Vec<MemberId> =
                    voters.iter().flatten().copied().filter(|id| !(lost && *id == 4)).collect();
                match event {
                    1 => leader = decides[decides.len() - 1],
                    2 => leader = decides[0],
                    3 => {
                        lost = true;
                        let other = decides.iter().copied().find(|id| *id != 4);
                        leader = if leader == 4 { other.unwrap() } else { leader };
                    }
                    4 => age += STEP_LIMIT,
                    _ => {}
                }
                let sets: Vec<&[MemberId]> = voters.iter().map(Vec::as_slice).collect();
                let seen = Seen {
                    target_lost: lost.then(|| "dead".to_owned()),
                    no_quorum: (event == 5).then(|| "n5 is away".to_owned()),
                    step_age: age,
                    ..seen(leader, &sets)
                };
                age += PAUSE_WAIT;
                let begun = |plan: &mut Plan, step: Step, age: &mut Duration| {
                    plan.step = step;
                    *age = Duration::ZERO;
                };
                match next(&plan, &seen) {
                    Next::HandOn => leader = if lost { 5 } else { 4 },
                    Next::Wait(_) => {}
                    Next::Begin(step) => begun(&mut plan, step, &mut age),
                    Next::GoBack(_) => begun(&mut plan, Step::GoingBack, &mut age),
                    Next::AddVoter => voters = vec![OLD.to_vec(), WITH.to_vec()],
                    Next::RemoveVoter => voters = vec![WITH.to_vec(), OLD.to_vec()],
                    Next::MoveVoters => voters.push(NEW.to_vec()),
                    Next::FinishJoint => voters = vec![voters.pop().unwrap()],
                    Next::HandOver => leader = if lost { leader } else { 4 },
                    Next::HandBack => leader = 1,
                }
            }
            let [last] = &voters[..] else { panic!("script {script} ends amid a joint change") };
            assert!(last == OLD || last == NEW, "script {script}: {last:?}");
            assert!(last.contains(&leader), "script {script}: {leader} leads {last:?}");
            assert_eq!(last == NEW, plan.step == Step::Done, "script {script}");
        }
    }
}

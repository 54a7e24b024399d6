//! What the plan says after a forced failover: who has not come home, which of two forced sites to choose, and the way back
//! to the old site; and what a member says that does not serve: it is promoted, is repaired, joins, or is just opened.
//!
//! Place: [`crate::node`]'s `/v1/dr` puts these steps together with those about mirrors. Each step is one command, says whom
//! it is asked of, and what it loses, if it loses anything. Nothing here changes anything.
//!
//! Proven by the tests below, by `tests/dr/failover.rs`, and by hand with `examples/dr_drill.sh`.

use super::Promotion;
use super::kin::{Away, AwayStanding, Kin, Place};
use crate::api::{DrReply, Objectives, PlanStep};
use crate::model::{MemberRole, TimelineId};
use crate::node::quarantine::Quarantine;
use crate::node::{Inner, NodeError};
use crate::raft::types::MemberInfo;

/// A step of a plan.
pub fn step(why: impl Into<String>, command: impl Into<String>) -> PlanStep {
    PlanStep { why: why.into(), command: command.into() }
}

impl Inner {
    /// What to do about another site that was forced from the same parent; nothing when there is none.
    pub(in crate::node) fn steps_of_split(&self) -> Vec<PlanStep> {
        let Some(mut theirs) = self.split() else { return Vec::new() };
        let here = self.answering_names();
        theirs.members.retain(|member| !here.contains(&member.name));
        let gone = |name: &String| !here.contains(name) && theirs.members.iter().any(|member| member.name == *name);
        let members = self.members_by_id().into_values().filter(|info| !gone(&info.name));
        let places =
            members.map(|info| Place { name: info.name, peer_url: info.peer_url, client_url: info.client_url });
        let mut ours: Vec<Place> = places.collect();
        ours.sort_by(|a, b| a.name.cmp(&b.name));
        split_steps((&self.branch_site(), self.http.identity().timeline(), &ours), &theirs)
    }

    /// The split in a sentence.
    pub(in crate::node) fn warning_of_split(&self) -> Option<String> {
        let theirs = self.split()?;
        Some(format!("SPLIT: site {} was forced too, from the same parent: two primaries", theirs.site))
    }

    /// Who of the parents' members has not come home; members of a site that was forced too are not asked to.
    pub(in crate::node) fn away(&self) -> Vec<Away> {
        let theirs = self.split().map(|theirs| theirs.members).unwrap_or_default();
        let mut away = self.parted();
        away.retain(|away| theirs.iter().all(|other| other.name != away.place.name));
        away
    }

    /// The site that had the voters before this one was forced, as long as the service has not gone home; none when it
    /// was never forced, or by what was left of the site itself.
    pub(in crate::node) fn old_site(&self, primary_site: Option<&str>) -> Option<String> {
        let fork = self.forks().ok()?.pop()?;
        if fork.survivor || primary_site != Some(fork.site.as_str()) {
            return None;
        }
        let voter = |old: &&super::promote::OldMember| old.role == MemberRole::Voter && old.site != fork.site;
        fork.members.iter().find(voter).map(|old| old.site.clone())
    }
}

/// The commands of a choice between two sites, of which each would give up what the other one wrote.
fn split_steps((site, timeline, members): (&str, TimelineId, &[Place]), theirs: &Kin) -> Vec<PlanStep> {
    let their_timeline = theirs.timelines.last().map(|timeline| timeline.id).unwrap_or_default();
    let choice = |keep: &str, give_up: &str, timeline: TimelineId, members: &[Place]| {
        let steps = members.iter().map(|member| {
            step(
                format!(
                    "two sites were forced from one parent, and both serve. To keep {keep} and give up {give_up}, on every \
                     member of {give_up}; here {}. What {give_up} wrote since the fork goes into salvage files",
                    member.name
                ),
                format!("lifeboat dr rejoin --abandon-timeline {timeline} --endpoints {}", member.client_url),
            )
        });
        steps.collect::<Vec<_>>()
    };
    let mut steps = choice(site, &theirs.site, their_timeline, &theirs.members);
    steps.extend(choice(&theirs.site, site, timeline, members));
    steps
}

/// What to do about a member that has not come home.
pub fn step_of_away(away: &Away) -> PlanStep {
    let Away { place: Place { name, client_url, .. }, by_itself, standing, .. } = away;
    let look = format!("lifeboat dr plan --endpoints {client_url}");
    let rejoin = format!("lifeboat dr rejoin --endpoints {client_url}");
    match (standing, by_itself) {
        (AwayStanding::ComesHome, _) => step(
            format!("{name} comes home: it writes down what only it has, and joins as a mirror then; this shows it"),
            look,
        ),
        (AwayStanding::Silent, true) => {
            step(format!("{name} does not answer: start it, or mend the link, and it comes home by itself"), look)
        }
        (_, true) => step(format!("{name} comes home by itself in a moment; this shows it"), look),
        (AwayStanding::Silent, false) => step(
            format!(
                "{name} has not come home since the failover, and does not answer: start it (or, if its disk is gone, an \
                 empty one of its name with --join); it is fenced then, and waits for"
            ),
            rejoin,
        ),
        (AwayStanding::Answers | AwayStanding::Fenced, false) => step(
            format!(
                "{name} has not come home since the failover: it is fenced and waits. Nothing is lost: what only it has \
                 goes into a salvage file first"
            ),
            rejoin,
        ),
    }
}

/// What else there is to do about a member that does not answer.
pub fn step_of_forgetting(Away { place: Place { name, .. }, standing, .. }: &Away) -> Option<PlanStep> {
    (*standing == AwayStanding::Silent).then(|| {
        step(
            format!(
                "or, if {name} and what only it had are gone for good: wait for it no more. Should it come back after all, \
                 it is fenced as before, and may rejoin"
            ),
            format!("lifeboat members remove {name}"),
        )
    })
}

/// Why a member does not serve.
pub enum Waits<'a> {
    /// Its history is repaired first.
    Repairs(&'a Quarantine),
    /// It begins a timeline.
    Promoted(&'a Promotion),
    /// It asks to be taken into a cluster: whom, or what it waits for.
    Joins(&'a str),
    /// Its data are opened.
    Opens,
}

impl Waits<'_> {
    /// What is said of the member, and the step.
    pub fn step(&self, MemberInfo { name, client_url, .. }: &MemberInfo) -> (String, PlanStep) {
        let look = |why: String| step(why, format!("lifeboat dr plan --endpoints {client_url}"));
        match self {
            Waits::Repairs(quarantine) => (
                format!("{name}: {}", quarantine.error()),
                look(format!(
                    "{name} repairs itself: it sets the damaged history aside, keeps what is proven of it, and takes the rest \
                     from another member; it needs one that runs. Nothing is lost by it. This shows when it serves again"
                )),
            ),
            Waits::Promoted(Promotion { id, fork, .. }) => (
                format!("{name} is being promoted: it begins timeline {id}, and {}", fork.loss.words()),
                look(format!(
                    "{name} was ordered to go on with site {} by {}: it serves in a moment, alone if it must, also when it \
                     dies and is started again. No second order is needed, and one to another member could lose more or \
                     split the site. This shows when it serves",
                    fork.site,
                    if fork.by.is_empty() { "somebody" } else { &fork.by }
                )),
            ),
            Waits::Joins(what) => (
                format!("{name} belongs to no cluster yet: {what}"),
                look(format!("{name} joins by itself once it is answered. This shows when it has")),
            ),
            Waits::Opens => (
                format!("{name} opens its data"),
                look(format!("{name} serves when its data are open. This shows when they are")),
            ),
        }
    }

    /// What whoever asks for anything else is told.
    pub fn error(&self, info: &MemberInfo) -> NodeError {
        match self {
            Waits::Repairs(quarantine) => quarantine.error(),
            Waits::Joins(_) => NodeError::NotJoined,
            Waits::Promoted(_) | Waits::Opens => NodeError::Opening { detail: self.step(info).0 },
        }
    }

    /// What the member says of the cluster.
    pub fn dr(&self, info: &MemberInfo, objectives: Objectives) -> DrReply {
        let (warning, step) = self.step(info);
        DrReply {
            primary_site: None,
            standby_sites: Vec::new(),
            objectives,
            confirmed: false,
            quorum_margin: None,
            switchover: None,
            warnings: vec![warning],
            plan: vec![step],
        }
    }
}

/// What to do when all of the old site are home.
pub fn steps_home(old_site: &str) -> Vec<PlanStep> {
    vec![
        step(
            format!(
                "all of {old_site} are home. What {old_site} had alone is in salvage files: see whether there is any"
            ),
            "lifeboat salvage list",
        ),
        step(
            format!(
                "to make {old_site} the primary site again; nothing is lost by it. Looks first, and begins nothing"
            ),
            format!("lifeboat dr switchover --to {old_site} --check"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RandomId, Timeline};
    use crate::raft::fence::PEER_FORMAT;

    fn place(name: &str) -> Place {
        Place { name: name.into(), peer_url: format!("http://{name}:7401"), client_url: format!("http://{name}:7400") }
    }

    #[test]
    fn a_split_names_every_member_of_either_site_with_its_own_timeline() {
        let theirs = Kin {
            format: PEER_FORMAT,
            cluster: RandomId([9; 16]),
            member_id: "0".into(),
            name: "c".into(),
            site: "north".into(),
            timelines: vec![Timeline::first(RandomId([2; 16]))],
            members: vec![place("c"), place("d")],
            rejoin: Vec::new(),
            comes_home: None,
        };
        let steps = split_steps(("west", RandomId([1; 16]), &[place("a")]), &theirs);
        let commands: Vec<&str> = steps.iter().map(|step| step.command.as_str()).collect();
        let (one, two) = (RandomId([1; 16]), RandomId([2; 16]));
        assert_eq!(
            commands,
            [
                format!("lifeboat dr rejoin --abandon-timeline {two} --endpoints http://c:7400"),
                format!("lifeboat dr rejoin --abandon-timeline {two} --endpoints http://d:7400"),
                format!("lifeboat dr rejoin --abandon-timeline {one} --endpoints http://a:7400"),
            ]
        );
        assert!(steps[0].why.contains("To keep west and give up north"), "{}", steps[0].why);
        assert!(steps[2].why.contains("To keep north and give up west"), "{}", steps[2].why);
    }

    #[test]
    fn who_is_away_is_told_to_come_home_only_when_it_waits_for_that() {
        for (standing, by_itself, command) in [
            (AwayStanding::Silent, true, "plan"),
            (AwayStanding::Answers, true, "plan"),
            (AwayStanding::Fenced, true, "plan"),
            (AwayStanding::ComesHome, true, "plan"),
            (AwayStanding::Silent, false, "rejoin"),
            (AwayStanding::Answers, false, "rejoin"),
            (AwayStanding::Fenced, false, "rejoin"),
            (AwayStanding::ComesHome, false, "plan"),
        ] {
            let away = Away { id: 1, place: place("n1"), by_itself, standing };
            let forgetting = step_of_forgetting(&away).map(|step| step.command);
            let silent = standing == AwayStanding::Silent;
            assert_eq!(forgetting, silent.then(|| "lifeboat members remove n1".to_owned()), "{standing:?}");
            let step = step_of_away(&away);
            assert_eq!(step.command, format!("lifeboat dr {command} --endpoints http://n1:7400"), "{standing:?}");
            assert!(step.why.contains("n1"), "{}", step.why);
        }
    }
}

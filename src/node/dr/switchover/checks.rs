//! What is looked at before a switchover begins. All of it is, and everything that is missing is said, so that nobody has
//! to try again and again to hear the next thing.
//!
//! The leader asks all members at that moment whether they answer. What clears by itself within a moment (a leader that has
//! only begun to lead has not heard of everybody) is waited for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Planned;
use crate::api::{MemberReplication, MemberRole, MirrorState};
use crate::model::MemberId;
use crate::node::features::SWITCHOVERS;
use crate::node::{Inner, NodeError};

/// A mirror that lacks more than this would hold everything up.
pub const MAX_BEHIND_ENTRIES: u64 = 10_000;
/// So long another change of the members is waited for, when nothing else is missing.
const CHANGE_WAIT: Duration = Duration::from_secs(4);
/// So long one that is silent is asked again, and at least for two election timeouts.
const SILENT: Duration = Duration::from_millis(2500);
/// Between two looks for what clears by itself.
const AGAIN: Duration = Duration::from_millis(100);

/// Who is to become what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The site of the voters.
    pub from_site: String,
    /// Who is to lead.
    pub target: Planned,
    /// Who is to vote.
    pub voters: Vec<Planned>,
    /// Who is to be a mirror.
    pub mirrors: Vec<Planned>,
}

/// What was found when nothing is missing.
#[derive(Debug)]
pub struct Checked {
    /// Who is to become what.
    pub draft: Draft,
    /// What is unwise.
    pub warnings: Vec<String>,
}

/// A member at the moment of the check.
#[derive(Debug, Clone)]
struct Fact {
    id: MemberId,
    name: String,
    site: String,
    role: MemberRole,
    joining: bool,
    answers: bool,
    short: bool,
    feature: Option<u64>,
    state: MirrorState,
    lacks: u64,
    reason: Option<String>,
}

/// The cluster at that moment.
#[derive(Debug, Clone)]
struct Facts {
    to_site: String,
    level: u64,
    /// Why no quorum confirms the leader.
    no_quorum: Option<String>,
    /// Another change of the members is under way.
    changing: bool,
    members: Vec<Fact>,
}

impl Facts {
    fn voters(&self) -> impl Iterator<Item = &Fact> {
        self.members.iter().filter(|member| member.role == MemberRole::Voter)
    }

    fn mirrors(&self) -> impl Iterator<Item = &Fact> {
        self.members.iter().filter(|member| member.role == MemberRole::Mirror && member.site == self.to_site)
    }

    /// What is missing only because the members are changing.
    fn waits_for(&self) -> impl Iterator<Item = String> {
        let joining = self.members.iter().filter(|member| member.joining).map(|joining| {
            let name = &joining.name;
            format!("{name} is on its way to a vote: wait for it, lifeboat members show {name}")
        });
        let changing = "another change of the members is under way: wait for it, lifeboat members".to_owned();
        joining.chain(self.changing.then_some(changing))
    }

    /// All that is missing, each with what to do about it.
    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.level < SWITCHOVERS {
            let old = self.members.iter().filter(|member| member.feature.is_none_or(|level| level < SWITCHOVERS));
            let old: Vec<&str> = old.map(|member| member.name.as_str()).collect();
            let who =
                if old.is_empty() { "it is about to rise".to_owned() } else { format!("upgrade {}", old.join(", ")) };
            missing.push(format!("the cluster is at feature level {}, and {SWITCHOVERS} is needed: {who}", self.level));
        }
        if let Some(why) = &self.no_quorum {
            missing.push(format!("no quorum confirms the leader ({why}): lifeboat members"));
        }
        let sites: BTreeSet<&str> = self.voters().map(|voter| voter.site.as_str()).collect();
        if sites.len() > 1 {
            let sites: Vec<&str> = sites.into_iter().collect();
            let detail = "make those elsewhere mirrors first: lifeboat members demote NAME";
            missing.push(format!("voters stand in several sites ({}): {detail}", sites.join(", ")));
        }
        missing.extend(self.waits_for());
        // One voter more, whom a lost link may take away: the old site alone must still be a majority.
        let voters = self.voters().count();
        let answer = self.voters().filter(|voter| voter.answers).count();
        // A single voter, or two, are no majority without the one that is added; then it needs all of them.
        let needed = (voters.div_ceil(2) + 1).min(voters);
        if answer < needed {
            let away = self.voters().filter(|voter| !voter.answers).map(|voter| voter.name.as_str());
            let away: Vec<&str> = away.collect();
            missing.push(format!(
                "of {voters} voters {answer} answer, and with one added in {} {needed} of them are needed: start {}",
                self.to_site,
                away.join(", ")
            ));
        }
        if self.mirrors().next().is_none() {
            missing.push(format!(
                "no mirror stands in {}: lifeboat serve --site {0} --role mirror --join URL",
                self.to_site
            ));
        }
        for mirror in self.mirrors() {
            missing.extend(mirror.unfit());
        }
        missing
    }

    /// Who is to become what.
    fn draft(&self) -> Option<Draft> {
        let planned = |member: &Fact| Planned { id: member.id, name: member.name.clone() };
        let best = self.mirrors().min_by_key(|m| (m.state != MirrorState::Synchronized, m.lacks, m.name.clone()))?;
        Some(Draft {
            from_site: self.voters().next()?.site.clone(),
            target: planned(best),
            voters: self.mirrors().map(planned).collect(),
            mirrors: self.voters().map(planned).collect(),
        })
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (voters, mirrors) = (self.voters().count(), self.mirrors().count());
        if voters == 1
            && let Some(Draft { target, .. }) = self.draft()
        {
            warnings.push(format!(
                "there is one voter: from the moment at which {} votes too until the end the loss of the link stops writes,                  and they go on when it is mended. See it then: lifeboat dr switchover --status",
                target.name
            ));
        }
        if mirrors == 1 {
            warnings
                .push(format!("{} has one member: while it is the primary site no failure can be borne", self.to_site));
        } else if mirrors % 2 == 0 {
            warnings.push(format!(
                "{} will have {mirrors} voters, which bear no more failures than {}",
                self.to_site,
                mirrors - 1
            ));
        }
        if mirrors < voters && mirrors > 1 && mirrors % 2 == 1 {
            warnings.push(format!("{} has fewer members than the site of the voters has", self.to_site));
        }
        warnings
    }
}

impl Fact {
    /// Why it cannot become a voter, and what to do about it.
    fn unfit(&self) -> Vec<String> {
        let name = &self.name;
        let mut why = Vec::new();
        match self.state {
            MirrorState::Suspended => why.push(format!("{name} is SUSPENDED: lifeboat members resume {name}")),
            MirrorState::Quarantined => {
                let reason = self.reason.clone().unwrap_or_else(|| "its data are damaged".to_owned());
                why.push(format!("{name} is QUARANTINED ({reason}), which it repairs by itself: lifeboat events"));
            }
            _ if self.state == MirrorState::Disconnected || !self.answers => {
                why.push(format!(
                    "{name} is DISCONNECTED: start it, or mend the link, or lifeboat members remove {name}"
                ));
            }
            _ if self.lacks > MAX_BEHIND_ENTRIES => {
                let lacks = self.lacks;
                why.push(format!(
                    "{name} is {} and lacks {lacks} entries: wait for it, lifeboat replication",
                    self.state
                ));
            }
            _ => {}
        }
        if self.short {
            why.push(format!("{name} is short of disk room: make room, or lower its disk_reserve_bytes"));
        }
        why
    }
}

impl Inner {
    /// Looks whether the primary site can move to this one; none when it is there already. The caller holds the lock of
    /// the membership.
    pub(super) async fn check_switchover(&self, to_site: &str) -> Result<Option<Checked>, NodeError> {
        let begun = Instant::now();
        loop {
            let facts = self.switchover_facts(to_site).await;
            let sites: BTreeSet<&str> = facts.members.iter().map(|member| member.site.as_str()).collect();
            if !sites.contains(to_site) {
                let known = sites.into_iter().collect::<Vec<_>>().join(", ");
                return Err(NodeError::UnknownSite { site: to_site.to_owned(), known });
            }
            if !facts.changing && facts.voters().all(|voter| voter.site == to_site) {
                return Ok(None);
            }
            let missing = facts.missing();
            let changing = facts.waits_for().count() == missing.len();
            let patience = if changing { CHANGE_WAIT } else { SILENT.max(self.election_max * 2) };
            match facts.draft().filter(|_| missing.is_empty()) {
                Some(draft) => return Ok(Some(Checked { draft, warnings: facts.warnings() })),
                None if begun.elapsed() + AGAIN < patience => tokio::time::sleep(AGAIN).await,
                None => {
                    let detail = format!("{}. Then: lifeboat dr switchover --to {to_site} --check", missing.join("; "));
                    return Err(NodeError::SwitchoverRefused { detail });
                }
            }
        }
    }

    async fn switchover_facts(&self, to_site: &str) -> Facts {
        let members = self.members_by_id();
        let answering = self.who_answers(&members.keys().copied().collect()).await;
        let figures = self.replication().members;
        let (joint, voters) = (self.voter_sets().len() > 1, self.target_voters());
        let identity = self.http.identity();
        let fact = |(id, info): (MemberId, crate::raft::types::MemberInfo)| {
            let figure: Option<&MemberReplication> = figures.iter().find(|figure| figure.name == info.name);
            Fact {
                id,
                role: info.role,
                joining: info.role == MemberRole::Voter && !voters.contains(&id),
                answers: answering.contains(&id),
                short: if id == self.id { identity.is_short() } else { identity.said_short(id) },
                feature: identity.feature_of(id),
                state: figure.map_or(MirrorState::Synchronizing, |figure| figure.state),
                // What it has received and not applied it needs before it can lead.
                lacks: figure.map_or(u64::MAX, |figure| {
                    figure.send_queue.entries.saturating_add(figure.redo_queue.map_or(0, |redo| redo.entries))
                }),
                reason: figure.and_then(|figure| figure.reason.clone()),
                name: info.name,
                site: info.site,
            }
        };
        let mut members: Vec<Fact> = members.into_iter().map(fact).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Facts {
            to_site: to_site.to_owned(),
            level: self.store.feature_level(),
            no_quorum: self.leads_with_quorum().err(),
            changing: joint,
            members,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: MemberId, site: &str, role: MemberRole) -> Fact {
        Fact {
            id,
            name: format!("n{id}"),
            site: site.into(),
            role,
            joining: false,
            answers: true,
            short: false,
            feature: Some(SWITCHOVERS),
            state: MirrorState::Synchronized,
            lacks: 0,
            reason: None,
        }
    }

    fn facts(voters: u64, mirrors: u64) -> Facts {
        let east = (1..=voters).map(|id| member(id, "east", MemberRole::Voter));
        let west = (voters + 1..=voters + mirrors).map(|id| member(id, "west", MemberRole::Mirror));
        Facts {
            to_site: "west".into(),
            level: SWITCHOVERS,
            no_quorum: None,
            changing: false,
            members: east.chain(west).collect(),
        }
    }

    #[test]
    fn a_healthy_cluster_lacks_nothing_and_the_best_mirror_is_chosen() {
        let mut facts = facts(3, 3);
        facts.members[3].lacks = 7;
        facts.members[4].state = MirrorState::Synchronizing;
        assert_eq!(facts.missing(), Vec::<String>::new());
        let draft = facts.draft().unwrap();
        let ids = |members: &[Planned]| members.iter().map(|member| member.id).collect::<Vec<_>>();
        assert_eq!((draft.from_site.as_str(), draft.target.id), ("east", 6));
        assert_eq!((ids(&draft.voters), ids(&draft.mirrors)), (vec![4, 5, 6], vec![1, 2, 3]));
        assert_eq!(facts.warnings(), Vec::<String>::new());
    }

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let mut facts = facts(3, 4);
        facts.level = SWITCHOVERS - 1;
        facts.no_quorum = Some("silence".into());
        facts.changing = true;
        facts.members[0].feature = Some(SWITCHOVERS - 1);
        facts.members[1].site = "north".into();
        facts.members[2].answers = false;
        facts.members[3].state = MirrorState::Suspended;
        facts.members[4].state = MirrorState::Quarantined;
        facts.members[5].answers = false;
        facts.members[6].lacks = MAX_BEHIND_ENTRIES + 1;
        facts.members[6].short = true;
        let all = facts.missing().join("\n");
        for part in [
            "feature level 2, and 3 is needed: upgrade n1",
            "no quorum confirms the leader (silence)",
            "several sites (east, north)",
            "another change",
            "of 3 voters 2 answer",
            "start n3",
            "lifeboat members resume n4",
            "n5 is QUARANTINED",
            "n6 is DISCONNECTED",
            "n7 is SYNCHRONIZED and lacks 10001 entries",
            "n7 is short of disk room",
        ] {
            assert!(all.contains(part), "{part:?} in:\n{all}");
        }
        assert_eq!(facts.missing().len(), 10, "{all}");
    }

    #[test]
    fn the_old_site_keeps_its_majority_with_one_voter_more() {
        // So many voters, and so many of them that must answer: a quorum of one more.
        for (voters, needed) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (7, 5)] {
            for answer in 0..=voters {
                let mut facts = facts(voters, 1);
                facts.members.iter_mut().take((voters - answer) as usize).for_each(|member| member.answers = false);
                assert_eq!(facts.missing().is_empty(), answer >= needed, "{answer} of {voters}");
            }
        }
    }

    #[test]
    fn a_site_without_mirrors_and_a_voter_that_joins_are_missing_something() {
        assert!(facts(3, 0).missing()[0].contains("no mirror stands in west"));
        let mut facts = facts(3, 1);
        facts.members[0].joining = true;
        assert!(facts.missing()[0].contains("n1 is on its way to a vote"));
        facts.members[0].joining = false;
        assert!(facts.warnings()[0].contains("west has one member"));
    }

    #[test]
    fn a_single_voter_is_told_what_the_link_means_meanwhile() {
        let said = |voters| facts(voters, 3).warnings().join("; ");
        assert!(said(1).contains("n2 votes too until the end the loss of the link stops writes"), "{}", said(1));
        // Two are a majority of three: they go on without the link.
        assert!(!said(2).contains("the link"), "{}", said(2));
    }
}

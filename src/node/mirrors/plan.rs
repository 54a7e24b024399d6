//! What `/v1/dr` says: sites, objectives, what is wrong, and the commands that make sense in the present state.

use std::collections::BTreeSet;

use super::Look;
use super::figures::Figure;
use crate::api::{
    CatchUp, DrReply, MemberReplication, MirrorState, PlanStep, StandbySite, SwitchoverReply, SwitchoverStep,
};
use crate::model::MemberRole;
use crate::node::Inner;
use crate::node::dr::advice::{Waits, step, step_of_away, step_of_forgetting, steps_home};
use crate::node::dr::survey::Surveyed;
use crate::raft::types::MemberInfo;

/// A mirror that is sent nothing is warned of when it needs so much of what the log keeps.
const BUDGET_PART: f64 = 0.5;

impl Inner {
    /// The state of the cluster against the loss of its site, when this member leads.
    pub(in crate::node) fn dr(&self) -> DrReply {
        let Look { figures, standby_sites } = self.look();
        let voters: Vec<&Figure> = figures.iter().filter(|f| f.reply.role == MemberRole::Voter).collect();
        let sites: BTreeSet<&str> = voters.iter().map(|voter| voter.reply.site.as_str()).collect();
        let switchover = self.shown_switchover();
        let primary_site = match &switchover {
            // The lead is what moves: in between voters stand in both sites.
            Some(_) => Some(self.info.site.clone()),
            None => (sites.len() == 1).then(|| sites.first().map(ToString::to_string)).flatten(),
        };
        let answering = voters.iter().filter(|voter| voter.id == self.id || self.answers(voter.id)).count();
        let quorum = voters.len() / 2 + 1;
        // An even number of voters, and far ones, are what a switchover goes through.
        let mut warnings = if switchover.is_some() { Vec::new() } else { self.member_warnings() };
        if answering <= quorum {
            warnings.push(format!(
                "the quorum margin is zero: {answering} of {} voters answer, and with one fewer nothing can be written",
                voters.len()
            ));
        }
        if sites.len() > 1 && switchover.is_none() {
            let sites: Vec<&str> = sites.iter().copied().collect();
            warnings.push(format!("voters stand in several sites ({}): a write waits for the links", sites.join(", ")));
        }
        let confirmed = self.leads_with_quorum().is_ok();
        if !confirmed {
            warnings.push("no quorum confirms this leader: all figures are lower bounds".to_owned());
        }
        if standby_sites.is_empty() && switchover.is_none() {
            warnings.push("there is no mirror in another site: the loss of this site loses everything".to_owned());
        }
        for figure in &figures {
            self.warn_of_mirror(&figure.reply, &mut warnings);
        }
        for site in &standby_sites {
            warn_of_objectives(site, self, &mut warnings);
        }
        warnings.extend(self.warning_of_split());
        let switchover = self.shown_switchover();
        let mut plan = self.steps_of_split();
        plan.extend(match &switchover {
            Some(running) => plan_of_switchover(running),
            None => self.plan(&figures, &standby_sites, confirmed, primary_site.as_deref()),
        });
        DrReply {
            primary_site,
            standby_sites,
            objectives: self.objectives,
            confirmed,
            quorum_margin: Some(answering.saturating_sub(quorum) as u64),
            switchover,
            warnings,
            plan,
        }
    }

    /// What a member says that knows no leader, and has asked who answers.
    pub(in crate::node) fn dr_without_leader(&self, surveyed: &Surveyed) -> DrReply {
        let lag = self.lag.get().map_or("unknown".to_owned(), |lag| format!("{:.1} s", lag.as_secs_f64()));
        let (name, url) = (&self.info.name, &self.info.client_url);
        let mut plan = self.steps_of_split();
        let mut warnings = vec![format!("{name} can ask no leader; what it shows is old by up to: {lag}")];
        let own = self.own_survey().promoting.and_then(|_| self.home.lock().file.promotion.clone());
        if let Some(promotion) = &own {
            let (warning, step) = Waits::Promoted(promotion).step(&self.info);
            warnings.push(warning);
            plan.push(step);
        } else if let Some(promoted) = surveyed.promoted() {
            let MemberInfo { name, client_url, site, .. } = &promoted.info;
            warnings.push(format!("{name} is being promoted"));
            plan.push(step(
                format!(
                    "{name} was ordered to go on with site {site}: it serves in a moment, alone if it must. When it is down, \
                     start it: no second order is needed. This shows when it serves"
                ),
                format!("lifeboat dr plan --endpoints {client_url}"),
            ));
        }
        plan.push(step(
            "a majority of the voters must run and reach each other: see whom this member knows, and start those that are \
             down",
            format!("lifeboat members --endpoints {url}"),
        ));
        let switchover = self.shown_switchover();
        if let Some(running) = &switchover {
            let (from, to) = (dash(&running.from_site), dash(&running.to_site));
            plan.push(step(
                format!(
                    "the primary site was moving from {from} to {to} when the leader was lost: it goes on, or back, by \
                     itself when the members of both sites reach each other again. Mend the link between them; see"
                ),
                format!("lifeboat dr switchover --status --endpoints {url}"),
            ));
        }
        plan.push(self.step_of_survey());
        warnings.extend(self.warning_of_split());
        DrReply {
            primary_site: None,
            standby_sites: Vec::new(),
            objectives: self.objectives,
            confirmed: false,
            quorum_margin: None,
            switchover,
            warnings,
            plan,
        }
    }

    /// What to do when a majority of the voters never comes back.
    fn step_of_survey(&self) -> PlanStep {
        step(
            "if they are gone for good: see who answers, and what going on without them would lose",
            format!("lifeboat dr survey --endpoints {}", self.info.client_url),
        )
    }

    /// The switchover that is under way, as far as this member knows.
    fn shown_switchover(&self) -> Option<SwitchoverReply> {
        self.running_switchover()?;
        self.show_switchover().ok().flatten()
    }

    fn warn_of_mirror(&self, member: &MemberReplication, warnings: &mut Vec<String>) {
        let name = &member.name;
        let stands_still = matches!(member.state, MirrorState::Suspended | MirrorState::Disconnected);
        let part = member.send_queue.bytes as f64 / self.wal_keep_bytes.max(1) as f64;
        match member.catch_up_by {
            Some(CatchUp::Log) if stands_still && part > BUDGET_PART => warnings.push(format!(
                "mirror {name} is held only by the wal budget: it needs {:.0}% of wal_keep_bytes, and past that a delta",
                part * 100.0
            )),
            Some(CatchUp::Full) if stands_still => {
                warnings.push(format!("{name} is too far behind for a delta: it will be sent a full copy"));
            }
            _ => {}
        }
    }

    fn plan(
        &self,
        figures: &[Figure],
        sites: &[StandbySite],
        confirmed: bool,
        primary_site: Option<&str>,
    ) -> Vec<PlanStep> {
        let away = self.away();
        let mut plan: Vec<PlanStep> = away.iter().map(step_of_away).collect();
        plan.extend(away.iter().filter_map(step_of_forgetting));
        if !confirmed {
            plan.push(step(
                "no quorum confirms the leader: see who answers, and start those that are down",
                "lifeboat members",
            ));
            plan.push(self.step_of_survey());
        }
        for member in figures.iter().map(|figure| &figure.reply) {
            let name = &member.name;
            match member.state {
                MirrorState::Quarantined => plan.push(step(
                    format!("{name} is quarantined and repairs itself: see what was damaged and how far it is"),
                    "lifeboat events",
                )),
                MirrorState::Suspended => {
                    plan.push(step(format!("{name} is suspended"), format!("lifeboat members resume {name}")));
                }
                MirrorState::Disconnected => plan.push(step(
                    format!("{name} does not answer: see whether it runs and the link is up"),
                    format!("lifeboat members show {name}"),
                )),
                MirrorState::Synchronizing => plan.extend(step_of_catching_up(member)),
                MirrorState::Synchronized => {}
            }
        }
        let far = |figure: &&Figure| figure.reply.role == MemberRole::Voter && self.far_away(figure.id).is_some();
        for figure in figures.iter().filter(far) {
            let (name, why) =
                (&figure.reply.name, "is a voter far away, which every write waits for: make it a mirror");
            plan.push(step(format!("{name} {why}"), format!("lifeboat members demote {name}")));
        }
        for figure in figures.iter().filter(|figure| self.says_unverified(figure.id)) {
            let name = &figure.reply.name;
            plan.push(step(
                format!("{name} is home, and is verified before it may vote; that is done by itself"),
                format!("lifeboat members show {name}"),
            ));
        }
        // Those who come home are a standby; and without a quorum nobody joins.
        if confirmed && sites.is_empty() && away.iter().all(|away| away.by_itself) {
            let url = &self.info.peer_url;
            let taken = |name: &str| figures.iter().any(|figure| figure.reply.name == name);
            let name = (1..).map(|number| format!("m{number}")).find(|name| !taken(name));
            let (name, site) = (name.unwrap_or_default(), if self.info.site == "west" { "east" } else { "west" });
            plan.push(step(
                "there is no standby: start a mirror in another site",
                format!("lifeboat serve --name {name} --site {site} --role mirror --data-dir DIR --join {url}"),
            ));
        }
        if plan.is_empty()
            && let Some(old_site) = self.old_site(primary_site)
            && sites.iter().any(|site| site.site == old_site)
        {
            plan = steps_home(&old_site);
        }
        if plan.is_empty() {
            plan.push(step("all is well: nothing has to be done; this shows it from now on", "lifeboat replication"));
            for site in sites.iter().filter(|site| !self.events.has_of_kind("drill-done", &site.mirrors)) {
                plan.push(step(
                    format!("no failover to site {} has been rehearsed lately; it touches nothing", site.site),
                    format!("lifeboat dr drill --site {}", site.site),
                ));
            }
        }
        plan
    }
}

/// How far a member is that is sent a part of the history, or all of it. What the log still has comes in a moment.
fn step_of_catching_up(member: &MemberReplication) -> Option<PlanStep> {
    let (name, lacks) = (&member.name, member.send_queue.entries);
    let what = match member.catch_up_by? {
        CatchUp::Log => return None,
        CatchUp::Delta => "the part of the history that it lacks",
        CatchUp::Full => "all of the history",
    };
    let left = member.catch_up_seconds.map(|left| format!(", about {left:.0} s")).unwrap_or_default();
    Some(step(format!("{name} is sent {what}: {lacks} entries{left}; this shows it"), "lifeboat replication"))
}

fn dash(site: &Option<String>) -> &str {
    site.as_deref().unwrap_or("-")
}

/// What to do while the primary site moves: nothing else, until it is over.
fn plan_of_switchover(running: &SwitchoverReply) -> Vec<PlanStep> {
    let (from, to) = (dash(&running.from_site), dash(&running.to_site));
    let at = running.step.map_or("-", SwitchoverStep::as_str);
    let waits = running.waits_for.as_ref().map(|what| format!("; it waits for {what}")).unwrap_or_default();
    let mut plan = vec![step(
        format!("the primary site moves from {from} to {to}, at {at}{waits}: watch it"),
        "lifeboat dr switchover --status",
    )];
    match running.step {
        Some(SwitchoverStep::CatchingUp | SwitchoverStep::AddingVoter | SwitchoverStep::HandingOver) => {
            plan.push(step(
                format!("to stay in {from} instead; nothing is lost by it"),
                "lifeboat dr switchover --abort",
            ));
        }
        Some(SwitchoverStep::MovingVoters) => plan.push(step(
            format!(
                "when it stands still: the members of {from} and {to} must reach each other; see who does not answer"
            ),
            "lifeboat replication",
        )),
        _ => {}
    }
    let one_voter = running.mirrors.len() == 1;
    if one_voter && matches!(running.step, Some(SwitchoverStep::HandingOver | SwitchoverStep::MovingVoters)) {
        let why =
            format!("until the end the loss of the link between {from} and {to} stops writes: see both sites answer");
        plan.push(step(why, "lifeboat members"));
    }
    plan
}

fn warn_of_objectives(site: &StandbySite, inner: &Inner, warnings: &mut Vec<String>) {
    let name = &site.site;
    let known = |value: Option<f64>| value.map_or("unknown".to_owned(), |value| format!("{value:.1} s"));
    if !site.rpo_met {
        let (is, aim) = (known(site.rpo_seconds), inner.objectives.rpo_seconds);
        warnings.push(format!("site {name} misses its objective: the loss would be {is}, and {aim} s is aimed at"));
    }
    if !site.rto_met {
        let (is, aim) = (known(site.rto_seconds), inner.objectives.rto_seconds);
        warnings.push(format!("site {name} misses its objective: a failover would take {is}, and {aim} s is aimed at"));
    }
}

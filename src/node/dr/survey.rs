//! The survey: who of the cluster answers, what each holds, and what a forced failover would lose.
//!
//! A survey asks at this very moment and believes nothing older. Its question is exempt from the fence, so that it reaches
//! members of every branch. With the leader gone, what it says of a loss is a lower bound in entries, and a window in time:
//! everything that was acknowledged since a quorum last confirmed what the best member holds.
//!
//! Proven by the tests below, and by the failovers in `tests/`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};

use crate::api::{Loss, SurveyReply, SurveyedMember, TimelineName};
use crate::model::{
    ClusterId, Kinship, LogId, MemberId, MemberRole, Revision, Timeline, TimelineId, format_member_id, kinship,
};
use crate::node::{Inner, peer_path};
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::AskStranger;
use crate::raft::types::MemberInfo;

/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_millis(1000);
/// Members that are silent are asked again for so long before it is said that they are missing. With the question before and
/// the order behind it this has to fit into the time of a request.
const SILENT: Duration = Duration::from_millis(1500);
/// Between two questions to one that is silent.
const AGAIN: Duration = Duration::from_millis(100);

/// Asks a member how it stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct SurveyQuestion {
    /// The version of the messages between members.
    pub format: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// The timeline that the asker has been told to begin, when it asks whether somebody else has been told too.
    #[serde(default)]
    pub promoting: Option<TimelineId>,
}

/// How a member stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Its id, 16 hexadecimal digits.
    pub member_id: String,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The timelines of its history, from the first to the current one.
    pub timelines: Vec<Timeline>,
    /// Whether it is fenced.
    #[serde(default)]
    pub fenced: bool,
    /// Whether it is in quarantine.
    #[serde(default)]
    pub quarantined: bool,
    /// The timeline that it is about to begin.
    #[serde(default)]
    pub promoting: Option<TimelineId>,
    /// Whether nothing keeps it from that any more: it has asked the others of its site, and goes on.
    #[serde(default)]
    pub decided: bool,
    /// Whether it leads, and a quorum has confirmed that lately.
    #[serde(default)]
    pub leads: bool,
    /// The last entry of its log.
    pub last: Option<LogId>,
    /// The last entry that it knows to be committed.
    pub committed: Option<u64>,
    /// The last entry that it has applied, and the revision after it.
    pub applied: Option<u64>,
    /// The revision after that.
    pub revision: Revision,
    /// How old what it has applied may be, in milliseconds: since a quorum confirmed it last.
    pub lag_ms: Option<u64>,
}

impl Survey {
    /// What a member says whose log and history are closed.
    pub fn while_closed(member: MemberId, cluster: ClusterId, timeline: TimelineId) -> Survey {
        Survey {
            member_id: format_member_id(member),
            cluster,
            timelines: vec![Timeline::first(timeline)],
            fenced: false,
            quarantined: false,
            promoting: None,
            decided: false,
            leads: false,
            last: None,
            committed: None,
            applied: None,
            revision: 0,
            lag_ms: None,
        }
    }
}

/// A member, and what it answered.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: MemberId,
    pub info: MemberInfo,
    pub answer: Result<Survey, String>,
}

impl Found {
    /// Whether it lives and does not know the question. It cannot be fenced either. Those programs look for the headers of
    /// a member before they look at what is asked, and a survey is asked as a stranger.
    fn is_of_earlier_program(&self) -> bool {
        let asks_who = |why: &str| why.starts_with("421") && why.ends_with("is missing or malformed");
        self.answer.as_ref().is_err_and(|why| why.starts_with("404") || asks_who(why))
    }

    /// What it answered, when it takes part in this branch.
    fn of_branch(&self, timelines: &[Timeline]) -> Option<&Survey> {
        let survey = self.answer.as_ref().ok()?;
        let same = kinship(timelines, &survey.timelines) == Kinship::Same;
        (same && !survey.fenced && !survey.quarantined).then_some(survey)
    }
}

/// All that answered and all that did not.
#[derive(Debug, Clone)]
pub struct Surveyed {
    pub timelines: Vec<Timeline>,
    pub members: Vec<Found>,
    /// The sets of voters; two while a change goes on.
    pub voters: Vec<BTreeSet<MemberId>>,
}

impl Surveyed {
    /// Who shows that the primary is there: a leader with a quorum, or so many voters that they can elect one. In words.
    pub fn primary(&self) -> Option<String> {
        for found in &self.members {
            let Ok(survey) = &found.answer else { continue };
            let name = &found.info.name;
            match kinship(&self.timelines, &survey.timelines) {
                Kinship::Same if survey.leads => return Some(format!("{name} leads, and a quorum confirms it")),
                Kinship::Ancestor if !survey.fenced => {
                    let number = survey.timelines.last().map_or(0, |timeline| timeline.number);
                    return Some(format!("{name} is on timeline {number}, which was forced already"));
                }
                _ => {}
            }
            if survey.promoting.is_some() {
                return Some(format!("{name} is being promoted already"));
            }
        }
        let voting = |set: &BTreeSet<MemberId>| {
            let answer = set.iter().filter(|id| self.answers(**id)).count();
            answer * 2 > set.len()
        };
        let elect = !self.voters.is_empty() && self.voters.iter().all(voting);
        elect.then(|| "a majority of the voters answers, and can elect a leader".to_owned())
    }

    /// Who is being promoted at this moment.
    pub fn promoted(&self) -> Option<&Found> {
        let promoting = |found: &&Found| found.answer.as_ref().is_ok_and(|survey| survey.promoting.is_some());
        self.members.iter().find(promoting)
    }

    fn answers(&self, id: MemberId) -> bool {
        let takes_part = |found: &Found| found.of_branch(&self.timelines).is_some() || found.is_of_earlier_program();
        self.members.iter().any(|found| found.id == id && takes_part(found))
    }

    /// The member of a site whose log is longest by (term, index), of equals the first by name: whoever is asked says the
    /// same. Those in `without` are left out.
    pub fn best(&self, site: &str, without: &[String]) -> Option<(&Found, &Survey)> {
        let of_site =
            self.members.iter().filter(|found| found.info.site == site && !without.contains(&found.info.name));
        let answered = of_site.filter_map(|found| Some((found, found.of_branch(&self.timelines)?)));
        answered.max_by(|(a, one), (b, other)| {
            let length = |survey: &Survey| survey.last.map(|last| (last.term, last.index));
            let order = length(one).cmp(&length(other));
            order.then(b.info.name.cmp(&a.info.name))
        })
    }

    /// The members of a site that do not answer, by name.
    pub fn missing(&self, site: &str) -> Vec<String> {
        let of_site = self.members.iter().filter(|found| found.info.site == site);
        let missing = of_site.filter(|found| found.of_branch(&self.timelines).is_none());
        missing.map(|found| found.info.name.clone()).collect()
    }

    /// Where in the list the members of a site stand that did not answer, but for those in `without`.
    fn silent(&self, site: &str, without: &[String]) -> Vec<usize> {
        let is_silent = |found: &Found| found.answer.is_err() && !found.is_of_earlier_program();
        let wanted = |found: &Found| found.info.site == site && !without.contains(&found.info.name);
        (0..self.members.len()).filter(|at| wanted(&self.members[*at]) && is_silent(&self.members[*at])).collect()
    }

    /// What the promotion of `best` would lose.
    pub fn loss(&self, best: &Survey) -> Loss {
        let last = best.last.map_or(0, |last| last.index);
        let others = self.members.iter().filter_map(|found| {
            let survey = found.answer.as_ref().ok()?;
            (kinship(&self.timelines, &survey.timelines) == Kinship::Same).then_some(survey.last?.index)
        });
        let silent = |set: &BTreeSet<MemberId>| {
            let answered =
                set.iter().filter(|id| self.members.iter().any(|found| found.id == **id && found.answer.is_ok()));
            (set.len() - answered.count()) * 2 > set.len()
        };
        Loss {
            kept_revision: best.revision,
            kept_index: last,
            known_committed_index: best.committed,
            entries_at_least: others.max().unwrap_or(0).saturating_sub(last),
            window_seconds: best.lag_ms.map(|lag| lag as f64 / 1000.0),
            unbounded: self.voters.iter().any(silent),
        }
    }
}

impl Inner {
    /// How this member stands.
    pub(in crate::node) fn own_survey(&self) -> Survey {
        let (fenced, promotion) = {
            let file = &self.home.lock().file;
            (file.fenced.is_some(), file.promotion.clone())
        };
        let promoting = promotion.as_ref().map(|promotion| promotion.id);
        let decided = promotion.is_some_and(|promotion| promotion.decided) || self.rivalry.lock().is_decided();
        let timelines = self.store.timelines();
        Survey {
            member_id: format_member_id(self.id),
            cluster: self.http.identity().cluster,
            fenced,
            quarantined: self.quarantined().is_some(),
            // Once it leads its own timeline that says more.
            promoting: promoting.filter(|id| timelines.last().is_none_or(|last| last.id != *id)),
            decided,
            timelines,
            leads: !fenced && self.leads_with_quorum().is_ok(),
            last: self.wal.state().last.max(self.store.applied()),
            committed: self.committed_index(),
            applied: self.store.applied().map(|applied| applied.index),
            revision: self.store.revision(),
            lag_ms: self.lag.get().map(|lag| lag.as_millis() as u64),
        }
    }

    /// Asks a member of the membership, at this moment.
    async fn ask_how_it_stands(&self, id: MemberId, info: MemberInfo) -> Found {
        if id == self.id {
            return Found { id, info, answer: Ok(self.own_survey()) };
        }
        let url = self.addresses.get(id).map_or_else(|| info.peer_url.clone(), |url| url.to_string());
        let cluster = self.http.identity().cluster;
        let question = SurveyQuestion { format: PEER_FORMAT, cluster, promoting: None };
        let url = format!("{url}{}", peer_path::DR_SURVEY);
        let answer = AskStranger::post_json::<Survey>(&self.http, &url, &question, ANSWER).await;
        let answer = answer.and_then(|survey| match survey.member_id == format_member_id(id) {
            true => Ok(survey),
            false => Err("another member answers at its address".to_owned()),
        });
        Found { id, info, answer }
    }

    /// Asks those of this member's site again that were silent, but for those in `without`: one that stood still for a
    /// moment is not lost, and may hold more than the others. Returns when all have answered, or it took too long.
    pub(in crate::node) async fn ask_silent_again(&self, surveyed: &mut Surveyed, without: &[String]) {
        let began = Instant::now();
        loop {
            let silent = surveyed.silent(&self.info.site, without);
            if silent.is_empty() || began.elapsed() > SILENT {
                return;
            }
            tokio::time::sleep(AGAIN).await;
            let asked = silent.into_iter().map(|at| {
                let Found { id, info, .. } = surveyed.members[at].clone();
                async move { (at, self.ask_how_it_stands(id, info).await) }
            });
            for (at, found) in join_all(asked).await {
                surveyed.members[at] = found;
            }
        }
    }

    /// Asks all members of the membership, at this moment.
    pub(in crate::node) async fn survey(&self) -> Surveyed {
        let asked = self.members_by_id().into_iter().map(|(id, info)| self.ask_how_it_stands(id, info));
        let mut members = join_all(asked).await;
        members.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        let metrics = self.raft.server_metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let voters = membership.membership().get_joint_config().clone();
        Surveyed { timelines: self.store.timelines(), members, voters }
    }

    /// The survey for people.
    pub(in crate::node) async fn survey_reply(&self) -> SurveyReply {
        let surveyed = self.survey().await;
        let site = self.info.site.clone();
        let survivor = self.view().role == MemberRole::Voter;
        let best = surveyed.best(&site, &[]);
        let (missing, primary) = (surveyed.missing(&site), surveyed.primary());
        let url = &self.info.client_url;
        let without: String = missing.iter().map(|name| format!(" --without {name}")).collect();
        let next = match (&primary, survivor) {
            // Nobody can be promoted, or nobody must be.
            _ if primary.is_some() || best.is_none() => format!("lifeboat dr plan --endpoints {url}"),
            (_, false) => format!("lifeboat dr force --accept-data-loss{without} --endpoints {url}"),
            (_, true) => format!("lifeboat dr recover --survivor --accept-data-loss{without} --endpoints {url}"),
        };
        SurveyReply {
            asked: self.info.name.clone(),
            loss: best.map(|(_, survey)| surveyed.loss(survey)),
            best: best.map(|(found, _)| found.info.name.clone()),
            members: surveyed.members.iter().map(describe).collect(),
            timeline: surveyed.timelines.last().map(name),
            site,
            primary,
            missing,
            next,
        }
    }
}

fn name(timeline: &Timeline) -> TimelineName {
    TimelineName { number: timeline.number, id: timeline.id }
}

fn describe(found: &Found) -> SurveyedMember {
    let survey = found.answer.as_ref().ok();
    let words = match &found.answer {
        Err(_) if found.is_of_earlier_program() => {
            Some("it runs an earlier program, which cannot be fenced: stop it before a failover".to_owned())
        }
        Err(why) => Some(why.clone()),
        Ok(survey) if survey.fenced => Some("it is fenced".to_owned()),
        Ok(survey) if survey.quarantined => Some("it is in quarantine".to_owned()),
        Ok(survey) if survey.promoting.is_some() => Some("it is being promoted".to_owned()),
        Ok(_) => None,
    };
    SurveyedMember {
        name: found.info.name.clone(),
        site: found.info.site.clone(),
        role: found.info.role,
        answers: survey.is_some(),
        leads: survey.is_some_and(|survey| survey.leads),
        timeline: survey.and_then(|survey| survey.timelines.last()).map(name),
        last_term: survey.and_then(|survey| survey.last).map(|last| last.term),
        last_index: survey.and_then(|survey| survey.last).map(|last| last.index),
        committed_index: survey.and_then(|survey| survey.committed),
        applied_index: survey.and_then(|survey| survey.applied),
        // One that is closed for its promotion cannot say.
        revision: survey.filter(|survey| survey.last.is_some()).map(|survey| survey.revision),
        lag_seconds: survey.and_then(|survey| survey.lag_ms).map(|lag| lag as f64 / 1000.0),
        reason: words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RandomId;

    fn first() -> Timeline {
        Timeline::first(RandomId([1; 16]))
    }

    fn stands(id: MemberId, term: u64, index: u64) -> Survey {
        Survey {
            member_id: format_member_id(id),
            cluster: RandomId([9; 16]),
            timelines: vec![first()],
            fenced: false,
            quarantined: false,
            promoting: None,
            decided: false,
            leads: false,
            last: Some(LogId { term, leader: id, index }),
            committed: Some(index),
            applied: Some(index),
            revision: index,
            lag_ms: Some(500),
        }
    }

    fn found(id: MemberId, site: &str, answer: Result<Survey, &str>) -> Found {
        let role = if site == "east" { MemberRole::Voter } else { MemberRole::Mirror };
        let url = |port: u16| format!("http://n{id}:{port}");
        let info =
            MemberInfo { name: format!("n{id}"), site: site.into(), role, client_url: url(7400), peer_url: url(7401) };
        Found { id, info, answer: answer.map_err(str::to_owned) }
    }

    /// Three voters in east, of which these answer as given, and two mirrors in west that do.
    fn surveyed(east: [Result<Survey, &str>; 3]) -> Surveyed {
        let mut members: Vec<Found> = (1..).zip(east).map(|(id, answer)| found(id, "east", answer)).collect();
        members.extend([4, 5].map(|id| found(id, "west", Ok(stands(id, 1, 10)))));
        Surveyed { timelines: vec![first()], members, voters: vec![[1, 2, 3].into()] }
    }

    const SILENT: Result<Survey, &str> = Err("no answer");

    #[test]
    fn a_member_of_an_earlier_program_lives_and_is_named_and_is_not_lost() {
        let old = || Err("421 Misdirected Request: the header lifeboat-to is missing or malformed");
        let of_old = surveyed([old(), Err("404 Not Found: there is nothing here"), SILENT]);
        let why = of_old.primary().expect("two of three voters live, and can elect a leader");
        assert!(why.contains("a majority of the voters answers"), "{why}");
        // Alone it elects nobody, and it is said what to do with it.
        let alone = surveyed([old(), SILENT, SILENT]);
        assert_eq!(alone.primary(), None);
        let told: Vec<SurveyedMember> = alone.members.iter().map(describe).collect();
        let words = |at: usize| told[at].reason.clone().unwrap_or_default();
        assert!(!told[0].answers && words(0).contains("earlier program, which cannot be fenced: stop it"), "{told:?}");
        assert!(!told[1].answers && words(1) == "no answer", "{told:?}");
        // What it holds nobody knows.
        let (_, best) = alone.best("west", &[]).unwrap();
        assert!(alone.loss(best).unbounded);
        // A mirror of one may hold more than the others, as one that is silent.
        let mut mirror = surveyed([SILENT, SILENT, SILENT]);
        mirror.members[3].answer = Err("404 Not Found".into());
        assert_eq!((mirror.missing("west"), mirror.best("west", &[]).unwrap().0.id), (vec!["n4".to_owned()], 5));
    }

    #[test]
    fn only_silent_members_of_the_site_are_asked_again() {
        let mut all = surveyed([SILENT, SILENT, SILENT]);
        let silent = |all: &Surveyed, without: &[String]| all.silent("west", without);
        assert_eq!(silent(&all, &[]), Vec::<usize>::new(), "the lost site is not waited for");
        all.members[4].answer = SILENT.map_err(str::to_owned);
        assert_eq!((silent(&all, &[]), silent(&all, &["n5".to_owned()])), (vec![4], vec![]));
        // What they say does not change by asking.
        all.members[3].answer = Ok(Survey { quarantined: true, ..stands(4, 1, 10) });
        assert_eq!((all.missing("west").len(), silent(&all, &[])), (2, vec![4]));
    }

    #[test]
    fn who_is_fenced_or_in_quarantine_is_named_and_neither_counts_nor_is_promoted() {
        let fenced = |id| Ok(Survey { fenced: true, ..stands(id, 1, 99) });
        let mut all = surveyed([fenced(1), fenced(2), fenced(3)]);
        assert_eq!(all.primary(), None, "fenced voters elect nobody");
        all.members[3].answer = Ok(Survey { quarantined: true, ..stands(4, 7, 99) });
        assert_eq!((all.missing("west"), all.best("west", &[]).unwrap().0.id), (vec!["n4".to_owned()], 5));
        let words: Vec<String> = all.members.iter().map(|found| describe(found).reason.unwrap_or_default()).collect();
        assert_eq!(words, ["it is fenced", "it is fenced", "it is fenced", "it is in quarantine", ""]);
        // They answer, so what they hold is known.
        let (_, best) = all.best("west", &[]).unwrap();
        let loss = all.loss(best);
        assert_eq!((loss.entries_at_least, loss.unbounded, loss.window_seconds), (89, false, Some(0.5)));
    }

    #[test]
    fn a_leader_a_promotion_and_a_newer_timeline_are_each_a_primary() {
        let none = || surveyed([SILENT, SILENT, SILENT]);
        assert_eq!(none().primary(), None);
        let said = |at: usize, survey: Survey| {
            let mut all = none();
            all.members[at].answer = Ok(survey);
            all.primary().expect("somebody shows that it is there")
        };
        assert!(said(0, Survey { leads: true, ..stands(1, 1, 10) }).contains("n1 leads"));
        let promoting = Survey { promoting: Some(RandomId([2; 16])), ..stands(5, 1, 10) };
        assert!(said(4, promoting).contains("n5 is being promoted already"));
        let second = Timeline { number: 2, id: RandomId([2; 16]), parent: Some(first().id), ..first() };
        let newer = Survey { timelines: vec![first(), second], ..stands(4, 2, 12) };
        assert!(said(3, newer.clone()).contains("n4 is on timeline 2, which was forced already"));
        // One that is fenced only says what it stood for.
        let mut all = none();
        all.members[3].answer = Ok(Survey { fenced: true, ..newer });
        assert_eq!(all.primary(), None);
    }

    #[test]
    fn the_longest_log_by_term_is_best_and_of_equals_the_first_by_name() {
        let mut all = surveyed([SILENT, SILENT, SILENT]);
        assert_eq!(all.best("west", &[]).unwrap().0.id, 4);
        assert_eq!(all.best("west", &["n4".to_owned()]).unwrap().0.id, 5);
        all.members[4].answer = Ok(stands(5, 1, 11));
        assert_eq!(all.best("west", &[]).unwrap().0.id, 5);
        all.members[3].answer = Ok(stands(4, 2, 3));
        assert_eq!(all.best("west", &[]).unwrap().0.id, 4);
        assert!(all.best("north", &[]).is_none());
    }
}

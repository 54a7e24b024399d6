//! Mirrors measured: what every member lacks, how old what it shows is, and whether it agrees, as the leader sees it.
//!
//! ```text
//!   contacts: a question to each member ──> standing (what it has, its chain hash)
//!                                               │ hear
//!   Raft: committed, matched ──> look ──> Followed ──> state ──> events, metrics, /v1/replication, /v1/dr
//! ```
//!
//! The leader asks each member a few times a second ([`super::contacts`]); an answer says how far the member has received
//! and applied, and its chain hash there, which is compared with the leader's own. Ten times a second the
//! leader notes how far is committed ([`commits`]); then, and when somebody asks, it looks at what it knows and finds the
//! state of each member ([`state`]).
//!
//! Ages are by the leader's clock alone, so clocks that differ between members change nothing. They are upper bounds. A
//! leader that no quorum confirms knows only a part of what was acknowledged: then the time since it was confirmed counts
//! as age, so that nothing looks current.
//!
//! Nothing of it survives a change of leaders or a restart but the suspensions, which are records of the cluster
//! ([`steer`]): a new leader asks anew. Proven by the tests of each file and by `tests/mirrors/following.rs`.

mod agree;
mod commits;
mod durability;
mod figures;
mod plan;
mod standing;
mod state;
mod steer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;

pub use agree::ChainQuestion;
pub use durability::{MirroredAnswer, MirroredQuestion};
pub use standing::{AppliedPoint, Standing};

use super::Inner;
use super::events::NewEvent;
use crate::api::{Event, MirrorState, StandbySite};
use crate::model::{ChainHash, MemberId, MemberRole, Revision};
use crate::raft::network::Suspensions;
use commits::Commits;
use figures::Figure;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// A member is not synchronized any more when it lacks something for longer than this and the way there and back.
const BEHIND_LIMIT: Duration = Duration::from_secs(1);
/// A member whose answers stay away for so long, and for two election timeouts, is disconnected.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// The rate at which a member receives is averaged over about so long.
const RATE_SPAN: Duration = Duration::from_secs(3);

/// Kinds of events.
const MIRROR_STATE: &str = "mirror-state";
const OBJECTIVE_MET: &str = "objective-met";
const OBJECTIVE_MISSED: &str = "objective-missed";

/// What the leader knows of the members.
#[derive(Debug, Default)]
pub struct Mirrors {
    tracked: Mutex<Tracked>,
    /// Held while somebody looks, so that changes are told in the order in which they are seen.
    looking: Mutex<()>,
    /// Who is to be sent nothing.
    pub suspensions: Suspensions,
    judging: agree::Judging,
}

#[derive(Debug, Default)]
struct Tracked {
    commits: Commits,
    members: BTreeMap<MemberId, Followed>,
    /// Whether each standby site met its objectives at the last look: the first of the two, the second.
    objectives: BTreeMap<String, (bool, bool)>,
}

/// One member.
#[derive(Debug, Default)]
struct Followed {
    /// When this leader first looked at it.
    since: Option<Instant>,
    /// None until it has answered, or has been silent for too long.
    state: Option<(MirrorState, Instant)>,
    heard: Option<Heard>,
    /// What it shows is at least as new as this moment.
    shown_as_of: Option<Instant>,
    /// The last position and revision at which its chain hash agreed.
    agreed: Option<(u64, Revision)>,
    /// How its chain hash disagreed, and since when it does.
    disagrees: Option<(String, Instant)>,
    /// Why it is being repaired, as it says instead of an answer.
    repairing: Option<String>,
    received: Rate,
    /// Which entry is the oldest that it lacks, and the time inside its frame, in milliseconds since 1970.
    send_time: Option<(u64, u64)>,
    /// The same of the oldest that it has received and not applied.
    redo_time: Option<(u64, u64)>,
    /// How long the newest canary took that it has shown, and which that was.
    canary: Option<(u64, Duration)>,
}

/// The newest answer of a member.
#[derive(Debug, Clone)]
struct Heard {
    standing: Standing,
    /// How old the oldest entry was that it had received and not applied, at most; none when nothing tells.
    redo_age: Option<Duration>,
}

/// How fast an index grows, averaged.
#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    last: Option<(u64, Instant)>,
    per_second: f64,
}

impl Rate {
    fn note(&mut self, index: u64, now: Instant) {
        let Some((before, at)) = self.last.replace((index, now)) else { return };
        let span = now.saturating_duration_since(at).as_secs_f64();
        if span > 0.0 {
            let weight = (span / RATE_SPAN.as_secs_f64()).min(1.0);
            let current = index.saturating_sub(before) as f64 / span;
            self.per_second += (current - self.per_second) * weight;
        }
    }
}

/// A change that others should hear of.
enum News {
    State { name: String, from: Option<MirrorState>, to: MirrorState, why: Option<String> },
    Objective { site: String, which: &'static str, met: bool },
}

/// What the event of an objective says.
fn objective(which: &str, site: &str) -> String {
    format!("the {which} objective of site {site}")
}

/// What one look finds.
struct Look {
    figures: Vec<Figure>,
    standby_sites: Vec<StandbySite>,
}

/// Looks at the members for as long as this one leads, and who is suspended always.
pub async fn run(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        let leads = inner.view().leads;
        if leads {
            inner.note_committed();
        } else {
            let mut tracked = inner.mirrors.tracked.lock();
            if !tracked.members.is_empty() {
                *tracked = Tracked::default();
            }
        }
        let looking = inner.clone();
        // The store may have to read a file for the age of an old entry.
        if tokio::task::spawn_blocking(move || looking.look_again(leads)).await.is_err() {
            return;
        }
    }
}

impl Inner {
    /// The last committed entry, as far as this member knows.
    pub(super) fn committed_index(&self) -> Option<u64> {
        self.raft.data_metrics().borrow_watched().local_committed.map(|at| at.index)
    }

    fn note_committed(&self) {
        if let Some(index) = self.committed_index() {
            self.mirrors.tracked.lock().commits.note(index, Instant::now());
        }
    }

    /// When a quorum confirmed this leader last: everything that was acknowledged before is known here.
    fn confirmed_at(&self, now: Instant) -> Option<Instant> {
        if self.is_sole_voter() {
            return Some(now);
        }
        let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        now.checked_sub(acked?.elapsed())
    }

    /// For how long no quorum has confirmed this leader: nothing while one has within the election timeout, none when none
    /// has yet.
    fn unconfirmed_for(&self) -> Option<Duration> {
        if self.leads_with_quorum().is_ok() {
            return Some(Duration::ZERO);
        }
        let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        acked.map(|at| at.elapsed())
    }

    /// A member has answered the question that was sent at `asked`, when so far was committed.
    pub(super) async fn hear(self: &Arc<Self>, id: MemberId, asked: Instant, committed: Option<u64>, said: Standing) {
        let inner = self.clone();
        let compared = said.applied;
        // Its chain hash may have to be read from a segment.
        let ours = tokio::task::spawn_blocking(move || match compared {
            Some(point) if inner.store.applied().is_some_and(|applied| applied.index >= point.position) => {
                inner.store.chain_at(point.position)
            }
            _ => Ok(None),
        });
        let ours = match ours.await {
            Ok(Ok(ours)) => ours,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a chain hash cannot be read");
                None
            }
            Err(_) => return,
        };
        let differs = self.take_answer(id, asked, committed, said, ours);
        if let Some((theirs, ours, for_long)) = differs
            && let Some(info) = self.members_by_id().get(&id)
        {
            self.judge(id, &info.name, theirs, ours, for_long).await;
        }
    }

    /// Keeps what a member has answered; gives where its chain hash is not this leader's, that, and for how long already,
    /// when it does not know of it.
    fn take_answer(
        &self,
        id: MemberId,
        asked: Instant,
        committed: Option<u64>,
        said: Standing,
        ours: Option<ChainHash>,
    ) -> Option<(AppliedPoint, ChainHash, Duration)> {
        let now = Instant::now();
        let confirmed = self.confirmed_at(now);
        let mut tracked = self.mirrors.tracked.lock();
        let Tracked { commits, members, .. } = &mut *tracked;
        let followed = members.entry(id).or_default();
        followed.repairing = None;
        if let (Some(shown), Some(sent)) = (said.canary_ms, self.last_canary())
            && shown == sent.time_ms
            && followed.canary.is_none_or(|(before, _)| before != shown)
        {
            followed.canary = Some((shown, now.saturating_duration_since(sent.sent)));
        }
        let applied = said.applied.map(|point| point.position);
        let lacks = applied < committed;
        let oldest = applied.map_or(0, |applied| applied + 1);
        let age = lacks.then(|| commits.age(oldest, now).or_else(|| self.frame_age(&mut followed.redo_time, oldest)));
        if !lacks {
            // Of what was acknowledged after that moment, by another leader perhaps, this one may not know.
            let known = confirmed.map(|confirmed| confirmed.min(asked));
            followed.shown_as_of = followed.shown_as_of.max(known);
        } else if let Some(age) = age.flatten() {
            // Everything that was committed before that moment.
            followed.shown_as_of = followed.shown_as_of.max(now.checked_sub(age));
        }
        let redo_age = match age {
            Some(age) if said.received_index > applied => age,
            _ => Some(Duration::ZERO),
        };
        let mut differs = None;
        if let (Some(point), Some(ours)) = (said.applied, ours) {
            if ours == point.chain {
                followed.agreed = followed.agreed.max(Some((point.position, point.revision)));
                followed.disagrees = None;
            } else {
                let why = format!("its chain hash at position {} is {}, not {ours}", point.position, point.chain);
                let since = followed.disagrees.take().map_or(now, |(_, since)| since);
                followed.disagrees = Some((why, since));
                differs = Some((point, ours, now.saturating_duration_since(since)));
            }
        }
        let differs = differs.filter(|_| said.quarantined.is_none());
        followed.heard = Some(Heard { standing: said, redo_age });
        differs
    }

    /// Whether a member says that it came back and is not verified yet.
    pub(super) fn says_unverified(&self, id: MemberId) -> bool {
        let tracked = self.mirrors.tracked.lock();
        let heard = tracked.members.get(&id).and_then(|followed| followed.heard.as_ref());
        heard.is_some_and(|heard| heard.standing.unverified)
    }

    /// A member says that it is being repaired, instead of an answer.
    pub(super) fn hear_of_repair(&self, id: MemberId, why: String) {
        self.mirrors.tracked.lock().members.entry(id).or_default().repairing = Some(why);
    }

    /// What is done ten times a second, whether or not anybody asks.
    fn look_again(&self, leads: bool) {
        // Whoever leads next must not send anything to a suspended member in its first moments.
        if let Err(error) = self.read_suspensions() {
            tracing::warn!(%error, "who is suspended cannot be read");
        }
        if !leads {
            return;
        }
        let figures = self.look().figures;
        let (now, members) = (Instant::now(), self.members_by_id());
        let mut tracked = self.mirrors.tracked.lock();
        tracked.members.retain(|id, _| members.contains_key(id));
        for figure in &figures {
            if let (Some(received), Some(followed)) = (figure.reply.received_index, tracked.members.get_mut(&figure.id))
            {
                followed.received.note(received, now);
            }
        }
    }

    /// Finds the state of every member, and whether the objectives are met. Whoever looks first tells what has changed, so
    /// nothing is ever shown to somebody who asks that is not among the events too.
    fn look(&self) -> Look {
        let _one_at_a_time = self.mirrors.looking.lock();
        let figures = self.member_figures();
        let standby_sites = self.standby_sites(&figures);
        // Another leader tells what has changed since this one was deposed.
        if self.view().leads {
            let mut news = Vec::new();
            self.compare_states(&figures, &mut news);
            self.compare_objectives(&figures, &standby_sites, &mut news);
            news.into_iter().for_each(|news| self.tell(news));
        }
        Look { figures, standby_sites }
    }

    fn compare_states(&self, figures: &[Figure], news: &mut Vec<News>) {
        let now = Instant::now();
        let mut tracked = self.mirrors.tracked.lock();
        for figure in figures.iter().filter(|figure| figure.seen.is_some()) {
            let followed = tracked.members.entry(figure.id).or_default();
            let (before, to) = (followed.state.map(|(state, _)| state), figure.reply.state);
            if before != Some(to) {
                followed.state = Some((to, now));
                let (name, why) = (figure.reply.name.clone(), figure.reply.reason.clone());
                news.push(News::State { name, from: before, to, why });
            }
        }
    }

    fn compare_objectives(&self, figures: &[Figure], sites: &[StandbySite], news: &mut Vec<News>) {
        let mut tracked = self.mirrors.tracked.lock();
        let mut now = BTreeMap::new();
        // What is not known yet is no news: a leader that has just begun has not heard of all mirrors, and a mirror that has
        // just come has nothing yet.
        let limit = SILENCE_LIMIT.max(self.election_max * 2);
        let since: BTreeMap<&str, Instant> = figures
            .iter()
            .filter_map(|figure| Some((&*figure.reply.name, tracked.members.get(&figure.id)?.since?)))
            .collect();
        let is_new = |mirror: &String| since.get(&**mirror).is_none_or(|since| since.elapsed() <= limit);
        let settled = |site: &StandbySite| self.led_for() > limit && !site.mirrors.iter().any(is_new);
        let known = |site: &StandbySite| site.rpo_seconds.is_some() && site.rto_seconds.is_some();
        for site in sites.iter().filter(|site| known(site) || settled(site)) {
            let met = (site.rpo_met, site.rto_met);
            // What an earlier leader has told last; at first all is well, or it is said.
            let was_met = |which| {
                let detail = objective(which, &site.site);
                let kinds = [OBJECTIVE_MET, OBJECTIVE_MISSED];
                let told = self.events.newest(|event| kinds.contains(&&*event.kind) && event.detail == detail);
                told.is_none_or(|event| event.kind == OBJECTIVE_MET)
            };
            let before = tracked.objectives.get(&site.site).copied();
            let before = before.unwrap_or_else(|| (was_met("rpo"), was_met("rto")));
            for (which, before, met) in [("rpo", before.0, met.0), ("rto", before.1, met.1)] {
                if before != met {
                    news.push(News::Objective { site: site.site.clone(), which, met });
                }
            }
            now.insert(site.site.clone(), met);
        }
        tracked.objectives = now;
    }

    fn tell(&self, news: News) {
        match news {
            News::State { name, from, to, why } => {
                // A leader that begins does not know; what was told of the member last is what others believe.
                let told = |event: &Event| event.kind == MIRROR_STATE && event.subject.as_ref() == Some(&name);
                let believed = if from.is_none() { self.events.newest(told).and_then(|event| event.to) } else { None };
                let before = from.map(|from| from.to_string()).or(believed);
                let word = before.as_deref().unwrap_or("unknown");
                let rest = why.map(|why| format!(": {why}")).unwrap_or_default();
                tracing::info!(name, from = word, to = %to, "a member's state changed{rest}");
                // Of a member of which nothing was told, all is well.
                if word == to.as_str() || before.is_none() && to == MirrorState::Synchronized {
                    return;
                }
                let detail = format!("{name} was {word} and is {to}{rest}");
                // A mirror at the edge of what the link carries goes to and fro; the log is spared that.
                let follows = [MirrorState::Synchronized, MirrorState::Synchronizing].map(|state| state.as_str());
                let spared =
                    follows.contains(&to.as_str()) && before.as_deref().is_none_or(|word| follows.contains(&word));
                let event = NewEvent::new(MIRROR_STATE, detail).about(name).change(before, to.as_str());
                match spared {
                    true => self.events.record_event(event),
                    false => self.record_cluster_event(event),
                }
            }
            News::Objective { site, which, met } => {
                let kind = if met { OBJECTIVE_MET } else { OBJECTIVE_MISSED };
                tracing::info!(site, objective = which, met, "an objective");
                self.record_cluster_event(NewEvent::new(kind, objective(which, &site)));
            }
        }
    }

    /// Whether a member stands in another site than this one, which leads, and is a mirror. While the primary site moves
    /// (`moves`) voters of another site are as good: the roles change in between, and where they stand does not.
    fn is_standby(&self, role: MemberRole, site: &str, moves: bool) -> bool {
        site != self.info.site && (moves || role == MemberRole::Mirror)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_slowly() {
        let start = Instant::now();
        let mut rate = Rate::default();
        rate.note(0, start);
        assert_eq!(rate.per_second, 0.0);
        for n in 1..=100u64 {
            rate.note(n * 50, start + Duration::from_millis(n * 100));
        }
        assert!((450.0..=500.0).contains(&rate.per_second), "{}", rate.per_second);
        for n in 101..=300u64 {
            rate.note(5000, start + Duration::from_millis(n * 100));
        }
        assert!(rate.per_second < 5.0, "{}", rate.per_second);
    }
}

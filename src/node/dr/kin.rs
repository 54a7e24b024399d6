//! Kin: members of one cluster on different timelines meet, and find out whose branch of history goes on.
//!
//! The fence in front of Raft refuses whatever comes from another timeline; that alone would leave two branches side by
//! side. So members exchange their lists of timelines, in a message that is exempt from the fence:
//!
//! - the leader of a branch that began at a forced failover tells it, again and again, to all members that the parent had
//!   and that have not come home;
//! - whoever refused a message of another timeline, or was refused, asks all members that it knows.
//!
//! What follows from comparing: an ancestor fences itself ([`super::fence`]); a descendant has told enough; siblings, two
//! sites forced from one parent, note the split and go on refusing each other, because only a person can choose. Which
//! branch a fenced member was fenced by counts as its own, so it passes the news on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::promote::Fork;
use crate::model::{ClusterId, Kinship, MemberId, MemberRole, Timeline, format_member_id, kinship, parse_member_id};
use crate::node::{Inner, peer_path};
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::AskStranger;
use crate::raft::types::MemberInfo;

/// How often is looked whether there is somebody to tell.
const LOOK: Duration = Duration::from_millis(250);
/// A member that does not answer is asked again after this, doubled up to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Siblings that were not heard of for so long are not told of any more.
const SPLIT_FORGOTTEN: Duration = Duration::from_secs(30);
/// A member that has not answered for so long is silent.
const SILENT: Duration = Duration::from_secs(15);

/// Where a member is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Where members reach it.
    pub peer_url: String,
    /// Where clients reach it.
    pub client_url: String,
}

/// What a member says of its branch; question and answer are alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kin {
    /// The version of the messages between members.
    pub format: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// Who says it, 16 hexadecimal digits.
    pub member_id: String,
    /// Its name.
    pub name: String,
    /// The site where the newest of these timelines has its members.
    pub site: String,
    /// The branch that goes on, as far as it knows: its own, or the one that it was fenced by.
    pub timelines: Vec<Timeline>,
    /// Members of that branch.
    pub members: Vec<Place>,
    /// The old members that shall rejoin by themselves.
    #[serde(default)]
    pub rejoin: Vec<String>,
    /// Of a member that is fenced: whether it comes home already. None of any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comes_home: Option<bool>,
}

/// What was last heard of members that have not come home, by the address at which members reach them.
pub type LastHeard = BTreeMap<String, (Instant, Option<bool>)>;

/// A member of a parent of this timeline that has not come home.
#[derive(Debug, Clone)]
pub struct Away {
    /// The id that it had.
    pub id: MemberId,
    /// Who and where.
    pub place: Place,
    /// Whether it comes home without being told.
    pub by_itself: bool,
    /// How it stands.
    pub standing: AwayStanding,
}

/// How a member stands that has not come home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwayStanding {
    /// It does not answer this member.
    Silent,
    /// It answers, and is not known to be fenced yet.
    Answers,
    /// It is fenced, and waits to be told.
    Fenced,
    /// It is on its way.
    ComesHome,
}

/// Two sites were forced from one parent.
#[derive(Debug, Clone)]
pub struct Split {
    /// The other branch.
    pub theirs: Kin,
    /// When it was heard of last.
    pub at: Instant,
}

/// Whom the parents of this timeline had and who has not come home yet, by id, and whether each does so by itself. Those
/// that are forgotten are among them: nobody waits for them, but whoever comes back must be told.
fn parted(inner: &Inner) -> BTreeMap<MemberId, (Place, bool)> {
    let members = inner.members_by_id();
    let home: BTreeSet<&str> = members.values().map(|info| info.name.as_str()).collect();
    let forks = inner.known_forks();
    let old = forks.into_iter().flat_map(|fork| {
        let by_itself = fork.rejoin;
        fork.members.into_iter().map(move |old| (by_itself.contains(&old.id), old))
    });
    let away = old.filter_map(|(by_itself, old)| Some((parse_member_id(&old.id)?, (old.place, by_itself))));
    away.filter(|(id, (place, _))| !members.contains_key(id) && !home.contains(place.name.as_str())).collect()
}

impl Inner {
    /// How the timelines began that this member knows, the first of them left out.
    pub(in crate::node) fn forks(&self) -> Result<Vec<Fork>, String> {
        let timelines = self.store.timelines();
        let mut forks = Vec::new();
        for timeline in timelines.iter().filter(|timeline| timeline.parent.is_some()) {
            let found = self.store.timeline_record(timeline.number).map_err(|error| error.to_string())?;
            let Some(record) = found else { continue };
            forks.push(serde_json::from_slice(&record).map_err(|error| error.to_string())?);
        }
        Ok(forks)
    }

    /// The same, as far as their records can be read.
    fn known_forks(&self) -> Vec<Fork> {
        self.forks().unwrap_or_else(|error| {
            tracing::error!(error, "how the timelines began cannot be read: nobody is told of them");
            Vec::new()
        })
    }

    /// Members of parents of this timeline that have not come home and are waited for, by name.
    pub(in crate::node) fn parted(&self) -> Vec<Away> {
        let mut parted = parted(self);
        if !parted.is_empty() {
            let forgotten = self.forgotten();
            parted.retain(|id, _| !forgotten.contains(id));
        }
        let heard = self.kin_heard.lock();
        let away = parted.into_iter().map(|(id, (place, by_itself))| {
            let lately = heard.get(&place.peer_url).filter(|(at, _)| at.elapsed() < SILENT);
            let standing = match lately {
                None => AwayStanding::Silent,
                Some((_, None)) => AwayStanding::Answers,
                Some((_, Some(false))) => AwayStanding::Fenced,
                Some((_, Some(true))) => AwayStanding::ComesHome,
            };
            Away { id, place, by_itself, standing }
        });
        let mut away: Vec<Away> = away.collect();
        away.sort_by(|a, b| a.place.name.cmp(&b.place.name));
        away
    }

    /// The site where the newest timeline has its voters; where it began, when they stand in several.
    pub(in crate::node) fn branch_site(&self) -> String {
        let (voters, members) = (self.target_voters(), self.members_by_id());
        let sites: BTreeSet<&String> =
            voters.iter().filter_map(|id| members.get(id)).map(|member| &member.site).collect();
        match (sites.first(), sites.len()) {
            (Some(site), 1) => (*site).clone(),
            _ => self.known_forks().pop().map_or(self.info.site.clone(), |fork| fork.site),
        }
    }

    /// What this member says of its branch.
    pub(in crate::node) fn kin(&self) -> Kin {
        let identity = self.http.identity();
        let mut kin = Kin {
            format: PEER_FORMAT,
            cluster: identity.cluster,
            member_id: format_member_id(self.id),
            name: self.info.name.clone(),
            site: self.branch_site(),
            timelines: self.store.timelines(),
            members: Vec::new(),
            rejoin: Vec::new(),
            comes_home: None,
        };
        if let Some(fenced) = self.fenced() {
            kin.comes_home = Some(fenced.rejoin);
            (kin.timelines, kin.members, kin.site) = (fenced.by, fenced.members, fenced.site);
            return kin;
        }
        if kin.timelines.is_empty() {
            // It has joined, and waits for its first copy.
            kin.timelines = vec![Timeline::first(identity.timeline())];
        }
        let leader = self.view().leader.as_ref().map(|leader| leader.id);
        let mut members: Vec<_> = self.members_by_id().into_iter().collect();
        // Who is named first is whom others are led to: the leader, else a voter.
        members.sort_by_key(|(id, info)| (leader != Some(*id), info.role != MemberRole::Voter));
        let place = |info: MemberInfo| Place { name: info.name, peer_url: info.peer_url, client_url: info.client_url };
        kin.members = members.into_iter().map(|(_, info)| place(info)).collect();
        kin.rejoin = self.known_forks().into_iter().flat_map(|fork| fork.rejoin).collect();
        kin
    }

    /// A member has said of what branch it is.
    pub(in crate::node) fn meet(self: &Arc<Self>, theirs: Kin) {
        if theirs.format != PEER_FORMAT || theirs.cluster != self.http.identity().cluster {
            return;
        }
        match kinship(&self.kin().timelines, &theirs.timelines) {
            Kinship::Ancestor => self.fence(theirs),
            Kinship::Siblings => {
                let mut split = self.split.lock();
                if split.is_none() {
                    tracing::error!(
                        member = theirs.name,
                        site = theirs.site,
                        "two sites were forced from one parent: both go on, and refuse each other"
                    );
                    let detail = format!("site {} was forced too, from the same parent: two primaries", theirs.site);
                    self.events.record("split", detail);
                }
                *split = Some(Split { theirs, at: Instant::now() });
            }
            Kinship::Same | Kinship::Descendant | Kinship::Strangers => {}
        }
    }

    /// The branch that was forced from the same parent, when one was met lately and not all of its members have come over
    /// to this one.
    pub(in crate::node) fn split(&self) -> Option<Kin> {
        let mut split = self.split.lock();
        let here = self.answering_names();
        let is_over = |split: &Split| {
            split.at.elapsed() > SPLIT_FORGOTTEN
                || split.theirs.members.iter().all(|member| here.contains(&member.name))
        };
        if split.as_ref().is_some_and(is_over) {
            *split = None;
        }
        split.as_ref().map(|split| split.theirs.clone())
    }

    /// The names of members of this branch that answer this member. One that has gone over to another branch is in the
    /// membership for a while still.
    pub(in crate::node) fn answering_names(&self) -> BTreeSet<String> {
        let members = self.members_by_id().into_iter();
        members.filter(|(id, _)| *id == self.id || self.answers(*id)).map(|(_, info)| info.name).collect()
    }

    /// Exchanges with the member at `url`; says whether it answered.
    async fn exchange(self: &Arc<Self>, url: &str) -> bool {
        let to = format!("{url}{}", peer_path::KIN);
        let answer = AskStranger::post_json::<Kin>(&self.http, &to, &self.kin(), ANSWER).await;
        match answer {
            Ok(theirs) => {
                self.kin_heard.lock().insert(url.to_owned(), (Instant::now(), theirs.comes_home));
                self.meet(theirs);
                true
            }
            Err(error) => {
                tracing::debug!(url, error, "nobody to compare timelines with");
                false
            }
        }
    }
}

/// Tells old members of this timeline, and asks around after a message of another timeline. The leader tells often; the
/// others now and then, so that each of them knows of a split by itself.
pub async fn run(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due: BTreeMap<String, (Instant, Duration)> = BTreeMap::new();
    let mut strangers = 0;
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        let met = inner.http.identity().strangers();
        let mut urls: BTreeSet<String> = BTreeSet::new();
        if met != strangers {
            strangers = met;
            let others = inner.members_by_id().into_iter().filter(|(id, _)| *id != inner.id);
            urls.extend(others.map(|(_, info)| info.peer_url));
        }
        let leads = inner.view().leads;
        let tells = inner.store.timelines().len() > 1;
        if tells || !urls.is_empty() {
            let now = Instant::now();
            let away = parted(&inner).into_values().map(|(place, _)| place.peer_url);
            inner.kin_heard.lock().retain(|_, (at, _)| at.elapsed() < SILENT);
            let is_due = |url: &String| due.get(url).is_none_or(|(at, _)| *at <= now);
            urls.extend(away.filter(is_due));
        }
        let asked = urls.into_iter().map(|url| {
            let inner = &inner;
            async move { (inner.exchange(&url).await, url) }
        });
        for (answered, url) in futures_util::future::join_all(asked).await {
            let pause = due.get(&url).map_or(AGAIN_FIRST, |(_, pause)| (*pause * 2).min(AGAIN_LAST));
            let pause = match leads {
                true if answered => AGAIN_FIRST,
                true => pause,
                false => AGAIN_LAST,
            };
            due.insert(url, (Instant::now() + pause, pause));
        }
    }
}

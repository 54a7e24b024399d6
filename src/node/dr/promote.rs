//! Promotion: the edit of a stopped member's log by which a new timeline begins, and what its first leader does.
//!
//! ```text
//!   mark ──> decided ([`super::rivals`]) ──> vote ──> entries: membership {self}, the timeline ──> member.json names the timeline ──> Raft
//!                     ([`edit`], before Raft starts)
//!        ──> it leads ──> applied, sealed, purged ──> site-mates invited ──> mark removed
//!                     ([`Inner::finish_promotion`])
//! ```
//!
//! The vote is uncommitted and of a term above every one that this member has seen, so that Raft elects the member by
//! itself: it is the only voter of the last membership in its log, whatever that was before, a joint one too. What the log
//! holds behind what is known to be committed is kept: it may have been acknowledged. The log is purged up to the fork
//! before anybody may join, so that nobody replays the old membership, and members that come home take a delta.
//!
//! Every step can be repeated: a crash anywhere is gone on from at the next start, led by the mark.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};

use super::kin::Place;
use super::rivals;
use super::survey::{Survey, SurveyQuestion};
use crate::api::Loss;
use crate::crash_points::{reach, reach_blocking};
use crate::model::{
    BeginTimeline, ClusterId, Command, Entry, EntryKind, LogId, MemberRole, TimelineId, Vote, command::set_time,
};
use crate::node::events::NewEvent;
use crate::node::founding::lobby::Lobby;
use crate::node::identity::Home;
use crate::node::invited::Invitation;
use crate::node::peers_file::PeersFile;
use crate::node::repair::fit_log;
use crate::node::{Inner, StartError, peer_path};
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::AskStranger;
use crate::raft::types::{MemberInfo, RaftMembership, encode_membership};
use crate::store::Store;
use crate::wal::{Done, Wal};

/// An order that is older, because the member was down meanwhile, is obeyed only when nobody shows that history went on.
const OBEYED_WITHIN: Duration = Duration::from_secs(10);
/// How long a member may take to say how it stands.
const LOOK: Duration = Duration::from_secs(1);
/// So many bytes of the log are read at a time.
const READ_BYTES: usize = 4 << 20;
/// Whoever waits for a timeline that does not begin hears of it so often.
const SAID_AGAIN: Duration = Duration::from_secs(10);
/// Before something that did not succeed is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// The mark in `member.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    /// The timeline that begins.
    pub id: TimelineId,
    /// The one that it forks from.
    pub parent: TimelineId,
    /// Random: where its revisions begin.
    pub offset: u64,
    /// What is remembered of it.
    pub fork: Fork,
    /// No other member of the site begins one: they were asked.
    #[serde(default)]
    pub decided: bool,
}

impl Eq for Promotion {}

/// How a timeline began: the record that the history keeps of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fork {
    /// The cluster.
    pub cluster: ClusterId,
    /// The timeline.
    pub id: TimelineId,
    /// The one that it forked from.
    pub parent: TimelineId,
    /// When it was ordered, in milliseconds since 1970.
    pub began_ms: u64,
    /// Who ordered it, as they said.
    #[serde(default)]
    pub by: String,
    /// Why, as they said.
    #[serde(default)]
    pub reason: String,
    /// The member that was promoted.
    pub member: String,
    /// Its site.
    pub site: String,
    /// Whether it was the rest of the primary site.
    #[serde(default)]
    pub survivor: bool,
    /// What was lost, as far as it was known then.
    pub loss: Loss,
    /// The other members that there were.
    pub members: Vec<OldMember>,
    /// The ids of those that rejoin by themselves.
    pub rejoin: Vec<String>,
}

/// A member of the parent timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldMember {
    /// Its id, 16 hexadecimal digits.
    pub id: String,
    /// Its site.
    pub site: String,
    /// What it was.
    pub role: MemberRole,
    /// Where it was.
    #[serde(flatten)]
    pub place: Place,
}

/// Waits for the wal.
async fn durable(begin: impl FnOnce(Done)) -> Result<(), StartError> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    begin(Box::new(move |result| drop(tx.send(result))));
    rx.await.map_err(|_| StartError::Other("the wal stopped".into()))?.map_err(StartError::from)
}

/// Writes the beginning of the timeline into the log of a member that does not run, unless that has been done.
pub async fn edit(
    home: &mut Home,
    wal: &Wal,
    store: &Store,
    own: (u64, &MemberInfo),
    http: &impl AskStranger,
    lobby: &Lobby,
) -> Result<(), StartError> {
    let Some(promotion) = home.file.promotion.clone() else { return Ok(()) };
    let (id, info) = own;
    let begun = store.timelines().iter().any(|timeline| timeline.id == promotion.id);
    let to_write = !begun && !is_written(wal, store, &promotion)?;
    if to_write
        && promotion.fork.is_old()
        && let Some(why) = history_went_on(&promotion, http).await
    {
        tracing::error!(why, "the order to begin a timeline is old, and is dropped: history went on without it");
        lobby.not_promoted();
        return home.change(|file| file.promotion = None);
    }
    if to_write && !promotion.decided {
        // It died before it had asked the others of its site.
        let answered = rivals::ask(&promotion, http).await;
        if let Some(other) = lobby.decide(promotion.id, &answered) {
            tracing::warn!(timeline = %other, "another member of this site is promoted: this one gives way");
            lobby.not_promoted();
            return home.change(|file| file.promotion = None);
        }
        home.change(|file| file.promotion.iter_mut().for_each(|promotion| promotion.decided = true))?;
    }
    PeersFile::forget(&*home.disk, &home.dir);
    if to_write {
        // A copy may have been installed of which the log does not know yet.
        fit_log(wal, store).await?;
        let state = wal.state();
        let last = state.last.max(store.applied());
        // What a crash left of an edit is gone on with under the vote of that one.
        let half = half_written(wal, id)?;
        let term = match half {
            Some(term) => term,
            None => last.map_or(0, |last| last.term).max(state.vote.map_or(0, |vote| vote.term)) + 1,
        };
        if half.is_none() {
            durable(|done| wal.save_vote(Vote { term, member: id, committed: false }, done)).await?;
            reach("force-vote-written").await;
        }
        let mut index = last.map_or(0, |last| last.index + 1);
        let mut entries = Vec::new();
        if half.is_none() {
            let info = MemberInfo { role: MemberRole::Voter, ..info.clone() };
            let membership = RaftMembership::new(vec![[id].into()], BTreeMap::from([(id, info)]));
            let membership = membership.map_err(|e| StartError::Other(format!("impossible membership: {e}")))?;
            let log_id = LogId { term, leader: id, index };
            let payload = encode_membership(&membership);
            entries.push(Entry { log_id, kind: EntryKind::Membership, payload });
            index += 1;
        }
        let time_ms = promotion.fork.began_ms;
        let record = serde_json::to_vec(&promotion.fork).expect("strings and numbers always serialise").into();
        let Promotion { id: timeline, parent, offset, .. } = promotion;
        let begin = Command::Begin(BeginTimeline { time_ms, id: timeline, parent, offset, record });
        let log_id = LogId { term, leader: id, index };
        entries.push(Entry { log_id, kind: EntryKind::Command, payload: set_time(begin.encode(), time_ms) });
        durable(|done| wal.append(entries, done)).await?;
        reach("force-log-written").await;
    }
    let timeline = promotion.id;
    home.change(|file| {
        if let Some(cluster) = &mut file.cluster {
            cluster.timeline = timeline;
        }
    })?;
    reach("force-timeline-named").await;
    Ok(())
}

/// Why an order that lay for a while must not be obeyed any more: a member of the parent timeline leads it, or another branch
/// came of it. Nobody who answers is no reason: then things are as they were when it was given.
async fn history_went_on(promotion: &Promotion, http: &impl AskStranger) -> Option<String> {
    let asked = promotion.fork.members.iter().map(|old| async move {
        let question = SurveyQuestion { format: PEER_FORMAT, cluster: promotion.fork.cluster, promoting: None };
        let url = format!("{}{}", old.place.peer_url, peer_path::DR_SURVEY);
        let survey = http.post_json::<Survey>(&url, &question, LOOK).await.ok()?;
        let newest = survey.timelines.last()?.id;
        let descends = survey.timelines.iter().any(|timeline| timeline.id == promotion.parent);
        let ours = survey.timelines.iter().any(|timeline| timeline.id == promotion.id);
        match () {
            () if newest == promotion.parent && survey.leads => Some(format!("{} leads", old.place.name)),
            () if newest != promotion.parent && descends && !ours => {
                Some(format!("{} is on timeline {newest}", old.place.name))
            }
            () if survey.decided && survey.promoting.is_some_and(|theirs| theirs != promotion.id) => {
                Some(format!("{} is being promoted", old.place.name))
            }
            () => None,
        }
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().next()
}

/// Whether an entry that is not applied yet begins this timeline. It may have led already, and written more.
fn is_written(wal: &Wal, store: &Store, promotion: &Promotion) -> Result<bool, StartError> {
    let applied = store.applied().map_or(0, |applied| applied.index + 1);
    let mut next = applied.max(wal.first_index());
    loop {
        let entries = wal.entries(next, u64::MAX, READ_BYTES)?;
        let Some(last) = entries.last() else { return Ok(false) };
        next = last.log_id.index + 1;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Command) {
            if matches!(Command::decode(&entry.payload), Ok(Command::Begin(begin)) if begin.id == promotion.id) {
                return Ok(true);
            }
        }
    }
}

/// The term of an edit of which only the membership was written.
fn half_written(wal: &Wal, id: u64) -> Result<Option<u64>, StartError> {
    let vote = wal.state().vote.filter(|vote| vote.member == id && !vote.committed);
    let last = last_entry(wal)?.filter(|last| last.kind == EntryKind::Membership && last.log_id.leader == id);
    Ok(vote.zip(last).filter(|(vote, last)| vote.term == last.log_id.term).map(|(vote, _)| vote.term))
}

fn last_entry(wal: &Wal) -> Result<Option<Entry>, StartError> {
    let Some(last) = wal.state().last else { return Ok(None) };
    if wal.first_index() > last.index {
        return Ok(None);
    }
    Ok(wal.entries(last.index, last.index + 1, usize::MAX)?.pop())
}

impl Fork {
    /// Whether it was ordered so long ago that the order must be looked at again before it is obeyed.
    fn is_old(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        now.saturating_sub(self.began_ms) > OBEYED_WITHIN.as_millis() as u64
    }
}

impl Inner {
    /// What the first leader of a timeline does, once; the mark in `member.json` is what is left to be done.
    pub(in crate::node) async fn finish_promotion(self: Arc<Self>) {
        let Some(promotion) = self.home.lock().file.promotion.clone() else { return };
        if let Err(error) = self.raft.trigger().elect(false).await {
            tracing::warn!(%error, "the election could not be begun at once");
        }
        let begins = |store: &Store| store.timelines().iter().any(|timeline| timeline.id == promotion.id);
        let mut applied = self.applied.clone();
        loop {
            match tokio::time::timeout(SAID_AGAIN, applied.wait_for(|_| begins(&self.store))).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                Err(_) => {
                    let (applied, leads) = (self.store.applied(), self.view().leads);
                    tracing::warn!(timeline = %promotion.id, ?applied, leads, "the timeline has not begun yet");
                }
            }
        }
        reach_blocking("force-timeline-applied");
        let fork = promotion.fork;
        let detail = format!(
            "{} of site {} was promoted by {}: {}; {}",
            fork.member,
            fork.site,
            if fork.by.is_empty() { "somebody" } else { &fork.by },
            if fork.reason.is_empty() { "no reason was given" } else { &fork.reason },
            fork.loss.words()
        );
        tracing::warn!(timeline = %fork.id, detail, "a timeline has begun");
        self.record_cluster_event(NewEvent::new("timeline-began", detail).about(&fork.member));
        let Some(begun) = self.store.applied() else { return };
        loop {
            match self.finish_once(&fork, begun).await {
                Ok(()) => break,
                Err(why) => {
                    tracing::debug!(why, "the promotion is not finished yet");
                    if self.is_stopping() || self.fenced().is_some() {
                        return;
                    }
                    let sealed = self.store.sealed().is_some_and(|sealed| sealed.index >= begun.index);
                    if sealed && self.view().leader.as_ref().is_some_and(|leader| leader.id != self.id) {
                        // Somebody else leads the timeline already: nothing is left that only this member could do.
                        break;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        reach("force-finished").await;
        if let Err(error) = self.home.lock().change(|file| file.promotion = None) {
            // It is found to be finished at the next start.
            tracing::error!(%error, "the end of the promotion cannot be written down");
        }
    }

    async fn finish_once(self: &Arc<Self>, fork: &Fork, begun: LogId) -> Result<(), String> {
        self.leads_with_quorum()?;
        let (store, wal) = (self.store.clone(), self.wal.clone());
        let sealed = tokio::task::spawn_blocking(move || {
            let durable = wal.durable_index().unwrap_or(0);
            store.seal_all(durable).map_err(|error| error.to_string())
        });
        sealed.await.map_err(|error| error.to_string())??;
        if self.store.sealed().is_none_or(|sealed| sealed.index < begun.index) {
            return Err("the beginning is not sealed".into());
        }
        // openraft purges only what a snapshot covers; ours is a cursor, so making one costs nothing.
        let covered = self.raft.metrics().borrow_watched().snapshot.map_or(0, |at| at.index);
        if covered < begun.index {
            self.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
            return Err("raft has not taken note of a snapshot".into());
        }
        self.raft.trigger().purge_log(begun.index).await.map_err(|error| error.to_string())?;
        if self.wal.first_index() <= begun.index {
            return Err("the log is not purged".into());
        }
        self.end_own_suspension().await.map_err(|error| error.to_string())?;
        let members = self.members_by_id();
        let here = |name: &str| members.values().any(|info| info.name == name);
        let mates = fork.members.iter().filter(|old| fork.rejoin.contains(&old.id) && !here(&old.place.name));
        for mate in mates {
            let invitation = Invitation {
                name: mate.place.name.clone(),
                role: Some(MemberRole::Voter),
                site: Some(mate.site.clone()),
                peer_url: None,
            };
            self.invite(&invitation).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

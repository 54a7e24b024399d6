//! Who answers the leader now, and how far away they are.
//!
//! The leader asks every other member how it stands, and keeps when it was answered and how long that took; what the
//! answer says goes to [`super::mirrors`].
//! Raft's own heartbeats do not serve for this: one that takes longer than the interval between two is given up, so a
//! member that is far away would seem to be dead.
//!
//! Invariants: what is told is never older than [`Contacts::forget`] allows, and a member that left the membership is
//! forgotten. Nothing of it survives a restart or a change of leaders: a new leader asks anew. Proven by the tests below
//! and, for what it decides, by `tests/cluster/members.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;

use super::mirrors::Standing;
use super::quarantine::QuarantineAnswer;
use super::{Inner, peer_path};
use crate::model::MemberId;
use crate::raft::peer_http::PeerError;

/// The shortest pause between two questions to one member.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// So many of the newest answers are remembered; the quickest of them is the round trip.
const SAMPLES: usize = 8;

/// When each member answered last, and how quickly.
#[derive(Debug, Default)]
pub struct Contacts(Mutex<BTreeMap<MemberId, Contact>>);

#[derive(Debug, Default)]
struct Contact {
    answered: Option<Instant>,
    took: VecDeque<Duration>,
    /// A question is on its way; there is one at a time.
    asking: bool,
}

impl Contacts {
    /// A question goes out, unless one is on its way.
    fn begin(&self, id: MemberId) -> bool {
        let mut contacts = self.0.lock();
        let contact = contacts.entry(id).or_default();
        !std::mem::replace(&mut contact.asking, true)
    }

    /// A question has been answered, or not.
    fn end(&self, id: MemberId, took: Option<Duration>) {
        let mut contacts = self.0.lock();
        let contact = contacts.entry(id).or_default();
        contact.asking = false;
        if let Some(took) = took {
            contact.answered = Some(Instant::now());
            contact.took.push_back(took);
            if contact.took.len() > SAMPLES {
                contact.took.pop_front();
            }
        }
    }

    /// How long ago a member answered; `None` when it never did.
    pub fn silent_for(&self, id: MemberId) -> Option<Duration> {
        self.0.lock().get(&id)?.answered.map(|at| at.elapsed())
    }

    /// How far away a member is: the quickest of its newest answers, which says more of the way there than of how busy
    /// the member was.
    pub fn round_trip(&self, id: MemberId) -> Option<Duration> {
        self.0.lock().get(&id)?.took.iter().min().copied()
    }

    /// The same once so many answers are known that it does not come from a moment in which the member was busy.
    pub fn sure_round_trip(&self, id: MemberId) -> Option<Duration> {
        self.0.lock().get(&id).filter(|contact| contact.took.len() == SAMPLES)?.took.iter().min().copied()
    }

    /// Forgets all but these.
    fn forget(&self, keep: impl Fn(MemberId) -> bool) {
        self.0.lock().retain(|id, contact| keep(*id) || contact.asking);
    }
}

/// Asks the other members for as long as this one leads.
pub async fn run(inner: Arc<Inner>) {
    let pause = (inner.election_max / 3).max(PAUSE_MIN);
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if inner.is_stopping() {
            return;
        }
        if !inner.view().leads {
            inner.contacts.forget(|_| false);
            continue;
        }
        let members = inner.members_by_id();
        inner.contacts.forget(|id| members.contains_key(&id));
        for id in members.into_keys().filter(|id| *id != inner.id) {
            if inner.contacts.begin(id) {
                let inner = inner.clone();
                tokio::spawn(async move {
                    let url = inner.addresses.get(id).unwrap_or_default();
                    // Longer than any member that still is of use may take; one question at a time bounds what is asked.
                    let limit = inner.election_max.max(Duration::from_secs(1));
                    let (sent, committed) = (Instant::now(), inner.committed_index());
                    let answer = inner.http.post(id, &url, peer_path::PING, "", limit).await;
                    inner.contacts.end(id, answer.is_ok().then(|| sent.elapsed()));
                    if let Err(PeerError::Status { status: 503, by_member: true, body, .. }) = &answer
                        && let Ok(answer) = serde_json::from_str::<QuarantineAnswer>(body)
                    {
                        inner.hear_of_repair(id, answer.quarantined.why.to_string());
                    }
                    // A member of an earlier program says nothing of itself.
                    let said = answer.ok().filter(|said| !said.is_empty());
                    match said.map(|said| serde_json::from_slice::<Standing>(&said)) {
                        Some(Ok(standing)) => inner.hear(id, sent, committed, standing).await,
                        Some(Err(error)) => tracing::warn!(%error, "how a member stands cannot be read"),
                        None => {}
                    }
                });
            }
        }
    }
}

impl Inner {
    /// How long ago a member last answered this leader, by a question or by Raft; `None` when it never did since this
    /// member leads.
    pub(super) fn silent_for(&self, id: MemberId) -> Option<Duration> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let heard = metrics.heartbeat.as_ref().and_then(|map| map.get(&id).cloned().flatten());
        let by_raft = heard.map(|at| at.elapsed());
        by_raft.into_iter().chain(self.contacts.silent_for(id)).min()
    }

    /// Asks members at this moment and gives those that answered, this one included. What they answered before counts for
    /// nothing: one may have died since.
    pub(super) async fn who_answers(&self, ids: &BTreeSet<MemberId>) -> BTreeSet<MemberId> {
        let asked = ids.iter().copied().map(|id| async move {
            if id == self.id {
                return Some(id);
            }
            let url = self.addresses.get(id)?;
            let answer = self.http.post(id, &url, peer_path::PING, "", self.election_max).await;
            answer.is_ok().then_some(id)
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Whether a member has answered this leader lately.
    pub(super) fn answers(&self, id: MemberId) -> bool {
        id == self.id || self.silent_for(id).is_some_and(|silent| silent <= self.election_max * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_is_the_quickest_of_the_newest_answers() {
        let contacts = Contacts::default();
        assert_eq!((contacts.round_trip(1), contacts.silent_for(1)), (None, None));
        assert!(contacts.begin(1) && !contacts.begin(1), "one question at a time");
        contacts.end(1, None);
        assert_eq!((contacts.round_trip(1), contacts.silent_for(1)), (None, None), "no answer is no contact");
        for took in [5, 80, 90] {
            assert!(contacts.begin(1));
            contacts.end(1, Some(Duration::from_millis(took)));
        }
        assert_eq!(contacts.round_trip(1), Some(Duration::from_millis(5)));
        assert_eq!(contacts.sure_round_trip(1), None, "three answers may all come from a busy moment");
        assert!(contacts.silent_for(1).is_some());
        for _ in 0..SAMPLES {
            contacts.end(1, Some(Duration::from_millis(70)));
        }
        assert_eq!(contacts.round_trip(1), Some(Duration::from_millis(70)), "old answers are forgotten");
        assert_eq!(contacts.sure_round_trip(1), Some(Duration::from_millis(70)));
        contacts.forget(|id| id != 1);
        assert_eq!(contacts.round_trip(1), None);
    }
}

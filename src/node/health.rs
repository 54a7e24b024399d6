//! What this member says of itself: status and health.

use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::WatchReceiver;

use super::Inner;
use crate::api;
use crate::model::MemberRole;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheck {
    /// The process works and its storage has not failed.
    Live,
    /// It can serve linearizable reads and writes.
    Ready,
    /// It leads, a quorum has confirmed so within the election timeout, and its timeline has begun.
    Leader,
    /// Ready, and a voter.
    Primary,
    /// A mirror whose lag is known and small enough.
    Mirror {
        /// The largest lag.
        max_lag: Duration,
    },
}

impl Inner {
    pub(super) fn health(&self, check: HealthCheck) -> Result<(), String> {
        if let Err(why) = self.check_serves() {
            return match check {
                // It works, and is about to repair itself, or to wait until it may rejoin.
                HealthCheck::Live => Ok(()),
                _ => Err(why.to_string()),
            };
        }
        if let Some(why) = self.failure.borrow().clone() {
            return Err(why);
        }
        match check {
            HealthCheck::Live => Ok(()),
            HealthCheck::Ready => self.ready(),
            HealthCheck::Leader => self.leads_with_quorum(),
            // While the primary site moves it is where the lead is: one site at each moment.
            HealthCheck::Primary => match (self.stands_with_leader(), self.view().role) {
                (Some(true), _) | (None, MemberRole::Voter) => self.ready(),
                (Some(false), _) => Err("the lead is in another site".into()),
                (None, MemberRole::Mirror) => Err("it is a mirror".into()),
            },
            HealthCheck::Mirror { max_lag } => {
                if self.view().role != MemberRole::Mirror {
                    return Err("it is not a mirror".into());
                }
                self.lag_within(max_lag)
            }
        }
    }

    pub(super) fn ready(&self) -> Result<(), String> {
        self.check_serves().map_err(|error| error.to_string())?;
        if self.is_stopping() {
            return Err("the member is stopping".into());
        }
        if !self.is_founded() {
            return Err("it has not received the beginning of the history yet".into());
        }
        let view = self.view();
        match &view.leader {
            None => Err(match self.http.identity().recent_refusal() {
                Some(why) => format!("no leader is known; {why}"),
                None => "no leader is known".into(),
            }),
            Some(leader) if leader.id == self.id => self.leads_with_quorum(),
            // A question every third of the election timeout, one lost, and the time it takes: the leader has answered
            // recently, a quorum has confirmed it, and what it had committed is applied here.
            Some(_) => self.lag_within(self.election_max + 2 * self.probe_interval()),
        }
    }

    pub(super) fn leads_with_quorum(&self) -> Result<(), String> {
        let view = self.view();
        if !view.leads {
            return Err("it does not lead".into());
        }
        // A member that was just promoted is elected before it has applied what makes it the first of its timeline: until
        // then it speaks for the parent.
        if self.founded().is_none_or(|(_, timeline)| timeline != self.http.identity().timeline()) {
            return Err("the beginning of its timeline is not applied yet".into());
        }
        if self.is_sole_voter() {
            return Ok(());
        }
        let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        match acked.map(|at| at.elapsed()) {
            Some(age) if age <= self.election_max => Ok(()),
            Some(age) => Err(format!("a quorum has not answered for {} ms", age.as_millis())),
            None => Err("a quorum has not answered yet".into()),
        }
    }

    /// Whether this member is its own quorum: nobody else acknowledges anything.
    pub(super) fn is_sole_voter(&self) -> bool {
        self.view().decides_alone
    }

    fn lag_within(&self, max_lag: Duration) -> Result<(), String> {
        match self.lag.get() {
            Some(lag) if lag <= max_lag => Ok(()),
            Some(lag) => Err(format!("its lag is {} ms", lag.as_millis())),
            None => Err("its lag is not known".into()),
        }
    }

    pub(super) fn status(&self) -> api::Status {
        let view = self.view();
        let applied = self.store.applied().map(|at| at.index);
        let metrics = self.raft.metrics().borrow_watched().clone();
        let (committed, last) = at_least(applied, metrics.local_committed.map(|at| at.index), metrics.last_log_index);
        let timeline = self.store.timelines().last().map(|t| api::TimelineName { number: t.number, id: t.id });
        let cluster = self.store.cluster().zip(timeline);
        api::Status {
            name: self.info.name.clone(),
            id: self.id,
            site: self.info.site.clone(),
            role: if self.is_fenced() { api::Role::Fenced } else { view.role() },
            version: env!("CARGO_PKG_VERSION").into(),
            feature_level: self.store.feature_level(),
            ready: self.ready().is_ok(),
            quarantined: self.quarantined().map(|quarantine| quarantine.why.to_string()),
            cluster: cluster.map(|(id, timeline)| api::Cluster { id, timeline }),
            leader: view.leader.as_ref().map(|leader| api::Leader {
                id: leader.id,
                name: leader.name.clone(),
                client_url: leader.client_url.to_string(),
            }),
            term: view.term,
            revision: self.store.revision(),
            last_index: last,
            committed_index: committed,
            applied_index: applied,
            sealed_index: self.store.sealed().map(|at| at.index),
            lag_seconds: self.lag.get().map(|lag| lag.as_secs_f64()),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            members: view.members.clone(),
        }
    }
}

/// How far is committed, and how far the log goes, when so far is applied: Raft tells both a little later than they are.
fn at_least(applied: Option<u64>, committed: Option<u64>, last: Option<u64>) -> (Option<u64>, Option<u64>) {
    let committed = committed.max(applied);
    (committed, last.max(committed))
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn what_is_applied_is_committed_and_in_the_log() {
        assert_eq!(at_least(Some(7), Some(5), Some(6)), (Some(7), Some(7)));
        assert_eq!(at_least(Some(5), Some(6), Some(9)), (Some(6), Some(9)));
        assert_eq!(at_least(Some(1), None, None), (Some(1), Some(1)));
        assert_eq!(at_least(None, None, None), (None, None));
    }
}

//! Linearizable reads by ReadIndex, on any member.
//!
//! A read may be served once this member has applied everything that was committed when the read began. To learn how far
//! that is, one *round* asks the leader, and the leader asks a quorum whether it still leads. All reads that wait share
//! the next round; at most [`MAX_ROUNDS`] rounds are on their way, so a slow link does not make reads wait for two.
//!
//! A finished round is also what the lag of this member is measured by: whatever it has applied by then is at most as
//! old as the moment when it sent the question.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Inner, NodeError, peer_path};
use crate::raft::types::from_raft_log_id;

/// Rounds on their way at the same time.
const MAX_ROUNDS: usize = 2;
/// Reads that wait for a round; past it a read is refused.
pub const MAX_WAITING: usize = 65_536;

/// The index up to which a member must have applied before it serves a read.
pub type ReadIndex = u64;

/// A read that waits for a round.
pub struct WaitingRead {
    /// Whether another member asks.
    pub forwarded: bool,
    /// Where the index goes.
    pub answer: oneshot::Sender<Result<ReadIndex, NodeError>>,
}

/// The leader's answer to another member's round.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadIndexAnswer {
    /// The index, or why there is none.
    pub result: Result<ReadIndex, NodeError>,
}

/// How old what this member serves may be.
#[derive(Debug, Default)]
pub struct Lag {
    /// When the newest question was sent that was answered and whose answer is applied.
    confirmed: Mutex<Option<Instant>>,
    /// Whether a round's index is still to be applied and is waited for.
    waits: AtomicBool,
}

impl Lag {
    /// An upper bound of the age; `None` when it is not known.
    pub fn get(&self) -> Option<Duration> {
        self.confirmed.lock().map(|at| at.elapsed())
    }

    fn confirm(&self, sent: Instant) {
        let mut confirmed = self.confirmed.lock();
        *confirmed = (*confirmed).max(Some(sent));
    }
}

/// Gathers reads into rounds until nobody can ask any more.
pub async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<WaitingRead>) {
    let rounds = Arc::new(Semaphore::new(MAX_ROUNDS));
    loop {
        let permit = rounds.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut waiting = Vec::new();
        if queue.recv_many(&mut waiting, MAX_WAITING).await == 0 {
            return;
        }
        let inner = inner.clone();
        tokio::spawn(async move {
            inner.metrics.read_index_rounds.inc();
            inner.metrics.read_index_waiters.inc_by(waiting.len() as u64);
            let own = waiting.iter().any(|read| !read.forwarded);
            let (sent, result) = rounds_until_somebody_leads(&inner, own).await;
            drop(permit);
            if let Ok(index) = result
                && inner.is_applied(index)
            {
                inner.lag.confirm(sent);
            } else if let Ok(index) = result
                && own
                && !inner.lag.waits.swap(true, Ordering::Relaxed)
            {
                // Still to be applied: the lag is confirmed when it is, without anybody waiting for it here. One at a
                // time: a member that is far behind must not gather one for every round.
                let inner = inner.clone();
                tokio::spawn(async move {
                    if inner.wait_applied(index).await {
                        inner.lag.confirm(sent);
                    }
                    inner.lag.waits.store(false, Ordering::Relaxed);
                });
            }
            for read in waiting {
                let _ = read.answer.send(result.clone());
            }
        });
    }
}

/// One round, and another when nobody led at that moment and somebody soon will. Says when the last one was sent.
async fn rounds_until_somebody_leads(inner: &Inner, may_ask_others: bool) -> (Instant, Result<ReadIndex, NodeError>) {
    let first = Instant::now();
    loop {
        if may_ask_others {
            inner.wait_for_leader().await;
        }
        let sent = Instant::now();
        let result = round(inner, may_ask_others).await;
        // When this member knows nobody it has waited already.
        let refused = matches!(result, Err(NodeError::NoLeader { .. })) && inner.view().leader.is_some();
        if !(refused && may_ask_others && inner.try_again(first).await) {
            return (sent, result);
        }
    }
}

/// Asks the quorum when this member leads, else the leader. A round of which all were asked by others goes no further
/// than this member.
async fn round(inner: &Inner, may_ask_others: bool) -> Result<ReadIndex, NodeError> {
    let view = inner.view();
    match &view.leader {
        None => Err(inner.no_leader()),
        Some(leader) if leader.id == inner.id => {
            let limit = inner.limits.request_timeout;
            let linearizer = inner.raft.get_read_linearizer(ReadPolicy::ReadIndex);
            match tokio::time::timeout(limit, linearizer).await {
                Ok(Ok(linearizer)) => Ok(from_raft_log_id(linearizer.read_log_id().log_id()).index),
                Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => Err(inner.no_leader()),
                Ok(Err(e)) => Err(NodeError::NoQuorum { detail: e.to_string() }),
                Err(_) => Err(NodeError::NoQuorum { detail: format!("no answer within {limit:?}") }),
            }
        }
        Some(_) if !may_ask_others => Err(inner.no_leader()),
        Some(leader) => {
            let limit = inner.limits.request_timeout;
            let question = serde_json::json!({});
            let asked = inner.http.post_json::<ReadIndexAnswer>(
                leader.id,
                &leader.peer_url,
                peer_path::READ_INDEX,
                &question,
                limit,
            );
            match asked.await {
                Ok(answer) => answer.result,
                Err(e) => Err(NodeError::LeaderUnreachable { url: leader.peer_url.to_string(), detail: e.to_string() }),
            }
        }
    }
}

//! `?durability=mirrored`: after a write is committed, wait until a mirror in another site has it on its disk.
//!
//! The write is committed by then, so the answer is 200 either way; it only says whether a mirror had it in time. Any
//! member asks the leader, which knows what each member has acknowledged: a mirror acknowledges an entry when it is
//! durable there. The leader waits for all that it has committed when it is asked, which includes the write.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};

use super::super::{Inner, Node, RequestContext, peer_path};

/// Asks the leader to wait.
#[derive(Debug, Serialize, Deserialize)]
pub struct MirroredQuestion {
    /// For so long at most, in milliseconds.
    pub wait_ms: u64,
}

/// The leader's answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct MirroredAnswer {
    /// Whether a mirror in another site has everything that was committed.
    pub mirrored: bool,
}

impl Node {
    /// Whether a mirror in another site has on its disk what was committed before this call; waits for that until the
    /// setting `mirror_wait_ms` or the request's time ends.
    pub async fn mirrored(&self, ctx: &RequestContext) -> bool {
        // Raft's own tasks run on its runtime; the caller may live on another.
        let inner = self.0.clone();
        let wait = inner.mirror_wait.min(ctx.remaining());
        let task = self.0.background.handle.spawn(async move { inner.is_mirrored(wait).await });
        task.await.unwrap_or(false)
    }
}

impl Inner {
    async fn is_mirrored(&self, wait: Duration) -> bool {
        let leader = self.view().leader.clone();
        match leader {
            None => false,
            Some(leader) if leader.id == self.id => self.wait_mirrored(wait).await,
            Some(leader) => {
                let url = self.addresses.get(leader.id).unwrap_or(leader.peer_url);
                let question = MirroredQuestion { wait_ms: wait.as_millis() as u64 };
                let limit = wait + Duration::from_millis(200);
                let asked =
                    self.http.post_json::<MirroredAnswer>(leader.id, &url, peer_path::MIRRORED, &question, limit);
                asked.await.is_ok_and(|answer| answer.mirrored)
            }
        }
    }

    /// The leader's side; false at once when it does not lead.
    pub(in crate::node) async fn wait_mirrored(&self, wait: Duration) -> bool {
        if !self.view().leads {
            return false;
        }
        let Some(index) = self.applied.borrow().map(|applied| applied.index) else { return false };
        let mut metrics = self.raft.metrics();
        let reached = async {
            loop {
                {
                    let moves = self.running_switchover().is_some();
                    let now = metrics.borrow_watched();
                    let members = now.membership_config.nodes();
                    let mirrors = members.filter(|(_, info)| self.is_standby(info.role, &info.site, moves));
                    let matched = |id| now.replication.as_ref()?.get(id).cloned().flatten().map(|at| at.index);
                    if mirrors.into_iter().any(|(id, _)| matched(id) >= Some(index)) {
                        return true;
                    }
                    if now.replication.is_none() {
                        return false;
                    }
                }
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(wait, reached).await.unwrap_or(false)
    }
}

//! How a member learns that it was removed, and what it does then.
//!
//! A leader stops sending to a member the moment it removes it, so the last that the member hears may be that it belongs.
//! It finds out because it asks: every member asks the leader now and then how far is committed
//! ([`super::background::probe_lag`]), and one that hears nothing of a leader asks all others in turn. The leader answers
//! a stranger that it was removed, and only when that is certain: a quorum has just confirmed that it leads, and the
//! membership that it has *applied* up to there does not name the member. (Whoever joined was told so only after the
//! membership with it was committed, so it is in there unless it was removed.)
//!
//! A member that was told so writes it to `member.json` before anything else and ends. It is not started again with its
//! data: its id is never used again, and its entries may be of no branch that the cluster kept.
//!
//! Proven by `tests/cluster/members.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Inner, NodeError};
use crate::model::{MemberId, format_member_id};
use crate::raft::types::decode_membership;

/// How long a member that was removed goes on refusing before it ends, so that a reply that is under way, perhaps the one
/// to whoever removed it, still gets out.
const LAST_WORDS: Duration = Duration::from_millis(500);

impl Inner {
    /// Whether `id` certainly is no member any more, as a leader knows it: `Ok(false)` when it is or may be one.
    pub(super) async fn was_removed(&self, id: MemberId) -> Result<bool, NodeError> {
        let index = self.read_index(true).await?;
        self.wait_applied_in_time(index).await?;
        // A newer membership that is not applied yet may have it back; an id never comes back, but this is cheap.
        if self.members_by_id().contains_key(&id) {
            return Ok(false);
        }
        let Some((_, payload)) = self.store.membership() else { return Ok(false) };
        match decode_membership(&payload) {
            Ok(membership) => Ok(membership.get_node(&id).is_none()),
            Err(detail) => Err(NodeError::StorageFailed { detail }),
        }
    }

    /// What a leader answers to a question of `sender`, before anything else.
    pub(super) async fn refuse_removed(&self, sender: MemberId) -> Result<(), NodeError> {
        if self.members_by_id().contains_key(&sender) || !self.view().leads {
            return Ok(());
        }
        match self.was_removed(sender).await? {
            true => Err(NodeError::Removed { detail: self.removed_words(sender) }),
            false => Ok(()),
        }
    }

    pub(super) fn removed_words(&self, id: MemberId) -> String {
        let cluster = self.http.identity().cluster;
        format!("member {} was removed from cluster {cluster}", format_member_id(id))
    }

    /// This member was removed: it says so durably, refuses what comes, and ends.
    pub(super) fn end_as_removed(self: &Arc<Self>) {
        if self.removed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.stopping.store(true, Ordering::Relaxed);
        if let Err(e) = self.home.lock().change(|file| file.removed = true) {
            // It will be told again after a restart.
            tracing::error!(error = %e, "cannot write down that this member was removed");
        }
        let words = format!(
            "{}: it serves nothing any more. To bring it back, move its data directory away and let it join as a new \
             member",
            self.removed_words(self.id)
        );
        tracing::error!("{words}");
        let inner = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LAST_WORDS).await;
            inner.fail(words);
        });
    }
}

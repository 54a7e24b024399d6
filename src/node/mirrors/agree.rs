//! Who is wrong when a member's chain hash is not the leader's: the others are asked, and the majority decides.
//!
//! ```text
//!   hear ── the hashes differ at a position ──> judge ── each member: your hash there? ──> the fewer are wrong
//! ```
//!
//! Whoever is wrong goes into quarantine and is repaired ([`super::super::quarantine`]); when that is the leader, it hands
//! over first. When no side has more members than the other, the leader counts as right: it is what was acknowledged.
//! One judgement at a time. Nobody is judged while a member could still turn it that has not answered, or is not there yet:
//! the member's next answer asks again, for [`PATIENCE`]. Who has said nothing by then does not count. Proven below and by
//! `tests/mirrors/quarantine.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::quarantine::Damage;
use super::super::{Inner, peer_path};
use super::AppliedPoint;
use crate::model::{ChainHash, MemberId};
use crate::store::ReadError;

/// So long those are waited for that could turn a judgement: longer than a member stands still that still is of use.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for a chain hash.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChainQuestion {
    /// Where.
    pub position: u64,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChainAnswer {
    /// The hash there; none when this member does not hold it, or not yet.
    pub chain: Option<ChainHash>,
    /// Whether it will: it has not applied so far. A member of an earlier program does not tell.
    #[serde(default)]
    pub not_yet: bool,
}

/// Whether a judgement is under way.
#[derive(Debug, Default)]
pub struct Judging(AtomicBool);

/// Who is wrong.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Member,
    Leader,
}

/// `ours` and `theirs` differ; what do the others say? None while the `silent` could turn it, who have said nothing yet.
fn verdict(
    ours: ChainHash,
    theirs: ChainHash,
    others: impl IntoIterator<Item = ChainHash>,
    silent: usize,
) -> Option<Wrong> {
    let (mut with_us, mut with_them) = (1, 1);
    for other in others {
        with_us += usize::from(other == ours);
        with_them += usize::from(other == theirs);
    }
    match () {
        () if with_them > with_us + silent => Some(Wrong::Leader),
        () if with_us >= with_them + silent => Some(Wrong::Member),
        () => None,
    }
}

impl Inner {
    /// The chain hash at a position, for another member.
    pub(in crate::node) async fn chain_for(&self, question: ChainQuestion) -> ChainAnswer {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || {
            let has = store.applied().is_some_and(|applied| applied.index >= question.position);
            let chain = if has { store.chain_at(question.position)? } else { None };
            Ok::<_, ReadError>(ChainAnswer { chain, not_yet: !has })
        });
        match read.await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => tracing::warn!(%error, "a chain hash cannot be read"),
            Err(_) => {}
        }
        ChainAnswer { chain: None, not_yet: false }
    }

    /// Decides who is wrong, and sees to it that it is repaired. They have differed `for_long`.
    pub(super) async fn judge(
        self: &Arc<Self>,
        id: MemberId,
        name: &str,
        theirs: AppliedPoint,
        ours: ChainHash,
        for_long: Duration,
    ) {
        if self.mirrors.judging.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let position = theirs.position;
        let members = self.members_by_id();
        let asked = members.keys().copied().filter(|other| *other != self.id && *other != id).map(|other| async move {
            let url = self.addresses.get(other).unwrap_or_default();
            let question = ChainQuestion { position };
            let asked = self.http.post_json::<ChainAnswer>(other, &url, peer_path::CHAIN, &question, self.election_max);
            match asked.await {
                Ok(answer) => (other, answer),
                // Those that are away, or are being repaired, are not waited for.
                Err(_) => (other, ChainAnswer { chain: None, not_yet: self.answers(other) }),
            }
        });
        let answers = futures_util::future::join_all(asked).await;
        let others: BTreeMap<MemberId, ChainHash> =
            answers.iter().filter_map(|(other, answer)| Some((*other, answer.chain?))).collect();
        let waits = for_long < PATIENCE;
        let silent = answers.iter().filter(|(other, answer)| {
            waits && answer.chain.is_none() && answer.not_yet && !self.mirrors.suspensions.contains(*other)
        });
        match verdict(ours, theirs.chain, others.values().copied(), silent.count()) {
            None => tracing::debug!(name, position, "not all have said yet which chain hash is right"),
            Some(Wrong::Member) => {
                tracing::error!(name, position, "a member's chain hash disagrees: it has applied something else");
                let why = Damage::chain(position, &self.info.name);
                if let Err(error) = self.order_quarantine(id, why).await {
                    tracing::warn!(name, ?error, "the member could not be told");
                }
            }
            Some(Wrong::Leader) => {
                let count = 1 + others.values().filter(|other| **other == theirs.chain).count();
                let what =
                    format!("its chain hash at position {position} disagrees with that of {count} other members");
                self.quarantine(Damage { position: Some(position), ..Damage::said(what) });
            }
        }
        self.mirrors.judging.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewer_are_wrong_and_the_leader_wins_a_tie() {
        let hash = |n: u8| ChainHash([n; 16]);
        let verdict = |others: &[u8]| verdict(hash(1), hash(2), others.iter().copied().map(hash), 0).unwrap();
        assert_eq!(verdict(&[]), Wrong::Member);
        assert_eq!(verdict(&[1, 1]), Wrong::Member);
        assert_eq!(verdict(&[2]), Wrong::Leader);
        assert_eq!(verdict(&[1, 2]), Wrong::Member, "a tie");
        assert_eq!(verdict(&[2, 2, 1]), Wrong::Leader);
        assert_eq!(verdict(&[3, 3, 3]), Wrong::Member, "they say nothing of the two");
    }
    #[test]
    fn nobody_is_judged_while_others_could_turn_it() {
        let hash = |n: u8| ChainHash([n; 16]);
        let verdict = |others: &[u8], silent| verdict(hash(1), hash(2), others.iter().copied().map(hash), silent);
        assert_eq!(verdict(&[], 1), None, "it may be the leader that is wrong");
        assert_eq!(verdict(&[1], 1), Some(Wrong::Member), "at worst it is a tie");
        assert_eq!(verdict(&[1], 2), None);
        assert_eq!(verdict(&[2], 1), None, "it may become a tie");
        assert_eq!(verdict(&[2, 2], 1), Some(Wrong::Leader));
    }
}

//! Two orders at once to members of one site: which of the two timelines begins.
//!
//! An order is written down before anybody else of the site is asked, and whoever asks names its timeline. Of two members
//! that have both not decided yet the larger id gives way; to one that has decided everybody does. A decision is written
//! down too, before the member is opened anew, so that it holds over a crash, and so that a member that died before it
//! asks when it is started again.
//!
//! Why that is enough: when two members reach each other, one of the two asks after the other has written its order down,
//! and so hears of it; and whoever is asked before it decides knows of the asker when it does. Two that do not reach each
//! other may both begin: that is a split, which mixes nothing.
//!
//! Proven by the tests below (every order of events) and by `tests/dr/failover_two_orders.rs`.

use std::time::{Duration, Instant};

use super::promote::Promotion;
use super::survey::{Survey, SurveyQuestion};
use crate::model::TimelineId;
use crate::node::peer_path;
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::AskStranger;

/// How long a member of the site may take to answer.
const LOOK: Duration = Duration::from_millis(500);
/// Who answered the survey a moment ago and does not now may be closed, to be opened anew for an order of its own: it is asked
/// again for so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(50);

/// Another timeline, and whether it begins for certain.
pub type Rival = (TimelineId, bool);

/// What a member that is told to begin a timeline knows of others that are told too.
#[derive(Debug, Default)]
pub struct Rivalry {
    /// The smallest timeline with which somebody else has asked.
    met: Option<TimelineId>,
    /// It begins its own: everybody who asks from now on gives way.
    decided: bool,
}

impl Rivalry {
    /// Somebody else who has not decided yet asks, and is told to begin this timeline.
    pub fn meet(&mut self, theirs: TimelineId) {
        self.met = Some(self.met.map_or(theirs, |met| met.min(theirs)));
    }

    /// Whether it begins its own, whoever asks.
    pub fn is_decided(&self) -> bool {
        self.decided
    }

    /// Decides, of what the others answered and of who asked meanwhile; gives the timeline to give way to.
    pub fn decide(&mut self, own: TimelineId, answered: &[Rival]) -> Option<TimelineId> {
        let stronger = answered.iter().filter(|(theirs, decided)| *decided || *theirs < own).map(|(theirs, _)| *theirs);
        let first = stronger.chain(self.met.filter(|met| *met < own)).min();
        self.decided = first.is_none();
        first
    }
}

/// Asks the other members of the site what they have been told to begin, or have begun.
pub async fn ask(promotion: &Promotion, http: &impl AskStranger) -> Vec<Rival> {
    let fork = &promotion.fork;
    let mates = fork.members.iter().filter(|old| old.site == fork.site);
    let asked = mates.map(|mate| async move {
        let question = SurveyQuestion { format: PEER_FORMAT, cluster: fork.cluster, promoting: Some(promotion.id) };
        let url = format!("{}{}", mate.place.peer_url, peer_path::DR_SURVEY);
        // Who did not answer the survey is not waited for either.
        let patience = if fork.rejoin.contains(&mate.id) { PATIENCE } else { Duration::ZERO };
        let began = Instant::now();
        loop {
            match http.post_json::<Survey>(&url, &question, LOOK).await {
                Ok(survey) => return rival(promotion, &survey),
                Err(_) if began.elapsed() < patience => tokio::time::sleep(AGAIN).await,
                Err(_) => return None,
            }
        }
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}

/// What a member that answers has been told to begin from the same parent, or has begun.
fn rival(promotion: &Promotion, survey: &Survey) -> Option<Rival> {
    if let Some(theirs) = survey.promoting.filter(|theirs| *theirs != promotion.id) {
        return Some((theirs, survey.decided));
    }
    let fork = |timeline: &&crate::model::Timeline| timeline.parent == Some(promotion.parent);
    let begun = survey.timelines.iter().find(fork).filter(|begun| begun.id != promotion.id && !survey.fenced)?;
    Some((begun.id, true))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::model::RandomId;

    /// A member that was told to begin a timeline, as the others meet it.
    struct Told {
        id: TimelineId,
        written: bool,
        rivalry: Rivalry,
        /// What the other has answered, once it was asked.
        answered: Option<Vec<Rival>>,
        goes_on: Option<bool>,
    }

    /// What one of the two does next: write its order down, ask the other, decide.
    fn step(one: &RefCell<Told>, other: &RefCell<Told>) -> bool {
        let (mut one, mut other) = (one.borrow_mut(), other.borrow_mut());
        let id = one.id;
        if !one.written {
            one.written = true;
        } else if one.answered.is_none() {
            let mut answered = Vec::new();
            if other.written && other.goes_on != Some(false) {
                other.rivalry.meet(id);
                answered.push((other.id, other.rivalry.is_decided()));
            }
            one.answered = Some(answered);
        } else if one.goes_on.is_none() {
            let answered = one.answered.clone().unwrap_or_default();
            one.goes_on = Some(one.rivalry.decide(id, &answered).is_none());
        } else {
            return false;
        }
        true
    }

    #[test]
    fn of_two_orders_that_are_obeyed_at_once_exactly_one_is_carried_out_in_every_order_of_events() {
        // Three steps each: every way to put them in one line.
        for turns in 0u32..64 {
            if turns.count_ones() != 3 {
                continue;
            }
            let told = |id: u8| {
                let id = RandomId([id; 16]);
                RefCell::new(Told { id, written: false, rivalry: Rivalry::default(), answered: None, goes_on: None })
            };
            let (small, large) = (told(1), told(2));
            for turn in 0..6 {
                let moved = if turns >> turn & 1 == 0 { step(&small, &large) } else { step(&large, &small) };
                assert!(moved);
            }
            let go_on = [small, large].map(|told| told.into_inner().goes_on.unwrap());
            assert_eq!(go_on.iter().filter(|goes_on| **goes_on).count(), 1, "{turns:06b}: {go_on:?}");
        }
    }
}

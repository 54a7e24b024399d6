//! The common point of two histories: the last position at which both have the same chain hash.
//!
//! Equal hashes at a position prove that everything up to there is equal, different ones that something up to there
//! differs. So it is found by dividing: each round asks the other side at some positions at once and narrows the window
//! between the last that agrees and the first that does not. No number is believed: a fork position is only where the
//! first questions go.
//!
//! ```text
//!   agrees ─────────────── last │ window: not known │ differs_from ─────────────── differs
//! ```
//!
//! Compaction drops hashes on either side. Those at every 4,096th position stay for ever, so a wide window is divided by
//! them; in a narrow one every position is asked that is known here. What neither proves stays in the window: the result
//! is then not *exact*, the common point is lower than the truth may be, and what lies in the window is *unproven*.
//!
//! The same search finds the last entry that two logs have in common, by log ids, which Raft gives out once. The search
//! does no I/O itself ([`Search::questions`], [`Search::take`]). Proven by the tests below, against every position.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::{ChainHash, ClusterId, LogId, Timeline};
use crate::node::Inner;
use crate::store::{Promised, Store, StoreError};

/// So many positions are asked at once.
pub const ASKED_AT_ONCE: usize = 64;
/// Positions whose hashes stay for ever; see [`crate::store::Store::common_points`].
const KEPT_EVERY: u64 = 4096;
/// A window of at most so many positions is asked position by position.
const NARROW: u64 = 2 * KEPT_EVERY;

/// What is asked of a member of the new timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonQuestion {
    /// The cluster that the asking member belongs to.
    pub cluster: ClusterId,
    /// At these positions, [`ASKED_AT_ONCE`] at most.
    pub positions: Vec<u64>,
}

/// What it has at a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonPosition {
    /// Where.
    pub position: u64,
    /// The chain hash; none when it is not there (any more, or yet).
    pub chain: Option<ChainHash>,
    /// The log id of the entry; none when its frame is not there.
    pub log_id: Option<LogId>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonAnswer {
    /// Its timelines, from the first to its current one.
    pub timelines: Vec<Timeline>,
    /// The last position that it has applied.
    pub applied: Option<u64>,
    /// What a copy that it sends, now or later, is good for.
    pub promises: Promised,
    /// What it has at each position asked.
    pub at: Vec<CommonPosition>,
}

impl CommonAnswer {
    /// What a store has.
    pub fn of(store: &Store, question: &CommonQuestion) -> Result<CommonAnswer, StoreError> {
        let applied = store.applied().map(|applied| applied.index);
        let at = question.positions.iter().take(ASKED_AT_ONCE).map(|position| {
            let position = *position;
            if Some(position) > applied {
                return Ok(CommonPosition { position, chain: None, log_id: None });
            }
            let log_id = store.frame_at(position)?.map(|frame| frame.head().log_id);
            Ok(CommonPosition { position, chain: store.chain_at(position)?, log_id })
        });
        let at = at.collect::<Result<_, StoreError>>()?;
        Ok(CommonAnswer { timelines: store.timelines(), applied, promises: store.promises(), at })
    }
}

impl Inner {
    /// What is here at some positions, for a member of an abandoned timeline.
    pub(in crate::node) async fn answer_common(&self, question: CommonQuestion) -> Result<CommonAnswer, String> {
        self.check_serves().map_err(|error| error.to_string())?;
        let store = self.store.clone();
        let answer = tokio::task::spawn_blocking(move || CommonAnswer::of(&store, &question)).await;
        answer.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

/// What a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The last position that is proven to be common; none when nothing is.
    pub last: Option<u64>,
    /// From this position on nothing is common: it differs, or one side ends before it.
    pub differs_from: u64,
}

impl Found {
    /// Whether no position is left of which it is not known.
    pub fn is_exact(&self) -> bool {
        self.first_unproven() == self.differs_from
    }

    /// The first position behind the common point.
    pub fn first_unproven(&self) -> u64 {
        self.last.map_or(0, |last| last + 1)
    }
}

/// The two sides contradict each other: they agree behind a place where they differ. One of them is not what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the histories agree at position {agrees} and differ at {differs} before it")]
pub struct Contradiction {
    /// Where they agree.
    pub agrees: u64,
    /// Where they differ.
    pub differs: u64,
}

/// A search under way.
#[derive(Debug)]
pub struct Search {
    found: Found,
    /// Positions of the window that one side does not know.
    unknown: BTreeSet<u64>,
    /// Where a first look is worth it.
    hints: Vec<u64>,
}

impl Search {
    /// Among the positions from `first` on, up to but without `end`; what is before `first` is known to be common.
    pub fn new(first: u64, end: u64) -> Search {
        let found = Found { last: first.checked_sub(1), differs_from: end.max(first) };
        Search { found, unknown: BTreeSet::new(), hints: Vec::new() }
    }

    /// Looks about here first, in case it is true.
    pub fn look_at(mut self, position: u64) -> Search {
        self.hints = vec![position, position.saturating_add(1)];
        self
    }

    /// What is known so far; in the end, what there is to know.
    pub fn found(&self) -> Found {
        self.found
    }

    fn is_open(&self, position: u64) -> bool {
        (self.found.first_unproven()..self.found.differs_from).contains(&position) && !self.unknown.contains(&position)
    }

    /// The positions to ask next, with what is there on this side; none when the search is over. `own` says what is at a
    /// position here.
    pub fn questions<T, E>(&mut self, mut own: impl FnMut(u64) -> Result<Option<T>, E>) -> Result<Vec<(u64, T)>, E> {
        let mut questions: Vec<(u64, T)> = Vec::new();
        loop {
            let candidates = match std::mem::take(&mut self.hints) {
                hints if hints.is_empty() => self.candidates(),
                hints => {
                    hints.into_iter().filter(|position| self.is_open(*position)).chain(self.candidates()).collect()
                }
            };
            if candidates.is_empty() {
                return Ok(questions);
            }
            for position in candidates.into_iter().take(ASKED_AT_ONCE) {
                match own(position)? {
                    Some(own) if questions.iter().all(|(asked, _)| *asked != position) => {
                        questions.push((position, own))
                    }
                    Some(_) => {}
                    None => drop(self.unknown.insert(position)),
                }
            }
            if !questions.is_empty() {
                return Ok(questions);
            }
        }
    }

    /// Some positions of the window, as far apart from each other as they can be.
    fn candidates(&self) -> Vec<u64> {
        let Found { differs_from: end, .. } = self.found;
        let first = self.found.first_unproven();
        let spread = |open: Vec<u64>| match open.len() {
            few if few <= ASKED_AT_ONCE => open,
            // Each stands in the middle of its share.
            many => (0..ASKED_AT_ONCE).map(|n| open[(2 * n + 1) * many / (2 * ASKED_AT_ONCE)]).collect(),
        };
        if end - first > NARROW {
            // Evenly over the window first, so that it need not be gone through; then whatever is left of them.
            let step = ((end - first) / ASKED_AT_ONCE as u64).max(KEPT_EVERY);
            let even = (0..ASKED_AT_ONCE as u64).map(|n| (first + n * step).next_multiple_of(KEPT_EVERY));
            let even: BTreeSet<u64> = even.filter(|position| self.is_open(*position)).collect();
            if !even.is_empty() {
                return even.into_iter().collect();
            }
            let kept = (first.next_multiple_of(KEPT_EVERY)..end).step_by(KEPT_EVERY as usize);
            let kept: Vec<u64> = kept.filter(|position| self.is_open(*position)).take(ASKED_AT_ONCE).collect();
            if !kept.is_empty() {
                return kept;
            }
            // Neither side should lack them; the ends of the window are as good as any other place.
            let ends = (first..end).take(NARROW as usize).chain((first..end).rev().take(NARROW as usize));
            return spread(ends.filter(|position| self.is_open(*position)).collect());
        }
        spread((first..end).filter(|position| self.is_open(*position)).collect())
    }

    /// Takes the answers: whether both have the same at a position; none when the other side does not know.
    pub fn take(&mut self, answers: impl IntoIterator<Item = (u64, Option<bool>)>) -> Result<(), Contradiction> {
        for (position, same) in answers {
            match same {
                None => drop(self.unknown.insert(position)),
                Some(true) => self.found.last = self.found.last.max(Some(position)),
                Some(false) => self.found.differs_from = self.found.differs_from.min(position),
            }
        }
        let Found { last, differs_from } = self.found;
        match last {
            Some(agrees) if agrees >= differs_from => Err(Contradiction { agrees, differs: differs_from }),
            _ => {
                self.unknown = self.unknown.split_off(&self.found.first_unproven());
                drop(self.unknown.split_off(&differs_from));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A history as a search sees it: what it has at each position.
    struct Side(Vec<Option<u64>>);

    impl Side {
        fn new(rng: &mut StdRng, common: &[u64], behind: usize, holes: f64) -> Side {
            let own = (0..behind).map(|_| rng.random());
            let mut all: Vec<Option<u64>> = common.iter().copied().chain(own).map(Some).collect();
            let last = all.len().saturating_sub(1);
            // What compaction has come to, up to some place.
            let upto = rng.random_range(0..=all.len());
            for (position, here) in all.iter_mut().enumerate().take(upto) {
                let kept = (position as u64).is_multiple_of(KEPT_EVERY) || position == last;
                if !kept && rng.random_bool(holes) {
                    *here = None;
                }
            }
            Side(all)
        }

        fn at(&self, position: u64) -> Option<u64> {
            *self.0.get(position as usize)?
        }
    }

    fn search(ours: &Side, theirs: &Side, hint: Option<u64>) -> (Found, usize) {
        let mut search = Search::new(0, ours.0.len().min(theirs.0.len()) as u64);
        if let Some(hint) = hint {
            search = search.look_at(hint);
        }
        for round in 0.. {
            let questions = search.questions(|position| Ok::<_, ()>(ours.at(position))).unwrap();
            assert!(questions.len() <= ASKED_AT_ONCE + 2);
            if questions.is_empty() {
                return (search.found(), round);
            }
            let answers = questions.into_iter().map(|(at, own)| (at, theirs.at(at).map(|theirs| theirs == own)));
            search.take(answers.collect::<Vec<_>>()).unwrap();
            assert!(round < 400, "it does not come to an end");
        }
        unreachable!()
    }

    /// What there is to know, position by position.
    fn truth(ours: &Side, theirs: &Side) -> Found {
        let end = ours.0.len().min(theirs.0.len()) as u64;
        let known = |at: &u64| ours.at(*at).is_some() && theirs.at(*at).is_some();
        let same = |at: &u64| ours.at(*at) == theirs.at(*at);
        let last = (0..end).rev().filter(known).find(same);
        let differs_from = (0..end).filter(known).find(|at| !same(at)).unwrap_or(end);
        Found { last, differs_from }
    }

    #[test]
    fn a_search_finds_what_there_is_to_know_whatever_is_lost_on_either_side() {
        let seed = std::env::var("LIFEBOAT_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
        eprintln!("repeat with LIFEBOAT_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut inexact = 0;
        for case in 0..80 {
            let rng = &mut rng;
            let longest = [5, 300, 9000, 30_000][case % 4];
            let common: Vec<u64> = (0..rng.random_range(0..longest)).map(|_| rng.random()).collect();
            let mut side = || {
                let holes = [0.0, 0.3, 0.97, 1.0][rng.random_range(0..4)];
                let behind = rng.random_range(0..longest);
                Side::new(rng, &common, behind, holes)
            };
            let (ours, theirs) = (side(), side());
            let hint = match rng.random_range(0..3) {
                0 => None,
                1 => (common.len() as u64).checked_sub(1),
                _ => Some(rng.random_range(0..longest as u64 * 2)),
            };
            let (found, _) = search(&ours, &theirs, hint);
            assert_eq!(found, truth(&ours, &theirs));
            inexact += usize::from(!found.is_exact());
        }
        assert!(inexact > 4, "{inexact}");
    }

    #[test]
    fn few_rounds_are_enough_and_one_when_the_fork_is_where_it_is_said_to_be() {
        let mut rng = StdRng::seed_from_u64(7);
        let common: Vec<u64> = (0..900_000).map(|_| rng.random()).collect();
        let (ours, theirs) = (Side::new(&mut rng, &common, 70_000, 0.0), Side::new(&mut rng, &common, 50_000, 0.0));
        let (found, rounds) = search(&ours, &theirs, Some(899_999));
        assert_eq!((found, rounds), (Found { last: Some(899_999), differs_from: 900_000 }, 1));
        let (found, rounds) = search(&ours, &theirs, None);
        assert_eq!(found.last, Some(899_999));
        assert!(rounds <= 6, "{rounds}");
        // A lie costs a round and changes nothing.
        assert_eq!(search(&ours, &theirs, Some(10)).0, found);
    }

    #[test]
    fn nothing_in_common_and_all_in_common() {
        let side = |values: &[u64]| Side(values.iter().copied().map(Some).collect());
        assert_eq!(search(&side(&[1]), &side(&[2]), None).0, Found { last: None, differs_from: 0 });
        assert_eq!(search(&side(&[]), &side(&[2]), None).0, Found { last: None, differs_from: 0 });
        let found = search(&side(&[1, 2]), &side(&[1, 2, 3]), None).0;
        assert!(found.is_exact());
        assert_eq!(found, Found { last: Some(1), differs_from: 2 });
    }

    #[test]
    fn sides_that_contradict_each_other_are_told_so() {
        let mut search = Search::new(0, 10);
        search.take([(3, Some(true))]).unwrap();
        assert_eq!(search.take([(2, Some(false))]), Err(Contradiction { agrees: 3, differs: 2 }));
    }
}

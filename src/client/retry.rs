//! What is repeated, and what never is.
//!
//! | what happened | a read | a write with a key | a write without |
//! |---|---|---|---|
//! | nothing was sent | again | again | again |
//! | a problem with `retry: safe` | again | again | again |
//! | the answer did not come, was cut, or says `unknown` | again | again, with the same key | the outcome is unknown |
//! | a problem with `retry: never` | final | final | final |
//!
//! Two problems are an exception. `wrong-timeline`, and `fenced`, send the client to the other members, and are final when
//! all say so.
//! `feature-not-active` is final although it is `safe`: a cluster that is not new enough for keys stays so until somebody
//! upgrades it, and the member has waited already.
//!
//! Once a write may have been applied, only an answer to the write itself ends the doubt: that a later attempt was not
//! taken on says nothing about an earlier one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::api::{Problem, ProblemCode, Retry, TimelineId, WriteOutcome};

/// The pause after the first failed attempt; it doubles from one attempt to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause, unless a member asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A member that asks for more is not believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

/// What a request is, as far as repeating it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// Done twice, it is as done once.
    Read,
    /// The members know it again by its key, or doing it twice does no harm; but whether it was done matters.
    Keyed,
    /// Done twice, it may be done twice.
    Once,
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nobody got a byte of it.
    NotSent(String),
    /// It was sent, and there is no whole answer.
    Lost(String),
    /// A member answered with a problem.
    Problem {
        problem: Box<Problem>,
        /// For how long the member wants to be left alone.
        retry_after: Option<Duration>,
        /// The timeline it is on, when it said so.
        timeline: Option<TimelineId>,
    },
    /// Somebody answered who is no member, or none that we understand.
    Foreign { status: u16, detail: String },
}

impl Seen {
    /// In words.
    pub fn reason(&self) -> String {
        match self {
            Seen::NotSent(why) | Seen::Lost(why) => why.clone(),
            Seen::Problem { problem, .. } => problem.to_string(),
            Seen::Foreign { status, detail } => format!("status {status}: {detail}"),
        }
    }

    /// What kind of problem it is, when it is one.
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Seen::Problem { problem, .. } => problem.code(),
            _ => None,
        }
    }

    /// Where a fenced member says that history went on.
    pub fn primary(&self) -> Option<&str> {
        match self {
            Seen::Problem { problem, .. } => problem.primary.as_deref(),
            _ => None,
        }
    }

    /// The problem, if there is one.
    pub fn problem(self) -> Option<Box<Problem>> {
        match self {
            Seen::Problem { problem, .. } => Some(problem),
            _ => None,
        }
    }

    /// Whether the member is no use for a while: it is gone, or it has no leader itself.
    pub fn is_member_gone(&self) -> bool {
        match self {
            Seen::NotSent(_) | Seen::Lost(_) | Seen::Foreign { .. } => true,
            Seen::Problem { problem, .. } => !matches!(problem.status, 429 | 507),
        }
    }
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Try again.
    Again {
        /// This attempt may have been done, or may yet be.
        doubt: bool,
        /// For how long not to ask.
        retry_after: Option<Duration>,
        /// Not to ask anybody, as all members are in the same situation.
        everywhere: bool,
    },
    /// It is decided, and was not done.
    Refused,
    /// The same, unless an earlier attempt was done.
    RefusedThisTime,
    /// Nobody knows.
    Unknown,
}

/// Judges one attempt.
pub fn judge(safety: Safety, seen: &Seen) -> Verdict {
    let again = |doubt| Verdict::Again { doubt, retry_after: None, everywhere: false };
    let lost = || match safety {
        Safety::Read => again(false),
        Safety::Keyed => again(true),
        Safety::Once => Verdict::Unknown,
    };
    match seen {
        Seen::NotSent(_) => again(false),
        Seen::Lost(_) => lost(),
        // A proxy in between could not reach a member, or lost its answer.
        Seen::Foreign { status: 500.., .. } => lost(),
        Seen::Foreign { .. } => Verdict::RefusedThisTime,
        Seen::Problem { problem, retry_after, .. } => {
            if problem.outcome == Some(WriteOutcome::Unknown) || problem.retry == Retry::Unknown {
                return lost();
            }
            match (problem.code(), problem.retry) {
                (Some(ProblemCode::FeatureNotActive), _) => Verdict::RefusedThisTime,
                (Some(ProblemCode::WrongTimeline), _) => again(false),
                (_, Retry::Never) if is_outcome(problem) => Verdict::Refused,
                (_, Retry::Never) => Verdict::RefusedThisTime,
                (code, _) => Verdict::Again {
                    doubt: false,
                    retry_after: retry_after.map(|wanted| wanted.min(LONGEST_RETRY_AFTER)),
                    everywhere: matches!(
                        code,
                        Some(ProblemCode::OutcomesFull | ProblemCode::NoRoom | ProblemCode::Maintenance)
                    ),
                },
            }
        }
    }
}

/// Whether a refusal is what the log decided, and so the fate of all attempts of a write.
fn is_outcome(problem: &Problem) -> bool {
    matches!(
        problem.code(),
        Some(
            ProblemCode::ConditionFailed
                | ProblemCode::UnknownLease
                | ProblemCode::LeaseExists
                | ProblemCode::WrittenTwice
                | ProblemCode::TooLarge
                | ProblemCode::SequenceStep
                | ProblemCode::SequenceExhausted
        )
    )
}

/// Random pauses: twice as long each time, between half and once and a half of it.
#[derive(Debug)]
pub struct Pauses {
    rng: StdRng,
}

impl Pauses {
    pub fn new(seed: u64) -> Pauses {
        Pauses { rng: StdRng::seed_from_u64(seed) }
    }

    /// The pause after the attempt with this number, from 0.
    pub fn after(&mut self, attempt: u32) -> Duration {
        let usual = FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(LONGEST_PAUSE);
        usual.mul_f64(self.rng.random_range(0.5..1.5))
    }

    /// A little more than a member asked for, so that not all clients come back at once.
    pub fn at_least(&mut self, wanted: Duration) -> Duration {
        wanted.mul_f64(self.rng.random_range(1.0..1.2))
    }

    /// A number below `bound`.
    pub fn pick(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: ProblemCode, retry: Retry, outcome: Option<WriteOutcome>) -> Seen {
        let mut problem = Problem::new(code, 500, retry, "why");
        problem.outcome = outcome;
        Seen::Problem { problem: Box::new(problem), retry_after: Some(Duration::from_secs(1)), timeline: None }
    }

    fn again(doubt: bool) -> Verdict {
        Verdict::Again { doubt, retry_after: None, everywhere: false }
    }

    #[test]
    fn the_table_holds() {
        use Safety::{Keyed, Once, Read};
        let not_sent = Seen::NotSent("refused".into());
        let lost = Seen::Lost("reset".into());
        let unknown = problem(ProblemCode::UnknownOutcome, Retry::Unknown, Some(WriteOutcome::Unknown));
        let storage = problem(ProblemCode::StorageFailed, Retry::Unknown, Some(WriteOutcome::Unknown));
        let safe = problem(ProblemCode::NoLeader, Retry::Safe, Some(WriteOutcome::NotApplied));
        let never = problem(ProblemCode::BadKey, Retry::Never, Some(WriteOutcome::NotApplied));
        let decided = problem(ProblemCode::ConditionFailed, Retry::Never, None);
        let gateway = Seen::Foreign { status: 502, detail: "no upstream".into() };
        let stranger = Seen::Foreign { status: 404, detail: "nothing here".into() };
        let later = Verdict::Again { doubt: false, retry_after: Some(Duration::from_secs(1)), everywhere: false };
        for (seen, read, keyed, once) in [
            (&not_sent, again(false), again(false), again(false)),
            (&lost, again(false), again(true), Verdict::Unknown),
            (&unknown, again(false), again(true), Verdict::Unknown),
            (&storage, again(false), again(true), Verdict::Unknown),
            (&safe, later.clone(), later.clone(), later.clone()),
            (&never, Verdict::RefusedThisTime, Verdict::RefusedThisTime, Verdict::RefusedThisTime),
            (&gateway, again(false), again(true), Verdict::Unknown),
            (&stranger, Verdict::RefusedThisTime, Verdict::RefusedThisTime, Verdict::RefusedThisTime),
            (&decided, Verdict::Refused, Verdict::Refused, Verdict::Refused),
        ] {
            let judged = [Read, Keyed, Once].map(|safety| judge(safety, seen));
            assert_eq!(judged, [read, keyed, once], "{seen:?}");
        }
    }

    #[test]
    fn what_holds_for_the_whole_cluster_and_what_is_no_use_to_repeat() {
        let full = problem(ProblemCode::OutcomesFull, Retry::Safe, Some(WriteOutcome::NotApplied));
        assert!(matches!(judge(Safety::Keyed, &full), Verdict::Again { everywhere: true, doubt: false, .. }));
        let old = problem(ProblemCode::FeatureNotActive, Retry::Safe, Some(WriteOutcome::NotApplied));
        assert_eq!(judge(Safety::Keyed, &old), Verdict::RefusedThisTime);
        let elsewhere = problem(ProblemCode::WrongTimeline, Retry::Never, Some(WriteOutcome::NotApplied));
        assert_eq!(judge(Safety::Keyed, &elsewhere), again(false));
    }

    #[test]
    fn pauses_grow_are_bounded_and_repeat_with_their_seed() {
        let (mut one, mut other) = (Pauses::new(7), Pauses::new(7));
        for attempt in 0..40 {
            let pause = one.after(attempt);
            assert_eq!(pause, other.after(attempt));
            let usual = (FIRST_PAUSE * 2u32.pow(attempt.min(10))).min(LONGEST_PAUSE);
            assert!(pause >= usual / 2 && pause < usual * 3 / 2, "{attempt}: {pause:?}");
        }
        let asked = one.at_least(Duration::from_secs(1));
        assert!((1.0..1.2).contains(&asked.as_secs_f64()), "{asked:?}");
    }
}

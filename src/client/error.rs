//! What can go wrong, told by what it means for the caller: did nothing happen, is it decided, or is it unknown.

use std::time::Duration;

use crate::api::{Problem, ProblemCode, Revision, TimelineId};

/// Why a call gave no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The call itself is wrong; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// A member refused it, and would refuse it again. For a write: it was not done.
    #[error("{}", refusal(.problem))]
    Refused {
        /// What the member said.
        problem: Box<Problem>,
        /// Which member.
        endpoint: String,
    },
    /// The write may have been applied or may yet be. Only calls that change something end so.
    #[error("the outcome is unknown: it may have been applied, or may yet be ({reason})")]
    Unknown {
        /// The last thing that happened.
        reason: String,
        /// What the member said, when the last thing was an answer.
        problem: Option<Box<Problem>>,
        /// The idempotency key that was sent: the same call with this key may be made again.
        idempotency_key: Option<String>,
    },
    /// No member could do it in time. For a write: it was not done.
    #[error("no member could do it: {attempts} attempts in {:.1} s, the last: {reason}", .elapsed.as_secs_f64())]
    Unavailable {
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        elapsed: Duration,
        /// Why the last attempt failed.
        reason: String,
        /// What the member said, when the last attempt was answered.
        problem: Option<Box<Problem>>,
    },
    /// Every member that answered is fenced, or on another timeline than the one this client has seen. Nothing was done. See
    /// [`Client::accept_timeline`](super::Client::accept_timeline).
    #[error("{endpoint} is on timeline {}, this client has seen {known}", timeline(.other))]
    WrongTimeline {
        /// The timeline that this client has seen.
        known: TimelineId,
        /// The one that the member is on, when it said so.
        other: Option<TimelineId>,
        /// Which member.
        endpoint: String,
        /// What it said.
        problem: Box<Problem>,
    },
    /// The lease of a place in a queue was lost, or may be lost, while it was waited for.
    #[error("lease {lease} was lost while waiting")]
    LeaseLost {
        /// Which.
        lease: u64,
    },
    /// What answered does not speak as a member does.
    #[error("{endpoint} gave an answer that is not a member's: {detail}")]
    Protocol {
        /// Who answered.
        endpoint: String,
        /// What is wrong with it.
        detail: String,
    },
}

fn refusal(problem: &Problem) -> String {
    match &problem.field {
        Some(field) => format!("{problem} ({field})"),
        None => problem.to_string(),
    }
}

fn timeline(other: &Option<TimelineId>) -> String {
    other.map_or_else(|| "(unnamed)".to_owned(), |id| id.to_string())
}

impl Error {
    /// What a member said, when one did.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Error::Refused { problem, .. } | Error::WrongTimeline { problem, .. } => Some(problem),
            Error::Unknown { problem, .. } | Error::Unavailable { problem, .. } => problem.as_deref(),
            Error::Usage(_) | Error::LeaseLost { .. } | Error::Protocol { .. } => None,
        }
    }

    /// What kind of problem it was, when a member said one that this program knows.
    pub fn code(&self) -> Option<ProblemCode> {
        self.problem().and_then(Problem::code)
    }

    /// Whether a write may have been applied. Everything else that this type can say means that it was not.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Unknown { .. })
    }

    /// Whether it was refused for this reason.
    pub fn is_refused(&self, code: ProblemCode) -> bool {
        matches!(self, Error::Refused { problem, .. } if problem.code() == Some(code))
    }

    /// When a condition did not hold: the revision the key was last written at, none when it does not exist.
    pub fn condition_failed(&self) -> Option<Option<Revision>> {
        match self {
            Error::Refused { problem, .. } if problem.code() == Some(ProblemCode::ConditionFailed) => {
                Some(problem.current_revision)
            }
            _ => None,
        }
    }

    /// A reply that cannot be read.
    pub(super) fn unreadable(endpoint: &str, detail: impl Into<String>) -> Error {
        Error::Protocol { endpoint: endpoint.to_owned(), detail: detail.into() }
    }
}

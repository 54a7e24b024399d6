//! The only place where errors become statuses.
//!
//! Place in the path: every handler returns `Result<Reply, Failure>`; a [`Failure`] is made here, from an error of
//! `node` or of `store` or from a [`ProblemCode`], and is turned into a problem document (RFC 9457) here.
//!
//! Invariants: `outcome: "not-applied"` stands only where the request provably never reached a log; whatever failed
//! after it was handed to `node` and is not known to have stopped before a log is `unknown`. A code has one status.
//!
//! Proven by the tests below, which go through every code and every variant of the errors.

use axum::response::IntoResponse;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::body::{BodyError, EdgeBody};
use super::headers::{self, REPLAYED, etag_of};
use crate::api::{Problem, ProblemCode, Retry, WriteOutcome};
use crate::model::sequence::MAX_SEQUENCE_NUMBER;
use crate::model::{KeyMeta, Revision, SequenceRefusal, TimelineId};
use crate::node::{NodeError, WatchError};
use crate::store::ReadError;

/// What was asked for, as far as it matters to what a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A read: nothing can have happened.
    Read,
    /// A write of keys: its outcome has to be told.
    Write,
    /// A change of the cluster, such as handing leadership over.
    Change,
}

/// A request that is answered with a problem document. Boxed, because replies that succeed should not pay for it.
#[derive(Debug)]
pub struct Failure(Box<Inner>);

#[derive(Debug)]
struct Inner {
    problem: Problem,
    retry_after_seconds: Option<u32>,
    etag: Option<Revision>,
    /// What is refused was refused before, under the same idempotency key.
    replayed: bool,
    allow: Option<&'static str>,
    close: bool,
}

/// What clears by itself in a moment: an election, a queue.
const SOON: Option<u32> = Some(1);
/// Room on a disk: somebody or compaction has to make it.
const WITH_ROOM: Option<u32> = Some(10);
/// A client comes back at least so often during a planned pause, which may be ended early.
const PAUSE_MAX_SECONDS: u32 = 300;
/// Room for outcomes: the oldest go one by one, 24 hours after they came.
const WITH_OUTCOMES: Option<u32> = Some(60);

/// When to come back during a planned pause that lasts so much longer.
fn pause_seconds(remaining_ms: u64) -> u32 {
    u32::try_from(remaining_ms.div_ceil(1000)).unwrap_or(u32::MAX).clamp(1, PAUSE_MAX_SECONDS)
}

/// The status of a code, whether its request may be repeated, and after how many seconds where the reply says so.
pub(super) fn answer(code: ProblemCode) -> (StatusCode, Retry, Option<u32>) {
    use ProblemCode as Code;
    match code {
        Code::BadKey
        | Code::BadParameter
        | Code::BadHeader
        | Code::BadBody
        | Code::Refused
        | Code::FutureRevision
        | Code::WrittenTwice => (StatusCode::BAD_REQUEST, Retry::Never, None),
        Code::NotFound
        | Code::UnknownPath
        | Code::UnknownMember
        | Code::UnknownSite
        | Code::UnknownLease
        | Code::UnknownFile
        | Code::UnknownSequence => (StatusCode::NOT_FOUND, Retry::Never, None),
        Code::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Retry::Never, None),
        Code::SlowRequest => (StatusCode::REQUEST_TIMEOUT, Retry::Safe, None),
        Code::VerifyRunning => (StatusCode::CONFLICT, Retry::Safe, SOON),
        Code::NotAVoter
        | Code::LeaseExists
        | Code::MemberExists
        | Code::QuorumAtRisk
        | Code::SwitchoverRefused
        | Code::SequenceStep
        | Code::PrimaryAnswers
        | Code::StandbyIncomplete
        | Code::NotFenced
        | Code::DrillRefused
        | Code::SequenceExhausted => (StatusCode::CONFLICT, Retry::Never, None),
        Code::NotAtTip => (StatusCode::CONFLICT, Retry::Safe, SOON),
        Code::Compacted | Code::Diverged => (StatusCode::GONE, Retry::Never, None),
        Code::ConditionFailed => (StatusCode::PRECONDITION_FAILED, Retry::Never, None),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Retry::Never, None),
        Code::WrongTimeline => (StatusCode::MISDIRECTED_REQUEST, Retry::Never, None),
        // The same request is right at another member.
        Code::Fenced => (StatusCode::MISDIRECTED_REQUEST, Retry::Safe, None),
        Code::IdempotencyMismatch => (StatusCode::UNPROCESSABLE_ENTITY, Retry::Never, None),
        Code::QueueFull | Code::TooManyReads | Code::TooManyWatchers => {
            (StatusCode::TOO_MANY_REQUESTS, Retry::Safe, SOON)
        }
        Code::OutcomesFull => (StatusCode::TOO_MANY_REQUESTS, Retry::Safe, WITH_OUTCOMES),
        Code::StorageFailed => (StatusCode::INTERNAL_SERVER_ERROR, Retry::Safe, None),
        Code::NoLeader
        | Code::Stopping
        | Code::LeaderUnreachable
        | Code::NoQuorum
        | Code::NotHereYet
        | Code::TooStale
        | Code::TooManyConnections
        | Code::FeatureNotActive
        | Code::Quarantined
        | Code::NotJoined => (StatusCode::SERVICE_UNAVAILABLE, Retry::Safe, SOON),
        Code::UnknownOutcome | Code::TransferTimedOut => (StatusCode::GATEWAY_TIMEOUT, Retry::Unknown, None),
        Code::Maintenance => (StatusCode::SERVICE_UNAVAILABLE, Retry::Safe, SOON),
        Code::NoRoom => (StatusCode::INSUFFICIENT_STORAGE, Retry::Safe, WITH_ROOM),
    }
}

impl Failure {
    /// A failure of this kind, with what happened this time.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Failure {
        let (status, retry, retry_after_seconds) = answer(code);
        let problem = Problem::new(code, status.as_u16(), retry, detail);
        Failure(Box::new(Inner {
            problem,
            retry_after_seconds,
            etag: None,
            replayed: false,
            allow: None,
            close: false,
        }))
    }

    /// A malformed, unknown or repeated query parameter.
    pub fn parameter(name: &str, detail: impl Into<String>) -> Failure {
        Failure::new(ProblemCode::BadParameter, detail).field(name)
    }

    /// A malformed, refused or repeated header.
    pub fn header(name: &str, detail: impl Into<String>) -> Failure {
        Failure::new(ProblemCode::BadHeader, detail).field(name)
    }

    /// The path exists, the method does not; `allow` lists those that do.
    pub fn method_not_allowed(allow: &'static str) -> Failure {
        let mut failure = Failure::new(ProblemCode::MethodNotAllowed, format!("this path takes {allow}"));
        failure.0.allow = Some(allow);
        failure
    }

    /// The request names a timeline that this member is not on.
    pub fn wrong_timeline(own: Option<TimelineId>, asked: TimelineId) -> Failure {
        let detail = match own {
            Some(own) => format!("the member is on timeline {own}, the request names {asked}"),
            None => format!("the member is on no timeline yet, the request names {asked}"),
        };
        Failure::new(ProblemCode::WrongTimeline, detail).field(headers::TIMELINE.as_str())
    }

    /// A guard did not hold; `current` is the key as it is.
    pub fn condition_failed(current: Option<KeyMeta>) -> Failure {
        let detail = match current {
            Some(meta) => format!("the key was last written at revision {}", meta.mod_revision),
            None => "the key does not exist".to_owned(),
        };
        let mut failure = Failure::new(ProblemCode::ConditionFailed, detail);
        let revision = current.map(|meta| meta.mod_revision);
        failure.0.etag = revision;
        failure.0.problem.current_revision = revision;
        failure
    }

    /// Says that this is the outcome of an earlier request.
    pub fn replayed(mut self, replayed: bool) -> Failure {
        self.0.replayed = replayed;
        self
    }

    /// A body that could not be read.
    pub fn body(error: BodyError) -> Failure {
        let detail = error.to_string();
        match error {
            BodyError::TooLarge { .. } => Failure::new(ProblemCode::TooLarge, detail).closing(),
            BodyError::Slow { .. } => Failure::new(ProblemCode::SlowRequest, detail).closing(),
            BodyError::Broken(_) => Failure::new(ProblemCode::BadBody, detail).closing(),
        }
    }

    /// What `node` could not do.
    pub fn node(error: &NodeError, asked: Asked) -> Failure {
        use ProblemCode as Code;
        let (code, reached_a_log) = match error {
            NodeError::NoLeader { .. } | NodeError::Opening { .. } => (Code::NoLeader, false),
            NodeError::Stopping => (Code::Stopping, false),
            NodeError::LeaderUnreachable { .. } => (Code::LeaderUnreachable, false),
            NodeError::NotProposed => (Code::NoLeader, false),
            NodeError::QueueFull => (Code::QueueFull, false),
            NodeError::NotJoined => (Code::NotJoined, false),
            NodeError::Quarantined { .. } => (Code::Quarantined, false),
            NodeError::VerifyRunning => (Code::VerifyRunning, false),
            NodeError::Fenced { .. } => (Code::Fenced, false),
            NodeError::PrimaryAnswers { .. } => (Code::PrimaryAnswers, false),
            NodeError::StandbyIncomplete { .. } => (Code::StandbyIncomplete, false),
            NodeError::NotFenced { .. } => (Code::NotFenced, false),
            NodeError::DrillRefused { .. } => (Code::DrillRefused, false),
            NodeError::DrillNoRoom { .. } => (Code::NoRoom, false),
            NodeError::Refused { .. } => (Code::Refused, false),
            NodeError::NoRoom { .. } => (Code::NoRoom, false),
            NodeError::FeatureNotActive { .. } => (Code::FeatureNotActive, false),
            NodeError::OutcomesFull { .. } => (Code::OutcomesFull, false),
            NodeError::Maintenance { .. } => (Code::Maintenance, false),
            NodeError::UnknownLease { .. } => (Code::UnknownLease, false),
            NodeError::UnknownMember { .. } => (Code::UnknownMember, false),
            NodeError::MemberExists { .. } => (Code::MemberExists, false),
            NodeError::QuorumAtRisk { .. } => (Code::QuorumAtRisk, false),
            NodeError::NotNow { .. } => (Code::NoQuorum, false),
            NodeError::SwitchoverRefused { .. } => (Code::SwitchoverRefused, false),
            NodeError::UnknownSite { .. } => (Code::UnknownSite, false),
            // A member that was removed is about to end.
            NodeError::Removed { .. } => (Code::Stopping, false),
            NodeError::NotAVoter { .. } => (Code::NotAVoter, false),
            NodeError::NotAtTip { .. } => (Code::NotAtTip, false),
            NodeError::TransferTimedOut { .. } => (Code::TransferTimedOut, true),
            // These two do not say how far a write got, so it may have got all the way.
            NodeError::StorageFailed { .. } => (Code::StorageFailed, true),
            NodeError::NoQuorum { .. } if asked == Asked::Read => (Code::NoQuorum, false),
            NodeError::NoQuorum { .. } => (Code::UnknownOutcome, true),
            // A read has no outcome; all that can be unknown is whether a quorum answered.
            NodeError::Unknown { .. } if asked == Asked::Read => (Code::NoQuorum, false),
            NodeError::Unknown { .. } => (Code::UnknownOutcome, true),
        };
        let mut failure = Failure::new(code, error.to_string());
        if let NodeError::Maintenance { remaining_ms, .. } = error {
            failure.0.retry_after_seconds = Some(pause_seconds(*remaining_ms));
        }
        if let NodeError::Fenced { primary, .. } = error {
            failure.0.problem.primary.clone_from(primary);
        }
        if asked != Asked::Read && reached_a_log {
            failure.0.problem.retry = Retry::Unknown;
        }
        // That there is no such lease was decided by the log, like a failed condition: it has no outcome.
        if asked == Asked::Write && !matches!(error, NodeError::UnknownLease { .. }) {
            let outcome = if reached_a_log { WriteOutcome::Unknown } else { WriteOutcome::NotApplied };
            failure.0.problem.outcome = Some(outcome);
        }
        failure
    }

    /// Why a sequence gave out nothing. The log decided it, so it has no outcome.
    pub fn sequence(why: &SequenceRefusal) -> Failure {
        match why {
            SequenceRefusal::OtherStep { step } => {
                let detail = format!("the sequence was created with the step {step}, which never changes");
                Failure::new(ProblemCode::SequenceStep, detail).field("step")
            }
            SequenceRefusal::Exhausted { last } => {
                let detail = format!("the last number is {last}, and none may be above {MAX_SEQUENCE_NUMBER}");
                Failure::new(ProblemCode::SequenceExhausted, detail).field("count")
            }
            SequenceRefusal::BadCount => Failure::new(ProblemCode::Refused, "a count or a step out of bounds"),
        }
    }

    /// What `store` could not read. On a stale read a revision may exist that has not come here yet.
    pub fn read(error: &ReadError, stale: bool) -> Failure {
        let detail = error.to_string();
        match error {
            ReadError::Compacted { floor } => {
                let mut failure = Failure::new(ProblemCode::Compacted, detail);
                failure.0.problem.floor = Some(*floor);
                failure
            }
            ReadError::Future { current } => {
                let code = if stale { ProblemCode::NotHereYet } else { ProblemCode::FutureRevision };
                let mut failure = Failure::new(code, detail);
                failure.0.problem.current = Some(*current);
                failure
            }
            ReadError::Diverged { fork, .. } => {
                let mut failure = Failure::new(ProblemCode::Diverged, detail);
                failure.0.problem.fork = Some(*fork);
                failure
            }
            ReadError::Store(_) => {
                tracing::error!(error = %detail, "a read failed");
                Failure::new(ProblemCode::StorageFailed, detail)
            }
        }
    }

    /// What cannot be watched, or not now.
    pub fn watch(error: &WatchError) -> Failure {
        match error {
            WatchError::TooMany { .. } => Failure::new(ProblemCode::TooManyWatchers, error.to_string()),
            WatchError::Stopping => Failure::node(&NodeError::Stopping, Asked::Read),
            WatchError::Read(error) => Failure::read(error, false),
        }
    }

    /// A write was answered in a way that this program does not expect, after it was proposed.
    pub fn unexpected_outcome(detail: impl Into<String>) -> Failure {
        let mut failure = Failure::new(ProblemCode::UnknownOutcome, detail);
        failure.0.problem.outcome = Some(WriteOutcome::Unknown);
        failure
    }

    /// Says that this is about a write which was refused before it was handed to `node`.
    #[must_use]
    pub fn before_proposal(mut self) -> Failure {
        self.0.problem.outcome = Some(WriteOutcome::NotApplied);
        self
    }

    /// Names what is wrong.
    #[must_use]
    pub fn field(mut self, field: &str) -> Failure {
        self.0.problem.field = Some(field.to_owned());
        self
    }

    /// Closes the connection after the reply, because the rest of the request is not wanted.
    fn closing(mut self) -> Failure {
        self.0.close = true;
        self
    }

    /// The document.
    #[cfg(test)]
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }

    /// All that is sent to a client whose connection is one too many, before it has asked for anything.
    pub fn one_connection_too_many() -> Vec<u8> {
        let inner = Failure::new(ProblemCode::TooManyConnections, "the member has no room for another connection").0;
        let body = serde_json::to_string(&inner.problem).expect("a problem of strings and numbers always serialises");
        format!(
            "HTTP/1.1 {} Too Many Connections\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
             Retry-After: {}\r\nConnection: close\r\n\r\n{body}",
            inner.problem.status,
            body.len(),
            inner.retry_after_seconds.unwrap_or_default()
        )
        .into_bytes()
    }

    /// The reply.
    pub fn into_reply(self) -> Response<EdgeBody> {
        let inner = *self.0;
        let body = serde_json::to_vec(&inner.problem).expect("a problem of strings and numbers always serialises");
        let mut reply = Response::new(EdgeBody::full(body));
        *reply.status_mut() =
            StatusCode::from_u16(inner.problem.status).expect("a problem is made of a status of the table above");
        let map = reply.headers_mut();
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = inner.retry_after_seconds {
            map.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(revision) = inner.etag {
            map.insert(ETAG, etag_of(revision));
        }
        if inner.replayed {
            map.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some(allow) = inner.allow {
            map.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if inner.close {
            map.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        self.into_reply().map(EdgeBody::into_axum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(failure: &Failure) -> (u16, ProblemCode, Retry, Option<WriteOutcome>, bool) {
        let problem = failure.problem();
        (
            problem.status,
            problem.code().unwrap(),
            problem.retry,
            problem.outcome,
            failure.0.retry_after_seconds.is_some(),
        )
    }

    #[test]
    fn every_error_of_a_node_is_answered_as_documented() {
        use ProblemCode as Code;
        use Retry::{Never, Safe, Unknown};
        let text = || String::from("x");
        let not_applied = Some(WriteOutcome::NotApplied);
        let unknown = Some(WriteOutcome::Unknown);
        // The error, then (status, code, retry, outcome, Retry-After) for a write, and for a read.
        let table = [
            (
                NodeError::NoLeader { name: text(), term: 7 },
                (503, Code::NoLeader, Safe, not_applied, true),
                (503, Code::NoLeader, Safe, None, true),
            ),
            (
                NodeError::Stopping,
                (503, Code::Stopping, Safe, not_applied, true),
                (503, Code::Stopping, Safe, None, true),
            ),
            (
                NodeError::LeaderUnreachable { url: text(), detail: text() },
                (503, Code::LeaderUnreachable, Safe, not_applied, true),
                (503, Code::LeaderUnreachable, Safe, None, true),
            ),
            (
                NodeError::NoQuorum { detail: text() },
                (504, Code::UnknownOutcome, Unknown, unknown, false),
                (503, Code::NoQuorum, Safe, None, true),
            ),
            (
                NodeError::Unknown { detail: text() },
                (504, Code::UnknownOutcome, Unknown, unknown, false),
                (503, Code::NoQuorum, Safe, None, true),
            ),
            (
                NodeError::NotProposed,
                (503, Code::NoLeader, Safe, not_applied, true),
                (503, Code::NoLeader, Safe, None, true),
            ),
            (
                NodeError::QueueFull,
                (429, Code::QueueFull, Safe, not_applied, true),
                (429, Code::QueueFull, Safe, None, true),
            ),
            (
                NodeError::StorageFailed { detail: text() },
                (500, Code::StorageFailed, Unknown, unknown, false),
                (500, Code::StorageFailed, Safe, None, false),
            ),
            (
                NodeError::UnknownMember { name: text() },
                (404, Code::UnknownMember, Never, not_applied, false),
                (404, Code::UnknownMember, Never, None, false),
            ),
            (
                NodeError::NotAVoter { name: text() },
                (409, Code::NotAVoter, Never, not_applied, false),
                (409, Code::NotAVoter, Never, None, false),
            ),
            (
                NodeError::MemberExists { name: text() },
                (409, Code::MemberExists, Never, not_applied, false),
                (409, Code::MemberExists, Never, None, false),
            ),
            (
                NodeError::QuorumAtRisk { detail: text() },
                (409, Code::QuorumAtRisk, Never, not_applied, false),
                (409, Code::QuorumAtRisk, Never, None, false),
            ),
            (
                NodeError::SwitchoverRefused { detail: text() },
                (409, Code::SwitchoverRefused, Never, not_applied, false),
                (409, Code::SwitchoverRefused, Never, None, false),
            ),
            (
                NodeError::UnknownSite { site: text(), known: text() },
                (404, Code::UnknownSite, Never, not_applied, false),
                (404, Code::UnknownSite, Never, None, false),
            ),
            (
                NodeError::NotNow { detail: text() },
                (503, Code::NoQuorum, Safe, not_applied, true),
                (503, Code::NoQuorum, Safe, None, true),
            ),
            (
                NodeError::Removed { detail: text() },
                (503, Code::Stopping, Safe, not_applied, true),
                (503, Code::Stopping, Safe, None, true),
            ),
            (
                NodeError::NotAtTip { name: text(), detail: text() },
                (409, Code::NotAtTip, Safe, not_applied, true),
                (409, Code::NotAtTip, Safe, None, true),
            ),
            (
                NodeError::Opening { detail: text() },
                (503, Code::NoLeader, Safe, not_applied, true),
                (503, Code::NoLeader, Safe, None, true),
            ),
            (
                NodeError::TransferTimedOut { name: text() },
                (504, Code::TransferTimedOut, Unknown, unknown, false),
                (504, Code::TransferTimedOut, Unknown, None, false),
            ),
            (
                NodeError::NotJoined,
                (503, Code::NotJoined, Safe, not_applied, true),
                (503, Code::NotJoined, Safe, None, true),
            ),
            (
                NodeError::Maintenance { message: text(), until_ms: 1, remaining_ms: 1500 },
                (503, Code::Maintenance, Safe, not_applied, true),
                (503, Code::Maintenance, Safe, None, true),
            ),
            (
                NodeError::Refused { detail: text() },
                (400, Code::Refused, Never, not_applied, false),
                (400, Code::Refused, Never, None, false),
            ),
        ];
        for (error, write, read) in table {
            assert_eq!(shape(&Failure::node(&error, Asked::Write)), write, "{error:?} of a write");
            assert_eq!(shape(&Failure::node(&error, Asked::Read)), read, "{error:?} of a read");
            let change = shape(&Failure::node(&error, Asked::Change));
            assert_eq!(change, (write.0, write.1, write.2, None, write.4), "{error:?} of a change");
        }
    }

    #[test]
    fn an_error_of_a_read_is_answered_as_documented() {
        let compacted = Failure::read(&ReadError::Compacted { floor: 9 }, false);
        assert_eq!(shape(&compacted), (410, ProblemCode::Compacted, Retry::Never, None, false));
        assert_eq!(compacted.problem().floor, Some(9));
        let future = Failure::read(&ReadError::Future { current: 4 }, false);
        assert_eq!(shape(&future), (400, ProblemCode::FutureRevision, Retry::Never, None, false));
        assert_eq!(future.problem().current, Some(4));
        let not_here = Failure::read(&ReadError::Future { current: 4 }, true);
        assert_eq!(shape(&not_here), (503, ProblemCode::NotHereYet, Retry::Safe, None, true));
        assert_eq!(not_here.problem().current, Some(4));
    }

    #[test]
    fn every_code_has_an_error_status_and_its_reply_says_the_same() {
        for code in ProblemCode::ALL {
            let (status, retry, retry_after) = answer(*code);
            assert!(status.is_client_error() || status.is_server_error(), "{code}");
            assert!(
                retry_after.is_none() || retry == Retry::Safe,
                "{code} says when to repeat what must not be repeated"
            );
            let reply = Failure::new(*code, "why").into_reply();
            assert_eq!(reply.status(), status, "{code}");
            assert_eq!(reply.headers()[CONTENT_TYPE], "application/problem+json");
            let told = reply.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap().parse().unwrap());
            assert_eq!(told, retry_after, "{code}");
        }
    }

    #[test]
    fn what_takes_longer_to_clear_says_so() {
        let after = |code| Failure::new(code, "why").into_reply().headers()[RETRY_AFTER].clone();
        assert_eq!(after(ProblemCode::NoLeader), "1");
        assert_eq!(after(ProblemCode::NoRoom), "10");
        assert_eq!(after(ProblemCode::OutcomesFull), "60");
        for (remaining_ms, seconds) in [(0, "1"), (1, "1"), (1001, "2"), (29_000, "29"), (u64::MAX, "300")] {
            let error = NodeError::Maintenance { message: "m".into(), until_ms: 1, remaining_ms };
            assert_eq!(Failure::node(&error, Asked::Write).into_reply().headers()[RETRY_AFTER], seconds);
        }
        let refused = String::from_utf8(Failure::one_connection_too_many()).unwrap();
        assert!(refused.contains("\r\nRetry-After: 1\r\n"), "{refused}");
    }

    #[test]
    fn a_failed_condition_shows_the_key_as_it_is() {
        let meta = KeyMeta { create_revision: 40, mod_revision: 43, version: 2, lease: 0 };
        let exists = Failure::condition_failed(Some(meta));
        assert_eq!(shape(&exists), (412, ProblemCode::ConditionFailed, Retry::Never, None, false));
        assert_eq!(exists.problem().current_revision, Some(43));
        assert_eq!(exists.into_reply().headers()[ETAG], "\"43\"");
        let absent = Failure::condition_failed(None);
        assert_eq!(absent.problem().current_revision, None);
        assert!(!absent.into_reply().headers().contains_key(ETAG));
    }

    #[test]
    fn a_body_that_is_not_read_closes_its_connection() {
        for error in [BodyError::TooLarge { limit_bytes: 1 }, BodyError::Slow { seconds: 1 }] {
            assert_eq!(Failure::body(error).into_reply().headers()[CONNECTION], "close");
        }
        let reply = Failure::method_not_allowed("GET, HEAD").into_reply();
        assert_eq!(reply.headers()[ALLOW], "GET, HEAD");
        assert!(!reply.headers().contains_key(CONNECTION));
    }

    #[test]
    fn what_is_refused_before_a_proposal_was_not_applied() {
        let failure = Failure::new(ProblemCode::BadKey, "empty").before_proposal();
        assert_eq!(failure.problem().outcome, Some(WriteOutcome::NotApplied));
    }
}

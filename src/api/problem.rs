//! The problem document (RFC 9457): every error of the HTTP API has this form.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Revision;

/// What stands before a code in a problem's `type`.
const URN: &str = "urn:lifeboat:problem:";

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// Nothing has happened: try again, here or elsewhere.
    Safe,
    /// A write may have been applied: look before trying again.
    Unknown,
    /// The same request will fail again.
    Never,
}

/// What became of a write that was answered with a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WriteOutcome {
    /// The request provably never reached a log.
    NotApplied,
    /// It may have been applied, or may yet be.
    Unknown,
}

/// Declares the codes, their words in a `type`, and their titles in one list, so that none can be forgotten.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $title:literal;)*) => {
        /// What kind of problem it is: the last part of its `type`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemCode { $($(#[$doc])* $name,)* }

        impl ProblemCode {
            /// Every code.
            pub const ALL: &[ProblemCode] = &[$(ProblemCode::$name,)*];

            /// The word, as in `urn:lifeboat:problem:word`.
            pub fn as_str(self) -> &'static str {
                match self { $(ProblemCode::$name => $word,)* }
            }

            /// What people read.
            pub fn title(self) -> &'static str {
                match self { $(ProblemCode::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// A condition of a write did not hold.
    ConditionFailed = "condition-failed", "The condition does not hold";
    /// No leader is known.
    NoLeader = "no-leader", "No leader is known";
    /// The member is stopping.
    Stopping = "stopping", "The member is stopping";
    /// The leader could not be reached, and nothing was sent to it.
    LeaderUnreachable = "leader-unreachable", "The leader cannot be reached";
    /// No quorum confirmed a linearizable read in time.
    NoQuorum = "no-quorum", "No quorum answered";
    /// A write failed after it was proposed or forwarded.
    UnknownOutcome = "unknown-outcome", "The write may or may not have been applied";
    /// The request names another timeline.
    WrongTimeline = "wrong-timeline", "The member is on another timeline";
    /// The revision is below the read floor.
    Compacted = "compacted", "The revision is no longer kept";
    /// The revision belongs to a branch of history that was left behind at a forced failover.
    Diverged = "diverged", "The revision belongs to a branch that was left behind";
    /// The member belongs to a branch of history that was left behind, and serves nothing.
    Fenced = "fenced", "The member is fenced";
    /// A forced failover was asked for, and the primary site answers.
    PrimaryAnswers = "primary-answers", "The primary site answers";
    /// A forced failover was asked for, and not every member of the site answers.
    StandbyIncomplete = "standby-incomplete", "Not every member of the site answers";
    /// The member was told to rejoin, and is not fenced.
    NotFenced = "not-fenced", "The member is not fenced";
    /// A drill cannot be done at this member, or not now.
    DrillRefused = "drill-refused", "The failover cannot be rehearsed here now";
    /// The revision is newer than the newest.
    FutureRevision = "future-revision", "The revision does not exist yet";
    /// The revision is newer than what this member has.
    NotHereYet = "not-here-yet", "The revision has not reached this member yet";
    /// A stale read may be older than it was allowed to be.
    TooStale = "too-stale", "The member lags too far behind";
    /// The key does not exist.
    NotFound = "not-found", "The key does not exist";
    /// The path does not exist.
    UnknownPath = "unknown-path", "The path does not exist";
    /// The path exists, the method does not.
    MethodNotAllowed = "method-not-allowed", "The method is not allowed";
    /// A value or a body is too large.
    TooLarge = "too-large", "The request is too large";
    /// The body did not arrive in time.
    SlowRequest = "slow-request", "The body did not arrive in time";
    /// The key is not one.
    BadKey = "bad-key", "The key is malformed";
    /// A query parameter is malformed, unknown or given twice.
    BadParameter = "bad-parameter", "A parameter is malformed";
    /// A header is malformed, refused or given twice.
    BadHeader = "bad-header", "A header is malformed";
    /// The body is malformed.
    BadBody = "bad-body", "The body is malformed";
    /// Too many writes wait.
    QueueFull = "queue-full", "Too many writes are waiting";
    /// Too many reads wait for a thread.
    TooManyReads = "too-many-reads", "Too many reads are waiting";
    /// Too many connections are open.
    TooManyConnections = "too-many-connections", "Too many connections are open";
    /// The member's storage failed.
    StorageFailed = "storage-failed", "The member's storage failed";
    /// The member's copy of the history is damaged, and being repaired.
    Quarantined = "quarantined", "The member is in quarantine";
    /// The leader verifies already.
    VerifyRunning = "verify-running", "A verification runs already";
    /// No member has this name.
    UnknownMember = "unknown-member", "No member has this name";
    /// The member cannot lead.
    NotAVoter = "not-a-voter", "The member is not a voter";
    /// The member cannot lead now.
    NotAtTip = "not-at-tip", "The member cannot take over now";
    /// Leadership did not move in time.
    TransferTimedOut = "transfer-timed-out", "Leadership did not move in time";
    /// The member belongs to no cluster yet.
    NotJoined = "not-joined", "The member belongs to no cluster yet";
    /// No lease has this id.
    UnknownLease = "unknown-lease", "No lease has this id";
    /// A lease has this id already.
    LeaseExists = "lease-exists", "A lease has this id already";
    /// A transaction would write a key twice.
    WrittenTwice = "written-twice", "A transaction writes a key twice";
    /// The same Idempotency-Key came with another request.
    IdempotencyMismatch = "idempotency-mismatch", "The Idempotency-Key belongs to another request";
    /// As many outcomes of keyed writes are kept as may be.
    OutcomesFull = "outcomes-full", "Too many outcomes of keyed writes are kept";
    /// Too many watchers.
    TooManyWatchers = "too-many-watchers", "Too many watchers";
    /// A member is short of room on its disk.
    NoRoom = "no-room", "A member is short of disk room";
    /// Not all members are new enough for this request.
    FeatureNotActive = "feature-not-active", "Not all members are new enough";
    /// The change of members could leave no quorum.
    QuorumAtRisk = "quorum-at-risk", "The change could leave no quorum";
    /// The primary site cannot be moved now, or not this way.
    SwitchoverRefused = "switchover-refused", "The primary site cannot be moved";
    /// No member stands in this site.
    UnknownSite = "unknown-site", "No member stands in this site";
    /// A member has this name already.
    MemberExists = "member-exists", "A member has this name already";
    /// A planned pause is in force.
    Maintenance = "maintenance", "A planned pause is in force";
    /// No sequence has this name.
    UnknownSequence = "unknown-sequence", "No sequence has this name";
    /// The member has no such file.
    UnknownFile = "unknown-file", "The member has no such file";
    /// The sequence was created with another step.
    SequenceStep = "sequence-step", "The sequence has another step";
    /// The sequence has no numbers left.
    SequenceExhausted = "sequence-exhausted", "The sequence has no numbers left";
    /// The member that decides refused the request.
    Refused = "refused", "The request was refused";
}

impl ProblemCode {
    /// The `type` of a problem document of this code.
    pub fn urn(self) -> String {
        format!("{URN}{self}")
    }

    /// The code with this word; none when this program does not know it.
    pub fn from_word(word: &str) -> Option<ProblemCode> {
        Self::ALL.iter().copied().find(|code| code.as_str() == word)
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:lifeboat:problem:` and a code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What people read, the same for all problems of one type.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    #[serde(default)]
    pub detail: String,
    /// Whether the same request may be sent again.
    pub retry: Retry,
    /// For writes: what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<WriteOutcome>,
    /// The header, parameter or field of the body that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// `condition-failed`: the revision the key was last written at; none when it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<Revision>,
    /// `compacted`: the oldest revision that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Revision>,
    /// `diverged`: the last revision that both branches have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<Revision>,
    /// `fenced`: where clients reach a member of the branch that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// `future-revision` and `not-here-yet`: the newest revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Revision>,
}

impl Problem {
    /// A problem with nothing but what every problem has.
    pub fn new(code: ProblemCode, status: u16, retry: Retry, detail: impl Into<String>) -> Problem {
        Problem {
            kind: code.urn(),
            title: code.title().to_owned(),
            status,
            detail: detail.into(),
            retry,
            outcome: None,
            field: None,
            current_revision: None,
            floor: None,
            fork: None,
            primary: None,
            current: None,
        }
    }

    /// Says what became of the write.
    #[must_use]
    pub fn outcome(mut self, outcome: WriteOutcome) -> Problem {
        self.outcome = Some(outcome);
        self
    }

    /// Names what is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Problem {
        self.field = Some(field.into());
        self
    }

    /// The code; none when it is of a kind that this program does not know.
    pub fn code(&self) -> Option<ProblemCode> {
        self.kind.strip_prefix(URN).and_then(ProblemCode::from_word)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.title, self.status, self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_looks_as_documented_and_comes_back() {
        let detail = "member n1 knows no leader in term 7";
        let problem = Problem::new(ProblemCode::NoLeader, 503, Retry::Safe, detail).outcome(WriteOutcome::NotApplied);
        let text = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"type":"urn:lifeboat:problem:no-leader","title":"No leader is known","status":503,"#,
                r#""detail":"member n1 knows no leader in term 7","retry":"safe","outcome":"not-applied"}"#
            )
        );
        let read: Problem = serde_json::from_str(&text).unwrap();
        assert_eq!(read.code(), Some(ProblemCode::NoLeader));
        assert_eq!(read, problem);
    }

    #[test]
    fn words_are_unique_and_found_again() {
        for code in ProblemCode::ALL {
            assert_eq!(ProblemCode::from_word(code.as_str()), Some(*code));
            assert!(!code.title().is_empty());
        }
    }

    #[test]
    fn a_problem_of_a_newer_member_is_read_without_its_code() {
        let text = r#"{"type":"urn:lifeboat:problem:tides","status":503,"retry":"safe","height":3}"#;
        let problem: Problem = serde_json::from_str(text).unwrap();
        assert_eq!(problem.code(), None);
        assert_eq!(problem.retry, Retry::Safe);
    }
}

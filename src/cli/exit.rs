//! The exit codes of the commands that ask a cluster, in one table, which `docs/cli.md` and the help repeat.
//!
//! (`lifeboat serve` and `lifeboat dev` have codes of their own, which their help names.)

use std::process::ExitCode;

use crate::api::ProblemCode;
use crate::client::{Error, WatchError};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Done,
    /// It failed, or a member refused it.
    Failed,
    /// It was called wrongly. Nothing was sent. The parser of flags uses the same code.
    Usage,
    /// What it was asked for does not exist.
    NotFound,
    /// A condition did not hold, and nothing else was done; or a transaction did its `--else`.
    Condition,
    /// The write may have been done or may yet be.
    Unknown,
    /// No member could do it in time. A write was not done.
    Unavailable,
    /// The lock or the lead was lost, or could not be kept for certain.
    Lost,
    /// Members do not hold the same, or one is damaged.
    Disagree,
    /// What a command that was run under a lock ended with.
    Of(u8),
}

impl Exit {
    /// Every code with its meaning, for the help and the documentation.
    pub const TABLE: &[(u8, &str)] = &[
        (0, "done"),
        (1, "failed, or refused by a member"),
        (2, "called wrongly; nothing was sent"),
        (3, "what was asked for does not exist"),
        (4, "a condition did not hold (a transaction then did its --else)"),
        (5, "the outcome of the write is unknown: it may have been done"),
        (6, "no member could do it in time; a write was not done"),
        (7, "the lock or the lead was lost, or may have been"),
        (8, "members do not hold the same, or one is damaged"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Condition => 4,
            Exit::Unknown => 5,
            Exit::Unavailable => 6,
            Exit::Lost => 7,
            Exit::Disagree => 8,
            Exit::Of(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// The table as the help shows it.
pub fn help() -> String {
    let lines = Exit::TABLE.iter().map(|(code, meaning)| format!("  {code}  {meaning}"));
    format!("Exit codes:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Trouble {
    /// The code that it ends with.
    pub exit: Exit,
    /// What people read.
    pub text: String,
    /// What they might try.
    pub hint: Option<String>,
}

impl Trouble {
    /// Something else than an error of the client.
    pub fn new(exit: Exit, text: impl Into<String>) -> Trouble {
        Trouble { exit, text: text.into(), hint: None }
    }

    /// The call was wrong.
    pub fn usage(text: impl Into<String>) -> Trouble {
        Trouble::new(Exit::Usage, text)
    }

    /// With what might help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Trouble {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble { exit: exit_of(&error), text: error.to_string(), hint: hint(&error) }
    }
}

impl From<WatchError> for Trouble {
    fn from(error: WatchError) -> Trouble {
        let text = error.to_string();
        match error {
            WatchError::Client(error) => error.into(),
            WatchError::Compacted { .. } => Trouble::new(Exit::Failed, text)
                .hint("changes may have been missed: read the keys anew, then watch from the revision of that reading"),
            WatchError::Diverged { .. } => Trouble::new(Exit::Failed, text).hint("read the keys anew"),
        }
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever read the output has had enough: nothing to complain about. What a shell reports for SIGPIPE.
            return Trouble::new(Exit::Of(141), "");
        }
        Trouble::new(Exit::Failed, error.to_string())
    }
}

impl From<serde_json::Error> for Trouble {
    fn from(error: serde_json::Error) -> Trouble {
        Trouble::new(Exit::Failed, format!("cannot be written as JSON: {error}"))
    }
}

fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Usage(_) => Exit::Usage,
        Error::Unknown { .. } => Exit::Unknown,
        Error::Unavailable { .. } => Exit::Unavailable,
        Error::LeaseLost { .. } => Exit::Lost,
        Error::WrongTimeline { .. } | Error::Protocol { .. } => Exit::Failed,
        Error::Refused { .. } => match error.code() {
            Some(ProblemCode::ConditionFailed) => Exit::Condition,
            Some(
                ProblemCode::NotFound
                | ProblemCode::UnknownLease
                | ProblemCode::UnknownMember
                | ProblemCode::UnknownFile
                | ProblemCode::UnknownSequence,
            ) => Exit::NotFound,
            _ => Exit::Failed,
        },
    }
}

/// What to try.
fn hint(error: &Error) -> Option<String> {
    let text = match (error, error.code()) {
        (Error::Unknown { idempotency_key: Some(key), .. }, _) => {
            return Some(format!(
                "look before writing again, or give the same command once more with --idempotency-key {key}"
            ));
        }
        (Error::Unknown { .. }, _) => "look before trying again",
        (_, Some(ProblemCode::NoLeader | ProblemCode::NoQuorum)) => {
            "a majority of the voters does not answer: `lifeboat status` shows which"
        }
        (_, Some(ProblemCode::Fenced)) => {
            "history went on without that member: `lifeboat dr plan`, asked of it, says where, and what to do"
        }
        (_, Some(ProblemCode::Diverged)) => "the revision is of a timeline that was left behind: read the keys anew",
        (_, Some(ProblemCode::Compacted)) => "the oldest revision that is kept is the floor; read a newer one",
        (_, Some(ProblemCode::FeatureNotActive)) => {
            "a member runs an older program; upgrade it, or use --no-idempotency for plain writes"
        }
        (_, Some(ProblemCode::NoRoom)) => "free room on the member's disk, or delete keys; it clears by itself",
        (_, Some(ProblemCode::QuorumAtRisk)) => {
            "bring members back, or remove those that do not answer, first; --force does what can still be committed"
        }
        (_, Some(ProblemCode::TooLarge)) => "split it, or raise max_value_bytes on all members",
        (Error::Unavailable { problem: None, .. }, _) => {
            "is the address right, and does a member run there? --endpoints or LIFEBOAT_ENDPOINTS names the members"
        }
        (Error::Protocol { .. }, _) => "is this the port for clients (7400 by default)?",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Problem, Retry};

    #[test]
    fn every_code_is_in_the_table_once() {
        let all = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::NotFound,
            Exit::Condition,
            Exit::Unknown,
            Exit::Unavailable,
            Exit::Lost,
            Exit::Disagree,
        ];
        let table: Vec<u8> = Exit::TABLE.iter().map(|(code, _)| *code).collect();
        assert_eq!(table, all.map(Exit::code));
        for (code, meaning) in Exit::TABLE {
            assert!(help().contains(&format!("{code}  {meaning}")));
        }
        let docs = include_str!("../../docs/cli.md");
        for (code, meaning) in Exit::TABLE {
            assert!(docs.contains(&format!("| {code} | {meaning} |")), "docs/cli.md lacks {code} {meaning}");
        }
    }

    #[test]
    fn what_a_member_says_decides_the_code() {
        let refused = |code| {
            let problem = Box::new(Problem::new(code, 400, Retry::Never, "why"));
            Trouble::from(Error::Refused { problem, endpoint: "http://a:1".into() }).exit
        };
        for (code, exit) in [
            (ProblemCode::ConditionFailed, Exit::Condition),
            (ProblemCode::UnknownLease, Exit::NotFound),
            (ProblemCode::UnknownSequence, Exit::NotFound),
            (ProblemCode::UnknownMember, Exit::NotFound),
            (ProblemCode::BadKey, Exit::Failed),
        ] {
            assert_eq!(refused(code), exit, "{code}");
        }
        let unknown = Error::Unknown { reason: "r".into(), problem: None, idempotency_key: Some("k1".into()) };
        let trouble = Trouble::from(unknown);
        assert_eq!(trouble.exit, Exit::Unknown);
        assert!(trouble.hint.unwrap().contains("--idempotency-key k1"));
    }
}

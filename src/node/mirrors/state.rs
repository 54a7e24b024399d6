//! In which state a member is: what was seen of it, and the state before, make the next one. Nothing here asks anybody.
//!
//! ```text
//!                  behind more than the limit
//!   SYNCHRONIZED ────────────────────────────> SYNCHRONIZING
//!        ^        <────────────────────────────
//!        │          behind less than half of it
//!        │
//!   any state ── no answer ──> DISCONNECTED ── answers ──> SYNCHRONIZING
//!   any state ── suspended ──> SUSPENDED ──── resumed ───> SYNCHRONIZING
//!   any state ── damage ─────> QUARANTINED ── repaired ──> SYNCHRONIZING
//! ```
//!
//! What is worse wins: QUARANTINED before SUSPENDED before DISCONNECTED. A member leaves QUARANTINED by an answer that says
//! so only, so DISCONNECTED never comes next; every other change happens (`tests/mirrors/states.rs`). Between the limit and
//! its half a member stays what it is, so that one at the edge does not flutter. A leader that no quorum confirms does not
//! know what was acknowledged elsewhere, so nobody is SYNCHRONIZED with it.

use std::time::Duration;

use crate::api::MirrorState;

/// What was seen of a member.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// It says that it is quarantined, or its chain hash disagrees.
    pub quarantined: bool,
    /// Somebody said that it shall be sent nothing.
    pub suspended: bool,
    /// Whether it answers.
    pub answers: bool,
    /// How old the oldest entry is that it does not show yet; none when that is not known.
    pub behind: Option<Duration>,
    /// Past this it is not synchronized any more.
    pub limit: Duration,
    /// Whether a quorum confirms the leader that looks.
    pub confirmed: bool,
}

/// The state that follows from what was seen.
pub fn next(before: Option<MirrorState>, seen: Seen) -> MirrorState {
    if seen.quarantined {
        return MirrorState::Quarantined;
    }
    if seen.suspended {
        return MirrorState::Suspended;
    }
    if !seen.answers {
        return MirrorState::Disconnected;
    }
    let limit = if before == Some(MirrorState::Synchronized) { seen.limit } else { seen.limit / 2 };
    match seen.behind {
        Some(behind) if behind <= limit && seen.confirmed => MirrorState::Synchronized,
        _ => MirrorState::Synchronizing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MirrorState::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn seen(behind_ms: u64) -> Seen {
        let behind = Some(Duration::from_millis(behind_ms));
        Seen { quarantined: false, suspended: false, answers: true, behind, limit: LIMIT, confirmed: true }
    }

    #[test]
    fn a_member_at_the_edge_does_not_flutter() {
        for (before, behind_ms, after) in [
            (None, 500, Synchronized),
            (None, 501, Synchronizing),
            (Some(Synchronizing), 500, Synchronized),
            (Some(Synchronizing), 900, Synchronizing),
            (Some(Synchronized), 900, Synchronized),
            (Some(Synchronized), 1000, Synchronized),
            (Some(Synchronized), 1001, Synchronizing),
            (Some(Disconnected), 900, Synchronizing),
        ] {
            assert_eq!(next(before, seen(behind_ms)), after, "{before:?} {behind_ms}");
        }
    }

    #[test]
    fn what_is_worse_wins() {
        let all = Seen { quarantined: true, suspended: true, answers: false, ..seen(0) };
        assert_eq!(next(Some(Synchronized), all), Quarantined);
        assert_eq!(next(Some(Synchronized), Seen { quarantined: false, ..all }), Suspended);
        assert_eq!(next(Some(Synchronized), Seen { quarantined: false, suspended: false, ..all }), Disconnected);
    }

    #[test]
    fn nobody_is_synchronized_with_what_is_not_known() {
        for before in MirrorState::ALL.map(Some).into_iter().chain([None]) {
            assert_eq!(next(before, Seen { behind: None, ..seen(0) }), Synchronizing);
            assert_eq!(next(before, Seen { confirmed: false, ..seen(0) }), Synchronizing);
        }
    }
}

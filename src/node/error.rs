//! Why a request could not be done: one enum for everything that `node` refuses or loses.
//!
//! The variants keep apart what provably never reached a log from what may have been applied; `http` alone turns them
//! into statuses.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A failed request to a member.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeError {
    /// No leader is known to this member; nothing was proposed.
    #[error("member {name} knows no leader in term {term}")]
    NoLeader {
        /// This member.
        name: String,
        /// Its term.
        term: u64,
    },
    /// This member is just opened, and knows nothing of a leader yet; nothing was proposed.
    #[error("this member does not serve yet: {detail}. See lifeboat dr plan")]
    Opening {
        /// What it does.
        detail: String,
    },
    /// This member is stopping; nothing was proposed.
    #[error("the member is stopping")]
    Stopping,
    /// The leader could not be reached, or refused the request unread; nothing was proposed. Of a read: it gave no
    /// answer.
    #[error("the leader at {url} could not be reached: {detail}")]
    LeaderUnreachable {
        /// Its peer address.
        url: String,
        /// What happened.
        detail: String,
    },
    /// No quorum confirmed a read in time.
    #[error("no quorum confirmed the read: {detail}")]
    NoQuorum {
        /// What happened.
        detail: String,
    },
    /// A write was proposed or forwarded and its fate is not known.
    #[error("the write may or may not have been applied: {detail}")]
    Unknown {
        /// What happened.
        detail: String,
    },
    /// Not all members are new enough for the request; nothing was proposed.
    #[error(
        "the request needs feature level {needed}, the cluster is at {level}: it rises when all members are new enough"
    )]
    FeatureNotActive {
        /// What it needs.
        needed: u64,
        /// What all members have.
        level: u64,
    },
    /// As many outcomes of keyed requests are kept as may be; nothing was proposed.
    #[error("{kept} outcomes of keyed requests are kept, which is the limit; the oldest go after 24 hours")]
    OutcomesFull {
        /// How many.
        kept: u64,
    },
    /// A planned pause is in force; nothing was proposed.
    #[error("a planned pause until {}: {message}", crate::api::time::utc_text(*until_ms))]
    Maintenance {
        /// What its maker has to say.
        message: String,
        /// When it ends, in milliseconds since 1970.
        until_ms: u64,
        /// How long that is from now.
        remaining_ms: u64,
    },
    /// No lease has this id.
    #[error("there is no lease {id}")]
    UnknownLease {
        /// The id asked for.
        id: u64,
    },
    /// A member is short of disk room; nothing was proposed.
    #[error("{names} short of disk room: deletes and reads go on, other writes when there is room again")]
    NoRoom {
        /// Which members, and a verb.
        names: String,
    },
    /// Too many writes wait to be proposed; nothing was proposed.
    #[error("too many writes are waiting")]
    QueueFull,
    /// The time of the write was over before this member could propose or forward it; nothing was proposed.
    #[error("the write waited for its whole time, and nothing could be proposed: no leader took writes")]
    NotProposed,
    /// The storage of this member failed; it serves nothing any more.
    #[error("storage failed: {detail}")]
    StorageFailed {
        /// What happened.
        detail: String,
    },
    /// This member's copy of the history is damaged; it serves nothing until it is repaired. Nothing was proposed.
    #[error("this member is in quarantine until it is repaired: {detail}")]
    Quarantined {
        /// What is damaged.
        detail: String,
    },
    /// History went on without this member: it serves nothing until it rejoins. Nothing was proposed.
    #[error("this member is fenced: {detail}")]
    Fenced {
        /// Where history went on.
        detail: String,
        /// Where clients reach a member there.
        primary: Option<String>,
    },
    /// A forced failover was asked for, and the primary site answers.
    #[error("{detail}")]
    PrimaryAnswers {
        /// Who, and what to do.
        detail: String,
    },
    /// A forced failover was asked for, and not every member of the site answers.
    #[error("{detail}")]
    StandbyIncomplete {
        /// Who, and what to do.
        detail: String,
    },
    /// The member was told to rejoin, and is not fenced.
    #[error("{detail}")]
    NotFenced {
        /// What to do.
        detail: String,
    },
    /// A failover cannot be rehearsed at this member, or not now.
    #[error("{detail}")]
    DrillRefused {
        /// Why, and what to do.
        detail: String,
    },
    /// There is not enough room on the disk to rehearse a failover.
    #[error("{detail}")]
    DrillNoRoom {
        /// How much is needed.
        detail: String,
    },
    /// A verification runs already.
    #[error("a verification runs already")]
    VerifyRunning,
    /// No member has this name.
    #[error("no member is named {name:?}")]
    UnknownMember {
        /// The name asked for.
        name: String,
    },
    /// A member has this name already.
    #[error("a member is named {name:?} already")]
    MemberExists {
        /// The name.
        name: String,
    },
    /// The change of members could leave no quorum.
    #[error("{detail}")]
    QuorumAtRisk {
        /// Why.
        detail: String,
    },
    /// The members cannot be changed at this moment; nothing was proposed.
    #[error("the members cannot be changed now: {detail}")]
    NotNow {
        /// Why.
        detail: String,
    },
    /// Whoever asked was removed from the cluster.
    #[error("{detail}")]
    Removed {
        /// Who, and from which.
        detail: String,
    },
    /// The member is a mirror, which cannot lead.
    #[error("{name} is not a voter, so it cannot lead")]
    NotAVoter {
        /// The member asked for.
        name: String,
    },
    /// The member lacks entries or does not answer.
    #[error("{name} cannot take over now: {detail}")]
    NotAtTip {
        /// The member asked for.
        name: String,
        /// What it lacks.
        detail: String,
    },
    /// The primary site cannot be moved now, or not the way that was asked for; nothing was done.
    #[error("{detail}")]
    SwitchoverRefused {
        /// Everything that is missing, and the next command.
        detail: String,
    },
    /// No member stands in this site.
    #[error("no member stands in site {site:?}; there are: {known}. See them: lifeboat replication")]
    UnknownSite {
        /// The site asked for.
        site: String,
        /// The sites that there are.
        known: String,
    },
    /// Leadership was not handed over in time; the old leader goes on or another is elected.
    #[error("leadership did not move to {name} in time")]
    TransferTimedOut {
        /// The member asked for.
        name: String,
    },
    /// The asked member belongs to no cluster yet.
    #[error("this member does not belong to a cluster yet. See lifeboat dr plan")]
    NotJoined,
    /// The request itself is wrong, as the member that decided says.
    #[error("{detail}")]
    Refused {
        /// What is wrong.
        detail: String,
    },
}

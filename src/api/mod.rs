//! The JSON forms of the HTTP API: what the server writes, and what the client and the command line read.
//!
//! Place in the path: `http` turns outcomes of `node` into these, `client` turns replies back into them. Only serde
//! lives here; no status codes (those are `http::problem`'s), no headers' values, no I/O.
//!
//! Invariants: replies accept unknown fields when read, so that an older client understands a newer member; requests
//! refuse them, so that a misspelt field never changes the meaning. Bytes that are UTF-8 travel as text, others as
//! base64 (standard alphabet, padded), in fields of different names: see [`KeyItem`]. A member id travels as 16
//! hexadecimal digits, because JSON numbers end at 2^53.
//!
//! Proven by the tests in each file: every form is compared with its text in `docs/http-api.md`, and comes back.

mod cluster;
mod dr;
mod drill;
mod event;
mod failover;
mod kv;
mod lease;
mod members;
mod problem;
mod records;
mod replication;
mod salvage;
mod schema;
pub mod time;
mod txn;
mod verify;
mod watch;

pub use cluster::{
    Cluster, Health, Leader, LeaderReply, LeaderRequest, Member, MemberRole, MembersReply, Role, RoleReply, Status,
    TimelineName,
};
pub use dr::{SwitchoverReply, SwitchoverRequest, SwitchoverState, SwitchoverStep};
pub use drill::{
    DrillCheck, DrillFork, DrillLine, DrillMirror, DrillProgress, DrillReport, DrillRequest, DrillRto, DrillSequence,
    DrillStep,
};
pub use event::{Event, EventScope, EventsReply};
pub use failover::{ForceReply, ForceRequest, Loss, RejoinReply, RejoinRequest, SurveyReply, SurveyedMember};
pub use kv::{DeleteKeysReply, DeleteReply, KeyItem, KeysEnd, KeysPage, WriteReply};
pub use lease::{GrantReply, GrantRequest, Lease, LeaseReply, LeasedKey, LeasesReply, RevokeReply};
pub use members::{InviteRequest, MemberReply, Progress, ProgressState, RemovedReply, RoleChange};
pub use problem::{Problem, ProblemCode, Retry, WriteOutcome};
pub use records::{EndedReply, MaintenanceReply, MaintenanceRequest, SequenceJump, SequenceReply, SequenceState};
pub use replication::{
    CatchUp, DrReply, MemberReplication, MirrorState, Objectives, PlanStep, Queue, ReplicationReply, StandbySite,
    SuspendReply,
};
pub use salvage::{
    Fate, KnownReply, KnownRequest, SALVAGE_FORMAT, SALVAGE_SUFFIX, SALVAGE_VERSION, SalvageCommon, SalvageCounts,
    SalvageFile, SalvageFork, SalvageHeader, SalvageLost, SalvageMember, SalvageReply, SalvageTimeline, SalvagedAction,
    SalvagedKind, SalvagedOp, SalvagedWrite,
};
pub use txn::{
    Compare, CompareOp, CompareTarget, DeleteOp, GetOp, Keys, PutOp, RangeOp, TxnOp, TxnReply, TxnRequest, TxnResult,
};
pub use verify::{VerifyDoubt, VerifyLine, VerifyMember, VerifyPhase, VerifyProgress, VerifyReport, VerifyState};
pub use watch::{Change, ChangeEvent, DeleteChange, EndEvent, EndReason, PutChange, WatchEvent};
// What the forms above are made of, for those who know only this module.
pub use crate::model::{KeyMeta, RandomId, Revision, TimelineId};

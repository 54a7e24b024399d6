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
//! Proven by the tests in each file: every form is compared with its text in `docs/api.md`, and comes back.

mod cluster;
mod kv;
mod problem;

pub use cluster::{
    Cluster, Health, Leader, LeaderReply, LeaderRequest, Member, MemberRole, MembersReply, Role, RoleReply, Status,
    TimelineName,
};
pub use kv::{DeleteKeysReply, DeleteReply, KeyItem, KeysEnd, KeysPage, WriteReply};
pub use problem::{Problem, ProblemCode, Retry, WriteOutcome};

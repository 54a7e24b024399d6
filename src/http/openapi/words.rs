//! What the operations of [`operations`](super::operations) have in common: the problems that a kind of request may be
//! answered with, parameters and headers that mean the same wherever they stand.

use super::table::{Content, Kind, Operation, Parameter, Reply};
use crate::api::ProblemCode as Code;

/// What any operation may be answered with.
pub const ALWAYS: &[Code] = &[
    Code::BadParameter,
    Code::BadHeader,
    Code::WrongTimeline,
    Code::NotJoined,
    Code::Quarantined,
    Code::Fenced,
    Code::TooManyConnections,
];
/// What a read that needs the leader may be answered with.
pub const READ: &[Code] =
    &[Code::NoLeader, Code::Stopping, Code::LeaderUnreachable, Code::NoQuorum, Code::QueueFull, Code::StorageFailed];
/// What a read that may be stale may be answered with.
pub const STALE: &[Code] = &[Code::TooStale];
/// What a read at a revision may be answered with.
pub const REVISION: &[Code] = &[Code::Compacted, Code::Diverged, Code::FutureRevision, Code::NotHereYet];
/// What a write may be answered with.
pub const WRITE: &[Code] = &[
    Code::NoLeader,
    Code::Stopping,
    Code::LeaderUnreachable,
    Code::QueueFull,
    Code::StorageFailed,
    Code::UnknownOutcome,
    Code::Refused,
    Code::Maintenance,
];
/// What a read of keys may be answered with during a planned pause.
pub const PAUSED: &[Code] = &[Code::Maintenance];
/// What a write that needs room on the disk may be answered with.
pub const GROWTH: &[Code] = &[Code::NoRoom];
/// What a write under an idempotency key may be answered with.
pub const KEYED: &[Code] = &[Code::IdempotencyMismatch, Code::OutcomesFull, Code::FeatureNotActive];
/// What a request with a body may be answered with.
pub const BODY: &[Code] = &[Code::TooLarge, Code::SlowRequest, Code::BadBody];
/// What a change of the cluster may be answered with.
pub const CHANGE: &[Code] =
    &[Code::NoLeader, Code::Stopping, Code::LeaderUnreachable, Code::QueueFull, Code::StorageFailed, Code::Refused];

/// What a change of the planned pause may be answered with.
pub const PAUSE: &[Code] = &[
    Code::NoLeader,
    Code::Stopping,
    Code::LeaderUnreachable,
    Code::QueueFull,
    Code::StorageFailed,
    Code::UnknownOutcome,
    Code::FeatureNotActive,
];

/// What a change of the members may be answered with besides.
pub const MEMBERSHIP: &[Code] = &[Code::NoQuorum, Code::UnknownOutcome, Code::TransferTimedOut];

/// The path of one key.
pub const KV: &str = "/v1/kv/{key}";
/// Lines of JSON.
pub const NDJSON: &str = "application/x-ndjson";
/// Server-sent events.
pub const EVENTS: &str = "text/event-stream";

/// A whole number.
pub const fn number(name: &'static str, what: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Number { min: 0, max: None, default: None }, what }
}

/// How many at most.
pub const fn limit(max: u64, what: &'static str) -> Parameter {
    Parameter { name: "limit", kind: Kind::Number { min: 1, max: Some(max), default: None }, what }
}

/// `true` or `false`.
pub const fn switch(name: &'static str, what: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Switch, what }
}

/// Percent-encoded bytes.
pub const fn bytes(name: &'static str, what: &'static str) -> Parameter {
    Parameter { name, kind: Kind::KeyBytes, what }
}

/// How long to wait.
pub const fn wait(default: &'static str, what: &'static str) -> Parameter {
    Parameter { name: "wait", kind: Kind::Duration { min: None, max: Some("5m"), default: Some(default) }, what }
}

/// The parameter `consistency`.
pub const CONSISTENCY: Parameter = Parameter {
    name: "consistency",
    kind: Kind::Choice(&["linearizable", "stale"]),
    what: "`linearizable`, the default: sees every write that was acknowledged before the read began. `stale`: whatever \
           this member has",
};
/// The parameter `max_lag`.
pub const MAX_LAG: Parameter = Parameter {
    name: "max_lag",
    kind: Kind::Duration { min: None, max: None, default: None },
    what: "Only with `stale`: 503 when the member lags more, or does not know",
};
/// The parameter `durability`.
pub const DURABILITY: Parameter = Parameter {
    name: "durability",
    kind: Kind::Choice(&["majority", "mirrored"]),
    what: "`majority`, the default: answered when a majority of the voters has it on their disks. `mirrored`: answered \
           when a mirror in another site has it on its disk too, or has not in time; `mirrored` in the reply says which",
};
/// The parameter `rev`.
pub const REV: Parameter = number("rev", "As it was at this revision");
/// The parameter `prefix`.
pub const PREFIX: Parameter = bytes("prefix", "The keys that begin so; not together with `start` and `end`");
/// The parameter `start`.
pub const START: Parameter = bytes("start", "The first key");
/// The parameter `end`.
pub const END: Parameter = bytes("end", "The first key that is not meant any more");
/// The parameter `keys_only`.
pub const KEYS_ONLY: Parameter = switch("keys_only", "Without values");

/// The header `If-Match`.
pub const IF_MATCH: Parameter = Parameter {
    name: "If-Match",
    kind: Kind::ETags,
    what: "Only if the key exists (`*`), or was last written at one of these revisions",
};
/// The header `If-None-Match`.
pub const IF_NONE_MATCH: Parameter = Parameter {
    name: "If-None-Match",
    kind: Kind::ETags,
    what: "Only if the key does not exist (`*`), or was last written at none of these revisions",
};
/// `If-None-Match` of a read.
pub const KNOWN: Parameter =
    Parameter { name: "If-None-Match", kind: Kind::ETags, what: "304 if the key is still at one of these revisions" };
/// The header `Idempotency-Key`.
pub const IDEMPOTENCY_KEY: Parameter = Parameter {
    name: "Idempotency-Key",
    kind: Kind::Token,
    what: "Made up anew for each request: the same request again under the same key gets the first outcome",
};
/// The header `Last-Event-Id`.
pub const LAST_EVENT_ID: Parameter = Parameter {
    name: "Last-Event-ID",
    kind: Kind::Number { min: 0, max: None, default: None },
    what: "Like `since`, and counts before it; a browser's EventSource sends it by itself",
};

/// The headers of a value that was read.
pub const READ_HEADERS: &[&str] =
    &["ETag", "Lifeboat-Create-Revision", "Lifeboat-Version", "Lifeboat-Lag-Seconds", "Cache-Control"];
/// The header of what must not be kept.
pub const FRESH: &[&str] = &["Cache-Control"];
/// The header of an outcome that was remembered.
pub const REPLAYED: &[&str] = &["Lifeboat-Replayed"];

/// What an operation has that nothing is said of.
pub const PLAIN: Operation = Operation {
    id: "",
    method: "get",
    path: "",
    tag: "",
    summary: "",
    about: "",
    query: &[],
    headers: &[],
    body: None,
    replies: &[],
    problems: &[],
};

/// A reply of JSON.
pub const fn ok(what: &'static str, contents: &'static [Content]) -> Reply {
    Reply { status: 200, what, headers: FRESH, contents }
}

//! The operations of the API: one table, in the order of `docs/http-api.md`.
//!
//! Whoever adds a route, a parameter or an error adds it here; the tests named in the parent module fail otherwise.

use schemars::{Schema, SchemaGenerator};

use super::table::{Body, Content, Kind, Operation, Parameter, Reply, form};
use super::words::*;
use crate::api::ProblemCode as Code;
use crate::api::{
    DeleteKeysReply, DeleteReply, DrReply, EndedReply, EventsReply, GrantReply, GrantRequest, Health, InviteRequest,
    KeyItem, KeysEnd, KeysPage, LeaderReply, LeaderRequest, Lease, LeaseReply, LeasesReply, MaintenanceReply,
    MaintenanceRequest, MemberReply, MembersReply, RemovedReply, ReplicationReply, RevokeReply, RoleChange, RoleReply,
    SequenceReply, SequenceState, Status, SuspendReply, SwitchoverReply, SwitchoverRequest, TxnReply, TxnRequest,
    VerifyLine, VerifyReport, WatchEvent, WriteReply,
};
use crate::metrics;
use crate::model::sequence::{MAX_SEQUENCE_COUNT, MAX_SEQUENCE_STEP};

/// The groups of operations.
pub const TAGS: &[(&str, &str)] = &[
    ("keys", "One key, or ranges of keys"),
    ("transactions", "Several operations at one revision"),
    ("watch", "The changes of keys as they happen"),
    ("leases", "Spans of time that keys hang on"),
    ("sequences", "Numbers that are given out once"),
    ("cluster", "Members, leadership, what happened"),
    ("disaster recovery", "Moving the service between sites, and the way home"),
    ("health", "For load balancers, orchestrators and Prometheus"),
    ("document", "This document"),
];

/// Every operation.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "writeKey",
        method: "put",
        path: KV,
        tag: "keys",
        summary: "Write a value",
        query: &[
            Parameter {
                name: "lease",
                kind: Kind::Number { min: 1, max: Some((1 << 53) - 1), default: None },
                what: "The key hangs on this lease and goes with it",
            },
            Parameter {
                name: "ttl",
                kind: Kind::Duration { min: Some("1s"), max: Some("720h"), default: None },
                what: "A lease of its own, granted in the same transaction; not together with `lease`",
            },
            DURABILITY,
        ],
        headers: &[IF_MATCH, IF_NONE_MATCH, IDEMPOTENCY_KEY],
        body: Some(Body::Value),
        replies: &[
            Reply {
                status: 200,
                what: "The value was replaced",
                headers: &["ETag", "Lifeboat-Replayed"],
                contents: &[Content::Json(form::<WriteReply>())],
            },
            Reply {
                status: 201,
                what: "The key was created",
                headers: &["ETag", "Lifeboat-Replayed"],
                contents: &[Content::Json(form::<WriteReply>())],
            },
        ],
        problems: &[
            WRITE,
            GROWTH,
            KEYED,
            BODY,
            &[Code::BadKey, Code::ConditionFailed, Code::UnknownLease, Code::LeaseExists],
        ],
        ..PLAIN
    },
    Operation {
        id: "readKey",
        path: KV,
        tag: "keys",
        summary: "Read a value, or wait until it has changed",
        query: &[
            REV,
            CONSISTENCY,
            MAX_LAG,
            number(
                "since",
                "Wait until the key has changed after this revision; not together with `rev` or conditions",
            ),
            wait("30s", "Only with `since`: 204 when it did not change in so long"),
        ],
        headers: &[KNOWN],
        replies: &[
            Reply {
                status: 200,
                what: "The value",
                headers: READ_HEADERS,
                contents: &[Content::Bytes, Content::Json(form::<KeyItem>())],
            },
            Reply {
                status: 204,
                what: "It did not change in time; `Lifeboat-Revision` is the next `since`",
                headers: &["Lifeboat-Lag-Seconds", "Cache-Control"],
                contents: &[],
            },
            Reply {
                status: 304,
                what: "It is what the reader has",
                headers: &["ETag", "Lifeboat-Lag-Seconds", "Cache-Control"],
                contents: &[],
            },
        ],
        problems: &[READ, STALE, REVISION, PAUSED, &[Code::BadKey, Code::NotFound, Code::TooManyWatchers]],
        ..PLAIN
    },
    Operation {
        id: "deleteKey",
        method: "delete",
        path: KV,
        tag: "keys",
        summary: "Delete a key",
        query: &[DURABILITY],
        headers: &[IF_MATCH, IDEMPOTENCY_KEY],
        replies: &[Reply {
            status: 200,
            what: "It is gone, or was not there",
            headers: REPLAYED,
            contents: &[Content::Json(form::<DeleteReply>())],
        }],
        problems: &[WRITE, KEYED, &[Code::BadKey, Code::ConditionFailed]],
        ..PLAIN
    },
    Operation {
        id: "listKeys",
        path: "/v1/keys",
        tag: "keys",
        summary: "List keys, page by page or as a stream",
        about: "A stream ends with a line whose `end` is true; one without it was cut.",
        query: &[
            PREFIX,
            START,
            END,
            limit(10_000, "At most so many items; the default is 1000 for JSON, none for a stream"),
            bytes("after", "Continue behind this key"),
            REV,
            KEYS_ONLY,
            CONSISTENCY,
            MAX_LAG,
        ],
        replies: &[Reply {
            status: 200,
            what: "One page, or all of them as lines",
            headers: &["Lifeboat-Lag-Seconds", "Cache-Control"],
            contents: &[
                Content::Json(form::<KeysPage>()),
                Content::Stream(NDJSON, &[form::<KeyItem>(), form::<KeysEnd>()]),
            ],
        }],
        problems: &[READ, STALE, REVISION, PAUSED, &[Code::TooManyReads]],
        ..PLAIN
    },
    Operation {
        id: "deleteKeys",
        method: "delete",
        path: "/v1/keys",
        tag: "keys",
        summary: "Delete a range of keys in one transaction",
        about: "One of the parameters must be given; `prefix=` with nothing is everything.",
        query: &[PREFIX, START, END, DURABILITY],
        headers: &[IDEMPOTENCY_KEY],
        replies: &[Reply {
            status: 200,
            what: "They are gone",
            headers: REPLAYED,
            contents: &[Content::Json(form::<DeleteKeysReply>())],
        }],
        problems: &[WRITE, KEYED, &[Code::TooLarge]],
        ..PLAIN
    },
    Operation {
        id: "transact",
        method: "post",
        path: "/v1/txn",
        tag: "transactions",
        summary: "If all comparisons hold, do one thing, else another, at one revision",
        query: &[DURABILITY],
        headers: &[IDEMPOTENCY_KEY],
        body: Some(Body::Json(form::<TxnRequest>())),
        replies: &[Reply {
            status: 200,
            what: "Which branch was taken, and one result an operation",
            headers: REPLAYED,
            contents: &[Content::Json(form::<TxnReply>())],
        }],
        problems: &[WRITE, GROWTH, KEYED, BODY, &[Code::BadKey, Code::UnknownLease, Code::WrittenTwice]],
        ..PLAIN
    },
    Operation {
        id: "watch",
        path: "/v1/watch",
        tag: "watch",
        summary: "Follow the changes of keys",
        about: "The stream has no end of its own. Whoever continues with `since=` the last revision seen gets every \
                matching change exactly once, on any member.",
        query: &[
            bytes("key", "This key alone; not together with `prefix`, `start` and `end`"),
            PREFIX,
            START,
            END,
            number("since", "From the first change after this revision"),
            Parameter { name: "filter", kind: Kind::Choice(&["put", "delete"]), what: "Only these changes" },
            switch("previous", "With the item that each change replaced or deleted"),
            KEYS_ONLY,
            Parameter {
                name: "heartbeat",
                kind: Kind::Duration { min: Some("1s"), max: Some("5m"), default: Some("10s") },
                what: "How often a quiet stream tells that it lives",
            },
            Parameter {
                name: "max_lag",
                kind: Kind::Duration { min: None, max: None, default: None },
                what: "The stream ends when the member lags more, or does not know",
            },
        ],
        headers: &[LAST_EVENT_ID],
        replies: &[ok(
            "The events",
            &[Content::Stream(EVENTS, &[form::<WatchEvent>()]), Content::Stream(NDJSON, &[form::<WatchEvent>()])],
        )],
        problems: &[READ, REVISION, STALE, PAUSED, &[Code::TooManyWatchers]],
        ..PLAIN
    },
    Operation {
        id: "grantLease",
        method: "post",
        path: "/v1/leases",
        tag: "leases",
        summary: "Grant a lease",
        headers: &[IDEMPOTENCY_KEY],
        body: Some(Body::Json(form::<GrantRequest>())),
        replies: &[Reply {
            status: 201,
            what: "It lives",
            headers: &["Lifeboat-Replayed", "Cache-Control"],
            contents: &[Content::Json(form::<GrantReply>())],
        }],
        problems: &[WRITE, GROWTH, KEYED, BODY, &[Code::LeaseExists]],
        ..PLAIN
    },
    Operation {
        id: "listLeases",
        path: "/v1/leases",
        tag: "leases",
        summary: "List leases",
        query: &[number("after", "Continue behind this id"), limit(1000, "At most so many; 1000 when it is not given")],
        replies: &[ok("The leases, by id", &[Content::Json(form::<LeasesReply>())])],
        problems: &[READ],
        ..PLAIN
    },
    Operation {
        id: "readLease",
        path: "/v1/leases/{id}",
        tag: "leases",
        summary: "See how long a lease lives, and which keys hang on it",
        replies: &[ok("The lease", &[Content::Json(form::<LeaseReply>())])],
        problems: &[READ, &[Code::UnknownLease]],
        ..PLAIN
    },
    Operation {
        id: "revokeLease",
        method: "delete",
        path: "/v1/leases/{id}",
        tag: "leases",
        summary: "End a lease and delete its keys",
        replies: &[ok("Its keys are gone", &[Content::Json(form::<RevokeReply>())])],
        problems: &[WRITE, &[Code::UnknownLease, Code::FeatureNotActive]],
        ..PLAIN
    },
    Operation {
        id: "keepLeaseAlive",
        method: "post",
        path: "/v1/leases/{id}/keepalive",
        tag: "leases",
        summary: "Prolong a lease by its whole span",
        replies: &[ok("From now on it lives so long again", &[Content::Json(form::<Lease>())])],
        problems: &[READ, &[Code::UnknownLease]],
        ..PLAIN
    },
    Operation {
        id: "takeNumbers",
        method: "post",
        path: "/v1/seq/{name}",
        tag: "sequences",
        summary: "Take the next numbers of a sequence",
        about: "The first call creates the sequence. No number is given out twice as long as the timeline is the same; when \
                it changes the sequence jumps by its step, and `unique` is false from then on.",
        query: &[
            Parameter {
                name: "count",
                kind: Kind::Number { min: 1, max: Some(MAX_SEQUENCE_COUNT), default: Some(1) },
                what: "So many numbers, one after the other",
            },
            Parameter {
                name: "step",
                kind: Kind::Number { min: 1, max: Some(MAX_SEQUENCE_STEP), default: None },
                what: "By how much it jumps when the timeline changes: declared by the first call, 1000000 if it does not \
                       say; a later call that names another is refused",
            },
        ],
        headers: &[IDEMPOTENCY_KEY],
        replies: &[Reply {
            status: 200,
            what: "They belong to the caller",
            headers: &["Lifeboat-Replayed", "Cache-Control"],
            contents: &[Content::Json(form::<SequenceReply>())],
        }],
        problems: &[
            WRITE,
            GROWTH,
            KEYED,
            &[Code::BadKey, Code::TooLarge, Code::SlowRequest, Code::BadBody],
            &[Code::SequenceStep, Code::SequenceExhausted],
        ],
        ..PLAIN
    },
    Operation {
        id: "readSequence",
        path: "/v1/seq/{name}",
        tag: "sequences",
        summary: "See how far a sequence is, and where it jumped",
        query: &[CONSISTENCY, MAX_LAG],
        replies: &[Reply {
            status: 200,
            what: "The sequence",
            headers: &["Lifeboat-Lag-Seconds", "Cache-Control"],
            contents: &[Content::Json(form::<SequenceState>())],
        }],
        problems: &[READ, STALE, PAUSED, &[Code::BadKey, Code::UnknownSequence]],
        ..PLAIN
    },
    Operation {
        id: "readStatus",
        path: "/v1/status",
        tag: "cluster",
        summary: "This member, and the cluster as it sees it",
        replies: &[ok("The status", &[Content::Json(form::<Status>())])],
        ..PLAIN
    },
    Operation {
        id: "listMembers",
        path: "/v1/members",
        tag: "cluster",
        summary: "The members of the cluster",
        replies: &[ok("All of them", &[Content::Json(form::<MembersReply>())])],
        ..PLAIN
    },
    Operation {
        id: "inviteMember",
        method: "post",
        path: "/v1/members",
        tag: "cluster",
        summary: "Say that a member of this name will come",
        body: Some(Body::Json(form::<InviteRequest>())),
        replies: &[Reply {
            status: 202,
            what: "It is expected",
            headers: FRESH,
            contents: &[Content::Json(form::<MemberReply>())],
        }],
        problems: &[CHANGE, BODY, MEMBERSHIP, &[Code::MemberExists]],
        ..PLAIN
    },
    Operation {
        id: "readMember",
        path: "/v1/members/{name}",
        tag: "cluster",
        summary: "See a member, and how far it is",
        replies: &[ok("The member, or the invitation", &[Content::Json(form::<MemberReply>())])],
        problems: &[CHANGE, &[Code::UnknownMember]],
        ..PLAIN
    },
    Operation {
        id: "changeMember",
        method: "patch",
        path: "/v1/members/{name}",
        tag: "cluster",
        summary: "Make a voter a mirror, or a mirror a voter",
        body: Some(Body::Json(form::<RoleChange>())),
        replies: &[ok("The member as it is now", &[Content::Json(form::<MemberReply>())])],
        problems: &[CHANGE, BODY, MEMBERSHIP, &[Code::UnknownMember, Code::QuorumAtRisk, Code::NotAtTip]],
        ..PLAIN
    },
    Operation {
        id: "removeMember",
        method: "delete",
        path: "/v1/members/{name}",
        tag: "cluster",
        summary: "Take a member out, or an invitation back",
        query: &[switch(
            "force",
            "Also when no further voter could fail afterwards; what could not be committed is refused all the same",
        )],
        replies: &[ok("It is gone", &[Content::Json(form::<RemovedReply>())])],
        problems: &[CHANGE, MEMBERSHIP, &[Code::UnknownMember, Code::QuorumAtRisk, Code::NotAtTip]],
        ..PLAIN
    },
    Operation {
        id: "suspendMember",
        method: "post",
        path: "/v1/members/{name}/suspend",
        tag: "cluster",
        summary: "Send a mirror nothing any more",
        replies: &[ok("It is suspended", &[Content::Json(form::<SuspendReply>())])],
        problems: &[CHANGE, GROWTH, &[Code::UnknownMember, Code::UnknownOutcome]],
        ..PLAIN
    },
    Operation {
        id: "resumeMember",
        method: "post",
        path: "/v1/members/{name}/resume",
        tag: "cluster",
        summary: "Send a suspended mirror everything again",
        replies: &[ok("It is not suspended", &[Content::Json(form::<SuspendReply>())])],
        problems: &[CHANGE, GROWTH, &[Code::UnknownMember, Code::UnknownOutcome]],
        ..PLAIN
    },
    Operation {
        id: "readReplication",
        path: "/v1/replication",
        tag: "cluster",
        summary: "How every member follows: its state, its queues, its lag",
        about: "The leader's view, whichever member is asked; of the asked member alone when no leader can be asked.",
        replies: &[ok("The figures", &[Content::Json(form::<ReplicationReply>())])],
        problems: &[CHANGE],
        ..PLAIN
    },
    Operation {
        id: "readDr",
        path: "/v1/dr",
        tag: "cluster",
        summary: "How the cluster stands against the loss of its site, and what to do",
        replies: &[ok("Sites, objectives, warnings and commands", &[Content::Json(form::<DrReply>())])],
        problems: &[CHANGE],
        ..PLAIN
    },
    Operation {
        id: "beginSwitchover",
        method: "post",
        path: "/v1/dr/switchover",
        tag: "cluster",
        summary: "Move the primary site to another one, without loss",
        about: "Joins the switchover to the same site that is under way. It goes on when the reply is out.",
        body: Some(Body::Json(form::<SwitchoverRequest>())),
        replies: &[
            Reply {
                status: 202,
                what: "It is under way",
                headers: FRESH,
                contents: &[Content::Json(form::<SwitchoverReply>())],
            },
            ok("Only looked at, or the primary site already", &[Content::Json(form::<SwitchoverReply>())]),
        ],
        problems: &[CHANGE, MEMBERSHIP, BODY, &[Code::SwitchoverRefused, Code::UnknownSite]],
        ..PLAIN
    },
    Operation {
        id: "readSwitchover",
        path: "/v1/dr/switchover",
        tag: "cluster",
        summary: "The newest switchover, and how far it is",
        replies: &[ok("How it stands", &[Content::Json(form::<SwitchoverReply>())])],
        problems: &[CHANGE],
        ..PLAIN
    },
    Operation {
        id: "abortSwitchover",
        method: "delete",
        path: "/v1/dr/switchover",
        tag: "cluster",
        summary: "Call the switchover off, as long as the lead has not moved",
        query: &[bytes("by", "Who calls it off, for the record")],
        replies: &[Reply {
            status: 202,
            what: "It is on its way back",
            headers: FRESH,
            contents: &[Content::Json(form::<SwitchoverReply>())],
        }],
        problems: &[CHANGE, MEMBERSHIP, &[Code::SwitchoverRefused]],
        ..PLAIN
    },
    Operation {
        id: "readRole",
        path: "/v1/role",
        tag: "cluster",
        summary: "What this member does, and who leads",
        replies: &[ok("The role", &[Content::Json(form::<RoleReply>())])],
        ..PLAIN
    },
    Operation {
        id: "moveLeader",
        method: "post",
        path: "/v1/leader",
        tag: "cluster",
        summary: "Hand leadership over",
        body: Some(Body::Json(form::<LeaderRequest>())),
        replies: &[Reply {
            status: 200,
            what: "The new leader leads",
            headers: &[],
            contents: &[Content::Json(form::<LeaderReply>())],
        }],
        problems: &[CHANGE, BODY, &[Code::UnknownMember, Code::NotAVoter, Code::NotAtTip, Code::TransferTimedOut]],
        ..PLAIN
    },
    Operation {
        id: "beginMaintenance",
        method: "put",
        path: "/v1/maintenance",
        tag: "cluster",
        summary: "Begin a planned pause, or replace it",
        about: "Writes (and reads, if told) are refused with 503 until it ends, by itself or by DELETE.",
        body: Some(Body::Json(form::<MaintenanceRequest>())),
        replies: &[ok("It is in force", &[Content::Json(form::<MaintenanceReply>())])],
        problems: &[PAUSE, BODY],
        ..PLAIN
    },
    Operation {
        id: "readMaintenance",
        path: "/v1/maintenance",
        tag: "cluster",
        summary: "See the planned pause",
        replies: &[ok("The pause, or that there is none", &[Content::Json(form::<MaintenanceReply>())])],
        problems: &[&[Code::StorageFailed]],
        ..PLAIN
    },
    Operation {
        id: "endMaintenance",
        method: "delete",
        path: "/v1/maintenance",
        tag: "cluster",
        summary: "End the planned pause",
        replies: &[ok("There is none any more", &[Content::Json(form::<EndedReply>())])],
        problems: &[PAUSE],
        ..PLAIN
    },
    Operation {
        id: "listEvents",
        path: "/v1/events",
        tag: "cluster",
        summary: "What happened to this member and its cluster lately",
        query: &[
            number("since", "Events after this one"),
            wait("0s", "Wait so long for one"),
            limit(1000, "At most so many; 1000 when it is not given"),
        ],
        replies: &[ok("The events, the oldest first", &[Content::Json(form::<EventsReply>())])],
        ..PLAIN
    },
    Operation {
        id: "verify",
        path: "/v1/verify",
        tag: "cluster",
        summary: "Whether every member is sound, and all hold the same",
        about: "The stream tells how far it is several times a second; its last line is the report. One verification at a \
                time. A member that is damaged or wrong goes into quarantine. HEAD begins none.",
        query: &[number("rev", "Compare contents at this revision; at the newest when it is not given")],
        replies: &[ok(
            "The progress and the report, or the report alone",
            &[Content::Stream(NDJSON, &[form::<VerifyLine>()]), Content::Json(form::<VerifyReport>())],
        )],
        problems: &[READ, &[Code::Compacted, Code::FutureRevision, Code::VerifyRunning]],
        ..PLAIN
    },
    Operation {
        id: "readSnapshot",
        path: "/v1/snapshot",
        tag: "cluster",
        summary: "All that this member holds, as a file with which a new member can begin",
        replies: &[Reply {
            status: 200,
            what: "The snapshot. It ends with a digest, so one that was cut can be told from a whole one",
            headers: &["Lifeboat-Snapshot-Bytes", "Cache-Control"],
            contents: &[Content::Bytes],
        }],
        problems: &[&[Code::StorageFailed, Code::TooManyReads]],
        ..PLAIN
    },
    health("checkLive", "/health/live", "Whether the process works and its storage has not failed"),
    health("checkReady", "/health/ready", "Whether it can serve linearizable reads and writes"),
    health("checkLeader", "/health/leader", "Whether it leads, as a quorum has confirmed"),
    health("checkPrimary", "/health/primary", "Whether it is ready, and a voter"),
    Operation {
        query: &[Parameter {
            name: "max_lag",
            kind: Kind::Duration { min: None, max: None, default: Some("10s") },
            what: "How far it may lag",
        }],
        ..health("checkMirror", "/health/mirror", "Whether it is a mirror that lags at most so much")
    },
    Operation {
        id: "readMetrics",
        path: "/metrics",
        tag: "health",
        summary: "Metrics for Prometheus",
        replies: &[Reply {
            status: 200,
            what: "OpenMetrics text",
            headers: &[],
            contents: &[Content::Text(metrics::CONTENT_TYPE)],
        }],
        ..PLAIN
    },
    Operation {
        id: "readOpenApi",
        path: "/v1/openapi.json",
        tag: "document",
        summary: "This document",
        headers: &[Parameter {
            name: "If-None-Match",
            kind: Kind::Token,
            what: "304 if the document still has this ETag",
        }],
        replies: &[
            Reply {
                status: 200,
                what: "The document",
                headers: &["ETag", "Cache-Control"],
                contents: &[Content::Json(any_object)],
            },
            Reply {
                status: 304,
                what: "It is what the reader has",
                headers: &["ETag", "Cache-Control"],
                contents: &[],
            },
        ],
        ..PLAIN
    },
];

/// A health check: it answers in the same form whether it passes or not.
const fn health(id: &'static str, path: &'static str, summary: &'static str) -> Operation {
    const REPLIES: &[Reply] = &[
        ok("It is", &[Content::Json(form::<Health>())]),
        Reply { status: 503, what: "It is not", headers: FRESH, contents: &[Content::Json(form::<Health>())] },
    ];
    Operation { id, path, tag: "health", summary, replies: REPLIES, ..PLAIN }
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object" })
}

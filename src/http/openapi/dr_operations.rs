//! The operations of disaster recovery, in the order of `docs/http-api.md`: the rest of the table in
//! [`operations`](super::operations).

use super::table::{Body, Content, Operation, Reply, form};
use super::words::*;
use crate::api::ProblemCode as Code;
use crate::api::{
    DrillLine, DrillReport, DrillRequest, ForceReply, ForceRequest, KnownReply, KnownRequest, RejoinReply,
    RejoinRequest, SalvageHeader, SalvageReply, SalvagedWrite, SurveyReply,
};

/// Every operation of disaster recovery.
pub const DR_OPERATIONS: &[Operation] = &[
    Operation {
        id: "survey",
        path: "/v1/dr/survey",
        tag: "disaster recovery",
        summary: "Who answers, what each holds, and what a forced failover would lose",
        about: "Asks all members at this moment. Never forwarded: the site of the member that is asked is the one of which \
                a member would be promoted.",
        replies: &[ok("What was found", &[Content::Json(form::<SurveyReply>())])],
        problems: &[&[Code::Stopping]],
        ..PLAIN
    },
    Operation {
        id: "force",
        method: "post",
        path: "/v1/dr/force",
        tag: "disaster recovery",
        summary: "Make the best member of the asked one's site the primary, although writes may be lost",
        about: "A new timeline begins. Refused while the primary answers, and while a member of the site does not, unless \
                it is named in `without`. Never forwarded.",
        body: Some(Body::Json(form::<ForceRequest>())),
        replies: &[Reply {
            status: 202,
            what: "The member has written it down and does it now",
            headers: FRESH,
            contents: &[Content::Json(form::<ForceReply>())],
        }],
        problems: &[
            BODY,
            &[
                Code::Refused,
                Code::Stopping,
                Code::PrimaryAnswers,
                Code::StandbyIncomplete,
                Code::UnknownOutcome,
                Code::StorageFailed,
            ],
        ],
        ..PLAIN
    },
    Operation {
        id: "rejoin",
        method: "post",
        path: "/v1/dr/rejoin",
        tag: "disaster recovery",
        summary: "Let a fenced member come home as a mirror",
        about: "What only it has is written to a salvage file first. Never forwarded.",
        body: Some(Body::Json(form::<RejoinRequest>())),
        replies: &[Reply {
            status: 202,
            what: "The member has written it down and does it now",
            headers: FRESH,
            contents: &[Content::Json(form::<RejoinReply>())],
        }],
        problems: &[BODY, &[Code::NotFenced, Code::StorageFailed]],
        ..PLAIN
    },
    Operation {
        id: "drill",
        method: "post",
        path: "/v1/dr/drill",
        tag: "disaster recovery",
        summary: "Rehearse a forced failover at a mirror, which goes on following",
        about: "A throwaway member with a fork of the mirror's history is promoted, written to, checked and removed. The \
                stream tells how far it is; its last line is the report. A connection that goes ends the drill. Never \
                forwarded.",
        body: Some(Body::Json(form::<DrillRequest>())),
        replies: &[ok(
            "The progress and the report, or the report alone",
            &[Content::Stream(NDJSON, &[form::<DrillLine>()]), Content::Json(form::<DrillReport>())],
        )],
        problems: &[BODY, &[Code::DrillRefused, Code::NoRoom, Code::Stopping, Code::StorageFailed]],
        ..PLAIN
    },
    Operation {
        id: "listSalvage",
        path: "/v1/dr/salvage",
        tag: "disaster recovery",
        summary: "The salvage files of the member that is asked",
        about: "Never forwarded: a file is about the member that wrote it.",
        replies: &[ok("The files, by name", &[Content::Json(form::<SalvageReply>())])],
        problems: &[&[Code::StorageFailed]],
        ..PLAIN
    },
    Operation {
        id: "readSalvage",
        path: "/v1/dr/salvage/{file}",
        tag: "disaster recovery",
        summary: "The writes that only this member had when it was fenced",
        about: "A line that says what they are, then a line for each. Never forwarded.",
        replies: &[ok("The file", &[Content::Stream(NDJSON, &[form::<SalvageHeader>(), form::<SalvagedWrite>()])])],
        problems: &[&[Code::StorageFailed, Code::UnknownFile]],
        ..PLAIN
    },
    Operation {
        id: "knownRequests",
        method: "post",
        path: "/v1/dr/salvage/known",
        tag: "disaster recovery",
        summary: "Which requests the cluster has executed, by their idempotency keys",
        about: "As far as it is remembered: 24 hours. At most 1,000 keys. What is not named was not executed up to now.",
        body: Some(Body::Json(form::<KnownRequest>())),
        replies: &[ok("Those that were", &[Content::Json(form::<KnownReply>())])],
        problems: &[BODY, READ],
        ..PLAIN
    },
];

//! `POST /v1/txn`: transactions.
//!
//! The body is read strictly, its bounds are checked, and it becomes one log entry, whose outcome is the reply.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use hyper::body::Body as _;
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use super::body::{EdgeBody, collect, discard};
use super::cluster::parse_json;
use super::extract::{Durability, Parameters, RequestHeaders};
use super::outcome::{MAX_LEASE_ID, idempotency, mark_replayed, mirrored, written};
use super::problem::Failure;
use super::{Reply, Routes, Shared, json_reply, resource};
use crate::api::{self, KeyItem, Keys, ProblemCode, TxnReply, TxnRequest};
use crate::model::{
    Command, Compare, KeySet, Outcome, Request as Asked, RequestCommand, Txn, TxnItem, TxnOp, TxnOutcome, TxnResult,
    txn::MAX_TXN_DEPTH,
};
use crate::node::Limits;

const ALLOW: &str = "POST, OPTIONS";
const PARAMETERS: &[&str] = &["durability"];
/// The largest body.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Comparisons and operations together, nested ones included.
const MAX_PARTS: usize = 128;
/// Keys that one operation reads.
const MAX_READ_KEYS: u64 = 1000;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/txn", resource(ALLOW, post(txn)))
}

async fn txn(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    let (head, mut body) = request.into_parts();
    match execute(&shared, &head, &mut body, started).await {
        Ok(reply) => reply.map(EdgeBody::into_axum),
        Err(failure) => {
            // Whoever waits for leave to send has sent nothing yet, and asking for it would be that leave.
            if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
                discard(&mut body).await;
            }
            failure.into_response()
        }
    }
}

async fn execute(shared: &Shared, head: &Parts, body: &mut AxumBody, started: Instant) -> Result<Reply, Failure> {
    let (command, durability) = command(shared, head, body).await.map_err(Failure::before_proposal)?;
    let (outcome, replayed) = written(shared.node.write(&shared.context(started), command).await)?;
    let Outcome::Txn { revision, outcome } = outcome else {
        return Err(Failure::unexpected_outcome(format!("a transaction has the outcome {outcome:?}")));
    };
    let mirrored = mirrored(shared, durability, started).await;
    let body = TxnReply { revision, succeeded: outcome.succeeded, results: results(outcome), mirrored };
    let mut reply = json_reply(StatusCode::OK, &body);
    mark_replayed(&mut reply, replayed);
    Ok(reply)
}

async fn command(shared: &Shared, head: &Parts, body: &mut AxumBody) -> Result<(Command, Durability), Failure> {
    let read = RequestHeaders::parse(&head.headers)?;
    read.no_conditions()?;
    let durability = Parameters::parse(head.uri.query(), PARAMETERS)?.durability()?;
    let text = collect(body, MAX_BODY_BYTES, shared.body_timeout).await.map_err(Failure::body)?;
    let idempotency = idempotency(head, &read, &text)?;
    let asked: TxnRequest = parse_json(&text)?;
    let txn = Checker { limits: shared.node.limits(), parts: 0 }.txn(asked, 1)?;
    Ok((Command::Request(RequestCommand { time_ms: 0, idempotency, request: Asked::Txn(txn) }), durability))
}

/// Turns what was asked into what is proposed, within its bounds.
struct Checker<'l> {
    limits: &'l Limits,
    parts: usize,
}

fn bad(field: &str, detail: impl Into<String>) -> Failure {
    Failure::new(ProblemCode::BadBody, detail).field(field)
}

impl Checker<'_> {
    fn txn(&mut self, asked: TxnRequest, depth: usize) -> Result<Txn, Failure> {
        if depth > MAX_TXN_DEPTH {
            return Err(bad("txn", format!("transactions lie more than {MAX_TXN_DEPTH} deep")));
        }
        self.parts += asked.compare.len() + asked.then.len() + asked.otherwise.len();
        if self.parts > MAX_PARTS {
            return Err(bad("txn", format!("more than {MAX_PARTS} comparisons and operations")));
        }
        let compare = asked.compare.into_iter().map(|compare| {
            Ok(Compare { keys: self.keys("compare", compare.keys)?, op: compare.op, target: compare.target })
        });
        let compare = compare.collect::<Result<_, Failure>>()?;
        let mut ops = |ops: Vec<api::TxnOp>| ops.into_iter().map(|op| self.op(op, depth)).collect::<Result<_, _>>();
        Ok(Txn { compare, then: ops(asked.then)?, otherwise: ops(asked.otherwise)? })
    }

    fn op(&mut self, op: api::TxnOp, depth: usize) -> Result<TxnOp, Failure> {
        Ok(match op {
            api::TxnOp::Put(op) => {
                let limit = self.limits.max_value_bytes;
                if op.value.len() > limit {
                    let detail = format!("a value has {} bytes, at most {limit} are allowed", op.value.len());
                    return Err(Failure::new(ProblemCode::TooLarge, detail).field("value"));
                }
                if op.lease > MAX_LEASE_ID {
                    return Err(bad("lease", format!("not from 1 to {MAX_LEASE_ID}")));
                }
                TxnOp::Put { key: self.key(op.key)?, value: op.value, lease: op.lease, previous: op.previous }
            }
            api::TxnOp::Delete(op) => match self.keys("delete", op.keys)? {
                KeySet::One(key) => TxnOp::Delete { key, previous: op.previous },
                KeySet::Range { start, end } => TxnOp::DeleteRange { start, end },
            },
            api::TxnOp::Get(op) => TxnOp::Read { keys: KeySet::One(self.key(op.key)?), limit: 1, keys_only: false },
            api::TxnOp::Range(op) => {
                let limit = op.limit.unwrap_or(MAX_READ_KEYS);
                if !(1..=MAX_READ_KEYS).contains(&limit) {
                    return Err(bad("limit", format!("not from 1 to {MAX_READ_KEYS}")));
                }
                TxnOp::Read { keys: self.keys("range", op.keys)?, limit, keys_only: op.keys_only }
            }
            api::TxnOp::Txn(nested) => TxnOp::Txn(self.txn(nested, depth + 1)?),
        })
    }

    fn key(&self, key: Bytes) -> Result<Bytes, Failure> {
        let limit = self.limits.max_key_bytes;
        if key.is_empty() || key.len() > limit {
            let detail = format!("a key has {} bytes, it must have 1 to {limit}", key.len());
            return Err(Failure::new(ProblemCode::BadKey, detail).field("key"));
        }
        Ok(key)
    }

    fn keys(&self, whose: &str, keys: Keys) -> Result<KeySet, Failure> {
        let bound = |bound: Bytes| match bound.len() <= self.limits.max_key_bytes {
            true => Ok(bound),
            false => Err(bad(whose, format!("longer than a key may be: {} bytes", self.limits.max_key_bytes))),
        };
        Ok(match keys {
            Keys::One(key) => KeySet::One(self.key(key)?),
            Keys::Prefix(prefix) => {
                let end = super::keys::end_of_prefix(&prefix);
                KeySet::Range { start: bound(prefix)?, end }
            }
            Keys::Range { start, end } => {
                let (start, end) = (bound(start)?, end.map(bound).transpose()?);
                if end.as_ref().is_some_and(|end| *end <= start) {
                    return Err(bad("end", "the end is not behind the start"));
                }
                KeySet::Range { start, end }
            }
        })
    }
}

fn results(outcome: TxnOutcome) -> Vec<api::TxnResult> {
    let item = |item: TxnItem| KeyItem { key: item.key, value: item.value, meta: item.meta };
    let asked = |asked: Option<Option<TxnItem>>| asked.map(|found| found.map(item));
    let result = |result| match result {
        TxnResult::Put { meta, previous, replaced } => api::TxnResult::Put {
            create_revision: meta.create_revision,
            version: meta.version,
            previous_revision: previous,
            previous: asked(replaced),
        },
        TxnResult::Deleted { count, previous, deleted } => {
            api::TxnResult::Delete { deleted: count, previous_revision: previous, previous: asked(deleted) }
        }
        TxnResult::Item(found) => api::TxnResult::Get { item: found.map(item) },
        TxnResult::Items { items, more } => {
            api::TxnResult::Range { items: items.into_iter().map(item).collect(), more }
        }
        TxnResult::Txn(nested) => api::TxnResult::Txn { succeeded: nested.succeeded, results: results(nested) },
    };
    outcome.results.into_iter().map(result).collect()
}

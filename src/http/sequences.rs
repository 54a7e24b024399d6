//! `/v1/seq/{name}`: numbers that are given out once.
//!
//! The log gives them out (see `store/sequence.rs`); here a name, a count and a step are read, and the reply says what is
//! proven about the numbers.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use super::body::collect;
use super::extract::{Parameters, RequestHeaders, key_from_path};
use super::outcome::{idempotency, mark_replayed, written};
use super::problem::Failure;
use super::{Reply, Routes, Shared, json_reply, resource, respond};
use crate::api::{ProblemCode, SequenceJump, SequenceReply, SequenceState};
use crate::model::sequence::{MAX_SEQUENCE_COUNT, MAX_SEQUENCE_STEP};
use crate::model::{Command, Outcome, Request as Asked, RequestCommand};

const PREFIX: &str = "/v1/seq/";
const ALLOW: &str = "GET, HEAD, POST, OPTIONS";
/// The longest name in bytes.
const MAX_NAME_BYTES: usize = 256;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/seq/{name}", resource(ALLOW, post(take).get(look)))
}

/// The name in the path: UTF-8, because it stands in JSON.
fn name_of(head: &Parts) -> Result<String, Failure> {
    let raw = head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let name = key_from_path(raw, MAX_NAME_BYTES).map_err(|failure| failure.field("name"))?;
    let detail = "the name of a sequence is UTF-8";
    String::from_utf8(name.to_vec()).map_err(|_| Failure::new(ProblemCode::BadKey, detail).field("name"))
}

fn note(unique: bool, step: u64) -> Option<String> {
    (!unique).then(|| {
        format!(
            "the timeline has changed since this sequence began, and it jumped: a number can have been given out before \
             only if a lost site gave out more than {step} after the fork"
        )
    })
}

async fn take(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    respond(taken(&shared, request, started).await)
}

async fn taken(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<Reply, Failure> {
    let (name, command) = command(shared, request).await.map_err(Failure::before_proposal)?;
    let (outcome, replayed) = written(shared.node.write(&shared.context(started), command).await)?;
    let Outcome::Sequence { revision, numbers } = outcome else {
        return Err(Failure::unexpected_outcome(format!("a sequence has the outcome {outcome:?}")));
    };
    let body = SequenceReply {
        revision,
        name,
        first: numbers.first,
        last: numbers.last,
        count: numbers.last - numbers.first + 1,
        unique: numbers.unique,
        step: numbers.step,
        note: note(numbers.unique, numbers.step),
    };
    let mut reply = json_reply(StatusCode::OK, &body);
    mark_replayed(&mut reply, replayed);
    Ok(reply)
}

async fn command(shared: &Shared, request: Request<AxumBody>) -> Result<(String, Command), Failure> {
    let (head, mut body) = request.into_parts();
    let read = RequestHeaders::parse(&head.headers)?;
    read.no_conditions()?;
    let name = name_of(&head)?;
    let parameters = Parameters::parse(head.uri.query(), &["count", "step"])?;
    let within = |field: &str, max: u64, default: u64| match parameters.number(field)? {
        None => Ok(default),
        Some(number) if (1..=max).contains(&number) => Ok(number),
        Some(_) => Err(Failure::parameter(field, format!("not from 1 to {max}"))),
    };
    let (count, step) = (within("count", MAX_SEQUENCE_COUNT, 1)?, within("step", MAX_SEQUENCE_STEP, 0)?);
    let text = collect(&mut body, 0, shared.body_timeout).await.map_err(Failure::body)?;
    let idempotency = idempotency(&head, &read, &text)?;
    let request = Asked::Sequence { name: Bytes::copy_from_slice(name.as_bytes()), count, step };
    Ok((name, Command::Request(RequestCommand { time_ms: 0, idempotency, request })))
}

async fn look(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    let started = Instant::now();
    respond(looked(&shared, &head, started).await)
}

async fn looked(shared: &Shared, head: &Parts, started: Instant) -> Result<Reply, Failure> {
    RequestHeaders::parse(&head.headers)?.no_conditions()?;
    let name = name_of(head)?;
    let consistency = Parameters::parse(head.uri.query(), &["consistency", "max_lag"])?.consistency()?;
    shared.admit_read()?;
    let read_point = shared.settle(consistency, started).await?;
    let found = shared.node.store().sequence(name.as_bytes());
    let found = found.map_err(|error| Failure::read(&error, read_point.is_stale()))?;
    let Some((record, meta)) = found else {
        return Err(Failure::new(ProblemCode::UnknownSequence, format!("there is no sequence {name:?}")));
    };
    let jump = |jump: crate::store::SequenceJump| SequenceJump {
        from: jump.from,
        to: jump.to,
        timeline: jump.timeline,
        timeline_id: jump.timeline_id,
        revision: jump.revision,
    };
    let unique = record.is_unique();
    let body = SequenceState {
        name,
        last: record.last,
        step: record.step,
        unique,
        note: note(unique, record.step),
        create_revision: meta.create_revision,
        mod_revision: meta.mod_revision,
        jump_count: record.jump_count,
        jumps: record.jumps.into_iter().map(jump).collect(),
    };
    let mut reply = json_reply(StatusCode::OK, &body);
    read_point.add_headers(reply.headers_mut());
    Ok(reply)
}

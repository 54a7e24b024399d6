//! `/v1/kv/{key}`: one key.
//!
//! The path on which most requests go, so it is called without a router and its futures are not boxed. A read asks the
//! node for a barrier and then the store, on the thread that serves the connection: a single value comes from memory,
//! or at worst from one read of a segment.

use std::time::Instant;

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPECT, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};

use super::body::{EdgeBody, Source, collect, discard};
use super::extract::{Form, Known, Parameters, accepted_form, key_from_path};
use super::problem::{Asked, Failure};
use super::{ReadPoint, Reply, Shared, headers, json_reply, options};
use crate::api::{DeleteReply, KeyItem, ProblemCode, WriteReply};
use crate::model::{KeySpace, OpResult, Outcome, Revision, WriteCommand, WriteOp};
use crate::store::KeyValue;

/// What stands before the key.
pub const PREFIX: &str = "/v1/kv/";
const ALLOW: &str = "GET, HEAD, PUT, DELETE, OPTIONS";
const GET_PARAMETERS: &[&str] = &["rev", "consistency", "max_lag"];

/// Answers a request whose path begins with [`PREFIX`].
pub async fn handle<B: Source>(shared: &Shared, request: Request<B>, started: Instant) -> Reply {
    let (head, mut body) = request.into_parts();
    let result = match head.method {
        Method::GET | Method::HEAD => get(shared, &head, started).await,
        Method::PUT => put(shared, &head, &mut body, started).await,
        Method::DELETE => delete(shared, &head, started).await,
        Method::OPTIONS => Ok(options(ALLOW)),
        _ => Err(Failure::method_not_allowed(ALLOW)),
    };
    match result {
        Ok(reply) => reply,
        Err(failure) => {
            // Whoever waits for leave to send has sent nothing yet, and asking for it would be that leave.
            if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
                discard(&mut body).await;
            }
            failure.into_reply()
        }
    }
}

fn raw_key(head: &Parts) -> &str {
    head.uri.path().strip_prefix(PREFIX).unwrap_or_default()
}

/// What a read asks for.
struct KeyRead {
    key: Bytes,
    at: Option<Revision>,
    known: Known,
    form: Form,
}

async fn get(shared: &Shared, head: &Parts, started: Instant) -> Result<Reply, Failure> {
    // Everything is read before the barrier: a question that is wrong is wrong whoever leads.
    let request = shared.admit(&head.headers)?;
    let parameters = Parameters::parse(head.uri.query(), GET_PARAMETERS)?;
    let asked = KeyRead {
        key: key_from_path(raw_key(head), shared.node.limits().max_key_bytes)?,
        at: parameters.number("rev")?,
        known: request.known_revisions()?,
        form: accepted_form(request.accept, "application/octet-stream", &[Form::Json]),
    };
    let read_point = shared.settle(parameters.consistency()?, started).await?;
    let mut reply = read(shared, &asked, read_point).unwrap_or_else(Failure::into_reply);
    read_point.add_headers(reply.headers_mut());
    Ok(reply)
}

fn read(shared: &Shared, asked: &KeyRead, read_point: ReadPoint) -> Result<Reply, Failure> {
    let found = shared.node.store().get(KeySpace::User, &asked.key, asked.at);
    let found = found.map_err(|error| Failure::read(&error, read_point.is_stale()))?;
    let Some(found) = found else {
        return Err(Failure::new(ProblemCode::NotFound, "the key does not exist"));
    };
    let etag = headers::etag_of(found.meta.mod_revision);
    if asked.known.contains(found.meta.mod_revision) {
        let mut reply = Response::new(EdgeBody::empty());
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply.headers_mut().insert(ETAG, etag);
        reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
        return Ok(reply);
    }
    Ok(value_reply(found, asked.form, etag))
}

fn value_reply(found: KeyValue, form: Form, etag: HeaderValue) -> Reply {
    let meta = found.meta;
    let mut reply = if form == Form::Json {
        json_reply(StatusCode::OK, &KeyItem { key: found.key, value: Some(found.value), meta })
    } else {
        let mut reply = Response::new(EdgeBody::full(found.value));
        reply.headers_mut().reserve(10);
        reply.headers_mut().insert(CONTENT_TYPE, headers::OCTETS);
        reply
    };
    let map = reply.headers_mut();
    map.insert(ETAG, etag);
    map.insert(headers::CREATE_REVISION, HeaderValue::from(meta.create_revision));
    map.insert(headers::VERSION, HeaderValue::from(meta.version));
    map.insert(CACHE_CONTROL, headers::NO_CACHE);
    reply
}

async fn put<B: Source>(shared: &Shared, head: &Parts, body: &mut B, started: Instant) -> Result<Reply, Failure> {
    let command = put_command(shared, head, body).await.map_err(Failure::before_proposal)?;
    let outcome = shared.node.write(&shared.context(started), command).await;
    match outcome.map_err(|error| Failure::node(&error, Asked::Write))? {
        Outcome::Written { revision, results } => match results.as_slice() {
            [OpResult::Put { meta, previous }] => {
                let status = if previous.is_some() { StatusCode::OK } else { StatusCode::CREATED };
                let mut reply = json_reply(
                    status,
                    &WriteReply {
                        revision,
                        create_revision: meta.create_revision,
                        version: meta.version,
                        previous_revision: *previous,
                    },
                );
                reply.headers_mut().insert(ETAG, headers::etag_of(meta.mod_revision));
                Ok(reply)
            }
            other => Err(Failure::unexpected_outcome(format!("a put has the results {other:?}"))),
        },
        Outcome::Refused { current, .. } => Err(Failure::condition_failed(current)),
        outcome @ (Outcome::None | Outcome::TooLarge { .. }) => {
            Err(Failure::unexpected_outcome(format!("a put has the outcome {outcome:?}")))
        }
    }
}

async fn put_command<B: Source>(shared: &Shared, head: &Parts, body: &mut B) -> Result<WriteCommand, Failure> {
    let request = shared.admit(&head.headers)?;
    let limits = shared.node.limits();
    let key = key_from_path(raw_key(head), limits.max_key_bytes)?;
    Parameters::none(head.uri.query())?;
    let guards = request.put_guards(&key)?;
    let value = collect(body, limits.max_value_bytes, shared.body_timeout).await.map_err(Failure::body)?;
    let ops = vec![WriteOp::Put { space: KeySpace::User, key, value, lease: 0 }];
    Ok(WriteCommand { time_ms: 0, guards, ops })
}

async fn delete(shared: &Shared, head: &Parts, started: Instant) -> Result<Reply, Failure> {
    let command = delete_command(shared, head).map_err(Failure::before_proposal)?;
    let outcome = shared.node.write(&shared.context(started), command).await;
    match outcome.map_err(|error| Failure::node(&error, Asked::Write))? {
        Outcome::Written { revision, results } => match results.as_slice() {
            [OpResult::Deleted { count, previous }] => {
                let body = DeleteReply { revision, deleted: *count, previous_revision: *previous };
                Ok(json_reply(StatusCode::OK, &body))
            }
            other => Err(Failure::unexpected_outcome(format!("a deletion has the results {other:?}"))),
        },
        Outcome::Refused { current, .. } => Err(Failure::condition_failed(current)),
        outcome @ (Outcome::None | Outcome::TooLarge { .. }) => {
            Err(Failure::unexpected_outcome(format!("a deletion has the outcome {outcome:?}")))
        }
    }
}

fn delete_command(shared: &Shared, head: &Parts) -> Result<WriteCommand, Failure> {
    let request = shared.admit(&head.headers)?;
    let key = key_from_path(raw_key(head), shared.node.limits().max_key_bytes)?;
    Parameters::none(head.uri.query())?;
    let guards = request.delete_guards(&key)?;
    Ok(WriteCommand { time_ms: 0, guards, ops: vec![WriteOp::Delete { space: KeySpace::User, key }] })
}

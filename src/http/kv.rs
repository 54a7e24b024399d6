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
use super::extract::{Durability, Form, Known, Parameters, accepted_form, key_from_path};
use super::long_poll::{read_when_changed, wait_of};
use super::outcome::{idempotency, lease_of, mark_replayed, mirrored, write_command, written};
use super::problem::Failure;
use super::{ReadPoint, Reply, Shared, headers, json_reply, options};
use crate::api::{DeleteReply, KeyItem, ProblemCode, WriteReply};
use crate::model::{Command, KeySpace, OpResult, Outcome, Request as Asked, RequestCommand, Revision, WriteOp};
use crate::store::KeyValue;

/// What stands before the key.
pub const PREFIX: &str = "/v1/kv/";
const ALLOW: &str = "GET, HEAD, PUT, DELETE, OPTIONS";
const PUT_PARAMETERS: &[&str] = &["lease", "ttl", "durability"];
const DELETE_PARAMETERS: &[&str] = &["durability"];
const GET_PARAMETERS: &[&str] = &["rev", "consistency", "max_lag", "since", "wait"];

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
pub struct KeyRead {
    /// Which key.
    pub key: Bytes,
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
    let consistency = parameters.consistency()?;
    if let Some(wait) = wait_of(&parameters)? {
        request.no_conditions()?;
        // Boxed, because few reads wait and all keep the room for it.
        return Box::pin(read_when_changed(shared, &asked, wait, consistency, started)).await;
    }
    shared.admit_read()?;
    let read_point = shared.settle(consistency, started).await?;
    let mut reply = read(shared, &asked, read_point).unwrap_or_else(Failure::into_reply);
    read_point.add_headers(reply.headers_mut());
    Ok(reply)
}

/// The reply to a read, from the store as it is.
pub fn read(shared: &Shared, asked: &KeyRead, read_point: ReadPoint) -> Result<Reply, Failure> {
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
    let (command, durability) = put_command(shared, head, body).await.map_err(Failure::before_proposal)?;
    let with_ttl =
        matches!(&command, Command::Request(RequestCommand { request: Asked::Write { grant: Some(_), .. }, .. }));
    let (outcome, replayed) = written(shared.node.write(&shared.context(started), command).await)?;
    match outcome {
        Outcome::Written { revision, results } => match results.as_slice() {
            [OpResult::Put { meta, previous }] => {
                let mirrored = mirrored(shared, durability, started).await;
                let status = if previous.is_some() { StatusCode::OK } else { StatusCode::CREATED };
                let mut reply = json_reply(
                    status,
                    &WriteReply {
                        revision,
                        create_revision: meta.create_revision,
                        version: meta.version,
                        previous_revision: *previous,
                        lease: with_ttl.then_some(meta.lease),
                        mirrored,
                    },
                );
                reply.headers_mut().insert(ETAG, headers::etag_of(meta.mod_revision));
                mark_replayed(&mut reply, replayed);
                Ok(reply)
            }
            other => Err(Failure::unexpected_outcome(format!("a put has the results {other:?}"))),
        },
        outcome => Err(Failure::unexpected_outcome(format!("a put has the outcome {outcome:?}"))),
    }
}

async fn put_command<B: Source>(shared: &Shared, head: &Parts, body: &mut B) -> Result<(Command, Durability), Failure> {
    let request = shared.admit(&head.headers)?;
    let limits = shared.node.limits();
    let key = key_from_path(raw_key(head), limits.max_key_bytes)?;
    let parameters = Parameters::parse(head.uri.query(), PUT_PARAMETERS)?;
    let (lease, grant) = lease_of(&parameters)?;
    let durability = parameters.durability()?;
    let guards = request.put_guards(&key)?;
    let value = collect(body, limits.max_value_bytes, shared.body_timeout).await.map_err(Failure::body)?;
    let idempotency = idempotency(head, &request, &value)?;
    let ops = vec![WriteOp::Put { space: KeySpace::User, key, value, lease }];
    Ok((write_command(idempotency, grant, guards, ops), durability))
}

async fn delete(shared: &Shared, head: &Parts, started: Instant) -> Result<Reply, Failure> {
    let (command, durability) = delete_command(shared, head).map_err(Failure::before_proposal)?;
    let (outcome, replayed) = written(shared.node.write(&shared.context(started), command).await)?;
    match outcome {
        Outcome::Written { revision, results } => match results.as_slice() {
            [OpResult::Deleted { count, previous }] => {
                let mirrored = mirrored(shared, durability, started).await;
                let body = DeleteReply { revision, deleted: *count, previous_revision: *previous, mirrored };
                let mut reply = json_reply(StatusCode::OK, &body);
                mark_replayed(&mut reply, replayed);
                Ok(reply)
            }
            other => Err(Failure::unexpected_outcome(format!("a deletion has the results {other:?}"))),
        },
        outcome => Err(Failure::unexpected_outcome(format!("a deletion has the outcome {outcome:?}"))),
    }
}

fn delete_command(shared: &Shared, head: &Parts) -> Result<(Command, Durability), Failure> {
    let request = shared.admit(&head.headers)?;
    let key = key_from_path(raw_key(head), shared.node.limits().max_key_bytes)?;
    let durability = Parameters::parse(head.uri.query(), DELETE_PARAMETERS)?.durability()?;
    let guards = request.delete_guards(&key)?;
    let idempotency = idempotency(head, &request, b"")?;
    let command = write_command(idempotency, None, guards, vec![WriteOp::Delete { space: KeySpace::User, key }]);
    Ok((command, durability))
}

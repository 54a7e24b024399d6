//! `/v1/leases`: grant, keep alive, look at, end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body as AxumBody;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use super::body::collect;
use super::cluster::{MAX_JSON_BYTES, parse_json};
use super::extract::{Consistency, Parameters, RequestHeaders};
use super::outcome::{MAX_LEASE_ID, TTL, idempotency, mark_replayed, new_lease_id, written};
use super::problem::{Asked, Failure};
use super::{Reply, Routes, Shared, headers, json_reply, resource, respond};
use crate::api::{GrantReply, GrantRequest, Lease, LeaseReply, LeasedKey, LeasesReply, ProblemCode, RevokeReply};
use crate::model::{Command, LeaseGrant, OpResult, Outcome, Request as Proposed, RequestCommand};

/// Keys or leases in one reply.
const MAX_ITEMS: usize = 1000;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v1/leases", resource("GET, HEAD, POST, OPTIONS", get(list).post(grant)))
        .route("/v1/leases/{id}", resource("GET, HEAD, DELETE, OPTIONS", get(look).delete(revoke)))
        .route("/v1/leases/{id}/keepalive", resource("POST, OPTIONS", post(keep_alive)))
}

fn lease_id(text: &str) -> Result<u64, Failure> {
    let id = text.parse().ok().filter(|id| (1..=MAX_LEASE_ID).contains(id) && !text.starts_with('+'));
    id.ok_or_else(|| Failure::parameter("id", format!("{text:?} is not a number from 1 to {MAX_LEASE_ID}")))
}

async fn grant(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    respond(granted(&shared, request, started).await)
}

async fn granted(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<Reply, Failure> {
    let (command, ttl_seconds) = grant_command(shared, request).await.map_err(Failure::before_proposal)?;
    let (outcome, replayed) = written(shared.node.write(&shared.context(started), command).await)?;
    match &outcome {
        Outcome::Written { revision, results } => {
            let [OpResult::Put { meta, .. }] = results.as_slice() else {
                return Err(Failure::unexpected_outcome(format!("a grant has the results {results:?}")));
            };
            // The id is that of the outcome, as the first of several equal requests may have drawn another one.
            let body = GrantReply { id: meta.lease, ttl_seconds, revision: *revision };
            let mut reply = json_reply(StatusCode::CREATED, &body);
            mark_replayed(&mut reply, replayed);
            Ok(reply)
        }
        other => Err(Failure::unexpected_outcome(format!("a grant has the outcome {other:?}"))),
    }
}

async fn grant_command(shared: &Shared, request: Request<AxumBody>) -> Result<(Command, u64), Failure> {
    let (head, mut body) = request.into_parts();
    let read = RequestHeaders::parse(&head.headers)?;
    read.no_conditions()?;
    Parameters::none(head.uri.query())?;
    let text = collect(&mut body, MAX_JSON_BYTES, shared.body_timeout).await.map_err(Failure::body)?;
    let asked: GrantRequest = parse_json(&text)?;
    let bad = |field: &str, detail: String| Failure::new(ProblemCode::BadBody, detail).field(field);
    let ttl = Duration::from_secs(asked.ttl_seconds);
    if !TTL.contains(&ttl) {
        return Err(bad("ttl_seconds", format!("not from {} to {}", TTL.start().as_secs(), TTL.end().as_secs())));
    }
    let id = asked.id.unwrap_or_else(new_lease_id);
    if !(1..=MAX_LEASE_ID).contains(&id) {
        return Err(bad("id", format!("not from 1 to {MAX_LEASE_ID}")));
    }
    let grant = LeaseGrant { id, ttl_ms: asked.ttl_seconds * 1000 };
    let idempotency = idempotency(&head, &read, &text)?;
    let request = Proposed::Grant(grant);
    Ok((Command::Request(RequestCommand { time_ms: 0, idempotency, request }), asked.ttl_seconds))
}

async fn keep_alive(State(shared): State<Arc<Shared>>, Path(id): Path<String>, head: Parts) -> Response {
    let started = Instant::now();
    let kept = async {
        Parameters::none(head.uri.query())?;
        let id = lease_id(&id)?;
        let time = shared.node.lease_time(&shared.context(started), id, true).await;
        let time = time.map_err(|error| Failure::node(&error, Asked::Read))?;
        Ok(json_reply(StatusCode::OK, &Lease { id, ttl_seconds: time.ttl_ms / 1000 }))
    };
    respond(kept.await)
}

async fn look(State(shared): State<Arc<Shared>>, Path(id): Path<String>, head: Parts) -> Response {
    let started = Instant::now();
    let looked = async {
        Parameters::none(head.uri.query())?;
        let id = lease_id(&id)?;
        shared.settle(Consistency::Linearizable, started).await?;
        let time = shared.node.lease_time(&shared.context(started), id, false).await;
        let time = time.map_err(|error| Failure::node(&error, Asked::Read))?;
        let keys = shared.node.store().lease_keys(id, MAX_ITEMS);
        let (keys, more) = keys.map_err(|error| Failure::read(&error, false))?;
        let reply = LeaseReply {
            id,
            ttl_seconds: time.ttl_ms / 1000,
            remaining_seconds: time.remaining_ms as f64 / 1000.0,
            keys: keys.into_iter().map(LeasedKey).collect(),
            more,
        };
        Ok(json_reply(StatusCode::OK, &reply))
    };
    respond(looked.await)
}

async fn list(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    let started = Instant::now();
    let listed = async {
        let parameters = Parameters::parse(head.uri.query(), &["after", "limit"])?;
        let after = parameters.number("after")?.unwrap_or(0);
        let limit = parameters.number("limit")?.unwrap_or(MAX_ITEMS as u64);
        if !(1..=MAX_ITEMS as u64).contains(&limit) {
            return Err(Failure::parameter("limit", format!("not from 1 to {MAX_ITEMS}")));
        }
        shared.settle(Consistency::Linearizable, started).await?;
        let found = shared.node.store().leases(after, limit as usize);
        let (found, more) = found.map_err(|error| Failure::read(&error, false))?;
        let lease = |lease: crate::store::LeaseRecord| Lease { id: lease.id, ttl_seconds: lease.ttl_ms / 1000 };
        let leases = found.into_iter().map(lease).collect();
        Ok(json_reply(StatusCode::OK, &LeasesReply { leases, more }))
    };
    respond(listed.await)
}

async fn revoke(State(shared): State<Arc<Shared>>, Path(id): Path<String>, head: Parts) -> Response {
    let started = Instant::now();
    let revoked = async {
        let asked = || {
            let read = RequestHeaders::parse(&head.headers)?;
            read.no_conditions()?;
            if read.idempotency_key.is_some() {
                let detail = "not supported here: ending a lease twice does no harm";
                return Err(Failure::header(headers::IDEMPOTENCY_KEY.as_str(), detail));
            }
            Parameters::none(head.uri.query())?;
            lease_id(&id)
        };
        let id = asked().map_err(Failure::before_proposal)?;
        let revoked = shared.node.revoke_lease(&shared.context(started), id).await;
        let (revision, deleted) = revoked.map_err(|error| Failure::node(&error, Asked::Write))?;
        Ok(json_reply(StatusCode::OK, &RevokeReply { revision, deleted }))
    };
    respond(revoked.await)
}

//! `/v1/events`: what happened lately.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::CACHE_CONTROL;
use hyper::http::request::Parts;

use super::body::EdgeBody;
use super::extract::Parameters;
use super::problem::Failure;
use super::{Reply, Routes, Shared, headers, json_reply, resource};

/// The longest wait for an event.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Events in one reply.
const MAX_EVENTS: u64 = 1000;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/events", resource("GET, HEAD, OPTIONS", get(events)))
}

async fn events(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    match read(&shared, &head).await {
        Ok(reply) => reply.map(EdgeBody::into_axum),
        Err(failure) => failure.into_response(),
    }
}

async fn read(shared: &Shared, head: &Parts) -> Result<Reply, Failure> {
    let parameters = Parameters::parse(head.uri.query(), &["since", "wait", "limit"])?;
    let since = parameters.number("since")?.unwrap_or(0);
    let limit = parameters.number("limit")?.unwrap_or(MAX_EVENTS);
    if !(1..=MAX_EVENTS).contains(&limit) {
        return Err(Failure::parameter("limit", format!("not from 1 to {MAX_EVENTS}")));
    }
    let wait = parameters.duration("wait")?.unwrap_or_default();
    if wait > MAX_WAIT {
        return Err(Failure::parameter("wait", format!("longer than {} s", MAX_WAIT.as_secs())));
    }
    let reply = shared.node.events(since, limit as usize, Instant::now() + wait).await;
    let mut reply = json_reply(StatusCode::OK, &reply);
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    Ok(reply)
}

//! `/v1/maintenance`: the planned pause.
//!
//! Only the request is read here; `node/maintenance.rs` says what a pause does.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::Response;
use axum::routing::put;
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};

use super::cluster::read_json;
use super::extract::{Parameters, RequestHeaders, parse_duration};
use super::problem::{Asked, Failure};
use super::{Reply, Routes, Shared, json_reply, resource, respond};
use crate::api::time::{parse_utc, utc_text};
use crate::api::{EndedReply, MaintenanceReply, MaintenanceRequest, ProblemCode};
use crate::node::Maintenance;

const ALLOW: &str = "GET, HEAD, PUT, DELETE, OPTIONS";
/// The longest message in bytes.
const MAX_MESSAGE_BYTES: usize = 1000;
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/maintenance", resource(ALLOW, put(begin).get(look).delete(end)))
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

async fn begin(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    respond(begun(&shared, request, started).await)
}

async fn begun(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<Reply, Failure> {
    let asked = async {
        RequestHeaders::parse(request.headers())?.no_conditions()?;
        Parameters::none(request.uri().query())?;
        pause_of(read_json(shared, request).await?, now_ms())
    };
    let mut pause = asked.await.map_err(Failure::before_proposal)?;
    let begun = shared.node.begin_maintenance(&shared.context(started), &pause).await;
    pause.written = begun.map_err(|error| Failure::node(&error, Asked::Write))?;
    Ok(json_reply(StatusCode::OK, &reply_of(Some(&pause))))
}

/// What is asked for, within its bounds.
fn pause_of(asked: MaintenanceRequest, now_ms: u64) -> Result<Maintenance, Failure> {
    let bad = |field: &str, detail: String| Failure::new(ProblemCode::BadBody, detail).field(field);
    let MaintenanceRequest { message, until, reads } = asked;
    if message.is_empty() || message.len() > MAX_MESSAGE_BYTES {
        return Err(bad("message", format!("not 1 to {MAX_MESSAGE_BYTES} bytes")));
    }
    let span = || parse_duration(&until).map(|span| now_ms.saturating_add(span.as_millis() as u64));
    let Some(until_ms) = parse_utc(&until).or_else(span) else {
        let detail = "neither a time, as in 2026-11-24T04:30:00Z, nor a span, as in 30m";
        return Err(bad("until", detail.to_owned()));
    };
    if until_ms <= now_ms {
        return Err(bad("until", format!("{} is not in the future", utc_text(until_ms))));
    }
    if until_ms - now_ms > MAX_PAUSE.as_millis() as u64 {
        return Err(bad("until", "more than 30 days from now".to_owned()));
    }
    Ok(Maintenance { message, until_ms, reads, written: 0 })
}

fn reply_of(pause: Option<&Maintenance>) -> MaintenanceReply {
    let remaining = pause.and_then(Maintenance::remaining);
    MaintenanceReply {
        active: pause.is_some(),
        message: pause.map(|pause| pause.message.clone()),
        until: pause.map(|pause| utc_text(pause.until_ms)),
        until_ms: pause.map(|pause| pause.until_ms),
        remaining_seconds: remaining.map(|left| left.as_millis() as f64 / 1000.0),
        reads: pause.map(|pause| pause.reads),
        revision: pause.map(|pause| pause.written),
    }
}

async fn look(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    let looked = || {
        Parameters::none(head.uri.query())?;
        let pause = shared.node.maintenance().map_err(|error| Failure::node(&error, Asked::Read))?;
        Ok(json_reply(StatusCode::OK, &reply_of(pause.as_deref())))
    };
    respond(looked())
}

async fn end(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    let started = Instant::now();
    let ended = async {
        let asked = || {
            RequestHeaders::parse(&head.headers)?.no_conditions()?;
            Parameters::none(head.uri.query())
        };
        asked().map_err(Failure::before_proposal)?;
        let ended = shared.node.end_maintenance(&shared.context(started)).await;
        let (revision, ended) = ended.map_err(|error| Failure::node(&error, Asked::Write))?;
        Ok(json_reply(StatusCode::OK, &EndedReply { ended, revision }))
    };
    respond(ended.await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_is_a_time_or_a_span_within_bounds() {
        let now_ms = 1_764_000_000_000;
        let ask = |message: &str, until: &str| {
            pause_of(MaintenanceRequest { message: message.into(), until: until.into(), reads: false }, now_ms)
        };
        assert_eq!(ask("m", "30m").unwrap().until_ms, now_ms + 1_800_000);
        assert_eq!(ask("m", "2025-11-24T16:00:01Z").unwrap().until_ms, now_ms + 1000);
        for (message, until, field) in [
            ("", "30m", "message"),
            (&*"m".repeat(1001), "30m", "message"),
            ("m", "soon", "until"),
            ("m", "0s", "until"),
            ("m", "2025-11-24T16:00:00Z", "until"),
            ("m", "721h", "until"),
            ("m", "18446744073709551615ms", "until"),
        ] {
            let failure = ask(message, until).unwrap_err();
            assert_eq!(failure.problem().code(), Some(ProblemCode::BadBody));
            assert_eq!(failure.problem().field.as_deref(), Some(field), "{until}");
        }
    }
}

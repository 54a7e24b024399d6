//! `/v1/dr/switchover`: the planned move of the primary site.
//!
//! Any member takes these. Only the request is read here; `node/dr` does the rest. What begins goes on when the reply is
//! out: `GET` shows how far it is.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper::{Request, StatusCode};

use super::cluster::read_json;
use super::extract::Parameters;
use super::members::answer;
use super::problem::{Asked, Failure};
use super::{Routes, Shared, resource};
use crate::api::{ProblemCode, SwitchoverReply, SwitchoverRequest, SwitchoverState};
use crate::config::check_name;

const SWITCHOVER_ALLOW: &str = "GET, HEAD, POST, DELETE, OPTIONS";
/// The longest note of who asks, and why, in bytes.
const MAX_NOTE_BYTES: usize = 1000;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/dr/switchover", resource(SWITCHOVER_ALLOW, post(begin).get(look).delete(abort)))
}

async fn begin(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    match begun(&shared, request, Instant::now()).await {
        Ok(reply) => {
            let under_way = matches!(reply.state, SwitchoverState::Running | SwitchoverState::GoingBack);
            answer(if under_way { StatusCode::ACCEPTED } else { StatusCode::OK }, Ok(reply))
        }
        Err(failure) => failure.into_response(),
    }
}

async fn begun(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<SwitchoverReply, Failure> {
    Parameters::none(request.uri().query())?;
    let asked = checked(read_json(shared, request).await?)?;
    let begun = shared.node.begin_switchover(&shared.context(started), asked).await;
    begun.map_err(|error| Failure::node(&error, Asked::Change))
}

/// A request whose site could be one.
fn checked(asked: SwitchoverRequest) -> Result<SwitchoverRequest, Failure> {
    let bad = |field: &'static str, why: String| Failure::new(ProblemCode::BadBody, why).field(field);
    check_name(&asked.to_site).map_err(|why| bad("to_site", why))?;
    for (field, note) in [("by", &asked.by), ("reason", &asked.reason)] {
        if note.as_ref().is_some_and(|note| note.is_empty() || note.len() > MAX_NOTE_BYTES) {
            return Err(bad(field, format!("not 1 to {MAX_NOTE_BYTES} bytes")));
        }
    }
    Ok(asked)
}

async fn look(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let (started, asked) = (Instant::now(), Parameters::none(request.uri().query()));
    drop(request);
    if let Err(failure) = asked {
        return failure.into_response();
    }
    let found = shared.node.switchover(&shared.context(started)).await;
    answer(StatusCode::OK, found.map_err(|error| Failure::node(&error, Asked::Read)))
}

async fn abort(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let started = Instant::now();
    let by = who_aborts(request.uri().query());
    drop(request);
    let by = match by {
        Ok(by) => by,
        Err(failure) => return failure.into_response(),
    };
    let aborted = shared.node.abort_switchover(&shared.context(started), by).await;
    answer(StatusCode::ACCEPTED, aborted.map_err(|error| Failure::node(&error, Asked::Change)))
}

fn who_aborts(query: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(by) = Parameters::parse(query, &["by"])?.bytes("by", MAX_NOTE_BYTES)? else { return Ok(None) };
    match String::from_utf8(by.to_vec()) {
        Ok(by) if !by.is_empty() => Ok(Some(by)),
        Ok(_) => Err(Failure::parameter("by", "it is empty")),
        Err(_) => Err(Failure::parameter("by", "not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_what_is_wrong_with_it() {
        let asked = |to_site: &str, by: Option<String>, reason: Option<String>| {
            checked(SwitchoverRequest { to_site: to_site.into(), by, reason, dry_run: false })
        };
        assert!(asked("west", Some("ann".into()), None).is_ok());
        let long = || Some("x".repeat(MAX_NOTE_BYTES + 1));
        for (bad, field) in [
            (asked("", None, None), "to_site"),
            (asked("w/st", None, None), "to_site"),
            (asked("west", Some(String::new()), None), "by"),
            (asked("west", None, long()), "reason"),
        ] {
            assert_eq!(bad.unwrap_err().problem().field.as_deref(), Some(field));
        }
    }
}

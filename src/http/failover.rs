//! `/v1/dr/survey`, `/v1/dr/force`, `/v1/dr/rejoin`: a forced failover, what it would lose, and the way home of a fenced
//! member.
//!
//! All three are about the member that is asked and are never forwarded: which one it is, is part of what a person decides.
//! A fenced member answers the last one from the lobby ([`super::waiting`]).

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use hyper::{Request, StatusCode};

use super::cluster::read_json;
use super::extract::Parameters;
use super::members::answer;
use super::problem::{Asked, Failure};
use super::{Routes, Shared, resource};
use crate::api::{ForceReply, ForceRequest, ProblemCode, RejoinReply, SurveyReply};

const READ_ALLOW: &str = "GET, HEAD, OPTIONS";
const POST_ALLOW: &str = "POST, OPTIONS";
/// The longest `by` and `reason`, in bytes.
const MAX_WORDS_BYTES: usize = 1000;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v1/dr/survey", resource(READ_ALLOW, get(survey)))
        .route("/v1/dr/force", resource(POST_ALLOW, post(force)))
        .route("/v1/dr/rejoin", resource(POST_ALLOW, post(rejoin)))
}

async fn survey(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let asked = Parameters::none(request.uri().query());
    drop(request);
    answer(StatusCode::OK, surveyed(&shared, asked).await)
}

async fn surveyed(shared: &Shared, asked: Result<(), Failure>) -> Result<SurveyReply, Failure> {
    asked?;
    shared.node.survey().await.map_err(|error| Failure::node(&error, Asked::Read))
}

async fn force(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    answer(StatusCode::ACCEPTED, forced(&shared, request, Instant::now()).await)
}

async fn forced(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<ForceReply, Failure> {
    Parameters::none(request.uri().query())?;
    let asked: ForceRequest = read_json(shared, request).await?;
    for (field, words) in [("by", &asked.by), ("reason", &asked.reason)] {
        if words.as_ref().is_some_and(|words| words.len() > MAX_WORDS_BYTES) {
            return Err(Failure::new(ProblemCode::BadBody, format!("more than {MAX_WORDS_BYTES} bytes")).field(field));
        }
    }
    let done = shared.node.force(&shared.context(started), asked).await;
    done.map_err(|error| Failure::node(&error, Asked::Change))
}

async fn rejoin(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    answer(StatusCode::ACCEPTED, rejoined(&shared, request).await)
}

async fn rejoined(shared: &Shared, request: Request<AxumBody>) -> Result<RejoinReply, Failure> {
    Parameters::none(request.uri().query())?;
    let asked = read_json(shared, request).await?;
    shared.node.rejoin(&asked).map_err(|error| Failure::node(&error, Asked::Change))
}

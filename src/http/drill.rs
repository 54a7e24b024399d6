//! `/v1/dr/drill`: a forced failover rehearsed at the mirror that is asked, as a stream of progress with the report at its
//! end, or the report alone.
//!
//! Never forwarded: it is about the member that is asked. The drill belongs to the request: when the connection goes, it
//! ends, and is cleaned up.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::{Request, StatusCode};

use super::body::EdgeBody;
use super::cluster::read_json;
use super::extract::{Form, Parameters, RequestHeaders, accepted_form};
use super::problem::{Asked, Failure};
use super::server::Endless;
use super::{Routes, Shared, headers, json_reply, resource};
use crate::api::{DrillLine, DrillRequest, ProblemCode};
use crate::node::drill::DrillLines;

/// Nothing may be sent for so long although all is well.
const QUIET: Duration = Duration::from_secs(60);

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/dr/drill", resource("POST, OPTIONS", post(drill)))
}

async fn drill(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    answer(&shared, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(shared: &Shared, request: Request<AxumBody>) -> Result<Response, Failure> {
    Parameters::none(request.uri().query())?;
    let accept = RequestHeaders::parse(request.headers())?.accept;
    let form = accepted_form(accept, "application/x-ndjson", &[Form::Json]);
    let asked: DrillRequest = read_json(shared, request).await?;
    let lines = shared.node.drill(asked).await.map_err(|error| Failure::node(&error, Asked::Change))?;
    if form == Form::Json {
        return report(lines).await;
    }
    let lines = futures_util::stream::unfold(lines, |mut lines| async move {
        Some((Ok::<_, std::convert::Infallible>(lines.recv().await?), lines))
    });
    let mut reply = Response::new(AxumBody::from_stream(lines));
    reply.headers_mut().insert(CONTENT_TYPE, headers::NDJSON);
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    reply.extensions_mut().insert(Endless { quiet: QUIET });
    Ok(reply)
}

/// Waits for the report. Each message is one line.
async fn report(mut lines: DrillLines) -> Result<Response, Failure> {
    while let Some(line) = lines.recv().await {
        if let Ok(DrillLine::Report(report)) = serde_json::from_slice(&line) {
            let mut reply = json_reply(StatusCode::OK, &report);
            reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
            return Ok(reply.map(EdgeBody::into_axum));
        }
    }
    Err(Failure::new(ProblemCode::Stopping, "the member stopped before the drill had ended"))
}

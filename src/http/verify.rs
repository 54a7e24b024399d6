//! `/v1/verify`: whether all members hold the same, as a stream of progress with the report at its end, or the report alone.
//!
//! The verification belongs to the request: when the connection goes, it ends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::http::request::Parts;

use super::body::EdgeBody;
use super::extract::{Form, Parameters, RequestHeaders, accepted_form};
use super::problem::{Asked, Failure};
use super::server::Endless;
use super::{Routes, Shared, headers, json_reply, resource};
use crate::api::{ProblemCode, VerifyLine};
use crate::model::Revision;
use crate::node::{VerifyLines, VerifyRefused};

/// Nothing may be sent for so long although all is well.
const QUIET: Duration = Duration::from_secs(60);
/// A line of more bytes is none.
const MAX_LINE_BYTES: usize = 16 << 20;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/verify", resource("GET, HEAD, OPTIONS", get(verify).head(head_only)))
}

/// What a verification would be answered with; none is begun for it.
async fn head_only(head: Parts) -> Response {
    asked(&head).map(|(_, form)| reply(form, AxumBody::empty())).unwrap_or_else(IntoResponse::into_response)
}

async fn verify(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    answer(&shared, &head).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(shared: &Shared, head: &Parts) -> Result<Response, Failure> {
    let (rev, form) = asked(head)?;
    let lines = shared.node.verify(rev).await.map_err(|refused| failure(&refused))?;
    if form == Form::Json {
        return report(lines).await;
    }
    let lines = futures_util::stream::unfold(lines, |mut lines| async move {
        Some((Ok::<_, std::convert::Infallible>(lines.recv().await?), lines))
    });
    let mut reply = reply(form, AxumBody::from_stream(lines));
    reply.extensions_mut().insert(Endless { quiet: QUIET });
    Ok(reply)
}

/// The revision and the form that are asked for.
fn asked(head: &Parts) -> Result<(Option<Revision>, Form), Failure> {
    let accept = RequestHeaders::parse(&head.headers)?.accept;
    let rev = Parameters::parse(head.uri.query(), &["rev"])?.number("rev")?;
    Ok((rev, accepted_form(accept, "application/x-ndjson", &[Form::Json])))
}

fn reply(form: Form, body: AxumBody) -> Response {
    let mut reply = Response::new(body);
    let content_type = if form == Form::Json { headers::JSON } else { headers::NDJSON };
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    reply
}

/// Waits for the report.
async fn report(mut lines: VerifyLines) -> Result<Response, Failure> {
    let mut rest = Vec::new();
    while let Some(bytes) = lines.recv().await {
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Ok(VerifyLine::Report(report)) = serde_json::from_slice(&line) {
                let mut reply = json_reply(StatusCode::OK, &report);
                reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
                return Ok(reply.map(EdgeBody::into_axum));
            }
        }
        if rest.len() > MAX_LINE_BYTES {
            break;
        }
    }
    Err(Failure::new(ProblemCode::LeaderUnreachable, "the leader went away before the verification had ended"))
}

fn failure(refused: &VerifyRefused) -> Failure {
    match (refused, refused.as_read()) {
        (_, Some(error)) => Failure::read(&error, false),
        (VerifyRefused::Node(error), None) => Failure::node(error, Asked::Read),
        (refused, None) => Failure::new(ProblemCode::Refused, refused.to_string()),
    }
}

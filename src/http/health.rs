//! `/health/…` for load balancers and orchestrators, and `/metrics`.
//!
//! Health is the node's judgement; this file only asks and words it. These replies are never kept by anyone between.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};

use super::body::EdgeBody;
use super::extract::Parameters;
use super::problem::Failure;
use super::{Routes, Shared, headers, json_reply, resource};
use crate::api::{Health, ProblemCode};
use crate::metrics;
use crate::node::HealthCheck;

const ALLOW: &str = "GET, HEAD, OPTIONS";
/// How far a mirror may lag to be healthy, when the question does not say.
const DEFAULT_MAX_LAG: Duration = Duration::from_secs(10);

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/health/{check}", resource(ALLOW, get(health))).route("/metrics", resource(ALLOW, get(scrape)))
}

async fn health(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    let check = match check_of(request.uri().path(), request.uri().query()) {
        Ok(check) => check,
        Err(failure) => return failure.into_response(),
    };
    let (status, body) = match shared.node.health(check) {
        Ok(()) => (StatusCode::OK, Health { healthy: true, reason: None }),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Health { healthy: false, reason: Some(reason) }),
    };
    let mut reply = json_reply(status, &body);
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    reply.map(EdgeBody::into_axum)
}

fn check_of(path: &str, query: Option<&str>) -> Result<HealthCheck, Failure> {
    let check = match path {
        "/health/live" => HealthCheck::Live,
        "/health/ready" => HealthCheck::Ready,
        "/health/leader" => HealthCheck::Leader,
        "/health/primary" => HealthCheck::Primary,
        "/health/mirror" => {
            let max_lag = Parameters::parse(query, &["max_lag"])?.duration("max_lag")?;
            return Ok(HealthCheck::Mirror { max_lag: max_lag.unwrap_or(DEFAULT_MAX_LAG) });
        }
        _ => return Err(Failure::new(ProblemCode::UnknownPath, format!("there is nothing at {path}"))),
    };
    Parameters::none(query).map(|()| check)
}

async fn scrape(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    if let Err(failure) = Parameters::none(request.uri().query()) {
        return failure.into_response();
    }
    let mut reply = Response::new(AxumBody::from(shared.node.metrics().encode()));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    reply
}

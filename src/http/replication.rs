//! `/v1/replication` and `/v1/dr`: how the members follow, and how the cluster stands against the loss of its site; and
//! `/v1/members/{name}/suspend` and `/resume`, which steer a mirror.
//!
//! Any member takes these; what is asked is the leader's view, or, when no leader can be asked, what this member knows of
//! itself.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use hyper::{Request, StatusCode};
use serde::Serialize;

use super::extract::Parameters;
use super::members::{answer, check_member_name};
use super::problem::{Asked, Failure};
use super::{Routes, Shared, resource};
use crate::api::SuspendReply;
use crate::node::{NodeError, RequestContext};

const READ_ALLOW: &str = "GET, HEAD, OPTIONS";
const STEER_ALLOW: &str = "POST, OPTIONS";

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v1/replication", resource(READ_ALLOW, get(replication)))
        .route("/v1/dr", resource(READ_ALLOW, get(dr)))
        .route("/v1/members/{name}/suspend", resource(STEER_ALLOW, post(suspend)))
        .route("/v1/members/{name}/resume", resource(STEER_ALLOW, post(resume)))
}

async fn replication(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    show(shared, request, |shared, ctx| async move { shared.node.replication(&ctx).await }).await
}

async fn dr(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    show(shared, request, |shared, ctx| async move { shared.node.dr(&ctx).await }).await
}

/// Answers a request without parameters with what `ask` gives.
async fn show<T: Serialize, F: Future<Output = Result<T, NodeError>>>(
    shared: Arc<Shared>,
    request: Request<AxumBody>,
    ask: impl FnOnce(Arc<Shared>, RequestContext) -> F,
) -> Response {
    let ctx = shared.context(Instant::now());
    let asked = Parameters::none(request.uri().query()).map(|()| ask(shared, ctx));
    drop(request);
    let shown = match asked {
        Ok(asked) => asked.await.map_err(|error| Failure::node(&error, Asked::Read)),
        Err(failure) => Err(failure),
    };
    answer(StatusCode::OK, shown)
}

async fn suspend(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    steer(&shared, request, "/suspend", true).await
}

async fn resume(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    steer(&shared, request, "/resume", false).await
}

async fn steer(shared: &Shared, request: Request<AxumBody>, verb: &str, suspended: bool) -> Response {
    let started = Instant::now();
    let named = Parameters::none(request.uri().query()).and_then(|()| {
        let path = request.uri().path();
        check_member_name(path.strip_suffix(verb).unwrap_or(path))
    });
    drop(request);
    answer(
        StatusCode::OK,
        match named {
            Ok(name) => do_steer(shared, &name, suspended, started).await,
            Err(failure) => Err(failure),
        },
    )
}

async fn do_steer(shared: &Shared, name: &str, suspended: bool, started: Instant) -> Result<SuspendReply, Failure> {
    let done = shared.node.suspend_member(&shared.context(started), name, suspended).await;
    done.map_err(|error| Failure::node(&error, Asked::Change))
}

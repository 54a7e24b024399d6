//! What clients are told while a member waits to be taken into a cluster: it lives, and it can do nothing for them.
//!
//! Without it a connection would be accepted by the operating system and answered by nobody, and an orchestrator would
//! take the member for dead. Every reply closes its connection, so that the next request meets the real edge.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;

use super::problem::{Asked, Failure};
use super::server::{self, ServerOptions, StopSignal};
use super::{Reply, json_reply};
use crate::api::Health;
use crate::metrics::ConnectionCounts;
use crate::node::NodeError;

/// Answers on `listener` until `stop`.
pub async fn serve_waiting(listener: TcpListener, counts: Arc<ConnectionCounts>, stop: StopSignal) {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
    server::serve(listener, service, ServerOptions::default(), counts, stop).await;
}

fn answer(request: &Request<Incoming>) -> Reply {
    let waits = || NodeError::NotJoined.to_string();
    let mut reply = match request.uri().path() {
        "/health/live" => json_reply(StatusCode::OK, &Health { healthy: true, reason: None }),
        path if path.starts_with("/health/") => {
            json_reply(StatusCode::SERVICE_UNAVAILABLE, &Health { healthy: false, reason: Some(waits()) })
        }
        _ => {
            let reads = [Method::GET, Method::HEAD].contains(request.method());
            Failure::node(&NodeError::NotJoined, if reads { Asked::Read } else { Asked::Write }).into_reply()
        }
    };
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

//! The edge for other members: one path for everything, and the upgrade for pipelined appends.
//!
//! What a request means is `node`'s business; here it is only turned from HTTP into a [`PeerRequest`] and back.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper_util::rt::TokioIo;

use crate::node::{Node, PeerReply, PeerRequest, peer_path};

/// The routes for other members.
pub fn router(node: Node) -> Router {
    Router::new().route(peer_path::APPEND_STREAM, axum::routing::get(append_stream)).fallback(message).with_state(node)
}

fn reply(reply: PeerReply) -> Response {
    let mut response = (reply.status, Body::from(reply.body)).into_response();
    response.headers_mut().extend(reply.headers);
    response
}

async fn message(State(node): State<Node>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.into_data_stream().map(|chunk| chunk.map_err(|e| e.to_string()));
    let request = PeerRequest { path: parts.uri.path().to_string(), headers: parts.headers, body: Box::pin(body) };
    reply(node.serve_peer(request).await)
}

async fn append_stream(State(node): State<Node>, mut request: Request) -> Response {
    let headers = match node.check_append_stream(request.headers()) {
        Ok(headers) => headers,
        Err(refusal) => return reply(*refusal),
    };
    if request.headers().get(UPGRADE).is_none_or(|protocol| protocol != peer_path::APPEND_PROTOCOL) {
        return (StatusCode::UPGRADE_REQUIRED, headers).into_response();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let served = match upgrade.await {
            Ok(io) => node.serve_append_stream(TokioIo::new(io)).await,
            Err(e) => Err(std::io::Error::other(e)),
        };
        if let Err(e) = served {
            tracing::debug!(error = %e, "an append stream ended");
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(peer_path::APPEND_PROTOCOL));
    response
}

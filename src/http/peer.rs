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

use crate::node::{Lobby, Node, PeerReply, PeerRequest, peer_path};

/// The routes for other members.
pub fn router(node: Node) -> Router {
    Router::new()
        .route(peer_path::APPEND_STREAM, axum::routing::get(append_stream))
        .route(peer_path::PULL_COPY, axum::routing::post(pull_copy))
        .route(peer_path::VERIFY, axum::routing::post(verify))
        .fallback(message)
        .with_state(node)
}

/// The routes while the member has no cluster yet. Every reply closes its connection, so that the next request meets the
/// member itself.
pub fn lobby_router(lobby: Lobby) -> Router {
    Router::new().fallback(in_lobby).with_state(lobby)
}

async fn in_lobby(State(lobby): State<Lobby>, request: Request) -> Response {
    let mut response = reply(lobby.answer(peer_request(request)).await);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn peer_request(request: Request) -> PeerRequest {
    let (parts, body) = request.into_parts();
    let body = body.into_data_stream().map(|chunk| chunk.map_err(|e| e.to_string()));
    PeerRequest { path: parts.uri.path().to_string(), headers: parts.headers, body: Box::pin(body) }
}

fn reply(reply: PeerReply) -> Response {
    let mut response = (reply.status, Body::from(reply.body)).into_response();
    response.headers_mut().extend(reply.headers);
    response
}

async fn message(State(node): State<Node>, request: Request) -> Response {
    reply(node.serve_peer(peer_request(request)).await)
}

async fn pull_copy(State(node): State<Node>, request: Request) -> Response {
    let PeerRequest { headers, body, .. } = peer_request(request);
    // A task of the node's runtime, where peers are served.
    match node.serve_pull(&headers, body).await {
        Ok((headers, body)) => (headers, Body::from_stream(body)).into_response(),
        Err(refusal) => reply(*refusal),
    }
}

async fn verify(State(node): State<Node>, request: Request) -> Response {
    let PeerRequest { headers, body, .. } = peer_request(request);
    match node.serve_verify(&headers, body).await {
        Ok((headers, body)) => (headers, Body::from_stream(body)).into_response(),
        Err(refusal) => reply(*refusal),
    }
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
    let agreed = headers.clone();
    tokio::spawn(async move {
        let served = match upgrade.await {
            Ok(io) => node.serve_append_stream(TokioIo::new(io), &agreed).await,
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

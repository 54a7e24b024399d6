//! Requests of other members, between the listener and the parts that serve them.
//!
//! Everything but a join passes the fence first. A refusal by the fence is 421 and carries no vote.

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use std::pin::Pin;

use super::join::JoinRequest;
use super::reads::ReadIndexAnswer;
use super::transfer::{TransferReply, TransferRequest};
use super::{Inner, RequestContext, proposals};
use crate::raft::network::path;
use crate::raft::service::ServiceError;

/// The paths between members that are not Raft's own.
pub mod peer_path {
    /// Forwarded writes.
    pub const WRITE: &str = "/peer/v1/write";
    /// A ReadIndex round.
    pub const READ_INDEX: &str = "/peer/v1/read-index";
    /// Hands leadership over, asked by a person.
    pub const HAND_OVER: &str = "/peer/v1/hand-over";
    /// A member that wants to belong to the cluster.
    pub const JOIN: &str = "/peer/v1/join";
    /// Pipelined appends.
    pub const APPEND_STREAM: &str = crate::raft::network::path::APPEND_STREAM;
    /// The protocol of the upgrade on [`APPEND_STREAM`].
    pub const APPEND_PROTOCOL: &str = crate::raft::append_stream::PROTOCOL;
}

/// A body as it arrives.
pub type PeerBody = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// What another member asks.
pub struct PeerRequest {
    /// The path.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: PeerBody,
}

/// What it gets.
pub struct PeerReply {
    /// The status.
    pub status: StatusCode,
    /// This member's identity.
    pub headers: HeaderMap,
    /// The body: the answer, or the reason for a refusal.
    pub body: Bytes,
}

/// No message but a snapshot is larger.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

impl Inner {
    pub(super) async fn serve_peer(&self, request: PeerRequest) -> PeerReply {
        let headers = self.http.identity().headers(None);
        let (status, body) = match self.answer_peer(request).await {
            Ok(body) => (StatusCode::OK, body),
            Err((status, why)) => {
                tracing::debug!(%status, why, "a peer's request is refused");
                (status, Bytes::from(why))
            }
        };
        PeerReply { status, headers, body }
    }

    /// Whether a peer may open an append stream.
    pub(super) fn check_peer(&self, headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
        if let Some(why) = self.failure.borrow().clone() {
            return Err((StatusCode::SERVICE_UNAVAILABLE, why));
        }
        match self.http.identity().check_request(headers) {
            Ok(_) => Ok(()),
            Err(e) => {
                self.http.identity().note_refusal(e.to_string());
                Err((StatusCode::MISDIRECTED_REQUEST, e.to_string()))
            }
        }
    }

    async fn answer_peer(&self, request: PeerRequest) -> Result<Bytes, (StatusCode, String)> {
        if request.path == peer_path::JOIN {
            let join: JoinRequest = read_json(&collect(request.body).await?)?;
            return Ok(write_json(&self.serve_join(join).await));
        }
        self.check_peer(&request.headers)?;
        if request.path == path::SNAPSHOT {
            return self.service.snapshot(request.body).await.map_err(service_error);
        }
        let path = request.path;
        let body = collect(request.body).await?;
        match path.as_str() {
            path::APPEND => self.service.append(body).await.map_err(service_error),
            path::VOTE => self.service.vote(&body, false).await.map_err(service_error),
            path::PRE_VOTE => self.service.vote(&body, true).await.map_err(service_error),
            path::TRANSFER => self.service.transfer(&body).await.map_err(service_error),
            peer_path::WRITE => {
                let served = proposals::serve_forwarded(self, body).await;
                served.map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))
            }
            peer_path::READ_INDEX => {
                let result = self.read_index(true).await;
                Ok(write_json(&ReadIndexAnswer { result }))
            }
            peer_path::HAND_OVER => {
                let request: TransferRequest = read_json(&body)?;
                let ctx = RequestContext::anonymous(0, self.limits.request_timeout);
                let result = self.transfer_leader(&ctx, request.to, true).await;
                Ok(write_json(&TransferReply { result }))
            }
            other => Err((StatusCode::NOT_FOUND, format!("no such path: {other}"))),
        }
    }
}

fn service_error(e: ServiceError) -> (StatusCode, String) {
    let status = match &e {
        ServiceError::Malformed(_) => StatusCode::BAD_REQUEST,
        ServiceError::Busy => StatusCode::CONFLICT,
        ServiceError::Stopped(_) | ServiceError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, e.to_string())
}

fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))
}

fn write_json(message: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(message).expect("messages between members always serialise").into()
}

async fn collect(mut body: PeerBody) -> Result<Bytes, (StatusCode, String)> {
    use futures_util::StreamExt;
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| (StatusCode::BAD_REQUEST, e))?;
        if first.is_empty() && all.is_empty() {
            first = chunk;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        if all.len() + chunk.len() > MAX_MESSAGE_BYTES {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("more than {MAX_MESSAGE_BYTES} bytes")));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

impl super::Node {
    /// Serves pipelined appends on a connection that was upgraded after [`super::Node::check_append_stream`].
    pub async fn serve_append_stream<IO>(&self, io: IO) -> std::io::Result<()>
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        crate::raft::append_stream::serve(self.0.service.raft().clone(), io).await
    }

    /// Whether a peer may open an append stream: the headers to answer with, or the refusal.
    pub fn check_append_stream(&self, headers: &HeaderMap) -> Result<HeaderMap, Box<PeerReply>> {
        let own = self.0.http.identity().headers(None);
        match self.0.check_peer(headers) {
            Ok(()) => Ok(own),
            Err((status, why)) => Err(Box::new(PeerReply { status, headers: own, body: why.into() })),
        }
    }
}

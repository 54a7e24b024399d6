//! `/v1/snapshot`: all that this member holds, as of one moment, in the form in which members copy it to each other.
//!
//! It is read on a thread of its own, one chunk after the other as the connection takes them, so memory is a few chunks
//! whatever the size. Its end has a digest over everything, so a stream that was cut, by whatever, cannot be taken for a
//! whole one. While it runs the segments that it reads stay on the disk, so only [`MAX_RUNNING`] run at a time, and the
//! server closes the connection of a client that takes nothing. Proven by `tests/mirrors/seed.rs`.

use std::sync::Arc;

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use hyper::Method;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::extract::{Parameters, RequestHeaders};
use super::problem::Failure;
use super::{Routes, Shared, headers, resource};
use crate::api::ProblemCode;
use crate::store::SnapshotReader;

/// Snapshots that are sent at the same time.
const MAX_RUNNING: usize = 2;
/// Chunks that are read before they are sent.
const CHUNKS_AHEAD: usize = 2;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/snapshot", resource("GET, HEAD, OPTIONS", get(snapshot)))
}

/// Bounds how many run.
pub struct Running(Arc<Semaphore>);

impl Default for Running {
    fn default() -> Self {
        Running(Arc::new(Semaphore::new(MAX_RUNNING)))
    }
}

async fn snapshot(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    begin(&shared, &head).await.unwrap_or_else(Failure::into_response)
}

async fn begin(shared: &Shared, head: &Parts) -> Result<Response, Failure> {
    RequestHeaders::parse(&head.headers)?.no_conditions()?;
    Parameters::parse(head.uri.query(), &[])?;
    let running = shared.snapshots.0.clone().try_acquire_owned();
    let running =
        running.map_err(|_| Failure::new(ProblemCode::TooManyReads, "other snapshots are being sent already"))?;
    let store = shared.node.store().clone();
    let reader = tokio::task::spawn_blocking(move || store.snapshot()).await;
    let failed = |e: String| Failure::new(ProblemCode::StorageFailed, e);
    let reader = reader.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    let bytes = HeaderValue::from(reader.len_bytes());
    let body = if head.method == Method::HEAD { AxumBody::empty() } else { body(reader, running) };
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, headers::OCTETS);
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    reply.headers_mut().insert(headers::SNAPSHOT_BYTES, bytes);
    Ok(reply)
}

fn body(mut reader: SnapshotReader, running: OwnedSemaphorePermit) -> AxumBody {
    let (chunks, rx) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let _running = running;
        while let Some(chunk) = reader.next_chunk().transpose() {
            if let Err(error) = &chunk {
                tracing::warn!(%error, "a snapshot was cut");
            }
            let last = chunk.is_err();
            // Nobody takes it any more when the client has gone.
            if chunks.blocking_send(chunk.map_err(std::io::Error::other)).is_err() || last {
                return;
            }
        }
    });
    AxumBody::from_stream(stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|chunk| (chunk, rx)) }))
}

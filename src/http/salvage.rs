//! `/v1/dr/salvage`: the salvage files of the member that is asked, and which requests the cluster has executed.
//!
//! A file is about the member that wrote it, so these are never forwarded; which requests were executed is read with the
//! leader's consent, like any read. A file is read on a thread of its own, one chunk after the other as the connection
//! takes them. Proven by `tests/dr/salvage.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as AxumBody;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use tokio::sync::mpsc;

use super::cluster::read_json;
use super::extract::Parameters;
use super::members::answer;
use super::problem::{Asked, Failure};
use super::{Routes, Shared, headers, resource};
use crate::api::{KnownReply, KnownRequest, ProblemCode, SalvageReply};

const READ_ALLOW: &str = "GET, HEAD, OPTIONS";
const POST_ALLOW: &str = "POST, OPTIONS";
/// So many bytes are read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that are read before they are sent.
const CHUNKS_AHEAD: usize = 2;
/// So many requests may be asked for at once.
const MAX_KNOWN: usize = 1000;

/// The routes of this file.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v1/dr/salvage", resource(READ_ALLOW, get(list)))
        .route("/v1/dr/salvage/known", resource(POST_ALLOW, post(known)))
        .route("/v1/dr/salvage/{file}", resource(READ_ALLOW, get(file)))
}

async fn list(State(shared): State<Arc<Shared>>, head: Parts) -> Response {
    answer(StatusCode::OK, listed(&shared, &head).await)
}

async fn listed(shared: &Shared, head: &Parts) -> Result<SalvageReply, Failure> {
    Parameters::none(head.uri.query())?;
    let files = shared.node.salvage_files().await.map_err(|error| Failure::node(&error, Asked::Read))?;
    Ok(SalvageReply { member: shared.node.name().to_owned(), files })
}

async fn known(State(shared): State<Arc<Shared>>, request: Request<AxumBody>) -> Response {
    answer(StatusCode::OK, which_are_known(&shared, request, Instant::now()).await)
}

async fn which_are_known(shared: &Shared, request: Request<AxumBody>, started: Instant) -> Result<KnownReply, Failure> {
    Parameters::none(request.uri().query())?;
    let KnownRequest { idempotency_keys } = read_json(shared, request).await?;
    if idempotency_keys.len() > MAX_KNOWN {
        let what = format!("more than {MAX_KNOWN}");
        return Err(Failure::new(ProblemCode::BadBody, what).field("idempotency_keys"));
    }
    let found = shared.node.known_requests(&shared.context(started), idempotency_keys).await;
    let known = found.map_err(|error| Failure::node(&error, Asked::Read))?;
    Ok(KnownReply { known })
}

async fn file(State(shared): State<Arc<Shared>>, Path(name): Path<String>, head: Parts) -> Response {
    begin(&shared, &name, &head).await.unwrap_or_else(Failure::into_response)
}

async fn begin(shared: &Shared, name: &str, head: &Parts) -> Result<Response, Failure> {
    Parameters::none(head.uri.query())?;
    let unknown = || {
        Failure::new(
            ProblemCode::UnknownFile,
            format!("this member has no salvage file {name:?}. See which there are: lifeboat salvage list"),
        )
    };
    let path: PathBuf = shared.node.salvage_path(name).ok_or_else(unknown)?;
    let opened = tokio::task::spawn_blocking(move || File::open(path)).await.map_err(io::Error::other);
    let opened = match opened.and_then(|opened| opened) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
        Err(error) => return Err(Failure::new(ProblemCode::StorageFailed, error.to_string())),
    };
    let mut reply = Response::new(if head.method == Method::HEAD { AxumBody::empty() } else { body(opened) });
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    Ok(reply)
}

fn body(mut file: File) -> AxumBody {
    let (chunks, rx) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            let last = !matches!(read, Ok(read) if read > 0);
            if last && read.is_ok() {
                return;
            }
            // Nobody takes it any more when the client has gone.
            if chunks.blocking_send(read.map(|_| chunk.into())).is_err() || last {
                return;
            }
        }
    });
    AxumBody::from_stream(stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|chunk| (chunk, rx)) }))
}

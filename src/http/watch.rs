//! `/v1/watch`: the changes of keys, as server-sent events or lines of JSON.
//!
//! Place in the path: reads what is asked for, begins a [`Watcher`] of `node`, and hands its pieces to the connection as
//! they are. Everything that can be refused is refused before the reply begins; afterwards only the stream itself can say
//! why it ends.
//!
//! A reader that does not read keeps hyper from asking for more; [`WatchBody`] tells the hub, which ends whoever leaves
//! what is ready for too long. The connection knows how long such a reply may be quiet, and that a stop does not wait for
//! its end ([`Endless`]).
//!
//! Proven by `tests/watch.rs` here, and over real processes by `tests/api/watch.rs` of the crate.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body as AxumBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::body::{Body, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap};
use hyper::http::request::Parts;

use super::extract::{Consistency, Form, Parameters, RequestHeaders, accepted_form, parse_number};
use super::keys::Bounds;
use super::problem::{Asked, Failure};
use super::server::Endless;
use super::{Routes, Shared, headers, resource};
use crate::model::Revision;
use crate::node::{Framing, Kinds, Pace, Scope, WatchCut, WatchView, Watcher};

const ALLOW: &str = "GET, HEAD, OPTIONS";
const PARAMETERS: &[&str] =
    &["key", "prefix", "start", "end", "since", "filter", "previous", "keys_only", "heartbeat", "max_lag"];

/// How often a quiet stream tells that it lives.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);
const MIN_HEARTBEAT: Duration = Duration::from_secs(1);
const MAX_HEARTBEAT: Duration = Duration::from_secs(300);

/// The route of this file.
pub fn routes() -> Routes {
    Routes::new().route("/v1/watch", resource(ALLOW, get(watch)))
}

async fn watch(State(shared): State<Arc<Shared>>, request: Parts) -> Response {
    let started = Instant::now();
    begin(&shared, &request, started).await.unwrap_or_else(IntoResponse::into_response)
}

/// What is asked for.
struct WatchRequest {
    view: WatchView,
    since: Option<Revision>,
    heartbeat: Duration,
    max_lag: Option<Duration>,
}

async fn begin(shared: &Shared, request: &Parts, started: Instant) -> Result<Response, Failure> {
    let WatchRequest { view, since, heartbeat, max_lag } = parse(request, shared.node.limits().max_key_bytes)?;
    shared.admit_read()?;
    if max_lag.is_some() {
        shared.settle(Consistency::Stale { max_lag }, started).await?;
    }
    if since.is_some_and(|since| since > shared.node.store().revision()) {
        // Another member may have sent it. Afterwards this one has everything that the cluster had when it was asked.
        let barrier = shared.node.read_barrier(&shared.context(started)).await;
        barrier.map_err(|error| Failure::node(&error, Asked::Read))?;
    }
    let framing = view.framing;
    let watcher = shared.node.watches().watch(view, since, heartbeat).map_err(|error| Failure::watch(&error))?;
    let watcher = match max_lag {
        None => watcher,
        Some(max_lag) => {
            let node = shared.node.clone();
            watcher.only_while(Box::new(move || node.lag().is_some_and(|lag| lag <= max_lag)))
        }
    };
    let mut reply = Response::new(AxumBody::new(WatchBody::new(watcher)));
    reply.extensions_mut().insert(Endless { quiet: heartbeat });
    let content_type = if framing == Framing::Lines { headers::NDJSON } else { headers::EVENT_STREAM };
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    Ok(reply)
}

fn parse(request: &Parts, max_key_bytes: usize) -> Result<WatchRequest, Failure> {
    let headers = RequestHeaders::parse(&request.headers)?;
    headers.no_conditions()?;
    let framing = match accepted_form(headers.accept, "text/event-stream", &[Form::Ndjson]) {
        Form::Ndjson => Framing::Lines,
        _ => Framing::ServerSent,
    };
    let parameters = Parameters::parse(request.uri.query(), PARAMETERS)?;
    let kinds = match parameters.raw("filter") {
        None => Kinds::All,
        Some("put") => Kinds::Puts,
        Some("delete") => Kinds::Deletes,
        Some(_) => return Err(Failure::parameter("filter", "neither put nor delete")),
    };
    let heartbeat = parameters.duration("heartbeat")?.unwrap_or(DEFAULT_HEARTBEAT);
    if !(MIN_HEARTBEAT..=MAX_HEARTBEAT).contains(&heartbeat) {
        return Err(Failure::parameter("heartbeat", "not between 1s and 5m"));
    }
    let since = parameters.number("since")?;
    let max_lag = parameters.duration("max_lag")?;
    let view = WatchView {
        scope: scope(&parameters, max_key_bytes)?,
        kinds,
        previous: parameters.switch("previous")?,
        keys_only: parameters.switch("keys_only")?,
        framing,
    };
    Ok(WatchRequest { view, since: last_event_id(&request.headers)?.or(since), heartbeat, max_lag })
}

fn scope(parameters: &Parameters<'_>, max_key_bytes: usize) -> Result<Scope, Failure> {
    let key = parameters.bytes("key", max_key_bytes)?;
    let bounds = Bounds::parse(parameters, max_key_bytes)?;
    match (key, parameters.raw("prefix")) {
        (Some(key), _) if key.is_empty() => Err(Failure::parameter("key", "a key has at least one byte")),
        (Some(key), None) if parameters.raw("start").or(parameters.raw("end")).is_none() => Ok(Scope::Key(key)),
        (Some(_), _) => Err(Failure::parameter("key", "either key, or prefix, or start and end")),
        (None, Some(_)) => Ok(Scope::Prefix(bounds.start)),
        (None, None) if bounds.start.is_empty() && bounds.end.is_none() => Ok(Scope::all()),
        (None, None) => Ok(Scope::Range { start: bounds.start, end: bounds.end }),
    }
}

/// Where a reader whose connection broke wants to go on, as a browser says by itself.
fn last_event_id(map: &HeaderMap) -> Result<Option<Revision>, Failure> {
    let name = headers::LAST_EVENT_ID;
    let mut values = map.get_all(&name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Failure::header(name.as_str(), "the header is given twice"));
    }
    let revision = value.to_str().ok().and_then(parse_number);
    revision.map(Some).ok_or_else(|| Failure::header(name.as_str(), "not a revision"))
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, WatchCut>> + Send>>;

/// The body of the reply: the pieces of the watch, and word to the hub of how the reader takes them.
struct WatchBody {
    pace: Pace,
    pieces: Pieces,
}

impl WatchBody {
    fn new(watcher: Watcher) -> WatchBody {
        let pace = watcher.pace();
        let pieces = stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) });
        WatchBody { pace, pieces: Box::pin(pieces) }
    }
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = WatchCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.pace.waits();
        let piece = std::task::ready!(self.pieces.as_mut().poll_next(cx));
        self.pace.took();
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }
}

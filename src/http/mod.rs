//! The HTTP edge: what clients speak to.
//!
//! Place in the path: hyper reads a request ([`server`]), [`Edge`] finds its resource, the resource reads it strictly
//! ([`extract`], [`body`]), asks `node` or `store`, and answers; what fails becomes a status in [`problem`] and nowhere
//! else. One file a resource; `docs/http-api.md` is the contract.
//!
//! ```text
//!   server ──> Edge ──/v1/kv/──> kv                        no router, no boxed future, no extractors
//!                └───────────> axum router ──> keys, watch, cluster, health
//! ```
//!
//! Reads and writes of one key are most of what a member serves, and at their rate a router's layers cost more than the
//! request, so [`Edge`] looks for their path first. Every reply, also one of the router, passes [`Edge`] on its way
//! out: it adds the `Lifeboat-` headers and counts.
//!
//! Invariants: a reply says `not-applied` only for what never reached a log; every request has a deadline; memory for a
//! request is bounded by the largest value and by [`keys`]' page. The edge holds no state that a crash could lose.
//!
//! What it does not do: it decides nothing about members or Raft, retries nothing, caches nothing.
//!
//! Proven by the tests of each file, by `tests.rs` here over a real node, and by the contract's tests in `tests/`.

mod body;
mod cluster;
mod dr;
mod drill;
mod events;
mod extract;
mod failover;
mod headers;
mod health;
mod keys;
mod kv;
mod leases;
mod long_poll;
mod maintenance;
mod members;
mod meter;
mod openapi;
mod outcome;
pub mod peer;
mod problem;
mod replication;
mod salvage;
mod sequences;
pub mod server;
mod snapshot;
mod txn;
mod verify;
mod waiting;
mod watch;

use server::StopSignal;
pub use waiting::serve_waiting;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::MethodRouter;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::TcpListener;

use self::body::{EdgeBody, Source};
use self::extract::{Consistency, RequestHeaders};
use self::keys::RangeReads;
use self::problem::{Asked, Failure};
use self::server::ServerOptions;
use crate::api::ProblemCode;
use crate::metrics::{Route, Verb};
use crate::node::{Node, NodeError, Principal, RequestContext};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire;

/// A reply, before it is sent.
type Reply = Response<EdgeBody>;

/// The limits of the clients' edge.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// The listener's limits.
    pub server: ServerOptions,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// So many reads of ranges run at the same time.
    pub max_range_reads: usize,
    /// So many more may wait; others are refused with 429.
    pub max_range_waiters: usize,
}

impl Default for EdgeOptions {
    fn default() -> Self {
        EdgeOptions {
            server: ServerOptions::default(),
            body_timeout: Duration::from_secs(10),
            max_range_reads: 16,
            max_range_waiters: 1024,
        }
    }
}

/// Serves clients of `node` on `listener` until `stop`, then until their requests are answered or the drain timeout has
/// passed.
pub async fn serve_clients(listener: TcpListener, node: Node, options: EdgeOptions, stop: StopSignal) {
    let counts = node.metrics().http.connections.clone();
    let server = options.server.clone();
    // Streams have no end of their own: they are ended as soon as clients are sent elsewhere.
    let (watches, stopping) = (node.watches().clone(), stop.clone());
    tokio::spawn(async move {
        stopping.announced().await;
        watches.stop();
    });
    let edge = Edge::new(node, &options);
    server::serve(listener, edge.service(), server, counts, stop).await;
}

/// The resources for clients, over one node. Cloning shares them.
#[derive(Clone)]
pub struct Edge {
    shared: Arc<Shared>,
    router: TowerToHyperService<Router>,
}

/// Resources behind the router, and the paths they are at: the router itself does not tell.
struct Routes {
    router: Router<Arc<Shared>>,
    paths: Vec<&'static str>,
}

impl Routes {
    fn new() -> Routes {
        Routes { router: Router::new(), paths: Vec::new() }
    }

    fn route(mut self, path: &'static str, methods: MethodRouter<Arc<Shared>>) -> Routes {
        self.paths.push(path);
        Routes { router: self.router.route(path, methods), ..self }
    }

    fn merge(mut self, other: Routes) -> Routes {
        self.paths.extend(other.paths);
        Routes { router: self.router.merge(other.router), ..self }
    }
}

/// All resources but that of one key, which [`Edge`] finds by itself.
fn routes() -> Routes {
    Routes::new()
        .merge(keys::routes())
        .merge(watch::routes())
        .merge(cluster::routes())
        .merge(failover::routes())
        .merge(drill::routes())
        .merge(members::routes())
        .merge(dr::routes())
        .merge(salvage::routes())
        .merge(replication::routes())
        .merge(health::routes())
        .merge(events::routes())
        .merge(snapshot::routes())
        .merge(leases::routes())
        .merge(sequences::routes())
        .merge(maintenance::routes())
        .merge(txn::routes())
        .merge(verify::routes())
        .merge(openapi::routes())
}

/// What all resources need.
struct Shared {
    node: Node,
    common: headers::CommonHeaders,
    next_trace: AtomicU64,
    body_timeout: Duration,
    ranges: RangeReads,
    snapshots: snapshot::Running,
}

impl Edge {
    /// The resources over `node`.
    pub fn new(node: Node, options: &EdgeOptions) -> Edge {
        let shared = Arc::new(Shared {
            node,
            common: headers::CommonHeaders::default(),
            next_trace: AtomicU64::new(rand::random()),
            body_timeout: options.body_timeout,
            ranges: RangeReads::new(options.max_range_reads, options.max_range_waiters),
            snapshots: snapshot::Running::default(),
        });
        let router = routes().router.fallback(unknown_path).with_state(shared.clone());
        Edge { shared, router: TowerToHyperService::new(router) }
    }

    /// The resources as hyper wants them.
    pub fn service(
        &self,
    ) -> impl Service<Request<Incoming>, Response = Reply, Error = Infallible, Future: Send> + Clone + Send + 'static
    {
        let edge = self.clone();
        service_fn(move |request| {
            let edge = edge.clone();
            async move { Ok(edge.handle(request).await) }
        })
    }

    /// Answers one request.
    async fn handle<B: Source + Send + 'static>(&self, request: Request<B>) -> Reply {
        let started = Instant::now();
        let shared = &*self.shared;
        let verb = verb_of(request.method());
        let path = request.uri().path();
        let about_writes = !matches!(verb, Verb::Get | Verb::Head);
        if let Some(why) = shared.node.out_of_service().filter(|_| !is_always_open(path)) {
            let mut reply = refuse_out_of_service(&why, about_writes);
            shared.add_common_headers(reply.headers_mut());
            shared.node.metrics().http.record(route_of(path), verb, reply.status().as_u16(), started.elapsed());
            return reply;
        }
        let (route, mut reply) = if path.starts_with(kv::PREFIX) {
            let route = if long_poll::is_waiting(request.uri().query()) { Route::LongPoll } else { Route::Kv };
            (route, kv::handle(shared, request, started).await)
        } else {
            let route = route_of(path);
            // Boxed, so that the room which every connection keeps for a request is that of the path above.
            (route, Box::pin(self.routed(request)).await)
        };
        // What met the damage first.
        if reply.status() == StatusCode::INTERNAL_SERVER_ERROR
            && !about_writes
            && let Some(why) = shared.node.out_of_service()
        {
            reply = refuse_out_of_service(&why, about_writes);
        }
        shared.add_common_headers(reply.headers_mut());
        shared.node.metrics().http.record(route, verb, reply.status().as_u16(), started.elapsed());
        reply
    }

    async fn routed<B: Source + Send + 'static>(&self, request: Request<B>) -> Reply {
        if let Err(failure) = self.shared.admit(request.headers()) {
            return failure.into_reply();
        }
        let routed = self.router.call(request.map(axum::body::Body::new)).await;
        match routed {
            Ok(reply) => reply.map(EdgeBody::Axum),
            Err(never) => match never {},
        }
    }
}

impl Shared {
    /// Reads the headers, and refuses a request that is meant for another timeline.
    fn admit<'h>(&self, map: &'h HeaderMap) -> Result<RequestHeaders<'h>, Failure> {
        let read = RequestHeaders::parse(map)?;
        if let Some(asked) = read.timeline {
            let own = self.node.timeline();
            if own != Some(asked) {
                return Err(Failure::wrong_timeline(own, asked));
            }
        }
        Ok(read)
    }

    /// The context of a request that began at `started`.
    fn context(&self, started: Instant) -> RequestContext {
        // An odd step visits every number once before it repeats; consecutive ones look nothing alike.
        let trace_id = self.next_trace.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let deadline = started + self.node.limits().request_timeout;
        RequestContext { principal: Principal::Anonymous, trace_id, deadline }
    }

    /// Makes sure that what `store` has is current enough to be read; the lag, when it is a read that may lag.
    async fn settle(&self, consistency: Consistency, started: Instant) -> Result<ReadPoint, Failure> {
        let max_lag = match consistency {
            Consistency::Linearizable => {
                let barrier = self.node.read_barrier(&self.context(started)).await;
                barrier.map_err(|error| Failure::node(&error, Asked::Read))?;
                self.node.metrics().reads_linearizable.inc();
                return Ok(ReadPoint::Linearizable);
            }
            Consistency::Stale { max_lag } => max_lag,
        };
        if self.node.timeline().is_none() {
            return Err(Failure::node(&NodeError::NotJoined, Asked::Read));
        }
        // Taken before the store is read: what is read then is at least as new as this says.
        let lag = self.node.lag();
        if let Some(max_lag) = max_lag
            && lag.is_none_or(|lag| lag > max_lag)
        {
            let known = lag.map_or("unknown".to_owned(), |lag| format!("{:.3} s", lag.as_secs_f64()));
            return Err(Failure::new(ProblemCode::TooStale, format!("the lag of this member is {known}")));
        }
        self.node.metrics().reads_stale.inc();
        Ok(ReadPoint::Stale { lag })
    }

    /// Refuses a read of keys while a planned pause says so.
    fn admit_read(&self) -> Result<(), Failure> {
        self.node.admit_read().map_err(|error| Failure::node(&error, Asked::Read))
    }

    fn add_common_headers(&self, map: &mut HeaderMap) {
        if let Some(timeline) = self.node.timeline() {
            let leader = self.node.leader_hint();
            self.common.add(map, timeline, self.node.store().revision(), leader.as_deref());
        }
    }
}

/// How current a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadPoint {
    Linearizable,
    Stale { lag: Option<Duration> },
}

impl ReadPoint {
    fn is_stale(self) -> bool {
        matches!(self, ReadPoint::Stale { .. })
    }

    /// Tells the reader how old the answer may be.
    fn add_headers(self, map: &mut HeaderMap) {
        if let ReadPoint::Stale { lag } = self {
            map.insert(headers::LAG_SECONDS, lag_value(lag));
        }
    }
}

/// A lag as a decimal number of seconds, rounded up, because it is an upper bound.
fn lag_value(lag: Option<Duration>) -> HeaderValue {
    match lag {
        None => HeaderValue::from_static("unknown"),
        Some(lag) => {
            let millis = lag.as_nanos().div_ceil(1_000_000);
            let text = format!("{}.{:03}", millis / 1000, millis % 1000);
            HeaderValue::try_from(text).expect("digits and a dot are a header value")
        }
    }
}

/// What a member answers that is fenced or in quarantine: what it says of itself.
fn is_always_open(path: &str) -> bool {
    path.starts_with("/health/")
        || ["/metrics", "/v1/status", "/v1/role", "/v1/events", "/v1/verify", "/v1/openapi.json"].contains(&path)
        || ["/v1/dr", "/v1/dr/rejoin"].contains(&path)
}

fn refuse_out_of_service(why: &NodeError, write: bool) -> Reply {
    let mut reply = Failure::node(why, if write { Asked::Write } else { Asked::Read }).into_reply();
    // It is about to be opened anew.
    reply.headers_mut().insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

fn verb_of(method: &Method) -> Verb {
    match *method {
        Method::GET => Verb::Get,
        Method::HEAD => Verb::Head,
        Method::PUT => Verb::Put,
        Method::POST => Verb::Post,
        Method::DELETE => Verb::Delete,
        _ => Verb::Other,
    }
}

fn route_of(path: &str) -> Route {
    match path {
        "/v1/keys" => Route::Keys,
        "/v1/watch" => Route::Watch,
        "/v1/status" => Route::Status,
        "/v1/members" => Route::Members,
        "/v1/role" => Route::Role,
        "/v1/leader" => Route::Leader,
        "/v1/txn" => Route::Txn,
        "/v1/replication" => Route::Replication,
        "/v1/dr" => Route::Dr,
        "/v1/dr/switchover" => Route::Switchover,
        "/v1/events" => Route::Events,
        "/v1/maintenance" => Route::Maintenance,
        "/v1/verify" => Route::Verify,
        "/v1/snapshot" => Route::Snapshot,
        "/v1/openapi.json" => Route::OpenApi,
        _ if path.starts_with("/v1/dr/") => Route::Dr,
        _ if path.starts_with("/v1/leases") => Route::Leases,
        _ if path.starts_with("/v1/seq/") => Route::Sequences,
        "/metrics" => Route::Metrics,
        _ if path.starts_with("/v1/members/") => Route::Members,
        _ if path.starts_with("/health/") => Route::Health,
        _ => Route::Unknown,
    }
}

async fn unknown_path(request: Request<axum::body::Body>) -> Failure {
    Failure::new(ProblemCode::UnknownPath, format!("there is nothing at {}", request.uri().path()))
}

/// A resource behind the router: its methods, and sensible answers to OPTIONS and to those it does not have. `allow`
/// lists what it has.
fn resource(allow: &'static str, methods: MethodRouter<Arc<Shared>>) -> MethodRouter<Arc<Shared>> {
    methods
        .options(move || async move { options(allow).map(EdgeBody::into_axum) })
        .fallback(move || async move { Failure::method_not_allowed(allow) })
}

/// The reply to OPTIONS.
fn options(allow: &'static str) -> Reply {
    let mut reply = Response::new(EdgeBody::empty());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    reply
}

/// A reply of small JSON.
fn json_reply(status: StatusCode, body: &impl Serialize) -> Reply {
    let mut text = Vec::with_capacity(128);
    serde_json::to_writer(&mut text, body).expect("replies have nothing that JSON cannot hold");
    let mut reply = Response::new(EdgeBody::full(text));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, headers::JSON);
    reply
}

/// What the router sends: a reply that nobody may keep, or the failure.
fn respond(result: Result<Reply, Failure>) -> Response<axum::body::Body> {
    match result {
        Ok(mut reply) => {
            reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
            reply.map(EdgeBody::into_axum)
        }
        Err(failure) => failure.into_response(),
    }
}

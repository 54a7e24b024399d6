//! Listeners: accepting connections, serving HTTP/1.1 on them, and letting them finish when the member stops.
//!
//! Both listeners of a member, for clients and for peers, are this code with different services ([`serve`]); transport
//! security will be a change here and nowhere else.
//!
//! ```text
//!   accept ──too many──> 503, closed
//!      └──> connection task: hyper ── bytes pass through `Meter` ── a watch that closes what is idle or too slow
//! ```
//!
//! Bounds: [`ServerOptions::max_connections`]; the head of a request is at most [`MAX_HEAD_BYTES`] and has to arrive
//! within [`ServerOptions::header_timeout`]; a connection on which nothing moves is closed after
//! [`ServerOptions::idle_timeout`], be it between requests or because its client does not take the reply.
//! The watch looks only four times in a header timeout, so limits are kept to within a quarter of it; in exchange a
//! request costs no timer, where hyper's own header timeout makes and drops one each time.
//!
//! A member stops in two steps ([`StopSignal`]). Announced: everything is still served, and every reply ends its
//! connection, so that clients go elsewhere by themselves. Stopped: what the operating system has accepted by then is
//! taken, nothing more, requests that have begun are answered, and after [`ServerOptions::drain_timeout`] what is left is
//! cut. Proven by `server/tests.rs`, over sockets.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::meter::{Activity, Meter, Watch};
use super::problem::Failure;
use crate::metrics::ConnectionCounts;

#[cfg(test)]
mod tests;

/// The largest head of a request: a query with three keys of 4 KiB, all percent-encoded, and headers besides. It is
/// also what a connection buffers of a body at most.
pub const MAX_HEAD_BYTES: usize = 128 << 10;
/// How long accepting pauses when the process has no file descriptor left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After the stop at most so many connections that the operating system has already accepted are taken over.
const LAST_CONNECTIONS: usize = 1024;
/// The limits of a listener.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// More connections than this are refused.
    pub max_connections: usize,
    /// How long the head of a request may take, and a new connection until its first.
    pub header_timeout: Duration,
    /// How long a connection may do nothing between requests.
    pub idle_timeout: Duration,
    /// How long requests may go on when the member stops.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            max_connections: 16_384,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Marks a reply whose body has no end of its own: it may be quiet for so long, and a stop does not wait for its end.
#[derive(Debug, Clone, Copy)]
pub struct Endless {
    /// Nothing may be sent for so long although all is well.
    pub quiet: Duration,
}

/// A connection with such a reply has so long to take its end when the member stops.
const ENDLESS_DRAIN: Duration = Duration::from_secs(1);

/// Tells a listener to stop: first that it will, then that it shall. Cloning gives another handle.
#[derive(Debug, Clone, Default)]
pub struct StopSignal {
    announced: CancellationToken,
    stopped: CancellationToken,
}

impl StopSignal {
    /// From now on every reply ends its connection.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    /// Returns once the stop was announced.
    pub async fn announced(&self) {
        self.announced.cancelled().await;
    }

    /// From now on nothing new is accepted.
    pub fn stop(&self) {
        self.announced.cancel();
        self.stopped.cancel();
    }
}

/// Serves an axum router: see [`serve`].
pub async fn serve_router(
    listener: TcpListener,
    router: Router,
    options: ServerOptions,
    counts: Arc<ConnectionCounts>,
    stop: StopSignal,
) {
    serve(listener, TowerToHyperService::new(router), options, counts, stop).await;
}

/// Serves every connection of `listener` until `stop`, then until all requests are answered or
/// [`ServerOptions::drain_timeout`] has passed. Upgraded connections belong to whoever upgraded them and are not waited
/// for.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    options: ServerOptions,
    counts: Arc<ConnectionCounts>,
    stop: StopSignal,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let mut left_to_take = LAST_CONNECTIONS;
    while left_to_take > 0 {
        if stop.stopped.is_cancelled() {
            left_to_take -= 1;
        }
        let accepted = tokio::select! {
            biased;
            // Before the end, so that what was accepted for us is served: its client cannot tell that it was not.
            accepted = listener.accept() => accepted,
            () = stop.stopped.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        if connections.len() >= options.max_connections {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            refuse(stream);
            continue;
        }
        let (service, options, counts) = (service.clone(), options.clone(), counts.clone());
        let (stop, cut) = (stop.clone(), cut.clone());
        connections.spawn(async move {
            counts.open.fetch_add(1, Ordering::Relaxed);
            let _open = OpenConnection(counts);
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection(stream, service, &options, stop) => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(options.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests were cut because they did not end in time");
        cut.cancel();
        connections.wait().await;
    }
}

/// Counts a connection as open for as long as it lives, however it ends.
struct OpenConnection(Arc<ConnectionCounts>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that broke while it was accepted is no reason to wait; a lack of file descriptors is.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Says why and closes. Nobody waits for a client that is refused: what does not fit its socket's buffer is not sent.
fn refuse(stream: TcpStream) {
    use std::io::Write as _;
    let _best_effort = stream.into_std().and_then(|mut stream| stream.write(&Failure::one_connection_too_many()));
}

/// Serves one connection until it ends, is idle or slow for too long, or `stop` and its last reply.
async fn connection<S, B>(stream: TcpStream, service: S, options: &ServerOptions, stop: StopSignal)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection broke before it was served");
        return;
    }
    let activity = Arc::new(Activity::default());
    let (counted, announced) = (activity.clone(), stop.announced.clone());
    let service = service_fn(move |request| {
        counted.request_begins();
        let (reply, counted, announced) = (service.call(request), counted.clone(), announced.clone());
        async move {
            let mut reply = reply.await;
            if let Some(endless) = reply.as_ref().ok().and_then(|reply| reply.extensions().get::<Endless>()) {
                counted.may_be_quiet(endless.quiet);
            }
            counted.request_ends();
            if announced.is_cancelled()
                && let Ok(reply) = &mut reply
                && reply.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            reply
        }
    });
    // Not `pipeline_flush`: with bytes left in its buffer hyper then keeps back what it should send before it closes or
    // upgrades (its own 400 and 431, the 101), and loses it.
    let http = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(Meter::new(stream, activity.clone())), service)
        .with_upgrades();
    let mut http = pin!(http);
    let mut stopped = pin!(stop.stopped.cancelled());
    let mut stopping = false;
    let sent = activity.clone();
    let mut watch = Watch::new(activity, options.header_timeout, options.idle_timeout, Instant::now().into_std());
    let mut tick = pin!(sleep(watch.interval()));
    loop {
        tokio::select! {
            biased;
            ended = http.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended badly");
                }
                return;
            }
            () = &mut stopped, if !stopping => {
                stopping = true;
                http.as_mut().graceful_shutdown();
                if sent.is_endless() {
                    rearm(tick.as_mut(), ENDLESS_DRAIN);
                }
            }
            () = tick.as_mut() => {
                if stopping && sent.is_endless() {
                    tracing::debug!("a stream was cut because its reader did not take the end");
                    return;
                }
                if watch.is_overdue(Instant::now().into_std()) {
                    tracing::debug!("an idle or slow connection was closed");
                    return;
                }
                rearm(tick.as_mut(), watch.interval());
            }
        }
    }
}

fn rearm(tick: std::pin::Pin<&mut Sleep>, interval: Duration) {
    tick.reset(Instant::now() + interval);
}

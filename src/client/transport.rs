//! One request on one connection, and how far it got when it failed.
//!
//! Place: under the loop that repeats requests. This is the only place that dials members, so transport security is a
//! change here. It uses hyper's client itself and not a larger one on top of it: a key may be `..`, and whatever tidies
//! up addresses would send another one than was asked for.
//!
//! Invariant: [`Broken::NotSent`] is said only when no byte of the request can have reached anybody.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::endpoints::Endpoint;

/// The largest body that is taken into memory.
const MAX_REPLY_BYTES: usize = 64 << 20;
/// Connections that are kept open to one member while nobody uses them. Members close theirs after two minutes.
const MAX_IDLE_CONNECTIONS: usize = 64;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How the client calls itself.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("lifeboat/", env!("CARGO_PKG_VERSION")));

/// A request, as often as it is sent. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub method: Method,
    /// Path and query, encoded.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Outgoing {
    pub fn new(method: Method, target: impl Into<String>) -> Outgoing {
        Outgoing { method, target: target.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub fn json(mut self, body: Bytes) -> Outgoing {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.body = body;
        self
    }
}

/// The beginning of an answer, its body still to come.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Incoming,
}

/// Why there is no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// No byte of the request reached anybody.
    NotSent(String),
    /// It may have been done.
    Lost(String),
}

/// Connections to all members.
#[derive(Debug, Clone)]
pub struct Transport {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Transport {
    pub fn new(connect_timeout: Duration) -> Transport {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect_timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build(connector);
        Transport { client }
    }

    /// Sends a request and waits for the beginning of its answer.
    pub async fn send(&self, endpoint: &Endpoint, outgoing: &Outgoing) -> Result<Head, Broken> {
        let uri = format!("{}{}", endpoint.url(), outgoing.target);
        let mut request = Request::builder().method(outgoing.method.clone()).uri(uri);
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&outgoing.headers);
            headers.insert(USER_AGENT, AGENT);
        }
        let request = request.body(Full::new(outgoing.body.clone()));
        let request = request.map_err(|error| Broken::NotSent(format!("the request cannot be made: {error}")))?;
        match self.client.request(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ok(Head { status: head.status, headers: head.headers, body })
            }
            Err(error) if never_sent(&error) => Err(Broken::NotSent(causes(&error))),
            Err(error) => Err(Broken::Lost(causes(&error))),
        }
    }
}

/// Whether the connection could not be made, or was gone before the request was given to it.
fn never_sent(error: &ClientError) -> bool {
    let canceled = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
    error.is_connect() || canceled.is_some_and(hyper::Error::is_canceled)
}

/// An error with what caused it, without saying the same twice.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// The rest of an answer.
pub async fn collect(body: Incoming) -> Result<Bytes, String> {
    match Limited::new(body, MAX_REPLY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(format!("the answer was cut: {error}")),
    }
}

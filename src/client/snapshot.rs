//! A snapshot of all that a member holds, as a stream of bytes.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Client;
use super::endpoints::{Endpoint, Prefer, Tour};
use super::error::Error;
use super::retry::Seen;
use super::transport::Outgoing;
use crate::api::Retry;

const SNAPSHOT_BYTES: HeaderName = HeaderName::from_static("lifeboat-snapshot-bytes");
/// A member that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two attempts to begin.
const PAUSE: Duration = Duration::from_millis(500);

/// A snapshot on its way. It is not begun anew by itself: another member's would be another one.
#[derive(Debug)]
pub struct Snapshot {
    endpoint: Endpoint,
    body: Incoming,
    about_bytes: Option<u64>,
}

impl Client {
    /// Begins to read a snapshot from one of the members, any of them, and tries others until the deadline.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let started = Instant::now();
        let outgoing = Outgoing::new(Method::GET, "/v1/snapshot");
        let (mut tour, mut attempts) = (Tour::default(), 0);
        loop {
            let (endpoint, from) = self.inner.endpoints.choose(Prefer::Any, &tour, Instant::now());
            tokio::time::sleep_until(from).await;
            attempts += 1;
            let seen = match tokio::time::timeout(self.inner.attempt_timeout, self.begin(&outgoing, &endpoint)).await {
                Ok(Ok(snapshot)) => return Ok(snapshot),
                Ok(Err(Seen::Problem { problem, .. })) if problem.retry == Retry::Never => {
                    return Err(Error::Refused { problem, endpoint: endpoint.url().to_owned() });
                }
                Ok(Err(seen)) => seen,
                Err(_) => Seen::Lost(format!("{endpoint}: no answer in time")),
            };
            let elapsed = started.elapsed();
            if elapsed + PAUSE >= self.inner.deadline {
                return Err(Error::Unavailable { attempts, elapsed, reason: seen.reason(), problem: seen.problem() });
            }
            let now = Instant::now();
            self.inner.endpoints.failed(&mut tour, &endpoint, now + PAUSE, seen.is_member_gone(), now);
        }
    }

    async fn begin(&self, outgoing: &Outgoing, endpoint: &Endpoint) -> Result<Snapshot, Seen> {
        let head = self.open_stream(outgoing, endpoint).await?;
        let about_bytes = head.headers.get(SNAPSHOT_BYTES).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Snapshot { endpoint: endpoint.clone(), body: head.body, about_bytes })
    }
}

impl Snapshot {
    /// The member that sends it.
    pub fn endpoint(&self) -> &str {
        self.endpoint.url()
    }

    /// About how many bytes it will have.
    pub fn about_bytes(&self) -> Option<u64> {
        self.about_bytes
    }

    /// The next bytes; none at the end. That it is whole is for its digest to show.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let cut = |why: String| Error::unreadable(self.endpoint.url(), format!("the snapshot was cut: {why}"));
        loop {
            match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Err(_) => return Err(cut(format!("nothing came for {} s", SILENCE.as_secs()))),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(cut(e.to_string())),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

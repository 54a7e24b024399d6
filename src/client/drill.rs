//! A rehearsal of a forced failover, followed line by line.

use std::time::Duration;

use http::Method;
use http::header::{ACCEPT, HeaderValue};
use tokio::time::Instant;

use super::Client;
use super::cluster::json;
use super::endpoints::{Prefer, Tour};
use super::error::Error;
use super::lines::Lines;
use super::retry::Seen;
use crate::api::{DrillLine, DrillRequest};

/// Nothing may come for so long although all is well.
const SILENCE: Duration = Duration::from_secs(60);

/// A drill that runs. Dropping it ends it.
pub type Drill = Lines<DrillLine>;

impl Client {
    /// Rehearses a forced failover at the asked member, which is a mirror. Which member: see [`Client::at`]. It is asked
    /// once.
    pub async fn drill(&self, request: &DrillRequest) -> Result<Drill, Error> {
        let mut outgoing = json(Method::POST, "/v1/dr/drill".to_owned(), request)?;
        outgoing.headers.insert(ACCEPT, HeaderValue::from_static("application/x-ndjson"));
        let (began, now) = (Instant::now(), Instant::now());
        let (endpoint, _) = self.inner.endpoints.choose(Prefer::Any, &Tour::default(), now);
        let opened = tokio::time::timeout(self.inner.deadline, self.open_stream(&outgoing, &endpoint)).await;
        let url = endpoint.url().to_owned();
        let seen = match opened {
            Ok(Ok(head)) => return Ok(Drill::new(url, head.body, SILENCE, "drill")),
            Ok(Err(Seen::Problem { problem, .. })) if problem.status < 500 || problem.status == 507 => {
                return Err(Error::Refused { problem, endpoint: url });
            }
            Ok(Err(seen)) => seen,
            Err(_) => Seen::Lost("no answer in time".to_owned()),
        };
        let (elapsed, reason, problem) = (began.elapsed(), seen.reason(), seen.problem());
        Err(Error::Unavailable { attempts: 1, elapsed, reason, problem })
    }
}

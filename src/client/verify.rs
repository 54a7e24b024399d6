//! Verification of what the members hold, followed line by line.

use std::time::Duration;

use http::Method;
use http::header::{ACCEPT, HeaderValue};
use tokio::time::Instant;

use super::Client;
use super::endpoints::{Prefer, Tour};
use super::error::Error;
use super::kv::Target;
use super::lines::Lines;
use super::retry::Seen;
use super::transport::Outgoing;
use crate::api::{Revision, VerifyLine};

/// Between two members that are asked.
const PAUSE: Duration = Duration::from_millis(200);

/// A verification that runs. Dropping it ends it.
pub type Verification = Lines<VerifyLine>;

impl Client {
    /// Verifies all members, at a revision or the newest. It is begun at one member after the other until one begins it, or
    /// the deadline has come.
    pub async fn verify(&self, rev: Option<Revision>) -> Result<Verification, Error> {
        let mut target = Target::new("/v1/verify");
        if let Some(rev) = rev {
            target.add("rev", rev.to_string());
        }
        let mut outgoing = Outgoing::new(Method::GET, target.into_string());
        outgoing.headers.insert(ACCEPT, HeaderValue::from_static("application/x-ndjson"));
        let (began, mut tour, mut attempts) = (Instant::now(), Tour::default(), 0);
        loop {
            attempts += 1;
            let (endpoint, from) = self.inner.endpoints.choose(Prefer::Leader, &tour, Instant::now());
            tokio::time::sleep_until(from).await;
            let opened = tokio::time::timeout(self.inner.attempt_timeout, self.open_stream(&outgoing, &endpoint));
            let seen = match opened.await {
                Ok(Ok(head)) => {
                    let silence = self.inner.attempt_timeout.max(Duration::from_secs(30));
                    return Ok(Verification::new(endpoint.url().to_owned(), head.body, silence, "verification"));
                }
                Ok(Err(Seen::Problem { problem, .. })) if problem.status < 500 => {
                    return Err(Error::Refused { problem, endpoint: endpoint.url().to_owned() });
                }
                Ok(Err(seen)) => seen,
                Err(_) => Seen::Lost("no answer in time".to_owned()),
            };
            if began.elapsed() >= self.inner.deadline {
                let (elapsed, reason, problem) = (began.elapsed(), seen.reason(), seen.problem());
                return Err(Error::Unavailable { attempts, elapsed, reason, problem });
            }
            let now = Instant::now();
            self.inner.endpoints.failed(&mut tour, &endpoint, now + PAUSE, seen.is_member_gone(), now);
        }
    }
}

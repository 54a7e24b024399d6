//! One call: the loop that sends a request until it is decided or the deadline has come.
//!
//! Place: between what users call and [`super::transport`]. What is repeated is decided in [`super::retry`], whom to ask
//! in [`super::endpoints`].
//!
//! Invariants: every attempt of a call sends the same bytes and the same idempotency key; a call ends by its deadline;
//! an error says that nothing was done only when no attempt can have done anything.
//!
//! Proven by `super::tests`, against servers that fail in one exact way each.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Client;
use super::endpoints::{Endpoint, Prefer, Tour};
use super::error::Error;
use super::retry::{Safety, Seen, Verdict, judge};
use super::transport::{Broken, Head, Outgoing, collect};
use crate::api::{Problem, ProblemCode, Revision, TimelineId};

pub const TIMELINE: HeaderName = HeaderName::from_static("lifeboat-timeline");
const LEADER: HeaderName = HeaderName::from_static("lifeboat-leader");
const REVISION: HeaderName = HeaderName::from_static("lifeboat-revision");
const LAG_SECONDS: HeaderName = HeaderName::from_static("lifeboat-lag-seconds");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PROBLEM: &str = "application/problem+json";

/// A request with what is known about it.
#[derive(Debug, Clone)]
pub struct Call {
    pub outgoing: Outgoing,
    pub safety: Safety,
    pub prefer: Prefer,
    /// By when it must be decided; none: the client's usual span.
    pub deadline: Option<Duration>,
    /// How long one attempt may take; none: the client's usual span.
    pub attempt_timeout: Option<Duration>,
    /// Whether "the key does not exist" is an answer and no error.
    pub missing_is_an_answer: bool,
    key: Option<String>,
}

impl Call {
    pub fn read(outgoing: Outgoing) -> Call {
        let (safety, prefer) = (Safety::Read, Prefer::Leader);
        let (deadline, attempt_timeout, missing_is_an_answer, key) = (None, None, false, None);
        Call { outgoing, safety, prefer, deadline, attempt_timeout, missing_is_an_answer, key }
    }

    /// A change that must not be done twice and has no key.
    pub fn once(outgoing: Outgoing) -> Call {
        Call { safety: Safety::Once, ..Call::read(outgoing) }
    }

    /// A change that does no harm when it is done twice, and whose fate matters.
    pub fn harmless(outgoing: Outgoing) -> Call {
        Call { safety: Safety::Keyed, ..Call::read(outgoing) }
    }

    /// A write: with a key of its own unless told otherwise.
    pub fn write(mut outgoing: Outgoing, keyed: &Keyed) -> Result<Call, Error> {
        let key = match keyed {
            Keyed::Drawn => new_key(),
            Keyed::Given(key) => key.clone(),
            Keyed::No => return Ok(Call::once(outgoing)),
        };
        let visible = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        let value = HeaderValue::from_str(&key).ok().filter(|_| visible);
        let value =
            value.ok_or_else(|| Error::Usage("an idempotency key is 1 to 255 visible ASCII characters".to_owned()))?;
        outgoing.headers.insert(IDEMPOTENCY_KEY, value);
        Ok(Call { safety: Safety::Keyed, key: Some(key), ..Call::read(outgoing) })
    }

    pub fn deadline(mut self, deadline: Option<Duration>) -> Call {
        self.deadline = deadline;
        self
    }
}

/// How a write is known again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Keyed {
    /// By a key that is drawn for it.
    #[default]
    Drawn,
    /// By this key.
    Given(String),
    /// Not at all.
    No,
}

/// 128 random bits. Never from a seed: two clients that drew the same would get each other's outcomes.
fn new_key() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A whole answer with a status of success.
#[derive(Debug)]
pub struct Reply {
    pub endpoint: Endpoint,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::unreadable(self.endpoint.url(), format!("{error} in {}", excerpt(&self.body))))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &HeaderName) -> Option<T> {
        self.headers.get(name)?.to_str().ok()?.parse().ok()
    }

    /// The newest revision of the member that answered.
    pub fn revision(&self) -> Result<Revision, Error> {
        let revision = self.parsed(&REVISION);
        revision.ok_or_else(|| Error::unreadable(self.endpoint.url(), "no Lifeboat-Revision"))
    }

    /// How old a stale answer may be; none when that is unknown or the answer is not a stale one.
    pub fn lag(&self) -> Option<Duration> {
        let seconds: f64 = self.parsed(&LAG_SECONDS)?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The beginning of a body, for an error's text.
fn excerpt(body: &[u8]) -> String {
    const SHOWN: usize = 120;
    let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    if body.len() > SHOWN { format!("{text:?}…") } else { format!("{text:?}") }
}

/// What is known in the middle of a call.
struct Progress {
    started: Instant,
    attempts: u32,
    /// Whether some attempt may have been done.
    doubt: bool,
    tour: Tour,
    /// Who is on another timeline.
    elsewhere: Vec<Endpoint>,
    last: Option<Seen>,
}

impl Client {
    /// Sends a request until it is decided.
    pub(super) async fn call(&self, call: Call) -> Result<Reply, Error> {
        let started = Instant::now();
        let deadline = started + call.deadline.unwrap_or(self.inner.deadline);
        let (tour, elsewhere) = (Tour::default(), Vec::new());
        let mut progress = Progress { started, attempts: 0, doubt: false, tour, elsewhere, last: None };
        loop {
            let (endpoint, free_from) = self.inner.endpoints.choose(call.prefer, &progress.tour, Instant::now());
            if free_from.max(Instant::now()) >= deadline {
                return Err(give_up(&call, progress));
            }
            tokio::time::sleep_until(free_from).await;
            progress.attempts += 1;
            let until = match call.safety {
                // Whoever stops waiting for it would never learn what became of it.
                Safety::Once => deadline,
                _ => deadline.min(Instant::now() + call.attempt_timeout.unwrap_or(self.inner.attempt_timeout)),
            };
            match self.attempt(&call, &endpoint, until).await {
                Ok(reply) => return Ok(reply),
                Err(seen) => self.after_failure(&call, &mut progress, &endpoint, seen)?,
            }
        }
    }

    /// Sends it once and takes the whole answer.
    async fn attempt(&self, call: &Call, endpoint: &Endpoint, until: Instant) -> Result<Reply, Seen> {
        let start = Instant::now();
        let answered = async {
            let head = self.open_at(&call.outgoing, endpoint).await?;
            let (status, headers) = (head.status, head.headers);
            let body = collect(head.body).await.map_err(Seen::Lost)?;
            if status.is_success() {
                return Ok(Reply { endpoint: endpoint.clone(), status, headers, body });
            }
            let seen = problem_of(status, &headers, &body);
            if call.missing_is_an_answer
                && matches!(&seen, Seen::Problem { problem, .. } if problem.code() == Some(ProblemCode::NotFound))
            {
                return Ok(Reply { endpoint: endpoint.clone(), status, headers, body });
            }
            Err(seen)
        };
        let late = || format!("no answer within {:.1} s", start.elapsed().as_secs_f64());
        match tokio::time::timeout_at(until, answered).await {
            Ok(result) => result.map_err(|seen| at(endpoint, seen)),
            Err(_) => Err(at(endpoint, Seen::Lost(late()))),
        }
    }

    /// Sends it once and takes the beginning of the answer, whatever its status.
    pub(super) async fn open_at(&self, outgoing: &Outgoing, endpoint: &Endpoint) -> Result<Head, Seen> {
        let mut outgoing = outgoing.clone();
        if let Some(timeline) = self.timeline() {
            let value = HeaderValue::try_from(timeline.to_string()).expect("hexadecimal digits are a header value");
            outgoing.headers.insert(TIMELINE, value);
        }
        let head = self.inner.transport.send(endpoint, &outgoing).await.map_err(|broken| match broken {
            Broken::NotSent(why) => Seen::NotSent(why),
            Broken::Lost(why) => Seen::Lost(why),
        })?;
        self.note(&head);
        Ok(head)
    }

    /// The same for an answer that is read as it comes, and only if it is one; what a problem says is read to its end.
    pub(super) async fn open_stream(&self, outgoing: &Outgoing, endpoint: &Endpoint) -> Result<Head, Seen> {
        let head = self.open_at(outgoing, endpoint).await?;
        if head.status.is_success() {
            return Ok(head);
        }
        let body = collect(head.body).await.map_err(Seen::Lost)?;
        Err(problem_of(head.status, &head.headers, &body))
    }

    /// Remembers what the headers of an answer say about the cluster.
    fn note(&self, head: &Head) {
        if head.status.is_server_error() || head.status == StatusCode::MISDIRECTED_REQUEST {
            return;
        }
        let leader = head.headers.get(LEADER).and_then(|value| value.to_str().ok());
        self.inner.endpoints.answered(leader, Instant::now());
        let mut known = self.inner.timeline.lock();
        if known.is_none() {
            *known = timeline_of(&head.headers);
        }
    }

    /// Decides what an attempt that failed means for the call: an error, or another attempt.
    fn after_failure(
        &self,
        call: &Call,
        progress: &mut Progress,
        endpoint: &Endpoint,
        seen: Seen,
    ) -> Result<(), Error> {
        let verdict = judge(call.safety, &seen);
        match verdict {
            Verdict::Refused => return Err(refused(seen, endpoint)),
            Verdict::RefusedThisTime if !progress.doubt => return Err(refused(seen, endpoint)),
            Verdict::RefusedThisTime | Verdict::Unknown => return Err(unknown(call, seen)),
            Verdict::Again { doubt, retry_after, everywhere } => {
                progress.doubt |= doubt;
                let now = Instant::now();
                let pause = {
                    let mut pauses = self.inner.pauses.lock();
                    let rounds = progress.attempts / self.inner.endpoints.given().len().max(1) as u32;
                    let asked = retry_after.map_or(Duration::ZERO, |wanted| pauses.at_least(wanted));
                    pauses.after(rounds).max(asked)
                };
                if everywhere {
                    self.inner.endpoints.all_failed(&mut progress.tour, now + pause);
                } else {
                    let (tour, gone) = (&mut progress.tour, seen.is_member_gone());
                    self.inner.endpoints.failed(tour, endpoint, now + pause, gone, now);
                }
            }
        }
        let code = seen.code();
        if matches!(code, Some(ProblemCode::WrongTimeline | ProblemCode::Fenced)) {
            // Whoever is fenced says where history went on. To follow there is right for who has seen no timeline yet;
            // all others are told, because what they have read and written may be gone there.
            let goes_on = seen.primary();
            self.inner.endpoints.answered(goes_on, Instant::now());
            let follows = goes_on.is_some() && self.timeline().is_none();
            progress.elsewhere.push(endpoint.clone());
            let all = self.inner.endpoints.given().iter().all(|given| progress.elsewhere.contains(given));
            if all && !follows && !progress.doubt {
                return Err(self.wrong_timeline(seen, endpoint));
            }
        }
        progress.last = Some(seen);
        Ok(())
    }

    fn wrong_timeline(&self, seen: Seen, endpoint: &Endpoint) -> Error {
        match (seen, self.timeline()) {
            (Seen::Problem { problem, timeline: other, .. }, Some(known)) => {
                Error::WrongTimeline { known, other, endpoint: endpoint.url().to_owned(), problem }
            }
            (seen, _) => refused(seen, endpoint),
        }
    }
}

fn timeline_of(headers: &HeaderMap) -> Option<TimelineId> {
    headers.get(TIMELINE)?.to_str().ok()?.parse().ok()
}

/// Says who it was.
fn at(endpoint: &Endpoint, seen: Seen) -> Seen {
    match seen {
        Seen::NotSent(why) => Seen::NotSent(format!("{endpoint}: {why}")),
        Seen::Lost(why) => Seen::Lost(format!("{endpoint}: {why}")),
        other => other,
    }
}

/// What an answer that is no success says.
pub(super) fn problem_of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Seen {
    let is_problem = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM.as_bytes()));
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) if is_problem => {
            let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after = seconds.map(Duration::from_secs);
            Seen::Problem { problem: Box::new(problem), retry_after, timeline: timeline_of(headers) }
        }
        _ => Seen::Foreign { status: status.as_u16(), detail: excerpt(body) },
    }
}

fn refused(seen: Seen, endpoint: &Endpoint) -> Error {
    match seen {
        Seen::Problem { problem, .. } => Error::Refused { problem, endpoint: endpoint.url().to_owned() },
        other => Error::unreadable(endpoint.url(), other.reason()),
    }
}

fn unknown(call: &Call, seen: Seen) -> Error {
    Error::Unknown { reason: seen.reason(), problem: seen.problem(), idempotency_key: call.key.clone() }
}

/// The deadline has come.
fn give_up(call: &Call, progress: Progress) -> Error {
    let last = progress.last.unwrap_or_else(|| Seen::NotSent("the deadline had passed already".to_owned()));
    if progress.doubt {
        return unknown(call, last);
    }
    Error::Unavailable {
        attempts: progress.attempts,
        elapsed: progress.started.elapsed(),
        reason: last.reason(),
        problem: last.problem(),
    }
}

//! Watching keys: a stream that goes on at another member when one is gone, and never skips a change in silence.
//!
//! The member sends a line for each event (`GET /v1/watch`, NDJSON). After each line this watcher knows up to which
//! revision it has been told everything; when the stream ends, for whatever reason, it asks another member to continue
//! from there. A member of which nothing is heard for [`SILENT_HEARTBEATS`] heartbeats is left.
//!
//! Invariants: changes come in the order of their revisions, each once; when changes are lost, because the revision to
//! continue from is no longer kept, that is [`WatchError::Compacted`], and the watcher does not go on by itself.
//! [`Watcher::next`] may be dropped at any point without losing an event.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::header::ACCEPT;
use http::{HeaderValue, Method};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Client;
use super::endpoints::{Endpoint, Prefer, Tour};
use super::error::Error;
use super::kv::{Target, milliseconds};
use super::retry::Seen;
use super::transport::Outgoing;
use crate::api::{ChangeEvent, EndReason, Keys, ProblemCode, Retry, Revision, WatchEvent};

/// How often a quiet stream shall tell that it lives, unless told otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After so many heartbeats without a byte a member is left.
const SILENT_HEARTBEATS: u32 = 3;
/// How long no member may be reached before the watcher says so, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest event: a whole transaction with what it replaced, as text.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Why a watch does not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// Changes after `revision` are no longer kept: some may be lost. Read the keys anew, and watch from the revision
    /// of that reading.
    #[error("changes after revision {revision} are no longer kept{}", floor_text(.floor))]
    Compacted {
        /// Up to which revision everything was told.
        revision: Revision,
        /// From where changes are kept, when the member said so.
        floor: Option<Revision>,
    },
    /// The cluster's history does not contain the revision that was reached: it was restored, or another site took over.
    #[error("the history no longer contains revision {revision}: {detail}")]
    Diverged {
        /// Up to which revision everything was told.
        revision: Revision,
        /// What the member said.
        detail: String,
    },
    /// No member could be reached for a while, or the watch was refused. Asking for the next event tries again.
    #[error(transparent)]
    Client(#[from] Error),
}

fn floor_text(floor: &Option<Revision>) -> String {
    floor.map_or_else(String::new, |floor| format!(", only those from {floor} on"))
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// What one transaction changed.
    Change(ChangeEvent),
    /// Everything up to this revision was told. Comes at the beginning of each stream and with each heartbeat.
    Progress {
        /// The revision.
        revision: Revision,
    },
}

/// A watch that is put together.
#[derive(Debug, Clone)]
#[must_use = "nothing is watched before it is started"]
pub struct WatchBuilder {
    client: Client,
    keys: Option<Keys>,
    since: Option<Revision>,
    only: Option<&'static str>,
    previous: bool,
    keys_only: bool,
    heartbeat: Duration,
    patience: Duration,
}

impl Client {
    /// Begins a watch of keys that begin so; an empty prefix: of all.
    pub fn watch(&self, prefix: impl Into<Bytes>) -> WatchBuilder {
        self.watch_keys(Keys::Prefix(prefix.into()))
    }

    /// Begins a watch of these keys.
    pub fn watch_keys(&self, keys: Keys) -> WatchBuilder {
        let keys = match keys {
            Keys::Prefix(prefix) if prefix.is_empty() => None,
            keys => Some(keys),
        };
        WatchBuilder {
            client: self.clone(),
            keys,
            since: None,
            only: None,
            previous: false,
            keys_only: false,
            heartbeat: HEARTBEAT,
            patience: PATIENCE,
        }
    }
}

impl WatchBuilder {
    /// From the first change after this revision; else from now on.
    pub fn since(mut self, revision: Revision) -> WatchBuilder {
        self.since = Some(revision);
        self
    }

    /// Only writes.
    pub fn only_puts(mut self) -> WatchBuilder {
        self.only = Some("put");
        self
    }

    /// Only deletions.
    pub fn only_deletes(mut self) -> WatchBuilder {
        self.only = Some("delete");
        self
    }

    /// With what each change replaced or deleted.
    pub fn previous(mut self) -> WatchBuilder {
        self.previous = true;
        self
    }

    /// Without values.
    pub fn keys_only(mut self) -> WatchBuilder {
        self.keys_only = true;
        self
    }

    /// How often a quiet stream tells that it lives; 1 s to 5 m, 5 s unless told otherwise. A member that is silent for
    /// three of them is left.
    pub fn heartbeat(mut self, heartbeat: Duration) -> WatchBuilder {
        self.heartbeat = heartbeat;
        self
    }

    /// How long no member may be reached before [`Watcher::next`] says so; 60 s unless told otherwise.
    pub fn patience(mut self, patience: Duration) -> WatchBuilder {
        self.patience = patience;
        self
    }

    /// The watcher. It connects when it is asked for the first event.
    pub fn start(self) -> Watcher {
        Watcher { since: self.since, options: self, tour: Tour::default(), trouble: None, lines: None }
    }
}

/// A running watch.
#[derive(Debug)]
pub struct Watcher {
    options: WatchBuilder,
    /// Up to which revision everything was told.
    since: Option<Revision>,
    tour: Tour,
    /// Since when no member could be reached, and how often it was tried.
    trouble: Option<(Instant, u32)>,
    lines: Option<Lines>,
}

/// A stream from one member.
#[derive(Debug)]
struct Lines {
    endpoint: Endpoint,
    body: Incoming,
    received: Vec<u8>,
    /// How much of it was searched for the end of a line.
    searched: usize,
    heard: Instant,
}

impl Lines {
    /// The next line, without its end; none at the end of the stream.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some(at) = self.received[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=self.searched + at).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.received.len();
            if self.received.len() > MAX_LINE_BYTES {
                return Err(format!("an event of more than {MAX_LINE_BYTES} bytes"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error.to_string()),
                Some(Ok(frame)) => {
                    self.heard = Instant::now();
                    if let Some(data) = frame.data_ref() {
                        self.received.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

impl Watcher {
    /// Up to which revision everything was told: where another watch would continue.
    pub fn revision(&self) -> Option<Revision> {
        self.since
    }

    /// The member that is asked at present.
    pub fn endpoint(&self) -> Option<&str> {
        self.lines.as_ref().map(|lines| lines.endpoint.url())
    }

    /// The next thing that is told. Goes on at other members by itself; an error says that something needs a decision.
    pub async fn next(&mut self) -> Result<WatchItem, WatchError> {
        let silence = self.options.heartbeat * SILENT_HEARTBEATS;
        loop {
            let Some(lines) = &mut self.lines else {
                self.open(silence).await?;
                continue;
            };
            let line = match tokio::time::timeout_at(lines.heard + silence, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => {
                    self.leave("the stream was cut".to_owned())?;
                    continue;
                }
                Ok(Err(why)) => {
                    self.leave(why)?;
                    continue;
                }
                Err(_) => {
                    self.leave(format!("nothing was heard for {:.0} s", silence.as_secs_f64()))?;
                    continue;
                }
            };
            if let Some(item) = self.take(&line)? {
                return Ok(item);
            }
        }
    }

    /// All that is told, as a stream. It ends behind its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<WatchItem, WatchError>> + Send + 'static {
        stream::unfold(Some(self), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(item) => Some((Ok(item), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// What a line tells; none when it tells nothing new.
    fn take(&mut self, line: &[u8]) -> Result<Option<WatchItem>, WatchError> {
        let event = match serde_json::from_slice::<WatchEvent>(line) {
            Ok(event) => event,
            Err(error) => {
                self.leave(format!("an event that cannot be read: {error}"))?;
                return Ok(None);
            }
        };
        self.trouble = None;
        self.tour = Tour::default();
        match event {
            // Who continues stands where the last stream ended, whatever the new one says: it must not leave out any.
            WatchEvent::Open { revision } => {
                Ok(Some(WatchItem::Progress { revision: *self.since.get_or_insert(revision) }))
            }
            WatchEvent::Heartbeat { revision } => {
                let reached = self.since.map_or(revision, |since| since.max(revision));
                self.since = Some(reached);
                Ok(Some(WatchItem::Progress { revision: reached }))
            }
            // Told already, before the stream broke.
            WatchEvent::Change(change) if self.since.is_some_and(|since| change.revision <= since) => Ok(None),
            WatchEvent::Change(change) => {
                self.since = Some(change.revision);
                Ok(Some(WatchItem::Change(change)))
            }
            WatchEvent::End(end) => {
                let revision = self.since.unwrap_or(end.revision);
                match end.reason {
                    EndReason::Compacted => {
                        self.lines = None;
                        Err(WatchError::Compacted { revision, floor: end.floor })
                    }
                    EndReason::Diverged => {
                        self.lines = None;
                        Err(WatchError::Diverged { revision, detail: end.detail })
                    }
                    EndReason::Slow => {
                        // Nothing is wrong with the member.
                        self.lines = None;
                        Ok(None)
                    }
                    EndReason::Stopping | EndReason::Lagging | EndReason::Maintenance | EndReason::Unknown => {
                        self.leave(end.detail)?;
                        Ok(None)
                    }
                }
            }
            WatchEvent::Unknown => Ok(None),
        }
    }

    /// Gives up the stream and this member for a while.
    fn leave(&mut self, why: String) -> Result<(), WatchError> {
        let Some(lines) = self.lines.take() else { return Ok(()) };
        self.failed(&lines.endpoint, Seen::Lost(format!("{}: {why}", lines.endpoint)))
    }

    /// Notes that a member was no use. An error when that has been so for too long.
    fn failed(&mut self, endpoint: &Endpoint, seen: Seen) -> Result<(), WatchError> {
        let inner = &self.options.client.inner;
        let (began, attempts) = self.trouble.unwrap_or((Instant::now(), 0));
        self.trouble = Some((began, attempts + 1));
        let rounds = attempts / inner.endpoints.given().len() as u32;
        let pause = {
            let mut pauses = inner.pauses.lock();
            let asked = match &seen {
                Seen::Problem { retry_after: Some(wanted), .. } => pauses.at_least(*wanted),
                _ => Duration::ZERO,
            };
            pauses.after(rounds).max(asked)
        };
        let now = Instant::now();
        inner.endpoints.failed(&mut self.tour, endpoint, now + pause, seen.is_member_gone(), now);
        if began.elapsed() < self.options.patience {
            return Ok(());
        }
        self.trouble = None;
        let (attempts, elapsed, reason) = (attempts + 1, began.elapsed(), seen.reason());
        Err(Error::Unavailable { attempts, elapsed, reason, problem: seen.problem() }.into())
    }

    /// Begins a stream at the member whose turn it is.
    async fn open(&mut self, silence: Duration) -> Result<(), WatchError> {
        let client = self.options.client.clone();
        // Any member tells everything, so the leader is left to those who need it.
        let (endpoint, from) = client.inner.endpoints.choose(Prefer::Any, &self.tour, Instant::now());
        tokio::time::sleep_until(from).await;
        let outgoing = self.request();
        let opened = tokio::time::timeout(silence, client.open_stream(&outgoing, &endpoint));
        let seen = match opened.await {
            Ok(Ok(head)) => {
                let (body, received, searched, heard) = (head.body, Vec::new(), 0, Instant::now());
                self.lines = Some(Lines { endpoint, body, received, searched, heard });
                return Ok(());
            }
            Ok(Err(seen)) => seen,
            Err(_) => Seen::Lost(format!("{endpoint}: no answer within {:.0} s", silence.as_secs_f64())),
        };
        self.judge(&endpoint, seen)
    }

    /// What it means that a stream was not begun.
    fn judge(&mut self, endpoint: &Endpoint, seen: Seen) -> Result<(), WatchError> {
        let url = || endpoint.url().to_owned();
        match seen {
            Seen::Problem { problem, .. } if problem.code() == Some(ProblemCode::Compacted) => {
                Err(WatchError::Compacted { revision: self.since.unwrap_or(0), floor: problem.floor })
            }
            Seen::Problem { problem, .. }
                if problem.retry == Retry::Never && problem.code() != Some(ProblemCode::WrongTimeline) =>
            {
                Err(Error::Refused { problem, endpoint: url() }.into())
            }
            Seen::Foreign { status: ..500, .. } => Err(Error::unreadable(endpoint.url(), seen.reason()).into()),
            seen => self.failed(endpoint, seen),
        }
    }

    fn request(&self) -> Outgoing {
        let options = &self.options;
        let mut target = Target::new("/v1/watch");
        if let Some(keys) = &options.keys {
            target.add_keys(keys);
        }
        if let Some(since) = self.since {
            target.add("since", since.to_string());
        }
        if let Some(only) = options.only {
            target.add("filter", only);
        }
        for (name, wanted) in [("previous", options.previous), ("keys_only", options.keys_only)] {
            if wanted {
                target.add(name, "true");
            }
        }
        target.add("heartbeat", milliseconds(options.heartbeat));
        let mut outgoing = Outgoing::new(Method::GET, target.into_string());
        outgoing.headers.insert(ACCEPT, HeaderValue::from_static("application/x-ndjson"));
        outgoing
    }
}

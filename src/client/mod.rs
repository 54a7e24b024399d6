//! The Rust client of a cluster: reads, writes, transactions, watches, leases, locks, elections, sequences, members.
//!
//! Place: it knows the wire types of `api` and nothing else of this crate; the command line is built on it.
//!
//! ```text
//!   kv  txn  watch  lease  mutex  election  records  cluster      what users call
//!                        │
//!                      call      repeats what is safe to repeat, until the deadline
//!                    ┌───┴────┐
//!   retry: what follows from a failure     endpoints: whom to ask next
//!                        │
//!                    transport   one request on one connection
//! ```
//!
//! Invariants: a write is repeated only under the idempotency key that it was first sent with, or when nobody can have
//! seen it; an outcome that is not known is [`Error::Unknown`] and nothing else; a watch never skips a change without
//! saying so. `docs/client.md` tells users the rest.
//!
//! Proven by `tests` here, against servers that fail in one exact way each, and by `tests/tools/client.rs` against clusters
//! whose leaders are killed.

mod call;
mod cluster;
mod drill;
mod election;
mod endpoints;
mod error;
#[cfg(test)]
mod fake;
mod kv;
mod lease;
mod lines;
mod mutex;
mod records;
mod retry;
mod salvage;
mod snapshot;
mod transport;
mod turn;
mod txn;
mod verify;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex as Guarded;

pub use cluster::HealthCheck;
pub use drill::Drill;
pub use election::{Election, Leadership, Observer};
pub use error::Error;
pub use kv::{Answer, Delete, DeleteMany, Get, List, Put, Wait, Waited};
pub use lease::{LeaseKeeper, LeaseState};
pub use lines::Lines;
pub use mutex::{Mutex, MutexGuard};
pub use records::TakeNumbers;
pub use snapshot::Snapshot;
pub use txn::TxnBuilder;
pub use verify::Verification;
pub use watch::{WatchBuilder, WatchError, WatchItem, Watcher};

use crate::api::TimelineId;
use call::Keyed;
use endpoints::{Endpoint, Endpoints};
use retry::Pauses;
use transport::Transport;

/// The documentation for users; its examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/client.md")]
pub struct Guide;

/// By when a call is decided, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long one attempt may take, unless told otherwise. As long as a member tries itself.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
/// How long it may take to connect, unless told otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of one cluster. Cloning is cheap: clones share connections and what is known about the members.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoints: Endpoints,
    transport: Transport,
    deadline: Duration,
    attempt_timeout: Duration,
    /// Whether writes carry a key when they do not say otherwise.
    idempotent: bool,
    /// The timeline that every request names, once an answer has named one.
    timeline: Guarded<Option<TimelineId>>,
    pauses: Guarded<Pauses>,
}

/// How a client shall be.
#[derive(Debug, Clone)]
pub struct Builder {
    endpoints: Vec<String>,
    deadline: Duration,
    attempt_timeout: Duration,
    connect_timeout: Duration,
    follow_leader: bool,
    idempotent: bool,
    timeline: Option<TimelineId>,
    seed: Option<u64>,
}

impl Client {
    /// Begins a client.
    pub fn builder() -> Builder {
        Builder {
            endpoints: Vec::new(),
            deadline: DEADLINE,
            attempt_timeout: ATTEMPT_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            follow_leader: true,
            idempotent: true,
            timeline: None,
            seed: None,
        }
    }

    /// A client with nothing out of the ordinary.
    pub fn connect<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Result<Client, Error> {
        Client::builder().endpoints(endpoints).build()
    }

    /// How a write is known again when it does not say.
    fn keyed(&self) -> Keyed {
        if self.inner.idempotent { Keyed::Drawn } else { Keyed::No }
    }

    /// A client that asks this one member only and never goes elsewhere. Connections are shared with this one.
    pub fn at(&self, endpoint: &str) -> Result<Client, Error> {
        let endpoints = Endpoints::new(vec![Endpoint::parse(endpoint)?], 0, false);
        let inner = Inner {
            endpoints,
            transport: self.inner.transport.clone(),
            deadline: self.inner.deadline,
            attempt_timeout: self.inner.attempt_timeout,
            idempotent: self.inner.idempotent,
            timeline: Guarded::new(self.timeline()),
            pauses: Guarded::new(Pauses::new(rand::random())),
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The addresses it was given.
    pub fn endpoints(&self) -> Vec<String> {
        self.inner.endpoints.given().iter().map(ToString::to_string).collect()
    }

    /// The timeline that it has seen and names in every request; none before the first answer.
    pub fn timeline(&self) -> Option<TimelineId> {
        *self.inner.timeline.lock()
    }

    /// Goes over to another timeline, after a forced failover or a restore: what was written on the old one and had not
    /// come over is lost. Whoever decides that names the new one; the client never does it by itself.
    pub fn accept_timeline(&self, timeline: TimelineId) {
        *self.inner.timeline.lock() = Some(timeline);
    }
}

impl Builder {
    /// Where members listen for clients: `http://host:port` or `host:port`. At least one; better all.
    #[must_use]
    pub fn endpoints<S: Into<String>>(mut self, endpoints: impl IntoIterator<Item = S>) -> Builder {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// By when a call is decided or fails; 30 s unless told otherwise. Calls may have their own.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Builder {
        self.deadline = deadline;
        self
    }

    /// How long one attempt may take before another member is asked; 6 s unless told otherwise. A write without an
    /// idempotency key is one attempt and has until the deadline.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Builder {
        self.attempt_timeout = timeout;
        self
    }

    /// How long it may take to connect; 2 s unless told otherwise.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// Whether to ask the leader directly where members name one (the default), also when its address was not given.
    #[must_use]
    pub fn follow_leader(mut self, follow: bool) -> Builder {
        self.follow_leader = follow;
        self
    }

    /// Whether writes carry an idempotency key unless a call says otherwise; true by default. The members remember each key
    /// for a day, and only so many: who writes without pause, and can tell what an unknown outcome means, does without.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Builder {
        self.idempotent = idempotent;
        self
    }

    /// The timeline that the members must be on; else it is that of the first answer.
    #[must_use]
    pub fn timeline(mut self, timeline: TimelineId) -> Builder {
        self.timeline = Some(timeline);
        self
    }

    /// Makes the pauses between attempts, and which member is asked first, repeatable. Idempotency keys stay random.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = Some(seed);
        self
    }

    /// The client. Nothing is sent before the first call.
    pub fn build(self) -> Result<Client, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::Usage("no endpoints are given".to_owned()));
        }
        let mut given: Vec<Endpoint> = Vec::new();
        for text in &self.endpoints {
            let endpoint = Endpoint::parse(text)?;
            if !given.contains(&endpoint) {
                given.push(endpoint);
            }
        }
        let mut pauses = Pauses::new(self.seed.unwrap_or_else(rand::random));
        let first = pauses.pick(given.len());
        let inner = Inner {
            endpoints: Endpoints::new(given, first, self.follow_leader),
            transport: Transport::new(self.connect_timeout),
            deadline: self.deadline,
            attempt_timeout: self.attempt_timeout,
            idempotent: self.idempotent,
            timeline: Guarded::new(self.timeline),
            pauses: Guarded::new(pauses),
        };
        Ok(Client { inner: Arc::new(inner) })
    }
}

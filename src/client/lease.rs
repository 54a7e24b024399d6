//! Leases: granting, ending, and a keeper that keeps one alive and knows when it may be lost.
//!
//! The leader counts a lease's time from when it hears of it; the keeper counts from when it *sent* the last keep-alive
//! that was answered, which is earlier. So as long as the keeper says that the lease is alive, it is; when the keeper
//! says that it may be lost, it may still live.
//!
//! The clock is the machine's monotonic one. It stands still while the machine is suspended, so a process that wakes up
//! may believe for a moment in a lease that is gone: whoever must exclude that checks a fencing token (see `mutex`).

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Client;
use super::call::{Call, Keyed};
use super::error::Error;
use super::kv::Target;
use super::transport::Outgoing;
use crate::api::{GrantReply, GrantRequest, Lease, LeaseReply, LeasesReply, ProblemCode, RevokeReply};

/// So many keep-alives are sent in one span.
const KEEPALIVES_PER_TTL: u32 = 3;
/// The pause after a keep-alive that failed, in parts of the span.
const RETRIES_PER_TTL: u32 = 10;

/// What a keeper knows about its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It lives.
    Alive,
    /// No keep-alive was answered for its whole span. It may have ended.
    MayBeLost,
    /// It has ended.
    Lost,
}

impl Client {
    /// Grants a lease. The span is whole seconds, 1 s to 30 days.
    pub async fn grant(&self, ttl: Duration) -> Result<GrantReply, Error> {
        self.grant_with(ttl, None, &Keyed::Drawn).await
    }

    /// Grants a lease with this id.
    pub async fn grant_as(&self, id: u64, ttl: Duration) -> Result<GrantReply, Error> {
        self.grant_with(ttl, Some(id), &Keyed::Drawn).await
    }

    async fn grant_with(&self, ttl: Duration, id: Option<u64>, keyed: &Keyed) -> Result<GrantReply, Error> {
        if ttl.subsec_nanos() != 0 || ttl.is_zero() {
            return Err(Error::Usage("the span of a lease is whole seconds, at least one".to_owned()));
        }
        let body = serde_json::to_vec(&GrantRequest { ttl_seconds: ttl.as_secs(), id })
            .map_err(|error| Error::Usage(error.to_string()))?;
        let outgoing = Outgoing::new(Method::POST, "/v1/leases").json(Bytes::from(body));
        self.write(outgoing, keyed, None).await
    }

    /// Tells that the holder of a lease lives: from now on it lives its whole span again.
    pub async fn keep_alive(&self, lease: u64) -> Result<Lease, Error> {
        self.keep_alive_within(lease, None).await
    }

    async fn keep_alive_within(&self, lease: u64, deadline: Option<Duration>) -> Result<Lease, Error> {
        let outgoing = Outgoing::new(Method::POST, format!("/v1/leases/{lease}/keepalive"));
        let mut call = Call::read(outgoing).deadline(deadline);
        // Several members are asked within the time there is.
        call.attempt_timeout = deadline.map(|deadline| (deadline / 2).min(self.inner.attempt_timeout));
        self.call(call).await?.json()
    }

    /// A lease with the keys that hang on it.
    pub async fn lease(&self, lease: u64) -> Result<LeaseReply, Error> {
        self.call(Call::read(Outgoing::new(Method::GET, format!("/v1/leases/{lease}")))).await?.json()
    }

    /// One page of all leases, behind this id.
    pub async fn leases(&self, after: u64, limit: u64) -> Result<LeasesReply, Error> {
        let mut target = Target::new("/v1/leases");
        target.add("after", after.to_string());
        target.add("limit", limit.to_string());
        self.call(Call::read(Outgoing::new(Method::GET, target.into_string()))).await?.json()
    }

    /// Ends a lease; its keys go with it. None when there is no such lease, which may be because an earlier attempt of
    /// this very call has ended it.
    pub async fn revoke(&self, lease: u64) -> Result<Option<RevokeReply>, Error> {
        let outgoing = Outgoing::new(Method::DELETE, format!("/v1/leases/{lease}"));
        match self.call(Call::harmless(outgoing)).await {
            Ok(reply) => reply.json().map(Some),
            Err(error) if error.is_refused(ProblemCode::UnknownLease) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Grants a lease and keeps it alive until the keeper is dropped.
    pub async fn keep(&self, ttl: Duration) -> Result<LeaseKeeper, Error> {
        let sent = Instant::now();
        let granted = self.grant(ttl).await?;
        Ok(LeaseKeeper::start(self.clone(), granted.id, Duration::from_secs(granted.ttl_seconds), sent))
    }

    /// Keeps a lease alive that exists already, until the keeper is dropped.
    pub async fn keep_existing(&self, lease: u64) -> Result<LeaseKeeper, Error> {
        let sent = Instant::now();
        let kept = self.keep_alive(lease).await?;
        Ok(LeaseKeeper::start(self.clone(), lease, Duration::from_secs(kept.ttl_seconds), sent))
    }
}

/// What the keeper's task tells.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// The lease lives at least until then.
    until: Instant,
    /// A member has said that it is gone.
    gone: bool,
}

impl Known {
    fn state(self) -> LeaseState {
        match self.gone {
            true => LeaseState::Lost,
            false if Instant::now() < self.until => LeaseState::Alive,
            false => LeaseState::MayBeLost,
        }
    }
}

/// Keeps a lease alive, in a task of its own. Dropping it ends the task, not the lease: that ends when its span is over,
/// or at once by [`LeaseKeeper::revoke`].
#[derive(Debug)]
pub struct LeaseKeeper {
    client: Client,
    id: u64,
    ttl: Duration,
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

impl LeaseKeeper {
    fn start(client: Client, id: u64, ttl: Duration, sent: Instant) -> LeaseKeeper {
        let (tell, known) = watch::channel(Known { until: sent + ttl, gone: false });
        let task = tokio::spawn(keep(client.clone(), id, ttl, sent, tell));
        LeaseKeeper { client, id, ttl, known, task }
    }

    /// The lease.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its span.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// What is known about it at this moment.
    pub fn state(&self) -> LeaseState {
        self.known.borrow().state()
    }

    /// Whether it lives for certain.
    pub fn is_alive(&self) -> bool {
        self.state() == LeaseState::Alive
    }

    /// How long it lives for certain; nothing when it may be lost.
    pub fn remaining(&self) -> Duration {
        let known = *self.known.borrow();
        if known.gone { Duration::ZERO } else { known.until.saturating_duration_since(Instant::now()) }
    }

    /// Waits until it is lost or may be lost.
    pub async fn lost(&self) -> LeaseState {
        let mut watched = self.known.clone();
        loop {
            let known = *watched.borrow_and_update();
            let state = known.state();
            if state != LeaseState::Alive {
                return state;
            }
            tokio::select! {
                changed = watched.changed() => {
                    if changed.is_err() {
                        // Nobody keeps it alive any more.
                        tokio::time::sleep_until(known.until).await;
                    }
                }
                () = tokio::time::sleep_until(known.until) => {}
            }
        }
    }

    /// Ends the lease; its keys go with it.
    pub async fn revoke(self) -> Result<(), Error> {
        self.task.abort();
        self.client.revoke(self.id).await.map(|_| ())
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends keep-alives until a member says that the lease is gone.
async fn keep(client: Client, id: u64, ttl: Duration, mut sent: Instant, tell: watch::Sender<Known>) {
    let interval = ttl / KEEPALIVES_PER_TTL;
    loop {
        tokio::time::sleep_until(sent + interval).await;
        loop {
            let began = Instant::now();
            match client.keep_alive_within(id, Some(interval)).await {
                Ok(_) => {
                    sent = began;
                    tell.send_replace(Known { until: sent + ttl, gone: false });
                    break;
                }
                Err(error) if error.is_refused(ProblemCode::UnknownLease) => {
                    tell.send_modify(|known| known.gone = true);
                    return;
                }
                Err(_) => tokio::time::sleep(ttl / RETRIES_PER_TTL).await,
            }
        }
    }
}

//! A lock that one process in the cluster's care holds at a time.
//!
//! What it promises: of all who ask for one name, the cluster lets one hold it, in the order in which they came; who
//! dies loses it when its lease ends. What no lock of this kind can promise: that a holder *notices in time* that it has
//! lost it. A process may be stopped for longer than its lease, wake up, and write to somewhere else before it looks at
//! the clock. So each holder has a number, the fencing token, which is larger than those of all holders before; whatever
//! is written under the lock carries it, and the place that is written to refuses a smaller number than it has seen. In
//! this store that is a comparison in the transaction: [`MutexGuard::fence`].
//!
//! Proven by `tests/tools/client.rs`: mutual exclusion by tokens while leaders are killed.

use std::time::Duration;

use bytes::Bytes;

use super::Client;
use super::error::Error;
use super::turn::{Turn, first_in, prefix_of};
use crate::api::{Compare, CompareOp, CompareTarget, KeyItem, Keys, Revision};

/// The span of a holder's lease, unless told otherwise.
pub(super) const TTL: Duration = Duration::from_secs(10);

/// A lock by its name. Its keys stand under `name/`.
#[derive(Debug, Clone)]
pub struct Mutex {
    client: Client,
    prefix: Bytes,
    ttl: Duration,
    value: Bytes,
}

impl Client {
    /// The lock of this name.
    pub fn mutex(&self, name: impl AsRef<[u8]>) -> Mutex {
        Mutex { client: self.clone(), prefix: prefix_of(name.as_ref()), ttl: TTL, value: Bytes::new() }
    }
}

impl Mutex {
    /// How long a holder that does not answer keeps the lock; 10 s unless told otherwise, whole seconds.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Mutex {
        self.ttl = ttl;
        self
    }

    /// What others read about the holder.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Mutex {
        self.value = value.into();
        self
    }

    async fn enter(&self) -> Result<Turn, Error> {
        Turn::enter(&self.client, &self.prefix, self.value.clone(), self.ttl).await
    }

    /// Waits for the lock. Whoever stops waiting, by dropping this, leaves the line.
    pub async fn lock(&self) -> Result<MutexGuard, Error> {
        let turn = self.enter().await?;
        turn.wait().await?;
        Ok(MutexGuard { turn })
    }

    /// Waits for the lock, at most so long: none when it was not free in time.
    pub async fn lock_within(&self, patience: Duration) -> Result<Option<MutexGuard>, Error> {
        let turn = self.enter().await?;
        match tokio::time::timeout(patience, turn.wait()).await {
            Ok(Ok(())) => Ok(Some(MutexGuard { turn })),
            Ok(Err(error)) => Err(error),
            Err(_) => turn.leave().await.map(|()| None),
        }
    }

    /// Takes the lock if it is free.
    pub async fn try_lock(&self) -> Result<Option<MutexGuard>, Error> {
        let turn = self.enter().await?;
        if turn.is_first().await? {
            return Ok(Some(MutexGuard { turn }));
        }
        turn.leave().await.map(|()| None)
    }

    /// The holder's key: its value, and its create revision, which is the token. None when nobody holds the lock.
    pub async fn holder(&self) -> Result<Option<KeyItem>, Error> {
        first_in(&self.client, &self.prefix).await.map(|(first, _)| first)
    }
}

/// Holds a lock. Dropping it gives the lock up without waiting whether that came through; [`MutexGuard::unlock`] waits.
#[derive(Debug)]
pub struct MutexGuard {
    turn: Turn,
}

impl MutexGuard {
    /// The fencing token: larger than that of every holder before.
    pub fn token(&self) -> Revision {
        self.turn.token()
    }

    /// The key that stands for the holder.
    pub fn key(&self) -> &Bytes {
        self.turn.key()
    }

    /// The lease that the key hangs on.
    pub fn lease(&self) -> u64 {
        self.turn.keeper().id()
    }

    /// A comparison that holds as long as the lock is held: with it in a transaction, nothing is written after the lock
    /// was lost, whatever this process believes.
    pub fn fence(&self) -> Compare {
        fence_of(&self.turn)
    }

    /// Whether it is held for certain at this moment.
    pub fn is_held(&self) -> bool {
        self.turn.keeper().is_alive()
    }

    /// Waits until it is lost or may be lost. Whatever is done under the lock should end then.
    pub async fn lost(&self) {
        self.turn.keeper().lost().await;
    }

    /// Gives it up; the next one can have it when this returns.
    pub async fn unlock(self) -> Result<(), Error> {
        self.turn.leave().await
    }
}

/// Demands that the key of a turn is still the one that was written then.
pub(super) fn fence_of(turn: &Turn) -> Compare {
    Compare {
        keys: Keys::One(turn.key().clone()),
        op: CompareOp::Equal,
        target: CompareTarget::CreateRevision(turn.token()),
    }
}

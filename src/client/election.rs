//! An election: of all who stand for a name, one leads, and everybody can see who.
//!
//! It is a [`Mutex`](super::Mutex) whose holder has a value that others read and watch. What is said there about fencing
//! tokens holds here as well: a leader that was stopped may believe for a moment that it still leads.
//!
//! Proven by `tests/tools/client.rs`, and what fails in between by `tests.rs` here.

use std::time::Duration;

use bytes::Bytes;

use super::Client;
use super::error::Error;
use super::mutex::{TTL, fence_of};
use super::turn::{Turn, first_in, prefix_of};
use super::watch::{WatchError, WatchItem, Watcher};
use crate::api::{Compare, KeyItem, PutOp, Revision, TxnOp};

/// An election by its name. Its keys stand under `name/`.
#[derive(Debug, Clone)]
pub struct Election {
    client: Client,
    prefix: Bytes,
    ttl: Duration,
}

impl Client {
    /// The election of this name.
    pub fn election(&self, name: impl AsRef<[u8]>) -> Election {
        Election { client: self.clone(), prefix: prefix_of(name.as_ref()), ttl: TTL }
    }
}

impl Election {
    /// How long a leader that does not answer leads; 10 s unless told otherwise, whole seconds.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Election {
        self.ttl = ttl;
        self
    }

    /// Stands for it with this value and waits until this one leads.
    pub async fn campaign(&self, value: impl Into<Bytes>) -> Result<Leadership, Error> {
        let turn = Turn::enter(&self.client, &self.prefix, value.into(), self.ttl).await?;
        turn.wait().await?;
        Ok(Leadership { turn })
    }

    /// Who leads: its key with the value, whose create revision is the token. None when nobody does.
    pub async fn leader(&self) -> Result<Option<KeyItem>, Error> {
        first_in(&self.client, &self.prefix).await.map(|(first, _)| first)
    }

    /// Tells who leads, and again each time that changes.
    pub fn observe(&self) -> Observer {
        Observer { election: self.clone(), seen: None, watcher: None, stale: true }
    }
}

/// Leads. Dropping it resigns without waiting whether that came through; [`Leadership::resign`] waits.
#[derive(Debug)]
pub struct Leadership {
    turn: Turn,
}

impl Leadership {
    /// The fencing token: larger than that of every leader before.
    pub fn token(&self) -> Revision {
        self.turn.token()
    }

    /// The key that stands for the leader.
    pub fn key(&self) -> &Bytes {
        self.turn.key()
    }

    /// A comparison that holds as long as this one leads: see [`MutexGuard::fence`](super::MutexGuard::fence).
    pub fn fence(&self) -> Compare {
        fence_of(&self.turn)
    }

    /// Whether it leads for certain at this moment.
    pub fn is_leading(&self) -> bool {
        self.turn.keeper().is_alive()
    }

    /// Waits until it does not lead any more, or may not.
    pub async fn lost(&self) {
        self.turn.keeper().lost().await;
    }

    /// Changes the value that others see. False when it does not lead any more; then nothing is changed.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<bool, Error> {
        let (key, lease) = (self.turn.key().clone(), self.turn.keeper().id());
        let put = TxnOp::Put(PutOp { key, value: value.into(), lease, previous: false });
        let done = self.turn.client().txn().compare(self.fence()).then(put).await?;
        Ok(done.succeeded)
    }

    /// Gives it up; the next one leads when this returns.
    pub async fn resign(self) -> Result<(), Error> {
        self.turn.leave().await
    }
}

/// Follows an election.
#[derive(Debug)]
pub struct Observer {
    election: Election,
    /// Who led when it was told last.
    seen: Option<Option<KeyItem>>,
    watcher: Option<Watcher>,
    /// Something has changed since the leader was read last. Cleared only by a reading that succeeded, so that an error,
    /// or a future that is dropped, costs no change.
    stale: bool,
}

impl Observer {
    /// Who leads: at once the first time, then whenever it is another one or says another value. Leaders that follow each
    /// other quickly may be passed over. May be dropped at any point, and called again after an error.
    pub async fn next(&mut self) -> Result<Option<KeyItem>, WatchError> {
        loop {
            if let Some(watcher) = &mut self.watcher
                && !self.stale
            {
                match watcher.next().await {
                    Ok(WatchItem::Progress { .. }) => continue,
                    Ok(WatchItem::Change(_)) => self.stale = true,
                    Err(WatchError::Compacted { .. }) => {
                        self.watcher = None;
                        self.stale = true;
                    }
                    Err(error) => return Err(error),
                }
            }
            let (leader, revision) = first_in(&self.election.client, &self.election.prefix).await?;
            self.stale = false;
            if self.watcher.is_none() {
                let watch = self.election.client.watch(self.election.prefix.clone());
                self.watcher = Some(watch.since(revision).keys_only().start());
            }
            if self.seen.as_ref() != Some(&leader) {
                self.seen = Some(leader.clone());
                return Ok(leader);
            }
        }
    }
}

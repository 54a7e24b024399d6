//! A place in a queue, as a key: what locks and elections are made of.
//!
//! Everybody who waits writes a key of his own under a common prefix, hanging on a lease of his own. The cluster gives
//! each its create revision, all different, so the keys stand in a line: the lowest has its turn, and everybody else
//! watches only the one before him. Who dies loses his lease, with it his key, and the next one moves up.
//!
//! The create revision is the fencing token. It grows from holder to holder, because whoever comes later writes later.

use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::Client;
use super::error::Error;
use super::lease::LeaseKeeper;
use super::watch::{WatchError, WatchItem};
use crate::api::{Change, KeyItem, Keys, Revision};

/// A place in a queue, given up when it is dropped.
#[derive(Debug)]
pub struct Turn {
    client: Client,
    prefix: Bytes,
    key: Bytes,
    token: Revision,
    /// None once it is given up.
    keeper: Option<LeaseKeeper>,
}

/// Who waits under `name` stands under `name/`.
pub fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The one whose turn it is, with its value.
pub async fn first_in(client: &Client, prefix: &Bytes) -> Result<(Option<KeyItem>, Revision), Error> {
    let (items, revision) = line(client, prefix, false).await?;
    Ok((items.into_iter().min_by_key(|item| item.meta.create_revision), revision))
}

/// Everybody who waits, and the revision at which they were read.
async fn line(client: &Client, prefix: &Bytes, keys_only: bool) -> Result<(Vec<KeyItem>, Revision), Error> {
    let mut list = client.list(prefix.clone());
    if keys_only {
        list = list.keys_only();
    }
    let mut page = list.clone().await?;
    let revision = page.revision;
    let mut items = std::mem::take(&mut page.items);
    while page.more {
        let Some(last) = items.last() else { break };
        page = list.clone().rev(revision).after(last.key.clone()).await?;
        items.append(&mut page.items);
    }
    Ok((items, revision))
}

impl Turn {
    /// Takes a place at the end of the line.
    pub async fn enter(client: &Client, prefix: &Bytes, value: Bytes, ttl: Duration) -> Result<Turn, Error> {
        let keeper = client.keep(ttl).await?;
        let lease = keeper.id();
        // The lease is ours alone, and so is the key.
        let key = Bytes::from([&prefix[..], format!("{lease:016x}").as_bytes()].concat());
        let mut turn = Turn { client: client.clone(), prefix: prefix.clone(), key, token: 0, keeper: Some(keeper) };
        let written = client.put(turn.key.clone(), value).lease(lease).if_absent().await?;
        turn.token = written.create_revision;
        Ok(turn)
    }

    pub fn token(&self) -> Revision {
        self.token
    }

    pub fn key(&self) -> &Bytes {
        &self.key
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn keeper(&self) -> &LeaseKeeper {
        self.keeper.as_ref().expect("the keeper is there until the turn is given up, which consumes it")
    }

    /// The one directly before us, and the revision at which that was so; none when it is our turn.
    async fn before(&self) -> Result<Option<(KeyItem, Revision)>, Error> {
        let (items, revision) = line(&self.client, &self.prefix, true).await?;
        if !items.iter().any(|item| item.key == self.key && item.meta.create_revision == self.token) {
            return Err(Error::LeaseLost { lease: self.keeper().id() });
        }
        let earlier = items.into_iter().filter(|item| item.meta.create_revision < self.token);
        Ok(earlier.max_by_key(|item| item.meta.create_revision).map(|item| (item, revision)))
    }

    /// Whether it is our turn now.
    pub async fn is_first(&self) -> Result<bool, Error> {
        Ok(self.before().await?.is_none() && self.keeper().is_alive())
    }

    /// Waits until it is our turn.
    pub async fn wait(&self) -> Result<(), Error> {
        let keeper = self.keeper();
        loop {
            let Some((before, revision)) = self.before().await? else {
                // The lease was alive a moment ago, or the key would not have been there; from now on it is counted here.
                return if keeper.is_alive() { Ok(()) } else { Err(Error::LeaseLost { lease: keeper.id() }) };
            };
            tokio::select! {
                gone = self.gone(before.key, revision) => gone?,
                _ = keeper.lost() => return Err(Error::LeaseLost { lease: keeper.id() }),
            }
        }
    }

    /// Waits until a key that existed at this revision is deleted, or until it has to be looked at again.
    async fn gone(&self, key: Bytes, revision: Revision) -> Result<(), Error> {
        let mut watcher = self.client.watch_keys(Keys::One(key)).since(revision).only_deletes().keys_only().start();
        loop {
            match watcher.next().await {
                Ok(WatchItem::Change(event)) if event.changes.iter().any(|it| matches!(it, Change::Delete(_))) => {
                    return Ok(());
                }
                Ok(_) => {}
                // The caller reads the line anew.
                Err(WatchError::Compacted { .. } | WatchError::Diverged { .. }) => return Ok(()),
                Err(WatchError::Client(error @ Error::Unavailable { .. })) => {
                    if !self.keeper().is_alive() {
                        return Err(error);
                    }
                }
                Err(WatchError::Client(error)) => return Err(error),
            }
        }
    }

    /// Gives it up: the key is gone when this returns.
    pub async fn leave(mut self) -> Result<(), Error> {
        match self.keeper.take() {
            Some(keeper) => keeper.revoke().await,
            None => Ok(()),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Whoever drops it without leaving (a future that is given up, a panic) should not keep the next one waiting for
        // the whole span. If this does not get through, the span ends it.
        if let Some(keeper) = self.keeper.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let (client, lease) = (self.client.clone(), keeper.id());
            drop(keeper);
            runtime.spawn(async move { client.revoke(lease).await });
        }
    }
}

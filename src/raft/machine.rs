//! openraft's state machine over [`crate::store`].
//!
//! Committed entries arrive as a stream and are applied many at a time; each outcome goes back to its proposer. Before a
//! batch the machine waits until the store has room, that is until the background has sealed: apply itself never blocks
//! and never refuses for room.
//!
//! A snapshot is nothing but a cursor over the history: building one costs nothing, its bytes are read while they are
//! sent. One that is received lies in new segments beside the living ones until `install_snapshot` commits it.

use std::io;

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::watch;

use super::types::{
    RaftLogId, RaftMembership, SnapshotMeta, StoredMembership, TypeConfig, decode_membership, from_raft_entry,
    to_raft_log_id,
};
use crate::model::LogId;
use crate::store::{PreparedInstall, SnapshotReader, Store};

/// At most so many entries are applied in one batch.
const APPLY_BATCH: usize = 512;

/// The content of a snapshot: on its way out, or received and not yet installed.
pub enum SnapshotContent {
    /// A cursor over this member's history.
    Outgoing(Box<SnapshotReader>),
    /// Segments received from the leader.
    Incoming(Box<PreparedInstall>),
}

/// The machine. Cloning gives another handle to the same store.
#[derive(Clone)]
pub struct Machine {
    store: Store,
    /// The last applied index, for those who wait for it.
    applied: watch::Sender<Option<LogId>>,
    /// Changes whenever the background has made room.
    room: watch::Receiver<u64>,
    /// Why the member has failed, once it has: then there will be no more room.
    failure: watch::Receiver<Option<String>>,
}

impl Machine {
    /// A machine over `store`; `room` changes when the background has sealed or flushed something, `failure` when it
    /// cannot any more.
    pub fn new(store: Store, room: watch::Receiver<u64>, failure: watch::Receiver<Option<String>>) -> Machine {
        let (applied, _) = watch::channel(store.applied());
        Machine { store, applied, room, failure }
    }

    /// Tells what is applied, and changes with it.
    pub fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.applied.subscribe()
    }

    async fn wait_for_room(&mut self) -> Result<(), io::Error> {
        loop {
            self.room.borrow_and_update();
            if self.store.has_room() {
                return Ok(());
            }
            tokio::select! {
                changed = self.room.changed() => {
                    changed.map_err(|_| io::Error::other("the background work has stopped"))?;
                }
                failure = self.failure.wait_for(Option::is_some) => {
                    let why = failure.ok().and_then(|why| why.clone()).unwrap_or_default();
                    return Err(io::Error::other(format!("no room to apply: {why}")));
                }
            }
        }
    }

    fn stored_membership(&self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let membership = match self.store.membership() {
            Some((log_id, bytes)) => {
                let membership = decode_membership(&bytes).map_err(invalid)?;
                StoredMembership::new(Some(to_raft_log_id(log_id)), membership)
            }
            None => StoredMembership::new(None, RaftMembership::default()),
        };
        Ok((self.store.applied().map(to_raft_log_id), membership))
    }

    fn snapshot(&self) -> Result<openraft::alias::SnapshotOf<TypeConfig, SnapshotContent>, io::Error> {
        let reader = self.store.snapshot().map_err(io::Error::other)?;
        let meta = reader.meta();
        let last_membership = match &meta.membership {
            Some(record) => {
                let membership = decode_membership(&record.payload).map_err(invalid)?;
                StoredMembership::new(Some(to_raft_log_id(record.log_id)), membership)
            }
            None => StoredMembership::new(None, RaftMembership::default()),
        };
        let meta = SnapshotMeta { last_log_id: meta.applied.map(to_raft_log_id), last_membership };
        Ok(openraft::storage::Snapshot { meta, snapshot: SnapshotContent::Outgoing(Box::new(reader)) })
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotContent;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        self.stored_membership()
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH);
        while let Some(batch) = batches.next().await {
            let mut applying = Vec::with_capacity(batch.len());
            let mut responders = Vec::with_capacity(batch.len());
            for item in batch {
                let (entry, responder) = item?;
                applying.push(from_raft_entry(&entry));
                responders.push(responder);
            }
            self.wait_for_room().await?;
            let outcomes = self.store.apply(&applying).map_err(io::Error::other)?;
            self.applied.send_replace(self.store.applied());
            for (responder, outcome) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(outcome);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotContent) -> Result<(), io::Error> {
        match snapshot {
            SnapshotContent::Incoming(prepared) => {
                let store = self.store.clone();
                let installed = tokio::task::spawn_blocking(move || store.install(*prepared)).await;
                installed.map_err(io::Error::other)?.map_err(io::Error::other)?;
                self.applied.send_replace(self.store.applied());
                Ok(())
            }
            // openraft offers a member its own snapshot at the start; what it covers is applied already.
            SnapshotContent::Outgoing(_) => Ok(()),
        }
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::alias::SnapshotOf<TypeConfig, SnapshotContent>>, io::Error> {
        if self.store.applied().is_none() {
            return Ok(None);
        }
        self.snapshot().map(Some)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = SnapshotContent;

    async fn build_snapshot(&mut self) -> Result<openraft::alias::SnapshotOf<TypeConfig, SnapshotContent>, io::Error> {
        self.snapshot()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::files::sim::SimDisk;
    use crate::index::IndexKind;
    use crate::model::{Entry, EntryKind};
    use crate::store::StoreConfig;

    #[tokio::test]
    async fn apply_does_not_wait_for_a_background_that_has_failed() {
        let config = StoreConfig { tail_bytes: 1, ..StoreConfig::default() };
        let store =
            Store::open(Arc::new(SimDisk::new()), Path::new("/history"), IndexKind::Memory(Arc::default()), config)
                .unwrap();
        let mut index = 0;
        while store.has_room() {
            let log_id = LogId { term: 1, leader: 1, index };
            store.apply(&[Entry { log_id, kind: EntryKind::Blank, payload: bytes::Bytes::new() }]).unwrap();
            index += 1;
        }
        let (_room, room) = watch::channel(0);
        let (failure, failed) = watch::channel(None);
        let mut machine = Machine::new(store, room, failed);
        let waiting = tokio::spawn(async move { machine.wait_for_room().await });
        failure.send_replace(Some("the disk is gone".to_string()));
        let error = waiting.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
    }
}

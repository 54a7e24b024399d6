//! openraft's state machine over [`crate::store`].
//!
//! Committed entries arrive as a stream and are applied many at a time; each outcome goes back to its proposer. Before a
//! batch the machine waits until the store has room, that is until the background has sealed: apply itself never blocks
//! and never refuses for room.
//!
//! A snapshot is nothing but a cursor over the history: building one costs nothing, its bytes are read while they are
//! sent (see [`super::copy`]). One that is received lies in new segments beside the living ones until `install_snapshot` commits it.

use std::io;

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::types::{
    RaftLogId, RaftMembership, SnapshotMeta, StoredMembership, TypeConfig, decode_membership, from_raft_entry,
    to_raft_log_id,
};
use crate::model::command::feature_level_of;
use crate::model::{EntryKind, FEATURE_LEVEL, LogId};
use crate::store::{Head, PreparedInstall, Store};

/// At most so many entries are applied in one batch.
const APPLY_BATCH: usize = 512;

/// The content of a snapshot: on its way out, or received and not yet installed.
pub enum SnapshotContent {
    /// This member's own history, read when it is sent ([`super::copy`]).
    Outgoing,
    /// Segments received from the leader.
    Incoming(Box<Incoming>),
}

/// A received copy on its way through openraft.
///
/// openraft has taken it for the state by the time it is installed, so an install that does not succeed ends the member.
/// Nothing must happen to it in between, however the connection fares that it came by: the permit to receive goes with it.
pub struct Incoming {
    prepared: PreparedInstall,
    permit: OwnedSemaphorePermit,
}

impl Incoming {
    /// A copy, and the permit by which no other one is received until it is installed or dropped.
    pub fn new(prepared: PreparedInstall, permit: OwnedSemaphorePermit) -> Incoming {
        Incoming { prepared, permit }
    }
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
    /// The newest feature level whose commands are applied.
    feature: u64,
}

impl Machine {
    /// A machine over `store`; `room` changes when the background has sealed or flushed something, `failure` when it
    /// cannot any more.
    pub fn new(store: Store, room: watch::Receiver<u64>, failure: watch::Receiver<Option<String>>) -> Machine {
        let (applied, _) = watch::channel(store.applied());
        Machine { store, applied, room, failure, feature: FEATURE_LEVEL }
    }

    /// The same machine, which stops at commands of a newer feature level than this one.
    #[must_use]
    pub fn knowing(self, level: u64) -> Machine {
        Machine { feature: level, ..self }
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
        let meta = snapshot_meta(&self.store.head()).map_err(invalid)?;
        Ok(openraft::storage::Snapshot { meta, snapshot: SnapshotContent::Outgoing })
    }
}

/// What openraft wants to know of a state of the store.
pub(super) fn snapshot_meta(head: &Head) -> Result<SnapshotMeta, String> {
    let last_membership = match &head.membership {
        Some(record) => {
            let membership = decode_membership(&record.payload)?;
            StoredMembership::new(Some(to_raft_log_id(record.log_id)), membership)
        }
        None => StoredMembership::new(None, RaftMembership::default()),
    };
    Ok(SnapshotMeta { last_log_id: head.applied.map(to_raft_log_id), last_membership })
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
                let entry = from_raft_entry(&entry);
                if self.feature < FEATURE_LEVEL
                    && entry.kind == EntryKind::Command
                    && feature_level_of(&entry.payload) > self.feature
                {
                    return Err(invalid(format!("unknown kind of command at {}", entry.log_id.index)));
                }
                applying.push(entry);
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
            SnapshotContent::Incoming(incoming) => {
                let store = self.store.clone();
                let installed = tokio::task::spawn_blocking(move || {
                    let Incoming { prepared, permit } = *incoming;
                    let installed = store.install(prepared);
                    drop(permit);
                    installed
                });
                let installed = installed.await;
                installed.map_err(io::Error::other)?.map_err(io::Error::other)?;
                self.applied.send_replace(self.store.applied());
                Ok(())
            }
            // openraft offers a member its own snapshot at the start; what it covers is applied already.
            SnapshotContent::Outgoing => Ok(()),
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
    use crate::model::{Command, Entry, Request, RequestCommand};
    use crate::raft::types::{Proposal, RaftEntry};
    use crate::store::StoreConfig;

    /// What openraft holds of a copy, wherever that is dropped, keeps others from being received.
    #[tokio::test]
    async fn no_other_copy_is_received_before_one_is_installed() {
        let open = || {
            let kind = IndexKind::Memory(Arc::default());
            Store::open(Arc::new(SimDisk::new()), Path::new("/history"), kind, StoreConfig::default()).unwrap()
        };
        let (from, to) = (open(), open());
        let log_id = LogId { term: 1, leader: 1, index: 0 };
        from.apply(&[Entry { log_id, kind: EntryKind::Blank, payload: bytes::Bytes::new() }]).unwrap();
        let (_room, room) = watch::channel(0);
        let (_failure, failed) = watch::channel(None);
        let mut machine = Machine::new(to.clone(), room, failed);
        let one = Arc::new(tokio::sync::Semaphore::new(1));
        let receive = || {
            let permit = one.clone().try_acquire_owned().unwrap();
            let (mut reader, mut installer) = (from.snapshot().unwrap(), to.begin_install().unwrap());
            while let Some(chunk) = reader.next_chunk().unwrap() {
                installer.push(&chunk).unwrap();
            }
            SnapshotContent::Incoming(Box::new(Incoming::new(installer.finish().unwrap(), permit)))
        };
        let given_up = receive();
        assert_eq!(one.available_permits(), 0);
        drop(given_up);
        assert_eq!(one.available_permits(), 1);
        let meta = snapshot_meta(&from.head()).unwrap();
        machine.install_snapshot(&meta, receive()).await.unwrap();
        assert_eq!((one.available_permits(), to.applied()), (1, Some(log_id)));
        assert_eq!(*machine.applied().borrow(), Some(log_id));
    }

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

    #[tokio::test]
    async fn a_machine_of_an_older_level_stops_at_what_is_newer() {
        let store = || {
            let kind = IndexKind::Memory(Arc::default());
            Store::open(Arc::new(SimDisk::new()), Path::new("/history"), kind, StoreConfig::default()).unwrap()
        };
        let sweep = RequestCommand { time_ms: 1, idempotency: None, request: Request::Sweep { max: 1 } };
        let log_id = |index| to_raft_log_id(LogId { term: 1, leader: 1, index });
        let command = |command: Command| openraft::EntryPayload::Normal(Proposal(command.encode()));
        for (level, applied) in [(0, 0), (1, 1)] {
            let mut machine = Machine::new(store(), watch::channel(0).1, watch::channel(None).1).knowing(level);
            let entries = [command(Command::Write(Default::default())), command(Command::Request(sweep.clone()))];
            for (index, payload) in entries.into_iter().enumerate() {
                let entry = RaftEntry { log_id: log_id(index as u64), payload };
                let done = machine.apply(futures_util::stream::iter([Ok((entry, None))])).await;
                assert_eq!(done.is_ok(), index <= applied, "{done:?}");
            }
            assert_eq!(machine.store.applied().map(|log_id| log_id.index), Some(applied as u64));
        }
    }
}

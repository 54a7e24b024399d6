//! What this member does when another asks: the server's side of [`super::network`].
//!
//! The HTTP edge hands over headers and bodies; every function here begins behind the fence
//! ([`super::fence::Identity::check_request`]), which the edge must have passed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::machine::{Incoming, SnapshotContent};
use super::types::{
    Raft, SnapshotMeta, StoredMembership, decode_membership, from_raft_log_id, from_raft_vote, to_raft_log_id,
    to_raft_vote,
};
use super::wire;
use crate::store::{Installer, PreparedInstall, Store, StoreError};
use crate::wal::Wal;

/// The header of a snapshot is a vote and a membership: never larger.
const MAX_SNAPSHOT_HEADER_BYTES: usize = 16 << 20;

/// Applying what is committed may take so long before a member says where it stands; the leader waits longer.
const APPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a peer's request could not be served.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The message cannot be read.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Raft has stopped.
    #[error("raft has stopped: {0}")]
    Stopped(String),
    /// Another snapshot is being received.
    #[error("another snapshot is being received")]
    Busy,
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves other members.
#[derive(Clone)]
pub struct PeerService {
    raft: Raft,
    store: Store,
    wal: Wal,
    /// One snapshot at a time, until it is installed.
    installing: Arc<Semaphore>,
}

fn stopped(e: impl std::fmt::Display) -> ServiceError {
    ServiceError::Stopped(e.to_string())
}

fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    serde_json::from_slice(body).map_err(|e| ServiceError::Malformed(e.to_string()))
}

fn write_json(message: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(message).expect("messages between members always serialise").into()
}

impl PeerService {
    /// Serves with this member's Raft and store.
    pub fn new(raft: Raft, store: Store, wal: Wal) -> PeerService {
        PeerService { raft, store, wal, installing: Arc::new(Semaphore::new(1)) }
    }

    /// The running Raft, for append streams.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// A vote, or the question whether one would be granted.
    pub async fn vote(&self, body: &[u8], pre_vote: bool) -> Result<Bytes, ServiceError> {
        let request = read_json::<wire::VoteMessage>(body)?.into_raft();
        let answer = if pre_vote { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
        Ok(write_json(&wire::VoteAnswer::from_raft(&answer.map_err(stopped)?)))
    }

    /// A single append (a heartbeat).
    pub async fn append(&self, body: Bytes) -> Result<Bytes, ServiceError> {
        let malformed = |e: &dyn std::fmt::Display| ServiceError::Malformed(e.to_string());
        let frame = wire::take_frame(&mut BytesMut::from(body)).map_err(|e| malformed(&e))?;
        let frame = frame.ok_or_else(|| ServiceError::Malformed("a frame that is cut".into()))?;
        let request = wire::read_append(frame).map_err(ServiceError::Malformed)?;
        let (prev, last) = (request.prev_log_id, request.entries.last().map(|entry| entry.log_id));
        let answer = self.raft.append_entries(request).await.map_err(stopped)?;
        if answer.is_conflict() && prev.is_none() {
            return Err(ServiceError::Malformed("a conflict before the first entry".into()));
        }
        let mut out = Vec::with_capacity(64);
        wire::put_append_answer(&mut out, &answer.into_stream_result(prev, last.or(prev)));
        Ok(out.into())
    }

    /// A hand-over of leadership.
    pub async fn transfer(&self, body: &[u8]) -> Result<Bytes, ServiceError> {
        let message: wire::TransferMessage = read_json(body)?;
        let last = message.last_log_id.map(to_raft_log_id);
        let request = TransferLeaderRequest::new(to_raft_vote(message.from_leader), message.to, last);
        let answer = match self.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => wire::TransferAnswer::Accepted,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                wire::TransferAnswer::VoteChanged { actual: from_raft_vote(&actual) }
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                wire::TransferAnswer::LogNotFlushed { actual: actual.as_ref().map(from_raft_log_id) }
            }
        };
        Ok(write_json(&answer))
    }

    /// Where this member stands, for a leader that is to send it a copy.
    ///
    /// Waits first until what is committed here is applied, as a delta that goes on from an earlier point would carry it
    /// again. More may be committed later on, so this is no promise.
    pub async fn copy_position(&self) -> Result<Bytes, ServiceError> {
        let applied = self.raft.wait(Some(APPLY_TIMEOUT));
        let applied =
            applied.metrics(|metrics| metrics.last_applied >= metrics.local_committed, "all is applied").await;
        if let Err(error) = applied {
            tracing::info!(%error, "a copy begins although not all is applied here that could be");
        }
        let (store, wal) = (self.store.clone(), self.wal.clone());
        let position = tokio::task::spawn_blocking(move || {
            // Without anything durable there is nothing to seal.
            store.delta_position(wal.durable_index().unwrap_or(0))
        });
        Ok(write_json(&position.await.map_err(stopped)??))
    }

    /// A snapshot: its header, then the bytes of the history, as one body.
    pub async fn snapshot<S, E>(&self, mut body: S) -> Result<Bytes, ServiceError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let one_at_a_time = self.installing.clone().try_acquire_owned().map_err(|_| ServiceError::Busy)?;
        let (header, rest) = read_header(&mut body).await?;
        let membership =
            decode_membership(header.membership.to_string().as_bytes()).map_err(ServiceError::Malformed)?;
        let (prepared, one_at_a_time) = self.receive(rest, body, one_at_a_time).await?;
        if prepared.meta().applied != header.last_log_id {
            return Err(ServiceError::Malformed("the snapshot does not end where its header says".into()));
        }
        let meta = SnapshotMeta {
            last_log_id: header.last_log_id.map(to_raft_log_id),
            last_membership: StoredMembership::new(header.membership_log_id.map(to_raft_log_id), membership),
        };
        let incoming = SnapshotContent::Incoming(Box::new(Incoming::new(prepared, one_at_a_time)));
        let snapshot = openraft::storage::Snapshot { meta, snapshot: incoming };
        let answer = self.raft.install_full_snapshot(to_raft_vote(header.vote), snapshot).await.map_err(stopped)?;
        Ok(write_json(&wire::SnapshotAnswer { vote: from_raft_vote(&answer.vote) }))
    }

    /// Writes what arrives to new segments, on a thread of its own, which holds the permit even when nobody waits for it.
    async fn receive<S, E>(
        &self,
        first: Bytes,
        mut body: S,
        permit: OwnedSemaphorePermit,
    ) -> Result<(PreparedInstall, OwnedSemaphorePermit), ServiceError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (tx, mut rx) = tokio::sync::mpsc::channel::<Bytes>(4);
        let store = self.store.clone();
        let writer = tokio::task::spawn_blocking(move || -> Result<_, StoreError> {
            let mut installer: Installer = store.begin_install()?;
            while let Some(chunk) = rx.blocking_recv() {
                installer.push(&chunk)?;
            }
            // A body that was cut lacks the end of the history, which `finish` refuses.
            Ok((installer.finish()?, permit))
        });
        let mut cut = None;
        let mut chunk = Some(first);
        while let Some(bytes) = chunk {
            if tx.send(bytes).await.is_err() {
                break;
            }
            chunk = match body.next().await {
                Some(Ok(bytes)) => Some(bytes),
                Some(Err(e)) => {
                    cut = Some(e.to_string());
                    None
                }
                None => None,
            };
        }
        drop(tx);
        let written = writer.await.map_err(stopped)?;
        match cut {
            Some(why) => Err(ServiceError::Malformed(format!("the snapshot was cut: {why}"))),
            None => Ok(written?),
        }
    }
}

async fn read_header<S, E>(body: &mut S) -> Result<(wire::SnapshotHeader, Bytes), ServiceError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let mut buffer = BytesMut::new();
    loop {
        if buffer.len() >= 4 {
            let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
            if length > MAX_SNAPSHOT_HEADER_BYTES {
                return Err(ServiceError::Malformed(format!("a snapshot header of {length} bytes")));
            }
            if buffer.len() >= 4 + length {
                buffer.advance(4);
                let header = read_json(&buffer.split_to(length))?;
                return Ok((header, buffer.freeze()));
            }
        }
        match body.next().await {
            Some(Ok(chunk)) => buffer.extend_from_slice(&chunk),
            Some(Err(e)) => return Err(ServiceError::Malformed(format!("the snapshot was cut: {e}"))),
            None => return Err(ServiceError::Malformed("the snapshot was cut in its header".into())),
        }
    }
}

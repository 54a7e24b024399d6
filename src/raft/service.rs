//! What this member does when another asks: the server's side of [`super::network`].
//!
//! The HTTP edge hands over headers and bodies; every function here begins behind the fence
//! ([`super::fence::Identity::check_request`]), which the edge must have passed.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::machine::SnapshotContent;
use super::types::{
    Raft, SnapshotMeta, StoredMembership, decode_membership, from_raft_log_id, from_raft_vote, to_raft_log_id,
    to_raft_vote,
};
use super::wire;
use crate::store::{Installer, PreparedInstall, Store, StoreError};

/// The header of a snapshot is a vote and a membership: never larger.
const MAX_SNAPSHOT_HEADER_BYTES: usize = 16 << 20;

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
    /// One snapshot at a time.
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
    pub fn new(raft: Raft, store: Store) -> PeerService {
        PeerService { raft, store, installing: Arc::new(Semaphore::new(1)) }
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

    /// A snapshot: its header, then the bytes of the history, as one body.
    pub async fn snapshot<S, E>(&self, mut body: S) -> Result<Bytes, ServiceError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let _one_at_a_time = self.installing.try_acquire().map_err(|_| ServiceError::Busy)?;
        let (header, rest) = read_header(&mut body).await?;
        let membership =
            decode_membership(header.membership.to_string().as_bytes()).map_err(ServiceError::Malformed)?;
        let prepared = self.receive(rest, body).await?;
        if prepared.meta().applied != header.last_log_id {
            return Err(ServiceError::Malformed("the snapshot does not end where its header says".into()));
        }
        let meta = SnapshotMeta {
            last_log_id: header.last_log_id.map(to_raft_log_id),
            last_membership: StoredMembership::new(header.membership_log_id.map(to_raft_log_id), membership),
        };
        let snapshot = openraft::storage::Snapshot { meta, snapshot: SnapshotContent::Incoming(Box::new(prepared)) };
        let answer = self.raft.install_full_snapshot(to_raft_vote(header.vote), snapshot).await.map_err(stopped)?;
        Ok(write_json(&wire::SnapshotAnswer { vote: from_raft_vote(&answer.vote) }))
    }

    /// Writes what arrives to new segments, on a thread of its own.
    async fn receive<S, E>(&self, first: Bytes, mut body: S) -> Result<PreparedInstall, ServiceError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (tx, mut rx) = tokio::sync::mpsc::channel::<Bytes>(4);
        let store = self.store.clone();
        let writer = tokio::task::spawn_blocking(move || -> Result<PreparedInstall, StoreError> {
            let mut installer: Installer = store.begin_install()?;
            while let Some(chunk) = rx.blocking_recv() {
                installer.push(&chunk)?;
            }
            // A body that was cut lacks the end of the history, which `finish` refuses.
            installer.finish()
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

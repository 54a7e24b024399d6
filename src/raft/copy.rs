//! Copies: how a leader brings a member up to date whose next entries are purged from the log.
//!
//! openraft calls this a snapshot and knows only that it is sent and where it ends. Here the member is asked first where
//! it stands; then it is sent only what it lacks: a delta behind its own history when the chain hashes agree and nothing
//! of what it needs to know is forgotten, the rest of a copy that was cut, or else everything. A program of the first
//! release does not know the question, and gets everything in the form that it knows; while it is there nothing is compacted
//! that this form cannot say.
//!
//! What is sent may be newer than what openraft asked to be sent, as the history has gone on; its header says where it
//! ends, and entries that follow are sent from an earlier point, which does no harm.
//!
//! ```text
//!   leader                                    member
//!   full_snapshot ── copy-position ──────────> seals what it has, says where it ends
//!   Store::copy_for <── position, chain ──────
//!                 ── header, chunks ─────────> service.rs: new segments beside the living ones
//!                 <── vote ─────────────────── openraft installs them
//! ```
//!
//! To a member of another site the bytes are compressed on the thread that reads them, if that member can undo it, and kept
//! to a cap ([`super::link`]).
//!
//! Proven by `tests/mirrors/delta.rs` (bytes, cuts, kill -9) and `store/tests/delta.rs`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{NetSnapshot, RPCOption, RPCTypes};
use openraft::raft::SnapshotResponse;

use super::link::{self, Encoder, Link};
use super::machine::{SnapshotContent, snapshot_meta};
use super::network::{PeerClient, Suspended, path};
use super::peer_http::PeerError;
use super::types::{RaftVote, TypeConfig, encode_membership, from_raft_log_id, from_raft_vote, to_raft_vote};
use super::wire;
use crate::metrics::{CopyMetrics, Counter};
use crate::store::{DeltaRequest, SnapshotReader, Store};

/// Sealing what a member has may take so long.
const POSITION_TIMEOUT: Duration = Duration::from_secs(30);
/// The transfer as a whole has no deadline of its own: it is ended when nothing moves.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What copies are made from, and where they are counted.
#[derive(Debug, Clone)]
pub struct Copies {
    store: Store,
    metrics: CopyMetrics,
}

impl Copies {
    /// Copies of what is in `store`.
    pub fn new(store: Store, metrics: CopyMetrics) -> Copies {
        Copies { store, metrics }
    }

    /// Where copies of a kind, and their bytes, are counted.
    fn counters(&self, delta: bool) -> (Counter, Counter) {
        let CopyMetrics { full, delta: deltas, full_bytes, delta_bytes } = self.metrics.clone();
        if delta { (deltas, delta_bytes) } else { (full, full_bytes) }
    }
}

/// A member does not know the form in which this history has to be sent.
#[derive(Debug, thiserror::Error)]
#[error("a member needs a copy, and its program is too old for one: upgrade it")]
struct TooOld;

impl NetSnapshot<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotContent;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        _asked: openraft::alias::SnapshotOf<TypeConfig, SnapshotContent>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        if self.is_suspended() {
            return Err(RPCError::Unreachable(Unreachable::new(&Suspended)).into());
        }
        let cancel: Pin<&mut _> = std::pin::pin!(cancel);
        tokio::select! {
            sent = self.send_copy(vote) => Ok(sent?),
            closed = cancel => Err(closed.into()),
        }
    }
}

impl PeerClient {
    async fn send_copy(&self, vote: RaftVote) -> Result<SnapshotResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (reader, compressed) = self.reader().await?;
        let delta = reader.from().next_position > 0;
        let (kind, until) = (if delta { "delta" } else { "full" }, reader.meta().applied);
        let (copies, bytes) = self.copies.counters(delta);
        let url = self.url();
        let (from, roughly_bytes) = (reader.from().next_position, reader.len_bytes());
        tracing::info!(peer = %url, kind, from, until = ?until.map(|id| id.index), roughly_bytes, "sending a copy");
        let head = header(vote, &reader).map_err(NetworkError::<TypeConfig>::from_string)?;
        let mut headers = HeaderMap::new();
        if compressed {
            link::name_compression(&mut headers);
        }
        let (body, watch) = stream(head, reader, bytes, self.link.clone(), compressed);
        let send = self.http.post_with(self.target, &url, path::SNAPSHOT, headers, body, TRANSFER_TIMEOUT);
        let idle = self.timeouts.snapshot_idle;
        let answer = tokio::select! {
            answer = send => answer,
            () = watch.stalled(idle) => Err(PeerError::Timeout { url: url.to_string() }),
        };
        let (_, answer) = answer.map_err(|e| self.rpc_error(e, RPCTypes::InstallSnapshot, idle))?;
        let answer: wire::SnapshotAnswer =
            serde_json::from_slice(&answer).map_err(|e| NetworkError::<TypeConfig>::new(&e))?;
        copies.inc();
        Ok(SnapshotResponse::new(to_raft_vote(answer.vote)))
    }

    /// What the peer lacks, as far as that can be told, and whether it takes it compressed.
    async fn reader(&self) -> Result<(SnapshotReader, bool), RPCError<TypeConfig>> {
        let url = self.url();
        let offer = self.link.offers_compression();
        let mut headers = HeaderMap::new();
        if offer {
            link::name_compression(&mut headers);
        }
        let asked = self.http.post_with(self.target, &url, path::COPY_POSITION, headers, "{}", POSITION_TIMEOUT).await;
        let (request, compressed) = match asked {
            Ok((headers, body)) => {
                let request: DeltaRequest =
                    serde_json::from_slice(&body).map_err(|e| NetworkError::<TypeConfig>::new(&e))?;
                (Some(request), offer && link::names_compression(&headers))
            }
            Err(PeerError::Status { status: 404, by_member: true, .. }) => (None, false),
            Err(e) => return Err(self.rpc_error(e, RPCTypes::InstallSnapshot, POSITION_TIMEOUT)),
        };
        let store = self.copies.store.clone();
        let found = tokio::task::spawn_blocking(move || match request {
            Some(request) => store.copy_for(&request).map(Some),
            None => store.snapshot_for_first_release(),
        });
        match found.await {
            Ok(Ok(Some(reader))) => Ok((reader, compressed)),
            Ok(Ok(None)) => {
                tracing::warn!(peer = %url, "{TooOld}");
                Err(RPCError::Unreachable(Unreachable::new(&TooOld)))
            }
            Ok(Err(e)) => Err(RPCError::Network(NetworkError::new(&e))),
            Err(e) => Err(RPCError::Network(NetworkError::new(&e))),
        }
    }
}

/// What stands before the bytes of the history.
fn header(vote: RaftVote, reader: &SnapshotReader) -> Result<Bytes, String> {
    let meta = snapshot_meta(reader.meta())?;
    let membership = encode_membership(meta.last_membership.membership());
    let header = wire::SnapshotHeader {
        vote: from_raft_vote(&vote),
        last_log_id: reader.meta().applied,
        membership_log_id: meta.last_membership.log_id().as_ref().map(from_raft_log_id),
        membership: serde_json::from_slice(&membership).expect("a membership is stored as JSON"),
    };
    let json = serde_json::to_vec(&header).expect("messages between members always serialise");
    let mut head = u32::try_from(json.len()).expect("a membership is small").to_le_bytes().to_vec();
    head.extend_from_slice(&json);
    Ok(head.into())
}

/// Whether a transfer goes on.
struct Progress {
    moved: Arc<tokio::sync::Notify>,
    all_sent: Arc<AtomicBool>,
}

impl Progress {
    /// Ends when nothing has moved for so long. Once all is sent the peer installs it, which takes as long as it takes:
    /// its death closes the connection.
    async fn stalled(&self, idle: Duration) {
        while tokio::time::timeout(idle, self.moved.notified()).await.is_ok() || self.all_sent.load(Ordering::Relaxed) {
        }
    }
}

/// The bytes of a copy, counted before they are compressed. The reader works on a thread of its own; the channel's bound
/// is what keeps it from running ahead of the peer. The cap lets slices pass, and every slice is progress.
fn stream(
    head: Bytes,
    mut reader: SnapshotReader,
    bytes: Counter,
    link: Arc<Link>,
    compressed: bool,
) -> (reqwest::Body, Progress) {
    let (chunks, rx) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(2);
    let counted = link.clone();
    tokio::task::spawn_blocking(move || {
        let wire = || -> io::Result<()> {
            let mut encoder = compressed.then(Encoder::new).transpose()?;
            let mut next = Some(head);
            while let Some(chunk) = next {
                bytes.inc_by(chunk.len() as u64);
                counted.count_payload(chunk.len());
                let wire = match &mut encoder {
                    Some(encoder) => encoder.encode(&chunk)?.into(),
                    None => chunk,
                };
                if chunks.blocking_send(Ok(wire)).is_err() {
                    return Ok(());
                }
                next = reader.next_chunk().map_err(io::Error::other)?;
            }
            Ok(())
        };
        if let Err(e) = wire() {
            // Nobody to tell means that the transfer has ended.
            let _ = chunks.blocking_send(Err(e));
        }
    });
    let progress = Progress { moved: Arc::default(), all_sent: Arc::default() };
    let (moved, all_sent) = (progress.moved.clone(), progress.all_sent.clone());
    let body = futures_util::stream::unfold((rx, Bytes::new()), move |(mut rx, mut chunk)| {
        let (moved, all_sent, link) = (moved.clone(), all_sent.clone(), link.clone());
        async move {
            while chunk.is_empty() {
                match rx.recv().await {
                    Some(Ok(next)) => chunk = next,
                    Some(Err(e)) => return Some((Err(e), (rx, chunk))),
                    None => {
                        all_sent.store(true, Ordering::Relaxed);
                        moved.notify_one();
                        return None;
                    }
                }
            }
            let slice = chunk.split_to(chunk.len().min(link.slice_bytes()));
            link.pass(slice.len()).await;
            moved.notify_one();
            Some((Ok::<_, io::Error>(slice), (rx, chunk)))
        }
    });
    (reqwest::Body::wrap_stream(body), progress)
}

//! Verification: whether every member's files are sound and all hold the same, asked for by a person.
//!
//! The leader coordinates; any other member forwards ([`Inner::begin_verify`]). Two phases:
//!
//! ```text
//!   leader ── scrub, segment by segment ──> every member reads its files from the disk    (store/scrub.rs)
//!   leader ── digest of a range of keys ──> every member digests it at one revision       (store/digest.rs)
//! ```
//!
//! Rules:
//! - One verification at a time on a leader. Every member keeps to `verify_bytes_per_second`, the leader's and its own.
//! - A member whose files are damaged puts itself into quarantine, as whenever it meets damage.
//! - Where digests differ, most of the members decide who is wrong, and the leader's word counts when no side has more.
//!   Whoever is wrong is put into quarantine. When that is the leader itself, the report says which of its answers are in
//!   doubt, and it hands over.
//! - A member that lags is waited for a while; one that cannot be asked is reported as not verified, never as sound.
//!
//! Nothing of it survives a crash but the quarantine. Proven by `tests/mirrors/verify.rs`.

mod ask;
mod run;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::peer::{PeerBody, PeerReply, collect, read_json};
use super::{Inner, Node, NodeError, peer_path};
use crate::api::VerifyLine;
use crate::model::Revision;
use crate::raft::peer_http::PeerError;
use crate::store::ReadError;

pub(super) use ask::Pacer;
pub(super) use ask::{DigestQuestion, QuarantineOrder, ScrubQuestion};

/// Lines that wait for whoever reads them.
const LINES: usize = 64;
/// How long the leader may take to begin.
const BEGIN: std::time::Duration = std::time::Duration::from_secs(5);

/// What a member asks the leader for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct VerifyQuestion {
    rev: Option<Revision>,
}

/// Why a verification does not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyRefused {
    /// The members cannot.
    #[error(transparent)]
    Node(NodeError),
    /// The revision cannot be read any more.
    #[error("revision is below the read floor {floor}")]
    Compacted {
        /// The lowest that can.
        floor: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision is newer than the newest, {current}")]
    Future {
        /// The newest.
        current: Revision,
    },
}

impl VerifyRefused {
    /// As an error of a read; none when it is one of the members.
    pub fn as_read(&self) -> Option<ReadError> {
        match self {
            VerifyRefused::Node(_) => None,
            VerifyRefused::Compacted { floor } => Some(ReadError::Compacted { floor: *floor }),
            VerifyRefused::Future { current } => Some(ReadError::Future { current: *current }),
        }
    }
}

/// A verification that runs: lines of JSON as they come, the last one the report. Dropping it ends the verification.
pub type VerifyLines = mpsc::Receiver<Bytes>;

impl Inner {
    /// Begins a verification when this member leads, else lets the leader begin one.
    pub(super) async fn begin_verify(
        self: &Arc<Self>,
        rev: Option<Revision>,
        forwarded: bool,
    ) -> Result<VerifyLines, VerifyRefused> {
        let refused = VerifyRefused::Node;
        self.check_serves().map_err(refused)?;
        if self.is_stopping() {
            return Err(refused(NodeError::Stopping));
        }
        if !self.is_founded() {
            return Err(refused(NodeError::NotJoined));
        }
        let view = self.view();
        match &view.leader {
            None => Err(refused(self.no_leader())),
            Some(leader) if leader.id == self.id => self.lead_verify(rev),
            Some(_) if forwarded => Err(refused(self.no_leader())),
            Some(leader) => {
                let question = VerifyQuestion { rev };
                let url = self.addresses.get(leader.id).unwrap_or_else(|| leader.peer_url.clone());
                let asked = self.http.post_stream(leader.id, &url, peer_path::VERIFY, &question, BEGIN).await;
                let answer = match asked {
                    Ok(answer) => answer,
                    Err(PeerError::Status { status: 409, body, by_member: true, .. }) => {
                        let malformed = |e: serde_json::Error| NodeError::LeaderUnreachable {
                            url: url.to_string(),
                            detail: e.to_string(),
                        };
                        return Err(serde_json::from_str(&body).unwrap_or_else(|e| refused(malformed(e))));
                    }
                    Err(e) => {
                        let (url, detail) = (url.to_string(), e.to_string());
                        return Err(refused(NodeError::LeaderUnreachable { url, detail }));
                    }
                };
                let (tx, rx) = mpsc::channel(LINES);
                tokio::spawn(async move {
                    use futures_util::StreamExt;
                    let mut stream = std::pin::pin!(answer.bytes_stream());
                    while let Some(Ok(bytes)) = stream.next().await {
                        if tx.send(bytes).await.is_err() {
                            return;
                        }
                    }
                });
                Ok(rx)
            }
        }
    }

    fn lead_verify(self: &Arc<Self>, rev: Option<Revision>) -> Result<VerifyLines, VerifyRefused> {
        let Ok(running) = self.verifying.clone().try_lock_owned() else {
            return Err(VerifyRefused::Node(NodeError::VerifyRunning));
        };
        let (current, floor) = (self.store.revision(), self.store.read_floor());
        match rev {
            Some(rev) if rev > current => return Err(VerifyRefused::Future { current }),
            Some(rev) if rev < floor => return Err(VerifyRefused::Compacted { floor }),
            _ => {}
        }
        let (lines, rx) = mpsc::channel(LINES);
        let inner = self.clone();
        tokio::spawn(async move {
            let to = lines.clone();
            tokio::select! {
                () = run::run(inner, rev, lines) => {}
                // Nobody wants to know any more.
                () = to.closed() => {}
            }
            drop(running);
        });
        Ok(rx)
    }
}

/// A line as it is sent.
fn encode(line: &VerifyLine) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("reports have nothing that JSON cannot hold");
    text.push(b'\n');
    text.into()
}

impl Node {
    /// Verifies all members, at a revision or the newest.
    pub async fn verify(&self, rev: Option<Revision>) -> Result<VerifyLines, VerifyRefused> {
        let inner = self.0.clone();
        let begun = self.0.background.handle.spawn(async move { inner.begin_verify(rev, false).await });
        begun.await.map_err(|_| VerifyRefused::Node(NodeError::Stopping))?
    }

    /// Verifies for another member: the headers and the lines, or the refusal.
    pub async fn serve_verify(
        &self,
        headers: &http::HeaderMap,
        body: PeerBody,
    ) -> Result<(http::HeaderMap, PeerBody), Box<PeerReply>> {
        let own = self.0.http.identity().headers(None);
        let begun = async {
            self.0.check_peer(headers)?;
            let question: VerifyQuestion = read_json(&collect(body).await?)?;
            let begun = self.0.begin_verify(question.rev, true).await;
            begun.map_err(|refused| {
                let words = serde_json::to_string(&refused).expect("messages between members always serialise");
                (http::StatusCode::CONFLICT, words)
            })
        };
        match begun.await {
            Ok(lines) => {
                let lines =
                    futures_util::stream::unfold(
                        lines,
                        |mut lines| async move { Some((Ok(lines.recv().await?), lines)) },
                    );
                Ok((own, Box::pin(lines)))
            }
            Err((status, why)) => Err(Box::new(PeerReply { status, headers: own, body: why.into() })),
        }
    }
}

//! What a verification asks of one member, and what that member does: the same whether it is the leader itself or another.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{MemberId, Revision};
use crate::node::priority::in_background;
use crate::node::quarantine::Damage;
use crate::node::{Inner, peer_path};
use crate::raft::peer_http::PeerError;
use crate::store::{ContentDigest, DigestRange, KeyDigest, ReadError, StoreError};

/// How long a member may take for a segment, or a range: they work slowly on purpose.
const STEP: Duration = Duration::from_secs(3600);
/// How long a member waits for itself to have applied the revision.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Why work that takes long was ended.
const STOPPING: &str = "the member is stopping";

/// Asks for a step of a scrub.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::node) struct ScrubQuestion {
    /// From this position on.
    pub from: u64,
    /// Not faster than this; 0 for as fast as it goes.
    pub bytes_per_second: u64,
}

/// What a step of a scrub came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::node) enum ScrubAnswer {
    /// The segment is sound.
    Sound {
        /// Where the next step begins.
        next: Option<u64>,
        /// Bytes read.
        bytes: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// Something is damaged.
    Damaged(Damage),
    /// It could not be read.
    Failed(String),
}

/// Asks for the digest of a range, or of each key in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::node) struct DigestQuestion {
    /// At this revision.
    pub revision: Revision,
    /// Behind this key, in base64, its key space in front.
    pub after: Option<String>,
    /// Up to this key.
    pub upto: Option<String>,
    /// At most so many keys.
    pub max_keys: u64,
    /// And about so many bytes.
    pub max_bytes: u64,
    /// Each key by itself.
    pub list: bool,
    /// Not faster than this; 0 for as fast as it goes.
    pub bytes_per_second: u64,
}

/// What a member holds in a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::node) enum DigestAnswer {
    /// Of all of it.
    All {
        /// In base64.
        digest: String,
        /// How many keys.
        keys: u64,
        /// How many bytes.
        bytes: u64,
        /// The last key that was looked at, when the bounds ended it.
        last: Option<String>,
    },
    /// Of each key: the key, its hash, and when it was written.
    Each(Vec<(String, String, Revision)>),
    /// The revision has not come here.
    Behind {
        /// What has.
        revision: Revision,
    },
    /// The revision is below the read floor.
    Compacted {
        /// Which is this.
        floor: Revision,
    },
    /// What should be read is damaged.
    Damaged(Damage),
    /// It could not be read.
    Failed(String),
}

/// Tells a member that it is wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::node) struct QuarantineOrder {
    /// In what.
    pub why: Damage,
}

/// Why a member could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum Unasked {
    /// Its program does not know the question.
    OldProgram,
    /// It is in quarantine.
    Quarantined(String),
    /// Anything else.
    Unreachable(String),
}

pub(super) fn text(key: &Bytes) -> String {
    BASE64.encode(key)
}

pub(super) fn bytes(text: &str) -> Option<Bytes> {
    BASE64.decode(text).ok().map(Bytes::from)
}

/// Keeps to a rate by sleeping. For threads that may block.
pub(in crate::node) struct Pacer {
    rate: u64,
    began: Instant,
    bytes: u64,
}

impl Pacer {
    /// The slower of two rates, of which 0 is none.
    pub(in crate::node) fn new(asked: u64, own: u64) -> Pacer {
        let rate = [asked, own].into_iter().filter(|rate| *rate > 0).min().unwrap_or(0);
        Pacer { rate, began: Instant::now(), bytes: 0 }
    }

    pub(in crate::node) fn took(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.rate > 0 {
            let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
    }
}

impl Inner {
    /// Whether work that takes long goes on.
    fn go_on(&self) -> ControlFlow<()> {
        if self.is_stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Does a step of a scrub here.
    pub(in crate::node) async fn scrub_step(self: &Arc<Self>, question: ScrubQuestion) -> ScrubAnswer {
        let (inner, mut pacer) = (self.clone(), Pacer::new(question.bytes_per_second, self.verify_bytes_per_second));
        let step = in_background("scrub", move || {
            inner.store.scrub(question.from, &mut |bytes| {
                pacer.took(bytes);
                inner.go_on()
            })
        });
        match step.await {
            Ok(Ok(step)) if step.ended_early => ScrubAnswer::Failed(STOPPING.into()),
            Ok(Ok(step)) => ScrubAnswer::Sound { next: step.next, bytes: step.bytes, left: step.left },
            Ok(Err(error @ StoreError::Corrupt { .. })) => ScrubAnswer::Damaged(self.damage_of(&error)),
            Ok(Err(error)) => ScrubAnswer::Failed(error.to_string()),
            Err(ended) => ScrubAnswer::Failed(ended),
        }
    }

    /// What the quarantine says of damage that was just met, or the error when there is none.
    fn damage_of(&self, error: &StoreError) -> Damage {
        match (self.quarantined(), error) {
            (Some(quarantine), _) => quarantine.why,
            (None, StoreError::Corrupt { file, offset, what }) => {
                Damage { file: Some(file.clone()), offset: Some(*offset), ..Damage::said(what.clone()) }
            }
            (None, error) => Damage::said(error.to_string()),
        }
    }

    /// Digests a range here.
    pub(in crate::node) async fn digest_range(self: &Arc<Self>, question: DigestQuestion) -> DigestAnswer {
        if !self.wait_revision(question.revision).await {
            return DigestAnswer::Behind { revision: self.store.revision() };
        }
        let (inner, mut pacer) = (self.clone(), Pacer::new(question.bytes_per_second, self.verify_bytes_per_second));
        let digested = in_background("digest", move || {
            let DigestQuestion { revision, after, upto, max_keys, max_bytes, list, .. } = question;
            let range =
                DigestRange { after: after.and_then(|key| bytes(&key)), upto: upto.and_then(|key| bytes(&key)) };
            if range.after.is_none() {
                // What a scrub or a reader has brought into memory must not stand for the disk.
                inner.store.forget_cached()?;
            }
            if list {
                let keys =
                    inner.store.digest_keys(revision, &range, usize::try_from(max_keys).unwrap_or(usize::MAX))?;
                let each = keys
                    .into_iter()
                    .map(|KeyDigest { key, hash, mod_revision }| (text(&key), BASE64.encode(hash), mod_revision));
                return Ok(DigestAnswer::Each(each.collect()));
            }
            let found = inner.store.digest(revision, &range, max_keys, max_bytes, &mut |bytes| {
                pacer.took(bytes);
                inner.go_on()
            })?;
            let Some(ContentDigest { digest, keys, bytes, last }) = found else {
                return Ok(DigestAnswer::Failed(STOPPING.into()));
            };
            Ok(DigestAnswer::All { digest: BASE64.encode(digest), keys, bytes, last: last.map(|key| text(&key)) })
        });
        match digested.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(ReadError::Compacted { floor })) => DigestAnswer::Compacted { floor },
            Ok(Err(ReadError::Future { current })) => DigestAnswer::Behind { revision: current },
            Ok(Err(ReadError::Store(error @ StoreError::Corrupt { .. }))) => {
                DigestAnswer::Damaged(self.damage_of(&error))
            }
            Ok(Err(error)) => DigestAnswer::Failed(error.to_string()),
            Err(ended) => DigestAnswer::Failed(ended),
        }
    }

    /// Waits a while until a revision is applied here.
    async fn wait_revision(&self, revision: Revision) -> bool {
        let mut applied = self.applied.clone();
        let there = applied.wait_for(|_| self.store.revision() >= revision);
        matches!(tokio::time::timeout(CATCH_UP, there).await, Ok(Ok(_)))
    }

    /// The leader says that this member is wrong.
    pub(in crate::node) fn ordered_into_quarantine(
        self: &Arc<Self>,
        sender: MemberId,
        order: QuarantineOrder,
    ) -> Result<(), String> {
        match &self.view().leader {
            Some(leader) if leader.id == sender => {
                self.quarantine(order.why);
                Ok(())
            }
            _ => Err("only the leader says who is wrong".into()),
        }
    }

    /// Asks a member, which may be this one.
    pub(super) async fn ask_scrub(
        self: &Arc<Self>,
        id: MemberId,
        question: ScrubQuestion,
    ) -> Result<ScrubAnswer, Unasked> {
        if id == self.id {
            return Ok(self.scrub_step(question).await);
        }
        self.ask_verified(id, peer_path::SCRUB, &question).await
    }

    /// Asks a member, which may be this one.
    pub(super) async fn ask_digest(
        self: &Arc<Self>,
        id: MemberId,
        question: DigestQuestion,
    ) -> Result<DigestAnswer, Unasked> {
        if id == self.id {
            return Ok(self.digest_range(question).await);
        }
        self.ask_verified(id, peer_path::DIGEST, &question).await
    }

    pub(in crate::node) async fn order_quarantine(&self, id: MemberId, why: Damage) -> Result<(), Unasked> {
        self.ask_verified(id, peer_path::QUARANTINE, &QuarantineOrder { why }).await
    }

    async fn ask_verified<A: serde::de::DeserializeOwned>(
        &self,
        id: MemberId,
        path: &str,
        question: &impl Serialize,
    ) -> Result<A, Unasked> {
        let url = self.addresses.get(id).unwrap_or_default();
        self.http.post_json(id, &url, path, question, STEP).await.map_err(|error| match error {
            PeerError::Status { status: 404, by_member: true, .. } => Unasked::OldProgram,
            PeerError::Status { status: 503, by_member: true, body, .. } => {
                match serde_json::from_str::<crate::node::quarantine::QuarantineAnswer>(&body) {
                    Ok(answer) => Unasked::Quarantined(answer.quarantined.why.to_string()),
                    Err(_) => Unasked::Unreachable(body),
                }
            }
            error => Unasked::Unreachable(error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(asked: u64, own: u64) -> Duration {
        let began = Instant::now();
        let mut pacer = Pacer::new(asked, own);
        for _ in 0..4 {
            pacer.took(1000);
        }
        began.elapsed()
    }

    #[test]
    fn the_slower_of_two_rates_is_kept_and_0_is_none() {
        let due = Duration::from_millis(40);
        for (asked, own) in [(100_000, 0), (0, 100_000), (100_000, 100_000_000), (100_000_000, 100_000)] {
            assert!(took(asked, own) >= due, "{asked}, {own}");
        }
        // It would be over an hour if 0 were a rate of 1.
        assert!(took(0, 0) < Duration::from_secs(60));
    }
}

//! The fence in front of Raft: who may speak to whom.
//!
//! Every request between members carries (format version, cluster, timeline, sender, receiver), and every reply carries
//! the same of the member that answers. They are checked *before* openraft sees anything, in both directions, because
//! openraft fences nothing by itself: one heartbeat of a member of a lost branch of history is enough to destroy
//! acknowledged data. A refusal carries no vote. Only the handshake of a member that joins is exempt.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::model::{ClusterId, FEATURE_LEVEL, MemberId, TimelineId, format_member_id, parse_member_id};

/// The version of the messages between members.
pub const PEER_FORMAT: u32 = 1;

const FORMAT: HeaderName = HeaderName::from_static("lifeboat-format");
const CLUSTER: HeaderName = HeaderName::from_static("lifeboat-cluster");
const TIMELINE: HeaderName = HeaderName::from_static("lifeboat-timeline");
const FROM: HeaderName = HeaderName::from_static("lifeboat-from");
const TO: HeaderName = HeaderName::from_static("lifeboat-to");
const ROOM: HeaderName = HeaderName::from_static("lifeboat-room");
const SEALED: HeaderName = HeaderName::from_static("lifeboat-sealed");
const FEATURE: HeaderName = HeaderName::from_static("lifeboat-feature");

/// Who this member is among its peers.
#[derive(Debug)]
pub struct Identity {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    timeline: TimelineId,
    /// Nothing of another member is believed any more: this one is fenced, or about to begin a timeline.
    fenced: CancellationToken,
    /// Counts the messages of other timelines that were met.
    strangers: AtomicU64,
    refusal: Mutex<Option<Refusal>>,
    /// What each member said of itself last, since this process started.
    said: Mutex<BTreeMap<MemberId, Said>>,
    /// Whether this member is short of disk room.
    short: AtomicBool,
    /// The position after the last sealed frame of this member.
    sealed: AtomicU64,
    /// The newest feature level that this member knows.
    feature: u64,
}

/// What a member says of itself in the headers of its messages.
#[derive(Debug, Clone, Copy)]
struct Said {
    at: Instant,
    feature: u64,
    short: bool,
    sealed: u64,
}

/// The last time that a message was refused, by this member or by another.
#[derive(Debug)]
struct Refusal {
    at: Instant,
    logged_at: Instant,
    why: String,
}

/// A refusal is logged at most so often.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// For so long a refusal is worth telling to whoever asks why this member is not ready.
const RECENT: Duration = Duration::from_secs(5);

/// Why a message of another member was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FenceError {
    /// A header is missing or malformed.
    #[error("the header {header} is missing or malformed")]
    Header {
        /// Which one.
        header: &'static str,
    },
    /// The sender speaks another version.
    #[error("peer format {theirs} is not {PEER_FORMAT}")]
    Format {
        /// The sender's version.
        theirs: u32,
    },
    /// The sender belongs to another cluster.
    #[error("the message belongs to cluster {theirs}, this member to {ours}")]
    Cluster {
        /// The sender's cluster.
        theirs: ClusterId,
        /// This member's.
        ours: ClusterId,
    },
    /// The sender is on another timeline.
    #[error("the message belongs to timeline {theirs}, this member to {ours}")]
    Timeline {
        /// The sender's timeline.
        theirs: TimelineId,
        /// This member's.
        ours: TimelineId,
    },
    /// This member takes part in nothing any more.
    #[error("this member is fenced")]
    Fenced,
    /// The message is for a member that does not live here (any more).
    #[error("the message is for member {}, this is {}", format_member_id(*.theirs), format_member_id(*.ours))]
    Receiver {
        /// Whom the sender meant.
        theirs: MemberId,
        /// This member.
        ours: MemberId,
    },
}

impl Identity {
    /// The identity of a member that belongs to a cluster.
    pub fn new(member: MemberId, cluster: ClusterId, timeline: TimelineId) -> Identity {
        Identity {
            member,
            cluster,
            timeline,
            fenced: CancellationToken::new(),
            strangers: AtomicU64::new(0),
            refusal: Mutex::default(),
            said: Mutex::default(),
            short: AtomicBool::new(false),
            sealed: AtomicU64::new(0),
            feature: FEATURE_LEVEL,
        }
    }

    /// The same member, which knows no newer feature level than this one.
    #[must_use]
    pub fn knowing(self, level: u64) -> Identity {
        Identity { feature: level.min(FEATURE_LEVEL), ..self }
    }

    /// The timeline this member is on.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Believes no message of another member any more, in neither direction, until the member is opened anew.
    pub fn fence(&self) {
        self.fenced.cancel();
    }

    /// Returns when no message of another member is believed any more: what is read from one over a long time must end.
    pub async fn is_fenced(&self) {
        self.fenced.cancelled().await;
    }

    /// How many messages of other timelines were met, by this member or by the one that it asked.
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// A message of another timeline was met.
    pub fn note_stranger(&self) {
        self.strangers.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a message was refused, here or by the member it was for: people must be able to see why members do not
    /// speak to each other.
    pub fn note_refusal(&self, why: String) {
        let mut refusal = self.refusal.lock();
        let now = Instant::now();
        let logged_at = match &*refusal {
            Some(last) if last.why == why && now - last.logged_at < LOG_EVERY => last.logged_at,
            _ => {
                tracing::warn!(why, "a message between members was refused");
                now
            }
        };
        *refusal = Some(Refusal { at: now, logged_at, why });
    }

    /// Why a message was refused in the last seconds.
    pub fn recent_refusal(&self) -> Option<String> {
        let refusal = self.refusal.lock();
        refusal.as_ref().filter(|refusal| refusal.at.elapsed() < RECENT).map(|refusal| refusal.why.clone())
    }

    /// The headers that go with every message and every reply; `to` is the receiver of a request.
    pub fn headers(&self, to: Option<MemberId>) -> HeaderMap {
        let value = |text: String| HeaderValue::from_str(&text).expect("hexadecimal digits are a valid header");
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(FORMAT, HeaderValue::from(PEER_FORMAT));
        // The first release does not say, and neither does who passes for it.
        if self.feature > 0 {
            headers.insert(FEATURE, HeaderValue::from(self.feature));
        }
        headers.insert(SEALED, HeaderValue::from(self.sealed.load(Ordering::Relaxed)));
        if self.is_short() {
            headers.insert(ROOM, HeaderValue::from_static("short"));
        }
        headers.insert(CLUSTER, value(self.cluster.to_string()));
        headers.insert(TIMELINE, value(self.timeline().to_string()));
        headers.insert(FROM, value(format_member_id(self.member)));
        if let Some(to) = to {
            headers.insert(TO, value(format_member_id(to)));
        }
        headers
    }

    /// Checks a request; gives its sender.
    pub fn check_request(&self, headers: &HeaderMap) -> Result<MemberId, FenceError> {
        let sender = self.check(headers)?;
        let to = header(headers, &TO).and_then(parse_member_id).ok_or(FenceError::Header { header: "lifeboat-to" })?;
        if to != self.member {
            return Err(FenceError::Receiver { theirs: to, ours: self.member });
        }
        Ok(sender)
    }

    /// Checks a reply of `expected`.
    pub fn check_reply(&self, headers: &HeaderMap, expected: MemberId) -> Result<(), FenceError> {
        let sender = self.check(headers)?;
        if sender != expected {
            return Err(FenceError::Receiver { theirs: expected, ours: sender });
        }
        Ok(())
    }

    fn check(&self, headers: &HeaderMap) -> Result<MemberId, FenceError> {
        let format = header(headers, &FORMAT).and_then(|text| text.parse().ok());
        let theirs = format.ok_or(FenceError::Header { header: "lifeboat-format" })?;
        if theirs != PEER_FORMAT {
            return Err(FenceError::Format { theirs });
        }
        let cluster = header(headers, &CLUSTER).and_then(|text| text.parse().ok());
        let theirs = cluster.ok_or(FenceError::Header { header: "lifeboat-cluster" })?;
        if theirs != self.cluster {
            return Err(FenceError::Cluster { theirs, ours: self.cluster });
        }
        let timeline = header(headers, &TIMELINE).and_then(|text| text.parse().ok());
        let theirs = timeline.ok_or(FenceError::Header { header: "lifeboat-timeline" })?;
        let ours = self.timeline();
        if theirs != ours {
            self.note_stranger();
            return Err(FenceError::Timeline { theirs, ours });
        }
        if self.fenced.is_cancelled() {
            return Err(FenceError::Fenced);
        }
        let from = header(headers, &FROM).and_then(parse_member_id);
        let from = from.ok_or(FenceError::Header { header: "lifeboat-from" })?;
        // The first release does not say.
        let feature = header(headers, &FEATURE).and_then(|text| text.parse().ok()).unwrap_or(0);
        let short = header(headers, &ROOM) == Some("short");
        let sealed = header(headers, &SEALED).and_then(|text| text.parse().ok()).unwrap_or(0);
        self.said.lock().insert(from, Said { at: Instant::now(), feature, short, sealed });
        Ok(from)
    }

    /// The newest feature level that a member knows, when it has spoken to this one.
    pub fn feature_of(&self, member: MemberId) -> Option<u64> {
        if member == self.member {
            return Some(self.feature);
        }
        self.said.lock().get(&member).map(|said| said.feature)
    }

    /// Says in every message from now on where the sealed history of this member ends. What is sealed survives a crash,
    /// so the member can always go on from there.
    pub fn set_sealed(&self, next_position: u64) {
        self.sealed.store(next_position, Ordering::Relaxed);
    }

    /// Where the sealed history of a member ends, or did when it spoke last; none when it has not spoken to this process.
    pub fn sealed_of(&self, member: MemberId) -> Option<u64> {
        if member == self.member {
            return Some(self.sealed.load(Ordering::Relaxed));
        }
        self.said.lock().get(&member).map(|said| said.sealed)
    }

    /// Says in every message from now on whether this member is short of disk room.
    pub fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Relaxed);
    }

    /// Whether this member is short of disk room.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether a member has said in the last seconds that it is short of disk room.
    pub fn said_short(&self, member: MemberId) -> bool {
        self.said.lock().get(&member).is_some_and(|said| said.short && said.at.elapsed() < RECENT)
    }
}

/// Whether a reply comes from a member, be it the right one or not.
pub fn names_a_member(headers: &HeaderMap) -> bool {
    header(headers, &FROM).and_then(parse_member_id).is_some()
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::new_random_id;

    #[test]
    fn only_the_same_cluster_timeline_and_receiver_pass() {
        let (cluster, timeline) = (new_random_id(), new_random_id());
        let us = Identity::new(1, cluster, timeline);
        let peer = Identity::new(2, cluster, timeline);
        assert_eq!(us.check_request(&peer.headers(Some(1))), Ok(2));
        assert_eq!(us.check_reply(&peer.headers(None), 2), Ok(()));
        assert_eq!(us.check_request(&peer.headers(None)), Err(FenceError::Header { header: "lifeboat-to" }));
        assert_eq!(us.check_request(&peer.headers(Some(3))), Err(FenceError::Receiver { theirs: 3, ours: 1 }));
        assert!(matches!(us.check_reply(&peer.headers(None), 3), Err(FenceError::Receiver { .. })));
        assert!(names_a_member(&peer.headers(None)) && !names_a_member(&HeaderMap::new()));

        let other_cluster = Identity::new(2, new_random_id(), timeline);
        assert!(matches!(us.check_request(&other_cluster.headers(Some(1))), Err(FenceError::Cluster { .. })));
        let other_timeline = Identity::new(2, cluster, new_random_id());
        assert!(matches!(us.check_request(&other_timeline.headers(Some(1))), Err(FenceError::Timeline { .. })));
        assert!(matches!(us.check_reply(&other_timeline.headers(None), 2), Err(FenceError::Timeline { .. })));

        let mut newer = peer.headers(Some(1));
        newer.insert(FORMAT, HeaderValue::from(PEER_FORMAT + 1));
        assert_eq!(us.check_request(&newer), Err(FenceError::Format { theirs: PEER_FORMAT + 1 }));
        for missing in [FORMAT, CLUSTER, TIMELINE, FROM, TO] {
            let mut headers = peer.headers(Some(1));
            headers.remove(&missing);
            assert!(matches!(us.check_request(&headers), Err(FenceError::Header { .. })), "{missing}");
        }
    }
}

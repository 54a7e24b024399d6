//! The fence in front of Raft: who may speak to whom.
//!
//! Every request between members carries (format version, cluster, timeline, sender, receiver), and every reply carries
//! the same of the member that answers. They are checked *before* openraft sees anything, in both directions, because
//! openraft fences nothing by itself: one heartbeat of a member of a lost branch of history is enough to destroy
//! acknowledged data. A refusal carries no vote. Only the handshake of a member that joins is exempt.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

use crate::model::{ClusterId, MemberId, TimelineId, format_member_id, parse_member_id};

/// The version of the messages between members.
pub const PEER_FORMAT: u32 = 1;

const FORMAT: HeaderName = HeaderName::from_static("lifeboat-format");
const CLUSTER: HeaderName = HeaderName::from_static("lifeboat-cluster");
const TIMELINE: HeaderName = HeaderName::from_static("lifeboat-timeline");
const FROM: HeaderName = HeaderName::from_static("lifeboat-from");
const TO: HeaderName = HeaderName::from_static("lifeboat-to");

/// Who this member is among its peers.
#[derive(Debug)]
pub struct Identity {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    timeline: RwLock<TimelineId>,
    refusal: Mutex<Option<Refusal>>,
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
        Identity { member, cluster, timeline: RwLock::new(timeline), refusal: Mutex::new(None) }
    }

    /// The timeline this member is on.
    pub fn timeline(&self) -> TimelineId {
        *self.timeline.read()
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
            return Err(FenceError::Timeline { theirs, ours });
        }
        let from = header(headers, &FROM).and_then(parse_member_id);
        from.ok_or(FenceError::Header { header: "lifeboat-from" })
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

//! The headers of the API: their names, and the values that every reply carries.
//!
//! Names are made once at compile time; the values that rarely change (timeline, leader) are made once and cloned,
//! which costs a reference count.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::RwLock;

use crate::model::{Revision, TimelineId};

/// This member's newest applied revision.
pub const REVISION: HeaderName = HeaderName::from_static("lifeboat-revision");
/// The timeline that the member is on; in a request, the one that it must be on.
pub const TIMELINE: HeaderName = HeaderName::from_static("lifeboat-timeline");
/// The client address of the leader.
pub const LEADER: HeaderName = HeaderName::from_static("lifeboat-leader");
/// How old a stale answer may be.
pub const LAG_SECONDS: HeaderName = HeaderName::from_static("lifeboat-lag-seconds");
/// The revision at which the key was created.
pub const CREATE_REVISION: HeaderName = HeaderName::from_static("lifeboat-create-revision");
/// How many times the key was written since.
pub const VERSION: HeaderName = HeaderName::from_static("lifeboat-version");
/// About how many bytes a snapshot will have: what it is read from.
pub const SNAPSHOT_BYTES: HeaderName = HeaderName::from_static("lifeboat-snapshot-bytes");
/// Says that the reply is the outcome of an earlier request with the same key.
pub const REPLAYED: HeaderName = HeaderName::from_static("lifeboat-replayed");
/// Names a request that may be sent again.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The last event that a reader has seen.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `application/json`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// `application/x-ndjson`.
pub const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// `text/event-stream`.
pub const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
/// `application/octet-stream`.
pub const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// Lets nobody between the member and its client answer in the member's place.
pub const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// The ETag of a key that was last written at `revision`: the revision in quotes.
pub fn etag_of(revision: Revision) -> HeaderValue {
    let mut digits = [0u8; 22];
    let mut at = digits.len() - 1;
    digits[at] = b'"';
    let mut rest = revision;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    at -= 1;
    digits[at] = b'"';
    HeaderValue::from_bytes(&digits[at..]).expect("digits in quotes are a header value")
}

/// Remembers the header values that seldom change.
#[derive(Debug, Default)]
pub struct CommonHeaders {
    timeline: RwLock<Option<(TimelineId, HeaderValue)>>,
    leader: RwLock<Option<HeaderValue>>,
}

impl CommonHeaders {
    /// Adds what every reply of a member that belongs to a cluster carries.
    pub fn add(&self, map: &mut HeaderMap, timeline: TimelineId, revision: Revision, leader: Option<&str>) {
        // A reply that says how far it has looked knows better.
        map.entry(REVISION).or_insert_with(|| HeaderValue::from(revision));
        map.insert(TIMELINE, self.timeline(timeline));
        if let Some(value) = leader.and_then(|url| self.leader(url)) {
            map.insert(LEADER, value);
        }
    }

    fn timeline(&self, id: TimelineId) -> HeaderValue {
        if let Some((cached, value)) = &*self.timeline.read()
            && *cached == id
        {
            return value.clone();
        }
        let value = HeaderValue::try_from(id.to_string()).expect("hexadecimal digits are a header value");
        *self.timeline.write() = Some((id, value.clone()));
        value
    }

    /// None when the address cannot stand in a header, which the configuration refuses.
    fn leader(&self, url: &str) -> Option<HeaderValue> {
        if let Some(value) = &*self.leader.read()
            && value.as_bytes() == url.as_bytes()
        {
            return Some(value.clone());
        }
        let value = HeaderValue::from_str(url).ok()?;
        *self.leader.write() = Some(value.clone());
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RandomId;

    #[test]
    fn an_etag_is_the_revision_in_quotes() {
        for revision in [0, 9, 10, 43, 1 << 50, u64::MAX] {
            assert_eq!(etag_of(revision), format!("\"{revision}\""));
        }
    }

    #[test]
    fn remembered_values_follow_what_they_stand_for() {
        let common = CommonHeaders::default();
        for (id, url) in [(1, "http://a:1"), (1, "http://b:1"), (2, "http://b:1"), (1, "http://a:1")] {
            let mut map = HeaderMap::new();
            common.add(&mut map, RandomId([id; 16]), 44, Some(url));
            assert_eq!(map[REVISION], "44");
            assert_eq!(map[TIMELINE], RandomId([id; 16]).to_string());
            assert_eq!(map[LEADER], url);
        }
        let mut map = HeaderMap::new();
        common.add(&mut map, RandomId([1; 16]), 44, None);
        assert!(!map.contains_key(LEADER), "an unknown leader is not named");
    }
}

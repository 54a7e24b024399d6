//! Webhooks: events are posted to whoever wants to hear of them.
//!
//! The member that recorded an event posts it (for an event of the cluster that is the leader which wrote it), as JSON, to
//! every URL of the setting `webhooks`. Each URL has a queue and a task of its own, so that one which does not answer
//! holds up no other and nothing else. An event is posted until it is answered with a 2xx, with growing pauses, for
//! [`GIVE_UP`] at most: at least once, so a receiver that must not act twice looks at `Lifeboat-Event-Id`.
//!
//! Bounds: [`MAX_QUEUED`] events wait for one URL; past that the oldest is dropped and counted. What a crash loses: what
//! waits. `GET /v1/events` has it.
//!
//! Proven by the tests here and by `tests/api/events.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::{Event, EventScope};
use crate::metrics::catalogue::{self, Described};

/// Events that wait for one URL.
pub const MAX_QUEUED: usize = 1000;
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Before the second attempt; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An event that was not taken for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(600);
/// The header that names an event.
const EVENT_ID: &str = "Lifeboat-Event-Id";
/// Events of a single member that are posted too; those of the cluster all are.
const OF_MEMBERS: &[&str] = &[
    "mirror-state",
    "quarantined",
    "repaired",
    "damaged",
    "room-short",
    "room-back",
    "fenced",
    "split",
    "salvaged",
    "rejoined",
];

/// What was posted, given up and dropped.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// One URL and what waits for it.
struct Target {
    url: String,
    queue: Mutex<VecDeque<Post>>,
    more: Notify,
}

/// An event as it is posted.
struct Post {
    id: String,
    body: Bytes,
}

/// All URLs. Cloning shares them.
#[derive(Clone)]
pub struct Webhooks {
    targets: Arc<[Target]>,
    counts: Arc<Counts>,
}

impl Webhooks {
    /// Nobody wants to hear anything.
    #[cfg(test)]
    pub fn none() -> Webhooks {
        Webhooks::new(&[])
    }

    /// These URLs. Nothing is posted before [`Webhooks::start`].
    pub fn new(urls: &[String]) -> Webhooks {
        let target = |url: &String| Target { url: url.clone(), queue: Mutex::default(), more: Notify::new() };
        Webhooks { targets: urls.iter().map(target).collect(), counts: Arc::default() }
    }

    /// Begins to post, on the runtime of the caller, until that ends.
    pub fn start(&self) -> Result<(), reqwest::Error> {
        if self.targets.is_empty() {
            return Ok(());
        }
        let http = reqwest::Client::builder().timeout(ATTEMPT).redirect(reqwest::redirect::Policy::none()).build()?;
        for at in 0..self.targets.len() {
            let (hooks, http) = (self.clone(), http.clone());
            tokio::spawn(async move { hooks.post_all(at, &http).await });
        }
        Ok(())
    }

    /// Posts an event in the background, if it is one that is posted.
    pub fn announce(&self, event: &Event) {
        if event.scope != Some(EventScope::Cluster) && !OF_MEMBERS.contains(&event.kind.as_str()) {
            return;
        }
        if self.targets.is_empty() {
            return;
        }
        let mut body = serde_json::to_value(event).expect("an event of strings and numbers always serialises");
        // The number is that of one member's list, and the one who posts does not know it yet.
        body.as_object_mut().map(|fields| fields.remove("id"));
        let body = Bytes::from(body.to_string());
        for target in self.targets.iter() {
            let mut queue = target.queue.lock();
            if queue.len() == MAX_QUEUED {
                queue.pop_front();
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
            queue.push_back(Post { id: event.event_id.clone().unwrap_or_default(), body: body.clone() });
            drop(queue);
            target.more.notify_one();
        }
    }

    /// How many posts were taken, given up, and dropped before they were tried.
    pub fn counts(&self) -> [(&'static Described, u64); 3] {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [
            (&catalogue::WEBHOOKS_SENT, load(&self.counts.sent)),
            (&catalogue::WEBHOOKS_FAILED, load(&self.counts.failed)),
            (&catalogue::WEBHOOKS_DROPPED, load(&self.counts.dropped)),
        ]
    }

    async fn post_all(&self, at: usize, http: &reqwest::Client) {
        let target = &self.targets[at];
        loop {
            let next = target.queue.lock().pop_front();
            let Some(post) = next else {
                target.more.notified().await;
                continue;
            };
            let count = match post_one(http, &target.url, &post).await {
                true => &self.counts.sent,
                false => &self.counts.failed,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Posts one event until it is taken; false when it is given up.
async fn post_one(http: &reqwest::Client, url: &str, post: &Post) -> bool {
    let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        let request = http.post(url).header("Content-Type", "application/json").header(EVENT_ID, &post.id);
        let why = match request.body(post.body.clone()).send().await {
            Ok(reply) if reply.status().is_success() => return true,
            Ok(reply) => format!("it answers {}", reply.status()),
            Err(error) => error.to_string(),
        };
        if began.elapsed() + pause > GIVE_UP {
            tracing::warn!(url, why, event_id = post.id, "a webhook does not take an event, which is given up");
            return false;
        }
        tracing::debug!(url, why, "a webhook does not take an event yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, scope: EventScope, n: u64) -> Event {
        Event {
            id: n,
            time_ms: n,
            kind: kind.into(),
            detail: "d".into(),
            member: "n1".into(),
            scope: Some(scope),
            subject: None,
            from: None,
            to: None,
            event_id: Some(format!("{n:016x}")),
        }
    }

    #[test]
    fn what_concerns_the_cluster_is_queued_and_the_oldest_is_dropped() {
        let hooks = Webhooks::new(&["http://127.0.0.1:9/".to_owned()]);
        hooks.announce(&event("compaction", EventScope::Member, 1));
        assert_eq!(hooks.targets[0].queue.lock().len(), 0);
        hooks.announce(&event("quarantined", EventScope::Member, 2));
        for n in 0..MAX_QUEUED as u64 + 2 {
            hooks.announce(&event("leader-elected", EventScope::Cluster, 10 + n));
        }
        let queue = hooks.targets[0].queue.lock();
        assert_eq!((queue.len(), queue[0].id.as_str()), (MAX_QUEUED, "000000000000000c"));
        let body: serde_json::Value = serde_json::from_slice(&queue[0].body).unwrap();
        assert_eq!((&body["kind"], &body["event_id"]), (&"leader-elected".into(), &"000000000000000c".into()));
        assert!(body.get("id").is_none());
        assert_eq!(hooks.counts().map(|(_, count)| count), [0, 0, 3]);
    }
}

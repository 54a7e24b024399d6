//! A read of one key that waits until the key has changed.
//!
//! It registers for the key first and looks then, so that no change falls in between; after that it looks again only when
//! the feed of the watches has met a change of this key. The `Lifeboat-Revision` of the reply is taken before each look:
//! whoever goes on from there misses nothing.
//!
//! Proven by `tests/watch.rs` here.

use std::time::{Duration, Instant};

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::EdgeBody;
use super::extract::{Consistency, Parameters};
use super::kv::{KeyRead, read};
use super::problem::{Asked, Failure};
use super::{ReadPoint, Reply, Shared, headers};
use crate::api::ProblemCode;
use crate::model::{KeySpace, Revision};
use crate::node::{Ending, NodeError};
use crate::store::ReadError;

/// How long a read waits when it does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_secs(300);

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// A change after this revision.
    since: Revision,
    /// For so long.
    limit: Duration,
}

/// Reads `since` and `wait`; none when this is a read that does not wait.
pub fn wait_of(parameters: &Parameters<'_>) -> Result<Option<Wait>, Failure> {
    let limit = parameters.duration("wait")?;
    match (parameters.number("since")?, limit) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(Failure::parameter("wait", "only together with since")),
        (Some(_), _) if parameters.raw("rev").is_some() => {
            Err(Failure::parameter("rev", "what was at a revision does not change: not together with since"))
        }
        (Some(_), Some(limit)) if limit > MAX_WAIT => Err(Failure::parameter("wait", "longer than 5m")),
        (Some(since), limit) => Ok(Some(Wait { since, limit: limit.unwrap_or(DEFAULT_WAIT) })),
    }
}

/// Whether the query is one of a read that waits.
pub fn is_waiting(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("since=")))
}

/// Answers as soon as the key has changed, or when the time is over.
pub async fn read_when_changed(
    shared: &Shared,
    asked: &KeyRead,
    wait: Wait,
    consistency: Consistency,
    started: Instant,
) -> Result<Reply, Failure> {
    shared.admit_read()?;
    let settled = shared.settle(consistency, started).await?;
    let waiting = shared.node.watches().wait_for_key(asked.key.clone()).map_err(|error| Failure::watch(&error))?;
    let deadline = tokio::time::Instant::from_std(started + wait.limit);
    let mut seen = wait.since;
    let (mut is_first, mut in_time) = (true, true);
    loop {
        // What is read is at least as new as this says; how long the wait was must not make it look newer.
        let read_point = match settled {
            ReadPoint::Stale { .. } => ReadPoint::Stale { lag: shared.node.lag() },
            ReadPoint::Linearizable => settled,
        };
        let found = look(shared, asked, wait.since, &mut seen, is_first);
        is_first = false;
        let changed = found.map_err(|error| Failure::read(&error, settled.is_stale()))?;
        if changed || !in_time {
            let mut reply = if changed {
                read(shared, asked, read_point).unwrap_or_else(Failure::into_reply)
            } else {
                nothing_new()
            };
            reply.headers_mut().insert(headers::REVISION, HeaderValue::from(seen));
            read_point.add_headers(reply.headers_mut());
            return Ok(reply);
        }
        in_time = match tokio::time::timeout_at(deadline, waiting.changed()).await {
            Ok(Ok(after)) => {
                seen = seen.max(after);
                true
            }
            Ok(Err(Ending::Failed)) => {
                return Err(Failure::new(ProblemCode::StorageFailed, "the member cannot read its history"));
            }
            Ok(Err(Ending::Maintenance)) => {
                shared.admit_read()?;
                // It is over again already: the client asks again.
                let over = NodeError::Maintenance { message: "it is over".into(), until_ms: 0, remaining_ms: 0 };
                return Err(Failure::node(&over, Asked::Read));
            }
            Ok(Err(Ending::Stopping | Ending::Slow)) => return Err(Failure::node(&NodeError::Stopping, Asked::Read)),
            Err(_) => {
                // The feed has met everything since the first look. However far the floor moved, nothing was missed.
                seen = seen.max(waiting.quiet_up_to().unwrap_or(seen));
                false
            }
        };
    }
}

/// Whether the key has changed after `since`. `seen` is the revision up to which it is known that it had not, and becomes
/// the one up to which this look has seen everything.
fn look(
    shared: &Shared,
    asked: &KeyRead,
    since: Revision,
    seen: &mut Revision,
    is_first: bool,
) -> Result<bool, ReadError> {
    let store = shared.node.store();
    let current = store.revision();
    if since > current {
        return Err(ReadError::Future { current });
    }
    store.check_not_left(since)?;
    let changed = store.last_change(KeySpace::User, &asked.key)?.filter(|last| *last > since);
    let floor = store.read_floor();
    // Below the floor a deletion may have been forgotten before it was seen. What the reader names is refused there in any
    // case, as a watch would be; later only what nothing has covered.
    if *seen < floor && (is_first || changed.is_none()) {
        return Err(ReadError::Compacted { floor });
    }
    *seen = changed.unwrap_or(current).max(current);
    Ok(changed.is_some())
}

fn nothing_new() -> Reply {
    let mut reply = Response::new(EdgeBody::empty());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply.headers_mut().insert(CACHE_CONTROL, headers::NO_CACHE);
    reply
}

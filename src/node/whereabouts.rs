//! Where the members are, when the membership is out of date: this member tells the cluster where it is now, and looks for
//! the others at the places it was given.
//!
//! One member that moved tells the leader, who changes the membership. When all have moved at once, as the pods of a
//! restarted StatefulSet do, there is no leader to tell: nobody reaches anybody at the old addresses. Then each asks the
//! places of `--discover` and `--join` who is there, and takes the addresses of those whose ids the membership names. Once
//! a leader is elected over these, everybody's new address goes into the membership.
//!
//! What is heard this way is only where to dial: the fence still looks at every message and every answer. It is not kept
//! over a restart. Proven by `tests/cluster/founding.rs` (all three members on new addresses) and `raft/network.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use super::founding::protocol::Standing;
use super::founding::{resolve, survey};
use super::join::{JoinAnswer, JoinRequest, ask};
use crate::config::Discovery;
use crate::raft::peer_http::StrangerHttp;

/// Between two attempts to announce new addresses.
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks whether a leader is known.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Where this member was told to look for others.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--discover`.
    pub discover: Vec<Discovery>,
    /// `--join`.
    pub join: Vec<String>,
}

/// Tells the cluster where this member is now, if the membership says otherwise.
pub async fn announce(inner: Arc<Inner>) {
    let Ok(http) = StrangerHttp::new() else { return };
    let cluster = inner.http.identity().cluster;
    loop {
        let members = inner.members_by_id();
        match members.get(&inner.id) {
            Some(known) if known.peer_url == inner.info.peer_url && known.client_url == inner.info.client_url => return,
            Some(_) if inner.view().leads => {
                if let Err(e) = inner.admit(inner.id, inner.info.clone(), true).await {
                    tracing::debug!(error = %e, "new addresses are not in the membership yet");
                }
            }
            Some(_) => {
                let request = JoinRequest::new(inner.id, inner.info.clone(), Some(cluster));
                for id in members.keys().filter(|id| **id != inner.id) {
                    let url = inner.addresses.get(*id).unwrap_or_default();
                    match ask(&http, &url, &request).await {
                        Ok(JoinAnswer::Joined { .. }) => return,
                        Ok(JoinAnswer::Removed { .. }) => return inner.end_as_removed(),
                        Ok(_) | Err(_) => {}
                    }
                }
            }
            // The membership has not arrived yet.
            None => {}
        }
        if inner.is_stopping() {
            return;
        }
        tokio::time::sleep(ANNOUNCE_PAUSE).await;
    }
}

/// Looks for the other members while no leader is known.
pub async fn look_for_others(inner: Arc<Inner>, places: Places) {
    let Ok(http) = StrangerHttp::new() else { return };
    let mut last_words = String::new();
    let mut missing_since = None;
    while !inner.is_stopping() {
        tokio::time::sleep(LOOK_PAUSE).await;
        // A leader that this member still believes in may be gone: what it answered last tells.
        let missing = inner.view().leader.is_none() || inner.lag.get().is_none_or(|lag| lag > inner.election_max * 2);
        let since = *missing_since.get_or_insert_with(Instant::now);
        if !missing {
            missing_since = None;
        } else if since.elapsed() >= inner.election_max {
            look(&inner, &http, &places, &mut last_words).await;
        }
    }
}

async fn look(inner: &Inner, http: &StrangerHttp, places: &Places, last_words: &mut String) {
    let mut urls: BTreeSet<String> = resolve(&places.discover, last_words).await.urls;
    urls.extend(places.join.iter().cloned());
    let cluster = inner.http.identity().cluster;
    for (url, one) in survey(http, &urls, inner.id).await.seen {
        if one.standing == (Standing::Belongs { cluster }) && inner.addresses.hear(one.id, &one.info.peer_url) {
            tracing::info!(name = one.info.name, peer_url = one.info.peer_url, found_at = url, "a member was found");
        }
    }
}

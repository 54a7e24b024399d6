//! How a member comes into a cluster: the handshake that is exempt from the fence, because the newcomer has no cluster
//! yet, and the leader's side of it.
//!
//! The newcomer's id is durable before it asks, so asking again after a crash is the same request. The leader adds it as
//! a learner at once and answers; a voter is promoted by the leader's own watch once it has caught up
//! ([`super::background`]). A member that asks again from other addresses has them changed in the membership.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::ChangeMembers;
use serde::{Deserialize, Serialize};

use super::identity::Belonging;
use super::{Inner, NodeError, StartError, peer_path};
use crate::model::{ClusterId, MemberId, TimelineId, format_member_id, parse_member_id};
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::StrangerHttp;
use crate::raft::types::MemberInfo;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two rounds of attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// Asks to belong to the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The version of the messages between members.
    pub format: u32,
    /// The newcomer's id, 16 hexadecimal digits.
    pub member_id: String,
    /// The newcomer.
    pub member: MemberInfo,
    /// The cluster it belongs to already, when it only announces new addresses.
    pub cluster: Option<ClusterId>,
}

/// Answers a [`JoinRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinAnswer {
    /// The newcomer is in the membership.
    Joined {
        /// The cluster.
        cluster: ClusterId,
        /// Its timeline.
        timeline: TimelineId,
    },
    /// Ask the leader, at this peer address.
    AskLeader {
        /// Where.
        peer_url: String,
    },
    /// Not now: ask again.
    Later {
        /// Why.
        detail: String,
    },
    /// Never: the request contradicts the membership.
    Refused {
        /// Why.
        detail: String,
    },
}

impl JoinRequest {
    /// A request of the member `id`.
    pub fn new(id: MemberId, member: MemberInfo, cluster: Option<ClusterId>) -> JoinRequest {
        JoinRequest { format: PEER_FORMAT, member_id: format_member_id(id), member, cluster }
    }
}

/// Asks the members at `urls` until one takes this member in. Gives up only when it is refused.
pub async fn join(urls: &[String], request: &JoinRequest) -> Result<Belonging, StartError> {
    let http = StrangerHttp::new().map_err(|e| StartError::Other(format!("cannot make an HTTP client: {e}")))?;
    let mut last_words = String::new();
    loop {
        for url in urls {
            match ask(&http, url, request).await {
                Ok(JoinAnswer::Joined { cluster, timeline }) => {
                    return Ok(Belonging { id: cluster, timeline, founder: false, has_log: false });
                }
                Ok(JoinAnswer::Refused { detail }) => {
                    return Err(StartError::JoinRefused { url: url.clone(), detail });
                }
                Ok(JoinAnswer::AskLeader { peer_url }) => say(&mut last_words, url, &format!("it names {peer_url}")),
                Ok(JoinAnswer::Later { detail }) | Err(detail) => say(&mut last_words, url, &detail),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Logs a reason to wait, once for as long as it stays the same.
fn say(last_words: &mut String, url: &str, detail: &str) {
    let words = format!("{url}: {detail}");
    if *last_words != words {
        tracing::info!(url, detail, "waiting to join");
        *last_words = words;
    }
}

/// Asks one member, and the leader that it names.
pub async fn ask(http: &StrangerHttp, url: &str, request: &JoinRequest) -> Result<JoinAnswer, String> {
    let once =
        |url: String| async move { http.post_json(&format!("{url}{}", peer_path::JOIN), request, ATTEMPT).await };
    match once(url.trim_end_matches('/').to_string()).await? {
        JoinAnswer::AskLeader { peer_url } => once(peer_url).await,
        answer => Ok(answer),
    }
}

impl Inner {
    /// The leader's side of the handshake; any other member names the leader.
    pub async fn serve_join(&self, request: JoinRequest) -> JoinAnswer {
        let refused = |detail: String| JoinAnswer::Refused { detail };
        if request.format != PEER_FORMAT {
            return refused(format!("peer format {} is not {PEER_FORMAT}", request.format));
        }
        let Some(id) = parse_member_id(&request.member_id) else {
            return refused(format!("malformed member id {:?}", request.member_id));
        };
        let Some((cluster, timeline)) = self.founded() else {
            return JoinAnswer::Later { detail: "the cluster is not founded yet".into() };
        };
        if let Some(theirs) = request.cluster
            && theirs != cluster
        {
            return refused(format!("the member belongs to cluster {theirs}, this is {cluster}"));
        }
        let view = self.view();
        match &view.leader {
            None => return JoinAnswer::Later { detail: "no leader is known".into() },
            Some(leader) if leader.id != self.id => {
                return JoinAnswer::AskLeader { peer_url: leader.peer_url.to_string() };
            }
            Some(_) => {}
        }
        match self.admit(id, request.member, request.cluster.is_some()).await {
            Ok(()) => JoinAnswer::Joined { cluster, timeline },
            Err(NodeError::Refused { detail }) => refused(detail),
            Err(e) => JoinAnswer::Later { detail: e.to_string() },
        }
    }

    /// Brings a member into the membership, or its addresses up to date.
    pub(super) async fn admit(&self, id: MemberId, member: MemberInfo, returns: bool) -> Result<(), NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        let members = self.members_by_id();
        if let Some((other, _)) = members.iter().find(|(other, info)| info.name == member.name && **other != id) {
            return Err(NodeError::Refused {
                detail: format!(
                    "the name {:?} belongs to member {}; a member that lost its data needs a name of its own until the \
                     old one is removed",
                    member.name,
                    format_member_id(*other)
                ),
            });
        }
        let change = match members.get(&id) {
            Some(known) if *known == member => return Ok(()),
            // Role and site are the cluster's to say once a member belongs to it.
            Some(known) => {
                let info = MemberInfo { role: known.role, site: known.site.clone(), ..member };
                if info == *known {
                    return Ok(());
                }
                tracing::info!(
                    name = info.name,
                    client_url = info.client_url,
                    peer_url = info.peer_url,
                    "member moved"
                );
                ChangeMembers::SetNodes(BTreeMap::from([(id, info)]))
            }
            None if returns => {
                return Err(NodeError::Refused {
                    detail: format!("member {} was removed from this cluster", format_member_id(id)),
                });
            }
            None => {
                tracing::info!(name = member.name, site = member.site, role = %member.role, "member joins");
                ChangeMembers::AddNodes(BTreeMap::from([(id, member)]))
            }
        };
        let changed = self.raft.change_membership(change, true).await;
        changed.map(|_| ()).map_err(|e| NodeError::NoQuorum { detail: e.to_string() })
    }
}

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

use super::events::NewEvent;
use super::identity::Belonging;
use super::{Inner, NodeError, StartError, peer_path};
use crate::model::{ClusterId, MemberId, TimelineId, format_member_id, parse_member_id};
use crate::raft::fence::PEER_FORMAT;
use crate::raft::peer_http::{AskStranger, StrangerHttp};
use crate::raft::types::MemberInfo;

/// A member that has answered nothing for so long counts as gone when another of its name comes.
const GONE_AFTER_ELECTION_TIMEOUTS: u32 = 3;
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
    /// Never: this very member was removed.
    Removed {
        /// From which cluster.
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
                Ok(JoinAnswer::Refused { detail } | JoinAnswer::Removed { detail }) => {
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
pub async fn ask(http: &impl AskStranger, url: &str, request: &JoinRequest) -> Result<JoinAnswer, String> {
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
        if self.home.lock().file.promotion.is_some() {
            return JoinAnswer::Later { detail: "a timeline has just begun here".into() };
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
            Err(NodeError::Removed { detail }) => JoinAnswer::Removed { detail },
            Err(e) => JoinAnswer::Later { detail: e.to_string() },
        }
    }

    /// Brings a member into the membership, or its addresses up to date.
    pub(super) async fn admit(&self, id: MemberId, member: MemberInfo, returns: bool) -> Result<(), NodeError> {
        let _one_at_a_time = self.membership_change.lock().await;
        match self.members_by_id().remove(&id) {
            Some(known) => self.move_member(id, known, member).await,
            None if returns => match self.was_removed(id).await? {
                true => Err(NodeError::Removed { detail: self.removed_words(id) }),
                false => Err(NodeError::NotNow { detail: "it is not certain that the member belongs".into() }),
            },
            None => self.take_in(id, member).await,
        }
    }

    /// Only where a member is can change here: role and site are the cluster's to say once it belongs to it.
    async fn move_member(&self, id: MemberId, known: MemberInfo, member: MemberInfo) -> Result<(), NodeError> {
        if known.name != member.name {
            let detail = format!("member {} is called {:?}, not {:?}", format_member_id(id), known.name, member.name);
            return Err(NodeError::Refused { detail });
        }
        let info = MemberInfo { role: known.role, site: known.site.clone(), ..member };
        if info == known {
            return Ok(());
        }
        tracing::info!(name = info.name, client_url = info.client_url, peer_url = info.peer_url, "member moved");
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, info)])), true).await
    }

    /// A newcomer. It may be one that lost its disk: then it has the name of a member that does not answer, and takes its
    /// place as a learner in the change that removes the other. A dead voter that goes lowers nothing: it was not there to
    /// be counted.
    async fn take_in(&self, id: MemberId, mut member: MemberInfo) -> Result<(), NodeError> {
        // An invitation that was acknowledged by another leader must be seen here.
        let index = self.read_index(true).await?;
        self.wait_applied_in_time(index).await?;
        let add = |member: MemberInfo| ChangeMembers::AddNodes(BTreeMap::from([(id, member)]));
        self.refuse_amid_switchover().await?;
        let Some((old_id, old)) = self.member_named(&member.name) else {
            if let Some(invitation) = self.invitation(&member.name)? {
                member.role = invitation.role.unwrap_or(member.role);
                member.site = invitation.site.unwrap_or(member.site);
            }
            tracing::info!(name = member.name, site = member.site, role = %member.role, "member joins");
            let (name, role) = (member.name.clone(), member.role);
            self.change(add(member), true).await?;
            let detail = format!("{name} joined as a {role}");
            self.record_cluster_event(NewEvent::new("member-joined", detail).about(&name));
            return self.uninvite(&name).await;
        };
        self.check_gone(old_id, &old).await?;
        member.role = old.role;
        member.site = old.site;
        tracing::warn!(
            name = member.name,
            old = format_member_id(old_id),
            new = format_member_id(id),
            "a member that does not answer is replaced by one of its name without data"
        );
        let detail = format!("{}: {} takes the place of {}", old.name, format_member_id(id), format_member_id(old_id));
        if self.target_voters().contains(&old_id) {
            let remove = ChangeMembers::RemoveVoters([old_id].into());
            self.change(ChangeMembers::Batch(vec![add(member), remove]), false).await?;
        } else {
            let remove = ChangeMembers::RemoveNodes([old_id].into());
            self.change(ChangeMembers::Batch(vec![remove, add(member)]), true).await?;
        }
        self.record_cluster_event(NewEvent::new("member-replaced", detail).about(&old.name));
        Ok(())
    }

    /// Refuses to replace a member that answers, or of which it is not certain yet that it does not.
    async fn check_gone(&self, old_id: MemberId, old: &MemberInfo) -> Result<(), NodeError> {
        let taken = || NodeError::Refused {
            detail: format!(
                "the name {:?} belongs to member {}, which answers; a member that lost its data takes its old name when \
                 the old one does not run any more",
                old.name,
                format_member_id(old_id)
            ),
        };
        if old_id == self.id {
            return Err(taken());
        }
        // Asked where it was last, not only listened to: Raft may have lost sight of it.
        let url = self.addresses.get(old_id).unwrap_or_else(|| old.peer_url.as_str().into());
        if self.http.post(old_id, &url, peer_path::PING, "", self.election_max).await.is_ok() {
            return Err(taken());
        }
        let patience = self.election_max * GONE_AFTER_ELECTION_TIMEOUTS;
        let silent = self.silent_for(old_id).unwrap_or(Duration::MAX).min(self.led_for());
        if silent < patience {
            let (name, id) = (&old.name, format_member_id(old_id));
            let detail = format!("{name} is member {id} still, which has been silent for {} ms", silent.as_millis());
            return Err(NodeError::NotNow { detail });
        }
        Ok(())
    }
}

//! The cluster: its state, its members, its leader, what happened lately, health.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde::Serialize;
use tokio::time::Instant;

use super::Client;
use super::call::Call;
use super::endpoints::{Prefer, Tour};
use super::error::Error;
use super::kv::{Target, milliseconds};
use super::retry::Seen;
use super::transport::{Outgoing, collect};
use crate::api::{
    DrReply, EventsReply, ForceReply, ForceRequest, Health, InviteRequest, LeaderReply, LeaderRequest, MemberReply,
    MemberRole, MembersReply, RejoinReply, RejoinRequest, RemovedReply, ReplicationReply, RoleChange, RoleReply,
    Status, SurveyReply, SuspendReply, SwitchoverReply, SwitchoverRequest,
};

/// Longer than a member may take to change the members or the leader.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
/// What stands in the name of a member as it is. (Members of version 0.1 decode no `%2D`.)
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-');
/// How much longer than its `wait` a question for events may take.
const WAIT_SLACK: Duration = Duration::from_secs(5);

/// A question about a member's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheck {
    /// It works.
    Live,
    /// It can serve linearizable reads and writes.
    Ready,
    /// It leads, and a quorum has confirmed so.
    Leader,
    /// It is ready and a voter.
    Primary,
    /// It is a mirror that lags at most so far.
    Mirror {
        /// None: 10 s.
        max_lag: Option<Duration>,
    },
}

impl HealthCheck {
    fn target(self) -> String {
        let name = match self {
            HealthCheck::Live => "live",
            HealthCheck::Ready => "ready",
            HealthCheck::Leader => "leader",
            HealthCheck::Primary => "primary",
            HealthCheck::Mirror { .. } => "mirror",
        };
        let mut target = Target::new(&format!("/health/{name}"));
        if let HealthCheck::Mirror { max_lag: Some(lag) } = self {
            target.add("max_lag", milliseconds(lag));
        }
        target.into_string()
    }
}

pub(super) fn json(method: Method, target: String, body: &impl Serialize) -> Result<Outgoing, Error> {
    let body = serde_json::to_vec(body).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(Outgoing::new(method, target).json(Bytes::from(body)))
}

fn member_path(name: &str) -> Target {
    // A name is one segment.
    let encoded = percent_encoding::utf8_percent_encode(name, KEPT);
    Target::new(&format!("/v1/members/{encoded}"))
}

impl Client {
    /// Asks any one member something that it knows by itself.
    async fn ask_any<T: serde::de::DeserializeOwned>(&self, target: impl Into<String>) -> Result<T, Error> {
        let mut call = Call::read(Outgoing::new(Method::GET, target));
        call.prefer = Prefer::Any;
        self.call(call).await?.json()
    }

    /// Changes the cluster. It is repeated only when nothing can have happened.
    async fn change<T: serde::de::DeserializeOwned>(&self, outgoing: Outgoing) -> Result<T, Error> {
        let deadline = self.inner.deadline.max(CHANGE_DEADLINE);
        self.call(Call::once(outgoing).deadline(Some(deadline))).await?.json()
    }

    /// Changes what the asked member itself decides.
    async fn change_one<T: serde::de::DeserializeOwned>(&self, outgoing: Outgoing) -> Result<T, Error> {
        let mut call = Call::once(outgoing);
        call.prefer = Prefer::Any;
        self.call(call).await?.json()
    }

    /// A member, and the cluster as it sees it. Which one: see [`Client::at`].
    pub async fn status(&self) -> Result<Status, Error> {
        self.ask_any("/v1/status").await
    }

    /// What a member does at this moment.
    pub async fn role(&self) -> Result<RoleReply, Error> {
        self.ask_any("/v1/role").await
    }

    /// All members.
    pub async fn members(&self) -> Result<MembersReply, Error> {
        self.ask_any("/v1/members").await
    }

    /// Who answers, what each holds, and what a forced failover of the asked member's site would lose. Which member: see
    /// [`Client::at`].
    pub async fn survey(&self) -> Result<SurveyReply, Error> {
        self.ask_any("/v1/dr/survey").await
    }

    /// Makes the best member of the asked one's site the primary. Which member: see [`Client::at`].
    pub async fn force(&self, request: &ForceRequest) -> Result<ForceReply, Error> {
        self.change_one(json(Method::POST, "/v1/dr/force".to_owned(), request)?).await
    }

    /// Lets the asked member, which is fenced, come home. Which member: see [`Client::at`].
    pub async fn rejoin(&self, request: &RejoinRequest) -> Result<RejoinReply, Error> {
        self.change_one(json(Method::POST, "/v1/dr/rejoin".to_owned(), request)?).await
    }

    /// A member, and how far it is.
    pub async fn member(&self, name: &str) -> Result<MemberReply, Error> {
        self.call(Call::read(Outgoing::new(Method::GET, member_path(name).into_string()))).await?.json()
    }

    /// Invites a member: one that is started with `--join` and this name is taken in.
    pub async fn add_member(&self, invitation: &InviteRequest) -> Result<MemberReply, Error> {
        self.change(json(Method::POST, "/v1/members".to_owned(), invitation)?).await
    }

    /// Makes a member a voter or a mirror; `force` although no quorum of answering voters might be left.
    pub async fn set_role(&self, name: &str, role: MemberRole, force: bool) -> Result<MemberReply, Error> {
        self.change(json(Method::PATCH, member_path(name).into_string(), &RoleChange { role, force })?).await
    }

    /// Takes a member out; `force` although no quorum of answering voters might be left.
    pub async fn remove_member(&self, name: &str, force: bool) -> Result<RemovedReply, Error> {
        let mut target = member_path(name);
        if force {
            target.add("force", "true");
        }
        self.change(Outgoing::new(Method::DELETE, target.into_string())).await
    }

    /// Sends a mirror nothing any more, or everything again.
    pub async fn suspend_member(&self, name: &str, suspended: bool) -> Result<SuspendReply, Error> {
        let verb = if suspended { "suspend" } else { "resume" };
        let target = format!("{}/{verb}", member_path(name).into_string());
        self.change(Outgoing::new(Method::POST, target)).await
    }

    /// How every member follows, as the leader knows it.
    pub async fn replication(&self) -> Result<ReplicationReply, Error> {
        self.ask_any("/v1/replication").await
    }

    /// How the cluster stands against the loss of its site, and what to do.
    ///
    /// A member that does not serve, or knows no leader, speaks for itself alone: then the other addresses are asked too,
    /// and what a leader that is confirmed says is taken.
    pub async fn dr(&self) -> Result<DrReply, Error> {
        let own: DrReply = self.ask_any("/v1/dr").await?;
        let given = self.inner.endpoints.given();
        if own.confirmed || given.len() < 2 {
            return Ok(own);
        }
        let asked = given.iter().map(|endpoint| async {
            let one = self.at(endpoint.url()).ok()?;
            let reply = tokio::time::timeout(self.inner.attempt_timeout, one.ask_any::<DrReply>("/v1/dr")).await;
            reply.ok()?.ok().filter(|reply| reply.confirmed)
        });
        let others = futures_util::future::join_all(asked).await;
        Ok(others.into_iter().flatten().next().unwrap_or(own))
    }

    /// Moves the primary site to another one, or joins the switchover that is on its way there. It goes on afterwards.
    pub async fn begin_switchover(&self, request: &SwitchoverRequest) -> Result<SwitchoverReply, Error> {
        self.change(json(Method::POST, "/v1/dr/switchover".to_owned(), request)?).await
    }

    /// The newest switchover, and how far it is.
    pub async fn switchover(&self) -> Result<SwitchoverReply, Error> {
        self.ask_any("/v1/dr/switchover").await
    }

    /// Calls the switchover off, as long as the lead has not moved.
    pub async fn abort_switchover(&self, by: Option<&str>) -> Result<SwitchoverReply, Error> {
        let mut target = Target::new("/v1/dr/switchover");
        if let Some(by) = by {
            target.add("by", by);
        }
        self.change(Outgoing::new(Method::DELETE, target.into_string())).await
    }

    /// Hands leadership over, to this member or to the best follower.
    pub async fn transfer_leader(&self, to: Option<&str>) -> Result<LeaderReply, Error> {
        let request = LeaderRequest { to: to.map(str::to_owned) };
        self.change(json(Method::POST, "/v1/leader".to_owned(), &request)?).await
    }

    /// What happened to a member and its cluster after the event with this number; waits so long for something.
    pub async fn events(&self, since: u64, wait: Duration, limit: Option<u64>) -> Result<EventsReply, Error> {
        let mut target = Target::new("/v1/events");
        target.add("since", since.to_string());
        if !wait.is_zero() {
            target.add("wait", milliseconds(wait));
        }
        if let Some(limit) = limit {
            target.add("limit", limit.to_string());
        }
        let mut call = Call::read(Outgoing::new(Method::GET, target.into_string()));
        call.prefer = Prefer::Any;
        call.attempt_timeout = Some((wait + WAIT_SLACK).max(self.inner.attempt_timeout));
        call.deadline = Some(wait + self.inner.deadline);
        self.call(call).await?.json()
    }

    /// Asks one member for its health, once. A member that does not answer is not healthy.
    pub async fn health(&self, check: HealthCheck) -> Health {
        let (endpoint, _) = self.inner.endpoints.choose(Prefer::Any, &Tour::default(), Instant::now());
        let outgoing = Outgoing::new(Method::GET, check.target());
        let asked = tokio::time::timeout(self.inner.attempt_timeout, async {
            let head = self.open_at(&outgoing, &endpoint).await?;
            collect(head.body).await.map_err(Seen::Lost)
        });
        let sick = |reason: String| Health { healthy: false, reason: Some(format!("{endpoint}: {reason}")) };
        match asked.await {
            Ok(Ok(body)) => serde_json::from_slice(&body).unwrap_or_else(|error| sick(error.to_string())),
            Ok(Err(seen)) => sick(seen.reason()),
            Err(_) => sick("no answer in time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_member_can_have_stands_in_the_path_as_it_is() {
        assert_eq!(member_path("east-1").into_string(), "/v1/members/east-1");
        assert_eq!(member_path("a/b c").into_string(), "/v1/members/a%2Fb%20c");
    }
}

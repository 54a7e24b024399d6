//! The way home of a fenced member, put together: it waits in the lobby until it may, rejoins before anything of it is
//! opened, and is verified once it serves again.
//!
//! ```text
//!   fenced (lobby) ──told, or at once by its own site──> rejoin ([`super::rejoin`]) ──> opened as a new member
//!                                                          ──> copy ──> verified ──> what was set aside goes
//! ```
//!
//! A member that had stranded writes, or whose old files were damaged, says of itself that it is unverified until the leader
//! has compared its content with the others'; until then nobody makes it a voter. One that had nothing of its own is proven
//! by the chain hash, as it was before.

use std::sync::Arc;
use std::time::Duration;

use super::rejoin::{Branch, Rejoining, finish};
use crate::api::{Objectives, VerifyLine, VerifyState};
use crate::config::Config;
use crate::node::founding::lobby::Lobby;
use crate::node::founding::protocol::Own;
use crate::node::identity::Home;
use crate::node::{Inner, StartError};
use crate::raft::fence::Identity;
use crate::raft::peer_http::PeerHttp;
use crate::raft::types::MemberInfo;

/// Before a verification that did not come to a verdict is begun again.
const AGAIN: Duration = Duration::from_secs(1);

/// Waits until a fenced member may come home, and brings it there. Afterwards it is opened like one that has just joined.
pub async fn come_home(
    config: &Config,
    home: Home,
    info: &MemberInfo,
    objectives: Objectives,
    lobby: &Lobby,
) -> Result<Home, StartError> {
    let Some(belonging) = home.file.cluster else {
        return Err(StartError::Other("a member without a cluster is fenced, which cannot be".into()));
    };
    let own = Own { id: home.file.member_id(), info: info.clone(), expect: None };
    let identity = Arc::new(Identity::new(own.id, belonging.id, belonging.timeline));
    let http = PeerHttp::new(identity.clone());
    let http = http.map_err(|e| StartError::Other(format!("cannot make an HTTP client: {e}")))?;
    let mut home = lobby.fenced_until_rejoin(own, home, identity, objectives).await;
    let Some(fenced) = home.file.fenced.clone() else { return Ok(home) };
    tracing::warn!(site = fenced.site, "this member rejoins the branch that goes on");
    let branch = || {
        let (fenced, _) = lobby.fenced().unwrap_or_else(|| (fenced.clone(), info.clone()));
        let peers = fenced.members.into_iter().map(|member| member.peer_url);
        Branch { peers: peers.collect(), timelines: fenced.by }
    };
    let rejoining = Rejoining { config, home: &mut home, info, branch: &branch, http: &http };
    rejoining.run().await?;
    match home.file.fenced.is_some() {
        true => Err(StartError::Other("the rejoin ended, and the member is fenced: that cannot be".into())),
        false => Ok(home),
    }
}

impl Inner {
    /// Whether this member came back with another content than the chain hash proves, and was not verified since.
    pub(in crate::node) fn is_unverified(&self) -> bool {
        self.came_back().is_some_and(|mark| mark.salvage.is_some() || mark.damage.is_some())
    }

    /// Tells how this member came back, and lets it be verified. Returns when what was set aside is gone.
    pub(in crate::node) async fn finish_coming_home(self: Arc<Self>) {
        let Some(mark) = self.came_back() else { return };
        self.events.record("salvaged", mark.salvaged());
        self.events.record("rejoined", mark.rejoined());
        if self.is_unverified() {
            loop {
                match self.verified().await {
                    Ok(()) => break,
                    Err(why) => tracing::debug!(why, "this member is not verified yet"),
                }
                tokio::time::sleep(AGAIN).await;
                if self.is_stopping() || self.check_serves().is_err() {
                    return;
                }
            }
        } else if self.lag_is_known().await.is_err() {
            return;
        }
        let inner = self.clone();
        let finished = tokio::task::spawn_blocking(move || finish(&inner.home)).await;
        match finished {
            Ok(Ok(())) => {
                self.events.record("verified", "its content is what the others hold: it may vote again".to_owned())
            }
            // It is done again at the next start.
            Ok(Err(error)) => tracing::error!(%error, "the end of the rejoin cannot be written down"),
            Err(error) => tracing::error!(%error, "the end of the rejoin cannot be written down"),
        }
    }

    /// Waits until this member has applied what a quorum has confirmed.
    async fn lag_is_known(&self) -> Result<(), ()> {
        while self.lag.get().is_none() {
            tokio::time::sleep(self.probe_interval()).await;
            if self.is_stopping() || self.check_serves().is_err() {
                return Err(());
            }
        }
        Ok(())
    }

    /// Lets the leader verify all members, and waits for what it says of this one.
    async fn verified(self: &Arc<Self>) -> Result<(), String> {
        if self.lag.get().is_none() {
            return Err("it has not caught up".into());
        }
        let mut lines = self.begin_verify(None, false).await.map_err(|refused| refused.to_string())?;
        let mut text = Vec::new();
        while let Some(some) = lines.recv().await {
            text.extend_from_slice(&some);
            // Only the last line matters: the report.
            if let Some(end) = text.iter().rposition(|byte| *byte == b'\n')
                && let Some(begin) = text[..end].iter().rposition(|byte| *byte == b'\n')
            {
                text.drain(..=begin);
            }
        }
        let report = match serde_json::from_slice(&text).map_err(|error| error.to_string())? {
            VerifyLine::Report(report) => report,
            VerifyLine::Progress(_) => return Err("the verification was cut".into()),
        };
        match report.members.into_iter().find(|member| member.name == self.info.name) {
            Some(member) if member.state == VerifyState::Agrees => Ok(()),
            Some(member) => Err(member.detail.unwrap_or_else(|| format!("{:?}", member.state))),
            None => Err("the leader does not know it yet".into()),
        }
    }
}

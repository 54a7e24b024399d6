//! Forced failover: the order that makes a member of the asked one's site the primary, and what refuses it.
//!
//! The asked member surveys, chooses the member of its site whose log is longest, and sends it the order. That member
//! writes the promotion down and is opened anew ([`super::promote`]). Two calls at once choose the same member when they see
//! the same, and begin one timeline; when they see different things, one of the two members gives way ([`super::rivals`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::kin::Place;
use super::promote::{Fork, OldMember, Promotion};
use super::rivals;
use super::survey::Surveyed;
use crate::api::{ForceReply, ForceRequest};
use crate::model::{MemberRole, TimelineId, format_member_id, new_random_id};
use crate::node::{Inner, Node, NodeError, RequestContext, peer_path};

/// How long the chosen member may take to write the order down.
const ORDER: Duration = Duration::from_secs(3);
/// Before the promoted member is opened anew, so that the answer gets out.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Tells a member to begin a timeline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromoteOrder {
    /// What it shall do.
    pub promotion: Promotion,
}

/// What came of the order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromoteAnswer {
    /// The timeline that it begins: the one of the order, or of one that came before.
    pub result: Result<TimelineId, String>,
}

impl Inner {
    /// Makes the best member of this one's site the primary.
    pub(in crate::node) async fn force(self: &Arc<Self>, request: ForceRequest) -> Result<ForceReply, NodeError> {
        self.check_serves()?;
        let url = &self.info.client_url;
        let survivor = self.view().role == MemberRole::Voter;
        let refused = |detail: String| Err(NodeError::Refused { detail });
        match (survivor, request.survivor) {
            (true, false) => {
                return refused(format!(
                    "survivor: {} is a voter of the primary site; when that has lost its quorum for good: \
                     lifeboat dr recover --survivor --accept-data-loss --endpoints {url}",
                    self.info.name
                ));
            }
            (false, true) => {
                return refused(format!(
                    "survivor: {} is a mirror: lifeboat dr force --accept-data-loss --endpoints {url}",
                    self.info.name
                ));
            }
            _ => {}
        }
        if !self.is_founded() {
            return refused(format!(
                "{} has not received its first copy whole: it holds nothing that could be promoted. Ask another member of \
                 site {}; see lifeboat dr plan --endpoints {url}",
                self.info.name, self.info.site
            ));
        }
        let mut surveyed = self.survey().await;
        if surveyed.primary().is_none() {
            self.ask_silent_again(&mut surveyed, &request.without).await;
        }
        let site = &self.info.site;
        if let Some(why) = surveyed.primary() {
            let detail = format!("{why}: nothing is lost that must be forced. See lifeboat dr plan --endpoints {url}");
            return Err(NodeError::PrimaryAnswers { detail });
        }
        let missing: Vec<String> =
            surveyed.missing(site).into_iter().filter(|name| !request.without.contains(name)).collect();
        if !missing.is_empty() {
            let verb = if survivor { "recover --survivor" } else { "force" };
            let without: String = missing.iter().map(|name| format!(" --without {name}")).collect();
            let detail = format!(
                "{} of site {site} cannot take part and may hold more than the others; start it, or go on without it: \
                 lifeboat dr {verb} --accept-data-loss{without} --endpoints {url}",
                missing.join(", ")
            );
            return Err(NodeError::StandbyIncomplete { detail });
        }
        let Some((best, survey)) = surveyed.best(site, &request.without) else {
            return refused(format!(
                "no member of site {site} can be promoted. See lifeboat dr plan --endpoints {url}"
            ));
        };
        let loss = surveyed.loss(survey);
        if !request.accept_data_loss {
            return refused(format!(
                "accept_data_loss: must be true: {} would be promoted at revision {}; {}. See \
                 lifeboat dr survey --endpoints {url}",
                best.info.name,
                loss.kept_revision,
                loss.words()
            ));
        }
        let promotion = self.promotion(&surveyed, best.id, loss, request)?;
        let (parent, rejoin) = (promotion.parent, promotion.fork.rejoin.clone());
        tracing::warn!(member = best.info.name, loss = promotion.fork.loss.words(), "forced failover");
        let reply = |id| {
            let named = |rejoins: bool| {
                let old = promotion.fork.members.iter().filter(|old| rejoin.contains(&old.id) == rejoins);
                old.map(|old| old.place.name.clone()).collect()
            };
            ForceReply {
                member: best.info.name.clone(),
                client_url: best.info.client_url.clone(),
                timeline: id,
                parent,
                loss: promotion.fork.loss,
                rejoining: named(true),
                waiting: named(false),
                next: format!("lifeboat dr plan --endpoints {}", best.info.client_url),
            }
        };
        if best.id == self.id {
            return self.promoted(promotion.clone()).map(reply).map_err(|detail| NodeError::Refused { detail });
        }
        let order = PromoteOrder { promotion: promotion.clone() };
        let url = self.addresses.get(best.id).map_or_else(|| best.info.peer_url.clone(), |url| url.to_string());
        let asked = self.http.post_json::<PromoteAnswer>(best.id, &url, peer_path::PROMOTE, &order, ORDER).await;
        match asked {
            Ok(answer) => answer.result.map(reply).map_err(|detail| NodeError::Refused { detail }),
            Err(error) => Err(NodeError::Unknown {
                detail: format!(
                    "{} was told to begin a timeline and did not answer: {error}. See lifeboat dr survey --endpoints {}",
                    best.info.name, self.info.client_url
                ),
            }),
        }
    }

    fn promotion(
        &self,
        surveyed: &Surveyed,
        best: u64,
        loss: crate::api::Loss,
        request: ForceRequest,
    ) -> Result<Promotion, NodeError> {
        let Some(parent) = surveyed.timelines.last() else { return Err(NodeError::NotJoined) };
        let began_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut members = Vec::new();
        let mut rejoin = Vec::new();
        let mut member = String::new();
        for found in &surveyed.members {
            if found.id == best {
                member.clone_from(&found.info.name);
                continue;
            }
            let id = format_member_id(found.id);
            if found.info.site == self.info.site && found.answer.is_ok() {
                rejoin.push(id.clone());
            }
            let info = found.info.clone();
            let place = Place { name: info.name, peer_url: info.peer_url, client_url: info.client_url };
            members.push(OldMember { id, site: info.site, role: info.role, place });
        }
        let fork = Fork {
            cluster: self.http.identity().cluster,
            id: new_random_id(),
            parent: parent.id,
            began_ms,
            by: request.by.unwrap_or_default(),
            reason: request.reason.unwrap_or_default(),
            member,
            site: self.info.site.clone(),
            survivor: request.survivor,
            loss,
            members,
            rejoin,
        };
        // A random number of 40 bits and more; the model bounds it.
        let [a, b, c, d, e, f, g, h, ..] = new_random_id().0;
        let offset = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Ok(Promotion { id: fork.id, parent: fork.parent, offset, fork, decided: false })
    }

    /// This member is told to begin a timeline. It does so when it is opened anew.
    pub(in crate::node) fn promoted(self: &Arc<Self>, promotion: Promotion) -> Result<TimelineId, String> {
        let url = &self.info.client_url;
        self.check_serves().map_err(|error| match error {
            // It names the way home.
            NodeError::Fenced { .. } => error.to_string(),
            other => format!("{other}. See lifeboat dr plan --endpoints {url}"),
        })?;
        if self.store.timelines().last().is_none_or(|current| current.id != promotion.parent) {
            return Err(format!("this member is on another timeline. See lifeboat dr plan --endpoints {url}"));
        }
        if self.leads_with_quorum().is_ok() {
            return Err(format!("this member leads. See lifeboat dr plan --endpoints {url}"));
        }
        let id = {
            let mut home = self.home.lock();
            // One of an earlier timeline was finished but for its mark.
            if let Some(under_way) = home.file.promotion.as_ref().filter(|it| it.parent == promotion.parent) {
                return Ok(under_way.id);
            }
            if let Err(error) = home.change(|file| file.promotion = Some(promotion.clone())) {
                // It may be on the disk all the same. What is not written for certain must not be done later.
                if let Err(again) = home.file.save(&*home.disk, &home.dir) {
                    self.fail(format!("the promotion can be neither written nor taken back: {error}; {again}"));
                }
                return Err(format!(
                    "the promotion cannot be written down: {error}. See lifeboat dr plan --endpoints {url}"
                ));
            }
            promotion.id
        };
        crate::crash_points::reach_blocking("force-order-written");
        tracing::warn!(timeline = %id, "this member is promoted: it begins a timeline");
        // From here on nothing of the parent timeline is taken in: what the new one begins with stands.
        self.http.identity().fence();
        self.watches.stop();
        let inner = self.clone();
        self.background.handle.spawn(async move {
            inner.give_way(&promotion).await;
            tokio::time::sleep(LAST_WORDS).await;
            inner.reopen.send_replace(true);
        });
        Ok(id)
    }

    /// A member that is told to begin a timeline asks. One that is not told so itself has nothing to remember.
    pub(in crate::node) fn meet_rival(&self, theirs: TimelineId) {
        if self.home.lock().file.promotion.is_some() {
            self.rivalry.lock().meet(theirs);
        }
    }

    /// Another member of the site may have been told too: then one of the two gives way ([`super::rivals`]). Returns when
    /// what this one does is written down.
    async fn give_way(&self, promotion: &Promotion) {
        let answered = rivals::ask(promotion, &self.http).await;
        let other = self.rivalry.lock().decide(promotion.id, &answered);
        if let Some(other) = other {
            tracing::warn!(timeline = %other, "another member of this site is promoted: this one gives way");
        }
        let written = self.home.lock().change(|file| match (other, &mut file.promotion) {
            (Some(_), promotion) => *promotion = None,
            (None, promotion) => promotion.iter_mut().for_each(|promotion| promotion.decided = true),
        });
        match (written, other) {
            (Err(error), Some(_)) => self.fail(format!("a promotion cannot be taken back: {error}")),
            // It is asked again when the member is opened anew.
            (Err(error), None) => tracing::warn!(%error, "that the promotion goes on cannot be written down"),
            (Ok(()), _) => {}
        }
    }
}

impl Node {
    /// Makes the best member of this one's site the primary, although writes may be lost.
    pub async fn force(&self, ctx: &RequestContext, request: ForceRequest) -> Result<ForceReply, NodeError> {
        let (inner, url) = (self.0.clone(), self.0.info.client_url.clone());
        let task = self.0.background.handle.spawn(async move { inner.force(request).await });
        let unknown =
            |what: &str| NodeError::Unknown { detail: format!("{what}. See lifeboat dr survey --endpoints {url}") };
        match tokio::time::timeout_at(ctx.deadline.into(), task).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(unknown("the member stopped")),
            Err(_) => Err(unknown("no answer before the deadline")),
        }
    }

    /// Who answers, what each holds, and what a forced failover would lose.
    pub async fn survey(&self) -> Result<crate::api::SurveyReply, NodeError> {
        let inner = self.0.clone();
        let task = self.0.background.handle.spawn(async move { inner.survey_reply().await });
        task.await.map_err(|_| NodeError::Stopping)
    }
}

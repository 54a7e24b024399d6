//! The fence: what a member does when it learns that history went on without it.
//!
//! In this order: it acknowledges, votes and serves nothing any more, in memory; it writes a mark into `member.json`; it
//! asks to be closed and opened anew. The mark keeps it in the lobby then, where it runs no Raft and opens no store, says
//! that it is fenced and where the branch goes on, and passes the news on to members that ask ([`super::kin`]); after a
//! restart too, for as long as nobody lets it rejoin.
//!
//! What it had acknowledged until then and the other branch lacks is stranded, not lost: `wal/` and `history/` stay as they
//! are until a rejoin has salvaged them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::kin::{Kin, Place};
use super::survey::Survey;
use crate::api::{DrReply, Objectives, PlanStep, RejoinReply, RejoinRequest, TimelineName};
use crate::model::{MemberId, Timeline, format_member_id};
use crate::node::identity::Belonging;
use crate::node::{Inner, Node, NodeError};
use crate::raft::types::MemberInfo;

/// How long a fenced member goes on refusing before it is opened anew, so that replies that are under way still get out.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Before a mark that could not be written is written again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// The mark in `member.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fenced {
    /// The branch that goes on, from the first timeline to its newest.
    pub by: Vec<Timeline>,
    /// The site where it goes on.
    pub site: String,
    /// Members there.
    pub members: Vec<Place>,
    /// Since when, in milliseconds since 1970, by this member's clock.
    pub since_ms: u64,
    /// Whether it shall rejoin without being told.
    #[serde(default)]
    pub rejoin: bool,
    /// How it stood when it was fenced.
    pub stood: Survey,
}

impl PartialEq for Fenced {
    fn eq(&self, other: &Fenced) -> bool {
        (&self.by, &self.members, self.since_ms, self.rejoin)
            == (&other.by, &other.members, other.since_ms, other.rejoin)
    }
}

impl Eq for Fenced {}

impl Fenced {
    /// The mark of a member that hears of a branch while neither its log nor its history is open.
    pub fn while_closed(theirs: Kin, own: MemberId, belonging: &Belonging) -> Fenced {
        let own_id = format_member_id(own);
        let since_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let timeline = belonging.timeline;
        let stood = Survey { fenced: true, quarantined: true, ..Survey::while_closed(own, belonging.id, timeline) };
        let rejoin = theirs.rejoin.contains(&own_id);
        Fenced { rejoin, by: theirs.timelines, site: theirs.site, members: theirs.members, since_ms, stood }
    }

    /// What clients are told.
    pub fn error(&self) -> NodeError {
        let number = self.by.last().map_or(0, |timeline| timeline.number);
        let (site, next) = (&self.site, self.next_command());
        let detail = format!("site {site} goes on without it, on timeline {number}. See {next}");
        NodeError::Fenced { detail, primary: self.members.first().map(|member| member.client_url.clone()) }
    }

    /// What is told to whoever lets it rejoin.
    pub fn rejoin_reply(&self, info: &MemberInfo) -> RejoinReply {
        RejoinReply {
            member: info.name.clone(),
            site: self.site.clone(),
            timeline: self.timeline(),
            next: self.next_command(),
        }
    }

    /// What shows where things stand: asked on the branch that goes on.
    fn next_command(&self) -> String {
        match self.client_url() {
            "" => "lifeboat dr plan".to_owned(),
            url => format!("lifeboat dr plan --endpoints {url}"),
        }
    }

    fn timeline(&self) -> TimelineName {
        let newest = self.by.last();
        TimelineName {
            number: newest.map_or(0, |timeline| timeline.number),
            id: newest.map(|timeline| timeline.id).unwrap_or_default(),
        }
    }

    /// Where clients reach a member of the branch that goes on.
    fn client_url(&self) -> &str {
        self.members.first().map_or("", |member| &member.client_url)
    }

    /// What a fenced member says of the cluster.
    pub fn dr(&self, info: &MemberInfo, objectives: Objectives) -> DrReply {
        let MemberInfo { name, client_url, .. } = info;
        let plan = match self.rejoin {
            true => PlanStep {
                why: format!(
                    "{name} comes home to site {} as a mirror: it writes down what only it has, takes over what both have, \
                     and joins. It asks until it is answered; where it goes on",
                    self.site
                ),
                command: format!("lifeboat dr plan --endpoints {}", self.client_url()),
            },
            false => PlanStep {
                why: format!(
                    "{name} is fenced; let it come home as a mirror. Nothing is lost: what only it has is written to a \
                     salvage file first"
                ),
                command: format!("lifeboat dr rejoin --endpoints {client_url}"),
            },
        };
        DrReply {
            primary_site: Some(self.site.clone()),
            standby_sites: Vec::new(),
            objectives,
            confirmed: false,
            quorum_margin: None,
            warnings: vec![format!("{name}: {}", self.error())],
            plan: vec![plan],
            switchover: None,
        }
    }

    /// What it says of a second site that was forced from the same parent: this member may come home to either.
    pub fn choice(&self, info: &MemberInfo, other_site: &str) -> (String, PlanStep) {
        let warning = format!("SPLIT: site {other_site} was forced too, from the same parent as {}", self.site);
        let why = format!("or, when {} is given up: let {} come home to {other_site} instead", self.site, info.name);
        let (by, url) = (self.timeline().id, &info.client_url);
        (warning, PlanStep { why, command: format!("lifeboat dr rejoin --abandon-timeline {by} --endpoints {url}") })
    }

    /// Takes in what a member of the branch, or of one that came of it, says now. Says whether anything is new.
    pub fn hear(&mut self, theirs: &Kin, own_id: &str) -> bool {
        let before = self.clone();
        self.by.clone_from(&theirs.timelines);
        self.site.clone_from(&theirs.site);
        self.members.clone_from(&theirs.members);
        self.rejoin |= theirs.rejoin.iter().any(|id| id == own_id);
        *self != before
    }
}

impl Inner {
    /// Whether this member is fenced.
    pub(in crate::node) fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Acquire)
    }

    /// By what this member is fenced; none when it is not.
    pub(in crate::node) fn fenced(&self) -> Option<Fenced> {
        if !self.is_fenced() {
            return None;
        }
        self.home.lock().file.fenced.clone()
    }

    /// History went on without this member, as a member of the other branch says.
    pub(in crate::node) fn fence(self: &Arc<Self>, theirs: Kin) {
        let own_id = format_member_id(self.id);
        let since_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let fenced = Fenced {
            rejoin: theirs.rejoin.contains(&own_id),
            by: theirs.timelines,
            site: theirs.site,
            members: theirs.members,
            since_ms,
            stood: Survey { fenced: true, leads: false, promoting: None, ..self.own_survey() },
        };
        let written = {
            let mut home = self.home.lock();
            if self.is_fenced.swap(true, Ordering::AcqRel) {
                return;
            }
            // From here on no message of another member is believed, and no stream of one is read any further.
            self.http.identity().fence();
            let written = home.change(|file| file.fenced = Some(fenced.clone()));
            if written.is_err() {
                home.file.fenced = Some(fenced.clone());
            }
            written
        };
        tracing::error!(why = %fenced.error(), "this member is fenced: it serves nothing and votes for nobody");
        self.events.record("fenced", fenced.error().to_string());
        self.watches.stop();
        let inner = self.clone();
        self.background.handle.spawn(async move {
            let mut written = written;
            while let Err(error) = written {
                // Fenced in memory meanwhile. Opened anew it would be what the file says, and that must be this.
                tracing::error!(%error, "the fence cannot be written down yet");
                tokio::time::sleep(WRITE_AGAIN).await;
                written = inner.home.lock().change(|file| file.fenced = Some(fenced.clone()));
            }
            tokio::time::sleep(LAST_WORDS).await;
            inner.reopen.send_replace(true);
        });
    }
}

impl Inner {
    /// Lets this member rejoin the branch that goes on. One that is not fenced can only give its own up.
    fn rejoin(self: &Arc<Self>, request: &RejoinRequest) -> Result<RejoinReply, NodeError> {
        if self.is_fenced() {
            let mut home = self.home.lock();
            let written = home.change(|file| file.fenced.iter_mut().for_each(|fenced| fenced.rejoin = true));
            written.map_err(|error| NodeError::StorageFailed { detail: error.to_string() })?;
            let fenced = home.file.fenced.as_ref();
            return Ok(fenced.expect("a fenced member has the mark").rejoin_reply(&self.info));
        }
        let own = self.store.timelines().last().map(|timeline| timeline.id);
        let url = &self.info.client_url;
        let Some(mut theirs) = self.split() else {
            let detail = format!(
                "{} is not fenced, and has met no other branch: there is nothing to rejoin. See \
                 lifeboat dr plan --endpoints {url}",
                self.info.name
            );
            return Err(NodeError::NotFenced { detail });
        };
        if own.is_none() || request.abandon_timeline != own {
            let own = own.unwrap_or_default();
            let detail = format!(
                "{} is not fenced: its site was forced, and so was {}. To give up what this site wrote since, on every \
                 member of it: lifeboat dr rejoin --abandon-timeline {own} --endpoints {url}",
                self.info.name, theirs.site
            );
            return Err(NodeError::NotFenced { detail });
        }
        theirs.rejoin = vec![format_member_id(self.id)];
        self.fence(theirs);
        self.rejoin(request)
    }
}

impl Node {
    /// Lets this member rejoin the branch that goes on.
    pub fn rejoin(&self, request: &RejoinRequest) -> Result<RejoinReply, NodeError> {
        self.0.rejoin(request)
    }

    /// By what this member is fenced; none when it is not.
    pub fn fenced(&self) -> Option<Fenced> {
        self.0.fenced()
    }
}

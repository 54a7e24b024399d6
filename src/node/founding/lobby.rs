//! What a member answers to others before it has a cluster: who it is, and whether it agrees to a proposal.
//!
//! The lobby is open from the moment the listener is bound until the node serves, so that members find each other while
//! they wait. What it holds is written to `member.json` before anybody is told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::protocol::{Held, Own, Round, Standing, Step, accepts, decide, obstacle};
use super::{HoldAnswer, HoldRequest, SurveyAnswer};
use crate::api::{DrReply, Objectives, RejoinReply, RejoinRequest};
use crate::model::{Kinship, Timeline, TimelineId, format_member_id, kinship};
use crate::node::dr::advice::Waits;
use crate::node::dr::kin::Kin;
use crate::node::dr::rivals::Rival;
use crate::node::dr::survey::{Survey, SurveyQuestion};
use crate::node::dr::{Fenced, Promotion, Rivalry};
use crate::node::identity::{Belonging, Home};
use crate::node::peer::{PeerBody, collect, read_json, write_json};
use crate::node::quarantine::{Quarantine, QuarantineAnswer};
use crate::node::{NodeError, PeerReply, PeerRequest, StartError, peer_path};
use crate::raft::fence::{Identity, PEER_FORMAT};
use crate::raft::types::MemberInfo;

/// Who asks before the member has read who it is waits for that, so long at most.
const KNOWN: Duration = Duration::from_secs(5);

/// What members hear that ask before this one has a cluster. Cloning gives another handle to the same lobby.
#[derive(Clone, Default)]
pub struct Lobby {
    member: Arc<Mutex<Option<Waiting>>>,
    guest: Arc<Mutex<Option<Guest>>>,
    repairs: Arc<Mutex<Option<Repairs>>>,
    fenced: Arc<Mutex<Option<FencedMember>>>,
    /// Told when the fenced member shall rejoin.
    rejoin: Arc<Notify>,
    /// Whether the member has read who it is, or will not tell any more.
    known: watch::Sender<bool>,
}

/// The member that will serve.
struct Waiting {
    own: Own,
    objectives: Objectives,
    /// Its cluster, and what it has been told to begin there.
    cluster: Option<Belonging>,
    promotion: Option<Promotion>,
    rivalry: Rivalry,
    /// Whom it asks to be taken into a cluster.
    asks: Option<String>,
}

/// A member that is fenced.
struct FencedMember {
    own: Own,
    objectives: Objectives,
    mark: Fenced,
    identity: Arc<Identity>,
    /// Where the mark is written; none while the member rejoins.
    home: Option<Home>,
    /// A branch that was forced from the same parent as the one that fenced the member.
    sibling: Option<Kin>,
}

/// A member that repairs itself before it serves again.
struct Repairs {
    why: Quarantine,
    identity: Arc<Identity>,
    /// A branch that went on without it, once it has heard of one.
    left_by: watch::Sender<Option<Kin>>,
}

/// The member that waits in it.
struct Guest {
    own: Own,
    home: Home,
    /// Counts the changes of what it holds.
    version: u64,
    sees_cluster: bool,
    /// Why its last round of questions forbids a new cluster; before the first round, that there was none.
    obstacle: Option<String>,
    /// What it waits for, as its last round of questions has shown.
    waits_for: Option<String>,
}

impl Lobby {
    /// The member that owns `home` is about to be opened.
    pub(in crate::node) fn opens(&self, own: Own, home: &Home, objectives: Objectives, join: &[String]) {
        let asks = (!join.is_empty()).then(|| format!("it asks {} to be taken in", join.join(", ")));
        let (cluster, promotion) = (home.file.cluster, home.file.promotion.clone());
        *self.member.lock() = Some(Waiting { own, objectives, cluster, promotion, rivalry: Rivalry::default(), asks });
        self.known.send_replace(true);
    }

    /// Waits until the member has read who it is: one that is opened anew because it is fenced must not say in between that
    /// it has just started.
    pub async fn knows_itself(&self) {
        let mut known = self.known.subscribe();
        // Too late is said as such.
        let _ = tokio::time::timeout(KNOWN, known.wait_for(|known| *known)).await;
    }

    /// Decides whether the member begins its timeline, of what others of its site have answered; gives the one to give way to.
    pub(in crate::node) fn decide(&self, own: TimelineId, answered: &[Rival]) -> Option<TimelineId> {
        match self.member.lock().as_mut() {
            Some(waiting) => waiting.rivalry.decide(own, answered),
            // Nobody can have met it.
            None => Rivalry::default().decide(own, answered),
        }
    }

    /// The member does not begin the timeline that it was told to begin.
    pub(in crate::node) fn not_promoted(&self) {
        self.member.lock().iter_mut().for_each(|waiting| waiting.promotion = None);
    }

    /// The member that owns `home` begins to wait.
    pub(in crate::node) fn enter(&self, own: Own, home: Home) {
        let obstacle = Some("this member has not asked the others yet".to_owned());
        *self.guest.lock() = Some(Guest { own, home, version: 0, sees_cluster: false, obstacle, waits_for: None });
        self.known.send_replace(true);
    }

    /// It has waited long enough; from now on the lobby says that the member is about to serve.
    pub(in crate::node) fn leave(&self) -> Home {
        self.guest.lock().take().expect("the member has entered before").home
    }

    /// The member repairs its history, for this reason, before it serves.
    pub(in crate::node) fn repairs(&self, why: Quarantine, identity: Arc<Identity>) {
        *self.repairs.lock() = Some(Repairs { why, identity, left_by: watch::Sender::new(None) });
    }

    /// Waits until the member that repairs itself hears that history went on without it: then nobody may repair it.
    pub(in crate::node) async fn left_by(&self) -> Kin {
        let mut heard = match &*self.repairs.lock() {
            Some(repairs) => repairs.left_by.subscribe(),
            None => watch::Sender::new(None).subscribe(),
        };
        match heard.wait_for(Option::is_some).await.map(|kin| kin.clone()) {
            Ok(Some(kin)) => kin,
            _ => std::future::pending().await,
        }
    }

    /// Notes which branch goes on, for a member that repairs itself.
    async fn note_branch(&self, body: PeerBody) {
        let Ok(body) = collect(body).await else { return };
        let Ok(theirs) = read_json::<Kin>(&body) else { return };
        if let Some(repairs) = &*self.repairs.lock() {
            let ours = [Timeline::first(repairs.identity.timeline())];
            let same_cluster = theirs.cluster == repairs.identity.cluster;
            if same_cluster && kinship(&ours, &theirs.timelines) == Kinship::Ancestor {
                repairs.left_by.send_replace(Some(theirs));
            }
        }
    }

    /// The member is fenced. Returns when it shall rejoin; until the lobby closes it says that it is fenced.
    pub(in crate::node) async fn fenced_until_rejoin(
        &self,
        own: Own,
        home: Home,
        identity: Arc<Identity>,
        objectives: Objectives,
    ) -> Home {
        if let Some(mark) = home.file.fenced.clone() {
            *self.fenced.lock() =
                Some(FencedMember { own, objectives, mark, identity, home: Some(home), sibling: None });
        }
        self.known.send_replace(true);
        loop {
            let told = self.rejoin.notified();
            if let Some(fenced) = self.fenced.lock().as_mut()
                && fenced.mark.rejoin
                && let Some(home) = fenced.home.take()
            {
                return home;
            }
            told.await;
        }
    }

    /// By what the member is fenced, and who it is; none when it is not.
    pub fn fenced(&self) -> Option<(Fenced, MemberInfo)> {
        self.fenced.lock().as_ref().map(|fenced| (fenced.mark.clone(), fenced.own.info.clone()))
    }

    /// What the member says of the cluster, and what to do; none before it knows who it is.
    pub fn dr(&self) -> Option<DrReply> {
        self.fenced_dr().or_else(|| self.waiting(|waits, info, objectives| waits.dr(info, objectives)))
    }

    /// Why the member cannot serve.
    pub fn why(&self) -> NodeError {
        match self.fenced() {
            Some((fenced, _)) => fenced.error(),
            // It has not even read yet who it is.
            None => self
                .waiting(|waits, info, _| waits.error(info))
                .unwrap_or_else(|| NodeError::Opening { detail: "it has just started".to_owned() }),
        }
    }

    /// Tells what the member waits for when it is not fenced, and who it is.
    fn waiting<T>(&self, tell: impl FnOnce(Waits<'_>, &MemberInfo, Objectives) -> T) -> Option<T> {
        let quarantine = self.quarantined();
        let waits_for = self.guest.lock().as_ref().and_then(|guest| guest.waits_for.clone().or(guest.obstacle.clone()));
        let waiting = self.member.lock();
        let Waiting { own, objectives, cluster, promotion, asks, .. } = waiting.as_ref()?;
        let waits = match (&quarantine, promotion) {
            (Some(quarantine), _) => Waits::Repairs(quarantine),
            (None, Some(promotion)) => Waits::Promoted(promotion),
            (None, None) if cluster.is_some() => Waits::Opens,
            (None, None) => Waits::Joins(asks.as_ref().or(waits_for.as_ref()).map_or("it has just begun", |what| what)),
        };
        Some(tell(waits, &own.info, *objectives))
    }

    /// How a member stands that is about to begin a timeline, as it answers whoever asks, perhaps for being told so too.
    fn promoted(&self, question: &SurveyQuestion) -> Option<Survey> {
        let mut waiting = self.member.lock();
        let Waiting { own, cluster, promotion, rivalry, .. } = waiting.as_mut()?;
        let (cluster, promotion) = ((*cluster)?, promotion.as_ref()?);
        question.promoting.iter().for_each(|theirs| rivalry.meet(*theirs));
        let closed = Survey::while_closed(own.id, cluster.id, promotion.parent);
        let decided = promotion.decided || rivalry.is_decided();
        Some(Survey { promoting: Some(promotion.id), decided, ..closed })
    }

    /// What a fenced member says of the cluster.
    fn fenced_dr(&self) -> Option<DrReply> {
        let fenced = self.fenced.lock();
        let fenced = fenced.as_ref()?;
        let mut dr = fenced.mark.dr(&fenced.own.info, fenced.objectives);
        if let Some(sibling) = fenced.sibling.as_ref().filter(|_| fenced.home.is_some()) {
            let (warning, step) = fenced.mark.choice(&fenced.own.info, &sibling.site);
            dr.warnings.push(warning);
            dr.plan.push(step);
        }
        Some(dr)
    }

    /// Lets the fenced member rejoin. Where two branches were forced from one parent, the request may give up the one that
    /// fenced it, for the other.
    pub fn rejoin(&self, request: &RejoinRequest) -> Result<RejoinReply, NodeError> {
        let mut fenced = self.fenced.lock();
        let Some(fenced) = fenced.as_mut() else { return Err(NodeError::NotJoined) };
        let by = fenced.mark.by.last().map(|timeline| timeline.id);
        let other = fenced.sibling.clone().filter(|_| request.abandon_timeline.is_some());
        match (request.abandon_timeline, other) {
            (None, _) => fenced.change(|mark| mark.rejoin = true)?,
            (given_up, Some(other)) if given_up == by => fenced.change(|mark| {
                mark.hear(&other, "");
                mark.rejoin = true;
            })?,
            _ => {
                let detail = format!(
                    "abandon_timeline: it was not fenced by this timeline, or has met no other one. See lifeboat dr plan \
                     --endpoints {}",
                    fenced.own.info.client_url
                );
                return Err(NodeError::NotFenced { detail });
            }
        }
        self.rejoin.notify_one();
        Ok(fenced.mark.rejoin_reply(&fenced.own.info))
    }

    /// A member tells which branch goes on; the answer says what this one knows of that.
    fn meet(&self, theirs: &Kin) -> Result<Bytes, (StatusCode, String)> {
        let mut fenced = self.fenced.lock();
        let Some(fenced) = fenced.as_mut() else {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "the member is being opened".into()));
        };
        if kinship(&fenced.mark.by, &theirs.timelines) == Kinship::Siblings {
            fenced.sibling = Some(theirs.clone());
        }
        if fenced.identity.cluster == theirs.cluster
            && matches!(kinship(&fenced.mark.by, &theirs.timelines), Kinship::Same | Kinship::Ancestor)
        {
            let own = format_member_id(fenced.own.id);
            let mut heard = fenced.mark.clone();
            if heard.hear(theirs, &own) {
                let written = fenced.change(|mark| *mark = heard);
                written.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
            }
            if fenced.mark.rejoin {
                self.rejoin.notify_one();
            }
        }
        Ok(write_json(&fenced.kin(theirs)))
    }

    /// The member serves by itself from now on.
    pub fn close(&self) {
        *self.member.lock() = None;
        *self.fenced.lock() = None;
        *self.repairs.lock() = None;
        self.known.send_replace(true);
    }

    /// Why the member is in quarantine; none when it only waits, or serves.
    pub fn quarantined(&self) -> Option<Quarantine> {
        self.repairs.lock().as_ref().map(|repairs| repairs.why.clone())
    }

    /// Works on the guest, who is there while it waits.
    fn guest<T>(&self, work: impl FnOnce(&mut Guest) -> T) -> T {
        work(self.guest.lock().as_mut().expect("the member waits in the lobby"))
    }

    /// The guest, and how often what it holds has changed.
    pub(super) fn own(&self) -> (u64, Own) {
        self.guest(|guest| (guest.version, guest.own.clone()))
    }

    pub(super) fn held(&self) -> Option<Held> {
        self.guest(|guest| guest.home.file.held.clone())
    }

    /// Decides after a round of questions, unless what is held has changed since `version`.
    pub(super) fn step(&self, version: u64, round: &Round) -> Option<Step> {
        self.guest(|guest| {
            guest.sees_cluster = round.seen.iter().any(|one| matches!(one.standing, Standing::Belongs { .. }));
            guest.obstacle = obstacle(round);
            let step = (guest.version == version).then(|| decide(&guest.own, guest.home.file.held.as_ref(), round));
            if let Some(Step::Wait(what)) = &step {
                guest.waits_for = Some(what.clone());
            }
            step
        })
    }

    /// Holds a proposal, or none, unless that has changed since `version`.
    pub(super) fn hold(&self, version: u64, held: Option<Held>) -> Result<(), StartError> {
        self.guest(|guest| if guest.version == version { guest.hold(held) } else { Ok(()) })
    }

    /// Belongs to the cluster of the proposal that is held, unless that has changed since `version`.
    pub(super) fn begin(&self, version: u64) -> Result<Option<Belonging>, StartError> {
        self.guest(|guest| {
            let Some(held) = guest.home.file.held.as_ref().filter(|_| guest.version == version) else {
                return Ok(None);
            };
            let Held { proposal, .. } = held;
            let belonging =
                Belonging { id: proposal.cluster, timeline: proposal.timeline, founder: true, has_log: false };
            guest.home.change(|file| file.cluster = Some(belonging))?;
            self.belongs(belonging);
            Ok(Some(belonging))
        })
    }

    /// Belongs to a cluster that was there; whatever was held is of no use any more.
    pub(in crate::node) fn belong(&self, belonging: Belonging) -> Result<(), StartError> {
        self.guest(|guest| {
            guest.home.change(|file| {
                file.cluster = Some(belonging);
                file.held = None;
            })
        })?;
        self.belongs(belonging);
        Ok(())
    }

    fn belongs(&self, belonging: Belonging) {
        self.member.lock().iter_mut().for_each(|member| member.cluster = Some(belonging));
    }

    /// Answers another member.
    pub async fn answer(&self, request: PeerRequest) -> PeerReply {
        self.knows_itself().await;
        let request = match self.repairs.lock().is_some() && request.path == peer_path::KIN {
            true => {
                self.note_branch(request.body).await;
                PeerRequest { body: Box::pin(futures_util::stream::empty()), ..request }
            }
            false => request,
        };
        if let Some(Repairs { why, identity, .. }) = &*self.repairs.lock() {
            // In its own name, so that others know that it lives and what it does.
            let body = write_json(&QuarantineAnswer { quarantined: why.clone() });
            return PeerReply { status: StatusCode::SERVICE_UNAVAILABLE, headers: identity.headers(None), body };
        }
        let identity = self.fenced.lock().as_ref().map(|fenced| fenced.identity.clone());
        if let Some(identity) = identity {
            let (status, body) = match self.answer_fenced(request).await {
                Ok(body) => (StatusCode::OK, body),
                Err((status, why)) => (status, Bytes::from(why)),
            };
            return PeerReply { status, headers: identity.headers(None), body };
        }
        let (status, body) = match self.try_answer(request).await {
            Ok(body) => (StatusCode::OK, body),
            Err((status, why)) => (status, Bytes::from(why)),
        };
        PeerReply { status, headers: HeaderMap::new(), body }
    }

    /// Only who it is, how it stood, and which branch goes on: nothing that has to do with Raft.
    async fn answer_fenced(&self, request: PeerRequest) -> Result<Bytes, (StatusCode, String)> {
        let (path, body) = (request.path, collect(request.body).await?);
        if path == peer_path::KIN {
            return self.meet(&read_json::<Kin>(&body)?);
        }
        match (self.fenced.lock().as_ref(), path.as_str()) {
            (Some(fenced), peer_path::SURVEY) => Ok(write_json(&fenced.describe())),
            (Some(fenced), peer_path::DR_SURVEY) => Ok(write_json(&fenced.mark.stood)),
            _ => Err((StatusCode::MISDIRECTED_REQUEST, "this member is fenced".into())),
        }
    }

    async fn try_answer(&self, request: PeerRequest) -> Result<Bytes, (StatusCode, String)> {
        let (path, body) = (request.path, collect(request.body).await?);
        if path == peer_path::DR_SURVEY
            && let Some(survey) = self.promoted(&read_json(&body)?)
        {
            return Ok(write_json(&survey));
        }
        let mut guest = self.guest.lock();
        let Some(guest) = guest.as_mut() else {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "the member is being opened".into()));
        };
        match path.as_str() {
            peer_path::SURVEY => Ok(write_json(&guest.describe())),
            peer_path::HOLD => {
                let asked: HoldRequest = read_json(&body)?;
                Ok(write_json(&HoldAnswer { result: guest.asked_to_hold(asked) }))
            }
            _ => Err((StatusCode::SERVICE_UNAVAILABLE, "this member belongs to no cluster yet".into())),
        }
    }
}

impl FencedMember {
    /// Changes the mark durably, or not at all.
    fn change(&mut self, change: impl FnOnce(&mut Fenced)) -> Result<(), NodeError> {
        let mut mark = self.mark.clone();
        change(&mut mark);
        if let Some(home) = &mut self.home {
            let written = home.change(|file| file.fenced = Some(mark.clone()));
            written.map_err(|error| NodeError::StorageFailed { detail: error.to_string() })?;
        }
        self.mark = mark;
        Ok(())
    }

    fn describe(&self) -> SurveyAnswer {
        let cluster = self.identity.cluster;
        SurveyAnswer::new(self.own.id, self.own.info.clone(), None, Standing::Belongs { cluster })
    }

    fn kin(&self, asker: &Kin) -> Kin {
        Kin {
            format: PEER_FORMAT,
            cluster: asker.cluster,
            member_id: format_member_id(self.own.id),
            name: self.own.info.name.clone(),
            site: self.mark.site.clone(),
            timelines: self.mark.by.clone(),
            members: self.mark.members.clone(),
            rejoin: Vec::new(),
            comes_home: Some(self.mark.rejoin),
        }
    }
}

impl Guest {
    fn describe(&self) -> SurveyAnswer {
        let standing = match &self.home.file.cluster {
            Some(belonging) => Standing::Belongs { cluster: belonging.id },
            None => Standing::Empty { held: self.home.file.held.clone(), sees_cluster: self.sees_cluster },
        };
        SurveyAnswer::new(self.own.id, self.own.info.clone(), self.own.expect, standing)
    }

    fn hold(&mut self, held: Option<Held>) -> Result<(), StartError> {
        self.home.change(|file| file.held = held)?;
        self.version += 1;
        Ok(())
    }

    fn asked_to_hold(&mut self, asked: HoldRequest) -> Result<(), String> {
        if asked.format != PEER_FORMAT {
            return Err(format!("peer format {} is not {PEER_FORMAT}", asked.format));
        }
        if self.home.file.cluster.is_some() {
            return Err("this member belongs to a cluster".into());
        }
        let (proposal, held) = (asked.proposal, self.home.file.held.as_ref());
        accepts(&self.own, held, self.obstacle.as_deref(), &proposal)?;
        if held.is_some_and(|held| held.proposal == proposal) {
            return Ok(());
        }
        tracing::info!(cluster = %proposal.cluster, "this member agrees to a new cluster");
        self.hold(Some(Held { proposal, frozen: false })).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::files::{Disk, RealDisk};
    use crate::model::MemberRole;
    use crate::node::identity::MemberFile;

    #[tokio::test]
    async fn who_asks_before_the_member_has_read_who_it_is_waits_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let opened =
            |path: &Path| Home::new(disk.clone(), path.to_owned(), MemberFile::open(&*disk, path, "n1").unwrap());
        let url = "http://n1:1".to_owned();
        let info = MemberInfo {
            name: "n1".into(),
            site: "east".into(),
            role: MemberRole::Voter,
            client_url: url.clone(),
            peer_url: url,
        };
        let own = Own { id: 1, info, expect: None };
        let objectives = Objectives { rpo_seconds: 1.0, rto_seconds: 1.0 };
        let (reopened, closed) = (Lobby::default(), Lobby::default());
        let ask = |lobby: &Lobby| {
            let lobby = lobby.clone();
            tokio::spawn(async move {
                lobby.knows_itself().await;
                lobby.why().to_string()
            })
        };
        let asked = [&reopened, &closed].map(ask);
        tokio::task::yield_now().await;
        assert!(asked.iter().all(|asked| !asked.is_finished()), "nothing is known yet");
        reopened.opens(own, &opened(dir.path()), objectives, &[]);
        // One that could not be opened keeps nobody waiting.
        closed.close();
        let [told, given_up] = asked;
        assert!(!told.await.unwrap().contains("just started"));
        assert!(given_up.await.unwrap().contains("just started"));
    }
}

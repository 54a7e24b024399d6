//! Rejoin: how a fenced member comes home to the branch that goes on, as a new member with a base of old content.
//!
//! It happens while the member is opened, before Raft starts, and is led by a mark in `member.json` ([`Rejoin`]), so that a
//! member that dies on the way goes on at its next start:
//!
//! ```text
//!   begun ──> salvaged ──> aside ───────> rewound ──> joined ──> (copy, Raft, verified) ──> mark removed
//!      common point,  history/, wal/   the common part   under the         [`finish`]
//!      salvage file   renamed, a new   staged in a new   new id, as
//!                     id drawn         history/          a mirror
//! ```
//!
//! - Everything that is known to be committed in the old log is applied first, so that history means what the abandoned
//!   timeline had committed as far as this member knows.
//! - The common point is found with any member of the branch ([`super::common`]), then what lies beyond it is salvaged
//!   ([`super::salvage`]). Only when that is durable does anything move.
//! - The old id never comes back: what it voted for and acknowledged belongs to the abandoned timeline. The id is drawn in the
//!   step that says that the old files are aside, so no old file is ever opened under the new one.
//! - What is taken over of the old history ([`Store::rewind`]) is no content: the leader sends what comes after it, or all.
//! - What was set aside stays until the new content is verified; the salvage file stays for ever. Old files that cannot be
//!   read are no reason to stay away: nothing is salvaged and nothing taken over then, and they stay where they are set
//!   aside, for people.
//!
//! Each step can be repeated, also when it was done and not marked. While no member of the branch answers, it asks again,
//! with growing pauses, for ever. Proven by `rejoin/tests.rs` beside this file: every step twice, and what comes of it.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::common::{CommonAnswer, CommonPosition, CommonQuestion, Found, Search};
use super::salvage::{SALVAGE_DIR, Salvage};
use crate::api::{SalvageCounts, SalvageFork, SalvageMember, SalvageTimeline};
use crate::config::Config;
use crate::crash_points::{reach, reach_blocking};
use crate::files::aside;
use crate::model::{ClusterId, MemberId, MemberRole, Timeline, format_member_id};
use crate::node::identity::{Belonging, Home};
use crate::node::join::{self, JoinAnswer, JoinRequest};
use crate::node::open::open_storage;
use crate::node::peers_file::PeersFile;
use crate::node::{Inner, StartError, peer_path};
use crate::raft::peer_http::AskStranger;
use crate::raft::types::MemberInfo;
use crate::store::{Point, Promised, Rewound, Store, StoreError};
use crate::wal::{Wal, WalError};

/// The first pause after nobody could help; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_LAST: Duration = Duration::from_secs(5);
/// How long a member may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// So many bytes of log entries are applied at a time.
const APPLY_BYTES: usize = 4 << 20;

/// How far a rejoin has come: what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// It has been begun.
    Begun,
    /// The common point is known, and what lies beyond it is in the salvage file.
    Salvaged,
    /// The old files have other names, and the member has another id.
    Aside,
    /// What is common is staged in the new history.
    Rewound,
    /// The cluster has taken the member in.
    Joined,
}

/// The mark in `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoin {
    /// What is done.
    pub step: Step,
    /// Since when, in milliseconds since 1970, by this member's clock.
    pub since_ms: u64,
    /// The id that the member had, 16 hexadecimal digits.
    pub old_id: String,
    /// The name under which the old history is set aside, in the data directory.
    pub history_aside: String,
    /// The name under which the old log is.
    pub wal_aside: String,
    /// Where the histories part, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parted: Option<Parted>,
    /// The salvage file, when there was something to write, and what it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salvage: Option<(String, SalvageCounts)>,
    /// Why the old files cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// What was taken over of the old history, in words.
    #[serde(default)]
    pub taken: String,
}

/// Where two histories part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parted {
    /// The abandoned timeline.
    pub from: SalvageTimeline,
    /// The timeline that goes on.
    pub onto: SalvageTimeline,
    /// The last common point; none when nothing is common.
    pub common: Option<Point>,
    /// What is known of the histories.
    pub history: Found,
    /// What a copy of the new timeline is good for.
    pub promises: Promised,
}

impl Rejoin {
    fn new(old_id: MemberId) -> Rejoin {
        let since_ms = now_ms();
        Rejoin {
            step: Step::Begun,
            since_ms,
            old_id: format_member_id(old_id),
            history_aside: format!("history.left-{since_ms:013}"),
            wal_aside: format!("wal.left-{since_ms:013}"),
            parted: None,
            salvage: None,
            damage: None,
            taken: String::new(),
        }
    }

    /// Removes what was set aside, unless it could not be read: then it is kept for people.
    fn remove_aside(&self, dir: &Path) -> std::io::Result<()> {
        if self.damage.is_some() {
            return Ok(());
        }
        aside::remove(dir, &self.history_aside)?;
        aside::remove(dir, &self.wal_aside)
    }

    /// What was salvaged, for an event.
    pub fn salvaged(&self) -> String {
        match (&self.salvage, &self.damage) {
            (_, Some(damage)) => format!(
                "nothing could be salvaged: {damage}. The old files are kept as {} and {}",
                self.history_aside, self.wal_aside
            ),
            (None, None) => "it had nothing that the new timeline lacks".into(),
            (Some((file, counts)), None) => format!(
                "{} applied writes and {} of unknown fate are in {SALVAGE_DIR}/{file}; next: lifeboat salvage list",
                counts.applied, counts.unknown
            ),
        }
    }

    /// How it came back, for an event.
    pub fn rejoined(&self) -> String {
        let position = self.parted.as_ref().and_then(|parted| parted.history.last);
        let position = position.map_or("nothing".into(), |position| format!("all up to position {position}"));
        format!("it came back under a new id, had {position} in common, and took over: {}", self.taken)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// What is needed to come home.
pub(in crate::node) struct Rejoining<'r, H> {
    /// The member's configuration.
    pub config: &'r Config,
    /// Its home. It belongs to the cluster, and is fenced or was.
    pub home: &'r mut Home,
    /// The member, with its addresses.
    pub info: &'r MemberInfo,
    /// The branch that goes on, and where its members are reached, as they are known at the moment: more may be heard while
    /// the member rejoins.
    pub branch: &'r (dyn Fn() -> Branch + Sync),
    /// To ask them.
    pub http: &'r H,
}

/// The branch that goes on, as far as it is known.
#[derive(Debug, Clone, Default)]
pub(in crate::node) struct Branch {
    /// Its timelines.
    pub timelines: Vec<Timeline>,
    /// Where its members are reached by members.
    pub peers: Vec<String>,
}

/// What was found out with another member.
struct Agreed {
    parted: Parted,
    log: Found,
    fork: SalvageFork,
}

impl<H: AskStranger> Rejoining<'_, H> {
    /// Goes all the way. Afterwards `home` has the new id and belongs to the branch that goes on; its storage is empty but for
    /// what is staged, and the member is opened like one that has just joined.
    pub async fn run(mut self) -> Result<(), StartError> {
        while self.step().await? < Step::Joined {}
        Ok(())
    }

    /// Does what comes next, and says what is done then.
    async fn step(&mut self) -> Result<Step, StartError> {
        // A member that was taken in is not fenced any more: one that is was fenced again, by a newer timeline, before it was
        // verified. It begins anew, from what it has of the one that is left now.
        let fenced_again = |mark: &Rejoin| mark.step == Step::Joined && self.home.file.fenced.is_some();
        let Some(mark) = self.home.file.rejoin.clone().filter(|mark| !fenced_again(mark)) else {
            if let Some(old) = self.home.file.rejoin.clone() {
                let dir = self.home.dir.clone();
                let removed = blocking(move || old.remove_aside(&dir)).await?;
                removed.map_err(|source| StartError::Io { path: self.home.dir.clone(), source })?;
            }
            let id = self.home.file.member_id();
            self.home.change(|file| file.rejoin = Some(Rejoin::new(id)))?;
            reach("rejoin-begun").await;
            return Ok(Step::Begun);
        };
        match mark.step {
            Step::Begun => self.salvage(mark).await?,
            Step::Salvaged => self.set_aside(mark).await?,
            Step::Aside => self.rewind(mark).await?,
            Step::Rewound => self.join(mark).await?,
            Step::Joined => {}
        }
        Ok(self.home.file.rejoin.as_ref().map_or(Step::Joined, |mark| mark.step))
    }

    fn belonging(&self) -> Result<Belonging, StartError> {
        self.home.file.cluster.ok_or_else(|| StartError::Other("a member without a cluster cannot rejoin one".into()))
    }

    async fn open(&self) -> Result<(Wal, Store), StartError> {
        let (belonging, id) = (self.belonging()?, self.home.file.member_id());
        open_storage(self.home.disk.clone(), self.config, &belonging, id, None).await
    }

    /// Finds the common point, and writes what lies beyond it to the salvage file.
    async fn salvage(&mut self, mut mark: Rejoin) -> Result<(), StartError> {
        match self.salvaged(&mut mark).await {
            Err(error) if is_damage(&error) => {
                tracing::error!(%error, "the old files cannot be read: they are kept, and nothing is salvaged");
                (mark.damage, mark.salvage, mark.parted) = (Some(error.to_string()), None, None);
            }
            done => done?,
        }
        mark.step = Step::Salvaged;
        self.home.change(|file| file.rejoin = Some(mark))?;
        reach("rejoin-salvaged").await;
        Ok(())
    }

    async fn salvaged(&self, mark: &mut Rejoin) -> Result<(), StartError> {
        let (wal, store) = self.open().await?;
        let result = self.salvaged_from(mark, &wal, &store).await;
        let closed = blocking(move || {
            drop(store);
            wal.close()
        });
        let closed = closed.await?;
        result?;
        Ok(closed?)
    }

    async fn salvaged_from(&self, mark: &mut Rejoin, wal: &Wal, store: &Store) -> Result<(), StartError> {
        let (applying, applied_to) = (wal.clone(), store.clone());
        blocking(move || apply_committed(&applying, &applied_to)).await??;
        let agreed = self.agree(wal, store).await;
        reach("rejoin-common-point-found").await;
        let (wal, store, parted) = (wal.clone(), store.clone(), agreed.parted.clone());
        let (cluster, disk, dir) = (self.belonging()?.id, self.home.disk.clone(), self.home.dir.clone());
        let MemberInfo { name, site, .. } = self.info.clone();
        let (member, now_ms) = (SalvageMember { id: mark.old_id.clone(), name, site }, mark.since_ms);
        let written = blocking(move || {
            let salvage = Salvage {
                store: &store,
                wal: &wal,
                history: parted.history,
                common_revision: parted.common.map_or(0, |common| common.revision),
                log: agreed.log,
                cluster,
                timeline: parted.from,
                onto: parted.onto,
                fork: agreed.fork,
                member,
                now_ms,
            };
            Ok::<_, StartError>(salvage.write(&*disk, &dir)?.map(|header| (salvage.file_name(), header.counts)))
        });
        mark.salvage = written.await??;
        reach("rejoin-salvage-written").await;
        match &mark.salvage {
            Some((file, counts)) => tracing::warn!(file, ?counts, "what only this member had is salvaged"),
            None => tracing::info!("this member has nothing that the new timeline lacks"),
        }
        mark.parted = Some(agreed.parted);
        Ok(())
    }

    /// Finds out where the histories part, with whoever can tell.
    async fn agree(&self, wal: &Wal, store: &Store) -> Agreed {
        let (mut pause, mut last_words) = (PAUSE_FIRST, String::new());
        loop {
            for url in &(self.branch)().peers {
                match self.agree_with(url, wal, store).await {
                    Ok(agreed) => return agreed,
                    Err(why) => say(&mut last_words, url, &why, "the common point is not found yet"),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    async fn ask(&self, url: &str, cluster: ClusterId, positions: Vec<u64>) -> Result<CommonAnswer, String> {
        let (url, question) =
            (format!("{}{}", url.trim_end_matches('/'), peer_path::COMMON), CommonQuestion { cluster, positions });
        let answer: CommonAnswer = self.http.post_json(&url, &question, ANSWER).await?;
        match (self.branch)().timelines.last() {
            Some(newest) if answer.timelines.iter().all(|timeline| timeline.id != newest.id) => {
                Err(format!("it does not know timeline {} yet", newest.id))
            }
            _ => Ok(answer),
        }
    }

    async fn agree_with(&self, url: &str, wal: &Wal, store: &Store) -> Result<Agreed, String> {
        let cluster = self.belonging().map_err(|e| e.to_string())?.id;
        let first = self.ask(url, cluster, Vec::new()).await?;
        let own = store.timelines();
        let onto = first.timelines.last().ok_or("it has no timeline yet")?;
        let theirs = |timeline: &&Timeline| own.iter().all(|own| own.id != timeline.id);
        let forked = first.timelines.iter().find(theirs).unwrap_or(onto);
        let end = |applied: Option<u64>| applied.map_or(0, |applied| applied + 1);
        let (here, there) = (end(store.applied().map(|applied| applied.index)), end(first.applied));
        let search = Search::new(0, here.min(there)).look_at(forked.fork_position);
        let chains = store.clone();
        let history = self.search(url, cluster, search, move |at| chains.chain_at(at), |at| at.chain).await?;
        // Behind what is applied there are only log entries. Log ids are given out once, so they tell.
        let logged = end(wal.state().last.map(|last| last.index)).max(here);
        let log = match history.differs_from == here {
            true => {
                let (ids, search) = (wal.clone(), Search::new(here, logged.min(there)).look_at(forked.fork_position));
                self.search(url, cluster, search, move |at| ids.log_id_at(at), |at| at.log_id).await?
            }
            false => Found { last: here.checked_sub(1), differs_from: here },
        };
        let points = store.clone();
        let common = blocking(move || history.last.map(|last| points.point_at(last)).transpose()).await;
        let common = common.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.flatten();
        let named = |timeline: &Timeline| SalvageTimeline { number: timeline.number, id: timeline.id };
        let unnamed = SalvageTimeline { number: 0, id: self.belonging().map_err(|e| e.to_string())?.timeline };
        tracing::info!(url, common = ?history.last, differs_from = history.differs_from, "the histories part here");
        Ok(Agreed {
            parted: Parted {
                from: own.last().map_or(unnamed, named),
                onto: named(onto),
                common,
                history,
                promises: first.promises,
            },
            log,
            fork: SalvageFork { position: forked.fork_position, revision: forked.fork_revision },
        })
    }

    /// Searches with one other member. `own` says what is here at a position, `theirs` what of its answer is compared.
    async fn search<T, E>(
        &self,
        url: &str,
        cluster: ClusterId,
        mut search: Search,
        own: impl Fn(u64) -> Result<Option<T>, E> + Clone + Send + 'static,
        theirs: impl Fn(&CommonPosition) -> Option<T>,
    ) -> Result<Found, String>
    where
        T: PartialEq + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        loop {
            let own = own.clone();
            let asked = blocking(move || {
                let questions = search.questions(own);
                (search, questions)
            });
            let (mut going, questions) = asked.await.map_err(|e| e.to_string())?;
            let questions = questions.map_err(|e| e.to_string())?;
            if questions.is_empty() {
                return Ok(going.found());
            }
            let positions = questions.iter().map(|(position, _)| *position).collect();
            let answer = self.ask(url, cluster, positions).await?;
            let answers = questions.into_iter().map(|(position, own)| {
                let at = answer.at.iter().find(|at| at.position == position);
                (position, at.and_then(&theirs).map(|theirs| theirs == own))
            });
            going.take(answers.collect::<Vec<_>>()).map_err(|e| e.to_string())?;
            search = going;
        }
    }

    /// Gives the old files other names and the member another id.
    async fn set_aside(&mut self, mut mark: Rejoin) -> Result<(), StartError> {
        let (dir, names) = (self.home.dir.clone(), mark.clone());
        let moved = blocking(move || -> std::io::Result<()> {
            rename_once(&dir, "history", &names.history_aside)?;
            reach_blocking("rejoin-history-aside");
            rename_once(&dir, "wal", &names.wal_aside)?;
            aside::remove(&dir, "index")
        });
        moved.await?.map_err(|source| StartError::Io { path: self.home.dir.clone(), source })?;
        reach("rejoin-all-aside").await;
        PeersFile::forget(&*self.home.disk, &self.home.dir);
        if let Some(quarantine) = &self.home.file.quarantine {
            // Nothing is taken over of a history that was found to be wrong, however well it hangs together.
            mark.damage.get_or_insert_with(|| quarantine.why.to_string());
        }
        mark.step = Step::Aside;
        let belonging = Belonging { founder: false, has_log: false, ..self.belonging()? };
        self.home.change(|file| {
            file.renew_id();
            file.cluster = Some(belonging);
            (file.held, file.quarantine, file.promotion) = (None, None, None);
            file.rejoin = Some(mark);
        })?;
        reach("rejoin-id-drawn").await;
        Ok(())
    }

    /// Stages what is common, when it may be taken.
    async fn rewind(&mut self, mut mark: Rejoin) -> Result<(), StartError> {
        let old = self.home.dir.join(&mark.history_aside);
        let common = mark.parted.as_ref().and_then(|parted| Some((parted.common?, parted.promises)));
        mark.taken = match (common, &mark.damage) {
            (Some((common, promises)), None) if old.exists() => {
                let (wal, store) = self.open().await?;
                let rewound = blocking(move || {
                    let rewound = store.rewind(&old, common, &promises);
                    drop(store);
                    wal.close().map_err(StartError::from)?;
                    rewound.map_err(StartError::from)
                });
                in_words(&rewound.await??)
            }
            (_, Some(_)) => "nothing, as the old files are damaged".into(),
            _ => "nothing, as nothing is in common".into(),
        };
        reach("rejoin-rewound").await;
        tracing::info!(taken = mark.taken, "the old history is rewound");
        mark.step = Step::Rewound;
        self.home.change(|file| file.rejoin = Some(mark))?;
        reach("rejoin-rewind-marked").await;
        Ok(())
    }

    /// Asks to be taken in under the new id, as a mirror.
    async fn join(&mut self, mut mark: Rejoin) -> Result<(), StartError> {
        let info = MemberInfo { role: MemberRole::Mirror, ..self.info.clone() };
        let request = JoinRequest::new(self.home.file.member_id(), info, None);
        let belonging = self.joined(&request).await?;
        reach("rejoin-joined").await;
        mark.step = Step::Joined;
        self.home.change(|file| {
            file.cluster = Some(belonging);
            file.fenced = None;
            file.rejoin = Some(mark);
        })?;
        reach("rejoin-join-marked").await;
        Ok(())
    }

    async fn joined(&self, request: &JoinRequest) -> Result<Belonging, StartError> {
        let ours = self.belonging()?.id;
        let (mut pause, mut last_words) = (PAUSE_FIRST, String::new());
        loop {
            for url in &(self.branch)().peers {
                let why = match join::ask(self.http, url, request).await {
                    Ok(JoinAnswer::Joined { cluster, timeline }) if cluster == ours => {
                        return Ok(Belonging { id: cluster, timeline, founder: false, has_log: false });
                    }
                    Ok(JoinAnswer::Joined { cluster, .. }) => format!("it belongs to cluster {cluster}"),
                    Ok(JoinAnswer::Refused { detail } | JoinAnswer::Removed { detail }) => {
                        return Err(StartError::JoinRefused { url: url.clone(), detail });
                    }
                    Ok(JoinAnswer::AskLeader { peer_url }) => format!("it names {peer_url}"),
                    Ok(JoinAnswer::Later { detail }) | Err(detail) => detail,
                };
                say(&mut last_words, url, &why, "waiting to join again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }
}

/// Whether an error is about what lies in the old files, and not about the disk or the network.
fn is_damage(error: &StartError) -> bool {
    match error {
        StartError::Store(StoreError::Corrupt { .. }) => true,
        StartError::Wal(error) => matches!(error, WalError::Corrupt { .. } | WalError::Purged { .. }),
        _ => false,
    }
}

/// Applies what the log says is committed, and seals it.
fn apply_committed(wal: &Wal, store: &Store) -> Result<(), StartError> {
    let state = wal.state();
    // All of the log is durable: it was read from the disk.
    let durable = state.last.map_or(0, |last| last.index);
    let next = |store: &Store| store.applied().map_or(0, |applied| applied.index + 1);
    while let Some(committed) = state.committed.filter(|committed| committed.index >= next(store)) {
        let entries = wal.entries(next(store), committed.index + 1, APPLY_BYTES)?;
        if entries.is_empty() {
            break;
        }
        for some in entries.chunks(256) {
            while !store.has_room() {
                store.seal(durable)?;
                store.flush_index()?;
            }
            store.apply(some)?;
        }
    }
    Ok(store.seal_all(durable)?)
}

/// Gives a directory its other name, unless that has been done.
fn rename_once(dir: &Path, from: &str, to: &str) -> std::io::Result<()> {
    if !dir.join(to).exists() {
        aside::rename(dir, from, to)?;
    }
    Ok(())
}

fn in_words(rewound: &Rewound) -> String {
    let Rewound { until, refused, linked, linked_bytes, written_bytes } = rewound;
    match (until, refused) {
        (Some(until), _) => format!(
            "its history up to position {}: {linked} segments of {linked_bytes} bytes linked, {written_bytes} bytes written",
            until.next_position - 1
        ),
        (None, Some(why)) => format!("nothing: {why}"),
        (None, None) => "nothing".into(),
    }
}

/// Logs a reason to wait, once for as long as it stays the same.
fn say(last_words: &mut String, url: &str, why: &str, what: &'static str) {
    let words = format!("{url}: {why}");
    if *last_words != words {
        tracing::warn!(url, why, "{what}");
        *last_words = words;
    }
}

/// Works on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| StartError::Other(format!("a step of a rejoin failed: {e}")))
}

/// Ends a rejoin: the new content is verified, so what was set aside goes. Does nothing when there is nothing to end; can be
/// repeated. `home` is locked only while the file is written: removing may take long, and Raft asks for it.
pub(in crate::node) fn finish(home: &Mutex<Home>) -> Result<(), StartError> {
    let (mark, dir) = {
        let home = home.lock();
        (home.file.rejoin.clone(), home.dir.clone())
    };
    let Some(mark) = mark.filter(|mark| mark.step == Step::Joined) else { return Ok(()) };
    mark.remove_aside(&dir).map_err(|source| StartError::Io { path: dir, source })?;
    reach_blocking("rejoin-cleared");
    home.lock().change(|file| file.rejoin = None)?;
    reach_blocking("rejoin-finished");
    Ok(())
}

impl Inner {
    /// How this member came back, while what was set aside is still there; none when it did not, or all is done.
    pub(in crate::node) fn came_back(&self) -> Option<Rejoin> {
        self.home.lock().file.rejoin.clone()
    }
}

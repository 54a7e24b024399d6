//! Repair: how a member in quarantine gets a sound history again, without a person.
//!
//! It happens while the member is opened, before Raft starts, and is led by the mark in `member.json`
//! ([`super::quarantine`]), so that a member that dies on the way goes on at its next start:
//!
//! ```text
//!   mark ──> set aside ──> rescue ──> ask others ──> install ──> fit the log ──> mark removed ──> Raft
//!            history/ gets  its proven   a delta from    one MANIFEST
//!            another name   beginning    there, or all
//! ```
//!
//! - Set aside: the damaged `history/` is renamed, never changed; the newest [`ASIDES_KEPT`] are kept. `index/` is a view
//!   of it and goes.
//! - Rescue: what can be proven of its beginning is taken over as the staged part of a copy
//!   ([`crate::store::Rescued`]). When only another member says that something is wrong, nothing is proven.
//! - Ask: the leader first, then anybody. The sender compares the chain hash at the end of what was rescued, and sends what
//!   comes after it, or everything ([`Store::copy_for`]). A copy that is cut is gone on with.
//! - The copy must reach what the log of this member begins with, so that Raft can go on from the log. It replaces the
//!   content by a prefix of what is committed, which Raft then applies further: id, vote and log stay.
//!
//! While nobody can send, the member asks again and again, with growing pauses, for ever. Proven by `tests/mirrors/verify.rs`
//! (processes, kill -9 on the way) and `store/tests/scrub.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};

use super::dr::Fenced;
use super::founding::lobby::Lobby;
use super::founding::protocol::{Own, Standing};
use super::founding::{resolve, survey};
use super::identity::{Belonging, Home};
use super::open::open_storage;
use super::peers_file::PeersFile;
use super::quarantine::{ASIDE_PREFIX, Damage, Quarantine};
use super::{Inner, StartError, peer_path};
use crate::config::Config;
use crate::files::aside;
use crate::metrics::{Metrics, RepairMetrics};
use crate::model::{LogId, MemberId};
use crate::raft::fence::Identity;
use crate::raft::peer_http::{PeerHttp, StrangerHttp};
use crate::store::{DeltaRequest, KeptIndex, Store, StoreError};
use crate::wal::Wal;

/// So many damaged histories are kept, the newest.
const ASIDES_KEPT: usize = 2;
/// The first pause after nobody could send a copy; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_LAST: Duration = Duration::from_secs(10);
/// How long a member may take to begin its answer: it looks for the shortest copy.
const ANSWER: Duration = Duration::from_secs(30);
/// A copy of which nothing arrives for so long is given up.
const IDLE: Duration = Duration::from_secs(20);
/// Says where in the history the copy begins; 0 when it is all of it.
pub(super) const COPY_FROM: &str = "lifeboat-copy-from";

/// Asks for a copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PullRequest {
    /// What is there already.
    pub have: DeltaRequest,
    /// The copy is of no use unless it reaches this position.
    #[serde(default)]
    pub at_least: Option<u64>,
    /// Only the leader shall answer.
    #[serde(default)]
    pub only_leader: bool,
}

/// What a repair came to.
#[derive(Debug, Clone)]
pub(super) struct Repaired {
    /// Why it was needed.
    pub quarantine: Quarantine,
    /// In words, for the event.
    pub how: String,
}

/// What is needed to open the storage of a member, which may have to be repaired.
pub(super) struct Opening<'o> {
    pub config: &'o Config,
    pub own: &'o Own,
    pub belonging: &'o Belonging,
    pub home: &'o mut Home,
    pub lobby: &'o Lobby,
    pub metrics: &'o Metrics,
    /// What this process has left open.
    pub kept: Option<KeptIndex>,
}

impl Opening<'_> {
    /// Opens the wal and the store, and repairs the history first when it is in quarantine or turns out to be damaged.
    pub async fn storage(mut self) -> Result<(Wal, Store, Option<Repaired>), StartError> {
        if self.home.file.quarantine.is_none() {
            let damage = match self.open().await {
                Err(StartError::Store(StoreError::Corrupt { file, offset, what })) if self.has_others() => {
                    Damage { file: Some(file), offset: Some(offset), ..Damage::said(what) }
                }
                other => return other.map(|(wal, store)| (wal, store, None)),
            };
            tracing::error!(%damage, "the history is damaged; it is repaired from another member");
            self.home.change(|file| file.quarantine = Some(Quarantine::new(damage)))?;
        }
        self.repair().await.map(|(wal, store, repaired)| (wal, store, Some(repaired)))
    }

    async fn open(&mut self) -> Result<(Wal, Store), StartError> {
        let kept = self.kept.take();
        open_storage(self.home.disk.clone(), self.config, self.belonging, self.own.id, kept).await
    }

    fn mark(&self) -> Quarantine {
        self.home.file.quarantine.clone().expect("a repair is led by the mark")
    }

    /// Whether there is anybody to be repaired by.
    fn has_others(&self) -> bool {
        match PeersFile::load(&*self.home.disk, &self.home.dir) {
            Some(peers) => peers.members.iter().any(|peer| peer.member_id() != Some(self.own.id)),
            None => !self.config.join.is_empty() || !self.config.discover.is_empty(),
        }
    }

    async fn repair(&mut self) -> Result<(Wal, Store, Repaired), StartError> {
        // Those of another timeline than this member belongs to must not be asked: what they have is of another branch.
        let timeline = self.belonging.timeline;
        let peers = PeersFile::load(&*self.home.disk, &self.home.dir).filter(|peers| peers.timeline == timeline);
        let identity = Arc::new(Identity::new(self.own.id, self.belonging.id, timeline));
        self.lobby.repairs(self.mark(), identity.clone());
        self.set_aside().await?;
        let (wal, store) = match self.open().await {
            // It was begun and is of no use: there is nothing in it that cannot be had again.
            Err(StartError::Store(StoreError::Corrupt { file, what, .. })) => {
                tracing::warn!(file, what, "what was received for the repair is damaged; it begins anew");
                self.blocking(|dir, _| {
                    aside::remove(dir, "history")?;
                    aside::remove(dir, "index")
                })
                .await?;
                self.home.change(|file| file.quarantine.iter_mut().for_each(|mark| mark.rescued = false))?;
                self.open().await?
            }
            opened => opened?,
        };
        self.rescue(&store).await?;
        let other = |e: reqwest::Error| StartError::Other(format!("cannot make an HTTP client: {e}"));
        let sources = Sources {
            own: self.own.id,
            peers,
            config: self.config,
            stranger: StrangerHttp::new().map_err(other)?,
            cluster: self.belonging.id,
        };
        let http = PeerHttp::new(identity).map_err(other)?;
        crate::crash_points::reach("repair-before-pull").await;
        let how = tokio::select! {
            how = pull(&sources, &http, &wal, &store, self.metrics) => how,
            theirs = self.lobby.left_by() => {
                // Nobody of its timeline may be left to repair it. What it has is salvaged as far as it can be read.
                let fenced = Fenced::while_closed(theirs, self.own.id, self.belonging);
                tracing::error!(why = %fenced.error(), "this member is fenced while it is repaired");
                self.home.change(|file| file.fenced = Some(fenced))?;
                return Err(StartError::Damaged);
            }
        };
        fit_log(&wal, &store).await?;
        let quarantine = self.mark();
        self.home.change(|file| file.quarantine = None)?;
        tracing::info!(how, "the history is repaired");
        Ok((wal, store, Repaired { quarantine, how }))
    }

    /// Works in the data directory, off Raft's thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &Quarantine) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, StartError> {
        let (dir, mark) = (self.home.dir.clone(), self.mark());
        let path = dir.clone();
        let done = tokio::task::spawn_blocking(move || work(&dir, &mark)).await;
        let done = done.map_err(|e| StartError::Other(format!("a repair failed: {e}")))?;
        done.map_err(|source| StartError::Io { path, source })
    }

    /// Gives the damaged history its other name, unless that has been done.
    async fn set_aside(&self) -> Result<(), StartError> {
        self.blocking(|dir, mark| {
            if !dir.join(&mark.aside).exists() {
                aside::remove(dir, "index")?;
                aside::rename(dir, "history", &mark.aside)?;
            }
            let all = aside::list(dir, ASIDE_PREFIX)?;
            let old = all.len().saturating_sub(ASIDES_KEPT);
            all[..old].iter().filter(|name| **name != mark.aside).try_for_each(|name| aside::remove(dir, name))
        })
        .await
    }

    /// Takes over what is proven of the damaged history, once.
    async fn rescue(&mut self, store: &Store) -> Result<(), StartError> {
        let mark = self.mark();
        let damaged = self.home.dir.join(&mark.aside);
        let there = damaged.exists();
        if there {
            store.avoid_ids_of(&damaged)?;
        }
        if mark.rescued {
            return Ok(());
        }
        let (store, local) = (store.clone(), mark.why.is_local());
        let rescued = tokio::task::spawn_blocking(move || {
            store.discard_staging()?;
            if there && local { store.rescue(&damaged) } else { Ok(Default::default()) }
        });
        let rescued = rescued.await.map_err(|e| StartError::Other(format!("a rescue failed: {e}")))??;
        match rescued.until {
            Some(until) => tracing::info!(until = until.next_position, "the beginning of the history is sound"),
            None => tracing::info!("nothing of the history is proven to be sound"),
        }
        self.home.change(|file| file.quarantine.iter_mut().for_each(|mark| mark.rescued = true))
    }
}

/// Where a copy may come from.
struct Sources<'s> {
    own: MemberId,
    peers: Option<PeersFile>,
    config: &'s Config,
    stranger: StrangerHttp,
    cluster: crate::model::ClusterId,
}

impl Sources<'_> {
    /// All that are known: those of the file, and whoever is met at the places of the configuration.
    async fn all(&self) -> BTreeMap<MemberId, String> {
        let members = self.peers.iter().flat_map(|peers| &peers.members);
        let mut found: BTreeMap<MemberId, String> =
            members.filter_map(|peer| Some((peer.member_id()?, peer.peer_url.clone()))).collect();
        let mut urls = resolve(&self.config.discover, &mut String::new()).await.urls;
        urls.extend(self.config.join.iter().cloned());
        urls.extend(found.values().cloned());
        for (url, seen) in survey(&self.stranger, &urls, self.own).await.seen {
            if seen.standing == (Standing::Belongs { cluster: self.cluster }) {
                found.insert(seen.id, url);
            }
        }
        found.remove(&self.own);
        found
    }
}

/// Asks until a copy is installed, and says how that came about.
async fn pull(sources: &Sources<'_>, http: &PeerHttp, wal: &Wal, store: &Store, metrics: &Metrics) -> String {
    let needed = wal.state().purged.map(|purged| purged.index);
    let enough = |applied: Option<LogId>| applied.is_some_and(|applied| Some(applied.index) >= needed);
    let (mut pause, mut last_words) = (PAUSE_FIRST, String::new());
    loop {
        // A repair that died behind its install has it already.
        if enough(store.applied()) {
            return "a copy that had arrived before".into();
        }
        for only_leader in [true, false] {
            for (id, url) in sources.all().await {
                match pull_from(id, &url, http, store, needed, only_leader, &metrics.repairs).await {
                    Ok(how) => return format!("{how} from {url}"),
                    Err(why) => {
                        let words = format!("{url}: {why}");
                        if !only_leader && words != last_words {
                            tracing::warn!(url, why, "no copy for the repair");
                            last_words = words;
                        }
                    }
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

/// Asks one member for a copy and installs it.
async fn pull_from(
    id: MemberId,
    url: &str,
    http: &PeerHttp,
    store: &Store,
    needed: Option<u64>,
    only_leader: bool,
    counted: &RepairMetrics,
) -> Result<String, String> {
    let asking = store.clone();
    let have = tokio::task::spawn_blocking(move || asking.delta_position(0)).await.map_err(|e| e.to_string())?;
    let have = have.map_err(|e| e.to_string())?;
    let staged = have.staged.and_then(|staged| staged.next_position.checked_sub(1));
    let request = PullRequest { have, at_least: needed.max(staged), only_leader };
    let answer = http.post_stream(id, url, peer_path::PULL_COPY, &request, ANSWER).await.map_err(|e| e.to_string())?;
    let from = answer.headers().get(COPY_FROM).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0u64);
    let kind = if from > 0 { "delta" } else { "full" };
    let (copies, bytes) =
        if from > 0 { (&counted.delta, &counted.delta_bytes) } else { (&counted.full, &counted.full_bytes) };
    tracing::info!(url, kind, from, "receiving a copy for the repair");
    let before = bytes.get();
    receive(answer.bytes_stream(), store, needed, bytes).await?;
    copies.inc();
    Ok(format!("{} of {} bytes", if from > 0 { "a delta" } else { "a full copy" }, bytes.get() - before))
}

/// Writes what arrives and installs it.
async fn receive<S, E>(
    stream: S,
    store: &Store,
    needed: Option<u64>,
    bytes: &crate::metrics::Counter,
) -> Result<(), String>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: std::fmt::Display,
{
    let (tx, mut rx) = tokio::sync::mpsc::channel::<Bytes>(4);
    let store = store.clone();
    let writer = tokio::task::spawn_blocking(move || -> Result<(), StoreError> {
        let mut installer = store.begin_install()?;
        while let Some(chunk) = rx.blocking_recv() {
            installer.push(&chunk)?;
        }
        let prepared = installer.finish()?;
        let reached = prepared.meta().applied.map(|applied| applied.index);
        if reached < needed {
            let what = format!("it ends at {reached:?}, and the log begins behind {needed:?}");
            return Err(StoreError::Snapshot { offset: 0, what });
        }
        store.install(prepared)
    });
    let mut stream = std::pin::pin!(stream);
    let cut = loop {
        match tokio::time::timeout(IDLE, stream.next()).await {
            Ok(Some(Ok(chunk))) => {
                bytes.inc_by(chunk.len() as u64);
                if tx.send(chunk).await.is_err() {
                    break None;
                }
            }
            Ok(Some(Err(e))) => break Some(format!("the copy was cut: {e}")),
            Ok(None) => break None,
            Err(_) => break Some(format!("nothing came for {} s", IDLE.as_secs())),
        }
    };
    drop(tx);
    let written = writer.await.map_err(|e| e.to_string())?;
    match cut {
        Some(why) => Err(why),
        None => written.map_err(|e| e.to_string()),
    }
}

/// Makes the log one that goes on from what was installed. Entries that the copy covers are in it; if the log holds others
/// in their place, these were never committed, and neither was what follows them.
pub(in crate::node) async fn fit_log(wal: &Wal, store: &Store) -> Result<(), StartError> {
    let Some(applied) = store.applied() else { return Ok(()) };
    if wal.log_id_at(applied.index)? == Some(applied) {
        return Ok(());
    }
    let state = wal.state();
    let kept = state.committed.max(state.purged);
    if kept.is_some_and(|kept| kept.index >= applied.index) {
        let what = format!("the log says that another entry than {applied} is committed");
        return Err(StartError::Other(what));
    }
    if state.last != kept {
        let (tx, rx) = tokio::sync::oneshot::channel();
        wal.truncate_after(kept, Box::new(move |result| drop(tx.send(result))));
        rx.await.map_err(|_| StartError::Other("the wal stopped".into()))??;
    }
    wal.purge(applied);
    Ok(())
}

/// A copy on its way out to a member that repairs itself.
pub struct PulledCopy {
    /// Where it begins.
    pub from: u64,
    /// Its bytes.
    pub chunks: tokio::sync::mpsc::Receiver<Result<Bytes, String>>,
}

impl Inner {
    /// Begins to send a copy.
    pub(super) async fn send_pulled(&self, request: PullRequest) -> Result<PulledCopy, String> {
        self.check_serves().map_err(|error| error.to_string())?;
        if request.only_leader && !self.view().leads {
            return Err("this member does not lead".into());
        }
        let applied = self.store.applied().map(|applied| applied.index);
        if applied < request.at_least {
            return Err(format!("this member has applied {applied:?}, and {:?} is needed", request.at_least));
        }
        let store = self.store.clone();
        let reader = tokio::task::spawn_blocking(move || store.copy_for(&request.have)).await;
        let mut reader = reader.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let from = reader.from().next_position;
        let copies = &self.metrics.copies;
        let (sent, sent_bytes) = match from {
            0 => (copies.full.clone(), copies.full_bytes.clone()),
            _ => (copies.delta.clone(), copies.delta_bytes.clone()),
        };
        tracing::info!(from, roughly_bytes = reader.len_bytes(), "sending a copy for a repair");
        // The bound keeps the reader from running ahead of the peer.
        let (tx, chunks) = tokio::sync::mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            loop {
                let next = reader.next_chunk().map_err(|e| e.to_string()).transpose();
                let Some(chunk) = next else { break };
                let (failed, bytes) = (chunk.is_err(), chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                if tx.blocking_send(chunk).is_err() || failed {
                    return;
                }
                sent_bytes.inc_by(bytes);
            }
            sent.inc();
        });
        Ok(PulledCopy { from, chunks })
    }
}

//! The drill: a forced failover rehearsed at a mirror, in a throwaway member beside it, while the mirror goes on following.
//!
//! ```text
//!   mirror:  refuse or begin ──> fork ([`fork`]) ──> start a child ──> follow what it says, compare ──> kill, remove, report
//!   child:                                           open ──> promoted, as in earnest ──> written to, checked ([`child`])
//! ```
//!
//! What keeps the rehearsal from touching anything:
//! - The fork has a member id and a cluster id of its own, so the fence of every member refuses it, and it all others.
//! - Its process dials nobody ([`crate::raft::peer_http::dial_nobody`]) and listens on loopback, on ports that nobody knows.
//! - It lies in a directory of its own. Segments are linked and never written to; all else is copied or made anew.
//! - It is another process, of low priority and the first to go when memory is short, so that no failure of it is one of the
//!   mirror. It ends when its standard input does, so never later than the mirror.
//!
//! `node` does not know the command line: whoever assembles the member says how a throwaway one is started
//! ([`Node::rehearse_with`]).
//!
//! Cleaning up: at the end of the drill, however it ends; what a killed process leaves goes at the next opening
//! ([`remove_leftovers`]). A member that is fenced, promoted in earnest, stopped or put into quarantine ends its drill at once
//! and waits for nothing of it.
//!
//! Proven by `tests/dr/drill.rs`.

pub mod child;
mod fork;
mod run;

pub use fork::WAL_SEGMENT_BYTES as FORK_WAL_SEGMENT_BYTES;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::api::{DrillRequest, MemberRole};
use crate::files::{aside, room};
use crate::model::Revision;
use crate::node::events::NewEvent;
use crate::node::{Inner, Node, NodeError, peer_path};

/// Directories of drills, in the data directory.
const PREFIX: &str = "drill-";
/// Lines that wait for whoever reads them.
const LINES: usize = 64;
/// Room for what a drill makes besides the index and the log: the first segments of the fork's own log, its tails.
const MARGIN_BYTES: u64 = 64 << 20;
/// How long a leftover may be in use by a child that is about to end.
const CHILD_ENDS: Duration = Duration::from_secs(30);
/// How long a member that stops waits until its drill is cleaned up. The rest is done at its next start.
const ENDS: Duration = Duration::from_secs(5);
/// How long a member that is opened anew waits for its drill.
const STORE_FREE: Duration = Duration::from_secs(1);
/// How long the leader may take to answer that it writes down that there was a drill.
const TELL: Duration = Duration::from_secs(2);
/// Between two attempts to tell it.
const TELL_AGAIN: Duration = Duration::from_millis(500);
/// A drill of which no leader could be told for so long is only told here.
const TELL_NOBODY: Duration = Duration::from_secs(60);

/// Makes the command that runs a throwaway member in this directory, which digests its content at this revision.
pub type Launcher = Box<dyn Fn(&Path, Revision) -> tokio::process::Command + Send + Sync>;
/// A drill that runs: lines of JSON as they come, the last one the report. Dropping it ends the drill.
pub type DrillLines = mpsc::Receiver<Bytes>;

/// What a member keeps of its drills.
#[derive(Default)]
pub(in crate::node) struct Drills {
    launcher: OnceLock<Launcher>,
    /// Held while one runs.
    running: Arc<tokio::sync::Mutex<()>>,
    /// Held while one looks at the store.
    using: Arc<tokio::sync::Mutex<()>>,
}

/// Tells the leader how a drill went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::node) struct DrillNews {
    member: String,
    passed: bool,
    detail: String,
    /// By what the event is known; it may be told more than once.
    #[serde(default)]
    id: Option<String>,
}

impl DrillNews {
    fn new(member: String, passed: bool, detail: String) -> DrillNews {
        DrillNews { member, passed, detail, id: Some(format!("{:016x}", rand::random::<u64>())) }
    }

    fn event(&self) -> NewEvent {
        let kind = if self.passed { "drill-done" } else { "drill-failed" };
        NewEvent { id: self.id.clone(), ..NewEvent::new(kind, self.detail.clone()) }.about(&self.member)
    }
}

impl Inner {
    /// Begins a drill here.
    async fn begin_drill(self: &Arc<Self>, request: DrillRequest) -> Result<DrillLines, NodeError> {
        self.check_serves()?;
        if self.is_stopping() {
            return Err(NodeError::Stopping);
        }
        if !self.is_founded() {
            return Err(NodeError::NotJoined);
        }
        let (name, url) = (&self.info.name, &self.info.client_url);
        let refused = |detail: String| Err(NodeError::DrillRefused { detail });
        if let Some(wanted) = request.member.filter(|wanted| wanted != name) {
            return refused(format!("this is {name}, and not {wanted}: lifeboat dr drill --member {wanted}"));
        }
        if self.view().role != MemberRole::Mirror || self.view().leads {
            return refused(format!(
                "{name} is a voter: a failover is rehearsed at a mirror of a standby site, which does without the room and \
                 the time of it. See the sites: lifeboat dr plan --endpoints {url}"
            ));
        }
        if self.home.lock().file.promotion.is_some() {
            return refused(format!("{name} is promoted in earnest: lifeboat dr plan --endpoints {url}"));
        }
        if self.drills.launcher.get().is_none() {
            return refused(format!(
                "{name} runs inside of another program, which cannot start a throwaway member. Choose another: lifeboat dr plan \
                 --endpoints {url}"
            ));
        }
        let Ok(running) = self.drills.running.clone().try_lock_owned() else {
            return refused(format!("a drill runs at {name} already: lifeboat events --endpoints {url}"));
        };
        let inner = self.clone();
        let copy_at_most = tokio::task::spawn_blocking(move || inner.room_for_drill()).await;
        let copy_at_most = copy_at_most.map_err(|_| NodeError::Stopping)??;
        let (lines, rx) = mpsc::channel(LINES);
        // Free as soon as the one before has begun to clean up.
        let using = self.drills.using.clone().lock_owned().await;
        tokio::spawn(run::run(self.clone(), copy_at_most, lines, (running, using)));
        Ok(rx)
    }

    /// How many bytes of segments may be copied where the file system links no files; refuses when there is too little room
    /// for everything else.
    fn room_for_drill(&self) -> Result<u64, NodeError> {
        let (name, io) = (&self.info.name, |e: std::io::Error| NodeError::StorageFailed { detail: e.to_string() });
        let index = room::used_bytes(&self.data_dir.join("index")).map_err(io)?;
        let sealed = self.store.sealed().map_or(0, |sealed| sealed.index + 1);
        let log = self.wal.bytes_between(sealed, u64::MAX);
        // The log is written once as a log, and once more when it is sealed.
        let needed = index + 3 * log + MARGIN_BYTES;
        let free = room::free_bytes(&self.data_dir).map_err(io)?;
        // As much has to be left as this member needs for itself.
        let mut left = free.saturating_sub(self.room_limits.reserve_bytes / 2);
        if self.room_limits.quota_bytes > 0 {
            let used = room::used_bytes(&self.data_dir).map_err(io)?;
            left = left.min(self.room_limits.quota_bytes.saturating_sub(used));
        }
        if self.http.identity().is_short() || left < needed {
            let detail = format!(
                "a drill at {name} needs {} MiB of disk, and {} MiB are left for it: make room, or \
                 drill at another mirror: lifeboat dr drill --member NAME",
                needed.div_ceil(1 << 20),
                left >> 20
            );
            return Err(NodeError::DrillNoRoom { detail });
        }
        Ok(left - needed)
    }

    /// Lets a member that stops wait until its drill has ended and is cleaned up. One that is opened anew may be needed, and
    /// waits only until nothing of the drill holds the store open: its index could not be opened again else.
    pub(in crate::node) async fn wait_drill_ended(&self) {
        let Drills { running, using, .. } = &self.drills;
        let (whole, limit) = if *self.reopen.borrow() { (using, STORE_FREE) } else { (running, ENDS) };
        if tokio::time::timeout(limit, whole.lock()).await.is_err() {
            tracing::warn!("a drill has not ended yet: what it leaves goes at the next start");
        }
    }

    /// Tells everyone how a drill went, by the leader, which writes it into the log; keeps it here when none can be told.
    async fn tell_of_drill(self: Arc<Self>, news: DrillNews) {
        let began = Instant::now();
        while let Err(error) = self.tell_leader_of_drill(&news).await {
            tracing::debug!(error, "no leader writes down yet that there was a drill");
            if self.is_stopping() || began.elapsed() > TELL_NOBODY {
                return self.events.record_event(news.event());
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }

    async fn tell_leader_of_drill(&self, news: &DrillNews) -> Result<(), String> {
        let leader = self.view().leader.as_ref().map(|leader| (leader.id, leader.peer_url.clone()));
        let (id, url) = leader.ok_or("no leader is known")?;
        if id == self.id {
            // A mirror that was promoted meanwhile.
            return self.drilled(news.clone());
        }
        let url = self.addresses.get(id).unwrap_or(url);
        let told = self.http.post_json::<()>(id, &url, peer_path::DRILLED, news, TELL).await;
        told.map_err(|error| error.to_string())
    }

    /// A mirror has rehearsed a failover.
    pub(in crate::node) fn drilled(&self, news: DrillNews) -> Result<(), String> {
        self.leads_with_quorum()?;
        // An answer may have been lost.
        if news.id.as_ref().is_none_or(|id| !self.events.has(id)) {
            self.record_cluster_event(news.event());
        }
        Ok(())
    }
}

impl Node {
    /// Says how a throwaway member is started, without which there are no drills.
    pub fn rehearse_with(&self, launcher: Launcher) {
        // The second of two means the same.
        let _same = self.0.drills.launcher.set(launcher);
    }

    /// Rehearses a forced failover at this member, which is a mirror.
    pub async fn drill(&self, request: DrillRequest) -> Result<DrillLines, NodeError> {
        let inner = self.0.clone();
        let begun = self.0.background.handle.spawn(async move { inner.begin_drill(request).await });
        begun.await.map_err(|_| NodeError::Stopping)?
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Removes what drills of earlier processes have left in a data directory. It takes a thread for that: nobody waits for the
/// files of a large index to go.
pub(in crate::node) fn remove_leftovers(dir: &Path) {
    let names = match aside::list(dir, PREFIX) {
        Ok(names) if names.is_empty() => return,
        Ok(names) => names,
        Err(error) => return tracing::warn!(%error, "what earlier drills left cannot be listed"),
    };
    let dir = dir.to_owned();
    let removes = move || {
        for name in names {
            match remove_unused(&dir, &name) {
                Ok(()) => tracing::info!(name, "removed what an earlier drill had left"),
                Err(error) => tracing::warn!(name, %error, "what an earlier drill left cannot be removed"),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("drill-leftovers".into()).spawn(removes) {
        tracing::warn!(%error, "what earlier drills left is not removed");
    }
}

/// Removes the directory of a drill once no child works in it any more, and looks again: one that was about to begin when
/// its parent died may make it anew before it notices.
fn remove_unused(dir: &Path, name: &str) -> std::io::Result<()> {
    let began = std::time::Instant::now();
    while began.elapsed() < CHILD_ENDS {
        let lock = dir.join(name).join("lock");
        let used =
            File::open(&lock).is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        if used {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        // A child that still writes makes this fail: the next round finds it gone.
        match aside::remove(dir, name) {
            Ok(()) if began.elapsed() > Duration::from_secs(1) => break,
            Ok(()) => std::thread::sleep(Duration::from_millis(250)),
            Err(error) => {
                tracing::debug!(name, %error, "not removed yet");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    aside::remove(dir, name)
}

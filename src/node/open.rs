//! Opening a member, and stopping it.
//!
//! In this order: the directory is locked, the identity read or drawn, the cluster joined or founded (only its name),
//! the wal and the store opened, Raft started, the background begun. Raft and everything that belongs to it live on one
//! thread with a single-threaded runtime. Stopping goes the other way round, and hands leadership over first.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::SnapshotPolicy;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::background::{self, Sealer};
use super::clock::Clock;
use super::identity::{Belonging, MemberFile};
use super::join::{JoinAnswer, JoinRequest, ask, join};
use super::reads::{self, Lag};
use super::view::View;
use super::{Inner, Limits, MAX_KEY_BYTES, Node, NodeError, RequestContext, StartError, proposals, report};
use crate::config::Config;
use crate::files::{Disk, RealDisk};
use crate::index::IndexKind;
use crate::metrics::Metrics;
use crate::model::new_random_id;
use crate::raft::fence::Identity;
use crate::raft::log::Log;
use crate::raft::machine::Machine;
use crate::raft::network::{AddressBook, KeptFrom, Network, NetworkTimeouts};
use crate::raft::peer_http::{PeerHttp, StrangerHttp};
use crate::raft::service::PeerService;
use crate::raft::types::{MemberInfo, Raft};
use crate::store::{Store, StoreConfig};
use crate::wal::{Wal, WalConfig};

/// How long a stopping leader tries to hand over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// A snapshot that makes no progress for so long is given up.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(20);
/// Between two attempts to announce new addresses.
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(1);

/// Where this member is reached, as told to others.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// By clients.
    pub client_url: String,
    /// By other members.
    pub peer_url: String,
}

/// What runs beside the requests, and is ended with the member.
pub(super) struct Background {
    /// Raft's runtime.
    pub(super) handle: Handle,
    /// Ends Raft's runtime when it is dropped or sent to.
    stop_runtime: Mutex<Option<oneshot::Sender<()>>>,
    sealer: Mutex<Option<Sealer>>,
    /// The lock on the data directory; freed when the member has stopped, or the process ends, however it ends.
    lock: Mutex<Option<File>>,
}

impl Node {
    /// Opens the member that `config` describes. Waits until it belongs to a cluster, which for a newcomer takes until a
    /// member of that cluster answers.
    pub async fn start(config: &Config, addresses: Addresses, metrics: Arc<Metrics>) -> Result<Node, StartError> {
        let (opened, rx) = oneshot::channel();
        let config = config.clone();
        let spawned = std::thread::Builder::new().name("raft".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(e) => {
                    let _ = opened.send(Err(StartError::Other(format!("cannot make a runtime: {e}"))));
                    return;
                }
            };
            let (stop, stopped) = oneshot::channel();
            runtime.block_on(async move {
                let node = open(&config, addresses, metrics, stop).await;
                let is_open = node.is_ok();
                // The caller may have given up waiting: then there is nobody to serve and the member is dropped. What
                // did not open ends here too, whatever of it runs already.
                if opened.send(node).is_ok() && is_open {
                    let _ = stopped.await;
                }
            });
            // Reads that wait in the blocking pool need not be waited for.
            runtime.shutdown_background();
        });
        spawned.map_err(|e| StartError::Other(format!("cannot start a thread: {e}")))?;
        rx.await.map_err(|_| StartError::Other("the raft thread ended while it started".into()))?
    }

    /// Stops cleanly: refuses new writes, hands leadership over, lets what is under way end, closes Raft, seals and
    /// syncs. The listeners are the caller's to close, before or after.
    pub async fn stop(&self) -> Result<(), String> {
        self.step_down().await;
        self.close().await
    }

    /// Stops cleanly without handing leadership over: for when all members stop together and nobody could take it.
    pub async fn close(&self) -> Result<(), String> {
        let inner = self.0.clone();
        let stopped = self.0.background.handle.spawn(async move { inner.close().await });
        let result = stopped.await.map_err(|e| e.to_string())?;
        drop(self.0.background.stop_runtime.lock().take());
        result
    }

    /// Refuses every write from now on, before it is proposed; the member is not ready any more.
    pub fn refuse_writes(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Hands leadership to another voter, if this member leads and another can; the first step of a clean stop.
    /// Says whether another leads now.
    pub async fn step_down(&self) -> bool {
        let inner = self.0.clone();
        // The member may be gone already: then it does not lead.
        self.0.background.handle.spawn(async move { inner.step_down().await }).await.unwrap_or(false)
    }
}

fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("lock");
    let io = |source| StartError::Io { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse { dir: dir.into() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Finds out to which cluster this member belongs: from its data, by founding one, or by joining one.
async fn belong(
    disk: &dyn Disk,
    config: &Config,
    file: &mut MemberFile,
    info: &MemberInfo,
) -> Result<Belonging, StartError> {
    let dir = &config.data_dir;
    if let Some(belonging) = file.cluster {
        if config.bootstrap || !config.join.is_empty() {
            tracing::info!(dir = %dir.display(), "this member has data and uses it; --bootstrap and --join are ignored");
        }
        return Ok(belonging);
    }
    if config.bootstrap && !config.join.is_empty() {
        return Err(StartError::BothTold { dir: dir.clone() });
    }
    let belonging = if config.bootstrap {
        Belonging { id: new_random_id(), timeline: new_random_id(), founder: true, has_log: false }
    } else if config.join.is_empty() {
        return Err(StartError::NotTold { dir: dir.clone() });
    } else {
        join(&config.join, &JoinRequest::new(file.member_id(), info.clone(), None)).await?
    };
    file.cluster = Some(belonging);
    file.save(disk, dir)?;
    Ok(belonging)
}

/// Refuses a member whose log is gone.
fn check_log(disk: &dyn Disk, dir: &Path, belonging: &Belonging) -> Result<(), StartError> {
    if !belonging.has_log {
        return Ok(());
    }
    let wal = dir.join("wal");
    match disk.list(&wal) {
        Ok(names) if !names.is_empty() => Ok(()),
        Ok(_) => Err(StartError::LogLost { dir: wal }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(StartError::LogLost { dir: wal }),
        Err(source) => Err(StartError::Io { path: wal, source }),
    }
}

fn raft_config(config: &Config, cluster: String) -> Result<openraft::Config, StartError> {
    let raft = openraft::Config {
        cluster_name: cluster,
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_min_ms,
        election_timeout_max: config.election_max_ms,
        // Entries a message; its bytes are bounded where they are read.
        max_payload_entries: 4096,
        snapshot_policy: SnapshotPolicy::Never,
        // Purging is ours alone: within a budget of bytes, never by a count.
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // Without it two members that lost sight of the leader at once can refuse each other's pre-votes for ever.
        quorum_loss_probe_interval: Some(config.election_max_ms * 2),
        // A restarted leader must be elected again: its old lease proves nothing.
        enable_leader_restore: Some(false),
        ..Default::default()
    };
    raft.validate().map_err(|e| StartError::Other(format!("raft refuses its configuration: {e}")))
}

async fn open(
    config: &Config,
    own: Addresses,
    metrics: Arc<Metrics>,
    stop_runtime: oneshot::Sender<()>,
) -> Result<Node, StartError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let dir = &config.data_dir;
    disk.create_dir_all(dir).map_err(|source| StartError::Io { path: dir.clone(), source })?;
    let lock = lock(dir)?;
    let mut file = MemberFile::open(&*disk, dir, &config.name)?;
    let id = file.member_id();
    let info = MemberInfo {
        name: config.name.clone(),
        site: config.site.clone(),
        role: config.role,
        client_url: own.client_url,
        peer_url: own.peer_url,
    };
    let belonging = belong(&*disk, config, &mut file, &info).await?;
    check_log(&*disk, dir, &belonging)?;
    let (wal, store) = open_storage(disk.clone(), config, &belonging, id).await?;
    if !belonging.has_log {
        file.cluster = Some(Belonging { has_log: true, ..belonging });
        file.save(&*disk, dir)?;
    }
    // A member may have learned of a newer timeline since it joined: its history says so.
    let timeline = store.timelines().last().map_or(belonging.timeline, |timeline| timeline.id);

    let (room, room_rx) = watch::channel(0);
    let failure = watch::Sender::new(None);
    let machine = Machine::new(store.clone(), room_rx, failure.subscribe());
    let applied = machine.applied();
    let identity = Arc::new(Identity::new(id, belonging.id, timeline));
    let http = PeerHttp::new(identity).map_err(|e| StartError::Other(format!("cannot make an HTTP client: {e}")))?;
    let election_max = Duration::from_millis(config.election_max_ms);
    let timeouts = NetworkTimeouts {
        append_idle: election_max.max(Duration::from_secs(1)),
        control: election_max,
        snapshot_idle: SNAPSHOT_IDLE,
    };
    let raft_config = Arc::new(raft_config(config, belonging.id.to_string())?);
    let addresses = AddressBook::default();
    let kept_from = KeptFrom::default();
    let network = Network::new(http.clone(), timeouts, addresses.clone(), kept_from.clone());
    // Before Raft, which at its start applies what the log holds and may have to wait for room.
    let on_failure = failure.clone();
    let sealer = Sealer::start(store.clone(), wal.clone(), room.clone(), move |why| super::fail(&on_failure, why));
    let sealer = sealer.map_err(|e| StartError::Other(format!("cannot start a thread: {e}")))?;
    let started = Raft::new(id, raft_config, network, Log::new(wal.clone(), store.clone()), machine).await;
    let raft = started.map_err(|e| StartError::Other(format!("raft could not start: {e}")))?;

    let (proposals, proposals_rx) = mpsc::channel(config.write_queue);
    let (reads, reads_rx) = mpsc::channel(reads::MAX_WAITING);
    let inner = Arc::new(Inner {
        id,
        founder: belonging.founder,
        service: PeerService::new(raft.clone(), store.clone()),
        limits: Limits {
            max_value_bytes: config.max_value_bytes,
            max_key_bytes: MAX_KEY_BYTES,
            request_timeout: Duration::from_millis(config.request_timeout_ms),
        },
        metrics,
        clock: Clock::default(),
        lag: Lag::default(),
        started: Instant::now(),
        election_max,
        wal_keep_bytes: config.wal_keep_bytes,
        view: RwLock::new(Arc::new(View::unknown(config.role))),
        applied,
        room,
        proposals,
        reads,
        membership_change: tokio::sync::Mutex::new(()),
        founded: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        failure,
        background: Background {
            handle: Handle::current(),
            stop_runtime: Mutex::new(Some(stop_runtime)),
            sealer: Mutex::new(Some(sealer)),
            lock: Mutex::new(Some(lock)),
        },
        info,
        store,
        wal,
        raft,
        http,
        addresses,
        kept_from,
    });
    report::register(&inner);
    tokio::spawn(background::watch_cluster(inner.clone()));
    tokio::spawn(background::watch_failure(inner.clone()));
    tokio::spawn(background::probe_lag(inner.clone()));
    tokio::spawn(background::chores(inner.clone()));
    tokio::spawn(proposals::run(inner.clone(), proposals_rx));
    tokio::spawn(reads::run(inner.clone(), reads_rx));
    if belonging.founder {
        inner.initialize().await?;
    }
    tokio::spawn(announce(inner.clone()));
    Ok(Node(inner))
}

/// Opens the wal and the store; both may read a lot, so not on Raft's thread's own time.
async fn open_storage(
    disk: Arc<dyn Disk>,
    config: &Config,
    belonging: &Belonging,
    id: u64,
) -> Result<(Wal, Store), StartError> {
    let wal_config = WalConfig {
        segment_bytes: config.wal_segment_bytes,
        memory_bytes: config.wal_memory_bytes,
        ..WalConfig::new(belonging.id, id)
    };
    let store_config = StoreConfig {
        tail_bytes: config.tail_bytes,
        overlay_bytes: config.overlay_bytes,
        value_cache_bytes: config.value_cache_bytes,
        table_cache_bytes: config.table_cache_bytes,
        ..StoreConfig::default()
    };
    let dir: PathBuf = config.data_dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        for sub in ["wal", "history"] {
            let path = dir.join(sub);
            disk.create_dir_all(&path).map_err(|source| StartError::Io { path, source })?;
        }
        let wal = Wal::open(disk.clone(), &dir.join("wal"), wal_config)?;
        let store = Store::open(disk, &dir.join("history"), IndexKind::Sled(dir.join("index")), store_config)?;
        Ok((wal, store))
    });
    opened.await.map_err(|e| StartError::Other(format!("opening the storage failed: {e}")))?
}

/// Tells the cluster where this member is now, if the membership says otherwise.
async fn announce(inner: Arc<Inner>) {
    let Ok(http) = StrangerHttp::new() else { return };
    let cluster = inner.http.identity().cluster;
    loop {
        let members = inner.members_by_id();
        match members.get(&inner.id) {
            Some(known) if known.peer_url == inner.info.peer_url && known.client_url == inner.info.client_url => return,
            Some(_) if inner.view().leads => {
                if let Err(e) = inner.admit(inner.id, inner.info.clone(), true).await {
                    tracing::debug!(error = %e, "new addresses are not in the membership yet");
                }
            }
            Some(_) => {
                let request = JoinRequest::new(inner.id, inner.info.clone(), Some(cluster));
                for (_, member) in members.iter().filter(|(id, _)| **id != inner.id) {
                    if let Ok(JoinAnswer::Joined { .. }) = ask(&http, &member.peer_url, &request).await {
                        return;
                    }
                }
            }
            // The membership has not arrived yet.
            None => {}
        }
        if inner.is_stopping() {
            return;
        }
        tokio::time::sleep(ANNOUNCE_PAUSE).await;
    }
}

impl Inner {
    /// A founder's Raft begins with itself as the only voter.
    async fn initialize(&self) -> Result<(), StartError> {
        let failed = |e: &dyn std::fmt::Display| StartError::Other(format!("raft could not be initialised: {e}"));
        if self.raft.is_initialized().await.map_err(|e| failed(&e))? {
            return Ok(());
        }
        let members = BTreeMap::from([(self.id, self.info.clone())]);
        self.raft.initialize(members).await.map_err(|e| failed(&e))
    }

    async fn step_down(&self) -> bool {
        if !self.view().leads {
            return false;
        }
        let ctx = RequestContext::anonymous(0, HAND_OVER);
        match self.transfer_leader(&ctx, None, true).await {
            Ok(reply) => {
                tracing::info!(to = reply.leader, "leadership handed over");
                return true;
            }
            Err(NodeError::NotAtTip { detail, .. }) => tracing::info!(detail, "nobody can take leadership over"),
            Err(e) => tracing::warn!(error = %e, "leadership was not handed over"),
        }
        false
    }

    async fn close(&self) -> Result<(), String> {
        self.stopping.store(true, Ordering::Relaxed);
        let shut = self.raft.shutdown().await;
        let sealer = self.background.sealer.lock().take();
        let (store, wal) = (self.store.clone(), self.wal.clone());
        let closed = tokio::task::spawn_blocking(move || {
            drop(sealer);
            let durable = wal.durable_index();
            wal.close().map_err(|e| e.to_string())?;
            match durable {
                Some(durable) => store.close(durable).map_err(|e| e.to_string()),
                None => Ok(()),
            }
        });
        closed.await.map_err(|e| e.to_string())??;
        drop(self.background.lock.lock().take());
        shut.map_err(|e| e.to_string())
    }
}

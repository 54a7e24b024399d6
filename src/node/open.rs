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
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::background::{self, Sealer};
use super::clock::Clock;
use super::compaction::{self, Compactor};
use super::contacts::{self, Contacts};
use super::events::{self, Events};
use super::founding::found_or_join;
use super::founding::lobby::Lobby;
use super::founding::protocol::Own;
use super::identity::{Belonging, Home, MemberFile};
use super::join::{JoinRequest, join};
use super::leases::{self, Leases};
use super::mirrors::{self, Mirrors};
use super::pod_label::{self, PodLabel};
use super::quarantine::{DamageNote, Quarantine};
use super::reads::{self, Lag};
use super::repair::{Opening, Repaired};
use super::view::View;
use super::webhooks::Webhooks;
use super::whereabouts::{self, Places};
use super::{
    Inner, Limits, MAX_KEY_BYTES, Node, NodeError, RequestContext, StartError, WatchHub, WatchLimits, canary, dr,
    maintenance, proposals, report, room, seed,
};
use crate::api::Objectives;
use crate::config::Config;
use crate::files::{Disk, RealDisk};
use crate::index::IndexKind;
use crate::metrics::Metrics;
use crate::model::{FEATURE_LEVEL, new_random_id};
use crate::raft::copy::Copies;
use crate::raft::fence::Identity;
use crate::raft::link::{LinkConfig, Links};
use crate::raft::log::Log;
use crate::raft::machine::Machine;
use crate::raft::network::{AddressBook, KeptFrom, Network, NetworkTimeouts, Reach};
use crate::raft::peer_http::{PeerHttp, StrangerHttp};
use crate::raft::service::PeerService;
use crate::raft::types::{MemberInfo, Raft};
use crate::store::{CompactReport, KeptIndex, Store, StoreConfig};
use crate::wal::{Wal, WalConfig};

/// How long a stopping leader tries to hand over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// A snapshot that makes no progress for so long is given up.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(20);

/// Where this member is reached, as told to others.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// By clients.
    pub client_url: String,
    /// By other members.
    pub peer_url: String,
}

/// What a member that was closed leaves open, so that it is opened again in less time.
pub struct LeftOpen(KeptIndex);

/// Why a member did not close cleanly.
#[derive(Debug, Error)]
pub enum CloseError {
    /// What the log holds may not be on the disk: this process must not go on from it.
    #[error("the log: {0}")]
    Log(String),
    /// Whatever else.
    #[error("{0}")]
    Other(String),
}

/// What runs beside the requests, and is ended with the member.
pub(super) struct Background {
    /// Raft's runtime.
    pub(super) handle: Handle,
    /// Ends Raft's runtime when it is dropped or sent to.
    stop_runtime: Mutex<Option<oneshot::Sender<()>>>,
    sealer: Mutex<Option<Sealer>>,
    compactor: Mutex<Option<Compactor>>,
    /// The lock on the data directory; freed when the member has stopped, or the process ends, however it ends.
    lock: Mutex<Option<File>>,
}

impl Node {
    /// Opens the member that `config` describes. Waits until it belongs to a cluster, which for a newcomer takes until a
    /// member of that cluster answers.
    pub async fn start(config: &Config, addresses: Addresses, metrics: Arc<Metrics>) -> Result<Node, StartError> {
        Node::start_in(config, addresses, metrics, Lobby::default(), None).await
    }

    /// The same with a lobby, in which others find the member while it waits, and with what [`Node::close_to_reopen`] has
    /// left.
    pub async fn start_in(
        config: &Config,
        addresses: Addresses,
        metrics: Arc<Metrics>,
        lobby: Lobby,
        left: Option<LeftOpen>,
    ) -> Result<Node, StartError> {
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
                let node = open(&config, addresses, metrics, &lobby, left.map(|left| left.0), stop).await;
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
        self.shut(false).await.map(drop).map_err(|error| error.to_string())
    }

    /// The same before this process opens the member again at once. Leaves the index open for that, when there is nothing
    /// but that to be done with it.
    pub async fn close_to_reopen(&self) -> Result<Option<LeftOpen>, CloseError> {
        let keeps = {
            let file = &self.0.home.lock().file;
            file.promotion.is_some() && file.fenced.is_none() && file.quarantine.is_none()
        };
        Ok(self.shut(keeps).await?.map(LeftOpen))
    }

    async fn shut(&self, keeps: bool) -> Result<Option<KeptIndex>, CloseError> {
        let inner = self.0.clone();
        let stopped = self.0.background.handle.spawn(async move { inner.close(keeps).await });
        let result = stopped.await.map_err(|e| CloseError::Other(e.to_string()))?;
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
async fn belong(config: &Config, home: &Home, lobby: &Lobby, own: &Own) -> Result<Belonging, StartError> {
    let dir = &config.data_dir;
    let told = config.bootstrap || !config.join.is_empty() || !config.discover.is_empty();
    if let Some(belonging) = home.file.cluster {
        if told {
            tracing::info!(
                dir = %dir.display(),
                "this member has data and uses it; --bootstrap, --bootstrap-expect and --join are ignored"
            );
        }
        return Ok(belonging);
    }
    if config.bootstrap && !(config.join.is_empty() && config.discover.is_empty()) {
        return Err(StartError::BothTold { dir: dir.clone() });
    }
    if !config.discover.is_empty() && config.join.is_empty() {
        let http = StrangerHttp::new().map_err(|e| StartError::Other(format!("cannot make an HTTP client: {e}")))?;
        return found_or_join(&http, lobby, &config.discover, super::founding::PAUSE).await;
    }
    let belonging = if config.bootstrap {
        Belonging { id: new_random_id(), timeline: new_random_id(), founder: true, has_log: false }
    } else if config.join.is_empty() {
        return Err(StartError::NotTold { dir: dir.clone() });
    } else {
        join(&config.join, &JoinRequest::new(own.id, own.info.clone(), None)).await?
    };
    lobby.belong(belonging)?;
    Ok(belonging)
}

/// Refuses a seed that is no good before this member joins a cluster with it. Only a member that has not joined yet
/// looks: later the file may be gone.
async fn check_seed(config: &Config, home: &Home) -> Result<(), StartError> {
    let Some(path) = config.seed.clone().filter(|_| home.file.cluster.is_none() && !config.bootstrap) else {
        return Ok(());
    };
    let checked = tokio::task::spawn_blocking(move || seed::check(&path, |_| {})).await;
    checked.map_err(|e| StartError::Other(format!("the seed could not be checked: {e}")))??;
    Ok(())
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
    lobby: &Lobby,
    kept: Option<KeptIndex>,
    stop_runtime: oneshot::Sender<()>,
) -> Result<Node, StartError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let dir = &config.data_dir;
    disk.create_dir_all(dir).map_err(|source| StartError::Io { path: dir.clone(), source })?;
    let lock = lock(dir)?;
    dr::drill::remove_leftovers(dir);
    let file = MemberFile::open(&*disk, dir, &config.name)?;
    let info = MemberInfo {
        name: config.name.clone(),
        site: config.site.clone(),
        role: config.role,
        client_url: own.client_url,
        peer_url: own.peer_url,
    };
    let mut home = Home::new(disk.clone(), dir.clone(), file);
    // A member that comes home or is repaired moves its history: the index must be closed before that.
    let kept = kept.filter(|_| home.file.fenced.is_none() && home.file.quarantine.is_none());
    let objectives = Objectives { rpo_seconds: config.rpo_seconds as f64, rto_seconds: config.rto_seconds as f64 };
    if home.file.fenced.is_some() {
        home = dr::home::come_home(config, home, &info, objectives, lobby).await?;
    }
    let id = home.file.member_id();
    let own = Own { id, info: info.clone(), expect: config.bootstrap_expect };
    lobby.opens(own.clone(), &home, objectives, &config.join);
    check_seed(config, &home).await?;
    lobby.enter(own.clone(), home.clone());
    let belonging = belong(config, &home, lobby, &own).await?;
    let mut home = lobby.leave();
    check_log(&*disk, dir, &belonging)?;
    let opening = Opening { config, own: &own, belonging: &belonging, home: &mut home, lobby, metrics: &metrics, kept };
    let (wal, store, repaired) = opening.storage().await?;
    if let Some(seed) = &config.seed {
        seed::install(seed, &store, &wal, &belonging).await?;
    }
    let damage = Arc::new(DamageNote::default());
    let met = damage.clone();
    store.set_damage_hook(Box::new(move |error| met.take(error)));
    if !belonging.has_log {
        home.change(|file| file.cluster = Some(Belonging { has_log: true, ..belonging }))?;
    }
    if home.file.promotion.is_some() {
        let http = PeerHttp::new(Arc::new(Identity::new(id, belonging.id, belonging.timeline)));
        let http = http.map_err(|e| StartError::Other(format!("cannot make an HTTP client: {e}")))?;
        dr::promote::edit(&mut home, &wal, &store, (id, &info), &http, lobby).await?;
    }
    let belonging = home.file.cluster.unwrap_or(belonging);
    // The history may have gone on to a newer timeline since this member joined; or it joined, or begins, one whose first
    // entry it has not applied yet.
    let timelines = store.timelines();
    let known = timelines.iter().any(|timeline| timeline.id == belonging.timeline);
    let newest = timelines.last().filter(|_| known);
    let timeline = newest.map_or(belonging.timeline, |timeline| timeline.id);

    let (room, room_rx) = watch::channel(0);
    let failure = watch::Sender::new(None);
    let feature_level = config.announce_feature_level.unwrap_or(FEATURE_LEVEL);
    let machine = Machine::new(store.clone(), room_rx, failure.subscribe()).knowing(feature_level);
    let applied = machine.applied();
    let watch_limits = WatchLimits {
        max_watchers: config.max_watchers,
        buffer_bytes: config.watch_buffer_bytes,
        slow_timeout: Duration::from_millis(config.watch_slow_timeout_ms),
    };
    let watches = WatchHub::start(store.clone(), applied.clone(), watch_limits)
        .map_err(|e| StartError::Other(format!("cannot start a thread: {e}")))?;
    let identity = Arc::new(Identity::new(id, belonging.id, timeline).knowing(feature_level));
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
    let copies = Copies::new(store.clone(), metrics.copies.clone());
    let mirrors = Mirrors::default();
    let reach =
        Reach { addresses: addresses.clone(), kept_from: kept_from.clone(), suspensions: mirrors.suspensions.clone() };
    let links = Links::new(LinkConfig {
        site: config.site.clone(),
        compression: config.link_compression,
        bandwidth_bytes: config.link_bandwidth_bytes,
    });
    let network = Network::new(http.clone(), timeouts, reach, copies, links.clone(), wal.clone());
    // Before Raft, which at its start applies what the log holds and may have to wait for room.
    let on_failure = failure.clone();
    let sealer = Sealer::start(store.clone(), wal.clone(), room.clone(), move |why| super::fail(&on_failure, why));
    let sealer = sealer.map_err(|e| StartError::Other(format!("cannot start a thread: {e}")))?;
    let started = Raft::new(id, raft_config, network, Log::new(wal.clone(), store.clone()), machine).await;
    let raft = match started {
        Ok(raft) => raft,
        // What it had to apply met damage.
        Err(e) => match damage.early() {
            Some(why) => {
                home.change(|file| file.quarantine = Some(Quarantine::new(why)))?;
                return Err(StartError::Damaged);
            }
            None => return Err(StartError::Other(format!("raft could not start: {e}"))),
        },
    };

    let (proposals, proposals_rx) = mpsc::channel(config.write_queue);
    let (reads, reads_rx) = mpsc::channel(reads::MAX_WAITING);
    let webhooks = Webhooks::new(&config.webhooks);
    webhooks.start().map_err(|e| StartError::Other(format!("cannot make a client for webhooks: {e}")))?;
    let (events, events_rx) = Events::new(&config.name, webhooks);
    let unreadable = |e| StartError::Other(format!("the events of the cluster cannot be read: {e}"));
    events.follow(&store).map_err(unreadable)?;
    let inner = Arc::new(Inner {
        id,
        founder: belonging.founder,
        service: PeerService::new(raft.clone(), store.clone(), wal.clone()),
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
        watches,
        proposals,
        proposing: Default::default(),
        leaderless: Default::default(),
        reads,
        keep: compaction::Keep {
            history: Duration::from_millis(config.history_keep_ms),
            revisions: config.history_keep_revisions,
            delta: Duration::from_millis(config.delta_keep_ms),
        },
        floors_moved: Mutex::default(),
        floors_unsealed: Mutex::default(),
        leases: Leases::default(),
        events,
        switchover: Default::default(),
        maintenance: Default::default(),
        canary: Default::default(),
        data_dir: dir.clone(),
        room_limits: room::Limits { reserve_bytes: config.disk_reserve_bytes, quota_bytes: config.disk_quota_bytes },
        max_outcomes: config.max_outcomes,
        under_way: Default::default(),
        membership_change: tokio::sync::Mutex::new(()),
        contacts: Contacts::default(),
        mirrors,
        objectives,
        mirror_wait: Duration::from_millis(config.mirror_wait_ms),
        leads_since: Mutex::new(None),
        home: Mutex::new(home),
        rivalry: Mutex::default(),
        removed: AtomicBool::new(false),
        founded: AtomicBool::new(false),
        in_quarantine: AtomicBool::new(false),
        is_fenced: AtomicBool::new(false),
        split: Mutex::default(),
        kin_heard: Mutex::default(),
        reopen: watch::Sender::new(false),
        damage_told: Mutex::default(),
        peers_written: Mutex::default(),
        verifying: Arc::default(),
        verify_bytes_per_second: config.verify_bytes_per_second,
        stopping: AtomicBool::new(false),
        drills: Default::default(),
        failure,
        background: Background {
            handle: Handle::current(),
            stop_runtime: Mutex::new(Some(stop_runtime)),
            sealer: Mutex::new(Some(sealer)),
            compactor: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        },
        info,
        store,
        wal,
        raft,
        http,
        addresses,
        kept_from,
        links,
    });
    // What seals and the wal may need before compaction has made room.
    let needed = 2 * config.tail_bytes as u64 + config.wal_segment_bytes;
    let compactor = start_compactor(&inner, config.compaction_percent, needed);
    let compactor = compactor.map_err(|e| StartError::Other(format!("cannot start a thread: {e}")))?;
    *inner.background.compactor.lock() = compactor;
    if let Some(Repaired { quarantine, how }) = repaired {
        // Again, because those of before the repair went with what was closed.
        inner.events.record("quarantined", quarantine.why.to_string());
        let aside = quarantine.aside;
        inner.events.record("repaired", format!("by {how}; what was damaged is kept in {aside}"));
    }
    damage.belongs_to(&inner);
    report::register(&inner);
    tokio::spawn(background::watch_cluster(inner.clone()));
    tokio::spawn(background::watch_failure(inner.clone()));
    tokio::spawn(background::probe_lag(inner.clone()));
    tokio::spawn(background::chores(inner.clone()));
    tokio::spawn(contacts::run(inner.clone()));
    tokio::spawn(mirrors::run(inner.clone()));
    tokio::spawn(dr::kin::run(inner.clone()));
    tokio::spawn(inner.clone().finish_promotion());
    tokio::spawn(inner.clone().finish_coming_home());
    tokio::spawn(leases::run(inner.clone()));
    room::watch(&inner).map_err(|e| StartError::Other(format!("cannot start a thread: {e}")))?;
    tokio::spawn(events::write(inner.clone(), events_rx));
    tokio::spawn(events::follow(inner.clone()));
    tokio::spawn(maintenance::run(inner.clone()));
    tokio::spawn(super::dr::switchover::run(inner.clone()));
    tokio::spawn(canary::run(inner.clone(), Duration::from_millis(config.canary_interval_ms)));
    tokio::spawn(proposals::run(inner.clone(), proposals_rx));
    tokio::spawn(reads::run(inner.clone(), reads_rx));
    if belonging.founder {
        inner.initialize().await?;
    }
    tokio::spawn(whereabouts::announce(inner.clone()));
    if let Some(label) = PodLabel::new(config) {
        tokio::spawn(pod_label::run(inner.clone(), label));
    }
    let places = Places { discover: config.discover.clone(), join: config.join.clone() };
    tokio::spawn(whereabouts::look_for_others(inner.clone(), places));
    Ok(Node(inner))
}

/// Starts to compact; the thread holds the member weakly, so that it does not keep it alive.
fn start_compactor(inner: &Arc<Inner>, percent: u32, needed_bytes: u64) -> std::io::Result<Option<Compactor>> {
    if percent == 0 {
        return Ok(None);
    }
    let (events, weak) = (Arc::downgrade(inner), Arc::downgrade(inner));
    let done = move |report: CompactReport| {
        let CompactReport { segments, read_bytes, written_bytes, .. } = report;
        let Some(inner) = events.upgrade() else { return };
        if segments == 0 {
            inner.metrics.compaction_idle.inc();
            return;
        }
        tracing::debug!(segments, read_bytes, written_bytes, "compacted");
        let detail = format!("{segments} segments of {read_bytes} bytes became one of {written_bytes}");
        inner.events.record("compaction", detail);
    };
    let failed = move |why| {
        if let Some(inner) = weak.upgrade() {
            inner.fail(why);
        }
    };
    let sees = Arc::downgrade(inner);
    let percent = move || match sees.upgrade() {
        Some(inner) if inner.http.identity().is_short() => compaction::SHORT_PERCENT,
        _ => percent,
    };
    let (sees, dir, room) = (Arc::downgrade(inner), inner.data_dir.clone(), inner.room_limits);
    let limits = move || {
        let short = sees.upgrade().is_some_and(|inner| inner.http.identity().is_short());
        compaction::limits(&dir, room, needed_bytes, short)
    };
    Compactor::start(inner.store.clone(), percent, limits, done, failed).map(Some)
}

/// Opens the wal and the store; both may read a lot, so not on Raft's thread's own time.
pub(super) async fn open_storage(
    disk: Arc<dyn Disk>,
    config: &Config,
    belonging: &Belonging,
    id: u64,
    kept: Option<KeptIndex>,
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
        let began = Instant::now();
        let wal = Wal::open(disk.clone(), &dir.join("wal"), wal_config)?;
        let (wal_took, began) = (began.elapsed(), Instant::now());
        let store =
            Store::open_with(kept, disk, &dir.join("history"), IndexKind::Sled(dir.join("index")), store_config)?;
        tracing::info!(wal = ?wal_took, history = ?began.elapsed(), "the storage is open");
        Ok((wal, store))
    });
    opened.await.map_err(|e| StartError::Other(format!("opening the storage failed: {e}")))?
}

impl Inner {
    /// A founder's Raft begins with itself as the only voter, or with all that have founded the cluster together: each of
    /// them begins so, and Raft sees to it that one of them leads.
    async fn initialize(&self) -> Result<(), StartError> {
        let failed = |e: &dyn std::fmt::Display| StartError::Other(format!("raft could not be initialised: {e}"));
        if self.raft.is_initialized().await.map_err(|e| failed(&e))? {
            return Ok(());
        }
        let held = self.home.lock().file.held.clone();
        let members = match held {
            Some(held) => held.proposal.members(),
            None => BTreeMap::from([(self.id, self.info.clone())]),
        };
        self.raft.initialize(members).await.map_err(|e| failed(&e))
    }

    pub(super) async fn step_down(&self) -> bool {
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

    async fn close(&self, keeps: bool) -> Result<Option<KeptIndex>, CloseError> {
        self.stopping.store(true, Ordering::Relaxed);
        self.watches.stop();
        self.wait_drill_ended().await;
        let shut = self.raft.shutdown().await;
        let (sealer, compactor) = (self.background.sealer.lock().take(), self.background.compactor.lock().take());
        let (store, wal, quarantined) = (self.store.clone(), self.wal.clone(), self.quarantined().is_some());
        let began = Instant::now();
        let closed = tokio::task::spawn_blocking(move || {
            drop((compactor, sealer));
            let durable = wal.durable_index();
            let logged = wal.close().map_err(|e| CloseError::Log(e.to_string()));
            let why = "the member is closed";
            let closed = match durable.filter(|_| logged.is_ok() && !quarantined) {
                Some(durable) if keeps => store.close_to_reopen(durable, why).map(Some),
                Some(durable) => store.close(durable).map(|()| None),
                None => Ok(None),
            };
            // A copy may still be coming in on another thread: the directory is about to be opened anew.
            store.abandon(why);
            logged?;
            closed.map_err(|e| CloseError::Other(e.to_string()))
        });
        let closed = closed.await.map_err(|e| CloseError::Other(e.to_string()));
        tracing::info!(took = ?began.elapsed(), "the storage is closed");
        self.home.lock().close();
        drop(self.background.lock.lock().take());
        let kept = closed??;
        shut.map_err(|e| CloseError::Other(e.to_string()))?;
        Ok(kept)
    }
}

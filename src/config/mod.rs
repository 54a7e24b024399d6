//! The configuration of one member: defaults < TOML file < environment < flags, read and checked once, at the start.
//!
//! Place: `cli` gathers what was given ([`Sources`]), [`load`] makes one typed [`Config`] of it, and no other module
//! reads a file, a variable or a flag of its own.
//!
//! Invariants: every error is listed, not only the first, and each names the setting and where its value came from.
//! An unknown field of the file is refused. An unknown `LIFEBOAT_*` variable is only warned about, because Kubernetes
//! gives every pod such variables for a service that is called `lifeboat`; those are known by their form and passed
//! over in silence. A variable that is set to nothing counts as not set.
//!
//! It keeps nothing, so nothing survives a crash. It does not look at the data directory: whether a member without
//! data was told how to get some is decided by `node`. Proven by the tests in `config/tests.rs`.

pub(crate) mod parse;
mod read;
mod settings;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

pub use crate::model::MemberRole;
pub use parse::{name as check_name, url as check_url};
pub use read::{Effective, Loaded, Sources, load};
pub use settings::{ENV_PREFIX, SETTINGS, Setting, Shape};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The port on which members serve each other when nothing else is said.
pub const DEFAULT_PEER_PORT: u16 = 7401;

/// Where other members may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// One member at this host; a name stands for any one of its addresses.
    Address {
        /// A name or an address, an IPv6 one in brackets.
        host: String,
        /// Its port for members.
        port: u16,
    },
    /// A member at every address that this name has.
    Dns {
        /// The name.
        name: String,
        /// Their port for members.
        port: u16,
    },
}

/// The configuration of one member, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Unique in the cluster.
    pub name: String,
    /// The data centre it stands in.
    pub site: String,
    /// What it joins as. A member with data keeps the role that the cluster gave it.
    pub role: MemberRole,
    /// Everything this member keeps lies under this directory.
    pub data_dir: PathBuf,
    /// Where clients are served. Port 0 takes any free one.
    pub client_listen: SocketAddr,
    /// Where the other members are served. Port 0 takes any free one.
    pub peer_listen: SocketAddr,
    /// What is told to clients; see [`Config::client_url_or`].
    pub client_url: Option<String>,
    /// What is told to the other members; see [`Config::peer_url_or`].
    pub peer_url: Option<String>,
    /// Found a new cluster when there is no data yet.
    pub bootstrap: bool,
    /// Found a cluster together with others once so many voters without data have found each other.
    pub bootstrap_expect: Option<usize>,
    /// Where to look for them, and for a cluster to join.
    pub discover: Vec<Discovery>,
    /// Join the cluster of one of these peer URLs when there is no data yet.
    pub join: Vec<String>,
    /// With whose content a member without data begins, once it has joined.
    pub seed: Option<PathBuf>,
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// Lower bound of the random election timeout.
    pub election_min_ms: u64,
    /// Upper bound of the random election timeout.
    pub election_max_ms: u64,
    /// Largest value that a client may write.
    pub max_value_bytes: usize,
    /// After this a request is answered, whatever became of it.
    pub request_timeout_ms: u64,
    /// Size of one file of the wal.
    pub wal_segment_bytes: u64,
    /// Recent entries of the wal kept in memory.
    pub wal_memory_bytes: usize,
    /// How much log is kept for members that lag.
    pub wal_keep_bytes: u64,
    /// Whether what goes to members of other sites is compressed.
    pub link_compression: bool,
    /// Bytes a second to each member of another site; 0 for no cap.
    pub link_bandwidth_bytes: u64,
    /// One tail of the history; at most two are in memory.
    pub tail_bytes: usize,
    /// Bound of the index's overlay.
    pub overlay_bytes: usize,
    /// Bound of the cache of newest values.
    pub value_cache_bytes: usize,
    /// Bound of the cache of segments' offset tables.
    pub table_cache_bytes: usize,
    /// Bound of the writes that wait to be proposed.
    pub write_queue: usize,
    /// Bound of the watchers, reads that wait for a change included.
    pub max_watchers: usize,
    /// Newest changes kept in memory for watchers.
    pub watch_buffer_bytes: usize,
    /// A watcher that takes nothing for so long, although there is something, is ended.
    pub watch_slow_timeout_ms: u64,
    /// Revisions that are younger, by the log's clock, can be read.
    pub history_keep_ms: u64,
    /// And so many of the newest revisions.
    pub history_keep_revisions: u64,
    /// Compaction works for at most so many percent of the time; 0 for never.
    pub compaction_percent: u32,
    /// How fast a member reads while it is verified; 0 for as fast as it goes.
    pub verify_bytes_per_second: u64,
    /// A member that was away for less long comes back by a delta.
    pub delta_keep_ms: u64,
    /// Disk space held back for sealing and compaction.
    pub disk_reserve_bytes: u64,
    /// What the data directory may grow to; 0 for the whole disk.
    pub disk_quota_bytes: u64,
    /// Bound of the outcomes of keyed requests that are remembered.
    pub max_outcomes: u64,
    /// The objective of what a disaster may cost, in seconds.
    pub rpo_seconds: u64,
    /// The objective of how long a failover may take, in seconds.
    pub rto_seconds: u64,
    /// So long a write waits at most for a mirror in another site, when it shall.
    pub mirror_wait_ms: u64,
    /// For tests of upgrades: the newest feature level that this member knows; none for all that the program knows.
    pub announce_feature_level: Option<u64>,
    /// Between two canaries of a leader; 0 for none.
    pub canary_interval_ms: u64,
    /// Where events are posted.
    pub webhooks: Vec<String>,
    /// The label of this member's own pod that says what it is; none outside Kubernetes.
    pub kubernetes_label: Option<String>,
    /// The pod that this member runs in.
    pub kubernetes_pod: Option<String>,
    /// Where the API server of Kubernetes is.
    pub kubernetes_api: String,
    /// A filter of `tracing`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Config {
    /// The defaults, for a member of this name and directory that is told neither to bootstrap nor to join.
    pub fn new(name: &str, data_dir: impl Into<PathBuf>) -> Config {
        Config { name: name.to_owned(), data_dir: data_dir.into(), ..read::defaults() }
    }

    /// The address told to clients, when the client listener is bound to `bound`.
    pub fn client_url_or(&self, bound: SocketAddr) -> String {
        self.client_url.clone().unwrap_or_else(|| format!("http://{bound}"))
    }

    /// The address told to the other members, when the peer listener is bound to `bound`.
    pub fn peer_url_or(&self, bound: SocketAddr) -> String {
        self.peer_url.clone().unwrap_or_else(|| format!("http://{bound}"))
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    Default,
    /// The file of this path.
    File(PathBuf),
    /// The environment variable of this name.
    Env(String),
    /// The flag of this name.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("file {path}: {source}", path = path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("file {path}: {source}", path = path.display())]
    FileMalformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// The file names a setting that does not exist.
    #[error("{field}: no such setting ({origin})")]
    UnknownField {
        /// As it was written.
        field: String,
        /// Where.
        origin: Origin,
    },
    /// A variable holds bytes that are no text.
    #[error("{field}: the value is not valid UTF-8 ({origin})")]
    NotText {
        /// The setting.
        field: String,
        /// Where its value came from.
        origin: Origin,
    },
    /// A setting that has no default was not given.
    #[error("{field}: must be given (flag --{flag}, environment variable {env}, or the file)")]
    Missing {
        /// The setting.
        field: &'static str,
        /// Its flag.
        flag: String,
        /// Its variable.
        env: String,
    },
    /// A value that cannot be understood or is out of bounds.
    #[error("{field}: {why} (given: {value}; {origin})")]
    Invalid {
        /// The setting.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
        /// Where it came from.
        origin: Origin,
    },
    /// Two values that do not go together.
    #[error("{field}: {why} ({origin}; {other}: {other_origin})")]
    Conflict {
        /// The one.
        field: &'static str,
        /// Why they do not go together.
        why: String,
        /// Where the one came from.
        origin: Origin,
        /// The other.
        other: &'static str,
        /// Where the other came from.
        other_origin: Origin,
    },
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Error)]
#[error("{}", list(.0))]
pub struct ConfigErrors(pub Vec<ConfigError>);

fn list(errors: &[ConfigError]) -> String {
    let lines: Vec<String> = errors.iter().map(|error| format!("  {error}")).collect();
    format!("the configuration is not valid:\n{}", lines.join("\n"))
}

//! The table of settings: every setting's name, shape, default and one sentence of help, in one place.
//!
//! The name of the environment variable and of the flag follow from the name of the setting, and the command line is
//! built from this table too. So a setting is added here, read in [`super::read`], and is known everywhere.

/// The beginning of every environment variable of Lifeboat.
pub const ENV_PREFIX: &str = "LIFEBOAT_";

/// What a setting looks like in a file: flags and variables are always text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// `true` or `false`; as a flag it may stand without a value.
    Switch,
    /// A whole number.
    Count,
    /// A whole number of bytes, or a string such as `"64MiB"`.
    Bytes,
    /// A whole number of milliseconds, or a string such as `"5s"`.
    Millis,
    /// An array of strings; a flag that may be repeated; commas in a variable.
    List,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in a file.
    pub name: &'static str,
    /// What it looks like.
    pub shape: Shape,
    /// Its value when nobody gives one; none when it has to be given or when its absence has a meaning.
    pub default: Option<&'static str>,
    /// What it does, for people.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable, as `LIFEBOAT_DATA_DIR`.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.to_uppercase())
    }

    /// The flag without its two dashes, as `data-dir`.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The setting of this name.
    pub fn find(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }
}

const fn setting(name: &'static str, shape: Shape, default: Option<&'static str>, help: &'static str) -> Setting {
    Setting { name, shape, default, help }
}

/// Every setting of a member, in the order in which people read about them.
pub static SETTINGS: &[Setting] = &[
    setting("name", Shape::Text, None, "Name of this member, unique in the cluster: 1 to 63 of a-z, 0-9 and -"),
    setting(
        "site",
        Shape::Text,
        Some("default"),
        "Site (data centre) this member stands in: 1 to 63 of a-z, 0-9 and -",
    ),
    setting("role", Shape::Text, Some("voter"), "voter: counts in the quorum; mirror: follows asynchronously"),
    setting("data_dir", Shape::Text, None, "Directory of this member's data; made when missing"),
    setting("client_listen", Shape::Text, Some("127.0.0.1:7400"), "Address on which clients are served"),
    setting("peer_listen", Shape::Text, Some("127.0.0.1:7401"), "Address on which the other members are served"),
    setting(
        "client_url",
        Shape::Text,
        None,
        "Where clients reach this member [default: http:// and the address bound]",
    ),
    setting("peer_url", Shape::Text, None, "Where members reach this member [default: http:// and the address bound]"),
    setting("bootstrap", Shape::Switch, Some("false"), "Found a new cluster with this member as its first"),
    setting(
        "bootstrap_expect",
        Shape::Count,
        None,
        "Found a cluster together with others, as soon as so many voters without data have found each other",
    ),
    setting(
        "discover",
        Shape::List,
        None,
        "Where to look for other members: host:port, or dns:name[:port] for all addresses of a name; may be repeated",
    ),
    setting("join", Shape::List, None, "Peer URL of a member of the cluster to join; may be repeated"),
    setting(
        "seed",
        Shape::Text,
        None,
        "File made by `lifeboat snapshot save`, with whose content a member without data begins once it has joined",
    ),
    setting("heartbeat_ms", Shape::Millis, Some("100"), "Time between two heartbeats of the leader"),
    setting("election_min_ms", Shape::Millis, Some("300"), "Shortest time without a leader before an election"),
    setting("election_max_ms", Shape::Millis, Some("600"), "Longest time without a leader before an election"),
    setting("max_value_bytes", Shape::Bytes, Some("1MiB"), "Largest value a client may write"),
    setting("request_timeout_ms", Shape::Millis, Some("5s"), "How long a request may take before it is answered"),
    setting("wal_segment_bytes", Shape::Bytes, Some("64MiB"), "Size of one file of the write-ahead log"),
    setting("wal_memory_bytes", Shape::Bytes, Some("64MiB"), "Recent log entries kept in memory"),
    setting(
        "wal_keep_bytes",
        Shape::Bytes,
        Some("512MiB"),
        "Log kept for members that lag; behind it they are sent a copy",
    ),
    setting(
        "link_compression",
        Shape::Text,
        Some("zstd"),
        "zstd or off: how what is sent to members of other sites is compressed",
    ),
    setting(
        "link_bandwidth_bytes",
        Shape::Bytes,
        Some("0"),
        "Bytes a second sent to each member of another site; 0 for no cap",
    ),
    setting("tail_bytes", Shape::Bytes, Some("16MiB"), "New history kept in memory before it is sealed into a segment"),
    setting("overlay_bytes", Shape::Bytes, Some("64MiB"), "Changes of the index kept in memory"),
    setting("value_cache_bytes", Shape::Bytes, Some("64MiB"), "Newest values kept in memory"),
    setting("table_cache_bytes", Shape::Bytes, Some("16MiB"), "Offset tables of segments kept in memory"),
    setting("write_queue", Shape::Count, Some("16384"), "Writes that may wait for the log; more are refused with 429"),
    setting("max_watchers", Shape::Count, Some("10000"), "Watchers at the same time; more are refused with 429"),
    setting("watch_buffer_bytes", Shape::Bytes, Some("16MiB"), "Newest changes kept in memory for watchers"),
    setting(
        "watch_slow_timeout_ms",
        Shape::Millis,
        Some("30s"),
        "How long a watcher may leave what is ready for it before it is ended",
    ),
    setting("history_keep_ms", Shape::Millis, Some("1h"), "Revisions that are younger can be read and watched from"),
    setting("history_keep_revisions", Shape::Count, Some("10000"), "And so many of the newest revisions"),
    setting(
        "compaction_percent",
        Shape::Count,
        Some("12"),
        "How much of the time, at most, a member compacts; half of it while short of room; 0 for never",
    ),
    setting(
        "verify_bytes_per_second",
        Shape::Bytes,
        Some("16MiB"),
        "How fast a member reads from its disk while it is verified; 0 for as fast as it goes",
    ),
    setting("delta_keep_ms", Shape::Millis, Some("168h"), "A member that was away for less long comes back by a delta"),
    setting(
        "disk_reserve_bytes",
        Shape::Bytes,
        Some("128MiB"),
        "Disk space held back for sealing and compaction; when the rest is nearly gone, writes are refused with 507",
    ),
    setting("disk_quota_bytes", Shape::Bytes, Some("0"), "What the data directory may grow to; 0 for the whole disk"),
    setting(
        "max_outcomes",
        Shape::Count,
        Some("1000000"),
        "Outcomes of requests with an Idempotency-Key that are kept; more are refused with 429",
    ),
    setting(
        "rpo_seconds",
        Shape::Count,
        Some("180"),
        "Objective: so old may the oldest write be that the loss of the primary site costs",
    ),
    setting("rto_seconds", Shape::Count, Some("60"), "Objective: so long may a failover to another site take"),
    setting(
        "mirror_wait_ms",
        Shape::Millis,
        Some("2s"),
        "How long a write with durability=mirrored waits for a mirror in another site",
    ),
    setting(
        "canary_interval_ms",
        Shape::Millis,
        Some("10s"),
        "How often the leader sends its time through the log, by which the age of mirrors is measured; 0 for never",
    ),
    setting(
        "webhooks",
        Shape::List,
        None,
        "URL to which events of the cluster are posted as JSON: http://host:port/path; may be repeated",
    ),
    setting(
        "kubernetes_label",
        Shape::Text,
        None,
        "Label of this member's own pod that says what it is: leader, follower or mirror",
    ),
    setting("kubernetes_pod", Shape::Text, None, "Name of the pod that this member runs in"),
    setting(
        "kubernetes_api",
        Shape::Text,
        Some("https://kubernetes.default.svc"),
        "Where the API server of Kubernetes is",
    ),
    setting(
        "log",
        Shape::Text,
        Some("info,openraft=error"),
        "What to log: error, warn, info, debug, trace, or a filter such as info,lifeboat=debug",
    ),
    setting("log_format", Shape::Text, Some("text"), "How to log: text or json"),
];

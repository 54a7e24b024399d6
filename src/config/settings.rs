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
    setting("join", Shape::List, None, "Peer URL of a member of the cluster to join; may be repeated"),
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
    setting("tail_bytes", Shape::Bytes, Some("16MiB"), "New history kept in memory before it is sealed into a segment"),
    setting("overlay_bytes", Shape::Bytes, Some("64MiB"), "Changes of the index kept in memory"),
    setting("value_cache_bytes", Shape::Bytes, Some("64MiB"), "Newest values kept in memory"),
    setting("table_cache_bytes", Shape::Bytes, Some("16MiB"), "Offset tables of segments kept in memory"),
    setting("write_queue", Shape::Count, Some("16384"), "Writes that may wait for the log; more are refused with 429"),
    setting(
        "log",
        Shape::Text,
        Some("info,openraft=error"),
        "What to log: error, warn, info, debug, trace, or a filter such as info,lifeboat=debug",
    ),
    setting("log_format", Shape::Text, Some("text"), "How to log: text or json"),
];

//! Gathers what was given, lets the strongest source win, and checks the result as a whole.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::settings::{ENV_PREFIX, SETTINGS, Setting, Shape};
use super::{Config, ConfigError, ConfigErrors, Discovery, LogFormat, MemberRole, Origin, parse};

/// The variable and the flag that name the file; they are not settings, since a file cannot name itself.
pub const CONFIG_ENV: &str = "LIFEBOAT_CONFIG";
/// Variables that begin so belong to the project's own tests.
const TEST_ENV_PREFIX: &str = "LIFEBOAT_TEST_";

/// The smallest size of anything that is counted in bytes and has to hold at least a few entries.
const SIZE_MIN_BYTES: u64 = 64 << 10;
/// The largest value that can be allowed: a value travels and is kept whole in memory at several places.
const VALUE_MAX_BYTES: u64 = 16 << 20;
/// More than any machine's memory; finds a slip of the unit.
const MEMORY_MAX_BYTES: u64 = 1 << 40;
/// The largest objective: a week.
const OBJECTIVE_MAX_SECONDS: u64 = 7 * 24 * 3600;
/// The longest time that is still taken for meant.
const TIME_MAX_MS: u64 = 600_000;
/// Ten years.
const KEEP_MAX_MS: u64 = 3650 * 24 * 3_600_000;
/// More voters than this make a cluster slower and not safer.
const EXPECT_MAX: u64 = 9;
/// The most writes that may be allowed to wait.
const WRITE_QUEUE_MAX: u64 = 1 << 20;
/// The most watchers that may be allowed.
const WATCHERS_MAX: u64 = 1 << 20;
/// With less a write of the largest size would take minutes.
const BANDWIDTH_MIN_BYTES: u64 = 16 << 10;
const COMPACTION_PERCENT_MAX: u64 = 50;
const MAX_OUTCOMES_MAX: u64 = 1 << 32;

/// What was given to a member, before anything is understood.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file of `--config`; weaker than nothing but the defaults. Falls back to `LIFEBOAT_CONFIG`.
    pub file: Option<PathBuf>,
    /// The environment; what does not begin with `LIFEBOAT_` is passed over.
    pub env: Vec<(OsString, OsString)>,
    /// Name of the setting and text of the value, in the order given. A list may occur several times.
    pub flags: Vec<(String, String)>,
}

/// A valid configuration and what is worth saying about it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is in force and why, for `--check`.
    pub effective: Vec<Effective>,
    /// What looks like a slip and is not refused.
    pub warnings: Vec<String>,
}

/// One setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting.
    pub name: &'static str,
    /// Its value as TOML; none when it is not set.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

impl Effective {
    /// A line of a TOML file that says the same.
    pub fn to_line(&self) -> String {
        match &self.value {
            Some(value) => format!("{} = {value}  # {}", self.name, self.origin),
            None => format!("# {} is not set", self.name),
        }
    }
}

/// Makes one checked configuration of all sources, or lists everything that is wrong.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut reader = Reader::default();
    reader.take_defaults();
    if let Some(path) = sources.file.clone().or_else(|| file_from_env(&sources.env)) {
        reader.take_file(&path);
    }
    reader.take_env(&sources.env);
    reader.take_flags(&sources.flags);
    let config = reader.config();
    if let Some(config) = &config {
        reader.check_together(config);
    }
    match config {
        Some(config) if reader.errors.is_empty() => {
            Ok(Loaded { config, effective: reader.effective(), warnings: reader.warnings })
        }
        _ => Err(ConfigErrors(reader.errors)),
    }
}

/// The defaults, with placeholders for what must be given.
pub(super) fn defaults() -> Config {
    let mut reader = Reader::default();
    reader.take_defaults();
    reader.take_flags(&[("name".to_owned(), "n".to_owned()), ("data_dir".to_owned(), ".".to_owned())]);
    reader.config().expect("the defaults of the table are valid; a test loads them")
}

fn file_from_env(env: &[(OsString, OsString)]) -> Option<PathBuf> {
    env.iter().find(|(name, value)| name == CONFIG_ENV && !value.is_empty()).map(|(_, value)| PathBuf::from(value))
}

/// Whether Kubernetes makes a variable of this form for a service whose name begins with `lifeboat`.
fn is_service_link(name: &str) -> bool {
    let tail_is = |tail: &str| name.ends_with(tail);
    let port_form = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        rest.split('_').next().is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
    });
    tail_is("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || tail_is("_PORT") || port_form
}

/// One value as given: its text (items of a list apart) and its source.
#[derive(Debug, Clone)]
struct Given {
    texts: Vec<String>,
    origin: Origin,
}

/// The state of one reading: for every setting the strongest value so far, and all errors.
#[derive(Default)]
struct Reader {
    given: BTreeMap<&'static str, Given>,
    errors: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Reader {
    fn take_defaults(&mut self) {
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                let given = Given { texts: vec![default.to_owned()], origin: Origin::Default };
                self.given.insert(setting.name, given);
            }
        }
    }

    fn take_file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) => return self.errors.push(ConfigError::FileUnreadable { path: path.to_owned(), source }),
        };
        let table: toml::Table = match toml::from_str(&text) {
            Ok(table) => table,
            Err(source) => return self.errors.push(ConfigError::FileMalformed { path: path.to_owned(), source }),
        };
        for (field, value) in table {
            let origin = Origin::File(path.to_owned());
            let Some(setting) = Setting::find(&field) else {
                self.errors.push(ConfigError::UnknownField { field, origin });
                continue;
            };
            match texts_of(setting, &value) {
                Ok(texts) => drop(self.given.insert(setting.name, Given { texts, origin })),
                Err(why) => self.invalid(setting.name, value.to_string(), why, origin),
            }
        }
    }

    fn take_env(&mut self, env: &[(OsString, OsString)]) {
        let mut env: Vec<_> = env.iter().filter(|(_, value)| !value.is_empty()).collect();
        env.sort();
        for (name, value) in env {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else { continue };
            if name == CONFIG_ENV || name.starts_with(TEST_ENV_PREFIX) {
                continue;
            }
            let Some(setting) = SETTINGS.iter().find(|setting| setting.env() == name) else {
                if !is_service_link(name) {
                    self.warnings.push(format!("environment variable {name} is not a setting and has no effect"));
                }
                continue;
            };
            let origin = Origin::Env(name.to_owned());
            match value.to_str() {
                Some(text) => self.take_text(setting, text, origin),
                None => self.errors.push(ConfigError::NotText { field: setting.name.to_owned(), origin }),
            }
        }
    }

    fn take_flags(&mut self, flags: &[(String, String)]) {
        for (name, text) in flags {
            match Setting::find(name) {
                Some(setting) => self.take_text(setting, text, Origin::Flag(setting.flag())),
                None => {
                    let origin = Origin::Flag(name.clone());
                    self.errors.push(ConfigError::UnknownField { field: name.clone(), origin });
                }
            }
        }
    }

    fn take_text(&mut self, setting: &'static Setting, text: &str, origin: Origin) {
        let mut texts = match setting.shape {
            Shape::List => text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect(),
            _ => vec![text.to_owned()],
        };
        // A repeated flag adds to its list; everything else replaces what is weaker or earlier.
        if let (Shape::List, Some(before)) = (setting.shape, self.given.get_mut(setting.name))
            && before.origin == origin
        {
            before.texts.append(&mut texts);
            return;
        }
        self.given.insert(setting.name, Given { texts, origin });
    }

    fn invalid(&mut self, field: &'static str, value: String, why: String, origin: Origin) {
        self.errors.push(ConfigError::Invalid { field, value, why, origin });
    }

    /// Understands a setting's value, when it was given.
    fn optional<T>(&mut self, field: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let given = self.given.get(field)?.clone();
        let text = given.texts.first().map_or("", String::as_str);
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.invalid(field, format!("{text:?}"), why, given.origin);
                None
            }
        }
    }

    /// Understands a setting's value, which must have been given.
    fn required<T>(&mut self, field: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if !self.given.contains_key(field) {
            let setting = Setting::find(field).expect("every field that is read is in the table");
            self.errors.push(ConfigError::Missing { field, flag: setting.flag(), env: setting.env() });
        }
        self.optional(field, parse)
    }

    fn list<T>(&mut self, field: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some(given) = self.given.get(field).cloned() else { return Vec::new() };
        let mut items = Vec::new();
        for text in &given.texts {
            match parse(text) {
                Ok(item) => items.push(item),
                Err(why) => self.invalid(field, format!("{text:?}"), why, given.origin.clone()),
            }
        }
        items
    }

    /// Understands every setting. All are looked at before any error ends the reading, so that all errors are listed.
    fn config(&mut self) -> Option<Config> {
        let name = self.required("name", parse::name);
        let site = self.required("site", parse::name);
        let role = self.required("role", role);
        let data_dir = self.required("data_dir", directory);
        let client_listen = self.required("client_listen", parse::listen);
        let peer_listen = self.required("peer_listen", parse::listen);
        let client_url = self.optional("client_url", parse::url);
        let peer_url = self.optional("peer_url", parse::url);
        let bootstrap = self.required("bootstrap", parse::switch);
        let bootstrap_expect = self.optional("bootstrap_expect", |text| {
            let count = between(parse::count(text)?, 1, EXPECT_MAX, "voters")?;
            usize::try_from(count).map_err(|e| e.to_string())
        });
        let discover = self.list("discover", parse::discovery);
        let join = self.list("join", parse::url);
        let seed = self.optional("seed", file);
        let heartbeat_ms = self.required("heartbeat_ms", |text| between(parse::millis(text)?, 10, TIME_MAX_MS, "ms"));
        let election_min_ms =
            self.required("election_min_ms", |text| between(parse::millis(text)?, 20, TIME_MAX_MS, "ms"));
        let election_max_ms =
            self.required("election_max_ms", |text| between(parse::millis(text)?, 21, TIME_MAX_MS, "ms"));
        let max_value_bytes = self.required("max_value_bytes", |text| size(text, 1, VALUE_MAX_BYTES));
        let request_timeout_ms =
            self.required("request_timeout_ms", |text| between(parse::millis(text)?, 100, TIME_MAX_MS, "ms"));
        let wal_segment_bytes = self.required("wal_segment_bytes", |text| bytes(text, 1 << 32));
        let wal_memory_bytes = self.required("wal_memory_bytes", memory);
        let wal_keep_bytes = self.required("wal_keep_bytes", |text| bytes(text, 1 << 50));
        let link_compression = self.required("link_compression", compression);
        let link_bandwidth_bytes = self.required("link_bandwidth_bytes", bandwidth);
        let tail_bytes = self.required("tail_bytes", |text| size(text, SIZE_MIN_BYTES, 1 << 30));
        let overlay_bytes = self.required("overlay_bytes", memory);
        let value_cache_bytes = self.required("value_cache_bytes", |text| size(text, 0, MEMORY_MAX_BYTES));
        let table_cache_bytes = self.required("table_cache_bytes", memory);
        let write_queue = self.required("write_queue", |text| {
            let count = between(parse::count(text)?, 1, WRITE_QUEUE_MAX, "writes")?;
            usize::try_from(count).map_err(|e| e.to_string())
        });
        let max_watchers = self.required("max_watchers", |text| {
            let count = between(parse::count(text)?, 0, WATCHERS_MAX, "watchers")?;
            usize::try_from(count).map_err(|e| e.to_string())
        });
        let watch_buffer_bytes = self.required("watch_buffer_bytes", memory);
        let watch_slow_timeout_ms =
            self.required("watch_slow_timeout_ms", |text| between(parse::millis(text)?, 100, TIME_MAX_MS, "ms"));
        let kept = |text: &str| between(parse::millis(text)?, 0, KEEP_MAX_MS, "ms");
        let history_keep_ms = self.required("history_keep_ms", kept);
        let history_keep_revisions =
            self.required("history_keep_revisions", |text| between(parse::count(text)?, 0, 1 << 53, "revisions"));
        let compaction_percent = self.required("compaction_percent", |text| {
            let percent = between(parse::count(text)?, 0, COMPACTION_PERCENT_MAX, "percent")?;
            u32::try_from(percent).map_err(|e| e.to_string())
        });
        let verify_bytes_per_second = self.required("verify_bytes_per_second", |text| size(text, 0, 1 << 40));
        let delta_keep_ms = self.required("delta_keep_ms", kept);
        let disk_reserve_bytes = self.required("disk_reserve_bytes", |text| size(text, SIZE_MIN_BYTES, 1 << 40));
        let disk_quota_bytes = self.required("disk_quota_bytes", |text| size(text, 0, 1 << 50));
        let max_outcomes =
            self.required("max_outcomes", |text| between(parse::count(text)?, 1, MAX_OUTCOMES_MAX, "outcomes"));
        let objective = |text: &str| between(parse::count(text)?, 1, OBJECTIVE_MAX_SECONDS, "seconds");
        let rpo_seconds = self.required("rpo_seconds", objective);
        let rto_seconds = self.required("rto_seconds", objective);
        let mirror_wait_ms =
            self.required("mirror_wait_ms", |text| between(parse::millis(text)?, 0, TIME_MAX_MS, "ms"));
        let canary_interval_ms =
            self.required("canary_interval_ms", |text| between(parse::millis(text)?, 0, TIME_MAX_MS, "ms"));
        let webhooks = self.list("webhooks", parse::webhook);
        let kubernetes_label = self.optional("kubernetes_label", parse::kubernetes_label);
        let kubernetes_pod = self.optional("kubernetes_pod", parse::kubernetes_pod);
        let kubernetes_api = self.required("kubernetes_api", parse::kubernetes_api);
        let log = self.required("log", log_filter);
        let log_format = self.required("log_format", log_format);
        Some(Config {
            name: name?,
            site: site?,
            role: role?,
            data_dir: data_dir?,
            client_listen: client_listen?,
            peer_listen: peer_listen?,
            client_url,
            peer_url,
            bootstrap: bootstrap?,
            bootstrap_expect,
            discover,
            join,
            seed,
            heartbeat_ms: heartbeat_ms?,
            election_min_ms: election_min_ms?,
            election_max_ms: election_max_ms?,
            max_value_bytes: max_value_bytes?,
            request_timeout_ms: request_timeout_ms?,
            wal_segment_bytes: wal_segment_bytes?,
            wal_memory_bytes: wal_memory_bytes?,
            wal_keep_bytes: wal_keep_bytes?,
            link_compression: link_compression?,
            link_bandwidth_bytes: link_bandwidth_bytes?,
            tail_bytes: tail_bytes?,
            overlay_bytes: overlay_bytes?,
            value_cache_bytes: value_cache_bytes?,
            table_cache_bytes: table_cache_bytes?,
            write_queue: write_queue?,
            max_watchers: max_watchers?,
            watch_buffer_bytes: watch_buffer_bytes?,
            watch_slow_timeout_ms: watch_slow_timeout_ms?,
            history_keep_ms: history_keep_ms?,
            history_keep_revisions: history_keep_revisions?,
            compaction_percent: compaction_percent?,
            verify_bytes_per_second: verify_bytes_per_second? as u64,
            delta_keep_ms: delta_keep_ms?,
            disk_reserve_bytes: disk_reserve_bytes? as u64,
            disk_quota_bytes: disk_quota_bytes? as u64,
            max_outcomes: max_outcomes?,
            rpo_seconds: rpo_seconds?,
            rto_seconds: rto_seconds?,
            mirror_wait_ms: mirror_wait_ms?,
            announce_feature_level: None,
            canary_interval_ms: canary_interval_ms?,
            webhooks,
            kubernetes_label,
            kubernetes_pod,
            kubernetes_api: kubernetes_api?,
            log: log?,
            log_format: log_format?,
        })
    }

    /// What no value can say about itself.
    fn check_together(&mut self, config: &Config) {
        // Not `bootstrap` with `join`: a member that has data needs neither, so only a member without may be refused.
        if config.bootstrap && config.role == MemberRole::Mirror {
            self.conflict("role", "bootstrap", "the first member of a cluster must be a voter".to_owned());
        }
        self.check_expectation(config);
        if config.kubernetes_label.is_some() && config.kubernetes_pod.is_none() {
            let why = "the pod must be named, for its label to be set".to_owned();
            self.conflict("kubernetes_label", "kubernetes_pod", why);
        }
        if config.election_min_ms < config.heartbeat_ms.saturating_mul(2) {
            let why = format!("must be at least twice heartbeat_ms, which is {}", config.heartbeat_ms);
            self.conflict("election_min_ms", "heartbeat_ms", why);
        }
        if config.election_max_ms <= config.election_min_ms {
            let why = format!("must be greater than election_min_ms, which is {}", config.election_min_ms);
            self.conflict("election_max_ms", "election_min_ms", why);
        }
        if config.request_timeout_ms <= config.heartbeat_ms {
            let why = format!("must be greater than heartbeat_ms, which is {}", config.heartbeat_ms);
            self.conflict("request_timeout_ms", "heartbeat_ms", why);
        }
        if overlaps(config.client_listen, config.peer_listen) {
            self.conflict("peer_listen", "client_listen", "clients and members need two addresses".to_owned());
        }
        self.check_advertised("client_url", "client_listen", config.client_url.is_some(), config.client_listen);
        self.check_advertised("peer_url", "peer_listen", config.peer_url.is_some(), config.peer_listen);
        if config.tail_bytes < config.max_value_bytes {
            let why = format!("must hold one value at least; max_value_bytes is {}", config.max_value_bytes);
            self.conflict("tail_bytes", "max_value_bytes", why);
        }
    }

    /// Two clusters can only come of one set of addresses when it has room for two that share no member.
    fn check_expectation(&mut self, config: &Config) {
        let Some(expect) = config.bootstrap_expect else { return };
        if config.bootstrap {
            let why = "a member founds a cluster alone or together with others, not both".to_owned();
            self.conflict("bootstrap_expect", "bootstrap", why);
        }
        if !config.join.is_empty() {
            let why = "discover finds a cluster to join as well, so join is not needed".to_owned();
            self.conflict("bootstrap_expect", "join", why);
        }
        let listed = config.discover.iter().all(|place| matches!(place, Discovery::Address { .. }));
        let places = config.discover.len();
        let why = if places == 0 {
            "must be given, so that the expected members can be found".to_owned()
        } else if listed && places < expect {
            format!("lists {places} members, of which {expect} are expected")
        } else if listed && places >= 2 * expect {
            format!(
                "lists {places} members: two clusters of {expect} could come of them; expect more than half of them"
            )
        } else {
            return;
        };
        self.conflict("discover", "bootstrap_expect", why);
    }

    /// A listener on every address says nothing about where it can be reached.
    fn check_advertised(&mut self, url: &'static str, listen: &'static str, given: bool, address: SocketAddr) {
        if !given && address.ip().is_unspecified() {
            let why = format!("must be given, because {listen} is {address}, which nobody can dial");
            self.conflict(url, listen, why);
        }
    }

    fn conflict(&mut self, field: &'static str, other: &'static str, why: String) {
        let (origin, other_origin) = (self.origin_of(field), self.origin_of(other));
        self.errors.push(ConfigError::Conflict { field, why, origin, other, other_origin });
    }

    fn origin_of(&self, field: &str) -> Origin {
        self.given.get(field).map_or(Origin::Default, |given| given.origin.clone())
    }

    fn effective(&self) -> Vec<Effective> {
        let effective = |setting: &'static Setting| {
            let value = self.given.get(setting.name).map(|given| toml_text(setting, &given.texts));
            Effective { name: setting.name, value, origin: self.origin_of(setting.name) }
        };
        SETTINGS.iter().map(effective).collect()
    }
}

/// The text of a value in a file, whose type must fit the setting's shape.
fn texts_of(setting: &Setting, value: &toml::Value) -> Result<Vec<String>, String> {
    use toml::Value::{Array, Boolean, Integer, String};
    match (setting.shape, value) {
        (Shape::Text | Shape::Bytes | Shape::Millis, String(text)) => Ok(vec![text.clone()]),
        (Shape::Count | Shape::Bytes | Shape::Millis, Integer(number)) => Ok(vec![number.to_string()]),
        (Shape::Switch, Boolean(on)) => Ok(vec![on.to_string()]),
        (Shape::List, Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| "an array of strings is wanted".to_owned()))
            .collect(),
        (Shape::Text, _) => Err("a string is wanted".to_owned()),
        (Shape::Switch, _) => Err("true or false is wanted".to_owned()),
        (Shape::Count, _) => Err("a whole number is wanted".to_owned()),
        (Shape::Bytes, _) => Err("a whole number of bytes or a string such as \"64MiB\" is wanted".to_owned()),
        (Shape::Millis, _) => Err("a whole number of milliseconds or a string such as \"5s\" is wanted".to_owned()),
        (Shape::List, _) => Err("an array of strings is wanted".to_owned()),
    }
}

fn toml_text(setting: &Setting, texts: &[String]) -> String {
    let quoted = |text: &String| toml::Value::String(text.clone()).to_string();
    let first = texts.first().cloned().unwrap_or_default();
    match setting.shape {
        Shape::Switch | Shape::Count => first,
        Shape::List => format!("[{}]", texts.iter().map(quoted).collect::<Vec<_>>().join(", ")),
        Shape::Bytes | Shape::Millis if first.bytes().all(|b| b.is_ascii_digit()) => first,
        Shape::Text | Shape::Bytes | Shape::Millis => quoted(&first),
    }
}

fn role(text: &str) -> Result<MemberRole, String> {
    match text {
        "voter" => Ok(MemberRole::Voter),
        "mirror" => Ok(MemberRole::Mirror),
        _ => Err("voter or mirror is wanted".to_owned()),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text or json is wanted".to_owned()),
    }
}

fn compression(text: &str) -> Result<bool, String> {
    match text {
        "zstd" => Ok(true),
        "off" => Ok(false),
        _ => Err("zstd or off is wanted".to_owned()),
    }
}

fn bandwidth(text: &str) -> Result<u64, String> {
    match parse::bytes(text)? {
        0 => Ok(0),
        cap => between(cap, BANDWIDTH_MIN_BYTES, 1 << 50, "bytes a second, or 0"),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("not a filter: {error}")),
    }
}

fn directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a directory is wanted".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn file(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a file is wanted".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn between(value: u64, min: u64, max: u64, unit: &str) -> Result<u64, String> {
    if (min..=max).contains(&value) { Ok(value) } else { Err(format!("must be from {min} to {max} {unit}")) }
}

fn bytes(text: &str, max: u64) -> Result<u64, String> {
    between(parse::bytes(text)?, SIZE_MIN_BYTES, max, "bytes")
}

fn size(text: &str, min: u64, max: u64) -> Result<usize, String> {
    usize::try_from(between(parse::bytes(text)?, min, max, "bytes")?).map_err(|e| e.to_string())
}

fn memory(text: &str) -> Result<usize, String> {
    size(text, SIZE_MIN_BYTES, MEMORY_MAX_BYTES)
}

/// Whether two listeners would fight for the same port.
fn overlaps(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

//! `lifeboat serve --rehearse-at REVISION` (hidden): the throwaway member of a drill, and how a mirror starts one.
//!
//! The child runs a [`Member`] as `serve` does, then rehearses with it: it is promoted by the code of a forced failover, the
//! time from the order to the first accepted write is taken by its parts, and a client writes and reads. What it finds it
//! says in lines of JSON on standard output, which the mirror reads ([`crate::node::drill`]).
//!
//! It dials nobody, is of low priority, and is the first to go when the machine runs short of memory. When its standard
//! input ends, however that comes about, it ends at once: there is nothing in it that anybody needs.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::process::Command;

use super::member::{Member, Reopened};
use crate::api::{DrillCheck, DrillRto, DrillSequence, Revision, WriteReply};
use crate::client::Client;
use crate::config::{Config, ENV_PREFIX};
use crate::node::drill::child::{ChildChecked, ChildLeads, ChildLine, Sample};
use crate::node::drill::{FORK_WAL_SEGMENT_BYTES, Launcher};
use crate::node::{HealthCheck, Node};
use crate::raft::peer_http;

/// How much nicer than the mirror.
const NICE: i32 = 10;
/// How often is looked whether it leads, and whether a write is accepted.
const LOOK: Duration = Duration::from_millis(1);
/// How long each call of the checks may take.
const CALL: Duration = Duration::from_secs(10);
/// So many writes, besides the first one.
const WRITES: u64 = 20;
/// Caches are small: nothing reads much here.
const CACHE_BYTES: usize = 8 << 20;
/// What a failover keeps, a drill keeps too: floors stand still.
const KEEP: &str = "8760h";

/// How a member with this configuration starts a throwaway one.
pub fn launcher(config: &Config) -> Launcher {
    let config = config.clone();
    Box::new(move |dir, at| command(&config, dir, at))
}

fn command(config: &Config, dir: &Path, at: Revision) -> Command {
    // Not the name of the file: there may be another program under it by now, and this one has written the data.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("lifeboat-drill").arg("serve");
    let mut set = |name: &str, value: String| {
        command.arg(format!("--{name}")).arg(value);
    };
    set("name", config.name.clone());
    set("site", config.site.clone());
    set("role", config.role.to_string());
    set("data-dir", dir.display().to_string());
    set("client-listen", "127.0.0.1:0".into());
    set("peer-listen", "127.0.0.1:0".into());
    for (name, value) in [
        ("heartbeat-ms", config.heartbeat_ms),
        ("election-min-ms", config.election_min_ms),
        ("election-max-ms", config.election_max_ms),
        ("max-value-bytes", config.max_value_bytes as u64),
        ("tail-bytes", config.tail_bytes as u64),
        ("overlay-bytes", config.overlay_bytes as u64),
        ("verify-bytes-per-second", config.verify_bytes_per_second),
        ("value-cache-bytes", config.value_cache_bytes.min(CACHE_BYTES) as u64),
        ("table-cache-bytes", config.table_cache_bytes.min(CACHE_BYTES) as u64),
        ("wal-segment-bytes", config.wal_segment_bytes.min(FORK_WAL_SEGMENT_BYTES)),
        ("wal-memory-bytes", config.wal_memory_bytes.min(CACHE_BYTES) as u64),
        ("disk-reserve-bytes", config.disk_reserve_bytes.min(1 << 20)),
        // The fork does not live long enough for any of these.
        ("compaction-percent", 0),
        ("canary-interval-ms", 0),
    ] {
        set(name, value.to_string());
    }
    set("history-keep-ms", KEEP.into());
    set("log", "warn,openraft=error".into());
    set("rehearse-at", at.to_string());
    for (name, _) in std::env::vars_os() {
        // What is set for the mirror is not meant for the throwaway member.
        if name.to_str().is_some_and(|name| name.starts_with(ENV_PREFIX)) {
            command.env_remove(name);
        }
    }
    // A group of its own: Ctrl-C reaches the mirror alone, which then ends it.
    command.process_group(0);
    command
}

/// Rehearses, in the process that [`launcher`] has started; what was found is on standard output then.
pub async fn run(config: &Config, at: Revision) -> Result<(), String> {
    // Before anything of this process could reach anybody.
    peer_http::dial_nobody();
    end_with_parent().map_err(|error| error.to_string())?;
    step_back();
    let rehearsed = rehearse(config, at).await;
    if let Err(why) = &rehearsed {
        say(&ChildLine::Failed { why: why.clone() })?;
    }
    rehearsed
}

/// Ends this process when its standard input ends: then nobody waits for it any more.
fn end_with_parent() -> io::Result<()> {
    let watch = || {
        let mut rest = [0; 64];
        while io::stdin().read(&mut rest).is_ok_and(|count| count > 0) {}
        std::process::exit(1);
    };
    std::thread::Builder::new().name("watch-parent".to_owned()).spawn(watch).map(drop)
}

/// Leaves the processor and the memory to the mirror, as far as the system lets it.
fn step_back() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!(%error, "the drill runs at the priority of the mirror");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::warn!(%error, "the drill is not the first to go when memory is short");
    }
}

fn say(line: &ChildLine) -> Result<(), String> {
    let mut text = serde_json::to_string(line).map_err(|error| error.to_string())?;
    text.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| error.to_string())
}

async fn rehearse(config: &Config, at: Revision) -> Result<(), String> {
    let began = Instant::now();
    let mut member = Member::start(config).await.map_err(|error| error.to_string())?;
    say(&ChildLine::Opened { seconds: began.elapsed().as_secs_f64() })?;
    let (url, reopened) = (member.client_url().to_owned(), member.reopened());
    let Some(node) = member.node() else { return Err("the member does not run".into()) };
    tokio::select! {
        why = member.failed() => Err(why.to_string()),
        done = promoted_and_checked(node, reopened, &url, at) => done,
    }
}

async fn promoted_and_checked(
    node: Node,
    mut reopened: tokio::sync::watch::Receiver<Option<Reopened>>,
    url: &str,
    at: Revision,
) -> Result<(), String> {
    let sequence = node.some_sequence();
    let key = node.some_key(at)?;
    let order = Instant::now();
    node.rehearse()?;
    drop(node);
    let Reopened { closed, opened, node } = {
        let found =
            reopened.wait_for(Option::is_some).await.map_err(|_| "the member was not opened again".to_owned())?;
        found.clone().ok_or("the member was not opened again")?
    };
    while node.health(HealthCheck::Leader).is_err() {
        tokio::time::sleep(LOOK).await;
    }
    let leads = Instant::now();
    let FirstWrite { revision, ended_pause } = first_write(url, at).await?;
    let written = Instant::now();
    let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
    let rto = DrillRto {
        seconds: seconds(order, written),
        close_seconds: seconds(order, closed),
        open_seconds: seconds(closed, opened),
        lead_seconds: seconds(opened, leads),
        first_write_seconds: seconds(leads, written),
        objective_seconds: 0.0,
        met: false,
    };
    let Some(timeline) = node.newest_timeline() else { return Err("it has no timeline".into()) };
    say(&ChildLine::Leads(ChildLeads { rto, timeline, revision, ended_pause }))?;

    let client = Client::builder().endpoints([url.to_owned()]).deadline(CALL).build().map_err(|e| e.to_string())?;
    let mut checks = vec![leads_on_a_new_timeline(&client, revision, at).await];
    checks.push(check("writes", writes(&client, at).await));
    checks.push(check("transaction", transaction(&client, at).await));
    checks.push(check("old-data", old_data(&client, key, at).await));
    let jumped = jump(&client, sequence.as_deref()).await;
    let (sequence, words) = match jumped {
        Ok((sequence, words)) => (sequence, Ok(words)),
        Err(why) => (None, Err(why)),
    };
    checks.push(check("sequence", words));
    let (files, content) = node.inspect(at).await;
    checks.push(files);
    say(&ChildLine::Checked(ChildChecked { checks, sequence, content }))?;
    // Until the mirror ends it.
    std::future::pending().await
}

fn check(name: &str, found: Result<String, String>) -> DrillCheck {
    let (passed, detail) = match found {
        Ok(detail) => (true, detail),
        Err(why) => (false, why),
    };
    DrillCheck { name: name.into(), passed, detail }
}

fn key(at: Revision, name: &str) -> String {
    format!("lifeboat-drill/{at}/{name}")
}

/// The write that shows that clients would be served.
struct FirstWrite {
    revision: Revision,
    /// A planned pause had to be ended for it.
    ended_pause: bool,
}

/// Writes, by HTTP, until that is accepted, without the pauses that a patient client makes. A planned pause came along with
/// the history and would refuse every write: it is ended here, where nobody else is.
async fn first_write(url: &str, at: Revision) -> Result<FirstWrite, String> {
    let http = reqwest::Client::builder().no_proxy().timeout(CALL).build().map_err(|error| error.to_string())?;
    let (target, pause) = (format!("{url}/v1/kv/{}", key(at, "first")), format!("{url}/v1/maintenance"));
    let mut ended_pause = false;
    loop {
        let answer = http.put(&target).body("first").send().await;
        match answer {
            Ok(answer) if answer.status().is_success() => {
                let reply: WriteReply = answer.json().await.map_err(|error| error.to_string())?;
                return Ok(FirstWrite { revision: reply.revision, ended_pause });
            }
            Ok(answer) if answer.status() != StatusCode::SERVICE_UNAVAILABLE => {
                let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
                return Err(format!("the first write was answered with {status}: {text}"));
            }
            // Or it does not lead yet.
            Ok(answer) => {
                if answer.text().await.is_ok_and(|text| is_pause(&text)) {
                    let ended = http.delete(&pause).send().await;
                    ended_pause |= ended.is_ok_and(|answer| answer.status().is_success());
                }
                tokio::time::sleep(LOOK).await;
            }
            // The listener is handed from one opening of the member to the next.
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Whether a write was refused because of a planned pause.
fn is_pause(problem: &str) -> bool {
    let problem: serde_json::Value = serde_json::from_str(problem).unwrap_or_default();
    problem["type"] == "urn:lifeboat:problem:maintenance"
}

async fn leads_on_a_new_timeline(client: &Client, first: Revision, at: Revision) -> DrillCheck {
    let found = async {
        let status = client.status().await.map_err(|error| error.to_string())?;
        let number = status.cluster.map_or(0, |cluster| cluster.timeline.number);
        if number < 2 || first <= at {
            return Err(format!("it is on timeline {number}, and its first write is revision {first}"));
        }
        Ok(format!("it leads on timeline {number}, whose first write is revision {first}"))
    };
    check("leads", found.await)
}

async fn writes(client: &Client, at: Revision) -> Result<String, String> {
    let words = |error: crate::client::Error| error.to_string();
    let began = Instant::now();
    for number in 0..WRITES {
        let (key, value) = (key(at, &number.to_string()), format!("value {number}"));
        let once = format!("drill-{at}-{number}");
        let first = client.put(key.clone(), value.clone()).idempotency_key(&once).await.map_err(words)?;
        let again = client.put(key.clone(), value.clone()).idempotency_key(&once).await.map_err(words)?;
        if first.revision != again.revision {
            return Err(format!("a repeated write was done twice, at {} and {}", first.revision, again.revision));
        }
        let read = client.get(key.clone()).await.map_err(words)?.and_then(|item| item.value);
        if read.as_deref() != Some(value.as_bytes()) {
            return Err(format!("{key} reads as {read:?} after {value:?} was written"));
        }
    }
    let took = began.elapsed().as_secs_f64() * 1000.0;
    Ok(format!("{WRITES} keyed writes, each repeated and read back, in {took:.0} ms"))
}

async fn transaction(client: &Client, at: Revision) -> Result<String, String> {
    let (one, other) = (key(at, "first"), key(at, "second"));
    let done = client.txn().if_value(one.clone(), "first").then_put(one, "1").then_put(other.clone(), "2").await;
    let done = done.map_err(|error| error.to_string())?;
    let read = client.get(other).await.map_err(|error| error.to_string())?.and_then(|item| item.value);
    match done.succeeded && read.as_deref() == Some(b"2") {
        true => Ok("compared and written in one transaction".into()),
        false => Err(format!("the transaction did not do what it should: {done:?}")),
    }
}

async fn old_data(client: &Client, before: Option<Sample>, at: Revision) -> Result<String, String> {
    let Some(Sample { key, value }) = before else { return Ok("there were no keys".into()) };
    let found = client.get(key.clone()).rev(at).await.map_err(|error| error.to_string())?;
    let name = String::from_utf8_lossy(&key).into_owned();
    match found.and_then(|item| item.value) {
        Some(found) if found == value => Ok(format!("{name} reads at revision {at} as before")),
        other => Err(format!("{name} reads as {other:?} at revision {at}")),
    }
}

/// Takes a number of a sequence of before, which must have jumped.
async fn jump(client: &Client, name: Option<&str>) -> Result<(Option<DrillSequence>, String), String> {
    let words = |error: crate::client::Error| error.to_string();
    let Some(name) = name else {
        let reply = client.sequence("lifeboat-drill").await.map_err(words)?;
        return Ok((None, format!("there were none; a new one began with {}", reply.first)));
    };
    let from = client.sequence_state(name).await.map_err(words)?;
    let reply = client.sequence(name).step(from.step).await.map_err(words)?;
    if reply.first < from.last.saturating_add(from.step) || reply.unique {
        return Err(format!("{name} gave out {} after {}: it has not jumped by {}", reply.first, from.last, from.step));
    }
    let detail =
        format!("{name} jumped from {} to {}, and says that it cannot prove uniqueness", from.last, reply.first);
    Ok((Some(DrillSequence { name: name.to_owned(), from: from.last, to: reply.first }), detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn the_throwaway_member_is_told_nothing_of_the_others() {
        let flags =
            [("name", "n4"), ("site", "west"), ("role", "mirror"), ("data_dir", "/data"), ("join", "http://n1:7401")];
        let flags = flags.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let config = load(&Sources { file: None, env: Vec::new(), flags }).unwrap().config;
        let command = command(&config, Path::new("/data/drill-7"), 42);
        let arguments: Vec<String> =
            command.as_std().get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let value = |flag: &str| {
            let at = arguments.iter().position(|argument| argument == flag)?;
            Some(arguments[at + 1].as_str())
        };
        assert_eq!(value("--data-dir"), Some("/data/drill-7"));
        assert_eq!(value("--rehearse-at"), Some("42"));
        for listen in ["--client-listen", "--peer-listen"] {
            assert_eq!(value(listen), Some("127.0.0.1:0"));
        }
        for others in
            ["--join", "--discover", "--webhooks", "--peer-url", "--client-url", "--seed", "--kubernetes-label"]
        {
            assert_eq!(value(others), None, "{others}");
        }
        assert_eq!(value("--compaction-percent"), Some("0"));
    }
}

//! How the members of a cluster follow, in each place where it is shown: the API, the metrics of the leader, its events.
//! The mirror that is looked at is the fourth member, `n4`, behind three voters.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use lifeboat::files::RealDisk;
use lifeboat::index::IndexKind;
use lifeboat::model::{Entry, EntryKind, KeySpace, LogId, WriteCommand, WriteOp};
use lifeboat::store::{Store, StoreConfig};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::http;
use super::scrape::Metrics;
use super::webhook::{Post, receiver};
use super::{PATIENCE, wait_for};

/// The mirror's number in a cluster of three voters and it.
pub const MIRROR: usize = 3;

pub fn replication(cluster: &Cluster, asked: usize) -> Value {
    http::get(cluster.client(asked), "/v1/replication").expect(200).json()
}

pub fn member(reply: &Value, name: &str) -> Value {
    let members = reply["members"].as_array().unwrap();
    members.iter().find(|member| member["name"] == name).unwrap_or_else(|| panic!("no {name} in {reply}")).clone()
}

/// What the leader shows of the mirror.
#[track_caller]
pub fn mirror(cluster: &Cluster) -> Value {
    wait_for("the leader to show n4", || {
        let reply = replication(cluster, cluster.leader_now()?);
        // It may have lost the lead meanwhile.
        if reply["leader"].is_null() { Err(reply.to_string()) } else { Ok(member(&reply, "n4")) }
    })
}

#[track_caller]
pub fn wait_state(cluster: &Cluster, state: &str) -> Value {
    wait_state_of(cluster, "n4", state)
}

/// Waits until the leader shows a member in a state; gives all that it shows of it.
#[track_caller]
pub fn wait_state_of(cluster: &Cluster, name: &str, state: &str) -> Value {
    wait_for(&format!("{name} to be {state}"), || {
        let leader = cluster.leader_now()?;
        let reply = http::get(cluster.client(leader), "/v1/replication");
        if reply.status != 200 || reply.json()["leader"].is_null() {
            return Err(reply.text().to_owned());
        }
        let found = member(&reply.json(), name);
        if found["state"] == state { Ok(found) } else { Err(found.to_string()) }
    })
}

/// The events of a kind that the leader tells.
pub fn events(cluster: &Cluster, kind: &str) -> Vec<String> {
    let reply = http::get(cluster.client(cluster.wait_leader()), "/v1/events").expect(200).json();
    let events = reply["events"].as_array().unwrap().clone();
    let of_kind = events.iter().filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["detail"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
pub fn wait_event(cluster: &Cluster, kind: &str, part: &str) {
    wait_for(&format!("the event {kind} {part:?}"), || {
        let events = events(cluster, kind);
        if events.iter().any(|detail| detail.contains(part)) { Ok(()) } else { Err(format!("{events:?}")) }
    });
}

pub fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[track_caller]
pub fn write(cluster: &Cluster, key: &str, value: impl AsRef<[u8]>) {
    let leader = cluster.wait_leader();
    let answer = http::put(cluster.client(leader), &format!("/v1/kv/{key}"), value);
    assert!(answer.status == 200 || answer.status == 201, "{answer}");
}

pub fn steer(cluster: &Cluster, verb: &str) {
    let reply = http::post(cluster.client(0), &format!("/v1/members/n4/{verb}"), &json!({})).expect(200).json();
    assert_eq!(reply, json!({ "name": "n4", "suspended": verb == "suspend" }));
}

/// The state in the metrics of the leader, which may look a moment later than whoever asks.
#[track_caller]
pub fn assert_metric(cluster: &Cluster, state: &str) {
    assert_metric_of(cluster, "n4", state);
}

/// The state of a member in the metrics of the leader.
#[track_caller]
pub fn assert_metric_of(cluster: &Cluster, name: &str, state: &str) {
    wait_for(&format!("{name} to be {state} in the metrics"), || {
        let metrics = Metrics::of(cluster.client(cluster.leader_now()?));
        let is = |word: &&str| {
            let labels = [format!("member=\"{name}\""), format!("state=\"{word}\"")];
            metrics.sum("lifeboat_member_state", &[&labels[0], &labels[1]]) == 1.0
        };
        let words = ["SYNCHRONIZED", "SYNCHRONIZING", "SUSPENDED", "DISCONNECTED", "QUARANTINED"];
        let shown: Vec<&str> = words.into_iter().filter(is).collect();
        if shown == [state] { Ok(()) } else { Err(format!("{shown:?}")) }
    });
}

/// A receiver of webhooks that remembers what it was told.
pub struct Hook {
    posts: Receiver<Post>,
    told: Vec<Value>,
}

impl Hook {
    /// A receiver and its address.
    pub fn new() -> (String, Hook) {
        let (url, posts) = receiver(0);
        (url, Hook { posts, told: Vec::new() })
    }

    /// Waits for a post like this.
    #[track_caller]
    pub fn wait(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut at = 0;
        loop {
            if at == self.told.len() {
                match self.posts.recv_timeout(PATIENCE) {
                    Ok(post) => self.told.push(post.body),
                    Err(_) => panic!("no post of {what} in {:?}", self.told),
                }
            }
            if is(&self.told[at]) {
                return self.told[at].clone();
            }
            at += 1;
        }
    }

    /// Forgets what it was told.
    pub fn forget(&mut self) {
        self.told.clear();
    }
}

/// Whether an event is of such a change; an empty state is any.
fn is_change(event: &Value, name: &str, from: &str, to: &str) -> bool {
    let is = |field: &str, state: &str| state.is_empty() || event[field] == state;
    event["kind"] == "mirror-state" && event["subject"] == name && is("from", from) && is("to", to)
}

/// Waits until a member that was in a state has left it, and gives the state that came next.
#[track_caller]
pub fn wait_left(cluster: &Cluster, name: &str, state: &str) -> String {
    wait_for(&format!("{name} to be {state} no more"), || {
        let reply = http::get(cluster.client(cluster.leader_now()?), "/v1/events").expect(200).json();
        let mut events = reply["events"].as_array().unwrap().iter().rev();
        let newest = events.find(|event| is_change(event, name, state, "") || is_change(event, name, "", state));
        let left = newest.filter(|event| event["from"] == state);
        left.map(|event| event["to"].as_str().unwrap().to_owned()).ok_or_else(|| reply.to_string())
    })
}

/// A change of a member's state is seen everywhere: the new state in the API and in the metric, the change among the events
/// and in a webhook, which forgets what it was told before. An empty `from` is any.
#[track_caller]
pub fn see_change(cluster: &Cluster, hook: &mut Hook, name: &str, from: &str, to: &str) -> Value {
    let found = wait_state_of(cluster, name, to);
    assert_metric_of(cluster, name, to);
    let is = |event: &Value| is_change(event, name, from, to);
    let words = format!("the change of {name} from {from:?} to {to}");
    wait_for(&format!("an event of {words}"), || {
        let reply = http::get(cluster.client(cluster.leader_now()?), "/v1/events").expect(200).json();
        let events = reply["events"].as_array().unwrap();
        if events.iter().any(is) { Ok(()) } else { Err(reply.to_string()) }
    });
    hook.wait(&words, is);
    hook.forget();
    found
}

/// Makes a stopped member apply an entry that nobody else has, at the place of the cluster's next one: all that it holds is
/// sound and in order, and only its chain hash tells.
pub fn apply_something_else(data: &Path) {
    let history = data.join("history");
    let index = IndexKind::Sled(data.join("index"));
    let store = Store::open(Arc::new(RealDisk), &history, index, StoreConfig::default()).unwrap();
    let applied = store.applied().unwrap();
    let log_id = LogId { index: applied.index + 1, ..applied };
    let op = WriteOp::Put { space: KeySpace::User, key: "from/nowhere".into(), value: "x".into(), lease: 0 };
    let write = WriteCommand { time_ms: store.clock_ms() + 1, guards: vec![], ops: vec![op] };
    let payload = lifeboat::model::Command::Write(write).encode();
    store.apply(&[Entry { log_id, kind: EntryKind::Command, payload }]).unwrap();
    store.close(log_id.index).unwrap();
}

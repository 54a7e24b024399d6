//! The planned switchover, as a test orders and sees it; and a client that writes and retries all the while.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{Cluster, Plan};
use super::http::Request;
use super::wait_for;

/// Half of what the sites are away from each other.
const EACH_WAY: Duration = Duration::from_micros(2500);

/// So many voters in one site and mirrors in the other, quick to notice who is dead: the tests wait for that often.
pub fn sites(voters: usize, mirrors: usize) -> Cluster {
    start(Plan::new(voters, mirrors).quick())
}

/// The same for tests that ask one after the other and count on the same leader.
pub fn steady_sites(voters: usize, mirrors: usize) -> Cluster {
    start(Plan::new(voters, mirrors).steady())
}

fn start(plan: Plan) -> Cluster {
    let cluster = plan.linked().with_points().start();
    cluster.link().delay(EACH_WAY);
    wait_level(&cluster);
    cluster
}

fn wait_level(cluster: &Cluster) {
    wait_for("the feature level to rise", || {
        let level = cluster.status(0)?["feature_level"].as_u64();
        if level >= Some(3) { Ok(()) } else { Err(format!("{level:?}")) }
    });
}

/// What a member answers, or why it cannot be had.
pub fn try_json(cluster: &Cluster, member: usize, target: &str) -> Result<Value, String> {
    let answer = Request::new("GET", target).try_send(cluster.client(member)).map_err(|failure| failure.to_string())?;
    if answer.status == 200 { Ok(answer.json()) } else { Err(answer.to_string()) }
}

/// Asks one member after the other until it is not only "not now": a leader that has just begun does not know everybody yet,
/// and who is asked may die before it has answered. An order that is given again while one is under way begins no other.
#[track_caller]
pub fn begin(cluster: &Cluster, to: &str) -> Value {
    let mut members = cluster.running().into_iter().cycle();
    wait_begun(to, || order_switchover(cluster, members.next().unwrap(), &json!({ "to_site": to })))
}

/// Orders one at this member until it begins.
#[track_caller]
pub fn begin_at(cluster: &Cluster, asked: usize, order: &Value) -> Value {
    wait_begun(order["to_site"].as_str().unwrap(), || order_switchover(cluster, asked, order))
}

#[track_caller]
fn wait_begun(to: &str, order: impl FnMut() -> Result<Value, String>) -> Value {
    wait_for(&format!("a switchover to {to} to begin"), order)
}

fn order_switchover(cluster: &Cluster, asked: usize, order: &Value) -> Result<Value, String> {
    let request = Request::new("POST", "/v1/dr/switchover").body(order.to_string());
    let answer = request.try_send(cluster.client(asked)).map_err(|failure| failure.to_string())?;
    match answer.status {
        202 => Ok(answer.json()),
        // It is over, and the answer to its beginning was lost.
        200 => shown(cluster).and_then(|shown| match shown["to_site"] == order["to_site"] {
            true => Ok(shown),
            false => Err(shown.to_string()),
        }),
        _ => Err(answer.to_string()),
    }
}

/// So often one is begun on a machine that gives members too little time.
pub const ATTEMPTS: usize = 5;

/// Moves the primary site as ordered, at this member, to the end; gives what is shown of that.
#[track_caller]
pub fn move_to(cluster: &Cluster, asked: usize, order: &Value) -> Value {
    for _ in 0..ATTEMPTS {
        let begun = begin_at(cluster, asked, order);
        let over = wait_over(cluster, &begun["id"]);
        if over["state"] == "done" {
            return over;
        }
        assert!(was_silent(&over), "{over}");
        println!("the target got no time to answer; again: {over}");
    }
    panic!("{order} was tried {ATTEMPTS} times");
}

/// Whether it went back because nobody had heard of the target for long. One that lives and stands still for as long as a
/// dead one is lost as well, and rightly.
pub fn was_silent(over: &Value) -> bool {
    over["state"] == "went-back"
        && over["back"].as_str().is_some_and(|back| back.contains(" was lost: it has not answered"))
}

/// The newest switchover, as the leader shows it.
pub fn shown(cluster: &Cluster) -> Result<Value, String> {
    try_json(cluster, cluster.leader_now()?, "/v1/dr/switchover")
}

/// Whether what is shown of a switchover is its end.
pub fn is_over(shown: &Value) -> bool {
    shown["state"] == "done" || shown["state"] == "went-back"
}

/// Waits until the switchover of this id is over; gives what is shown of it.
#[track_caller]
pub fn wait_over(cluster: &Cluster, id: &Value) -> Value {
    wait_for("the switchover to be over", || {
        // On both sides of a lost link somebody may think that he leads; one of them is confirmed.
        let shown = shown(cluster)?;
        if shown["id"] == *id && is_over(&shown) { Ok(shown) } else { Err(shown.to_string()) }
    })
}

/// So long after the end of one nobody comes to the last place any more.
const AFTER_THE_END: Duration = Duration::from_secs(2);

/// Waits until somebody has come to a place, as `there` says; false when the switchover is over and nobody has. On a machine
/// that gives members no time another may be elected between a step and its place, and finds the step done.
#[track_caller]
pub fn comes_to(cluster: &Cluster, id: &Value, place: &str, there: impl Fn() -> bool) -> bool {
    let mut over = None;
    wait_for(&format!("a member to come to {place}"), || {
        if there() {
            return Ok(true);
        }
        let shown = shown(cluster)?;
        if shown["id"] != *id || !is_over(&shown) {
            return Err(shown.to_string());
        }
        // The last place comes behind the end.
        match over.get_or_insert_with(Instant::now).elapsed() {
            since if since > AFTER_THE_END => Ok(false),
            _ => Err(shown.to_string()),
        }
    })
}

/// The site of a member in a cluster of these voters and mirrors.
pub fn site_of(cluster: &Cluster, member: usize) -> &'static str {
    if cluster.member(member).role == "voter" { "east" } else { "west" }
}

/// One site has the voters and the lead, and everybody says so; all members agree.
#[track_caller]
pub fn assert_one_primary(cluster: &mut Cluster, site: &str) {
    let running = cluster.running();
    wait_for(&format!("{site} to be the primary site in the eyes of all"), || {
        let leader = cluster.leader_now()?;
        if site_of(cluster, leader) != site {
            return Err(format!("{} leads", cluster.member(leader).name));
        }
        for &viewer in &running {
            let members = try_json(cluster, viewer, "/v1/members")?["members"].as_array().unwrap().clone();
            for member in &members {
                let role = if member["site"] == site { "voter" } else { "mirror" };
                if member["role"] != role || member["joining"] == true {
                    return Err(format!("seen by {}: {member}", cluster.member(viewer).name));
                }
            }
            let role = try_json(cluster, viewer, "/v1/role")?;
            let is = match (viewer == leader, site_of(cluster, viewer) == site) {
                (true, _) => "leader",
                (false, true) => "follower",
                (false, false) => "mirror",
            };
            if role["role"] != is {
                return Err(format!("{} is no {is}: {role}", cluster.member(viewer).name));
            }
            let primary = try_json(cluster, viewer, "/health/primary").is_ok();
            if primary != (site_of(cluster, viewer) == site) {
                return Err(format!("/health/primary of {}: {primary}", cluster.member(viewer).name));
            }
        }
        let dr = try_json(cluster, leader, "/v1/dr")?;
        if dr["primary_site"] != site || !dr["switchover"].is_null() || dr["confirmed"] != true {
            return Err(dr.to_string());
        }
        Ok(())
    });
    let revision = cluster.wait_converged();
    wait_for("the chain hashes to agree", || {
        let reply = try_json(cluster, cluster.leader_now()?, "/v1/replication")?;
        let members = reply["members"].as_array().unwrap();
        let agree = |member: &&Value| member["hash_agreed_revision"].as_u64() < Some(revision);
        match members.iter().find(agree) {
            None if members.len() == running.len() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A client that writes and retries as it is told to, and remembers what was acknowledged.
pub struct Patient {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

#[derive(Default)]
pub struct Written {
    /// What was acknowledged.
    pub keys: BTreeSet<String>,
    failed: Vec<String>,
    /// Requests that had to be sent again.
    pub retried: usize,
    /// From the first attempt to the acknowledgement, at most.
    pub longest: Duration,
}

impl Patient {
    /// Writes one key after the other through the first of these members that takes it.
    pub fn start(name: &str, members: &[SocketAddr]) -> Patient {
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, name, members) = (stop.clone(), name.to_owned(), members.to_vec());
        let thread = std::thread::spawn(move || {
            let mut written = Written::default();
            let mut number = 0;
            while !seen.load(Ordering::Relaxed) {
                number += 1;
                let key = format!("patient/{name}/{number}");
                let begun = Instant::now();
                match Patient::write(&members, &key, &mut written.retried) {
                    Ok(()) => drop(written.keys.insert(key)),
                    Err(why) => written.failed.push(why),
                }
                written.longest = written.longest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(2));
            }
            written
        });
        Patient { stop, thread }
    }

    /// A keyed write: it may be sent again whatever became of it.
    fn write(members: &[SocketAddr], key: &str, retried: &mut usize) -> Result<(), String> {
        let begun = Instant::now();
        for member in members.iter().cycle() {
            let path = format!("/v1/kv/{key}");
            let request = Request::new("PUT", &path).header("Idempotency-Key", key).body(key);
            let (why, after) = match request.try_send(*member) {
                Ok(answer) if answer.status == 200 || answer.status == 201 => return Ok(()),
                Ok(answer) if answer.status == 503 || answer.status == 504 || answer.status == 429 => {
                    let after = answer.header("retry-after").and_then(|after| after.parse().ok()).unwrap_or(0);
                    (answer.to_string(), Duration::from_secs(after))
                }
                Ok(answer) => return Err(answer.to_string()),
                Err(failure) => (failure.to_string(), Duration::from_millis(20)),
            };
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(why);
            }
            *retried += 1;
            std::thread::sleep(after);
        }
        unreachable!("there is a member to write through")
    }

    /// Stops it.
    pub fn finish(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Every key that was acknowledged is there.
#[track_caller]
pub fn assert_written(written: &Written, content: &[String]) {
    let keys: BTreeSet<String> = content
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].as_str().unwrap().to_owned())
        .collect();
    let lost: Vec<_> = written.keys.difference(&keys).collect();
    assert!(lost.is_empty(), "{} acknowledged writes are lost: {lost:?}", lost.len());
    assert!(written.failed.is_empty(), "requests failed: {:?}", written.failed);
}

//! What a forced failover announces that it may lose, against what it loses: a write that was acknowledged before the
//! announced window is there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{force, lose_east, salvaged, survey, tell_to_rejoin, wait_home, wait_primary_gone, wait_role};
use crate::support::http::{Connection, Request};
use crate::support::link::Way;
use crate::support::wait_for;
use serde_json::{Value, json};

const EAST: [usize; 3] = [0, 1, 2];
const WEST: usize = 3;
/// Clients that write, each one write after the other.
const CLIENTS: usize = 4;
/// A window is told in whole milliseconds.
const RESOLUTION: Duration = Duration::from_millis(2);

/// A write that was acknowledged: its key, its revision, and when the answer had been read.
type Acknowledged = (String, u64, Instant);

/// Clients that write until they are told to stop, and what they were told.
#[derive(Default)]
struct Writers {
    acknowledged: Mutex<Vec<Acknowledged>>,
    stop: AtomicBool,
}

impl Writers {
    fn work(&self, number: usize, at: SocketAddr) {
        let mut connection = None;
        for write in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let key = format!("w{number}-{write}");
            let open = connection.take().or_else(|| Connection::open(at).ok());
            let Some(mut open) = open else { continue };
            let put = Request::new("PUT", &format!("/v1/kv/{key}")).body("x");
            if let Ok(answer) = put.try_send_on(&mut open)
                && answer.status == 201
            {
                let revision = answer.json()["revision"].as_u64().unwrap();
                self.acknowledged.lock().unwrap().push((key, revision, Instant::now()));
                connection = Some(open);
            }
        }
    }

    /// Waits until so many writes more were acknowledged.
    fn wait_more(&self, count: usize) {
        let has = || self.acknowledged.lock().unwrap().len();
        let wanted = has() + count;
        wait_for(
            "acknowledged writes",
            || if has() >= wanted { Ok(()) } else { Err(format!("{} of {wanted}", has())) },
        );
    }

    fn first(&self) -> Instant {
        self.acknowledged.lock().unwrap()[0].2
    }
}

/// How old what a mirror has may be, as it says itself.
fn lag(found: &Value) -> Option<Duration> {
    let member = found["members"].as_array().unwrap().iter().find(|member| member["name"] == "n4").unwrap();
    member["lag_seconds"].as_f64().map(Duration::from_secs_f64)
}

/// The keys that a member has.
fn keys(cluster: &Cluster, member: usize) -> BTreeSet<String> {
    let revision = cluster.status(member).unwrap()["revision"].as_u64().unwrap();
    let key = |line: &String| serde_json::from_str::<Value>(line).unwrap()["key"].as_str().unwrap().to_owned();
    cluster.content(member, revision).iter().map(key).collect()
}

/// Kills a site whose link is so slow that writes are on their way, or stands still for a while before.
fn lost_within_the_window(delay: Duration, stalls: bool) {
    let mut cluster = Plan::new(3, 1).linked().start();
    cluster.link().delay(delay);
    let (writers, asked) = (Writers::default(), cluster.client(cluster.wait_leader()));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let writers = &writers;
            scope.spawn(move || writers.work(number, asked));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            writers.wait_more(50);
            // From here on the window cannot begin before the first of the writes.
            let first = writers.first();
            wait_for("the mirror to be confirmed amid the writes", || {
                let asked = Instant::now();
                match lag(&survey(&cluster, WEST)) {
                    Some(lag) if asked.checked_sub(lag).is_some_and(|since| since > first) => Ok(()),
                    lag => Err(format!("{lag:?}")),
                }
            });
            if stalls {
                cluster.link().stall_way(Way::ToWest);
            }
            writers.wait_more(100);
            lose_east(&mut cluster, 3);
        }));
        writers.stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    cluster.link().clean();
    wait_primary_gone(&cluster, WEST);
    // The window is counted back from a moment between these two.
    let ordered = Instant::now();
    let reply = force(&cluster, WEST, &json!({ "accept_data_loss": true })).expect(202).json();
    let answered = ordered.elapsed();
    let window = Duration::from_secs_f64(reply["loss"]["window_seconds"].as_f64().unwrap());
    let begins = ordered.checked_sub(window + RESOLUTION).unwrap();
    let begins_at_last = (ordered + answered).checked_sub(window).unwrap();
    wait_role(&cluster, WEST, "leader");
    // Behind all that its log held.
    cluster.put_until_done(WEST, "after", "x");

    let acknowledged = writers.acknowledged.into_inner().unwrap();
    let there = keys(&cluster, WEST);
    let (kept, missing): (Vec<_>, Vec<_>) = acknowledged.iter().partition(|(key, ..)| there.contains(key));
    println!(
        "delay {delay:?}, stalls {stalls}: window {window:?}, answered in {answered:?}; {} kept, {} missing",
        kept.len(),
        missing.len()
    );
    for (key, revision, at) in &missing {
        let before = begins.saturating_duration_since(*at);
        assert!(before.is_zero(), "{key} of revision {revision} is lost, acknowledged {before:?} before the window");
        assert!(Some(*revision) > reply["loss"]["kept_revision"].as_u64(), "{key} of {revision} is lost: {reply}");
    }
    assert!(!stalls || !missing.is_empty(), "what was acknowledged while the link stood still is lost");
    let older = kept.iter().filter(|(_, _, at)| *at < begins_at_last).count();
    assert!(older > 0, "the window is longer than all that was written: {window:?}");

    // All of it is in the salvage files of the old members together.
    for member in EAST {
        cluster.start_member(member);
    }
    for member in EAST {
        wait_role(&cluster, member, "fenced");
        tell_to_rejoin(&cluster, member);
    }
    for member in EAST {
        wait_home(&cluster, member, WEST);
    }
    let found = salvaged(&cluster, &EAST);
    for (key, revision, _) in missing {
        let of = |(name, fate, at): &(String, String, u64)| name == key && (at == revision || fate == "unknown");
        assert!(found.iter().any(of), "{key} of revision {revision} is in no salvage file");
    }
}

#[test]
fn what_is_missing_after_a_force_was_acknowledged_within_the_announced_window() {
    std::thread::scope(|scope| {
        for (delay, stalls) in [(50, true), (400, false)] {
            scope.spawn(move || lost_within_the_window(Duration::from_millis(delay), stalls));
        }
    });
}

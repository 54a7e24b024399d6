//! What watchers are promised, on real processes: everything that was done to their keys, in order, once, on whichever
//! member they go on, while leaders are killed and members come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{Connection, Failure, Request, get, post, put};
use crate::support::scrape::Metrics;
use crate::support::watch::{Report, Stream, follow};
use crate::support::{PATIENCE, Seed, wait_for};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// How many keys a writer writes: few, so that each is written many times.
const KEYS: u32 = 5;
const WRITERS: u64 = 3;

/// What a writer was told. Every value is written once.
#[derive(Default)]
struct Told {
    /// Value, and the revision at which it was written.
    written: BTreeMap<String, u64>,
    refused: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

/// Writes keys of its own until told to stop, one after the other, anywhere.
fn write(mut rng: StdRng, writer: u64, members: &[SocketAddr], stop: &AtomicBool, acknowledged: &AtomicU64) -> Told {
    let mut told = Told::default();
    let mut connections: Vec<Option<Connection>> = members.iter().map(|_| None).collect();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let value = format!("{writer}-{number}");
        let key = format!("/v1/kv/w/{writer}/{}", rng.random_range(0..KEYS));
        if rng.random_range(0..10) == 0 {
            // What became of a deletion is seen in what the next write replaced.
            let _ = Request::new("DELETE", &key).try_send(members[rng.random_range(0..members.len())]);
            continue;
        }
        let at = rng.random_range(0..members.len());
        let request = Request::new("PUT", &key).body(&value);
        let connection = match connections[at].take() {
            Some(connection) => Ok(connection),
            None => Connection::open_within(members[at], Duration::from_secs(8)).map_err(Failure::NotSent),
        };
        let answer = connection.and_then(|mut connection| {
            let answer = request.try_send_on(&mut connection)?;
            connections[at] = (answer.header("connection") != Some("close")).then_some(connection);
            Ok(answer)
        });
        match answer {
            Ok(answer) if answer.status < 300 => {
                told.written.insert(value, answer.json()["revision"].as_u64().unwrap());
                acknowledged.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Ok(answer) if answer.json()["outcome"] == "not-applied" => told.refused.insert(value),
            Err(Failure::NotSent(_)) => told.refused.insert(value),
            _ => told.unknown.insert(value),
        };
        std::thread::sleep(Duration::from_millis(10));
    }
    told
}

/// One thing that happens to a cluster.
fn hurt(cluster: &mut Cluster, rng: &mut StdRng) {
    match rng.random_range(0..4) {
        0 => {
            let leader = cluster.wait_leader();
            cluster.kill(leader);
            cluster.wait_leader();
            cluster.start_member(leader);
        }
        1 => {
            let leader = cluster.wait_leader();
            let answer = post(cluster.client(leader), "/v1/leader", &json!({}));
            assert!([200, 409, 503, 504].contains(&answer.status), "{answer}");
        }
        2 => {
            let member = rng.random_range(0..cluster.len());
            cluster.stop(member);
            cluster.start_member(member);
        }
        _ => {
            let member = rng.random_range(0..cluster.len());
            cluster.kill(member);
            cluster.start_member(member);
        }
    }
    cluster.wait_all_ready();
}

/// Fails unless each event's previous items are what the events before it left, and gives what they leave at the end.
fn fold(events: &[Value]) -> BTreeMap<String, Value> {
    let mut content: BTreeMap<String, Value> = BTreeMap::new();
    for event in events {
        for change in event["changes"].as_array().unwrap() {
            let (is_put, item) = match (change.get("put"), change.get("delete")) {
                (Some(put), None) => (true, put),
                (None, Some(delete)) => (false, delete),
                _ => panic!("neither a put nor a deletion: {change}"),
            };
            let mut item = item.clone();
            let previous = item.as_object_mut().unwrap().remove("previous");
            let key = item["key"].as_str().unwrap().to_owned();
            let before = if is_put { content.insert(key, item) } else { content.remove(&key) };
            assert_eq!(previous, before, "a change is missing before {event}");
        }
    }
    content
}

/// Fails unless the events are what the writers were told.
fn compare(events: &[Value], writers: &[Told]) {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for event in events {
        for put in event["changes"].as_array().unwrap().iter().filter_map(|change| change.get("put")) {
            let value = put["value"].as_str().unwrap().to_owned();
            let revision = event["revision"].as_u64().unwrap();
            assert_eq!(put["mod_revision"], revision);
            assert_eq!(seen.insert(value, revision), None, "seen twice: {event}");
        }
    }
    for told in writers {
        for (value, revision) in &told.written {
            assert_eq!(seen.get(value), Some(revision), "{value} was acknowledged");
        }
        let risen: Vec<_> = told.refused.iter().filter(|value| seen.contains_key(*value)).collect();
        assert!(risen.is_empty(), "refused as not applied, and seen: {risen:?}");
    }
    let asked = |value: &String| writers.iter().any(|t| t.written.contains_key(value) || t.unknown.contains(value));
    let unasked: Vec<_> = seen.keys().filter(|value| *value != "end" && !asked(value)).collect();
    assert!(unasked.is_empty(), "nobody wrote {unasked:?}");
}

#[test]
fn watchers_see_every_change_once_and_in_order_while_members_fail() {
    let seed = Seed::for_test("watchers_see_every_change_once_and_in_order_while_members_fail");
    // A small buffer, so that whoever goes on elsewhere reads the history first.
    let mut cluster = Plan::new(3, 1).flag("--watch-buffer-bytes", "64KiB").start();
    let members = cluster.clients();
    let start = cluster.wait_converged();
    let (stop, acknowledged, goal) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let goal_if_known = || Some(goal.load(Ordering::Relaxed)).filter(|goal| *goal > 0);
    let mut rng = seed.rng(0);
    let (reports, told, content): (Vec<Report>, Vec<Told>, Vec<String>) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (rng, members) = (seed.rng(100 + writer), members.clone());
                let (stop, acknowledged) = (&stop, &acknowledged);
                scope.spawn(move || write(rng, writer, &members, stop, acknowledged))
            })
            .collect();
        // One that begins at each member; the second of them reads slowly.
        let watchers: Vec<_> = (0..members.len())
            .map(|first| {
                let mut members = members.clone();
                members.rotate_left(first);
                scope.spawn(move || {
                    let pace = |_: &Value| std::thread::sleep(Duration::from_micros(if first == 1 { 500 } else { 0 }));
                    follow(&members, "prefix=w/&previous=true", start, goal_if_known, pace)
                })
            })
            .collect();
        let hurting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..6 {
                let enough = acknowledged.load(Ordering::Relaxed) + 150;
                wait_for("writes to go on", || match acknowledged.load(Ordering::Relaxed) {
                    count if count >= enough => Ok(()),
                    count => Err(format!("{count} acknowledged")),
                });
                hurt(&mut cluster, &mut rng);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let told = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        // The watchers must end, also when this test has failed.
        let last = hurting.map(|()| {
            let end = wait_for("the last write", || {
                let answer = put(members[0], "/v1/kv/w/end", "end");
                answer.json()["revision"].as_u64().ok_or_else(|| answer.to_string())
            });
            // An unknown write of before may still come; what follows this revision is nobody's business.
            (end, cluster.wait_converged())
        });
        goal.store(last.as_ref().map_or(1, |(end, _)| *end), Ordering::Relaxed);
        let reports: Vec<Report> = watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect();
        let (end, _) = last.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let member = rng.random_range(0..cluster.len());
        (reports, told, cluster.content(member, end))
    });

    let goal = goal.load(Ordering::Relaxed);
    let upto = |report: &Report| -> Vec<Value> {
        report.events.iter().filter(|event| event["revision"].as_u64().unwrap() <= goal).cloned().collect()
    };
    let events = upto(&reports[0]);
    assert!(events.len() > 900, "{} events", events.len());
    for report in &reports[1..] {
        assert_eq!(upto(report), events, "two watchers saw different things");
    }
    compare(&events, &told);
    let items = content.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let items = items.filter(|item| item["key"].is_string());
    let items: BTreeMap<_, _> = items.map(|item| (item["key"].as_str().unwrap().to_owned(), item)).collect();
    assert_eq!(fold(&events), items, "the events lead to another content than the members have");
    // And each was true at its revision.
    for event in events.iter().step_by(events.len() / 20 + 1) {
        let revision = event["revision"].as_u64().unwrap();
        for put in event["changes"].as_array().unwrap().iter().filter_map(|change| change.get("put")) {
            let path = format!("/v1/kv/{}?rev={revision}", put["key"].as_str().unwrap());
            let answer = get(members[0], &path).expect(200);
            assert_eq!((answer.text(), answer.etag_revision()), (put["value"].as_str().unwrap(), Some(revision)));
        }
    }
    let streams: usize = reports.iter().map(|report| report.streams).sum();
    assert!(streams > members.len(), "no watcher ever went on elsewhere");
}

#[test]
fn a_reader_that_stops_reading_is_ended_and_loses_nothing() {
    let cluster =
        Plan::new(1, 0).flag("--watch-slow-timeout-ms", "300ms").flag("--watch-buffer-bytes", "64KiB").start();
    let member = cluster.client(0);
    let start = cluster.wait_converged();
    let mut slow = Stream::open(member, &format!("since={start}")).unwrap().unwrap_or_else(|answer| panic!("{answer}"));
    let value = "x".repeat(100 << 10);
    let mut connection = Connection::open(member).unwrap();
    let mut written = Vec::new();
    // Until it was ended: so much has to be written that it fits into no buffer on the way.
    wait_for("the reader to be ended", || {
        let request = Request::new("PUT", "/v1/kv/a").body(&value);
        for _ in 0..10 {
            let answer = request.try_send_on(&mut connection).unwrap();
            written.push(answer.json()["revision"].as_u64().unwrap_or_else(|| panic!("{answer}")));
        }
        let metrics = Metrics::of(member);
        match metrics.sum("lifeboat_watches_ended_total", &[r#"reason="slow""#]) {
            1.0 => {
                assert_eq!(metrics.sum("lifeboat_watchers", &[]), 0.0, "its place is free again");
                Ok(())
            }
            _ => Err(format!("{} writes and nobody was ended", written.len())),
        }
    });
    let mut revisions = Vec::new();
    let mut ended = None;
    while let Some(event) = slow.next().unwrap() {
        match event["type"].as_str().unwrap() {
            "change" => revisions.push(event["revision"].as_u64().unwrap()),
            "end" => ended = Some(event),
            _ => {}
        }
    }
    let ended = ended.expect("a stream that the member ends says so");
    assert_eq!(ended["reason"], "slow");
    let since = ended["revision"].as_u64().unwrap();
    let goal = written.last().copied().unwrap();
    let rest = follow(&[member], "", since, || Some(goal), |_| {});
    revisions.extend(rest.events.iter().map(|event| event["revision"].as_u64().unwrap()));
    assert_eq!(revisions, written, "nothing is missing and nothing came twice");
}

#[test]
fn a_revision_that_a_member_does_not_have_yet_is_waited_for() {
    let mut cluster = Plan::new(3, 0).start();
    cluster.wait_converged();
    let follower = cluster.follower();
    let other = (0..3).find(|member| *member != follower && *member != cluster.wait_leader()).unwrap();
    cluster.pause(follower);
    let written = wait_for("a write", || {
        let answer = put(cluster.client(other), "/v1/kv/a", "1");
        answer.json()["revision"].as_u64().ok_or_else(|| answer.to_string())
    });
    cluster.resume(follower);
    // Right away, and on the member that has missed the write.
    let mut stream =
        wait_for("a stream", || match Stream::open(cluster.client(follower), &format!("since={written}")) {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(answer)) if answer.status == 503 => Err(answer.to_string()),
            Ok(Err(answer)) => panic!("{answer}"),
            Err(error) => Err(error.to_string()),
        });
    assert_eq!(stream.next().unwrap().unwrap(), json!({"type":"open","revision":written}));
    let future = Stream::open(cluster.client(follower), &format!("since={}", written + 1000)).unwrap();
    future.err().expect("a refusal").expect_problem(400, "future-revision");
    let (waits, path) = (cluster.client(follower), format!("/v1/kv/a?since={written}&wait=1m"));
    let waiting = std::thread::spawn(move || {
        let mut connection = Connection::open_within(waits, PATIENCE).unwrap();
        Request::new("GET", &path).try_send_on(&mut connection).unwrap()
    });
    // The write goes to another member; the one that is asked hears of it by itself.
    let again = put(cluster.client(other), "/v1/kv/a", "2").expect(200).etag_revision();
    let answer = waiting.join().unwrap().expect(200);
    assert_eq!((answer.text(), answer.etag_revision()), ("2", again));
}

//! What watchers are promised while the read floor moves past them, on real processes: whoever is below the floor is told
//! so, with the floor, and goes on there; whoever is not is never told so; and in between everybody sees every transaction
//! whole, once and in order, while leaders are killed and stand still.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{Answer, Request, put};
use crate::support::scrape::Metrics;
use crate::support::watch::Stream;
use crate::support::{PATIENCE, Seed, wait_for};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// As many revisions are kept at least.
const KEPT_REVISIONS: u64 = 50;
const WRITERS: u64 = 3;
/// Large, so that compaction has something to take away soon.
const PADDING: usize = 6 << 10;
/// The cluster writes records of its own between two looks at one member.
const OWN_RECORDS: u64 = 5;

/// Writes all keys of a group in one transaction, again and again: value and revision of those that were acknowledged.
fn write(
    mut rng: StdRng,
    writer: u64,
    members: &[SocketAddr],
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Vec<(String, u64)> {
    let keys = 2 + writer % 3;
    let padding = "x".repeat(PADDING);
    let mut written = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = format!("{writer}-{number}");
        let put = |key: u64| {
            let padding = if key == 0 { &*padding } else { "" };
            json!({"put": {"key": format!("t/{writer}/{key}"), "value": format!("{value} {padding}")}})
        };
        let body = json!({"then": (0..keys).map(put).collect::<Vec<_>>()}).to_string();
        let at = rng.random_range(0..members.len());
        match Request::new("POST", "/v1/txn").body(body).try_send(members[at]) {
            Ok(answer) if answer.status == 200 => {
                written.push((value, answer.json()["revision"].as_u64().unwrap()));
                count.fetch_add(1, Ordering::Relaxed);
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    written
}

/// The value that a transaction wrote; fails unless the event holds all of it.
fn whole(event: &Value) -> String {
    let changes = event["changes"].as_array().unwrap();
    let puts: Vec<&Value> =
        changes.iter().map(|change| change.get("put").unwrap_or_else(|| panic!("{event}"))).collect();
    let value = |put: &Value| put["value"].as_str().unwrap().split(' ').next().unwrap().to_owned();
    let group = value(puts[0]);
    let writer: u64 = group.split('-').next().unwrap().parse().unwrap();
    let keys: Vec<String> = (0..2 + writer % 3).map(|key| format!("t/{writer}/{key}")).collect();
    let seen: Vec<&str> = puts.iter().map(|put| put["key"].as_str().unwrap()).collect();
    assert_eq!(seen, keys, "half a transaction: {group}");
    assert!(puts.iter().all(|put| value(put) == group && put["mod_revision"] == event["revision"]), "{event}");
    group
}

/// What was seen without a gap: everything after `after` and up to `upto`.
struct Span {
    after: u64,
    upto: u64,
    seen: Vec<(u64, String)>,
}

#[derive(Default)]
struct Report {
    spans: Vec<Span>,
    /// How often a watch was refused because it began below the floor, and how often one was ended because of that.
    refused: usize,
    ended: usize,
}

/// A refusal below the floor: where the history begins.
fn floor_of(since: u64, answer: Answer) -> u64 {
    let revision: u64 = answer.must_have("lifeboat-revision").parse().unwrap();
    let problem = answer.expect_problem(410, "compacted");
    let floor = problem["floor"].as_u64().unwrap_or_else(|| panic!("no floor: {problem}"));
    assert!(floor > since, "refused at {since}, which is not below the floor: {problem}");
    assert!(floor + KEPT_REVISIONS <= revision + OWN_RECORDS, "too little is kept at {revision}: {problem}");
    floor
}

/// What a watcher does after an event.
enum Rest {
    /// It is away for so long.
    Away(Duration),
    /// It is away until no member can go on from where it is.
    UntilBelow,
    /// It leaves the stream open and does not read.
    Unread(Duration),
}

/// Waits until a revision is below the floor of every member, or until the watchers shall end.
fn wait_below(members: &[SocketAddr], revision: u64, goal: impl Fn() -> Option<u64>) {
    let read = Request::new("GET", &format!("/v1/keys?prefix=none/&consistency=stale&rev={revision}"));
    for member in members {
        wait_for("the floor to rise", || match read.try_send(*member) {
            _ if goal().is_some() => Ok(()),
            Ok(answer) if answer.status == 410 => Ok(()),
            Ok(answer) => Err(answer.to_string()),
            Err(failure) => Err(failure.to_string()),
        });
    }
}

/// Watches until `goal`, on one member after the other. `rest` says what it does after an event: then it goes on from the
/// old revision, and where it is told to when that is gone.
fn follow(
    members: &[SocketAddr],
    since: u64,
    goal: impl Fn() -> Option<u64>,
    mut rest: impl FnMut() -> Option<Rest>,
) -> Report {
    let mut report = Report::default();
    let mut span = Span { after: since, upto: since, seen: Vec::new() };
    let mut progress = Instant::now();
    for member in members.iter().cycle() {
        assert!(progress.elapsed() < PATIENCE, "the watch at {} does not get on", span.upto);
        std::thread::sleep(Duration::from_millis(10));
        let go_on = |report: &mut Report, span: &mut Span, floor: u64| {
            let gone = std::mem::replace(span, Span { after: floor, upto: floor, seen: Vec::new() });
            report.spans.push(gone);
        };
        let mut stream = match Stream::open(*member, &format!("prefix=t/&since={}", span.upto)) {
            Err(_) => continue,
            Ok(Err(answer)) if answer.status == 410 => {
                report.refused += 1;
                let floor = floor_of(span.upto, answer);
                go_on(&mut report, &mut span, floor);
                // At the floor a watch is accepted, unless the floor has moved on meanwhile.
                match Stream::open(*member, &format!("prefix=t/&since={floor}")) {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(answer)) if answer.status == 410 => {
                        assert!(floor_of(floor, answer) > floor);
                        continue;
                    }
                    _ => continue,
                }
            }
            Ok(Err(answer)) => {
                assert!(answer.status == 503, "going on at {}: {answer}", span.upto);
                continue;
            }
            Ok(Ok(stream)) => stream,
        };
        while let Ok(Some(event)) = stream.next() {
            let revision = event["revision"].as_u64().unwrap_or_else(|| panic!("no revision in {event}"));
            assert!(revision >= span.upto, "{event} after {}", span.upto);
            match event["type"].as_str().unwrap_or_default() {
                "change" => {
                    assert!(revision > span.upto, "{event} after {}", span.upto);
                    span.seen.push((revision, whole(&event)));
                }
                "end" if event["reason"] == "compacted" => {
                    report.ended += 1;
                    span.upto = revision;
                    let floor = event["floor"].as_u64().unwrap_or_else(|| panic!("no floor: {event}"));
                    assert!(floor > revision, "ended at {revision}, which is not below the floor: {event}");
                    go_on(&mut report, &mut span, floor);
                    break;
                }
                "open" | "heartbeat" | "end" => {}
                _ => panic!("an unknown event: {event}"),
            }
            if revision > span.upto {
                progress = Instant::now();
            }
            span.upto = revision;
            if goal().is_some_and(|goal| span.upto >= goal) {
                report.spans.push(span);
                return report;
            }
            match rest() {
                None => {}
                Some(Rest::Unread(pause)) => std::thread::sleep(pause),
                Some(Rest::Away(pause)) => {
                    drop(stream);
                    std::thread::sleep(pause);
                    break;
                }
                Some(Rest::UntilBelow) => {
                    drop(stream);
                    wait_below(members, span.upto, &goal);
                    progress = Instant::now();
                    break;
                }
            }
        }
    }
    unreachable!("the members are a circle")
}

fn hurt(cluster: &mut Cluster, how: u64) {
    let leader = cluster.wait_leader();
    match how {
        0 => {
            cluster.kill(leader);
            cluster.wait_leader();
            cluster.start_member(leader);
        }
        1 => {
            cluster.pause(leader);
            cluster.wait_other_leader(leader);
            cluster.resume(leader);
        }
        _ => {
            let member = (leader + 1) % cluster.len();
            cluster.stop(member);
            cluster.start_member(member);
        }
    }
    cluster.wait_all_ready();
}

#[test]
fn whoever_is_below_the_floor_is_told_and_nobody_else_and_nothing_is_skipped_in_silence() {
    let seed = Seed::for_test("whoever_is_below_the_floor_is_told_and_nobody_else_and_nothing_is_skipped_in_silence");
    let mut cluster = Plan::new(3, 1)
        .flag("--history-keep-ms", "300ms")
        .flag("--history-keep-revisions", "50")
        .flag("--tail-bytes", "1MiB")
        .flag("--watch-buffer-bytes", "64KiB")
        .start();
    let members = cluster.clients();
    let start = cluster.wait_converged();
    let (stop, count, goal) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let goal_if_known = || Some(goal.load(Ordering::Relaxed)).filter(|goal| *goal > 0);
    let (reports, written): (Vec<Report>, Vec<Vec<(String, u64)>>) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (rng, members, stop, count) = (seed.rng(100 + writer), &members, &stop, &count);
                scope.spawn(move || write(rng, writer, members, stop, count))
            })
            .collect();
        // Three that follow; two that go away for a while, one that keeps its stream and does not read.
        let watchers: Vec<_> = (0..6)
            .map(|number| {
                let (mut members, mut rng) = (members.clone(), seed.rng(200 + number));
                members.rotate_left(number as usize % 4);
                scope.spawn(move || {
                    let mut first = true;
                    let rest = || match number {
                        0..3 => None,
                        // So that it is surely below the floor once.
                        3..5 if std::mem::take(&mut first) => Some(Rest::UntilBelow),
                        _ => rng.random_bool(0.01).then(|| {
                            let pause = Duration::from_millis(rng.random_range(500..2000));
                            if number == 5 { Rest::Unread(pause) } else { Rest::Away(pause) }
                        }),
                    };
                    follow(&members, start, goal_if_known, rest)
                })
            })
            .collect();
        let hurting = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..6 {
                let enough = count.load(Ordering::Relaxed) + 150;
                wait_for("writes to go on", || match count.load(Ordering::Relaxed) {
                    count if count >= enough => Ok(()),
                    count => Err(format!("{count} acknowledged")),
                });
                hurt(&mut cluster, round % 3);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let written = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        // The watchers must end, also when this test has failed.
        let last = hurting.map(|()| {
            wait_for("the last write", || {
                let answer = put(members[0], "/v1/kv/end", "end");
                answer.json()["revision"].as_u64().ok_or_else(|| answer.to_string())
            })
        });
        goal.store(*last.as_ref().unwrap_or(&1), Ordering::Relaxed);
        let reports = watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect();
        last.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (reports, written)
    });

    // The model: what was acknowledged, and what anybody saw of the rest.
    let goal = goal.load(Ordering::Relaxed);
    let mut model: BTreeMap<u64, String> = BTreeMap::new();
    let seen = reports.iter().flat_map(|report| &report.spans).flat_map(|span| span.seen.iter().cloned());
    for (revision, value) in written.into_iter().flatten().map(|(value, revision)| (revision, value)).chain(seen) {
        let before = model.insert(revision, value.clone());
        assert!(before.is_none_or(|before| before == value), "two transactions at {revision}");
    }
    for (number, report) in reports.iter().enumerate() {
        assert_eq!(report.spans.last().unwrap().upto.max(goal), report.spans.last().unwrap().upto);
        for Span { after, upto, seen } in &report.spans {
            // A span may be empty.
            let within = (Bound::Excluded(*after), Bound::Included(*upto));
            let expected: Vec<_> = model.range(within).map(|(at, value)| (*at, value.clone())).collect();
            assert_eq!(*seen, expected, "watcher {number} between {after} and {upto}");
        }
    }
    let (refused, ended): (Vec<_>, Vec<_>) = reports.iter().map(|report| (report.refused, report.ended)).unzip();
    println!("{} transactions, refused below the floor {refused:?}, ended {ended:?}", model.len());
    assert!(refused[3..5].iter().sum::<usize>() > 0, "nobody was ever below the floor");
    for member in 0..cluster.len() {
        wait_for("compaction", || {
            let reclaimed = Metrics::of(cluster.client(member)).sum("lifeboat_compaction_reclaimed_bytes_total", &[]);
            cluster.put_until_done(0, "tick", "x");
            if reclaimed > 0.0 { Ok(()) } else { Err(format!("n{} has taken nothing away", member + 1)) }
        });
    }
}

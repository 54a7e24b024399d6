//! Real processes under concurrent clients, hurt while they work, and judged for linearizability.
//!
//! Every test has the same frame, [`survive`]: start three voters and a mirror, put clients to work on all four, do
//! harm, stop harming, and then demand that the cluster converges, that all members hold the same, that every
//! acknowledged write is there and every refused one is not, and that one order explains all that the clients were
//! told. What differs is the harm.
//!
//! The judge is on trial in `tests/judge.rs`.

use crate::support::Seed;
use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Connection, Request};
use crate::support::scrape::Metrics;
use crate::support::workload::Load;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

/// Acknowledged writes before, between and after the faults.
const PROGRESS: u64 = 60;

fn survive(test: &'static str, harm: impl FnOnce(&mut Cluster, &Load, &mut StdRng)) {
    let seed = Seed::for_test(test);
    let mut cluster = Plan::new(3, 1).start();
    let load = Load::start(&seed, cluster.clients());
    load.wait_progress(PROGRESS);

    harm(&mut cluster, &load, &mut seed.rng(0));

    load.wait_progress(PROGRESS);
    cluster.wait_joined();
    let mut outcome = load.finish();
    let content = cluster.assert_same_content();
    outcome.assert_journal(&content);
    for member in cluster.clients() {
        outcome.read_all(member);
    }
    outcome.history.assert_linearizable(cluster.path());
    println!("{test}: {}; journal: {} written", outcome.history.summary(), outcome.journal.written.len());
    assert!(outcome.journal.written.len() > 10, "the journal is too short to prove anything");
}

#[test]
fn nothing_goes_wrong() {
    survive("nothing_goes_wrong", |_, load, _| load.wait_progress(4 * PROGRESS));
}

#[test]
fn the_leader_is_killed() {
    survive("the_leader_is_killed", |cluster, load, _| {
        for _ in 0..2 {
            let leader = cluster.wait_leader();
            cluster.kill(leader);
            cluster.wait_other_leader(leader);
            load.wait_progress(PROGRESS);
            cluster.start_member(leader);
            cluster.wait_ready(leader);
        }
    });
}

#[test]
fn a_follower_is_killed() {
    survive("a_follower_is_killed", |cluster, load, rng| {
        for _ in 0..2 {
            let leader = cluster.wait_leader();
            let victim = (leader + rng.random_range(1..3)) % 3;
            cluster.kill(victim);
            load.wait_progress(PROGRESS);
            cluster.start_member(victim);
            cluster.wait_ready(victim);
        }
    });
}

#[test]
fn all_members_are_killed_at_once() {
    survive("all_members_are_killed_at_once", |cluster, load, _| {
        for _ in 0..2 {
            for member in 0..cluster.len() {
                cluster.kill(member);
            }
            for member in 0..cluster.len() {
                cluster.start_member(member);
            }
            cluster.wait_all_ready();
            load.wait_progress(PROGRESS);
        }
    });
}

#[test]
fn every_member_is_restarted_in_turn() {
    survive("every_member_is_restarted_in_turn", |cluster, load, _| {
        for member in 0..cluster.len() {
            let status = cluster.stop(member);
            assert!(status.success(), "a member that is asked to stop ends with {status}");
            load.wait_progress(PROGRESS / 2);
            cluster.start_member(member);
            cluster.wait_ready(member);
        }
    });
}

#[test]
fn the_leader_stands_still_and_goes_on() {
    survive("the_leader_stands_still_and_goes_on", |cluster, load, _| {
        for _ in 0..2 {
            let leader = cluster.wait_leader();
            cluster.pause(leader);
            cluster.wait_other_leader(leader);
            load.wait_progress(PROGRESS);
            cluster.resume(leader);
            load.wait_progress(PROGRESS);
            cluster.wait_ready(leader);
        }
    });
}

#[test]
fn leadership_is_handed_over_again_and_again() {
    survive("leadership_is_handed_over_again_and_again", |cluster, load, rng| {
        let (mut tried, mut moved) = (0, 0);
        while tried < 12 || moved < 6 {
            tried += 1;
            assert!(tried <= 100, "only {moved} of 100 transfers took place");
            let (asked, to) = (rng.random_range(0..4), rng.random_range(0..3));
            let name = &cluster.member(to).name;
            let answer = http::post(cluster.client(asked), "/v1/leader", &json!({ "to": name }));
            match answer.status {
                200 => {
                    assert_eq!(answer.json()["leader"], **name, "{answer}");
                    moved += 1;
                }
                // Another transfer, or an election, may be under way.
                409 | 503 | 504 => {}
                _ => panic!("{answer}"),
            }
            load.wait_progress(PROGRESS / 6);
        }
    });
}

/// A leader that stood still while another was elected finds requests waiting when it goes on. It must not answer the
/// reads from what it remembers, nor acknowledge the writes by itself.
#[test]
fn a_stale_leader_neither_serves_old_values_nor_acknowledges_writes() {
    let mut cluster = Plan::new(3, 1).start();
    let old = cluster.wait_leader();
    cluster.put_until_done(old, "k", "before");
    let mut readers: Vec<_> = (0..8).map(|_| Connection::open(cluster.client(old)).unwrap()).collect();
    let mut writers: Vec<_> = (0..8).map(|_| Connection::open(cluster.client(old)).unwrap()).collect();
    // The connections are known to the member before it stands still.
    for connection in readers.iter_mut().chain(&mut writers) {
        let answer = Request::new("GET", "/v1/kv/k").try_send_on(connection).unwrap().expect(200);
        assert_eq!(answer.text(), "before");
    }

    cluster.pause(old);
    let new = cluster.wait_other_leader(old);
    cluster.put_until_done(new, "k", "after");
    for connection in &mut readers {
        connection.send(&Request::new("GET", "/v1/kv/k").bytes()).unwrap();
    }
    for (number, connection) in writers.iter_mut().enumerate() {
        let request = Request::new("PUT", &format!("/v1/kv/late/{number}")).body("late");
        connection.send(&request.bytes()).unwrap();
    }
    cluster.resume(old);

    let mut served = 0;
    for mut connection in readers {
        let answer = connection.read_answer(false).unwrap();
        match answer.status {
            200 => {
                assert_eq!(answer.text(), "after", "a stale leader served an old value");
                served += 1;
            }
            503 => assert_eq!(answer.json()["retry"], "safe", "{answer}"),
            _ => panic!("{answer}"),
        }
    }
    println!("{served} of 8 reads were served with the new value");
    let answers: Vec<_> = writers.into_iter().map(|mut connection| connection.read_answer(false).unwrap()).collect();
    cluster.wait_ready(old);
    cluster.wait_converged();
    for (number, answer) in answers.iter().enumerate() {
        let kept = cluster.get(new, &format!("late/{number}"));
        match (answer.status, answer.json()["outcome"].as_str()) {
            (200 | 201, _) => assert_eq!(kept.as_deref(), Some("late"), "an acknowledged write is lost: {answer}"),
            (503, Some("not-applied")) => assert_eq!(kept, None, "a refused write appeared: {answer}"),
            (504, Some("unknown")) => {}
            _ => panic!("{answer}"),
        }
    }
    cluster.assert_same_content();
}

/// A linearizable read is served by the member that was asked. Only the question whether it is current goes to the
/// leader, and concurrent readers share it.
#[test]
fn reads_are_served_by_the_member_that_was_asked() {
    const READS: usize = 40;
    let cluster = Plan::new(3, 1).steady().start();
    let leader = cluster.wait_leader();
    cluster.put_until_done(leader, "k", "v");
    let served = |member: usize, consistency: &str| {
        let label = format!("consistency=\"{consistency}\"");
        Metrics::of(cluster.client(member)).sum("lifeboat_reads_served_total", &[&label]) as usize
    };
    let forwarded = |member: usize| {
        let metrics = Metrics::of(cluster.client(member));
        assert!(metrics.has("lifeboat_writes_forwarded_total"), "{}", metrics.text());
        metrics.sum("lifeboat_writes_forwarded_total", &[]) as usize
    };

    let others: Vec<usize> = (0..cluster.len()).filter(|&member| member != leader).collect();
    for &member in &others {
        // A member that was just ready may still have to wait for its first confirmation; the counts start after it.
        assert_eq!(cluster.get(member, "k").as_deref(), Some("v"));
        let (here, at_leader, passed_on) =
            (served(member, "linearizable"), served(leader, "linearizable"), forwarded(member));
        for _ in 0..READS {
            assert_eq!(http::get(cluster.client(member), "/v1/kv/k").expect(200).text(), "v");
        }
        let name = &cluster.member(member).name;
        assert_eq!(served(member, "linearizable") - here, READS, "{name} did not serve its reads itself");
        assert_eq!(served(leader, "linearizable"), at_leader, "the leader served reads that {name} was asked");
        assert_eq!(forwarded(member), passed_on, "reads were passed on as writes");

        let stale = served(member, "stale");
        http::get(cluster.client(member), "/v1/kv/k?consistency=stale").expect(200);
        assert_eq!(served(member, "stale") - stale, 1);
        assert_eq!(served(member, "linearizable") - here, READS, "a stale read is counted as one");

        http::put(cluster.client(member), "/v1/kv/k", "v").expect(200);
        assert_eq!(forwarded(member), passed_on + 1, "a write on {name} goes to the leader");
    }
    assert_eq!(forwarded(leader), 0, "the leader passes nothing on");
}

/// What one member acknowledges every other shows at once. Connections are kept, and the read leaves the moment the
/// write is acknowledged, before a follower can hear of the commit by itself.
#[test]
fn a_write_is_seen_by_reads_on_all_members_as_soon_as_it_is_acknowledged() {
    const ROUNDS: usize = 100;
    let cluster = Plan::new(3, 1).start();
    let leader = cluster.wait_leader();
    let mut connections: Vec<_> = cluster.clients().into_iter().map(|at| Connection::open(at).unwrap()).collect();
    let others: Vec<usize> = (0..cluster.len()).filter(|&member| member != leader).collect();
    let mut served = 0;
    for round in 0..ROUNDS {
        let value = format!("round {round}");
        let write = Request::new("PUT", "/v1/kv/k").body(&value).try_send_on(&mut connections[leader]).unwrap();
        assert!(write.status < 300, "{write}");
        let reader = others[round % others.len()];
        let read = Request::new("GET", "/v1/kv/k").try_send_on(&mut connections[reader]).unwrap();
        match read.status {
            200 => {
                assert_eq!(read.text(), value, "{} is behind", cluster.member(reader).name);
                served += 1;
            }
            503 => assert_eq!(read.json()["retry"], "safe", "{read}"),
            _ => panic!("{read}"),
        }
    }
    assert!(served > ROUNDS / 2, "only {served} of {ROUNDS} reads were served");
}

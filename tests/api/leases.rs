//! Leases on real processes: what a client that keeps a lease alive may rely on while leaders are killed, hand over,
//! stand still and come back.
//!
//! The promise, by the client's own clock: after a keep-alive that is answered 200 the lease lives at least its span,
//! counted from when that keep-alive was sent. (Counted from the answer it cannot be promised by anybody: an answer may
//! travel longer than the span.) And 404 is said only of a lease that is gone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Answer, Connection, Request};
use crate::support::{Seed, wait_for};
use rand::Rng;
use serde_json::{Value, json};

/// How long a client waits for the answer to a keep-alive before it asks another member.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

fn keep_alive(id: u64) -> Request {
    Request::new("POST", &format!("/v1/leases/{id}/keepalive"))
}

/// What a keep-alive came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Lives,
    Gone,
    /// Nothing that tells.
    Unknown,
}

/// Reads an answer to a keep-alive; one that the contract does not know fails the test.
fn told(answer: &Answer) -> Kept {
    match answer.status {
        200 => Kept::Lives,
        404 => {
            assert_eq!(answer.json()["type"], "urn:lifeboat:problem:unknown-lease", "{answer}");
            Kept::Gone
        }
        503 => {
            assert_eq!(answer.json()["retry"], "safe", "{answer}");
            Kept::Unknown
        }
        _ => panic!("{answer}"),
    }
}

fn ask(at: SocketAddr, id: u64) -> Kept {
    let answer = Connection::open_within(at, ANSWER_TIMEOUT)
        .map_err(|error| error.to_string())
        .and_then(|mut open| keep_alive(id).try_send_on(&mut open).map_err(|failure| failure.to_string()));
    answer.map_or(Kept::Unknown, |answer| told(&answer))
}

/// Grants a lease and hangs keys on it, all at one revision.
fn grant(cluster: &Cluster, id: u64, ttl: Duration, keys: &[String]) {
    let at = cluster.client(cluster.wait_leader());
    let granted = http::post(at, "/v1/leases", &json!({"id": id, "ttl_seconds": ttl.as_secs()}));
    granted.expect(201);
    let ops: Vec<Value> = keys.iter().map(|key| json!({"put": {"key": key, "value": "x", "lease": id}})).collect();
    http::post(at, "/v1/txn", &json!({ "then": ops })).expect(200);
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}/{number}")).collect()
}

/// Waits until a key is gone by a linearizable read; gives the moment when that was known.
fn wait_gone(cluster: &Cluster, key: &str) -> Instant {
    let target = format!("/v1/kv/{key}");
    wait_for(&format!("{key} to go"), || {
        for member in cluster.running() {
            let asked = Connection::open_within(cluster.client(member), ANSWER_TIMEOUT).map_err(|e| e.to_string());
            let asked =
                asked.and_then(|mut c| Request::new("GET", &target).try_send_on(&mut c).map_err(|e| e.to_string()));
            if asked.is_ok_and(|answer| answer.status == 404) {
                return Ok(Instant::now());
            }
        }
        Err("it is there, or nobody knows".into())
    })
}

/// Fails unless the keys with this prefix were all there or all gone at every revision, and are gone now.
fn assert_went_together(cluster: &Cluster, prefix: &str, count: usize) {
    let newest = cluster.wait_converged();
    let at = cluster.client(cluster.running()[0]);
    let found_at = |rev: u64| {
        let target = format!("/v1/keys?prefix={prefix}/&keys_only=true&consistency=stale&rev={rev}");
        http::get(at, &target).expect(200).json()["items"].as_array().unwrap().len()
    };
    let mut seen = BTreeSet::new();
    for rev in 1..=newest {
        let found = found_at(rev);
        assert!(found == 0 || found == count, "{found} of {count} keys at revision {rev}");
        seen.insert(found);
    }
    assert_eq!(seen, BTreeSet::from([0, count]));
    assert_eq!(found_at(newest), 0, "some are left");
}

/// One keeper at any member, a mirror too, while everything happens to the leaders. No key may ever go.
#[test]
fn a_lease_that_is_kept_alive_keeps_its_keys_whoever_leads() {
    const TTL: Duration = Duration::from_secs(8);
    const ID: u64 = 7;
    let seed = Seed::for_test("a_lease_that_is_kept_alive_keeps_its_keys_whoever_leads");
    let mut cluster = Plan::new(3, 1).start();
    let keys = names("kept", 3);
    grant(&cluster, ID, TTL, &keys);
    let items = |cluster: &Cluster| {
        wait_for("the keys", || {
            let answer = http::get(cluster.client(cluster.wait_leader()), "/v1/keys?prefix=kept/");
            if answer.status == 200 { Ok(answer.json()["items"].clone()) } else { Err(answer.to_string()) }
        })
    };
    let before = items(&cluster);
    assert_eq!(before.as_array().unwrap().len(), keys.len());

    // When the last keep-alive was sent that was answered 200, and how many were.
    let last = Arc::new(Mutex::new((Instant::now(), 0u32)));
    let stop = Arc::new(AtomicBool::new(false));
    let keeper = {
        let (last, stop, members, mut rng) = (last.clone(), stop.clone(), cluster.clients(), seed.rng(1));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let sent = Instant::now();
                match ask(members[rng.random_range(0..members.len())], ID) {
                    Kept::Lives => {
                        let mut last = last.lock().unwrap();
                        *last = (sent, last.1 + 1);
                    }
                    Kept::Gone => {
                        let age = last.lock().unwrap().0.elapsed();
                        panic!("404 although a keep-alive sent {age:?} ago was answered 200; the span is {TTL:?}");
                    }
                    Kept::Unknown => {}
                }
                std::thread::sleep(Duration::from_millis(rng.random_range(1..100)));
            }
        })
    };
    let kept_on = |what: &str| {
        let start = last.lock().unwrap().1;
        wait_for(&format!("keep-alives after {what}"), || {
            assert!(!keeper.is_finished(), "the lease was lost after {what}");
            match last.lock().unwrap().1 - start {
                count if count >= 8 => Ok(()),
                count => Err(format!("only {count}")),
            }
        });
    };
    kept_on("the start");

    for round in 0..2 {
        let leader = cluster.wait_leader();
        cluster.kill(leader);
        cluster.wait_other_leader(leader);
        kept_on("kill -9");
        assert_eq!(items(&cluster), before, "round {round}");
        cluster.start_member(leader);
        cluster.wait_ready(leader);

        let to = &cluster.member(cluster.follower()).name;
        let moved = http::post(cluster.client(cluster.wait_leader()), "/v1/leader", &json!({ "to": to }));
        assert!([200, 409, 503, 504].contains(&moved.status), "{moved}");
        kept_on("a transfer");

        let leader = cluster.wait_leader();
        cluster.pause(leader);
        cluster.wait_other_leader(leader);
        kept_on("a leader that stands still");
        cluster.resume(leader);
        kept_on("its return");
        cluster.wait_ready(leader);

        let leader = cluster.wait_leader();
        assert!(cluster.stop(leader).success());
        kept_on("a clean stop");
        cluster.start_member(leader);
        cluster.wait_ready(leader);
        assert_eq!(items(&cluster), before, "round {round}");
    }
    // All at once. Nobody answers meanwhile, and the lease has its full span afterwards.
    for member in 0..cluster.len() {
        cluster.kill(member);
    }
    for member in 0..cluster.len() {
        cluster.start_member(member);
    }
    cluster.wait_all_ready();
    kept_on("a kill of all members");
    assert_eq!(items(&cluster), before);

    stop.store(true, Ordering::Relaxed);
    keeper.join().unwrap();
    let (sent, count) = *last.lock().unwrap();
    let lived = wait_gone(&cluster, &keys[0]) - sent;
    assert!(lived >= TTL, "the last keep-alive was sent {lived:?} before the key was gone, the span is {TTL:?}");
    assert_went_together(&cluster, "kept", keys.len());
    println!("{count} keep-alives were answered; it lived {lived:?} after the last of them was sent");
}

/// What was left of the span under the old leader does not count under the next.
#[test]
fn a_new_leader_gives_a_lease_its_full_span_and_then_ends_it() {
    const TTL: Duration = Duration::from_secs(6);
    const USED: Duration = Duration::from_secs(2);
    let mut cluster = Plan::new(3, 0).steady().start();
    for (round, how) in ["kill", "transfer", "stop"].into_iter().enumerate() {
        let id = round as u64 + 1;
        let keys = names(how, 5);
        grant(&cluster, id, TTL, &keys);
        // A good part of its time is over, and there is enough left to act in.
        let leader = wait_for("time to pass", || {
            let leader = cluster.leader_now()?;
            let seen = http::get(cluster.client(leader), &format!("/v1/leases/{id}"));
            match seen.status {
                200 => match seen.json()["remaining_seconds"].as_f64().unwrap() {
                    left if left <= (TTL - USED).as_secs_f64() => Ok(leader),
                    left => Err(format!("{left} seconds are left")),
                },
                503 => Err(seen.to_string()),
                _ => panic!("{seen}"),
            }
        });
        let began = Instant::now();
        match how {
            "kill" => cluster.kill(leader),
            "stop" => assert!(cluster.stop(leader).success()),
            _ => cluster.let_lead(cluster.follower()),
        }
        let lived = wait_gone(&cluster, &keys[0]) - began;
        assert!(lived >= TTL, "{how}: it lived {lived:?} under the new leader, its span is {TTL:?}");
        assert_went_together(&cluster, how, keys.len());
        println!("{how}: it lived {lived:?} after the old leader was gone");
        if how != "transfer" {
            cluster.start_member(leader);
            cluster.wait_ready(leader);
        }
    }
}

/// Writers hang keys on a lease at all members while it is ended. What was acknowledged goes with it, what comes later is
/// refused, and nothing is left that hangs on a lease which is gone.
#[test]
fn a_lease_is_ended_under_load() {
    const ID: u64 = 7;
    let cluster = Plan::new(3, 1).start();
    grant(&cluster, ID, Duration::from_secs(600), &[]);
    let (written, unknown) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let at = cluster.client(number % cluster.len());
            let (written, unknown) = (written.clone(), unknown.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::open(at).unwrap();
                for count in 0.. {
                    let target = format!("/v1/kv/leased/{number}/{count}?lease={ID}");
                    let answer = Request::new("PUT", &target).body("x").try_send_on(&mut connection).unwrap();
                    match answer.status {
                        201 => drop(written.fetch_add(1, Ordering::Relaxed)),
                        404 => return drop(answer.expect_problem(404, "unknown-lease")),
                        // Nothing was hurt: nothing but a short election may come between.
                        503 => assert_eq!(answer.json()["outcome"], "not-applied", "{answer}"),
                        504 => {
                            assert_eq!(answer.json()["outcome"], "unknown", "{answer}");
                            unknown.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => panic!("{answer}"),
                    }
                }
            })
        })
        .collect();
    wait_for("writes", || match written.load(Ordering::Relaxed) {
        count if count >= 300 => Ok(()),
        count => Err(format!("only {count}")),
    });
    // Two at once: one of them ends it.
    let enders: Vec<_> = [0, 3]
        .map(|member| {
            let at = cluster.client(member);
            std::thread::spawn(move || http::delete(at, &format!("/v1/leases/{ID}")))
        })
        .into_iter()
        .map(|ender| ender.join().unwrap())
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let (ended, others): (Vec<_>, Vec<_>) = enders.into_iter().partition(|answer| answer.status == 200);
    assert_eq!(ended.len(), 1, "{others:?}");
    for other in others {
        other.expect_problem(404, "unknown-lease");
    }
    let deleted = ended[0].json()["deleted"].as_u64().unwrap() as usize;
    let (written, unknown) = (written.load(Ordering::Relaxed), unknown.load(Ordering::Relaxed));
    let possible = written..=written + unknown;
    assert!(
        possible.contains(&deleted),
        "{deleted} went with the lease, {written} were acknowledged, {unknown} unknown"
    );
    assert_eq!(cluster.assert_same_content(), Vec::<String>::new());
}

/// A keep-alive whose answer is looked at later.
struct Sent {
    at: Instant,
    connection: Connection,
}

impl Sent {
    fn send(mut connection: Connection, id: u64) -> Sent {
        let at = Instant::now();
        connection.send(&keep_alive(id).bytes()).unwrap();
        Sent { at, connection }
    }

    /// What it was told, when anything came.
    fn told(&mut self) -> Kept {
        self.connection.read_answer(false).map_or(Kept::Unknown, |answer| told(&answer))
    }
}

/// Waits until the lease is gone and fails if a keep-alive that was answered 200 promised more.
fn assert_promises_kept(cluster: &Cluster, key: &str, ttl: Duration, sent: Vec<Sent>) -> [usize; 3] {
    let gone = std::thread::scope(|scope| {
        let gone = scope.spawn(|| wait_gone(cluster, key));
        let told: Vec<(Instant, Kept)> = sent.into_iter().map(|mut one| (one.at, one.told())).collect();
        (gone.join().unwrap(), told)
    });
    let (gone, told) = gone;
    for (at, kept) in &told {
        let after = gone - *at;
        assert!(
            *kept != Kept::Lives || after >= ttl,
            "gone {after:?} after a keep-alive that was answered 200: {told:?}"
        );
    }
    [Kept::Lives, Kept::Gone, Kept::Unknown].map(|kind| told.iter().filter(|(_, kept)| *kept == kind).count())
}

/// Keep-alives reach a leader right before it stands still, while it does, and when it goes on and does not know yet that
/// another leads, which by then has nearly counted the span to its end. Whatever the old one answers must be true.
#[test]
fn a_stale_leader_promises_nothing_that_the_new_one_does_not_keep() {
    const TTL: Duration = Duration::from_secs(3);
    let mut cluster = Plan::new(3, 0).start();
    for round in 0..4u64 {
        let (id, keys) = (round + 1, names(&format!("stale{round}"), 2));
        grant(&cluster, id, TTL, &keys);
        let old = cluster.wait_leader();
        let open = || Connection::open_within(cluster.client(old), Duration::from_secs(20)).unwrap();
        // The member knows the connections before it stands still.
        let mut known: Vec<Connection> = (0..30).map(|_| open()).collect();
        for connection in &mut known {
            Request::new("GET", "/health/live").try_send_on(connection).unwrap().expect(200);
        }
        let mut sent: Vec<Sent> = known.drain(..10).map(|connection| Sent::send(connection, id)).collect();
        cluster.pause(old);
        sent.extend(known.drain(..10).map(|connection| Sent::send(connection, id)));
        let new = cluster.wait_other_leader(old);
        wait_for("the new leader to have counted nearly to the end", || {
            let answer = http::get(cluster.client(new), &format!("/v1/leases/{id}"));
            match answer.status {
                200 => match answer.json()["remaining_seconds"].as_f64().unwrap() {
                    left if left < 0.3 => Ok(()),
                    left => Err(format!("{left} seconds are left")),
                },
                404 => Ok(()),
                _ => Err(answer.to_string()),
            }
        });
        sent.extend(known.drain(..).map(|connection| Sent::send(connection, id)));
        cluster.resume(old);
        let [lives, gone, unknown] = assert_promises_kept(&cluster, &keys[0], TTL, sent);
        println!("round {round}: {lives} were answered 200, {gone} 404, {unknown} neither");
        cluster.wait_ready(old);
        assert_went_together(&cluster, &format!("stale{round}"), keys.len());
    }
}

/// The span ends while the leader has no quorum, so that the end it proposes may come to pass or not. Until it knows, it
/// says neither that the lease lives nor that it is gone.
#[test]
fn nothing_is_said_of_a_lease_whose_end_is_not_decided() {
    const TTL: Duration = Duration::from_secs(4);
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
    // Elections that are slower than the pause: the leader stays the same, in the same term.
    let plan = Plan::new(3, 0).elections(Duration::from_secs(20), Duration::from_secs(25));
    let mut cluster = plan.flag("--request-timeout-ms", &REQUEST_TIMEOUT.as_millis().to_string()).start();
    for round in 0..3u64 {
        let (id, keys) = (round + 1, names(&format!("undecided{round}"), 2));
        let leader = cluster.wait_leader();
        let others: Vec<usize> = (0..3).filter(|&member| member != leader).collect();
        grant(&cluster, id, TTL, &keys);
        let at = cluster.client(leader);
        // From here on its time is counted.
        let granted = Instant::now();
        http::get(at, &format!("/v1/leases/{id}")).expect(200);
        for &other in &others {
            cluster.pause(other);
        }
        if granted.elapsed() >= TTL {
            println!("round {round}: this machine is too slow, the lease may have ended before");
        }
        let undecided = granted.elapsed() < TTL;
        // A keep-alive would move the deadline, answered or not: its time is over first.
        while granted.elapsed() < TTL + Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Longer than the leader waits for a quorum.
        let mut answers = 0;
        while granted.elapsed() < TTL + REQUEST_TIMEOUT + Duration::from_millis(1500) {
            let told = ask(at, id);
            assert!(told == Kept::Unknown || !undecided, "{told:?} without a quorum");
            answers += 1;
        }
        let mut sent = Vec::new();
        let send = |sent: &mut Vec<Sent>| {
            let connection = Connection::open_within(at, Duration::from_secs(20)).unwrap();
            sent.push(Sent::send(connection, id));
        };
        (0..5).for_each(|_| send(&mut sent));
        for &other in &others {
            cluster.resume(other);
        }
        for _ in 0..40 {
            send(&mut sent);
            std::thread::sleep(Duration::from_millis(5));
        }
        let [lives, gone, unknown] = assert_promises_kept(&cluster, &keys[0], TTL, sent);
        println!(
            "round {round}: {answers} without a quorum; then {lives} were answered 200, {gone} 404, {unknown} neither"
        );
        cluster.wait_all_ready();
        assert_went_together(&cluster, &format!("undecided{round}"), keys.len());
    }
}

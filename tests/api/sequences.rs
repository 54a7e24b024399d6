//! Sequences on real processes: no number twice, whatever becomes of the leader while they are taken.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Request};
use crate::support::{Seed, wait_for};
use serde_json::{Value, json};

/// Takes numbers through any member until it is known what came of it.
fn take(cluster: &Cluster, first: usize, target: &str, key: &str) -> Value {
    let mut member = first;
    wait_for("numbers", || {
        member += 1;
        let at = cluster.client(member % cluster.len());
        let answer = Request::new("POST", target).header("Idempotency-Key", key).try_send(at);
        let answer = answer.map_err(|failure| failure.to_string())?;
        match answer.status {
            200 => Ok(answer.json()),
            503 | 504 => Err(answer.to_string()),
            _ => panic!("{answer}"),
        }
    })
}

#[test]
fn the_contract_of_a_sequence() {
    let cluster = Plan::new(1, 0).start();
    let at = cluster.client(0);
    let post = |target: &str| Request::new("POST", target).send(at);
    assert_eq!(http::get(at, "/v1/seq/a%2Fb").expect_problem(404, "unknown-sequence")["retry"], "never");
    let first = post("/v1/seq/a%2Fb?step=100").expect(200).json();
    let revision = first["revision"].as_u64().unwrap();
    let shown = json!({"revision":revision,"name":"a/b","first":1,"last":1,"count":1,"unique":true,"step":100});
    assert_eq!(first, shown);
    let many = post("/v1/seq/a%2Fb?count=1000000&step=100").expect(200).json();
    assert_eq!((&many["first"], &many["last"], &many["count"]), (&json!(2), &json!(1_000_001), &json!(1_000_000)));
    let state = http::get(at, "/v1/seq/a%2Fb").expect(200).json();
    assert_eq!(
        state,
        json!({"name":"a/b","last":1_000_001,"step":100,"unique":true,"create_revision":revision,
            "mod_revision":revision + 1,"jump_count":0,"jumps":[]})
    );
    http::get(at, "/v1/seq/a%2Fb?consistency=stale").expect(200).must_have("lifeboat-lag-seconds");
    assert_eq!(post("/v1/seq/a%2Fb?step=101").expect_problem(409, "sequence-step")["field"], "step");
    for (target, kind, field) in [
        ("/v1/seq/a?count=0", "bad-parameter", "count"),
        ("/v1/seq/a?count=1000001", "bad-parameter", "count"),
        ("/v1/seq/a?step=0", "bad-parameter", "step"),
        ("/v1/seq/a?stop=1", "bad-parameter", "stop"),
        ("/v1/seq/%ff", "bad-key", "name"),
        (&*format!("/v1/seq/{}", "n".repeat(257)), "bad-key", "name"),
    ] {
        let problem = post(target).expect_problem(400, kind);
        assert_eq!((&problem["field"], &problem["outcome"]), (&json!(field), &json!("not-applied")), "{target}");
    }
    Request::new("POST", "/v1/seq/a").body("5").send(at).expect_problem(413, "too-large");
    http::get(at, "/v1/seq/a").expect_problem(404, "unknown-sequence");
    // The same request under the same key is the same request; with another count it is another.
    let keyed = |target: &str| Request::new("POST", target).header("Idempotency-Key", "once").send(at);
    let once = keyed("/v1/seq/k?count=3").expect(200);
    let again = keyed("/v1/seq/k?count=3").expect(200);
    assert_eq!((again.must_have("lifeboat-replayed"), again.json()), ("true", once.json()));
    keyed("/v1/seq/k?count=4").expect_problem(422, "idempotency-mismatch");
    assert_eq!(post("/v1/seq/k").expect(200).json()["first"], 4);
}

#[test]
fn no_number_is_given_out_twice_while_leaders_die_hand_over_and_come_back() {
    const TAKERS: usize = 4;
    const ENOUGH: usize = 60;
    let seed = Seed::for_test("sequences");
    let mut cluster = Plan::new(3, 0).start();
    let run: u64 = rand::Rng::random(&mut seed.rng(0));
    let taken = Mutex::new(BTreeMap::new());
    let (done, stop) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    // Threads borrow the addresses, and the faults need the cluster.
    let addresses: Vec<_> = (0..3).map(|member| cluster.client(member)).collect();
    std::thread::scope(|scope| {
        for taker in 0..TAKERS {
            let (taken, done, stop, addresses) = (&taken, &done, &stop, &addresses);
            scope.spawn(move || {
                let mut number = 0;
                while done.load(Ordering::Relaxed) < stop.load(Ordering::Relaxed) {
                    let (key, count) = (format!("{run}-{taker}-{number}"), 1 + number % 5);
                    let target = format!("/v1/seq/orders?count={count}");
                    let mut member = taker;
                    let reply = wait_for("numbers", || {
                        member += 1;
                        let request = Request::new("POST", &target).header("Idempotency-Key", &key);
                        let answer = request.try_send(addresses[member % 3]).map_err(|failure| failure.to_string())?;
                        match answer.status {
                            200 => Ok(answer.json()),
                            503 | 504 => Err(answer.to_string()),
                            _ => panic!("{answer}"),
                        }
                    });
                    assert_eq!((&reply["unique"], &reply["count"]), (&json!(true), &json!(count)), "{reply}");
                    let (first, last) = (reply["first"].as_u64().unwrap(), reply["last"].as_u64().unwrap());
                    let mut taken = taken.lock().unwrap();
                    for number in first..=last {
                        let other = taken.insert(number, key.clone());
                        assert_eq!(other, None, "{number} was given to {key} too");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    number += 1;
                }
            });
        }
        let more = |wanted: usize| {
            let from = done.load(Ordering::Relaxed);
            wait_for("numbers to be taken", || match done.load(Ordering::Relaxed) - from {
                enough if enough >= wanted => Ok(()),
                few => Err(format!("{few} of {wanted}")),
            });
        };
        more(ENOUGH);
        let leader = cluster.wait_leader();
        cluster.kill(leader);
        cluster.wait_other_leader(leader);
        more(ENOUGH);
        cluster.start_member(leader);
        cluster.wait_ready(leader);
        cluster.let_lead(leader);
        more(ENOUGH);
        stop.store(0, Ordering::Relaxed);
    });
    let taken = taken.into_inner().unwrap();
    let (last, count) = (*taken.keys().next_back().unwrap(), taken.len() as u64);
    assert_eq!(last, count, "every number was answered, so there is no gap");
    for member in 0..3 {
        let state = http::get(cluster.client(member), "/v1/seq/orders").expect(200).json();
        let seen = (&state["last"], &state["unique"], &state["jump_count"]);
        assert_eq!(seen, (&json!(last), &json!(true), &json!(0)), "{state}");
    }
    // All at once go and come back.
    for member in 0..3 {
        cluster.kill(member);
    }
    for member in 0..3 {
        cluster.start_member(member);
    }
    cluster.wait_all_ready();
    let next = take(&cluster, 0, "/v1/seq/orders", &format!("{run}-after"));
    assert_eq!((&next["first"], &next["unique"]), (&json!(last + 1), &json!(true)));
}

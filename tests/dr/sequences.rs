//! Sequences where the primary site moves or is lost: over a switchover no number is given out twice and every reply says
//! so; over a forced failover they jump past what the lost site gave out behind a cut link, and no reply claims more than
//! is known.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{force_and_wait, tell_to_rejoin, wait_home, wait_role};
use crate::support::http::{self, Request};
use crate::support::switchover::move_to;
use crate::support::wait_for;
use serde_json::{Value, json};

/// The members: the only voter, in east, and the mirror in west.
const EAST: usize = 0;
const WEST: usize = 1;

fn sites() -> Cluster {
    let plan = Plan::new(1, 1).linked();
    plan.quick().start()
}

/// Takes numbers at a member, by the same key until it is known what came of it.
fn take(at: std::net::SocketAddr, target: &str, key: &str) -> Value {
    wait_for("numbers", || {
        let answer = Request::new("POST", target).header("Idempotency-Key", key).try_send(at);
        let answer = answer.map_err(|failure| failure.to_string())?;
        match answer.status {
            200 => Ok(answer.json()),
            503 | 504 => Err(answer.to_string()),
            _ => panic!("{answer}"),
        }
    })
}

fn state(cluster: &Cluster, member: usize, name: &str) -> Value {
    wait_for("the state of a sequence", || {
        let answer = http::get(cluster.client(member), &format!("/v1/seq/{name}"));
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.to_string()) }
    })
}

#[test]
fn numbers_are_unique_over_a_switchover_there_and_back() {
    const ENOUGH: usize = 20;
    let cluster = sites();
    wait_for("the feature level to rise", || {
        let level = cluster.status(EAST)?["feature_level"].as_u64();
        if level >= Some(3) { Ok(()) } else { Err(format!("{level:?}")) }
    });
    let (taken, done, stop) = (Mutex::new(BTreeMap::new()), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (taker, at) in cluster.clients().into_iter().enumerate() {
            let (taken, done, stop) = (&taken, &done, &stop);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("{taker}-{round}");
                    let reply = take(at, "/v1/seq/orders?count=3", &key);
                    assert_eq!((&reply["unique"], &reply["note"]), (&json!(true), &Value::Null), "{reply}");
                    let mut taken = taken.lock().unwrap();
                    for number in reply["first"].as_u64().unwrap()..=reply["last"].as_u64().unwrap() {
                        let other = taken.insert(number, key.clone());
                        assert_eq!(other, None, "{number} was given to {key} too");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Before, between and behind; a taker that fails ends the wait as well.
        let more = || {
            let from = done.load(Ordering::Relaxed);
            wait_for("numbers to be taken", || match done.load(Ordering::Relaxed) - from {
                enough if enough >= ENOUGH => Ok(()),
                few => Err(format!("{few} of {ENOUGH}")),
            });
        };
        for (site, leads) in [("west", WEST), ("east", EAST)] {
            more();
            move_to(&cluster, WEST, &json!({ "to_site": site }));
            wait_for(&format!("{site} to be the primary site"), || match cluster.leader_now()? {
                leader if leader == leads => Ok(()),
                leader => Err(cluster.member(leader).name.clone()),
            });
        }
        more();
        stop.store(true, Ordering::Relaxed);
    });
    let taken = taken.into_inner().unwrap();
    let (last, count) = (*taken.keys().next_back().unwrap(), taken.len() as u64);
    assert_eq!(last, count, "every number was answered, so there is no gap");
    for member in [EAST, WEST] {
        let state = state(&cluster, member, "orders");
        let seen = (&state["last"], &state["unique"], &state["jump_count"], &state["jumps"]);
        assert_eq!(seen, (&json!(last), &json!(true), &json!(0), &json!([])), "{state}");
    }
}

#[test]
fn over_a_forced_failover_they_jump_past_what_the_lost_site_gave_out() {
    let cluster = sites();
    let [east, west] = [EAST, WEST].map(|member| cluster.client(member));
    assert_eq!(take(east, "/v1/seq/orders?count=5&step=1000", "1")["last"], 5);
    cluster.wait_converged();
    cluster.link().cut();
    // What only the lost site knows: more of a sequence that both have, and one that west has never heard of.
    let behind = take(east, "/v1/seq/orders?count=900", "2");
    assert_eq!((&behind["first"], &behind["last"], &behind["unique"]), (&json!(6), &json!(905), &json!(true)));
    let unheard = take(east, "/v1/seq/unheard?count=700&step=1000", "3");
    assert_eq!((&unheard["last"], &unheard["unique"]), (&json!(700), &json!(true)), "{unheard}");
    let forced = force_and_wait(&cluster, WEST, &json!({ "accept_data_loss": true }));

    let not_proven = |reply: &Value| {
        let (note, only_if) =
            (reply["note"].as_str().unwrap_or_default(), "only if a lost site gave out more than 1000");
        assert!(reply["unique"] == false && note.contains(only_if), "{reply}");
    };
    for (name, from, lost) in [("orders", 5, &behind), ("unheard", 0, &unheard)] {
        let next = take(west, &format!("/v1/seq/{name}?count=2&step=1000"), name);
        assert_eq!(next["first"], from + 1001, "{next}");
        assert!(next["first"].as_u64() > lost["last"].as_u64(), "{next} repeats what the lost site gave out: {lost}");
        not_proven(&next);
        let seen = state(&cluster, WEST, name);
        not_proven(&seen);
        let jump = &seen["jumps"][0];
        assert_eq!((&seen["jump_count"], seen["jumps"].as_array().unwrap().len()), (&json!(1), 1), "{seen}");
        let numbers = (&jump["from"], &jump["to"], &jump["timeline"], &jump["timeline_id"]);
        assert_eq!(numbers, (&json!(from), &json!(from + 1000), &json!(2), &forced["timeline"]), "{seen}");
        // It jumps once, and goes on saying so.
        let further = take(west, &format!("/v1/seq/{name}"), &format!("{name}-further"));
        assert_eq!(further["first"], from + 1003, "{further}");
        not_proven(&further);
    }

    // The old site gives out nothing more, and says the same once it is home.
    cluster.link().heal();
    wait_role(&cluster, EAST, "fenced");
    Request::new("POST", "/v1/seq/orders").send(east).expect_problem(421, "fenced");
    tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, WEST);
    let seen = state(&cluster, EAST, "orders");
    assert_eq!((&seen["last"], &seen["jump_count"]), (&json!(1008), &json!(1)), "{seen}");
    assert_eq!(take(east, "/v1/seq/orders", "home")["first"], 1009);
}

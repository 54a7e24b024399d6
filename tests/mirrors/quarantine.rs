//! Quarantine as others see it: while a member repairs itself, the leader shows it QUARANTINED in the API, the metric, the
//! events and webhooks, and its clients are told so; and a leader that is itself the one who is wrong is found by the
//! others, hands over and is repaired, and nothing that was acknowledged is lost.
//!
//! A repair takes less than a second, so the member is held in it by `src/crash_points.rs`. Real processes.

use std::collections::BTreeMap;

use crate::support::cluster::{Cluster, Plan};
use crate::support::damage::{records, segments};
use crate::support::http::{self, Request};
use crate::support::link::Way;
use crate::support::mirrors::{
    Hook, MIRROR, apply_something_else, assert_metric_of, member, replication, see_change, steer, wait_state,
    wait_state_of, write,
};
use crate::support::wait_for;
use serde_json::Value;

/// Where a repair is held.
const IN_REPAIR: &str = "repair-before-pull";

/// What a member in quarantine answers to its clients.
fn assert_serves_nothing(cluster: &Cluster, at: usize) {
    let address = cluster.client(at);
    for target in ["/v1/kv/k%2F0?consistency=stale", "/v1/kv/k%2F0", "/v1/keys"] {
        http::get(address, target).expect_problem(503, "quarantined");
    }
    http::put(address, "/v1/kv/k%2F0", "x").expect_problem(503, "quarantined");
    let ready = http::get(address, "/health/ready");
    assert!(ready.status == 503 && ready.text().contains("quarantine"), "{ready}");
}

fn wait_events(cluster: &Cluster, at: usize, kinds: &[&str]) -> Vec<Value> {
    wait_for(&format!("the events {kinds:?}"), || {
        let answer = Request::new("GET", "/v1/events").try_send(cluster.client(at)).map_err(|e| e.to_string())?;
        if answer.status != 200 {
            return Err(answer.to_string());
        }
        let events = answer.json()["events"].as_array().unwrap().clone();
        let found = |kind: &&str| events.iter().rev().find(|event| event["kind"] == **kind).cloned();
        kinds.iter().map(found).collect::<Option<Vec<_>>>().ok_or_else(|| format!("{events:?}"))
    })
}

#[test]
fn a_mirror_in_its_repair_is_quarantined_in_the_api_the_metric_the_events_and_a_webhook() {
    let (url, mut hook) = Hook::new();
    // Without canaries, the next entry is the one that the test writes.
    let mut cluster = Plan::new(3, 1)
        .steady()
        .with_points()
        .linked()
        .flag("--canary-interval-ms", "0")
        .flag("--webhooks", &url)
        .start();
    wait_state(&cluster, "SYNCHRONIZED");
    for n in 0..20 {
        write(&cluster, &format!("k%2F{n}"), "1");
    }
    cluster.wait_converged();
    assert!(cluster.stop(MIRROR).success());
    apply_something_else(&cluster.member(MIRROR).data.clone());
    write(&cluster, "k%2F0", "2");
    cluster.arm_hold(IN_REPAIR);
    cluster.start_member(MIRROR);
    cluster.wait_held(IN_REPAIR);

    let found = see_change(&cluster, &mut hook, "n4", "", "QUARANTINED");
    assert!(found["reason"].as_str().unwrap().contains("chain hash at position"), "{found}");
    // It is the same whoever is asked, and stays so for as long as the repair takes.
    let told = member(&replication(&cluster, cluster.follower()), "n4");
    assert_eq!(told["state"], "QUARANTINED", "{told}");
    let dr = http::get(cluster.client(0), "/v1/dr").expect(200).json();
    assert!(dr["plan"].to_string().contains("n4"), "{dr}");
    assert_serves_nothing(&cluster, MIRROR);

    // What is written while the copy is on its way is lacking when the repair is done.
    cluster.link().rate(Way::ToWest, Some(64 << 10));
    for n in 0..6 {
        let noise: Vec<u8> = (0..32 << 10).map(|_| rand::random()).collect();
        write(&cluster, &format!("big%2F{n}"), noise);
    }
    cluster.release(IN_REPAIR);
    wait_for("the mirror to answer again", || {
        write(&cluster, "k%2F1", "2");
        let found = member(&replication(&cluster, cluster.wait_leader()), "n4");
        if found["state"] == "QUARANTINED" { Err(found.to_string()) } else { Ok(()) }
    });
    see_change(&cluster, &mut hook, "n4", "QUARANTINED", "SYNCHRONIZING");
    cluster.link().rate(Way::ToWest, None);
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZING", "SYNCHRONIZED");
    // Its own events are there when it is back.
    let told = wait_events(&cluster, MIRROR, &["quarantined", "repaired"]);
    assert!(told[0]["detail"].as_str().unwrap().contains("chain hash at position"), "{told:?}");
    cluster.wait_converged();
    cluster.assert_same_content();
    assert_eq!(http::get(cluster.client(MIRROR), "/v1/kv/from%2Fnowhere?consistency=stale").status, 404);
}

/// Flips a byte of a record that is sealed on the mirror.
fn damage_the_mirror(cluster: &Cluster) {
    let newest = segments(&cluster.member(MIRROR).data).pop().unwrap();
    records(&newest).pop().unwrap().flip();
}

#[test]
fn a_mirror_goes_from_each_state_into_quarantine_and_all_changes_are_seen() {
    let (url, mut hook) = Hook::new();
    let mut cluster =
        Plan::new(3, 1).steady().with_points().flag("--canary-interval-ms", "0").flag("--webhooks", &url).start();
    wait_state(&cluster, "SYNCHRONIZED");
    for n in 0..20 {
        write(&cluster, &format!("k%2F{n}"), "1");
    }
    cluster.wait_converged();
    // A stop seals what it holds.
    assert!(cluster.stop(MIRROR).success());
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZED", "DISCONNECTED");
    steer(&cluster, "suspend");
    see_change(&cluster, &mut hook, "n4", "DISCONNECTED", "SUSPENDED");
    steer(&cluster, "resume");
    see_change(&cluster, &mut hook, "n4", "SUSPENDED", "DISCONNECTED");

    // It finds the damage when it starts.
    damage_the_mirror(&cluster);
    cluster.arm_hold(IN_REPAIR);
    cluster.start_member(MIRROR);
    cluster.wait_held(IN_REPAIR);
    let found = see_change(&cluster, &mut hook, "n4", "DISCONNECTED", "QUARANTINED");
    assert!(found["reason"].as_str().unwrap().contains(".seg"), "{found}");
    // What is worse is shown, and what was said of it meanwhile holds afterwards.
    steer(&cluster, "suspend");
    assert_serves_nothing(&cluster, MIRROR);
    assert_eq!(member(&replication(&cluster, cluster.wait_leader()), "n4")["state"], "QUARANTINED");
    cluster.release(IN_REPAIR);
    see_change(&cluster, &mut hook, "n4", "QUARANTINED", "SUSPENDED");
    steer(&cluster, "resume");
    wait_state(&cluster, "SYNCHRONIZED");

    // It finds the damage when it is asked to look, while it follows and while it is suspended.
    for from in ["SYNCHRONIZED", "SUSPENDED"] {
        assert!(cluster.stop(MIRROR).success());
        cluster.arm_hold(IN_REPAIR);
        cluster.start_member(MIRROR);
        cluster.wait_ready(MIRROR);
        wait_state(&cluster, "SYNCHRONIZED");
        if from == "SUSPENDED" {
            hook.forget();
            steer(&cluster, "suspend");
            // Not only shown: the leader must have looked, or it goes from what was before.
            see_change(&cluster, &mut hook, "n4", "SYNCHRONIZED", from);
        }
        hook.forget();
        damage_the_mirror(&cluster);
        let verify = Request::new("GET", "/v1/verify").header("Accept", "application/json");
        let report = verify.send(cluster.client(cluster.wait_leader())).expect(200).json();
        assert_eq!(report["agreed"], false, "{report}");
        cluster.wait_held(IN_REPAIR);
        // What it posts itself.
        hook.wait("the mirror's own quarantine", |event| event["kind"] == "quarantined" && event["member"] == "n4");
        see_change(&cluster, &mut hook, "n4", from, "QUARANTINED");
        cluster.release(IN_REPAIR);
        wait_events(&cluster, MIRROR, &["quarantined", "repaired"]);
        if from == "SUSPENDED" {
            see_change(&cluster, &mut hook, "n4", "QUARANTINED", "SUSPENDED");
            steer(&cluster, "resume");
        }
        wait_state(&cluster, "SYNCHRONIZED");
    }
    cluster.wait_converged();
    cluster.assert_same_content();
}

/// The leader itself has applied something else than all others: the majority of the chain hashes says so.
#[test]
fn a_leader_in_the_minority_of_chain_hashes_hands_over_and_is_repaired_and_nothing_acknowledged_is_lost() {
    let (url, mut hook) = Hook::new();
    let mut cluster = Plan::new(3, 1).with_points().flag("--canary-interval-ms", "0").flag("--webhooks", &url).start();
    wait_state(&cluster, "SYNCHRONIZED");
    let mut acknowledged = BTreeMap::new();
    let mut put = |cluster: &Cluster, at: usize, key: &str, value: &str| {
        cluster.put_until_done(at, key, value);
        acknowledged.insert(key.to_owned(), value.to_owned());
    };
    for n in 0..20 {
        put(&cluster, 0, &format!("before/{n}"), "1");
    }
    cluster.wait_converged();
    let leader = cluster.wait_leader();
    let mut followers = (0..3).filter(|at| *at != leader);
    let (wrong, short) = (followers.next().unwrap(), followers.next().unwrap());
    // What it holds is sealed up to here; what comes now is in the logs of all, and will be applied again from there.
    assert!(cluster.stop(wrong).success());
    cluster.start_member(wrong);
    cluster.wait_ready(wrong);
    for n in 0..20 {
        put(&cluster, leader, &format!("logged/{n}"), "1");
    }
    cluster.wait_converged();
    // The log of `wrong` is the longest of the two that will vote first, so that one must lead.
    cluster.kill(short);
    put(&cluster, leader, "short/of", "1");
    wait_for("the mirror and the member that will be wrong to have it all", || {
        let index = |at: usize| Ok::<_, String>(cluster.status(at)?["applied_index"].as_u64());
        let indexes = [index(leader)?, index(wrong)?, index(MIRROR)?];
        if indexes.iter().all(|index| *index == indexes[0]) { Ok(()) } else { Err(format!("{indexes:?}")) }
    });
    cluster.kill(wrong);
    cluster.kill(leader);
    apply_something_else(&cluster.member(wrong).data.clone());
    cluster.arm_hold(IN_REPAIR);
    cluster.start_member(wrong);
    cluster.start_member(short);
    cluster.wait_held(IN_REPAIR);
    let log = cluster.member(wrong).log_text();
    assert!(log.contains("disagrees with that of 2 other members"), "it has led and was found: {log}");
    assert_serves_nothing(&cluster, wrong);
    // The others go on without it.
    cluster.start_member(leader);
    put(&cluster, short, "without/it", "1");
    let name = cluster.member(wrong).name.clone();
    assert_ne!(cluster.wait_leader(), wrong);
    let found = wait_state_of(&cluster, &name, "QUARANTINED");
    assert!(found["reason"].as_str().unwrap().contains("disagrees with that of 2 other members"), "{found}");
    assert_metric_of(&cluster, &name, "QUARANTINED");
    see_change(&cluster, &mut hook, &name, "", "QUARANTINED");
    cluster.release(IN_REPAIR);
    let told = wait_events(&cluster, wrong, &["quarantined", "repaired"]);
    assert!(told[0]["detail"].as_str().unwrap().contains("disagrees with that of 2 other members"), "{told:?}");
    cluster.wait_all_ready();
    put(&cluster, wrong, "after", "1");
    cluster.wait_converged();
    cluster.assert_same_content();
    for at in 0..4 {
        for (key, value) in &acknowledged {
            assert_eq!(cluster.get(at, key).as_ref(), Some(value), "{key} at {at}");
        }
        assert_eq!(cluster.get(at, "from/nowhere"), None);
    }
    let verify = || Request::new("GET", "/v1/verify").header("Accept", "application/json").send(cluster.client(0));
    let report = verify().expect(200).json();
    assert_eq!(report["agreed"], true, "{report}");
}

//! Members that are all started alike and come to one cluster by themselves: `--bootstrap-expect` and `--discover`. Real
//! processes; `src/node/founding/tests` lives through thousands of orders of the protocol and hundreds of the whole loop.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::address::Addresses;
use crate::support::cluster::{Cluster, Plan};
use crate::support::http;
use crate::support::scrape::Metrics;
use crate::support::{Seed, wait_for};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::Value;

/// Random orders in which a cluster is founded; `LIFEBOAT_TEST_ROUNDS` sets another number.
const ROUNDS: u32 = 12;
/// So many of them at the same time: they mostly wait.
const AT_ONCE: usize = 2;
/// The longest pause between two things that happen to members that found a cluster.
const LONGEST_PAUSE_MS: u64 = 300;

/// Members that all have the same flags but for their names and addresses: `expect` found a cluster.
fn alike(voters: usize, mirrors: usize, expect: usize) -> Cluster {
    let mut cluster = Plan::new(voters, mirrors).prepare();
    let places: Vec<SocketAddr> = (0..voters).map(|member| cluster.member(member).peer).collect();
    for member in 0..cluster.len() {
        set_flags(&mut cluster, member, expect, &places);
    }
    cluster
}

fn set_flags(cluster: &mut Cluster, member: usize, expect: usize, places: &[SocketAddr]) {
    let arguments = &mut cluster.member_mut(member).arguments;
    arguments.retain(|argument| argument != "--bootstrap");
    for flag in ["--join", "--discover", "--bootstrap-expect"] {
        while let Some(at) = arguments.iter().position(|argument| argument == flag) {
            arguments.drain(at..at + 2);
        }
    }
    arguments.extend(["--bootstrap-expect".into(), expect.to_string()]);
    for (number, place) in places.iter().enumerate() {
        // Both forms mean the same for one address.
        let place = if number % 2 == 0 { place.to_string() } else { format!("dns:{}:{}", place.ip(), place.port()) };
        arguments.extend(["--discover".into(), place]);
    }
}

fn cluster_id(cluster: &Cluster, member: usize) -> String {
    let status = cluster.status_now(member);
    status["cluster"]["id"].as_str().unwrap_or_else(|| panic!("no cluster: {status}")).to_string()
}

/// Fails unless all that run belong to one cluster, in which `count` members are, and which works.
fn assert_one_cluster(cluster: &mut Cluster, count: usize) {
    cluster.wait_joined();
    let running = cluster.running();
    let ids: Vec<String> = running.iter().map(|member| cluster_id(cluster, *member)).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "more than one cluster: {ids:?}");
    for &member in &running {
        let members = cluster.status_now(member)["members"].clone();
        assert_eq!(members.as_array().unwrap().len(), count, "{members}");
    }
    cluster.put_until_done(running[0], "a", "1");
    assert_eq!(cluster.get(running[running.len() - 1], "a").as_deref(), Some("1"));
}

#[test]
fn one_cluster_comes_of_any_order_with_kills_restarts_and_lost_disks() {
    let seed = Seed::for_test("one_cluster_comes_of_any_order_with_kills_restarts_and_lost_disks");
    let rounds = std::env::var("LIFEBOAT_TEST_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"));
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let round = next.fetch_add(1, Ordering::Relaxed);
                    if round >= rounds {
                        return;
                    }
                    one_order(seed.rng(u64::from(round)), round.is_multiple_of(3));
                }
            });
        }
    });
}

/// Members found a cluster in a random order. One of them may lose its disk, at any time.
fn one_order(mut rng: StdRng, loses_a_disk: bool) {
    let voters = rng.random_range(3..=4);
    let mut cluster = alike(voters, usize::from(rng.random_bool(0.3)), 3);
    let all = cluster.len();
    let events = rng.random_range(all..4 * all);
    let lost = loses_a_disk.then(|| (rng.random_range(events / 2..events), rng.random_range(0..voters)));
    for event in 0..events {
        let member = match lost {
            Some((at, member)) if at == event => {
                if cluster.member(member).process_id().is_some() {
                    cluster.kill(member);
                }
                let data = cluster.member(member).data.clone();
                if data.exists() {
                    std::fs::rename(data, cluster.path().join("lost")).unwrap();
                }
                member
            }
            _ => rng.random_range(0..all),
        };
        match cluster.member(member).process_id() {
            None => cluster.start_member(member),
            Some(_) if rng.random_bool(0.3) => cluster.kill(member),
            Some(_) => {}
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..LONGEST_PAUSE_MS)));
    }
    let mut order: Vec<usize> = (0..all).collect();
    order.shuffle(&mut rng);
    for member in order {
        if cluster.member(member).process_id().is_none() {
            cluster.start_member(member);
        }
    }
    assert_one_cluster(&mut cluster, all);
}

#[test]
fn fewer_than_expected_found_nothing_and_say_what_they_wait_for() {
    let mut cluster = alike(3, 1, 3);
    for member in [0, 1, 3] {
        cluster.start_member(member);
    }
    for member in [0, 1] {
        wait_for("it to say how many are there", || {
            let log = cluster.member(member).log_text();
            if log.contains("2 of 3 expected voters are here") { Ok(()) } else { Err(log) }
        });
        assert_eq!(http::get(cluster.client(member), "/health/live").status, 200);
        assert_eq!(http::get(cluster.client(member), "/health/ready").status, 503);
        let refused = http::put(cluster.client(member), "/v1/kv/a", "1").expect_problem(503, "not-joined");
        assert_eq!(refused["outcome"], "not-applied");
        Metrics::of(cluster.client(member)).assert_cannot_serve(false, false);
    }
    cluster.start_member(2);
    assert_one_cluster(&mut cluster, 4);
}

#[test]
fn later_members_and_restarts_with_the_same_flags_find_the_cluster() {
    let mut cluster = alike(3, 0, 2);
    // A third place would be waited for: a cluster may live there.
    let founders: Vec<SocketAddr> = (0..2).map(|member| cluster.member(member).peer).collect();
    for member in 0..3 {
        set_flags(&mut cluster, member, 2, &founders);
    }
    cluster.start_member(0);
    cluster.start_member(1);
    assert_one_cluster(&mut cluster, 2);
    let id = cluster_id(&cluster, 0);

    // The third voter and one of whom nobody knew have the same flags; all stop and come back.
    cluster.start_member(2);
    assert_one_cluster(&mut cluster, 3);
    let places: Vec<SocketAddr> = (0..3).map(|member| cluster.member(member).peer).collect();
    let fourth = cluster.add_member("mirror", "west");
    set_flags(&mut cluster, fourth, 2, &places);
    cluster.start_member(fourth);
    assert_one_cluster(&mut cluster, 4);
    for member in 0..4 {
        cluster.kill(member);
    }
    for member in [3, 1, 0, 2] {
        cluster.start_member(member);
    }
    assert_one_cluster(&mut cluster, 4);

    // One that lost its disk finds the cluster too, and two that are empty found no other beside it.
    cluster.kill(1);
    std::fs::rename(&cluster.member(1).data, cluster.path().join("lost")).unwrap();
    cluster.start_member(1);
    assert_one_cluster(&mut cluster, 4);
    let status = cluster.status_now(1);
    let again: Vec<&Value> = status["members"].as_array().unwrap().iter().filter(|m| m["name"] == "n2").collect();
    assert_eq!(again.len(), 1, "{status}");
    assert!((0..4).all(|member| cluster_id(&cluster, member) == id), "a second cluster was founded");
}

#[test]
fn all_members_may_come_back_at_new_addresses_at_once() {
    let mut cluster = alike(3, 1, 3);
    for member in 0..4 {
        cluster.start_member(member);
    }
    assert_one_cluster(&mut cluster, 4);
    let id = cluster_id(&cluster, 0);
    cluster.put_until_done(0, "before", "1");
    for member in 0..4 {
        cluster.kill(member);
    }
    let elsewhere = Addresses::reserve();
    let places: Vec<SocketAddr> = (0..3).map(|member| elsewhere.peer(member)).collect();
    for number in 0..4 {
        let (client, peer) = (elsewhere.client(number), elsewhere.peer(number));
        let member = cluster.member_mut(number);
        for (flag, address) in [("--client-listen", client), ("--peer-listen", peer)] {
            let at = member.arguments.iter().position(|argument| argument == flag).unwrap();
            member.arguments[at + 1] = address.to_string();
        }
        (member.client, member.peer) = (client, peer);
        set_flags(&mut cluster, number, 3, &places);
    }
    for member in 0..4 {
        cluster.start_member(member);
    }
    assert_one_cluster(&mut cluster, 4);
    assert_eq!(cluster_id(&cluster, 3), id);
    assert_eq!(cluster.get(3, "before").as_deref(), Some("1"));
    // The membership names the new addresses in the end.
    wait_for("all to know the new addresses", || {
        for viewer in 0..4 {
            let members = cluster.status(viewer)?["members"].clone();
            for number in 0..4 {
                let member = cluster.member(number);
                let known = members.as_array().unwrap().iter().find(|known| known["name"] == *member.name).unwrap();
                if known["peer_url"] != format!("http://{}", member.peer)
                    || known["client_url"] != format!("http://{}", member.client)
                {
                    return Err(known.to_string());
                }
            }
        }
        Ok(())
    });
}

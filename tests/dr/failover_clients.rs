//! Clients that record what they are told, while their primary site is lost and another one is forced: what they were told
//! is judged on each timeline by itself, and the new one begins with a prefix of the old.
//!
//! Once the site is killed. Once only the link is cut: then both sites acknowledge writes for a while, one on each timeline,
//! until the link heals and the old site is fenced.

use std::time::Duration;

use crate::support;
use crate::support::Seed;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    assert_one_timeline, force, force_and_wait, role, salvaged, tell_to_rejoin, timeline_number, wait_home, wait_role,
};
use crate::support::http::{Connection, Request};
use crate::support::timelines::{Fork, JournalFate, fork_revision, id};
use crate::support::wait_for;
use crate::support::workload::{Load, Outcome};
use serde_json::json;

/// Acknowledged writes before, between and after the faults.
const PROGRESS: u64 = 80;
/// The members of the site `east`, and the first of `west`.
const EAST: [usize; 3] = [0, 1, 2];
const WEST: usize = 3;

/// What a member of the new timeline holds at the fork, and the rest of what is to be known of it.
fn fork(cluster: &Cluster, old: u128, new: u128, ordered: i64) -> Fork {
    let revision = fork_revision(cluster, WEST);
    let status = cluster.status(WEST).unwrap();
    let base = (status["revision"].as_u64().unwrap() >> 32) << 32;
    let content = cluster.content(WEST, revision);
    Fork { old, new, revision, base, content, ordered, lost: EAST.into() }
}

/// Waits until a mirror has all that was written until now.
fn wait_has(cluster: &Cluster, mirror: usize) {
    let revision = |member: usize| cluster.status(member).map(|status| status["revision"].as_u64().unwrap());
    let written = wait_for("the leader to say what is written", || revision(cluster.leader_now()?));
    wait_for("the mirror to have it", || match revision(mirror)? {
        has if has >= written => Ok(()),
        has => Err(format!("{has} of {written}")),
    });
}

#[track_caller]
fn judged(fork: &Fork, outcome: &Outcome, content: &[String], cluster: &Cluster) -> JournalFate {
    let Outcome { history, journal, .. } = outcome;
    let fate = fork.judge(history, journal, content, Some(cluster.path())).unwrap_or_else(|why| panic!("{why}"));
    println!("all: {}; {} writes are behind the fork", history.summary(), fork.lost(history));
    println!("journal: {} kept, {} lost, {} new", fate.kept, fate.lost.len(), fate.written);
    fate
}

/// All that the lost site acknowledged and the new timeline lacks is in the salvage files of its members.
#[track_caller]
fn assert_salvaged(cluster: &Cluster, lost: impl Iterator<Item = (String, u64)>) {
    let found = salvaged(cluster, &EAST);
    for (key, revision) in lost {
        let is_there = |(name, fate, at): &(String, String, u64)| {
            *name == key && (*at == revision && fate == "applied" || fate == "unknown")
        };
        assert!(found.iter().any(is_there), "{key} of revision {revision} is in no salvage file");
    }
}

#[test]
fn clients_stay_linearizable_within_each_timeline_when_the_site_is_killed() {
    let seed = Seed::for_test("clients_stay_linearizable_within_each_timeline_when_the_site_is_killed");
    let mut cluster = Plan::new(3, 1).linked().start();
    // What is on its way when the site dies is lost with it.
    cluster.link().delay(Duration::from_millis(50));
    let old = id(&cluster.status(WEST).unwrap()["cluster"]["timeline"]["id"]);
    let load = Load::start(&seed, cluster.clients());
    load.wait_progress(PROGRESS);
    wait_has(&cluster, WEST);
    let leader = cluster.wait_leader();
    cluster.kill(leader);
    for member in EAST.into_iter().filter(|member| *member != leader) {
        cluster.kill(member);
    }
    let ordered = load.now();
    let reply = force_and_wait(&cluster, WEST, &json!({ "accept_data_loss": true }));
    load.wait_progress(PROGRESS);
    for member in EAST {
        cluster.start_member(member);
    }
    for member in EAST {
        wait_role(&cluster, member, "fenced");
    }
    load.wait_progress(PROGRESS);
    let mut outcome = load.finish();
    outcome.read_all(cluster.client(WEST));
    let fork = fork(&cluster, old, id(&reply["timeline"]), ordered);
    for member in EAST {
        tell_to_rejoin(&cluster, member);
    }
    for member in EAST {
        wait_home(&cluster, member, WEST);
    }
    let content = assert_one_timeline(&cluster, WEST);
    let fate = judged(&fork, &outcome, &content, &cluster);
    assert!(fate.kept > 5 && fate.written > 10, "the journal is too short to prove anything");
    assert_salvaged(&cluster, fate.lost.into_iter());
}

#[test]
fn clients_stay_linearizable_within_each_timeline_when_both_sites_serve_on_either_side_of_a_cut_link() {
    let seed = Seed::for_test("clients_stay_linearizable_when_both_sites_serve");
    let cluster = Plan::new(3, 2).linked().start();
    let old = id(&cluster.status(WEST).unwrap()["cluster"]["timeline"]["id"]);
    let load = Load::start(&seed, cluster.clients());
    load.wait_progress(PROGRESS);
    wait_has(&cluster, WEST);
    cluster.link().cut();
    // Nobody but the old site acknowledges anything.
    load.wait_progress(PROGRESS);
    let ordered = load.now();
    let order = json!({ "accept_data_loss": true });
    let reply = force(&cluster, WEST, &order).expect(202).json();
    let first = if reply["member"] == "n4" { 3 } else { 4 };
    wait_role(&cluster, first, "leader");
    let both = [first, 7 - first];
    wait_for("the other mirror to be on the new timeline", || match timeline_number(&cluster, both[1])? {
        2 => Ok(()),
        number => Err(format!("{number}")),
    });
    // Both acknowledge: a write through a member of either site, and what the clients do meanwhile.
    load.wait_progress(PROGRESS);
    for (member, number) in [(0, 1), (WEST, 2)] {
        cluster.put_until_done(member, "alive", "x");
        assert_eq!(timeline_number(&cluster, member), Ok(number));
    }
    let revision = fork_revision(&cluster, WEST);
    let at_the_fork = cluster.content(0, revision);
    let stranded = cluster.put_until_done(0, "stranded", "x");

    cluster.link().heal();
    for member in EAST {
        wait_role(&cluster, member, "fenced");
    }
    // From this moment on nobody of the old site acknowledges anything or tells what it holds.
    let fenced = load.now();
    load.wait_progress(PROGRESS);
    for member in EAST {
        for request in [Request::new("GET", "/v1/kv/alive"), Request::new("PUT", "/v1/kv/alive").body("y")] {
            let mut connection = Connection::open(cluster.client(member)).unwrap();
            request.try_send_on(&mut connection).unwrap().expect_problem(421, "fenced");
        }
        assert_eq!(role(&cluster, member).as_deref(), Ok("fenced"));
    }
    let mut outcome = load.finish();
    for member in [WEST, WEST + 1] {
        outcome.read_all(cluster.client(member));
    }
    let late = outcome.history.records.iter().find(|record| record.began > fenced && record.by.timeline == Some(old));
    assert!(late.is_none_or(|record| record.told == support::history::Told::NotApplied), "{late:?}");

    let fork = fork(&cluster, old, id(&reply["timeline"]), ordered);
    assert_eq!((fork.revision, &fork.content), (revision, &at_the_fork), "both sites hold the same at the fork");
    for member in EAST {
        tell_to_rejoin(&cluster, member);
    }
    for member in EAST {
        wait_home(&cluster, member, WEST);
    }
    let content = assert_one_timeline(&cluster, None);
    let fate = judged(&fork, &outcome, &content, &cluster);
    assert!(fate.kept > 5 && fate.lost.len() > 5 && fate.written > 10, "the journal is too short to prove anything");
    assert_salvaged(&cluster, fate.lost.into_iter().chain([("stranded".to_owned(), stranded)]));
}

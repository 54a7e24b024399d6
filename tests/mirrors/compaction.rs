//! The history stays as small as what it has to keep: floors, compaction, and room on the disk. Real processes.

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Request};
use crate::support::scrape::Metrics;
use crate::support::{wait_for, wait_within};

use std::time::Duration;

/// Members that seal often and keep little of what was.
fn small(plan: Plan) -> Plan {
    plan.seals_early().flag("--history-keep-ms", "500ms").flag("--history-keep-revisions", "20")
}

/// The same with so large a reserve that what the log lets go is not room enough for a member that was short.
fn scarce(plan: Plan) -> Plan {
    small(plan).steady().flag("--disk-reserve-bytes", "8MiB")
}

fn figure(cluster: &Cluster, member: usize, name: &str) -> u64 {
    Metrics::of(cluster.client(member)).sum(name, &[]) as u64
}

const VALUE_BYTES: usize = 16 << 10;

fn value(round: usize) -> String {
    format!("{round:08} ").repeat(VALUE_BYTES / 9)
}

/// Overwrites ten keys again and again.
fn overwrite(cluster: &Cluster, at: usize, rounds: std::ops::Range<usize>) {
    for round in rounds {
        cluster.put_until_done(at, &format!("k{}", round % 10), &value(round));
    }
}

#[test]
fn what_is_overwritten_is_given_back_on_every_member_and_what_is_kept_can_be_read() {
    let mut cluster = small(Plan::new(3, 1)).flag("--disk-reserve-bytes", "1MiB").start();
    let first = cluster.put_until_done(0, "k0", "first");
    overwrite(&cluster, 1, 0..600);
    let written = (600 * VALUE_BYTES) as u64;
    // The last revisions are kept, and what is not sealed yet.
    let bound = written / 4;
    for member in 0..4 {
        wait_for("compaction", || {
            // Floors follow writes.
            cluster.put_until_done(0, "tick", "x");
            let bytes = figure(&cluster, member, "lifeboat_history_bytes");
            let reclaimed = figure(&cluster, member, "lifeboat_compaction_reclaimed_bytes_total");
            if bytes < bound && reclaimed > 0 { Ok(()) } else { Err(format!("n{}: {bytes} bytes", member + 1)) }
        });
    }
    for member in 0..4 {
        // Below the floor a revision is gone, and the reply says where the history begins.
        let problem =
            http::get(cluster.client(member), &format!("/v1/kv/k0?rev={first}")).expect_problem(410, "compacted");
        let floor = problem["floor"].as_u64().unwrap();
        assert!(floor > first, "{problem}");
        let watch = Request::new("GET", &format!("/v1/watch?prefix=k&since={first}")).send(cluster.client(member));
        let problem = watch.expect_problem(410, "compacted");
        assert!(problem["floor"].as_u64().unwrap() >= floor, "{problem}");
        // From the newest floor on it is not. The floor may move meanwhile, so it is asked for again.
        wait_for("a read at the floor", || {
            let floor = figure(&cluster, member, "lifeboat_read_floor");
            let answer = http::get(cluster.client(member), &format!("/v1/kv/k9?rev={floor}&consistency=stale"));
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        });
    }
    for number in 0..10 {
        assert_eq!(cluster.get(3, &format!("k{number}")).unwrap(), value(590 + number));
    }
    cluster.assert_same_content();
    // What compaction left is enough to start from.
    for member in 0..4 {
        cluster.kill(member);
    }
    for member in 0..4 {
        cluster.start_member(member);
    }
    cluster.wait_all_ready();
    for number in 0..10 {
        assert_eq!(cluster.get(2, &format!("k{number}")).unwrap(), value(590 + number));
    }
    cluster.assert_same_content();
}

/// Writes until the cluster has no room; then checks what goes on and what does not.
fn fill(cluster: &Cluster) -> usize {
    let mut written = 0;
    loop {
        let answer = Request::new("PUT", &format!("/v1/kv/fill/{written}"))
            .body(value(written))
            .send(cluster.client(written % 3));
        match answer.status {
            201 => written += 1,
            507 => {
                let problem = answer.expect_problem(507, "no-room");
                assert_eq!(
                    (problem["outcome"].as_str(), problem["retry"].as_str()),
                    (Some("not-applied"), Some("safe"))
                );
                return written;
            }
            _ => panic!("{answer}"),
        }
        assert!(written < 20_000, "the members never ran short");
    }
}

fn check_short(cluster: &mut Cluster, written: usize) {
    for member in 0..3 {
        http::get(cluster.client(member), "/v1/kv/fill/0").expect(200);
        cluster.wait_ready(member);
        let txn = serde_json::json!({ "then": [{ "put": { "key": "more", "value": "x" } }] });
        http::post(cluster.client(member), "/v1/txn", &txn).expect_problem(507, "no-room");
        let lease = serde_json::json!({ "ttl_seconds": 30 });
        http::post(cluster.client(member), "/v1/leases", &lease).expect_problem(507, "no-room");
    }
    http::delete(cluster.client(1), &format!("/v1/kv/fill/{}", written - 1)).expect(200);
}

fn wait_room(cluster: &Cluster) {
    wait_within(Duration::from_secs(60), "room again", || {
        let answer = Request::new("PUT", "/v1/kv/again").body("x").send(cluster.client(0));
        if answer.status < 300 { Ok(()) } else { Err(answer.to_string()) }
    });
}

#[test]
fn a_full_disk_refuses_growth_and_recovers_by_itself() {
    let mut cluster = scarce(Plan::new(3, 0)).flag("--disk-quota-bytes", "24MiB").start();
    let written = fill(&cluster);
    check_short(&mut cluster, written);
    // A restart in this state is a restart like any other.
    let status = cluster.stop(0);
    assert!(status.success(), "{status}");
    cluster.start_member(0);
    cluster.wait_all_ready();
    http::delete(cluster.client(2), "/v1/keys?prefix=fill/").expect(200);
    wait_room(&cluster);
    let events = |member| http::get(member, "/v1/events").expect(200).json()["events"].as_array().unwrap().clone();
    let kinds: Vec<String> =
        cluster.clients().into_iter().flat_map(events).map(|event| event["kind"].to_string()).collect();
    assert!(kinds.iter().any(|kind| kind.contains("room-back")), "{kinds:?}");
    cluster.assert_same_content();
}

#[test]
fn one_full_disk_is_enough_to_refuse_growth() {
    let mut cluster = scarce(Plan::new(3, 0)).prepare();
    cluster.member_mut(2).arguments.extend(["--disk-quota-bytes".into(), "24MiB".into()]);
    cluster.start_member(0);
    cluster.wait_ready(0);
    cluster.start_member(1);
    cluster.start_member(2);
    cluster.wait_joined();
    let written = fill(&cluster);
    check_short(&mut cluster, written);
    assert_eq!(figure(&cluster, 2, "lifeboat_disk_short"), 1);
    assert_eq!(figure(&cluster, 0, "lifeboat_disk_short"), 0);
    // Without the member that is short there is room, and a quorum.
    cluster.kill(2);
    wait_room(&cluster);
    http::delete(cluster.client(0), "/v1/keys?prefix=fill/").expect(200);
    cluster.start_member(2);
    cluster.wait_all_ready();
    wait_room(&cluster);
    cluster.assert_same_content();
}

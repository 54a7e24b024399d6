//! Seeds: a member begins with the content of a file that another member made, and only what came after crosses the link.
//! Real processes, real files, kill -9.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::link::Way;
use crate::support::{http, wait_for};
use rand::Rng as _;
use serde_json::Value;

const VALUE_BYTES: usize = 4 << 10;
/// Those who write at the same time.
const WRITERS: usize = 16;

/// Values that cannot be compressed much, under keys with this prefix. Gives how many bytes they are.
fn fill(cluster: &Cluster, prefix: &str, values: usize) -> u64 {
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut rng = rand::rng();
                let mut connection = http::Connection::open(cluster.client(0)).unwrap();
                for number in (writer..values).step_by(WRITERS) {
                    let value: String = (0..VALUE_BYTES).map(|_| char::from(rng.random_range(33..=126u8))).collect();
                    let put = http::Request::new("PUT", &format!("/v1/kv/{prefix}/{number:04}")).body(&value);
                    put.try_send_on(&mut connection).unwrap().expect(201);
                }
            });
        }
    });
    (values * VALUE_BYTES) as u64
}

fn lifeboat(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(arguments).output().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Saves a snapshot of a member to a file.
fn save(cluster: &Cluster, member: usize, name: &str) -> PathBuf {
    let file = cluster.path().join(name);
    let url = format!("http://{}", cluster.client(member));
    let saved = lifeboat(&["snapshot", "save", file.to_str().unwrap(), "--endpoints", &url]);
    assert!(saved.status.success(), "{}", words(&saved));
    assert!(!Path::new(&format!("{}.part", file.display())).exists());
    file
}

/// Prepares a mirror that begins with a file.
fn add_seeded(cluster: &mut Cluster, seed: &Path) -> usize {
    let mirror = cluster.add_member("mirror", "west");
    cluster.member_mut(mirror).arguments.extend(["--seed".into(), seed.display().to_string()]);
    mirror
}

fn members(cluster: &Cluster) -> usize {
    cluster.status(0).unwrap()["members"].as_array().unwrap().len()
}

#[test]
fn only_what_came_after_the_seed_crosses_the_link() {
    let mut cluster = Plan::new(1, 0).linked().start();
    let content = fill(&cluster, "before", 1280);
    let seed = save(&cluster, 0, "seed");

    let shown = lifeboat(&["snapshot", "show", seed.to_str().unwrap(), "--output", "json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let status = cluster.status(0).unwrap();
    assert_eq!(
        (&shown["cluster"], &shown["timeline"]),
        (&status["cluster"]["id"], &status["cluster"]["timeline"]["id"]),
        "{status}"
    );
    assert_eq!((&shown["revision"], &shown["position"]), (&status["revision"], &status["applied_index"]));
    assert_eq!(shown["bytes"], seed.metadata().unwrap().len());
    let again = lifeboat(&["snapshot", "save", seed.to_str().unwrap(), "--endpoints", "http://127.0.0.1:1"]);
    assert!(again.status.code() == Some(2) && words(&again).contains("exists"), "{}", words(&again));

    // Overwritten, deleted and new since.
    for number in 0..5 {
        cluster.put_until_done(0, &format!("before/{number:04}"), "overwritten");
        cluster.put_until_done(0, &format!("after/{number}"), "new");
    }
    http::delete(cluster.client(0), "/v1/kv/before/0100").expect(200);
    let mirror = add_seeded(&mut cluster, &seed);
    let before = cluster.link().bytes(Way::ToWest) + cluster.link().bytes(Way::ToEast);
    cluster.start_member(mirror);
    cluster.wait_joined();
    assert_eq!(cluster.assert_same_content().len(), 1284);
    let crossed = cluster.link().bytes(Way::ToWest) + cluster.link().bytes(Way::ToEast) - before;
    assert!(crossed * 20 < content, "{crossed} bytes crossed the link for a content of {content}");
    assert!(cluster.member(mirror).log_text().contains("begins with the content of its seed"));

    // It is a member like any other: it follows, and after a restart the seed is nothing to it.
    std::fs::remove_file(&seed).unwrap();
    cluster.kill(mirror);
    fill(&cluster, "later", 2);
    cluster.start_member(mirror);
    cluster.wait_ready(mirror);
    assert_eq!(cluster.assert_same_content().len(), 1286);
    assert!(cluster.member(mirror).log_text().contains("--seed is ignored"));
}

#[test]
fn behind_a_log_that_is_gone_a_delta_follows_the_seed() {
    let plan = Plan::new(1, 0).flag("--wal-keep-bytes", "1MiB").flag("--wal-segment-bytes", "256KiB");
    let mut cluster = plan.flag("--tail-bytes", "1MiB").linked().start();
    let content = fill(&cluster, "before", 1280);
    // Who is expected keeps the cluster from forgetting what a delta needs.
    let invitation = serde_json::json!({ "name": "n2", "role": "mirror", "site": "west" });
    http::post(cluster.client(0), "/v1/members", &invitation).expect(202);
    let seed = save(&cluster, 0, "seed");
    fill(&cluster, "after", 64);
    let wanted = cluster.status(0).unwrap()["applied_index"].as_u64().unwrap();
    // The log moves on beyond the seed, by entries that leave nothing behind.
    wait_for("the log that follows the seed to be gone", || {
        for _ in 0..20 {
            cluster.put_until_done(0, "again", &"x".repeat(64 << 10));
        }
        let first = support::scrape::Metrics::of(cluster.client(0)).sum("lifeboat_wal_first_index", &[]);
        if first > wanted as f64 { Ok(()) } else { Err(format!("it begins at {first}, not beyond {wanted}")) }
    });
    let mirror = add_seeded(&mut cluster, &seed);
    let before = cluster.link().bytes(Way::ToWest);
    cluster.start_member(mirror);
    cluster.wait_joined();
    assert_eq!(cluster.assert_same_content().len(), 1345);
    let crossed = cluster.link().bytes(Way::ToWest) - before;
    assert!(crossed < content / 4, "{crossed} bytes crossed the link for a content of {content}");
    support::scrape::Metrics::wait_copies(&[cluster.client(0)], &["kind=\"delta\""], 1.0);
}

#[test]
fn a_seed_that_is_damaged_cut_or_of_another_cluster_is_refused_and_changes_nothing() {
    let other = Plan::new(1, 0).start();
    other.put_until_done(0, "a", "of another cluster");
    let foreign = save(&other, 0, "foreign");
    let mut cluster = Plan::new(1, 0).start();
    fill(&cluster, "k", 4);
    let seed = save(&cluster, 0, "seed");
    let bytes = std::fs::read(&seed).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let bad = [
        ("cut", bytes[..bytes.len() - 10].to_vec(), "it ends too early"),
        ("flipped", flipped, "damaged at byte "),
        ("empty", Vec::new(), "it ends too early"),
        ("nothing", b"#!/bin/sh\necho this is no snapshot\n".to_vec(), "not a copy of a history"),
    ];
    let mirror = cluster.add_member("mirror", "west");
    let usual = cluster.member(mirror).arguments.clone();
    let refuse = |cluster: &mut Cluster, seed: &Path, why: &str| {
        cluster.member_mut(mirror).arguments = usual.clone();
        cluster.member_mut(mirror).arguments.extend(["--seed".into(), seed.display().to_string()]);
        cluster.start_member(mirror);
        assert_eq!(cluster.wait_exit(mirror).code(), Some(1));
        let log = cluster.member(mirror).log_text();
        let last = log.lines().last().unwrap();
        assert!(last.contains(why) && last.contains(seed.to_str().unwrap()), "{log}");
    };
    for (name, bytes, why) in bad {
        let file = cluster.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        refuse(&mut cluster, &file, why);
        assert_eq!(members(&cluster), 1, "it joined although its seed is {name}");
        let shown = lifeboat(&["snapshot", "show", file.to_str().unwrap()]);
        assert!(shown.status.code() == Some(1) && words(&shown).contains(why), "{}", words(&shown));
    }
    let missing = cluster.path().join("missing");
    refuse(&mut cluster, &missing, "No such file");
    refuse(&mut cluster, &foreign, "it is of cluster ");
    // It is empty still, and takes the right one.
    cluster.member_mut(mirror).arguments = usual.clone();
    cluster.member_mut(mirror).arguments.extend(["--seed".into(), seed.display().to_string()]);
    cluster.start_member(mirror);
    cluster.wait_joined();
    cluster.assert_same_content();
    assert!(cluster.member(mirror).log_text().contains("begins with the content of its seed"));
}

#[test]
fn a_member_that_is_killed_while_it_takes_its_seed_begins_again() {
    let mut cluster = Plan::new(1, 0).flag("--tail-bytes", "1MiB").linked().start();
    let content = fill(&cluster, "k", 2048);
    let seed = save(&cluster, 0, "seed");
    let mirror = add_seeded(&mut cluster, &seed);
    let history = cluster.member(mirror).data.join("history");
    let before = cluster.link().bytes(Way::ToWest) + cluster.link().bytes(Way::ToEast);
    let is_seeded =
        |cluster: &Cluster| cluster.member(mirror).log_text().contains("begins with the content of its seed");
    let mut killed_amid = 0;
    for round in 0..3 {
        cluster.start_member(mirror);
        // At its first segments, and each time a little later.
        wait_for("the seed to be written", || {
            let files = std::fs::read_dir(&history).map_err(|e| e.to_string())?.count();
            if files > 1 + 2 * round || is_seeded(&cluster) { Ok(()) } else { Err(format!("{files} files")) }
        });
        cluster.kill(mirror);
        killed_amid += usize::from(!is_seeded(&cluster));
    }
    assert!(killed_amid > 0, "it was always quicker");
    cluster.start_member(mirror);
    cluster.wait_joined();
    assert_eq!(cluster.assert_same_content().len(), 2048);
    let crossed = cluster.link().bytes(Way::ToWest) + cluster.link().bytes(Way::ToEast) - before;
    assert!(crossed * 20 < content, "{crossed} bytes crossed the link for a content of {content}");
}

#[test]
fn a_mirror_gives_a_snapshot_too_and_few_run_at_a_time() {
    let cluster = Plan::new(1, 1).start();
    fill(&cluster, "k", 1280);
    let revision = cluster.wait_converged();
    let seed = save(&cluster, 1, "of-the-mirror");
    let shown = lifeboat(&["snapshot", "show", seed.to_str().unwrap()]);
    assert!(words(&shown).contains(&format!("revision  {revision}\n")), "{}", words(&shown));
    // Two that are not read hold the places until they are gone.
    let open = || {
        let mut connection = http::Connection::open(cluster.client(1)).unwrap();
        connection.send(b"GET /v1/snapshot HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        connection.receive().unwrap();
        connection
    };
    let held = (open(), open());
    http::get(cluster.client(1), "/v1/snapshot").expect_problem(429, "too-many-reads");
    drop(held);
    wait_for("the places to be free", || {
        let answer = http::Request::new("HEAD", "/v1/snapshot").send(cluster.client(1));
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
}

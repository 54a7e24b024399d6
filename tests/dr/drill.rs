//! The drill, with real processes: a failover is rehearsed at a mirror that goes on following, every refusal, and whatever
//! dies or is lost on the way; nothing of it is left, and nobody has heard of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::plan_of;
use crate::support::http::{self, Answer, Connection, Request};
use crate::support::workload::Load;
use crate::support::{PATIENCE, Seed, wait_for};
use lifeboat::crash_points::DRILL;
use serde_json::{Value, json};

/// The mirror's number in a cluster of one voter and it.
const MIRROR: usize = 1;

fn ask(cluster: &Cluster, member: usize) -> JoinHandle<Answer> {
    let client = cluster.client(member);
    let request = Request::new("POST", "/v1/dr/drill").header("Accept", "application/json").body("{}");
    // All of the answer comes at the end, and whoever holds a drill takes its time.
    std::thread::spawn(move || {
        let mut connection = Connection::open_within(client, PATIENCE).unwrap();
        request.try_send_on(&mut connection).unwrap_or_else(|failure| panic!("the drill: {failure}"))
    })
}

fn leftovers(cluster: &Cluster, member: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&cluster.member(member).data).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("drill-")).collect()
}

#[track_caller]
fn wait_nothing_left(cluster: &Cluster, member: usize) {
    wait_for("nothing of the drill to be left", || {
        let (files, processes) = (leftovers(cluster, member), children(cluster, member));
        if files.is_empty() && processes.is_empty() { Ok(()) } else { Err(format!("{files:?}, {processes:?}")) }
    });
}

/// The processes of throwaway members of this member.
fn children(cluster: &Cluster, member: usize) -> Vec<u32> {
    let dir = format!("{}/drill-", cluster.member(member).data.display());
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        // One that is gone meanwhile, or a zombie, has no command line.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&dir)
    })
    .collect()
}

fn mirror_state(cluster: &Cluster, name: &str) -> Result<String, String> {
    let answer = http::get(cluster.client(0), "/v1/replication");
    let reply = if answer.status == 200 { answer.json() } else { return Err(answer.to_string()) };
    let found = reply["members"].as_array().unwrap().iter().find(|member| member["name"] == name).cloned();
    Ok(found.ok_or("no such member")?["state"].as_str().unwrap().to_owned())
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check {name} in {report}"))
}

/// The mirror follows, and can be used for another drill.
#[track_caller]
fn passes(cluster: &Cluster, member: usize) -> Value {
    let report = ask(cluster, member).join().unwrap().expect(200).json();
    assert_eq!(report["passed"], true, "{report:#}");
    wait_nothing_left(cluster, member);
    report
}

#[test]
fn a_failover_is_rehearsed_under_load_while_the_mirror_goes_on_following() {
    let cluster = Plan::new(3, 1).steady().start();
    let mirror = 3;
    for n in 0..200 {
        cluster.put_until_done(0, &format!("old/{n}"), &"x".repeat(500));
    }
    for _ in 0..3 {
        Request::new("POST", "/v1/seq/orders?count=5&step=1000").body("").send(cluster.client(0)).expect(200);
    }
    cluster.wait_converged();
    let seed = Seed::for_test("a_failover_is_rehearsed_under_load_while_the_mirror_goes_on_following");
    let load = Load::start(&seed, cluster.clients());
    let mut connection = Connection::open(cluster.client(mirror)).unwrap();
    load.wait_progress(50);
    let term = cluster.status(0).unwrap()["term"].clone();

    let request = Request::new("POST", "/v1/dr/drill").body(json!({ "member": "n4" }).to_string());
    connection.send(&request.bytes()).unwrap();
    let mut answer = connection.read_stream().unwrap().expect(200);
    let mut states = std::collections::BTreeSet::new();
    while let Some(chunk) = connection.read_chunk().unwrap() {
        answer.body.extend(chunk);
        // Who asks a member that waits for its leader is told nothing.
        states.extend(mirror_state(&cluster, "n4"));
    }
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (report, progress) = lines.split_last().unwrap();
    for step in ["forking", "opening", "promoting", "checking", "cleaning"] {
        assert!(progress.iter().any(|line| line["type"] == "progress" && line["step"] == step), "{step}: {progress:?}");
    }
    assert_eq!((&report["type"], &report["passed"]), (&json!("report"), &json!(true)), "{report:#}");
    // The directory is gone when the report is there.
    assert_eq!(leftovers(&cluster, mirror), Vec::<PathBuf>::new());
    assert_eq!(children(&cluster, mirror), Vec::<u32>::new());

    for name in ["leads", "writes", "transaction", "old-data", "sequence", "files", "contents", "mirror", "objective"] {
        assert_eq!(check(report, name)["passed"], true, "{report:#}");
    }
    let keys = check(report, "contents")["detail"].as_str().unwrap().to_owned();
    assert!(keys.contains("keys are what the mirror holds"), "{keys}");
    let rto = &report["rto"];
    let parts = ["close_seconds", "open_seconds", "lead_seconds", "first_write_seconds"];
    let sum: f64 = parts.iter().map(|part| rto[part].as_f64().unwrap()).sum();
    assert!((sum - rto["seconds"].as_f64().unwrap()).abs() < 0.01 && sum > 0.0, "{rto}");
    assert_eq!(rto["objective_seconds"], 60.0, "{rto}");
    assert_eq!(report["timeline"]["number"], 2, "{report:#}");
    assert!(report["first_revision"].as_u64().unwrap() > 1 << 40, "{report:#}");
    let sequence = &report["sequence"];
    assert_eq!((&sequence["name"], &sequence["from"]), (&json!("orders"), &json!(15)), "{report:#}");
    assert!(sequence["to"].as_u64().unwrap() >= 1015, "{report:#}");
    assert!(report["fork"]["index_seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["fork"]["copied_bytes"].as_u64().unwrap() > 100_000, "the log is copied: {report:#}");

    // The mirror followed all the time.
    assert!(report["mirror"]["lag_max_seconds"].as_f64().unwrap() < 5.0, "{report:#}");
    assert!(
        !states.is_empty() && states.iter().all(|state| ["SYNCHRONIZED", "SYNCHRONIZING"].contains(&state.as_str())),
        "{states:?}"
    );
    load.wait_progress(50);
    let outcome = load.finish();
    assert!(outcome.journal.refused.is_empty(), "{:?}", outcome.journal);
    // Nobody has heard of it: the term is the same, there is one timeline, and nobody met a stranger.
    let status = cluster.status(0).unwrap();
    assert_eq!((&status["term"], &status["cluster"]["timeline"]["number"]), (&term, &json!(1)), "{status}");
    for member in 0..4 {
        let log = cluster.member(member).log_text();
        for word in ["refused", "stranger", "another cluster", "fenced", "timeline has begun"] {
            let told = log.lines().find(|line| line.contains(word));
            assert_eq!(told, None, "n{} met somebody", member + 1);
        }
        assert_eq!(http::get(cluster.client(member), "/v1/kv/lifeboat-drill%2F1%2Ffirst").status, 404);
    }
    cluster.assert_same_content();
    // All members know of it, and it is not advised any more.
    support::wait_cluster_events(cluster.client(0), &[("drill-done", 1)]);
    wait_for("the drill not to be advised", || {
        let plan = plan_of(&cluster, 0)?;
        if json!(plan).to_string().contains("dr drill") { Err(format!("{plan:?}")) } else { Ok(()) }
    });
}

fn one_and_a_mirror() -> Cluster {
    let cluster = Plan::new(1, 1).with_points().start();
    for n in 0..20 {
        cluster.put_until_done(0, &format!("k{n}"), "x");
    }
    cluster.wait_converged();
    cluster
}

#[test]
fn what_cannot_be_rehearsed_is_refused_with_a_reason() {
    let cluster = one_and_a_mirror();
    let post = |member: usize, body: &Value| http::post(cluster.client(member), "/v1/dr/drill", body);
    let refused = |answer: Answer, word: &str| {
        let problem = answer.expect_problem(409, "drill-refused");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{word}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("lifeboat "), "the next command: {problem}");
    };
    refused(post(0, &json!({})), "n1 is a voter");
    refused(post(MIRROR, &json!({ "member": "n1" })), "this is n2");
    for wrong in [json!({ "member": 7 }), json!({ "site": "west" }), json!([])] {
        post(MIRROR, &wrong).expect_problem(400, "bad-body");
    }
    http::get(cluster.client(MIRROR), "/v1/dr/drill").expect_problem(405, "method-not-allowed");
    // Before the first one it is advised.
    let plan = http::get(cluster.client(0), "/v1/dr").expect(200).json();
    assert!(plan["plan"].to_string().contains("lifeboat dr drill --site west"), "{plan}");

    // Two at once: the second is told.
    cluster.arm_hold(DRILL[0]);
    let first = ask(&cluster, MIRROR);
    cluster.wait_held(DRILL[0]);
    refused(post(MIRROR, &json!({})), "a drill runs");
    cluster.release(DRILL[0]);
    let report = first.join().unwrap().expect(200).json();
    assert_eq!(report["passed"], true, "{report:#}");
    wait_nothing_left(&cluster, MIRROR);
}

#[test]
fn a_mirror_without_room_for_it_refuses() {
    let cluster = Plan::new(1, 1).flag("--disk-quota-bytes", "64MiB").flag("--disk-reserve-bytes", "1MiB").start();
    let answer = http::post(cluster.client(MIRROR), "/v1/dr/drill", &json!({}));
    let problem = answer.expect_problem(507, "no-room");
    assert!(problem["detail"].as_str().unwrap().contains("MiB"), "{problem}");
    assert_eq!(leftovers(&cluster, MIRROR), Vec::<PathBuf>::new());
    // And goes on following.
    cluster.put_until_done(0, "k", "x");
    cluster.wait_converged();
}

#[test]
fn a_mirror_that_is_killed_amid_a_drill_cleans_up_at_its_next_start() {
    let mut cluster = one_and_a_mirror();
    for place in DRILL {
        cluster.arm_crash(place);
        let client = cluster.client(MIRROR);
        let asked =
            std::thread::spawn(move || Request::new("POST", "/v1/dr/drill").body("{}").try_send(client).is_ok());
        assert_eq!(cluster.wait_crashed(place), MIRROR, "{place}");
        let _cut = asked.join().unwrap();
        assert_ne!(leftovers(&cluster, MIRROR), Vec::<PathBuf>::new(), "{place}");
        // No child outlives it, although nobody is there to end it.
        wait_for("the throwaway member to be gone", || match children(&cluster, MIRROR)[..] {
            [] => Ok(()),
            ref pids => Err(format!("{pids:?}")),
        });
        cluster.start_member(MIRROR);
        cluster.wait_ready(MIRROR);
        wait_nothing_left(&cluster, MIRROR);
    }
    cluster.put_until_done(0, "after", "x");
    passes(&cluster, MIRROR);
    cluster.assert_same_content();
}

#[test]
fn a_drill_whose_child_dies_or_whose_client_leaves_ends_and_leaves_nothing() {
    let mut cluster = one_and_a_mirror();
    let mut failed = 0;
    // The child is killed at each place where there is one.
    for place in &DRILL[1..] {
        cluster.arm_hold(place);
        let asked = ask(&cluster, MIRROR);
        cluster.wait_held(place);
        let pids = wait_for("the child", || match children(&cluster, MIRROR) {
            pids if pids.is_empty() => Err("none yet".to_owned()),
            pids => Ok(pids),
        });
        for pid in pids {
            let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
            assert!(killed.success(), "{place}");
        }
        cluster.release(place);
        let report = asked.join().unwrap().expect(200).json();
        // One that has said everything by then does no harm when it dies.
        if report["passed"] == false {
            assert!(report["failure"].as_str().unwrap().contains("ended"), "{place}: {report:#}");
            assert!(report["next"].as_str().unwrap().starts_with("lifeboat "), "{report:#}");
            failed += 1;
        }
        assert!(failed > 0, "{place}: {report:#}");
        wait_nothing_left(&cluster, MIRROR);
    }
    support::wait_cluster_events(cluster.client(0), &[("drill-failed", failed)]);

    // The client that goes away.
    cluster.arm_hold("drill-child-started");
    let mut connection = Connection::open(cluster.client(MIRROR)).unwrap();
    connection.send(&Request::new("POST", "/v1/dr/drill").body("{}").bytes()).unwrap();
    cluster.wait_held("drill-child-started");
    drop(connection);
    cluster.release("drill-child-started");
    wait_nothing_left(&cluster, MIRROR);
    support::wait_cluster_events(cluster.client(0), &[("drill-failed", failed + 1)]);

    // A mirror that is told to stop amid a drill stops, and leaves nothing either.
    cluster.arm_hold("drill-leads");
    let client = cluster.client(MIRROR);
    let asked = std::thread::spawn(move || Request::new("POST", "/v1/dr/drill").body("{}").try_send(client).is_ok());
    cluster.wait_held("drill-leads");
    cluster.ask_to_stop(MIRROR);
    cluster.release("drill-leads");
    assert!(cluster.wait_exit(MIRROR).success());
    let _told_or_cut = asked.join().unwrap();
    assert_eq!(leftovers(&cluster, MIRROR), Vec::<PathBuf>::new());
    cluster.start_member(MIRROR);
    cluster.wait_ready(MIRROR);
    passes(&cluster, MIRROR);
}

#[test]
fn a_mirror_that_is_needed_in_earnest_ends_its_drill_and_is_promoted() {
    let mut cluster = one_and_a_mirror();
    cluster.arm_hold("drill-leads");
    let asked = ask(&cluster, MIRROR);
    cluster.wait_held("drill-leads");
    cluster.kill(0);
    wait_for("the primary to be gone", || {
        let found = http::get(cluster.client(MIRROR), "/v1/dr/survey").expect(200).json();
        if found["primary"].is_null() { Ok(()) } else { Err(found.to_string()) }
    });
    let forced = http::post(cluster.client(MIRROR), "/v1/dr/force", &json!({ "accept_data_loss": true })).expect(202);
    let forced = forced.json();
    cluster.release("drill-leads");
    wait_for("the mirror to lead in earnest", || {
        let answer =
            Request::new("GET", "/health/leader").try_send(cluster.client(MIRROR)).map_err(|e| e.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    let status = cluster.status(MIRROR).unwrap();
    assert_eq!(status["cluster"]["timeline"]["id"], forced["timeline"], "{status}");
    // Nothing of the drill held the index when it was opened again.
    let log = cluster.member(MIRROR).log_text();
    assert!(!log.contains("the index is built again"), "{log}");
    cluster.put_until_done(MIRROR, "after", "x");
    if let Ok(answer) = asked.join() {
        let report = answer.expect(200).json();
        assert_eq!(report["passed"], false, "{report:#}");
    }
    wait_nothing_left(&cluster, MIRROR);
}

#[test]
fn the_command_finds_the_mirror_and_prints_what_was_found() {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let cluster = one_and_a_mirror();
    let endpoints = format!("http://{}", cluster.client(0));
    let run = |arguments: &[&str]| {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        let output = command.args(["dr", "drill", "--endpoints", &endpoints]).args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, printed, errors) = run(&["--site", "west", "--output", "table"]);
    assert_eq!(code, 0, "{printed}{errors}");
    for part in ["contents", "passed", "failover", "close", "objective", "built anew", "nothing of it is left"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(printed.trim_end().lines().last().unwrap().starts_with("lifeboat dr plan"), "{printed}");
    let (code, printed, _) = run(&["--member", "n2", "--output", "plain"]);
    assert_eq!(code, 0, "{printed}");
    let rto = printed.lines().find(|line| line.starts_with("rto\t")).unwrap_or_else(|| panic!("{printed}"));
    assert!(rto.split('\t').nth(1).unwrap().parse::<f64>().unwrap() > 0.0, "{rto}");
    let (code, printed, _) = run(&["--site", "west", "--member", "n2", "--output", "json"]);
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &report["passed"]), (0, &json!(true)), "{report:#}");

    for (arguments, wanted, words) in [
        (&["--site", "east"][..], 2, "has no mirror"),
        (&["--member", "n9"], 2, "no member n9"),
        (&[], 2, "--site"),
        (&["--member", "n1"], 1, "n1 is a voter"),
    ] {
        let (code, printed, errors) = run(arguments);
        assert!(errors.contains(words), "{arguments:?}: {errors}{printed}");
        assert!(code == wanted || wanted == 1 && code != 0, "{arguments:?}: {code} {errors}");
    }
    assert_eq!(RUNS.load(Ordering::Relaxed), 7);
    wait_nothing_left(&cluster, MIRROR);
}

/// How old what a mirror has may be, as it says itself.
fn lag(cluster: &Cluster, mirror: usize) -> Result<f64, String> {
    let answer = http::get(cluster.client(mirror), "/v1/kv/k?consistency=stale").expect(200);
    let text = answer.must_have("lifeboat-lag-seconds").to_owned();
    text.parse::<f64>().map_err(|_| text)
}

/// It has what it lacked before a leader has confirmed that.
#[track_caller]
fn wait_follows(cluster: &Cluster, mirror: usize) {
    wait_for("the mirror to follow", || match lag(cluster, mirror)? {
        lag if lag < 1.0 => Ok(()),
        lag => Err(lag.to_string()),
    });
}

/// The link between the sites is lost at a place of a drill for longer than a mirror may be behind that follows.
fn goes_on_without_the_link(place: &str) {
    let cluster = Plan::new(1, 1).linked().with_points().start();
    cluster.put_until_done(0, "k", "x");
    cluster.wait_converged();
    let lag = || lag(&cluster, MIRROR);
    wait_for("the lag to be known", lag);
    cluster.arm_hold(place);
    let asked = ask(&cluster, MIRROR);
    cluster.wait_held(place);
    cluster.link().cut();
    wait_for("the mirror to be behind", || match lag()? {
        lag if lag > 8.0 => Ok(()),
        lag => Err(lag.to_string()),
    });
    cluster.put_until_done(0, "amid", place);
    cluster.release(place);
    // It needs nobody: all that it finds is found, and what it says of the mirror is what happened to it.
    let report = asked.join().unwrap().expect(200).json();
    let failed: Vec<&Value> =
        report["checks"].as_array().unwrap().iter().filter(|check| check["passed"] == false).collect();
    let [check] = failed[..] else { panic!("{place}: {report:#}") };
    assert_eq!((&check["name"], &report["failure"]), (&json!("mirror"), &Value::Null), "{place}: {report:#}");
    assert!(check["detail"].as_str().unwrap().contains("did not follow meanwhile"), "{place}: {report:#}");
    assert!(report["rto"]["met"] == true && report["passed"] == false, "{place}: {report:#}");
    assert!(report["next"].as_str().unwrap().starts_with("lifeboat replication"), "{place}: {report:#}");
    wait_nothing_left(&cluster, MIRROR);
    cluster.link().heal();
    // The leader is told as soon as it can be.
    support::wait_cluster_events(cluster.client(0), &[("drill-failed", 1)]);
    cluster.put_until_done(0, "after", place);
    cluster.wait_converged();
    wait_follows(&cluster, MIRROR);
    passes(&cluster, MIRROR);
    cluster.assert_same_content();
}

#[test]
fn the_link_lost_amid_a_drill_fails_nothing_but_what_is_said_of_the_mirror() {
    std::thread::scope(|scope| {
        for place in DRILL {
            scope.spawn(move || goes_on_without_the_link(place));
        }
    });
}

/// The leader dies while a drill stands at a place, and another one is elected: the mirror follows that one.
#[test]
fn a_new_leader_amid_a_drill_changes_nothing_about_it() {
    let mirror = 3;
    let mut cluster = Plan::new(3, 1).with_points().start();
    cluster.put_until_done(0, "k", "x");
    cluster.wait_converged();
    for place in DRILL {
        cluster.arm_hold(place);
        let asked = ask(&cluster, mirror);
        cluster.wait_held(place);
        let old = cluster.wait_leader();
        cluster.kill(old);
        let new = cluster.wait_other_leader(old);
        cluster.put_until_done(new, "amid", place);
        cluster.wait_converged();
        wait_follows(&cluster, mirror);
        cluster.release(place);
        let report = asked.join().unwrap().expect(200).json();
        assert_eq!((&report["passed"], &report["failure"]), (&json!(true), &Value::Null), "{place}: {report:#}");
        wait_nothing_left(&cluster, mirror);
        cluster.start_member(old);
        cluster.wait_ready(old);
    }
    support::wait_cluster_events(cluster.client(mirror), &[("drill-done", DRILL.len())]);
    cluster.assert_same_content();
}

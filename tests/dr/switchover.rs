//! The planned move of the primary site, with real processes on both sides of a link: the good case under recorded clients,
//! every refusal, the death of whoever carries it at every named place, twice at once, called off, and home again. The death of
//! the others and the loss of the link at each place: `switchover_harms.rs`.
//!
//! After each: one site has all the voters and the lead, all members agree in their chain hashes and in a verification, and
//! nothing that was acknowledged is missing.

use std::process::Command;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{assert_verified, served};
use crate::support::http::{self, Request};
use crate::support::switchover::{
    ATTEMPTS, Patient, Written, assert_one_primary, assert_written, begin, comes_to, move_to, shown, sites,
    steady_sites, try_json, wait_over, was_silent,
};
use crate::support::workload::Load;
use crate::support::{Seed, cluster_events, wait_for};
use lifeboat::crash_points::{SWITCHOVER, SWITCHOVER_BACK};
use serde_json::{Value, json};

/// Waits until the end of a switchover is among the events, whoever died just before it could be told.
#[track_caller]
fn wait_told(cluster: &Cluster, over: &Value) {
    let kind = format!("switchover-{}", over["state"].as_str().unwrap());
    wait_for("the end to be told", || {
        let events =
            try_json(cluster, cluster.leader_now()?, "/v1/events?limit=1000")?["events"].as_array().unwrap().clone();
        match events.iter().find(|event| event["event_id"] == over["id"]) {
            Some(event) if event["kind"] == kind && event["scope"] == "cluster" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// There and back under load: one order explains all that the clients were told, no client that retries as told fails,
/// nothing is lost, and everybody says the same of who is what.
#[test]
fn the_primary_site_moves_and_comes_home_under_load() {
    let seed = Seed::for_test("the_primary_site_moves_and_comes_home_under_load");
    let mut cluster = steady_sites(3, 3);
    let lease = http::post(cluster.client(0), "/v1/leases", &json!({ "ttl_seconds": 60 })).expect(201).json();
    let load = Load::start(&seed, cluster.clients());
    let patients = [("east", 1), ("west", 4)].map(|(name, member)| Patient::start(name, &[cluster.client(member)]));
    load.wait_progress(40);
    for (site, asked) in [("west", 5), ("east", 2)] {
        let over = move_to(&cluster, asked, &json!({ "to_site": site, "by": "ann", "reason": "storm" }));
        assert_eq!(over["to_site"], site, "{over}");
        let pause = over["pause_ms"].as_f64().unwrap_or_else(|| panic!("no pause was measured: {over}"));
        println!("to {site}: {pause} ms pause, {} s", over["seconds"]);
        assert!(pause > 0.0, "{over}");
        load.wait_progress(40);
    }
    let mut outcome = load.finish();
    let written: Vec<Written> = patients.map(Patient::finish).into_iter().collect();
    assert_one_primary(&mut cluster, "east");
    let content = cluster.assert_same_content();
    outcome.assert_journal(&content);
    for written in &written {
        println!("{} keys, {} sent again, longest {:?}", written.keys.len(), written.retried, written.longest);
        assert_written(written, &content);
    }
    for member in cluster.clients() {
        outcome.read_all(member);
    }
    outcome.history.assert_linearizable(cluster.path());
    println!("{}", outcome.history.summary());
    assert_verified(&cluster, cluster.wait_leader());
    let left = http::get(cluster.client(4), &format!("/v1/leases/{}", lease["id"])).expect(200).json();
    assert!(left["remaining_seconds"].as_f64().unwrap() > 30.0, "a new leader gives a lease its full time: {left}");
    let all = [
        ("switchover-began", 2, "by ann: storm"),
        ("switchover-step", 6, "is at handing-over"),
        ("switchover-done", 2, "writes paused for"),
    ];
    support::wait_cluster_events(cluster.client(4), &all.map(|(kind, times, _)| (kind, times)));
    let events = cluster_events(cluster.client(4)).unwrap();
    let of_kind = |kind: &str| events.iter().filter(|event| event["kind"] == kind).collect::<Vec<&Value>>();
    // Nothing is told twice; one more that was tried is told as well.
    let more = of_kind("switchover-went-back").len();
    for (kind, times, part) in all {
        let found = of_kind(kind);
        assert!(found.len() == times || more > 0, "{found:?}");
        let told = found.iter().any(|event| event["detail"].as_str().unwrap().contains(part));
        assert!(told, "{part:?} in {found:?}");
    }
}

fn lifeboat(cluster: &Cluster, arguments: &[&str]) -> (bool, String) {
    let endpoint = format!("http://{}", cluster.client(cluster.wait_leader()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    let output = command.args(arguments).args(["--endpoints", &endpoint]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

/// Waits for a refusal that says all of this at once; the leader may first have to notice.
#[track_caller]
fn wait_refused(cluster: &Cluster, parts: &[&str]) {
    wait_for("the refusal", || {
        let answer =
            http::post(cluster.client(cluster.running()[0]), "/v1/dr/switchover", &json!({ "to_site": "west" }));
        if answer.status != 409 {
            return Err(answer.to_string());
        }
        let problem = answer.expect_problem(409, "switchover-refused");
        let detail = problem["detail"].as_str().unwrap();
        match parts.iter().find(|part| !detail.contains(**part)) {
            None => Ok(()),
            Some(part) => Err(format!("no {part:?} in {detail}")),
        }
    });
}

/// Everything that is missing is said at once, with the next command, and nothing has happened.
#[test]
fn what_cannot_begin_is_refused_with_all_that_is_missing() {
    let mut cluster = steady_sites(3, 2);
    let at = cluster.client(4);
    for (body, field) in [
        (json!({}), "to_site"),
        (json!({ "to_site": 7 }), "to_site"),
        (json!({ "to_site": "w/st" }), "to_site"),
        (json!({ "to_site": "west", "too": 1 }), "too"),
        (json!({ "to_site": "west", "by": "" }), "by"),
        (json!({ "to_site": "west", "dry_run": "yes" }), "dry_run"),
    ] {
        let problem = http::post(at, "/v1/dr/switchover", &body).expect_problem(400, "bad-body");
        assert_eq!(problem["field"], field, "{problem}");
    }
    Request::new("POST", "/v1/dr/switchover").body("[]").send(at).expect_problem(400, "bad-body");
    let unknown =
        http::post(at, "/v1/dr/switchover", &json!({ "to_site": "north" })).expect_problem(404, "unknown-site");
    assert_has(unknown["detail"].as_str().unwrap(), &["north", "east, west", "lifeboat replication"]);
    let nothing = http::post(at, "/v1/dr/switchover", &json!({ "to_site": "east" })).expect(200).json();
    assert_eq!(nothing["state"], "nothing-to-do", "{nothing}");
    let none = http::delete(at, "/v1/dr/switchover").expect_problem(409, "switchover-refused");
    assert_has(none["detail"].as_str().unwrap(), &["no switchover is under way"]);

    // A follower and a mirror take it as well; only to look changes nothing.
    for asked in [1, 2, 3, 4] {
        let body = json!({ "to_site": "west", "dry_run": true });
        let checked = wait_for("the check to pass", || {
            let answer = http::post(cluster.client(asked), "/v1/dr/switchover", &body);
            if answer.status == 200 { Ok(answer.json()) } else { Err(answer.to_string()) }
        });
        assert_eq!((&checked["state"], &checked["voters"]), (&json!("checked"), &json!(["n4", "n5"])), "{checked}");
        assert_has(&checked["warnings"].to_string(), &["west will have 2 voters"]);
    }
    let (fine, text) = lifeboat(&cluster, &["dr", "switchover", "--to", "west", "--check", "--output", "table"]);
    assert!(fine, "{text}");
    assert_has(
        &text,
        &["nothing is missing", "voters   n4, n5", "mirrors  n1, n2, n3", "next: lifeboat dr switchover --to west"],
    );

    served(|| http::post(at, "/v1/members/n4/suspend", &json!({}))).expect(200);
    wait_refused(&cluster, &["n4 is SUSPENDED: lifeboat members resume n4", "--to west --check"]);
    let follower = cluster.follower();
    cluster.kill(follower);
    let name = cluster.member(follower).name.clone();
    wait_refused(&cluster, &["n4 is SUSPENDED", "of 3 voters 2 answer", &format!("start {name}")]);
    cluster.link().cut();
    wait_refused(&cluster, &["n4 is SUSPENDED", "n5 is DISCONNECTED", &format!("start {name}")]);
    let (fine, text) = lifeboat(&cluster, &["dr", "switchover", "--to", "west"]);
    assert!(!fine, "{text}");
    assert_has(&text, &["n5 is DISCONNECTED", "lifeboat members resume n4"]);
    cluster.link().heal();
    cluster.start_member(follower);
    served(|| http::post(cluster.client(cluster.wait_leader()), "/v1/members/n4/resume", &json!({}))).expect(200);
    cluster.wait_all_ready();
    let shown = http::get(cluster.client(0), "/v1/dr/switchover").expect(200).json();
    assert_eq!(shown, json!({ "state": "none", "next": "lifeboat dr plan" }));
    assert_one_primary(&mut cluster, "east");
}

#[test]
fn members_of_an_older_program_are_named() {
    let cluster = Plan::new(1, 1).flag("--announce-feature-level", "2").start();
    wait_refused(&cluster, &["at feature level 2, and 3 is needed", "upgrade n1, n2"]);
}

/// Lets whoever carries one die at a place. False when nobody came to it, or it was lost to the silence of somebody else: the
/// machine gave members too little time.
#[track_caller]
fn dies_at(cluster: &mut Cluster, site: &mut &'static str, place: &str) -> bool {
    let to = if *site == "east" { "west" } else { "east" };
    cluster.arm_crash(place);
    let begun = begin(cluster, to);
    let came = comes_to(cluster, &begun["id"], place, || cluster.has_crashed(place));
    cluster.disarm_crash(place);
    let dead = (came || cluster.has_crashed(place)).then(|| cluster.wait_crashed(place));
    let over = wait_over(cluster, &begun["id"]);
    wait_told(cluster, &over);
    println!("{place}: {dead:?} died, {} after {} s, {:?}", over["state"], over["seconds"], over["back"]);
    if over["state"] == "done" {
        *site = to;
    }
    if let Some(dead) = dead {
        cluster.start_member(dead);
    }
    assert_one_primary(cluster, site);
    // Before anybody has written down that the lead moved the old site can go on without the member that took it.
    let expected = if place == "switchover-leading" { "went-back" } else { "done" };
    if dead.is_some() && over["state"] == expected {
        return true;
    }
    let dead_target = dead.is_some_and(|dead| begun["target"] == cluster.member(dead).name);
    assert!(dead.is_none() || was_silent(&over) && !dead_target, "{place}: {over}");
    false
}

/// Whoever carries it dies at each of its places, and stays dead until it is over: the others go on, or back.
#[test]
fn the_death_of_whoever_carries_it_is_survived_at_every_place() {
    let mut cluster = sites(3, 3);
    let patient = Patient::start("all", &[cluster.client(2)]);
    let mut site = "east";
    for place in SWITCHOVER {
        let comes = (0..ATTEMPTS).any(|_| dies_at(&mut cluster, &mut site, place));
        assert!(comes, "{place} was tried {ATTEMPTS} times");
    }
    let written = patient.finish();
    assert_written(&written, &cluster.assert_same_content());
    assert_verified(&cluster, cluster.wait_leader());
}

/// It is called off, and whoever carries it back dies at each place of that.
#[test]
fn called_off_it_goes_back_whoever_dies() {
    let mut cluster = steady_sites(3, 2);
    let patient = Patient::start("all", &[cluster.client(3)]);
    for place in std::iter::once(&"").chain(SWITCHOVER_BACK) {
        cluster.arm_hold("switchover-added");
        let begun = begin(&cluster, "west");
        cluster.wait_held("switchover-added");
        if place.is_empty() {
            assert_shown_while_held(&cluster, &begun);
        } else {
            cluster.arm_crash(place);
        }
        wait_for("it to be called off", || {
            let answer = Request::new("DELETE", "/v1/dr/switchover?by=bob").try_send(cluster.client(4));
            match answer {
                Ok(answer) if answer.status == 202 => Ok(()),
                // Whoever is asked dies of it perhaps.
                _ if !place.is_empty() && cluster.has_crashed(place) => Ok(()),
                answer => match shown(&cluster)?["step"] == "going-back" {
                    true => Ok(()),
                    false => Err(format!("{answer:?}")),
                },
            }
        });
        cluster.release("switchover-added");
        let dead = (!place.is_empty()).then(|| cluster.wait_crashed(place));
        let over = wait_over(&cluster, &begun["id"]);
        assert_eq!(over["state"], "went-back", "{place}: {over}");
        assert_has(over["back"].as_str().unwrap(), &["aborted by bob"]);
        if let Some(dead) = dead {
            cluster.start_member(dead);
        }
        assert_one_primary(&mut cluster, "east");
    }
    // Once the lead is there it is too late.
    cluster.arm_hold("switchover-moving-voters");
    let begun = begin(&cluster, "west");
    cluster.wait_held("switchover-moving-voters");
    let late =
        served(|| http::delete(cluster.client(0), "/v1/dr/switchover")).expect_problem(409, "switchover-refused");
    assert_has(late["detail"].as_str().unwrap(), &["the lead is in west already", "lifeboat dr switchover --to east"]);
    cluster.release("switchover-moving-voters");
    assert_eq!(wait_over(&cluster, &begun["id"])["state"], "done");
    assert_one_primary(&mut cluster, "west");
    let (fine, text) = lifeboat(&cluster, &["dr", "switchover", "--to", "east", "--by", "ann", "--output", "table"]);
    assert!(fine, "{text}");
    assert_has(
        &text,
        &["west to east: ", "east is the primary site; it took", "next: lifeboat dr switchover --to west"],
    );
    assert_one_primary(&mut cluster, "east");
    let written = patient.finish();
    assert_written(&written, &cluster.assert_same_content());
    assert_verified(&cluster, cluster.wait_leader());
}

/// While one stands at a step: it is shown, a second call joins it, another one is refused, nobody changes the members.
fn assert_shown_while_held(cluster: &Cluster, begun: &Value) {
    for member in 0..cluster.len() {
        let again =
            http::post(cluster.client(member), "/v1/dr/switchover", &json!({ "to_site": "west" })).expect(202).json();
        assert_eq!(again["id"], begun["id"], "a second call joins the first: {again}");
        let shown = http::get(cluster.client(member), "/v1/dr/switchover").expect(200).json();
        let (id, step) = (&shown["id"], &shown["step"]);
        assert_eq!((id, step, &shown["target"]), (&begun["id"], &json!("adding-voter"), &begun["target"]), "{shown}");
        assert_has(shown["waits_for"].as_str().unwrap(), &["to become a voter"]);
    }
    let other = http::post(cluster.client(2), "/v1/dr/switchover", &json!({ "to_site": "east" }));
    let other = other.expect_problem(409, "switchover-refused");
    assert_has(other["detail"].as_str().unwrap(), &["from east to west is under way, at adding-voter"]);
    let only_looks = json!({ "to_site": "west", "dry_run": true });
    let check =
        http::post(cluster.client(2), "/v1/dr/switchover", &only_looks).expect_problem(409, "switchover-refused");
    assert_has(check["detail"].as_str().unwrap(), &["is under way", "lifeboat dr switchover --status"]);
    let suspend = http::post(cluster.client(0), "/v1/members/n5/suspend", &json!({})).expect_problem(503, "no-quorum");
    assert_has(suspend["detail"].as_str().unwrap(), &["the primary site is moving from east to west"]);
    let dr = http::get(cluster.client(1), "/v1/dr").expect(200).json();
    assert_eq!(dr["switchover"]["id"], begun["id"], "{dr}");
    // A voter stands in each site: the primary site is where the lead is, the other the standby, and nothing is wrong.
    assert_eq!((&dr["primary_site"], &dr["standby_sites"][0]["site"]), (&json!("east"), &json!("west")), "{dr}");
    assert!(!dr["warnings"].to_string().contains("mirror in another site"), "{dr}");
    assert!(!dr["warnings"].to_string().contains("voters"), "{dr}");
    let put = Request::new("PUT", "/v1/kv/mirrored?durability=mirrored").body("1").send(cluster.client(0));
    assert_eq!((put.status, put.json()["mirrored"].as_bool()), (201, Some(true)), "{put}");
    let (fine, plan) = lifeboat(cluster, &["dr", "plan", "--output", "plain"]);
    assert!(fine && plan == "lifeboat dr switchover --status\nlifeboat dr switchover --abort\n", "{plan}");
}

/// A link that is lost inside the joint change, when its first entry lies in both sites and neither knows that the other has
/// it: nothing can be written until it heals. Then it goes on by itself, and nothing is lost.
#[test]
fn a_link_lost_inside_the_joint_change_stalls_writes_until_it_heals() {
    let mut cluster = steady_sites(3, 3);
    cluster.put_until_done(0, "before", "1");
    // Behind the last look whether the voters answer.
    cluster.arm_hold("switchover-voters-answer");
    let begun = begin(&cluster, "west");
    cluster.wait_held("switchover-voters-answer");
    // What goes east arrives, and no answer comes back.
    cluster.link().one_way(support::link::Way::ToEast);
    cluster.release("switchover-voters-answer");
    wait_for("the old voters to see the joint change", || {
        let members = try_json(&cluster, 0, "/v1/members?")?["members"].as_array().unwrap().clone();
        let east = members.iter().find(|member| member["name"] == "n1").unwrap();
        if east["role"] == "mirror" { Ok(()) } else { Err(east.to_string()) }
    });
    cluster.link().cut();
    for member in [0, 4] {
        let answer = Request::new("PUT", "/v1/kv/amid").body("x").send(cluster.client(member));
        assert!(answer.status == 503 || answer.status == 504, "nobody can write amid a joint change: {answer}");
    }
    wait_for("both sites to say what to do", || {
        for member in [0, 4] {
            let dr = try_json(&cluster, member, "/v1/dr")?;
            let says = dr["plan"].to_string().contains("lifeboat dr switchover --status") && dr["confirmed"] == false;
            if !says || dr["switchover"]["id"] != begun["id"] {
                return Err(dr.to_string());
            }
        }
        Ok(())
    });
    assert!(cluster.leader_now().is_err(), "no quorum of both sites confirms anybody");
    cluster.link().heal();
    assert_eq!(wait_over(&cluster, &begun["id"])["state"], "done");
    assert_one_primary(&mut cluster, "west");
    assert_eq!(cluster.get(0, "before").as_deref(), Some("1"));
    cluster.put_until_done(0, "after", "1");
    cluster.assert_same_content();
    assert_verified(&cluster, cluster.wait_leader());
}

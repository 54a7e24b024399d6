//! Mirrors measured and steered, over a link between two sites that delays, stalls, goes one way, is cut and comes back:
//! each state of a mirror is reached and seen; what is shown is compared with what the test causes and measures itself.
//! Real processes, real sockets.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Request};
use crate::support::link::{Link, Way};
use crate::support::mirrors::{
    Hook, MIRROR, apply_something_else, assert_metric, events, member, mirror, replication, seconds,
};
use crate::support::mirrors::{see_change, steer, wait_event, wait_state, write};
use crate::support::scrape::Metrics;
use crate::support::wait_for;
use crate::support::webhook::receiver;
use serde_json::{Value, json};

/// By how much a measured age may be above the true one: looks are 100 ms apart, and the machine may be slow.
const AGE_SLACK: f64 = 1.5;

fn wait_lacks_nothing(cluster: &Cluster) {
    wait_for("nothing to be lacking", || {
        let found = mirror(cluster);
        if found["send_queue"]["entries"] == 0 { Ok(()) } else { Err(found.to_string()) }
    });
}

#[test]
fn each_state_is_reached_and_seen_in_the_api_the_metrics_and_the_events() {
    let (hook, posts) = receiver(0);
    let cluster =
        Plan::new(3, 1).linked().steady().flag("--webhooks", &hook).flag("--canary-interval-ms", "500ms").start();
    cluster.link().delay(Duration::from_millis(50));
    wait_state(&cluster, "SYNCHRONIZED");
    assert_metric(&cluster, "SYNCHRONIZED");
    wait_lacks_nothing(&cluster);
    wait_for("the round trip to be measured", || {
        let round_trip = seconds(&mirror(&cluster)["round_trip_seconds"]);
        if round_trip >= 0.1 { Ok(()) } else { Err(round_trip.to_string()) }
    });

    // More is written than the link carries.
    cluster.link().rate(Way::ToWest, Some(64 << 10));
    for n in 0..40 {
        // Nothing that the link's compression could make smaller.
        let noise: Vec<u8> = (0..32 << 10).map(|_| rand::random()).collect();
        write(&cluster, &format!("big/{n}"), noise);
    }
    let found = wait_state(&cluster, "SYNCHRONIZING");
    // What is shown is among the events already.
    let told = events(&cluster, "mirror-state");
    assert!(told.iter().any(|detail| detail.contains("n4 was SYNCHRONIZED and is SYNCHRONIZING")), "{told:?}");
    assert_metric(&cluster, "SYNCHRONIZING");
    let queue = &found["send_queue"];
    assert!(queue["entries"].as_u64().unwrap() > 0 && queue["bytes"].as_u64().unwrap() > 32 << 10, "{found}");
    assert!(seconds(&queue["oldest_seconds"]) > 0.5 && found["catch_up_by"] == "log", "{found}");
    wait_for("an estimate of when it has caught up", || {
        let found = mirror(&cluster);
        if found["catch_up_seconds"].is_number() { Ok(()) } else { Err(found.to_string()) }
    });
    cluster.link().rate(Way::ToWest, None);
    wait_state(&cluster, "SYNCHRONIZED");
    wait_event(&cluster, "mirror-state", "n4 was SYNCHRONIZING and is SYNCHRONIZED");

    // The link is lost, then stands still: nobody answers any more.
    for (number, lose) in [Link::cut, Link::stall].into_iter().enumerate() {
        lose(cluster.link());
        write(&cluster, "lost", format!("{number}"));
        let found = wait_state(&cluster, "DISCONNECTED");
        assert_metric(&cluster, "DISCONNECTED");
        assert!(seconds(&found["last_contact_seconds"]) >= 2.0, "{found}");
        assert!(found["reason"].as_str().unwrap().contains("has not answered"), "{found}");
        assert!(found["send_queue"]["entries"].as_u64().unwrap() >= 1, "{found}");
        cluster.link().heal();
        wait_state(&cluster, "SYNCHRONIZED");
    }
    wait_event(&cluster, "mirror-state", "and is DISCONNECTED");

    // Suspended by a person: over a change of leaders too.
    steer(&cluster, "suspend");
    wait_state(&cluster, "SUSPENDED");
    assert_metric(&cluster, "SUSPENDED");
    write(&cluster, "while", "suspended");
    let old = cluster.wait_leader();
    http::post(cluster.client(old), "/v1/leader", &json!({})).expect(200);
    let found = wait_state(&cluster, "SUSPENDED");
    assert!(found["send_queue"]["entries"].as_u64().unwrap() >= 1, "{found}");
    let stale = http::get(cluster.client(MIRROR), "/v1/kv/while?consistency=stale");
    assert_eq!(stale.status, 404, "a suspended mirror is sent nothing");
    steer(&cluster, "resume");
    wait_state(&cluster, "SYNCHRONIZED");
    wait_event(&cluster, "mirror-state", "n4 was SUSPENDED and is SYNCHRONIZ");
    wait_event(&cluster, "mirror-suspended", "n4");

    // It agrees up to what was written.
    let revision = cluster.wait_converged();
    wait_for("the chain hashes to agree", || {
        let agreed = mirror(&cluster)["hash_agreed_revision"].as_u64();
        if agreed >= Some(revision) { Ok(()) } else { Err(format!("{agreed:?} of {revision}")) }
    });
    cluster.assert_same_content();

    // A canary takes the whole way, there and until its arrival is told.
    wait_for("a canary to be measured", || {
        let took = mirror(&cluster)["canary_seconds"].as_f64().ok_or("none is")?;
        if (0.05..5.0).contains(&took) { Ok(()) } else { Err(took.to_string()) }
    });

    // Every change of state was posted too.
    let mut wanted = vec![
        ("SYNCHRONIZED", "SYNCHRONIZING"),
        ("SYNCHRONIZING", "SYNCHRONIZED"),
        // It may be on its way up or down when it is lost or suspended, and have caught up when it is looked at again. Each
        // single change is in `states.rs`.
        ("", "DISCONNECTED"),
        ("DISCONNECTED", ""),
        ("", "SUSPENDED"),
        ("SUSPENDED", ""),
    ];
    while !wanted.is_empty() {
        let post = posts.recv_timeout(support::PATIENCE).unwrap_or_else(|_| panic!("no post of {wanted:?}"));
        if post.body["kind"] == "mirror-state" && post.body["subject"] == "n4" {
            let is = |field: &str, word: &str| word.is_empty() || post.body[field] == word;
            wanted.retain(|(from, to)| !is("from", from) || !is("to", to));
        }
    }
}

/// Only one way of the link works: bytes of the other arrive no more on any connection, or, as with a firewall, members of
/// one side cannot connect to those of the other.
#[test]
fn a_mirror_to_which_only_one_way_works_is_disconnected_and_never_looks_current() {
    let (url, mut hook) = Hook::new();
    let cluster = Plan::new(3, 1).linked().steady().flag("--webhooks", &url).start();
    wait_state(&cluster, "SYNCHRONIZED");
    let shown_by_itself = |key: &str| http::get(cluster.client(MIRROR), &format!("/v1/kv/{key}?consistency=stale"));
    let own_lag = || Metrics::of(cluster.client(MIRROR)).sum("lifeboat_lag_seconds", &[]);
    type Lose = fn(&Link);
    let ways: [(&str, Lose, bool); 3] = [
        ("to-west-alone", |link| link.one_way(Way::ToWest), true),
        ("to-east-alone", |link| link.one_way(Way::ToEast), false),
        ("dialled-from-west-alone", |link| link.cut_way(Way::ToWest), false),
    ];
    for (key, lose, arrives) in ways {
        lose(cluster.link());
        write(&cluster, key, "x");
        let written = Instant::now();
        wait_for(&format!("a while of looks with the way {key}"), || {
            let since = written.elapsed();
            let found = mirror(&cluster);
            let (lag, least) = (seconds(&found["lag_seconds"]), since.as_secs_f64());
            assert!(lag > 0.0 && lag >= least, "{key}: {lag} is less than {least}: {found}");
            // From its own side it has heard nothing either that would show that it has everything.
            let (since, own) = (written.elapsed().as_secs_f64() - AGE_SLACK, own_lag());
            assert!(own > 0.0 && own >= since, "{key}: {own} is less than {since}");
            let gone = found["state"] == "DISCONNECTED" && seconds(&found["last_contact_seconds"]) > 5.0;
            if gone { Ok(()) } else { Err(found.to_string()) }
        });
        let found = see_change(&cluster, &mut hook, "n4", "", "DISCONNECTED");
        assert!(found["reason"].as_str().unwrap().contains("has not answered"), "{key}: {found}");
        assert!(found["send_queue"]["entries"].as_u64().unwrap() >= 1, "{key}: {found}");
        // Where only its answers are lost it has what was written, and the leader cannot know.
        wait_for("the mirror to show what reaches it", || match (shown_by_itself(key).status, arrives) {
            (200, true) | (404, false) => Ok(()),
            (status, _) => Err(format!("{key}: {status}")),
        });
        cluster.link().heal();
        see_change(&cluster, &mut hook, "n4", "", "SYNCHRONIZED");
    }

    // The mirror cannot connect to its primary site, which connects to it: the leader sees that it follows, and the mirror,
    // whose questions are not answered, cannot know.
    cluster.link().cut_way(Way::ToEast);
    let cut = Instant::now();
    write(&cluster, "dialled-from-east-alone", "x");
    wait_for("the mirror to say that it may lag, and the leader that it follows", || {
        let elapsed = cut.elapsed();
        let (own, found) = (own_lag(), mirror(&cluster));
        assert!(own > 0.0 && own >= elapsed.as_secs_f64() - AGE_SLACK, "{own} after {elapsed:?}");
        let shown = shown_by_itself("dialled-from-east-alone").status;
        let follows = found["state"] == "SYNCHRONIZED" && seconds(&found["lag_seconds"]) < own && shown == 200;
        if own > 5.0 && follows { Ok(()) } else { Err(format!("{own}, {shown}, {found}")) }
    });
    assert_metric(&cluster, "SYNCHRONIZED");
    cluster.link().heal();
    wait_for("the mirror to be current in its own eyes", || match own_lag() {
        lag if lag < 3.0 => Ok(()),
        lag => Err(lag.to_string()),
    });
    cluster.assert_same_content();
}

#[test]
fn a_voter_cannot_be_suspended_and_nobody_else_that_is_not_there() {
    let cluster = Plan::new(3, 1).start();
    let refused = http::post(cluster.client(MIRROR), "/v1/members/n2/suspend", &json!({}));
    let problem = refused.expect_problem(400, "refused");
    assert!(problem["detail"].as_str().unwrap().contains("n2 is a voter"), "{problem}");
    http::post(cluster.client(0), "/v1/members/n9/suspend", &json!({})).expect_problem(404, "unknown-member");
    http::post(cluster.client(0), "/v1/members/n9/resume", &json!({})).expect_problem(404, "unknown-member");
    assert_eq!(wait_state(&cluster, "SYNCHRONIZED")["name"], "n4");
}

/// Nobody leads another cluster meanwhile: only the quorum is silent for longer than a leader is believed.
#[test]
fn a_change_waits_for_a_quorum_that_is_silent_for_a_moment() {
    let mut cluster = Plan::new(3, 1).steady().start();
    wait_state(&cluster, "SYNCHRONIZED");
    let leader = cluster.wait_leader();
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    others.iter().for_each(|other| cluster.pause(*other));
    wait_for("the leader to be alone", || {
        let reply = replication(&cluster, leader);
        if reply["confirmed"] == false { Ok(()) } else { Err(reply.to_string()) }
    });
    let address = cluster.client(leader);
    let target = "/v1/members/n4/suspend";
    let mut connection = http::Connection::open(address).unwrap();
    connection.send(&Request::new("POST", target).body("{}").bytes()).unwrap();
    // It has surely been looked at before the others come back when so many later ones are answered.
    for _ in 0..20 {
        http::get(address, "/v1/status").expect(200);
    }
    others.iter().for_each(|other| cluster.resume(*other));
    let answer = connection.read_answer(false).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_state(&cluster, "SUSPENDED");
    steer(&cluster, "resume");
}

#[test]
fn the_age_shown_is_the_age_caused() {
    let cluster = Plan::new(3, 1).linked().steady().start();
    cluster.link().delay(Duration::from_millis(25));
    wait_state(&cluster, "SYNCHRONIZED");
    cluster.wait_converged();
    wait_lacks_nothing(&cluster);
    let leader = cluster.wait_leader();
    cluster.link().cut();
    let before_cut = Instant::now();
    let begun = Instant::now();
    write(&cluster, "first/lost", "1");
    let acknowledged = Instant::now();
    for n in 0..50 {
        write(&cluster, &format!("later/{n}"), "x");
    }
    let mut looks = 0;
    wait_for("the age to have been compared for a while", || {
        let asked = Instant::now();
        let reply = replication(&cluster, leader);
        let answered = Instant::now();
        let found = member(&reply, "n4");
        // From the leader's commit, which came between the two.
        let least = asked.duration_since(acknowledged).as_secs_f64();
        let most = answered.duration_since(begun).as_secs_f64() + AGE_SLACK;
        let shown = seconds(&found["send_queue"]["oldest_seconds"]);
        assert!((least..=most).contains(&shown), "{shown} is not from {least} to {most}: {found}");
        let entries = found["send_queue"]["entries"].as_u64().unwrap();
        assert!(entries >= 51, "{found}");
        let lag = seconds(&found["lag_seconds"]);
        assert!(lag >= least, "what the mirror shows is older than {lag}");
        let dr = http::get(cluster.client(leader), "/v1/dr").expect(200).json();
        let rpo = seconds(&dr["standby_sites"][0]["rpo_seconds"]);
        assert!(rpo >= least && rpo <= most + AGE_SLACK, "{rpo} is not from {least} to {most}: {dr}");
        assert!(dr["standby_sites"][0]["rpo_entries"].as_u64().unwrap() >= 51, "{dr}");
        // What the mirror itself says, and shows its readers.
        let own = Metrics::of(cluster.client(MIRROR)).sum("lifeboat_lag_seconds", &[]);
        assert!(own >= before_cut.elapsed().as_secs_f64() - AGE_SLACK, "{own}");
        let stale = http::get(cluster.client(MIRROR), "/v1/kv/first%2Flost?consistency=stale");
        let told: f64 = stale.must_have("lifeboat-lag-seconds").parse().unwrap();
        assert!(stale.status == 404 && told >= least - AGE_SLACK, "{stale}");
        looks += 1;
        if asked.duration_since(acknowledged) > Duration::from_secs(3) { Ok(()) } else { Err(format!("{looks} looks")) }
    });
    cluster.link().heal();
    let found = wait_state(&cluster, "SYNCHRONIZED");
    assert_eq!(found["catch_up_by"], "log", "{found}");
    wait_lacks_nothing(&cluster);
    cluster.wait_converged();
    cluster.assert_same_content();
}

#[test]
fn a_mirror_of_a_leader_without_a_quorum_never_looks_current() {
    let mut cluster = Plan::new(3, 1).start();
    wait_state(&cluster, "SYNCHRONIZED");
    write(&cluster, "a", "1");
    let leader = cluster.wait_leader();
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    others.iter().for_each(|other| cluster.pause(*other));
    let alone_since = Instant::now();
    wait_for("the leader to notice that it is alone", || {
        let reply = replication(&cluster, leader);
        if reply["confirmed"] == false { Ok(()) } else { Err(reply.to_string()) }
    });
    wait_for("a while of looks", || {
        let alone = alone_since.elapsed().as_secs_f64() - AGE_SLACK;
        let reply = replication(&cluster, leader);
        if reply["leader"].is_null() {
            // It has given up: then it says nothing of others at all.
            assert!(reply["members"].as_array().unwrap().iter().all(|member| member["state"] != "SYNCHRONIZED"));
        } else {
            let found = member(&reply, "n4");
            assert!(seconds(&found["lag_seconds"]) > 0.0 && seconds(&found["lag_seconds"]) >= alone, "{found}");
            assert_ne!(found["state"], "SYNCHRONIZED", "{found}");
        }
        let dr = http::get(cluster.client(leader), "/v1/dr").expect(200).json();
        assert_eq!(dr["confirmed"], false, "{dr}");
        if let Some(site) = dr["standby_sites"].get(0) {
            assert!(seconds(&site["rpo_seconds"]) > 0.0 && seconds(&site["rpo_seconds"]) >= alone, "{dr}");
        }
        let own = Metrics::of(cluster.client(MIRROR)).sum("lifeboat_lag_seconds", &[]);
        assert!(own > 0.0 && own >= alone, "{own}");
        if alone > 2.0 { Ok(()) } else { Err(format!("{alone}")) }
    });
    others.iter().for_each(|other| cluster.resume(*other));
    wait_state(&cluster, "SYNCHRONIZED");
}

#[test]
fn a_write_waits_for_a_mirror_when_it_shall() {
    let cluster = Plan::new(3, 1).flag("--mirror-wait-ms", "4s").linked().steady().start();
    cluster.link().delay(Duration::from_millis(100));
    wait_state(&cluster, "SYNCHRONIZED");
    // By the leader, by a follower, and by the mirror itself.
    for asked in 0..4 {
        let begun = Instant::now();
        let target = format!("/v1/kv/kept/{asked}?durability=mirrored");
        let reply = http::put(cluster.client(asked), &target, "x").expect(201).json();
        assert_eq!(reply["mirrored"], true, "{reply}");
        assert!(
            begun.elapsed() >= Duration::from_millis(200),
            "the mirror cannot have answered in {:?}",
            begun.elapsed()
        );
        let stale = http::get(cluster.client(MIRROR), &format!("/v1/kv/kept/{asked}?consistency=linearizable"));
        assert_eq!(stale.status, 200, "{stale}");
    }
    let txn = json!({ "then": [{ "put": { "key": "t", "value": "1" } }] });
    let reply = http::post(cluster.client(1), "/v1/txn?durability=mirrored", &txn).expect(200).json();
    assert_eq!((&reply["succeeded"], &reply["mirrored"]), (&json!(true), &json!(true)), "{reply}");
    assert!(http::put(cluster.client(0), "/v1/kv/plain", "x").json().get("mirrored").is_none());

    // A mirror that is sent nothing cannot have it; the write is committed all the same.
    steer(&cluster, "suspend");
    wait_state(&cluster, "SUSPENDED");
    for request in [
        Request::new("DELETE", "/v1/kv/kept/0?durability=mirrored"),
        Request::new("DELETE", "/v1/keys?prefix=kept/&durability=mirrored"),
        Request::new("PUT", "/v1/kv/only-here?durability=mirrored").body("x"),
    ] {
        let reply = request.send(cluster.client(1));
        assert!(reply.status < 300 && reply.json()["mirrored"] == false, "{reply}");
    }
    assert_eq!(http::get(cluster.client(2), "/v1/kv/only-here").status, 200);
    let bad = http::put(cluster.client(0), "/v1/kv/a?durability=forever", "x");
    assert_eq!(bad.expect_problem(400, "bad-parameter")["field"], "durability");
}

#[test]
fn reads_and_watches_on_a_mirror_end_where_its_lag_is_more_than_they_bear() {
    let cluster = Plan::new(3, 1).linked().start();
    wait_state(&cluster, "SYNCHRONIZED");
    write(&cluster, "w/1", "1");
    cluster.wait_converged();
    let address = cluster.client(MIRROR);
    let mut watch = http::Connection::open(address).unwrap();
    let target = "/v1/watch?prefix=w/&since=0&max_lag=3s";
    watch.send(&Request::new("GET", target).header("Accept", "application/x-ndjson").bytes()).unwrap();
    let text = std::thread::scope(|scope| {
        let reader = scope.spawn(|| watch.read_answer(false).unwrap());
        cluster.link().cut();
        reader.join().unwrap()
    });
    let lines: Vec<Value> = text.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|event| event["type"] == "change"), "{lines:?}");
    let last = lines.last().unwrap();
    assert_eq!((&last["type"], &last["reason"]), (&json!("end"), &json!("lagging")), "{lines:?}");
    http::get(address, target).expect_problem(503, "too-stale");
    http::get(address, "/v1/kv/w%2F1?consistency=stale&max_lag=3s").expect_problem(503, "too-stale");
    let stale = http::get(address, "/v1/kv/w%2F1?consistency=stale").expect(200);
    assert!(stale.must_have("lifeboat-lag-seconds").parse::<f64>().unwrap() > 3.0, "{stale}");
    cluster.link().heal();
    wait_state(&cluster, "SYNCHRONIZED");
    wait_for("the mirror to be current", || match http::get(address, "/v1/kv/w%2F1?consistency=stale&max_lag=3s") {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.to_string()),
    });
}

/// Runs the first command that `lifeboat dr plan` gives, as a person would.
fn follow_the_plan(cluster: &Cluster) -> String {
    let program = env!("CARGO_BIN_EXE_lifeboat");
    let endpoints = format!("http://{}", cluster.client(0));
    let run = |arguments: &[&str]| {
        let done = Command::new(program).args(arguments).env("LIFEBOAT_ENDPOINTS", &endpoints).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let plan = run(&["dr", "plan", "--output", "plain"]);
    let command = plan.lines().next().unwrap().to_owned();
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(words[0], "lifeboat", "{plan}");
    run(&words[1..]);
    command
}

#[test]
fn the_plan_gives_commands_that_help() {
    let cluster = Plan::new(3, 1).steady().start();
    wait_state(&cluster, "SYNCHRONIZED");
    wait_dr(&cluster, "nothing to warn of", |dr| dr["warnings"] == json!([]));
    let dr = http::get(cluster.client(MIRROR), "/v1/dr").expect(200).json();
    assert_eq!((&dr["primary_site"], &dr["quorum_margin"]), (&json!("east"), &json!(1)), "{dr}");
    assert_eq!(dr["standby_sites"][0]["mirrors"], json!(["n4"]), "{dr}");
    assert!(dr["standby_sites"][0]["rpo_met"] == true && dr["standby_sites"][0]["rto_met"] == true, "{dr}");
    assert_eq!((&dr["warnings"], dr["plan"].as_array().unwrap().len()), (&json!([]), 2), "{dr}");
    assert_eq!(dr["plan"][1]["command"], "lifeboat dr drill --site west", "{dr}");
    assert_eq!(follow_the_plan(&cluster), "lifeboat replication");
    steer(&cluster, "suspend");
    wait_state(&cluster, "SUSPENDED");
    assert_eq!(follow_the_plan(&cluster), "lifeboat members resume n4");
    wait_state(&cluster, "SYNCHRONIZED");
}

/// What `/v1/dr` says, as soon as it says this.
#[track_caller]
fn wait_dr(cluster: &Cluster, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, || {
        let dr = http::get(cluster.client(cluster.leader_now()?), "/v1/dr").expect(200).json();
        if is(&dr) { Ok(dr) } else { Err(dr.to_string()) }
    })
}

#[test]
fn a_mirror_that_only_the_budget_of_the_log_holds_is_warned_of() {
    let cluster = Plan::new(3, 1).flag("--wal-keep-bytes", "4MiB").start();
    wait_state(&cluster, "SYNCHRONIZED");
    steer(&cluster, "suspend");
    wait_state(&cluster, "SUSPENDED");
    let warned =
        |dr: &Value| dr["warnings"].to_string().contains("mirror n4 is held only by the wal budget: it needs ");
    for n in 0..20 {
        write(&cluster, &format!("a/{n}"), vec![b'x'; 64 << 10]);
    }
    let dr =
        wait_dr(&cluster, "what it needs to be shown", |dr| dr["standby_sites"][0]["rpo_entries"].as_u64() >= Some(20));
    assert!(!warned(&dr), "a third of the budget is not worth a warning: {dr}");
    for n in 20..45 {
        write(&cluster, &format!("a/{n}"), vec![b'x'; 64 << 10]);
    }
    wait_dr(&cluster, "the warning", warned);
    assert_eq!(mirror(&cluster)["catch_up_by"], "log");
    steer(&cluster, "resume");
    wait_dr(&cluster, "the warning to go", |dr| !warned(dr));
    wait_state(&cluster, "SYNCHRONIZED");
}

#[test]
fn a_voter_far_away_is_named_in_the_plan_which_makes_it_a_mirror() {
    let mut cluster = Plan::new(3, 0).linked().steady().prepare();
    let far = cluster.add_member("voter", "west");
    assert_eq!(far, MIRROR);
    cluster.start_member(0);
    cluster.wait_ready(0);
    (1..=far).for_each(|member| cluster.start_member(member));
    cluster.wait_joined();
    wait_state(&cluster, "SYNCHRONIZED");
    let advised = |dr: &Value| {
        let plan = dr["plan"].as_array().unwrap();
        plan.iter().any(|step| {
            let why = step["why"].as_str().unwrap();
            step["command"] == "lifeboat members demote n4"
                && why.contains("n4 is a voter far away")
                && why.contains("make it a mirror")
        })
    };
    cluster.link().delay(Duration::from_millis(40));
    // It must not lead: a leader is not far from itself.
    let leader = cluster.wait_leader();
    if leader == far {
        http::post(cluster.client(0), "/v1/leader", &json!({ "to": "n1" })).expect(200);
    }
    wait_dr(&cluster, "the plan to name the voter that is far away", advised);
    assert_eq!(follow_the_plan(&cluster), "lifeboat members demote n4");
    let dr = wait_dr(&cluster, "it to be a mirror", |dr| dr["standby_sites"][0]["mirrors"] == json!(["n4"]));
    assert!(!advised(&dr), "{dr}");
    assert_eq!(wait_state(&cluster, "SYNCHRONIZED")["role"], "mirror");
}

#[test]
fn objectives_that_are_missed_and_met_again_are_told() {
    let (url, mut hook) = Hook::new();
    let mut cluster = Plan::new(3, 1).steady().flag("--rpo-seconds", "1").flag("--webhooks", &url).start();
    // The newest one: a busy machine may have missed it for a moment before.
    let see = |hook: &mut Hook, kind: &str| {
        let id = wait_for(&format!("{kind} to be told"), || {
            let reply = http::get(cluster.client(cluster.leader_now()?), "/v1/events").expect(200).json();
            let is = |event: &&Value| event["detail"].as_str().unwrap().contains("rpo objective of site west");
            let newest = reply["events"].as_array().unwrap().iter().rev().find(is);
            let wanted = newest.filter(|event| event["kind"] == kind);
            wanted.map(|event| event["event_id"].clone()).ok_or_else(|| reply.to_string())
        });
        hook.wait(kind, |post| post["event_id"] == id && post["kind"] == kind);
    };
    wait_state(&cluster, "SYNCHRONIZED");
    steer(&cluster, "suspend");
    write(&cluster, "a", "1");
    let dr = wait_dr(&cluster, "the objective to be missed", |dr| dr["standby_sites"][0]["rpo_met"] == false);
    see(&mut hook, "objective-missed");
    let warnings = dr["warnings"].to_string();
    assert!(warnings.contains("site west misses its objective"), "{warnings}");
    steer(&cluster, "resume");
    see(&mut hook, "objective-met");

    // A voter fewer: the margin is gone.
    let follower = cluster.follower();
    cluster.kill(follower);
    wait_for("the warning of the margin", || {
        let dr = http::get(cluster.client(cluster.leader_now()?), "/v1/dr").expect(200).json();
        let told = dr["warnings"].to_string().contains("quorum margin is zero") && dr["quorum_margin"] == 0;
        if told { Ok(()) } else { Err(dr.to_string()) }
    });
}

#[test]
fn a_suspended_mirror_that_outlasts_the_log_comes_back_by_a_delta() {
    let cluster = Plan::new(3, 1).seals_early().steady().start();
    for n in 0..20 {
        write(&cluster, &format!("base/{n}"), vec![b'b'; 64 << 10]);
    }
    wait_state(&cluster, "SYNCHRONIZED");
    cluster.wait_converged();
    steer(&cluster, "suspend");
    wait_state(&cluster, "SUSPENDED");
    let mut written = 0;
    wait_for("the log to go on without the mirror", || {
        for _ in 0..16 {
            written += 1;
            write(&cluster, &format!("more/{}", written % 40), vec![b'm'; 64 << 10]);
        }
        let found = mirror(&cluster);
        if found["catch_up_by"] == "delta" { Ok(()) } else { Err(found.to_string()) }
    });
    let copies = |kind: &str| {
        let label = format!("kind=\"{kind}\"");
        (0..3).map(|at| Metrics::of(cluster.client(at)).sum("lifeboat_copies_sent_total", &[&label])).sum::<f64>()
    };
    let full = copies("full");
    steer(&cluster, "resume");
    wait_state(&cluster, "SYNCHRONIZED");
    cluster.wait_converged();
    Metrics::wait_copies(&cluster.clients()[..3], &["kind=\"delta\""], 1.0);
    assert!(copies("delta") >= 1.0 && copies("full") == full, "{} deltas, {} full", copies("delta"), copies("full"));
    cluster.assert_same_content();
}

#[test]
fn a_member_that_has_applied_something_else_is_found_by_its_chain_hash_and_repaired() {
    // Without canaries, the next entry is the one that the test writes.
    let mut cluster = Plan::new(3, 1).steady().flag("--canary-interval-ms", "0").start();
    wait_state(&cluster, "SYNCHRONIZED");
    for n in 0..20 {
        write(&cluster, &format!("k/{n}"), "1");
    }
    let (leader, revision) = (cluster.wait_leader(), cluster.wait_converged());
    assert!(cluster.stop(MIRROR).success());
    apply_something_else(&cluster.member(MIRROR).data.clone());
    write(&cluster, "k/0", "2");
    cluster.start_member(MIRROR);
    wait_for("the mirror to be repaired", || {
        let answer = Request::new("GET", "/v1/events").try_send(cluster.client(MIRROR)).map_err(|e| e.to_string())?;
        let text = answer.text().to_owned();
        if answer.status == 200 && text.contains("\"repaired\"") { Ok(()) } else { Err(text) }
    });
    let told = http::get(cluster.client(MIRROR), "/v1/events").expect(200).text().to_owned();
    assert!(told.contains("\"quarantined\"") && told.contains("chain hash at position"), "{told}");
    wait_state(&cluster, "SYNCHRONIZED");
    assert_eq!(cluster.wait_leader(), leader, "only the mirror was repaired");
    assert!(cluster.wait_converged() > revision);
    cluster.assert_same_content();
    assert_eq!(http::get(cluster.client(MIRROR), "/v1/kv/from%2Fnowhere?consistency=stale").status, 404);
}

#[test]
fn the_log_keeps_its_budget_while_a_mirror_is_down_however_fast_it_grows() {
    let mut cluster = Plan::new(1, 1).seals_early().linked().start();
    let state = |state: &str| {
        wait_for(&format!("the mirror to be {state}"), || {
            let found = member(&replication(&cluster, 0), "n2");
            if found["state"] == state { Ok(found) } else { Err(found.to_string()) }
        })
    };
    state("SYNCHRONIZED");
    let index = cluster.status(1).unwrap()["applied_index"].as_u64().unwrap();
    cluster.stop(1);
    let mut written = 0;
    wait_for("the log to go on without the mirror", || {
        for _ in 0..16 {
            written += 1;
            write(&cluster, &format!("more/{}", written % 40), vec![b'm'; 64 << 10]);
        }
        let first = Metrics::of(cluster.client(0)).sum("lifeboat_wal_first_index", &[]);
        if first > index as f64 + 1.0 { Ok(()) } else { Err(format!("it begins at {first} after {written} writes")) }
    });
    let bytes = Metrics::of(cluster.client(0)).sum("lifeboat_wal_bytes", &[]);
    assert!(bytes < 12e6, "the log has {bytes} bytes");
    cluster.start_member(1);
    cluster.wait_ready(1);
    cluster.wait_converged();
    cluster.assert_same_content();
}

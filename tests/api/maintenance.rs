//! The planned pause on real processes: what is refused and what goes on, on every member; how it ends.

use crate::support;
use crate::support::cluster::Plan;
use crate::support::http::{self, Connection, Request};
use crate::support::watch::Stream;
use crate::support::{cluster_events, wait_for};
use serde_json::json;

#[test]
fn writes_are_refused_everywhere_and_the_cluster_goes_on() {
    let mut cluster = Plan::new(3, 1).start();
    let all: Vec<_> = (0..4).map(|member| cluster.client(member)).collect();
    http::put(all[0], "/v1/kv/a", "1").expect(201);
    http::post(all[0], "/v1/leases", &json!({"id": 7, "ttl_seconds": 3600})).expect(201);
    http::put(all[0], "/v1/kv/short?ttl=1s", "x").expect(201);

    let follower = cluster.follower();
    let pause = json!({"message": "moving racks", "until": "10m"}).to_string();
    let begun = http::put(all[follower], "/v1/maintenance", &pause).expect(200).json();
    assert_eq!(
        (&begun["active"], &begun["reads"], &begun["message"]),
        (&json!(true), &json!(false), &json!("moving racks"))
    );
    let revision = begun["revision"].as_u64().unwrap();
    // At once where it was begun; where it has been applied elsewhere.
    for &at in [all[follower]].iter().chain(&all) {
        wait_for("the pause to be seen", || match http::get(at, "/v1/maintenance").json() {
            seen if seen["active"] == true => Ok(()),
            seen => Err(seen.to_string()),
        });
        for request in [
            Request::new("PUT", "/v1/kv/a").body("2"),
            Request::new("PUT", "/v1/kv/a").header("Idempotency-Key", "k").body("2"),
            Request::new("DELETE", "/v1/kv/a"),
            Request::new("DELETE", "/v1/keys?prefix=a"),
            Request::new("POST", "/v1/txn").body(r#"{"then":[{"put":{"key":"a","value":"2"}}]}"#),
            Request::new("POST", "/v1/leases").body(r#"{"ttl_seconds":5}"#),
            Request::new("DELETE", "/v1/leases/7"),
            Request::new("POST", "/v1/seq/s"),
        ] {
            let answer = request.send(at).expect(503);
            let seconds: u64 = answer.must_have("retry-after").parse().unwrap();
            assert_eq!(seconds, 300, "it ends in ten minutes, or by hand");
            let problem = answer.expect_problem(503, "maintenance");
            assert_eq!((&problem["outcome"], &problem["retry"]), (&json!("not-applied"), &json!("safe")));
            assert!(problem["detail"].as_str().unwrap().ends_with("Z: moving racks"), "{problem}");
        }
        assert_eq!(http::get(at, "/v1/kv/a").expect(200).text(), "1");
        http::get(at, "/v1/keys").expect(200);
        http::post(at, "/v1/leases/7/keepalive", &json!({})).expect(200);
        for target in ["/v1/status", "/health/live", "/metrics", "/v1/events", "/v1/members"] {
            http::get(at, target).expect(200);
        }
        wait_for("the member to be ready", || match http::get(at, "/health/ready") {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.to_string()),
        });
    }
    // A lease that nobody keeps alive ends as ever, and members come and go.
    wait_for("the lease to end", || match http::get(all[0], "/v1/kv/short").status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
    http::post(all[0], "/v1/members", &json!({"name": "n9"})).expect(202);
    http::delete(all[0], "/v1/members/n9").expect(200);
    // Whoever leads next refuses as well.
    let leader = cluster.wait_leader();
    cluster.kill(leader);
    let next = cluster.wait_other_leader(leader);
    http::put(all[next], "/v1/kv/a", "2").expect_problem(503, "maintenance");
    cluster.start_member(leader);
    cluster.wait_ready(leader);
    http::put(all[leader], "/v1/kv/a", "2").expect_problem(503, "maintenance");

    // Another one takes its place, and then it is ended.
    let longer = json!({"message": "longer", "until": "2100-01-01T00:00:00Z"});
    http::put(all[0], "/v1/maintenance", longer.to_string()).expect_problem(400, "bad-body");
    http::put(all[0], "/v1/maintenance", json!({"message": "longer", "until": "20m"}).to_string()).expect(200);
    let ended = http::delete(all[next], "/v1/maintenance").expect(200).json();
    assert_eq!(ended["ended"], true);
    assert!(ended["revision"].as_u64().unwrap() > revision);
    assert_eq!(http::delete(all[next], "/v1/maintenance").expect(200).json()["ended"], false);
    for &at in &all {
        wait_for("writes to go on", || match http::put(at, "/v1/kv/a", "3").status {
            200 => Ok(()),
            status => Err(status.to_string()),
        });
        wait_for("the events", || {
            let events = cluster_events(at)?;
            let kinds: Vec<_> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
            match kinds.contains(&"maintenance-started") && kinds.contains(&"maintenance-ended") {
                true => Ok(()),
                false => Err(format!("{kinds:?}")),
            }
        });
    }
}

/// The primary site can be looked after, rehearsed and moved during a pause, and the pause moves with it.
#[test]
fn the_plan_a_drill_and_a_switchover_work_during_a_pause_which_goes_on_afterwards() {
    let cluster = Plan::new(1, 1).start();
    let [east, west] = [cluster.client(0), cluster.client(1)];
    http::put(east, "/v1/kv/a", "1").expect(201);
    wait_for("the feature level to rise", || {
        let level = cluster.status(0)?["feature_level"].as_u64();
        if level >= Some(3) { Ok(()) } else { Err(format!("{level:?}")) }
    });
    cluster.wait_converged();
    let pause = json!({"message": "moving racks", "until": "30m"}).to_string();
    http::put(east, "/v1/maintenance", &pause).expect(200);
    let assert_refused = || {
        for at in [east, west] {
            wait_for("the pause to be seen", || match http::put(at, "/v1/kv/a", "2") {
                answer if answer.status == 503 && answer.text().contains("no-leader") => Err(answer.to_string()),
                answer => {
                    let problem = answer.expect_problem(503, "maintenance");
                    assert!(problem["detail"].as_str().unwrap().ends_with("Z: moving racks"), "{problem}");
                    Ok(())
                }
            });
            assert_eq!(http::get(at, "/v1/kv/a").expect(200).text(), "1");
        }
    };
    cluster.wait_converged();
    assert_refused();

    let endpoint = format!("http://{west}");
    let program = env!("CARGO_BIN_EXE_lifeboat");
    let plan = std::process::Command::new(program).args(["dr", "plan", "--endpoints", &endpoint]).output().unwrap();
    let text = String::from_utf8_lossy(&plan.stdout).into_owned() + &String::from_utf8_lossy(&plan.stderr);
    assert!(plan.status.success() && text.contains("west"), "{text}");

    let drill = Request::new("POST", "/v1/dr/drill").header("Accept", "application/json").body("{}");
    let report = drill.send(west).expect(200).json();
    assert_eq!(report["passed"], true, "{report:#}");
    assert!(report["notes"].to_string().contains("a planned pause is in force"), "{report:#}");
    assert_refused();

    wait_for("a switchover to begin", || {
        let answer = http::post(west, "/v1/dr/switchover", &json!({ "to_site": "west" }));
        if answer.status == 202 { Ok(()) } else { Err(answer.to_string()) }
    });
    wait_for("west to be the primary site", || {
        let leader = cluster.leader_now()?;
        let shown = http::get(cluster.client(leader), "/v1/dr/switchover").json();
        if leader == 1 && shown["state"] == "done" { Ok(()) } else { Err(shown.to_string()) }
    });
    assert_refused();
    assert_eq!(http::get(west, "/v1/maintenance").expect(200).json()["active"], true);
    http::delete(west, "/v1/maintenance").expect(200);
    for at in [west, east] {
        wait_for("writes to go on", || match http::put(at, "/v1/kv/a", "3").status {
            200 => Ok(()),
            status => Err(status.to_string()),
        });
    }
}

#[test]
fn reads_are_refused_when_told_and_it_ends_by_itself() {
    let cluster = Plan::new(1, 1).start();
    let all = [cluster.client(0), cluster.client(1)];
    http::put(all[0], "/v1/kv/a", "1").expect(201);
    let revision = http::get(all[0], "/v1/kv/a").expect(200).must_have("lifeboat-revision").to_owned();
    let mut watches: Vec<Stream> = all.iter().map(|at| Stream::open(*at, "prefix=a").unwrap().unwrap()).collect();
    for watch in &mut watches {
        assert_eq!(watch.next().unwrap().unwrap()["type"], "open");
    }
    let waiting = std::thread::spawn({
        let (at, target) = (all[1], format!("/v1/kv/a?since={revision}&wait=60s&consistency=stale"));
        move || {
            let mut open = Connection::open(at).unwrap();
            Request::new("GET", &target).try_send_on(&mut open).unwrap()
        }
    });
    wait_for("the read to wait", || match support::scrape::Metrics::of(all[1]).sum("lifeboat_watchers", &[]) {
        2.0 => Ok(()),
        other => Err(other.to_string()),
    });
    let begin = |until: &str| {
        let pause = json!({"message": "all still", "until": until, "reads": true});
        http::put(all[0], "/v1/maintenance", pause.to_string()).expect(200);
    };
    begin("10m");
    for watch in &mut watches {
        let end = loop {
            let event = watch.next().unwrap().expect("a last event says why");
            if event["type"] == "end" {
                break event;
            }
        };
        assert_eq!(end["reason"], "maintenance", "{end}");
        assert!(watch.next().unwrap().is_none());
    }
    waiting.join().unwrap().expect_problem(503, "maintenance");
    for at in all {
        for target in [
            "/v1/kv/a",
            "/v1/kv/a?consistency=stale",
            "/v1/keys?prefix=a",
            "/v1/watch?prefix=a",
            "/v1/kv/a?since=1",
            "/v1/seq/s",
        ] {
            let answer = http::get(at, target).expect(503);
            assert_eq!(answer.must_have("retry-after"), "300");
            assert!(answer.expect_problem(503, "maintenance").get("outcome").is_none());
        }
        http::get(at, "/v1/status").expect(200);
    }
    // Another one that is soon over takes its place.
    begin("1s");
    for at in all {
        wait_for("the pause to end by itself", || {
            let answer = http::get(at, "/v1/kv/a");
            if answer.status == 503 && at == all[0] {
                assert_eq!(answer.must_have("retry-after"), "1");
            }
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        });
        http::put(at, "/v1/kv/a", "2").expect(200);
        // The record is gone, and it is said why.
        wait_for("the event", || {
            let events = cluster_events(at)?;
            let ended = events.iter().find(|event| event["kind"] == "maintenance-ended");
            let ended = ended.ok_or_else(|| format!("{events:?}"))?;
            assert!(ended["detail"].as_str().unwrap().starts_with("its time was over"), "{ended}");
            Ok(())
        });
    }
}

#[test]
fn what_is_wrong_with_a_pause_is_named() {
    let cluster = Plan::new(1, 0).start();
    let at = cluster.client(0);
    for (body, field) in [
        (json!({"until": "1h"}), Some("message")),
        (json!({"message": "", "until": "1h"}), Some("message")),
        (json!({"message": "m"}), Some("until")),
        (json!({"message": "m", "until": "tomorrow"}), Some("until")),
        (json!({"message": "m", "until": "2020-01-01T00:00:00Z"}), Some("until")),
        (json!({"message": "m", "until": "1h", "reads": "yes"}), Some("reads")),
        (json!({"message": "m", "until": "1h", "writes": true}), Some("writes")),
        (json!([]), None),
    ] {
        let problem = http::put(at, "/v1/maintenance", body.to_string()).expect_problem(400, "bad-body");
        assert_eq!(problem["field"].as_str(), field, "{body}");
    }
    assert_eq!(http::get(at, "/v1/maintenance").expect(200).json(), json!({"active": false}));
}

//! What the contract says about members and the cluster: status, roles, health, forwarding, stale reads, and what is
//! answered when there is no quorum.

use serde_json::{Value, json};

use super::Single;
use super::support::cluster::{Cluster, Plan};
use super::support::http::{self, Request};
use super::support::scrape::Metrics;
use super::support::wait_for;

const MIRROR: usize = 3;

fn url(cluster: &Cluster, member: usize) -> String {
    format!("http://{}", cluster.client(member))
}

#[test]
fn every_reply_names_revision_timeline_and_leader() {
    let cluster = Plan::new(3, 1).steady().start();
    let leader = cluster.wait_leader();
    let revision = cluster.put_until_done(leader, "a", "1");
    cluster.wait_converged();
    let timeline = http::get(cluster.client(leader), "/v1/status").json()["cluster"]["timeline"]["id"].clone();
    for member in 0..cluster.len() {
        for target in [
            "/v1/kv/a",
            "/v1/kv/none",
            "/v1/kv/a?foo=1",
            "/v1/kv/%zz",
            "/v1/keys",
            "/v1/status",
            "/v1/role",
            "/v1/members",
            "/health/live",
            "/health/leader",
            "/metrics",
            "/nowhere",
        ] {
            let answer = http::get(cluster.client(member), target);
            assert_eq!(answer.must_have("lifeboat-revision"), revision.to_string(), "{target}");
            assert_eq!(answer.must_have("lifeboat-timeline"), timeline, "{target}");
            assert_eq!(answer.must_have("lifeboat-leader"), url(&cluster, leader), "{target}");
        }
    }
}

#[test]
fn status_members_and_role_agree_on_every_member() {
    let cluster = Plan::new(3, 1).steady().start();
    let leader = cluster.wait_leader();
    cluster.put_until_done(leader, "a", "1");
    let revision = cluster.wait_converged();
    let mut ids = Vec::new();
    let mut clusters = Vec::new();
    for member in 0..cluster.len() {
        let name = cluster.member(member).name.clone();
        let status = wait_for("a member that is ready", || {
            let status = http::get(cluster.client(member), "/v1/status").expect(200).json();
            if status["ready"] == true { Ok(status) } else { Err(status.to_string()) }
        });
        let (site, role) = match member {
            MIRROR => ("west", "mirror"),
            _ if member == leader => ("east", "leader"),
            _ => ("east", "follower"),
        };
        assert_eq!(status["name"], name, "{status}");
        assert_eq!(status["site"], site, "{status}");
        assert_eq!(status["role"], role, "{status}");
        assert_eq!(status["revision"], revision, "{status}");
        assert_eq!(status["leader"]["name"], cluster.member(leader).name, "{status}");
        assert_eq!(status["leader"]["client_url"], url(&cluster, leader), "{status}");
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        assert!(status["feature_level"].is_u64(), "{status}");
        let index = |field: &str| status[field].as_u64().unwrap_or_else(|| panic!("no {field}: {status}"));
        assert!(index("applied_index") <= index("committed_index"), "{status}");
        assert!(index("committed_index") <= index("last_index"), "{status}");
        assert!(index("term") >= 1, "{status}");
        assert!(status["uptime_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{status}");
        assert!(status["lag_seconds"].is_null() || status["lag_seconds"].as_f64().is_some_and(|lag| lag >= 0.0));
        let id = status["id"].as_str().unwrap().to_string();
        assert!(id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        ids.push(id);
        clusters.push(status["cluster"].clone());

        let members = http::get(cluster.client(member), "/v1/members").expect(200).json();
        assert_eq!(members["members"], status["members"]);
        let role_reply = http::get(cluster.client(member), "/v1/role").expect(200).json();
        let leader_name = &cluster.member(leader).name;
        assert_eq!(role_reply, json!({"role": role, "name": name, "site": site, "leader": leader_name}));
    }
    assert!(clusters.iter().all(|one| one == &clusters[0]), "{clusters:?}");
    assert_eq!(clusters[0]["id"].as_str().map(str::len), Some(32), "{clusters:?}");
    let mut distinct = ids.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len(), "two members share an id: {ids:?}");

    let members = http::get(cluster.client(0), "/v1/members").json();
    for (member, id) in ids.iter().enumerate() {
        let entry = members["members"].as_array().unwrap().iter().find(|entry| entry["id"] == **id).unwrap().clone();
        let expected = json!({
            "id": id, "name": cluster.member(member).name, "site": if member == MIRROR { "west" } else { "east" },
            "role": cluster.member(member).role, "client_url": url(&cluster, member),
            "peer_url": format!("http://{}", cluster.member(member).peer), "leader": member == leader,
        });
        assert_eq!(entry, expected);
    }
}

#[test]
fn health_tells_load_balancers_who_is_what() {
    let cluster = Plan::new(3, 1).steady().start();
    let leader = cluster.wait_leader();
    for member in 0..cluster.len() {
        for (check, healthy) in [
            ("live", true),
            ("ready", true),
            ("leader", member == leader),
            ("primary", member != MIRROR),
            ("mirror", member == MIRROR),
            ("mirror?max_lag=1h", member == MIRROR),
        ] {
            let target = format!("/health/{check}");
            // The lag of a mirror is known a moment after it is ready.
            let answer = wait_for(&format!("{check} of n{}", member + 1), || {
                let answer = http::get(cluster.client(member), &target);
                if answer.status == if healthy { 200 } else { 503 } { Ok(answer) } else { Err(answer.to_string()) }
            });
            let body = answer.json();
            assert_eq!(body["healthy"], healthy, "{target}: {answer}");
            if healthy {
                assert_eq!(body, json!({"healthy": true}));
            } else {
                assert!(body["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{answer}");
            }
        }
        let head = Request::new("HEAD", "/health/live").send(cluster.client(member));
        head.expect(200);
    }
    let head = Request::new("HEAD", "/health/leader").send(cluster.client(MIRROR));
    head.expect(503);
}

#[test]
fn metrics_are_prometheus_text() {
    let member = Single::start();
    member.put("/v1/kv/a", "1");
    http::get(member.at, "/v1/kv/a").expect(200);
    let answer = http::get(member.at, "/metrics").expect(200);
    let content_type = answer.must_have("content-type");
    assert!(content_type.starts_with("text/plain") || content_type.starts_with("application/openmetrics-text"));
    let mut samples = 0;
    for line in answer.text().lines() {
        if line.starts_with('#') {
            continue;
        }
        assert!(line.starts_with("lifeboat_"), "{line}");
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        samples += 1;
    }
    assert!(samples > 10, "{}", answer.text());
    let metrics = Metrics::of(member.at);
    assert!(metrics.sum("lifeboat_reads_served_total", &["consistency=\"linearizable\""]) >= 1.0, "{}", metrics.text());
}

#[test]
fn any_member_takes_any_request() {
    let cluster = Plan::new(3, 1).steady().start();
    let leader = cluster.wait_leader();
    for member in 0..cluster.len() {
        let at = cluster.client(member);
        let path = format!("/v1/kv/of/{member}");
        let created = http::put(at, &path, "1").expect(201);
        let revision = created.json()["revision"].as_u64().unwrap();
        assert_eq!(created.etag_revision(), Some(revision));
        assert_eq!(created.must_have("lifeboat-leader"), url(&cluster, leader));
        // Read your own write, here and at the leader.
        for reader in [at, cluster.client(leader)] {
            let answer = http::get(reader, &path).expect(200);
            assert_eq!((answer.text(), answer.etag_revision()), ("1", Some(revision)));
        }
        // Conditions, refusals and their ETags pass through a forwarder unchanged.
        let refused = Request::new("PUT", &path).header("If-None-Match", "*").body("2").send(at);
        assert_eq!(refused.etag_revision(), Some(revision));
        let problem = refused.expect_problem(412, "condition-failed");
        assert_eq!(problem["current_revision"], revision);
        let tag = format!("\"{revision}\"");
        let replaced = Request::new("PUT", &path).header("If-Match", &tag).body("2").send(at).expect(200).json();
        assert_eq!(replaced["previous_revision"], revision);
        http::put(at, &path, vec![0; (1 << 20) + 1]).expect_problem(413, "too-large");
        let binary = vec![0xff; 1 << 20];
        http::put(at, &format!("/v1/kv/%00%ff{member}"), &binary).expect(201);
        assert_eq!(http::get(cluster.client(leader), &format!("/v1/kv/%00%ff{member}")).expect(200).body, binary);
        let deleted = http::delete(at, &path).expect(200).json();
        assert_eq!(deleted["deleted"], 1);
        http::put(at, "/v1/kv/range/1", "x");
        http::put(at, "/v1/kv/range/2", "x");
        assert_eq!(http::delete(at, "/v1/keys?prefix=range/").expect(200).json()["deleted"], 2);
        assert_eq!(http::get(at, "/v1/keys?prefix=range/").expect(200).json()["items"], json!([]));
    }
    cluster.assert_same_content();
}

#[test]
fn leadership_moves_on_request() {
    let cluster = Plan::new(3, 1).steady().start();
    let leader = cluster.wait_leader();
    let name = |member: usize| cluster.member(member).name.clone();
    let to = |asked: usize, body: Value| http::post(cluster.client(asked), "/v1/leader", &body);

    to(leader, json!({"to": "nobody"})).expect_problem(404, "unknown-member");
    to(leader, json!({"to": name(MIRROR)})).expect_problem(409, "not-a-voter");
    to(MIRROR, json!({"to": name(MIRROR)})).expect_problem(409, "not-a-voter");
    let same = to(leader, json!({"to": name(leader)})).expect(200).json();
    assert_eq!(same["leader"], name(leader));

    // Who lacks entries for a moment is refused, and a transfer may come to nothing.
    let moved = |asked: usize, body: Value| {
        wait_for("the lead to move", || {
            let answer = to(asked, body.clone());
            match answer.status {
                200 => Ok(answer.json()),
                409 | 503 | 504 => Err(answer.to_string()),
                _ => panic!("{answer}"),
            }
        })
    };
    let next = cluster.follower();
    // Asked of the mirror: any member takes any request.
    let reply = moved(MIRROR, json!({"to": name(next)}));
    assert_eq!(reply["leader"], name(next));
    assert!(reply["term"].as_u64() > same["term"].as_u64(), "{reply} after {same}");
    assert_eq!(cluster.wait_leader(), next);
    let best = moved(next, json!({}));
    assert_ne!(best["leader"], name(next), "the best follower is another member");
    cluster.put_until_done(0, "a", "still works");
}

#[test]
fn a_member_that_does_not_answer_is_not_made_leader() {
    let mut cluster = Plan::new(3, 0).start();
    let leader = cluster.wait_leader();
    let victim = cluster.follower();
    cluster.kill(victim);
    let answer = http::post(cluster.client(leader), "/v1/leader", &json!({"to": cluster.member(victim).name}));
    assert!(answer.status == 409 || answer.status == 504, "{answer}");
    if answer.status == 409 {
        answer.expect_problem(409, "not-at-tip");
    }
    cluster.put_until_done(leader, "a", "the leader goes on");
}

#[test]
fn more_writes_than_may_wait_are_refused_and_not_applied() {
    const CLIENTS: usize = 16;
    let mut cluster = Plan::new(3, 0).flag("--write-queue", "1").flag("--request-timeout-ms", "2s").start();
    let leader = cluster.wait_leader();
    cluster.put_until_done(leader, "a", "before");
    let others: Vec<usize> = (0..3).filter(|&member| member != leader).collect();
    for &member in &others {
        cluster.pause(member);
    }
    // Nothing is committed now: what is proposed stays under way, one more waits, the rest is refused.
    let at = cluster.client(leader);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| std::thread::spawn(move || http::put(at, &format!("/v1/kv/flood/{number}"), "x")))
        .collect();
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    for &member in &others {
        cluster.resume(member);
    }
    let mut refused = Vec::new();
    for (number, answer) in answers.into_iter().enumerate() {
        match answer.status {
            429 => {
                assert_eq!(answer.must_have("retry-after"), "1");
                let problem = answer.expect_problem(429, "queue-full");
                assert_eq!((&problem["outcome"], &problem["retry"]), (&json!("not-applied"), &json!("safe")));
                refused.push(number);
            }
            503 => assert_eq!(answer.json()["outcome"], "not-applied"),
            _ => assert_eq!(answer.expect_problem(504, "unknown-outcome")["outcome"], "unknown"),
        }
    }
    assert!(!refused.is_empty(), "of {CLIENTS} writes at once none was refused");
    cluster.put_until_done(leader, "a", "after");
    cluster.wait_converged();
    for number in refused {
        assert_eq!(cluster.get(leader, &format!("flood/{number}")), None, "write {number} was refused");
    }
}

#[test]
fn without_a_quorum_nothing_is_promised() {
    let mut cluster = Plan::new(3, 1).flag("--request-timeout-ms", "2s").start();
    let leader = cluster.wait_leader();
    let before = cluster.put_until_done(leader, "a", "before");
    cluster.wait_converged();
    for member in (0..3).filter(|&member| member != leader) {
        cluster.kill(member);
    }

    // The rest of the test holds for the leader that lost its quorum and for the mirror that lost its leader.
    let mut unknown = 0;
    for survivor in [leader, MIRROR] {
        let at = cluster.client(survivor);
        for number in 0..3 {
            let answer = http::put(at, &format!("/v1/kv/lost/{survivor}/{number}"), "x");
            match answer.status {
                503 => {
                    assert_eq!(answer.must_have("retry-after"), "1");
                    let problem = answer.json();
                    let kind = problem["type"].as_str().unwrap().rsplit(':').next().unwrap().to_string();
                    assert!(["no-leader", "leader-unreachable"].contains(&kind.as_str()), "{problem}");
                    assert_eq!((&problem["outcome"], &problem["retry"]), (&json!("not-applied"), &json!("safe")));
                }
                _ => {
                    let problem = answer.expect_problem(504, "unknown-outcome");
                    assert_eq!((&problem["outcome"], &problem["retry"]), (&json!("unknown"), &json!("unknown")));
                    unknown += 1;
                }
            }
        }
        let read = http::get(at, "/v1/kv/a");
        let problem = read.json();
        assert_eq!((read.status, &problem["retry"]), (503, &json!("safe")), "{read}");
        assert!(problem.get("outcome").is_none(), "{problem}");
        assert_eq!(http::get(at, "/v1/keys").status, 503);
        for check in ["ready", "leader", "primary"] {
            wait_for(&format!("{check} to be false"), || {
                let answer = http::get(at, &format!("/health/{check}"));
                if answer.status == 503 { Ok(()) } else { Err(answer.to_string()) }
            });
        }
        http::get(at, "/health/live").expect(200);

        // What a member has it still shows to those who ask for no more, and says how old it may be.
        let stale = http::get(at, "/v1/kv/a?consistency=stale").expect(200);
        assert_eq!((stale.text(), stale.etag_revision()), ("before", Some(before)));
        wait_for("the lag to grow", || {
            let answer = http::get(at, "/v1/kv/a?consistency=stale&max_lag=500ms");
            match answer.status {
                503 => Ok(answer.expect_problem(503, "too-stale")),
                _ => Err(answer.to_string()),
            }
        });
        http::get(at, "/v1/kv/a?consistency=stale&max_lag=1h").expect(200);
        let keys = http::get(at, "/v1/keys?consistency=stale").expect(200);
        keys.must_have("lifeboat-lag-seconds");
    }
    println!("{unknown} of 6 writes had an unknown fate");

    for member in (0..3).filter(|&member| member != leader) {
        cluster.start_member(member);
    }
    cluster.wait_all_ready();
    cluster.put_until_done(MIRROR, "a", "after");
    assert_eq!(cluster.get(leader, "a").as_deref(), Some("after"));
    cluster.assert_same_content();
}

#[test]
fn the_lag_of_a_mirror_is_known_and_small_while_all_is_well() {
    let cluster = Plan::new(1, 1).start();
    cluster.put_until_done(0, "a", "1");
    let lag = wait_for("a known lag", || {
        let answer = http::get(cluster.client(1), "/v1/kv/a?consistency=stale");
        let lag = answer.must_have("lifeboat-lag-seconds").to_string();
        match (answer.status, lag.parse::<f64>()) {
            (200, Ok(seconds)) if seconds < 5.0 => Ok(seconds),
            _ => Err(answer.to_string()),
        }
    });
    assert!(lag >= 0.0);
    http::get(cluster.client(1), "/v1/kv/a?consistency=stale&max_lag=30s").expect(200);
    http::get(cluster.client(1), "/health/mirror?max_lag=30s").expect(200);
}

#[test]
fn a_key_space_read_at_a_revision_is_the_same_on_every_member() {
    let cluster = Plan::new(3, 1).start();
    let mut revisions = Vec::new();
    for number in 0..30 {
        revisions.push(cluster.put_until_done(number % 4, &format!("k/{}", number % 7), &number.to_string()));
    }
    cluster.wait_converged();
    for &revision in revisions.iter().step_by(5) {
        let first = cluster.content(0, revision);
        for member in 1..cluster.len() {
            assert_eq!(cluster.content(member, revision), first, "at revision {revision}");
        }
    }
}

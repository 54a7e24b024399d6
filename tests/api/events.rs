//! Events of the cluster and canaries on real processes: every member shows what happened, also after a restart; webhooks
//! hear of it at least once; the leader's time travels without making revisions.

use std::time::Duration;

use crate::support::cluster::Plan;
use crate::support::http;
use crate::support::scrape::Metrics;
use crate::support::webhook::{posts_until, receiver};
use crate::support::{PATIENCE, cluster_events, wait_for};
use serde_json::{Value, json};

#[test]
fn every_member_shows_what_happened_and_webhooks_hear_of_it() {
    let (url, posts) = receiver(2);
    let mut cluster = Plan::new(3, 1).flag("--webhooks", &url).start();
    let first = posts_until(&posts, "member-joined");
    assert!(first.iter().all(|post| post.path == "/hook?from=test" && post.event_id == post.body["event_id"]));
    let leader = cluster.wait_leader();
    let old = cluster.member(leader).name.clone();
    cluster.kill(leader);
    let next = cluster.wait_other_leader(leader);
    let new = cluster.member(next).name.clone();
    let elected = |at| {
        wait_for("the election to be shown", || {
            let events = cluster_events(at)?;
            let is_it =
                |event: &&Value| event["kind"] == "leader-elected" && event["from"] == old && event["to"] == new;
            let found = events.iter().find(is_it).cloned();
            found.ok_or_else(|| format!("{events:?}"))
        })
    };
    let told = elected(cluster.client(next));
    assert_eq!([&told["subject"], &told["member"]], [&json!(new), &json!(new)], "{told}");
    // The leader posts what it wrote, with the id that all members show.
    let posted = wait_for("the post of the election", || {
        let post = posts_until(&posts, "leader-elected").pop().unwrap();
        if told["event_id"] == *post.event_id { Ok(post) } else { Err(post.body.to_string()) }
    });
    assert_eq!([&posted.body["from"], &posted.body["to"]], [&json!(old), &json!(new)]);
    assert!(posted.body.get("id").is_none());
    wait_for("the post to be counted", || {
        let metrics = Metrics::of(cluster.client(next));
        assert_eq!(metrics.sum("lifeboat_webhooks_failed_total", &[]), 0.0);
        match metrics.sum("lifeboat_webhooks_sent_total", &[]) {
            none if none < 1.0 => Err(none.to_string()),
            _ => Ok(()),
        }
    });
    // Everybody shows the same, in the same order; also who was away, and who starts again.
    cluster.start_member(leader);
    cluster.wait_all_ready();
    let member = cluster.follower();
    cluster.kill(member);
    cluster.start_member(member);
    cluster.wait_all_ready();
    for at in 0..4 {
        assert_eq!(elected(cluster.client(at))["event_id"], told["event_id"]);
    }
    let shown = |at| {
        let without_number = |mut event: Value| {
            event.as_object_mut().unwrap().remove("id");
            event
        };
        Ok::<Vec<Value>, String>(cluster_events(at)?.into_iter().map(without_number).collect())
    };
    wait_for("all members to show the same", || {
        let lists: Vec<_> = (0..4).map(|at| shown(cluster.client(at))).collect::<Result<_, _>>()?;
        match lists.iter().all(|list| list == &lists[0] && !list.is_empty()) {
            true => Ok(()),
            false => Err(format!("{lists:?}")),
        }
    });
    // One list with numbers of its own, which can be continued.
    let answer = http::get(cluster.client(0), "/v1/events?limit=2").expect(200).json();
    let ids: Vec<_> = answer["events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!((ids, &answer["next"]), (vec![1, 2], &json!(2)));
}

/// What a leader sees that has lost its quorum it cannot write; when another leads, it tells that one.
#[test]
fn what_a_leader_has_seen_is_shown_by_all_also_when_another_had_to_write_it() {
    let (url, posts) = receiver(0);
    let mut cluster = Plan::new(3, 1).flag("--webhooks", &url).start();
    const MIRROR: usize = 3;
    let leader = cluster.wait_leader();
    let name = cluster.member(leader).name.clone();
    let followers: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    for member in followers.iter().chain([&MIRROR]) {
        cluster.pause(*member);
    }
    wait_for("the leader to miss the mirror", || {
        // Whoever shows a state has told it.
        let seen = http::get(cluster.client(leader), "/v1/replication").expect(200).json();
        let members = seen["members"].as_array().unwrap();
        match members.iter().any(|member| member["name"] == "n4" && member["state"] == "DISCONNECTED") {
            true => Ok(()),
            false => Err(seen.to_string()),
        }
    });
    cluster.pause(leader);
    followers.iter().for_each(|member| cluster.resume(*member));
    let next = cluster.wait_other_leader(leader);
    cluster.resume(leader);
    let seen_by_the_first = |event: &Value| {
        event["kind"] == "mirror-state"
            && event["member"] == json!(name)
            && event["subject"] == json!("n4")
            && event["to"] == "DISCONNECTED"
    };
    for at in [next, leader] {
        wait_for("what the first leader saw", || {
            let events = cluster_events(cluster.client(at))?;
            match events.iter().filter(|event| seen_by_the_first(event)).count() {
                1 => Ok(()),
                count => Err(format!("{count} times in {events:?}")),
            }
        });
    }
    wait_for("a webhook to hear of it", || {
        let post = posts.recv_timeout(PATIENCE).map_err(|error| error.to_string())?;
        if seen_by_the_first(&post.body) { Ok(()) } else { Err(post.body.to_string()) }
    });
    cluster.resume(MIRROR);
    cluster.wait_all_ready();
}

#[test]
fn what_a_webhook_refuses_is_posted_again_under_the_same_id() {
    let (url, posts) = receiver(1);
    let cluster = Plan::new(1, 0).flag("--webhooks", &url).start();
    let at = cluster.client(0);
    http::put(at, "/v1/maintenance", json!({"message": "m", "until": "1h"}).to_string()).expect(200);
    let refused = posts.recv_timeout(PATIENCE).unwrap();
    let taken = posts.recv_timeout(PATIENCE).unwrap();
    assert_eq!(refused.body["kind"], "maintenance-started");
    assert_eq!((refused.event_id, refused.body), (taken.event_id, taken.body));
    http::delete(at, "/v1/maintenance").expect(200);
    // One after the other: what was taken is not posted again.
    assert_eq!(posts.recv_timeout(PATIENCE).unwrap().body["kind"], "maintenance-ended");
}

#[test]
fn canaries_reach_a_mirror_and_make_no_revision() {
    let cluster = Plan::new(1, 1).flag("--canary-interval-ms", "50ms").start();
    let (leader, mirror) = (cluster.client(0), cluster.client(1));
    let revision = cluster.status_now(0)["revision"].as_u64().unwrap();
    let before = http::get(mirror, "/v1/status").json()["applied_index"].as_u64().unwrap();
    wait_for("ten canaries at the mirror", || match http::get(mirror, "/v1/status").json() {
        status if status["applied_index"].as_u64().unwrap() >= before + 10 => Ok(()),
        status => Err(status.to_string()),
    });
    assert!(Metrics::of(leader).sum("lifeboat_canaries_sent_total", &[]) >= 10.0);
    for at in [leader, mirror] {
        assert_eq!(http::get(at, "/v1/status").json()["revision"], revision);
    }
    // Without a mirror there is nothing to measure.
    http::delete(leader, "/v1/members/n2").expect(200);
    wait_for("canaries to end", || {
        let sent = || Metrics::of(leader).sum("lifeboat_canaries_sent_total", &[]);
        let first = sent();
        std::thread::sleep(Duration::from_millis(300));
        if sent() == first { Ok(()) } else { Err("they go on".into()) }
    });
}

//! Forced failover and the fence, with real processes: a site is lost, a mirror of another one is promoted, and whoever of
//! the old site comes back is fenced.

use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    FORCED, force, force_and_wait, lose_east, rejoin, role, salvaged, served, survey, surveys, tell_to_rejoin, told,
    wait_home, wait_primary_gone, wait_role,
};
use crate::support::http::{self, Request};
use crate::support::wait_for;
use serde_json::{Value, json};

/// The mirror's number in a cluster of three voters and it.
const MIRROR: usize = 3;

#[test]
fn a_mirror_is_promoted_when_its_primary_is_lost_and_the_old_site_is_fenced() {
    let mut cluster = Plan::new(3, 1).start();
    for n in 0..20 {
        cluster.put_until_done(0, &format!("k{n}"), "before");
    }
    cluster.wait_converged();
    let before = wait_for("the leader to be seen", || {
        let found = survey(&cluster, MIRROR);
        let leads = found["primary"].as_str().is_some_and(|primary| primary.contains("leads"));
        if leads { Ok(found) } else { Err(found.to_string()) }
    });
    assert_eq!(before["best"], "n4");
    let refused = force(&cluster, MIRROR, &json!({ "accept_data_loss": true }));
    let refused = refused.expect_problem(409, "primary-answers");
    assert!(refused["detail"].as_str().unwrap().contains("lifeboat dr plan"), "{refused}");
    let at_a_voter = force(&cluster, 0, &json!({ "accept_data_loss": true })).expect_problem(400, "refused");
    assert!(at_a_voter["detail"].as_str().unwrap().contains("recover --survivor"), "{at_a_voter}");

    lose_east(&mut cluster, 3);
    let found = survey(&cluster, MIRROR);
    assert_eq!((&found["primary"], &found["best"]), (&Value::Null, &json!("n4")), "{found}");
    assert_eq!(found["loss"]["unbounded"], true, "three voters may live: {found}");
    let refused = force(&cluster, MIRROR, &json!({})).expect_problem(400, "refused");
    assert!(refused["detail"].as_str().unwrap().contains("may be lost"), "{refused}");
    force(&cluster, MIRROR, &json!({ "accept_data_loss": true, "survivor": true })).expect_problem(400, "refused");
    for wrong in [json!({ "accept_data_loss": 1 }), json!({ "accept": true }), json!([])] {
        force(&cluster, MIRROR, &wrong).expect_problem(400, "bad-body");
    }

    let order = json!({ "accept_data_loss": true, "by": "somebody", "reason": "east burns" });
    let reply = force(&cluster, MIRROR, &order).expect(202).json();
    assert_eq!((&reply["member"], &reply["waiting"]), (&json!("n4"), &json!(["n1", "n2", "n3"])), "{reply}");
    wait_role(&cluster, MIRROR, "leader");
    let revision = cluster.put_until_done(MIRROR, "after", "x");
    assert!(revision > FORCED, "{revision}");
    assert_eq!(cluster.get(MIRROR, "k7").as_deref(), Some("before"));
    let status = cluster.status(MIRROR).unwrap();
    assert_eq!(status["cluster"]["timeline"]["number"], 2, "{status}");
    assert_eq!(status["cluster"]["timeline"]["id"], reply["timeline"], "{status}");

    for member in 0..3 {
        cluster.start_member(member);
    }
    for round in 0..2 {
        for member in 0..3 {
            wait_role(&cluster, member, "fenced");
            let told = http::get(cluster.client(member), "/v1/kv/k7").expect_problem(421, "fenced");
            assert_eq!(told["primary"], format!("http://{}", cluster.client(MIRROR)), "{told}");
            let told = http::put(cluster.client(member), "/v1/kv/k7", "x").expect_problem(421, "fenced");
            assert_eq!(told["outcome"], "not-applied", "{told}");
            assert_eq!(http::get(cluster.client(member), "/health/live").status, 200);
            assert_eq!(http::get(cluster.client(member), "/health/ready").status, 503);
            let plan = http::get(cluster.client(member), "/v1/dr").expect(200).json();
            assert!(plan["plan"][0]["command"].as_str().unwrap().starts_with("lifeboat dr rejoin"), "{plan}");
            if round == 0 {
                cluster.kill(member);
            }
        }
        if round == 0 {
            // The fence holds also without anybody to tell them.
            cluster.kill(MIRROR);
            for member in 0..3 {
                cluster.start_member(member);
            }
        }
    }
    cluster.start_member(MIRROR);
    wait_role(&cluster, MIRROR, "leader");
    assert_eq!(cluster.get(MIRROR, "after").as_deref(), Some("x"));
}

fn forced_and_killed_at(place: &str) {
    let mut cluster = Plan::new(1, 1).with_points().start();
    cluster.arm_crash(place);
    for n in 0..5 {
        cluster.put_until_done(0, &format!("k{n}"), "before");
    }
    let revision = cluster.wait_converged();
    cluster.kill(0);
    // The answer may get out or not.
    let answer = Request::new("POST", "/v1/dr/force").body(r#"{"accept_data_loss":true}"#).try_send(cluster.client(1));
    if let Ok(answer) = answer {
        told(answer).expect(202);
    }
    assert_eq!(cluster.wait_crashed(place), 1, "{place}");
    cluster.start_member(1);
    wait_role(&cluster, 1, "leader");
    assert!(cluster.put_until_done(1, "after", "x") > FORCED);
    let status = cluster.status(1).unwrap();
    assert_eq!(status["cluster"]["timeline"]["number"], 2, "{place}: {status}");
    assert_eq!(cluster.content(1, revision).len(), 5, "{place}");
    cluster.start_member(0);
    wait_role(&cluster, 0, "fenced");
    // Nothing of the promotion is left to be done, and nothing of it is done again.
    wait_for("the promotion to be finished", || {
        let file = std::fs::read_to_string(cluster.member(1).data.join("member.json")).unwrap();
        if file.contains("\"promotion\"") { Err(file) } else { Ok(()) }
    });
    cluster.kill(1);
    cluster.start_member(1);
    wait_role(&cluster, 1, "leader");
    assert_eq!(cluster.status(1).unwrap()["cluster"]["timeline"], status["cluster"]["timeline"], "{place}");
}

#[test]
fn a_promotion_that_is_killed_anywhere_is_gone_on_with() {
    let places = lifeboat::crash_points::FORCE;
    std::thread::scope(|scope| {
        for part in places.chunks(places.len().div_ceil(3)) {
            scope.spawn(move || part.iter().for_each(|place| forced_and_killed_at(place)));
        }
    });
}

#[test]
fn a_primary_that_lives_behind_a_cut_link_is_fenced_when_the_link_comes_back_and_changes_nothing() {
    let mut cluster = Plan::new(3, 1).linked().start();
    cluster.put_until_done(0, "both", "1");
    let converged = cluster.wait_converged();
    cluster.link().cut();
    let stranded = cluster.put_until_done(0, "both", "east");
    cluster.put_until_done(0, "only-east", "x");
    let reply = force_and_wait(&cluster, MIRROR, &json!({ "accept_data_loss": true }));
    assert_eq!(reply["loss"]["unbounded"], true, "{reply}");
    assert!(reply["loss"]["window_seconds"].is_number(), "{reply}");
    let base = cluster.put_until_done(MIRROR, "both", "west");
    // Both serve, and neither knows of the other: the two sites cannot reach each other.
    cluster.put_until_done(0, "only-east", "y");
    cluster.link().heal();
    for member in 0..3 {
        wait_role(&cluster, member, "fenced");
    }
    assert_eq!(cluster.get(MIRROR, "both").as_deref(), Some("west"));
    assert_eq!(cluster.get(MIRROR, "only-east"), None);
    // What the lost site handed out is told from what this one has.
    let read = http::get(cluster.client(MIRROR), &format!("/v1/kv/both?rev={stranded}"));
    let fork = read.expect_problem(410, "diverged")["fork"].as_u64().unwrap();
    assert!((converged..stranded).contains(&fork), "{converged}, {fork}, {stranded}");
    http::get(cluster.client(MIRROR), &format!("/v1/watch?since={stranded}")).expect_problem(410, "diverged");
    let old_tag = format!("\"{stranded}\"");
    let write = Request::new("PUT", "/v1/kv/both").header("If-Match", &old_tag).body("z");
    write.send(cluster.client(MIRROR)).expect_problem(412, "condition-failed");
    let write = Request::new("PUT", "/v1/kv/both").header("If-Match", &format!("\"{base}\"")).body("z");
    write.send(cluster.client(MIRROR)).expect(200);
    // Members of the old site come and go in any order, and never change a byte of the new one.
    let before = (cluster.status(MIRROR).unwrap()["revision"].clone(), cluster.get(MIRROR, "both"));
    for member in [2, 0, 1] {
        cluster.kill(member);
        cluster.start_member(member);
        wait_role(&cluster, member, "fenced");
    }
    assert_eq!((cluster.status(MIRROR).unwrap()["revision"].clone(), cluster.get(MIRROR, "both")), before);
}

#[test]
fn two_sites_that_were_forced_from_one_parent_refuse_each_other_until_a_person_chooses() {
    let mut cluster = Plan::new(1, 1).prepare();
    cluster.add_member("mirror", "north");
    let (east, west, north) = (0, 1, 2);
    cluster.start_member(east);
    cluster.wait_ready(east);
    cluster.start_member(west);
    cluster.start_member(north);
    cluster.wait_joined();
    cluster.put_until_done(east, "k", "east");
    cluster.wait_converged();
    cluster.kill(east);
    cluster.kill(north);
    let order = json!({ "accept_data_loss": true });
    let first = force_and_wait(&cluster, west, &order);
    cluster.put_until_done(west, "k", "west");
    cluster.kill(west);
    cluster.start_member(north);
    wait_for("the other mirror to serve", || surveys(&cluster, north));
    let second = force_and_wait(&cluster, north, &order);
    assert_ne!(first["timeline"], second["timeline"]);
    cluster.put_until_done(north, "k", "north");
    cluster.start_member(west);
    wait_role(&cluster, west, "leader");
    for (member, other) in [(west, "north"), (north, "west")] {
        wait_for("the split to be seen", || {
            let reply = http::get(cluster.client(member), "/v1/dr").expect(200).json();
            let warned = reply["warnings"].to_string().contains(&format!("SPLIT: site {other}"));
            let command = reply["plan"][0]["command"].as_str().unwrap_or_default().to_owned();
            if warned && command.contains("--abandon-timeline") { Ok(()) } else { Err(reply.to_string()) }
        });
        let refused = rejoin(&cluster, member, &json!({})).expect_problem(409, "not-fenced");
        assert!(refused["detail"].as_str().unwrap().contains("--abandon-timeline"), "{refused}");
        let wrong = if member == west { &second } else { &first };
        let wrong = json!({ "abandon_timeline": wrong["timeline"] });
        rejoin(&cluster, member, &wrong).expect_problem(409, "not-fenced");
        assert_eq!(cluster.get(member, "k").as_deref(), Some(if member == west { "west" } else { "north" }));
    }
    let chosen = json!({ "abandon_timeline": first["timeline"] });
    rejoin(&cluster, west, &chosen).expect(202);
    wait_for("the given up site not to lead any more", || match role(&cluster, west)? {
        role if role != "leader" => Ok(()),
        role => Err(role),
    });
    assert_eq!(cluster.get(north, "k").as_deref(), Some("north"));
    // It comes home to the site that was kept, and then nothing is split any more.
    wait_home(&cluster, west, north);
    assert_eq!(cluster.get(west, "k").as_deref(), Some("north"));
    let salvaged = salvaged(&cluster, &[west]);
    assert!(salvaged.iter().any(|(key, _, _)| key == "k"), "{salvaged:?}");
    wait_for("the split to be over", || {
        let reply = http::get(cluster.client(north), "/v1/dr").expect(200).json();
        let text = reply.to_string();
        if text.contains("SPLIT") || text.contains("--abandon-timeline") { Err(text) } else { Ok(()) }
    });
}

#[test]
fn what_is_left_of_a_site_goes_on_alone_when_told() {
    let mut cluster = Plan::new(3, 0).start();
    cluster.put_until_done(0, "k", "1");
    cluster.wait_converged();
    cluster.kill(1);
    let order = json!({ "accept_data_loss": true, "survivor": true });
    force(&cluster, 0, &order).expect_problem(409, "primary-answers");
    cluster.kill(2);
    wait_primary_gone(&cluster, 0);
    let refused = force(&cluster, 0, &order).expect_problem(409, "standby-incomplete");
    assert!(refused["detail"].as_str().unwrap().contains("--without n2 --without n3"), "{refused}");
    let order = json!({ "accept_data_loss": true, "survivor": true, "without": ["n2", "n3"] });
    let reply = force_and_wait(&cluster, 0, &order);
    assert_eq!(reply["waiting"], json!(["n2", "n3"]), "{reply}");
    assert!(cluster.put_until_done(0, "k", "2") > FORCED);
    for member in [1, 2] {
        cluster.start_member(member);
    }
    for member in [1, 2] {
        wait_role(&cluster, member, "fenced");
    }
    let plan = http::get(cluster.client(0), "/v1/dr").expect(200).json();
    let rejoin = format!("lifeboat dr rejoin --endpoints http://{}", cluster.client(1));
    assert!(plan["plan"].to_string().contains(&rejoin), "{plan}");
}

#[test]
fn the_other_mirrors_of_the_site_come_home_by_themselves_and_vote() {
    let mut cluster = Plan::new(3, 3).start();
    for n in 0..20 {
        cluster.put_until_done(0, &format!("k{n}"), "before");
    }
    cluster.wait_converged();
    // One holds less than the others.
    served(|| http::post(cluster.client(0), "/v1/members/n6/suspend", &json!({}))).expect(200);
    cluster.put_until_done(0, "late", "x");
    wait_for("the other mirrors to have it", || {
        let has = |member| cluster.status(member).map(|status| status["revision"].as_u64().unwrap());
        if has(3)? == has(0)? && has(4)? == has(0)? { Ok(()) } else { Err("not yet".to_owned()) }
    });
    lose_east(&mut cluster, 3);
    wait_primary_gone(&cluster, 5);
    // Asked of the one that holds less: another one is promoted.
    let reply = force(&cluster, 5, &json!({ "accept_data_loss": true })).expect(202).json();
    assert_ne!(reply["member"], "n6", "{reply}");
    assert_eq!(reply["rejoining"].as_array().unwrap().len(), 2, "{reply}");
    let primary = if reply["member"] == "n4" { 3 } else { 4 };
    wait_role(&cluster, primary, "leader");
    cluster.put_until_done(primary, "after", "x");
    wait_for("three voters", || {
        let reply = http::get(cluster.client(primary), "/v1/members").expect(200).json();
        let members = reply["members"].as_array().unwrap();
        let votes = members.iter().filter(|member| member["role"] == "voter" && member["joining"].is_null()).count();
        if votes == 3 { Ok(()) } else { Err(reply.to_string()) }
    });
    for member in 3..6 {
        wait_home(&cluster, member, primary);
        assert_eq!(cluster.get(member, "late").as_deref(), Some("x"));
        assert_eq!(cluster.get(member, "after").as_deref(), Some("x"));
    }
    assert_eq!(salvaged(&cluster, &[3, 4, 5]), []);
    // The new site has a quorum of its own.
    cluster.kill(primary);
    let other = (3..6).find(|member| *member != primary).unwrap();
    cluster.put_until_done(other, "later", "x");
}

#[test]
fn the_old_site_comes_home_and_all_that_is_missing_is_in_its_salvage_files() {
    let cluster = Plan::new(3, 1).linked().start();
    for n in 0..20 {
        cluster.put_until_done(0, &format!("k{n}"), "both");
    }
    cluster.wait_converged();
    cluster.link().cut();
    let mut stranded = Vec::new();
    for n in 0..10 {
        stranded.push((format!("k{n}"), cluster.put_until_done(0, &format!("k{n}"), "east")));
    }
    let converged = cluster.status(0).unwrap()["revision"].as_u64().unwrap();
    wait_for("east to agree", || {
        let all: Result<Vec<_>, _> = (0..3).map(|n| cluster.status(n)).collect();
        let all = all?.iter().all(|status| status["revision"].as_u64() >= Some(converged));
        if all { Ok(()) } else { Err("not yet".to_owned()) }
    });
    force_and_wait(&cluster, MIRROR, &json!({ "accept_data_loss": true }));
    for n in 5..15 {
        cluster.put_until_done(MIRROR, &format!("k{n}"), "west");
    }
    cluster.link().heal();
    for member in 0..3 {
        wait_role(&cluster, member, "fenced");
        let url = format!("http://{}", cluster.client(member));
        let told = rejoin(&cluster, member, &json!({})).expect(202).json();
        assert_eq!((&told["site"], &told["timeline"]["number"]), (&json!("west"), &json!(2)), "{url}: {told}");
    }
    for member in 0..3 {
        wait_home(&cluster, member, MIRROR);
        wait_role(&cluster, member, "mirror");
    }
    for n in 0..20 {
        let wanted = if (5..15).contains(&n) { "west" } else { "both" };
        for member in 0..4 {
            assert_eq!(cluster.get(member, &format!("k{n}")).as_deref(), Some(wanted), "k{n} at {member}");
        }
    }
    let found = salvaged(&cluster, &[0, 1, 2]);
    for (key, revision) in stranded {
        assert!(found.contains(&(key.clone(), "applied".to_owned(), revision)), "{key} at {revision}: {found:?}");
    }
    let verify = Request::new("GET", "/v1/verify").header("Accept", "application/json");
    let verified = verify.send(cluster.client(MIRROR)).expect(200).json();
    assert_eq!((&verified["agreed"], &verified["complete"]), (&json!(true), &json!(true)), "{verified}");
    cluster.assert_same_content();
}

/// Three voters of which each has writes that nobody else will have, fenced by the mirror that was promoted.
fn fenced_with_stranded_writes() -> (Cluster, Vec<(String, u64)>) {
    let mut cluster = Plan::new(3, 1).with_points().start();
    for n in 0..10 {
        cluster.put_until_done(0, &format!("k{n}"), "both");
    }
    cluster.wait_converged();
    // Not killed: it may apply what its own log has not on the disk yet.
    assert!(cluster.stop(MIRROR).success());
    let mut stranded = Vec::new();
    for n in 5..10 {
        stranded.push((format!("k{n}"), cluster.put_until_done(0, &format!("k{n}"), "east")));
    }
    let revision = stranded.last().unwrap().1;
    wait_for("all voters to have it", || {
        let all: Result<Vec<_>, _> = (0..3).map(|n| cluster.status(n)).collect();
        let all = all?.iter().all(|status| status["revision"].as_u64() >= Some(revision));
        if all { Ok(()) } else { Err("not yet".to_owned()) }
    });
    lose_east(&mut cluster, 3);
    cluster.start_member(MIRROR);
    wait_for("the mirror to serve", || surveys(&cluster, MIRROR));
    force_and_wait(&cluster, MIRROR, &json!({ "accept_data_loss": true }));
    for member in 0..3 {
        cluster.start_member(member);
    }
    for member in 0..3 {
        wait_role(&cluster, member, "fenced");
    }
    (cluster, stranded)
}

/// All are home, nothing of the new timeline is changed, and all that is stranded is salvaged.
fn assert_home(cluster: &Cluster, stranded: &[(String, u64)]) {
    for member in 0..3 {
        wait_home(cluster, member, MIRROR);
    }
    let found = salvaged(cluster, &[0, 1, 2]);
    for (key, revision) in stranded {
        // That the last one was committed may not have become durable anywhere.
        let applied = found.contains(&(key.clone(), "applied".to_owned(), *revision));
        let unknown = found.contains(&(key.clone(), "unknown".to_owned(), 0));
        assert!(applied || (unknown && (key, revision) == (&stranded[4].0, &stranded[4].1)), "{key}: {found:?}");
    }
    let content = cluster.assert_same_content();
    assert!(content.iter().all(|line| !line.contains("east")), "{content:?}");
    for member in 0..3 {
        let left: Vec<String> = std::fs::read_dir(&cluster.member(member).data)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains(".left-"))
            .collect();
        assert!(left.is_empty(), "what was set aside goes in the end: {left:?}");
    }
}

#[test]
fn a_rejoin_that_is_killed_anywhere_is_gone_on_with() {
    let (mut cluster, stranded) = fenced_with_stranded_writes();
    let places = lifeboat::crash_points::REJOIN;
    for place in places {
        cluster.arm_crash(place);
    }
    for member in 0..3 {
        tell_to_rejoin(&cluster, member);
    }
    for place in places {
        let crashed = cluster.wait_crashed(place);
        cluster.start_member(crashed);
    }
    cluster.put_until_done(MIRROR, "after", "west");
    assert_home(&cluster, &stranded);
}

#[test]
fn a_rejoin_goes_on_when_the_primary_dies_at_any_step_and_comes_back() {
    let (mut cluster, stranded) = fenced_with_stranded_writes();
    let places = lifeboat::crash_points::REJOIN;
    for place in places {
        cluster.arm_hold(place);
    }
    for member in 0..3 {
        tell_to_rejoin(&cluster, member);
    }
    for (number, place) in places.iter().enumerate() {
        cluster.wait_held(place);
        cluster.kill(MIRROR);
        cluster.start_member(MIRROR);
        if number % 2 == 0 {
            // Half of them go on before it is back.
            cluster.release(place);
            wait_role(&cluster, MIRROR, "leader");
        } else {
            wait_role(&cluster, MIRROR, "leader");
            cluster.release(place);
        }
    }
    assert_home(&cluster, &stranded);
}

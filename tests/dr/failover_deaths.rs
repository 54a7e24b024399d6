//! Members that die amid a forced failover, at each place of it: the mirror that was asked when it is not the one that is
//! promoted (see `failover.rs` for that one), and the survivor that goes on in a site without a quorum.

use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    FORCED, assert_one_timeline, member_file, role, salvaged, survey, surveys, tell_to_rejoin, timeline_number, told,
    wait_home, wait_primary_gone, wait_role,
};
use crate::support::http::Request;
use crate::support::wait_for;
use lifeboat::crash_points::FORCE;
use serde_json::json;

/// At each place of a force, three places at a time.
fn at_each_place(test: impl Fn(&str) + Copy + Send) {
    std::thread::scope(|scope| {
        for part in FORCE.chunks(FORCE.len().div_ceil(3)) {
            scope.spawn(move || part.iter().for_each(|place| test(place)));
        }
    });
}

/// The other mirror of the site was asked, and dies: the promoted one is alone.
fn forced_while_the_other_dies(place: &str) {
    const EAST: usize = 0;
    const WEST: [usize; 2] = [1, 2];
    let mut cluster = Plan::new(1, 2).with_points().quick().start();
    for n in 0..5 {
        cluster.put_until_done(EAST, &format!("k{n}"), "east");
    }
    let revision = cluster.wait_converged();
    let before = cluster.content(EAST, revision);
    cluster.kill(EAST);
    wait_primary_gone(&cluster, WEST[0]);
    let best = survey(&cluster, WEST[0])["best"].clone();
    let (promoted, other) = if best == "n2" { (WEST[0], WEST[1]) } else { (WEST[1], WEST[0]) };
    cluster.arm_hold(place);
    let asked = cluster.client(other);
    std::thread::scope(|scope| {
        let order = scope.spawn(move || {
            let order = Request::new("POST", "/v1/dr/force").body(r#"{"accept_data_loss":true}"#);
            order.try_send(asked)
        });
        cluster.wait_held(place);
        assert!(member_file(&cluster, promoted)["promotion"]["id"].is_string(), "{place}");
        // Held before it is answered, at the first place; and who dies answers nothing.
        if place != FORCE[0] {
            let answer = order.join().unwrap().unwrap_or_else(|failure| panic!("{place}: {failure}"));
            assert_eq!(told(answer).expect(202).json()["member"], best, "{place}");
        }
        cluster.kill(other);
        cluster.release(place);
    });
    wait_role(&cluster, promoted, "leader");
    assert!(cluster.put_until_done(promoted, "k0", "west") > FORCED, "{place}");
    assert_eq!(timeline_number(&cluster, promoted), Ok(2), "{place}");
    assert_eq!(cluster.content(promoted, revision), before, "{place}: all that was there is kept");
    // Nobody tells it to come home.
    cluster.start_member(other);
    wait_home(&cluster, other, promoted);
    assert_one_timeline(&cluster, None);
    assert_eq!(cluster.get(other, "k0").as_deref(), Some("west"), "{place}");
    assert_eq!(salvaged(&cluster, &WEST), [], "{place}: nothing was lost");
}

#[test]
fn a_promotion_goes_on_when_the_other_mirror_of_the_site_that_was_asked_for_it_dies() {
    at_each_place(forced_while_the_other_dies);
}

/// Waits until a member serves its own view, alone or not.
fn wait_surveys(cluster: &Cluster, member: usize) {
    wait_for("a member to survey", || surveys(cluster, member));
}

fn recovered_and_killed_at(place: &str) {
    const SURVIVOR: usize = 0;
    const LOST: [usize; 2] = [1, 2];
    let mut cluster = Plan::new(3, 0).with_points().start();
    for n in 0..5 {
        cluster.put_until_done(SURVIVOR, &format!("k{n}"), "both");
    }
    let kept = cluster.wait_converged();
    let before = cluster.content(SURVIVOR, kept);
    // What the two that will be lost acknowledge without the one that will survive them. It is stopped, not killed: what
    // it has applied may not be in its log on the disk yet.
    assert!(cluster.stop(SURVIVOR).success());
    let mut stranded = Vec::new();
    for n in 2..5 {
        stranded.push((format!("k{n}"), cluster.put_until_done(LOST[0], &format!("k{n}"), "lost")));
    }
    let last = stranded.last().unwrap().1;
    wait_for("both to have applied it", || {
        let has = |member| cluster.status(member).map(|status| status["revision"].as_u64().unwrap());
        if has(LOST[0])? >= last && has(LOST[1])? >= last { Ok(()) } else { Err("not yet".to_owned()) }
    });
    for member in LOST {
        cluster.kill(member);
    }
    cluster.start_member(SURVIVOR);
    wait_surveys(&cluster, SURVIVOR);
    wait_primary_gone(&cluster, SURVIVOR);
    cluster.arm_crash(place);
    let order = json!({ "accept_data_loss": true, "survivor": true, "without": ["n2", "n3"] });
    let order = Request::new("POST", "/v1/dr/force").body(order.to_string());
    // The answer may get out or not.
    if let Ok(answer) = order.try_send(cluster.client(SURVIVOR)) {
        told(answer).expect(202);
    }
    assert_eq!(cluster.wait_crashed(place), SURVIVOR, "{place}");
    cluster.start_member(SURVIVOR);
    wait_role(&cluster, SURVIVOR, "leader");
    assert!(cluster.put_until_done(SURVIVOR, "k4", "alone") > FORCED, "{place}");
    assert_eq!(timeline_number(&cluster, SURVIVOR), Ok(2), "{place}");
    assert_eq!(cluster.content(SURVIVOR, kept), before, "{place}");
    for member in LOST {
        cluster.start_member(member);
    }
    for member in LOST {
        wait_role(&cluster, member, "fenced");
    }
    assert_eq!(role(&cluster, SURVIVOR).as_deref(), Ok("leader"), "{place}");
    for member in LOST {
        tell_to_rejoin(&cluster, member);
    }
    for member in LOST {
        wait_home(&cluster, member, SURVIVOR);
    }
    let content = assert_one_timeline(&cluster, None);
    assert!(content.iter().all(|line| !line.contains("\"lost\"")), "{place}: {content:?}");
    assert_eq!(cluster.get(LOST[0], "k4").as_deref(), Some("alone"), "{place}");
    let found = salvaged(&cluster, &LOST);
    for (key, revision) in &stranded {
        // That the last one was committed may not have become durable anywhere.
        let applied = found.contains(&(key.clone(), "applied".to_owned(), *revision));
        let unknown = *revision == last && found.contains(&(key.clone(), "unknown".to_owned(), 0));
        assert!(applied || unknown, "{place}: {key} at {revision}: {found:?}");
    }
}

#[test]
fn a_survivor_that_is_killed_anywhere_while_it_is_promoted_goes_on_and_the_lost_come_home() {
    at_each_place(recovered_and_killed_at);
}

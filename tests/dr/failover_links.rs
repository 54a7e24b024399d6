//! The link between the sites, lost while a forced failover or the way home stands at each of its places.
//!
//! A force does not need the link: it goes on whatever the link does, and a primary that lives behind it and comes back
//! amid the promotion changes nothing. A rejoin needs it twice, to find the common point and to be taken in: there it waits
//! until the link is back, and everywhere else it goes on.

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    FORCED, assert_one_timeline, member_file, salvaged, tell_to_rejoin, timeline_number, told, wait_home, wait_role,
};
use crate::support::http::Request;
use crate::support::wait_for;
use lifeboat::crash_points::{FORCE, REJOIN};
use serde_json::json;

/// The members: the only voter, in east, and the two mirrors in west.
const EAST: usize = 0;
const WEST: [usize; 2] = [1, 2];

fn sites() -> Cluster {
    let plan = Plan::new(1, 2).linked().with_points();
    plan.quick().start()
}

/// The primary site lives behind a cut link while a mirror is promoted; the link comes back while that stands at a place,
/// and is lost again before it goes on.
fn forced_while_the_link_comes_and_goes(place: &str) {
    let cluster = sites();
    cluster.put_until_done(EAST, "k", "both");
    cluster.wait_converged();
    cluster.link().cut();
    cluster.put_until_done(EAST, "k", "first");
    cluster.arm_hold(place);
    let amid = std::thread::scope(|scope| {
        // Held before it is answered, at the first place.
        scope.spawn(|| {
            let order = Request::new("POST", "/v1/dr/force").body(r#"{"accept_data_loss":true}"#);
            let answer = told(order.send(cluster.client(WEST[0])));
            // Not answered in time when it is held for long.
            let in_time = place != FORCE[0] || answer.status != 504;
            if in_time {
                answer.expect(202);
            }
        });
        cluster.wait_held(place);
        cluster.link().heal();
        // The old primary has the other mirror again, or both, or is fenced already by what leads.
        let amid = wait_for(&format!("the old primary to be met amid {place}"), || {
            let answer = Request::new("PUT", "/v1/kv/amid").body("x").try_send(cluster.client(EAST));
            match answer.map_err(|failure| failure.to_string())? {
                answer if answer.status == 421 => Ok(None),
                answer if answer.status == 201 || answer.status == 200 => {
                    let revision = answer.json()["revision"].as_u64().unwrap();
                    let has = |mirror: &usize| {
                        cluster.status(*mirror).is_ok_and(|status| status["revision"].as_u64() >= Some(revision))
                    };
                    let followed = WEST.iter().any(has);
                    if followed { Ok(Some(revision)) } else { Err("no mirror has it yet".into()) }
                }
                answer => Err(answer.to_string()),
            }
        });
        cluster.link().cut();
        cluster.release(place);
        amid
    });
    // It needs nobody of the other site.
    let leader = wait_for("a mirror to lead", || {
        let leads = |member: &usize| support::dr::role(&cluster, *member).as_deref() == Ok("leader");
        WEST.into_iter().find(leads).ok_or_else(|| "none does".to_owned())
    });
    assert!(cluster.put_until_done(leader, "k", "west") > FORCED, "{place}");
    for mirror in WEST {
        wait_for("both of the site to be on the new timeline", || match timeline_number(&cluster, mirror)? {
            2 => Ok(()),
            number => Err(format!("{number}")),
        });
    }
    cluster.link().heal();
    wait_role(&cluster, EAST, "fenced");
    tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, leader);
    let content = assert_one_timeline(&cluster, None);
    assert_eq!(cluster.get(EAST, "k").as_deref(), Some("west"), "{place}");
    // What the old primary wrote amid it is in the new timeline when the promoted mirror still took it in, else salvaged.
    let kept = content.iter().any(|line| line.contains("\"key\":\"amid\""));
    let found = salvaged(&cluster, &[EAST, WEST[0], WEST[1]]);
    let is_amid = |(key, _, revision): &(String, String, u64)| key == "amid" && Some(*revision) == amid;
    assert!(amid.is_none() || kept != found.iter().any(is_amid), "{place}: {amid:?} in {found:?}");
    assert!(!kept || place == FORCE[0], "{place}: once the order is written nothing of the old timeline is taken in");
}

#[test]
fn a_promotion_goes_on_while_the_link_comes_and_goes() {
    std::thread::scope(|scope| {
        for part in FORCE.chunks(FORCE.len().div_ceil(3)) {
            scope.spawn(move || part.iter().for_each(|place| forced_while_the_link_comes_and_goes(place)));
        }
    });
}

/// What a rejoin does when the link is lost at a place of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// It comes to the next place all the same.
    GoesOn,
    /// It waits, and says for what in its log.
    Waits(&'static str),
    /// It is opened and follows nobody.
    Follows,
    /// It is home.
    Done,
}

#[test]
fn a_rejoin_waits_for_the_link_where_it_needs_it_and_goes_on_everywhere_else() {
    use Then::{Done, Follows, GoesOn, Waits};
    let cluster = sites();
    cluster.put_until_done(EAST, "k", "both");
    cluster.wait_converged();
    cluster.link().cut();
    let stranded = cluster.put_until_done(EAST, "k", "east");
    let reply = force_and_wait_of_both(&cluster);
    cluster.put_until_done(reply, "west", "1");
    cluster.link().heal();
    wait_role(&cluster, EAST, "fenced");
    for place in REJOIN {
        cluster.arm_hold(place);
    }
    tell_to_rejoin(&cluster, EAST);
    for (number, place) in REJOIN.iter().enumerate() {
        let then = match *place {
            "rejoin-begun" => Waits("the common point is not found yet"),
            "rejoin-rewind-marked" => Waits("waiting to join again"),
            "rejoin-join-marked" => Follows,
            "rejoin-finished" => Done,
            _ => GoesOn,
        };
        cluster.wait_held(place);
        cluster.link().cut();
        let before = cluster.member(EAST).log_text().len();
        cluster.release(place);
        match then {
            GoesOn => cluster.wait_held(REJOIN[number + 1]),
            Waits(words) => {
                let step = member_file(&cluster, EAST)["rejoin"]["step"].clone();
                wait_for(&format!("the member to wait after {place}"), || {
                    let log = cluster.member(EAST).log_text();
                    if log[before..].contains(words) { Ok(()) } else { Err(log[before..].to_owned()) }
                });
                assert_eq!(member_file(&cluster, EAST)["rejoin"]["step"], step, "{place}");
                assert!(cluster.is_not_held(REJOIN[number + 1]), "{place}");
            }
            Follows => {
                wait_for("the member to serve its own view", || cluster.status(EAST));
                assert!(cluster.is_not_held(REJOIN[number + 1]), "{place}");
                assert_eq!(member_file(&cluster, EAST)["rejoin"]["step"], "joined");
            }
            Done => {}
        }
        cluster.put_until_done(reply, "west", place);
        cluster.link().heal();
    }
    wait_home(&cluster, EAST, reply);
    assert_one_timeline(&cluster, None);
    assert_eq!(cluster.get(EAST, "k").as_deref(), Some("both"));
    assert_eq!(cluster.get(EAST, "west").as_deref(), REJOIN.last().copied());
    assert_eq!(salvaged(&cluster, &[EAST]), [("k".to_owned(), "applied".to_owned(), stranded)]);
}

/// Forces west; gives who leads when both mirrors are on the new timeline.
fn force_and_wait_of_both(cluster: &Cluster) -> usize {
    let reply = support::dr::force(cluster, WEST[0], &json!({ "accept_data_loss": true })).expect(202).json();
    let first = if reply["member"] == "n2" { WEST[0] } else { WEST[1] };
    wait_role(cluster, first, "leader");
    for mirror in WEST {
        wait_home(cluster, mirror, first);
    }
    first
}

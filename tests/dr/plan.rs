//! `lifeboat dr plan` in every state that the verbs leave a cluster in, half-done ones too: each named place of a forced
//! failover, of the way home, of a switchover and of its way back, of a drill and of a repair is held, and whoever is asked
//! says how things stand and gives commands that are the program's own.
//!
//! (SPLIT is in `failover_two_orders.rs`, which looks at its commands in the same way.)

use lifeboat::crash_points::{DRILL, FORCE, REJOIN, REPAIR, SWITCHOVER, SWITCHOVER_BACK};
use serde_json::json;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::damage::{records, segments};
use crate::support::dr::{
    assert_commands, assert_one_timeline, force, force_and_wait, member_file, plan_of, survey, tell_to_rejoin,
    wait_home, wait_plan, wait_primary_gone, wait_role,
};
use crate::support::http::{self, Request};

/// The members: the only voter, in east, and the two mirrors in west.
const EAST: usize = 0;
const WEST: [usize; 2] = [1, 2];

fn at(cluster: &Cluster, member: usize) -> String {
    format!("http://{}", cluster.client(member))
}

/// Arms all these places, and at each, in their order, looks.
fn at_each(cluster: &Cluster, places: &[&str], begin: impl FnOnce(), mut look: impl FnMut(&str)) {
    places.iter().for_each(|place| cluster.arm_hold(place));
    begin();
    for place in places {
        cluster.wait_held(place);
        look(place);
        cluster.release(place);
    }
}

#[test]
fn the_plan_names_each_state_of_a_failover_and_of_the_way_home() {
    let plan = Plan::new(1, 2).with_points().quick();
    let mut cluster = plan.start();
    cluster.put_until_done(EAST, "k", "east");
    cluster.wait_converged();
    for member in [EAST, WEST[0], WEST[1]] {
        wait_plan(&cluster, member, "all is well", "lifeboat replication");
        wait_plan(&cluster, member, "no failover to site west has been rehearsed", "lifeboat dr drill --site west");
    }

    // Stranded, so that it has something to write down when it comes home.
    for mirror in WEST {
        cluster.pause(mirror);
    }
    cluster.put_until_done(EAST, "stranded", "east");
    cluster.kill(EAST);
    for mirror in WEST {
        cluster.resume(mirror);
    }
    wait_primary_gone(&cluster, WEST[0]);
    for mirror in WEST {
        let look = format!("lifeboat dr survey --endpoints {}", at(&cluster, mirror));
        wait_plan(&cluster, mirror, "if they are gone for good", &look);
    }
    let found = survey(&cluster, WEST[0]);
    let best = if found["best"] == "n2" { WEST[0] } else { WEST[1] };
    let mate = WEST[0] + WEST[1] - best;
    assert_commands(std::slice::from_ref(&found["next"]));

    let (name, see) = (&cluster.member(best).name, format!("lifeboat dr plan --endpoints {}", at(&cluster, best)));
    let order = json!({ "accept_data_loss": true, "by": "ann" });
    std::thread::scope(|scope| {
        let begin = || {
            // It is held before it is answered.
            scope.spawn(|| force(&cluster, best, &order).expect(202));
        };
        at_each(&cluster, FORCE, begin, |place| match place {
            // A test that holds these holds all of the member, which answers nothing then.
            "force-order-written" | "force-timeline-applied" => {}
            "force-finished" => {
                assert_commands(&plan_of(&cluster, best).unwrap());
                wait_plan(&cluster, best, "n1 has not come home since the failover, and does not answer", "dr rejoin");
            }
            _ => {
                wait_plan(&cluster, best, "was ordered to go on with site west by ann", &see);
                wait_plan(&cluster, mate, &format!("{name} was ordered to go on with site west"), &see);
                let told = http::get(cluster.client(best), "/v1/kv/k").expect_problem(503, "no-leader");
                assert!(
                    told["detail"].as_str().unwrap().contains(&format!("{name} is being promoted")),
                    "{place}: {told}"
                );
                let seen = survey(&cluster, mate);
                assert_eq!(seen["primary"], format!("{name} is being promoted already"), "{place}: {seen}");
                let again = force(&cluster, mate, &order).expect_problem(409, "primary-answers");
                assert!(again["detail"].as_str().unwrap().contains("is being promoted already"), "{place}: {again}");
            }
        });
    });
    wait_role(&cluster, best, "leader");
    wait_home(&cluster, mate, best);

    cluster.start_member(EAST);
    let home = format!("lifeboat dr rejoin --endpoints {}", at(&cluster, EAST));
    wait_plan(&cluster, EAST, "n1 is fenced; let it come home as a mirror", &home);
    wait_plan(&cluster, mate, "n1 has not come home since the failover: it is fenced and waits", &home);
    let begin = || tell_to_rejoin(&cluster, EAST);
    at_each(&cluster, REJOIN, begin, |place| {
        // Until it has joined it says where it goes, and the leader whom it waits for.
        wait_plan(&cluster, EAST, "", "lifeboat ");
        if REJOIN.iter().position(|it| *it == place) < REJOIN.iter().position(|it| *it == "rejoin-joined") {
            wait_plan(&cluster, EAST, "n1 comes home to site west", "lifeboat dr plan --endpoints");
            wait_plan(&cluster, best, "n1 comes home: it writes down what only it has", "lifeboat dr plan --endpoints");
        }
    });
    wait_home(&cluster, EAST, best);
    for member in [EAST, WEST[0], WEST[1]] {
        wait_plan(&cluster, member, "all of east are home", "lifeboat salvage list");
        wait_plan(&cluster, member, "the primary site again", "lifeboat dr switchover --to east --check");
    }
    assert_one_timeline(&cluster, None);
}

/// A member that is gone for good is away until somebody says so; then nobody waits for it. Should it come back all the same it
/// is fenced, and comes home.
#[test]
fn a_member_that_is_gone_for_good_is_forgotten_and_is_fenced_all_the_same_when_it_comes_back() {
    let plan = Plan::new(1, 1).with_points().quick();
    let mut cluster = plan.start();
    cluster.put_until_done(EAST, "k", "east");
    cluster.wait_converged();
    cluster.kill(EAST);
    let leader = WEST[0];
    wait_primary_gone(&cluster, leader);
    force_and_wait(&cluster, leader, &json!({ "accept_data_loss": true }));
    cluster.put_until_done(leader, "k", "west");
    // As long as it answers it can come home.
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    wait_plan(&cluster, leader, "it is fenced and waits", "lifeboat dr rejoin");
    let refused = http::delete(cluster.client(leader), "/v1/members/n1").expect_problem(400, "refused");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("n1 answers, and can come home: lifeboat dr rejoin"), "{detail}");
    http::delete(cluster.client(leader), "/v1/members/n9").expect_problem(404, "unknown-member");

    cluster.kill(EAST);
    wait_plan(&cluster, leader, "if n1 and what only it had are gone for good", "lifeboat members remove n1");
    let removed = http::delete(cluster.client(leader), "/v1/members/n1").expect(200).json();
    assert_eq!((&removed["removed"], removed["id"].is_string()), (&json!("n1"), true), "{removed}");
    support::wait_for("nobody to be waited for", || {
        let reply = http::get(cluster.client(leader), "/v1/dr").expect(200).text().to_owned();
        if reply.contains("n1") { Err(reply) } else { Ok(()) }
    });
    http::delete(cluster.client(leader), "/v1/members/n1").expect_problem(404, "unknown-member");
    support::wait_cluster_events(cluster.client(leader), &[("member-removed", 1)]);

    // It never heard of it, and does not know either that it was fenced.
    let file = cluster.member(EAST).data.join("member.json");
    let mut written = member_file(&cluster, EAST);
    written.as_object_mut().unwrap().remove("fenced");
    std::fs::write(&file, written.to_string()).unwrap();
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, leader);
    assert_eq!(cluster.get(EAST, "k").as_deref(), Some("west"));
    assert_one_timeline(&cluster, None);
}

#[test]
fn the_plan_names_each_step_of_a_switchover_and_of_its_way_back() {
    let cluster = Plan::new(1, 2).steady().with_points().start();
    let order = |to: &str| {
        support::wait_for("a switchover to begin", || {
            let answer = http::post(cluster.client(EAST), "/v1/dr/switchover", &json!({ "to_site": to }));
            if answer.status == 202 { Ok(()) } else { Err(answer.to_string()) }
        });
    };
    let status = "lifeboat dr switchover --status";
    // Called off while it waits; then the way back.
    cluster.arm_hold("switchover-added");
    order("west");
    cluster.wait_held("switchover-added");
    wait_plan(&cluster, WEST[0], "to stay in east instead", "lifeboat dr switchover --abort");
    let call_off = || {
        // It is held at the first place before it is answered.
        let member = cluster.client(EAST);
        std::thread::spawn(move || Request::new("DELETE", "/v1/dr/switchover").try_send(member));
    };
    at_each(&cluster, SWITCHOVER_BACK, call_off, |place| {
        for member in [EAST, WEST[0]] {
            // At the last place it is over already, and only not told.
            match place {
                "switchover-ended" => assert_commands(&plan_of(&cluster, member).unwrap()),
                _ => wait_plan(&cluster, member, "the primary site moves from east to west", status),
            }
        }
        if place == SWITCHOVER_BACK[0] {
            cluster.release("switchover-added");
        }
    });
    // Or the next order joins it.
    support::wait_for("it to be over", || {
        let shown = http::get(cluster.client(EAST), "/v1/dr/switchover").expect(200).json();
        if shown["state"] == "went-back" { Ok(()) } else { Err(shown.to_string()) }
    });
    // The last place is that of the way back, and whoever was held there may not have gone on yet.
    let (_ended, places) = SWITCHOVER.split_last().unwrap();
    let begin = || order("west");
    at_each(&cluster, places, begin, |_| {
        for member in [EAST, WEST[0]] {
            wait_plan(&cluster, member, "from east to west", status);
        }
    });
    for member in [EAST, WEST[0], WEST[1]] {
        wait_plan(&cluster, member, "all is well", "lifeboat replication");
    }
    // A drill touches nothing, so there is nothing to do about one.
    let drill = || {
        let member = cluster.client(EAST);
        std::thread::spawn(move || Request::new("POST", "/v1/dr/drill").body("{}").send(member));
    };
    at_each(&cluster, DRILL, drill, |_| {
        wait_plan(&cluster, WEST[0], "all is well", "lifeboat replication");
    });
}

#[test]
fn the_plan_names_a_member_that_is_repaired_one_that_has_not_joined_and_survivors() {
    let mut cluster = Plan::new(1, 1).with_points().prepare();
    // Nobody is there to answer it.
    cluster.start_member(1);
    let see = format!("lifeboat dr plan --endpoints {}", at(&cluster, 1));
    let warned = |wanted: &str| {
        support::wait_for("a warning", || {
            let answer =
                Request::new("GET", "/v1/dr").try_send(cluster.client(1)).map_err(|failure| failure.to_string())?;
            let text = answer.to_string();
            if answer.status == 200 && text.contains(wanted) { Ok(()) } else { Err(text) }
        });
    };
    warned(&format!("n2 belongs to no cluster yet: it asks http://{} to be taken in", cluster.member(0).peer));
    wait_plan(&cluster, 1, "n2 joins by itself once it is answered", &see);
    http::get(cluster.client(1), "/v1/kv/k").expect_problem(503, "not-joined");
    cluster.start_member(0);
    cluster.wait_joined();
    wait_plan(&cluster, 1, "all is well", "lifeboat replication");

    cluster.put_until_done(0, "k", "1");
    cluster.wait_converged();
    assert!(cluster.stop(1).success());
    let newest = segments(&cluster.member(1).data).pop().unwrap();
    records(&newest).pop().unwrap().flip();
    cluster.arm_hold(REPAIR[0]);
    cluster.start_member(1);
    cluster.wait_held(REPAIR[0]);
    wait_plan(&cluster, 1, "n2 repairs itself: it sets the damaged history aside", &see);
    wait_plan(&cluster, 0, "n2 is quarantined and repairs itself", "lifeboat events");
    cluster.release(REPAIR[0]);
    wait_plan(&cluster, 1, "all is well", "lifeboat replication");

    let mut cluster = Plan::new(3, 0).steady().start();
    cluster.kill(1);
    cluster.kill(2);
    let look = format!("lifeboat dr survey --endpoints {}", at(&cluster, 0));
    wait_plan(&cluster, 0, "if they are gone for good", &look);
    support::wait_for("the survey to name the way on", || {
        let found = survey(&cluster, 0);
        assert_commands(std::slice::from_ref(&found["next"]));
        let wanted = format!(
            "lifeboat dr recover --survivor --accept-data-loss --without n2 --without n3 --endpoints {}",
            at(&cluster, 0)
        );
        if found["next"] == wanted { Ok(()) } else { Err(found.to_string()) }
    });
}

//! Two forces at once: on both mirrors of the site, and twice on one.
//!
//! Whoever sees that another member of its site is promoted already is refused. When both surveyed before either had
//! written anything down, both see each other before they begin, and one gives way. When neither could see the other, two
//! timelines begin: then nothing mixes, and the plan of both says how to choose.

use std::sync::Barrier;
use std::time::Duration;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    FORCED, assert_commands, assert_one_timeline, force, member_file, plan_of, rejoin, role, salvaged, timeline_number,
    wait_home, wait_primary_gone, wait_role,
};
use crate::support::http::{self, Answer};
use crate::support::wait_for;
use serde_json::{Value, json};

/// The members: the only voter, in east, and the two mirrors in west.
const EAST: usize = 0;
const WEST: [usize; 2] = [1, 2];

fn sites() -> Cluster {
    let plan = Plan::new(1, 2).linked().with_points().quick();
    let cluster = plan.start();
    cluster.put_until_done(EAST, "k", "east");
    cluster.wait_converged();
    cluster
}

/// Orders a mirror to go on without the other one, so that each of the two chooses itself.
fn without_the_other(cluster: &Cluster, member: usize) -> Answer {
    let other = &cluster.member(WEST[0] + WEST[1] - member).name;
    let order = json!({ "accept_data_loss": true, "without": [other] });
    force(cluster, member, &order)
}

fn promotion(cluster: &Cluster, member: usize) -> Value {
    member_file(cluster, member)["promotion"]["id"].clone()
}

/// In the end one member leads, the other one of its site is home, and the old primary is fenced by the timeline of this id.
fn assert_one_is_led(cluster: &mut Cluster, timeline: &Value) -> usize {
    let leader = wait_for("one of the two to lead", || {
        let leads = |member: &usize| role(cluster, *member).as_deref() == Ok("leader");
        WEST.into_iter().find(leads).ok_or_else(|| "none does".to_owned())
    });
    assert!(cluster.put_until_done(leader, "k", "west") > FORCED);
    for mirror in WEST {
        wait_home(cluster, mirror, leader);
        assert_eq!(timeline_number(cluster, mirror), Ok(2));
    }
    assert_eq!(cluster.status(leader).unwrap()["cluster"]["timeline"]["id"], *timeline);
    leader
}

/// Both survey while the primary site neither answers nor refuses, so both wait for it, and see nothing of each other; then
/// both have written their order down before either looks.
#[test]
fn of_two_members_that_are_promoted_at_once_one_gives_way() {
    let mut cluster = sites();
    cluster.link().stall();
    wait_primary_gone(&cluster, WEST[0]);
    cluster.arm_hold("force-order-written");
    let start = Barrier::new(2);
    let answers = std::thread::scope(|scope| {
        let asked = WEST.map(|member| {
            let (cluster, start) = (&cluster, &start);
            scope.spawn(move || {
                start.wait();
                without_the_other(cluster, member)
            })
        });
        wait_for("both to have written it down", || {
            let written = WEST.map(|member| promotion(&cluster, member));
            if written.iter().all(|id| id.is_string()) { Ok(()) } else { Err(format!("{written:?}")) }
        });
        cluster.release("force-order-written");
        asked.map(|asked| asked.join().unwrap().expect(202).json())
    });
    let mut timelines = answers.map(|answer| answer["timeline"].as_str().unwrap().to_owned());
    assert_ne!(timelines[0], timelines[1]);
    timelines.sort();
    let leader = assert_one_is_led(&mut cluster, &json!(timelines[0]));
    let gave_way = WEST[0] + WEST[1] - leader;
    assert!(cluster.member(gave_way).log_text().contains("this one gives way"));
    assert_eq!(salvaged(&cluster, &WEST), []);
    cluster.link().heal();
    wait_role(&cluster, EAST, "fenced");
    support::dr::tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, leader);
    assert_one_timeline(&cluster, None);
}

/// The second order is chosen while the first is, and is written down when the first member has decided, is closed, is open
/// again, or has begun: it gives way, whichever of the ids is smaller.
#[test]
fn the_later_of_two_orders_gives_way_wherever_the_first_has_come_to() {
    std::thread::scope(|scope| {
        for later in [60, 150, 300, 600].map(Duration::from_millis) {
            scope.spawn(move || one_order_after_the_other(later));
        }
    });
}

fn one_order_after_the_other(later: Duration) {
    let mut cluster = sites();
    // Both surveys wait for a second for the voter, which neither answers nor refuses.
    cluster.link().stall();
    wait_primary_gone(&cluster, WEST[0]);
    let answers = std::thread::scope(|scope| {
        let cluster = &cluster;
        let first = scope.spawn(|| without_the_other(cluster, WEST[0]));
        let second = scope.spawn(move || {
            std::thread::sleep(later);
            without_the_other(cluster, WEST[1])
        });
        [first, second].map(|asked| asked.join().unwrap())
    });
    let begun: Vec<Value> = answers.iter().filter(|a| a.status == 202).map(|a| a.json()["timeline"].clone()).collect();
    for answer in answers.iter().filter(|answer| answer.status != 202) {
        // It saw the first one in its survey, or was fenced by it before it could obey.
        let (text, fenced) = (answer.text(), answer.status == 400 || answer.status == 504);
        assert!(answer.status == 409 && text.contains("primary-answers") || fenced, "{later:?}: {answer}");
    }
    let leader = wait_for("one of the two to lead a timeline of its own", || {
        let leads = |member: &usize| {
            role(&cluster, *member).as_deref() == Ok("leader") && timeline_number(&cluster, *member) == Ok(2)
        };
        WEST.into_iter().find(leads).ok_or_else(|| "none does".to_owned())
    });
    let timeline = cluster.status(leader).unwrap()["cluster"]["timeline"]["id"].clone();
    assert!(begun.contains(&timeline), "{later:?}: {timeline} of {begun:?}");
    assert_one_is_led(&mut cluster, &timeline);
    assert_eq!(salvaged(&cluster, &WEST), [], "{later:?}: nobody began another");
}

/// A member that is amid its promotion says so, whoever asks: no second order is taken, not even without it, until it leads,
/// and then none is either.
#[test]
fn a_second_order_is_refused_while_a_member_is_promoted_and_when_it_leads() {
    let mut cluster = sites();
    cluster.kill(EAST);
    wait_primary_gone(&cluster, WEST[0]);
    let order = json!({ "accept_data_loss": true });
    cluster.arm_hold("force-vote-written");
    let first = force(&cluster, WEST[0], &order).expect(202).json();
    cluster.wait_held("force-vote-written");
    let promoted = WEST.into_iter().find(|member| promotion(&cluster, *member).is_string()).unwrap();
    let other = WEST[0] + WEST[1] - promoted;
    let words = format!("{} is being promoted already", cluster.member(promoted).name);
    let refused = force(&cluster, other, &order).expect_problem(409, "primary-answers");
    assert!(refused["detail"].as_str().unwrap().contains(&words), "{refused}");
    let refused = without_the_other(&cluster, other).expect_problem(409, "primary-answers");
    assert!(refused["detail"].as_str().unwrap().contains(&words), "{refused}");
    let again = force(&cluster, promoted, &order);
    assert!(again.status == 503 || again.status == 421, "it serves nothing: {again}");
    cluster.release("force-vote-written");
    let leader = assert_one_is_led(&mut cluster, &first["timeline"]);
    wait_role(&cluster, other, "follower");
    // Both of the site are voters by now, and a voter is asked for another verb, which sees the primary.
    for member in WEST {
        force(&cluster, member, &order).expect_problem(400, "refused");
        let survivor = json!({ "accept_data_loss": true, "survivor": true });
        force(&cluster, member, &survivor).expect_problem(409, "primary-answers");
    }
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    support::dr::tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, leader);
    assert_one_timeline(&cluster, None);
}

/// The same order to one member twice at the same moment.
#[test]
fn the_same_order_twice_at_once_begins_one_timeline() {
    let mut cluster = sites();
    cluster.link().stall();
    wait_primary_gone(&cluster, WEST[0]);
    let start = Barrier::new(2);
    let order = json!({ "accept_data_loss": true });
    let answers = std::thread::scope(|scope| {
        let asked = [0, 1].map(|_| {
            scope.spawn(|| {
                start.wait();
                force(&cluster, WEST[0], &order)
            })
        });
        asked.map(|asked| asked.join().unwrap())
    });
    let mut begun: Vec<Value> = Vec::new();
    for answer in answers {
        match answer.status {
            202 => begun.push(answer.json()["timeline"].clone()),
            _ => drop(answer.expect_problem(409, "primary-answers")),
        }
    }
    assert!(!begun.is_empty() && begun.iter().all(|timeline| *timeline == begun[0]), "{begun:?}");
    assert_one_is_led(&mut cluster, &begun[0]);
}

/// The second is ordered while the first is dead amid its promotion: two timelines of one site.
#[test]
fn two_members_of_a_site_that_cannot_see_each_other_split_and_the_plan_says_how_to_choose() {
    let mut cluster = sites();
    cluster.kill(EAST);
    wait_primary_gone(&cluster, WEST[0]);
    cluster.arm_crash("force-log-written");
    let first = without_the_other(&cluster, WEST[0]).expect(202).json();
    assert_eq!(cluster.wait_crashed("force-log-written"), WEST[0]);
    wait_primary_gone(&cluster, WEST[1]);
    let second = without_the_other(&cluster, WEST[1]).expect(202).json();
    assert_ne!(first["timeline"], second["timeline"]);
    wait_role(&cluster, WEST[1], "leader");
    cluster.start_member(WEST[0]);
    for (member, value) in [(WEST[0], "first"), (WEST[1], "second")] {
        wait_role(&cluster, member, "leader");
        assert!(cluster.put_until_done(member, "k", value) > FORCED);
    }
    for (member, value, own) in [(WEST[0], "first", &first), (WEST[1], "second", &second)] {
        wait_for("the split to be seen", || {
            let reply = http::get(cluster.client(member), "/v1/dr").expect(200).json();
            let plan = reply["plan"].to_string();
            let both = [&first, &second].map(|reply| {
                let timeline = reply["timeline"].as_str().unwrap();
                let (at, name) = (reply["client_url"].as_str().unwrap(), reply["member"].as_str().unwrap());
                let command = format!("lifeboat dr rejoin --abandon-timeline {timeline} --endpoints {at}");
                plan.contains(&command) && plan.contains(name)
            });
            let warned = reply["warnings"].to_string().contains("SPLIT");
            if warned && both == [true, true] { Ok(()) } else { Err(reply.to_string()) }
        });
        assert_commands(&plan_of(&cluster, member).unwrap());
        assert_eq!(cluster.get(member, "k").as_deref(), Some(value));
        let status = cluster.status(member).unwrap();
        assert_eq!(status["cluster"]["timeline"]["id"], own["timeline"], "{status}");
    }
    let chosen = json!({ "abandon_timeline": second["timeline"] });
    rejoin(&cluster, WEST[1], &chosen).expect(202);
    wait_home(&cluster, WEST[1], WEST[0]);
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    support::dr::tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, WEST[0]);
    assert_one_timeline(&cluster, None);
    assert_eq!(cluster.get(EAST, "k").as_deref(), Some("first"));
    assert!(salvaged(&cluster, &[WEST[1]]).iter().any(|(key, fate, _)| key == "k" && fate == "applied"));
}

//! One failover after the other: a timeline is forced while a member still comes home to the one before.
//!
//! Three members, one in each site, take turns: one leads, one mirrors it, one comes home. The leader dies while the third
//! stands at a place of its rejoin, and the mirror is forced. Whatever the third had done until then, it ends on the newest
//! timeline and changes nothing of it.

use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    assert_one_timeline, force_and_wait, member_file, salvaged, tell_to_rejoin, timeline_number, wait_home,
    wait_primary_gone, wait_role,
};
use crate::support::http::Request;
use crate::support::wait_for;
use lifeboat::crash_points::REJOIN;
use serde_json::json;

/// A voter in east, and a mirror each in west and in north.
fn sites() -> Cluster {
    let plan = Plan::new(1, 1).with_points().quick();
    let mut cluster = plan.prepare();
    cluster.add_member("mirror", "north");
    cluster.start_member(0);
    cluster.wait_ready(0);
    cluster.start_member(1);
    cluster.start_member(2);
    cluster.wait_joined();
    cluster
}

/// Who leads, who mirrors, and who is fenced and has not been told to rejoin.
#[derive(Debug, Clone, Copy)]
struct Turns {
    leads: usize,
    mirrors: usize,
    fenced: usize,
}

/// Forces the mirror of a lost primary; gives the id of the timeline.
fn force(cluster: &Cluster, member: usize) -> serde_json::Value {
    wait_primary_gone(cluster, member);
    force_and_wait(cluster, member, &json!({ "accept_data_loss": true }))["timeline"].clone()
}

/// Waits until a member is on this timeline, and tells it to rejoin whenever it is fenced and waits for that.
fn come_over(cluster: &Cluster, member: usize, timeline: &serde_json::Value) {
    wait_for("a member to come over", || {
        let fenced = member_file(cluster, member)["fenced"].clone();
        if !fenced.is_null() && fenced["rejoin"] != true {
            assert_eq!(fenced["by"].as_array().unwrap().last().unwrap()["id"], *timeline, "{fenced}");
            // It may be amid being opened anew.
            let _ = Request::new("POST", "/v1/dr/rejoin").body("{}").try_send(cluster.client(member));
        }
        match cluster.status(member)?["cluster"]["timeline"]["id"] == *timeline {
            true => Ok(()),
            false => Err(member_file(cluster, member).to_string()),
        }
    });
}

fn forced_amid_a_rejoin(places: &[&str]) {
    let mut cluster = sites();
    cluster.put_until_done(0, "k", "0");
    cluster.wait_converged();
    cluster.kill(0);
    force(&cluster, 1);
    wait_role(&cluster, 2, "fenced");
    tell_to_rejoin(&cluster, 2);
    wait_home(&cluster, 2, 1);
    cluster.start_member(0);
    let mut turns = Turns { leads: 1, mirrors: 2, fenced: 0 };
    for (number, place) in places.iter().enumerate() {
        let Turns { leads, mirrors, fenced } = turns;
        wait_role(&cluster, fenced, "fenced");
        cluster.arm_hold(place);
        tell_to_rejoin(&cluster, fenced);
        cluster.wait_held(place);
        let revision = cluster.put_until_done(leads, "k", place);
        wait_for("the mirror to have it", || match cluster.status(mirrors)?["revision"].as_u64() {
            has if has >= Some(revision) => Ok(()),
            has => Err(format!("{has:?}")),
        });
        cluster.kill(leads);
        let timeline = force(&cluster, mirrors);
        let revision = cluster.put_until_done(mirrors, "new", place);
        assert_eq!(timeline_number(&cluster, mirrors), Ok(number as u64 + 3), "{place}");
        let before = cluster.content(mirrors, revision);
        cluster.release(place);
        come_over(&cluster, fenced, &timeline);
        wait_home(&cluster, fenced, mirrors);
        assert_eq!(cluster.content(mirrors, revision), before, "{place}");
        assert_eq!(cluster.content(fenced, revision), before, "{place}");
        assert_eq!(cluster.get(fenced, "k").as_deref(), Some(*place), "{place}");
        cluster.start_member(leads);
        turns = Turns { leads: mirrors, mirrors: fenced, fenced: leads };
    }
    wait_role(&cluster, turns.fenced, "fenced");
    tell_to_rejoin(&cluster, turns.fenced);
    wait_home(&cluster, turns.fenced, turns.leads);
    assert_one_timeline(&cluster, turns.leads);
    // All that was acknowledged was replicated before the next was forced.
    assert_eq!(salvaged(&cluster, &[0, 1, 2]), []);
    for member in 0..3 {
        // Opened anew again and again in one process, each time with the index that it has.
        let log = cluster.member(member).log_text();
        let rebuilt = log.lines().find(|line| line.contains("could not acquire lock"));
        assert_eq!(rebuilt, None, "n{} met itself", member + 1);
    }
}

#[test]
fn a_member_that_comes_home_to_a_timeline_that_is_left_meanwhile_comes_home_to_the_next() {
    std::thread::scope(|scope| {
        for part in REJOIN.chunks(REJOIN.len().div_ceil(3)) {
            scope.spawn(move || forced_amid_a_rejoin(part));
        }
    });
}

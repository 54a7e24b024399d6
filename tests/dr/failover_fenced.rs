//! Members that a forced failover finds in a state of their own: fenced by one of two sites that were both forced, in the
//! middle of a repair, or suspended.

use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    assert_one_timeline, force_and_wait, member_file, rejoin, salvaged, survey, surveys, tell_to_rejoin, wait_home,
    wait_primary_gone, wait_role,
};
use crate::support::http::{self, Request};
use crate::support::mirrors::apply_something_else;
use crate::support::scrape::Metrics;
use crate::support::wait_for;
use serde_json::{Value, json};

/// The members, one in each site: the only voter, and two mirrors.
const EAST: usize = 0;
const WEST: usize = 1;
const NORTH: usize = 2;

fn sites() -> Cluster {
    let plan = Plan::new(1, 1).with_points().flag("--canary-interval-ms", "0").quick();
    let mut cluster = plan.prepare();
    cluster.add_member("mirror", "north");
    cluster.start_member(EAST);
    cluster.wait_ready(EAST);
    cluster.start_member(WEST);
    cluster.start_member(NORTH);
    cluster.wait_joined();
    cluster.put_until_done(EAST, "k", "east");
    cluster.wait_converged();
    cluster
}

fn order() -> Value {
    json!({ "accept_data_loss": true })
}

/// What a survey says of a member.
fn surveyed(found: &Value, name: &str) -> Value {
    found["members"].as_array().unwrap().iter().find(|member| member["name"] == name).unwrap().clone()
}

/// West was forced and fenced east; then north is forced, which knows of neither. East shows both ways, and comes home to
/// the one that is kept, which is not the one that fenced it.
#[test]
fn a_fenced_member_of_a_third_site_comes_home_to_whichever_of_two_forced_sites_is_kept() {
    let mut cluster = sites();
    cluster.kill(EAST);
    // Not killed: it may apply what its own log has not on the disk yet.
    assert!(cluster.stop(NORTH).success());
    let west = force_and_wait(&cluster, WEST, &order());
    cluster.put_until_done(WEST, "k", "west");
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    cluster.kill(WEST);
    // A fenced member passes the news on, so north must not meet it before it is forced.
    cluster.kill(EAST);
    cluster.start_member(NORTH);
    wait_for("north to survey", || surveys(&cluster, NORTH));
    wait_primary_gone(&cluster, NORTH);
    let north = force_and_wait(&cluster, NORTH, &order());
    assert_ne!(north["timeline"], west["timeline"]);
    cluster.put_until_done(NORTH, "k", "north");
    cluster.start_member(EAST);
    cluster.start_member(WEST);
    wait_role(&cluster, WEST, "leader");
    let at = |member: usize| format!("http://{}", cluster.client(member));
    wait_for("the fenced member to show both ways", || {
        let reply = Request::new("GET", "/v1/dr").try_send(cluster.client(EAST)).map_err(|e| e.to_string())?;
        let reply = if reply.status == 200 { reply.json() } else { return Err(reply.to_string()) };
        let commands: Vec<&str> =
            reply["plan"].as_array().unwrap().iter().map(|step| step["command"].as_str().unwrap()).collect();
        let to_west = format!("lifeboat dr rejoin --endpoints {}", at(EAST));
        let timeline = west["timeline"].as_str().unwrap();
        let to_north = format!("lifeboat dr rejoin --abandon-timeline {timeline} --endpoints {}", at(EAST));
        let warned = reply["warnings"].to_string().contains("SPLIT: site north was forced too");
        if warned && commands == [to_west, to_north] { Ok(()) } else { Err(reply.to_string()) }
    });
    // By the wrong timeline it gives up nothing.
    let wrong = json!({ "abandon_timeline": north["timeline"] });
    rejoin(&cluster, EAST, &wrong).expect_problem(409, "not-fenced");
    assert!(member_file(&cluster, EAST)["fenced"]["rejoin"] != true);
    let given_up = json!({ "abandon_timeline": west["timeline"] });
    let told = rejoin(&cluster, EAST, &given_up).expect(202).json();
    assert_eq!((&told["site"], &told["timeline"]["id"]), (&json!("north"), &north["timeline"]), "{told}");
    wait_home(&cluster, EAST, NORTH);
    assert_eq!(cluster.get(EAST, "k").as_deref(), Some("north"));
    // Then the one that is given up comes too.
    wait_for("west to give its timeline up", || {
        let answer = rejoin(&cluster, WEST, &given_up);
        if answer.status == 202 { Ok(()) } else { Err(answer.to_string()) }
    });
    wait_home(&cluster, WEST, NORTH);
    assert_one_timeline(&cluster, NORTH);
    assert!(salvaged(&cluster, &[WEST]).iter().any(|(key, fate, _)| key == "k" && fate == "applied"));
    assert_eq!(salvaged(&cluster, &[EAST]), []);
}

/// The others of the cluster are not there to repair it any more: what it has cannot be trusted, is kept aside for people,
/// and it takes everything from the timeline that goes on.
#[test]
fn a_mirror_that_is_being_repaired_is_fenced_and_comes_home_without_what_was_wrong() {
    let mut cluster = sites();
    assert!(cluster.stop(NORTH).success());
    apply_something_else(&cluster.member(NORTH).data.clone());
    cluster.put_until_done(EAST, "k", "2");
    cluster.arm_hold("repair-before-pull");
    cluster.start_member(NORTH);
    cluster.wait_held("repair-before-pull");
    Metrics::of(cluster.client(NORTH)).assert_cannot_serve(false, true);
    wait_for("west to have it", || match cluster.get(WEST, "k").as_deref() {
        Some("2") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.kill(EAST);
    wait_primary_gone(&cluster, WEST);
    let found = surveyed(&survey(&cluster, WEST), "n3");
    assert!(found["answers"] == false && found["reason"].as_str().unwrap().contains("quarantine"), "{found}");
    force_and_wait(&cluster, WEST, &order());
    let now = cluster.put_until_done(WEST, "k", "west");
    cluster.release("repair-before-pull");
    wait_role(&cluster, NORTH, "fenced");
    Metrics::of(cluster.client(NORTH)).assert_cannot_serve(true, false);
    tell_to_rejoin(&cluster, NORTH);
    wait_home(&cluster, NORTH, WEST);
    assert_eq!(cluster.content(NORTH, now), cluster.content(WEST, now));
    assert_eq!(http::get(cluster.client(NORTH), "/v1/kv/from%2Fnowhere?consistency=stale").status, 404);
    let events = http::get(cluster.client(NORTH), "/v1/events").expect(200).text().to_owned();
    assert!(events.contains("nothing could be salvaged"), "{events}");
    let kept = std::fs::read_dir(&cluster.member(NORTH).data).unwrap();
    let kept = kept.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".left-")).count();
    assert_eq!(kept, 2, "the history and the log that were wrong stay for people");
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, WEST);
    assert_one_timeline(&cluster, WEST);
}

/// It holds less, says so, and when it is all that is left it leads and is suspended no more.
#[test]
fn a_suspended_mirror_that_is_promoted_leads_and_is_suspended_no_more() {
    let mut cluster = sites();
    http::post(cluster.client(EAST), "/v1/members/n2/suspend", &json!({})).expect(200);
    let missing = cluster.put_until_done(EAST, "late", "x");
    wait_for("north to have it", || match cluster.status(NORTH)?["revision"].as_u64() {
        has if has >= Some(missing) => Ok(()),
        has => Err(format!("{has:?}")),
    });
    cluster.kill(EAST);
    wait_primary_gone(&cluster, WEST);
    let found = survey(&cluster, WEST);
    assert!(found["loss"]["entries_at_least"].as_u64() >= Some(1), "north has more: {found}");
    let reply = force_and_wait(&cluster, WEST, &order());
    assert!(reply["loss"]["entries_at_least"].as_u64() >= Some(1), "{reply}");
    assert_eq!(cluster.get(WEST, "late"), None);
    cluster.put_until_done(WEST, "k", "west");
    wait_for("nobody to be suspended", || {
        let reply = http::get(cluster.client(WEST), "/v1/replication").expect(200).text().to_owned();
        if reply.contains("SUSPENDED") { Err(reply) } else { Ok(()) }
    });
    wait_role(&cluster, NORTH, "fenced");
    cluster.start_member(EAST);
    for member in [NORTH, EAST] {
        wait_role(&cluster, member, "fenced");
        tell_to_rejoin(&cluster, member);
        wait_home(&cluster, member, WEST);
    }
    assert_one_timeline(&cluster, WEST);
    // It follows again when it is a mirror once more: everybody does, and the write that it lacked is salvaged twice.
    for member in [NORTH, EAST] {
        let found = salvaged(&cluster, &[member]);
        assert!(found.iter().any(|(key, _, _)| key == "late"), "{found:?}");
    }
}

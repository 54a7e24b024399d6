//! Forced failover while a mirror of the site is receiving a copy, over a link so slow that it takes as long as the test
//! wants: what is promoted is whole, or nothing is.

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::dr::{
    assert_one_timeline, force, force_and_wait, salvaged, survey, tell_to_rejoin, wait_home, wait_primary_gone,
    wait_role,
};
use crate::support::http::Request;
use crate::support::link::Way;
use crate::support::scrape::Metrics;
use crate::support::{Seed, wait_for};
use rand::RngCore;
use serde_json::json;

/// The members: the only voter, in east, and the mirror in west.
const EAST: usize = 0;
const WEST: usize = 1;
const KEYS: usize = 60;
/// Random, so that no compression helps.
const VALUE_BYTES: usize = 64 << 10;
/// A copy of all would take half a minute.
const RATE: u64 = 128 << 10;

fn plan() -> Plan {
    let plan = Plan::new(1, 1).linked().seals_early();
    plan.quick()
}

/// Writes all keys anew, and waits until the log no longer reaches back to before.
fn write_all(cluster: &Cluster, seed: &Seed, round: u64) {
    let mut random = seed.rng(round);
    let last = || cluster.status(EAST).unwrap()["last_index"].as_u64().unwrap();
    let before = last();
    for key in 0..KEYS {
        let mut value = vec![0; VALUE_BYTES];
        random.fill_bytes(&mut value);
        let put = Request::new("PUT", &format!("/v1/kv/k{key}")).body(value).send(cluster.client(EAST));
        assert!(put.status < 300, "{put}");
    }
    wait_for("the log to be purged", || {
        let first = Metrics::of(cluster.client(EAST)).sum("lifeboat_wal_first_index", &[]) as u64;
        if first > before + 1 { Ok(()) } else { Err(format!("it begins at {first}, and {before} was the last")) }
    });
}

/// Waits until a member has received a part of a copy.
fn wait_receiving(cluster: &Cluster) {
    wait_for("a part of the copy", || {
        let answer = Request::new("GET", "/metrics").try_send(cluster.client(WEST)).map_err(|e| e.to_string())?;
        if answer.status != 200 {
            return Err(answer.to_string());
        }
        let staged = Metrics::of(cluster.client(WEST)).sum("lifeboat_staging_bytes", &[]);
        if staged > 0.0 { Ok(()) } else { Err("nothing yet".to_owned()) }
    });
}

#[test]
fn a_mirror_that_receives_its_first_copy_is_not_promoted_and_says_why() {
    let seed = Seed::for_test("a_mirror_that_receives_its_first_copy_is_not_promoted_and_says_why");
    let mut cluster = plan().prepare();
    cluster.start_member(EAST);
    cluster.wait_ready(EAST);
    write_all(&cluster, &seed, 1);
    cluster.link().rate(Way::ToWest, Some(RATE));
    cluster.start_member(WEST);
    wait_receiving(&cluster);
    cluster.kill(EAST);
    let order = json!({ "accept_data_loss": true });
    let refused = force(&cluster, WEST, &order).expect_problem(400, "refused");
    assert!(refused["detail"].as_str().unwrap().contains("has not received its first copy whole"), "{refused}");
    let found = survey(&cluster, WEST);
    assert_eq!((&found["best"], &found["loss"]), (&json!(null), &json!(null)), "{found}");
    assert!(found["next"].as_str().unwrap().starts_with("lifeboat dr plan"), "{found}");
    // Nothing was begun: the primary comes back, and the copy goes on to its end.
    cluster.link().rate(Way::ToWest, None);
    cluster.start_member(EAST);
    cluster.wait_joined();
    assert_one_timeline(&cluster, EAST);
    assert_eq!(support::dr::timeline_number(&cluster, WEST), Ok(1));
}

#[test]
fn a_mirror_that_receives_a_copy_is_promoted_with_the_whole_that_it_had_before() {
    let seed = Seed::for_test("a_mirror_that_receives_a_copy_is_promoted_with_the_whole_that_it_had_before");
    let mut cluster = plan().start();
    write_all(&cluster, &seed, 1);
    let whole = cluster.wait_converged();
    let before = cluster.content(WEST, whole);
    // Not killed: what it has applied may not be in its log on the disk yet.
    assert!(cluster.stop(WEST).success());
    write_all(&cluster, &seed, 2);
    cluster.link().rate(Way::ToWest, Some(RATE));
    cluster.start_member(WEST);
    wait_receiving(&cluster);
    let ahead = cluster.status(EAST).unwrap()["revision"].as_u64().unwrap();
    cluster.kill(EAST);
    wait_primary_gone(&cluster, WEST);
    let found = survey(&cluster, WEST);
    assert_eq!(found["loss"]["kept_revision"], whole, "what is half received is not counted: {found}");
    let reply = force_and_wait(&cluster, WEST, &json!({ "accept_data_loss": true }));
    assert_eq!(
        (&reply["loss"]["kept_revision"], &reply["loss"]["unbounded"]),
        (&json!(whole), &json!(true)),
        "{reply}"
    );
    let now = cluster.put_until_done(WEST, "west", "1");
    let content = cluster.content(WEST, now);
    let kept: Vec<String> = content.into_iter().filter(|line| !line.contains("\"key\":\"west\"")).collect();
    assert!(kept == before, "the new timeline begins with something else than the mirror had");
    wait_for("what was cut to go", || {
        let staged = Metrics::of(cluster.client(WEST)).sum("lifeboat_staging_bytes", &[]);
        if staged == 0.0 { Ok(()) } else { Err(format!("{staged} bytes are there")) }
    });
    // What the lost primary had more is salvaged, all of it.
    cluster.link().rate(Way::ToWest, None);
    cluster.start_member(EAST);
    wait_role(&cluster, EAST, "fenced");
    tell_to_rejoin(&cluster, EAST);
    wait_home(&cluster, EAST, WEST);
    assert_one_timeline(&cluster, WEST);
    let found = salvaged(&cluster, &[EAST]);
    let missing = (0..KEYS).find(|key| found.iter().all(|(name, _, _)| *name != format!("k{key}")));
    assert_eq!(missing, None, "{found:?}");
    assert!(found.iter().all(|(_, _, revision)| *revision > whole && *revision <= ahead), "{found:?}");
}

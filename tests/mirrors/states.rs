//! Every change of a mirror's state, seen in all places: each test causes changes, and each is looked for in the API, in the
//! metrics of the leader, among the events and in a webhook (`see_change`).
//!
//! Of the twenty pairs of states nineteen are changes that happen. From the left to the top, and where each is seen:
//!
//! | from          | SYNCHRONIZED | SYNCHRONIZING | SUSPENDED  | DISCONNECTED | QUARANTINED |
//! |---------------|--------------|---------------|------------|--------------|-------------|
//! | SYNCHRONIZED  |              | slow          | quarantine | quarantine   | quarantine  |
//! | SYNCHRONIZING | slow         |               | slow       | slow         | damaged     |
//! | SUSPENDED     | at once      | slow          |            | quarantine   | quarantine  |
//! | DISCONNECTED  | at once      | slow          | quarantine |              | quarantine  |
//! | QUARANTINED   | at once      | quarantine    | quarantine | never        |             |
//!
//! *Slow*: behind a link that carries less than is written. *At once*: it lacks nothing when it comes back. *Damaged*: found
//! while it catches up. *Quarantine*: in `tests/mirrors/quarantine.rs`. *Never*: a member leaves QUARANTINED by an answer only; that
//! it stays there while it is silent is seen here too. Real processes, real sockets.

use crate::support::cluster::{Cluster, Plan};
use crate::support::damage::record_of;
use crate::support::http::Request;
use crate::support::link::Way;
use crate::support::mirrors::{
    Hook, MIRROR, assert_metric, mirror, seconds, see_change, steer, wait_left, wait_state, write,
};
use crate::support::wait_for;

/// Three voters and a mirror whose leader stays the same however busy the machine is, as a new one knows of no state before,
/// so the change across the two is no change of these. No canaries: one while the mirror is away would be something that it
/// lacks.
fn plan(webhook: &str) -> Plan {
    Plan::new(3, 1).steady().flag("--canary-interval-ms", "0").flag("--webhooks", webhook)
}

/// With these elections a member that has been silent for longer than this, in seconds, is DISCONNECTED.
const SILENT: f64 = 5.0;

/// So slow is the link in bytes a second when the mirror shall not follow.
const SLOW: u64 = 64 << 10;

/// Writes what a slow link carries in about as many seconds.
fn write_seconds(cluster: &Cluster, seconds: usize) {
    for n in 0..seconds * 2 {
        // Nothing that the link's compression could make smaller.
        let noise: Vec<u8> = (0..SLOW / 2).map(|_| rand::random()).collect();
        write(cluster, &format!("big%2F{n}"), noise);
    }
}

#[test]
fn a_mirror_behind_a_slow_link_is_suspended_and_lost_and_comes_back_still_catching_up() {
    let (url, mut hook) = Hook::new();
    let cluster = plan(&url).linked().start();
    wait_state(&cluster, "SYNCHRONIZED");
    cluster.link().rate(Way::ToWest, Some(SLOW));
    // Far more than all of this takes: it must not have caught up before the link is quick again.
    write_seconds(&cluster, 60);
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZED", "SYNCHRONIZING");
    steer(&cluster, "suspend");
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZING", "SUSPENDED");
    steer(&cluster, "resume");
    see_change(&cluster, &mut hook, "n4", "SUSPENDED", "SYNCHRONIZING");
    cluster.link().cut();
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZING", "DISCONNECTED");
    // As slow as before.
    cluster.link().heal();
    see_change(&cluster, &mut hook, "n4", "DISCONNECTED", "SYNCHRONIZING");
    cluster.link().rate(Way::ToWest, None);
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZING", "SYNCHRONIZED");
    cluster.wait_converged();
    cluster.assert_same_content();
}

/// Waits until the leader knows that the mirror has applied all that there is, the last event too.
fn wait_current(cluster: &Cluster) {
    cluster.wait_converged();
    wait_for("the mirror to lack nothing", || {
        let found = wait_state(cluster, "SYNCHRONIZED");
        let lacks = |queue: &str| found[queue]["entries"] != 0;
        if lacks("send_queue") || lacks("redo_queue") { Err(found.to_string()) } else { Ok(()) }
    });
}

/// Takes a synchronized mirror into a state and out of it until it was SYNCHRONIZED with the next look. It lacks the event
/// that told of the state at least, so whether it is SYNCHRONIZING first depends on whether that look comes before it has
/// received that.
fn comes_straight_back(
    cluster: &mut Cluster,
    hook: &mut Hook,
    from: &str,
    away: impl Fn(&mut Cluster),
    back: impl Fn(&mut Cluster),
) {
    wait_for(&format!("a mirror that was {from} to be SYNCHRONIZED at once"), || {
        wait_current(cluster);
        away(cluster);
        see_change(cluster, hook, "n4", "SYNCHRONIZED", from);
        back(cluster);
        let next = wait_left(cluster, "n4", from);
        if next == "SYNCHRONIZED" { Ok(()) } else { Err(format!("it was {next} first")) }
    });
    see_change(cluster, hook, "n4", from, "SYNCHRONIZED");
}

/// Where a repair is held.
const IN_REPAIR: &str = "repair-before-pull";
/// A value that the mirror has sealed, so that it can be damaged.
const SEALED: &str = "a value that will be damaged";

fn seal_a_value(cluster: &mut Cluster) {
    write(cluster, "sealed", SEALED);
    wait_current(cluster);
    // A stop seals what it holds.
    assert!(cluster.stop(MIRROR).success());
    cluster.start_member(MIRROR);
    cluster.wait_ready(MIRROR);
    wait_current(cluster);
}

/// Damages the value and reads it, which is how the mirror finds it; it is held in its repair.
fn damage_the_value(cluster: &Cluster) {
    cluster.arm_hold(IN_REPAIR);
    record_of(&cluster.member(MIRROR).data, SEALED).unwrap().flip();
    let read = Request::new("GET", "/v1/kv/sealed?consistency=stale").send(cluster.client(MIRROR));
    assert!(read.status >= 500, "{read}");
    cluster.wait_held(IN_REPAIR);
}

#[test]
fn a_mirror_that_lacks_nothing_when_it_comes_back_is_synchronized_at_once() {
    let (url, mut hook) = Hook::new();
    let mut cluster = plan(&url).with_points().start();
    seal_a_value(&mut cluster);
    let (suspend, resume) = (|c: &mut Cluster| steer(c, "suspend"), |c: &mut Cluster| steer(c, "resume"));
    comes_straight_back(&mut cluster, &mut hook, "SUSPENDED", suspend, resume);
    let (pause, resume) = (|c: &mut Cluster| c.pause(MIRROR), |c: &mut Cluster| c.resume(MIRROR));
    comes_straight_back(&mut cluster, &mut hook, "DISCONNECTED", pause, resume);
    let (damage, repair) = (|c: &mut Cluster| damage_the_value(c), |c: &mut Cluster| c.release(IN_REPAIR));
    comes_straight_back(&mut cluster, &mut hook, "QUARANTINED", damage, repair);
    cluster.wait_converged();
    cluster.assert_same_content();
}

#[test]
fn a_mirror_that_catches_up_finds_damage_and_stays_quarantined_when_it_is_lost() {
    let (url, mut hook) = Hook::new();
    let mut cluster = plan(&url).with_points().linked().start();
    seal_a_value(&mut cluster);
    hook.forget();
    cluster.link().rate(Way::ToWest, Some(SLOW));
    write_seconds(&cluster, 30);
    see_change(&cluster, &mut hook, "n4", "SYNCHRONIZED", "SYNCHRONIZING");
    damage_the_value(&cluster);
    let found = see_change(&cluster, &mut hook, "n4", "SYNCHRONIZING", "QUARANTINED");
    assert!(found["reason"].as_str().unwrap().contains(".seg"), "{found}");

    // It dies in its repair: for as long as it says nothing, nothing else is known of it.
    cluster.kill(MIRROR);
    wait_for("the mirror to be silent for longer than makes one DISCONNECTED", || {
        let found = mirror(&cluster);
        assert_eq!(found["state"], "QUARANTINED", "{found}");
        if seconds(&found["last_contact_seconds"]) > SILENT { Ok(()) } else { Err(found.to_string()) }
    });
    assert_metric(&cluster, "QUARANTINED");
    cluster.link().rate(Way::ToWest, None);
    cluster.release(IN_REPAIR);
    cluster.start_member(MIRROR);
    wait_state(&cluster, "SYNCHRONIZED");
    cluster.wait_converged();
    cluster.assert_same_content();
}

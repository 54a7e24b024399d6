//! A planned switchover that stands at each of its places, on the way there and on the way back, while somebody else than
//! its carrier dies, or the link between the sites is lost. (Whoever carries it dies in `switchover.rs`.)
//!
//! Who died stays dead, and the link stays cut, until the switchover is over: it goes on or goes back without them. The tables
//! say which, for every pair; after each pair one site is the primary site in the eyes of all, the chain hashes agree, and
//! nothing that was acknowledged is missing.
//!
//! Some pairs run with all tests; all of them with `make dr-proof`.

use std::thread::JoinHandle;
use std::time::Instant;

use crate::support::cluster::Cluster;
use crate::support::dr::assert_verified;
use crate::support::http::{Answer, Request};
use crate::support::switchover::{
    ATTEMPTS, Patient, assert_one_primary, assert_written, begin, comes_to, is_over, shown, site_of, sites, wait_over,
    was_silent,
};
use crate::support::wait_for;
use lifeboat::crash_points::{SWITCHOVER, SWITCHOVER_BACK};
use serde_json::Value;

/// What happens to the others while it stands at a place.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    /// The member that is to lead dies, or the one that leads already.
    Target,
    /// A voter of the old site that does not carry it dies.
    OldVoter,
    /// A member of the new site that is to vote, and not to lead, dies.
    NewMate,
    /// The sites lose each other.
    Link,
    /// All members of the new site that are to vote and not to lead die.
    NewMates,
}

use Harm::{Link, NewMate, NewMates, OldVoter, Target};

/// The columns of the tables.
const HARMS: [Harm; 4] = [Target, OldVoter, NewMate, Link];

const DONE: &str = "done";
const BACK: &str = "went-back";

/// How it ends when it was on its way there.
///
/// Without an old voter or a mate both sites still have what they need at every place. Without the target, or the link, it goes
/// back as long as nobody has written down that the lead moved. After that a lost target is replaced by its mates. A lost
/// link leaves the old site the only one with a quorum until the joint change is committed, and the new one from then on.
const THERE: &[(&str, [&str; 4])] = &[
    ("switchover-caught-up", [BACK, DONE, DONE, BACK]),
    ("switchover-adding-voter", [BACK, DONE, DONE, BACK]),
    ("switchover-added", [BACK, DONE, DONE, BACK]),
    ("switchover-voter-seen", [BACK, DONE, DONE, BACK]),
    ("switchover-handing-over", [BACK, DONE, DONE, BACK]),
    ("switchover-held", [BACK, DONE, DONE, BACK]),
    ("switchover-passing-lead", [BACK, DONE, DONE, BACK]),
    ("switchover-leading", [BACK, DONE, DONE, BACK]),
    ("switchover-moving-voters", [DONE, DONE, DONE, BACK]),
    ("switchover-voters-answer", [DONE, DONE, DONE, BACK]),
    ("switchover-joint", [DONE, DONE, DONE, DONE]),
    ("switchover-moved", [DONE, DONE, DONE, DONE]),
    ("switchover-ended", [DONE, DONE, DONE, DONE]),
];

/// How it ends when it was called off: as it was to end, because the old site needs nobody of the new one.
const CALLED_OFF: &[(&str, [&str; 4])] =
    &[("switchover-going-back", [BACK; 4]), ("switchover-removed", [BACK; 4]), ("switchover-ended", [BACK; 4])];

/// Where the carrier stands when it is called off, before it has done anything about it.
const CALLED_OFF_AT: &str = "switchover-added";

/// The way on which it stands at a place.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    There,
    CalledOff,
}

/// One that stands at a place.
struct Standing {
    id: Value,
    target: usize,
    /// Who led when it began.
    led: usize,
    /// The places at which somebody is held.
    held: Vec<&'static str>,
    /// Whoever calls it off, and is not answered yet.
    calls_off: Option<JoinHandle<Answer>>,
}

/// Begins one and lets it come to a place; none when it was over without that. On a machine that gives members no time another
/// may be elected between a step and its place, and finds the step done.
#[track_caller]
fn stand(cluster: &Cluster, to: &str, way: Way, place: &'static str) -> Option<Standing> {
    let mut held = match (way, place) {
        // The order has gone out by then, and nobody could say how far the target is: it waits at its own next place.
        (Way::There, "switchover-passing-lead") => vec![place, "switchover-leading"],
        (Way::There, place) => vec![place],
        (Way::CalledOff, _) => vec![CALLED_OFF_AT],
    };
    held.iter().for_each(|place| cluster.arm_hold(place));
    let led = cluster.wait_leader();
    let begun = begin(cluster, to);
    let id = begun["id"].clone();
    let mut calls_off = None;
    let mut stands = held.iter().all(|place| comes_to(cluster, &id, place, || !cluster.is_not_held(place)));
    if way == Way::CalledOff && stands {
        cluster.arm_hold(place);
        let client = cluster.client(led);
        let call_off = move || Request::new("DELETE", "/v1/dr/switchover").send(client);
        if place == "switchover-going-back" {
            // It is written down then, and its carrier stands before the first thing that it would do about it.
            calls_off = Some(std::thread::spawn(call_off));
            held.push(place);
        } else {
            // Refused when it is too late, as on such a machine.
            stands = call_off().status == 202;
            cluster.release(CALLED_OFF_AT);
            held = vec![place];
        }
        stands = stands && comes_to(cluster, &id, place, || !cluster.is_not_held(place));
    }
    if !stands {
        held.iter().for_each(|place| cluster.release(place));
        return None;
    }
    let target = (0..cluster.len()).find(|&n| begun["target"] == cluster.member(n).name).unwrap();
    Some(Standing { id, target, led, held, calls_off })
}

/// The members that a harm kills.
fn victims(cluster: &Cluster, harm: Harm, from: &str, standing: &Standing) -> Vec<usize> {
    let all = 0..cluster.len();
    let old = |&n: &usize| site_of(cluster, n) == from && n != standing.led;
    let mates = |&n: &usize| site_of(cluster, n) != from && n != standing.target;
    match harm {
        Target => vec![standing.target],
        OldVoter => all.filter(old).take(1).collect(),
        NewMate => all.filter(mates).take(1).collect(),
        NewMates => all.filter(mates).collect(),
        Link => Vec::new(),
    }
}

/// Lets one be harmed at a place, in a cluster whose voters stand in `site`, and looks how it ends. Gives the primary site of
/// afterwards.
#[track_caller]
fn harm_at(cluster: &mut Cluster, site: &'static str, way: Way, place: &'static str, harm: Harm) -> &'static str {
    let mut site = site;
    for _ in 0..ATTEMPTS {
        if attempt(cluster, &mut site, way, place, harm) {
            return site;
        }
        println!("{way:?} {place} {harm:?}: somebody got no time to take part in it; again");
    }
    panic!("{way:?} {place} {harm:?} was tried {ATTEMPTS} times");
}

/// False when the harm did not come to it at the place, or it was lost to the silence of somebody else.
#[track_caller]
fn attempt(cluster: &mut Cluster, site: &mut &'static str, way: Way, place: &'static str, harm: Harm) -> bool {
    let to = if *site == "east" { "west" } else { "east" };
    let name = format!("{way:?} {place} {harm:?}");
    let began = Instant::now();
    let revision = cluster.wait_converged();
    let patient = Patient::start(&format!("{name} {revision}").replace(' ', "/"), &cluster.clients());
    let Some(mut standing) = stand(cluster, to, way, place) else {
        let over = wait_for("the switchover to be over", || {
            let shown = shown(cluster)?;
            if is_over(&shown) { Ok(shown) } else { Err(shown.to_string()) }
        });
        if over["state"] == DONE {
            *site = to;
        }
        assert_one_primary(cluster, site);
        assert_written(&patient.finish(), &cluster.assert_same_content());
        return false;
    };
    let dead = victims(cluster, harm, site, &standing);
    match harm {
        Link => cluster.link().cut(),
        _ => dead.iter().for_each(|&member| cluster.kill(member)),
    }
    standing.held.iter().for_each(|place| cluster.release(place));
    if let Some(calls_off) = standing.calls_off.take() {
        calls_off.join().unwrap().expect(202);
    }
    let over = wait_over(cluster, &standing.id);
    match harm {
        Link => cluster.link().heal(),
        _ => dead.iter().for_each(|&member| cluster.start_member(member)),
    }
    if over["state"] == DONE {
        *site = to;
    }
    assert_one_primary(cluster, site);
    let written = patient.finish();
    assert_written(&written, &cluster.assert_same_content());
    println!(
        "{name}: {} after {} s, {:?}; {} writes, the longest {:.1?}; {:.1?} in all",
        over["state"],
        over["seconds"],
        over["back"],
        written.keys.len(),
        written.longest,
        began.elapsed()
    );
    if over["state"] == expected(way, place, harm) {
        return true;
    }
    assert!(was_silent(&over) && harm != Link && !dead.contains(&standing.target), "{name}: {over}");
    false
}

fn expected(way: Way, place: &str, harm: Harm) -> &'static str {
    if harm == NewMates {
        // The lead is there, and the voters cannot be: after a while it is handed back.
        assert_eq!((way, place), (Way::There, "switchover-moving-voters"));
        return BACK;
    }
    let table = if way == Way::There { THERE } else { CALLED_OFF };
    let (_, ends) = table.iter().find(|(named, _)| *named == place).unwrap();
    ends[HARMS.iter().position(|column| *column == harm).unwrap()]
}

/// Goes through pairs, each in the cluster as the one before has left it.
#[track_caller]
fn go_through(pairs: impl IntoIterator<Item = (Way, &'static str, Harm)>) {
    let mut cluster = sites(3, 3);
    let mut site = "east";
    for (way, place, harm) in pairs {
        site = harm_at(&mut cluster, site, way, place, harm);
    }
    assert_verified(&cluster, cluster.wait_leader());
}

/// All places of both ways under one harm.
#[track_caller]
fn everywhere(harm: Harm) {
    let there = SWITCHOVER.iter().map(|place| (Way::There, *place, harm));
    let called_off = SWITCHOVER_BACK.iter().map(|place| (Way::CalledOff, *place, harm));
    go_through(there.chain(called_off));
}

#[test]
fn the_tables_have_every_place() {
    let places = |table: &[(&'static str, [&str; 4])]| table.iter().map(|(place, _)| *place).collect::<Vec<_>>();
    assert_eq!((places(THERE), places(CALLED_OFF)), (SWITCHOVER.to_vec(), SWITCHOVER_BACK.to_vec()));
}

/// The others die, and the link is lost and heals, while it stands at some of its places.
#[test]
fn the_death_of_another_and_the_loss_of_the_link_are_survived_at_each_step() {
    let pairs = [
        ("switchover-caught-up", Target),
        ("switchover-caught-up", Link),
        ("switchover-added", OldVoter),
        ("switchover-added", Target),
        ("switchover-added", Link),
        ("switchover-held", Target),
        ("switchover-held", Link),
        ("switchover-moving-voters", OldVoter),
        ("switchover-moving-voters", Link),
        ("switchover-voters-answer", Link),
        ("switchover-joint", OldVoter),
        ("switchover-joint", Link),
        ("switchover-moved", Link),
    ];
    go_through(pairs.map(|(place, harm)| (Way::There, place, harm)));
}

#[test]
#[ignore = "takes minutes: make dr-proof"]
fn the_death_of_the_target_is_survived_everywhere() {
    everywhere(Target);
}

#[test]
#[ignore = "takes minutes: make dr-proof"]
fn the_death_of_an_old_voter_is_survived_everywhere() {
    everywhere(OldVoter);
}

#[test]
#[ignore = "takes minutes: make dr-proof"]
fn the_death_of_a_new_mate_is_survived_everywhere() {
    everywhere(NewMate);
}

#[test]
#[ignore = "takes minutes: make dr-proof"]
fn the_loss_of_the_link_is_survived_everywhere() {
    everywhere(Link);
}

/// Two die at once, so that the new leader never gets a quorum of its site.
#[test]
#[ignore = "takes minutes: make dr-proof"]
fn a_lead_without_a_quorum_of_its_site_is_handed_back() {
    go_through([(Way::There, "switchover-moving-voters", NewMates)]);
}

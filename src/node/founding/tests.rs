//! Members that found a cluster, in a world where everything goes wrong: messages are lost and late, processes die at any
//! moment and come back, disks are lost, members see only a part of the others.
//!
//! The world is simulated step by step, so thousands of orders take seconds. What a member would keep on its disk
//! survives a crash here, all else does not. Checked in every state: of all clusters that were ever begun by a majority of
//! their first voters with disks that still exist, there is at most one. Checked at the end, when nothing fails any more:
//! all members belong to the same one. And at the end of all worlds: that in many of them as many members without data as
//! are expected met each other, and nobody else, while a cluster lived that they could not reach.

mod loops;

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::protocol::{Held, Own, Proposal, Round, Seen, Standing, Step, accepts, decide, obstacle};
use crate::model::{ClusterId, MemberId, MemberRole, RandomId};
use crate::raft::types::MemberInfo;

/// Orders that are tried unless `LIFEBOAT_TEST_SEED` asks for one.
const ORDERS: u64 = 4_000;
/// Steps in which things fail.
const WILD_STEPS: usize = 400;
/// Rounds of all members after which a world in which nothing fails must be done.
const CALM_ROUNDS: usize = 60;

/// A place where a member lives: an address, and a name.
struct Place {
    own: Own,
    /// Whether it is among the addresses of the name that all look up. A list names all places from the beginning.
    listed: bool,
    running: bool,
    held: Option<Held>,
    cluster: Option<ClusterId>,
    sees_cluster: bool,
    obstacle: Option<String>,
    /// Counts the changes of `held`: answers to questions from before are not used.
    version: u64,
    /// A round that is under way: what was seen, and the version when it began.
    round: Option<(u64, Round)>,
}

impl Place {
    fn new(name: &str, role: MemberRole, expect: usize) -> Place {
        Place {
            own: Own { id: 0, info: info(name, role), expect: Some(expect) },
            listed: true,
            running: false,
            held: None,
            cluster: None,
            sees_cluster: false,
            obstacle: Some("nobody was asked yet".into()),
            version: 0,
            round: None,
        }
    }

    /// What a process forgets when it dies.
    fn stop(&mut self) {
        self.running = false;
        self.round = None;
        self.sees_cluster = false;
        self.obstacle = Some("nobody was asked yet".into());
    }
}

struct World {
    rng: StdRng,
    /// How many messages are lost.
    loss: f64,
    /// Whether enough members without data met to found a cluster while one lived that they did not meet.
    was_tempted: bool,
    places: Vec<Place>,
    /// Which places each can reach.
    links: Vec<Vec<bool>>,
    /// First voters of every cluster that somebody began, and who began it.
    begun: BTreeMap<ClusterId, (BTreeSet<MemberId>, BTreeSet<MemberId>)>,
    disks_lost: usize,
    next_id: u64,
    calm: bool,
}

fn info(name: &str, role: MemberRole) -> MemberInfo {
    let url = format!("http://{name}");
    MemberInfo { name: name.into(), site: "s".into(), role, client_url: url.clone(), peer_url: url }
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let expect = rng.random_range(1..=5usize);
        // Of a list the configuration allows fewer than 2N; a name may have any number of addresses in the end.
        let by_name = rng.random_bool(0.3);
        let listed = rng.random_range(expect..2 * expect);
        let more = if by_name { rng.random_range(0..=expect) } else { 0 };
        let mut places: Vec<Place> = (0..listed + more)
            .map(|at| Place { listed: at < listed, ..Place::new(&format!("n{at}"), MemberRole::Voter, expect) })
            .collect();
        // A mirror now and then, which founds nothing and joins.
        if rng.random_bool(0.3) {
            places.push(Place::new("m", MemberRole::Mirror, expect));
        }
        let loss = [0.0, 0.02, 0.2][rng.random_range(0..3)];
        World::of(rng, places, loss)
    }

    fn of(rng: StdRng, places: Vec<Place>, loss: f64) -> World {
        let links = vec![vec![true; places.len()]; places.len()];
        let (begun, was_tempted) = (BTreeMap::new(), false);
        let mut world = World { rng, loss, was_tempted, places, links, begun, disks_lost: 0, next_id: 0, calm: false };
        for at in 0..world.places.len() {
            world.places[at].own.id = world.fresh_id();
        }
        world
    }

    fn fresh_id(&mut self) -> MemberId {
        self.next_id += 1;
        // Random in front, so that the order of ids is not that of their making; unique by what is behind.
        (u64::from(self.rng.random::<u16>()) << 32) | self.next_id
    }

    fn is_lost(&mut self) -> bool {
        !self.calm && self.rng.random_bool(self.loss)
    }

    fn describes_itself(&self, at: usize) -> Seen {
        let place = &self.places[at];
        let standing = match place.cluster {
            Some(cluster) => Standing::Belongs { cluster },
            None => Standing::Empty { held: place.held.clone(), sees_cluster: place.sees_cluster },
        };
        let Own { id, info, expect } = place.own.clone();
        Seen { id, info, expect, standing }
    }

    /// A member asks all places; the answers may lie around before they are used.
    fn ask_all(&mut self, at: usize) {
        let mut round = Round::default();
        for other in 0..self.places.len() {
            if other == at || !self.places[other].listed {
                continue;
            }
            let reached = self.links[at][other] && self.places[other].running;
            if reached && !self.is_lost() {
                round.seen.push(self.describes_itself(other));
            } else {
                round.silent.push(self.places[other].own.info.name.clone());
            }
        }
        let is_empty =
            |one: &&Seen| matches!(one.standing, Standing::Empty { .. }) && one.info.role == MemberRole::Voter;
        let Own { expect, info, .. } = &self.places[at].own;
        let empty = round.seen.iter().filter(is_empty).count() + usize::from(info.role == MemberRole::Voter);
        let meets_one = round.seen.iter().any(|one| matches!(one.standing, Standing::Belongs { .. }));
        self.was_tempted |= Some(empty) >= *expect && !meets_one && self.living() == 1;
        self.places[at].round = Some((self.places[at].version, round));
    }

    fn hold(&mut self, at: usize, held: Option<Held>) {
        self.places[at].held = held;
        self.places[at].version += 1;
    }

    fn use_answers(&mut self, at: usize) {
        let Some((version, round)) = self.places[at].round.take() else { return };
        let place = &mut self.places[at];
        if place.cluster.is_some() {
            return;
        }
        place.sees_cluster = round.seen.iter().any(|one| matches!(one.standing, Standing::Belongs { .. }));
        place.obstacle = obstacle(&round);
        if version != place.version {
            return;
        }
        match decide(&place.own, place.held.as_ref(), &round) {
            Step::Wait(_) => {}
            Step::Join => self.join(at, &round.seen),
            Step::Propose(members) => {
                let founder = self.places[at].own.id;
                let ids = (RandomId(self.rng.random()), RandomId(self.rng.random()));
                let proposal = Proposal::new(ids, founder, &members);
                self.hold(at, Some(Held { proposal, frozen: false }));
            }
            Step::Ask(ids) => {
                let proposal = self.places[at].held.clone().unwrap().proposal;
                for other in 0..self.places.len() {
                    let reached = self.links[at][other] && self.places[other].running;
                    if reached && ids.contains(&self.places[other].own.id) && !self.is_lost() {
                        self.asked_to_hold(other, &proposal);
                    }
                }
            }
            Step::GiveUp(_) => self.hold(at, None),
            Step::Freeze => {
                let held = self.places[at].held.clone().unwrap();
                self.hold(at, Some(Held { frozen: true, ..held }));
            }
            Step::Begin => self.begin(at),
        }
    }

    fn asked_to_hold(&mut self, at: usize, proposal: &Proposal) {
        let place = &self.places[at];
        if place.cluster.is_none()
            && accepts(&place.own, place.held.as_ref(), place.obstacle.as_deref(), proposal).is_ok()
            && place.held.as_ref().is_none_or(|held| held.proposal != *proposal)
        {
            self.hold(at, Some(Held { proposal: proposal.clone(), frozen: false }));
        }
    }

    fn begin(&mut self, at: usize) {
        let proposal = self.places[at].held.clone().unwrap().proposal;
        let id = self.places[at].own.id;
        let voters = proposal.members().into_keys().collect();
        self.begun.entry(proposal.cluster).or_insert_with(|| (voters, BTreeSet::new())).1.insert(id);
        self.places[at].cluster = Some(proposal.cluster);
        self.check();
    }

    /// A cluster takes somebody in when a majority of its voters runs in it.
    fn join(&mut self, at: usize, seen: &[Seen]) {
        let there = seen.iter().find_map(|one| match one.standing {
            Standing::Belongs { cluster } => Some(cluster),
            Standing::Empty { .. } => None,
        });
        let cluster = there.unwrap();
        let (voters, _) = &self.begun[&cluster];
        let works = |place: &&Place| place.running && place.cluster == Some(cluster) && voters.contains(&place.own.id);
        if 2 * self.places.iter().filter(works).count() > voters.len() && !self.is_lost() {
            self.places[at].cluster = Some(cluster);
        }
    }

    /// How many clusters have a majority of their first voters.
    fn living(&self) -> usize {
        let on_disk: BTreeSet<MemberId> = self.places.iter().map(|place| place.own.id).collect();
        let lives = |(voters, began): &&(BTreeSet<MemberId>, BTreeSet<MemberId>)| {
            2 * began.intersection(&on_disk).count() > voters.len()
        };
        self.begun.values().filter(lives).count()
    }

    fn check(&self) {
        assert!(self.living() <= 1, "two clusters: {:?}", self.begun);
        assert!(
            self.disks_lost > 0 || self.begun.len() <= 1,
            "two were begun although no disk was lost: {:?}",
            self.begun
        );
    }

    fn wild_step(&mut self, disks_to_lose: usize) {
        let may_lose_disks = self.disks_lost < disks_to_lose;
        let at = self.rng.random_range(0..self.places.len());
        match self.rng.random_range(0..100) {
            0..6 => self.places[at].stop(),
            6..24 if self.places[at].listed => self.places[at].running = true,
            24 => {
                for link in &mut self.links[at] {
                    *link = self.rng.random_bool(0.6);
                }
            }
            25 => self.fall_apart(),
            26..28 => self.links.iter_mut().for_each(|links| links.fill(true)),
            28 if may_lose_disks && self.places[at].cluster.is_none() => self.lose_disk(at),
            29 if self.rng.random_bool(0.05) => self.places[at].listed = true,
            29..32 if may_lose_disks && self.may_lose_a_founder(at) => self.lose_disk(at),
            _ if !self.places[at].running => {}
            32..66 => self.ask_all(at),
            _ => self.use_answers(at),
        }
    }

    /// The network has two parts, of which one may be that of all that belong to a cluster.
    fn fall_apart(&mut self) {
        let by_cluster = self.rng.random_bool(0.5);
        let rng = &mut self.rng;
        let side: Vec<bool> = self
            .places
            .iter()
            .map(|place| if by_cluster { place.cluster.is_some() } else { rng.random_bool(0.5) })
            .collect();
        for (at, links) in self.links.iter_mut().enumerate() {
            for (other, link) in links.iter_mut().enumerate() {
                *link = side[at] == side[other];
            }
        }
    }

    /// A member that has begun may lose its disk as long as its cluster keeps a majority, or has none yet.
    fn may_lose_a_founder(&self, at: usize) -> bool {
        let place = &self.places[at];
        let Some((voters, began)) = place.cluster.and_then(|cluster| self.begun.get(&cluster)) else { return false };
        let on_disk: BTreeSet<MemberId> = self.places.iter().map(|place| place.own.id).collect();
        let alive = began.intersection(&on_disk).count();
        let founded = 2 * alive > voters.len();
        voters.contains(&place.own.id) && (!founded || 2 * (alive - 1) > voters.len())
    }

    fn lose_disk(&mut self, at: usize) {
        self.disks_lost += 1;
        let id = self.fresh_id();
        let place = &mut self.places[at];
        place.own.id = id;
        place.stop();
        place.cluster = None;
        place.held = None;
        place.version += 1;
    }

    /// Nothing fails any more.
    fn calm_down(&mut self, all_come_up: bool) {
        self.calm = true;
        for at in 0..self.places.len() {
            self.places[at].running = true;
            self.places[at].listed = true;
            self.links[at].fill(true);
        }
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        for _ in 0..CALM_ROUNDS {
            order.shuffle(&mut self.rng);
            for at in order.clone() {
                self.ask_all(at);
                self.use_answers(at);
            }
        }
        let clusters: BTreeSet<Option<ClusterId>> = self.places.iter().map(|place| place.cluster).collect();
        let told: Vec<String> = (0..self.places.len())
            .map(|at| {
                self.ask_all(at);
                let round = self.places[at].round.take().unwrap().1;
                let place = &self.places[at];
                let step = decide(&place.own, place.held.as_ref(), &round);
                format!("{} {:?} {:?}: {step:?}", place.own.info.name, place.cluster, place.held)
            })
            .collect();
        assert!(!all_come_up || (clusters.len() == 1 && !clusters.contains(&None)), "not all came up: {told:#?}");
        self.check();
    }
}

/// How many disks a world may lose.
fn disks_to_lose(seed: u64, expect: usize) -> usize {
    match seed % 3 {
        // There not even one cluster may be begun in vain.
        0 => 0,
        // What is agreed keeps a majority: all come up in the end.
        1 => (expect - 1) / 2,
        // A cluster that lost the majority of its disks before anybody used it may wait for ever; there are never two.
        _ => usize::MAX,
    }
}

/// Says whether the world was one of those that tempt.
fn live(seed: u64) -> bool {
    let mut world = World::new(seed);
    let expect = world.places[0].own.expect.unwrap();
    let disks_to_lose = disks_to_lose(seed, expect);
    for _ in 0..WILD_STEPS {
        world.wild_step(disks_to_lose);
        world.check();
    }
    // Of so many that nobody may choose among them no cluster comes, unless it was founded when there were fewer.
    let too_many = world.places.iter().filter(|place| place.own.info.role == MemberRole::Voter).count() >= 2 * expect;
    let founded = world.living() == 1;
    world.calm_down(disks_to_lose < usize::MAX && (!too_many || founded));
    world.was_tempted
}

#[test]
fn in_every_order_one_cluster_is_founded_and_all_come_up() {
    if let Ok(seed) = std::env::var("LIFEBOAT_TEST_SEED") {
        live(seed.trim().parse().unwrap());
        return;
    }
    let base = rand::random::<u32>();
    let mut tempted = 0;
    for order in 0..ORDERS {
        let seed = (u64::from(base) << 16) + order;
        let lived = std::panic::catch_unwind(|| live(seed));
        assert!(lived.is_ok(), "repeat it with LIFEBOAT_TEST_SEED={seed}");
        tempted += u64::from(lived.unwrap_or_default());
    }
    println!("{tempted} of {ORDERS} worlds had enough members without data beside a cluster that they did not meet");
    assert!(tempted > ORDERS / 50, "only {tempted} worlds could have come to a second cluster");
}

/// Those who run ask and use the answers, again and again.
fn settle(world: &mut World) {
    for _ in 0..CALM_ROUNDS {
        for at in 0..world.places.len() {
            if world.places[at].running {
                world.ask_all(at);
                world.use_answers(at);
            }
        }
        world.check();
    }
}

fn quiet_world(listed: usize, later: usize) -> World {
    let places = (0..listed + later)
        .map(|at| Place { listed: at < listed, ..Place::new(&format!("n{at}"), MemberRole::Voter, 3) });
    World::of(StdRng::seed_from_u64(1), places.collect(), 0.0)
}

/// Three found a cluster; then these come and meet each other, but not those. Then they do.
fn nobody_founds_beside(mut world: World, newcomers: [usize; 3]) {
    for at in 0..3 {
        world.places[at].running = true;
    }
    // The places of the others are not there yet, or nothing could be founded.
    let listed: Vec<bool> = world.places.iter().map(|place| place.listed).collect();
    for at in 3..world.places.len() {
        world.places[at].listed = false;
    }
    settle(&mut world);
    assert_eq!(world.living(), 1);
    for (at, listed) in listed.into_iter().enumerate() {
        world.places[at].listed = listed;
    }
    for at in newcomers {
        if world.places[at].cluster.is_some() {
            world.lose_disk(at);
        }
        world.places[at].listed = true;
        world.places[at].running = true;
    }
    for (at, links) in world.links.iter_mut().enumerate() {
        for (other, link) in links.iter_mut().enumerate() {
            *link = newcomers.contains(&at) == newcomers.contains(&other);
        }
    }
    settle(&mut world);
    assert!(world.was_tempted);
    assert_eq!(world.begun.len(), 1, "{:?}", world.begun);
    world.calm_down(true);
}

#[test]
fn six_addresses_of_a_name_are_not_enough_for_a_second_cluster() {
    nobody_founds_beside(quiet_world(3, 3), [3, 4, 5]);
}

#[test]
fn a_lost_disk_and_two_newcomers_found_no_second_cluster_beside_two_that_do_not_answer() {
    nobody_founds_beside(quiet_world(5, 0), [0, 3, 4]);
}

fn own(id: MemberId, expect: usize) -> Own {
    Own { id, info: info(&format!("n{id}"), MemberRole::Voter), expect: Some(expect) }
}

fn empty(id: MemberId, expect: usize, held: Option<Held>) -> Seen {
    let Own { id, info, expect } = own(id, expect);
    Seen { id, info, expect, standing: Standing::Empty { held, sees_cluster: false } }
}

fn belongs(id: MemberId, cluster: u8) -> Seen {
    Seen { standing: Standing::Belongs { cluster: RandomId([cluster; 16]) }, ..empty(id, 3, None) }
}

fn held(cluster: u8, founder: MemberId, members: &[MemberId]) -> Held {
    let members = members.iter().map(|id| (*id, own(*id, 3).info)).collect();
    let ids = (RandomId([cluster; 16]), RandomId([cluster; 16]));
    Held { proposal: Proposal::new(ids, founder, &members), frozen: false }
}

/// What a member does after all places have answered.
fn after(own: &Own, held: Option<&Held>, seen: &[Seen]) -> Step {
    decide(own, held, &Round { seen: seen.to_vec(), silent: vec![] })
}

#[test]
fn nothing_is_founded_before_all_are_there_nor_beside_a_cluster() {
    let two = [empty(2, 3, None)];
    assert!(matches!(after(&own(1, 3), None, &two), Step::Wait(why) if why.contains("2 of 3")));
    let three = [empty(2, 3, None), empty(3, 3, None)];
    let silent = Round { seen: three.to_vec(), silent: vec!["http://n4".into()] };
    assert!(
        matches!(decide(&own(1, 3), None, &silent), Step::Wait(why) if why.contains("nobody answers at http://n4"))
    );
    let outsider = [empty(2, 3, None), empty(3, 3, None), empty(4, 3, Some(held(5, 4, &[4, 5, 6])))];
    assert!(matches!(after(&own(1, 3), None, &outsider), Step::Wait(why) if why.contains("n4 holds another proposal")));
    assert!(matches!(after(&own(1, 3), None, &three), Step::Propose(members) if members.len() == 3));
    assert!(matches!(after(&own(4, 3), None, &three), Step::Wait(why) if why.contains("n2 is to found")));
    let cluster = [empty(2, 3, None), empty(3, 3, None), belongs(9, 1)];
    assert_eq!(after(&own(1, 3), None, &cluster), Step::Join);
    assert_eq!(after(&own(1, 3), Some(&held(5, 1, &[1, 2, 3])), &cluster), Step::Join);
    let two_clusters = [belongs(8, 2), belongs(9, 1)];
    assert!(matches!(after(&own(1, 3), None, &two_clusters), Step::Wait(_)));
    let mut hint = empty(3, 3, None);
    hint.standing = Standing::Empty { held: None, sees_cluster: true };
    assert!(matches!(after(&own(1, 3), None, &[empty(2, 3, None), hint]), Step::Wait(_)));
    let six: Vec<Seen> = (2..=6).map(|id| empty(id, 3, None)).collect();
    assert!(matches!(after(&own(1, 3), None, &six), Step::Wait(why) if why.contains("two clusters")));
    let other = [empty(2, 3, None), empty(3, 5, None)];
    assert!(matches!(after(&own(1, 3), None, &other), Step::Wait(why) if why.contains("expects 5")));
    let mut namesake = empty(3, 3, None);
    namesake.info.name = "n2".into();
    assert!(matches!(after(&own(1, 3), None, &[empty(2, 3, None), namesake]), Step::Wait(why) if why.contains("n2")));
}

#[test]
fn a_founder_begins_only_when_all_hold_its_proposal() {
    let ours = held(5, 1, &[1, 2, 3]);
    let seen = |a: Option<Held>, b: Option<Held>| [empty(2, 3, a), empty(3, 3, b)];
    let step = |seen: &[Seen]| after(&own(1, 3), Some(&ours), seen);
    assert_eq!(step(&seen(None, None)), Step::Ask([2, 3].into()));
    assert_eq!(step(&seen(Some(ours.clone()), None)), Step::Ask([3].into()));
    assert_eq!(step(&seen(Some(ours.clone()), Some(ours.clone()))), Step::Begin);
    assert!(matches!(step(&[empty(2, 3, Some(ours.clone()))]), Step::Wait(_)), "two of three");
    let agreed = seen(Some(ours.clone()), Some(ours.clone())).to_vec();
    let silent = Round { seen: agreed.clone(), silent: vec!["http://n4".into()] };
    assert!(matches!(decide(&own(1, 3), Some(&ours), &silent), Step::Wait(_)), "a cluster may live there");
    let beside = |founder| [agreed.clone(), vec![empty(4, 3, Some(held(6, founder, &[4, 5, 6])))]].concat();
    assert!(matches!(step(&beside(4)), Step::Wait(_)), "that one may have begun");
    assert!(matches!(step(&beside(0)), Step::GiveUp(_)), "that one comes first");
    assert!(matches!(step(&[empty(2, 3, None), empty(4, 3, None)]), Step::GiveUp(_)), "3 was replaced by 4");
    let frozen = Held { frozen: true, ..ours.clone() };
    assert!(matches!(step(&seen(Some(ours.clone()), Some(frozen))), Step::GiveUp(_)));
    let smaller = held(6, 0, &[0, 2, 3]);
    assert!(matches!(step(&seen(Some(smaller), None)), Step::GiveUp(_)));
}

#[test]
fn a_holder_keeps_its_word_until_the_founder_takes_it_back() {
    let theirs = held(5, 1, &[1, 2, 3]);
    let step = |seen: &[Seen]| after(&own(2, 3), Some(&theirs), seen);
    assert!(matches!(step(&[]), Step::Wait(_)), "the founder is away");
    assert!(matches!(step(&[empty(1, 3, Some(theirs.clone()))]), Step::Wait(_)));
    assert!(matches!(step(&[empty(1, 3, None)]), Step::GiveUp(_)));
    assert!(matches!(step(&[empty(1, 3, Some(held(6, 1, &[1, 2, 4])))]), Step::GiveUp(_)));
    assert_eq!(step(&[belongs(3, 5)]), Step::Begin, "any member that has begun will do");

    // The founder's name answers under another id.
    let mut reborn = empty(7, 3, None);
    reborn.info.name = "n1".into();
    assert_eq!(step(&[reborn.clone(), empty(3, 3, Some(theirs.clone()))]), Step::Freeze);
    let frozen = Held { frozen: true, ..theirs.clone() };
    let step = |seen: &[Seen]| after(&own(2, 3), Some(&frozen), seen);
    assert!(matches!(step(std::slice::from_ref(&reborn)), Step::Wait(_)), "3 may have begun");
    assert!(matches!(step(&[reborn.clone(), empty(3, 3, Some(theirs.clone()))]), Step::Wait(_)), "3 may yet begin");
    assert!(matches!(step(&[reborn.clone(), empty(3, 3, Some(frozen.clone()))]), Step::GiveUp(_)));
    assert!(matches!(step(&[reborn.clone(), empty(3, 3, None)]), Step::GiveUp(_)));
    assert_eq!(step(&[reborn, belongs(3, 5)]), Step::Begin);
}

#[test]
fn only_a_proposal_that_fits_is_held() {
    let proposal = |founder, members: &[MemberId]| held(5, founder, members).proposal;
    let accept = |held: Option<&Held>, obstacle: bool, proposal: &Proposal| {
        accepts(&own(2, 3), held, obstacle.then_some("a place is silent"), proposal).is_ok()
    };
    assert!(accept(None, false, &proposal(1, &[1, 2, 3])));
    assert!(!accept(None, true, &proposal(1, &[1, 2, 3])), "maybe beside a cluster");
    assert!(!accept(None, false, &proposal(1, &[1, 3, 4])), "without this member");
    assert!(!accept(None, false, &proposal(1, &[1, 2])), "of another size");
    assert!(!accept(None, false, &proposal(9, &[1, 2, 3])), "of a founder outside");
    let same = held(5, 1, &[1, 2, 3]);
    assert!(accept(Some(&same), false, &same.proposal));
    assert!(!accept(Some(&Held { frozen: true, ..same.clone() }), false, &same.proposal));
    assert!(!accept(Some(&held(6, 3, &[2, 3, 4])), false, &same.proposal), "it keeps its word to 3");
    assert!(accept(Some(&held(6, 2, &[2, 3, 4])), false, &same.proposal), "its own it may take back");
    assert!(!accept(Some(&held(6, 2, &[2, 3, 4])), false, &proposal(3, &[2, 3, 4])), "not for one that comes later");
}

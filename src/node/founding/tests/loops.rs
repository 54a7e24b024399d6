//! The whole way of members without data: the loop, the lobby and `member.json`, in this process, over a network that
//! loses and delays and on disks that lose what was not synced. Hundreds of random orders with kills, restarts and lost
//! disks; there are never two clusters that have a majority of their first voters, and in the end all belong to one.
//!
//! The seed of an order sets what happens and not when: messages and timers run in real time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::info;
use crate::config::Discovery;
use crate::files::Disk;
use crate::files::sim::SimDisk;
use crate::model::{ClusterId, MemberId, MemberRole};
use crate::node::founding::found_or_join;
use crate::node::founding::lobby::Lobby;
use crate::node::founding::protocol::Own;
use crate::node::identity::{Home, MemberFile};
use crate::node::join::JoinAnswer;
use crate::node::{PeerRequest, peer_path};
use crate::raft::peer_http::AskStranger;

const ORDERS: u64 = 300;
/// Orders that live at the same time: they mostly wait.
const AT_ONCE: u64 = 10;
const STEPS: usize = 40;
const BETWEEN_ROUNDS: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(60);
const DIR: &str = "/member";

/// A process, when it runs.
struct Process {
    lobby: Lobby,
    task: tokio::task::JoinHandle<()>,
}

/// A place where a member lives.
struct Place {
    role: MemberRole,
    disk: SimDisk,
    process: Option<Process>,
}

struct World {
    expect: usize,
    places: Vec<Place>,
    rng: StdRng,
    /// Nothing fails any more.
    calm: bool,
    /// Which places each can reach, when not all.
    parts: Option<Vec<bool>>,
    /// First voters of every cluster that somebody began.
    voters: BTreeMap<ClusterId, BTreeSet<MemberId>>,
    disks_lost: usize,
}

/// The network as one member sees it.
#[derive(Clone)]
struct Net {
    world: Arc<Mutex<World>>,
    at: usize,
}

fn name(at: usize) -> String {
    format!("n{at}")
}

impl AskStranger for Net {
    async fn post_json<A: DeserializeOwned>(
        &self,
        url: &str,
        message: &(impl Serialize + Sync),
        _timeout: Duration,
    ) -> Result<A, String> {
        let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
        let to: usize = host.trim_start_matches('n').split(':').next().unwrap().parse().unwrap();
        let body = Bytes::from(serde_json::to_vec(message).unwrap());
        let (there, lost, delay) = {
            let mut world = self.world.lock();
            let calm = world.calm;
            let lost = !calm && world.rng.random_bool(0.05);
            let delay = if calm { 0 } else { world.rng.random_range(0..1500) };
            (world.parts.as_ref().is_none_or(|parts| parts[to] == parts[self.at]), lost, delay)
        };
        tokio::time::sleep(Duration::from_micros(delay)).await;
        let Some(lobby) = self.world.lock().places[to].process.as_ref().map(|process| process.lobby.clone()) else {
            return Err("nobody listens".into());
        };
        if !there {
            return Err("no way there".into());
        }
        let path = format!("/{path}");
        let answer = if path == peer_path::JOIN {
            serde_json::to_vec(&self.world.lock().asked_to_join(to)).unwrap().into()
        } else {
            let body = Box::pin(stream::iter([Ok(body)]));
            let reply = lobby.answer(PeerRequest { path, headers: HeaderMap::new(), body }).await;
            if reply.status != StatusCode::OK {
                return Err(reply.status.to_string());
            }
            reply.body
        };
        // Also what was done may get no answer.
        if lost {
            return Err("the answer was lost".into());
        }
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
    }
}

impl World {
    fn file(&self, at: usize) -> Option<MemberFile> {
        let disk = &self.places[at].disk;
        disk.content(&Path::new(DIR).join("member.json")).ok().map(|content| serde_json::from_slice(&content).unwrap())
    }

    /// A cluster takes somebody in when a majority of its voters runs.
    fn asked_to_join(&self, to: usize) -> JoinAnswer {
        let later = || JoinAnswer::Later { detail: "no quorum".into() };
        let Some(cluster) = self.file(to).and_then(|file| file.cluster) else { return later() };
        let Some(voters) = self.voters.get(&cluster.id) else { return later() };
        let works = |at: &usize| {
            let file = self.file(*at);
            self.places[*at].process.is_some()
                && file.is_some_and(|file| {
                    file.cluster.is_some_and(|one| one.id == cluster.id) && voters.contains(&file.member_id())
                })
        };
        match 2 * (0..self.places.len()).filter(works).count() > voters.len() {
            true => JoinAnswer::Joined { cluster: cluster.id, timeline: cluster.timeline },
            false => later(),
        }
    }

    /// Learns what has begun, and fails when two clusters live.
    fn check(&mut self) {
        let mut began: BTreeMap<ClusterId, usize> = BTreeMap::new();
        for at in 0..self.places.len() {
            let Some(file) = self.file(at) else { continue };
            let Some(cluster) = file.cluster.filter(|cluster| cluster.founder) else { continue };
            let held = file.held.as_ref().expect("a founder keeps what it has begun");
            self.voters.insert(cluster.id, held.proposal.members().into_keys().collect());
            *began.entry(cluster.id).or_default() += 1;
        }
        let living = began.iter().filter(|(id, count)| 2 * **count > self.voters[id].len()).count();
        assert!(living <= 1, "two clusters: {:?}", self.voters);
        assert!(self.disks_lost > 0 || self.voters.len() <= 1, "two were begun without a lost disk: {:?}", self.voters);
    }

    /// Whether this member may lose its disk so that what was agreed keeps a majority.
    fn may_lose_disk(&self) -> bool {
        self.disks_lost < (self.expect - 1) / 2
    }

    fn kill(&mut self, at: usize, seed: u64) {
        if let Some(process) = self.places[at].process.take() {
            process.task.abort();
        }
        let disk = &mut self.places[at].disk;
        // The machine goes down with it, or the process alone.
        *disk = if seed.is_multiple_of(2) { disk.power_cut(seed) } else { disk.process_kill() };
    }
}

fn start(world: &Arc<Mutex<World>>, at: usize) {
    let mut locked = world.lock();
    let (disk, expect, count) = (locked.places[at].disk.clone(), locked.expect, locked.places.len());
    let disk: Arc<dyn Disk> = Arc::new(disk);
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let file = MemberFile::open(&*disk, Path::new(DIR), &name(at)).unwrap();
    let belongs = file.cluster.is_some();
    let own = Own { id: file.member_id(), info: info(&name(at), locked.places[at].role), expect: Some(expect) };
    let lobby = Lobby::default();
    lobby.enter(own, Home::new(disk, DIR.into(), file));
    let places: Vec<Discovery> = (0..count).map(|at| Discovery::Address { host: name(at), port: 1 }).collect();
    let (net, here) = (Net { world: world.clone(), at }, lobby.clone());
    let task = tokio::spawn(async move {
        if !belongs {
            // An error is one of its disk: it stays silent until it is started again.
            let _ = found_or_join(&net, &here, &places, BETWEEN_ROUNDS).await;
        }
    });
    locked.places[at].process = Some(Process { lobby, task });
}

async fn live(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let expect = rng.random_range(1..=5usize);
    let voters = rng.random_range(expect..2 * expect).min(6);
    let place = |role| Place { role, disk: SimDisk::new(), process: None };
    let mut places: Vec<Place> = (0..voters).map(|_| place(MemberRole::Voter)).collect();
    if rng.random_bool(0.3) {
        places.push(place(MemberRole::Mirror));
    }
    let count = places.len();
    let of_world = StdRng::seed_from_u64(rng.random());
    let (voters, parts) = (BTreeMap::new(), None);
    let world = World { expect, places, rng: of_world, calm: false, parts, voters, disks_lost: 0 };
    let world = Arc::new(Mutex::new(world));
    for _ in 0..STEPS {
        let at = rng.random_range(0..count);
        let runs = world.lock().places[at].process.is_some();
        match rng.random_range(0..20) {
            0..2 => world.lock().kill(at, rng.random()),
            2..11 if !runs => start(&world, at),
            11 => world.lock().parts = Some((0..count).map(|_| rng.random()).collect()),
            12..14 => world.lock().parts = None,
            14 if runs => world.lock().places[at].disk.crash_after(rng.random_range(0..8)),
            15 if world.lock().may_lose_disk() => {
                let mut world = world.lock();
                world.check();
                world.kill(at, 0);
                world.places[at].disk = SimDisk::new();
                world.disks_lost += 1;
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..6000))).await;
        world.lock().check();
    }
    {
        let mut world = world.lock();
        (world.calm, world.parts) = (true, None);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Whoever is down comes up; a disk that fails does so once.
        for at in 0..count {
            let seed = rng.random();
            if world.lock().places[at].disk.has_crashed() {
                world.lock().kill(at, seed);
            }
            let runs = world.lock().places[at].process.is_some();
            if !runs {
                start(&world, at);
            }
        }
        let belong: Vec<Option<ClusterId>> = {
            let mut world = world.lock();
            world.check();
            (0..count).map(|at| world.file(at).and_then(|file| file.cluster).map(|cluster| cluster.id)).collect()
        };
        if belong.iter().all(|one| one.is_some() && *one == belong[0]) {
            break;
        }
        assert!(Instant::now() < deadline, "order {seed}: not all came up, {expect} expected: {belong:?}");
        tokio::time::sleep(BETWEEN_ROUNDS).await;
    }
    for place in &mut world.lock().places {
        if let Some(process) = place.process.take() {
            process.task.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_orders_with_kills_and_lost_disks_come_to_one_cluster_each() {
    let set = std::env::var("LIFEBOAT_TEST_SEED").ok().map(|text| text.trim().parse::<u64>().unwrap());
    let first = set.unwrap_or_else(|| rand::random::<u64>() >> 1);
    println!("LIFEBOAT_TEST_SEED={first}");
    for chunk in 0..ORDERS / AT_ONCE {
        let orders = (0..AT_ONCE).map(|number| tokio::spawn(live(first + chunk * AT_ONCE + number)));
        for ended in join_all(orders).await {
            ended.unwrap();
        }
    }
}

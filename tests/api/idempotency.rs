//! Requests with an `Idempotency-Key` are executed exactly once, whatever happens to the members.
//!
//! Each client counts in keys of its own, by transactions and by plain writes, and now and then asks for something that
//! is refused. It sends every request until it gets a definite answer, to members at random and sometimes to two at the
//! same time. Meanwhile leaders and followers are killed, stopped, paused and deposed, replies are cut on the wire, and
//! members lead that were sent a copy. In the end every counter is what
//! its client counted, every answer to one request is the same, and so is the one to a last repeat of each.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Answer, Connection, Failure, Request};
use crate::support::scrape::Metrics;
use crate::support::{Seed, wait_for};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

const CLIENTS: usize = 6;
/// Decided requests between two faults.
const PROGRESS: u64 = 40;
/// Shorter than the member's own limit, so that one which stands still leaves many requests unknown.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// An answer that says what became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decided {
    status: u16,
    body: String,
    etag: Option<String>,
}

/// A request and what it came to.
struct Record {
    request: Request,
    decided: Decided,
}

/// What one client wrote down.
#[derive(Default)]
struct Notes {
    records: Vec<Record>,
    /// How often its counter was raised, and how often its plain key was written.
    counted: u64,
    written: u64,
    attempts: u64,
    replays: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    decided: AtomicU64,
}

struct Client {
    number: usize,
    members: Vec<SocketAddr>,
    rng: StdRng,
    shared: Arc<Shared>,
    notes: Notes,
}

/// One attempt; none when nothing is known of what came of it. An answer that the contract does not know fails the test.
fn attempt(at: SocketAddr, request: &Request) -> Option<(Decided, bool)> {
    let answer = Connection::open_within(at, ANSWER_TIMEOUT)
        .map_err(Failure::NotSent)
        .and_then(|mut connection| request.try_send_on(&mut connection));
    decided(&answer.ok()?)
}

fn decided(answer: &Answer) -> Option<(Decided, bool)> {
    match answer.status {
        200 | 201 | 412 => {
            let etag = answer.header("etag").map(str::to_string);
            let decided = Decided { status: answer.status, body: answer.text().to_string(), etag };
            Some((decided, answer.header("lifeboat-replayed") == Some("true")))
        }
        503 | 429 => {
            assert_eq!(answer.json()["outcome"], "not-applied", "{answer}");
            None
        }
        504 => {
            assert_eq!(answer.json()["outcome"], "unknown", "{answer}");
            None
        }
        _ => panic!("{answer}"),
    }
}

impl Client {
    fn counter(&self) -> String {
        format!("counter/{}", self.number)
    }

    fn work(mut self) -> Notes {
        for sequence in 0u64.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("client-{}-{sequence}", self.number);
            match self.rng.random_range(0..10) {
                0..5 => self.count(&key),
                5..8 => self.write(&key, sequence),
                _ => self.be_refused(&key),
            }
            self.shared.decided.fetch_add(1, Ordering::Relaxed);
        }
        self.notes
    }

    /// Raises the counter by one, if it is what this client thinks. Nobody else writes it, so it must be.
    fn count(&mut self, key: &str) {
        let (counter, now) = (self.counter(), self.notes.counted);
        let compare = match now {
            0 => json!({"key": counter, "target": "version", "op": "==", "value": 0}),
            _ => json!({"key": counter, "target": "value", "op": "==", "value": now.to_string()}),
        };
        let put = json!({"put": {"key": counter, "value": (now + 1).to_string(), "previous": true}});
        let body = json!({"compare": [compare], "then": [put], "else": [{"get": {"key": counter}}]});
        let request = Request::new("POST", "/v1/txn").header("Idempotency-Key", key).body(body.to_string());
        let decided = self.until_decided(request);
        let reply: Value = serde_json::from_str(&decided.body).unwrap();
        assert_eq!(reply["succeeded"], true, "{key} found another count than {now}: {reply}");
        assert_eq!(reply["results"][0]["put"]["version"], now + 1, "{key}: {reply}");
        self.notes.counted += 1;
    }

    /// Writes a value of its own; the version of the key counts how often that was done.
    fn write(&mut self, key: &str, value: u64) {
        let target = format!("/v1/kv/plain/{}", self.number);
        let request = Request::new("PUT", &target).header("Idempotency-Key", key).body(value.to_string());
        let decided = self.until_decided(request);
        self.notes.written += 1;
        let reply: Value = serde_json::from_str(&decided.body).unwrap();
        assert_eq!(reply["version"], self.notes.written, "{key}: {reply}");
    }

    /// Asks for a key that is not there to be replaced. It is created right afterwards, so that a repeat that were
    /// executed later would replace it.
    fn be_refused(&mut self, key: &str) {
        let target = format!("/v1/kv/refused/{key}");
        let keyed = |method: &str, what: &str| {
            Request::new(method, &target).header("Idempotency-Key", &format!("{key}-{what}"))
        };
        let decided = self.until_decided(keyed("PUT", "refused").header("If-Match", "*").body("must not appear"));
        assert_eq!(decided.status, 412, "{decided:?}");
        let decided = self.until_decided(keyed("PUT", "created").header("If-None-Match", "*").body("created"));
        assert_eq!(decided.status, 201, "{decided:?}");
    }

    /// Sends a request until what became of it is known.
    fn until_decided(&mut self, request: Request) -> Decided {
        let mut answers: Vec<(Decided, bool)> = Vec::new();
        while answers.is_empty() {
            let mut member = || self.members[self.rng.random_range(0..self.members.len())];
            let (first, second) = (member(), member());
            let twice = self.rng.random_range(0..4) == 0;
            let came = std::thread::scope(|scope| {
                let other = twice.then(|| scope.spawn(|| attempt(second, &request)));
                let own = attempt(first, &request);
                [own, other.and_then(|other| other.join().unwrap())]
            });
            self.notes.attempts += 1 + u64::from(twice);
            answers.extend(came.into_iter().flatten());
            if answers.is_empty() {
                std::thread::sleep(PAUSE_AFTER_FAILURE);
            }
        }
        let decided = answers[0].0.clone();
        assert!(answers.iter().all(|(other, _)| *other == decided), "one request, several answers: {answers:?}");
        self.notes.replays += answers.iter().filter(|(_, replayed)| *replayed).count() as u64;
        let executed = answers.iter().filter(|(_, replayed)| !replayed).count();
        assert!(executed <= 1, "executed {executed} times: {answers:?}");
        self.notes.records.push(Record { request, decided: decided.clone() });
        decided
    }
}

/// Clients at work.
struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Notes>>,
}

impl Load {
    fn start(seed: &Seed, members: &[SocketAddr]) -> Load {
        let shared = Arc::new(Shared::default());
        let threads = (0..CLIENTS)
            .map(|number| {
                let (members, shared) = (members.to_vec(), Arc::clone(&shared));
                let client =
                    Client { number, members, rng: seed.rng(1 + number as u64), shared, notes: Notes::default() };
                std::thread::spawn(move || client.work())
            })
            .collect();
        Load { shared, threads }
    }

    fn wait_progress(&self, requests: u64) {
        let start = self.shared.decided.load(Ordering::Relaxed);
        wait_for(&format!("{requests} decided requests"), || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a client has failed");
            match self.shared.decided.load(Ordering::Relaxed) - start {
                count if count >= requests => Ok(()),
                count => Err(format!("only {count}")),
            }
        });
    }

    fn finish(mut self) -> Vec<Notes> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().unwrap()).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Puts clients to work, does harm, and demands that all was done exactly once.
fn exactly_once(test: &'static str, harm: impl FnOnce(&mut Cluster, &Load, &mut StdRng)) {
    let cluster = Plan::new(3, 1).start();
    let members = cluster.clients();
    exactly_once_on(test, cluster, &members, harm);
}

/// The same with a cluster that runs, and addresses at which clients ask its members.
fn exactly_once_on(
    test: &'static str,
    mut cluster: Cluster,
    members: &[SocketAddr],
    harm: impl FnOnce(&mut Cluster, &Load, &mut StdRng),
) {
    let seed = Seed::for_test(test);
    let load = Load::start(&seed, members);
    load.wait_progress(PROGRESS);
    harm(&mut cluster, &load, &mut seed.rng(0));
    load.wait_progress(PROGRESS);
    cluster.wait_joined();
    let all = load.finish();

    let content_lines = cluster.assert_same_content();
    let content: BTreeMap<String, Value> = content_lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|item| (item["key"].as_str().unwrap().to_string(), item))
        .collect();
    for (number, notes) in all.iter().enumerate() {
        let counter = content.get(&format!("counter/{number}"));
        assert_eq!(counter.map_or(&json!(0), |item| &item["version"]), &json!(notes.counted), "counter {number}");
        assert_eq!(counter.map_or("0", |item| item["value"].as_str().unwrap()), notes.counted.to_string());
        let plain = content.get(&format!("plain/{number}"));
        assert_eq!(plain.map_or(&json!(0), |item| &item["version"]), &json!(notes.written), "plain key {number}");
    }
    for (key, item) in content.iter().filter(|(key, _)| key.starts_with("refused/")) {
        assert_eq!((&item["value"], &item["version"]), (&json!("created"), &json!(1)), "{key}");
    }

    // Each once more, at any member: the first answer again, and no key is written. (The cluster makes revisions of its
    // own as time goes by, so it is keys with their revisions that are compared.)
    let mut rng = seed.rng(99);
    let mut connections: Vec<_> = cluster.clients().into_iter().map(|at| Connection::open(at).unwrap()).collect();
    let (mut requests, mut attempts, mut replays) = (0, 0, 0);
    for notes in &all {
        attempts += notes.attempts;
        replays += notes.replays;
        for Record { request, decided: first } in &notes.records {
            let at = rng.random_range(0..connections.len());
            let again = wait_for("the last repeat", || {
                let answer = request.try_send_on(&mut connections[at]).map_err(|failure| failure.to_string())?;
                decided(&answer).ok_or_else(|| answer.to_string())
            });
            assert_eq!(again, (first.clone(), true), "at {}", cluster.member(at).name);
            requests += 1;
        }
    }
    assert!(cluster.assert_same_content() == content_lines, "a repeat wrote a key");
    println!("{test}: {requests} requests, {attempts} attempts with {replays} replays before the last repeat");
    assert!(replays > 5, "hardly anything was answered twice");
    assert!(requests > 2 * PROGRESS, "too few requests to prove anything");
}

#[test]
fn nothing_goes_wrong() {
    exactly_once("nothing_goes_wrong", |_, load, _| load.wait_progress(4 * PROGRESS));
}

#[test]
fn leaders_and_followers_are_killed() {
    exactly_once("leaders_and_followers_are_killed", |cluster, load, rng| {
        for round in 0..4 {
            let leader = cluster.wait_leader();
            let victim = if round % 2 == 0 { leader } else { (leader + rng.random_range(1..3)) % 3 };
            cluster.kill(victim);
            load.wait_progress(PROGRESS);
            cluster.start_member(victim);
            cluster.wait_ready(victim);
        }
        for member in 0..cluster.len() {
            cluster.kill(member);
        }
        for member in 0..cluster.len() {
            cluster.start_member(member);
        }
        cluster.wait_all_ready();
        load.wait_progress(PROGRESS);
    });
}

/// What a leader had in its hands when it stood still may still be done when it goes on, or in its name.
#[test]
fn leaders_stand_still_and_go_on() {
    exactly_once("leaders_stand_still_and_go_on", |cluster, load, _| {
        for _ in 0..3 {
            let leader = cluster.wait_leader();
            cluster.pause(leader);
            cluster.wait_other_leader(leader);
            load.wait_progress(PROGRESS / 2);
            cluster.resume(leader);
            load.wait_progress(PROGRESS / 2);
            cluster.wait_ready(leader);
        }
    });
}

#[test]
fn leadership_moves_and_members_are_restarted() {
    exactly_once("leadership_moves_and_members_are_restarted", |cluster, load, rng| {
        for _ in 0..8 {
            let to = &cluster.member(rng.random_range(0..3)).name;
            let moved = http::post(cluster.client(rng.random_range(0..4)), "/v1/leader", &json!({ "to": to }));
            assert!([200, 409, 503, 504].contains(&moved.status), "{moved}");
            load.wait_progress(PROGRESS / 4);
        }
        for member in 0..cluster.len() {
            assert!(cluster.stop(member).success());
            load.wait_progress(PROGRESS / 4);
            cluster.start_member(member);
            cluster.wait_ready(member);
        }
    });
}

/// Stands in front of a member and cuts one connection in three: behind the whole request, and before the reply or in the
/// middle of it. So the request was done and whoever sent it does not know.
fn cutter(target: SocketAddr, mut rng: StdRng, cuts: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the process of the test.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(member)) = (client, TcpStream::connect(target)) else { continue };
            let passes = if rng.random_range(0..3) == 0 { Some(rng.random_range(0..200)) } else { None };
            let cuts = cuts.clone();
            std::thread::spawn(move || {
                let (mut from_client, mut to_member) = (client.try_clone().unwrap(), member.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_member);
                    let _ = to_member.shutdown(Shutdown::Write);
                });
                let (mut from_member, mut to_client) = (member, client);
                match passes {
                    None => drop(std::io::copy(&mut from_member, &mut to_client)),
                    Some(passes) => {
                        // Something was answered, so the member has done what it could.
                        let mut reply = vec![0; 4096];
                        let count = from_member.read(&mut reply).unwrap_or(0);
                        let _ = to_client.write_all(&reply[..count.min(passes)]);
                        cuts.fetch_add(1, Ordering::Relaxed);
                    }
                }
                let _ = (to_client.shutdown(Shutdown::Both), from_member.shutdown(Shutdown::Both));
            });
        }
    });
    address
}

#[test]
fn replies_are_cut_on_the_wire() {
    let test = "replies_are_cut_on_the_wire";
    let (seed, cuts) = (Seed::for_test(test), Arc::new(AtomicU64::new(0)));
    let cluster = Plan::new(3, 1).start();
    let members: Vec<SocketAddr> = cluster.clients();
    let members: Vec<SocketAddr> =
        (0u64..).zip(members).map(|(number, member)| cutter(member, seed.rng(500 + number), cuts.clone())).collect();
    exactly_once_on(test, cluster, &members, |cluster, load, _| {
        load.wait_progress(4 * PROGRESS);
        let leader = cluster.wait_leader();
        cluster.kill(leader);
        load.wait_progress(PROGRESS);
        cluster.start_member(leader);
        cluster.wait_ready(leader);
        load.wait_progress(PROGRESS);
    });
    let cuts = cuts.load(Ordering::Relaxed);
    println!("{cuts} replies were cut");
    assert!(cuts > PROGRESS, "hardly a reply was cut: {cuts}");
}

fn figure(cluster: &Cluster, name: &str, label: &str) -> f64 {
    cluster.running().into_iter().map(|member| Metrics::of(cluster.client(member)).sum(name, &[label])).sum()
}

/// Who was sent what others remember, and did not see it happen, remembers it like them.
#[test]
fn a_member_that_was_sent_the_outcomes_leads() {
    let cluster =
        Plan::new(3, 0).seals_early().flag("--history-keep-ms", "500ms").flag("--history-keep-revisions", "20").start();
    let members = cluster.clients();
    exactly_once_on("a_member_that_was_sent_the_outcomes_leads", cluster, &members, |cluster, load, _| {
        for (round, kind) in ["kind=\"delta\"", "kind=\"full\""].into_iter().enumerate() {
            let away = cluster.follower();
            let missing_from = cluster.status_now(away)["last_index"].as_u64().unwrap() as f64;
            cluster.kill(away);
            load.wait_progress(PROGRESS);
            let big = "x".repeat(64 << 10);
            wait_for("the log to begin behind what it has", || {
                for number in 0..20 {
                    cluster.put_until_done(cluster.wait_leader(), &format!("big/{number}"), &big);
                }
                let first = Metrics::of(cluster.client(cluster.wait_leader())).sum("lifeboat_wal_first_index", &[]);
                if first > missing_from + 1.0 { Ok(()) } else { Err(format!("it still begins at {first}")) }
            });
            if round == 1 {
                // Its disk is lost too: it is sent everything.
                std::fs::rename(&cluster.member(away).data, cluster.path().join("lost")).unwrap();
                let peer = format!("http://{}", cluster.member((away + 1) % 3).peer);
                let arguments = &mut cluster.member_mut(away).arguments;
                arguments.retain(|argument| argument != "--bootstrap");
                if let Some(at) = arguments.iter().position(|argument| argument == "--join") {
                    arguments.drain(at..at + 2);
                }
                arguments.extend(["--join".into(), peer]);
            }
            let before = figure(cluster, "lifeboat_copies_sent_total", kind);
            cluster.start_member(away);
            cluster.wait_joined();
            Metrics::wait_copies(&cluster.clients(), &[kind], before + 1.0);
            cluster.let_lead(away);
            load.wait_progress(PROGRESS);
        }
    });
}

//! Restarting and upgrading a cluster member by member while clients write and read: no request may fail for a client
//! that tries again as it is told. Real processes, real sockets.
//!
//! The upgrade begins from members that pass for those of the first release (a switch of `lifeboat serve`), in every run of
//! the tests; and from that program itself, which `LIFEBOAT_OLD_PROGRAM` names and `make upgrade-test` builds. What it left
//! on disks is opened here, and its history in `store`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Connection, Failure, Request};
use crate::support::wait_for;

/// A request that needs longer than this, all attempts together, has failed.
const DEADLINE: Duration = Duration::from_secs(15);

/// What the clients did.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    writes: AtomicU64,
    reads: AtomicU64,
}

/// Clients that write keys of their own and read them again, each beginning at another member.
struct Clients {
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<Result<u64, String>>>,
}

impl Clients {
    fn start(members: &[SocketAddr]) -> Clients {
        let tally = Arc::<Tally>::default();
        let threads = (0..members.len())
            .map(|number| {
                let (tally, members) = (tally.clone(), members.to_vec());
                std::thread::spawn(move || work(number, &members, &tally))
            })
            .collect();
        Clients { tally, threads }
    }

    fn wait_progress(&self) {
        let (writes, reads) = (self.tally.writes.load(Ordering::Relaxed), self.tally.reads.load(Ordering::Relaxed));
        wait_for("clients to write and read on", || {
            if self.threads.iter().any(JoinHandle::is_finished) {
                return Ok(());
            }
            let now = (self.tally.writes.load(Ordering::Relaxed), self.tally.reads.load(Ordering::Relaxed));
            if now.0 >= writes + 50 && now.1 >= reads + 50 { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    /// How many keys each client wrote; fails when a request of one failed.
    fn finish(self) -> Vec<u64> {
        self.tally.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join().unwrap());
        ended.collect::<Result<_, _>>().unwrap()
    }
}

fn work(number: usize, members: &[SocketAddr], tally: &Tally) -> Result<u64, String> {
    let mut client = Client { members, at: number, connection: None };
    let mut written = 0;
    while !tally.stop.load(Ordering::Relaxed) {
        let path = format!("/v1/kv/client-{number}/{written}");
        let put = client.ask(&Request::new("PUT", &path).body(written.to_string()))?;
        if put != 201 {
            return Err(format!("PUT {path}: {put}"));
        }
        tally.writes.fetch_add(1, Ordering::Relaxed);
        let get = client.ask(&Request::new("GET", &path))?;
        if get != 200 {
            return Err(format!("GET {path}: {get}"));
        }
        tally.reads.fetch_add(1, Ordering::Relaxed);
        written += 1;
    }
    Ok(written)
}

/// A client that does what the replies say: it tries again, at the next member, what is safe to try again.
struct Client<'m> {
    members: &'m [SocketAddr],
    at: usize,
    connection: Option<Connection>,
}

impl Client<'_> {
    /// The status of the first answer that is not "try again".
    fn ask(&mut self, request: &Request) -> Result<u16, String> {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < DEADLINE {
            let address = self.members[self.at % self.members.len()];
            let connection = match self.connection.take().filter(Connection::is_open) {
                Some(connection) => Ok(connection),
                None => Connection::open(address).map_err(Failure::NotSent),
            };
            let sent = connection.and_then(|mut connection| {
                let answer = request.try_send_on(&mut connection)?;
                Ok((answer, connection))
            });
            match sent {
                Ok((answer, connection)) if answer.status < 400 => {
                    if answer.header("connection") == Some("close") {
                        self.at += 1;
                    } else {
                        self.connection = Some(connection);
                    }
                    return Ok(answer.status);
                }
                Ok((answer, _)) => {
                    last = answer.to_string();
                    if answer.json()["retry"] != "safe" {
                        return Err(last);
                    }
                    self.at += 1;
                    // The replies ask for a second; the next member may well be ready at once.
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(Failure::NotSent(error)) => {
                    last = error.to_string();
                    self.at += 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(failure @ Failure::Unknown(_)) => return Err(format!("{address}: {failure}")),
            }
        }
        Err(format!("no answer for {DEADLINE:?}; the last: {last}"))
    }
}

/// Stops and starts every member, the leader too, one after the other, each time when all are ready.
fn roll(cluster: &mut Cluster, clients: &Clients) {
    for member in 0..cluster.len() {
        clients.wait_progress();
        let status = cluster.stop(member);
        assert!(status.success(), "n{} ended with {status}", member + 1);
        clients.wait_progress();
        cluster.start_member(member);
        cluster.wait_all_ready();
    }
    clients.wait_progress();
}

fn assert_all_there(cluster: &Cluster, written: &[u64]) {
    for (number, count) in written.iter().enumerate() {
        let path = format!("/v1/keys?prefix=client-{number}/&keys_only=true");
        let answer = Request::new("GET", &path).header("Accept", "application/x-ndjson").send(cluster.client(0));
        let lines = answer.expect(200).text().lines().count() as u64;
        assert_eq!(lines, count + 1, "client {number} wrote {count} keys; the last line is the end");
    }
    cluster.assert_same_content();
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let mut cluster = Plan::new(3, 0).steady().start();
    let clients = Clients::start(&cluster.clients());
    roll(&mut cluster, &clients);
    let written = clients.finish();
    assert_all_there(&cluster, &written);
}

/// What members know that pass for those of the first release. See `lifeboat serve`: a switch for these tests.
const PASS_FOR_OLD: [&str; 2] = ["--announce-feature-level", "0"];

/// A member that is started from now on is one of the present program.
fn renew(cluster: &mut Cluster, member: usize) {
    cluster.use_current_program();
    let arguments = &mut cluster.member_mut(member).arguments;
    if let Some(at) = arguments.iter().position(|argument| argument == PASS_FOR_OLD[0]) {
        arguments.drain(at..at + 2);
    }
}

/// Upgrades all members under load, one by one; `again`: and restarts them once more, now that what is new lies in the log.
fn upgrade(mut cluster: Cluster, again: bool) {
    cluster.put_until_done(0, "before", "the upgrade");
    let clients = Clients::start(&cluster.clients());
    for member in 0..cluster.len() {
        clients.wait_progress();
        let status = cluster.stop(member);
        assert!(status.success(), "n{} ended with {status}", member + 1);
        renew(&mut cluster, member);
        cluster.start_member(member);
        cluster.wait_all_ready();
        if member + 1 < cluster.len() {
            // While one member does not know it, nobody may be sent what is new.
            let txn = serde_json::json!({ "then": [{ "put": { "key": "new", "value": "1" } }] });
            http::post(cluster.client(0), "/v1/txn", &txn).expect_problem(503, "feature-not-active");
        }
    }
    wait_for("the feature level to rise", || {
        let txn = serde_json::json!({ "then": [{ "put": { "key": "new", "value": "1" } }] });
        let answer = Request::new("POST", "/v1/txn").body(txn.to_string()).send(cluster.client(1));
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    if again {
        roll(&mut cluster, &clients);
    }
    let written = clients.finish();
    assert_eq!(cluster.get(3, "before").as_deref(), Some("the upgrade"));
    assert_eq!(cluster.get(2, "new").as_deref(), Some("1"));
    assert_all_there(&cluster, &written);
}

#[test]
#[ignore = "needs the program of an earlier release: make upgrade-test"]
fn a_rolling_upgrade_fails_no_request_and_brings_the_new_requests() {
    let old = std::env::var("LIFEBOAT_OLD_PROGRAM").expect("LIFEBOAT_OLD_PROGRAM names the program to begin from");
    upgrade(Plan::new(3, 1).steady().program(old).start(), true);
}

/// A survey by an upgraded mirror: members of the old program live and cannot be asked, so nobody takes their site for lost;
/// alone, when it elects nobody, one is named with what to do about it before anything is forced.
#[test]
#[ignore = "needs the program of an earlier release: make upgrade-test"]
fn a_survey_takes_members_of_the_old_program_for_alive() {
    let old = std::env::var("LIFEBOAT_OLD_PROGRAM").expect("LIFEBOAT_OLD_PROGRAM names the program to begin from");
    let mut cluster = Plan::new(3, 1).program(old).start();
    cluster.put_until_done(0, "k", "1");
    cluster.wait_converged();
    assert!(cluster.stop(3).success());
    renew(&mut cluster, 3);
    cluster.start_member(3);
    cluster.wait_ready(3);
    let survey = |cluster: &Cluster| http::get(cluster.client(3), "/v1/dr/survey").expect(200).json();
    let found = survey(&cluster);
    assert_eq!(found["primary"], "a majority of the voters answers, and can elect a leader", "{found}");
    let force = serde_json::json!({ "accept_data_loss": true });
    http::post(cluster.client(3), "/v1/dr/force", &force).expect_problem(409, "primary-answers");
    cluster.kill(0);
    cluster.kill(1);
    wait_for("the survey to see that two are gone", || {
        let found = survey(&cluster);
        let third = found["members"].as_array().unwrap().iter().find(|member| member["name"] == "n3").unwrap();
        let named = third["reason"].as_str().is_some_and(|why| why.contains("it runs an earlier program"));
        if found["primary"].is_null() && named { Ok(()) } else { Err(found.to_string()) }
    });
}

#[test]
fn members_of_two_feature_levels_roll_to_the_newer_one_and_fail_no_request() {
    upgrade(Plan::new(3, 1).steady().flag(PASS_FOR_OLD[0], PASS_FOR_OLD[1]).start(), false);
}

#[test]
fn a_member_of_an_older_level_stops_at_what_it_does_not_know_and_goes_on_when_it_does() {
    let mut cluster = Plan::new(3, 0).start();
    let txn = serde_json::json!({ "then": [{ "put": { "key": "new", "value": "1" } }] });
    http::post(cluster.client(0), "/v1/txn", &txn).expect(200);
    let member = cluster.follower();
    cluster.stop(member);
    cluster.member_mut(member).arguments.extend(PASS_FOR_OLD.map(String::from));
    // What it has applied it has; the next one it does not know.
    http::post(cluster.client((member + 1) % 3), "/v1/txn", &txn).expect(200);
    cluster.start_member(member);
    let status = cluster.wait_exit(member);
    assert_eq!(status.code(), Some(1), "a program that is too old fails");
    let log = cluster.member(member).log_text();
    assert!(log.contains("unknown kind of command"), "{log}");
    renew(&mut cluster, member);
    cluster.start_member(member);
    cluster.wait_all_ready();
    cluster.assert_same_content();
}

/// `tests/fixtures/data-0.1.0` is the data directory of a member that the first program ran alone, and that was killed: a
/// wal of two segments, `member.json`, a sealed segment, and writes that only the wal has. It is never written again.
#[test]
fn the_data_of_the_first_release_open_with_everything_that_was_acknowledged() {
    let mut cluster = Plan::new(1, 0).prepare();
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data-0.1.0");
    copy_dir(&fixture, &cluster.member(0).data);
    cluster.member_mut(0).arguments.retain(|argument| argument != "--bootstrap");
    cluster.start_member(0);
    cluster.wait_all_ready();
    for number in 0..40 {
        let expected = format!("value {number} ").repeat(60);
        assert_eq!(cluster.get(0, &format!("key/{number:02}")), Some(expected));
    }
    assert_eq!(cluster.get(0, "deleted"), None);
    // And it goes on, with what is new.
    let txn = serde_json::json!({ "then": [{ "put": { "key": "new", "value": "1" } }] });
    wait_for("the feature level to rise", || {
        let answer = Request::new("POST", "/v1/txn").body(txn.to_string()).send(cluster.client(0));
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    cluster.kill(0);
    cluster.start_member(0);
    cluster.wait_all_ready();
    assert_eq!(cluster.get(0, "new").as_deref(), Some("1"));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
#[ignore = "needs the program of an earlier release: make upgrade-test"]
fn members_of_other_sites_are_sent_what_they_understand() {
    let old = std::env::var("LIFEBOAT_OLD_PROGRAM").expect("LIFEBOAT_OLD_PROGRAM names the program to begin from");
    // An old mirror of a new leader is sent plain bytes, by log and by copy; a new one compressed ones.
    let plan = Plan::new(1, 1).program(old).flag("--wal-segment-bytes", "256KiB").flag("--wal-keep-bytes", "1MiB");
    let mut cluster = plan.linked().start();
    let old_mirror = 1;
    cluster.stop(0);
    cluster.use_current_program();
    cluster.start_member(0);
    cluster.wait_all_ready();
    let new_mirror = cluster.add_member("mirror", "west");
    cluster.start_member(new_mirror);
    cluster.wait_joined();
    let ratio = |cluster: &Cluster, member: usize| {
        let metrics = support::scrape::Metrics::of(cluster.client(0));
        let label = format!("member=\"{}\"", cluster.member(member).name);
        let bytes = |what: &str| metrics.sum(&format!("lifeboat_link_{what}_bytes_total"), &[&label]);
        bytes("sent") / bytes("payload")
    };
    let write = |cluster: &Cluster, round: usize| {
        for number in 0..60 {
            let value = format!("{round} the same again and again ").repeat(2000);
            cluster.put_until_done(0, &format!("k{number}"), &value);
        }
    };
    write(&cluster, 1);
    cluster.assert_same_content();
    assert_eq!(ratio(&cluster, old_mirror), 1.0);
    assert!(ratio(&cluster, new_mirror) < 0.5);
    cluster.pause(old_mirror);
    let stands_at = cluster.status_now(0)["applied_index"].as_u64().unwrap();
    write(&cluster, 2);
    wait_for("the log that the old mirror lacks to be gone", || {
        let first = support::scrape::Metrics::of(cluster.client(0)).sum("lifeboat_wal_first_index", &[]);
        if first > stands_at as f64 + 1.0 { Ok(()) } else { Err(format!("it begins at {first}")) }
    });
    cluster.resume(old_mirror);
    cluster.assert_same_content();
    support::scrape::Metrics::wait_copies(&[cluster.client(0)], &[], 1.0);
    assert_eq!(ratio(&cluster, old_mirror), 1.0);
}

//! Members that come, go and come back: joining in any order, catching up by snapshot, restarts, draining, and the
//! refusal of what belongs to another cluster. Real processes, real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support;
use crate::support::address::Addresses;
use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Connection, Failure, Request};
use crate::support::{wait_for, wait_within};

/// So little of the log is kept that a member which misses [`BEYOND_THE_LOG`] cannot be served from it.
fn short_log(plan: Plan) -> Plan {
    plan.seals_early()
}

/// Values of 64 KiB that together are several times what [`short_log`] keeps.
const BEYOND_THE_LOG: usize = 200;

fn write_beyond_the_log(cluster: &Cluster, at: usize, round: usize) {
    let value = "0123456789abcdef".repeat(4096);
    for number in 0..BEYOND_THE_LOG {
        // Fewer keys than writes, so that the copy holds older versions too.
        let key = format!("bulk/{:03}", number % 50);
        cluster.put_until_done(at, &key, &format!("{round} {number} {value}"));
    }
}

/// Waits until the leader's log no longer begins where the missing member would have to go on.
fn wait_log_gone(cluster: &Cluster, leader: usize, missing_from: u64) {
    wait_for("the leader to drop its old log", || {
        let metrics = support::scrape::Metrics::of(cluster.client(leader));
        let first = metrics.sum("lifeboat_wal_first_index", &[]) as u64;
        if first > missing_from + 1 { Ok(()) } else { Err(format!("it still begins at {first}")) }
    });
}

#[test]
fn outgoing_connections_do_not_use_the_addresses_of_members() {
    let addresses = Addresses::reserve();
    let target = addresses.client(3);
    let _listener = std::net::TcpListener::bind(target).unwrap();
    for _ in 0..50 {
        let connection = Connection::open(target).unwrap();
        assert_eq!(connection.local_addr().ip().to_string(), "127.0.0.1");
    }
    let others = Addresses::reserve();
    assert_ne!(others.client(0).ip(), addresses.client(0).ip(), "two clusters never share addresses");
}

#[test]
fn a_follower_whose_log_is_gone_gets_a_snapshot() {
    let mut cluster = short_log(Plan::new(3, 0)).start();
    cluster.put_until_done(0, "before", "1");
    cluster.wait_converged();
    let leader = cluster.wait_leader();
    let away = cluster.follower();
    assert!(cluster.stop(away).success());
    let index = cluster.status_now(leader)["applied_index"].as_u64().unwrap();

    write_beyond_the_log(&cluster, leader, 1);
    let deleted = http::delete(cluster.client(leader), "/v1/kv/before").expect(200).json();
    assert_eq!(deleted["deleted"], 1);
    wait_log_gone(&cluster, leader, index);

    cluster.start_member(away);
    cluster.wait_ready(away);
    let content = cluster.assert_same_content();
    assert_eq!(content.len(), 50, "what was deleted meanwhile is gone there too");
    assert_eq!(cluster.get(away, "before"), None);

    // It is a full member again: it serves old revisions, carries the quorum and survives a restart of its own.
    let revision = deleted["revision"].as_u64().unwrap() - 1;
    let old = http::get(cluster.client(away), &format!("/v1/kv/before?rev={revision}")).expect(200);
    assert_eq!(old.text(), "1");
    cluster.kill(away);
    cluster.start_member(away);
    cluster.wait_ready(away);
    let other = (0..3).find(|&member| member != away && member != cluster.wait_leader()).unwrap();
    cluster.kill(other);
    cluster.put_until_done(away, "with the returned", "2");
    cluster.start_member(other);
    cluster.wait_ready(other);
    cluster.assert_same_content();
}

#[test]
fn a_mirror_that_joins_late_gets_everything() {
    let mut cluster = short_log(Plan::new(1, 1)).prepare();
    cluster.start_member(0);
    cluster.wait_ready(0);
    let first = cluster.put_until_done(0, "first", "1");
    write_beyond_the_log(&cluster, 0, 1);
    wait_log_gone(&cluster, 0, 1);

    cluster.start_member(1);
    cluster.wait_joined();
    assert_eq!(cluster.assert_same_content().len(), 51);
    // Its history reaches back to the beginning.
    let old = http::get(cluster.client(1), &format!("/v1/keys?rev={first}")).expect(200).json();
    assert_eq!(old["items"].as_array().unwrap().len(), 1);
    assert_eq!(cluster.content(1, first + 100), cluster.content(0, first + 100));

    // And it follows what comes, before and after a restart by force.
    cluster.put_until_done(1, "through the mirror", "2");
    assert_eq!(cluster.get(1, "through the mirror").as_deref(), Some("2"));
    cluster.kill(1);
    cluster.put_until_done(0, "while it was away", "3");
    cluster.start_member(1);
    cluster.wait_ready(1);
    assert_eq!(cluster.get(1, "while it was away").as_deref(), Some("3"));
    cluster.assert_same_content();
}

#[test]
fn members_may_be_started_in_any_order() {
    let mut cluster = Plan::new(3, 1).prepare();
    // The founder comes last: the others keep trying.
    for member in [3, 2, 1] {
        cluster.start_member(member);
    }
    for member in [3, 2, 1] {
        // They live, say that they belong to no cluster, and serve nothing.
        wait_for("an answer", || match Request::new("GET", "/health/live").try_send(cluster.client(member)) {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.to_string()),
            Err(failure) => Err(failure.to_string()),
        });
        assert_eq!(http::get(cluster.client(member), "/health/ready").status, 503);
        let refused = http::put(cluster.client(member), "/v1/kv/a", "1");
        assert_eq!((refused.status, &refused.json()["outcome"]), (503, &"not-applied".into()), "{refused}");
        assert_eq!(http::get(cluster.client(member), "/v1/kv/a").status, 503);
    }
    cluster.start_member(0);
    cluster.wait_joined();
    cluster.put_until_done(3, "a", "1");
    cluster.assert_same_content();
}

#[test]
fn a_member_may_join_through_any_member_and_passes_over_dead_ones() {
    let mut cluster = Plan::new(2, 1).start();
    let dead = format!("http://{}", cluster.member(1).peer);
    // Through the mirror, which does not lead, with a dead address listed first.
    let mirror = format!("http://{}", cluster.member(2).peer);
    let newcomer = cluster.add_member("voter", "east");
    let arguments = &mut cluster.member_mut(newcomer).arguments;
    let at = arguments.iter().position(|argument| argument == "--join").unwrap();
    let nobody = "http://127.0.0.1:1".to_string();
    arguments.splice(at.., ["--join".into(), nobody, "--join".into(), mirror, "--join".into(), dead]);
    cluster.start_member(newcomer);
    cluster.wait_joined();
    cluster.put_until_done(newcomer, "a", "1");
    cluster.assert_same_content();
    // Three voters now: one may go.
    let victim = cluster.wait_leader();
    cluster.kill(victim);
    cluster.put_until_done(2, "a", "2");
}

#[test]
fn all_may_stop_and_come_back_in_another_order_with_all_data() {
    let mut cluster = Plan::new(3, 1).start();
    for number in 0..40 {
        cluster.put_until_done(number % 4, &format!("k/{number}"), &number.to_string());
    }
    http::delete(cluster.client(0), "/v1/kv/k/7").expect(200);
    let before = cluster.assert_same_content();
    let identities: Vec<_> = (0..4).map(|member| cluster.status_now(member)["id"].clone()).collect();
    let cluster_before = cluster.status_now(0)["cluster"].clone();

    for member in 0..4 {
        cluster.ask_to_stop(member);
    }
    for member in 0..4 {
        let status = cluster.wait_exit(member);
        assert!(status.success(), "{} ended with {status}", cluster.member(member).name);
    }
    for member in [2, 3, 1, 0] {
        // With data, neither of the two is needed.
        let arguments = &mut cluster.member_mut(member).arguments;
        if let Some(at) = arguments.iter().position(|argument| argument == "--join") {
            arguments.drain(at..at + 2);
        }
        arguments.retain(|argument| argument != "--bootstrap");
        cluster.start_member(member);
    }
    cluster.wait_joined();
    assert_eq!(cluster.assert_same_content(), before);
    for (member, identity) in identities.iter().enumerate() {
        let status = cluster.status_now(member);
        assert_eq!(status["id"], *identity, "a member keeps its identity");
        assert_eq!(status["cluster"], cluster_before);
    }
}

#[test]
fn a_member_with_data_uses_them_whatever_it_is_told_and_says_so() {
    let mut cluster = Plan::new(2, 0).start();
    cluster.put_until_done(0, "a", "1");
    cluster.wait_converged();
    let identity = cluster.status_now(0)["cluster"]["id"].clone();
    for member in [0, 1] {
        assert!(cluster.stop(member).success());
    }
    // n1 keeps its --bootstrap and is told to join besides, n2 keeps its --join.
    let peer = format!("http://{}", cluster.client(1));
    cluster.member_mut(0).arguments.extend(["--join".to_string(), peer]);
    let logged: Vec<usize> = (0..2).map(|member| cluster.member(member).log_text().len()).collect();
    cluster.start_member(0);
    cluster.start_member(1);
    cluster.wait_joined();
    assert_eq!(cluster.status_now(0)["cluster"]["id"], identity, "no new cluster was founded");
    assert_eq!(cluster.get(1, "a").as_deref(), Some("1"));
    for (member, flag) in [(0, "bootstrap"), (1, "join")] {
        let since = cluster.member(member).log_text().split_off(logged[member]);
        let said = since.lines().any(|line| line.contains(flag) && line.contains("data"));
        assert!(said, "{} does not say that it uses its data:\n{since}", cluster.member(member).name);
    }
}

#[test]
fn one_directory_has_one_member() {
    let mut cluster = Plan::new(2, 0).start();
    cluster.put_until_done(0, "a", "1");
    // A third process with the directory of the first, which runs.
    let data = cluster.member(0).data.display().to_string();
    let third = cluster.add_member("voter", "east");
    let arguments = &mut cluster.member_mut(third).arguments;
    let at = arguments.iter().position(|argument| argument == "--data-dir").unwrap();
    arguments[at + 1] = data;
    cluster.start_member(third);
    let status = cluster.wait_exit(third);
    assert!(!status.success(), "two members share a directory");
    cluster.put_until_done(0, "a", "2");

    // Nor may another member take it over when it is free.
    assert!(cluster.stop(0).success());
    cluster.start_member(third);
    let status = cluster.wait_exit(third);
    assert!(!status.success(), "a member took over the data of another");
    cluster.start_member(0);
    cluster.wait_ready(0);
    assert_eq!(cluster.get(1, "a").as_deref(), Some("2"));
}

/// n2 remembers a cluster whose n1 was lost and founded anew under the same name and addresses. Neither may take the
/// other for one of its own.
#[test]
fn members_of_different_clusters_refuse_each_other() {
    let mut cluster = Plan::new(2, 1).start();
    cluster.put_until_done(0, "whose", "old");
    cluster.wait_converged();
    let old = cluster.status_now(1)["cluster"]["id"].clone();
    // Cleanly, so that each knows afterwards what was committed and shows it to stale reads.
    for member in [0, 1, 2] {
        cluster.ask_to_stop(member);
    }
    for member in [0, 1, 2] {
        assert!(cluster.wait_exit(member).success());
    }
    std::fs::rename(&cluster.member(0).data, cluster.path().join("n1-of-old")).unwrap();

    cluster.start_member(0);
    cluster.wait_ready(0);
    let new = wait_for("a cluster of its own", || match &cluster.status(0)?["cluster"]["id"] {
        serde_json::Value::Null => Err("it belongs to none".into()),
        id => Ok(id.clone()),
    });
    assert_ne!(new, old);
    // Which is a revision of its own.
    cluster.wait_feature_level(0);
    let revision = cluster.put_until_done(0, "whose", "new");
    let term = cluster.status_now(0)["term"].clone();
    cluster.start_member(1);
    cluster.start_member(2);

    // Both have tried and were refused: they say so.
    for member in [1, 2] {
        wait_for("the refusal to be said", || {
            let log = cluster.member(member).log_text();
            let said = log.lines().any(|line| line.to_lowercase().contains("cluster") && line.contains(&text_of(&new)));
            if said { Ok(()) } else { Err("not a word in its log".into()) }
        });
        assert_eq!(http::get(cluster.client(member), "/health/ready").status, 503);
        let answer = http::put(cluster.client(member), "/v1/kv/whose", "mixed");
        assert!(answer.status == 503 || answer.status == 504, "{answer}");
        let stale = http::get(cluster.client(member), "/v1/kv/whose?consistency=stale").expect(200);
        assert_eq!(stale.text(), "old", "it took data from the other cluster");
    }
    let status = cluster.status_now(0);
    assert_eq!(status["term"], term, "strangers made the new cluster elect");
    assert_eq!(status["revision"], revision);
    assert_eq!(status["members"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(cluster.get(0, "whose").as_deref(), Some("new"));
}

fn text_of(value: &serde_json::Value) -> String {
    value.as_str().expect("a text").to_string()
}

#[test]
fn a_member_with_damaged_files_does_not_start_and_says_where() {
    let mut cluster = Plan::new(1, 0).start();
    for number in 0..20 {
        cluster.put_until_done(0, &format!("k{number}"), "value");
    }
    assert!(cluster.stop(0).success());
    let data = cluster.member(0).data.clone();
    let sealed = |name: &str| name.ends_with(".seg");
    let in_dir = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        let names =
            std::fs::read_dir(data.join(dir)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let name = names.into_iter().find(|name| wanted(name));
        data.join(dir).join(name.unwrap_or_else(|| panic!("no such file in {dir}")))
    };
    let files =
        [data.join("history/MANIFEST"), in_dir("history", &sealed), in_dir("wal", &|name| name.ends_with(".wal"))];
    for file in files {
        let whole = std::fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        // Where every one of them holds something: a file of the wal is followed by zeros.
        damaged[40] ^= 0x10;
        std::fs::write(&file, damaged).unwrap();
        let before = cluster.member(0).log_text().len();
        cluster.start_member(0);
        assert_eq!(cluster.wait_exit(0).code(), Some(1), "{}", file.display());
        let said = cluster.member(0).log_text()[before..].to_string();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(said.contains(name), "the damage in {name} is named: {said}");
        std::fs::write(&file, whole).unwrap();
    }
    cluster.start_member(0);
    cluster.wait_ready(0);
    assert_eq!(cluster.get(0, "k19").as_deref(), Some("value"));
}

/// A client that does what the answers tell it: on `not-applied` it tries again, elsewhere if need be; anything that
/// leaves a write unknown is a failure of the drain.
struct ToldClient {
    targets: Vec<SocketAddr>,
    next: usize,
}

impl ToldClient {
    /// One write. Says what went wrong if its fate became unknown.
    fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        let request = Request::new("PUT", &format!("/v1/kv/{key}")).header("Connection", "close").body(value);
        let start = std::time::Instant::now();
        loop {
            let target = self.targets[self.next % self.targets.len()];
            let retry = match request.try_send(target) {
                Ok(answer) if answer.status < 300 => return Ok(()),
                Ok(answer) if answer.status == 503 && answer.json()["outcome"] == "not-applied" => answer.to_string(),
                Ok(answer) => return Err(format!("{target}: {answer}")),
                Err(Failure::NotSent(error)) => error.to_string(),
                Err(failure) => return Err(format!("{target}: {failure}")),
            };
            self.next += 1;
            if start.elapsed() > support::PATIENCE {
                return Err(format!("never done; last: {retry}"));
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_leader_that_stops_hands_over_and_no_write_fails() {
    let mut cluster = Plan::new(3, 0).steady().start();
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            let mut client = ToldClient { targets: cluster.clients(), next: number };
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) && failures.len() < 5 {
                    let key = format!("{number}/{count}");
                    match client.write(&key, "v") {
                        Ok(()) => count += 1,
                        Err(failure) => failures.push(failure),
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
                (count, failures)
            })
        })
        .collect();
    let progress = |count: usize| {
        let start = written.load(Ordering::Relaxed);
        wait_for("writes to go on", || match written.load(Ordering::Relaxed) - start {
            done if done >= count => Ok(()),
            done => Err(format!("only {done}")),
        });
    };

    let mut gaps = Vec::new();
    for _ in 0..3 {
        progress(50);
        let leader = cluster.wait_leader();
        let term = cluster.status_now(leader)["term"].as_u64().unwrap();
        cluster.ask_to_stop(leader);
        let start = std::time::Instant::now();
        let status = cluster.wait_exit(leader);
        assert!(status.success(), "a leader that is asked to stop ends with {status}");
        let next = wait_within(support::PATIENCE, "the next leader", || {
            let others = cluster.running();
            let found = others
                .into_iter()
                .find(|&member| cluster.status(member).is_ok_and(|status| status["role"] == "leader"));
            found.ok_or_else(|| "nobody leads".into())
        });
        gaps.push(start.elapsed());
        let term_now = cluster.status_now(next)["term"].as_u64().unwrap();
        assert_eq!(term_now, term + 1, "it was handed over and not fought for");
        progress(50);
        cluster.start_member(leader);
        cluster.wait_ready(leader);
    }
    stop.store(true, Ordering::Relaxed);
    let results: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let failures: Vec<_> = results.iter().flat_map(|(_, failures)| failures).collect();
    assert!(failures.is_empty(), "{} writes have an unknown fate: {failures:#?}", failures.len());
    println!("from SIGTERM to the end of the process and a new leader: {gaps:?}");

    let content = cluster.assert_same_content();
    assert_eq!(content.len(), results.iter().map(|(count, _)| count).sum::<usize>(), "as many keys as acknowledged");
}

//! Members that come and go while a cluster works: invited, added, changed, removed, lost and replaced. Real processes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Answer, Request};
use crate::support::{wait_for, wait_within};
use serde_json::{Value, json};

/// The exit code of a member that was removed.
const EXIT_REMOVED: i32 = 3;

fn about(cluster: &Cluster, at: usize, name: &str) -> Answer {
    http::get(cluster.client(at), &format!("/v1/members/{name}"))
}

fn patch(at: SocketAddr, name: &str, body: &Value) -> Answer {
    Request::new("PATCH", &format!("/v1/members/{name}")).body(body.to_string()).send(at)
}

/// Asks until the answer is no "try again": while a leader is being elected, for example.
fn settled(what: &str, ask: impl Fn() -> Answer) -> Answer {
    wait_for(what, || {
        let answer = ask();
        if answer.status == 503 { Err(answer.to_string()) } else { Ok(answer) }
    })
}

/// Asks until it is done: while a leader is being elected, or a voter that is counted on is silent for a moment.
fn done(what: &str, ask: impl Fn() -> Answer) -> Answer {
    wait_for(what, || {
        let answer = ask();
        match answer.status {
            200 => Ok(answer),
            409 | 503 | 504 => Err(answer.to_string()),
            _ => panic!("{answer}"),
        }
    })
}

/// Removes a member; gives the answer that says so, unless it was lost with a leader that lost its place amid the change.
fn remove(at: SocketAddr, name: &str) -> Option<Value> {
    let mut unknown = false;
    wait_for(&format!("the removal of {name}"), || {
        let answer = http::delete(at, &format!("/v1/members/{name}"));
        match answer.status {
            200 => Ok(Some(answer.json())),
            404 if unknown => Ok(None),
            409 | 503 | 504 => {
                unknown |= answer.status == 504;
                Err(answer.to_string())
            }
            _ => panic!("{answer}"),
        }
    })
}

/// Waits until a member is a voter, or a mirror, with nothing left to catch up with.
fn wait_is(cluster: &Cluster, at: usize, name: &str, role: &str) {
    wait_for(&format!("{name} to be a {role}"), || {
        let answer = about(cluster, at, name);
        let member = answer.json();
        let done = answer.status == 200
            && member["role"] == role
            && member["joining"] != true
            && member["progress"]["state"] == "caught_up";
        if done { Ok(()) } else { Err(answer.to_string()) }
    });
}

fn names(cluster: &Cluster, at: usize) -> Vec<String> {
    let members = http::get(cluster.client(at), "/v1/members").expect(200).json();
    members["members"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_string()).collect()
}

/// Writers that try again as they are told to, elsewhere, and remember what was acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Writers {
    fn start(targets: &[SocketAddr]) -> Writers {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..3)
            .map(|writer| {
                let (stop, written, targets) = (stop.clone(), written.clone(), targets.to_vec());
                std::thread::spawn(move || {
                    let mut acknowledged = Vec::new();
                    let mut next = writer;
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("w/{writer}/{}", acknowledged.len());
                        // The same key with the same value: a write of unknown fate may be repeated.
                        let request = Request::new("PUT", &format!("/v1/kv/{key}")).body(&key);
                        match request.try_send(targets[next % targets.len()]) {
                            Ok(answer) if answer.status == 200 || answer.status == 201 => {
                                acknowledged.push(key);
                                written.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(answer) if [429, 503, 504].contains(&answer.status) => next += 1,
                            Ok(answer) => panic!("an answer that the contract does not know: {answer}"),
                            Err(_) => next += 1,
                        }
                        std::thread::yield_now();
                    }
                    acknowledged
                })
            })
            .collect();
        Writers { stop, written, threads }
    }

    /// The cluster is available: so many writes more are acknowledged.
    fn progress(&self, writes: usize) {
        let start = self.written.load(Ordering::Relaxed);
        wait_for(&format!("{writes} writes"), || match self.written.load(Ordering::Relaxed) - start {
            done if done >= writes => Ok(()),
            done => Err(format!("only {done}")),
        });
    }

    /// Stops, and fails unless everything that was acknowledged is there.
    fn finish(mut self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        let content = |lines: Vec<String>| -> std::collections::BTreeSet<String> {
            let key = |line: &String| serde_json::from_str::<Value>(line).unwrap()["key"].as_str().unwrap().to_string();
            lines.iter().map(key).collect()
        };
        let acknowledged: Vec<String> = self.threads.drain(..).flat_map(|thread| thread.join().unwrap()).collect();
        let present = content(cluster.assert_same_content());
        let lost: Vec<_> = acknowledged.iter().filter(|key| !present.contains(*key)).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn an_invited_member_comes_as_it_was_told_to() {
    let mut cluster = Plan::new(1, 0).start();
    let at = cluster.client(0);
    let unknown = about(&cluster, 0, "n2").expect_problem(404, "unknown-member");
    assert_eq!(unknown["retry"], "never");
    let body = json!({"name": "n2", "peer_url": "http://127.0.0.1:7/", "role": "mirror", "site": "north"});
    let invited = http::post(at, "/v1/members", &body).expect(202).json();
    assert_eq!(invited["id"], Value::Null);
    assert_eq!(invited["role"], "mirror");
    assert_eq!(invited["peer_url"], "http://127.0.0.1:7");
    assert_eq!(invited["progress"], json!({"state": "invited"}));
    assert_eq!(about(&cluster, 0, "n2").expect(200).json(), invited);
    assert_eq!(names(&cluster, 0), ["n1"], "who is invited is no member yet");

    // The invitation outlives a restart of all members.
    assert!(cluster.stop(0).success());
    cluster.start_member(0);
    cluster.wait_ready(0);
    assert_eq!(about(&cluster, 0, "n2").expect(200).json()["progress"]["state"], "invited");

    // It says voter and east of itself; the invitation wins.
    let newcomer = cluster.add_member("voter", "east");
    cluster.start_member(newcomer);
    wait_is(&cluster, 0, "n2", "mirror");
    let member = about(&cluster, newcomer, "n2").expect(200).json();
    assert_eq!((&member["site"], &member["role"]), (&json!("north"), &json!("mirror")), "{member}");
    assert_eq!(member["id"].as_str().unwrap().len(), 16);
    http::post(at, "/v1/members", &body).expect_problem(409, "member-exists");
    let removed = http::delete(cluster.client(newcomer), "/v1/members/n2").expect(200).json();
    assert_eq!((&removed["removed"], &removed["id"]), (&json!("n2"), &member["id"]));
    about(&cluster, 0, "n2").expect_problem(404, "unknown-member");

    // An invitation that nobody follows is taken back.
    http::post(at, "/v1/members", &json!({"name": "n9"})).expect(202);
    let removed = http::delete(at, "/v1/members/n9").expect(200).json();
    assert_eq!(removed, json!({"removed": "n9", "id": null}));
    http::delete(at, "/v1/members/n9").expect_problem(404, "unknown-member");
}

#[test]
fn a_removed_member_learns_of_it_and_never_comes_back_under_its_id() {
    let mut cluster = Plan::new(3, 1).steady().start();
    cluster.put_until_done(0, "a", "1");
    let leader = cluster.wait_leader();
    for gone in [cluster.follower(), 3] {
        let name = cluster.member(gone).name.clone();
        let id = about(&cluster, leader, &name).expect(200).json()["id"].clone();
        if let Some(removed) = remove(cluster.client(leader), &name) {
            assert_eq!(removed["id"], id);
        }
        let status = cluster.wait_exit(gone);
        assert_eq!(status.code(), Some(EXIT_REMOVED), "{status}");
        assert!(cluster.member(gone).log_text().contains("was removed from cluster"));
        // Nor when it is started again, which it notices at once now.
        cluster.start_member(gone);
        assert_eq!(cluster.wait_exit(gone).code(), Some(EXIT_REMOVED));
        assert!(!names(&cluster, leader).contains(&name));
    }
    let warnings = about(&cluster, leader, &cluster.member(leader).name.clone()).expect(200).json();
    assert!(warnings["warnings"][0].as_str().unwrap().contains("2 voters"), "{warnings}");

    // One that was away when it was removed is told when it comes back, and elects nobody meanwhile.
    let away = cluster.follower();
    let name = cluster.member(away).name.clone();
    cluster.kill(away);
    let refused = http::delete(cluster.client(leader), &format!("/v1/members/{name}"));
    // Of two voters one is away: there is no quorum to do anything with.
    assert!([503, 504, 409].contains(&refused.status), "{refused}");
    cluster.start_member(away);
    cluster.wait_ready(away);
    let leader = cluster.wait_leader();
    let away = cluster.follower();
    let name = cluster.member(away).name.clone();
    remove(cluster.client(leader), &name);
    assert_eq!(cluster.wait_exit(away).code(), Some(EXIT_REMOVED));
    let last = cluster.member(leader).name.clone();
    for force in ["", "?force=true"] {
        let target = format!("/v1/members/{last}{force}");
        http::delete(cluster.client(leader), &target).expect_problem(409, "quorum-at-risk");
    }
    patch(cluster.client(leader), &last, &json!({"role": "mirror", "force": true}))
        .expect_problem(409, "quorum-at-risk");
    assert_eq!(cluster.get(leader, "a").as_deref(), Some("1"));

    // Its name is free: without its data it is a new member.
    std::fs::rename(&cluster.member(away).data, cluster.path().join("moved-away")).unwrap();
    let peer = format!("http://{}", cluster.member(leader).peer);
    let arguments = &mut cluster.member_mut(away).arguments;
    arguments.retain(|argument| argument != "--bootstrap");
    arguments.extend(["--join".into(), peer]);
    cluster.start_member(away);
    wait_is(&cluster, leader, &name, "voter");
}

#[test]
fn a_member_that_was_removed_while_it_was_away_is_told_when_it_returns() {
    let mut cluster = Plan::new(3, 0).steady().start();
    let leader = cluster.wait_leader();
    let away = cluster.follower();
    let name = cluster.member(away).name.clone();
    cluster.kill(away);
    remove(cluster.client(leader), &name);
    let leader = cluster.wait_leader();
    let term = cluster.status_now(leader)["term"].clone();
    cluster.start_member(away);
    assert_eq!(cluster.wait_exit(away).code(), Some(EXIT_REMOVED));
    assert_eq!(cluster.status_now(leader)["term"], term, "it made the others elect");
    cluster.put_until_done(leader, "a", "1");
}

#[test]
fn what_would_leave_no_quorum_is_refused_even_when_forced() {
    let mut cluster = Plan::new(3, 0).start();
    let leader = cluster.wait_leader();
    let dead = cluster.follower();
    cluster.kill(dead);
    let alive = (0..3).find(|member| ![leader, dead].contains(member)).unwrap();
    let name = cluster.member(alive).name.clone();
    // Two answer. Without the one that lives, one of two would.
    for answer in [
        settled("the refusal", || http::delete(cluster.client(alive), &format!("/v1/members/{name}"))),
        settled("the refusal", || http::delete(cluster.client(alive), &format!("/v1/members/{name}?force=true"))),
        settled("the refusal", || patch(cluster.client(alive), &name, &json!({"role": "mirror"}))),
        settled("the refusal", || patch(cluster.client(alive), &name, &json!({"role": "mirror", "force": true}))),
    ] {
        let problem = answer.expect_problem(409, "quorum-at-risk");
        assert!(problem["detail"].as_str().unwrap().contains("of the 2 voters"), "{problem}");
    }
    assert_eq!(names(&cluster, leader).len(), 3);
    // Nothing was begun: the cluster takes writes as before.
    cluster.put_until_done(alive, "b", "1");
    // The dead one may go: nobody counted on it.
    let target = format!("/v1/members/{}", cluster.member(dead).name);
    settled("the removal", || http::delete(cluster.client(alive), &target)).expect(200);
    cluster.put_until_done(alive, "a", "1");
    cluster.assert_same_content();
}

#[test]
fn what_leaves_no_voter_to_spare_is_done_only_by_force() {
    let mut cluster = Plan::new(4, 0).start();
    let dead = cluster.follower();
    cluster.kill(dead);
    let leader = cluster.wait_leader();
    let alive = (0..4).find(|member| ![leader, dead].contains(member)).unwrap();
    let target = format!("/v1/members/{}", cluster.member(alive).name);
    // Three of four answer. Without this one two of three would, and not one of them could fail.
    let refused = settled("the refusal", || http::delete(cluster.client(leader), &target));
    let problem = refused.expect_problem(409, "quorum-at-risk");
    assert!(problem["detail"].as_str().unwrap().contains("force"), "{problem}");
    let removed = settled("the removal", || http::delete(cluster.client(leader), &format!("{target}?force=true")));
    assert_eq!(removed.expect(200).json()["removed"], *cluster.member(alive).name);
    assert_eq!(cluster.wait_exit(alive).code(), Some(EXIT_REMOVED));
    cluster.put_until_done(leader, "a", "1");
    cluster.start_member(dead);
    cluster.wait_ready(dead);
    cluster.assert_same_content();
}

#[test]
fn roles_change_both_ways_also_the_leaders() {
    let mut cluster = Plan::new(3, 1).start();
    let writers = Writers::start(&cluster.clients());
    writers.progress(20);
    let follower = cluster.follower();
    let name = cluster.member(follower).name.clone();
    let answer = done("the change", || patch(cluster.client(3), &name, &json!({"role": "mirror"})));
    assert_eq!(answer.json()["role"], "mirror", "{answer}");
    assert!(answer.json()["warnings"][0].as_str().unwrap().contains("even number"), "{answer}");
    wait_for("it to say so itself", || {
        let role = http::get(cluster.client(follower), "/v1/role").json()["role"].clone();
        if role == "mirror" { Ok(()) } else { Err(role.to_string()) }
    });
    done("the change", || patch(cluster.client(follower), "n4", &json!({"role": "voter"})));
    wait_is(&cluster, follower, "n4", "voter");
    done("the change", || patch(cluster.client(follower), &name, &json!({"role": "voter"})));
    wait_is(&cluster, follower, &name, "voter");
    writers.progress(20);

    let leader = cluster.wait_leader();
    let name = cluster.member(leader).name.clone();
    done("the change", || patch(cluster.client(leader), &name, &json!({"role": "mirror"})));
    assert_ne!(cluster.wait_leader(), leader, "a mirror leads");
    wait_is(&cluster, leader, &name, "mirror");
    writers.progress(20);
    done("the change", || patch(cluster.client(leader), &name, &json!({"role": "voter"})));
    wait_is(&cluster, leader, &name, "voter");

    // The leader is removed: it hands over first, and no write is lost.
    let leader = cluster.wait_leader();
    let name = cluster.member(leader).name.clone();
    // Asked of another: it ends, whether or not its answer has arrived.
    remove(cluster.client((leader + 1) % 4), &name);
    assert_eq!(cluster.wait_exit(leader).code(), Some(EXIT_REMOVED));
    writers.progress(20);
    writers.finish(&cluster);
}

#[test]
fn a_member_that_lost_its_disk_returns_by_its_name() {
    let mut cluster = Plan::new(3, 1).start();
    let writers = Writers::start(&cluster.clients());
    // A follower, the mirror, and last the one that leads.
    let follower = cluster.follower();
    for (round, lost) in [Some(follower), Some(3), None].into_iter().enumerate() {
        writers.progress(20);
        let lost = lost.unwrap_or_else(|| cluster.wait_leader());
        let name = cluster.member(lost).name.clone();
        let role = cluster.member(lost).role;
        let asked = (0..4).find(|member| *member != lost).unwrap();
        let old = about(&cluster, asked, &name).expect(200).json();
        cluster.kill(lost);
        std::fs::rename(&cluster.member(lost).data, cluster.path().join(format!("lost-{round}"))).unwrap();
        let peer = format!("http://{}", cluster.member(asked).peer);
        let arguments = &mut cluster.member_mut(lost).arguments;
        // It says another role of itself: what the cluster knows wins.
        arguments.retain(|argument| argument != "--bootstrap");
        if let Some(at) = arguments.iter().position(|argument| argument == "--join") {
            arguments.drain(at..at + 2);
        }
        arguments.extend(["--join".into(), peer]);
        cluster.start_member(lost);
        let new = wait_for("the new one to take its place", || {
            let answer = about(&cluster, asked, &name);
            if answer.status == 200 && answer.json()["id"] != old["id"] { Ok(answer) } else { Err(answer.to_string()) }
        });
        let new = new.json();
        wait_is(&cluster, asked, &name, role);
        assert_eq!(new["site"], old["site"]);
        assert_eq!(names(&cluster, asked).len(), 4, "the old one is still there");
        cluster.wait_ready(lost);
    }
    writers.progress(20);
    writers.finish(&cluster);
}

#[test]
fn a_name_whose_member_answers_is_not_given_away() {
    let mut cluster = Plan::new(2, 0).start();
    let impostor = cluster.add_member("voter", "east");
    let arguments = &mut cluster.member_mut(impostor).arguments;
    let at = arguments.iter().position(|argument| argument == "--name").unwrap();
    arguments[at + 1] = "n2".into();
    cluster.start_member(impostor);
    let status = cluster.wait_exit(impostor);
    assert_eq!(status.code(), Some(1));
    let said = cluster.member(impostor).log_text();
    assert!(said.contains("which answers"), "{said}");
    assert_eq!(names(&cluster, 0), ["n1", "n2"]);
    cluster.put_until_done(1, "a", "1");
}

#[test]
fn a_learner_that_vanishes_is_not_promoted_and_costs_nothing() {
    let mut cluster = Plan::new(2, 0).start();
    let newcomer = cluster.add_member("voter", "east");
    cluster.start_member(newcomer);
    wait_for("it to be in the membership", || match names(&cluster, 0).len() {
        3 => Ok(()),
        count => Err(format!("{count} members")),
    });
    cluster.kill(newcomer);
    // Whether it was promoted before it went or not: two of two, or two of three, answer.
    cluster.put_until_done(0, "a", "1");
    let target = format!("/v1/members/{}", cluster.member(newcomer).name);
    settled("the removal", || http::delete(cluster.client(0), &target)).expect(200);
    cluster.put_until_done(1, "a", "2");
    assert_eq!(names(&cluster, 1), ["n1", "n2"]);
}

/// Passes everything on between a member and those who dial it, late by `delay` each way. Ends with the test's process.
fn far_away(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let carry = move |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(count) = from.read(&mut buffer) {
                std::thread::sleep(delay);
                if count == 0 || to.write_all(&buffer[..count]).is_err() {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
            }
        });
    };
    std::thread::spawn(move || {
        for here in listener.incoming().flatten() {
            let Ok(there) = TcpStream::connect(to) else { continue };
            for stream in [&here, &there] {
                stream.set_nodelay(true).unwrap();
            }
            carry(here.try_clone().unwrap(), there.try_clone().unwrap());
            carry(there, here);
        }
    });
    address
}

#[test]
fn a_voter_far_away_is_warned_about_and_measured() {
    let mut cluster = Plan::new(2, 0).start();
    let far = cluster.add_member("voter", "west");
    let address = far_away(cluster.member(far).peer, Duration::from_millis(35));
    cluster.member_mut(far).arguments.extend(["--peer-url".into(), format!("http://{address}")]);
    cluster.start_member(far);
    let name = cluster.member(far).name.clone();
    let warning = wait_for("the warning", || {
        let answer = about(&cluster, 0, &name);
        let warnings = answer.json()["warnings"].clone();
        let found = warnings.as_array().into_iter().flatten().find(|text| text.as_str().unwrap().contains("ms away"));
        found.cloned().ok_or_else(|| answer.to_string())
    });
    assert!(warning.as_str().unwrap().contains(&name), "{warning}");
    let leader = cluster.wait_leader();
    let metrics = support::scrape::Metrics::of(cluster.client(leader));
    let seconds = metrics.sum("lifeboat_peer_round_trip_seconds", &[&format!("member=\"{name}\"")]);
    assert!(seconds >= 0.07, "{seconds}");
    let near = &cluster.member(1).name;
    let near = metrics.sum("lifeboat_peer_round_trip_seconds", &[&format!("member=\"{near}\"")]);
    assert!(near < seconds, "{near} and {seconds}");
}

#[test]
fn members_come_go_get_lost_and_are_replaced_under_load() {
    let mut cluster = Plan::new(3, 0).start();
    // Those that stay are written to; the others come and go.
    let writers = Writers::start(&cluster.clients());
    for round in 0..2 {
        writers.progress(30);
        let newcomer = cluster.add_member(if round == 0 { "voter" } else { "mirror" }, "east");
        let (name, role) = (cluster.member(newcomer).name.clone(), cluster.member(newcomer).role);
        cluster.start_member(newcomer);
        wait_is(&cluster, 0, &name, role);
        writers.progress(30);
        // The leader dies amid the removal of another.
        let leader = cluster.wait_leader();
        let at = cluster.client((leader + 1) % 3);
        let target = format!("/v1/members/{name}");
        let removal = std::thread::spawn(move || Request::new("DELETE", &target).try_send(at));
        cluster.kill(leader);
        drop(removal.join().unwrap());
        cluster.wait_leader();
        writers.progress(30);
        cluster.start_member(leader);
        cluster.wait_ready(leader);
        // Whatever became of the removal: asked again, the member is gone in the end.
        let target = format!("/v1/members/{name}");
        let gone = wait_within(support::PATIENCE, "the removal", || {
            let answer = http::delete(cluster.client(0), &target);
            if [200, 404].contains(&answer.status) { Ok(answer) } else { Err(answer.to_string()) }
        });
        assert!([200, 404].contains(&gone.status));
        assert_eq!(cluster.wait_exit(newcomer).code(), Some(EXIT_REMOVED));
        writers.progress(30);
    }
    writers.finish(&cluster);
}

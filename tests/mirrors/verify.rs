//! Continuous verification, on real processes and with real damage: whatever is wrong on a member's disk is named, the
//! member goes into quarantine, repairs itself without a hand, and nothing wrong is served meanwhile.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::support;
use crate::support::cluster::{Cluster, Plan};
use crate::support::damage::{Record, record_of, records, segments};
use crate::support::http::{Connection, Failure, Request};
use crate::support::scrape::Metrics;
use crate::support::wait_for;
use serde_json::Value;

const KEYS: usize = 240;
const VALUE_BYTES: usize = 16 << 10;

/// Members that seal early, and keep the log for long enough.
fn small(plan: Plan) -> Plan {
    plan.seals_early().flag("--verify-bytes-per-second", "0")
}

/// The mark of a value, which stands in no other.
fn mark(key: usize) -> String {
    format!("value-of-{key:06}-")
}

fn value(key: usize) -> String {
    mark(key).repeat(VALUE_BYTES / 16)
}

fn fill(cluster: &Cluster) {
    let mut connection = Connection::open(cluster.client(0)).unwrap();
    for key in 0..KEYS {
        let put = Request::new("PUT", &format!("/v1/kv/key/{key:06}")).body(value(key));
        let answer = put.try_send_on(&mut connection).unwrap();
        assert!(answer.status < 300, "{answer}");
    }
    cluster.wait_converged();
}

/// Verifies through a member; as soon as one does it.
fn verify(cluster: &Cluster, through: usize) -> Value {
    wait_for("a verification", || {
        let request = Request::new("GET", "/v1/verify").header("Accept", "application/json");
        // Members verify with what others leave of the machine.
        let connection = Connection::open_within(cluster.client(through), support::PATIENCE * 2);
        let answer = connection.map_err(Failure::NotSent).and_then(|mut open| request.try_send_on(&mut open));
        let answer = answer.map_err(|failure| failure.to_string())?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.to_string()) }
    })
}

/// Runs `lifeboat verify`: its exit code and what it prints.
fn command(cluster: &Cluster, through: usize, output: &str) -> (i32, String) {
    let endpoint = format!("http://{}", cluster.client(through));
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(["verify", "--endpoints", &endpoint, "--output", output])
        .output()
        .unwrap();
    (run.status.code().unwrap(), String::from_utf8(run.stdout).unwrap())
}

fn of<'r>(report: &'r Value, name: &str) -> &'r Value {
    let members = report["members"].as_array().unwrap();
    members.iter().find(|member| member["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn events(address: SocketAddr) -> Result<Vec<Value>, String> {
    let answer = Request::new("GET", "/v1/events").try_send(address).map_err(|failure| failure.to_string())?;
    if answer.status != 200 {
        return Err(answer.to_string());
    }
    Ok(answer.json()["events"].as_array().unwrap().clone())
}

/// Waits until a member says that it was repaired; gives the words of its quarantine and of its repair.
fn wait_repaired(cluster: &mut Cluster, member: usize) -> (String, String) {
    let address = cluster.client(member);
    let words = wait_for("the member to be repaired", || {
        let events = events(address)?;
        let word = |kind: &str| events.iter().rev().find(|event| event["kind"] == kind);
        match (word("quarantined"), word("repaired")) {
            (Some(why), Some(how)) => {
                Ok((why["detail"].as_str().unwrap().to_owned(), how["detail"].as_str().unwrap().to_owned()))
            }
            _ => Err(format!("{events:?}")),
        }
    });
    cluster.wait_ready(member);
    words
}

/// Waits until all members hold the same and are sound, as a verification finds.
fn assert_all_agree(cluster: &mut Cluster) {
    cluster.wait_all_ready();
    let report = wait_for("all members to agree", || {
        let report = verify(cluster, 0);
        if report["agreed"] == true && report["complete"] == true { Ok(report) } else { Err(report.to_string()) }
    });
    for member in report["members"].as_array().unwrap() {
        assert!(member["scrubbed_bytes"].as_u64().unwrap() > 0, "{report}");
    }
    assert!(report["keys"].as_u64().unwrap() >= KEYS as u64, "{report}");
}

/// Reads a key at one member again and again; it must be right or refused, always.
struct Reader {
    stop: Arc<AtomicBool>,
    right: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(address: SocketAddr, key: usize, stale: bool) -> Reader {
        let (stop, right) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), right.clone());
        let consistency = if stale { "?consistency=stale" } else { "" };
        let target = format!("/v1/kv/key/{key:06}{consistency}");
        let thread = std::thread::spawn(move || {
            let expected = value(key);
            while !stopped.load(Ordering::Relaxed) {
                // A connection that breaks while the member is opened anew is no answer.
                let Ok(answer) = Request::new("GET", &target).try_send(address) else { continue };
                match answer.status {
                    200 => {
                        assert!(answer.text() == expected, "a wrong value was served");
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    503 => {}
                    _ => panic!("{answer}"),
                }
            }
        });
        Reader { stop, right, thread: Some(thread) }
    }

    /// Waits until it has read something right since now, and ends it.
    fn end(mut self) {
        let before = self.right.load(Ordering::Relaxed);
        wait_for("the reader to read again", || {
            assert!(!self.thread.as_ref().unwrap().is_finished(), "the reader has met something wrong");
            if self.right.load(Ordering::Relaxed) > before { Ok(()) } else { Err("nothing yet".into()) }
        });
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the reader has met nothing wrong");
    }
}

/// A key whose record is sealed on a member, and not in its newest segment. What is full is sealed in the background.
fn sealed_key(data: &Path) -> (usize, Record) {
    let sealed = wait_for("three segments", || match segments(data) {
        segments if segments.len() >= 3 => Ok(segments),
        segments => Err(format!("{segments:?}")),
    });
    let wanted = &sealed[sealed.len() / 2];
    let found = records(wanted).into_iter().find_map(|record| Some((record.key()?.parse().ok()?, record)));
    found.expect("a key in the segment in the middle")
}

/// Who is damaged in turn: the mirror, a follower, the leader.
fn in_turn(cluster: &Cluster, turn: usize) -> usize {
    match turn {
        0 => 3,
        1 => cluster.follower(),
        _ => cluster.wait_leader(),
    }
}

/// Damages each kind of member in turn, verifies, and checks all that is promised of it.
fn damage_each(damage: impl Fn(&Path, usize, &Record), named: impl Fn(&Record, &str)) {
    let mut cluster = small(Plan::new(3, 1)).steady().start();
    fill(&cluster);
    for turn in 0..3 {
        let member = in_turn(&cluster, turn);
        let (name, data) = (cluster.member(member).name.clone(), cluster.member(member).data.clone());
        let (key, record) = sealed_key(&data);
        let reader = Reader::start(cluster.client(member), key, turn == 0);
        damage(&data, key, &record);
        // Through another member, which asks the leader.
        let report = verify(&cluster, (member + 1) % 3);
        let state = of(&report, &name)["state"].as_str().unwrap();
        match state {
            "damaged" => named(&record, of(&report, &name)["detail"].as_str().unwrap()),
            // The reader may have met it before the scrub did, and the repair may have been quicker too.
            "quarantined" | "unreachable" | "agrees" => {}
            _ => panic!("{report}"),
        }
        assert_eq!(report["agreed"], !["damaged", "quarantined"].contains(&state), "{report}");
        assert!(report["complete"] == false || state != "unreachable", "{report}");
        let (why, how) = wait_repaired(&mut cluster, member);
        named(&record, &why);
        assert!(how.starts_with("by a delta"), "{how}");
        let repairs = Metrics::of(cluster.client(member));
        let of_kind = |name: &str, kind: &str| repairs.sum(name, &[&format!("kind=\"{kind}\"")]);
        assert_eq!(of_kind("lifeboat_repairs_total", "delta"), 1.0);
        assert_eq!(of_kind("lifeboat_repair_bytes_total", "full"), 0.0);
        let delta = of_kind("lifeboat_repair_bytes_total", "delta") as usize;
        assert!(delta > 0 && delta < KEYS * VALUE_BYTES * 3 / 4, "{delta} bytes");
        assert_eq!(repairs.sum("lifeboat_quarantined", &[]), 0.0);
        reader.end();
        let aside = std::fs::read_dir(&data).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        assert_eq!(aside.filter(|name| name.starts_with("history.damaged-")).count(), 1, "it is set aside");
        assert_all_agree(&mut cluster);
    }
    cluster.assert_same_content();
}

fn names_record(record: &Record, words: &str) {
    let file = record.file.file_name().unwrap().to_str().unwrap();
    for part in [file, &format!("byte {}", record.offset), &format!("position {}", record.position)] {
        assert!(words.contains(part), "{part:?} is not in {words:?}");
    }
}

#[test]
fn a_flipped_byte_is_named_and_repaired_on_every_kind_of_member() {
    damage_each(|_, _, record| record.flip(), names_record);
}

#[test]
fn a_record_that_was_changed_with_its_checksum_is_named_and_repaired_on_every_kind_of_member() {
    let forge = |_: &Path, key: usize, record: &Record| {
        record.forge(&mark(key), &mark(key).replace("value", "wrong"));
        record.forge_digest();
    };
    damage_each(forge, |record, words| {
        names_record(record, words);
        assert!(words.contains("chain hash") && words.contains("key/"), "{words:?}");
    });
}

#[test]
fn a_segment_that_was_swapped_for_an_older_one_is_named_and_repaired_on_every_kind_of_member() {
    let swap = |data: &Path, _: usize, record: &Record| {
        let older = segments(data).into_iter().take_while(|file| *file != record.file).last().expect("an older one");
        // As a person does it who restores a file: another file under the name.
        let restored = data.join("restored");
        std::fs::copy(older, &restored).unwrap();
        std::fs::rename(&restored, &record.file).unwrap();
    };
    damage_each(swap, |record, words| {
        let file = record.file.file_name().unwrap().to_str().unwrap();
        assert!(words.contains(file), "{file:?} is not in {words:?}");
    });
}

/// What no member can find by itself: a record that compaction has thinned, changed with its checksum and the digest of its
/// segment, on the leader. The others are more, and the report says what is in doubt.
#[test]
fn a_leader_that_holds_something_else_is_found_by_the_others_and_says_what_is_in_doubt() {
    let mut cluster = small(Plan::new(3, 1))
        .steady()
        .flag("--history-keep-ms", "200ms")
        .flag("--history-keep-revisions", "10")
        .start();
    // Two keys in one transaction, of which one is overwritten: what stays of the record is thinned.
    let kept = |n: usize| format!("kept-value-{n:05}-").repeat(64);
    for n in 0..300 {
        let put = |key: String, value: String| serde_json::json!({ "put": { "key": key, "value": value } });
        let ops = [put(format!("kept/{n}"), kept(n)), put(format!("gone/{}", n % 7), "x".repeat(6000))];
        let body = serde_json::json!({ "then": ops });
        let answer = Request::new("POST", "/v1/txn").body(body.to_string()).send(cluster.client(0));
        assert_eq!(answer.status, 200, "{answer}");
    }
    let leader = cluster.wait_leader();
    let (name, data) = (cluster.member(leader).name.clone(), cluster.member(leader).data.clone());
    let (n, record) = wait_for("compaction to thin a record", || {
        cluster.put_until_done(leader, "tick", "x");
        let found = (0..300).find_map(|n| {
            let record = record_of(&data, &format!("kept-value-{n:05}-"))?;
            record.thinned.then_some((n, record))
        });
        found.ok_or_else(|| "none is thinned".to_string())
    });
    // The file may be compacted again any moment; what has become of the record by then is as good.
    record.forge(&format!("kept-value-{n:05}-"), &format!("kept-wrong-{n:05}-"));
    record.forge_digest();
    let report = wait_for("a verification that finds it", || {
        let (code, out) = command(&cluster, (leader + 1) % 3, "json");
        let report: Value = serde_json::from_str(&out).map_err(|error| format!("{error}: {out}"))?;
        assert_eq!(code == 8, report["agreed"] == false, "{code}: {report}");
        if report["agreed"] == false { Ok(report) } else { Err(report.to_string()) }
    });
    let found = of(&report, &name);
    assert_eq!(found["state"], "differs", "{report}");
    assert!(found["detail"].as_str().unwrap().contains("in doubt"), "{report}");
    assert_eq!(found["doubt"]["keys"], serde_json::json!([format!("\"kept/{n}\"")]), "{report}");
    assert_eq!(found["doubt"]["count"], 1);
    let (from, to) = (found["doubt"]["from_revision"].as_u64(), found["doubt"]["to_revision"].as_u64());
    assert_eq!(from, Some(record.revision));
    assert!(to >= report["revision"].as_u64(), "{report}");
    let (why, how) = wait_repaired(&mut cluster, leader);
    assert!(why.contains(&format!("kept/{n}")) && why.contains("in doubt"), "{why}");
    // Where it is wrong is not proven, so nothing of it is taken over.
    assert!(how.starts_with("by a full copy"), "{how}");
    assert_eq!(cluster.get(leader, &format!("kept/{n}")).unwrap(), kept(n));
    cluster.wait_all_ready();
    wait_for("all members to agree", || {
        let report = verify(&cluster, 0);
        if report["agreed"] == true && report["complete"] == true { Ok(()) } else { Err(report.to_string()) }
    });
    cluster.assert_same_content();
}

/// A member that is killed again and again while it repairs itself goes on; damage that is found when it starts, even in the
/// MANIFEST, is repaired the same way.
#[test]
fn a_repair_survives_kill_9_and_damage_found_at_the_start_is_repaired() {
    let seed = support::Seed::for_test("a_repair_survives_kill_9_and_damage_found_at_the_start_is_repaired");
    let mut rng = seed.rng(0);
    let mut cluster = small(Plan::new(3, 1)).start();
    fill(&cluster);
    for (turn, member) in [(0, 3), (1, cluster.follower())] {
        cluster.kill(member);
        let data = cluster.member(member).data.clone();
        if turn == 0 {
            let manifest = data.join("history/MANIFEST");
            let mut content = std::fs::read(&manifest).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 1;
            std::fs::write(&manifest, content).unwrap();
        } else {
            // The newest segment is checked when it is opened.
            let newest = segments(&data).pop().unwrap();
            records(&newest).pop().unwrap().flip();
        }
        for _ in 0..4 {
            cluster.start_member(member);
            let moment = std::time::Duration::from_millis(rand::Rng::random_range(&mut rng, 5..250));
            let started = std::time::Instant::now();
            wait_for("a moment to die in", || if started.elapsed() >= moment { Ok(()) } else { Err("not yet".into()) });
            cluster.kill(member);
        }
        cluster.start_member(member);
        cluster.wait_ready(member);
        cluster.wait_converged();
        assert!(std::fs::read_to_string(data.join("member.json")).unwrap().find("quarantine").is_none());
        let key = KEYS / 2;
        assert_eq!(cluster.get(member, &format!("key/{key:06}")).unwrap(), value(key));
        assert_all_agree(&mut cluster);
    }
    let (code, table) = command(&cluster, 3, "table");
    assert!(code == 0 && table.contains("all members hold the same"), "{code}: {table}");
    cluster.assert_same_content();
}

/// While nobody can send a copy the member answers, says why, and tries on; a member alone is not taken out of service.
#[test]
fn a_member_without_help_waits_and_says_so_and_a_sole_member_refuses_to_start() {
    let mut cluster = small(Plan::new(1, 1)).start();
    fill(&cluster);
    let data = cluster.member(1).data.clone();
    let (key, record) = sealed_key(&data);
    cluster.kill(0);
    // Nobody leads, so the mirror meets the damage by itself: by a stale read.
    record.flip();
    let address = cluster.client(1);
    let target = format!("/v1/kv/key/{key:06}?consistency=stale");
    wait_for("the damage to be met", || {
        let answer = Request::new("GET", &target).try_send(address).map_err(|failure| failure.to_string())?;
        match answer.status {
            503 => Ok(answer.expect_problem(503, "quarantined")),
            200 => {
                // It is still in the cache of values; a restart has none.
                assert!(answer.text() == value(key));
                cluster.kill(1);
                cluster.start_member(1);
                Err("not yet".into())
            }
            _ => Err(answer.to_string()),
        }
    });
    wait_for("the member to say that it is in quarantine", || {
        let answer = Request::new("GET", "/health/ready").try_send(address).map_err(|failure| failure.to_string())?;
        let text = answer.text().to_owned();
        if answer.status == 503 && text.contains("quarantine") { Ok(()) } else { Err(text) }
    });
    wait_for("the metric", || {
        let answer = Request::new("GET", "/metrics").try_send(address).map_err(|failure| failure.to_string())?;
        if answer.text().contains("lifeboat_quarantined 1") { Ok(()) } else { Err("not shown".into()) }
    });
    let live = Request::new("GET", "/health/live").try_send(address).unwrap();
    assert_eq!(live.status, 200, "{live}");
    cluster.start_member(0);
    cluster.wait_ready(0);
    wait_repaired(&mut cluster, 1);
    assert_all_agree(&mut cluster);

    let mut alone = small(Plan::new(1, 0)).start();
    fill(&alone);
    let data = alone.member(0).data.clone();
    alone.kill(0);
    let newest = segments(&data).pop().unwrap();
    records(&newest).pop().unwrap().flip();
    alone.start_member(0);
    assert_eq!(alone.wait_exit(0).code(), Some(1));
    let file = newest.file_name().unwrap().to_str().unwrap();
    assert!(alone.member(0).log_text().contains(file), "{}", alone.member(0).log_text());
}

/// Contents are compared range by range, of 4096 keys each: the leader digests the next one while the others digest the
/// present one. What differs in the last range, and only there, is found.
#[test]
fn a_key_of_the_last_of_several_ranges_that_differs_is_named_and_repaired() {
    const WRITTEN: usize = 10_000;
    const AT_ONCE: usize = 100;
    // Without canaries nothing is written that the test does not write.
    let plan = small(Plan::new(3, 1)).flag("--canary-interval-ms", "0").steady();
    let mut cluster = plan.flag("--history-keep-ms", "200ms").flag("--history-keep-revisions", "10").start();
    let small_value = |n: usize| format!("small-value-{n:05}-").repeat(4);
    // What is overwritten again and again makes compaction thin the records, so that no chain hash covers them any more.
    // The last keys are the oldest, because only what is sealed is thinned.
    for first in (0..WRITTEN).step_by(AT_ONCE).rev() {
        let put = |key: String, value: String| serde_json::json!({ "put": { "key": key, "value": value } });
        let mut ops: Vec<Value> =
            (first..first + AT_ONCE).map(|n| put(format!("small/{n:05}"), small_value(n))).collect();
        ops.push(put("gone".into(), "x".repeat(20_000)));
        let body = serde_json::json!({ "then": ops });
        let answer = Request::new("POST", "/v1/txn").body(body.to_string()).send(cluster.client(0));
        assert_eq!(answer.status, 200, "{answer}");
    }
    let (mirror, wanted) = (3, WRITTEN - AT_ONCE / 2);
    let data = cluster.member(mirror).data.clone();
    let text = format!("small-value-{wanted:05}-");
    let thinned = |cluster: &Cluster| {
        wait_for("compaction to thin a record of the mirror", || {
            cluster.put_until_done(0, "tick", "x");
            record_of(&data, &text).filter(|record| record.thinned).ok_or_else(|| "it is not thinned".to_owned())
        })
    };
    thinned(&cluster);
    let keys = cluster.assert_same_content().len();
    assert_eq!(keys, WRITTEN + 2, "and the one that was overwritten, and the tick");
    let leader = cluster.wait_leader();
    let report = verify(&cluster, 0);
    assert!(report["agreed"] == true && report["complete"] == true, "{report}");
    // The records of the system are compared too.
    let all = Metrics::of(cluster.client(leader)).sum("lifeboat_keys", &[]) as u64;
    assert!(report["keys"] == all && all >= keys as u64, "{keys}, {all}: {report}");

    // The file may be compacted again any moment; what has become of the record by then is as good.
    let record = thinned(&cluster);
    record.forge(&text, &text.replace("value", "wrong"));
    record.forge_digest();
    let report = wait_for("a verification that finds it", || {
        let report = verify(&cluster, 0);
        if report["agreed"] == false { Ok(report) } else { Err(report.to_string()) }
    });
    let found = of(&report, "n4");
    assert_eq!((&found["state"], &report["keys"]), (&"differs".into(), &all.into()), "{report}");
    assert_eq!(found["doubt"]["keys"], serde_json::json!([format!("\"small/{wanted:05}\"")]), "{report}");
    let (why, how) = wait_repaired(&mut cluster, mirror);
    assert!(why.contains(&format!("small/{wanted:05}")), "{why}");
    // Where it is wrong is not proven, so nothing of it is taken over.
    assert!(how.starts_with("by a full copy"), "{how}");
    assert_all_agree(&mut cluster);
    cluster.assert_same_content();
}

/// A lower bound alone: how long it takes beyond that is up to the machine.
#[test]
fn a_verification_keeps_to_its_rate() {
    const RATE: u64 = 512 << 10;
    let cluster = Plan::new(1, 0).seals_early().flag("--verify-bytes-per-second", "512KiB").start();
    for key in 0..KEYS / 2 {
        cluster.put_until_done(0, &format!("key/{key:06}"), &value(key));
    }
    let report = verify(&cluster, 0);
    let (read, took) = (of(&report, "n1")["scrubbed_bytes"].as_u64().unwrap(), report["seconds"].as_f64().unwrap());
    assert!(read as usize > KEYS / 2 * VALUE_BYTES / 2, "{report}");
    // The contents are as much again, but for what is left of a range when it ends.
    let least = (read + report["bytes"].as_u64().unwrap() - RATE) as f64 / RATE as f64;
    assert!(took >= least, "{took} s for what takes {least} s: {report}");
}

//! A member that was away for longer than the log reaches back gets what it lacks, not everything. In bytes, on real
//! processes.

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Connection, Request};
use crate::support::scrape::Metrics;
use crate::support::{Seed, wait_for};
use rand::Rng;

const KEYS: usize = 2000;
/// One in a hundred.
const CHANGED: usize = KEYS / 100;
/// How often they are changed, at least.
const ROUNDS: usize = 30;
const VALUE_BYTES: usize = 32 << 10;

/// The log reaches back for 2 MiB, and old versions go soon.
fn short(plan: Plan) -> Plan {
    plan.seals_early().flag("--history-keep-ms", "200ms").flag("--history-keep-revisions", "10")
}

fn value(key: usize, round: usize) -> String {
    format!("{key:06} {round:06} ").repeat(VALUE_BYTES / 14)
}

/// Writes keys one after the other on one connection.
fn write(cluster: &Cluster, at: usize, keys: usize, round: usize) {
    let mut connection = Connection::open(cluster.client(at)).unwrap();
    for key in 0..keys {
        let put = Request::new("PUT", &format!("/v1/kv/key/{key}")).body(value(key, round));
        // On a busy machine a leader may lose its place for a moment.
        wait_for("a write", || {
            let answer = put.try_send_on(&mut connection).unwrap();
            assert!([200, 201, 503, 504].contains(&answer.status), "{answer}");
            if answer.status < 300 { Ok(()) } else { Err(answer.to_string()) }
        });
    }
}

fn sum(cluster: &Cluster, name: &str, labels: &[&str]) -> u64 {
    let figures = cluster.running().into_iter().map(|member| Metrics::of(cluster.client(member)).sum(name, labels));
    figures.sum::<f64>() as u64
}

fn copies(cluster: &Cluster, kind: &str) -> (u64, u64) {
    let label = format!("kind=\"{kind}\"");
    let figure = |name| sum(cluster, name, &[&label]);
    (figure("lifeboat_copies_sent_total"), figure("lifeboat_copies_sent_bytes_total"))
}

/// Overwrites one key in a hundred until the log no longer begins where the missing member would go on.
fn leave_behind(cluster: &Cluster, at: usize, missing_from: u64) -> usize {
    let mut round = 0;
    wait_for("the leader to drop its old log", || {
        // So much that what compaction leaves of it is seen in the size of the whole.
        for _ in 0..ROUNDS {
            round += 1;
            write(cluster, at, CHANGED, round);
        }
        let leader = cluster.wait_leader();
        let first = Metrics::of(cluster.client(leader)).sum("lifeboat_wal_first_index", &[]) as u64;
        if first > missing_from + 1 { Ok(round) } else { Err(format!("it still begins at {first}")) }
    })
}

fn last_index(cluster: &Cluster, member: usize) -> u64 {
    cluster.status(member).unwrap()["last_index"].as_u64().unwrap()
}

/// Waits until compaction has nothing more to gain at any member that runs. What is sealed it follows only when the floors
/// are sealed too, which a tail that does not become full puts off; so each member is stopped once, which seals all.
fn wait_compacted(cluster: &mut Cluster) {
    let newest = cluster.put_until_done(cluster.wait_leader(), "mark", "x");
    wait_for("the floor to pass what was written", || {
        // Floors follow writes.
        let leader = cluster.wait_leader();
        cluster.put_until_done(leader, "tick", "x");
        let floor = Metrics::of(cluster.client(leader)).sum("lifeboat_read_floor", &[]) as u64;
        if floor > newest { Ok(()) } else { Err(format!("it is at {floor}, not behind {newest}")) }
    });
    for member in cluster.running() {
        assert!(cluster.stop(member).success());
        cluster.start_member(member);
        cluster.wait_ready(member);
    }
    for member in cluster.running() {
        let idle = || Metrics::of(cluster.client(member)).sum("lifeboat_compaction_idle_looks_total", &[]) as u64;
        let before = idle();
        wait_for("compaction to find nothing more", || {
            // The look that is under way may have begun before the member was sealed.
            if idle() >= before + 2 { Ok(()) } else { Err(format!("{} looks", idle() - before)) }
        });
    }
}

#[test]
fn a_change_of_one_percent_costs_less_than_three_percent_of_a_full_copy() {
    let mut cluster = short(Plan::new(3, 0)).start();
    write(&cluster, 0, KEYS, 0);
    cluster.wait_converged();
    let away = (cluster.wait_leader() + 1) % 3;
    let missing_from = last_index(&cluster, away);
    cluster.kill(away);
    let at = cluster.wait_leader();
    let rounds = leave_behind(&cluster, at, missing_from);
    wait_compacted(&mut cluster);
    let before = (copies(&cluster, "full"), copies(&cluster, "delta"));
    cluster.start_member(away);
    cluster.wait_all_ready();
    cluster.wait_converged();
    Metrics::wait_copies(&cluster.clients(), &["kind=\"delta\""], before.1.0 as f64 + 1.0);
    let (full, delta) = (copies(&cluster, "full"), copies(&cluster, "delta"));
    assert_eq!(full, before.0, "nothing but what it lacked was sent");
    assert_eq!(delta.0, before.1.0 + 1);
    let delta_bytes = delta.1 - before.1.1;
    cluster.assert_same_content();
    for key in [0, CHANGED - 1] {
        assert_eq!(cluster.get(away, &format!("key/{key}")).unwrap(), value(key, rounds));
    }
    assert_eq!(cluster.get(away, &format!("key/{CHANGED}")).unwrap(), value(CHANGED, 0));

    // A newcomer lacks everything: that is what a full copy costs.
    let newcomer = cluster.add_member("mirror", "west");
    cluster.start_member(newcomer);
    cluster.wait_all_ready();
    cluster.wait_converged();
    Metrics::wait_copies(&cluster.clients(), &["kind=\"full\""], full.0 as f64 + 1.0);
    let newcomers = copies(&cluster, "full");
    assert_eq!(newcomers.0, full.0 + 1);
    let full_bytes = newcomers.1 - full.1;
    println!("a delta of {delta_bytes} bytes, a full copy of {full_bytes}: {}%", 100 * delta_bytes / full_bytes);
    assert!(full_bytes > (KEYS * VALUE_BYTES) as u64, "{full_bytes}");
    assert!(delta_bytes * 100 < full_bytes * 3, "a delta of {delta_bytes} bytes, a full copy of {full_bytes}");
    cluster.assert_same_content();
}

#[test]
fn a_member_that_dies_while_it_catches_up_goes_on_afterwards() {
    let seed = Seed::for_test("a_member_that_dies_while_it_catches_up_goes_on_afterwards");
    let mut rng = seed.rng(0);
    let mut cluster = short(Plan::new(3, 0)).start();
    write(&cluster, 0, KEYS / 4, 0);
    cluster.wait_converged();
    for round in 0..3 {
        let away = (cluster.wait_leader() + 1 + round % 2) % 3;
        let missing_from = last_index(&cluster, away);
        cluster.kill(away);
        let at = cluster.wait_leader();
        leave_behind(&cluster, at, missing_from);
        for _ in 0..4 {
            cluster.start_member(away);
            // Somewhere between its first words and its last frame.
            let moment = rng.random_range(0..200);
            let applied = cluster.status(at).unwrap()["applied_index"].as_u64().unwrap();
            let mut looks = 0;
            wait_for("a moment to die in", || {
                looks += 1;
                let there = cluster.status(away).is_ok_and(|s| s["applied_index"].as_u64() >= Some(applied));
                if looks >= moment / 10 || there { Ok(()) } else { Err("not yet".into()) }
            });
            cluster.kill(away);
        }
        cluster.start_member(away);
        cluster.wait_all_ready();
        cluster.wait_converged();
        cluster.assert_same_content();
    }
    http::get(cluster.client(0), "/v1/kv/key/0").expect(200);
}

/// Bytes of copies, also of the rest of one that was cut, that the first three members have sent, also before they died.
struct Sent {
    dead: u64,
}

impl Sent {
    fn of(cluster: &Cluster, member: usize) -> u64 {
        Metrics::of(cluster.client(member)).sum("lifeboat_copies_sent_bytes_total", &[]) as u64
    }

    fn bytes(&self, cluster: &Cluster) -> u64 {
        self.dead + (0..3).map(|member| Sent::of(cluster, member)).sum::<u64>()
    }

    /// Waits until so much was sent after `before`; looks often, because a copy is quick.
    fn wait_more(&self, cluster: &Cluster, before: u64, bytes: u64) -> u64 {
        wait_for("some of the copy", || {
            let sent = self.bytes(cluster) - before;
            if sent >= bytes { Ok(sent) } else { Err(format!("{sent} bytes")) }
        })
    }
}

/// What is cut goes on where it was cut, also from another leader: little is sent again, and not all of it. That holds above
/// the delta floor (below it tombstones may be gone meanwhile, and the copy begins again), which a member that is away
/// holds back here.
#[test]
fn a_copy_that_is_cut_by_the_death_of_either_side_costs_little_more_than_one() {
    // What is compressed as well as these values lies in buffers on the way as a whole.
    // So slow is the link that the copy is surely under way when it is cut.
    let plan = short(Plan::new(3, 1)).flag("--link-compression", "off").flag("--link-bandwidth-bytes", "8MiB");
    let mut cluster = plan.start();
    cluster.kill(3);
    write(&cluster, 0, KEYS, 0);
    cluster.wait_converged();
    let whole = (KEYS * VALUE_BYTES) as u64;
    for leader_dies in [false, true] {
        let mut sent = Sent { dead: 0 };
        let before = sent.bytes(&cluster);
        let newcomer = cluster.add_member("mirror", "west");
        cluster.start_member(newcomer);
        // Some megabytes are counted as sent that lie in buffers on the way and are lost; so it is cut once, late.
        let cut_at = sent.wait_more(&cluster, before, whole * 3 / 5);
        assert!(cut_at < whole, "the copy was complete before it could be cut");
        if leader_dies {
            let leader = cluster.wait_leader();
            sent.dead += Sent::of(&cluster, leader);
            cluster.kill(leader);
            cluster.wait_other_leader(leader);
            cluster.start_member(leader);
            cluster.wait_ready(leader);
        } else {
            cluster.kill(newcomer);
            cluster.start_member(newcomer);
        }
        cluster.wait_ready(newcomer);
        cluster.wait_converged();
        let bytes = sent.bytes(&cluster) - before;
        println!("cut at {cut_at}, leader dies: {leader_dies}: {bytes} bytes were sent, {whole} in values");
        assert!(bytes * 10 < whole * 13, "{bytes} bytes were sent of a copy of {whole}, cut at {cut_at}");
        cluster.assert_same_content();
    }
}

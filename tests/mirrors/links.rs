//! The link between two sites: the proxy that stands for it, and what members make of it. Real processes, real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::address::Addresses;
use crate::support::cluster::{Cluster, Plan};
use crate::support::link::{Link, Way};
use crate::support::{http, wait_for};

/// What a member in `west` sends first when it dials.
const HEAD_OF_WEST: &str = "GET / HTTP/1.1\r\nLifeboat-From: 00000000000000ee\r\n\r\n";
/// What a member in `east` sends first when it dials.
const HEAD_OF_EAST: &str = "GET / HTTP/1.1\r\nLifeboat-From: 00000000000000aa\r\n\r\n";

/// A gate in front of a server in `east` that sends back what it gets, and the directories of a member of each site.
struct Gate {
    link: Link,
    address: SocketAddr,
    _addresses: Addresses,
    _directory: tempfile::TempDir,
}

impl Gate {
    fn open() -> Gate {
        let addresses = Addresses::reserve();
        let directory = tempfile::tempdir().unwrap();
        let member = |name: &str, id: &str| {
            let data = directory.path().join(name);
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("member.json"), format!("{{\"member_id\":\"{id}\"}}")).unwrap();
            data
        };
        let server = TcpListener::bind(addresses.peer(0)).unwrap();
        std::thread::spawn(move || {
            for connection in server.incoming() {
                std::thread::spawn(move || {
                    let mut connection = connection.unwrap();
                    let mut back = connection.try_clone().unwrap();
                    // The other end is cut in the tests: then there is no more to send back.
                    let _ = std::io::copy(&mut connection, &mut back);
                    let _ = back.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        let link = Link::new();
        link.open_gate(addresses.gate(0), addresses.peer(0), "east", member("n1", "00000000000000aa"));
        link.open_gate(addresses.gate(1), addresses.peer(1), "west", member("n2", "00000000000000ee"));
        Gate { link, address: addresses.gate(0), _addresses: addresses, _directory: directory }
    }

    /// A connection that has sent this head.
    fn dial(&self, head: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(support::PATIENCE)).unwrap();
        connection.write_all(head.as_bytes()).unwrap();
        connection
    }

    /// A connection that has sent this head and got it back.
    fn connect(&self, head: &str) -> TcpStream {
        let mut connection = self.dial(head);
        expect_back(&mut connection, head.as_bytes());
        connection
    }
}

fn expect_back(connection: &mut TcpStream, sent: &[u8]) {
    let mut back = vec![0; sent.len()];
    connection.read_exact(&mut back).unwrap();
    assert!(back == sent, "other bytes came back");
}

fn is_cut(connection: &mut TcpStream) -> bool {
    matches!(connection.read(&mut [0]), Ok(0) | Err(_))
}

fn arrives_at_once(connection: &mut TcpStream) -> bool {
    connection.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let arrived = connection.read_exact(&mut [0]).is_ok();
    connection.set_read_timeout(Some(support::PATIENCE)).unwrap();
    arrived
}

#[test]
fn a_delay_holds_for_each_way_and_costs_no_throughput() {
    let gate = Gate::open();
    let mut connection = gate.connect(HEAD_OF_WEST);
    gate.link.delay(Duration::from_millis(50));
    let start = Instant::now();
    connection.write_all(b"ping").unwrap();
    expect_back(&mut connection, b"ping");
    assert!(start.elapsed() >= Duration::from_millis(100), "a round trip took {:?}", start.elapsed());

    // Chunk after chunk, each waiting for the one before, would take at least 256 × 100 ms.
    let sent: Vec<u8> = (0..8u32 << 20).map(|i| (i % 251) as u8).collect();
    let start = Instant::now();
    let mut writer = connection.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    expect_back(&mut connection, &sent);
    writing.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(12), "8 MiB took {:?}", start.elapsed());
    let expected = (sent.len() + 4 + HEAD_OF_WEST.len()) as u64;
    wait_for("all bytes to be counted", || {
        let counted = (gate.link.bytes(Way::ToEast), gate.link.bytes(Way::ToWest));
        if counted == (expected, expected) { Ok(()) } else { Err(format!("{counted:?} of {expected}")) }
    });
}

#[test]
fn a_rate_bounds_one_direction() {
    let gate = Gate::open();
    let mut connection = gate.connect(HEAD_OF_WEST);
    gate.link.rate(Way::ToEast, Some(1 << 20));
    let sent = vec![7; 512 << 10];
    let start = Instant::now();
    connection.write_all(&sent).unwrap();
    expect_back(&mut connection, &sent);
    assert!(start.elapsed() >= Duration::from_millis(490), "half a second's worth took {:?}", start.elapsed());
    gate.link.clean();
    let start = Instant::now();
    connection.write_all(&sent).unwrap();
    expect_back(&mut connection, &sent);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_stall_holds_bytes_and_a_heal_delivers_them() {
    let gate = Gate::open();
    let mut connection = gate.connect(HEAD_OF_WEST);
    // Towards the server goes on, the answers stand still.
    gate.link.one_way(Way::ToEast);
    let (before, back) = (gate.link.bytes(Way::ToEast), gate.link.bytes(Way::ToWest));
    connection.write_all(b"x12345").unwrap();
    wait_for("the bytes to reach the server", || match gate.link.bytes(Way::ToEast) - before {
        6 => Ok(()),
        bytes => Err(format!("{bytes} bytes did")),
    });
    assert!(!arrives_at_once(&mut connection));
    assert_eq!(gate.link.bytes(Way::ToWest), back);
    gate.link.stall();
    connection.write_all(b"67890").unwrap();
    let mut late = gate.dial(HEAD_OF_WEST);
    gate.link.heal();
    expect_back(&mut connection, b"x1234567890");
    expect_back(&mut late, HEAD_OF_WEST.as_bytes());
}

#[test]
fn a_cut_ends_connections_and_refuses_new_ones_until_it_heals() {
    let gate = Gate::open();
    let mut east = gate.connect(HEAD_OF_EAST);
    let mut west = gate.connect(HEAD_OF_WEST);
    // What is dialled from the other side is cut alone.
    gate.link.cut_way(Way::ToWest);
    west.write_all(b"on").unwrap();
    expect_back(&mut west, b"on");
    gate.link.cut();
    assert!(is_cut(&mut west));
    assert!(is_cut(&mut gate.dial(HEAD_OF_WEST)));
    // A connection within the site passes untouched.
    let counted = gate.link.bytes(Way::ToEast);
    east.write_all(b"here").unwrap();
    expect_back(&mut east, b"here");
    gate.connect(HEAD_OF_EAST);
    assert_eq!(gate.link.bytes(Way::ToEast), counted);
    gate.link.heal();
    gate.connect(HEAD_OF_WEST);
    assert!(gate.link.bytes(Way::ToEast) > counted);
}

/// How one put is answered.
fn put(cluster: &Cluster, at: usize, key: &str) -> u16 {
    http::put(cluster.client(at), &format!("/v1/kv/{key}"), "value").status
}

#[test]
fn all_that_passes_between_sites_crosses_the_link() {
    let cluster = Plan::new(3, 1).linked().start();
    let leader = cluster.wait_leader();
    cluster.put_until_done(leader, "a", "before");
    cluster.wait_converged();
    let link = cluster.link();
    // What the leader sends and the mirror answers.
    let before = (link.bytes(Way::ToWest), link.bytes(Way::ToEast));
    cluster.put_until_done(leader, "a", &"x".repeat(10_000));
    cluster.wait_converged();
    assert!(link.bytes(Way::ToWest) > before.0, "nothing crossed to the mirror");
    // What the mirror asks and forwards.
    let before = link.bytes(Way::ToEast);
    cluster.put_until_done(3, "b", &"0123456789abcdef".repeat(10_000));
    assert!(link.bytes(Way::ToEast) - before > 100_000, "a write through the mirror did not cross");
    assert_eq!(cluster.get(3, "b").unwrap().len(), 160_000);

    // A round trip of a read at the mirror takes as long as the link.
    link.delay(Duration::from_millis(100));
    let start = Instant::now();
    cluster.get(3, "a").unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200), "a read took {:?}", start.elapsed());

    link.cut();
    wait_for("a write at the mirror to fail", || match put(&cluster, 3, "c") {
        503 | 504 => Ok(()),
        status => Err(format!("it is answered with {status}")),
    });
    assert!(matches!(put(&cluster, leader, "d"), 200 | 201), "voters do not need the link");
    link.heal();
    cluster.put_until_done(3, "e", "after");
    cluster.assert_same_content();
}

/// A record as an application keeps them, no two the same.
fn json_value(number: usize) -> String {
    let record = |i: usize| {
        format!(
            r#"{{"id":{},"customer":"customer-{}","street":"Lindenstrasse {}","active":{},"balance_cents":{}}}"#,
            number * 20 + i,
            number.wrapping_mul(2_654_435_761) % 100_000,
            i * 7 % 120,
            (number + i).is_multiple_of(3),
            number.wrapping_mul(40_503) % 1_000_000,
        )
    };
    format!("[{}]", (0..20).map(record).collect::<Vec<_>>().join(","))
}

/// The name by which metrics know a member, as a label.
fn of_member(cluster: &Cluster, member: usize) -> String {
    format!("member=\"{}\"", cluster.member(member).name)
}

#[test]
fn json_values_cross_the_link_in_less_than_half_by_log_and_by_copy() {
    let mut cluster =
        Plan::new(1, 1).flag("--wal-keep-bytes", "1MiB").flag("--wal-segment-bytes", "256KiB").linked().start();
    let put = |cluster: &Cluster, from: usize, to: usize| {
        (from..to)
            .map(|number| {
                let value = json_value(number);
                cluster.put_until_done(0, &format!("customers/{number}"), &value);
                value.len() as u64
            })
            .sum::<u64>()
    };
    // By the log.
    let before = cluster.link().bytes(Way::ToWest);
    let payload = put(&cluster, 0, 300);
    cluster.wait_converged();
    let crossed = cluster.link().bytes(Way::ToWest) - before;
    assert!(payload > 500_000 && crossed * 2 < payload, "{crossed} bytes crossed for {payload}");
    let metrics = support::scrape::Metrics::of(cluster.client(0));
    let mirror = of_member(&cluster, 1);
    let sent = metrics.sum("lifeboat_link_sent_bytes_total", &[&mirror]);
    let before_compression = metrics.sum("lifeboat_link_payload_bytes_total", &[&mirror]);
    assert!(sent > 0.0 && sent * 2.0 < before_compression && before_compression > payload as f64, "{sent}");

    // By a copy.
    cluster.kill(1);
    let payload = put(&cluster, 300, 1500);
    wait_for("the log that the mirror lacks to be gone", || {
        let metrics = support::scrape::Metrics::of(cluster.client(0));
        let first = metrics.sum("lifeboat_wal_first_index", &[]);
        if first > 600.0 { Ok(()) } else { Err(format!("it begins at {first}")) }
    });
    let before = cluster.link().bytes(Way::ToWest);
    cluster.start_member(1);
    cluster.wait_ready(1);
    cluster.assert_same_content();
    let crossed = cluster.link().bytes(Way::ToWest) - before;
    assert!(crossed * 2 < payload, "{crossed} bytes crossed for {payload}");
    support::scrape::Metrics::wait_copies(&[cluster.client(0)], &[], 1.0);
}

#[test]
fn a_cap_is_kept_and_commits_go_on_meanwhile() {
    const CAP: u64 = 256 << 10;
    let cluster = Plan::new(3, 1).flag("--link-bandwidth-bytes", "256KiB").linked().start();
    let leader = cluster.wait_leader();
    // What cannot be compressed, so that what is put is what crosses.
    let mut seed = rand::rng();
    let mut noise =
        || (0..32 << 10).map(|_| char::from(rand::Rng::random_range(&mut seed, 33..=126u8))).collect::<String>();
    let values: Vec<String> = (0..48).map(|_| noise()).collect();
    let start = Instant::now();
    let before = cluster.link().bytes(Way::ToWest);
    for (number, value) in values.iter().enumerate() {
        cluster.put_until_done(leader, &format!("bulk/{number}"), value);
    }
    wait_for("the mirror to have it all", || {
        let (ours, theirs) = (cluster.status(leader)?["revision"].clone(), cluster.status(3)?["revision"].clone());
        if ours == theirs { Ok(()) } else { Err(format!("it is at {theirs} of {ours}")) }
    });
    let took = start.elapsed();
    let rate = (cluster.link().bytes(Way::ToWest) - before) as f64 / took.as_secs_f64();
    // Other messages than log and copies cross too, and are not counted by the cap.
    assert!(rate < 1.15 * CAP as f64, "{rate} bytes a second under a cap of {CAP}");

    // However little passes: what is committed meanwhile the mirror cannot have.
    cluster.link().stall_way(Way::ToWest);
    for (number, value) in values.iter().enumerate() {
        cluster.put_until_done(leader, &format!("more/{number}"), value);
    }
    let (ours, theirs) = (cluster.status(leader).unwrap(), cluster.status(3).unwrap());
    assert!(theirs["revision"].as_u64() < ours["revision"].as_u64(), "commits waited for the mirror: {theirs}");
    cluster.link().heal();
    cluster.wait_converged();
    cluster.assert_same_content();
}

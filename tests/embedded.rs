//! Members in this process, over real sockets: the path of a write and of a read below the clients' edge, joining,
//! hand-over, restart. Real processes are in the other tests; here one can look inside.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lifeboat::config::Config;
use lifeboat::metrics::Metrics;
use lifeboat::model::{Condition, Guard, KeySpace, MemberRole, OpResult, Outcome, WriteCommand, WriteOp};
use lifeboat::node::{Addresses, HealthCheck, Node, NodeError, RequestContext};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);

struct Member {
    node: Node,
    peer_url: String,
    server: tokio::task::JoinHandle<()>,
}

/// Starts a member in `dir`; without a peer to join it founds a cluster. `listen` keeps the address over a restart.
async fn start(name: &str, role: MemberRole, dir: &Path, join: Option<&str>, listen: Option<SocketAddr>) -> Member {
    let listener = tokio::net::TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await.unwrap();
    let peer_url = format!("http://{}", listener.local_addr().unwrap());
    start_at(name, role, dir, join, listener, peer_url, 512 << 20).await
}

/// Starts a member that serves its peers on `listener`, tells them `peer_url`, and keeps so many bytes of log.
async fn start_at(
    name: &str,
    role: MemberRole,
    dir: &Path,
    join: Option<&str>,
    listener: tokio::net::TcpListener,
    peer_url: String,
    wal_keep_bytes: u64,
) -> Member {
    // Shown when the test fails; the first of the tests in this process sets it up.
    let _ =
        tracing_subscriber::fmt().with_env_filter("info,openraft=error").with_test_writer().with_ansi(false).try_init();
    let config = Config {
        role,
        bootstrap: join.is_none(),
        join: join.map(str::to_string).into_iter().collect(),
        wal_segment_bytes: 1 << 20,
        wal_keep_bytes,
        request_timeout_ms: 2_000,
        ..Config::new(name, dir.join(name))
    };
    let addresses = Addresses { client_url: format!("http://client.of.{name}"), peer_url: peer_url.clone() };
    let node = Node::start(&config, addresses, Arc::new(Metrics::new())).await.unwrap();
    let router = lifeboat::http::peer::router(node.clone());
    let listener = listener.into_std().unwrap();
    let server = node.runtime().spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    Member { node, peer_url, server }
}

impl Member {
    fn address(&self) -> SocketAddr {
        self.peer_url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    async fn stop(self) {
        self.node.stop().await.unwrap();
        self.server.abort();
    }
}

fn ctx() -> RequestContext {
    RequestContext::anonymous(1, Duration::from_secs(10))
}

fn put(key: &'static str, value: &str) -> WriteCommand {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    WriteCommand { ops: vec![WriteOp::Put { space: KeySpace::User, key, value, lease: 0 }], ..Default::default() }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn value(node: &Node, key: &str) -> Option<Vec<u8>> {
    node.store().get(KeySpace::User, key.as_bytes(), None).unwrap().map(|kv| kv.value.to_vec())
}

fn voters(node: &Node) -> usize {
    node.members().iter().filter(|m| m.role == MemberRole::Voter && !m.joining).count()
}

#[tokio::test]
async fn a_single_member_writes_reads_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let member = start("n1", MemberRole::Voter, dir.path(), None, None).await;
    eventually("ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    eventually("founded", || member.node.status().cluster.is_some()).await;
    let outcome = member.node.write(&ctx(), put("a", "1")).await.unwrap();
    let Outcome::Written { revision, results } = outcome else { panic!("{outcome:?}") };
    assert!(matches!(results[..], [OpResult::Put { previous: None, .. }]));
    let guard = Guard { key: Bytes::from_static(b"a"), condition: Condition::Absent };
    let refused = member.node.write(&ctx(), WriteCommand { guards: vec![guard], ..put("a", "2") }).await.unwrap();
    assert!(matches!(refused, Outcome::Refused { current: Some(meta), .. } if meta.mod_revision == revision));
    member.node.read_barrier(&ctx()).await.unwrap();
    assert_eq!(value(&member.node, "a").as_deref(), Some(&b"1"[..]));
    member.stop().await;

    let member = start("n1", MemberRole::Voter, dir.path(), None, None).await;
    eventually("ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    member.node.read_barrier(&ctx()).await.unwrap();
    assert_eq!(value(&member.node, "a").as_deref(), Some(&b"1"[..]));
    member.stop().await;
}

#[tokio::test]
async fn any_member_takes_writes_and_linearizable_reads() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = start("n1", MemberRole::Voter, dir.path(), None, None).await;
    let join = n1.peer_url.clone();
    let n2 = start("n2", MemberRole::Voter, dir.path(), Some(&join), None).await;
    let n3 = start("n3", MemberRole::Voter, dir.path(), Some(&n2.peer_url), None).await;
    let m1 = start("m1", MemberRole::Mirror, dir.path(), Some(&n3.peer_url), None).await;
    let all = [&n1, &n2, &n3, &m1];
    for member in all {
        eventually("three voters", || voters(&member.node) == 3 && member.node.members().len() == 4).await;
        eventually("ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    }
    for (writer, text) in all.iter().zip(["one", "two", "three", "four"]) {
        writer.node.write(&ctx(), put("k", text)).await.unwrap();
        for reader in all {
            reader.node.read_barrier(&ctx()).await.unwrap();
            assert_eq!(value(&reader.node, "k").as_deref(), Some(text.as_bytes()));
        }
    }
    // A mirror cannot lead, a voter can; the write after it goes to the new leader.
    let mirror = n1.node.transfer_leader(&ctx(), Some("m1".into())).await;
    assert!(matches!(mirror, Err(lifeboat::node::NodeError::NotAVoter { .. })), "{mirror:?}");
    let unknown = m1.node.transfer_leader(&ctx(), Some("nobody".into())).await;
    assert!(matches!(unknown, Err(lifeboat::node::NodeError::UnknownMember { .. })), "{unknown:?}");
    let moved = m1.node.transfer_leader(&ctx(), Some("n2".into())).await.unwrap();
    assert_eq!(moved.leader, "n2");
    eventually("n2 leads", || n2.node.health(HealthCheck::Leader).is_ok()).await;
    // A member that still asks the old leader is told that there is none, for a moment.
    for member in all {
        eventually("all know it", || member.node.leader_name().as_deref() == Some("n2")).await;
    }
    m1.node.write(&ctx(), put("k", "five")).await.unwrap();
    n3.node.read_barrier(&ctx()).await.unwrap();
    assert_eq!(value(&n3.node, "k").as_deref(), Some(&b"five"[..]));

    // A leader that stops hands over first; it comes back as a follower with everything.
    let address = n2.address();
    n2.stop().await;
    for member in [&n1, &n3, &m1] {
        eventually("another leads", || member.node.leader_name().is_some_and(|name| name != "n2")).await;
        eventually("ready", || member.node.health(HealthCheck::Ready).is_ok()).await;
    }
    m1.node.write(&ctx(), put("k", "six")).await.unwrap();
    let n2 = start("n2", MemberRole::Voter, dir.path(), Some(&join), Some(address)).await;
    eventually("ready", || n2.node.health(HealthCheck::Ready).is_ok()).await;
    n2.node.read_barrier(&ctx()).await.unwrap();
    assert_eq!(value(&n2.node, "k").as_deref(), Some(&b"six"[..]));
    let chains: Vec<_> = [&n1, &n2, &n3].iter().map(|m| m.node.store().chain_at(3).unwrap()).collect();
    assert!(chains.windows(2).all(|pair| pair[0] == pair[1]), "{chains:?}");
    for member in [m1, n3, n2, n1] {
        member.stop().await;
    }
}

#[tokio::test]
async fn a_member_that_lost_its_log_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    start("n1", MemberRole::Voter, dir.path(), None, None).await.stop().await;
    std::fs::remove_dir_all(dir.path().join("n1/wal")).unwrap();
    let config = Config { bootstrap: true, ..Config::new("n1", dir.path().join("n1")) };
    let addresses = Addresses { client_url: "http://c".into(), peer_url: "http://p".into() };
    let refused = Node::start(&config, addresses, Arc::new(Metrics::new())).await.map(|_| ());
    assert!(matches!(refused, Err(lifeboat::node::StartError::LogLost { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_member_that_comes_back_elsewhere_tells_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = start("n1", MemberRole::Voter, dir.path(), None, None).await;
    let m1 = start("m1", MemberRole::Mirror, dir.path(), Some(&n1.peer_url), None).await;
    eventually("m1 is ready", || m1.node.health(HealthCheck::Ready).is_ok()).await;
    m1.stop().await;
    let m1 = start("m1", MemberRole::Mirror, dir.path(), Some(&n1.peer_url), None).await;
    let known_as = |seen_by: &Node, name: &str| {
        seen_by.members().into_iter().find(|m| m.name == name).map(|m| m.peer_url).unwrap()
    };
    eventually("m1 is known at its new address", || known_as(&n1.node, "m1") == m1.peer_url).await;
    n1.node.write(&ctx(), put("a", "1")).await.unwrap();
    eventually("m1 has what is written since", || value(&m1.node, "a").is_some()).await;
    eventually("m1 is ready", || m1.node.health(HealthCheck::Ready).is_ok()).await;
    n1.stop().await;
    let n1 = start("n1", MemberRole::Voter, dir.path(), None, None).await;
    eventually("n1 is known at its new address", || known_as(&n1.node, "n1") == n1.peer_url).await;
    eventually("m1 follows it there", || known_as(&m1.node, "n1") == n1.peer_url).await;
    m1.stop().await;
    n1.stop().await;
}

#[tokio::test]
async fn a_leader_without_a_quorum_says_that_nothing_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = start("n1", MemberRole::Voter, dir.path(), None, None).await;
    let n2 = start("n2", MemberRole::Voter, dir.path(), Some(&n1.peer_url), None).await;
    eventually("two voters", || voters(&n1.node) == 2 && n1.node.health(HealthCheck::Leader).is_ok()).await;
    n2.node.close().await.unwrap();
    n2.server.abort();
    // More batches than may be proposed at the same time, while the leader still believes in its lease.
    let mut lost = Vec::new();
    for _ in 0..8 {
        let node = n1.node.clone();
        lost.push(tokio::spawn(async move { node.write(&ctx(), put("a", "lost")).await }));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for write in lost {
        write.await.unwrap().unwrap_err();
    }
    eventually("the leader knows", || n1.node.health(HealthCheck::Leader).is_err()).await;
    let refused = n1.node.write(&ctx(), put("a", "refused")).await.unwrap_err();
    assert!(matches!(refused, NodeError::NoLeader { .. }), "{refused}");
    n1.stop().await;
}

/// A slow link to `target`: what goes there passes at so many bytes a second, and at once when that is 0.
async fn slow_link(target: SocketAddr, bytes_per_second: Arc<AtomicU64>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = tokio::net::TcpStream::connect(target).await else { continue };
            let rate = bytes_per_second.clone();
            let (mut near_read, mut near_write) = near.into_split();
            let (mut far_read, mut far_write) = far.into_split();
            tokio::spawn(async move {
                let mut chunk = vec![0; 16 << 10];
                while let Ok(n @ 1..) = near_read.read(&mut chunk).await {
                    let rate = rate.load(Ordering::Relaxed);
                    if rate > 0 {
                        // This is what a slow link is; nothing is waited for with it.
                        tokio::time::sleep(Duration::from_secs_f64(n as f64 / rate as f64)).await;
                    }
                    if far_write.write_all(&chunk[..n]).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move {
                // When either side hangs up the other is told by the end of its stream.
                let _ = tokio::io::copy(&mut far_read, &mut near_write).await;
            });
        }
    });
    address
}

fn metric(node: &Node, name: &str) -> f64 {
    let text = node.metrics().encode();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_string));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

#[tokio::test]
async fn a_slow_mirror_does_not_keep_the_log_and_gets_a_snapshot() {
    const KEEP: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = bind().await.unwrap();
    let peer_url = format!("http://{}", listener.local_addr().unwrap());
    let n1 = start_at("n1", MemberRole::Voter, dir.path(), None, listener, peer_url, KEEP).await;
    let rate = Arc::new(AtomicU64::new(0));
    let listener = bind().await.unwrap();
    let link = slow_link(listener.local_addr().unwrap(), rate.clone()).await;
    let peer_url = format!("http://{link}");
    let m1 = start_at("m1", MemberRole::Mirror, dir.path(), Some(&n1.peer_url), listener, peer_url, KEEP).await;
    eventually("m1 is ready", || m1.node.health(HealthCheck::Ready).is_ok()).await;

    // The mirror still takes entries, only far too slowly; the log is purged all the same.
    rate.store(512 << 10, Ordering::Relaxed);
    let value_of = |n: u32| vec![n as u8; 128 << 10];
    for n in 0..200u32 {
        let (key, value) = (Bytes::from(format!("k{n}")), Bytes::from(value_of(n)));
        let ops = vec![WriteOp::Put { space: KeySpace::User, key, value, lease: 0 }];
        n1.node.write(&ctx(), WriteCommand { ops, ..Default::default() }).await.unwrap();
    }
    let lacks = || n1.node.store().revision() - m1.node.store().revision();
    eventually("the log is within its bounds", || metric(&n1.node, "lifeboat_wal_bytes") <= 2.0 * KEEP as f64).await;
    assert!(lacks() > 0, "the mirror was meant to be too slow for this test");
    assert!(metric(&n1.node, "lifeboat_wal_first_index") > m1.node.status().last_index.unwrap() as f64);

    rate.store(0, Ordering::Relaxed);
    eventually("m1 has everything", || lacks() == 0).await;
    for n in [0, 99, 199] {
        assert_eq!(value(&m1.node, &format!("k{n}")), Some(value_of(n)));
    }
    m1.stop().await;
    n1.stop().await;
}

//! A disk that fills up fast: many clients with large values, against a quota and against a file system that is full in
//! truth. No member ends; growth is refused in time, everywhere; and what is deleted makes room without a hand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, Plan};
use crate::support::http::{self, Connection, Failure, Request};
use crate::support::wait_within;

const CLIENTS: usize = 32;
const VALUE_BYTES: usize = 1 << 20;
/// Each client is refused so often before it stops: the members stay full for a while.
const REFUSALS: usize = 5;
/// A client that has had so many answers that say what became of its write stops, refused or not.
const MOST: usize = 40;
const PATIENCE: Duration = Duration::from_secs(90);

fn plan() -> Plan {
    Plan::new(3, 0)
        .flag("--wal-segment-bytes", "4MiB")
        .flag("--wal-memory-bytes", "8MiB")
        .flag("--wal-keep-bytes", "16MiB")
        .flag("--tail-bytes", "4MiB")
        .flag("--history-keep-ms", "500ms")
        .flag("--history-keep-revisions", "20")
        .flag("--disk-reserve-bytes", "96MiB")
}

/// Writes large values until it was refused for want of room a few times.
fn fill(client: usize, members: &[SocketAddr], written: &AtomicU64) -> usize {
    let value = vec![b'a' + client as u8 % 26; VALUE_BYTES];
    let mut connection = None;
    let (mut refused, mut decided) = (0, 0);
    let start = Instant::now();
    for number in 0.. {
        if decided == MOST || start.elapsed() > PATIENCE {
            break;
        }
        let at = members[(client + number) % members.len()];
        let request = Request::new("PUT", &format!("/v1/kv/fill/{client}/{number}")).body(&value);
        let taken =
            connection.take().map_or_else(|| Connection::open_within(at, PATIENCE).map_err(Failure::NotSent), Ok);
        let answer = taken.and_then(|mut open| {
            let answer = request.try_send_on(&mut open)?;
            connection = (answer.header("connection") != Some("close")).then_some(open);
            Ok(answer)
        });
        match answer {
            Ok(answer) if answer.status < 300 => {
                decided += 1;
                written.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) if answer.status == 507 => {
                assert_eq!(answer.expect_problem(507, "no-room")["outcome"], "not-applied");
                (refused, decided) = (refused + 1, decided + 1);
                if refused == REFUSALS {
                    return refused;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            // A leader that is busy with so many bytes may lose its place.
            Ok(answer) => {
                assert!([429, 503, 504].contains(&answer.status), "{answer}");
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    refused
}

fn fills_up_and_recovers(cluster: &mut Cluster) {
    let members = cluster.clients();
    let written = AtomicU64::new(0);
    let refused: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (members, written) = (&members, &written);
                scope.spawn(move || fill(client, members, written))
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    println!("{} MiB were written, {refused} writes refused", written.load(Ordering::Relaxed));
    assert_eq!(refused, CLIENTS * REFUSALS, "the members never ran short");
    for member in 0..cluster.len() {
        let name = cluster.member(member).name.clone();
        let status = wait_within(PATIENCE, &format!("an answer of {name}"), || cluster.status(member));
        assert_eq!(status["name"], name);
        http::get(cluster.client(member), "/v1/kv/fill/0/0?consistency=stale");
    }
    wait_within(PATIENCE, "the deletion", || {
        let answer = http::delete(members[0], "/v1/keys?prefix=fill/");
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    for member in members {
        wait_within(PATIENCE, "room again", || {
            let answer = Request::new("PUT", "/v1/kv/again").body(vec![b'x'; VALUE_BYTES]).send(member);
            if answer.status < 300 { Ok(()) } else { Err(answer.to_string()) }
        });
    }
    cluster.assert_same_content();
}

#[test]
fn all_members_reach_their_quota_while_many_write_large_values() {
    let mut cluster = plan().flag("--disk-quota-bytes", "160MiB").start();
    fills_up_and_recovers(&mut cluster);
}

#[test]
fn one_member_reaches_its_quota_while_many_write_large_values() {
    let mut cluster = plan().prepare();
    cluster.member_mut(2).arguments.extend(["--disk-quota-bytes".into(), "160MiB".into()]);
    start(&mut cluster);
    fills_up_and_recovers(&mut cluster);
}

fn start(cluster: &mut Cluster) {
    cluster.start_member(0);
    cluster.wait_ready(0);
    cluster.start_member(1);
    cluster.start_member(2);
    cluster.wait_joined();
}

/// A small file system of its own.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, size: &str) -> Result<Mount, String> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "lifeboat-test"]).arg(at);
        match mount.output() {
            Ok(done) if done.status.success() => Ok(Mount(at.into())),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: when a test fails its member still runs there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn one_member_has_a_disk_that_is_full_in_truth() {
    let mut cluster = plan().prepare();
    let mount = match Mount::new(&cluster.member(2).data, "320m") {
        Ok(mount) => mount,
        Err(why) => return println!("skipped: no file system can be mounted here: {why}"),
    };
    start(&mut cluster);
    fills_up_and_recovers(&mut cluster);
    cluster.kill(2);
    drop(mount);
}

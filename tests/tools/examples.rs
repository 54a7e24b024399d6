//! The examples against a real cluster, as a person would run them.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::support::address::{Addresses, CLIENT_PORT, Permit};
use crate::support::cluster::{Cluster, Plan};
use crate::support::{PATIENCE, http};

/// Where an example lies, built if it is not yet.
fn example(name: &str) -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--offline", "--example", name]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // This test lies in <target>/<profile>/deps.
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    build.arg("--target-dir").arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().unwrap().success(), "{name} is built");
    profile.join("examples").join(name)
}

fn endpoints(cluster: &Cluster) -> String {
    let urls: Vec<String> = cluster.clients().iter().map(|address| format!("http://{address}")).collect();
    urls.join(",")
}

/// An example that runs, killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running { child, lines }
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line more")
    }

    /// All lines up to its end, which must be a good one.
    #[track_caller]
    fn rest(&mut self) -> Vec<String> {
        let lines = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).collect();
        assert!(self.child.wait().unwrap().success());
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_examples_run() {
    let cluster = Plan::new(3, 0).start();
    counter(&cluster);
    election(&cluster);
    config_watcher(&cluster);
}

/// Three voters and two mirrors, from the founding over a switchover, a forced failover and a rejoin to home again.
#[test]
fn the_whole_circle_of_disaster_recovery() {
    let _permit = Permit::acquire(5);
    let addresses = Addresses::reserve();
    let mut command = Command::new("bash");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/dr_drill.sh"));
    command.env("LIFEBOAT", env!("CARGO_BIN_EXE_lifeboat"));
    command.env("HOST", addresses.client(0).ip().to_string()).env("BASE_PORT", CLIENT_PORT.to_string());
    let lines = Running::start(command).rest();
    let last = lines.last().unwrap();
    assert!(last.starts_with("== all as it should be"), "{lines:#?}");
}

fn counter(cluster: &Cluster) {
    let program = example("counter");
    let mut counters: Vec<Running> = (0..3)
        .map(|_| {
            let mut command = Command::new(&program);
            command.args([&endpoints(cluster), "visits", "20"]);
            Running::start(command)
        })
        .collect();
    let mut counts: Vec<u64> =
        counters.iter_mut().flat_map(|counter| counter.rest()).map(|line| line.parse().unwrap()).collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=60).collect::<Vec<_>>(), "each step is counted once");
    assert_eq!(cluster.get(0, "visits").as_deref(), Some("60"));
}

fn election(cluster: &Cluster) {
    let program = example("election");
    let stand = |name: &str, turns: &str| {
        let mut command = Command::new(&program);
        command.args([&endpoints(cluster), "scheduler", name, turns]);
        Running::start(command)
    };
    let ann = stand("ann", "1000000");
    assert_eq!(ann.line(), "ann stands for scheduler");
    let leads = ann.line();
    let token: u64 = leads.strip_prefix("ann leads, token ").unwrap().parse().unwrap();
    let mut bob = stand("bob", "2");
    assert_eq!(bob.line(), "bob stands for scheduler");
    assert_eq!(ann.line(), format!("ann, token {token}, turn 1"));
    // Ended without a chance to resign: the lease ends her lead.
    drop(ann);
    let lines = bob.rest();
    let next: u64 = lines[0].strip_prefix("bob leads, token ").unwrap().parse().unwrap();
    assert!(next > token);
    assert_eq!(
        lines[1..],
        [format!("bob, token {next}, turn 1"), format!("bob, token {next}, turn 2"), "bob has resigned".into()]
    );
}

fn config_watcher(cluster: &Cluster) {
    cluster.put_until_done(0, "config/a", "1");
    let mut command = Command::new("bash");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/config_watcher.sh"));
    command.arg(format!("http://{}", cluster.client(0))).args(["config/", "echo changed at $REVISION"]);
    let watcher = Running::start(command);
    let first = watcher.line();
    assert!(first.starts_with("changed at "), "{first}");
    let put = http::put(cluster.client(1), "/v1/kv/config/a", "2").expect(200).json();
    assert_eq!(watcher.line(), format!("changed at {}", put["revision"]));
    http::put(cluster.client(1), "/v1/kv/other/a", "2").expect(201);
    let deleted = http::delete(cluster.client(1), "/v1/kv/config/a").expect(200).json();
    assert_eq!(watcher.line(), format!("changed at {}", deleted["revision"]));
}

//! The program as people run it: `lifeboat serve` and `lifeboat dev` as real processes, with their exit codes, what they
//! print, what they leave behind, and what happens when they are killed.
//!
//! Every test takes a loopback address of its own, so that all use the standard ports side by side.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Whoever holds this port on an address owns the address.
const RESERVATION_PORT: u16 = 7398;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address that no other test uses, for as long as this lives.
struct Host {
    ip: IpAddr,
    _reservation: TcpListener,
}

impl Host {
    fn reserve() -> Host {
        for _ in 0..4096 {
            let place = std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            // 127.1.0.0 to 127.8.255.255: other tests keep clear of it.
            let [_, _, c, d] = place.to_be_bytes();
            let ip = Ipv4Addr::new(127, 1 + (place >> 16) as u8 % 8, c, d);
            if d != 0
                && let Ok(reservation) = TcpListener::bind((ip, RESERVATION_PORT))
            {
                return Host { ip: ip.into(), _reservation: reservation };
            }
        }
        panic!("no loopback address is free");
    }
}

fn lifeboat(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LIFEBOAT_")) {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    lifeboat(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process whose standard output is read line by line. Killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        Running::spawn(lifeboat(arguments))
    }

    fn spawn(mut command: Command) -> Running {
        // The log is dropped: a pipe that nobody reads would fill up.
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines, seen: Vec::new() }
    }

    /// Waits for a line that contains `part`, which may not have been seen yet, and gives it.
    #[track_caller]
    fn wait_line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("waited in vain for a line with {part:?}; there were:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    fn signal(&self, signal: &str) {
        send_signal(signal, self.child.id());
    }

    #[track_caller]
    fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the process said:\n{}", self.seen.join("\n"));
        }
    }
}

fn send_signal(signal: &str, pid: u32) {
    let sent = Command::new("/bin/sh").arg("-c").arg(format!("kill -{signal} {pid}")).status().unwrap();
    assert!(sent.success(), "kill -{signal} {pid}");
}

/// Whether a process of this id runs (a zombie does not).
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One request on a connection of its own: status and body, or nothing when there was no answer.
fn ask(ip: IpAddr, port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((ip, port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).ok()?;
    let reply = text(&reply);
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Arguments of a single member in `dir`.
fn member(host: &Host, dir: &Path) -> Vec<String> {
    let ip = host.ip;
    ["serve", "--name", "n1", "--data-dir", dir.to_str().unwrap()]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("--client-listen={ip}:7400"), format!("--peer-listen={ip}:7401")])
        .chain(["--wal-segment-bytes=1MiB".to_owned()])
        .collect()
}

fn with<'a>(arguments: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

fn dev<'a>(ip: &'a str, dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let arguments = ["dev", "--host", ip, "--data-dir", dir];
    // Small files: what dev does, not how large logs become, is looked at here. And nobody loses the lead by being slow.
    let members = ["--", "--wal-segment-bytes=1MiB", "--election-min-ms=1500ms", "--election-max-ms=2s"];
    arguments.into_iter().chain(more.iter().copied()).chain(members).collect()
}

#[test]
fn check_prints_what_is_in_force_or_lists_every_error() {
    let valid = run(&["serve", "--check", "--name", "n1", "--data-dir", "somewhere", "--election-max-ms", "1s"]);
    let printed = text(&valid.stdout);
    assert_eq!(valid.status.code(), Some(0), "{}", text(&valid.stderr));
    assert!(printed.contains("configuration is valid"), "{printed}");
    assert!(printed.contains("election_max_ms = \"1s\"  # flag --election-max-ms"), "{printed}");
    assert!(!Path::new("somewhere").exists(), "--check made the data directory");

    let invalid = run(&["serve", "--check", "--role", "leader", "--heartbeat-ms", "x"]);
    let printed = text(&invalid.stderr);
    assert_eq!(invalid.status.code(), Some(2), "{printed}");
    for part in ["name: must be given", "role: ", "heartbeat_ms: ", "data_dir: must be given"] {
        assert!(printed.contains(part), "{part:?} is missing in\n{printed}");
    }
    assert_eq!(run(&["serve", "--no-such-flag"]).status.code(), Some(2));
}

#[test]
fn a_member_serves_drains_and_goes_on_with_its_data() {
    let (host, dir) = (Host::reserve(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    let arguments = member(&host, &data);

    // Without data and without being told where to get some it does not start.
    let lost = run(&with(&arguments, &[]));
    assert_eq!(lost.status.code(), Some(1));
    assert!(text(&lost.stderr).contains("--bootstrap"), "{}", text(&lost.stderr));
    let both = run(&with(&arguments, &["--bootstrap", "--join", "http://127.0.0.1:1"]));
    assert_eq!(both.status.code(), Some(1));
    assert!(text(&both.stderr).contains("not both"), "{}", text(&both.stderr));

    let mut first = Running::start(&with(&arguments, &["--bootstrap"]));
    let line = first.wait_line("serves clients at");
    assert!(line.contains(&format!("http://{}:7400", host.ip)), "{line}");
    let put = || ask(host.ip, 7400, "PUT", "/v1/kv/a", "1").is_some_and(|(status, _)| status == 201);
    eventually("the write is taken", put);

    // Neither its directory nor its ports can be used by another.
    let other = Host::reserve();
    let same_data = run(&with(&member(&other, &data), &["--bootstrap"]));
    assert_eq!(same_data.status.code(), Some(1));
    assert!(text(&same_data.stderr).contains("another process"), "{}", text(&same_data.stderr));
    let same_port = run(&with(&member(&host, &dir.path().join("other")), &["--bootstrap"]));
    assert_eq!(same_port.status.code(), Some(1));
    assert!(text(&same_port.stderr).contains("client_listen"), "{}", text(&same_port.stderr));

    first.signal("TERM");
    assert_eq!(first.wait_exit().code(), Some(0));
    assert!(ask(host.ip, 7400, "GET", "/health/live", "").is_none(), "nobody listens any more");

    let mut again = Running::start(&with(&arguments, &[]));
    again.wait_line("serves clients at");
    eventually("the value is back", || ask(host.ip, 7400, "GET", "/v1/kv/a", "") == Some((200, "1".to_owned())));

    again.signal("INT");
    assert_eq!(again.wait_exit().code(), Some(0));
}

#[test]
fn a_member_that_waits_for_its_cluster_stops_when_told() {
    let (host, dir) = (Host::reserve(), tempfile::tempdir().unwrap());
    let arguments = member(&host, &dir.path().join("data"));
    let nobody = format!("--join=http://{}:7999", host.ip);
    let mut waiting = Running::start(&with(&arguments, &[&nobody]));
    eventually("it has drawn its id", || dir.path().join("data/member.json").exists());
    waiting.signal("TERM");
    assert_eq!(waiting.wait_exit().code(), Some(0));
}

/// The pids that dev has told, by member.
fn pids(dev: &Running) -> Vec<(String, u32)> {
    let started = dev.seen.iter().filter_map(|line| {
        let (before, pid) = line.split_once(" is started, pid ")?;
        Some((before.rsplit(' ').next()?.to_owned(), pid.parse().ok()?))
    });
    started.collect()
}

fn curl_is_there() -> bool {
    Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_cluster_on_one_machine_lives_fails_over_and_leaves_nothing_behind() {
    let (host, dir) = (Host::reserve(), tempfile::tempdir().unwrap());
    let (ip, data) = (host.ip.to_string(), dir.path().join("data"));
    let arguments = dev(&ip, data.to_str().unwrap(), &[]);
    let mut first = Running::start(&arguments);
    first.wait_line("The cluster is ready");
    first.wait_line("Ctrl-C stops everything");
    let commands: Vec<String> =
        first.seen.iter().map(|line| line.trim().to_owned()).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 10, "{commands:?}");
    assert!(curl_is_there(), "this test runs the commands that dev prints, and needs curl");
    for command in &commands {
        // The same line, so that a reply that is an error fails it.
        let checked = command.replacen("curl ", "curl --silent --show-error --fail-with-body ", 1);
        let output = Command::new("bash").arg("-c").arg(&checked).output().unwrap();
        assert!(output.status.success(), "{command}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    }

    // A second one on the same directory is refused; the first does not notice.
    let second = run(&arguments);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("is in use by another"), "{}", text(&second.stderr));

    // A member that is killed is missed, started again, and comes back.
    let (_, victim) = pids(&first).into_iter().find(|(name, _)| name == "n2").unwrap();
    send_signal("KILL", victim);
    first.wait_line(&format!("n2 (pid {victim}) was killed by signal 9; it is started again"));
    first.wait_line("n2 is started, pid");
    first.wait_line("n2 is ready");

    // An interrupt ends all of them.
    let all = pids(&first);
    assert_eq!(all.len(), 5, "{all:?}");
    first.signal("INT");
    assert_eq!(first.wait_exit().code(), Some(0));
    assert!(!all.iter().any(|(_, pid)| is_alive(*pid)), "a member outlived the interrupt");

    // The data is there at the next start, and no member outlives a dev that is killed.
    let mut second = Running::start(&arguments);
    second.wait_line("The cluster is ready");
    assert_eq!(ask(host.ip, 7430, "GET", "/v1/kv/greeting", ""), Some((200, "hello".to_owned())));
    let all = pids(&second);
    second.signal("KILL");
    second.wait_exit();
    eventually("all members have noticed", || !all.iter().any(|(_, pid)| is_alive(*pid)));
}

#[test]
fn a_single_member_runs_inside_dev() {
    let (host, dir) = (Host::reserve(), tempfile::tempdir().unwrap());
    let (ip, data) = (host.ip.to_string(), dir.path().join("data"));
    let arguments = dev(&ip, data.to_str().unwrap(), &["--members", "1", "--base-port", "7500"]);
    for expected in [201, 200] {
        let mut running = Running::start(&arguments);
        running.wait_line("The cluster is ready");
        assert_eq!(ask(host.ip, 7500, "PUT", "/v1/kv/a", "1").map(|(status, _)| status), Some(expected));
        running.signal("TERM");
        assert_eq!(running.wait_exit().code(), Some(0));
    }
    // The directory keeps its shape.
    let other = run(&dev(&ip, data.to_str().unwrap(), &["--members", "3"]));
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("made with --members 1"), "{}", text(&other.stderr));
}

#[test]
fn the_examples_work() {
    assert!(curl_is_there(), "this test runs shell scripts that need curl");
    let (host, dir) = (Host::reserve(), tempfile::tempdir().unwrap());
    let example = |name: &str| format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("bash");
    command.arg(example("three_members.sh")).arg(dir.path().join("data"));
    command.env("LIFEBOAT", env!("CARGO_BIN_EXE_lifeboat")).env("HOST", host.ip.to_string()).env("BASE_PORT", "7400");
    let mut members = Running::spawn(command);
    members.wait_line("ready: ");
    let tour = Command::new("bash").arg(example("curl_tour.sh")).arg(format!("http://{}:7410", host.ip)).output();
    let tour = tour.unwrap();
    assert!(tour.status.success(), "{}\n{}", text(&tour.stdout), text(&tour.stderr));
    assert!(text(&tour.stdout).ends_with("# all as expected\n"));
    members.signal("TERM");
    members.wait_exit();
    assert!(ask(host.ip, 7400, "GET", "/health/live", "").is_none(), "a member outlived the script");
}

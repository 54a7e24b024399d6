//! A cluster of real member processes that a test starts, hurts and heals.
//!
//! Members are child processes of the test, each with its own address (see [`super::address`]), directory and log
//! file. Everything lies in one temporary directory, which is kept, and its path printed, when the test fails. All
//! children are killed when the cluster is dropped, and waited for, so that none is left over. Should the test itself
//! be killed, the members see the end of their standard input and stop (`--exit-with-parent`).
//!
//! Nothing here waits for a time to pass: every wait is for a condition, with a deadline (see [`super::wait_for`]).

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::address::{Addresses, Permit};
use super::http::{self, Answer, Connection, Request};
use super::link::Link;
use super::{wait_for, wait_within};

/// How long a question about the state of a member may take that is asked again and again; a paused member does not
/// answer at all.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a member may take to stop after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// What the members of the program under test agree on in the end.
const FEATURE_LEVEL: u64 = 3;

/// What a cluster is made of.
pub struct Plan {
    voters: usize,
    mirrors: usize,
    flags: Vec<String>,
    program: Option<PathBuf>,
    linked: bool,
    points: bool,
    /// Between two heartbeats; one that is not answered by the next counts for nothing.
    heartbeat: Duration,
    /// The shortest and the longest election timeout.
    elections: (Duration, Duration),
}

impl Plan {
    /// So many voters in site `east` and mirrors in site `west`. Their elections are slower than by default, because members
    /// of several clusters share a few cores here: a leader that is not hurt seldom loses the lead.
    pub fn new(voters: usize, mirrors: usize) -> Plan {
        let (heartbeat, elections) =
            (Duration::from_millis(200), (Duration::from_secs(1), Duration::from_millis(1500)));
        Plan { voters, mirrors, flags: Vec::new(), program: None, linked: false, points: false, heartbeat, elections }
    }

    /// With a flag more for `lifeboat serve` on every member.
    pub fn flag(mut self, name: &str, value: &str) -> Plan {
        self.flags.extend([name.to_string(), value.to_string()]);
        self
    }

    /// With a log and tails so small that a few megabytes make many segments, and that the log forgets soon.
    pub fn seals_early(self) -> Plan {
        self.flag("--wal-segment-bytes", "1MiB")
            .flag("--wal-memory-bytes", "1MiB")
            .flag("--wal-keep-bytes", "2MiB")
            .flag("--tail-bytes", "1MiB")
    }

    /// With another program than the one under test, for example that of an earlier release.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Plan {
        self.program = Some(program.into());
        self
    }

    /// With a link between the site `east` and all others, which the test delays, stalls and cuts: [`Cluster::link`].
    pub fn linked(mut self) -> Plan {
        self.linked = true;
        self
    }

    /// With members that die or wait where the test says ([`Cluster::arm_crash`], [`Cluster::arm_hold`]).
    pub fn with_points(mut self) -> Plan {
        self.points = true;
        self
    }

    /// With elections between these timeouts.
    pub fn elections(mut self, min: Duration, max: Duration) -> Plan {
        self.elections = (min, max);
        self
    }

    /// With elections so slow that the leader stays the same however busy the machine is.
    pub fn steady(mut self) -> Plan {
        self.heartbeat = Duration::from_millis(400);
        self.elections(Duration::from_millis(1500), Duration::from_secs(2))
    }

    /// Quick to notice who is dead, for tests that wait for that often. A leader that is only slow may lose the lead.
    pub fn quick(mut self) -> Plan {
        self.heartbeat = Duration::from_millis(100);
        self.elections(Duration::from_millis(400), Duration::from_millis(800))
    }

    /// Starts the members and waits until all have joined and are ready.
    pub fn start(self) -> Cluster {
        let (joined, votes) = (self.voters + self.mirrors - 1, self.voters.saturating_sub(1));
        // Older members, and those that pass for older ones, write no events of the cluster.
        let old = |flag: &String| flag == "--announce-feature-level";
        let makes_events = self.program.is_none() && !self.flags.iter().any(old);
        let mut cluster = self.prepare();
        cluster.start_member(0);
        cluster.wait_ready(0);
        for member in 1..cluster.len() {
            cluster.start_member(member);
        }
        cluster.wait_joined();
        if makes_events {
            // What a start makes by itself, in the background: each is a revision, and tests count revisions.
            let wanted = [("member-joined", joined), ("member-votes", votes)];
            for member in 0..cluster.len() {
                cluster.wait_feature_level(member);
                super::wait_cluster_events(cluster.client(member), &wanted);
            }
        }
        cluster
    }

    /// Makes the directory and takes the addresses, and starts nothing yet.
    pub fn prepare(mut self) -> Cluster {
        let (min, max) = self.elections;
        let timing = [("--heartbeat-ms", self.heartbeat), ("--election-min-ms", min), ("--election-max-ms", max)];
        for (name, span) in timing {
            self.flags.extend([name.to_string(), span.as_millis().to_string()]);
        }
        let permit = Permit::acquire(self.voters + self.mirrors);
        let directory = tempfile::Builder::new().prefix("lifeboat-test-").tempdir().expect("a temporary directory");
        let mut cluster = Cluster {
            directory: Some(directory),
            addresses: Addresses::reserve(),
            members: Vec::new(),
            flags: self.flags,
            program: self.program.unwrap_or_else(|| env!("CARGO_BIN_EXE_lifeboat").into()),
            link: self.linked.then(Link::new),
            points: None,
            _permit: permit,
        };
        if self.points {
            let points = cluster.path().join("points");
            fs::create_dir(&points).expect("a directory");
            cluster.points = Some(points);
        }
        for _ in 0..self.voters {
            cluster.add_member("voter", "east");
        }
        for _ in 0..self.mirrors {
            cluster.add_member("mirror", "west");
        }
        cluster
    }
}

/// One member, running or not.
pub struct Member {
    /// Its name: `n1`, `n2` and so on, in the order they were added.
    pub name: String,
    /// `voter` or `mirror`.
    pub role: &'static str,
    /// Where it listens for clients.
    pub client: SocketAddr,
    /// Where it listens for its peers.
    pub peer: SocketAddr,
    /// Where its data lie.
    pub data: PathBuf,
    /// What `lifeboat serve` is called with.
    pub arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    paused: bool,
}

/// A cluster of processes.
pub struct Cluster {
    // Some until the drop decides whether to keep it.
    directory: Option<TempDir>,
    addresses: Addresses,
    members: Vec<Member>,
    flags: Vec<String>,
    /// What members run that are started from now on.
    program: PathBuf,
    /// What connects the sites, if the plan has it.
    link: Option<Link>,
    /// Where members look for what they shall do at named places.
    points: Option<PathBuf>,
    _permit: Permit,
}

impl Cluster {
    /// Members that are started from now on run the program under test.
    pub fn use_current_program(&mut self) {
        self.program = env!("CARGO_BIN_EXE_lifeboat").into();
    }

    /// How many members there are, running or not.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The link between the site `east` and the others.
    pub fn link(&self) -> &Link {
        self.link.as_ref().expect("the plan is linked()")
    }

    /// A member by its number, from 0.
    pub fn member(&self, member: usize) -> &Member {
        &self.members[member]
    }

    /// A member whose arguments the test wants to change before the next start.
    pub fn member_mut(&mut self, member: usize) -> &mut Member {
        &mut self.members[member]
    }

    /// Where a member listens for clients.
    pub fn client(&self, member: usize) -> SocketAddr {
        self.members[member].client
    }

    /// Where all members listen for clients.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// The numbers of the members that run and are not paused.
    pub fn running(&self) -> Vec<usize> {
        (0..self.len()).filter(|&i| self.members[i].child.is_some() && !self.members[i].paused).collect()
    }

    /// The directory of the whole cluster.
    pub fn path(&self) -> &Path {
        self.directory.as_ref().expect("the directory is there until the drop").path()
    }

    /// Prepares one member more, which is not started. The very first bootstraps the cluster, the others join it.
    pub fn add_member(&mut self, role: &'static str, site: &str) -> usize {
        let number = self.members.len();
        let name = format!("n{}", number + 1);
        let (client, peer) = (self.addresses.client(number), self.addresses.peer(number));
        let data = self.path().join(&name);
        let mut arguments: Vec<String> = ["serve", "--name", &name, "--site", site, "--role", role]
            .iter()
            .map(|argument| argument.to_string())
            .chain(["--data-dir".into(), data.display().to_string()])
            .chain(["--client-listen".into(), client.to_string(), "--peer-listen".into(), peer.to_string()])
            .collect();
        let mut founder = self.addresses.peer(0);
        if let Some(link) = &self.link {
            let gate = self.addresses.gate(number);
            link.open_gate(gate, peer, site, data.clone());
            arguments.extend(["--peer-url".into(), format!("http://{gate}")]);
            founder = self.addresses.gate(0);
        }
        if number == 0 {
            arguments.push("--bootstrap".into());
        } else {
            arguments.extend(["--join".into(), format!("http://{founder}")]);
        }
        arguments.extend(self.flags.iter().cloned());
        let log = self.path().join(format!("{name}.log"));
        let (child, paused) = (None, false);
        self.members.push(Member { name, role, client, peer, data, arguments, log, child, paused });
        number
    }

    /// Starts a member that does not run. Does not wait for anything.
    pub fn start_member(&mut self, member: usize) {
        let member = &mut self.members[member];
        assert!(member.child.is_none(), "{} runs already", member.name);
        let log = OpenOptions::new().create(true).append(true).open(&member.log).expect("a log file");
        let mut command = Command::new(&self.program);
        // What is set for the test is not meant for the member.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LIFEBOAT_")) {
            command.env_remove(name);
        }
        if let Some(points) = &self.points {
            command.env("LIFEBOAT_TEST_POINTS", points);
        }
        let child = command
            .args(&member.arguments)
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle of the log file"))
            .stderr(log)
            .spawn()
            .expect("the binary under test starts");
        member.child = Some(child);
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self, member: usize) {
        let member = &mut self.members[member];
        member.paused = false;
        let mut child = member.child.take().expect("the member runs");
        child.kill().expect("SIGKILL reaches a child that was not waited for");
        child.wait().expect("a killed child ends");
    }

    fn point(&self, what: &str, name: &str) -> PathBuf {
        self.points.as_ref().expect("the plan is with_points()").join(format!("{what}-{name}"))
    }

    /// The first member that comes to a named place dies there.
    pub fn arm_crash(&self, name: &str) {
        let _ = fs::remove_file(self.point("crashed", name));
        fs::write(self.point("crash", name), name).expect("a file");
    }

    /// Whether a member has died at a named place since it was armed.
    pub fn has_crashed(&self, name: &str) -> bool {
        self.point("crashed", name).exists()
    }

    /// Nobody dies at a named place any more who has not done so.
    pub fn disarm_crash(&self, name: &str) {
        let _ = fs::remove_file(self.point("crash", name));
    }

    /// Waits until a member has died at a named place, and gives its number. It does not run any more.
    pub fn wait_crashed(&mut self, name: &str) -> usize {
        let crashed = self.point("crashed", name);
        wait_for(&format!("a member to come to {name}"), || match crashed.exists() {
            true => Ok(()),
            false => Err("nobody has".into()),
        });
        wait_for(&format!("the member that came to {name} to be gone"), || {
            for (number, member) in self.members.iter_mut().enumerate() {
                let Some(child) = &mut member.child else { continue };
                if child.try_wait().expect("a child can be asked").is_some() {
                    member.child = None;
                    return Ok(number);
                }
            }
            Err("all run".into())
        })
    }

    /// Whoever comes to a named place waits there until [`Cluster::release`].
    pub fn arm_hold(&self, name: &str) {
        let _ = fs::remove_file(self.point("held", name));
        fs::write(self.point("hold", name), name).expect("a file");
    }

    /// Waits until somebody waits at a named place.
    pub fn wait_held(&self, name: &str) {
        let held = self.point("held", name);
        wait_for(&format!("a member to wait at {name}"), || match held.exists() {
            true => Ok(()),
            false => Err("nobody does".into()),
        });
    }

    /// Whether nobody has come to a place at which all are held.
    pub fn is_not_held(&self, name: &str) -> bool {
        self.point("hold", name).exists() && !self.point("held", name).exists()
    }

    /// Lets go on who waits at a named place.
    pub fn release(&self, name: &str) {
        fs::remove_file(self.point("hold", name)).expect("it was armed");
    }

    /// SIGTERM: the member drains. Does not wait; see [`Cluster::wait_exit`].
    pub fn ask_to_stop(&mut self, member: usize) {
        self.signal(member, "TERM");
    }

    /// SIGTERM, and waits until the process has ended.
    pub fn stop(&mut self, member: usize) -> ExitStatus {
        self.ask_to_stop(member);
        self.wait_exit(member)
    }

    /// Waits until a process has ended by itself.
    pub fn wait_exit(&mut self, member: usize) -> ExitStatus {
        let name = self.members[member].name.clone();
        let child = &mut self.members[member].child;
        let status = wait_within(STOP_PATIENCE, &format!("{name} to end"), || {
            let child = child.as_mut().expect("the member runs");
            child.try_wait().expect("a child can be asked").ok_or_else(|| "it still runs".into())
        });
        self.members[member].child = None;
        status
    }

    /// SIGSTOP: the process stands still, with its connections open.
    pub fn pause(&mut self, member: usize) {
        self.signal(member, "STOP");
        self.members[member].paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self, member: usize) {
        self.signal(member, "CONT");
        self.members[member].paused = false;
    }

    /// Sends a signal through the shell, whose `kill` is there on every machine. The process cannot be another with the
    /// same number: a child that was not waited for keeps its number.
    fn signal(&self, member: usize, signal: &str) {
        let child = self.members[member].child.as_ref().expect("the member runs");
        let script = format!("kill -{signal} {}", child.id());
        let status = Command::new("sh").args(["-c", &script]).status().expect("a shell");
        assert!(status.success(), "{script}: {status}");
    }

    /// A member's own view, or why it could not be had.
    pub fn status(&self, member: usize) -> Result<Value, String> {
        let answer = self.ask(member, "/v1/status")?;
        if answer.status != 200 {
            return Err(format!("{} answers its status with {}", self.members[member].name, answer.status));
        }
        Ok(answer.json())
    }

    /// The view of a member that answers, but may be busy.
    pub fn status_now(&self, member: usize) -> Value {
        wait_for(&format!("the status of {}", self.members[member].name), || self.status(member))
    }

    fn ask(&self, member: usize, target: &str) -> Result<Answer, String> {
        let Member { name, client, .. } = &self.members[member];
        let mut connection =
            Connection::open_within(*client, QUESTION_TIMEOUT).map_err(|error| format!("{name}: {error}"))?;
        Request::new("GET", target).try_send_on(&mut connection).map_err(|failure| format!("{name}: {failure}"))
    }

    fn healthy(&self, member: usize, target: &str) -> Result<(), String> {
        let answer = self.ask(member, target)?;
        match answer.status {
            200 => Ok(()),
            _ => Err(format!("{} on {target}: {}", self.members[member].name, String::from_utf8_lossy(&answer.body))),
        }
    }

    /// Waits until a member can serve reads and writes.
    pub fn wait_ready(&mut self, member: usize) {
        let name = self.members[member].name.clone();
        wait_for(&format!("{name} to be ready"), || {
            self.fail_if_dead(member);
            self.healthy(member, "/health/ready")
        });
    }

    /// Waits until the newest kinds of commands are in force at a member.
    pub fn wait_feature_level(&self, member: usize) {
        wait_for("the feature level to rise", || match &self.status(member)?["feature_level"] {
            level if *level == FEATURE_LEVEL => Ok(()),
            level => Err(format!("it is {level}")),
        });
    }

    /// Waits until all members that run are ready.
    pub fn wait_all_ready(&mut self) {
        for member in self.running() {
            self.wait_ready(member);
        }
    }

    /// Waits until every member of this cluster that runs is a full member in the eyes of all that run, and ready.
    pub fn wait_joined(&mut self) {
        self.wait_all_ready();
        let running = self.running();
        wait_for("all members to have joined", || {
            for &viewer in &running {
                let status = self.status(viewer)?;
                for &other in &running {
                    let Member { name, role, .. } = &self.members[other];
                    let members = status["members"].as_array().ok_or("a status without members")?;
                    let entry = members.iter().find(|entry| entry["name"] == **name);
                    let entry = entry.ok_or_else(|| format!("{} does not know {name}", self.members[viewer].name))?;
                    if entry["role"] != *role || entry["joining"] == true {
                        return Err(format!("{name} has not joined: {entry}"));
                    }
                }
            }
            Ok(())
        });
    }

    /// A child that ended although nobody stopped it will never become ready: say so at once.
    fn fail_if_dead(&mut self, member: usize) {
        let Member { name, child, log, .. } = &mut self.members[member];
        let child = child.as_mut().unwrap_or_else(|| panic!("{name} was not started"));
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            panic!("{name} ended by itself with {status}:\n{}", tail(log));
        }
    }

    /// The member that leads now with a quorum behind it, if there is exactly one among those that run.
    pub fn leader_now(&self) -> Result<usize, String> {
        let mut reasons = Vec::new();
        let mut leaders = Vec::new();
        for member in self.running() {
            match self.healthy(member, "/health/leader") {
                Ok(()) => leaders.push(member),
                Err(reason) => reasons.push(reason),
            }
        }
        match leaders[..] {
            [leader] => Ok(leader),
            [] => Err(reasons.join("; ")),
            _ => Err(format!("{leaders:?} all say that they lead")),
        }
    }

    /// Waits until one of the members that run leads.
    pub fn wait_leader(&self) -> usize {
        wait_for("a leader", || self.leader_now())
    }

    /// Waits until a leader is known that is not `old`.
    pub fn wait_other_leader(&self, old: usize) -> usize {
        wait_for("another leader", || match self.leader_now()? {
            leader if leader == old => Err(format!("{} still leads", self.members[old].name)),
            leader => Ok(leader),
        })
    }

    /// Hands the lead to a voter, until it leads.
    pub fn let_lead(&self, member: usize) {
        let name = &self.members[member].name;
        let transfer = Request::new("POST", "/v1/leader").body(serde_json::json!({ "to": name }).to_string());
        wait_for(&format!("{name} to lead"), || {
            let leader = self.leader_now()?;
            if leader == member {
                return Ok(());
            }
            let answer = transfer.try_send(self.client(leader)).map_err(|failure| failure.to_string())?;
            // While it lacks entries, another takes over, or a transfer comes to nothing.
            assert!([200, 409, 503, 504].contains(&answer.status), "{answer}");
            Err(answer.to_string())
        });
    }

    /// A running voter that does not lead.
    pub fn follower(&self) -> usize {
        let leader = self.wait_leader();
        let found = self.running().into_iter().find(|&i| i != leader && self.members[i].role == "voter");
        found.expect("a voter besides the leader")
    }

    /// Waits until all members that run have applied the same, and gives the revision.
    pub fn wait_converged(&self) -> u64 {
        wait_for("all members to have applied the same", || {
            let mut positions = Vec::new();
            for member in self.running() {
                let status = self.status(member)?;
                let number = |field: &str| status[field].as_u64().ok_or(format!("no {field} in {status}"));
                positions.push((number("revision")?, number("applied_index")?));
            }
            match positions.iter().all(|position| position == &positions[0]) {
                true => Ok(positions[0].0),
                false => Err(format!("revisions and applied indexes are {positions:?}")),
            }
        })
    }

    /// Everything a member holds at a revision, read from that member alone, as lines of JSON in the order of keys.
    #[track_caller]
    pub fn content(&self, member: usize, revision: u64) -> Vec<String> {
        let target = format!("/v1/keys?consistency=stale&rev={revision}");
        let answer = Request::new("GET", &target).header("Accept", "application/x-ndjson").send(self.client(member));
        let answer = answer.expect(200);
        let mut lines: Vec<String> = answer.text().lines().map(str::to_string).collect();
        let last = lines.pop().expect("a stream ends with a line that says so");
        let end: Value = serde_json::from_str(&last).unwrap_or_else(|error| panic!("{last}: {error}"));
        assert_eq!(end["end"], true, "the stream was cut: {last}");
        assert_eq!(end["revision"], revision, "{last}");
        assert_eq!(end["more"], false, "{last}");
        assert_eq!(end["count"], lines.len(), "{last}");
        lines
    }

    /// Waits until all members that run agree, and fails unless they hold the same. Gives the common content.
    pub fn assert_same_content(&self) -> Vec<String> {
        let revision = self.wait_converged();
        let running = self.running();
        let first = self.content(running[0], revision);
        for &member in &running[1..] {
            let content = self.content(member, revision);
            let differ = first.iter().zip(&content).find(|(a, b)| a != b);
            assert!(
                first == content,
                "{} holds {} keys and {} holds {} at revision {revision}; first difference: {differ:?}",
                self.members[running[0]].name,
                first.len(),
                self.members[member].name,
                content.len()
            );
        }
        first
    }

    /// Puts a value through any member, trying again as long as the answer says that this is safe.
    pub fn put_until_done(&self, member: usize, key: &str, value: &str) -> u64 {
        wait_for(&format!("a put of {key}"), || {
            let request = Request::new("PUT", &format!("/v1/kv/{}", http::encode(key.as_bytes()))).body(value);
            let answer = request.try_send(self.client(member)).map_err(|failure| failure.to_string())?;
            match answer.status {
                200 | 201 => Ok(answer.json()["revision"].as_u64().expect("a revision")),
                503 | 504 => Err(answer.to_string()),
                _ => panic!("{answer}"),
            }
        })
    }

    /// The value of a key by a linearizable read at one member.
    pub fn get(&self, member: usize, key: &str) -> Option<String> {
        wait_for(&format!("a get of {key}"), || {
            let request = Request::new("GET", &format!("/v1/kv/{}", http::encode(key.as_bytes())));
            let answer = request.try_send(self.client(member)).map_err(|failure| failure.to_string())?;
            match answer.status {
                200 => Ok(Some(answer.text().to_string())),
                404 => Ok(None),
                503 => Err(answer.to_string()),
                _ => panic!("{answer}"),
            }
        })
    }
}

impl Member {
    /// What the member has written to its log file since its first start.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id, when it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // A child that has ended in the meantime cannot be killed, and need not be.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            let kept = directory.keep();
            eprintln!("the data and logs of the members are kept in {}", kept.display());
            for member in &self.members {
                eprintln!("--- the end of the log of {}\n{}", member.name, tail(&member.log));
            }
        }
    }
}

/// The last lines of a file.
fn tail(path: &Path) -> String {
    const LINES: usize = 15;
    match File::open(path).and_then(std::io::read_to_string) {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        }
        Err(error) => format!("({error})"),
    }
}

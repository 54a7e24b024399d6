//! `lifeboat dev`: a cluster on this machine to try things on. Three voters in site `east` and a mirror in site
//! `west`, as real processes of this program, or one member inside this process.
//!
//! Place: [`plan`] says which members there are, [`child`] runs each, [`view`] says what to show; here they meet.
//!
//! What survives: the data directory, with its shape; starting again goes on where it stopped. A member that dies is
//! started again after a few seconds, so that a person who kills one sees the failover first and then the return. No
//! child outlives this process, however it ends (see [`child`]).
//!
//! It is not for production: no member survives the loss of the machine. Proven by the tests of its parts and by
//! `tests/tools/cli.rs`.

mod child;
mod plan;
mod screen;
mod view;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::child::{Event, Order, Supervisor};
use self::plan::{PlannedMember, Wanted};
use self::screen::Screen;
use self::view::{Process, Seen};
use super::lock::DirLock;
use super::stop::StopRequests;
use super::{EXIT_BAD_CONFIG, EXIT_FAILED, serve};
use crate::api::Status;

/// How long the members may take until all are ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the members while they start.
const POLL_STARTING: Duration = Duration::from_millis(100);
/// Between two looks at the members later.
const POLL_RUNNING: Duration = Duration::from_millis(500);
/// How long a member may take to say how it is.
const ANSWER_MAX: Duration = Duration::from_millis(900);
/// How long to wait for the members of an earlier run that was killed to end.
const EARLIER_RUN_MAX: Duration = Duration::from_secs(20);
/// Reports of the supervisors that may wait to be shown.
const EVENTS_MAX: usize = 64;

/// The flags of `lifeboat dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where the members keep their data; made when missing, kept afterwards
    #[arg(long, value_name = "DIR", default_value = "lifeboat-data")]
    data_dir: PathBuf,
    /// Voters: 3 (or 5) and a mirror, or 1 alone inside this process [default: 3]
    #[arg(long, value_name = "COUNT")]
    members: Option<u16>,
    /// The first member's port for clients; the next members follow ten ports apart, each member's peer port is the
    /// one above [default: 7400]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// The loopback address of all members [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Further flags of `lifeboat serve` for every member, behind --
    #[arg(last = true, value_name = "SERVE FLAGS")]
    serve_flags: Vec<String>,
}

/// Runs the cluster until it is told to stop.
pub fn run(args: DevArgs) -> ExitCode {
    let wanted = Wanted { members: args.members, host: args.host, base_port: args.base_port };
    let (members, _lock) = match prepare(&args.data_dir, wanted) {
        Ok(prepared) => prepared,
        Err(Refusal { code, why }) => {
            eprintln!("lifeboat dev: {why}");
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lifeboat dev: cannot start: {error}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let outcome = runtime.block_on(async {
        let mut dev = Dev::new(members, &args.data_dir)?;
        match dev.members.len() {
            1 => dev.run_embedded(&args.serve_flags).await,
            _ => dev.run_children(&args.serve_flags).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("lifeboat dev: {why}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Why it does not even begin.
struct Refusal {
    code: u8,
    why: String,
}

/// Takes the data directory, settles the shape and sees that the ports are free.
fn prepare(data_dir: &Path, wanted: Wanted) -> Result<(Vec<PlannedMember>, DirLock), Refusal> {
    let refuse = |code: u8, why: String| Refusal { code, why };
    let failed = |error: io::Error| refuse(EXIT_FAILED, format!("data directory {}: {error}", data_dir.display()));
    let lock = DirLock::take(data_dir).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let why = "is in use by another `lifeboat dev`; stop that one, or give another --data-dir and --base-port";
            refuse(EXIT_FAILED, format!("data directory {} {why}", data_dir.display()))
        }
        _ => failed(error),
    })?;
    let kept = plan::load_shape(data_dir).map_err(failed)?;
    let shape = plan::settle(wanted, kept).map_err(|why| refuse(EXIT_BAD_CONFIG, why))?;
    let members = plan::members(shape, data_dir);
    wait_for_earlier_run(&members).map_err(failed)?;
    check_ports(&members).map_err(|why| refuse(EXIT_FAILED, why))?;
    plan::save_shape(data_dir, shape).map_err(failed)?;
    Ok((members, lock))
}

/// Members whose `lifeboat dev` was killed stop by themselves, but take a moment. They hold their directories until
/// they are gone.
fn wait_for_earlier_run(members: &[PlannedMember]) -> io::Result<()> {
    let deadline = Instant::now() + EARLIER_RUN_MAX;
    for member in members {
        loop {
            match DirLock::take(&member.dir) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Finds a taken port before anything is started, and names it.
fn check_ports(members: &[PlannedMember]) -> Result<(), String> {
    for member in members {
        for address in [member.client, member.peer] {
            if let Err(error) = TcpListener::bind(address) {
                return Err(format!("{address} (for member {}): {error}; give another --base-port", member.name));
            }
        }
    }
    Ok(())
}

/// The running cluster as this process sees it.
struct Dev {
    members: Vec<PlannedMember>,
    data_dir: String,
    seen: Vec<Seen>,
    http: reqwest::Client,
    screen: Screen,
    stop: StopRequests,
}

impl Dev {
    fn new(members: Vec<PlannedMember>, data_dir: &Path) -> Result<Dev, String> {
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_MAX).build().map_err(|e| e.to_string())?;
        let stop = StopRequests::listen(false).map_err(|error| format!("cannot listen to signals: {error}"))?;
        let seen = members.iter().map(|_| Seen { process: Process::Down, status: None }).collect();
        Ok(Dev { members, data_dir: data_dir.display().to_string(), seen, http, screen: Screen::new(), stop })
    }

    /// The single member runs in this process and needs no supervisor.
    async fn run_embedded(&mut self, serve_flags: &[String]) -> Result<(), String> {
        let member = self.members[0].clone();
        let arguments = plan::serve_arguments(&member, &member, serve_flags);
        let mut running = serve::Embedded::start(&arguments, &member.log_file()).await?;
        self.seen[0].process = Process::Running(std::process::id());
        let deadline = Instant::now() + READY_MAX;
        let outcome = loop {
            let poll_interval = self.poll_interval();
            tokio::select! {
                _ = self.stop.next() => break Ok(()),
                why = running.failed() => break Err(format!("the member failed: {why}")),
                () = tokio::time::sleep(poll_interval) => {}
            }
            self.look(true).await;
            if !self.screen.is_live() && Instant::now() > deadline {
                break Err(format!("the member is not ready after {READY_MAX:?}; see {}", member.log_file().display()));
            }
        };
        self.screen.say("stopping");
        running.stop().await.and(outcome)
    }

    /// Starts the children, shows them, and stops them again.
    async fn run_children(&mut self, serve_flags: &[String]) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
        let (orders, order) = watch::channel(Order::Run);
        let mut supervisors = JoinSet::new();
        for (index, member) in self.members.iter().enumerate() {
            let supervisor = Supervisor {
                index,
                member: member.clone(),
                program: program.clone(),
                arguments: plan::serve_arguments(member, &self.members[0], serve_flags),
                events: events_in.clone(),
                orders: order.clone(),
            };
            supervisors.spawn(supervisor.run());
        }
        drop(events_in);
        self.screen.say(&format!("starting {} members, data in {}", self.members.len(), self.data_dir));
        let outcome = self.show_until_stop(&mut events).await;
        self.screen.say("stopping all members");
        self.stop_children(&orders, &mut events, &mut supervisors).await;
        self.screen.say("all members have stopped");
        outcome
    }

    async fn show_until_stop(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), String> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let poll_interval = self.poll_interval();
            tokio::select! {
                _ = self.stop.next() => return Ok(()),
                Some(event) = events.recv() => self.take_event(event)?,
                () = tokio::time::sleep(poll_interval) => {
                    self.look(false).await;
                    if !self.screen.is_live() && Instant::now() > deadline {
                        return Err(self.not_ready());
                    }
                }
            }
        }
    }

    fn poll_interval(&self) -> Duration {
        if self.screen.is_live() { POLL_RUNNING } else { POLL_STARTING }
    }

    /// Asks every member how it is, and shows the answers. The greeting comes when all are ready for the first time.
    async fn look(&mut self, embedded: bool) {
        let ask = |member: &PlannedMember| {
            let question = self.http.get(format!("{}/v1/status", member.client_url()));
            async move { question.send().await?.error_for_status()?.json::<Status>().await }
        };
        let answers = futures_util::future::join_all(self.members.iter().map(ask)).await;
        let mut after = self.seen.clone();
        for (seen, answer) in after.iter_mut().zip(answers) {
            seen.status = answer.ok().filter(|_| seen.process != Process::Down);
        }
        let changes = view::changes(&self.members, &self.seen, &after, !self.screen.is_live());
        self.seen = after;
        for change in &changes {
            self.screen.say(change);
        }
        if !self.screen.is_live() && view::is_complete(&self.seen) {
            self.screen.greet(&view::greeting(&self.members, &self.data_dir, embedded));
        }
        self.screen.draw(&view::table(&self.members, &self.seen));
    }

    /// Shows what happened to a process. Before the cluster was ready for the first time a death ends the attempt.
    fn take_event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Started { member, pid } => {
                self.seen[member].process = Process::Running(pid);
                self.screen.say(&format!("{} is started, pid {pid}", self.members[member].name));
            }
            Event::Died { member, pid, how, restart_in } => {
                self.seen[member] = Seen { process: Process::Down, status: None };
                let what = format!("{} (pid {pid}) {how}", self.members[member].name);
                if !self.screen.is_live() {
                    return Err(format!("{what} while it started. {}", self.log_of(member)));
                }
                match restart_in {
                    Some(delay) => self.screen.say(&format!("{what}; it is started again in {} s", delay.as_secs())),
                    None => self.screen.say(&format!("{what}; it is not started again. {}", self.log_of(member))),
                }
                self.screen.draw(&view::table(&self.members, &self.seen));
            }
            Event::NotStarted { member, error } => {
                return Err(format!("{} cannot be started: {error}", self.members[member].name));
            }
            Event::Killed { member } => {
                let name = &self.members[member].name;
                self.screen.say(&format!("{name} did not stop in time and was killed"));
            }
        }
        Ok(())
    }

    /// Asks all members to stop and waits. A second request to stop kills them.
    async fn stop_children(
        &mut self,
        orders: &watch::Sender<Order>,
        events: &mut mpsc::Receiver<Event>,
        supervisors: &mut JoinSet<()>,
    ) {
        orders.send_replace(Order::Stop);
        loop {
            tokio::select! {
                done = supervisors.join_next() => if done.is_none() { break },
                _ = self.stop.next() => { orders.send_replace(Order::Kill); }
                // A member that could not be started has been reported already.
                Some(event) = events.recv() => if let Event::Killed { .. } = event { let _ = self.take_event(event); },
            }
        }
    }

    fn not_ready(&self) -> String {
        let late = self.seen.iter().position(|seen| !seen.status.as_ref().is_some_and(|status| status.ready));
        let late = late.unwrap_or(0);
        format!("{} is not ready after {READY_MAX:?}. {}", self.members[late].name, self.log_of(late))
    }

    fn log_of(&self, member: usize) -> String {
        let path = self.members[member].log_file();
        format!("The end of its log, {}:\n{}", path.display(), child::log_tail(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(base_port: u16) -> Wanted {
        Wanted { members: Some(1), host: Some(IpAddr::from([127, 0, 0, 1])), base_port: Some(base_port) }
    }

    #[test]
    fn a_directory_in_use_and_a_taken_port_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let Err(refusal) = prepare(dir.path(), wanted(port)) else { panic!("the port is taken") };
        assert_eq!(refusal.code, EXIT_FAILED);
        assert!(refusal.why.contains(&format!("127.0.0.1:{port} (for member n1)")), "{}", refusal.why);
        assert!(refusal.why.contains("--base-port"), "{}", refusal.why);
        assert!(!dir.path().join("dev.toml").exists(), "a refused shape is not kept");

        let _lock = DirLock::take(dir.path()).unwrap();
        let Err(refusal) = prepare(dir.path(), wanted(port)) else { panic!("the directory is in use") };
        assert!(refusal.why.contains("is in use by another"), "{}", refusal.why);
    }

    #[test]
    fn a_wrong_shape_is_a_wrong_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let two = Wanted { members: Some(2), ..Wanted::default() };
        let Err(refusal) = prepare(dir.path(), two) else { panic!("two voters make no sense") };
        assert_eq!(refusal.code, EXIT_BAD_CONFIG);
    }
}

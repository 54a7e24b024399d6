//! One member as a child process: started, watched, started again when it dies, stopped.
//!
//! The child's standard input is a pipe that this process holds. Closing it asks the child to drain and stop, and the
//! operating system closes it when this process dies in whatever way, so no child outlives it. (A signal would need
//! either unsafe code or another program, and would not be sent by a process that was killed.)

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::plan::PlannedMember;
use crate::cli::stop::STOP_ALL;
use crate::config::ENV_PREFIX;

/// The first wait before a dead member is started again: long enough to see that the others carry on without it.
const RESTART_DELAY_MIN: Duration = Duration::from_secs(3);
/// The longest wait; it doubles with every death until then.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// After running for so long a member's earlier deaths are forgotten.
const FORGIVE_AFTER: Duration = Duration::from_secs(30);
/// How long a member may take to stop before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// At its start a member whose log is larger than this begins a new one; one old log is kept.
const LOG_MAX_BYTES: u64 = 8 << 20;
/// How much of a log is shown when a member does not start.
const LOG_TAIL_BYTES: u64 = 4 << 10;

/// What the members are told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Run, and come back after a death.
    Run,
    /// Drain and stop.
    Stop,
    /// End at once.
    Kill,
}

/// What happened to a member's process.
#[derive(Debug)]
pub enum Event {
    /// It was started.
    Started {
        /// Which member.
        member: usize,
        /// Its process.
        pid: u32,
    },
    /// It ended although nobody had asked it to.
    Died {
        /// Which member.
        member: usize,
        /// Its process.
        pid: u32,
        /// How.
        how: String,
        /// When it will be started again; never when that would not help.
        restart_in: Option<Duration>,
    },
    /// It could not be started.
    NotStarted {
        /// Which member.
        member: usize,
        /// Why.
        error: io::Error,
    },
    /// It did not stop in time and was killed.
    Killed {
        /// Which member.
        member: usize,
    },
}

/// How to run one member.
pub struct Supervisor {
    /// Its place in the list of members.
    pub index: usize,
    /// What it is.
    pub member: PlannedMember,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where to report.
    pub events: mpsc::Sender<Event>,
    /// What to do.
    pub orders: watch::Receiver<Order>,
}

impl Supervisor {
    /// Runs the member until it is told to stop.
    pub async fn run(mut self) {
        let mut delay = RESTART_DELAY_MIN;
        while *self.orders.borrow() == Order::Run {
            let (child, pid) = match self.start() {
                Ok(started) => started,
                Err(error) => return self.report(Event::NotStarted { member: self.index, error }).await,
            };
            let started_at = Instant::now();
            self.report(Event::Started { member: self.index, pid }).await;
            let Some(status) = self.watch(child).await else { return };
            if started_at.elapsed() >= FORGIVE_AFTER {
                delay = RESTART_DELAY_MIN;
            }
            // A wrong configuration does not get better by itself.
            let restart_in = (status.code() != Some(i32::from(crate::cli::EXIT_BAD_CONFIG))).then_some(delay);
            let how = describe(status);
            self.report(Event::Died { member: self.index, pid, how, restart_in }).await;
            if restart_in.is_none() {
                return;
            }
            let _ = tokio::time::timeout(delay, self.orders.wait_for(|order| *order != Order::Run)).await;
            delay = (delay * 2).min(RESTART_DELAY_MAX);
        }
    }

    fn start(&self) -> io::Result<(Child, u32)> {
        std::fs::create_dir_all(&self.member.dir)?;
        let log = open_log(&self.member.log_file())?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // A group of its own: Ctrl-C reaches this process alone, which then stops the members in order.
        command.process_group(0).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            // Settings meant for a single member must not reach all of them.
            if name.to_str().is_some_and(|name| name.starts_with(ENV_PREFIX)) {
                command.env_remove(name);
            }
        }
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("the process ended at once"))?;
        Ok((child, pid))
    }

    /// Waits for the end of the process. None when it was stopped as ordered.
    async fn watch(&mut self, mut child: Child) -> Option<ExitStatus> {
        let stdin = child.stdin.take();
        let order = tokio::select! {
            status = child.wait() => return Some(status.unwrap_or_else(|_| ExitStatus::from_raw(0))),
            order = self.orders.wait_for(|order| *order != Order::Run) => order.map_or(Order::Kill, |order| *order),
        };
        if let Some(mut stdin) = stdin {
            // A process that has just ended takes nothing; then there is nothing to say.
            let _ = stdin.write_all(STOP_ALL).await;
        }
        if order == Order::Stop {
            let killed = self.orders.wait_for(|order| *order == Order::Kill);
            tokio::select! {
                _ = child.wait() => return None,
                _ = killed => {}
                () = tokio::time::sleep(STOP_GRACE) => {}
            }
        }
        let _ = child.kill().await;
        self.report(Event::Killed { member: self.index }).await;
        None
    }

    async fn report(&self, event: Event) {
        // The receiver is gone only when this process is ending.
        let _ = self.events.send(event).await;
    }
}

/// How a process ended, for people.
fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
        std::fs::rename(path, path.with_extension("old.txt"))?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

/// The last lines of a log, for people.
pub fn log_tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("{}: {error}", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(10);
    lines[first..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;
    use crate::config::MemberRole;

    struct Running {
        events: mpsc::Receiver<Event>,
        orders: watch::Sender<Order>,
        task: tokio::task::JoinHandle<()>,
        dir: tempfile::TempDir,
    }

    /// Supervises a shell script in place of a member.
    fn supervise(script: &str) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 1);
        let member = PlannedMember {
            name: "n1".to_owned(),
            site: "east",
            role: MemberRole::Voter,
            client: address,
            peer: address,
            dir: dir.path().join("n1"),
        };
        let (sender, events) = mpsc::channel(16);
        let (orders, receiver) = watch::channel(Order::Run);
        let supervisor = Supervisor {
            index: 0,
            member,
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            events: sender,
            orders: receiver,
        };
        Running { events, orders, task: tokio::spawn(supervisor.run()), dir }
    }

    async fn next(running: &mut Running) -> Event {
        tokio::time::timeout(Duration::from_secs(30), running.events.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_member_is_stopped_by_closing_its_input() {
        let mut running = supervise("echo hello; cat; echo bye");
        assert!(matches!(next(&mut running).await, Event::Started { member: 0, .. }));
        running.orders.send(Order::Stop).unwrap();
        tokio::time::timeout(Duration::from_secs(30), &mut running.task).await.unwrap().unwrap();
        assert!(running.events.recv().await.is_none(), "it was not killed");
        let log = running.dir.path().join("n1/log.txt");
        assert_eq!(log_tail(&log), "    hello\n    all\n    bye\n");
    }

    #[tokio::test]
    async fn a_member_that_does_not_stop_is_killed_when_told() {
        let mut running = supervise("while true; do sleep 1; done");
        let Event::Started { pid, .. } = next(&mut running).await else { panic!("not started") };
        running.orders.send(Order::Stop).unwrap();
        running.orders.send(Order::Kill).unwrap();
        assert!(matches!(next(&mut running).await, Event::Killed { member: 0 }));
        running.task.await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn a_death_is_told_and_a_stop_ends_the_wait_for_the_next_start() {
        let mut running = supervise("kill -9 $$");
        assert!(matches!(next(&mut running).await, Event::Started { .. }));
        let Event::Died { how, restart_in, .. } = next(&mut running).await else { panic!("not dead") };
        assert_eq!((how.as_str(), restart_in), ("was killed by signal 9", Some(RESTART_DELAY_MIN)));
        running.orders.send(Order::Stop).unwrap();
        tokio::time::timeout(Duration::from_secs(30), running.task).await.unwrap().unwrap();
        assert!(running.events.recv().await.is_none(), "it was started again");
    }

    #[tokio::test]
    async fn a_wrong_configuration_is_not_tried_again() {
        let mut running = supervise("exit 2");
        assert!(matches!(next(&mut running).await, Event::Started { .. }));
        let Event::Died { how, restart_in, .. } = next(&mut running).await else { panic!("not dead") };
        assert_eq!((how.as_str(), restart_in), ("ended with exit code 2", None));
        running.task.await.unwrap();
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.txt");
        File::create(&path).unwrap().set_len(LOG_MAX_BYTES + 1).unwrap();
        open_log(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join("log.old.txt")).unwrap().len(), LOG_MAX_BYTES + 1);
    }
}

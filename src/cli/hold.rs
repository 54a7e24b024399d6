//! `lifeboat lock` and `lifeboat elect`: run a command while holding a lock, or while leading.
//!
//! The command runs as a child. It gets the fencing token in its environment. When the lock may be lost it is told to
//! end (SIGTERM), and after a grace is ended (SIGKILL), because by then another holder may be at work. A signal to this
//! process is passed on, so that whoever ends `lifeboat lock` ends the command, and the lock is given up behind it.
//!
//! What this cannot promise is in `docs/client.md`: a command that was stopped together with this process, or that goes
//! on while it is being ended, may overlap with the next holder. The token is there to tell them apart.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, json, line};
use super::text::{duration, line_of};
use crate::api::KeyItem;
use crate::client::{Leadership, MutexGuard};

/// `lifeboat lock`.
#[derive(Debug, Args)]
#[command(after_help = "The command gets LIFEBOAT_LOCK_TOKEN (a number that grows from holder to holder), \
    LIFEBOAT_LOCK_KEY\nand LIFEBOAT_LOCK_LEASE. Its exit code is the exit code. When the lock is lost, or may be, the \
    command is ended\nand the exit code is 7; when the lock was not free in time, 6.")]
pub struct LockArgs {
    /// The lock; its keys stand under NAME/
    name: String,
    /// How long a holder that does not answer keeps it: whole seconds
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    ttl: Duration,
    /// Wait for it so long; as long as it takes when it is left out
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// Take it only if it is free
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// What others read about the holder; the host and the process when it is left out
    #[arg(long, value_name = "TEXT")]
    value: Option<String>,
    /// How long the command may take to end when the lock is lost, before it is killed
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2s")]
    grace: Duration,
    /// Show the holder and do nothing
    #[arg(long, conflicts_with_all = ["command", "wait", "no_wait"])]
    show: bool,
    #[command(flatten)]
    connect: Connect,
    /// What to run while holding it, behind --
    #[arg(last = true, required_unless_present = "show", value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs a command while holding a lock.
pub async fn lock(args: LockArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let mutex = client.mutex(&args.name).ttl(args.ttl).value(args.value.unwrap_or_else(whoami));
    if args.show {
        return show(mutex.holder().await?, &args.connect, "nobody holds it");
    }
    let mut signals = Signals::listen()?;
    let waited = async {
        match (args.no_wait, args.wait) {
            (true, _) => mutex.try_lock().await,
            (false, Some(wait)) => mutex.lock_within(wait).await,
            (false, None) => mutex.lock().await.map(Some),
        }
    };
    let guard = tokio::select! {
        guard = waited => guard?,
        signal = signals.next() => return Ok(Exit::Of(128 + signal.as_raw() as u8)),
    };
    let Some(guard) = guard else {
        let holder = mutex.holder().await.ok().flatten();
        let by = holder.and_then(|item| item.value).map_or_else(String::new, |by| format!(" by {}", line_of(&by)));
        return Err(Trouble::new(Exit::Unavailable, format!("{} is held{by}", args.name)));
    };
    let (key, lease) = (line_of(guard.key()).into_owned(), guard.lease().to_string());
    let environment = [("TOKEN", guard.token().to_string()), ("KEY", key), ("LEASE", lease)]
        .map(|(name, value)| (format!("LIFEBOAT_LOCK_{name}"), value));
    hold(Held::Lock(guard), &args.name, &args.command, environment, args.grace, &mut signals).await
}

/// `lifeboat elect`.
#[derive(Debug, Args)]
#[command(after_help = "The command gets LIFEBOAT_ELECTION_TOKEN (a number that grows from leader to leader) and \
    LIFEBOAT_ELECTION_KEY.\nIts exit code is the exit code. When the lead is lost, or may be, the command is ended and \
    the exit code is 7.\nWithout a command it leads until it is interrupted.")]
pub struct ElectArgs {
    /// The election; its keys stand under NAME/
    name: String,
    /// What others read about the leader; the host and the process when it is left out
    #[arg(long, value_name = "TEXT")]
    value: Option<String>,
    /// How long a leader that does not answer leads: whole seconds
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    ttl: Duration,
    /// How long the command may take to end when the lead is lost, before it is killed
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2s")]
    grace: Duration,
    /// Show who leads, and do nothing
    #[arg(long, conflicts_with_all = ["command", "observe"])]
    show: bool,
    /// Show who leads, and again each time that changes
    #[arg(long, conflicts_with = "command")]
    observe: bool,
    #[command(flatten)]
    connect: Connect,
    /// What to run while leading, behind --
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Stands for an election, or looks at it.
pub async fn elect(args: ElectArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let election = client.election(&args.name).ttl(args.ttl);
    if args.show {
        return show(election.leader().await?, &args.connect, "nobody leads");
    }
    if args.observe {
        let mut observer = election.observe();
        loop {
            let leader = observer.next().await?;
            match (args.connect.format(), leader) {
                (Format::Json, leader) => json(&leader)?,
                (_, Some(item)) => line(&holder_line(&item))?,
                (_, None) => line("-")?,
            }
        }
    }
    let mut signals = Signals::listen()?;
    let leadership = tokio::select! {
        leadership = election.campaign(args.value.unwrap_or_else(whoami)) => leadership?,
        signal = signals.next() => return Ok(Exit::Of(128 + signal.as_raw() as u8)),
    };
    let token = leadership.token();
    if args.command.is_empty() {
        match args.connect.format() {
            Format::Json => json(&serde_json::json!({ "token": token, "leading": args.name }))?,
            _ => line(&token.to_string())?,
        }
        tokio::select! {
            () = leadership.lost() => {
                return Err(Trouble::new(Exit::Lost, format!("the lead of {} is lost or may be", args.name)));
            }
            _ = signals.next() => {}
        }
        leadership.resign().await?;
        return Ok(Exit::Done);
    }
    let environment = [("TOKEN", token.to_string()), ("KEY", line_of(leadership.key()).into_owned())]
        .map(|(name, value)| (format!("LIFEBOAT_ELECTION_{name}"), value));
    hold(Held::Lead(leadership), &args.name, &args.command, environment, args.grace, &mut signals).await
}

/// Who holds or leads: the token and what is said about the holder.
fn holder_line(item: &KeyItem) -> String {
    format!("{}\t{}", item.meta.create_revision, line_of(item.value.as_deref().unwrap_or_default()))
}

fn show(holder: Option<KeyItem>, connect: &Connect, nobody: &str) -> Result<Exit, Trouble> {
    let Some(item) = holder else { return Err(Trouble::new(Exit::NotFound, nobody)) };
    match connect.format() {
        Format::Json => json(&item)?,
        _ => line(&holder_line(&item))?,
    }
    Ok(Exit::Done)
}

/// The host and the process.
fn whoami() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host} {}", std::process::id())
}

/// What is held while the command runs.
enum Held {
    Lock(MutexGuard),
    Lead(Leadership),
}

impl Held {
    async fn lost(&self) {
        match self {
            Held::Lock(guard) => guard.lost().await,
            Held::Lead(leadership) => leadership.lost().await,
        }
    }

    async fn release(self, name: &str) {
        let released = match self {
            Held::Lock(guard) => guard.unlock().await,
            Held::Lead(leadership) => leadership.resign().await,
        };
        // The command has done its work; that the next one waits for the end of the lease does not change that.
        if let Err(error) = released {
            eprintln!("lifeboat: {name} could not be given up and ends with its lease: {error}");
        }
    }
}

/// The signals that ask this process to end.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }
}

/// Runs a command as long as something is held.
async fn hold<const N: usize>(
    held: Held,
    name: &str,
    command: &[String],
    environment: [(String, String); N],
    grace: Duration,
    signals: &mut Signals,
) -> Result<Exit, Trouble> {
    let (program, arguments) = command.split_first().ok_or_else(|| Trouble::usage("a command is missing"))?;
    let spawned = Command::new(program).args(arguments).envs(environment).kill_on_drop(true).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            held.release(name).await;
            return Err(Trouble::new(Exit::Failed, format!("{program:?} cannot be run: {error}")));
        }
    };
    let ended = loop {
        tokio::select! {
            status = child.wait() => break Some(status?),
            () = held.lost() => break None,
            signal = signals.next() => send(&child, signal),
        }
    };
    match ended {
        Some(status) => {
            held.release(name).await;
            Ok(Exit::Of(code_of(status)))
        }
        None => {
            end(&mut child, grace).await?;
            // Whatever is left of it goes too.
            tokio::time::timeout(grace, held.release(name)).await.unwrap_or_default();
            Err(Trouble::new(Exit::Lost, format!("{name} was lost, or may have been; the command was ended")))
        }
    }
}

/// Asks the command to end, and ends it when it does not.
async fn end(child: &mut Child, grace: Duration) -> std::io::Result<()> {
    send(child, Signal::TERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

fn send(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        // It may have ended in the meantime, and is not reaped yet, so the id is still its own.
        let _ = kill_process(id, signal);
    }
}

/// The exit code as shells have it: 128 and the signal for a command that was killed.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

//! One drill, on the mirror: its steps in their order, and the end that comes whatever happens.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::JoinHandle;

use super::child::{ChildChecked, ChildLine, Contents};
use super::fork::{Forking, Made};
use super::{DrillNews, PREFIX, now_ms};
use crate::api::time::utc_text;
use crate::api::{DrillCheck, DrillLine, DrillMirror, DrillProgress, DrillReport, DrillRto, DrillStep};
use crate::crash_points::reach;
use crate::files::aside;
use crate::node::Inner;

/// How often is looked how the mirror does, and whether the drill may go on.
const LOOK: Duration = Duration::from_millis(50);
/// How often is told how far it is.
const TELL: Duration = Duration::from_millis(500);
/// A mirror whose lag has grown by so much, and by four election timeouts, did not follow meanwhile.
const FOLLOWS: Duration = Duration::from_secs(5);
/// A failover that was rehearsed for so long has failed.
const PROMOTION_LIMIT: Duration = Duration::from_secs(120);
/// No drill takes longer.
const LIMIT: Duration = Duration::from_secs(2 * 3600);
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// How long whoever asked may take to take the report.
const REPORT: Duration = Duration::from_secs(5);
/// So much of what the child has logged is shown when it fails.
const LOG_TAIL_BYTES: usize = 2000;
/// What the child logs.
const LOG: &str = "log.txt";

/// What a person has to know who fails over during a planned pause.
const PAUSED: &str = "a planned pause is in force: the throwaway member ended its own to be written to; after a failover it \
                      holds until its time is over, or `lifeboat maintenance end`";

/// Does a drill, and cleans up after it.
pub(super) async fn run(
    inner: Arc<Inner>,
    copy_at_most: u64,
    lines: mpsc::Sender<Bytes>,
    (running, using): (OwnedMutexGuard<()>, OwnedMutexGuard<()>),
) {
    let began = Instant::now();
    let mut drill = Drill {
        name: format!("{PREFIX}{}", now_ms()),
        copy_at_most,
        lines,
        began,
        step: DrillStep::Forking,
        told: None,
        child: None,
        own: None,
        report: DrillReport {
            member: inner.info.name.clone(),
            site: inner.info.site.clone(),
            passed: false,
            began: utc_text(now_ms()),
            seconds: 0.0,
            failure: None,
            rto: None,
            fork: None,
            timeline: None,
            first_revision: None,
            sequence: None,
            checks: Vec::new(),
            mirror: DrillMirror { lag_before_seconds: None, lag_max_seconds: None },
            notes: Vec::new(),
            next: String::new(),
        },
        inner,
    };
    tracing::info!(dir = drill.name, "a failover is rehearsed");
    let done = drill.rehearse().await;
    // From here on nothing of the drill looks at the store: whoever closes it waits for no more than that.
    drop(using);
    drill.step = DrillStep::Cleaning;
    drill.tell();
    if let Err(why) = done {
        drill.report.failure = Some(why);
    }
    let in_earnest = drill.in_earnest();
    if in_earnest {
        // A stream that goes on would hold up the member that is closed now.
        drill.report.notes.push("it is cleaned up while the mirror does what it was needed for".into());
        drill.judge();
        drill.send_report().await;
        (drill.lines, _) = mpsc::channel(1);
    }
    if let Err(error) = drill.clean_up().await {
        tracing::error!(dir = drill.name, %error, "what the drill has left cannot be removed");
        let note = format!("{} is left, and goes at the next start: {error}", drill.name);
        drill.report.notes.push(note);
    }
    if !in_earnest {
        drill.judge();
    }
    let words = words(&drill.report);
    tracing::info!(passed = drill.report.passed, words, "the drill has ended");
    // Before the news: who has read it may begin the next one.
    drop(running);
    let (member, passed) = (drill.report.member.clone(), drill.report.passed);
    tokio::spawn(drill.inner.clone().tell_of_drill(DrillNews::new(member, passed, words)));
    drill.send_report().await;
}

/// In one sentence, for the event.
fn words(report: &DrillReport) -> String {
    let (member, site) = (&report.member, &report.site);
    let bad: Vec<&str> = report.checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str()).collect();
    match (&report.failure, report.rto) {
        (Some(why), _) => format!("the failover to site {site} that was rehearsed at {member} failed: {why}"),
        (None, Some(rto)) => {
            let what = format!("a failover to site {site} was rehearsed at {member} and took {:.2} s", rto.seconds);
            if bad.is_empty() { what } else { format!("{what}; not as it should be: {}", bad.join(", ")) }
        }
        (None, None) => format!("a failover to site {site} was rehearsed at {member}"),
    }
}

fn encode(line: &DrillLine) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("reports have nothing that JSON cannot hold");
    text.push(b'\n');
    text.into()
}

struct Drill {
    inner: Arc<Inner>,
    /// Its directory, in the data directory.
    name: String,
    copy_at_most: u64,
    lines: mpsc::Sender<Bytes>,
    began: Instant,
    step: DrillStep,
    /// What was told last, and when.
    told: Option<(DrillStep, Instant)>,
    /// The throwaway member.
    child: Option<Child>,
    /// What this member itself holds.
    own: Option<Digesting>,
    report: DrillReport,
}

/// Ends what a thread does for a drill that has ended.
struct GiveUp(Arc<AtomicBool>);

/// A digest of what the mirror holds, being made.
struct Digesting {
    task: JoinHandle<Result<Option<Contents>, String>>,
    give_up: GiveUp,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drill {
    fn dir(&self) -> PathBuf {
        self.inner.data_dir.join(&self.name)
    }

    async fn rehearse(&mut self) -> Result<(), String> {
        self.report.mirror.lag_before_seconds = self.inner.lag.get().map(|lag| lag.as_secs_f64());
        self.look()?;
        let made = self.fork().await?;
        self.report.fork = Some(made.fork);
        reach("drill-forked").await;
        self.look()?;
        self.step = DrillStep::Opening;
        let mut said = self.start(&made)?;
        reach("drill-child-started").await;
        let followed = self.follow(&mut said, &made).await;
        if let Some(Digesting { task, give_up }) = self.own.take() {
            drop(give_up);
            let _given_up = task.await;
        }
        self.note_lag();
        followed
    }

    /// Looks how far behind the mirror may be.
    fn note_lag(&mut self) {
        let mirror = &mut self.report.mirror;
        if let Some(lag) = self.inner.lag.get() {
            mirror.lag_max_seconds = Some(mirror.lag_max_seconds.unwrap_or(0.0).max(lag.as_secs_f64()));
        }
    }

    /// Makes the fork. It is waited for, whatever happens meanwhile: nothing else may be in its directory.
    async fn fork(&self) -> Result<Made, String> {
        let (inner, name, copy_at_most) = (self.inner.clone(), self.name.clone(), self.copy_at_most);
        let made = tokio::task::spawn_blocking(move || {
            let disk = inner.home.lock().disk.clone();
            let forking = Forking {
                store: &inner.store,
                wal: &inner.wal,
                disk: &disk,
                dir: &inner.data_dir,
                into: &name,
                name: &inner.info.name,
                copy_at_most,
            };
            forking.make(inner.committed_index())
        });
        let made = made.await.map_err(|error| error.to_string())?;
        made.map_err(|why| format!("the history could not be forked: {why}"))
    }

    fn start(&mut self, made: &Made) -> Result<Lines<BufReader<ChildStdout>>, String> {
        let failed = |error: std::io::Error| format!("the throwaway member could not be started: {error}");
        let Some(launcher) = self.inner.drills.launcher.get() else {
            return Err("there is no program to start".into());
        };
        let log = std::fs::File::create(self.dir().join(LOG)).map_err(failed)?;
        let mut command = launcher(&self.dir(), made.revision);
        // Its input stays open for as long as this process lives, and tells it when it does not any more.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let Some(stdout) = child.stdout.take() else { return Err("the throwaway member says nothing".into()) };
        self.child = Some(child);
        Ok(BufReader::new(stdout).lines())
    }

    /// Follows what the child says, to its end.
    async fn follow(&mut self, said: &mut Lines<BufReader<ChildStdout>>, made: &Made) -> Result<(), String> {
        let mut tick = tokio::time::interval(LOOK);
        let mut promoting = None::<Instant>;
        loop {
            let line = tokio::select! {
                line = said.next_line() => line.map_err(|error| error.to_string())?,
                _ = tick.tick() => {
                    self.look()?;
                    if self.report.rto.is_none() && promoting.is_some_and(|since| since.elapsed() > PROMOTION_LIMIT) {
                        return Err(format!("it did not lead within {} s{}", PROMOTION_LIMIT.as_secs(), self.log_tail()));
                    }
                    continue;
                }
            };
            let Some(line) = line else { return Err(format!("the throwaway member ended{}", self.log_tail())) };
            match serde_json::from_str(&line).map_err(|error| format!("the throwaway member said {line:?}: {error}"))? {
                ChildLine::Opened { seconds } => {
                    self.report.fork.iter_mut().for_each(|fork| fork.index_seconds = Some(seconds));
                    (self.step, promoting) = (DrillStep::Promoting, Some(Instant::now()));
                }
                ChildLine::Leads(leads) => {
                    let objective_seconds = self.inner.objectives.rto_seconds;
                    let met = leads.rto.seconds <= objective_seconds;
                    self.report.rto = Some(DrillRto { objective_seconds, met, ..leads.rto });
                    self.report.timeline = Some(leads.timeline);
                    self.report.first_revision = Some(leads.revision);
                    if leads.ended_pause {
                        self.report.notes.push(PAUSED.into());
                    }
                    self.step = DrillStep::Checking;
                    reach("drill-leads").await;
                    // Only now, so that what was measured was not slowed down by it.
                    self.own = Some(self.digest_own(made));
                }
                ChildLine::Checked(checked) => {
                    reach("drill-checked").await;
                    let ChildChecked { checks, sequence, content } = checked;
                    self.report.checks.extend(checks);
                    self.report.sequence = sequence;
                    let own = loop {
                        // It stays in its place, so that it is waited for however this ends.
                        let Some(own) = &mut self.own else { return Err("it has not led".into()) };
                        tokio::select! {
                            own = &mut own.task => break own.map_err(|error| error.to_string()),
                            _ = tick.tick() => self.look()?,
                        }
                    };
                    self.own = None;
                    let own = own?;
                    self.compare(content, own, made);
                    return Ok(());
                }
                ChildLine::Failed { why } => return Err(format!("{why}{}", self.log_tail())),
            }
        }
    }

    /// Digests what this member holds at the revision of the fork.
    fn digest_own(&self, made: &Made) -> Digesting {
        let (inner, at, give_up) = (self.inner.clone(), made.revision, GiveUp(Arc::default()));
        let ended = give_up.0.clone();
        let task = tokio::task::spawn_blocking(move || {
            let rate = inner.verify_bytes_per_second;
            Contents::of(&inner.store, at, rate, || !ended.load(Ordering::Relaxed) && !inner.is_stopping())
        });
        Digesting { task, give_up }
    }

    fn compare(&mut self, theirs: Result<Contents, String>, own: Result<Option<Contents>, String>, made: &Made) {
        let at = made.revision;
        let check = |passed, detail| DrillCheck { name: "contents".into(), passed, detail };
        let check = match (theirs, own) {
            (Ok(theirs), Ok(Some(own))) if theirs == own => {
                check(true, format!("all {} keys are what the mirror holds at revision {at}", own.keys))
            }
            (Ok(theirs), Ok(Some(own))) => check(
                false,
                format!("{} keys, and the mirror holds {} at revision {at}: they differ", theirs.keys, own.keys),
            ),
            (Err(why), _) => check(false, why),
            // The mirror's floor has passed the revision, for example. The fork is as good as before.
            (_, own) => {
                let why = own.err().unwrap_or_else(|| "the mirror was ended".to_owned());
                return self.report.notes.push(format!("contents were not compared: {why}"));
            }
        };
        self.report.checks.push(check);
    }

    /// Looks how the mirror does, and whether the drill may go on; tells how far it is.
    fn look(&mut self) -> Result<(), String> {
        self.note_lag();
        let inner = &self.inner;
        if self.in_earnest() {
            return Err("the mirror was needed in earnest, or was taken out of service".into());
        }
        if inner.is_stopping() {
            return Err("the mirror is stopping".into());
        }
        if inner.http.identity().is_short() {
            return Err("the mirror is short of disk room".into());
        }
        if self.lines.is_closed() {
            return Err("whoever asked for it went away".into());
        }
        if self.began.elapsed() > LIMIT {
            return Err(format!("it took more than {} hours", LIMIT.as_secs() / 3600));
        }
        self.tell();
        Ok(())
    }

    /// Whether the mirror has something else to do.
    fn in_earnest(&self) -> bool {
        let inner = &self.inner;
        *inner.reopen.borrow() || inner.check_serves().is_err() || inner.home.lock().file.promotion.is_some()
    }

    async fn send_report(&self) {
        let line = encode(&DrillLine::Report(Box::new(self.report.clone())));
        // Nobody may be there to take it.
        let _unread = tokio::time::timeout(REPORT, self.lines.send(line)).await;
    }

    fn tell(&mut self) {
        if self.told.is_some_and(|(step, at)| step == self.step && at.elapsed() < TELL) {
            return;
        }
        self.told = Some((self.step, Instant::now()));
        let progress = DrillProgress { step: self.step, elapsed_seconds: self.began.elapsed().as_secs_f64() };
        // Who does not read does not hold it up.
        let _full = self.lines.try_send(encode(&DrillLine::Progress(progress)));
    }

    /// The last that the child has logged, for people.
    fn log_tail(&self) -> String {
        let text = std::fs::read(self.dir().join(LOG)).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
        let last: Vec<&str> = tail.lines().rev().take(3).collect();
        if last.is_empty() {
            return String::new();
        }
        format!("; the last that it logged: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "))
    }

    async fn clean_up(&mut self) -> Result<(), String> {
        if let Some(mut child) = self.child.take() {
            // Dropping it would do the same, and not wait.
            let _gone = child.start_kill();
            if tokio::time::timeout(GONE, child.wait()).await.is_err() {
                self.report.notes.push("the throwaway member takes long to be gone".into());
            }
        }
        let (dir, name) = (self.inner.data_dir.clone(), self.name.clone());
        let removed = tokio::task::spawn_blocking(move || aside::remove(&dir, &name)).await;
        removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// What it all comes to.
    fn judge(&mut self) {
        let report = &mut self.report;
        report.seconds = self.began.elapsed().as_secs_f64();
        match report.mirror.lag_before_seconds {
            None => report.notes.push("no leader confirmed what the mirror has: its lag is not known".into()),
            Some(before) => {
                let most = report.mirror.lag_max_seconds.unwrap_or_default();
                let bound = FOLLOWS.max(self.inner.election_max * 4).as_secs_f64();
                let how = match (before <= bound, most - before <= bound) {
                    (false, _) => "did not follow when the drill began",
                    (true, false) => "did not follow meanwhile, as without a leader, or with too little time for both",
                    (true, true) => "went on following",
                };
                let passed = before <= bound && most - before <= bound;
                let detail = format!("the mirror {how}; its lag was {before:.2} s before, and {most:.2} s at most");
                report.checks.push(DrillCheck { name: "mirror".into(), passed, detail });
            }
        }
        if let Some(rto) = report.rto {
            let detail = format!(
                "{:.2} s from the order to the first write; {} s are aimed at",
                rto.seconds, rto.objective_seconds
            );
            report.checks.push(DrillCheck { name: "objective".into(), passed: rto.met, detail });
        }
        report.notes.push(
            "the time is that of the order alone: to notice, to decide and to survey (up to 1 s) comes before it; it ran at \
             low priority beside the mirror"
                .into(),
        );
        report.passed =
            report.failure.is_none() && report.rto.is_some() && report.checks.iter().all(|check| check.passed);
        let url = &self.inner.info.client_url;
        let bad = |names: &[&str]| report.checks.iter().any(|check| !check.passed && names.contains(&&*check.name));
        let command = match report.passed {
            true => "dr plan",
            false if bad(&["files", "contents"]) => "verify",
            false if bad(&["mirror"]) => "replication",
            false => "events",
        };
        report.next = format!("lifeboat {command} --endpoints {url}");
    }
}

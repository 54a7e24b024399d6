//! `lifeboat verify`: whether every member's files are sound and all hold the same.
//!
//! On a terminal a line on standard error says how far it is. The report goes to standard output, and the exit code says
//! what was found: 8 when a member is damaged or holds something else than the others.

use std::time::{Duration, Instant};

use clap::Args;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, Ticker, json, line};
use super::text::span;
use crate::api::{ProblemCode, Revision, VerifyLine, VerifyPhase, VerifyProgress, VerifyReport, VerifyState};

/// How often is asked whether another verification has ended.
const AGAIN: Duration = Duration::from_millis(200);
/// The bar has so many steps.
const BAR: usize = 24;

/// `lifeboat verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Every member reads its history from its disk, not faster than its verify_bytes_per_second, then all \
    are compared\nkey by key at one revision. A member that is damaged or differs goes into quarantine and is repaired.\n\
    One that runs already is waited for, until --timeout.\n\
    Exit codes: 0 all members hold the same, 8 at least one is wrong, 1 nobody is wrong and not all could be verified.\n\
    Plain lines: name, role, state, bytes read, detail."
)]
pub struct VerifyArgs {
    /// Compare at this revision instead of the newest
    #[arg(long, value_name = "REVISION")]
    rev: Option<Revision>,
    #[command(flatten)]
    connect: Connect,
}

/// Verifies and prints the report.
pub async fn verify(args: VerifyArgs) -> Result<Exit, Trouble> {
    let (client, ticker, began) = (args.connect.client()?, Ticker::new(), Instant::now());
    let mut verification = loop {
        match client.verify(args.rev).await {
            // A member that has just come home is being verified, or somebody else asks: one at a time.
            Err(error)
                if error.code() == Some(ProblemCode::VerifyRunning) && began.elapsed() < args.connect.timeout =>
            {
                ticker.say("another verification runs: waiting for its end");
                tokio::time::sleep(AGAIN).await;
            }
            begun => break begun?,
        }
    };
    let mut phase_began = (VerifyPhase::Scrub, 0.0);
    let report = loop {
        match verification.next().await {
            Ok(Some(VerifyLine::Progress(progress))) => {
                if phase_began.0 != progress.phase {
                    phase_began = (progress.phase, progress.elapsed_seconds);
                }
                ticker.say(&words(&progress, phase_began.1));
            }
            Ok(Some(VerifyLine::Report(report))) => break report,
            Ok(None) => {
                ticker.clear();
                return Err(Trouble::new(Exit::Failed, "the verification was cut before its report came"));
            }
            Err(error) => {
                ticker.clear();
                return Err(error.into());
            }
        }
    };
    ticker.clear();
    print(args.connect.format(), &report)?;
    Ok(match (report.agreed, report.complete) {
        (true, true) => Exit::Done,
        (true, false) => Exit::Failed,
        (false, _) => Exit::Disagree,
    })
}

/// A bar, how much of it is done, how fast it goes and how long it will take.
fn words(progress: &VerifyProgress, phase_began: f64) -> String {
    let VerifyProgress { phase, done, total, bytes, elapsed_seconds } = *progress;
    let share = if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) };
    let full = (share * BAR as f64) as usize;
    let bar = format!("{}{}", "#".repeat(full), "-".repeat(BAR - full));
    let name = match phase {
        VerifyPhase::Scrub => "reading",
        VerifyPhase::Content => "comparing",
    };
    let rate = bytes as f64 / elapsed_seconds.max(0.001) / f64::from(1 << 20);
    let spent = elapsed_seconds - phase_began;
    let left = if share > 0.0 { span(spent * (1.0 - share) / share) } else { "?".to_owned() };
    format!("{name:9} [{bar}] {:3.0}%  {rate:.1} MiB/s  {left} left", share * 100.0)
}

fn print(format: Format, report: &VerifyReport) -> Result<(), Trouble> {
    if format == Format::Json {
        return Ok(json(report)?);
    }
    let mut rows = Rows::new(format, ["MEMBER", "ROLE", "STATE", "BYTES READ", "DETAIL"]);
    for member in &report.members {
        let state = match member.state {
            VerifyState::Agrees => "agrees",
            VerifyState::Differs => "differs",
            VerifyState::Damaged => "damaged",
            VerifyState::Quarantined => "quarantined",
            VerifyState::Behind => "behind",
            VerifyState::Unreachable => "unreachable",
            VerifyState::OldProgram => "old program",
        };
        rows.add([
            member.name.clone(),
            member.role.to_string(),
            state.to_owned(),
            member.scrubbed_bytes.to_string(),
            member.detail.clone().unwrap_or_else(|| "-".to_owned()),
        ])?;
    }
    rows.finish()?;
    if format == Format::Plain {
        return Ok(());
    }
    for member in &report.members {
        if let (false, Some(detail)) = (member.state == VerifyState::Agrees, &member.detail) {
            line(&format!("{}: {detail}", member.name))?;
        }
        if let Some(doubt) = &member.doubt {
            let (from, to) = (doubt.from_revision, doubt.to_revision);
            let keys = doubt.keys.join(", ");
            line(&format!("{}: in doubt at revisions {from} to {to}, {} keys: {keys}", member.name, doubt.count))?;
        }
    }
    for note in &report.notes {
        line(&format!("note: {note}"))?;
    }
    let verdict = match (report.agreed, report.complete) {
        (true, true) => "all members hold the same",
        (true, false) => "nobody is wrong, and not all members could be verified",
        (false, _) => "NOT all members hold the same",
    };
    let (keys, seconds) = (report.keys, report.seconds);
    Ok(line(&format!("{verdict}: {keys} keys compared at revision {}, {seconds:.1} s", report.revision))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is_and_how_long_it_takes() {
        let phase = VerifyPhase::Scrub;
        let progress = VerifyProgress { phase, done: 1, total: 4, bytes: 20 << 20, elapsed_seconds: 2.0 };
        assert_eq!(words(&progress, 0.0), "reading   [######------------------]  25%  10.0 MiB/s  6.0 s left");
        let nothing = VerifyProgress { phase: VerifyPhase::Content, done: 0, total: 0, bytes: 0, elapsed_seconds: 0.0 };
        assert_eq!(words(&nothing, 0.0), "comparing [------------------------]   0%  0.0 MiB/s  ? left");
    }
}

//! `lifeboat seq` and `lifeboat maintenance`.

use clap::{Args, Subcommand};

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, json, line};
use super::text::span;
use crate::api::{MaintenanceReply, MaintenanceRequest};

/// `lifeboat seq`.
#[derive(Debug, Args)]
#[command(
    after_help = "Plain lines: the first and the last number; with --show the last number given out, the step, and \
    how often it jumped."
)]
pub struct SeqArgs {
    /// The sequence; made when there is none
    name: String,
    /// Take so many numbers, one after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// By how much it jumps when the timeline changes; declared by whoever takes the first number
    #[arg(long)]
    step: Option<u64>,
    /// Show how far it is, and take nothing
    #[arg(long, conflicts_with_all = ["count", "step", "idempotency_key"])]
    show: bool,
    /// The key under which the members know the request again
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Takes numbers of a sequence, or shows it.
pub async fn seq(args: SeqArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let format = args.connect.format();
    if args.show {
        let state = client.sequence_state(&args.name).await?;
        match format {
            Format::Json => json(&state)?,
            Format::Plain => line(&format!("{}\t{}\t{}", state.last, state.step, state.jump_count))?,
            Format::Table => {
                line(&format!("{} has given out {}; its step is {}", state.name, state.last, state.step))?;
                for jump in &state.jumps {
                    let (from, to, timeline) = (jump.from, jump.to, jump.timeline);
                    line(&format!("jumped from {from} to {to} on timeline {timeline}, revision {}", jump.revision))?;
                }
            }
        }
        warn(state.note.as_deref());
        return Ok(Exit::Done);
    }
    let mut take = client.sequence(&args.name).count(args.count);
    if let Some(step) = args.step {
        take = take.step(step);
    }
    if let Some(key) = args.idempotency_key {
        take = take.idempotency_key(key);
    }
    let taken = take.await?;
    match format {
        Format::Json => json(&taken)?,
        Format::Plain => line(&format!("{}\t{}", taken.first, taken.last))?,
        Format::Table if taken.first == taken.last => line(&taken.first.to_string())?,
        Format::Table => line(&format!("{} to {}", taken.first, taken.last))?,
    }
    warn(taken.note.as_deref());
    Ok(Exit::Done)
}

fn warn(note: Option<&str>) {
    if let Some(note) = note {
        eprintln!("warning: {note}");
    }
}

/// `lifeboat maintenance`.
#[derive(Debug, Args)]
pub struct MaintenanceArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Begin a planned pause, or replace the one that there is: writes are refused until it ends
    Start {
        /// What clients are told
        message: String,
        /// When it ends by itself: a span (30m) or a time (2026-11-24T04:30:00Z)
        #[arg(long, value_name = "WHEN")]
        until: String,
        /// Refuse reads, lists and watches too
        #[arg(long)]
        reads: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Show the planned pause
    Status {
        #[command(flatten)]
        connect: Connect,
    },
    /// End the planned pause
    End {
        #[command(flatten)]
        connect: Connect,
    },
}

/// Does what is asked about the planned pause.
pub async fn maintenance(args: MaintenanceArgs) -> Result<Exit, Trouble> {
    match args.what {
        What::Start { message, until, reads, connect } => {
            let pause = connect.client()?.begin_maintenance(&MaintenanceRequest { message, until, reads }).await?;
            show(connect.format(), &pause)
        }
        What::Status { connect } => show(connect.format(), &connect.client()?.maintenance().await?),
        What::End { connect } => {
            let ended = connect.client()?.end_maintenance().await?;
            match connect.format() {
                Format::Json => json(&ended)?,
                Format::Plain => line(if ended.ended { "ended" } else { "none" })?,
                Format::Table if ended.ended => line("the planned pause is over")?,
                Format::Table => line("there was no planned pause")?,
            }
            Ok(Exit::Done)
        }
    }
}

fn show(format: Format, pause: &MaintenanceReply) -> Result<Exit, Trouble> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let refused = if pause.reads == Some(true) { "reads and writes" } else { "writes" };
    match format {
        Format::Json => json(pause)?,
        _ if !pause.active => line("none")?,
        Format::Plain => line(&format!("active\t{}\t{refused}\t{}", text(&pause.until), text(&pause.message)))?,
        Format::Table => {
            let left = span(pause.remaining_seconds.unwrap_or_default());
            line(&format!("{refused} are refused until {} ({left}): {}", text(&pause.until), text(&pause.message)))?;
        }
    }
    Ok(Exit::Done)
}

//! `lifeboat replication` and `lifeboat dr plan`: mirrors measured, and what to do in the present state.

use std::io;

use clap::{Args, Subcommand};

use super::cluster::dash;
use super::connect::Connect;
use super::drill::{DrillArgs, drill};
use super::exit::{Exit, Trouble};
use super::failover;
use super::output::{Format, Rows, json, line};
use super::switchover::{SwitchoverArgs, switchover};
use super::text::{bytes, span};
use crate::api::{DrReply, MemberReplication, Queue, ReplicationReply, StandbySite};

/// `lifeboat replication`.
#[derive(Debug, Args)]
#[command(after_help = "Plain lines: name, site, role, state, entries to send, bytes to send, age of the oldest in \
    seconds, entries to apply,\nage of the oldest, lag in seconds, round trip in seconds, revision to which the hashes \
    agree, by what it can catch up.")]
pub struct ReplicationArgs {
    #[command(flatten)]
    connect: Connect,
}

/// Shows how every member follows.
pub async fn replication(args: ReplicationArgs) -> Result<Exit, Trouble> {
    let reply = args.connect.client()?.replication().await?;
    let format = args.connect.format();
    if format == Format::Json {
        json(&reply)?;
        return Ok(Exit::Done);
    }
    print_members(format, &reply)?;
    if format == Format::Table {
        match &reply.leader {
            None => line("no leader can be asked: this is what the asked member knows of itself")?,
            Some(leader) if !reply.confirmed => {
                line(&format!("no quorum confirms {leader}: all figures are lower bounds"))?;
            }
            Some(_) => {}
        }
        for member in &reply.members {
            if let Some(reason) = &member.reason {
                line(&format!("{}: {reason}", member.name))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn print_members(format: Format, reply: &ReplicationReply) -> io::Result<()> {
    let heading = [
        "MEMBER",
        "SITE",
        "ROLE",
        "STATE",
        "TO SEND",
        "BYTES",
        "OLDEST",
        "TO APPLY",
        "OLDEST",
        "LAG",
        "AWAY",
        "AGREES TO",
        "BY",
    ];
    let mut rows = Rows::new(format, heading);
    let people = format == Format::Table;
    let seconds = |seconds: f64| if people { span(seconds) } else { format!("{seconds:.3}") };
    for member in &reply.members {
        let MemberReplication { send_queue: send, redo_queue: redo, .. } = member;
        let size = if people { bytes(send.bytes) } else { send.bytes.to_string() };
        let redo_entries = redo.map(|Queue { entries, .. }| entries);
        let by = member.catch_up_by.map(|by| format!("{by:?}").to_lowercase());
        rows.add([
            member.name.clone(),
            member.site.clone(),
            if member.leader { "leader".to_owned() } else { member.role.to_string() },
            member.state.to_string(),
            send.entries.to_string(),
            size,
            dash(send.oldest_seconds.map(seconds)),
            dash(redo_entries),
            dash(redo.and_then(|redo| redo.oldest_seconds).map(seconds)),
            dash(member.lag_seconds.map(seconds)),
            dash(member.round_trip_seconds.map(seconds)),
            dash(member.hash_agreed_revision),
            dash(by),
        ])?;
    }
    rows.finish()
}

/// `lifeboat dr`.
#[derive(Debug, Args)]
pub struct DrArgs {
    #[command(subcommand)]
    what: DrWhat,
}

#[derive(Debug, Subcommand)]
// A value of it is made once in the life of a command.
#[allow(clippy::large_enum_variant)]
enum DrWhat {
    /// Show sites, objectives and warnings, and the commands that make sense now
    Plan {
        #[command(flatten)]
        connect: Connect,
    },
    /// Ask every member how it stands, and what a forced failover would lose
    Survey(failover::SurveyArgs),
    /// Make a standby site the primary although writes may be lost; asked of one of its mirrors
    Force(failover::ForceArgs),
    /// Go on with what is left of a site that has lost its quorum for good; asked of one of its voters
    Recover(failover::RecoverArgs),
    /// Let a fenced member come home as a mirror; asked of that member
    Rejoin(failover::RejoinArgs),
    /// Rehearse a forced failover at a mirror, which goes on following; nothing is touched
    Drill(DrillArgs),
    /// Move the primary site to another one, without loss
    Switchover(SwitchoverArgs),
}

/// Does what is asked about the loss of a site.
pub async fn dr(args: DrArgs) -> Result<Exit, Trouble> {
    match args.what {
        DrWhat::Plan { connect } => plan(&connect).await,
        DrWhat::Drill(args) => drill(args).await,
        DrWhat::Switchover(args) => switchover(args).await,
        DrWhat::Survey(args) => failover::survey(args).await,
        DrWhat::Force(args) => failover::force(args).await,
        DrWhat::Recover(args) => failover::recover(args).await,
        DrWhat::Rejoin(args) => failover::rejoin(args).await,
    }
}

async fn plan(connect: &Connect) -> Result<Exit, Trouble> {
    let reply = connect.client()?.dr().await?;
    match connect.format() {
        Format::Json => json(&reply)?,
        // For a shell: the commands alone.
        Format::Plain => reply.plan.iter().try_for_each(|step| line(&step.command))?,
        Format::Table => print_plan(&reply)?,
    }
    Ok(Exit::Done)
}

fn print_plan(reply: &DrReply) -> io::Result<()> {
    line(&format!("primary site   {}", dash(reply.primary_site.as_ref())))?;
    line(&format!("quorum margin  {}", dash(reply.quorum_margin)))?;
    if let Some(running) = &reply.switchover {
        line(&format!("switchover     {}", super::switchover::words(running)))?;
    }
    for site in &reply.standby_sites {
        print_site(site, reply)?;
    }
    for warning in &reply.warnings {
        line(&format!("warning: {warning}"))?;
    }
    for step in &reply.plan {
        line("")?;
        line(&format!("# {}", step.why))?;
        line(&step.command)?;
    }
    Ok(())
}

fn print_site(site: &StandbySite, reply: &DrReply) -> io::Result<()> {
    let seconds = |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), span);
    let met = |met: bool| if met { "met" } else { "MISSED" };
    line(&format!("standby site   {}: {}; best: {}", site.site, site.mirrors.join(", "), dash(site.best.as_ref())))?;
    let (is, entries, aim) = (seconds(site.rpo_seconds), dash(site.rpo_entries), span(reply.objectives.rpo_seconds));
    line(&format!("  would lose   {is}, {entries} entries (objective {aim}, {})", met(site.rpo_met)))?;
    let (is, aim) = (seconds(site.rto_seconds), span(reply.objectives.rto_seconds));
    line(&format!("  would take   {is}, estimated (objective {aim}, {})", met(site.rto_met)))
}

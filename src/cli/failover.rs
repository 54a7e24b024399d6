//! `lifeboat dr survey`, `force`, `recover` and `rejoin`: a forced failover, and the way home of a fenced member.
//!
//! These ask the one member that is named first in `--endpoints`, because which one it is, is part of the decision.

use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::cluster::dash;
use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, json, line};
use super::text::span;
use crate::api::{ForceReply, ForceRequest, RandomId, RejoinRequest, SurveyReply};
use crate::client::{Client, HealthCheck};

/// How often is looked whether the promoted member leads.
const LOOK: Duration = Duration::from_millis(20);

/// The client, and the one member that is asked.
fn one(connect: &Connect) -> Result<(Client, &str), Trouble> {
    let url = connect.endpoints.first().ok_or_else(|| Trouble::usage("no endpoint is given"))?;
    Ok((connect.client()?, url))
}

/// `lifeboat dr survey`.
#[derive(Debug, Args)]
pub struct SurveyArgs {
    #[command(flatten)]
    connect: Connect,
}

/// Shows who answers and what a forced failover would lose.
pub async fn survey(args: SurveyArgs) -> Result<Exit, Trouble> {
    let (client, url) = one(&args.connect)?;
    let reply = client.at(url)?.survey().await?;
    match args.connect.format() {
        Format::Json => json(&reply)?,
        format => print_survey(format, &reply)?,
    }
    Ok(Exit::Done)
}

fn print_survey(format: Format, reply: &SurveyReply) -> std::io::Result<()> {
    let heading =
        ["MEMBER", "SITE", "ROLE", "ANSWERS", "TIMELINE", "TERM", "LAST", "COMMITTED", "REVISION", "LAG", "WHY NOT"];
    let mut rows = Rows::new(format, heading);
    for member in &reply.members {
        rows.add([
            member.name.clone(),
            member.site.clone(),
            if member.leads { "leader".to_owned() } else { member.role.to_string() },
            if member.answers { "yes" } else { "no" }.to_owned(),
            dash(member.timeline.map(|timeline| timeline.number)),
            dash(member.last_term),
            dash(member.last_index),
            dash(member.committed_index),
            dash(member.revision),
            dash(member.lag_seconds.map(span)),
            dash(member.reason.as_ref()),
        ])?;
    }
    rows.finish()?;
    if format != Format::Table {
        return Ok(());
    }
    match (&reply.primary, &reply.best, &reply.loss) {
        (Some(why), _, _) => line(&format!("the primary is there: {why}"))?,
        (None, Some(best), Some(loss)) => {
            line(&format!("{best} would be promoted, at revision {}: {}", loss.kept_revision, loss.words()))?;
        }
        _ => line(&format!("no member of site {} can be promoted", reply.site))?,
    }
    line("")?;
    line(&reply.next)
}

/// `lifeboat dr force`.
#[derive(Debug, Args)]
pub struct ForceArgs {
    /// Writes that the old primary acknowledged may be lost
    #[arg(long)]
    accept_data_loss: bool,
    /// A member of the site that need not answer, although it may hold more; may be repeated
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Who orders it, for the record
    #[arg(long, env = "USER", value_name = "WHO")]
    by: Option<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// `lifeboat dr recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The rest of a site that has lost its quorum goes on alone; must be given
    #[arg(long)]
    survivor: bool,
    #[command(flatten)]
    force: ForceArgs,
}

/// Goes on with what is left of a site.
pub async fn recover(args: RecoverArgs) -> Result<Exit, Trouble> {
    if !args.survivor {
        return Err(Trouble::usage(
            "--survivor must be given: the site goes on with what is left of it. Look first: lifeboat dr survey",
        ));
    }
    promote(args.force, true).await
}

/// Makes a standby site the primary.
pub async fn force(args: ForceArgs) -> Result<Exit, Trouble> {
    promote(args, false).await
}

async fn promote(args: ForceArgs, survivor: bool) -> Result<Exit, Trouble> {
    let (client, url) = one(&args.connect)?;
    let request = ForceRequest {
        accept_data_loss: args.accept_data_loss,
        without: args.without,
        survivor,
        by: args.by,
        reason: args.reason,
    };
    let started = Instant::now();
    let reply = client.at(url)?.force(&request).await?;
    let promoted = client.at(&reply.client_url)?;
    let serves = async {
        // A member that still has to be opened anew answers for the parent timeline, and refuses what names this one.
        promoted.accept_timeline(reply.timeline);
        loop {
            if promoted.status().await.is_ok() && promoted.health(HealthCheck::Leader).await.healthy {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let serves = tokio::time::timeout(args.connect.timeout, serves).await.is_ok();
    match args.connect.format() {
        Format::Json => json(&reply)?,
        _ => print_force(&reply, serves.then(|| started.elapsed()))?,
    }
    if serves {
        return Ok(Exit::Done);
    }
    let text = format!(
        "{} has not begun to serve in time; it goes on trying, unless it has given way to another order of the same moment",
        reply.member
    );
    Err(Trouble::new(Exit::Unknown, text).hint(reply.next))
}

fn print_force(reply: &ForceReply, took: Option<Duration>) -> std::io::Result<()> {
    line(&format!("{} begins timeline {} at revision {}", reply.member, reply.timeline, reply.loss.kept_revision))?;
    line(&format!("loss: {}", reply.loss.words()))?;
    if let Some(took) = took {
        line(&format!("it serves writes, {} after the command", span(took.as_secs_f64())))?;
    }
    if !reply.rejoining.is_empty() {
        line(&format!("come home by themselves, and vote then: {}", reply.rejoining.join(", ")))?;
    }
    if !reply.waiting.is_empty() {
        line(&format!("are fenced when they are met, and wait for lifeboat dr rejoin: {}", reply.waiting.join(", ")))?;
    }
    line("")?;
    line(&reply.next)
}

/// `lifeboat dr rejoin`.
#[derive(Debug, Args)]
pub struct RejoinArgs {
    /// Two sites were forced: give up the timeline with this id, which the member is on, for the other one
    #[arg(long, value_name = "ID", value_parser = timeline_id)]
    abandon_timeline: Option<RandomId>,
    #[command(flatten)]
    connect: Connect,
}

fn timeline_id(text: &str) -> Result<RandomId, String> {
    text.parse().map_err(|_| "not 32 hexadecimal digits".to_owned())
}

/// Lets a fenced member come home.
pub async fn rejoin(args: RejoinArgs) -> Result<Exit, Trouble> {
    let (client, url) = one(&args.connect)?;
    let reply = client.at(url)?.rejoin(&RejoinRequest { abandon_timeline: args.abandon_timeline }).await?;
    if args.connect.format() == Format::Json {
        json(&reply)?;
        return Ok(Exit::Done);
    }
    line(&format!("{} rejoins site {}, on timeline {}", reply.member, reply.site, reply.timeline.number))?;
    line("")?;
    line(&reply.next)?;
    Ok(Exit::Done)
}

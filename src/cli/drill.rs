//! `lifeboat dr drill`: a forced failover rehearsed at a mirror, without touching anything.
//!
//! The mirror is found by the cluster; then it is asked itself. On a terminal a line on standard error says how far it is.

use clap::Args;

use super::cluster::dash;
use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, Ticker, json, line};
use super::text::{bytes, span};
use crate::api::{DrillLine, DrillReport, DrillRequest, Member, MemberRole};
use crate::client::Client;

/// `lifeboat dr drill`.
#[derive(Debug, Args)]
#[command(
    after_help = "The mirror forks its history into a throwaway member on loopback, which is promoted, written to, checked and \
    removed;\nthe mirror goes on following. Exit codes: 0 passed, 1 not passed or not done.\n\
    Plain lines: check, passed or failed, detail; then rto and its seconds."
)]
pub struct DrillArgs {
    /// At the best mirror of this site
    #[arg(long, required_unless_present = "member")]
    site: Option<String>,
    /// At this mirror
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Rehearses a failover and prints the report.
pub async fn drill(args: DrillArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let mirror = find(&client, args.site.as_deref(), args.member.as_deref()).await?;
    let asked = client.at(&mirror.client_url)?;
    let mut lines = asked.drill(&DrillRequest { member: Some(mirror.name.clone()) }).await?;
    let ticker = Ticker::new();
    let report = loop {
        match lines.next().await {
            Ok(Some(DrillLine::Progress(progress))) => {
                let (step, elapsed) = (progress.step.as_str(), span(progress.elapsed_seconds));
                ticker.say(&format!("{}: {step}, {elapsed}", mirror.name));
            }
            Ok(Some(DrillLine::Report(report))) => break report,
            Ok(None) => {
                ticker.clear();
                return Err(Trouble::new(Exit::Failed, "the drill was cut before its report came"));
            }
            Err(error) => {
                ticker.clear();
                return Err(error.into());
            }
        }
    };
    ticker.clear();
    print(args.connect.format(), &report)?;
    Ok(if report.passed { Exit::Done } else { Exit::Failed })
}

/// The mirror that is asked for: by its name, or the best of a site.
async fn find(client: &Client, site: Option<&str>, name: Option<&str>) -> Result<Member, Trouble> {
    let members = client.members().await?.members;
    if let Some(name) = name {
        let found = members.into_iter().find(|member| member.name == name);
        let found = found.filter(|member| site.is_none_or(|site| member.site == site));
        return found.ok_or_else(|| Trouble::usage(format!("no member {name} is in that site: lifeboat members")));
    }
    let site = site.unwrap_or_default();
    let mut mirrors: Vec<Member> =
        members.into_iter().filter(|member| member.site == site && member.role == MemberRole::Mirror).collect();
    if mirrors.is_empty() {
        let why =
            format!("site {site:?} has no mirror: a failover is rehearsed at one. See the sites: lifeboat dr plan");
        return Err(Trouble::usage(why));
    }
    mirrors.sort_by(|a, b| a.name.cmp(&b.name));
    // Without a leader nobody knows which is best: then the first.
    let sites = client.dr().await.map(|reply| reply.standby_sites).unwrap_or_default();
    let best = sites.into_iter().find(|standby| standby.site == site).and_then(|standby| standby.best);
    let at = mirrors.iter().position(|mirror| Some(&mirror.name) == best.as_ref()).unwrap_or(0);
    Ok(mirrors.swap_remove(at))
}

fn print(format: Format, report: &DrillReport) -> Result<(), Trouble> {
    if format == Format::Json {
        return Ok(json(report)?);
    }
    let mut rows = Rows::new(format, ["CHECK", "RESULT", "FOUND"]);
    for check in &report.checks {
        let result = if check.passed { "passed" } else { "failed" };
        rows.add([check.name.clone(), result.to_owned(), check.detail.clone()])?;
    }
    if format == Format::Plain {
        let seconds = report.rto.map_or_else(|| "-".to_owned(), |rto| format!("{:.3}", rto.seconds));
        rows.add(["rto".to_owned(), seconds, dash(report.failure.as_ref())])?;
    }
    rows.finish()?;
    if format == Format::Plain {
        return Ok(());
    }
    if let Some(rto) = &report.rto {
        line("")?;
        // Short as they are: in milliseconds.
        let part = |seconds: f64| format!("{:.0} ms", seconds * 1000.0);
        line(&format!("failover       {} from the order to the first write", part(rto.seconds)))?;
        line(&format!("  close        {}", part(rto.close_seconds)))?;
        line(&format!("  open         {}", part(rto.open_seconds)))?;
        line(&format!("  lead         {}", part(rto.lead_seconds)))?;
        line(&format!("  first write  {}", part(rto.first_write_seconds)))?;
        let met = if rto.met { "met" } else { "MISSED" };
        line(&format!("  objective    {}, {met}", span(rto.objective_seconds)))?;
    }
    if let Some(fork) = &report.fork {
        let (linked, copied) = (bytes(fork.linked_bytes), bytes(fork.copied_bytes));
        line(&format!("fork           {linked} linked and {copied} copied in {}", span(fork.seconds)))?;
        if let Some(index) = fork.index_seconds {
            line(&format!("  index        built anew in {}, which a failover does not do", span(index)))?;
        }
    }
    for note in &report.notes {
        line(&format!("note: {note}"))?;
    }
    let (member, site, took) = (&report.member, &report.site, span(report.seconds));
    match (&report.failure, report.passed) {
        (Some(why), _) => line(&format!("the drill at {member} of site {site} FAILED after {took}: {why}"))?,
        (None, true) => line(&format!("the drill at {member} of site {site} passed, {took}; nothing of it is left"))?,
        (None, false) => line(&format!("the drill at {member} of site {site} did NOT pass, {took}"))?,
    }
    line("")?;
    Ok(line(&report.next)?)
}

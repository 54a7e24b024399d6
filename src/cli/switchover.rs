//! `lifeboat dr switchover`: moves the primary site, shows how far that is, calls it off.
//!
//! The command follows until it is over. When the command is ended before, the switchover goes on: the cluster carries it,
//! not the command. `--status` follows it again.

use std::io;
use std::time::Duration;

use clap::Args;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Ticker, json, line};
use super::text::span;
use crate::api::{SwitchoverReply, SwitchoverRequest, SwitchoverState, SwitchoverStep};
use crate::client::Client;

/// Between two looks how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// `lifeboat dr switchover`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("verb").required(true).args(["to", "status", "abort"]),
    after_help = "Moves the voters and the lead to the mirrors of another site, without loss; the voters of this one become \
    mirrors.\nEverything is checked first, and all that is missing is said. Follows until it is over; the cluster carries \
    it on when\nthe command is ended before. A second call joins the one that runs.\n\
    Plain lines: state, id, step, from, to, seconds, pause in milliseconds, why it went back, the next command."
)]
pub struct SwitchoverArgs {
    /// The site whose mirrors shall become the voters
    #[arg(long, value_name = "SITE")]
    to: Option<String>,
    /// Only look whether it could begin
    #[arg(long, requires = "to")]
    check: bool,
    /// Do not follow until it is over
    #[arg(long, conflicts_with = "check")]
    no_wait: bool,
    /// Show the newest switchover, and follow the one that is under way
    #[arg(long)]
    status: bool,
    /// Call it off, as long as the lead has not moved
    #[arg(long)]
    abort: bool,
    /// Who asks, for the record
    #[arg(long, value_name = "NAME", conflicts_with = "status")]
    by: Option<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", requires = "to")]
    reason: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

/// Does what is asked.
pub async fn switchover(args: SwitchoverArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let format = args.connect.format();
    let by = args.by.clone().or_else(|| std::env::var("USER").ok().filter(|user| !user.is_empty()));
    let reply = match (args.to.clone(), args.abort) {
        (Some(to_site), _) => {
            let reason = args.reason.clone();
            client.begin_switchover(&SwitchoverRequest { to_site, by, reason, dry_run: args.check }).await?
        }
        (None, true) => client.abort_switchover(by.as_deref()).await?,
        (None, false) => client.switchover().await?,
    };
    let reply = if args.no_wait { reply } else { follow(&client, format, reply).await? };
    print(format, &reply)?;
    Ok(match reply.state {
        SwitchoverState::WentBack if args.to.is_some() => Exit::Failed,
        _ => Exit::Done,
    })
}

/// Shows how far it is until it is over.
async fn follow(client: &Client, format: Format, mut reply: SwitchoverReply) -> Result<SwitchoverReply, Trouble> {
    let ticker = Ticker::new();
    let mut shown: Option<SwitchoverStep> = None;
    while matches!(reply.state, SwitchoverState::Running | SwitchoverState::GoingBack) {
        if format == Format::Table && reply.step != shown {
            ticker.clear();
            line(&words(&reply))?;
            shown = reply.step;
        }
        ticker.say(&words(&reply));
        tokio::time::sleep(LOOK).await;
        reply = client.switchover().await?;
    }
    ticker.clear();
    Ok(reply)
}

/// How far it is, in a line.
pub fn words(reply: &SwitchoverReply) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let (from, to) = (or_dash(&reply.from_site), or_dash(&reply.to_site));
    let step = reply.step.map_or("-", SwitchoverStep::as_str);
    let since = span(reply.step_seconds.unwrap_or(0.0));
    let waits = reply.waits_for.as_ref().map(|what| format!(", waits for {what}")).unwrap_or_default();
    format!("{from} to {to}: {step} for {since}{waits}")
}

fn print(format: Format, reply: &SwitchoverReply) -> io::Result<()> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    match format {
        Format::Json => return json(reply),
        Format::Plain => {
            let state = serde_json::to_value(reply.state).ok().and_then(|word| word.as_str().map(str::to_owned));
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
            let fields = [
                or_dash(&state),
                or_dash(&reply.id),
                reply.step.map_or("-", SwitchoverStep::as_str).to_owned(),
                or_dash(&reply.from_site),
                or_dash(&reply.to_site),
                number(reply.seconds),
                number(reply.pause_ms),
                or_dash(&reply.back),
                reply.next.clone(),
            ];
            return line(&fields.join("\t"));
        }
        Format::Table => {}
    }
    let (from, to) = (or_dash(&reply.from_site), or_dash(&reply.to_site));
    let took = span(reply.seconds.unwrap_or(0.0));
    line(&match reply.state {
        SwitchoverState::None => "there was no switchover yet".to_owned(),
        SwitchoverState::Checked => {
            format!("nothing is missing: {} would lead, {to} be the primary site", or_dash(&reply.target))
        }
        SwitchoverState::NothingToDo => format!("{to} is the primary site already: nothing to do"),
        SwitchoverState::Running | SwitchoverState::GoingBack => words(reply),
        SwitchoverState::Done => {
            let pause = reply.pause_ms.map_or("an unknown time".to_owned(), |ms| format!("{ms:.0} ms"));
            format!("{to} is the primary site; it took {took}, and writes paused for {pause}")
        }
        SwitchoverState::WentBack => format!("{from} stays the primary site, after {took}: {}", or_dash(&reply.back)),
    })?;
    if !reply.voters.is_empty() {
        line(&format!("voters   {}", reply.voters.join(", ")))?;
        line(&format!("mirrors  {}", reply.mirrors.join(", ")))?;
    }
    for warning in &reply.warnings {
        line(&format!("warning: {warning}"))?;
    }
    line(&format!("next: {}", reply.next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let reply = SwitchoverReply {
            from_site: Some("east".into()),
            to_site: Some("west".into()),
            step: Some(SwitchoverStep::CatchingUp),
            step_seconds: Some(2.0),
            waits_for: Some("m1 to catch up".into()),
            ..SwitchoverReply::new(SwitchoverState::Running, "x")
        };
        assert_eq!(words(&reply), "east to west: catching-up for 2.0 s, waits for m1 to catch up");
    }
}

//! `lifeboat status`, `members`, `leader` and `events`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use futures_util::future::join_all;
use serde_json::json as document;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, Ticker, json, line};
use super::text::{duration, span};
use crate::api::time::utc_text;
use crate::api::{InviteRequest, Member, MemberReply, MemberRole, ProgressState, Status};
use crate::client::{Client, HealthCheck};

/// How long one member may take to tell its state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at a member that is on its way.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The longest question for events.
const EVENTS_WAIT: Duration = Duration::from_secs(30);

pub(super) fn dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// `lifeboat status`.
#[derive(Debug, Args)]
#[command(after_help = "Asks one member who the members are, and then each of them. Plain lines: name, site, role, \
    state, version,\nrevision, applied index, lag in seconds, uptime in seconds, address.")]
pub struct StatusArgs {
    #[command(flatten)]
    connect: Connect,
}

/// `lifeboat health`.
#[derive(Debug, Args)]
#[command(
    after_help = "Asks the first of the endpoints, once. Ends with 0 when it is well and with 1 when it is not, \
    does not answer\nwithin the timeout, or is not there; then the reason is printed. live: the process works. ready: it \
    serves linearizable reads\nand writes. leader: it leads. primary: a ready voter."
)]
pub struct HealthArgs {
    /// What is asked
    #[arg(value_enum, default_value_t = Check::Ready)]
    check: Check,
    #[command(flatten)]
    connect: Connect,
}

/// What a member may be asked about its health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    Live,
    Ready,
    Leader,
    Primary,
}

/// Asks a member whether it is well.
pub async fn health(args: HealthArgs) -> Result<Exit, Trouble> {
    let check = match args.check {
        Check::Live => HealthCheck::Live,
        Check::Ready => HealthCheck::Ready,
        Check::Leader => HealthCheck::Leader,
        Check::Primary => HealthCheck::Primary,
    };
    let client = args.connect.client()?;
    let told = tokio::time::timeout(args.connect.timeout, client.health(check)).await;
    let healthy = told.as_ref().is_ok_and(|health| health.healthy);
    let reason = told.map_or_else(|_| Some("no answer in time".to_owned()), |health| health.reason);
    match args.connect.format() {
        Format::Json => json(&document!({ "healthy": healthy, "reason": reason }))?,
        _ if healthy => line("healthy")?,
        _ => line(&reason.unwrap_or_else(|| "not healthy".to_owned()))?,
    }
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

/// Shows what each member says about itself.
pub async fn status(args: StatusArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let first = client.status().await?;
    let asked = first.members.iter().map(|member| ask(&client, member));
    let told: Vec<Result<Status, String>> = join_all(asked).await;
    let format = args.connect.format();
    match format {
        Format::Json => {
            let members = first.members.iter().zip(&told).map(|(member, told)| match told {
                Ok(status) => {
                    let mut status = document!(status);
                    // Every member repeats the list of members; it stands outside once.
                    status.as_object_mut().map(|fields| fields.remove("members"));
                    document!({ "name": member.name, "reachable": true, "status": status })
                }
                Err(error) => document!({ "name": member.name, "reachable": false, "error": error }),
            });
            let members: Vec<_> = members.collect();
            let leader = first.leader.as_ref().map(|leader| &leader.name);
            json(&document!({ "cluster": first.cluster, "leader": leader, "members": members }))?;
        }
        _ => print_status(format, &first, &told)?,
    }
    Ok(Exit::Done)
}

async fn ask(client: &Client, member: &Member) -> Result<Status, String> {
    let at = client.at(&member.client_url).map_err(|error| error.to_string())?;
    match tokio::time::timeout(STATUS_TIMEOUT, at.status()).await {
        Ok(status) => status.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", STATUS_TIMEOUT.as_secs())),
    }
}

fn print_status(format: Format, first: &Status, told: &[Result<Status, String>]) -> Result<(), Trouble> {
    let heading = ["MEMBER", "SITE", "ROLE", "STATE", "VERSION", "REVISION", "APPLIED", "LAG", "UPTIME", "CLIENTS"];
    let mut rows = Rows::new(format, heading);
    let seconds = |seconds: f64| if format == Format::Table { span(seconds) } else { format!("{seconds:.3}") };
    for (member, told) in first.members.iter().zip(told) {
        let known = told.as_ref().ok();
        let state = match told {
            Ok(status) if status.ready => "ready",
            Ok(_) => "not ready",
            Err(_) => "no answer",
        };
        let role = known.map_or_else(|| member.role.to_string(), |status| status.role.to_string());
        rows.add([
            member.name.clone(),
            member.site.clone(),
            role,
            state.to_owned(),
            dash(known.map(|status| &status.version)),
            dash(known.map(|status| status.revision)),
            dash(known.and_then(|status| status.applied_index)),
            dash(known.and_then(|status| status.lag_seconds).map(seconds)),
            dash(known.map(|status| seconds(status.uptime_seconds))),
            member.client_url.clone(),
        ])?;
    }
    rows.finish()?;
    if format == Format::Table {
        if first.leader.is_none() {
            line("no leader is known")?;
        }
        for (member, told) in first.members.iter().zip(told) {
            if let Err(error) = told {
                line(&format!("{}: {error}", member.name))?;
            }
        }
    }
    Ok(())
}

/// `lifeboat members`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MembersArgs {
    #[command(subcommand)]
    what: Option<MembersWhat>,
    #[command(flatten)]
    connect: Connect,
}

/// What a member may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleName {
    /// Counts in the quorum
    Voter,
    /// Follows, and never counts
    Mirror,
}

impl From<RoleName> for MemberRole {
    fn from(name: RoleName) -> MemberRole {
        match name {
            RoleName::Voter => MemberRole::Voter,
            RoleName::Mirror => MemberRole::Mirror,
        }
    }
}

#[derive(Debug, Subcommand)]
enum MembersWhat {
    /// List the members (also without a word)
    List {
        #[command(flatten)]
        connect: Connect,
    },
    /// Show a member and how far it is
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Invite a member: one that is started with --join and this name is taken in
    Add {
        /// Its name
        name: String,
        /// Where its peers will reach it
        #[arg(long, value_name = "URL")]
        peer_url: Option<String>,
        /// What it shall be, whatever it is started as
        #[arg(long)]
        role: Option<RoleName>,
        /// The data centre it stands in, whatever it is started with
        #[arg(long)]
        site: Option<String>,
        /// Wait until it has caught up, at most so long
        #[arg(long, value_name = "TIME", value_parser = duration)]
        wait: Option<Duration>,
        #[command(flatten)]
        connect: Connect,
    },
    /// Take a member out
    Remove {
        /// Its name
        name: String,
        /// Although no quorum of answering voters might be left
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Make a mirror a voter, once it has caught up
    Promote {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Send a mirror nothing any more, until it is resumed
    Suspend {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Send a suspended mirror everything again
    Resume {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
    /// Make a voter a mirror
    Demote {
        /// Its name
        name: String,
        /// Although no quorum of answering voters might be left
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
}

/// Does what is asked about members.
pub async fn members(args: MembersArgs) -> Result<Exit, Trouble> {
    use MembersWhat as What;
    match args.what.unwrap_or(What::List { connect: args.connect }) {
        What::List { connect } => list(&connect).await,
        What::Show { name, connect } => told(&connect, connect.client()?.member(&name).await?),
        What::Add { name, peer_url, role, site, wait, connect } => {
            let client = connect.client()?;
            let invitation = InviteRequest { name: name.clone(), peer_url, role: role.map(Into::into), site };
            let mut member = client.add_member(&invitation).await?;
            if let Some(wait) = wait {
                member = caught_up(&client, &name, wait).await?;
            }
            told(&connect, member)
        }
        What::Remove { name, force, connect } => {
            let removed = connect.client()?.remove_member(&name, force).await?;
            warn(&removed.warnings);
            match connect.format() {
                Format::Json => json(&removed)?,
                Format::Plain => line(&removed.removed)?,
                Format::Table => line(&format!("removed {}", removed.removed))?,
            }
            Ok(Exit::Done)
        }
        What::Suspend { name, connect } => steer(&connect, &name, true).await,
        What::Resume { name, connect } => steer(&connect, &name, false).await,
        What::Promote { name, connect } => {
            told(&connect, connect.client()?.set_role(&name, MemberRole::Voter, false).await?)
        }
        What::Demote { name, force, connect } => {
            told(&connect, connect.client()?.set_role(&name, MemberRole::Mirror, force).await?)
        }
    }
}

async fn steer(connect: &Connect, name: &str, suspended: bool) -> Result<Exit, Trouble> {
    let reply = connect.client()?.suspend_member(name, suspended).await?;
    let word = if reply.suspended { "suspended" } else { "resumed" };
    match connect.format() {
        Format::Json => json(&reply)?,
        Format::Plain => line(word)?,
        Format::Table => line(&format!("{} is {word}", reply.name))?,
    }
    Ok(Exit::Done)
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}

async fn list(connect: &Connect) -> Result<Exit, Trouble> {
    let reply = connect.client()?.members().await?;
    let format = connect.format();
    if format == Format::Json {
        json(&reply)?;
        return Ok(Exit::Done);
    }
    let mut rows = Rows::new(format, ["MEMBER", "SITE", "ROLE", "LEADER", "CLIENTS", "PEERS"]);
    for member in reply.members {
        let leader = if member.leader { "leader" } else { "-" }.to_owned();
        let role = if member.joining { format!("{} (joining)", member.role) } else { member.role.to_string() };
        rows.add([member.name, member.site, role, leader, member.client_url, member.peer_url])?;
    }
    rows.finish()?;
    Ok(Exit::Done)
}

fn state_word(member: &MemberReply) -> &'static str {
    match member.progress.as_ref().map(|progress| progress.state) {
        Some(ProgressState::Invited) => "invited",
        Some(ProgressState::Joining) => "joining",
        Some(ProgressState::CatchingUp) => "catching up",
        Some(ProgressState::CaughtUp) => "caught up",
        None => "unknown",
    }
}

/// Prints one member.
fn told(connect: &Connect, member: MemberReply) -> Result<Exit, Trouble> {
    let format = connect.format();
    warn(&member.warnings);
    if format == Format::Json {
        json(&member)?;
        return Ok(Exit::Done);
    }
    let state = state_word(&member).to_owned();
    let behind = dash(member.progress.as_ref().and_then(|progress| progress.behind_entries));
    let mut rows = Rows::new(format, ["MEMBER", "SITE", "ROLE", "STATE", "BEHIND", "CLIENTS", "PEERS"]);
    let (clients, peers) = (dash(member.client_url), dash(member.peer_url));
    rows.add([member.name, dash(member.site), dash(member.role), state, behind, clients, peers])?;
    rows.finish()?;
    Ok(Exit::Done)
}

/// Waits until a member is what it shall be.
async fn caught_up(client: &Client, name: &str, wait: Duration) -> Result<MemberReply, Trouble> {
    let end = tokio::time::Instant::now() + wait;
    let ticker = Ticker::new();
    loop {
        let member = client.member(name).await?;
        let state = state_word(&member);
        let behind = member.progress.as_ref().and_then(|progress| progress.behind_entries);
        if member.progress.as_ref().is_some_and(|progress| progress.state == ProgressState::CaughtUp) && !member.joining
        {
            ticker.clear();
            return Ok(member);
        }
        let rest = behind.map_or_else(String::new, |entries| format!(", {entries} entries behind"));
        ticker.say(&format!("{name} is {state}{rest}"));
        if tokio::time::Instant::now() >= end {
            ticker.clear();
            let hint = format!("`lifeboat members show {name}` shows how far it is");
            return Err(Trouble::new(Exit::Unavailable, format!("{name} is {state} after {wait:?}")).hint(hint));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// `lifeboat leader`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LeaderArgs {
    #[command(subcommand)]
    what: Option<LeaderWhat>,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Subcommand)]
enum LeaderWhat {
    /// Show who leads (also without a word)
    Show {
        #[command(flatten)]
        connect: Connect,
    },
    /// Hand the lead over
    Transfer {
        /// To this member; to the best follower when it is left out
        to: Option<String>,
        #[command(flatten)]
        connect: Connect,
    },
}

/// Does what is asked about the leader.
pub async fn leader(args: LeaderArgs) -> Result<Exit, Trouble> {
    match args.what.unwrap_or(LeaderWhat::Show { connect: args.connect }) {
        LeaderWhat::Show { connect } => {
            let status = connect.client()?.status().await?;
            let Some(leader) = status.leader else {
                let text = format!("{} knows no leader in term {}", status.name, status.term);
                return Err(Trouble::new(Exit::NotFound, text));
            };
            match connect.format() {
                Format::Json => json(&leader)?,
                Format::Plain => line(&leader.name)?,
                Format::Table => line(&format!("{} at {}, in term {}", leader.name, leader.client_url, status.term))?,
            }
        }
        LeaderWhat::Transfer { to, connect } => {
            let reply = connect.client()?.transfer_leader(to.as_deref()).await?;
            match connect.format() {
                Format::Json => json(&reply)?,
                Format::Plain => line(&reply.leader)?,
                Format::Table => line(&format!("{} leads in term {}", reply.leader, reply.term))?,
            }
        }
    }
    Ok(Exit::Done)
}

/// `lifeboat events`.
#[derive(Debug, Args)]
#[command(after_help = "One member is asked: the first of --endpoints that answers. Events are kept in its memory. \
    Plain lines: id,\nmilliseconds since 1970, member, kind, text.")]
pub struct EventsArgs {
    /// Those after this one
    #[arg(long, value_name = "ID", default_value_t = 0)]
    since: u64,
    /// At most so many
    #[arg(long, conflicts_with = "follow")]
    limit: Option<u64>,
    /// Go on with those that come
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Shows what happened lately.
pub async fn events(args: EventsArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let format = args.connect.format();
    // Numbers are each member's own, so it has to be the same one all the time.
    let member = match &client.endpoints()[..] {
        [_] => client,
        all => {
            let mut found = None;
            for endpoint in all {
                let at = client.at(endpoint)?;
                if tokio::time::timeout(STATUS_TIMEOUT, at.role()).await.is_ok_and(|role| role.is_ok()) {
                    found = Some(at);
                    break;
                }
            }
            found.unwrap_or(client)
        }
    };
    let mut since = args.since;
    loop {
        let wait = if args.follow { EVENTS_WAIT } else { Duration::ZERO };
        let reply = member.events(since, wait, args.limit).await?;
        let mut rows = Rows::new(format, ["ID", "TIME", "MEMBER", "KIND", "WHAT"]);
        for event in reply.events {
            since = since.max(event.id);
            let time_ms = event.time_ms;
            match format {
                Format::Json => json(&event)?,
                Format::Plain => {
                    rows.add([event.id.to_string(), time_ms.to_string(), event.member, event.kind, event.detail])?;
                }
                // For people, and still one line when it is long.
                Format::Table => {
                    line(&format!("{}  {}  {}  {}", utc(time_ms), event.member, event.kind, event.detail))?
                }
            }
        }
        if format != Format::Json && format != Format::Table {
            rows.finish()?;
        }
        if !args.follow {
            return Ok(Exit::Done);
        }
    }
}

/// Milliseconds since 1970 as `2026-11-24 04:23:15`.
fn utc(time_ms: u64) -> String {
    utc_text(time_ms / 1000 * 1000).replace('T', " ").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        for (time_ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_709_251_199_999, "2024-02-29 23:59:59"),
            (1_764_000_000_000, "2025-11-24 16:00:00"),
            (4_102_444_800_000, "2100-01-01 00:00:00"),
        ] {
            assert_eq!(utc(time_ms), text);
        }
    }
}

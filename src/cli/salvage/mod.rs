//! `lifeboat salvage`: the writes that only members of an abandoned timeline had, listed and brought back.

mod apply;
mod merge;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, json, line};
use super::text::bytes;
use crate::api::{SalvageFile, SalvageReply, SalvagedWrite};
use crate::client::Client;
use crate::node::{read_salvage_header, salvage_files};

use merge::Salvaged;

/// `lifeboat salvage`.
#[derive(Debug, Args)]
pub struct SalvageArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the salvage files of all members, or those in a data directory
    List(ListArgs),
    /// Bring stranded writes back; shows what it would do unless told to do it
    Apply(apply::ApplyArgs),
}

/// `lifeboat salvage list`.
#[derive(Debug, Args)]
#[command(
    after_help = "Plain lines: member, file, bytes, applied writes, writes of unknown fate, writes of the system, \
    the last common position,\nwhat is wrong with the file."
)]
struct ListArgs {
    /// Look into this data directory and ask nobody
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

/// Does what is asked about stranded writes.
pub async fn salvage(args: SalvageArgs) -> Result<Exit, Trouble> {
    match args.what {
        What::List(args) => list(args).await,
        What::Apply(args) => apply::apply(args).await,
    }
}

/// What `list --output json` prints.
#[derive(Debug, Serialize)]
struct Listed {
    members: Vec<SalvageReply>,
    unreachable: Vec<String>,
    next: String,
}

async fn list(args: ListArgs) -> Result<Exit, Trouble> {
    let (members, unreachable) = match &args.data_dir {
        Some(dir) => {
            let read = salvage_files(dir);
            let files = read.map_err(|e| Trouble::new(Exit::Failed, format!("{}: {e}", dir.display())))?;
            (vec![SalvageReply { member: dir.display().to_string(), files }], Vec::new())
        }
        None => everywhere(&args.connect).await?,
    };
    let any = members.iter().any(|member| !member.files.is_empty());
    let endpoints = args.connect.endpoints.join(",");
    let files = args.data_dir.iter().flat_map(|dir| {
        let files = members.iter().flat_map(|member| &member.files);
        files.map(|file| format!(" {}", dir.join("salvage").join(&file.file).display()))
    });
    let files: String = files.collect();
    let next = match any {
        true => format!("lifeboat salvage apply{files} --endpoints {endpoints}"),
        false => format!("lifeboat dr plan --endpoints {endpoints}"),
    };
    let format = args.connect.format();
    if format == Format::Json {
        json(&Listed { members, unreachable, next })?;
        return Ok(Exit::Done);
    }
    let heading = ["MEMBER", "FILE", "BYTES", "APPLIED", "UNKNOWN", "SYSTEM", "COMMON TO", "WRONG"];
    let mut rows = Rows::new(format, heading);
    for SalvageReply { member, files } in &members {
        for file in files {
            rows.add(row(format, member, file))?;
        }
    }
    rows.finish()?;
    if format == Format::Table {
        for url in &unreachable {
            line(&format!("{url} did not answer: its files are not listed"))?;
        }
        if !any {
            line("no member has a salvage file")?;
        }
        line("")?;
        line(&next)?;
    }
    Ok(Exit::Done)
}

fn row(format: Format, member: &str, file: &SalvageFile) -> [String; 8] {
    let dash = || "-".to_owned();
    let header = file.header.as_ref();
    let count =
        |count: fn(&crate::api::SalvageCounts) -> u64| header.map_or_else(dash, |h| count(&h.counts).to_string());
    [
        member.to_owned(),
        file.file.clone(),
        if format == Format::Table { bytes(file.bytes) } else { file.bytes.to_string() },
        count(|counts| counts.applied),
        count(|counts| counts.unknown),
        count(|counts| counts.system),
        header.and_then(|header| header.common.position).map_or_else(dash, |position| position.to_string()),
        file.problem.clone().unwrap_or_else(dash),
    ]
}

/// Where all members are reached: those that were named, and those that they know.
async fn members(connect: &Connect) -> Result<(Client, Vec<String>), Trouble> {
    let client = connect.client()?;
    let mut urls = Vec::new();
    // The members know where they are; without a member that says it, those that were named are all there is.
    if let Ok(reply) = client.members().await {
        urls.extend(reply.members.into_iter().map(|member| member.client_url));
    }
    if urls.is_empty() {
        urls.clone_from(&connect.endpoints);
    }
    Ok((client, urls))
}

/// The salvage files of all members, and the members that do not answer.
async fn everywhere(connect: &Connect) -> Result<(Vec<SalvageReply>, Vec<String>), Trouble> {
    let (client, urls) = members(connect).await?;
    let (mut found, mut unreachable) = (Vec::new(), Vec::new());
    for url in urls {
        match client.at(&url)?.salvage_files().await {
            Ok(reply) => found.push(reply),
            Err(_) => unreachable.push(url),
        }
    }
    Ok((found, unreachable))
}

/// Reads a salvage file.
fn parse(name: &str, content: &[u8]) -> Result<Salvaged, Trouble> {
    let bad =
        |what: String| Trouble::new(Exit::Failed, format!("{name}: {what}")).hint("see all: lifeboat salvage list");
    let text = std::str::from_utf8(content).map_err(|e| bad(e.to_string()))?;
    let mut lines = text.lines();
    let header = read_salvage_header(lines.next().unwrap_or("")).map_err(bad)?;
    let writes = lines.enumerate().map(|(at, line)| {
        serde_json::from_str::<SalvagedWrite>(line).map_err(|e| bad(format!("line {}: {e}", at + 2)))
    });
    let writes: Vec<SalvagedWrite> = writes.collect::<Result<_, _>>()?;
    let expected = header.counts.applied + header.counts.unknown;
    if writes.len() as u64 != expected {
        return Err(bad(format!("it has {} writes, and its first line says {expected}: it was cut", writes.len())));
    }
    Ok(Salvaged { file: name.to_owned(), header, writes })
}

fn read(path: &Path) -> Result<Salvaged, Trouble> {
    let name = path.display().to_string();
    let content = std::fs::read(path).map_err(|e| Trouble::new(Exit::Failed, format!("{name}: {e}")))?;
    parse(&name, &content)
}

/// Fetches all salvage files of all members that answer.
async fn fetch(connect: &Connect) -> Result<(Vec<Salvaged>, Vec<String>), Trouble> {
    let (client, urls) = members(connect).await?;
    let (mut files, mut unreachable) = (Vec::new(), Vec::new());
    for url in urls {
        let one = client.at(&url)?;
        let Ok(reply) = one.salvage_files().await else {
            unreachable.push(url);
            continue;
        };
        for file in reply.files {
            let content = one.salvage_file(&file.file).await?;
            files.push(parse(&format!("{} of {}", file.file, reply.member), &content)?);
        }
    }
    Ok((files, unreachable))
}

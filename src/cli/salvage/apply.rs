//! `lifeboat salvage apply`: brings stranded writes back into the cluster as it is now.
//!
//! First everything is looked at: what each key is now, and which requests the cluster has executed. Nothing is written
//! unless `--apply` is given. Then every write is a transaction that does nothing when a key is not as it was seen, so what
//! changes meanwhile is a conflict like any other and never lost. Keys that were changed since the fork are left as they
//! are unless `--overwrite` is given.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::merge::{Final, Merged, Salvaged, Unit, Verdict, judge, merge};
use super::{fetch, read};
use crate::api::{
    Compare, CompareOp, CompareTarget, DeleteOp, Fate, KeyItem, Keys, ProblemCode, PutOp, Revision, SalvagedWrite,
    TimelineId, TxnOp, TxnRequest,
};
use crate::cli::connect::Connect;
use crate::cli::exit::{Exit, Trouble};
use crate::cli::output::{Format, json, line};
use crate::client::{Client, Error};

/// So many keys are looked at, or written, at the same time.
const AT_ONCE: usize = 16;
/// So many keys of one write are brought back in one transaction; larger writes take several.
const KEYS_AT_ONCE: usize = 60;
/// So often a write is looked at whose keys change between the look and the write.
const LOOKS: usize = 10;
/// So many requests are asked for at once.
const KNOWN_AT_ONCE: usize = 500;

/// `lifeboat salvage apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without FILE all salvage files of all members are fetched. Nothing is written unless --apply is given. \
    A key that was\nchanged on the new timeline since the fork is a conflict and stays as it is unless --overwrite is given. \
    Writes whose\nrequest the cluster has executed since are left out, as are keys that hung on a lease.\n\
    Exit codes: 0 nothing is left, 4 there are conflicts.\n\
    Plain lines: what (apply, applied, same, common, executed, leased, conflict, by-hand), position, fate, key, why."
)]
pub struct ApplyArgs {
    /// Salvage files, of all old members
    files: Vec<PathBuf>,
    /// Do it; without it only what would be done is shown
    #[arg(long)]
    apply: bool,
    /// Also write keys that were changed since the fork: what they are now is lost
    #[arg(long)]
    overwrite: bool,
    /// Leave out writes that may never have been committed
    #[arg(long)]
    applied_only: bool,
    #[command(flatten)]
    connect: Connect,
}

/// What was, or would be, done with the changes of one write.
#[derive(Debug, Serialize)]
struct Done {
    what: &'static str,
    timeline: TimelineId,
    position: u64,
    fate: Fate,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    keys: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why: Vec<String>,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    applied: bool,
    files: Vec<String>,
    unreachable: Vec<String>,
    writes: u64,
    superseded: u64,
    system: u64,
    thinned: u64,
    sequences: std::collections::BTreeMap<String, u64>,
    done: Vec<Done>,
    next: String,
}

impl Report {
    fn count(&self, what: &str) -> usize {
        self.done.iter().filter(|done| done.what == what).count()
    }

    /// What is left for a person.
    fn left(&self) -> usize {
        self.count("conflict") + self.count("by-hand")
    }
}

/// Brings stranded writes back, or shows what that would do.
pub async fn apply(args: ApplyArgs) -> Result<Exit, Trouble> {
    let (files, unreachable) = match args.files.is_empty() {
        true => fetch(&args.connect).await?,
        false => (args.files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?, Vec::new()),
    };
    let list = || format!("lifeboat salvage list --endpoints {}", args.connect.endpoints.join(","));
    if files.is_empty() {
        return Err(Trouble::new(Exit::NotFound, "no member that answers has a salvage file").hint(list()));
    }
    let merged = merge(&files, args.applied_only).map_err(|why| Trouble::new(Exit::Failed, why).hint(list()))?;
    let client = args.connect.client()?;
    check_cluster(&client, &files, list()).await?;
    let executed = known(&client, &merged).await?;
    let changes = stream::iter(merged.units.iter().map(|unit| bring_back(&client, &args, unit, &executed)));
    let mut changes = changes.buffered(AT_ONCE);
    let mut done = Vec::new();
    while let Some(change) = changes.next().await {
        done.push(change?);
    }
    done.extend(merged.by_hand.iter().map(|(timeline, write)| by_hand(*timeline, write, &executed)));
    let mut report = Report {
        applied: args.apply,
        files: files.iter().map(|file| file.file.clone()).collect(),
        unreachable,
        writes: merged.writes,
        superseded: merged.superseded,
        system: merged.system,
        thinned: merged.thinned,
        sequences: merged.sequences.clone(),
        done,
        next: String::new(),
    };
    report.next = next(&args, &report);
    print(args.connect.format(), &report)?;
    Ok(if report.left() > 0 { Exit::Condition } else { Exit::Done })
}

/// Refuses files of another cluster, and a member that is still on the timeline that was abandoned.
async fn check_cluster(client: &Client, files: &[Salvaged], hint: String) -> Result<(), Trouble> {
    let status = client.status().await?;
    let header = &files[0].header;
    if status.cluster.as_ref().map(|cluster| cluster.id) != Some(header.cluster) {
        let text = format!("{} is of cluster {}, and the members that answer are not", files[0].file, header.cluster);
        return Err(Trouble::new(Exit::Failed, text).hint(hint));
    }
    let current = status.cluster.map(|cluster| cluster.timeline.id);
    if let Some(file) = files.iter().find(|file| Some(file.header.timeline.id) == current) {
        let text = format!(
            "{} is of timeline {}, on which the cluster is: nothing is stranded",
            file.file, file.header.timeline.id
        );
        return Err(Trouble::new(Exit::Failed, text).hint(hint));
    }
    Ok(())
}

/// Which of the requests the cluster has executed.
async fn known(client: &Client, merged: &Merged) -> Result<BTreeSet<String>, Trouble> {
    let keys: Vec<String> = merged.idempotency_keys().into_iter().collect();
    let mut known = BTreeSet::new();
    for some in keys.chunks(KNOWN_AT_ONCE) {
        known.extend(client.known_requests(some.to_vec()).await?);
    }
    Ok(known)
}

/// Looks at the keys of a unit, and writes them when that is wanted and right.
async fn bring_back(
    client: &Client,
    args: &ApplyArgs,
    unit: &Unit,
    executed: &BTreeSet<String>,
) -> Result<Done, Trouble> {
    let executed = unit.write.idempotency_key.as_ref().is_some_and(|key| executed.contains(key));
    let told = |what, why| Ok(done(what, unit.timeline, &unit.write, &unit.finals, why));
    let meanwhile = || "it was changed while this was done".to_owned();
    for looks in 1..=LOOKS {
        let (unit, now) = look(client, unit).await?;
        match judge(&unit, &now, executed) {
            Verdict::Same => {
                // An earlier run may have ended between the two.
                if args.apply && !executed {
                    remember(client, &unit).await?;
                }
                return told("same", vec![]);
            }
            Verdict::Common => return told("common", vec![]),
            Verdict::Executed => return told("executed", vec![]),
            Verdict::Leased => return told("leased", vec![]),
            // What somebody has written since the first look was never shown to whoever said that it may be lost.
            Verdict::Conflict(mut why) if looks > 1 => {
                why.push(meanwhile());
                return told("conflict", why);
            }
            Verdict::Conflict(why) if !args.overwrite => return told("conflict", why),
            Verdict::Conflict(_) | Verdict::Apply if !args.apply => return told("apply", vec![]),
            Verdict::Conflict(_) | Verdict::Apply => {
                // When it is not, another run may be bringing back the same: that is seen when it is looked at again.
                if write(client, &unit, &now).await? {
                    remember(client, &unit).await?;
                    return told("applied", vec![]);
                }
            }
        }
    }
    told("conflict", vec![meanwhile()])
}

/// Lets the cluster take the request of a unit that is there for executed, so that the client's own repetition of it does
/// nothing. Not together with the write: an attempt that comes to nothing would be remembered too.
async fn remember(client: &Client, unit: &Unit) -> Result<(), Trouble> {
    let Some(key) = &unit.write.idempotency_key else { return Ok(()) };
    let nothing = TxnRequest { compare: Vec::new(), then: Vec::new(), otherwise: Vec::new() };
    match client.txn_of(nothing).idempotency_key(key.clone()).await {
        Ok(_) => Ok(()),
        // Its client has repeated it already.
        Err(Error::Refused { problem, .. }) if problem.code() == Some(ProblemCode::IdempotencyMismatch) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the keys of a unit are now, and what is known now of how they were at the fork.
async fn look(client: &Client, unit: &Unit) -> Result<(Unit, Vec<Option<KeyItem>>), Trouble> {
    let mut unit = unit.clone();
    let mut now = Vec::with_capacity(unit.finals.len());
    for change in &mut unit.finals {
        let found = client.get(change.key.clone()).await?;
        if found.is_none() && change.existed.is_none() && change.value.is_some() {
            // What the fork had tells, as long as it can be read.
            let then = client.get(change.key.clone()).rev(unit.since).await;
            change.existed = then.ok().map(|then| then.is_some());
        }
        now.push(found);
    }
    Ok((unit, now))
}

/// Writes the keys of a unit if they are still as they were seen; says whether they were.
async fn write(client: &Client, unit: &Unit, now: &[Option<KeyItem>]) -> Result<bool, Trouble> {
    let changes: Vec<(&Final, &Option<KeyItem>)> = unit.finals.iter().zip(now).collect();
    for some in changes.chunks(KEYS_AT_ONCE) {
        if !client.txn_of(request(some)).await?.succeeded {
            return Ok(false);
        }
    }
    Ok(true)
}

fn request(changes: &[(&Final, &Option<KeyItem>)]) -> TxnRequest {
    let compare = changes.iter().map(|(change, now)| {
        let target = match now {
            Some(now) => CompareTarget::ModRevision(now.meta.mod_revision),
            None => CompareTarget::CreateRevision(0),
        };
        Compare { keys: Keys::One(change.key.clone()), op: CompareOp::Equal, target }
    });
    let is_so = |change: &Final, now: &Option<KeyItem>| match (&change.value, now) {
        (None, now) => now.is_none(),
        (Some(value), Some(now)) => now.value.as_ref() == Some(value) && now.meta.lease == 0,
        (Some(_), None) => false,
    };
    let then = changes.iter().filter(|(change, now)| !is_so(change, now)).map(|(change, _)| match &change.value {
        Some(value) => TxnOp::Put(PutOp { key: change.key.clone(), value: value.clone(), lease: 0, previous: false }),
        None => TxnOp::Delete(DeleteOp { keys: Keys::One(change.key.clone()), previous: false }),
    });
    TxnRequest { compare: compare.collect(), then: then.collect(), otherwise: Vec::new() }
}

fn words(key: &Bytes) -> String {
    String::from_utf8_lossy(key).into_owned()
}

fn done(what: &'static str, timeline: TimelineId, write: &SalvagedWrite, finals: &[Final], why: Vec<String>) -> Done {
    let keys = finals.iter().map(|change| words(&change.key)).collect();
    Done { what, timeline, position: write.position, fate: write.fate, revision: write.revision, keys, why }
}

fn by_hand(timeline: TimelineId, write: &SalvagedWrite, executed: &BTreeSet<String>) -> Done {
    let keys: Vec<Final> = Vec::new();
    let ran = write.idempotency_key.as_ref().is_some_and(|key| executed.contains(key));
    let mut told = match ran {
        true => done("executed", timeline, write, &keys, vec![]),
        false => {
            let why = "what it would have done depends on conditions or on a range: see the file".to_owned();
            done("by-hand", timeline, write, &keys, vec![why])
        }
    };
    let ops = write.ops.iter().chain(&write.otherwise).filter(|op| op.record.is_none());
    told.keys = ops.filter_map(|op| op.key().ok()).map(|key| words(&key)).collect();
    told
}

fn next(args: &ApplyArgs, report: &Report) -> String {
    let files: String = args.files.iter().map(|file| format!(" {}", file.display())).collect();
    let endpoints = args.connect.endpoints.join(",");
    let flags = if args.applied_only { " --applied-only" } else { "" };
    let command = format!("lifeboat salvage apply{files}{flags}");
    let (would, conflicts) = (report.count("apply"), report.count("conflict"));
    match args.apply {
        false if would > 0 && args.overwrite => format!("{command} --apply --overwrite --endpoints {endpoints}"),
        false if would > 0 => format!("{command} --apply --endpoints {endpoints}"),
        _ if conflicts > 0 => format!("{command} --overwrite --endpoints {endpoints}"),
        _ => format!("lifeboat dr plan --endpoints {endpoints}"),
    }
}

fn print(format: Format, report: &Report) -> std::io::Result<()> {
    if format == Format::Json {
        return json(report);
    }
    if format == Format::Plain {
        let fate = |fate: Fate| format!("{fate:?}").to_lowercase();
        return report.done.iter().try_for_each(|done| {
            let keys = done.keys.iter().map(|key| key.escape_default().to_string()).collect::<Vec<_>>().join(" ");
            let (position, why) = (done.position, done.why.join("; "));
            line(&format!("{}\t{position}\t{}\t{keys}\t{why}", done.what, fate(done.fate)))
        });
    }
    line(&format!("{} stranded writes in {} files", report.writes, report.files.len()))?;
    for url in &report.unreachable {
        line(&format!("warning: {url} did not answer: its files are not among them"))?;
    }
    let counted = [
        ("apply", "would be brought back (nothing is written without --apply)"),
        ("applied", "were brought back"),
        ("same", "are as they should be already"),
        ("common", "are in the new timeline"),
        ("executed", "were executed since, under the same idempotency key"),
        ("leased", "hung on a lease, which has ended"),
        ("conflict", "are conflicts: their keys were changed since the fork"),
        ("by-hand", "are left to a person"),
    ];
    for (what, words) in counted {
        let count = report.count(what);
        if count > 0 {
            line(&format!("{count:>7} {words}"))?;
        }
    }
    if report.superseded > 0 {
        line(&format!("{:>7} were replaced by later ones", report.superseded))?;
    }
    if report.system > 0 {
        line(&format!("{:>7} are of the system, and are not brought back", report.system))?;
    }
    if report.thinned > 0 {
        line(&format!("warning: of {} compaction had taken a part", report.thinned))?;
    }
    for (name, last) in &report.sequences {
        line(&format!("sequence {name:?} gave out numbers up to {last}; it goes on behind them, see lifeboat seq"))?;
    }
    for done in report.done.iter().filter(|done| ["conflict", "by-hand"].contains(&done.what)) {
        line(&format!(
            "{}: {} (position {}): {}",
            done.what,
            done.keys.join(", "),
            done.position,
            done.why.join("; ")
        ))?;
    }
    line("")?;
    line(&report.next)
}

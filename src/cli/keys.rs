//! `lifeboat get`, `put`, `del` and `list`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use clap::{ArgGroup, Args};
use futures_util::StreamExt as _;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Rows, json, line};
use super::text::{KeyForm, Source, duration, line_of};
use crate::api::{KeyItem, Keys, Revision};
use crate::client::{Answer, Waited};

/// How current a read has to be.
#[derive(Debug, Args)]
struct Currency {
    /// As it was at this revision
    #[arg(long, value_name = "REVISION")]
    rev: Option<Revision>,
    /// Whatever the member that is asked has
    #[arg(long)]
    stale: bool,
    /// Stale, but at most so old
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_lag: Option<Duration>,
}

/// Puts the options of [`Currency`] on a read.
macro_rules! current {
    ($read:expr, $currency:expr) => {{
        let mut read = $read;
        if let Some(revision) = $currency.rev {
            read = read.rev(revision);
        }
        if $currency.stale {
            read = read.stale();
        }
        if let Some(lag) = $currency.max_lag {
            read = read.max_lag(lag);
        }
        read
    }};
}

/// `lifeboat get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The key
    key: String,
    #[command(flatten)]
    form: KeyForm,
    #[command(flatten)]
    currency: Currency,
    /// Wait so long for a change first
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["rev", "stale", "max_lag"])]
    wait: Option<Duration>,
    /// With --wait: a change after this revision
    #[arg(long, value_name = "REVISION", requires = "wait")]
    since: Option<Revision>,
    #[command(flatten)]
    connect: Connect,
}

/// Prints the value of a key. On a terminal with a line end behind it, else byte for byte.
pub async fn get(args: GetArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let key = args.form.read(&args.key)?;
    let item = match args.wait {
        Some(wait) => {
            let mut waiting = client.wait(key.clone()).timeout(wait);
            if let Some(since) = args.since {
                waiting = waiting.since(since);
            }
            match waiting.await? {
                Waited::Changed { item, .. } => item,
                Waited::Unchanged { revision } => {
                    let text = format!("the key {:?} has not changed in time", line_of(&key));
                    return Err(Trouble::new(Exit::Unavailable, text).hint(format!("go on with --since {revision}")));
                }
            }
        }
        None => {
            let Answer { value, .. } = current!(client.get(key.clone()), args.currency).answer().await?;
            value
        }
    };
    let Some(item) = item else {
        return Err(Trouble::new(Exit::NotFound, format!("the key {:?} does not exist", line_of(&key))));
    };
    // A value is what it is; only whoever asks for a table gets one.
    match args.connect.output {
        Some(Format::Json) => json(&item)?,
        Some(Format::Table) => print_items(Format::Table, false, [item])?,
        Some(Format::Plain) | None => {
            let mut out = io::stdout().lock();
            out.write_all(item.value.as_deref().unwrap_or_default())?;
            if out.is_terminal() {
                out.write_all(b"\n")?;
            }
            out.flush()?;
        }
    }
    Ok(Exit::Done)
}

/// How a write is known again.
#[derive(Debug, Args)]
pub struct Repeat {
    /// The key under which the members know this write again, when it is given once more
    #[arg(long, value_name = "TEXT", conflicts_with = "no_idempotency")]
    pub idempotency_key: Option<String>,
    /// Without such a key: a write whose answer is lost then ends as unknown
    #[arg(long)]
    pub no_idempotency: bool,
}

/// Puts the options of [`Repeat`] on a write.
macro_rules! repeatable {
    ($write:expr, $repeat:expr) => {{
        let mut write = $write;
        if let Some(key) = &$repeat.idempotency_key {
            write = write.idempotency_key(key.clone());
        }
        if $repeat.no_idempotency {
            write = write.idempotent(false);
        }
        write
    }};
}
pub(super) use repeatable;

/// `lifeboat put`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("life").args(["lease", "ttl"]))]
pub struct PutArgs {
    /// The key
    key: String,
    /// The value; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// Reads the value from a file
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    #[command(flatten)]
    form: KeyForm,
    /// Only when the key does not exist
    #[arg(long, conflicts_with_all = ["if_present", "if_revision"])]
    if_absent: bool,
    /// Only when the key exists
    #[arg(long, conflicts_with = "if_revision")]
    if_present: bool,
    /// Only when the key was last written at this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<Revision>,
    /// The key goes with this lease
    #[arg(long, value_name = "ID")]
    lease: Option<u64>,
    /// The key goes after so long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    ttl: Option<Duration>,
    #[command(flatten)]
    repeat: Repeat,
    #[command(flatten)]
    connect: Connect,
}

/// Writes a key.
pub async fn put(args: PutArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let key = args.form.read(&args.key)?;
    let value = Source::of(args.value, args.file, "the value")?.read()?;
    let mut put = repeatable!(client.put(key.clone(), value), args.repeat);
    if args.if_absent {
        put = put.if_absent();
    }
    if args.if_present {
        put = put.if_present();
    }
    if let Some(revision) = args.if_revision {
        put = put.if_revision(revision);
    }
    if let Some(lease) = args.lease {
        put = put.lease(lease);
    }
    if let Some(ttl) = args.ttl {
        put = put.ttl(ttl);
    }
    let written = put.await?;
    match args.connect.format() {
        Format::Json => json(&written)?,
        Format::Plain => line(&written.revision.to_string())?,
        Format::Table => {
            let what = if written.previous_revision.is_some() { "replaced" } else { "created" };
            line(&format!("{what} {} at revision {}", line_of(&key), written.revision))?;
        }
    }
    Ok(Exit::Done)
}

/// Which keys.
#[derive(Debug, Args)]
pub struct Range {
    /// From this key on
    #[arg(long, value_name = "KEY", conflicts_with = "prefix")]
    start: Option<String>,
    /// Up to and without this key
    #[arg(long, value_name = "KEY", requires = "start")]
    end: Option<String>,
}

impl Range {
    /// The range, or else the prefix; none when neither is given.
    pub fn read(&self, form: KeyForm, prefix: Option<&str>) -> Result<Option<Keys>, Trouble> {
        let end = self.end.as_deref().map(|end| form.read(end)).transpose()?;
        match (&self.start, prefix) {
            (Some(start), _) => Ok(Some(Keys::Range { start: form.read(start)?, end })),
            (None, Some(prefix)) => Ok(Some(Keys::Prefix(form.read(prefix)?))),
            (None, None) => Ok(None),
        }
    }
}

/// `lifeboat del`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["key", "prefix", "start", "all"]))]
pub struct DelArgs {
    /// The key
    key: Option<String>,
    /// All keys that begin so
    #[arg(long)]
    prefix: Option<String>,
    #[command(flatten)]
    range: Range,
    /// All keys there are
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    form: KeyForm,
    /// Only when the key was last written at this revision
    #[arg(long, value_name = "REVISION", requires = "key")]
    if_revision: Option<Revision>,
    #[command(flatten)]
    repeat: Repeat,
    #[command(flatten)]
    connect: Connect,
}

/// Deletes a key, or many in one transaction.
pub async fn del(args: DelArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let format = args.connect.format();
    let told = |deleted: u64, revision: Revision| match format {
        Format::Plain => line(&deleted.to_string()),
        _ => line(&format!("deleted {deleted} at revision {revision}")),
    };
    if let Some(key) = &args.key {
        let mut delete = repeatable!(client.delete(args.form.read(key)?), args.repeat);
        if let Some(revision) = args.if_revision {
            delete = delete.if_revision(revision);
        }
        let deleted = delete.await?;
        match format {
            Format::Json => json(&deleted)?,
            _ => told(deleted.deleted, deleted.revision)?,
        }
        return Ok(Exit::Done);
    }
    let keys = match args.range.read(args.form, args.prefix.as_deref())? {
        Some(Keys::Prefix(prefix)) if prefix.is_empty() => {
            return Err(Trouble::usage("an empty prefix is every key: say --all when that is meant"));
        }
        Some(keys) => keys,
        None => Keys::Prefix(Default::default()),
    };
    let deleted = repeatable!(client.delete_keys(keys), args.repeat).await?;
    match format {
        Format::Json => json(&deleted)?,
        _ => told(deleted.deleted, deleted.revision)?,
    }
    Ok(Exit::Done)
}

/// `lifeboat list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Keys that begin so; all when it is left out
    prefix: Option<String>,
    #[command(flatten)]
    range: Range,
    /// Behind this key
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// At most so many
    #[arg(long)]
    limit: Option<u64>,
    /// Without values
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    form: KeyForm,
    #[command(flatten)]
    currency: Currency,
    #[command(flatten)]
    connect: Connect,
}

/// Lists keys, all at one revision.
pub async fn list(args: ListArgs) -> Result<Exit, Trouble> {
    let client = args.connect.client()?;
    let keys = args.range.read(args.form, args.prefix.as_deref())?.unwrap_or(Keys::Prefix(Default::default()));
    let mut list = current!(client.list_keys(keys), args.currency);
    if let Some(after) = &args.after {
        list = list.after(args.form.read(after)?);
    }
    if let Some(limit) = args.limit {
        list = list.limit(limit);
    }
    if args.keys_only {
        list = list.keys_only();
    }
    let format = args.connect.format();
    let mut items = pin!(list.stream());
    let mut printer = ItemRows::new(format, args.keys_only);
    while let Some(item) = items.next().await {
        printer.add(&item?)?;
    }
    printer.finish()?;
    Ok(Exit::Done)
}

fn print_items(format: Format, keys_only: bool, items: impl IntoIterator<Item = KeyItem>) -> io::Result<()> {
    let mut printer = ItemRows::new(format, keys_only);
    for item in items {
        printer.add(&item)?;
    }
    printer.finish()
}

/// Prints items as they come.
enum ItemRows {
    Json,
    /// The key, and the value unless only keys are wanted.
    Plain {
        keys_only: bool,
    },
    Table(Rows<5>),
}

impl ItemRows {
    fn new(format: Format, keys_only: bool) -> ItemRows {
        match format {
            Format::Json => ItemRows::Json,
            Format::Plain => ItemRows::Plain { keys_only },
            Format::Table => ItemRows::Table(Rows::new(format, ["KEY", "VALUE", "REVISION", "VERSION", "LEASE"])),
        }
    }

    fn add(&mut self, item: &KeyItem) -> io::Result<()> {
        let key = line_of(&item.key);
        let value = || item.value.as_deref().map_or_else(String::new, |value| line_of(value).into_owned());
        match self {
            ItemRows::Json => json(item),
            ItemRows::Plain { keys_only: true } => line(&key),
            ItemRows::Plain { keys_only: false } => line(&format!("{key}\t{}", value())),
            ItemRows::Table(rows) => {
                let lease = if item.meta.lease == 0 { String::new() } else { item.meta.lease.to_string() };
                let (revision, version) = (item.meta.mod_revision.to_string(), item.meta.version.to_string());
                rows.add([key.into_owned(), value(), revision, version, lease])
            }
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            ItemRows::Table(rows) => rows.finish(),
            _ => io::stdout().flush(),
        }
    }
}

//! `lifeboat watch`: the changes of keys as they happen, printed or handed to a command.

use std::process::Stdio;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::keys::Range;
use super::output::{Format, json, line};
use super::text::{KeyForm, duration, line_of};
use crate::api::{Change, ChangeEvent, Keys, Revision, WatchEvent};
use crate::client::{WatchItem, Watcher};

/// Only some changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Writes
    Put,
    /// Deletions
    Delete,
}

/// `lifeboat watch`.
#[derive(Debug, Args)]
#[command(after_help = "A plain line is: revision, put or delete, key, value, separated by tabs. JSON is as in GET \
    /v1/watch.\n\nThe watch goes on at another member when one is gone. It ends when changes were lost (compaction), \
    and says so.\n\n--exec runs `sh -c COMMAND` for each changed key, one after the other, with LIFEBOAT_REVISION, \
    LIFEBOAT_TYPE\n(put or delete), LIFEBOAT_KEY (escaped as in plain lines) in its environment and the change as JSON \
    on its standard\ninput. When a command fails the watch ends and says with which --since to go on.")]
pub struct WatchArgs {
    /// Keys that begin so; all when it is left out
    #[arg(conflicts_with = "key")]
    prefix: Option<String>,
    /// One key
    #[arg(long, conflicts_with = "start")]
    key: Option<String>,
    #[command(flatten)]
    range: Range,
    /// From the first change after this revision; else from now on
    #[arg(long, value_name = "REVISION")]
    since: Option<Revision>,
    /// Only such changes
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,
    /// With what each change replaced or deleted (in JSON)
    #[arg(long)]
    previous: bool,
    /// Without values
    #[arg(long)]
    keys_only: bool,
    /// How often a quiet member shall tell that it lives; one that is silent for three of them is left
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    heartbeat: Duration,
    /// Tell also how far everything was told (in JSON)
    #[arg(long)]
    progress: bool,
    /// End after so many changes
    #[arg(long)]
    count: Option<u64>,
    /// Run this for each change
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    #[command(flatten)]
    form: KeyForm,
    #[command(flatten)]
    connect: Connect,
}

/// Watches until it is interrupted, or has seen enough, or something is wrong.
pub async fn watch(args: WatchArgs) -> Result<Exit, Trouble> {
    let mut watcher = args.watcher()?;
    let format = args.connect.format();
    let mut rest = args.count.unwrap_or(u64::MAX);
    while rest > 0 {
        match watcher.next().await? {
            WatchItem::Progress { revision } => {
                if args.progress && format == Format::Json {
                    json(&WatchEvent::Heartbeat { revision })?;
                }
            }
            WatchItem::Change(event) => {
                if let Some(command) = &args.exec {
                    run_for_each(command, &event).await?;
                } else if format == Format::Json {
                    json(&WatchEvent::Change(event.clone()))?;
                } else {
                    event.changes.iter().try_for_each(|change| line(&plain(event.revision, change)))?;
                }
                // A transaction is told whole.
                rest = rest.saturating_sub(event.changes.len() as u64);
            }
        }
    }
    Ok(Exit::Done)
}

impl WatchArgs {
    fn watcher(&self) -> Result<Watcher, Trouble> {
        let client = self.connect.client()?;
        let keys = match &self.key {
            Some(key) => Keys::One(self.form.read(key)?),
            None => {
                let range = self.range.read(self.form, self.prefix.as_deref())?;
                range.unwrap_or(Keys::Prefix(Default::default()))
            }
        };
        let mut watch = client.watch_keys(keys).heartbeat(self.heartbeat).patience(self.connect.timeout);
        if let Some(since) = self.since {
            watch = watch.since(since);
        }
        match self.only {
            Some(Only::Put) => watch = watch.only_puts(),
            Some(Only::Delete) => watch = watch.only_deletes(),
            None => {}
        }
        if self.previous {
            watch = watch.previous();
        }
        if self.keys_only {
            watch = watch.keys_only();
        }
        Ok(watch.start())
    }
}

fn plain(revision: Revision, change: &Change) -> String {
    match change {
        Change::Put(put) => {
            let value = put.item.value.as_deref().unwrap_or_default();
            format!("{revision}\tput\t{}\t{}", line_of(&put.item.key), line_of(value))
        }
        Change::Delete(delete) => format!("{revision}\tdelete\t{}\t", line_of(&delete.key)),
    }
}

/// Hands each change of an event to a command of its own, in their order.
async fn run_for_each(command: &str, event: &ChangeEvent) -> Result<(), Trouble> {
    for change in &event.changes {
        // Whoever goes on gets this whole event again, rather than none of it.
        let again = format!("it would go on with --since {}", event.revision.saturating_sub(1));
        let failed = |what: String| Trouble::new(Exit::Failed, what).hint(again.clone());
        let what = match change {
            Change::Put(_) => "put",
            Change::Delete(_) => "delete",
        };
        let mut child = Command::new("sh")
            .args(["-c", command])
            .env("LIFEBOAT_REVISION", event.revision.to_string())
            .env("LIFEBOAT_TYPE", what)
            .env("LIFEBOAT_KEY", line_of(change.key()).as_ref())
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{command:?} cannot be run: {error}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            let mut text = serde_json::to_vec(change)?;
            text.push(b'\n');
            // A command that does not read what it is given is none the worse for it.
            let _ = stdin.write_all(&text).await;
        }
        let status = child.wait().await?;
        if !status.success() {
            let key = line_of(change.key()).into_owned();
            return Err(failed(format!("{command:?} ended with {status} for {key:?} at {}", event.revision)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DeleteChange, KeyItem, KeyMeta, PutChange};

    #[test]
    fn a_change_is_a_line_of_four_fields() {
        let meta = KeyMeta { create_revision: 4, mod_revision: 5, version: 2, lease: 0 };
        let item = KeyItem { key: "a\tb".into(), value: Some("x\n".into()), meta };
        assert_eq!(plain(5, &Change::Put(PutChange { item, previous: None })), "5\tput\ta\\tb\tx\\n");
        let delete = Change::Delete(DeleteChange { key: "a".into(), previous: None });
        assert_eq!(plain(6, &delete), "6\tdelete\ta\t");
    }
}

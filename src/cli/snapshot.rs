//! `lifeboat snapshot`: a file with all that a member holds, and what such a file is.
//!
//! The file is written under another name, checked while it is written by everything that an install would check, synced,
//! and only then given its name: a file of that name is whole, whatever happened.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json as document;

use super::connect::Connect;
use super::exit::{Exit, Trouble};
use super::output::{Format, Ticker, json, line};
use super::text::span;
use crate::node::seed::{self, SeedCheck, SeedInfo};

/// `lifeboat snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write all that a member holds to a file, with which a new member can begin (`lifeboat serve --seed`)
    #[command(
        after_help = "Takes it from the first of the endpoints that gives it; name a mirror to spare the leader. \
        Writes to FILE.part and gives it its name when all of it came and is durable."
    )]
    Save {
        /// Where to; must not exist
        file: PathBuf,
        #[command(flatten)]
        connect: Connect,
    },
    /// Check such a file and say what it is
    Show {
        /// The file
        file: PathBuf,
        /// How to print
        #[arg(short, long, value_name = "FORM")]
        output: Option<Format>,
    },
}

/// Saves or shows one.
pub async fn snapshot(args: SnapshotArgs) -> Result<Exit, Trouble> {
    match args.what {
        What::Save { file, connect } => save(&file, &connect).await,
        What::Show { file, output } => show(&file, output.unwrap_or_else(Format::usual)),
    }
}

fn failed(text: impl std::fmt::Display) -> Trouble {
    Trouble { exit: Exit::Failed, text: text.to_string(), hint: None }
}

fn on(path: &Path) -> impl Fn(io::Error) -> Trouble {
    move |error| failed(format!("{}: {error}", path.display()))
}

async fn save(file: &Path, connect: &Connect) -> Result<Exit, Trouble> {
    if file.exists() {
        let text = format!("{} exists; nothing was asked for and nothing was written", file.display());
        return Err(Trouble { exit: Exit::Usage, text, hint: None });
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = write(&part, connect).await;
    let named = written.and_then(|info| name(&part, file).map(|()| info));
    match named {
        Ok(info) => {
            print(file, &info, connect.format())?;
            Ok(Exit::Done)
        }
        Err(trouble) => {
            // There is nothing to remove when it could not be made.
            let _ = std::fs::remove_file(&part);
            Err(trouble)
        }
    }
}

/// Writes the snapshot to `part`, checked and durable.
async fn write(part: &Path, connect: &Connect) -> Result<SeedInfo, Trouble> {
    let mut snapshot = connect.client()?.snapshot().await?;
    let mut out = File::create(part).map_err(on(part))?;
    let (ticker, mut check, mut bytes) = (Ticker::new(), SeedCheck::default(), 0);
    let about = snapshot.about_bytes().unwrap_or(0);
    let done = loop {
        match snapshot.next().await {
            Ok(Some(chunk)) => {
                check.push(&chunk).map_err(|e| failed(format!("what {} sent: {e}", snapshot.endpoint())))?;
                out.write_all(&chunk).map_err(on(part))?;
                bytes += chunk.len() as u64;
                ticker.say(&progress(bytes, about));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ticker.clear();
    done?;
    let info = check.finish(part).map_err(failed)?;
    out.sync_all().map_err(on(part))?;
    Ok(info)
}

/// Gives the file its name, durably.
fn name(part: &Path, file: &Path) -> Result<(), Trouble> {
    std::fs::rename(part, file).map_err(on(file))?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(on(parent))
}

/// A bar, as far as it is known how long it is.
fn progress(bytes: u64, about: u64) -> String {
    const CELLS: u64 = 30;
    let mib = bytes as f64 / f64::from(1 << 20);
    if about == 0 {
        return format!("{mib:.1} MiB");
    }
    let full = (bytes * CELLS / about).min(CELLS) as usize;
    let (done, left) = ("#".repeat(full), ".".repeat(CELLS as usize - full));
    format!("[{done}{left}] {mib:.1} MiB of about {:.1}", about as f64 / f64::from(1 << 20))
}

fn show(file: &Path, format: Format) -> Result<Exit, Trouble> {
    let about = std::fs::metadata(file).map_err(on(file))?.len();
    let ticker = Ticker::new();
    let checked = seed::check(file, |bytes| ticker.say(&progress(bytes, about)));
    ticker.clear();
    print(file, &checked.map_err(failed)?, format)?;
    Ok(Exit::Done)
}

fn print(file: &Path, info: &SeedInfo, format: Format) -> Result<(), Trouble> {
    let SeedInfo { cluster, timeline, revision, position, clock_ms, bytes } = info;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let age_seconds = (now.as_millis() as u64).saturating_sub(*clock_ms) as f64 / 1000.0;
    match format {
        Format::Json => json(&document!({
            "file": file.display().to_string(),
            "cluster": cluster,
            "timeline": timeline.id,
            "timeline_number": timeline.number,
            "revision": revision,
            "position": position,
            "clock_ms": clock_ms,
            "bytes": bytes,
        }))?,
        _ => {
            line(&format!("{}: a whole snapshot, undamaged", file.display()))?;
            line(&format!("cluster   {cluster}"))?;
            line(&format!("timeline  {} (number {})", timeline.id, timeline.number))?;
            line(&format!("revision  {revision}"))?;
            line(&format!("position  {position}"))?;
            line(&format!("age       {}", span(age_seconds)))?;
            line(&format!("bytes     {bytes}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_ends_full_whatever_was_estimated() {
        assert_eq!(progress(1 << 20, 0), "1.0 MiB");
        assert_eq!(progress(1 << 20, 2 << 20), "[###############...............] 1.0 MiB of about 2.0");
        assert!(progress(9 << 20, 2 << 20).starts_with(&format!("[{}]", "#".repeat(30))));
    }
}

//! `lifeboat serve`: one member, until it is told to stop.
//!
//! It reads the configuration, sets up logging, starts the member (see [`super::member`]), prints one line when both
//! listeners answer, and waits. SIGTERM and SIGINT ask it to drain: a leader hands over first, then requests that are
//! under way are answered, then storage closes. A second signal ends it at once.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser as _};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::flags::SettingFlags;
use super::member::{Member, MemberError};
use super::rehearse;
use super::stop::StopRequests;
use super::{Cli, Command, EXIT_BAD_CONFIG, EXIT_FAILED, EXIT_REMOVED};
use crate::config::{Config, Loaded, LogFormat, Sources, load};

/// The flags of `lifeboat serve`.
#[derive(Debug, Args)]
#[command(after_help = "Every setting may also stand in the file (data_dir = \"...\") or in the environment \
    (LIFEBOAT_DATA_DIR).\nA flag is stronger than the environment, the environment than the file.\n\n\
    Exit codes: 0 stopped as asked, 1 failed, 2 the configuration is not valid,\n\
    3 the member was removed from its cluster.")]
pub struct ServeArgs {
    /// A TOML file with settings, named as the flags below with _ for - [env: LIFEBOAT_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the configuration and print what is in force
    #[arg(long)]
    check: bool,
    /// Stop when standard input is closed
    #[arg(long, hide = true)]
    exit_with_parent: bool,
    /// For tests of upgrades: be a member that knows no newer feature level than this one. It tells others so, and stops at
    /// commands that are newer, as the program of that level would. It does not forget anything else that is new.
    #[arg(long, hide = true, value_name = "LEVEL")]
    announce_feature_level: Option<u64>,
    /// Be the throwaway member of a drill, and digest what it holds at this revision (see `rehearse.rs`)
    #[arg(long, hide = true, value_name = "REVISION")]
    rehearse_at: Option<u64>,
    #[command(flatten)]
    settings: SettingFlags,
}

/// Runs a member, or checks its configuration.
pub fn run(args: ServeArgs) -> ExitCode {
    let env = std::env::vars_os().collect();
    let mut loaded = match load(&Sources { file: args.config, env, flags: args.settings.0 }) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("lifeboat serve: {errors}");
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    loaded.config.announce_feature_level = args.announce_feature_level;
    if args.check {
        print_check(&loaded);
        return ExitCode::SUCCESS;
    }
    set_up_logging(&loaded.config, io::stderr);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(at) = args.rehearse_at {
        return rehearse(&loaded.config, at);
    }
    match serve(&loaded.config, args.exit_with_parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::from(if matches!(why, MemberError::Removed(_)) { EXIT_REMOVED } else { EXIT_FAILED })
        }
    }
}

/// Rehearses a failover for the mirror that has started this process.
fn rehearse(config: &Config, at: u64) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start a runtime");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match runtime.block_on(rehearse::run(config, at)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn print_check(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    println!("# configuration is valid");
    for effective in &loaded.effective {
        println!("{}", effective.to_line());
    }
}

fn serve(config: &Config, exit_with_parent: bool) -> Result<(), MemberError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(async {
        let mut requests =
            StopRequests::listen(exit_with_parent).map_err(|e| format!("cannot listen to signals: {e}"))?;
        let mut member = tokio::select! {
            member = Member::start(config) => member?,
            request = requests.next() => {
                tracing::info!("{} before the member belonged to a cluster", request.reason);
                return Ok(());
            }
        };
        announce(config, &member);
        let request = tokio::select! {
            request = requests.next() => request,
            // It must not answer anybody any more: no draining, the process ends.
            why = member.failed() => return Err(why),
        };
        tracing::info!("{}: stopping", request.reason);
        tokio::select! {
            stopped = member.stop(request.hand_over) => {
                Ok(stopped.inspect(|()| tracing::info!("stopped cleanly"))?)
            }
            request = requests.next() => Err(format!("{} again: ended without waiting", request.reason).into()),
        }
    })
}

/// One line on standard output, for people and for scripts that wait for it.
fn announce(config: &Config, member: &Member) {
    let version = env!("CARGO_PKG_VERSION");
    let (client_url, peer_url) = (member.client_url(), member.peer_url());
    match config.log_format {
        LogFormat::Text => println!(
            "lifeboat {version}: {} {} in site {} serves clients at {client_url} and members at {peer_url}, data in {}",
            config.role,
            config.name,
            config.site,
            config.data_dir.display(),
        ),
        LogFormat::Json => {
            tracing::info!(name = config.name, client_url, peer_url, version, "listening");
        }
    }
}

/// Sends the log to `writer`. Only the first call in a process has an effect.
fn set_up_logging<W>(config: &Config, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The filter was parsed once already when the configuration was checked.
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let outcome = match config.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    drop(outcome);
}

/// A member inside a process that also does other things.
pub struct Embedded {
    member: Member,
}

impl Embedded {
    /// Starts the member that the command line `lifeboat <arguments>` would run, with its log in a file. The
    /// environment has no say.
    pub async fn start(arguments: &[String], log_file: &Path) -> Result<Embedded, String> {
        let line = std::iter::once("lifeboat").chain(arguments.iter().map(String::as_str));
        let args = match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Serve(args) => args,
            _ => return Err("not a member's command line".to_owned()),
        };
        let sources = Sources { file: args.config, env: Vec::new(), flags: args.settings.0 };
        let config = load(&sources).map_err(|errors| errors.to_string())?.config;
        let open_log = || {
            std::fs::create_dir_all(&config.data_dir)?;
            std::fs::OpenOptions::new().append(true).create(true).open(log_file)
        };
        let log = open_log().map_err(|error| format!("{}: {error}", log_file.display()))?;
        set_up_logging(&config, Arc::new(log));
        let member = Member::start(&config).await.map_err(|error| error.to_string())?;
        Ok(Embedded { member })
    }

    /// Waits for the member to fail and says why.
    pub async fn failed(&mut self) -> String {
        self.member.failed().await.to_string()
    }

    /// Drains and stops it.
    pub async fn stop(self) -> Result<(), String> {
        self.member.stop(false).await
    }
}

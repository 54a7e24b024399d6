//! The command line: `lifeboat serve` runs one member, `lifeboat dev` a whole cluster to try things on, and the others
//! ask a cluster.
//!
//! Place: above everything else. It gathers flags and variables for `config`, starts `node` and `http`, asks clusters
//! through `client`, and prints for people. Nothing below knows that there is a terminal.
//!
//! Exit codes of `serve` and `dev`: 0 when it did what it was asked, also when that was to stop; 1 when it failed; 2 when
//! it was called wrongly or its configuration is not valid. Those of the others: [`exit`].
//!
//! Proven by the tests at the end of each file here, by `tests/tools/cli.rs`, which runs `serve` and `dev`, and by
//! `tests/tools/cli_tools.rs`, which runs the others against a cluster.

mod bench;
mod cluster;
mod connect;
mod dev;
mod dr;
mod drill;
mod exit;
mod failover;
mod flags;
mod hold;
mod keys;
mod lease;
mod lock;
mod manual;
mod member;
mod output;
mod records;
mod rehearse;
mod salvage;
mod serve;
mod snapshot;
mod stop;
mod switchover;
mod text;
mod txn;
mod verify;
mod watch;
mod words;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// It failed; the last line on standard error says why.
const EXIT_FAILED: u8 = 1;
/// It was called wrongly, or its configuration is not valid. The parser of flags uses the same code.
const EXIT_BAD_CONFIG: u8 = 2;
/// The member was removed from its cluster.
const EXIT_REMOVED: u8 = 3;

/// A replicated key-value store whose disaster recovery is built in.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, max_term_width = 110)]
#[command(after_help = format!("Commands that ask a cluster find it by --endpoints or LIFEBOAT_ENDPOINTS.\n\n{}", exit::help()))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one member of a cluster
    Serve(serve::ServeArgs),
    /// Run a cluster on this machine to try things on: three voters and a mirror
    Dev(dev::DevArgs),
    /// Print the value of a key
    Get(keys::GetArgs),
    /// Write a key
    Put(keys::PutArgs),
    /// Delete a key, or many in one transaction
    Del(keys::DelArgs),
    /// List keys, all at one revision
    List(keys::ListArgs),
    /// Do several things in one transaction, if some hold
    Txn(txn::TxnArgs),
    /// Follow the changes of keys
    Watch(watch::WatchArgs),
    /// Grant, keep alive and end leases
    Lease(lease::LeaseArgs),
    /// Take the next numbers of a sequence
    Seq(records::SeqArgs),
    /// Run a command while holding a lock
    Lock(hold::LockArgs),
    /// Run a command while leading
    Elect(hold::ElectArgs),
    /// Show the cluster and what each member says about itself
    Status(cluster::StatusArgs),
    /// List, invite, change and remove members
    Members(cluster::MembersArgs),
    /// Ask one member whether it is well; for health checks of containers
    Health(cluster::HealthArgs),
    /// Show who leads, or hand the lead over
    Leader(cluster::LeaderArgs),
    /// Show how every member follows: its state, what it lacks, how old what it shows is
    Replication(dr::ReplicationArgs),
    /// Show how the cluster stands against the loss of its site, and what to do
    Dr(dr::DrArgs),
    /// List the writes that only members of an abandoned timeline had, and bring them back
    Salvage(salvage::SalvageArgs),
    /// Show what happened to a member lately
    Events(cluster::EventsArgs),
    /// Begin, show and end a planned pause
    Maintenance(records::MaintenanceArgs),
    /// Verify that every member is sound and all hold the same
    Verify(verify::VerifyArgs),
    /// Save all that a member holds to a file, or check such a file
    Snapshot(snapshot::SnapshotArgs),
    /// Measure how fast a cluster is
    Bench(bench::BenchArgs),
    /// Print the completions for a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page
    Man(manual::ManArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    use connect::run;
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Get(args) => run("get", keys::get(args)),
        Command::Put(args) => run("put", keys::put(args)),
        Command::Del(args) => run("del", keys::del(args)),
        Command::List(args) => run("list", keys::list(args)),
        Command::Txn(args) => run("txn", txn::txn(args)),
        Command::Watch(args) => run("watch", watch::watch(args)),
        Command::Lease(args) => run("lease", lease::lease(args)),
        Command::Seq(args) => run("seq", records::seq(args)),
        Command::Lock(args) => run("lock", hold::lock(args)),
        Command::Elect(args) => run("elect", hold::elect(args)),
        Command::Status(args) => run("status", cluster::status(args)),
        Command::Members(args) => run("members", cluster::members(args)),
        Command::Health(args) => run("health", cluster::health(args)),
        Command::Leader(args) => run("leader", cluster::leader(args)),
        Command::Replication(args) => run("replication", dr::replication(args)),
        Command::Dr(args) => run("dr", dr::dr(args)),
        Command::Salvage(args) => run("salvage", salvage::salvage(args)),
        Command::Events(args) => run("events", cluster::events(args)),
        Command::Maintenance(args) => run("maintenance", records::maintenance(args)),
        Command::Verify(args) => run("verify", verify::verify(args)),
        Command::Snapshot(args) => run("snapshot", snapshot::snapshot(args)),
        Command::Bench(args) => run("bench", bench::bench(args)),
        Command::Completions(args) => run("completions", async { manual::completions(&args, Cli::command()) }),
        Command::Man(args) => run("man", async { manual::man(&args, Cli::command()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// The commands of a page: the lines of its blocks, and what stands in the text as code.
    fn commands(page: &str) -> Vec<String> {
        let (mut commands, mut prose, mut inside) = (Vec::new(), String::new(), false);
        for line in page.lines() {
            match (line.trim_start().starts_with("```"), inside) {
                (true, _) => inside = !inside,
                (false, true) => commands.push(line.trim().trim_start_matches("$ ").to_owned()),
                (false, false) => {
                    prose += line.trim();
                    prose.push(' ');
                }
            }
        }
        commands.extend(prose.split('`').skip(1).step_by(2).map(|code| code.trim().to_owned()));
        let command = |text: String| text.split(" # ").next().unwrap_or_default().trim().to_owned();
        commands.into_iter().map(command).filter(|text| text.starts_with("lifeboat ")).collect()
    }

    #[test]
    fn the_commands_of_the_runbook_are_understood() {
        for (name, page, at_least) in [
            ("disaster-recovery.md", include_str!("../../docs/disaster-recovery.md"), 50),
            ("mirrors.md", include_str!("../../docs/mirrors.md"), 5),
        ] {
            let commands = commands(page);
            assert!(commands.len() >= at_least, "{name} has {} commands", commands.len());
            for command in commands {
                let words = words::words(&command).unwrap();
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{name}: {command}\n{error}");
                }
            }
        }
    }

    #[test]
    fn nothing_to_do_is_an_error_that_shows_the_help() {
        let error = Cli::try_parse_from(["lifeboat"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(EXIT_BAD_CONFIG));
        assert!(error.to_string().contains("serve"), "{error}");
    }
}

//! The command line: `lifeboat serve` runs one member, `lifeboat dev` a whole cluster to try things on.
//!
//! Place: above everything else. It gathers flags and variables for `config`, starts `node` and `http`, and prints for
//! people. Nothing below knows that there is a terminal.
//!
//! Exit codes: 0 when it did what it was asked, also when that was to stop; 1 when it failed; 2 when it was called
//! wrongly or its configuration is not valid.
//!
//! Proven by the tests at the end of each file here, and by `tests/cli.rs`, which runs the program.

mod dev;
mod flags;
mod lock;
mod member;
mod serve;
mod stop;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// It failed; the last line on standard error says why.
const EXIT_FAILED: u8 = 1;
/// It was called wrongly, or its configuration is not valid. The parser of flags uses the same code.
const EXIT_BAD_CONFIG: u8 = 2;

/// A replicated key-value store whose disaster recovery is built in.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one member of a cluster.
    Serve(serve::ServeArgs),
    /// Run a cluster on this machine to try things on: three voters and a mirror.
    Dev(dev::DevArgs),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Dev(args) => dev::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_to_do_is_an_error_that_shows_the_help() {
        let error = Cli::try_parse_from(["lifeboat"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(EXIT_BAD_CONFIG));
        assert!(error.to_string().contains("serve"), "{error}");
    }
}

//! The program `lifeboat`: parse the command line and run. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    lifeboat::cli::main()
}

//! What all commands that ask a cluster share: where its members are, how long to wait, and how to print.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Trouble};
use super::output::Format;
use super::text;
use crate::client::Client;

/// Where `lifeboat dev` and a member with default settings listen for clients.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7400";

/// Flags of every command that asks a cluster.
#[derive(Debug, Clone, Args)]
pub struct Connect {
    /// Where members listen for clients, separated by commas
    #[arg(
        short,
        long,
        env = "LIFEBOAT_ENDPOINTS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINT,
        help_heading = "Cluster"
    )]
    pub endpoints: Vec<String>,
    /// By when the command is decided or fails
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = text::duration, help_heading = "Cluster")]
    pub timeout: Duration,
    /// How to print; a terminal gets a table unless told otherwise, anything else plain text
    #[arg(short, long, value_name = "FORM", help_heading = "Cluster")]
    pub output: Option<Format>,
}

impl Connect {
    /// A client. Nothing is sent yet.
    pub fn client(&self) -> Result<Client, Trouble> {
        Ok(Client::builder().endpoints(self.endpoints.clone()).deadline(self.timeout).build()?)
    }

    /// How to print.
    pub fn format(&self) -> Format {
        self.output.unwrap_or_else(Format::usual)
    }
}

/// Runs a command to its end and says on standard error what went wrong.
pub fn run(name: &str, command: impl Future<Output = Result<Exit, Trouble>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lifeboat {name}: cannot start a runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(command);
    // What runs in the background (a lease that is given up, a question that nobody waits for) must not hold it up.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match ended {
        Ok(exit) => exit.into(),
        Err(trouble) => {
            if !trouble.text.is_empty() {
                eprintln!("lifeboat {name}: {}", trouble.text);
            }
            if let Some(hint) = trouble.hint {
                eprintln!("  {hint}");
            }
            trouble.exit.into()
        }
    }
}

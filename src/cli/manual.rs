//! `lifeboat completions` and `lifeboat man`: made from the command line's own description, so that they are never
//! older than it.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::{Exit, Trouble};

/// `lifeboat completions`.
#[derive(Debug, Args)]
#[command(after_help = "bash: lifeboat completions bash > /etc/bash_completion.d/lifeboat\n\
    zsh:  lifeboat completions zsh > ~/.zfunc/_lifeboat\n\
    fish: lifeboat completions fish > ~/.config/fish/completions/lifeboat.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints what a shell needs to complete this command line.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<Exit, Trouble> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "lifeboat", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Exit::Done)
}

/// `lifeboat man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for every command into this directory; else the main page is printed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the manual page, or writes all pages into a directory.
pub fn man(args: &ManArgs, command: Command) -> Result<Exit, Trouble> {
    match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|error| Trouble::usage(format!("{}: {error}", dir.display())))?;
            clap_mangen::generate_to(command, dir)?;
        }
        None => clap_mangen::Man::new(command).render(&mut io::stdout().lock())?,
    }
    Ok(Exit::Done)
}

//! One flag for each setting, made from the table of settings, so that neither can be forgotten.
//!
//! Flags are taken as text: `config` understands and checks them together with the file and the environment, and then
//! lists all errors at once.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{SETTINGS, Setting, Shape};

/// What was given on the command line: names of settings and texts, for `config::Sources`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingFlags(pub Vec<(String, String)>);

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().fold(command, |command, setting| command.arg(arg(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Vec::new();
        for setting in SETTINGS {
            for value in matches.get_many::<String>(setting.name).into_iter().flatten() {
                flags.push((setting.name.to_owned(), value.clone()));
            }
        }
        Ok(SettingFlags(flags))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

fn arg(setting: &'static Setting) -> Arg {
    let mut help = setting.help.to_owned();
    // The default is told, not set: a default of clap's would overrule the file and the environment.
    if let Some(default) = setting.default.filter(|_| setting.shape != Shape::Switch) {
        help.push_str(&format!(" [default: {default}]"));
    }
    let arg = Arg::new(setting.name).long(setting.flag()).help(help);
    match setting.shape {
        Shape::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .action(ArgAction::Set),
        Shape::List => {
            arg.value_name(if setting.name == "discover" { "PLACE" } else { "URL" }).action(ArgAction::Append)
        }
        Shape::Bytes => arg.value_name("SIZE"),
        Shape::Millis => arg.value_name("TIME"),
        Shape::Count => arg.value_name("COUNT"),
        Shape::Text => arg.value_name(match setting.name {
            "data_dir" => "DIR",
            name if name.ends_with("_listen") => "ADDRESS",
            name if name.ends_with("_url") => "URL",
            _ => "TEXT",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<SettingFlags, clap::Error> {
        let command = SettingFlags::augment_args(Command::new("serve").no_binary_name(true));
        SettingFlags::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    fn pairs(pairs: &[(&str, &str)]) -> SettingFlags {
        SettingFlags(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn flags_become_settings() {
        let args = ["--data-dir", "d", "--name=n1", "--bootstrap", "--join", "http://a:1", "--join", "http://b:2"];
        let expected =
            [("name", "n1"), ("data_dir", "d"), ("bootstrap", "true"), ("join", "http://a:1"), ("join", "http://b:2")];
        assert_eq!(parse(&args).unwrap(), pairs(&expected));
        assert_eq!(parse(&["--bootstrap=false"]).unwrap(), pairs(&[("bootstrap", "false")]));
        assert_eq!(parse(&[]).unwrap(), pairs(&[]));
    }

    #[test]
    fn every_setting_has_its_flag() {
        for setting in SETTINGS {
            let flag = format!("--{}=true", setting.flag());
            assert_eq!(parse(&[&flag]).unwrap(), pairs(&[(setting.name, "true")]), "{flag}");
        }
    }

    #[test]
    fn unknown_and_doubled_flags_are_refused() {
        assert!(parse(&["--nmae", "x"]).unwrap_err().to_string().contains("--nmae"));
        assert!(parse(&["--name", "x", "--name", "y"]).unwrap_err().to_string().contains("--name"));
    }
}

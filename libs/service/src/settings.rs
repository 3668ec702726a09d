//! How settings are read, the same in every process.
//!
//! ```text
//!  command line ─► environment variable ─► default          a default is written once: at the setting's definition
//!                    │ empty: as if it were not set
//!                    │ a list: split at commas; on the command line nothing is, the option is repeated instead
//!                    └ a switch: 1, true, yes, on; 0, false, no, off
//! ```

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::{Arg, ArgAction, Command, Parser};

use crate::values::switch;

/// Reads settings from a command line, whose first word is the program, and from the environment.
pub fn parse<A: Parser>(argv: &[OsString]) -> Result<A, clap::Error> {
    let mut command = with_environment(A::command(), argv);
    let mut matches = command.try_get_matches_from_mut(argv)?;
    A::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Settings with their defaults, whatever the environment says. `needed` is the command line of those that have none.
///
/// # Panics
/// If `needed` is not what the definition asks for.
pub fn defaults<A: clap::Args>(needed: &[(&str, &OsStr)]) -> A {
    let command = A::augment_args(Command::new("defaults").no_binary_name(true));
    let matches = command
        .mut_args(without_variable)
        .try_get_matches_from(needed.iter().flat_map(|(name, value)| [OsStr::new(name), value]));
    let settings = matches.and_then(|matches| A::from_arg_matches(&matches));
    settings.unwrap_or_else(|error| panic!("the defaults are not valid: {error}"))
}

fn without_variable(arg: Arg) -> Arg {
    arg.env(Resettable::Reset)
}

/// What clap does not do by itself with environment variables.
fn with_environment(command: Command, argv: &[OsString]) -> Command {
    let command = command.mut_args(|arg| {
        let Some(variable) = arg.get_env().map(OsStr::to_owned) else { return arg };
        if std::env::var_os(&variable).is_some_and(|value| value.is_empty()) {
            return without_variable(arg);
        }
        match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(switch),
            // clap splits a list at its delimiter wherever it comes from.
            ArgAction::Append if !is_given(&arg, argv) => arg.value_delimiter(','),
            _ => arg,
        }
    });
    command.mut_subcommands(|subcommand| with_environment(subcommand, argv))
}

/// Whether an option is on the command line.
fn is_given(arg: &Arg, argv: &[OsString]) -> bool {
    let Some(long) = arg.get_long() else { return true };
    let is_it = |word: &OsString| {
        let Some(name) = word.to_str().and_then(|word| word.strip_prefix("--")) else { return false };
        name.split_once('=').map_or(name, |(name, _)| name) == long
    };
    argv.iter().any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Variables that every process of these tests has: cargo sets the first, and every shell the second.
    const SET: &str = "CARGO_PKG_NAME";

    #[derive(Debug, Parser, PartialEq)]
    struct Settings {
        #[arg(long, env = SET)]
        list: Vec<String>,
        #[arg(long, default_value = "3", env = SET)]
        number: String,
    }

    #[test]
    fn defaults_come_from_the_definition_and_not_from_the_environment() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let defaults: Settings = defaults(&[("--list", OsStr::new("a,b"))]);
        assert_eq!(defaults, Settings { list: vec!["a,b".to_owned()], number: "3".to_owned() });
        let read: Settings = parse(&words(&["program"])).expect("valid");
        assert_eq!(read, Settings { list: vec!["service".to_owned()], number: "service".to_owned() });
    }
}

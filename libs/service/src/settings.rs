//! How settings are read, the same in every process.
//!
//! ```text
//!  command line ─► environment variable ─► default          a default is written once: at the setting's definition
//!                    │ empty: as if it were not set
//!                    │ a list: split at commas; on the command line nothing is, the option is repeated instead
//!                    └ a switch: 1, true, yes, on; 0, false, no, off
//! ```
//!
//! A problem names the variable, where the value came from one: [`Variables`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Parser};

use crate::values::switch;

/// Reads settings from a command line, whose first word is the program, and from the environment.
pub fn parse<A: Parser>(argv: &[OsString]) -> Result<(A, Variables), clap::Error> {
    let mut command = with_environment(A::command(), argv);
    let mut matches = command.try_get_matches_from_mut(argv).map_err(|error| with_variable(error, &command, argv))?;
    let variables = Variables::of(&command, &matches);
    let args = A::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))?;
    Ok((args, variables))
}

/// The variables of the settings of one command, to name them in problems.
#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, Variable>);

#[derive(Debug, Clone)]
struct Variable {
    name: String,
    /// Whether the value came from it.
    is_source: bool,
}

impl Variables {
    fn of(command: &Command, matches: &ArgMatches) -> Self {
        let mut found = BTreeMap::new();
        let mut level = Some((command, matches));
        while let Some((command, matches)) = level {
            for arg in command.get_arguments() {
                let Some((option, name)) = option(arg).zip(arg.get_env()) else { continue };
                let is_source = matches.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable);
                found.insert(option, Variable { name: name.to_string_lossy().into_owned(), is_source });
            }
            level = matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
        }
        Self(found)
    }

    /// The problem, with the variable of each setting whose value came from one, or is missing.
    pub fn name_in(&self, problem: &str) -> String {
        let mut text = problem.to_owned();
        for (option, variable) in &self.0 {
            let Some(at) = find_option(&text, option) else { continue };
            let (before, behind) = (&text[..at], &text[at + option.len()..]);
            let missing = behind.find(IS_MISSING).filter(|at| behind[..*at].trim_start().split(' ').count() == 1);
            text = match missing {
                _ if variable.is_source => format!("{before}{} ({option}){behind}", variable.name),
                Some(at) => format!("{before}{option}{} ({}){}", &behind[..at], variable.name, &behind[at..]),
                None => continue,
            };
        }
        text
    }
}

const IS_MISSING: &str = " is missing";

/// Where an option stands in a text, as a whole word.
fn find_option(text: &str, option: &str) -> Option<usize> {
    let continues = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let found = text
        .match_indices(option)
        .find(|(at, _)| !text[..*at].ends_with(continues) && !text[at + option.len()..].starts_with(continues));
    found.map(|(at, _)| at)
}

fn option(arg: &Arg) -> Option<String> {
    arg.get_long().map(|long| format!("--{long}"))
}

/// What clap found wrong, with the variables: it names options only.
fn with_variable(mut error: clap::Error, command: &Command, argv: &[OsString]) -> clap::Error {
    let mut path = vec![command];
    for word in &argv[argv.len().min(1)..] {
        path.extend(path[path.len() - 1].find_subcommand(word));
    }
    let arg_of = |shown: &str| {
        let option = shown.split([' ', '=']).next()?.strip_prefix("--")?;
        path.iter().rev().flat_map(|command| command.get_arguments()).find(|arg| arg.get_long() == Some(option))
    };
    let variable_of = |shown: &str| Some(arg_of(shown)?.get_env()?.to_string_lossy().into_owned());
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) if error.kind() == ErrorKind::MissingRequiredArgument => {
            let line = |shown: &String| {
                let variable = variable_of(shown).map(|name| format!(" ({name})")).unwrap_or_default();
                // `--log <DIR>` is `--log DIR` elsewhere.
                format!("{}{variable}{IS_MISSING}", shown.replace(['<', '>'], ""))
            };
            let lines: Vec<_> = missing.iter().map(line).collect();
            let usage = error.get(ContextKind::Usage).map(|usage| format!("\n\n{usage}")).unwrap_or_default();
            let text = format!("{}{usage}\n\nFor more information, try '--help'.\n", lines.join("\nerror: "));
            clap::Error::raw(ErrorKind::MissingRequiredArgument, text)
        }
        Some(ContextValue::String(shown)) if shown == "--log" && error.kind() == ErrorKind::UnknownArgument => {
            let command = path[path.len() - 1];
            let has = |long: &str| path.iter().flat_map(|c| c.get_arguments()).any(|arg| arg.get_long() == Some(long));
            if !(has("edge-log") && has("cloud-log")) {
                return error;
            }
            let text = format!("{} knows two logs: --edge-log and --cloud-log\n", command.get_name());
            clap::Error::raw(ErrorKind::UnknownArgument, text)
        }
        Some(ContextValue::String(shown)) => {
            let is_source = arg_of(shown).is_some_and(|arg| !is_given(arg, argv));
            if let Some(variable) = variable_of(shown).filter(|name| is_source && std::env::var_os(name).is_some()) {
                let named = format!("{variable} ({shown})");
                error.insert(ContextKind::InvalidArg, ContextValue::String(named));
            }
            error
        }
        _ => error,
    }
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
        let (read, _): (Settings, _) = parse(&words(&["program"])).expect("valid");
        assert_eq!(read, Settings { list: vec!["service".to_owned()], number: "service".to_owned() });
    }

    #[test]
    fn a_problem_names_the_variable_that_its_value_came_from() {
        let variable = |name: &str, is_source| Variable { name: name.to_owned(), is_source };
        let variables = Variables(BTreeMap::from([
            ("--max".to_owned(), variable("C_MAX", true)),
            ("--max-age".to_owned(), variable("C_MAX_AGE", false)),
            ("--key".to_owned(), variable("C_KEY", false)),
        ]));
        for (problem, named) in [
            ("--max 7: too small for --max-age", "C_MAX (--max) 7: too small for --max-age"),
            ("--max-age must be above 0", "--max-age must be above 0"),
            ("--key is missing: make one", "--key (C_KEY) is missing: make one"),
            ("--key FILE is missing", "--key FILE (C_KEY) is missing"),
            ("--key f: what it needs is missing", "--key f: what it needs is missing"),
            ("no setting", "no setting"),
        ] {
            assert_eq!(variables.name_in(problem), named);
        }
    }
}

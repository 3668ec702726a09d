//! `carstream settings`: docs/settings.md, from the definitions of all stages and commands.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

/// A setting, as its definition says. Two commands have the same one if all of this is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    name: String,
    variable: Option<String>,
    value: String,
    default: String,
    help: String,
}

/// A command that is run: by its names, as in `dead-letter list`.
#[derive(Debug)]
struct Runnable {
    name: String,
    settings: Vec<Setting>,
}

/// The page, from the definition of the whole command line.
pub fn page(program: &Command) -> String {
    let commands = commands(program);
    let stages = crate::STAGES.map(|stage| stage.to_owned());
    let mut page = INTRODUCTION.to_owned();

    let mut shared: Vec<(Setting, Vec<String>)> = Vec::new();
    for command in &commands {
        for setting in &command.settings {
            match shared.iter_mut().find(|(known, _)| known == setting) {
                Some((_, users)) => users.push(command.name.clone()),
                None => shared.push((setting.clone(), vec![command.name.clone()])),
            }
        }
    }
    shared.retain(|(_, users)| users.len() > 1);
    let (of_all, of_some): (Vec<_>, Vec<_>) =
        shared.iter().partition(|(_, users)| stages.iter().all(|stage| users.contains(stage)));
    page += "\n## Every stage\n\nCommands that run no stage have these, too, and log at `warn` by default.\n\n";
    table(&mut page, of_all.iter().map(|(setting, _)| (setting, None)));
    page += "\n## Several stages and commands\n\n";
    table(&mut page, of_some.iter().map(|(setting, users)| (setting, Some(users.join(", ")))));

    for command in &commands {
        let (others, own): (Vec<_>, Vec<_>) =
            command.settings.iter().partition(|setting| shared.iter().any(|(known, _)| known == *setting));
        let is_stage = stages.iter().any(|stage| command.name.starts_with(stage.as_str()));
        let _ = write!(page, "\n## {}{}\n\n", if is_stage { "" } else { "carstream " }, command.name);
        if !own.is_empty() {
            table(&mut page, own.into_iter().map(|setting| (setting, None)));
        }
        let above = others.iter().filter(|setting| !of_all.iter().any(|(known, _)| known == **setting));
        let above: Vec<_> = above.map(|setting| format!("`{}`", setting.name)).collect();
        if !above.is_empty() {
            let _ = write!(page, "\nAnd, from above: {}.\n", above.join(", "));
        }
    }
    // A command may have no table of its own.
    page.replace("\n\n\n", "\n\n")
}

const INTRODUCTION: &str = "\
# Settings

*This page is made from the definitions: `carstream settings > docs/settings.md`.*

A setting comes from the command line, else from its environment variable, else it has its default. An empty variable is
an unset one. All settings that cannot work are reported together, with exit code 64.

| value | written as |
| --- | --- |
| DURATION | a number and its unit, ms, s, m, h or d: `500ms`, `90s`, `15m`, `24h`, `7d`; a bare number is refused |
| SIZE | a number and its unit, B, KiB, MiB or GiB: `256KiB`, `64MiB`; a bare number is refused |
| HOST:PORT | an IP address, or a name, resolved to bind or to connect: `0.0.0.0:1883`, `[::]:1883`, `localhost:1883` |
| URL of a log | `kafka://HOST:PORT[,HOST:PORT…]`, or a directory for the embedded log |
| URL of a lake | a directory, `file:///DIRECTORY`, or `s3://BUCKET[/PREFIX]` |
| switch | on the command line the option alone; in a variable `1`, `true`, `yes`, `on`, or `0`, `false`, `no`, `off` |
| … | may be repeated on the command line, where a value is never split; in a variable, values are separated by commas |

`--log` is the log that a stage works on. A command that knows two of them has `--edge-log` and `--cloud-log`. A
variable without the name of a stage means the same in all of them, so that a site can have one file of variables.
";

/// All commands that are run: stages first, in the order of the flow.
fn commands(program: &Command) -> Vec<Runnable> {
    let mut found = Vec::new();
    for command in program.get_subcommands() {
        collect(command, "", &[], &mut found);
    }
    let (mut stages, others): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|command: &Runnable| crate::STAGES.iter().any(|stage| command.name.starts_with(stage)));
    let place = |command: &Runnable| crate::STAGES.iter().position(|stage| command.name.starts_with(stage));
    stages.sort_by_key(place);
    stages.extend(others);
    stages
}

fn collect(command: &Command, path: &str, above: &[Setting], found: &mut Vec<Runnable>) {
    let name = format!("{path} {}", command.get_name()).trim_start().to_owned();
    let settings: Vec<_> = command.get_arguments().filter_map(setting).filter(|s| !above.contains(s)).collect();
    let above = [above, &settings].concat();
    if !settings.is_empty() {
        found.push(Runnable { name: name.clone(), settings });
    }
    for subcommand in command.get_subcommands() {
        collect(subcommand, &name, &above, found);
    }
}

fn setting(arg: &Arg) -> Option<Setting> {
    if matches!(arg.get_id().as_str(), "help" | "version") {
        return None;
    }
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let choices: Vec<_> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let names: Vec<_> = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let mut value = match choices.as_slice() {
        _ if is_switch => "switch".to_owned(),
        [] => names.join(" "),
        choices => choices.join(", "),
    };
    if matches!(arg.get_action(), ArgAction::Append) {
        value += " …";
    }
    let name = arg.get_long().map_or_else(|| names.join(" "), |long| format!("--{long}"));
    let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    Some(Setting {
        name,
        variable: arg.get_env().map(|variable| variable.to_string_lossy().into_owned()),
        value,
        default: if is_switch { String::new() } else { default.join(",") },
        help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
    })
}

fn table<'a>(page: &mut String, settings: impl Iterator<Item = (&'a Setting, Option<String>)>) {
    let rows: Vec<_> = settings.collect();
    let with_users = rows.iter().any(|(_, users)| users.is_some());
    let (head, line) = if with_users { (" of |", " --- |") } else { ("", "") };
    let _ = write!(page, "| setting | variable | value | default | |{head}\n| --- | --- | --- | --- | --- |{line}\n");
    for (Setting { name, variable, value, default, help }, users) in rows {
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        let cells =
            [code(name), code(variable.as_deref().unwrap_or_default()), value.clone(), code(default), help.clone()];
        let cells = cells.into_iter().chain(users).map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(page, "| {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory;

    use super::*;

    /// Settings of one name that are not the same in all commands, by name: (name, commands, which differ from it).
    fn differences(program: &Command) -> BTreeMap<String, Vec<(String, Setting)>> {
        let mut by_name: BTreeMap<String, Vec<(String, Setting)>> = BTreeMap::new();
        for command in commands(program) {
            for setting in command.settings {
                by_name.entry(setting.name.clone()).or_default().push((command.name.clone(), setting));
            }
        }
        by_name.retain(|_, found| {
            let kind = |(_, s): &(String, Setting)| (s.variable.clone(), s.value.clone(), s.default.clone());
            found.iter().any(|one| kind(one) != kind(&found[0]))
        });
        by_name
    }

    const DEMO: &str = "the demo has its own defaults, for a run of a minute";

    /// Names with another variable, value or default in another command, each with its reason.
    const DIFFERENT: [(&str, &str); 8] = [
        ("--log", "the edge box has no other log than its own, in a directory"),
        ("--lake", "a hop that is not named is left out of the audit; the edge box has one model or the lake"),
        ("--cars", DEMO),
        ("--duration", DEMO),
        ("--seed", "the fleet's or the training's: a shared variable would couple what is independent"),
        ("--speedup", DEMO),
        ("--ledger", "the simulator writes one, the audit reads those of all simulators"),
        ("--topic", "copied, written, or shown"),
    ];

    #[test]
    fn a_setting_means_the_same_in_all_commands() {
        let found = differences(&crate::Cli::command());
        let unexpected: Vec<_> =
            found.iter().filter(|(name, _)| !DIFFERENT.iter().any(|(known, _)| known == name)).collect();
        assert!(unexpected.is_empty(), "{unexpected:#?}");
        for (name, reason) in DIFFERENT {
            assert!(found.contains_key(name), "{name} is the same everywhere now ({reason}): take it off the list");
        }
    }

    #[test]
    fn a_variable_is_of_one_setting() {
        let mut of: BTreeMap<String, String> = BTreeMap::new();
        for command in commands(&crate::Cli::command()) {
            for Setting { name, variable, .. } in command.settings {
                let Some(variable) = variable else { continue };
                assert!(variable.starts_with("CARSTREAM_"), "{variable}");
                let known = of.entry(variable.clone()).or_insert_with(|| name.clone());
                assert_eq!(*known, name, "both have the variable {variable}");
            }
        }
    }

    #[test]
    fn the_image_has_a_link_for_every_stage() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../Dockerfile");
        let list = format!("for stage in {}; do", crate::STAGES.join(" "));
        assert!(
            std::fs::read_to_string(file).expect("the Dockerfile").contains(&list),
            "not in the Dockerfile: {list}"
        );
    }

    #[test]
    fn the_page_is_what_the_definitions_say() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        let written = std::fs::read_to_string(file).unwrap_or_default();
        let page = page(&crate::Cli::command());
        assert!(written == page, "docs/settings.md is out of date: cargo run --release -- settings > docs/settings.md");
    }
}

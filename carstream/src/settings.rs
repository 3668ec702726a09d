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
    /// Of a subcommand: the command that it belongs to, and which settings of that one it has, too.
    parent: Option<(String, Vec<Setting>)>,
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
    page += EVERY_STAGE;
    table(&mut page, of_all.iter().map(|(setting, _)| (setting, None)));
    page += "\n## Several stages and commands\n\n";
    table(&mut page, of_some.iter().map(|(setting, users)| (setting, Some(users.join(", ")))));

    for command in &commands {
        let (others, own): (Vec<_>, Vec<_>) =
            command.settings.iter().partition(|setting| shared.iter().any(|(known, _)| known == *setting));
        let is_stage = stages.iter().any(|stage| command.name.starts_with(stage.as_str()));
        let _ = write!(page, "\n## {}{}\n\n", if is_stage { "" } else { "carstream " }, command.name);
        if own.is_empty() {
            page += "No settings of its own.\n";
        } else {
            table(&mut page, own.into_iter().map(|setting| (setting, None)));
        }
        let names = |settings: &[&Setting]| {
            let settings = settings.iter().filter(|setting| !of_all.iter().any(|(known, _)| known == **setting));
            settings.map(|setting| format!("`{}`", setting.name)).collect::<Vec<_>>().join(", ")
        };
        let above = names(&others);
        if !above.is_empty() {
            let _ = write!(page, "\nAnd, from above: {above}.\n");
        }
        if let Some((parent, settings)) = &command.parent {
            let of_parent = names(&settings.iter().collect::<Vec<_>>());
            if !of_parent.is_empty() {
                let _ = write!(page, "\nAnd, as for {parent}: {of_parent}.\n");
            }
        }
    }
    page
}

const EVERY_STAGE: &str = "
## Every stage

Commands that run no stage have these, too, and log at `warn` by default; `deploy`, which waits for logs, at `info`.

";

const INTRODUCTION: &str = "\
# Settings

*This page is made from the definitions: `carstream settings > docs/settings.md`.*

A setting comes from the command line, else from its environment variable, if it has one, else it has its default. An
empty variable is an unset one; a variable that begins with `CARSTREAM_` and is no setting is reported. Settings that
cannot work have exit code 64. A value that is not of the kind in the table below is reported first and alone; all other
problems are reported together. Both name the variable that the value came from.

A setting of a command stands before or behind its subcommand: `preprocessor try STREAM --contract DIR`.

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

/// Variables that look like settings and are none of any stage or command, each with the nearest one.
pub fn unknown_variables(names: impl IntoIterator<Item = String>, program: &Command) -> Vec<String> {
    let known: Vec<_> = commands(program).into_iter().flat_map(|command| command.settings).collect();
    let known: Vec<_> = known.iter().filter_map(|setting| setting.variable.as_deref()).collect();
    let is_other = |name: &str| {
        let of_tests = OF_TESTS.iter().any(|prefix| name.starts_with(prefix));
        // What Kubernetes gives each container for a service that is called carstream-….
        of_tests || name.contains("_SERVICE_") || name.contains("_PORT")
    };
    let mut unknown: Vec<_> = names.into_iter().filter(|name| name.starts_with("CARSTREAM_")).collect();
    unknown.retain(|name| !known.contains(&name.as_str()) && !is_other(name));
    unknown.sort();
    let line = |name: String| {
        let nearest = known.iter().map(|known| (distance(&name, known), known)).min();
        match nearest.filter(|(distance, _)| *distance <= MAX_TYPOS) {
            Some((_, known)) => format!("{name} is no setting: did you mean {known}?"),
            None => format!("{name} is no setting: docs/settings.md has all of them"),
        }
    };
    unknown.into_iter().map(line).collect()
}

/// Variables of tests and scripts.
const OF_TESTS: [&str; 7] = [
    "CARSTREAM_TEST_",
    "CARSTREAM_CACHE",
    "CARSTREAM_IMAGE",
    "CARSTREAM_CRASH_",
    "CARSTREAM_WORKER_",
    "CARSTREAM_SCHEDULE",
    "CARSTREAM_KILL",
];

/// More changed letters than this are another word.
const MAX_TYPOS: usize = 4;

/// How many letters have to be inserted, removed or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// All commands that are run: stages first, in the order of the flow.
fn commands(program: &Command) -> Vec<Runnable> {
    let mut found = Vec::new();
    for command in program.get_subcommands() {
        collect(command, "", None, &mut found);
    }
    let (mut stages, others): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|command: &Runnable| crate::STAGES.iter().any(|stage| command.name.starts_with(stage)));
    let place = |command: &Runnable| crate::STAGES.iter().position(|stage| command.name.starts_with(stage));
    stages.sort_by_key(place);
    stages.extend(others);
    stages
}

fn collect(command: &Command, path: &str, parent: Option<&Command>, found: &mut Vec<Runnable>) {
    let name = format!("{path} {}", command.get_name()).trim_start().to_owned();
    let above: Vec<_> =
        parent.into_iter().flat_map(Command::get_arguments).filter_map(|arg| Some((arg, setting(arg)?))).collect();
    let is_above = |setting: &Setting| above.iter().any(|(_, known)| known == setting);
    let (of_parent, settings): (Vec<_>, Vec<_>) = command.get_arguments().filter_map(setting).partition(is_above);
    let is_of_parent = |(arg, setting): &&(&Arg, Setting)| arg.is_global_set() || of_parent.contains(setting);
    let of_parent: Vec<_> = above.iter().filter(is_of_parent).map(|(_, setting)| setting.clone()).collect();
    if !settings.is_empty() {
        let parent = parent.map(|parent| (parent.get_name().to_owned(), of_parent));
        found.push(Runnable { name: name.clone(), settings, parent });
    }
    for subcommand in command.get_subcommands() {
        collect(subcommand, &name, Some(command), found);
    }
}

fn setting(arg: &Arg) -> Option<Setting> {
    if arg.is_hide_set() || matches!(arg.get_id().as_str(), "help" | "version") {
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
    const DIFFERENT: [(&str, &str); 10] = [
        ("--log", "the edge box has no other log than its own, in a directory"),
        ("--lake", "a hop that is not named is left out of the audit; the edge box has one model or the lake"),
        ("--cars", DEMO),
        ("--duration", DEMO),
        ("--seed", "the fleet's or the training's: a shared variable would couple what is independent"),
        ("--speedup", DEMO),
        ("--ledger", "the simulator writes one, the audit reads those of all simulators"),
        ("--topic", "copied, written, or shown"),
        ("--wait", "an audit judges at once unless asked to wait; forgetting a car takes the stages a moment"),
        ("--every", "trainings and compactions have nothing to do with each other"),
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
    fn a_variable_that_is_no_setting_is_named_with_the_nearest_one() {
        let names = ["CARSTREAM_LOGLEVEL", "CARSTREAM_LOG_LEVEL", "CARSTREAM_SINK_MAX_AGE", "CARSTREAM_TEST_KAFKA"];
        let others = ["CARSTREAM_ADMIN_PORT_9100_TCP", "CARSTREAM_SOMETHING_ELSE", "CARGO_HOME"];
        let found =
            unknown_variables([&names[..], &others].concat().into_iter().map(String::from), &crate::Cli::command());
        let wanted = [
            "CARSTREAM_LOGLEVEL is no setting: did you mean CARSTREAM_LOG_LEVEL?",
            "CARSTREAM_SOMETHING_ELSE is no setting: docs/settings.md has all of them",
        ];
        assert_eq!(found, wanted);
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

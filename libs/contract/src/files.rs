//! The files of a contract: which belong together, and how a site's lie over the platform's.
//!
//! ```text
//!  contract.json                  whether the platform's contract is extended (the default) or replaced
//!  topics.json, ids.json, *.avsc  what no stream or model has to itself
//!  streams/NAME/                  stream.json, query.sql, samples.ndjson; its own topics.json, ids.json, *.avsc
//!  models/NAME/                   model.json; its own topics.json, ids.json, *.avsc
//! ```
//!
//! The root and each folder is a room. A site's folder replaces the platform's of the same name as a whole; a file of
//! its root replaces the platform's file of the same name, but `topics.json` and `ids.json`, whose entries are laid
//! over each other.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// A set of files by their path below the contract's directory, with `/` between names.
pub type Files = BTreeMap<String, String>;

/// Files that are parsed together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room {
    /// `""`, `streams/NAME` or `models/NAME`.
    pub(crate) path: String,
    files: Files,
}

impl Room {
    /// The path and the text of the file `name` of this room.
    pub(crate) fn file(&self, name: &str) -> Option<(String, &str)> {
        self.files.get(name).map(|text| (self.path_of(name), text.as_str()))
    }

    /// The path of the file `name`, also if it does not exist.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) }
    }

    /// Its schema files: name, path, text.
    pub(crate) fn schemas(&self) -> impl Iterator<Item = (&str, String, &str)> {
        let schemas = self.files.iter().filter(|(name, _)| name.ends_with(".avsc"));
        schemas.map(|(name, text)| (name.as_str(), self.path_of(name), text.as_str()))
    }

    /// The last part of its path, if it is a folder of `kind` (`streams` or `models`).
    pub(crate) fn name_in(&self, kind: &str) -> Option<&str> {
        self.path.strip_prefix(kind)?.strip_prefix('/')
    }
}

/// What keeps the files of this name from being a `T`.
pub(crate) fn check_files<T: DeserializeOwned>(rooms: &[Room], name: &str, problems: &mut Vec<Problem>) {
    for (file, text) in rooms.iter().filter_map(|room| room.file(name)) {
        parse_json::<T>(&file, text, problems);
    }
}

/// What keeps the `ids.json` of all rooms from being read.
pub(crate) fn check_ids(rooms: &[Room], problems: &mut Vec<Problem>) {
    check_files::<BTreeMap<u32, String>>(rooms, "ids.json", problems);
    check_names(rooms, "ids.json", "id", problems);
}

/// An entry that is in a file twice: the parser would keep the last one, and say nothing.
pub(crate) fn check_names(rooms: &[Room], name: &str, kind: &str, problems: &mut Vec<Problem>) {
    for (file, text) in rooms.iter().filter_map(|room| room.file(name)) {
        let mut lines = BTreeMap::new();
        for (entry, line) in telemetry::declaration::names(text) {
            if let Some(first) = lines.insert(entry.clone(), line) {
                let what = format!("{kind} {entry} is also declared in line {first}: keep one");
                problems.push(Problem { line: Some(line), ..Problem::of_file(&file, what) });
            }
        }
    }
}

/// The content of a JSON file. `None`: it cannot be parsed, which is one problem, at its line.
pub(crate) fn parse_json<T: DeserializeOwned>(file: &str, text: &str, problems: &mut Vec<Problem>) -> Option<T> {
    serde_json::from_str(text).map_err(|error| problems.push(Problem::json(file, text, &error))).ok()
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Header {
    extends: Extends,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Extends {
    #[default]
    Platform,
    Nothing,
}

/// Sorts files into rooms. A file that has no meaning is a problem: a misspelt name must not go unnoticed.
pub(crate) fn rooms(files: Files, problems: &mut Vec<Problem>) -> BTreeMap<String, Room> {
    let mut rooms: BTreeMap<String, Room> = BTreeMap::new();
    for (path, text) in files {
        let parts: Vec<_> = path.split('/').collect();
        let is_note = |name: &&str| name.ends_with(".md") || name.starts_with('.');
        if parts.last().is_some_and(is_note) {
            continue;
        }
        let (room, name) = match parts.as_slice() {
            [name] => (String::new(), *name),
            [kind @ ("streams" | "models"), folder, name] => (format!("{kind}/{folder}"), *name),
            _ => {
                problems.push(Problem::of_file(
                    &path,
                    "belongs to no stream or model: expected streams/NAME/FILE or models/NAME/FILE",
                ));
                continue;
            }
        };
        let own: &[&str] = match room.split('/').next() {
            Some("streams") => &["stream.json", "query.sql", "samples.ndjson"],
            Some("models") => &["model.json"],
            _ => &["contract.json"],
        };
        let common = ["topics.json", "ids.json"];
        if !(own.contains(&name) || common.contains(&name) || name.ends_with(".avsc")) {
            let known: Vec<_> = own.iter().chain(&common).copied().collect();
            problems.push(Problem::of_file(
                &path,
                format!("is not a file of a contract: expected {}, *.avsc", known.join(", ")),
            ));
            continue;
        }
        let name = name.to_owned();
        rooms.entry(room.clone()).or_insert_with(|| Room { path: room, files: Files::new() }).files.insert(name, text);
    }
    rooms
}

/// A site's files over the platform's.
pub(crate) fn lay_over(platform: &Files, site: Files, problems: &mut Vec<Problem>) -> Vec<Room> {
    let mut site = rooms(site, problems);
    let header = site
        .get("")
        .and_then(|root| root.file("contract.json"))
        .and_then(|(file, text)| parse_json::<Header>(&file, text, problems));
    if header.unwrap_or_default().extends == Extends::Nothing {
        return site.into_values().collect();
    }
    let mut all = rooms(platform.clone(), problems);
    if let Some(root) = site.remove("") {
        let base = all.entry(String::new()).or_default();
        for (name, text) in root.files {
            let merged = match base.files.get(&name) {
                Some(under) if name == "topics.json" || name == "ids.json" => merge(under, &text),
                _ => None,
            };
            base.files.insert(name, merged.unwrap_or(text));
        }
    }
    all.extend(site);
    all.into_values().collect()
}

/// The entries of two JSON objects, one a line; those of `over` win, and are on the lines where they are in `over`.
/// `None` if one of them is no object: then the text is left as it is, for its parser to say so.
fn merge(under: &str, over: &str) -> Option<String> {
    let over_entries: serde_json::Map<String, serde_json::Value> = serde_json::from_str(over).ok()?;
    let under: serde_json::Map<String, serde_json::Value> = serde_json::from_str(under).ok()?;
    let kept: Vec<_> = under.iter().filter(|(name, _)| !over_entries.contains_key(*name)).collect();
    let end = over.rfind('}')?;
    let mut text = over[..end].trim_end().to_owned();
    for (i, (name, value)) in kept.into_iter().enumerate() {
        let comma = if i == 0 && over_entries.is_empty() { "" } else { "," };
        text.push_str(&format!("{comma}\n  {}: {value}", serde_json::Value::from(name.as_str())));
    }
    text.push_str("\n}\n");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_site_lies_over_the_platform() {
        let platform = files(&[
            ("topics.json", r#"{"a": 1, "b": 2}"#),
            ("x.avsc", "old"),
            ("streams/s/stream.json", "s"),
            ("streams/s/y.avsc", "y"),
        ]);
        let site = files(&[("topics.json", "{\n\"b\": 3\n}"), ("x.avsc", "new"), ("streams/s/stream.json", "t")]);
        let mut problems = Vec::new();
        let laid = lay_over(&platform, site.clone(), &mut problems);
        let of = |path: &str| laid.iter().find(|room| room.path == path).expect("a room");
        let topics: serde_json::Value =
            serde_json::from_str(of("").file("topics.json").expect("a file").1).expect("JSON");
        assert_eq!(topics, serde_json::json!({"a": 1, "b": 3}));
        assert_eq!(of("").file("x.avsc").expect("a file").1, "new");
        assert_eq!(of("streams/s").file("stream.json").expect("a file").1, "t");
        assert!(of("streams/s").file("y.avsc").is_none(), "the folder is replaced as a whole");

        let mut alone = site;
        alone.insert("contract.json".into(), r#"{"extends": "nothing"}"#.into());
        let laid = lay_over(&platform, alone, &mut problems);
        assert_eq!(laid.len(), 2);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn a_file_without_a_meaning_is_a_problem() {
        let mut problems = Vec::new();
        let stray = ["stream.json", "streams/s/Query.sql", "streams/x.json", "streams/s/t/u.avsc", "notes.txt"];
        rooms(files(&stray.map(|name| (name, ""))), &mut problems);
        let mut places: Vec<_> = problems.iter().map(|p| p.file.as_str()).collect();
        places.sort_unstable();
        let mut wanted = stray;
        wanted.sort_unstable();
        assert_eq!(places, wanted);
    }
}

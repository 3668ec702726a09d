//! Mistakes in declarations (JSON files of a contract), in the words of who writes them, not of the parser.
//!
//! ```text
//!  serde_json: `invalid type: string "24h", expected u64`, line and column
//!       + the path to that place in the text ─► `charging.raw: retention_hours is "24h"; expected a whole number`
//! ```

use serde_json::Error;
use serde_json::error::Category;

/// What is wrong with `text`, which was refused with `error`, and in which line.
pub fn explain(text: &str, error: &Error) -> (Option<usize>, String) {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    let line = (error.line() > 0).then(|| error.line());
    let what = match error.classify() {
        Category::Data => in_plain_words(message, path(text, end_of(text, error), message.starts_with(MISSING))),
        Category::Syntax | Category::Eof | Category::Io => format!("is not valid JSON: {message}"),
    };
    (line, what)
}

/// The names of an object's fields and their lines, also of one that is there twice; none if the text is no object.
pub fn names(text: &str) -> Vec<(String, usize)> {
    let mut names = Vec::new();
    scan(text, |level, name, at| {
        if level == 1 {
            names.push((name.to_owned(), 1 + text[..at].matches('\n').count()));
        }
    });
    names
}

/// Where the parser stopped: the value or the bracket that it refused ends there.
fn end_of(text: &str, error: &Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let mut at = (before + error.column().saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// An object or a list that is open at some place.
#[derive(Debug, Default)]
struct Open {
    is_list: bool,
    /// The field that was begun last.
    field: Option<String>,
    /// What a field `name` says.
    name: Option<String>,
}

/// What encloses a place. `of_object`: the innermost object, not its field.
fn path(text: &str, end: usize, of_object: bool) -> Vec<String> {
    let mut open = scan(&text[..end], |_, _, _| {});
    if let Some(innermost) = open.last_mut().filter(|_| of_object) {
        innermost.field = None;
    }
    let mut path: Vec<String> = Vec::new();
    let mut in_list = false;
    for level in open {
        // An element of a list is called by its name.
        path.extend(level.name.filter(|_| in_list));
        in_list = level.is_list;
        path.extend(level.field);
    }
    path.retain(|part| part != "fields");
    path
}

/// Goes through a text that is JSON as far as it goes. `field` is called with the depth, name and place of each field.
/// Returns what is open at the end.
fn scan(text: &str, mut field: impl FnMut(usize, &str, usize)) -> Vec<Open> {
    let mut open: Vec<Open> = Vec::new();
    let (mut string_begins, mut escaped) = (None, false);
    let mut last_string: Option<(String, usize)> = None;
    for (at, c) in text.char_indices() {
        if let Some(begin) = string_begins {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    let string = text[begin + 1..at].to_owned();
                    if let Some(level) = open.last_mut().filter(|level| level.field.as_deref() == Some("name")) {
                        level.name = Some(string.clone());
                    }
                    (last_string, string_begins) = (Some((string, begin)), None);
                }
                _ => {}
            }
            continue;
        }
        match c {
            '"' => string_begins = Some(at),
            '{' | '[' => open.push(Open { is_list: c == '[', ..Open::default() }),
            '}' | ']' => drop(open.pop()),
            ':' => {
                let depth = open.len();
                if let (Some(level), Some((name, at))) = (open.last_mut(), last_string.take()) {
                    field(depth, &name, at);
                    level.field = Some(name);
                }
            }
            ',' => {
                if let Some(level) = open.last_mut().filter(|level| !level.is_list) {
                    level.field = None;
                }
            }
            _ => {}
        }
    }
    open
}

const MISSING: &str = "missing field ";

fn in_plain_words(message: &str, mut path: Vec<String>) -> String {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let at = |path: &[String], what: String| match path {
        [] => what,
        [field] => format!("{field} {what}"),
        [owner @ .., field] => format!("{}: {field} {what}", owner.join(": ")),
    };
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let names = quoted(rest);
        let (field, known) = names.split_first().map_or((String::new(), &[][..]), |(f, known)| (f.clone(), known));
        path.retain(|part| *part != field);
        let owner = if path.is_empty() { String::new() } else { format!("{}: ", path.join(": ")) };
        return format!("{owner}there is no attribute {field}; expected {}", one_of(known));
    }
    if let Some(rest) = message.strip_prefix(MISSING) {
        let owner = if path.is_empty() { String::new() } else { format!("{}: ", path.join(": ")) };
        return format!("{owner}\"{}\" is missing", quoted(rest).join(""));
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let names = quoted(rest);
        let (found, known) = names.split_first().map_or((String::new(), &[][..]), |(f, known)| (f.clone(), known));
        return at(&path, format!("is {found:?}; expected {}", one_of(known)));
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid length ").and_then(|rest| rest.split_once(", expected "))
    {
        let wanted = expected.rsplit(' ').next().unwrap_or(expected);
        return at(&path, format!("has {found} entries; expected {wanted}"));
    }
    let of_type = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = of_type.and_then(|rest| rest.rsplit_once(", expected ")) {
        return at(&path, format!("is {}; expected {}", value(found), kind(expected)));
    }
    at(&path, message.to_owned())
}

/// `a`, `a or b`, `a, b or c`.
fn one_of(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

/// What was found, as it stands in the file.
fn value(found: &str) -> String {
    match found.split_once(' ') {
        Some(("string", text)) => text.to_owned(),
        Some(("integer" | "boolean", text)) => text.trim_matches('`').to_owned(),
        Some(("floating", text)) => text.trim_start_matches("point ").trim_matches('`').to_owned(),
        _ => match found {
            "map" => "an object".to_owned(),
            "sequence" => "a list".to_owned(),
            other => other.to_owned(),
        },
    }
}

fn kind(expected: &str) -> &str {
    match expected {
        "u16" | "u32" | "u64" | "usize" => "a whole number",
        "a string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other if other.starts_with("an array") => "a list",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum At {
        Edge,
        Cloud,
        Both,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Topic {
        at: At,
        hours: Option<u64>,
        #[serde(default)]
        names: Option<[String; 3]>,
        #[serde(default)]
        fields: Vec<Field>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Field {
        name: String,
        pii: Option<At>,
    }

    fn explained(text: &str) -> String {
        let error = serde_json::from_str::<BTreeMap<String, Topic>>(text).unwrap_err();
        let (line, what) = explain(text, &error);
        format!("{}: {what}", line.unwrap_or_default())
    }

    #[test]
    fn a_mistake_names_its_place_and_what_is_expected() {
        for (text, wanted) in [
            (
                "{\n\"a.raw\": {\"at\": \"edge\",\n \"hours\": \"24h\"}}",
                "3: a.raw: hours is \"24h\"; expected a whole number",
            ),
            ("{\"t\": {\"at\": \"edge\", \"hours\": -1}}", "1: t: hours is -1; expected a whole number"),
            ("{\"t\": {\"at\": \"egde\"}}", "1: t: at is \"egde\"; expected edge, cloud or both"),
            ("{\"t\": {\"at\": \"edge\"},\n \"u\": {\"hours\": 3}}", "2: u: \"at\" is missing"),
            (
                "{\"t\": {\"at\": \"edge\", \"hour\": 1}}",
                "1: t: there is no attribute hour; expected at, hours, names or fields",
            ),
            ("{\"t\": {\"at\": \"edge\", \"names\": [\"a\", \"b\"]}}", "1: t: names has 2 entries; expected 3"),
            ("{\"t\": 7}", "1: t is 7; expected an object"),
            (
                "{\"t\": {\"at\": \"edge\", \"fields\": [{\"name\": \"a\"},\n {\"name\": \"b\", \"pii\": \"x\"}]}}",
                "2: t: b: pii is \"x\"; expected edge, cloud or both",
            ),
            ("{\"t\": {\"at\": \"edge\",}}", "1: is not valid JSON: trailing comma"),
            ("{\"t\": ", "1: is not valid JSON: EOF while parsing a value"),
        ] {
            let found = explained(text);
            assert!(found.starts_with(wanted), "{text}\n{found}\n{wanted}");
        }
    }

    #[test]
    fn names_of_an_object_have_lines_and_may_be_there_twice() {
        let text = "{\"a\": {\"b\": 1},\n\"c\": [\"d\"],\n\n\"a\": \"e:{\"}";
        assert_eq!(names(text), [("a".to_owned(), 1), ("c".to_owned(), 2), ("a".to_owned(), 4)]);
    }
}

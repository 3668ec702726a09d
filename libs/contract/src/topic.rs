//! Topics, as `topics.json` declares them.
//!
//! ```json
//! {"charging.raw": {"partitions": 4, "retention_hours": 24, "at": "edge", "personal": true, "value": "json",
//!                   "cars_publish": "charging", "what": "charging sessions as the cars sent them; key: VIN"}}
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use telemetry::schema::Schemas;

use crate::files::{self, Room, parse_json};
use crate::problem::Problem;

/// A topic that a site has.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its name in the log.
    pub name: Arc<str>,
    /// How many partitions it is created with.
    pub partitions: u32,
    /// Records older than this are removed; `None` keeps everything.
    pub retention: Option<Duration>,
    /// The last record of each key is kept instead of all.
    pub compacted: bool,
    /// Which logs have it.
    pub at: At,
    /// Its records hold personal data: it stays at the edge.
    pub personal: bool,
    /// What its values are.
    pub value: Value,
    /// The sink writes it to the lake.
    pub lake: bool,
    /// Cars publish to it: the last level of their MQTT topic, `vehicles/{vin}/LEVEL`.
    pub cars_publish: Option<String>,
    /// Cars receive it: the last level of the MQTT topic that they subscribe to.
    pub cars_receive: Option<String>,
    /// Last wills of cars may go to it.
    pub wills: bool,
    /// One line of description.
    pub what: String,
    /// The file that declares it.
    pub file: String,
}

/// Which logs have a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum At {
    /// The edge's.
    Edge,
    /// The cloud's.
    Cloud,
    /// Written at the edge, and replicated to the cloud.
    Both,
}

/// A log has the topics of an edge site, of the cloud, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Where cars connect.
    Edge,
    /// What edge sites are replicated to.
    Cloud,
    /// Both in one.
    All,
}

/// What the values of a topic are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// JSON, as cars or stages write it.
    Json,
    /// Avro behind a schema id; the newest schema is in this file.
    Avro(String),
    /// Something else: dead letters as they came, snapshots.
    Bytes,
}

impl Topic {
    /// Whether a log of `site` has it.
    pub fn is_at(&self, site: Site) -> bool {
        match site {
            Site::Edge => self.at != At::Cloud,
            Site::Cloud => self.at != At::Edge,
            Site::All => true,
        }
    }

    /// The file of the newest schema of its values, if they are Avro.
    pub fn schema(&self) -> Option<&str> {
        match &self.value {
            Value::Avro(file) => Some(file),
            Value::Json | Value::Bytes => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    partitions: u32,
    #[serde(default)]
    retention_hours: Option<u64>,
    #[serde(default)]
    compacted: bool,
    at: At,
    personal: bool,
    value: Format,
    #[serde(default)]
    schema: Option<String>,
    #[serde(default)]
    lake: bool,
    #[serde(default)]
    cars_publish: Option<String>,
    #[serde(default)]
    cars_receive: Option<String>,
    #[serde(default)]
    wills: bool,
    what: String,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Avro,
    Bytes,
}

/// Kafka's own limit is 249 characters of this set.
const MAX_NAME_CHARS: usize = 200;
/// More than a broker should ever hold of one topic.
const MAX_PARTITIONS: u32 = 10_000;

/// What keeps the `topics.json` of all rooms from being read.
pub(crate) fn check_files(rooms: &[Room], problems: &mut Vec<Problem>) {
    files::check_files::<BTreeMap<String, Declared>>(rooms, "topics.json", problems);
    files::check_names(rooms, "topics.json", "topic", problems);
}

/// The topics of all rooms. Each mistake is a problem at the line of the topic's name.
pub(crate) fn parse(rooms: &[Room], problems: &mut Vec<Problem>) -> BTreeMap<Arc<str>, Topic> {
    let mut topics: BTreeMap<Arc<str>, Topic> = BTreeMap::new();
    for room in rooms {
        let Some((file, text)) = room.file("topics.json") else { continue };
        let Some(declared) = parse_json::<BTreeMap<String, Declared>>(&file, text, problems) else { continue };
        for (name, declared) in declared {
            if let Some(other) = topics.get(name.as_str()) {
                let what = format!("topic {name} is also declared in {}: keep one", other.file);
                problems.push(Problem::at(&file, text, &name, what));
                continue;
            }
            let mut wrong =
                |what: String| problems.push(Problem::at(&file, text, &name, format!("topic {name}: {what}")));
            let topic = declared.resolve(&name, &file, &mut wrong);
            topics.insert(topic.name.clone(), topic);
        }
    }
    topics
}

impl Declared {
    fn resolve(self, name: &str, file: &str, wrong: &mut impl FnMut(String)) -> Topic {
        if !is_name(name) {
            wrong(format!(
                "a name has 1 to {MAX_NAME_CHARS} letters, digits, '.', '_' and '-', and is not '.' or '..'"
            ));
        }
        if !(1..=MAX_PARTITIONS).contains(&self.partitions) {
            wrong(format!("has {} partitions; expected 1 to {MAX_PARTITIONS}", self.partitions));
        }
        if self.retention_hours == Some(0) {
            wrong("a retention of 0 hours removes records before they are read".to_owned());
        }
        if self.compacted && self.retention_hours.is_some() {
            wrong("is compacted, which keeps the last record of each key for ever: remove retention_hours".to_owned());
        }
        if self.personal && self.at != At::Edge {
            wrong("holds personal data and must be at \"edge\"".to_owned());
        }
        let value = match (self.value, self.schema) {
            (Format::Avro, Some(schema)) => Value::Avro(schema),
            (Format::Avro, None) => {
                wrong("has Avro values: name the file of their newest schema (\"schema\")".to_owned());
                Value::Bytes
            }
            (_, Some(_)) => {
                wrong("\"schema\" is for \"value\": \"avro\"".to_owned());
                Value::Bytes
            }
            (Format::Json, None) => Value::Json,
            (Format::Bytes, None) => Value::Bytes,
        };
        if self.lake {
            if !matches!(value, Value::Avro(_)) {
                wrong("only Avro values become rows of the lake".to_owned());
            }
            if self.at == At::Edge {
                wrong("the lake is filled from the cloud's log: it must be at \"both\" or \"cloud\"".to_owned());
            }
            if self.compacted {
                wrong("is compacted: the lake holds every record of a topic, not the last of each key".to_owned());
            }
        }
        for (setting, level) in [("cars_publish", &self.cars_publish), ("cars_receive", &self.cars_receive)] {
            if let Some(level) = level.as_deref().filter(|level| !is_level(level)) {
                wrong(format!("{setting} is {level:?}; expected one level of lower-case letters, digits, '_' and '-'"));
            }
        }
        if self.cars_publish.is_some() && !(self.personal && self.at == At::Edge) {
            wrong("cars publish to it, so its records name them: it must be personal, and at \"edge\"".to_owned());
        }
        if self.cars_receive.is_some() && self.at == At::Cloud {
            wrong("cars receive it from the edge's log: it must be at \"edge\" or \"both\"".to_owned());
        }
        if self.wills && self.cars_publish.is_none() {
            wrong("\"wills\" is for a topic that cars publish to".to_owned());
        }
        Topic {
            name: name.into(),
            partitions: self.partitions,
            retention: self.retention_hours.map(|hours| Duration::from_secs(3600 * hours)),
            compacted: self.compacted,
            at: self.at,
            personal: self.personal,
            value,
            lake: self.lake,
            cars_publish: self.cars_publish,
            cars_receive: self.cars_receive,
            wills: self.wills,
            what: self.what,
            file: file.to_owned(),
        }
    }
}

/// Rules between topics and schemas.
pub(crate) fn check(
    topics: &BTreeMap<Arc<str>, Topic>,
    schemas: &Schemas,
    rooms: &[Room],
    problems: &mut Vec<Problem>,
) {
    // A schema that cannot be parsed has its own problem.
    let broken: Vec<_> =
        problems.iter().filter_map(|problem| problem.file.rsplit('/').next().map(str::to_owned)).collect();
    let mut wrong = |topic: &Topic, what: String| {
        let text = rooms.iter().find_map(|room| room.file("topics.json").filter(|(file, _)| *file == topic.file));
        let text = text.map_or("", |(_, text)| text);
        problems.push(Problem::at(&topic.file, text, &topic.name, format!("topic {}: {what}", topic.name)));
    };
    let mut levels: BTreeMap<&str, &Topic> = BTreeMap::new();
    let mut receiving = 0;
    for topic in topics.values() {
        if let Some(file) = topic.schema() {
            match schemas.file(file) {
                None if broken.iter().any(|name| name == file) => {}
                None => wrong(topic, format!("the schema {file} does not exist")),
                Some(schema) if schema.id.is_none() => {
                    wrong(
                        topic,
                        format!("the schema {file} has no id in an ids.json, so nobody could read its records"),
                    );
                }
                Some(schema) => {
                    for field in schema.fields.iter().filter(|field| field.pii.is_some()) {
                        let what = format!(
                            "the field {} of {file} is tagged as personal data, and the topic is not",
                            field.name
                        );
                        if !topic.personal {
                            wrong(topic, what);
                        }
                    }
                }
            }
        }
        if topic.cars_receive.is_some() {
            receiving += 1;
            if receiving > 1 {
                wrong(topic, "cars receive another topic already, and the bridge follows one".to_owned());
            }
        }
        for level in [&topic.cars_publish, &topic.cars_receive].into_iter().flatten() {
            if let Some(other) = levels.insert(level, topic) {
                wrong(topic, format!("the MQTT level {level} is also that of {}", other.name));
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(plain) && name != "." && name != ".."
}

fn is_level(level: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    (1..=64).contains(&level.len()) && level.bytes().all(plain)
}

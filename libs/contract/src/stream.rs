//! Stream definitions: a folder `streams/NAME` each.
//!
//! ```text
//!  stream.json ─┬─ input:  topic telemetry.raw, schema telemetry_raw.avsc ─┐
//!               ├─ tables: topic drivers, schema driver.avsc ──────────────┼─► query.sql ─► output: topic telemetry,
//!               ├─ identity: whose reading it is, and which                │                schema telemetry.v2.avsc
//!               ├─ event_time: when that happened                          │
//!               └─ dead_letter: where unusable records go                  ┘
//! ```
//!
//! What the SQL may say is the preprocessor's to judge; here it is text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use telemetry::schema::{Kind, Schema, Schemas};

use crate::files::{self, Room, parse_json};
use crate::problem::Problem;
use crate::topic::{At, Topic, Value};

/// The column of a clean record that holds the pseudonym of its car.
pub const CAR: &str = "car";

/// The header of a raw record in which the bridge notes when it received it, in milliseconds since the epoch.
pub const RECEIVED_MS: &str = "received_ms";

/// The header of a record without a value that asks for a car to be forgotten: in a raw topic the car of its VIN, in a
/// clean topic and among scores that of its pseudonym. Its value is when that was asked for, in milliseconds since the
/// epoch.
pub const FORGET: &str = "carstream.forget";

/// Whether a record with this value, and with this header [`FORGET`], asks for its car to be forgotten. It is no
/// reading, and no row.
pub fn is_forget(value: Option<&[u8]>, header: Option<&[u8]>) -> bool {
    value.is_none() && header.is_some()
}

/// How long before its receipt a record's event time may be, unless the preprocessor is told otherwise: longer than a
/// car is without a network, shorter than a clock that was never set is wrong.
pub const EVENT_TIME_BEHIND: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long after its receipt a record's event time may be, unless the preprocessor is told otherwise: clocks that are
/// set differ by less.
pub const EVENT_TIME_AHEAD: Duration = Duration::from_secs(3600);

/// One stream: what is read, how it is cleaned, where it goes.
#[derive(Debug, Clone)]
pub struct StreamDefinition {
    /// Its name: that of its folder, of the thread and of the metrics' label.
    pub name: String,
    /// `CREATE STREAM name AS SELECT …`
    pub sql: String,
    /// What is read.
    pub input: Input,
    /// What it may be joined with.
    pub tables: Vec<ReferenceTable>,
    /// Where clean records go.
    pub output_topic: Arc<str>,
    /// What clean records are; its id, as `ids.json` or a schema registry has it, goes into their header.
    pub output: Arc<Schema>,
    /// Where unusable records go.
    pub dead_letter: Arc<str>,
    /// The columns of the input that identify a reading: car, boot, sequence number. The car is also the key.
    pub identity: [usize; 3],
    /// The column of the input that says when the car measured, or when what it reports was over. `None`: nothing does,
    /// and no event time is compared with the time of receipt.
    pub event_time: Option<usize>,
    /// Readings as cars send them, one per line; empty if the folder has none.
    pub samples: String,
    /// Its folder, such as `streams/telemetry`.
    pub folder: String,
}

/// The stream that is read.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name in the SQL.
    pub table: String,
    /// The topic.
    pub topic: Arc<str>,
    /// What its payloads must be.
    pub schema: Arc<Schema>,
}

/// A table that a stream may look up.
#[derive(Debug, Clone)]
pub struct ReferenceTable {
    /// Its name in the SQL.
    pub table: String,
    /// The compacted topic.
    pub topic: Arc<str>,
    /// What its payloads must be.
    pub schema: Arc<Schema>,
    /// Its key column, which is also the key of its records.
    pub key: usize,
}

impl StreamDefinition {
    /// The consumer group that holds its positions in the input topic.
    pub fn group(&self) -> String {
        format!("preprocessor-{}", self.name)
    }

    /// The file with its statement, relative to the contract's directory.
    pub fn sql_file(&self) -> String {
        format!("{}/query.sql", self.folder)
    }

    /// The file with its sample readings.
    pub fn samples_file(&self) -> String {
        format!("{}/samples.ndjson", self.folder)
    }

    /// The names of the columns that identify a clean record: pseudonym of the car, boot, sequence number.
    pub fn clean_identity(&self) -> [&str; 3] {
        let [_, boot, seq] = self.identity.map(|column| self.input.schema.fields[column].name.as_str());
        [CAR, boot, seq]
    }

    /// All topics that it reads and writes.
    pub fn topics(&self) -> Vec<Arc<str>> {
        let own = [&self.input.topic, &self.output_topic, &self.dead_letter];
        own.into_iter().chain(self.tables.iter().map(|table| &table.topic)).cloned().collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    input: DeclaredInput,
    #[serde(default)]
    tables: Vec<DeclaredTable>,
    output: DeclaredOutput,
    identity: [String; 3],
    event_time: Option<String>,
    dead_letter: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredInput {
    table: String,
    topic: String,
    schema: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredTable {
    table: String,
    topic: String,
    schema: String,
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredOutput {
    topic: String,
    schema: String,
}

/// What keeps the `stream.json` of all rooms from being read.
pub(crate) fn check_files(rooms: &[Room], problems: &mut Vec<Problem>) {
    files::check_files::<Declared>(rooms, "stream.json", problems);
}

/// The streams of all rooms.
pub(crate) fn parse(
    rooms: &[Room],
    topics: &BTreeMap<Arc<str>, Topic>,
    schemas: &Schemas,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, StreamDefinition> {
    let mut streams: BTreeMap<String, StreamDefinition> = BTreeMap::new();
    for room in rooms {
        let Some(name) = room.name_in("streams") else { continue };
        let Some((file, text)) = room.file("stream.json") else {
            problems.push(Problem::of_file(
                &room.path_of("stream.json"),
                "is missing: it defines the stream of this folder",
            ));
            continue;
        };
        let Some(declared) = parse_json::<Declared>(&file, text, problems) else { continue };
        let before = problems.len();
        if !is_identifier(name) {
            let what = "a stream's name has lower-case letters, digits and '_', and begins with a letter";
            problems.push(Problem::of_file(&room.path, what));
        }
        let resolver = Resolver { file: &file, text, topics, schemas, problems };
        let Some(stream) = resolver.resolve(name, room, declared) else { continue };
        for other in streams.values() {
            let shared = [
                (&stream.input.topic, &other.input.topic, "input"),
                (&stream.output_topic, &other.output_topic, "output"),
                (&stream.dead_letter, &other.dead_letter, "dead_letter"),
            ];
            for (own, its, role) in shared.into_iter().filter(|(own, its, _)| own == its) {
                let what =
                    format!("{role}: topic {own} is also that of stream {}: each stream has its own {its}", other.name);
                problems.push(Problem::at(&file, text, own, what));
            }
        }
        if problems.len() == before {
            streams.insert(name.to_owned(), stream);
        }
    }
    streams
}

/// Finds what one `stream.json` names, and says what is wrong with it.
struct Resolver<'a> {
    file: &'a str,
    text: &'a str,
    topics: &'a BTreeMap<Arc<str>, Topic>,
    schemas: &'a Schemas,
    problems: &'a mut Vec<Problem>,
}

impl Resolver<'_> {
    fn wrong(&mut self, word: &str, what: String) {
        self.problems.push(Problem::at(self.file, self.text, word, what));
    }

    fn schema(&mut self, file: &str) -> Option<Arc<Schema>> {
        let found = self.schemas.file(file).cloned();
        // One that cannot be parsed has its own problem.
        let is_broken = self.problems.iter().any(|problem| problem.file.rsplit('/').next() == Some(file));
        if found.is_none() && !is_broken {
            self.wrong(file, format!("the schema {file} does not exist"));
        }
        found
    }

    fn topic(&mut self, name: &str) -> Option<Topic> {
        let found = self.topics.get(name).cloned();
        if found.is_none() {
            self.wrong(name, format!("topic {name} is declared in no topics.json"));
        }
        found
    }

    /// A topic that must be declared as one that holds what cars sent.
    fn raw_topic(&mut self, role: &str, name: &str) -> Option<Topic> {
        let topic = self.topic(name)?;
        if !topic.personal {
            self.wrong(name, format!("{role}: topic {name} would hold personal data: declare it \"personal\": true"));
        }
        Some(topic)
    }

    fn column(&mut self, role: &str, schema: &Schema, name: &str, kind: Kind) -> Option<usize> {
        let what = match schema.index_of(name) {
            Some(at) if schema.fields[at].kind == kind && !schema.fields[at].nullable => return Some(at),
            Some(_) => format!("{role}: {name} in {} must be a {} that is never null", schema.file, kind.name()),
            None => format!("{role}: {} has no column {name}", schema.file),
        };
        self.wrong(name, what);
        None
    }

    fn resolve(mut self, name: &str, room: &Room, declared: Declared) -> Option<StreamDefinition> {
        let input = self.schema(&declared.input.schema);
        let output = self.schema(&declared.output.schema);
        self.check_topics(&declared, output.as_deref());
        let sql = room.file("query.sql").map(|(_, text)| text.to_owned());
        if sql.is_none() {
            self.problems
                .push(Problem::of_file(&room.path_of("query.sql"), "is missing: it is the statement of the stream"));
        }
        let identity = input.as_deref().and_then(|schema| self.identity(schema, &declared.identity));
        let event_time = input
            .as_deref()
            .zip(declared.event_time.as_deref())
            .and_then(|(schema, name)| self.column("event_time", schema, name, Kind::TimestampMillis));
        if let Some(output) = &output {
            let [_, boot, seq] = &declared.identity;
            for (column, kind) in [(CAR, Kind::String), (boot, Kind::Long), (seq, Kind::Long)] {
                self.column("output, which keeps the identity of each reading", output, column, kind);
            }
        }
        let tables = declared.tables.into_iter().filter_map(|table| self.table(table)).collect();
        Some(StreamDefinition {
            name: name.to_owned(),
            sql: sql?,
            input: Input { table: declared.input.table, topic: declared.input.topic.into(), schema: input? },
            tables,
            output_topic: declared.output.topic.into(),
            output: output?,
            dead_letter: declared.dead_letter.into(),
            identity: identity?,
            event_time,
            samples: room.file("samples.ndjson").map(|(_, text)| text.to_owned()).unwrap_or_default(),
            folder: room.path.clone(),
        })
    }

    fn check_topics(&mut self, declared: &Declared, output: Option<&Schema>) {
        let (input, dead_letter) = (declared.input.topic.as_str(), declared.dead_letter.as_str());
        if let Some(topic) = self.raw_topic("input", input) {
            if topic.compacted {
                self.wrong(input, format!("input: topic {input} is compacted: it would lose readings of a car"));
            }
            if topic.value != Value::Json {
                self.wrong(input, format!("input: topic {input} must have \"value\": \"json\""));
            }
        }
        if let Some(topic) = self.raw_topic("dead_letter", dead_letter) {
            if topic.compacted {
                self.wrong(
                    dead_letter,
                    format!("dead_letter: topic {dead_letter} is compacted: it would lose dead letters"),
                );
            }
            if topic.value != Value::Bytes {
                self.wrong(dead_letter, format!("dead_letter: topic {dead_letter} must have \"value\": \"bytes\""));
            }
        }
        let name = declared.output.topic.as_str();
        for (role, other) in [("input", input), ("dead_letter", dead_letter)] {
            if other == name || (role == "dead_letter" && other == input) {
                self.wrong(other, format!("{role}: topic {other} has another role in this stream"));
            }
        }
        let Some(topic) = self.topic(name) else { return };
        if topic.personal {
            self.wrong(
                name,
                format!("output: topic {name} must be declared free of personal data (\"personal\": false)"),
            );
        }
        if topic.at == At::Cloud || topic.compacted {
            self.wrong(name, format!("output: topic {name} must be at \"edge\" or \"both\", and not compacted"));
        }
        let (Some(output), Some(newest)) = (output, topic.schema()) else {
            if topic.schema().is_none() {
                self.wrong(name, format!("output: topic {name} must have \"value\": \"avro\" and a \"schema\""));
            }
            return;
        };
        let newest = self.schemas.file(newest);
        if newest.is_some_and(|newest| newest.name != output.name) || output.id.is_none() {
            let what = format!(
                "output: {} must be a version of the record that topic {name} holds, with an id in an ids.json",
                output.file
            );
            self.wrong(&output.file, what);
        }
    }

    fn identity(&mut self, schema: &Schema, names: &[String; 3]) -> Option<[usize; 3]> {
        let [car, boot, seq] = names;
        let car = self.column("identity", schema, car, Kind::String);
        let boot = self.column("identity", schema, boot, Kind::Long);
        let seq = self.column("identity", schema, seq, Kind::Long);
        Some([car?, boot?, seq?])
    }

    fn table(&mut self, table: DeclaredTable) -> Option<ReferenceTable> {
        if let Some(topic) = self.topic(&table.topic) {
            if !topic.compacted {
                let what = format!(
                    "table {}: topic {} must be compacted: the last row of a key holds",
                    table.table, table.topic
                );
                self.wrong(&table.topic, what);
            }
            if topic.value != Value::Json {
                self.wrong(
                    &table.topic,
                    format!("table {}: topic {} must have \"value\": \"json\"", table.table, table.topic),
                );
            }
        }
        let schema = self.schema(&table.schema)?;
        let tagged = schema.fields.iter().any(|field| field.pii.is_some());
        if tagged {
            self.raw_topic(&format!("table {}", table.table), &table.topic);
        }
        let key = self.column(&format!("the key of table {}", table.table), &schema, &table.key, Kind::String)?;
        Some(ReferenceTable { table: table.table, topic: table.topic.into(), schema, key })
    }
}

fn is_identifier(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(plain)
}

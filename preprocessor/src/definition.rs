//! Stream definitions: `streams.json`, the SQL it names, and the schemas around it.
//!
//! ```text
//!  streams.json ─┬─ input:  topic telemetry.raw, schema telemetry_raw.avsc ─┐
//!                ├─ tables: topic drivers, schema driver.avsc ──────────────┼─► SQL ─► output: topic telemetry, schema id 2
//!                ├─ key, identity: whose reading it is, and which           │
//!                └─ dead_letter: where the rest goes                        ┘
//! ```
//!
//! The platform's own are compiled in; a directory of the same layout replaces them. Everything that is wrong with
//! them is found at the start and told together. What the SQL may say is the business of [`crate::sql`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use event_log::catalogue;
use serde::Deserialize;
use telemetry::schema::{Kind, Schema, Schemas};

const BUILTIN_STREAMS: &str = include_str!("../../schemas/streams.json");
const BUILTIN_SQL: [(&str, &str); 2] = [
    ("streams/telemetry.sql", include_str!("../../schemas/streams/telemetry.sql")),
    ("streams/faults.sql", include_str!("../../schemas/streams/faults.sql")),
];

/// All streams and the schemas they use.
#[derive(Debug)]
pub struct Definitions {
    /// The schemas.
    pub schemas: Schemas,
    /// The streams, by name.
    pub streams: Vec<Definition>,
}

/// One stream.
#[derive(Debug, Clone)]
pub struct Definition {
    /// Its name: that of the consumer group (`preprocessor-{name}`), the thread and the metrics' label.
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
    /// Where the others go.
    pub dead_letter: Arc<str>,
    /// The columns of the input that tell readings apart: car, boot, sequence number. The car is also the key.
    pub identity: [usize; 3],
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

impl Definitions {
    /// The platform's own.
    pub fn builtin() -> Result<Self, Vec<String>> {
        let sql = |path: &str| {
            let file = BUILTIN_SQL.iter().find(|(name, _)| *name == path);
            file.map(|(_, text)| (*text).to_owned()).ok_or_else(|| format!("{path} is not compiled in"))
        };
        Self::parse(Schemas::builtin().clone(), BUILTIN_STREAMS, sql)
    }

    /// Those of a directory with the layout of `schemas/`: `streams.json`, `ids.json`, `*.avsc`, and the SQL files
    /// that `streams.json` names.
    pub fn load(directory: &Path) -> Result<Self, Vec<String>> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))
        };
        let mut problems = Vec::new();
        let mut files = Vec::new();
        match std::fs::read_dir(directory) {
            Err(e) => return Err(vec![format!("cannot read the stream definitions in {}: {e}", directory.display())]),
            Ok(entries) => {
                let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
                let mut names: Vec<_> = names.filter(|name| name.ends_with(".avsc")).collect();
                names.sort();
                for name in names {
                    match read(&name) {
                        Ok(text) => files.push((name, text)),
                        Err(problem) => problems.push(problem),
                    }
                }
            }
        }
        let mut text = |name: &str| read(name).map_err(|problem| problems.push(problem)).unwrap_or_default();
        let (streams, ids) = (text("streams.json"), text("ids.json"));
        if !problems.is_empty() {
            return Err(problems);
        }
        let schemas = Schemas::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_str())), &ids)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        Self::parse(schemas, &streams, read)
    }

    fn parse(
        schemas: Schemas,
        streams: &str,
        sql: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Self, Vec<String>> {
        let declared: BTreeMap<String, DeclaredStream> =
            serde_json::from_str(streams).map_err(|e| vec![format!("streams.json: {e}")])?;
        let mut problems = Vec::new();
        let mut resolved = Vec::new();
        for (name, declared) in declared {
            match declared.resolve(&name, &schemas, &sql) {
                Ok(definition) => resolved.push(definition),
                Err(more) => problems.extend(more.into_iter().map(|p| format!("stream {name}: {p}"))),
            }
        }
        if resolved.is_empty() && problems.is_empty() {
            problems.push("streams.json defines no stream".to_owned());
        }
        if problems.is_empty() { Ok(Self { schemas, streams: resolved }) } else { Err(problems) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredStream {
    sql: String,
    input: DeclaredInput,
    tables: Vec<DeclaredTable>,
    output: DeclaredOutput,
    key: String,
    identity: [String; 3],
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
    schema_id: u32,
}

impl DeclaredStream {
    fn resolve(
        self,
        name: &str,
        schemas: &Schemas,
        sql: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Definition, Vec<String>> {
        let mut problems = Vec::new();
        let mut schema = |file: &str| {
            let found = schemas.file(file).cloned();
            if found.is_none() {
                problems.push(format!("there is no schema {file}"));
            }
            found
        };
        let input = schema(&self.input.schema);
        let table_schemas: Vec<_> = self.tables.iter().map(|table| schema(&table.schema)).collect();
        let output = schemas.id(self.output.schema_id).cloned();
        if output.is_none() {
            problems.push(format!("no schema has the id {} (ids.json)", self.output.schema_id));
        }
        let sql = sql(&self.sql).map_err(|problem| problems.push(problem)).unwrap_or_default();
        if catalogue::is_personal(&self.output.topic) {
            let topic = &self.output.topic;
            problems.push(format!("the output topic {topic} is not declared free of personal data in topics.json"));
        }
        let raw = [&self.input.topic, &self.dead_letter].into_iter().chain(self.tables.iter().map(|t| &t.topic));
        for topic in raw.filter(|topic| !catalogue::is_personal(topic)) {
            problems.push(format!("topic {topic} would hold personal data: topics.json must declare it personal"));
        }
        let mut identity = [0; 3];
        let kinds = [Kind::String, Kind::Long, Kind::Long];
        for ((place, name), kind) in identity.iter_mut().zip(&self.identity).zip(kinds) {
            match input.as_ref().map(|schema| column(schema, name, kind)) {
                Some(Ok(at)) => *place = at,
                Some(Err(problem)) => problems.push(format!("identity: {problem}")),
                None => {}
            }
        }
        if self.key != self.identity[0] {
            problems.push(format!("the key {} must be the first column of the identity", self.key));
        }
        let mut tables = Vec::new();
        for (table, schema) in self.tables.into_iter().zip(table_schemas) {
            let Some(schema) = schema else { continue };
            match column(&schema, &table.key, Kind::String) {
                Ok(key) => {
                    tables.push(ReferenceTable { table: table.table, topic: table.topic.into(), schema, key });
                }
                Err(problem) => problems.push(format!("the key of table {}: {problem}", table.table)),
            }
        }
        match (input, output) {
            (Some(schema), Some(output)) if problems.is_empty() => Ok(Definition {
                name: name.to_owned(),
                sql,
                input: Input { table: self.input.table, topic: self.input.topic.into(), schema },
                tables,
                output_topic: self.output.topic.into(),
                output,
                dead_letter: self.dead_letter.into(),
                identity,
            }),
            _ => Err(problems),
        }
    }
}

fn column(schema: &Schema, name: &str, kind: Kind) -> Result<usize, String> {
    match schema.index_of(name) {
        Some(at) if schema.fields[at].kind == kind && !schema.fields[at].nullable => Ok(at),
        Some(_) => Err(format!("{name} in {} must be a {} that is never null", schema.file, kind.name())),
        None => Err(format!("{} has no column {name}", schema.file)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_builtin_definitions_resolve() {
        let definitions = Definitions::builtin().unwrap();
        let names: Vec<_> = definitions.streams.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["faults", "telemetry"]);
        assert_eq!(definitions.streams[1].identity, [0, 1, 2]);
        assert_eq!(definitions.streams[1].tables[0].table, "drivers");
    }

    #[test]
    fn everything_wrong_is_told_together() {
        let streams = r#"{"s": {
            "sql": "x.sql",
            "input": {"table": "r", "topic": "telemetry", "schema": "telemetry_raw.avsc"},
            "tables": [{"table": "d", "topic": "drivers", "schema": "driver.avsc", "key": "experience_years"}],
            "output": {"topic": "telemetry.raw", "schema_id": 99},
            "key": "driver", "identity": ["vin", "speed", "nothing"], "dead_letter": "scores"}}"#;
        let problems = Definitions::parse(Schemas::builtin().clone(), streams, |p| Err(format!("no {p}"))).unwrap_err();
        for wanted in [
            "stream s: no schema has the id 99",
            "stream s: no x.sql",
            "stream s: the output topic telemetry.raw is not declared free of personal data",
            "stream s: topic telemetry would hold personal data",
            "stream s: topic scores would hold personal data",
            "stream s: identity: speed in telemetry_raw.avsc must be a long",
            "stream s: identity: telemetry_raw.avsc has no column nothing",
            "stream s: the key driver must be the first column of the identity",
            "stream s: the key of table d: experience_years in driver.avsc must be a string",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(wanted)), "{wanted}: {problems:#?}");
        }
        assert_eq!(problems.len(), 9, "{problems:#?}");
    }
}

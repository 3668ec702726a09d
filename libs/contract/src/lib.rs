//! What a site has: topics, schemas, streams, tables, models, consumer groups. The one place that knows them.
//!
//! ```text
//!  schemas/, compiled in ──┐   lay over   ┌─ topics   place, personal or not, retention, value, lake, MQTT level
//!                          ├─────────────►│  schemas  Avro with tags for personal data, ids
//!  --contract DIR ─────────┘              │  streams  input, SQL, output, dead letters, samples
//!                                         └─ models   readings, findings, scores, alerts, announcements
//! ```
//!
//! Stages ask it instead of holding lists: the bridge which MQTT levels cars publish to, the sink what goes into the
//! lake, the replicator what may leave the edge. So a new stream is a folder and no Rust.
//!
//! It does no I/O: the platform's files are compiled in, and whoever has a directory reads it and hands over its
//! [`Files`]. It does not plan SQL: that is the preprocessor's.

mod files;
mod model;
mod problem;
mod stream;
mod topic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use telemetry::schema::Schemas;

pub use files::Files;
pub use model::ModelDefinition;
pub use problem::{Problem, describe};
pub use stream::{
    CAR, EVENT_TIME_AHEAD, EVENT_TIME_BEHIND, FORGET, Input, RECEIVED_MS, ReferenceTable, StreamDefinition, is_forget,
};
pub use topic::{At, Site, Topic, Value};

/// Topics that stages keep for themselves, whatever streams a site has.
pub mod own {
    /// What the preprocessor has let through of each car: snapshots.
    pub const PREPROCESSOR_STATE: &str = "preprocessor.state";
    /// Dead letters that were replayed.
    pub const REPLAYED: &str = "dead-letter.replayed";
    /// What the replicator's positions belong to.
    pub const REPLICATOR_STATE: &str = "replicator.state";
    /// What an operator decided about partitions that had stopped.
    pub const GAPS: &str = "stages.gaps";

    pub(crate) const ALL: [&str; 4] = [PREPROCESSOR_STATE, REPLAYED, REPLICATOR_STATE, GAPS];
}

/// The stream of sensor readings that the demo, the simulator's ledger and the detector are about.
pub const READINGS: &str = "telemetry";

/// The model of the platform.
pub const MODEL: &str = "anomaly";

/// The files of `schemas/`: path and text.
static PLATFORM: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/platform.rs"));

static BUILTIN: LazyLock<Contract> = LazyLock::new(|| {
    Contract::parse(Files::new())
        .unwrap_or_else(|problems| panic!("schemas/ is not valid:\n{}", describe(&problems).join("\n")))
});

/// Everything that a site has.
#[derive(Debug, Clone)]
pub struct Contract {
    topics: BTreeMap<Arc<str>, Topic>,
    schemas: Schemas,
    streams: BTreeMap<String, StreamDefinition>,
    models: BTreeMap<String, ModelDefinition>,
}

impl Contract {
    /// The platform's own, compiled in from `schemas/`.
    pub fn builtin() -> &'static Contract {
        &BUILTIN
    }

    /// The files of the platform's contract.
    pub fn platform_files() -> Files {
        PLATFORM.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    /// The contract of a site: its files, laid over the platform's unless its `contract.json` says
    /// `{"extends": "nothing"}`. All problems are returned together.
    pub fn parse(site: Files) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        check_ids(&site, &mut problems);
        let own_schemas: Vec<_> = site.keys().filter(|path| path.ends_with(".avsc")).cloned().collect();
        let rooms = files::lay_over(&Self::platform_files(), site, &mut problems);
        let sorted = |mut problems: Vec<Problem>| {
            problems.sort();
            problems.dedup();
            Err(problems)
        };
        // Whatever names something of a file that cannot be read would be a problem, too.
        let is_header = |problem: &Problem| problem.file == "contract.json";
        let before = if problems.iter().any(is_header) { 0 } else { problems.len() };
        topic::check_files(&rooms, &mut problems);
        stream::check_files(&rooms, &mut problems);
        model::check_files(&rooms, &mut problems);
        files::check_ids(&rooms, &mut problems);
        if problems.len() > before {
            return sorted(problems);
        }
        let mut topics = topic::parse(&rooms, &mut problems);
        let schemas = schemas(&rooms, &mut problems);
        topic::check(&topics, &schemas, &rooms, &mut problems);
        let streams = stream::parse(&rooms, &topics, &schemas, &mut problems);
        let models = model::parse(&rooms, &topics, &schemas, &mut problems);
        add_own(&mut topics, &mut problems);
        if problems.is_empty() {
            check_used(&own_schemas, &topics, &schemas, &streams, &mut problems);
        }
        if problems.is_empty() { Ok(Self { topics, schemas, streams, models }) } else { sorted(problems) }
    }

    /// All schemas.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.values()
    }

    /// The topics of a site's log.
    pub fn topics_of(&self, site: Site) -> impl Iterator<Item = &Topic> {
        self.topics().filter(move |topic| topic.is_at(site))
    }

    /// The topic `name`.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name)
    }

    /// The topic `name`, which this contract must have.
    ///
    /// # Panics
    /// If it does not declare it: for names of [`own`], and for tests.
    pub fn expect_topic(&self, name: &str) -> &Topic {
        self.topic(name).unwrap_or_else(|| panic!("the contract does not declare topic {name}"))
    }

    /// Whether records of `topic` hold personal data and must not leave the edge. A topic that is not declared counts
    /// as personal.
    pub fn is_personal(&self, topic: &str) -> bool {
        self.topic(topic).is_none_or(|topic| topic.personal)
    }

    /// All streams, by name.
    pub fn streams(&self) -> impl ExactSizeIterator<Item = &StreamDefinition> {
        self.streams.values()
    }

    /// The stream `name`.
    pub fn stream(&self, name: &str) -> Option<&StreamDefinition> {
        self.streams.get(name)
    }

    /// The models, by name.
    pub fn models(&self) -> impl ExactSizeIterator<Item = &ModelDefinition> {
        self.models.values()
    }

    /// The model `name`.
    pub fn model(&self, name: &str) -> Option<&ModelDefinition> {
        self.models.get(name)
    }

    /// The topics that cars publish to: the last level of the MQTT topic, and the topic of the log.
    pub fn cars_publish(&self) -> impl Iterator<Item = (&str, &Topic)> {
        self.topics().filter_map(|topic| Some((topic.cars_publish.as_deref()?, topic)))
    }

    /// The topics that cars receive.
    pub fn cars_receive(&self) -> impl Iterator<Item = (&str, &Topic)> {
        self.topics().filter_map(|topic| Some((topic.cars_receive.as_deref()?, topic)))
    }

    /// What the sink writes to the lake.
    pub fn lake_topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics().filter(|topic| topic.lake)
    }

    /// What the replicator carries from the edge to the cloud.
    pub fn leaving_the_edge(&self) -> impl Iterator<Item = &Topic> {
        self.topics().filter(|topic| topic.at == At::Both)
    }

    /// The topics with dead letters, of streams and of models.
    pub fn dead_letters(&self) -> Vec<Arc<str>> {
        let of_streams = self.streams().map(|stream| stream.dead_letter.clone());
        let all: BTreeSet<_> = of_streams.chain(self.models().map(|model| model.dead_letter.name.clone())).collect();
        all.into_iter().collect()
    }

    /// The topics whose values are Avro, each with the file of the newest schema of them.
    pub fn avro_topics(&self) -> impl Iterator<Item = (&str, &str)> {
        self.topics().filter_map(|topic| Some((&*topic.name, topic.schema()?)))
    }
}

/// A contract that replaces the platform's need not repeat the topics that stages keep for themselves.
fn add_own(topics: &mut BTreeMap<Arc<str>, Topic>, problems: &mut Vec<Problem>) {
    if own::ALL.iter().all(|name| topics.contains_key(*name)) {
        return;
    }
    let platform = files::rooms(Contract::platform_files(), problems);
    let declared = topic::parse(&platform.into_values().collect::<Vec<_>>(), problems);
    for (name, topic) in declared.into_iter().filter(|(name, _)| own::ALL.contains(&&**name)) {
        topics.entry(name).or_insert(topic);
    }
}

/// The schemas of all rooms, with the ids of all `ids.json`.
fn schemas(rooms: &[files::Room], problems: &mut Vec<Problem>) -> Schemas {
    let mut paths: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    for room in rooms {
        for (name, path, text) in room.schemas() {
            if let Some((other, _)) = paths.get(name) {
                problems.push(Problem::of_file(
                    &path,
                    format!("{other} has the same name: schemas are known by their file name"),
                ));
                continue;
            }
            paths.insert(name, (path, text));
        }
    }
    let mut ids: BTreeMap<u32, (String, String)> = BTreeMap::new();
    for room in rooms {
        let Some((file, text)) = room.file("ids.json") else { continue };
        let Some(declared) = files::parse_json::<BTreeMap<u32, String>>(&file, text, problems) else { continue };
        for (id, schema) in declared {
            match ids.get(&id) {
                Some((other, its)) if *its != schema => {
                    let what = format!("id {id} is also that of {its} in {other}: choose one that is free");
                    problems.push(Problem::at(&file, text, &id.to_string(), what));
                }
                _ if !paths.contains_key(schema.as_str()) => {
                    problems.push(Problem::at(&file, text, &schema, format!("names {schema}, which does not exist")));
                }
                _ if ids.values().any(|(_, other)| *other == schema) => {
                    problems.push(Problem::at(&file, text, &schema, format!("gives {schema} a second id: keep one")));
                }
                _ => drop(ids.insert(id, (file.clone(), schema))),
            }
        }
    }
    let ids: BTreeMap<u32, &str> = ids.iter().map(|(id, (_, schema))| (*id, schema.as_str())).collect();
    let mut parsed = BTreeMap::new();
    for (name, (path, text)) in &paths {
        let id = ids.iter().find(|(_, file)| *file == name).map(|(id, _)| *id);
        match telemetry::schema::Schema::parse(name, text, id) {
            Ok(schema) => drop(parsed.insert((*name).to_owned(), schema)),
            Err(error) => problems.push(match error.line {
                Some(line) => Problem { file: path.clone(), line: Some(line), what: error.what },
                None => Problem::at(path, text, error.field.as_deref().unwrap_or_default(), error.what),
            }),
        }
    }
    let schemas = Schemas::new(parsed.into_values());
    check_versions(&schemas, &paths, problems);
    schemas
}

/// Ids from here on are a site's; the platform's own stay below.
pub const FIRST_SITE_ID: u32 = 100;

/// A later release of the platform may give any id below [`FIRST_SITE_ID`] to a schema of its own. A site that replaces
/// a folder of the platform keeps the ids of that folder.
fn check_ids(site: &Files, problems: &mut Vec<Problem>) {
    let ids = |text: &str| serde_json::from_str::<BTreeMap<u32, String>>(text).unwrap_or_default();
    let is_ids = |path: &str| path.rsplit('/').next() == Some("ids.json");
    let platform: BTreeMap<u32, String> =
        PLATFORM.iter().filter(|(path, _)| is_ids(path)).flat_map(|(_, text)| ids(text)).collect();
    let extends = !site.get("contract.json").is_some_and(|text| text.contains("nothing"));
    for (path, text) in site.iter().filter(|(path, _)| extends && is_ids(path)) {
        for (id, schema) in ids(text).range(..FIRST_SITE_ID) {
            if platform.get(id) != Some(schema) {
                let what = format!("id {id} is the platform's: those of a site begin at {FIRST_SITE_ID}");
                problems.push(Problem::at(path, text, &id.to_string(), what));
            }
        }
    }
}

/// A schema that nothing names is forgotten, or its name is misspelt somewhere.
fn check_used(
    files: &[String],
    topics: &BTreeMap<Arc<str>, Topic>,
    schemas: &Schemas,
    streams: &BTreeMap<String, StreamDefinition>,
    problems: &mut Vec<Problem>,
) {
    let mut used: BTreeSet<&str> = topics.values().filter_map(Topic::schema).collect();
    used.extend(schemas.with_ids().map(|(_, schema)| schema.file.as_str()));
    for stream in streams.values() {
        used.extend([&stream.input.schema, &stream.output].map(|schema| schema.file.as_str()));
        used.extend(stream.tables.iter().map(|table| table.schema.file.as_str()));
    }
    for path in files.iter().filter(|path| !path.rsplit('/').next().is_some_and(|name| used.contains(name))) {
        problems.push(Problem::of_file(path, "no topic, stream or ids.json names this schema: remove it"));
    }
}

/// Versions of one record must read each other's records: old writers and new readers run side by side, and the other
/// way round.
fn check_versions(schemas: &Schemas, paths: &BTreeMap<&str, (String, &str)>, problems: &mut Vec<Problem>) {
    for (_, schema) in schemas.with_ids() {
        let older = schemas.versions_of(&schema.file).into_iter().take_while(|other| other.id < schema.id);
        for difference in older.flat_map(|other| schema.differences(&other)) {
            let (path, _) = &paths[schema.file.as_str()];
            problems.push(Problem::of_file(path, format!("its versions cannot read each other: {difference}")));
        }
    }
}

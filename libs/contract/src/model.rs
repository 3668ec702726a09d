//! The models of a site: which topics a detector reads and writes, a folder `models/NAME` each.
//!
//! Which features a model has, and how it is trained, is the crate `model`'s; here is only where its data lives.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use telemetry::schema::Schemas;

use crate::files::{self, Room, parse_json};
use crate::problem::Problem;
use crate::topic::{Topic, Value};

/// The place of one model in the flow.
#[derive(Debug, Clone)]
pub struct ModelDefinition {
    /// Its name: that of its folder.
    pub name: String,
    /// The clean topic that it learns from and scores.
    pub readings: Topic,
    /// What the workshop found: ground truth for its evaluation.
    pub findings: Topic,
    /// One score per reading.
    pub scores: Topic,
    /// Alerts opened and closed.
    pub alerts: Topic,
    /// Announcements of trained models.
    pub announcements: Topic,
    /// Clean readings that cannot be scored.
    pub dead_letter: Topic,
    /// The scorer's snapshots.
    pub state: Topic,
}

impl ModelDefinition {
    /// The file of the schema that `topic` of this model is read with.
    ///
    /// # Panics
    /// If the topic is not one of those with Avro values: readings, findings, scores.
    pub fn schema(topic: &Topic) -> &str {
        topic.schema().expect("parse() lets only Avro topics be readings, findings or scores")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    readings: String,
    findings: String,
    scores: String,
    alerts: String,
    announcements: String,
    dead_letter: String,
    state: String,
}

/// What keeps the `model.json` of all rooms from being read.
pub(crate) fn check_files(rooms: &[Room], problems: &mut Vec<Problem>) {
    files::check_files::<Declared>(rooms, "model.json", problems);
}

/// The models of all rooms.
pub(crate) fn parse(
    rooms: &[Room],
    topics: &BTreeMap<Arc<str>, Topic>,
    schemas: &Schemas,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, ModelDefinition> {
    let mut models = BTreeMap::new();
    for room in rooms {
        let Some(name) = room.name_in("models") else { continue };
        let Some((file, text)) = room.file("model.json") else {
            problems
                .push(Problem::of_file(&room.path_of("model.json"), "is missing: it defines the model of this folder"));
            continue;
        };
        let Some(declared) = parse_json::<Declared>(&file, text, problems) else { continue };
        let mut topic = |role: &str, name: &str, value: Option<&str>, compacted: bool| {
            let mut wrong = |what: String| problems.push(Problem::at(&file, text, name, format!("{role}: {what}")));
            let Some(topic) = topics.get(name) else {
                wrong(format!("topic {name} is declared in no topics.json"));
                return None;
            };
            let fits = match (&topic.value, value) {
                (Value::Json, Some("json")) | (_, None) | (Value::Bytes, Some("bytes")) => true,
                // A schema that does not exist, or cannot be read, has its own problem.
                (Value::Avro(file), Some("avro")) if schemas.file(file).is_none() => return None,
                (Value::Avro(_), Some("avro")) => true,
                _ => false,
            };
            if !fits {
                wrong(format!("topic {name} must have \"value\": {:?}", value.unwrap_or_default()));
            }
            if topic.compacted != compacted {
                wrong(format!("topic {name} must {}be compacted", if compacted { "" } else { "not " }));
            }
            if topic.personal {
                wrong(format!("topic {name} holds personal data, and a model must not"));
            }
            Some(topic.clone())
        };
        let resolved = (
            topic("readings", &declared.readings, Some("avro"), false),
            topic("findings", &declared.findings, Some("avro"), false),
            topic("scores", &declared.scores, Some("avro"), false),
            topic("alerts", &declared.alerts, Some("json"), false),
            topic("announcements", &declared.announcements, Some("json"), true),
            topic("dead_letter", &declared.dead_letter, Some("bytes"), false),
            topic("state", &declared.state, Some("bytes"), true),
        );
        if let (
            Some(readings),
            Some(findings),
            Some(scores),
            Some(alerts),
            Some(announcements),
            Some(dead_letter),
            Some(state),
        ) = resolved
        {
            let name = name.to_owned();
            let model = ModelDefinition {
                name: name.clone(),
                readings,
                findings,
                scores,
                alerts,
                announcements,
                dead_letter,
                state,
            };
            models.insert(name, model);
        }
    }
    models
}

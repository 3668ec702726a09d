//! Which Avro schema the rows of a topic are read with.

use std::sync::Arc;

use schema_registry::SchemaSource;
use telemetry::schema::Schema;

/// The topics that hold Avro, with the schema that the lake has them in: the newest one. Records of older writers get
/// its new columns as nulls.
pub(crate) const TOPICS: [(&str, &str); 3] =
    [("telemetry", "telemetry.v2.avsc"), ("faults", "fault.avsc"), ("scores", "score.avsc")];

/// The schema of a topic; `None` if the topic holds no Avro.
pub(crate) fn schema_of(topic: &str) -> Option<&'static str> {
    TOPICS.iter().find(|(name, _)| *name == topic).map(|(_, file)| *file)
}

/// How the records of a topic become rows.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// The reader schema.
    pub(crate) schema: Arc<Schema>,
    /// Its id.
    pub(crate) schema_id: u32,
    /// Those of the writers.
    pub(crate) schemas: SchemaSource,
}

impl Stream {
    /// The stream of a topic; `None` if the topic holds no Avro.
    pub(crate) fn of(topic: &str, schemas: &SchemaSource) -> Option<Self> {
        let schema = schemas.schemas().file(schema_of(topic)?).expect("the schemas of TOPICS are compiled in").clone();
        let schema_id = schema.id.expect("a schema that a topic holds has an id");
        Some(Self { schema, schema_id, schemas: schemas.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_its_schema_with_an_event_time() {
        for (topic, _) in TOPICS {
            let stream = Stream::of(topic, &SchemaSource::builtin()).expect("a schema");
            assert!(lake::event_time_column(&stream.schema.arrow).is_some(), "{topic}");
            assert!(!event_log::catalogue::is_personal(topic), "{topic}");
        }
        assert!(Stream::of("alerts", &SchemaSource::builtin()).is_none());
    }

    #[test]
    fn the_catalogue_declares_the_same() {
        let mut ours = TOPICS;
        ours.sort_unstable();
        assert_eq!(event_log::catalogue::schemas(), ours);
    }
}

//! Which Avro schema the rows of a topic are read with.

use std::sync::Arc;

use contract::Topic;
use lake::Encodings;
use schema_registry::SchemaSource;
use telemetry::schema::Schema;

/// How the records of a topic become rows.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// The topic, as the contract declares it.
    pub(crate) topic: Topic,
    /// The reader schema.
    pub(crate) schema: Arc<Schema>,
    /// Its id.
    pub(crate) schema_id: u32,
    /// Those of the writers.
    pub(crate) schemas: SchemaSource,
    /// How its objects are laid out.
    pub(crate) encodings: Encodings,
}

impl Stream {
    /// The stream of a topic, whose rows the lake has in this schema: the newest one. Records of older writers get its
    /// new columns as nulls. `None` if the topic does not go to the lake.
    pub(crate) fn of(topic: Topic, schemas: &SchemaSource, encodings: Encodings) -> Option<Self> {
        let file = topic.schema().filter(|_| topic.lake)?;
        let schema = schemas.schemas().file(file).expect("the contract has the schemas of its topics").clone();
        let schema_id = schema.id.expect("a schema that a topic holds has an id");
        Some(Self { topic, schema, schema_id, schemas: schemas.clone(), encodings })
    }
}

#[cfg(test)]
mod tests {
    use contract::Contract;

    use super::*;

    #[test]
    fn every_topic_of_the_lake_has_its_schema_with_an_event_time() {
        let contract = Contract::builtin();
        let schemas = SchemaSource::of(contract.schemas().clone());
        for topic in contract.lake_topics() {
            let stream = Stream::of(topic.clone(), &schemas, Encodings::default()).expect("a schema");
            assert!(lake::event_time_column(&stream.schema.arrow).is_some(), "{}", topic.name);
            assert!(!topic.personal, "{}", topic.name);
        }
        assert!(Stream::of(contract.expect_topic("alerts").clone(), &schemas, Encodings::default()).is_none());
    }
}

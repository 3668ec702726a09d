//! Which stream of the contract is audited, and what its hops are called.

use anyhow::Context;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use contract::{Contract, ModelDefinition, StreamDefinition};
use std::sync::Arc;

use super::Hop;

/// One stream, from the raw topic to the scores.
#[derive(Debug, Clone)]
pub struct Flow {
    pub(crate) stream: StreamDefinition,
    /// The file of the newest schema of its clean topic, which older records are resolved into.
    pub(crate) clean_schema: String,
    /// The model that scores its clean readings, if one does.
    pub(crate) model: Option<ModelDefinition>,
}

impl Flow {
    /// The stream `name` of a contract.
    pub fn of(contract: &Contract, name: &str) -> anyhow::Result<Self> {
        let stream = contract.stream(name).with_context(|| {
            let known: Vec<_> = contract.streams().map(|stream| stream.name.as_str()).collect();
            format!("the contract has no stream {name}; it has {}", known.join(", "))
        })?;
        let clean = contract.topic(&stream.output_topic).and_then(contract::Topic::schema);
        let clean_schema = clean.context("a clean topic has a schema")?.to_owned();
        let model = contract.models().find(|model| model.readings.name == stream.output_topic).cloned();
        Ok(Self { stream: stream.clone(), clean_schema, model })
    }

    pub(crate) fn raw(&self) -> &Arc<str> {
        &self.stream.input.topic
    }

    pub(crate) fn clean(&self) -> &Arc<str> {
        &self.stream.output_topic
    }

    pub(crate) fn dead_letters(&self) -> &Arc<str> {
        &self.stream.dead_letter
    }

    /// The names of the columns that identify a raw reading: car, boot, sequence number.
    pub(crate) fn raw_identity(&self) -> [&str; 3] {
        self.stream.identity.map(|column| self.stream.input.schema.fields[column].name.as_str())
    }

    /// The columns that are read of a clean record: only those that identify the reading.
    pub(crate) fn identity_schema(&self) -> SchemaRef {
        let [car, boot, seq] = self.stream.clean_identity();
        let number = |name: &str| Field::new(name, DataType::Int64, false);
        Arc::new(Schema::new(vec![Field::new(car, DataType::Utf8, false), number(boot), number(seq)]))
    }

    /// A human-readable hop.
    pub(crate) fn name(&self, hop: Hop) -> String {
        match hop {
            Hop::Raw => self.raw().to_string(),
            Hop::Clean => format!("{} at the edge", self.clean()),
            Hop::Cloud => format!("{} in the cloud", self.clean()),
            Hop::Lake => "Parquet".to_owned(),
            Hop::Scores => self.model.as_ref().map_or_else(String::new, |model| model.scores.name.to_string()),
        }
    }
}

//! The schemas of a stage: ours with their ids on the wire, and those of other writers, as they are met.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use service::{Readiness, Waiting};
use telemetry::avro::{AvroDecoder, AvroEncoder, schema_id};
use telemetry::schema::{Schema, Schemas};
use tokio_util::sync::CancellationToken;

use crate::{Error, Registry};

/// A registry that does not answer for this long is reported to the caller, which drops its batch and retries. Well
/// below Kafka's `max.poll.interval.ms`, after which the partitions would go to another instance.
const PATIENCE: Duration = Duration::from_secs(60);

/// A missing registry is back soon after it starts.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// An id that the registry does not know may be known later. Until it is asked again, records with it are dead letters.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Ids that nobody knows and that are remembered as such: they come from damaged records, and could be any.
const MAX_ABSENT: usize = 10_000;

/// The schemas of a stage, from the contract's `ids.json` or from a registry: the same for whoever uses them.
#[derive(Debug, Clone)]
pub struct SchemaSource {
    schemas: Arc<Schemas>,
    others: Option<Arc<Others>>,
}

/// Writers whose ids were not known at the start.
#[derive(Debug)]
struct Others {
    registry: Registry,
    found: Mutex<BTreeMap<u32, Writer>>,
    readiness: Readiness,
    shutdown: CancellationToken,
}

#[derive(Debug, Clone)]
enum Writer {
    Known(Arc<Schema>),
    /// It is no record that could be read here.
    Unreadable(Arc<str>),
    Absent(Instant),
}

impl SchemaSource {
    /// Without a registry: `schemas` and nothing else.
    pub fn of(schemas: Schemas) -> Self {
        Self { schemas: Arc::new(schemas), others: None }
    }

    pub(crate) fn of_registry(
        schemas: Schemas,
        registry: Registry,
        readiness: Readiness,
        shutdown: CancellationToken,
    ) -> Self {
        let others = Others { registry, found: Mutex::default(), readiness, shutdown };
        Self { schemas: Arc::new(schemas), others: Some(Arc::new(others)) }
    }

    /// The schemas that were known at the start.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// A decoder into the schema of this file, for all writers that were known at the start.
    pub fn decoder(&self, file: &str) -> Result<AvroDecoder, telemetry::avro::Error> {
        AvroDecoder::new(&self.schemas, file)
    }

    /// An encoder for the schema of this file.
    pub fn encoder(&self, file: &str) -> Result<AvroEncoder, telemetry::avro::Error> {
        let schema = self.schemas.file(file).filter(|schema| schema.id.is_some());
        let schema = schema.ok_or_else(|| telemetry::avro::Error::NoSuchSchema(file.to_owned()))?;
        AvroEncoder::new(&self.schemas, schema.id.unwrap_or_default())
    }

    /// Sees to it that `decoder` knows who wrote these messages, as far as the registry does. Blocking, when an id is
    /// met for the first time; without a registry, nothing.
    ///
    /// An error means that the registry is away, and the messages are to be looked at again: with some patience spent,
    /// or at shutdown at once. What the registry does not know either is left to the decoder, which refuses it.
    pub fn resolve<'m>(
        &self,
        decoder: &mut AvroDecoder,
        messages: impl IntoIterator<Item = &'m [u8]>,
    ) -> Result<(), Error> {
        let Some(others) = &self.others else { return Ok(()) };
        let mut last = None;
        for message in messages {
            // Nearly always that of the message before.
            let id = schema_id(message);
            if std::mem::replace(&mut last, id) == id {
                continue;
            }
            let Some(id) = decoder.unknown_id(message) else { continue };
            match others.writer(id)? {
                Writer::Known(schema) => decoder.add_writer(id, Ok(&schema)),
                Writer::Unreadable(why) => decoder.add_writer(id, Err(&why)),
                Writer::Absent(_) => {}
            }
        }
        Ok(())
    }
}

impl Others {
    fn writer(&self, id: u32) -> Result<Writer, Error> {
        match self.found.lock().get(&id) {
            Some(Writer::Absent(asked)) if asked.elapsed() >= ASK_AGAIN_AFTER => {}
            Some(writer) => return Ok(writer.clone()),
            None => {}
        }
        // Not under the lock, so that others can use the known schemas.
        let writer = self.ask(id)?;
        let mut found = self.found.lock();
        if found.len() >= MAX_ABSENT {
            found.retain(|_, writer| !matches!(writer, Writer::Absent(_)));
        }
        found.insert(id, writer.clone());
        Ok(writer)
    }

    /// Asks until there is an answer, with patience; at least once.
    fn ask(&self, id: u32) -> Result<Writer, Error> {
        let began = Instant::now();
        let what = format!("the schema registry {}, for schema id {id}", self.registry.url());
        let mut waiting = Waiting::new(what.as_str()).with_readiness(&self.readiness);
        loop {
            let answer = self.registry.schema(id);
            if answer.is_ok() {
                waiting.resolved();
                // An earlier attempt may have waited for it.
                self.readiness.available(&what);
            }
            match answer {
                Ok(Some(text)) => return Ok(self.taken_in(id, &text)),
                Ok(None) => {
                    tracing::warn!("the schema registry {} does not know schema id {id} either", self.registry.url());
                    return Ok(Writer::Absent(Instant::now()));
                }
                Err(error) if !error.is_retriable() => return Err(error),
                Err(error) => {
                    waiting.note(&error);
                    std::thread::sleep(RETRY_PAUSE);
                    if self.shutdown.is_cancelled() || began.elapsed() >= PATIENCE {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn taken_in(&self, id: u32, text: &str) -> Writer {
        match Schema::of_writer(&format!("schema id {id}"), text, id) {
            Ok(schema) => {
                let fields = schema.fields.len();
                tracing::info!(
                    "new schema id {id}: a {} with {fields} fields, from {}",
                    schema.name,
                    self.registry.url()
                );
                Writer::Known(Arc::new(schema))
            }
            Err(error) => Writer::Unreadable(error.what.into()),
        }
    }
}

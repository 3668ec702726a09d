//! A namespace before each name of a topic and of a group, so that many simulations share one inner log.

use std::sync::Arc;

use event_log::{Batch, Error, Outputs, Record};

/// The namespace of one log of one simulation.
#[derive(Debug, Clone)]
pub(super) struct Names(Arc<str>);

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self(namespace.into())
    }

    /// The name in the inner log.
    pub(super) fn inside(&self, name: &str) -> Arc<str> {
        format!("{}{name}", self.0).into()
    }

    /// An error of the inner log, with the names that the caller knows.
    pub(super) fn outside(&self, mut error: Error) -> Error {
        match &mut error {
            Error::UnknownTopic { topic, .. } | Error::TopicDiffers { topic, .. } | Error::OutOfRange { topic, .. } => {
                if let Some(name) = topic.strip_prefix(&*self.0) {
                    *topic = name.to_owned();
                }
            }
            _ => {}
        }
        error
    }

    /// The same records, to the topics of the inner log.
    pub(super) fn outputs_inside(&self, outputs: &Outputs) -> Outputs {
        let mut inside = Outputs::default();
        for batch in outputs.batches() {
            let topic = self.inside(batch.topic());
            for record in batch.iter() {
                let headers: Vec<_> = record.headers.collect();
                let (key, value, timestamp_ms) = (record.key, record.value, record.timestamp_ms);
                inside.push(&topic, batch.partition(), &Record { key, value, headers: &headers, timestamp_ms });
            }
        }
        inside
    }
}

/// The same records, of a topic of this name.
pub(super) fn renamed(batch: &Batch, topic: Arc<str>) -> Batch {
    let mut renamed = Batch::new(topic, batch.partition());
    for record in batch.iter() {
        renamed.push(record.offset, record.timestamp_ms, record.key, record.value, record.headers);
    }
    renamed
}

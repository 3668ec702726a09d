//! The log on Apache Kafka.

use std::sync::Arc;

use crate::{Error, KafkaOption, Log, LogUrl};

/// Opens the Kafka log at `url`.
pub(crate) fn open(url: &LogUrl, _kafka_options: &[KafkaOption]) -> Result<Arc<dyn Log>, Error> {
    Err(Error::Open { log: url.to_string(), source: "the Kafka backend is being built".into() })
}

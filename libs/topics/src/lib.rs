//! The topics of a contract in a log: made where they are missing, and compared where they exist.
//!
//! The contract does no I/O, and the log does not know what a reading is; this crate connects them.

use std::fmt;
use std::time::Duration;

use contract::{Contract, Topic};
use event_log::{Error, Log, TopicSpec};

/// What a log should have of `topic`.
pub fn spec(topic: &Topic) -> TopicSpec {
    TopicSpec {
        name: topic.name.clone(),
        partitions: topic.partitions,
        retention: topic.retention,
        compacted: topic.compacted,
    }
}

/// What a log should have of a topic of the platform's contract, for tests and benchmarks.
///
/// # Panics
/// If the platform's contract does not declare it.
pub fn builtin(name: &str) -> TopicSpec {
    spec(Contract::builtin().expect_topic(name))
}

/// Makes sure that `topic` exists in `log`: creates it as declared if it does not. An existing one may have been
/// deployed with other numbers, which are logged and left as they are; but a topic that is compacted and should not be,
/// or the other way round, is [`Error::TopicDiffers`]: it would lose records, or grow without end.
pub fn ensure(log: &dyn Log, topic: &Topic) -> Result<(), Error> {
    let spec = spec(topic);
    let found = match log.describe(&topic.name) {
        Err(Error::UnknownTopic { .. }) => return log.ensure_topic(&spec),
        described => described?,
    };
    let (name, partitions) = (&topic.name, found.partitions.len());
    if partitions != spec.partitions as usize {
        let declared = spec.partitions;
        tracing::info!("topic {name} in {} has {partitions} partitions; {} declares {declared}", log.url(), topic.file);
    }
    if found.retention != spec.retention {
        let (found, declared) = (Hours(found.retention), Hours(spec.retention));
        tracing::info!("topic {name} in {} keeps records {found}; {} declares {declared}", log.url(), topic.file);
    }
    log.ensure_topic(&TopicSpec { partitions: partitions as u32, ..spec })
}

/// A retention as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours(pub Option<Duration>);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("for ever"),
            Some(duration) => write!(f, "{} h", duration.as_secs_f64() / 3600.0),
        }
    }
}

//! One topic: created, or compared with its declaration.

use ::topics::Hours;
use event_log::{Error, Log, LogUrl, TopicDescription, TopicSpec};

/// The result for one topic.
pub(super) enum Deployed {
    /// It exists as it is declared.
    Exists,
    /// It was created.
    Made,
    /// It does not exist, and was only checked.
    Missing,
    /// It exists, and differs.
    Differs(Vec<String>),
}

impl Deployed {
    fn of(is_new: bool, problems: Vec<String>) -> Self {
        match problems.as_slice() {
            [] if is_new => Self::Made,
            [] => Self::Exists,
            _ => Self::Differs(problems),
        }
    }
}

/// Creates the topic if it is missing, unless it is only checked.
pub(super) fn deploy(log: &dyn Log, spec: &TopicSpec, replicas: Option<u16>, check: bool) -> Result<Deployed, Error> {
    match log.describe(&spec.name) {
        Ok(found) => return Ok(Deployed::of(false, problems(log.url(), spec, replicas, &found))),
        Err(Error::UnknownTopic { .. }) if check => return Ok(Deployed::Missing),
        Err(Error::UnknownTopic { .. }) => {}
        Err(error) => return Err(error),
    }
    let made = match replicas {
        Some(replicas) => log.ensure_topic_replicated(spec, replicas),
        None => log.ensure_topic(spec),
    };
    match made {
        // Somebody else made it meanwhile, as something else.
        Ok(()) | Err(Error::TopicDiffers { .. }) => {
            Ok(Deployed::of(made.is_ok(), problems(log.url(), spec, replicas, &log.describe(&spec.name)?)))
        }
        Err(error) => Err(error),
    }
}

/// Each difference, with its remedy.
fn problems(log: &LogUrl, spec: &TopicSpec, replicas: Option<u16>, found: &TopicDescription) -> Vec<String> {
    let mut problems = Vec::new();
    let mut differs = |what: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display, mend: String| {
        problems.push(format!("topic {} in {log}: {what} {found}, should be {wanted}: {mend}", spec.name));
    };
    let partitions = found.partitions.len();
    if partitions != spec.partitions as usize {
        differs("partitions are", &partitions, &spec.partitions, repartition(log, spec, partitions));
    }
    if found.compacted != spec.compacted {
        let wanted = if spec.compacted { "compact" } else { "delete" };
        differs(
            "compaction is",
            &found.compacted,
            &spec.compacted,
            alter(log, spec, &format!("cleanup.policy={wanted}")),
        );
    }
    if found.retention != spec.retention {
        let (found, wanted) = (Hours(found.retention), Hours(spec.retention));
        let setting = match spec.retention {
            Some(retention) => format!("retention.ms={}", retention.as_millis()),
            None if spec.compacted => "cleanup.policy=compact".to_owned(),
            None => "retention.ms=-1".to_owned(),
        };
        differs("records are kept", &found, &wanted, alter(log, spec, &setting));
    }
    if let (Some(wanted), Some(found)) = (replicas, found.replicas)
        && found != wanted
    {
        let mend = "kafka-reassign-partitions.sh moves replicas".to_owned();
        differs("replicas are", &found, &wanted, mend);
    }
    problems
}

fn alter(log: &LogUrl, spec: &TopicSpec, setting: &str) -> String {
    match log {
        LogUrl::Kafka { bootstrap } => format!(
            "kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {} \
             --add-config {setting}",
            spec.name
        ),
        LogUrl::Directory(_) => EMBEDDED.to_owned(),
    }
}

/// A car's state is in the partition of its key: more partitions would move cars away from theirs.
fn repartition(log: &LogUrl, spec: &TopicSpec, found: usize) -> String {
    match log {
        LogUrl::Kafka { bootstrap } => format!(
            "if {found} are meant, deploy with --partitions {found}; otherwise, once all that reads it has come to its \
             end and is stopped, kafka-topics.sh --bootstrap-server {bootstrap} --delete --topic {}, and deploy again \
             (to add partitions would part cars from their state)",
            spec.name
        ),
        LogUrl::Directory(_) => EMBEDDED.to_owned(),
    }
}

const EMBEDDED: &str = "the embedded log keeps a topic as it was made; a new directory begins with the new settings";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use event_log::PartitionDescription;

    use super::*;

    fn described(partitions: usize, compacted: bool, hours: Option<u64>) -> TopicDescription {
        TopicDescription {
            id: "1".to_owned(),
            partitions: vec![PartitionDescription { first: 0, next: 0 }; partitions],
            compacted,
            retention: hours.map(|hours| Duration::from_secs(3600 * hours)),
            settings_known: true,
            max_record_bytes: 1 << 20,
            replicas: Some(1),
        }
    }

    #[test]
    fn every_difference_is_told_with_its_remedy() {
        let kafka: LogUrl = "kafka://broker:9092".parse().unwrap();
        let spec = ::topics::builtin("telemetry.raw");
        assert_eq!(problems(&kafka, &spec, Some(1), &described(4, false, Some(24))), [""; 0]);
        let told = problems(&kafka, &spec, Some(3), &described(6, true, None));
        for (told, wanted) in told.iter().zip([
            ["partitions are 6, should be 4", "--partitions 6"],
            ["compaction is true, should be false", "--entity-name telemetry.raw --add-config cleanup.policy=delete"],
            ["records are kept for ever, should be 24 h", "--add-config retention.ms=86400000"],
            ["replicas are 1, should be 3", "kafka-reassign-partitions.sh"],
        ]) {
            assert!(wanted.iter().all(|wanted| told.contains(wanted)), "{told}");
            assert!(told.starts_with("topic telemetry.raw in kafka://broker:9092: "), "{told}");
        }
        assert_eq!(told.len(), 4);
        let state = ::topics::builtin("scorer.state");
        let told = problems(&"directory".parse().unwrap(), &state, None, &described(4, true, Some(1)));
        assert!(told.len() == 1 && told[0].contains("as it was made"), "{told:?}");
    }
}

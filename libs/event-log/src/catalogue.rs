//! The topics of the platform, declared once in `schemas/topics.json`.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use crate::{Error, Log, TopicSpec};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    partitions: u32,
    #[serde(default)]
    retention_hours: Option<u64>,
    #[serde(default)]
    compacted: bool,
    at: At,
    personal: bool,
    /// The newest Avro schema of its values.
    #[serde(default)]
    schema: Option<String>,
    #[allow(dead_code)] // for people
    what: String,
}

#[derive(serde::Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum At {
    Edge,
    Cloud,
    Both,
}

/// A log has the topics of an edge site, of the cloud, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Where cars connect.
    Edge,
    /// What edge sites are replicated to.
    Cloud,
    /// Both in one.
    All,
}

static TOPICS: LazyLock<BTreeMap<String, Declared>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../schemas/topics.json")).expect("schemas/topics.json is valid")
});

/// What the topic `name` should be.
///
/// # Panics
/// If `schemas/topics.json` does not declare it.
pub fn topic(name: &str) -> TopicSpec {
    find(name).unwrap_or_else(|| panic!("schemas/topics.json does not declare topic {name}"))
}

/// What the topic `name` should be, if `schemas/topics.json` declares it.
pub fn find(name: &str) -> Option<TopicSpec> {
    let declared = TOPICS.get(name)?;
    Some(TopicSpec {
        name: name.into(),
        partitions: declared.partitions,
        retention: declared.retention_hours.map(|hours| Duration::from_secs(3600 * hours)),
        compacted: declared.compacted,
    })
}

/// The topics of a site.
pub fn topics_of(site: Site) -> Vec<TopicSpec> {
    let is_there = |at: &At| match site {
        Site::Edge => *at != At::Cloud,
        Site::Cloud => *at != At::Edge,
        Site::All => true,
    };
    TOPICS.iter().filter(|(_, declared)| is_there(&declared.at)).filter_map(|(name, _)| find(name)).collect()
}

/// The topics whose values are Avro, each with the newest schema of them, a file of `schemas/`.
pub fn schemas() -> Vec<(&'static str, &'static str)> {
    TOPICS.iter().filter_map(|(name, declared)| Some((name.as_str(), declared.schema.as_deref()?))).collect()
}

/// Sees to it that the topic `name` is there: creates it as declared if it is not. One that is there may have been
/// deployed with other numbers, which is said and left as it is; but a topic that is compacted and should not be, or the
/// other way round, is [`Error::TopicDiffers`]: it would lose records, or never end.
///
/// # Panics
/// If `schemas/topics.json` does not declare it.
pub fn ensure(log: &dyn Log, name: &str) -> Result<(), Error> {
    let spec = topic(name);
    let found = match log.describe(name) {
        Err(Error::UnknownTopic { .. }) => return log.ensure_topic(&spec),
        described => described?,
    };
    let partitions = found.partitions.len();
    if partitions != spec.partitions as usize {
        let declared = spec.partitions;
        tracing::info!("topic {name} in {} has {partitions} partitions; schemas/topics.json has {declared}", log.url());
    }
    if found.retention != spec.retention {
        let (found, declared) = (Hours(found.retention), Hours(spec.retention));
        tracing::info!("topic {name} in {} keeps records {found}; schemas/topics.json has {declared}", log.url());
    }
    log.ensure_topic(&TopicSpec { partitions: partitions as u32, ..spec })
}

/// A retention, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours(pub Option<Duration>);

impl std::fmt::Display for Hours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("for ever"),
            Some(duration) => write!(f, "{} h", duration.as_secs_f64() / 3600.0),
        }
    }
}

/// Whether records of `name` hold personal data, and so must not leave the edge. A topic that is not declared counts
/// as personal.
pub fn is_personal(name: &str) -> bool {
    TOPICS.get(name).is_none_or(|declared| declared.personal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_data_is_declared_at_the_edge_only() {
        let names = |site| topics_of(site).into_iter().map(|spec| spec.name.to_string()).collect::<Vec<_>>();
        assert!(names(Site::Cloud).iter().all(|name| !is_personal(name)), "{:?}", names(Site::Cloud));
        assert_eq!(names(Site::Cloud), ["alerts", "faults", "models", "replicator.state", "scores", "telemetry"]);
        assert!(!names(Site::Edge).contains(&"models".to_owned()));
        assert_eq!(names(Site::All).len(), TOPICS.len());
    }
}

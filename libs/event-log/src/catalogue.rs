//! The topics of the platform, declared once in `schemas/topics.json`.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use crate::TopicSpec;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    partitions: u32,
    #[serde(default)]
    retention_hours: Option<u64>,
    #[serde(default)]
    compacted: bool,
    personal: bool,
    #[allow(dead_code)] // for people
    what: String,
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

/// Whether records of `name` hold personal data, and so must not leave the edge. A topic that is not declared counts
/// as personal.
pub fn is_personal(name: &str) -> bool {
    TOPICS.get(name).is_none_or(|declared| declared.personal)
}

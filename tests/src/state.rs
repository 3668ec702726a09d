//! What the topic of a stage's snapshots holds: the newest record of each key, which is what a restart reads.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, batches, progress};

/// Until a log has answered, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the newest snapshots in a topic have these bytes in them, such as the name of a car.
///
/// # Panics
/// If the topic cannot be read.
pub fn knows(log: &Arc<dyn Log>, topic: &str, bytes: &str) -> bool {
    let ranges = progress::held(topic, &log.describe(topic).unwrap().partitions);
    let mut newest: BTreeMap<(u32, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
    for batch in batches(log, ranges, 64).unwrap().patience(PATIENCE) {
        let batch = batch.unwrap();
        for record in batch.iter() {
            newest.insert((batch.partition(), record.key.to_vec()), record.value.map(<[u8]>::to_vec));
        }
    }
    // A snapshot of a small fleet is one record, so that no name is cut in two.
    newest.into_values().flatten().any(|value| value.windows(bytes.len()).any(|window| window == bytes.as_bytes()))
}

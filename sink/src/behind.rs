//! Partitions that cannot resume: retention has removed the records after their last object.

use event_log::{Error, Log};
use lake::{Lake, OffsetRange};
use tokio::runtime::Handle;

/// The offsets of a topic that no object has and that the log no longer holds, by partition. Blocking.
///
/// A sink that has them in memory still writes them: what it has stopped is named in its log output.
pub fn behind(log: &dyn Log, lake: &Lake, runtime: &Handle, topic: &str) -> anyhow::Result<Vec<OffsetRange>> {
    // The lake first: what a sink writes meanwhile the log still held when it was read.
    let next = runtime.block_on(lake.next_offsets(topic))?.offsets;
    let partitions = match log.describe(topic) {
        Err(Error::UnknownTopic { .. }) => Vec::new(),
        described => described?.partitions,
    };
    let behind = |(partition, start): (u32, u64)| {
        let end = partitions.get(partition as usize)?.first;
        (start < end).then(|| OffsetRange { topic: topic.to_owned(), partition, start, end })
    };
    Ok(next.into_iter().filter_map(behind).collect())
}

//! What an operator would do about transactions that Kafka has forgotten to end.
//!
//! When a broker gets the commit of a process at the very moment at which another takes over its name, its coordinator
//! may forget that a transaction is open (docs/limits.md). Then readers of committed records wait there for ever. No
//! stage can end that transaction; Kafka's own tool can, and it is used here as an operator would use it: only if the
//! pipeline is stalled, and with a line in the report.

use std::path::Path;

use crate::crew::Teller;
use crate::kafka;

const TOOL: &str = "TransactionsCommand";

/// Minutes, the least that the tool takes. The stages' own transactions are over after half of one.
const OPEN_FOR_MIN: &str = "1";

/// The only broker of each cluster.
const BROKER: &str = "1";

/// Where Kafka keeps the positions of groups.
const POSITIONS: &str = "__consumer_offsets";

/// Ends all transactions that hang in the cluster at `url`; returns them, each by its place.
pub(crate) fn end_all(scripts: &Path, url: &str, teller: Teller) -> anyhow::Result<Vec<String>> {
    let find = ["find-hanging", "--broker-id", BROKER, "--max-transaction-timeout", OPEN_FOR_MIN];
    let found = kafka::tool(scripts, TOOL, url, &find)?;
    let mut ended = Vec::new();
    let mut places: Vec<_> = found.lines().filter_map(place).collect();
    // A stage resumes once its positions are free, and must not find outputs then that its next commit would include.
    places.sort_by_key(|(topic, ..)| *topic == POSITIONS);
    for (topic, partition, start_offset) in places {
        let place = format!("{topic}/{partition} from offset {start_offset} in {url}");
        teller.say(&format!("    an operator ends a transaction that hangs in {place}"));
        let abort = ["abort", "--topic", topic, "--partition", partition, "--start-offset", start_offset];
        kafka::tool(scripts, TOOL, url, &abort)?;
        ended.push(place);
    }
    Ok(ended)
}

/// A row of the tool's table: topic, partition, producer's id and epoch, coordinator's epoch, start offset, and times.
/// The row of names has no number where the partition is.
fn place(row: &str) -> Option<(&str, &str, &str)> {
    let columns: Vec<_> = row.split_whitespace().collect();
    let [topic, partition, _, _, _, start_offset, ..] = columns[..] else { return None };
    partition.parse::<u32>().ok().map(|_| (topic, partition, start_offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_from_the_names_above_them() {
        let table = "Topic\tPartition\tProducerId\tProducerEpoch\tCoordinatorEpoch\tStartOffset\tLastTimestamp\t\
            Duration(min)\n__consumer_offsets\t3\t4\t4\t0\t3571\t1795277228059\t24\n";
        let rows: Vec<_> = table.lines().filter_map(place).collect();
        assert_eq!(rows, [("__consumer_offsets", "3", "3571")]);
    }
}

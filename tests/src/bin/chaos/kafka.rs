//! What an administrator does to a Kafka, with its own tools, through scripts/kafka.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use event_log::Log;
use serde_json::json;

use crate::crew::Crew;
use crate::plan::Topic;
use crate::site::Site;

/// How a broker may pack a topic's records, whatever its producers chose. (`lz4` is what they choose.)
pub(crate) const CODECS: [&str; 4] = ["zstd", "gzip", "snappy", "uncompressed"];

/// In place of a million: a few tens of readings.
const NARROW: &str = "max.message.bytes=20000";

/// Between two looks at a tool that runs.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs a tool against the cluster at `url`; returns what it prints.
pub(crate) fn tool(scripts: &Path, name: &str, url: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let package = if name == "ConfigCommand" { "kafka.admin" } else { "org.apache.kafka.tools" };
    let (class, bootstrap) = (format!("{package}.{name}"), url.trim_start_matches("kafka://"));
    let mut command = Command::new(scripts.join("kafka"));
    command.args(["run", &class, "--bootstrap-server", bootstrap]).args(arguments);
    command.env("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1"); // it runs for a second
    let output = command.stdin(Stdio::null()).output().context("cannot run scripts/kafka")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "Kafka's {name} {arguments:?} failed: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Removes what a topic of the edge holds before these offsets, or all, as retention does: the topic begins there.
pub(crate) fn remove_records(site: &Site, topic: &str, before: Option<&[u64]>) -> anyhow::Result<()> {
    let partitions = contract::Contract::builtin().topic(topic).context("no such topic")?.partitions;
    // -1 stands for the end.
    let offset = |partition: u32| before.map_or(json!(-1), |offsets| json!(offsets[partition as usize]));
    let records = |partition| json!({"topic": topic, "partition": partition, "offset": offset(partition)});
    let offsets = json!({"version": 1, "partitions": (0..partitions).map(records).collect::<Vec<_>>()});
    let file = site.directory.join("removed.json");
    std::fs::write(&file, offsets.to_string())?;
    let arguments = ["--offset-json-file", &file.display().to_string()];
    tool(&site.settings.scripts, "DeleteRecordsCommand", &site.edge_log(), &arguments).map(drop)
}

/// Has a topic's broker pack all that it is given with another codec.
pub(crate) fn set_codec(topic: Topic, codec: &str, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    change(topic, &["--add-config", &format!("compression.type={codec}")], site, crew)
}

/// Has a topic take less: smaller batches than its writers have made so far.
pub(crate) fn narrow(topic: Topic, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    change(topic, &["--add-config", NARROW], site, crew)
}

/// Has a topic take as much as before.
pub(crate) fn widen(topic: Topic, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    change(topic, &["--delete-config", "max.message.bytes"], site, crew)
}

fn change(topic: Topic, what: &[&str], site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    let url = site.log_of(topic.broker);
    let arguments = [&["--alter", "--entity-type", "topics", "--entity-name", topic.name][..], what].concat();
    beside(crew, || tool(&site.settings.scripts, "ConfigCommand", &url, &arguments).map(drop))
}

/// Adds a partition to a topic in both logs: first where the copies go, then at their source.
pub(crate) fn add_partition(site: &Site, cloud: &dyn Log, topic: &str) -> anyhow::Result<()> {
    let partitions = (cloud.describe(topic)?.partitions.len() + 1).to_string();
    let arguments = ["--alter", "--topic", topic, "--partitions", &partitions];
    for url in [site.cloud_log(), site.edge_log()] {
        tool(&site.settings.scripts, "TopicCommand", &url, &arguments)?;
    }
    Ok(())
}

/// Does what takes its time, and watches the processes meanwhile.
pub(crate) fn beside<T: Send>(crew: &mut Crew, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        while !working.is_finished() {
            crew.pass(LOOK_EVERY)?;
        }
        working.join().unwrap_or_else(|_| bail!("an administrator's work panicked"))
    })
}

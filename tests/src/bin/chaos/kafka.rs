//! Kafka's own tools, through scripts/kafka.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::site::Site;

/// Runs a tool against the cluster at `url`; returns what it prints.
pub(crate) fn tool(scripts: &Path, name: &str, url: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let (class, bootstrap) = (format!("org.apache.kafka.tools.{name}"), url.trim_start_matches("kafka://"));
    let mut command = Command::new(scripts.join("kafka"));
    command.args(["run", &class, "--bootstrap-server", bootstrap]).args(arguments);
    let output = command.stdin(Stdio::null()).output().context("cannot run scripts/kafka")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "Kafka's {name} {arguments:?} failed: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Removes all that a topic of the edge holds, as retention does: the topic begins where it ends now.
pub(crate) fn remove_records(site: &Site, topic: &str) -> anyhow::Result<()> {
    let partitions = contract::Contract::builtin().topic(topic).context("no such topic")?.partitions;
    // -1 stands for the end.
    let all = |partition| json!({"topic": topic, "partition": partition, "offset": -1});
    let offsets = json!({"version": 1, "partitions": (0..partitions).map(all).collect::<Vec<_>>()});
    let file = site.directory.join("removed.json");
    std::fs::write(&file, offsets.to_string())?;
    let arguments = ["--offset-json-file", &file.display().to_string()];
    tool(&site.settings.scripts, "DeleteRecordsCommand", &site.edge_log(), &arguments).map(drop)
}

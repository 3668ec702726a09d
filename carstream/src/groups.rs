//! `carstream groups`: whom retention of an embedded log waits for.
//!
//! A log keeps a record until every group that reads its topic has committed it. A group that is gone for good (a
//! stream that was removed, a scorer group that was a trial) would hold the disk until it is full: forget it.
//!
//! Kafka's groups are Kafka's, whose retention waits for nobody.

use std::fmt::Write as _;

use anyhow::bail;
use event_log::{Log, LogUrl, progress};
use service::{ConfigError, values};
use tokio_util::sync::CancellationToken;

use crate::live::{self, Request};

/// Lists the groups that retention of an embedded log waits for, and forgets those that are gone for good.
///
/// Retention keeps a record until each group that reads its topic has committed it, however old it is. A running edge
/// box carries the command out itself; stop any other process that has the log open first.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream groups --log site-log
      one line for each group and topic: positions, and records that are left to read
  carstream groups --log site-log --forget preprocessor-charging
      retention no longer waits for this group; if it starts again, it begins at the first record that is left")]
pub struct Args {
    /// Use the embedded log in this directory.
    #[arg(long, env = "CARSTREAM_LOG", value_name = "DIR")]
    pub log: LogUrl,
    /// Forget this group and its positions; may be repeated.
    #[arg(long, value_name = "GROUP", value_parser = values::name)]
    pub forget: Vec<String>,
}

/// Runs the command. Returns what it has to say.
pub fn run(args: &Args) -> anyhow::Result<String> {
    let LogUrl::Directory(path) = &args.log else {
        let problem = format!("--log {}: groups of a Kafka log are listed by kafka-consumer-groups.sh", args.log);
        return Err(ConfigError(vec![problem]).into());
    };
    ConfigError::check(service::missing_directory("--log", path))?;
    if let Some(answer) =
        live::ask(&args.log, &Request::Groups { forget: args.forget.clone() }, &CancellationToken::new())?
    {
        return answer.said();
    }
    answer(&*event_log::open(&args.log, &[])?, &args.forget)
}

/// Lists the groups of a log, or forgets some. Blocking.
pub(crate) fn answer(log: &dyn Log, forget: &[String]) -> anyhow::Result<String> {
    if forget.is_empty() {
        return Ok(list(log)?);
    }
    let known = log.groups()?;
    let unknown: Vec<_> = forget.iter().filter(|group| known.iter().all(|known| *known.name != ***group)).collect();
    if let Some(group) = unknown.first() {
        bail!("{} knows no group {group}: nothing is forgotten; without --forget it lists its groups", log.url());
    }
    let mut said = String::new();
    for group in forget {
        log.forget_group(group)?;
        let _ = writeln!(said, "{group} is forgotten");
    }
    Ok(said)
}

fn list(log: &dyn Log) -> Result<String, event_log::Error> {
    let mut said = String::new();
    for group in log.groups()? {
        let bounds = log.describe(&group.topic)?.partitions;
        let left = progress::offsets(&progress::behind(&group.topic, &bounds, &group.positions));
        let positions: Vec<_> =
            group.positions.iter().map(|p| p.map_or_else(|| "-".to_owned(), |offset| offset.to_string())).collect();
        let _ = writeln!(said, "{:<32} {:<28} {left:>10} left, at {}", group.name, group.topic, positions.join(" "));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use event_log::{Record, TopicSpec};

    use super::*;

    fn run_on(log: &Path, forget: &[&str]) -> anyhow::Result<String> {
        let forget = forget.iter().map(|group| (*group).to_owned()).collect();
        run(&Args { log: LogUrl::Directory(log.to_owned()), forget })
    }

    #[test]
    fn groups_are_listed_and_forgotten() {
        let folder = tempfile::tempdir().expect("a directory");
        let missing = run_on(&folder.path().join("none"), &[]).expect_err("a typo");
        assert!(missing.to_string().contains("does not exist"), "{missing}");
        let path = folder.path().join("log");
        let url = LogUrl::Directory(path.clone());
        let log = event_log::open(&url, &[]).expect("a log");
        let spec = TopicSpec { name: "raw".into(), partitions: 2, retention: None, compacted: false };
        log.ensure_topic(&spec).expect("a topic");
        let record = Record { key: b"k", value: Some(b"v"), headers: &[], timestamp_ms: 0 };
        let appender = log.clone().appender(Box::new(|_| {})).expect("an appender");
        (0..3).for_each(|token| appender.append(&"raw".into(), &record, token).expect("room"));
        assert!(appender.flush(Duration::from_secs(60)));
        drop(appender);
        log.keep_for("trial", "raw", &[]).expect("written");
        log.keep_for("stage", "raw", &[Some(3), Some(3)]).expect("written");
        drop(log);

        let said = run_on(&path, &[]).expect("listed");
        let lines: Vec<Vec<_>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["stage", "raw", "0", "left,"], "{said}");
        assert_eq!(lines[1], ["trial", "raw", "3", "left,", "at", "-", "-"], "{said}");
        let error = run_on(&path, &["trial", "typo"]).expect_err("not known").to_string();
        assert!(error.contains("knows no group typo"), "{error}");
        assert_eq!(run_on(&path, &[]).expect("listed"), said, "nothing is forgotten");
        assert_eq!(run_on(&path, &["trial"]).expect("known"), "trial is forgotten\n");
        assert_eq!(run_on(&path, &[]).expect("listed").lines().count(), 1);
        let kafka = run(&Args { log: "kafka://h:1".parse().expect("a URL"), forget: vec![] });
        assert!(kafka.is_err_and(|e| e.to_string().contains("kafka-consumer-groups")));
    }
}

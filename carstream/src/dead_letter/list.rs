//! Counts of dead letters, and a line for some of them. Memory: the lines that are asked for.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use contract::Contract;
use event_log::Log;
use pipeline::DeadLetterHeader;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::args::{Filter, Position};
use super::letters::{self, Letter, READ_RECORDS};
use super::marks::Marks;

/// Dead letters, counted and listed.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// By topic and reason.
    pub counts: Vec<Count>,
    /// The newest, or oldest, first.
    pub lines: Vec<Line>,
    /// If nothing was found: the reasons of the filter that no dead letter has.
    pub note: Option<String>,
}

/// How many there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The dead-letter topic.
    pub topic: String,
    /// The reason.
    pub reason: String,
    /// How many.
    pub letters: u64,
    /// Of these, replayed.
    pub replayed: u64,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// TOPIC/PARTITION/OFFSET.
    pub position: String,
    /// When it was set aside, ms since the epoch.
    pub time_ms: i64,
    /// Why.
    pub reason: String,
    /// What exactly; holds no value of a personal field.
    pub detail: String,
    /// TOPIC/PARTITION/OFFSET of the record that it was.
    pub source: Option<String>,
    /// Bytes of its payload.
    pub bytes: usize,
    /// When it was replayed, ms since the epoch.
    pub replayed_ms: Option<i64>,
}

pub(super) fn list(
    log: &Arc<dyn Log>,
    contract: &Contract,
    filter: &Filter,
    limit: usize,
    oldest: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<Listing> {
    let topics = letters::topics(log, &contract.dead_letters(), filter)?;
    let marks = Marks::read(log)?;
    let mut counts = BTreeMap::<(String, String), (u64, u64)>::new();
    let mut lines = BTreeMap::<(i64, Position), Line>::new();
    for topic in &topics {
        letters::each(log, topic, filter, READ_RECORDS, shutdown, |letters| {
            for letter in letters {
                let replayed_ms = marks.replayed_ms(letter);
                let count = counts.entry((topic.name.to_string(), letter.reason().to_owned())).or_default();
                count.0 += 1;
                count.1 += u64::from(replayed_ms.is_some());
                lines.insert((letter.time_ms(), letter.position()), line(letter, replayed_ms));
                if lines.len() > limit {
                    let _ = if oldest { lines.pop_last() } else { lines.pop_first() };
                }
            }
            Ok(())
        })?;
    }
    let counts =
        counts.into_iter().map(|((topic, reason), (letters, replayed))| Count { topic, reason, letters, replayed });
    let mut lines: Vec<_> = lines.into_values().collect();
    if !oldest {
        lines.reverse();
    }
    let counts: Vec<_> = counts.collect();
    let note = match counts.as_slice() {
        [] => letters::unknown_reasons(log, &topics, filter, shutdown)?,
        _ => None,
    };
    Ok(Listing { counts, lines, note })
}

fn line(letter: &Letter<'_>, replayed_ms: Option<i64>) -> Line {
    Line {
        position: letter.position().to_string(),
        time_ms: letter.time_ms(),
        reason: letter.reason().to_owned(),
        detail: letter.header(DeadLetterHeader::DETAIL).unwrap_or_default().to_owned(),
        source: letter.source().map(|source| source.to_string()),
        bytes: letter.record.value.unwrap_or_default().len(),
        replayed_ms,
    }
}

impl Listing {
    /// One line for each, and one with the counts.
    pub(super) fn to_json_lines(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            text += &serde_json::to_string(line).expect("a line has no map");
            text.push('\n');
        }
        text += &serde_json::json!({ "counts": self.counts }).to_string();
        text.push('\n');
        text
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.counts.is_empty() {
            return writeln!(f, "{}", self.note.as_deref().unwrap_or("no dead letters"));
        }
        for Count { topic, reason, letters, replayed } in &self.counts {
            let mut note = String::new();
            if *replayed > 0 {
                write!(note, "   {replayed} replayed")?;
            }
            writeln!(f, "{letters:>12}  {topic:<24} {reason}{note}")?;
        }
        writeln!(f)?;
        for line in &self.lines {
            let source = line.source.as_deref().unwrap_or("nobody knows where");
            write!(f, "{}  {}  {}", line.position, time(line.time_ms), printable(&line.reason))?;
            write!(f, ", {} bytes from {}: {}", line.bytes, printable(source), printable(&line.detail))?;
            match line.replayed_ms {
                Some(replayed_ms) => writeln!(f, " (replayed {})", time(replayed_ms))?,
                None => writeln!(f)?,
            }
        }
        let (shown, all) = (self.lines.len() as u64, self.counts.iter().map(|count| count.letters).sum::<u64>());
        if shown < all {
            writeln!(f, "{shown} of {all} shown; --limit N shows more")?;
        }
        Ok(())
    }
}

/// A time as people read it.
pub(super) fn time(ms: i64) -> String {
    let time: Option<DateTime<Utc>> = DateTime::from_timestamp_millis(ms);
    time.map_or_else(|| format!("{ms} ms"), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// Text that came from outside, without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

//! One dead letter in full.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use event_log::Log;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::args::{Filter, Position};
use super::letters::{self, Letter};
use super::list::{printable, time};
use super::marks::Marks;

/// Bytes in a line of hexadecimal.
const HEX_BYTES: usize = 32;

pub(super) fn show(
    log: &Arc<dyn Log>,
    position: &Position,
    as_json: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<String> {
    let filter = Filter {
        topic: vec![position.topic.clone()],
        partition: Some(position.partition),
        from_offset: Some(position.offset),
        to_offset: Some(position.offset.saturating_add(1)),
        ..Filter::default()
    };
    // Any topic of dead letters, also one that no contract declares any more.
    let topics = letters::topics(log, &[position.topic.as_str().into()], &filter)?;
    let topic = topics.first().context("a topic that is named exists")?;
    let bounds = topic.described.partitions.get(position.partition as usize);
    let Some(bounds) = bounds.filter(|bounds| (bounds.first..bounds.next).contains(&position.offset)) else {
        bail!("{position} is not in {}: retention has removed it, or it never existed", log.url());
    };
    let marks = Marks::read(log)?;
    let mut shown = None;
    letters::each(log, topic, &filter, 1, shutdown, |letters| {
        for letter in letters {
            let replayed_ms = marks.replayed_ms(letter);
            shown = Some(if as_json { to_json(letter, replayed_ms) } else { to_text(letter, replayed_ms)? });
        }
        Ok(())
    })?;
    shown.with_context(|| {
        format!(
            "{position} holds no record: the offset belongs to a transaction, and the topic begins at {}",
            bounds.first
        )
    })
}

fn to_text(letter: &Letter<'_>, replayed_ms: Option<i64>) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{} (personal data: keep it at the edge)", letter.position())?;
    writeln!(text, "  reason    {}", printable(letter.reason()))?;
    writeln!(text, "  set aside {}", time(letter.time_ms()))?;
    match letter.source() {
        Some(source) => writeln!(text, "  source    {}", printable(&source.to_string()))?,
        None => writeln!(text, "  source    unknown")?,
    }
    match replayed_ms {
        Some(replayed_ms) => writeln!(text, "  replayed  {}", time(replayed_ms))?,
        None => writeln!(text, "  replayed  no")?,
    }
    writeln!(text, "  key       {}", one_line(letter.record.key))?;
    for (name, value) in letter.record.headers {
        writeln!(text, "  header    {}: {}", printable(name), one_line(value))?;
    }
    let Some(value) = letter.record.value else {
        writeln!(text, "no payload")?;
        return Ok(text);
    };
    match std::str::from_utf8(value) {
        Ok(payload) => {
            writeln!(text, "payload, {} bytes of text", value.len())?;
            payload.split('\n').try_for_each(|line| writeln!(text, "{}", printable(line)))?;
        }
        Err(_) => {
            writeln!(text, "payload, {} bytes, not text", value.len())?;
            let lines = value.chunks(HEX_BYTES).zip((0..).step_by(HEX_BYTES));
            lines.into_iter().try_for_each(|(bytes, at)| writeln!(text, "{at:08x}  {}", hex::encode(bytes)))?;
        }
    }
    Ok(text)
}

/// Text, or else hexadecimal.
fn one_line(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| format!("0x{}", hex::encode(bytes)), printable)
}

fn to_json(letter: &Letter<'_>, replayed_ms: Option<i64>) -> String {
    let bytes = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex::encode(bytes) }),
    };
    let headers: Vec<_> = letter.record.headers.map(|(name, value)| json!([name, bytes(value)])).collect();
    let letter = json!({
        "position": letter.position().to_string(),
        "reason": letter.reason(),
        "time_ms": letter.time_ms(),
        "source": letter.source().map(|source| source.to_string()),
        "replayed_ms": replayed_ms,
        "key": bytes(letter.record.key),
        "headers": headers,
        "payload": letter.record.value.map(bytes),
    });
    letter.to_string() + "\n"
}

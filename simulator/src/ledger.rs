//! The ledger: what became of each reading, one row each, as CSV.
//!
//! ```text
//! cars ─► batches of rows ─► bounded queue ─► one writing thread ─► vin,boot_id,seq,payload,outcome,…
//! ```
//!
//! When the queue is full, cars wait: a slow disk slows the fleet down, it loses no row.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Batches of rows on their way to the writer; a batch is what one car has at a time, some ten rows.
const QUEUE_BATCHES: usize = 1_024;

const HEADER: &[u8] = b"vin,boot_id,seq,payload,outcome,event_time_ms,first_sent_ms,acknowledged_ms,attempts\n";

/// What became of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server said that it has it.
    Acknowledged,
    /// The run ended before it did. It may have it.
    Unacknowledged,
    /// The buffer was full. If it was sent before, the server may have it.
    Dropped,
}

/// The fate of one reading. Times of the clock are in ms since 1970; `None`: it never came to that.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) vin: [u8; 17],
    pub(crate) boot_id: u64,
    pub(crate) seq: u32,
    pub(crate) broken: bool,
    pub(crate) outcome: Outcome,
    pub(crate) event_time_ms: i64,
    pub(crate) first_sent_ms: Option<i64>,
    pub(crate) acknowledged_ms: Option<i64>,
    pub(crate) attempts: u16,
}

/// Where cars put their rows.
pub(crate) type Rows = mpsc::Sender<Vec<Row>>;

/// Opens the ledger. The thread ends, and its result is there, once all senders are gone; if it can't write, it cancels
/// `failed`.
pub(crate) fn open(
    path: &Path,
    failed: CancellationToken,
) -> anyhow::Result<(Rows, tokio::task::JoinHandle<anyhow::Result<()>>)> {
    let shown = path.display().to_string();
    let file = File::create(path).with_context(|| format!("cannot create the ledger {shown}"))?;
    let (rows, received) = mpsc::channel(QUEUE_BATCHES);
    let writer = tokio::task::spawn_blocking(move || {
        write(file, received)
            .inspect_err(|_| failed.cancel())
            .with_context(|| format!("cannot write the ledger {shown}"))
    });
    Ok((rows, writer))
}

fn write(file: File, mut batches: mpsc::Receiver<Vec<Row>>) -> std::io::Result<()> {
    let mut to = BufWriter::with_capacity(1 << 18, file);
    to.write_all(HEADER)?;
    while let Some(batch) = batches.blocking_recv() {
        for row in &batch {
            write_row(row, &mut to)?;
        }
    }
    to.flush()
}

fn write_row(row: &Row, to: &mut impl Write) -> std::io::Result<()> {
    let payload = if row.broken { "broken" } else { "valid" };
    let outcome = match row.outcome {
        Outcome::Acknowledged => "acknowledged",
        Outcome::Unacknowledged => "unacknowledged",
        Outcome::Dropped => "dropped",
    };
    to.write_all(&row.vin)?;
    write!(to, ",{},{},{payload},{outcome},{},", row.boot_id, row.seq, row.event_time_ms)?;
    if let Some(first_sent_ms) = row.first_sent_ms {
        write!(to, "{first_sent_ms}")?;
    }
    to.write_all(b",")?;
    if let Some(acknowledged_ms) = row.acknowledged_ms {
        write!(to, "{acknowledged_ms}")?;
    }
    writeln!(to, ",{}", row.attempts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn empty_cells_where_nothing_happened() {
        let mut row = Row {
            vin: *b"0CS12345X0T000001",
            boot_id: 9,
            seq: 3,
            broken: false,
            outcome: Outcome::Dropped,
            event_time_ms: 100,
            first_sent_ms: None,
            acknowledged_ms: None,
            attempts: 0,
        };
        let mut out = Vec::new();
        write_row(&row, &mut out).unwrap();
        row = Row {
            broken: true,
            outcome: Outcome::Acknowledged,
            first_sent_ms: Some(5),
            acknowledged_ms: Some(6),
            ..row
        };
        write_row(&Row { attempts: 2, ..row }, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "0CS12345X0T000001,9,3,valid,dropped,100,,,0\n0CS12345X0T000001,9,3,broken,acknowledged,100,5,6,2\n"
        );
    }
}

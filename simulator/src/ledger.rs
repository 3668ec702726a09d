//! The ledger: what became of each reading, one row each, as CSV.
//!
//! ```text
//! cars ─► batches of rows ─► bounded queue ─► one writing thread ─► LEDGER      vin,boot_id,seq,payload,outcome,…
//!                                                                   LEDGER.run  of which fleet, and how it ended
//! ```
//!
//! When the queue is full, cars wait: a slow disk slows the fleet down, it loses no row. Whenever the queue is empty,
//! the operating system has all rows: kill -9 costs the rows in the queue, never a written one. A reading without a row
//! counts as not acknowledged, so a resumed run ([`resume`]) sends it again. The ledger is synced only at a clean end:
//! it survives the death of the process, not of the machine.
//!
//! `LEDGER.run` ([`run_file`]) stands beside it, so that the ledger itself stays plain CSV.

mod resume;
mod run_file;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use service::ConfigError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use resume::{CarRows, Earlier};
pub(crate) use run_file::End;

use crate::args::FleetArgs;
use run_file::RunFile;

/// Batches of rows on their way to the writer; a batch is what one car has at a time, some ten rows.
const QUEUE_BATCHES: usize = 1_024;

/// Rows are gathered up to this size before they are written.
const WRITE_BYTES: usize = 1 << 18;

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

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Unacknowledged => "unacknowledged",
            Self::Dropped => "dropped",
        }
    }
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

/// Event time at which the fleet of an existing ledger began.
pub(crate) fn start_ms(ledger: &Path) -> Option<i64> {
    RunFile::start_ms(ledger)
}

/// Where cars put their rows.
pub(crate) type Rows = mpsc::Sender<Vec<Row>>;

/// An open ledger. No other process can open it meanwhile.
#[derive(Debug)]
pub(crate) struct Ledger {
    writer: tokio::task::JoinHandle<anyhow::Result<()>>,
    run: RunFile,
}

impl Ledger {
    /// Opens the ledger of this fleet; blocking. With `resume` it continues an existing ledger, and returns its
    /// contents. The writer cancels `failed` if it can't write.
    ///
    /// # Errors
    /// [`ConfigError`] if there is a ledger already, or one of another fleet; a file that can't be read or written.
    pub(crate) fn open(
        path: &Path,
        fleet: &FleetArgs,
        resume: bool,
        failed: CancellationToken,
    ) -> anyhow::Result<(Rows, Self, Option<Earlier>)> {
        let shown = path.display().to_string();
        let mut run = RunFile::new(path, fleet);
        // What is empty is nobody's: `mktemp` makes such a file.
        let is_there = std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
        if is_there && !resume {
            let problem = format!("--ledger {shown}: exists already; continue it with --resume, or name another file");
            return Err(ConfigError(vec![problem]).into());
        }
        let (mut file, earlier) = if is_there {
            let end = run.check_and_read()?;
            let (file, earlier) = resume::open(path, end, fleet.end_ms())?;
            (file, Some(earlier))
        } else {
            (resume::open_locked(path)?, None)
        };
        run.began()?;
        if file.seek(SeekFrom::End(0)).with_context(|| format!("cannot write the ledger {shown}"))? == 0 {
            file.write_all(HEADER).with_context(|| format!("cannot write the ledger {shown}"))?;
        }
        let (rows, received) = mpsc::channel(QUEUE_BATCHES);
        let writer = tokio::task::spawn_blocking(move || {
            write(file, received)
                .inspect_err(|_| failed.cancel())
                .with_context(|| format!("cannot write the ledger {shown}"))
        });
        Ok((rows, Self { writer, run }, earlier))
    }

    /// Waits until all rows are written; all senders of rows must be gone. The error: not all are.
    pub(crate) async fn written(&mut self) -> anyhow::Result<()> {
        (&mut self.writer).await?
    }

    /// Notes a clean end: every reading that was taken has its row.
    pub(crate) fn ended(mut self, end: End) -> anyhow::Result<()> {
        self.run.ended(end)
    }
}

fn write(mut file: File, mut batches: mpsc::Receiver<Vec<Row>>) -> std::io::Result<()> {
    let mut lines = Vec::with_capacity(WRITE_BYTES);
    while let Some(first) = batches.blocking_recv() {
        let mut next = Some(first);
        while let Some(batch) = next {
            for row in &batch {
                write_row(row, &mut lines)?;
            }
            next = if lines.len() < WRITE_BYTES { batches.try_recv().ok() } else { None };
        }
        file.write_all(&lines)?;
        lines.clear();
    }
    file.sync_all()
}

fn write_row(row: &Row, to: &mut impl Write) -> std::io::Result<()> {
    let payload = if row.broken { "broken" } else { "valid" };
    let outcome = row.outcome.word();
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

/// `path` with `suffix` behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn row(seq: u32, outcome: Outcome) -> Row {
        Row {
            vin: *b"0CS12345X0T000001",
            boot_id: 9,
            seq,
            broken: false,
            outcome,
            event_time_ms: 100 + i64::from(seq),
            first_sent_ms: (outcome != Outcome::Dropped).then_some(5),
            acknowledged_ms: (outcome == Outcome::Acknowledged).then_some(6),
            attempts: u16::from(outcome != Outcome::Dropped),
        }
    }

    #[test]
    fn empty_cells_where_nothing_happened() {
        let mut out = Vec::new();
        write_row(&row(3, Outcome::Dropped), &mut out).unwrap();
        write_row(&Row { broken: true, attempts: 2, ..row(4, Outcome::Acknowledged) }, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "0CS12345X0T000001,9,3,valid,dropped,103,,,0\n0CS12345X0T000001,9,4,broken,acknowledged,104,5,6,2\n"
        );
    }
}

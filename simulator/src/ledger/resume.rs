//! Going on with a ledger: what it says, and what of it stays.
//!
//! ```text
//! LEDGER  header            ─► must be ours
//!         acknowledged      ─► stays; the reading is not sent again
//!         dropped           ─► stays
//!         unacknowledged    ─► taken out: the reading is sent again, and has one row in the end
//!         a torn last line  ─► cut off: the process was killed in the middle of it
//! ```
//!
//! Settled readings are kept in memory as intervals of sequence numbers, nearly always one per boot.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use service::ConfigError;

use super::{End, HEADER, Outcome, beside};
use crate::client::Totals;

/// What earlier runs of a ledger did.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// What is settled, by VIN.
    pub(crate) cars: HashMap<[u8; 17], CarRows>,
    /// Readings by outcome, and repeats.
    pub(crate) totals: Totals,
    /// The newest event time of a row: how far the run had got.
    pub(crate) event_time_ms: Option<i64>,
    /// The span was covered, and everything in it acknowledged: nothing is left to send.
    pub(crate) finished: bool,
}

/// The readings of one car whose fate is known.
#[derive(Debug, Default)]
pub(crate) struct CarRows {
    /// First and last sequence number of each run, in order, with gaps between; by boot id.
    boots: HashMap<u64, Vec<(u32, u32)>>,
    /// Rows that no reading was found for yet.
    left: u64,
}

impl CarRows {
    /// Notes a row. `false`: the reading had one already.
    fn insert(&mut self, boot_id: u64, seq: u32) -> bool {
        let runs = self.boots.entry(boot_id).or_default();
        let next = runs.partition_point(|(first, _)| *first <= seq);
        if next > 0 && seq <= runs[next - 1].1 {
            return false;
        }
        let extends_left = next > 0 && runs[next - 1].1 + 1 == seq;
        let extends_right = runs.get(next).is_some_and(|(first, _)| seq + 1 == *first);
        match (extends_left, extends_right) {
            (true, true) => runs[next - 1].1 = runs.remove(next).1,
            (true, false) => runs[next - 1].1 = seq,
            (false, true) => runs[next].0 = seq,
            (false, false) => runs.insert(next, (seq, seq)),
        }
        self.left += 1;
        true
    }

    /// Whether the fate of this reading is known. To be asked once for each.
    pub(crate) fn take(&mut self, boot_id: u64, seq: u32) -> bool {
        let Some(runs) = self.boots.get(&boot_id) else { return false };
        let next = runs.partition_point(|(first, _)| *first <= seq);
        let known = next > 0 && seq <= runs[next - 1].1;
        self.left -= u64::from(known);
        known
    }

    /// Rows that belong to no reading that was asked for.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

/// What a ledger holds.
#[derive(Debug, Default)]
struct Contents {
    earlier: Earlier,
    /// Up to and with the last whole line.
    whole_bytes: u64,
    unacknowledged: u64,
}

/// Opens a ledger, creates it if there is none, and keeps others from opening it.
pub(super) fn open_locked(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("cannot open the ledger {shown}"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let problem =
                format!("--ledger {shown}: another simulator is writing it; stop that one, or name another file");
            Err(ConfigError(vec![problem]).into())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock the ledger {shown}")),
    }
}

/// Opens a ledger to resume it: rows of readings to be sent again are removed. Blocking.
pub(super) fn open(path: &Path, end: End, end_ms: Option<i64>) -> anyhow::Result<(File, Earlier)> {
    let shown = path.display();
    let file = open_locked(path)?;
    let mut contents = read(&file).with_context(|| format!("cannot resume from the ledger {shown}"))?;
    contents.earlier.finished = end.complete && end.covered && end.unacknowledged == 0;
    if contents.earlier.finished {
        contents.earlier.event_time_ms = end_ms;
    }
    let file = if contents.unacknowledged > 0 {
        without_unacknowledged(path, &file, contents.whole_bytes)
    } else {
        file.set_len(contents.whole_bytes).map(|()| file).map_err(anyhow::Error::from)
    };
    Ok((file.with_context(|| format!("cannot write the ledger {shown}"))?, contents.earlier))
}

fn read(file: &File) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    let mut lines = BufReader::with_capacity(1 << 18, file);
    lines.rewind()?;
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let length = lines.read_until(b'\n', &mut line)?;
        if number == 1 {
            // A part of it: killed before the header was written.
            ensure!(HEADER.starts_with(&line), "it is not a ledger: its first line is not the header");
        }
        let Some(cells) = line.strip_suffix(b"\n") else { break };
        if number > 1 {
            contents.row(cells).with_context(|| format!("line {number}"))?;
        }
        contents.whole_bytes += length as u64;
    }
    Ok(contents)
}

impl Contents {
    fn row(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let line = str::from_utf8(line).context("not text")?;
        let cells: Vec<_> = line.split(',').collect();
        let [vin, boot_id, seq, _, outcome, event_time_ms, _, _, attempts] = cells[..] else {
            bail!("{} cells instead of 9", cells.len());
        };
        let vin: [u8; 17] = vin.as_bytes().try_into().with_context(|| format!("{vin:?} is not a VIN"))?;
        let (boot_id, seq): (u64, u32) = (boot_id.parse().context("boot_id")?, seq.parse().context("seq")?);
        let event_time_ms: i64 = event_time_ms.parse().context("event_time_ms")?;
        let attempts: u64 = attempts.parse().context("attempts")?;
        let Earlier { cars, totals, event_time_ms: newest, .. } = &mut self.earlier;
        *newest = (*newest).max(Some(event_time_ms));
        match outcome {
            "acknowledged" => totals.acknowledged += 1,
            "dropped" => totals.dropped += 1,
            "unacknowledged" => {
                self.unacknowledged += 1;
                return Ok(());
            }
            other => bail!("unknown outcome {other:?}"),
        }
        totals.sent += u64::from(attempts > 0);
        totals.repeated += attempts.saturating_sub(1);
        ensure!(cars.entry(vin).or_default().insert(boot_id, seq), "reading {boot_id}/{seq} has a row already");
        Ok(())
    }
}

/// Puts a ledger in the place of this one that has no unacknowledged rows.
fn without_unacknowledged(path: &Path, file: &File, whole_bytes: u64) -> anyhow::Result<File> {
    let new_path = beside(path, ".new");
    let new = open_locked(&new_path)?;
    new.set_len(0)?;
    let mut lines = BufReader::with_capacity(1 << 18, file);
    lines.rewind()?;
    let mut to = BufWriter::with_capacity(1 << 18, new);
    let (mut line, mut read) = (Vec::new(), 0);
    while read < whole_bytes {
        line.clear();
        read += lines.read_until(b'\n', &mut line)? as u64;
        let outcome = line.split(|&byte| byte == b',').nth(4);
        if outcome != Some(Outcome::Unacknowledged.word().as_bytes()) {
            to.write_all(&line)?;
        }
    }
    let new = to.into_inner()?;
    new.sync_all()?;
    std::fs::rename(new_path, path)?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::super::write_row;
    use super::*;

    fn ledger_of(rows: &[(u32, Outcome)], torn: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.csv");
        let mut text = HEADER.to_vec();
        for (seq, outcome) in rows {
            write_row(&row(*seq, *outcome), &mut text).unwrap();
        }
        text.extend_from_slice(torn);
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn what_is_settled_stays_and_the_rest_is_taken_out() {
        use Outcome::{Acknowledged, Dropped, Unacknowledged};
        let rows = [(0, Acknowledged), (4, Unacknowledged), (2, Dropped), (1, Acknowledged)];
        let (_directory, path) = ledger_of(&rows, b"0CS12345X0T000001,9,7,valid,acknow");
        let (_, earlier) = open(&path, End::default(), None).unwrap();
        assert_eq!((earlier.event_time_ms, earlier.finished), (Some(104), false));
        let totals = &earlier.totals;
        assert_eq!((totals.acknowledged, totals.dropped, totals.sent, totals.repeated), (2, 1, 2, 0));
        let mut car = earlier.cars.into_values().next().unwrap();
        assert_eq!(car.left(), 3);
        assert_eq!([0, 1, 2, 3, 4, 7].map(|seq| car.take(9, seq)), [true, true, true, false, false, false]);
        assert!(!car.take(8, 0));
        assert_eq!(car.left(), 0);
        let text = std::fs::read_to_string(&path).unwrap();
        let seqs: Vec<_> = text.lines().skip(1).map(|line| line.split(',').nth(2).unwrap()).collect();
        assert_eq!(seqs, ["0", "2", "1"]);
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_ledger_cut_anywhere_can_be_gone_on_with() {
        let (_directory, path) = ledger_of(&[(0, Outcome::Acknowledged), (1, Outcome::Acknowledged)], b"");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (file, earlier) = open(&path, End::default(), None).unwrap();
            let lines = whole[..length].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(earlier.totals.acknowledged, lines.saturating_sub(1) as u64, "cut at {length}");
            drop(file);
            let left = std::fs::read(&path).unwrap();
            assert!(whole.starts_with(&left) && (left.is_empty() || left.ends_with(b"\n")), "cut at {length}");
        }
    }

    #[test]
    fn what_is_no_ledger_is_refused() {
        for (text, problem) in [
            ("hello\n", "not the header"),
            ("hello", "not the header"),
            (&format!("{}a,b\n", str::from_utf8(HEADER).unwrap()), "line 2: 2 cells"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("ledger.csv");
            std::fs::write(&path, text).unwrap();
            let error = open(&path, End::default(), None).unwrap_err();
            assert!(format!("{error:#}").contains(problem), "{error:#}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left alone");
        }
        let (_directory, path) = ledger_of(&[(1, Outcome::Acknowledged), (1, Outcome::Dropped)], b"");
        let error = open(&path, End::default(), None).unwrap_err();
        assert!(format!("{error:#}").contains("line 3: reading 9/1 has a row already"), "{error:#}");
    }
}

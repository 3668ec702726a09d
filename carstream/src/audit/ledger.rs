//! The simulator's ledger, as it is read here: CSV, one row per reading whose fate is known.
//!
//! `LEDGER.run` beside it says whether it is complete. While it is not (the simulator runs, or was killed) the hops may
//! hold readings that it does not know yet, and its last line may be torn.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

const HEADER: &str = "vin,boot_id,seq,payload,outcome,event_time_ms,first_sent_ms,acknowledged_ms,attempts";

/// One reading's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) vin: &'a str,
    pub(crate) boot_id: i64,
    pub(crate) seq: i64,
    /// Broken on purpose.
    pub(crate) broken: bool,
    pub(crate) outcome: Outcome,
    /// When the car measured it.
    pub(crate) event_time_ms: i64,
    /// Wall clock when the car first sent it, if it came to that.
    pub(crate) first_sent_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Acknowledged,
    Unacknowledged,
    Dropped,
}

/// Whether the ledger's last run has ended, with a row for every reading that it took. To be asked before reading it.
pub(crate) fn is_complete(ledger: &Path) -> anyhow::Result<bool> {
    #[derive(Deserialize)]
    struct Run {
        complete: bool,
    }
    let mut path = ledger.as_os_str().to_owned();
    path.push(".run");
    let path = PathBuf::from(path);
    let shown = path.display();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    let run: Run = serde_json::from_slice(&text)
        .with_context(|| format!("{shown} was not written by the simulator beside its ledger"))?;
    Ok(run.complete)
}

/// Reads a ledger row by row. Returns whether its last line was torn off.
pub(crate) fn read(ledger: &Path, mut then: impl FnMut(&Row<'_>) -> anyhow::Result<()>) -> anyhow::Result<bool> {
    let shown = ledger.display();
    let file = File::open(ledger).with_context(|| format!("cannot read {shown}"))?;
    let mut file = BufReader::with_capacity(1 << 18, file);
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        if file.read_line(&mut line).with_context(|| format!("cannot read {shown} line {number}"))? == 0 {
            break;
        }
        let Some(text) = line.strip_suffix('\n') else { return Ok(true) };
        if number == 1 {
            ensure!(text == HEADER, "{shown} is not a ledger of the simulator: its first line is not {HEADER}");
            continue;
        }
        parse(text).and_then(|row| then(&row)).with_context(|| format!("{shown} line {number}"))?;
    }
    Ok(false)
}

fn parse(line: &str) -> anyhow::Result<Row<'_>> {
    let mut cells = line.split(',');
    let mut next = |name: &str| cells.next().with_context(|| format!("there is no {name}"));
    let vin = next("vin")?;
    let boot_id = number("boot_id", next("boot_id")?)?;
    let seq = number("seq", next("seq")?)?;
    let broken = match next("payload")? {
        "valid" => false,
        "broken" => true,
        other => bail!("unknown payload {other:?}"),
    };
    let outcome = match next("outcome")? {
        "acknowledged" => Outcome::Acknowledged,
        "unacknowledged" => Outcome::Unacknowledged,
        "dropped" => Outcome::Dropped,
        other => bail!("unknown outcome {other:?}"),
    };
    let event_time_ms = number("event_time_ms", next("event_time_ms")?)?;
    let first_sent_ms = match next("first_sent_ms")? {
        "" => None,
        text => Some(number("first_sent_ms", text)?),
    };
    Ok(Row { vin, boot_id, seq, broken, outcome, event_time_ms, first_sent_ms })
}

fn number(name: &str, text: &str) -> anyhow::Result<i64> {
    text.parse().with_context(|| format!("{name} is {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = (String, i64, i64, bool, Outcome, Option<i64>);

    fn rows(text: &str) -> (anyhow::Result<bool>, Vec<Seen>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.csv");
        std::fs::write(&path, text).unwrap();
        let mut rows = Vec::new();
        let torn = read(&path, |r| {
            rows.push((r.vin.to_owned(), r.boot_id, r.seq, r.broken, r.outcome, r.first_sent_ms));
            Ok(())
        });
        (torn, rows)
    }

    #[test]
    fn rows_are_read_and_a_torn_one_is_left() {
        let text =
            format!("{HEADER}\nV1,9,3,valid,acknowledged,100,5,6,1\nV2,9,4,broken,dropped,100,,,0\nV3,9,4,valid,ackn");
        let (torn, rows) = rows(&text);
        assert!(torn.unwrap());
        let wanted = [
            ("V1".to_owned(), 9, 3, false, Outcome::Acknowledged, Some(5)),
            ("V2".to_owned(), 9, 4, true, Outcome::Dropped, None),
        ];
        assert_eq!(rows, wanted);
    }

    #[test]
    fn what_is_no_ledger_is_refused_with_its_line() {
        for (text, problem) in [
            ("a,b\n".to_owned(), "is not a ledger"),
            (format!("{HEADER}\nV1,9,x,valid,acknowledged,100,5,6,1\n"), "line 2: seq is \"x\""),
            (format!("{HEADER}\nV1,9,1,valid,lost,100,5,6,1\n"), "unknown outcome \"lost\""),
            (format!("{HEADER}\nV1,9\n"), "there is no seq"),
        ] {
            let error = format!("{:#}", rows(&text).0.unwrap_err());
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn the_file_beside_it_says_whether_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.csv");
        let beside = directory.path().join("ledger.csv.run");
        assert!(!is_complete(&ledger).unwrap());
        for complete in [true, false] {
            std::fs::write(&beside, format!("{{\"fleet\":{{}},\"complete\":{complete},\"covered\":true}}\n")).unwrap();
            assert_eq!(is_complete(&ledger).unwrap(), complete);
        }
        std::fs::write(&beside, "complete").unwrap();
        assert!(is_complete(&ledger).is_err());
    }
}

//! A stream tried on single readings, without any log: what each becomes, and why.
//!
//! ```text
//!  one line of JSON ─► decode ─► event time ─► duplicates ─► SQL ─► clean record | filtered | duplicate | dead letter
//! ```
//!
//! The same decoder, duplicate filter and statement as in the stage. The origin (MQTT topic and key) is not looked at,
//! and the event time only if a time of receipt is given: only the bridge knows them.

use std::io::{BufRead, ErrorKind, Write};

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType,
};
use contract::{Contract, Problem, StreamDefinition};
use serde_json::{Map, Value};
use service::ConfigError;
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;

use crate::duplicates::{Duplicates, Seen};
use crate::event_time::EventTimeArgs;
use crate::sql::{LookupTable, Query};
use crate::{Args, TableFile, TryArgs, reason, sql};

/// What became of one reading.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The clean record.
    Clean(Map<String, Value>),
    /// The statement leaves it out.
    Filtered,
    /// It was let through before.
    Duplicate,
    /// It cannot be used.
    DeadLetter {
        /// The reason, as in the header of the dead letter.
        reason: &'static str,
        /// Which field, what was found, what is allowed; no value of a tagged field.
        detail: String,
    },
}

/// One stream, with the memory of what it has let through.
#[derive(Debug)]
pub struct Trial {
    definition: StreamDefinition,
    query: Query,
    decoder: JsonDecoder,
    seen: Duplicates,
    lookups: Vec<LookupTable>,
    /// Which event times are accepted, and the time of receipt.
    received: Option<(EventTimeArgs, i64)>,
}

impl Trial {
    /// Plans the statement; everything that is wrong with it is returned.
    pub fn new(definition: &StreamDefinition, key: &PseudonymKey) -> Result<Self, Vec<String>> {
        let query = Query::plan(definition, key)?;
        let (decoder, lookups) = (JsonDecoder::new(&definition.input.schema), query.tables(definition));
        let (definition, seen) = (definition.clone(), Duplicates::default());
        Ok(Self { definition, query, decoder, seen, lookups, received: None })
    }

    /// Judges event times from now on, as of readings that are received at this time.
    pub fn judge_event_times(&mut self, window: EventTimeArgs, received_ms: i64) {
        self.received = Some((window, received_ms));
    }

    /// The planned statement.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Takes one row of a reference table. The error says what is wrong with the row.
    pub fn table_row(&mut self, table: &str, row: &[u8]) -> anyhow::Result<()> {
        let number = self.definition.tables.iter().position(|known| known.table == table).with_context(|| {
            let known: Vec<_> = self.definition.tables.iter().map(|known| known.table.as_str()).collect();
            format!("stream {} has no table {table}; it has: {}", self.definition.name, known.join(", "))
        })?;
        let known = &self.definition.tables[number];
        let mut decoder = JsonDecoder::new(&known.schema);
        decoder.decode(row).map_err(|reject| anyhow::anyhow!("{reject}"))?;
        let rows = decoder.finish();
        let key = rows.column(known.key).as_string::<i32>().value(0).to_owned();
        for (lookup, _) in self.query.looked_up().enumerate().filter(|(_, of)| *of == number) {
            self.lookups[lookup].update(&rows, [(key.as_str(), Some(0))])?;
        }
        Ok(())
    }

    /// Takes the rows of a file.
    fn fill(&mut self, TableFile { table, file }: &TableFile, problems: &mut Vec<String>) {
        let shown = file.display();
        let known: Vec<_> = self.definition.tables.iter().map(|known| known.table.clone()).collect();
        if !known.contains(table) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            problems.push(format!("--table {table}={shown}: stream {} has the tables: {known}", self.definition.name));
            return;
        }
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                problems.push(format!("--table {table}={shown}: the file does not exist"));
                return;
            }
            Err(error) => {
                problems.push(format!("--table {table}={shown}: cannot read the file: {error}"));
                return;
            }
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        for (number, row) in text.lines().enumerate().filter(|(_, row)| !row.trim().is_empty()) {
            if let Err(error) = self.table_row(table, row.as_bytes()) {
                problems.push(format!("{shown}:{}: {error:#}", number + 1));
            }
        }
    }

    /// Sends one reading through the stream.
    pub fn reading(&mut self, payload: &[u8]) -> anyhow::Result<Verdict> {
        if let Err(reject) = self.decoder.decode(payload) {
            return Ok(Verdict::DeadLetter { reason: reject.reason, detail: reject.detail });
        }
        let rows = self.decoder.finish();
        let [car, boot, seq] = self.definition.identity.map(|column| rows.column(column));
        let (boot, seq) = (boot.as_primitive::<Int64Type>().value(0), seq.as_primitive::<Int64Type>().value(0));
        if let (Some(column), Some((window, received_ms))) = (self.definition.event_time, self.received) {
            let event_time_ms = rows.column(column).as_primitive::<TimestampMillisecondType>().value(0);
            let field = &self.definition.input.schema.fields[column];
            if let Some(detail) = window.refusal(field, event_time_ms, received_ms) {
                return Ok(match self.seen.contains(car.as_string::<i32>().value(0), boot, seq) {
                    true => Verdict::Duplicate,
                    false => Verdict::DeadLetter { reason: reason::EVENT_TIME_OUT_OF_WINDOW, detail },
                });
            }
        }
        match self.seen.admit(car.as_string::<i32>().value(0), boot, seq, 0) {
            Seen::New => {}
            Seen::Before => return Ok(Verdict::Duplicate),
            Seen::TooOld => {
                let detail = "too many later boots or gaps of this car: whether it was let through is forgotten";
                return Ok(Verdict::DeadLetter { reason: reason::SEQUENCE_TOO_OLD, detail: detail.to_owned() });
            }
        }
        let selected = self.query.run(&rows, &mut self.lookups)?;
        Ok(match selected.batch.num_rows() {
            0 => Verdict::Filtered,
            _ => Verdict::Clean(object(&selected.batch, 0)?),
        })
    }
}

/// One row as a JSON object.
fn object(batch: &RecordBatch, row: usize) -> anyhow::Result<Map<String, Value>> {
    let schema: &Schema = batch.schema_ref();
    let mut object = Map::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let value = match column.data_type() {
            _ if column.is_null(row) => Value::Null,
            DataType::Boolean => column.as_boolean().value(row).into(),
            DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
            DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                column.as_primitive::<TimestampMillisecondType>().value(row).into()
            }
            DataType::Float32 => {
                // The shortest text that is this float, not the longer one of the same double.
                let value = column.as_primitive::<Float32Type>().value(row);
                value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
            }
            DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
            DataType::Utf8 => column.as_string::<i32>().value(row).into(),
            other => anyhow::bail!("column {} is a {other}, which no schema has", field.name()),
        };
        object.insert(field.name().clone(), value);
    }
    Ok(object)
}

/// Runs `preprocessor try`: readings from `input`, one verdict per line to `output`. Ends early, and without an error,
/// if nobody reads the output any more.
pub(crate) fn run(args: &Args, trial: &TryArgs, input: impl BufRead, output: &mut impl Write) -> anyhow::Result<()> {
    let contract = args.contract.load()?;
    let stream = args.contract.stream(&contract, &trial.stream)?;
    let key = match args.pseudonym_key_file {
        Some(_) => args.pseudonym_key().map_err(|problem| ConfigError(vec![problem]))?,
        None => PseudonymKey::from_bytes(&[0; 32]).expect("32 bytes are enough"),
    };
    let mut running = Trial::new(stream, &key).map_err(|found| {
        ConfigError(located(stream, found).into_iter().map(|problem| args.contract.describe(problem)).collect())
    })?;
    let mut problems = args.event_time.problems();
    if let Some(received_ms) = trial.received {
        running.judge_event_times(args.event_time, received_ms);
    }
    for table in &trial.table {
        running.fill(table, &mut problems);
    }
    ConfigError::check(problems)?;
    let mut counts = Counts::default();
    for (number, line) in (1..).zip(input.split(b'\n')) {
        let line = line.context("cannot read standard input")?;
        let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| number == 1).unwrap_or(&line);
        if line.trim_ascii().is_empty() {
            continue;
        }
        let verdict = running.reading(line)?;
        counts.add(&verdict);
        match writeln!(output, "{}", to_json(number, &verdict)) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("cannot print")?,
        }
    }
    if let Some(hint) = counts.hint() {
        eprintln!("{hint}");
    }
    Ok(())
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The verdict comes first: it is what one looks for.
fn to_json(line: usize, verdict: &Verdict) -> String {
    let (verdict, rest) = match verdict {
        Verdict::Clean(record) => ("clean", format!(r#","record":{}"#, Value::from(record.clone()))),
        Verdict::Filtered => ("filtered", String::new()),
        Verdict::Duplicate => ("duplicate", String::new()),
        Verdict::DeadLetter { reason, detail } => {
            ("dead-letter", format!(r#","reason":"{reason}","detail":{}"#, Value::from(detail.as_str())))
        }
    };
    format!(r#"{{"verdict":"{verdict}","line":{line}{rest}}}"#)
}

/// What became of the lines, to notice an input that is not one object per line.
#[derive(Debug, Default)]
struct Counts {
    lines: u64,
    /// Lines that are no JSON objects.
    malformed: u64,
}

impl Counts {
    fn add(&mut self, verdict: &Verdict) {
        self.lines += 1;
        let is_no_object = match verdict {
            Verdict::DeadLetter { reason: "malformed-json", .. } => true,
            Verdict::DeadLetter { reason: "wrong-type", detail } => detail.starts_with("the payload is not"),
            _ => false,
        };
        self.malformed += u64::from(is_no_object);
    }

    fn hint(&self) -> Option<String> {
        match self.lines {
            0 => Some("no reading on standard input".to_owned()),
            lines if lines > 1 && lines == self.malformed => {
                Some(format!("{lines} lines: 0 clean, {lines} dead letters; one JSON object per line is expected"))
            }
            _ => None,
        }
    }
}

/// What is wrong with the statement of a stream, each problem with its line: that which the message names, or the first
/// line with a name that the message mentions.
pub(crate) fn located(stream: &StreamDefinition, found: Vec<String>) -> Vec<Problem> {
    let problem = |what: String| {
        let named = what.strip_prefix(sql::LINE).and_then(|rest| rest.split_once(": "));
        let named = named.and_then(|(line, what)| Some((line.parse().ok()?, what.to_owned())));
        let (line, what) = match named {
            Some((line, what)) => (Some(line), what),
            None => (line_of(&stream.sql, &what), what),
        };
        Problem { line, ..Problem::of_file(&stream.sql_file(), what) }
    };
    found.into_iter().map(problem).collect()
}

/// What is wrong with the statements and the sample readings of a contract. Needs no key.
pub fn check_contract(contract: &Contract) -> Vec<Problem> {
    let key = PseudonymKey::from_bytes(&[0; 32]).expect("32 bytes are enough");
    let mut problems = Vec::new();
    for stream in contract.streams() {
        match Trial::new(stream, &key) {
            Ok(trial) => problems.extend(check_samples(stream, trial)),
            Err(found) => problems.extend(located(stream, found)),
        }
    }
    problems
}

/// Each sample must become a clean record: they are what a reader of the contract learns the stream from.
fn check_samples(stream: &StreamDefinition, mut trial: Trial) -> Vec<Problem> {
    let at =
        |line: usize, what: String| Problem { line: Some(line + 1), ..Problem::of_file(&stream.samples_file(), what) };
    let lines = stream.samples.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let verdicts: Vec<_> = lines.map(|(line, sample)| (line, trial.reading(sample.as_bytes()))).collect();
    if verdicts.is_empty() {
        let what = "is missing or empty: put some readings there, one JSON object per line, as cars send them";
        return vec![Problem::of_file(&stream.samples_file(), what)];
    }
    let wrong = verdicts.into_iter().filter_map(|(line, verdict)| match verdict {
        Ok(Verdict::Clean(_) | Verdict::Filtered) => None,
        Ok(Verdict::Duplicate) => Some(at(line, "has the identity of an earlier sample".to_owned())),
        Ok(Verdict::DeadLetter { reason, detail }) => {
            Some(at(line, format!("would be a dead letter ({reason}): {detail}")))
        }
        Err(error) => Some(at(line, format!("{error:#}"))),
    });
    wrong.collect()
}

/// The line of the statement that a problem is about: the first that has a name which the problem mentions.
fn line_of(sql: &str, problem: &str) -> Option<usize> {
    let is_name = |word: &&str| word.len() > 2 && !["column", "stream", "the", "and", "not"].contains(word);
    let words = problem.split(|c: char| !c.is_alphanumeric() && c != '_').filter(is_name);
    let has =
        |line: &str, word: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|other| other == word);
    let code = |line: &&str| !line.trim_start().starts_with("--");
    let mut found = words.filter_map(|word| {
        let lines = sql.lines().enumerate().filter(|(_, line)| code(line));
        lines.into_iter().find(|(_, line)| has(line, word)).map(|(at, _)| at + 1)
    });
    found.next()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::Reach;

    fn trial() -> Trial {
        let key = PseudonymKey::from_bytes(&[7; 32]).unwrap();
        Trial::new(Contract::builtin().stream(contract::READINGS).unwrap(), &key).unwrap()
    }

    #[test]
    fn each_reading_gets_its_verdict() {
        let mut trial = trial();
        let sample = Contract::builtin().stream(contract::READINGS).unwrap().samples.lines().next().unwrap();
        let Verdict::Clean(clean) = trial.reading(sample.as_bytes()).unwrap() else { panic!("a clean record") };
        assert!(!clean.contains_key("driver") && !clean.contains_key("plate"));
        assert!(clean["driver_segment"].is_null(), "nothing was found: {clean:?}");
        assert_eq!(trial.reading(sample.as_bytes()).unwrap(), Verdict::Duplicate);
        let mut fast: Value = serde_json::from_str(sample).unwrap();
        (fast["seq"], fast["speed"]) = (9.into(), 1e9.into());
        let verdict = trial.reading(fast.to_string().as_bytes()).unwrap();
        assert!(matches!(verdict, Verdict::DeadLetter { reason: "out-of-range", .. }), "{verdict:?}");
        let vin = fast["vin"].as_str().unwrap().to_owned();
        let driver = serde_json::json!({"vin": vin, "name": "A", "email": "a@b", "phone": "1", "licence_number": "2",
            "address": "c", "segment": "fleet", "experience_years": 3});
        trial.table_row("drivers", driver.to_string().as_bytes()).unwrap();
        fast["speed"] = 1.into();
        let Verdict::Clean(clean) = trial.reading(fast.to_string().as_bytes()).unwrap() else {
            panic!("a clean record")
        };
        assert_eq!(clean["driver_segment"], "fleet");
        assert!(trial.table_row("nobody", b"{}").is_err() && trial.table_row("drivers", b"{}").is_err());
    }

    fn tried(stream: &str, input: &str) -> String {
        let args = Args::try_parse_from(["preprocessor", "try", stream]).unwrap();
        let Some(crate::Command::Try(trial)) = &args.command else { panic!("try") };
        let mut output = Vec::new();
        run(&args, trial, input.as_bytes(), &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_verdict_comes_first_with_its_line() {
        let sample = Contract::builtin().stream(contract::READINGS).unwrap().samples.lines().next().unwrap();
        let output = tried("telemetry", &format!("\u{feff}{sample}\n\n{sample}\n{{"));
        let lines: Vec<_> = output.lines().collect();
        assert!(lines[0].starts_with(r#"{"verdict":"clean","line":1,"record":{"#), "{output}");
        assert_eq!(lines[1], r#"{"verdict":"duplicate","line":3}"#);
        assert!(lines[2].starts_with(r#"{"verdict":"dead-letter","line":4,"reason":"malformed-json","detail":""#));
        assert!(lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{output}");
    }

    #[test]
    fn event_times_are_judged_if_a_time_of_receipt_is_given() {
        let sample = Contract::builtin().stream(contract::READINGS).unwrap().samples.lines().next().unwrap();
        let mut trial = trial();
        let time_ms = serde_json::from_str::<Value>(sample).unwrap()["event_time_ms"].as_i64().unwrap();
        let window = EventTimeArgs {
            event_time_behind: Reach::Within(Duration::from_secs(60)),
            event_time_ahead: Reach::Within(Duration::ZERO),
        };
        trial.judge_event_times(window, time_ms + 60_001);
        let verdict = trial.reading(sample.as_bytes()).unwrap();
        assert!(matches!(verdict, Verdict::DeadLetter { reason: reason::EVENT_TIME_OUT_OF_WINDOW, .. }), "{verdict:?}");
        trial.judge_event_times(window, time_ms + 60_000);
        assert!(matches!(trial.reading(sample.as_bytes()).unwrap(), Verdict::Clean(_)), "it was not remembered");
        trial.judge_event_times(window, time_ms - 1);
        assert_eq!(trial.reading(sample.as_bytes()).unwrap(), Verdict::Duplicate, "a repeat, however late it comes");
    }

    #[test]
    fn an_input_of_no_readings_is_noticed() {
        let mut counts = Counts::default();
        assert_eq!(counts.hint().as_deref(), Some("no reading on standard input"));
        let malformed = Verdict::DeadLetter { reason: "malformed-json", detail: String::new() };
        let number =
            Verdict::DeadLetter { reason: "wrong-type", detail: "the payload is not a JSON object".to_owned() };
        (0..9).for_each(|_| counts.add(&malformed));
        counts.add(&number);
        let hint = counts.hint().unwrap();
        assert_eq!(hint, "10 lines: 0 clean, 10 dead letters; one JSON object per line is expected");
        counts.add(&Verdict::Filtered);
        assert_eq!(counts.hint(), None);
    }

    #[test]
    fn a_table_that_cannot_be_filled_is_a_bad_setting() {
        let folder = tempfile::tempdir().unwrap();
        let rows = folder.path().join("rows");
        std::fs::write(&rows, "{}").unwrap();
        let rows = rows.display();
        let tables = [format!("nobody={rows}"), "drivers=/no/file".to_owned(), format!("drivers={rows}")];
        let line = ["preprocessor", "try", "telemetry"].into_iter().map(str::to_owned);
        let args = Args::try_parse_from(line.chain(tables.iter().flat_map(|t| ["--table".to_owned(), t.clone()])));
        let args = args.unwrap();
        let Some(crate::Command::Try(trial)) = &args.command else { panic!("try") };
        let error = run(&args, trial, &b""[..], &mut Vec::new()).unwrap_err();
        let ConfigError(problems) = error.downcast().unwrap();
        assert_eq!(problems[0], format!("--table nobody={rows}: stream telemetry has the tables: drivers"));
        assert_eq!(problems[1], "--table drivers=/no/file: the file does not exist");
        assert!(problems[2].starts_with(&format!("{rows}:1: missing-field: ")) && problems.len() == 3, "{problems:?}");
    }

    #[test]
    fn a_problem_of_the_statement_has_its_line() {
        let sql = "-- plate\nCREATE STREAM s AS SELECT\n  plate AS car\nFROM t";
        assert_eq!(line_of(sql, "column car lets out t.plate"), Some(3));
        assert_eq!(line_of(sql, "is odd"), None);
    }
}

//! The check of a contract: what it accepts works in every stage, and what breaks a rule is refused with its place.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use carstream::contracts;
use contract::{Contract, Files, Problem};
use preprocessor::trial::{Trial, Verdict};
use proptest::prelude::*;
use telemetry::avro::{AvroDecoder, AvroEncoder};
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;

/// The files of `examples/charging`.
fn charging() -> Files {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/charging");
    service::read_contract(&directory).unwrap()
}

/// All problems that `carstream contract check` would report.
fn problems(files: Files) -> Vec<Problem> {
    match Contract::parse(files) {
        Ok(contract) => contracts::problems(&contract),
        Err(problems) => problems,
    }
}

/// A rule, and how to break it: in which file which text is replaced, and what the problem then says.
struct Rule {
    file: &'static str,
    from: &'static str,
    to: &'static str,
    says: &'static str,
    /// Its line, from 1. `None`: the problem is about the file as a whole.
    line: Option<usize>,
}

const STREAM: &str = "streams/charging/stream.json";
const TOPICS: &str = "streams/charging/topics.json";
const RAW: &str = "streams/charging/charging_raw.avsc";
const CLEAN: &str = "streams/charging/charging.v1.avsc";
const IDS: &str = "streams/charging/ids.json";
const SQL: &str = "streams/charging/query.sql";
const SAMPLES: &str = "streams/charging/samples.ndjson";

const fn rule(
    file: &'static str,
    from: &'static str,
    to: &'static str,
    says: &'static str,
    line: Option<usize>,
) -> Rule {
    Rule { file, from, to, says, line }
}

/// Rules that the parser knows: they are reported together, whichever are broken.
const PARSED: [Rule; 17] = [
    rule(STREAM, r#""topic": "charging.raw""#, r#""topic": "charging.nothing""#, "declared in no topics.json", Some(2)),
    rule(
        STREAM,
        r#""schema": "driver.avsc""#,
        r#""schema": "drivers.avsc""#,
        "the schema drivers.avsc does not exist",
        Some(3),
    ),
    rule(STREAM, r#""key": "vin""#, r#""key": "experience_years""#, "must be a string", Some(3)),
    rule(STREAM, r#""seq"]"#, r#""energy_kwh"]"#, "must be a long that is never null", Some(5)),
    rule(STREAM, r#""dead_letter": "charging.dead-letter""#, r#""dead_letter": "charging""#, "another role", Some(4)),
    rule(
        TOPICS,
        r#""partitions": 4, "retention_hours": 24"#,
        r#""partitions": 0, "retention_hours": 24"#,
        "has 0 partitions",
        Some(2),
    ),
    rule(
        TOPICS,
        r#""retention_hours": 168, "at": "both""#,
        r#""retention_hours": 0, "at": "both""#,
        "0 hours",
        Some(4),
    ),
    rule(
        TOPICS,
        r#""at": "both", "personal": false"#,
        r#""at": "both", "personal": true"#,
        "must be at \"edge\"",
        Some(4),
    ),
    rule(
        TOPICS,
        r#""at": "edge", "personal": true,  "value": "bytes""#,
        r#""at": "edge", "personal": false, "value": "bytes""#,
        "would hold personal data",
        Some(6),
    ),
    rule(TOPICS, r#""cars_publish": "charging""#, r#""cars_publish": "telemetry""#, "is also that of", Some(2)),
    rule(TOPICS, r#""cars_publish": "charging""#, r#""cars_publish": "a/b""#, "expected one level", Some(2)),
    rule(
        TOPICS,
        r#""value": "avro",  "schema": "charging.v1.avsc", "lake": true"#,
        r#""value": "json", "lake": true"#,
        "only Avro values",
        Some(4),
    ),
    rule(RAW, r#""pii": "personal""#, r#""pii": "secret""#, "card: pii is \"secret\"; expected identifier", Some(12)),
    rule(
        RAW,
        r#""unit": "kWh", "min": 0"#,
        r#""unit": "kWh", "max_length": 3, "min": 0"#,
        "field energy_kwh",
        Some(15),
    ),
    rule(
        CLEAN,
        r#"{"name": "car", "type": "string"}"#,
        r#"{"name": "vehicle", "type": "string"}"#,
        "has no column car",
        None,
    ),
    rule(IDS, "100", "2", "is also that of", Some(1)),
    rule(IDS, "charging.v1.avsc", "charging.v9.avsc", "which does not exist", Some(1)),
];

/// Rules of statements and samples: looked at once the files themselves are right.
const PLANNED: [Rule; 6] = [
    rule(SQL, "r.energy_kwh", "r.card", "tagged", Some(12)),
    rule(SQL, "pseudonym(r.vin)", "r.vin", "tagged", Some(4)),
    rule(SQL, "coarsen(r.latitude, 0.05)", "r.latitude", "tagged", Some(10)),
    rule(SQL, "r.price_eur,", "", "price_eur", None),
    rule(SQL, "r.station", "r.stations", "stations", Some(9)),
    rule(SAMPLES, r#""energy_kwh":31.4"#, r#""energy_kwh":-1"#, "out-of-range", Some(2)),
];

fn break_rule(files: &mut Files, rule: &Rule) {
    let text = files.get_mut(rule.file).unwrap();
    assert!(text.contains(rule.from), "{} has no {}", rule.file, rule.from);
    *text = text.replacen(rule.from, rule.to, 1);
}

fn is_reported(problems: &[Problem], rule: &Rule) -> bool {
    problems.iter().any(|problem| problem.what.contains(rule.says) && (problem.line.is_some() || rule.line.is_none()))
}

#[test]
fn the_example_and_the_platform_pass() {
    assert_eq!(problems(Files::new()), []);
    assert_eq!(problems(charging()), []);
}

#[test]
fn each_broken_rule_is_refused_with_its_place() {
    for rule in PARSED.iter().chain(&PLANNED) {
        let mut files = charging();
        break_rule(&mut files, rule);
        let found = problems(files);
        let hit = found.iter().find(|problem| problem.what.contains(rule.says));
        let hit = hit.unwrap_or_else(|| panic!("{} {:?}: {found:#?}", rule.file, rule.to));
        assert!(hit.line.is_some() || rule.line.is_none(), "{hit} has no line");
    }
    let mut files = charging();
    files.remove(SQL);
    assert!(problems(files).iter().any(|p| p.file == SQL && p.what.contains("is missing")));
    let mut files = charging();
    files.insert("streams/charging/querry.sql".into(), String::new());
    assert!(
        problems(files).iter().any(|p| p.file.ends_with("querry.sql") && p.what.contains("not a file of a contract"))
    );
}

/// The problems of the example with one file in place of another, as text.
fn with(file: &str, text: &str) -> Vec<String> {
    let mut files = charging();
    files.insert(file.to_owned(), text.to_owned());
    problems(files).iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_that_cannot_be_read_is_the_only_problem() {
    assert_eq!(with(TOPICS, "{\n"), [format!("{TOPICS}:2: is not valid JSON: EOF while parsing an object")]);
    let topics = charging()[TOPICS].replacen("\"retention_hours\": 24", "\"retention_hours\": \"24h\"", 1);
    let wanted = format!("{TOPICS}:2: charging.raw: retention_hours is \"24h\"; expected a whole number");
    assert_eq!(with(TOPICS, &topics), [wanted]);
    let stream = charging()[STREAM].replace("[\"vin\", \"boot_id\", \"seq\"]", "[\"vin\", \"seq\"]");
    assert_eq!(with(STREAM, &stream), [format!("{STREAM}:5: identity has 2 entries; expected 3")]);
    let wanted = "contract.json:1: extends is \"nix\"; expected platform or nothing";
    assert_eq!(with("contract.json", "{\"extends\": \"nix\"}"), [wanted]);
}

#[test]
fn what_nothing_uses_or_somebody_else_has_is_refused() {
    let unused = with("x.avsc", r#"{"type": "record", "name": "X", "fields": []}"#);
    assert_eq!(unused, ["x.avsc: no topic, stream or ids.json names this schema: remove it"]);
    let topics = charging()[TOPICS].clone();
    let first = topics.lines().nth(1).unwrap();
    let twice = with(TOPICS, &topics.replacen(first, &format!("{first}\n{first}"), 1));
    assert!(twice[0].starts_with(&format!("{TOPICS}:")), "{twice:?}");
    assert!(twice[0].contains("topic charging.raw is also declared in line 2: keep one"), "{twice:?}");
    let wanted = format!("{IDS}:1: id 50 is the platform's: those of a site begin at 100");
    assert_eq!(with(IDS, &charging()[IDS].replace("100", "50")), [wanted]);
    let platform = Contract::platform_files().remove("streams/telemetry/ids.json").unwrap();
    let mut copy: Files = Contract::platform_files();
    copy.retain(|path, _| path.starts_with("streams/telemetry/"));
    assert!(copy.contains_key("streams/telemetry/ids.json") && !platform.is_empty());
    assert_eq!(problems(copy), [], "a copy of a folder of the platform keeps its ids");
}

/// A field of a random stream: its kind in Avro, whether it may be null, and values that it takes.
#[derive(Debug, Clone)]
struct Field {
    kind: usize,
    optional: bool,
    out: bool,
}

const KINDS: [&str; 6] = ["boolean", "int", "long", "float", "double", "string"];

fn random_contract(fields: &[Field]) -> Files {
    let mut files = Files::new();
    let of_kind = |field: &Field| match field.optional {
        true => format!(r#""type": ["null", "{}"], "default": null"#, KINDS[field.kind]),
        false => format!(r#""type": "{}""#, KINDS[field.kind]),
    };
    let named: Vec<_> = fields.iter().enumerate().collect();
    let declared = |(i, field): &(usize, &Field)| format!(r#", {{"name": "f{i}", {}}}"#, of_kind(field));
    let raw: String = named.iter().map(declared).collect();
    let clean: String = named.iter().filter(|(_, field)| field.out).map(declared).collect();
    let record = |name: &str, car: &str, fields: &str| {
        format!(
            r#"{{"type": "record", "name": "{name}", "fields": [{car},
            {{"name": "boot", "type": "long"}}, {{"name": "n", "type": "long"}}{fields}]}}"#
        )
    };
    let mut put = |file: &str, text: String| drop(files.insert(format!("streams/s/{file}"), text));
    put("raw.avsc", record("Raw", r#"{"name": "vin", "type": "string", "pii": "identifier"}"#, &raw));
    put("clean.avsc", record("Clean", r#"{"name": "car", "type": "string"}"#, &clean));
    put("ids.json", r#"{"200": "clean.avsc"}"#.into());
    let columns: String = named.iter().filter(|(_, field)| field.out).map(|(i, _)| format!(", r.f{i}")).collect();
    put("query.sql", format!("CREATE STREAM s AS SELECT pseudonym(r.vin) AS car, r.boot, r.n{columns} FROM s_raw r"));
    put(
        "stream.json",
        r#"{"input": {"table": "s_raw", "topic": "s.raw", "schema": "raw.avsc"},
        "output": {"topic": "s", "schema": "clean.avsc"}, "identity": ["vin", "boot", "n"], "dead_letter": "s.dead"}"#
            .into(),
    );
    put(
        "topics.json",
        r#"{"s.raw": {"partitions": 1, "at": "edge", "personal": true, "value": "json", "cars_publish": "s",
                  "what": ""},
        "s.dead": {"partitions": 1, "at": "edge", "personal": true, "value": "bytes", "what": ""},
        "s": {"partitions": 1, "at": "both", "personal": false, "value": "avro", "schema": "clean.avsc", "lake": true,
              "what": ""}}"#
            .into(),
    );
    put("samples.ndjson", readings(fields).join("\n"));
    files
}

/// Readings that the schema allows: with every optional field, and without.
fn readings(fields: &[Field]) -> Vec<String> {
    let value = |kind: usize| ["true", "-7", "9007199254740991", "1.5", "-2.25e3", r#""ä text""#][kind];
    let reading = |(n, with_optional): (usize, bool)| {
        let given = fields.iter().enumerate().filter(|(_, field)| with_optional || !field.optional);
        let given: String = given.map(|(i, field)| format!(r#","f{i}":{}"#, value(field.kind))).collect();
        format!(r#"{{"vin":"V","boot":1,"n":{n}{given}}}"#)
    };
    [(0, true), (1, false)].map(reading).into()
}

fn a_field() -> impl Strategy<Value = Field> {
    (0..KINDS.len(), any::<bool>(), any::<bool>()).prop_map(|(kind, optional, out)| Field { kind, optional, out })
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 10_000, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn what_the_check_accepts_works_in_the_stages(fields in proptest::collection::vec(a_field(), 0..6)) {
        let files = random_contract(&fields);
        prop_assert_eq!(problems(files.clone()), []);
        let contract = Contract::parse(files).unwrap();
        let stream = contract.stream("s").unwrap();
        let mut trial = Trial::new(stream, &PseudonymKey::from_bytes(&[1; 32]).unwrap()).unwrap();
        for reading in readings(&fields) {
            prop_assert!(matches!(trial.reading(reading.as_bytes()), Ok(Verdict::Clean(_))), "{reading}");
        }
        // What the stage writes, the sink reads, and keeps as Parquet.
        let mut decoder = JsonDecoder::new(&stream.input.schema);
        readings(&fields).iter().for_each(|reading| decoder.decode(reading.as_bytes()).unwrap());
        let raw = decoder.finish();
        let query = trial.query();
        let clean = query.run(&raw, &mut query.tables(stream)).unwrap().batch;
        let messages = AvroEncoder::new(contract.schemas(), 200).unwrap().encode(&clean).unwrap();
        let mut decoder = AvroDecoder::new(contract.schemas(), "clean.avsc").unwrap();
        messages.iter().for_each(|message| decoder.decode(message).unwrap());
        prop_assert_eq!(&decoder.finish(), &clean);
        let name = lake::ObjectName::new("s", 0, 0, 0);
        let mut object = lake::ObjectWriter::new(name, &stream.output.arrow, 200, lake::Encodings::default()).unwrap();
        object.write(&clean, &[0, 1], &[5, 6]).unwrap();
    }

    #[test]
    fn several_broken_rules_are_reported_together(first in 0..PARSED.len(), second in 0..PARSED.len()) {
        let (first, second) = (&PARSED[first], &PARSED[second]);
        // Within one file one may be part of the other's text; a schema that cannot be parsed hides what is about it.
        prop_assume!(first.file == STREAM && second.file == TOPICS);
        let mut files = charging();
        break_rule(&mut files, first);
        break_rule(&mut files, second);
        let found = problems(files);
        prop_assert!(is_reported(&found, first) && is_reported(&found, second), "{found:#?}");
    }
}

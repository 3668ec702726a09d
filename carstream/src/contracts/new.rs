//! The folder of a new stream: small, commented, and valid as it is.

use std::path::Path;

use anyhow::Context;
use contract::{Contract, FIRST_SITE_ID};
use service::{ConfigError, ContractArgs};

use super::NewArgs;

/// Writes the folder. Returns what to do next.
pub(super) fn write(args: &NewArgs) -> anyhow::Result<String> {
    let (name, directory) = (&args.stream, &args.contract);
    let refused = |problem: String| Err(ConfigError(vec![problem]).into());
    if Contract::builtin().stream(name).is_some() {
        return refused(format!("{name} is a stream of the platform: choose another name"));
    }
    ConfigError::check(service::not_a_directory("--contract", directory))?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let present = service::read_contract(directory).map_err(ConfigError)?;
    let args = ContractArgs::of(directory);
    let existing = Contract::parse(present.clone())
        .map_err(|problems| ConfigError(problems.into_iter().map(|problem| args.describe(problem)).collect()))?;
    let folder = directory.join("streams").join(name);
    if existing.stream(name).is_some() || folder.exists() {
        return refused(format!("stream {name} exists: choose another name, or change its files"));
    }
    let taken = |id: &u32| existing.schemas().id(*id).is_some();
    let id = (FIRST_SITE_ID..).find(|id| !taken(id)).expect("there are more ids than schemas");
    let files = files(name, id);
    // The new files are checked first, together with those of the contract.
    let mut all = present;
    all.extend(files.iter().map(|(file, text)| (format!("streams/{name}/{file}"), text.clone())));
    if let Err(problems) = Contract::parse(all) {
        return refused(format!("cannot make stream {name}: {}", contract::describe(&problems).join("; ")));
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (file, text) in &files {
        put(&folder.join(file), text)?;
    }
    let (shown, contract) = (folder.display(), directory.display());
    Ok(format!(
        "{shown}: change its files, then\n  carstream contract check --contract {contract}\n  \
         carstream contract explain {name} --contract {contract}\n  \
         carstream preprocessor try {name} --contract {contract} < {shown}/samples.ndjson"
    ))
}

fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// `thing_seen` as `ThingSeen`.
fn record_name(name: &str) -> String {
    let capital = |part: &str| part[..1].to_uppercase() + &part[1..];
    name.split('_').filter(|part| !part.is_empty()).map(capital).collect()
}

/// File names and texts.
fn files(name: &str, id: u32) -> Vec<(String, String)> {
    let record = record_name(name);
    let fill =
        |text: &str| text.replace("NAME", name).replace("RECORD", &record).replace("ID_ON_THE_WIRE", &id.to_string());
    let texts = [
        ("README.md", README),
        ("stream.json", STREAM),
        ("query.sql", SQL),
        ("NAME_raw.avsc", RAW),
        ("NAME.v1.avsc", CLEAN),
        ("topics.json", TOPICS),
        ("ids.json", IDS),
        ("samples.ndjson", SAMPLES),
    ];
    texts.into_iter().map(|(file, text)| (fill(file), fill(text))).collect()
}

const README: &str = "# Stream NAME

| file | what it says |
| --- | --- |
| stream.json | input, output, reference tables, dead letters; `identity`: car, boot, sequence number; `event_time` |
| query.sql | the statement: what is let out of a reading, and through which function |
| NAME_raw.avsc | what cars send, in JSON: types, bounds, and `pii` tags (identifier, personal, location) |
| NAME.v1.avsc | what leaves the edge, in Avro; a later version is a new file with a new id |
| topics.json | partitions, retention, place, MQTT level of the topics of this stream |
| ids.json | the schema id on the wire where there is no schema registry |
| samples.ndjson | readings as cars send them; `carstream contract check` sends them through the stream |

Cars publish to `vehicles/{vin}/NAME`.
";

const STREAM: &str = r#"{
  "input": {"table": "NAME_raw", "topic": "NAME.raw", "schema": "NAME_raw.avsc"},
  "tables": [],
  "output": {"topic": "NAME", "schema": "NAME.v1.avsc"},
  "identity": ["vin", "boot_id", "seq"],
  "event_time": "event_time_ms",
  "dead_letter": "NAME.dead-letter"
}
"#;

const SQL: &str =
    "-- What leaves the edge of a reading. A column that is tagged as personal data leaves only through a function:
-- pseudonym(identifier), coarsen(location, step). The output has the columns of NAME.v1.avsc, in any order.
CREATE STREAM NAME AS
SELECT
    pseudonym(r.vin) AS car,
    r.boot_id,
    r.seq,
    r.event_time_ms,
    r.amount
FROM NAME_raw r
";

const RAW: &str = r#"{
  "type": "record",
  "name": "RECORDRaw",
  "namespace": "site",
  "doc": "What a car sends, in JSON.",
  "fields": [
    {"name": "vin", "type": "string", "pii": "identifier", "min_length": 17, "max_length": 17},
    {"name": "boot_id", "type": "long", "doc": "drawn by the car at each start", "min": 0, "max": 9007199254740991},
    {"name": "seq", "type": "long", "doc": "counts from 0 since the start, no gaps", "min": 0, "max": 9007199254740991},
    {"name": "event_time_ms", "type": {"type": "long", "logicalType": "timestamp-millis"},
     "min": 946684800000, "max": 4102444800000},
    {"name": "amount", "type": "double", "doc": "change this", "min": 0, "max": 1000000}
  ]
}
"#;

const CLEAN: &str = r#"{
  "type": "record",
  "name": "RECORD",
  "namespace": "site",
  "doc": "What leaves the edge.",
  "fields": [
    {"name": "car", "type": "string", "doc": "the pseudonym of the car"},
    {"name": "boot_id", "type": "long"},
    {"name": "seq", "type": "long"},
    {"name": "event_time_ms", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "amount", "type": "double"}
  ]
}
"#;

const TOPICS: &str = r#"{
  "NAME.raw": {
    "partitions": 4, "retention_hours": 24, "at": "edge", "personal": true, "value": "json", "cars_publish": "NAME",
    "what": "as the cars sent it; key: VIN"
  },
  "NAME.dead-letter": {
    "partitions": 4, "retention_hours": 168, "at": "edge", "personal": true, "value": "bytes",
    "what": "what could not be used, as sent, with the reason in headers"
  },
  "NAME": {
    "partitions": 4, "retention_hours": 168, "at": "both", "personal": false,
    "value": "avro", "schema": "NAME.v1.avsc", "lake": true, "what": "clean; key: pseudonym of the car"
  }
}
"#;

const IDS: &str = "{\"ID_ON_THE_WIRE\": \"NAME.v1.avsc\"}\n";

const SAMPLES: &str = r#"{"vin":"WVWZZZ1JZXW000001","boot_id":1,"seq":0,"event_time_ms":1795219200000,"amount":12.5}
{"vin":"WVWZZZ1JZXW000001","boot_id":1,"seq":1,"event_time_ms":1795219260000,"amount":0}
"#;

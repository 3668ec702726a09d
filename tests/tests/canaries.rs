//! Nothing personal gets past the preprocessor.
//!
//! A demo runs as a process, with every log line and every metric collected. Then each personal value that its cars
//! sent (VINs, names, addresses, plates, exact positions, …) is looked for in every byte of everything past the
//! preprocessor: topics with keys and headers, cloud log, Parquet, models, logs, metrics.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use arrow::array::AsArray;
use event_log::{Log, LogUrl, Range, Read};
use memchr::memmem::Finder;
use test_support::process::OwnedChild;
use whole_pipeline_tests::binary;

/// Shorter ones would be found by chance.
const SHORTEST_NEEDLE: usize = 6;

/// Exact positions, as the 8 bytes of their doubles: a few hundred are enough to find a leak of the column.
const POSITIONS: usize = 400;

#[test]
fn no_personal_value_is_found_past_the_preprocessor() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("demo");
    let (said, metrics) = run_demo(&keep);

    let edge = event_log::open(&LogUrl::Directory(keep.join("edge-log")), &[]).unwrap();
    let cloud = event_log::open(&LogUrl::Directory(keep.join("cloud-log")), &[]).unwrap();
    let needles = needles(&edge);
    for kind in ["vin", "name", "email", "phone", "licence_number", "address", "driver", "plate", "latitude"] {
        assert!(
            needles.values().any(|kinds| kinds.contains(kind)),
            "no canary of kind {kind}: the test would prove nothing"
        );
    }

    // That the search finds anything at all is shown where the values are allowed to be.
    let raw = bytes_of(&edge, &["telemetry.raw", "drivers", "faults.raw"]);
    let missing = needles.keys().filter(|needle| Finder::new(needle).find(&raw).is_none());
    // Positions are text in JSON, so their bytes do not occur.
    assert_eq!(missing.filter(|needle| needle.len() != 8).count(), 0);

    let mut places = vec![
        (
            "clean topics at the edge".to_owned(),
            bytes_of(&edge, &["telemetry", "faults", "scores", "alerts", "scorer.state"]),
        ),
        ("cloud topics".to_owned(), bytes_of(&cloud, &["telemetry", "faults", "scores", "alerts", "models"])),
        ("what the process said".to_owned(), said.into_bytes()),
        ("metrics".to_owned(), metrics.into_bytes()),
    ];
    for folder in ["cloud-log", "lake"] {
        for file in files(&keep.join(folder)) {
            let bytes = std::fs::read(&file).unwrap();
            places.push((file.display().to_string(), bytes));
            if file.extension().is_some_and(|e| e == "parquet") {
                places.push((format!("{} decoded", file.display()), decoded(&file)));
            }
        }
    }
    assert!(places.iter().any(|(name, _)| name.ends_with(".parquet decoded")), "no Parquet was written");
    assert!(places.iter().any(|(name, _)| name.ends_with("manifest.json")), "no model was written");
    for (name, bytes) in &places {
        assert!(!bytes.is_empty() || name.contains("-log/") || name.ends_with(".lock"), "{name} is empty");
        for (needle, kinds) in &needles {
            let found = Finder::new(needle).find(bytes);
            assert!(found.is_none(), "{kinds:?} in {name}: {:?}", String::from_utf8_lossy(needle));
        }
    }
}

/// Runs a small demo with all logging on; returns everything that it said, and its metrics.
fn run_demo(keep: &Path) -> (String, String) {
    let mut command = Command::new(binary("carstream"));
    command
        .args(["demo", "--cars", "150", "--duration", "20s", "--seed", "11", "--json", "--log-level", "trace"])
        .args(["--admin", "127.0.0.1:0", "--keep"])
        .arg(keep)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut demo = OwnedChild::spawn(&mut command).unwrap();
    let (address, addresses) = mpsc::channel();
    let stderr = BufReader::new(demo.stderr.take().unwrap());
    let logs = std::thread::spawn(move || {
        let mut said = String::new();
        for line in stderr.lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("metrics at http://") {
                let _ = address.send(rest.split('/').next().unwrap().to_owned());
            }
            said.push_str(&line);
            said.push('\n');
        }
        said
    });
    let address = addresses.recv_timeout(Duration::from_secs(60)).expect("the demo says where its metrics are");
    let mut metrics = String::new();
    while demo.try_wait().unwrap().is_none() {
        // The last call may meet the end of the process.
        if let Ok(text) = scrape(&address) {
            metrics = text;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    let mut said = logs.join().unwrap();
    assert!(demo.wait().unwrap().success(), "{said}");
    demo.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(metrics.contains("carstream_"), "no metrics were served: {metrics}");
    (said, metrics)
}

fn scrape(address: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Every personal value that the cars sent, and the fields it was in.
fn needles(edge: &Arc<dyn Log>) -> BTreeMap<Vec<u8>, BTreeSet<String>> {
    let mut needles = BTreeMap::<_, BTreeSet<_>>::new();
    let mut positions = 0;
    for topic in ["drivers", "telemetry.raw", "faults.raw"] {
        each_record(edge, topic, |_, value, _| {
            let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(value) else { return };
            for (field, value) in fields {
                let needle = match (field.as_str(), &value) {
                    (
                        "vin" | "name" | "email" | "phone" | "licence_number" | "address" | "driver" | "plate"
                        | "workshop",
                        serde_json::Value::String(text),
                    ) => text.clone().into_bytes(),
                    ("trip_id", serde_json::Value::Number(number)) => number.to_string().into_bytes(),
                    ("latitude" | "longitude", value) if positions < POSITIONS && value.is_f64() => {
                        positions += 1;
                        value.as_f64().unwrap().to_le_bytes().to_vec()
                    }
                    _ => continue,
                };
                if needle.len() >= SHORTEST_NEEDLE {
                    needles.entry(needle).or_default().insert(field);
                }
            }
        });
    }
    needles
}

/// Keys, values and headers of topics, one after the other.
fn bytes_of(log: &Arc<dyn Log>, topics: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for topic in topics {
        each_record(log, topic, |key, value, headers| {
            bytes.extend_from_slice(key);
            bytes.push(0);
            bytes.extend_from_slice(value);
            bytes.push(0);
            bytes.extend_from_slice(headers);
        });
    }
    bytes
}

fn each_record(log: &Arc<dyn Log>, topic: &str, mut then: impl FnMut(&[u8], &[u8], &[u8])) {
    let ranges = (0..).zip(log.describe(topic).unwrap().partitions).map(|(partition, bounds)| Range {
        topic: topic.into(),
        partition,
        start: bounds.first,
        end: Some(bounds.next),
    });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    loop {
        match reader.next(4096, Duration::from_secs(1)).unwrap() {
            Read::Batch(batch) => {
                for record in batch.iter() {
                    let headers: Vec<u8> = record
                        .headers
                        .flat_map(|(name, value)| [name.as_bytes(), b"=", value, b"\0"].concat())
                        .collect();
                    then(record.key, record.value.unwrap_or_default(), &headers);
                }
            }
            Read::Idle => {}
            Read::End => return,
        }
    }
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// All text and all doubles of a Parquet file, uncompressed.
fn decoded(file: &Path) -> Vec<u8> {
    let file = std::fs::File::open(file).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let mut bytes = Vec::new();
    for rows in reader.map(Result::unwrap) {
        for column in rows.columns() {
            match column.data_type() {
                arrow::datatypes::DataType::Utf8 => {
                    column.as_string::<i32>().iter().flatten().for_each(|text| {
                        bytes.extend_from_slice(text.as_bytes());
                        bytes.push(0);
                    });
                }
                arrow::datatypes::DataType::Float64 => {
                    let doubles = column.as_primitive::<arrow::datatypes::Float64Type>();
                    doubles.values().iter().for_each(|double| bytes.extend_from_slice(&double.to_le_bytes()));
                }
                _ => {}
            }
        }
    }
    bytes
}

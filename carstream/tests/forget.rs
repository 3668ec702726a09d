//! `carstream forget` on logs that no stage has open; and the audit, to which its requests are no readings.
//!
//! With all stages: `tests/tests/kills` (the edge box), `tests/tests/binaries` (on Kafka).
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, Record, append_and_wait};
use support::{At, CARS, SEQS, Site, carstream, records, vin};
use test_support::clock::now_ms;

const ALL: u64 = CARS as u64 * SEQS as u64;

fn append(log: &Arc<dyn Log>, topic: &str, key: &str, value: Option<&[u8]>, headers: &[(&str, &[u8])]) {
    let record = Record { key: key.as_bytes(), value, headers, timestamp_ms: now_ms() };
    assert!(append_and_wait(log, &topic.into(), &record, Duration::from_secs(60)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_forget_a_car_is_no_reading() {
    let site = Site::with(|_, _, _| 1).await;
    let (vin, pseudonym) = (vin(1), site.key.pseudonym(&vin(1)));
    let ask = |log: &Arc<dyn Log>, topic: &str, key: &str| append(log, topic, key, None, &[(contract::FORGET, b"1")]);
    ask(&site.edge, "telemetry.raw", &vin);
    ask(&site.edge, "telemetry", &pseudonym);
    ask(&site.cloud, "telemetry", &pseudonym);
    site.caught_up();
    for ledger in [true, false] {
        let report = site.audit_with(site.sources(), ledger).await.unwrap();
        assert!(report.is_clean() && report.notes.is_empty(), "{report}");
        assert_eq!([report.ledger.raw, report.ledger.clean, report.ledger.replicated], [ALL; 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_and_what_stays_is_said() {
    let site = Site::with(|at, _, _| usize::from(at != At::Lake)).await;
    append(&site.edge, "drivers", &vin(1), Some(b"{}"), &[]);
    let (pseudonym, last) = (site.key.pseudonym(&vin(1)), |log: &Arc<dyn Log>, topic: &str| {
        let of_car = records(log, topic).into_iter().filter(|record| record.2 == vin(1).as_bytes());
        of_car.max_by_key(|record| record.1).map(|(_, _, _, value, headers)| (value, headers))
    });
    let directory = site.into_directory();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (log, key) = (path("edge"), path("site.key"));
    for (args, why) in [
        (&["--vin", "a/b", "--pseudonym-key-file", &key][..], "1 to 32 letters and digits"),
        (&["--vin", "V"], "is missing: the key that the site's preprocessor uses"),
    ] {
        let (code, _, said) = carstream(&[&["forget", "--log", &log][..], args].concat());
        assert!(code == Some(64) && said.contains(why), "{code:?} {said}");
    }
    let none = path("none");
    let (code, _, said) = carstream(&["forget", "--log", &none, "--vin", "V", "--pseudonym-key-file", &key]);
    assert!(code == Some(64) && said.contains("does not exist"), "{code:?} {said}");

    let (code, said, error) = carstream(&["forget", "--log", &log, "--vin", &vin(1), "--pseudonym-key-file", &key]);
    assert_eq!(code, Some(1), "no stage runs: {said} {error}");
    assert!(error.contains("not confirmed yet by preprocessor-telemetry, scorer"), "{error}");
    assert!(said.starts_with(&format!("pseudonym of the car: {pseudonym}\n")), "{said}");
    for line in [
        "removed from drivers",
        "not yet by: preprocessor-telemetry",
        "not yet by: scorer",
        "  telemetry.raw                under the VIN, until 20",
        "  telemetry.dead-letter        under the VIN, until 20",
        "  telemetry                    under the pseudonym, until 20",
        "  the rows of faults, scores, telemetry in the lake, under the pseudonym: carstream compact erases those of",
        "  what the sink has set aside under _undecodable/ in the lake: until it is deleted by hand",
    ] {
        assert!(said.lines().any(|said| said.starts_with(line)), "{line:?} is not in\n{said}");
    }
    assert!(!said.contains(&vin(1)) && !error.contains(&vin(1)), "{said} {error}");
    let edge = event_log::open(&log.parse().unwrap(), &[]).unwrap();
    let (value, headers) = last(&edge, "telemetry.raw").unwrap();
    assert_eq!((value.as_slice(), headers.len(), headers[0].0.as_str()), (&b""[..], 1, contract::FORGET));
    assert_eq!(last(&edge, "drivers"), Some((Vec::new(), Vec::new())), "a tombstone");
}

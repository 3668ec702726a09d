//! A car that asked to be forgotten goes from the lake: what the audit excuses and what it does not, and the whole way
//! from the reading to an object without it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Schema};
use carstream::audit::{Kind, Report, Sources};
use carstream::forget::{self, forget};
use event_log::partition_for_key;
use lake::{Days, Encodings, ObjectName, ObjectWriter};
use support::{At, BOOT, CARS, SEQS, Site, carstream, ends, vin};
use telemetry::pseudonym::PseudonymKey;
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The car that asks.
const ASKS: u32 = 1;

fn all_days() -> Days {
    "1970-01-01".parse().unwrap()..="9999-12-31".parse().unwrap()
}

/// The pseudonym of a car, and the partition of its readings.
fn place_of(site: &Site, car: u32) -> (String, u32) {
    let pseudonym = site.key.pseudonym(&vin(car));
    let partition = partition_for_key(pseudonym.as_bytes(), 4);
    (pseudonym, partition)
}

/// As the sink does, before an offset of the car's partition, which is the end of the topic in the cloud if none is
/// named.
async fn ask(site: &Site, before: Option<u64>) {
    let (pseudonym, partition) = place_of(site, ASKS);
    let before = before.unwrap_or_else(|| ends(&site.cloud, "telemetry")[partition as usize]);
    site.lake.request_erasure("telemetry", partition, before, &pseudonym).await.unwrap();
}

async fn erase(site: &Site) -> u64 {
    let done = site.lake.compact("telemetry", contract::CAR, &all_days(), 1 << 20).await.unwrap();
    assert_eq!(done.left, Vec::<String>::new());
    done.erased
}

/// Audits all that the site has, and parts of it, with a ledger and without.
async fn audits(site: &Site) -> Vec<Report> {
    let (edge, cloud, lake) = (Some(site.edge.clone()), Some(site.cloud.clone()), Some(site.lake.clone()));
    let mut reports = Vec::new();
    for sources in [
        site.sources(),
        Sources::new(edge, None, lake.clone()),
        Sources::new(None, cloud, lake.clone()),
        Sources::new(None, None, lake),
    ] {
        for ledger in [true, false] {
            reports.push(site.audit_with(sources.clone(), ledger).await.unwrap());
        }
    }
    reports
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_on_request_is_a_line_of_its_own() {
    let site = Site::with(|_, _, _| 1).await;
    ask(&site, None).await;
    for report in audits(&site).await {
        assert!(report.is_clean() && report.erased == 0, "{report}");
        let note = format!("  ! {SEQS} rows of cars that asked to be forgotten are still in the lake");
        assert!(report.to_string().contains(&note), "{report}");
    }
    assert_eq!(erase(&site).await, SEQS as u64);
    for report in audits(&site).await {
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.erased, report.ledger.lost, report.gaps), (SEQS as u64, 0, 0), "{report}");
        assert_eq!(report.ledger.parquet_rows, u64::from(CARS - 1) * SEQS as u64);
        let text = report.to_string();
        assert!(text.lines().any(|line| line.starts_with(&format!("  erased on request{SEQS:>29}   "))), "{text}");
        assert!(text.contains("1 requests under _forget/") && !text.contains("still in the lake"), "{text}");
    }
    // What retention has removed from the logs since then is still known to have been erased.
    let lake_alone = Sources::new(None, None, Some(site.lake.clone()));
    assert!(site.audit_with(lake_alone, true).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_request_what_is_erased_is_lost() {
    let site = Site::with(|_, _, _| 1).await;
    ask(&site, None).await;
    erase(&site).await;
    std::fs::remove_dir_all(site.path("lake/_forget")).unwrap();
    for (i, report) in audits(&site).await.into_iter().enumerate() {
        assert_eq!((report.erased, report.counts[&Kind::Objects]), (0, 1), "{report}");
        assert!(report.to_string().contains("of its rows were erased, but no request in the lake"), "{report}");
        // The lake alone does not know which readings these were.
        let is_known = i != 7;
        assert_eq!(report.ledger.lost, if is_known { SEQS as u64 } else { 0 }, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_excuses_nothing_else() {
    // Another car's reading was lost, or one of the car's own before there was anything to erase.
    for lost in [(0, 5), (2, 5), (ASKS, 5)] {
        let site = Site::with(|at, car, seq| usize::from(at != At::Lake || (car, seq) != lost)).await;
        ask(&site, None).await;
        let erased = erase(&site).await;
        let report = site.audit().await;
        assert_eq!((report.counts[&Kind::Missing], report.ledger.lost, report.erased), (1, 1, erased), "{report}");
        assert_eq!(report.discrepancies[0].car, Some(place_of(&site, lost.0).0), "{report}");
    }
    // A reading that the car sent after its request.
    let last = SEQS - 1;
    let site = Site::with(|at, car, seq| usize::from(at != At::Lake || (car, seq) != (ASKS, last))).await;
    let (_, partition) = place_of(&site, ASKS);
    ask(&site, Some(ends(&site.cloud, "telemetry")[partition as usize] - 1)).await;
    erase(&site).await;
    let report = site.audit().await;
    let of_car: Vec<_> = report.discrepancies.iter().map(|missing| missing.car.clone()).collect();
    assert_eq!((report.ledger.lost, of_car), (1, vec![Some(place_of(&site, ASKS).0)]), "{report}");
}

/// Of another boot, which is judged before the one that was erased.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_reading_that_is_lost_is_told_from_erased_ones() {
    let site = Site::with(|_, _, _| 1).await;
    ask(&site, None).await;
    erase(&site).await;
    let (_, partition) = place_of(&site, ASKS);
    let start = ends(&site.cloud, "telemetry")[partition as usize];
    site.avro(At::Cloud, &[(ASKS, BOOT - 1, 0)], now_ms());
    // The sink has passed it.
    let schema = &contract::Contract::builtin().schemas().file("telemetry.v2.avsc").unwrap().arrow;
    let name = ObjectName::new("telemetry", partition, start, now_ms());
    let writer = ObjectWriter::new(name, schema, 2, Encodings::default()).unwrap();
    site.lake.put_object(&writer.finish(start + 1).unwrap()).await.unwrap();
    let sources = Sources::new(None, Some(site.cloud.clone()), Some(site.lake.clone()));
    let report = site.audit_with(sources, false).await.unwrap();
    let missing = &report.discrepancies[0];
    assert_eq!((report.counts[&Kind::Missing], missing.boot_id, missing.seq), (1, Some(BOOT - 1), Some(0)), "{report}");
}

/// Its later rows stay, and the numbers before them are no gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_car_that_returns_is_accounted_for() {
    let site = Site::new();
    let readings = |seqs: std::ops::Range<i64>| seqs.map(|seq| (ASKS, BOOT, seq)).collect::<Vec<_>>();
    for (hop, time_ms) in [(At::Clean, now_ms()), (At::Cloud, now_ms())] {
        site.avro(hop, &readings(0..SEQS), time_ms);
    }
    site.objects(&readings(0..SEQS), 0).await;
    ask(&site, Some(40)).await;
    assert_eq!(erase(&site).await, 40);
    let whole = [Some(site.cloud.clone()), None].map(|cloud| Sources::new(None, cloud, Some(site.lake.clone())));
    for sources in whole {
        let report = site.audit_with(sources, false).await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.erased, report.ledger.parquet_rows), (40, SEQS as u64 - 40));
    }
}

/// Preprocessor and sink process what the log holds, and end.
async fn process(site: &Site, key_file: &Path) {
    let (log, stop) = (site.edge.clone(), CancellationToken::new());
    let args = preprocessor::Args::new(log.url().clone(), key_file.to_owned());
    let metrics = preprocessor::Metrics::new(&mut Default::default());
    let running = preprocessor::run_on(&args, log.clone(), metrics, stop.clone());
    let all_read = async {
        let began = Instant::now();
        let positions = || log.committed("preprocessor-telemetry", "telemetry.raw").unwrap();
        let read = || positions().into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>();
        while read() != ends(&log, "telemetry.raw") {
            assert!(began.elapsed() < PATIENCE, "the preprocessor does nothing");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, all_read);
    ended.unwrap();
    let args = sink::Args::new(log.url().clone(), site.lake.url().clone());
    let metrics = sink::Metrics::new(&mut Default::default());
    sink::run_on(&args, log, site.lake.clone(), metrics, stop).await.unwrap();
}

/// Whether any file of the lake contains this pseudonym, in a row or elsewhere, counted or not.
async fn is_in_the_lake(site: &Site, car: &str) -> bool {
    let schema = Arc::new(Schema::new(vec![Field::new(contract::CAR, DataType::Utf8, false)]));
    for file in site.lake.list("").await.unwrap() {
        let bytes = site.lake.get(&file).await.unwrap();
        if file.contains(car) || bytes.windows(car.len()).any(|window| window == car.as_bytes()) {
            return true;
        }
        let Some(name) = ObjectName::parse(&file) else { continue };
        let footer = site.lake.footer(&name).await.unwrap();
        let mut reader = site.lake.read_object(name, &footer, schema.clone());
        while let Some(rows) = reader.next().await.unwrap() {
            if rows.batch.column(0).as_string::<i32>().iter().any(|other| other == Some(car)) {
                return true;
            }
        }
    }
    false
}

/// Runs `carstream compact`; what it says, and how many rows of the readings it has erased.
fn compact(lake: &Path) -> (String, u64) {
    let (code, said, error) = carstream(&["compact", "--lake", &lake.display().to_string()]);
    assert_eq!(code, Some(0), "{said}{error}");
    let erased = |line: &str| line.strip_suffix(" rows erased")?.rsplit(' ').next()?.parse().ok();
    let erased = said.lines().find(|line| line.starts_with("telemetry: ")).and_then(erased).unwrap_or(0);
    (said, erased)
}

/// `carstream forget`, while no scorer runs.
fn have_forgotten(site: &Site, former: &[String]) -> String {
    let contract = contract::Contract::builtin();
    let at = forget::Site { log: &site.edge, contract, key: &site.key, scorer_group: "scorer" };
    let stop = CancellationToken::new();
    tokio::task::block_in_place(|| forget(&at, &vin(ASKS), former, Duration::ZERO, &stop)).unwrap().text
}

const DAY_MS: i64 = 24 * 3600 * 1000;

fn readings(seqs: std::ops::Range<i64>) -> Vec<(u32, i64, i64)> {
    seqs.flat_map(|seq| (0..CARS).map(move |car| (car, BOOT, seq))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_reading_to_an_object_without_it() {
    let site = Site::new();
    let (asks, other) = (place_of(&site, ASKS).0, place_of(&site, 2).0);
    let (lake, key) = (site.path("lake"), site.path("site.key"));
    for seqs in [0..20, 20..40] {
        site.raw(&readings(seqs), now_ms() - 3 * DAY_MS);
        process(&site, &key).await;
    }
    // The objects of this day are large before the car asks, those of the next one are small.
    let (said, erased) = compact(&lake);
    assert!(said.starts_with("telemetry: ") && erased == 0, "{said}");
    site.raw(&readings(40..50), now_ms() - 2 * DAY_MS);
    process(&site, &key).await;
    assert!(is_in_the_lake(&site, &asks).await && is_in_the_lake(&site, &other).await);
    let said = have_forgotten(&site, &[]);
    assert!(said.contains("in the lake, under the pseudonym: carstream compact erases those of a day"), "{said}");
    process(&site, &key).await;
    assert_eq!(compact(&lake).1, 50);
    assert!(!is_in_the_lake(&site, &asks).await && is_in_the_lake(&site, &other).await);
    assert_eq!(compact(&lake).0, "", "nothing is left to do");

    // It comes back, and is another car.
    site.raw(&[(ASKS, BOOT + 1, 0), (ASKS, BOOT + 1, 1)], now_ms() - 2 * DAY_MS);
    process(&site, &key).await;
    assert_eq!(compact(&lake).1, 0);
    let mut rows = 0;
    for object in site.lake.objects("telemetry").await.unwrap() {
        rows += site.lake.footer(&object).await.unwrap().rows;
    }
    assert_eq!(rows, 2 * 50 + 2);
    let directory = site.into_directory();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let places = ["--edge-log", &path("edge"), "--lake", &path("lake"), "--pseudonym-key-file", &path("site.key")];
    let (code, said, error) = carstream(&[&["audit", "--scores", "no"], &places[..]].concat());
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains("erased on request                           50   rows of cars"), "{said}");
}

/// The same car had another pseudonym before.
#[tokio::test(flavor = "multi_thread")]
async fn rows_under_a_former_key_go_too() {
    let site = Site::new();
    let (lake, former_key) = (site.path("lake"), site.path("former.key"));
    std::fs::write(&former_key, "the key that the site had before").unwrap();
    let former = PseudonymKey::from_file(&former_key).unwrap().pseudonym(&vin(ASKS));
    site.raw(&readings(0..10), now_ms() - 2 * DAY_MS);
    process(&site, &former_key).await;
    site.raw(&readings(10..30), now_ms() - 2 * DAY_MS);
    process(&site, &site.path("site.key")).await;
    let names = [former.clone(), place_of(&site, ASKS).0];
    assert!(is_in_the_lake(&site, &names[0]).await && is_in_the_lake(&site, &names[1]).await);
    let said = have_forgotten(&site, std::slice::from_ref(&former));
    assert!(said.contains(&format!("former pseudonym of the car: {former}\n")), "{said}");
    process(&site, &site.path("site.key")).await;
    assert_eq!(compact(&lake).1, 30);
    assert!(!is_in_the_lake(&site, &names[0]).await && !is_in_the_lake(&site, &names[1]).await);
}

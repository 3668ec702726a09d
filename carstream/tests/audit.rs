//! The audit finds every kind of fault, names it with its places, and finds none where there is none.
//!
//! Each kind of fault is one case on the same small site: one file.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use carstream::audit::{Evidence, Kind, Report, Scores, Sources, audit};
use event_log::{Log, Outputs, Record, TopicSpec, partition_for_key};
use lake::OffsetRange;
use support::{At, BOOT, CARS, HOPS, SEQS, Site, carstream, commit, ends, vin};
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

const ALL: u64 = CARS as u64 * SEQS as u64;

/// The one kind of discrepancy that there is, and how often.
fn only(report: &Report) -> (Kind, u64) {
    assert_eq!(report.counts.len(), 1, "{report}");
    let (kind, count) = report.counts.first_key_value().unwrap();
    (*kind, *count)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_wrong_nothing_is_found() {
    let site = Site::with(|_, _, _| 1).await;
    let report = site.audit().await;
    assert!(report.is_clean() && report.caught_up && report.notes.is_empty(), "{report}");
    let l = report.ledger;
    assert_eq!([l.sent, l.acknowledged, l.raw, l.clean, l.replicated, l.parquet_rows, l.scored], [ALL; 7]);
    assert_eq!([l.duplicates_removed, l.dead_letters, l.lost, l.doubled], [0; 4]);
    // Also without a ledger, and from either end alone.
    let parts = [
        site.sources(),
        Sources::new(Some(site.edge.clone()), None, None),
        Sources::new(None, Some(site.cloud.clone()), Some(site.lake.clone())),
        Sources::new(None, None, Some(site.lake.clone())),
    ];
    for sources in parts {
        for ledger in [true, false] {
            let report = site.audit_with(sources.clone(), ledger).await.unwrap();
            assert!(report.is_clean() && report.notes.is_empty(), "{report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_at_every_hop_with_its_neighbours() {
    for (hop, name) in HOPS {
        let site = Site::with(|at, car, seq| usize::from((at, car, seq) != (hop, 1, 64))).await;
        let report = site.audit().await;
        assert_eq!(only(&report), (Kind::Missing, 1), "{name}: {report}");
        assert_eq!((report.ledger.lost, report.ledger.doubled), (1, 0));
        let discrepancy = &report.discrepancies[0];
        assert_eq!(
            (discrepancy.hop, discrepancy.car.clone(), discrepancy.boot_id, discrepancy.seq),
            (name, Some(site.key.pseudonym(&vin(1))), Some(BOOT), Some(64))
        );
        // Where it is, and between which two it belongs.
        assert_eq!(discrepancy.places.iter().filter(|place| place.starts_with("in ")).count(), 4, "{discrepancy}");
        for side in ["after", "before"] {
            let found = discrepancy.places.iter().any(|place| place.starts_with("not in") && place.contains(side));
            assert!(found, "{discrepancy}");
        }
        let text = report.to_string();
        assert!(!text.contains(&vin(1)) && !report.to_json().contains(&vin(1)), "a VIN is printed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_doubled_is_named_with_both_places() {
    for (hop, name) in HOPS {
        let site = Site::with(|at, car, seq| if (at, car, seq) == (hop, 2, 0) { 2 } else { 1 }).await;
        let report = site.audit().await;
        if hop == At::Raw {
            assert!(report.is_clean(), "a car may send again: {report}");
            assert_eq!(report.ledger.duplicates_removed, 1);
            continue;
        }
        assert_eq!(only(&report), (Kind::Doubled, 1), "{name}: {report}");
        assert_eq!((report.ledger.lost, report.ledger.doubled), (0, 1));
        let discrepancy = &report.discrepancies[0];
        assert_eq!((discrepancy.hop, discrepancy.seq), (name, Some(0)));
        assert_eq!(discrepancy.places.len(), 6, "{discrepancy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_finished_ledger_knows_every_reading() {
    let site = Site::with(|_, _, _| 1).await;
    let mut known: Vec<_> = (0..CARS).flat_map(|car| (0..SEQS).map(move |seq| (car, seq))).collect();
    known.retain(|reading| *reading != (0, 3));
    let rows: Vec<_> = known.iter().map(|(car, seq)| (*car, *seq, "valid", "acknowledged")).collect();
    site.ledger(&rows, true);
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::Unknown, 1), "{report}");
    assert_eq!((report.discrepancies[0].seq, report.unknown, report.ledger.doubled), (Some(3), 1, 1));

    // Its simulator was killed, in the middle of a line.
    site.ledger(&rows, false);
    let text = std::fs::read_to_string(site.ledger_file()).unwrap();
    std::fs::write(site.ledger_file(), &text[..text.len() - 20]).unwrap();
    let report = site.audit().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.unknown, report.ledger_complete), (2, Some(false)));
    assert!(report.notes.iter().any(|note| note.contains("is incomplete")), "{report}");
    assert!(report.notes.iter().any(|note| note.contains("2 readings that are not in it")), "{report}");

    // Two ledgers of two simulators together know all.
    site.ledger(&rows, true);
    let other = site.path("other.csv");
    let header = text.lines().next().unwrap();
    std::fs::write(&other, format!("{header}\n{},{BOOT},3,valid,acknowledged,1,2,3,1\n", vin(0))).unwrap();
    std::fs::copy(site.path("ledger.csv.run"), site.path("other.csv.run")).unwrap();
    let evidence = Evidence { ledgers: vec![site.ledger_file(), other], key: Some(site.key.clone()) };
    let report = audit(site.sources(), evidence, None, CancellationToken::new()).await.unwrap();
    assert!(report.is_clean() && report.ledger_complete == Some(true), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_is_nowhere_or_everywhere_once() {
    let outcome = |seq| if seq < 10 { "unacknowledged" } else { "acknowledged" };
    let rows = || -> Vec<_> {
        (0..CARS).flat_map(|car| (0..SEQS).map(move |seq| (car, seq, "valid", outcome(seq)))).collect()
    };
    let site = Site::with(|_, _, seq| usize::from(seq >= 5)).await;
    site.ledger(&rows(), true);
    let report = site.audit().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.unacknowledged, 30);

    let site = Site::with(|at, _, seq| usize::from(seq >= 5 || at == At::Raw && seq == 2)).await;
    site.ledger(&rows(), true);
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::Missing, CARS.into()), "{report}");
    assert_eq!((report.discrepancies[0].hop, report.discrepancies[0].seq), ("clean", Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_unusable_raw_record_is_one_dead_letter() {
    let broken =
        |seq: i64| format!("{{\"vin\":\"{}\",\"boot_id\":{BOOT},\"seq\":{seq},\"speed\":", vin(1)).into_bytes();
    let anything = || b"speed=fast".to_vec();
    let rows = |broken: &[i64]| -> Vec<_> {
        let valid = (0..CARS).flat_map(|car| (0..SEQS).map(move |seq| (car, seq, "valid", "acknowledged")));
        valid.chain(broken.iter().map(|seq| (1, *seq, "broken", "acknowledged"))).collect()
    };
    // Two that say which they are, one that does not.
    let site = Site::with(|_, _, _| 1).await;
    site.ledger(&rows(&[70, 71, 72]), true);
    let bytes = [broken(70), broken(71), anything()];
    let places = site.raw_bytes(&bytes.clone().map(|bytes| (1, bytes)), now_ms());
    site.caught_up();
    for (bytes, place) in bytes.iter().zip(&places).skip(1) {
        site.dead_letter(1, bytes, *place, "malformed-json", now_ms());
    }
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::NoDeadLetter, 1), "{report}");
    let (partition, offset) = places[0];
    assert_eq!(report.discrepancies[0].places, [format!("telemetry.raw/{partition} offset {offset}")]);
    assert_eq!((report.ledger.lost, report.ledger.dead_letters), (1, 2));

    site.dead_letter(1, &bytes[0], places[0], "malformed-json", now_ms());
    let report = site.audit().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.dead_letters_by_reason, [("malformed-json".to_owned(), 3)]);

    // One more was acknowledged, and one more of those that say nothing.
    site.ledger(&rows(&[70, 71, 72, 73, 74]), true);
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::BrokenMissing, 2), "{report}");
    assert_eq!((report.discrepancies[0].seq, report.ledger.lost), (Some(72), 2));

    site.ledger(&rows(&[70, 71, 72]), true);
    site.dead_letter(1, &bytes[0], places[0], "malformed-json", now_ms());
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::DoubledDeadLetter, 1), "{report}");
    assert_eq!(report.ledger.doubled, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_names_a_raw_record_that_is_there() {
    let site = Site::with(|_, _, _| 1).await;
    site.dead_letter(1, b"speed=fast", (0, 1_000_000), "malformed-json", now_ms());
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::StrayDeadLetter, 1), "{report}");
    assert!(report.to_string().contains("telemetry.raw/0 offset 1000000, which holds no record"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_has_removed_is_not_held_against_a_hop() {
    let site = Site::new();
    let (old_ms, new_ms) = (now_ms() - 48 * 3_600_000, now_ms());
    let old: Vec<_> = (0..CARS).flat_map(|car| (0..40).map(move |seq| (car, BOOT, seq))).collect();
    let new: Vec<_> = (0..CARS).flat_map(|car| (40..80).map(move |seq| (car, BOOT, seq))).collect();
    let all = [&old[..], &new].concat();
    site.raw(&old, old_ms);
    site.clock.pass(Duration::from_secs(48 * 3600));
    site.raw(&new, new_ms);
    for hop in [At::Clean, At::Cloud, At::Scores] {
        site.avro(hop, &old, old_ms);
        site.avro(hop, &new, new_ms);
    }
    site.objects(&all, 0).await;
    site.caught_up();
    site.edge.maintain().unwrap();
    let first: u64 = site.edge.describe("telemetry.raw").unwrap().partitions.iter().map(|bounds| bounds.first).sum();
    assert_eq!(first, old.len() as u64, "the raw topic keeps a day");

    let ledger = |extra: &[(i64, i64)]| {
        let mut text = String::new();
        let row = |car, seq, sent_ms| format!("{},{BOOT},{seq},valid,acknowledged,1,{sent_ms},{sent_ms},1\n", vin(car));
        text.extend(old.iter().map(|(car, _, seq)| row(*car, *seq, old_ms)));
        text.extend(new.iter().map(|(car, _, seq)| row(*car, *seq, new_ms)));
        text.extend(extra.iter().map(|(seq, sent_ms)| row(1, *seq, *sent_ms)));
        site.ledger(&[], true);
        let header = std::fs::read_to_string(site.ledger_file()).unwrap();
        std::fs::write(site.ledger_file(), header + &text).unwrap();
    };
    ledger(&[]);
    for with_ledger in [true, false] {
        let report = site.audit_with(site.sources(), with_ledger).await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.excused, old.len() as u64);
        assert!(
            report.notes.iter().any(|note| note.contains("telemetry.raw") && note.contains("starts at")),
            "{report}"
        );
        assert!(!report.hops[0].begins_at.is_empty() && report.hops[1].begins_at.is_empty());
    }
    // An old one that is nowhere, and a new one: the first is missing behind the raw topic, the second in it.
    ledger(&[(90, old_ms), (91, new_ms + 3_600_000)]);
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::Missing, 2), "{report}");
    let found: Vec<_> =
        report.discrepancies.iter().map(|discrepancy| (discrepancy.seq.unwrap(), discrepancy.hop)).collect();
    assert_eq!(found, [(90, "clean"), (91, "raw")]);
}

/// Readings of a month ago that retention has removed from the raw topic and, if `clean`, from the clean one.
async fn removed(clean: bool) -> Site {
    let site = Site::new();
    let (old_ms, new_ms) = (now_ms() - 30 * 24 * 3_600_000, now_ms());
    let old: Vec<_> = (0..CARS).flat_map(|car| (0..40).map(move |seq| (car, BOOT, seq))).collect();
    let new: Vec<_> = (0..CARS).flat_map(|car| (40..80).map(move |seq| (car, BOOT, seq))).collect();
    site.raw(&old, old_ms);
    if clean {
        site.avro(At::Clean, &old, old_ms);
    }
    site.clock.pass(Duration::from_secs(30 * 24 * 3600));
    site.raw(&new, new_ms);
    site.avro(At::Clean, &new, new_ms);
    site.caught_up();
    site.edge.maintain().unwrap();
    let first = |topic| site.edge.describe(topic).unwrap().partitions.iter().map(|bounds| bounds.first).sum::<u64>();
    let expected = if clean { old.len() as u64 } else { 0 };
    assert_eq!((first("telemetry.raw"), first("telemetry")), (old.len() as u64, expected));
    let rows: Vec<_> = old.iter().chain(&new).map(|(car, _, seq)| (*car, *seq, "valid", "acknowledged")).collect();
    site.ledger_at(&rows, true, old_ms);
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_before_the_next_stage_had_read_it_is_lost() {
    let old = u64::from(CARS) * 40;
    // The preprocessor had come as far as the first ten of each partition.
    let site = removed(false).await;
    let read: Vec<_> = ends(&site.edge, "telemetry.raw").iter().map(|end| *end.min(&10)).collect();
    let unread = old - read.iter().sum::<u64>();
    site.position("preprocessor-telemetry", &site.edge, "telemetry.raw", &read);
    let edge = Sources::new(Some(site.edge.clone()), None, None);
    for (sources, with_ledger) in [(edge.clone(), false), (edge, true)] {
        let report = site.audit_with(sources, with_ledger).await.unwrap();
        assert_eq!(report.counts[&Kind::RemovedUnread], unread, "{report}");
        assert!(report.ledger.lost >= unread && report.ledger.lost <= old, "{report}");
        let said = &report.discrepancies.iter().find(|d| d.kind == Kind::RemovedUnread).unwrap().what;
        assert!(said.contains("before the preprocessor had read them"), "{said}");
    }
}

/// What an operator let a stage go without is lost, though its position is beyond it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_was_accepted_is_lost() {
    let old = u64::from(CARS) * 40;
    let firsts = |log: &Arc<dyn Log>, topic: &str| -> Vec<u64> {
        log.describe(topic).unwrap().partitions.iter().map(|bounds| bounds.first).collect()
    };
    // By the preprocessor: the clean topic lacks them.
    let site = removed(false).await;
    site.accepted_gaps("preprocessor-telemetry", "telemetry.raw", &firsts(&site.edge, "telemetry.raw"));
    let edge = Sources::new(Some(site.edge.clone()), None, None);
    for with_ledger in [false, true] {
        let report = site.audit_with(edge.clone(), with_ledger).await.unwrap();
        assert_eq!((report.counts[&Kind::RemovedUnread], report.ledger.lost), (old, old), "{report}");
        let said = &report.discrepancies.iter().find(|d| d.kind == Kind::RemovedUnread).unwrap().what;
        assert!(said.contains("before the preprocessor had read them, and an operator accepted that"), "{said}");
    }
    // Broken ones among them, which go no further than to the dead letters.
    let rows = (0..CARS).flat_map(|car| (0..80).map(move |seq| (car, seq)));
    let rows = rows.map(|(car, seq)| (car, seq, if seq < 10 { "broken" } else { "valid" }, "acknowledged"));
    site.ledger_at(&rows.collect::<Vec<_>>(), true, now_ms() - 30 * 24 * 3_600_000);
    let report = site.audit_with(edge.clone(), true).await.unwrap();
    assert_eq!((report.counts[&Kind::RemovedUnread], report.ledger.lost), (old, old), "{report}");
    // By the scorer, and by the replicator.
    let site = removed(true).await;
    let new: Vec<_> = (0..CARS).flat_map(|car| (40..80).map(move |seq| (car, BOOT, seq))).collect();
    site.avro(At::Scores, &new, now_ms());
    site.avro(At::Cloud, &new, now_ms());
    site.caught_up();
    let clean = firsts(&site.edge, "telemetry");
    let mut edge = Sources::new(Some(site.edge.clone()), Some(site.cloud.clone()), None);
    edge.scores = Scores::Yes;
    site.accepted_gaps("scorer", "telemetry", &clean);
    let report = site.audit_with(edge.clone(), false).await.unwrap();
    assert_eq!((only(&report), report.ledger.lost), ((Kind::RemovedUnread, old), old), "{report}");
    site.copies_without(&clean);
    let report = site.audit_with(edge, true).await.unwrap();
    assert_eq!((report.counts[&Kind::RemovedUnread], report.ledger.lost), (2 * old, old), "each once: {report}");
    assert!(report.to_string().contains("before the replicator had read them, and an operator accepted"), "{report}");
}

/// Readings that an accepted gap left without a score, while the cloud has them. Retention has also removed the oldest
/// scores, so that nothing shows of a single reading whether it was scored.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_was_accepted_is_lost_no_more_than_the_readings_that_it_can_be() {
    let old = u64::from(CARS) * 40;
    let site = Site::new();
    let (old_ms, new_ms) = (now_ms() - 30 * 24 * 3_600_000, now_ms());
    let seqs = |seqs: std::ops::Range<i64>| -> Vec<_> {
        (0..CARS).flat_map(|car| seqs.clone().map(move |seq| (car, BOOT, seq))).collect()
    };
    let (before, after) = (seqs(0..40), seqs(40..80));
    for hop in [At::Clean, At::Cloud] {
        site.avro(hop, &before, old_ms);
    }
    // Half of them were scored, before the scorer was away.
    site.avro(At::Scores, &seqs(0..20), old_ms);
    site.raw(&before, old_ms);
    site.clock.pass(Duration::from_secs(30 * 24 * 3600));
    site.edge.maintain().unwrap();
    site.raw(&after, new_ms);
    for hop in [At::Clean, At::Cloud, At::Scores] {
        site.avro(hop, &after, new_ms);
    }
    site.caught_up();
    let rows: Vec<_> = before.iter().chain(&after).map(|(car, _, seq)| (*car, *seq, "valid", "acknowledged")).collect();
    site.ledger_at(&rows, true, old_ms);
    let mut sources = Sources::new(Some(site.edge.clone()), Some(site.cloud.clone()), None);
    sources.scores = Scores::Yes;
    let firsts = |topic: &str| -> Vec<u64> {
        site.edge.describe(topic).unwrap().partitions.iter().map(|bounds| bounds.first).collect()
    };
    assert_eq!(firsts("scores").iter().sum::<u64>(), old / 2);
    // The gap of each partition is the second half of what was removed.
    site.accepted_gaps_from("scorer", "telemetry", &firsts("scores"), &firsts("telemetry"));
    let report = site.audit_with(sources.clone(), true).await.unwrap();
    assert_eq!((report.counts[&Kind::RemovedUnread], report.ledger.lost), (old / 2, old / 2), "{report}");
    // And a gap wider than there are readings: with offsets without records, such as Kafka's markers.
    let wide: Vec<_> = firsts("telemetry").iter().map(|first| first * 3).collect();
    site.accepted_gaps_from("scorer", "telemetry", &firsts("telemetry"), &wide);
    let report = site.audit_with(sources, true).await.unwrap();
    assert_eq!(report.ledger.lost, old, "{report}");
}

/// The same of the sink: an object of the lake says what it skipped.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_skipped_is_lost() {
    let site = Site::new();
    let (old_ms, new_ms) = (now_ms() - 30 * 24 * 3_600_000, now_ms());
    let seqs = |seqs: std::ops::Range<i64>| -> Vec<_> {
        (0..CARS).flat_map(|car| seqs.clone().map(move |seq| (car, BOOT, seq))).collect()
    };
    site.avro(At::Cloud, &seqs(0..20), old_ms);
    site.objects(&seqs(0..20), 0).await;
    let written = ends(&site.cloud, "telemetry");
    site.avro(At::Cloud, &seqs(20..40), old_ms);
    site.cloud_clock.pass(Duration::from_secs(30 * 24 * 3600));
    site.cloud.maintain().unwrap();
    let left = ends(&site.cloud, "telemetry");
    site.avro(At::Cloud, &seqs(40..60), new_ms);
    for (partition, (start, end)) in (0..).zip(written.into_iter().zip(left)).filter(|(_, (start, end))| start < end) {
        site.lake.skip(&OffsetRange { topic: "telemetry".into(), partition, start, end }).await.unwrap();
        let is_here = |car: u32| partition_for_key(site.key.pseudonym(&vin(car)).as_bytes(), 4) == partition;
        let mut rest = seqs(40..60);
        rest.retain(|(car, ..)| is_here(*car));
        site.objects(&rest, end).await;
    }
    let rows: Vec<_> = seqs(0..60).iter().map(|(car, _, seq)| (*car, *seq, "valid", "acknowledged")).collect();
    site.ledger_at(&rows, true, old_ms);
    let cloud = Sources::new(None, Some(site.cloud.clone()), Some(site.lake.clone()));
    let skipped = u64::from(CARS) * 20;
    for with_ledger in [false, true] {
        let report = site.audit_with(cloud.clone(), with_ledger).await.unwrap();
        assert_eq!((report.counts[&Kind::RemovedUnread], report.ledger.lost), (skipped, skipped), "{report}");
        let said = &report.discrepancies.iter().find(|d| d.kind == Kind::RemovedUnread).unwrap().what;
        assert!(said.contains("before the sink had read them, and an operator accepted that"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_and_may_never_have_been_passed_on_is_not_passed_over() {
    let old = u64::from(CARS) * 40;
    let site = removed(true).await;
    let edge = Sources::new(Some(site.edge.clone()), None, None);
    for with_ledger in [false, true] {
        // The edge alone does not know whether anything was copied.
        let report = site.audit_with(edge.clone(), with_ledger).await.unwrap();
        assert_eq!((only(&report), report.ledger.lost), ((Kind::RemovedUnread, old), old), "{report}");
        assert!(report.to_string().contains("name the next hop, too"), "{report}");
    }
    // The replicator has noted at the edge how far it has come.
    let clean = ends(&site.edge, "telemetry");
    site.position("replicator-edge-telemetry", &site.edge, "telemetry", &clean);
    for with_ledger in [false, true] {
        let report = site.audit_with(edge.clone(), with_ledger).await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert!(report.notes.iter().any(|note| note.contains("the committed positions say")), "{report}");
        assert_eq!(report.excused, if with_ledger { old } else { 0 }, "{report}");
    }
    // Not as far as that, and the cloud says the same.
    site.position("replicator-edge-telemetry", &site.edge, "telemetry", &vec![0; clean.len()]);
    let report = site.audit_with(edge, true).await.unwrap();
    assert_eq!((only(&report), report.ledger.lost), ((Kind::RemovedUnread, old), old), "{report}");
    let new: Vec<_> = (0..CARS).flat_map(|car| (40..80).map(move |seq| (car, BOOT, seq))).collect();
    site.avro(At::Cloud, &new, now_ms());
    site.position("replicator-edge-telemetry", &site.cloud, "telemetry", &vec![0; clean.len()]);
    let both = Sources::new(Some(site.edge.clone()), Some(site.cloud.clone()), None);
    let report = site.audit_with(both, true).await.unwrap();
    assert_eq!((report.counts[&Kind::Missing], report.ledger.lost), (old, old), "each is counted once: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_excuses_no_more_than_was_removed() {
    let site = Site::new();
    let (old_ms, future_ms) = (now_ms() - 30 * 24 * 3_600_000, 4_070_908_800_000);
    let all: Vec<_> = (0..SEQS).map(|seq| (0, BOOT, seq)).collect();
    let (first, rest) = all.split_at(1);
    // The oldest record that is left says 2099. One of the others is nowhere.
    let kept: Vec<_> = rest.iter().copied().filter(|(_, _, seq)| *seq != 50).collect();
    for (readings, time_ms) in [(first, old_ms), (&kept[..1], future_ms), (&kept[1..], now_ms())] {
        site.raw(readings, time_ms);
        site.avro(At::Clean, readings, time_ms);
        if time_ms == old_ms {
            site.clock.pass(Duration::from_secs(30 * 24 * 3600));
        }
    }
    site.caught_up();
    site.position("replicator-edge-telemetry", &site.edge, "telemetry", &ends(&site.edge, "telemetry"));
    site.edge.maintain().unwrap();
    for topic in ["telemetry.raw", "telemetry"] {
        let removed = site.edge.describe(topic).unwrap().partitions.iter().map(|bounds| bounds.first).sum::<u64>();
        assert_eq!(removed, 1, "{topic}");
    }
    site.ledger(&all.iter().map(|(car, _, seq)| (*car, *seq, "valid", "acknowledged")).collect::<Vec<_>>(), true);
    let edge = Sources::new(Some(site.edge.clone()), None, None);
    let report = site.audit_with(edge, true).await.unwrap();
    assert_eq!((only(&report), report.ledger.lost), ((Kind::Missing, 1), 1), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ledger_the_numbers_tell_what_is_missing() {
    let gone = [(0, 0), (1, 30), (1, 31), (2, 69)];
    let site = Site::with(|_, car, seq| usize::from(!gone.contains(&(car, seq)))).await;
    let report = site.audit_with(site.sources(), false).await.unwrap();
    assert_eq!(only(&report), (Kind::Gap, 3), "the last one of a boot cannot be missed: {report}");
    assert_eq!((report.gaps, report.ledger.lost), (3, 0));
    let found: Vec<_> =
        report.discrepancies.iter().map(|discrepancy| (discrepancy.car.clone().unwrap(), discrepancy.seq)).collect();
    let car = |car| site.key.pseudonym(&vin(car));
    assert_eq!(found.len(), 2);
    assert!(found.contains(&(car(0), Some(0))) && found.contains(&(car(1), Some(30))), "{report}");

    // A repeat, and a reading that is lost on its way.
    let site = Site::with(|at, car, seq| match (at, car, seq) {
        (At::Clean, 0, 7) => 2,
        (At::Lake, 1, 8) => 0,
        _ => 1,
    })
    .await;
    let report = site.audit_with(site.sources(), false).await.unwrap();
    assert_eq!((report.ledger.lost, report.ledger.doubled, report.gaps), (1, 1, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stage_has_not_come_to_is_its_lag_and_no_loss() {
    // The replicator has copied half, of which the sink has stored nothing; the scorer was never started.
    let site = Site::with(|at, _, seq| match at {
        At::Raw | At::Clean => 1,
        At::Cloud => usize::from(seq < 35),
        At::Lake | At::Scores => 0,
    })
    .await;
    // Readings are written car by car, seq by seq: the first half of each car is not the first half of a partition.
    let clean = support::records(&site.edge, "telemetry");
    let copied = support::records(&site.cloud, "telemetry");
    let per_partition = |records: &[support::Whole]| {
        (0..4).map(|partition| records.iter().filter(|record| record.0 == partition).count() as u64).collect::<Vec<_>>()
    };
    assert_eq!(per_partition(&clean).iter().sum::<u64>(), ALL);
    let one_car_each = per_partition(&copied).iter().all(|records| *records <= 35);
    site.position("scorer", &site.edge, "telemetry", &[0; 4]);
    let until = if one_car_each { per_partition(&copied) } else { vec![0; 4] };
    site.position("replicator-edge-telemetry", &site.cloud, "telemetry", &until);
    let mut sources = site.sources();
    sources.scores = carstream::audit::Scores::Yes;
    let report = site.audit_with(sources.clone(), true).await.unwrap();
    assert!(report.is_clean() && !report.caught_up, "{report}");
    for stage in ["the replicator has", "the sink has 105 records", "the scorer has 210 records"] {
        assert!(report.notes.iter().any(|note| note.contains(stage)), "{stage}: {report}");
    }
    let evidence = Evidence { ledgers: vec![site.ledger_file()], key: Some(site.key.clone()) };
    let waited = audit(sources, evidence, Some(Duration::from_millis(300)), CancellationToken::new()).await;
    let error = waited.map(|report| report.to_string()).unwrap_err().to_string();
    assert!(error.contains("the scorer has not caught up within 0 s: 210 records"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_and_objects_that_do_not_join_are_named() {
    let site = Site::with(|_, _, _| 1).await;
    let mut outputs = Outputs::default();
    let record = Record { key: b"k", value: Some(b"no avro"), headers: &[], timestamp_ms: now_ms() };
    outputs.push(&"telemetry".into(), 0, &record);
    commit(&site.cloud, "test", &outputs, &[]);
    // An object that overlaps the one before, one behind a gap, and one that is no Parquet.
    let partition = site.lake.objects("telemetry").await.unwrap()[0].partition;
    let car = (0..CARS)
        .find(|car| event_log::partition_for_key(site.key.pseudonym(&vin(*car)).as_bytes(), 4) == partition)
        .unwrap();
    let end = ends(&site.cloud, "telemetry")[partition as usize];
    site.objects(&[(car, BOOT, 5)], end - 1).await;
    site.objects(&[(car, BOOT, 70)], end + 10).await;
    let name = format!("telemetry/date=2026-11-21/partition={partition}/{:020}.parquet", end + 99);
    site.lake.create(&name, b"no parquet".to_vec().into()).await.unwrap();
    let report = site.audit().await;
    let count = |kind| report.counts.get(&kind).copied().unwrap_or(0);
    assert_eq!((count(Kind::Objects), count(Kind::Unreadable)), (2, 2), "{report}");
    assert_eq!((count(Kind::Doubled), count(Kind::Unknown)), (1, 1), "{report}");
    let text = report.to_string();
    assert!(
        text.contains("overlaps the next") && text.contains("leaves offsets out") && text.contains(&name),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn discrepancies_are_counted_in_full_and_the_first_are_named() {
    let site = Site::with(|at, _, seq| usize::from(at != At::Cloud || seq >= 20)).await;
    let report = site.audit().await;
    assert_eq!(only(&report), (Kind::Missing, 60), "{report}");
    assert_eq!(report.discrepancies.len(), 10);
    assert!(report.to_string().contains("and 50 more like these"), "{report}");
}

/// Exit codes and words of the command itself.
#[test]
fn the_command_says_what_it_found_by_its_exit_code() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::with(|at, car, seq| usize::from((at, car, seq) != (At::Clean, 0, 9))));
    let path = |name: &str| site.path(name).display().to_string();
    let (edge, cloud, lake, key) = (path("edge"), path("cloud"), path("lake"), path("site.key"));
    let other = path("other.key");
    let ledger = path("ledger.csv");
    let key_args = ["--pseudonym-key-file", &key];
    let whole = ["audit", "--edge-log", &edge, "--cloud-log", &cloud, "--lake", &lake, "--ledger", &ledger];
    let whole = [&whole[..], &key_args].concat();

    let (code, _, said) = carstream(&whole);
    assert!(code == Some(1) && said.contains("is in use by another process"), "{said}");
    let kept = site.into_directory();
    let (code, table, said) = carstream(&whole);
    assert_eq!(code, Some(1), "{said}");
    assert!(table.contains("was acknowledged and is missing in telemetry at the edge"), "{table}");
    assert!(said.contains("1 reading is lost; discrepancies by kind: missing 1"), "{said}");
    let (code, json, _) = carstream(&[&whole[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["ledger"]["lost"], &json["discrepancies"][0]["seq"]), (Some(1), &1.into(), &9.into()));
    let (code, _, said) = carstream(&[&["audit", "--cloud-log", &cloud, "--lake", &lake][..], &key_args].concat());
    assert_eq!(code, Some(0), "{said}");

    // Another key makes other pseudonyms: that is said, and not that every reading is lost.
    std::fs::write(&other, [b'x'; 32]).unwrap();
    let with_other = [&whole[..whole.len() - 1], &[other.as_str()]].concat();
    let without_ledger = ["audit", "--edge-log", &edge, "--cloud-log", &cloud, "--pseudonym-key-file", &other];
    for arguments in [&with_other[..], &without_ledger] {
        let (code, _, said) = carstream(arguments);
        let wanted = format!(
            "error: --pseudonym-key-file {other}: no car in telemetry has a pseudonym made with this key; use the key \
             of the site's preprocessor\n"
        );
        assert_eq!((code, said), (Some(64), wanted));
    }

    let (code, _, said) = carstream(&["audit", "--log", &edge]);
    assert_eq!((code, said.as_str()), (Some(64), "error: audit knows two logs: --edge-log and --cloud-log\n"));
    let (code, _, said) = carstream(&["audit"]);
    assert!(code == Some(64) && said.contains("name at least one of them"), "{said}");
    let (code, _, said) = carstream(&["audit", "--edge-log", "/nowhere", "--lake", "/nowhere", "--ledger", "/nowhere"]);
    assert_eq!(code, Some(64), "{said}");
    for problem in
        ["--edge-log /nowhere", "--lake /nowhere", "--ledger /nowhere", "(CARSTREAM_PSEUDONYM_KEY_FILE) is missing"]
    {
        assert!(said.contains(problem), "{said}");
    }
    drop(kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_do_not_exist_are_empty_and_said_to_be() {
    let site = Site::new();
    let edge = event_log::open(&event_log::LogUrl::Directory(site.path("other")), &[]).unwrap();
    let spec = TopicSpec { name: "unrelated".into(), partitions: 1, retention: None, compacted: false };
    edge.ensure_topic(&spec).unwrap();
    site.ledger(&[(0, 0, "valid", "acknowledged")], true);
    let report = site.audit_with(Sources::new(Some(edge), None, None), true).await.unwrap();
    assert_eq!(only(&report), (Kind::Missing, 1), "{report}");
    assert!(report.to_string().contains("the topic does not exist"), "{report}");
}

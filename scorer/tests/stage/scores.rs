//! One score per reading, the same as the model's, however often the stage is stopped.

use event_log::partition_for_key;
use test_support::clock::{now_ms, yesterday_ms};

use crate::support::{Running, Site, car, encode, encode_v1, expected, readings, run_to_end, small_model};

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_gets_the_score_that_the_model_gives_it() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    let all = readings(9, 0, 60, |i, seq| i == 2 && seq > 30);
    site.append_readings(&all);
    let began_ms = now_ms();
    run_to_end(site.args_with(&model)).await;
    let scores = site.scores();
    assert_eq!(scores, expected(&model, &all));
    assert!(scores.values().any(|s| s.anomalous) && scores.values().any(|s| !s.anomalous && s.score > 0.0));
    for stored in site.read("scores") {
        assert!(stored.timestamp_ms >= began_ms, "stamped with the wall clock");
    }
    assert_eq!(site.count("scorer.dead-letter"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_change_no_score() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    let broken = |i: usize, seq: i64| i == 1 && (20..35).contains(&seq);
    for (from, to, batch) in [(0, 7, 4096), (7, 8, 1), (8, 25, 13), (25, 50, 100)] {
        site.append_readings(&readings(6, from, to, broken));
        let mut args = site.args_with(&model);
        args.pipeline.batch_records = batch;
        run_to_end(args).await;
    }
    assert_eq!(site.scores(), expected(&model, &readings(6, 0, 50, broken)));
}

/// The state comes from the snapshot of the last stop, and the scores are the same to the bit.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_from_a_snapshot() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    let broken = |i: usize, seq: i64| i == 1 && (20..35).contains(&seq);
    site.append_readings(&readings(6, 0, 22, broken));
    run_to_end(site.args_with(&model)).await;
    let partitions = site.log.describe("telemetry").unwrap().partitions.iter().filter(|p| p.next > 0).count() as u64;
    assert_eq!(site.count("scorer.state") as u64, partitions, "a small state is one record");
    site.append_readings(&readings(6, 22, 50, broken));
    let running = Running::start(site.args_with(&model));
    running.until("the scores", || running.metrics.scored.get() == 6 * 28).await;
    let pipeline = &running.metrics.pipeline;
    assert_eq!((pipeline.restored.get(), pipeline.replayed.get(), pipeline.state_gaps.get()), (partitions, 0, 0));
    running.stop().await;
    assert_eq!(site.scores(), expected(&model, &readings(6, 0, 50, broken)));
    // Another model has nothing of the first one's: it replays all, beside it.
    let other = small_model(2, 3.0);
    let running = Running::start(site.args_with(&other));
    running.until_model(&other.version).await;
    site.append_readings(&readings(6, 50, 60, broken));
    running.until("the scores", || running.metrics.scored.get() == 60).await;
    let pipeline = &running.metrics.pipeline;
    assert_eq!((pipeline.restored.get(), pipeline.replayed.get(), pipeline.state_gaps.get()), (partitions, 300, 0));
    assert_eq!(pipeline.states_replaced.get(), partitions);
    running.stop().await;
    let (scores, all) = (site.scores(), expected(&other, &readings(6, 0, 60, broken)));
    assert!(all.iter().filter(|((_, seq), _)| *seq >= 50).all(|(identity, score)| scores[identity] == *score));
}

/// It begins anew, as a car that nothing is known of; and so it does in a replay, which another model causes.
#[tokio::test(flavor = "multi_thread")]
async fn a_car_that_was_silent_for_long_is_forgotten() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let (site, model, other) = (Site::new(), small_model(1, 4.0), small_model(2, 3.0));
    let all = readings(2, 0, 140, |_, _| false);
    let of = |i: usize, seqs: std::ops::Range<i64>| -> Vec<_> {
        all.iter().filter(|r| r.car == car(i) && seqs.contains(&r.seq)).cloned().collect()
    };
    assert_eq!(partition_for_key(car(0).as_bytes(), 4), partition_for_key(car(1).as_bytes(), 4), "of one partition");
    let began_ms = yesterday_ms() - 100 * DAY_MS;
    site.append_readings_at(&of(0, 0..30), began_ms);
    for day in 0..95 {
        site.append_readings_at(&of(1, day..day + 1), began_ms + day * DAY_MS);
    }
    let running = Running::start(site.args_with(&model));
    running.until("the scores", || running.metrics.scored.get() == 30 + 95).await;
    assert_eq!((running.metrics.cars.get(), running.metrics.cars_forgotten.get()), (1, 1));
    running.stop().await;
    site.append_readings_at(&of(0, 30..60), began_ms + 96 * DAY_MS);
    run_to_end(site.args_with(&model)).await;
    let anew = expected(&model, &of(0, 30..60));
    let known = expected(&model, &of(0, 0..60));
    assert!(anew.iter().any(|(identity, score)| known[identity] != *score), "what was known of it makes a difference");
    let scores = site.scores();
    assert!(anew.iter().all(|(identity, score)| scores[identity] == *score));
    assert!(expected(&model, &of(0, 0..30)).iter().all(|(identity, score)| scores[identity] == *score));
    let running = Running::start(site.args_with(&other));
    running.until_model(&other.version).await;
    site.append_readings_at(&of(0, 60..70), began_ms + 96 * DAY_MS);
    running.stop().await;
    let (scores, anew) = (site.scores(), expected(&other, &of(0, 30..70)));
    assert!((60..70).all(|seq| scores[&(car(0), seq)] == anew[&(car(0), seq)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_scores_what_the_log_holds_first() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    site.append_readings(&readings(5, 0, 400, |_, _| false));
    let mut args = site.args_with(&model);
    args.pipeline.batch_records = 10;
    let running = Running::start(args);
    running.until("the first scores", || running.metrics.scored.get() > 0).await;
    running.stop().await;
    assert_eq!(site.scores().len(), 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_reading_is_put_aside() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    let all = readings(1, 0, 20, |_, _| false);
    let values = encode(&all);
    let good = |seq: usize| (car(0).into_bytes(), Some(values[seq].clone()));
    let bad = |value: Option<Vec<u8>>| (car(0).into_bytes(), value);
    let mut wrong_id = values[3].clone();
    wrong_id[4] = 99;
    let mut other_record = values[3].clone();
    other_record[4] = 4;
    let mut records: Vec<_> = (0..10).map(good).collect();
    records.extend([
        bad(Some(b"{\"car\": \"json\"}".to_vec())),
        bad(Some(values[3][..values[3].len() - 1].to_vec())),
        bad(Some(wrong_id)),
        bad(Some(other_record)),
        bad(None),
        bad(Some(vec![])),
    ]);
    records.extend((10..20).map(good));
    site.append("telemetry", &records);
    let running = Running::start(site.args_with(&model));
    running.until("the scores", || running.metrics.scored.get() == 20).await;
    running.stop().await;
    assert_eq!(site.scores(), expected(&model, &all), "the good ones are scored as if the bad ones were not there");
    let letters = site.read("scorer.dead-letter");
    let reasons: Vec<_> = letters.iter().map(|l| l.headers["dead-letter.reason"].as_str()).collect();
    assert_eq!(
        reasons,
        ["not-avro", "malformed-avro", "unknown-schema", "incompatible-schema", "not-avro", "not-avro"]
    );
    assert_eq!(letters[0].value, b"{\"car\": \"json\"}");
    assert_eq!(letters[0].headers["dead-letter.source.topic"], "telemetry");
    assert_eq!(letters[0].headers["dead-letter.source.offset"], "10");
    assert_eq!(letters[0].headers["origin"], "test");
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_of_an_older_schema_are_scored_alike() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    let all = readings(2, 0, 30, |_, _| false);
    let (old, new) = (encode_v1(&all), encode(&all));
    let mixed = all.iter().enumerate().map(|(n, r)| {
        let value = if n % 3 == 0 { &old[n] } else { &new[n] };
        (r.car.clone().into_bytes(), Some(value.clone()))
    });
    site.append("telemetry", &mixed.collect::<Vec<_>>());
    run_to_end(site.args_with(&model)).await;
    assert_eq!(site.scores(), expected(&model, &all));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_agree_with_the_log() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    site.append_readings(&readings(3, 0, 40, |i, seq| i == 0 && seq > 20));
    let running = Running::start(site.args_with(&model));
    running.until("the commit", || running.metrics.pipeline.records_in.get() == 120).await;
    let scores = site.scores();
    let metrics = &running.metrics;
    assert_eq!(metrics.scored.get(), 120);
    assert_eq!(metrics.anomalous.get(), scores.values().filter(|s| s.anomalous).count() as u64);
    assert_eq!((metrics.alerts_opened.get(), metrics.alerts_closed.get(), metrics.open_alerts.get()), (1, 0, 1));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &running.registry).unwrap();
    for line in [
        "carstream_scorer_scored_total 120".to_owned(),
        format!("carstream_scorer_model_info{{version=\"{}\"}} 1", model.version),
        "carstream_scorer_cars 3".to_owned(),
        // All but the first five of each car, which it warms up with.
        "carstream_scorer_score_ratio_count 105".to_owned(),
        "carstream_scorer_records_in_total 120".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(&car(0)), "no metric has a car in it");
    running.stop().await;
}

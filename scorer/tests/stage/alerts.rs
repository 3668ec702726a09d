//! Alerts open once and close once, whatever happens in between.

use std::collections::HashMap;
use std::time::Duration;

use scorer::alerts::{Alert, AlertStatus};

use crate::support::{
    BOOT_ID, Files, Running, START_MS, Score, Site, car, expected, readings, run_to_end, small_model, small_model_with,
};

/// Car 1 is broken from reading 20 to reading 40.
fn broken(i: usize, seq: i64) -> bool {
    i == 1 && (20..40).contains(&seq)
}

fn the_pair(alerts: &[Alert]) -> (&Alert, &Alert) {
    let [opened, closed] = alerts else { panic!("wanted one opened and one closed: {alerts:#?}") };
    assert_eq!((opened.state, closed.state), (AlertStatus::Open, AlertStatus::Closed));
    assert_eq!(opened.alert_id, closed.alert_id);
    (opened, closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_opens_an_alert_and_its_end_closes_it() {
    let (site, model) = (Site::new(), small_model(1, 4.0));
    site.append_readings(&readings(4, 0, 80, broken));
    run_to_end(site.args_with(&model)).await;
    let alerts = site.alerts();
    let (opened, closed) = the_pair(&alerts);
    let scores = site.scores();
    let opening = (opened.event_time_ms - START_MS) / 1000;
    assert!((20..40).contains(&opening), "opened at reading {opening}");
    assert_eq!(opened.car, car(1));
    assert_eq!(opened.alert_id, Alert::id(&car(1), BOOT_ID, opening));
    assert_eq!(opened.opened_ms, opened.event_time_ms);
    assert_eq!(opened.features[0], "current_draw");
    assert_eq!(opened.features, scores[&(car(1), opening)].features);
    assert_eq!(opened.score, scores[&(car(1), opening)].score);
    assert_eq!((opened.threshold, opened.model_version.as_str()), (4.0, model.version.as_str()));
    let closing = (closed.event_time_ms - START_MS) / 1000;
    assert!(closing >= 40, "closed at reading {closing}");
    assert_eq!((closed.opened_ms, &closed.features), (opened.opened_ms, &opened.features));
    assert_eq!(closed.score, scores[&(car(1), closing)].score);
    for stored in site.read("alerts") {
        assert_eq!(stored.key, car(1), "the bridge finds the car by the key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_repeat_no_alert() {
    let (uninterrupted, interrupted, model) = (Site::new(), Site::new(), small_model(1, 4.0));
    uninterrupted.append_readings(&readings(4, 0, 80, broken));
    run_to_end(uninterrupted.args_with(&model)).await;
    let opening = (uninterrupted.alerts()[0].event_time_ms - START_MS) / 1000;
    let closing = (uninterrupted.alerts()[1].event_time_ms - START_MS) / 1000;
    let mut from = 0;
    for to in [opening - 1, opening, opening + 1, opening + 2, closing, closing + 1, 80] {
        interrupted.append_readings(&readings(4, from, to, broken));
        run_to_end(interrupted.args_with(&model)).await;
        from = to;
    }
    assert_eq!(interrupted.alerts(), uninterrupted.alerts());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_closes_what_it_would_not_have_opened() {
    let site = Site::new();
    let (strict, lenient) = (small_model(1, 4.0), small_model(1, 1000.0));
    site.append_readings(&readings(4, 0, 30, broken));
    run_to_end(site.args_with(&strict)).await;
    assert_eq!(site.alerts().len(), 1);
    let running = Running::start(site.args_with(&lenient));
    running.until_model(&lenient.version).await;
    site.append_readings(&readings(4, 30, 32, broken));
    running.stop().await;
    let alerts = site.alerts();
    let (_, closed) = the_pair(&alerts);
    assert_eq!(closed.event_time_ms, START_MS + 30_000, "at the car's next reading");
    assert_eq!(closed.model_version, lenient.version);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hysteresis_is_the_models() {
    let site = Site::new();
    let patient = small_model_with(1, 4.0, |manifest| manifest.alert.open_after = 100);
    site.append_readings(&readings(4, 0, 80, broken));
    run_to_end(site.args_with(&patient)).await;
    assert!(site.scores().values().any(|score| score.anomalous));
    assert_eq!(site.alerts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_of_one_transaction_follow_each_other() {
    // Opened and closed within one batch, then again: nothing can have been read back from the topic meanwhile.
    let (site, model) = (Site::new(), small_model(1, 4.0));
    let twice = |i: usize, seq: i64| i == 0 && ((20..40).contains(&seq) || (120..140).contains(&seq));
    site.append_readings(&readings(1, 0, 200, twice));
    let mut args = site.args_with(&model);
    args.pipeline.batch_wait = Duration::from_secs(1);
    let running = Running::start(args);
    running.until("the scores", || running.metrics.scored.get() == 200).await;
    running.stop().await;
    let alerts = site.alerts();
    assert_eq!(alerts.len(), 4, "{alerts:#?}");
    the_pair(&alerts[..2]);
    the_pair(&alerts[2..]);
    assert_ne!(alerts[0].alert_id, alerts[2].alert_id);
}

/// It begins anew, and so it does when another model replays the readings. The others notice nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_car_is_forgotten_on_request_and_its_alert_is_closed() {
    let (site, model, other) = (Site::new(), small_model(1, 4.0), small_model(2, 3.0));
    let all = readings(4, 0, 90, |i, seq| i == 1 && (20..40).contains(&seq));
    let between = |from: i64, to: i64| -> Vec<_> {
        all.iter().filter(|reading| (from..to).contains(&reading.seq)).cloned().collect()
    };
    site.append_readings(&between(0, 40));
    site.ask_to_forget(&car(1));
    site.append_readings(&between(40, 80));
    let running = Running::start(site.args_with(&model));
    running.until("the scores", || running.metrics.scored.get() == 320).await;
    assert_eq!((running.metrics.cars_forgotten.get(), running.metrics.open_alerts.get()), (1, 0));
    running.stop().await;
    let alerts = site.alerts();
    let (opened, closed) = the_pair(&alerts);
    assert_eq!((&opened.car, closed.event_time_ms), (&car(1), opened.event_time_ms), "no reading closed it");
    assert_eq!(site.count("scorer.dead-letter"), 0);
    let check = |scores: &HashMap<(String, i64), Score>, files: &Files, from: i64, to: i64| {
        let forgotten: Vec<_> = between(40, to).into_iter().filter(|reading| reading.car == car(1)).collect();
        let (through, anew) = (expected(files, &between(0, to)), expected(files, &forgotten));
        for ((name, seq), score) in scores.iter().filter(|((_, seq), _)| (from..to).contains(seq)) {
            let wanted = if *name == car(1) { &anew } else { &through };
            assert_eq!(*score, wanted[&(name.clone(), *seq)], "{name} {seq}");
        }
    };
    check(&site.scores(), &model, 40, 80);
    // The request is behind the scores of the readings before it.
    let scores = site.read("scores").into_iter().filter(|record| record.key == car(1)).collect::<Vec<_>>();
    let requests: Vec<_> = (0..).zip(&scores).filter(|(_, score)| score.value.is_empty()).collect();
    assert_eq!(requests.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [40]);
    assert_eq!((&*requests[0].1.headers[contract::FORGET], scores.len()), ("1795219200000", 81));
    let running = Running::start(site.args_with(&other));
    running.until_model(&other.version).await;
    site.append_readings(&between(80, 90));
    running.stop().await;
    check(&site.scores(), &other, 80, 90);
}

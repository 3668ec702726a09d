//! How well faults were found: scores and alerts of the run compared with the workshop's findings.
//!
//! Only readings that the model was not trained on are judged, and of these only those with a score above 0: the model
//! does not judge a parked car, or a car that is new to the scorer. A reading is faulty if one of its car's faults
//! lasted at its event time. A fault is found if an alert of its car was open while it lasted.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use arrow::array::AsArray;
use contract::ModelDefinition;
use event_log::Log;
use serde::Deserialize;
use telemetry::avro::AvroDecoder;
use trainer::Curves;

use super::Trained;
use super::account::{Account, each_batch, times};
use super::report::{Alerts, Detection, Latency};

const MS_PER_DAY: f64 = 86_400_000.0;

/// What was found out.
pub(crate) struct Judged {
    pub(crate) detection: Detection,
    pub(crate) latency: Latency,
    /// Alerts in the whole run.
    pub(crate) alerts: Alerts,
}

/// A span of event time: of a fault, or of an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Span {
    from_ms: i64,
    to_ms: i64,
}

impl Span {
    fn overlaps(self, other: Span) -> bool {
        self.from_ms < other.to_ms && other.from_ms < self.to_ms
    }
}

/// Judges the scores of `account` and the alerts in the cloud.
pub(crate) fn judge(account: &Account, cloud: &Arc<dyn Log>, trained: Option<&Trained>) -> anyhow::Result<Judged> {
    let faults = faults(account, cloud)?;
    let (alerts, messages) = alerts(account, cloud)?;
    let opened = Alerts { opened: alerts.values().map(|spans| spans.len() as u64).sum(), messages, delivered: 0 };
    let Some(trained) = trained else {
        let all = faults.values().map(|spans| spans.len() as u64).sum();
        let detection = Detection { faults: all, ..Detection::default() };
        return Ok(Judged { detection, latency: Latency::default(), alerts: opened });
    };
    let none = Vec::new();
    let mut scores = Vec::new();
    let mut latencies = Vec::new();
    let mut judged = HashMap::<u32, Span>::new();
    for (car, reading) in account.readings().filter(|(_, reading)| !reading.trained_on) {
        let Some(scored) = reading.score else { continue };
        let at = reading.event_time_ms;
        let faulty = faults.get(&car).unwrap_or(&none).iter().any(|f| f.from_ms <= at && at < f.to_ms);
        if scored.score > 0.0 {
            scores.push((scored.score, faulty));
        }
        // What was sent before the model was there had to wait for it.
        if trained.in_force_ms.is_some_and(|since| reading.sent_ms > since) {
            latencies.push(scored.at_ms - reading.sent_ms);
        }
        let span = judged.entry(car).or_insert(Span { from_ms: at, to_ms: at });
        *span = Span { from_ms: span.from_ms.min(at), to_ms: span.to_ms.max(at) };
    }
    let curves = Curves::of(scores);
    let detection = Detection {
        auc: curves.as_ref().map(Curves::auc),
        average_precision: curves.as_ref().map(Curves::average_precision),
        ..judge_alerts(&judged, &faults, &alerts)
    };
    Ok(Judged { detection, latency: percentiles(latencies), alerts: opened })
}

/// Faults found, their delay, and false alarms, within the judged span of each car.
fn judge_alerts(
    judged: &HashMap<u32, Span>,
    faults: &HashMap<u32, Vec<Span>>,
    alerts: &HashMap<u32, Vec<Span>>,
) -> Detection {
    let none = Vec::new();
    let mut detection = Detection::default();
    let (mut delays, mut false_alarms, mut car_days) = (Vec::new(), 0u64, 0.0);
    for (car, judged) in judged {
        car_days += (judged.to_ms - judged.from_ms) as f64 / MS_PER_DAY;
        let faults = faults.get(car).unwrap_or(&none);
        let alerts: Vec<_> = alerts.get(car).unwrap_or(&none).iter().filter(|a| a.overlaps(*judged)).collect();
        for fault in faults.iter().filter(|fault| fault.overlaps(*judged)) {
            detection.faults += 1;
            if let Some(alert) = alerts.iter().filter(|alert| alert.overlaps(*fault)).min_by_key(|alert| alert.from_ms)
            {
                detection.faults_found += 1;
                delays.push((alert.from_ms - fault.from_ms).max(0) as f64 / 1000.0);
            }
        }
        false_alarms +=
            alerts.iter().filter(|alert| !faults.iter().any(|fault| fault.overlaps(***alert))).count() as u64;
    }
    delays.sort_by(f64::total_cmp);
    detection.median_delay_s = delays.get(delays.len() / 2).copied();
    detection.alerts_per_car_day = (car_days > 0.0).then(|| false_alarms as f64 / car_days);
    detection
}

/// The workshop's findings by car.
fn faults(account: &Account, cloud: &Arc<dyn Log>) -> anyhow::Result<HashMap<u32, Vec<Span>>> {
    let findings = &account.place.findings;
    let mut decoder = AvroDecoder::new(account.contract.schemas(), ModelDefinition::schema(findings))?;
    let mut faults = HashMap::<u32, Vec<Span>>::new();
    each_batch(cloud, &findings.name, |batch| {
        for record in batch.iter() {
            // Only readable records can be compared.
            let _ = decoder.decode(record.value.unwrap_or_default());
        }
        let rows = decoder.finish();
        let cars = rows.column_by_name("car").context("no column car")?.as_string::<i32>().clone();
        let (began, repaired) = (times(&rows, "began_ms")?, times(&rows, "repaired_ms")?);
        for index in 0..rows.num_rows() {
            if let Some(car) = account.car_number(cars.value(index)) {
                faults.entry(car).or_default().push(Span { from_ms: began[index], to_ms: repaired[index] });
            }
        }
        Ok(())
    })?;
    Ok(faults)
}

#[derive(Deserialize)]
struct Alert {
    alert_id: String,
    car: String,
    state: String,
    opened_ms: i64,
    event_time_ms: i64,
}

/// Alerts by car, and how many messages they were; one that was never closed lasts for ever.
fn alerts(account: &Account, cloud: &Arc<dyn Log>) -> anyhow::Result<(HashMap<u32, Vec<Span>>, u64)> {
    let mut by_id = HashMap::<String, (u32, Span)>::new();
    let mut messages = 0;
    let topic = &account.place.alerts.name;
    each_batch(cloud, topic, |batch| {
        messages += batch.len() as u64;
        for record in batch.iter() {
            let alert: Alert = serde_json::from_slice(record.value.unwrap_or_default())
                .with_context(|| format!("{topic}/{} offset {}", batch.partition(), record.offset))?;
            let Some(car) = account.car_number(&alert.car) else { continue };
            let open = Span { from_ms: alert.opened_ms, to_ms: i64::MAX };
            let (_, span) = by_id.entry(alert.alert_id).or_insert((car, open));
            if alert.state == "closed" {
                span.to_ms = alert.event_time_ms;
            }
        }
        Ok(())
    })?;
    let mut by_car = HashMap::<u32, Vec<Span>>::new();
    for (car, span) in by_id.into_values() {
        by_car.entry(car).or_default().push(span);
    }
    Ok((by_car, messages))
}

fn percentiles(mut latencies: Vec<i64>) -> Latency {
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1)));
    Latency { p50: at(0.5).copied(), p99: at(0.99).copied() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_held_against_faults() {
        let day = 86_400_000;
        let span = |from_ms, to_ms| Span { from_ms, to_ms };
        let judged = HashMap::from([(1, span(0, day)), (2, span(0, day))]);
        let faults = HashMap::from([(1, vec![span(10_000, 20_000), span(50_000, 60_000)])]);
        let alerts = HashMap::from([(1, vec![span(12_000, 30_000)]), (2, vec![span(5, 6)])]);
        let found = judge_alerts(&judged, &faults, &alerts);
        assert_eq!((found.faults, found.faults_found, found.median_delay_s), (2, 1, Some(2.0)));
        assert_eq!(found.alerts_per_car_day, Some(0.5));
    }
}

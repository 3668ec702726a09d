//! Verdicts compared with the workshop's findings: by reading, by alert, by fault.

use model::artefact::Detection;
use model::{AlertChange, AlertRule, AlertState, Model};

use crate::fleet::Car;

/// The scores of a car's judged readings, in order.
#[derive(Debug, Clone)]
pub(crate) struct Scored<'a> {
    /// The car.
    pub(crate) car: &'a Car,
    /// Event time and score.
    pub(crate) scores: Vec<(i64, f32)>,
}

/// Scores a car as the scorer does, and keeps what was judged, from `from_ms` on.
pub(crate) fn score<'a>(model: &Model, car: &'a Car, from_ms: i64) -> Scored<'a> {
    let mut state = model.new_car();
    let mut scores = Vec::new();
    for (time_ms, row) in car.times_ms.iter().zip(&car.rows) {
        let verdict = model.score_reading(&mut state, *time_ms, row);
        if verdict.judged && !verdict.late && *time_ms >= from_ms {
            scores.push((*time_ms, verdict.score));
        }
    }
    Scored { car, scores }
}

impl Scored<'_> {
    /// Event times at which alerts open.
    pub(crate) fn alerts(&self, rule: &AlertRule, threshold: f32) -> impl Iterator<Item = i64> {
        let mut state = AlertState::default();
        let opened = move |(time_ms, score): &(i64, f32)| {
            (state.step(rule, *score, threshold) == Some(AlertChange::Opened)).then_some(*time_ms)
        };
        self.scores.iter().filter_map(opened)
    }

    /// Days from the first to the last judged reading.
    fn days(&self) -> f64 {
        let first_last = self.scores.first().zip(self.scores.last());
        first_last.map_or(0.0, |(first, last)| (last.0 - first.0) as f64 / 86_400_000.0)
    }
}

/// The lowest threshold at which the alerts that no finding explains stay within `alarms_per_car_day`.
///
/// Fewer car-days than one alarm at that rate cannot tell rates so small: then no such alert is left.
pub(crate) fn threshold(cars: &[Scored<'_>], rule: &AlertRule, alarms_per_car_day: f64) -> f32 {
    let allowed = alarms_per_car_day * cars.iter().map(Scored::days).sum::<f64>();
    let within = |threshold: f32| {
        let false_alarms = |scored: &Scored<'_>| {
            scored.alerts(rule, threshold).filter(|time_ms| !scored.car.explains(*time_ms)).count()
        };
        cars.iter().map(false_alarms).sum::<usize>() as f64 <= allowed
    };
    let highest = cars.iter().flat_map(|c| &c.scores).map(|(_, score)| *score).fold(1.0, f32::max);
    // Scores are in deviations: below 1 nothing is an anomaly. Bisection in the logarithm, to a thousandth.
    let (mut low, mut high) = (0.0, highest.ln());
    if within(1.0) {
        return 1.0;
    }
    for _ in 0..16 {
        let middle = 0.5 * (low + high);
        if within(f32::exp(middle)) { high = middle } else { low = middle }
    }
    f32::exp(high)
}

/// How good the verdicts are.
pub(crate) fn detection(cars: &[Scored<'_>], rule: &AlertRule, threshold: f32) -> Detection {
    let mut detection = Detection::default();
    let mut delays_s = Vec::new();
    for scored in cars {
        detection.readings += scored.scores.len() as u64;
        detection.faulty_readings += scored.scores.iter().filter(|(t, _)| scored.car.is_faulty(*t)).count() as u64;
        detection.car_days += scored.days();
        let alerts: Vec<i64> = scored.alerts(rule, threshold).collect();
        detection.alerts += alerts.len() as u64;
        detection.false_alarms += alerts.iter().filter(|t| !scored.car.explains(**t)).count() as u64;
        for fault in &scored.car.faults {
            if !scored.scores.iter().any(|(t, _)| fault.is_there(*t)) {
                continue;
            }
            let kind = detection.by_kind.entry(fault.kind.clone()).or_default();
            detection.faults += 1;
            kind[1] += 1;
            if let Some(alert) = alerts.iter().find(|t| fault.is_there(**t)) {
                detection.faults_found += 1;
                kind[0] += 1;
                delays_s.push((alert - fault.began_ms) as f64 / 1000.0);
            }
        }
    }
    if detection.car_days > 0.0 {
        detection.alarms_per_car_day = detection.false_alarms as f64 / detection.car_days;
    }
    detection.median_delay_s = median(&mut delays_s);
    let curves = Curves::new(cars);
    detection.auc = curves.as_ref().map(Curves::auc);
    detection.average_precision = curves.as_ref().map(Curves::average_precision);
    detection
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle)?;
    Some(if values.len() % 2 == 1 { *upper } else { 0.5 * (values[middle - 1] + upper) })
}

/// Counts of readings above each score, highest first: what ROC and precision-recall curves are drawn from.
#[derive(Debug, Clone)]
pub struct Curves {
    /// Score, faulty readings with at least that score, healthy ones.
    pub(crate) points: Vec<(f32, u64, u64)>,
}

impl Curves {
    /// `None` unless there are readings of both kinds.
    pub(crate) fn new(cars: &[Scored<'_>]) -> Option<Self> {
        let labelled =
            |s: &Scored<'_>| s.scores.iter().map(|(t, score)| (*score, s.car.is_faulty(*t))).collect::<Vec<_>>();
        Self::of(cars.iter().flat_map(labelled).collect())
    }

    /// From scores and whether each reading is faulty. `None` unless there are readings of both kinds.
    /// From scores, and whether each reading is faulty. `None` unless there are readings of both kinds.
    pub fn of(mut readings: Vec<(f32, bool)>) -> Option<Self> {
        readings.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut points: Vec<(f32, u64, u64)> = Vec::new();
        let (mut faulty, mut healthy) = (0, 0);
        for (score, is_faulty) in readings {
            if is_faulty {
                faulty += 1
            } else {
                healthy += 1
            }
            match points.last_mut() {
                // Readings of one score can only be above a threshold together.
                Some(last) if last.0 == score => (last.1, last.2) = (faulty, healthy),
                _ => points.push((score, faulty, healthy)),
            }
        }
        (faulty > 0 && healthy > 0).then_some(Self { points })
    }

    fn totals(&self) -> (f64, f64) {
        self.points.last().map_or((1.0, 1.0), |(_, faulty, healthy)| (*faulty as f64, *healthy as f64))
    }

    /// Share of the healthy readings above (false positive rate), share of the faulty ones (recall), score.
    pub(crate) fn roc(&self) -> impl Iterator<Item = (f64, f64, f32)> {
        let (faulty, healthy) = self.totals();
        self.points.iter().map(move |(score, f, h)| (*h as f64 / healthy, *f as f64 / faulty, *score))
    }

    /// Recall, precision, score.
    pub(crate) fn precision_recall(&self) -> impl Iterator<Item = (f64, f64, f32)> {
        let (faulty, _) = self.totals();
        self.points.iter().map(move |(score, f, h)| (*f as f64 / faulty, *f as f64 / (f + h) as f64, *score))
    }

    /// Area under the ROC curve, by trapezoids.
    pub fn auc(&self) -> f64 {
        let mut before = (0.0, 0.0);
        let mut area = 0.0;
        for (x, y, _) in self.roc() {
            area += (x - before.0) * 0.5 * (y + before.1);
            before = (x, y);
        }
        area
    }

    /// Precision averaged over recall, without interpolation.
    pub fn average_precision(&self) -> f64 {
        let mut before = 0.0;
        let mut sum = 0.0;
        for (recall, precision, _) in self.precision_recall() {
            sum += (recall - before) * precision;
            before = recall;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fault;

    const RULE: AlertRule = AlertRule { open_after: 2, close_below: 0.5, close_after: 1 };

    fn fault(began_ms: i64, repaired_ms: i64) -> Fault {
        Fault { kind: "bearing_wear".into(), component: "bearing_11".into(), began_ms, repaired_ms }
    }

    fn car(faults: Vec<Fault>) -> Car {
        Car { faults, ..Car::default() }
    }

    #[test]
    fn areas_are_those_of_textbook_examples() {
        let perfect = Curves::of(vec![(3.0, true), (2.0, true), (1.0, false)]).expect("both kinds");
        assert_eq!((perfect.auc(), perfect.average_precision()), (1.0, 1.0));
        let mixed = Curves::of(vec![(4.0, true), (3.0, false), (2.0, true), (1.0, false)]).expect("both kinds");
        assert_eq!((mixed.auc(), mixed.average_precision()), (0.75, 0.5 * 1.0 + 0.5 * 2.0 / 3.0));
        let tied = Curves::of(vec![(1.0, true), (1.0, false), (1.0, false)]).expect("both kinds");
        assert_eq!((tied.auc(), tied.average_precision()), (0.5, 1.0 / 3.0));
        assert!(Curves::of(vec![(1.0, true)]).is_none());
    }

    #[test]
    fn faults_are_found_by_alerts_that_open_while_they_are_there() {
        let hour = 3_600_000;
        let car = car(vec![fault(10 * hour, 20 * hour), fault(40 * hour, 50 * hour), fault(90 * hour, 95 * hour)]);
        // Above from 2 to 3 (no fault), 12 to 13 (a fault, found after three hours), 39 to 41 (opens before the fault).
        let above = [2, 3, 12, 13, 38, 39, 40, 41];
        let scores: Vec<_> = (0..60).map(|h| (h * hour, if above.contains(&h) { 9.0 } else { 0.0 })).collect();
        let found = detection(&[Scored { car: &car, scores }], &RULE, 5.0);
        assert_eq!((found.alerts, found.false_alarms), (3, 2));
        assert_eq!((found.faults, found.faults_found), (2, 1), "the third fault has no judged reading");
        assert_eq!(found.median_delay_s, Some(3.0 * 3600.0));
        assert_eq!(found.by_kind["bearing_wear"], [1, 2]);
        assert_eq!(found.faulty_readings, 20);
        assert!((found.alarms_per_car_day - 2.0 / (59.0 / 24.0)).abs() < 1e-9);
    }

    #[test]
    fn the_threshold_leaves_as_many_false_alarms_as_wanted() {
        let hour = 3_600_000;
        let healthy = car(vec![]);
        // Ten days; one alarm a day, of heights 3 to 12; a car with a fault of height 50, which does not count.
        let scores: Vec<_> =
            (0..240).map(|h| (h * hour, if h % 24 < 2 { 3.0 + (h / 24) as f32 } else { 0.0 })).collect();
        let ill = car(vec![fault(0, 241 * hour)]);
        let ill_scores: Vec<_> = (0..240).map(|h| (h * hour, 50.0)).collect();
        let cars = [Scored { car: &healthy, scores }, Scored { car: &ill, scores: ill_scores }];
        let at = threshold(&cars, &RULE, 0.2);
        assert_eq!(detection(&cars, &RULE, at).false_alarms, 3, "0.2 a day in 20 days, less the missing hours: {at}");
        let none = threshold(&cars, &RULE, 0.0);
        assert!((11.9..12.1).contains(&none), "{none}");
        assert_eq!(threshold(&cars, &RULE, 100.0), 1.0);
    }
}

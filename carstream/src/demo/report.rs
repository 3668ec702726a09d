//! The demo's final report: human-readable, and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::audit::{self, Ledger, thousands};

/// The result of a demo.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The seed of the fleet.
    pub seed: u64,
    /// How many cars.
    pub cars: u32,
    /// Where each reading went.
    pub ledger: Ledger,
    /// The same of each stream that the site has beside the platform's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, Ledger>,
    /// How well faults were found, in readings that the model had not seen.
    pub detection: Detection,
    /// From the car's first sending to the score.
    pub latency_ms: Latency,
    /// Where the files are.
    pub directory: PathBuf,
    /// What a person wants to know besides.
    #[serde(skip)]
    pub notes: Notes,
}

/// How well faults were found. `None` where the run was too short to tell.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Detection {
    /// Area under the ROC curve, per reading.
    pub auc: Option<f64>,
    /// Area under the precision-recall curve, per reading.
    pub average_precision: Option<f64>,
    /// False alerts per car and day of event time.
    pub alerts_per_car_day: Option<f64>,
    /// Faults that were there to be found.
    pub faults: u64,
    /// Of these, found by an alert while they lasted.
    pub faults_found: u64,
    /// Median event time from the fault's beginning to its alert, in seconds.
    pub median_delay_s: Option<f64>,
}

/// Wall-clock milliseconds from the first sending of a reading to its score.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: Option<i64>,
    /// 99th percentile.
    pub p99: Option<i64>,
}

/// Alerts in the whole run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alerts {
    /// Alerts opened.
    pub opened: u64,
    /// Messages of alerts opened and closed.
    pub messages: u64,
    /// Of these, received by their car.
    pub delivered: u64,
}

/// Human-readable details.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// One line on what ran.
    pub headline: String,
    /// The model in force at the end.
    pub model: Option<String>,
    /// Rows that it was trained on.
    pub trained_rows: u64,
    /// False alarms per car and day that the threshold was set for, and the car-days that it was set with.
    pub wanted_alarms: (f64, f64),
    /// Alerts in the whole run.
    pub alerts: Alerts,
    /// The account of every reading.
    pub audit: audit::Report,
    /// The account of the streams that the site has beside the platform's.
    pub streams: BTreeMap<String, audit::Report>,
    /// What a person should know about this run: it was cut short, a stage failed.
    pub remarks: Vec<String>,
}

impl Report {
    /// Whether every reading of every stream is accounted for.
    pub fn is_clean(&self) -> bool {
        self.notes.audit.is_clean() && self.notes.streams.values().all(audit::Report::is_clean)
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map keys that JSON cannot hold")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = &self.notes;
        writeln!(f, "\n{}", n.headline)?;
        for remark in &n.remarks {
            writeln!(f, "  ! {remark}")?;
        }
        writeln!(f, "\nWhere each reading went")?;
        let scored_by = n.model.as_ref().map_or("no model yet".to_owned(), |model| format!("by model {model}"));
        n.audit.table(f, &scored_by)?;
        for (name, audit) in &n.streams {
            writeln!(f, "\nStream {name}")?;
            audit.table(f, "")?;
        }
        self.detection(f)?;
        self.ending(f)
    }
}

impl Report {
    fn detection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (d, n) = (&self.detection, &self.notes);
        writeln!(f, "\nDetection, compared with the workshop's findings, in readings after the training")?;
        if n.model.is_none() {
            return writeln!(f, "  nothing was scored: no model was trained in this run");
        }
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "too little to tell".into(),
        };
        writeln!(f, "  {:<34}{:>12}", "rows trained on", thousands(n.trained_rows))?;
        writeln!(f, "  {:<34}{:>12}", "AUC, per reading", number(d.auc, 3))?;
        writeln!(f, "  {:<34}{:>12}", "average precision, per reading", number(d.average_precision, 3))?;
        writeln!(f, "  {:<34}{:>12}", "faults found", format!("{} of {}", d.faults_found, d.faults))?;
        if let Some(delay) = d.median_delay_s {
            writeln!(f, "  {:<34}{:>12}   of event time, from its beginning", "median delay", minutes(delay))?;
        }
        let (wanted, car_days) = n.wanted_alarms;
        let set = format!("wanted {wanted}; its threshold was set with {car_days:.0} car-days");
        writeln!(f, "  {:<34}{:>12}   {set}", "false alerts per car and day", number(d.alerts_per_car_day, 3))?;
        let Alerts { opened, messages, delivered } = n.alerts;
        let (opened, messages, delivered) = (thousands(opened), thousands(messages), thousands(delivered));
        writeln!(
            f,
            "  {:<34}{opened:>12}   {delivered} of {messages} messages reached their car over MQTT",
            "alerts, whole run"
        )
    }

    fn ending(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(p50), Some(p99)) = (self.latency_ms.p50, self.latency_ms.p99) {
            writeln!(f, "\nLatency, car to verdict: {p50} ms median, {p99} ms at the 99th percentile")?;
        }
        let directory = self.directory.display();
        writeln!(f, "\nFiles are in {directory}")?;
        writeln!(f, "  lake/            Parquet, and models with their plots")?;
        writeln!(f, "  ledger.csv       what each car sent, and what was acknowledged")?;
        writeln!(f, "  report.txt       this report, and report.json for machines")?;
        writeln!(f, "  edge-log/        the logs themselves, and cloud-log/")?;
        writeln!(f, "\nTry next")?;
        writeln!(f, "  cargo run --release -- demo --cars 2000 --seed 8")?;
        writeln!(f, "      a larger fleet, with other faults")?;
        writeln!(f, "  target/release/carstream mqtt-bridge --help")?;
        writeln!(f, "      every stage by itself: carstream --help lists them")?;
        writeln!(f, "  target/release/carstream trainer --lake {directory}/lake --log {directory}/cloud-log --seed 2")?;
        writeln!(f, "      then train again from the lake; the plots beside the model say how good it is")?;
        writeln!(
            f,
            "  target/release/carstream audit --edge-log {directory}/edge-log --cloud-log {directory}/cloud-log \\"
        )?;
        writeln!(
            f,
            "      --lake {directory}/lake --pseudonym-key-file {directory}/pseudonym.key --ledger \
             {directory}/ledger.csv"
        )?;
        writeln!(
            f,
            "      where each reading went, once more; carstream dead-letter list --log {directory}/edge-log: what was \
             refused"
        )
    }
}

fn minutes(seconds: f64) -> String {
    if seconds < 5400.0 { format!("{:.0} min", seconds / 60.0) } else { format!("{:.1} h", seconds / 3600.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_keys() {
        let report = Report {
            seed: 7,
            cars: 500,
            ledger: Ledger::default(),
            streams: BTreeMap::new(),
            detection: Detection::default(),
            latency_ms: Latency::default(),
            directory: "d".into(),
            notes: Notes::default(),
        };
        let value: serde_json::Value = serde_json::from_str(&report.to_json()).expect("valid JSON");
        let keys = |v: &serde_json::Value| v.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>().join(" "));
        assert_eq!(keys(&value).as_deref(), Some("cars detection directory latency_ms ledger seed"));
        assert_eq!(
            keys(&value["ledger"]).as_deref(),
            Some(
                "acknowledged clean dead_letters doubled duplicates_removed lost parquet_rows raw replicated scored \
                 sent"
            )
        );
        assert_eq!(
            keys(&value["detection"]).as_deref(),
            Some("alerts_per_car_day auc average_precision faults faults_found median_delay_s")
        );
        assert_eq!(keys(&value["latency_ms"]).as_deref(), Some("p50 p99"));
    }
}

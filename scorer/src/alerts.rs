//! Alerts as they are written to topic `alerts`, and which of them are open.
//!
//! ```text
//!  verdicts ─► model::AlertState ─► should an alert be open? ─┐
//!                                                             ├─ differ ─► write one: open, or closed
//!  topic alerts, own writes ─► Announced ─► is one open? ─────┘
//! ```
//!
//! Alerts have been told to the outside, so the topic `alerts`, and not the scorer's memory, says which are open.
//! Another model may judge the past differently after a restart; it still closes an alert that an earlier model opened,
//! once, under its original id.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A record of topic `alerts`, in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The same in the record that opens an alert and in the one that closes it.
    pub alert_id: String,
    /// The pseudonym of the car.
    pub car: String,
    /// What happened.
    pub state: AlertStatus,
    /// Event time of the reading that opened it.
    pub opened_ms: i64,
    /// Event time of the reading that this record is about.
    pub event_time_ms: i64,
    /// The score of that reading.
    pub score: f32,
    /// The threshold then.
    pub threshold: f32,
    /// The three features that contributed most when it opened, the first most.
    pub features: Vec<String>,
    /// The model that decided it.
    pub model_version: String,
}

/// What happened to an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertStatus {
    /// It was opened.
    Open,
    /// It was closed.
    Closed,
}

impl Alert {
    /// The id of an alert that opens with this reading: the same whoever computes it, and however often.
    pub fn id(car: &str, boot_id: i64, seq: i64) -> String {
        let hash = Sha256::digest(format!("{car}/{boot_id}/{seq}"));
        hex::encode(&hash[..16])
    }
}

/// The alerts that are open, as far as the outside knows.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    /// Open, as topic `alerts` says.
    committed: HashMap<String, Alert>,
    /// Written since, by car, with the partition of the reading: not read back from the topic yet.
    pending: HashMap<String, (u32, Alert)>,
}

impl Announced {
    /// Takes the value of the next record of topic `alerts`.
    pub(crate) fn read(&mut self, value: &[u8]) -> Result<(), serde_json::Error> {
        let alert: Alert = serde_json::from_slice(value)?;
        let same = |pending: &Alert| pending.alert_id == alert.alert_id && pending.state == alert.state;
        if self.pending.get(&alert.car).is_some_and(|(_, pending)| same(pending)) {
            self.pending.remove(&alert.car);
        }
        match alert.state {
            AlertStatus::Open => self.committed.insert(alert.car.clone(), alert),
            AlertStatus::Closed => self.committed.remove(&alert.car),
        };
        Ok(())
    }

    /// The open alert of a car.
    pub(crate) fn open(&self, car: &str) -> Option<&Alert> {
        match self.pending.get(car) {
            Some((_, alert)) => Some(alert).filter(|alert| alert.state == AlertStatus::Open),
            None => self.committed.get(car),
        }
    }

    /// Takes an alert that is being written.
    pub(crate) fn write(&mut self, partition: u32, alert: Alert) {
        self.pending.insert(alert.car.clone(), (partition, alert));
    }

    /// Forgets what was being written for readings of `partition`: it was rolled back, or is in the topic.
    pub(crate) fn reset(&mut self, partition: u32) {
        self.pending.retain(|_, (p, _)| *p != partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(car: &str, id: &str, state: AlertStatus) -> Alert {
        Alert {
            alert_id: id.to_owned(),
            car: car.to_owned(),
            state,
            opened_ms: 1_795_219_200_000,
            event_time_ms: 1_795_219_201_000,
            score: 1.1,
            threshold: 1.0,
            features: ["speed", "current_draw", "coolant_temp"].map(str::to_owned).to_vec(),
            model_version: "v1".to_owned(),
        }
    }

    fn bytes(alert: &Alert) -> Vec<u8> {
        serde_json::to_vec(alert).unwrap()
    }

    #[test]
    fn the_json_is_the_contract() {
        assert_eq!(
            String::from_utf8(bytes(&alert("c", "1", AlertStatus::Open))).unwrap(),
            concat!(
                r#"{"alert_id":"1","car":"c","state":"open","opened_ms":1795219200000,"event_time_ms":1795219201000,"#,
                r#""score":1.1,"threshold":1.0,"features":["speed","current_draw","coolant_temp"],"#,
                r#""model_version":"v1"}"#,
            )
        );
        assert!(
            String::from_utf8(bytes(&alert("c", "1", AlertStatus::Closed))).unwrap().contains(r#""state":"closed""#)
        );
    }

    #[test]
    fn ids_tell_openings_apart() {
        let ids = [Alert::id("a", 1, 2), Alert::id("a", 1, 3), Alert::id("a", 2, 2), Alert::id("b", 1, 2)];
        assert_eq!(ids[0], Alert::id("a", 1, 2));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(ids[0].len(), 32);
    }

    #[test]
    fn what_is_written_holds_until_it_is_read_back() {
        let mut announced = Announced::default();
        let (opened, closed) = (alert("c", "1", AlertStatus::Open), alert("c", "1", AlertStatus::Closed));
        announced.write(0, opened.clone());
        assert_eq!(announced.open("c"), Some(&opened));
        announced.write(0, closed.clone());
        announced.read(&bytes(&opened)).unwrap();
        assert_eq!(announced.open("c"), None, "the topic is behind: it was closed since");
        announced.read(&bytes(&closed)).unwrap();
        assert_eq!(announced.open("c"), None);
        assert!(announced.pending.is_empty() && announced.committed.is_empty());
    }

    #[test]
    fn what_was_rolled_back_never_was() {
        let mut announced = Announced::default();
        let opened = alert("c", "1", AlertStatus::Open);
        announced.read(&bytes(&opened)).unwrap();
        announced.write(0, alert("c", "1", AlertStatus::Closed));
        announced.write(1, alert("d", "2", AlertStatus::Open));
        announced.reset(0);
        assert_eq!(announced.open("c"), Some(&opened));
        assert!(announced.open("d").is_some(), "another partition is not touched");
    }

    #[test]
    fn what_is_no_alert_is_refused() {
        assert!(Announced::default().read(b"{}").is_err());
        assert!(Announced::default().read(&[0xff]).is_err());
    }
}

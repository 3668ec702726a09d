//! The MQTT topics of a car, and the log topics they end in: what the contract says that cars publish and receive.
//!
//! ```text
//! vehicles/{vin}/telemetry ─► telemetry.raw        vehicles/{vin}/status ─► status.raw
//! vehicles/{vin}/faults    ─► faults.raw           vehicles/{vin}/alerts ◄─ alerts
//! vehicles/{vin}/drivers   ─► drivers
//! ```

use contract::{Contract, Topic};

/// What a car publishes: an index into the levels of [`Topics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind(usize);

impl Kind {
    /// Its place among the levels.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// One level that cars publish to.
#[derive(Debug)]
pub(crate) struct Level {
    /// The last level of the MQTT topic.
    pub(crate) name: String,
    /// The topic of the log, as the contract declares it.
    pub(crate) topic: Topic,
}

/// What cars may publish and receive at this site.
#[derive(Debug)]
pub(crate) struct Topics {
    levels: Vec<Level>,
    /// The level that cars subscribe to, and the topic of the log that it comes from.
    alerts: Option<Level>,
}

impl Topics {
    /// Those of a contract.
    pub(crate) fn new(contract: &Contract) -> Self {
        let level = |(name, topic): (&str, &Topic)| Level { name: name.to_owned(), topic: topic.clone() };
        Self { levels: contract.cars_publish().map(level).collect(), alerts: contract.cars_receive().map(level).next() }
    }

    /// What cars publish, in the order of [`Kind::index`].
    pub(crate) fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The log topic that alerts come from, if cars receive any.
    pub(crate) fn alerts(&self) -> Option<&Topic> {
        self.alerts.as_ref().map(|level| &level.topic)
    }

    /// The VIN and the kind of a topic that a car may publish to.
    pub(crate) fn parse<'a>(&self, topic: &'a str) -> Option<(&'a str, Kind)> {
        let (vin, last) = split(topic)?;
        let kind = self.levels.iter().position(|level| level.name == last)?;
        Some((vin, Kind(kind)))
    }

    /// Whether a last will may go there.
    pub(crate) fn takes_wills(&self, kind: Kind) -> bool {
        self.levels[kind.0].topic.wills
    }

    /// The VIN of a topic (or filter) that alerts of a car are sent to.
    pub(crate) fn parse_alerts<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let alerts = self.alerts.as_ref()?;
        split(topic).and_then(|(vin, last)| (last == alerts.name).then_some(vin))
    }

    /// Where the alerts of a car are sent to.
    pub(crate) fn alerts_topic(&self, vin: &str) -> String {
        let level = self.alerts.as_ref().map_or("", |level| level.name.as_str());
        format!("{PREFIX}{vin}/{level}")
    }
}

/// A VIN has 17 characters (ISO 3779); whether it is one is for the preprocessor to say, which can keep what it
/// refuses. Here it only has to be a harmless key.
const MAX_VIN_CHARS: usize = 32;

/// Whether this may stand for a car in a topic: 1 to 32 letters, digits, `-` and `_`.
pub fn is_vin(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=MAX_VIN_CHARS).contains(&text.len()) && text.bytes().all(plain)
}

/// What the MQTT topics of cars begin with; a VIN follows.
pub(crate) const PREFIX: &str = "vehicles/";

fn split(topic: &str) -> Option<(&str, &str)> {
    let (vin, last) = topic.strip_prefix(PREFIX)?.split_once('/')?;
    is_vin(vin).then_some((vin, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_cars_and_nothing_else() {
        let topics = Topics::new(Contract::builtin());
        let names: Vec<_> = topics.levels().iter().map(|level| (level.name.as_str(), &*level.topic.name)).collect();
        let wanted = [
            ("drivers", "drivers"),
            ("faults", "faults.raw"),
            ("status", "status.raw"),
            ("telemetry", "telemetry.raw"),
        ];
        assert_eq!(names, wanted);
        for (index, (name, _)) in wanted.into_iter().enumerate() {
            let topic = format!("vehicles/WVWZZZ1JZXW000001/{name}");
            assert_eq!(topics.parse(&topic), Some(("WVWZZZ1JZXW000001", Kind(index))));
            assert_eq!(topics.takes_wills(Kind(index)), name == "status");
        }
        let long = format!("vehicles/{}/telemetry", "A".repeat(33));
        for wrong in [
            "",
            "/",
            "vehicles",
            "vehicles/",
            "vehicles/A",
            "vehicles/A/",
            "vehicles//telemetry",
            "vehicles/A/alerts",
            "vehicles/A/telemetry/",
            "vehicles/A/telemetry/x",
            "/vehicles/A/telemetry",
            "Vehicles/A/telemetry",
            "vehicles/+/telemetry",
            "vehicles/#",
            "vehicles/A/#",
            "vehicles/A\0/telemetry",
            "vehicles/ä/telemetry",
            "$SYS/x",
            &long,
        ] {
            assert_eq!(topics.parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(topics.parse_alerts(&topics.alerts_topic("A")), Some("A"));
        assert_eq!(topics.parse_alerts("vehicles/+/alerts"), None);
        assert_eq!(topics.parse_alerts("vehicles/A/telemetry"), None);
    }
}

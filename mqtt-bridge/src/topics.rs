//! The MQTT topics of a car, and the log topics they end in.
//!
//! ```text
//! vehicles/{vin}/telemetry ─► telemetry.raw        vehicles/{vin}/status ─► status.raw
//! vehicles/{vin}/faults    ─► faults.raw           vehicles/{vin}/alerts ◄─ alerts
//! vehicles/{vin}/drivers   ─► drivers
//! ```

/// What a car publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Readings.
    Telemetry,
    /// What the workshop found.
    Faults,
    /// Who drives.
    Drivers,
    /// Comings and goings, wills among them.
    Status,
}

impl Kind {
    /// All of them; `kind as usize` is an index into this.
    pub(crate) const ALL: [Kind; 4] = [Kind::Telemetry, Kind::Faults, Kind::Drivers, Kind::Status];

    /// The last level of the MQTT topic.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Telemetry => "telemetry",
            Kind::Faults => "faults",
            Kind::Drivers => "drivers",
            Kind::Status => "status",
        }
    }

    /// The topic of the log.
    pub(crate) fn log_topic(self) -> &'static str {
        match self {
            Kind::Telemetry => "telemetry.raw",
            Kind::Faults => "faults.raw",
            Kind::Drivers => "drivers",
            Kind::Status => "status.raw",
        }
    }
}

/// What the MQTT topics of cars begin with; a VIN follows.
pub(crate) const PREFIX: &str = "vehicles/";

/// The log topic that alerts come from.
pub(crate) const ALERTS: &str = "alerts";

/// A VIN has 17 characters (ISO 3779); whether it is one is for the preprocessor to say, which can keep what it
/// refuses. Here it only has to be a harmless key.
const MAX_VIN_CHARS: usize = 32;

/// The VIN and the kind of a topic that a car may publish to.
pub(crate) fn parse(topic: &str) -> Option<(&str, Kind)> {
    let (vin, last) = split(topic)?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == last)?;
    Some((vin, kind))
}

/// The VIN of a topic (or filter) that alerts of a car are sent to.
pub(crate) fn parse_alerts(topic: &str) -> Option<&str> {
    split(topic).and_then(|(vin, last)| (last == ALERTS).then_some(vin))
}

/// Where the alerts of a car are sent to.
pub(crate) fn alerts_topic(vin: &str) -> String {
    format!("{PREFIX}{vin}/{ALERTS}")
}

/// Whether this may stand for a car in a topic: 1 to 32 letters, digits, `-` and `_`.
pub fn is_vin(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=MAX_VIN_CHARS).contains(&text.len()) && text.bytes().all(plain)
}

fn split(topic: &str) -> Option<(&str, &str)> {
    let (vin, last) = topic.strip_prefix(PREFIX)?.split_once('/')?;
    is_vin(vin).then_some((vin, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_cars_and_nothing_else() {
        assert_eq!(parse("vehicles/WVWZZZ1JZXW000001/telemetry"), Some(("WVWZZZ1JZXW000001", Kind::Telemetry)));
        for kind in Kind::ALL {
            assert_eq!(parse(&format!("vehicles/A/{}", kind.name())), Some(("A", kind)));
            assert_eq!(Kind::ALL[kind as usize], kind);
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
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_alerts(&alerts_topic("A")), Some("A"));
        assert_eq!(parse_alerts("vehicles/+/alerts"), None);
        assert_eq!(parse_alerts("vehicles/A/telemetry"), None);
    }
}

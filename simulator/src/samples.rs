//! Messages of streams that only the site's contract knows: what a car publishes beside readings and findings.
//!
//! ```text
//!  samples.ndjson of a stream ─► with the car's VIN, boot, number and event time ─► vehicles/{vin}/LEVEL
//! ```
//!
//! The simulator cannot know what such a stream means; the sample readings of its folder say what a message looks like.
//! Every [`EVERY`]th reading of a boot brings the next message, so that its number is a function of the reading's: a
//! run that is resumed sends the same ones again, and none is skipped.

use contract::{Contract, StreamDefinition};
use serde_json::{Map, Value};
use telemetry::schema::Kind;

use crate::car::Reading;

/// Readings of a boot from one message of each stream to the next.
pub(crate) const EVERY: u32 = 20;

/// What the simulator's cars say by themselves: the last levels of their topics.
const OWN_LEVELS: [&str; 4] = ["telemetry", "faults", "drivers", "status"];

/// The messages of one stream.
#[derive(Debug)]
pub(crate) struct Samples {
    level: String,
    templates: Vec<Map<String, Value>>,
    identity: [String; 3],
    times: Vec<String>,
}

/// The streams of a contract that cars publish to and the simulator has no messages of its own for.
pub(crate) fn of_contract(contract: &Contract) -> Vec<Samples> {
    let samples = |stream: &StreamDefinition| {
        let level = contract.topic(&stream.input.topic)?.cars_publish.clone()?;
        let lines = stream.samples.lines().filter_map(|line| serde_json::from_str(line).ok());
        let templates: Vec<_> = lines.collect();
        (!OWN_LEVELS.contains(&level.as_str()) && !templates.is_empty()).then(|| Samples::new(stream, level, templates))
    };
    contract.streams().filter_map(samples).collect()
}

impl Samples {
    fn new(stream: &StreamDefinition, level: String, templates: Vec<Map<String, Value>>) -> Self {
        let fields = &stream.input.schema.fields;
        let identity = stream.identity.map(|column| fields[column].name.clone());
        let times = fields.iter().filter(|field| field.kind == Kind::TimestampMillis);
        Self { level, templates, identity, times: times.map(|field| field.name.clone()).collect() }
    }

    /// Where a car publishes them.
    pub(crate) fn topic(&self, vin: &str) -> String {
        format!("vehicles/{vin}/{}", self.level)
    }

    /// The message that comes with this reading.
    pub(crate) fn write(&self, vin: &str, message: &Sample, out: &mut Vec<u8>) {
        let mut payload = self.templates[message.seq as usize % self.templates.len()].clone();
        let [car, boot_id, seq] = &self.identity;
        payload.insert(car.clone(), vin.into());
        payload.insert(boot_id.clone(), message.boot_id.into());
        payload.insert(seq.clone(), message.seq.into());
        for time in self.times.iter().filter(|time| self.templates[0].contains_key(*time)) {
            payload.insert(time.clone(), message.event_time_ms.into());
        }
        serde_json::to_writer(out, &payload).expect("a JSON value, into memory");
    }
}

/// One message of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Which of the streams.
    pub(crate) stream: usize,
    pub(crate) boot_id: u64,
    pub(crate) seq: u32,
    pub(crate) event_time_ms: i64,
}

/// The messages that come with a reading, one of each of `streams` streams.
pub(crate) fn with(reading: &Reading, streams: usize) -> impl Iterator<Item = Sample> + use<> {
    let (boot_id, seq, event_time_ms) = (reading.boot_id, reading.seq / EVERY, reading.event_time_ms);
    let streams = if reading.seq.is_multiple_of(EVERY) { streams } else { 0 };
    (0..streams).map(move |stream| Sample { stream, boot_id, seq, event_time_ms })
}

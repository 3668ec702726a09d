//! One reading: what a car measured at one moment, in fixed point.
//!
//! Values are whole numbers of thousandths (positions: millionths of a degree), as a control unit sends them. That
//! makes a reading small, quick to write, and the same on every platform to the last digit.

/// The model's features in the order of the schema.
pub const FEATURES: [&str; 18] = [
    "coolant_temp",
    "intake_air_temp",
    "intake_air_flow_speed",
    "battery_percentage",
    "battery_voltage",
    "current_draw",
    "speed",
    "engine_vibration_amplitude",
    "throttle_pos",
    "tire_pressure_11",
    "tire_pressure_12",
    "tire_pressure_21",
    "tire_pressure_22",
    "accelerometer_11_value",
    "accelerometer_12_value",
    "accelerometer_21_value",
    "accelerometer_22_value",
    "control_unit_firmware",
];

/// The place of the firmware among the features: a whole number, the only one.
pub(crate) const FIRMWARE: usize = 17;

/// Smallest and largest value of each feature in `schemas/telemetry_raw.avsc`.
const BOUNDS: [(f64, f64); 18] = [
    (-50.0, 200.0),
    (-50.0, 150.0),
    (0.0, 1_000.0),
    (0.0, 100.0),
    (0.0, 1_000.0),
    (-2_000.0, 2_000.0),
    (0.0, 120.0),
    (0.0, 10_000.0),
    (0.0, 1.0),
    (0.0, 150.0),
    (0.0, 150.0),
    (0.0, 150.0),
    (0.0, 150.0),
    (-50.0, 50.0),
    (-50.0, 50.0),
    (-50.0, 50.0),
    (-50.0, 50.0),
    (0.0, 1_000_000.0),
];

/// The network's quality where a reading is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Good.
    Online,
    /// It goes away at this moment: what is sent may or may not arrive, and no answer comes back.
    Fading,
    /// None: a tunnel, an underground garage.
    Offline,
}

/// What a car measured at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Random, new at each start of the control unit.
    pub boot_id: u64,
    /// Counts the readings of one boot from 0.
    pub seq: u32,
    /// When it was measured.
    pub event_time_ms: i64,
    /// `None` while parked.
    pub trip_id: Option<u64>,
    /// Millionths of a degree.
    pub latitude: i32,
    /// Millionths of a degree.
    pub longitude: i32,
    /// In the order of [`FEATURES`]: thousandths, the firmware whole.
    pub features: [i32; 18],
    /// Thousandths of a degree; sent by cars with the newer schema.
    pub ambient: Option<i32>,
    /// While a fault was active (never sent).
    pub faulty: bool,
    /// Where it was taken (never sent).
    pub coverage: Coverage,
}

impl Reading {
    /// The features as numbers in their units.
    pub fn values(&self) -> [f64; 18] {
        core::array::from_fn(|i| {
            if i == FIRMWARE { f64::from(self.features[i]) } else { f64::from(self.features[i]) / 1_000.0 }
        })
    }
}

/// Features in fixed point, within the bounds of the schema.
pub(crate) fn fixed_point(features: &[f64; 18]) -> [i32; 18] {
    core::array::from_fn(|i| {
        let (low, high) = BOUNDS[i];
        let scale = if i == FIRMWARE { 1.0 } else { 1_000.0 };
        fixed(features[i].clamp(low, high), scale)
    })
}

/// `value` times `scale`, rounded.
pub(crate) fn fixed(value: f64, scale: f64) -> i32 {
    (value * scale).round() as i32
}

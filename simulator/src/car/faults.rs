//! Faults: they begin, grow while the car is driven, act through the physics, and are repaired.
//!
//! ```text
//! in a trip ──► begins ──► grows with driving ──► full ──► repaired at the end of a trip, in the workshop
//!               │ first reading that it touched                    │ first reading without it
//!               └─ began_ms                                        └─ repaired_ms ─► the workshop's finding
//! ```
//!
//! How often they begin follows from the wanted share of readings (`--fault-share`); a car has one at a time.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// Turns a share of readings into a rate of onsets in driving time. A fault is driven with for 0.49 h on average, but a
/// third of all readings are taken while parked, where cars are rarely left with one. Measured over 500 cars and 20 h.
const MEAN_DRIVEN_H: f64 = 0.40;

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// One tyre loses gas.
    SlowTireLeak,
    /// One wheel bearing gets rough.
    BearingWear,
    /// The radiator carries less heat away.
    CoolingFailure,
    /// A cell of the traction battery sags under load.
    WeakBatteryCell,
    /// The shaft shakes the rear.
    DriveshaftImbalance,
    /// One sensor reports a value of its own.
    StuckSensor,
    /// The control unit fell back to an old map.
    OutdatedFirmware,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SlowTireLeak,
        Self::BearingWear,
        Self::CoolingFailure,
        Self::WeakBatteryCell,
        Self::DriveshaftImbalance,
        Self::StuckSensor,
        Self::OutdatedFirmware,
    ];

    /// As in a finding: `slow_tire_leak`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowTireLeak => "slow_tire_leak",
            Self::BearingWear => "bearing_wear",
            Self::CoolingFailure => "cooling_failure",
            Self::WeakBatteryCell => "weak_battery_cell",
            Self::DriveshaftImbalance => "driveshaft_imbalance",
            Self::StuckSensor => "stuck_sensor",
            Self::OutdatedFirmware => "outdated_firmware",
        }
    }
}

const TIRES: [&str; 4] = ["tire_11", "tire_12", "tire_21", "tire_22"];
const BEARINGS: [&str; 4] = ["bearing_11", "bearing_12", "bearing_21", "bearing_22"];

/// The sensors that stick, by their place among the features, with what they drift by at worst (in the unit of the
/// feature): an open or shorted line pulls a dead sensor slowly towards a rail.
const STICKING: [(&str, usize, f64); 10] = [
    ("coolant_temp", 0, -28.0),
    ("intake_air_temp", 1, 14.0),
    ("intake_air_flow_speed", 2, 12.0),
    ("battery_voltage", 4, -14.0),
    ("current_draw", 5, 40.0),
    ("speed", 6, -9.0),
    ("engine_vibration_amplitude", 7, 4.0),
    ("throttle_pos", 8, 0.25),
    ("accelerometer_11_value", 13, 0.16),
    ("accelerometer_22_value", 16, 0.16),
];

/// What the workshop found: one line of ground truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Of the car.
    pub vin: String,
    /// What broke.
    pub kind: FaultKind,
    /// Which one: `tire_11`, `bearing_22`, `coolant_temp`, …
    pub component: String,
    /// Event time of the first reading that the fault touched.
    pub began_ms: i64,
    /// Event time of the first reading without it.
    pub repaired_ms: i64,
}

/// What the active fault does to the coefficients of the model; all zero in a healthy car.
#[derive(Debug, Clone, Default)]
pub(crate) struct Effects {
    /// Share of the gas of each tyre, per second.
    pub(crate) leak_per_s: [f64; 4],
    pub(crate) bearing: [f64; 4],
    /// Share of the radiator's conductance that is gone.
    pub(crate) cooling_loss: f64,
    pub(crate) weak_cell: f64,
    pub(crate) imbalance: f64,
    pub(crate) outdated_map: f64,
}

/// A fault that is going to begin in a trip.
#[derive(Debug, Clone)]
pub(crate) struct Onset {
    pub(crate) at_s: i64,
    kind: FaultKind,
    part: usize,
    grow_s: f64,
    lasts_s: f64,
    peak: f64,
}

impl Onset {
    /// Whether a fault begins in a trip from `start_s` to `end_s`, and which.
    pub(crate) fn draw(start_s: i64, end_s: i64, share: f64, random: &mut Random) -> Option<Self> {
        let driven_h = (end_s - start_s) as f64 / 3_600.0;
        // Healthy and faulty times alternate: share = mean / (mean + healthy time).
        let per_hour = share / (1.0 - share).max(0.05) / MEAN_DRIVEN_H;
        if !random.chance(1.0 - libm::exp(-per_hour * driven_h)) {
            return None;
        }
        let kind = FaultKind::ALL[random.below(FaultKind::ALL.len())];
        let parts = if kind == FaultKind::StuckSensor { STICKING.len() } else { 4 };
        let lasts_s = random.range(800.0, 1_700.0);
        // Drivers don't drive long with it: it begins when about this much of the trip is left.
        let at_s = end_s - (lasts_s * random.range(0.7, 1.4)) as i64;
        Some(Self {
            at_s: at_s.clamp(start_s + 30, end_s - 60),
            kind,
            part: random.below(parts),
            grow_s: random.range(240.0, 700.0),
            lasts_s,
            peak: random.range(0.55, 1.0),
        })
    }

    /// The fault begins.
    pub(crate) fn begin(self) -> ActiveFault {
        ActiveFault { onset: self, driven_s: 0.0, began_ms: None, stuck_at: None }
    }
}

/// A fault that has begun.
#[derive(Debug, Clone)]
pub(crate) struct ActiveFault {
    onset: Onset,
    driven_s: f64,
    /// Set by the first reading.
    pub(crate) began_ms: Option<i64>,
    /// What the sensor showed when it stuck.
    stuck_at: Option<f64>,
}

impl ActiveFault {
    /// The car was driven on.
    pub(crate) fn driven(&mut self, dt_s: f64) {
        self.driven_s += dt_s;
    }

    /// The driver has had enough: at the end of a trip, once the fault has lasted. A car that will stand for long is
    /// brought in earlier.
    pub(crate) fn ready_for_repair(&self, next_trip_in_s: i64) -> bool {
        const LONG_STOP_S: i64 = 3_600;
        self.driven_s >= self.onset.lasts_s || (self.driven_s >= 420.0 && next_trip_in_s > LONG_STOP_S)
    }

    pub(crate) fn kind(&self) -> FaultKind {
        self.onset.kind
    }

    /// As in a finding.
    pub(crate) fn component(&self) -> &'static str {
        match self.onset.kind {
            FaultKind::SlowTireLeak => TIRES[self.onset.part],
            FaultKind::BearingWear => BEARINGS[self.onset.part],
            FaultKind::CoolingFailure => "radiator",
            FaultKind::WeakBatteryCell => "battery_pack",
            FaultKind::DriveshaftImbalance => "driveshaft",
            FaultKind::StuckSensor => STICKING[self.onset.part].0,
            FaultKind::OutdatedFirmware => "control_unit",
        }
    }

    /// What it does to the car now.
    pub(crate) fn effects(&self) -> Effects {
        let severity = self.severity();
        let mut effects = Effects::default();
        match self.onset.kind {
            // At worst a fifth of the gas in an hour: about 10 psi.
            FaultKind::SlowTireLeak => effects.leak_per_s[self.onset.part] = 0.22 / 3_600.0 * severity,
            FaultKind::BearingWear => effects.bearing[self.onset.part] = severity,
            FaultKind::CoolingFailure => effects.cooling_loss = 0.95 * severity.sqrt(),
            FaultKind::WeakBatteryCell => effects.weak_cell = severity,
            FaultKind::DriveshaftImbalance => effects.imbalance = severity,
            FaultKind::OutdatedFirmware => effects.outdated_map = severity,
            FaultKind::StuckSensor => {}
        }
        effects
    }

    /// Replaces what a stuck sensor would have measured. The first call makes it stick.
    pub(crate) fn distort(&mut self, features: &mut [f64; 18]) {
        match self.onset.kind {
            FaultKind::StuckSensor => {
                let (_, feature, drift) = STICKING[self.onset.part];
                let stuck_at = *self.stuck_at.get_or_insert(features[feature]);
                features[feature] = stuck_at + drift * self.severity();
            }
            FaultKind::OutdatedFirmware => features[17] = 1_000.0,
            _ => {}
        }
    }

    /// 0–1: grows with driving, from a quarter of its peak.
    fn severity(&self) -> f64 {
        self.onset.peak * (0.25 + 0.75 * self.driven_s / self.onset.grow_s).min(1.0)
    }
}

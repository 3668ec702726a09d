//! The 18 features of a reading: names, units, and how they are taken out of a batch.
//!
//! Names and units are those of the reference demo of a streaming car platform on Kafka; the order is that of its
//! schema and is part of every model.

use arrow::array::{Array, AsArray, Float32Array, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float32Type, Int32Type, TimeUnit, TimestampMillisecondType};

use crate::Error;

/// How many features there are.
pub const FEATURE_COUNT: usize = 18;

/// One value per feature, in the order of [`FEATURES`].
pub type Row = [f32; FEATURE_COUNT];

/// One number per feature on the way to a score: in double precision, as running means need.
pub type Values = [f64; FEATURE_COUNT];

/// The names, in order.
pub const FEATURES: [&str; FEATURE_COUNT] = [
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

/// The unit of each feature as the car sends it.
pub const UNITS: [&str; FEATURE_COUNT] = [
    "°C",
    "°C",
    "g/s",
    "%",
    "V",
    "A",
    "m/s",
    "mm/s",
    "0-1",
    "psi",
    "psi",
    "psi",
    "psi",
    "g",
    "g",
    "g",
    "g",
    "1000, 2000, ...",
];

/// Position of the coolant temperature.
pub const COOLANT: usize = 0;
/// Position of the intake air flow.
pub const AIR_FLOW: usize = 2;
/// Position of the battery's charge.
pub const CHARGE: usize = 3;
/// Position of the battery's voltage.
pub const VOLTAGE: usize = 4;
/// Position of the current drawn from the battery.
pub const CURRENT: usize = 5;
/// Position of the speed.
pub const SPEED: usize = 6;
/// Position of the engine's vibration amplitude.
pub const VIBRATION: usize = 7;
/// Position of the firmware.
pub const FIRMWARE: usize = 17;

/// Whether a car is parked with its control unit in standby: it does not move, breathe or shake. What it measures then
/// says nothing of how it drives.
pub fn is_parked(raw: &Row) -> bool {
    raw[SPEED] < 0.5 && raw[AIR_FLOW] < 0.5 && raw[VIBRATION] < 0.3
}

/// The columns of a batch of clean readings (schema telemetry.v2) that the model looks at.
#[derive(Debug)]
pub struct Readings<'a> {
    cars: &'a StringArray,
    event_time_ms: &'a [i64],
    values: [Column<'a>; FEATURE_COUNT],
}

#[derive(Debug, Clone, Copy)]
enum Column<'a> {
    Float(&'a Float32Array),
    Int(&'a Int32Array),
}

impl<'a> Readings<'a> {
    /// Finds the columns by name. [`Error::Column`] if one is missing, has another type, or holds nulls.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, Error> {
        let find = |column: &'static str, wanted: &'static str, data_type: &DataType| {
            let found = batch.column_by_name(column).filter(|c| c.data_type() == data_type && c.null_count() == 0);
            found.ok_or(Error::Column { column, wanted })
        };
        let time = match batch.column_by_name("event_time_ms").map(|c| c.data_type()) {
            Some(DataType::Timestamp(TimeUnit::Millisecond, zone)) => {
                DataType::Timestamp(TimeUnit::Millisecond, zone.clone())
            }
            _ => DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into())),
        };
        let cars = find("car", "string", &DataType::Utf8)?.as_string::<i32>();
        let event_time_ms = find("event_time_ms", "timestamp in ms", &time)?.as_primitive::<TimestampMillisecondType>();
        let mut values = Vec::with_capacity(FEATURE_COUNT);
        for (index, &name) in FEATURES.iter().enumerate() {
            values.push(if index == FIRMWARE {
                Column::Int(find(name, "int", &DataType::Int32)?.as_primitive::<Int32Type>())
            } else {
                Column::Float(find(name, "float", &DataType::Float32)?.as_primitive::<Float32Type>())
            });
        }
        let values = values.try_into().expect("one column per feature was pushed");
        Ok(Self { cars, event_time_ms: event_time_ms.values(), values })
    }

    /// How many readings.
    pub fn len(&self) -> usize {
        self.event_time_ms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.event_time_ms.is_empty()
    }

    /// The pseudonym of the car of reading `index`.
    pub fn car(&self, index: usize) -> &'a str {
        self.cars.value(index)
    }

    /// When the car measured reading `index`.
    pub fn event_time_ms(&self, index: usize) -> i64 {
        self.event_time_ms[index]
    }

    /// The features of reading `index`, as the car sent them.
    pub fn row(&self, index: usize) -> Row {
        std::array::from_fn(|feature| match self.values[feature] {
            Column::Float(values) => values.value(index),
            Column::Int(values) => values.value(index) as f32,
        })
    }
}

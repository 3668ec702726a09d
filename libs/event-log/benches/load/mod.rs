//! What the measurements of this crate write, and how they measure themselves.

#![allow(dead_code, unreachable_pub)] // every measurement uses a part

use test_support::random::Random;

const CARS: u64 = 500;

/// A reading as text: numbers that change, names that don't, about as compressible as a real one.
#[derive(Default)]
pub struct Reading {
    pub vin: String,
    pub mqtt_topic: String,
    pub json: String,
}

impl Reading {
    /// Becomes reading number `i` of a fleet.
    pub fn fill(&mut self, i: u64) {
        use std::fmt::Write;
        let mut random = Random::new(i);
        let car = i % CARS;
        self.vin.clear();
        let _ = write!(self.vin, "WVWZZZ1JZ3W{car:06}");
        self.mqtt_topic.clear();
        let _ = write!(self.mqtt_topic, "vehicles/{}/telemetry", self.vin);
        self.json.clear();
        let _ = write!(self.json, "{{\"vin\":\"{}\",\"boot_id\":{},\"seq\":{}", self.vin, car * 7, i / CARS);
        for field in [
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
            "accelerometer_11_value",
            "accelerometer_12_value",
        ] {
            let _ = write!(self.json, ",\"{field}\":{}.{:04}", random.below(100), random.below(10_000));
        }
        self.json.push('}');
    }
}

/// User and system time of this process so far.
pub fn cpu_seconds() -> f64 {
    cpu_seconds_of("self")
}

/// User and system time of a process; Linux counts it in hundredths of a second.
pub fn cpu_seconds_of(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// The largest resident memory so far.
pub fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) / 1024
}

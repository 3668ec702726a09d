//! What a car puts on the wire: JSON as `schemas/*_raw.avsc` have it, and, if asked for, JSON as they don't.
//!
//! Written by hand into a buffer that is used again: a reading is some 700 bytes, and a fleet sends many.

use serde::Serialize;

use crate::car::{Car, FEATURES, Fault, Reading, vin};

/// Where a car publishes its readings.
pub(crate) fn telemetry_topic(vin: &str) -> String {
    format!("vehicles/{vin}/telemetry")
}

/// Where the workshop publishes what it found in a car.
pub(crate) fn faults_topic(vin: &str) -> String {
    format!("vehicles/{vin}/faults")
}

/// Appends a reading of `car` as JSON.
pub fn write_reading(car: &Car, reading: &Reading, out: &mut Vec<u8>) {
    write_reading_as(car.vin(), car, reading, out);
}

fn write_reading_as(vin: &str, car: &Car, reading: &Reading, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"vin\":\"");
    out.extend_from_slice(vin.as_bytes());
    out.extend_from_slice(b"\",\"boot_id\":");
    write_integer(reading.boot_id, out);
    out.extend_from_slice(b",\"seq\":");
    write_integer(u64::from(reading.seq), out);
    out.extend_from_slice(b",\"event_time_ms\":");
    write_integer(reading.event_time_ms.unsigned_abs(), out);
    if let Some(trip_id) = reading.trip_id {
        out.extend_from_slice(b",\"trip_id\":");
        write_integer(trip_id, out);
    }
    out.extend_from_slice(b",\"driver\":");
    write_string(car.driver_name(), out);
    out.extend_from_slice(b",\"plate\":");
    write_string(car.plate(), out);
    out.extend_from_slice(b",\"latitude\":");
    write_fixed(reading.latitude, 1_000_000, out);
    out.extend_from_slice(b",\"longitude\":");
    write_fixed(reading.longitude, 1_000_000, out);
    let (firmware, thousandths) = reading.features.split_last().expect("18 features");
    for (name, &value) in FEATURES.iter().zip(thousandths) {
        write_key(name, out);
        write_fixed(value, 1_000, out);
    }
    write_key("control_unit_firmware", out);
    write_integer(u64::from(firmware.unsigned_abs()), out);
    if let Some(ambient) = reading.ambient {
        write_key("ambient_temp", out);
        write_fixed(ambient, 1_000, out);
    }
    out.push(b'}');
}

/// Appends a workshop's finding as JSON.
pub fn write_finding(car: &Car, fault: &Fault, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Finding<'a> {
        vin: &'a str,
        boot_id: u64,
        seq: u32,
        workshop: String,
        kind: &'a str,
        component: &'a str,
        began_ms: i64,
        repaired_ms: i64,
    }
    let finding = Finding {
        vin: car.vin(),
        boot_id: car.tester_boot_id(fault.began_ms),
        seq: 0,
        // A workshop serves a neighbourhood.
        workshop: format!("Garage {}", car.index() % 97),
        kind: fault.kind.name(),
        component: &fault.component,
        began_ms: fault.began_ms,
        repaired_ms: fault.repaired_ms,
    };
    write_json(&finding, out);
}

/// Appends the driver's record as JSON.
pub fn write_driver(car: &Car, out: &mut Vec<u8>) {
    write_json(&car.driver(), out);
}

fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("plain records into memory");
}

/// How a payload is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// The JSON ends in the middle.
    Truncated,
    /// No JSON at all.
    NotJson,
    /// An array instead of a record.
    NotARecord,
    /// A string where a number belongs.
    WrongType,
    /// A null where a number belongs.
    Null,
    /// A coolant hotter than any car's.
    OutOfRange,
    /// A field that no schema knows.
    UnknownField,
    /// A field too few.
    MissingField,
    /// Bytes that are no text.
    NotUtf8,
    /// The VIN of another car.
    ForeignVin,
    /// Blown up to the size given by `--broken-bytes`.
    Oversized,
}

impl Breakage {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Truncated,
        Self::NotJson,
        Self::NotARecord,
        Self::WrongType,
        Self::Null,
        Self::OutOfRange,
        Self::UnknownField,
        Self::MissingField,
        Self::NotUtf8,
        Self::ForeignVin,
        Self::Oversized,
    ];
}

/// Appends a reading of `car` broken in the given way; `oversized_bytes` is the size of an oversized one. The seed
/// tells whose VIN a foreign one is.
pub fn write_broken(
    car: &Car,
    reading: &Reading,
    breakage: Breakage,
    seed: u64,
    oversized_bytes: usize,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    match breakage {
        Breakage::NotJson => out.extend_from_slice(b"speed=fast"),
        Breakage::ForeignVin => {
            let other = vin(seed, car.index() ^ 1);
            write_reading_as(core::str::from_utf8(&other).expect("made of ASCII characters"), car, reading, out);
        }
        _ => write_reading(car, reading, out),
    }
    match breakage {
        Breakage::Truncated => out.truncate(start + (out.len() - start) / 2),
        Breakage::NotARecord => {
            out.insert(start, b'[');
            out.push(b']');
        }
        Breakage::WrongType => replace_value(start, "speed", b"\"fast\"", out),
        Breakage::Null => replace_value(start, "battery_voltage", b"null", out),
        Breakage::OutOfRange => replace_value(start, "coolant_temp", b"9000.5", out),
        Breakage::UnknownField => insert_field(b",\"horoscope\":\"good\"", out),
        Breakage::MissingField => remove_field(start, "throttle_pos", out),
        Breakage::NotUtf8 => insert_field(b",\"note\":\"\xC3\x28\xFF\"", out),
        Breakage::Oversized => {
            let padding = oversized_bytes.saturating_sub(out.len() - start + 13);
            insert_field(b",\"padding\":\"", out);
            out.pop();
            out.resize(out.len() + padding, b'x');
            out.extend_from_slice(b"\"}");
        }
        Breakage::NotJson | Breakage::ForeignVin => {}
    }
}

/// Where the value of `name` stands in the record that begins at `start`.
fn value_range(start: usize, name: &str, out: &[u8]) -> core::ops::Range<usize> {
    let key = format!("\"{name}\":");
    let at = out[start..]
        .windows(key.len())
        .position(|window| window == key.as_bytes())
        .expect("only fields that every reading has are looked for");
    let from = start + at + key.len();
    let length = out[from..].iter().position(|&byte| byte == b',' || byte == b'}').expect("records end");
    from..from + length
}

fn replace_value(start: usize, name: &str, value: &[u8], out: &mut Vec<u8>) {
    let range = value_range(start, name, out);
    out.splice(range, value.iter().copied());
}

fn remove_field(start: usize, name: &str, out: &mut Vec<u8>) {
    let range = value_range(start, name, out);
    // With the key, its quotes and colon, and the comma before.
    out.drain(range.start - name.len() - 4..range.end);
}

fn insert_field(field: &[u8], out: &mut Vec<u8>) {
    out.pop();
    out.extend_from_slice(field);
    out.push(b'}');
}

fn write_key(name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// A string with the escapes that JSON demands.
fn write_string(text: &str, out: &mut Vec<u8>) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        write_json(&text, out);
    }
}

fn write_integer(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// A number in fixed point, `value / scale`, without trailing zeros: 12500 of 1000 is `12.5`.
fn write_fixed(value: i32, scale: u32, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    let value = value.unsigned_abs();
    write_integer(u64::from(value / scale), out);
    let (mut rest, mut unit) = (value % scale, scale / 10);
    if rest == 0 {
        return;
    }
    out.push(b'.');
    while rest > 0 {
        out.push(b'0' + (rest / unit) as u8);
        rest %= unit;
        unit = (unit / 10).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::car::FleetSpec;

    fn car_and_reading() -> (Car, Reading) {
        let spec = FleetSpec {
            seed: 1,
            interval_ms: 30_000,
            start_ms: 1_780_000_000_000,
            fault_share: 0.0,
            newer_schema_share: 1.0,
        };
        let mut car = Car::new(&spec, 3);
        let reading = car.next_reading();
        (car, reading)
    }

    #[test]
    fn fixed_point_reads_back() {
        for (value, text) in
            [(0, "0"), (12_500, "12.5"), (-7, "-0.007"), (1_000, "1"), (-20_010, "-20.01"), (i32::MIN, "-2147483.648")]
        {
            let mut out = Vec::new();
            write_fixed(value, 1_000, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn a_reading_is_json_with_its_values() {
        let (car, reading) = car_and_reading();
        let mut out = Vec::new();
        write_reading(&car, &reading, &mut out);
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["vin"], car.vin());
        assert_eq!(json["driver"], car.driver_name());
        assert_eq!(json["boot_id"], reading.boot_id);
        for (name, value) in FEATURES.iter().zip(reading.values()) {
            assert_eq!(json[name].as_f64().unwrap(), value, "{name}");
        }
        assert!(json.get("trip_id").is_none() && json["ambient_temp"].is_number());
    }

    #[test]
    fn every_breakage_breaks_in_its_own_way() {
        let (car, reading) = car_and_reading();
        let mut whole = Vec::new();
        write_reading(&car, &reading, &mut whole);
        let mut seen = std::collections::HashSet::new();
        for breakage in Breakage::ALL {
            let mut out = b"before".to_vec();
            write_broken(&car, &reading, breakage, 1, 64_000, &mut out);
            let payload = out.split_off(6);
            assert_eq!(out, b"before", "{breakage:?}");
            assert_ne!(payload, whole, "{breakage:?}");
            let json = serde_json::from_slice::<serde_json::Value>(&payload);
            let unreadable = matches!(breakage, Breakage::Truncated | Breakage::NotJson | Breakage::NotUtf8);
            assert_eq!(json.is_err(), unreadable, "{breakage:?}");
            if breakage == Breakage::Oversized {
                assert_eq!(payload.len(), 64_000);
            }
            assert!(seen.insert(payload));
        }
    }

    #[test]
    fn odd_names_are_escaped() {
        let mut out = Vec::new();
        write_string("Anne \"Nan\" O\\Neil\n", &mut out);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), "Anne \"Nan\" O\\Neil\n");
    }
}

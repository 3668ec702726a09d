//! The JSON decoder against everything that a car, or somebody who plays one, can send.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampMillisecondType};
use proptest::prelude::*;
use telemetry::Reject;
use telemetry::json::{JsonDecoder, MAX_RECORD_BYTES, REASONS};
use telemetry::schema::Schema;

const READING: &str = r#"{"vin":"WVWZZZ1JZXW000001","boot_id":7,"seq":0,"event_time_ms":1700000000000,"trip_id":12,
    "driver":"Jörg Canary","plate":"B-CA 1","latitude":52.5,"longitude":13.4,"coolant_temp":90.5,"intake_air_temp":25,
    "intake_air_flow_speed":8.1,"battery_percentage":55.5,"battery_voltage":380.25,"current_draw":-12.5,"speed":33.3,
    "engine_vibration_amplitude":100.5,"throttle_pos":0.5,"tire_pressure_11":32,"tire_pressure_12":32.5,
    "tire_pressure_21":33,"tire_pressure_22":33.5,"accelerometer_11_value":0.5,"accelerometer_12_value":-0.5,
    "accelerometer_21_value":1.5,"accelerometer_22_value":2.5,"control_unit_firmware":2000,"ambient_temp":-3.5}"#;

fn raw() -> Arc<Schema> {
    contract::Contract::builtin().schemas().file("telemetry_raw.avsc").unwrap().clone()
}

fn decode_one(value: &[u8]) -> Result<RecordBatch, Reject> {
    let mut decoder = JsonDecoder::new(&raw());
    decoder.decode(value).map(|()| decoder.finish())
}

/// `READING` with the one field replaced by raw JSON text.
fn with(field: &str, value: &str) -> String {
    let start = READING.find(&format!("\"{field}\":")).unwrap() + field.len() + 3;
    let end = start + READING[start..].find([',', '}']).unwrap();
    format!("{}{value}{}", &READING[..start], &READING[end..])
}

fn without(field: &str) -> String {
    let start = READING.find(&format!("\"{field}\":")).unwrap();
    let end = start + READING[start..].find([',', '}']).unwrap();
    match READING.as_bytes()[end] {
        b',' => format!("{}{}", &READING[..start], &READING[end + 1..]),
        _ => format!("{}{}", READING[..start].trim_end().trim_end_matches(','), &READING[end..]),
    }
}

#[test]
fn a_reading_becomes_a_row() {
    let batch = decode_one(READING.as_bytes()).unwrap();
    assert_eq!((batch.num_rows(), batch.schema()), (1, raw().arrow.clone()));
    let column = |name: &str| batch.column_by_name(name).unwrap().clone();
    assert_eq!(column("vin").as_string::<i32>().value(0), "WVWZZZ1JZXW000001");
    assert_eq!(column("driver").as_string::<i32>().value(0), "Jörg Canary");
    assert_eq!(column("boot_id").as_primitive::<Int64Type>().value(0), 7);
    assert_eq!(column("event_time_ms").as_primitive::<TimestampMillisecondType>().value(0), 1_700_000_000_000);
    assert_eq!(column("latitude").as_primitive::<Float64Type>().value(0), 52.5);
    assert_eq!(column("intake_air_temp").as_primitive::<Float32Type>().value(0), 25.0);
    assert_eq!(column("control_unit_firmware").as_primitive::<Int32Type>().value(0), 2000);
    assert_eq!(column("ambient_temp").as_primitive::<Float32Type>().value(0), -3.5);
}

#[test]
fn nullable_fields_may_be_null_or_left_out() {
    for reading in
        [without("ambient_temp"), with("ambient_temp", "null"), without("trip_id"), with("trip_id", " null ")]
    {
        let batch = decode_one(reading.as_bytes()).unwrap();
        let nulls: usize = batch.columns().iter().map(|column| column.null_count()).sum();
        assert_eq!(nulls, 1, "{reading}");
    }
}

#[test]
fn fields_may_come_in_any_order_and_with_escapes() {
    let mut fields: Vec<&str> = READING.trim_matches(['{', '}']).split(',').map(str::trim).collect();
    fields.reverse();
    let reversed = format!("\n{{ {} }}\t", fields.join(" , "));
    assert_eq!(decode_one(reversed.as_bytes()).unwrap(), decode_one(READING.as_bytes()).unwrap());
    let escaped = READING.replace("\"vin\":\"WVW", "\"v\\u0069n\":\"\\u0057VW");
    assert_eq!(decode_one(escaped.as_bytes()).unwrap(), decode_one(READING.as_bytes()).unwrap());
}

#[test]
fn every_bad_record_has_its_reason_and_no_secret_in_the_detail() {
    let deep = "[".repeat(60_000);
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (b"".to_vec(), "malformed-json", "EOF"),
        (b"{".to_vec(), "malformed-json", "EOF"),
        (with("speed", "NaN").into_bytes(), "malformed-json", "NaN is no number in JSON: expected value at line 3"),
        (with("speed", " -nan").into_bytes(), "malformed-json", "nan is no number in JSON: "),
        (with("current_draw", "-Infinity").into_bytes(), "malformed-json", "Infinity is no number in JSON: "),
        (b"{\"seq\":inf}".to_vec(), "malformed-json", "inf is no number in JSON: "),
        (b"null".to_vec(), "wrong-type", "not a JSON object"),
        (b"[1]".to_vec(), "wrong-type", "not a JSON object"),
        (b"\"Canary\"".to_vec(), "wrong-type", "not a JSON object"),
        (deep.clone().into_bytes(), "wrong-type", "not a JSON object"),
        (READING.replace('}', "").into_bytes(), "malformed-json", "EOF"),
        (format!("{READING}x").into_bytes(), "malformed-json", "trailing"),
        (format!("{READING}{READING}").into_bytes(), "malformed-json", "trailing"),
        (READING.replace("B-CA", "B\u{1}CA").into_bytes(), "malformed-json", "control character"),
        (READING.replace("Canary", r"\ud800").into_bytes(), "malformed-json", "hex escape"),
        ([READING.as_bytes(), b"\xff"].concat(), "not-utf8", "UTF-8"),
        (vec![b' '; MAX_RECORD_BYTES + 1], "too-large", "65537 bytes, allowed 65536"),
        (vec![b' '; 1 << 20], "too-large", "1048576 bytes"),
        (without("vin").into_bytes(), "missing-field", "vin is missing"),
        (without("speed").into_bytes(), "missing-field", "speed is missing"),
        (b"{}".to_vec(), "missing-field", "vin is missing"),
        (READING.replace("{", "{\"colour\":1,").into_bytes(), "unknown-field", "\"colour\" is not a field"),
        (READING.replace("{", "{\"seq\":1,").into_bytes(), "duplicate-field", "seq appears twice"),
        (with("ambient_temp", "null,\"ambient_temp\":null").into_bytes(), "duplicate-field", "ambient_temp"),
        (with("seq", "1.0").into_bytes(), "wrong-type", "seq is a number with a fraction"),
        (with("seq", "1e2").into_bytes(), "wrong-type", "seq is a number with a fraction"),
        (with("seq", "\"1\"").into_bytes(), "wrong-type", "seq is a string, expected long"),
        (with("seq", "true").into_bytes(), "wrong-type", "seq is true or false"),
        (with("seq", "null").into_bytes(), "wrong-type", "seq is null"),
        (with("seq", &deep).into_bytes(), "wrong-type", "seq is an array"),
        (with("seq", "{\"a\":1}").into_bytes(), "wrong-type", "seq is an object"),
        (with("seq", "-1").into_bytes(), "out-of-range", "seq is -1, allowed 0 to"),
        (with("seq", "18446744073709551615").into_bytes(), "out-of-range", "seq is 18446744073709551615"),
        (with("seq", "18446744073709551616").into_bytes(), "wrong-type", "beyond 64 bits"),
        (with("trip_id", "9007199254740992").into_bytes(), "out-of-range", "trip_id is outside 0 to"),
        (with("event_time_ms", "3").into_bytes(), "out-of-range", "event_time_ms is 3"),
        (
            with("control_unit_firmware", "3000000000").into_bytes(),
            "out-of-range",
            "control_unit_firmware is 3000000000",
        ),
        (with("speed", "120.001").into_bytes(), "out-of-range", "speed is 120.001, allowed 0.0 to 120.0 m/s"),
        (with("speed", "1e400").into_bytes(), "out-of-range", "number out of range"),
        (with("speed", "NaN").into_bytes(), "malformed-json", "expected value"),
        (with("speed", "-Infinity").into_bytes(), "malformed-json", "invalid number"),
        (with("speed", "\"fast Canary\"").into_bytes(), "wrong-type", "speed is a string"),
        (with("latitude", "95.125").into_bytes(), "out-of-range", "latitude is outside -90.0 to 90.0 degrees"),
        (with("vin", "\"Canary\"").into_bytes(), "out-of-range", "vin has 6 characters, allowed 17"),
        (with("vin", "4711").into_bytes(), "wrong-type", "vin is a number"),
        (with("plate", "\"CanaryCanaryCanaryCanary\"").into_bytes(), "out-of-range", "plate has 24 characters"),
        (with("driver", "{\"Canary\":1}").into_bytes(), "wrong-type", "driver is an object"),
    ];
    for (value, reason, detail) in cases {
        let shown = String::from_utf8_lossy(&value[..value.len().min(100)]).into_owned();
        let reject = decode_one(&value).expect_err(&shown);
        assert_eq!(reject.reason, reason, "{shown}: {reject}");
        assert!(reject.detail.contains(detail), "{shown}: {reject}");
        assert!(REASONS.contains(&reject.reason));
        for secret in ["Canary", "4711", "95.125", "9007199254740992", "WVWZZZ", "B-CA"] {
            assert!(!reject.detail.contains(secret) || secret == "9007199254740992" && !reject.detail.contains("is 9"));
        }
    }
}

#[test]
fn a_long_unknown_name_is_cut() {
    let reading = READING.replace('{', &format!("{{\"{}\":1,", "é".repeat(5000)));
    let reject = decode_one(reading.as_bytes()).unwrap_err();
    assert!(reject.detail.chars().count() < 120, "{reject}");
}

#[test]
fn numbers_at_the_bounds_are_let_in_and_a_float_must_be_finite() {
    for (field, value) in
        [("speed", "120"), ("speed", "0"), ("speed", "-0.0"), ("seq", "-0"), ("seq", "9007199254740991")]
    {
        decode_one(with(field, value).as_bytes()).unwrap();
    }
    let schema =
        r#"{"type": "record", "name": "R", "fields": [{"name": "f", "type": "float"}, {"name": "i", "type": "int"}]}"#;
    let schema = Arc::new(Schema::parse("r.avsc", schema, None).unwrap());
    let mut decoder = JsonDecoder::new(&schema);
    decoder.decode(br#"{"f": 3.4e38, "i": -2147483648}"#).unwrap();
    assert_eq!(decoder.decode(br#"{"f": 3.5e38, "i": 0}"#).unwrap_err().reason, "out-of-range");
    assert_eq!(decoder.decode(br#"{"f": 1, "i": 2147483648}"#).unwrap_err().reason, "out-of-range");
    assert_eq!(decoder.finish().num_rows(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to some records, the others are decoded as if they were alone.
    #[test]
    fn broken_records_never_touch_their_neighbours(
        mutations in prop::collection::vec(prop::option::of((0..1100usize, any::<u8>(), 0..3u8)), 1..20)
    ) {
        let mut decoder = JsonDecoder::new(&raw());
        let mut alone = Vec::new();
        for mutation in mutations {
            let mut value = READING.as_bytes().to_vec();
            if let Some((at, byte, how)) = mutation {
                let at = at % value.len();
                match how {
                    0 => value[at] = byte,
                    1 => value.insert(at, byte),
                    _ => value.truncate(at),
                }
            }
            match (decoder.decode(&value), decode_one(&value)) {
                (Ok(()), Ok(batch)) => alone.push(batch),
                (Err(a), Err(b)) => prop_assert_eq!(a, b),
                (a, b) => prop_assert!(false, "{:?} in company, {:?} alone", a, b),
            }
        }
        let batch = decoder.finish();
        prop_assert_eq!(batch.num_rows(), alone.len());
        for (row, alone) in alone.iter().enumerate() {
            prop_assert_eq!(&batch.slice(row, 1), alone);
        }
    }

    /// Any bytes at all: an answer, no panic.
    #[test]
    fn any_bytes_get_an_answer(value in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_one(&value).is_err());
    }
}

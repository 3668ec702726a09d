//! What one reading costs in the preprocessor: CPU seconds per million for decoding, SQL and encoding.
//!
//!     cargo bench -p preprocessor --bench preprocess
//!
//! Criterion compares each run with the one before; `-- --save-baseline NAME`, `-- --baseline NAME` keep and use one.

use std::hint::black_box;

use contract::Contract;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use preprocessor::duplicates::Duplicates;
use preprocessor::sql::Query;
use telemetry::avro::{AvroDecoder, AvroEncoder};
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;
use test_support::measurement::{self, CpuTime};

const CARS: usize = 10_000;

/// Readings of one batch, as many as a busy partition gives.
const ROWS: usize = 4096;

criterion_group!(name = benches; config = measurement::criterion(); targets = preprocess);
criterion_main!(benches);

fn preprocess(criterion: &mut Criterion<CpuTime>) {
    let contract = Contract::builtin();
    let definition = contract.stream(contract::READINGS).expect("it has telemetry");
    let key = PseudonymKey::from_bytes(b"a key for benchmarks").expect("it is long enough");
    let query = Query::plan(definition, &key).expect("the platform's statement is valid");
    let mut tables = query.tables(definition);
    let mut drivers = JsonDecoder::new(&definition.tables[0].schema);
    let vins: Vec<String> = (0..CARS).map(|n| format!("VIN{n:014}")).collect();
    for vin in &vins {
        drivers.decode(driver(vin).as_bytes()).expect("the row is valid");
    }
    let changes = vins.iter().enumerate().map(|(row, vin)| (vin.as_str(), Some(row)));
    tables[0].update(&drivers.finish(), changes).expect("the rows fit");
    let vin = |i: usize| &*vins[i * 7919 % CARS];
    let payloads: Vec<String> = (0..ROWS).map(|i| reading(vin(i), i)).collect();

    let mut json = JsonDecoder::new(&definition.input.schema);
    let mut encoder = AvroEncoder::new(contract.schemas(), 2).expect("schema 2 exists");
    let mut decoder = AvroDecoder::new(contract.schemas(), "telemetry.v2.avsc").expect("it exists");
    let mut seen = Duplicates::default();
    let mut admitted = 0;
    let mut decode = |payloads: &[String]| {
        for payload in payloads {
            json.decode(payload.as_bytes()).expect("the reading is valid");
        }
        json.finish()
    };
    let mut admit = || {
        for i in 0..ROWS {
            black_box(seen.admit(vin(i), 1, (admitted * ROWS + i) as i64, 0));
        }
        admitted += 1;
    };
    let decoded = decode(&payloads);
    let selected = query.run(&decoded, &mut tables).expect("it runs").batch;
    let messages = encoder.encode(&selected).expect("it fits");

    let mut group = criterion.benchmark_group("preprocess");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("decode JSON", |b| b.iter(|| decode(&payloads)));
    group.bench_function("duplicates", |b| b.iter(&mut admit));
    group.bench_function("SQL", |b| b.iter(|| query.run(&decoded, &mut tables).expect("it runs")));
    group.bench_function("encode Avro", |b| b.iter(|| encoder.encode(&selected).expect("it fits")));
    group.bench_function("the chain", |b| {
        b.iter(|| {
            let decoded = decode(&payloads);
            admit();
            let selected = query.run(&decoded, &mut tables).expect("it runs");
            encoder.encode(&selected.batch).expect("it fits")
        });
    });
    group.bench_function("decode Avro (other stages)", |b| {
        b.iter(|| {
            messages.iter().for_each(|message| decoder.decode(message).expect("it is a message"));
            decoder.finish()
        });
    });
    group.finish();
}

fn driver(vin: &str) -> String {
    format!(
        r#"{{"vin":"{vin}","name":"n","email":"e","phone":"p","licence_number":"l","address":"a",
            "segment":"fleet","experience_years":7}}"#
    )
}

fn reading(vin: &str, i: usize) -> String {
    let x = i as f64 * 0.01 % 10.0;
    format!(
        concat!(
            r#"{{"vin":"{}","boot_id":123456789,"seq":{},"event_time_ms":1790000000000,"trip_id":4711,"#,
            r#""driver":"A. Driver","#,
            r#""plate":"B-AB 1234","latitude":{:.6},"longitude":{:.6},"coolant_temp":{:.3},"intake_air_temp":{:.3},"#,
            r#""intake_air_flow_speed":{:.3},"battery_percentage":{:.3},"battery_voltage":{:.3},"current_draw":{:.3},"#,
            r#""speed":{:.3},"engine_vibration_amplitude":{:.3},"throttle_pos":0.{},"tire_pressure_11":{:.3},"#,
            r#""tire_pressure_12":{:.3},"tire_pressure_21":{:.3},"tire_pressure_22":{:.3},"#,
            r#""accelerometer_11_value":{:.4},"#,
            r#""accelerometer_12_value":{:.4},"accelerometer_21_value":{:.4},"accelerometer_22_value":{:.4},"#,
            r#""control_unit_firmware":2000,"ambient_temp":{:.2}}}"#
        ),
        vin,
        i,
        52.0 + x,
        13.0 + x,
        85.0 + x,
        20.0 + x,
        5.0 + x,
        40.0 + x,
        380.0 + x,
        x,
        20.0 + x,
        100.0 + x,
        i % 1000,
        32.0 + x,
        32.1 + x,
        32.2 + x,
        32.3 + x,
        x / 10.0,
        x / 9.0,
        x / 8.0,
        x / 7.0,
        x
    )
}

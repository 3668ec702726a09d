//! What one reading costs in the preprocessor: CPU seconds per million for decoding, SQL and encoding.
//!
//!     cargo bench -p preprocessor --bench preprocess -- [rows per batch] [batches]

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use contract::Contract;
use preprocessor::duplicates::Duplicates;
use preprocessor::sql::Query;
use telemetry::avro::{AvroDecoder, AvroEncoder};
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;
use test_support::measurement;

const CARS: usize = 10_000;

fn main() {
    let mut numbers = measurement::arguments().skip(1).filter_map(|n| n.parse::<usize>().ok());
    let (rows, batches) = (numbers.next().unwrap_or(4096), numbers.next().unwrap_or(100));
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
    let payloads: Vec<String> = (0..rows).map(|i| reading(&vins[i * 7919 % CARS], i)).collect();

    let mut json = JsonDecoder::new(&definition.input.schema);
    let mut encoder = AvroEncoder::new(contract.schemas(), 2).expect("schema 2 exists");
    let mut decoder = AvroDecoder::new(contract.schemas(), "telemetry.v2.avsc").expect("it exists");
    let mut seen = Duplicates::default();
    let mut spent = [Duration::ZERO; 5];
    for batch in 0..batches {
        let mut lap = Lap(cpu_time());
        for payload in &payloads {
            json.decode(payload.as_bytes()).expect("the reading is valid");
        }
        let decoded = json.finish();
        spent[0] += lap.next();
        for i in 0..rows {
            black_box(seen.admit(&vins[i * 7919 % CARS], 1, (batch * rows + i) as i64, 0));
        }
        spent[1] += lap.next();
        let selected = query.run(&decoded, &mut tables).expect("it runs");
        spent[2] += lap.next();
        let messages = encoder.encode(&selected.batch).expect("it fits");
        spent[3] += lap.next();
        for message in messages.iter() {
            decoder.decode(message).expect("it is a message");
        }
        black_box(decoder.finish());
        spent[4] += lap.next();
    }
    println!("{} bytes a reading, {rows} rows a batch, {batches} batches", payloads[0].len());
    let per_million = |spent: Duration| spent.as_secs_f64() / (rows * batches) as f64 * 1e6;
    for (what, spent) in
        ["decode JSON", "duplicates", "SQL", "encode Avro", "decode Avro (other stages)"].iter().zip(spent)
    {
        println!("{what:<28}{:6.2} s per million", per_million(spent));
    }
    println!("{:<28}{:6.2} s per million", "the chain", per_million(spent[..4].iter().sum()));
}

struct Lap(Duration);

impl Lap {
    fn next(&mut self) -> Duration {
        let now = cpu_time();
        now.saturating_sub(std::mem::replace(&mut self.0, now))
    }
}

/// What this thread has spent on a CPU; where the system does not tell (not Linux), what has passed.
fn cpu_time() -> Duration {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = spent.and_then(|spent| spent.split_whitespace().next()?.parse().ok());
    nanos.map_or_else(|| BEGAN.elapsed(), Duration::from_nanos)
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

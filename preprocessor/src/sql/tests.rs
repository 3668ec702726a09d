//! Statements that must not start, each with its message; where columns come from; and what the executor makes of
//! batches, against expectations by hand.
//!
//! One table of statements and one small fixture serve all of them: one file.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;
use telemetry::schema::Schema;
use test_support::random::Random;

use super::functions::coarsen;
use super::*;
use contract::{Contract, StreamDefinition};

const KEY: &[u8] = b"a key for tests!";

fn key() -> PseudonymKey {
    PseudonymKey::from_bytes(KEY).unwrap()
}

/// The stream `telemetry` with another statement and other output fields.
fn definition(select: &str, fields: &str) -> StreamDefinition {
    let mut definition = Contract::builtin().stream("telemetry").unwrap().clone();
    definition.sql = format!("-- A comment.\ncreate stream telemetry AS {select}");
    let schema = format!(r#"{{"type": "record", "name": "Out", "fields": [{fields}]}}"#);
    definition.output = Arc::new(Schema::parse("out.avsc", &schema, Some(7)).unwrap());
    definition
}

const CAR: &str = r#"{"name": "car", "type": "string"}"#;

fn fields(more: &str) -> String {
    if more.is_empty() { CAR.to_owned() } else { format!("{CAR}, {more}") }
}

fn plan(select: &str, more: &str) -> Result<Query, Vec<String>> {
    Query::plan(&definition(select, &fields(more)), &key())
}

#[test]
fn what_a_stream_cannot_do_is_refused_by_name() {
    let base = "SELECT pseudonym(r.vin) AS car FROM telemetry_raw r";
    for (select, wanted) in [
        (format!("{base} ORDER BY r.seq"), "ORDER BY is not possible in a stream"),
        (format!("{base} LIMIT 10"), "LIMIT is not possible"),
        (format!("{base} OFFSET 10"), "LIMIT is not possible"),
        (format!("{base} GROUP BY car"), "GROUP BY is not possible"),
        (format!("{base} HAVING true"), "HAVING is not possible"),
        (format!("{base} UNION ALL {base}"), "UNION, INTERSECT or EXCEPT is not possible"),
        (format!("WITH x AS ({base}) {base}"), "WITH is not possible"),
        (format!("({base})"), "a query in parentheses is not possible"),
        ("VALUES (1)".into(), "VALUES is not possible"),
        ("SELECT 'x' AS car".into(), "SELECT without FROM is not possible"),
        (base.replace("SELECT", "SELECT DISTINCT"), "DISTINCT is not possible"),
        (format!("{base}, drivers d"), "FROM with several tables is not possible"),
        (format!("{base} CROSS JOIN drivers d"), "CROSS JOIN is not possible"),
        (format!("{base} RIGHT JOIN drivers d ON r.vin = d.vin"), "RIGHT JOIN is not possible"),
        (format!("{base} FULL JOIN drivers d ON r.vin = d.vin"), "FULL JOIN is not possible"),
        (format!("{base} LEFT SEMI JOIN drivers d ON r.vin = d.vin"), "a join other than LEFT JOIN and JOIN"),
        (format!("SELECT pseudonym(r.vin) AS car FROM ({base}) r"), "a subquery in FROM is not possible"),
        (format!("{base} TABLESAMPLE BERNOULLI (10)"), "TABLESAMPLE is not possible"),
        (format!("{base} WHERE r.seq = (SELECT max(d.experience_years) FROM drivers d)"), "Invalid function 'max'"),
        (format!("{base} WHERE r.vin IN (SELECT d.vin FROM drivers d)"), "a subquery is not possible"),
        (format!("{base} WHERE EXISTS (SELECT d.vin FROM drivers d)"), "a subquery is not possible"),
        (
            "SELECT pseudonym(r.vin) AS car, count(*) AS n FROM telemetry_raw r".into(),
            "aggregates and window functions",
        ),
        (
            "SELECT pseudonym(r.vin) AS car, row_number() OVER (ORDER BY r.seq) AS n FROM telemetry_raw r".into(),
            "aggregates and window functions",
        ),
        (base.replace("telemetry_raw r", "drivers r"), "FROM must begin with the stream telemetry_raw, not drivers"),
        (
            base.replace("telemetry_raw", "payments"),
            "there is no table payments: this stream has drivers, telemetry_raw",
        ),
        (format!("{base} JOIN telemetry_raw q ON r.vin = q.vin"), "telemetry_raw is not one of this stream's tables"),
        (format!("{base} JOIN drivers d ON r.driver = d.name"), "drivers must be joined ON r.… = d.vin, its key"),
        (format!("{base} JOIN drivers d ON r.seq > 5"), "drivers must be joined ON r.… = d.vin, its key"),
        (format!("{base} JOIN drivers d ON r.vin = d.vin AND r.seq > 5"), "and on nothing else"),
        (format!("{base} WHERE sqrt(r.seq) > 5"), "Invalid function 'sqrt'"),
        (format!("{base} WHERE r.spede > 5"), "No field named r.spede"),
        (format!("{base} WHERE r.plate = \"abc\""), "there is no column abc: text is written in single quotes, 'abc'"),
        (base.replace(" FROM", " r.seq\nFROM"), "line 2: expected a comma or FROM before r"),
        (base.replace(" FROM", "\n  r.seq\nFROM"), "line 3: expected a comma or FROM before r"),
        (format!("{base}\nWHERE r.seq = 1 r"), "line 3: expected end of statement before r"),
        (format!("{base} WHERE r.speed + r.plate > 1"), "float + string"),
        (format!("{base} WHERE r.seq / 0 > 1"), "r.seq / 0 can fail on a record"),
        (format!("{base} WHERE r.seq"), "Cannot create filter with non-boolean"),
        (format!("{base}; {base}"), "line 2: a second statement begins here: a stream has one"),
        (format!("{base} WHERE r.seq / (r.boot_id - 5) > 1"), "can fail on a record: divide by a number above 0"),
        (format!("{base} WHERE CAST(r.plate AS INT) = 5"), "can fail on a record: use TRY_CAST"),
        (format!("{base} WHERE coarsen(r.latitude, r.speed) > 5"), "the step of coarsen must be a number above 0"),
        (format!("{base} WHERE coarsen(r.latitude, 0) > 5"), "the step of coarsen must be a number above 0"),
        ("INSERT INTO telemetry VALUES (1)".into(), "must be followed by SELECT"),
        ("SELECT FROM".into(), "expected identifier, but the statement ends"),
        ("".into(), "nothing follows CREATE STREAM telemetry AS"),
    ] {
        let problems = plan(&select, "").expect_err(&select);
        assert!(problems.iter().any(|p| p.contains(wanted)), "{select}\n  wanted: {wanted}\n  got: {problems:#?}");
    }
}

#[test]
fn the_statement_must_create_its_stream() {
    for (sql, wanted) in [
        ("SELECT 1", "must begin with CREATE STREAM telemetry AS SELECT"),
        ("CREATE TABLE telemetry AS SELECT 1", "must begin with CREATE STREAM telemetry AS SELECT"),
        ("CREATE STREAM other AS SELECT 1", "creates stream other, but its folder is called telemetry"),
        ("", "must begin with CREATE STREAM"),
        ("CREATE STREAM telemetry AS SELECT 'x", "line 1: unterminated"),
    ] {
        let mut definition = definition("", CAR);
        definition.sql = sql.into();
        let problems = Query::plan(&definition, &key()).unwrap_err();
        assert!(problems[0].contains(wanted), "{sql}: {problems:?}");
    }
}

#[test]
fn no_tagged_field_comes_out_but_through_its_function() {
    let text = r#"{"name": "x", "type": ["null", "string"], "default": null}"#;
    let number = r#"{"name": "x", "type": ["null", "double"], "default": null}"#;
    let boolean = r#"{"name": "x", "type": ["null", "boolean"], "default": null}"#;
    for (expr, kind, wanted) in [
        ("r.vin", text, "column x lets out telemetry_raw.vin, which is tagged \"identifier\": use pseudonym(vin)"),
        ("r.plate", text, "telemetry_raw.plate, which is tagged \"personal\": leave it out"),
        ("pseudonym(r.plate)", text, "telemetry_raw.plate, which is tagged \"personal\""),
        ("pseudonym(r.vin || r.driver)", text, "telemetry_raw.driver, which is tagged \"personal\""),
        ("d.name", text, "drivers.name, which is tagged \"personal\""),
        ("d.vin", text, "drivers.vin, which is tagged \"identifier\""),
        ("upper(r.vin)", text, "telemetry_raw.vin"),
        ("coalesce(d.segment, r.vin)", text, "telemetry_raw.vin"),
        ("CASE WHEN r.vin = 'WVWZZZ1JZXW000001' THEN 'him' END", text, "telemetry_raw.vin"),
        ("CASE WHEN r.plate LIKE 'B-%' THEN 'Berlin' END", text, "telemetry_raw.plate"),
        ("r.driver = d.name", boolean, "telemetry_raw.driver"),
        ("r.trip_id IS NULL", boolean, "telemetry_raw.trip_id, which is tagged \"identifier\""),
        ("r.latitude", number, "telemetry_raw.latitude, which is tagged \"location\": use coarsen(latitude, 0.05)"),
        ("coarsen(r.latitude, 0.001)", number, "a step of at least 0.01"),
        ("coarsen(r.latitude * 1000, 0.05)", number, "the column by itself"),
        ("coarsen(r.latitude, 0.05) + r.longitude", number, "telemetry_raw.longitude"),
        ("pseudonym(CAST(r.latitude AS VARCHAR))", text, "telemetry_raw.latitude, which is tagged \"location\""),
    ] {
        let from = "FROM telemetry_raw r LEFT JOIN drivers d ON d.vin = r.vin";
        let select = format!("SELECT pseudonym(r.vin) AS car, {expr} AS x {from}");
        let problems = plan(&select, kind).expect_err(expr);
        assert!(problems.iter().any(|p| p.contains(wanted)), "{expr}: {problems:#?}");
    }
}

#[test]
fn approved_functions_let_tagged_fields_out() {
    let more = r#"{"name": "trip", "type": ["null", "string"], "default": null}, {"name": "lat", "type": "double"},
        {"name": "n", "type": "int"}"#;
    let select = "SELECT coarsen(latitude, 0.01) AS lat, pseudonym(CAST(trip_id AS VARCHAR)) AS trip, 5 + 2 AS n,
        pseudonym(vin) AS car FROM telemetry_raw WHERE plate <> 'x' AND latitude > 5";
    let more_int = more.replace("\"int\"", "\"long\"");
    let query = plan(select, &more_int).unwrap();
    let lineage: Vec<_> = query.lineage().iter().map(|l| (l.column.as_str(), l.sources.len())).collect();
    assert_eq!(lineage, [("lat", 1), ("trip", 1), ("n", 0), ("car", 1)]);
    let trip = &query.lineage()[1].sources[0];
    assert_eq!(
        (trip.table.as_str(), trip.column.as_str(), trip.through.as_slice()),
        ("telemetry_raw", "trip_id", &["pseudonym".to_owned()][..])
    );
    assert_eq!(query.key_column(), 0);
    let problems = plan(select, more).err().unwrap();
    assert!(problems[0].contains("column n: is a long, declared as int: use TRY_CAST(… AS INT), "), "{problems:?}");
}

#[test]
fn the_output_must_be_as_declared() {
    let long = r#"{"name": "x", "type": "long"}"#;
    for (columns, more, wanted) in [
        ("pseudonym(r.vin) AS car", long, "column x is missing: out.avsc declares it"),
        ("pseudonym(r.vin) AS car, r.seq AS y, r.seq AS x", long, "column y is not in out.avsc"),
        (
            "pseudonym(r.vin) AS car, r.speed AS x",
            long,
            "column x: is a float, declared as long: use TRY_CAST(… AS BIGINT), ",
        ),
        ("pseudonym(r.vin) AS car, d.experience_years AS x", long, "column x: can be null, declared as never null"),
        ("r.seq AS x, 'a' AS car", long, "exactly one column must be pseudonym(vin)"),
        ("r.seq AS x, pseudonym(upper(r.vin)) AS car", long, "exactly one column must be pseudonym(vin)"),
        ("r.seq AS x, pseudonym(r.vin) || 'x' AS car", long, "exactly one column must be pseudonym(vin)"),
    ] {
        let select = format!("SELECT {columns} FROM telemetry_raw r LEFT JOIN drivers d ON r.vin = d.vin");
        let problems = plan(&select, more).expect_err(columns);
        assert!(problems.iter().any(|p| p.contains(wanted)), "{columns}: {problems:#?}");
    }
    let select = "SELECT r.experience_years AS y, plate AS car FROM telemetry_raw r";
    assert!(plan(select, long).is_err());
    let select = "SELECT plate AS car, speed AS y FROM telemetry_raw r";
    assert_eq!(plan(select, long).unwrap_err().len(), 4, "all of them together");
}

/// Raw readings: VIN, seq, speed, ambient temperature.
fn readings(rows: &[(&str, i64, f64, Option<f64>)]) -> RecordBatch {
    let mut decoder = JsonDecoder::new(Contract::builtin().schemas().file("telemetry_raw.avsc").unwrap());
    for (vin, seq, speed, ambient) in rows {
        let mut reading = serde_json::json!({
            "vin": vin, "boot_id": 1, "seq": seq, "event_time_ms": 1_700_000_000_000i64, "driver": "D", "plate": "P",
            "latitude": 52.523, "longitude": -0.01, "coolant_temp": 90, "intake_air_temp": 20,
            "intake_air_flow_speed": 5, "battery_percentage": 50, "battery_voltage": 400, "current_draw": 10,
            "speed": speed, "engine_vibration_amplitude": 1, "throttle_pos": 0.5, "control_unit_firmware": 1000,
        });
        for n in ["11", "12", "21", "22"] {
            reading[format!("tire_pressure_{n}")] = 32.into();
            reading[format!("accelerometer_{n}_value")] = 0.into();
        }
        reading["ambient_temp"] = (*ambient).into();
        decoder.decode(reading.to_string().as_bytes()).unwrap();
    }
    decoder.finish()
}

/// Drivers: VIN, segment, years.
fn drivers(rows: &[(&str, &str, i32)]) -> RecordBatch {
    let mut decoder = JsonDecoder::new(Contract::builtin().schemas().file("driver.avsc").unwrap());
    for (vin, segment, years) in rows {
        let row = serde_json::json!({
            "vin": vin, "name": "n", "email": "e", "phone": "p", "licence_number": "l", "address": "a",
            "segment": segment, "experience_years": years,
        });
        decoder.decode(row.to_string().as_bytes()).unwrap();
    }
    decoder.finish()
}

fn vin(n: usize) -> String {
    format!("VIN{n:014}")
}

fn feed(table: &mut LookupTable, rows: &[(&str, &str, i32)]) {
    let changes: Vec<_> = rows.iter().enumerate().map(|(row, (vin, ..))| (*vin, Some(row))).collect();
    table.update(&drivers(rows), changes).unwrap();
}

const SELECT: &str =
    "SELECT pseudonym(r.vin) AS car, r.seq, r.speed * 3.6 AS kmh, coalesce(d.segment, 'none') AS segment,
    coarsen(r.longitude, 0.05) AS longitude, d.experience_years AS years FROM telemetry_raw r ";
const OUT: &str = r#"{"name": "seq", "type": "long"}, {"name": "kmh", "type": "double"},
    {"name": "segment", "type": "string"}, {"name": "longitude", "type": "double"},
    {"name": "years", "type": ["null", "long"], "default": null}"#;

fn rows_of(batch: &RecordBatch) -> Vec<(String, i64, String, String, Option<i64>)> {
    let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
    let long = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
    let kmh = batch.column_by_name("kmh").unwrap().as_primitive::<Float64Type>().clone();
    (0..batch.num_rows())
        .map(|i| {
            let years = long("years");
            let years = years.is_valid(i).then(|| years.value(i));
            (
                text("car").value(i).into(),
                long("seq").value(i),
                format!("{:.1}", kmh.value(i)),
                text("segment").value(i).into(),
                years,
            )
        })
        .collect()
}

#[test]
fn a_left_join_keeps_every_record_in_order_and_an_inner_join_those_with_a_row() {
    let (a, b, c) = (vin(1), vin(2), vin(3));
    let batch = readings(&[(&a, 1, 10.0, None), (&b, 1, 20.0, None), (&c, 1, 30.0, None), (&a, 2, 0.0, None)]);
    let row = |car: &str, seq, kmh: &str, segment: &str, years| {
        (key().pseudonym(car), seq, kmh.to_owned(), segment.to_owned(), years)
    };
    let left =
        Query::plan(&definition(&format!("{SELECT} LEFT JOIN drivers d ON r.vin = d.vin"), &fields(OUT)), &key())
            .unwrap();
    let mut tables = left.tables(&definition("", CAR));
    feed(&mut tables[0], &[(&a, "fleet", 3), (&c, "rental", 40)]);
    let got = left.run(&batch, &mut tables).unwrap();
    assert_eq!(
        rows_of(&got.batch),
        [
            row(&a, 1, "36.0", "fleet", Some(3)),
            row(&b, 1, "72.0", "none", None),
            row(&c, 1, "108.0", "rental", Some(40)),
            row(&a, 2, "0.0", "fleet", Some(3))
        ]
    );
    let longitude = got.batch.column_by_name("longitude").unwrap().as_primitive::<Float64Type>();
    assert!(longitude.iter().all(|x| x.map(f64::to_bits) == Some(0.0f64.to_bits())), "and no -0");
    // The last row of a key holds; without one there are nulls again.
    feed(&mut tables[0], &[(&b, "private", 1), (&a, "rental", 4), (&a, "private", 5)]);
    tables[0].update(&drivers(&[]), [(c.as_str(), None)]).unwrap();
    let segments: Vec<_> =
        rows_of(&left.run(&batch, &mut tables).unwrap().batch).into_iter().map(|r| (r.3, r.4)).collect();
    assert_eq!(
        segments,
        [("private".into(), Some(5)), ("private".into(), Some(1)), ("none".into(), None), ("private".into(), Some(5))]
    );

    let inner = Query::plan(
        &definition(&format!("{SELECT} JOIN drivers d ON d.vin = r.vin WHERE d.experience_years < 5"), &fields(OUT)),
        &key(),
    )
    .unwrap();
    let mut tables = inner.tables(&definition("", CAR));
    feed(&mut tables[0], &[(&b, "private", 1), (&a, "rental", 9)]);
    let got = inner.run(&batch, &mut tables).unwrap();
    assert_eq!(rows_of(&got.batch), [row(&b, 1, "72.0", "private", Some(1))]);
    assert_eq!(got.rows.values(), &[1]);
}

#[test]
fn where_keeps_what_is_true_and_nothing_that_is_null() {
    let a = vin(1);
    let batch =
        readings(&[(&a, 1, 1.0, Some(5.0)), (&a, 2, 2.0, None), (&a, 3, 3.0, Some(-5.0)), (&a, 4, 4.0, Some(6.0))]);
    let select = "SELECT pseudonym(vin) AS car, seq AS x FROM telemetry_raw WHERE ambient_temp > 0 AND seq <> 4";
    let query = plan(select, r#"{"name": "x", "type": "long"}"#).unwrap();
    let got = query.run(&batch, &mut []).unwrap();
    assert_eq!(got.rows.values(), &[0]);
    for (condition, rows) in [("true", 4), ("false", 0), ("seq > 100", 0), ("ambient_temp IS NULL", 1), ("NULL", 0)] {
        let query = plan(
            &format!("SELECT pseudonym(vin) AS car, seq AS x FROM telemetry_raw WHERE {condition}"),
            r#"{"name": "x", "type": "long"}"#,
        )
        .unwrap();
        assert_eq!(query.run(&batch, &mut []).unwrap().batch.num_rows(), rows, "{condition}");
        assert_eq!(query.run(&readings(&[]), &mut []).unwrap().batch.num_rows(), 0);
    }
}

/// However the records are cut into batches, the same comes out, and it is what a loop over rows would give.
#[test]
fn ragged_batches_make_no_difference() {
    let select = format!(
        "{SELECT} LEFT JOIN drivers d ON r.vin = d.vin WHERE r.speed >= 5 AND coalesce(d.segment, '') <> 'rental'"
    );
    let query = Query::plan(&definition(&select, &fields(OUT)), &key()).unwrap();
    let vins: Vec<String> = (0..40).map(vin).collect();
    let segments = ["fleet", "rental", "private"];
    let has_row = |n: usize| !n.is_multiple_of(4);
    let table: Vec<_> =
        (0..40).filter(|n| has_row(*n)).map(|n| (vins[n].as_str(), segments[n % 3], n as i32)).collect();
    let mut random = Random::new(7);
    let all: Vec<_> = (0..500).map(|seq| (random.index(40), seq, random.below(10) as f64)).collect();
    let expected: Vec<_> = all
        .iter()
        .filter(|(n, _, speed)| *speed >= 5.0 && !(has_row(*n) && n % 3 == 1))
        .map(|(n, seq, speed)| {
            let segment = if has_row(*n) { segments[n % 3] } else { "none" };
            (
                key().pseudonym(&vins[*n]),
                *seq,
                format!("{:.1}", speed * 3.6),
                segment.to_owned(),
                has_row(*n).then_some(*n as i64),
            )
        })
        .collect();
    for _ in 0..20 {
        let mut tables = query.tables(&definition("", CAR));
        feed(&mut tables[0], &table);
        let mut got = Vec::new();
        let mut origins = Vec::new();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (batch, more) = rest.split_at(random.index(60).min(rest.len()));
            let begin = all.len() - rest.len();
            rest = more;
            let rows: Vec<_> = batch.iter().map(|(n, seq, speed)| (vins[*n].as_str(), *seq, *speed, None)).collect();
            let selected = query.run(&readings(&rows), &mut tables).unwrap();
            got.extend(rows_of(&selected.batch));
            origins.extend(selected.rows.values().iter().map(|row| begin + *row as usize));
        }
        assert_eq!(got, expected);
        assert!(origins.iter().zip(&expected).all(|(origin, row)| all[*origin].1 == row.1));
    }
}

#[test]
fn a_table_that_keeps_changing_stays_small_and_right() {
    let query =
        Query::plan(&definition(&format!("{SELECT} LEFT JOIN drivers d ON r.vin = d.vin"), &fields(OUT)), &key())
            .unwrap();
    let mut tables = query.tables(&definition("", CAR));
    let vins: Vec<String> = (0..10).map(vin).collect();
    for round in 0..500 {
        let rows: Vec<_> = vins.iter().map(|vin| (vin.as_str(), "fleet", round % 100)).collect();
        feed(&mut tables[0], &rows);
        if round % 7 == 0 {
            tables[0].update(&drivers(&[]), [(vins[3].as_str(), None)]).unwrap();
        }
        let readings = readings(&[(&vins[9], 0, 0.0, None), (&vins[3], 0, 0.0, None)]);
        let got = query.run(&readings, &mut tables).unwrap();
        let years = got.batch.column_by_name("years").unwrap().as_primitive::<Int64Type>().clone();
        assert_eq!((years.value(0), years.is_null(1)), (i64::from(round % 100), round % 7 == 0));
        assert!(tables[0].stored_rows() < 2100, "{}", tables[0].stored_rows());
    }
    assert_eq!(tables[0].len(), 10);
    // Personal columns that the statement does not use are not even kept.
    let kept: Vec<_> = tables[0].columns().iter().map(|field| field.name().clone()).collect();
    assert_eq!(kept, ["segment", "experience_years"]);
}

#[test]
fn coarsening_gives_multiples_of_the_step() {
    for (x, step, wanted) in [
        (52.523, 0.05, 52.5),
        (52.526, 0.05, 52.55),
        (52.349_999, 0.05, 52.35),
        (-13.376, 0.05, -13.4),
        (89.99, 0.05, 90.0),
        (-0.01, 0.05, 0.0),
        (52.5, 0.3, 52.5),
        (47.1, 2.0, 48.0),
    ] {
        assert!((coarsen(x, step) - wanted).abs() < 1e-9, "{x} {step}: {}", coarsen(x, step));
    }
    assert_eq!(coarsen(52.351, 0.05).to_string(), "52.35");
}

/// Functions of SQL that are let in must take any value there is.
#[test]
fn no_value_makes_an_expression_fail() {
    let a = vin(1);
    let most = 9_007_199_254_740_991;
    let batch = readings(&[(&a, most, 0.0, None), (&a, 0, 120.0, Some(-60.0))]);
    for expr in [
        "seq * seq * seq",
        "-seq - seq * 4000",
        "seq % 7",
        "seq / 3",
        "TRY_CAST(kind AS BIGINT)",
        "TRY_CAST(speed * 1e30 AS BIGINT)",
        "CASE WHEN speed / 0.0 > 1 THEN 1 ELSE 0 END",
        "greatest(seq, 5, boot_id)",
        "nullif(seq, 0)",
        "CAST(control_unit_firmware AS BIGINT)",
        "TRY_CAST(round(ambient_temp) AS BIGINT)",
        "TRY_CAST(ceil(ambient_temp) + floor(speed) AS BIGINT)",
        "CASE upper(lower('x')) WHEN 'X' THEN least(1, seq) END",
        "CASE WHEN ambient_temp BETWEEN 1 AND 2 OR seq IN (1, 2, 3) OR NOT (speed > 1) IS TRUE THEN 1 END",
    ] {
        let expr = expr.replace("kind", "CAST(speed AS VARCHAR)");
        let select = format!("SELECT pseudonym(vin) AS car, {expr} AS x FROM telemetry_raw");
        let query = plan(&select, r#"{"name": "x", "type": ["null", "long"], "default": null}"#)
            .unwrap_or_else(|e| panic!("{expr}: {e:?}"));
        let got = query.run(&batch, &mut []).unwrap_or_else(|e| panic!("{expr}: {e:#}"));
        assert_eq!(got.batch.num_rows(), 2, "{expr}");
    }
}

#[test]
fn widths_are_widened_without_loss() {
    let batch = readings(&[(&vin(1), 1, 2.0, None)]);
    let query = plan(
        "SELECT pseudonym(vin) AS car, control_unit_firmware AS x FROM telemetry_raw",
        r#"{"name": "x", "type": "double"}"#,
    )
    .unwrap();
    let got = query.run(&batch, &mut []).unwrap();
    assert_eq!(got.batch.column(1).as_primitive::<Float64Type>().value(0), 1000.0);
    assert_eq!(got.batch.column(0).as_string::<i32>().value(0), key().pseudonym(&vin(1)));
}

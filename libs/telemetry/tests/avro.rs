//! Avro out and in: against arrow-avro's own decoder, across schema versions, and with damaged messages.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float32Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow_avro::reader::ReaderBuilder;
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};
use proptest::prelude::*;
use telemetry::avro::{AvroDecoder, AvroEncoder, Error, REASONS, schema_id};
use telemetry::json::JsonDecoder;
use telemetry::schema::{Kind, Schema};

/// JSON of one row of `schema`, made from `seed`.
fn json_row(schema: &Schema, seed: u64) -> String {
    let fields = schema.fields.iter().enumerate().map(|(i, field)| {
        let n = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i as u64 * 1_442_695_040_888_963_407) >> 16;
        let value = match field.kind {
            _ if field.nullable && n.is_multiple_of(3) => "null".to_owned(),
            Kind::Boolean => n.is_multiple_of(2).to_string(),
            Kind::Int => (n as i32).to_string(),
            Kind::Long | Kind::TimestampMillis => (n as i64 - (1 << 46)).to_string(),
            Kind::Float => serde_json::to_string(&(n as f32 / 1024.0)).unwrap(),
            Kind::Double => serde_json::to_string(&(n as f64 / 1024.0)).unwrap(),
            Kind::String => format!("\"{}é\"", "x".repeat(n as usize % 90)),
        };
        format!("\"{}\":{value}", field.name)
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

fn batch_of(file: &str, seeds: &[u64]) -> RecordBatch {
    let schema = contract::Contract::builtin().schemas().file(file).unwrap();
    let mut decoder = JsonDecoder::new(schema);
    for seed in seeds {
        decoder.decode(json_row(schema, *seed).as_bytes()).unwrap();
    }
    decoder.finish()
}

fn messages(id: u32, batch: &RecordBatch) -> Vec<Vec<u8>> {
    AvroEncoder::new(contract::Contract::builtin().schemas(), id)
        .unwrap()
        .encode(batch)
        .unwrap()
        .iter()
        .map(<[u8]>::to_vec)
        .collect()
}

fn decoder(reader: &str) -> AvroDecoder {
    AvroDecoder::new(contract::Contract::builtin().schemas(), reader).unwrap()
}

#[test]
fn the_header_is_confluents() {
    let message = &messages(2, &batch_of("telemetry.v2.avsc", &[1]))[0];
    assert_eq!((&message[..5], schema_id(message)), (&[0u8, 0, 0, 0, 2][..], Some(2)));
}

#[test]
fn version_1_is_read_as_version_2_and_the_other_way() {
    let (v1, v2) = (batch_of("telemetry.v1.avsc", &[1, 2]), batch_of("telemetry.v2.avsc", &[3, 4]));
    let mixed = [&messages(1, &v1)[..], &messages(2, &v2)[..]].concat();
    let order = [2, 0, 3, 1]; // the schema id changes with every message
    for (reader, file) in [(1, "telemetry.v1.avsc"), (2, "telemetry.v2.avsc")] {
        let mut decoder = decoder(file);
        for i in order {
            decoder.decode(&mixed[i]).unwrap();
        }
        let batch = decoder.finish();
        assert_eq!(&batch.schema(), decoder.schema());
        let (left, right) = (v1.columns().iter().collect::<Vec<_>>(), v2.columns());
        for (c, left) in left.iter().enumerate() {
            let column = batch.column(c);
            let parts = [right[c].slice(0, 1), left.slice(0, 1), right[c].slice(1, 1), left.slice(1, 1)];
            let parts: Vec<&dyn Array> = parts.iter().map(ArrayRef::as_ref).collect();
            assert_eq!(column, &arrow::compute::concat(&parts).unwrap());
        }
        if reader == 2 {
            let ambient = batch.column_by_name("ambient_temp").unwrap();
            assert!(ambient.is_null(1) && ambient.is_null(3));
            assert_eq!(ambient.slice(0, 1).as_ref(), v2.column_by_name("ambient_temp").unwrap().slice(0, 1).as_ref());
        }
    }
}

#[test]
fn what_is_no_message_is_rejected() {
    let message = messages(2, &batch_of("telemetry.v2.avsc", &[5])).remove(0);
    let score = messages(4, &batch_of("score.avsc", &[5])).remove(0);
    let mut unknown = message.clone();
    unknown[4] = 99;
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (vec![], "not-avro", "begin with 0"),
        (vec![0, 0, 0, 0], "not-avro", "begin with 0"),
        (b"{\"car\": 1}".to_vec(), "not-avro", "begin with 0"),
        (unknown, "unknown-schema", "99"),
        (score, "incompatible-schema", "is a carstream.Score, expected a carstream.Telemetry"),
        (message[..5].to_vec(), "malformed-avro", "car can't be read"),
        (message[..message.len() - 1].to_vec(), "malformed-avro", "can't be read"),
        ([&message[..], &[7]].concat(), "malformed-avro", "1 bytes follow"),
        // arrow-avro takes this for two rows.
        ([&message[..], &message[..]].concat(), "malformed-avro", "follow the record"),
        // A string of i64::MIN bytes; one of more bytes than there are; a varint that does not end.
        (vec![0, 0, 0, 0, 2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], "malformed-avro", "car"),
        (vec![0, 0, 0, 0, 2, 254, 255, 255, 255, 15, 65], "malformed-avro", "car"),
        ([&[0, 0, 0, 0, 2][..], &[255; 30]].concat(), "malformed-avro", "car"),
        (vec![0, 0, 0, 0, 2, 2, 255], "malformed-avro", "car"),
    ];
    let mut decoder = decoder("telemetry.v2.avsc");
    for (message, reason, detail) in cases {
        let reject = decoder.decode(&message).expect_err(detail);
        assert_eq!(reject.reason, reason, "{reject}");
        assert!(reject.detail.contains(detail), "{reject}");
        assert!(REASONS.contains(&reason));
    }
    decoder.decode(&message).unwrap();
    assert_eq!(decoder.finish(), batch_of("telemetry.v2.avsc", &[5]));
}

#[test]
fn a_batch_that_does_not_fit_is_refused_whole() {
    let mut encoder = AvroEncoder::new(contract::Contract::builtin().schemas(), 4).unwrap();
    let good = batch_of("score.avsc", &[1, 2, 3]);
    let replaced = |name: &str, column: ArrayRef| {
        let schema = good.schema();
        let i = schema.index_of(name).unwrap();
        let mut fields: Vec<_> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        fields[i] = fields[i].clone().with_nullable(true).with_data_type(column.data_type().clone());
        let mut columns = good.columns().to_vec();
        columns[i] = column;
        RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns).unwrap()
    };
    let null = replaced("score", Arc::new(Float32Array::from(vec![Some(1.0), None, Some(2.0)])));
    let text = replaced("score", Arc::new(StringArray::from(vec!["a", "b", "c"])));
    let fewer = good.project(&[0, 1, 2]).unwrap();
    for bad in [null, text, fewer] {
        assert!(matches!(encoder.encode(&bad), Err(Error::Unfit { .. })));
    }
    // Nothing of them is left in the encoder.
    let rows = encoder.encode(&good).unwrap();
    assert_eq!(rows.len(), 3);
    assert!(matches!(AvroEncoder::new(contract::Contract::builtin().schemas(), 77), Err(Error::NoSuchId(77))));
    assert!(matches!(AvroDecoder::new(contract::Contract::builtin().schemas(), "x.avsc"), Err(Error::NoSuchSchema(_))));
}

/// The same messages through arrow-avro.
fn arrow_avro_decodes(file: &str, messages: &[Vec<u8>]) -> RecordBatch {
    let schema = contract::Contract::builtin().schemas().file(file).unwrap();
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store.set(Fingerprint::Id(schema.id.unwrap()), AvroSchema::new(schema.json.clone())).unwrap();
    let mut decoder = ReaderBuilder::new().with_writer_schema_store(store).build_decoder().unwrap();
    for message in messages {
        assert_eq!(decoder.decode(message).unwrap(), message.len());
    }
    let batch = decoder.flush().unwrap().unwrap();
    RecordBatch::try_new(schema.arrow.clone(), batch.columns().to_vec()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// JSON → Arrow → Avro → Arrow gives the same rows, and arrow-avro agrees.
    #[test]
    fn every_schema_makes_the_round_trip(seeds in prop::collection::vec(any::<u64>(), 1..30)) {
        for (id, schema) in contract::Contract::builtin().schemas().with_ids() {
            let batch = batch_of(&schema.file, &seeds);
            let messages = messages(id, &batch);
            let mut decoder = decoder(&schema.file);
            for message in &messages {
                decoder.decode(message).unwrap();
            }
            prop_assert_eq!(&decoder.finish(), &batch);
            prop_assert_eq!(&arrow_avro_decodes(&schema.file, &messages), &batch);
        }
    }

    /// Damage never panics and never reaches a neighbour.
    #[test]
    fn damaged_messages_never_touch_their_neighbours(
        seeds in prop::collection::vec((any::<u64>(), prop::option::of((any::<u16>(), any::<u8>(), 0..3u8))), 1..20)
    ) {
        let mut together = decoder("telemetry.v2.avsc");
        let mut alone = Vec::new();
        for (seed, damage) in seeds {
            let mut message = messages(2, &batch_of("telemetry.v2.avsc", &[seed])).remove(0);
            if let Some((at, byte, how)) = damage {
                let at = at as usize % message.len();
                match how {
                    0 => message[at] = byte,
                    1 => message.insert(at, byte),
                    _ => message.truncate(at),
                }
            }
            let mut single = decoder("telemetry.v2.avsc");
            let answers = (together.decode(&message), single.decode(&message));
            prop_assert_eq!(&answers.0, &answers.1);
            if answers.0.is_ok() {
                alone.push(single.finish());
            }
        }
        let batch = together.finish();
        let expected = concat_batches(&batch.schema(), &alone).unwrap();
        // As text: a flipped bit may well make a NaN.
        prop_assert_eq!(format!("{batch:?}"), format!("{expected:?}"));
    }
}

#[test]
fn a_registry_gives_other_ids_and_more_versions() {
    let own = |file: &str, id| Schema {
        id: Some(id),
        ..Schema::clone(contract::Contract::builtin().schemas().file(file).unwrap())
    };
    let newer = contract::Contract::builtin().schemas().file("telemetry.v2.avsc").unwrap().json.replace(
        r#""ambient_temp", "type""#,
        r#""humidity", "type": ["null", "float"], "default": null}, {"name": "ambient_temp", "type""#,
    );
    let newer = Schema::of_writer("version 3 of telemetry-value", &newer, 70).unwrap();
    let schemas = contract::Contract::builtin().schemas().with_ids_of([own("telemetry.v2.avsc", 12), newer.clone()]);
    assert_eq!(schemas.file("telemetry.v2.avsc").unwrap().id, Some(12));
    assert_eq!(schemas.file("telemetry.v1.avsc").unwrap().id, None, "the registry did not name it");
    let row = batch_of("telemetry.v2.avsc", &[5]);
    let mut columns = row.columns().to_vec();
    let humidity: ArrayRef = Arc::new(Float32Array::from(vec![Some(0.4)]));
    columns.insert(columns.len() - 1, humidity);
    let newer_row = RecordBatch::try_new(newer.arrow.clone(), columns).unwrap();
    let encode = |id: u32, batch: &RecordBatch| {
        let rows = AvroEncoder::new(&schemas, id).unwrap().encode(batch).unwrap();
        rows.iter().map(<[u8]>::to_vec).next().unwrap()
    };
    let (ours, theirs) = (encode(12, &row), encode(70, &newer_row));
    assert_eq!((schema_id(&ours), schema_id(&theirs)), (Some(12), Some(70)));
    let mut decoder = AvroDecoder::new(&schemas, "telemetry.v2.avsc").unwrap();
    decoder.decode(&ours).unwrap();
    decoder.decode(&theirs).unwrap();
    assert_eq!(decoder.finish(), concat_batches(row.schema_ref(), [&row, &row]).unwrap());
}

#[test]
fn a_writer_can_be_made_known_later() {
    let message = &messages(1, &batch_of("telemetry.v1.avsc", &[1]))[0];
    let known = Schema {
        id: Some(2),
        ..Schema::clone(contract::Contract::builtin().schemas().file("telemetry.v2.avsc").unwrap())
    };
    let schemas = contract::Contract::builtin().schemas().with_ids_of([known]);
    let mut decoder = AvroDecoder::new(&schemas, "telemetry.v2.avsc").unwrap();
    assert_eq!(decoder.unknown_id(message), Some(1));
    assert_eq!(decoder.decode(message).unwrap_err().reason, "unknown-schema");
    decoder.add_writer(1, Err("it holds bytes"));
    let reject = decoder.decode(message).unwrap_err();
    assert_eq!((reject.reason, reject.detail.contains("it holds bytes")), ("incompatible-schema", true));
    decoder.add_writer(1, Ok(contract::Contract::builtin().schemas().id(1).unwrap()));
    assert_eq!(decoder.unknown_id(message), None);
    decoder.decode(message).unwrap();
    assert_eq!((decoder.rows(), decoder.unknown_id(b"not Avro")), (1, None));
}

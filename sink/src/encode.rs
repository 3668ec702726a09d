//! Records of the log to one Parquet object. Pure and synchronous.

use event_log::RecordRef;
use lake::{Object, ObjectName, ObjectWriter};
use telemetry::Reject;
use telemetry::avro::AvroDecoder;

use crate::buffer::Segment;
use crate::stream::Stream;

/// Rows decoded before they go into the file: bounds the memory of decoded rows, and is long enough to be fast.
const CHUNK_ROWS: usize = 8192;

/// What became of a segment.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// The rows; none if the first record stopped it.
    pub(crate) object: Option<Object>,
    /// Records that were set aside.
    pub(crate) undecodable: Vec<Undecodable>,
    /// Requests to forget a car: the offset of each, and the pseudonym of the car.
    pub(crate) requests: Vec<(u64, String)>,
    /// The record that the topic stops at. The object ends before it.
    pub(crate) stopped_at: Option<Undecodable>,
}

/// A record that is not what its topic should hold, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Undecodable {
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) reject: Reject,
}

impl Undecodable {
    fn new(record: &RecordRef<'_>, reject: Reject) -> Self {
        Self {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.to_vec(),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
            reject,
        }
    }
}

/// Turns a segment into an object, with a fresh decoder that already has the writers' schemas. A record that cannot be
/// decoded is set aside if `skip` says so, and otherwise ends the object before it.
pub(crate) fn encode(
    stream: &Stream,
    decoder: AvroDecoder,
    topic: &str,
    partition: u32,
    segment: &Segment,
    skip: bool,
) -> anyhow::Result<Encoded> {
    let mut rows = Rows::new(stream, decoder, topic, partition, segment);
    let mut encoded = Encoded { object: None, undecodable: Vec::new(), requests: Vec::new(), stopped_at: None };
    let mut end = segment.end;
    for record in segment.iter() {
        if contract::is_forget(record.value, record.headers.get(contract::FORGET)) {
            encoded.requests.push((record.offset, String::from_utf8_lossy(record.key).into_owned()));
            continue;
        }
        let Err(reject) = rows.push(&record) else {
            rows.write_chunk(CHUNK_ROWS)?;
            continue;
        };
        let undecodable = Undecodable::new(&record, reject);
        if !skip {
            end = record.offset;
            encoded.stopped_at = Some(undecodable);
            break;
        }
        encoded.undecodable.push(undecodable);
    }
    if end > segment.start {
        encoded.object = rows.finish(end)?;
    }
    Ok(encoded)
}

/// The rows of an object as they are decoded.
struct Rows<'s> {
    stream: &'s Stream,
    topic: &'s str,
    partition: u32,
    start: u64,
    decoder: AvroDecoder,
    offsets: Vec<u64>,
    timestamps_ms: Vec<i64>,
    /// The log's time of the first record. It alone decides on the object's date, whether that record can be decoded or
    /// not, so that every sink gives an object of this start offset the same name.
    first_ms: i64,
    writer: Option<ObjectWriter>,
}

impl<'s> Rows<'s> {
    fn new(stream: &'s Stream, decoder: AvroDecoder, topic: &'s str, partition: u32, segment: &Segment) -> Self {
        let start = segment.start;
        let first_ms = segment.iter().next().map_or(0, |record| record.timestamp_ms);
        let (offsets, timestamps_ms) = (Vec::new(), Vec::new());
        Self { stream, topic, partition, start, decoder, offsets, timestamps_ms, first_ms, writer: None }
    }

    fn push(&mut self, record: &RecordRef<'_>) -> Result<(), Reject> {
        let no_value = || Reject { reason: "no-value", detail: "the record has no value".to_owned() };
        self.decoder.decode(record.value.ok_or_else(no_value)?)?;
        self.offsets.push(record.offset);
        self.timestamps_ms.push(record.timestamp_ms);
        Ok(())
    }

    /// Writes what was decoded, if it is at least `rows`.
    fn write_chunk(&mut self, rows: usize) -> anyhow::Result<()> {
        if self.offsets.len() < rows {
            return Ok(());
        }
        let batch = self.decoder.finish();
        if self.writer.is_none() {
            let stream = self.stream;
            let name = ObjectName::new(self.topic, self.partition, self.start, self.first_ms);
            self.writer = Some(ObjectWriter::new(name, &stream.schema.arrow, stream.schema_id, stream.encodings)?);
        }
        if let Some(writer) = &mut self.writer {
            writer.write(&batch, &self.offsets, &self.timestamps_ms)?;
        }
        self.offsets.clear();
        self.timestamps_ms.clear();
        Ok(())
    }

    fn finish(mut self, end: u64) -> anyhow::Result<Option<Object>> {
        self.write_chunk(0)?;
        Ok(self.writer.map(|writer| writer.finish(end)).transpose()?)
    }
}

/// Records that were set aside, one JSON object per line: origin, reason, and the bytes in hex.
pub(crate) fn undecodable_lines(topic: &str, partition: u32, records: &[Undecodable]) -> String {
    let mut lines = String::new();
    for record in records {
        let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name, hex::encode(value))).collect();
        let line = serde_json::json!({
            "topic": topic,
            "partition": partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "reason": record.reject.reason,
            "detail": record.reject.detail,
            "key_hex": hex::encode(&record.key),
            "value_hex": record.value.as_ref().map(hex::encode),
            "headers_hex": headers,
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    lines
}

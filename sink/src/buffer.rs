//! Records of one partition on their way to the store, as they are in the log.
//!
//! ```text
//!  batch ─► │ open segment │ ──(rows, bytes, age, day, memory, drain)──► │ closed │ closed │ ─► one upload at a time
//! ```
//!
//! One upload at a time, in order: were the second object there and the first not, a crash would leave a gap.
//! Records stay encoded until they are uploaded: a tenth of the memory of rows, and it is known to the byte.
//!
//! A segment ends with its day, by the log's timestamps, so that a folder `date=…` holds that day. Timestamps that go
//! back a little (bridges whose clocks differ) stay in the segment. A clock that is wrong by more ends it too, but not
//! again and again: where one bridge of several has such a clock, a file per record would be worse than a mixed file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Batch, RecordRef};

/// What a batch costs per record beside its bytes: where key, value and headers lie.
const RECORD_OVERHEAD_BYTES: usize = 40;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// So much before its day a segment still takes: clocks that agree to a minute, and records that were retried.
const DAY_SLACK_MS: i64 = 10 * 60 * 1000;

/// When a segment ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) age: Duration,
}

/// The records of one object to be.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// The first offset that the object will answer for.
    pub(crate) start: u64,
    /// The offset after the last.
    pub(crate) end: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// When its day begins: that of its first record.
    day_ms: i64,
    opened: Instant,
    closed: bool,
    parts: Vec<(Arc<Batch>, std::ops::Range<usize>)>,
}

impl Segment {
    fn open(start: u64, first_ms: i64) -> Self {
        let (opened, day_ms) = (Instant::now(), first_ms - first_ms.rem_euclid(DAY_MS));
        Self { start, end: start, records: 0, bytes: 0, day_ms, opened, closed: false, parts: Vec::new() }
    }

    fn begins_after(&self, timestamp_ms: i64) -> bool {
        timestamp_ms < self.day_ms.saturating_sub(DAY_SLACK_MS)
    }

    fn ended_before(&self, timestamp_ms: i64) -> bool {
        timestamp_ms >= self.day_ms.saturating_add(DAY_MS)
    }

    /// The records, in offset order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.parts.iter().flat_map(|(batch, range)| range.clone().map(|i| batch.get(i)))
    }

    fn is_due(&self, limits: &Limits) -> bool {
        self.closed || self.records >= limits.rows || self.bytes >= limits.bytes || self.opened.elapsed() >= limits.age
    }
}

/// What of one partition is not in the lake yet.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// The offset that is read next.
    pub(crate) next: u64,
    /// Up to here the lake holds everything.
    pub(crate) stored: u64,
    /// The segment being uploaded, if any, is out of here; only the last one can be open.
    queue: VecDeque<Segment>,
    uploading: Option<u64>,
    /// When a segment last ended because timestamps went back.
    went_back: Option<Instant>,
}

impl Buffer {
    /// A buffer that resumes at `next`.
    pub(crate) fn new(next: u64) -> Self {
        Self { next, stored: next, queue: VecDeque::new(), uploading: None, went_back: None }
    }

    /// Forgets everything that is not in the lake, and resumes at `next`.
    pub(crate) fn reset(&mut self, next: u64) {
        *self = Self::new(next);
    }

    /// Takes the records of a batch, which follow those before.
    pub(crate) fn push(&mut self, mut batch: Batch, limits: &Limits) {
        // It is held until its last object is stored, and only its bytes are counted.
        batch.shrink_to_fit();
        let batch = Arc::new(batch);
        let mut from = 0;
        while from < batch.len() {
            let first_ms = batch.get(from).timestamp_ms;
            if self.queue.back().is_none_or(|segment| segment.is_due(limits) || segment.ended_before(first_ms)) {
                self.close();
                self.queue.push_back(Segment::open(self.next, first_ms));
            }
            let segment = self.queue.back_mut().expect("pushed just now");
            let may_go_back = self.went_back.is_some_and(|at| at.elapsed() < limits.age);
            let mut to = from;
            while to < batch.len() && segment.records < limits.rows && segment.bytes < limits.bytes {
                let record = batch.get(to);
                if segment.ended_before(record.timestamp_ms) {
                    break;
                }
                if segment.begins_after(record.timestamp_ms) && !may_go_back {
                    segment.closed = true;
                    self.went_back = Some(Instant::now());
                    break;
                }
                segment.bytes += record_bytes(&record);
                segment.records += 1;
                to += 1;
            }
            if to > from {
                segment.end = batch.get(to - 1).offset + 1;
                self.next = segment.end;
                segment.parts.push((batch.clone(), from..to));
                from = to;
            }
        }
    }

    /// Ends the open segment.
    pub(crate) fn close(&mut self) {
        if let Some(last) = self.queue.back_mut() {
            last.closed = true;
        }
    }

    /// The next segment to be uploaded; none while one is, or while nothing is due.
    pub(crate) fn start_upload(&mut self, limits: &Limits) -> Option<Segment> {
        if self.uploading.is_some() || !self.queue.front()?.is_due(limits) {
            return None;
        }
        let segment = self.queue.pop_front()?;
        self.uploading = Some(segment.bytes);
        Some(segment)
    }

    /// The upload ended, and the lake holds everything before `stored`.
    pub(crate) fn uploaded(&mut self, stored: u64) {
        self.uploading = None;
        self.stored = stored;
    }

    /// Bytes held, those of the upload included.
    pub(crate) fn bytes(&self) -> u64 {
        self.uploading.unwrap_or(0) + self.queue.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Bytes that an upload could free now: those of the first segment, unless an upload is under way.
    pub(crate) fn bytes_waiting(&self) -> u64 {
        if self.uploading.is_some() { 0 } else { self.queue.front().map_or(0, |segment| segment.bytes) }
    }

    /// Whether the lake holds all that was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.uploading.is_none() && self.queue.is_empty()
    }
}

fn record_bytes(record: &RecordRef<'_>) -> u64 {
    let headers: usize = record.headers.map(|(name, value)| name.len() + value.len() + 6).sum();
    (record.key.len() + record.value.map_or(0, <[u8]>::len) + headers + RECORD_OVERHEAD_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rows: 3, bytes: u64::MAX, age: Duration::MAX };

    fn batch(offsets: std::ops::Range<u64>) -> Batch {
        let mut batch = Batch::new("t".into(), 0);
        for offset in offsets {
            batch.push(offset, 0, b"k", Some(b"value"), []);
        }
        batch
    }

    fn offsets(segment: &Segment) -> Vec<u64> {
        segment.iter().map(|record| record.offset).collect()
    }

    #[test]
    fn segments_end_at_the_row_limit_and_follow_each_other() {
        let mut buffer = Buffer::new(10);
        buffer.push(batch(12..14), &LIMITS);
        assert!(buffer.start_upload(&LIMITS).is_none(), "not full yet");
        buffer.push(batch(14..20), &LIMITS);
        let first = buffer.start_upload(&LIMITS).unwrap();
        assert_eq!((first.start, first.end, offsets(&first)), (10, 15, vec![12, 13, 14]));
        assert!(buffer.start_upload(&LIMITS).is_none(), "one at a time");
        buffer.uploaded(15);
        let second = buffer.start_upload(&LIMITS).unwrap();
        assert_eq!((second.start, second.end, offsets(&second)), (15, 18, vec![15, 16, 17]));
        buffer.uploaded(18);
        assert!(buffer.start_upload(&LIMITS).is_none(), "the rest is open");
        buffer.close();
        let rest = buffer.start_upload(&LIMITS).unwrap();
        assert_eq!((rest.start, rest.end, offsets(&rest)), (18, 20, vec![18, 19]));
        assert_eq!((buffer.next, buffer.stored), (20, 18));
        assert!(!buffer.is_empty());
        buffer.uploaded(20);
        assert!(buffer.is_empty());
        assert_eq!(buffer.bytes(), 0);
    }

    #[test]
    fn segments_end_at_the_byte_limit_and_with_age() {
        let one = record_bytes(&batch(0..1).get(0));
        let mut buffer = Buffer::new(0);
        let limits = Limits { bytes: 2 * one, ..LIMITS };
        buffer.push(batch(0..3), &limits);
        assert_eq!(buffer.bytes(), 3 * one);
        assert_eq!(offsets(&buffer.start_upload(&limits).unwrap()), [0, 1]);
        assert_eq!(buffer.bytes(), 3 * one, "what is uploaded is still held");
        buffer.uploaded(2);
        assert!(buffer.start_upload(&limits).is_none());
        let old = Limits { age: Duration::ZERO, ..limits };
        assert_eq!(offsets(&buffer.start_upload(&old).unwrap()), [2]);
    }

    #[test]
    fn segments_end_with_their_day() {
        const NOON: i64 = 20_000 * DAY_MS + DAY_MS / 2;
        let limits = Limits { rows: 1_000, ..LIMITS };
        let segments = |times: &[i64], age| {
            let limits = Limits { age, ..limits };
            let mut batch = Batch::new("t".into(), 0);
            times.iter().zip(0..).for_each(|(time, offset)| batch.push(offset, *time, b"k", Some(b"v"), []));
            let mut buffer = Buffer::new(0);
            buffer.push(batch, &limits);
            buffer.close();
            let mut segments: Vec<Vec<i64>> = Vec::new();
            while let Some(segment) = buffer.start_upload(&Limits { rows: 0, ..limits }) {
                segments.push(segment.iter().map(|record| (record.timestamp_ms - NOON) / (DAY_MS / 24)).collect());
                buffer.uploaded(segment.end);
            }
            segments
        };
        let at = |hours: &[i64]| hours.iter().map(|hour| NOON + hour * DAY_MS / 24).collect::<Vec<_>>();
        let whole: [Vec<i64>; 2] = [vec![0, 11], vec![12, 13, 35]];
        assert_eq!(segments(&at(&[0, 11, 12, 13, 35]), Duration::MAX), whole);
        // A record that is a minute late for its day stays with the next one.
        let late = [NOON + DAY_MS / 2, NOON + DAY_MS / 2 - 60_000];
        assert_eq!(segments(&late, Duration::MAX), [vec![12, 11]]);
        // A clock that is days ahead for one record; and one that comes again and again.
        assert_eq!(segments(&at(&[0, 240, 1, 2]), Duration::MAX), [vec![0], vec![240], vec![1, 2]]);
        let mixed: [Vec<i64>; 4] = [vec![0], vec![240], vec![1], vec![240, 2, 240, 3]];
        assert_eq!(segments(&at(&[0, 240, 1, 240, 2, 240, 3]), Duration::MAX), mixed, "no file for each");
    }

    #[test]
    fn a_reset_forgets_what_is_not_in_the_lake() {
        let mut buffer = Buffer::new(0);
        buffer.push(batch(0..8), &LIMITS);
        let _ = buffer.start_upload(&LIMITS).unwrap();
        buffer.reset(5);
        assert_eq!((buffer.next, buffer.stored, buffer.bytes()), (5, 5, 0));
    }
}

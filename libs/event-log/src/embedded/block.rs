//! How records lie on disk: several of one partition in one stored value.
//!
//! ```text
//! block  format (u8) │ records (u32) │ last - first offset (u32) │ body bytes (u32) │ body
//! body   per record: offset, timestamp (deltas), key, value, header lengths (varints) │ keys, values, headers
//! ```
//!
//! Integers are little-endian. Offsets are relative, so that a block can be packed before its place in the log is
//! known. The body is LZ4 if that makes it smaller. Storage checks a checksum over the whole value before it gets
//! here; what is checked here keeps a wrong value from becoming wrong records.

use std::ops::Range;

use crate::Batch;
use crate::batch::Entry;

/// Blocks are cut at this many bytes of keys, values and headers: large enough that what a block costs does not
/// matter, small enough that reading one record does not mean unpacking a lot. A larger record is a block of its own.
const TARGET_BYTES: usize = 256 * 1024;
/// A record is read and unpacked as a whole.
pub(super) const MAX_RECORD_BYTES: usize = 8 << 20;
/// Below this, packing costs more than it saves; storage compresses such blocks together.
const MIN_PACKED_BYTES: usize = 1024;

const HEADER_BYTES: usize = 13;
const PLAIN: u8 = 1;
const LZ4: u8 = 2;

/// A block without its place: ready to be stored at any offset.
pub(super) struct Block {
    /// How many offsets it takes.
    pub(super) span: u64,
    /// What is stored.
    pub(super) bytes: Vec<u8>,
}

/// Packs the records of `batch`, numbering them from 0.
pub(super) fn pack_new(batch: &Batch) -> Vec<Block> {
    cuts(batch).into_iter().map(|range| pack(batch, range, Numbering::Dense)).collect()
}

/// Packs all records of `batch` into one block that keeps their distances from `first`.
pub(super) fn pack_sparse(batch: &Batch, first: u64) -> Block {
    pack(batch, 0..batch.len(), Numbering::From(first))
}

#[derive(Clone, Copy)]
enum Numbering {
    /// One after the other.
    Dense,
    /// By their own offsets, relative to this one.
    From(u64),
}

fn cuts(batch: &Batch) -> Vec<Range<usize>> {
    let (entries, _) = batch.columns();
    let mut cuts = Vec::new();
    let mut from = 0;
    for (i, entry) in entries.iter().enumerate() {
        let bytes = (entry.headers_end - entries[from].start) as usize;
        if i > from && bytes > TARGET_BYTES {
            cuts.push(from..i);
            from = i;
        }
    }
    if from < entries.len() {
        cuts.push(from..entries.len());
    }
    cuts
}

fn pack(batch: &Batch, range: Range<usize>, numbering: Numbering) -> Block {
    let (entries, buffer) = batch.columns();
    let entries = &entries[range];
    let buffer = &buffer[entries[0].start as usize..entries[entries.len() - 1].headers_end as usize];
    let relative = |i: usize| match numbering {
        Numbering::Dense => i as u64,
        Numbering::From(first) => entries[i].offset - first,
    };
    let mut body = Vec::with_capacity(buffer.len() + 12 * entries.len());
    let (mut offset_before, mut timestamp_before) = (0, 0i64);
    for (i, e) in entries.iter().enumerate() {
        let offset = relative(i);
        put(&mut body, offset - offset_before);
        put(&mut body, zigzag(e.timestamp_ms.wrapping_sub(timestamp_before)));
        put(&mut body, u64::from(e.key_end - e.start));
        put(&mut body, if e.tombstone { 0 } else { u64::from(e.value_end - e.key_end) + 1 });
        put(&mut body, u64::from(e.headers_end - e.value_end));
        (offset_before, timestamp_before) = (offset, e.timestamp_ms);
    }
    body.extend_from_slice(buffer);

    let last = relative(entries.len() - 1);
    let header = |format: u8| {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + lz4_flex::block::get_maximum_output_size(body.len()));
        bytes.push(format);
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(last).expect("a block spans less than 2^32 offsets").to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("a block is below 4 GiB").to_le_bytes());
        bytes
    };
    let mut bytes = header(LZ4);
    let packed = if body.len() < MIN_PACKED_BYTES {
        None
    } else {
        bytes.resize(bytes.capacity(), 0);
        lz4_flex::block::compress_into(&body, &mut bytes[HEADER_BYTES..]).ok().filter(|len| *len < body.len())
    };
    match packed {
        Some(len) => bytes.truncate(HEADER_BYTES + len),
        None => {
            bytes = header(PLAIN);
            bytes.extend_from_slice(&body);
        }
    }
    Block { span: last + 1, bytes }
}

/// Replaces the records of `batch` by those of the block that begins at offset `first`. The error says what is wrong;
/// then the records are void.
pub(super) fn unpack(first: u64, bytes: &[u8], batch: &mut Batch) -> Result<(), &'static str> {
    let (fixed, stored) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or("a block is cut off")?;
    let [format, r0, r1, r2, r3, s0, s1, s2, s3, b0, b1, b2, b3] = *fixed;
    let records = u32::from_le_bytes([r0, r1, r2, r3]) as usize;
    let last = first.checked_add(u64::from(u32::from_le_bytes([s0, s1, s2, s3]))).ok_or("a block has no position")?;
    let body_bytes = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
    let (entries, buffer) = batch.reset_columns();
    match format {
        PLAIN => buffer.extend_from_slice(stored),
        // LZ4 reaches at most a factor of 255: a length beyond that is damage, not a reason to allocate.
        LZ4 if body_bytes / 255 <= stored.len() => {
            buffer.resize(body_bytes, 0);
            let len = lz4_flex::block::decompress_into(stored, buffer).map_err(|_| "a block cannot be unpacked")?;
            buffer.truncate(len);
        }
        LZ4 => return Err("a block's length is wrong"),
        _ => return Err("a block has an unknown format"),
    }
    if buffer.len() != body_bytes {
        return Err("a block's length is wrong");
    }
    unpack_entries(first, last, records, buffer, entries)
}

fn unpack_entries(
    first: u64,
    last: u64,
    records: usize,
    body: &[u8],
    entries: &mut Vec<Entry>,
) -> Result<(), &'static str> {
    const DAMAGED: &str = "a block's records are damaged";
    // Five varints are at least five bytes.
    if records == 0 || records > body.len() / 5 {
        return Err(DAMAGED);
    }
    entries.reserve(records);
    let mut rest = body;
    let mut next = || take(&mut rest).ok_or(DAMAGED);
    let (mut offset, mut timestamp_ms, mut end) = (first, 0i64, 0u64);
    for _ in 0..records {
        offset = offset.checked_add(next()?).ok_or(DAMAGED)?;
        timestamp_ms = timestamp_ms.wrapping_add(unzigzag(next()?));
        let (key, value, headers) = (next()?, next()?, next()?);
        let start = end;
        let key_end = start.saturating_add(key);
        let value_end = key_end.saturating_add(value.saturating_sub(1));
        end = value_end.saturating_add(headers);
        if end > body.len() as u64 {
            return Err(DAMAGED);
        }
        entries.push(Entry {
            offset,
            timestamp_ms,
            start: start as u32,
            key_end: key_end as u32,
            value_end: value_end as u32,
            headers_end: end as u32,
            tombstone: value == 0,
        });
    }
    if rest.len() as u64 != end || offset != last {
        return Err(DAMAGED);
    }
    // The lengths stay in front of the buffer: moving the places is cheaper than moving the bytes.
    let lengths = (body.len() - rest.len()) as u32;
    for e in entries.iter_mut() {
        e.start += lengths;
        e.key_end += lengths;
        e.value_end += lengths;
        e.headers_end += lengths;
    }
    Ok(())
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

fn put(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    type Owned = (u64, i64, Vec<u8>, Option<Vec<u8>>, Vec<(String, Vec<u8>)>);

    fn owned(batch: &Batch) -> Vec<Owned> {
        batch
            .iter()
            .map(|r| {
                let headers = r.headers.map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
                (r.offset, r.timestamp_ms, r.key.to_vec(), r.value.map(<[u8]>::to_vec), headers)
            })
            .collect()
    }

    fn batch(records: &[Owned]) -> Batch {
        let mut batch = Batch::new("t".into(), 0);
        for (offset, timestamp, key, value, headers) in records {
            let headers = headers.iter().map(|(n, v)| (n.as_str(), v.as_slice()));
            batch.push(*offset, *timestamp, key, value.as_deref(), headers);
        }
        batch
    }

    fn records() -> impl Strategy<Value = Vec<Owned>> {
        let bytes = || vec(any::<u8>(), 0..200);
        let headers = vec(("[a-z_]{0,9}", bytes()), 0..3);
        // Repeated text as well as noise, so that both formats occur.
        let value = proptest::option::of(prop_oneof![bytes(), (0usize..4000).prop_map(|n| b"text ".repeat(n))]);
        vec((1u64..1000, any::<i64>(), bytes(), value, headers), 1..40).prop_map(|mut records| {
            let mut offset = 0;
            for r in &mut records {
                offset += r.0;
                r.0 = offset;
            }
            records
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_sparse_block_gives_back_its_records(records in records(), gap in 0u64..50) {
            let first = records[0].0.saturating_sub(gap);
            let block = pack_sparse(&batch(&records), first);
            let mut back = Batch::new("t".into(), 0);
            unpack(first, &block.bytes, &mut back).unwrap();
            prop_assert_eq!(owned(&back), records.clone());
            prop_assert_eq!(first + block.span - 1, records[records.len() - 1].0);
        }

        #[test]
        fn new_records_are_numbered_one_after_the_other(mut records in records(), first in 0u64..1 << 40) {
            let mut next = first;
            let (mut all, mut one) = (Vec::new(), Batch::new("t".into(), 0));
            for block in pack_new(&batch(&records)) {
                unpack(next, &block.bytes, &mut one).unwrap();
                next += block.span;
                all.extend(owned(&one));
            }
            for (i, record) in records.iter_mut().enumerate() {
                record.0 = first + i as u64;
            }
            prop_assert_eq!(next, first + records.len() as u64);
            prop_assert_eq!(all, records);
        }

        #[test]
        fn damage_is_an_error_or_other_records_but_never_a_panic(
            records in records(), place in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
        ) {
            let mut bytes = pack_sparse(&batch(&records), 0).bytes;
            let place = place.index(bytes.len());
            bytes[place] = byte;
            if cut {
                bytes.truncate(place);
            }
            let mut back = Batch::new("t".into(), 0);
            if unpack(0, &bytes, &mut back).is_ok() {
                owned(&back);
            }
        }
    }

    #[test]
    fn blocks_are_cut_by_bytes() {
        let value = vec![7u8; 100 * 1024];
        let records: Vec<Owned> = (0..10).map(|i| (i, 0, vec![], Some(value.clone()), vec![])).collect();
        let spans: Vec<u64> = pack_new(&batch(&records)).iter().map(|b| b.span).collect();
        assert_eq!(spans, [2, 2, 2, 2, 2]);
        let huge: Vec<Owned> = vec![(0, 0, vec![], Some(vec![1; 3 * TARGET_BYTES]), vec![])];
        assert_eq!(pack_new(&batch(&huge)).len(), 1);
    }
}

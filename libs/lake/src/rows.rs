//! Rows in the lake: storing an object, the position of a partition, reading a range back.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::layout::{COMPACTED, check_name};
use crate::listing::{Folder, Listed, Part, resolve};
use crate::object::ObjectReader;
use crate::{Days, Error, Footer, Lake, Object, ObjectName, OffsetRange, Rows};

/// Enough for the footer of a file with a hundred columns, and cheaper than asking twice.
const FOOTER_BYTES: u64 = 64 * 1024;

/// Footers that are read at the same time.
pub(crate) const CONCURRENT_READS: usize = 16;

/// How many of a partition's newest objects are checked for gaps when a sink starts. All of them are when a range is
/// read or [`Lake::coverage`] is asked; checking every object at every start would take longer each day.
const NEWEST_OBJECTS: usize = 8;

/// How often something is asked if objects disappear meanwhile.
const MAX_ATTEMPTS: usize = 4;

impl Lake {
    /// Stores an object of rows; [`Error::Exists`] if one with this name exists.
    pub async fn put_object(&self, object: &Object) -> Result<(), Error> {
        check_name("a topic", &object.name.topic)?;
        self.create(&object.name.to_string(), object.bytes.clone()).await
    }

    /// What the footer of an object says.
    pub async fn footer(&self, name: &ObjectName) -> Result<Footer, Error> {
        Ok(self.footer_and_size(name).await?.0)
    }

    pub(crate) async fn footer_and_size(&self, name: &ObjectName) -> Result<(Footer, u64), Error> {
        let Tail { metadata, size, .. } = self.tail(name).await?;
        let footer = Footer::from_metadata(&metadata).and_then(|footer| check_footer(name, &footer).map(|()| footer));
        Ok((footer.map_err(|what| unusable(self, name, what))?, size))
    }

    /// The end of an object, with its metadata.
    pub(crate) async fn tail(&self, name: &ObjectName) -> Result<Tail, Error> {
        let path = name.to_string();
        let (mut tail, size) = self.get_tail(&path, FOOTER_BYTES).await?;
        let mut reader = ParquetMetaDataReader::new();
        if let Err(error) = reader.try_parse_sized(&tail, size) {
            let ParquetError::NeedMoreData(needed) = error else {
                return Err(unusable(self, name, error.to_string()));
            };
            (tail, _) = self.get_tail(&path, needed as u64).await?;
            reader.try_parse_sized(&tail, size).map_err(|e| unusable(self, name, e.to_string()))?;
        }
        let metadata = reader.finish().map_err(|e| unusable(self, name, e.to_string()))?;
        Ok(Tail { bytes: tail, size, metadata })
    }

    /// Where each partition of a topic resumes: the end of its last object.
    ///
    /// Lists the newest folder of each partition, and of the other folders the names from its last object on:
    /// a clock that was wrong may have put newer objects under an older day. Reads the footers of the newest objects.
    pub async fn next_offsets(&self, topic: &str) -> Result<NextOffsets, Error> {
        again_if_gone(|| self.next_offsets_now(topic)).await
    }

    async fn next_offsets_now(&self, topic: &str) -> Result<NextOffsets, Error> {
        let days = self.days(topic, None).await?;
        let mut by_partition: BTreeMap<u32, Vec<Folder>> = BTreeMap::new();
        for folder in self.folders(topic, &days).await? {
            by_partition.entry(folder.partition).or_default().push(folder);
        }
        let mut newest = Vec::new();
        for folders in by_partition.into_values() {
            let parts = resolve(self.newest_objects(folders).await?).parts;
            newest.extend_from_slice(&parts[parts.len().saturating_sub(NEWEST_OBJECTS)..]);
        }
        let Coverage { mut ranges, gaps, skipped, .. } = self.contiguous(newest).await?;
        ranges.extend(skipped);
        let mut offsets = BTreeMap::new();
        for range in ranges {
            let next = offsets.entry(range.partition).or_insert(range.end);
            *next = range.end.max(*next);
        }
        Ok(NextOffsets { offsets, gaps })
    }

    /// Of one partition's folders, oldest first: the objects of the newest one that has any, and all newer objects.
    pub(crate) async fn newest_objects(&self, mut folders: Vec<Folder>) -> Result<Vec<ObjectName>, Error> {
        let mut listed = Listed::default();
        while let Some(folder) = folders.pop() {
            listed = self.list_all([(folder.path(), None)]).await?;
            // Rows that somebody rewrote under another name would be written once more.
            if let Some(object) = listed.foreign.pop() {
                return Err(Error::Foreign { lake: self.url.to_string(), object });
            }
            if !listed.objects.is_empty() {
                break;
            }
        }
        let Some(last) = listed.objects.iter().map(|name| name.start).max() else { return Ok(Vec::new()) };
        let from_there_on = |folder: Folder| (folder.path(), Some(folder.before(last)));
        listed.append(self.list_all(folders.into_iter().map(from_there_on)).await?);
        Ok(listed.objects)
    }

    /// Where a partition resumes after `name` turned out to exist: the end of the last object of that folder.
    /// `None`: there is none from there on, so ask [`next_offsets`](Self::next_offsets).
    pub async fn next_offset_after(&self, name: &ObjectName) -> Result<Option<u64>, Error> {
        let ObjectName { topic, date, partition, start, .. } = name.clone();
        let folder = Folder { topic, date, partition };
        again_if_gone(|| async {
            let listed = self.list_all([(folder.path(), Some(folder.before(start)))]).await?;
            let Some(last) = resolve(listed.objects).parts.pop() else { return Ok(None) };
            Ok(Some(self.footer(&last.name).await?.end).filter(|end| *end > start))
        })
        .await
    }

    /// What the lake holds of a topic. Reads the footer of every object. An overlap is an error that names the objects.
    pub async fn coverage(&self, topic: &str) -> Result<Coverage, Error> {
        self.coverage_among(topic, None).await
    }

    /// Like [`coverage`](Self::coverage), in the folders of some days: of each partition what follows its first object
    /// there. Lists only these folders, and reads only their footers, unless something is missing in them.
    pub async fn coverage_of(&self, topic: &str, days: &Days) -> Result<Coverage, Error> {
        self.coverage_among(topic, Some(days)).await
    }

    async fn coverage_among(&self, topic: &str, days: Option<&Days>) -> Result<Coverage, Error> {
        again_if_gone(|| self.coverage_now(topic, days)).await
    }

    async fn coverage_now(&self, topic: &str, days: Option<&Days>) -> Result<Coverage, Error> {
        let mut listed = self.list_days(topic, days).await?;
        let mut covered = self.contiguous(resolve(listed.objects).parts).await?;
        if !covered.gaps.is_empty() {
            // A wrong clock may have put the missing objects under another day. And a listing of a directory in
            // which objects are replaced may show neither the old nor the new ones: so it is repeated, too.
            let starts: BTreeMap<_, _> =
                covered.ranges.iter().rev().map(|range| (range.partition, range.start)).collect();
            let foreign = listed.foreign;
            listed = self.list_days(topic, None).await?;
            listed.foreign = foreign;
            let follows = |name: &ObjectName| {
                let start = starts.get(&name.partition);
                start.is_some_and(|start| name.end.unwrap_or(name.start + 1) > *start)
            };
            listed.objects.retain(follows);
            covered = self.contiguous(resolve(listed.objects).parts).await?;
        }
        covered.foreign = listed.foreign;
        Ok(covered)
    }

    /// Whether a compacted object holds the rows of this one. Then this one does not count.
    pub async fn is_compacted(&self, name: &ObjectName) -> Result<bool, Error> {
        let ObjectName { topic, date, partition, start, .. } = name.clone();
        let folder = Folder { topic, date, partition }.path();
        let compacted = self.list_all([(folder.clone(), Some(format!("{folder}/{COMPACTED}")))]).await?.objects;
        Ok(compacted.iter().any(|other| other.start <= start && other.end.is_some_and(|end| start < end)))
    }

    async fn footers_of(&self, parts: Vec<Part>) -> Result<Vec<(Part, Footer)>, Error> {
        let read = |part: Part| async move { self.footer(&part.name).await.map(|footer| (part, footer)) };
        futures_util::stream::iter(parts.into_iter().map(read)).buffered(CONCURRENT_READS).try_collect().await
    }

    /// The ranges that sorted objects cover together, and what is missing between them.
    async fn contiguous(&self, parts: Vec<Part>) -> Result<Coverage, Error> {
        let mut covered = Coverage::default();
        let mut before: Option<ObjectName> = None;
        for (Part { name, from }, footer) in self.footers_of(parts).await? {
            let (topic, partition) = (name.topic.clone(), name.partition);
            if footer.skipped {
                match covered.skipped.last_mut() {
                    Some(last) if last.partition == partition && last.end == from => last.end = footer.end,
                    _ => covered.skipped.push(OffsetRange { topic, partition, start: from, end: footer.end }),
                }
                continue;
            }
            match covered.ranges.last_mut().filter(|range| range.partition == partition).zip(before) {
                Some((range, _)) if range.end == from => range.end = footer.end,
                Some((range, before)) if range.end > from => {
                    let (lake, before, end) = (self.url.to_string(), before.to_string(), range.end);
                    let (after, start) = (name.to_string(), from);
                    return Err(Error::Overlap { lake, topic, partition, before, end, after, start });
                }
                joins_nothing => {
                    let is_skipped = |end: u64| {
                        let within = |skipped: &OffsetRange| skipped.start <= end && skipped.end >= from;
                        covered.skipped.last().is_some_and(|last| last.partition == partition && within(last))
                    };
                    if let Some((range, before)) = joins_nothing.filter(|(range, _)| !is_skipped(range.end)) {
                        let (before, after) = (before.to_string(), name.to_string());
                        let gap = Gap { topic: topic.clone(), partition, before, end: range.end, after, start: from };
                        covered.gaps.push(gap);
                    }
                    covered.ranges.push(OffsetRange { topic, partition, start: from, end: footer.end });
                }
            }
            before = Some(name);
        }
        Ok(covered)
    }

    /// Reads exactly the rows of `range`, as `schema`, in the order of their offsets.
    ///
    /// Whether the lake holds the whole range is found out here, from the footers, before the first row.
    /// Memory: one object at a time.
    pub async fn read(&self, range: OffsetRange, schema: SchemaRef) -> Result<RangeReader, Error> {
        let objects = if range.start < range.end { self.objects_of(&range, None).await? } else { Vec::new() };
        Ok(self.reader(range, schema, objects))
    }

    /// Like [`read`](Self::read), for a range that should lie in the folders of these days: looks elsewhere only if it
    /// does not.
    pub async fn read_of(&self, range: OffsetRange, days: &Days, schema: SchemaRef) -> Result<RangeReader, Error> {
        match self.objects_of(&range, Some(days)).await {
            Ok(objects) => Ok(self.reader(range, schema, objects)),
            Err(Error::NotCovered { .. } | Error::Gap { .. }) => self.read(range, schema).await,
            Err(error) => Err(error),
        }
    }

    /// Reads all rows of one object with this footer, as `schema`. Whether its neighbours join it is not looked at.
    pub fn read_object(&self, name: ObjectName, footer: &Footer, schema: SchemaRef) -> RangeReader {
        let Footer { start, end, .. } = *footer;
        let range = OffsetRange { topic: name.topic.clone(), partition: name.partition, start, end };
        self.reader(range, schema, vec![Part { name, from: start }])
    }

    fn reader(&self, range: OffsetRange, schema: SchemaRef, objects: Vec<Part>) -> RangeReader {
        RangeReader { lake: self.clone(), range, schema, objects: objects.into(), current: None }
    }

    /// The objects that hold `range` together, of all folders or of those of some days.
    async fn objects_of(&self, range: &OffsetRange, days: Option<&Days>) -> Result<Vec<Part>, Error> {
        again_if_gone(|| self.objects_of_now(range, days)).await
    }

    async fn objects_of_now(&self, range: &OffsetRange, days: Option<&Days>) -> Result<Vec<Part>, Error> {
        let not_covered = |missing_start: u64, missing_end: u64| Error::NotCovered {
            lake: self.url.to_string(),
            topic: range.topic.clone(),
            partition: range.partition,
            missing_start,
            missing_end,
        };
        let days = self.days(&range.topic, days).await?;
        let folder = |date| Folder { topic: range.topic.clone(), date, partition: range.partition };
        let mut listed = self.list_all(days.into_iter().map(|date| (folder(date).path(), None))).await?;
        listed.objects.retain(|name| name.start < range.end);
        let mut parts = resolve(listed.objects).parts;
        // The object that holds the first offset is the last one that does not start after it.
        let before = parts.partition_point(|part| part.from <= range.start);
        let Some(before) = before.checked_sub(1) else {
            return Err(not_covered(range.start, parts.first().map_or(range.end, |part| part.from)));
        };
        // Two objects of one start offset can only differ in their date: both go in, and are found to overlap.
        let before = parts.partition_point(|part| part.from < parts[before].from);
        let parts = parts.split_off(before);
        let Coverage { ranges, gaps, .. } = self.contiguous(parts.clone()).await?;
        if let Some(gap) = gaps.into_iter().next() {
            return Err(Error::Gap { lake: self.url.to_string(), gap });
        }
        let holds_start = |covered: &&OffsetRange| covered.start <= range.start; // unless that was skipped
        let end = ranges.first().filter(holds_start).map_or(range.start, |covered| covered.end);
        if end < range.end {
            return Err(not_covered(end.max(range.start), range.end));
        }
        Ok(parts)
    }
}

/// The end of an object.
pub(crate) struct Tail {
    /// Its last bytes: at least the metadata.
    pub(crate) bytes: Bytes,
    /// How long the object is.
    pub(crate) size: u64,
    pub(crate) metadata: ParquetMetaData,
}

/// Asks again if an object is gone meanwhile: compaction has put another one in its place.
async fn again_if_gone<T, F>(mut ask: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    for _ in 1..MAX_ATTEMPTS {
        match ask().await {
            Err(Error::NotFound { .. }) => {}
            asked => return asked,
        }
    }
    ask().await
}

/// Where the partitions of a topic resume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NextOffsets {
    /// The offset after the last object, by partition; a partition without objects is not in the map.
    pub offsets: BTreeMap<u32, u64>,
    /// What is missing between the newest objects.
    pub gaps: Vec<Gap>,
}

/// What the lake holds of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// By partition and offset: one range per partition, and one more after each gap.
    pub ranges: Vec<OffsetRange>,
    /// What is missing between them, and was not skipped.
    pub gaps: Vec<Gap>,
    /// What an operator let the sink skip: retention had removed it before it was written.
    pub skipped: Vec<OffsetRange>,
    /// Parquet files that carstream did not write, and does not read.
    pub foreign: Vec<String>,
}

impl Coverage {
    /// One line for each gap and each range that was skipped, and one for foreign files.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<_> = self.gaps.iter().map(Gap::to_string).collect();
        remarks.extend(self.skipped.iter().map(|OffsetRange { topic, partition, start, end }| {
            format!(
                "{topic}/{partition} lacks offsets {start} to {end}: retention removed them before they were written, \
                 and an operator let the sink skip them"
            )
        }));
        if let Some(first) = self.foreign.first() {
            let count = self.foreign.len();
            remarks.push(format!(
                "{count} Parquet files were not written by carstream and are not read, the first is {first}: rows that \
                 were rewritten under other names are missing"
            ));
        }
        remarks
    }
}

/// Offsets that are missing between two objects of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The object before the gap.
    pub before: String,
    /// The offset after its last: the first that is missing.
    pub end: u64,
    /// The object after the gap.
    pub after: String,
    /// Its first offset.
    pub start: u64,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, before, end, after, start } = self;
        write!(
            f,
            "{topic}/{partition} lacks offsets {end} to {start}: {before} ends at offset {end}, and the next object is \
             {after}, which starts at {start}"
        )
    }
}

/// Whether an object is what its name says.
pub(crate) fn check_footer(name: &ObjectName, footer: &Footer) -> Result<(), String> {
    if (&footer.topic, footer.partition, footer.start) != (&name.topic, name.partition, name.start) {
        return Err(format!("its footer says {}/{} offset {}", footer.topic, footer.partition, footer.start));
    }
    if name.end.is_some_and(|end| end != footer.end) {
        return Err(format!("its footer says that it ends at offset {}", footer.end));
    }
    if footer.end <= footer.start {
        return Err(format!("its footer says that it ends at offset {}, before it starts", footer.end));
    }
    Ok(())
}

/// Reads one range; from [`Lake::read`], or [`Lake::read_object`].
pub struct RangeReader {
    lake: Lake,
    range: OffsetRange,
    schema: SchemaRef,
    objects: VecDeque<Part>,
    current: Option<(Part, ObjectReader)>,
}

impl RangeReader {
    /// The next rows; `None` at the end of the range.
    pub async fn next(&mut self) -> Result<Option<Rows>, Error> {
        loop {
            if let Some((part, reader)) = &mut self.current {
                let rows = reader.next(self.range.start.max(part.from), self.range.end);
                match rows.map_err(|what| unusable(&self.lake, &part.name, what))? {
                    Some(rows) => return Ok(Some(rows)),
                    None => self.current = None,
                }
            }
            let Some(part) = self.objects.pop_front() else { return Ok(None) };
            let Some(bytes) = self.get(&part).await? else { continue };
            let opened = ObjectReader::new(bytes, self.schema.clone())
                .and_then(|reader| check_footer(&part.name, &reader.footer).map(|()| reader));
            let reader = opened.map_err(|what| unusable(&self.lake, &part.name, what))?;
            self.current = Some((part, reader));
        }
    }

    /// The bytes of an object. `None`: it is gone, and the objects that took its place are read next.
    async fn get(&mut self, part: &Part) -> Result<Option<Bytes>, Error> {
        let gone = match self.lake.get(&part.name.to_string()).await {
            Err(error @ Error::NotFound { .. }) => error,
            result => return result.map(Some),
        };
        let rest = OffsetRange { start: self.range.start.max(part.from), ..self.range.clone() };
        let objects = match self.lake.objects_of(&rest, None).await {
            Err(Error::NotCovered { .. } | Error::Gap { .. }) => return Err(gone),
            objects => objects?,
        };
        // What was read is not read again, though the object that took its place may hold it, too.
        let from_there_on = |other: Part| Part { from: other.from.max(rest.start), ..other };
        self.objects = objects.into_iter().map(from_there_on).collect();
        Ok(None)
    }
}

pub(crate) fn unusable(lake: &Lake, name: &ObjectName, what: String) -> Error {
    Error::Unusable { lake: lake.url.to_string(), object: name.to_string(), what }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

//! Rows in the lake: storing an object, the position of a partition, reading a range back.

use std::collections::{BTreeMap, VecDeque};

use arrow::datatypes::SchemaRef;
use chrono::NaiveDate;
use futures_util::{StreamExt, TryStreamExt};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;

use crate::layout::check_name;
use crate::object::ObjectReader;
use crate::{Error, Footer, Lake, Object, ObjectName, OffsetRange, Rows};

/// Enough for the footer of a file with a hundred columns, and cheaper than asking twice.
const FOOTER_BYTES: u64 = 64 * 1024;

/// Footers that are read at the same time.
const CONCURRENT_READS: usize = 16;

/// How many of a partition's newest objects are checked for gaps when a sink starts. All of them are when a range is
/// read or [`Lake::coverage`] is asked; checking every object at every start would take longer each day.
const NEWEST_OBJECTS: usize = 8;

impl Lake {
    /// Stores an object of rows; [`Error::Exists`] if one with this name exists.
    pub async fn put_object(&self, object: &Object) -> Result<(), Error> {
        check_name("a topic", &object.name.topic)?;
        self.create(&object.name.to_string(), object.bytes.clone()).await
    }

    /// The objects of a topic, sorted by partition and start offset.
    pub async fn objects(&self, topic: &str) -> Result<Vec<ObjectName>, Error> {
        check_name("a topic", topic)?;
        let names = self.list(topic).await?;
        let mut names: Vec<_> = names.iter().filter_map(|name| ObjectName::parse(name)).collect();
        names.sort_unstable_by(|a, b| (a.partition, a.start, &a.date).cmp(&(b.partition, b.start, &b.date)));
        Ok(names)
    }

    /// What the footer of an object says.
    pub async fn footer(&self, name: &ObjectName) -> Result<Footer, Error> {
        let path = name.to_string();
        let unusable = |what: String| Error::Unusable { lake: self.url.to_string(), object: path.clone(), what };
        let (mut tail, size) = self.get_tail(&path, FOOTER_BYTES).await?;
        let mut reader = ParquetMetaDataReader::new();
        if let Err(error) = reader.try_parse_sized(&tail, size) {
            let ParquetError::NeedMoreData(needed) = error else { return Err(unusable(error.to_string())) };
            (tail, _) = self.get_tail(&path, needed as u64).await?;
            reader.try_parse_sized(&tail, size).map_err(|e| unusable(e.to_string()))?;
        }
        let metadata = reader.finish().map_err(|e| unusable(e.to_string()))?;
        let footer = Footer::from_metadata(&metadata).map_err(unusable)?;
        check_footer(name, &footer).map_err(unusable)?;
        Ok(footer)
    }

    /// Where each partition of a topic resumes: the end of its last object. A partition without objects is not in the
    /// map. A gap or an overlap between its newest objects is an error that names them.
    pub async fn next_offsets(&self, topic: &str) -> Result<BTreeMap<u32, u64>, Error> {
        let mut newest = Vec::new();
        for objects in self.objects(topic).await?.chunk_by(|a, b| a.partition == b.partition) {
            newest.extend_from_slice(newest_of(objects));
        }
        let covered = self.contiguous(newest).await?;
        Ok(covered.into_iter().map(|range| (range.partition, range.end)).collect())
    }

    /// The ranges of a topic that are in the lake: one per partition. Reads the footer of every object; a gap or an
    /// overlap is an error that names the objects.
    pub async fn coverage(&self, topic: &str) -> Result<Vec<OffsetRange>, Error> {
        self.contiguous(self.objects(topic).await?).await
    }

    /// The ranges that begin with the first object of a folder `first_date` or later, one per partition, up to the end
    /// of the lake. Reads the names of all objects, but few footers: whether the objects join is found out when a range
    /// is read.
    pub async fn coverage_since(&self, topic: &str, first_date: NaiveDate) -> Result<Vec<OffsetRange>, Error> {
        let first_date = first_date.format("%Y-%m-%d").to_string();
        let (mut starts, mut newest) = (BTreeMap::new(), Vec::new());
        for objects in self.objects(topic).await?.chunk_by(|a, b| a.partition == b.partition) {
            if let Some(first) = objects.iter().find(|object| object.date >= first_date) {
                starts.insert(first.partition, first.start);
                newest.extend_from_slice(newest_of(objects));
            }
        }
        let mut covered = self.contiguous(newest).await?;
        for range in &mut covered {
            range.start = starts[&range.partition];
        }
        Ok(covered)
    }

    async fn footers_of(&self, names: Vec<ObjectName>) -> Result<Vec<(ObjectName, Footer)>, Error> {
        let read = |name: ObjectName| async move { self.footer(&name).await.map(|footer| (name, footer)) };
        futures_util::stream::iter(names.into_iter().map(read)).buffered(CONCURRENT_READS).try_collect().await
    }

    /// The ranges that sorted objects cover together.
    async fn contiguous(&self, names: Vec<ObjectName>) -> Result<Vec<OffsetRange>, Error> {
        let mut covered: Vec<OffsetRange> = Vec::new();
        let mut before: Option<(ObjectName, Footer)> = None;
        for (name, footer) in self.footers_of(names).await? {
            match covered.last_mut() {
                Some(range) if range.partition == name.partition => {
                    if let Some((before, _)) = &before {
                        self.check_adjacent(before, range.end, &name)?;
                    }
                    range.end = footer.end;
                }
                _ => covered.push(OffsetRange {
                    topic: name.topic.clone(),
                    partition: name.partition,
                    start: name.start,
                    end: footer.end,
                }),
            }
            before = Some((name, footer));
        }
        Ok(covered)
    }

    fn check_adjacent(&self, before: &ObjectName, end: u64, after: &ObjectName) -> Result<(), Error> {
        let (lake, topic, partition) = (self.url.to_string(), after.topic.clone(), after.partition);
        let (before, start) = (before.to_string(), after.start);
        match end.cmp(&start) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => {
                Err(Error::Gap { lake, topic, partition, before, end, after: after.to_string(), start })
            }
            std::cmp::Ordering::Greater => {
                Err(Error::Overlap { lake, topic, partition, before, end, after: after.to_string(), start })
            }
        }
    }

    /// Reads exactly the rows of `range`, as `schema`, in the order of their offsets.
    ///
    /// Whether the lake holds the whole range is found out here, from the footers, before the first row.
    /// Memory: one object at a time.
    pub async fn read(&self, range: OffsetRange, schema: SchemaRef) -> Result<RangeReader, Error> {
        let objects = if range.start < range.end { self.objects_of(&range).await? } else { Vec::new() };
        Ok(RangeReader { lake: self.clone(), range, schema, objects: objects.into(), current: None })
    }

    /// Reads all rows of one object, as `schema`. Whether its neighbours join it is not looked at.
    pub fn read_object(&self, name: ObjectName, schema: SchemaRef) -> RangeReader {
        let range = OffsetRange { topic: name.topic.clone(), partition: name.partition, start: 0, end: u64::MAX };
        RangeReader { lake: self.clone(), range, schema, objects: [name].into(), current: None }
    }

    /// The objects that hold `range` together.
    async fn objects_of(&self, range: &OffsetRange) -> Result<Vec<ObjectName>, Error> {
        let not_covered = |missing_start: u64, missing_end: u64| Error::NotCovered {
            lake: self.url.to_string(),
            topic: range.topic.clone(),
            partition: range.partition,
            missing_start,
            missing_end,
        };
        let mut names = self.objects(&range.topic).await?;
        names.retain(|name| name.partition == range.partition && name.start < range.end);
        // The object that holds the first offset is the last one that does not start after it.
        let first = names.partition_point(|name| name.start <= range.start);
        let Some(first) = first.checked_sub(1) else {
            return Err(not_covered(range.start, names.first().map_or(range.end, |name| name.start)));
        };
        // Two objects of one start offset can only differ in their date: both go in, and are found to overlap.
        let first = names.partition_point(|name| name.start < names[first].start);
        let names = names.split_off(first);
        let covered = self.contiguous(names.clone()).await?;
        let end = covered.first().map_or(range.start, |covered| covered.end);
        if end < range.end {
            return Err(not_covered(end.max(range.start), range.end));
        }
        Ok(names)
    }
}

/// The newest of one partition's sorted objects.
fn newest_of(objects: &[ObjectName]) -> &[ObjectName] {
    &objects[objects.len().saturating_sub(NEWEST_OBJECTS)..]
}

/// Whether an object is what its name says.
fn check_footer(name: &ObjectName, footer: &Footer) -> Result<(), String> {
    if (&footer.topic, footer.partition, footer.start) != (&name.topic, name.partition, name.start) {
        return Err(format!("its footer says {}/{} offset {}", footer.topic, footer.partition, footer.start));
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
    objects: VecDeque<ObjectName>,
    current: Option<(ObjectName, ObjectReader)>,
}

impl RangeReader {
    /// The next rows; `None` at the end of the range.
    pub async fn next(&mut self) -> Result<Option<Rows>, Error> {
        loop {
            if let Some((name, reader)) = &mut self.current {
                let rows = reader.next(self.range.start, self.range.end);
                match rows.map_err(|what| unusable(&self.lake, name, what))? {
                    Some(rows) => return Ok(Some(rows)),
                    None => self.current = None,
                }
            }
            let Some(name) = self.objects.pop_front() else { return Ok(None) };
            let bytes = self.lake.get(&name.to_string()).await?;
            let opened = ObjectReader::new(bytes, self.schema.clone())
                .and_then(|reader| check_footer(&name, &reader.footer).map(|()| reader));
            self.current = Some((name.clone(), opened.map_err(|what| unusable(&self.lake, &name, what))?));
        }
    }
}

fn unusable(lake: &Lake, name: &ObjectName, what: String) -> Error {
    Error::Unusable { lake: lake.url.to_string(), object: name.to_string(), what }
}

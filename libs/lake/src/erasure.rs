//! Rows to erase: what cars have asked for, and which rows that are.
//!
//! ```text
//! LAKE/_forget/telemetry/partition=3/00000000000000012345-9f86d081884c…   erase the rows before offset 12345 whose car
//!                                                                         has this SHA-256
//! LAKE/_forget/telemetry/partition=3/searched                             objects that hold no such row
//! ```
//!
//! A request is a name without content. It is created once and stays: a compaction that has read older objects may
//! bring rows back, and each one that follows has to know. It names the car by a hash: that recognises rows of the car,
//! and says nothing where there are none.
//!
//! Objects never change, so what was searched in vain is not searched again. `searched` keeps their names; it may be
//! lost, and then they are searched once more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use bytes::{Buf, Bytes};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use sha2::{Digest, Sha256};

use crate::layout::{check_name, offset, requests_folder};
use crate::object::{LOG_COLUMNS, ObjectReader};
use crate::rows::{Tail, blocking, unusable};
use crate::{Error, Lake, ObjectName, Rows};

/// The requests to erase rows of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErasureRequests {
    by_partition: BTreeMap<u32, Arc<PartitionRequests>>,
    count: u64,
}

impl ErasureRequests {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The offset before which the rows of a car are to be erased from a partition, if it has asked for that.
    pub fn before(&self, partition: u32, car: &str) -> Option<u64> {
        self.by_partition.get(&partition)?.before.get(&hash(car)).copied()
    }

    /// Whether a car has asked for it in any partition.
    pub fn has(&self, car: &str) -> bool {
        let car = hash(car);
        self.by_partition.values().any(|requests| requests.before.contains_key(&car))
    }

    /// Whether rows of a partition from this offset on may have been erased.
    pub fn reach(&self, partition: u32, from: u64) -> bool {
        self.by_partition.get(&partition).is_some_and(|requests| requests.reach(from))
    }

    pub(crate) fn of(&self, partition: u32) -> Arc<PartitionRequests> {
        self.by_partition.get(&partition).cloned().unwrap_or_default()
    }
}

/// Those of one partition: by the hash of the car, the offset before which its rows are to be erased.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PartitionRequests {
    before: BTreeMap<String, u64>,
}

impl PartitionRequests {
    /// Whether they are about rows from this offset on.
    pub(crate) fn reach(&self, from: u64) -> bool {
        self.before.values().any(|before| *before > from)
    }

    /// Tells these requests from any others.
    fn digest(&self) -> String {
        let mut digest = Sha256::new();
        self.before.iter().for_each(|(car, before)| digest.update(format!("{car} {before}\n")));
        hex::encode(digest.finalize())
    }
}

fn hash(car: &str) -> String {
    hex::encode(Sha256::digest(car))
}

/// Finds rows that are to be erased.
pub(crate) struct Eraser {
    requests: Arc<PartitionRequests>,
    column: String,
    /// What is asked for the cars that were met: nothing is 0.
    met: HashMap<String, u64>,
}

impl Eraser {
    /// For rows that name their car in this column.
    pub(crate) fn new(requests: Arc<PartitionRequests>, column: &str) -> Self {
        Self { requests, column: column.to_owned(), met: HashMap::new() }
    }

    /// Which of these rows stay; `None`: all of them. The error says what is wrong with them.
    pub(crate) fn staying(&mut self, rows: &Rows) -> Result<Option<BooleanArray>, String> {
        let column = rows.batch.column_by_name(&self.column).filter(|_| !self.requests.before.is_empty());
        let Some(column) = column else { return Ok(None) };
        let column = cast(column, &DataType::Utf8).map_err(|error| error.to_string())?;
        let cars = column.as_string::<i32>();
        let mut stays = Vec::with_capacity(cars.len());
        for (car, offset) in cars.iter().zip(rows.offsets.values()) {
            stays.push(car.is_none_or(|car| *offset as u64 >= self.before(car)));
        }
        Ok(stays.contains(&false).then(|| BooleanArray::from(stays)))
    }

    fn before(&mut self, car: &str) -> u64 {
        if let Some(before) = self.met.get(car) {
            return *before;
        }
        let before = self.requests.before.get(&hash(car)).copied().unwrap_or(0);
        self.met.insert(car.to_owned(), before);
        before
    }
}

/// The objects of a partition that hold no row to erase.
#[derive(Debug, Default)]
pub(crate) struct Searched {
    /// Searched before.
    known: BTreeSet<String>,
    /// Those of them that still count, and new ones.
    found: BTreeSet<String>,
}

impl Searched {
    pub(crate) fn knows(&mut self, name: &ObjectName) -> bool {
        let name = name.to_string();
        let known = self.known.contains(&name);
        if known {
            self.found.insert(name);
        }
        known
    }

    pub(crate) fn add(&mut self, name: &ObjectName) {
        self.found.insert(name.to_string());
    }
}

impl Lake {
    /// Asks for the rows of a partition before offset `before` to be erased whose car is `car`. To ask again changes
    /// nothing. [`Lake::compact`] carries it out.
    pub async fn request_erasure(&self, topic: &str, partition: u32, before: u64, car: &str) -> Result<(), Error> {
        check_name("a topic", topic)?;
        let name = format!("{}/partition={partition}/{before:020}-{}", requests_folder(topic), hash(car));
        match self.create(&name, Bytes::new()).await {
            Err(Error::Exists { .. }) => Ok(()),
            created => created,
        }
    }

    /// What was asked for rows of a topic. One listing.
    pub async fn erasure_requests(&self, topic: &str) -> Result<ErasureRequests, Error> {
        check_name("a topic", topic)?;
        let (folder, mut requests) = (requests_folder(topic), BTreeMap::<_, PartitionRequests>::new());
        let mut count = 0;
        self.each_name(&folder, None, |name| {
            let request = name.strip_prefix(&folder).and_then(|name| name.strip_prefix("/partition="));
            let Some((partition, request)) = request.and_then(|name| name.split_once('/')) else { return };
            let request = request.split_once('-').and_then(|(before, car)| Some((offset(before)?, car)));
            let Some((partition, (before, car))) = partition.parse::<u32>().ok().zip(request) else { return };
            let of_car = requests.entry(partition).or_default().before.entry(car.to_owned()).or_default();
            *of_car = before.max(*of_car);
            count += 1;
        })
        .await?;
        let by_partition = requests.into_iter().map(|(partition, requests)| (partition, Arc::new(requests)));
        Ok(ErasureRequests { by_partition: by_partition.collect(), count })
    }

    /// The objects in which these requests were found to match nothing.
    pub(crate) async fn searched(
        &self,
        topic: &str,
        partition: u32,
        requests: &PartitionRequests,
    ) -> Result<Searched, Error> {
        if !requests.reach(0) {
            return Ok(Searched::default());
        }
        let text = match self.get(&searched_name(topic, partition)).await {
            Err(Error::NotFound { .. }) => Bytes::new(),
            text => text?,
        };
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let same = lines.next() == Some(&requests.digest());
        Ok(Searched { known: lines.filter(|_| same).map(str::to_owned).collect(), found: BTreeSet::new() })
    }

    pub(crate) async fn note_searched(
        &self,
        topic: &str,
        partition: u32,
        requests: &PartitionRequests,
        searched: &Searched,
    ) -> Result<(), Error> {
        if searched.found == searched.known {
            return Ok(());
        }
        let mut text = requests.digest();
        searched.found.iter().for_each(|name| text.extend(["\n", name]));
        let name = searched_name(topic, partition);
        let written = self.store.put(&Path::from(name.as_str()), text.into()).await;
        written.map(drop).map_err(|source| self.store_error("write", &name, source))
    }

    /// Whether an object holds rows that are to be erased. Reads its footer, and three columns: about 5 % of it.
    pub(crate) async fn holds_rows_to_erase(&self, name: &ObjectName, mut eraser: Eraser) -> Result<bool, Error> {
        let Tail { bytes, size, metadata } = self.tail(name).await?;
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
        let wanted = |column: &str| column == eraser.column || LOG_COLUMNS.contains(&column);
        let columns = columns.filter(|column| wanted(&column.column_path().string()));
        let ranges: Vec<Range<u64>> = columns
            .map(|column| {
                let (start, length) = column.byte_range();
                start..start + length
            })
            .collect();
        let read = async {
            let parts = self.store.get_ranges(&name.path(), &ranges).await;
            parts.map_err(|source| self.store_error("read", &name.to_string(), source))
        };
        let mut parts: Vec<_> = self.in_time("read", &name.to_string(), read).await?;
        parts.push(bytes);
        let starts = ranges.iter().map(|range| range.start).chain([size - parts[parts.len() - 1].len() as u64]);
        let file = Parts { size, parts: starts.zip(parts).collect() };
        let schema = Arc::new(Schema::new(vec![Field::new(&eraser.column, DataType::Utf8, true)]));
        let search = move || {
            let mut reader = ObjectReader::new(file, schema)?;
            while let Some(rows) = reader.next(0, u64::MAX)? {
                if eraser.staying(&rows)?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        blocking(search).await.map_err(|what| unusable(self, name, what))
    }
}

fn searched_name(topic: &str, partition: u32) -> String {
    format!("{}/partition={partition}/searched", requests_folder(topic))
}

/// Some parts of a file, each with its place.
struct Parts {
    size: u64,
    parts: Vec<(u64, Bytes)>,
}

impl Parts {
    /// What there is from a place on.
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let holds = |(at, part): &&(u64, Bytes)| (*at..*at + part.len() as u64).contains(&start);
        let found = self.parts.iter().find(holds).map(|(at, part)| part.slice((start - at) as usize..));
        found.ok_or_else(|| ParquetError::EOF(format!("nothing was read at {start}")))
    }
}

impl Length for Parts {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Parts {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let found = self.from(start)?;
        if found.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes were not read at {start}")));
        }
        Ok(found.slice(..length))
    }
}

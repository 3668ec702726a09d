//! What the store holds in the end, against what the log holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use bytes::Bytes;
use futures_util::TryStreamExt;
use lake::{Footer, Lake, LakeUrl, ObjectName, OffsetRange};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use telemetry::avro::AvroDecoder;

use crate::log::{Record, Records};
use crate::store::World;
use crate::{SCHEMA, TOPIC};

/// Every record is in exactly one object, unchanged; the objects of a partition form one chain; no other objects exist.
pub(crate) async fn check(world: &World, records: &Records) -> Result<(), String> {
    let mut rows: BTreeMap<usize, Vec<(u64, RecordBatch)>> = BTreeMap::new();
    let mut beside = Vec::new();
    let listed: Vec<_> = world.objects.list(None).try_collect().await.unwrap();
    for object in listed {
        let bytes = world.objects.get(&object.location).await.unwrap().bytes().await.unwrap();
        match ObjectName::parse(object.location.as_ref()) {
            Some(name) => {
                let read = read_alone(&name, bytes).await.map_err(|e| format!("{name} is not whole: {e}"))?;
                rows.entry(name.partition as usize).or_default().extend(read);
            }
            None if object.location.as_ref().starts_with("_undecodable/") => beside.push(bytes),
            None => return Err(format!("{} has no business in the lake", object.location)),
        }
    }
    for (partition, log) in records.partitions.iter().enumerate() {
        check_rows(partition, rows.remove(&partition).unwrap_or_default(), log)?;
    }
    if let Some(partition) = rows.keys().next() {
        return Err(format!("{TOPIC} has no partition {partition}"));
    }
    check_chain(world, records).await?;
    check_beside(&beside, records)
}

/// The rows of one object, without regard to the others.
async fn read_alone(name: &ObjectName, bytes: Bytes) -> Result<Vec<(u64, RecordBatch)>, lake::Error> {
    let store = Arc::new(InMemory::new());
    store.put(&name.path(), bytes.into()).await.unwrap();
    let lake = Lake::with_store(store, LakeUrl::Directory("lake".into()));
    let Footer { start, end, .. } = lake.footer(name).await?;
    let range = OffsetRange { topic: TOPIC.to_owned(), partition: name.partition, start, end };
    let mut reader =
        lake.read(range, contract::Contract::builtin().schemas().file(SCHEMA).unwrap().arrow.clone()).await?;
    let mut found = Vec::new();
    while let Some(rows) = reader.next().await? {
        let offsets = rows.offsets.values().iter().enumerate();
        found.extend(offsets.map(|(i, offset)| (*offset as u64, rows.batch.slice(i, 1))));
    }
    Ok(found)
}

fn check_rows(partition: usize, mut rows: Vec<(u64, RecordBatch)>, log: &[Record]) -> Result<(), String> {
    rows.sort_by_key(|(offset, _)| *offset);
    let sound: Vec<_> = log.iter().filter(|record| record.sound).collect();
    let wanted: BTreeSet<_> = sound.iter().map(|record| record.offset).collect();
    let found: BTreeSet<_> = rows.iter().map(|(offset, _)| *offset).collect();
    let doubled: Vec<_> = rows.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0).collect();
    let (lost, strange): (Vec<_>, Vec<_>) = (wanted.difference(&found).collect(), found.difference(&wanted).collect());
    for (what, offsets) in [("lacks", lost), ("holds twice", doubled.iter().collect()), ("should not hold", strange)] {
        if !offsets.is_empty() {
            return Err(format!("the lake {what} {TOPIC}/{partition} offsets {offsets:?}"));
        }
    }
    let mut decoder = AvroDecoder::new(contract::Contract::builtin().schemas(), SCHEMA).unwrap();
    sound.iter().for_each(|record| decoder.decode(&record.value).unwrap());
    let wanted = decoder.finish();
    let found = concat_batches(wanted.schema_ref(), rows.iter().map(|(_, row)| row)).unwrap();
    if found == wanted { Ok(()) } else { Err(format!("rows of {TOPIC}/{partition} are not those of the log")) }
}

/// The objects of a partition follow each other from its first offset to its last.
async fn check_chain(world: &World, records: &Records) -> Result<(), String> {
    let names: Vec<_> = world.objects.list(None).map_ok(|object| object.location).try_collect().await.unwrap();
    let copy = InMemory::new();
    for name in names {
        copy.put(&name, world.objects.get(&name).await.unwrap().bytes().await.unwrap().into()).await.unwrap();
    }
    let lake = Lake::with_store(Arc::new(copy), LakeUrl::Directory("lake".into()));
    let covered = lake.coverage(TOPIC).await.map_err(|error| error.to_string())?;
    if let Some(remark) = covered.remarks().first() {
        return Err(remark.clone());
    }
    let wanted: Vec<_> = records
        .partitions
        .iter()
        .enumerate()
        .filter_map(|(p, log)| Some((p as u32, records.first[p], log.last()?.offset + 1)))
        .collect();
    let found: Vec<_> = covered.ranges.iter().map(|range| (range.partition, range.start, range.end)).collect();
    if found == wanted { Ok(()) } else { Err(format!("the lake covers {found:?} and not {wanted:?}")) }
}

/// What could not be decoded is kept, at least once, as it came.
fn check_beside(beside: &[Bytes], records: &Records) -> Result<(), String> {
    let mut kept = BTreeSet::new();
    for line in beside.iter().flat_map(|bytes| std::str::from_utf8(bytes).unwrap().lines()) {
        let line: serde_json::Value = serde_json::from_str(line).map_err(|error| format!("{line:?}: {error}"))?;
        let (partition, offset) = (line["partition"].as_u64().unwrap(), line["offset"].as_u64().unwrap());
        kept.insert((partition, offset, line["value_hex"].as_str().unwrap().to_owned()));
    }
    let mut wanted = BTreeSet::new();
    for (partition, log) in records.partitions.iter().enumerate() {
        for record in log.iter().filter(|record| !record.sound) {
            wanted.insert((partition as u64, record.offset, hex::encode(&record.value)));
        }
    }
    if kept == wanted { Ok(()) } else { Err(format!("kept beside are {kept:?} and not {wanted:?}")) }
}

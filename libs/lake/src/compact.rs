//! Compaction: the many small objects of a closed day become few large ones.
//!
//! ```text
//! list a folder ─► runs of objects that join, up to a size ─► read, compare each with its row hash, write one
//!       ▲               ─► conditional create ─► read it back ─► remove the small ones
//!       └── objects that a compacted one covers are left over from a crash: read it back, remove them
//! ```
//!
//! The create is the moment at which the large object takes the place of the small ones: from then on every listing
//! shows that they are covered. Before it a crash leaves nothing, after it only files to remove. Two compactions at
//! once make the same objects under the same names, of which one is created; if they do not (one of them knew more
//! objects), the objects overlap, readers take each offset once, and the next compaction merges them.
//!
//! A compaction also carries out the requests to erase rows (erasure.rs). It leaves them out of what it merges, and
//! replaces an object that is not merged by one of the same range, under the next name. The footer says how many rows
//! are gone. A compaction that did not know a request may bring rows back; the next one finds them, because it searches
//! each object that was not searched for these requests before.
//!
//! Nothing here knows when a day is closed: an object that a sink adds later is compacted later.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array};
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use crate::erasure::{Eraser, PartitionRequests, Searched};
use crate::listing::{Days, Folder, Part, Resolved, resolve};
use crate::object::ObjectReader;
use crate::rows::{CONCURRENT_READS, blocking, check_footer, unusable};
use crate::{Error, Footer, Lake, ObjectName, ObjectWriter, RowHash, Rows};

/// What a compaction is to do.
#[derive(Debug, Clone, Copy)]
struct Task<'a> {
    target_bytes: u64,
    /// The column that names the car of a row.
    car: &'a str,
    requests: &'a Arc<PartitionRequests>,
}

/// What a compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Large objects that were created.
    pub created: u64,
    /// Objects that were removed, because a large one holds their rows.
    pub removed: u64,
    /// Rows in the large objects.
    pub rows: u64,
    /// Rows that were left out of them because their cars asked to be forgotten.
    pub erased: u64,
    /// What could not be compacted, and why; it stays as it is.
    pub left: Vec<String>,
}

impl Lake {
    /// Compacts the objects of a topic under these days into objects of about `target_bytes`, and erases from them the
    /// rows of cars that asked for it; the column `car` says whose a row is.
    ///
    /// Needs the permission to delete. Memory: the inputs of one large object, one at a time, and twice its size; and
    /// the names of the objects that hold nothing to erase. Dropping the future ends it at any point, without harm.
    pub async fn compact(&self, topic: &str, car: &str, days: &Days, target_bytes: u64) -> Result<Compacted, Error> {
        let mut done = Compacted::default();
        let all = self.erasure_requests(topic).await?;
        let mut by_partition = BTreeMap::new();
        for folder in self.folders(topic, &self.days(topic, Some(days)).await?).await? {
            let (requests, searched) = match by_partition.entry(folder.partition) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let requests = all.of(folder.partition);
                    let searched = self.searched(topic, folder.partition, &requests).await?;
                    new.insert((requests, searched))
                }
            };
            self.compact_folder(&folder, Task { target_bytes, car, requests }, searched, &mut done).await?;
        }
        for (partition, (requests, searched)) in &by_partition {
            self.note_searched(topic, *partition, requests, searched).await?;
        }
        Ok(done)
    }

    async fn compact_folder(
        &self,
        folder: &Folder,
        task: Task<'_>,
        searched: &mut Searched,
        done: &mut Compacted,
    ) -> Result<(), Error> {
        let listed = self.list_all([(folder.path(), None)]).await?;
        if let Some(foreign) = listed.foreign.first() {
            done.left.push(format!("{foreign} was not written by carstream"));
        }
        let Resolved { parts, covered } = resolve(listed.objects);
        match self.remove_covered(&parts, covered, done).await {
            Ok(()) => {}
            Err(error) => return left_or_gone(error, done),
        }
        let inputs = match self.inputs(parts).await {
            Ok(inputs) => inputs,
            Err(error) => return left_or_gone(error, done),
        };
        let mut rest = &inputs[..];
        while let Some(first) = rest.first() {
            let mut bytes = first.bytes;
            let joined =
                rest.windows(2).take_while(|pair| pair[1].joins(&pair[0], &mut bytes, task.target_bytes)).count() + 1;
            let (run, others) = rest.split_at(joined);
            rest = others;
            let compacted = async {
                if run.len() > 1 || self.holds(first, task, searched).await? {
                    self.compact_run(folder, run, task, done).await?;
                }
                Ok(())
            };
            if let Err(error) = compacted.await {
                left_or_gone(error, done)?;
            }
        }
        Ok(())
    }

    /// Whether an object holds rows that are to be erased.
    async fn holds(&self, input: &Input, task: Task<'_>, searched: &mut Searched) -> Result<bool, Error> {
        let name = &input.part.name;
        if input.footer.rows == 0 || !task.requests.reach(name.start) || searched.knows(name) {
            return Ok(false);
        }
        let holds = self.holds_rows_to_erase(name, Eraser::new(task.requests.clone(), task.car)).await?;
        if !holds {
            searched.add(name);
        }
        Ok(holds)
    }

    async fn inputs(&self, parts: Vec<Part>) -> Result<Vec<Input>, Error> {
        let read = |part: Part| async move {
            let (footer, bytes) = self.footer_and_size(&part.name).await?;
            Ok(Input { part, footer, bytes })
        };
        stream::iter(parts.into_iter().map(read)).buffered(CONCURRENT_READS).try_collect().await
    }

    /// Makes one object of those of a run, and removes them.
    async fn compact_run(
        &self,
        folder: &Folder,
        run: &[Input],
        task: Task<'_>,
        done: &mut Compacted,
    ) -> Result<(), Error> {
        let Folder { topic, date, partition } = folder.clone();
        let [first, ..] = run else { return Ok(()) };
        let end = run[run.len() - 1].footer.end;
        let (start, erasures) = match (run, first.part.name.end) {
            // The same range, under a name of its own.
            ([_], Some(_)) => (first.part.name.start, first.part.name.erasures + 1),
            _ => (first.part.from, 0),
        };
        let name = ObjectName { topic, date, partition, start, end: Some(end), erasures };
        let (mut writer, mut before) = (None, 0);
        for input in run {
            let bytes = self.get(&input.part.name.to_string()).await?;
            before += input.footer.erased;
            let failed = |what| unusable(self, &input.part.name, what);
            let from = if run.len() == 1 { start } else { input.part.from };
            let (name, expected) = (name.clone(), input.footer.clone());
            let eraser = Eraser::new(task.requests.clone(), task.car);
            let appended = blocking(move || append(writer, name, bytes, from, &expected, eraser));
            writer = Some(appended.await.map_err(failed)?);
        }
        let Some(writer) = writer else { return Ok(()) };
        let object = blocking(move || writer.finish(end)).await?;
        match self.put_object(&object).await {
            Ok(()) => {
                done.created += 1;
                done.rows += object.footer.rows;
                done.erased += object.footer.erased - before;
            }
            // Another compaction has got as far.
            Err(Error::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        drop(object.bytes);
        let stored = self.verify(&object.name).await?;
        if !is_merged(&stored, &object.footer) {
            return Err(unusable(self, &object.name, "it is not what its objects were merged to".to_owned()));
        }
        self.remove(run.iter().map(|input| input.part.name.clone()).collect(), done).await
    }

    /// Removes what a crash, or a sink that was suspended for days, has left beside the objects that cover it.
    async fn remove_covered(
        &self,
        parts: &[Part],
        covered: Vec<ObjectName>,
        done: &mut Compacted,
    ) -> Result<(), Error> {
        let mut verified: Option<(&ObjectName, u64)> = None;
        let mut removable = Vec::new();
        for object in covered {
            let holds = |part: &&Part| part.name.start <= object.start && part.name.end > Some(object.start);
            let Some(holder) = parts.iter().rfind(holds) else { continue };
            let end = match verified {
                Some((name, end)) if *name == holder.name => end,
                _ => self.verify(&holder.name).await?.end,
            };
            verified = Some((&holder.name, end));
            if self.footer(&object).await?.end <= end {
                removable.push(object);
            } else {
                done.left.push(format!("{object} ends after {}, which holds its first rows", holder.name));
            }
        }
        self.remove(removable, done).await
    }

    /// Reads a whole object back, and compares its rows with the hash in its footer.
    async fn verify(&self, name: &ObjectName) -> Result<Footer, Error> {
        let bytes = self.get(&name.to_string()).await?;
        let footer = blocking(move || read_back(bytes)).await.map_err(|what| unusable(self, name, what))?;
        check_footer(name, &footer).map_err(|what| unusable(self, name, what))?;
        Ok(footer)
    }

    async fn remove(&self, names: Vec<ObjectName>, done: &mut Compacted) -> Result<(), Error> {
        let paths: Vec<_> = names.iter().map(|name| Ok(Path::from(name.to_string()))).collect();
        let mut removals = self.store.delete_stream(stream::iter(paths).boxed());
        while let Some(removed) = removals.next().await {
            match removed {
                Ok(_) => done.removed += 1,
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => {
                    let object = names.first().map(ToString::to_string).unwrap_or_default();
                    return Err(Error::Store { operation: "remove", lake: self.url.to_string(), object, source });
                }
            }
        }
        Ok(())
    }
}

/// An object that may be merged with others.
struct Input {
    part: Part,
    footer: Footer,
    bytes: u64,
}

impl Input {
    /// Whether it goes into one object with the one before it, after which that has `bytes`.
    fn joins(&self, before: &Self, bytes: &mut u64, target: u64) -> bool {
        if self.part.from != before.footer.end || self.footer.schema_id != before.footer.schema_id {
            return false;
        }
        if self.footer.skipped || before.footer.skipped {
            return false; // merged, they would no longer be told from others
        }
        // Two compacted objects that overlap become one, however large: only then are their rows there once.
        let overlap = self.part.from > self.part.name.start;
        let compacted = |input: &Self| input.part.name.end.is_some();
        if !overlap && (compacted(self) || compacted(before) || *bytes + self.bytes > target) {
            return false;
        }
        *bytes += self.bytes;
        true
    }
}

/// What is broken stays as it is and is reported; what is gone is another compaction's doing.
fn left_or_gone(error: Error, done: &mut Compacted) -> Result<(), Error> {
    match error {
        Error::NotFound { .. } => Ok(()),
        Error::Unusable { .. } | Error::Encode { .. } => {
            done.left.push(error.to_string());
            Ok(())
        }
        error => Err(error),
    }
}

/// Whether an object is what was to be stored under its name, or what another compaction has stored there that knew
/// other requests.
fn is_merged(stored: &Footer, expected: &Footer) -> bool {
    let of = |footer: &Footer| (footer.end, footer.schema_id, footer.rows + footer.erased);
    stored == expected || stored.erased != expected.erased && of(stored) == of(expected)
}

/// Adds the rows of an object from offset `from` on. The error says what is wrong with the object.
fn append(
    writer: Option<ObjectWriter>,
    name: ObjectName,
    bytes: Bytes,
    from: u64,
    expected: &Footer,
    mut eraser: Eraser,
) -> Result<ObjectWriter, String> {
    let (schema, encodings, mut reader) = ObjectReader::as_written(bytes)?;
    let mut writer = match writer {
        Some(writer) => writer,
        None => ObjectWriter::new(name, &schema, expected.schema_id, encodings).map_err(|error| error.to_string())?,
    };
    if !writer.takes(&schema) {
        return Err("it has other columns than the object before it, under the same schema id".to_owned());
    }
    writer.add_erased(expected.erased);
    let mut hash = RowHash::new(&schema).map_err(|error| error.to_string())?;
    while let Some(rows) = reader.next(0, u64::MAX)? {
        hash.update(&rows.batch);
        let taken = rows.from(from);
        let staying = without_erased(&taken, &mut eraser)?;
        writer.add_erased((taken.batch.num_rows() - staying.batch.num_rows()) as u64);
        let offsets: Vec<_> = staying.offsets.values().iter().map(|offset| *offset as u64).collect();
        let written = writer.write(&staying.batch, &offsets, staying.timestamps_ms.values());
        written.map_err(|error| error.to_string())?;
    }
    if reader.footer != *expected || hash.finish() != expected.row_hash {
        return Err(NOT_AS_WRITTEN.to_owned());
    }
    Ok(writer)
}

fn without_erased(rows: &Rows, eraser: &mut Eraser) -> Result<Rows, String> {
    let Some(staying) = eraser.staying(rows)? else { return Ok(rows.clone()) };
    let numbers = |all: &Int64Array| Ok::<_, ArrowError>(filter(all, &staying)?.as_primitive::<Int64Type>().clone());
    let filtered = || {
        Ok(Rows {
            batch: filter_record_batch(&rows.batch, &staying)?,
            offsets: numbers(&rows.offsets)?,
            timestamps_ms: numbers(&rows.timestamps_ms)?,
        })
    };
    filtered().map_err(|error: ArrowError| error.to_string())
}

/// Reads a whole object, and compares its rows with its footer.
fn read_back(bytes: Bytes) -> Result<Footer, String> {
    let (schema, _, mut reader) = ObjectReader::as_written(bytes)?;
    let mut hash = RowHash::new(&schema).map_err(|error| error.to_string())?;
    let mut count = 0;
    while let Some(rows) = reader.next(reader.footer.start, reader.footer.end)? {
        hash.update(&rows.batch);
        count += rows.batch.num_rows() as u64;
    }
    if count != reader.footer.rows || hash.finish() != reader.footer.row_hash {
        return Err(NOT_AS_WRITTEN.to_owned());
    }
    Ok(reader.footer)
}

const NOT_AS_WRITTEN: &str = "its rows are not those that its footer names: it was changed or is damaged";

//! Readings to scores and alerts: a deterministic function of a partition's model and of its readings so far.
//!
//! ```text
//!              ┌──────────────── advance: changes state ────────────────┐
//!  telemetry ─►│ Avro ─► rows ─► Model::score ─► verdicts ─► AlertState │─► apply only: scores, alerts
//!   │          │           CarState per car         per car             │
//!   │          └────────────────────────────────────────────────────────┘
//!   └► what is not a reading: scorer.dead-letter
//! ```
//!
//! `apply` and `replay` change state through the one function `advance`, so state after a replay is, to the bit, the
//! state without the interruption; and so is the state of a snapshot. Neither a clock nor how records were cut into
//! batches has a part in it.
//!
//! Each partition has a model in force, which is part of its state. While a newer one is announced, the loop prepares
//! the state that this makes of the readings held, and puts it in the place of the other between two batches.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::datatypes::SchemaRef;
use contract::ModelDefinition;
use event_log::{Batch, Record, RecordRef};
use model::features::Readings;
use model::{FEATURES, Model, Verdict};
use pipeline::{Emit, ForgetAfter, Transform};
use schema_registry::SchemaSource;
use telemetry::Reject;
use telemetry::avro::{AvroDecoder, AvroEncoder};

use crate::alerts::{Alert, AlertStatus, Announced};
use crate::cars;
use crate::cars::Cars;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::state::PartitionState;

/// Scores readings.
pub(crate) struct Scoring {
    models: Models,
    forget_after: ForgetAfter,
    place: ModelDefinition,
    schemas: SchemaSource,
    decoder: AvroDecoder,
    encoder: AvroEncoder,
    score_schema: SchemaRef,
    partitions: HashMap<u32, Known>,
    announced: Announced,
    metrics: Metrics,
}

/// What is known of a partition.
struct Known {
    state: PartitionState,
    /// [`Models::looks`] when its model came into force here.
    since: u64,
}

/// What a batch came to.
struct Advanced {
    /// The model in force.
    model: Arc<Model>,
    /// The readings, in offset order.
    readings: Identities,
    /// One for each reading.
    verdicts: Vec<Verdict>,
    /// Whether the car should have an open alert after each reading.
    alert_open: Vec<bool>,
    /// Cars that were forgotten, each with the number of readings before that.
    forgotten: Vec<(usize, String)>,
    /// Records that ask for a car to be forgotten, likewise.
    requests: Vec<(usize, u32)>,
}

/// The columns that say which reading a row is. A score takes them over.
struct Identities {
    cars: StringArray,
    boot_ids: Int64Array,
    seqs: Int64Array,
    event_times: TimestampMillisecondArray,
}

impl Identities {
    fn of(rows: &RecordBatch) -> anyhow::Result<Self> {
        fn column<A: Array + Clone + 'static>(rows: &RecordBatch, name: &str) -> anyhow::Result<A> {
            let typed = rows.column_by_name(name).and_then(|column| column.as_any().downcast_ref::<A>());
            typed
                .cloned()
                .with_context(|| format!("the schema of the readings has no {name} of the type that is needed"))
        }
        Ok(Self {
            cars: column(rows, "car")?,
            boot_ids: column(rows, "boot_id")?,
            seqs: column(rows, "seq")?,
            event_times: column(rows, "event_time_ms")?,
        })
    }
}

impl Scoring {
    pub(crate) fn new(
        models: Models,
        forget_after: ForgetAfter,
        place: &ModelDefinition,
        schemas: SchemaSource,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let (readings, scores) = (ModelDefinition::schema(&place.readings), ModelDefinition::schema(&place.scores));
        let score = schemas.schemas().file(scores).with_context(|| format!("the contract has no {scores}"))?;
        Ok(Self {
            models,
            forget_after,
            place: place.clone(),
            decoder: schemas.decoder(readings)?,
            encoder: schemas.encoder(scores)?,
            score_schema: score.arrow.clone(),
            schemas,
            partitions: HashMap::new(),
            announced: Announced::default(),
            metrics,
        })
    }

    /// The only place where the state of cars changes.
    fn advance(
        &mut self,
        batch: &Batch,
        mut rejected: impl FnMut(&RecordRef<'_>, &Reject),
    ) -> anyhow::Result<Advanced> {
        let (mut times_ms, mut requests) = (Vec::with_capacity(batch.len()), Vec::new());
        for (i, record) in (0..).zip(batch.iter()) {
            if contract::is_forget(record.value, record.headers.get(contract::FORGET)) {
                requests.push((times_ms.len(), i));
                continue;
            }
            // A tombstone has no header either, and is rejected as such.
            match self.decoder.decode(record.value.unwrap_or_default()) {
                Ok(()) => times_ms.push(record.timestamp_ms),
                Err(reject) => rejected(&record, &reject),
            }
        }
        let rows = self.decoder.finish();
        let readings = Readings::new(&rows)?;
        let new = || Known { state: PartitionState::new(self.models.newest()), since: self.models.looks() };
        let PartitionState { model, cars } = &mut self.partitions.entry(batch.partition()).or_insert_with(new).state;
        let (mut verdicts, mut alert_open) = (Vec::with_capacity(rows.num_rows()), Vec::new());
        let car_of = |(readings_before, request): &(usize, u32)| {
            (*readings_before, String::from_utf8_lossy(batch.get(*request as usize).key).into_owned())
        };
        let (mut forgotten, mut asked) = (Vec::new(), requests.iter().map(car_of).peekable());
        for (i, time_ms) in times_ms.into_iter().enumerate() {
            while let Some(request) = asked.next_if(|(readings_before, _)| *readings_before <= i) {
                forgotten.extend(Some(request).filter(|(_, car)| cars.forget(car)));
            }
            forgotten.extend(cars.pass_time(time_ms, self.forget_after).into_iter().map(|car| (i, car)));
            let (verdict, open) = cars.judge(model, readings.car(i), readings.event_time_ms(i), &readings.row(i));
            verdicts.push(verdict);
            alert_open.push(open);
        }
        forgotten.extend(asked.filter(|(_, car)| cars.forget(car)));
        let (model, readings) = (model.clone(), Identities::of(&rows)?);
        Ok(Advanced { model, readings, verdicts, alert_open, forgotten, requests })
    }

    /// Writes the scores, and each request to forget a car behind those of its readings.
    fn emit_scores(&mut self, batch: &Batch, advanced: &Advanced, emit: &mut Emit) -> anyhow::Result<()> {
        let Advanced { model, readings, verdicts, requests, .. } = advanced;
        let rows = score_rows(&self.score_schema, readings, verdicts, &model.manifest().version)?;
        let encoded = self.encoder.encode(&rows)?;
        let (scores, timestamp_ms) = (&self.place.scores.name, service::now_ms());
        let pass_on = |request: u32, emit: &mut Emit| {
            let request = batch.get(request as usize);
            let when = request.headers.get(contract::FORGET).unwrap_or_default();
            let headers: [(&str, &[u8]); 1] = [(contract::FORGET, when)];
            emit.send(scores, &Record { key: request.key, value: None, headers: &headers, timestamp_ms });
        };
        let mut requests = requests.iter().peekable();
        for (i, (car, value)) in readings.cars.iter().flatten().zip(encoded.iter()).enumerate() {
            while let Some((_, request)) = requests.next_if(|(readings_before, _)| *readings_before <= i) {
                pass_on(*request, emit);
            }
            let record = Record { key: car.as_bytes(), value: Some(value), headers: &[], timestamp_ms };
            emit.send(scores, &record);
        }
        requests.for_each(|(_, request)| pass_on(*request, emit));
        Ok(())
    }

    /// Writes an alert wherever what should be open differs from what the outside knows.
    fn emit_alerts(&mut self, partition: u32, advanced: &Advanced, emit: &mut Emit) -> anyhow::Result<()> {
        let Advanced { model, readings, verdicts, alert_open, forgotten, .. } = advanced;
        let version = &*model.manifest().version;
        let mut forgotten = forgotten.iter().peekable();
        for (i, (verdict, should_be_open)) in verdicts.iter().zip(alert_open).enumerate() {
            while let Some((_, car)) = forgotten.next_if(|(readings_before, _)| *readings_before <= i) {
                self.close_alert_of(car, partition, emit)?;
            }
            let car = readings.cars.value(i);
            let alert = match (self.announced.open(car), should_be_open) {
                _ if verdict.late || !verdict.judged => continue,
                (None, false) | (Some(_), true) => continue,
                (None, true) => opened(readings, i, verdict, version),
                (Some(opened), false) => closed(opened.clone(), readings.event_times.value(i), verdict, version),
            };
            self.emit_alert(partition, alert, emit)?;
        }
        forgotten.try_for_each(|(_, car)| self.close_alert_of(car, partition, emit))
    }

    /// No reading will close the open alert of a car that was forgotten.
    fn close_alert_of(&mut self, car: &str, partition: u32, emit: &mut Emit) -> anyhow::Result<()> {
        match self.announced.open(car).cloned() {
            Some(opened) => self.emit_alert(partition, Alert { state: AlertStatus::Closed, ..opened }, emit),
            None => Ok(()),
        }
    }

    fn emit_alert(&mut self, partition: u32, alert: Alert, emit: &mut Emit) -> anyhow::Result<()> {
        match alert.state {
            AlertStatus::Open => emit.count(&self.metrics.alerts_opened, 1),
            AlertStatus::Closed => emit.count(&self.metrics.alerts_closed, 1),
        }
        let value = serde_json::to_vec(&alert).context("an alert has no JSON form")?;
        let (key, timestamp_ms) = (alert.car.as_bytes(), service::now_ms());
        emit.send(&self.place.alerts.name, &Record { key, value: Some(&value), headers: &[], timestamp_ms });
        self.announced.write(partition, alert);
        Ok(())
    }

    fn count(&self, advanced: &Advanced, emit: &mut Emit) {
        let Advanced { readings, verdicts, .. } = advanced;
        let metrics = &self.metrics;
        emit.count(&metrics.cars_forgotten, advanced.forgotten.len() as u64);
        emit.count(&metrics.scored, verdicts.len() as u64);
        emit.count(&metrics.anomalous, verdicts.iter().filter(|v| v.anomalous).count() as u64);
        let judged = verdicts.iter().filter(|v| v.judged);
        emit.observe(&metrics.score_ratio, judged.map(|v| f64::from(v.score / v.threshold)).collect());
        self.show_cars();
        emit.count(&metrics.late, verdicts.iter().filter(|v| v.late).count() as u64);
        // The median: one car whose clock is wrong must not make models look young or old.
        let mut times = readings.event_times.values().to_vec();
        let middle = times.len() / 2;
        if middle < times.len() {
            let (_, median_ms, _) = times.select_nth_unstable(middle);
            metrics.event_time_seconds.set(*median_ms as f64 / 1000.0);
        }
    }

    fn show_cars(&self) {
        let cars = self.partitions.values().map(|known| &known.state.cars);
        self.metrics.open_alerts.set(cars.clone().map(Cars::open_alerts).sum::<usize>() as i64);
        self.metrics.cars.set(cars.map(|cars| cars.states.len()).sum::<usize>() as i64);
    }

    /// Shows the model in force once all partitions have the same.
    fn show_model(&self) {
        let mut models = self.partitions.values().map(|known| &known.state.model);
        match models.next() {
            None => self.metrics.set_model(&self.models.newest()),
            Some(first) if models.all(|model| is_same(model, first)) => self.metrics.set_model(first),
            Some(_) => {}
        }
    }
}

fn opened(readings: &Identities, i: usize, verdict: &Verdict, model_version: &str) -> Alert {
    let (car, event_time_ms) = (readings.cars.value(i), readings.event_times.value(i));
    Alert {
        alert_id: Alert::id(car, readings.boot_ids.value(i), readings.seqs.value(i)),
        car: car.to_owned(),
        state: AlertStatus::Open,
        opened_ms: event_time_ms,
        event_time_ms,
        score: verdict.score,
        threshold: verdict.threshold,
        features: verdict.contributors.map(|(feature, _)| FEATURES[feature].to_owned()).to_vec(),
        model_version: model_version.to_owned(),
    }
}

fn closed(opened: Alert, event_time_ms: i64, verdict: &Verdict, model_version: &str) -> Alert {
    Alert {
        state: AlertStatus::Closed,
        event_time_ms,
        score: verdict.score,
        threshold: verdict.threshold,
        model_version: model_version.to_owned(),
        ..opened
    }
}

impl Transform for Scoring {
    fn reset(&mut self, _topic: &Arc<str>, partition: u32) {
        self.partitions.remove(&partition);
        self.announced.reset(partition);
        // Those of a partition that went to another instance are shown there.
        self.show_cars();
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_version(&self) -> String {
        format!("model-and-cars-{}", cars::RULES)
    }

    fn snapshot(&self, _topic: &Arc<str>, partition: u32) -> Vec<u8> {
        let known = self.partitions.get(&partition).map(|known| known.state.to_bytes());
        known.unwrap_or_else(|| PartitionState::new(self.models.newest()).to_bytes())
    }

    fn restore(&mut self, _topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        let (mut state, newest) = (PartitionState::from_bytes(snapshot)?, self.models.newest());
        if newest.is_same(&state.model) {
            state.model = newest;
        }
        self.partitions.insert(partition, Known { state, since: self.models.looks() });
        Ok(())
    }

    /// If it has another model than the newest one. An instance that has not heard of a model yet, and gets a partition
    /// from one that has, must not bring the one before back: so it looks once more, from beginning to end.
    fn is_outdated(&self, _topic: &Arc<str>, partition: u32) -> bool {
        self.show_model();
        let looks_seen = |known: &Known| self.models.looks() >= known.since.saturating_add(2);
        let is_older = |known: &Known| !is_same(&known.state.model, &self.models.newest()) && looks_seen(known);
        self.partitions.get(&partition).is_some_and(is_older)
    }

    fn successor(&self, _topic: &Arc<str>, partition: u32) -> anyhow::Result<Box<dyn Transform>> {
        let newest = self.models.newest();
        tracing::info!(partition, "model {} is prepared for this partition", newest.manifest().version);
        let (models, schemas, metrics) = (Models::fixed(newest), self.schemas.clone(), self.metrics.clone());
        Ok(Box::new(Self::new(models, self.forget_after, &self.place, schemas, metrics)?))
    }

    /// Writers of other releases: who they are is asked of the schema registry, if there is one.
    fn prepare(&mut self, batch: &Batch) -> anyhow::Result<()> {
        let values = batch.iter().filter_map(|record| record.value);
        self.schemas.resolve(&mut self.decoder, values).map_err(|error| match error {
            schema_registry::Error::Unavailable { operation: _, registry, source } => {
                event_log::Error::Unavailable { operation: "look up a schema", log: registry, source }.into()
            }
            error => anyhow::Error::new(error),
        })
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        self.advance(batch, |_, _| {})?;
        Ok(())
    }

    fn table(&mut self, batch: &Batch) -> anyhow::Result<()> {
        for record in batch.iter() {
            if let Err(error) = self.announced.read(record.value.unwrap_or_default()) {
                let (partition, offset) = (batch.partition(), record.offset);
                tracing::warn!(
                    "{}/{partition} offset {offset} is not a valid alert, ignoring it: {error}",
                    batch.topic()
                );
            }
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        let advanced = self.advance(batch, |record, reject| emit.dead_letter(record, reject.reason, &reject.detail))?;
        self.emit_scores(batch, &advanced, emit)?;
        self.emit_alerts(batch.partition(), &advanced, emit)?;
        self.count(&advanced, emit);
        Ok(())
    }
}

fn is_same(one: &Arc<Model>, other: &Arc<Model>) -> bool {
    Arc::ptr_eq(one, other) || one.is_same(other)
}

/// Which of two schemas the scorer cannot work with.
#[derive(Debug)]
pub(crate) enum Misfit {
    Readings(anyhow::Error),
    Scores(anyhow::Error),
}

/// Goes the way of a batch with an empty one: readings of this schema to scores of that.
pub(crate) fn check_schemas(readings: &SchemaRef, scores: &SchemaRef) -> Result<(), Misfit> {
    let optional = |name: &&str| readings.field_with_name(name).is_ok_and(|field| field.is_nullable());
    if let Some(name) =
        FEATURES.iter().chain(&["car", "boot_id", "seq", "event_time_ms"]).copied().find(|name| optional(name))
    {
        return Err(Misfit::Readings(anyhow::anyhow!("column {name} may be null, and the model needs a value")));
    }
    let rows = RecordBatch::new_empty(readings.clone());
    Readings::new(&rows).map_err(|error| Misfit::Readings(error.into()))?;
    let readings = Identities::of(&rows).map_err(Misfit::Readings)?;
    score_rows(scores, &readings, &[], "").map(drop).map_err(Misfit::Scores)
}

/// The rows of the topic of scores.
fn score_rows(
    schema: &SchemaRef,
    readings: &Identities,
    verdicts: &[Verdict],
    version: &str,
) -> anyhow::Result<RecordBatch> {
    let Identities { cars, boot_ids, seqs, event_times } = readings;
    let mut columns: Vec<ArrayRef> =
        vec![Arc::new(cars.clone()), Arc::new(boot_ids.clone()), Arc::new(seqs.clone()), Arc::new(event_times.clone())];
    columns.push(Arc::new(Float32Array::from_iter_values(verdicts.iter().map(|v| v.score))));
    columns.push(Arc::new(Float32Array::from_iter_values(verdicts.iter().map(|v| v.threshold))));
    columns.push(Arc::new(BooleanArray::from_iter(verdicts.iter().map(|v| Some(v.anomalous)))));
    for nth in 0..3 {
        let features = verdicts.iter().map(|v| FEATURES[v.contributors[nth].0]);
        columns.push(Arc::new(StringArray::from_iter_values(features)));
    }
    for nth in 0..3 {
        let sizes = verdicts.iter().map(|v| v.contributors[nth].1);
        columns.push(Arc::new(Float32Array::from_iter_values(sizes)));
    }
    columns.push(Arc::new(StringArray::from_iter_values(verdicts.iter().map(|_| version))));
    RecordBatch::try_new(schema.clone(), columns).context("scores do not fit their schema")
}

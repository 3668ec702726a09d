//! Starts the stages, watches them, and stops them in the order of the flow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use contract::StreamDefinition;
use event_log::{CloudLogArgs, Log, progress};
use mqtt_bridge::Bridge;
use preprocessor::Reach;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trainer::{TooLittle, TrainedModel};

use super::directory::RunDirectory;
use super::live::{Line, Live};
use super::{Args, STALLED_AFTER, TICK, Trained};
use crate::audit::thousands;
use crate::stage::RunningStage;

/// Train when this share of the span has passed. With the default settings that is a whole day of driving, so
/// that the model has seen mornings and evenings; what is left is scored live.
const TRAIN_AFTER: f64 = 0.6;

/// Between two readings of a driving car, in its own time: so that two days fit into a minute on two cores.
const INTERVAL: Duration = Duration::from_secs(60);

/// Below this it is not worth trying.
const MIN_TRAINING_ROWS: u64 = 2_000;

/// After a training with too few readings, the next attempt waits for this many more.
const TRY_AGAIN_AT: f64 = 1.5;

/// Some readings are sent broken, so that dead letters can be seen.
const BROKEN_SHARE: f64 = 0.001;

/// Some cars are newer, so that two schemas are on the wire.
const NEWER_SCHEMA_SHARE: f64 = 0.25;

/// A lag that is what one moment brings.
const CAUGHT_UP_RECORDS: u64 = 2_000;

/// Cars stay connected this long after their last reading, for the last alerts.
const LINGER: Duration = Duration::from_secs(2);

/// Files end this often, so that training finds what was collected.
const SINK_MAX_AGE: Duration = Duration::from_secs(3);

/// Metrics of all stages, on one registry.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    simulator: simulator::Metrics,
    bridge: mqtt_bridge::Metrics,
    preprocessor: preprocessor::Metrics,
    replicator: replicator::Metrics,
    sink: sink::Metrics,
    trainer: trainer::Metrics,
    scorer: scorer::Metrics,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self {
            simulator: simulator::Metrics::new(registry),
            bridge: mqtt_bridge::Metrics::new(registry),
            preprocessor: preprocessor::Metrics::new(registry),
            replicator: replicator::Metrics::new(registry),
            sink: sink::Metrics::new(registry),
            trainer: trainer::Metrics::new(registry),
            scorer: scorer::Metrics::new(registry),
        }
    }
}

/// All stages of a demo.
pub(crate) struct Stages {
    metrics: Metrics,
    edge: Arc<dyn Log>,
    cloud: Arc<dyn Log>,
    directory: RunDirectory,
    /// Event time at which the trainer's time has come.
    train_at_ms: i64,
    seed: u64,
    /// Rows that were in the lake when this process began.
    rows_before: u64,
    cars: Option<RunningStage>,
    bridge: Option<RunningStage>,
    /// In the order of the flow.
    rest: Vec<RunningStage>,
    train_at_rows: u64,
    training: Option<JoinHandle<anyhow::Result<TrainedModel>>>,
    trained: Option<Trained>,
}

impl Stages {
    /// Starts everything but the trainer, whose time comes later.
    ///
    /// Each stage resumes where its log, the lake or the ledger says; a trained model stays.
    pub(crate) async fn start(args: &Args, directory: &RunDirectory, metrics: Metrics) -> anyhow::Result<Self> {
        let (edge, cloud) = (directory.edge(), directory.cloud());
        let rows_before = directory.rows_in_lake().await?;
        let trained = directory.announced_model().await?;
        // Whether one has ended is looked at with the other news, at every tick.
        let ended = CancellationToken::new();
        let any_port = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let contract = || directory.contract_args.clone();
        let mut bridge_args = mqtt_bridge::Args::new(any_port, edge.clone(), Some(directory.key_file()));
        bridge_args.contract = contract();
        let bridge = Bridge::bind(bridge_args, metrics.bridge.clone()).await.context("cannot start the bridge")?;
        let address = bridge.local_addr();
        let bridge = RunningStage::start("mqtt-bridge", &ended, |stop| bridge.serve(stop));

        let preprocessor = {
            let mut args = preprocessor::Args::new(edge.log.clone(), directory.key_file());
            args.contract = contract();
            // The cars live faster than the clock: their span may be longer than the window.
            args.event_time.event_time_behind = Reach::Any;
            let metrics = metrics.preprocessor.clone();
            RunningStage::start("preprocessor", &ended, |stop| preprocessor::run_with(args, metrics, stop))
        };
        let scorer = {
            let mut args = scorer::Args::new(edge.log.clone(), directory.lake());
            args.contract = contract();
            args.cloud = CloudLogArgs::new(cloud.log.clone());
            let metrics = metrics.scorer.clone();
            RunningStage::start("scorer", &ended, |stop| scorer::run_with(args, metrics, stop))
        };
        let replicator = {
            let mut args = replicator::Args::new(edge.log.clone(), cloud.log.clone());
            args.contract = contract();
            let metrics = metrics.replicator.clone();
            RunningStage::start("replicator", &ended, |stop| replicator::run_with(args, metrics, stop))
        };
        let sink = {
            let mut args = sink::Args::new(cloud.log.clone(), directory.lake());
            args.contract = contract();
            args.max_age = SINK_MAX_AGE;
            let metrics = metrics.sink.clone();
            RunningStage::start("sink", &ended, |stop| sink::run_with(args, metrics, stop))
        };
        let mut fleet = fleet(args, directory, address);
        fleet.decide_start();
        let start_ms = fleet.fleet.start_ms();
        let span_ms = fleet.fleet.end_ms().map_or(0, |end_ms| end_ms - start_ms);
        let train_at_ms = start_ms + (span_ms as f64 * TRAIN_AFTER) as i64;
        let cars = {
            let args = fleet;
            let metrics = metrics.simulator.clone();
            RunningStage::start("simulator", &ended, |stop| async move {
                simulator::run_with(args, metrics, stop).await.map(drop)
            })
        };
        Ok(Self {
            metrics,
            edge: edge.open()?,
            cloud: cloud.open()?,
            directory: directory.clone(),
            train_at_ms,
            seed: args.seed,
            rows_before,
            cars: Some(cars),
            bridge: Some(bridge),
            rest: vec![preprocessor, scorer, replicator, sink],
            train_at_rows: MIN_TRAINING_ROWS,
            training: None,
            trained,
        })
    }

    /// Lets the cars send until they have finished, or shutdown. Trains meanwhile.
    pub(crate) async fn cars_send(&mut self, live: &mut Live, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let cars = self.cars.take().context("the cars send once")?;
        loop {
            live.show(&self.lines());
            if cars.is_finished() {
                break;
            }
            if let Some(stage) = self.rest.iter().chain(&self.bridge).find(|stage| stage.is_finished()) {
                live.say(&format!("the {} has stopped; ending the run", stage.name));
                break;
            }
            if self.metrics.simulator.event_time_seconds.get() * 1000.0 >= self.train_at_ms as f64 {
                self.train(live).await?;
            }
            self.note_in_force(live);
            tokio::select! {
                _ = tokio::time::sleep(TICK) => {}
                _ = shutdown.cancelled() => break,
            }
        }
        cars.drain().await
    }

    /// Starts the training, or takes its result.
    async fn train(&mut self, live: &mut Live) -> anyhow::Result<()> {
        if let Some(training) = self.training.take_if(|training| training.is_finished()) {
            let trained = match training.await.context("the trainer panicked")? {
                Ok(trained) => trained,
                Err(error) if error.is::<TooLittle>() => {
                    live.say(&format!("no model yet: {error}"));
                    self.train_at_rows = (self.rows_in_lake() as f64 * TRY_AGAIN_AT) as u64;
                    return Ok(());
                }
                Err(error) => return Err(error.context("the trainer failed")),
            };
            live.say(&format!(
                "model {} trained on {} readings in {:.1} s",
                trained.version,
                thousands(trained.manifest.training.rows),
                trained.seconds
            ));
            self.trained = Some(Trained::of(&trained.manifest, self.directory.clean_topic()));
        }
        if self.trained.is_none() && self.training.is_none() && self.rows_in_lake() >= self.train_at_rows {
            live.say("training from the lake");
            let mut args = trainer::Args::new(self.directory.cloud().log, self.directory.lake());
            args.contract = self.directory.contract_args.clone();
            args.seed = self.seed;
            args.min_rows = MIN_TRAINING_ROWS;
            let metrics = self.metrics.trainer.clone();
            self.training = Some(tokio::spawn(async move {
                let trained = trainer::train_once(&args, &metrics, &CancellationToken::new()).await?;
                trained.context("the training was stopped")
            }));
        }
        Ok(())
    }

    /// Notes when the scorer has the model and has caught up with earlier readings.
    fn note_in_force(&mut self, live: &Live) {
        let lag = self.scorer_lag();
        let in_force = self.metrics.scorer.model_in_force().borrow().is_some();
        let Some(trained) = self.trained.as_mut().filter(|trained| trained.in_force_ms.is_none()) else { return };
        if in_force && lag.is_ok_and(|lag| lag <= CAUGHT_UP_RECORDS) {
            live.say("the scorer has the model and has caught up");
            trained.in_force_ms = Some(service::now_ms());
        }
    }

    /// Drains stage by stage in the order of the flow, so that each finds all that the one before it left.
    pub(crate) async fn drain(
        &mut self,
        live: &mut Live,
        remarks: &mut Vec<String>,
    ) -> anyhow::Result<Option<Trained>> {
        if let Some(bridge) = self.bridge.take() {
            bridge.drain().await?;
        }
        self.wait(live, "the preprocessor", |s| {
            s.directory.contract.streams().map(|stream| s.preprocessor_lag(stream)).sum()
        })
        .await?;
        self.last_chance_to_train(live).await?;
        if self.trained.is_some() {
            self.wait(live, "the scorer", Self::scorer_lag).await?;
        } else {
            remarks.push("no model: the run was too short to collect what a training needs".to_owned());
        }
        self.wait(live, "the replicator", |s| s.replication_lag()).await?;
        for stage in std::mem::take(&mut self.rest) {
            live.show(&self.lines());
            stage.drain().await?;
        }
        Ok(self.trained.clone())
    }

    /// Trains on all readings at the end, if no model exists yet.
    async fn last_chance_to_train(&mut self, live: &mut Live) -> anyhow::Result<()> {
        let began = Instant::now();
        self.train_at_rows = self.train_at_rows.min(self.rows_in_lake().max(MIN_TRAINING_ROWS));
        loop {
            self.train(live).await?;
            // The sink writes what it holds within its age limit; after that there are too few rows.
            let hopeless = self.training.is_none() && began.elapsed() > 2 * SINK_MAX_AGE;
            if self.trained.is_some() || hopeless {
                return Ok(());
            }
            live.show(&self.lines());
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until a stage has nothing left, as long as it makes progress.
    async fn wait(
        &self,
        live: &mut Live,
        what: &str,
        lag: impl Fn(&Self) -> anyhow::Result<u64>,
    ) -> anyhow::Result<()> {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let left = lag(self)?;
            live.show(&self.lines());
            if left == 0 {
                return Ok(());
            }
            if left < least {
                (least, since) = (left, Instant::now());
            }
            if since.elapsed() > STALLED_AFTER {
                bail!("{what} is stalled with {left} records left");
            }
            if let Some(stage) = self.rest.iter().find(|stage| stage.is_finished()) {
                bail!("the {} stopped with {left} records left for {what}", stage.name);
            }
            tokio::time::sleep(TICK).await;
        }
    }

    fn replication_lag(&self) -> anyhow::Result<u64> {
        let mut lag = 0;
        for topic in self.directory.contract.leaving_the_edge() {
            let group = replicator::group(&topic.name);
            lag += progress::lag(self.edge.as_ref(), self.cloud.as_ref(), &group, &topic.name)?;
        }
        Ok(lag)
    }

    fn preprocessor_lag(&self, stream: &StreamDefinition) -> anyhow::Result<u64> {
        Ok(progress::lag(self.edge.as_ref(), self.edge.as_ref(), &stream.group(), &stream.input.topic)?)
    }

    fn scorer_lag(&self) -> anyhow::Result<u64> {
        let (edge, clean) = (self.edge.as_ref(), self.directory.clean_topic());
        Ok(progress::lag(edge, edge, scorer::DEFAULT_GROUP, clean)?)
    }

    /// Rows of readings that are in the lake.
    fn rows_in_lake(&self) -> u64 {
        self.rows_before + self.metrics.sink.rows.get_or_create(&sink::Topic::new(self.directory.clean_topic())).get()
    }

    /// How many alerts reached their cars.
    pub(crate) fn alerts_delivered(&self) -> u64 {
        self.metrics.simulator.alerts.get()
    }

    fn lines(&self) -> Vec<Line> {
        let m = &self.metrics;
        let records = |topic: &str| {
            let described = self.edge.describe(topic);
            described.map_or(0, |d| d.partitions.iter().map(|p| p.next).sum::<u64>())
        };
        let stream = self.directory.stream();
        let line = |stage, done, lag, note| Line { stage, done: Some(done), lag, note };
        let clean = records(&stream.output_topic);
        let rows = self.rows_in_lake();
        let objects = m.sink.objects.get_or_create(&sink::Topic::new(self.directory.clean_topic())).get();
        let copied = self.cloud.describe(&stream.output_topic).map_or(0, |d| d.partitions.iter().map(|p| p.next).sum());
        let connected = m.simulator.cars_connected.get();
        let trainer = match (&self.trained, &self.training) {
            (Some(trained), _) => format!("model {}", trained.version),
            (None, Some(_)) => "training".to_owned(),
            (None, None) => "collecting".to_owned(),
        };
        vec![
            line("cars", m.simulator.sent.get(), None, format!("{} connected", thousands(connected.max(0) as u64))),
            line("mqtt-bridge", records(&stream.input.topic), None, format!("{} in flight", m.bridge.in_flight())),
            line("preprocessor", clean, self.preprocessor_lag(stream).ok(), {
                format!("{} dead letters", thousands(records(&stream.dead_letter)))
            }),
            line("replicator", copied, self.replication_lag().ok(), String::new()),
            line("sink", rows, Some(copied.saturating_sub(rows)), format!("{objects} objects")),
            Line { stage: "trainer", done: None, lag: None, note: trainer },
            line("scorer", m.scorer.scored.get(), self.scorer_lag().ok(), {
                format!("{} alerts open", m.scorer.open_alerts.get())
            }),
        ]
    }
}

fn fleet(args: &Args, directory: &RunDirectory, bridge: std::net::SocketAddr) -> simulator::RunArgs {
    simulator::RunArgs {
        fleet: simulator::FleetArgs {
            seed: args.seed,
            cars: args.cars,
            duration: Some(args.duration),
            speedup: args.speedup.into(),
            interval: INTERVAL,
            broken_share: BROKEN_SHARE,
            newer_schema_share: NEWER_SCHEMA_SHARE,
            ..simulator::FleetArgs::default()
        },
        mqtt: bridge.to_string(),
        linger: LINGER,
        ledger: Some(directory.ledger()),
        resume: true,
        contract: directory.contract_args.clone(),
        ..simulator::RunArgs::default()
    }
}

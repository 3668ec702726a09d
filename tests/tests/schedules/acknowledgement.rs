//! The bridge as it is, over a log that fails, with cars that keep what is not acknowledged.
//!
//! ```text
//!  cars ── MQTT over TCP ──► Bridge: one life after the other ──► queue in memory ──► inner log, which stays
//!  (car.rs)                  a crash takes its memory, and the    (life.rs)           (log.rs)
//!                            connections; the next one starts
//! ```
//!
//! Sockets, tasks and the clock are part of a run here, so a seed does not replay step by step as it does in the other
//! kinds. What happens to an append is a function of the seed and of the append's number, and so is when a life ends;
//! how the cars' publishes interleave, and how many there are of them, is not. So a failure brings what happened in
//! that very run, and a single seed is run again and again.

mod car;
#[allow(dead_code)] // it can do more than is needed here
#[path = "../../../simulator/src/client/connection.rs"]
mod connection;
mod life;
mod log;
#[allow(dead_code)] // TLS is not in these schedules
#[path = "../../../simulator/src/client/transport.rs"]
mod transport;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, LogArgs, LogUrl};
use mqtt_bridge::{Args, Bridge, Metrics};
use prometheus_client::registry::Registry;
use test_support::random::Random;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use whole_pipeline_tests::faults::Report;

use crate::{Lie, Ran, Setting, oracle};
use car::{Car, Server, Told};
use life::Life;
use log::{Noted, World, log_of};

const TOPIC: &str = "telemetry.raw";
/// What does not end within this time hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The names of all faults, and of what follows from them.
pub(crate) fn fault_names() -> Vec<&'static str> {
    life::FAULTS.into_iter().chain(["stop", "cut", "repeat"]).collect()
}

/// What is drawn for something depends on the seed and on nothing else.
fn draw(seed: u64, what: &[u64]) -> Random {
    what.iter().fold(Random::new(seed ^ 0x9bac), |mut random, what| Random::new(random.next() ^ what))
}

pub(crate) fn run(setting: &Setting) -> Ran {
    let world = World::new(setting.seed, setting.inner.clone(), &setting.namespace);
    let cars = Car::fleet(setting.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ran = runtime.block_on(async { tokio::time::timeout(PATIENCE, live(&world, &cars, setting.lie)).await });
    drop(runtime);
    let failure = match ran {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("the bridge ended by an error: {error:#}")),
        Err(_) => Some("it did not end".to_owned()),
    };
    let mut noted = world.ended();
    let findings = judge(&world, &cars, &mut noted);
    let Noted { faults, story, appends, .. } = noted;
    Ran { report: Report { trace_hash: 0, trace: story, steps: appends, faults, failure }, findings }
}

/// Life after life of the bridge, until the cars have their acknowledgements.
async fn live(world: &Arc<World>, cars: &[Arc<Car>], lie: Lie) -> anyhow::Result<()> {
    let server = Arc::new(Server::default());
    let mut driving = JoinSet::new();
    for car in cars {
        driving.spawn(car.clone().drive(world.clone(), server.clone()));
    }
    let mut random = draw(world.seed, &[0]);
    let lives = random.between(1, 4);
    for number in 0.. {
        let life = Life::new(world, number, number >= lives);
        let bridge = Process::start(lie.log(log_of(&life)), *random.one_of(&[1, 3, 64])).await?;
        *server.write().await = Some(bridge.address);
        let is_stopped = tokio::select! {
            () = life.crashed.notified() => false,
            () = life.stopping.notified() => {
                world.fault("stop", 1);
                world.tell("stop");
                true
            }
            () = async { while let Some(drove) = driving.join_next().await { drove.unwrap() } } => {
                // What crashes on its way out waits for a log that is no more.
                return tokio::select! {
                    stopped = bridge.stop() => stopped,
                    () = life.crashed.notified() => Ok(()),
                };
            }
        };
        *server.write().await = None;
        if is_stopped {
            bridge.stop().await?;
        }
    }
    unreachable!("a calm life goes on until the cars are done")
}

/// A bridge with threads of its own, which can be killed.
struct Process {
    runtime: Option<Runtime>,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    async fn start(log: Arc<dyn Log>, max_in_flight: u16) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut args = Args::new(([127, 0, 0, 1], 0).into(), LogArgs::new(LogUrl::Directory("log".into())), None);
        args.limits.max_in_flight = max_in_flight;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        let serving = runtime.spawn(async move {
            let bridge = Bridge::bind_on(log, args, Metrics::new(&mut Registry::default())).await?;
            let _ = tell.send(bridge.local_addr()); // if nobody listens, this runtime is about to end
            bridge.serve(stop).await
        });
        match told.await {
            Ok(address) => Ok(Self { runtime: Some(runtime), address, shutdown, serving }),
            Err(_) => {
                runtime.shutdown_background();
                Err(serving.await?.expect_err("it has not come to serving"))
            }
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        (&mut self.serving).await?
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Everything that was acknowledged is in the log, as it was sent, and first copies in order; and nothing else is
/// there.
fn judge(world: &World, cars: &[Arc<Car>], noted: &mut Noted) -> Vec<String> {
    let found = oracle::contents(&world.inner, &format!("{}{TOPIC}", world.namespace));
    let mut findings = Vec::new();
    let told: Vec<_> = cars.iter().map(|car| car.told.lock().unwrap()).collect();
    let mut by_payload = HashMap::new();
    for (car, told) in told.iter().enumerate() {
        by_payload.extend(told.readings.iter().enumerate().map(|(i, reading)| (&reading.payload, (car, i))));
    }
    let mut copies: Vec<Vec<u64>> = told.iter().map(|told| vec![0; told.readings.len()]).collect();
    // Of each car: the reading after the last one of which the log has a copy so far.
    let mut next = vec![0; cars.len()];
    for record in &found {
        let place = format!("{TOPIC}/{} offset {}", record.partition, record.offset);
        let known = by_payload
            .get(&record.value)
            .copied()
            .filter(|(car, _)| cars[*car].vin == record.key && record.header("mqtt_topic") == Some(cars[*car].topic()));
        let Some((car, i)) = known else {
            findings.push(format!("{place} (key {}) is nothing that a car sent: {}", record.key, record.text()));
            continue;
        };
        copies[car][i] += 1;
        // A record that the log has left out, and reported so, is sent again after later ones.
        if copies[car][i] == 1 && i < next[car] && !noted.left_out.contains(&record.value) {
            let (late, before) = (&told[car].readings[i].name, &told[car].readings[next[car] - 1].name);
            findings.push(format!("{place}: {late} came after {before}"));
        }
        next[car] = next[car].max(i + 1);
    }
    for (told, copies) in told.iter().zip(&copies) {
        findings.extend(judge_car(told, copies));
    }
    let repeats = copies.iter().flatten().map(|copies| copies.saturating_sub(1)).sum();
    noted.fault("repeat", repeats);
    findings
}

fn judge_car(told: &Told, copies: &[u64]) -> Vec<String> {
    let mut findings = told.findings.clone();
    for (i, (reading, copies)) in told.readings.iter().zip(copies).enumerate() {
        let (name, sent) = (&reading.name, reading.sent);
        if i >= told.acknowledged {
            findings.push(format!("{name} was never acknowledged"));
        } else if *copies == 0 {
            findings.push(format!("{name} was acknowledged, and is not in the log"));
        }
        if *copies > sent {
            findings.push(format!("{name} was sent {sent} times, and is in the log {copies} times"));
        }
    }
    findings
}

//! The sink: from the log to Parquet in object storage, every record exactly once.
//!
//! ```text
//!  log ─► Reader ─► buffer per partition ─► encode ─► conditional create ─► lake
//!         worker.rs  buffer.rs               encode.rs  upload.rs            TOPIC/date=…/partition=P/START.parquet
//!           ▲                                               │
//!           └───── where a partition goes on: the end of ───┘
//!                  its last object in the store
//! ```
//!
//! An object's name is a function of topic, partition and start offset, and it is created only if no object has that
//! name. So a partition has one chain of objects, however many sinks write it and however often each is killed: the
//! second one finds the name taken, and continues at the end of the chain. There is no other state.
//!
//! A record that asks for a car to be forgotten is no row. The sink notes it in the lake before the object that passes
//! it over ([`Lake::request_erasure`]), and `carstream compact` erases the rows.
//!
//! It does not share partitions out between sinks: a second one is spare, not twice as fast.

mod args;
mod behind;
mod buffer;
mod encode;
mod metrics;
mod positions;
mod stream;
mod upload;
mod worker;

use std::sync::Arc;

use anyhow::Context;
use event_log::Log;
use lake::{Error, Lake, LakeUrl};
use service::{ConfigError, Waiting};
use tokio_util::sync::CancellationToken;

pub use args::Args;
pub use behind::behind;
pub use metrics::{Metrics, Topic};

/// A store that is still starting is available soon.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(250);

/// Runs the sink until `shutdown`, with its admin port.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    service::stage(args, shutdown, Metrics::new, |metrics| &metrics.readiness, run_with).await
}

/// Runs the sink until `shutdown`; then writes what the log holds at that moment, and returns.
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.check()?;
    // No other process can fill it: an embedded log serves one.
    ConfigError::check(args.log.log.directory().and_then(|path| service::missing_directory("--log", path)))?;
    let log = args.log.open()?;
    let lake = args.lake.open_with(args.store_timeout)?;
    let no_longer = async {
        shutdown.cancelled().await;
        tokio::time::sleep(args.drain.timeout).await;
    };
    let writable = tokio::select! {
        checked = check_lake(&lake, &metrics, &shutdown) => checked?,
        () = no_longer => false,
    };
    if !writable {
        return Ok(());
    }
    run_on(&args, log, lake, metrics, shutdown).await
}

/// Like [`run_with`], on a log and a lake that are open already: for tests and to inject faults.
pub async fn run_on(
    args: &Args,
    log: Arc<dyn Log>,
    lake: Lake,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (contract, topics) = args.check()?;
    let uses: Vec<_> = topics.iter().filter_map(|topic| Some((&*topic.name, topic.schema()?))).collect();
    let Some(schemas) = args.schema_registry.open(contract.schemas(), &uses, &metrics.readiness, &shutdown).await?
    else {
        return Ok(());
    };
    let stream = |topic: &contract::Topic| {
        Some((topic.name.clone(), stream::Stream::of(topic.clone(), &schemas, args.encodings.into())?))
    };
    let streams = topics.iter().filter_map(stream).collect();
    let names: Vec<_> = topics.iter().map(|topic| &*topic.name).collect();
    tracing::info!("writing {} of {} to {}", names.join(", "), log.url(), lake.url());
    // However this function ends, the loop and running uploads must end with it.
    let (shutdown, give_up) = (shutdown.child_token(), CancellationToken::new());
    let _ends_with_this = (shutdown.clone().drop_guard(), give_up.clone().drop_guard());
    let drain_timeout = {
        let (shutdown, timeout) = (shutdown.clone(), args.drain.timeout);
        async move {
            shutdown.cancelled().await;
            tokio::time::sleep(timeout).await;
        }
    };
    let worker = worker::Worker::new(args, streams, log, lake, metrics, shutdown, give_up.clone());
    let mut working = tokio::task::spawn_blocking(move || worker.run());
    let worked = tokio::select! {
        worked = &mut working => worked,
        () = drain_timeout => {
            give_up.cancel();
            working.await
        }
    };
    worked.context("the sink panicked")?
}

/// Waits until the lake can be written to. A directory either can or cannot, or has no room; a server may not be there
/// yet. `false`: it cannot, and the shutdown is here.
async fn check_lake(lake: &Lake, metrics: &Metrics, shutdown: &CancellationToken) -> anyhow::Result<bool> {
    let mut waiting = Waiting::new(format!("the lake {}", lake.url())).with_readiness(&metrics.readiness);
    loop {
        match lake.check_writable().await {
            Ok(()) => {
                waiting.resolved();
                return Ok(true);
            }
            Err(error @ Error::Overwrites { .. }) => return Err(error.into()),
            Err(error) if matches!(lake.url(), LakeUrl::Directory(_)) && !error.is_full() => return Err(error.into()),
            Err(error) => waiting.note(&error),
        }
        // A sink that is stopped during its start has tried once, so it may still drain.
        if shutdown.run_until_cancelled(tokio::time::sleep(RETRY_PAUSE)).await.is_none() {
            return Ok(false);
        }
    }
}

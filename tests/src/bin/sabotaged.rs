//! A stage that breaks its promise: the real one, with its own arguments, on a log or a lake of
//! `whole_pipeline_tests::sabotage`.
//!
//! `sabotaged puback-first --log … --listen …`. For `scripts/chaos --sabotage`, to show that the audit notices.

use std::process::ExitCode;
use std::time::Duration;

use prometheus_client::registry::Registry;
use service::ServiceArgs;
use tokio_util::sync::CancellationToken;
use whole_pipeline_tests::sabotage;

/// Between positions and outputs: most of the time, so that a kill at any moment hits it.
const PAUSE: Duration = Duration::from_millis(300);

/// Which stage, and which promise it breaks.
#[derive(Debug, clap::Parser)]
#[command(name = "sabotaged")]
enum Args {
    /// The bridge, acknowledging what the log has not committed.
    PubackFirst(mqtt_bridge::Args),
    /// The preprocessor, committing positions before outputs.
    PositionsFirst(preprocessor::Args),
    /// The sink, overwriting existing objects.
    PlainPut(sink::Args),
}

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        match self {
            Self::PubackFirst(args) => args.as_ref(),
            Self::PositionsFirst(args) => args.as_ref(),
            Self::PlainPut(args) => args.as_ref(),
        }
    }
}

fn main() -> ExitCode {
    service::main(run)
}

async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let registry = &mut Registry::default();
    match args {
        Args::PubackFirst(args) => {
            let log = sabotage::puback_first(args.log.open()?);
            let bridge = mqtt_bridge::Bridge::bind_on(log, args, mqtt_bridge::Metrics::new(registry)).await?;
            bridge.serve(shutdown).await
        }
        Args::PositionsFirst(args) => {
            let log = sabotage::positions_first(args.log.open()?, PAUSE);
            preprocessor::run_on(&args, log, preprocessor::Metrics::new(registry), shutdown).await
        }
        Args::PlainPut(args) => {
            let log = args.log.open()?;
            let lake = sabotage::plain_put(&args.lake.open()?);
            sink::run_on(&args, log, lake, sink::Metrics::new(registry), shutdown).await
        }
    }
}

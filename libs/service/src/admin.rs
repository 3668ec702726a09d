//! The admin port.
//!
//! | path | says | for |
//! | --- | --- | --- |
//! | `/metrics` | what the process counts, in OpenMetrics' text format | Prometheus |
//! | `/livez` | 200 as long as the process serves | a supervisor that restarts what hangs |
//! | `/readyz` | 200 when it does its work; else 503 and one line that says what it waits for | whoever waits for it |

use std::future::Future;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::process::ProcessMetrics;
use crate::{HostPort, Readiness, ServiceArgs};

/// The content type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// The admin port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}: choose another --admin address, such as 127.0.0.1:9100")]
pub struct AdminError {
    address: HostPort,
    #[source]
    source: std::io::Error,
}

/// Runs a stage as a process of its own: with metrics on a new registry, and its admin port.
pub async fn stage<A, M, F>(
    args: A,
    shutdown: CancellationToken,
    metrics: fn(&mut Registry) -> M,
    readiness: fn(&M) -> &Readiness,
    run: impl FnOnce(A, M, CancellationToken) -> F,
) -> anyhow::Result<()>
where
    A: AsRef<ServiceArgs>,
    F: Future<Output = anyhow::Result<()>>,
{
    let mut registry = Registry::default();
    let metrics = metrics(&mut registry);
    let (service, readiness) = (args.as_ref().clone(), [readiness(&metrics).clone()]);
    with_admin(&service, registry, &readiness, run(args, metrics, shutdown)).await
}

/// Runs a process, and serves its metrics meanwhile if `--admin` asks for it: those of `registry`, which version it is,
/// and what it takes of the machine. It is ready when all of its stages are.
pub async fn with_admin<F, T>(
    args: &ServiceArgs,
    mut registry: Registry,
    stages: &[Readiness],
    run: F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let Some(address) = &args.admin else { return run.await };
    let listener = tokio::net::TcpListener::bind(address.as_pair())
        .await
        .map_err(|source| AdminError { address: address.clone(), source })?;
    tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
    let stages = Stages(stages.to_vec());
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("carstream_build", "The version of carstream", build);
    registry.register_collector(Box::new(ProcessMetrics::new()));
    registry.register_collector(Box::new(stages.clone()));
    let registry = Arc::new(registry);
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(metrics(&registry))))
        .route("/livez", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(move || std::future::ready(stages.readyz())));
    tokio::select! {
        result = run => result,
        result = axum::serve(listener, router) => {
            result.context("the admin port failed")?;
            anyhow::bail!("the admin port closed")
        }
    }
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 1], String);

fn metrics(registry: &Registry) -> Answer {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, PLAIN)], error.to_string()),
    }
}

/// The stages of this process.
#[derive(Debug, Clone)]
struct Stages(Vec<Readiness>);

impl Stages {
    fn readyz(&self) -> Answer {
        let reasons: Vec<_> = self.0.iter().flat_map(Readiness::reasons).collect();
        let (code, text) = match reasons.as_slice() {
            [] => (StatusCode::OK, "ok\n".to_owned()),
            reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", reasons.join("; for "))),
        };
        (code, [(header::CONTENT_TYPE, PLAIN)], text)
    }
}

impl Collector for Stages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ready = ConstGauge::new(i64::from(self.0.iter().all(Readiness::is_ready)));
        let help = "1 when the process is ready, 0 while it waits for another part";
        ready.encode(encoder.encode_descriptor("carstream_ready", help, None, ready.metric_type())?)
    }
}

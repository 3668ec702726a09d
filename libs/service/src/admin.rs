//! The admin port: `/metrics`, `/livez`, `/readyz`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::ServiceArgs;

/// The content type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}: choose another --admin address")]
pub struct AdminError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Runs a stage, and serves its metrics meanwhile if `--admin` asks for it.
///
/// `/livez` answers as long as the process serves; `/readyz` too, since a stage that waits for another part is
/// healthy: it says so in its log and in its metrics.
pub async fn with_admin<F, T>(args: &ServiceArgs, registry: Registry, run: F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let Some(address) = args.admin else { return run.await };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|source| AdminError { address, source })?;
    tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
    let registry = Arc::new(registry);
    let metrics = move || {
        let registry = registry.clone();
        async move {
            let mut text = String::new();
            match encode(&mut text, &registry) {
                Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
                Err(error) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string())
                }
            }
        }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }));
    tokio::select! {
        result = run => result,
        result = axum::serve(listener, router) => {
            result.context("the admin port failed")?;
            anyhow::bail!("the admin port closed")
        }
    }
}

//! Metrics over HTTP, in the text form of OpenMetrics that Prometheus reads.
//!
//! Plain HTTP on an address of its own, as Prometheus expects it of exporters: nothing secret is in it, and nothing
//! can be changed by it. Names of nodes are in it, so it should listen where the monitoring is and nowhere else.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// The type of what is answered.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A registry in which every name begins with `gantry_`, with the program's version in it.
#[must_use]
pub fn registry(version: &str) -> Registry {
    let mut registry = Registry::with_prefix("gantry");
    let info = Info::new(vec![("version".to_owned(), version.to_owned())]);
    registry.register("build", "The program", info);
    crate::telemetry::counts(&mut registry);
    registry
}

/// Writes a gauge with these values, for a [`prometheus_client::collector::Collector`]: `name` without the prefix.
///
/// # Errors
/// When the text cannot be written.
pub fn gauges<L>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, i64)>,
) -> Result<(), std::fmt::Error>
where
    L: Clone + std::fmt::Debug + Eq + std::hash::Hash + EncodeLabelSet + Send + Sync + 'static,
{
    let family = Family::<L, Gauge>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    let kind = family.metric_type();
    family.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

/// Serves `/metrics` until it is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>) -> io::Result<()> {
    let router = Router::new().route("/metrics", get(metrics)).with_state(registry);
    axum::serve(listener, router).await
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

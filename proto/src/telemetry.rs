//! Where events and spans of a daemon go, and traces over OTLP: every migration is one trace, with the spans of the coordinator and of both agents.
//!
//! The trace's id is the migration's uid. It travels as W3C `traceparent` in the metadata of the orders that begin a
//! migration, also from a coordinator that exports nothing itself.
//!
//! A collector that is slow or dead costs spans and nothing else: whoever ends a span puts it into a queue and never waits, a
//! thread with a runtime of its own sends them, and what finds the queue full is dropped and counted.

mod export;

use std::cell::Cell;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider};
use tonic::codegen::http::Uri;
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

pub use export::{Exporting, counts};

/// What a configuration calls a collector's address.
const KEY: &str = "traces.otlp_endpoint";
/// The standard variables that name a collector; the first that is set holds.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// A collector: `http://HOST:PORT`, where OTLP is served by gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(String);

/// An address that is no collector's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {address:?}: use http://HOST:PORT, where OTLP is served by gRPC")]
pub struct NoCollector {
    name: &'static str,
    address: String,
}

impl Collector {
    /// The one that the configuration names, else the one that the environment names.
    ///
    /// # Errors
    /// When what is named is not `http` with a host. Encrypted connections to collectors are not made.
    pub fn choose(configured: Option<&str>) -> Result<Option<Self>, NoCollector> {
        let variable = |name: &'static str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            Some((name, value))
        };
        let named = configured.map(|address| (KEY, address.to_owned()));
        let named = named.or_else(|| VARIABLES.into_iter().find_map(variable));
        named.map(|(name, address)| Self::parse(name, address)).transpose()
    }

    fn parse(name: &'static str, address: String) -> Result<Self, NoCollector> {
        let uri: Option<Uri> = address.parse().ok();
        let fits =
            |uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty());
        match uri.as_ref().is_some_and(fits) {
            true => Ok(Self(address)),
            false => Err(NoCollector { name, address }),
        }
    }
}

/// Where a migration's trace goes on: another process's span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent(SpanContext);

impl Parent {
    /// Reads what a request carries.
    #[must_use]
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(metadata));
        let span = context.span().span_context().clone();
        span.is_valid().then_some(Self(span))
    }

    /// Puts `span` below it. Before anything else is done with the span; without an exporter nothing happens.
    pub fn adopt(parent: Option<&Self>, span: &Span) {
        if let Some(Self(parent)) = parent {
            let _not_exported = span.set_parent(Context::new().with_remote_span_context(parent.clone()));
        }
    }
}

/// Makes `span` the first one of the trace whose id is this uid. Before anything else is done with the span.
pub fn root(span: &Span, uid: &str) {
    NEXT.set(trace_id(uid));
    // Begins it, if it is exported.
    let _begun = span.context();
    NEXT.set(None);
}

/// Writes into a request where the trace of this uid goes on: below the current span, or at the trace's begin when that is not
/// exported. A uid that is none leaves the request as it is.
pub fn pass_on(metadata: &mut MetadataMap, uid: &str) {
    let current = Span::current().context().span().span_context().clone();
    let parent = match trace_id(uid) {
        _ if current.is_valid() => current,
        Some(trace) => {
            let bytes = trace.to_bytes();
            let (first, _) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
            let span = SpanId::from_bytes(*first);
            SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default())
        }
        None => return,
    };
    let context = Context::new().with_remote_span_context(parent);
    TraceContextPropagator::new().inject_context(&context, &mut Writer(metadata));
}

/// Whose spans are exported, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The collector.
    pub collector: &'a Collector,
    /// The kind of program.
    pub service: &'static str,
    /// Which one it is.
    pub name: &'a str,
    /// Of these crates.
    pub crates: &'a [&'static str],
}

/// Has events written by `events`, those that `filter` lets through, and spans exported. Answers what ends the export. Once a
/// process: later calls change nothing.
pub fn start<L>(events: L, filter: EnvFilter, export: Option<Export<'_>>) -> Option<Exporting>
where
    L: Layer<Registry> + Send + Sync,
{
    let exported = export.map(|export| layer(&export)).transpose();
    let (exported, error) = exported.map_or_else(|error| (None, Some(error)), |exported| (exported, None));
    let (spans, exporting) = exported.unzip();
    // The error says that a subscriber is set already: then there is nothing to do.
    let _already_set = tracing_subscriber::registry().with(events.with_filter(filter)).with(spans).try_init();
    if let Some(error) = error {
        tracing::error!(%error, "traces are not exported");
    }
    exporting
}

fn layer<S>(export: &Export<'_>) -> std::io::Result<(impl Layer<S> + use<S>, Exporting)>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let resource = Resource::builder()
        .with_service_name(export.service)
        .with_attribute(KeyValue::new("service.instance.id", export.name.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let (queue, exporting) = export::start(&export.collector.0, resource.clone())?;
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue)
        .with_id_generator(Ids::default())
        .with_resource(resource)
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("gantry"))
        .with_context_activation(false)
        .with_tracked_inactivity(false)
        .with_location(false)
        .with_threads(false);
    // Ours alone: those of the export itself would never end.
    let ours = Targets::new().with_targets(export.crates.iter().map(|name| (*name, Level::INFO)));
    Ok((layer.with_filter(ours), exporting))
}

thread_local! {
    /// The id of the next trace that begins on this thread.
    static NEXT: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Random ids, but for traces that [`root`] begins.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT.get().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

fn trace_id(uid: &str) -> Option<TraceId> {
    let digits: String = uid.chars().filter(|c| *c != '-').collect();
    TraceId::from_hex(&digits).ok().filter(|trace| *trace != TraceId::INVALID && digits.len() == 32)
}

struct Reader<'a>(&'a MetadataMap);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let key = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(key).collect()
    }
}

struct Writer<'a>(&'a mut MetadataMap);

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f9619ff-8b86-4011-b42d-00cf4fc964ff";

    #[test]
    fn a_trace_goes_on_in_another_process_though_nothing_is_exported() {
        let mut metadata = MetadataMap::new();
        pass_on(&mut metadata, UID);
        let carried = metadata.get("traceparent").unwrap().to_str().unwrap();
        assert_eq!(carried, "00-6f9619ff8b864011b42d00cf4fc964ff-6f9619ff8b864011-01");
        let Parent(parent) = Parent::of(&metadata).unwrap();
        assert_eq!(parent.trace_id(), trace_id(UID).unwrap());
        assert!(parent.is_remote() && parent.is_sampled());
    }

    #[test]
    fn what_is_no_trace_is_left_out() {
        for uid in ["", "web-1", "00000000-0000-0000-0000-000000000000", "6f9619ff-8b86"] {
            let mut metadata = MetadataMap::new();
            pass_on(&mut metadata, uid);
            assert!(metadata.is_empty(), "{uid}");
            assert_eq!(Parent::of(&metadata), None);
        }
        for carried in ["", "x", "00-00000000000000000000000000000000-0000000000000000-01"] {
            let mut metadata = MetadataMap::new();
            metadata.insert("traceparent", carried.parse().unwrap());
            assert_eq!(Parent::of(&metadata), None, "{carried}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        let address = "http://127.0.0.1:4317";
        assert_eq!(Collector::choose(Some(address)), Ok(Some(Collector(address.into()))));
        for wrong in ["", "127.0.0.1:4317", "https://127.0.0.1:4317", "http://", "ftp://x", "http://a b"] {
            let refused = Collector::choose(Some(wrong)).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("traces.otlp_endpoint = {wrong:?}: use http")), "{refused}");
        }
    }
}

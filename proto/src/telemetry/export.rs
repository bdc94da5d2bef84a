//! The queue of spans, and the thread that sends them.
//!
//! The SDK's own batch processor does not tell how many spans it drops, and waits for the collector when it ends.

use std::io;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{mpsc, watch};

/// Spans that wait to be sent, at most.
const QUEUE: usize = 2048;
/// Spans that are sent at once, at most.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a batch may take.
const SEND: Duration = Duration::from_secs(5);
/// How long a daemon that ends lets its last spans be sent.
const LAST: Duration = Duration::from_millis(500);
/// A collector that takes nothing is logged this often, at most.
const COMPLAIN: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

static SPANS: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

fn count(result: &'static str) -> Counter {
    SPANS.get_or_create_owned(&Labels { result })
}

/// Registers what became of this process's spans: `sent`, `failed` (the collector did not take them) or `dropped` (the queue
/// was full).
pub fn counts(registry: &mut prometheus_client::registry::Registry) {
    // Shown from the beginning: what begins with 1 does not rise.
    for result in ["sent", "failed", "dropped"] {
        drop(count(result));
    }
    registry.register("trace_spans", "Spans of traces, by what became of them", SPANS.clone());
}

/// Spans on their way to the thread.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Counter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The thread that sends spans.
#[derive(Debug)]
pub struct Exporting {
    stop: watch::Sender<bool>,
    ended: Receiver<()>,
}

impl Exporting {
    /// Sends what is still in the queue, if the collector takes it at once; whatever it does, the caller does not wait for
    /// longer than half a second. Spans that end later are lost.
    pub fn end(self) {
        self.stop.send_replace(true);
        match self.ended.recv_timeout(LAST) {
            Err(RecvTimeoutError::Timeout) => tracing::info!("the collector of traces does not answer"),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// Begins to send.
pub(super) fn start(collector: &str, resource: Resource) -> io::Result<(Queue, Exporting)> {
    let (spans, queue) = mpsc::channel(QUEUE);
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let collector = collector.to_owned();
    std::thread::Builder::new().name("traces".to_owned()).spawn(move || {
        runtime.block_on(run(&collector, &resource, queue, stopped));
        // Nobody waits for it when it ends early.
        let _ = end.send(());
    })?;
    Ok((Queue { spans, dropped: count("dropped") }, Exporting { stop, ended }))
}

async fn run(
    collector: &str,
    resource: &Resource,
    mut queue: mpsc::Receiver<SpanData>,
    mut stopped: watch::Receiver<bool>,
) {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(collector)
        .with_timeout(SEND)
        .build();
    let mut exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::error!(%error, collector, "traces cannot be exported");
            return;
        }
    };
    exporter.set_resource(resource);
    let (sent, failed) = (count("sent"), count("failed"));
    let mut complained: Option<Instant> = None;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let last = *stopped.borrow() || stopped.has_changed().is_err();
        if last {
            while let Ok(span) = queue.try_recv() {
                batch.push(span);
            }
        } else {
            gather(&mut queue, &mut stopped, &mut batch).await;
        }
        if !batch.is_empty() {
            let spans = std::mem::take(&mut batch);
            let number = spans.len() as u64;
            let answer = tokio::time::timeout(SEND, exporter.export(spans)).await;
            let why = match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", SEND.as_secs())),
            };
            match why {
                None => drop(sent.inc_by(number)),
                Some(why) => {
                    failed.inc_by(number);
                    if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
                        tracing::info!(collector, why, "the collector does not take traces");
                        complained = Some(Instant::now());
                    }
                }
            }
        }
        if last {
            return;
        }
    }
}

/// Fills a batch: until it is full, the first of it has waited long enough, or the daemon ends.
async fn gather(
    queue: &mut mpsc::Receiver<SpanData>,
    stopped: &mut watch::Receiver<bool>,
    batch: &mut Vec<SpanData>,
) {
    let stop = stopped.wait_for(|stop| *stop);
    tokio::pin!(stop);
    tokio::select! {
        _ = queue.recv_many(batch, BATCH) => {}
        _ = &mut stop => return,
    }
    let until = tokio::time::Instant::now() + GATHER;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        tokio::select! {
            number = queue.recv_many(batch, room) => if number == 0 { return },
            () = tokio::time::sleep_until(until) => return,
            _ = &mut stop => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn what_finds_the_queue_full_is_dropped_and_counted() {
        let (spans, mut queue) = mpsc::channel(2);
        let dropped = Counter::default();
        let processor = Queue { spans, dropped: dropped.clone() };
        let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
        let tracer = provider.tracer("test");
        for name in ["a", "b", "c", "d", "e"] {
            tracer.start(name).end();
        }
        assert_eq!(dropped.get(), 3);
        let kept: Vec<_> = std::iter::from_fn(|| queue.try_recv().ok()).map(|span| span.name).collect();
        assert_eq!(kept, ["a", "b"]);
    }

    /// Nobody takes connections there; the thread ends all the same, and at once when it has nothing to send.
    #[test]
    fn the_end_does_not_wait_for_a_collector() {
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = format!("http://{}", deaf.local_addr().unwrap());
        let (queue, exporting) = start(&collector, Resource::builder_empty().build()).unwrap();
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        provider.tracer("test").start("a").end();
        let begun = Instant::now();
        exporting.end();
        assert!((LAST..SEND).contains(&begun.elapsed()), "{:?}", begun.elapsed());

        let (_queue, exporting) = start(&collector, Resource::builder_empty().build()).unwrap();
        let begun = Instant::now();
        exporting.end();
        assert!(begun.elapsed() < LAST, "{:?}", begun.elapsed());
    }
}

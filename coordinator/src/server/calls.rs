//! Counts the calls of the API.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use prost::Message as _;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::core::Core;

/// What calls of an unknown method are counted as: whoever calls chooses the name.
const OTHER: &str = "other";

/// Puts [`Counted`] around a service.
#[derive(Clone, Debug)]
pub(super) struct CountCalls {
    core: Arc<Core>,
    /// Paths that are counted under their own names.
    known: Arc<HashSet<String>>,
}

impl CountCalls {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let mut known = HashSet::new();
        for descriptors in [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            let set = prost_types::FileDescriptorSet::decode(descriptors).unwrap_or_default();
            for file in &set.file {
                for service in &file.service {
                    known.extend(
                        service.method.iter().map(|method| {
                            format!("/{}.{}/{}", file.package(), service.name(), method.name())
                        }),
                    );
                }
            }
        }
        Self { core, known: Arc::new(known) }
    }

    /// `/gantry.v1.Coordinator/GetNode` is `Coordinator/GetNode`.
    fn method(&self, path: &str) -> String {
        if !self.known.contains(path) {
            return OTHER.to_owned();
        }
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        format!("{}/{method}", service.rsplit('.').next().unwrap_or(service))
    }
}

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, calls: self.clone() }
    }
}

/// A service whose answers are counted.
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    inner: S,
    calls: CountCalls,
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>> + Send,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let method = self.calls.method(request.uri().path());
        let core = Arc::clone(&self.calls.core);
        let began = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // An error is in the headers; what ends a stream is in its trailers, after the answer began.
            let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
            core.metrics.answered(&method, code, began.elapsed());
            Ok(response)
        })
    }
}

//! The gRPC services.

mod access;
mod api;
mod calls;
mod containers;
mod evacuations;
mod limits;
mod migrations;
mod policies;
mod registry;
mod requests;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use proto::tls::{Tls, listen_counting};
use proto::v1::coordinator_server::CoordinatorServer;
use proto::v1::registry_server::RegistryServer;
use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::core::Core;

/// A silent client is asked for a sign of life this often, and dropped after the same time again.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long calls under way may take once the coordinator stops.
const DRAIN: Duration = Duration::from_secs(5);

/// What the services share.
#[derive(Debug, Clone)]
struct Api {
    core: Arc<Core>,
    /// Becomes true when the coordinator stops: long streams end then.
    stop: tokio::sync::watch::Receiver<bool>,
}

impl Api {
    /// Waits until the coordinator stops.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.clone();
        async move {
            // An error means that the sender is gone: then it stops, too. The guard must not live on.
            let _ = stop.wait_for(|stop| *stop).await.is_ok();
        }
    }
}

/// Serves until `stop` becomes true, then lets calls under way end for a while.
///
/// # Errors
/// When the services cannot be set up or the transport fails.
pub(crate) async fn serve(
    core: Arc<Core>,
    listener: TcpListener,
    tls: &Tls,
    stop: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let api = Api { core, stop };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CoordinatorServer<Api>>().await;
    health.set_serving::<RegistryServer<Api>>().await;
    let (reflection, older_reflection) =
        proto::reflection::services(&["gantry.v1.Coordinator", "gantry.v1.Registry"])?;
    let stopping = api.stopped();
    let stopped = async move {
        stopping.await;
        health.set_not_serving::<CoordinatorServer<Api>>().await;
        health.set_not_serving::<RegistryServer<Api>>().await;
    };
    let over = api.stopped();
    let calls = calls::CountCalls::new(Arc::clone(&api.core));
    let incoming = listen_counting(listener, tls, api.core.metrics.refused.clone());
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .layer(calls)
        .add_service(CoordinatorServer::new(api.clone()))
        .add_service(RegistryServer::new(api))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(older_reflection)
        .serve_with_incoming_shutdown(incoming, stopped);
    tokio::select! {
        served = serving => Ok(served?),
        () = async {
            over.await;
            tokio::time::sleep(DRAIN).await;
        } => {
            tracing::warn!("calls were under way still after {} s", DRAIN.as_secs());
            Ok(())
        }
    }
}

//! Calls to the nodes' agents.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::error::{ApiError, connection_failed};
use proto::identity::{Identity, Role};
use proto::tls::{Expect, Tls, channel_lazy};
use proto::v1::node_agent_client::NodeAgentClient;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// An order: the agent answers once it has fsynced and made a session.
pub(crate) const ORDER: Duration = Duration::from_secs(10);
/// A question that the agent answers from memory.
pub(crate) const QUESTION: Duration = Duration::from_secs(5);
/// A look at a whole container, or a start of one.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Connections to agents, one for each node.
#[derive(Debug)]
pub(crate) struct Agents {
    tls: Tls,
    channels: Mutex<HashMap<String, (String, Channel)>>,
}

impl Agents {
    /// No connections yet.
    pub(crate) fn new(tls: Tls) -> Self {
        Self { tls, channels: Mutex::new(HashMap::new()) }
    }

    /// A client of `node`'s agent at `address`. Its certificate must bear the node's name. Connects at the
    /// first call, and again when the connection is lost.
    ///
    /// # Errors
    /// When name or address is not one.
    pub(crate) fn client(&self, node: &str, address: &str) -> Result<NodeAgentClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(node)
            && known == address
        {
            return Ok(NodeAgentClient::new(channel.clone()));
        }
        let bad = |e: &dyn std::error::Error| {
            ApiError::new(Code::Internal, "NODE_ADDRESS", format!("node {node} cannot be dialled: {e}"))
                .status()
        };
        let identity = Identity::new(Role::Node, node).map_err(|e| bad(&e))?;
        let channel = channel_lazy(address, &Expect::Peer(identity), &self.tls).map_err(|e| bad(&e))?;
        channels.insert(node.to_owned(), (address.to_owned(), channel.clone()));
        Ok(NodeAgentClient::new(channel))
    }
}

/// Waits for an agent's answer for `limit`. An agent that cannot be reached, or does not answer in time, is
/// UNAVAILABLE with the reason `NODE_UNREACHABLE`; its own errors are passed on as they are.
///
/// # Errors
/// As said; after UNAVAILABLE the agent may or may not have acted.
pub(crate) async fn answer<T>(
    node: &str,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(translate(node, status)),
        Err(_) => Err(unreachable(node, &format!("no answer within {} s", limit.as_secs()))),
    }
}

/// Makes the transport's errors our own.
pub(crate) fn translate(node: &str, status: Status) -> Status {
    if connection_failed(&status) { unreachable(node, &root_cause(&status)) } else { status }
}

fn root_cause(status: &Status) -> String {
    let mut deepest: &dyn std::error::Error = status;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    if std::ptr::addr_eq(deepest, status) { status.message().to_owned() } else { deepest.to_string() }
}

fn unreachable(node: &str, why: &str) -> Status {
    let message = format!("the agent of {node} cannot be reached: {why}");
    ApiError::new(Code::Unavailable, "NODE_UNREACHABLE", message).with("node", node).status()
}

#[cfg(test)]
mod tests {
    use proto::error::ErrorDetails;

    use super::*;

    #[test]
    fn only_the_transports_errors_are_changed() {
        let theirs = ApiError::new(Code::Unavailable, "BUSY", "later").status();
        assert_eq!(ErrorDetails::of(&translate("a", theirs)).reason, "BUSY");
        let broken = translate("a", Status::from_error(Box::new(std::io::Error::other("h2 broke"))));
        assert_eq!(broken.code(), Code::Unavailable);
        assert_eq!(ErrorDetails::of(&broken).metadata["node"], "a");
        assert!(broken.message().contains("h2 broke"));
        assert_eq!(translate("a", Status::not_found("x")).code(), Code::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_agent_is_unavailable() {
        let silent = std::future::pending::<Result<Response<()>, Status>>();
        let status = answer("a", QUESTION, silent).await.unwrap_err();
        assert_eq!(ErrorDetails::of(&status).reason, "NODE_UNREACHABLE");
    }
}

//! The real checks: what the container has, every node's facts against it, and what the nodes say themselves. They
//! change nothing.

use proto::v1::{CheckArrivalRequest, CheckContainerRequest, CheckContainerResponse, Container};
use tonic::Status;

use crate::admit::loads;
use crate::agent_client::{LONG, answer};
use crate::core::Core;
use crate::place::{self, Bar, Candidate, Needs, Verdict};

/// What the checks found.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    /// What the container has; without the description, which is for nodes alone.
    pub(crate) answer: CheckContainerResponse,
    /// What it needs at its target.
    pub(crate) needs: Needs,
    /// The nodes that were looked at, as they were.
    pub(crate) candidates: Vec<Candidate>,
    /// One for each of them, in the same order.
    pub(crate) verdicts: Vec<Verdict>,
}

/// Checks a container against `target`, or against every other node when that is empty; lists what it has when
/// `inventory` says so.
///
/// # Errors
/// What the container's agent answered, or that it cannot be reached. A node that cannot be asked does not fit.
pub(crate) async fn check(
    core: &Core,
    container: &Container,
    target: &str,
    inventory: bool,
) -> Result<Checked, Status> {
    let mut agent = core.agent(&container.node)?;
    let request = CheckContainerRequest { name: container.name.clone(), inventory };
    let mut checked = answer(&container.node, LONG, agent.check_container(request)).await?;
    let description = std::mem::take(&mut checked.description);
    let needs = Needs {
        memory: checked.resident_bytes,
        controllers: checked.cgroup_controllers.clone(),
        ..Needs::of(container, core.cluster.facts(&container.node))
    };
    let loads = loads(&core.store.active()?, &core.cluster, true);
    let mut candidates = core.cluster.candidates(container, &loads);
    candidates.retain(|c| if target.is_empty() { c.name != container.node } else { c.name == target });
    let mut verdicts: Vec<Verdict> =
        candidates.iter().map(|candidate| place::judge(&needs, candidate)).collect();
    // Without a description the container does not move anyway.
    let asked = verdicts.iter_mut().filter(|v| v.reasons.is_empty() && !description.is_empty());
    for verdict in asked {
        (verdict.reasons, verdict.bar) = arrival(core, &verdict.node, &container.name, &description).await;
    }
    Ok(Checked { answer: checked, needs, candidates, verdicts })
}

/// What a node says against a container that is described to it. That it cannot be asked passes.
async fn arrival(core: &Core, node: &str, name: &str, description: &[u8]) -> (Vec<String>, Bar) {
    let ask = async || {
        let mut agent = core.agent(node)?;
        let request = CheckArrivalRequest { name: name.to_owned(), description: description.to_vec() };
        answer(node, LONG, agent.check_arrival(request)).await
    };
    match ask().await {
        Ok(lacks) => {
            let reasons: Vec<String> = lacks
                .refusals
                .iter()
                .map(|lack| format!("{}: {} ({})", lack.subject, lack.reason, lack.way_out))
                .collect();
            let bar = if reasons.is_empty() { Bar::None } else { Bar::Never };
            (reasons, bar)
        }
        Err(status) => (vec![format!("it cannot be asked: {}", status.message())], Bar::Passing),
    }
}

//! What a migration would cost, as the agent of its source measures it, and the predictions that records show later.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::error::{invalid_field, not_found};
use proto::v1::{
    CandidateVerdict, CheckMoveRequest, Container, MigrationSpec, PredictRequest, PredictTarget, Prediction,
};
use tonic::Status;

use crate::agent_client::{LONG, answer};
use crate::core::Core;
use crate::policy::{NoSuchPolicy, resolve, wrong_limits};

/// How long a prediction may be shown beside what came.
const AGE: Duration = Duration::from_secs(15 * 60);

/// The last predictions, by container and target.
#[derive(Debug, Default)]
pub(crate) struct Predictions(Mutex<HashMap<(String, String), (Instant, Prediction)>>);

impl Predictions {
    fn keep(&self, container: &str, target: &str, prediction: Prediction) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (at, _)| at.elapsed() < AGE);
        known.insert((container.to_owned(), target.to_owned()), (Instant::now(), prediction));
    }

    /// What was foreseen of a move of this container to this node, if that was not long ago.
    pub(crate) fn recent(&self, container: &str, target: &str) -> Option<Prediction> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, prediction) = known.get(&(container.to_owned(), target.to_owned()))?;
        (at.elapsed() < AGE).then(|| prediction.clone())
    }
}

/// Foresees a move to each candidate that fits and writes it there, or why it cannot be told. The limits are those that a
/// migration with the request's policy would have.
///
/// # Errors
/// When the request's policy is none.
pub(crate) async fn predict(
    core: &Core,
    container: &Container,
    request: CheckMoveRequest,
    candidates: &mut [CandidateVerdict],
) -> Result<(), Status> {
    let limits = request.policy.unwrap_or_default();
    if let Some((field, why)) = wrong_limits("policy", &limits).into_iter().next() {
        return Err(invalid_field(&field, why).status());
    }
    let spec = MigrationSpec {
        container: container.name.clone(),
        policy: Some(limits),
        policy_name: request.policy_name,
        ..MigrationSpec::default()
    };
    let (effective, _) = resolve(&spec, &container.labels, &core.store.policies()?)
        .map_err(|NoSuchPolicy(name)| not_found("policy", &name))?;
    let targets: Vec<PredictTarget> = candidates
        .iter()
        .filter(|candidate| candidate.fits)
        .filter_map(|candidate| core.cluster.node(&candidate.node))
        .map(|node| PredictTarget { node: node.name, peer_address: node.peer_address })
        .collect();
    if targets.is_empty() {
        return Ok(());
    }
    let question = PredictRequest { container: container.name.clone(), policy: effective.policy, targets };
    let answered = match core.agent(&container.node) {
        Ok(mut agent) => answer(&container.node, LONG, agent.predict(question)).await,
        Err(status) => Err(status),
    };
    let mut forecasts: HashMap<String, Result<Prediction, String>> = HashMap::new();
    let failed = match answered {
        Ok(answer) => {
            for forecast in answer.forecasts {
                let found = forecast.prediction.ok_or(forecast.error);
                forecasts.insert(forecast.node, found);
            }
            "the node's agent did not say".to_owned()
        }
        Err(status) => status.message().to_owned(),
    };
    for candidate in candidates.iter_mut().filter(|candidate| candidate.fits) {
        match forecasts.remove(&candidate.node).unwrap_or_else(|| Err(failed.clone())) {
            Ok(prediction) => {
                core.predictions.keep(&container.name, &candidate.node, prediction.clone());
                candidate.prediction = Some(prediction);
            }
            Err(why) => candidate.not_predicted = why,
        }
    }
    Ok(())
}

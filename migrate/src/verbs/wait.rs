//! `wait`: returns when a condition holds.

use std::time::{Duration, Instant};

use proto::v1::{
    Condition, GetContainerRequest, GetEvacuationRequest, GetMigrationPolicyRequest, GetMigrationRequest,
    GetNodeRequest, NodeState,
};
use tonic::Code;

use super::refused;
use crate::api::Api;
use crate::exit::{self, Exit, Failure};
use crate::render::{evacuation, resource};
use crate::settings::Settings;

/// How often to look.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate wait migration/web-1 --for=condition=Succeeded --timeout 2m
  migrate wait node/node-b --for=condition=Ready
  migrate wait container/web --for=condition=Running
  migrate wait evacuation/drain-node-a-1 --for=condition=Succeeded --timeout 1h
  migrate wait policy/gentle --for=condition=Ready

A migration or an evacuation that ends otherwise ends the wait with its own exit code. A policy is Ready when it
is there.")]
pub(crate) struct Options {
    /// KIND/NAME.
    #[arg(value_parser = target)]
    target: (Kind, String),
    /// condition=TYPE
    #[arg(long = "for", value_name = "CONDITION", value_parser = condition)]
    condition: String,
    /// How long to wait.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Container,
    Migration,
    Policy,
    Evacuation,
}

fn target(text: &str) -> Result<(Kind, String), String> {
    let (kind, name) = text.split_once('/').ok_or("expected KIND/NAME")?;
    let kind = match kind {
        "node" | "nodes" => Kind::Node,
        "container" | "containers" => Kind::Container,
        "migration" | "migrations" => Kind::Migration,
        "policy" | "policies" | "migrationpolicy" => Kind::Policy,
        "evacuation" | "evacuations" => Kind::Evacuation,
        _ => return Err("the kinds are node, container, migration, policy and evacuation".into()),
    };
    Ok((kind, name.into()))
}

fn condition(text: &str) -> Result<String, String> {
    match text.strip_prefix("condition=") {
        Some(condition) if !condition.is_empty() => Ok(condition.into()),
        _ => Err("expected condition=TYPE".into()),
    }
}

/// What one look found: whether the condition holds, or the end that means it never will.
async fn look(api: &mut Api, options: &Options, tried: &str) -> Result<Option<Exit>, Failure> {
    let (kind, name) = options.target.clone();
    let condition = options.condition.as_str();
    match kind {
        Kind::Node => {
            let node =
                api.client.get_node(GetNodeRequest { name }).await.map_err(refused(tried))?.into_inner();
            Ok((condition == "Ready" && node.state() == NodeState::Ready).then_some(Exit::Ok))
        }
        Kind::Container => {
            let answer = api.client.get_container(GetContainerRequest { name }).await;
            let container = answer.map_err(refused(tried))?.into_inner();
            Ok((resource::container_state(container.state()) == condition).then_some(Exit::Ok))
        }
        Kind::Migration => {
            let answer = api.client.get_migration(GetMigrationRequest { name }).await;
            let migration = answer.map_err(refused(tried))?.into_inner();
            let phase = resource::phase(migration.phase());
            // An operator may still resolve one whose outcome is unknown.
            let end = exit::of_migration(&migration).filter(|end| *end != Exit::Unknown);
            judge(condition, phase, &migration.conditions, end, &migration.message, tried)
        }
        Kind::Evacuation => {
            let answer = api.client.get_evacuation(GetEvacuationRequest { name }).await;
            let found = answer.map_err(refused(tried))?.into_inner();
            let phase = evacuation::phase(found.phase());
            let end = exit::of_evacuation(&found);
            judge(condition, phase, &found.conditions, end, &found.message, tried)
        }
        Kind::Policy => match api.client.get_migration_policy(GetMigrationPolicyRequest { name }).await {
            Ok(_) => Ok((condition == "Ready").then_some(Exit::Ok)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(refused(tried)(status)),
        },
    }
}

/// Whether a condition holds of what has a phase, or the end that means it never will.
fn judge(
    condition: &str,
    phase: &str,
    conditions: &[Condition],
    end: Option<Exit>,
    message: &str,
    tried: &str,
) -> Result<Option<Exit>, Failure> {
    if phase == condition || conditions.iter().any(|c| c.r#type == condition && c.status == "True") {
        return Ok(Some(Exit::Ok));
    }
    let Some(end) = end else { return Ok(None) };
    let exit = if end == Exit::Ok { Exit::Other } else { end };
    Err(Failure::new(exit, tried, format_args!("it ended as {phase}")).detail(message))
}

/// `migrate wait`.
pub(crate) async fn run(options: Options, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("wait for {} of {}", options.condition, options.target.1);
    let start = Instant::now();
    loop {
        if let Some(exit) = look(&mut api, &options, &tried).await? {
            return Ok(exit);
        }
        if start.elapsed() >= options.timeout {
            let waited = humantime::format_duration(options.timeout);
            return Err(Failure::new(Exit::Other, tried, format_args!("it does not hold after {waited}"))
                .advise("`migrate describe` says where it stands"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_conditions() {
        assert_eq!(target("migration/web-1"), Ok((Kind::Migration, "web-1".into())));
        assert_eq!(target("node/a"), Ok((Kind::Node, "a".into())));
        assert!(target("pod/a").is_err() && target("a").is_err());
        assert_eq!(condition("condition=Ready"), Ok("Ready".into()));
        assert!(condition("Ready").is_err() && condition("condition=").is_err());
        assert_eq!(target("evacuation/x"), Ok((Kind::Evacuation, "x".into())));
        assert_eq!(target("migrationpolicy/x"), Ok((Kind::Policy, "x".into())));
    }

    #[test]
    fn an_end_that_is_not_the_condition_ends_the_wait() {
        let condition =
            Condition { r#type: "Cordoned".into(), status: "True".into(), ..Condition::default() };
        let judge =
            |wanted: &str, end| judge(wanted, "Failed", std::slice::from_ref(&condition), end, "why", "wait");
        assert_eq!(judge("Cordoned", None), Ok(Some(Exit::Ok)));
        assert_eq!(judge("Failed", Some(Exit::FailedAtSource)), Ok(Some(Exit::Ok)));
        assert_eq!(judge("Succeeded", None), Ok(None));
        assert_eq!(judge("Succeeded", Some(Exit::NotConverged)).unwrap_err().exit, Exit::NotConverged);
        assert_eq!(judge("Paused", Some(Exit::Ok)).unwrap_err().exit, Exit::Other);
    }
}

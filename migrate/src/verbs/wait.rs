//! `wait`: returns when a condition holds.

use std::time::{Duration, Instant};

use proto::v1::{GetContainerRequest, GetMigrationRequest, GetNodeRequest, NodeState, Phase};

use super::refused;
use crate::api::Api;
use crate::exit::{self, Exit, Failure};
use crate::render::resource;
use crate::settings::Settings;

/// How often to look.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate wait migration/web-1 --for=condition=Succeeded --timeout 2m
  migrate wait node/node-b --for=condition=Ready
  migrate wait container/web --for=condition=Running

A migration that ends otherwise ends the wait with its own exit code.")]
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
}

fn target(text: &str) -> Result<(Kind, String), String> {
    let (kind, name) = text.split_once('/').ok_or("expected KIND/NAME")?;
    let kind = match kind {
        "node" | "nodes" => Kind::Node,
        "container" | "containers" => Kind::Container,
        "migration" | "migrations" => Kind::Migration,
        _ => return Err("the kinds are node, container and migration".into()),
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
            let holds = resource::phase(migration.phase()) == condition
                || migration.conditions.iter().any(|c| c.r#type == condition && c.status == "True");
            if holds {
                return Ok(Some(Exit::Ok));
            }
            match exit::of_migration(&migration) {
                // An operator may still resolve it.
                None | Some(Exit::Unknown) => Ok(None),
                Some(end) => {
                    let phase = resource::phase(Phase::try_from(migration.phase).unwrap_or_default());
                    let mut failure = Failure::new(end, tried, format_args!("it ended as {phase}"));
                    if end == Exit::Ok {
                        failure.exit = Exit::Other;
                    }
                    Err(failure.detail(migration.message))
                }
            }
        }
    }
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
    }
}

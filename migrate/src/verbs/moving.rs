//! `move`: starts a migration and follows it to its end.

use std::time::{Duration, Instant};

use proto::error::answers_later;
use proto::v1::{
    Compression, CreateMigrationRequest, Migration, MigrationSpec, Policy, WatchMigrationsRequest,
};

use super::container::new_request_id;
use super::{label, print_object, refused};
use crate::api::Api;
use crate::dev::args::interrupted;
use crate::exit::{self, Exit, Failure};
use crate::progress::View;
use crate::render::{describe, policy, resource, units};
use crate::settings::Settings;

/// How long a coordinator that went away in the middle of a move is waited for.
pub(super) const RECONNECT_LIMIT: Duration = Duration::from_secs(60);

/// The live view tells the time this often when nothing else changes.
const TICK: Duration = Duration::from_secs(1);

/// Arguments of `move`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate move web --to node-b
  migrate move web
  migrate move web --node-selector disk=ssd,zone=a
  migrate move web --to node-b --max-downtime 20ms --timeout 2m
  migrate move web --to node-b --dry-run
  migrate move web --to node-b --detach -o name

Until the switchover is committed any failure leaves the container running where it is.")]
pub(crate) struct Options {
    /// The container.
    container: String,
    /// Where to; without it the coordinator chooses the node.
    #[arg(long = "to", value_name = "NODE", default_value = "", hide_default_value = true)]
    to: String,
    /// Only to a node with this label; may be given several times, or several with commas between.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label, value_delimiter = ',', conflicts_with = "to")]
    node_selector: Vec<(String, String)>,
    /// Give way to other migrations in the queue, but not for ever.
    #[arg(long)]
    background: bool,
    /// A named policy; what is given here beside it wins.
    #[arg(long, default_value = "")]
    policy: String,
    /// Longest pause to aim at [default: 50ms].
    #[arg(long, value_parser = humantime::parse_duration)]
    max_downtime: Option<Duration>,
    /// Give up when it has not converged by then [default: 5m].
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Most that pre-copy may send in a second, bytes: 800000, 50MB, 1GB (10^6, 10^9) [default: no limit].
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    bandwidth: Option<u64>,
    /// Take up to this many per cent of its CPU time from a container that does not converge, until it has moved.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=95))]
    throttle: Option<u32>,
    /// Compress what is sent [default: auto, when the link takes less than compression gives].
    #[arg(long, value_enum)]
    compression: Option<Compress>,
    /// Run the checks and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Return once the migration has been accepted.
    #[arg(long)]
    detach: bool,
    /// Makes a repeated call find the same migration; random when not given.
    #[arg(long)]
    request_id: Option<String>,
}

/// Values of `--compression`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Compress {
    Auto,
    Off,
    Lz4,
    Zstd,
}

impl From<Compress> for Compression {
    fn from(value: Compress) -> Self {
        match value {
            Compress::Auto => Self::Auto,
            Compress::Off => Self::Off,
            Compress::Lz4 => Self::Lz4,
            Compress::Zstd => Self::Zstd,
        }
    }
}

impl Options {
    fn request(self) -> CreateMigrationRequest {
        let policy = Policy {
            max_downtime: self.max_downtime.map(units::to_proto),
            timeout: self.timeout.map(units::to_proto),
            bandwidth_bytes_per_second: self.bandwidth.unwrap_or(0),
            throttle_max_percent: self.throttle.unwrap_or(0),
            compression: self.compression.map_or(Compression::Unspecified, Into::into).into(),
            ..Policy::default()
        };
        CreateMigrationRequest {
            request_id: self.request_id.unwrap_or_else(new_request_id),
            spec: Some(MigrationSpec {
                container: self.container,
                target_node: self.to,
                policy: Some(policy),
                policy_name: self.policy,
                node_selector: self.node_selector.into_iter().collect(),
                background: self.background,
            }),
            validate_only: self.dry_run,
            ..CreateMigrationRequest::default()
        }
    }
}

/// `migrate move`.
pub(crate) async fn run(options: Options, settings: &Settings) -> Result<Exit, Failure> {
    let tried = match options.to.as_str() {
        "" => format!("move {}", options.container),
        to => format!("move {} to {to}", options.container),
    };
    let mut api = Api::connect(settings).await?;
    let (detach, dry_run) = (options.detach, options.dry_run);
    let (container, to) = (options.container.clone(), options.to.clone());
    let migration = create(&mut api, options.request(), &tried).await?;
    if dry_run {
        print_object(settings, &resource::migration(&migration), || {
            let limits = migration.effective_policy.as_ref().map(policy::effective_table);
            let to = if to.is_empty() { String::new() } else { format!(" to {to}") };
            format!("{container} can move{to}\n{}", limits.unwrap_or_default())
        });
        return Ok(Exit::Ok);
    }
    if detach {
        print_object(settings, &resource::migration(&migration), || {
            format!("migration/{}\n", migration.name)
        });
        return Ok(Exit::Ok);
    }
    let name = migration.name.clone();
    let mut view = View::new(settings);
    let ended = tokio::select! {
        ended = follow(&mut api, &name, settings, &mut view) => ended,
        () = interrupted() => Err(Failure::new(Exit::Other, format!("follow {name}"), "interrupted")
            .advise(format!("the migration goes on; `migrate cancel {name}` ends it"))),
    };
    view.clear();
    let ended = ended?;
    print_object(settings, &resource::migration(&ended), || summary(&ended));
    match exit::of_migration(&ended) {
        Some(Exit::Ok) => Ok(Exit::Ok),
        other => Err(failed(&ended, &tried, other.unwrap_or(Exit::Other))),
    }
}

/// Asks for a migration. Repeated while the coordinator cannot be reached: the request id makes that safe.
pub(crate) async fn create(
    api: &mut Api,
    request: CreateMigrationRequest,
    tried: &str,
) -> Result<Migration, Failure> {
    let start = Instant::now();
    loop {
        match api.client.create_migration(request.clone()).await {
            Ok(migration) => return Ok(migration.into_inner()),
            Err(status) if answers_later(&status) && start.elapsed() < Duration::from_secs(3) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(status) => return Err(Failure::from_status(tried, &status)),
        }
    }
}

/// Shows a migration until it ends. A coordinator that restarts is waited for.
pub(crate) async fn follow(
    api: &mut Api,
    name: &str,
    settings: &Settings,
    view: &mut View,
) -> Result<Migration, Failure> {
    let tried = format!("follow {name}");
    let mut heard = Instant::now();
    let mut revision = 0;
    loop {
        let broken = match watch(api, name, &mut revision, &mut heard, view).await {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => Failure::new(Exit::Unreachable, &tried, "the coordinator ended the connection"),
            Err(status) if answers_later(&status) => Failure::from_status(&tried, &status),
            Err(status) => return Err(refused(tried)(status)),
        };
        if heard.elapsed() >= RECONNECT_LIMIT {
            return Err(broken.advise(format!(
                "the agents finish it alone; `migrate describe migration {name}` once the coordinator is back"
            )));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        // The old connection may be of no use; an error here is found by the next watch.
        if let Ok(new) = Api::connect(settings).await {
            *api = new;
        }
    }
}

/// Watches until the migration ends (`Some`) or the stream does.
async fn watch(
    api: &mut Api,
    name: &str,
    revision: &mut u64,
    heard: &mut Instant,
    view: &mut View,
) -> Result<Option<Migration>, tonic::Status> {
    // From the start each time: the current object comes first, so that an end is never missed.
    let request = WatchMigrationsRequest { name: name.into(), revision: 0 };
    let mut events = api.client.watch_migrations(request).await?.into_inner();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        let event = tokio::select! {
            event = events.message() => event?,
            _ = ticks.tick() => {
                view.again();
                continue;
            }
        };
        let Some(event) = event else { return Ok(None) };
        *heard = Instant::now();
        let Some(migration) = event.migration.filter(|m| m.name == name) else { continue };
        if event.revision < *revision {
            continue;
        }
        *revision = event.revision;
        view.show(&migration);
        if exit::of_migration(&migration).is_some() {
            return Ok(Some(migration));
        }
    }
}

/// One line on how it went.
pub(crate) fn summary(migration: &Migration) -> String {
    if exit::of_migration(migration) != Some(Exit::Ok) {
        return String::new();
    }
    let container = migration.spec.as_ref().map(|spec| spec.container.as_str()).unwrap_or_default();
    let downtime = match migration.downtime.as_ref().filter(|downtime| downtime.total_ms > 0.0) {
        Some(downtime) => format!("downtime {}", describe::downtime(downtime)),
        None => "downtime not measured (an agent was restarted after the commit)".to_owned(),
    };
    format!(
        "{container} runs on {}: {} rounds, {} in {}, {downtime}\n",
        migration.target_node,
        migration.rounds.len(),
        units::bytes(migration.bytes_sent),
        units::seconds(migration.total_seconds),
    )
}

/// What a migration that did not succeed tells.
pub(crate) fn failed(migration: &Migration, tried: &str, exit: Exit) -> Failure {
    let name = &migration.name;
    let source = &migration.source_node;
    let mut happened = match (migration.message.is_empty(), migration.reason.is_empty()) {
        (false, _) => migration.message.clone(),
        (true, false) => migration.reason.clone(),
        (true, true) => format!("it ended as {}", resource::phase(migration.phase())),
    };
    if matches!(exit, Exit::FailedAtSource | Exit::NotConverged | Exit::Cancelled | Exit::Refused)
        && !source.is_empty()
    {
        happened.push_str(&format!(" (the container runs on {source})"));
    }
    let mut failure = Failure::new(exit, tried, happened);
    failure.details = migration.refusals.iter().map(describe::refusal).collect();
    failure.advise(match exit {
        Exit::NotConverged if migration.reason == "TimedOut" => {
            "make room there, name another node, or allow a longer --timeout".into()
        }
        Exit::NotConverged => format!(
            "allow a longer --max-downtime or --timeout; `migrate describe migration {name}` shows the rounds"
        ),
        Exit::Unknown => format!(
            "bring the nodes back, or fence one and use `migrate resolve {name}`; both copies are frozen until then"
        ),
        Exit::Refused => "each line says what stands in the way".into(),
        _ => format!("`migrate describe migration {name}` shows what happened"),
    })
}

#[cfg(test)]
mod tests {
    use proto::v1::{Downtime, Phase, Refusal};

    use super::*;

    #[test]
    fn the_end_is_told_in_one_line() {
        let migration = Migration {
            name: "web-1".into(),
            spec: Some(MigrationSpec { container: "web".into(), ..MigrationSpec::default() }),
            phase: Phase::Succeeded.into(),
            target_node: "node-b".into(),
            downtime: Some(Downtime { total_ms: 4.0, ..Downtime::default() }),
            bytes_sent: 1 << 20,
            total_seconds: 1.5,
            ..Migration::default()
        };
        assert!(
            summary(&migration)
                .starts_with("web runs on node-b: 0 rounds, 1.0 MiB in 1.5 s, downtime 4.0 ms (")
        );
    }

    #[test]
    fn failures_say_where_the_container_runs() {
        let migration = Migration {
            name: "web-1".into(),
            phase: Phase::Failed.into(),
            source_node: "node-a".into(),
            message: "the target went away".into(),
            refusals: vec![Refusal { subject: "fd 3".into(), reason: "no".into(), ..Refusal::default() }],
            ..Migration::default()
        };
        let failure = failed(&migration, "move web to node-b", Exit::FailedAtSource);
        assert_eq!(failure.exit, Exit::FailedAtSource);
        assert_eq!(failure.happened, "the target went away (the container runs on node-a)");
        assert_eq!(failure.details, ["fd 3: no"]);
        assert!(!failed(&migration, "x", Exit::Unknown).happened.contains("runs on"));
    }
}

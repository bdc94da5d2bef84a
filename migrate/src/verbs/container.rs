//! `run`, `stop` and `delete`.

use std::path::PathBuf;

use proto::v1::{CreateContainerRequest, DeleteContainerRequest, RunContainerRequest, StopContainerRequest};

use super::{label, print_object, refused};
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::render::{resource, table};
use crate::settings::{Output, Settings};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate dev bundle --out /tmp/redis --rw /data -- /usr/bin/redis-server --bind 0.0.0.0
  migrate run redis --node node-a --bundle /tmp/redis --ip 10.77.0.100/24")]
pub(crate) struct RunOptions {
    /// Name of the container, unique in the cluster.
    name: String,
    /// Node to start it on.
    #[arg(long)]
    node: String,
    /// Directory of the OCI bundle, on that node.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Its address: ADDRESS/PREFIX; without one it has no network.
    #[arg(long, value_name = "CIDR", default_value = "")]
    ip: String,
    /// Its hardware address; derived from the name when not given.
    #[arg(long, default_value = "")]
    mac: String,
    /// Label; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Makes a repeated call do nothing; random when not given.
    #[arg(long)]
    request_id: Option<String>,
}

/// What `stop` acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// A container.
    Container,
}

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct StopOptions {
    /// What it is.
    #[arg(value_enum)]
    kind: Only,
    /// Its name.
    name: String,
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(long, default_value_t = 10)]
    grace: u32,
}

/// What `delete` acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Deletable {
    /// A container.
    Container,
    /// A migration policy.
    Policy,
}

/// Arguments of `delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate delete container web --force
  migrate delete policy gentle
  migrate delete -f policies.yaml

With a file policies are deleted, and migrations and evacuations that are not over are cancelled: their records are
kept. A policy stays as long as a migration that waits, or an evacuation that is not over, names it.")]
pub(crate) struct DeleteOptions {
    /// What it is.
    #[arg(value_enum, required_unless_present = "filename", requires = "name", conflicts_with = "filename")]
    kind: Option<Deletable>,
    /// Its name.
    name: Option<String>,
    /// Stop the container first.
    #[arg(long)]
    force: bool,
    /// What a file names; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: Option<PathBuf>,
}

fn print(settings: &Settings, container: &proto::v1::Container) {
    let wide = settings.output == Some(Output::Wide);
    print_object(settings, &resource::container(container), || {
        table::containers(std::slice::from_ref(container), wide)
            .render(table::colours(super::colour(settings)))
    });
}

/// `migrate run`.
pub(crate) async fn run(options: RunOptions, settings: &Settings) -> Result<Exit, Failure> {
    let tried = format!("run {} on {}", options.name, options.node);
    let bundle = std::path::absolute(&options.bundle).map_err(|error| Failure::usage(&tried, error))?;
    let bundle = bundle.to_str().ok_or_else(|| Failure::usage(&tried, "the bundle's path is not UTF-8"))?;
    let mut api = Api::connect(settings).await?;
    let request = CreateContainerRequest {
        request_id: options.request_id.unwrap_or_else(new_request_id),
        node: options.node,
        container: Some(RunContainerRequest {
            name: options.name,
            bundle: bundle.into(),
            ip: options.ip,
            mac: options.mac,
            labels: options.labels.into_iter().collect(),
        }),
    };
    let container = api.client.create_container(request).await.map_err(refused(tried))?.into_inner();
    print(settings, &container);
    Ok(Exit::Ok)
}

/// An id that makes a creation idempotent, when the user gives none.
pub(crate) fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// `migrate stop`.
pub(crate) async fn stop(options: StopOptions, settings: &Settings) -> Result<Exit, Failure> {
    let Only::Container = options.kind;
    let mut api = Api::connect(settings).await?;
    let tried = format!("stop container {}", options.name);
    let request = StopContainerRequest { name: options.name, grace_seconds: options.grace };
    let container = api.client.stop_container(request).await.map_err(refused(tried))?.into_inner();
    print(settings, &container);
    Ok(Exit::Ok)
}

/// `migrate delete`.
pub(crate) async fn delete(options: DeleteOptions, settings: &Settings) -> Result<Exit, Failure> {
    if let Some(file) = &options.filename {
        return super::manifest::delete(file, settings).await;
    }
    let name = options.name.unwrap_or_default();
    let mut api = Api::connect(settings).await?;
    let id = if options.kind == Some(Deletable::Policy) {
        super::manifest::delete_policy(&mut api, &name, &format!("delete policy {name}")).await?;
        format!("migrationpolicy/{name}")
    } else {
        let tried = format!("delete container {name}");
        let request = DeleteContainerRequest { name: name.clone(), force: options.force };
        api.client.delete_container(request).await.map_err(refused(tried))?;
        format!("container/{name}")
    };
    if !settings.quiet {
        println!("{id} deleted");
    }
    Ok(Exit::Ok)
}

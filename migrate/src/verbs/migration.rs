//! `cancel`, `resolve`, `cordon` and `uncordon`.

use proto::v1::{CancelMigrationRequest, CordonNodeRequest, Migration, Owner, ResolveMigrationRequest};

use super::{print_object, refused};
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::render::{resource, table};
use crate::settings::{Output, Settings};

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct CancelOptions {
    /// The migration.
    migration: String,
}

/// Which side owns the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Side {
    /// Where it was.
    Source,
    /// Where it was going.
    Target,
}

/// Arguments of `resolve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only when nobody reachable can tell where the container runs. The other node must be fenced
first: powered off, or cut off for good. A node that misses its heartbeats may be suspended and wake up.

Example: node-a burnt down while `web` was moving to node-b:
  migrate resolve web-1 --owner target --i-have-fenced node-a"
)]
pub(crate) struct ResolveOptions {
    /// The migration.
    migration: String,
    /// The side that owns the container from now on.
    #[arg(long, value_enum)]
    owner: Side,
    /// The other node, which you have fenced.
    #[arg(long, value_name = "NODE")]
    i_have_fenced: String,
    /// The other copy may have run and acknowledged writes that are then lost.
    #[arg(long)]
    accept_rollback: bool,
}

/// Arguments of `cordon` and `uncordon`.
#[derive(Debug, clap::Args)]
pub(crate) struct CordonOptions {
    /// The node.
    node: String,
}

fn print(settings: &Settings, migration: &Migration) {
    let wide = settings.output == Some(Output::Wide);
    print_object(settings, &resource::migration(migration), || {
        table::migrations(std::slice::from_ref(migration), wide).render(super::colour(settings))
    });
}

/// `migrate cancel`. Exit code 0 says that the request was taken; the migration may still succeed.
pub(crate) async fn cancel(options: CancelOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("cancel {}", options.migration);
    let request = CancelMigrationRequest { name: options.migration };
    let migration = api.client.cancel_migration(request).await.map_err(refused(tried))?.into_inner();
    print(settings, &migration);
    Ok(Exit::Ok)
}

/// `migrate resolve`.
pub(crate) async fn resolve(options: ResolveOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("resolve {}", options.migration);
    let owner = match options.owner {
        Side::Source => Owner::Source,
        Side::Target => Owner::Target,
    };
    let request = ResolveMigrationRequest {
        name: options.migration,
        owner: owner.into(),
        fenced_node: options.i_have_fenced,
        accept_rollback: options.accept_rollback,
    };
    let migration = api.client.resolve_migration(request).await.map_err(refused(tried))?.into_inner();
    print(settings, &migration);
    Ok(Exit::Ok)
}

/// `migrate cordon` and `migrate uncordon`.
pub(crate) async fn cordon(
    options: CordonOptions,
    cordoned: bool,
    settings: &Settings,
) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("{} {}", if cordoned { "cordon" } else { "uncordon" }, options.node);
    let request = CordonNodeRequest { name: options.node, cordoned };
    let node = api.client.cordon_node(request).await.map_err(refused(tried))?.into_inner();
    print_object(settings, &resource::node(&node), || {
        table::nodes(std::slice::from_ref(&node), settings.output == Some(Output::Wide))
            .render(super::colour(settings))
    });
    Ok(Exit::Ok)
}

//! `cancel`, `resolve`, `cordon` and `uncordon`.

use proto::v1::{CancelMigrationRequest, CordonNodeRequest, Migration, Owner, ResolveMigrationRequest};

use super::{print_object, refused};
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::render::{resource, table};
use crate::settings::{Output, Settings};

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate cancel web-1
  migrate cancel evacuation/drain-node-a-1 --now

A cancelled evacuation begins nothing more: migrations of it that wait are cancelled, those that run go on to
their end unless --now is given. Its node stays cordoned.")]
pub(crate) struct CancelOptions {
    /// A migration, or evacuation/NAME.
    #[arg(value_name = "[KIND/]NAME", value_parser = target)]
    target: (Target, String),
    /// Of an evacuation: cancel what runs, too.
    #[arg(long)]
    now: bool,
}

/// What can be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Migration,
    Evacuation,
}

fn target(text: &str) -> Result<(Target, String), String> {
    match text.split_once('/') {
        None => Ok((Target::Migration, text.into())),
        Some(("migration" | "migrations", name)) => Ok((Target::Migration, name.into())),
        Some(("evacuation" | "evacuations", name)) => Ok((Target::Evacuation, name.into())),
        Some(_) => Err("the kinds are migration and evacuation".into()),
    }
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

/// Arguments of `cordon`.
#[derive(Debug, clap::Args)]
pub(crate) struct CordonOptions {
    /// The node.
    node: String,
}

/// Arguments of `uncordon`.
#[derive(Debug, clap::Args)]
pub(crate) struct UncordonOptions {
    /// The node.
    node: String,
    /// Bring back what its last drain moved and what is still where that put it.
    #[arg(long)]
    move_back: bool,
}

fn print(settings: &Settings, migration: &Migration) {
    let wide = settings.output == Some(Output::Wide);
    print_object(settings, &resource::migration(migration), || {
        table::migrations(std::slice::from_ref(migration), wide)
            .render(table::colours(super::colour(settings)))
    });
}

/// `migrate cancel`. Exit code 0 says that the request was taken; the migration may still succeed.
pub(crate) async fn cancel(options: CancelOptions, settings: &Settings) -> Result<Exit, Failure> {
    let (kind, name) = options.target;
    if kind == Target::Evacuation {
        return super::evacuation::cancel(name, options.now, settings).await;
    }
    let tried = format!("cancel {name}");
    if options.now {
        return Err(Failure::usage(
            tried,
            "--now is for evacuations: a migration is always cancelled at once",
        ));
    }
    let mut api = Api::connect(settings).await?;
    let request = CancelMigrationRequest { name };
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

/// `migrate cordon`.
pub(crate) async fn cordon(options: CordonOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    set_cordoned(&mut api, options.node, true, settings).await
}

/// `migrate uncordon`.
pub(crate) async fn uncordon(options: UncordonOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    if !options.move_back {
        return set_cordoned(&mut api, options.node, false, settings).await;
    }
    // What is printed is how the containers come back.
    let quiet = Settings { quiet: true, output: None, ..settings.clone() };
    set_cordoned(&mut api, options.node.clone(), false, &quiet).await?;
    super::evacuation::move_back(&mut api, &options.node, settings).await
}

async fn set_cordoned(
    api: &mut Api,
    name: String,
    cordoned: bool,
    settings: &Settings,
) -> Result<Exit, Failure> {
    let tried = format!("{} {name}", if cordoned { "cordon" } else { "uncordon" });
    let answer = api.client.cordon_node(CordonNodeRequest { name, cordoned }).await;
    let node = answer.map_err(refused(tried))?.into_inner();
    print_object(settings, &resource::node(&node), || {
        table::nodes(std::slice::from_ref(&node), settings.output == Some(Output::Wide))
            .render(table::colours(super::colour(settings)))
    });
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_cancelled() {
        assert_eq!(target("web-1"), Ok((Target::Migration, "web-1".into())));
        assert_eq!(target("evacuation/x"), Ok((Target::Evacuation, "x".into())));
        assert!(target("node/x").is_err());
    }
}

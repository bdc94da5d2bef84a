//! `get` and `describe`.

use std::collections::HashMap;
use std::time::Duration;

use proto::v1::{
    Evacuation, GetContainerRequest, GetEvacuationRequest, GetMigrationPolicyRequest, GetMigrationRequest,
    GetNodeRequest, ListContainersRequest, ListEvacuationsRequest, ListMigrationPoliciesRequest,
    ListMigrationsRequest, ListNodesRequest, Migration, MigrationPolicy, WatchEvacuationsRequest,
    WatchMigrationPoliciesRequest, WatchMigrationsRequest,
};
use serde_json::{Value, json};

use super::{colour, label, name_of, print_object, refused, yaml};
use crate::api::Api;
use crate::exit::{Exit, Failure};
use crate::render::table::Table;
use crate::render::{describe as describe_text, evacuation, policy, resource, table};
use crate::settings::{Output, Settings};

/// How often nodes and containers are looked at while watching.
const LOOK: Duration = Duration::from_millis(500);

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Hosts that run containers.
    #[value(name = "nodes", aliases = ["node", "no"])]
    Nodes,
    /// Containers.
    #[value(name = "containers", aliases = ["container", "ctr"])]
    Containers,
    /// Migrations, also those that have ended.
    #[value(name = "migrations", aliases = ["migration", "mig"])]
    Migrations,
    /// Limits that migrations go by.
    #[value(name = "policies", aliases = ["policy", "pol", "migrationpolicies", "migrationpolicy"])]
    Policies,
    /// Nodes that are, or were, emptied.
    #[value(name = "evacuations", aliases = ["evacuation", "evac"])]
    Evacuations,
}

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate get nodes -o wide
  migrate get containers web -o json
  migrate get migrations -w
  migrate get policies -o yaml
  migrate get evacuations -w")]
pub(crate) struct Options {
    /// What to list.
    #[arg(value_enum)]
    kind: Kind,
    /// Only this one.
    name: Option<String>,
    /// Go on, printing every change.
    #[arg(short, long)]
    watch: bool,
    /// Only those with this label; may be given several times.
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

/// Arguments of `describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  migrate describe migration web-1")]
pub(crate) struct DescribeOptions {
    /// Its kind.
    #[arg(value_enum)]
    kind: Kind,
    /// Its name.
    name: String,
}

/// What one look answered: the objects, and the same as a table.
struct Listing {
    objects: Vec<Value>,
    table: Table,
}

async fn migration(api: &mut Api, name: &str) -> Result<Migration, Failure> {
    let request = GetMigrationRequest { name: name.into() };
    let answer = api.client.get_migration(request).await;
    Ok(answer.map_err(refused(format!("get migration {name}")))?.into_inner())
}

/// Looks once.
async fn look(api: &mut Api, options: &Options, wide: bool) -> Result<Listing, Failure> {
    let labels: HashMap<_, _> = options.labels.iter().cloned().collect();
    match options.kind {
        Kind::Nodes => {
            let nodes = match &options.name {
                Some(name) => {
                    let answer = api.client.get_node(GetNodeRequest { name: name.clone() }).await;
                    vec![answer.map_err(refused(format!("get node {name}")))?.into_inner()]
                }
                None => api.nodes(ListNodesRequest { labels, ..Default::default() }).await?,
            };
            Ok(Listing {
                objects: nodes.iter().map(resource::node).collect(),
                table: table::nodes(&nodes, wide),
            })
        }
        Kind::Containers => {
            let containers = match &options.name {
                Some(name) => {
                    let answer = api.client.get_container(GetContainerRequest { name: name.clone() }).await;
                    vec![answer.map_err(refused(format!("get container {name}")))?.into_inner()]
                }
                None => api.containers(ListContainersRequest { labels, ..Default::default() }).await?,
            };
            Ok(Listing {
                objects: containers.iter().map(resource::container).collect(),
                table: table::containers(&containers, wide),
            })
        }
        Kind::Migrations => {
            let migrations = match &options.name {
                Some(name) => vec![migration(api, name).await?],
                None => api.migrations(ListMigrationsRequest { labels, ..Default::default() }).await?,
            };
            Ok(Listing {
                objects: migrations.iter().map(resource::migration).collect(),
                table: table::migrations(&migrations, wide),
            })
        }
        Kind::Policies => {
            let policies = match &options.name {
                Some(name) => vec![one_policy(api, name).await?],
                None => api.policies(ListMigrationPoliciesRequest { labels, ..Default::default() }).await?,
            };
            Ok(Listing {
                objects: policies.iter().map(policy::object).collect(),
                table: policy::table(&policies, wide, false),
            })
        }
        Kind::Evacuations => {
            let evacuations = match &options.name {
                Some(name) => vec![one_evacuation(api, name).await?],
                None => api.evacuations(ListEvacuationsRequest { labels, ..Default::default() }).await?,
            };
            Ok(Listing {
                objects: evacuations.iter().map(evacuation::object).collect(),
                table: evacuation::table(&evacuations, wide),
            })
        }
    }
}

async fn one_policy(api: &mut Api, name: &str) -> Result<MigrationPolicy, Failure> {
    let request = GetMigrationPolicyRequest { name: name.into() };
    let answer = api.client.get_migration_policy(request).await;
    Ok(answer.map_err(refused(format!("get policy {name}")))?.into_inner())
}

async fn one_evacuation(api: &mut Api, name: &str) -> Result<Evacuation, Failure> {
    let request = GetEvacuationRequest { name: name.into() };
    let answer = api.client.get_evacuation(request).await;
    Ok(answer.map_err(refused(format!("get evacuation {name}")))?.into_inner())
}

/// `migrate get`.
pub(crate) async fn run(options: Options, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    match (options.watch, options.kind) {
        (true, Kind::Migrations | Kind::Policies | Kind::Evacuations) => {
            watch(&mut api, &options, settings).await
        }
        (true, _) => watch_by_looking(&mut api, &options, settings).await,
        (false, _) => {
            let listing = look(&mut api, &options, settings.output == Some(Output::Wide)).await?;
            print_listing(&listing, options.name.is_some(), settings)
        }
    }
}

fn print_listing(listing: &Listing, single: bool, settings: &Settings) -> Result<Exit, Failure> {
    let object = || match (&listing.objects[..], single) {
        ([one], true) => one.clone(),
        (all, _) => json!({"apiVersion": "v1", "kind": "List", "items": all}),
    };
    match settings.output.unwrap_or_default() {
        Output::Table | Output::Wide => print!("{}", listing.table.render(table::colours(colour(settings)))),
        Output::Json => println!("{:#}", object()),
        Output::Yaml => print!("{}", yaml(&object())),
        Output::Name => listing.objects.iter().for_each(|object| println!("{}", name_of(object))),
    }
    Ok(Exit::Ok)
}

/// Prints what has changed since the last look; ends only with the connection.
async fn watch_by_looking(api: &mut Api, options: &Options, settings: &Settings) -> Result<Exit, Failure> {
    let mut shown: HashMap<String, Value> = HashMap::new();
    let mut table_shown = String::new();
    loop {
        let listing = look(api, options, settings.output == Some(Output::Wide)).await?;
        if matches!(settings.output.unwrap_or_default(), Output::Table | Output::Wide) {
            let table = listing.table.render(table::colours(colour(settings)));
            // The ages change every second; a table is shown again when anything else does.
            let changed = listing.objects.iter().any(|object| changed(&mut shown, object));
            if changed || table_shown.lines().count() != table.lines().count() {
                print!("{table}");
                table_shown = table;
            }
        } else {
            for object in listing.objects.iter().filter(|object| changed(&mut shown, object)) {
                print_object(settings, object, String::new);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether an object is new or differs from what was shown, but for what changes all the time.
fn changed(shown: &mut HashMap<String, Value>, object: &Value) -> bool {
    let mut kept = object.clone();
    for volatile in ["lastHeartbeat", "memoryBytes", "facts"] {
        if let Some(status) = kept["status"].as_object_mut() {
            status.remove(volatile);
        }
    }
    shown.insert(name_of(object), kept.clone()) != Some(kept)
}

/// Whether an object has every label that is asked for.
fn is_wanted(options: &Options, labels: &HashMap<String, String>) -> bool {
    options.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Prints one change; the header of the table comes once.
fn print_change(settings: &Settings, first: &mut bool, object: &Value, table: &Table) {
    print_object(settings, object, || {
        let text = table.render(table::colours(colour(settings)));
        if *first { text } else { text.split_inclusive('\n').skip(1).collect() }
    });
    *first = false;
}

/// Prints every change of what the coordinator keeps; ends only with the connection.
async fn watch(api: &mut Api, options: &Options, settings: &Settings) -> Result<Exit, Failure> {
    let tried = "watch";
    let (name, revision) = (options.name.clone().unwrap_or_default(), 0);
    let wide = settings.output == Some(Output::Wide);
    let mut first = true;
    match options.kind {
        Kind::Policies => {
            let request = WatchMigrationPoliciesRequest { name, revision };
            let answer = api.client.watch_migration_policies(request).await;
            let mut events = answer.map_err(refused(tried))?.into_inner();
            while let Some(event) = events.message().await.map_err(refused(tried))? {
                let Some(found) = event.policy.filter(|p| is_wanted(options, &p.labels)) else { continue };
                let mut object = policy::object(&found);
                if event.deleted {
                    object["status"] =
                        json!({"conditions": [{"type": "Ready", "status": "False", "reason": "Deleted"}]});
                }
                let row = policy::table(std::slice::from_ref(&found), wide, event.deleted);
                print_change(settings, &mut first, &object, &row);
            }
        }
        Kind::Evacuations => {
            let answer = api.client.watch_evacuations(WatchEvacuationsRequest { name, revision }).await;
            let mut events = answer.map_err(refused(tried))?.into_inner();
            while let Some(event) = events.message().await.map_err(refused(tried))? {
                let Some(found) = event.evacuation.filter(|e| is_wanted(options, &e.labels)) else {
                    continue;
                };
                let row = evacuation::table(std::slice::from_ref(&found), wide);
                print_change(settings, &mut first, &evacuation::object(&found), &row);
            }
        }
        _ => {
            let answer = api.client.watch_migrations(WatchMigrationsRequest { name, revision }).await;
            let mut events = answer.map_err(refused(tried))?.into_inner();
            while let Some(event) = events.message().await.map_err(refused(tried))? {
                let Some(found) = event.migration.filter(|m| is_wanted(options, &m.labels)) else { continue };
                let row = table::migrations(std::slice::from_ref(&found), wide);
                print_change(settings, &mut first, &resource::migration(&found), &row);
            }
        }
    }
    Ok(Exit::Ok)
}

/// `migrate describe`.
pub(crate) async fn describe(options: DescribeOptions, settings: &Settings) -> Result<Exit, Failure> {
    let mut api = Api::connect(settings).await?;
    let tried = format!("describe {}", options.name);
    let name = options.name;
    let (object, text) = match options.kind {
        Kind::Nodes => {
            let node =
                api.client.get_node(GetNodeRequest { name }).await.map_err(refused(tried))?.into_inner();
            (resource::node(&node), describe_text::node(&node))
        }
        Kind::Containers => {
            let answer = api.client.get_container(GetContainerRequest { name }).await;
            let container = answer.map_err(refused(tried))?.into_inner();
            (resource::container(&container), describe_text::container(&container))
        }
        Kind::Migrations => {
            let migration = migration(&mut api, &name).await?;
            (resource::migration(&migration), describe_text::migration(&migration))
        }
        Kind::Policies => {
            let found = one_policy(&mut api, &name).await?;
            (policy::object(&found), policy::describe(&found))
        }
        Kind::Evacuations => {
            let found = one_evacuation(&mut api, &name).await?;
            (evacuation::object(&found), evacuation::describe(&found))
        }
    };
    print_object(settings, &object, || text);
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_are_no_change() {
        let mut shown = HashMap::new();
        let node = |state: &str, heartbeat: &str| json!({"kind": "Node", "metadata": {"name": "a"}, "status": {"state": state, "lastHeartbeat": heartbeat}});
        assert!(changed(&mut shown, &node("Ready", "1")));
        assert!(!changed(&mut shown, &node("Ready", "2")));
        assert!(changed(&mut shown, &node("Unknown", "2")));
    }
}

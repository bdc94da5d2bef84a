//! `apply` and `delete -f`: objects as files.

use std::path::PathBuf;

use proto::error::ErrorDetails;
use proto::v1::{
    ApplyMigrationPolicyRequest, ApplyResult, CancelEvacuationRequest, CancelMigrationRequest,
    CreateEvacuationRequest, CreateMigrationRequest, DeleteMigrationPolicyRequest, Evacuation,
    EvacuationSpec, GetEvacuationRequest, GetMigrationPolicyRequest, GetMigrationRequest, Migration,
    MigrationPolicySpec, MigrationSpec,
};
use serde_json::Value;
use tonic::{Code, Status};

use super::print_object;
use crate::api::Api;
use crate::exit::{self, Exit, Failure};
use crate::manifest::{self, Manifest, Object};
use crate::render::{evacuation, policy, resource};
use crate::settings::Settings;

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  migrate apply -f policies.yaml
  migrate get policies -o yaml | migrate apply -f -

Kinds: Migration, MigrationPolicy, Evacuation; several documents to a file. A policy is created or changed. A
migration or an evacuation begins when it is new; one that is there already is left alone when it is the same, and
refused when it is not.")]
pub(crate) struct ApplyOptions {
    /// The file; `-` is standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    filename: PathBuf,
    /// Let the coordinator judge it, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What became of an object.
struct Applied {
    id: String,
    word: &'static str,
    object: Value,
}

/// What the coordinator says against a manifest, in its words and its fields.
fn refused(tried: &str, status: &Status) -> Failure {
    let mut failure = Failure::from_status(tried, status);
    let fields = ErrorDetails::of(status).fields;
    if !fields.is_empty() {
        let lines: Vec<_> =
            fields.iter().map(|(field, why)| format!("{}: {why}", manifest::field(field))).collect();
        failure.happened = lines.join("; ");
        failure.details.retain(|line| !fields.iter().any(|(field, _)| line.starts_with(field.as_str())));
    }
    failure
}

/// A migration or an evacuation of that name is there, and it is another one.
fn immutable(tried: &str, id: &str) -> Failure {
    Failure::new(
        Exit::Usage,
        tried,
        format_args!("{id} is there with another spec, and it cannot be changed"),
    )
    .advise("give another metadata.name; what has ended stays in the history")
}

fn same_migration(m: &Migration, spec: &MigrationSpec, labels: &manifest::Labels) -> bool {
    // What is empty was not given.
    let bare = |spec: &MigrationSpec| MigrationSpec {
        policy: spec.policy.filter(|policy| *policy != proto::v1::Policy::default()),
        ..spec.clone()
    };
    m.spec.as_ref().map(bare) == Some(bare(spec)) && m.labels == *labels
}

async fn apply_migration(
    api: &mut Api,
    manifest: &Manifest,
    spec: &MigrationSpec,
    dry_run: bool,
    tried: &str,
) -> Result<Applied, Failure> {
    let done = |word, m: &Migration| Applied { id: manifest.id(), word, object: resource::migration(m) };
    let request = GetMigrationRequest { name: manifest.name.clone() };
    match api.client.get_migration(request).await.map(tonic::Response::into_inner) {
        Ok(found) if same_migration(&found, spec, &manifest.labels) => return Ok(done("unchanged", &found)),
        Ok(_) => return Err(immutable(tried, &manifest.id())),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(refused(tried, &status)),
    }
    let request = CreateMigrationRequest {
        name: manifest.name.clone(),
        spec: Some(spec.clone()),
        labels: manifest.labels.clone(),
        validate_only: dry_run,
        ..CreateMigrationRequest::default()
    };
    match api.client.create_migration(request).await {
        Ok(made) => Ok(done("created", &made.into_inner())),
        Err(status) => Err(refused(tried, &status)),
    }
}

async fn apply_policy(
    api: &mut Api,
    manifest: &Manifest,
    spec: &MigrationPolicySpec,
    dry_run: bool,
    tried: &str,
) -> Result<Applied, Failure> {
    let request = ApplyMigrationPolicyRequest {
        name: manifest.name.clone(),
        spec: Some(spec.clone()),
        labels: manifest.labels.clone(),
        validate_only: dry_run,
    };
    let answer = api.client.apply_migration_policy(request).await;
    let answer = answer.map_err(|status| refused(tried, &status))?.into_inner();
    let word = match answer.result() {
        ApplyResult::Created => "created",
        ApplyResult::Configured => "configured",
        ApplyResult::Unchanged | ApplyResult::Unspecified => "unchanged",
    };
    let object = policy::object(&answer.policy.unwrap_or_default());
    Ok(Applied { id: manifest.id(), word, object })
}

async fn apply_evacuation(
    api: &mut Api,
    manifest: &Manifest,
    spec: &EvacuationSpec,
    dry_run: bool,
    tried: &str,
) -> Result<Applied, Failure> {
    let done = |word, e: &Evacuation| Applied { id: manifest.id(), word, object: evacuation::object(e) };
    let request = GetEvacuationRequest { name: manifest.name.clone() };
    match api.client.get_evacuation(request).await.map(tonic::Response::into_inner) {
        Ok(found) if found.spec.as_ref() == Some(spec) && found.labels == manifest.labels => {
            return Ok(done("unchanged", &found));
        }
        Ok(_) => return Err(immutable(tried, &manifest.id())),
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(refused(tried, &status)),
    }
    let request = CreateEvacuationRequest {
        name: manifest.name.clone(),
        spec: Some(spec.clone()),
        labels: manifest.labels.clone(),
        validate_only: dry_run,
        ..CreateEvacuationRequest::default()
    };
    match api.client.create_evacuation(request).await {
        Ok(made) => Ok(done("created", &made.into_inner())),
        Err(status) => Err(refused(tried, &status)),
    }
}

/// `migrate apply`. Every document is read before the first is applied; one that is refused does not hold up the others.
pub(crate) async fn apply(options: ApplyOptions, settings: &Settings) -> Result<Exit, Failure> {
    let manifests = manifest::read(&options.filename, "apply")?;
    let mut api = Api::connect(settings).await?;
    let dry = options.dry_run;
    each(&manifests, settings, dry, async |manifest| {
        let tried = format!("apply {}", manifest.id());
        match &manifest.object {
            Object::Migration(spec) => apply_migration(&mut api, manifest, spec, dry, &tried).await,
            Object::Policy(spec) => apply_policy(&mut api, manifest, spec, dry, &tried).await,
            Object::Evacuation(spec) => apply_evacuation(&mut api, manifest, spec, dry, &tried).await,
        }
    })
    .await
}

/// Does the same with each, prints what became of it, and fails with all that failed.
async fn each(
    manifests: &[Manifest],
    settings: &Settings,
    dry_run: bool,
    mut act: impl AsyncFnMut(&Manifest) -> Result<Applied, Failure>,
) -> Result<Exit, Failure> {
    let mut failed: Option<Failure> = None;
    for manifest in manifests {
        match act(manifest).await {
            Ok(applied) => print_object(settings, &applied.object, || {
                let note = if dry_run { " (dry run)" } else { "" };
                format!("{} {}{note}\n", applied.id, applied.word)
            }),
            Err(failure) => match &mut failed {
                None => failed = Some(failure),
                Some(first) => {
                    first.details.push(format!("cannot {}: {}", failure.tried, failure.happened));
                    first.details.extend(failure.details);
                }
            },
        }
    }
    failed.map_or(Ok(Exit::Ok), Err)
}

/// `migrate delete -f`. A policy is deleted; a migration or an evacuation is cancelled, and its record is kept.
pub(crate) async fn delete(filename: &std::path::Path, settings: &Settings) -> Result<Exit, Failure> {
    let manifests = manifest::read(filename, "delete")?;
    let mut api = Api::connect(settings).await?;
    each(&manifests, settings, false, async |manifest| {
        let id = manifest.id();
        let (tried, name) = (format!("delete {id}"), manifest.name.clone());
        match &manifest.object {
            Object::Policy(_) => {
                let object = delete_policy(&mut api, &name, &tried).await?;
                Ok(Applied { id, word: "deleted", object })
            }
            Object::Migration(_) => {
                let found = api.client.get_migration(GetMigrationRequest { name: name.clone() }).await;
                let mut found = found.map_err(|status| refused(&tried, &status))?.into_inner();
                let mut word = "has ended; its record is kept";
                if exit::of_migration(&found).is_none() {
                    let answer = api.client.cancel_migration(CancelMigrationRequest { name }).await;
                    found = answer.map_err(|status| refused(&tried, &status))?.into_inner();
                    word = "cancelled; its record is kept";
                }
                Ok(Applied { id, word, object: resource::migration(&found) })
            }
            Object::Evacuation(_) => {
                let found = api.client.get_evacuation(GetEvacuationRequest { name: name.clone() }).await;
                let mut found = found.map_err(|status| refused(&tried, &status))?.into_inner();
                let mut word = "has ended; its record is kept";
                if exit::of_evacuation(&found).is_none() {
                    let request = CancelEvacuationRequest { name, now: false };
                    let answer = api.client.cancel_evacuation(request).await;
                    found = answer.map_err(|status| refused(&tried, &status))?.into_inner();
                    word = "cancelled; its record is kept";
                }
                Ok(Applied { id, word, object: evacuation::object(&found) })
            }
        }
    })
    .await
}

/// Deletes a policy, and answers what it was.
pub(super) async fn delete_policy(api: &mut Api, name: &str, tried: &str) -> Result<Value, Failure> {
    let request = GetMigrationPolicyRequest { name: name.to_owned() };
    let answer = api.client.get_migration_policy(request).await;
    let found = answer.map_err(|status| refused(tried, &status))?.into_inner();
    let request = DeleteMigrationPolicyRequest { name: name.to_owned(), validate_only: false };
    api.client.delete_migration_policy(request).await.map_err(|status| refused(tried, &status))?;
    Ok(policy::object(&found))
}

#[cfg(test)]
mod tests {
    use proto::error::invalid_field;

    use super::*;

    #[test]
    fn wrong_fields_are_named_as_the_manifest_has_them() {
        let why = "200 is more than 95: the container could not run";
        let status = invalid_field("spec.limits.throttle_max_percent", why).status();
        let failure = refused("apply migrationpolicy/gentle", &status);
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.happened, format!("spec.limits.throttle.maxPercent: {why}"));
        assert!(failure.details.is_empty(), "{failure}");
    }
}

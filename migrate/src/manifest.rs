//! Manifests: Migration, MigrationPolicy and Evacuation as people write them in YAML, several to a file.
//!
//! Reading is strict: what is not known, given twice or of the wrong type is refused with its line. Values are the
//! coordinator's to judge; its words about fields are put as the manifest spells them ([`field`]).

mod document;

use std::io::Read as _;
use std::path::Path;

use prost_types::Duration;
use proto::v1::{EvacuationSpec, MigrationPolicySpec, MigrationSpec, Policy};

use crate::exit::Failure;
use crate::render::resource::API_VERSION;
use document::{Document, Limits, Spec};

/// The longest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Labels.
pub(crate) type Labels = std::collections::HashMap<String, String>;

/// One object to be applied or deleted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    /// Its name.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: Labels,
    /// What it is.
    pub(crate) object: Object,
}

/// A spec, by kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Object {
    /// A migration.
    Migration(MigrationSpec),
    /// A policy.
    Policy(MigrationPolicySpec),
    /// An evacuation.
    Evacuation(EvacuationSpec),
}

impl Manifest {
    /// `kind/name`, as it is printed.
    pub(crate) fn id(&self) -> String {
        let kind = match self.object {
            Object::Migration(_) => "migration",
            Object::Policy(_) => "migrationpolicy",
            Object::Evacuation(_) => "evacuation",
        };
        format!("{kind}/{}", self.name)
    }
}

/// Reads every object of a file, `-` being standard input. After Err nothing was applied.
///
/// # Errors
/// Wrong use, with the line or the field.
pub(crate) fn read(path: &Path, tried: &str) -> Result<Vec<Manifest>, Failure> {
    let name = if path.as_os_str() == "-" { "standard input".into() } else { path.display().to_string() };
    let fail = |why: &dyn std::fmt::Display| Failure::usage(tried, format_args!("{name}: {why}"));
    let mut bytes = Vec::new();
    let source: Box<dyn std::io::Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| fail(&error))?)
    };
    // One byte more than allowed tells that there are too many.
    source.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(&format_args!("it has more than {MAX_FILE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| fail(&"it is not UTF-8"))?;
    parse(&text).map_err(|why| fail(&why))
}

/// Reads every object of a text.
///
/// # Errors
/// What is wrong, with the line or the field.
pub(crate) fn parse(text: &str) -> Result<Vec<Manifest>, String> {
    let documents: Vec<Option<Document>> = serde_saphyr::from_multiple(text).map_err(|error| told(&error))?;
    let mut all = Vec::new();
    for document in documents.into_iter().flatten() {
        add(document, &mut all)?;
    }
    if all.is_empty() {
        return Err("there is no object in it".into());
    }
    for (index, manifest) in all.iter().enumerate() {
        if all[..index].iter().any(|earlier| earlier.id() == manifest.id()) {
            return Err(format!("{} is there twice", manifest.id()));
        }
    }
    Ok(all)
}

/// An error in one line, with its place.
fn told(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    // A hint for programmers.
    let text = text.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    let first = text.lines().next().unwrap_or_default().to_owned();
    match error.location() {
        Some(at) if !first.contains("line ") => {
            format!("line {}, column {}: {first}", at.line(), at.column())
        }
        _ => first,
    }
}

fn add(document: Document, all: &mut Vec<Manifest>) -> Result<(), String> {
    if document.kind == "List" {
        let items = document.items.ok_or("items: is missing")?;
        return items.into_iter().try_for_each(|item| add(item, all));
    }
    let place = match document.metadata.as_ref().map(|metadata| metadata.name.as_str()) {
        Some(name) if !name.is_empty() => format!("{} {name}", document.kind),
        _ => document.kind.clone(),
    };
    let manifest = convert(document).map_err(|why| format!("{place}: {why}"))?;
    all.push(manifest);
    Ok(())
}

fn convert(document: Document) -> Result<Manifest, String> {
    if document.api_version != API_VERSION {
        return Err(format!("apiVersion: {:?} is not {API_VERSION}", document.api_version));
    }
    if document.items.is_some() {
        return Err("items: only a List has them".into());
    }
    let metadata = document.metadata.filter(|metadata| !metadata.name.is_empty());
    let metadata = metadata.ok_or("metadata.name: is missing")?;
    let mut spec = document.spec.ok_or("spec: is missing")?;
    let object = match document.kind.as_str() {
        "Migration" => Object::Migration(MigrationSpec {
            container: spec.container.take().ok_or("spec.container: is missing")?,
            target_node: spec.target_node.take().unwrap_or_default(),
            node_selector: spec.node_selector.take().unwrap_or_default(),
            background: spec.background.take().unwrap_or_default(),
            policy_name: spec.policy.take().unwrap_or_default(),
            policy: limits(take_limits(&mut spec)),
        }),
        "MigrationPolicy" => Object::Policy(MigrationPolicySpec {
            match_labels: spec.selector.take().and_then(|s| s.match_labels).unwrap_or_default(),
            limits: limits(spec.limits.take().unwrap_or_default()),
        }),
        "Evacuation" => Object::Evacuation(EvacuationSpec {
            node: spec.node.take().ok_or("spec.node: is missing")?,
            deadline: spec.deadline.take().map(Into::into),
            max_parallel: spec.max_parallel.take().unwrap_or_default(),
            policy: spec.policy.take().unwrap_or_default(),
            move_back: spec.move_back.take().unwrap_or_default(),
            undo: spec.undo.take().unwrap_or_default(),
        }),
        other => return Err(format!("kind: {other:?} is not Migration, MigrationPolicy or Evacuation")),
    };
    // Known to another kind.
    if let Some(field) = spec.first_given() {
        return Err(format!("spec.{field}: {} has no such field", document.kind));
    }
    Ok(Manifest { name: metadata.name, labels: metadata.labels.unwrap_or_default(), object })
}

fn take_limits(spec: &mut Spec) -> Limits {
    Limits {
        max_downtime: spec.max_downtime.take(),
        timeout: spec.timeout.take(),
        on_timeout: spec.on_timeout.take(),
        bandwidth: spec.bandwidth.take(),
        max_rounds: spec.max_rounds.take(),
        throttle: spec.throttle.take(),
        compression: spec.compression.take(),
    }
}

/// Limits for the API; none given is none.
fn limits(given: Limits) -> Option<Policy> {
    let policy = Policy {
        max_downtime: given.max_downtime.map(Duration::from),
        timeout: given.timeout.map(Duration::from),
        bandwidth_bytes_per_second: given.bandwidth.map(|size| size.0).unwrap_or_default(),
        max_rounds: given.max_rounds.unwrap_or_default(),
        on_timeout: given.on_timeout.map(|word| word.api().into()).unwrap_or_default(),
        throttle_max_percent: given.throttle.and_then(|throttle| throttle.max_percent).unwrap_or_default(),
        compression: given.compression.map(|word| word.api().into()).unwrap_or_default(),
    };
    Some(policy).filter(|policy| *policy != Policy::default())
}

/// A field of the API as manifests spell it: `spec.policy.throttle_max_percent` is `spec.throttle.maxPercent`.
pub(crate) fn field(path: &str) -> String {
    let path = match path {
        "name" | "labels" => return format!("metadata.{path}"),
        "spec.policy_name" => return "spec.policy".to_owned(),
        "spec.match_labels" => return "spec.selector.matchLabels".to_owned(),
        path => path,
    };
    let path = path.replacen("spec.policy.", "spec.", 1);
    let path = path.replace("throttle_max_percent", "throttle.max_percent");
    let path = path.replace("bandwidth_bytes_per_second", "bandwidth");
    let mut camel = String::new();
    let mut upper = false;
    for c in path.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                camel.extend(c.to_uppercase());
                upper = false;
            }
            c => camel.push(c),
        }
    }
    camel
}

#[cfg(test)]
mod tests;

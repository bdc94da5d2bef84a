//! Limits and the policies that hold them.

use proto::v1::{Compression, EffectivePolicy, MigrationPolicy, OnTimeout, Policy};
use serde_json::{Map, Value, json};

use super::describe::{fields, labels, section};
use super::resource::{API_VERSION, prune, sorted};
use super::table::{Table, dash};
use super::units;
use crate::manifest;

/// Limits, as manifests have them.
pub(crate) fn limits(policy: &Policy) -> Map<String, Value> {
    let on_timeout = match policy.on_timeout() {
        OnTimeout::Unspecified => None,
        OnTimeout::Abort => Some("Abort"),
        OnTimeout::Force => Some("Force"),
    };
    let compression = match policy.compression() {
        Compression::Unspecified => None,
        Compression::Auto => Some("auto"),
        Compression::Off => Some("off"),
        Compression::Lz4 => Some("lz4"),
        Compression::Zstd => Some("zstd"),
    };
    let positive = |n: u32| (n > 0).then_some(n);
    let bandwidth = policy.bandwidth_bytes_per_second;
    let fields = [
        ("maxDowntime", json!(policy.max_downtime.as_ref().and_then(units::duration))),
        ("timeout", json!(policy.timeout.as_ref().and_then(units::duration))),
        ("onTimeout", json!(on_timeout)),
        ("bandwidth", json!((bandwidth > 0).then(|| units::exact_bytes(bandwidth)))),
        ("maxRounds", json!(positive(policy.max_rounds))),
        ("compression", json!(compression)),
        (
            "throttle",
            json!(positive(policy.throttle_max_percent).map(|percent| json!({"maxPercent": percent}))),
        ),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Where the field of a limit stands in a manifest's limits: `throttle_max_percent` is `throttle.maxPercent`.
fn limit_name(field: &str) -> String {
    manifest::field(&format!("spec.policy.{field}")).trim_start_matches("spec.").to_owned()
}

/// What a migration goes by.
pub(crate) fn effective(effective: &EffectivePolicy) -> Value {
    let mut all = effective.policy.as_ref().map(limits).unwrap_or_default();
    let origins: Map<String, Value> =
        effective.origins.iter().map(|o| (limit_name(&o.field), json!(o.origin))).collect();
    all.insert("origins".into(), json!(origins));
    all.insert("policy".into(), json!(effective.policy_name));
    all.insert("selected".into(), json!(effective.selected));
    Value::Object(all)
}

/// The same as a table.
pub(crate) fn effective_table(effective: &EffectivePolicy) -> String {
    let all = Value::Object(effective.policy.as_ref().map(limits).unwrap_or_default());
    let mut table = Table::new(&["LIMIT", "VALUE", "FROM"]);
    for origin in &effective.origins {
        let name = limit_name(&origin.field);
        let value = match all.pointer(&format!("/{}", name.replace('.', "/"))) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => "none".to_owned(),
            Some(other) => other.to_string(),
        };
        table.row(vec![name, value, origin.origin.clone()]);
    }
    table.render(None)
}

/// A policy.
pub(crate) fn object(policy: &MigrationPolicy) -> Value {
    let spec = policy.spec.clone().unwrap_or_default();
    let limits = spec.limits.as_ref().map(limits).unwrap_or_default();
    let limits = prune(Value::Object(limits));
    let selector = sorted(&spec.match_labels);
    prune(json!({
        "apiVersion": API_VERSION,
        "kind": "MigrationPolicy",
        "metadata": {
            "name": policy.name, "uid": policy.uid, "resourceVersion": policy.revision.to_string(),
            "labels": sorted(&policy.labels),
            "creationTimestamp": policy.created.as_ref().and_then(units::rfc3339),
        },
        "spec": {
            "selector": if selector.is_null() { Value::Null } else { json!({"matchLabels": selector}) },
            "limits": if limits == json!({}) { Value::Null } else { limits },
        },
        "status": {
            // A policy that is there was accepted.
            "conditions": [{"type": "Ready", "status": "True", "reason": "Accepted"}],
            "updateTime": policy.updated.as_ref().and_then(units::rfc3339),
            "updatedBy": policy.updated_by,
        },
    }))
}

fn short(policy: &MigrationPolicy) -> String {
    let all = policy.spec.as_ref().and_then(|spec| spec.limits.as_ref()).map(limits).unwrap_or_default();
    let parts = all.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| match value {
        Value::String(text) => format!("{key}={text}"),
        Value::Object(map) => {
            map.into_iter().map(|(inner, value)| format!("{key}.{inner}={value}")).collect()
        }
        other => format!("{key}={other}"),
    });
    parts.collect::<Vec<_>>().join(" ")
}

fn selector(policy: &MigrationPolicy) -> String {
    let spec = policy.spec.clone().unwrap_or_default();
    if spec.match_labels.is_empty() { "every container".into() } else { labels(&spec.match_labels) }
}

/// Policies, as they are or as they were when they were deleted.
pub(crate) fn table(policies: &[MigrationPolicy], wide: bool, deleted: bool) -> Table {
    let mut header = vec!["NAME", "SELECTS", "LIMITS", "AGE"];
    if wide {
        header.extend(["UPDATED", "BY"]);
    }
    let mut table = Table::new(&header);
    for policy in policies {
        let mut row = vec![
            policy.name.clone(),
            selector(policy),
            if deleted { "(deleted)".into() } else { dash(&short(policy)) },
            dash(&units::age(policy.created.as_ref())),
        ];
        if wide {
            row.extend([dash(&units::age(policy.updated.as_ref())), dash(&policy.updated_by)]);
        }
        table.row(row);
    }
    table
}

/// Everything about a policy.
pub(crate) fn describe(policy: &MigrationPolicy) -> String {
    let mut out = String::new();
    fields(
        &mut out,
        &[
            ("Name", policy.name.clone()),
            ("Labels", labels(&policy.labels)),
            ("Selects", selector(policy)),
            ("Created", policy.created.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Updated", policy.updated.as_ref().and_then(units::rfc3339).unwrap_or_default()),
            ("Updated by", policy.updated_by.clone()),
        ],
    );
    section(&mut out, "Limits", &short(policy).replace(' ', "\n"));
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::v1::{MigrationPolicySpec, PolicyOrigin};

    use super::*;

    fn gentle() -> MigrationPolicy {
        let limits = Policy {
            max_downtime: Some(units::to_proto(Duration::from_millis(50))),
            bandwidth_bytes_per_second: 100_000_000,
            throttle_max_percent: 80,
            ..Policy::default()
        };
        let match_labels = [("team".to_owned(), "shop".to_owned())].into();
        let spec = MigrationPolicySpec { match_labels, limits: Some(limits) };
        MigrationPolicy { name: "gentle".into(), spec: Some(spec), ..MigrationPolicy::default() }
    }

    #[test]
    fn a_policy_has_the_form_of_its_manifest() {
        let object = object(&gentle());
        assert_eq!(object["kind"], "MigrationPolicy");
        assert_eq!(
            object["spec"],
            json!({
                "selector": {"matchLabels": {"team": "shop"}},
                "limits": {"maxDowntime": "50ms", "bandwidth": "100MB", "throttle": {"maxPercent": 80}},
            })
        );
        let text = table(&[gentle()], false, false).render(None);
        assert!(
            text.contains("gentle  team=shop  bandwidth=100MB maxDowntime=50ms throttle.maxPercent=80  -"),
            "{text}"
        );
        let nothing = MigrationPolicy { name: "all".into(), ..MigrationPolicy::default() };
        assert_eq!(super::object(&nothing)["spec"], json!({}));
    }

    #[test]
    fn an_effective_policy_tells_where_each_limit_is_from() {
        let origin = |field: &str, origin: &str| PolicyOrigin { field: field.into(), origin: origin.into() };
        let given = EffectivePolicy {
            policy: gentle().spec.unwrap().limits,
            origins: vec![
                origin("max_downtime", "migration"),
                origin("bandwidth_bytes_per_second", "policy/gentle"),
                origin("throttle_max_percent", "policy/gentle"),
                origin("max_rounds", "default"),
            ],
            policy_name: "gentle".into(),
            selected: String::new(),
        };
        let object = effective(&given);
        assert_eq!(object["origins"]["throttle.maxPercent"], "policy/gentle");
        assert_eq!(object["maxDowntime"], "50ms");
        let text = effective_table(&given);
        assert!(text.contains("bandwidth            100MB  policy/gentle\n"), "{text}");
        assert!(text.contains("throttle.maxPercent  80     policy/gentle\n"), "{text}");
        assert!(text.contains("maxRounds            none   default\n"), "{text}");
    }
}

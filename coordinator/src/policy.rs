//! By which limits a migration goes. Pure.
//!
//! Each limit is taken from the first of these that gives it: the migration itself, the policy that it names, the
//! policy whose selector fits the container best, the default.

use std::collections::HashMap;

use prost_types::Duration;
use proto::v1::{
    Compression, EffectivePolicy, MigrationPolicy, MigrationSpec, OnTimeout, Policy, PolicyOrigin,
};

/// The most of its CPU time that a container may lose, per cent.
const MAX_THROTTLE: u32 = 95;

/// One limit.
struct Field {
    name: &'static str,
    given: fn(&Policy) -> bool,
    copy: fn(&Policy, &mut Policy),
}

fn is_time(time: Option<&Duration>) -> bool {
    time.is_some_and(|time| *time != Duration::default())
}

const FIELDS: [Field; 7] = [
    Field {
        name: "max_downtime",
        given: |p| is_time(p.max_downtime.as_ref()),
        copy: |from, to| to.max_downtime = from.max_downtime,
    },
    Field {
        name: "timeout",
        given: |p| is_time(p.timeout.as_ref()),
        copy: |from, to| to.timeout = from.timeout,
    },
    Field {
        name: "on_timeout",
        given: |p| p.on_timeout != 0,
        copy: |from, to| to.on_timeout = from.on_timeout,
    },
    Field {
        name: "bandwidth_bytes_per_second",
        given: |p| p.bandwidth_bytes_per_second != 0,
        copy: |from, to| to.bandwidth_bytes_per_second = from.bandwidth_bytes_per_second,
    },
    Field {
        name: "max_rounds",
        given: |p| p.max_rounds != 0,
        copy: |from, to| to.max_rounds = from.max_rounds,
    },
    Field {
        name: "throttle_max_percent",
        given: |p| p.throttle_max_percent != 0,
        copy: |from, to| to.throttle_max_percent = from.throttle_max_percent,
    },
    Field {
        name: "compression",
        given: |p| p.compression != 0,
        copy: |from, to| to.compression = from.compression,
    },
];

/// What the API documents as defaults; a limit that is zero is none.
fn defaults() -> Policy {
    Policy {
        max_downtime: Some(Duration { seconds: 0, nanos: 50_000_000 }),
        timeout: Some(Duration { seconds: 300, nanos: 0 }),
        on_timeout: OnTimeout::Abort.into(),
        bandwidth_bytes_per_second: 0,
        max_rounds: 30,
        throttle_max_percent: 0,
        compression: Compression::Auto.into(),
    }
}

/// What is wrong with limits: the field below `prefix`, and a description that begins with its value.
pub(crate) fn wrong_limits(prefix: &str, limits: &Policy) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    let mut refuse = |field: &str, why: String| wrong.push((format!("{prefix}.{field}"), why));
    for (field, time) in [("max_downtime", limits.max_downtime), ("timeout", limits.timeout)] {
        if time.is_some_and(|time| std::time::Duration::try_from(time).is_err()) {
            refuse(field, "is negative or no duration".into());
        }
    }
    if limits.throttle_max_percent > MAX_THROTTLE {
        let given = limits.throttle_max_percent;
        refuse(
            "throttle_max_percent",
            format!("{given} is more than {MAX_THROTTLE}: the container could not run"),
        );
    }
    if Compression::try_from(limits.compression).is_err() {
        refuse("compression", format!("{} is no known value", limits.compression));
    }
    if OnTimeout::try_from(limits.on_timeout).is_err() {
        refuse("on_timeout", format!("{} is no known value", limits.on_timeout));
    }
    wrong
}

/// A migration names a policy that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {0}")]
pub(crate) struct NoSuchPolicy(pub(crate) String);

fn selects(policy: &MigrationPolicy, labels: &HashMap<String, String>) -> bool {
    let wanted = policy.spec.iter().flat_map(|spec| &spec.match_labels);
    wanted.into_iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn specificity(policy: &MigrationPolicy) -> usize {
    policy.spec.as_ref().map_or(0, |spec| spec.match_labels.len())
}

/// The policy whose selector fits best: the one that asks for the most labels; of equals the first by name, and then
/// the names of the others.
fn select<'a>(
    policies: &'a [MigrationPolicy],
    labels: &HashMap<String, String>,
) -> Option<(&'a MigrationPolicy, Vec<&'a str>)> {
    let fitting = || policies.iter().filter(|policy| selects(policy, labels));
    let most = fitting().map(specificity).max()?;
    let mut best: Vec<_> = fitting().filter(|policy| specificity(policy) == most).collect();
    best.sort_by(|a, b| a.name.cmp(&b.name));
    let (first, others) = best.split_first()?;
    Some((first, others.iter().map(|policy| policy.name.as_str()).collect()))
}

/// The limits of a migration of a container with these labels, and lines for its decision log.
///
/// # Errors
/// [`NoSuchPolicy`].
pub(crate) fn resolve(
    spec: &MigrationSpec,
    labels: &HashMap<String, String>,
    policies: &[MigrationPolicy],
) -> Result<(EffectivePolicy, Vec<String>), NoSuchPolicy> {
    let mut log = Vec::new();
    let named = match spec.policy_name.as_str() {
        "" => None,
        name => {
            let found = policies.iter().find(|policy| policy.name == name);
            Some(found.ok_or_else(|| NoSuchPolicy(name.to_owned()))?)
        }
    };
    let selected = select(policies, labels);
    if let Some((policy, others)) = &selected {
        let mut line = format!("policy {} selects the container", policy.name);
        if !others.is_empty() {
            line.push_str(&format!(
                "; {} with as many labels, too: the first by name is taken",
                others.join(", ")
            ));
        }
        log.push(line);
    }
    let selected = selected.map(|(policy, _)| policy);
    let layer = |policy: &MigrationPolicy| {
        let limits = policy.spec.as_ref().and_then(|spec| spec.limits).unwrap_or_default();
        (format!("policy/{}", policy.name), limits)
    };
    let layers: Vec<(String, Policy)> = [("migration".to_owned(), spec.policy.unwrap_or_default())]
        .into_iter()
        .chain(named.map(layer))
        .chain(selected.map(layer))
        .collect();
    let default = ("default".to_owned(), defaults());
    let mut policy = Policy::default();
    let mut origins = Vec::new();
    for field in &FIELDS {
        let (origin, from) = layers.iter().find(|(_, limits)| (field.given)(limits)).unwrap_or(&default);
        (field.copy)(from, &mut policy);
        origins.push(PolicyOrigin { field: field.name.to_owned(), origin: origin.clone() });
    }
    let name = |policy: Option<&MigrationPolicy>| policy.map_or_else(String::new, |p| p.name.clone());
    let effective =
        EffectivePolicy { policy: Some(policy), origins, policy_name: name(named), selected: name(selected) };
    Ok((effective, log))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::v1::MigrationPolicySpec;

    use super::*;

    fn any_limits() -> impl Strategy<Value = Policy> {
        (0i64..3, 0i64..3, 0u64..3, 0u32..3, 0i32..3, 0u32..3, 0i32..5).prop_map(
            |(down, time, bandwidth, rounds, on_timeout, throttle, compression)| Policy {
                max_downtime: (down > 0).then_some(Duration { seconds: down, nanos: 0 }),
                // Zero is as good as missing.
                timeout: (time < 2).then_some(Duration { seconds: time, nanos: 0 }),
                bandwidth_bytes_per_second: bandwidth,
                max_rounds: rounds,
                on_timeout,
                throttle_max_percent: throttle,
                compression,
            },
        )
    }

    fn any_labels() -> impl Strategy<Value = HashMap<String, String>> {
        proptest::collection::hash_map("[ab]", "[xy]", 0..3)
    }

    fn any_policies() -> impl Strategy<Value = Vec<MigrationPolicy>> {
        let one = (any_labels(), any_limits())
            .prop_map(|(match_labels, limits)| MigrationPolicySpec { match_labels, limits: Some(limits) });
        proptest::collection::vec(one, 0..5).prop_map(|specs| {
            let named = specs.into_iter().zip(["e", "d", "c", "b", "a"]);
            named
                .map(|(spec, name)| MigrationPolicy {
                    name: name.into(),
                    spec: Some(spec),
                    ..MigrationPolicy::default()
                })
                .collect()
        })
    }

    fn limits_of(policies: &[MigrationPolicy], name: &str) -> Policy {
        policies.iter().find(|p| p.name == name).unwrap().spec.as_ref().unwrap().limits.unwrap()
    }

    proptest! {
        #[test]
        fn the_nearest_word_wins(
            own in any_limits(), name in "[a-e]?", labels in any_labels(), policies in any_policies(),
        ) {
            let spec = MigrationSpec { policy: Some(own), policy_name: name.clone(), ..Default::default() };
            let known = name.is_empty() || policies.iter().any(|p| p.name == name);
            let resolved = resolve(&spec, &labels, &policies);
            prop_assert_eq!(resolved.is_ok(), known);
            let Ok((effective, log)) = resolved else { return Ok(()) };
            let got = effective.policy.unwrap();
            prop_assert_eq!(&effective.policy_name, &name);
            prop_assert_eq!(effective.origins.len(), FIELDS.len());
            for (field, told) in FIELDS.iter().zip(&effective.origins) {
                prop_assert_eq!(field.name, &told.field);
                // The value is that of the origin, and nobody nearer gives one.
                let mut nearer = vec![("migration".to_owned(), own)];
                for policy in [&name, &effective.selected].into_iter().filter(|name| !name.is_empty()) {
                    nearer.push((format!("policy/{policy}"), limits_of(&policies, policy)));
                }
                let wins = nearer.iter().find(|(_, limits)| (field.given)(limits));
                let (origin, from) = wins.cloned().unwrap_or(("default".into(), defaults()));
                prop_assert_eq!(&origin, &told.origin);
                let mut expected = got;
                (field.copy)(&from, &mut expected);
                prop_assert_eq!(expected, got);
            }
            // The selected one fits, nothing that fits asks for more, and a tie is told.
            let fits: Vec<_> = policies.iter().filter(|p| selects(p, &labels)).collect();
            match fits.iter().find(|p| p.name == effective.selected) {
                None => prop_assert!(fits.is_empty() && effective.selected.is_empty() && log.is_empty()),
                Some(selected) => {
                    prop_assert!(fits.iter().all(|p| specificity(p) <= specificity(selected)));
                    let ties: Vec<_> = fits.iter().filter(|p| specificity(p) == specificity(selected)).collect();
                    prop_assert!(ties.iter().all(|p| p.name >= selected.name));
                    prop_assert_eq!(ties.len() > 1, log[0].contains("first by name"), "{:?}", log);
                }
            }
        }

        #[test]
        fn the_order_of_policies_does_not_matter(
            labels in any_labels(), policies in any_policies(), turn in 0usize..5,
        ) {
            let mut turned = policies.clone();
            if !turned.is_empty() {
                let by = turn % turned.len();
                turned.rotate_left(by);
            }
            let spec = MigrationSpec::default();
            prop_assert_eq!(resolve(&spec, &labels, &policies), resolve(&spec, &labels, &turned));
        }
    }

    #[test]
    fn wrong_limits_name_their_fields() {
        let limits = Policy {
            timeout: Some(Duration { seconds: -1, nanos: 0 }),
            throttle_max_percent: 200,
            on_timeout: 9,
            ..Policy::default()
        };
        let wrong = wrong_limits("spec.limits", &limits);
        let fields: Vec<_> = wrong.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            ["spec.limits.timeout", "spec.limits.throttle_max_percent", "spec.limits.on_timeout"]
        );
        assert!(wrong[1].1.starts_with("200 is more than 95"));
        assert_eq!(wrong_limits("x", &defaults()), []);
    }
}

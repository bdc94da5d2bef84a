use std::collections::HashMap;

use proptest::prelude::*;
use proto::v1::{Compression, Evacuation, Migration, MigrationPolicy, OnTimeout};
use serde_json::{Value, json};

use super::*;
use crate::render::{evacuation, policy, resource};
use crate::verbs::yaml;

const ALL: &str = "
apiVersion: gantry.dev/v1alpha1
kind: MigrationPolicy
metadata: {name: gentle, labels: {team: shop}}
spec:
  selector: {matchLabels: {tier: web}}
  limits: {maxDowntime: 50ms, timeout: 5m, onTimeout: Force, bandwidth: 100MB, maxRounds: 9, throttle: {maxPercent: 80}, compression: zstd}
---
apiVersion: gantry.dev/v1alpha1
kind: Migration
metadata: {name: web-1}
spec: {container: web, targetNode: node-b, policy: gentle, maxDowntime: 1s 500ms, bandwidth: 800000}
---
---
apiVersion: gantry.dev/v1alpha1
kind: Evacuation
metadata: {name: away}
spec: {node: node-a, deadline: 10m, maxParallel: 3, policy: gentle, moveBack: true}
";

#[test]
fn every_kind_is_read() {
    let all = parse(ALL).unwrap();
    let ids: Vec<_> = all.iter().map(Manifest::id).collect();
    assert_eq!(ids, ["migrationpolicy/gentle", "migration/web-1", "evacuation/away"]);
    assert_eq!(all[0].labels, HashMap::from([("team".to_owned(), "shop".to_owned())]));
    let Object::Policy(spec) = &all[0].object else { panic!() };
    let limits = spec.limits.unwrap();
    assert_eq!((limits.bandwidth_bytes_per_second, limits.max_rounds), (100_000_000, 9));
    assert_eq!((limits.on_timeout(), limits.compression()), (OnTimeout::Force, Compression::Zstd));
    assert_eq!(limits.throttle_max_percent, 80);
    let Object::Migration(spec) = &all[1].object else { panic!() };
    assert_eq!(spec.policy.unwrap().max_downtime, Some(Duration { seconds: 1, nanos: 500_000_000 }));
    assert_eq!(spec.policy.unwrap().bandwidth_bytes_per_second, 800_000);
    let Object::Evacuation(spec) = &all[2].object else { panic!() };
    assert_eq!((spec.max_parallel, spec.move_back, spec.undo), (3, true, false));
}

fn one(kind: &str, spec: &str) -> String {
    format!("apiVersion: gantry.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n")
}

#[test]
fn what_is_wrong_is_named_by_line_or_path() {
    let cases = [
        (one("Migration", "{container: web, colour: red}"), "line 4", "colour"),
        (one("Migration", "\n  container: web\n  container: db"), "line 6", "container"),
        (one("Migration", "{container: web, maxRounds: many}"), "line 4", ""),
        (one("Migration", "{container: [web]}"), "line 4", ""),
        (one("Migration", "{container: web, timeout: soon}"), "line 4", "soon"),
        (one("Migration", "{container: web, bandwidth: fast}"), "line 4", "fast"),
        (one("Migration", "{container: web, bandwidth: -1}"), "line 4", ""),
        (one("Migration", "{container: web, throttle: {maxPercent: -1}}"), "line 4", ""),
        (one("Migration", "{container: web, onTimeout: abort}"), "line 4", "abort"),
        (one("Migration", "{container: web"), "line ", ""),
        (one("Migration", "{}"), "Migration x: spec.container: is missing", ""),
        (
            one("Migration", "{container: web, node: a}"),
            "Migration x: spec.node: Migration has no such field",
            "",
        ),
        (one("MigrationPolicy", "{timeout: 5m}"), "spec.timeout: MigrationPolicy has no such field", ""),
        (one("Evacuation", "{node: a, limits: {}}"), "spec.limits: Evacuation has no such field", ""),
        (one("Pod", "{}"), "kind: \"Pod\" is not", ""),
        (one("Evacuation", "{node: a}").replace("v1alpha1", "v1"), "apiVersion: ", "gantry.dev/v1alpha1"),
        (one("Evacuation", "{node: a}").replace("{name: x}", "{}"), "metadata.name: is missing", ""),
        (format!("{ALL}---{ALL}"), "migrationpolicy/gentle is there twice", ""),
        ("# nothing\n".to_owned(), "there is no object in it", ""),
        ("- a\n- b\n".to_owned(), "line 1", ""),
    ];
    for (text, wanted, also) in cases {
        let why = parse(&text).unwrap_err();
        assert!(why.contains(wanted) && why.contains(also), "{text}\n=> {why}");
        assert!(why.lines().count() == 1 && !why.contains("Options"), "{why}");
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "#".repeat(usize::try_from(MAX_FILE).unwrap() + 1)).unwrap();
    let failure = read(file.path(), "apply").unwrap_err();
    assert!(failure.happened.contains("more than 1048576 bytes"), "{failure}");
    std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
    assert!(read(file.path(), "apply").unwrap_err().happened.contains("UTF-8"));
    assert!(read(Path::new("/nonexistent"), "apply").is_err());
}

#[test]
fn aliases_cannot_blow_a_file_up() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (this, last) in "bcdefghijk".chars().zip("abcdefghij".chars()) {
        text.push_str(&format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(", ")));
    }
    assert!(parse(&text).is_err());
}

#[test]
fn fields_of_the_api_are_spelt_as_manifests_do() {
    for (api, manifest) in [
        ("spec.policy.throttle_max_percent", "spec.throttle.maxPercent"),
        ("spec.limits.throttle_max_percent", "spec.limits.throttle.maxPercent"),
        ("spec.policy.bandwidth_bytes_per_second", "spec.bandwidth"),
        ("spec.limits.max_downtime", "spec.limits.maxDowntime"),
        ("spec.policy_name", "spec.policy"),
        ("spec.policy", "spec.policy"),
        ("spec.target_node", "spec.targetNode"),
        ("spec.node_selector", "spec.nodeSelector"),
        ("spec.match_labels", "spec.selector.matchLabels"),
        ("name", "metadata.name"),
        ("labels", "metadata.labels"),
    ] {
        assert_eq!(field(api), manifest, "{api}");
    }
}

fn any_name() -> impl Strategy<Value = String> {
    // Words that YAML reads as something else among them.
    prop_oneof![
        "[a-z0-9]{1,8}",
        prop::sample::select(vec!["null", "true", "no", "y", "1e3", "0x10", "1", "010", "off", "nan"])
            .prop_map(str::to_owned),
    ]
}

fn any_labels() -> impl Strategy<Value = Labels> {
    proptest::collection::hash_map("[ -~äß€]{1,12}", "[ -~äß€]{0,12}", 0..4)
}

fn any_time() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((0i64..10_000_000, 0i32..1_000_000_000))
        .prop_map(|time| time.map(|(seconds, nanos)| Duration { seconds, nanos }))
}

fn any_limits() -> impl Strategy<Value = Option<Policy>> {
    let numbers = (0u64..1 << 59, any::<u16>(), any::<u32>(), 0u32..96, 0i32..3, 0i32..5);
    (any_time(), any_time(), numbers).prop_map(
        |(max_downtime, timeout, (bandwidth, coarse, max_rounds, throttle, on_timeout, compression))| {
            let policy = Policy {
                max_downtime,
                timeout,
                bandwidth_bytes_per_second: if coarse % 2 == 0 {
                    u64::from(coarse) * 500_000
                } else {
                    bandwidth
                },
                max_rounds,
                on_timeout,
                throttle_max_percent: throttle,
                compression,
            };
            Some(policy).filter(|policy| *policy != Policy::default())
        },
    )
}

/// Reads what is printed, as YAML and as JSON.
fn read_back(object: &Value) -> Manifest {
    let text = yaml(object);
    let mut all = parse(&text).unwrap_or_else(|why| panic!("{why} in\n{text}"));
    assert_eq!(all.len(), 1);
    assert_eq!(parse(&object.to_string()).unwrap(), all, "{text}");
    let list = yaml(&json!({"apiVersion": "v1", "kind": "List", "items": [object]}));
    assert_eq!(parse(&list).unwrap(), all, "{list}");
    all.remove(0)
}

proptest! {
    /// What `get -o yaml` prints is read as the very same object: `apply` takes it as unchanged.
    #[test]
    fn a_migration_is_read_back(
        name in any_name(), labels in any_labels(), container in any_name(), target_node in "[a-z]{0,3}",
        policy in any_limits(), policy_name in "[a-z]{0,3}", events in proptest::collection::vec("\\PC{0,20}", 0..3),
        node_selector in any_labels(), background in any::<bool>(),
    ) {
        let spec = MigrationSpec { container, target_node, policy, policy_name, node_selector, background };
        let migration = Migration {
            name: name.clone(),
            labels: labels.clone(),
            spec: Some(spec.clone()),
            events,
            ..Migration::default()
        };
        let read = read_back(&resource::migration(&migration));
        prop_assert_eq!(read, Manifest { name, labels, object: Object::Migration(spec) });
    }

    #[test]
    fn a_policy_is_read_back(
        name in any_name(), labels in any_labels(), match_labels in any_labels(), limits in any_limits(),
    ) {
        let spec = MigrationPolicySpec { match_labels, limits };
        let made = MigrationPolicy {
            name: name.clone(),
            labels: labels.clone(),
            spec: Some(spec.clone()),
            ..MigrationPolicy::default()
        };
        let read = read_back(&policy::object(&made));
        prop_assert_eq!(read, Manifest { name, labels, object: Object::Policy(spec) });
    }

    #[test]
    fn an_evacuation_is_read_back(
        name in any_name(), labels in any_labels(), node in any_name(), deadline in any_time(),
        max_parallel in 0u32..65, policy in "[a-z]{0,3}", how in 0u8..3,
    ) {
        let spec =
            EvacuationSpec { node, deadline, max_parallel, policy, move_back: how == 1, undo: how == 2 };
        let made = Evacuation {
            name: name.clone(),
            labels: labels.clone(),
            spec: Some(spec.clone()),
            ..Evacuation::default()
        };
        let read = read_back(&evacuation::object(&made));
        prop_assert_eq!(read, Manifest { name, labels, object: Object::Evacuation(spec) });
    }

    /// Whatever is written: an answer, in one line when it is an error.
    #[test]
    fn any_text_is_answered(text in "[ -~\n]{0,200}") {
        if let Err(why) = parse(&text) {
            prop_assert_eq!(why.lines().count(), 1);
        }
    }
}

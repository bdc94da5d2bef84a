//! Migration policies through the API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;

use common::{Behaviour, World, reason};
use proto::error::ErrorDetails;
use proto::v1::*;
use tonic::Code;

fn apply(name: &str, labels: &[(&str, &str)], limits: Policy) -> ApplyMigrationPolicyRequest {
    let match_labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let spec = Some(MigrationPolicySpec { match_labels, limits: Some(limits) });
    ApplyMigrationPolicyRequest { name: name.into(), spec, ..Default::default() }
}

fn throttled(percent: u32) -> Policy {
    Policy { throttle_max_percent: percent, ..Policy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effective_policy_is_stored_shown_and_ordered() {
    let mut world = World::start();
    let a = world.agent("node-a", Behaviour::running(&["web"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let mut api = world.api.clone();
    // The scripted containers bear app=NAME.
    api.apply_migration_policy(apply("all", &[], Policy { max_rounds: 7, ..throttled(10) })).await.unwrap();
    api.apply_migration_policy(apply("web-b", &[("app", "web")], throttled(20))).await.unwrap();
    api.apply_migration_policy(apply("web-a", &[("app", "web")], throttled(30))).await.unwrap();
    let bandwidth = Policy { bandwidth_bytes_per_second: 5_000_000, ..Policy::default() };
    api.apply_migration_policy(apply("slow", &[("app", "other")], bandwidth)).await.unwrap();
    let own =
        Policy { max_downtime: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..Policy::default() };
    let spec = MigrationSpec {
        container: "web".into(),
        target_node: "node-b".into(),
        policy: Some(own),
        policy_name: "slow".into(),
        ..MigrationSpec::default()
    };
    let request = CreateMigrationRequest { spec: Some(spec), ..CreateMigrationRequest::default() };
    let dry = CreateMigrationRequest { validate_only: true, ..request.clone() };
    let planned = api.create_migration(dry).await.unwrap().into_inner().effective_policy.unwrap();
    api.create_migration(request.clone()).await.unwrap();
    let m = world.migration("web-1", "was admitted", |m| m.effective_policy.is_some()).await;
    let effective = m.effective_policy.clone().unwrap();
    assert_eq!(effective, planned);
    let policy = effective.policy.unwrap();
    assert_eq!(
        (policy.bandwidth_bytes_per_second, policy.throttle_max_percent, policy.max_rounds),
        (5_000_000, 30, 30)
    );
    assert_eq!((effective.policy_name.as_str(), effective.selected.as_str()), ("slow", "web-a"));
    let origins: HashMap<_, _> =
        effective.origins.iter().map(|o| (o.field.as_str(), o.origin.as_str())).collect();
    assert_eq!(origins["max_downtime"], "migration");
    assert_eq!(origins["bandwidth_bytes_per_second"], "policy/slow");
    assert_eq!(origins["throttle_max_percent"], "policy/web-a");
    assert_eq!(origins["max_rounds"], "default", "the most specific one alone counts");
    assert!(m.events.iter().any(|e| e.contains("web-b with as many labels")), "{:?}", m.events);
    a.called("Session 1").await;
    assert_eq!(a.started("web-1"), Some(Some(policy)), "the agent gets it");
    // A change does not touch what was admitted.
    api.apply_migration_policy(apply("web-a", &[("app", "web")], throttled(40))).await.unwrap();
    assert_eq!(world.migration("web-1", "is there", |_| true).await.effective_policy, m.effective_policy);
    // And a restart does not, either.
    world.process.kill();
    world.process.restart();
    assert_eq!(world.migration("web-1", "is there", |_| true).await.effective_policy, m.effective_policy);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_applied_checked_watched_and_deleted() {
    let mut world = World::with("max_outgoing_per_node = 1\n");
    let a = world.agent("node-a", Behaviour::running(&["web", "db"])).await;
    let _b = world.agent("node-b", Behaviour::default()).await;
    let mut api = world.api.clone();
    let refused = api.apply_migration_policy(apply("gentle", &[], throttled(200))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let (field, why) = ErrorDetails::of(&refused).fields[0].clone();
    assert_eq!(field, "spec.limits.throttle_max_percent");
    assert!(why.starts_with("200 is more than 95"), "{why}");
    let unnamed = api.apply_migration_policy(apply("No!", &[], throttled(1))).await.unwrap_err();
    assert_eq!(ErrorDetails::of(&unnamed).fields[0].0, "name");
    let bad = api.apply_migration_policy(apply("x", &[("", "y")], throttled(1))).await.unwrap_err();
    assert_eq!(ErrorDetails::of(&bad).fields[0].0, "spec.match_labels");

    let mut events =
        api.watch_migration_policies(WatchMigrationPoliciesRequest::default()).await.unwrap().into_inner();
    let mut result = async |request| api.apply_migration_policy(request).await.unwrap().into_inner().result();
    let dry = ApplyMigrationPolicyRequest { validate_only: true, ..apply("gentle", &[], throttled(1)) };
    assert_eq!(result(dry).await, ApplyResult::Created);
    assert_eq!(result(apply("gentle", &[], throttled(1))).await, ApplyResult::Created);
    assert_eq!(result(apply("gentle", &[], throttled(1))).await, ApplyResult::Unchanged);
    assert_eq!(result(apply("gentle", &[], throttled(2))).await, ApplyResult::Configured);

    // Named by one that waits: it stays.
    world.create("db", "node-b").await;
    a.called("Session 1").await;
    let spec = MigrationSpec { container: "web".into(), policy_name: "gentle".into(), ..Default::default() };
    let mut request = CreateMigrationRequest { spec: Some(spec), ..CreateMigrationRequest::default() };
    let mut api = world.api.clone();
    api.create_migration(request.clone()).await.unwrap();
    let delete = || DeleteMigrationPolicyRequest { name: "gentle".into(), validate_only: false };
    let refused = api.delete_migration_policy(delete()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "POLICY_IN_USE"));
    assert_eq!(ErrorDetails::of(&refused).preconditions[0].subject, "migration/web-1");
    api.cancel_migration(CancelMigrationRequest { name: "web-1".into() }).await.unwrap();
    api.delete_migration_policy(delete()).await.unwrap();
    let gone = api.delete_migration_policy(delete()).await.unwrap_err();
    assert_eq!(reason(&gone), "POLICY_NOT_FOUND");
    request.name = "again".into();
    assert_eq!(reason(&api.create_migration(request).await.unwrap_err()), "POLICY_NOT_FOUND");

    // Every change was told, migrations' were not, and revisions are those of the one sequence.
    let mut told = Vec::new();
    while told.len() < 3 {
        let event = tokio::time::timeout(common::LIMIT, events.message()).await.unwrap().unwrap().unwrap();
        let limits = event.policy.unwrap().spec.unwrap().limits.unwrap();
        told.push((limits.throttle_max_percent, event.deleted, event.revision));
    }
    assert_eq!((told[0].0, told[1].0, told[2].1), (1, 2, true));
    assert!(told[1].2 == told[0].2 + 1 && told[2].2 > told[1].2 + 1, "{told:?}");
    let log = common::text(&world.process.log());
    for line in ["ApplyMigrationPolicy", "DeleteMigrationPolicy"] {
        assert!(
            log.lines().any(|l| l.contains("audit") && l.contains(line)),
            "{line} is not in the audit log"
        );
    }
}

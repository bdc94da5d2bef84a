use proptest::prelude::*;
use proto::v1::{
    ApplyResult, Evacuation, EvacuationPhase, EvacuationSpec, Migration, MigrationPolicy,
    MigrationPolicySpec, MigrationSpec, Phase, Policy,
};

use super::*;

fn record(container: &str) -> Record {
    let spec = MigrationSpec { container: container.into(), ..MigrationSpec::default() };
    Record {
        migration: Migration {
            spec: Some(spec),
            phase: Phase::Pending.into(),
            created: Some(SystemTime::now().into()),
            ..Migration::default()
        },
        ..Record::default()
    }
}

#[test]
fn a_snapshot_that_was_being_written_does_not_hide_the_one_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let unfinished = dir.path().join("snap.FFFFFFFFFFFFFFF0.generating");
    let store = Store::open(dir.path()).unwrap();
    store.create(record("web"), None).unwrap();
    std::fs::write(&unfinished, "").unwrap();
    // It may be that of whoever has the store.
    Store::open(dir.path()).unwrap_err();
    assert!(unfinished.exists());
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(!unfinished.exists());
    assert_eq!(store.get("web-1").unwrap().unwrap().container(), "web");
}

fn policy(name: &str, timeout: u64) -> MigrationPolicy {
    let timeout = Some(prost_types::Duration { seconds: timeout.cast_signed(), nanos: 0 });
    let limits = Some(Policy { timeout, ..Policy::default() });
    let spec = Some(MigrationPolicySpec { limits, ..MigrationPolicySpec::default() });
    MigrationPolicy { name: name.into(), spec, ..MigrationPolicy::default() }
}

fn evacuation(node: &str, policy: &str) -> EvacuationRecord {
    let spec = EvacuationSpec { node: node.into(), policy: policy.into(), ..EvacuationSpec::default() };
    let evacuation =
        Evacuation { spec: Some(spec), phase: EvacuationPhase::Pending.into(), ..Evacuation::default() };
    EvacuationRecord { evacuation, ..EvacuationRecord::default() }
}

fn end(store: &Store, name: &str) {
    store
        .update(name, |r| {
            r.migration.phase = Phase::Succeeded.into();
            r.migration.finished = Some(SystemTime::UNIX_EPOCH.into());
        })
        .unwrap();
}

/// A copy of the files as they are: what a crash of the process leaves.
fn crash(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        } else {
            std::fs::create_dir(copy.path().join(entry.file_name())).unwrap();
            for file in std::fs::read_dir(entry.path()).unwrap() {
                let file = file.unwrap();
                let to = copy.path().join(entry.file_name()).join(file.file_name());
                std::fs::copy(file.path(), to).unwrap();
            }
        }
    }
    copy
}

#[test]
fn one_migration_per_container() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.create(record("web"), None).unwrap().name, "web-1");
    assert!(matches!(store.create(record("web"), None), Err(CreateError::Running(name)) if name == "web-1"));
    assert_eq!(store.create(record("db"), None).unwrap().name, "db-1");
    // An unknown outcome is not over.
    store.update("web-1", |r| r.migration.phase = Phase::OutcomeUnknown.into()).unwrap();
    assert!(matches!(store.create(record("web"), None), Err(CreateError::Running(_))));
    end(&store, "web-1");
    assert_eq!(store.create(record("web"), None).unwrap().name, "web-2");
    let mut taken = record("other");
    taken.migration.name = "web-2".into();
    assert!(matches!(store.create(taken, None), Err(CreateError::NameTaken(_))));
    let long = "a".repeat(63);
    assert_eq!(store.create(record(&long), None).unwrap().name.len(), 63);
}

#[test]
fn what_was_answered_survives_a_crash_after_every_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for n in 1..=20u64 {
        assert_eq!(store.next_epoch("web", 0).unwrap(), n);
        let made = store.create(record("web"), Some((&format!("r{n}"), vec![1]))).unwrap();
        let (_, updated) = store.update(&made.name, |r| r.migration.epoch = n).unwrap();

        let copy = crash(dir.path());
        let after = Store::open(copy.path()).unwrap();
        let found = after.get(&made.name).unwrap().unwrap();
        assert_eq!(found, updated);
        assert_eq!(after.active_of("web"), Some(made.name.clone()));
        assert_eq!(after.request(&format!("r{n}")).unwrap().unwrap().name, made.name);
        assert_eq!(*after.latest().borrow(), updated.migration.revision);
        assert_eq!(after.next_epoch("web", 0).unwrap(), n + 1);
        drop(after);
        end(&store, &made.name);
    }
}

#[test]
fn epochs_only_rise() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.next_epoch("web", 0).unwrap(), 1);
    assert_eq!(store.next_epoch("web", 41).unwrap(), 42);
    assert_eq!(store.next_epoch("web", 3).unwrap(), 43);
    assert_eq!(store.next_epoch("db", 0).unwrap(), 1);
}

#[test]
fn the_end_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.create(record("web"), None).unwrap();
    end(&store, "web-1");
    let before = store.get("web-1").unwrap().unwrap();
    store.update("web-1", |r| r.migration.phase = Phase::Failed.into()).unwrap();
    assert_eq!(store.get("web-1").unwrap().unwrap(), before);
    assert!(matches!(store.update("web-9", |_| ()), Err(StoreError::NoMigration(_))));
}

#[test]
fn another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.meta.insert("format", &[9]).unwrap();
    store.flush().unwrap();
    drop(store);
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Format(9))));
}

#[test]
fn history_is_pruned_and_what_is_not_over_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.create(record("old"), Some(("r", vec![]))).unwrap();
    store.create(record("running"), None).unwrap();
    store.create(record("owed"), None).unwrap();
    store.update("owed-1", |r| r.resolution = Some(Resolution::default())).unwrap();
    end(&store, "old-1");
    end(&store, "owed-1");
    let now = SystemTime::now() + Duration::from_secs(100);
    assert_eq!(store.prune(now, Duration::from_secs(10)).unwrap(), 1);
    assert!(store.get("old-1").unwrap().is_none());
    assert!(store.request("r").unwrap().is_none());
    assert!(store.get("running-1").unwrap().is_some());
    assert!(store.get("owed-1").unwrap().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// A watcher that stops and goes on anywhere sees every revision once, in order.
    #[test]
    fn watches_miss_nothing(ops in proptest::collection::vec((0u8..3, 1usize..5), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut seen = 0;
        for (container, batch) in ops {
            let container = format!("c{container}");
            if batch == 4 {
                // Other kinds of objects share the one sequence.
                drop(store.apply_policy(policy("p", seen), false).unwrap());
            }
            match store.active_of(&container) {
                Some(name) => drop(store.update(&name, |r| r.migration.bytes_sent += 1).unwrap()),
                None => drop(store.create(record(&container), None).unwrap()),
            }
            let Changes::Since(changes) = store.changes(seen, batch).unwrap() else { panic!("compacted") };
            for (revision, change) in changes {
                prop_assert_eq!(revision, seen + 1);
                prop_assert_eq!(change.object.unwrap().revision(), revision);
                seen = revision;
            }
        }
        prop_assert_eq!(*store.latest().borrow(), seen);
        let kinds = [Kind::Migration, Kind::Policy, Kind::Evacuation];
        let snapshots: Vec<_> = kinds.into_iter().map(|kind| store.snapshot(kind, "").unwrap()).collect();
        prop_assert!(snapshots.iter().all(|(at, _)| *at == seen));
        let newest = snapshots.iter().flat_map(|(_, all)| all).map(Object::revision).max();
        prop_assert_eq!(newest, Some(seen));
        for (kind, (_, all)) in kinds.into_iter().zip(&snapshots) {
            for object in all {
                let alone = store.snapshot(kind, object.name()).unwrap();
                prop_assert_eq!(alone, (seen, vec![object.clone()]));
            }
            prop_assert_eq!(store.snapshot(kind, "nobody").unwrap(), (seen, vec![]));
        }
    }
}

#[test]
fn a_watch_from_too_long_ago_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.create(record("web"), None).unwrap();
    store.update("web-1", |r| r.migration.bytes_sent += 1).unwrap();
    store.log.remove(1u64.to_be_bytes()).unwrap();
    assert!(matches!(store.changes(0, 10).unwrap(), Changes::Compacted(2)));
    assert!(matches!(store.changes(1, 10).unwrap(), Changes::Since(found) if found.len() == 1));
    assert!(matches!(store.changes(u64::MAX, 10).unwrap(), Changes::Since(found) if found.is_empty()));
}

#[test]
fn a_policy_is_created_configured_or_unchanged_and_kept_while_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let apply = |seconds, dry| store.apply_policy(policy("gentle", seconds), dry).unwrap();
    assert_eq!(apply(1, true).1, ApplyResult::Created);
    assert!(store.policies().unwrap().is_empty(), "a dry run changes nothing");
    let (made, result) = apply(1, false);
    assert_eq!(result, ApplyResult::Created);
    assert_eq!(apply(1, false), (made.clone(), ApplyResult::Unchanged));
    let (changed, result) = apply(2, false);
    assert_eq!((result, &changed.uid, changed.created), (ApplyResult::Configured, &made.uid, made.created));

    let mut waits = record("web");
    waits.migration.spec.as_mut().unwrap().policy_name = "gentle".into();
    store.create(waits.clone(), None).unwrap();
    store.create_evacuation(evacuation("a", "gentle"), None).unwrap();
    let Err(DeleteError::InUse(InUse { by })) = store.delete_policy("gentle", false) else { panic!() };
    assert_eq!(by, ["evacuation/drain-a-1", "migration/web-1"]);
    // Once it has been admitted it has its limits.
    store.update("web-1", |r| r.admitted = true).unwrap();
    store.update_evacuation("drain-a-1", |r| r.evacuation.set_phase(EvacuationPhase::Succeeded)).unwrap();
    store.delete_policy("gentle", true).unwrap();
    assert!(store.policy("gentle").unwrap().is_some(), "a dry run changes nothing");
    store.delete_policy("gentle", false).unwrap();
    assert!(matches!(store.delete_policy("gentle", false), Err(DeleteError::NotFound)));
    let Changes::Since(changes) = store.changes(0, 100).unwrap() else { panic!() };
    assert!(changes.last().unwrap().1.deleted);
    waits.migration.spec.as_mut().unwrap().container = "db".into();
    assert!(matches!(store.create(waits, None), Err(CreateError::NoPolicy(name)) if name == "gentle"));
}

#[test]
fn one_evacuation_per_node_and_users_before_evacuations() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.create_evacuation(evacuation("a", ""), Some(("r", vec![]))).unwrap().name, "drain-a-1");
    let second = store.create_evacuation(evacuation("a", ""), None);
    assert!(matches!(second, Err(EvacuationError::Running(name)) if name == "drain-a-1"));
    assert_eq!(store.create_evacuation(evacuation("b", ""), None).unwrap().name, "drain-b-1");
    let mut drained = record("db");
    drained.migration.evacuation = "drain-a-1".into();
    store.create(drained, None).unwrap();
    store.create(record("web"), None).unwrap();
    let order: Vec<_> = store.active().unwrap().into_iter().map(|r| r.migration.name).collect();
    assert_eq!(order, ["web-1", "db-1"], "the older one is an evacuation's");

    // What an evacuation still reads is kept, and it goes on after a crash.
    end(&store, "db-1");
    let later = SystemTime::now() + Duration::from_secs(100);
    store.prune(later, Duration::from_secs(10)).unwrap();
    assert!(store.get("db-1").unwrap().is_some());
    let copy = crash(dir.path());
    let after = Store::open(copy.path()).unwrap();
    assert_eq!(after.evacuation_of("a").as_deref(), Some("drain-a-1"));
    drop(after);
    store
        .update_evacuation("drain-a-1", |r| {
            r.evacuation.set_phase(EvacuationPhase::Failed);
            r.evacuation.finished = Some(SystemTime::UNIX_EPOCH.into());
        })
        .unwrap();
    assert_eq!(store.create_evacuation(evacuation("a", ""), None).unwrap().name, "drain-a-2");
    assert_eq!(store.prune(later, Duration::from_secs(10)).unwrap(), 2);
    assert!(store.get("db-1").unwrap().is_none() && store.evacuation("drain-a-1").unwrap().is_none());
}

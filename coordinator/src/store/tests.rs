use proptest::prelude::*;
use proto::v1::{MigrationSpec, Phase};

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
            match store.active_of(&container) {
                Some(name) => drop(store.update(&name, |r| r.migration.bytes_sent += 1).unwrap()),
                None => drop(store.create(record(&container), None).unwrap()),
            }
            let Changes::Since(changes) = store.changes(seen, batch).unwrap() else { panic!("compacted") };
            for (revision, migration) in changes {
                prop_assert_eq!(revision, seen + 1);
                prop_assert_eq!(migration.revision, revision);
                seen = revision;
            }
        }
        prop_assert_eq!(*store.latest().borrow(), seen);
        let (at, all) = store.snapshot().unwrap();
        prop_assert_eq!(at, seen);
        prop_assert_eq!(all.iter().map(|m| m.revision).max(), Some(seen));
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

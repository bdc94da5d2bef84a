use proptest::prelude::*;

use super::*;
use crate::commit::Owner;
use crate::session::ports::{Throttled, ThrottledSetting};
use crate::session::status::Role;

fn begin(container: &str, epoch: u64, role: Role) -> Record {
    Record::Begin(Begin {
        container: container.to_owned(),
        migration: format!("{container}-{epoch}"),
        epoch,
        boot: "boot".to_owned(),
        role,
        peer: "node-b".to_owned(),
        peer_address: "10.0.0.2:7000".to_owned(),
        cgroup: "/sys/fs/cgroup/x".into(),
        frozen_before: false,
    })
}

fn throttled(value: &str) -> Throttled {
    let written = vec![value.to_owned()];
    Throttled(vec![ThrottledSetting {
        path: "/cg/cpu.max".into(),
        original: "max 100000".to_owned(),
        written,
    }])
}

fn record() -> impl Strategy<Value = Record> {
    let name = prop_oneof![Just("web".to_owned()), Just("db".to_owned())];
    (0u8..9, name, 1u64..6, any::<bool>()).prop_map(|(kind, container, epoch, flag)| match kind {
        0 => Record::Epoch { container, epoch },
        1 => begin(&container, epoch, if flag { Role::Source } else { Role::Target }),
        2 => Record::Ready { container, epoch, boot: "boot".to_owned() },
        3 => Record::Committed { container, epoch },
        4 => Record::CommitSeen { container, epoch },
        5 => Record::Owned { container, epoch },
        6 => Record::Ended { container, epoch, end: if flag { End::Killed } else { End::Undone } },
        7 => Record::Throttled { container, epoch, throttled: throttled(if flag { "1" } else { "2" }) },
        _ => Record::Resolved { container, epoch, owner: if flag { Owner::Source } else { Owner::Target } },
    })
}

fn state(records: &[Record]) -> State {
    let mut state = State::default();
    records.iter().for_each(|record| state.apply(record));
    state
}

proptest! {
    #[test]
    fn compaction_loses_nothing(records in prop::collection::vec(record(), 0..40)) {
        let whole = state(&records);
        prop_assert_eq!(state(&whole.records()), whole);
    }

    #[test]
    fn epochs_only_rise(records in prop::collection::vec(record(), 0..40)) {
        let mut state = State::default();
        let mut highest = std::collections::BTreeMap::new();
        for record in &records {
            state.apply(record);
            for (name, entry) in &state.entries {
                let before = highest.insert(name.clone(), entry.highest).unwrap_or(0);
                prop_assert!(entry.highest >= before);
                if let Some(open) = &entry.open {
                    prop_assert!(open.begin.epoch <= entry.highest);
                }
            }
        }
    }

    #[test]
    fn what_was_appended_is_read_again(records in prop::collection::vec(record(), 0..20)) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.append_sync(&records).unwrap();
        let state = journal.state();
        drop(journal);
        prop_assert_eq!(Journal::open(dir.path()).unwrap().state(), state);
    }
}

/// The bytes of a journal with these records, and where each ends.
fn bytes(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = MAGIC.to_vec();
    let ends = records
        .iter()
        .map(|record| {
            encode(record, &mut bytes).unwrap();
            bytes.len()
        })
        .collect();
    (bytes, ends)
}

fn sample() -> Vec<Record> {
    let name = || "web".to_owned();
    vec![
        begin("web", 7, Role::Source),
        Record::Committed { container: name(), epoch: 7 },
        Record::Ended { container: name(), epoch: 7, end: End::Killed },
    ]
}

#[test]
fn a_record_torn_anywhere_is_cut_off_and_the_rest_stays() {
    let (bytes, ends) = bytes(&sample());
    for cut in MAGIC.len()..bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let read = parse(Path::new("j"), &bytes[..cut]).unwrap();
        assert_eq!(read, state(&sample()[..whole]), "cut at {cut}");
        // A file system that extended the file and did not write it leaves zeros.
        let mut zeros = bytes[..cut].to_vec();
        zeros.resize(bytes.len() + 512, 0);
        if ends.contains(&cut) || cut == MAGIC.len() {
            assert_eq!(parse(Path::new("j"), &zeros).unwrap(), read, "zeros from {cut}");
        }
    }
}

#[test]
fn a_torn_journal_opens_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, _) = bytes(&sample());
    std::fs::write(dir.path().join("journal"), &bytes[..bytes.len() - 3]).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert!(journal.entry("web").open.is_some_and(|open| open.committed));
    journal.append_sync(&sample()[2..]).unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.entry("web").ended, Some((7, End::Killed)));
    assert_eq!(journal.entry("web").open, None);
    assert_eq!(journal.entry("web").highest, 7);
}

#[test]
fn damage_before_the_end_is_never_guessed_away() {
    let (bytes, ends) = bytes(&sample());
    for at in MAGIC.len()..ends[1] {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            match parse(Path::new("j"), &damaged) {
                Err(JournalError::Damaged { .. }) => {}
                // A length that now points past the end looks like a torn record: then nothing after
                // it may be believed, and what stood before it still stands.
                Ok(read) => {
                    let before = ends.iter().filter(|end| **end <= at).count();
                    assert_eq!(read, state(&sample()[..before]), "byte {at} bit {bit}");
                }
                Err(other) => panic!("byte {at} bit {bit}: {other}"),
            }
        }
    }
}

#[test]
fn another_file_is_refused() {
    assert!(matches!(parse(Path::new("j"), b"something else"), Err(JournalError::Magic(_))));
    assert!(matches!(parse(Path::new("j"), b"abc"), Err(JournalError::Magic(_))));
    assert_eq!(parse(Path::new("j"), b"").unwrap(), State::default());
}

#[test]
fn after_a_failed_write_the_next_sync_writes_everything_anew() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.append_sync(&[begin("web", 1, Role::Source)]).unwrap();
    // Everything written to /dev/full fails with ENOSPC.
    journal.lock().file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let committed = Record::Committed { container: "web".to_owned(), epoch: 1 };
    assert!(journal.append_sync(&[committed]).is_err());
    assert!(journal.entry("web").open.unwrap().committed, "an append that failed counts as written");
    journal.sync().unwrap();
    drop(journal);
    assert!(Journal::open(dir.path()).unwrap().entry("web").open.unwrap().committed);
}

#[test]
fn opening_compacts() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    for epoch in 1..200 {
        journal.append(&[begin("web", epoch, Role::Source)]).unwrap();
        journal.append(&[Record::Ended { container: "web".to_owned(), epoch, end: End::Undone }]).unwrap();
    }
    journal.sync().unwrap();
    let before = std::fs::metadata(dir.path().join("journal")).unwrap().len();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    let after = std::fs::metadata(dir.path().join("journal")).unwrap().len();
    assert!(after * 50 < before, "{after} of {before}");
    assert_eq!(journal.entry("web").highest, 199);
}

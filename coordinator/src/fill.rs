//! Fills a store with migrations that ended, by the functions that the coordinator writes it with: what a start on a long
//! history is measured with.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use proto::v1::{Downtime, DowntimeStep, Migration, MigrationSpec, Phase, Round};

use crate::core::{End, set_condition};
use crate::policy::resolve;
use crate::store::{Record, Store};

/// Migrations that each container has had.
const EACH: u64 = 20;
/// Rounds of each.
const ROUNDS: u32 = 4;
/// The steps of each pause, as agents report them.
const STEPS: [&str; 16] = [
    "freeze.stop",
    "freeze.facts",
    "last-pages.scan",
    "last-pages.send",
    "capture.threads",
    "capture.descriptors",
    "capture.sockets",
    "capture.groups",
    "wire.image",
    "restore.threads",
    "restore.files",
    "restore.attributes",
    "commit.sync",
    "network.attach",
    "network.announce",
    "network.deliver",
];

/// Writes so many migrations into the store of the state directory `dir`, which no coordinator has open.
///
/// # Errors
/// When the store cannot be opened or written.
pub(crate) fn fill(dir: &Path, migrations: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let store = Store::open(&dir.join("store"))?;
    for index in 0..migrations {
        one(&store, index)?;
    }
    store.flush()?;
    Ok(())
}

/// Creates a migration, gives it an epoch and ends it.
fn one(store: &Store, index: u64) -> anyhow::Result<()> {
    let container = format!("service-{}", index / EACH);
    let (source, target) = if index.is_multiple_of(2) { ("node-a", "node-b") } else { ("node-b", "node-a") };
    let spec = MigrationSpec { container: container.clone(), ..MigrationSpec::default() };
    let (effective, origins) = resolve(&spec, &std::collections::HashMap::new(), &[])?;
    let migration = Migration {
        uid: uuid::Uuid::new_v4().to_string(),
        created: Some(SystemTime::now().into()),
        source_node: source.into(),
        requested_by: "admin/fill".into(),
        spec: Some(spec),
        phase: Phase::Pending.into(),
        ..Migration::default()
    };
    let mut record = Record { migration, ..Record::default() };
    set_condition(&mut record.migration.conditions, "Succeeded", "Unknown", "Pending", "");
    record.log("created by admin/fill");
    let id = format!("fill-{index}");
    let made = store.create(record, Some((&id, container.clone().into_bytes())))?;
    let epoch = store.next_epoch(&container, 0)?;
    store.update(&made.name, |record| {
        origins.into_iter().for_each(|line| record.log(line));
        record.log(format!("{container} moves from {source} to {target}"));
        record.admitted = true;
        record.start_ordered = true;
        record.start_seen = true;
        record.attempts = 1;
        record.memory = 256 << 20;
        record.source_events = (1..=ROUNDS).map(|n| format!("round {n}: NextRound: it shrinks")).collect();
        let m = &mut record.migration;
        m.effective_policy = Some(effective);
        m.target_node = target.into();
        m.epoch = epoch;
        m.rounds = (1..=ROUNDS).map(round).collect();
        m.bytes_sent = m.rounds.iter().map(|round| round.bytes).sum();
        m.total_seconds = 1.5;
        m.downtime = Some(downtime());
        End::new(Phase::Succeeded, "Committed", format!("{container} runs on {target}")).apply(record);
        record.log("it is over");
    })?;
    Ok(())
}

fn round(index: u32) -> Round {
    let pages = 65_536 >> (2 * index);
    Round {
        index,
        pages,
        zero_pages: 100,
        bytes: pages * 4096,
        seconds: 1.0 / f64::from(index),
        dirty_bytes_per_second: 20e6,
        transfer_bytes_per_second: 500e6,
        predicted_pause_ms: 40.0 / f64::from(index),
        decision: if index == ROUNDS { "Cut" } else { "NextRound" }.into(),
        reason: "the predicted pause is compared with the limit".into(),
    }
}

fn downtime() -> Downtime {
    let step = |name: &&str| DowntimeStep { name: (*name).to_owned(), ms: 0.7 };
    let steps: Vec<_> = STEPS.iter().map(step).collect();
    Downtime {
        total_ms: 0.7 * steps.len() as f64,
        freeze_ms: 1.4,
        capture_ms: 2.8,
        steps,
        ..Downtime::default()
    }
}

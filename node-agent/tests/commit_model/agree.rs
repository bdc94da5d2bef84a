//! The model's journal says what the product's does.

use std::path::PathBuf;

use node_agent::commit::Owner;
use node_agent::journal::{self, Begin, End};
use node_agent::session::status::Role as AgentRole;

use super::state::{Entry, Open, Record, Role};

const NAME: &str = "web";

fn real(record: Record) -> journal::Record {
    let container = NAME.to_owned();
    match record {
        Record::Epoch(epoch) => journal::Record::Epoch { container, epoch },
        Record::Begin(epoch, role) => journal::Record::Begin(Begin {
            container,
            migration: "m".to_owned(),
            epoch,
            boot: "0".to_owned(),
            role: if role == Role::Source { AgentRole::Source } else { AgentRole::Target },
            peer: "node-b".to_owned(),
            peer_address: String::new(),
            cgroup: PathBuf::new(),
            frozen_before: false,
        }),
        Record::Ready(epoch, boot) => journal::Record::Ready { container, epoch, boot: boot.to_string() },
        Record::Committed(epoch) => journal::Record::Committed { container, epoch },
        Record::CommitSeen(epoch) => journal::Record::CommitSeen { container, epoch },
        Record::Owned(epoch) => journal::Record::Owned { container, epoch },
        Record::Ended(epoch) => journal::Record::Ended { container, epoch, end: End::Undone },
        Record::Resolved(epoch, owner) => journal::Record::Resolved { container, epoch, owner },
    }
}

fn reduced(state: &journal::State) -> Entry {
    let entry = state.entries.get(NAME).cloned().unwrap_or_default();
    Entry {
        highest: entry.highest,
        open: entry.open.map(|open| Open {
            epoch: open.begin.epoch,
            role: if open.begin.role == AgentRole::Source { Role::Source } else { Role::Target },
            committed: open.committed,
            ready: open.ready.map(|boot| boot.parse().expect("a boot of the model")),
            seen: open.seen,
        }),
        owned: entry.owned,
        resolved: entry.resolved,
    }
}

fn compare(model: Entry, product: &journal::State, more: usize, compared: &mut usize) {
    assert_eq!(model, reduced(product));
    *compared += 1;
    if more == 0 {
        return;
    }
    for epoch in 1..=2 {
        for record in [
            Record::Epoch(epoch),
            Record::Begin(epoch, Role::Source),
            Record::Begin(epoch, Role::Target),
            Record::Ready(epoch, 1),
            Record::Committed(epoch),
            Record::CommitSeen(epoch),
            Record::Owned(epoch),
            Record::Ended(epoch),
            Record::Resolved(epoch, Owner::Target),
        ] {
            let (mut model, mut product) = (model, product.clone());
            model.apply(record);
            product.apply(&real(record));
            compare(model, &product, more - 1, compared);
        }
    }
}

#[test]
fn journal_and_model_agree() {
    let mut compared = 0;
    compare(Entry::default(), &journal::State::default(), 3, &mut compared);
    assert_eq!(compared, 1 + 18 + 18 * 18 + 18 * 18 * 18);
}

//! What a container has, as the API and the command line show it.

use engine::source::{Inventory, Item};
use proto::v1;

use crate::server::convert::refusal;
use crate::table::Table;

/// Most items of an inventory in one answer.
const MAX_ITEMS: usize = 10_000;

/// An inventory as the API shows it, with what the host found against the container, and how many were left out.
pub(crate) fn items(inventory: &Inventory) -> (Vec<v1::InventoryItem>, u32) {
    let named: Vec<&image::Refusal> =
        inventory.items.iter().filter_map(|item| item.refusal.as_ref()).collect();
    let host = inventory.refusals.iter().filter(|refusal| !named.contains(refusal));
    let of_host = |found: &image::Refusal| {
        let v1::Refusal { pid, subject, reason, way_out } = refusal(found);
        let kind = if subject.starts_with("mount") { "mount" } else { "container" }.to_owned();
        v1::InventoryItem { kind, pid, subject, what: String::new(), movable: false, reason, way_out }
    };
    let of_engine = |item: &Item| {
        let reason = item.refusal.as_ref();
        let part = image::Refusal {
            pid: item.pid,
            subject: item.subject.clone(),
            reason: reason.map_or_else(String::new, |found| found.reason.clone()),
            way_out: reason.map_or_else(String::new, |found| found.way_out.clone()),
        };
        let v1::Refusal { pid, subject, reason, way_out } = refusal(&part);
        let (kind, what) = (item.kind.to_owned(), item.what.clone());
        v1::InventoryItem { kind, pid, subject, what, movable: item.refusal.is_none(), reason, way_out }
    };
    let mut all: Vec<_> = inventory.items.iter().map(of_engine).chain(host.map(of_host)).collect();
    let left_out = all.len().saturating_sub(MAX_ITEMS);
    if left_out > 0 {
        all.sort_by_key(|item| item.movable);
        all.truncate(MAX_ITEMS);
    }
    (all, u32::try_from(left_out).unwrap_or(u32::MAX))
}

/// Columns, what does not move last, where it is seen.
#[must_use]
pub fn table(items: &[v1::InventoryItem]) -> Table {
    let mut table = Table::new(&["KIND", "PID", "PART", "WHAT", "VERDICT", "REASON", "WAY OUT"]);
    let (kept, refused): (Vec<_>, Vec<_>) = items.iter().partition(|item| item.movable);
    for item in kept.into_iter().chain(refused) {
        let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let verdict = if item.movable { "moves" } else { "refused" };
        let pid = if item.pid == 0 { "-".to_owned() } else { item.pid.to_string() };
        let part = if item.kind == "process" { "" } else { item.subject.as_str() };
        table.row(vec![
            item.kind.clone(),
            pid,
            dash(part),
            dash(&item.what),
            verdict.to_owned(),
            item.reason.clone(),
            item.way_out.clone(),
        ]);
    }
    table
}

//! `check`: what this host can do, and whether a tree can move.

use std::process::ExitCode;

use engine::source::{Inventory, Namespaces, TreeSpec, inspect_items};
use serde_json::{Value, json};

use super::{Format, answer, complain};
use crate::facts;
use crate::inventory;
use crate::runtime::cgroup::Layout;
use crate::telemetry::chain;
use crate::transfer::PROTOCOL_VERSIONS;

/// Something cannot move, or the host lacks what the agent needs.
const REFUSED: u8 = 3;

pub(super) fn main(pid: Option<i32>, format: Format) -> ExitCode {
    match pid {
        Some(pid) => tree(pid, format),
        None => host(format),
    }
}

fn host(format: Format) -> ExitCode {
    let layout = match Layout::read() {
        Ok(layout) => layout,
        Err(error) => {
            complain(&chain(&error));
            return ExitCode::from(REFUSED);
        }
    };
    let facts = facts::node_facts(&layout, &PROTOCOL_VERSIONS);
    let missing = facts::missing_capabilities();
    let fit = facts.tracker != "none" && !missing.iter().any(|(name, _)| is_needed(name));
    match format {
        Format::Json => {
            let hierarchies: Vec<Value> = layout
                .hierarchies
                .iter()
                .map(|h| json!({"mount": h.mount, "version": if h.unified { 2 } else { 1 }, "controllers": h.controllers}))
                .collect();
            let missing: Vec<Value> = missing
                .iter()
                .map(|(name, meaning)| json!({"capability": name, "meaning": meaning}))
                .collect();
            answer(
                &json!({
                    "ok": fit,
                    "kernel": facts.kernel_release,
                    "arch": facts.arch,
                    "tracker": facts.tracker,
                    "cgroup": {"layout": facts.cgroup, "hierarchies": hierarchies},
                    "missing_capabilities": missing,
                    "vdso_hash": format!("{:016x}", facts.vdso_hash),
                    "xsave_size": facts.xsave_size,
                    "xcr0": format!("{:#x}", facts.xcr0),
                    "memory_total": facts.memory_total,
                    "memory_free": facts.memory_free,
                })
                .to_string(),
            );
        }
        Format::Text => {
            answer(&format!("kernel        {} ({})", facts.kernel_release, facts.arch));
            answer(&format!("tracker       {}", tracker_text(&facts.tracker)));
            answer(&format!("cgroups       {}", facts.cgroup));
            answer(&format!(
                "memory        {} MiB free of {}",
                facts.memory_free >> 20,
                facts.memory_total >> 20
            ));
            if missing.is_empty() {
                answer("capabilities  all that are needed");
            }
            for (name, meaning) in &missing {
                answer(&format!("missing       {name}: {meaning}"));
            }
        }
    }
    if fit { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

/// Nothing can be moved without it.
fn is_needed(capability: &str) -> bool {
    matches!(capability, "CAP_SYS_ADMIN" | "CAP_SYS_PTRACE" | "CAP_NET_ADMIN")
}

fn tracker_text(tracker: &str) -> &str {
    match tracker {
        "PagemapScan" => "PagemapScan (rounds need no freeze)",
        "SoftDirty" => "SoftDirty (each round freezes briefly)",
        _ => {
            "none: this kernel has neither PAGEMAP_SCAN (6.7) nor CONFIG_MEM_SOFT_DIRTY; containers cannot leave it"
        }
    }
}

fn tree(pid: i32, format: Format) -> ExitCode {
    // In a pid namespace of its own it is a container; else a tree of this host.
    let own = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    let namespaces = match (own("self"), own(&pid.to_string())) {
        (Ok(ours), Ok(theirs)) if ours != theirs => Namespaces::Own,
        _ => Namespaces::Host,
    };
    let spec = TreeSpec {
        root: pid,
        cgroup: None,
        externals: Vec::new(),
        terminals: Vec::new(),
        namespaces,
        mounts: engine::source::MountNamespaces::default(),
    };
    match inspect_items(&spec) {
        Ok(inventory) => {
            show(pid, &inventory, format);
            if inventory.refusals.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
        }
        Err(error) => {
            complain(&format!("process {pid}: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn show(pid: i32, inventory: &Inventory, format: Format) {
    let (items, left_out) = inventory::items(inventory);
    match format {
        Format::Json => {
            let refusals: Vec<Value> = inventory
                .refusals
                .iter()
                .map(|refusal| json!({"what": refusal.to_string(), "pid": refusal.pid, "reason": refusal.reason, "way_out": refusal.way_out}))
                .collect();
            let items: Vec<Value> = items
                .iter()
                .map(|item| {
                    json!({
                        "kind": item.kind, "pid": item.pid, "part": item.subject, "what": item.what, "moves": item.movable,
                        "reason": item.reason, "way_out": item.way_out,
                    })
                })
                .collect();
            answer(
                &json!({
                    "ok": inventory.refusals.is_empty(),
                    "pid": pid,
                    "processes": inventory.processes,
                    "threads": inventory.threads,
                    "descriptors": inventory.descriptors,
                    "connections": inventory.connections,
                    "resident_bytes": inventory.resident_bytes,
                    "refusals": refusals,
                    "items": items,
                    "items_left_out": left_out,
                })
                .to_string(),
            );
        }
        Format::Text => {
            answer(inventory::table(&items).render(None).trim_end());
            if left_out > 0 {
                answer(&format!("... and {left_out} more, which move"));
            }
            answer(&format!(
                "{} processes, {} threads, {} descriptors, {} connections, {} MiB resident",
                inventory.processes,
                inventory.threads,
                inventory.descriptors,
                inventory.connections,
                inventory.resident_bytes >> 20
            ));
            match inventory.refusals.len() {
                0 => answer("it can move"),
                count => answer(&format!("it cannot move: {count} of these stand in the way")),
            }
        }
    }
}

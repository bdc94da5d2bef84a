//! Looking without touching.

use image::state::Needs;

use super::capture::files;
use super::cpu_clocks;
use super::findings::Findings;
use super::huge;
use super::inventory;
use super::look::{Depth, Flags, Look, Looker, tables};
use super::memory::guards;
use super::numa;
use super::outside;
use super::owners;
use super::sockets::{Kind, tcp_state};
use super::spec::TreeSpec;
use super::{InspectError, Inventory};
use crate::proc::{self, ProcError, limits, timers};

/// See [`super::inspect`] and [`super::inspect_items`].
pub(crate) fn inspect(spec: &TreeSpec, items: bool) -> Result<Inventory, InspectError> {
    let mut looker = Looker::new(spec)?;
    let mut findings = Findings::default();
    let look = looker.look(Flags::Exact, Depth::Everything, &mut findings)?;
    outside::check(&look, spec.root, &mut findings)?;
    owners::check(&look, &mut findings)?;
    let policies = numa::look(&look, &mut findings)?;
    cpu_clocks::check(&look, &mut findings)?;
    let processes = &look.processes;
    Ok(Inventory {
        processes: processes.len(),
        threads: processes.iter().map(|found| found.process.tids.len()).sum(),
        descriptors: tables(processes)
            .filter(|(found, table)| {
                table.task != found.process.pid || found.shared.is_first_of_files(found.process.inner)
            })
            .map(|(_, table)| table.descriptors.len())
            .sum(),
        connections: tables(processes)
            .flat_map(|(_, table)| table.sockets.values())
            .filter(|kind| matches!(kind, Kind::Tcp(tcp) if tcp.state == tcp_state::ESTABLISHED))
            .count(),
        resident_bytes: processes.iter().map(|found| found.process.stat.rss_pages * image::PAGE_SIZE).sum(),
        needs: Needs {
            ipc_ids: looker.sysv.any,
            nodes: policies.nodes.into_iter().collect(),
            huge_pages: huge::needs(&look, &looker)?,
            ..needs(&look)?
        },
        items: if items { inventory::list(&look, &findings.list) } else { Vec::new() },
        refusals: findings.list,
        shape: look.shape,
    })
}

/// What would fail only at the switchover if a target could not give it.
fn needs(look: &Look) -> Result<Needs, InspectError> {
    let mut needs = Needs { oom_score_adj: i32::MAX, ..Needs::default() };
    for found in files::live(look) {
        match add_needs(found.process.pid, &mut needs) {
            // It ended while it was looked at.
            Err(error) if error.is_gone() => {}
            other => other?,
        }
        // A kernel that shows none has none, and what comes later shows at the freeze.
        needs.guard_pages |= guards::any(found.process.pid, &found.mappings).unwrap_or(false);
    }
    Ok(needs)
}

fn add_needs(pid: i32, needs: &mut Needs) -> Result<(), ProcError> {
    needs.posix_timers |= !timers::read(pid)?.is_empty();
    for (resource, limit) in limits::read(pid)?.into_iter().enumerate() {
        if needs.hard_limits.len() <= resource {
            needs.hard_limits.resize(resource + 1, 0);
        }
        needs.hard_limits[resource] = needs.hard_limits[resource].max(limit.hard);
    }
    let score = proc::read_number(pid, "oom_score_adj", 10)?;
    needs.oom_score_adj = needs.oom_score_adj.min(i32::try_from(score).unwrap_or(0));
    Ok(())
}

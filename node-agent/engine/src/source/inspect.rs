//! Looking without touching.

use super::findings::Findings;
use super::look::{Depth, Flags, Looker};
use super::outside;
use super::sockets::{Kind, tcp_state};
use super::spec::TreeSpec;
use super::{InspectError, Inventory};

/// See [`super::inspect`].
pub(crate) fn inspect(spec: &TreeSpec) -> Result<Inventory, InspectError> {
    let mut looker = Looker::new(spec)?;
    let mut findings = Findings::default();
    let look = looker.look(Flags::Exact, Depth::Everything, &mut findings)?;
    outside::check(&look, spec.root, &mut findings)?;
    let processes = &look.processes;
    Ok(Inventory {
        processes: processes.len(),
        threads: processes.iter().map(|found| found.process.tids.len()).sum(),
        descriptors: processes.iter().map(|found| found.descriptors.len()).sum(),
        connections: processes
            .iter()
            .flat_map(|found| found.sockets.values())
            .filter(|kind| matches!(kind, Kind::Tcp { state, .. } if *state == tcp_state::ESTABLISHED))
            .count(),
        resident_bytes: processes.iter().map(|found| found.process.stat.rss_pages * image::PAGE_SIZE).sum(),
        refusals: findings.list,
        shape: look.shape,
    })
}

//! Memory policies of mappings, which are not carried yet. See mbind(2), numa(7).

use super::capture::files::live;
use super::error::InspectError;
use super::findings::Findings;
use super::look::Look;
use crate::proc::{self, ProcError};

/// Looks through /proc/PID/numa_maps, which a kernel without NUMA does not have. It walks all page tables: not for
/// the freeze.
pub(crate) fn check(look: &Look, findings: &mut Findings) -> Result<(), InspectError> {
    for found in live(look) {
        let maps = match proc::read(found.process.pid, "numa_maps") {
            Ok(maps) => maps,
            Err(error) if error.is_gone() => continue,
            Err(error) => return Err(error.into()),
        };
        for line in proc::lines(&maps) {
            let mut words = proc::words(line);
            let parsed = words.next().and_then(proc::hex::<u64>).zip(words.next());
            let Some((address, policy)) = parsed else {
                return Err(ProcError::parse("numa_maps", proc::text(line)).into());
            };
            if policy != b"default" {
                findings.address(
                    found.process.inner,
                    address,
                    format!(
                        "its memory has a NUMA policy ({}), which is not carried yet",
                        proc::text(policy)
                    ),
                    "start it without numactl, mbind and set_mempolicy",
                );
                // One is enough to know: a policy of the process shows with every mapping.
                break;
            }
        }
    }
    Ok(())
}

//! Memory policies of threads and of mappings. See set_mempolicy(2), mbind(2), numa(7).
//!
//! A thread's own is asked of it with all the rest. Those of mappings are asked one by one, and only where there is any sign
//! of one: a process that shows none in /proc/PID/numa_maps and whose threads have none is not asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use image::Pid;
use image::shape::Backing;
use image::state::{Policy, RangePolicy};
use sys::tape::{Block, CallId, Outcome, Program};

use super::capture::files::live;
use super::error::{InspectError, SourceError};
use super::findings::Findings;
use super::look::Look;
use super::mm::Mapping;
use super::session::{Frozen, Tracked};
use super::tree::Process;
use crate::proc::{self, ProcError, maps};

/// MPOL_F_ADDR: the policy of the mapping at an address.
const ADDR: i32 = 2;
/// Nodes that a kernel can have at most, and one: it reads one less than it is told.
const MOST_NODES: i32 = 1024;
/// MPOL_F_RELATIVE_NODES as numa_maps writes it: the numbers are none of nodes.
const RELATIVE: &[u8] = b"=relative";
/// Mappings asked for at once.
const BATCH: usize = 128;

/// What one call of get_mempolicy(2) leaves where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    mode: Block,
    nodes: Block,
    call: CallId,
}

impl Ask {
    /// The policy of the thread itself.
    pub(crate) fn own(program: &mut Program) -> Self {
        Self::add(program, 0, 0)
    }

    fn add(program: &mut Program, address: u64, flags: i32) -> Self {
        let (mode, nodes) = (program.space(8), program.space(128));
        let arguments = [mode.into(), nodes.into(), MOST_NODES.into(), address.into(), flags.into()];
        let call = program.try_call(libc::SYS_get_mempolicy, &arguments);
        Self { mode, nodes, call }
    }

    /// `None`: the default one, or a kernel without NUMA.
    pub(crate) fn read(&self, outcome: &Outcome) -> Option<Policy> {
        let mode = u32::try_from(outcome.word(self.mode) & u64::from(u32::MAX)).unwrap_or(0);
        if outcome.result(self.call) != 0 || mode == 0 {
            return None;
        }
        let nodes = outcome.bytes(self.nodes);
        let used = nodes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Some(Policy { mode, nodes: nodes[..used].to_vec() })
    }
}

/// What a look through /proc/PID/numa_maps found.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    /// There is a policy somewhere.
    pub(crate) any: bool,
    /// Nodes that policies name.
    pub(crate) nodes: BTreeSet<u32>,
}

/// Looks through /proc/PID/numa_maps, which a kernel without NUMA does not have. It walks all page tables: not for
/// the freeze.
pub(crate) fn look(look: &Look, findings: &mut Findings) -> Result<Signs, InspectError> {
    let mut signs = Signs::default();
    for found in live(look) {
        let mappings: HashMap<u64, &Mapping> =
            found.mappings.iter().map(|mapping| (mapping.vma.start, mapping)).collect();
        // The policy of the first thread shows with every mapping that has none, and the kernel's own have none.
        let mut plain = false;
        let mut shared = None;
        let maps = match proc::read(found.process.pid, "numa_maps") {
            Ok(maps) => maps,
            Err(error) if error.is_gone() => continue,
            Err(error) => return Err(error.into()),
        };
        for line in proc::lines(&maps) {
            let mut words = proc::words(line);
            let parsed = words.next().and_then(proc::hex::<u64>).zip(words.next());
            let (address, mut policy) =
                parsed.ok_or_else(|| ProcError::parse("numa_maps", proc::text(line)))?;
            let mapping = mappings.get(&address);
            if policy == b"default" {
                plain |= mapping.is_some_and(|mapping| mapping.is_kernels());
                continue;
            }
            signs.any = true;
            if mapping.is_some_and(|mapping| !is_its_own(mapping)) {
                shared = shared.or(Some(address));
            }
            // "prefer (many)" and "weighted interleave" are two words.
            if matches!(policy, b"prefer" | b"weighted") {
                policy = words.next().unwrap_or_default();
            }
            if !policy.windows(RELATIVE.len()).any(|part| part == RELATIVE)
                && let Some(colon) = policy.iter().rposition(|byte| *byte == b':')
            {
                signs.nodes.extend(proc::list(&policy[colon + 1..]));
            }
        }
        if let Some(address) = shared.filter(|_| plain) {
            refuse_shared(found.process.inner, address, findings);
        }
    }
    Ok(signs)
}

/// Asks for the policies of all mappings, where there may be any. All threads are parked, and can still run.
pub(super) fn read(
    tree: &[Process],
    everywhere: bool,
    tracked: &BTreeMap<i32, Tracked>,
    frozen: &mut Frozen,
) -> Result<(), SourceError> {
    for process in tree.iter().filter(|process| !process.is_zombie()) {
        let pid = process.pid;
        let tapes = tracked.get(&pid).and_then(|tracked| tracked.tapes.as_ref());
        let asks = frozen.asks.get(&pid);
        let (Some(tapes), Some((ask, _)), Some(threads)) = (tapes, asks, frozen.parked.get_mut(&pid)) else {
            continue;
        };
        let own = |outcomes: &[Outcome]| outcomes.first().is_some_and(|outcome| ask.has_policy(outcome));
        if threads.is_empty() || !everywhere && !threads.iter().any(|thread| own(&thread.outcomes)) {
            continue;
        }
        let mut policies = Vec::new();
        for part in maps::read_maps(pid)?.chunks(BATCH) {
            let mut program = Program::new();
            let asks: Vec<Ask> = part.iter().map(|entry| Ask::add(&mut program, entry.start, ADDR)).collect();
            let mut leader = tapes.again(threads.remove(0), program)?;
            let outcome = leader.outcomes.pop().unwrap_or_default();
            threads.insert(0, leader);
            policies.extend(part.iter().zip(asks).filter_map(|(entry, ask)| {
                Some(RangePolicy { start: entry.start, end: entry.end, policy: ask.read(&outcome)? })
            }));
        }
        frozen.policies.insert(process.inner, policies);
    }
    Ok(())
}

/// Refuses what [`read`] found and cannot be carried.
pub(super) fn check(look: &Look, policies: &BTreeMap<Pid, Vec<RangePolicy>>, findings: &mut Findings) {
    for found in live(look) {
        let inner = found.process.inner;
        let starts: BTreeSet<u64> =
            policies.get(&inner).into_iter().flatten().map(|range| range.start).collect();
        let foreign = |mapping: &&Mapping| starts.contains(&mapping.vma.start) && !is_its_own(mapping);
        if let Some(mapping) = found.mappings.iter().find(foreign) {
            refuse_shared(inner, mapping.vma.start, findings);
        }
    }
}

/// Its policy is one of the mapping, and not of what is mapped.
fn is_its_own(mapping: &Mapping) -> bool {
    matches!(mapping.vma.backing, Backing::Anonymous | Backing::File { shared: false, .. })
}

/// It belongs to the object, part by part, and not to the mapping.
fn refuse_shared(pid: Pid, address: u64, findings: &mut Findings) {
    findings.address(
        pid,
        address,
        "shared memory with a NUMA policy of its own (mbind), which is not carried yet",
        "set the policy of the threads (set_mempolicy) instead",
    );
}

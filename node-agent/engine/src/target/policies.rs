//! NUMA policies of threads and mappings.

use image::state::{Policy, RangePolicy};
use libc::{SYS_mbind, SYS_set_mempolicy};

use super::script::{Block, Call, call};

/// The policy of the thread that runs this.
pub(crate) fn own(policy: &Policy) -> Call {
    let (nodes, bits) = mask(policy);
    call!("set_mempolicy", SYS_set_mempolicy, policy.mode, nodes, bits)
}

/// The policy of a mapping. Pages that are there stay where they are.
pub(crate) fn of_range(range: &RangePolicy) -> Call {
    let (nodes, bits) = mask(&range.policy);
    let len = range.end.wrapping_sub(range.start);
    call!("mbind", SYS_mbind, range.start, len, range.policy.mode, nodes, bits, 0)
}

/// Whole words, and one bit more than there are: the kernel reads one less than it is told.
fn mask(policy: &Policy) -> (Block, usize) {
    let mut nodes = policy.nodes.clone();
    nodes.resize(nodes.len().next_multiple_of(8).max(8), 0);
    let bits = nodes.len() * 8 + 1;
    (Block::new(nodes), bits)
}

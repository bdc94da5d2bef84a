//! How descriptors reach their numbers.
//!
//! The kernel gives received descriptors the lowest free numbers. When they are sent in ascending order of
//! their final numbers, each lands at or below its place; moved in descending order, none meets another.

use image::files::FdEntry;

/// Most descriptors that one message may carry (SCM_MAX_FD, unix(7)).
pub const MOST_IN_A_MESSAGE: usize = 253;

/// One dup3(2) and the close of the old number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where it landed.
    pub from: i32,
    /// Its final number.
    pub to: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

/// The plan for one process's table, which is empty but for the channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdPlan {
    /// Where the channel waits meanwhile: a number that nothing else needs.
    pub channel: i32,
    /// Descriptions to send, message by message, each [`MOST_IN_A_MESSAGE`] at most.
    pub messages: Vec<Vec<u32>>,
    /// Where they land, in the order of sending.
    pub landing: Vec<i32>,
    /// Moves, in order.
    pub moves: Vec<Move>,
    /// Numbers that need FD_CLOEXEC and were not moved.
    pub cloexec: Vec<i32>,
}

/// Plans the table `fds`, in any order.
#[must_use]
pub fn plan(fds: &[FdEntry]) -> FdPlan {
    let mut fds = fds.to_vec();
    fds.sort_by_key(|e| e.fd);
    let mut channel = 0;
    for entry in &fds {
        if entry.fd == channel {
            channel += 1;
        }
    }
    let free = (0..).filter(|n| *n != channel);
    let landing: Vec<i32> = free.take(fds.len()).collect();
    let moves = fds.iter().zip(&landing).rev().filter(|(e, from)| e.fd != **from);
    FdPlan {
        channel,
        messages: fds.chunks(MOST_IN_A_MESSAGE).map(|c| c.iter().map(|e| e.file).collect()).collect(),
        moves: moves.map(|(e, from)| Move { from: *from, to: e.fd, cloexec: e.cloexec }).collect(),
        cloexec: fds
            .iter()
            .zip(&landing)
            .filter(|(e, l)| e.cloexec && e.fd == **l)
            .map(|(e, _)| e.fd)
            .collect(),
        landing,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;

    /// A descriptor table: number to (description, close-on-exec).
    type Table = BTreeMap<i32, (u32, bool)>;
    const CHANNEL: u32 = u32::MAX;

    fn receive(table: &mut Table, message: &[u32]) -> Vec<i32> {
        assert!(message.len() <= MOST_IN_A_MESSAGE);
        let lowest = |t: &Table| (0..).find(|n| !t.contains_key(n)).unwrap();
        message
            .iter()
            .map(|file| {
                let at = lowest(table);
                table.insert(at, (*file, false));
                at
            })
            .collect()
    }

    fn execute(plan: &FdPlan) -> Table {
        let mut table = Table::from([(plan.channel, (CHANNEL, false))]);
        let landed: Vec<i32> = plan.messages.iter().flat_map(|m| receive(&mut table, m)).collect();
        assert_eq!(landed, plan.landing);
        for m in &plan.moves {
            let (file, _) = table.remove(&m.from).unwrap();
            assert!(table.insert(m.to, (file, m.cloexec)).is_none(), "dup3 onto {} closes another", m.to);
        }
        for fd in &plan.cloexec {
            table.get_mut(fd).unwrap().1 = true;
        }
        assert_eq!(table.remove(&plan.channel), Some((CHANNEL, false)));
        table
    }

    fn entries() -> impl Strategy<Value = Vec<FdEntry>> {
        let number = prop_oneof![4 => 0..20i32, 1 => 0..2000i32];
        prop::collection::vec((number, 0..5u32, any::<bool>()), 0..400).prop_map(|list| {
            let mut seen = BTreeSet::new();
            list.into_iter()
                .filter(|(fd, ..)| seen.insert(*fd))
                .map(|(fd, file, cloexec)| FdEntry { fd, file, cloexec })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_planned_table_is_the_wanted_one(fds in entries()) {
            let wanted: Table = fds.iter().map(|e| (e.fd, (e.file, e.cloexec))).collect();
            prop_assert_eq!(execute(&plan(&fds)), wanted);
        }
    }

    #[test]
    fn a_dense_table_needs_no_move() {
        let fds: Vec<FdEntry> = (0..600).map(|fd| FdEntry { fd, file: 1, cloexec: fd == 3 }).collect();
        let plan = plan(&fds);
        assert!(plan.moves.is_empty());
        assert_eq!((plan.channel, plan.messages.len(), plan.cloexec.as_slice()), (600, 3, &[3][..]));
    }
}

//! Pid namespaces below the container's: which there are, and who has which number where.

use std::collections::{BTreeMap, BTreeSet};

use image::Pid;
use image::namespaces::Level;
use image::shape::Shape;

/// Where a process is. The default is the container's own pid namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its pid namespace; 0 for the container's.
    pub space: u64,
    /// How far that is below the container's.
    pub depth: usize,
    /// Its pid there, unless that is the container's.
    pub own: Pid,
}

impl Place {
    /// Where these levels lead.
    #[must_use]
    pub fn of(levels: &[Level]) -> Self {
        levels.last().map_or_else(Self::default, |level| Self {
            space: level.namespace,
            depth: levels.len(),
            own: level.pid,
        })
    }

    /// Whether it is the first process of a namespace below the container's.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.space != 0 && self.own == 1
    }
}

/// The pid namespaces of a shape.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    /// Those around each one that is below the container's, itself last.
    paths: BTreeMap<u64, Vec<u64>>,
    /// Of each process, group and session: its namespace, and its numbers below the container's.
    numbers: BTreeMap<Pid, (u64, Vec<Pid>)>,
    /// All numbers that are taken in one of them.
    taken: BTreeSet<Pid>,
}

impl Spaces {
    pub(crate) fn of(shape: &Shape) -> Self {
        let mut spaces = Self::default();
        let mut dead: BTreeMap<Pid, (u64, Vec<Pid>)> = BTreeMap::new();
        for process in &shape.processes {
            let path: Vec<u64> = process.levels.iter().map(|level| level.namespace).collect();
            for end in 1..=path.len() {
                spaces.paths.entry(path[end - 1]).or_insert_with(|| path[..end].to_vec());
            }
            let numbers = |of: fn(&Level) -> Pid| process.levels.iter().map(of);
            let pids: Vec<Pid> = numbers(|level| level.pid).collect();
            spaces.taken.extend(&pids);
            spaces.numbers.insert(process.pid, (path.last().copied().unwrap_or(0), pids));
            // A group or session whose leader has ended: it has a number as far down as that was.
            let pgids: Vec<Pid> = numbers(|level| level.pgid).collect();
            let sids: Vec<Pid> = numbers(|level| level.sid).collect();
            for (group, all) in [(process.pgid, pgids), (process.sid, sids)] {
                let known: Vec<Pid> = all.into_iter().take_while(|number| *number != 0).collect();
                spaces.taken.extend(&known);
                let space = path[..known.len()].last().copied().unwrap_or(0);
                let deepest = dead.entry(group).or_default();
                if known.len() >= deepest.1.len() {
                    *deepest = (space, known);
                }
            }
        }
        for (group, found) in dead {
            spaces.numbers.entry(group).or_insert(found);
        }
        spaces
    }

    /// The number of a process, group or session in a namespace; `None` when it has none there.
    pub(crate) fn number(&self, pid: Pid, space: u64) -> Option<Pid> {
        if space == 0 {
            return Some(pid);
        }
        let depth = self.paths.get(&space)?.len();
        let (home, numbers) = self.numbers.get(&pid)?;
        if self.is_within(*home, space) { numbers.get(depth - 1).copied() } else { None }
    }

    /// Whether one is the other or below it.
    pub(crate) fn is_within(&self, space: u64, outer: u64) -> bool {
        outer == 0 || self.paths.get(&space).is_some_and(|path| path.contains(&outer))
    }

    /// The one around it; 0 for the container's.
    pub(crate) fn around(&self, space: u64) -> u64 {
        let path = self.paths.get(&space).map(Vec::as_slice).unwrap_or_default();
        path.len().checked_sub(2).and_then(|at| path.get(at)).copied().unwrap_or(0)
    }

    /// Where the process with this number is, or was.
    pub(crate) fn place(&self, pid: Pid) -> Place {
        self.numbers.get(&pid).map_or_else(Place::default, |(space, numbers)| Place {
            space: *space,
            depth: numbers.len(),
            own: numbers.last().copied().unwrap_or(0),
        })
    }

    /// The numbers below the container's that a process gets in its place. A temporary helper has one number everywhere.
    pub(crate) fn numbers(&self, pid: Pid, place: &Place) -> Vec<Pid> {
        match self.numbers.get(&pid) {
            Some((space, numbers)) if *space == place.space => numbers.clone(),
            _ => vec![place.own; place.depth],
        }
    }

    /// Whether a number is somebody's in a namespace below the container's.
    pub(crate) fn is_taken(&self, pid: Pid) -> bool {
        self.taken.contains(&pid)
    }
}

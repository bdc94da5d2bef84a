//! What is measured.

use serde::Serialize;

use crate::workload::load::State;

/// What the cases of a group differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// MiB of memory that is not written.
    Idle,
    /// MB/s that are written to 256 MiB.
    Writers,
    /// MB/s that are written to 1 GiB.
    Large,
    /// Programs that others made, or made like them.
    Programs,
    /// Processes.
    Processes,
    /// Threads.
    Threads,
    /// Descriptors.
    Descriptors,
    /// Mappings.
    Mappings,
    /// TCP connections.
    Connections,
    /// What hosts keep for a container.
    State,
}

/// What is moved.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// The workload that ships with us: resident MiB and dirtied MB/s, 4 clients.
    Own {
        /// Memory.
        mib: u32,
        /// How fast 8 threads write to it, together.
        dirty: u32,
    },
    /// redis-server with so many keys of 4 KiB under 8 clients.
    Redis {
        /// How many.
        keys: u64,
    },
    /// nginx with 4 workers, and 4 clients that download a file again and again.
    Nginx,
    /// 8 processes that share memory and a listening socket, each with a client.
    Shared,
    /// 32 workers that share 256 MiB with their parent as copy-on-write, 1 client.
    Forked,
    /// Processes and threads that wait, and descriptors, 1 client.
    Population(Population),
    /// So many connections that say nothing, and one that asks.
    Connections(u32),
    /// A program that does little, with state that the hosts keep, 1 client.
    State(State),
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub struct Population {
    /// Processes.
    pub processes: u32,
    /// Children of each.
    pub fan_out: u32,
    /// Threads of each.
    pub threads: u32,
    /// Descriptors of the first.
    pub descriptors: u32,
    /// Mappings of the first.
    pub mappings: u32,
}

impl Population {
    /// One process that does nothing but answer.
    pub const ONE: Self = Self { processes: 1, fan_out: 1, threads: 1, descriptors: 0, mappings: 0 };
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it is compared with.
    pub group: Group,
    /// How much of what its group differs in; 0 where that is no number.
    pub amount: u32,
    /// What is moved.
    pub load: Load,
    /// The longest pause to aim at.
    pub max_downtime: &'static str,
}

impl Case {
    /// Programs that must be installed.
    #[must_use]
    pub fn programs(&self) -> &'static [&'static str] {
        match self.load {
            Load::Own { .. } => &[],
            Load::Redis { .. } => &["redis-server"],
            Load::Nginx => &["nginx"],
            Load::Shared | Load::Forked | Load::Population(_) | Load::Connections(_) => &["python3"],
            Load::State(_) => &["python3", "nft", "nsenter"],
        }
    }

    /// Memory that the container has twice while it moves, MiB.
    #[must_use]
    pub fn resident_mib(&self) -> u32 {
        match self.load {
            Load::Own { mib, .. } => mib,
            Load::Redis { .. } => 700,
            _ => 300,
        }
    }

    /// Descriptors that an agent needs for it: in the pause one for each open file of the container.
    #[must_use]
    pub fn agent_descriptors(&self) -> u64 {
        1024 + match self.load {
            Load::Population(wanted) => u64::from(wanted.descriptors),
            Load::Connections(count) => u64::from(count),
            _ => 0,
        }
    }

    /// The memory and rate with which bare copying can be compared.
    #[must_use]
    pub fn bare(&self) -> Option<(u32, u32)> {
        match self.load {
            Load::Own { mib, dirty } => Some((mib, dirty)),
            _ => None,
        }
    }
}

/// The case that the others with state are compared with.
pub const NOTHING: &str = "state-nothing";

/// What `migrate move` aims at.
const DEFAULT: &str = "50ms";
/// For what costs more, or is predicted to. A container is frozen as soon as it fits and one more round would not shorten
/// its pause, so what is written to fast may be frozen earlier than a lower limit would have it.
const LONG: &str = "1s";

const fn idle(name: &'static str, mib: u32) -> Case {
    Case { name, group: Group::Idle, amount: mib, load: Load::Own { mib, dirty: 0 }, max_downtime: DEFAULT }
}

const fn writers(name: &'static str, dirty: u32, max_downtime: &'static str) -> Case {
    Case { name, group: Group::Writers, amount: dirty, load: Load::Own { mib: 256, dirty }, max_downtime }
}

const fn large(name: &'static str, dirty: u32, max_downtime: &'static str) -> Case {
    Case { name, group: Group::Large, amount: dirty, load: Load::Own { mib: 1024, dirty }, max_downtime }
}

const fn program(name: &'static str, load: Load) -> Case {
    Case { name, group: Group::Programs, amount: 0, load, max_downtime: LONG }
}

const fn population(name: &'static str, group: Group, amount: u32, population: Population) -> Case {
    Case { name, group, amount, load: Load::Population(population), max_downtime: LONG }
}

const fn processes(name: &'static str, processes: u32) -> Case {
    let of = Population { processes, fan_out: processes, ..Population::ONE };
    population(name, Group::Processes, processes, of)
}

const fn threads(name: &'static str, threads: u32) -> Case {
    population(name, Group::Threads, threads, Population { threads, ..Population::ONE })
}

const fn descriptors(name: &'static str, descriptors: u32) -> Case {
    population(name, Group::Descriptors, descriptors, Population { descriptors, ..Population::ONE })
}

const fn mappings(name: &'static str, mappings: u32) -> Case {
    population(name, Group::Mappings, mappings, Population { mappings, ..Population::ONE })
}

const fn connections(name: &'static str, count: u32) -> Case {
    Case {
        name,
        group: Group::Connections,
        amount: count,
        load: Load::Connections(count),
        max_downtime: LONG,
    }
}

const fn state(name: &'static str, state: State) -> Case {
    Case { name, group: Group::State, amount: 0, load: Load::State(state), max_downtime: LONG }
}

/// 32 processes, each of which forks two, with four threads each.
const TREE: Population = Population { processes: 32, fan_out: 2, threads: 4, descriptors: 0, mappings: 0 };

/// All of them.
pub const CASES: &[Case] = &[
    idle("idle-16MiB", 16),
    idle("idle-256MiB", 256),
    idle("idle-1GiB", 1024),
    idle("idle-4GiB", 4096),
    idle("idle-8GiB", 8192),
    writers("50MB/s-256MiB", 50, DEFAULT),
    writers("100MB/s-256MiB", 100, DEFAULT),
    writers("200MB/s-256MiB", 200, LONG),
    writers("400MB/s-256MiB", 400, "5s"),
    large("100MB/s-1GiB", 100, DEFAULT),
    large("1000MB/s-1GiB", 1000, "60s"),
    program("redis-512MiB", Load::Redis { keys: 131_072 }),
    program("nginx", Load::Nginx),
    program("shared-8-workers", Load::Shared),
    program("forked-32x256MiB", Load::Forked),
    processes("1-process", 1),
    processes("10-processes", 10),
    processes("100-processes", 100),
    processes("1000-processes", 1000),
    population("tree-32x4-threads", Group::Programs, 0, TREE),
    threads("1-thread", 1),
    threads("100-threads", 100),
    threads("1000-threads", 1000),
    threads("10000-threads", 10_000),
    descriptors("10-descriptors", 10),
    descriptors("1000-descriptors", 1000),
    descriptors("10000-descriptors", 10_000),
    mappings("100-mappings", 100),
    mappings("10000-mappings", 10_000),
    connections("10-connections", 10),
    connections("1000-connections", 1000),
    connections("10000-connections", 10_000),
    state(NOTHING, State::Nothing),
    state("state-50-groups", State::Groups),
    state("state-network", State::Network),
    state("state-network-counting", State::Counting),
    state("state-100-mounts", State::Mounts),
    state("state-tmpfs-200MiB", State::Tmpfs),
    state("state-100000-files", State::Files),
];

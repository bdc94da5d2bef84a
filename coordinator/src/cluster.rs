//! The nodes as they are heard of, and where each container is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use proto::v1::{Container, ContainerState, Node, NodeFacts, NodeState};

use crate::place::{self, Candidate, Facts, Loads};
use crate::store::NodeRecord;

#[cfg(test)]
mod tests;

/// Reports of a node after a container has come to it until it is sure to be in them, and free memory without its own: the
/// first may have been under way.
const REPORTS: u8 = 2;
/// The same, at least: a coordinator that is busy may have several reports before it that were made earlier.
const ARRIVING: Duration = Duration::from_secs(1);

/// How long silence may last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Silence {
    /// Then the node is Unknown.
    pub(crate) unknown: Duration,
    /// Then it is not ready.
    pub(crate) lease: Duration,
}

#[derive(Debug)]
struct Member {
    record: NodeRecord,
    /// When it was heard last; before the first time since the start, when the coordinator started.
    heard: Instant,
    /// It has joined since the coordinator started.
    joined: bool,
    /// Its facts and labels, as placement takes them.
    facts: Arc<Facts>,
    labels: Arc<HashMap<String, String>>,
    /// Memory of containers that have come, which its facts may still show as free: bytes, and reports that are waited for.
    settling: Vec<(u64, u8)>,
    /// Containers that migrations or calls have brought, until a report has them: name, epoch, reports that are waited for, and since
    /// when.
    brought: Vec<(String, u64, u8, Instant)>,
}

impl Member {
    fn new(record: NodeRecord, joined: bool) -> Self {
        let facts = Arc::new(facts(record.node.facts.as_ref()));
        let labels = Arc::new(record.node.labels.clone());
        Self {
            record,
            heard: Instant::now(),
            joined,
            facts,
            labels,
            settling: Vec::new(),
            brought: Vec::new(),
        }
    }
}

/// The nodes, and an index of their containers.
#[derive(Debug, Default)]
struct Members {
    nodes: BTreeMap<String, Member>,
    /// Container to the nodes that have a copy.
    at: HashMap<String, BTreeSet<String>>,
}

impl Members {
    fn insert(&mut self, member: Member) {
        let name = member.record.node.name.clone();
        self.change(&name, Vec::clear);
        for container in &member.record.containers {
            self.at.entry(container.name.clone()).or_default().insert(name.clone());
        }
        self.nodes.insert(name, member);
    }

    /// Changes the containers of a node; the only way to do so.
    fn change<T>(&mut self, node: &str, change: impl FnOnce(&mut Vec<Container>) -> T) -> Option<T> {
        let containers = &mut self.nodes.get_mut(node)?.record.containers;
        for container in &*containers {
            if let Some(nodes) = self.at.get_mut(&container.name) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.at.remove(&container.name);
                }
            }
        }
        let answer = change(containers);
        for container in containers {
            self.at.entry(container.name.clone()).or_default().insert(node.to_owned());
        }
        Some(answer)
    }

    /// What a node reports, with what migrations have brought there since the report was made.
    fn with_brought(&mut self, node: &str, mut reported: Vec<Container>) -> Vec<Container> {
        let Some(member) = self.nodes.get_mut(node) else { return reported };
        let known = &member.record.containers;
        member.brought.retain_mut(|(name, epoch, reports, since)| {
            if reported.iter().any(|copy| copy.name == *name && copy.epoch >= *epoch && lives(copy)) {
                return false;
            }
            let Some(copy) = known.iter().find(|copy| copy.name == *name) else { return false };
            reported.retain(|stale| stale.name != *name);
            reported.push(copy.clone());
            *reports = reports.saturating_sub(1);
            *reports > 0 || since.elapsed() < ARRIVING
        });
        reported
    }

    /// Every copy of a container.
    fn copies<'a>(&'a self, container: &'a str) -> impl Iterator<Item = &'a Container> {
        let nodes = self.at.get(container).into_iter().flatten();
        let members = nodes.filter_map(|node| self.nodes.get(node));
        members.flat_map(|member| &member.record.containers).filter(move |copy| copy.name == container)
    }
}

/// The nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    silence: Silence,
    members: Mutex<Members>,
}

impl Cluster {
    /// The nodes as they were when the coordinator stopped. None is Ready until it is heard.
    pub(crate) fn new(silence: Silence, records: Vec<NodeRecord>) -> Self {
        let mut members = Members::default();
        for record in records {
            members.insert(Member::new(record, false));
        }
        Self { silence, members: Mutex::new(members) }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node joins, or joins again; what it says replaces what was known, but it stays cordoned if it was.
    /// Answers the record to be stored.
    pub(crate) fn join(&self, mut node: Node, containers: Vec<Container>) -> NodeRecord {
        let mut members = self.lock();
        node.cordoned = members.nodes.get(&node.name).is_some_and(|member| member.record.node.cordoned);
        node.last_heartbeat = Some(SystemTime::now().into());
        let name = node.name.clone();
        let record = NodeRecord { containers: owned_by(&name, containers), node };
        members.insert(Member::new(record.clone(), true));
        record
    }

    /// A node lives. Answers the record to be stored when its containers changed; `None` when it never joined
    /// since the coordinator started, and the inner one when nothing is to be stored.
    pub(crate) fn heartbeat(
        &self,
        name: &str,
        containers: Vec<Container>,
        facts: Option<NodeFacts>,
    ) -> Option<Option<NodeRecord>> {
        let mut members = self.lock();
        let member = members.nodes.get_mut(name).filter(|member| member.joined)?;
        member.heard = Instant::now();
        member.record.node.last_heartbeat = Some(SystemTime::now().into());
        if facts.is_some() {
            member.facts = Arc::new(self::facts(facts.as_ref()));
            member.record.node.facts = facts;
            member.settling.iter_mut().for_each(|(_, reports)| *reports -= 1);
            member.settling.retain(|(_, reports)| *reports > 0);
        }
        let containers = members.with_brought(name, owned_by(name, containers));
        let member = members.nodes.get_mut(name)?;
        let outline =
            |all: &[Container]| all.iter().map(|c| (c.name.clone(), c.state, c.epoch)).collect::<Vec<_>>();
        let changed = outline(&containers) != outline(&member.record.containers);
        members.change(name, |known| *known = containers);
        let member = members.nodes.get(name)?;
        Some(changed.then(|| member.record.clone()))
    }

    /// Cordons or uncordons a node. Answers the record to be stored.
    pub(crate) fn cordon(&self, name: &str, cordoned: bool) -> Option<NodeRecord> {
        let mut members = self.lock();
        let member = members.nodes.get_mut(name)?;
        member.record.node.cordoned = cordoned;
        Some(member.record.clone())
    }

    fn state(&self, member: &Member) -> NodeState {
        let silent = member.heard.elapsed();
        if silent >= self.silence.lease {
            NodeState::NotReady
        } else if silent >= self.silence.unknown || !member.joined {
            NodeState::Unknown
        } else {
            NodeState::Ready
        }
    }

    fn shown(&self, member: &Member) -> Node {
        let mut node = member.record.node.clone();
        node.set_state(self.state(member));
        node.containers = u32::try_from(member.record.containers.len()).unwrap_or(u32::MAX);
        node
    }

    /// A node.
    pub(crate) fn node(&self, name: &str) -> Option<Node> {
        self.lock().nodes.get(name).map(|member| self.shown(member))
    }

    /// Every node, by name.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.lock().nodes.values().map(|member| self.shown(member)).collect()
    }

    /// Every container once, by name: where several nodes have a copy, the one that matters.
    pub(crate) fn containers(&self) -> Vec<Container> {
        let mut found: BTreeMap<String, Container> = BTreeMap::new();
        for member in self.lock().nodes.values() {
            for container in &member.record.containers {
                match found.get(&container.name) {
                    Some(known) if weight(known) >= weight(container) => {}
                    _ => drop(found.insert(container.name.clone(), container.clone())),
                }
            }
        }
        found.into_values().collect()
    }

    /// A container, where it is now.
    pub(crate) fn container(&self, name: &str) -> Option<Container> {
        self.lock().copies(name).max_by_key(|copy| weight(copy)).cloned()
    }

    /// The highest epoch that any node reports for a container.
    pub(crate) fn highest_epoch(&self, container: &str) -> u64 {
        self.lock().copies(container).map(|copy| copy.epoch).max().unwrap_or_default()
    }

    /// A node was fenced: whatever it sends, it is not heard until it joins again.
    pub(crate) fn expel(&self, name: &str) {
        if let Some(member) = self.lock().nodes.get_mut(name) {
            member.joined = false;
        }
    }

    /// An agent has answered a call about a container: what its next heartbeat will say, but for one that was made before.
    pub(crate) fn noted(&self, container: Container) {
        let (node, name, epoch) = (container.node.clone(), container.name.clone(), container.epoch);
        let runs = container.state() == ContainerState::Running;
        let mut members = self.lock();
        members.change(&node, |containers| {
            containers.retain(|known| known.name != container.name);
            containers.push(container);
        });
        if let Some(member) = members.nodes.get_mut(&node) {
            member.brought.retain(|(known, ..)| *known != name);
            if runs {
                member.brought.push((name, epoch, REPORTS, Instant::now()));
            }
        }
    }

    /// A container was deleted.
    pub(crate) fn forgotten(&self, node: &str, name: &str) {
        self.lock().change(node, |containers| containers.retain(|known| known.name != name));
    }

    /// A migration has succeeded: what the heartbeats will say in a moment, so that who asks right afterwards
    /// is not sent to the old node.
    pub(crate) fn moved(&self, container: &str, source: &str, target: &str, epoch: u64) {
        let mut members = self.lock();
        let taken = |containers: &mut Vec<Container>| {
            let index = containers.iter().position(|c| c.name == container)?;
            Some(containers.remove(index))
        };
        let left = members.change(source, taken).flatten();
        let moved = members.change(target, |containers| {
            let mut moved = match (taken(containers), left) {
                (Some(there), _) if there.epoch >= epoch && there.state() == ContainerState::Running => there,
                (there, left) => {
                    let mut moved = left.or(there)?;
                    moved.pid = 0;
                    moved
                }
            };
            moved.node = target.to_owned();
            moved.epoch = moved.epoch.max(epoch);
            moved.set_state(ContainerState::Running);
            let (memory, epoch) = (moved.memory_bytes, moved.epoch);
            containers.push(moved);
            Some((memory, epoch))
        });
        if let (Some((memory, epoch)), Some(member)) = (moved.flatten(), members.nodes.get_mut(target)) {
            member.settling.push((memory, REPORTS));
            member.brought.retain(|(name, ..)| name != container);
            member.brought.push((container.to_owned(), epoch, REPORTS, Instant::now()));
        }
    }

    /// A node whose heartbeats are missing, and which may yet be heard again.
    pub(crate) fn silent(&self) -> Option<String> {
        let members = self.lock();
        let silent = members.nodes.values().find(|member| self.state(member) == NodeState::Unknown);
        silent.map(|member| member.record.node.name.clone())
    }

    /// A node's state; `None` when it never joined.
    pub(crate) fn node_state(&self, name: &str) -> Option<NodeState> {
        self.lock().nodes.get(name).map(|member| self.state(member))
    }

    /// Whether a node takes nothing new.
    pub(crate) fn is_cordoned(&self, name: &str) -> bool {
        self.lock().nodes.get(name).is_some_and(|member| member.record.node.cordoned)
    }

    /// A node's facts, as placement takes them.
    pub(crate) fn facts(&self, name: &str) -> Facts {
        self.lock().nodes.get(name).map_or_else(Facts::default, |member| Facts::clone(&member.facts))
    }

    /// The containers that have a copy on a node, each where it is now.
    pub(crate) fn containers_on(&self, node: &str) -> Vec<Container> {
        let members = self.lock();
        let there = members.nodes.get(node).into_iter().flat_map(|member| &member.record.containers);
        there.filter_map(|c| members.copies(&c.name).max_by_key(|copy| weight(copy)).cloned()).collect()
    }

    /// A running container on `node` that is of the anti-affinity group in these labels and is not called `name`.
    pub(crate) fn neighbour(
        &self,
        node: &str,
        name: &str,
        labels: &HashMap<String, String>,
    ) -> Option<String> {
        let own = place::group(labels)?;
        let members = self.lock();
        let there = &members.nodes.get(node)?.record.containers;
        let of_it = |c: &&Container| c.name != name && lives(c) && place::group(&c.labels) == Some(own);
        there.iter().find(of_it).map(|c| c.name.clone())
    }

    /// Where `container` might go: every node, with what migrations do to each.
    pub(crate) fn candidates(&self, container: &Container, loads: &Loads) -> Vec<Candidate> {
        let members = self.lock();
        let own = place::group(&container.labels);
        let candidate = |member: &Member| {
            let node = &member.record.node;
            let mut candidate = Candidate {
                name: node.name.clone(),
                ready: self.state(member) == NodeState::Ready,
                cordoned: node.cordoned,
                load: loads.of(&node.name),
                labels: Arc::clone(&member.labels),
                facts: Arc::clone(&member.facts),
                settling: member.settling.iter().map(|(memory, _)| memory).sum(),
                ..Candidate::default()
            };
            for there in member.record.containers.iter().filter(|there| lives(there)) {
                if there.name == container.name {
                    candidate.occupied = true;
                    continue;
                }
                if candidate.conflict.is_none() && own.is_some() && place::group(&there.labels) == own {
                    candidate.conflict = Some(there.name.clone());
                }
                candidate.alike += usize::from(place::are_alike(&there.labels, &container.labels));
            }
            candidate
        };
        members.nodes.values().map(candidate).collect()
    }
}

/// Whether a copy runs, or may run again. What is left of one that has moved away is no obstacle: the node gives it up when
/// it is asked to expect the container, or refuses then.
fn lives(container: &Container) -> bool {
    weight(container).0 && container.state() != ContainerState::Stopped
}

fn owned_by(node: &str, mut containers: Vec<Container>) -> Vec<Container> {
    for container in &mut containers {
        container.node = node.to_owned();
    }
    containers
}

/// What placement looks at.
pub(crate) fn facts(facts: Option<&NodeFacts>) -> Facts {
    facts.map_or_else(Facts::default, |facts| Facts {
        kernel_release: facts.kernel_release.clone(),
        arch: facts.arch.clone(),
        vdso_hash: facts.vdso_hash,
        xsave_size: facts.xsave_size,
        xcr0: facts.xcr0,
        memory_free: facts.memory_free,
        memory_total: facts.memory_total,
        peer_versions: facts.peer_protocol_versions.clone(),
        controllers: facts.cgroup_controllers.clone(),
    })
}

/// Which of several copies of a container is the container: one that may run before one that may not, then the
/// one of the newer epoch (an unreachable node's last report stays), then the livelier one.
fn weight(container: &Container) -> (bool, u64, u8) {
    let (owner, lively) = match container.state() {
        ContainerState::Running => (true, 2),
        ContainerState::Migrating => (true, 1),
        ContainerState::Stopped => (true, 0),
        ContainerState::Frozen => (false, 2),
        ContainerState::Incoming => (false, 1),
        ContainerState::Unspecified => (false, 0),
    };
    (owner, container.epoch, lively)
}

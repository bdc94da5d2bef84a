//! The nodes as they are heard of, and where each container is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use proto::v1::{Container, ContainerState, Node, NodeFacts, NodeState};

use crate::place::{Candidate, Facts};
use crate::store::NodeRecord;

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
}

/// The nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    silence: Silence,
    members: Mutex<BTreeMap<String, Member>>,
}

impl Cluster {
    /// The nodes as they were when the coordinator stopped. None is Ready until it is heard.
    pub(crate) fn new(silence: Silence, records: Vec<NodeRecord>) -> Self {
        let heard = Instant::now();
        let members = records
            .into_iter()
            .map(|record| (record.node.name.clone(), Member { record, heard, joined: false }))
            .collect();
        Self { silence, members: Mutex::new(members) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node joins, or joins again; what it says replaces what was known, but it stays cordoned if it was.
    /// Answers the record to be stored.
    pub(crate) fn join(&self, mut node: Node, containers: Vec<Container>) -> NodeRecord {
        let mut members = self.lock();
        node.cordoned = members.get(&node.name).is_some_and(|member| member.record.node.cordoned);
        node.last_heartbeat = Some(SystemTime::now().into());
        let name = node.name.clone();
        let record = NodeRecord { containers: owned_by(&name, containers), node };
        members.insert(name, Member { record: record.clone(), heard: Instant::now(), joined: true });
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
        let member = members.get_mut(name).filter(|member| member.joined)?;
        member.heard = Instant::now();
        member.record.node.last_heartbeat = Some(SystemTime::now().into());
        if facts.is_some() {
            member.record.node.facts = facts;
        }
        let containers = owned_by(name, containers);
        let outline =
            |all: &[Container]| all.iter().map(|c| (c.name.clone(), c.state, c.epoch)).collect::<Vec<_>>();
        let changed = outline(&containers) != outline(&member.record.containers);
        member.record.containers = containers;
        Some(changed.then(|| member.record.clone()))
    }

    /// Cordons or uncordons a node. Answers the record to be stored.
    pub(crate) fn cordon(&self, name: &str, cordoned: bool) -> Option<NodeRecord> {
        let mut members = self.lock();
        let member = members.get_mut(name)?;
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
        self.lock().get(name).map(|member| self.shown(member))
    }

    /// Every node, by name.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.lock().values().map(|member| self.shown(member)).collect()
    }

    /// Every container once, by name: where several nodes have a copy, the one that matters.
    pub(crate) fn containers(&self) -> Vec<Container> {
        let mut found: BTreeMap<String, Container> = BTreeMap::new();
        for member in self.lock().values() {
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
        let members = self.lock();
        let copies = members.values().flat_map(|m| &m.record.containers).filter(|c| c.name == name);
        copies.max_by_key(|copy| weight(copy)).cloned()
    }

    /// The highest epoch that any node reports for a container.
    pub(crate) fn highest_epoch(&self, container: &str) -> u64 {
        let members = self.lock();
        let copies = members.values().flat_map(|m| &m.record.containers).filter(|c| c.name == container);
        copies.map(|copy| copy.epoch).max().unwrap_or_default()
    }

    /// A node was fenced: whatever it sends, it is not heard until it joins again.
    pub(crate) fn expel(&self, name: &str) {
        if let Some(member) = self.lock().get_mut(name) {
            member.joined = false;
        }
    }

    /// An agent has answered a call about a container: what its next heartbeat will say.
    pub(crate) fn noted(&self, container: Container) {
        if let Some(member) = self.lock().get_mut(&container.node) {
            member.record.containers.retain(|known| known.name != container.name);
            member.record.containers.push(container);
        }
    }

    /// A container was deleted.
    pub(crate) fn forgotten(&self, node: &str, name: &str) {
        if let Some(member) = self.lock().get_mut(node) {
            member.record.containers.retain(|known| known.name != name);
        }
    }

    /// A migration has succeeded: what the heartbeats will say in a moment, so that who asks right afterwards
    /// is not sent to the old node.
    pub(crate) fn moved(&self, container: &str, source: &str, target: &str, epoch: u64) {
        let mut members = self.lock();
        let left = members.get_mut(source).and_then(|member| {
            let containers = &mut member.record.containers;
            let index = containers.iter().position(|c| c.name == container)?;
            Some(containers.remove(index))
        });
        let Some(member) = members.get_mut(target) else { return };
        let containers = &mut member.record.containers;
        let index = containers.iter().position(|c| c.name == container);
        let mut moved = match (index.map(|i| containers.remove(i)), left) {
            (Some(there), _) if there.epoch >= epoch && there.state() == ContainerState::Running => there,
            (there, left) => {
                let Some(mut moved) = left.or(there) else { return };
                moved.pid = 0;
                moved
            }
        };
        moved.node = target.to_owned();
        moved.epoch = moved.epoch.max(epoch);
        moved.set_state(ContainerState::Running);
        containers.push(moved);
    }

    /// Where `container` might go: every node, with `promised` memory for each by name.
    pub(crate) fn candidates(&self, container: &str, promised: &BTreeMap<String, u64>) -> Vec<Candidate> {
        let members = self.lock();
        let candidate = |member: &Member| {
            let node = &member.record.node;
            Candidate {
                name: node.name.clone(),
                ready: self.state(member) == NodeState::Ready,
                cordoned: node.cordoned,
                // What is left of a copy that has moved away is no obstacle: the node gives it up when it is asked
                // to expect the container, or refuses then.
                occupied: member
                    .record
                    .containers
                    .iter()
                    .any(|c| c.name == container && weight(c).0 && c.state() != ContainerState::Stopped),
                promised: promised.get(&node.name).copied().unwrap_or_default(),
                facts: facts(node.facts.as_ref()),
            }
        };
        members.values().map(candidate).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Silence =
        Silence { unknown: Duration::from_millis(40), lease: Duration::from_millis(120) };

    fn copy(state: ContainerState, epoch: u64) -> Container {
        Container { name: "web".into(), state: state.into(), epoch, ..Container::default() }
    }

    fn node(name: &str) -> Node {
        Node { name: name.into(), ..Node::default() }
    }

    fn wait_for(state: NodeState, cluster: &Cluster) {
        let end = Instant::now() + Duration::from_secs(5);
        while cluster.node("a").unwrap().state() != state {
            assert!(Instant::now() < end, "never {state:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn silence_is_noticed_in_two_steps() {
        let cluster = Cluster::new(SILENCE, Vec::new());
        cluster.join(node("a"), Vec::new());
        wait_for(NodeState::Ready, &cluster);
        wait_for(NodeState::Unknown, &cluster);
        wait_for(NodeState::NotReady, &cluster);
        assert_eq!(cluster.heartbeat("a", Vec::new(), None), Some(None));
        wait_for(NodeState::Ready, &cluster);
        assert_eq!(cluster.heartbeat("b", Vec::new(), None), None);
        cluster.expel("a");
        assert_eq!(cluster.heartbeat("a", Vec::new(), None), None, "a fenced node must join first");
    }

    #[test]
    fn after_a_restart_nodes_are_unknown_until_they_join() {
        let record = NodeRecord { node: node("a"), containers: vec![copy(ContainerState::Running, 3)] };
        let cluster = Cluster::new(SILENCE, vec![record]);
        assert_eq!(cluster.node("a").unwrap().state(), NodeState::Unknown);
        assert_eq!(cluster.heartbeat("a", Vec::new(), None), None, "it must join first");
        assert_eq!(cluster.highest_epoch("web"), 3);
        cluster.join(node("a"), Vec::new());
        assert_eq!(cluster.node("a").unwrap().state(), NodeState::Ready);
    }

    #[test]
    fn the_copy_that_matters_is_the_container() {
        use ContainerState::{Frozen, Incoming, Migrating, Running, Stopped};
        let cases = [
            ((Migrating, 4), (Incoming, 4), "a"),
            ((Frozen, 4), (Running, 4), "b"),
            ((Frozen, 4), (Incoming, 4), "a"),
            ((Running, 3), (Running, 4), "b"),
            ((Running, 4), (Stopped, 5), "b"),
            ((Running, 4), (Frozen, 5), "a"),
        ];
        for ((sa, ea), (sb, eb), wanted) in cases {
            let cluster = Cluster::new(SILENCE, Vec::new());
            cluster.join(node("a"), vec![copy(sa, ea)]);
            cluster.join(node("b"), vec![copy(sb, eb)]);
            assert_eq!(cluster.container("web").unwrap().node, wanted, "{sa:?} {ea} {sb:?} {eb}");
            assert_eq!(cluster.containers().len(), 1);
            assert_eq!(cluster.containers()[0].node, wanted);
        }
    }

    #[test]
    fn a_move_shows_before_the_heartbeats_do() {
        let cluster = Cluster::new(SILENCE, Vec::new());
        cluster.join(node("a"), vec![copy(ContainerState::Migrating, 4)]);
        cluster.join(node("b"), vec![copy(ContainerState::Incoming, 4)]);
        cluster.moved("web", "a", "b", 4);
        let web = cluster.container("web").unwrap();
        assert_eq!((web.node.as_str(), web.state(), web.epoch), ("b", ContainerState::Running, 4));
        // A heartbeat that left the source before it killed its copy does not take it back.
        cluster.heartbeat("a", vec![copy(ContainerState::Frozen, 4)], None);
        assert_eq!(cluster.container("web").unwrap().node, "b");
    }

    #[test]
    fn a_cordon_outlives_a_join() {
        let cluster = Cluster::new(SILENCE, Vec::new());
        cluster.join(node("a"), Vec::new());
        assert!(cluster.cordon("a", true).unwrap().node.cordoned);
        assert!(cluster.join(node("a"), Vec::new()).node.cordoned);
        assert!(cluster.candidates("web", &BTreeMap::new())[0].cordoned);
        assert_eq!(cluster.cordon("b", true), None);
    }
}

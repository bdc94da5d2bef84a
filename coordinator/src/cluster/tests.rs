use super::*;

const SILENCE: Silence = Silence { unknown: Duration::from_millis(300), lease: Duration::from_millis(900) };

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
    assert!(cluster.candidates(&copy(ContainerState::Running, 1), &Loads::default())[0].cordoned);
    assert_eq!(cluster.cordon("b", true), None);
}

/// A report that was made before a container came does not take it away again; one that lacks it later does.
#[test]
fn a_report_that_was_under_way_does_not_hide_what_has_come() {
    use ContainerState::{Frozen, Running};
    let cluster = Cluster::new(SILENCE, Vec::new());
    cluster.join(node("a"), vec![copy(Running, 1)]);
    cluster.join(node("b"), Vec::new());
    let at = || cluster.container("web").map(|container| container.node);
    cluster.moved("web", "a", "b", 2);
    cluster.heartbeat("b", vec![copy(Frozen, 2)], None);
    cluster.heartbeat("a", vec![copy(Running, 1)], None);
    assert_eq!(at().as_deref(), Some("b"));
    // Seen, so that the next report counts.
    cluster.heartbeat("b", vec![copy(Running, 2)], None);
    cluster.heartbeat("a", Vec::new(), None);
    cluster.heartbeat("b", Vec::new(), None);
    assert_eq!(at(), None);
    // Never seen: it is gone after as many reports, and as long, as may have been under way.
    cluster.join(node("a"), vec![copy(Running, 3)]);
    cluster.moved("web", "a", "b", 4);
    cluster.heartbeat("a", Vec::new(), None);
    for _ in 0..REPORTS + 2 {
        cluster.heartbeat("b", Vec::new(), None);
        assert_eq!(at().as_deref(), Some("b"));
    }
    for (.., since) in &mut cluster.lock().nodes.get_mut("b").unwrap().brought {
        *since -= ARRIVING;
    }
    cluster.heartbeat("b", Vec::new(), None);
    cluster.heartbeat("b", Vec::new(), None);
    assert_eq!(at(), None);
}

#[test]
fn a_report_from_while_a_container_was_made_does_not_hide_that_it_runs() {
    use ContainerState::{Incoming, Running};
    let cluster = Cluster::new(SILENCE, Vec::new());
    cluster.join(node("a"), Vec::new());
    let state = || cluster.container("web").map(|container| container.state());
    cluster.noted(Container { node: "a".into(), ..copy(Running, 0) });
    cluster.heartbeat("a", vec![copy(Incoming, 0)], None);
    assert_eq!(state(), Some(Running));
    cluster.heartbeat("a", vec![copy(Running, 0)], None);
    cluster.heartbeat("a", Vec::new(), None);
    assert_eq!(state(), None, "seen once, reports count");
}

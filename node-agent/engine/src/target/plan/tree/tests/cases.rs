//! Single trees.

use super::*;

fn process(pid: Pid, ppid: Pid, pgid: Pid, sid: Pid) -> ProcessShape {
    ProcessShape {
        pid,
        ppid,
        pgid,
        sid,
        exit_signal: SIGCHLD,
        zombie: None,
        tty: None,
        levels: Vec::new(),
        namespaces: image::namespaces::Nested::default(),
        shared: image::shape::Shared::default(),
        mm: image::shape::Mm::default(),
    }
}

fn planned(processes: Vec<ProcessShape>) -> Vec<TreeStep> {
    plan(&[Node { tables: Tables::own(ROOT), ..root(true) }], &Shape { processes, ..Shape::default() })
        .unwrap()
}

#[test]
fn a_daemon_that_forked_twice_is_made_through_its_dead_leader() {
    let steps = planned(vec![process(1, 0, 1, 1), process(7, 1, 6, 6)]);
    let mut kernel = Kernel::new(root(true));
    kernel.execute(&steps);
    assert_eq!(kernel.nodes.len(), 2, "the helper is gone: {steps:?}");
    assert_eq!((kernel.nodes[&7].sid, kernel.nodes[&7].pgid), (6, 6));
}

#[test]
fn a_shell_pipeline_whose_first_process_ended_keeps_its_group() {
    let steps = planned(vec![process(1, 0, 1, 1), process(5, 1, 4, 1), process(6, 1, 4, 1)]);
    let mut kernel = Kernel::new(root(true));
    kernel.execute(&steps);
    assert_eq!((kernel.nodes[&5].pgid, kernel.nodes[&6].pgid), (4, 4));
}

#[test]
fn a_wrong_root_is_refused_by_its_pid() {
    let shape = Shape { processes: vec![process(9, 0, 9, 9)], ..Shape::default() };
    let root = Node { tables: Tables::own(ROOT), ..root(true) };
    assert_eq!(plan(&[root], &shape).unwrap_err().pid, 9);
}

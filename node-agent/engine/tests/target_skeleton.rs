//! Skeletons: their tree, mappings and memory, seen through /proc.

mod target_support;

use std::process::Command;

use engine::proc::{maps, stat, tasks};
use engine::target::{Target, TargetOptions};
use image::pages::{Batch, Owner, Run, RunKind};
use image::shape::{Mm, ProcessShape, Shape};
use target_support::*;

fn build() -> (Carrier, Target) {
    let (carrier, root) = Carrier::spawn();
    let target = Target::build(TargetOptions { root, netns: None, cgroup: None }).unwrap();
    (carrier, target)
}

/// What maps(5) shows of a process, without the tape.
fn mapped(pid: i32) -> Vec<(u64, u64, u8, bool, u64, String)> {
    let entries = maps::read_maps(pid).unwrap();
    let name = |m: &maps::Entry| String::from_utf8(m.name.clone()).unwrap();
    entries
        .iter()
        .filter(|m| !name(m).starts_with("/memfd:gantry-tape") && name(m) != "[vsyscall]")
        .map(|m| (m.start, m.end, m.prot, m.shared, m.offset, name(m)))
        .collect()
}

fn only_child(pid: i32) -> i32 {
    let children = tasks::children(pid).unwrap();
    assert_eq!(children.len(), 1, "children of {pid}: {children:?}");
    children[0]
}

#[test]
fn a_skeleton_has_the_mappings_and_memory_of_its_source() {
    let victim = Victim::spawn(Command::new("python3").args(["-c", "import time, json; time.sleep(1000)"]));
    let pid = victim.pid();
    wait_until("python sleeps", || {
        std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|w| w.contains("nanosleep"))
    });
    let shape = shape_of(pid);
    let (carrier, mut target) = build();
    target.reconcile(&shape).unwrap();
    let skeleton = only_child(carrier.pid);
    assert_eq!(inner_pid(skeleton), pid);
    assert_eq!(mapped(skeleton), mapped(pid));

    let writer = target.writer();
    let mm = &shape.processes[0].mm;
    copy_memory(pid, mm, &mut |batch| writer.apply(batch).unwrap());
    for vma in mm.vmas.iter().filter(|v| has_contents(v)) {
        assert!(read_memory(skeleton, vma) == read_memory(pid, vma), "memory at {:#x} differs", vma.start);
    }
    let link = |pid: i32, what: &str| std::fs::read_link(format!("/proc/{pid}/{what}")).unwrap();
    assert_eq!(link(skeleton, "exe"), link(pid, "exe"));
    let raw = |pid: i32, what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap();
    for what in ["cmdline", "environ", "auxv"] {
        assert_eq!(raw(skeleton, what), raw(pid, what), "{what}");
    }
    assert_eq!(stat::read(skeleton).unwrap().mm, stat::read(pid).unwrap().mm);
    target.discard();
    assert!(!std::path::Path::new(&format!("/proc/{skeleton}/exe")).exists());
}

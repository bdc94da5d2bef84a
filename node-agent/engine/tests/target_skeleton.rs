//! Skeletons: their tree, mappings and memory, seen through /proc.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod target_support;

use std::process::Command;

use engine::proc::{maps, stat, tasks};
use engine::target::{Target, TargetOptions};
use image::namespaces::Nested;
use image::pages::{Batch, Owner, Run, RunKind};
use image::shape::{Mm, ProcessShape, Shape};
use target_support::*;

fn build() -> (Carrier, Target) {
    let (carrier, root) = Carrier::spawn();
    let target = Target::build(TargetOptions {
        root,
        netns: None,
        cgroup: None,
        nested: engine::target::NestedMounts::default(),
    })
    .unwrap();
    (carrier, target)
}

/// What maps(5) shows of a process, without the tape; neighbours with one backing count as one (the kernel
/// joins them or not as their history has it), and the heap has no name before its end is set.
fn mapped(pid: i32) -> Vec<(u64, u64, u8, bool, u64, String)> {
    let mut out: Vec<(u64, u64, u8, bool, u64, String)> = Vec::new();
    for m in maps::read_maps(pid).unwrap() {
        let name = String::from_utf8(m.name.clone()).unwrap().replace("[heap]", "");
        if name.starts_with("/memfd:gantry-tape") || name == "[vsyscall]" {
            continue;
        }
        match out.last_mut() {
            Some(last)
                if (last.1, last.2, last.3, &last.5) == (m.start, m.prot, m.shared, &name)
                    && (m.inode == 0 || last.4 + (last.1 - last.0) == m.offset) =>
            {
                last.1 = m.end;
            }
            _ => out.push((m.start, m.end, m.prot, m.shared, m.offset, name)),
        }
    }
    out
}

fn only_child(pid: i32) -> i32 {
    let children = tasks::children(pid).unwrap();
    assert_eq!(children.len(), 1, "children of {pid}: {children:?}");
    children[0]
}

#[test]
fn a_skeleton_has_the_mappings_and_memory_of_its_source() {
    let victim =
        Victim::spawn(Command::new("python3").args(["-c", "import time, json; time.sleep(1000)"])).asleep();
    let pid = victim.pid();
    let shape = shape_of(pid);
    let (carrier, mut target) = build();
    target.reconcile(&shape).unwrap();
    let skeleton = only_child(carrier.pid);
    assert_eq!(inner_pid(skeleton), pid);
    let (here, there) = (mapped(skeleton), mapped(pid));
    for (a, b) in here.iter().zip(&there) {
        assert_eq!(a, b);
    }
    assert_eq!(here.len(), there.len());

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

fn process(pid: i32, ppid: i32, pgid: i32, sid: i32) -> ProcessShape {
    ProcessShape {
        pid,
        ppid,
        pgid,
        sid,
        exit_signal: 17,
        zombie: None,
        tty: None,
        levels: Vec::new(),
        namespaces: Nested::default(),
        shared: image::shape::Shared::default(),
        mm: Mm::default(),
    }
}

/// (pid, parent, group, session) as the container numbers them.
fn tree(root: i32) -> Vec<(i32, i32, i32, i32)> {
    let mut rows = Vec::new();
    for host in descendants(root) {
        let status = engine::proc::status::read(host).unwrap();
        let parent = inner_pid(stat::read(host).unwrap().ppid);
        let last = |list: &[i32]| *list.last().unwrap();
        rows.push((status.inner_pid(), parent, last(&status.ns_pgid), last(&status.ns_sid)));
    }
    rows.sort_unstable();
    rows
}

#[test]
fn a_tree_with_dead_leaders_is_made_and_follows_changes() {
    let (carrier, mut target) = build();
    let shape = |processes: Vec<ProcessShape>| Shape { processes, ..Shape::default() };
    // A shell with a pipeline whose first process has ended, and a daemon whose session leader has.
    let first = vec![
        process(1, 0, 0, 0),
        process(10, 1, 10, 10),
        process(12, 10, 11, 10),
        process(13, 10, 11, 10),
        process(21, 1, 20, 20),
    ];
    target.reconcile(&shape(first)).unwrap();
    let want = [(10, 1, 10, 10), (12, 10, 11, 10), (13, 10, 11, 10), (21, 1, 20, 20)];
    assert_eq!(tree(carrier.pid), want);
    // One ends, one is new, one is left by its parent.
    let second =
        vec![process(1, 0, 0, 0), process(12, 1, 11, 10), process(21, 1, 20, 20), process(22, 21, 20, 20)];
    target.reconcile(&shape(second)).unwrap();
    assert_eq!(tree(carrier.pid), [(12, 1, 11, 10), (21, 1, 20, 20), (22, 21, 20, 20)]);
    target.discard();
    assert!(tree(carrier.pid).is_empty());
}

#[test]
fn pages_given_back_are_zero_again_and_changed_mappings_keep_the_rest() {
    let (carrier, mut target) = build();
    let victim = Victim::spawn(Command::new("sleep").arg("1000")).asleep();
    let mut shape = shape_of(victim.pid());
    let mm = &mut shape.processes[0].mm;
    let at = 0x2000_0000;
    let anonymous = |start: u64, pages: u64, prot: u8| image::shape::Vma {
        start,
        end: start + pages * 4096,
        prot,
        backing: image::shape::Backing::Anonymous,
        flags: image::shape::VmaFlags::default(),
        anon_name: None,
        huge: 0,
    };
    mm.vmas.insert(0, anonymous(at, 8, 3));
    target.reconcile(&shape).unwrap();
    let pid = shape.processes[0].pid;
    let skeleton = only_child(carrier.pid);
    let writer = target.writer();
    let run = |page: u64, pages: u32, kind: RunKind| Run { addr: at + page * 4096, pages, kind };
    let data = vec![7; 8 * 4096];
    let apply = |runs: &[Run], data: &[u8]| {
        writer.apply(&Batch { owner: Owner::Process(pid), runs, data }).unwrap();
    };
    apply(&[run(0, 8, RunKind::Data)], &data);
    // Dropped and zero pages; one of them is written again before it was dropped.
    apply(&[run(1, 1, RunKind::Drop), run(2, 2, RunKind::Zero)], &[]);
    apply(&[run(3, 1, RunKind::Data)], &[9; 4096]);
    // The mapping loses its end, and a part of it becomes read-only.
    let mm = &mut shape.processes[0].mm;
    mm.vmas[0] = anonymous(at, 4, 3);
    mm.vmas.insert(1, anonymous(at + 4 * 4096, 2, 1));
    target.reconcile(&shape).unwrap();
    let first = |page: u64| read_memory(skeleton, &anonymous(at + page * 4096, 1, 3))[17];
    assert_eq!([first(0), first(1), first(2), first(3), first(4), first(5)], [7, 0, 0, 9, 7, 7]);
    // Read-only memory is written too.
    apply(&[run(4, 1, RunKind::Data)], &[5; 4096]);
    assert_eq!(first(4), 5);
    let outside = writer.apply(&Batch {
        owner: Owner::Process(pid),
        runs: &[run(6, 1, RunKind::Data)],
        data: &[1; 4096],
    });
    assert_eq!(outside.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn a_file_that_differs_is_named() {
    let (_carrier, mut target) = build();
    let victim = Victim::spawn(Command::new("sleep").arg("1000")).asleep();
    let mut shape = shape_of(victim.pid());
    let path = shape.processes[0].mm.exe.path.clone();
    for vma in &mut shape.processes[0].mm.vmas {
        if let image::shape::Backing::File { file, .. } = &mut vma.backing
            && file.path == path
        {
            file.size += 1;
        }
    }
    let error = target.reconcile(&shape).unwrap_err().to_string();
    assert!(error.contains(&path) && error.contains("bytes"), "{error}");
}

/// The agent dies without a word: nothing of a copy may be left.
#[test]
fn skeletons_die_with_their_thread() {
    let (carrier, pid) = std::thread::spawn(|| {
        let (carrier, mut target) = build();
        let processes = vec![process(1, 0, 0, 0), process(5, 1, 5, 5)];
        target.reconcile(&Shape { processes, ..Shape::default() }).unwrap();
        let child = only_child(carrier.pid);
        std::mem::forget(target);
        (carrier, child)
    })
    .join()
    .unwrap();
    for pid in [carrier.pid, pid] {
        wait_until("the skeleton is gone", || {
            stat::read(pid).map_or(true, |s| s.state == b'Z' || s.state == b'X')
        });
    }
}

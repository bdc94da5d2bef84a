//! Plans carried out on hosts with the kernel's rules about order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use image::Pid;
use image::groups::{Device, Group, Groups, Member, Tree, Value};
use proptest::prelude::*;

use super::apply::{Applier, ApplyError, Task};
use super::fake::Fake;
use super::host::{Host, HostTree};
use super::known;
use super::plan::plan;

fn tree(unified: bool, controllers: &[&str]) -> HostTree {
    HostTree { unified, controllers: controllers.iter().map(|c| (*c).to_owned()).collect() }
}

fn pure_v2() -> Host {
    let trees = vec![tree(true, &["cpu", "cpuset", "io", "memory", "pids"])];
    Host {
        trees,
        cpus: "0-7".to_owned(),
        mems: "0".to_owned(),
        devices: [("block/sda".to_owned(), (259, 3))].into(),
        ..Host::default()
    }
}

fn hybrid() -> Host {
    let names = [&["cpu"][..], &["cpuset"], &["blkio"], &["memory"], &["pids"]];
    let mut trees: Vec<HostTree> = names.iter().map(|names| tree(false, names)).collect();
    trees.push(tree(true, &[]));
    Host { trees, ..pure_v2() }
}

fn value(file: &str, line: impl std::fmt::Display) -> Value {
    Value { file: file.to_owned(), lines: vec![line.to_string()] }
}

/// Processes that the container has.
const PIDS: [Pid; 6] = [1, 2, 3, 4, 5, 6];

fn tasks() -> Vec<Task> {
    PIDS.iter().map(|pid| Task { member: Member { pid: *pid, tid: *pid }, host: 1000 + pid }).collect()
}

fn hosts() -> Vec<Pid> {
    PIDS.iter().map(|pid| 1000 + pid).collect()
}

/// A container's v2 tree as the kernel could have it: processes in leaves alone, and controllers handed down.
fn any_v2() -> impl Strategy<Value = Groups> {
    let paths = prop::sample::subsequence(vec!["a", "a/x", "a/x/p", "a/y", "b", "b/z"], 0..=6);
    let numbers = prop::collection::vec((1..10_000_u64, 1..1_000_u64, any::<u8>()), 7);
    (paths, numbers, prop::collection::vec(0..6_usize, 6)).prop_map(|(mut paths, numbers, places)| {
        // What is above a group is there, too.
        for path in paths.clone() {
            for (at, _) in path.match_indices('/') {
                paths.push(&path[..at]);
            }
        }
        paths.push("");
        paths.sort_by_key(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>());
        paths.dedup();
        let all = ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned);
        let is_above = |path: &str| {
            paths
                .iter()
                .any(|other| path.is_empty() && !other.is_empty() || other.starts_with(&format!("{path}/")))
        };
        let mut groups: Vec<Group> = Vec::new();
        for (path, (big, small, dice)) in paths.iter().zip(numbers) {
            let controllers = match path.rsplit_once('/') {
                _ if path.is_empty() => all.to_vec(),
                Some((above, _)) => groups.iter().find(|g| g.path == above).unwrap().subtree.clone(),
                None => groups[0].subtree.clone(),
            };
            let keep = |name: &&String| {
                !(name.as_str() == "io" && dice & 1 == 0 || name.as_str() == "cpu" && dice & 2 == 0)
            };
            let subtree =
                if is_above(path) { controllers.iter().filter(keep).cloned().collect() } else { vec![] };
            let mut values = vec![
                value("cpu.weight", big.max(101)),
                value("cpu.max", format!("{} 100000", 1000 + small)),
                value("memory.max", big * 4096),
                value("memory.swap.max", small * 4096),
                value("memory.low", small * 4096),
                value("pids.max", 100 + small),
                value("io.max", format!("8:0 wbps={big}")),
            ];
            values.retain(|v| {
                controllers.iter().any(|c| Some(c.as_str()) == known::controller(&v.file))
                    && !(dice & 4 == 0 && v.file.starts_with("memory"))
            });
            groups.push(Group { path: (*path).to_owned(), controllers, subtree, values, ..Group::default() });
        }
        let leaves: Vec<usize> = (0..groups.len()).filter(|n| groups[*n].subtree.is_empty()).collect();
        for (pid, place) in PIDS.iter().zip(places) {
            let group = &mut groups[leaves[place % leaves.len()]];
            group.residents += 1;
            if !group.path.is_empty() {
                group.processes.push(*pid);
            }
        }
        let device = Device { block: true, major: 8, minor: 0, name: "block/sda".to_owned() };
        let tree = Tree { unified: true, controllers: all.to_vec(), groups };
        Groups {
            trees: vec![tree],
            devices: vec![device],
            cpus: "0-3".to_owned(),
            mems: "0".to_owned(),
            widen: false,
        }
    })
}

fn carry_out(host: &Host, states: &[&Groups]) -> Fake {
    let mut fake = Fake::new(&host.trees, &hosts());
    let roots: Vec<PathBuf> = fake.trees.iter().map(|(root, _)| root.clone()).collect();
    let mut applier = Applier::new(roots);
    for groups in states {
        let plan = plan(groups, host).unwrap();
        applier.structure(&mut fake, &plan, &tasks()).unwrap_or_else(|error| panic!("{error:?} {groups:#?}"));
    }
    applier.limits(&mut fake, &tasks()).unwrap_or_else(|error| panic!("{error:?} {states:#?}"));
    fake
}

/// The groups and members of a tree as the fake has them.
fn places(fake: &Fake, tree: usize) -> BTreeMap<Pid, String> {
    let root = &fake.trees[tree].0;
    let of = |pid: &Pid| {
        let place = &fake.places[&(root.clone(), 1000 + pid)];
        place.strip_prefix(root).unwrap().to_str().unwrap().to_owned()
    };
    PIDS.iter().map(|pid| (*pid, of(pid))).collect()
}

fn expected(groups: &Groups) -> BTreeMap<Pid, String> {
    let all = groups.trees[0].groups.iter();
    let nested = all.flat_map(|group| group.processes.iter().map(|pid| (*pid, group.path.clone())));
    let mut places: BTreeMap<Pid, String> = PIDS.iter().map(|pid| (*pid, String::new())).collect();
    places.extend(nested);
    places
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn v2_groups_are_the_same_on_another_v2_host_whatever_came_before(first in any_v2(), then in any_v2()) {
        let fake = carry_out(&pure_v2(), &[&first, &then]);
        prop_assert_eq!(places(&fake, 0), expected(&then));
        let mut state = BTreeMap::new();
        for group in &then.trees[0].groups {
            let dir = Path::new("/h0/own").join(&group.path);
            let dir = if group.path.is_empty() { PathBuf::from("/h0/own") } else { dir };
            for value in &group.values {
                let line = value.lines[0].replace("8:0 ", "259:3 ");
                state.insert(dir.join(&value.file), vec![line]);
            }
            if !group.subtree.is_empty() {
                state.insert(dir.join("cgroup.subtree_control"), vec![group.subtree.join(" ")]);
            }
        }
        prop_assert_eq!(fake.state(), state);
        let dirs: BTreeSet<String> = fake.dirs.iter().map(|dir| dir.strip_prefix("/h0/own").unwrap().to_str().unwrap().to_owned()).collect();
        let wanted: BTreeSet<String> = then.trees[0].groups.iter().map(|group| group.path.clone()).collect();
        prop_assert_eq!(dirs, wanted);
    }

    #[test]
    fn v2_groups_become_v1_groups(groups in any_v2()) {
        // Swap without a limit of memory has no v1 form, and is refused: not the subject here.
        let fake = carry_out(&hybrid(), &[&groups]);
        let of = |path: &str, tree: usize, file: &str| {
            let dir = if path.is_empty() { PathBuf::from(format!("/h{tree}/own")) } else { PathBuf::from(format!("/h{tree}/own/{path}")) };
            fake.files.get(&dir.join(file)).cloned()
        };
        for group in &groups.trees[0].groups {
            for value in &group.values {
                let line = &value.lines[0];
                let (tree, file, want) = match value.file.as_str() {
                    "cpu.weight" => (0, "cpu.shares", super::translate::shares(line.parse().unwrap()).to_string()),
                    "cpu.max" => (0, "cpu.cfs_quota_us", line.split(' ').next().unwrap().to_owned()),
                    "memory.max" => (3, "memory.limit_in_bytes", line.clone()),
                    "pids.max" => (4, "pids.max", line.clone()),
                    "io.max" => (2, "blkio.throttle.write_bps_device", line.replace("8:0 wbps=", "259:3 ")),
                    _ => continue,
                };
                prop_assert_eq!(of(&group.path, tree, file), Some(want));
            }
            // Every cpuset can be entered.
            if group.controllers.iter().any(|c| c == "cpuset") {
                prop_assert_eq!(of(&group.path, 1, "cpuset.cpus"), Some("0-7".to_owned()));
            }
        }
        // The bare v2 hierarchy of a hybrid host has the groups, too.
        prop_assert_eq!(places(&fake, 5), expected(&groups));
    }
}

/// A container's groups on a hybrid host: in one v1 hierarchy with these, and flat in v2.
fn v1(controller: &str, groups: Vec<Group>) -> Groups {
    let residents = u32::try_from(PIDS.len()).unwrap();
    let flat = Group { residents, ..Group::default() };
    let trees = vec![
        Tree { unified: false, controllers: vec![controller.to_owned()], groups },
        Tree { unified: true, controllers: Vec::new(), groups: vec![flat] },
    ];
    Groups { trees, cpus: "0-3".to_owned(), mems: "0".to_owned(), ..Groups::default() }
}

fn group(path: &str, values: Vec<Value>, processes: &[Pid]) -> Group {
    let residents = u32::try_from(processes.len()).unwrap();
    Group { path: path.to_owned(), values, residents, processes: processes.to_vec(), ..Group::default() }
}

fn reasons(groups: &Groups, host: &Host) -> String {
    let refusals = plan(groups, host).expect_err("refused");
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn v1_groups_become_v2_groups_with_their_controllers_handed_down() {
    let limit = value("memory.limit_in_bytes", 1 << 20);
    let own = vec![value("memory.limit_in_bytes", 1 << 30)];
    let groups =
        v1("memory", vec![group("", own, &[]), group("a", vec![], &[]), group("a/x", vec![limit], &PIDS)]);
    let fake = carry_out(&pure_v2(), &[&groups]);
    let read = |path: &str| fake.files.get(Path::new(path)).cloned().unwrap_or_default();
    assert_eq!(read("/h0/own/memory.max"), (1 << 30).to_string());
    assert_eq!(read("/h0/own/a/x/memory.max"), (1 << 20).to_string());
    assert_eq!(
        (read("/h0/own/cgroup.subtree_control"), read("/h0/own/a/cgroup.subtree_control")),
        ("memory".to_owned(), "memory".to_owned())
    );
    assert!(places(&fake, 0).values().all(|place| place == "a/x"));
}

#[test]
fn what_cannot_be_mapped_is_named() {
    let limited = |pids: &[Pid]| {
        v1(
            "memory",
            vec![group("", vec![], &[]), group("a", vec![value("memory.limit_in_bytes", 4096)], pids)],
        )
    };
    // Processes beside a group with limits.
    assert!(
        reasons(&limited(&PIDS[1..]), &pure_v2()).contains("its own control group holds processes beside")
    );
    // No such controller.
    let bare = Host { trees: vec![tree(true, &["pids"])], ..pure_v2() };
    let text = reasons(&limited(&PIDS), &bare);
    assert!(
        text.contains("memory.limit_in_bytes of its control group a is 4096")
            && text.contains("lacks the controller memory"),
        "{text}"
    );
    // CPUs that are not there, and a device.
    let set =
        |widen| Groups { widen, ..v1("cpuset", vec![group("", vec![value("cpuset.cpus", "2-9")], &[])]) };
    let small = Host { cpus: "0-3".to_owned(), ..hybrid() };
    assert!(
        reasons(&set(false), &small).contains("the target has no CPU 4-9"),
        "{}",
        reasons(&set(false), &small)
    );
    let widened = plan(&set(true), &small).unwrap();
    assert_eq!(widened.trees[1].groups[0].values["cpuset.cpus"], ["2-3"]);
    assert!(widened.notes[0].contains("2-9") && widened.notes[0].contains("2-3"), "{:?}", widened.notes);
    let io = Groups {
        devices: vec![Device { block: true, major: 8, minor: 0, name: "block/nvme7n1".to_owned() }],
        ..v1("blkio", vec![group("", vec![value("blkio.throttle.read_bps_device", "8:0 1000")], &[])])
    };
    assert!(reasons(&io, &hybrid()).contains("no device block/nvme7n1"));
    // A process that is in different groups of what is one hierarchy there.
    let mut two = limited(&PIDS);
    two.trees.push(Tree {
        unified: false,
        controllers: vec!["cpu".to_owned()],
        groups: vec![group("", vec![], &[]), group("b", vec![], &PIDS)],
    });
    assert!(reasons(&two, &pure_v2()).contains("process 1 is in its control group a of one hierarchy"));
    // A named hierarchy that is not mounted, with groups in it; without any nothing is lost.
    let named = |groups| v1("name=systemd", groups);
    assert!(
        reasons(&named(vec![group("", vec![], &[]), group("s", vec![], &PIDS)]), &hybrid())
            .contains("name=systemd")
    );
    assert!(plan(&named(vec![group("", vec![], &[])]), &hybrid()).is_ok());
}

#[test]
fn everything_stays_everything_on_a_host_of_another_size() {
    let all =
        v1("cpuset", vec![group("", vec![value("cpuset.cpus", "0-3"), value("cpuset.mems", "0")], &[])]);
    let planned = plan(&all, &hybrid()).unwrap();
    assert_eq!(planned.trees[1].groups[0].values["cpuset.cpus"], ["0-7"]);
    let planned = plan(&all, &pure_v2()).unwrap();
    assert!(planned.trees[0].groups[0].values.is_empty() && planned.notes.is_empty());
}

#[test]
fn a_peer_names_nothing_outside_of_the_container() {
    let bad = [
        group("../other", vec![], &[]),
        group("a//b", vec![], &[]),
        group("/a", vec![], &[]),
        group("a", vec![value("../cpu.shares", 2)], &[]),
        group("a", vec![value("cgroup.procs", 1)], &[]),
        group("a", vec![value("cgroup.kill", 1)], &[]),
        group("a", vec![value("release_agent", "/x")], &[]),
        group("a", vec![value("cpu.shares", 2)], &[]),
        group("a", vec![value("memory.limit_in_bytes", "1\n2")], &[]),
    ];
    for bad in bad {
        let groups = v1("memory", vec![group("", vec![], &[]), bad]);
        assert!(plan(&groups, &hybrid()).is_err(), "{groups:?}");
    }
    assert!(plan(&v1("memory", vec![]), &hybrid()).is_err());
}

#[test]
fn a_copy_that_needs_more_than_its_limit_is_named_and_not_killed() {
    let host = pure_v2();
    let own = Group {
        values: vec![value("memory.max", 4096)],
        controllers: vec!["memory".to_owned()],
        ..Group::default()
    };
    let groups = Groups {
        trees: vec![Tree { unified: true, controllers: vec!["memory".to_owned()], groups: vec![own] }],
        ..Groups::default()
    };
    let mut fake = Fake::new(&host.trees, &hosts());
    fake.files.insert("/h0/own/memory.current".into(), "8192".to_owned());
    let mut applier = Applier::new([PathBuf::from("/h0/own")]);
    applier.structure(&mut fake, &plan(&groups, &host).unwrap(), &tasks()).unwrap();
    let error = applier.limits(&mut fake, &tasks()).unwrap_err();
    assert!(matches!(error, ApplyError::Beyond { used: 8192, limit: 4096, .. }), "{error:?}");
    assert_eq!(fake.files[Path::new("/h0/own/memory.max")], "max");
}

#[test]
fn a_setting_that_this_kernel_does_not_know_ends_the_move_before_the_freeze() {
    let host = pure_v2();
    let own = Group {
        values: vec![value("memory.new.limit", 1)],
        controllers: vec!["memory".to_owned()],
        ..Group::default()
    };
    let groups = Groups {
        trees: vec![Tree { unified: true, controllers: vec!["memory".to_owned()], groups: vec![own] }],
        ..Groups::default()
    };
    let mut fake = Fake::new(&host.trees, &hosts());
    let mut applier = Applier::new([PathBuf::from("/h0/own")]);
    let error = applier.structure(&mut fake, &plan(&groups, &host).unwrap(), &tasks()).unwrap_err();
    assert!(error.to_string().contains("memory.new.limit"), "{error}");
}

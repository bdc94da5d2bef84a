//! Control groups on the real kernel: limits that were changed by hand and groups that the container made move
//! with it, and what cannot is refused by name. Needs root, and the controllers that each test names.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::agent::{Agent, Ca, migrate, try_migrate};
use common::{Node, bundle, chain, request, unique, wait_for};
use image::groups::Groups;
use node_agent::runtime::cgroup::carry::apply::{Applier, Task};
use node_agent::runtime::cgroup::carry::files::Kernel;
use node_agent::runtime::cgroup::carry::host::Host;
use node_agent::runtime::cgroup::carry::members::Proc;
use node_agent::runtime::cgroup::carry::plan::plan;
use node_agent::runtime::cgroup::carry::read::{ReadError, Reader};
use node_agent::runtime::cgroup::{Cgroup, Layout, remove_parent};
use node_agent::runtime::{ContainerName, MovingNode};
use node_agent::session::ports::Node as _;
use proto::v1;
use serde_json::{Value, json};

/// Makes groups in what is mounted, puts itself, a child and a thread into them, and says where they are, again and
/// again.
const GROUPS: &str = r#"
import os, sys, threading, time
C = '/sys/fs/cgroup/'
def say(path, text): open(C + path, 'w').write(text)
def make(*paths):
    for path in paths: os.makedirs(C + path)
have = set(os.listdir(C))
def at(hierarchy, path=''):
    return hierarchy + '/' + path
make(at('unified', 'init'), at('unified', 'work/deep'), at('unified', 'mixed/one'))
say('unified/init/cgroup.procs', '0')
if 'hugetlb' in open(C + 'unified/cgroup.controllers').read():
    say('unified/cgroup.subtree_control', '+hugetlb')
    say('unified/work/cgroup.subtree_control', '+hugetlb')
    say('unified/work/deep/hugetlb.2MB.max', '4194304')
say('unified/work/cgroup.max.descendants', '7')
say('unified/mixed/one/cgroup.type', 'threaded')
for hierarchy in have - {'unified'}:
    make(at(hierarchy, 'part/inner'))
    if hierarchy == 'cpuset':
        for path in 'part', 'part/inner':
            say('cpuset/' + path + '/cpuset.cpus', '0'); say('cpuset/' + path + '/cpuset.mems', '0')
if 'memory' in have:
    say('memory/part/memory.limit_in_bytes', '134217728')
    say('memory/part/inner/memory.limit_in_bytes', '67108864')
    say('memory/part/inner/memory.memsw.limit_in_bytes', '67108864')
if 'cpu' in have: say('cpu/part/cpu.shares', '512'); say('cpu/part/inner/cpu.cfs_quota_us', '70000')
if 'pids' in have: say('pids/part/inner/pids.max', '33')
if 'blkio' in have: os.chown(C + 'blkio/part', 7, 8)
def child():
    say('unified/work/deep/cgroup.procs', '0')
    for hierarchy in have - {'unified'}: say(hierarchy + '/part/inner/cgroup.procs', '0')
    time.sleep(10000)
if os.fork() == 0: child()
def mixed():
    # The process is in a group whose threads are divided.
    say('unified/mixed/cgroup.procs', '0')
    def thread():
        say('unified/mixed/one/cgroup.threads', str(threading.get_native_id()))
        if 'cpu' in have: say('cpu/part/tasks', str(threading.get_native_id()))
        time.sleep(10000)
    threading.Thread(target=thread).start()
    time.sleep(10000)
if os.fork() == 0: mixed()
def seen():
    rows = []
    for pid in sorted(int(p) for p in os.listdir('/proc') if p.isdigit()):
        for tid in sorted(int(t) for t in os.listdir('/proc/%d/task' % pid)):
            places = sorted(line.split(':', 1)[1].strip() for line in open('/proc/%d/task/%d/cgroup' % (pid, tid)))
            rows.append('%d/%d %s' % (pid, tid, ' '.join(places)))
    return ' | '.join(rows)
n = 0
while True:
    print(n, seen(), flush=True); n += 1; time.sleep(0.02)
"#;

/// The container may write to its groups.
fn writable(config: &mut Value) {
    for mount in config["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
        }
    }
}

fn cgroup(parent: &str, name: &str) -> Cgroup {
    Cgroup::at(&Layout::read().unwrap(), parent, name)
}

fn look(cgroup: &Cgroup) -> Groups {
    Reader::new(cgroup, false).look(&Proc, &[]).unwrap_or_else(|error| match error {
        ReadError::Refused(list) => panic!("{list:?}"),
        error => panic!("{}", chain(&error)),
    })
}

fn v1(cgroup: &Cgroup, controller: &str) -> Option<PathBuf> {
    cgroup.controller(controller).map(Path::to_owned)
}

fn write(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    fs::write(path, text).unwrap_or_else(|error| panic!("{} {text}: {error}", path.display()));
}

fn log(agent: &Agent, name: &str) -> String {
    let path = agent.dir.path().join("state/containers").join(name).join("log");
    fs::read_to_string(path).unwrap_or_default()
}

fn last_line(agent: &Agent, name: &str) -> (u64, String) {
    let text = log(agent, name);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = whole.lines().next_back().unwrap_or_default();
    let (number, seen) = line.split_once(' ').unwrap_or(("0", ""));
    (number.parse().unwrap_or_else(|_| panic!("{line}")), seen.to_owned())
}

async fn two_agents() -> (Agent, Agent) {
    let ca = Rc::new(Ca::new());
    let mut one = Agent::named("node-a", Rc::clone(&ca), "");
    let mut two = Agent::named("node-b", ca, "");
    one.start();
    two.start();
    (one, two)
}

async fn run(agent: &Agent, script: &str, change: impl FnOnce(&mut Value)) -> String {
    let name = unique("g");
    let bundle = bundle(agent.dir.path(), &["python3", "-u", "-c", script], change);
    let bundle = bundle.to_str().unwrap().to_owned();
    let request = v1::RunContainerRequest { name: name.clone(), bundle, ..Default::default() };
    agent.client("root.admin.gantry").await.run_container(request).await.unwrap();
    name
}

/// What an administrator changes by hand while a container runs, in the hierarchies of this host.
fn by_hand(cgroup: &Cgroup) -> BTreeMap<PathBuf, String> {
    let mut done = BTreeMap::new();
    let mut say = |controller: &str, file: &str, text: &str| {
        if let Some(dir) = v1(cgroup, controller) {
            write(dir.join(file), text);
            done.insert(PathBuf::from(controller).join(file), text.to_owned());
        }
    };
    say("memory", "memory.limit_in_bytes", "268435456");
    say("memory", "memory.memsw.limit_in_bytes", "402653184");
    say("memory", "memory.swappiness", "17");
    say("cpu", "cpu.cfs_quota_us", "90000");
    say("cpu", "cpu.shares", "333");
    say("pids", "pids.max", "222");
    if let Some(dir) = v1(cgroup, "devices") {
        write(dir.join("devices.allow"), "b 7:0 r");
        write(dir.join("devices.deny"), "c 1:9 rwm");
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_the_container_and_limits_set_by_hand_move_there_and_back() {
    let (one, two) = two_agents().await;
    let (mut at_one, mut at_two) =
        (one.client("root.admin.gantry").await, two.client("root.admin.gantry").await);
    let limited = |config: &mut Value| {
        writable(config);
        let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 200}]);
        config["linux"]["resources"] = json!({"devices": rules});
    };
    let name = run(&one, GROUPS, limited).await;
    wait_for("its groups", || last_line(&one, &name).1.contains("/mixed/one"));
    let (here, there) = (cgroup(&one.parent, &name), cgroup(&two.parent, &name));
    let set = by_hand(&here);
    assert!(!set.is_empty() || v1(&here, "memory").is_none());
    let before = look(&here);
    let (number, inside) = last_line(&one, &name);
    let nested: usize = before.trees.iter().map(|tree| tree.groups.len() - 1).sum();
    assert!(nested >= 5, "{before:#?}");
    let threads: usize =
        before.trees.iter().flat_map(|tree| &tree.groups).map(|group| group.threads.len()).sum();
    assert!(threads >= 2, "a process with threads in two groups: {before:#?}");

    migrate((&one, &mut at_one), (&two, &mut at_two), &name, 1).await;
    let after = look(&there);
    assert_eq!(after.trees, before.trees);
    // Not only by the same reader.
    for (file, text) in &set {
        let controller = file.components().next().unwrap().as_os_str().to_str().unwrap();
        let path = v1(&there, controller).unwrap().join(file.file_name().unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), text, "{}", path.display());
    }
    if let Some(dir) = v1(&there, "memory") {
        assert_eq!(
            fs::read_to_string(dir.join("part/inner/memory.limit_in_bytes")).unwrap().trim(),
            "67108864"
        );
        assert!(!fs::read_to_string(dir.join("part/inner/cgroup.procs")).unwrap().is_empty());
    }
    if let Some(dir) = v1(&there, "devices") {
        let list = fs::read_to_string(dir.join("devices.list")).unwrap();
        for (rule, there) in
            [("b 7:0 r", true), ("c 10:200 rwm", true), ("c 1:9 rwm", false), ("a *:* rwm", false)]
        {
            assert_eq!(list.lines().any(|line| line == rule), there, "{rule}: {list}");
        }
    }
    let unified = there.unified().unwrap();
    assert_eq!(fs::read_to_string(unified.join("mixed/one/cgroup.type")).unwrap().trim(), "threaded");
    assert!(!fs::read_to_string(unified.join("mixed/one/cgroup.threads")).unwrap().is_empty());
    // From the inside everything is where it was.
    wait_for("it runs on", || last_line(&two, &name).0 > number + 20);
    assert_eq!(last_line(&two, &name).1, inside);
    for group in &here.groups {
        assert!(!group.path.exists(), "{} is left at the source", group.path.display());
    }

    // A change between two moves travels, too, and a group that went is gone.
    if let Some(dir) = v1(&there, "pids") {
        write(dir.join("part/inner/pids.max"), "44");
    }
    migrate((&two, &mut at_two), (&one, &mut at_one), &name, 2).await;
    let mut again = before.clone();
    for value in again.trees.iter_mut().flat_map(|tree| &mut tree.groups).flat_map(|group| &mut group.values)
    {
        if value.file == "pids.max" && value.lines == ["33"] {
            value.lines = vec!["44".to_owned()];
        }
    }
    let said = log(&one, &name);
    assert_eq!(look(&here).trees, again.trees, "it said {}", &said[said.len().saturating_sub(500)..]);
    let back = last_line(&one, &name).0;
    wait_for("it runs on at home", || last_line(&one, &name).0 > back + 20);
    assert_eq!(last_line(&one, &name).1, inside);
    at_one.delete_container(v1::DeleteContainerRequest { name, force: true }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_target_refuses_ends_the_move_and_nothing_is_left_there() {
    let (one, two) = two_agents().await;
    let (mut at_one, mut at_two) =
        (one.client("root.admin.gantry").await, two.client("root.admin.gantry").await);
    let name = run(&one, GROUPS, writable).await;
    wait_for("its groups", || last_line(&one, &name).1.contains("/mixed/one"));
    let (here, there) = (cgroup(&one.parent, &name), cgroup(&two.parent, &name));
    let Some(dir) = v1(&here, "cpu") else { return };
    write(dir.join("cpu.cfs_quota_us"), "90000");
    // The kernel gives a group no larger part of the CPUs than the group above it has.
    let above = v1(&there, "cpu").unwrap().parent().unwrap().to_owned();
    fs::create_dir_all(&above).unwrap();
    write(above.join("cpu.cfs_quota_us"), "50000");

    let before = look(&here);
    let number = last_line(&one, &name).0;
    let ended = try_migrate((&one, &mut at_one), (&two, &mut at_two), &name, 1).await;
    assert_eq!(ended.phase(), v1::Phase::Failed);
    assert!(ended.message.contains("cpu.cfs_quota_us"), "{}", ended.message);
    wait_for("it runs on", || last_line(&one, &name).0 > number + 20);
    assert_eq!(look(&here).trees, before.trees);
    wait_for("nothing is left", || there.groups.iter().all(|group| !group.path.exists()));
    // And then it goes.
    write(above.join("cpu.cfs_quota_us"), "-1");
    migrate((&one, &mut at_one), (&two, &mut at_two), &name, 2).await;
    assert_eq!(look(&there).trees, before.trees);
}

/// Takes memory, then goes into a group whose limit is below that: what it has stays charged where it was.
const HEAVY: &str = r#"
import os, time
memory = bytearray(b'memory!!' * 512) * (40 << 8)
os.mkdir('/sys/fs/cgroup/memory/small')
open('/sys/fs/cgroup/memory/small/memory.limit_in_bytes', 'w').write(str(24 << 20))
open('/sys/fs/cgroup/memory/small/cgroup.procs', 'w').write('0')
n = 0
while True:
    print(n, 'runs', flush=True); n += 1; time.sleep(0.02)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_needs_more_than_its_limit_is_not_committed() {
    if Layout::read()
        .unwrap()
        .hierarchies
        .iter()
        .all(|h| h.unified || !h.controllers.contains(&"memory".to_owned()))
    {
        println!("needs the memory controller of cgroup v1");
        return;
    }
    let (one, two) = two_agents().await;
    let (mut at_one, mut at_two) =
        (one.client("root.admin.gantry").await, two.client("root.admin.gantry").await);
    let name = run(&one, HEAVY, writable).await;
    wait_for("it runs", || last_line(&one, &name).0 > 5);
    let (here, there) = (cgroup(&one.parent, &name), cgroup(&two.parent, &name));
    let ended = try_migrate((&one, &mut at_one), (&two, &mut at_two), &name, 1).await;
    assert_eq!(ended.phase(), v1::Phase::Failed);
    assert!(ended.message.contains("small/memory.limit_in_bytes"), "{}", ended.message);
    let number = last_line(&one, &name).0;
    wait_for("it runs on", || last_line(&one, &name).0 > number + 20);
    wait_for("nothing is left", || there.groups.iter().all(|group| !group.path.exists()));
    write(v1(&here, "memory").unwrap().join("small/memory.limit_in_bytes"), "268435456");
    migrate((&one, &mut at_one), (&two, &mut at_two), &name, 2).await;
    // At the target it was charged where it is from the beginning.
    let small = v1(&there, "memory").unwrap().join("small");
    let number =
        |file: &str| -> u64 { fs::read_to_string(small.join(file)).unwrap().trim().parse().unwrap() };
    assert_eq!(number("memory.limit_in_bytes"), 268_435_456);
    assert!(number("memory.usage_in_bytes") > 40 << 20, "{}", number("memory.usage_in_bytes"));
    assert_eq!(number("memory.failcnt"), 0, "nothing was throttled");
}

fn refusals(node: &Node, name: &ContainerName) -> String {
    let source = MovingNode::new(std::sync::Arc::new(node.reopened())).source(name.as_str()).unwrap();
    match source.groups().look(&[]) {
        Ok(_) => String::new(),
        Err(node_agent::session::ports::PortError::Refused(list)) => {
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        }
        Err(error) => panic!("{}", chain(&error)),
    }
}

#[test]
fn what_cannot_move_of_groups_is_refused_by_name() {
    let node = Node::new(None);
    let bundle = node.bundle_with(&["python3", "-u", "-c", GROUPS], writable);
    let name = ContainerName::new(unique("g")).unwrap();
    node.runtime.run(request(&name, &bundle)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    wait_for("its groups", || node.log(&name).contains("/mixed/one"));
    assert_eq!(refusals(&node, &name), "");
    let cgroup = node.runtime.record(&name).unwrap().cgroup;

    // Frozen processes.
    let work = cgroup.unified().unwrap().join("work");
    write(work.join("cgroup.freeze"), "1");
    let text = refusals(&node, &name);
    assert!(text.contains("work is frozen") && text.contains("thaw"), "{text}");
    write(work.join("cgroup.freeze"), "0");
    if let Some(dir) = v1(&cgroup, "freezer") {
        write(dir.join("part/freezer.state"), "FROZEN");
        let frozen = || fs::read_to_string(dir.join("part/freezer.state")).unwrap().trim() == "FROZEN";
        wait_for("it is frozen", frozen);
        assert!(refusals(&node, &name).contains("part is frozen"), "{}", refusals(&node, &name));
        write(dir.join("part/freezer.state"), "THAWED");
        wait_for("it is thawed", || refusals(&node, &name).is_empty());
    }
    // A process that somebody moved out of the container's group in one hierarchy, and back.
    if let Some(dir) = v1(&cgroup, "pids") {
        let pid = fs::read_to_string(dir.join("part/inner/cgroup.procs")).unwrap().trim().to_owned();
        write(dir.parent().unwrap().join("cgroup.procs"), &pid);
        let text = refusals(&node, &name);
        assert!(text.contains("outside of the container's control group in the hierarchy pids"), "{text}");
        write(dir.join("part/inner/cgroup.procs"), &pid);
    }
    assert_eq!(refusals(&node, &name), "");
}

#[test]
fn a_change_between_two_looks_is_seen_and_nothing_else_is_read_again() {
    let node = Node::new(None);
    let bundle = node.bundle_with(&["python3", "-u", "-c", GROUPS], writable);
    let name = ContainerName::new(unique("g")).unwrap();
    node.runtime.run(request(&name, &bundle)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    wait_for("its groups", || node.log(&name).contains("/mixed/one"));
    let cgroup = node.runtime.record(&name).unwrap().cgroup;
    let mut reader = Reader::new(&cgroup, false);
    let first = reader.look(&Proc, &[]).unwrap();
    assert_eq!(reader.look(&Proc, &[]).unwrap(), first);
    let check = |reader: &mut Reader, what: &str| {
        let seen = reader.look(&Proc, &[]).unwrap();
        assert_eq!(seen, look(&cgroup), "{what}");
        seen
    };
    let unified = cgroup.unified().unwrap();
    write(unified.join("work/deep/cgroup.max.depth"), "5");
    assert_ne!(check(&mut reader, "a setting"), first);
    fs::create_dir(unified.join("new")).unwrap();
    check(&mut reader, "a new group");
    fs::create_dir(unified.join("new/newer")).unwrap();
    write(unified.join("new/newer/cgroup.max.depth"), "3");
    let seen = check(&mut reader, "a group in it");
    assert!(seen.trees.iter().flat_map(|tree| &tree.groups).any(|group| group.path == "new/newer"));
    fs::remove_dir(unified.join("new/newer")).unwrap();
    check(&mut reader, "a group less");
    let pid = fs::read_to_string(unified.join("work/deep/cgroup.procs")).unwrap().trim().to_owned();
    write(unified.join("new/cgroup.procs"), &pid);
    check(&mut reader, "a process elsewhere");
    std::os::unix::fs::chown(unified.join("new/cgroup.procs"), Some(5), None).unwrap();
    check(&mut reader, "an owner");
    if let Some(dir) = v1(&cgroup, "memory") {
        write(dir.join("part/memory.limit_in_bytes"), "1073741824");
        check(&mut reader, "a v1 limit");
    }
    // From the inside, through a mount of its own; by a command that comes in although the container's own group
    // hands a controller on.
    let script = "echo 4 > /sys/fs/cgroup/unified/work/deep/cgroup.max.depth";
    let output = node.exec(&name, &["sh", "-c", script]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen = check(&mut reader, "a setting changed inside");
    let deep =
        seen.trees.iter().flat_map(|tree| &tree.groups).find(|group| group.path == "work/deep").unwrap();
    assert!(
        deep.values.iter().any(|value| value.file == "cgroup.max.depth" && value.lines == ["4"]),
        "{deep:?}"
    );
}

/// Fifty groups in three hierarchies, a process in each.
const FIFTY: &str = r#"
import os, time
C = '/sys/fs/cgroup/'
have = [h for h in ('unified', 'memory', 'cpu', 'pids') if os.path.isdir(C + h)]
for n in range(50):
    for h in have: os.mkdir(C + h + '/g%d' % n)
    if 'memory' in have: open(C + 'memory/g%d/memory.limit_in_bytes' % n, 'w').write(str((64 + n) << 20))
    if 'cpu' in have: open(C + 'cpu/g%d/cpu.shares' % n, 'w').write(str(100 + n))
    if os.fork() == 0:
        for h in have: open(C + h + '/g%d/cgroup.procs' % n, 'w').write('0')
        time.sleep(10000)
time.sleep(0.5)
print('made', flush=True)
time.sleep(10000)
"#;

#[test]
fn what_fifty_groups_cost() {
    let node = Node::new(None);
    let bundle = node.bundle_with(&["python3", "-u", "-c", FIFTY], writable);
    let name = ContainerName::new(unique("g")).unwrap();
    node.runtime.run(request(&name, &bundle)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    wait_for("its groups", || node.log(&name).contains("made"));
    let cgroup = node.runtime.record(&name).unwrap().cgroup;
    let mut reader = Reader::new(&cgroup, false);
    let placed = |groups: &Groups| -> usize {
        groups.trees.iter().flat_map(|tree| &tree.groups).map(|group| group.processes.len()).sum()
    };
    let hierarchies = cgroup.groups.iter().filter(|group| group.path.join("g49").exists()).count();
    let mut groups = Groups::default();
    wait_for("everybody is in place", || {
        groups = reader.look(&Proc, &[]).unwrap();
        placed(&groups) == 50 * hierarchies
    });
    let timed = |what: &str, run: &mut dyn FnMut()| {
        let began = Instant::now();
        run();
        let took = began.elapsed();
        println!("{what}: {:.2} ms", took.as_secs_f64() * 1e3);
        took
    };
    let total: usize = groups.trees.iter().map(|tree| tree.groups.len()).sum();
    println!("{total} groups in {} hierarchies, 50 processes in {hierarchies} of them", groups.trees.len());
    timed("first look (before the pause)", &mut || {
        drop(Reader::new(&cgroup, false).look(&Proc, &[]).unwrap())
    });
    timed("look in the pause", &mut || assert_eq!(reader.look(&Proc, &[]).unwrap(), groups));

    // The target's side, with the same processes: they move into the groups of a second container.
    let parent = unique("gantry-test");
    let other = Cgroup::at(node.runtime.layout(), &parent, "copy");
    other.create().unwrap();
    let tasks: Vec<Task> = cgroup
        .processes()
        .unwrap()
        .into_iter()
        .filter_map(|host| {
            let (_, member) = node_agent::runtime::cgroup::carry::members::Tasks::member(&Proc, host)?;
            Some(Task { member, host })
        })
        .collect();
    for task in &tasks {
        other.enter(task.host).unwrap();
    }
    let mut applier = Applier::new(other.groups.iter().map(|group| group.path.clone()));
    let planned = plan(&groups, &Host::read(&other, &groups)).unwrap();
    timed("groups made, processes placed (before the pause)", &mut || {
        applier.structure(&mut Kernel, &planned, &tasks).unwrap();
    });
    timed("the same groups again (in the pause)", &mut || {
        let planned = plan(&groups, &Host::read(&other, &groups)).unwrap();
        applier.structure(&mut Kernel, &planned, &tasks).unwrap();
    });
    timed("limits (in the pause)", &mut || applier.limits(&mut Kernel, &tasks).unwrap());
    assert_eq!(look(&other).trees, groups.trees);
    other.kill(Duration::from_secs(10)).unwrap();
    other.remove().unwrap();
    remove_parent(node.runtime.layout(), &parent);
}

//! State that hosts keep for a container, and a target that cannot take it: `check` says so where it can be known, a
//! move ends with the reason, the container serves on at the source, and the target has nothing of it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow, ensure};
use tests::cluster::{Finished, wait_for};
use tests::faults::RESTART;
use tests::stage::{NAME, Stage};
use tests::suite::{self, Case};
use tests::workload::SERVED_PROGRAM;
use tests::{client, residue};

const PROGRAMS: &[&str] = &["python3", "ip", "tc", "nft", "nsenter", "pgrep"];

fn main() -> ExitCode {
    if let Some(code) = client::run_if_asked().or_else(residue::run_if_asked) {
        return code;
    }
    let case = |name, run| Case { name, programs: PROGRAMS, run };
    let verdict = suite::main(&[
        case("a_target_without_a_controller_is_refused", || on_stage(controller)),
        case("a_target_without_the_bridge_is_refused", || on_stage(bridge)),
        case("a_target_without_a_bind_mounts_source_is_refused", || on_stage(path)),
        case("a_target_without_a_limited_device_is_refused", || on_stage(device)),
        case("a_name_that_is_taken_at_the_target_is_refused", || on_stage(name)),
        case("a_limit_that_the_copy_exceeds_is_named", || on_stage(limit)),
        case("a_disk_that_fills_while_files_are_copied_is_the_reason", || on_stage(disk)),
        case("a_file_that_somebody_else_keeps_writing_is_named", || on_stage(stranger)),
        case("an_interface_that_comes_while_it_moves_ends_the_move", || on_stage(late)),
    ]);
    match STAGE.lock().map(|mut stage| stage.take()) {
        Ok(Some(stage)) => match stage.passed() {
            Ok(()) => verdict,
            Err(error) => {
                eprintln!("at the end: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ => verdict,
    }
}

/// The hosts and the container that the cases share.
static STAGE: Mutex<Option<Stage>> = Mutex::new(None);

/// Runs a case on the shared stage. A case that fails leaves a stage that is looked at and removed; the next one makes
/// another.
fn on_stage(case: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let mut shared = STAGE.lock().map_err(|_| anyhow!("a case has panicked"))?;
    let mut stage = match shared.take() {
        Some(stage) => stage,
        None => Stage::with_state()?,
    };
    case(&mut stage)?;
    stage.clean_move().context("the ordinary move after it")?;
    *shared = Some(stage);
    Ok(())
}

/// Runs a script on a node.
fn on(stage: &Stage, node: &str, script: &str) -> Result<String> {
    Ok(stage.cluster.exec_ok(node, &["sh", "-ec", script])?.stdout)
}

/// Does `harm` on the target, asks whether the container can move there, moves it, and takes the harm back; both
/// answers name `words`.
fn refused(stage: &mut Stage, harm: &str, remedy: &str, words: &[&str]) -> Result<()> {
    let change = |script: &str, stage: &Stage| on(stage, stage.target(), script).map(drop);
    refused_while(stage, &|stage| change(harm, stage), &|stage| change(remedy, stage), words)
}

/// Changes the hosts.
type Change<'a> = dyn Fn(&Stage) -> Result<()> + 'a;

fn refused_while(stage: &mut Stage, harm: &Change<'_>, remedy: &Change<'_>, words: &[&str]) -> Result<()> {
    harm(stage)?;
    let checked = stage.cluster.migrate(["check", NAME, "--to", stage.target()]);
    let moved = stage.start_move()?.finish();
    let serves = stage.clients.progress();
    remedy(stage)?;
    serves.context("while it is refused")?;
    let moved = moved?;
    for (verb, finished) in [("check", &checked?), ("move", &moved)] {
        ensure!(finished.code == 3, "{verb}: exit code 3 was expected of {finished:?}");
        says(verb, finished, words)?;
    }
    stage.ended(&moved, 3)
}

fn says(what: &str, finished: &Finished, words: &[&str]) -> Result<()> {
    let text = format!("{}{}", finished.stdout, finished.stderr);
    for word in words {
        ensure!(text.contains(word), "{what} does not say {word:?}: {finished:?}");
    }
    Ok(())
}

/// Starts a node's agent anew: it looks for hierarchies of control groups when it starts.
fn restart(stage: &Stage, node: &str) -> Result<()> {
    let old = stage.cluster.kill_daemon(node)?;
    stage.cluster.wait_restarted(node, old).with_context(|| format!("within {RESTART:?}"))?;
    stage.cluster.wait_ready()
}

fn controller(stage: &mut Stage) -> Result<()> {
    let change = |script: &str, stage: &Stage| {
        on(stage, stage.target(), script)?;
        restart(stage, stage.target())
    };
    let mount = "mount -t cgroup -o pids cgroup /sys/fs/cgroup/pids";
    let umount = "umount /sys/fs/cgroup/pids";
    refused_while(stage, &|stage| change(umount, stage), &|stage| change(mount, stage), &["pids"])
}

fn bridge(stage: &mut Stage) -> Result<()> {
    let text = fs::read_to_string(stage.cluster.host_dir(stage.target()).join("node-agent.toml"))?;
    let bridge = text.lines().find_map(|line| line.strip_prefix("bridge = ")).context("bridge")?;
    let bridge = bridge.trim_matches('"');
    let (harm, remedy) =
        (format!("ip link set {bridge} name elsewhere"), format!("ip link set elsewhere name {bridge}"));
    refused(stage, &harm, &remedy, &[&format!("needs the bridge {bridge}")])
}

fn path(stage: &mut Stage) -> Result<()> {
    let plain = text(&stage.plain())?;
    let above = text(stage.plain().parent().context("its directory")?)?;
    let (harm, remedy) = (format!("mount -t tmpfs none {above}"), format!("umount {above}"));
    refused(stage, &harm, &remedy, &["mount /plain", &format!("{plain} does not exist on the target node")])
}

fn device(stage: &mut Stage) -> Result<()> {
    let source = stage.source();
    let found = on(
        stage,
        source,
        "for d in /sys/class/block/vd* /sys/class/block/sd* /sys/class/block/nvme*n1; do \
         [ ! -e $d/dev ] || [ -e $d/partition ] || { basename $d; cat $d/dev; break; }; done",
    )?;
    let [disk, number] = found.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err(anyhow!("this machine has no disk: {found:?}"));
    };
    let limit = |stage: &Stage, bytes: u32| {
        let file = "/sys/fs/cgroup/blkio/*-$(hostname)/py/blkio.throttle.read_bps_device";
        on(stage, source, &format!("echo '{number} {bytes}' > $(echo {file})"))
    };
    limit(stage, 100_000_000)?;
    let harm = "mount -t tmpfs none /sys/class/block";
    let done = refused(stage, harm, "umount /sys/class/block", &[disk, "read_bps_device"]);
    limit(stage, 0)?;
    done
}

fn name(stage: &mut Stage) -> Result<()> {
    let show = "cd /sys/class/net; echo gv*";
    let here = on(stage, stage.source(), show)?;
    stage.clean_move()?;
    let there = on(stage, stage.source(), show)?;
    stage.clean_move()?;
    let link = there.trim();
    ensure!(link.len() == 12 && here != there, "the links are {here:?} and {there:?}");
    let (harm, remedy) =
        (format!("ip link add {link} type veth peer name other"), format!("ip link del {link}"));
    refused(stage, &harm, &remedy, &[&format!("has an interface {link} already")])
}

/// A child that has its memory from its parent, in whose group that counts: at the target it needs its own.
fn limit(stage: &mut Stage) -> Result<()> {
    let (source, target, name) = (stage.source(), stage.target(), "forker");
    let bundle = stage.cluster.dir().join("bundles").join(name);
    let out = text(&bundle)?;
    let program = ["/usr/bin/python3", "/data/forker.py"];
    stage.cluster.must([&["dev", "bundle", "--out", &out, "--rw", "/data", "--"][..], &program].concat())?;
    fs::write(bundle.join("rootfs/data/forker.py"), format!("{FORK}{SERVED_PROGRAM}"))?;
    stage.cluster.start_bundle(name, source, "10.77.0.104/24", &bundle)?;
    let address = "10.77.0.104:7000";
    stage.cluster.wait_for_port(address.parse()?)?;
    let mut clients = stage.cluster.client(&["lines", address, "1"])?;
    let group = "
dir=$(echo /sys/fs/cgroup/memory/*-$(hostname)/forker)/tight
mkdir $dir; echo 10M > $dir/memory.limit_in_bytes
pgrep -f '^/usr/bin/python3 /data/forker.py$' | tail -n 1 > $dir/cgroup.procs
";
    on(stage, source, group)?;
    let moved = stage.cluster.migrate(["move", name, "--to", target])?;
    ensure!(moved.code == 4, "exit code 4 was expected of {moved:?}");
    says("move", &moved, &["tight/memory.limit_in_bytes"])?;
    clients.progress().context("it serves on")?;
    clients.verdict()?;
    stage.cluster.must(["delete", "container", name, "--force"])?;
    // Nothing of it is left on either node.
    stage.settled()
}

/// Comes before [`SERVED_PROGRAM`].
const FORK: &str = "import os, time
memory = os.urandom(40 << 20)
if os.fork() == 0:
    while True: time.sleep(1000)
";

/// The script's container is the one whose program is the stage's.
const INSIDE: &str = "pid=$(pgrep -o -f 'python3 /data/program.py$')\n";

fn disk(stage: &mut Stage) -> Result<()> {
    let (source, target) = (stage.source(), stage.target());
    on(
        stage,
        source,
        &format!(
            "{INSIDE}for n in 1 2 3; do head -c 1000000 /dev/urandom > /proc/$pid/root/data/dir/big$n; done"
        ),
    )?;
    let bundles = text(&stage.cluster.dir().join("local/state/bundles"))?;
    on(stage, target, &format!("mount -t tmpfs -o size=2m small {bundles}"))?;
    let moved = stage.start_move()?.finish();
    let serves = stage.clients.progress();
    on(stage, target, &format!("umount {bundles}"))?;
    on(stage, source, &format!("{INSIDE}rm /proc/$pid/root/data/dir/big*"))?;
    serves?;
    let moved = moved?;
    says("move", &moved, &["data/dir/big", "No space left"])?;
    stage.ended(&moved, 4)
}

fn stranger(stage: &mut Stage) -> Result<()> {
    let source = stage.source();
    let file = "/proc/$pid/root/data/dir/strange";
    let (program, number) =
        (stage.cluster.dir().join("stranger.py"), stage.cluster.dir().join("stranger.pid"));
    let (program, number) = (text(&program)?, text(&number)?);
    fs::write(&program, WRITER)?;
    let script = format!("{INSIDE}echo $$ > {number}; exec python3 {program} {file}");
    let dir = stage.cluster.dir_str();
    let _writer = stage.cluster.start(["dev", "exec", "--dir", dir, source, "--", "sh", "-ec", &script])?;
    let written = format!("{INSIDE}test -s {file}");
    wait_for("somebody writes", RESTART, || on(stage, source, &written).ok())?;
    let moved = stage.start_move()?.finish();
    on(stage, source, &format!("{INSIDE}kill $(cat {number}); rm {file}"))?;
    let moved = moved?;
    says("move", &moved, &["data/dir/strange", "changes although the container stands still"])?;
    stage.ended(&moved, 4)
}

/// Writes to a file without a pause; reading it takes longer than writing to all of it.
const WRITER: &str = "
import sys
file = open(sys.argv[1], 'wb', 0)
file.write(bytes(32 << 20))
turn = 0
while True:
    turn += 1
    for at in range(32):
        file.seek(at << 20)
        file.write(turn.to_bytes(8, 'big') * 512)
";

/// What comes up while the container moves, and cannot be at the target, ends the move.
fn late(stage: &mut Stage) -> Result<()> {
    let source = stage.source();
    let before = stage.last();
    stage.cluster.failpoints(source, "session-source-precopy-round=1*sleep(1500)")?;
    let moving = stage.start_move()?;
    stage.cluster.wait_phase(NAME, &before, &["PreCopy"])?;
    let enter = "nsenter -t $pid -n";
    on(
        stage,
        source,
        &format!("{INSIDE}{enter} ip link add x0 type vxlan id 7 dstport 4789 local 192.0.2.1"),
    )?;
    let moved = moving.finish()?;
    on(stage, source, &format!("{INSIDE}{enter} ip link del x0"))?;
    says("move", &moved, &["x0 is of kind vxlan"])?;
    stage.ended(&moved, moved.code)?;
    ensure!(matches!(moved.code, 3 | 4), "it is where it was: {moved:?}");
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).context("the path is not UTF-8")
}

//! Programs as trees of this machine: not frozen at all, or by way of a directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{LIMIT, Outcome, Program, programs, ready, refused, verdict};
use crate::cluster::{binary, wait_for};

/// The code with which a checkpoint refuses.
const REFUSED: i32 = 3;

/// Everything that a program starts is in a control group, which is killed with this.
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let unified = mounts.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            file_system.starts_with("cgroup2 ").then(|| mount.split_whitespace().nth(4))?
        });
        let path = Path::new(unified.context("no cgroup2 mount")?).join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Whether nothing runs in it. What orphans leave is reaped: a number is not free before, when a session or a process
    /// group has it.
    fn is_empty(&self) -> bool {
        self.reap(&[]);
        fs::read_to_string(self.0.join("cgroup.events")).is_ok_and(|events| events.contains("populated 0"))
    }

    /// Reaps what has ended of it, but for these.
    fn reap(&self, spared: &[u32]) {
        for pid in children(Pid::this().as_raw()).unwrap_or_default() {
            let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if spared.iter().any(|spared| i64::from(*spared) == i64::from(pid)) {
                continue;
            }
            if group.lines().any(|line| line.starts_with("0::") && self.0.ends_with(&line["0::/".len()..])) {
                let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            }
        }
    }

    /// A command that runs in the group.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&self.0).arg(program);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let _ = wait_for("the group is empty", LIMIT, || {
            self.is_empty();
            fs::remove_dir(&self.0).ok()
        });
    }
}

/// A program that runs.
struct Running {
    child: Child,
    boxed: bool,
    /// Its process id as it sees it itself.
    own: i32,
    // Killed before the directory goes.
    group: Group,
    dir: TempDir,
}

impl Running {
    fn start(program: &Program, boxed: bool) -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
        let dir = tempfile::Builder::new().prefix("gantry-conformance-").tempdir()?;
        let name = dir.path().file_name().and_then(|name| name.to_str()).context("a name in UTF-8")?;
        let group = Group::make(name)?;
        let log = Self::log(&dir)?;
        let mut command = if boxed {
            let mut command = group.command(Path::new("unshare"));
            command.args(["--pid", "--fork", "--mount-proc", "--uts", "--ipc", "--net", "sh", "-c"]);
            command.args(["ip link set lo up && exec \"$@\"", "sh", "python3"]);
            command
        } else {
            group.command(Path::new("python3"))
        };
        command.arg(programs().join("case.py"));
        command.args(boxed.then_some("--init"));
        command.arg(programs().join(format!("{}.py", program.path()))).arg(dir.path().join("scratch"));
        let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("start the program")?;
        let mut running = Self { child, boxed, own: 0, group, dir };
        running.own = ready(&mut || running.output())?;
        Ok(running)
    }

    /// What it and whoever restores it print to: a descriptor that comes from outside of its namespaces is given anew.
    fn log(dir: &TempDir) -> Result<File> {
        Ok(File::options().create(true).append(true).open(dir.path().join("output"))?)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    /// The root of the tree, as this process sees it.
    fn root(&self) -> Result<i32> {
        let child = i32::try_from(self.child.id())?;
        if !self.boxed {
            return Ok(child);
        }
        let children = children(child)?;
        children.first().copied().context("the first process of the namespace has ended")
    }

    /// The program in the tree below `root`.
    fn program(&self, root: i32) -> Result<Pid> {
        if !self.boxed {
            return Ok(Pid::from_raw(root));
        }
        let own = format!("\t{}", self.own);
        let is_it = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with(&own))
        };
        children(root)?.into_iter().find(is_it).map(Pid::from_raw).context("the program has ended")
    }

    /// Asks for the verdict of the program in the tree below `root`.
    fn verify(&self, root: i32) -> Result<Outcome> {
        kill(self.program(root)?, Signal::SIGUSR2).context("ask the program")?;
        verdict(&mut || self.output()).with_context(|| self.output())
    }

    fn agent(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.group.command(binary()?);
        command.arg("__node-agent").args(args);
        Ok(command)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = fs::write(self.group.0.join("cgroup.kill"), "1");
        let _ = self.child.wait();
        // What is mounted below would be removed with the directory: another view of this machine's files, perhaps.
        let alone = wait_for("the group is empty", LIMIT, || self.group.is_empty().then_some(()))
            .and_then(|()| detach_below(self.dir.path()));
        if let Err(error) = alone {
            self.dir.disable_cleanup(true);
            eprintln!("conformance: {} is left behind: {error:#}", self.dir.path().display());
        }
    }
}

/// Detaches every mount below a directory.
fn detach_below(dir: &Path) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
    for point in mounts_below(&dir)?.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("detach {}", point.display()))?;
    }
    ensure!(mounts_below(&dir)?.is_empty(), "something is mounted there");
    Ok(())
}

/// The mount points at or below a directory whose path has no characters that mountinfo escapes.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split_whitespace().nth(4).map(PathBuf::from));
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

fn children(pid: i32) -> Result<Vec<i32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// The program alone.
pub(super) fn null(program: &Program) -> Result<Outcome> {
    let running = Running::start(program, false)?;
    running.verify(running.root()?)
}

/// By way of a directory.
pub(super) fn on_disk(program: &Program, boxed: bool) -> Result<Outcome> {
    let mut running = Running::start(program, boxed)?;
    let (root, image, pidfile) = (running.root()?, running.path("image"), running.path("pid"));
    let mut saving = running.agent(&["checkpoint", "--pid", &root.to_string(), "--out", &image])?;
    let mut saving = saving.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("run the agent")?;
    let spared = [saving.id(), running.child.id()];
    wait_for("the checkpoint", LIMIT, || {
        // A pid namespace of the tree's does not end before what fell to us of it is reaped.
        running.group.reap(&spared);
        saving.try_wait().ok().flatten()
    })?;
    let saved = saving.wait_with_output()?;
    let said = String::from_utf8_lossy(&saved.stderr).into_owned();
    if saved.status.code() == Some(REFUSED) {
        let reasons: Vec<&str> =
            said.lines().filter_map(|line| line.split_once("refused: ")).map(|(_, why)| why).collect();
        return Ok(refused(reasons.join("; "), running.verify(root)?));
    }
    ensure!(saved.status.success(), "the checkpoint: {said}");
    wait_for("the tree is gone", LIMIT, || {
        running.child.try_wait().ok().flatten()?;
        running.group.is_empty().then_some(())
    })?;
    let log = Running::log(&running.dir)?;
    let mut restore = running.agent(&["restore", "--from", &image, "--detach", "--pidfile", &pidfile])?;
    let restored = restore.stdout(log.try_clone()?).stderr(log).status().context("run the agent")?;
    ensure!(restored.success(), "the restore: {}", running.output());
    let root = fs::read_to_string(&pidfile)?.trim().parse().context("the pidfile")?;
    running.verify(root)
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};

    use super::*;

    #[test]
    fn what_a_program_mounted_is_not_removed_with_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (below, beside) = (dir.path().join("scratch/on"), dir.path().join("scratch2"));
        fs::create_dir_all(&below).unwrap();
        fs::create_dir(&beside).unwrap();
        let plain = MsFlags::empty();
        mount(Some("tmpfs"), &below, Some("tmpfs"), plain, None::<&str>).unwrap();
        mount(Some("tmpfs"), &beside, Some("tmpfs"), plain, None::<&str>).unwrap();
        fs::write(below.join("kept"), "").unwrap();
        let held = File::open(&below).unwrap();
        detach_below(&dir.path().join("scratch")).unwrap();
        assert_eq!(mounts_below(dir.path()).unwrap(), [beside.canonicalize().unwrap()]);
        assert_eq!(fs::read_dir(&below).unwrap().count(), 0);
        let mounted = format!("/proc/self/fd/{}/kept", std::os::fd::AsRawFd::as_raw_fd(&held));
        assert!(Path::new(&mounted).exists(), "what was mounted is whole");
        detach_below(dir.path()).unwrap();
        assert!(mounts_below(dir.path()).unwrap().is_empty());
    }
}

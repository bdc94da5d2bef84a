//! `__host`: makes a host's namespaces and starts its first process, [`super::supervise`].
//!
//! The parent writes the host's programs to the first process's standard input once it has recorded it and wired
//! its network; a first process whose input closes before that ends, so that a parent that dies leaves nothing.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::plan::Layout;
use super::process::Process;
use super::supervise::Orders;

/// A host whose first process runs and waits for its orders.
#[derive(Debug)]
pub(crate) struct NewHost {
    /// The first process.
    pub(crate) process: Process,
    orders: ChildStdin,
}

/// Makes a host. After Ok it has its namespaces and waits; dropping the result ends it.
pub(crate) fn create(layout: &Layout, name: &str) -> Result<NewHost> {
    let own = layout.host(name);
    fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
    let log = own.join("supervisor.log");
    let log_file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut child = Command::new(own_program()?)
        .args(["__host", name])
        .args([&own, &layout.local()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log_file)
        // A terminal's Ctrl-C is for the command, which then takes the hosts down itself.
        .process_group(0)
        .spawn()
        .context("start the host's first process")?;
    // Taken first: waiting would close it.
    let orders = child.stdin.take().context("the host's standard input")?;
    let read = read_pid(&mut child);
    let status = child.wait().context("wait for the host's starter")?;
    let pid = match read {
        Ok(pid) if status.success() => pid,
        _ => bail!("make the host {name}: {}", fs::read_to_string(&log).unwrap_or_default().trim()),
    };
    Ok(NewHost { process: Process::of(pid)?, orders })
}

/// Reads `pid N` from the starter and `up` from the first process, in any order.
fn read_pid(child: &mut Child) -> Result<i32> {
    let out = BufReader::new(child.stdout.take().context("the host's standard output")?);
    let (mut pid, mut up) = (None, false);
    for line in out.lines() {
        let line = line?;
        match line.strip_prefix("pid ") {
            Some(number) => pid = Some(number.parse()?),
            None => up |= line == "up",
        }
        if let (Some(pid), true) = (pid, up) {
            return Ok(pid);
        }
    }
    bail!("the host's first process ended early")
}

impl NewHost {
    /// Hands the orders over: the host's programs start, and it outlives the caller. With
    /// [`Orders::lifeline`] it ends when the answer is dropped.
    pub(crate) fn start(mut self, orders: &Orders) -> Result<ChildStdin> {
        let mut line = serde_json::to_string(orders)?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).context("hand the host its programs")?;
        Ok(self.orders)
    }
}

/// The program that runs now, as a path that other mount namespaces see too.
pub(crate) fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("find the running program")
}

/// The program `__host NAME OWN LOCAL`: returns once the first process has been started.
pub(crate) fn run(name: &str, own: &Path, local: &Path) -> Result<()> {
    let program = own_program()?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID,
    )
    .context("unshare the mount, uts, ipc, net and pid namespaces")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make the mounts of the new namespace private")?;
    mount(Some(own), local, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("bind {} to {}", own.display(), local.display()))?;
    mount_own_sys(&local.join("aside"))?;
    nix::unistd::sethostname(name).context("set the host name")?;
    let child = Command::new(program).arg("__supervise").spawn().context("start the supervisor")?;
    println!("pid {}", child.id());
    Ok(())
}

/// /sys of the new network namespace; the control groups below it stay where they were. `aside` holds them
/// meanwhile.
fn mount_own_sys(aside: &Path) -> Result<()> {
    let none: Option<&str> = None;
    let cgroups = Path::new("/sys/fs/cgroup");
    fs::create_dir_all(aside).with_context(|| format!("create {}", aside.display()))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(cgroups), aside, none, bind, none).context("put /sys/fs/cgroup aside")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, none).context("mount /sys")?;
    mount(Some(aside), cgroups, none, MsFlags::MS_MOVE, none).context("put /sys/fs/cgroup back")?;
    fs::remove_dir(aside).with_context(|| format!("remove {}", aside.display()))
}

//! Control groups as files: where the hierarchies are mounted, who is in them, and the v2 freezer.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::abi::io_errno;
use crate::{Errno, Result};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which part of the hierarchy is mounted there ("/" = all of it).
    pub root: PathBuf,
    /// cgroup v2.
    pub v2: bool,
    /// v1: controllers, and `name=...` of a named one. v2: empty, see `cgroup.controllers`.
    pub controllers: Vec<String>,
}

/// Finds the mounted hierarchies through /proc/self/mountinfo.
///
/// # Errors
/// Those of reading it.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").map_err(|e| io_errno(&e))?;
    Ok(parse_mounts(&text))
}

fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    text.lines()
        .filter_map(|line| {
            // 36 35 98:0 /root /mount/point options [tags] - type source superoptions
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, mount_point) = (left.next()?, left.next()?);
            let mut right = right.split(' ');
            let v2 = match right.next()? {
                "cgroup2" => true,
                "cgroup" => false,
                _ => return None,
            };
            let options = right.nth(1).unwrap_or("");
            let known = |o: &&str| !matches!(*o, "rw" | "ro" | "xattr" | "noprefix" | "clone_children");
            let controllers = if v2 {
                Vec::new()
            } else {
                options
                    .split(',')
                    .filter(known)
                    .filter(|o| !o.starts_with("release_agent"))
                    .map(Into::into)
                    .collect()
            };
            Some(Hierarchy { mount_point: unescape(mount_point), root: unescape(root), v2, controllers })
        })
        .collect()
}

/// mountinfo writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(plain.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to)))
}

/// The v2 hierarchy's mount point, wherever it is.
///
/// # Errors
/// `ENOENT` it is not mounted.
pub fn v2_mount() -> Result<PathBuf> {
    let found = hierarchies()?.into_iter().find(|h| h.v2);
    found.map(|h| h.mount_point).ok_or(Errno::ENOENT)
}

/// The mount point of the v1 hierarchy that has `controller`.
///
/// # Errors
/// `ENOENT` it is not mounted as v1.
pub fn v1_mount(controller: &str) -> Result<PathBuf> {
    let has = |h: &Hierarchy| !h.v2 && h.controllers.iter().any(|c| c == controller);
    hierarchies()?.into_iter().find(has).map(|h| h.mount_point).ok_or(Errno::ENOENT)
}

/// A process's place in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// v1 controllers; empty for v2.
    pub controllers: Vec<String>,
    /// Path below the reader's cgroup root.
    pub path: PathBuf,
}

/// Where `pid` is, one entry a hierarchy.
///
/// # Errors
/// `ENOENT` no such process.
pub fn membership(pid: i32) -> Result<Vec<Membership>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|e| io_errno(&e))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?.split(',').filter(|c| !c.is_empty()).map(Into::into).collect();
            Some(Membership { controllers, path: fields.next()?.into() })
        })
        .collect())
}

/// mkdir(2) of a cgroup; one that is there already is fine.
///
/// # Errors
/// `EACCES`, `EPERM`, `EAGAIN` a limit of descendants, `ENOENT` no parent.
pub fn create(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_errno(&error)),
        _ => Ok(()),
    }
}

/// rmdir(2) of a cgroup, waiting up to `limit` for the kernel to let go of its last dying tasks; one that is gone
/// already is fine.
///
/// # Errors
/// `EBUSY` tasks or children are still in it after `limit`.
pub fn remove(path: &Path, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        match fs::remove_dir(path).map_err(|e| io_errno(&e)) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error),
        }
    }
}

/// Removes a cgroup with all below it, deepest first, as [`remove`].
///
/// # Errors
/// As [`remove`].
pub fn remove_tree(path: &Path, limit: Duration) -> Result<()> {
    for child in children(path)? {
        remove_tree(&child, limit)?;
    }
    remove(path, limit)
}

/// The cgroups right below.
///
/// # Errors
/// Those of readdir(3); a missing directory has none.
pub fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| io_errno(&e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| io_errno(&e))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Writes one of its files in a single write(2), as the kernel wants it.
///
/// # Errors
/// `ENOENT` no such file, or the kernel's refusal of the value.
pub fn write(cgroup: &Path, file: &str, value: &str) -> Result<()> {
    let file = File::options().write(true).open(cgroup.join(file)).map_err(|e| io_errno(&e))?;
    let wrote = nix::unistd::write(&file, value.as_bytes())?;
    if wrote == value.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// Reads one of its files.
///
/// # Errors
/// `ENOENT`, `EOPNOTSUPP` (a threaded cgroup's `cgroup.procs`), `EINVAL`.
pub fn read(cgroup: &Path, file: &str) -> Result<String> {
    fs::read_to_string(cgroup.join(file)).map_err(|e| io_errno(&e))
}

/// Moves a process, with all its threads, into a cgroup. 0 = the caller.
///
/// # Errors
/// `ESRCH`, `EBUSY`, `EACCES`, `EOPNOTSUPP`.
pub fn add_process(cgroup: &Path, pid: i32) -> Result<()> {
    write(cgroup, "cgroup.procs", &pid.to_string())
}

/// The processes in a cgroup (not in those below it), as our pid namespace numbers them; 0 = not in it.
///
/// # Errors
/// As [`read`].
pub fn processes(cgroup: &Path) -> Result<Vec<i32>> {
    let text = read(cgroup, "cgroup.procs")?;
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// A v2 cgroup that is frozen and thawed as one. Dropping it changes nothing.
#[derive(Debug)]
pub struct Freezer {
    path: PathBuf,
    freeze: File,
    events: File,
}

impl Freezer {
    /// Opens the freezer of the v2 cgroup at `path` (an absolute path below [`v2_mount`]). The files stay open, so
    /// that freezing costs one write.
    ///
    /// # Errors
    /// `ENOENT` no v2 cgroup, or its root, which has none.
    pub fn open(path: &Path) -> Result<Self> {
        let options = |write: bool, name| {
            File::options().read(true).write(write).open(path.join(name)).map_err(|e| io_errno(&e))
        };
        let freeze = options(true, "cgroup.freeze")?;
        Ok(Self { path: path.to_owned(), freeze, events: options(false, "cgroup.events")? })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks all tasks to freeze and returns at once; see [`Freezer::wait_frozen`].
    ///
    /// # Errors
    /// `ENODEV` the cgroup is gone.
    pub fn request_freeze(&self) -> Result<()> {
        self.set(b"1")
    }

    /// Freezes and waits until every task is.
    ///
    /// # Errors
    /// `ETIMEDOUT` after `limit`: the request stands, thaw to take it back. `ENODEV` the cgroup is gone.
    pub fn freeze(&self, limit: Duration) -> Result<()> {
        self.set(b"1")?;
        self.wait_frozen(limit)
    }

    /// Lets the tasks run on. An ancestor's freeze still holds them.
    ///
    /// # Errors
    /// `ENODEV` the cgroup is gone.
    pub fn thaw(&self) -> Result<()> {
        self.set(b"0")
    }

    fn set(&self, value: &[u8]) -> Result<()> {
        nix::sys::uio::pwrite(&self.freeze, value, 0).map(drop)
    }

    /// Whether a freeze of this cgroup itself is asked for (`cgroup.freeze`).
    ///
    /// # Errors
    /// `ENODEV` the cgroup is gone.
    pub fn requested(&self) -> Result<bool> {
        let mut buffer = [0; 8];
        let len = nix::sys::uio::pread(&self.freeze, &mut buffer, 0)?;
        Ok(buffer[..len].starts_with(b"1"))
    }

    /// Whether all its tasks are frozen (`frozen 1` in `cgroup.events`).
    ///
    /// # Errors
    /// `ENODEV` the cgroup is gone.
    pub fn is_frozen(&self) -> Result<bool> {
        self.event(b"frozen 1")
    }

    /// Whether it or a cgroup below holds a living task (`populated 1`).
    ///
    /// # Errors
    /// `ENODEV` the cgroup is gone.
    pub fn is_populated(&self) -> Result<bool> {
        self.event(b"populated 1")
    }

    fn event(&self, line: &[u8]) -> Result<bool> {
        let mut buffer = [0; 256];
        let len = nix::sys::uio::pread(&self.events, &mut buffer, 0)?;
        Ok(buffer[..len].split(|&b| b == b'\n').any(|l| l == line))
    }

    /// Waits for `frozen 1`: spins shortly (it usually takes 20 us), then sleeps in poll(2).
    ///
    /// # Errors
    /// `ETIMEDOUT`, `ENODEV`.
    pub fn wait_frozen(&self, limit: Duration) -> Result<()> {
        self.wait(limit, Self::is_frozen)
    }

    /// Waits until no task is left.
    ///
    /// # Errors
    /// `ETIMEDOUT`, `ENODEV`.
    pub fn wait_empty(&self, limit: Duration) -> Result<()> {
        self.wait(limit, |freezer| freezer.is_populated().map(|populated| !populated))
    }

    fn wait(&self, limit: Duration, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        const SPIN: Duration = Duration::from_micros(200);
        let start = Instant::now();
        loop {
            if done(self)? {
                return Ok(());
            }
            let passed = start.elapsed();
            if passed >= limit {
                return Err(Errno::ETIMEDOUT);
            }
            if passed < SPIN {
                std::thread::yield_now();
                continue;
            }
            // The kernel notifies at most once in 10 ms: never sleep longer than a fraction of that on its word.
            let nap = (limit - passed).as_millis().clamp(1, 2);
            let nap = PollTimeout::try_from(i32::try_from(nap).unwrap_or(1)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(self.events.as_fd(), PollFlags::POLLPRI)], nap) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Kills every task in it and below, frozen or not (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    /// `ENOENT` an older kernel, `EOPNOTSUPP` threaded, `ENODEV` gone.
    pub fn kill(&self) -> Result<()> {
        write(&self.path, "cgroup.kill", "1")
    }

    /// The processes in it and in all cgroups below.
    ///
    /// # Errors
    /// As [`processes`].
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        let mut todo = vec![self.path.clone()];
        while let Some(path) = todo.pop() {
            // A cgroup may go while we walk.
            match processes(&path) {
                Ok(mut found) => pids.append(&mut found),
                Err(Errno::ENOENT | Errno::ENODEV) if path != self.path => {}
                // A threaded group: its processes are listed by the group at the top of the threaded part.
                Err(Errno::EOPNOTSUPP) if path != self.path => {}
                Err(error) => return Err(error),
            }
            todo.append(&mut children(&path)?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let text = "\
31 23 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
35 24 0:30 /a\\040b /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 24 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
40 24 0:40 / /proc rw - proc proc rw
";
        let found = parse_mounts(text);
        assert_eq!(found.len(), 3);
        assert!(found[0].v2 && found[0].controllers.is_empty());
        assert_eq!(found[1].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found[1].root, Path::new("/a b"));
        assert_eq!(found[2].controllers, ["name=systemd"]);
    }
}

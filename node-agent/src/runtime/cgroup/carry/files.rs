//! How groups are changed: the kernel's files.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::Duration;

use image::Pid;
use nix::sched::{sched_getaffinity, sched_setaffinity};

/// What making the groups of a container asks of a host. Paths are those of the hierarchies' directories.
pub trait GroupFiles {
    /// Makes a group; it may be there already.
    ///
    /// # Errors
    /// Those of mkdir(2).
    fn make(&mut self, dir: &Path) -> io::Result<()>;

    /// Removes an empty group.
    ///
    /// # Errors
    /// Those of rmdir(2).
    fn remove(&mut self, dir: &Path) -> io::Result<()>;

    /// What a file says.
    ///
    /// # Errors
    /// Those of read(2).
    fn read(&mut self, file: &Path) -> io::Result<String>;

    /// Whether there is such a file.
    fn exists(&mut self, file: &Path) -> bool;

    /// Writes a file with one write(2).
    ///
    /// # Errors
    /// The kernel's refusal.
    fn write(&mut self, file: &Path, value: &str) -> io::Result<()>;

    /// Puts a thread, as we number it, into the group whose list of threads `file` is. It keeps its affinity.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn thread(&mut self, file: &Path, tid: Pid) -> io::Result<()>;

    /// Sets owner and mode.
    ///
    /// # Errors
    /// Those of chown(2) and chmod(2).
    fn grant(&mut self, path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()>;
}

/// How long the kernel may take to let go of the last process of a group.
const REMOVE: Duration = Duration::from_millis(500);

/// This host.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl GroupFiles for Kernel {
    fn make(&mut self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn remove(&mut self, dir: &Path) -> io::Result<()> {
        Ok(sys::cgroup::remove(dir, REMOVE)?)
    }

    fn read(&mut self, file: &Path) -> io::Result<String> {
        fs::read_to_string(file)
    }

    fn exists(&mut self, file: &Path) -> bool {
        file.exists()
    }

    fn write(&mut self, file: &Path, value: &str) -> io::Result<()> {
        let file = fs::File::options().write(true).open(file)?;
        let written = nix::unistd::write(&file, value.as_bytes())?;
        if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn thread(&mut self, file: &Path, tid: Pid) -> io::Result<()> {
        // Before Linux 6.2 a cpuset replaces what sched_setaffinity(2) said.
        let pid = nix::unistd::Pid::from_raw(tid);
        let before = sched_getaffinity(pid)?;
        self.write(file, &tid.to_string())?;
        if sched_getaffinity(pid)? != before {
            sched_setaffinity(pid, &before)?;
        }
        Ok(())
    }

    fn grant(&mut self, path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
        chown(path, Some(uid), Some(gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }
}

//! What an agent remembers of a container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::error::RuntimeError;
use super::name::ContainerName;
use super::paths::write_atomic;
use crate::network::Addressing;

/// A container's record, `record.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: ContainerName,
    /// Its bundle's directory.
    pub bundle: PathBuf,
    /// Its root directory.
    pub rootfs: PathBuf,
    /// Its addresses.
    pub network: Addressing,
    /// The host end of its link, if it has one.
    pub link: String,
    /// Labels for the placement and for users.
    pub labels: BTreeMap<String, String>,
    /// The highest epoch of a migration that this node knows for it.
    pub epoch: u64,
    /// When it was first made, on whichever node.
    pub created: SystemTime,
    /// Its control groups here.
    pub cgroup: Cgroup,
    /// Where it stands.
    pub stage: Stage,
    /// The migration that brought it here.
    pub arrived: Option<String>,
    /// Its root process.
    pub root: Option<Process>,
    /// Its shim.
    pub shim: Option<Process>,
}

/// Where a container stands on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Its sandbox is being made.
    Creating,
    /// It was started here, or became this node's. It runs unless its root process has ended.
    Here,
    /// It runs here while a migration away is under way.
    Migrating,
    /// It stands frozen: committed away, or the outcome is unknown.
    Frozen,
    /// A copy is being built for this migration; it does not run.
    Incoming {
        /// The migration's name.
        migration: String,
        /// The copy is complete.
        ready: bool,
    },
}

/// A process that can be told from a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid as the agent sees it.
    pub pid: i32,
    /// Its start, clock ticks after boot (field 22 of /proc/PID/stat).
    pub start: u64,
    /// The boot that it belongs to (/proc/sys/kernel/random/boot_id).
    pub boot: String,
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start: stat(pid)?.1, boot: boot_id()? })
    }

    /// It exists and is no zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot)
            && stat(self.pid).is_ok_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }
}

fn write_in_place(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    let file = fs::OpenOptions::new().write(true).open(path)?;
    // Blanks take the place of what was longer.
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    bytes.resize(bytes.len().max(length), b'\n');
    file.write_all_at(&bytes, 0)
}

/// The random identifier of this boot.
///
/// # Errors
/// When /proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// State letter and start time of a process.
fn stat(pid: i32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let state = fields.first().and_then(|field| field.chars().next());
    let start = fields.get(19).and_then(|field| field.parse().ok());
    state.zip(start).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Record {
    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(path: &Path) -> Result<Option<Self>, RuntimeError> {
        let read = || match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RuntimeError::file("read", path)(error)),
        };
        let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes);
        let parsed = match read()?.map(parse) {
            // It may be being written in place: once more.
            Some(Err(_)) => read()?.map(parse),
            other => other,
        };
        parsed.transpose().map_err(|source| RuntimeError::Damaged { path: path.to_owned(), source })
    }

    /// Writes it; durable on Ok.
    ///
    /// # Errors
    /// When it cannot be written; the old one is still there.
    pub fn save(&self, path: &Path) -> Result<(), RuntimeError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        bytes.and_then(|bytes| write_atomic(path, &bytes)).map_err(RuntimeError::file("write", path))
    }

    /// Writes it over the one that is there, in one piece, without the disk: as good as [`Record::save`] for what is
    /// lost with the host anyway, and a hundred times quicker.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_in_place(&self, path: &Path) -> Result<(), RuntimeError> {
        write_in_place(path, self).map_err(RuntimeError::file("write", path))
    }

    /// Its root process lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.root.as_ref().is_some_and(Process::is_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_record_takes_the_place_of_a_longer_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        let long = serde_json::json!({"kind": "a longer record than the other one", "ready": false});
        fs::write(&path, serde_json::to_vec_pretty(&long).unwrap()).unwrap();
        let process = Process { pid: 7, start: 8, boot: "b".to_owned() };
        write_in_place(&path, &process).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().len(),
            serde_json::to_vec_pretty(&long).unwrap().len() as u64
        );
        assert_eq!(serde_json::from_slice::<Process>(&fs::read(&path).unwrap()).unwrap(), process);
        let missing = write_in_place(&dir.path().join("none"), &process).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}

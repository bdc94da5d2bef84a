//! Where an agent keeps what it knows. One directory per agent, never shared.
//!
//! ```text
//! STATE/
//!   lock                     held (flock) while an agent uses the directory
//!   containers/NAME/
//!     record.json            the container's record; written atomically
//!     config.json            the OCI configuration it was made from
//!     sandbox.json           what its shim and its first process were told
//!     mounts                 mountinfo of its sandbox when that had just been built
//!     log                    its standard output and error, appended
//!     shim.log               messages of the shim
//!     exit.json              how the root process ended, written by the shim
//!   bundles/NAME/            a container that came from another node
//!     rootfs/                its root directory, unless that is shared storage
//!   journal ...              the migrations' journal, see `crate::journal`
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::error::RuntimeError;
use super::name::ContainerName;

/// The state directory of an agent.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// The files of one container.
#[derive(Clone, Debug)]
pub struct ContainerDir {
    root: PathBuf,
}

impl StateDir {
    /// Takes `root`, an absolute path; creates what is missing.
    ///
    /// # Errors
    /// When a directory cannot be created.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RuntimeError> {
        let state = Self { root: root.into() };
        for dir in [state.root.clone(), state.containers(), state.bundles()] {
            fs::create_dir_all(&dir).map_err(RuntimeError::file("create", &dir))?;
        }
        Ok(state)
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where every container has its directory.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Where bundles of containers that came from elsewhere are.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.root.join("bundles")
    }

    /// The bundle of a container that came from elsewhere.
    #[must_use]
    pub fn bundle(&self, name: &ContainerName) -> PathBuf {
        self.bundles().join(name)
    }

    /// The files of a container, which need not exist.
    #[must_use]
    pub fn container(&self, name: &ContainerName) -> ContainerDir {
        ContainerDir { root: self.containers().join(name) }
    }
}

impl ContainerDir {
    /// The files below a directory of the caller's choice.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// See the module's documentation.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.root.join("record.json")
    }

    /// See the module's documentation.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.json")
    }

    /// See the module's documentation.
    #[must_use]
    pub fn sandbox(&self) -> PathBuf {
        self.root.join("sandbox.json")
    }

    /// See the module's documentation.
    #[must_use]
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// See the module's documentation.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// See the module's documentation.
    #[must_use]
    pub fn shim_log(&self) -> PathBuf {
        self.root.join("shim.log")
    }

    /// See the module's documentation.
    #[must_use]
    pub fn exit(&self) -> PathBuf {
        self.root.join("exit.json")
    }
}

/// Writes a file so that a crash leaves either the old or the new content: temporary file, fsync,
/// rename, fsync of the directory.
///
/// # Errors
/// What the file system answered; the old content is then still there.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

//! A container on the node that it leaves.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::source::{External, Namespaces, TreeSpec};
use image::Refusal;
use oci_spec::runtime::Spec;

use super::areas;
use super::blueprint::{Blueprint, Rootfs};
use super::clocks::Clocks;
use super::groups;
use super::lock::ContainerLock;
use super::network::Outgoing;
use super::written::written;
use crate::files::{self, Source};
use crate::runtime::cgroup::Cgroup;
use crate::runtime::record::{Process, Record, Stage};
use crate::runtime::{Runtime, RuntimeError, terminals};
use crate::session::ports::{
    ContainerSource, FileRound, FileSink, FileSource, GroupSource, HostState, NetLock, PortError, Settled,
};

/// The key of the log among what the runtime gives to a container.
pub(super) const LOG: &str = "log";

/// How long the kernel may take to end a killed container.
const KILL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Leaving {
    runtime: Arc<Runtime>,
    record: Record,
    root: Process,
    /// Its network, once its target was told of it.
    network: RefCell<Option<Outgoing>>,
}

impl Leaving {
    pub(super) fn new(runtime: Arc<Runtime>, record: Record, root: Process) -> Self {
        Self { runtime, record, root, network: RefCell::new(None) }
    }

    fn config(&self) -> Result<Spec, PortError> {
        let path = self.runtime.state().container(&self.record.name).config();
        let bytes =
            fs::read(&path).map_err(|error| PortError::failed(format!("read {}", path.display()), error))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| PortError::failed(format!("understand {}", path.display()), error))
    }

    fn log(&self) -> PathBuf {
        self.runtime.state().container(&self.record.name).log()
    }

    fn during<T>(&self, what: &str, result: Result<T, RuntimeError>) -> Result<T, PortError> {
        result.map_err(|error| PortError::failed(format!("{what} {}", self.record.name), error))
    }
}

impl ContainerSource for Leaving {
    fn tree(&self) -> TreeSpec {
        let log = File::open(self.log()).and_then(|file| file.metadata());
        let externals =
            log.into_iter().map(|file| External { key: LOG.to_owned(), dev: file.dev(), ino: file.ino() });
        let shim = self.record.shim.as_ref().map_or(0, |shim| shim.pid);
        // Without its configuration the move fails anyway, before it begins.
        let terminals = self.config().map(|spec| terminals::given(&spec, shim)).unwrap_or_default();
        TreeSpec {
            root: self.root.pid,
            cgroup: Some(self.cgroup()),
            externals: externals.collect(),
            terminals,
            namespaces: Namespaces::Own,
        }
    }

    fn spec(&self) -> Result<Vec<u8>, PortError> {
        let network = Outgoing::look(&self.record, self.root.pid)?;
        if !network.refusals().is_empty() {
            return Err(PortError::Refused(network.refusals().to_vec()));
        }
        let host = vec![network.whole(&self.record)?];
        self.network.replace(Some(network));
        let what = || format!("describe {}", self.record.name);
        // Last, because they run on.
        let config = self.config()?;
        let clocks = Clocks::of(self.root.pid).map_err(|error| PortError::failed(what(), error))?;
        let blueprint = Blueprint::new(&self.record, config, host, clocks)
            .map_err(|error| PortError::failed(what(), error))?;
        serde_json::to_vec(&blueprint).map_err(|error| PortError::failed(what(), error))
    }

    fn host_refusals(&self) -> Result<Vec<Refusal>, PortError> {
        Ok(Outgoing::look(&self.record, self.root.pid)?.refusals().to_vec())
    }

    fn final_state(&self) -> Result<Vec<HostState>, PortError> {
        // Its last use: it keeps the namespace, and many files open.
        let network = self.network.take().ok_or_else(|| {
            PortError::failed(format!("describe {}", self.record.name), "its target knows nothing of it yet")
        })?;
        Ok(network.changes(&self.record)?.into_iter().collect())
    }

    fn cgroup(&self) -> PathBuf {
        // Every layout that the runtime opens with has a unified hierarchy.
        self.record.cgroup.unified().map(PathBuf::from).unwrap_or_default()
    }

    fn groups(&self) -> Box<dyn GroupSource> {
        // Without its configuration the move ends when it is described.
        let widen = self.config().is_ok_and(|spec| groups::may_widen(&spec));
        Box::new(groups::Leaving::new(self.record.name.to_string(), &self.record.cgroup, widen))
    }

    fn lock(&self) -> Result<Box<dyn NetLock>, PortError> {
        Ok(Box::new(ContainerLock::prepare(&self.record, self.root.pid)?))
    }

    fn files(&self) -> Result<Box<dyn FileSource>, PortError> {
        let what = |error| PortError::failed(format!("open the files of {}", self.record.name), error);
        let spec = self.config()?;
        let rootfs = Rootfs::of(&spec, &self.record.rootfs)
            .map_err(|error| PortError::failed(format!("open the files of {}", self.record.name), error))?;
        let areas = areas::open(&spec, &rootfs, &self.record.rootfs, self.root.pid).map_err(what)?;
        Ok(Box::new(Files {
            name: self.record.name.to_string(),
            source: Source::new(areas, self.log()),
            cgroup: self.record.cgroup.clone(),
            terminal_log: (!terminals::places(&spec).is_empty()).then(|| self.log()),
        }))
    }

    fn settle(&self, how: Settled, epoch: u64) {
        let settled = self.runtime.update(&self.record.name, |record| {
            record.stage = match how {
                Settled::Migrating => Stage::Migrating,
                Settled::Frozen => Stage::Frozen,
                Settled::Running => Stage::Here,
            };
            record.epoch = record.epoch.max(epoch);
        });
        if let Err(error) = settled {
            tracing::error!(container = %self.record.name, error = %error, "its state could not be recorded");
        }
    }

    fn kill(&self) -> Result<(), PortError> {
        let killed = self.record.cgroup.kill(KILL);
        self.during("kill", killed.map_err(RuntimeError::from))
    }

    fn remove(&self) -> Result<(), PortError> {
        self.during("remove", self.runtime.erase_all_but_link(&self.record))
    }
}

/// The files of a container that leaves.
#[derive(Debug)]
struct Files {
    name: String,
    source: Source,
    cgroup: Cgroup,
    /// The log, when it gets what comes out of terminals.
    terminal_log: Option<PathBuf>,
}

impl Files {
    fn sent(&self, round: Result<files::Round, files::FilesError>) -> Result<FileRound, PortError> {
        let round =
            round.map_err(|error| PortError::failed(format!("send the files of {}", self.name), error))?;
        Ok(FileRound { entries: round.entries, bytes: round.bytes })
    }
}

impl FileSource for Files {
    fn ahead(&mut self, paths: &[PathBuf], sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        let round = self.source.ahead(paths, &mut |batch| sink.batch(batch));
        self.sent(round)
    }

    fn round(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        let round = self.source.round(&mut |batch| sink.batch(batch));
        self.sent(round)
    }

    fn last(&mut self, sink: &mut dyn FileSink) -> Result<FileRound, PortError> {
        // The engine found the terminals empty; what the shim took from them before goes along.
        if let Some(log) = &self.terminal_log {
            terminals::wait_for_log(log)
                .map_err(|error| PortError::failed(format!("wait for the log of {}", self.name), error))?;
        }
        let processes = self.cgroup.processes();
        let processes = processes
            .map_err(|error| PortError::failed(format!("list the processes of {}", self.name), error))?;
        let suspects = written(&processes);
        let round = self.source.last(&suspects, &mut |batch| sink.batch(batch));
        self.sent(round)
    }
}

//! A container on the node that it leaves.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use engine::source::{External, MountNamespaces, Namespaces, TreeSpec};
use image::Refusal;
use oci_spec::runtime::Spec;

use super::area_groups::{Sending, Sources};
use super::areas;
use super::blueprint::{Blueprint, Rootfs};
use super::clocks::Clocks;
use super::groups;
use super::lock::ContainerLock;
use super::mounts::{Explored, Nested, can_nest, explore, nested, shown};
use super::network::Outgoing;
use crate::files::Source;
use crate::runtime::cgroup::throttle;
use crate::runtime::record::{Process, Record, Stage};
use crate::runtime::{Runtime, RuntimeError, terminals};
use crate::session::ports::{
    ContainerSource, FileSource, GroupSource, HostState, NetLock, PortError, Settled, Throttled,
};

/// The key of the log among what the runtime gives to a container.
pub(super) const LOG: &str = "log";

/// How long the kernel may take to end a killed container.
const KILL: Duration = Duration::from_secs(10);

/// A network with what has changed of it.
type LastLook = (Outgoing, Result<Option<HostState>, PortError>);

#[derive(Debug)]
pub(super) struct Leaving {
    runtime: Arc<Runtime>,
    record: Record,
    root: Process,
    /// Its network, once its target was told of it.
    network: RefCell<Option<Outgoing>>,
    /// The last look at it.
    ending: RefCell<Option<JoinHandle<LastLook>>>,
    /// The same network after that look: closing it takes a while, which is not for the pause.
    ended: RefCell<Option<Outgoing>>,
    sources: Sources,
    /// mountinfo at the last look, and what was said about it.
    said: Option<(Vec<u8>, Vec<u8>)>,
    /// Devices of configured file systems that were seen to be gone.
    dead: HashSet<(u32, u32)>,
    /// Mount namespaces that travel.
    carried: MountNamespaces,
    /// The next look at the mounts is that in the pause.
    last: Cell<bool>,
    /// Namespaces below its own, at the last look.
    below: Vec<Nested>,
}

impl Leaving {
    pub(super) fn new(runtime: Arc<Runtime>, record: Record, root: Process) -> Self {
        Self {
            runtime,
            record,
            root,
            network: RefCell::new(None),
            ending: RefCell::new(None),
            ended: RefCell::new(None),
            sources: Sources::default(),
            said: None,
            dead: HashSet::new(),
            carried: MountNamespaces::default(),
            last: Cell::new(false),
            below: Vec::new(),
        }
    }

    /// Looks at its mounts; areas that are sent already are not opened again.
    fn explore(&self) -> Result<Explored, PortError> {
        let name = &self.record.name;
        let path = self.runtime.state().container(name).mounts();
        let base = fs::read(&path)
            .map_err(|error| PortError::failed(format!("read {}", path.display()), error))
            .and_then(|text| {
                engine::proc::mountinfo::parse(&text)
                    .map_err(|error| PortError::failed(format!("understand {}", path.display()), error))
            })?;
        let nested = || self.nested();
        explore(self.root.pid, &base, &nested, &self.sources.known(), &self.dead)
            .map_err(|error| PortError::failed(format!("look at the mounts of {name}"), error))
    }

    /// The mount namespaces that it has below its own.
    fn nested(&self) -> io::Result<Vec<Nested>> {
        Ok(nested(self.root.pid, &self.record.cgroup.processes().map_err(io::Error::other)?))
    }

    /// From now on these are carried.
    fn carry(&self, nested: &[Nested]) {
        // What belongs to the agent's users cannot be entered by those of a user namespace.
        if can_nest(self.root.pid) {
            self.carried.set(nested.iter().map(|one| one.number).collect());
        }
    }

    fn config(&self) -> Result<Spec, PortError> {
        let path = self.runtime.state().container(&self.record.name).config();
        let bytes =
            fs::read(&path).map_err(|error| PortError::failed(format!("read {}", path.display()), error))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| PortError::failed(format!("understand {}", path.display()), error))
    }

    /// All but its state, to make it again from.
    pub(super) fn describe(&self, host: Vec<HostState>) -> Result<Blueprint, PortError> {
        let config = self.config()?;
        // Last, because they run on.
        let clocks = Clocks::of(self.root.pid)
            .map_err(|error| PortError::failed(format!("describe {}", self.record.name), error))?;
        Blueprint::new(&self.record, config, host, clocks)
            .map_err(|error| PortError::Refused(vec![error.refusal()]))
    }

    fn log(&self) -> PathBuf {
        self.runtime.state().container(&self.record.name).log()
    }

    fn during<T>(&self, what: &str, result: Result<T, RuntimeError>) -> Result<T, PortError> {
        result.map_err(|error| PortError::failed(format!("{what} {}", self.record.name), error))
    }
}

/// How long after a record could not be written it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Leaving {
    /// It runs here, and a disk without room stood against saying so: nothing could move it until that is said.
    fn record_later(&self, epoch: u64) {
        let (runtime, name) = (Arc::clone(&self.runtime), self.record.name.clone());
        let again = move || {
            loop {
                thread::sleep(AGAIN);
                // A later attempt says for itself how it ended.
                let settled = runtime.update(&name, |record| {
                    if record.epoch <= epoch {
                        (record.stage, record.epoch) = (Stage::Here, epoch);
                    }
                });
                match settled {
                    Ok(_) | Err(RuntimeError::NotFound(_)) => return,
                    Err(error) => tracing::debug!(container = %name, %error, "still not recorded"),
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("record".to_owned()).spawn(again) {
            tracing::error!(%error, "its state will not be recorded before the agent starts again");
        }
    }
}

impl ContainerSource for Leaving {
    fn tree(&self) -> TreeSpec {
        let log = File::open(self.log()).and_then(|file| file.metadata());
        let externals =
            log.into_iter().map(|file| External { key: LOG.to_owned(), dev: file.dev(), ino: file.ino() });
        let shim = self.record.shim.as_ref().map_or(0, |shim| shim.pid);
        // What cannot be listed is looked for again when its mounts are.
        self.carry(&self.nested().unwrap_or_default());
        // Without its configuration the move fails anyway, before it begins.
        let terminals = self.config().map(|spec| terminals::given(&spec, shim)).unwrap_or_default();
        TreeSpec {
            root: self.root.pid,
            cgroup: Some(self.cgroup()),
            externals: externals.collect(),
            terminals,
            namespaces: Namespaces::Own,
            mounts: self.carried.clone(),
        }
    }

    fn spec(&self) -> Result<Vec<u8>, PortError> {
        let network = Outgoing::look(&self.record, self.root.pid)?;
        if !network.refusals().is_empty() {
            return Err(PortError::Refused(network.refusals().to_vec()));
        }
        let host = vec![network.whole(&self.record)?];
        self.network.replace(Some(network));
        serde_json::to_vec(&self.describe(host)?)
            .map_err(|error| PortError::failed(format!("describe {}", self.record.name), error))
    }

    fn host_refusals(&self) -> Result<Vec<Refusal>, PortError> {
        let mut refusals = self.explore()?.refusals;
        refusals.extend_from_slice(Outgoing::look(&self.record, self.root.pid)?.refusals());
        Ok(refusals)
    }

    fn begin_final_state(&mut self) -> Result<(), PortError> {
        let what = || format!("describe {}", self.record.name);
        self.last.set(true);
        // The second one after a look that found something in the way.
        let network = self.network.take().or_else(|| self.ended.take());
        let network =
            network.ok_or_else(|| PortError::failed(what(), "its target knows nothing of it yet"))?;
        let record = self.record.clone();
        let looking = thread::Builder::new().name("network".to_owned()).spawn(move || {
            let changes = network.changes(&record);
            (network, changes)
        });
        self.ending.replace(Some(looking.map_err(|error| PortError::failed(what(), error))?));
        Ok(())
    }

    fn final_state(&self) -> Result<Vec<HostState>, PortError> {
        let what = || format!("describe {}", self.record.name);
        let looking = self.ending.take().ok_or_else(|| PortError::failed(what(), "nobody looked at it"))?;
        let (network, changes) =
            looking.join().map_err(|_| PortError::failed(what(), "the thread that did it panicked"))?;
        self.ended.replace(Some(network));
        Ok(changes?.into_iter().collect())
    }

    fn mounts(&mut self) -> Result<Option<Vec<u8>>, PortError> {
        let what = || format!("read the mounts of {}", self.record.name);
        // A namespace that was made between the last round and the pause is refused by the engine, and is there the next time.
        if !self.last.replace(false) || !self.below.is_empty() {
            self.below = self.nested().map_err(|error| PortError::failed(what(), error))?;
        }
        // Every change shows in mountinfo, and reading it costs less than anything else.
        let now = shown(self.root.pid, &self.below).map_err(|error| PortError::failed(what(), error))?;
        if self.said.as_ref().is_some_and(|(before, _)| now.as_ref() == Some(before)) {
            return Ok(None);
        }
        let mut explored = self.explore()?;
        if !explored.refusals.is_empty() {
            return Err(PortError::Refused(explored.refusals));
        }
        self.dead = explored.dead;
        self.carry(&explored.nested);
        let now = if explored.nested == self.below { now.unwrap_or_default() } else { Vec::new() };
        explored.tree.set_areas(self.sources.keep(explored.areas));
        self.sources.set_changed(explored.tree.is_changed());
        let tree = explored.tree.encode().map_err(|error| {
            PortError::failed(format!("describe the mounts of {}", self.record.name), error)
        })?;
        let same = self.said.as_ref().is_some_and(|(_, said)| *said == tree);
        self.said = Some((now, tree.clone()));
        Ok((!same).then_some(tree))
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
        let areas = areas::open(&spec, &rootfs, &self.record.rootfs).map_err(what)?;
        self.sources.set_first(Source::new(areas, self.log()));
        Ok(Box::new(Sending {
            name: self.record.name.to_string(),
            sources: self.sources.clone(),
            cgroup: self.record.cgroup.clone(),
            terminal_log: (!terminals::places(&spec).is_empty()).then(|| self.log()),
        }))
    }

    fn unthrottle(&self, throttled: &Throttled) -> Result<(), PortError> {
        let lifted = throttle::lift(throttled);
        lifted.map_err(|error| PortError::failed(format!("lift the throttle of {}", self.record.name), error))
    }

    fn settle(&self, how: Settled, epoch: u64) {
        // It keeps the namespace, and many files open.
        self.ended.take();
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
            if how == Settled::Running {
                self.record_later(epoch);
            }
        }
    }

    fn kill(&self) -> Result<(), PortError> {
        let killed = self.record.cgroup.kill(KILL);
        self.during("kill", killed.map_err(RuntimeError::from))
    }

    fn remove(&self) -> Result<(), PortError> {
        self.ended.take();
        self.during("remove", self.runtime.erase_all_but_link(&self.record))
    }
}

//! A container on the node that it comes to.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::target::{Externals, NestedMounts, SkeletonRoot, TargetOptions};
use image::groups::Groups;
use image::{Refusal, Subject};
use oci_spec::runtime::Spec;
use sys::ns::{self, Kind};

use super::area_groups::{Applying, Targets};
use super::areas;
use super::blueprint::{Blueprint, Rootfs};
use super::groups;
use super::leaving::LOG;
use super::lock::failed;
use super::mounts::{MakeError, Maker, Tree};
use super::network::{self as moving, Arriving};
use super::outline;
use crate::files::Target;
use crate::network::state::NetState;
use crate::network::{self, Port};
use crate::runtime::bundle::Bundle;
use crate::runtime::launch::launch;
use crate::runtime::paths::ContainerDir;
use crate::runtime::record::{Process, Record, Stage};
use crate::runtime::sandbox::{CONTROL_FD, Purpose, Sandbox};
use crate::runtime::userns::UserNamespace;
use crate::runtime::{Runtime, RuntimeError};
use crate::session::ports::{
    ContainerTarget, CopyTask, EthernetFrame, FileTarget, HostState, Incoming, PortError,
};
use crate::telemetry::chain;

#[derive(Debug)]
pub(super) struct Coming {
    runtime: Arc<Runtime>,
    record: Record,
    spec: Spec,
    rootfs: Rootfs,
    /// The engine's way into the first process, until it is handed out.
    channel: Option<OwnedFd>,
    port: Option<Port>,
    /// Its network, until the last of its state is set.
    network: Option<Arriving>,
    externals: Stdio,
    groups: groups::Coming,
    targets: Targets,
    /// The host's numbers of the container's root, when it has a user namespace.
    owner: Option<(u32, u32)>,
    /// Until the mounts are complete.
    maker: Option<Maker>,
    /// Mount namespaces below its own, as the maker makes them.
    nested: NestedMounts,
    discarded: bool,
}

impl Coming {
    /// Builds the sandbox.
    pub(super) fn make(runtime: &Arc<Runtime>, request: &Incoming) -> Result<Self, PortError> {
        let what = || format!("make the sandbox of {}", request.container);
        let blueprint = Blueprint::parse(&request.spec).map_err(|error| PortError::failed(what(), error))?;
        if blueprint.name.as_str() != request.container {
            return Err(PortError::failed(what(), format!("its description is of {}", blueprint.name)));
        }
        let refusals = outline::lacks(runtime, &blueprint);
        if !refusals.is_empty() {
            return Err(PortError::Refused(refusals));
        }
        let lock = runtime.lock_of(&blueprint.name);
        let _held = crate::runtime::hold(&lock);
        let dir = runtime.dir(&blueprint.name);
        if dir.root().exists() {
            return Err(PortError::failed(what(), RuntimeError::Exists(blueprint.name)));
        }
        let wanted = moving::wanted(&blueprint.host)?.unwrap_or_default();
        Self::build(runtime, blueprint, request, &dir, wanted).map_err(|error| match error {
            RuntimeError::NetState(error) => PortError::Refused(vec![Refusal {
                pid: 0,
                subject: Subject::Container,
                reason: format!("its network cannot be made on the target node: {}", chain(&error)),
                way_out: "choose a node whose kernel has what it uses, or remove it from the container"
                    .to_owned(),
            }]),
            error => PortError::failed(what(), error),
        })
    }

    fn build(
        runtime: &Arc<Runtime>,
        mut blueprint: Blueprint,
        request: &Incoming,
        dir: &ContainerDir,
        wanted: NetState,
    ) -> Result<Self, RuntimeError> {
        let bundle = runtime.state().bundle(&blueprint.name);
        let clocks = blueprint.clocks.offsets_here(&request.clocks);
        let volumes = blueprint
            .take_volumes(&bundle)
            .map_err(|error| RuntimeError::Bundle { path: bundle.clone(), what: error.to_string() })?;
        let rootfs = match &blueprint.rootfs {
            Rootfs::Sync => bundle.join("rootfs"),
            Rootfs::Shared(shared) => shared.path.clone(),
        };
        let mut record = Record {
            cgroup: runtime.cgroup_of(&blueprint.name),
            link: runtime.link_of(&blueprint.name),
            name: blueprint.name,
            bundle: bundle.clone(),
            rootfs: rootfs.clone(),
            network: blueprint.network,
            labels: blueprint.labels,
            epoch: request.epoch,
            created: blueprint.created,
            stage: Stage::Incoming { migration: request.migration.clone(), ready: false },
            arrived: Some(request.migration.clone()),
            root: None,
            shim: None,
        };
        let make = |record: &mut Record| -> Result<(Spec, OwnedFd, Option<Port>, Arriving), RuntimeError> {
            let _ = fs::remove_dir_all(&bundle);
            let own_rootfs = bundle.join("rootfs");
            for dir in [own_rootfs.clone()].iter().chain(&volumes) {
                fs::create_dir_all(dir).map_err(RuntimeError::file("create", dir))?;
            }
            if let Some((uid, gid)) = UserNamespace::of(&blueprint.spec).and_then(|user| user.root()) {
                chown(&own_rootfs, Some(uid), Some(gid)).map_err(RuntimeError::file("chown", &own_rootfs))?;
            }
            let bundle = Bundle::from_spec(bundle.clone(), rootfs.clone(), blueprint.spec)?;
            // Its limits come with its state, when the copy is complete.
            runtime.prepare(record, &bundle, dir, false)?;
            let sandbox = Sandbox { clocks, ..runtime.sandbox(record, &bundle, dir, Purpose::Restore) };
            let index = moving::own_index(&wanted);
            let network = |pid| Ok(network::create(&record.link, &record.network, index, pid)?);
            let launched =
                launch(&runtime.options().exe, &record.name, dir, &sandbox, Some(&record.cgroup), network)?;
            let bridge = runtime.options().bridge.as_deref();
            let pid = launched.root.pid;
            let network = Arriving::prepare(wanted, pid).map_err(RuntimeError::NetState)?;
            let port = Port::prepare(&record.link, &record.network, bridge, pid)?;
            let (root, shim, channel) =
                launched.into_parts().map_err(RuntimeError::file("use", dir.sandbox()))?;
            record.root = Some(root);
            record.shim = Some(shim);
            record.save(&dir.record())?;
            Ok((bundle.spec, channel, port, network))
        };
        match make(&mut record) {
            Ok((spec, channel, port, network)) => Ok(Self {
                network: Some(network),
                runtime: Arc::clone(runtime),
                groups: groups::Coming::new(&record.cgroup),
                record,
                rootfs: blueprint.rootfs,
                channel: Some(channel),
                port,
                externals: Stdio { log: dir.log() },
                targets: Targets::default(),
                owner: UserNamespace::of(&spec).and_then(|user| user.root()),
                spec,
                maker: None,
                nested: NestedMounts::default(),
                discarded: false,
            }),
            Err(error) => {
                runtime.clear(&record, dir);
                Err(error)
            }
        }
    }

    /// A complete copy that an earlier agent received.
    pub(super) fn reopen(runtime: Arc<Runtime>, record: Record) -> Result<Self, PortError> {
        let dir = runtime.dir(&record.name);
        let pid = record.root.as_ref().map_or(0, |root| root.pid);
        let bridge = runtime.options().bridge.clone();
        let port = Port::prepare(&record.link, &record.network, bridge.as_deref(), pid).map_err(failed)?;
        let read = || -> io::Result<Spec> { Ok(serde_json::from_slice(&fs::read(dir.config())?)?) };
        let spec = read().map_err(|error| {
            PortError::failed(format!("read the configuration of {}", record.name), error)
        })?;
        Ok(Self {
            externals: Stdio { log: dir.log() },
            rootfs: Rootfs::Sync,
            groups: groups::Coming::new(&record.cgroup),
            runtime,
            record,
            channel: None,
            port,
            network: None,
            spec,
            targets: Targets::default(),
            owner: None,
            maker: None,
            nested: NestedMounts::default(),
            discarded: false,
        })
    }

    fn pid(&self) -> i32 {
        self.record.root.as_ref().map_or(0, |root| root.pid)
    }

    /// The answer to a change of its mounts.
    fn made<T>(&self, result: Result<T, MakeError>) -> Result<T, PortError> {
        result.map_err(|error| match error {
            MakeError::Lacks(refusals) => PortError::Refused(refusals),
            error => PortError::failed(format!("make the mounts of {}", self.record.name), error),
        })
    }

    fn failed<T>(
        &self,
        what: &str,
        result: Result<T, impl Into<Box<dyn std::error::Error + Send + Sync>>>,
    ) -> Result<T, PortError> {
        result.map_err(|error| PortError::failed(format!("{what} {}", self.record.name), error))
    }
}

impl ContainerTarget for Coming {
    fn options(&mut self) -> Result<TargetOptions, PortError> {
        let channel = self.channel.take().ok_or("its first process was handed out already");
        let channel = self.failed("open the sandbox of", channel)?;
        let pid = self.pid();
        let netns = self.failed("open the network of", ns::open(pid, Kind::Net))?;
        Ok(TargetOptions {
            root: SkeletonRoot { pid, channel, channel_fd: CONTROL_FD },
            netns: Some(netns),
            cgroup: Some(self.cgroup()),
            nested: self.nested.clone(),
        })
    }

    fn cgroup(&self) -> PathBuf {
        // Every layout that the runtime opens with has a unified hierarchy.
        self.record.cgroup.unified().map(PathBuf::from).unwrap_or_default()
    }

    fn externals(&mut self) -> &mut dyn Externals {
        &mut self.externals
    }

    fn groups(&mut self, groups: &Groups, tasks: &[CopyTask]) -> Result<Vec<String>, PortError> {
        self.groups.structure(self.record.name.as_str(), &self.spec, groups, tasks)
    }

    fn limits(&mut self, tasks: &[CopyTask]) -> Result<(), PortError> {
        self.groups.limits(self.record.name.as_str(), tasks)
    }

    fn mounts(&mut self, mounts: &[u8]) -> Result<(), PortError> {
        let tree = self.failed("understand the mounts of", Tree::decode(mounts))?;
        let groups = tree.groups();
        if self.maker.is_none() {
            let own = areas::points(&self.spec, &self.rootfs);
            let maker = Maker::new(self.pid(), own, self.owner, self.nested.clone());
            self.maker = Some(self.made(maker)?);
        }
        let Some(maker) = &mut self.maker else { return Ok(()) };
        let made = maker.apply(tree);
        let areas = self.made(made)?;
        self.targets.keep(&groups);
        for (area, dir) in areas {
            let target = Target::new(vec![area.open(dir)], self.externals.log.clone());
            self.targets.set(area.group, target);
        }
        Ok(())
    }

    fn settle_mounts(&mut self, pids: BTreeMap<u64, OwnedFd>) -> Result<(), PortError> {
        // They may hold a file open for writing.
        self.targets.keep(&HashSet::new());
        let Some(maker) = self.maker.take() else { return Ok(()) };
        let finished = maker.finish(pids);
        self.made(finished)
    }

    fn files(&mut self) -> Result<Box<dyn FileTarget>, PortError> {
        let areas = areas::open(&self.spec, &self.rootfs, &self.record.rootfs);
        let areas = self.failed("open the files of", areas)?;
        self.targets.set(0, Target::new(areas, self.externals.log.clone()));
        let (name, targets) = (self.record.name.to_string(), self.targets.clone());
        Ok(Box::new(Applying { name, targets, owner: self.owner }))
    }

    fn final_state(&mut self, states: &[HostState]) -> Result<(), PortError> {
        // The last use of its reader, which keeps the namespace.
        let (network, changes) = (self.network.take(), moving::wanted(states)?);
        let Some(network) = network else { return Ok(()) };
        let network = match changes {
            Some(changes) => self.failed("complete the network of", network.complete(changes))?,
            None => network,
        };
        if let Some(port) = &mut self.port {
            port.set_addresses(&network.addresses());
        }
        Ok(())
    }

    fn ready(&mut self, root_pid: i32) -> Result<(), PortError> {
        self.record.root = Some(self.failed("record", Process::of(root_pid))?);
        if let Stage::Incoming { ready, .. } = &mut self.record.stage {
            *ready = true;
        }
        let saved = self.record.save_in_place(&self.runtime.dir(&self.record.name).record());
        self.failed("record", saved)
    }

    fn attach(&mut self) -> Result<(), PortError> {
        self.port.as_mut().map_or(Ok(()), |port| port.attach().map_err(failed))
    }

    fn open(&mut self) -> Result<(), PortError> {
        let Some(port) = &mut self.port else { return Ok(()) };
        let waited = port.open().map_err(failed)?;
        tracing::debug!(waited, "frames that came directly");
        Ok(())
    }

    fn announce(&mut self) -> Result<(), PortError> {
        self.port.as_ref().map_or(Ok(()), |port| port.announce().map_err(failed))
    }

    fn deliver(&mut self, frames: &[EthernetFrame]) -> Result<(), PortError> {
        self.port.as_ref().map_or(Ok(()), |port| port.deliver(frames).map_err(failed))
    }

    fn first_served(&mut self, since: SystemTime, wait: Duration) -> Option<Duration> {
        self.port.as_ref().and_then(|port| port.first_served(since, wait))
    }

    fn look_away(&mut self) {
        if let Some(port) = &mut self.port {
            port.look_away();
        }
    }

    fn adopt(&mut self, epoch: u64) -> Result<(), PortError> {
        self.record.stage = Stage::Here;
        self.record.epoch = self.record.epoch.max(epoch);
        let saved = self.record.save(&self.runtime.dir(&self.record.name).record());
        self.failed("record", saved)
    }

    fn discard(&mut self) -> Result<(), PortError> {
        if self.discarded {
            return Ok(());
        }
        self.network = None;
        self.port = None;
        self.maker = None;
        self.nested.clear();
        self.targets.clear();
        let lock = self.runtime.lock_of(&self.record.name);
        let _held = crate::runtime::hold(&lock);
        let erased = self.runtime.erase(&self.record);
        self.failed("remove", erased)?;
        self.discarded = true;
        Ok(())
    }
}

/// What the runtime gives to a container: its log.
#[derive(Debug)]
struct Stdio {
    log: PathBuf,
}

impl Externals for Stdio {
    fn open(&mut self, key: &str) -> io::Result<OwnedFd> {
        if key != LOG {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("this runtime supplies no {key}")));
        }
        Ok(File::options().append(true).create(true).open(&self.log)?.into())
    }
}

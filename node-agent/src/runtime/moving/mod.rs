//! Containers on their way from node to node: what [`crate::session::ports`] asks of the runtime.

mod area_groups;
mod areas;
mod blueprint;
mod clocks;
mod coming;
mod groups;
mod leaving;
mod lock;
mod mounts;
mod network;
mod outline;
mod written;

use std::fs;
use std::sync::Arc;

use image::Refusal;
use image::groups::Groups;
use image::state::HostFacts;

use super::record::Stage;
use super::{ContainerName, Runtime, RuntimeError};
use crate::session::ports::{ContainerSource, ContainerTarget, Died, Incoming, Node, PortError};

pub(crate) use areas::tmpfs as tmpfs_areas;
use coming::Coming;
use leaving::Leaving;
#[cfg(test)]
pub(crate) use mounts::layouts as mount_layouts;

/// The runtime as migrations see it.
#[derive(Clone, Debug)]
pub struct MovingNode {
    runtime: Arc<Runtime>,
}

impl MovingNode {
    /// Over this runtime.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Self { runtime }
    }
}

impl Node for MovingNode {
    fn source(&self, container: &str) -> Result<Box<dyn ContainerSource>, PortError> {
        Ok(Box::new(self.leaving(container)?))
    }

    fn incoming(&self, request: &Incoming) -> Result<Box<dyn ContainerTarget>, PortError> {
        Ok(Box::new(Coming::make(&self.runtime, request)?))
    }

    fn reopen(
        &self,
        container: &str,
        migration: &str,
    ) -> Result<Option<Box<dyn ContainerTarget>>, PortError> {
        let Some(record) = self.arriving(container, migration)? else { return Ok(None) };
        if !record.is_alive() || matches!(record.stage, Stage::Incoming { ready: false, .. }) {
            return Ok(None);
        }
        Ok(Some(Box::new(Coming::reopen(Arc::clone(&self.runtime), record)?)))
    }

    fn kill_incoming(&self, container: &str, migration: &str) -> Result<(), PortError> {
        let Some(record) = self.arriving(container, migration)? else { return Ok(()) };
        if !matches!(record.stage, Stage::Incoming { .. }) {
            return Ok(());
        }
        self.runtime
            .erase(&record)
            .map_err(|error| PortError::failed(format!("remove the copy of {container}"), error))
    }

    fn bury(&self, container: &str, epoch: u64, died: Died) -> Result<(), PortError> {
        let Ok(name) = ContainerName::new(container) else { return Ok(()) };
        let record = match self.runtime.record(&name) {
            Ok(record) => record,
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(PortError::failed(format!("read the record of {name}"), error)),
        };
        let held = matches!(record.stage, Stage::Migrating | Stage::Frozen) && record.epoch == epoch;
        if !held || record.is_alive() {
            return Ok(());
        }
        let done = match died {
            Died::Moved => self.runtime.erase(&record),
            Died::Here => self.runtime.update(&name, |record| record.stage = Stage::Here).map(drop),
        };
        done.map_err(|error| PortError::failed(format!("remove what is left of {container}"), error))
    }

    fn facts(&self) -> HostFacts {
        host_facts()
    }

    fn gives(&self) -> image::state::Gives {
        engine::target::gives()
    }

    fn lacks(&self, container: &str, groups: &Groups) -> Vec<Refusal> {
        let Ok(name) = ContainerName::new(container) else { return Vec::new() };
        groups::lacks(&self.runtime.cgroup_of(&name), groups)
    }

    fn memory_free(&self) -> u64 {
        memory("MemAvailable:")
    }
}

impl MovingNode {
    /// A container that is here.
    fn leaving(&self, container: &str) -> Result<Leaving, PortError> {
        let missing = || PortError::NoContainer(container.to_owned());
        let name = ContainerName::new(container).map_err(|_| missing())?;
        let record = match self.runtime.record(&name) {
            Ok(record) => record,
            Err(RuntimeError::NotFound(_)) => return Err(missing()),
            Err(error) => return Err(PortError::failed(format!("read the record of {name}"), error)),
        };
        let here = matches!(record.stage, Stage::Here | Stage::Migrating | Stage::Frozen);
        let root = record.root.clone().filter(|root| here && root.is_alive()).ok_or_else(missing)?;
        Ok(Leaving::new(Arc::clone(&self.runtime), record, root))
    }

    /// The record of a container that `migration` brings or brought.
    fn arriving(&self, container: &str, migration: &str) -> Result<Option<super::record::Record>, PortError> {
        let Ok(name) = ContainerName::new(container) else { return Ok(None) };
        match self.runtime.record(&name) {
            Ok(record) if record.arrived.as_deref() == Some(migration) => Ok(Some(record)),
            Ok(_) | Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(PortError::failed(format!("read the record of {container}"), error)),
        }
    }
}

/// A clock of this host, nanoseconds; 0 when it cannot be read.
fn clock_ns(clock: nix::time::ClockId) -> u64 {
    let now = clock.now().map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}

/// What of this host shows in a captured process, with its clocks as they stand now.
#[must_use]
pub(crate) fn host_facts() -> HostFacts {
    let xsave = sys::cpu::xsave();
    HostFacts {
        kernel_release: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        vdso_hash: sys::cpu::vdso_hash().unwrap_or(0),
        xsave_size: xsave.map_or(0, |xsave| xsave.size),
        xcr0: xsave.map_or(0, |xsave| xsave.features),
        monotonic_ns: clock_ns(nix::time::ClockId::CLOCK_MONOTONIC),
        boottime_ns: clock_ns(nix::time::ClockId::CLOCK_BOOTTIME),
        ..HostFacts::default()
    }
}

/// A line of /proc/meminfo in bytes; 0 when it is not there.
#[must_use]
pub(crate) fn memory(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

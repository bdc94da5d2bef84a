//! The control groups of containers on their way.

use std::time::Duration;

use image::groups::Groups;
use image::{Pid, Refusal};
use oci_spec::runtime::Spec;

use crate::runtime::bundle::CPUSET_ANNOTATION;
use crate::runtime::cgroup::carry::apply::{Applier, Task};
use crate::runtime::cgroup::carry::files::Kernel;
use crate::runtime::cgroup::carry::host::Host;
use crate::runtime::cgroup::carry::members::Proc;
use crate::runtime::cgroup::carry::plan::{Plan, plan};
use crate::runtime::cgroup::carry::read::{ReadError, Reader};
use crate::runtime::cgroup::{Cgroup, CgroupError, throttle};
use crate::session::ports::{CopyTask, GroupSource, PortError, Throttled};

/// Whether the bundle allows a copy fewer CPUs and memory nodes.
pub(super) fn may_widen(spec: &Spec) -> bool {
    let annotation = spec.annotations().as_ref().and_then(|map| map.get(CPUSET_ANNOTATION));
    annotation.is_some_and(|value| value == "widen")
}

/// Groups at the source.
#[derive(Debug)]
pub(super) struct Leaving {
    name: String,
    cgroup: Cgroup,
    reader: Reader,
}

impl Leaving {
    pub(super) fn new(name: String, cgroup: &Cgroup, widen: bool) -> Self {
        Self { name, cgroup: cgroup.clone(), reader: Reader::new(cgroup, widen) }
    }
}

impl GroupSource for Leaving {
    fn look(&mut self, known: &[(i32, Pid)]) -> Result<Groups, PortError> {
        self.reader.look(&Proc, known).map_err(|error| match error {
            ReadError::Refused(refusals) => PortError::Refused(refusals),
            error => PortError::failed(format!("read the control groups of {}", self.name), error),
        })
    }

    fn counters(&self) -> Vec<String> {
        self.reader.counters()
    }

    fn cpu_used(&self) -> Result<Duration, PortError> {
        let used = throttle::used(&self.cgroup);
        used.map_err(|error| PortError::failed(format!("read the CPU time of {}", self.name), error))
    }

    fn plan_throttle(&self, cpus: f64, before: &Throttled) -> Result<Throttled, PortError> {
        let plan = throttle::plan(&self.cgroup, cpus, before);
        plan.map_err(|error| PortError::failed(format!("throttle {}", self.name), error))
    }

    fn throttle(&mut self, throttled: &Throttled) -> Result<(), PortError> {
        self.reader.set_throttled(throttled);
        let applied = throttle::apply(throttled);
        applied.map_err(|error| PortError::failed(format!("throttle {}", self.name), error))
    }
}

/// Groups at the target.
#[derive(Debug)]
pub(super) struct Coming {
    cgroup: Cgroup,
    applier: Applier,
    /// The source has told its groups.
    told: bool,
}

impl Coming {
    pub(super) fn new(cgroup: &Cgroup) -> Self {
        let roots = cgroup.groups.iter().map(|group| group.path.clone());
        Self { cgroup: cgroup.clone(), applier: Applier::new(roots), told: false }
    }

    pub(super) fn structure(
        &mut self,
        name: &str,
        spec: &Spec,
        groups: &Groups,
        tasks: &[CopyTask],
    ) -> Result<Vec<String>, PortError> {
        let what = || format!("make the control groups of {name}");
        let plan = plan(groups, &Host::read(&self.cgroup, groups)).map_err(PortError::Refused)?;
        self.device_rules(spec, &plan).map_err(|error| PortError::failed(what(), error))?;
        let done = self.applier.structure(&mut Kernel, &plan, &own(tasks));
        done.map_err(|error| PortError::failed(what(), error))?;
        self.told = true;
        Ok(plan.notes)
    }

    /// What a group that allows everything denies is not shown by the kernel: the bundle says it. Before any group is
    /// made below it: rules about all devices are refused then.
    fn device_rules(&self, spec: &Spec, plan: &Plan) -> Result<(), CgroupError> {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let rules = resources.and_then(|resources| resources.devices().as_ref());
        match rules.filter(|_| !self.told && !plan.has_device_rules()) {
            Some(rules) => self.cgroup.devices(rules),
            None => Ok(()),
        }
    }

    pub(super) fn limits(&mut self, name: &str, tasks: &[CopyTask]) -> Result<(), PortError> {
        let what = || format!("limit the copy of {name}");
        if !self.told {
            return Err(PortError::failed(what(), "its source did not tell its control groups"));
        }
        self.applier.limits(&mut Kernel, &own(tasks)).map_err(|error| PortError::failed(what(), error))
    }
}

/// What a host with these groups lacks.
pub(super) fn lacks(cgroup: &Cgroup, groups: &Groups) -> Vec<Refusal> {
    plan(groups, &Host::read(cgroup, groups)).err().unwrap_or_default()
}

fn own(tasks: &[CopyTask]) -> Vec<Task> {
    tasks.iter().map(|task| Task { member: task.member, host: task.host }).collect()
}

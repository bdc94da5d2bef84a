//! What the OCI `process` says, applied to this process right before it executes the program.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimitType, Process, Spec};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};

use super::seccomp::{self, Filters};
use super::{Context as _, InitError, refuse};

/// Searched when neither the path nor the container's PATH says where a program is.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program and everything that is set before it.
pub(super) struct Plan {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    limits: Vec<(Resource, PosixRlimitType, u64, u64)>,
    oom_score_adj: Option<i32>,
    umask: Option<u32>,
    cwd: PathBuf,
    credentials: Credentials,
}

impl Plan {
    /// Looks everything up that can fail for a reason in the bundle. Needs the container's root.
    pub(super) fn new(process: &Process, spec: &Spec) -> Result<Self, InitError> {
        let args = process.args().clone().unwrap_or_default();
        let env = process.env().clone().unwrap_or_default();
        let Some(name) = args.first() else { return refuse("start".to_owned(), "process.args is empty") };
        let program = search_path(name, &env, process.cwd())?;
        let limits = process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| (resource(limit.typ()), limit.typ(), limit.soft(), limit.hard()))
            .collect();
        Ok(Self {
            program,
            args,
            env,
            limits,
            oom_score_adj: process.oom_score_adj(),
            umask: process.user().umask(),
            cwd: process.cwd().clone(),
            credentials: Credentials::new(process, spec)?,
        })
    }

    /// Resource limits, while the process may still raise them.
    pub(super) fn limits(&self) -> Result<(), InitError> {
        for (resource, name, soft, hard) in &self.limits {
            let what = || format!("set {name:?} to {soft}:{hard}");
            let set = setrlimit(*resource, *soft, *hard);
            if set == Err(nix::errno::Errno::EPERM) {
                let (_, now) = getrlimit(*resource).step(what)?;
                return refuse(
                    what(),
                    format!(
                        "the hard limit here is {now} and raising it needs CAP_SYS_RESOURCE, which this agent lacks"
                    ),
                );
            }
            set.step(what)?;
        }
        if let Some(value) = self.oom_score_adj {
            fs::write("/proc/self/oom_score_adj", value.to_string())
                .step(|| format!("set oomScoreAdj to {value}"))?;
        }
        Ok(())
    }

    /// Becomes the program.
    pub(super) fn execute(self) -> Result<(), InitError> {
        if let Some(mask) = self.umask {
            umask(Mode::from_bits_truncate(mask));
        }
        let cwd = &self.cwd;
        std::env::set_current_dir(cwd).step(|| format!("enter the working directory {}", cwd.display()))?;
        // The shim blocks every signal and Rust's start ignores SIGPIPE: the program must not inherit that.
        sys::prctl::own::default_signals().map_err(io::Error::from).step(|| "reset signals".to_owned())?;
        self.credentials.apply()?;
        let error = Command::new(&self.program)
            .arg0(&self.args[0])
            .args(&self.args[1..])
            .env_clear()
            .envs(self.env.iter().filter_map(|entry| entry.split_once('=')))
            .exec();
        Err(error).step(|| format!("execute {}", self.program.display()))
    }
}

/// User, capabilities and filters.
#[derive(Debug)]
pub(in crate::runtime) struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    capabilities: Sets,
    no_new_privs: bool,
    filters: Option<Filters>,
}

#[derive(Clone, Copy, Debug)]
struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Credentials {
    /// Reads them from the configuration.
    pub(in crate::runtime) fn new(process: &Process, spec: &Spec) -> Result<Self, InitError> {
        let user = process.user();
        let groups = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        let filters = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        Ok(Self {
            uid: Uid::from_raw(user.uid()),
            gid: Gid::from_raw(user.gid()),
            groups,
            capabilities: process.capabilities().as_ref().map_or_else(Sets::default, Sets::new),
            no_new_privs: process.no_new_privileges() == Some(true),
            filters: filters
                .map(seccomp::compile)
                .transpose()
                .map_err(io::Error::other)
                .step(|| "compile linux.seccomp".to_owned())?,
        })
    }

    /// Applies them, in the order in which each step still has the rights that it needs.
    pub(in crate::runtime) fn apply(self) -> Result<(), InitError> {
        // The bounding set can hold only what is there already, so it is dropped from.
        for capability in all() {
            if capability_is_in_bounding_set(capability).unwrap_or(false)
                && !self.capabilities.bounding.contains(capability)
            {
                remove_capability_from_bounding_set(capability)
                    .step(|| format!("drop {capability:?} from the bounding set"))?;
            }
        }
        if let (false, Some(filters)) = (self.no_new_privs, &self.filters) {
            filters.install().step(|| "install linux.seccomp".to_owned())?;
        }
        set_keep_capabilities(true).step(|| "keep capabilities".to_owned())?;
        setgroups(&self.groups).step(|| "set supplementary groups".to_owned())?;
        setresgid(self.gid, self.gid, self.gid).step(|| format!("become group {}", self.gid))?;
        setresuid(self.uid, self.uid, self.uid).step(|| format!("become user {}", self.uid))?;
        set_keep_capabilities(false).step(|| "reset keep-capabilities".to_owned())?;
        let sets = &self.capabilities;
        let kept = CapabilitySets {
            effective: sets.effective,
            permitted: sets.permitted,
            inheritable: sets.inheritable,
        };
        set_capabilities(None, kept).step(|| format!("set capabilities (permitted {:?})", sets.permitted))?;
        clear_ambient_capability_set().step(|| "clear ambient capabilities".to_owned())?;
        for capability in sets.ambient.iter() {
            configure_capability_in_ambient_set(capability, true)
                .step(|| format!("raise ambient {capability:?}"))?;
        }
        if self.no_new_privs {
            set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
            if let Some(filters) = &self.filters {
                filters.install().step(|| "install linux.seccomp".to_owned())?;
            }
        }
        Ok(())
    }
}

impl Default for Sets {
    fn default() -> Self {
        let none = CapabilitySet::empty();
        Self { bounding: none, effective: none, permitted: none, inheritable: none, ambient: none }
    }
}

impl Sets {
    fn new(list: &LinuxCapabilities) -> Self {
        let set = |set: &Option<std::collections::HashSet<Capability>>| {
            set.iter().flatten().map(bit).collect::<CapabilitySet>()
        };
        Self {
            bounding: set(list.bounding()),
            effective: set(list.effective()),
            permitted: set(list.permitted()),
            inheritable: set(list.inheritable()),
            ambient: set(list.ambient()),
        }
    }
}

/// Every capability that this kernel has.
fn all() -> impl Iterator<Item = CapabilitySet> {
    CapabilitySet::all().iter()
}

fn bit(capability: &Capability) -> CapabilitySet {
    match capability {
        Capability::AuditControl => CapabilitySet::AUDIT_CONTROL,
        Capability::AuditRead => CapabilitySet::AUDIT_READ,
        Capability::AuditWrite => CapabilitySet::AUDIT_WRITE,
        Capability::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        Capability::Bpf => CapabilitySet::BPF,
        Capability::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
        Capability::Chown => CapabilitySet::CHOWN,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        Capability::Fowner => CapabilitySet::FOWNER,
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::IpcLock => CapabilitySet::IPC_LOCK,
        Capability::IpcOwner => CapabilitySet::IPC_OWNER,
        Capability::Kill => CapabilitySet::KILL,
        Capability::Lease => CapabilitySet::LEASE,
        Capability::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        Capability::MacAdmin => CapabilitySet::MAC_ADMIN,
        Capability::MacOverride => CapabilitySet::MAC_OVERRIDE,
        Capability::Mknod => CapabilitySet::MKNOD,
        Capability::NetAdmin => CapabilitySet::NET_ADMIN,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::NetBroadcast => CapabilitySet::NET_BROADCAST,
        Capability::NetRaw => CapabilitySet::NET_RAW,
        Capability::Perfmon => CapabilitySet::PERFMON,
        Capability::Setgid => CapabilitySet::SETGID,
        Capability::Setfcap => CapabilitySet::SETFCAP,
        Capability::Setpcap => CapabilitySet::SETPCAP,
        Capability::Setuid => CapabilitySet::SETUID,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysBoot => CapabilitySet::SYS_BOOT,
        Capability::SysChroot => CapabilitySet::SYS_CHROOT,
        Capability::SysModule => CapabilitySet::SYS_MODULE,
        Capability::SysNice => CapabilitySet::SYS_NICE,
        Capability::SysPacct => CapabilitySet::SYS_PACCT,
        Capability::SysPtrace => CapabilitySet::SYS_PTRACE,
        Capability::SysRawio => CapabilitySet::SYS_RAWIO,
        Capability::SysResource => CapabilitySet::SYS_RESOURCE,
        Capability::SysTime => CapabilitySet::SYS_TIME,
        Capability::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        Capability::Syslog => CapabilitySet::SYSLOG,
        Capability::WakeAlarm => CapabilitySet::WAKE_ALARM,
    }
}

/// The number of a limit.
pub(in crate::runtime) fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// The file of a program, looked up as a shell would, in this process's root.
pub(in crate::runtime) fn search_path(name: &str, env: &[String], cwd: &Path) -> Result<PathBuf, InitError> {
    if name.contains('/') {
        return Ok(cwd.join(name));
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && !file.is_dir())
        .map_or_else(|| refuse(format!("find {name}"), format!("it is in no directory of PATH={path}")), Ok)
}

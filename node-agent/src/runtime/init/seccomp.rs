//! System call filters from an OCI profile.
//!
//! One compiled program has one action for what matches and one for the rest, while a profile can name
//! several. The kernel takes the strictest answer of all programs of a process, so a profile becomes one
//! program that gives the default action to everything that no rule names, and one for each action
//! stricter than `allow`, which allows the rest.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};
use sys::prctl::own::add_seccomp_filter;

/// Compiled programs, in the order in which they are installed.
#[derive(Clone, Debug)]
pub(in crate::runtime) struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Installs them for this thread. Needs no_new_privs or CAP_SYS_ADMIN.
    pub(in crate::runtime) fn install(&self) -> std::io::Result<()> {
        for program in &self.0 {
            add_seccomp_filter(&raw(program), 0)?;
        }
        Ok(())
    }
}

/// The bytes of a program: an array of `struct sock_filter`.
fn raw(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for step in program {
        bytes.extend(step.code.to_ne_bytes());
        bytes.extend([step.jt, step.jf]);
        bytes.extend(step.k.to_ne_bytes());
    }
    bytes
}

/// Why a profile cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::runtime) enum ProfileError {
    /// A name that this version does not know.
    #[error("system call {0:?} is not known on x86-64; remove it from the profile")]
    Syscall(String),
    /// An action, a flag or a comparison that cannot be done.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The compiler's word.
    #[error("{0}")]
    Compile(String),
}

/// Compiles a profile.
pub(in crate::runtime) fn compile(profile: &LinuxSeccomp) -> Result<Filters, ProfileError> {
    if profile.listener_path().is_some() {
        return Err(ProfileError::Unsupported("listenerPath".to_owned()));
    }
    if let Some(flag) = profile.flags().iter().flatten().next() {
        return Err(ProfileError::Unsupported(format!("flag {flag:?}")));
    }
    let allow = json!("allow");
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut groups: BTreeMap<String, (Value, Vec<&LinuxSyscall>)> = BTreeMap::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        groups.entry(action.to_string()).or_insert_with(|| (action, Vec::new())).1.push(rule);
    }
    let mut programs = Vec::new();
    if default != allow {
        let named: Vec<&LinuxSyscall> =
            groups.values().flat_map(|(_, rules)| rules.iter().copied()).collect();
        programs.push(program(&default, &allow, &named)?);
    }
    for (action, rules) in groups.values().filter(|(action, _)| *action != allow && *action != default) {
        programs.push(program(&allow, action, rules)?);
    }
    Ok(Filters(programs))
}

fn program(otherwise: &Value, matched: &Value, rules: &[&LinuxSyscall]) -> Result<BpfProgram, ProfileError> {
    let mut filter = Vec::new();
    for rule in rules {
        let args: Vec<Value> = rule.args().iter().flatten().map(condition).collect();
        for name in rule.names().iter().filter(|name| !is_foreign(name)) {
            filter.push(if args.is_empty() {
                json!({ "syscall": name })
            } else {
                json!({ "syscall": name, "args": args })
            });
        }
    }
    let text = json!({
        "main": { "mismatch_action": otherwise, "match_action": matched, "filter": filter }
    });
    let programs = compile_from_json(text.to_string().as_bytes(), TargetArch::x86_64).map_err(|error| {
        let text = error.to_string();
        match text.split_once("Invalid syscall name: ").and_then(|(_, rest)| rest.split_once(' ')) {
            Some((name, _)) => ProfileError::Syscall(name.to_owned()),
            None => ProfileError::Compile(text),
        }
    })?;
    programs.into_values().next().ok_or_else(|| ProfileError::Compile("nothing was compiled".to_owned()))
}

/// A system call of another ABI, which profiles for several architectures name: none of it can be made here,
/// because calls of another ABI than x86-64's kill the process.
fn is_foreign(name: &str) -> bool {
    const NAMES: [&str; 35] = [
        "_llseek",
        "_newselect",
        "arm_fadvise64_64",
        "arm_sync_file_range",
        "breakpoint",
        "cacheflush",
        "fadvise64_64",
        "fcntl64",
        "fstat64",
        "fstatat64",
        "fstatfs64",
        "ftruncate64",
        "ipc",
        "lstat64",
        "mmap2",
        "nice",
        "oldwait4",
        "recv",
        "riscv_flush_icache",
        "send",
        "set_tls",
        "sendfile64",
        "sigaction",
        "signal",
        "sigpending",
        "sigprocmask",
        "sigreturn",
        "sigsuspend",
        "socketcall",
        "stat64",
        "statfs64",
        "stime",
        "sync_file_range2",
        "truncate64",
        "ugetrlimit",
    ];
    const IDS: [&str; 19] = [
        "chown",
        "fchown",
        "getegid",
        "geteuid",
        "getgid",
        "getgroups",
        "getresgid",
        "getresuid",
        "getuid",
        "lchown",
        "setfsgid",
        "setfsuid",
        "setgid",
        "setgroups",
        "setregid",
        "setresgid",
        "setresuid",
        "setreuid",
        "setuid",
    ];
    let by_id = name.strip_suffix("32").is_some_and(|call| IDS.contains(&call));
    let by_time = name.ends_with("_time64") || name.ends_with("time64");
    NAMES.contains(&name) || by_id || by_time || name.starts_with("s390_") || name == "waitpid"
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Value, ProfileError> {
    // EPERM, as the specification says.
    let errno = errno.unwrap_or(1);
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => json!("allow"),
        LinuxSeccompAction::ScmpActErrno => json!({ "errno": errno }),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => json!("kill_thread"),
        LinuxSeccompAction::ScmpActKillProcess => json!("kill_process"),
        LinuxSeccompAction::ScmpActTrap => json!("trap"),
        LinuxSeccompAction::ScmpActLog => json!("log"),
        other => return Err(ProfileError::Unsupported(format!("action {other:?}"))),
    })
}

fn condition(arg: &LinuxSeccompArg) -> Value {
    let (op, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (json!("ne"), arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (json!("lt"), arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (json!("le"), arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (json!("eq"), arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (json!("ge"), arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (json!("gt"), arg.value()),
        // `value` is the mask, `valueTwo` what must be left under it.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (json!({ "masked_eq": arg.value() }), arg.value_two().unwrap_or_default())
        }
    };
    json!({ "index": arg.index(), "type": "qword", "op": op, "val": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(text: &str) -> LinuxSeccomp {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn several_actions_become_several_programs() {
        let profile = profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
                {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#,
        );
        assert_eq!(compile(&profile).unwrap().0.len(), 2);
    }

    #[test]
    fn names_of_other_architectures_are_left_out() {
        let profile = profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "syscalls": [{"names": ["chown32", "chown", "futex_time64", "clock_gettime64", "socketcall"],
                    "action": "SCMP_ACT_ALLOW"}]}"#,
        );
        assert_eq!(compile(&profile).unwrap().0.len(), 1);
    }

    #[test]
    fn an_unknown_name_is_named() {
        let profile = profile(
            r#"{"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["frobnicate"], "action": "SCMP_ACT_ERRNO"}]}"#,
        );
        assert_eq!(compile(&profile).unwrap_err(), ProfileError::Syscall("frobnicate".to_owned()));
    }
}

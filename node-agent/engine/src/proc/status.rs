//! /proc/PID/status and /proc/PID/task/TID/status.

use super::{ProcError, hex, lines, number, octal, text, value, words};

/// What the engine uses of a status file; see proc_pid_status(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The name (PR_SET_NAME), raw.
    pub name: Vec<u8>,
    /// One of `RSDZTtXIP`.
    pub state: u8,
    /// umask(2); `None` for a zombie.
    pub umask: Option<u32>,
    /// Thread group, as this process sees it.
    pub tgid: i32,
    /// Who traces it; 0 = nobody.
    pub tracer: i32,
    /// Real, effective, saved, file-system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved, file-system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Thread group id in each pid namespace, the reader's first, its own last.
    pub ns_tgid: Vec<i32>,
    /// Tid in each pid namespace.
    pub ns_pid: Vec<i32>,
    /// Process group in each pid namespace; 0 where it is outside.
    pub ns_pgid: Vec<i32>,
    /// Session in each pid namespace; 0 where it is outside.
    pub ns_sid: Vec<i32>,
    /// Memory locked by mlock(2), kB.
    pub locked_kb: u64,
    /// PR_GET_THP_DISABLE is off.
    pub thp_enabled: Option<bool>,
    /// Number of threads.
    pub threads: usize,
    /// Blocked signals.
    pub sig_blocked: u64,
    /// Signals pending for the thread.
    pub sig_pending: u64,
    /// Signals pending for the process.
    pub shared_pending: u64,
    /// Ignored signals.
    pub sig_ignored: u64,
    /// Caught signals.
    pub sig_caught: u64,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub caps: [u64; 5],
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// seccomp(2) mode.
    pub seccomp: u8,
    /// Number of seccomp filters.
    pub seccomp_filters: usize,
    /// How often it gave up its CPU to wait for something.
    pub voluntary_switches: u64,
}

/// Parses a status file. Lines that are unknown are passed over.
///
/// # Errors
/// [`ProcError::Parse`] with the line.
pub fn parse(bytes: &[u8]) -> Result<Status, ProcError> {
    let mut status = Status::default();
    for line in lines(bytes) {
        field(&mut status, line).ok_or_else(|| ProcError::parse("status", text(line)))?;
    }
    if status.ns_pid.is_empty() {
        return Err(ProcError::parse("status", "it has no NSpid line"));
    }
    Ok(status)
}

/// `None` when the line is known and malformed.
fn field(status: &mut Status, line: &[u8]) -> Option<()> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let key = &line[..colon];
    let rest = value(&line[colon..], ":")?;
    match key {
        b"Name" => status.name = unescaped(line.get(colon + 1..)?.strip_prefix(b"\t")?),
        b"State" => status.state = *rest.first()?,
        b"Umask" => status.umask = Some(octal(rest)?),
        b"Tgid" => status.tgid = number(rest)?,
        b"TracerPid" => status.tracer = number(rest)?,
        b"Uid" => status.uid = four(rest)?,
        b"Gid" => status.gid = four(rest)?,
        b"Groups" => status.groups = list(rest)?,
        b"NStgid" => status.ns_tgid = list(rest)?,
        b"NSpid" => status.ns_pid = list(rest)?,
        b"NSpgid" => status.ns_pgid = list(rest)?,
        b"NSsid" => status.ns_sid = list(rest)?,
        b"VmLck" => status.locked_kb = number(words(rest).next()?)?,
        b"THP_enabled" => status.thp_enabled = Some(rest == b"1"),
        b"Threads" => status.threads = number(rest)?,
        b"SigBlk" => status.sig_blocked = hex(rest)?,
        b"SigPnd" => status.sig_pending = hex(rest)?,
        b"ShdPnd" => status.shared_pending = hex(rest)?,
        b"SigIgn" => status.sig_ignored = hex(rest)?,
        b"SigCgt" => status.sig_caught = hex(rest)?,
        b"CapInh" => status.caps[0] = hex(rest)?,
        b"CapPrm" => status.caps[1] = hex(rest)?,
        b"CapEff" => status.caps[2] = hex(rest)?,
        b"CapBnd" => status.caps[3] = hex(rest)?,
        b"CapAmb" => status.caps[4] = hex(rest)?,
        b"NoNewPrivs" => status.no_new_privs = rest == b"1",
        b"Seccomp" => status.seccomp = number(rest)?,
        b"Seccomp_filters" => status.seccomp_filters = number(rest)?,
        b"voluntary_ctxt_switches" => status.voluntary_switches = number(rest)?,
        _ => {}
    }
    Some(())
}

/// The kernel writes line feeds and backslashes of a name as `\n` and `\\`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' if bytes.next() == Some(&b'n') => b'\n',
            other => *other,
        });
    }
    plain
}

fn list<T: TryFrom<i128>>(rest: &[u8]) -> Option<Vec<T>> {
    words(rest).map(number).collect()
}

fn four(rest: &[u8]) -> Option<[u32; 4]> {
    list(rest)?.try_into().ok()
}

impl Status {
    /// The tid in the task's own pid namespace.
    #[must_use]
    pub fn inner_pid(&self) -> i32 {
        self.ns_pid.last().copied().unwrap_or(0)
    }

    /// How far below this process's pid namespace the task's own is.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.ns_pid.len().saturating_sub(1)
    }

    /// The tid in the pid namespace at that depth; 0 when it has none there.
    #[must_use]
    pub fn pid_at(&self, depth: usize) -> i32 {
        self.ns_pid.get(depth).copied().unwrap_or(0)
    }
}

/// Reads /proc/PID/status.
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32) -> Result<Status, ProcError> {
    parse(&super::read(pid, "status")?)
}

/// Reads /proc/PID/task/TID/status.
///
/// # Errors
/// [`ProcError`].
pub fn read_thread(pid: i32, tid: i32) -> Result<Status, ProcError> {
    parse(&super::read(pid, &format!("task/{tid}/status"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"Name:\todd\\nname: x\nUmask:\t0027\nState:\tT (stopped)\nTgid:\t300\nNgid:\t0\nPid:\t301\n\
PPid:\t1\nTracerPid:\t7\nUid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nFDSize:\t64\nGroups:\t4 24 4294967294 \nNStgid:\t300\t4\n\
NSpid:\t301\t5\nNSpgid:\t300\t0\nNSsid:\t300\t0\nKthread:\t0\nHugetlbPages:\t       0 kB\nTHP_enabled:\t1\nThreads:\t2\n\
SigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\tfffffffe7ffbfeff\nSigIgn:\t0000000000001000\n\
SigCgt:\t0000000000000200\nCapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\nCapEff:\t000001fffeffffff\n\
CapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n\
voluntary_ctxt_switches:\t15\nnonvoluntary_ctxt_switches:\t2\n";

    #[test]
    fn parses_a_nested_thread() {
        let status = parse(SAMPLE).unwrap();
        assert_eq!(status.name, b"odd\nname: x");
        assert_eq!(unescaped(b" a\\\\n\\nb\t "), b" a\\n\nb\t ");
        assert_eq!((status.umask, status.voluntary_switches), (Some(0o27), 15));
        assert_eq!((status.state, status.tgid, status.tracer), (b'T', 300, 7));
        assert_eq!((status.uid, status.gid), ([0, 1, 2, 3], [4, 5, 6, 7]));
        assert_eq!(status.groups, [4, 24, 4_294_967_294]);
        assert_eq!((status.inner_pid(), status.ns_pgid.last()), (5, Some(&0)));
        assert_eq!(status.sig_blocked, 0xffff_fffe_7ffb_feff);
        assert_eq!(status.caps[1], 0x1ff_feff_ffff);
        assert!(status.no_new_privs && status.thp_enabled == Some(true));
        assert_eq!((status.seccomp, status.seccomp_filters), (2, 3));
    }

    #[test]
    fn reads_this_thread() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let status = read(pid).unwrap();
        assert_eq!(status.tgid, pid);
        assert!(status.threads >= 1);
        assert_eq!(read_thread(pid, pid).unwrap().inner_pid(), status.inner_pid());
    }

    #[test]
    fn a_malformed_line_is_an_error() {
        assert!(parse(b"NSpid:\t1\nUid:\t0\t1\n").is_err());
        assert!(parse(b"Name:\tx\n").is_err());
    }
}

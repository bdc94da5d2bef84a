//! /proc/PID/stat and /proc/PID/task/TID/stat.

use image::shape::MmFields;

use super::{ProcError, number, text, words};

/// What the engine uses of a stat line; see proc_pid_stat(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Pid or tid, as this process sees it.
    pub pid: i32,
    /// Thread name, raw.
    pub comm: Vec<u8>,
    /// One of `RSDZTtXIP`.
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal; 0 = none.
    pub tty_nr: i32,
    /// Foreground process group of that terminal, as this process sees it; -1 = none.
    pub tpgid: i32,
    /// PF_* flags of the kernel.
    pub flags: u64,
    /// Minor faults.
    pub min_flt: u64,
    /// Start time in clock ticks since boot: with the pid it names a process for good.
    pub start_time: u64,
    /// Resident pages.
    pub rss_pages: u64,
    /// The signal that its parent gets when it exits.
    pub exit_signal: i32,
    /// CPU it last ran on.
    pub processor: u32,
    /// Fields of the address space.
    pub mm: MmFields,
    /// Exit status as wait(2) encodes it, of a zombie.
    pub exit_code: i32,
}

/// Parses one stat line.
///
/// # Errors
/// [`ProcError::Parse`].
pub fn parse(line: &[u8]) -> Result<Stat, ProcError> {
    parse_opt(line).ok_or_else(|| ProcError::parse("stat", text(line)))
}

fn parse_opt(line: &[u8]) -> Option<Stat> {
    // The name may hold blanks, parentheses and line feeds: it ends at the *last* ')'.
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let comm = line.get(open + 1..close)?.to_vec();
    // fields[0] is field 3 of the manual.
    let fields: Vec<&[u8]> = words(line.get(close + 1..)?.trim_ascii()).collect();
    let at = |field: usize| fields.get(field - 3).copied();
    let unsigned = |field: usize| number::<u64>(at(field)?);
    let signed = |field: usize| number::<i32>(at(field)?);
    let brk = unsigned(47)?;
    Some(Stat {
        pid: number(&line[..open])?,
        comm,
        state: *at(3)?.first()?,
        ppid: signed(4)?,
        pgrp: signed(5)?,
        session: signed(6)?,
        tty_nr: signed(7)?,
        tpgid: signed(8)?,
        flags: unsigned(9)?,
        min_flt: unsigned(10)?,
        start_time: unsigned(22)?,
        rss_pages: unsigned(24)?,
        exit_signal: signed(38)?,
        processor: number(at(39)?)?,
        mm: MmFields {
            start_code: unsigned(26)?,
            end_code: unsigned(27)?,
            start_data: unsigned(45)?,
            end_data: unsigned(46)?,
            start_brk: brk,
            brk,
            start_stack: unsigned(28)?,
            arg_start: unsigned(48)?,
            arg_end: unsigned(49)?,
            env_start: unsigned(50)?,
            env_end: unsigned(51)?,
        },
        exit_code: signed(52)?,
    })
}

/// Reads /proc/PID/stat (a tid works too, for the thread's own line).
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32) -> Result<Stat, ProcError> {
    parse(&super::read(pid, "stat")?)
}

/// Reads /proc/PID/task/TID/stat.
///
/// # Errors
/// [`ProcError`].
pub fn read_thread(pid: i32, tid: i32) -> Result<Stat, ProcError> {
    parse(&super::read(pid, &format!("task/{tid}/stat"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = b"15662 (a) R 1 (\n) b) S 15611 15610 10595 34817 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 184104 \
            3133440 384 18446744073709551615 93888016478208 93888016498089 140733738692464 0 0 0 0 0 0 0 0 0 17 1 0 0 \
            0 0 0 93888016514096 93888016515712 93888377401344 140733738695360 140733738695380 140733738695380 \
            140733738696683 256\n";
        let stat = parse(line).unwrap();
        assert_eq!(stat.comm, b"a) R 1 (\n) b");
        assert_eq!((stat.state, stat.ppid, stat.pgrp, stat.session), (b'S', 15611, 15610, 10595));
        assert_eq!((stat.tty_nr, stat.exit_signal, stat.processor, stat.exit_code), (34817, 17, 1, 256));
        assert_eq!(stat.mm.arg_end, 140_733_738_695_380);
        assert_eq!(stat.start_time, 184_104);
    }

    #[test]
    fn reads_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = read(pid).unwrap();
        assert_eq!(stat.pid, pid);
        assert!(stat.rss_pages > 0 && stat.mm.start_stack != 0);
    }

    #[test]
    fn rejects_short_lines() {
        assert!(parse(b"1 (x) S 0").is_err());
        assert!(parse(b"").is_err());
        assert!(parse(b")(").is_err());
    }
}

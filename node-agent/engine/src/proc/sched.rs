//! /proc/PID/task/TID/sched: when a thread last ran, and how often it went to sleep.

use super::{ProcError, lines, number, text, words};

/// What the scheduler notes about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sched {
    /// `se.exec_start` in nanoseconds: the scheduler clock of its CPU when the thread last ran. For a
    /// sleeping thread it is the moment at which it went to sleep.
    pub exec_start_ns: u64,
    /// `nr_voluntary_switches`: how often it gave up its CPU to wait for something.
    pub voluntary_switches: u64,
}

/// Understands the file.
///
/// # Errors
/// [`ProcError::Parse`] when a line is missing (a kernel without CONFIG_SCHED_DEBUG).
pub fn parse(bytes: &[u8]) -> Result<Sched, ProcError> {
    let value =
        |key: &[u8]| lines(bytes).find(|line| line.starts_with(key)).and_then(|line| words(line).last());
    let exec_start = value(b"se.exec_start").and_then(|word| {
        // Milliseconds with six decimals.
        let dot = word.iter().position(|byte| *byte == b'.')?;
        let millis: u64 = number(&word[..dot])?;
        let nanos: u64 = number(&word[dot + 1..])?;
        (word.len() - dot - 1 == 6).then_some(millis * 1_000_000 + nanos)
    });
    match (exec_start, value(b"nr_voluntary_switches").and_then(number)) {
        (Some(exec_start_ns), Some(voluntary_switches)) => Ok(Sched { exec_start_ns, voluntary_switches }),
        _ => Err(ProcError::parse("sched", text(bytes.get(..200).unwrap_or(bytes)))),
    }
}

/// Reads it.
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32, tid: i32) -> Result<Sched, ProcError> {
    parse(&super::read(pid, &format!("task/{tid}/sched"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_milliseconds_and_switches() {
        let sample = b"cat (13860, #threads: 1)\n-------------------\n\
            se.exec_start                                :       1482194.256535\n\
            se.vruntime                                  :            97.250010\n\
            nr_switches                                  :                   12\n\
            nr_voluntary_switches                        :                   7\n";
        let parsed = parse(sample).unwrap();
        assert_eq!(parsed, Sched { exec_start_ns: 1_482_194_256_535, voluntary_switches: 7 });
        assert!(parse(b"x\n").is_err());
        assert!(parse(&sample[..120]).is_err());
    }
}

//! /proc/PID/task/TID/sched: when a thread last ran.

use super::{ProcError, lines, number, text, words};

/// `se.exec_start` in nanoseconds: the scheduler clock of its CPU when the thread last ran. For a
/// sleeping thread it is the moment at which it went to sleep.
///
/// # Errors
/// [`ProcError::Parse`] when there is no such line (a kernel without CONFIG_SCHED_DEBUG).
pub fn parse_exec_start(bytes: &[u8]) -> Result<u64, ProcError> {
    lines(bytes)
        .find(|line| line.starts_with(b"se.exec_start"))
        .and_then(|line| words(line).last())
        .and_then(|word| {
            // Milliseconds with six decimals.
            let dot = word.iter().position(|byte| *byte == b'.')?;
            let millis: u64 = number(&word[..dot])?;
            let nanos: u64 = number(&word[dot + 1..])?;
            (word.len() - dot - 1 == 6).then_some(millis * 1_000_000 + nanos)
        })
        .ok_or_else(|| ProcError::parse("sched", text(bytes.get(..200).unwrap_or(bytes))))
}

/// Reads it.
///
/// # Errors
/// [`ProcError`].
pub fn exec_start(pid: i32, tid: i32) -> Result<u64, ProcError> {
    parse_exec_start(&super::read(pid, &format!("task/{tid}/sched"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_milliseconds() {
        let sample = b"cat (13860, #threads: 1)\n-------------------\n\
            se.exec_start                                :       1482194.256535\n\
            se.vruntime                                  :            97.250010\n";
        assert_eq!(parse_exec_start(sample).unwrap(), 1_482_194_256_535);
        assert!(parse_exec_start(b"x\n").is_err());
    }
}

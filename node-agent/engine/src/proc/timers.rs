//! /proc/PID/timers: what timer_create(2) made.

use super::{ProcError, hex, lines, number, text, value};

/// One timer, without its current setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The id that the program knows.
    pub id: i32,
    /// Signal number.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// SIGEV_SIGNAL (0), SIGEV_NONE (1), SIGEV_THREAD (2) or SIGEV_SIGNAL | SIGEV_THREAD_ID (4).
    pub notify: i32,
    /// Target of the signal, as this process sees it.
    pub target: i32,
    /// Clock id.
    pub clock: i32,
}

/// Parses a timers file.
///
/// # Errors
/// [`ProcError::Parse`].
pub fn parse(bytes: &[u8]) -> Result<Vec<Timer>, ProcError> {
    let lines: Vec<&[u8]> = lines(bytes).collect();
    let (chunks, rest) = lines.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(ProcError::parse("timers", text(bytes)));
    }
    chunks
        .iter()
        .map(|chunk| parse_one(chunk).ok_or_else(|| ProcError::parse("timers", text(bytes))))
        .collect()
}

fn parse_one([id, signal, notify, clock]: &[&[u8]; 4]) -> Option<Timer> {
    // signal: 10/0000000000000007
    let signal = value(signal, "signal:")?;
    let slash = signal.iter().position(|byte| *byte == b'/')?;
    // notify: signal/pid.19467 | none/pid.N | thread/pid.N | signal/tid.N
    let notify = value(notify, "notify:")?;
    let dot = notify.iter().rposition(|byte| *byte == b'.')?;
    let kind = match &notify[..dot] {
        b"signal/pid" => 0,
        b"none/pid" => 1,
        b"thread/pid" => 2,
        b"signal/tid" => 4,
        _ => return None,
    };
    Some(Timer {
        id: number(value(id, "ID:")?)?,
        signal: number(&signal[..slash])?,
        value: hex(&signal[slash + 1..])?,
        notify: kind,
        target: number(&notify[dot + 1..])?,
        clock: number(value(clock, "ClockID:")?)?,
    })
}

/// Reads /proc/PID/timers.
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32) -> Result<Vec<Timer>, ProcError> {
    parse(&super::read(pid, "timers")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_kernel_writes() {
        let timers = parse(
            b"ID: 0\nsignal: 10/0000000000000007\nnotify: signal/pid.19467\nClockID: 1\n\
              ID: 3\nsignal: 34/00007fff12345678\nnotify: signal/tid.12\nClockID: -6\n",
        )
        .unwrap();
        assert_eq!(timers.len(), 2);
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value, timers[0].notify), (0, 10, 7, 0));
        assert_eq!((timers[1].notify, timers[1].target, timers[1].clock), (4, 12, -6));
        assert!(parse(b"").unwrap().is_empty());
        assert!(parse(b"ID: 0\n").is_err());
    }
}

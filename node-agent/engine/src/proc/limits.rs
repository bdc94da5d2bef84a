//! /proc/PID/limits, in the order of resource numbers.

use image::state::RLimit;

use super::{ProcError, number, text};

/// The rows of /proc/PID/limits by resource number (RLIMIT_CPU = 0 ... RLIMIT_RTTIME = 15).
const ROWS: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Parses a limits file.
///
/// # Errors
/// [`ProcError::Parse`] when a row is missing or malformed.
pub fn parse(bytes: &[u8]) -> Result<Vec<RLimit>, ProcError> {
    ROWS.iter()
        .map(|row| {
            super::lines(bytes)
                .find_map(|line| line.strip_prefix(row.as_bytes()))
                .and_then(parse_row)
                .ok_or_else(|| ProcError::parse("limits", format!("{row} in {}", text(bytes))))
        })
        .collect()
}

fn parse_row(rest: &[u8]) -> Option<RLimit> {
    let mut words = super::words(rest);
    Some(RLimit { soft: limit(words.next()?)?, hard: limit(words.next()?)? })
}

fn limit(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" { Some(u64::MAX) } else { number(word) }
}

/// Reads /proc/PID/limits.
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32) -> Result<Vec<RLimit>, ProcError> {
    parse(&super::read(pid, "limits")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let limits = read(pid).unwrap();
        assert_eq!(limits.len(), 16);
        assert!(limits[7].soft > 0 && limits[7].soft <= limits[7].hard);
    }

    #[test]
    fn a_missing_row_is_an_error() {
        assert!(parse(b"Max cpu time  unlimited 5 seconds\n").is_err());
        assert_eq!(
            parse_row(b"              unlimited            42             bytes "),
            Some(RLimit { soft: u64::MAX, hard: 42 })
        );
    }
}

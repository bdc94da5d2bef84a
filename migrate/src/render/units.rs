//! Numbers as people read them.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// Bytes in binary units, three digits or so: `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // A display value: the lost low bits do not show.
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 1 } else { 0 };
    format!("{value:.digits$} {}", units[unit])
}

/// A rate in 10^6 bytes per second.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    let value = bytes_per_second / 1e6;
    let digits = if value < 10.0 { 1 } else { 0 };
    format!("{value:.digits$} MB/s")
}

/// Milliseconds.
pub(crate) fn ms(ms: f64) -> String {
    let digits = if ms < 100.0 { 1 } else { 0 };
    format!("{ms:.digits$} ms")
}

/// Seconds.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        humantime::format_duration(Duration::from_secs(Duration::from_secs_f64(seconds).as_secs()))
            .to_string()
    }
}

/// How long ago, by its largest unit: `12s`, `5m`, `3h`, `2d`. Empty without a time.
pub(crate) fn age(since: Option<&Timestamp>) -> String {
    let Some(since) = since.and_then(time) else { return String::new() };
    let seconds = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// RFC 3339 with milliseconds.
pub(crate) fn rfc3339(at: &Timestamp) -> Option<String> {
    time(at).map(|at| humantime::format_rfc3339_millis(at).to_string())
}

fn time(at: &Timestamp) -> Option<SystemTime> {
    SystemTime::try_from(*at).ok()
}

/// A duration of the API, as `50ms` or `5m`.
pub(crate) fn duration(duration: &prost_types::Duration) -> Option<String> {
    Duration::try_from(*duration).ok().map(|d| humantime::format_duration(d).to_string())
}

/// A duration for the API; what does not fit (292 thousand million years) becomes the longest one.
pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration)
        .unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 })
}

/// Bytes as people write them: `800000`, `50MB`, `1.5GB` (powers of ten), `64MiB` (powers of two).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 1 and 10^18")]
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 8] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("kB", 1e3),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("B", 1.0),
    ];
    let known = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, unit) = known.unwrap_or((text, 1.0));
    // Whole numbers exactly, others as near as they come.
    if let Some(exact) = number.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(unit as u64))
        && (1..=1_000_000_000_000_000_000).contains(&exact)
    {
        return Ok(exact);
    }
    let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    let bytes = (number * unit).round();
    if !(1.0..=1e18).contains(&bytes) {
        return Err(format!("{text:?} is not between 1 and 10^18 bytes"));
    }
    Ok(bytes as u64)
}

/// Bytes so that [`parse_bytes`] reads exactly the same number: `50MB`, or the plain number.
pub(crate) fn exact_bytes(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match units.iter().find(|(size, _)| bytes > 0 && bytes.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_read_with_and_without_units() {
        use super::parse_bytes;
        assert_eq!(parse_bytes("800000"), Ok(800_000));
        assert_eq!(parse_bytes("50MB"), Ok(50_000_000));
        assert_eq!(parse_bytes("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        for bytes in [1, 999, 1000, 50_000_000, 1_500_000_000, 64 << 20, (1 << 59) + 1] {
            assert_eq!(parse_bytes(&super::exact_bytes(bytes)), Ok(bytes));
        }
        for wrong in ["", "MB", "-1", "0", "1 TB/s", "NaN", "1e30"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(u64::MAX), "16 EiB");
        assert_eq!(rate(20e6), "20 MB/s");
        assert_eq!(rate(1.25e6), "1.2 MB/s");
        assert_eq!(ms(8.44), "8.4 ms");
        assert_eq!(ms(1234.0), "1234 ms");
        assert_eq!(seconds(1.25), "1.2 s");
        assert_eq!(seconds(125.3), "2m 5s");
    }

    #[test]
    fn times() {
        let epoch = Timestamp { seconds: 0, nanos: 5_000_000 };
        assert_eq!(rfc3339(&epoch).unwrap(), "1970-01-01T00:00:00.005Z");
        assert!(age(Some(&epoch)).ends_with('d'));
        assert_eq!(age(None), "");
        assert_eq!(duration(&to_proto(Duration::from_millis(50))).unwrap(), "50ms");
        assert_eq!(duration(&to_proto(Duration::from_secs(300))).unwrap(), "5m");
    }
}

//! Memory that a group uses against its limit.

use std::fs;
use std::path::Path;

use image::Refusal;
use image::groups::Value;

use super::known;
use super::read::{refusal, title};

/// At the target all of a container's memory is resident, also what the source has swapped out: a limit below
/// that could not be kept there.
pub(super) fn beyond(dir: &Path, path: &str, unified: bool, values: &[Value]) -> Option<Refusal> {
    let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
    let limit = values.iter().find(|value| value.file == file)?.lines.first()?;
    let limit: u64 = limit.parse().ok().filter(|_| !known::unlimited(limit))?;
    let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
    let swap = if unified { fs::read_to_string(dir.join("memory.swap.current")).ok() } else { None };
    let swap = swap.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let used = used(&stat, unified).saturating_add(swap);
    (used > limit).then(|| {
        refusal(
            format!(
                "{} uses {used} bytes of memory and swap and its limit {file} is {limit}: the target needs all of it in memory",
                title(path)
            ),
            "raise the limit, or have the programs give memory back",
        )
    })
}

/// What cannot be dropped of a group's memory, without swap for v2 and with it for v1, from `memory.stat`.
fn used(stat: &str, unified: bool) -> u64 {
    let keys: &[&str] =
        if unified { &["anon", "shmem"] } else { &["total_rss", "total_shmem", "total_swap"] };
    let of = |line: &str| -> Option<u64> {
        let (key, value) = line.split_once(' ')?;
        keys.contains(&key).then(|| value.trim().parse().ok())?
    };
    stat.lines().filter_map(of).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts() {
        assert_eq!(used("anon 5\nfile 100\nshmem 7\n", true), 12);
        assert_eq!(used("rss 5\ntotal_rss 6\ntotal_cache 50\ntotal_shmem 7\ntotal_swap 100\n", false), 113);
    }

    #[test]
    fn only_a_limit_below_the_usage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.stat"), "anon 4096\nfile 100\n").unwrap();
        fs::write(dir.path().join("memory.swap.current"), "8192\n").unwrap();
        let max = |text: &str| [Value { file: "memory.max".to_owned(), lines: vec![text.to_owned()] }];
        let refusal = beyond(dir.path(), "a/b", true, &max("12287")).unwrap();
        assert!(refusal.reason.contains("a/b") && refusal.reason.contains("12288 bytes"), "{refusal}");
        for fine in ["12288", "max"] {
            assert_eq!(beyond(dir.path(), "", true, &max(fine)), None);
        }
        assert_eq!(beyond(dir.path(), "", true, &[]), None);
    }
}

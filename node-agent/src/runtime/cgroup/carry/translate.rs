//! Settings of one controller in one group, from the files of cgroup v1 to those of v2 and back. Pure.
//!
//! Defaults are not listed on either side. What one version can say and the other cannot is an error, never
//! dropped.

use std::collections::BTreeMap;

use image::groups::Value;

use super::known;

/// Settings by file.
pub(super) type Settings = BTreeMap<String, Vec<String>>;

/// A setting that the other version does not know: which, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    /// `file value`.
    pub(super) setting: String,
    /// Why it cannot be told.
    pub(super) why: &'static str,
}

const NOTHING_LIKE_IT: &str = "the other cgroup version has nothing like it";

/// The name of a controller in cgroup v2. `None`: it has no controller there.
pub(super) fn in_v2(v1: &str) -> Option<&str> {
    match v1 {
        "blkio" => Some("io"),
        "cpuacct" | "devices" | "freezer" | "net_cls" | "net_prio" => None,
        other => Some(other),
    }
}

/// `cpu.shares` as `cpu.weight`, as the kernel converts: both scale the weight of a task of nice 0, which is 1024
/// shares or a weight of 100.
pub(super) fn weight(shares: u64) -> u64 {
    ((shares * 100 + 512) / 1024).clamp(1, 10_000)
}

/// `cpu.weight` as `cpu.shares`; [`weight`] takes it back exactly.
pub(super) fn shares(weight: u64) -> u64 {
    (weight.clamp(1, 10_000) * 1024 + 50) / 100
}

struct Translator {
    left: Settings,
    made: Settings,
    untold: Vec<Untold>,
}

impl Translator {
    /// Takes the one line of a file.
    fn take(&mut self, file: &str) -> Option<String> {
        self.left.remove(file)?.pop()
    }

    fn number(&mut self, file: &str) -> Option<u64> {
        self.take(file).and_then(|text| text.parse().ok())
    }

    fn say(&mut self, file: impl Into<String>, line: impl std::fmt::Display) {
        let (file, line) = (file.into(), line.to_string());
        if known::is_default(&file, std::slice::from_ref(&line)) != Some(true) {
            self.made.entry(file).or_default().push(line);
        }
    }

    fn refuse(&mut self, setting: String, why: &'static str) {
        self.untold.push(Untold { setting, why });
    }

    /// Files of the same name and meaning in both versions.
    fn same(&mut self, files: &[&str]) {
        for file in files {
            if let Some(lines) = self.left.remove(*file) {
                self.made.insert((*file).to_owned(), lines);
            }
        }
    }

    fn end(mut self) -> Result<Vec<Value>, Vec<Untold>> {
        for (file, lines) in std::mem::take(&mut self.left) {
            self.refuse(format!("{file} {}", lines.join(", ")), NOTHING_LIKE_IT);
        }
        if !self.untold.is_empty() {
            return Err(self.untold);
        }
        Ok(self.made.into_iter().map(|(file, lines)| Value { file, lines }).collect())
    }
}

fn begin(settings: &Settings) -> Translator {
    Translator { left: settings.clone(), made: Settings::new(), untold: Vec::new() }
}

/// Files that both versions have.
const SAME: [&str; 6] = ["cpu.idle", "cpu.uclamp.min", "cpu.uclamp.max", "pids.max", "misc.max", "rdma.max"];
/// v1 file, v2 key of `io.max`.
const THROTTLE: [(&str, &str); 4] = [
    ("blkio.throttle.read_bps_device", "rbps"),
    ("blkio.throttle.write_bps_device", "wbps"),
    ("blkio.throttle.read_iops_device", "riops"),
    ("blkio.throttle.write_iops_device", "wiops"),
];

/// Settings of a v1 group, of one controller or several, as v2 says them. Sets of CPUs must be mapped before.
pub(super) fn to_v2(settings: &Settings) -> Result<Vec<Value>, Vec<Untold>> {
    let mut t = begin(settings);
    t.same(&SAME);
    if let Some(shares) = t.number("cpu.shares") {
        t.say("cpu.weight", weight(shares));
    }
    let quota = t.take("cpu.cfs_quota_us").filter(|quota| !quota.starts_with('-'));
    let period = t.take("cpu.cfs_period_us").unwrap_or_else(|| "100000".to_owned());
    t.say("cpu.max", format!("{} {period}", quota.as_deref().unwrap_or("max")));
    if let Some(burst) = t.take("cpu.cfs_burst_us") {
        t.say("cpu.max.burst", burst);
    }
    t.same(&["cpuset.cpus", "cpuset.mems"]);
    // v2 always does.
    t.left.remove("cpuset.memory_migrate");
    memory_to_v2(&mut t);
    hugetlb(&mut t, "limit_in_bytes", "max");
    let mut limits: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, key) in THROTTLE {
        for line in t.left.remove(file).unwrap_or_default() {
            if let Some((device, value)) = line.split_once(' ') {
                limits.entry(device.to_owned()).or_default().push(format!("{key}={value}"));
            }
        }
    }
    for (device, keys) in limits {
        t.say("io.max", format!("{device} {}", keys.join(" ")));
    }
    if let Some(weight) = t.take("blkio.bfq.weight") {
        t.say("io.bfq.weight", format!("default {weight}"));
    }
    for line in t.left.remove("blkio.bfq.weight_device").unwrap_or_default() {
        if !line.starts_with("default ") {
            t.say("io.bfq.weight", line);
        }
    }
    if let Some(class) = t.take("blkio.prio.class") {
        t.say("io.prio.class", class);
    }
    if t.take("freezer.state").is_some() {
        t.say("cgroup.freeze", 1);
    }
    t.end()
}

fn memory_to_v2(t: &mut Translator) {
    let limit = t.number("memory.limit_in_bytes");
    if let Some(limit) = limit {
        t.say("memory.max", limit);
    }
    match (limit, t.number("memory.memsw.limit_in_bytes")) {
        // v1 counts memory and swap together.
        (Some(limit), Some(both)) => t.say("memory.swap.max", both.saturating_sub(limit)),
        // The kernel never allows a limit of memory above the one of both.
        (None, Some(both)) => {
            t.refuse(format!("memory.memsw.limit_in_bytes {both}"), "it needs a limit of memory, too");
        }
        (_, None) => {}
    }
    if let Some(reservation) = t.take("memory.soft_limit_in_bytes") {
        t.say("memory.low", reservation);
    }
}

/// `hugetlb.SIZE.[rsvd.]from` becomes `hugetlb.SIZE.[rsvd.]to`.
fn hugetlb(t: &mut Translator, from: &str, to: &str) {
    let files: Vec<String> =
        t.left.keys().filter(|file| file.starts_with("hugetlb.") && file.ends_with(from)).cloned().collect();
    for file in files {
        if let (Some(stem), Some(value)) = (file.strip_suffix(from), t.take(&file)) {
            t.say(format!("{stem}{to}"), value);
        }
    }
}

/// Settings of a v2 group, of one controller or several, as v1 says them. Sets of CPUs must be mapped before.
pub(super) fn to_v1(settings: &Settings) -> Result<Vec<Value>, Vec<Untold>> {
    let mut t = begin(settings);
    t.same(&SAME);
    if let Some(weight) = t.number("cpu.weight") {
        t.say("cpu.shares", shares(weight));
    }
    if let Some(max) = t.take("cpu.max") {
        let (quota, period) = max.split_once(' ').unwrap_or((&max, "100000"));
        t.say("cpu.cfs_period_us", period);
        t.say("cpu.cfs_quota_us", if quota == "max" { "-1" } else { quota });
    }
    if let Some(burst) = t.take("cpu.max.burst") {
        t.say("cpu.cfs_burst_us", burst);
    }
    t.same(&["cpuset.cpus", "cpuset.mems"]);
    memory_to_v1(&mut t);
    hugetlb(&mut t, "max", "limit_in_bytes");
    for line in t.left.remove("io.max").unwrap_or_default() {
        let mut words = line.split(' ');
        let device = words.next().unwrap_or_default();
        for (key, value) in words.filter_map(|word| word.split_once('=')).filter(|(_, value)| *value != "max")
        {
            match THROTTLE.iter().find(|(_, v2)| *v2 == key) {
                Some((file, _)) => t.say(*file, format!("{device} {value}")),
                None => t.refuse(format!("io.max {device} {key}={value}"), NOTHING_LIKE_IT),
            }
        }
    }
    for line in t.left.remove("io.bfq.weight").unwrap_or_default() {
        match line.strip_prefix("default ") {
            Some(weight) => t.say("blkio.bfq.weight", weight),
            None => t.say("blkio.bfq.weight_device", line),
        }
    }
    if let Some(class) = t.take("io.prio.class") {
        t.say("blkio.prio.class", class);
    }
    t.end()
}

fn memory_to_v1(t: &mut Translator) {
    let limit = t.number("memory.max");
    if let Some(limit) = limit {
        t.say("memory.limit_in_bytes", limit);
    }
    if let Some(swap) = t.take("memory.swap.max") {
        match (limit, swap.parse::<u64>()) {
            (Some(limit), Ok(swap)) => t.say("memory.memsw.limit_in_bytes", limit.saturating_add(swap)),
            _ => t.refuse(
                format!("memory.swap.max {swap}"),
                "cgroup v1 limits memory and swap together: it needs a limit of memory, too",
            ),
        }
    }
    if let Some(low) = t.take("memory.low") {
        t.say("memory.soft_limit_in_bytes", low);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(list: &[(&str, &str)]) -> Settings {
        list.iter().map(|(file, lines)| ((*file).to_owned(), known::lines(file, lines))).collect()
    }

    fn back(values: Vec<Value>) -> Settings {
        values.into_iter().map(|value| (value.file, value.lines)).collect()
    }

    /// What a v2 group says that v1 can say, too. Half of the settings are left at their defaults.
    fn any_v2() -> impl Strategy<Value = Settings> {
        let some = |range: std::ops::Range<u64>| prop::option::of(range);
        let device = (0..3_u32, 1..1_000_000_u64, prop::option::of(1..5000_u64));
        (
            (some(1..10_001), some(1000..1_000_000), 1000..1_000_001_u64, some(0..1000), any::<bool>()),
            (some(1..1 << 50), some(0..1 << 40), some(1..1 << 40), some(1..100_000), some(1..1001)),
            prop::collection::btree_map(0..4_u32, device, 0..3),
            prop::option::of(1..1_u64 << 40),
        )
            .prop_map(
                |((weight, quota, period, burst, idle), (max, swap, low, pids, bfq), devices, huge)| {
                    let mut list: Vec<(&str, Option<String>)> = vec![
                        ("cpu.weight", weight.filter(|w| *w != 100 && !idle).map(|w| w.to_string())),
                        ("cpu.max", quota.map(|q| format!("{q} {period}"))),
                        ("cpu.max.burst", burst.filter(|b| *b > 0).map(|b| b.to_string())),
                        ("cpu.idle", idle.then(|| "1".to_owned())),
                        ("memory.max", max.map(|m| m.to_string())),
                        ("memory.swap.max", swap.filter(|_| max.is_some()).map(|s| s.to_string())),
                        ("memory.low", low.map(|l| l.to_string())),
                        ("pids.max", pids.map(|p| p.to_string())),
                        ("hugetlb.2MB.max", huge.map(|h| h.to_string())),
                        ("io.bfq.weight", bfq.filter(|w| *w != 100).map(|w| format!("default {w}"))),
                    ];
                    let io: Vec<String> = devices
                        .iter()
                        .map(|(major, (minor, bps, iops))| {
                            let iops = iops.map_or_else(String::new, |iops| format!(" riops={iops}"));
                            format!("{major}:{minor} wbps={bps}{iops}")
                        })
                        .collect();
                    list.push(("io.max", (!io.is_empty()).then(|| io.join("\n"))));
                    let list: Vec<(&str, String)> =
                        list.into_iter().filter_map(|(file, value)| Some((file, value?))).collect();
                    settings(&list.iter().map(|(file, value)| (*file, value.as_str())).collect::<Vec<_>>())
                },
            )
    }

    proptest! {
        #[test]
        fn what_v2_says_comes_back_from_v1(v2 in any_v2()) {
            let v1 = to_v1(&v2).unwrap();
            for value in &v1 {
                prop_assert!(known::is_default(&value.file, &value.lines) == Some(false), "{value:?}");
            }
            prop_assert_eq!(back(to_v2(&back(v1)).unwrap()), v2);
        }

        #[test]
        fn weights_keep_their_order_and_come_back(a in 1..10_001_u64, b in 1..10_001_u64) {
            prop_assert_eq!(weight(shares(a)), a);
            prop_assert_eq!(shares(a) < shares(b), a < b);
        }

        #[test]
        fn shares_keep_their_proportion(shares in 11..102_400_u64) {
            // Within the rounding of the coarser scale.
            let exact = shares * 100;
            prop_assert!((weight(shares) * 1024).abs_diff(exact) <= 512);
        }

        #[test]
        fn nothing_unknown_is_dropped(file in "[a-z]{3,6}\\.[a-z]{3,8}", value in "[a-z0-9]{1,5}") {
            prop_assume!(!SAME.contains(&file.as_str()));
            let one = settings(&[(&file, &value)]);
            for translated in [to_v1(&one), to_v2(&one)] {
                prop_assert!(translated.is_err_and(|untold| untold[0].setting.contains(&file)));
            }
        }
    }

    #[test]
    fn a_new_group_of_one_is_a_new_group_of_the_other() {
        assert_eq!(to_v1(&Settings::new()), Ok(vec![]));
        assert_eq!(to_v2(&Settings::new()), Ok(vec![]));
        assert_eq!((weight(1024), shares(100)), (100, 1024));
    }

    #[test]
    fn limits_by_example() {
        let v1 = settings(&[
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "50000"),
            ("memory.limit_in_bytes", "1048576"),
            ("memory.memsw.limit_in_bytes", "3145728"),
            ("blkio.throttle.read_bps_device", "8:0 1000\n8:16 2000"),
            ("blkio.throttle.write_iops_device", "8:0 30"),
        ]);
        let v2 = settings(&[
            ("cpu.weight", "50"),
            ("cpu.max", "50000 100000"),
            ("memory.max", "1048576"),
            ("memory.swap.max", "2097152"),
            ("io.max", "8:0 rbps=1000 wiops=30\n8:16 rbps=2000"),
        ]);
        assert_eq!(back(to_v2(&v1).unwrap()), v2);
        assert_eq!(back(to_v1(&v2).unwrap()), v1);
    }

    #[test]
    fn what_the_other_version_cannot_say_is_named() {
        let refused = |list: &[(&str, &str)]| to_v1(&settings(list)).unwrap_err()[0].setting.clone();
        assert_eq!(refused(&[("memory.high", "4096")]), "memory.high 4096");
        assert_eq!(refused(&[("memory.swap.max", "4096")]), "memory.swap.max 4096");
        assert_eq!(refused(&[("io.latency", "8:0 target=10")]), "io.latency 8:0 target=10");
        let refused = |list: &[(&str, &str)]| to_v2(&settings(list)).unwrap_err()[0].setting.clone();
        for (file, value) in [
            ("memory.swappiness", "10"),
            ("memory.oom_control", "oom_kill_disable 1"),
            ("cpuset.cpu_exclusive", "1"),
            ("devices.list", "c 1:3 rwm"),
            ("net_cls.classid", "7"),
            ("cpu.rt_runtime_us", "1000"),
        ] {
            assert!(refused(&[(file, value)]).starts_with(file), "{file}");
        }
    }
}

//! Slowing a container down for a while: the CPU bandwidth of its own group (`cpu.max` of cgroup v2, `cpu.cfs_quota_us` of
//! v1) is cut and set back. What it was is kept by the caller, who journals it before anything is written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cgroup, CgroupError, gone};
use crate::session::ports::{Throttled, ThrottledSetting};

/// Shortest and longest period of a group without a limit of its own, microseconds: short, so that its clients wait for a
/// short time only, as long as that leaves a quota that the kernel takes.
const PERIODS: (u64, u64) = (20_000, 100_000);
/// Smallest quota that the kernel takes, microseconds.
const MIN_QUOTA: u64 = 1_000;

/// CPU time of everything that runs or ran in the container's groups (`cpu.stat` of cgroup v2, which has it with and
/// without the cpu controller).
pub(crate) fn used(cgroup: &Cgroup) -> Result<Duration, CgroupError> {
    let path = cgroup.unified()?.join("cpu.stat");
    let text = read(&path)?;
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    micros.map(Duration::from_micros).ok_or_else(|| CgroupError::Limit {
        limit: "cpu",
        why: format!("{} has no usage_usec", path.display()),
    })
}

/// What to write so that the container has `cpus` CPUs, or what it may have anyway if that is less.
pub(crate) fn plan(cgroup: &Cgroup, cpus: f64, before: &Throttled) -> Result<Throttled, CgroupError> {
    let setting = |path: PathBuf, now: &str, value: String| -> ThrottledSetting {
        let known = before.0.iter().find(|setting| setting.path == path);
        // Neither what it was nor what was written: somebody else wants it so since then.
        match known.filter(|known| known.original == now || known.written.iter().any(|text| text == now)) {
            Some(known) => {
                let mut known = known.clone();
                known.written.push(value);
                known
            }
            None => ThrottledSetting { path, original: now.to_owned(), written: vec![value] },
        }
    };
    let original = |path: &Path| -> Result<(String, String), CgroupError> {
        let now = read(path)?.trim().to_owned();
        let known = before.0.iter().find(|setting| setting.path == path);
        let known = known.filter(|known| known.written.contains(&now)).map(|known| known.original.clone());
        Ok((known.unwrap_or_else(|| now.clone()), now))
    };
    if let Some(dir) = cgroup.controller("cpu") {
        let (quota_path, period_path) = (dir.join("cpu.cfs_quota_us"), dir.join("cpu.cfs_period_us"));
        let ((quota, quota_now), (period, period_now)) = (original(&quota_path)?, original(&period_path)?);
        return Ok(Throttled(match quota.parse::<u64>() {
            // A limit of its own keeps its period: the two cannot be changed at once.
            Ok(own) => {
                let period = period.parse().unwrap_or(PERIODS.1);
                let value = quota_of(cpus, period).min(own);
                vec![setting(quota_path, &quota_now, value.to_string())]
            }
            Err(_) => vec![
                setting(quota_path, &quota_now, quota_of(cpus, period_of(cpus)).to_string()),
                setting(period_path, &period_now, period_of(cpus).to_string()),
            ],
        }));
    }
    let path = cgroup.unified()?.join("cpu.max");
    if !path.exists() {
        let why = "there is neither cpu.cfs_quota_us nor cpu.max in its control group".to_owned();
        return Err(CgroupError::Limit { limit: "cpu", why });
    }
    let (text, now) = original(&path)?;
    let own = text.split_once(' ').and_then(|(quota, period)| {
        Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok().filter(|period| *period > 0)?))
    });
    let (quota, period) = match own {
        Some((quota, period)) => (quota_of(cpus, period).min(quota), period),
        None => (quota_of(cpus, period_of(cpus)), period_of(cpus)),
    };
    Ok(Throttled(vec![setting(path, &now, format!("{quota} {period}"))]))
}

/// Writes the newest values.
pub(crate) fn apply(throttled: &Throttled) -> Result<(), CgroupError> {
    throttled.0.iter().rev().try_for_each(|setting| match setting.written.last() {
        Some(value) => write(&setting.path, value),
        None => Ok(()),
    })
}

/// Sets back what is still as it was written. Ok when the group is gone.
pub(crate) fn lift(throttled: &Throttled) -> Result<(), CgroupError> {
    let mut first = Ok(());
    for setting in &throttled.0 {
        let lifted = match read(&setting.path) {
            Ok(now) if setting.written.iter().any(|written| written == now.trim()) => {
                write(&setting.path, &setting.original)
            }
            Ok(now) => {
                if now.trim() != setting.original {
                    let path = setting.path.display();
                    tracing::warn!(%path, value = now.trim(), "somebody changed a throttled setting; it stays");
                }
                Ok(())
            }
            Err(CgroupError::File { source, .. }) if gone(&source) => Ok(()),
            Err(error) => Err(error),
        };
        first = first.and(lifted);
    }
    first
}

/// Microseconds in each `period` that make `cpus` CPUs.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates; a share of CPU time needs no more than 52 bits"
)]
fn quota_of(cpus: f64, period: u64) -> u64 {
    ((cpus.max(0.0) * period as f64) as u64).max(MIN_QUOTA)
}

/// The period for a group that has no limit of its own.
fn period_of(cpus: f64) -> u64 {
    if quota_of(cpus, PERIODS.0) > MIN_QUOTA { PERIODS.0 } else { PERIODS.1 }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(CgroupError::file("read", path))
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(CgroupError::Limit {
            limit: "cpu",
            why: format!(
                "the kernel does not take {value} in {}: a group below it or its burst may have more",
                path.display()
            ),
        }),
        result => result.map_err(CgroupError::file("write", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cgroup::{Group, Hierarchy};

    /// A group whose files are plain ones.
    fn group(unified: bool, files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(dir.path().join(file), format!("{text}\n")).unwrap();
        }
        let controllers = vec!["cpu".to_owned()];
        let hierarchy = Hierarchy { mount: dir.path().to_owned(), unified, controllers };
        let cgroup = Cgroup { groups: vec![Group { hierarchy, path: dir.path().to_owned() }] };
        (dir, cgroup)
    }

    #[test]
    fn a_group_without_a_limit_is_cut_step_by_step_and_set_back() {
        let (dir, cgroup) = group(true, &[("cpu.max", "max 100000")]);
        let text = || fs::read_to_string(dir.path().join("cpu.max")).unwrap().trim().to_owned();
        let first = plan(&cgroup, 0.8, &Throttled::default()).unwrap();
        assert_eq!(text(), "max 100000", "a plan changes nothing");
        apply(&first).unwrap();
        assert_eq!(text(), "16000 20000");
        let second = plan(&cgroup, 0.0, &first).unwrap();
        apply(&second).unwrap();
        assert_eq!(text(), "1000 100000");
        // An agent that died between the journal and the file finds the value of the step before.
        fs::write(dir.path().join("cpu.max"), "16000 20000").unwrap();
        lift(&second).unwrap();
        lift(&second).unwrap();
        assert_eq!(text(), "max 100000");
    }

    #[test]
    fn a_limit_of_its_own_is_never_raised() {
        let (dir, cgroup) = group(true, &[("cpu.max", "50000 100000")]);
        let wide = plan(&cgroup, 4.0, &Throttled::default()).unwrap();
        assert_eq!(wide.0[0].written, ["50000 100000"]);
        let narrow = plan(&cgroup, 0.1, &wide).unwrap();
        apply(&narrow).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cpu.max")).unwrap(), "10000 100000");
        assert_eq!(narrow.0[0].original, "50000 100000");
        let (_dir, cgroup) = group(false, &[("cpu.cfs_quota_us", "30000"), ("cpu.cfs_period_us", "50000")]);
        let plan = plan(&cgroup, 0.2, &Throttled::default()).unwrap();
        assert_eq!((plan.0.len(), plan.0[0].written.as_slice()), (1, ["10000".to_owned()].as_slice()));
    }

    #[test]
    fn what_somebody_else_set_meanwhile_stays() {
        let (dir, cgroup) = group(false, &[("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "100000")]);
        let throttled = plan(&cgroup, 0.5, &Throttled::default()).unwrap();
        apply(&throttled).unwrap();
        fs::write(dir.path().join("cpu.cfs_quota_us"), "7000").unwrap();
        let again = plan(&cgroup, 0.2, &throttled).unwrap();
        assert_eq!(again.0[0].original, "7000");
        lift(&throttled).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cpu.cfs_quota_us")).unwrap(), "7000");
        assert_eq!(fs::read_to_string(dir.path().join("cpu.cfs_period_us")).unwrap(), "100000");
        drop(dir);
        lift(&throttled).unwrap();
    }
}

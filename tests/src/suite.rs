//! System tests as libtest-mimic trials, so that a skip is a status with its reason and, under `CI=true`, a
//! failure.

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// One system test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Programs that must be installed for it.
    pub programs: &'static [&'static str],
    /// What it does.
    pub run: fn() -> Result<()>,
}

/// Why this machine cannot run what needs root and these programs, if it cannot.
#[must_use]
pub fn missing(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root is needed".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    programs
        .iter()
        .find(|program| {
            !std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(program).exists())
        })
        .map(|program| format!("{program} is not installed"))
}

/// Runs the cases, one at a time: they share two processors with the hosts they make.
#[must_use]
pub fn main(cases: &[Case]) -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let trials = cases
        .iter()
        .map(|case| {
            let case = *case;
            match missing(case.programs) {
                Some(reason) if ci => {
                    Trial::test(case.name, move || Err(Failed::from(format!("skipped under CI: {reason}"))))
                }
                Some(reason) => {
                    Trial::test(format!("{} ({reason})", case.name), || Ok(())).with_ignored_flag(true)
                }
                None => Trial::test(case.name, move || {
                    (case.run)().map_err(|error| Failed::from(format!("{error:#}")))
                }),
            }
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}

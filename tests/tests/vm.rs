//! Other kernels, booted in virtual machines: a sample. `cargo run -p tests --bin vm` runs the whole matrix.
//!
//! This binary also runs inside the guests: `__guest CASE` does one case there.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use tests::suite::{self, Case};
use tests::vm::fetch::{self, Series};
use tests::vm::pair::{self, Expected};
use tests::vm::{self, cases};

fn main() -> ExitCode {
    if let Some(code) = cases::run_if_asked() {
        return code;
    }
    suite::main_unless(
        &[
            Case { name: "linux_6_12_with_cgroup_v2_alone", programs: vm::PROGRAMS, run: backport },
            Case {
                name: "linux_6_1_finds_writes_by_soft_dirty_bits",
                programs: vm::PROGRAMS,
                run: soft_dirty,
            },
            Case { name: "linux_6_1_and_6_12_refuse_each_other", programs: vm::PROGRAMS, run: strangers },
        ],
        |_| fetch::missing(Series::V6_1).or_else(|| fetch::missing(Series::V6_12)),
    )
}

fn backport() -> anyhow::Result<()> {
    cases::run(Series::V6_12, &["host", "writer"])
}

fn soft_dirty() -> anyhow::Result<()> {
    cases::run(Series::V6_1, &["host", "writer", "memory_that_is_moved_and_given_back_moves_there_and_back"])
}

fn strangers() -> anyhow::Result<()> {
    pair::run([Series::V6_1, Series::V6_12], Expected::OTHER_KERNEL)
}

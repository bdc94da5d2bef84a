//! The process that is copied: pages that know whether they are right, written at a steady rate, watched by a
//! userfaultfd of its own.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use sys::uffd::{TRACKING, Uffd};

use super::Options;
use crate::workload::memory::Memory;
use crate::workload::server;

/// Fills its memory, watches it, writes to it. Prints where it is, and ends with its standard input.
pub(super) fn run(options: &Options) -> Result<()> {
    let memory = Arc::new(Memory::new(options.pages()?));
    let range = memory.range();
    let uffd = Uffd::create(0).context("make a userfaultfd")?;
    uffd.api(TRACKING).context("this kernel cannot track writes without faults (Linux 6.7)")?;
    uffd.register_wp(&range).context("watch the memory")?;
    server::start_writers(&memory, options.threads, options.dirty_mb_per_s)?;
    println!("{} {}", range.start, range.end);
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

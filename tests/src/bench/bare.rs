//! Copying memory and nothing else, as often as a case moves: what its figures are held against.

use std::process::Command;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::report::median;
use crate::cluster::{binary, run};

/// Medians of what it took.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Bare {
    /// From the first byte to the last.
    pub total_ms: f64,
    /// With the writer stopped.
    pub pause_ms: f64,
    /// How fast one connection takes bytes that are nobody's memory.
    pub raw_bytes_per_second: f64,
}

impl Bare {
    /// Copies `mib` of memory that 8 threads write to at `dirty` MB/s, `times` times.
    ///
    /// # Errors
    /// When that fails, or the copy is not what was copied.
    pub fn measure(mib: u32, dirty: u32, times: usize) -> Result<Self> {
        let (mib, dirty) = (mib.to_string(), dirty.to_string());
        let mut all = Vec::new();
        for _ in 0..times {
            let args = ["__bare", "--memory-mib", &mib, "--threads", "8", "--dirty-mb-per-s", &dirty];
            let finished = run(Command::new(binary()?).args(args))?;
            ensure!(finished.code == 0, "{args:?}: {finished:?}");
            all.push(serde_json::from_value::<Self>(finished.json()?)?);
        }
        let middle = |of: fn(&Self) -> f64| median(all.iter().map(of));
        Ok(Self {
            total_ms: middle(|bare| bare.total_ms),
            pause_ms: middle(|bare| bare.pause_ms),
            raw_bytes_per_second: middle(|bare| bare.raw_bytes_per_second),
        })
    }
}

//! Huge pages for the programs that need some.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::Program;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// How long another run of the suite may have them.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the kernel is asked for them.
const TRIES: u32 = 5;

/// So many huge pages of 2 MiB are free as long as it lives, and nobody else who asks here has any. The host's own number of
/// them comes back with its end.
#[derive(Debug)]
pub struct Pool {
    file: File,
    before: u64,
}

impl Pool {
    /// What a program needs; `None` when it needs none.
    ///
    /// # Errors
    /// Why there cannot be as many.
    pub fn of(program: &Program) -> Result<Option<Self>, String> {
        if program.huge == 0 {
            return Ok(None);
        }
        let path = format!("{POOL}/nr_hugepages");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|error| format!("no huge pages: {path}: {error}"))?;
        let end = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(format!("no huge pages: another run has them: {error}")),
            }
        }
        let pool = Self { file, before: number("nr_hugepages") };
        let free = || number("free_hugepages").saturating_sub(number("resv_hugepages"));
        let wanted = pool.before + program.huge.saturating_sub(free());
        // The kernel makes what it can, and finds more when it is asked again.
        for _ in 0..TRIES {
            if free() < program.huge {
                pool.set(wanted).map_err(|error| format!("no huge pages: {error}"))?;
            }
        }
        let free = free();
        if free < program.huge {
            return Err(format!("no huge pages: {free} of {} can be had", program.huge));
        }
        Ok(Some(pool))
    }

    fn set(&self, count: u64) -> std::io::Result<()> {
        (&self.file).write_all(count.to_string().as_bytes())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.set(self.before) {
            eprintln!("conformance: the host's {} huge pages are not set again: {error}", self.before);
        }
    }
}

fn number(name: &str) -> u64 {
    fs::read_to_string(format!("{POOL}/{name}")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

//! Programs that read past the page cache (`O_DIRECT`, open(2)).
//!
//! The kernel looks up the pages of the buffer when such a read begins, and the device writes to them until it ends. Page
//! tables tell of the first alone: a page that is looked at, and watched again, while the read is under way changes
//! afterwards without a trace. So pages are looked at first, then every thread is stopped once, which none can be within such
//! a read, and only then is anything copied. What a read that begins after the look writes to is found by the next one.

use std::time::Instant;

use super::SourceError;
use super::capture::files;
use super::descriptor::Class;
use super::failpoint;
use super::look::{Look, ProcessLook};
use super::session::Source;
use super::stopping::{Held, stop_tree};

const O_DIRECT: u32 = 0o40_000;
const ACCESS: u32 = 3;
const O_WRONLY: u32 = 1;

/// Whether a process has a file open that it may read so.
fn reads_directly(found: &ProcessLook) -> bool {
    found.tables.iter().flat_map(|table| &table.descriptors).any(|descriptor| {
        let flags = descriptor.info.flags;
        let file = matches!(descriptor.class, Class::File { directory: false, .. } | Class::External(_));
        file && flags & O_DIRECT != 0 && flags & ACCESS != O_WRONLY
    })
}

impl Source {
    /// Notes who reads directly. What was sent of a process that was not known to is void. True when anybody does.
    pub(super) fn note_direct_readers(&mut self, look: &Look) -> bool {
        for found in files::live(look).filter(|found| reads_directly(found)) {
            if !self.direct_readers.insert(found.process.key()) {
                continue;
            }
            if let Some(tracked) = self.tracked.get_mut(&found.process.pid) {
                let all = found.mappings.iter().map(|mapping| mapping.vma.start..mapping.vma.end);
                tracked.memory.refresh(all.collect());
            }
        }
        !self.direct_readers.is_empty()
    }

    /// Lets the trackers look before anything is read, where that is not done mapping by mapping: while nothing runs, or before
    /// everything was stopped once.
    pub(super) fn look_ahead(&mut self, look: &Look, again: bool) -> Result<(), SourceError> {
        if again && !self.soft_dirty {
            self.watch_huge_pages(look)?;
        }
        let first = again && !self.soft_dirty && self.note_direct_readers(look);
        if !first && !self.soft_dirty {
            return Ok(());
        }
        if first {
            self.let_look(look, again)?;
        }
        let mut held = Held::default();
        if again {
            self.time_sleepers(&mut held)?;
        }
        let start = Instant::now();
        if again {
            stop_tree(self.looker.spec.root, &mut held)?;
        }
        failpoint!("source-round-stopped");
        if !first {
            self.let_look(look, again)?;
        }
        drop(held);
        if again {
            self.readers.own().stats.stopped += start.elapsed();
        }
        Ok(())
    }

    fn let_look(&mut self, look: &Look, again: bool) -> Result<(), SourceError> {
        let scan = Instant::now();
        for found in &look.processes {
            let Some(tracked) = self.tracked.get_mut(&found.process.pid) else {
                continue;
            };
            match tracked.memory.look_ahead(&found.mappings, again) {
                // It has ended, or runs another program: the next shape tells.
                Err(_) if again && !tracked.memory.is_alive(0) => self.lost_writer = true,
                other => other?,
            }
        }
        self.readers.own().scanned(scan.elapsed());
        Ok(())
    }
}

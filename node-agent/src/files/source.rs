//! The sending side.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::op::{AreaId, Op};
use super::outbox::{Outbox, Round, chunk, length};
use super::pass::Pass;
use super::seen::Memory;
use super::watch::{Changes, Watch};
use super::{Area, FilesError};

/// The files of a container, as far as they were sent.
#[derive(Debug)]
pub struct Source {
    areas: Vec<Tracked>,
    log: PathBuf,
    log_sent: u64,
}

/// An area and what is known of it.
#[derive(Debug)]
struct Tracked {
    area: Area,
    memory: Memory,
    watch: Watch,
}

impl Source {
    /// The files in these areas; `log` is the container's log file.
    #[must_use]
    pub fn new(areas: Vec<Area>, log: PathBuf) -> Self {
        let track = |area| Tracked { area, memory: Memory::default(), watch: Watch::new() };
        Self { areas: areas.into_iter().map(track).collect(), log, log_sent: 0 }
    }

    /// Sends what is new, changed or gone since the last round. `number` grows with every round; files whose
    /// inode is in `suspect` are compared by content whatever their times say.
    ///
    /// # Errors
    /// When something cannot be read or sent; the target is then to be discarded.
    pub fn round(
        &mut self,
        number: u64,
        suspect: &HashSet<u64>,
        send: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Round, FilesError> {
        let mut out = Outbox::new(send);
        for (index, tracked) in self.areas.iter_mut().enumerate() {
            let id = AreaId::try_from(index).map_err(|_| FilesError::Refused("too many areas".to_owned()))?;
            let Tracked { area, memory, watch } = tracked;
            let changes = watch.changes();
            let pass = Pass {
                id,
                area,
                number,
                suspect,
                memory,
                watch,
                links: HashMap::new(),
                metas: Vec::new(),
                out: &mut out,
            };
            match changes {
                Changes::Unknown => pass.everything()?,
                Changes::Names(names) => pass.names(names)?,
            }
        }
        self.log(&mut out)?;
        out.flush()?;
        Ok(out.done)
    }

    fn log(&mut self, out: &mut Outbox<'_>) -> Result<(), FilesError> {
        let failed = |error| FilesError::file("read", &self.log)(error);
        let file = match File::open(&self.log) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        loop {
            let data = chunk(&file, self.log_sent).map_err(failed)?;
            if data.is_empty() {
                return Ok(());
            }
            let offset = self.log_sent;
            self.log_sent += length(&data);
            out.push(Op::Log { offset, data })?;
        }
    }
}

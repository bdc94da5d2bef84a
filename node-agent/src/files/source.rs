//! The sending side.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::content::{CHUNK, fill};
use super::op::{AreaId, Op};
use super::outbox::{Outbox, Round};
use super::pass::Pass;
use super::seen::Memory;
use super::watch::{Tracker, Watch};
use super::{Area, FilesError, Suspects};

/// The files of a container, as far as they were sent.
#[derive(Debug)]
pub struct Source {
    areas: Vec<Tracked>,
    log: PathBuf,
    log_sent: u64,
    /// Its thread ends with it, before the watches of the areas go.
    _tracker: Option<Tracker>,
    rounds: u64,
}

/// An area and what is known of it.
#[derive(Debug)]
struct Tracked {
    area: Area,
    memory: Memory,
    watch: Watch,
}

/// How changes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// By the best of the following.
    Best,
    /// By inotify(7).
    Names,
    /// By looking at every file in each round.
    Walk,
}

impl Source {
    /// The files in these areas; `log` is the container's log file. Changes are tracked from now on.
    #[must_use]
    pub fn new(areas: Vec<Area>, log: PathBuf) -> Self {
        Self::tracking(areas, log, Tracking::Best)
    }

    /// As [`Source::new`], with a choice of how changes are found.
    #[must_use]
    pub fn tracking(areas: Vec<Area>, log: PathBuf, tracking: Tracking) -> Self {
        let tracker = if tracking == Tracking::Best { Tracker::start() } else { None };
        let track = |area: Area| {
            let watch = match tracking {
                Tracking::Walk => Watch::Nothing,
                Tracking::Best | Tracking::Names => Watch::new(tracker.as_ref(), &area.dir),
            };
            tracing::debug!(area = %area.at.display(), by = watch.kind(), "changes of files are tracked");
            Tracked { area, memory: Memory::default(), watch }
        };
        let areas = areas.into_iter().map(track).collect();
        Self { areas, log, log_sent: 0, _tracker: tracker, rounds: 0 }
    }

    /// Sends these files ahead of the first round, each with the directories that it is in. Paths are the container's;
    /// what is in no area is left out.
    ///
    /// # Errors
    /// As [`Source::round`].
    pub fn ahead(
        &mut self,
        paths: &[PathBuf],
        send: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Round, FilesError> {
        let mut of_area: Vec<Vec<PathBuf>> = self.areas.iter().map(|_| Vec::new()).collect();
        for path in paths {
            let areas = self.areas.iter().enumerate();
            let inside = areas.filter_map(|(index, tracked)| Some((index, below(&tracked.area.at, path)?)));
            // The innermost one is what the container sees.
            if let Some((index, path)) = inside.min_by_key(|(_, path)| path.as_os_str().len()) {
                of_area[index].push(path);
            }
        }
        self.each(&Suspects::default(), false, send, |pass, index| pass.ahead(&of_area[index]))
    }

    /// Sends what is new, changed or gone since the last round.
    ///
    /// # Errors
    /// When something cannot be read or sent; the target is then to be discarded.
    pub fn round(&mut self, send: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<Round, FilesError> {
        self.each(&Suspects::default(), false, send, |pass, _| pass.run())
    }

    /// As [`Source::round`], when the container stands still: the target's files are equal to its own then.
    ///
    /// # Errors
    /// As above; and [`FilesError::Unsettled`] when something else writes to a file.
    pub fn last(
        &mut self,
        suspects: &Suspects,
        send: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Round, FilesError> {
        self.each(suspects, true, send, |pass, _| pass.run())
    }

    fn each(
        &mut self,
        suspects: &Suspects,
        last: bool,
        send: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        mut work: impl FnMut(Pass<'_, '_>, usize) -> Result<(), FilesError>,
    ) -> Result<Round, FilesError> {
        self.rounds += 1;
        let mut out = Outbox::new(send);
        for (index, Tracked { area, memory, watch }) in self.areas.iter_mut().enumerate() {
            let id = AreaId::try_from(index).map_err(|_| FilesError::Refused("too many areas".to_owned()))?;
            let pass = Pass {
                id,
                area,
                number: self.rounds,
                last,
                suspects,
                memory,
                watch,
                untold: false,
                inodes: HashMap::new(),
                links: HashMap::new(),
                metas: Vec::new(),
                out: &mut out,
            };
            work(pass, index)?;
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
            let mut data = vec![0; CHUNK];
            let filled = fill(&file, self.log_sent, &mut data).map_err(failed)?;
            if filled == 0 {
                return Ok(());
            }
            data.truncate(filled);
            let offset = self.log_sent;
            self.log_sent += filled as u64;
            out.push(Op::Log { offset, data })?;
        }
    }
}

/// The path of `path` within what is at `at`; `None` when it is not below it.
fn below(at: &Path, path: &Path) -> Option<PathBuf> {
    path.strip_prefix(at).ok().filter(|rest| !rest.as_os_str().is_empty()).map(Path::to_owned)
}

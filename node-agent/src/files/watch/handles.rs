//! By fanotify(7) on the file systems that the areas are on.
//!
//! A thread reads the events as they come, because everybody on the file system makes some, and keeps those
//! of directories and files that were looked at. What is made later is in a directory that is known.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use sys::Errno;
use sys::fanotify::{self, Event, FsId, Group, Handle, fs_id, handle_of};
use twox_hash::XxHash3_128;

use super::{Changes, Touch};

/// Changed names of an area that are kept; with more, everything is looked at.
const MAX_NAMES: usize = 1 << 20;
/// Bytes of events read at a time.
const BUFFER: usize = 64 * 1024;
/// No event has more bytes: two handles and a name.
const LARGEST: usize = 1024;

/// A handle in few bytes.
type Key = u128;

fn key(handle: &Handle<'_>) -> Key {
    let mut bytes = [0; 160];
    let length = (12 + handle.bytes.len()).min(bytes.len());
    bytes[..8].copy_from_slice(&handle.fs);
    bytes[8..12].copy_from_slice(&handle.kind.to_ne_bytes());
    bytes[12..length].copy_from_slice(&handle.bytes[..length - 12]);
    XxHash3_128::oneshot(&bytes[..length])
}

/// Reads the events of all areas of a source.
#[derive(Debug)]
pub(in crate::files) struct Tracker {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    group: Group,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    areas: Vec<Touched>,
    directories: HashMap<Key, (usize, PathBuf)>,
    files: HashMap<Key, (usize, u64)>,
}

/// What happened in an area since it was asked for.
#[derive(Debug, Default)]
struct Touched {
    names: BTreeMap<PathBuf, Touch>,
    inodes: HashMap<u64, Touch>,
    /// More happened.
    lost: bool,
}

impl Tracker {
    /// `None` where fanotify cannot be used.
    pub(in crate::files) fn start() -> Option<Self> {
        let group = Group::new().inspect_err(|error| tracing::info!(%error, "fanotify is not there")).ok()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).ok()?;
        let state = State { buffer: vec![0; BUFFER], ..State::default() };
        let shared = Arc::new(Shared { group, state: Mutex::new(state) });
        let (of_thread, until) = (Arc::clone(&shared), stop.try_clone().ok()?);
        let thread = std::thread::Builder::new()
            .name("file-events".to_owned())
            .spawn(move || of_thread.read_until(&until))
            .ok()?;
        Some(Self { shared, stop, thread: Some(thread) })
    }

    /// Watches the file system of an area; `None` where it has no handles.
    pub(super) fn watch(&self, dir: &OwnedFd) -> Option<HandleWatch> {
        let marked = fs_id(dir).and_then(|fs| {
            handle_of(dir, OsStr::new(""), fs, |_| ())?;
            self.shared.group.mark_file_system(dir)?;
            Ok(fs)
        });
        let fs = marked.inspect_err(|error| tracing::info!(%error, "no fanotify on a file system")).ok()?;
        let mut state = self.shared.lock();
        state.areas.push(Touched::default());
        let area = state.areas.len() - 1;
        drop(state);
        Some(HandleWatch { shared: Arc::clone(&self.shared), area, fs, began: false })
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // Nothing but a full counter can fail it, and that wakes the thread, too.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads file events panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_until(&self, stop: &OwnedFd) {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(self.group.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "cannot wait for file events"),
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            // One buffer at a time: whoever asks for changes need not wait for a busy file system.
            if let Err(error) = self.lock().read(&self.group) {
                return tracing::error!(%error, "cannot read file events");
            }
        }
    }
}

impl State {
    /// Takes one buffer of events; whether there may be more that came before this call.
    fn read(&mut self, group: &Group) -> Result<bool, Errno> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = match group.read(&mut buffer) {
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error),
            Ok(length) => {
                fanotify::events(&buffer[..length]).for_each(|event| self.take(&event));
                // The kernel stops early at the end of the queue alone.
                Ok(length + LARGEST > buffer.len())
            }
        };
        self.buffer = buffer;
        if read.is_err() {
            self.areas.iter_mut().for_each(|area| area.lost = true);
        }
        read
    }

    fn take(&mut self, event: &Event<'_>) {
        let is = |bits: u64| event.mask & bits != 0;
        if is(fanotify::OVERFLOW) {
            self.areas.iter_mut().for_each(|area| area.lost = true);
            return;
        }
        let made = is(fanotify::CREATE | fanotify::MOVED_TO);
        let listed = made || is(fanotify::DELETE | fanotify::MOVED_FROM);
        let touch = Touch { made, content: is(fanotify::MODIFY | fanotify::CLOSE_WRITE) };
        if let Some((area, path)) = event.dir.and_then(|dir| self.directories.get(&key(&dir))) {
            let itself = event.name.is_empty() || event.name == b".";
            if !itself {
                self.areas[*area].name(path.join(OsStr::from_bytes(event.name)), touch);
            }
            if itself || listed {
                self.areas[*area].name(path.clone(), Touch::default());
            }
        }
        if let Some(object) = event.object.map(|object| key(&object)) {
            if let Some((area, ino)) = self.files.get(&object) {
                *self.areas[*area].inodes.entry(*ino).or_default() |= touch;
            } else if let Some((area, path)) = self.directories.get(&object) {
                self.areas[*area].name(path.clone(), Touch::default());
            }
        }
    }
}

impl Touched {
    fn name(&mut self, path: PathBuf, touch: Touch) {
        if self.lost {
            return;
        }
        *self.names.entry(path).or_default() |= touch;
        if self.names.len() > MAX_NAMES {
            *self = Self { lost: true, ..Self::default() };
        }
    }
}

/// Watches over one area.
#[derive(Debug)]
pub(in crate::files) struct HandleWatch {
    shared: Arc<Shared>,
    area: usize,
    fs: FsId,
    began: bool,
}

impl HandleWatch {
    pub(super) fn add(&self, dir: &OwnedFd, path: &Path) -> Result<(), Errno> {
        let key = handle_of(dir, OsStr::new(""), self.fs, |handle| key(&handle))?;
        // A directory that was renamed has the handle that it had.
        self.shared.lock().directories.insert(key, (self.area, path.to_owned()));
        Ok(())
    }

    /// What has no handle is gone.
    pub(super) fn add_file(&self, dir: &OwnedFd, name: &OsStr, ino: u64) {
        if let Ok(key) = handle_of(dir, name, self.fs, |handle| key(&handle)) {
            self.shared.lock().files.insert(key, (self.area, ino));
        }
    }

    pub(super) fn changes(&mut self) -> Changes {
        let mut state = self.shared.lock();
        while let Ok(true) = state.read(&self.shared.group) {}
        let touched = std::mem::take(&mut state.areas[self.area]);
        drop(state);
        if !std::mem::replace(&mut self.began, true) || touched.lost {
            return Changes::Unknown;
        }
        Changes::Known { names: touched.names, inodes: touched.inodes, by_inode: true }
    }
}

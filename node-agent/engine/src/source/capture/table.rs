//! Open file descriptions, each once.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use image::Pid;
use sys::{Errno, kcmp};

use crate::proc::fdinfo::FdInfo;
use crate::source::descriptor::{Class, Descriptor};
use crate::source::{InspectError, SourceError};

/// One open file description of the tree, of which this process holds a duplicate.
#[derive(Debug)]
pub(crate) struct Open {
    /// Its id in the image.
    pub(crate) id: u32,
    /// Our duplicate.
    pub(crate) file: Arc<OwnedFd>,
    /// A process that has it, in the container's numbering, and the number there; for one that is only in
    /// flight in a socket, 0 and our own number.
    pub(crate) holder: (Pid, i32),
    /// The same process as this process sees it.
    pub(crate) holder_pid: i32,
    pub(crate) info: FdInfo,
    pub(crate) class: Class,
    /// Device and inode number.
    pub(crate) key: (u64, u64),
}

/// All open file descriptions so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) open: Vec<Open>,
    /// Ids by process (as this process sees it) and number.
    pub(crate) numbers: HashMap<(i32, i32), u32>,
    /// Indexes by what must be equal for two descriptors to be the same description, sorted by kcmp(2).
    groups: HashMap<GroupKey, Vec<usize>>,
}

/// What two descriptors of one description have in common, cheaply known.
type GroupKey = ((u64, u64), u32, i64);

const O_CLOEXEC: u32 = 0o2_000_000;

/// Whose descriptor is added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder<'a> {
    /// As this process sees it.
    pub(crate) pid: i32,
    /// In the container.
    pub(crate) inner: Pid,
    pub(crate) pidfd: BorrowedFd<'a>,
}

impl Table {
    /// The id of a descriptor's description; takes a duplicate when it is new.
    pub(crate) fn add(&mut self, holder: Holder<'_>, descriptor: &Descriptor) -> Result<u32, SourceError> {
        let number = descriptor.fd;
        self.add_with(holder.pid, holder.inner, descriptor, || sys::pidfd::getfd(holder.pidfd, number))
    }

    /// The same for a descriptor that this process received. `descriptor` describes it under our number.
    pub(crate) fn add_received(
        &mut self,
        file: OwnedFd,
        descriptor: &Descriptor,
    ) -> Result<u32, SourceError> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let mut described = descriptor.clone();
        described.fd = file.as_raw_fd();
        self.add_with(own, 0, &described, || Ok(file))
    }

    fn add_with(
        &mut self,
        pid: i32,
        inner: Pid,
        descriptor: &Descriptor,
        file: impl FnOnce() -> sys::Result<OwnedFd>,
    ) -> Result<u32, SourceError> {
        let key = (descriptor.key, descriptor.info.flags & !O_CLOEXEC, descriptor.info.pos);
        let group = self.groups.entry(key).or_default();
        let place = place(&self.open, group, pid, descriptor.fd)
            .map_err(|errno| InspectError::kernel("compare open files", pid, errno))?;
        let at = match place {
            Ok(same) => return Ok(self.open[same].id),
            Err(at) => at,
        };
        let id = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        group.insert(at, self.open.len());
        self.open.push(Open {
            id,
            file: Arc::new(
                file().map_err(|errno| SourceError::kernel("duplicate a descriptor", pid, errno))?,
            ),
            holder: (inner, descriptor.fd),
            holder_pid: pid,
            info: descriptor.info.clone(),
            class: descriptor.class.clone(),
            key: descriptor.key,
        });
        Ok(id)
    }

    /// The description with this id.
    pub(crate) fn get(&self, id: u32) -> Option<&Open> {
        self.open.get(usize::try_from(id).ok()?)
    }
}

fn place(open: &[Open], group: &[usize], pid: i32, fd: i32) -> sys::Result<Result<usize, usize>> {
    let own = i32::try_from(std::process::id()).map_err(|_| Errno::ESRCH)?;
    let (mut low, mut high) = (0, group.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        let known = group[middle];
        match kcmp::file(own, open[known].file.as_raw_fd(), pid, fd)? {
            Ordering::Equal => return Ok(Ok(known)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

//! The network lock as sessions use it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sys::ns::{self, Kind};

use super::super::record::Record;
use crate::network::{Lock, NetworkError, lift_leftovers, remove};
use crate::session::ports::{EthernetFrame, InBetween, NetLock, PortError};

/// The lock of one container; without a link there is nothing to lock.
#[derive(Debug)]
pub(super) struct ContainerLock {
    link: String,
    lock: Option<Lock>,
}

impl ContainerLock {
    pub(super) fn prepare(record: &Record, pid: i32) -> Result<Self, PortError> {
        let link = record.link.clone();
        if record.network.ip.is_none() {
            return Ok(Self { link, lock: None });
        }
        let netns = ns::open(pid, Kind::Net).map_err(|error| {
            PortError::failed(format!("open the network namespace of {}", record.name), error)
        })?;
        let lock = Lock::prepare(&link, netns, record.network.mac).map_err(failed)?;
        Ok(Self { link, lock: Some(lock) })
    }
}

impl NetLock for ContainerLock {
    fn hold_newcomers(&mut self) -> Result<(), PortError> {
        self.lock.as_mut().map_or(Ok(()), |lock| lock.hold_newcomers().map_err(failed))
    }

    fn unsettled(&mut self) -> Result<Option<InBetween>, PortError> {
        let Some(lock) = self.lock.as_mut() else { return Ok(None) };
        let found = lock.unsettled().map_err(failed)?;
        Ok((!found.is_settled()).then(|| InBetween { waiting: found.waiting, text: found.to_string() }))
    }

    fn engage(&mut self) -> Result<(), PortError> {
        self.lock.as_mut().map_or(Ok(()), |lock| lock.engage().map_err(failed))
    }

    fn held(&mut self, wait: Duration) -> Result<Vec<EthernetFrame>, PortError> {
        match &mut self.lock {
            Some(lock) => lock.held(wait).map_err(failed),
            None => {
                // As if nothing came.
                std::thread::sleep(wait);
                Ok(Vec::new())
            }
        }
    }

    fn arrivals(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(Lock::arrivals)
    }

    fn lift(&mut self) -> Result<(), PortError> {
        match &mut self.lock {
            Some(lock) => lock.lift().map_err(failed),
            None => lift_leftovers(&self.link).map_err(failed),
        }
    }

    fn release(&mut self) -> Result<(), PortError> {
        if let Some(lock) = &mut self.lock {
            lock.release().map_err(failed)?;
        }
        remove(&self.link).map_err(failed)
    }
}

pub(super) fn failed(error: NetworkError) -> PortError {
    let what = error.what;
    PortError::failed(what, error.source)
}

//! The state of a container's network namespace on its way: see [`crate::network::state`].

use std::os::fd::AsFd as _;
use std::time::Instant;

use image::Refusal;
use sys::ns::{self, Kind};

use super::super::record::Record;
use crate::network::INSIDE;
use crate::network::state::read::{Reader, Settings};
use crate::network::state::{NetState, Section, apply, check, sysctl};
use crate::session::ports::{HostState, PortError};

/// The kind of the block.
const KIND: &str = "network";

/// Sections that follow from others: when one of the first four changed, all up to the queueing disciplines are looked at.
const BASIC: [Section; 4] = [Section::Links, Section::Sysctls, Section::Addresses, Section::Nexthops];

fn failed(
    what: &str,
    record: &Record,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> PortError {
    PortError::failed(format!("{what} the network of {}", record.name), error)
}

/// The network of a container that leaves, as its target knows it.
#[derive(Debug)]
pub(super) struct Outgoing {
    reader: Reader,
    told: NetState,
    refusals: Vec<Refusal>,
    pid: i32,
}

impl Outgoing {
    /// Reads it all, without touching anything.
    pub(super) fn look(record: &Record, pid: i32) -> Result<Self, PortError> {
        let open = || Reader::open(ns::open(pid, Kind::Net)?.as_fd());
        let reader = open().map_err(|error| failed("open", record, error))?;
        let read = reader.read(&Section::ALL, Settings::Carried);
        let told = read.map_err(|error| failed("read", record, error))?;
        let refusals = refusals(&reader, record, &told)?;
        Ok(Self { reader, told, refusals, pid })
    }

    /// What cannot be carried.
    pub(super) fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// All of it.
    pub(super) fn whole(&self, record: &Record) -> Result<HostState, PortError> {
        let data = self.told.encode().map_err(|error| failed("describe", record, error))?;
        Ok(HostState { kind: KIND.to_owned(), data })
    }

    /// What changed since; `None` when nothing did.
    pub(super) fn changes(&self, record: &Record) -> Result<Option<HostState>, PortError> {
        let began = Instant::now();
        let read = |sections: &[Section], settings| {
            self.reader.read(sections, settings).map_err(|error| failed("read", record, error))
        };
        let links = read(&[Section::Links], Settings::Again)?;
        // A new interface has settings of its own.
        let settings = if links.links == self.told.links { Settings::Again } else { Settings::Carried };
        // Reading a thousand files takes milliseconds: only when they may have changed.
        let sealed = matches!(settings, Settings::Again) && sysctl::is_sealed(self.pid);
        let sections: Vec<Section> = Section::ALL[1..]
            .iter()
            .copied()
            .filter(|section| *section != Section::Sysctls || !sealed)
            .collect();
        let mut now = read(&sections, settings)?;
        now.links = links.links;
        if sealed {
            now.sysctls = self.told.sysctls.clone();
        }
        let refusals = refusals(&self.reader, record, &now)?;
        if !refusals.is_empty() {
            return Err(PortError::Refused(refusals));
        }
        let changes = now.since(&self.told);
        tracing::debug!(took = ?began.elapsed(), changed = ?changes.sections(), "read the network in the pause");
        if changes.is_empty() {
            return Ok(None);
        }
        let data = changes.encode().map_err(|error| failed("describe", record, error))?;
        Ok(Some(HostState { kind: KIND.to_owned(), data }))
    }
}

fn refusals(reader: &Reader, record: &Record, state: &NetState) -> Result<Vec<Refusal>, PortError> {
    let foreign = reader.foreign().map_err(|error| failed("look at", record, error))?;
    Ok(check::refusals(state, record.network.ip.map(|_| record.network.mac), foreign))
}

/// The network of a container that arrives, until it is complete.
#[derive(Debug)]
pub(super) struct Arriving {
    reader: Reader,
    wanted: NetState,
}

/// The state of the network in these blocks; `None` when there is none.
pub(super) fn wanted(states: &[HostState]) -> Result<Option<NetState>, PortError> {
    if let Some(other) = states.iter().find(|state| state.kind != KIND) {
        let text = format!("it holds {:?}, which this agent does not know", other.kind);
        return Err(PortError::failed("understand the state of the host", text));
    }
    let Some(state) = states.first() else { return Ok(None) };
    let decoded = NetState::decode(&state.data);
    decoded.map(Some).map_err(|error| PortError::failed("understand the state of the network", error))
}

/// The number that the runtime's link has in the container.
pub(super) fn own_index(wanted: &NetState) -> Option<u32> {
    let own = wanted.links.iter().flatten().find(|(_, link)| link.outside && link.name == INSIDE);
    own.map(|(index, _)| *index)
}

impl Arriving {
    /// Sets the whole state in the namespace of process `pid`, which has the runtime's link already.
    pub(super) fn prepare(wanted: NetState, pid: i32) -> Result<Self, apply::ApplyError> {
        let open = || Reader::open(ns::open(pid, Kind::Net)?.as_fd());
        let reader = open().map_err(apply::ApplyError::Read)?;
        let began = Instant::now();
        apply::apply(&reader, &wanted)?;
        tracing::debug!(took = ?began.elapsed(), "set the network");
        Ok(Self { reader, wanted })
    }

    /// Sets what changed since.
    pub(super) fn complete(mut self, changes: NetState) -> Result<Self, apply::ApplyError> {
        let began = Instant::now();
        let mut scope = changes.sections();
        self.wanted.update(changes);
        if scope.iter().any(|section| BASIC.contains(section)) {
            scope.extend(Section::ALL.into_iter().filter(|section| *section <= Section::Qdiscs));
        }
        apply::apply(&self.reader, &self.wanted.only(&scope))?;
        tracing::debug!(took = ?began.elapsed(), ?scope, "completed the network in the pause");
        Ok(self)
    }

    /// The addresses that the world may know, of the runtime's link.
    pub(super) fn addresses(&self) -> Vec<std::net::IpAddr> {
        own_index(&self.wanted).map(|index| self.wanted.addresses_of(index)).unwrap_or_default()
    }
}

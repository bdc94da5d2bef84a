//! Values that mean something on one host alone: CPUs, memory nodes, numbers of devices. Pure.

use image::groups::{Groups, Value};

use super::host::Host;
use super::known;
use super::read::number_of;
use super::sets::{self, Mapped, Set};

/// A value for the target.
#[derive(Debug)]
pub(super) struct Translated {
    pub(super) lines: Vec<String>,
    /// It is not what it was, as the bundle allows: what it is now.
    pub(super) note: Option<String>,
}

/// Why a value has no meaning at the target.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) reason: String,
    pub(super) way_out: &'static str,
}

/// Maps values from one host to another.
#[derive(Debug)]
pub(super) struct Node<'a> {
    groups: &'a Groups,
    host: &'a Host,
}

const NO_DEVICE: &str = "remove the setting, or choose a node with a device of this name";

impl<'a> Node<'a> {
    pub(super) fn new(groups: &'a Groups, host: &'a Host) -> Self {
        Self { groups, host }
    }

    /// `to_v1`: a set must be said there, also when it is everything.
    pub(super) fn map(&self, value: &Value, to_v1: bool) -> Result<Translated, Problem> {
        let same = |lines| Translated { lines, note: None };
        match value.file.as_str() {
            "cpuset.cpus" => self.set(value, "CPU", &self.groups.cpus, &self.host.cpus, to_v1),
            "cpuset.mems" => self.set(value, "memory node", &self.groups.mems, &self.host.mems, to_v1),
            "cpuset.cpus.partition" | "cpuset.cpus.exclusive" => Err(Problem {
                reason: "a part of the source's CPUs that nobody else may use cannot move".to_owned(),
                way_out: "remove the partition",
            }),
            "devices.list" => {
                value.lines.iter().map(|line| self.rule(line)).collect::<Result<_, _>>().map(same)
            }
            file if known::names_devices(file) => {
                value.lines.iter().map(|line| self.limit(line)).collect::<Result<_, _>>().map(same)
            }
            _ => Ok(same(value.lines.clone())),
        }
    }

    fn set(
        &self,
        value: &Value,
        what: &str,
        there: &str,
        here: &str,
        to_v1: bool,
    ) -> Result<Translated, Problem> {
        let line = value.lines.first().map_or("", String::as_str);
        let understood = (sets::parse(line), sets::parse(there), sets::parse(here));
        let (Some(set), Some(there), Some(here)) = understood else {
            return Err(Problem { reason: "that is no list of numbers".to_owned(), way_out: "set it anew" });
        };
        let lines = |set: &Set| vec![sets::format(set)];
        match sets::map(&set, &there, &here, self.groups.widen) {
            // A v2 group that says nothing has everything, whatever comes later.
            Ok(Mapped::All) if set == there => {
                Ok(Translated { lines: if to_v1 { lines(&here) } else { Vec::new() }, note: None })
            }
            Ok(Mapped::All) => Ok(Translated { note: Some(sets::format(&here)), lines: lines(&here) }),
            Ok(Mapped::Some(mapped)) => {
                let note = (mapped != set).then(|| sets::format(&mapped));
                Ok(Translated { lines: lines(&mapped), note })
            }
            Err(missing) => Err(Problem {
                reason: format!("the target has no {what} {missing}"),
                way_out: "choose another node, or allow fewer with the annotation dev.gantry.cpuset: widen",
            }),
        }
    }

    /// The number here of the device that has this number there; `Err` with its name when it is not here.
    fn number(&self, block: bool, major: u32, minor: u32) -> Result<Option<(u32, u32)>, &'a str> {
        let found = self
            .groups
            .devices
            .iter()
            .find(|device| (device.block, device.major, device.minor) == (block, major, minor));
        let Some(device) = found else { return Ok(None) };
        self.host.devices.get(&device.name).copied().map(Some).ok_or(device.name.as_str())
    }

    /// `8:0 rbps=1000`.
    fn limit(&self, line: &str) -> Result<String, Problem> {
        let (number, rest) = line.split_once(' ').unwrap_or((line, ""));
        let Some((major, minor)) = number_of(number) else { return Ok(line.to_owned()) };
        match self.number(true, major, minor) {
            Ok(Some((major, minor))) => Ok(format!("{major}:{minor} {rest}")),
            Ok(None) => Err(Problem {
                reason: format!("the source has no device {number} any more"),
                way_out: "remove the setting",
            }),
            Err(name) => {
                Err(Problem { reason: format!("the target has no device {name}"), way_out: NO_DEVICE })
            }
        }
    }

    /// `c 1:3 rwm`. A rule about a device that is not here stays as it is when it is about nothing else here.
    fn rule(&self, line: &str) -> Result<String, Problem> {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind @ ("b" | "c"), number, access] = words.as_slice() else { return Ok(line.to_owned()) };
        let Some((major, minor)) = number_of(number) else { return Ok(line.to_owned()) };
        let block = *kind == "b";
        match self.number(block, major, minor) {
            Ok(Some((major, minor))) => Ok(format!("{kind} {major}:{minor} {access}")),
            Ok(None) => Ok(line.to_owned()),
            Err(name) => match self.host.names.get(&(block, major, minor)) {
                None => Ok(line.to_owned()),
                Some(other) => Err(Problem {
                    reason: format!("the target has no device {name}, and {other} has its number"),
                    way_out: NO_DEVICE,
                }),
            },
        }
    }
}

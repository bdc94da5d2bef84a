//! Bringing a network namespace to a wanted state.

use std::time::Duration;

use sys::Errno;
use sys::net::message::{APPEND, CREATE, EXCLUSIVE, Message, REPLACE};
use sys::net::nft::Refused;
use sys::net::set_sysctl;
use sys::net::table::Table;

use super::item::Item;
use super::links::attr;
use super::plan::{Step, changed, plan};
use super::read::{Reader, Settings, Sockets};
use super::{Link, NetState, Section, conntrack};

/// How often the state is compared and set at most. Two is usual: set, and nothing is missing.
const ROUNDS: u32 = 8;

/// From this round on the kernel is given time: it makes IPv6 addresses in its own time.
const PATIENT: u32 = 3;

/// Why a state could not be set: the first thing that is missing.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel refuses a step.
    #[error("cannot {what}")]
    Refused {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It took it and does not show it.
    #[error("cannot {what}: the kernel of this node does not keep it as the other one has it")]
    NotTaken {
        /// What is missing.
        what: String,
    },
    /// The namespace cannot be read.
    #[error("cannot read the network namespace")]
    Read(#[source] Errno),
}

/// Sets what is missing until nothing is. Sections that `wanted` does not speak of stay as they are.
///
/// # Errors
/// What is missing at the end; the namespace is then somewhere on the way.
pub fn apply(reader: &Reader, wanted: &NetState) -> Result<(), ApplyError> {
    let none = std::collections::BTreeMap::new();
    let settings = Settings::Like(wanted.sysctls.as_ref().unwrap_or(&none));
    let sections = wanted.sections();
    let mut failed: Option<(String, Errno)> = None;
    for round in 0..ROUNDS {
        let now = reader.read(&sections, settings).map_err(ApplyError::Read)?;
        let steps = plan(&now, wanted);
        let Some(first) = steps.first() else { return Ok(()) };
        if round + 1 == ROUNDS {
            return Err(match failed {
                Some((what, source)) => ApplyError::Refused { what, source },
                None => ApplyError::NotTaken { what: first.text() },
            });
        }
        if round >= PATIENT {
            std::thread::sleep(Duration::from_millis(5));
        }
        failed = reader.run(move |sockets| sockets.carry_out(&steps)).map_err(ApplyError::Read)?;
        if let Some((what, error)) = &failed {
            tracing::debug!(round, what, %error, "a step of the network state was refused");
        }
    }
    Ok(())
}

/// Steps that are told to the kernel together.
#[derive(Default)]
struct Bundle {
    messages: Vec<Message>,
    steps: Vec<usize>,
}

impl Sockets {
    /// Does as much as can be done; the first refusal is the answer.
    fn carry_out(&mut self, steps: &[Step]) -> Option<(String, Errno)> {
        let mut failed: Option<(String, Errno)> = None;
        let mut note = |what: String, error: Errno| {
            failed.get_or_insert((what, error));
        };
        let mut bundle = Bundle::default();
        let mut section = None;
        for (at, step) in steps.iter().enumerate() {
            let of = match step {
                Step::Add(section, _) | Step::Remove(section, _) => Some(*section),
                _ => None,
            };
            if of != section {
                self.send(&mut bundle, section, steps, &mut note);
                section = of;
            }
            match step {
                Step::Add(section, item) => bundle.push(at, add(*section, item)),
                Step::Remove(section, item) => bundle.push(at, remove(*section, item)),
                Step::Write { name, value } => {
                    if let Err(error) = set_sysctl(name, value) {
                        note(step.text(), error);
                    }
                }
                Step::Replace { tables, wanted } => {
                    if let Err((what, error)) = self.replace(wanted.replace(tables)) {
                        note(what, error);
                    }
                }
                Step::DeleteLink(link) => {
                    self.link(&Table::Links.remove(&link_header(link.index, 0, 0)), step, &mut note)
                }
                Step::CreateLink(link, peer) => self.link(&create(link, peer.as_deref()), step, &mut note),
                Step::ChangeLink { now, wanted } => {
                    for message in change(now, wanted) {
                        self.link(&message, step, &mut note);
                    }
                    let features = changed(&now.features, &wanted.features);
                    if !features.is_empty()
                        && let Err(error) = self.ethtool.set_features(&wanted.name, &features)
                    {
                        note(step.text(), error);
                    }
                }
            }
        }
        self.send(&mut bundle, section, steps, &mut note);
        failed
    }

    fn link(&mut self, message: &Message, step: &Step, note: &mut impl FnMut(String, Errno)) {
        if let Err(error) = self.route.execute(message) {
            note(step.text(), error);
        }
    }

    fn replace(&mut self, steps: Vec<(String, Message)>) -> Result<(), (String, Errno)> {
        let (texts, messages): (Vec<String>, Vec<Message>) = steps.into_iter().unzip();
        let Some(filter) = &mut self.filter else {
            return Err(("set nftables: this kernel has none".to_owned(), Errno::EPROTONOSUPPORT));
        };
        filter.nft_transaction(&messages).map_err(|Refused { at, error }| {
            let what = at.and_then(|at| texts.get(at)).map_or("the transaction", String::as_str);
            (format!("set the nftables ruleset: {what}"), error)
        })
    }

    fn send(
        &mut self,
        bundle: &mut Bundle,
        section: Option<Section>,
        steps: &[Step],
        note: &mut impl FnMut(String, Errno),
    ) {
        let Bundle { messages, steps: numbers } = std::mem::take(bundle);
        if messages.is_empty() {
            return;
        }
        let socket = match (section, &mut self.filter) {
            (Some(Section::Conntrack), Some(filter)) => filter,
            (Some(Section::Conntrack), None) => {
                return note("set tracked connections".to_owned(), Errno::EPROTONOSUPPORT);
            }
            _ => &mut self.route,
        };
        let name = section.map_or("", Section::name);
        match socket.execute_all(&messages) {
            Ok(failed) => {
                for (at, error) in failed {
                    let step = numbers.get(at).and_then(|at| steps.get(*at));
                    // Gone already, with something that it belonged to.
                    let gone = matches!(step, Some(Step::Remove(..)));
                    let there = error == Errno::EEXIST;
                    if let Some(step) = step.filter(|_| !gone && !there) {
                        note(step.text(), error);
                    }
                }
            }
            Err(error) => note(format!("set the {name}"), error),
        }
    }
}

impl Bundle {
    fn push(&mut self, step: usize, message: Message) {
        self.steps.push(step);
        self.messages.push(message);
    }
}

/// The table that a section's entry is in.
fn table(section: Section, item: &Item) -> Table {
    match section {
        Section::Addresses => Table::Addresses,
        Section::Nexthops => Table::Nexthops,
        Section::Routes => Table::Routes,
        Section::Rules if item.header.first() == Some(&2) => Table::Rules4,
        Section::Rules => Table::Rules6,
        Section::Neighbours => Table::Neighbours,
        Section::Forwarding => Table::Forwarding,
        _ => Table::Qdiscs,
    }
}

fn add(section: Section, item: &Item) -> Message {
    if section == Section::Conntrack {
        return conntrack::create(item);
    }
    let flags = match (section, item.header.first()) {
        (Section::Addresses | Section::Neighbours | Section::Forwarding | Section::Qdiscs, _) => {
            CREATE | REPLACE
        }
        // IPv4 keeps routes to the same destination in the order in which they are appended; IPv6 would make one of them.
        (Section::Routes, Some(2)) => CREATE | APPEND,
        _ => CREATE | EXCLUSIVE,
    };
    item.into_message(table(section, item).add(flags, &item.header))
}

fn remove(section: Section, item: &Item) -> Message {
    if section == Section::Conntrack {
        return conntrack::remove(item);
    }
    item.into_message(table(section, item).remove(&item.header))
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Makes an interface with what cannot be changed later; the rest follows when it is there.
fn create(link: &Link, peer: Option<&Link>) -> Message {
    const VETH_PEER: u16 = 1;
    let kind = link.kind.as_deref().unwrap_or("");
    let begin = |message: &mut Message, link: &Link| {
        message.attr_str(attr::NAME, &link.name);
        if !link.mac.is_empty() {
            message.attr(attr::ADDRESS, &link.mac);
        }
    };
    let mut message = Table::Links.add(CREATE | EXCLUSIVE, &link_header(link.index, 0, 0));
    begin(&mut message, link);
    if kind != "veth"
        && let Some(lower) = link.lower
    {
        message.attr_u32(attr::LINK, lower);
    }
    message.nest(attr::INFO, |info| {
        info.attr_str(attr::INFO_KIND, kind);
        match peer {
            Some(peer) => {
                info.nest(attr::INFO_DATA, |data| {
                    data.nest_after(VETH_PEER, &link_header(peer.index, 0, 0), |inner| begin(inner, peer));
                });
            }
            // A bridge is made with nothing: some of its settings count as the user's as soon as they are set.
            None if kind != "bridge" && !link.settings.is_empty() => {
                info.nest(attr::INFO_DATA, |data| {
                    for (kind, value) in &link.settings {
                        data.attr(*kind, value);
                    }
                });
            }
            None => {}
        }
    });
    message
}

/// The messages that change what differs, each by itself, so that one refusal does not hide the rest. The bridge comes
/// first: it changes sizes of packets.
fn change(now: &Link, wanted: &Link) -> Vec<Message> {
    let begin = || Table::Links.add(0, &link_header(wanted.index, 0, 0));
    let mut messages = Vec::new();
    let mut one = |fill: &dyn Fn(&mut Message)| {
        let mut message = begin();
        fill(&mut message);
        messages.push(message);
    };
    let settings = changed(&now.settings, &wanted.settings);
    if !settings.is_empty() {
        one(&|message| {
            message.nest(attr::INFO, |info| {
                info.attr_str(attr::INFO_KIND, wanted.kind.as_deref().unwrap_or("")).nest(
                    attr::INFO_DATA,
                    |data| {
                        for (kind, value) in &settings {
                            data.attr(*kind, value);
                        }
                    },
                );
            });
        });
    }
    if now.master != wanted.master {
        one(&|message| {
            message.attr_u32(attr::MASTER, wanted.master.unwrap_or(0));
        });
    }
    let port = changed(&now.port, &wanted.port);
    if !port.is_empty() {
        one(&|message| {
            message.nest(attr::INFO, |info| {
                info.attr_str(attr::INFO_PORT_KIND, "bridge").nest(attr::INFO_PORT_DATA, |data| {
                    for (kind, value) in &port {
                        data.attr(*kind, value);
                    }
                });
            });
        });
    }
    if now.mac != wanted.mac {
        one(&|message| {
            message.attr(attr::ADDRESS, &wanted.mac);
        });
    }
    let numbers = [
        (attr::MTU, now.mtu, wanted.mtu),
        (attr::TX_QUEUE, now.tx_queue, wanted.tx_queue),
        (attr::GROUP, now.group, wanted.group),
    ];
    for (kind, _, value) in numbers.into_iter().filter(|(_, now, wanted)| now != wanted) {
        one(&|message| {
            message.attr_u32(kind, value);
        });
    }
    for (kind, value) in changed(&now.segments, &wanted.segments) {
        one(&|message| {
            message.attr_u32(kind, value);
        });
    }
    if now.alias != wanted.alias {
        one(&|message| {
            message.attr(attr::ALIAS, wanted.alias.as_bytes());
        });
    }
    messages.extend(names(now, wanted));
    if now.flags != wanted.flags {
        let differ = now.flags ^ wanted.flags;
        messages.push(Table::Links.add(0, &link_header(wanted.index, wanted.flags, differ)));
    }
    messages
}

/// Alternative names: RTM_NEWLINKPROP, RTM_DELLINKPROP.
fn names(now: &Link, wanted: &Link) -> Vec<Message> {
    const ADD: u16 = 108;
    const REMOVE: u16 = 109;
    let build = |kind: u16, flags: u16, names: Vec<&String>| {
        let mut message = Message::new(kind, flags, &link_header(wanted.index, 0, 0));
        message.nest(attr::PROPERTIES | 0x8000, |list| {
            for name in &names {
                list.attr_str(attr::ALT_NAME, name);
            }
        });
        (!names.is_empty()).then_some(message)
    };
    let missing = |from: &Link, list: &Link| -> Vec<String> {
        list.alt_names.iter().filter(|name| !from.alt_names.contains(name)).cloned().collect()
    };
    let (old, new) = (missing(wanted, now), missing(now, wanted));
    [build(REMOVE, 0, old.iter().collect()), build(ADD, CREATE | EXCLUSIVE | APPEND, new.iter().collect())]
        .into_iter()
        .flatten()
        .collect()
}

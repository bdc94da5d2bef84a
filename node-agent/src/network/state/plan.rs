//! What is missing between two states: pure. Steps come in the order in which they can be done.

use std::collections::{BTreeMap, BTreeSet};

use super::item::Item;
use super::links::Link;
use super::{NetState, Ruleset, Section, conntrack, normal, sysctl};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Delete an interface.
    DeleteLink(Box<Link>),
    /// Make one, a veth together with its other end.
    CreateLink(Box<Link>, Option<Box<Link>>),
    /// Change what differs.
    ChangeLink {
        /// As it is.
        now: Box<Link>,
        /// As it shall be.
        wanted: Box<Link>,
    },
    /// Write a setting.
    Write {
        /// Below /proc/sys/net.
        name: String,
        /// Text.
        value: String,
    },
    /// Remove an entry.
    Remove(Section, Item),
    /// Add one, or replace the one for the same thing.
    Add(Section, Item),
    /// Replace the ruleset.
    Replace {
        /// Tables to delete.
        tables: Vec<Item>,
        /// What comes instead.
        wanted: Box<Ruleset>,
    },
}

/// The steps from `now` to `wanted`, for the sections that `wanted` speaks of. `now` must speak of them, too.
#[must_use]
pub fn plan(now: &NetState, wanted: &NetState) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(wanted) = &wanted.links {
        links(now.links.as_ref().unwrap_or(&BTreeMap::new()), wanted, &mut steps);
    }
    if let Some(wanted) = &wanted.sysctls {
        let mut writes: Vec<(&String, &String)> = wanted
            .iter()
            .filter(|(name, setting)| {
                let here = now.sysctls.as_ref().and_then(|here| here.get(*name));
                // What the target lacks and the container did not change itself is no loss.
                here.map_or(setting.own, |here| here.value != setting.value)
            })
            .map(|(name, setting)| (name, &setting.value))
            .collect();
        writes.sort_by_key(|(name, _)| sysctl::order(name));
        let write =
            |(name, value): (&String, &String)| Step::Write { name: name.clone(), value: value.clone() };
        steps.extend(writes.into_iter().map(write));
    }
    for section in Section::ALL {
        if let Some(wanted) = wanted.tables.get(&section) {
            steps.extend(table(section, now.table(section), wanted));
        }
    }
    if let Some(wanted) = &wanted.nft {
        let none = Ruleset::default();
        let here = now.nft.as_ref().unwrap_or(&none);
        if here.still() != wanted.still() {
            let place = steps.iter().position(|step| {
                matches!(step, Step::Add(Section::Conntrack, _) | Step::Remove(Section::Conntrack, _))
            });
            let replace = Step::Replace { tables: here.tables.clone(), wanted: Box::new(wanted.clone()) };
            steps.insert(place.unwrap_or(steps.len()), replace);
        }
    }
    steps
}

/// Steps of a section that is a list of entries.
fn table(section: Section, now: &[Item], wanted: &[Item]) -> Vec<Step> {
    let exact = |item: &Item| (item.header.clone(), flatten(item));
    let (remove, mut add) = match section {
        Section::Addresses => {
            let (remove, add) = difference(now, wanted, normal::address_key, normal::same_address);
            // One that differs in its lifetime alone is replaced where it is: without it its routes would go.
            let longer = |gone: &Item| {
                add.iter().any(|new| {
                    let same = normal::address_key(new) == normal::address_key(gone);
                    same && normal::without_lifetime(new) == normal::without_lifetime(gone)
                })
            };
            let remove = remove.into_iter().filter(|gone| !longer(gone)).collect();
            (remove, add)
        }
        Section::Routes => difference(now, wanted, normal::route_key, normal::same_route),
        Section::Conntrack => difference(now, wanted, conntrack::key, conntrack::same),
        Section::Neighbours => {
            let (remove, add) = difference(now, wanted, normal::neighbour_key, |a, b| a == b);
            let new: BTreeSet<_> = add.iter().map(|item| normal::neighbour_key(item)).collect();
            (remove.into_iter().filter(|gone| !new.contains(&normal::neighbour_key(gone))).collect(), add)
        }
        _ => difference(now, wanted, exact, |_, _| true),
    };
    match section {
        // Of equal scope the kernel lists the youngest IPv6 address first, and prefers it.
        Section::Addresses => {
            add.reverse();
            add.sort_by_key(|item| item.header.first().copied());
            let four = add.iter().take_while(|item| item.header.first() == Some(&2)).count();
            add[..four].reverse();
        }
        Section::Routes => add.sort_by_key(|item| normal::route_order(item)),
        Section::Conntrack => add.sort_by_key(|item| conntrack::is_related(item)),
        // The handle of a parent says where a child goes: roots first.
        Section::Qdiscs => add.sort_by_key(|item| item.header_number(12) != u32::MAX),
        _ => {}
    }
    let removals = remove.into_iter().rev().map(|item| Step::Remove(section, item.clone()));
    removals.chain(add.into_iter().map(|item| Step::Add(section, item.clone()))).collect()
}

fn flatten(item: &Item) -> Vec<(u16, Vec<u8>)> {
    let mut attributes = item.attributes.clone();
    attributes.sort();
    attributes
}

/// What of `now` has to go and what of `wanted` is missing, in their order.
fn difference<'a, K: Ord>(
    now: &'a [Item],
    wanted: &'a [Item],
    key: impl Fn(&Item) -> K,
    same: impl Fn(&Item, &Item) -> bool,
) -> (Vec<&'a Item>, Vec<&'a Item>) {
    let mut here: BTreeMap<K, Vec<(usize, &Item)>> = BTreeMap::new();
    for (at, item) in now.iter().enumerate() {
        here.entry(key(item)).or_default().push((at, item));
    }
    let mut add = Vec::new();
    for item in wanted {
        let found = here.get_mut(&key(item)).and_then(|entries| {
            let place = entries.iter().position(|(_, entry)| same(entry, item))?;
            Some(entries.remove(place))
        });
        if found.is_none() {
            add.push(item);
        }
    }
    let left: BTreeSet<usize> = here.values().flatten().map(|(at, _)| *at).collect();
    (now.iter().enumerate().filter(|(at, _)| left.contains(at)).map(|(_, item)| item).collect(), add)
}

fn links(now: &BTreeMap<u32, Link>, wanted: &BTreeMap<u32, Link>, steps: &mut Vec<Step>) {
    let alike = |link: &Link| {
        let other = wanted.get(&link.index);
        other.is_some_and(|other| {
            (&other.name, &other.kind, other.outside) == (&link.name, &link.kind, link.outside)
                && (other.outside || other.lower == link.lower)
                && is_same_vlan(link, other)
        })
    };
    let mut staying: BTreeSet<u32> = now.values().filter(|link| alike(link)).map(|link| link.index).collect();
    // What is bound to one that goes, goes along.
    loop {
        let bound = |index: &&u32| {
            let lower = now.get(*index).filter(|link| !link.outside).and_then(|link| link.lower);
            lower.is_some_and(|lower| !staying.contains(&lower))
        };
        let Some(index) = staying.iter().find(bound).copied() else { break };
        staying.remove(&index);
    }
    let stays = |link: &Link| staying.contains(&link.index);
    // Upper ones first; a veth's other end goes along.
    let going: Vec<&Link> =
        now.values().filter(|link| link.kind.is_some() && !link.outside && !stays(link)).collect();
    let mut left: BTreeSet<u32> = going.iter().map(|link| link.index).collect();
    let is_veth = |link: &Link| link.kind.as_deref() == Some("veth");
    while let Some(link) = going.iter().find(|link| {
        // Both ends of a veth go at once.
        let ends = [Some(link.index), link.lower.filter(|_| is_veth(link))];
        let is_upper =
            |upper: &&Link| !is_veth(upper) && upper.lower.is_some() && ends.contains(&upper.lower);
        left.contains(&link.index)
            && !going.iter().any(|upper| left.contains(&upper.index) && is_upper(upper))
    }) {
        left.remove(&link.index);
        if is_veth(link) {
            link.lower.map(|peer| left.remove(&peer));
        }
        steps.push(Step::DeleteLink(Box::new((*link).clone())));
    }
    let mut there = staying.clone();
    // What depends on something that is to be made waits for it. A round makes at least one, or nothing can be made.
    loop {
        let mut made = false;
        for link in wanted.values().filter(|link| link.kind.is_some() && !link.outside) {
            let pair = link.kind.as_deref() == Some("veth");
            let ready = pair || link.lower.is_none_or(|lower| there.contains(&lower));
            if there.contains(&link.index) || !ready {
                continue;
            }
            let peer = link.lower.filter(|_| pair).and_then(|peer| wanted.get(&peer));
            there.insert(link.index);
            there.extend(peer.map(|peer| peer.index));
            steps.push(Step::CreateLink(Box::new(link.clone()), peer.cloned().map(Box::new)));
            made = true;
        }
        if !made {
            break;
        }
    }
    // Those that were made now are looked at in the next round, when it is known what they are like.
    for (index, wanted) in wanted {
        let Some(now) = now.get(index).filter(|now| stays(now)) else { continue };
        if !differences(now, wanted).is_empty() {
            steps.push(Step::ChangeLink { now: Box::new(now.clone()), wanted: Box::new(wanted.clone()) });
        }
    }
}

/// The number of a VLAN is given at its birth.
fn is_same_vlan(one: &Link, other: &Link) -> bool {
    const ID: u16 = 1;
    const PROTOCOL: u16 = 5;
    let born = |link: &Link| -> Vec<_> {
        let vlan = link.kind.as_deref() == Some("vlan");
        link.settings.iter().filter(|(kind, _)| vlan && matches!(*kind, ID | PROTOCOL)).cloned().collect()
    };
    born(one) == born(other)
}

/// In what two states of one interface differ, in words. Features and sizes that this kernel does not have do not count.
#[must_use]
pub fn differences(now: &Link, wanted: &Link) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut compare = |differs: bool, what: &'static str| {
        if differs {
            found.push(what);
        }
    };
    compare(now.mac != wanted.mac, "hardware address");
    compare(now.mtu != wanted.mtu, "MTU");
    compare(now.tx_queue != wanted.tx_queue, "transmit queue");
    compare(now.flags != wanted.flags, "flags");
    compare(now.alias != wanted.alias, "alias");
    compare(now.group != wanted.group, "group");
    compare(now.alt_names != wanted.alt_names, "alternative names");
    compare(now.master != wanted.master, "bridge");
    compare(!changed(&now.settings, &wanted.settings).is_empty(), "settings");
    compare(!changed(&now.port, &wanted.port).is_empty(), "settings as a port");
    compare(!changed(&now.segments, &wanted.segments).is_empty(), "sizes of segments");
    compare(!changed(&now.features, &wanted.features).is_empty(), "features");
    found
}

/// The pairs of `wanted` that `now` has with another value.
#[must_use]
pub fn changed<K: PartialEq + Clone, V: PartialEq + Clone>(now: &[(K, V)], wanted: &[(K, V)]) -> Vec<(K, V)> {
    let differs = |(kind, value): &&(K, V)| now.iter().any(|(k, v)| k == kind && v != value);
    wanted.iter().filter(differs).cloned().collect()
}

impl Step {
    /// What it is about, in words: completes the sentence "cannot ...".
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::DeleteLink(link) => format!("delete the interface {}", link.name),
            Self::CreateLink(link, _) => {
                format!("make the interface {} ({})", link.name, link.kind.as_deref().unwrap_or("?"))
            }
            Self::ChangeLink { now, wanted } => {
                format!("give the interface {} its {}", wanted.name, differences(now, wanted).join(", "))
            }
            Self::Write { name, value } => format!("set net/{name} to \"{value}\""),
            Self::Remove(section, item) => format!("remove from the {}: {}", section.name(), describe(item)),
            Self::Add(section, item) => format!("add to the {}: {}", section.name(), describe(item)),
            Self::Replace { .. } => "set the nftables ruleset".to_owned(),
        }
    }
}

/// An entry as a user may find it again.
fn describe(item: &Item) -> String {
    let family = match item.header.first() {
        Some(2) => "IPv4 ",
        Some(10) => "IPv6 ",
        _ => "",
    };
    let addresses: Vec<String> = item
        .attributes
        .iter()
        .filter_map(|(kind, data)| {
            Some(format!(
                "{kind}={}",
                sys::net::message::ip(data).filter(|_| data.len() == 16 || data.len() == 4)?
            ))
        })
        .collect();
    format!("{family}{:02x?} {}", item.header, addresses.join(" "))
}

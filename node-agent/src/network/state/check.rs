//! What a container's network has that cannot be carried, by name.

use image::{Refusal, Subject};

use super::links::{Link, settable};
use super::{MAX_STATE, NetState, Section, normal};
use crate::network::{INSIDE, Mac};

/// Queueing disciplines whose settings are set as they are listed, and that hold no others.
const QDISCS: [&str; 13] = [
    "pfifo",
    "bfifo",
    "pfifo_head_drop",
    "tbf",
    "fq",
    "fq_codel",
    "fq_pie",
    "codel",
    "pie",
    "cake",
    "sfq",
    "choke",
    "etf",
];

fn refusal(reason: String, way_out: &str) -> Refusal {
    Refusal { pid: 0, subject: Subject::Container, reason, way_out: way_out.to_owned() }
}

/// Everything that stands in the way; empty when the state can be carried. `mac` is that of the link that the runtime made,
/// if it made one; `foreign` is what the reader found beyond the sections.
#[must_use]
pub fn refusals(state: &NetState, mac: Option<Mac>, foreign: Vec<(String, &'static str)>) -> Vec<Refusal> {
    let mut found: Vec<Refusal> = foreign
        .into_iter()
        .map(|(what, way_out)| refusal(format!("its network has {what}, which cannot be carried"), way_out))
        .collect();
    let links = state.links.iter().flatten().map(|(_, link)| link);
    let is_own = |link: &&Link| link.outside && link.kind.as_deref() == Some("veth");
    let own = mac.and_then(|mac| {
        let named = links.clone().filter(is_own).find(|link| link.name == INSIDE);
        named.or_else(|| links.clone().filter(is_own).find(|link| link.mac[..] == mac.0[..]))
    });
    if let Some(mac) = mac {
        match own {
            Some(link) if link.name == INSIDE && link.mac[..] == mac.0[..] => {}
            Some(link) if link.name == INSIDE => found.push(refusal(
                format!("the hardware address of its interface {INSIDE} was changed"),
                "change it back, or give it with `mac` at the start",
            )),
            _ => found.push(refusal(
                format!("its interface {INSIDE}, which the runtime made, was renamed or removed"),
                "rename it back",
            )),
        }
    }
    found.extend(links.filter(|link| own.is_none_or(|own| own.index != link.index)).filter_map(of_link));
    for qdisc in state.table(Section::Qdiscs) {
        let kind = normal::qdisc_kind(qdisc);
        if !QDISCS.contains(&kind.as_str()) {
            let reason = format!(
                "the queueing discipline {kind} on interface {} cannot be carried",
                qdisc.header_number(4)
            );
            found.push(refusal(reason, "remove it before the move (tc qdisc del)"));
        }
    }
    for (what, why) in state.nft.iter().flat_map(super::Ruleset::obstacles) {
        found.push(refusal(format!("{what} cannot be carried: {why}"), "remove it before the move"));
    }
    if let Err(error) = state.encode() {
        found.push(refusal(
            format!("{error}, of which at most {MAX_STATE} are carried"),
            "use fewer rules, elements or connections",
        ));
    }
    found
}

fn of_link(link: &Link) -> Option<Refusal> {
    let name = &link.name;
    let kind = link.kind.as_deref();
    if kind.is_none() && name == "lo" {
        return None;
    }
    let Some(kind) = kind else {
        let reason = format!("its interface {name} is a device of the host");
        return Some(refusal(reason, "take it out of the container"));
    };
    if settable(kind).is_none() {
        let reason = format!("its interface {name} is of kind {kind}, which cannot be made again");
        return Some(refusal(reason, "remove it before the move"));
    }
    if link.outside {
        let reason = format!("its interface {name} ({kind}) leads to another network namespace");
        return Some(refusal(reason, "remove it before the move"));
    }
    let obstacle = link.obstacle.as_ref()?;
    Some(refusal(
        format!("its interface {name} cannot be made again: {obstacle}"),
        "remove that before the move",
    ))
}

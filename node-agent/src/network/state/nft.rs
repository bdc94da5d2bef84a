//! A ruleset of nftables: taken apart, made comparable, and put together as one transaction.
//!
//! Expressions are carried as the kernel lists them, whatever they are. Handles are new at the target. See
//! include/uapi/linux/netfilter/nf_tables.h.

use serde::{Deserialize, Serialize};
use sys::net::message::{Attributes, string};
use sys::net::nft::{HEADER, Part};
use sys::net::{Message, message};

use super::item::{Item, flat, nested};

/// Attributes that several parts have under the same number: table and name.
pub(super) const TABLE: u16 = 1;
pub(super) const NAME: u16 = 2;
const TABLE_FLAGS: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_FLAGS: u16 = 10;
const SET_ID: u16 = 10;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_COMPAT: u16 = 5;
const ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_EXPIRES: u16 = 5;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// The flag of an attribute that holds others.
const NESTED: u16 = 0x8000;

/// Bytes of elements in one message: an attribute holds 64 KiB.
const CHUNK: usize = 32 * 1024;

/// The elements of one set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elements {
    /// Family.
    pub family: u8,
    /// Table, with its end.
    pub table: Vec<u8>,
    /// Set.
    pub set: Vec<u8>,
    /// Each one's attributes.
    pub entries: Vec<Vec<u8>>,
}

/// A ruleset, in the order in which it can be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// Tables.
    pub tables: Vec<Item>,
    /// Chains.
    pub chains: Vec<Item>,
    /// Stateful objects.
    pub objects: Vec<Item>,
    /// Flow tables.
    pub flowtables: Vec<Item>,
    /// Sets and maps.
    pub sets: Vec<Item>,
    /// Their elements.
    pub elements: Vec<Elements>,
    /// Rules.
    pub rules: Vec<Item>,
}

/// What a listed part has that can be set again.
fn kept(part: Part) -> &'static [u16] {
    match part {
        // Name, flags, user data.
        Part::Table => &[1, 2, 6],
        // Table, name, hook, policy, type, counters, flags, user data.
        Part::Chain => &[1, 3, 4, 5, 7, 8, 10, 12],
        // Table, chain, expressions, user data.
        Part::Rule => &[1, 2, 4, 7],
        // Table, name, flags, types and lengths, policy, description, timeouts, user data, object, expressions.
        Part::Set => &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18],
        // Table, name, type, data, user data.
        Part::Object => &[1, 2, 3, 4, 8],
        // Table, name, hook, flags.
        Part::Flowtable => &[1, 2, 3, 7],
        Part::Element => &[],
    }
}

/// A listed part without handle, use count and generation.
#[must_use]
pub fn part(part: Part, payload: &[u8]) -> Item {
    let mut item = Item::parse(payload, HEADER);
    // Version and resource: the generation of the list.
    if let Some(rest) = item.header.get_mut(1..) {
        rest.fill(0);
    }
    item.keep(kept(part));
    item
}

fn network_number(data: Option<&[u8]>) -> u32 {
    data.and_then(|data| Some(u32::from_be_bytes(data.get(..4)?.try_into().ok()?))).unwrap_or(0)
}

/// The elements in listed messages, in ascending order, ends of intervals before beginnings: a set of intervals takes them
/// like this, and lists become comparable.
#[must_use]
pub fn elements(set: &Item, listed: &[Vec<u8>]) -> Elements {
    let mut entries: Vec<Vec<u8>> = listed
        .iter()
        .filter_map(|payload| Attributes::after(payload, HEADER).find(ELEMENTS))
        .flat_map(|list| Attributes(list).map(|(_, element)| element.to_vec()))
        .collect();
    let key = |element: &Vec<u8>| {
        let key = Attributes(element).find(ELEMENT_KEY).unwrap_or(&[]).to_vec();
        let is_end = network_number(Attributes(element).find(ELEMENT_FLAGS)) & 1 == 1;
        (key, !is_end)
    };
    entries.sort_by_cached_key(|element| (key(element), element.clone()));
    Elements {
        family: set.header.first().copied().unwrap_or(0),
        table: set.get(TABLE).unwrap_or(&[]).to_vec(),
        set: set.get(NAME).unwrap_or(&[]).to_vec(),
        entries,
    }
}

impl Ruleset {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Without what changes by itself: the time that elements have left.
    #[must_use]
    pub fn still(&self) -> Self {
        let mut still = self.clone();
        for entry in still.elements.iter_mut().flat_map(|set| &mut set.entries) {
            let mut attributes = nested(entry);
            attributes.retain(|(kind, _)| *kind != ELEMENT_EXPIRES);
            *entry = flat(&attributes);
        }
        still
    }

    /// The messages of a transaction that replaces `tables` (of another ruleset) by this one, and what each is for.
    #[must_use]
    pub fn replace(&self, tables: &[Item]) -> Vec<(String, Message)> {
        let mut steps: Vec<(String, Message)> = tables
            .iter()
            .map(|table| {
                let mut message = Part::Table.delete(&table.header);
                message.attr(TABLE, table.get(TABLE).unwrap_or(&[]));
                (format!("delete table {}", label(table, TABLE)), message)
            })
            .collect();
        let create = message::CREATE;
        let mut all = |part: Part, what: &str, items: &[Item], name: u16| {
            for item in items {
                let text = format!("{what} {} of table {}", label(item, name), label(item, TABLE));
                steps.push((text, item.into_message(part.make(create, &item.header))));
            }
        };
        all(Part::Table, "table", &self.tables, TABLE);
        all(Part::Chain, "chain", &self.chains, CHAIN_NAME);
        all(Part::Object, "object", &self.objects, NAME);
        all(Part::Flowtable, "flow table", &self.flowtables, NAME);
        for (id, set) in (1_u32..).zip(&self.sets) {
            let mut message = set.into_message(Part::Set.make(create, &set.header));
            message.attr(SET_ID, &id.to_be_bytes());
            steps.push((format!("set {} of table {}", label(set, NAME), label(set, TABLE)), message));
        }
        steps.extend(self.elements.iter().flat_map(add_elements));
        for rule in self.ordered_rules() {
            let mut message = rule.into_message(Part::Rule.make(create | message::APPEND, &rule.header));
            if let Some(protocol) = compat_protocol(rule) {
                message.attr(RULE_COMPAT, &protocol);
            }
            let names = expression_names(rule).join(", ");
            let what = format!(
                "rule in chain {} of table {} ({names})",
                label(rule, RULE_CHAIN),
                label(rule, TABLE)
            );
            steps.push((what, message));
        }
        steps
    }

    /// Rules of chains without a name of their own first: nothing can be added to such a chain once a rule leads to
    /// it.
    fn ordered_rules(&self) -> Vec<&Item> {
        let bound: Vec<_> = self.chains.iter().filter(|chain| is_bound(chain)).map(chain_key).collect();
        let mut rules: Vec<&Item> = Vec::with_capacity(self.rules.len());
        // A chain that another one leads to has been made after it: last made, first filled.
        for key in bound.iter().rev() {
            rules.extend(self.rules.iter().filter(|rule| rule_chain(rule) == *key));
        }
        rules.extend(self.rules.iter().filter(|rule| !bound.contains(&rule_chain(rule))));
        rules
    }

    /// Why it cannot be made again, if it cannot: (what, why).
    #[must_use]
    pub fn obstacles(&self) -> Vec<(String, &'static str)> {
        /// NFT_TABLE_F_OWNER: goes with the socket that made it.
        const OWNED: u32 = 2;
        /// NFT_SOCKET_CGROUPV2.
        const BY_CGROUP: u32 = 3;
        let mut found = Vec::new();
        for table in &self.tables {
            if network_number(table.get(TABLE_FLAGS)) & OWNED != 0 {
                found.push((
                    format!("nftables table {}", label(table, TABLE)),
                    "it belongs to a netlink socket",
                ));
            }
        }
        for rule in &self.rules {
            let name = || {
                format!("nftables rule in chain {} of table {}", label(rule, RULE_CHAIN), label(rule, TABLE))
            };
            for (expression, data) in expressions(rule) {
                let key = Attributes(&data).find(1);
                if expression == "socket" && network_number(key) == BY_CGROUP {
                    found.push((name(), "it matches a cgroup by a number that is another one on the target"));
                }
            }
        }
        found
    }
}

fn is_bound(chain: &Item) -> bool {
    const BINDING: u32 = 4;
    network_number(chain.get(CHAIN_FLAGS)) & BINDING != 0
}

type ChainKey = (Option<u8>, Vec<u8>, Vec<u8>);

fn chain_key(chain: &Item) -> ChainKey {
    let of = |kind| chain.get(kind).unwrap_or(&[]).to_vec();
    (chain.header.first().copied(), of(TABLE), of(CHAIN_NAME))
}

fn rule_chain(rule: &Item) -> ChainKey {
    let of = |kind| rule.get(kind).unwrap_or(&[]).to_vec();
    (rule.header.first().copied(), of(TABLE), of(RULE_CHAIN))
}

fn label(item: &Item, kind: u16) -> String {
    item.get(kind).map(string).unwrap_or_default()
}

fn add_elements(set: &Elements) -> Vec<(String, Message)> {
    let mut steps = Vec::new();
    let mut rest = &set.entries[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|entry| {
            bytes += entry.len() + 4;
            bytes <= CHUNK
        });
        let count = fits.count().max(1);
        let (now, later) = rest.split_at(count);
        rest = later;
        let mut message = Part::Element.make(message::CREATE, &[set.family, 0, 0, 0]);
        message.attr(TABLE, &set.table).attr(NAME, &set.set).nest(ELEMENTS | NESTED, |list| {
            for entry in now {
                list.attr(LIST_ELEMENT | NESTED, entry);
            }
        });
        steps
            .push((format!("elements of set {} of table {}", string(&set.set), string(&set.table)), message));
    }
    steps
}

/// The expressions of a rule: name, content.
fn expressions(rule: &Item) -> Vec<(String, Vec<u8>)> {
    Attributes(rule.get(RULE_EXPRESSIONS).unwrap_or(&[]))
        .filter_map(|(_, element)| {
            let element = Attributes(element);
            let data = element.find(EXPRESSION_DATA).unwrap_or(&[]).to_vec();
            Some((string(element.find(EXPRESSION_NAME)?), data))
        })
        .collect()
}

fn expression_names(rule: &Item) -> Vec<String> {
    expressions(rule).into_iter().map(|(name, _)| name).collect()
}

/// A rule of iptables-nft with a match or target of the older packet filter: these want to be told the protocol, which
/// the kernel does not list. The rule itself compares it, in front of them: NFTA_RULE_COMPAT, or `None`.
fn compat_protocol(rule: &Item) -> Option<Vec<u8>> {
    const L4PROTO: u32 = 16;
    const NETWORK_HEADER: u32 = 1;
    const PROTOCOL_AT: u32 = 9;
    const NOT_EQUAL: u32 = 1;
    const INVERTED: u32 = 2;
    let all = expressions(rule);
    if !all.iter().any(|(name, _)| name == "match" || name == "target") {
        return None;
    }
    let mut loaded = false;
    let (mut protocol, mut flags) = (0, 0);
    for (name, data) in &all {
        let at = |kind| network_number(Attributes(data).find(kind));
        match name.as_str() {
            // Register, key; base, offset.
            "meta" => loaded = at(2) == L4PROTO,
            "payload" => loaded = at(2) == NETWORK_HEADER && at(3) == PROTOCOL_AT,
            "cmp" if loaded => {
                let value = Attributes(data).find(3).and_then(|data| Attributes(data).find(1));
                protocol = value.and_then(|value| value.first()).copied().map_or(0, u32::from);
                flags = if at(2) == NOT_EQUAL { INVERTED } else { 0 };
                break;
            }
            _ => loaded = false,
        }
    }
    Some(flat(&[(1, protocol.to_be_bytes().to_vec()), (2, u32::to_be_bytes(flags).to_vec())]))
}

//! The plan as a model: carried out on plain values it leads to what was wanted.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::item::Item;
use super::plan::{Step, plan};
use super::{Link, MAX_STATE, NetState, Ruleset, Section, Setting, conntrack, normal};

type Keep = fn(&[u8]) -> Option<Item>;

/// Tables whose entries are all alike to the plan.
const PLAIN: [Section; 4] = [Section::Nexthops, Section::Rules, Section::Forwarding, Section::Qdiscs];

fn item(header: usize) -> impl Strategy<Value = Item> {
    // Few values, so that two states have some in common.
    let attribute = (1_u16..4, prop::collection::vec(0_u8..3, 4));
    (prop::collection::vec(0_u8..3, header), prop::collection::vec(attribute, 0..3))
        .prop_map(|(header, attributes)| Item { header, attributes })
}

/// Interfaces of which each is bound to lower numbers, or is half of a veth.
fn links() -> impl Strategy<Value = BTreeMap<u32, Link>> {
    prop::collection::vec((0_u8..3, 0_u32..3, 0_u32..2, any::<bool>()), 0..8).prop_map(|shapes| {
        let mut links = BTreeMap::from([(1, Link { index: 1, name: "lo".into(), ..Link::default() })]);
        for (kind, mtu, mac, bound) in shapes {
            let index = 2 + u32::try_from(links.len()).unwrap();
            let before = links.values().next_back().map(|link| link.index);
            let base = Link { index, mtu, mac: vec![u8::try_from(mac).unwrap()], ..Link::default() };
            let made = match kind {
                0 => vec![
                    Link {
                        name: format!("a{index}"),
                        kind: Some("veth".into()),
                        lower: Some(index + 1),
                        ..base.clone()
                    },
                    Link {
                        index: index + 1,
                        name: format!("b{index}"),
                        kind: Some("veth".into()),
                        lower: Some(index),
                        ..base
                    },
                ],
                1 => vec![Link { name: format!("br{index}"), kind: Some("bridge".into()), ..base }],
                _ => {
                    let lower = before.filter(|_| bound).or(Some(1));
                    vec![Link { name: format!("m{index}"), kind: Some("macvlan".into()), lower, ..base }]
                }
            };
            links.extend(made.into_iter().map(|link| (link.index, link)));
        }
        links
    })
}

fn state() -> impl Strategy<Value = NetState> {
    let list = |section: &Section| !matches!(section, Section::Links | Section::Sysctls | Section::Nft);
    let lists: Vec<Section> = Section::ALL.into_iter().filter(list).collect();
    let items = prop::collection::vec(prop::collection::vec(item(12), 0..8), lists.len());
    let tables = items.prop_map(move |items| lists.iter().copied().zip(items).collect::<BTreeMap<_, _>>());
    let setting = (0_u8..3, any::<bool>()).prop_map(|(value, own)| Setting { value: value.to_string(), own });
    let sysctls = prop::collection::btree_map("(ipv4/conf/(all|default|a)/x|core/y|z)", setting, 0..5);
    let nft =
        prop::collection::vec(item(4), 0..3).prop_map(|tables| Ruleset { tables, ..Ruleset::default() });
    (links(), sysctls, nft, tables).prop_map(|(links, sysctls, nft, tables)| NetState {
        links: Some(links),
        sysctls: Some(sysctls),
        nft: Some(nft),
        tables,
    })
}

/// Carries out steps as a kernel would; fails where a kernel would.
fn carry_out(state: &mut NetState, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::DeleteLink(link) => {
                let links = state.links.as_mut().unwrap();
                assert!(links.remove(&link.index).is_some(), "{} is not there", link.name);
                if link.kind.as_deref() == Some("veth") {
                    links.remove(&link.lower.unwrap());
                }
                // What was bound to it goes along.
                loop {
                    let gone = |other: &&Link| {
                        let macvlan = other.kind.as_deref() == Some("macvlan");
                        macvlan && other.lower.is_some_and(|lower| !links.contains_key(&lower))
                    };
                    let Some(index) = links.values().find(gone).map(|link| link.index) else { break };
                    links.remove(&index);
                }
            }
            Step::CreateLink(link, peer) => {
                let links = state.links.as_mut().unwrap();
                if link.kind.as_deref() != Some("veth")
                    && let Some(lower) = link.lower
                {
                    assert!(links.contains_key(&lower), "{} has nothing below it", link.name);
                }
                for link in [Some(link), peer].into_iter().flatten() {
                    // Made with defaults.
                    let made = Link { mtu: 9, ..*link };
                    assert!(links.insert(made.index, made).is_none(), "the number is taken");
                }
            }
            Step::ChangeLink { wanted, .. } => {
                assert!(state.links.as_mut().unwrap().insert(wanted.index, *wanted).is_some());
            }
            Step::Write { name, value } => {
                state.sysctls.as_mut().unwrap().insert(name, Setting { value, own: true });
            }
            Step::Remove(section, item) => {
                let table = state.tables.entry(section).or_default();
                let at = table.iter().position(|found| *found == item).expect("it is there");
                table.remove(at);
            }
            Step::Add(section, item) => {
                let table = state.tables.entry(section).or_default();
                // These replace what is there for the same thing.
                match section {
                    Section::Addresses => {
                        table.retain(|found| normal::address_key(found) != normal::address_key(&item));
                    }
                    Section::Neighbours => {
                        table.retain(|found| normal::neighbour_key(found) != normal::neighbour_key(&item));
                    }
                    _ => {}
                }
                table.push(item);
            }
            Step::Replace { tables, wanted } => {
                assert_eq!(state.nft.as_ref().unwrap().tables, tables);
                state.nft = Some(*wanted);
            }
        }
    }
}

/// Entries for one thing only once, as a kernel has them.
fn possible(mut state: NetState) -> NetState {
    for (section, items) in &mut state.tables {
        let mut seen = std::collections::BTreeSet::new();
        items.retain(|item| match section {
            Section::Addresses => seen.insert(format!("{:?}", normal::address_key(item))),
            Section::Neighbours => seen.insert(format!("{:?}", normal::neighbour_key(item))),
            Section::Conntrack => seen.insert(format!("{:?}", conntrack::key(item))),
            _ => true,
        });
    }
    state
}

proptest! {
    #[test]
    fn a_plan_leads_to_what_was_wanted(now in state(), wanted in state()) {
        let (mut now, wanted) = (possible(now), possible(wanted));
        // As the appliers do: again and again, until nothing is missing.
        for round in 0.. {
            let steps = plan(&now, &wanted);
            if steps.is_empty() {
                break;
            }
            prop_assert!(round < 4, "{steps:#?}");
            carry_out(&mut now, steps);
        }
        prop_assert_eq!(&now.links, &wanted.links);
        prop_assert_eq!(&now.nft, &wanted.nft);
        for section in PLAIN.iter().filter(|section| wanted.tables.contains_key(section)) {
            let sorted = |state: &NetState| {
                let mut items: Vec<_> = state.table(*section).to_vec();
                for item in &mut items {
                    item.attributes.sort();
                }
                items.sort();
                items
            };
            prop_assert_eq!(sorted(&now), sorted(&wanted));
        }
        for (name, setting) in wanted.sysctls.unwrap() {
            let here = now.sysctls.as_ref().unwrap().get(&name);
            prop_assert!(here.map_or(!setting.own, |here| here.value == setting.value), "{}", name);
        }
    }

    #[test]
    fn nothing_is_done_to_an_equal_state(state in state()) {
        let state = possible(state);
        prop_assert_eq!(plan(&state, &state), vec![]);
        prop_assert!(state.since(&state).is_empty());
    }

    #[test]
    fn changes_on_top_of_the_old_state_are_the_new_one(old in state(), new in state()) {
        let mut both = old.clone();
        both.update(new.since(&old));
        let mut expected = new;
        // A table that is no longer spoken of stays.
        for (section, items) in old.tables {
            expected.tables.entry(section).or_insert(items);
        }
        prop_assert_eq!(both, expected);
    }

    #[test]
    fn states_survive_their_bytes(state in state()) {
        prop_assert_eq!(NetState::decode(&state.encode().unwrap()).unwrap(), state);
    }

    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 1..600)) {
        let _ = NetState::decode(&bytes);
        bytes[0] = super::VERSION;
        if let Ok(state) = NetState::decode(&bytes) {
            let _ = plan(&state, &state);
        }
    }

    #[test]
    fn any_entry_of_a_kernel_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let readers: [Keep; 7] = [
            normal::address,
            normal::nexthop,
            normal::route,
            normal::rule,
            normal::neighbour,
            normal::forwarding,
            normal::qdisc,
        ];
        for read in readers {
            let _ = read(&bytes);
        }
        let _ = Link::parse(&bytes);
        let connection = conntrack::connection(&bytes);
        let _ = (conntrack::create(&connection), conntrack::remove(&connection));
    }
}

#[test]
fn other_versions_and_too_much_are_refused() {
    let bytes = NetState::default().encode().unwrap();
    assert!(NetState::decode(&bytes).unwrap().is_empty());
    let mut other = bytes.clone();
    other[0] += 1;
    assert!(NetState::decode(&other).unwrap_err().to_string().contains("version 2"));
    assert!(NetState::decode(&[]).is_err());
    assert!(NetState::decode(&[bytes.clone(), vec![0]].concat()).is_err());
    let large = vec![super::VERSION; MAX_STATE + 1];
    assert!(NetState::decode(&large).unwrap_err().to_string().contains("more than"));
}

//! Reading a network namespace.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use sys::Errno;
use sys::net::ethtool::Ethtool;
use sys::net::nft::Part;
use sys::net::table::Table;
use sys::net::{Netlink, xtables};
use sys::ns::NetnsThread;

use super::item::Item;
use super::links::Link;
use super::nft::{self, Ruleset};
use super::{NetState, Section, Setting, conntrack, normal, sysctl};

/// Reads one network namespace, again and again: a thread in it, with its sockets open. It keeps the namespace.
#[derive(Debug)]
pub struct Reader {
    thread: NetnsThread,
    sockets: Arc<Mutex<Sockets>>,
}

/// What asks the kernel.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) route: Netlink,
    /// `None` when the kernel has no netfilter.
    pub(super) filter: Option<Netlink>,
    pub(super) ethtool: Ethtool,
    /// What a fresh namespace has, and which settings were seen here.
    fresh: Option<BTreeMap<String, String>>,
    seen: sysctl::Watched,
}

/// Makes a listed entry comparable.
type Keep = fn(&[u8]) -> Option<Item>;

/// Which settings are read.
#[derive(Clone, Copy, Debug)]
pub enum Settings<'a> {
    /// All that differ from a fresh namespace's.
    Carried,
    /// The same ones, by the names that were seen the last time.
    Again,
    /// Those that another namespace carries.
    Like(&'a BTreeMap<String, Setting>),
}

impl Reader {
    /// Opens what is needed in that namespace.
    ///
    /// # Errors
    /// `EMFILE`, `EPERM`.
    pub fn open(netns: BorrowedFd<'_>) -> sys::Result<Self> {
        let thread = NetnsThread::start(netns)?;
        let sockets = thread.run(|| {
            let filter = match Netlink::open_netfilter() {
                Err(Errno::EPROTONOSUPPORT) => None,
                other => Some(other?),
            };
            let (route, ethtool) = (Netlink::open()?, Ethtool::open()?);
            Ok::<_, Errno>(Sockets { route, filter, ethtool, fresh: None, seen: sysctl::Watched::default() })
        })??;
        Ok(Self { thread, sockets: Arc::new(Mutex::new(sockets)) })
    }

    /// Runs `work` in the namespace, with its sockets.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Sockets) -> T + Send + 'static,
    ) -> sys::Result<T> {
        let sockets = Arc::clone(&self.sockets);
        self.thread.run(move || work(&mut sockets.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Reads these sections.
    ///
    /// # Errors
    /// The kernel's; `EAGAIN` a table kept changing.
    pub fn read(&self, sections: &[Section], settings: Settings<'_>) -> sys::Result<NetState> {
        let sections = sections.to_vec();
        let (like, again) = match settings {
            Settings::Like(map) => (Some(map.clone()), false),
            Settings::Again => (None, true),
            Settings::Carried => (None, false),
        };
        self.run(move |sockets| sockets.read(&sections, like.as_ref(), again))?
    }

    /// What is in use here that cannot be carried and belongs to no section: (what, way out).
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn foreign(&self) -> sys::Result<Vec<(String, &'static str)>> {
        self.run(Sockets::foreign)?
    }
}

impl Sockets {
    fn read(
        &mut self,
        sections: &[Section],
        like: Option<&BTreeMap<String, Setting>>,
        again: bool,
    ) -> sys::Result<NetState> {
        let mut state = NetState::default();
        for section in sections {
            match section {
                Section::Links => state.links = Some(self.links()?),
                Section::Sysctls => state.sysctls = Some(self.settings(like, again)?),
                Section::Nft => state.nft = Some(self.ruleset()?),
                other => {
                    let items = self.table(*other)?;
                    state.tables.insert(*other, items);
                }
            }
        }
        Ok(state)
    }

    fn links(&mut self) -> sys::Result<BTreeMap<u32, Link>> {
        let mut links = BTreeMap::new();
        for entry in self.route.entries(Table::Links)? {
            let Some(mut link) = Link::parse(&entry) else { continue };
            link.features = match self.ethtool.features(&link.name) {
                Err(Errno::EOPNOTSUPP | Errno::ENODEV) => Vec::new(),
                other => other?,
            };
            links.insert(link.index, link);
        }
        Ok(links)
    }

    fn settings(
        &mut self,
        like: Option<&BTreeMap<String, Setting>>,
        again: bool,
    ) -> sys::Result<BTreeMap<String, Setting>> {
        if let Some(like) = like {
            let now = sysctl::Watched::by_name(like.keys()).read();
            let setting = |(name, value): (String, String)| {
                let own = like.get(&name).is_some_and(|wanted| wanted.own);
                (name, Setting { value, own })
            };
            return Ok(now.into_iter().map(setting).collect());
        }
        if self.fresh.is_none() {
            self.fresh = Some(sysctl::fresh()?);
        }
        let now = if again {
            self.seen.read()
        } else {
            let now = sysctl::list();
            self.seen = sysctl::Watched::open(now.keys());
            now
        };
        Ok(sysctl::carried(&now, self.fresh.as_ref().unwrap_or(&BTreeMap::new())))
    }

    fn table(&mut self, section: Section) -> sys::Result<Vec<Item>> {
        let (tables, keep): (&[Table], Keep) = match section {
            Section::Addresses => (&[Table::Addresses], normal::address),
            Section::Nexthops => (&[Table::Nexthops], normal::nexthop),
            Section::Routes => (&[Table::Routes], normal::route),
            Section::Rules => (&[Table::Rules4, Table::Rules6], normal::rule),
            Section::Neighbours => (&[Table::Neighbours, Table::Proxies], normal::neighbour),
            Section::Forwarding => (&[Table::Forwarding], normal::forwarding),
            Section::Qdiscs => (&[Table::Qdiscs], normal::qdisc),
            Section::Conntrack => {
                let Some(filter) = &mut self.filter else { return Ok(Vec::new()) };
                // The list goes through a table of the whole host, which takes milliseconds.
                if sys::net::sysctl("netfilter/nf_conntrack_count").is_ok_and(|count| count == "0") {
                    return Ok(Vec::new());
                }
                return Ok(filter.connections()?.iter().map(|entry| conntrack::connection(entry)).collect());
            }
            Section::Links | Section::Sysctls | Section::Nft => return Ok(Vec::new()),
        };
        let mut items = Vec::new();
        for table in tables {
            items.extend(self.route.entries(*table)?.iter().filter_map(|entry| keep(entry)));
        }
        Ok(items)
    }

    /// The whole ruleset, of one generation.
    fn ruleset(&mut self) -> sys::Result<Ruleset> {
        let Some(filter) = &mut self.filter else { return Ok(Ruleset::default()) };
        for _ in 0..16 {
            let before = filter.nft_generation()?;
            if before.is_none() {
                return Ok(Ruleset::default());
            }
            let mut rules = Ruleset::default();
            let tables = list(filter, Part::Table)?;
            if !tables.is_empty() {
                let sets = list(filter, Part::Set)?;
                for set in &sets {
                    let (family, of) =
                        (set.header.first().copied().unwrap_or(0), |kind| set.get(kind).unwrap_or(&[]));
                    let listed = match filter.nft_elements(family, of(nft::TABLE), of(nft::NAME)) {
                        // Gone meanwhile: the generation is another one.
                        Err(Errno::ENOENT) => Vec::new(),
                        other => other?,
                    };
                    let elements = nft::elements(set, &listed);
                    if !elements.entries.is_empty() {
                        rules.elements.push(elements);
                    }
                }
                rules.chains = list(filter, Part::Chain)?;
                rules.objects = list(filter, Part::Object)?;
                rules.flowtables = list(filter, Part::Flowtable)?;
                rules.rules = list(filter, Part::Rule)?;
                rules.sets = sets;
                rules.tables = tables;
            }
            if filter.nft_generation()? == before {
                return Ok(rules);
            }
        }
        Err(Errno::EAGAIN)
    }

    fn foreign(&mut self) -> sys::Result<Vec<(String, &'static str)>> {
        const OTHER_FAMILIES: &str = "remove them before the move";
        let mut found: Vec<(String, &'static str)> = xtables::used()?
            .into_iter()
            .map(|table| {
                (
                    format!("rules of iptables-legacy in table {table}"),
                    "use iptables-nft or nft, or remove them",
                )
            })
            .collect();
        if Netlink::has_ipsec()? {
            found.push(("IPsec policies or associations".to_owned(), OTHER_FAMILIES));
        }
        if let Some(filter) = &mut self.filter {
            if filter.has_ip_sets()? {
                found.push(("IP sets".to_owned(), "use sets of nftables, or remove them"));
            }
            if !filter.expected()?.is_empty() {
                found
                    .push(("connections that a tracking helper expects".to_owned(), "try again in a moment"));
            }
        }
        let routes = self.route.entries(Table::Routes)?;
        if routes.iter().any(|route| !matches!(route.first(), Some(2 | 10))) {
            found.push(("routes of MPLS or multicast routing".to_owned(), OTHER_FAMILIES));
        }
        Ok(found)
    }
}

fn list(filter: &mut Netlink, part: Part) -> sys::Result<Vec<Item>> {
    Ok(filter.nft_list(part)?.iter().map(|payload| nft::part(part, payload)).collect())
}

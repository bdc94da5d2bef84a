//! A network namespace to fill and to compare.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Command, Output};

use node_agent::network::Mac;
use node_agent::network::state::apply::{ApplyError, apply};
use node_agent::network::state::check::refusals;
use node_agent::network::state::plan::plan;
use node_agent::network::state::read::{Reader, Settings};
use node_agent::network::state::{NetState, Section};
use serde_json::Value;
use sys::net::Netlink;
use sys::net::link::NewLink;

use crate::common::{self, chain, unique};

/// Hardware address of the link that stands for the runtime's.
pub(crate) const MAC: &str = "02:00:00:00:00:77";

/// A network namespace with loopback and a veth `eth0` (number 7) to this one, removed when it is dropped.
pub(crate) struct Net {
    pub(crate) name: String,
    host: String,
}

impl Net {
    pub(crate) fn new() -> Self {
        let id = unique("")[1..7].to_owned();
        let net = Self { name: format!("gtn{id}"), host: format!("gth{id}") };
        common::ip(&format!("netns add {}", net.name));
        let netns = File::open(format!("/run/netns/{}", net.name)).unwrap();
        let inside = NewLink {
            name: "eth0",
            mac: Some([2, 0, 0, 0, 0, 0x77]),
            index: Some(7),
            netns: Some(netns.as_fd()),
            mtu: None,
        };
        Netlink::open()
            .unwrap()
            .add_veth(&inside, &NewLink { name: &net.host, ..NewLink::default() })
            .unwrap();
        common::ip(&format!("link set {} up", net.host));
        net.must("ip link set lo up");
        net.must("ip link set eth0 up");
        net
    }

    pub(crate) fn run(&self, command: &str) -> Output {
        Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", command]).output().unwrap()
    }

    pub(crate) fn must(&self, command: &str) -> String {
        let output = self.run(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    pub(crate) fn reader(&self) -> Reader {
        let netns = File::open(format!("/run/netns/{}", self.name)).unwrap();
        Reader::open(netns.as_fd()).unwrap()
    }

    pub(crate) fn state(&self) -> NetState {
        self.reader().read(&Section::ALL, Settings::Carried).unwrap()
    }

    pub(crate) fn refused(&self) -> Vec<String> {
        let reader = self.reader();
        let state = reader.read(&Section::ALL, Settings::Carried).unwrap();
        let mac: Mac = MAC.parse().unwrap();
        let found = refusals(&state, Some(mac), reader.foreign().unwrap());
        found.iter().map(ToString::to_string).collect()
    }

    /// What the tools show of it, without what only counts or passes.
    pub(crate) fn shown(&self) -> Vec<(&'static str, String)> {
        const COMMANDS: [&str; 9] = [
            "ip -d -j link",
            "ip -d -j addr",
            "ip -j -N route show table all",
            "ip -j -N -6 route show table all",
            "ip -j -N rule; ip -j -N -6 rule",
            "ip -j neigh show nud permanent; ip -j neigh show nud stale; ip -j neigh show proxy",
            "bridge -j fdb",
            "tc -j qdisc",
            "nft -j list ruleset",
        ];
        COMMANDS.into_iter().map(|command| (command, plain(&self.must(command)))).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // The end of the veth here goes along, at once or in a moment.
        for args in [["link", "del", &self.host], ["netns", "del", &self.name]] {
            let _ = Command::new("ip").args(args).output();
        }
    }
}

/// JSON of a tool without what is another one in each namespace, in an order of its own.
pub(crate) fn plain(text: &str) -> String {
    const PASSING: [&str; 27] = [
        "handle",
        "metainfo",
        "expires",
        "link_netnsid",
        "link_index",
        "used",
        "probes",
        "hello_timer",
        "gc_timer",
        "tcn_timer",
        "topology_change_timer",
        "message_age_timer",
        "forward_delay_timer",
        "hold_timer",
        "topology_change_detected",
        "valid_life_time",
        "preferred_life_time",
        "num_tx_queues",
        "num_rx_queues",
        "bc_queue_len_used",
        "refcnt",
        "fdb_n_learned",
        "tentative",
        "nodad",
        "operstate",
        "tso_max_size",
        "cstamp",
    ];
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| !PASSING.contains(&key.as_str()));
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    // Groups that an interface listens to; what a bridge learned; what follows from an address
    // that is no longer examined for duplicates.
    let multicast = |line: &str| {
        line.contains("\"dst\":\"fe80") && line.contains("\"table\":\"255\"")
            || line.contains("\"state\":\"\"")
            || line.contains("\"mac\":\"33:33")
            || line.contains("\"mac\":\"01:00:5e")
    };
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut shown = Vec::new();
    for document in documents {
        let mut document = document.unwrap();
        strip(&mut document);
        if let Some(list) = document.as_array() {
            // Lists of the kernel come in the order of hash tables here and there.
            let mut lines: Vec<String> =
                list.iter().map(ToString::to_string).filter(|line| !multicast(line)).collect();
            lines.sort();
            shown.push(lines.join("\n"));
        } else {
            shown.push(document.to_string());
        }
    }
    shown.join("\n--\n")
}

/// Both show the same.
pub(crate) fn same(one: &Net, other: &Net) {
    for ((what, before), (_, after)) in one.shown().into_iter().zip(other.shown()) {
        let lines = |text: &str, without: &str| -> Vec<String> {
            text.lines()
                .filter(|line| !without.lines().any(|other| other == *line))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(lines(&before, &after), lines(&after, &before), "{what}");
        assert_eq!(before, after, "{what}");
    }
}

pub(crate) fn explain(error: &ApplyError) -> String {
    chain(error)
}

/// Makes the state of `source` in a fresh namespace by way of its bytes, and compares what the tools show.
pub(crate) fn carry(source: &Net) -> Net {
    let state = source.state();
    let bytes = state.encode().unwrap();
    let target = Net::new();
    let reader = target.reader();
    let wanted = NetState::decode(&bytes).unwrap();
    assert_eq!(wanted, state);
    apply(&reader, &wanted).unwrap_or_else(|error| panic!("{}", explain(&error)));
    same(source, &target);
    // Read there, it is the same state, so that it can move on or back.
    let there = target.state();
    let left: Vec<String> = plan(&there, &state).iter().map(|step| step.text()).collect();
    assert_eq!(left, Vec::<String>::new());
    // Nothing is done a second time.
    apply(&reader, &wanted).unwrap();
    target
}

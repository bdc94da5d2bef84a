//! What is refused, what a failed arrival leaves, and what the pause pays.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use node_agent::network::state::apply::apply;
use node_agent::network::state::read::Settings;
use node_agent::network::state::{NetState, Section};
use node_agent::runtime::{ContainerName, MovingNode};
use node_agent::session::clocks::Distance;
use node_agent::session::ports::{HostState, Incoming, Node as _, PortError};

use crate::common::{self, Lan, Node, chain, request, unique};
use crate::support::{MAC, Net, explain};

#[test]
fn what_cannot_be_made_again_is_refused_by_name() {
    let net = Net::new();
    let expect = |command: &str, word: &str, undo: &str| {
        net.must(command);
        let refused = net.refused();
        assert!(refused.len() == 1 && refused[0].contains(word), "{command}: {refused:?}");
        net.must(undo);
        assert_eq!(net.refused(), Vec::<String>::new(), "{undo}");
    };
    expect(
        "ip link add x0 type vxlan id 7 dstport 4789 local 10.0.0.1",
        "x0 is of kind vxlan",
        "ip link del x0",
    );
    expect(
        "ip link set eth0 address 02:00:00:00:00:78",
        "hardware address of its interface eth0",
        &format!("ip link set eth0 address {MAC}"),
    );
    expect(
        "ip link set eth0 name net0",
        "eth0, which the runtime made, was renamed",
        "ip link set net0 name eth0; ip link set eth0 up",
    );
    expect(
        "iptables-legacy -A INPUT -s 1.2.3.4 -j DROP",
        "iptables-legacy in table filter",
        "iptables-legacy -F",
    );
    expect(
        "ip6tables-legacy -P FORWARD DROP",
        "iptables-legacy in table filter (ip6_tables)",
        "ip6tables-legacy -P FORWARD ACCEPT",
    );
    expect(
        "ip xfrm policy add src 10.0.0.0/24 dst 10.0.1.0/24 dir out tmpl src 10.0.0.1 dst 10.0.1.1 proto esp mode tunnel",
        "IPsec",
        "ip xfrm policy flush",
    );
    expect("ipset create some hash:ip", "IP sets", "ipset destroy some");
    expect("ip tuntap add dev t0 mode tap", "t0 is of kind tun", "ip link del t0");
    expect("tc qdisc add dev eth0 clsact", "clsact", "tc qdisc del dev eth0 clsact");
    let other = Net::new();
    net.must(&format!("ip link add out type veth peer name in0 netns {}", std::process::id()));
    let refused = net.refused();
    assert!(
        refused.len() == 1 && refused[0].contains("out (veth) leads to another network namespace"),
        "{refused:?}"
    );
    net.must("ip link del out");
    drop(other);
}

/// Ten interfaces, a hundred routes, two hundred rules: prints what the pause pays. A ratio of two parts of one run is
/// what holds anywhere; the times are of this machine and build.
#[test]
fn what_ten_interfaces_a_hundred_routes_and_two_hundred_rules_cost() {
    use std::fmt::Write as _;
    let net = Net::new();
    let mut script = String::from("ip addr add 10.9.0.2/16 dev eth0\n");
    for n in 0..4 {
        writeln!(
            script,
            "ip link add a{n} type veth peer name b{n}; ip link set a{n} up; ip link set b{n} up"
        )
        .unwrap();
    }
    writeln!(script, "ip link add br0 type bridge; ip link set a0 master br0; ip link set br0 up").unwrap();
    for n in 0..100 {
        writeln!(script, "ip route add 172.16.{n}.0/24 via 10.9.0.{}", n + 3).unwrap();
    }
    let rules: String = (0..200).fold(String::new(), |mut all, n| {
        writeln!(all, "ip saddr 10.1.0.{n} tcp dport {} counter accept;", 1000 + n).unwrap();
        all
    });
    writeln!(script, "nft 'table ip t {{ chain c {{ type filter hook input priority 0; {rules} }}\n}}'")
        .unwrap();
    net.must(&script);
    // IPv6 examines its addresses for duplicates first.
    common::wait_for("every address is settled", || !net.must("ip -6 addr").contains("tentative"));
    let source = net.reader();
    let told = source.read(&Section::ALL, Settings::Carried).unwrap();
    let target = Net::new();
    let reader = target.reader();
    let began = Instant::now();
    apply(&reader, &told).unwrap_or_else(|error| panic!("{}", explain(&error)));
    let whole = began.elapsed();
    // In the pause: read again, compare, and set counters that have counted.
    net.must("ping -c1 -W1 10.9.0.2 >/dev/null; nft add rule ip t c counter accept");
    let began = Instant::now();
    let now = source.read(&Section::ALL, Settings::Again).unwrap();
    let read = began.elapsed();
    let mut each = String::new();
    for section in Section::ALL {
        let began = Instant::now();
        source.read(&[section], Settings::Again).unwrap();
        write!(each, " {} {:.2}", section.name(), began.elapsed().as_secs_f64() * 1e3).unwrap();
    }
    let changes = now.since(&told);
    let size = changes.encode().unwrap().len();
    let began = Instant::now();
    apply(&reader, &changes).unwrap_or_else(|error| panic!("{}", explain(&error)));
    let set = began.elapsed();
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    println!(
        "whole state set before the pause in {:.1} ms; in the pause read in {:.1} ms (of it, ms:{each}), {size} bytes of {:?}, set in {:.1} ms",
        ms(whole),
        ms(read),
        changes.sections(),
        ms(set)
    );
    assert!(changes.sections().contains(&Section::Nft) && !changes.sections().contains(&Section::Routes));
    assert!(read + set < whole, "what changed costs less than everything: {read:?} + {set:?}, {whole:?}");
}

/// A container with a link, and what its source says of it.
fn leaving(lan: &Lan, node: &Node) -> (ContainerName, Vec<u8>) {
    let bundle = node.bundle(&["sleep", "1000"]);
    let name = ContainerName::new(unique("n")).unwrap();
    let mut request = request(&name, &bundle);
    request.ip = Some(format!("{}/24", lan.address(2)).parse().unwrap());
    node.runtime.run(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let pid = node.runtime.get(&name).unwrap().pid.unwrap();
    let script = "ip link add va index 50 type veth peer name vb index 51; ip addr add 192.0.2.1/24 dev va; \
        nft add table ip t; nft add chain ip t c; nft add rule ip t c counter drop";
    let made = Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "sh", "-ec", script]).status();
    assert!(made.unwrap().success());
    let mut source = MovingNode::new(Arc::new(node.reopened())).source(name.as_str()).unwrap();
    assert_eq!(source.host_refusals().unwrap(), vec![]);
    let spec = source.spec().unwrap();
    source.begin_final_state().unwrap();
    assert_eq!(source.final_state().unwrap(), vec![], "nothing has changed meanwhile");
    (name, spec)
}

fn arrive(node: &Node, name: &ContainerName, spec: Vec<u8>) -> Result<i32, PortError> {
    let incoming = Incoming {
        container: name.to_string(),
        migration: "m-1".to_owned(),
        epoch: 7,
        spec,
        clocks: Distance::default(),
    };
    let mut copy = MovingNode::new(Arc::new(node.reopened())).incoming(&incoming)?;
    let pid = copy.options()?.root.pid;
    let show = "ip -o link show va; nft list ruleset; ip addr show eth0";
    let shown =
        Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "sh", "-ec", show]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("50: va@vb") && shown.contains("counter packets 0 bytes 0 drop"), "{shown}");
    copy.discard()?;
    Ok(pid)
}

/// The links of this network namespace.
fn links() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("gv"))
        .collect();
    names.sort();
    names
}

#[test]
fn an_arrival_that_the_target_cannot_take_is_refused_and_leaves_nothing() {
    let lan = Lan::new();
    let (source, target) = (Node::new(Some(lan.bridge.clone())), Node::new(Some(lan.bridge.clone())));
    let (name, spec) = leaving(&lan, &source);
    let own = source.runtime.record(&name).unwrap().link;
    let others = || -> Vec<String> {
        links()
            .into_iter()
            .filter(|link| *link == own || target.runtime.names().unwrap().is_empty())
            .collect()
    };
    arrive(&target, &name, spec.clone()).unwrap_or_else(|error| panic!("{}", chain(&error)));

    // A rule of a newer kernel.
    let mut changed: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let mut host: Vec<HostState> = serde_json::from_value(changed["host"].clone()).unwrap();
    let mut state = NetState::decode(&host[0].data).unwrap();
    for (_, data) in state.nft.as_mut().unwrap().rules.iter_mut().flat_map(|rule| &mut rule.attributes) {
        if let Some(at) = data.windows(7).position(|bytes| bytes == b"counter") {
            data[at..at + 7].copy_from_slice(b"futures");
        }
    }
    host[0].data = state.encode().unwrap();
    changed["host"] = serde_json::to_value(&host).unwrap();
    let refused = |result: Result<i32, PortError>| match result.unwrap_err() {
        PortError::Refused(refusals) => {
            refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        }
        other => panic!("{}", chain(&other)),
    };
    let text = refused(arrive(&target, &name, serde_json::to_vec(&changed).unwrap()));
    assert!(text.contains("rule in chain c of table t (futures"), "{text}");
    assert!(target.runtime.names().unwrap().is_empty() && others().contains(&own));

    // The name of its link is taken at the target, and stays with whoever has it.
    let link = node_agent::network::host_end(&target.options().cgroup_parent, &name);
    assert!(!links().contains(&link));
    common::ip(&format!("link add {link} type veth peer name {link}p"));
    let text = refused(arrive(&target, &name, spec.clone()));
    assert!(text.contains(&format!("has an interface {link} already")), "{text}");
    assert!(links().contains(&link));
    common::ip(&format!("link del {link}"));

    // The bridge is not there.
    let bare = Node::new(Some("no-such-bridge".to_owned()));
    let text = refused(arrive(&bare, &name, spec));
    assert!(text.contains("bridge no-such-bridge"), "{text}");
    assert!(bare.runtime.names().unwrap().is_empty());
}

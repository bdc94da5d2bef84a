//! The state of a network namespace, on the real kernel: made with ip(8), nft(8) and files of /proc/sys, read by the agent,
//! set in a fresh namespace, and compared by what the same tools show there. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Command, Output};
use std::time::Instant;

use common::{chain, unique};
use node_agent::network::Mac;
use node_agent::network::state::apply::{ApplyError, apply};
use node_agent::network::state::check::refusals;
use node_agent::network::state::plan::plan;
use node_agent::network::state::read::{Reader, Settings};
use node_agent::network::state::{NetState, Section};
use serde_json::Value;
use sys::net::Netlink;
use sys::net::link::NewLink;

/// Hardware address of the link that stands for the runtime's.
const MAC: &str = "02:00:00:00:00:77";

/// A network namespace with loopback and a veth `eth0` (number 7) to this one, removed when it is dropped.
struct Net {
    name: String,
    host: String,
}

impl Net {
    fn new() -> Self {
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

    fn run(&self, command: &str) -> Output {
        Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", command]).output().unwrap()
    }

    fn must(&self, command: &str) -> String {
        let output = self.run(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn reader(&self) -> Reader {
        let netns = File::open(format!("/run/netns/{}", self.name)).unwrap();
        Reader::open(netns.as_fd()).unwrap()
    }

    fn state(&self) -> NetState {
        self.reader().read(&Section::ALL, Settings::Carried).unwrap()
    }

    fn refused(&self) -> Vec<String> {
        let reader = self.reader();
        let state = reader.read(&Section::ALL, Settings::Carried).unwrap();
        let mac: Mac = MAC.parse().unwrap();
        let found = refusals(&state, Some(mac), reader.foreign().unwrap());
        found.iter().map(ToString::to_string).collect()
    }

    /// What the tools show of it, without what only counts or passes.
    fn shown(&self) -> Vec<(&'static str, String)> {
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
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = Command::new("ip").args(["link", "del", &self.host]).status();
    }
}

/// JSON of a tool without what is another one in each namespace, in an order of its own.
fn plain(text: &str) -> String {
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
fn same(one: &Net, other: &Net) {
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

fn explain(error: &ApplyError) -> String {
    chain(error)
}

/// Makes the state of `source` in a fresh namespace by way of its bytes, and compares what the tools show.
fn carry(source: &Net) -> Net {
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

#[test]
fn interfaces_of_every_kind_here_are_made_again() {
    let net = Net::new();
    for command in [
        "ip link add va index 20 address 02:00:00:00:01:01 mtu 1400 type veth peer name vb index 31 address 02:00:00:00:01:02",
        "ip link set va up txqueuelen 77 alias 'a comment' group 5",
        "ip link set vb mtu 1300 promisc on up",
        "ip link property add dev va altname another-name",
        "ip link add br0 index 12 address 02:00:00:00:02:00 type bridge forward_delay 400 ageing_time 12300 priority 4096 stp_state 0",
        "ip link set vb master br0; bridge link set dev vb hairpin on learning off isolated on cost 42",
        "ip link set br0 up",
        "ip link add mv0 index 40 link eth0 address 02:00:00:00:03:00 type macvlan mode bridge; ip link set mv0 mtu 1280 up",
        "ip link add mv1 index 39 link br0 address 02:00:00:00:03:01 type macvlan mode private",
        "ip link add ifb7 index 15 address 02:00:00:00:04:00 type ifb",
        "bridge fdb add 02:aa:aa:aa:aa:aa dev vb master static",
        "ip link set eth0 mtu 1440 txqueuelen 500",
        "ip addr add 192.0.2.1/24 dev br0",
    ] {
        net.must(command);
    }
    let _ = net.run("ethtool -K va tx off gro off");
    assert_eq!(net.refused(), Vec::<String>::new());
    let target = carry(&net);
    // And it comes again after it was changed: in place, and by making anew.
    net.must("ip link del va; ip link set br0 down; ip link set mv0 mtu 1300; ip link del mv1; ip link add mv1 index 39 link eth0 type macvlan mode vepa");
    apply(&target.reader(), &net.state()).unwrap_or_else(|error| panic!("{}", explain(&error)));
    same(&net, &target);
}

#[test]
fn addresses_routes_rules_and_neighbours_are_set_again() {
    let net = Net::new();
    for command in [
        "ip addr add 10.9.0.2/24 brd + dev eth0",
        "ip addr add 10.9.0.3/24 dev eth0",
        "ip addr add 10.9.1.1 peer 10.9.1.2/32 dev eth0 label eth0:p2p",
        "ip addr add 127.9.0.1/8 dev lo scope host",
        "ip addr add 10.10.0.1/16 dev eth0 valid_lft 3000 preferred_lft 2000 noprefixroute",
        "ip addr add fd09::2/64 dev eth0 nodad",
        "ip addr add fd09::3/128 dev eth0 valid_lft 4000 preferred_lft 0 nodad",
        "ip route add default via 10.9.0.1 metric 50",
        "ip route add 203.0.113.0/24 nexthop via 10.9.0.1 weight 3 nexthop via 10.9.0.254 weight 1",
        "ip route add 198.51.100.0/24 via 192.0.2.9 dev eth0 onlink mtu 1200 advmss 1160",
        "ip route add blackhole 198.18.0.0/15",
        "ip route add unreachable 198.19.0.0/16 metric 7",
        "ip route add 10.20.0.0/16 dev eth0 src 10.9.0.3 table 100",
        "ip route add default via 10.9.0.1 dev eth0 table 1000 proto static",
        "ip route add local 10.99.0.0/16 dev lo table 7",
        "ip -6 route add default via fd09::1",
        "ip -6 route add 2001:db8::/32 nexthop via fd09::1 weight 2 nexthop via fd09::9",
        "ip -6 route add 2001:db8:1::/48 dev eth0 metric 77 expires 500",
        "ip -6 route add prohibit 2001:db8:2::/48 table 9",
        "ip nexthop add id 5 via 10.9.0.9 dev eth0; ip nexthop add id 6 via 10.9.0.10 dev eth0; ip nexthop add id 7 group 5/6",
        "ip route add 172.20.0.0/16 nhid 7",
        "ip rule add from 10.9.0.3 table 100 pref 100",
        "ip rule add fwmark 0x1/0xff lookup 1000 pref 200",
        "ip rule add iif eth0 uidrange 1000-2000 prohibit pref 300; ip rule add not from 10.0.0.0/8 lookup 55 pref 310",
        "ip rule add sport 1000-2000 ipproto tcp lookup main suppress_prefixlength 0 pref 400",
        "ip -6 rule add to 2001:db8::/32 lookup 9 pref 100",
        "ip rule del pref 32767",
        "ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud stale",
        "ip neigh add fd09::1 lladdr 02:00:00:00:00:01 dev eth0 nud stale router",
        "ip neigh add proxy 10.9.0.77 dev eth0",
    ] {
        net.must(command);
    }
    assert_eq!(net.refused(), Vec::<String>::new());
    let target = carry(&net);
    for command in [
        "ip addr del 10.9.0.3/24 dev eth0",
        "ip route replace default via 10.9.0.7 metric 50",
        "ip rule del pref 100",
        "ip neigh replace 10.9.0.9 lladdr 02:00:00:00:00:aa dev eth0 nud permanent",
        "ip neigh del fd09::1 dev eth0; ip neigh del proxy 10.9.0.77 dev eth0",
        "ip addr change 10.10.0.1/16 dev eth0 valid_lft 9000 preferred_lft 9000 noprefixroute",
    ] {
        net.must(command);
    }
    apply(&target.reader(), &net.state()).unwrap_or_else(|error| panic!("{}", explain(&error)));
    same(&net, &target);
}

#[test]
fn settings_that_differ_are_written_and_others_left_alone() {
    let net = Net::new();
    for command in [
        "ip link add va type veth peer name vb; ip link set va up; ip link set vb up",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 2 > /proc/sys/net/ipv4/conf/va/rp_filter",
        "echo 1 > /proc/sys/net/ipv4/conf/default/log_martians",
        "echo 1 > /proc/sys/net/ipv6/conf/vb/disable_ipv6",
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra",
        "echo 99 > /proc/sys/net/core/somaxconn",
        "echo '2000 3000' > /proc/sys/net/ipv4/ip_local_port_range",
        "echo '4096 65536 262144' > /proc/sys/net/ipv4/tcp_rmem",
        "echo 0 > /proc/sys/net/ipv4/tcp_timestamps",
        "echo 44 > /proc/sys/net/ipv4/neigh/eth0/gc_stale_time",
        "echo 1 > /proc/sys/net/ipv6/bindv6only",
    ] {
        net.must(command);
    }
    let state = net.state();
    let own = |name: &str| state.sysctls.as_ref().unwrap().get(name).map(|setting| setting.own);
    assert_eq!(own("core/somaxconn"), Some(true));
    assert_eq!(own("ipv4/tcp_sack"), None, "it is what a fresh namespace has");
    let target = carry(&net);
    let all = |net: &Net| {
        net.must("cd /proc/sys/net; find . -type f -perm -600 ! -name flush ! -name stable_secret -exec grep -H '' {} + | sort")
    };
    assert_eq!(all(&net), all(&target));
}

const RULESET: &str = r#"
table inet filter {
  counter web { packets 7 bytes 700; }
  quota daily { over 100 mbytes used 3 mbytes; }
  limit slow { rate 5/second burst 9 packets; }
  set friends { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.1.1, 192.168.1.2-192.168.1.9 } }
  set ports { type inet_service; size 100; elements = { 22, 80, 443 } }
  set seen { type ipv4_addr; size 1000; flags dynamic,timeout; timeout 1h; elements = { 1.2.3.4 timeout 1h expires 50m, 5.6.7.8 } }
  set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.1.0.0/16 . 80, 10.2.0.1 . 443-450 } }
  map where { type inet_service : verdict; elements = { 25 : drop, 26 : jump other } }
  map names { type ipv4_addr : counter; elements = { 9.9.9.9 : "web" } }
  chain other { counter packets 3 bytes 333 accept comment "a comment"
  }
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related counter packets 12345 bytes 678901 accept
    ct state invalid drop
    iifname "lo" accept
    iif lo counter packets 1 bytes 2
    ip saddr @friends tcp dport @ports counter name "web" accept
    tcp dport { 1000, 2000-3000 } meta mark set 0x7 ct mark set mark
    tcp dport vmap @where
    ip saddr 1.1.1.1 add @seen { ip saddr timeout 10m }
    ip saddr . tcp dport @pairs log prefix "x" limit rate 3/minute accept
    udp dport 53 limit name "slow" quota name "daily" reject with icmpx type port-unreachable
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 4000 jump {
      counter packets 5 bytes 6
      tcp dport 4001 drop
    }
    fib saddr type local numgen random mod 3 vmap { 0 : accept, 1 : drop }
    counter packets 99 bytes 100
  }
}
table ip nat {
  chain post { type nat hook postrouting priority 100; oifname "eth0" ip saddr 10.0.0.0/8 masquerade; meta l4proto tcp snat to 1.2.3.4:1000-2000;
  }
  chain pre { type nat hook prerouting priority -100; tcp dport 8080 redirect to :80; ip daddr 1.1.1.1 tcp dport 9 dnat to 2.2.2.2:99;
  }
}
table ip6 six { chain c { type filter hook output priority 5; policy drop; ip6 daddr fd00::/8 accept
 }
}
table netdev dev { chain in { type filter hook ingress device "eth0" priority 0; ip saddr 9.9.9.9 drop
 }
}
table arp a { chain c { type filter hook input priority 0; arp operation 1 counter
 }
}
table bridge b { chain c { type filter hook forward priority 0; ether type ip counter
 }
}
table inet asleep { 
 flags dormant
 chain c { type filter hook input priority 1; drop
 }
}
"#;

#[test]
fn rulesets_of_nftables_are_carried_with_sets_counters_and_maps() {
    let net = Net::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), RULESET).unwrap();
    net.must(&format!("nft -f {}", file.path().display()));
    assert_eq!(net.refused(), Vec::<String>::new());
    let target = carry(&net);
    net.must(
        "nft delete rule ip nat post handle $(nft -a list chain ip nat post | sed -n 's/.*snat.*handle //p')",
    );
    net.must("nft add element inet filter friends '{ 172.16.0.0/12 }'; nft delete table arp a; nft add rule inet filter other drop");
    apply(&target.reader(), &net.state()).unwrap_or_else(|error| panic!("{}", explain(&error)));
    assert_eq!(plain(&net.must("nft -j list ruleset")), plain(&target.must("nft -j list ruleset")));
}

#[test]
fn rules_that_the_kernel_does_not_take_are_named_and_nothing_is_changed() {
    let net = Net::new();
    net.must("nft add table ip t; nft add chain ip t c; nft add rule ip t c counter drop");
    let target = Net::new();
    target.must("nft add table ip before");
    let mut state = net.state();
    // As from a kernel that knows more.
    let rules = &mut state.nft.as_mut().unwrap().rules;
    for (_, data) in rules.iter_mut().flat_map(|rule| &mut rule.attributes) {
        if let Some(at) = data.windows(7).position(|bytes| bytes == b"counter") {
            data[at..at + 7].copy_from_slice(b"futures");
        }
    }
    let error = explain(&apply(&target.reader(), &state).unwrap_err());
    assert!(error.contains("rule in chain c of table t (futures"), "{error}");
    assert!(target.must("nft list ruleset").contains("before"));
}

#[test]
fn tracked_connections_go_on_with_their_translation() {
    let net = Net::new();
    net.must("nft -f - <<X\ntable ip t { chain in { type filter hook input priority 0; ct state new accept\n }\n chain out { type nat hook output priority -100; tcp dport 81 dnat to 127.0.0.1:80\n }\n chain post { type nat hook postrouting priority 100; tcp dport 82 snat to 127.0.0.9\n }\n }\nX");
    let talk = "import socket,time\n\
        ls = {p: socket.create_server(('127.0.0.1', p)) for p in (80, 82)}\n\
        for port, at in ((80, 80), (81, 80), (82, 82)):\n\
        \x20 c = socket.create_connection(('127.0.0.1', port)); a, _ = ls[at].accept(); c.sendall(b'x'); a.recv(1); a.sendall(b'y'); c.recv(1)\n\
        \x20 globals()['c%d' % port] = (c, a)\n\
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('127.0.0.1', 5353))\n\
        print('made', flush=True); input()\n";
    let mut child = Command::new("ip")
        .args(["netns", "exec", &net.name, "python3", "-c", talk])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "made\n");
    let listed = |net: &Net| {
        let text = net.must("conntrack -L -o extended 2>/dev/null; true");
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| {
                // Without the time left.
                let words = line.split_ascii_whitespace().enumerate();
                words
                    .filter(|(at, word)| *at != 4 && !word.starts_with("use="))
                    .map(|(_, w)| w)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        lines.sort();
        lines
    };
    let before = listed(&net);
    assert!(before.iter().filter(|line| line.contains("ESTABLISHED")).count() >= 3, "{before:#?}");
    assert!(before.iter().any(|line| line.contains("dport=81") && line.contains("sport=80")), "{before:#?}");
    let target = carry(&net);
    assert_eq!(before, listed(&target));
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn queueing_disciplines_come_along_or_are_refused_by_name() {
    let net = Net::new();
    net.must("tc qdisc add dev eth0 root handle 5: tbf rate 10mbit burst 32k latency 50ms");
    assert_eq!(net.refused(), Vec::<String>::new());
    let target = carry(&net);
    net.must("tc qdisc del dev eth0 root; tc qdisc add dev eth0 root handle 9: pfifo limit 77");
    apply(&target.reader(), &net.state()).unwrap_or_else(|error| panic!("{}", explain(&error)));
    assert_eq!(plain(&net.must("tc -j qdisc")), plain(&target.must("tc -j qdisc")));
    net.must("tc qdisc del dev eth0 root; tc qdisc add dev eth0 root handle 1: htb default 1");
    let refused = net.refused();
    assert!(refused.len() == 1 && refused[0].contains("htb"), "{refused:?}");
}

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

#[test]
fn rules_of_iptables_come_along_when_they_are_of_nftables() {
    let net = Net::new();
    for command in [
        "iptables-nft -A INPUT -p tcp --dport 80 -m comment --comment hello -j ACCEPT",
        "iptables-nft -A INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT",
        "iptables-nft -A INPUT ! -p udp -m conntrack --ctstate NEW -j DROP",
        "iptables-nft -t nat -A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE",
        "iptables-nft -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "iptables-nft -P FORWARD DROP",
    ] {
        net.must(command);
    }
    let target = carry(&net);
    let saved = |net: &Net| net.must("iptables-nft-save | grep -v '^#'");
    assert_eq!(saved(&net), saved(&target));
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

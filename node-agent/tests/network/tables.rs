//! Interfaces, addresses, routes, rules, neighbours, settings, queueing disciplines.

use node_agent::network::state::apply::apply;
use node_agent::network::state::{Link, Setting};

use crate::support::{Net, carry, explain, plain, same};

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
fn a_kind_of_interface_that_the_kernel_does_not_have_is_named() {
    let (net, target) = (Net::new(), Net::new());
    let mut state = net.state();
    let link = Link {
        index: 99,
        name: "odd0".to_owned(),
        kind: Some("of-another-kernel".to_owned()),
        mtu: 1500,
        ..Link::default()
    };
    state.links.as_mut().unwrap().insert(99, link);
    let error = explain(&apply(&target.reader(), &state).unwrap_err());
    assert!(error.contains("make the interface odd0 (of-another-kernel)"), "{error}");
    // A setting, too, when the container had changed it.
    state.links.as_mut().unwrap().remove(&99);
    let setting = |own| Setting { value: "1".to_owned(), own };
    state.sysctls.as_mut().unwrap().insert("ipv4/of_another_kernel".to_owned(), setting(false));
    apply(&target.reader(), &state).unwrap_or_else(|error| panic!("{}", explain(&error)));
    state.sysctls.as_mut().unwrap().insert("ipv4/of_another_kernel".to_owned(), setting(true));
    let error = explain(&apply(&target.reader(), &state).unwrap_err());
    assert!(error.contains("set net/ipv4/of_another_kernel to \"1\""), "{error}");
}

//! nftables and tracked connections.

use std::process::Command;

use node_agent::network::state::apply::apply;

use crate::support::{Net, carry, explain, plain};

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
    let talk = "import socket,sys\n\
        ls = {p: socket.create_server(('127.0.0.1', p)) for p in (80, 82)}\n\
        for port, at in ((80, 80), (81, 80), (82, 82)):\n\
        \x20 c = socket.create_connection(('127.0.0.1', port)); a, _ = ls[at].accept(); c.sendall(b'x'); a.recv(1); a.sendall(b'y'); c.recv(1)\n\
        \x20 globals()['c%d' % port] = (c, a)\n\
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('127.0.0.1', 5353))\n\
        print('made', flush=True); sys.stdin.read()\n";
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

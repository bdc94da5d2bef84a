//! What an Ethernet frame is about, as far as a container's first answer goes.

/// Whether the frame carries something that a program sent: data of TCP, a new or an ended connection, a datagram. Not what
/// the kernel answers by itself: ARP, ICMP, bare acknowledgements. `head` is its beginning, all headers included.
pub(super) fn has_data(head: &[u8]) -> bool {
    match head.get(12..14) {
        Some([0x08, 0x00]) => ipv4(&head[14..]),
        Some([0x86, 0xdd]) => ipv6(&head[14..]),
        _ => false,
    }
}

const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)))
}

fn ipv4(packet: &[u8]) -> bool {
    let Some(header) = packet.first().map(|first| usize::from(first & 15) * 4) else { return false };
    let (Some(total), Some(rest)) = (word(packet, 2), packet.get(header..)) else { return false };
    match packet.get(9) {
        // Larger than the field can say: data, in any case.
        Some(&TCP) => total == 0 || tcp(rest, total.saturating_sub(header)),
        Some(&(ICMP | IGMP)) | None => false,
        Some(_) => true,
    }
}

fn ipv6(packet: &[u8]) -> bool {
    /// Length of the fixed header (RFC 8200 section 3).
    const HEADER: usize = 40;
    let (Some(length), Some(rest)) = (word(packet, 4), packet.get(HEADER..)) else { return false };
    match packet.get(6) {
        Some(&TCP) => length == 0 || tcp(rest, length),
        // 0 is a header of options for each hop, which multicast listener reports have.
        Some(&(ICMP_V6 | 0)) | None => false,
        Some(_) => true,
    }
}

/// Of a segment of `length` bytes (RFC 9293 section 3.1).
fn tcp(segment: &[u8], length: usize) -> bool {
    const FIN_SYN: u8 = 3;
    let (Some(offset), Some(flags)) = (segment.get(12), segment.get(13)) else { return false };
    flags & FIN_SYN != 0 || length > usize::from(offset >> 4) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(20 + rest.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(rest);
        frame
    }

    fn v6(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0; 32]);
        frame.extend(rest);
        frame
    }

    fn segment(flags: u8, options: usize, data: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; 12];
        segment.extend([u8::try_from(5 + options / 4).unwrap() << 4, flags]);
        segment.resize(20 + options, 0);
        segment.extend(data);
        segment
    }

    #[test]
    fn what_programs_send_counts_and_what_the_kernel_answers_does_not() {
        for wrap in [v4, v6] {
            assert!(!has_data(&wrap(TCP, &segment(0x10, 12, &[]))), "an acknowledgement with options");
            assert!(has_data(&wrap(TCP, &segment(0x18, 12, b"x"))));
            assert!(has_data(&wrap(TCP, &segment(0x02, 20, &[]))), "a new connection");
            assert!(has_data(&wrap(TCP, &segment(0x11, 0, &[]))), "the end of one");
            assert!(has_data(&wrap(17, &[0; 8])), "an empty datagram");
        }
        assert!(
            !has_data(&v4(ICMP, &[0; 8])) && !has_data(&v6(ICMP_V6, &[0; 24])) && !has_data(&v6(0, &[0; 32]))
        );
        let arp = sys::net::packet::gratuitous_arp([2; 6], std::net::Ipv4Addr::LOCALHOST);
        assert!(!has_data(&arp));
    }

    #[test]
    fn a_frame_that_is_cut_off_is_nothing() {
        let whole = v4(TCP, &segment(0x18, 0, b"data"));
        for length in 0..14 + 20 + 14 {
            assert!(!has_data(&whole[..length]), "{length}");
        }
        assert!(has_data(&whole[..14 + 20 + 14]));
    }
}

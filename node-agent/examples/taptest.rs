fn main() {
    let mut lost = 0;
    for i in 0..200 {
        let mut nl = sys::net::Netlink::open().unwrap();
        let tap = sys::net::tap::Tap::create(&mut nl, "tapx%d").unwrap();
        let p = sys::net::packet::PacketSocket::open(tap.index()).unwrap();
        let mut frame = vec![0u8; 74]; frame[0]=2; frame[6] = 2; frame[12]=0x88; frame[13]=0xb5; 
        let mut buf = vec![0; 4000];
        for k in 0..5 {
            frame[20]=k;
            let r = p.send(&frame);
            let t=std::time::Instant::now();
            let mut got=false;
            while t.elapsed().as_millis()<20 { if let Some(n)=tap.read_frame(&mut buf).unwrap() { if n==74 && buf[20]==k {got=true;break} } }
            if !got { lost+=1; println!("iter {i} frame {k} lost {r:?} {}", std::fs::read_to_string(format!("/sys/class/net/{}/operstate", tap.name())).unwrap().trim()); }
        }
    }
    println!("lost {lost}");
}

use engine::proc::mountinfo;

use super::*;

const BASE: &str = "\
100 50 254:1 /srv/root / rw,relatime - ext4 /dev/vda rw
101 100 0:40 / /proc rw,relatime - proc proc rw
102 100 0:41 / /tmp rw,relatime - tmpfs tmpfs rw,size=64k
103 100 254:1 /srv/shared /shared ro,relatime - ext4 /dev/vda rw
104 101 0:42 / /proc/acpi ro,relatime - tmpfs tmpfs ro,size=0k
";

fn of(change: impl Fn(&str) -> String) -> Described {
    let base = mountinfo::parse(BASE.as_bytes()).unwrap();
    let now = mountinfo::parse(change(BASE).as_bytes()).unwrap();
    describe(&base, &own(now), &HashSet::from([(254, 1), (8, 1)]), &HashSet::new())
}

fn own(mounts: Vec<Mount>) -> [Space; 1] {
    [Space { number: 0, member: 0, mounts }]
}

fn with(lines: &str) -> Described {
    of(|base| format!("{base}{lines}"))
}

fn key(point: &str) -> Key {
    Key { point: point.into(), nth: 0 }
}

fn only_refusal(described: &Described) -> String {
    assert_eq!(described.refusals.len(), 1, "{:?}", described.refusals);
    described.refusals[0].to_string()
}

#[test]
fn a_sandbox_that_was_not_touched_is_all_configured() {
    let described = with("");
    assert!(described.refusals.is_empty());
    let tree = &described.tree;
    assert!(
        tree.nodes
            .iter()
            .all(|node| matches!(&node.shows, Shows::Configured(key) if key.point == node.point))
    );
    assert!(tree.nodes.iter().all(|node| node.attributes.is_none()));
    assert!(tree.gone.is_empty() && tree.made.is_empty() && tree.changes.is_empty());
    let areas: Vec<&Origin> = described.doors.iter().map(|door| &door.area.of).collect();
    assert_eq!(areas, [&Origin::Configured(key("/tmp"))], "not the masked directory");
    tree.check().unwrap();
}

#[test]
fn binds_name_the_configured_mount_that_shows_them() {
    let described = with(
        "110 100 254:1 /srv/root/data /inner rw,relatime shared:7 - ext4 /dev/vda rw\n\
         111 100 254:1 /srv/shared/sub /outer rw,noatime - ext4 /dev/vda rw\n\
         112 110 0:41 /a//deleted /inner/x rw,relatime - tmpfs tmpfs rw,size=64k\n",
    );
    assert!(described.refusals.is_empty(), "{:?}", described.refusals);
    let shows: Vec<&Shows> = described.tree.nodes[5..].iter().map(|node| &node.shows).collect();
    let part = |point: &str, path: &str, deleted| Shows::Part {
        of: Origin::Configured(key(point)),
        path: path.into(),
        deleted,
    };
    assert_eq!(shows, [&part("/", "data", false), &part("/shared", "sub", false), &part("/tmp", "a", true)]);
    let node = described.tree.node(112).unwrap();
    assert_eq!((node.parent, node.place.as_slice()), (Some(110), b"x".as_slice()));
    assert_eq!(described.tree.node(111).unwrap().attributes, Some(sys::mount::attr::NOATIME));
}

#[test]
fn new_file_systems_come_with_options_and_their_content() {
    let described = with(
        "110 100 0:60 / /t rw,relatime - tmpfs none rw,size=8k,mode=700\n\
         111 100 0:60 /sub /s ro,relatime - tmpfs none rw,size=8k,mode=700\n\
         112 100 0:61 /only /o rw,relatime - tmpfs none ro\n",
    );
    assert!(described.refusals.is_empty(), "{:?}", described.refusals);
    assert_eq!(described.tree.made.len(), 2);
    assert_eq!(described.tree.made[0].options, ["size=8k", "mode=700"]);
    assert!(described.tree.made[1].read_only);
    let areas: Vec<(&Origin, &[u8])> =
        described.doors.iter().map(|door| (&door.area.of, door.area.path.as_slice())).collect();
    let made = described.tree.made.iter().map(|fs| Origin::Made(fs.id)).collect::<Vec<_>>();
    assert!(areas.contains(&(&made[0], b"")) && areas.contains(&(&made[1], b"only")), "{areas:?}");
    assert_eq!(areas.len(), 3);
}

#[test]
fn unmounted_moved_and_remounted_configured_mounts() {
    let described = of(|base| {
        base.replace(
            "102 100 0:41 / /tmp rw,relatime - tmpfs tmpfs rw,size=64k",
            "102 100 0:41 / /elsewhere rw,nodev - tmpfs tmpfs rw,size=99k",
        )
        .replace("104 101 0:42 / /proc/acpi ro,relatime - tmpfs tmpfs ro,size=0k\n", "")
    });
    assert!(described.refusals.is_empty(), "{:?}", described.refusals);
    let tree = &described.tree;
    assert_eq!(tree.gone, [key("/tmp"), key("/proc/acpi")]);
    let moved = tree.node(102).unwrap();
    assert_eq!(
        moved.shows,
        Shows::Part { of: Origin::Configured(key("/tmp")), path: vec![], deleted: false }
    );
    assert_eq!(tree.changes[0].options, ["size=99k"]);
}

#[test]
fn what_cannot_move_is_named() {
    for (line, expected) in [
        ("110 100 8:1 / /usb rw - ext4 /dev/sda1 rw", "mount /usb: it shows / of a file system of the host"),
        ("110 100 8:2 / /usb rw - ext4 /dev/sda2 rw", "mount /usb: a file system of type ext4"),
        ("110 100 0:90 / /f rw - fuse.sshfs x rw", "of type fuse.sshfs"),
        ("110 100 0:91 / /n rw - nfs4 x rw", "of type nfs4"),
        ("110 100 254:1 /etc /etc rw - ext4 /dev/vda rw", "it shows /etc of a file system of the host"),
        ("110 100 0:92 / /o rw - overlay o rw,lowerdir=l,upperdir=/u", "names the layer l relative"),
        ("110 100 0:93 / / rw - tmpfs t rw", "covers the container's root"),
        ("110 100 0:93 / /t rw,idmapped - tmpfs t rw", "its option idmapped"),
        ("110 100 0:93 / /t rw master:9 - tmpfs t rw", "from outside of the container"),
        ("110 100 0:93 / /t rw - tmpfs t rw,usrquota", "has the option usrquota"),
    ] {
        let text = only_refusal(&with(&format!("{line}\n")));
        assert!(text.contains(expected), "{text}");
    }
    let pivoted = of(|base| base.replace("100 50 254:1 /srv/root / ", "99 50 254:1 /srv/root/new / "));
    assert!(only_refusal(&pivoted).contains("pivot_root"));
}

#[test]
fn peer_groups_need_a_member_that_shows_all() {
    let good = with(
        "110 100 0:60 / /t rw shared:3 - tmpfs none rw\n111 100 0:60 /a /a rw shared:3 - tmpfs none rw\n\
         112 100 0:60 /a /b rw master:3 - tmpfs none rw\n",
    );
    assert!(good.refusals.is_empty(), "{:?}", good.refusals);
    let bad = with(
        "110 100 0:60 /b /t rw shared:3 - tmpfs none rw\n111 100 0:60 /a /a rw shared:3 - tmpfs none rw\n",
    );
    assert!(bad.refusals[0].to_string().contains("peer group"), "{:?}", bad.refusals);
}

#[test]
fn another_file_system_with_the_number_of_a_gone_one_is_told_apart() {
    let change = |base: &str| {
        base.replace(
            "102 100 0:41 / /tmp rw,relatime - tmpfs tmpfs rw,size=64k",
            "102 100 0:41 / /tmp rw,relatime - tmpfs mine rw,mode=700",
        )
    };
    let described = of(change);
    assert!(described.refusals.is_empty(), "{:?}", described.refusals);
    assert_eq!((described.tree.made.len(), described.tree.gone.as_slice()), (1, [key("/tmp")].as_slice()));
    let base = mountinfo::parse(BASE.as_bytes()).unwrap();
    let dead = HashSet::from([(0, 41)]);
    let described = describe(&base, &own(base.clone()), &HashSet::from([(254, 1)]), &dead);
    assert_eq!(described.tree.made.len(), 1, "it looks the same and is not");
}

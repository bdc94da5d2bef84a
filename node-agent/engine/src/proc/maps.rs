//! /proc/PID/maps and the `VmFlags` lines of /proc/PID/smaps.

use image::shape::VmaFlags;

use super::{ProcError, hex, lines, number, text, words};

/// One line of /proc/PID/maps, and its `VmFlags` when it came from smaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub prot: u8,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file as major and minor number; (0, 0) without one.
    pub device: (u32, u32),
    /// Inode number of the file; 0 without one.
    pub inode: u64,
    /// The last column, as the kernel wrote it: line feeds as `\012`, other bytes raw. Only good for the
    /// kernel's own names (`[stack]`, `/memfd:x (deleted)`): for a file's true name read its `map_files` link.
    pub name: Vec<u8>,
    /// `VmFlags`; empty when read from maps.
    pub flags: Flags,
}

impl Entry {
    /// True when both describe the same mapping, whatever was read about flags.
    #[must_use]
    pub fn same_line(&self, other: &Self) -> bool {
        self.start == other.start
            && self.end == other.end
            && self.prot == other.prot
            && self.shared == other.shared
            && self.offset == other.offset
            && self.device == other.device
            && self.inode == other.inode
            && self.name == other.name
    }

    /// It maps a file (or a memory object, which is a file without a name).
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0 || self.device != (0, 0)
    }

    /// Name of its link in /proc/PID/map_files.
    #[must_use]
    pub fn link_name(&self) -> String {
        format!("{:x}-{:x}", self.start, self.end)
    }
}

/// Two-letter flags of a `VmFlags` line, and `pk`, our own, for a `ProtectionKey` that is not 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(Vec<[u8; 2]>);

impl Flags {
    /// Parses the part after `VmFlags:`.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        Self(words(line).filter_map(|word| <[u8; 2]>::try_from(word).ok()).collect())
    }

    /// True when nothing was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when the flag is set.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|have| have == flag.as_bytes())
    }

    /// The flags that a restored mapping needs.
    #[must_use]
    pub fn to_image(&self) -> VmaFlags {
        VmaFlags {
            grows_down: self.has("gd"),
            no_reserve: self.has("nr"),
            locked: self.has("lo"),
            // Kernels that have no letters for VM_LOCKONFAULT write "??".
            locked_on_fault: self.has("lf") || (self.has("lo") && self.has("??")),
            dont_fork: self.has("dc"),
            wipe_on_fork: self.has("wf"),
            dont_dump: self.has("dd"),
            sequential: self.has("sr"),
            random: self.has("rr"),
            huge_page: self.has("hg"),
            no_huge_page: self.has("nh"),
            mergeable: self.has("mg"),
            accounted: self.has("ac"),
            sealed: self.has("sl"),
        }
    }
}

/// Parses the text of /proc/PID/maps or /proc/PID/smaps.
///
/// # Errors
/// [`ProcError::Parse`] with the line.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, ProcError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut keyed = false;
    for line in lines(bytes) {
        // smaps attribute lines begin with a capital letter, mappings with a lower-case hexadecimal digit.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(flags) = line.strip_prefix(b"VmFlags:")
                && let Some(last) = entries.last_mut()
            {
                last.flags = Flags::parse(flags);
                if std::mem::take(&mut keyed) {
                    last.flags.0.push(*b"pk");
                }
            }
            // The kernel writes it before the flags, on processors that have such keys.
            if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
                keyed = words(key).next().and_then(number::<u32>) != Some(0);
            }
            continue;
        }
        let entry = parse_line(line).ok_or_else(|| ProcError::parse("maps", text(line)))?;
        // The kernel lets the process go on between two pieces of the text: one that maps memory meanwhile shows some twice.
        while let Some(last) = entries.last_mut().filter(|last| last.end > entry.start) {
            if last.start < entry.start {
                last.end = entry.start;
            } else {
                entries.pop();
            }
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut rest = line;
    let mut word = || {
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        rest = tail.get(1..).unwrap_or_default();
        word
    };
    let range = word();
    let perms = word();
    let offset = word();
    let device = word();
    let inode = word();
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let [read, write, exec, share] = perms else {
        return None;
    };
    // The name is padded with blanks on its left. A name itself always begins with '/' or '['.
    let name = rest.iter().position(|byte| *byte != b' ');
    Some(Entry {
        start: hex(&range[..dash])?,
        end: hex(&range[dash + 1..])?,
        prot: u8::from(*read == b'r') | u8::from(*write == b'w') << 1 | u8::from(*exec == b'x') << 2,
        shared: *share == b's',
        offset: hex(offset)?,
        device: (hex(&device[..colon])?, hex(&device[colon + 1..])?),
        inode: number(inode)?,
        name: name.map(|at| rest[at..].to_vec()).unwrap_or_default(),
        flags: Flags::default(),
    })
}

/// Reads /proc/PID/maps: fast, without flags.
///
/// # Errors
/// [`ProcError`].
pub fn read_maps(pid: i32) -> Result<Vec<Entry>, ProcError> {
    parse(&super::read(pid, "maps")?)
}

/// Reads /proc/PID/smaps: the kernel walks all page tables for it, about 10 ms for each GiB of 4 KiB pages.
///
/// # Errors
/// [`ProcError`].
pub fn read_smaps(pid: i32) -> Result<Vec<Entry>, ProcError> {
    parse(&super::read(pid, "smaps")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\
55d740aec000-55d740aee000 r--p 00000000 fe:00 247030                     /usr/bin/cat
Size:                  8 kB
KernelPageSize:        4 kB
THPeligible:           0
ProtectionKey:         0
VmFlags: rd mr mw me 
7f0000000000-7f0000010000 rw-s 00010000 00:01 1025                       /memfd:a b (deleted)
ProtectionKey:         5
VmFlags: rd wr sh mr mw me ms sd nr 
7f0000020000-7f0000021000 rw-p 00000000 fe:00 9                          /tmp/two\\012lines  and blanks (deleted)
7f0000030000-7f0000031000 ---p 00000000 00:00 0 
7f0000040000-7f0000041000 rw-p 00000000 00:00 0                          [anon:my arena]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn what_is_shown_twice_counts_once_and_as_it_was_last() {
        let text = b"1000-3000 rw-p 00000000 00:00 0 \n2000-5000 rw-p 00000000 00:00 0 \n2000-4000 r--p 00000000 00:00 0 \n";
        let found: Vec<(u64, u64, u8)> =
            parse(text).unwrap().iter().map(|entry| (entry.start, entry.end, entry.prot)).collect();
        assert_eq!(found, [(0x1000, 0x2000, 3), (0x2000, 0x4000, 1)]);
    }

    #[test]
    fn parses_maps_and_smaps_lines() {
        let entries = parse(SAMPLE).unwrap();
        assert_eq!(entries.len(), 6);
        assert_eq!(entries[0].name, b"/usr/bin/cat");
        assert_eq!(entries[0].prot, 1);
        assert_eq!(entries[0].device, (0xfe, 0));
        assert_eq!(entries[0].inode, 247_030);
        assert!(entries[0].flags.has("me") && !entries[0].flags.has("wr") && !entries[0].flags.has("pk"));
        assert!(entries[1].flags.has("pk"));
        assert!(entries[1].shared && entries[1].offset == 0x10000);
        assert_eq!(entries[1].name, b"/memfd:a b (deleted)");
        assert!(entries[1].flags.to_image().no_reserve);
        assert_eq!(entries[2].name, b"/tmp/two\\012lines  and blanks (deleted)");
        assert!(entries[3].name.is_empty() && !entries[3].is_file());
        assert_eq!(entries[4].name, b"[anon:my arena]");
        assert_eq!(entries[5].end, 0xffff_ffff_ff60_1000);
    }

    #[test]
    fn rejects_what_is_no_mapping() {
        for bad in ["zz-55 r--p 0 0:0 0", "55 r--p 0 0:0 0", "1-2 rp 0 0:0 0", "1-2 r--p 0 00 0", "1-2"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn own_maps_and_smaps_agree() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let smaps = read_smaps(pid).unwrap();
        assert!(smaps.iter().any(|e| e.name == b"[stack]" && e.flags.has("gd")));
        assert!(smaps.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let maps = read_maps(pid).unwrap();
        assert!(maps.iter().filter(|e| smaps.iter().any(|s| s.same_line(e))).count() > 10);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(&bytes);
        }
    }
}

//! What of the CPU shows in a captured process: extended state and the vDSO image.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// Extended state as the kernel saves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xsave {
    /// Enabled state components (XCR0): bit 2 = AVX, 5-7 = AVX-512, 9 = PKRU, 17-18 = AMX.
    pub features: u64,
    /// Bytes of the standard (not compacted) format with all of them, which is what ptrace(2) shows.
    pub size: u32,
}

/// The extended state of this CPU; `None` on a CPU (or kernel) without xsave.
#[must_use]
pub fn xsave() -> Option<Xsave> {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return None;
    }
    let size = __cpuid_count(0xd, 0).ebx;
    Some(Xsave { features: xcr0(), size })
}

fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever xgetbv does.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the only caller has seen OSXSAVE in cpuid: xgetbv is allowed in user mode.
    unsafe { read() }
}

/// Feature leaves of cpuid that programs look at, raw: (leaf, sub-leaf, eax, ebx, ecx, edx).
#[must_use]
pub fn cpuid() -> Vec<(u32, u32, [u32; 4])> {
    let leaves = [(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x8000_0001, 0)];
    let top = __cpuid(0).eax;
    let answer = |(leaf, sub): (u32, u32)| {
        let r = __cpuid_count(leaf, sub);
        (leaf, sub, [r.eax, r.ebx, r.ecx, r.edx])
    };
    leaves.into_iter().filter(|&(leaf, _)| leaf <= top || leaf >= 0x8000_0000).map(answer).collect()
}

/// The bytes of this process's vDSO: the kernel maps the same image into every process.
///
/// # Errors
/// Those of reading /proc/self/maps and /proc/self/mem; `NotFound` when there is no vDSO.
pub fn vdso_image() -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let range = maps.lines().find(|line| line.ends_with("[vdso]")).and_then(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    let (start, end) = range.ok_or(std::io::ErrorKind::NotFound)?;
    let mut image = vec![0; usize::try_from(end - start).unwrap_or(0)];
    std::fs::File::open("/proc/self/mem")?.read_exact_at(&mut image, start)?;
    Ok(image)
}

/// A number that differs (but for one chance in 2^64) between different vDSO images: FNV-1a of the bytes.
///
/// # Errors
/// As [`vdso_image`].
pub fn vdso_hash() -> std::io::Result<u64> {
    Ok(hash(&vdso_image()?))
}

/// The hash that [`vdso_hash`] uses, for an image taken out of another process.
#[must_use]
pub fn hash(image: &[u8]) -> u64 {
    image.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

//! What an interface does in its driver or hardware: features ("tx-checksum-ip-generic", "rx-gro" ...), by name, because
//! their numbers differ between kernels. See ethtool(8), `-k`.

use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::abi::small;
use crate::{Errno, Result, sock};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// ETH_SS_FEATURES: the set of strings that names them.
const FEATURES: u32 = 4;
/// Bytes of a name.
const NAME: usize = 32;
/// More features than any kernel has.
const MOST: usize = 1024;

/// `struct ifreq` as SIOCETHTOOL uses it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: *mut u32,
    rest: [u8; 16],
}
const _: () = assert!(size_of::<Request>() == 40);
const _: () = assert!(size_of::<libc::ifreq>() == 40);

/// A socket in one network namespace, to ask about its interfaces.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
    /// Names in the order of their bits; read with the first interface.
    names: Vec<String>,
}

impl Ethtool {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: sock::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?, names: Vec::new() })
    }

    /// One request. `words` begins with the command, and is large enough for the answer.
    fn ask(&self, interface: &str, words: &mut [u32]) -> Result<()> {
        let mut request = Request { name: [0; 16], data: words.as_mut_ptr(), rest: [0; 16] };
        request.name.get_mut(..interface.len()).ok_or(Errno::EINVAL)?.copy_from_slice(interface.as_bytes());
        if interface.len() > 15 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: `request` is the structure this call reads. `data` points to `words`, which the callers make as large as
        // the kernel's answer to their command can be; it is not used after the call.
        small(unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) }).map(drop)
    }

    fn names(&mut self, interface: &str) -> Result<usize> {
        if self.names.is_empty() {
            // struct ethtool_sset_info: command, reserved, mask of sets (64 bits), one number for each set in it.
            let mut info = [GET_SET_INFO, 0, 1 << FEATURES, 0, 0, 0];
            self.ask(interface, &mut info)?;
            let count = info[4] as usize;
            if count > MOST {
                return Err(Errno::EOVERFLOW);
            }
            // struct ethtool_gstrings: command, set, count, names.
            let mut words = vec![0; 3 + MOST * NAME / 4];
            words[..3].copy_from_slice(&[GET_STRINGS, FEATURES, u32::try_from(count).unwrap_or(0)]);
            self.ask(interface, &mut words)?;
            let bytes: Vec<u8> = words[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.names = bytes.chunks_exact(NAME).take(count).map(super::message::string).collect();
        }
        Ok(self.names.len())
    }

    /// The features of an interface that can be switched, and whether they are wanted on.
    ///
    /// # Errors
    /// `ENODEV`, `EOPNOTSUPP` it has none.
    pub fn features(&mut self, interface: &str) -> Result<Vec<(String, bool)>> {
        let count = self.names(interface)?;
        let blocks = count.div_ceil(32);
        // struct ethtool_gfeatures: command, blocks; each: available, requested, active, never changed.
        let mut words = vec![0; 2 + blocks * 4];
        words[..2].copy_from_slice(&[GET_FEATURES, u32::try_from(blocks).unwrap_or(0)]);
        self.ask(interface, &mut words)?;
        let bit = |index: usize, word: usize| words[2 + index / 32 * 4 + word] & 1 << (index % 32) != 0;
        Ok(self
            .names
            .iter()
            .enumerate()
            .filter(|(index, name)| bit(*index, 0) && !bit(*index, 3) && !name.is_empty())
            .map(|(index, name)| (name.clone(), bit(index, 1)))
            .collect())
    }

    /// Switches features. Those that this kernel or interface does not have are left out.
    ///
    /// # Errors
    /// `ENODEV`, `EPERM`.
    pub fn set_features(&mut self, interface: &str, wanted: &[(String, bool)]) -> Result<()> {
        let count = self.names(interface)?;
        let blocks = count.div_ceil(32);
        // struct ethtool_sfeatures: command, blocks; each: valid, requested.
        let mut words = vec![0; 2 + blocks * 2];
        words[..2].copy_from_slice(&[SET_FEATURES, u32::try_from(blocks).unwrap_or(0)]);
        for (name, on) in wanted {
            if let Some(index) = self.names.iter().position(|known| known == name) {
                let bit = 1 << (index % 32);
                words[2 + index / 32 * 2] |= bit;
                if *on {
                    words[3 + index / 32 * 2] |= bit;
                }
            }
        }
        self.ask(interface, &mut words)
    }
}

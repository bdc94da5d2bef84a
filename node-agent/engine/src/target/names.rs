//! The names of the container's UTS namespace.

use image::Pid;
use image::state::Names;
use libc::{SYS_setdomainname, SYS_sethostname};

use super::error::TargetError;
use super::restore::{Restorer, live};
use super::script::{Block, Call, call};

/// sethostname(2), setdomainname(2).
pub(crate) fn set(names: &Names) -> [Call; 2] {
    let set = |what, nr, name: &[u8]| call!(what, nr, Block::new(name.to_vec()), name.len());
    [set("sethostname", SYS_sethostname, &names.host), set("setdomainname", SYS_setdomainname, &names.domain)]
}

impl Restorer<'_> {
    /// The root, when it lives in a UTS namespace that is not the agent's: it sets the names.
    pub(super) fn names_its_own(&mut self) -> Result<Option<Pid>, TargetError> {
        let Some(process) = live(self.image).next() else { return Ok(None) };
        let namespace =
            |path: String| std::fs::read_link(&path).map_err(TargetError::system(format!("look at {path}")));
        let host = self.tree.get(process.pid)?.host;
        let differs = namespace(format!("/proc/{host}/ns/uts"))? != namespace("/proc/self/ns/uts".into())?;
        Ok(differs.then_some(process.pid))
    }
}

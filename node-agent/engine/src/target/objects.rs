//! Memory that several mappings can share.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use image::shape::{MemoryObject, ObjectKind};
use libc::{SYS_mmap, SYS_munmap};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::TargetError;
use super::script::call;
use super::skeleton::Skeleton;
use super::writer::PageWriter;
use sys::tape::target::TargetTape;

/// Every shared memory object, held by the agent.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    held: BTreeMap<u32, (MemoryObject, Arc<File>)>,
}

impl Objects {
    /// The agent's descriptor of an object.
    pub(crate) fn file(&self, id: u32) -> Result<&Arc<File>, TargetError> {
        self.held
            .get(&id)
            .map(|(_, file)| file)
            .ok_or_else(|| TargetError::Image(format!("memory object {id} is mapped and not in the shape")))
    }

    /// Makes, resizes and forgets objects as the shape says.
    pub(crate) fn reconcile(
        &mut self,
        wanted: &[MemoryObject],
        root: &mut Skeleton,
        tape: &TargetTape,
        writer: &PageWriter,
    ) -> Result<(), TargetError> {
        let gone: Vec<u32> =
            self.held.keys().copied().filter(|id| !wanted.iter().any(|o| o.id == *id)).collect();
        for id in gone {
            self.held.remove(&id);
            writer.remove_object(id);
        }
        for object in wanted {
            match self.held.get_mut(&object.id) {
                Some((held, file)) => {
                    if held.size != object.size {
                        file.set_len(object.size).map_err(TargetError::system("resize shared memory"))?;
                    }
                    *held = object.clone();
                }
                None => {
                    let file = Arc::new(make(object, root, tape)?);
                    writer.set_object(object.id, file.clone());
                    self.held.insert(object.id, (object.clone(), file));
                }
            }
        }
        Ok(())
    }

    /// Finishes memory files when all is written and mapped, with what `shape` says of them in the end: pages were written
    /// as a whole, a file may end in the middle of one; no seal stands against it yet.
    pub(crate) fn seal(&mut self, shape: &[MemoryObject]) -> Result<(), TargetError> {
        for object in shape {
            let (Some((_, file)), ObjectKind::Memfd { seals, mode, .. }) =
                (self.held.get(&object.id), &object.kind)
            else {
                continue;
            };
            let metadata = file.metadata().map_err(TargetError::system("look at a memory file"))?;
            if metadata.len() != object.size {
                file.set_len(object.size).map_err(TargetError::system("resize a memory file"))?;
            }
            if metadata.mode() & 0o7777 != *mode {
                let permissions = Permissions::from_mode(*mode);
                file.set_permissions(permissions).map_err(TargetError::system("set a memory file's mode"))?;
            }
            if *seals != 0 {
                let seals = nix::fcntl::SealFlag::from_bits_retain(seals.cast_signed());
                nix::fcntl::fcntl(file.as_ref(), nix::fcntl::FcntlArg::F_ADD_SEALS(seals))
                    .map_err(TargetError::errno("seal a memory file"))?;
            }
        }
        Ok(())
    }
}

fn make(object: &MemoryObject, root: &mut Skeleton, tape: &TargetTape) -> Result<File, TargetError> {
    match &object.kind {
        ObjectKind::Memfd { name, .. } => {
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let fd: OwnedFd =
                memfd_create(name.as_str(), flags).map_err(TargetError::errno("memfd_create"))?;
            let file = File::from(fd);
            file.set_len(object.size).map_err(TargetError::system("size a memory file"))?;
            Ok(file)
        }
        // The kernel's own file behind such a mapping, so that maps(5) shows it as at the source.
        ObjectKind::SharedAnonymous => {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map = call!("mmap shared memory", SYS_mmap, 0, object.size, prot, flags, -1, 0);
            let ran = root.run(tape, &[map])?;
            let start = ran.answers.first().map_or(0, |a| a.value.cast_unsigned());
            let end = start + object.size.next_multiple_of(image::PAGE_SIZE);
            let path = format!("/proc/{}/map_files/{start:x}-{end:x}", root.host);
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|source| TargetError::Open { pid: root.node.pid, path, source })?;
            root.run(tape, &[call!("munmap", SYS_munmap, start, end - start)])?;
            Ok(file)
        }
    }
}

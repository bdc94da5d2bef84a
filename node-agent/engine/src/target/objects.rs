//! Memory that several mappings can share.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use image::pages::Owner;
use image::shape::{MemoryObject, ObjectKind};
use libc::{SYS_fchown, SYS_mmap, SYS_munmap};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::TargetError;
use super::huge;
use super::ipc::{self, NextIds};
use super::plant::Channel;
use super::script::{Call, call};
use super::skeleton::Skeleton;
use super::writer::PageWriter;
use sys::tape::target::TargetTape;

/// Memory files given away at once.
const MANY: usize = 64;

/// Every shared memory object, held by the agent.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    held: BTreeMap<u32, (MemoryObject, Arc<File>)>,
    next: NextIds,
}

impl Objects {
    /// The agent's descriptor of an object.
    pub(crate) fn file(&self, id: u32) -> Result<&Arc<File>, TargetError> {
        self.held
            .get(&id)
            .map(|(_, file)| file)
            .ok_or_else(|| TargetError::Image(format!("memory object {id} is mapped and not in the shape")))
    }

    /// The number of an object that is a segment of System V shared memory, and how many addresses it takes.
    pub(crate) fn segment(&self, id: u32) -> Option<(i32, u64)> {
        let (object, _) = self.held.get(&id)?;
        let ObjectKind::Segment(segment) = &object.kind else { return None };
        Some((segment.id, huge::addresses(object)))
    }

    /// By which System V objects get their numbers.
    pub(crate) fn next_ids(&mut self) -> &mut NextIds {
        &mut self.next
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
            if let Some((MemoryObject { kind: ObjectKind::Segment(segment), .. }, _)) = self.held.remove(&id)
            {
                root.run(tape, &[ipc::remove_segment(&segment)])?;
            }
            writer.remove_file(Owner::Object(id));
        }
        for object in wanted {
            huge::check_object(object)?;
            match self.held.get_mut(&object.id) {
                Some((held, file)) => {
                    if held.size != object.size && !huge::ends_within_page(object) {
                        file.set_len(object.size).map_err(TargetError::system("resize shared memory"))?;
                    }
                    *held = object.clone();
                }
                None => {
                    let file = Arc::new(make(object, root, tape, &mut self.next)?);
                    writer.set_file(Owner::Object(object.id), file.clone(), object.huge);
                    self.held.insert(object.id, (object.clone(), file));
                }
            }
        }
        Ok(())
    }

    /// Gives memory files to those who own them. The skeleton has nothing but the channel open.
    ///
    /// # Errors
    /// As the calls behind it.
    pub(crate) fn give_away(
        &self,
        shape: &[MemoryObject],
        root: &mut Skeleton,
        tape: &TargetTape,
        channel: &Channel,
    ) -> Result<(), TargetError> {
        let others = shape.iter().filter_map(|object| match object.kind {
            ObjectKind::Memfd { owner, .. } if owner != (0, 0) => {
                self.held.get(&object.id).map(|(_, file)| (file, owner))
            }
            _ => None,
        });
        let others: Vec<_> = others.collect();
        for part in others.chunks(MANY) {
            let files: Vec<_> = part.iter().map(|(file, _)| file.as_fd()).collect();
            let numbers = channel.plant(&mut root.leader, tape, channel.number, &files)?;
            let give = |(number, (_, (uid, gid))): (&i32, &(_, (u32, u32)))| {
                call!("fchown", SYS_fchown, *number, *uid, *gid)
            };
            let mut calls: Vec<Call> = numbers.iter().zip(part).map(give).collect();
            calls.extend(channel.close_others());
            root.run(tape, &calls)?;
        }
        Ok(())
    }

    /// Finishes memory files and segments when all is written and mapped, with what `shape` says of them in the end: pages
    /// were written as a whole, a file may end in the middle of one; no seal stands against it yet.
    pub(crate) fn finish(
        &mut self,
        shape: &[MemoryObject],
        root: &mut Skeleton,
        tape: &TargetTape,
    ) -> Result<(), TargetError> {
        for object in shape {
            let Some((_, file)) = self.held.get(&object.id) else { continue };
            if object.kind == ObjectKind::SharedAnonymous {
                continue;
            }
            let metadata = file.metadata().map_err(TargetError::system("look at a memory file"))?;
            if metadata.len() != object.size && !huge::ends_within_page(object) {
                file.set_len(object.size).map_err(TargetError::system("resize a memory file"))?;
            }
            if let ObjectKind::Segment(segment) = &object.kind {
                root.run(tape, &ipc::finish_segment(segment))?;
            }
            let ObjectKind::Memfd { seals, mode, .. } = &object.kind else { continue };
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

fn make(
    object: &MemoryObject,
    root: &mut Skeleton,
    tape: &TargetTape,
    next: &mut NextIds,
) -> Result<File, TargetError> {
    match &object.kind {
        ObjectKind::Memfd { name, .. } => {
            let huge = MFdFlags::from_bits_retain(huge::memfd_flags(object));
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | huge;
            let fd: OwnedFd =
                memfd_create(name.as_str(), flags).map_err(TargetError::errno("memfd_create"))?;
            let file = File::from(fd);
            file.set_len(object.size).map_err(TargetError::system("size a memory file"))?;
            Ok(file)
        }
        // The kernel's own file behind such a mapping, so that maps(5) shows it as at the source.
        ObjectKind::SharedAnonymous => {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let flags = flags | huge::object_map_flags(object);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map = call!("mmap shared memory", SYS_mmap, 0, object.size, prot, flags, -1, 0);
            let ran = root.run(tape, &[map])?;
            let start = ran.answers.first().map_or(0, |a| a.value.cast_unsigned());
            let file = root.open_mapping(start, object.size)?;
            root.run(tape, &[call!("munmap", SYS_munmap, start, object.size)])?;
            Ok(file)
        }
        ObjectKind::Segment(segment) => next.segment(root, tape, segment, object),
    }
}

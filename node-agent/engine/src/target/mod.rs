//! The target side: skeleton processes, their filling while the source runs, and the restore.
//!
//! The life of a migration on the target:
//!
//! 1. [`Target::build`] takes a paused process that already sits in the container's namespaces.
//! 2. [`Target::reconcile`] makes the skeleton processes of a [`Shape`] and maps their address spaces at
//!    the final addresses; it is called again whenever the source sends a newer shape.
//! 3. [`Target::writer`] gives a handle with which other threads fill memory.
//! 4. [`Target::restore`] takes the final [`Image`] and rebuilds everything but the running.
//! 5. [`Target::ready`] leaves a copy that is held by nothing but its frozen cgroup; [`Ready::resume`] lets
//!    it run.
//!
//! Until `ready`, every skeleton dies with the thread that made it (PTRACE_O_EXITKILL), so that a crash of
//! the agent never leaves a second copy. `Target` is bound to its thread: ptrace(2) requests work from the
//! tracer's thread alone.

mod attributes;
mod deleted;
mod epolls;
mod error;
mod files;
mod ghosts;
mod gives;
mod gone;
mod guards;
mod huge;
mod ipc;
mod mapping;
mod mqueue;
mod names;
mod namespaces;
mod nested;
mod numbers;
mod objects;
pub mod plan;
mod plant;
mod policies;
mod priority;
mod ranges;
mod ready;
mod restore;
mod resume;
mod rootfs;
mod script;
mod settings;
mod skeleton;
mod stops;
mod switches;
mod tables;
mod terminals;
mod threads;
mod tree;
mod writer;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use image::shape::{Ahead, Mm, Shape};
use image::state::{HostFacts, Image};
use image::{Pid, Refusal, Subject};

use crate::account;
use crate::anew::Followed;
use attributes::Capabilities;
pub use error::TargetError;
use files::{Descriptions, Workshop};
use ghosts::Ghosts;
pub use gives::gives;
use mapping::Surroundings;
use mqueue::Queues;
pub use nested::{NestedMount, NestedMounts};
use objects::Objects;
use plant::Channel;
pub use ready::Ready;
use restore::{Restorer, Stopwatch};
use rootfs::RootFs;
use settings::Settings;
use skeleton::Skeleton;
use sys::tape::target::TargetTape;
use terminals::Terminals;
use tree::Tree;
pub use writer::PageWriter;

/// The first process of the container on the target: paused, in all its namespaces, with its root
/// directory set.
#[derive(Debug)]
pub struct SkeletonRoot {
    /// Its pid, as this process sees it.
    pub pid: i32,
    /// The agent's end of a unix SOCK_SEQPACKET socket pair.
    pub channel: OwnedFd,
    /// The number of the other end in the root process.
    pub channel_fd: i32,
}

/// What a [`Target`] is built on.
#[derive(Debug)]
pub struct TargetOptions {
    /// The first process.
    pub root: SkeletonRoot,
    /// The container's network namespace; `None` when it is the root process's own one anyway and the
    /// target should open it there.
    pub netns: Option<OwnedFd>,
    /// Directory of the container's cgroup in a cgroup v2 hierarchy, for its freezer. Every skeleton must
    /// already be in it (children inherit it from the root process).
    pub cgroup: Option<PathBuf>,
    /// Mount namespaces below the container's.
    pub nested: NestedMounts,
}

/// Descriptors that the runtime supplies, such as standard input and output.
pub trait Externals {
    /// Opens (or duplicates) the descriptor of this key.
    ///
    /// # Errors
    /// When the runtime has none; the restore fails with [`TargetError::External`].
    fn open(&mut self, key: &str) -> io::Result<OwnedFd>;
}

/// How long each step of [`Target::restore`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreTimes {
    /// The last change of processes and mappings, with pages dropped.
    pub reconcile: Duration,
    /// Open file descriptions made by the agent.
    pub files: Duration,
    /// Descriptors planted at their numbers, epoll sets filled.
    pub descriptors: Duration,
    /// Zombies, what /proc/PID takes.
    pub process: Duration,
    /// Threads made, processes stopped by job control, signal handlers.
    pub threads: Duration,
    /// Attributes of threads, credentials, filters.
    pub attributes: Duration,
    /// Interrupted system calls entered again.
    pub calls: Duration,
    /// Registers set and the tape's own memory removed.
    pub registers: Duration,
}

impl RestoreTimes {
    /// The sum of all steps.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.reconcile
            + self.files
            + self.descriptors
            + self.process
            + self.threads
            + self.attributes
            + self.calls
            + self.registers
    }
}

/// A container in the making. See the module.
#[derive(Debug)]
pub struct Target {
    tree: Tree,
    tape: TargetTape,
    channel: Channel,
    root_fs: RootFs,
    objects: Objects,
    ghosts: RefCell<Ghosts>,
    terminals: RefCell<Terminals>,
    writer: PageWriter,
    followed: Followed,
    netns: Option<OwnedFd>,
    cgroup: Option<PathBuf>,
    capabilities: Capabilities,
    settings: Settings,
    files: Descriptions,
    not_send: PhantomData<*const ()>,
}

impl Target {
    /// Seizes the root process (with PTRACE_O_EXITKILL) and installs a tape in it.
    ///
    /// # Errors
    /// When the process is not there, is traced, or the kernel lacks an interface. The root process is
    /// killed then.
    pub fn build(options: TargetOptions) -> Result<Self, TargetError> {
        let TargetOptions { root, netns, cgroup, nested } = options;
        let channel = Channel { agent: root.channel, number: root.channel_fd };
        let (skeleton, tape) = Skeleton::adopt(root.pid, &channel)?;
        let capabilities = capabilities(root.pid)?;
        let mut target = Self {
            tree: Tree::new(skeleton),
            tape,
            channel,
            root_fs: RootFs::of(root.pid, nested)?,
            objects: Objects::default(),
            ghosts: RefCell::default(),
            terminals: RefCell::default(),
            writer: PageWriter::default(),
            followed: Followed::default(),
            netns,
            cgroup,
            capabilities,
            settings: Settings::of(root.pid)?,
            files: Descriptions::default(),
            not_send: PhantomData,
        };
        let Self { tree, tape, channel, root_fs, objects, ghosts, terminals, .. } = &mut target;
        let around = Surroundings { tape, channel, root: root_fs, objects, ghosts, terminals };
        let root = tree.root;
        mapping::clear(tree.get(root)?, &around)?;
        Ok(target)
    }

    /// Makes the skeletons be what the shape says: processes made and killed, memory mapped, unmapped,
    /// protected. Contents of mappings that stay are kept. Processes that are made after a shape with a template begin
    /// with what was written into it, where they have the same mapped.
    ///
    /// # Errors
    /// A [`TargetError`]; the target is to be discarded.
    pub fn reconcile(&mut self, shape: &Shape) -> Result<(), TargetError> {
        if !shape.template.is_empty() {
            return self.begin_template(shape);
        }
        let Self { tree, tape, channel, root_fs, objects, ghosts, terminals, writer, followed, .. } = self;
        let root = tree.root;
        fail::fail_point!("target-reconcile");
        tree.make_way(shape, tape)?;
        let around = Surroundings { tape, channel, root: root_fs, objects, ghosts, terminals };
        let ended = tree.reconcile(shape, &around)?;
        followed.follow(&shape.processes, &ended).map_err(TargetError::Refused)?;
        for pid in ended {
            writer.remove_process(pid);
        }
        fail::fail_point!("target-reconcile-tree");
        let owner = root_fs.make_as_owner()?;
        objects.reconcile(&shape.objects, tree.get(root)?, tape, writer)?;
        drop(owner);
        ghosts.get_mut().reconcile(&shape.ghosts, root_fs, writer)?;
        let around = Surroundings { tape, channel, root: root_fs, objects, ghosts, terminals };
        tree.end_template(shape, &around)?;
        for process in &shape.processes {
            let skeleton = tree.get(process.pid)?;
            if skeleton.template {
                writer.inherit(process.pid, skeleton.host, &skeleton.memory);
            }
            let dropped = mapping::drop_pages(&writer.take_dropped(process.pid));
            skeleton.run(tape, &dropped)?;
            for (start, end) in mapping::reconcile(skeleton, &process.mm, &around)? {
                writer.unmapped(process.pid, start, end);
            }
            writer.set_process(process.pid, skeleton.host, &skeleton.memory, &process.mm.vmas);
        }
        writer.end_template();
        fail::fail_point!("target-reconcile-memory");
        Ok(())
    }

    /// The root process holds the template until it has made the others, each of which gets it by fork(2).
    fn begin_template(&mut self, shape: &Shape) -> Result<(), TargetError> {
        let Self { tree, tape, channel, root_fs, objects, ghosts, terminals, writer, .. } = self;
        let root = tree.root;
        let fresh = tree.skeletons.len() == 1 && tree.get(root)?.mm == Mm::default();
        if !fresh || !shape.processes.is_empty() || !shape.objects.is_empty() || !shape.ghosts.is_empty() {
            return Err(TargetError::Image("a template beside processes".to_owned()));
        }
        tree.make_way(shape, tape)?;
        let around = Surroundings { tape, channel, root: root_fs, objects, ghosts, terminals };
        let skeleton = tree.get(root)?;
        mapping::begin_template(skeleton, &shape.template, &around)?;
        writer.set_template(skeleton.host, &skeleton.memory, &shape.template);
        fail::fail_point!("target-template");
        Ok(())
    }

    /// Every thread there is: its process and itself as the container numbers them, and itself as this process does.
    /// The threads of the image exist after [`Target::restore`]; before it each process has one.
    #[must_use]
    pub fn tasks(&self) -> Vec<(Pid, Pid, i32)> {
        let skeletons = self.tree.skeletons.values();
        let of = |skeleton: &Skeleton| {
            let (pid, first) = (skeleton.node.pid, (skeleton.node.pid, skeleton.host));
            let others: Vec<_> = skeleton.threads.iter().map(|task| (task.tid, task.host)).collect();
            std::iter::once(first).chain(others).map(move |(tid, host)| (pid, tid, host))
        };
        skeletons.flat_map(of).collect()
    }

    /// Prepares what can be ahead of the image: threads, and the size of descriptor tables. To be called again when
    /// something else is known; the restore makes everything as the image says.
    ///
    /// # Errors
    /// A [`TargetError`]; the target is to be discarded.
    pub fn prepare(&mut self, ahead: &[Ahead]) -> Result<(), TargetError> {
        fail::fail_point!("target-prepare");
        self.tree.prepare(ahead, &self.tape, self.channel.number, &self.capabilities)?;
        self.tree.count_on(&self.tape, &self.channel)
    }

    /// The pid namespaces of its processes below the container's own, by the numbers that the shape gives them.
    ///
    /// # Errors
    /// [`TargetError`]; the target is to be discarded.
    pub fn pid_namespaces(&self) -> Result<BTreeMap<u64, OwnedFd>, TargetError> {
        self.tree.pid_namespaces()
    }

    /// A handle that fills memory, for this or any other thread. It follows later calls of
    /// [`Target::reconcile`]; it must not be used while one runs, nor after [`Target::restore`] began.
    #[must_use]
    pub fn writer(&self) -> PageWriter {
        self.writer.clone()
    }

    /// Rebuilds everything but the running. All pages must have been applied.
    ///
    /// # Errors
    /// A [`TargetError`]; the target is to be discarded.
    pub fn restore(
        &mut self,
        image: &Image,
        externals: &mut dyn Externals,
    ) -> Result<RestoreTimes, TargetError> {
        fits(&image.host)?;
        let mut times = RestoreTimes::default();
        let mut watch = Stopwatch::start();
        self.reconcile(&image.shape)?;
        times.reconcile = watch.lap("restore.reconcile");

        let Self {
            tree,
            tape,
            channel,
            root_fs,
            objects,
            ghosts,
            terminals,
            netns,
            capabilities,
            settings,
            writer,
            ..
        } = self;
        let root = tree.root;
        let own;
        let netns = match netns.as_ref() {
            Some(netns) => netns.as_fd(),
            None => {
                let host = tree.get(root)?.host;
                own =
                    sys::ns::open(host, sys::ns::Kind::Net).map_err(TargetError::errno("open the netns"))?;
                own.as_fd()
            }
        };
        let programs: BTreeSet<u32> =
            image.shape.processes.iter().filter_map(|process| process.mm.exe.ghost).collect();
        ghosts.get_mut().finish(&image.files, &programs, root_fs, writer)?;
        let around = Surroundings { tape, channel, root: root_fs, objects, ghosts, terminals };
        for process in &image.shape.processes {
            deleted::set_program(tree.get(process.pid)?, &process.mm, &around)?;
        }
        // What leads to a thread is made of it; else threads come when tables are full, which may have to grow.
        let early = files::lead_to_threads(&image.files);
        if early {
            let capabilities = *capabilities;
            Restorer { tree: &mut *tree, tape, channel, image, capabilities }.threads()?;
        }
        // Pipes and sockets have owners, too.
        settings.set(&image.ipc.settings, settings::QUEUES)?;
        let queues = Queues::make(&image.ipc.posix_queues, tree.get(root)?, tape)?;
        objects.give_away(&image.shape.objects, tree.get(root)?, tape, channel)?;
        let owner = root_fs.make_as_owner()?;
        let mut shop = Workshop {
            queues: &queues,
            tree,
            tape,
            channel,
            root: root_fs,
            objects,
            ghosts: ghosts.get_mut(),
            terminals: terminals.get_mut(),
            externals,
            netns,
        };
        let files = Descriptions::make(&image.files, &mut shop)?;
        drop(owner);
        // Names of sockets were bound from another one.
        let around = Surroundings { tape, channel, root: root_fs, objects, ghosts, terminals };
        for process in &image.processes {
            if let Some(directory) = process.deleted_cwd {
                deleted::enter_directory(tree.get(process.pid)?, directory, &around)?;
            }
        }
        let terminals = terminals.get_mut();
        times.files = watch.lap("restore.files");
        fail::fail_point!("target-files");

        let capabilities = *capabilities;
        let mut restorer = Restorer { tree, tape, channel, image, capabilities };
        restorer.descriptors(&files)?;
        restorer.foreground(terminals, root_fs)?;
        restorer.locks(&files)?;
        times.descriptors = watch.lap("restore.descriptors");
        fail::fail_point!("target-descriptors");
        restorer.processes()?;
        objects.finish(&image.shape.objects, restorer.tree.get(root)?, tape)?;
        ipc::restore(&image.ipc, restorer.tree, root, tape, objects.next_ids())?;
        // Now that there is what they would not allow any more.
        settings.set(&image.ipc.settings, settings::SYSTEM_V)?;
        restorer.tree.fill_namespaces(&image.namespaces)?;
        times.process = watch.lap("restore.process");
        fail::fail_point!("target-processes");
        if !early {
            restorer.threads()?;
        }
        restorer.thread_tables(&files, early)?;
        restorer.count_on()?;
        restorer.children_namespaces()?;
        restorer.stops()?;
        restorer.handlers()?;
        files.set_owners(&image.files, &|kind, id| restorer.host_of(kind, id))?;
        times.threads = watch.lap("restore.threads");
        fail::fail_point!("target-threads");
        restorer.attributes()?;
        times.attributes = watch.lap("restore.attributes");
        fail::fail_point!("target-attributes");
        let entered = restorer.enter_calls()?;
        times.calls = watch.lap("restore.calls");
        fail::fail_point!("target-calls");
        restorer.registers(&entered)?;
        times.registers = watch.lap("restore.registers");
        fail::fail_point!("target-registers");
        self.files = files;
        Ok(times)
    }

    /// Takes sockets out of repair mode, freezes the cgroup and detaches. What holds after Ok: the copy is
    /// complete, outlives this process, and runs with one write ([`Ready::resume`]). Without a cgroup the
    /// threads stay stopped by ptrace, and die with this thread.
    ///
    /// # Errors
    /// A [`TargetError`]; every skeleton was killed.
    pub fn ready(self) -> Result<Ready, TargetError> {
        let Self { tree, mut files, cgroup, root_fs, .. } = self;
        root_fs.forget_nested();
        let waiting = files.leave_repair()?;
        account::lap("restore.leave-repair");
        fail::fail_point!("target-ready-repair");
        Ready::new(tree, std::mem::take(&mut files.aside), waiting, cgroup.as_deref())
    }

    /// Kills every skeleton and waits until it is gone.
    pub fn discard(self) {
        let Self { tree, mut files, root_fs, .. } = self;
        root_fs.forget_nested();
        drop(tree);
        files.aside.drain(..).for_each(|a| a.undo());
    }
}

/// Whether this host has what registers and vDSO of a captured tree need. Zero stands for what its source could not read.
///
/// # Errors
/// [`TargetError::Refused`] when it lacks something, or the error of looking.
pub fn fits(there: &HostFacts) -> Result<(), TargetError> {
    let refuse = |reason: String| {
        let way_out = "choose a target with the source's kernel and CPU features".to_owned();
        Err(TargetError::Refused(Refusal { pid: 0, subject: Subject::Container, reason, way_out }))
    };
    let vdso = sys::cpu::vdso_hash().map_err(TargetError::system("read the vDSO"))?;
    if there.vdso_hash != 0 && there.vdso_hash != vdso {
        return refuse(format!("the kernel here has another vDSO than {}", there.kernel_release));
    }
    let here = sys::cpu::xsave().map_or(0, |x| x.features);
    if there.xcr0 & !here != 0 {
        return refuse(format!("this CPU lacks register sets: {:#x} there, {here:#x} here", there.xcr0));
    }
    Ok(())
}

/// What the skeletons, which all have the root process's capabilities, may do.
fn capabilities(host: i32) -> Result<Capabilities, TargetError> {
    let path = "/proc/sys/kernel/cap_last_cap";
    let text = std::fs::read_to_string(path).map_err(TargetError::system(format!("read {path}")))?;
    let last = text.trim().parse().map_err(|_| TargetError::Image(format!("{path} holds no number")))?;
    let held = sys::prctl::caps(host).map_err(TargetError::errno("capget of the root process"))?.permitted;
    Ok(Capabilities { last, held })
}
